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

A wrong label is as surprising as a rare one, and a model that is right about the image then counts as
wrong. With features of the task a test image counts by how probable it is that its label is right
(:func:`cid.trust.trust_by_neighbours_too`): heads judge that which trained on other images, and which are
none of the models. Which images are surprised, they do not decide.

Only class labels are used. The thresholds of a refusal were chosen on development people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cid.arrays import array, class_codes, unit_vectors, warn_of_many_classes
from cid.classified import places_of_classes, predicted_classes
from cid.estimates import (
    LABELS,
    MEASURES,
    Counts,
    Difference,
    Estimate,
    estimated,
    share_of_wrong_labels,
)
from cid.posterior import label_posterior, new_posterior, two_classes, without_class_direction
from cid.settings import Count, Whole, checked

__all__ = ["LABELS", "MEASURES", "Audit", "Difference", "Estimate", "audit", "refusal"]

# Neighbours that say which class is likeliest, and as many for a variant. The likelihood often prefers
# fewer, among which are near copies with the same label; ten found surprised images better.
NEIGHBOURS = 10
FEWER = 5
FEWEST = 20  # surprised images below which nothing is said
# Jaccard index of the flags and those found with a variant of the proxy, below which it is too weak:
# with the label's direction kept, and among fewer neighbours.
AGREEMENT = {"agreement_direction": 0.75, "agreement_neighbours": 0.55}
CHANCE = 2.0  # standard errors by which the posterior must beat the class frequencies

LABELS_UNKNOWN = (
    "Whether a label is wrong: a surprised image may be one whose label is a mistake, and then a right "
    "prediction counts as an error."
)
LABELS_JUDGED = (
    "Which single label is wrong: images count by how probable it is that theirs is right, and labels that "
    "people would dispute, near the border between classes, are taken for right."
)
UNKNOWN = (
    "How the worst-served people fare: groups of look-alike images are not people, and their worst tenth "
    "is no estimate of the worst tenth of people.",
    "Who is failed: surprised images are those of a class that is unusual for whoever looks like that, "
    "not those of a group with a name.",
    LABELS_UNKNOWN,
    "How people fare who have no image among the training images, and none who look like them there.",
    "How far the flags are wrong: intervals hold what other test images would change, not surprised "
    "images that were missed or others that were flagged.",
)


@dataclass(frozen=True)
class Audit:
    """What an audit found, and what it could not know."""

    estimates: list[Estimate]
    differences: list[Difference]
    refusal: str | None  # one sentence: why none of it must be trusted; else None
    signs: Mapping[str, float]  # what the refusal was decided by
    flagged: np.ndarray  # bool (m,): surprised test images
    unknown: tuple[str, ...]  # sentences: what no audit without identities knows
    wrong: Estimate | None = None  # the share of test labels that are wrong; None without features
    trust: np.ndarray | None = None  # (m,): P(the label is right), by which images count


def audit(
    train_embeddings,
    train_labels,
    test_embeddings,
    test_labels,
    predictions: Mapping[str, Any],
    *,
    train_features=None,
    test_features=None,
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
    [('minority', 0.0), ('majority', 1.0), ('balanced', 0.5)]

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
    train_features, test_features : array, shapes (n, t) and (m, t), optional
        Of the task, as in :func:`cid.trust.label_trust`: wrong labels are told from rare ones by them, and
        the estimates are of what the models do where labels are right. Each class has five images at least.
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
        On embeddings, labels, features, predictions or settings that cannot be used.
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
    features = _features(train_features, test_features, len(train), len(test))

    flags = _Flags(train, codes, test, own)
    trust = None if features is None else _trust(flags, features, codes, own, device)
    correct = np.stack(list(right.values()), axis=1).astype(np.float64)
    counts = Counts(test, flags.flagged, correct, len(present), trust)
    estimates, differences = estimated(list(right), counts, seed, bootstrap)
    signs = flags.signs | {"flagged_images": counts.images["minority"]}
    found = Audit(estimates, differences, refusal(signs), signs, flags.flagged, UNKNOWN)
    if trust is None:
        return found
    unknown = tuple(LABELS_JUDGED if line == LABELS_UNKNOWN else line for line in UNKNOWN)
    wrong = share_of_wrong_labels(counts, seed, bootstrap)
    return replace(found, unknown=unknown, wrong=wrong, trust=trust)


def _features(train_features, test_features, n: int, m: int) -> np.ndarray | None:
    """Features (n + m, t) of all images, those that trained first; None if there are none."""
    if train_features is None and test_features is None:
        return None
    if train_features is None or test_features is None:
        missing = "train_features" if train_features is None else "test_features"
        raise ValueError(f"{missing} are missing; pass the features of both sides, or of none")
    sides = []
    for side, features, images in (("train", train_features, n), ("test", test_features, m)):
        values = array(f"{side} features", features)
        if values.ndim != 2 or len(values) != images or values.dtype.kind not in "biuf":
            raise ValueError(
                f"{side} features are {values.dtype} of shape {values.shape}; {images} images need numbers "
                f"of shape ({images}, t)"
            )
        sides.append(np.asarray(values, dtype=np.float32))
        if not np.isfinite(sides[-1]).all():
            row = int((~np.isfinite(sides[-1])).any(axis=1).argmax())
            raise ValueError(f"{side} features row {row} holds NaN or infinite values; remove it")
    widths = [side.shape[1] for side in sides]
    if widths[0] != widths[1]:
        raise ValueError(
            f"the train features have {widths[0]} columns and the test features {widths[1]}; take both from "
            "one network"
        )
    return np.concatenate(sides)


def _trust(flags, features, codes, own, device: str) -> np.ndarray:
    """How probable it is that the label of each test image is right, (m,): by features and by neighbours.

    Heads judge each image, of either side, that trained on others of both. The noise is taken to be alike.
    """
    from cid.trust import out_of_fold_logits, trust_by_neighbours_too

    labels = np.concatenate([codes, own])
    logits = out_of_fold_logits(features, labels, device=device)
    known = label_posterior(flags.cleaned, labels, scale=min(NEIGHBOURS, len(labels) - 1))
    frequency = np.bincount(labels) / len(labels)
    probability = _numpy(known.probability)
    mine = frequency[labels]
    evidence = np.repeat(np.log((1 - probability) / (1 - mine))[:, None], len(frequency), axis=1)
    evidence[np.arange(len(labels)), labels] = np.log(probability / mine)
    trust = trust_by_neighbours_too(logits, labels, evidence).probability
    return trust[len(codes) :]


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
        self.cleaned = torch.cat([cleaned, new])
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
