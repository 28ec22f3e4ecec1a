"""CID weights of samples that are spread over the processes of a ``torch.distributed`` group.

A process holds its own samples (its *shard*), those of one other process, and one block of the
kernel. The shards meet in a round-robin tournament, each pair once: one process of a pair sends its
shard, the other computes the sums of both and sends back the visitor's.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cid.arrays import array, as_tensor, class_codes, like, unit_vectors
from cid.density import (
    add_kernel_sums,
    farthest,
    powers_of_two,
    precise_enough,
    refuse_strays,
)
from cid.pairs import half_squares
from cid.precision import true_float32
from cid.settings import Width, checked
from cid.weights import cid_weights, class_weights


@true_float32()
def distributed_cid_weights(
    embeddings, labels, tau: float, *, class_prior: str = "balanced", power: float = 1.0,
    include_self: bool = True, device: str = "auto",
):  # fmt: skip
    """Compute conditional inverse density weights of samples spread over the ranks of a group.

    A collective call: every rank of the default group makes it, with its own samples and the same
    settings. The result is that of one process to float32 rounding.

    Parameters
    ----------
    embeddings : array or tensor, shape (n_r, d)
        Proxy embeddings of this rank's samples, at least one.
    labels : integer array or tensor, shape (n_r,)
        Their classes. A rank can lack some of the classes.
    tau, class_prior, power, include_self
        As in :func:`cid.weights.cid_weights`.
    device : str
        Where the kernel is computed, "auto" as there. What the ranks exchange goes through the
        current GPU under NCCL and through the CPU otherwise.

    Returns
    -------
    array or tensor, shape (n_r,)
        Weights of this rank's samples, of the kind of ``embeddings``. Their mean over all ranks is 1.

    Raises
    ------
    RuntimeError
        Without an initialised process group.
    ValueError
        On every rank, if :func:`cid.weights.cid_weights` would refuse the input of any rank, or if
        settings differ between ranks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "there is no process group; start with torchrun --nproc-per-node 2 script.py and call "
            "torch.distributed.init_process_group() first"
        )
    settings = {
        "tau": tau,
        "class_prior": class_prior,
        "power": power,
        "include_self": include_self,
    }
    failure = None
    own_counts = None
    # Whatever fails here must reach the other ranks, which would wait for this one.
    try:
        checked("tau", tau, Width)  # a number: "auto" would need the neighbours on all ranks
        cid_weights(np.ones((1, 1)), [0], **settings, device="cpu")  # checks the other settings
        vectors, unit, own_labels = _prepare(embeddings, labels, include_self, device)
        settings["d"] = unit.shape[1]
        settings["dtype"] = str(unit.dtype)
        own_counts = np.unique(own_labels, return_counts=True)
    except Exception as error:
        failure = error
    classes, counts = _share_counts(failure, settings, own_counts)

    codes = np.searchsorted(classes, own_labels)
    order = torch.from_numpy(np.argsort(codes, kind="stable")).to(unit.device)
    codes = torch.from_numpy(codes).to(unit.device)[order]
    total = _kernel_sums(unit[order], counts, float(tau), include_self)
    if total is None:
        unit = unit_vectors(vectors.double(), device)
        total = _kernel_sums(unit[order], counts, float(tau), include_self)

    count = torch.from_numpy(counts.sum(axis=0)).to(total)  # of a class on all ranks
    neighbours = count if include_self else count - 1
    density = (total / neighbours[codes]).clamp_(max=1.0)
    density[count[codes] == 1] = 1.0  # as in class_density
    refuse_strays(int(_all_reduce((density <= 0).sum())), tau)
    weights = torch.empty_like(density)
    weights[order] = class_weights(density.log(), codes, count, class_prior, power, _all_reduce)
    return like(weights, embeddings)


def _prepare(
    embeddings, labels, include_self: bool, device: str
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Check this rank's input; return its vectors, unit vectors and labels."""
    vectors = as_tensor(embeddings)
    if not include_self:  # see class_density
        vectors = vectors.double()
    unit = unit_vectors(vectors, device)
    class_codes(labels, len(unit))  # for its checks
    labels = array("labels", labels)
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels are {labels.dtype}; number the classes by integers")
    return vectors, unit, labels.astype(np.int64)


def _share_counts(
    failure: Exception | None, settings: dict, own_counts: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Exchange failures, settings and class counts; all ranks raise the same ValueError or none.

    Returns the classes on any rank, in order, and how many samples of each every rank has, shape
    (world, classes).
    """
    world = dist.get_world_size()
    messages = [None] * world
    dist.all_gather_object(messages, (failure and str(failure), settings, own_counts))
    _, settings_of_rank_0, _ = messages[0]
    for rank, (error, settings_of_rank, _) in enumerate(messages):
        if error is not None:
            raise ValueError(f"input of rank {rank}: {error}") from failure
        if settings_of_rank != settings_of_rank_0:
            raise ValueError(
                f"rank {rank} has {settings_of_rank} but rank 0 has {settings_of_rank_0}; "
                "pass the same on all ranks"
            )
    classes = np.unique(np.concatenate([present for _, _, (present, _) in messages]))
    counts = np.zeros((world, len(classes)), dtype=np.int64)
    for rank, (_, _, (present, number)) in enumerate(messages):
        counts[rank, np.searchsorted(classes, present)] = number
    return classes, counts


def _kernel_sums(unit: Tensor, counts: np.ndarray, tau: float, include_self: bool) -> Tensor | None:
    """Sum ``exp((z_i . z_j - 1) / tau)`` over all j of i's class on all ranks; float64 (n_r,).

    ``unit`` (n_r, d) is sorted by class and overwritten; ``counts`` is (world, classes). Returns None,
    on all ranks, where this needs unit vectors of float64.
    """
    world, classes = counts.shape
    rank = dist.get_rank()
    # On rank r, the samples of class c are rows edges[r][c] to edges[r][c + 1].
    edges = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0))).tolist()
    own_classes = [slice(*edges[rank][c : c + 2]) for c in range(classes)]

    # Centred for precision, as in cid.density.
    sums = [unit[rows].sum(dim=0, dtype=torch.float64) for rows in own_classes]
    sums = _all_reduce(torch.stack(sums))
    for c, rows in enumerate(own_classes):
        unit[rows] -= (sums[c] / int(counts[:, c].sum())).to(unit.dtype)
    reach = _all_reduce(unit.new_tensor(farthest(unit, unit.new_zeros(1)) / tau), "max")
    if unit.dtype == torch.float32 and precise_enough(float(reach)) == torch.float64:
        return None

    # First the pairs within this shard.
    u = unit.mul_(powers_of_two(tau))
    half = half_squares(u).to(u.dtype)
    total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    for rows in own_classes:
        ours = (u[rows], half[rows])
        add_kernel_sums(ours, ours, total[rows], total[rows], own=float(include_self))

    # Then the tournament. At step k rank r receives the shard of rank r + k, its guest, and sends its
    # own to rank r - k, its host. So every pair of ranks meets once, except for k = world / 2: there
    # both receive each other's, and each takes half of the lower rank's rows.
    for step in range(1, world // 2 + 1):
        host = (rank - step) % world
        guest = (rank + step) % world
        visitors = _exchange(u, host, (edges[guest][-1], u.shape[1]), guest)
        visitors_half = half_squares(visitors).to(visitors.dtype)
        visitors_total = torch.zeros(len(visitors), dtype=torch.float64, device=visitors.device)
        for c in range(classes):
            start, stop = edges[rank][c : c + 2]
            first, last = edges[guest][c : c + 2]
            if 2 * step == world and rank < guest:
                stop = (start + stop) // 2
            elif 2 * step == world:
                first = (first + last) // 2
            add_kernel_sums(
                (u[start:stop], half[start:stop]),
                (visitors[first:last], visitors_half[first:last]),
                total[start:stop],
                visitors_total[first:last],
            )
        total += _exchange(visitors_total, guest, (len(u),), host)
    return total


def _wire() -> torch.device:
    """Return the device from which the group's backend takes tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _all_reduce(values: Tensor, how: str = "sum") -> Tensor:
    """Combine the values of all ranks by "sum" or "max"; every rank gets the result."""
    shared = values.to(_wire())
    dist.all_reduce(shared, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    return shared.to(values.device)


def _exchange(values: Tensor, to: int, shape: tuple[int, ...], source: int) -> Tensor:
    """Send a tensor to one rank and receive one of another shape from another rank."""
    sent = values.to(_wire())
    received = torch.empty(shape, dtype=sent.dtype, device=sent.device)
    operations = [dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, received, source)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received.to(values.device)
