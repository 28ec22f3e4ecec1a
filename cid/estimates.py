"""Accuracies on surprised and on other images, their join, and the spread over people, with intervals.

What is resampled are groups of images that are each other's neighbours (:mod:`cid.kin`): images of one
person are right or wrong together.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cid.kin import groups, mutual_neighbours, resampled_sums

MEASURES = ("minority", "majority", "balanced", "spread")
ROUNDING = 1e-12  # a variance below it is that of rounded sums
LABELS = "(labels)"  # stands for a model in what is said of the labels
KIN = 3  # nearest neighbours among which two images must find each other
INTERVAL = 1.96  # standard errors on each side: 95 %
POWER = 1.96 + 0.84  # standard errors that are found with a chance of 80 %


@dataclass(frozen=True)
class Estimate:
    """One measure of one model, with its 95 % interval.

    ``minority`` is the accuracy on surprised images, ``majority`` that on the others, ``balanced`` both
    joined as on a test set in which every person has every class alike; ``spread`` is the standard
    deviation over people of the accuracy on images like the test images.
    """

    model: str
    measure: str  # one of MEASURES
    estimate: float  # NaN where there are no such images
    low: float
    high: float
    images: int  # test images that it rests on


@dataclass(frozen=True)
class Difference:
    """One measure of a model less that of another on the same images, with its 95 % interval."""

    model: str
    against: str
    measure: str
    difference: float
    low: float
    high: float
    smallest: float  # true difference that would be found with a chance of 80 %


class Counts:
    """What every measure is computed from: sums over images and over pairs of kin, by group.

    An image counts by ``trust`` (m,), how probable it is that its label is right; by default 1.
    """

    def __init__(self, test, flagged, correct, n_classes: int, trust=None):
        self.n_models = correct.shape[1]
        self.n_classes = n_classes
        trust = np.ones(len(test)) if trust is None else np.asarray(trust, dtype=np.float64)
        surprised = (flagged * trust)[:, None]
        others = (~flagged * trust)[:, None]
        pairs = mutual_neighbours(test, KIN, device=str(test.device))
        group = groups(len(test), pairs)
        first, second = 1 - correct[pairs[:, 0]], 1 - correct[pairs[:, 1]]
        both = (trust[pairs[:, 0]] * trust[pairs[:, 1]])[:, None]
        of_images = [surprised, others, surprised * correct, others * correct]
        of_pairs = [both, both * (first + second), both * first * second]
        self.sums = np.hstack(
            [_by_group(np.hstack(of_images), group, group.max() + 1)]
            + [_by_group(np.hstack(of_pairs), group[pairs[:, 0]], group.max() + 1)]
        )
        self.wrong = _by_group(
            np.stack([1 - trust, np.ones(len(test))], axis=1), group, group.max() + 1
        )
        few, many = _equal_images(surprised), _equal_images(others)
        kin = len(np.unique(pairs))
        # Images that a measure rests on, and as how many equal ones they count.
        self.images = {
            "minority": round(few),
            "majority": round(many),
            "balanced": round(few + many),
            "spread": kin,
        }
        share = 1 - 1 / n_classes
        effective = 1 / (share**2 / few + (1 - share) ** 2 / many) if few and many else 0.0
        self.effective = {"minority": few, "majority": many, "balanced": effective, "spread": kin}

    def measures(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The measures (..., models) from sums (..., k) over some groups."""
        places = np.cumsum([1, 1, self.n_models, self.n_models, 1, self.n_models])
        few, many, right_few, right_many, pairs, either, both = np.split(sums, places, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            minority = right_few / few
            majority = right_many / many
            share = 1 - 1 / self.n_classes
            wrong = 1 - (right_few + right_many) / (few + many)
            covariance = (both - wrong * either) / pairs + wrong**2
            return {
                "minority": minority,
                "majority": majority,
                "balanced": share * minority + (1 - share) * majority,
                "spread": np.sqrt(np.maximum(covariance, 0)),
                "covariance": covariance,  # of the errors of two images of one person
                # Its standard error if people did not differ at all, which resamples can miss.
                "chance": wrong * (1 - wrong) / np.sqrt(pairs),
            }


def _equal_images(weights: np.ndarray) -> float:
    """As how many equal images weighted ones count: Kish's effective sample size."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def share_of_wrong_labels(counts: Counts, seed: int, bootstrap: int) -> Estimate:
    """The share of labels that are wrong, with what other test images would change."""
    wrong, images = counts.wrong.sum(axis=0)
    drawn = resampled_sums(counts.wrong, bootstrap, seed)
    share = float(wrong / images)
    ends = _wilson(share, float((drawn[:, 0] / drawn[:, 1]).var()), images)
    low = ends[0] if share else 0.0
    return Estimate(LABELS, "wrong", share, low, ends[1], int(images))


def _by_group(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums (G, k) of values (n, k) over the groups (n,) of their rows."""
    columns = [np.bincount(group, weights=column, minlength=n_groups) for column in values.T]
    return np.stack(columns, axis=1)


def estimated(names, counts: Counts, seed: int, bootstrap: int):
    """All estimates and differences of some models, named in the order of the columns of answers."""
    point = counts.measures(counts.sums.sum(axis=0))
    drawn = counts.measures(resampled_sums(counts.sums, bootstrap, seed))
    estimates = [
        Estimate(
            name,
            measure,
            float(point[measure][number]),
            *_ends(point, drawn, number, counts, measure),
            counts.images[measure],
        )
        for number, name in enumerate(names)
        for measure in MEASURES
    ]
    differences = []
    for first, second in combinations(range(len(names)), 2):
        for measure in MEASURES:
            value = float(point[measure][second] - point[measure][first])
            error = _error(drawn[measure][:, second] - drawn[measure][:, first], counts, measure)
            low = float(np.maximum(value - INTERVAL * error, -1))
            high = float(np.minimum(value + INTERVAL * error, 1))
            differences.append(
                Difference(names[second], names[first], measure, value, low, high, POWER * error)
            )
    return estimates, differences


def _ends(point, drawn, number: int, counts: Counts, measure: str) -> tuple[float, float]:
    """Ends of a 95 % interval of one estimate of one model."""
    value = point[measure][number]
    if not np.isfinite(value):
        return np.nan, np.nan
    if measure == "spread":
        error = max(np.nanstd(drawn["covariance"][:, number]), point["chance"][number])
        ends = point["covariance"][number] + INTERVAL * error * np.array([-1, 1])
        low, high = np.sqrt(np.maximum(ends, 0))
        return float(low), float(high)
    return _wilson(
        float(value), float(np.nanvar(drawn[measure][:, number])), counts.effective[measure]
    )


def _wilson(value: float, variance: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share, of n images at most and as few as explain its variance.

    It holds near 1, too, where resamples hardly vary.
    """
    value = min(max(value, 0.0), 1.0)  # sums of weights round
    if variance > ROUNDING and 0 < value < 1:
        n = min(n, value * (1 - value) / variance)
    centre = (value + INTERVAL**2 / (2 * n)) / (1 + INTERVAL**2 / n)
    error = np.sqrt(value * (1 - value) / n + INTERVAL**2 / (4 * n**2)) / (1 + INTERVAL**2 / n)
    return float(max(centre - INTERVAL * error, 0)), float(min(centre + INTERVAL * error, 1))


def _error(drawn: np.ndarray, counts: Counts, measure: str) -> float:
    """Standard error of a difference from its resamples (R,).

    Where two models hardly ever differ, one image more on which they do would change much: its variance
    is added, after Agresti & Min, "Effects and non-effects of paired identical observations" (2004).
    """
    variance = np.nanvar(drawn) if np.isfinite(drawn).any() else np.nan
    if measure != "spread":
        variance += 1 / (counts.effective[measure] + 2) ** 2
    return float(np.sqrt(variance))
