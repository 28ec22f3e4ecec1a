"""Training: many linear heads on cached features as one stacked computation.

A run of the study is a head: one method on one biased training set. All runs read the same feature
matrix and differ in their sample weights, which are 0 off the training set, and in the *risk* that
makes one number of the images' losses: their weighted mean, or a robust risk that looks at the worst
of them. So a whole cell of the study, every method times every seed, is a few optimisations; and what
trains on the same images shares their Gram matrix, after which a step no longer depends on the number
of features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import softplus

from cid.device import pick_device
from cid.lbfgs import _lbfgs
from cid.risks import mean_risk
from study.store import digest

GRAM = 2**27  # entries of the Gram matrices held at once, 512 MiB


@dataclass(frozen=True)
class Heads:
    """Linear heads: ``logit = features @ weight.T + bias``.

    Attributes
    ----------
    weight : float32 array, shape (h, d)
    bias : float32 array, shape (h,)
    iterations : int
        Optimiser steps until every head had converged.
    gradient : float64 array, shape (h,)
        Norm of the objective's gradient at the end, relative to that at the start.
    """

    weight: np.ndarray
    bias: np.ndarray
    iterations: int
    gradient: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logit of class 1 under every head, float32 of shape (h, n)."""
        product = torch.from_numpy(self.weight) @ torch.from_numpy(features).T
        return product.numpy() + self.bias[:, None]

    def rows(self, which: slice) -> Heads:
        """Some of the heads."""
        return Heads(self.weight[which], self.bias[which], self.iterations, self.gradient[which])


class Design:
    """Features and labels made ready for many calls of :func:`fit_heads`.

    Keeps the standardised features and, as far as memory goes, the Gram matrix of every training set
    met: whatever trains on the same images, other methods or the same under other settings, shares it.

    Parameters
    ----------
    features : float32 array, shape (n, d)
    labels : int array, shape (n,)
        0 or 1.
    rows : array, optional
        Images that may be trained on (numbers or a mask), all by default: what the features are first
        standardised by.
    """

    def __init__(self, features, labels, rows=None, device: str = "auto"):
        device = pick_device(device)
        labels = np.asarray(labels)
        if np.ndim(features) != 2 or labels.shape != np.shape(features)[:1]:
            raise ValueError(
                f"features {np.shape(features)} and labels {labels.shape} disagree; (n, d) and (n,) "
                "are needed"
            )
        if not set(np.unique(labels)) <= {0, 1}:
            raise ValueError(f"labels hold {np.unique(labels)[:5].tolist()}; 0 and 1 are needed")
        x = torch.as_tensor(np.asarray(features), dtype=torch.float32, device=device)
        # Right for no head, but near enough for float32: each head then corrects by the statistics of
        # its own training images, so that nothing of another image enters.
        some = x if rows is None else x[torch.as_tensor(rows, device=device)]
        self.centre, self.spread = some.mean(dim=0), some.std(dim=0, correction=0).clamp_min(1e-6)
        self.x = (x - self.centre) / self.spread
        self.sign = torch.as_tensor(labels * 2.0 - 1.0, dtype=torch.float32, device=device)
        self._grams: dict[bytes, torch.Tensor] = {}

    @cached_property
    def digest(self) -> str:
        """Of the features and labels, and of the kind of device."""
        return digest(self.x, self.centre, self.spread, self.sign, self.x.device.type)

    def standardised(self, rows: torch.Tensor):
        """Images standardised by their own statistics, and these: shift and scale, shape (d,)."""
        x = self.x[rows]
        shift = x.mean(dim=0)
        scale = ((x**2).mean(dim=0) - shift**2).clamp_min(1e-6).sqrt()
        return (x - shift) / scale, shift, scale

    def gram(self, rows: torch.Tensor) -> torch.Tensor:
        """Inner products of the standardised images of a training set, shape (m, m)."""
        key = rows.cpu().numpy().tobytes()
        product = self._grams.pop(key, None)
        if product is None:
            part = self.standardised(rows)[0]
            product = part.new_zeros(len(part), len(part))
            for start in range(0, len(part), 512):  # the lower triangle, as it is symmetric
                stop = min(start + 512, len(part))
                product[start:stop, :stop] = part[start:stop] @ part[:stop].T
            product = product.tril() + product.tril(-1).T
            held = sum(map(torch.numel, self._grams.values()))
            while self._grams and held + product.numel() > GRAM:  # the longest unused goes first
                held -= self._grams.pop(next(iter(self._grams))).numel()
        self._grams[key] = product
        return product


def fit_heads(
    features,
    labels,
    sample_weights,
    l2: float,
    *,
    risk: Callable = mean_risk,
    groups=None,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
    design: Design | None = None,
    device: str = "auto",
    progress: str | None = None,
) -> Heads:
    """Fit one L2-regularised logistic regression for every row of sample weights, all together.

    Head h minimises over w and b

        risk_i softplus(-y_i (w . x_i + b))  +  l2 / 2 |w|^2,

    where the risk is the mean under weights ``s_hi / sum_i s_hi`` or what ``risk`` makes of it, y is
    +-1 and x are the features standardised by the mean and standard deviation of the
    head's own training images (those of positive weight, each counted once), so that no statistic of
    a test image enters. The returned heads are in units of the raw features.

    Parameters
    ----------
    features : float32 array, shape (n, d)
    labels : int array, shape (n,)
        0 or 1.
    sample_weights : array, shape (h, n)
        Non-negative; 0 keeps an image out of the head's training set.
    l2 : float
        Strength of the L2 penalty on standardised features, > 0.
    risk : callable
        :func:`mean_risk`, or what :func:`cvar_risk`, :func:`tilted_risk` or
        :func:`generalised_cross_entropy` return; with ``groups``, :func:`group_risk` of a tilt.
    groups : int array, shape (h, n), optional
        ``risk`` is then called with the groups of the images in use and returns the risk.
    tolerance : float
        A head has converged when its gradient norm is this share of the initial one.
    max_iterations : int
        Limit on optimiser steps.
    design : Design, optional
        Of these features and labels, to share what other calls have computed.
    progress : str, optional
        Label of a progress bar; none without it.

    Raises
    ------
    ValueError
        On shapes that disagree, l2 <= 0, a head without both classes, or no convergence.
    """
    sample_weights = np.asarray(sample_weights)
    if design is None:
        # What is wrong with the shape is said below.
        used = (sample_weights != 0).any(axis=0) if sample_weights.ndim == 2 else []
        fits = len(used) == len(features) and used.any()
        design = Design(features, labels, used if fits else None, device)
    device = design.x.device
    weights = torch.as_tensor(sample_weights, dtype=torch.float32, device=device)
    _check(design, weights, l2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    if groups is not None:
        groups = torch.as_tensor(np.asarray(groups), device=device)

    few = int((weights > 0).sum(dim=1).max()) <= design.x.shape[1]
    how = {"tolerance": tolerance, "max_iterations": max_iterations, "progress": progress}
    fit = _fit_dual if few else _fit_primal
    v, bias, steps, relative = fit(design, weights, l2, risk, groups, how)
    worst = float(relative.max())
    if worst > tolerance:
        raise ValueError(
            f"{int((relative > tolerance).sum())} of {len(weights)} heads have not converged after "
            f"{steps} steps (gradient {worst:.1e} of the initial one, {tolerance:.0e} wanted); raise "
            "train.l2 or max_iterations"
        )
    raw = v / design.spread
    bias = bias - (raw * design.centre).sum(1)
    return Heads(raw.cpu().numpy(), bias.cpu().numpy(), steps, relative.cpu().double().numpy())


def _fit_primal(design, weights, l2, risk, groups, how):
    """Heads over (w, b), all in one product with the features: for more images than features.

    Returns
    -------
    v : tensor, shape (h, d)
        In units of ``design.x``; ``bias`` (h,) likewise. Then steps and final gradients, as :func:`_lbfgs`.
    """
    # Images no head trains on only cost time.
    used = torch.nonzero((weights > 0).any(dim=0))[:, 0]
    x, sign, weights = design.x[used], design.sign[used], weights[:, used]
    risk = risk if groups is None else risk(groups[:, used])
    member = (weights > 0).float()
    member /= member.sum(dim=1, keepdim=True)
    shift = member @ x
    scale = (member @ x**2 - shift**2).clamp_min(1e-6).sqrt()

    def objective(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w, b = theta[:, :-1], theta[:, -1:]
        v = w / scale
        margin = torch.addmm(b - (v * shift).sum(1, keepdim=True), v, x.T) * sign
        value, share = risk(softplus(-margin), weights)
        loss = value + 0.5 * l2 * (w * w).sum(1)
        slope = -share * torch.sigmoid(-margin) * sign
        total = slope.sum(1, keepdim=True)
        gradient = torch.cat([(slope @ x - total * shift) / scale + l2 * w, total], dim=1)
        return loss, gradient

    start = torch.zeros(len(weights), x.shape[1] + 1, device=x.device)
    theta, steps, relative = _lbfgs(objective, lambda p, q: (p * q).sum(1), start, **how)
    v = theta[:, :-1] / scale
    return v, theta[:, -1] - (v * shift).sum(1), steps, relative


def _fit_dual(design, weights, l2, risk, groups, how):
    """As :func:`_fit_primal`, over coefficients of the training images: for more features than images.

    The optimum is a combination ``w = X^T a`` of the head's own standardised images, so heads with
    the same training set share its Gram matrix ``K = X X^T``, and a step costs one product with it
    in place of two with all the features. The vectors are kept as (a, K a, b), whose inner product
    ``a . K a' + b b'`` is that of (w, b): the optimiser takes the same steps as over (w, b).
    """
    x, sign = design.x, design.sign
    supports, place = np.unique(
        np.packbits((weights > 0).cpu().numpy(), axis=1), axis=0, return_inverse=True
    )
    place = place.reshape(-1)
    v = torch.empty(len(weights), x.shape[1], device=x.device)
    bias, relative = (torch.empty(len(weights), device=x.device) for _ in range(2))
    steps = 0
    most = int((weights > 0).sum(dim=1).max())
    together = max(1, GRAM // most**2)
    for first in range(0, len(supports), together):
        heads = [
            np.flatnonzero(place == g) for g in range(first, min(first + together, len(supports)))
        ]
        rows = [torch.nonzero(weights[int(own[0])] > 0)[:, 0] for own in heads]
        size, slots = max(map(len, rows)), max(map(len, heads))
        gram = torch.zeros(len(heads), size, size, device=x.device)
        sides = torch.zeros(len(heads), 1, size, device=x.device)
        mass = torch.zeros(len(heads), slots, size, device=x.device)
        codes = torch.zeros(mass.shape, dtype=torch.int64, device=x.device)
        for g, (own, row) in enumerate(zip(heads, rows, strict=True)):
            gram[g, : len(row), : len(row)] = design.gram(row)
            sides[g, 0, : len(row)] = sign[row]
            mass[g, : len(own), : len(row)] = weights[own][:, row]
            if groups is not None:
                codes[g, : len(own), : len(row)] = groups[own][:, row]
        cell_risk = risk if groups is None else risk(codes.flatten(0, 1))
        flat = mass.flatten(0, 1)

        def objective(theta, gram=gram, sides=sides, mass=flat, risk=cell_risk, size=size):
            a, image, b = theta[:, :size], theta[:, size:-1], theta[:, -1:]
            margin = ((image + b).view(len(gram), -1, size) * sides).flatten(0, 1)
            value, share = risk(softplus(-margin), mass)
            loss = value + 0.5 * l2 * (a * image).sum(1)
            slope = (-share * torch.sigmoid(-margin)).view(len(gram), -1, size) * sides
            product = torch.bmm(slope, gram).flatten(0, 1)
            slope = slope.flatten(0, 1)
            gradient = [slope + l2 * a, product + l2 * image, slope.sum(1, keepdim=True)]
            return loss, torch.cat(gradient, dim=1)

        def dot(p, q, size=size):
            return (p[:, :size] * q[:, size:-1]).sum(1) + p[:, -1] * q[:, -1]

        start = torch.zeros(len(flat), 2 * size + 1, device=x.device)
        theta, done, left = _lbfgs(objective, dot, start, **how)
        steps = max(steps, done)
        theta, left = theta.view(len(heads), slots, -1), left.view(len(heads), slots)
        for g, (own, row) in enumerate(zip(heads, rows, strict=True)):
            part, shift, scale = design.standardised(row)
            v[own] = theta[g, : len(own), : len(row)] @ part / scale
            bias[own] = theta[g, : len(own), -1] - (v[own] * shift).sum(1)
            relative[own] = left[g, : len(own)]
    return v, bias, steps, relative


def _check(design, weights, l2) -> None:
    if weights.ndim != 2 or weights.shape[1] != len(design.x):
        raise ValueError(
            f"features {tuple(design.x.shape)} and sample weights {tuple(weights.shape)} disagree; "
            "(n, d) and (heads, n) are needed"
        )
    if not l2 > 0:
        raise ValueError(f"train.l2 is {l2}; it must be greater than 0")
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("sample weights hold negative or non-finite values")
    for name, rows in (("1", design.sign > 0), ("0", design.sign < 0)):
        empty = (weights[:, rows] > 0).sum(1) == 0
        if empty.any():
            raise ValueError(
                f"head {int(torch.nonzero(empty)[0])} has no training image of class {name}"
            )
