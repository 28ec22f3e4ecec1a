"""Class-conditional density in a proxy embedding, and the weights that invert it.

For unit vectors ``z`` and a class ``c`` of ``n_c`` samples, the von Mises-Fisher kernel density is

    p(z_i | c) = 1/n_c * sum_{j in c} exp((z_i . z_j - 1) / tau)

up to a constant. As ``z_i . z_j - 1 = -|z_i - z_j|^2 / 2`` it is also a Gaussian kernel density of
bandwidth ``sqrt(tau)`` restricted to the sphere, which gives the tests an independent oracle. The
conditional inverse density (CID) weight is ``w_i ~ 1 / p(z_i | y_i)``, after Qi & Ardeshir,
"Improving Identity-Robustness for Face Models", arXiv 2304.03838.

Everything here is exact. Memory grows with n: kernel values live one block at a time, and each
pair of blocks is computed once, as the kernel is symmetric.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cid.device import pick_device

CLASS_PRIORS = ("balanced", "empirical")
BLOCK = 2048  # 16 MiB of float32 a block: large enough for a fast product, small enough for a cache


def cid_weights(
    embeddings,
    labels,
    tau: float,
    *,
    class_prior: str = "balanced",
    power: float = 1.0,
    include_self: bool = True,
    device: str = "auto",
):
    """Conditional inverse density weights of every training sample.

    Parameters
    ----------
    embeddings : array or tensor, shape (n, d)
        Proxy embeddings; only their direction counts. float64 is computed in float64, everything
        else in float32, to a relative error of a few 1e-6.
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
    density = class_density(embeddings, labels, tau, include_self=include_self, device=device)
    return inverse_weights(density, labels, class_prior=class_prior, power=power)


def class_density(embeddings, labels, tau: float, *, include_self: bool = True, device="auto"):
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
    # Without the own term nothing bounds the density from below: it can rest on exponents near -100,
    # which float32 rounds too coarsely.
    vectors = _tensor(embeddings)
    unit = unit_vectors(vectors if include_self else vectors.double(), device)
    codes, n_classes = _class_codes(labels, len(unit))
    order = torch.from_numpy(np.argsort(codes, kind="stable")).to(unit.device)
    density = torch.empty(len(unit), dtype=unit.dtype, device=unit.device)
    start = 0
    for count in np.bincount(codes, minlength=n_classes):
        rows = order[start : start + int(count)]
        density[rows] = _kernel_mean(unit[rows], float(tau), include_self)
        start += int(count)
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
    codes, n_classes = _class_codes(labels, len(values))
    codes = torch.from_numpy(codes).to(values.device)
    count = torch.bincount(codes, minlength=n_classes).double()

    # Only ratios within a class survive, so each class starts from its own largest weight: no power
    # can overflow.
    logs = -float(power) * values.log()
    top = torch.full_like(count, -math.inf).scatter_reduce(0, codes, logs, "amax")
    raw = (logs - top[codes]).exp()
    total = torch.zeros_like(count).scatter_add(0, codes, raw)
    share = count if class_prior == "empirical" else torch.full_like(count, len(values) / n_classes)
    return _like(raw * (share / total)[codes], density)


def effective_sample_size(weights) -> float:
    """Kish's effective sample size as a share of n, ``(sum w)^2 / (n sum w^2)``, in (0, 1]."""
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def unit_vectors(embeddings, device: str = "auto") -> torch.Tensor:
    """Embeddings scaled to unit norm, checked, on the device: tensor of shape (n, d).

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
    finite = torch.isfinite(vectors).all(dim=1)
    if not finite.all():
        bad = torch.nonzero(~finite)[:, 0]
        raise ValueError(
            f"embeddings row {int(bad[0])} holds NaN or infinite values ({len(bad)} such rows); "
            "remove these samples or embed them again"
        )
    # The norm in float64: a relative error of 6e-8 here would be divided by tau in the exponent.
    norm = vectors.double().norm(dim=1, keepdim=True)
    if (norm == 0).any():
        row = int(torch.nonzero(norm[:, 0] == 0)[0])
        raise ValueError(f"embeddings row {row} has norm 0, so no direction; remove this sample")
    working = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    return (vectors.double() / norm).to(working)


def _kernel_mean(unit: torch.Tensor, tau: float, include_self: bool) -> torch.Tensor:
    """Mean over j of ``exp((z_i . z_j - 1) / tau)`` for every i; shape (n,)."""
    n = len(unit)
    if n == 1:
        return torch.ones(1, dtype=unit.dtype, device=unit.device)
    # With u = (z - mean) / sqrt(tau) the exponent is u_i . u_j - |u_i|^2/2 - |u_j|^2/2. Face
    # embeddings share a large common direction; without it the products are small, and so is their
    # rounding error, which the exponential turns into a relative error of the density.
    u = ((unit - unit.mean(dim=0)) / math.sqrt(tau)).to(unit.dtype)
    half = (u.double() ** 2).sum(dim=1).div(2).to(unit.dtype)
    total = torch.zeros(n, dtype=torch.float64, device=unit.device)
    for a in range(0, n, BLOCK):
        rows = slice(a, min(a + BLOCK, n))
        for b in range(a, n, BLOCK):
            cols = slice(b, min(b + BLOCK, n))
            kernel = torch.addmm(half[rows, None], u[rows], u[cols].T, beta=-1)
            kernel.sub_(half[cols]).exp_()
            if a == b:  # a sample's kernel with itself is 1 exactly
                kernel.fill_diagonal_(float(include_self))
                total[rows] += kernel.sum(dim=1)
            else:
                total[rows] += kernel.sum(dim=1)
                total[cols] += kernel.sum(dim=0)
    mean = total / (n if include_self else n - 1)
    return mean.clamp_(max=1.0).to(unit.dtype)


def _class_codes(labels, n: int) -> tuple[np.ndarray, int]:
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
    return torch.from_numpy(np.ascontiguousarray(values))


def _like(result: torch.Tensor, source):
    """Return ``result`` as the kind, floating type and device of ``source``."""
    kind = torch.float64 if _tensor(source).dtype == torch.float64 else torch.float32
    if isinstance(source, torch.Tensor):
        return result.to(source.device, kind)
    return result.to("cpu", kind).numpy()
