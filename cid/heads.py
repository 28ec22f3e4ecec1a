"""Training: many linear heads on cached features as one stacked computation.

A run of the study is a head: one method on one biased training set. All runs read the same features
and differ in their sample weights, which are 0 off the training set, and in the *risk* that makes one
number of the images' losses (:mod:`cid.risks`). So a whole cell of the study, every method times every
seed, is a few optimisations; and what trains on the same images shares their Gram matrix, after which
a step no longer depends on the number of features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch.nn.functional import pad, softplus

from cid.arrays import array, as_tensor, class_codes, pick_device, reals
from cid.lbfgs import minimise
from cid.risks import mean_risk
from cid.settings import Count, Positive, checked

HELD = 2**28  # numbers held at once, of Gram matrices and training sets, 1 GiB
# Images of a stack are padded to a multiple: a processor takes whole vectors of numbers at once and
# rounds the rest of a row in another way, so that a head's last bits would depend on its place.
LANES = 32


@dataclass(frozen=True)
class Heads:
    """Linear heads: ``logit = features @ weight.T + bias``."""

    weight: np.ndarray  # float32 (h, d)
    bias: np.ndarray  # float32 (h,)
    iterations: int  # optimiser steps until every head had converged
    gradient: np.ndarray  # float64 (h,): final norm of the objective's gradient over the initial

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logit of class 1 under every head, float32 of shape (h, n)."""
        features = as_tensor(features, "features", 2).float()
        return (torch.from_numpy(self.weight) @ features.T).numpy() + self.bias[:, None]

    def rows(self, which: slice) -> Heads:
        """Some of the heads."""
        return Heads(self.weight[which], self.bias[which], self.iterations, self.gradient[which])

    @staticmethod
    def joined(parts: list[Heads]) -> Heads:
        """The heads of several, one after the other."""
        names = ("weight", "bias", "gradient")
        whole = {name: np.concatenate([vars(heads)[name] for heads in parts]) for name in names}
        return Heads(**whole, iterations=max(int(heads.iterations) for heads in parts))


class StandardisedFeatures:
    """Features and labels made ready for many calls of :func:`fit_heads`.

    Keeps the standardised features and, as far as memory goes, the training sets met with their Gram
    matrices, for other methods and settings. ``features`` float32 (n, d) and ``labels`` (n,)
    of 0 and 1 are those of all images; ``rows`` (numbers or a mask) may be trained on, all by default.
    """

    def __init__(self, features, labels, rows=None, device: str = "auto"):
        device = pick_device(device)
        features = as_tensor(features, "features", 2)
        class_codes(labels, len(features))  # its checks
        labels = array("labels", labels)
        if not set(np.unique(labels)) <= {0, 1}:
            raise ValueError(f"labels hold {np.unique(labels)[:5].tolist()}; 0 and 1 are needed")
        x = features.to(device, torch.float32)
        # Near enough for float32; each head then corrects by its own training images.
        try:
            some = x if rows is None else x[torch.as_tensor(rows, device=device)]
        except IndexError as error:
            raise ValueError(f"rows are no rows of {len(x)} features ({error})") from None
        self.centre, self.spread = some.mean(dim=0), some.std(dim=0, correction=0).clamp_min(1e-6)
        if not torch.isfinite(self.centre + self.spread).all():
            raise ValueError("features hold NaN, infinite or far too large values; leave them out")
        self.x = (x - self.centre).div_(self.spread)
        self.sign = torch.as_tensor(labels.astype(float) * 2 - 1).to(device, torch.float32)
        self._stacks: dict[tuple, tuple[torch.Tensor, list, int]] = {}
        self._lock = Lock()  # calls of several threads may share a design

    def standardised(self, rows: torch.Tensor):
        """Images standardised by their own statistics, and these: shift and scale, shape (d,)."""
        x = self.x[rows]
        shift = x.mean(dim=0)
        scale = ((x**2).mean(dim=0) - shift**2).clamp_min(1e-6).sqrt()
        return x.sub_(shift).div_(scale), shift, scale

    def stack(self, sets: list[torch.Tensor], size: int):
        """Gram matrices (g, size, size) of sets of rows, 0 beyond them; :meth:`standardised` of each."""
        key = (size, *(rows.cpu().numpy().tobytes() for rows in sets))
        with self._lock:
            found = self._stacks.pop(key, None)
        if found is None:
            grams = self.x.new_zeros(len(sets), size, size)
            ready = [self.standardised(rows) for rows in sets]
            for gram, (x, *_) in zip(grams, ready, strict=True):
                gram[: len(x), : len(x)] = _product(x, x.T)
            found = grams, ready, grams.numel() + sum(x.numel() for x, *_ in ready)
        with self._lock:
            held = sum(numbers for *_, numbers in self._stacks.values())
            while self._stacks and held + found[2] > HELD:  # the longest unused goes first
                held -= self._stacks.pop(next(iter(self._stacks)))[2]
            self._stacks[key] = found
        return found[:2]


def _product(a, b):
    """``a @ b``; on a CPU by NumPy, which is faster, and twice where it sees that b is a.T."""
    return a @ b if a.device.type != "cpu" else torch.from_numpy(a.numpy() @ b.numpy())


def _filled(a, rows: int):
    """With rows of 0 up to a multiple of so many: with their number a product's last bits change."""
    return pad(a, (0, 0, 0, -a.shape[-2] % rows))


def fit_heads(
    features, labels, sample_weights, l2: float, *, risk: Callable = mean_risk, groups=None,
    offset=None, flipped=None, room: int = 1, tolerance: float = 1e-4, max_iterations: int = 500,
    design: StandardisedFeatures | None = None, device: str = "auto", progress: str | None = None,
) -> Heads:  # fmt: skip
    """Fit one L2-regularised logistic regression for every row of sample weights, all together.

    Head h minimises ``risk_i softplus(-y_i (w . x_i + b)) + l2 / 2 |w|^2`` over w and b, where the
    risk is the mean under weights ``s_hi / sum_i s_hi`` or what ``risk`` makes of it, y is +-1 and x
    are the features standardised by the head's own training images (those of positive weight, each
    counted once), so that no statistic of a test image enters. Heads are returned in raw units.

    The bytes of a head depend on which images any head trains on and, above ``room``, on how many are
    fitted together, as these decide the shapes of the products; not on the other heads or on its place.

    Parameters
    ----------
    features, labels
        As in :class:`StandardisedFeatures`.
    sample_weights : array, shape (h, n)
        Non-negative; 0 keeps an image out of the head's training set.
    l2 : float
        Strength of the L2 penalty on standardised features, > 0.
    risk : callable
        A :data:`cid.risks.Risk`; with ``groups`` what makes one of the groups of the images in use.
    groups : int array, shape (h, n), optional
    offset : float array, shape (h, n), optional
        Added to the logits of the images while the head is fitted, and no part of it: the logits of a
        model that it corrects, or those it must not learn again.
    flipped : float array, shape (h, n), optional
        The share of an image, in [0, 1], that counts under the other label.
    room, tolerance, max_iterations
        A head has converged when its gradient norm is ``tolerance`` of the initial one. Products are
        those of ``room`` heads, or a multiple.
    design : StandardisedFeatures, optional
        Of these features and labels, to share what other calls have computed.
    progress : str, optional
        Label of a progress bar.

    Raises
    ------
    ValueError
        On shapes that disagree, l2 <= 0, a head without both classes, or no convergence.
    """
    sample_weights = as_tensor(sample_weights, "sample weights").cpu().numpy()
    shape, of = np.shape(features), design and f", a design of features {tuple(design.x.shape)}"
    if sample_weights.shape[1:] != shape[:1] or of and shape != design.x.shape:
        given = f"features {shape} and sample weights {sample_weights.shape}{of or ''}"
        raise ValueError(f"{given} disagree; (n, d) and (heads, n) are needed")
    used = (sample_weights != 0).any(axis=0)
    design = design or StandardisedFeatures(features, labels, used if used.any() else None, device)
    device = design.x.device
    weights = torch.as_tensor(sample_weights, dtype=torch.float32, device=device)
    l2 = checked("train.l2", l2, Positive)
    tolerance = checked("tolerance", tolerance, Positive)
    max_iterations = checked("max_iterations", max_iterations, Count)
    room = checked("room", room, Count)
    _check(design, weights)
    weights = weights / weights.sum(dim=1, keepdim=True)
    more = {"groups": groups, "offset": offset, "flipped": flipped}
    limits = {"groups": (0, 1e9), "offset": (-1e30, 1e30), "flipped": (0, 1)}
    for name in [name for name, values in more.items() if values is not None]:
        values, (low, high) = reals(name, more[name]), limits[name]
        if values.shape != weights.shape or not ((low <= values) & (values <= high)).all():
            raise ValueError(f"{name} must be from {low:g} to {high:g}, one a head and image")
        kind = torch.int64 if name == "groups" else torch.float32
        more[name] = torch.as_tensor(values, dtype=kind, device=device)

    few = int((weights > 0).sum(dim=1).max()) <= design.x.shape[1]
    how = {"tolerance": tolerance, "max_iterations": max_iterations, "progress": progress}
    fit = _fit_dual if few else _fit_primal
    with torch.autocast(device.type, enabled=False):  # it would not converge in half precision
        v, bias, steps, relative = fit(design, weights, l2, risk, room, how, **more)
    worst = float(relative.max())
    if not worst <= tolerance:
        failed = f"{int((relative > tolerance).sum())} of {len(weights)} heads have not converged"
        left = f"gradient {worst:.1e} of the initial one, {tolerance:.0e} wanted"
        raise ValueError(f"{failed} after {steps} steps ({left}); raise train.l2 or max_iterations")
    raw = v / design.spread
    bias = bias - (raw * design.centre).sum(1)
    return Heads(raw.cpu().numpy(), bias.cpu().numpy(), steps, relative.cpu().double().numpy())


def _fit_primal(design, weights, l2, risk, room, how, groups, offset, flipped):
    """Heads over (w, b), all in one product with the features: for more images than features.

    Returns weight (h, d) and bias (h,) in units of ``design.x``, then as :func:`cid.lbfgs.minimise`.
    """
    used = torch.nonzero((weights > 0).any(dim=0))[:, 0]
    padding = -len(used) % LANES
    used = torch.cat([used, used[:1].expand(padding)])
    x, sign, weights = design.x[used], design.sign[used], weights[:, used]
    weights[:, len(used) - padding :] = 0
    risk = risk if groups is None else risk(groups[:, used])
    offset = 0 if offset is None else offset[:, used]
    flipped = None if flipped is None else flipped[:, used]
    member = (weights > 0).float()
    member /= member.sum(dim=1, keepdim=True)
    member, count = _filled(member, room), len(weights)
    shift = (member @ x)[:count]
    scale = ((member @ x**2)[:count] - shift**2).clamp_min(1e-6).sqrt()

    def objective(theta):
        w, b = theta[:, :-1], theta[:, -1:]
        v = w / scale
        logit = (_filled(v, room) @ x.T)[:count] + (b - (v * shift).sum(1, keepdim=True))
        margin = (logit + offset) * sign
        losses, pull = _losses(margin, flipped)
        value, share = risk(losses, weights)
        loss = value + 0.5 * l2 * (w * w).sum(1)
        slope = -share * pull * sign
        total = slope.sum(1, keepdim=True)
        pulled = ((_filled(slope, room) @ x)[:count] - total * shift) / scale
        gradient = torch.cat([pulled + l2 * w, total], dim=1)
        return loss, gradient

    start = weights.new_zeros(len(weights), x.shape[1] + 1)
    theta, steps, relative = minimise(objective, lambda p, q: (p * q).sum(1), start, **how)
    v = theta[:, :-1] / scale
    return v, theta[:, -1] - (v * shift).sum(1), steps, relative


def _losses(margin, flipped):
    """Losses of the images, and minus their slopes over the margin."""
    if flipped is None:
        return softplus(-margin), torch.sigmoid(-margin)
    return softplus(-margin) + flipped * margin, torch.sigmoid(-margin) - flipped


def _fit_dual(design, weights, l2, risk, room, how, groups, offset, flipped):
    """As :func:`_fit_primal`, over coefficients of the training images: for more features than images.

    The optimum is a combination ``w = X^T a`` of the head's own standardised images, so heads with
    the same training set share its Gram matrix ``K = X X^T``. The vectors are kept as (a, K a, b),
    whose inner product ``a . K a' + b b'`` is that of (w, b): the optimiser takes the same steps.
    """
    support = np.packbits((weights > 0).cpu().numpy(), axis=1)
    supports, place = np.unique(support, axis=0, return_inverse=True)
    members = [np.flatnonzero(place.reshape(-1) == g) for g in range(len(supports))]
    v = weights.new_empty(len(weights), design.x.shape[1])
    bias, relative = weights.new_empty(2, len(weights))
    steps, size = 0, LANES * -(-int((weights > 0).sum(dim=1).max()) // LANES)
    together, places = max(1, HELD // size**2), -(-room // len(members))
    for first in range(0, len(members), together):
        heads = members[first : first + together]
        rows = [torch.nonzero(weights[own[0]] > 0)[:, 0] for own in heads]
        gram, ready = design.stack(rows, size)
        sides = weights.new_zeros(len(heads), 1, size)
        mass = weights.new_zeros(len(heads), max(map(len, heads)), size)
        codes, known = torch.zeros_like(mass, dtype=torch.int64), torch.zeros_like(mass)
        other = None if flipped is None else torch.zeros_like(mass)
        for g, (own, row) in enumerate(zip(heads, rows, strict=True)):
            sides[g, 0, : len(row)] = design.sign[row]
            mass[g, : len(own), : len(row)] = weights[own][:, row]
            for into, values in ((codes, groups), (known, offset), (other, flipped)):
                if values is not None:
                    into[g, : len(own), : len(row)] = values[own][:, row]
        stack_risk = risk if groups is None else risk(codes.flatten(0, 1))
        objective, dot = _dual_problem(gram, sides, mass, known, other, l2, stack_risk, places)
        start = weights.new_zeros(mass[..., 0].numel(), 2 * size + 1)
        theta, done, left = minimise(objective, dot, start, **how)
        steps = max(steps, done)
        a, b = theta[:, :size].view(mass.shape), theta[:, -1].view(mass.shape[:2])
        left = left.view(mass.shape[:2])
        for g, (own, row) in enumerate(zip(heads, rows, strict=True)):
            part, shift, scale = ready[g]
            v[own] = (_filled(a[g, :, : len(row)], places) @ part)[: len(own)] / scale
            bias[own] = b[g, : len(own)] - (v[own] * shift).sum(1)
            relative[own] = left[g, : len(own)]
    return v, bias, steps, relative


def _dual_problem(gram, sides, mass, offset, flipped, l2, risk, places):
    """Objective and inner product over rows (a, K a, b), one a head.

    ``gram`` (g, m, m) and ``sides`` (g, 1, m), +-1, are of sets, ``mass``, ``offset`` and ``flipped``
    (g, slots, m) of heads; the last may be None. ``places`` are rows of a product.
    """
    size, flat = gram.shape[1], mass.flatten(0, 1)
    flipped = None if flipped is None else flipped.flatten(0, 1)

    def objective(theta):
        a, image, b = theta.split([size, size, 1], dim=1)
        margin = (((image + b).view(mass.shape) + offset) * sides).flatten(0, 1)
        losses, pull = _losses(margin, flipped)
        value, share = risk(losses, flat)
        slope = (-share * pull).view(mass.shape) * sides
        image_slope = _product(_filled(slope, places), gram)[:, : slope.shape[1]].flatten(0, 1)
        slope = slope.flatten(0, 1)
        gradient = [slope + l2 * a, image_slope + l2 * image, slope.sum(1, keepdim=True)]
        return value + 0.5 * l2 * (a * image).sum(1), torch.cat(gradient, dim=1)

    def dot(p, q):
        return (p[:, :size] * q[:, size:-1]).sum(1).addcmul_(p[:, -1], q[:, -1])

    return objective, dot


def _check(design, weights) -> None:
    if not (len(weights) and torch.isfinite(weights.sum(1)).all() and (weights >= 0).all()):
        raise ValueError("sample weights hold negative, infinite or NaN values, or are of no head")
    for name, rows in (("1", design.sign > 0), ("0", design.sign < 0)):
        empty = torch.nonzero((weights[:, rows] > 0).sum(1) == 0)
        if len(empty):
            raise ValueError(f"head {int(empty[0])} has no training image of class {name}")


def balanced_subset(people, labels, member, rng: np.random.Generator) -> np.ndarray:
    """Choose as many images of either class in every identity: bool array, shape (n,).

    ``people`` are identities, ``labels`` 0 or 1, and of ``member`` may be chosen, all of shape (n,).
    A ValueError says that no identity has images of both classes.
    """
    people = np.unique(people, return_inverse=True)[1]
    order = rng.permutation(np.flatnonzero(member))
    cell = 2 * people[order] + np.asarray(labels)[order]
    size = np.bincount(cell, minlength=2 * people.max() + 2)
    order = order[np.argsort(cell, kind="stable")]  # cell after cell, each in the order drawn
    place = np.arange(len(order)) - np.repeat(size.cumsum() - size, size)
    fewest = size.reshape(-1, 2).min(axis=1)
    keep = np.isin(np.arange(len(people)), order[place < fewest[people[order]]])
    if not keep.any():
        problem = "no identity of a training set has images of both classes to balance"
        raise ValueError(f"{problem}; lower the bias level or leave last-layer out of the methods")
    return keep
