"""Class-conditional density in a proxy embedding, and the weights that invert it.

For unit vectors ``z`` and a class ``c`` of ``n_c`` samples, the von Mises-Fisher kernel density is

    p(z_i | c) = 1/n_c * sum_{j in c} exp((z_i . z_j - 1) / tau)

up to a constant: as ``z_i . z_j - 1 = -|z_i - z_j|^2 / 2``, a Gaussian kernel density of bandwidth
``sqrt(tau)`` restricted to the sphere. The conditional inverse density (CID) weight is
``w_i ~ 1 / p(z_i | y_i)``, after Qi & Ardeshir, "Improving Identity-Robustness for Face Models",
arXiv 2304.03838.

Everything here is exact. Memory grows with n: kernel values live one block at a time, and each
pair of blocks is computed once. Of a ``numpy.memmap`` two chunks are held at a time.
"""

import math

import numpy as np
import torch

from cid.device import pick_device

CLASS_PRIORS = ("balanced", "empirical")
PRECISIONS = ("single", "half")
CHUNK = 2**16  # rows of a memory-mapped array held at once; a multiple of BLOCK: blocks stay alike
BLOCK = 1024  # 4 MiB of float32 a block: large enough for a fast product, small enough for a cache
PROBES = 4096  # samples whose neighbours tell how wide a kernel should be
GPU_BLOCK = 8192  # a GPU wants few and large products; 256 MiB


def cid_weights(
    embeddings, labels, tau: float, *, class_prior: str = "balanced", power: float = 1.0,
    include_self: bool = True, precision: str = "single", device: str = "auto",
):  # fmt: skip
    """Conditional inverse density weights of every training sample.

    Parameters
    ----------
    embeddings : array or tensor, shape (n, d)
        Proxy embeddings; only their direction counts. float64 is computed in float64, everything
        else in float32, to a relative error of a few 1e-6. A ``numpy.memmap`` is read in chunks.
    labels : array or tensor, shape (n,)
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
    how = {"include_self": include_self, "precision": precision, "device": device}
    density = class_density(embeddings, labels, tau, **how)
    return inverse_weights(density, labels, class_prior=class_prior, power=power)


def class_density(
    embeddings, labels, tau: float, *, include_self: bool = True, precision: str = "single",
    device: str = "auto",
):  # fmt: skip
    """``p(z_i | y_i)`` in (0, 1], the density of every sample in its own class, up to a constant.

    Parameters, errors and kind of result as in :func:`cid_weights`. One label for all: not conditional.
    Alone in its class: 1, its own term, whether counted or not.
    """
    if not (isinstance(tau, (int, float, np.floating)) and 0 < tau < math.inf):
        raise ValueError(f"tau is {tau!r}; it must be a number greater than 0")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if precision == "half" and not include_self:
        raise ValueError("precision half needs include_self true: without it float64 is needed")
    codes, _ = class_codes(labels, len(embeddings))
    order = np.argsort(codes, kind="stable")
    classes = np.split(order, np.cumsum(np.bincount(codes))[:-1])

    def unit(vectors, first=0):
        # Without the own term nothing bounds the density from below: it can rest on exponents near
        # -100, which float32 rounds too coarsely.
        vectors = as_tensor(vectors)
        return unit_vectors(vectors if include_self else vectors.double(), device, first)

    if stored := isinstance(embeddings, np.memmap) and len(embeddings) > CHUNK:
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
        mean = _kernel_mean(load, len(rows), float(tau), include_self, precision)
        density[there] = mean.to(density.dtype)
    refuse_strays(int((density <= 0).sum()), tau)
    return like(density, embeddings)


def neighbour_width(embeddings, near: int = 5, share: float = 0.5, device: str = "auto") -> float:
    """A kernel width that reaches the nearest neighbours, whatever network made the embedding.

    A ``share`` of the median distance ``1 - cos`` of a sample to its ``near``-th nearest other one, over
    at most :data:`PROBES` samples; it sees no label. The defaults were chosen on development people
    (``study/tune.py``). A likelihood of the density is of no use here: face embeddings fill few of
    their dimensions, and a kernel in all of them is likeliest when every image is alone.
    """
    unit = unit_vectors(embeddings, device)
    rows = torch.arange(0, len(unit), math.ceil(len(unit) / PROBES))
    k = min(near + 1, len(unit))  # with the sample itself
    parts = [(unit[own] @ unit.T).topk(k, dim=1).values[:, -1] for own in rows.split(BLOCK)]
    return max(share * float(1 - torch.cat(parts).median()), 1e-6)


def refuse_strays(count: int, tau: float) -> None:
    """Raise ValueError if there are samples whose density came out as 0."""
    if count:
        lonely = f"{count} samples have no neighbour of their class within reach of tau = {tau}"
        remedy = "raise tau or set include_self to true"
        raise ValueError(f"{lonely}, so their density without themselves is 0; {remedy}")


def inverse_weights(
    density, labels, *, class_prior: str = "balanced", power: float = 1.0, log: bool = False
):
    """Weights ``density^-power``, normalised within each class and then over classes to mean 1.

    Densities (n,) are positive, or with ``log`` their logarithms, which no product of factors can
    underflow. Only ratios within a class count. All else is as in :func:`cid_weights`.
    """
    if class_prior not in CLASS_PRIORS:
        raise ValueError(f"class_prior is {class_prior!r}; it must be one of {CLASS_PRIORS}")
    values = as_tensor(density).double()
    codes, n_classes = class_codes(labels, len(values))
    codes = torch.from_numpy(codes).to(values.device)
    count = torch.bincount(codes, minlength=n_classes).double()
    logs = values if log else values.log()
    return like(class_weights(logs, codes, count, class_prior, power), density)


def class_weights(logs, codes, count, class_prior: str, power: float, reduce=None):
    """:func:`inverse_weights` of float64 log densities (n,), whose samples may be a part of all.

    ``codes`` (n,) are classes from 0 and ``count`` (C,) their samples, as floats, those held elsewhere
    included. ``reduce``, ``(values (C,), "max" or "sum") -> values``, joins what the holders found.
    """
    reduce = reduce or (lambda values, how: values)
    # Each class starts from its own largest weight, so that no power can overflow.
    logs = -float(power) * logs
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
    """Embeddings scaled to unit norm, on the device: tensor of shape (n, d).

    ``first`` is the row number of the first one, for messages; errors as in :func:`cid_weights`.
    """
    vectors = as_tensor(embeddings)
    if vectors.ndim != 2 or 0 in vectors.shape:
        shape = tuple(vectors.shape)
        raise ValueError(f"embeddings have shape {shape}; (n, d) with n and d at least 1 is needed")
    vectors = vectors.to(pick_device(device))
    working = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    unit = torch.empty_like(vectors, dtype=working)
    # The norm in float64: a relative error of 6e-8 here would be divided by tau in the exponent.
    for part, out in zip(vectors.split(BLOCK), unit.split(BLOCK), strict=True):  # for the cache
        part = part.double()
        out.copy_(part / part.norm(dim=1, keepdim=True))
    if torch.isfinite(unit.sum(dim=1)).all():
        return unit
    bad = torch.nonzero(~torch.isfinite(vectors).all(dim=1))[:, 0]
    if len(bad):
        such = f"row {first + int(bad[0])} holds NaN or infinite values ({len(bad)} such rows)"
        raise ValueError(f"embeddings {such}; remove these samples or embed them again")
    row = first + int(torch.nonzero(vectors.double().norm(dim=1) == 0)[0])
    raise ValueError(f"embeddings row {row} has norm 0, so no direction; remove this sample")


def _kernel_mean(load, n: int, tau: float, include_self: bool, precision: str) -> torch.Tensor:
    """Mean over j of ``exp((z_i . z_j - 1) / tau)`` for every i; float64 (n,).

    ``load`` holds a function for every chunk of the samples, which returns its unit vectors.
    """
    common = sum(chunk().sum(dim=0, dtype=torch.float64) for chunk in load) / n

    def centred(chunk):
        # With u = (z - mean) / sqrt(tau) the exponent is u_i . u_j - |u_i|^2/2 - |u_j|^2/2. Face
        # embeddings share a large common direction; without it the products are small, and so is
        # their rounding error, which the exponential turns into a relative error of the density.
        unit = chunk()
        u = (unit - common.to(unit.dtype)) / math.sqrt(tau)
        u = u.half() if precision == "half" else u
        return u, half_squares(u).to(unit.dtype)

    total = torch.zeros(n, dtype=torch.float64, device=common.device)
    parts = total.split(CHUNK) if len(load) > 1 else [total]
    for place, part in enumerate(parts):
        ours = centred(load[place])
        add_kernel_sums(ours, ours, part, part, own=float(include_self))
        for other in range(place + 1, len(load)):
            add_kernel_sums(ours, centred(load[other]), part, parts[other])
    if n == 1:
        return torch.ones_like(total)
    return (total / (n if include_self else n - 1)).clamp_(max=1.0)


def half_squares(u: torch.Tensor) -> torch.Tensor:
    """``|u|^2 / 2`` of every row, float64 (n,), without a float64 copy of all."""
    return torch.cat([(part.double() ** 2).sum(dim=1) / 2 for part in u.split(BLOCK)])


def add_kernel_sums(ours, theirs, total, visiting, own: float | None = None) -> None:
    """Add the sums of the kernel between two sets of samples to the totals of both, block by block.

    A set is ``u`` (n, d), centred and divided by sqrt(tau), and ``|u|^2 / 2`` (n,). What our samples
    gain goes to ``total``, what theirs gain to ``visiting``, float64 (n,). Where both sets are the same
    one, ``own`` is the kernel of a sample with itself (1 exactly, or 0 to leave it out), and every pair
    of blocks is computed once.
    """
    (u, half), (v, other) = ours, theirs
    block = BLOCK if half.device.type == "cpu" else GPU_BLOCK
    # One buffer for all blocks: a new one each time costs as much as the exponential.
    buffer = half.new_empty(min(block, len(u)) * min(block, len(v)))
    for a in range(0, len(u), block):
        i = slice(a, min(a + block, len(u)))
        for b in range(0 if own is None else a, len(v), block):
            j = slice(b, min(b + block, len(v)))
            out = buffer[: (i.stop - a) * (j.stop - b)].view(i.stop - a, -1)
            kernel = _kernel(u[i], half[i], v[j], other[j], out)
            if own is not None and a == b:
                kernel.fill_diagonal_(own)
            else:
                visiting[j] += kernel.sum(dim=0)
            total[i] += kernel.sum(dim=1)


def _kernel(u, half, v, other, out) -> torch.Tensor:
    """``exp(u_i . v_j - |u_i|^2 / 2 - |v_j|^2 / 2)``, in the memory of ``out`` where that can be."""
    if u.is_cuda and u.dtype == torch.float16:
        out = torch.mm(u, v.T, out_dtype=torch.float32).sub_(half[:, None])
    else:  # on a CPU, float16 is widened first: what a GPU computes, for the tests
        out = torch.addmm(half[:, None], u.to(out.dtype), v.to(out.dtype).T, beta=-1, out=out)
    return out.sub_(other).exp_()


def class_codes(labels, n: int) -> tuple[np.ndarray, int]:
    """Labels as codes 0..C-1 and C; checks their shape."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (n,):
        found = f"labels have shape {labels.shape} but there are {n} samples"
        raise ValueError(f"{found}; one label each is needed")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(f"label {np.isfinite(labels).argmin()} is NaN or infinite; fill it in")
    classes, codes = np.unique(labels, return_inverse=True)
    return codes, len(classes)


def as_tensor(values) -> torch.Tensor:
    """An array as a tensor, in the same memory if that may be written to."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    values = np.ascontiguousarray(values)
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def like(result: torch.Tensor, source):
    """Return ``result`` as the kind, floating type and device of ``source``."""
    dtype = source.dtype if hasattr(source, "dtype") else np.asarray(source).dtype
    kind = torch.float64 if str(dtype).endswith("float64") else torch.float32
    if isinstance(source, torch.Tensor):
        return result.to(source.device, kind)
    return result.to("cpu", kind).numpy()
