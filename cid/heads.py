"""Fit many linear heads on cached features as one stacked computation.

A *head* is one L2-regularised logistic regression: one method on one biased training set. All heads
read the same features. They differ in their sample weights, which are 0 outside the training set, and
in the *risk* (:mod:`cid.risks`) that aggregates the losses of the images. So every method for every
seed is a few joint optimisations. Heads that train on the same images share their Gram matrix, and
then the cost of a step no longer depends on the number of features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from cid import curvature
from cid.arrays import array, as_tensor, class_codes, pick_device, reals
from cid.curvature import Curvature, leading_eigenvectors, padded, product
from cid.lbfgs import minimise
from cid.moved import forwarder
from cid.risks import mean_risk
from cid.settings import Count, Positive, checked

# Numbers held at once, of Gram matrices and training sets: 1 GiB as float32.
HELD = 2**28
# Training sets are padded to a multiple of this many images. A processor handles whole vectors of
# numbers at once and rounds the rest of a row in another way, so without padding the last bits of a
# head would depend on its place.
LANES = 32
SAMPLE = 2**13  # images, at least, from which the curvature of more is estimated

MOVED = {"Design": "cid.heads.StandardisedFeatures"}
__getattr__ = forwarder(__name__, MOVED)


@dataclass(frozen=True)
class Heads:
    """Linear heads: ``logit = features @ weight.T + bias``."""

    weight: np.ndarray  # float32 (h, d)
    bias: np.ndarray  # float32 (h,)
    iterations: int  # optimiser steps until every head had converged
    gradient: (
        np.ndarray
    )  # float64 (h,): final norm of the objective's gradient over the initial one

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Compute the logit of class 1 under every head, float32 (h, n)."""
        features = as_tensor(features, "features", 2).float()
        return (torch.from_numpy(self.weight) @ features.T).numpy() + self.bias[:, None]

    def rows(self, which: slice) -> Heads:
        """Select some of the heads."""
        return Heads(
            weight=self.weight[which],
            bias=self.bias[which],
            iterations=self.iterations,
            gradient=self.gradient[which],
        )

    @staticmethod
    def joined(parts: list[Heads]) -> Heads:
        """Concatenate the heads of several calls."""
        return Heads(
            weight=np.concatenate([heads.weight for heads in parts]),
            bias=np.concatenate([heads.bias for heads in parts]),
            iterations=max(int(heads.iterations) for heads in parts),
            gradient=np.concatenate([heads.gradient for heads in parts]),
        )


@dataclass(frozen=True)
class OwnUnits:
    """The m images of one training set, standardised by their own mean and standard deviation."""

    features: Tensor  # (m, d)
    shift: Tensor  # (d,): their mean, in units of :attr:`StandardisedFeatures.features`
    scale: Tensor  # (d,): their standard deviation, likewise


@dataclass(frozen=True)
class GramStack:
    """Training sets that are fitted together, with their Gram matrices."""

    gram: Tensor  # (sets, size, size): X X^T of each training set, 0 beyond its images
    signs: Tensor  # (sets, 1, size): labels as -1 and 1, 0 beyond the images
    sets: list[OwnUnits]
    curvature: Curvature | None

    def numel(self) -> int:
        """Count the numbers in memory."""
        features = sum(own.features.numel() for own in self.sets)
        curvature = 0 if self.curvature is None else self.curvature.numel()
        return self.gram.numel() + features + curvature


class StandardisedFeatures:
    """Features and labels prepared once for many calls of :func:`fit_heads`.

    Keeps the standardised features and, as far as memory allows, the training sets met so far with
    their Gram matrices, for other methods and settings on the same images.

    Parameters
    ----------
    features : array, shape (n, d)
        Of all images; used as float32.
    labels : array, shape (n,)
        0 or 1.
    rows : int or bool array, optional
        The images that can be trained on; by default all.
    device : str
        As in :func:`cid.detection.detect`.

    Raises
    ------
    ValueError
        If shapes disagree, labels are not 0 and 1, rows do not exist, or features are not finite.
    """

    def __init__(self, features, labels, rows=None, device: str = "auto"):
        device = pick_device(device)
        features = as_tensor(features, "features", 2)
        class_codes(labels, len(features))  # for its checks
        labels = array("labels", labels)
        if not set(np.unique(labels)) <= {0, 1}:
            raise ValueError(f"labels hold {np.unique(labels)[:5].tolist()}; 0 and 1 are needed")
        features = features.to(device, torch.float32)
        # Statistics of all trainable images bring the values near enough to unit scale for float32;
        # every head is then standardised exactly by its own training images.
        try:
            trainable = features
            if rows is not None:
                trainable = features[torch.as_tensor(rows, device=device)]
        except IndexError as error:
            raise ValueError(f"rows are no rows of {len(features)} features ({error})") from None
        self.centre = trainable.mean(dim=0)
        squares = (trainable - self.centre).square_()
        self.spread = squares.mean(dim=0).sqrt_().clamp_min(1e-6)
        del trainable, squares
        if not torch.isfinite(self.centre + self.spread).all():
            raise ValueError("features hold NaN, infinite or far too large values; leave them out")
        self.features = (features - self.centre).div_(self.spread)
        self.signs = torch.as_tensor(labels.astype(float) * 2 - 1).to(device, torch.float32)
        self._kept: dict[tuple, GramStack | Curvature] = {}  # the least recently used first
        self._lock = Lock()  # threads can share one object

    def in_own_units(self, rows: Tensor) -> OwnUnits:
        """Standardise the images of a training set by their own statistics."""
        features = self.features[rows]
        shift = features.mean(dim=0)
        scale = ((features**2).mean(dim=0) - shift**2).clamp_min(1e-6).sqrt()
        return OwnUnits(features.sub_(shift).div_(scale), shift, scale)

    def gram_stack(self, sets: list[Tensor], size: int, curved: bool = False) -> GramStack:
        """Return the Gram matrices of training sets, computed now or kept from an earlier call.

        ``sets`` holds the rows of each; ``size`` is the number of images that all are padded to. With
        ``curved`` the stack has their curvature.
        """

        def compute() -> GramStack:
            gram = self.features.new_zeros(len(sets), size, size)
            signs = self.features.new_zeros(len(sets), 1, size)
            standardised = [self.in_own_units(rows) for rows in sets]
            for place, (rows, own) in enumerate(zip(sets, standardised, strict=True)):
                count = len(rows)
                gram[place, :count, :count] = product(own.features, own.features.T)
                signs[place, 0, :count] = self.signs[rows]
            found = _dual_curvature(gram, signs) if curved else None
            return GramStack(gram, signs, standardised, found)

        key = (size, curved, *(rows.cpu().numpy().tobytes() for rows in sets))
        return self.kept(key, compute)

    def curvature(self, used: Tensor) -> Curvature:
        """Return the curvature of the images ``used``, computed now or kept from an earlier call."""
        key = ("curvature", used.cpu().numpy().tobytes())
        return self.kept(key, lambda: _primal_curvature(self, used))

    def kept(self, key: tuple, compute: Callable):
        """Return what an earlier call with this key has computed, or compute it; memory has a limit."""
        with self._lock:
            value = self._kept.pop(key, None)
        if value is None:
            value = compute()
        with self._lock:
            held = sum(other.numel() for other in self._kept.values())
            while self._kept and held + value.numel() > HELD:
                least_recently_used = next(iter(self._kept))
                held -= self._kept.pop(least_recently_used).numel()
            self._kept[key] = value
        return value


def fit_heads(
    features, labels, sample_weights, l2, *, risk: Callable = mean_risk, groups=None,
    offset=None, flipped=None, standardised_by=None, room: int = 1, tolerance: float = 1e-5, max_iterations: int = 500,
    strict: bool = True, design: StandardisedFeatures | None = None, device: str = "auto", progress: str | None = None,
) -> Heads:  # fmt: skip
    """Fit one L2-regularised logistic regression for every row of sample weights, all together.

    Head h minimises ``risk_i(softplus(-y_i (w . x_i + b))) + l2 / 2 |w|^2`` over w and b. The risk is
    the mean under weights ``s_hi / sum_i s_hi``, or what ``risk`` makes of these losses and weights; y
    is +1 or -1. The features x are standardised by the head's own training images (those of positive
    weight, each counted once), so no statistic of a test image enters. Heads are returned in the
    units of ``features``.

    The bytes of a head depend on which images any head trains on and, above ``room``, on how many
    are fitted together, because these decide the shapes of the products. They do not depend on the
    other heads or on the head's place.

    Parameters
    ----------
    features, labels
        As in :class:`StandardisedFeatures`.
    sample_weights : array, shape (h, n)
        Non-negative; 0 keeps an image out of the head's training set.
    l2 : float, or array of shape (h,)
        Strength of the L2 penalty on standardised features, > 0, of all heads or of each of several.
    risk : callable
        A :data:`cid.risks.Risk`. With ``groups``: a function of the groups of the images in use, int
        (h, m), that returns one.
    groups : int array, shape (h, n), optional
    offset : float array, shape (h, n), optional
        Added to the logits of the images during fitting, and not part of the head: the logits of a
        model that the head corrects, or those it must not learn again.
    flipped : float array, shape (h, n), optional
        The share of an image, in [0, 1], that counts under the other label.
    standardised_by : bool array, shape (n,), optional
        Images by which every head standardises, whether it trains on them or not, in the place of its
        own training images; these must be among them.
    room : int
        Products are padded to this many heads, or a multiple.
    tolerance : float
        A head has converged when the norm of its gradient is this fraction of the initial one.
    max_iterations : int
    strict : bool
        Refuse heads that have not converged; otherwise :attr:`Heads.gradient` tells.
    design : StandardisedFeatures, optional
        Of these features and labels, to share what other calls have computed.
    device : str
        As in :func:`cid.detection.detect`; with ``design``, its device.
    progress : str, optional
        Label of a progress bar.

    Raises
    ------
    ValueError
        If shapes disagree, l2 <= 0, a head lacks a class, or the heads do not converge.

    Examples
    --------
    >>> features = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> labels = [0, 0, 1, 1]
    >>> weights = [[1, 1, 1, 1], [0, 1, 1, 1]]  # two heads; the second leaves out an image
    >>> heads = fit_heads(features, labels, weights, l2=0.1)
    >>> (heads.logits(features) > 0).astype(int)
    array([[0, 0, 1, 1],
           [0, 0, 1, 1]])
    """
    sample_weights = as_tensor(sample_weights, "sample weights").cpu().numpy()
    shape = np.shape(features)
    fits_design = design is None or shape == design.features.shape
    if sample_weights.shape[1:] != shape[:1] or not fits_design:
        given = f"features {shape} and sample weights {sample_weights.shape}"
        if design is not None:
            given += f", a design of features {tuple(design.features.shape)}"
        raise ValueError(f"{given} disagree; (n, d) and (heads, n) are needed")
    if design is None:
        trained_on = (sample_weights != 0).any(axis=0)
        rows = trained_on if trained_on.any() else None
        design = StandardisedFeatures(features, labels, rows, device)
    device = design.features.device
    weights = torch.as_tensor(sample_weights, dtype=torch.float32, device=device)
    l2 = _penalties(l2, weights)
    tolerance = checked("tolerance", tolerance, Positive)
    max_iterations = checked("max_iterations", max_iterations, Count)
    room = checked("room", room, Count)
    _check_weights(design, weights)
    weights = weights / weights.sum(dim=1, keepdim=True)
    groups = _per_image("groups", groups, 0, 1e9, torch.int64, weights)
    offset = _per_image("offset", offset, -1e30, 1e30, torch.float32, weights)
    flipped = _per_image("flipped", flipped, 0, 1, torch.float32, weights)
    member = weights > 0
    if standardised_by is not None:
        member = _members(standardised_by, member)

    # A head has n training images and d features. Two ways lead to the same optimum:
    #
    # (A) n > d, the primal: the unknowns are the d weights and the bias. A step takes two products
    #     with the features, n d multiplications each: logits = X w + b, and the gradient X^T slope,
    #     where slope_i is the derivative of the risk by the logit of image i.
    #
    # (B) n <= d, the dual: at the optimum the gradient vanishes, X^T slope + l2 w = 0, so w is a
    #     combination w = X^T a of the training images. In the n unknowns a (and the bias) the logits
    #     are X X^T a + b = K a + b, and |w|^2 = a^T K a. The Gram matrix K (n, n) is computed once
    #     for each training set and shared by all heads on it. After that a step takes one product of
    #     n^2 multiplications, whatever d is.
    #
    # The optimiser sees the inner products of (w, b) in both. Heads start from a reference and share its
    # curvature (cid.curvature) in both, but for two cases, which start at 0: a correction (offset) is small;
    # and with images that only standardise, a reference would know labels that a head must not know, and
    # one that stops short of its optimum would keep a trace of them.
    images = int(member.sum(dim=1).max())
    fit = _fit_dual if images <= design.features.shape[1] else _fit_primal
    with torch.autocast(device.type, enabled=False):  # it would not converge in half precision
        own_weight, own_bias, steps, relative = fit(
            design,
            weights,
            member,
            l2=l2,
            risk=risk,
            groups=groups,
            offset=offset,
            flipped=flipped,
            room=room,
            from_reference=offset is None and standardised_by is None,
            tolerance=tolerance,
            max_iterations=max_iterations,
            progress=progress,
        )
    worst = float(relative.max())
    if strict and not worst <= tolerance:
        raise ValueError(
            f"{int((relative > tolerance).sum())} of {len(weights)} heads have not converged after "
            f"{steps} steps (gradient {worst:.1e} of the initial one, {tolerance:.0e} wanted); "
            "raise train.l2 or max_iterations"
        )
    # From standardised features back to the caller's units.
    weight = own_weight / design.spread
    bias = own_bias - (weight * design.centre).sum(1)
    return Heads(
        weight=weight.cpu().numpy(),
        bias=bias.cpu().numpy(),
        iterations=steps,
        gradient=relative.cpu().double().numpy(),
    )


# --- the primal: unknowns are the weights ---------------------------------------------------------


@dataclass(frozen=True)
class _PrimalProblem:
    """Heads over (w, b), all on the same m images, for :func:`cid.lbfgs.minimise`.

    The weights w belong to features that are standardised by each head's own training images. So
    that all heads can share one product with ``features``, it is done with v = w / scale instead:
    ``w . (x - shift) / scale = v . x - v . shift``.
    """

    features: Tensor  # (m, d)
    signs: Tensor  # (m,): labels as -1 and 1
    weights: Tensor  # (h, m): of row sum 1
    shift: Tensor  # (h, d): mean of each head's own training images
    scale: Tensor  # (h, d): and standard deviation
    l2: Tensor  # (h, 1)
    risk: Callable
    offset: Tensor | float  # (h, m), or 0
    flipped: Tensor | None  # (h, m)
    room: int

    def objective(self, unknowns: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the values (h,) and gradients (h, d + 1) at unknowns (h, d + 1)."""
        heads = len(unknowns)
        w = unknowns[:, :-1]
        b = unknowns[:, -1:]
        v = w / self.scale
        products = (padded(v, self.room) @ self.features.T)[:heads]
        logits = products + (b - (v * self.shift).sum(1, keepdim=True))
        margins = (logits + self.offset) * self.signs
        losses, pull = _losses(margins, self.flipped)
        value, share = self.risk(losses, self.weights)
        loss = value + 0.5 * self.l2[:, 0] * (w * w).sum(1)

        slope = -share * pull * self.signs  # the derivative by the logits
        total = slope.sum(1, keepdim=True)
        products = (padded(slope, self.room) @ self.features)[:heads]
        w_slope = (products - total * self.shift) / self.scale
        gradient = torch.cat([w_slope + self.l2 * w, total], dim=1)
        return loss, gradient

    @staticmethod
    def dot(left: Tensor, right: Tensor) -> Tensor:
        """Compute the inner products (h,) of the rows of two (h, d + 1)."""
        return (left * right).sum(1)


def _primal_curvature(design: StandardisedFeatures, used: Tensor) -> Curvature:
    """Fit the reference of some images and find the curvature around it, over weights.

    Of many images every so manieth is used, :data:`SAMPLE` to twice as many: a preconditioner need not be
    exact.
    """
    sample = used[:: max(1, len(used) // SAMPLE)]
    own = design.in_own_units(sample)
    images, size = own.features.shape
    even = own.features.new_full((1, images), 1 / images)
    problem = _PrimalProblem(
        features=own.features,
        signs=design.signs[sample],
        weights=even,
        shift=torch.zeros_like(own.shift)[None],
        scale=torch.ones_like(own.scale)[None],
        l2=even.new_full((1, 1), curvature.L2),
        risk=mean_risk,
        offset=0,
        flipped=None,
        room=1,
    )
    reference = _reference(problem, even.new_zeros(1, size + 1))
    slope = even[0] * _variance(own.features @ reference[0, :-1] + reference[0, -1])

    def times(vectors: Tensor) -> Tensor:
        return (own.features.T @ (slope[:, None] * (own.features @ vectors[0])))[None]

    rank = min(curvature.RANK, -(-size // 4))
    eigenvalues, vectors = leading_eigenvectors(times, reference, size, rank)
    rest = (slope @ (own.features**2).sum(dim=1) - eigenvalues.sum()) / max(size - rank, 1)
    # The bias of the reference is that of features in the units of the design, like those of heads.
    weight = reference[0, :-1] / own.scale
    bias = reference[0, -1:] - own.shift @ weight
    return Curvature(
        reference=torch.cat([weight, bias])[None],
        measure=vectors,
        spread=vectors.mT.contiguous(),
        eigenvalues=eigenvalues,
        rest=rest.clamp_min(0)[None],
        total=slope.sum()[None],
    )


def _fit_primal(
    design: StandardisedFeatures,
    weights: Tensor,
    member: Tensor,
    *,
    l2: Tensor,
    risk: Callable,
    groups: Tensor | None,
    offset: Tensor | None,
    flipped: Tensor | None,
    room: int,
    from_reference: bool,
    tolerance: float,
    max_iterations: int,
    progress: str | None,
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Fit heads over their weights: for more images than features.

    ``weights``, ``groups``, ``offset`` and ``flipped`` are (h, n), ``l2`` is (h, 1); the weights have
    row sums 1. ``member``, bool (h, n), are the images that standardise: those of positive weight or more.

    Returns
    -------
    weight (h, d), bias (h,)
        In units of ``design.features``.
    steps, relative
        As from :func:`cid.lbfgs.minimise`.
    """
    # Only images that some head trains on take part, padded by copies of weight 0.
    used = torch.nonzero(member.any(dim=0))[:, 0]
    shared = design.curvature(used) if from_reference else None
    padding = -len(used) % LANES
    used = torch.cat([used, used[:1].expand(padding)])
    features = design.features[used]
    weights = weights[:, used]
    weights[:, len(used) - padding :] = 0

    # Mean and standard deviation of the images that standardise, each image counted once.
    member = member[:, used].float()
    member[:, len(used) - padding :] = 0
    member /= member.sum(dim=1, keepdim=True)
    member = padded(member, room)
    heads = len(weights)
    shift = (member @ features)[:heads]
    scale = ((member @ features**2)[:heads] - shift**2).clamp_min(1e-6).sqrt()

    problem = _PrimalProblem(
        features=features,
        signs=design.signs[used],
        weights=weights,
        shift=shift,
        scale=scale,
        l2=l2,
        risk=risk if groups is None else risk(groups[:, used]),
        offset=0 if offset is None else offset[:, used],
        flipped=None if flipped is None else flipped[:, used],
        room=room,
    )
    start = weights.new_zeros(heads, features.shape[1] + 1)
    how = {}
    if from_reference:
        how["norm_before"] = _norm(problem, start)
        how["precondition"] = shared.preconditioner(l2, room, torch.matmul)
        # The reference in each head's own units.
        weight, bias = shared.reference[:, :-1], shared.reference[:, -1:]
        start = torch.cat([weight * scale, bias + (weight * shift).sum(1, keepdim=True)], dim=1)
    unknowns, steps, relative = minimise(
        problem.objective,
        problem.dot,
        start,
        tolerance=tolerance,
        max_iterations=max_iterations,
        progress=progress,
        **how,
    )
    v = unknowns[:, :-1] / scale
    bias = unknowns[:, -1] - (v * shift).sum(1)
    return v, bias, steps, relative


# --- the dual: unknowns are coefficients of the training images -----------------------------------


@dataclass(frozen=True)
class _DualProblem:
    """Heads over (a, K a, b), for :func:`cid.lbfgs.minimise`.

    The heads form a stack: ``sets`` training sets, with ``slots`` heads each, of ``size`` images (the
    rest is padded with weight 0). K a is kept beside a: it changes linearly with it, so only the
    gradient needs a product with the Gram matrix. With w = X^T a, the inner product of two (w, b) is
    ``a . K a' + b b'``.
    """

    gram: Tensor  # (sets, size, size): K
    signs: Tensor  # (sets, 1, size): labels as -1 and 1, 0 beyond the images
    weights: Tensor  # (sets, slots, size)
    offset: Tensor  # (sets, slots, size)
    flipped: Tensor | None  # (sets * slots, size)
    l2: Tensor  # (sets * slots, 1)
    risk: Callable
    room: int  # slots that products are padded to

    def objective(self, unknowns: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the values (h,) and gradients (h, 2 size + 1), where h = sets * slots."""
        size = self.gram.shape[1]
        a, k_a, b = unknowns.split([size, size, 1], dim=1)
        logits = (k_a + b).view(self.weights.shape)
        margins = ((logits + self.offset) * self.signs).flatten(0, 1)
        losses, pull = _losses(margins, self.flipped)
        value, share = self.risk(losses, self.weights.flatten(0, 1))
        loss = value + 0.5 * self.l2[:, 0] * (a * k_a).sum(1)

        # The gradient by w is X^T slope + l2 X^T a: again a combination of the images.
        slope = (-share * pull).view(self.weights.shape) * self.signs
        slots = slope.shape[1]
        k_slope = product(padded(slope, self.room), self.gram)[:, :slots].flatten(0, 1)
        slope = slope.flatten(0, 1)
        gradient = torch.cat(
            [slope + self.l2 * a, k_slope + self.l2 * k_a, slope.sum(1, keepdim=True)], dim=1
        )
        return loss, gradient

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Compute the inner products (h,) of the rows of two (h, 2 size + 1)."""
        size = self.gram.shape[1]
        products = (left[:, :size] * right[:, size:-1]).sum(1)
        return products.addcmul_(left[:, -1], right[:, -1])


def _fit_dual(
    design: StandardisedFeatures,
    weights: Tensor,
    member: Tensor,
    *,
    l2: Tensor,
    risk: Callable,
    groups: Tensor | None,
    offset: Tensor | None,
    flipped: Tensor | None,
    room: int,
    from_reference: bool,
    tolerance: float,
    max_iterations: int,
    progress: str | None,
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Fit heads over coefficients of their training images: for more features than images.

    Arguments and results are those of :func:`_fit_primal`.
    """
    heads_by_set = _heads_by_training_set(member)
    most_images = int(member.sum(dim=1).max())
    size = LANES * -(-most_images // LANES)  # rounded up
    sets_at_once = max(1, HELD // size**2)
    room_in_set = -(-room // len(heads_by_set))  # rounded up

    weight = weights.new_empty(len(weights), design.features.shape[1])
    bias = weights.new_empty(len(weights))
    relative = weights.new_empty(len(weights))
    steps = 0
    for first in range(0, len(heads_by_set), sets_at_once):
        heads = heads_by_set[first : first + sets_at_once]
        rows = [torch.nonzero(member[own[0]])[:, 0] for own in heads]
        stack = design.gram_stack(rows, size, curved=from_reference)
        stacked_weights = _stacked(weights, heads, rows, size)
        if offset is None:
            stacked_offset = torch.zeros_like(stacked_weights)
        else:
            stacked_offset = _stacked(offset, heads, rows, size)
        problem = _DualProblem(
            gram=stack.gram,
            signs=stack.signs,
            weights=stacked_weights,
            offset=stacked_offset,
            flipped=None if flipped is None else _stacked(flipped, heads, rows, size).flatten(0, 1),
            l2=_in_slots(l2, heads),
            risk=risk
            if groups is None
            else risk(_stacked(groups, heads, rows, size).flatten(0, 1)),
            room=room_in_set,
        )
        sets, slots, _ = stacked_weights.shape
        start = weights.new_zeros(sets * slots, 2 * size + 1)
        how = {}
        if from_reference:
            how["norm_before"] = _norm(problem, start)
            how["precondition"] = stack.curvature.preconditioner(problem.l2, room_in_set, product)
            start = stack.curvature.reference.repeat_interleave(slots, dim=0)
        unknowns, steps_taken, stack_relative = minimise(
            problem.objective,
            problem.dot,
            start,
            tolerance=tolerance,
            max_iterations=max_iterations,
            progress=progress,
            **how,
        )
        steps = max(steps, steps_taken)
        a = unknowns[:, :size].view(sets, slots, size)
        b = unknowns[:, -1].view(sets, slots)
        stack_relative = stack_relative.view(sets, slots)
        for place, (own, images) in enumerate(zip(heads, stack.sets, strict=True)):
            coefficients = padded(a[place, :, : len(images.features)], room_in_set)
            weight[own] = (coefficients @ images.features)[: len(own)] / images.scale
            bias[own] = b[place, : len(own)] - (weight[own] * images.shift).sum(1)
            relative[own] = stack_relative[place, : len(own)]
    return weight, bias, steps, relative


def _dual_curvature(gram: Tensor, signs: Tensor) -> Curvature:
    """Fit the reference of training sets and find the curvature around it, over their images."""
    sets, size, _ = gram.shape
    member = (signs != 0).to(gram.dtype)
    weights = member / member.sum(dim=2, keepdim=True)
    problem = _DualProblem(
        gram=gram,
        signs=signs,
        weights=weights,
        offset=torch.zeros_like(weights),
        flipped=None,
        l2=weights.new_full((sets, 1), curvature.L2),
        risk=mean_risk,
        room=1,
    )
    start = weights.new_zeros(sets, 2 * size + 1)
    reference = _reference(problem, start)
    _, k_a, b = reference.split([size, size, 1], dim=1)
    slope = weights[:, 0] * _variance(k_a + b)
    root = slope.sqrt()[:, :, None]

    # X^T D X has the eigenvalues of D^.5 K D^.5, and of a vector v of this it has X^T D^.5 v.
    def times(vectors: Tensor) -> Tensor:
        return root * product(gram, root * vectors)

    images = member.sum(dim=(1, 2))
    rank = min(curvature.RANK, -(-size // 4))
    eigenvalues, vectors = leading_eigenvectors(times, reference, size, rank)
    coefficients = root * vectors / eigenvalues.sqrt()[:, None]
    logits = product(gram, coefficients)
    trace = (slope * gram.diagonal(dim1=1, dim2=2)).sum(dim=1)
    rest = (trace - eigenvalues.sum(dim=1)) / (images - rank).clamp_min(1)
    return Curvature(
        reference=reference,
        measure=coefficients,
        spread=torch.cat([coefficients, logits], dim=1).mT.contiguous(),
        eigenvalues=eigenvalues,
        rest=rest.clamp_min(0),
        total=slope.sum(dim=1),
    )


def _heads_by_training_set(member: Tensor) -> list[np.ndarray]:
    """Group the heads by the images they train on: the numbers of the heads of each training set."""
    images = np.packbits(member.cpu().numpy(), axis=1)
    training_sets, set_of_head = np.unique(images, axis=0, return_inverse=True)
    set_of_head = set_of_head.reshape(-1)
    return [np.flatnonzero(set_of_head == number) for number in range(len(training_sets))]


def _stacked(values: Tensor, heads: list[np.ndarray], rows: list[Tensor], size: int) -> Tensor:
    """Arrange values (h, n) as (sets, slots, size): of each set, its heads and images; 0 elsewhere."""
    slots = max(map(len, heads))
    stack = values.new_zeros(len(heads), slots, size)
    for place, (own_heads, own_rows) in enumerate(zip(heads, rows, strict=True)):
        stack[place, : len(own_heads), : len(own_rows)] = values[own_heads][:, own_rows]
    return stack


def _in_slots(l2: Tensor, heads: list[np.ndarray]) -> Tensor:
    """Arrange the penalties (h, 1) as the heads stand in a stack, (sets * slots, 1); 1 in empty slots."""
    slots = max(map(len, heads))
    stack = l2.new_ones(len(heads), slots, 1)
    for place, own_heads in enumerate(heads):
        stack[place, : len(own_heads)] = l2[own_heads]
    return stack.flatten(0, 1)


# --- what both share ------------------------------------------------------------------------------


def _reference(problem: _PrimalProblem | _DualProblem, start: Tensor) -> Tensor:
    """Fit the reference, roughly: see :mod:`cid.curvature`."""
    return minimise(
        problem.objective,
        problem.dot,
        start,
        tolerance=curvature.TOLERANCE,
        max_iterations=100,
        progress=None,
    )[0]


def _norm(problem: _PrimalProblem | _DualProblem, zero: Tensor) -> Tensor:
    """The norm of the gradient at 0, by which convergence is judged wherever a head starts."""
    gradient = problem.objective(zero)[1]
    return problem.dot(gradient, gradient).clamp_min(1e-30).sqrt()


def _variance(logits: Tensor) -> Tensor:
    """Compute ``p (1 - p)`` of the probabilities p, the second derivative of the cross-entropy."""
    probability = torch.sigmoid(logits)
    return probability * (1 - probability)


def _losses(margins: Tensor, flipped: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropies of the images, and minus their derivatives by the margin."""
    losses = softplus(-margins)
    pull = torch.sigmoid(-margins)
    if flipped is None:
        return losses, pull
    return losses + flipped * margins, pull - flipped


def _penalties(l2, weights: Tensor) -> Tensor:
    """The penalty of every head, (h, 1); a single head takes a number."""
    heads = len(weights)
    if heads == 1 or np.shape(l2) != (heads,):
        l2 = [checked("train.l2", l2, Positive)] * heads
    l2 = reals("l2", l2)
    if not ((l2 > 0) & (l2 <= 1e30)).all():
        raise ValueError("l2 of every head must be a number above 0, 1e30 at most")
    return torch.as_tensor(l2, dtype=torch.float32, device=weights.device)[:, None]


def _members(standardised_by, trained_on: Tensor) -> Tensor:
    """The images that standardise, the same for all heads, bool (h, n)."""
    given = array("standardised_by", standardised_by)
    if given.dtype != bool or given.shape != trained_on.shape[1:]:
        raise ValueError("standardised_by must be true or false for each image")
    member = torch.as_tensor(given, device=trained_on.device).expand_as(trained_on)
    if (trained_on & ~member).any():
        raise ValueError("standardised_by leaves out an image that a head trains on; add it")
    return member


def _per_image(name: str, values, low: float, high: float, dtype: torch.dtype, weights: Tensor):
    """Optional values, one for each head and image, as a tensor like ``weights``; None stays None."""
    if values is None:
        return None
    values = reals(name, values)
    if values.shape != weights.shape or not ((low <= values) & (values <= high)).all():
        raise ValueError(f"{name} must be from {low:g} to {high:g}, one for each head and image")
    return torch.as_tensor(values, dtype=dtype, device=weights.device)


def _check_weights(design: StandardisedFeatures, weights: Tensor) -> None:
    if not (len(weights) and torch.isfinite(weights.sum(1)).all() and (weights >= 0).all()):
        raise ValueError("sample weights hold negative, infinite or NaN values, or are of no head")
    for name, rows in (("1", design.signs > 0), ("0", design.signs < 0)):
        empty = torch.nonzero((weights[:, rows] > 0).sum(1) == 0)
        if len(empty):
            raise ValueError(f"head {int(empty[0])} has no training image of class {name}")


def balanced_subset(people, labels, member, rng: np.random.Generator) -> np.ndarray:
    """Choose a random subset with equally many images of each class in every identity.

    Parameters
    ----------
    people : array (n,)
        Identities.
    labels : int array (n,)
        0 or 1.
    member : bool array (n,)
        The images that can be chosen.

    Returns
    -------
    bool array (n,)

    Raises
    ------
    ValueError
        If no identity has images of both classes.

    Examples
    --------
    >>> people, labels = [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]
    >>> keep = balanced_subset(people, labels, np.ones(5, bool), np.random.default_rng(0))
    >>> int(keep.sum()), bool(keep[2])
    (2, True)
    """
    people = np.unique(people, return_inverse=True)[1]
    order = rng.permutation(np.flatnonzero(member))
    group = 2 * people[order] + np.asarray(labels)[order]  # one for each person and class
    sizes = np.bincount(group, minlength=2 * people.max() + 2)
    order = order[np.argsort(group, kind="stable")]  # group after group, each in random order
    place_in_group = np.arange(len(order)) - np.repeat(sizes.cumsum() - sizes, sizes)
    smaller_class = sizes.reshape(-1, 2).min(axis=1)
    chosen = order[place_in_group < smaller_class[people[order]]]
    keep = np.isin(np.arange(len(people)), chosen)
    if not keep.any():
        raise ValueError(
            "no identity of a training set has images of both classes to balance; "
            "lower the bias level or leave last-layer out of the methods"
        )
    return keep
