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

from cid.checks import BOOL, COUNT, EXPONENT, POSITIVE, array, class_codes, number, reals
from cid.device import pick_device

CLASS_PRIORS = ("balanced", "empirical")
PRECISIONS = ("single", "half")
CHUNK = 2**16  # rows of a memory-mapped array held at once; a multiple of BLOCK: blocks stay alike
BLOCK = 1024  # 4 MiB of float32 a block: large enough for a fast product, small enough for a cache
PROBES = 4096  # samples whose neighbours tell how wide a kernel should be
MANY = 10_000  # samples beyond which other settings, too, are chosen on about PROBES of them
GPU_BLOCK = 8192  # a GPU wants few and large products; 256 MiB
# Largest |z - mean|^2 / tau up to which a type keeps its promise: its rounding is an error of the
# exponent. What reaches farther is computed in the next better one.
REACH = {torch.float16: 64, torch.float32: 128}
WIDTH = "a number from 1e-9 to 1e9", lambda value: 1e-9 <= value <= 1e9  # float64 tells no smaller


def cid_weights(
    embeddings, labels, tau: float, *, class_prior: str = "balanced", power: float = 1.0,
    include_self: bool = True, precision: str = "single", device: str = "auto",
):  # fmt: skip
    """Conditional inverse density weights of every training sample.

    Parameters
    ----------
    embeddings : array or tensor, shape (n, d)
        Proxy embeddings; only their direction counts. float64 is computed in float64, everything else
        in float32 where that keeps the relative error of a density below 3e-5 (some 1e-6 at usual
        widths), else in float64: :data:`REACH`. A ``numpy.memmap`` is read in chunks.
    labels : array or tensor, shape (n,)
        As in :func:`cid.checks.class_codes`.
    tau : float
        Kernel width on the cosine scale, >= 1e-9. Pairs whose cosine is below ``1 - 5 tau`` hardly count.
    class_prior : {"balanced", "empirical"}
        Total weight of a class: the same for all, or proportional to its number of samples.
    power : float
        Exponent a in ``p^-a``: 0 gives uniform weights within each class, 1 CID.
    include_self : bool
        Count the sample itself in its own density, which bounds the weight of an outlier. Without
        it the kernel is computed in float64.
    precision : {"single", "half"}
        "half" rounds the centred vectors to float16 before the product, whose sums stay float32: for
        GPUs, at a relative error of the weights below 1e-3; where it would be larger, "single" is used.
    device : str
        "auto" (where the tensor is, else a GPU when there is one), "cpu", "cuda", ...

    Returns
    -------
    array or tensor, shape (n,)
        Weights of mean 1, of the kind (and for a tensor on the device) that ``embeddings`` were.

    Raises
    ------
    ValueError
        On NaN, infinite or zero-norm embeddings, a length mismatch, settings out of range, or empty
        input.
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
    tau, include_self = number("tau", tau, WIDTH), number("include_self", include_self, BOOL, bool)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if precision == "half" and not include_self:
        raise ValueError("precision half needs include_self true: without it float64 is needed")
    stored = isinstance(embeddings, np.memmap) and len(embeddings) > CHUNK
    vectors = embeddings if stored else as_tensor(embeddings, ndim=2)
    codes, _ = class_codes(labels, len(vectors))
    order = np.argsort(codes, kind="stable")
    classes = np.split(order, np.cumsum(np.bincount(codes))[:-1])

    def unit(rows=slice(None), double: bool = False, first: int = 0):
        # Without the own term nothing bounds the density from below: it can rest on exponents near
        # -100, which float32 rounds too coarsely.
        part = as_tensor(vectors[rows])
        return unit_vectors(part.double() if double or not include_self else part, device, first)

    if stored:
        for start in range(0, len(vectors), CHUNK):
            sample = unit(slice(start, start + CHUNK), first=start)  # the checks, with row numbers
    else:
        sample = unit()
    density = torch.empty(len(vectors), dtype=sample.dtype, device=sample.device)
    for rows in classes:
        there = torch.from_numpy(rows).to(sample.device)
        if stored:
            chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
            load = [lambda double, chunk=chunk: unit(chunk, double) for chunk in chunks]
        else:
            load = [lambda double, r=rows, at=there: unit(r, True) if double else sample[at]]
        mean = _kernel_mean(load, len(rows), tau, include_self, precision)
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
    near, share = number("near", near, COUNT, int), number("share", share, POSITIVE)
    unit = unit_vectors(embeddings, device)
    rows = probes(len(unit))
    k = min(near + 1, len(unit))  # with the sample itself
    parts = [(unit[own] @ unit.T).topk(k, dim=1).values[:, -1] for own in rows.split(BLOCK)]
    return max(share * float(1 - torch.cat(parts).median()), 1e-6)


def probes(n: int, every: int = 0) -> torch.Tensor:
    """Rows of at most :data:`PROBES` of n samples, evenly spread; of all up to ``every``."""
    return torch.arange(0, n, 1 if n <= every else math.ceil(n / PROBES))


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
    if not (isinstance(class_prior, str) and class_prior in CLASS_PRIORS):
        raise ValueError(f"class_prior is {class_prior!r}; it must be one of {CLASS_PRIORS}")
    power, log = number("power", power, EXPONENT), number("log", log, BOOL, bool)
    values = as_tensor(density, "density", 1).double()
    codes, n_classes = class_codes(labels, len(values))
    codes = torch.from_numpy(codes).to(values.device)
    count = torch.bincount(codes, minlength=n_classes).double()
    logs = values if log else values.log()
    if not torch.isfinite(logs).all():
        at, needed = int((~torch.isfinite(logs)).nonzero()[0]), "finite" if log else "above 0"
        raise ValueError(f"density is {float(values[at])} in row {at}; {needed} is needed")
    return like(class_weights(logs, codes, count, class_prior, power), density)


def class_weights(logs, codes, count, class_prior: str, power: float, reduce=None):
    """:func:`inverse_weights` of float64 log densities (n,), whose samples may be a part of all.

    ``codes`` (n,) are classes from 0 and ``count`` (C,) their samples, as floats, those held elsewhere
    included. ``reduce``, ``(values (C,), "max" or "sum") -> values``, joins what the holders found.
    """
    reduce = reduce or (lambda values, how: values)
    # Each class starts from its own largest weight, so that no power can overflow.
    logs = -power * logs
    top = torch.full_like(count, -math.inf).scatter_reduce(0, codes, logs, "amax")
    raw = (logs - reduce(top, "max")[codes]).exp()
    total = reduce(torch.zeros_like(count).scatter_add(0, codes, raw), "sum")
    share = count if class_prior == "empirical" else (count.sum() / len(count)).expand_as(count)
    return raw * (share / total)[codes]


def effective_sample_size(weights) -> float:
    """Kish's effective sample size as a share of n, ``(sum w)^2 / (n sum w^2)``, in (0, 1]."""
    weights = as_tensor(weights, "weights", 1).double().cpu().numpy()
    with np.errstate(over="ignore"):
        squares = (weights**2).sum()
    if not (0 < squares < math.inf and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative, and some greater than 0")
    return float(weights.sum() ** 2 / (len(weights) * squares))


def unit_vectors(embeddings, device: str = "auto", first: int = 0) -> torch.Tensor:
    """Embeddings scaled to unit norm, on the device: tensor of shape (n, d).

    ``first`` is the row number of the first one, for messages; errors as in :func:`cid_weights`.
    """
    vectors = as_tensor(embeddings, ndim=2).to(pick_device(device))
    # Whoever calls may have let torch round the factors of float32 products to fewer digits.
    rounded = torch.get_float32_matmul_precision() != "highest"
    rounded |= torch.is_autocast_enabled(vectors.device.type)
    working = torch.float64 if rounded or vectors.dtype == torch.float64 else torch.float32
    unit = torch.empty_like(vectors, dtype=working)
    # The norm in float64: a relative error of 6e-8 here would be divided by tau in the exponent.
    for part, out in zip(vectors.split(BLOCK), unit.split(BLOCK), strict=True):  # for the cache
        part = part.double()
        norm = part.norm(dim=1, keepdim=True)
        out.copy_(part / torch.where(norm < math.inf, norm, math.nan))
    if torch.isfinite(unit.sum(dim=1)).all():
        return unit
    bad = torch.nonzero(~torch.isfinite(vectors).all(dim=1))[:, 0]
    if len(bad):
        such = f"row {first + int(bad[0])} holds NaN or infinite values ({len(bad)} such rows)"
        raise ValueError(f"embeddings {such}; remove these samples or embed them again")
    norm = vectors.double().norm(dim=1)
    row = int(torch.nonzero((norm == 0) | (norm == math.inf))[0])
    problem = f"row {first + row} has norm {float(norm[row]):g}, so no direction"
    raise ValueError(f"embeddings {problem}; remove this sample")


def _kernel_mean(load, n: int, tau: float, include_self: bool, precision: str) -> torch.Tensor:
    """Mean over j of ``exp((z_i . z_j - 1) / tau)`` for every i; float64 (n,).

    ``load`` holds a function for every chunk of the samples, which returns its unit vectors, as they
    are or, called with true, in float64.
    """
    common = sum(chunk(False).sum(dim=0, dtype=torch.float64) for chunk in load) / n
    working = precise_enough(max(farthest(chunk(False), common) for chunk in load) / tau, precision)

    def centred(chunk):
        # With u = (z - mean) / sqrt(tau) the exponent is u_i . u_j - |u_i|^2/2 - |u_j|^2/2. Face
        # embeddings share a large common direction; without it the products are small, and so is
        # their rounding error, which the exponential turns into a relative error of the density.
        unit = chunk(working == torch.float64)
        u = (unit - common.to(unit.dtype)) / math.sqrt(tau)
        u = u.half() if working == torch.float16 else u
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


def farthest(unit: torch.Tensor, common: torch.Tensor) -> float:
    """The largest squared distance of unit vectors from a common direction."""
    parts = unit.split(BLOCK)
    return max(float(((part - common.to(unit.dtype)) ** 2).sum(dim=1).max()) for part in parts)


def precise_enough(reach: float, precision: str = "single") -> torch.dtype:
    """The type in which a kernel that reaches so far keeps its promise: see :data:`REACH`."""
    types = (torch.float16, torch.float32) if precision == "half" else (torch.float32,)
    return next((kind for kind in types if reach <= REACH[kind]), torch.float64)


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


def as_tensor(values, name: str = "embeddings", ndim: int | None = None) -> torch.Tensor:
    """Real numbers as a tensor, in the same memory if that may be written to.

    A ValueError names what holds none, or is empty or of another shape than ``ndim`` asks for.
    """
    if isinstance(values, torch.Tensor) and values.layout == torch.strided:
        found = (values.dequantize() if getattr(values, "is_quantized", 0) else values).detach()
    else:
        found = array(name, values)
        found = reals(name, values) if found.dtype.kind == "O" else found
        if found.dtype.kind in "biuf":  # as torch knows them: native, and not longer than 8 bytes
            kind = found.dtype.newbyteorder("=") if found.dtype.itemsize <= 8 else np.float64
            found = np.asarray(found.astype(kind, copy=False), order="C")
            found = torch.from_numpy(found if found.flags.writeable else found.copy())
    if not isinstance(found, torch.Tensor) or found.is_complex() or found.is_meta:
        raise ValueError(f"{name} ({type(values).__name__}) hold no real numbers; convert them")
    if ndim and (found.ndim != ndim or 0 in found.shape):
        needed = ("(n,) with n", "(n, d) with n and d")[ndim - 1]
        raise ValueError(f"{name} have shape {tuple(found.shape)}; {needed} at least 1 is needed")
    return found


def like(result: torch.Tensor, source):
    """Return ``result`` as the kind, floating type and device of ``source``."""
    dtype = source.dtype if hasattr(source, "dtype") else np.asarray(source).dtype
    kind = torch.float64 if str(dtype).endswith(("float64", "f8")) else torch.float32
    if isinstance(source, torch.Tensor):
        return result.to(source.device, kind)
    return result.to("cpu", kind).numpy()
