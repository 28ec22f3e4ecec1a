"""Shares of a study's slow work on several processes, under torchrun or one after the other.

``weights`` computes CID weights of embeddings in a file, the samples spread over the processes.
``embed`` and ``train`` are for ahead of ``dvc repro``: every process leaves its share of the stage's
finished work in build/runs, where the stage finds it.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from cid.density import CLASS_PRIORS
from cid.distributed import distributed_cid_weights
from study.experiment.train import train_model
from study.faces.dataset import read_faces, read_images, read_labels
from study.faces.embed import embed_share
from study.pipeline import params
from study.store import KEPT


@params.command
def main(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="study.distributed", description=__doc__.split("\n")[0])
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
    add = commands.add_parser("train", help="this process's share of the stage train of the study")
    add.add_argument("level", type=float, nargs="?", help="one of bias.levels; all without it")
    given = vars(parser.parse_args(argv))
    work = {"weights": _weights, "embed": _embed, "train": _train}[given.pop("command")]
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    work(**given)


def _weights(embeddings: Path, labels: Path, weights: Path, tau: float, **how) -> None:
    """Weights by the group that torchrun prepared, or by one of this process alone."""
    vectors, classes = (np.load(path, mmap_mode="r") for path in (embeddings, labels))
    n, shape = len(vectors), classes.shape
    if shape != (n,):
        raise ValueError(f"{labels} has shape {shape} but {embeddings} has {n} rows to label")
    # NCCL refuses two processes on one GPU; through gloo they can share it.
    own_gpu = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
    backend = "nccl" if own_gpu and dist.is_nccl_available() else "gloo"
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else None
    dist.init_process_group(backend, device_id=device, **alone)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        rows = slice(n * rank // world, n * (rank + 1) // world)
        own = np.array(vectors[rows]), np.array(classes[rows])
        found = distributed_cid_weights(*own, tau, **how)
        unfinished = weights.with_name(weights.name + ".partial")
        if rank == 0:
            np.lib.format.open_memmap(unfinished, "w+", found.dtype, (n,)).flush()
        dist.barrier()
        out = np.load(unfinished, mmap_mode="r+")
        out[rows] = found
        out.flush()
        dist.barrier()
        if rank == 0:
            os.replace(unfinished, weights)
    finally:
        dist.destroy_process_group()


def _share() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _embed() -> None:
    """Of what notebooks/compute/embed.ipynb embeds, this process's share."""
    data = read_faces("data", check_images=False)
    embed_share(data, params.read()["embed"], *_share(), folder=KEPT)


def _train(level: float | None) -> None:
    """What notebooks/compute/train.ipynb trains, as far as it is this process's share."""
    given, (rank, world) = params.read(), _share()
    if given["train"]["model"] == "linear":
        raise ValueError("train.model is linear, which has no shares; run dvc repro instead")
    sets = pd.read_parquet("build/weights/sets.parquet")
    known = sets["level"].unique().tolist()
    if level is not None and level not in known:
        raise ValueError(f"level {level:g} is not in build/weights; known: {known}")
    sets = sets if level is None else sets[sets["level"] == level]
    features, labels = np.load("build/embed/trunk.npy"), read_labels().labels(given["task"])
    images = read_images(given["train"]["model"])
    data = sets, features, images, labels, given["methods"], given["train"]
    train_model(*data, folder=KEPT, rank=rank, world=world)


if __name__ == "__main__":
    sys.exit(main())
