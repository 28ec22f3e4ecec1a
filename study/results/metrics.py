"""Identity-robustness metrics of a run, in which every person may count more than once.

A *run* is the test images of one biased training set, scored by every method. Its metrics are computed
from the scores and the true identities, which are evaluation data: no method without identity labels
sees them. A metric takes ``counts``, shape (R, k): how often each of the run's k people counts, in R
resamples at once. Counts of 1 give the plain number. Intervals and comparisons are in
:mod:`study.results.inference`.

Labels are 0 or 1, and scores are logits of class 1: an image is called 1 when its score is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, wraps

import numpy as np
import pandas as pd

ECE_BINS = 15
CACHED = 2**18  # numbers that a processor's cache holds
SOME = 300  # people, at most, whose pairs are quickly counted; beside as many resamples that pays
ENOUGH = (
    10  # test images of a person, below which their accuracy is too coarse to compare people by
)
TOO_FEW = "too few images a person"


@dataclass(frozen=True)
class Metric:
    """A metric of a run: its name in figures and tables, what is better, and how it is measured.

    ``formula(run, counts)`` gives the values under every method, shape (R, m), when the run's people
    count as often as ``counts``, shape (R, k); NaN where undefined. Its docstring begins with the
    definition, one sentence with the labels it uses. ``images`` is how many test images every person
    must have for it to mean something.
    """

    title: str
    better: str  # "higher" or "lower"
    formula: Callable[[Run, np.ndarray], np.ndarray]
    images: int = 1

    @property
    def definition(self) -> str:
        """What is measured, in one sentence."""
        return " ".join(self.formula.__doc__.split("\n\n")[0].split())

    def measure(self, run: Run, counts: np.ndarray) -> np.ndarray:
        """The formula's values, or NaN where a person has too few test images for it."""
        if run.size.min() < self.images:
            return np.full((len(counts), run.score.shape[1]), np.nan)
        return self.formula(run, counts)


@dataclass(frozen=True)
class Run:
    """Test images of one training set, n of k people sorted by person, scored by m methods."""

    row: np.ndarray  # (n,), of the data set
    label: np.ndarray  # (n,), 0.0 or 1.0
    score: np.ndarray  # (n, m)
    people: np.ndarray  # (k,), who they are, sorted
    starts: np.ndarray  # (k,), first image of every person
    # (n,), 1.0 where the label is the one rare for its person in training, 0.0 where not, NaN where
    # there is no such label
    minority: np.ndarray

    @classmethod
    def of(cls, row, label, score, person, minority=None) -> Run:
        """A run from its images in any order; ``score`` has shape (n, m), the others (n,)."""
        order = np.argsort(person, kind="stable")
        people, starts = np.unique(np.asarray(person)[order], return_index=True)
        rare = np.full(len(order), np.nan) if minority is None else minority
        label, score, rare = (
            np.asarray(array, dtype=float)[order] for array in (label, score, rare)
        )
        return cls(np.asarray(row)[order], label, score, people, starts, rare)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over every person's images: (n, ...) to (k, ...)."""
        return np.add.reduceat(np.asarray(values, dtype=float), self.starts, axis=0)

    @cached_property
    def right(self) -> np.ndarray:
        """1 where an image is classified right, shape (n, m)."""
        return ((self.score > 0) == (self.label[:, None] == 1)).astype(float)

    @cached_property
    def size(self) -> np.ndarray:
        """Images of every person, shape (k,)."""
        return self.sums(np.ones(len(self.row)))

    @cached_property
    def person(self) -> np.ndarray:
        """Who of the k people is in an image, shape (n,)."""
        return np.repeat(np.arange(len(self.starts)), self.size.astype(int))

    @cached_property
    def rate(self) -> np.ndarray:
        """Accuracy of every person, shape (k, m)."""
        return self.sums(self.right) / self.size[:, None]


def share(run: Run, counts: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean of ``values`` (n, m) over the images where ``rows`` (n,) is 1; shape (R, m)."""
    chosen = np.asarray(rows, dtype=float)
    return ratio(counts @ run.sums(values * chosen[:, None]), (counts @ run.sums(chosen))[:, None])


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient of non-negative denominators; NaN where 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _accuracy(run: Run, counts: np.ndarray) -> np.ndarray:
    """Share of all test images that are classified right; uses class labels."""
    return share(run, counts, run.right, np.ones(len(run.row)))


def _minority_accuracy(run: Run, counts: np.ndarray) -> np.ndarray:
    """Share of the test images of the class that was rare for their person in training that are
    classified right; uses class labels and true identities.
    """
    return share(run, counts, run.right, run.minority == 1)


def _balanced_accuracy(run: Run, counts: np.ndarray) -> np.ndarray:
    """Mean of the true positive and the true negative rate over all test images; uses class labels."""
    return sum(share(run, counts, run.right, run.label == c) for c in (0, 1)) / 2


def _identity_balanced_accuracy(run: Run, counts: np.ndarray) -> np.ndarray:
    """Mean over identities of their accuracy, every identity counting the same; uses class labels and
    true identities.
    """
    return ratio(counts @ run.rate, counts.sum(axis=1, keepdims=True))


def _brier(run: Run, counts: np.ndarray) -> np.ndarray:
    """Mean squared distance between the predicted probability of class 1 and the label; uses class
    labels.

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
    78 (1950), in the form for two classes, 0 to 1.
    """
    squares = (_sigmoid(run.score) - run.label[:, None]) ** 2
    return share(run, counts, squares, np.ones(len(run.row)))


def _ece(run: Run, counts: np.ndarray) -> np.ndarray:
    """Mean distance between accuracy and confidence over 15 bins of equal width of the predicted
    class's confidence, weighted by images; uses class labels.

    Confidence is the sigmoid probability of the predicted class; bins are on (0, 1], closed on the
    right. Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599 (2017).
    """
    confidence = _sigmoid(np.abs(run.score))
    bins, apart = np.ceil(confidence * ECE_BINS).astype(int) - 1, run.right - confidence
    excess = np.zeros((len(counts), confidence.shape[1]))
    for inside in (bins == b for b in np.unique(bins)):
        excess += np.abs(counts @ run.sums(np.where(inside, apart, 0)))
    return ratio(excess, (counts @ run.size)[:, None])


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    from scipy.special import expit  # late: figures read METRICS and compute none

    return expit(scores)


def _auroc(run: Run, counts: np.ndarray) -> np.ndarray:
    """Share of (positive, negative) pairs of test images whose logits are in the right order; uses
    class labels.

    Ties count by half (Mann and Whitney 1947). Of few people they are counted by pair of people, once
    for all resamples; else in each resample, by the places of the positives among the sorted negatives.
    All sums are of whole numbers and halves, so their order does not matter.
    """
    positive = run.label == 1
    pairs = np.prod([counts @ run.sums(side) for side in (positive, ~positive)], axis=0)[:, None]
    few = len(run.people) <= SOME <= len(counts)
    count = _ordered_by_people if few else _ordered_by_place
    return ratio(count(run, counts, positive), pairs)


def _places(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, ...]:
    """The order in which negatives rise, and of each positive how many are below it, and not above."""
    order = np.argsort(score[~positive], kind="stable")
    rising = score[~positive][order]
    return order, *(np.searchsorted(rising, score[positive], s) for s in ("left", "right"))


def _ordered_by_people(run: Run, counts: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Pairs of images in the right order, shape (R, m), by way of those of every two people."""
    high, first = np.unique(run.person[positive], return_index=True)
    low, whose = np.unique(run.person[~positive], return_inverse=True)
    ordered, own = np.zeros((len(counts), run.score.shape[1])), np.eye(len(low))[whose]
    ours, theirs = counts[:, high], counts[:, low]
    for m, score in enumerate(run.score.T if len(high) and len(low) else ()):
        order, left, right = _places(score, positive)
        below = np.zeros((len(own) + 1, len(low)))  # negatives of each person
        np.cumsum(own[order], axis=0, out=below[1:])
        twice = below[left] + below[right]  # a tie is on one side alone, and counts by half
        pairs = np.add.reduceat(twice, first) / 2
        ordered[:, m] = np.einsum("rk,rk->r", ours @ pairs, theirs)
    return ordered


def _ordered_by_place(run: Run, counts: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """As :func:`_ordered_by_people`; images are sorted once a method."""
    positives, negatives = run.person[positive], run.person[~positive]
    places = [_places(score, positive) for score in run.score.T]
    ordered, step = np.empty((len(counts), len(places))), max(1, CACHED // len(run.person))
    for at in (slice(start, start + step) for start in range(0, len(counts), step)):
        many = np.ascontiguousarray(counts[at].T)
        high, below = many[positives], np.zeros((len(negatives) + 1, many.shape[1]))
        for m, (order, left, right) in enumerate(places):
            np.cumsum(many[negatives[order]], axis=0, out=below[1:])
            twice = below[left] + below[right]
            ordered[at, m] = np.einsum("ir,ir->r", high, twice) / 2
    return ordered


def _by_rank(formula: Callable) -> Callable:
    """A measure from ``formula(accuracy, counts, counts summed up to each)``, people worst first."""

    @wraps(formula)
    def measure(run: Run, counts: np.ndarray) -> np.ndarray:
        values = np.empty((len(counts), run.rate.shape[1]))
        for m, rate in enumerate(run.rate.T):
            order = np.argsort(rate, kind="stable")
            sorted_counts = counts[:, order]
            values[:, m] = formula(rate[order], sorted_counts, sorted_counts.cumsum(axis=1))
        return values

    return measure


@_by_rank
def _worst_decile(rate, counts, upto) -> np.ndarray:
    """Mean accuracy of the worst tenth of identities, rounded up to at least one; uses class labels
    and true identities.
    """
    needed = np.ceil(upto[:, -1:] / 10)
    taken = np.clip(needed - (upto - counts), 0, counts)
    return ratio(taken @ rate, needed[:, 0])


@_by_rank
def _identity_gini(rate, counts, upto) -> np.ndarray:
    """Mean distance between the accuracies of two identities over twice the mean accuracy; uses class
    labels and true identities.

    The two are drawn with replacement. 0 where all are alike, towards 1 where few people have all
    that is right; 0 too where nothing is right. C. Gini, "Variabilita e mutabilita" (1912).
    """
    n, right = upto[:, -1], counts @ rate
    # 2 * upto - counts - n: how many people are worse off than a person, minus how many are better.
    apart = np.einsum("k,rk,rk->r", rate, counts, 2 * upto - counts - n[:, None])
    return np.where((n > 0) & (right == 0), 0.0, ratio(apart, n * right))


def _identity_sd(run: Run, counts: np.ndarray) -> np.ndarray:
    """Standard deviation of accuracy over identities (divisor n); uses class labels and true
    identities.
    """
    centred = run.rate - run.rate.mean(axis=0)  # so that the difference of moments loses no digits
    n = counts.sum(axis=1, keepdims=True)
    variance = ratio(counts @ centred**2, n) - ratio(counts @ centred, n) ** 2
    return np.sqrt(np.maximum(variance, 0))


def _least(rate: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Lowest defined ``rate`` (k, m) of the people ``present`` (R, k); NaN where there is none."""
    least = np.empty((len(present), rate.shape[1]))
    for m, values in enumerate(rate.T):
        order = np.argsort(values, kind="stable")  # undefined ones last
        least[:, m] = values[order[present[:, order].argmax(axis=1)]]
    return np.where(present.any(axis=1)[:, None], least, np.nan)


def _worst_identity(run: Run, counts: np.ndarray) -> np.ndarray:
    """Accuracy of the identity with the lowest; uses class labels and true identities."""
    return _least(run.rate, counts > 0)


def _tpr_gap(run: Run, counts: np.ndarray) -> np.ndarray:
    """Largest difference between two identities' true positive rates; uses class labels and true
    identities.
    """
    return _rate_gap(run, counts, run.label == 1)


def _tnr_gap(run: Run, counts: np.ndarray) -> np.ndarray:
    """Largest difference between two identities' true negative rates; uses class labels and true
    identities.
    """
    return _rate_gap(run, counts, run.label == 0)


def _rate_gap(run: Run, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Largest difference of the accuracy on ``rows`` (n,) between two people who have one."""
    rate = ratio(run.sums(run.right * rows[:, None]), run.sums(rows)[:, None])
    return -_least(-rate, counts > 0) - _least(rate, counts > 0)


METRICS = {
    "accuracy": Metric("Accuracy", "higher", _accuracy),
    "minority_accuracy": Metric("Accuracy on minority cells", "higher", _minority_accuracy),
    "balanced_accuracy": Metric("Balanced accuracy", "higher", _balanced_accuracy),
    "identity_balanced_accuracy": Metric(
        "Identity-balanced accuracy", "higher", _identity_balanced_accuracy
    ),
    "auroc": Metric("AUROC", "higher", _auroc),
    "ece": Metric("Expected calibration error", "lower", _ece),
    "brier": Metric("Brier score", "lower", _brier),
    "worst_decile": Metric("Worst-decile accuracy", "higher", _worst_decile, ENOUGH),
    "worst_identity": Metric("Worst-identity accuracy", "higher", _worst_identity, ENOUGH),
    "identity_sd": Metric("Standard deviation over identities", "lower", _identity_sd, ENOUGH),
    "identity_gini": Metric("Gini coefficient over identities", "lower", _identity_gini, ENOUGH),
    "tpr_gap": Metric("Largest TPR gap", "lower", _tpr_gap, ENOUGH),
    "tnr_gap": Metric("Largest TNR gap", "lower", _tnr_gap, ENOUGH),
}


def evaluate(
    predictions: pd.DataFrame, methods, labels, identities, metrics=METRICS, cell: str = "level"
) -> pd.DataFrame:
    """Metrics of every run.

    Parameters
    ----------
    predictions : pandas.DataFrame
        ``level`` (or the column ``cell``), ``seed``, ``test``, ``row``, a column of logits for every
        method and, where the training sets have minority cells, ``minority``.
    methods : list of str
    labels, identities : array, shape (n,)
        Of the whole data set, indexed by ``row``.
    metrics : iterable of str
        Keys of :data:`METRICS`; all by default.
    cell : str
        Column that tells apart what is compared over the same seeds: ``level`` or, where one setting
        is varied, ``value``.

    One row a run and method: ``level`` (or ``cell``), ``seed``, ``test``, ``method``, and the metrics.
    """
    keys, found = [], {name: [] for name in metrics}
    for key, run in runs(predictions, methods, labels, identities, cell):
        keys.append(key)
        once = np.ones((1, len(run.people)))
        for name, values in found.items():
            values.append(METRICS[name].measure(run, once)[0])
    columns = zip((cell, "seed", "test"), zip(*keys, strict=True), strict=True)
    where = {name: [value for value in values for _ in methods] for name, values in columns}
    where["method"] = [method for _ in keys for method in methods]
    return pd.DataFrame(where | {name: np.concatenate(values) for name, values in found.items()})


def runs(predictions, methods, labels, identities, cell: str) -> Iterator[tuple[tuple, Run]]:
    """Every run with its (cell, seed, test); cells as :func:`cells` orders them. Arguments as above."""
    labels, identities = np.asarray(labels), np.asarray(identities)
    places = pd.Categorical(predictions[cell], cells(predictions, cell))
    keys = places, predictions["seed"].to_numpy(), predictions["test"].astype(str).to_numpy()
    rows, scores = predictions["row"].to_numpy(), predictions[list(methods)].to_numpy()
    rare = predictions["minority"].to_numpy() if "minority" in predictions else None
    number = predictions.groupby(list(keys), observed=True).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    # Arrays are cut here, as tables are slow to cut a hundred times.
    for at in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        row, own = rows[at], tuple(key[at[0]] for key in keys)
        minority = None if rare is None else rare[at]
        yield own, Run.of(row, labels[row], scores[at], identities[row], minority)


def cells(predictions: pd.DataFrame, cell: str) -> np.ndarray:
    """The cells of a study: bias levels rising, anything else in order of appearance."""
    values = predictions[cell]
    return np.unique(values) if cell == "level" else np.asarray(values.unique())


def accuracy_by_identity(predictions: pd.DataFrame, methods, labels, identities) -> pd.DataFrame:
    """Accuracy of every identity over all seeds that tested it; arguments as in :func:`evaluate`.

    One row a level, test set and identity (the index), one column a method.
    """
    rows = predictions["row"].to_numpy()
    right = (predictions[list(methods)] > 0).eq(np.asarray(labels)[rows] == 1, axis=0)
    people = pd.Series(np.asarray(identities)[rows], predictions.index, name="identity")
    return right.groupby([predictions["level"], predictions["test"], people], observed=True).mean()
