"""Class-conditional density in a proxy embedding, and the weights that invert it.

For unit vectors ``z`` and a class ``c`` of ``n_c`` samples, the von Mises-Fisher kernel density is

    p(z_i | c) = 1/n_c * sum_{j in c} exp((z_i . z_j - 1) / tau)

up to a constant. As ``z_i . z_j - 1 = -|z_i - z_j|^2 / 2`` it is also a Gaussian kernel density of
bandwidth ``sqrt(tau)`` restricted to the sphere, which gives the tests an independent oracle. The
conditional inverse density (CID) weight is ``w_i ~ 1 / p(z_i | y_i)``, after Qi & Ardeshir,
"Improving Identity-Robustness for Face Models", arXiv 2304.03838.

Everything here is exact. Memory grows with n: kernel values live one block at a time, and each
pair of blocks is computed once, as the kernel is symmetric. Embeddings that do not fit into memory
are handed over as a ``numpy.memmap`` and read in chunks, two of which are held at a time.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cid.device import pick_device

CLASS_PRIORS = ("balanced", "empirical")


PRECISIONS = ("single", "half")


CHUNK = 2**16  # rows of a memory-mapped array held at once; a multiple of BLOCK: blocks stay alike


BLOCK = 1024  # 4 MiB of float32 a block: large enough for a fast product, small enough for a cache


GPU_BLOCK = 8192  # a GPU wants few and large products; 256 MiB


def cid_weights(
    embeddings,
    labels,
    tau: float,
    *,
    class_prior: str = "balanced",
    power: float = 1.0,
    include_self: bool = True,
    precision: str = "single",
    device: str = "auto",
):
    """Conditional inverse density weights of every training sample.

    Parameters
    ----------
    embeddings : array or tensor, shape (n, d)
        Proxy embeddings; only their direction counts. float64 is computed in float64, everything
        else in float32, to a relative error of a few 1e-6. A ``numpy.memmap`` is read in chunks.
    labels : array or tensor, shape (n,)
        Class of every sample.
    tau : float
        Kernel width on the cosine scale, > 0. Pairs whose cosine is below ``1 - 5 tau`` hardly count.
    class_prior : {"balanced", "empirical"}
        Total weight of a class: the same for all, or proportional to its number of samples.
    power : float
        Exponent a in ``p^-a``: 0 gives uniform weights within each class, 1 CID.
    include_self : bool
        Count the sample itself in its own density, which bounds the weight of an outlier. Without
        it the kernel is computed in float64.
    precision : {"single", "half"}
        "half" rounds the centred vectors to float16 before the product, whose sums stay float32: for
        GPUs, at a relative error of the weights below 1e-3.
    device : str
        "auto" (where the tensor is, else a GPU when there is one), "cpu", "cuda", ...

    Returns
    -------
    array or tensor, shape (n,)
        Weights of mean 1, of the kind (and for a tensor on the device) that ``embeddings`` were.

    Raises
    ------
    ValueError
        On NaN, infinite or zero-norm embeddings, a length mismatch, tau <= 0, or empty input.
    """
    density = class_density(
        embeddings, labels, tau, include_self=include_self, precision=precision, device=device
    )
    return inverse_weights(density, labels, class_prior=class_prior, power=power)


def class_density(
    embeddings,
    labels,
    tau: float,
    *,
    include_self: bool = True,
    precision: str = "single",
    device: str = "auto",
):
    """Density of every sample among the samples of its own class, up to a constant.

    Parameters are those of :func:`cid_weights`. One label for all samples gives the unconditional
    density. The value of a sample alone in its class is 1, its own term, whether counted or not.

    Returns
    -------
    array or tensor, shape (n,)
        ``p(z_i | y_i)`` in (0, 1].
    """
    if not (isinstance(tau, (int, float, np.floating)) and 0 < tau < math.inf):
        raise ValueError(f"tau is {tau!r}; it must be a number greater than 0")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if precision == "half" and not include_self:
        raise ValueError("precision half needs include_self true: without it float64 is needed")
    codes, n_classes = class_codes(labels, len(embeddings))
    order = np.argsort(codes, kind="stable")
    classes = np.split(order, np.cumsum(np.bincount(codes, minlength=n_classes))[:-1])

    def unit(vectors, first=0):
        # Without the own term nothing bounds the density from below: it can rest on exponents near
        # -100, which float32 rounds too coarsely.
        vectors = _tensor(vectors)
        return unit_vectors(vectors if include_self else vectors.double(), device, first)

    if stored := isinstance(embeddings, np.memmap):
        for start in range(0, len(embeddings), CHUNK):
            sample = unit(embeddings[start : start + CHUNK], start)  # the checks, with row numbers
    else:
        sample = unit(embeddings)
    density = torch.empty(len(embeddings), dtype=sample.dtype, device=sample.device)
    for rows in classes:
        there = torch.from_numpy(rows).to(sample.device)
        if stored:
            chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
            load = [lambda chunk=chunk: unit(embeddings[chunk]) for chunk in chunks]
        else:
            load = [lambda own=sample[there]: own]
        density[there] = _kernel_mean(load, len(rows), float(tau), include_self, precision)
    stray = int((density <= 0).sum())
    if stray:
        raise ValueError(
            f"{stray} samples have no neighbour of their class within reach of tau = {tau}, so their "
            "density without themselves is 0; raise tau or set include_self to true"
        )
    return _like(density, embeddings)


def inverse_weights(density, labels, *, class_prior: str = "balanced", power: float = 1.0):
    """Weights ``density^-power``, normalised within each class and then over classes to mean 1.

    Parameters
    ----------
    density : array or tensor, shape (n,)
        Positive densities.
    labels, class_prior, power
        As in :func:`cid_weights`.

    Returns
    -------
    array or tensor, shape (n,), of the kind of ``density``.
    """
    if class_prior not in CLASS_PRIORS:
        raise ValueError(f"class_prior is {class_prior!r}; it must be one of {CLASS_PRIORS}")
    values = _tensor(density).double()
    codes, n_classes = class_codes(labels, len(values))
    codes = torch.from_numpy(codes).to(values.device)
    count = torch.bincount(codes, minlength=n_classes).double()

    return _like(class_weights(values, codes, count, class_prior, power), density)


def class_weights(density, codes, count, class_prior: str, power: float, reduce=None):
    """:func:`inverse_weights` of float64 densities, whose samples may be a part of all.

    Parameters
    ----------
    density : float64 tensor, shape (n,)
    codes : int64 tensor, shape (n,)
        Class of every sample, from 0.
    count : float64 tensor, shape (C,)
        Samples of every class, those held elsewhere included.
    reduce : callable, optional
        ``(values (C,), "max" or "sum") -> values`` joins what each holder of a part has found.
    """
    reduce = reduce or (lambda values, how: values)
    # Only ratios within a class survive, so each class starts from its own largest weight: no power
    # can overflow.
    logs = -float(power) * density.log()
    top = torch.full_like(count, -math.inf).scatter_reduce(0, codes, logs, "amax")
    raw = (logs - reduce(top, "max")[codes]).exp()
    total = reduce(torch.zeros_like(count).scatter_add(0, codes, raw), "sum")
    share = count if class_prior == "empirical" else (count.sum() / len(count)).expand_as(count)
    return raw * (share / total)[codes]


def effective_sample_size(weights) -> float:
    """Kish's effective sample size as a share of n, ``(sum w)^2 / (n sum w^2)``, in (0, 1]."""
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def unit_vectors(embeddings, device: str = "auto", first: int = 0) -> torch.Tensor:
    """Embeddings scaled to unit norm, checked, on the device: tensor of shape (n, d).

    ``first`` is the row number of the first one, for messages.

    Raises
    ------
    ValueError
        On a wrong shape, no rows, NaN or infinite values, or a zero vector.
    """
    vectors = _tensor(embeddings)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(
            f"embeddings have shape {tuple(vectors.shape)}; (n, d) with n and d at least 1 is needed"
        )
    vectors = vectors.to(pick_device(device))
    working = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    unit = torch.empty_like(vectors, dtype=working)
    # The norm in float64: a relative error of 6e-8 here would be divided by tau in the exponent. Block
    # by block, so that the float64 copy stays in the cache.
    for part, out in zip(vectors.split(BLOCK), unit.split(BLOCK), strict=True):
        part = part.double()
        out.copy_(part / part.norm(dim=1, keepdim=True))
    finite = torch.isfinite(unit.sum(dim=1))
    if not finite.all():
        _refuse(vectors, first)
    return unit


def _refuse(vectors: torch.Tensor, first: int) -> None:
    """Say which row has no direction."""
    bad = torch.nonzero(~torch.isfinite(vectors).all(dim=1))[:, 0]
    if len(bad):
        raise ValueError(
            f"embeddings row {first + int(bad[0])} holds NaN or infinite values ({len(bad)} such "
            "rows); remove these samples or embed them again"
        )
    row = first + int(torch.nonzero(vectors.double().norm(dim=1) == 0)[0])
    raise ValueError(f"embeddings row {row} has norm 0, so no direction; remove this sample")


def _kernel_mean(load, n: int, tau: float, include_self: bool, precision: str) -> torch.Tensor:
    """Mean over j of ``exp((z_i . z_j - 1) / tau)`` for every i; shape (n,).

    ``load`` holds a function for every chunk of the samples, which returns its unit vectors.
    """
    sums = [chunk() for chunk in load] if len(load) == 1 else None
    common = sum((sums[0] if sums else chunk()).sum(dim=0, dtype=torch.float64) for chunk in load)
    common /= n

    def centred(place):
        # With u = (z - mean) / sqrt(tau) the exponent is u_i . u_j - |u_i|^2/2 - |u_j|^2/2. Face
        # embeddings share a large common direction; without it the products are small, and so is
        # their rounding error, which the exponential turns into a relative error of the density.
        unit = sums[0] if sums else load[place]()
        u = (unit - common.to(unit.dtype)) / math.sqrt(tau)
        u = u.half() if precision == "half" else u
        return u, half_squares(u).to(unit.dtype)

    first = centred(0)
    kind, device = first[1].dtype, first[1].device
    if n == 1:
        return torch.ones(1, dtype=kind, device=device)
    total = torch.zeros(n, dtype=torch.float64, device=device)
    block = BLOCK if device.type == "cpu" else GPU_BLOCK
    # One buffer for all blocks: a new one each time costs as much as the exponential.
    buffer = torch.empty(min(block, n) ** 2, dtype=kind, device=device)
    start = 0
    for place in range(len(load)):
        ours = first if place == 0 else centred(place)
        other = start
        for visitor in range(place, len(load)):
            theirs = ours if visitor == place else centred(visitor)
            for a in range(0, len(ours[0]), block):
                rows = slice(start + a, start + min(a + block, len(ours[0])))
                for b in range(a if visitor == place else 0, len(theirs[0]), block):
                    cols = slice(other + b, other + min(b + block, len(theirs[0])))
                    out = buffer[: (rows.stop - rows.start) * (cols.stop - cols.start)]
                    out = out.view(rows.stop - rows.start, -1)
                    kernel = kernel_values(
                        ours, theirs, slice(a, a + block), slice(b, b + block), out
                    )
                    if rows == cols:  # a sample's kernel with itself is 1 exactly
                        kernel.fill_diagonal_(float(include_self))
                    else:
                        total[cols] += kernel.sum(dim=0)
                    total[rows] += kernel.sum(dim=1)
            other += len(theirs[0])
        start += len(ours[0])
    mean = total / (n if include_self else n - 1)
    return mean.clamp_(max=1.0).to(kind)


def half_squares(u: torch.Tensor) -> torch.Tensor:
    """``|u|^2 / 2`` of every row, float64 (n,), without a float64 copy of all."""
    return torch.cat([(part.double() ** 2).sum(dim=1) / 2 for part in u.split(BLOCK)])


def kernel_values(ours, theirs, rows: slice, cols: slice, out=None) -> torch.Tensor:
    """Kernel between rows of two sets ``(u (n, d), |u|^2 / 2 (n,))``, centred and divided by sqrt tau.

    ``out`` (rows, cols) takes the values, in place of new memory.
    """
    (u, half), (v, other) = ours, theirs
    if u.dtype != torch.float16:
        out = torch.addmm(half[rows, None], u[rows], v[cols].T, beta=-1, out=out)
    elif u.is_cuda:
        out = torch.mm(u[rows], v[cols].T, out_dtype=torch.float32).sub_(half[rows, None])
    else:  # what a GPU computes, for the tests
        out = torch.addmm(half[rows, None], u[rows].float(), v[cols].float().T, beta=-1, out=out)
    return out.sub_(other[cols]).exp_()


def class_codes(labels, n: int) -> tuple[np.ndarray, int]:
    """Labels as codes 0..C-1 and C; checks their shape."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(
            f"labels have shape {labels.shape} but there are {n} samples; one label each is needed"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(
            f"label {int(np.argmin(np.isfinite(labels)))} is NaN or infinite; fill it in"
        )
    classes, codes = np.unique(labels, return_inverse=True)
    return codes, len(classes)


def _tensor(values) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach()
    values = np.ascontiguousarray(values)
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _like(result: torch.Tensor, source):
    """Return ``result`` as the kind, floating type and device of ``source``."""
    kind = torch.float64 if _tensor(source).dtype == torch.float64 else torch.float32
    if isinstance(source, torch.Tensor):
        return result.to(source.device, kind)
    return result.to("cpu", kind).numpy()
