"""Identity-robustness metrics of a test set, in which every person may count more than once.

A *test set* here is the test images of one biased training set, scored by every method. Its metrics are
computed from the scores and the true identities, which are evaluation data: no method without identity
labels sees them. A metric takes ``counts``, shape (R, k): how often each of the test set's k people
counts, in R resamples at once. Counts of 1 give the plain number. Intervals and comparisons are in
:mod:`study.results.inference`.

Of two classes labels are 0 or 1, and scores are logits of class 1: an image is classified as 1 when its score
is above 0. Of C classes labels are 0 to C - 1, and there are logits of all: the largest classifies an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from study.experiment.scores import predicted, scores_of
from study.results.rounding import INTERVAL

ECE_BINS = 15
CACHE_NUMBERS = 2**18  # floats that fit into a processor's cache
# Of at most this many people AUROC is counted by pairs of people, given at least as many resamples.
FEW_PEOPLE = 300
MIN_IMAGES = 10  # test images of a person, below which their accuracy is too coarse for comparisons
TOO_FEW = "too few images a person"


@dataclass(frozen=True)
class Metric:
    """A metric of a test set: its name in figures and tables, what is better, and how it is measured.

    ``formula(test_set, counts)`` gives the values under every method, shape (R, m), when the people count
    as often as ``counts``, shape (R, k); NaN where undefined. Its docstring begins with the definition, one
    sentence with the labels it uses. ``images`` is how many test images every person must have for the
    metric to be meaningful.

    A *pooled* metric is of a whole study instead: of the people's accuracies over all its test sets
    (:class:`PooledPeople`). It has ``slopes(accuracy)``, shape (k, m): how fast it changes with the
    accuracy of every person, shape (k, m).
    """

    title: str
    better: str  # "higher" or "lower"
    formula: Callable[[TestSet | PooledPeople, np.ndarray], np.ndarray]
    images: int = 1
    slopes: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def is_pooled(self) -> bool:
        """Whether the metric is of a study and not of a test set."""
        return self.slopes is not None

    @property
    def definition(self) -> str:
        """What is measured, in one sentence."""
        first_paragraph = self.formula.__doc__.split("\n\n")[0]
        return " ".join(first_paragraph.split())

    def measure(self, test_set: TestSet, counts: np.ndarray) -> np.ndarray:
        """The formula's values, or NaN where a person has too few test images for it."""
        if test_set.images_per_person.min() < self.images:
            return np.full((len(counts), test_set.scores.shape[1]), np.nan)
        return self.formula(test_set, counts)


@dataclass(frozen=True)
class TestSet:
    """Test images of one training set, n of k people sorted by person, scored by m methods."""

    rows: np.ndarray  # (n,), of the data set
    labels: np.ndarray  # (n,), 0.0, 1.0, ...: classes
    scores: np.ndarray  # (n, m), logits of class 1; (n, m, C) of all, where there are more than two
    people: np.ndarray  # (k,), their identities, sorted
    starts: np.ndarray  # (k,), first image of every person
    # (n,), 1.0 where the label is the one rare for its person in training, 0.0 where not, NaN where
    # there is no such label
    minority: np.ndarray

    @classmethod
    def from_images(cls, rows, labels, scores, identities, minority=None) -> TestSet:
        """A test set from its images in any order; ``scores`` has shape (n, m) or (n, m, C), others (n,)."""
        order = np.argsort(identities, kind="stable")
        people, starts = np.unique(np.asarray(identities)[order], return_index=True)
        if minority is None:
            minority = np.full(len(order), np.nan)
        return cls(
            rows=np.asarray(rows)[order],
            labels=np.asarray(labels, dtype=float)[order],
            scores=np.asarray(scores, dtype=float)[order],
            people=people,
            starts=starts,
            minority=np.asarray(minority, dtype=float)[order],
        )

    def sum_by_person(self, values: np.ndarray) -> np.ndarray:
        """Sum over every person's images: (n, ...) to (k, ...)."""
        return np.add.reduceat(np.asarray(values, dtype=float), self.starts, axis=0)

    @cached_property
    def correct(self) -> np.ndarray:
        """1 where an image is classified correctly, else 0, shape (n, m)."""
        return (predicted(self.scores) == self.labels[:, None]).astype(float)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return 2 if self.scores.ndim == 2 else self.scores.shape[2]

    @cached_property
    def images_per_person(self) -> np.ndarray:
        """Images of every person, shape (k,)."""
        return self.sum_by_person(np.ones(len(self.rows)))

    @cached_property
    def person_of_image(self) -> np.ndarray:
        """The person in every image, as an index of ``people``, shape (n,)."""
        return np.repeat(np.arange(len(self.starts)), self.images_per_person.astype(int))

    @cached_property
    def person_accuracy(self) -> np.ndarray:
        """Accuracy of every person, shape (k, m)."""
        return self.sum_by_person(self.correct) / self.images_per_person[:, None]


@dataclass(frozen=True)
class PooledPeople:
    """Accuracies of k people under m methods, each over all the test sets of a study."""

    person_accuracy: np.ndarray  # (k, m)


def mean_over_images(
    test_set: TestSet, counts: np.ndarray, values: np.ndarray, included: np.ndarray
) -> np.ndarray:
    """Mean of ``values`` (n, m) over the images where ``included`` (n,) is 1; shape (R, m)."""
    included = np.asarray(included, dtype=float)
    total = counts @ test_set.sum_by_person(values * included[:, None])
    number = counts @ test_set.sum_by_person(included)
    return ratio(total, number[:, None])


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient of non-negative denominators; NaN where 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _accuracy(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Share of all test images that are classified right; uses class labels."""
    every_image = np.ones(len(test_set.rows))
    return mean_over_images(test_set, counts, test_set.correct, every_image)


def _minority_accuracy(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Share of the test images of the class that was rare for their person in training that are
    classified right; uses class labels and true identities.
    """
    return mean_over_images(test_set, counts, test_set.correct, test_set.minority == 1)


def _balanced_accuracy(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Mean, over classes, of the share of a class's test images that are classified right; uses class
    labels.
    """
    shares = [
        mean_over_images(test_set, counts, test_set.correct, test_set.labels == code)
        for code in range(test_set.classes)
    ]
    return sum(shares) / len(shares)


def _identity_balanced_accuracy(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Mean over identities of their accuracy, every identity counting the same; uses class labels and
    true identities.
    """
    return ratio(counts @ test_set.person_accuracy, counts.sum(axis=1, keepdims=True))


def _brier(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Mean squared distance between the predicted probability of class 1 and the label; of more than two
    classes, half the sum of these distances over all; uses class labels.

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
    78 (1950), in the form for two classes, 0 to 1.
    """
    if test_set.scores.ndim == 2:
        squares = (_sigmoid(test_set.scores) - test_set.labels[:, None]) ** 2
    else:
        own = test_set.labels[:, None, None] == np.arange(test_set.classes)
        squares = ((_softmax(test_set.scores) - own) ** 2).sum(axis=2) / 2
    return mean_over_images(test_set, counts, squares, np.ones(len(test_set.rows)))


def _ece(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Mean distance between accuracy and confidence over 15 bins of equal width of the predicted
    class's confidence, weighted by images; uses class labels.

    Confidence is the probability of the predicted class; bins are on (0, 1], closed on the
    right. Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599 (2017).
    """
    if test_set.scores.ndim == 2:
        confidence = _sigmoid(np.abs(test_set.scores))
    else:
        confidence = _softmax(test_set.scores).max(axis=2)
    bins = np.ceil(confidence * ECE_BINS).astype(int) - 1
    miscalibration = test_set.correct - confidence
    total = np.zeros((len(counts), confidence.shape[1]))
    for b in np.unique(bins):
        in_bin = np.where(bins == b, miscalibration, 0)
        total += np.abs(counts @ test_set.sum_by_person(in_bin))
    return ratio(total, (counts @ test_set.images_per_person)[:, None])


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    from scipy.special import expit  # late: figures read METRICS and compute none

    return expit(scores)


def _softmax(scores: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(scores, axis=2)


def _auroc(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Share of (positive, negative) pairs of test images whose logits are in the right order; of more than
    two classes, the mean over classes of this share with the log-odds of one class against the others;
    uses class labels.

    Ties count by half (Mann and Whitney 1947). With few people, pairs of images are counted for each pair
    of people, once for all resamples; with many, in each resample, by the places of the positives among
    the sorted negatives. All sums are of whole numbers and halves, so their order does not matter.
    """
    if test_set.scores.ndim == 3:
        return _one_against_rest(test_set, counts)
    positive = test_set.labels == 1
    positives = counts @ test_set.sum_by_person(positive)
    negatives = counts @ test_set.sum_by_person(~positive)
    pairs = positives * negatives
    if len(test_set.people) <= FEW_PEOPLE <= len(counts):
        ordered = _ordered_pairs_by_people(test_set, counts, positive)
    else:
        ordered = _ordered_pairs_by_place(test_set, counts, positive)
    return ratio(ordered, pairs[:, None])


def _one_against_rest(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Mean of the AUROC over the classes, each against all others."""
    from scipy.special import logsumexp

    found = []
    for code in range(test_set.classes):
        others = np.delete(test_set.scores, code, axis=2)
        own = replace(
            test_set,
            labels=(test_set.labels == code).astype(float),
            scores=test_set.scores[:, :, code] - logsumexp(others, axis=2),
        )
        found.append(_auroc(own, counts))
    return np.mean(found, axis=0)


def _places(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the positives of one method stand among its sorted negatives.

    Returns the order in which the negatives rise, and for each positive how many negatives have a lower
    score, and how many a lower or equal one.
    """
    order = np.argsort(scores[~positive], kind="stable")
    rising = scores[~positive][order]
    lower = np.searchsorted(rising, scores[positive], "left")
    lower_or_equal = np.searchsorted(rising, scores[positive], "right")
    return order, lower, lower_or_equal


def _ordered_pairs_by_people(
    test_set: TestSet, counts: np.ndarray, positive: np.ndarray
) -> np.ndarray:
    """Number of image pairs in the right order, shape (R, m), from those of every two people."""
    with_positives, first = np.unique(test_set.person_of_image[positive], return_index=True)
    with_negatives, owner = np.unique(test_set.person_of_image[~positive], return_inverse=True)
    ordered = np.zeros((len(counts), test_set.scores.shape[1]))
    if not len(with_positives) or not len(with_negatives):
        return ordered
    positive_counts = counts[:, with_positives]
    negative_counts = counts[:, with_negatives]
    # (negatives, people with negatives), 1 where the image is theirs, and its sum up to every place.
    owned = np.eye(len(with_negatives))[owner]
    below = np.zeros((len(owned) + 1, len(with_negatives)))
    for m, scores in enumerate(test_set.scores.T):
        order, lower, lower_or_equal = _places(scores, positive)
        np.cumsum(owned[order], axis=0, out=below[1:])
        twice = below[lower] + below[lower_or_equal]  # a tie is in one only, so it counts by half
        pairs = np.add.reduceat(twice, first) / 2  # (people with positives, people with negatives)
        ordered[:, m] = np.einsum("rk,rk->r", positive_counts @ pairs, negative_counts)
    return ordered


def _ordered_pairs_by_place(
    test_set: TestSet, counts: np.ndarray, positive: np.ndarray
) -> np.ndarray:
    """The numbers of :func:`_ordered_pairs_by_people`, with each method's images sorted once."""
    positives = test_set.person_of_image[positive]
    negatives = test_set.person_of_image[~positive]
    places = [_places(scores, positive) for scores in test_set.scores.T]
    ordered = np.empty((len(counts), len(places)))
    resamples = max(1, CACHE_NUMBERS // len(test_set.person_of_image))  # at a time
    for start in range(0, len(counts), resamples):
        block = slice(start, start + resamples)
        person_counts = np.ascontiguousarray(counts[block].T)
        positive_counts = person_counts[positives]
        below = np.zeros((len(negatives) + 1, person_counts.shape[1]))
        for m, (order, lower, lower_or_equal) in enumerate(places):
            np.cumsum(person_counts[negatives[order]], axis=0, out=below[1:])
            twice = below[lower] + below[lower_or_equal]
            ordered[block, m] = np.einsum("ir,ir->r", positive_counts, twice) / 2
    return ordered


def _worst_first(
    test_set: TestSet, counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For every method: accuracies (k,) of the people, worst first, their counts (R, k) and the
    counts summed up to each person."""
    for accuracy in test_set.person_accuracy.T:
        order = np.argsort(accuracy, kind="stable")
        sorted_counts = counts[:, order]
        yield accuracy[order], sorted_counts, sorted_counts.cumsum(axis=1)


def _worst_decile(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Mean accuracy of the worst tenth of identities, rounded up to at least one; uses class labels
    and true identities.
    """
    values = np.empty((len(counts), test_set.person_accuracy.shape[1]))
    for m, (accuracy, sorted_counts, cumulative) in enumerate(_worst_first(test_set, counts)):
        needed = np.ceil(cumulative[:, -1:] / 10)
        taken = np.clip(needed - (cumulative - sorted_counts), 0, sorted_counts)
        values[:, m] = ratio(taken @ accuracy, needed[:, 0])
    return values


def _identity_gini(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Mean distance between the accuracies of two identities over twice the mean accuracy; uses class
    labels and true identities.

    The two are drawn with replacement. It is 0 where all are alike or nothing is right, and near 1 where a
    few people have all the correct images. C. Gini, "Variabilita e mutabilita" (1912).
    """
    values = np.empty((len(counts), test_set.person_accuracy.shape[1]))
    for m, (accuracy, sorted_counts, cumulative) in enumerate(_worst_first(test_set, counts)):
        n = cumulative[:, -1]
        total = sorted_counts @ accuracy
        # How many people are worse off than a person, minus how many are better off.
        rank = 2 * cumulative - sorted_counts - n[:, None]
        distance = np.einsum("k,rk,rk->r", accuracy, sorted_counts, rank)
        values[:, m] = np.where((n > 0) & (total == 0), 0.0, ratio(distance, n * total))
    return values


def _identity_sd(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Standard deviation of accuracy over identities (divisor n); uses class labels and true
    identities.
    """
    accuracy = test_set.person_accuracy
    centred = accuracy - accuracy.mean(axis=0)  # so that the difference of moments loses no digits
    n = counts.sum(axis=1, keepdims=True)
    variance = ratio(counts @ centred**2, n) - ratio(counts @ centred, n) ** 2
    return np.sqrt(np.maximum(variance, 0))


def _identity_sd_slopes(accuracy: np.ndarray) -> np.ndarray:
    """Derivative of :func:`_identity_sd` by the accuracy of every person, shape (k, m)."""
    centred = accuracy - accuracy.mean(axis=0)
    sd = np.sqrt((centred**2).mean(axis=0))
    return centred / np.where(sd > 0, sd * len(accuracy), np.inf)


def _worst_decile_slopes(accuracy: np.ndarray) -> np.ndarray:
    """Derivative of :func:`_worst_decile` by the accuracy of every person, shape (k, m)."""
    needed = -(-len(accuracy) // 10)
    rank = accuracy.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    return (rank < needed) / needed


def _lowest(rates: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Lowest defined rate, of ``rates`` (k, m), among the people ``present`` (R, k); NaN without one."""
    lowest = np.empty((len(present), rates.shape[1]))
    for m, values in enumerate(rates.T):
        order = np.argsort(values, kind="stable")  # undefined ones last
        lowest[:, m] = values[order[present[:, order].argmax(axis=1)]]
    return np.where(present.any(axis=1)[:, None], lowest, np.nan)


def _worst_identity(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Accuracy of the identity with the lowest; uses class labels and true identities."""
    return _lowest(test_set.person_accuracy, counts > 0)


def _tpr_gap(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Largest difference between two identities' true positive rates; uses class labels and true
    identities.
    """
    return _rate_gap(test_set, counts, test_set.labels == 1)


def _tnr_gap(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
    """Largest difference between two identities' true negative rates; uses class labels and true
    identities.
    """
    return _rate_gap(test_set, counts, test_set.labels == 0)


def _rate_gap(test_set: TestSet, counts: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Largest difference of the accuracy on ``included`` (n,) images between two people who have some.

    It is of two classes, so NaN of more.
    """
    if test_set.classes > 2:
        return np.full((len(counts), test_set.scores.shape[1]), np.nan)
    correct = test_set.sum_by_person(test_set.correct * included[:, None])
    rates = ratio(correct, test_set.sum_by_person(included)[:, None])
    present = counts > 0
    return -_lowest(-rates, present) - _lowest(rates, present)


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
    "worst_decile": Metric("Worst-decile accuracy", "higher", _worst_decile, MIN_IMAGES),
    "worst_identity": Metric("Worst-identity accuracy", "higher", _worst_identity, MIN_IMAGES),
    "identity_sd": Metric("Standard deviation over identities", "lower", _identity_sd, MIN_IMAGES),
    "identity_gini": Metric(
        "Gini coefficient over identities", "lower", _identity_gini, MIN_IMAGES
    ),
    "people_sd": Metric(
        "Standard deviation over people, over all seeds",
        "lower",
        _identity_sd,
        MIN_IMAGES,
        _identity_sd_slopes,
    ),
    "worst_tenth": Metric(
        "Accuracy of the worst tenth of people, over all seeds",
        "higher",
        _worst_decile,
        MIN_IMAGES,
        _worst_decile_slopes,
    ),
    "tpr_gap": Metric("Largest TPR gap", "lower", _tpr_gap, MIN_IMAGES),
    "tnr_gap": Metric("Largest TNR gap", "lower", _tnr_gap, MIN_IMAGES),
}


OF_TEST_SETS = tuple(name for name, metric in METRICS.items() if not metric.is_pooled)


def evaluate(
    predictions: pd.DataFrame,
    methods,
    labels,
    identities,
    metrics=OF_TEST_SETS,
    condition: str = "level",
) -> pd.DataFrame:
    """Compute the metrics of every test set.

    Parameters
    ----------
    predictions : pandas.DataFrame
        ``level`` (or the column named by ``condition``), ``seed``, ``test``, ``row``, the scores of every
        method (:mod:`study.experiment.scores`) and, where the training sets have minority cells,
        ``minority``.
    methods : list of str
    labels, identities : array, shape (n,)
        Of the whole data set, indexed by ``row``.
    metrics : iterable of str
        Keys of :data:`METRICS`; all that are not pooled by default.
    condition : str
        The column of what is compared over the same seeds: ``level``, the bias level, or, where one
        setting is varied, ``value``.

    Returns
    -------
    pandas.DataFrame
        One row per test set and method: ``level`` (or ``condition``), ``seed``, ``test``, ``method``, and
        the metrics.
    """
    keys = []
    values = {name: [] for name in metrics}
    for key, test_set in iterate_test_sets(predictions, methods, labels, identities, condition):
        keys.append(key)
        once = np.ones((1, len(test_set.people)))
        for name in values:
            values[name].append(METRICS[name].measure(test_set, once)[0])
    columns = {}
    for name, of_sets in zip((condition, "seed", "test"), zip(*keys, strict=True), strict=True):
        columns[name] = [value for value in of_sets for _ in methods]
    columns["method"] = [method for _ in keys for method in methods]
    for name, of_sets in values.items():
        columns[name] = np.concatenate(of_sets)
    return pd.DataFrame(columns)


def iterate_test_sets(
    predictions: pd.DataFrame, methods, labels, identities, condition: str
) -> Iterator[tuple[tuple, TestSet]]:
    """Every test set with its (value of the condition, seed, test).

    They are in the order of :func:`conditions`. Arguments are as in :func:`evaluate`.
    """
    labels = np.asarray(labels)
    identities = np.asarray(identities)
    values = pd.Categorical(predictions[condition], conditions(predictions, condition))
    seeds = predictions["seed"].to_numpy()
    tests = predictions["test"].astype(str).to_numpy()
    rows = predictions["row"].to_numpy()
    scores = scores_of(predictions, methods)
    minority = predictions["minority"].to_numpy() if "minority" in predictions else None
    number = predictions.groupby([values, seeds, tests], observed=True).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    # Cut arrays, not the table, which would take long for a hundred test sets.
    for images in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        first = images[0]
        test_set = TestSet.from_images(
            rows=rows[images],
            labels=labels[rows[images]],
            scores=scores[images],
            identities=identities[rows[images]],
            minority=None if minority is None else minority[images],
        )
        yield (values[first], seeds[first], tests[first]), test_set


def conditions(predictions: pd.DataFrame, condition: str) -> np.ndarray:
    """The conditions of a study: bias levels rising, anything else in order of appearance."""
    values = predictions[condition]
    if condition == "level":
        return np.unique(values)
    return np.asarray(values.unique())


@dataclass(frozen=True)
class RightByPerson:
    """How many test images of k people S seeds classify right, under one condition and m methods."""

    right: np.ndarray  # (S, k, m)
    images: np.ndarray  # (S, k)

    def accuracy(self, without: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies, (k, m), over all seeds or all but one, and 1.0 for everyone who is tested, (k,)."""
        right = self.right.sum(axis=0)
        images = self.images.sum(axis=0)
        if without is not None:
            right = right - self.right[without]
            images = images - self.images[without]
        return right / np.maximum(images, 1)[:, None], (images > 0).astype(float)

    def measure(self, metric: Metric, counts: np.ndarray, without: int | None = None) -> np.ndarray:
        """A pooled metric, (R, m), when people count ``counts`` (R, k); NaN where one has too few images."""
        if self.images.sum(axis=0).min() < metric.images:
            return np.full((len(counts), self.right.shape[2]), np.nan)
        accuracy, tested = self.accuracy(without)
        return metric.formula(PooledPeople(accuracy), counts * tested)

    def pair_influence(self, metric: Metric) -> np.ndarray:
        """How far the result of each pair of a seed and a person moves a pooled metric, (S, k, m).

        To first order: the metric's slope, times how far the pair moves the person's accuracy. A person
        whom one seed tests has no other result to differ from, so it is 0.
        """
        accuracy, _ = self.accuracy()
        deviation = self.right - self.images[..., None] * accuracy
        seeds = np.maximum((self.images > 0).sum(axis=0), 2)
        scale = np.sqrt(seeds / (seeds - 1)) / np.maximum(self.images.sum(axis=0), 1)
        return metric.slopes(accuracy) * deviation * scale[:, None]


def right_by_person(
    predictions: pd.DataFrame, methods, labels, identities, condition: str = "level"
) -> list[RightByPerson]:
    """Count, under every condition, what each seed classifies right of each person.

    Arguments are as in :func:`evaluate`, for the predictions of one kind of test set.
    """
    values = conditions(predictions, condition).tolist()
    seeds = np.unique(predictions["seed"])
    people = np.unique(np.asarray(identities)[predictions["row"]])
    shape = (len(seeds), len(people))
    counted = [
        RightByPerson(right=np.zeros((*shape, len(methods))), images=np.zeros(shape))
        for _ in values
    ]
    test_sets = iterate_test_sets(predictions, methods, labels, identities, condition)
    for (value, seed, _), test_set in test_sets:
        of_value = counted[values.index(value)]
        s = np.searchsorted(seeds, seed)
        places = np.searchsorted(people, test_set.people)
        of_value.right[s, places] += test_set.sum_by_person(test_set.correct)
        of_value.images[s, places] += test_set.images_per_person
    return counted


def accuracy_by_identity(predictions: pd.DataFrame, methods, labels, identities) -> pd.DataFrame:
    """Accuracy of every identity over all seeds that tested it; arguments as in :func:`evaluate`.

    One row per level, test set and identity (the index), one column per method.
    """
    rows = predictions["row"].to_numpy()
    right = predicted(scores_of(predictions, methods)) == np.asarray(labels)[rows, None]
    correct = pd.DataFrame(right, predictions.index, columns=list(methods))
    people = pd.Series(np.asarray(identities)[rows], predictions.index, name="identity")
    groups = correct.groupby([predictions["level"], predictions["test"], people], observed=True)
    return groups.mean()


def weights_summary(sets: pd.DataFrame, methods: list[str]) -> dict[str, pd.DataFrame]:
    """What the weights of a study are like.

    Parameters
    ----------
    sets : pandas.DataFrame
        Training sets of all levels, from :func:`study.experiment.runs.weigh_sets`.
    methods : list of str
        Columns of weights.

    Returns
    -------
    dict of pandas.DataFrame
        ``weights`` has one row per level, ``cell_size`` (training images of the same person and class)
        and method: ``mean``, and ``low`` and ``high``, the 10 % and 90 % quantiles over images; sizes with
        under .2 % of a level's images are left out. ``effective`` has one row per level and method, Kish's
        effective sample size as a share of n: ``mean``, ``low`` and ``high`` over seeds.
    """
    from cid.weights import effective_sample_size  # late: torch takes seconds to import

    train = sets[sets["part"] == "train"]
    images_of_size = train.groupby(["level", "cell_size"])["row"].transform("size")
    images_of_level = train.groupby("level")["row"].transform("size")
    known = train["cell_size"] > 0  # whose person is known
    common = train[known & (images_of_size >= 0.002 * images_of_level)]

    effective = train.groupby(["level", "seed"])[methods].agg(effective_sample_size).reset_index()
    return {
        "weights": _mean_and_quantiles(common, ["level", "cell_size"], methods),
        "effective": _mean_and_quantiles(effective, ["level"], methods),
    }


def _mean_and_quantiles(table: pd.DataFrame, keys: list[str], methods: list[str]) -> pd.DataFrame:
    """Mean and 10 % and 90 % quantiles of the columns ``methods`` in every group, one row each."""
    groups = table.groupby(keys)[methods]
    columns = (groups.mean(), groups.quantile(0.1), groups.quantile(0.9))
    stacked = {name: column.stack() for name, column in zip(INTERVAL, columns, strict=True)}
    return pd.DataFrame(stacked).rename_axis([*keys, "method"]).reset_index()
