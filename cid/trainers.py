"""Ways to train linear heads: by weights, by a robust risk, twice, or on balanced subsets.

The registry (:mod:`cid.methods`) says which kind of training a method is of, :class:`HeadOptions`
holds the settings of all kinds, and :func:`fit_method` fits one method for many seeds at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cid import risks
from cid.heads import Design, Heads, fit_heads
from cid.names import find
from cid.options import HeadOptions

# Methods fitted in one stack. A stack is never smaller, but filled up: with the number of heads the
# shapes of the products would change, and with them the last bits of every head.
STACK = 4


@dataclass(frozen=True)
class Cell:
    """Training sets of some seeds, and how heads are fitted to them.

    Weights and groups of a cell have shape (seeds, n), over all images: the weight is 0 off a seed's
    training set, where the group may be any code.
    """

    seeds: np.ndarray  # (seeds,); whatever is drawn at random is a function of them
    features: np.ndarray  # these four are of all images, and as in fit_heads
    labels: np.ndarray
    design: Design
    l2: float
    options: HeadOptions
    progress: str | None = None

    def sampled(self, weights) -> np.ndarray:
        """Weights as they act: themselves, or how often a sampler with them draws each image."""
        weights = np.asarray(weights, dtype=np.float32)
        if self.options.through == "loss":
            return weights
        counts = np.zeros_like(weights)
        for row, seed in enumerate(self.seeds):
            chance = weights[row].astype(np.float64)
            rng = np.random.default_rng([int(seed), 1])
            counts[row] = rng.multinomial(np.count_nonzero(chance), chance / chance.sum())
        return counts

    def fit(self, weights, l2: float | None = None, **more) -> Heads:
        """:func:`cid.heads.fit_heads` of the cell under weights of shape (heads, n)."""
        how = {"design": self.design, "progress": self.progress, **more}
        return fit_heads(self.features, self.labels, weights, l2 or self.l2, **how)


def fit_method(cell: Cell, kind: str, weights, groups=None) -> Heads:
    """Train a method, whose ``kind`` is a key of :data:`TRAINERS`, on every training set of a cell.

    ``weights`` and ``groups`` are (seeds, n); groups are any codes from 0 for "group-dro", identities
    for "retrain". Returns one head a seed. Errors: an unknown kind, missing groups, and those of
    :func:`cid.heads.fit_heads`.
    """
    trainer, grouped = find("training kind", kind, TRAINERS), kind in ("group-dro", "retrain")
    if groups is None and grouped:
        raise ValueError(f"training of the kind {kind} needs groups and none were given")
    return trainer(cell, cell.sampled(weights), groups if grouped else None)


def fit_weighted(cell: Cell, stack) -> list[Heads]:
    """Train several methods of the kind "weighted", whose weights are a stack (methods, seeds, n).

    A method's heads are those of :func:`fit_method` to the byte, whatever stands beside it, as long
    as all methods train on the same images; it only takes less time.
    """
    return _fit_stacked(cell, [cell.sampled(weights) for weights in stack])


def _fit_stacked(cell: Cell, stack: list[np.ndarray]) -> list[Heads]:
    if cell.options.through == "sampler":  # which images are drawn differs, and with it the shapes
        return [cell.fit(weights) for weights in stack]
    found, size = [], len(cell.seeds)
    for first in range(0, len(stack), STACK):
        part = stack[first : first + STACK]
        heads = cell.fit(np.concatenate(part + part[:1] * (STACK - len(part))))
        found += [heads.rows(slice(k * size, (k + 1) * size)) for k in range(len(part))]
    return found


def _weighted(cell: Cell, weights, groups) -> Heads:
    return _fit_stacked(cell, [weights])[0]


def _just_train_twice(cell: Cell, weights, groups) -> Heads:
    """JTT: see :func:`cid.risks.jtt_weights`.

    The first model is kept from learning the hard images by a strong penalty, where the paper stops
    its training early.
    """
    first = cell.fit(weights, l2=cell.options.jtt_l2)
    wrong = (first.logits(cell.features) > 0) != (cell.labels == 1)
    more = np.float32(cell.options.jtt_upweight)
    return cell.fit(weights * np.where(wrong, more, np.float32(1)))


def _learning_from_failure(cell: Cell, weights, groups) -> Heads:
    """LfF: see :func:`cid.risks.relative_difficulty`.

    The paper moves both models together, step by step; with heads that can be fitted to the end, the
    relative difficulty is taken from finished heads, and a few times anew.
    """

    def losses(heads):
        return np.logaddexp(0, -heads.logits(cell.features) * np.where(cell.labels == 1, 1, -1))

    biased = losses(cell.fit(weights, risk=risks.generalised_cross_entropy(cell.options.lff_q)))
    heads = cell.fit(weights)
    for _ in range(cell.options.lff_rounds):
        difficulty = risks.relative_difficulty(biased, losses(heads)).numpy()
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
            chosen = balanced_subset(groups[row], cell.labels, weights[row] > 0, rng)
            draws.append(weights[row] * chosen)
    heads = cell.fit(np.stack(draws))
    shape = (cell.options.draws, len(weights))
    return Heads(
        heads.weight.reshape(*shape, -1).mean(axis=0),
        heads.bias.reshape(shape).mean(axis=0),
        heads.iterations,
        heads.gradient.reshape(shape).max(axis=0),
    )


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
        raise ValueError(
            "no identity of a training set has images of both classes, so last-layer retraining has "
            "nothing to balance; lower the bias level or leave last-layer out of the methods"
        )
    return keep


def _robust(risk: Callable):
    """Training by the risk that ``risk`` makes of the options."""
    return lambda cell, weights, groups: cell.fit(weights, risk=risk(cell.options), groups=groups)


# (cell, weights (seeds, n) as they act, groups (seeds, n) or None) -> Heads, one a seed
TRAINERS = {
    "weighted": _weighted,
    "cvar-dro": _robust(lambda options: risks.cvar_risk(options.alpha)),
    "kl-dro": _robust(lambda options: risks.tilted_risk(options.tilt)),
    "group-dro": _robust(lambda options: partial(risks.group_risk, options.group_tilt)),
    "jtt": _just_train_twice,
    "lff": _learning_from_failure,
    "retrain": _retrained,
}
