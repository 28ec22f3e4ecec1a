"""TODO."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from cid.heads import Design, Heads, fit_heads
from cid.methods import METHODS, group_column
from cid.names import suggest
from cid.risks import cvar_risk, generalised_cross_entropy, group_risk, tilted_risk


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
