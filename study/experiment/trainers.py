"""Ways to train linear heads: by weights, by a robust risk, twice, on some of the images, or unbiased.

The registry (:mod:`study.experiment.methods`) says which kind of training a method is of, :class:`HeadOptions`
holds the settings of all kinds, and :func:`fit_method` fits one method for many seeds at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cid import risks
from cid.heads import Heads, StandardisedFeatures, balanced_subset, fit_heads
from cid.names import find
from study.experiment.options import NEEDS, HeadOptions

# Methods fitted in one stack. Products have room for as many whatever their number, as with their shape
# the last bits of every head would change. With fewer images than features what takes time is to go
# through a Gram matrix, and room costs little; with more than 8 rows NumPy would not treat them alike.
STACK, GRAM_STACK = 4, 8
ROWS = 2**14  # of a matrix worked on at once
HELD_OUT = 0.2  # share of the images that AFR and SELF keep for their second step


@dataclass(frozen=True)
class Cell:
    """Training sets of some seeds, and how heads are fitted to them.

    Weights and groups of a cell have shape (seeds, n), over all images: the weight is 0 off a seed's
    training set, where the group may be any code.
    """

    seeds: np.ndarray  # (seeds,); whatever is drawn at random is a function of them
    features: np.ndarray  # these four are of all images, and as in fit_heads
    labels: np.ndarray
    design: StandardisedFeatures
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

    def losses(self, heads: Heads) -> np.ndarray:
        """Cross-entropies ``-log p(label)`` of the images, (heads, n)."""
        return np.logaddexp(0, -heads.logits(self.features) * np.where(self.labels == 1, 1, -1))

    def part(self, weights, share: float) -> np.ndarray:
        """A random ``share`` of either class of every training set, at least one image: bool (seeds, n)."""
        chosen = np.zeros(np.shape(weights), dtype=bool)
        for row, seed in enumerate(self.seeds):
            order = np.random.default_rng([int(seed), 2]).permutation(len(self.labels))
            order = order[weights[row, order] > 0]
            for label in (0, 1):
                own = order[self.labels[order] == label]
                chosen[row, own[: max(1, round(share * len(own)))]] = True
        return chosen


def fit_method(cell: Cell, kind: str, weights, needed=None) -> Heads:
    """Train a method, whose ``kind`` is a key of :data:`TRAINERS`, on every training set of a cell.

    ``weights`` and ``needed`` are (seeds, n); the second is what :data:`study.experiment.options.NEEDS` says of the
    kind: any codes of groups from 0 (for "retrain" of identities), or log-odds of class 1. Returns one
    head a seed. Errors: an unknown kind, what is needed and missing, and those of
    :func:`cid.heads.fit_heads`.
    """
    trainer, name = find("training kind", kind, TRAINERS), NEEDS.get(kind)
    if needed is None and name:
        raise ValueError(f"training of the kind {kind} needs {name} and none were given")
    return trainer(cell, cell.sampled(weights), needed if name else None)


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
    few = np.count_nonzero(stack[0], axis=1).max() <= cell.features.shape[1]
    many = GRAM_STACK if few else STACK
    for first in range(0, len(stack), many):
        part = stack[first : first + many]
        heads = cell.fit(np.concatenate(part), room=many * size)
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
    relative difficulty is taken from finished heads, and a few times anew. The biased head has a
    penalty of its own, as what is easy to learn is a matter of how much may be learnt.
    """

    risk = risks.generalised_cross_entropy(cell.options.lff_q)
    biased = cell.losses(cell.fit(weights, l2=cell.options.lff_l2, risk=risk))
    heads = cell.fit(weights)
    for _ in range(cell.options.lff_rounds):
        difficulty = risks.relative_difficulty(biased, cell.losses(heads)).numpy()
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


def _reweighted(cell: Cell, weights, needed) -> Heads:
    """AFR: Qiu, Potapczynski, Izmailov & Wilson, "Simple and Fast Group Robustness by Automatic Feature
    Reweighting" (2023, arXiv 2306.11074).

    A head is fitted on most of the images. On those held out it is corrected under weights
    ``exp(-gamma p) / n_c``, p the first head's probability of the image's class, n_c the images of that
    class; the penalty is on the difference to the first head.
    """
    held = cell.part(weights, HELD_OUT)
    first = cell.fit(weights * ~held)
    right = np.exp(-cell.losses(first))
    second = weights * held * np.exp(-cell.options.afr_gamma * right)
    return _corrected(cell, first, _per_class(cell, second, held), cell.options.afr_l2)


def _disagreement(cell: Cell, weights, needed) -> Heads:
    """SELF: LaBonte, Muthukumar & Kumar, "Towards Last-Layer Retraining for Group Robustness with Fewer
    Annotations" (2023, arXiv 2309.08534).

    A head is fitted on most of the images, and a second one under a strong penalty, in the place of one
    that was stopped early. The first is corrected on those of the images held out about which the two
    disagree most (KL divergence), as many of either class.
    """
    held, options = cell.part(weights, HELD_OUT), cell.options
    first = cell.fit(weights * ~held)
    stopped = cell.fit(weights * ~held, l2=options.selective_stop_l2)
    p, q = (np.exp(-cell.losses(heads)).clip(1e-7, 1 - 1e-7) for heads in (first, stopped))
    apart = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    chosen = np.zeros_like(held)
    for row in range(len(held)):
        classes = [np.flatnonzero(held[row] & (cell.labels == label)) for label in (0, 1)]
        count = max(1, round(options.selective_share * min(map(len, classes))))
        for own in classes:
            chosen[row, own[np.argsort(-apart[row, own], kind="stable")[:count]]] = True
    return _corrected(cell, first, weights * chosen, options.selective_l2)


def _per_class(cell: Cell, weights, member) -> np.ndarray:
    """Weights over the number of members of an image's class in its set."""
    counts = np.stack([(member & (cell.labels == label)).sum(axis=1) for label in (0, 1)], axis=1)
    return weights / counts[:, np.where(cell.labels == 1, 1, 0)]


def _corrected(cell: Cell, first: Heads, weights, l2: float) -> Heads:
    """Heads refitted under weights, pulled towards what they were: ``l2 / 2`` times the change squared."""
    change = cell.fit(weights, l2=l2, offset=first.logits(cell.features))
    return Heads(
        first.weight + change.weight,
        first.bias + change.bias,
        max(first.iterations, change.iterations),
        np.maximum(first.gradient, change.gradient),
    )


def _cross_risk(cell: Cell, weights, needed) -> Heads:
    """XRM, then GroupDRO: Pezeshki et al., "Discovering Environments with XRM" (2024, arXiv 2309.16748).

    Two heads learn from one half of the images each. Where one is confidently wrong about an image of
    the other's half, the other learns the wrong label with probability ``2 p(wrong) - 1``: here, as
    heads are fitted to the end, an image counts that much under its flipped label, and a few times
    anew. The groups are the class, and whether the head that did not see the image is wrong.
    """
    size, half = len(cell.seeds), cell.part(weights, 0.5)
    twins = np.concatenate([weights * half, weights * ~half])
    flipped = np.zeros_like(twins)
    for _ in range(cell.options.xrm_rounds):
        heads = cell.fit(twins, flipped=flipped)
        seen = np.roll(np.exp(-cell.losses(heads)), size, axis=0)  # of the other head
        flipped = np.clip(1 - 2 * seen, 0, 1).astype(np.float32)
    wrong = np.where(half, seen[:size], seen[size:]) < 0.5
    risk = partial(risks.group_risk, cell.options.xrm_tilt)
    return cell.fit(weights, risk=risk, groups=2 * (cell.labels == 1) + wrong)


def _adjusted(cell: Cell, weights, needed) -> Heads:
    """uLA: Tsirigotis et al., "Group Robust Classification Without Any Group Information" (2023, arXiv
    2310.18555).

    ``needed`` are log-odds of class 1 by a model that knows the bias, here from the proxy embedding.
    They are added to the logits in training and left out afterwards: what they explain is not learnt.
    """
    return cell.fit(weights, offset=cell.options.ula_strength * needed)


def _erased(cell: Cell, weights, needed) -> Heads:
    """Features from which no linear model can tell the groups, by :func:`erasure`; then plain heads."""
    found = []
    for row, group in zip(weights, needed, strict=True):
        member = row > 0
        labels = cell.labels[member]
        clean, centre, spread, tell, shift = _cleaned(cell.features, member, group[member])
        heads = fit_heads(clean, labels, row[None, member], cell.l2)
        del clean  # before the next seed's are made
        weight = (heads.weight - tell @ (shift @ heads.weight[0])) / spread
        bias = heads.bias - weight @ centre
        part = weight.astype(np.float32), bias.astype(np.float32)
        found.append(Heads(*part, heads.iterations, heads.gradient))
    return Heads.joined(found)


def _cleaned(features, member, groups) -> tuple[np.ndarray, ...]:
    """The members' features standardised and free of the groups, float32; then their mean and spread,
    and what was taken off. In place, and in a function that lets go of it: of all of CelebA x is 2.4 GB.
    """
    x = features[member].astype(np.float64)
    centre = x.mean(axis=0)
    x -= centre
    squares = sum((part**2).sum(axis=0) for part in _parts(x))
    spread = np.maximum(np.sqrt(squares / len(x)), 1e-6)
    x /= spread
    tell, shift = erasure(x, groups)
    for part in _parts(x):
        part -= (part @ tell) @ shift
    return x.astype(np.float32), centre, spread, tell, shift


def _parts(x) -> list[np.ndarray]:
    """Views of some rows each, which bounds the memory of what is made of them."""
    return np.split(x, range(ROWS, len(x), ROWS))


def erasure(x, groups, share: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What to take off centred features so that no linear model tells groups apart, with least change.

    LEACE: Belrose et al., "LEACE: Perfect Linear Concept Erasure in Closed Form" (2023, arXiv
    2306.03819). As there are about as many features as images, their covariance S is shrunk towards a
    multiple of the identity by ``share``, as Ledoit & Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices" (2004), unless told. ``x`` is (n, d), ``groups`` (n,). Returns
    ``tell`` (d, k) and ``shift`` (k, d): ``x - x tell shift`` is free of the k groups, where ``tell =
    S^-1 C``, ``shift = (C^T S^-1 C)^+ C^T`` and C (d, k) is the covariance of features and groups.
    """
    (n, d), names = x.shape, np.unique(groups)
    member = (np.asarray(groups)[:, None] == names).astype(float)
    member -= member.mean(axis=0)
    few = n <= d  # S^-1 X^T = X^T (...)^-1: the smaller of the two products has what S is made of
    product = (x @ x.T if few else x.T @ x) / n
    level, square = np.trace(product) / d, (product**2).sum()
    if share is None:
        squares = np.concatenate([(part**2).sum(axis=1) for part in _parts(x)])
        noise = (squares**2).mean() - square
        share = np.clip(noise / n / max(square - d * level**2, 1e-30), 0, 1)
    shrunk = (1 - share) * product + share * level * np.eye(len(product))
    tell = x.T @ np.linalg.solve(shrunk, member) if few else np.linalg.solve(shrunk, x.T @ member)
    together = x.T @ member / n
    return tell / n, np.linalg.pinv(together.T @ tell / n, rcond=1e-9, hermitian=True) @ together.T


def _robust(risk: Callable):
    """Training by the risk that ``risk`` makes of the options."""
    return lambda cell, weights, groups: cell.fit(weights, risk=risk(cell.options), groups=groups)


# (cell, weights (seeds, n) as they act, what is needed (seeds, n) or None) -> Heads, one a seed
TRAINERS = {
    "weighted": _weighted,
    "cvar-dro": _robust(lambda options: risks.cvar_risk(options.alpha)),
    "kl-dro": _robust(lambda options: risks.tilted_risk(options.tilt)),
    "group-dro": _robust(lambda options: partial(risks.group_risk, options.group_tilt)),
    "jtt": _just_train_twice,
    "lff": _learning_from_failure,
    "retrain": _retrained,
    "afr": _reweighted,
    "selective": _disagreement,
    "xrm": _cross_risk,
    "ula": _adjusted,
    "erase": _erased,
}
