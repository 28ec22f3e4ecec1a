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
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import softplus
from tqdm import tqdm

from cid.device import pick_device
from cid.faces import suggest
from cid.methods import METHODS, group_column
from cid.source import code
from cid.store import digest, kept

HISTORY = 10  # pairs an L-BFGS step remembers; more gained nothing on face features
SEEDS = 10  # fitted and kept together: another seed changes no byte of a full block
GRAM = 2**27  # entries of the Gram matrices held at once, 512 MiB


# (losses (h, n), weights (h, n) of row sum 1) -> (risk (h,), its gradient by the losses (h, n))
Risk = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Options:
    """How methods train, beyond their weights; ``train.through`` and ``train.robust`` of params.yaml.

    Attributes
    ----------
    through : {"loss", "sampler"}
        A weight multiplies the image's loss, or its chance in a sample of the training set with
        replacement, of the same size.
    alpha : float in (0, 1]
        CVaR-DRO: the share of worst images whose mean loss counts.
    tilt : float > 0
        KL-DRO: tilt t of ``log(mean(exp(t loss))) / t``.
    group_tilt : float > 0
        GroupDRO: the same tilt over the mean losses of groups; large is the worst group alone.
    jtt_l2, jtt_upweight : float > 0
        JTT: penalty of the first head, and the weight of the images it gets wrong.
    lff_q : float in (0, 1]
        LfF: exponent of the biased model's generalised cross-entropy.
    lff_rounds : int
        LfF: how often relative difficulties are taken anew.
    draws : int
        Last-layer retraining: balanced subsets whose heads are averaged.
    """

    through: str = "loss"
    alpha: float = 0.2
    tilt: float = 3.0
    group_tilt: float = 10.0
    jtt_l2: float = 10.0
    jtt_upweight: float = 2.0
    lff_q: float = 0.7
    lff_rounds: int = 4
    draws: int = 10

    def __post_init__(self):
        if self.through not in ("loss", "sampler"):
            raise ValueError(f"train.through is {self.through!r}; write loss or sampler")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "through" and not value > 0:
                raise ValueError(f"train.robust.{field.name} is {value!r}; it must be above 0")
        if self.alpha > 1:
            raise ValueError(f"train.robust.alpha is {self.alpha}; it is at most 1")

    @classmethod
    def of(cls, robust: dict, through: str = "loss") -> Options:
        """From the parsed section; an unknown key is an error that names the nearest."""
        known = [field.name for field in fields(cls) if field.name != "through"]
        for key in robust:
            if key not in known:
                raise ValueError(f"train.robust.{key} is unknown{suggest(key, known)}")
        return cls(through=through, **robust)


def mean_risk(losses, weights):
    """The weighted mean."""
    return (weights * losses).sum(1), weights


def cvar_risk(share: float, smoothing: float = 0.05) -> Risk:
    """Mean loss of the worst ``share`` of the images, smoothed by entropy.

    The supremum of ``sum q_i l_i - smoothing KL(q | w)`` over ``0 <= q_i <= w_i / share``,
    ``sum q = 1``: the smoothed conditional value at risk of Levy et al., "Large-Scale Methods for
    Distributionally Robust Optimization" (2020, arXiv 2010.05893), which has a gradient everywhere.
    """

    def risk(losses, weights):
        low, high = losses.min(1, keepdim=True).values, losses.max(1, keepdim=True).values
        low = low + smoothing * np.log(share) - smoothing  # there every ratio is at its cap
        for _ in range(40):  # the cut at which the capped weights sum to 1
            middle = (low + high) / 2
            mass = (weights * _capped(losses, middle, smoothing, share)).sum(1, keepdim=True)
            low, high = torch.where(mass > 1, middle, low), torch.where(mass > 1, high, middle)
        ratio = _capped(losses, high, smoothing, share)
        q = weights * ratio
        q = q / q.sum(1, keepdim=True)
        divergence = (q * ratio.clamp_min(1e-30).log()).sum(1)
        return (q * losses).sum(1) - smoothing * divergence, q

    return risk


def _capped(losses, cut, smoothing, share):
    return ((losses - cut) / smoothing).clamp(max=-np.log(share)).exp()


def tilted_risk(tilt: float) -> Risk:
    """``log(mean(exp(tilt loss))) / tilt``, the dual of a KL ball around the training set.

    Li et al., "Tilted Empirical Risk Minimization" (2021, arXiv 2007.01162).
    """

    def risk(losses, weights):
        # In float64: the division by a small tilt would blow up the rounding of the logarithm.
        logs = tilt * losses.double() + weights.double().log()  # log 0 = -inf leaves an image out
        return (logs.logsumexp(1) / tilt).to(losses), logs.softmax(1).to(losses)

    return risk


def group_risk(tilt: float, groups) -> Risk:
    """Tilted mean over groups of each group's weighted mean loss.

    As ``tilt`` grows this is the worst group's loss, the objective of Sagawa et al.,
    "Distributionally Robust Neural Networks" (2020, arXiv 1911.08731); a finite tilt is the entropy
    that their exponentiated-gradient steps put on the group weights, in closed form.

    Parameters
    ----------
    groups : int tensor, shape (h, n)
        Codes from 0; where the weight is 0 any code will do.
    """

    def risk(losses, weights):
        kind, losses, weights = losses, losses.double(), weights.double()  # as in tilted_risk
        size = int(groups.max()) + 1
        empty = torch.zeros(len(losses), size, dtype=losses.dtype, device=losses.device)
        mass = empty.scatter_add(1, groups, weights)
        present = mass > 0
        mean = empty.scatter_add(1, groups, weights * losses) / mass.clamp_min(1e-30)
        logs = (tilt * mean).masked_fill(~present, -torch.inf)
        value = (logs.logsumexp(1) - present.sum(1).double().log()) / tilt
        share = logs.softmax(1) / mass.clamp_min(1e-30)
        return value.to(kind), (weights * share.gather(1, groups)).to(kind)

    return risk


def generalised_cross_entropy(q: float) -> Risk:
    """Mean of ``(1 - p^q) / q`` for cross-entropies ``-log p``: easy images dominate its gradient.

    Zhang & Sabuncu, "Generalized Cross Entropy Loss" (2018, arXiv 1805.07836), which Nam et al. train
    their biased model with.
    """

    def risk(losses, weights):
        p = (-q * losses).exp()
        return (weights * (1 - p)).sum(1) / q, weights * p

    return risk


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


def train_sets(
    sets: pd.DataFrame,
    features,
    labels,
    methods: list[str],
    l2: float,
    options: Options = Options(),
    *,
    design: Design | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    progress: str | None = None,
) -> tuple[pd.DataFrame, Heads]:
    """Train every method on the training set of every seed and score the test images.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`cid.methods.weigh_sets`.
    features : float32 array, shape (n, d)
        Of the whole data set; labels likewise.
    methods : list of str
        Weight columns of ``sets``. A method that is not of the registry is trained by its weights.
    l2 : float
        As in :func:`fit_heads`.
    options : Options
    design : Design, optional
        As in :func:`fit_heads`.
    folder : path, optional
        Where heads are kept, :data:`SEEDS` seeds at a time: a later call takes from it whatever it
        would compute in the same way.

    Returns
    -------
    predictions : pandas.DataFrame
        One row a test image and seed: ``seed``, ``test``, ``row``, and a score (logit of class 1)
        for every method.
    heads : Heads
        In the order (seed, method), methods fastest.
    """
    labels = np.asarray(labels)
    seeds = sets["seed"].unique()
    train, test = sets[sets["part"] == "train"], sets[sets["part"] != "train"]
    columns = [c for m in methods for c in (m, group_column(m)) if c in train]
    about = ""
    if folder is not None:
        data = design.digest if design else digest(features, labels, pick_device(device).type)
        about = digest(data, methods, l2, asdict(options), code(__name__))
    blocks = []
    for start in range(0, len(seeds), SEEDS):
        own = seeds[start : start + SEEDS]
        part = train[train["seed"].isin(own)]

        def fit(part=part, own=own) -> dict:
            ready = design or Design(features, labels, part["row"].unique(), device)
            return _fit_cell(
                Cell(part, own, features, labels, ready, l2, options, progress), methods
            )

        key = digest(about, *(part[c].to_numpy() for c in ("seed", "row", *columns)))
        blocks.append(kept(folder, f"heads-{key[:24]}", fit))
    heads = Heads(
        np.concatenate([block["weight"] for block in blocks]),
        np.concatenate([block["bias"] for block in blocks]),
        max(int(block["iterations"]) for block in blocks),
        np.concatenate([block["gradient"] for block in blocks]),
    )
    scores = heads.logits(features).reshape(len(seeds), len(methods), len(labels))
    place = np.searchsorted(seeds, test["seed"])
    predictions = test[["seed", "part", "row"]].rename(columns={"part": "test"})
    for m, method in enumerate(methods):
        predictions[method] = scores[place, m, test["row"]]
    return predictions.reset_index(drop=True), heads


@dataclass(frozen=True)
class Cell:
    """Training sets of some seeds, and how heads are fitted to them."""

    train: pd.DataFrame
    seeds: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    design: Design
    l2: float
    options: Options
    progress: str | None

    def spread(self, column: str, dtype) -> np.ndarray:
        """A column of the training sets as an array (seeds, n), 0 off the training set."""
        values = np.zeros((len(self.seeds), len(self.labels)), dtype=dtype)
        values[np.searchsorted(self.seeds, self.train["seed"]), self.train["row"]] = self.train[
            column
        ]
        return values

    def weights(self, method: str) -> np.ndarray:
        """Of a method: themselves, or how often a sampler with these weights draws each image."""
        weights = self.spread(method, np.float32)
        if self.options.through == "loss":
            return weights
        counts = np.zeros_like(weights)
        for row, seed in enumerate(self.seeds):
            chance = weights[row].astype(np.float64)
            n = np.count_nonzero(chance)
            counts[row] = np.random.default_rng([int(seed), 1]).multinomial(
                n, chance / chance.sum()
            )
        return counts

    def fit(self, weights, l2=None, **more) -> Heads:
        return fit_heads(
            self.features,
            self.labels,
            weights,
            l2 or self.l2,
            design=self.design,
            progress=self.progress,
            **more,
        )


def _fit_cell(cell: Cell, methods: list[str]) -> dict:
    """Heads of every method for every seed, in the order (seed, method), as a dict of arrays."""
    kinds: dict[str, list[str]] = {}
    for method in methods:
        kind = METHODS[method].training if method in METHODS else "weighted"
        kinds.setdefault(kind, []).append(method)
    fitted: dict[str, Heads] = {}
    size = len(cell.seeds)
    for kind, members in kinds.items():
        if kind == "weighted":  # the bulk of a study: all methods in one stack
            heads = cell.fit(np.concatenate([cell.weights(method) for method in members]))
            for k, method in enumerate(members):
                fitted[method] = heads.rows(slice(k * size, (k + 1) * size))
            continue
        for method in members:
            column = group_column(method)
            groups = cell.spread(column, np.int64) if column in cell.train else None
            fitted[method] = TRAINERS[kind](cell, cell.weights(method), groups)
    stacked = [fitted[m] for m in methods]
    return {
        "weight": np.stack([h.weight for h in stacked], 1).reshape(-1, cell.features.shape[1]),
        "bias": np.stack([h.bias for h in stacked], axis=1).reshape(-1),
        "iterations": np.int64(max(h.iterations for h in stacked)),
        "gradient": np.stack([h.gradient for h in stacked], axis=1).reshape(-1),
    }


def _just_train_twice(cell: Cell, weights, groups) -> Heads:
    """JTT: Liu et al., "Just Train Twice" (2021, arXiv 2107.09044).

    The first model is kept from learning the hard images by a strong penalty, where the paper stops
    its training early.
    """
    first = cell.fit(weights, l2=cell.options.jtt_l2)
    wrong = (first.logits(cell.features) > 0) != (cell.labels == 1)
    more = np.float32(cell.options.jtt_upweight)
    return cell.fit(weights * np.where(wrong, more, np.float32(1)))


def _learning_from_failure(cell: Cell, weights, groups) -> Heads:
    """LfF: Nam et al., "Learning from Failure" (2020, arXiv 2007.02561).

    The paper moves both models together, step by step; with heads that can be fitted to the end, the
    relative difficulty is taken from finished heads, and a few times anew.
    """

    def losses(heads):
        return np.logaddexp(0, -heads.logits(cell.features) * np.where(cell.labels == 1, 1, -1))

    biased = losses(cell.fit(weights, risk=generalised_cross_entropy(cell.options.lff_q)))
    heads = cell.fit(weights)
    for _ in range(cell.options.lff_rounds):
        difficulty = biased / (biased + losses(heads))
        heads = cell.fit(weights * difficulty)
    return heads


def _retrained(cell: Cell, weights, groups) -> Heads:
    """Last-layer retraining: after Kirichenko et al., "Last Layer Re-Training is Sufficient for
    Robustness to Spurious Correlations" (2023, arXiv 2204.02937).

    The features are fixed here anyway, so what remains is their second step: the head is fitted on
    random subsets with as many images of either class in every identity, and averaged over subsets.
    """
    draws = []
    for draw in range(cell.options.draws):
        for row, seed in enumerate(cell.seeds):
            rng = np.random.default_rng([int(seed), draw])
            draws.append(weights[row] * balanced_subset(groups[row], weights[row] > 0, rng))
    heads = cell.fit(np.stack(draws))
    shape = (cell.options.draws, len(weights))
    return Heads(
        heads.weight.reshape(*shape, -1).mean(axis=0),
        heads.bias.reshape(shape).mean(axis=0),
        heads.iterations,
        heads.gradient.reshape(shape).max(axis=0),
    )


def balanced_subset(groups, member, rng) -> np.ndarray:
    """Choose as many images of either class in every identity: bool array, shape (n,).

    Parameters
    ----------
    groups : int array, shape (n,)
        ``2 * identity + class``.
    member : bool array, shape (n,)
        What may be chosen.

    Raises
    ------
    ValueError
        If no identity has images of both classes.
    """
    groups = np.asarray(groups)
    order = rng.permutation(np.flatnonzero(member))
    place = pd.Series(groups[order]).groupby(groups[order]).cumcount().to_numpy()
    size = np.bincount(groups[order], minlength=groups.max() + 2)
    fewest = np.minimum(size[groups[order]], size[groups[order] ^ 1])
    keep = np.zeros(len(groups), dtype=bool)
    keep[order[place < fewest]] = True
    if not keep.any():
        raise ValueError(
            "no identity of a training set has images of both classes, so last-layer retraining has "
            "nothing to balance; lower the bias level or leave last-layer out of the methods"
        )
    return keep


def _cvar_dro(cell: Cell, weights, groups) -> Heads:
    return cell.fit(weights, risk=cvar_risk(cell.options.alpha))


def _kl_dro(cell: Cell, weights, groups) -> Heads:
    return cell.fit(weights, risk=tilted_risk(cell.options.tilt))


def _group_dro(cell: Cell, weights, groups) -> Heads:
    tilt = cell.options.group_tilt
    return cell.fit(weights, risk=lambda codes: group_risk(tilt, codes), groups=groups)


# (cell, weights (seeds, n), groups (seeds, n) or None) -> Heads, one a seed
TRAINERS = {
    "cvar-dro": _cvar_dro,
    "kl-dro": _kl_dro,
    "group-dro": _group_dro,
    "jtt": _just_train_twice,
    "lff": _learning_from_failure,
    "retrain": _retrained,
}


def _lbfgs(objective, dot, theta, tolerance, max_iterations, progress):
    """Minimise many smooth convex functions of equal dimension together by L-BFGS.

    Nocedal & Wright, Numerical Optimization, algorithm 7.4, with one history, step length and
    Armijo backtracking for every row of ``theta``. A row stops moving once converged. ``dot`` gives
    the inner products of two tensors' rows.

    Returns
    -------
    theta : tensor, shape (h, p)
    steps : int
    relative : tensor, shape (h,)
        Gradient norm over the initial gradient norm.
    """

    def norm(rows):
        return dot(rows, rows).clamp_min(0).sqrt()

    loss, gradient = objective(theta)
    initial = norm(gradient).clamp_min(1e-30)
    relative = norm(gradient) / initial
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    gamma, step = torch.ones_like(loss), 1 / initial.clamp_min(1)
    steps = 0
    bar = tqdm(total=max_iterations, desc=progress, disable=progress is None, mininterval=5)
    while steps < max_iterations and bool((relative > tolerance).any()):
        direction = _lbfgs_direction(gradient, pairs, gamma, dot)
        descent = dot(direction, gradient)
        # A row whose history misleads it (rounding, near its optimum) falls back to the gradient.
        uphill = descent >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        descent = torch.where(uphill, -dot(gradient, gradient), descent)
        moving = relative > tolerance
        trial = theta + step[:, None] * direction
        new_loss, new_gradient = objective(trial)
        # The slack is float32 rounding of a loss of order 1. A row whose step was too long tries half
        # of it in the next round, while the others go on: one evaluation a round, whoever fails.
        good = new_loss <= loss + 1e-4 * step * descent + 1e-7 * loss.abs()
        good = moving & (good | (step < 2**-20))
        step = torch.where(good, 1.0, step / 2)
        theta_step = torch.where(good[:, None], trial - theta, 0)
        change = torch.where(good[:, None], new_gradient - gradient, 0)
        sy = dot(theta_step, change)
        rho = torch.where(sy > 1e-12, 1 / sy.clamp_min(1e-12), torch.zeros_like(sy))
        gamma = torch.where(rho > 0, sy / dot(change, change).clamp_min(1e-30), gamma)
        pairs = [*pairs, (theta_step, change, rho)][-HISTORY:]
        theta, gradient = theta + theta_step, gradient + change
        loss = torch.where(good, new_loss, loss)
        relative = norm(gradient) / initial
        steps += 1
        bar.update()
    bar.close()
    return theta, steps, relative


def _lbfgs_direction(gradient, pairs, gamma, dot):
    """Two-loop recursion for every row; a pair of rho 0 is skipped by its row."""
    q = -gradient
    taken = []
    for s, y, rho in reversed(pairs):
        alpha = rho * dot(s, q)
        q = q - alpha[:, None] * y
        taken.append(alpha)
    q = q * gamma[:, None]
    for (s, y, rho), alpha in zip(pairs, reversed(taken), strict=True):
        q = q + (alpha - rho * dot(y, q))[:, None] * s
    return q


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
