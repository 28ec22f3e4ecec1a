"""Identity-robustness metrics: pure functions of labels, scores and identities.

A *run* is one method on one biased training set (one level, one seed). Its metrics are computed from
the scores of its test images and their true identities, which are evaluation data: no method without
identity labels sees them. Intervals and comparisons are in :mod:`study.results.inference`.

Wherever they appear, ``labels`` are 0 or 1, ``scores`` are logits of class 1 (an image is called 1
when its score is above 0), and all arrays have shape (n,), one value an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

ECE_BINS = 15


@dataclass(frozen=True)
class Metric:
    """A metric of one run.

    Attributes
    ----------
    title : str
        Name in figures and tables.
    definition : str
        One sentence, with the labels it uses.
    better : {"higher", "lower"}
    measure : callable
        ``(labels, scores, identities) -> float``
    weighted : callable
        ``(run, counts) -> values``: the same of every method of a :class:`Run`, shape (R, m), when its
        people count as often as ``counts``, shape (R, k); NaN where undefined.
    """

    title: str
    definition: str
    better: str
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray], float]
    weighted: Callable[[Run, np.ndarray], np.ndarray]


def accuracy(labels, scores) -> float:
    """Share of the images that are classified right."""
    return float(_right(labels, scores).mean())


def balanced_accuracy(labels, scores) -> float:
    """Mean of the true positive and the true negative rate; NaN where a class is missing."""
    labels, right = np.asarray(labels), _right(labels, scores)
    if not 0 < labels.sum() < len(labels):
        return np.nan
    return float((right[labels == 1].mean() + right[labels == 0].mean()) / 2)


def auroc(labels, scores) -> float:
    """Area under the ROC curve: share of (positive, negative) pairs ranked right, ties by half.

    Computed from ranks (Mann and Whitney 1947); NaN where a class is missing.
    """
    positive = np.asarray(labels) == 1
    n1, n0 = positive.sum(), (~positive).sum()
    if n1 == 0 or n0 == 0:
        return np.nan
    rank_sum = rankdata(np.asarray(scores))[positive].sum()
    return float((rank_sum - n1 * (n1 + 1) / 2) / (n1 * n0))


def ece(labels, scores) -> float:
    """Expected calibration error: mean distance of accuracy and confidence over confidence bins.

    Confidence is the sigmoid probability of the predicted class; there are 15 bins of equal width on
    (0, 1], each closed on the right, weighted by their number of images. Two classes leave confidence
    at one half or more, so the upper eight bins are in use. Guo et al., "On Calibration of Modern
    Neural Networks", arXiv 1706.04599 (2017).
    """
    confidence, bins = confidence_bins(scores)
    return float(np.abs(np.bincount(bins, _right(labels, scores) - confidence)).sum() / len(bins))


def confidence_bins(scores) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in the predicted class and its bin, 0 to 14; arrays of the shape of ``scores``."""
    confidence = expit(np.abs(np.asarray(scores, dtype=float)))
    return confidence, np.ceil(confidence * ECE_BINS).astype(int) - 1


def brier(labels, scores) -> float:
    """Brier score: mean squared distance of the predicted probability of class 1 from the label.

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
    78 (1950), in the form for two classes, between 0 and 1.
    """
    return float(((expit(np.asarray(scores, dtype=float)) - np.asarray(labels)) ** 2).mean())


def identity_accuracy(labels, scores, identities) -> pd.Series:
    """Accuracy of every identity, or of every group of another grouping of the images.

    Returns
    -------
    pandas.Series indexed by identity, in sorted order.
    """
    names, codes = np.unique(np.asarray(identities), return_inverse=True)
    right = np.bincount(codes, _right(labels, scores), minlength=len(names))
    return pd.Series(right / np.bincount(codes, minlength=len(names)), index=names)


def worst_decile(per_identity) -> float:
    """Mean accuracy of the worst tenth of identities, rounded up to at least one identity."""
    ordered = np.sort(np.asarray(per_identity, dtype=float))
    return float(ordered[: -(-len(ordered) // 10)].mean())


def gini(per_identity) -> float:
    """Gini coefficient: mean distance of two identities' accuracies over twice their mean.

    The two are drawn with replacement. 0 where all are alike, towards 1 where few identities have all
    that is right; 0 too where nothing is right. C. Gini, "Variabilita e mutabilita" (1912).
    """
    a = np.sort(np.asarray(per_identity, dtype=float))
    below_minus_above = 2 * np.arange(len(a)) - (len(a) - 1)
    return float(below_minus_above @ a / (len(a) * a.sum())) if a.any() else 0.0


def rate_gap(labels, scores, identities, value: int) -> float:
    """Largest difference between two identities' share of class ``value`` that is classified right.

    Only identities with an image of the class count; NaN where there is none. ``value`` 1 compares
    true positive rates, 0 true negative rates.
    """
    labels, scores, identities = map(np.asarray, (labels, scores, identities))
    rows = labels == value
    if not rows.any():
        return np.nan
    return float(np.ptp(identity_accuracy(labels[rows], scores[rows], identities[rows])))


def group_gap(labels, scores, groups) -> float:
    """Accuracy of the best-served group minus that of the worst, over the groups that occur."""
    return float(np.ptp(identity_accuracy(labels, scores, groups)))


@dataclass(frozen=True)
class Run:
    """Test images of one training set, n of k people sorted by person, scored by m methods.

    Attributes
    ----------
    row : int array, shape (n,)
        Of the data set.
    label : float array, shape (n,)
        0 or 1.
    score : float array, shape (n, m)
    starts : int array, shape (k,)
        First image of every person.
    """

    row: np.ndarray
    label: np.ndarray
    score: np.ndarray
    starts: np.ndarray

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
    def rate(self) -> np.ndarray:
        """Accuracy of every person, shape (k, m)."""
        return self.sums(self.right) / self.size[:, None]


def share(run: Run, counts: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean of ``values`` (n, m) over the images where ``rows`` (n,) is 1; shape (R, m)."""
    chosen = np.asarray(rows, dtype=float)
    return ratio(counts @ run.sums(values * chosen[:, None]), (counts @ run.sums(chosen))[:, None])


def _accuracy(run: Run, counts: np.ndarray) -> np.ndarray:
    return share(run, counts, run.right, np.ones(len(run.row)))


def _balanced_accuracy(run: Run, counts: np.ndarray) -> np.ndarray:
    return sum(share(run, counts, run.right, run.label == c) for c in (0, 1)) / 2


def _identity_balanced_accuracy(run: Run, counts: np.ndarray) -> np.ndarray:
    return ratio(counts @ run.rate, counts.sum(axis=1, keepdims=True))


def _brier(run: Run, counts: np.ndarray) -> np.ndarray:
    squares = (expit(run.score) - run.label[:, None]) ** 2
    return share(run, counts, squares, np.ones(len(run.row)))


def _ece(run: Run, counts: np.ndarray) -> np.ndarray:
    confidence, bins = confidence_bins(run.score)
    excess = np.stack(
        [run.sums(np.where(bins == b, run.right - confidence, 0)) for b in range(ECE_BINS)]
    )
    apart = np.abs(counts @ excess).sum(axis=0)
    return ratio(apart, (counts @ run.size)[:, None])


def _auroc(run: Run, counts: np.ndarray) -> np.ndarray:
    # The share of ordered pairs is a quadratic form in the counts: wins[i, j] says how many pairs of
    # a positive of person i and a negative of person j are in the right order.
    k, positive = len(run.starts), run.label == 1
    person = np.eye(k)[np.repeat(np.arange(k), run.size.astype(int))]
    pairs = (counts @ person[positive].sum(axis=0)) * (counts @ person[~positive].sum(axis=0))
    ordered = np.empty((len(counts), run.score.shape[1]))
    for m, score in enumerate(run.score.T):
        order = np.argsort(score[~positive], kind="stable")
        below = np.vstack([np.zeros(k), person[~positive][order].cumsum(axis=0)])
        negatives = score[~positive][order]
        wins = sum(
            below[np.searchsorted(negatives, score[positive], side)] for side in ("left", "right")
        )
        wins = person[positive].T @ wins / 2  # a tie counts by half
        ordered[:, m] = ((counts @ wins) * counts).sum(axis=1)
    return ratio(ordered, pairs[:, None])


def _by_rank(formula: Callable) -> Callable:
    """A measure from ``formula(accuracy, counts, counts summed up to each)``, people worst first."""

    def measure(run: Run, counts: np.ndarray) -> np.ndarray:
        values = np.empty((len(counts), run.rate.shape[1]))
        for m, rate in enumerate(run.rate.T):
            order = np.argsort(rate, kind="stable")
            sorted_counts = counts[:, order]
            values[:, m] = formula(rate[order], sorted_counts, sorted_counts.cumsum(axis=1))
        return values

    return measure


def _worst_decile(rate, counts, upto) -> np.ndarray:
    needed = np.ceil(upto[:, -1:] / 10)
    taken = np.clip(needed - (upto - counts), 0, counts)
    return ratio(taken @ rate, needed[:, 0])


def _gini(rate, counts, upto) -> np.ndarray:
    n, right = upto[:, -1], counts @ rate
    # 2 * upto - counts - n: how many people are worse off than a person, minus how many are better.
    apart = np.einsum("k,rk,rk->r", rate, counts, 2 * upto - counts - n[:, None])
    return np.where((n > 0) & (right == 0), 0.0, ratio(apart, n * right))


def _identity_sd(run: Run, counts: np.ndarray) -> np.ndarray:
    centred = run.rate - run.rate.mean(axis=0)  # so that the difference of moments loses no digits
    n = counts.sum(axis=1, keepdims=True)
    variance = ratio(counts @ centred**2, n) - ratio(counts @ centred, n) ** 2
    return np.sqrt(np.maximum(variance, 0))


def _least(rate: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Lowest ``rate`` (k, m) among the people ``present`` (R, k); NaN where there is none."""
    least = np.empty((len(present), rate.shape[1]))
    for m, values in enumerate(rate.T):
        order = np.argsort(values, kind="stable")
        least[:, m] = values[order[present[:, order].argmax(axis=1)]]
    return np.where(present.any(axis=1)[:, None], least, np.nan)


def _worst_identity(run: Run, counts: np.ndarray) -> np.ndarray:
    return _least(run.rate, counts > 0)


def _rate_gap(value: int) -> Callable:
    def measure(run: Run, counts: np.ndarray) -> np.ndarray:
        rows = (run.label == value).astype(float)
        size = run.sums(rows)
        if not size.any():
            return np.full((len(counts), run.score.shape[1]), np.nan)
        rate = run.sums(run.right * rows[:, None])[size > 0] / size[size > 0, None]
        present = counts[:, size > 0] > 0
        return -_least(-rate, present) - _least(rate, present)

    return measure


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient of non-negative denominators; NaN where 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


METRICS = {
    "accuracy": Metric(
        "Accuracy",
        "Share of all test images that are classified right; uses class labels.",
        "higher",
        lambda y, s, g: accuracy(y, s),
        _accuracy,
    ),
    "balanced_accuracy": Metric(
        "Balanced accuracy",
        "Mean of the true positive and the true negative rate over all test images; uses class "
        "labels.",
        "higher",
        lambda y, s, g: balanced_accuracy(y, s),
        _balanced_accuracy,
    ),
    "identity_balanced_accuracy": Metric(
        "Identity-balanced accuracy",
        "Mean over identities of their accuracy, every identity counting the same; uses class labels "
        "and true identities.",
        "higher",
        lambda y, s, g: float(identity_accuracy(y, s, g).mean()),
        _identity_balanced_accuracy,
    ),
    "auroc": Metric(
        "AUROC",
        "Share of (positive, negative) pairs of test images whose logits are in the right order; "
        "uses class labels.",
        "higher",
        lambda y, s, g: auroc(y, s),
        _auroc,
    ),
    "ece": Metric(
        "Expected calibration error",
        "Mean distance between accuracy and confidence over 15 bins of equal width of the predicted "
        "class's confidence, weighted by images; uses class labels.",
        "lower",
        lambda y, s, g: ece(y, s),
        _ece,
    ),
    "brier": Metric(
        "Brier score",
        "Mean squared distance between the predicted probability of class 1 and the label; uses class "
        "labels.",
        "lower",
        lambda y, s, g: brier(y, s),
        _brier,
    ),
    "worst_decile": Metric(
        "Worst-decile accuracy",
        "Mean accuracy of the worst tenth of identities, rounded up to at least one; uses class labels "
        "and true identities.",
        "higher",
        lambda y, s, g: worst_decile(identity_accuracy(y, s, g)),
        _by_rank(_worst_decile),
    ),
    "worst_identity": Metric(
        "Worst-identity accuracy",
        "Accuracy of the identity with the lowest; uses class labels and true identities.",
        "higher",
        lambda y, s, g: float(identity_accuracy(y, s, g).min()),
        _worst_identity,
    ),
    "identity_sd": Metric(
        "Standard deviation over identities",
        "Standard deviation of accuracy over identities (divisor n); uses class labels and true "
        "identities.",
        "lower",
        lambda y, s, g: float(identity_accuracy(y, s, g).std(ddof=0)),
        _identity_sd,
    ),
    "identity_gini": Metric(
        "Gini coefficient over identities",
        "Mean distance between the accuracies of two identities over twice the mean accuracy; uses "
        "class labels and true identities.",
        "lower",
        lambda y, s, g: gini(identity_accuracy(y, s, g)),
        _by_rank(_gini),
    ),
    "tpr_gap": Metric(
        "Largest TPR gap",
        "Largest difference between two identities' true positive rates; uses class labels and true "
        "identities.",
        "lower",
        lambda y, s, g: rate_gap(y, s, g, 1),
        _rate_gap(1),
    ),
    "tnr_gap": Metric(
        "Largest TNR gap",
        "Largest difference between two identities' true negative rates; uses class labels and true "
        "identities.",
        "lower",
        lambda y, s, g: rate_gap(y, s, g, 0),
        _rate_gap(0),
    ),
}


def run_metrics(labels, scores, identities, metrics=METRICS) -> dict[str, float]:
    """Metrics of one run; see each one's definition in :data:`METRICS`.

    Parameters
    ----------
    labels, scores, identities : array, shape (n,)
    metrics : iterable of str
        Which; all by default.
    """
    labels, scores, identities = map(np.asarray, (labels, scores, identities))
    return {name: METRICS[name].measure(labels, scores, identities) for name in metrics}


def evaluate(
    predictions: pd.DataFrame, methods, labels, identities, metrics=METRICS
) -> pd.DataFrame:
    """Metrics of every run.

    Parameters
    ----------
    predictions : pandas.DataFrame
        ``level``, ``seed``, ``test``, ``row`` and a score column for every method.
    methods : list of str
    labels, identities : array, shape (n,)
        Of the whole data set, indexed by ``row``.
    metrics : iterable of str
        Keys of :data:`METRICS`; all by default.

    Returns
    -------
    pandas.DataFrame
        One row a run and test set: ``level``, ``seed``, ``test``, ``method``, and the metrics.
    """
    labels = np.asarray(labels)
    codes = np.unique(np.asarray(identities), return_inverse=True)[1]
    runs = []
    for (level, seed, test), part in predictions.groupby(["level", "seed", "test"]):
        rows = part["row"].to_numpy()
        y, g = labels[rows], codes[rows]
        for method in methods:
            runs.append(
                {"level": level, "seed": seed, "test": test, "method": method}
                | run_metrics(y, part[method].to_numpy(), g, metrics)
            )
    return pd.DataFrame(runs)


def accuracy_by_identity(predictions: pd.DataFrame, methods, labels, identities) -> pd.DataFrame:
    """Accuracy of every identity under every method, over all seeds that tested it.

    Arguments as in :func:`evaluate`.

    Returns
    -------
    pandas.DataFrame
        One row a level, test set and identity (the index), one column a method.
    """
    truth = np.asarray(labels)[predictions["row"]] == 1
    right = (predictions[list(methods)] > 0).eq(truth, axis=0)
    keys = [predictions["level"], predictions["test"]]
    people = pd.Series(
        np.asarray(identities)[predictions["row"]], predictions.index, name="identity"
    )
    return right.groupby([*keys, people]).mean()


def pair_similarities(embeddings, identities) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarity of all pairs of images, same person and different people.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit vectors.
    identities : array, shape (n,)

    Returns
    -------
    same, different : float32 arrays
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    codes = np.unique(np.asarray(identities), return_inverse=True)[1]
    first, second = np.triu_indices(len(codes), 1)
    cosine = (embeddings @ embeddings.T)[first, second]
    same = codes[first] == codes[second]
    return cosine[same], cosine[~same]


def verification_auc(same, different) -> float:
    """Area under the ROC curve of telling same-person pairs from different-people pairs."""
    truth = np.r_[np.ones(len(same), bool), np.zeros(len(different), bool)]
    return float(roc_auc_score(truth, np.r_[same, different]))


def _right(labels, scores) -> np.ndarray:
    return (np.asarray(scores) > 0) == (np.asarray(labels) == 1)
