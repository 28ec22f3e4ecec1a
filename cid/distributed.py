"""Weights and training shared among the processes of a ``torch.distributed`` group.

    torchrun --nproc-per-node 4 -m cid.distributed weights EMBEDDINGS.npy LABELS.npy WEIGHTS.npy \\
        --tau 0.01
    torchrun --nproc-per-node 4 -m cid.distributed embed
    torchrun --nproc-per-node 4 -m cid.distributed train 0.9

:func:`distributed_cid_weights` gives the exact weights of :func:`cid.density.cid_weights` while a
process holds its own rows, those of one other process, and one block of the kernel. The shards meet
in a round-robin tournament, each pair once: the visitor goes home with its half of the sums.

Embedding consists of independent chunks of photos and training of independent runs, so processes
share them without talking to each other: each leaves its own in ``build/embedding`` or ``build/runs``,
where ``dvc repro`` finds them.

Over several machines the paths lie on a file system that all of them see.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from ruamel.yaml import YAML, YAMLError
from tqdm import tqdm

from cid.density import (
    BLOCK,
    CLASS_PRIORS,
    GPU_BLOCK,
    cid_weights,
    class_codes,
    class_weights,
    half_squares,
    kernel_values,
    unit_vectors,
)
from cid.embed import CHUNK, embed_chunk
from cid.faces import read_faces
from cid.networks import train_model


def distributed_cid_weights(
    embeddings,
    labels,
    tau: float,
    *,
    class_prior: str = "balanced",
    power: float = 1.0,
    include_self: bool = True,
    device: str = "auto",
):
    """Conditional inverse density weights of samples spread over the ranks of the default group.

    A collective call: every rank makes it, with its own samples and the same settings. The result
    is that of :func:`cid.density.cid_weights` on the samples of all ranks, to float32 rounding.

    Parameters
    ----------
    embeddings : array or tensor, shape (n_r, d)
        This rank's proxy embeddings, at least one.
    labels : integer array or tensor, shape (n_r,)
        Their classes. A rank may lack some of the classes.
    tau, class_prior, power, include_self
        As in :func:`cid.density.cid_weights`.
    device : str
        Where the kernel is computed; "auto" is a GPU when there is one. What the ranks exchange
        goes through the current GPU under NCCL and through the CPU otherwise.

    Returns
    -------
    array or tensor, shape (n_r,)
        Weights of this rank's samples, of the kind that ``embeddings`` were; their mean over all
        ranks is 1.

    Raises
    ------
    RuntimeError
        Without an initialised process group.
    ValueError
        On every rank alike, if the input of any rank is one that
        :func:`cid.density.cid_weights` refuses, or settings differ between ranks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "there is no process group; start with torchrun --nproc-per-node 2 script.py and call "
            "torch.distributed.init_process_group() first"
        )
    world = dist.get_world_size()
    settings = {
        "tau": tau,
        "class_prior": class_prior,
        "power": power,
        "include_self": include_self,
    }
    failure = message = None
    try:  # whatever fails here must reach the other ranks, which would wait for this one
        cid_weights(np.ones((1, 1)), [0], **settings, device="cpu")  # its checks of the settings
        unit, own = _prepare(embeddings, labels, include_self, device)
        settings |= {"d": unit.shape[1], "dtype": str(unit.dtype)}
        message = np.unique(own, return_counts=True)
    except Exception as error:
        failure = error
    told = [None] * world
    dist.all_gather_object(told, (failure and str(failure), settings, message))
    for other, (error, theirs, _) in enumerate(told):
        if error is not None:
            raise ValueError(f"input of rank {other}: {error}") from failure
        if theirs != told[0][1]:
            raise ValueError(
                f"rank {other} has {theirs} but rank 0 has {told[0][1]}; pass the same on all ranks"
            )

    classes = np.unique(np.concatenate([found for *_, (found, _) in told]))
    counts = np.zeros((world, len(classes)), dtype=np.int64)  # of a class on a rank
    for other, (*_, (found, number)) in enumerate(told):
        counts[other, np.searchsorted(classes, found)] = number
    codes = np.searchsorted(classes, own)
    order = torch.from_numpy(np.argsort(codes, kind="stable")).to(unit.device)
    codes = torch.from_numpy(codes).to(unit.device)[order]
    total = _kernel_sums(unit[order], counts, float(tau), include_self)

    count = torch.from_numpy(counts.sum(axis=0)).to(total)
    density = (total / (count if include_self else count - 1)[codes]).clamp_(max=1.0)
    density[count[codes] == 1] = 1.0  # as in class_density
    stray = int(_all_reduce((density <= 0).sum()))
    if stray:
        raise ValueError(
            f"{stray} samples have no neighbour of their class within reach of tau = {tau}, so their "
            "density without themselves is 0; raise tau or set include_self to true"
        )
    weights = torch.empty_like(density)
    weights[order] = class_weights(density, codes, count, class_prior, power, _all_reduce)
    if isinstance(embeddings, torch.Tensor):
        return weights.to(embeddings.device, _kind(embeddings))
    return weights.to("cpu", _kind(np.asarray(embeddings))).numpy()


def _prepare(embeddings, labels, include_self: bool, device) -> tuple[torch.Tensor, np.ndarray]:
    """Unit vectors and labels of this rank, checked."""
    vectors = embeddings if isinstance(embeddings, torch.Tensor) else np.asarray(embeddings)
    if not include_self:  # see class_density
        vectors = torch.as_tensor(vectors).double()
    unit = unit_vectors(vectors, device)
    class_codes(labels, len(unit))  # its checks
    labels = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels are {labels.dtype}; number the classes by integers")
    return unit, labels.astype(np.int64)


def _kind(values) -> torch.dtype:
    return torch.float64 if str(values.dtype).endswith("float64") else torch.float32


def _kernel_sums(unit: torch.Tensor, counts, tau: float, include_self: bool) -> torch.Tensor:
    """Sum of ``exp((z_i . z_j - 1) / tau)`` over all j of i's class on all ranks; float64 (n_r,).

    ``unit`` (n_r, d) is sorted by class and overwritten; ``counts`` is (world, classes).
    """
    world, classes = counts.shape
    rank = dist.get_rank()
    edges = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0))).tolist()
    slices = [slice(*edges[rank][c : c + 2]) for c in range(classes)]
    sums = torch.stack([unit[rows].sum(dim=0, dtype=torch.float64) for rows in slices])
    sums = _all_reduce(sums)
    for c, rows in enumerate(slices):  # centred for precision, as in cid.density
        unit[rows] -= (sums[c] / int(counts[:, c].sum())).to(unit.dtype)
    u = unit.div_(math.sqrt(tau))
    ours = u, half_squares(u).to(u.dtype)
    total = torch.zeros(len(u), dtype=torch.float64, device=u.device)

    for rows in slices:
        for here in _blocks(rows, u.device):
            kernel = kernel_values(ours, ours, here, here)
            # A sample's kernel with itself is 1 exactly.
            total[here] += kernel.fill_diagonal_(float(include_self)).sum(dim=1)
            _add_sums(ours, ours, here, slice(here.stop, rows.stop), total, total)

    # At step k rank r hosts the shard of rank r + k, so every pair of ranks meets once, but for
    # k = world / 2: there both host each other, and each takes half of the lower rank's rows.
    for step in range(1, world // 2 + 1):
        host, guest = (rank - step) % world, (rank + step) % world
        v = _exchange(u, host, (edges[guest][-1], u.shape[1]), guest)
        theirs = v, half_squares(v).to(v.dtype)
        visiting = torch.zeros(len(v), dtype=torch.float64, device=v.device)
        for c in range(classes):
            (a, b), (p, q) = edges[rank][c : c + 2], edges[guest][c : c + 2]
            if 2 * step == world and rank < guest:
                b = (a + b) // 2
            elif 2 * step == world:
                p = (p + q) // 2
            _add_sums(ours, theirs, slice(a, b), slice(p, q), total, visiting)
        total += _exchange(visiting, guest, (len(u),), host)
    return total


def _blocks(rows: slice, device: torch.device) -> Iterator[slice]:
    block = BLOCK if device.type == "cpu" else GPU_BLOCK
    for start in range(rows.start, rows.stop, block):
        yield slice(start, min(start + block, rows.stop))


def _add_sums(ours, theirs, rows: slice, cols: slice, total, visiting) -> None:
    """Add the kernel sums between rows of two shards to the totals of both."""
    for i in _blocks(rows, total.device):
        for j in _blocks(cols, total.device):
            kernel = kernel_values(ours, theirs, i, j)
            total[i] += kernel.sum(dim=1)
            visiting[j] += kernel.sum(dim=0)


# --- messages -------------------------------------------------------------------------------------


def _wire() -> torch.device:
    """Where the group's backend takes tensors from."""
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _all_reduce(values: torch.Tensor, how: str = "sum") -> torch.Tensor:
    shared = values.to(_wire())
    dist.all_reduce(shared, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    return shared.to(values.device)


def _exchange(values: torch.Tensor, to: int, shape, source: int) -> torch.Tensor:
    """Send a tensor to one rank and receive one of the same type and another shape from another."""
    sent = values.to(_wire())
    received = torch.empty(shape, dtype=sent.dtype, device=sent.device)
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, received, source)]
    ):
        work.wait()
    return received.to(values.device)


# --- command line ---------------------------------------------------------------------------------


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
