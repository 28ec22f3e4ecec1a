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

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from cid.density import (
    BLOCK,
    GPU_BLOCK,
    cid_weights,
    class_codes,
    class_weights,
    half_squares,
    kernel_values,
    unit_vectors,
)


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
