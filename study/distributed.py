"""Share a study's slow work among several processes, under torchrun or one after the other.

    torchrun --nproc-per-node 4 -m study distributed embed
    torchrun --nproc-per-node 4 -m study distributed train [LEVEL]
    torchrun --nproc-per-node 4 -m study distributed weights EMBEDDINGS LABELS WEIGHTS --tau 0.01

``weights`` computes CID weights of embeddings in a file, with the samples spread over the processes.
``embed`` and ``train`` are run before ``dvc repro``: every process leaves its share of the stage's
finished work in build/runs, where the stage finds it.
"""

import os
from argparse import BooleanOptionalAction
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from cid.distributed import distributed_cid_weights
from study.commands import parser, run_renamed
from study.experiment.train import train_model
from study.faces.dataset import read_faces, read_images, read_labels
from study.faces.embed import embed_share
from study.pipeline import params
from study.store import KEPT


def main(arguments: list[str]) -> None:
    options = parser("distributed")
    commands = options.add_subparsers(dest="command", required=True)
    weights = commands.add_parser("weights", help="CID weights of embeddings in a file")
    weights.add_argument("embeddings", type=Path, help=".npy file, shape (n, d)")
    weights.add_argument("labels", type=Path, help=".npy file of integers, shape (n,)")
    weights.add_argument("weights", type=Path, help=".npy file to write, shape (n,)")
    weights.add_argument("--tau", type=float, required=True)
    weights.add_argument("--class-prior", choices=["balanced", "empirical"], default="balanced")
    weights.add_argument("--power", type=float, default=1.0)
    weights.add_argument("--include-self", action=BooleanOptionalAction, default=True)
    weights.add_argument("--device", default="auto")
    commands.add_parser("embed", help="this process's share of the stage embed")
    train = commands.add_parser("train", help="this process's share of the stage train")
    train.add_argument("level", type=float, nargs="?", help="one of bias.levels; default: all")
    args = options.parse_args(arguments)

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if args.command == "weights":
        write_weights(
            args.embeddings,
            args.labels,
            args.weights,
            tau=args.tau,
            class_prior=args.class_prior,
            power=args.power,
            include_self=args.include_self,
            device=args.device,
        )
    elif args.command == "embed":
        embed()
    else:
        train_level(args.level)


def write_weights(embeddings: Path, labels: Path, weights: Path, **settings) -> None:
    """Write CID weights, computed by the group that torchrun prepared, or by this process alone.

    Parameters
    ----------
    embeddings, labels : path
        ``.npy`` files of shapes (n, d) and (n,).
    weights : path
        The ``.npy`` file to write, of shape (n,); it appears complete or not at all.
    **settings
        Those of :func:`cid.distributed.distributed_cid_weights`.

    Raises
    ------
    ValueError
        If the file to write is one of those that are read, or if there is not one label for each embedding.
    """
    for read in (embeddings, labels):
        if weights.resolve() == read.resolve() or (weights.exists() and weights.samefile(read)):
            raise ValueError(f"{weights} is to be written but is also read; name a new file")
    all_embeddings = np.load(embeddings, mmap_mode="r")
    all_labels = np.load(labels, mmap_mode="r")
    n = len(all_embeddings)
    shape = all_labels.shape
    if shape != (n,):
        raise ValueError(f"{labels} has shape {shape} but {embeddings} has {n} rows to label")
    join_group()
    try:
        rank = dist.get_rank()
        world = dist.get_world_size()
        rows = slice(n * rank // world, n * (rank + 1) // world)  # this process's share
        share = distributed_cid_weights(
            np.array(all_embeddings[rows]), np.array(all_labels[rows]), **settings
        )
        unfinished = weights.with_name(weights.name + ".partial")
        if rank == 0:
            np.lib.format.open_memmap(unfinished, "w+", share.dtype, (n,)).flush()
        dist.barrier()
        out = np.load(unfinished, mmap_mode="r+")
        out[rows] = share
        out.flush()
        dist.barrier()
        if rank == 0:
            os.replace(unfinished, weights)
    finally:
        dist.destroy_process_group()


def join_group() -> None:
    """Join the group of processes that torchrun started, or make one of this process alone."""
    # NCCL refuses two processes on one GPU; through gloo they can share it.
    gpu_each = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
    if gpu_each and dist.is_nccl_available():
        backend = "nccl"
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        backend = "gloo"
        device = None
    if "RANK" in os.environ:
        dist.init_process_group(backend, device_id=device)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, device_id=device, store=store, rank=0, world_size=1)


def _share() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def embed() -> None:
    """Embed this process's share of what notebooks/compute/embed.ipynb embeds."""
    rank, world = _share()
    data = read_faces("data", check_images=False)
    embed_share(data, params.read()["embed"], rank, world, folder=KEPT)


def train_level(level: float | None) -> None:
    """Train this process's share of what notebooks/compute/train.ipynb trains, at one level or all."""
    study = params.read()
    rank, world = _share()
    if study["train"]["model"] == "linear":
        raise ValueError("train.model is linear, which has no shares; run dvc repro instead")
    sets = pd.read_parquet("build/weights/sets.parquet")
    levels = sets["level"].unique().tolist()
    if level is not None and level not in levels:
        raise ValueError(f"level {level:g} is not in build/weights; known: {levels}")
    if level is not None:
        sets = sets[sets["level"] == level]
    train_model(
        sets,
        np.load("build/embed/trunk.npy"),
        read_images(study["train"]["model"]),
        read_labels().labels(study["task"]),
        study["methods"],
        study["train"],
        folder=KEPT,
        rank=rank,
        world=world,
    )


if __name__ == "__main__":
    run_renamed(__spec__.name)
