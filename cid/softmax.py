"""Linear heads of more than two classes: softmax regression, many heads at once.

A head is one L2-regularised softmax regression: a weight vector and a bias for every class. It is what
:mod:`cid.heads` fits for two classes, where both find the same head. Heads that train on the same images
share one copy of these, standardised by their own mean and standard deviation; with fewer images than
features the images are turned into as many coordinates as there are images, which changes no inner product
and so no head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from cid.arrays import as_tensor, class_codes, pick_device, reals
from cid.curvature import padded
from cid.lbfgs import minimise
from cid.risks import mean_risk
from cid.settings import Count, Positive, checked


@dataclass(frozen=True)
class SoftmaxHeads:
    """Linear heads of C classes: ``logits = features @ weight.T + bias``."""

    weight: np.ndarray  # float32 (h, C, d)
    bias: np.ndarray  # float32 (h, C)
    iterations: int  # optimiser steps until every head had converged
    gradient: (
        np.ndarray
    )  # float64 (h,): final norm of the objective's gradient over the initial one

    def logits(self, features) -> np.ndarray:
        """Compute the logits of all classes under every head, float32 (h, n, C)."""
        features = as_tensor(features, "features", 2).float()
        heads, classes, _ = self.weight.shape
        products = features @ torch.from_numpy(self.weight).flatten(0, 1).T  # one product, (n, h C)
        return products.view(-1, heads, classes).numpy().swapaxes(0, 1) + self.bias[:, None, :]

    def rows(self, which: slice) -> SoftmaxHeads:
        """Select some of the heads."""
        return SoftmaxHeads(
            weight=self.weight[which],
            bias=self.bias[which],
            iterations=self.iterations,
            gradient=self.gradient[which],
        )

    @staticmethod
    def joined(parts: list[SoftmaxHeads]) -> SoftmaxHeads:
        """Concatenate the heads of several calls."""
        return SoftmaxHeads(
            weight=np.concatenate([heads.weight for heads in parts]),
            bias=np.concatenate([heads.bias for heads in parts]),
            iterations=max(int(heads.iterations) for heads in parts),
            gradient=np.concatenate([heads.gradient for heads in parts]),
        )


def cross_entropies(logits, codes) -> np.ndarray:
    """Compute ``-log p(label)`` of images, float64 (h, n), from logits (h, n, C) and classes from 0 (n,).

    >>> cross_entropies(np.zeros((1, 2, 4)), [3, 0]).round(3)
    array([[1.386, 1.386]])
    """
    logp = log_softmax(np.asarray(logits, dtype=np.float64), axis=2)
    return -np.take_along_axis(logp, np.asarray(codes)[None, :, None], axis=2)[:, :, 0]


@dataclass(frozen=True)
class _Problem:
    """Heads of one training set over (h, C, d + 1), for :func:`cid.lbfgs.minimise`."""

    features: Tensor  # (m, d)
    codes: Tensor  # (m,): classes from 0
    weights: Tensor  # (h, m): of row sum 1
    l2: Tensor  # (h, 1, 1)
    risk: Callable
    offset: Tensor | float  # (h, C, m), or 0
    room: int  # heads that products are padded to

    def objective(self, unknowns: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the values (h,) and gradients at unknowns, both (h, C (d + 1))."""
        heads = len(unknowns)
        theta = unknowns.view(heads, -1, self.features.shape[1] + 1)
        weight = theta[:, :, :-1]
        logits = self._times(weight, self.features.T) + theta[:, :, -1:]  # (h, C, m)
        logp = torch.log_softmax(logits + self.offset, dim=1)
        own = self.codes.expand(heads, -1)[:, None, :]
        losses = -logp.gather(1, own)[:, 0]
        value, share = self.risk(losses, self.weights)
        loss = value + self.l2[:, 0, 0] * (weight * weight).sum(dim=(1, 2))

        slope = logp.exp_()
        slope.scatter_add_(1, own, -torch.ones_like(own, dtype=slope.dtype))
        slope *= share[:, None, :]  # the derivative by the logits
        by_weight = self._times(slope, self.features) + 2 * self.l2 * weight
        gradient = torch.cat([by_weight, slope.sum(dim=2, keepdim=True)], dim=2)
        return loss, gradient.flatten(1)

    def _times(self, of_heads: Tensor, matrix: Tensor) -> Tensor:
        """Products (h, C, k) of (h, C, j) and (j, k), as one of all rows, padded to a multiple of the room."""
        heads, classes, _ = of_heads.shape
        products = padded(of_heads.flatten(0, 1), self.room * classes) @ matrix
        return products[: heads * classes].view(heads, classes, -1)

    @staticmethod
    def dot(left: Tensor, right: Tensor) -> Tensor:
        """Compute the inner products (h,) of the rows of two tensors."""
        return (left * right).sum(1)


def fit_softmax_heads(
    features,
    labels,
    sample_weights,
    l2,
    *,
    risk: Callable = mean_risk,
    groups=None,
    offset=None,
    standardised_by=None,
    room: int = 1,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    strict: bool = True,
    device: str = "auto",
    prepared: dict | None = None,
) -> SoftmaxHeads:
    """Fit one L2-regularised softmax regression for every row of sample weights.

    Head h minimises ``risk_i(-log softmax(W x_i + b)[y_i]) + l2 sum_c |W_c|^2`` over W, one row a class, and
    b. The risk is the mean under weights ``s_hi / sum_i s_hi``, or what ``risk`` makes of these losses and
    weights. Of two classes the difference of the rows is the head of :func:`cid.heads.fit_heads` under the
    same ``l2``. The features x are standardised by the head's own training images, as there, and heads are
    returned in the units of ``features``.

    The bytes of a head do not depend on heads that train on other images, nor, up to ``room``, on those on the
    same images, which are fitted together.

    Parameters
    ----------
    features : array, shape (n, d)
        Used as float32.
    labels : array, shape (n,)
        Of any kind that numbers or names classes; they are taken in their order. Every head needs all of
        them.
    sample_weights : array, shape (h, n)
        Non-negative; 0 keeps an image out of the head's training set.
    l2 : float, or array of shape (h,)
        Strength of the L2 penalty on standardised features, > 0, of all heads or of each.
    risk : callable
        A :data:`cid.risks.Risk`. With ``groups``: a function of the groups of the images in use, int
        (h, m), that returns one.
    groups : int array, shape (h, n), optional
    offset : float array, shape (h, n, C), optional
        Added to the logits of the images during fitting, and not part of the head.
    standardised_by, room, tolerance, max_iterations, strict, device
        As in :func:`cid.heads.fit_heads`.
    prepared : dict, optional
        Passed to several calls with the same features, it spares work: what is found of sets with fewer images
        than features stays in it.

    Raises
    ------
    ValueError
        If shapes disagree, values are not finite, l2 <= 0, a head lacks a class, or the heads do not
        converge.

    Examples
    --------
    >>> features = np.array([[0.0, 0], [0, 1], [1, 0], [5, 0], [5, 1], [0, 5]])
    >>> labels = ["a", "a", "a", "b", "b", "c"]
    >>> heads = fit_softmax_heads(features, labels, np.ones((1, 6)), l2=0.01)
    >>> heads.logits(features)[0].argmax(axis=1).tolist()
    [0, 0, 0, 1, 1, 2]
    """
    device = pick_device(device)
    features = as_tensor(features, "features", 2).to(device, torch.float32)
    codes, classes = class_codes(labels, len(features))
    weights = as_tensor(sample_weights, "sample weights").to(device, torch.float32)
    if weights.ndim != 2 or weights.shape[1] != len(features):
        raise ValueError(
            f"features {tuple(features.shape)} and sample weights {tuple(weights.shape)} disagree; (n, d) and "
            "(heads, n) are needed"
        )
    tolerance = checked("tolerance", tolerance, Positive)
    max_iterations = checked("max_iterations", max_iterations, Count)
    room = checked("room", room, Count)
    penalties = _penalties(l2, len(weights), device)
    codes = torch.as_tensor(codes, device=device)
    _check_weights(weights, codes, classes)
    weights = weights / weights.sum(dim=1, keepdim=True)
    if groups is not None:
        groups = _like_weights("groups", groups, weights.shape, torch.int64, device)
    if offset is not None:
        offset = _like_weights("offset", offset, (*weights.shape, classes), torch.float32, device)
    trained_on = weights > 0
    member = trained_on
    if standardised_by is not None:
        member = torch.as_tensor(np.asarray(standardised_by, dtype=bool), device=device)
        member = member.expand_as(weights)
        if (trained_on & ~member).any():
            raise ValueError("standardised_by leaves out an image that a head trains on; add it")

    weight = np.empty((len(weights), classes, features.shape[1]), dtype=np.float32)
    bias = np.empty((len(weights), classes), dtype=np.float32)
    relative = np.empty(len(weights))
    iterations = 0
    for heads, rows in _by_training_set(member):
        coordinates, back, shift, scale = _coordinates(features, rows, prepared)
        at = (heads[:, None], rows)
        problem = _Problem(
            features=coordinates,
            codes=codes[rows],
            weights=weights[at],
            l2=penalties[heads],
            risk=risk if groups is None else risk(groups[at]),
            offset=0 if offset is None else offset[at].mT,
            room=room,
        )
        start = weights.new_zeros(len(heads), classes * (coordinates.shape[1] + 1))
        with torch.autocast(device.type, enabled=False):  # it would not converge in half precision
            unknowns, steps, left = minimise(
                problem.objective,
                problem.dot,
                start,
                tolerance=tolerance,
                max_iterations=max_iterations,
                progress=None,
            )
        theta = unknowns.view(len(heads), classes, -1)
        own_weight = theta[:, :, :-1]
        if back is not None:
            own_weight = own_weight @ back
        own_weight = own_weight / scale
        own_bias = theta[:, :, -1] - own_weight @ shift
        places = heads.cpu().numpy()
        weight[places] = own_weight.cpu().numpy()
        bias[places] = own_bias.cpu().numpy()
        relative[places] = left.cpu().double().numpy()
        iterations = max(iterations, steps)
    if strict and not relative.max() <= tolerance:
        raise ValueError(
            f"{int((relative > tolerance).sum())} of {len(weights)} heads have not converged after "
            f"{iterations} steps (gradient {relative.max():.1e} of the initial one, {tolerance:.0e} wanted); "
            "raise train.l2 or max_iterations"
        )
    return SoftmaxHeads(weight, bias, iterations, relative)


def _penalties(l2, heads: int, device) -> Tensor:
    """The penalty of every head, (h, 1, 1)."""
    if np.ndim(l2) == 0:
        l2 = [checked("train.l2", l2, Positive)] * heads
    l2 = reals("l2", l2)
    if l2.shape != (heads,) or not ((l2 > 0) & (l2 <= 1e30)).all():
        raise ValueError("l2 of every head must be a number above 0, 1e30 at most")
    return torch.as_tensor(l2, dtype=torch.float32, device=device)[:, None, None]


def _check_weights(weights: Tensor, codes: Tensor, classes: int) -> None:
    if not (len(weights) and torch.isfinite(weights.sum(1)).all() and (weights >= 0).all()):
        raise ValueError("sample weights hold negative, infinite or NaN values, or are of no head")
    for code in range(classes):
        empty = torch.nonzero((weights[:, codes == code] > 0).sum(1) == 0)
        if len(empty):
            raise ValueError(f"head {int(empty[0])} has no training image of class {code}")


def _like_weights(name: str, values, shape: tuple, dtype: torch.dtype, device) -> Tensor:
    values = reals(name, values)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers of shape {shape}")
    return torch.as_tensor(values, dtype=dtype, device=device)


def _by_training_set(member: Tensor):
    """Yield the heads (k,) that use the same images, and the rows (m,) of these."""
    images = np.packbits(member.cpu().numpy(), axis=1)
    _, set_of_head = np.unique(images, axis=0, return_inverse=True)
    set_of_head = set_of_head.reshape(-1)
    for number in range(set_of_head.max() + 1):
        heads = torch.as_tensor(np.flatnonzero(set_of_head == number), device=member.device)
        yield heads, torch.nonzero(member[heads[0]])[:, 0]


def _coordinates(features: Tensor, rows: Tensor, prepared: dict | None) -> tuple:
    """Standardised features of a training set as :func:`_fewer` gives them, and the shift and scale (d,)."""
    few = len(rows) < features.shape[1]
    key = rows.cpu().numpy().tobytes()
    if few and prepared is not None and key in prepared:
        return prepared[key]
    own_features, shift, scale = _standardised(features[rows])
    found = (*_fewer(own_features), shift, scale)
    if few and prepared is not None:
        prepared[key] = found
    return found


def _standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (m, d) of mean 0 and variance 1, and the mean and standard deviation (d,) of before."""
    shift = features.mean(dim=0)
    centred = features - shift
    scale = centred.square().mean(dim=0).clamp_min(1e-12).sqrt()
    if not torch.isfinite(shift + scale).all():
        raise ValueError("features hold NaN, infinite or far too large values; leave them out")
    return centred / scale, shift, scale


def _fewer(features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features (m, d) in at most m coordinates, and the way back (m, d): None if there is no need.

    The optimum of a penalised head is a combination of its images, so it lies in their span.
    """
    images, size = features.shape
    if images >= size:
        return features, None
    basis, triangle = torch.linalg.qr(features.mT)  # (d, m), (m, m)
    return triangle.mT.contiguous(), basis.mT
