"""Class-conditional density in a proxy embedding.

For unit vectors ``z`` and a class ``c`` of ``n_c`` samples, the von Mises-Fisher kernel density is

    p(z_i | c) = 1/n_c * sum_{j in c} exp((z_i . z_j - 1) / tau)

up to a constant: because ``z_i . z_j - 1 = -|z_i - z_j|^2 / 2``, it is a Gaussian kernel density of
bandwidth ``sqrt(tau)`` restricted to the sphere. The conditional inverse density (CID) weight is
``w_i ~ 1 / p(z_i | y_i)`` (:mod:`cid.weights`), after Qi & Ardeshir, "Improving Identity-Robustness
for Face Models", arXiv 2304.03838.

Everything here is exact. Memory grows with n: kernel values live one block at a time, and each pair of
blocks is computed once. Of a ``numpy.memmap`` two chunks are held at a time.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch

from cid.arrays import BLOCK, as_tensor, class_codes, like, unit_vectors, warn_of_many_classes
from cid.moved import forwarder
from cid.pairs import Pairs, half_squares, nearest_value
from cid.precision import true_float32
from cid.settings import Count, Positive, Truth, WidthOrAuto, checked, one_of

Precision = one_of("single", "half")
CHUNK = 2**16  # rows of a memory-mapped array held at once; a multiple of BLOCK: blocks stay alike
PROBES = 4096  # samples whose neighbours tell how wide a kernel should be
MANY = 10_000  # samples beyond which other settings, too, are chosen on about PROBES of them
GPU_BLOCK = 8192  # a GPU wants few and large products; 256 MiB
# Largest |z - mean|^2 / tau up to which a type keeps its promise: its rounding is an error of the
# exponent. What reaches farther is computed in the next better type.
REACH = {torch.float16: 64, torch.float32: 128}

MOVED = {
    "cid_weights": "cid.weights.cid_weights",
    "inverse_weights": "cid.weights.inverse_weights",
    "effective_sample_size": "cid.weights.effective_sample_size",
}
__getattr__ = forwarder(__name__, MOVED)


@true_float32()
def class_density(
    embeddings,
    labels,
    tau: float | str = "auto",
    *,
    include_self: bool = True,
    precision: str = "single",
    device: str = "auto",
):
    """Estimate the density of every sample within its own class, up to a constant.

    >>> embeddings = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]
    >>> class_density(embeddings, labels=[0, 0, 0], tau=0.1).round(2)
    array([0.65, 0.65, 0.33])

    Parameters
    ----------
    embeddings : array or tensor, shape (n, d)
        Proxy embeddings; only their direction counts. float64 is computed in float64, everything else
        in float32 where that keeps the relative error of a density below 3e-5 (some 1e-6 at usual
        widths), else in float64: :data:`REACH`. A ``numpy.memmap`` is read in chunks.
    labels : array or tensor, shape (n,)
        Classes, as in :func:`cid.arrays.class_codes`. With one label for all, the density is not
        conditional.
    tau : float or "auto"
        Kernel width on the cosine scale, >= 1e-9; pairs whose cosine is below ``1 - 5 tau`` hardly
        count. "auto": :func:`neighbour_width`.
    include_self : bool
        Count the sample itself in its own density, which bounds the weight of an outlier. Without
        it the kernel is computed in float64.
    precision : {"single", "half"}
        "half" rounds the centred vectors to float16 before the product, whose sums stay float32: for
        GPUs, at a relative error of the weights below 1e-3; where it would be larger, "single" is used.
    device : str
        "auto" (a GPU when there is one, else the CPU), "cpu", "cuda", ...

    Returns
    -------
    array or tensor, shape (n,)
        ``p(z_i | y_i)`` in (0, 1], of the kind, floating type and device of ``embeddings``. A sample
        that is alone in its class has density 1, its own term, whether that is counted or not.

    Raises
    ------
    ValueError
        On NaN, infinite or zero-norm embeddings, a length mismatch, settings out of range, or empty
        input.
    """
    tau = checked("tau", tau, WidthOrAuto)
    include_self = checked("include_self", include_self, Truth)
    precision = checked("precision", precision, Precision)
    if precision == "half" and not include_self:
        raise ValueError("precision half needs include_self true: without it float64 is needed")
    stored = isinstance(embeddings, np.memmap) and len(embeddings) > CHUNK
    vectors = embeddings if stored else as_tensor(embeddings, ndim=2)
    codes, _ = class_codes(labels, len(vectors))
    warn_of_many_classes(labels)
    if tau == "auto":
        tau = neighbour_width(embeddings, device=device)
    # Without the own term nothing bounds the density from below: it can rest on exponents near -100,
    # which float32 rounds too coarsely.
    unit_of = partial(_unit_rows, vectors, double=not include_self, device=device)

    if stored:
        for start in range(0, len(vectors), CHUNK):  # the checks, with row numbers
            sample = unit_of(slice(start, start + CHUNK), first=start)
    else:
        sample = unit_of(slice(None))
    density = torch.empty(len(vectors), dtype=sample.dtype, device=sample.device)
    for rows in _rows_of_classes(codes):
        place = torch.from_numpy(rows).to(sample.device)
        if stored:
            chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
            load = [partial(_load_rows, unit_of, None, chunk) for chunk in chunks]
        else:
            load = [partial(_load_rows, unit_of, sample[place], rows)]
        mean = _kernel_mean(load, len(rows), tau, include_self, precision)
        density[place] = mean.to(density.dtype)
    refuse_strays(int((density <= 0).sum()), tau)
    return like(density, embeddings)


def _rows_of_classes(codes: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each class."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])


def _unit_rows(vectors, rows, double: bool, device: str, first: int = 0) -> torch.Tensor:
    """Unit vectors of some rows, computed in float64 if ``double``."""
    some = as_tensor(vectors[rows])
    return unit_vectors(some.double() if double else some, device, first)


def _load_rows(unit_of: Callable, ready, rows: np.ndarray, double: bool) -> torch.Tensor:
    """Unit vectors of some rows: those that are ready, or made now, in float64 if ``double``."""
    if double:
        return unit_of(rows, double=True)
    return unit_of(rows) if ready is None else ready


@true_float32()
def neighbour_width(embeddings, near: int = 5, share: float = 0.5, device: str = "auto") -> float:
    """Choose a kernel width that reaches the nearest neighbours, whatever network made the embedding.

    The width is a ``share`` of the median distance ``1 - cos`` of a sample to its ``near``-th nearest
    other one, over at most :data:`PROBES` samples; it sees no label. The defaults were chosen on
    development people (``study/tune.py``). A likelihood of the density is of no use here: face
    embeddings fill few of their dimensions, and a kernel in all of them is likeliest when every image
    is alone.

    >>> neighbour_width([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], near=1) < 0.01
    True
    """
    near = checked("near", near, Count)
    share = checked("share", share, Positive)
    return width_among(Pairs(unit_vectors(embeddings, device)), near, share)


def width_among(pairs: Pairs, near: int = 5, share: float = 0.5) -> float:
    """:func:`neighbour_width` of samples whose pairs are at hand."""
    rows = probed(pairs)
    k = min(near + 1, len(pairs))  # with the sample itself
    found = [nearest_value(nearness, k) for _, nearness in pairs.blocks(rows, own=0.0)]
    return max(share * -float(torch.cat(found).median()), 1e-6)


def kernel_sums(pairs: Pairs, tau: float) -> np.ndarray | None:
    """Sums of ``exp((z_i . z_j - 1) / tau)`` over the j of each class; float64 (n, C).

    None where float32 does not keep the promise of :func:`class_density`.
    """
    reach = farthest(pairs.centred, torch.zeros_like(pairs.mean)) / tau
    if pairs.centred.dtype != torch.float64 and precise_enough(reach) == torch.float64:
        return None
    sums = np.empty((len(pairs), len(pairs.classes)))
    buffer = torch.empty_like(pairs.centred[:0]).resize_(pairs.rows_at_once(), len(pairs))
    for rows, nearness in pairs.blocks(own=0.0):
        kernel = torch.mul(nearness, math.log2(math.e) / tau, out=buffer[: len(rows)]).exp2_()
        for code, members in enumerate(pairs.classes):
            sums[rows, code] = kernel[:, members].sum(dim=1).cpu()
    return sums


def probes(n: int, every: int = 0) -> torch.Tensor:
    """Row numbers of at most :data:`PROBES` of n samples, evenly spread; of all up to ``every``."""
    return torch.arange(0, n, 1 if n <= every else math.ceil(n / PROBES))


def probed(pairs: Pairs, every: int = 0) -> torch.Tensor:
    """Where the samples of :func:`probes` are among pairs, in rising order."""
    return torch.from_numpy(pairs.place)[probes(len(pairs), every)].sort().values


def refuse_strays(count: int, tau: float) -> None:
    """Raise ValueError if there are samples whose density came out as 0."""
    if count:
        raise ValueError(
            f"{count} samples have no neighbour of their class within reach of tau = {tau}, so their "
            "density without themselves is 0; raise tau or set include_self to true"
        )


# A chunk of a class: called with true, it returns its unit vectors in float64, else as they are.
Chunk = Callable[[bool], torch.Tensor]


def _kernel_mean(
    load: list[Chunk], n: int, tau: float, include_self: bool, precision: str
) -> torch.Tensor:
    """Mean over j of ``exp((z_i . z_j - 1) / tau)`` for every i of the n samples; float64 (n,)."""
    common = sum(chunk(False).sum(dim=0, dtype=torch.float64) for chunk in load) / n
    reach = max(farthest(chunk(False), common) for chunk in load) / tau
    working = precise_enough(reach, precision)
    total = torch.zeros(n, dtype=torch.float64, device=common.device)
    parts = total.split(CHUNK) if len(load) > 1 else [total]
    for place, part in enumerate(parts):
        ours = _centred(load[place], common, tau, working)
        add_kernel_sums(ours, ours, part, part, own=float(include_self))
        for other in range(place + 1, len(load)):
            theirs = _centred(load[other], common, tau, working)
            add_kernel_sums(ours, theirs, part, parts[other])
    if n == 1:
        return torch.ones_like(total)
    return (total / (n if include_self else n - 1)).clamp_(max=1.0)


def _centred(chunk: Chunk, common: torch.Tensor, tau: float, working: torch.dtype):
    """``u = z - mean`` of a chunk on the scale of :func:`powers_of_two`, (n, d), and ``|u|^2 / 2``, (n,).

    The exponent is ``u_i . u_j - |u_i|^2/2 - |u_j|^2/2``. Face embeddings share a large common
    direction; without it the products are small, and so is their rounding error, which the exponential
    turns into a relative error of the density.
    """
    unit = chunk(working == torch.float64)
    u = (unit - common.to(unit.dtype)) * powers_of_two(tau)
    if working == torch.float16:
        u = u.half()
    return u, half_squares(u).to(unit.dtype)


def powers_of_two(tau: float) -> float:
    """The factor of centred vectors under which the kernel is ``2 ^ -(|u_i - u_j|^2 / 2)``.

    ``exp(x / tau)`` is ``2 ^ (x log2(e) / tau)``, and torch takes powers of 2 up to four times as fast.
    """
    return math.sqrt(math.log2(math.e) / tau)


def farthest(unit: torch.Tensor, common: torch.Tensor) -> float:
    """The largest squared distance of unit vectors from a common direction."""
    common = common.to(unit.dtype)
    return max(float(((rows - common) ** 2).sum(dim=1).max()) for rows in unit.split(BLOCK))


def precise_enough(reach: float, precision: str = "single") -> torch.dtype:
    """The type in which a kernel that reaches so far keeps its promise: see :data:`REACH`."""
    types = (torch.float16, torch.float32) if precision == "half" else (torch.float32,)
    return next((kind for kind in types if reach <= REACH[kind]), torch.float64)


def add_kernel_sums(ours, theirs, total, visiting, own: float | None = None) -> None:
    """Add the sums of the kernel between two sets of samples to the totals of both, block by block.

    Parameters
    ----------
    ours, theirs : pair of tensors
        ``u`` (n, d), centred and times :func:`powers_of_two`, and ``|u|^2 / 2`` (n,), of each set.
    total, visiting : float64 tensor, shape (n,)
        What our samples gain is added to ``total``, what theirs gain to ``visiting``.
    own : float, optional
        Given where both sets are the same one: the kernel of a sample with itself (1 exactly, or 0 to
        leave it out). Then every pair of blocks is computed once.
    """
    u, u_half = ours
    v, v_half = theirs
    block = BLOCK if u_half.device.type == "cpu" else GPU_BLOCK
    # One buffer for all blocks: a new one each time costs as much as the exponential.
    buffer = u_half.new_empty(min(block, len(u)) * min(block, len(v)))
    for first in range(0, len(u), block):
        i = slice(first, min(first + block, len(u)))
        for second in range(0 if own is None else first, len(v), block):
            j = slice(second, min(second + block, len(v)))
            out = buffer[: (i.stop - first) * (j.stop - second)].view(i.stop - first, -1)
            kernel = _kernel(u[i], u_half[i], v[j], v_half[j], out)
            if own is not None and first == second:
                kernel.fill_diagonal_(own)
            else:
                visiting[j] += kernel.sum(dim=0)
            total[i] += kernel.sum(dim=1)


def _kernel(u, u_half, v, v_half, out) -> torch.Tensor:
    """``2 ^ (u_i . v_j - |u_i|^2 / 2 - |v_j|^2 / 2)``, in the memory of ``out`` where that can be."""
    if u.is_cuda and u.dtype == torch.float16:
        exponent = torch.mm(u, v.T, out_dtype=torch.float32).sub_(v_half)
    elif out.dtype == torch.float32 and not out.is_cuda and convolution_is_faster():
        exponent = product_by_convolution(u.float(), v.float(), v_half)
    else:  # on a CPU, float16 is widened first: what a GPU computes, for the tests
        exponent = torch.addmm(v_half, u.to(out.dtype), v.to(out.dtype).T, beta=-1, out=out)
    return exponent.sub_(u_half[:, None]).exp2_()


@cache
def convolution_is_faster() -> bool:
    """Whether this processor multiplies float32 matrices in half the time as a convolution.

    It is an AMD processor with AVX-512. The library of torch's matrix products, Intel's MKL, does not use
    AVX-512 there; that of its convolutions, oneDNN, does. What the processor is decides, and no variable
    of the environment: the same machine computes the same bytes.
    """
    has = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 does not tell
    is_amd = has.get("cpu_name", "").startswith("AMD")
    return is_amd and has.get("avx512_f", False) and torch.backends.mkldnn.is_available()


def product_by_convolution(u, v, v_half) -> torch.Tensor:
    """``u_i . v_j - v_half_j`` as a convolution of 1 x 1; float32 (n, m) of (n, d), (m, d) and (m,).

    The rows of ``u`` are the pixels of pictures with d channels, those of ``v`` the filters.
    """
    n, d = u.shape
    width = (
        64 if n % 64 == 0 else n
    )  # a whole block is 16 pictures of 64 pixels, what is left is one
    pixels = u.reshape(n // width, width, 1, d).permute(0, 3, 1, 2)
    filtered = torch.nn.functional.conv2d(pixels, v[:, :, None, None], -v_half)
    return filtered.permute(0, 2, 3, 1).reshape(n, len(v))
