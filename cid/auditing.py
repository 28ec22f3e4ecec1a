"""Audit the predictions of models without identities: who is failed, and when not to trust the answer.

A validation set as biased as the training set says little about the people whose rarer class is at
stake. An image is *surprised* if the posterior among the training images that resemble it
(:mod:`cid.posterior`) finds another class likelier than its own: such images stand for each person's
rarer classes, the others for the class that is most frequent for that person. Of C classes a test set
in which every person has every class alike holds (C - 1) / C of the former and 1 / C of the latter, and
so are the two joined. (The inverse of the posterior as a weight, Horvitz & Thompson's estimate, erred
more on development people: it asks for probabilities, where flags ask for the likeliest class.)

How much people differ is told by errors that two images of one person have in common: images that are
each other's nearest neighbours (:mod:`cid.kin`) take their place.

Only class labels are used. The thresholds of a refusal were chosen on development people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from cid.arrays import array, class_codes, unit_vectors, warn_of_many_classes
from cid.classified import places_of_classes, predicted_classes
from cid.kin import groups, mutual_neighbours, resampled_sums
from cid.posterior import new_posterior, two_classes, without_class_direction
from cid.settings import Count, Whole, checked

MEASURES = ("minority", "majority", "balanced", "spread")
# Neighbours that say which class is likeliest, and as many for a variant. The likelihood often prefers
# fewer, among which are near copies with the same label; ten found surprised images better.
NEIGHBOURS = 10
FEWER = 5
KIN = 3  # nearest neighbours among which two images must find each other
FEWEST = 20  # surprised images below which nothing is said
# Jaccard index of the flags and those found with a variant of the proxy, below which it is too weak:
# with the label's direction kept, and among fewer neighbours.
AGREEMENT = {"agreement_direction": 0.75, "agreement_neighbours": 0.55}
CHANCE = 2.0  # standard errors by which the posterior must beat the class frequencies
INTERVAL = 1.96  # standard errors on each side: 95 %
POWER = 1.96 + 0.84  # standard errors that are found with a chance of 80 %

UNKNOWN = (
    "How the worst-served people fare: groups of look-alike images are not people, and their worst tenth "
    "is no estimate of the worst tenth of people.",
    "Who is failed: surprised images are those of a class that is unusual for whoever looks like that, "
    "not those of a group with a name.",
    "Whether a label is wrong: a surprised image may be one whose label is a mistake, and then a right "
    "prediction counts as an error.",
    "How people fare who have no image among the training images, and none who look like them there.",
    "How far the flags are wrong: intervals hold what other test images would change, not surprised "
    "images that were missed or others that were flagged.",
)


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


@dataclass(frozen=True)
class Audit:
    """What an audit found, and what it could not know."""

    estimates: list[Estimate]
    differences: list[Difference]
    refusal: str | None  # one sentence: why none of it must be trusted; else None
    signs: Mapping[str, float]  # what the refusal was decided by
    flagged: np.ndarray  # bool (m,): surprised test images
    unknown: tuple[str, ...]  # sentences: what no audit without identities knows


def audit(
    train_embeddings,
    train_labels,
    test_embeddings,
    test_labels,
    predictions: Mapping[str, Any],
    *,
    classes: Sequence | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    device: str = "auto",
) -> Audit:
    """Estimate how models serve people whose labels are unusual for them, without identities.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> person = np.repeat(np.arange(60), 20)  # half of the images train
    >>> train = np.arange(1200) % 2 == 0
    >>> faces = rng.normal(size=(60, 16))[person] + 0.1 * rng.normal(size=(1200, 16))
    >>> labels = (rng.random(1200) < np.where(person % 2, 0.9, 0.1)).astype(int)
    >>> usual = person[~train] % 2  # a model that knows people, and not what it should know
    >>> found = audit(faces[train], labels[train], faces[~train], labels[~train], {"mine": usual})
    >>> [(row.measure, round(row.estimate, 1)) for row in found.estimates[:3]]
    [('minority', 0.1), ('majority', 1.0), ('balanced', 0.5)]

    Parameters
    ----------
    train_embeddings : array or tensor, shape (n, d)
        Proxy embeddings of the training images; only their direction counts.
    train_labels : array or tensor, shape (n,)
        Their classes, at least two.
    test_embeddings, test_labels : array or tensor, shapes (m, d) and (m,)
        Of images that trained nothing. Like the training images, they may have few images of a
        person's rarer class, but some.
    predictions : mapping
        For every model, by name, its predictions of the test images: classes (m,), or of two classes
        scores (m,) of the second, or scores (m, C); see :func:`cid.classified.predicted_classes`.
    classes : sequence, optional
        The classes in the order of the columns of scores; by default sorted.
    seed : int
        Draws the resamples.
    bootstrap : int
        Resamples behind every interval; what is drawn are groups of images that are each other's
        neighbours.

    Returns
    -------
    Audit
        Estimates are given even where ``refusal`` says that they must not be trusted.

    Raises
    ------
    ValueError
        On embeddings, labels, predictions or settings that cannot be used.
    """
    seed = checked("seed", seed, Whole)
    bootstrap = checked("bootstrap", bootstrap, Count)
    train = _unit("train", train_embeddings, device)
    test = _unit("test", test_embeddings, device)
    codes = two_classes(train_labels, len(train), "train labels")
    class_codes(test_labels, len(test), "test labels")
    warn_of_many_classes(train_labels)
    # Classes that trained nothing may be columns of scores, and are never right.
    present = np.unique(array("train labels", train_labels)).tolist()
    known = present if classes is None else list(classes)
    places_of_classes(train_labels, known, "train labels")
    own = places_of_classes(test_labels, present, "test labels")
    wanted = places_of_classes(test_labels, known, "test labels")
    right = _right(predictions, wanted, known)

    flags = _Flags(train, codes, test, own)
    correct = np.stack(list(right.values()), axis=1).astype(np.float64)
    counts = _Counts(test, flags.flagged, correct, len(present))
    estimates, differences = _estimates(list(right), counts, seed, bootstrap)
    return Audit(estimates, differences, refusal(flags.signs), flags.signs, flags.flagged, UNKNOWN)


def refusal(signs: Mapping[str, float]) -> str | None:
    """One sentence that says why an audit with these signs must not be trusted, or None."""
    images = int(signs["flagged_images"])
    if signs["gain"] <= CHANCE * signs["gain_error"]:
        return (
            "the training images that resemble a test image tell its label no better than chance: the "
            "proxy does not know people, or every person has one image, or nobody's labels are unusual; "
            "use another proxy or more images of a person"
        )
    if images < FEWEST:
        return (
            f"only {images} test images have a label that is unusual for their like, and at least "
            f"{FEWEST} are needed; audit on more images"
        )
    for name, needed in AGREEMENT.items():
        if signs[name] < needed:
            return (
                f"with a variant of the proxy the images found unusual agree by {signs[name]:.0%} only, "
                f"and {needed:.0%} is needed: the proxy is too weak, or hardly anybody's labels are "
                "unusual; use a better face-recognition network or better crops"
            )
    return None


class _Flags:
    """Which test images are surprised, and the signs of how far that can be trusted."""

    def __init__(self, train, codes, test, own):
        rows = np.arange(len(own))
        cleaned, new = without_class_direction(train, codes, test, device=str(train.device))
        most = len(train) - 1
        posterior = new_posterior(cleaned, codes, new, scale=min(NEIGHBOURS, most))
        probability = _numpy(posterior.probability)
        self.flagged = _surprised(probability, own)
        with_direction = new_posterior(train, codes, test, scale=min(NEIGHBOURS, most))
        fewer = new_posterior(cleaned, codes, new, scale=min(FEWER, most))
        prior = np.bincount(codes) / len(codes)
        gain = np.log(probability[rows, own]) - np.log(prior[own])
        self.signs = {
            "flagged_images": int(self.flagged.sum()),
            "flagged": float(self.flagged.mean()),
            "expected": float(1 - probability.max(axis=1).mean()),
            "gain": float(gain.mean()),
            "gain_error": float(gain.std() / len(gain) ** 0.5),
            "agreement_direction": _jaccard(
                self.flagged, _surprised(_numpy(with_direction.probability), own)
            ),
            "agreement_neighbours": _jaccard(
                self.flagged, _surprised(_numpy(fewer.probability), own)
            ),
        }


def _surprised(probability: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Whether another class is likelier (m, C) than the own one (m,)."""
    return probability[np.arange(len(own)), own] < probability.max(axis=1)


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Share of what is in either of two sets that is in both; 1 where both are empty."""
    either = (first | second).sum()
    return float((first & second).sum() / either) if either else 1.0


def _right(predictions, wanted, classes) -> dict[str, np.ndarray]:
    """For every model: whether it is right on each test image."""
    if not isinstance(predictions, Mapping) or not predictions:
        raise ValueError(
            f"predictions are {type(predictions).__name__}; pass a dict of at least one model, by name"
        )
    return {
        name: predicted_classes(values, classes, len(wanted), f"predictions of {name!r}") == wanted
        for name, values in predictions.items()
    }


def _unit(which: str, embeddings, device: str):
    """Unit vectors, whose errors say which images are meant."""
    try:
        return unit_vectors(embeddings, device)
    except ValueError as error:
        raise ValueError(str(error).replace("embeddings", f"{which} embeddings", 1)) from None


def _numpy(values) -> np.ndarray:
    return values.cpu().numpy() if hasattr(values, "cpu") else values


class _Counts:
    """What every measure is computed from: sums over images and over pairs of kin, by group."""

    def __init__(self, test, flagged, correct, n_classes: int):
        self.n_models = correct.shape[1]
        self.n_classes = n_classes
        surprised = flagged[:, None].astype(np.float64)
        pairs = mutual_neighbours(test, KIN, device=str(test.device))
        group = groups(len(test), pairs)
        first, second = 1 - correct[pairs[:, 0]], 1 - correct[pairs[:, 1]]
        of_images = [surprised, 1 - surprised, surprised * correct, (1 - surprised) * correct]
        of_pairs = [np.ones((len(pairs), 1)), first + second, first * second]
        self.sums = np.hstack(
            [_by_group(np.hstack(of_images), group, group.max() + 1)]
            + [_by_group(np.hstack(of_pairs), group[pairs[:, 0]], group.max() + 1)]
        )
        few, many = int(flagged.sum()), int((~flagged).sum())
        kin = len(np.unique(pairs))
        # Images that a measure rests on, and as how many equal ones they count.
        self.images = {"minority": few, "majority": many, "balanced": few + many, "spread": kin}
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
            }


def _by_group(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums (G, k) of values (n, k) over the groups (n,) of their rows."""
    columns = [np.bincount(group, weights=column, minlength=n_groups) for column in values.T]
    return np.stack(columns, axis=1)


def _estimates(names, counts: _Counts, seed: int, bootstrap: int):
    """All estimates and differences."""
    point = counts.measures(counts.sums.sum(axis=0))
    drawn = counts.measures(resampled_sums(counts.sums, bootstrap, seed))
    estimates = [
        Estimate(
            name,
            measure,
            float(point[measure][number]),
            *_interval(point[measure][number], drawn[measure][:, number], counts, measure),
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
            low, high = value - INTERVAL * error, value + INTERVAL * error
            differences.append(
                Difference(names[second], names[first], measure, value, low, high, POWER * error)
            )
    return estimates, differences


def _interval(value: float, drawn: np.ndarray, counts: _Counts, measure: str):
    """Ends of a 95 % interval of one estimate, from its resamples (R,)."""
    if not np.isfinite(value):
        return np.nan, np.nan
    if measure == "spread":
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return float(low), float(high)
    # Wilson's interval, which holds near 1, too, for as many images as explain the resamples' variance.
    n = counts.effective[measure]
    variance = np.nanvar(drawn)
    if variance > 0:
        n = min(n, value * (1 - value) / variance)
    centre = (value + INTERVAL**2 / (2 * n)) / (1 + INTERVAL**2 / n)
    spread = np.sqrt(value * (1 - value) / n + INTERVAL**2 / (4 * n**2)) / (1 + INTERVAL**2 / n)
    half = INTERVAL * spread
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def _error(drawn: np.ndarray, counts: _Counts, measure: str) -> float:
    """Standard error of a difference from its resamples (R,).

    Where two models hardly ever differ, one image more on which they do would change much: its variance
    is added, after Agresti & Min, "Effects and non-effects of paired identical observations" (2004).
    """
    variance = np.nanvar(drawn) if np.isfinite(drawn).any() else np.nan
    if measure != "spread":
        variance += 1 / (counts.effective[measure] + 2) ** 2
    return float(np.sqrt(variance))
