"""TODO."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from ruamel.yaml import YAML, YAMLError
from tqdm import tqdm

from cid.density import CLASS_PRIORS
from cid.distributed import distributed_cid_weights
from study.experiment.runs import train_model
from study.faces.dataset import read_faces
from study.faces.embed import CHUNK, embed_chunk


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m cid.distributed``, under torchrun or alone; the exit status."""
    parser = argparse.ArgumentParser(prog="cid.distributed", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("weights", help="CID weights of embeddings in a file")
    add.add_argument("embeddings", type=Path, help=".npy file, shape (n, d)")
    add.add_argument("labels", type=Path, help=".npy file of integers, shape (n,)")
    add.add_argument("weights", type=Path, help=".npy file to write, shape (n,)")
    add.add_argument("--tau", type=float, required=True)
    add.add_argument("--class-prior", choices=CLASS_PRIORS, default="balanced")
    add.add_argument("--power", type=float, default=1.0)
    add.add_argument("--include-self", action=argparse.BooleanOptionalAction, default=True)
    add.add_argument("--device", default="auto")
    commands.add_parser("embed", help="this process's share of the stage embed of the study")
    add = commands.add_parser("train", help="this process's share of a stage train of the study")
    add.add_argument("level", type=float, help="one of bias.levels in params.yaml")
    args = parser.parse_args(argv)
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        {"weights": _weights, "embed": _embed, "train": _train}[args.command](args)
    except (ValueError, OSError, YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _weights(args: argparse.Namespace) -> None:
    embeddings, labels = (np.load(path, mmap_mode="r") for path in (args.embeddings, args.labels))
    n = len(embeddings)
    if labels.shape != (n,):
        raise ValueError(
            f"{args.labels} has shape {labels.shape} but {args.embeddings} has {n} rows; one label "
            "a row is needed"
        )
    _join()
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        rows = slice(n * rank // world, n * (rank + 1) // world)
        weights = distributed_cid_weights(
            np.array(embeddings[rows]),
            np.array(labels[rows]),
            args.tau,
            class_prior=args.class_prior,
            power=args.power,
            include_self=args.include_self,
            device=args.device,
        )
        unfinished = args.weights.with_name(args.weights.name + ".partial")
        if rank == 0:
            np.lib.format.open_memmap(unfinished, "w+", weights.dtype, (n,)).flush()
        dist.barrier()
        out = np.load(unfinished, mmap_mode="r+")
        out[rows] = weights
        out.flush()
        dist.barrier()
        if rank == 0:
            os.replace(unfinished, args.weights)
    finally:
        dist.destroy_process_group()


def _join() -> None:
    """Initialise the group that torchrun prepared, or one of this process alone."""
    # NCCL refuses two processes on one GPU; through gloo they can share it.
    own_gpu = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
    backend = "nccl" if own_gpu and dist.is_nccl_available() else "gloo"
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else None
    dist.init_process_group(backend, device_id=device, **alone)


def _share() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _embed(args: argparse.Namespace) -> None:
    """Of the chunks that notebooks/02_embed.ipynb embeds, this process's share."""
    how = YAML(typ="safe").load(Path("params.yaml"))["embed"]
    data, (rank, world) = read_faces("data", check_images=False), _share()
    landmarks = None if how["detect"] else data.landmarks()
    starts = range(CHUNK * rank, len(data), CHUNK * world)
    for start in tqdm(starts, desc="chunks of photos", disable=rank > 0):
        rows = np.arange(start, min(start + CHUNK, len(data)))
        points = None if landmarks is None else landmarks[rows]
        settings = how["network"], how["trunk"], how["precision"]
        photos = list(data.images(rows))
        embed_chunk(photos, points, *settings, folder="build/embedding", first=start)


def _train(args: argparse.Namespace) -> None:
    """What notebooks/04_train.ipynb trains, as far as it is this process's share."""
    params = YAML(typ="safe").load(Path("params.yaml"))
    if params["train"]["model"] == "linear":
        raise ValueError(
            "train.model is linear, whose heads are fitted in one computation with nothing to share; "
            "run dvc repro, or choose a network"
        )
    data, (rank, world) = read_faces("data", check_images=False), _share()
    with np.load("build/embed/detection.npz") as detection:
        landmarks = detection["landmarks"]
    train_model(
        pd.read_parquet(f"build/weights/{args.level}/sets.parquet"),
        data,
        np.load("build/embed/trunk.npy"),
        landmarks,
        data.labels(params["task"]),
        params["methods"],
        params["train"],
        folder="build/runs",
        rank=rank,
        world=world,
    )


if __name__ == "__main__":
    sys.exit(main())
