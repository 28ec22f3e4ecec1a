"""How strong the L2 penalty of linear heads should be: cross-validated on the training set.

The criterion is the log loss on held-out training images. It sees class labels and nothing else: no
identity, no test image, and no balanced image where the training set is biased. A penalty that is too
strong flatters every method that weighs, because weights make up for a part of it.

Exactly: standardise the features (mean 0, variance 1) by all images of the training set. Split these into
:data:`FOLDS` folds of images, class by class (:func:`folds`). For a penalty of :data:`GRID`, fit the head
of :func:`cid.heads.fit_heads` without each fold in turn (of more than two classes, that of
:func:`cid.softmax.fit_softmax_heads`), and take the mean of the cross-entropy ``softplus(-y logit)`` over all
images, each under the head that did not see it. Where several training sets decide together, take the
mean over them. The largest penalty whose loss is at most ``1 + NEAR`` times the least is chosen
(:func:`best_penalty`): the rounding of a processor then does not decide between two that are as good as
each other. :func:`search` fits only as much of the grid as it takes to see the loss rise on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cid.arrays import array, class_codes, reals
from cid.heads import StandardisedFeatures, fit_heads
from cid.softmax import cross_entropies, fit_softmax_heads

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # half decades
START = slice(2, 6)  # of the grid: where the search begins, .01 to .3
FOLDS = 5
STREAM = 3  # of random numbers, for the folds
NEAR = 1e-3  # losses nearer than this, relative to the least, are equal
TOLERANCE = (
    1e-5  # as of fit_heads: ten times finer than there, so that losses are right to about NEAR / 10
)
STEPS = 1000  # the weakest penalties take the most


def folds(labels, seed: int = 0, stream: int = STREAM) -> np.ndarray:
    """Split a training set into folds: codes 0 to 4, int (n,), of sizes that differ by one at most.

    The images of each class are put into random order by ``numpy.random.default_rng([seed, stream])``, class
    after class, and dealt out to the folds in turn. Folds of another stream are independent.

    Examples
    --------
    >>> np.bincount(folds([0, 1] * 10)).tolist()
    [4, 4, 4, 4, 4]
    """
    labels = array("labels", labels)
    rng = np.random.default_rng([seed, stream])
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    order = np.concatenate(members)
    codes = np.empty(len(labels), dtype=np.int64)
    codes[order] = np.arange(len(order)) % FOLDS
    return codes


def cross_validated_losses(
    features,
    labels,
    sample_weights=None,
    *,
    penalties: Sequence[float] = GRID,
    seed: int = 0,
    design: StandardisedFeatures | None = None,
    device: str = "auto",
) -> np.ndarray:
    """Compute the cross-validated log loss under each of several penalties: see this module's head.

    Parameters
    ----------
    features : array, shape (n, d)
        Of one training set.
    labels : array, shape (n,)
        0 or 1, or more classes, with at least two images of each.
    sample_weights : array, shape (n,), optional
        Non-negative. They weigh the images in training and in the mean over held-out images; by default
        all images count the same.
    penalties : sequence of float
        As ``l2`` of :func:`cid.heads.fit_heads`.
    seed : int
        Draws the folds.
    design : StandardisedFeatures, optional
        Of these features and labels, for other calls on the same images; of two classes only.
    device : str
        As in :func:`cid.align.detect`.

    Returns
    -------
    float64 array, shape (len(penalties),)
        Infinite under a penalty so weak that a head does not converge.

    Raises
    ------
    ValueError
        If a class has one image only, and as :func:`cid.heads.fit_heads`.
    """
    codes, classes = class_codes(labels, len(features))
    labels = array("labels", labels)
    if classes < 2 or np.bincount(codes).min() < 2:
        raise ValueError(
            "a class has fewer than 2 training images, so that none can be held out; give train.l2 a number"
        )
    weights = np.ones(len(labels)) if sample_weights is None else reals("weights", sample_weights)
    in_fold = folds(labels, seed) == np.arange(FOLDS)[:, None]  # (folds, n)
    arguments = {
        "sample_weights": np.repeat(weights * ~in_fold, len(penalties), axis=0),
        "l2": np.tile(penalties, FOLDS),
        "standardised_by": np.ones(len(labels), dtype=bool),
        "tolerance": TOLERANCE,
        "max_iterations": STEPS,
        "strict": False,
    }
    if classes == 2:
        design = design or StandardisedFeatures(features, labels, device=device)
        heads = fit_heads(features, labels, **arguments, design=design)
        margins = heads.logits(features).astype(np.float64) * np.where(labels == 1, 1, -1)
        losses = np.logaddexp(0, -margins)
    else:
        heads = fit_softmax_heads(features, codes, **arguments, device=device)
        losses = cross_entropies(heads.logits(features), codes)
    losses = losses.reshape(FOLDS, len(penalties), -1)
    held_out = (weights * in_fold)[:, None, :]
    means = (losses * held_out).sum(axis=(0, 2)) / weights.sum()
    converged = (heads.gradient <= 10 * TOLERANCE).reshape(FOLDS, -1).all(axis=0)
    return np.where(converged, means, np.inf)


def search(losses_at: Callable[[Sequence[float]], np.ndarray]) -> dict[float, float]:
    """Compute losses along :data:`GRID` until the least lies between larger ones, or at an end of it.

    Parameters
    ----------
    losses_at : callable
        From some penalties to their losses.

    Returns
    -------
    dict
        The losses by penalty, in the order of the grid.

    Examples
    --------
    >>> list(search(lambda penalties: [abs(np.log10(l2) + 2.4) for l2 in penalties]))
    [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    """
    first = START.start
    last = START.stop  # one behind the last
    found = dict(zip(GRID[first:last], losses_at(GRID[first:last]), strict=True))
    while True:
        best = GRID.index(min(found, key=found.get))
        if best == first > 0:
            more = GRID[max(0, first - 2) : first]
        elif best == last - 1 < len(GRID) - 1:
            more = GRID[last : last + 2]
        else:
            return dict(sorted(found.items()))
        found |= dict(zip(more, losses_at(more), strict=True))
        first = min(first, GRID.index(more[0]))
        last = max(last, GRID.index(more[-1]) + 1)


def best_penalty(losses: dict[float, float]) -> float:
    """Choose among penalties by their losses: the largest of those that are as good as the best.

    A ValueError says that there is none whose heads converge.

    Examples
    --------
    >>> best_penalty({0.01: 0.5, 0.03: 0.4, 0.1: 0.40001, 0.3: 0.45})
    0.1
    """
    least = min(losses.values())
    if not np.isfinite(least):
        raise ValueError("heads converge under no penalty; give train.l2 a number, such as 1.0")
    return max(l2 for l2, loss in losses.items() if loss <= (1 + NEAR) * least)


def choose_l2(features, labels, *, seed: int = 0, device: str = "auto") -> float:
    """Choose the penalty of a linear head for one training set, by its class labels alone.

    Parameters and errors are those of :func:`cross_validated_losses`; the head is plain: all images count
    the same, and other methods on the same images take what it takes.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(60) % 2
    >>> noise = rng.normal(size=(60, 200))
    >>> choose_l2(noise, labels)  # nothing to learn
    10.0
    >>> choose_l2(noise + 2 * labels[:, None], labels)  # every feature says the same
    0.001
    """
    design = None
    if class_codes(labels, len(features))[1] == 2:
        design = StandardisedFeatures(features, labels, device=device)

    def losses_at(penalties) -> np.ndarray:
        return cross_validated_losses(
            features, labels, penalties=penalties, seed=seed, design=design
        )

    return best_penalty(search(losses_at))
