"""CID weights of samples that are spread over the processes of a ``torch.distributed`` group.

A process holds its own rows, those of one other process, and one block of the kernel. The shards meet
in a round-robin tournament, each pair once: the visitor goes home with its half of the sums.
"""

import math

import numpy as np
import torch
import torch.distributed as dist

from cid import density as exact
from cid.arrays import array, as_tensor, class_codes, like, unit_vectors
from cid.weights import cid_weights, class_weights


def distributed_cid_weights(
    embeddings, labels, tau: float, *, class_prior: str = "balanced", power: float = 1.0,
    include_self: bool = True, device: str = "auto",
):  # fmt: skip
    """Conditional inverse density weights of samples spread over the ranks of the default group.

    A collective call: every rank makes it, with its own samples and the same settings. The result
    is that of one process to float32 rounding.

    Parameters
    ----------
    embeddings : array or tensor, shape (n_r, d)
        This rank's proxy embeddings, at least one.
    labels : integer array or tensor, shape (n_r,)
        Their classes. A rank may lack some of the classes.
    tau, class_prior, power, include_self
        As in :func:`cid.weights.cid_weights`.
    device : str
        Where the kernel is computed, "auto" as there. What the ranks exchange goes through the
        current GPU under NCCL and through the CPU otherwise.

    Returns
    -------
    array or tensor, shape (n_r,)
        Weights of this rank's samples, of the kind of ``embeddings``; their mean over all ranks is 1.

    Raises
    ------
    RuntimeError
        Without an initialised process group.
    ValueError
        On every rank alike, if :func:`cid.weights.cid_weights` would refuse the input of one, or
        settings differ between ranks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        start = "torchrun --nproc-per-node 2 script.py"
        call = "torch.distributed.init_process_group()"
        raise RuntimeError(f"there is no process group; start with {start} and call {call} first")
    world = dist.get_world_size()
    settings = dict(tau=tau, class_prior=class_prior, power=power, include_self=include_self)
    failure = message = None
    try:  # whatever fails here must reach the other ranks, which would wait for this one
        cid_weights(np.ones((1, 1)), [0], **settings, device="cpu")  # checks the settings
        vectors, unit, own = _prepare(embeddings, labels, include_self, device)
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
            differ = f"rank {other} has {theirs} but rank 0 has {told[0][1]}"
            raise ValueError(f"{differ}; pass the same on all ranks")

    classes = np.unique(np.concatenate([found for *_, (found, _) in told]))
    counts = np.zeros((world, len(classes)), dtype=np.int64)  # of a class on a rank
    for other, (*_, (found, number)) in enumerate(told):
        counts[other, np.searchsorted(classes, found)] = number
    codes = np.searchsorted(classes, own)
    order = torch.from_numpy(np.argsort(codes, kind="stable")).to(unit.device)
    codes = torch.from_numpy(codes).to(unit.device)[order]
    given = counts, float(tau), include_self
    total = _kernel_sums(unit[order], *given)
    if total is None:
        total = _kernel_sums(unit_vectors(vectors.double(), device)[order], *given)

    count = torch.from_numpy(counts.sum(axis=0)).to(total)
    density = (total / (count if include_self else count - 1)[codes]).clamp_(max=1.0)
    density[count[codes] == 1] = 1.0  # as in class_density
    exact.refuse_strays(int(_all_reduce((density <= 0).sum())), tau)
    weights = torch.empty_like(density)
    given = density.log(), codes, count, class_prior, power
    weights[order] = class_weights(*given, _all_reduce)
    return like(weights, embeddings)


def _prepare(embeddings, labels, include_self: bool, device):
    """Vectors, unit vectors and labels of this rank, checked."""
    vectors = as_tensor(embeddings)
    vectors = vectors if include_self else vectors.double()  # see class_density
    unit = unit_vectors(vectors, device)
    class_codes(labels, len(unit))  # its checks
    labels = array("labels", labels)
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels are {labels.dtype}; number the classes by integers")
    return vectors, unit, labels.astype(np.int64)


def _kernel_sums(unit: torch.Tensor, counts, tau: float, include_self: bool):
    """Sum of ``exp((z_i . z_j - 1) / tau)`` over all j of i's class on all ranks; float64 (n_r,).

    ``unit`` (n_r, d) is sorted by class and overwritten; ``counts`` is (world, classes). None, on all
    ranks, where this needs unit vectors of float64.
    """
    world, classes = counts.shape
    rank = dist.get_rank()
    edges = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0))).tolist()
    slices = [slice(*edges[rank][c : c + 2]) for c in range(classes)]
    sums = [unit[rows].sum(dim=0, dtype=torch.float64) for rows in slices]
    sums = _all_reduce(torch.stack(sums))
    for c, rows in enumerate(slices):  # centred for precision, as in cid.density
        unit[rows] -= (sums[c] / int(counts[:, c].sum())).to(unit.dtype)
    reach = _all_reduce(unit.new_tensor(exact.farthest(unit, unit.new_zeros(1)) / tau), "max")
    if unit.dtype == torch.float32 and exact.precise_enough(float(reach)) == torch.float64:
        return None
    u = unit.div_(math.sqrt(tau))
    half = exact.half_squares(u).to(u.dtype)
    total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    for rows in slices:
        ours = u[rows], half[rows]
        exact.add_kernel_sums(ours, ours, total[rows], total[rows], own=float(include_self))

    # At step k rank r hosts the shard of rank r + k, so every pair of ranks meets once, but for
    # k = world / 2: there both host each other, and each takes half of the lower rank's rows.
    for step in range(1, world // 2 + 1):
        host, guest = (rank - step) % world, (rank + step) % world
        v = _exchange(u, host, (edges[guest][-1], u.shape[1]), guest)
        other = exact.half_squares(v).to(v.dtype)
        visiting = torch.zeros(len(v), dtype=torch.float64, device=v.device)
        for c in range(classes):
            (a, b), (p, q) = edges[rank][c : c + 2], edges[guest][c : c + 2]
            if 2 * step == world and rank < guest:
                b = (a + b) // 2
            elif 2 * step == world:
                p = (p + q) // 2
            ours, theirs = (u[a:b], half[a:b]), (v[p:q], other[p:q])
            exact.add_kernel_sums(ours, theirs, total[a:b], visiting[p:q])
        total += _exchange(visiting, guest, (len(u),), host)
    return total


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
    both = [dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, received, source)]
    for work in dist.batch_isend_irecv(both):
        work.wait()
    return received.to(values.device)
