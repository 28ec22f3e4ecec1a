"""How far each label of a training set can be trusted, judged by the task's own features.

A wrong label is as surprising among its neighbours in the proxy as a rare one is, so weights by label
surprise (:mod:`cid.weights`) raise both. The features of the *task* tell them apart: an image of a minority
cell looks like its label and unlike what its person usually shows; a mislabelled one looks unlike its
label, too. So a weight that wants the rare and not the wrong is a product of two things in two embeddings:

    P(label right | x) / p(y | z)

*Trust*, the first factor, is estimated here, from the class labels alone:

1. Heads (:func:`cid.heads.fit_heads`) give every image a logit for each class, out of fold: from heads that
   were trained on the other four fifths of the images. A strong penalty keeps them from explaining single
   images. With more than two classes there is one head a class, against the others.
2. With temperature T and biases b, ``q_c = softmax((logit + b) / T)_c`` is the probability that c is right. A
   label is wrong with a rate of its own class r_c, and then any other with equal chance. So the label y
   that stands there has the likelihood ``(1 - r_y) q_y + sum over c != y of r_c q_c / (C - 1)``.
3. T, b and r are those of the greatest likelihood, and trust is ``(1 - r_y) q_y`` as a share of it.

The noise model is that of Natarajan et al., "Learning with Noisy Labels" (2013); out-of-fold predictions
judge labels as in Northcutt, Jiang & Chuang, "Confident Learning" (2021, arXiv 1911.00068). What is judged
here is labels that are *wrong*. Labels that people would dispute lie near the border between classes; no
head can tell which opinion is right, and they are trusted like others there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cid.arrays import array, class_codes
from cid.heads import StandardisedFeatures, fit_heads
from cid.penalty import FOLDS, folds
from cid.settings import Positive, checked

STREAM = 5  # of random numbers: folds of their own (cid.penalty.folds)
L2 = 1.0  # ten times what heads of such training sets take, and more
MOST = 0.4  # no class has a larger share of wrong labels; beyond one half, right and wrong change names
STARTS = (
    (1.0, 0.01),
    (1.0, 0.1),
    (0.3, 0.05),
)  # temperatures and rates from which likelihood climbs
SHARES = (0.5, 2.0)  # how much what neighbours tell counts beside the features; the likelihood says
ASKED = 6.0  # twice the gain of log likelihood from which on any label is taken for wrong
TOLERANCE = (
    1e-8  # of the likelihood, relative; results are the same to far less than a rate matters
)


@dataclass(frozen=True)
class LabelTrust:
    """What the task's features say about the labels of a training set."""

    probability: np.ndarray  # float64 (n,): P(the label is right | x)
    rates: np.ndarray  # float64 (C,): share of the images of each true class with a wrong label
    temperature: float  # that the out-of-fold logits are divided by
    expected: (
        np.ndarray
    )  # int (n,): position of the class most likely to be right, in np.unique(labels)

    @property
    def wrong(self) -> float:
        """The estimated share of wrong labels among all images."""
        return float(1 - self.probability.mean())


def label_trust(
    features, labels, *, l2: float = L2, seed: int = 0, device: str = "auto"
) -> LabelTrust:
    """Estimate how probable it is that each label of a training set is right.

    Multiply weights by :attr:`LabelTrust.probability`, and normalise again within each class.

    Parameters
    ----------
    features : array, shape (n, d)
        Of the task: what the model to be trained sees, or the features of a network that was trained for
        something near. A face-recognition embedding will not do, as it was trained to forget what varies
        within a person.
    labels : array, shape (n,)
        Any number of classes, each with :data:`cid.penalty.FOLDS` images or more.
    l2 : float
        Penalty of the heads, as in :func:`cid.heads.fit_heads`.
    seed : int
        Draws the folds.
    device : str
        As in :func:`cid.detection.detect`.

    Raises
    ------
    ValueError
        If there is one class, a class has fewer images than folds, or as :func:`cid.heads.fit_heads`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(200) % 2
    >>> features = rng.normal(size=(200, 5)) + 3 * labels[:, None]
    >>> labels[:10] = 1 - labels[:10]  # ten labels are wrong
    >>> found = label_trust(features, labels)
    >>> bool(found.probability[:10].max() < 0.1), bool(found.probability[10:].min() > 0.9)
    (True, True)
    >>> found.rates.round(2)
    array([0.05, 0.05])
    """
    codes, classes = class_codes(labels, len(features))
    logits = out_of_fold_logits(features, codes, l2=l2, seed=seed, device=device)
    return trust_in_labels(logits, codes)


def out_of_fold_logits(
    features, codes, *, l2: float = L2, seed: int = 0, device: str = "auto"
) -> np.ndarray:
    """Compute logits of every class, each image's from heads that did not train on it.

    Parameters and errors are those of :func:`label_trust`; ``codes`` are classes from 0.

    Returns
    -------
    float64 array, shape (n, C)
        With two classes the logit of class 0 is 0.
    """
    l2 = checked("l2", l2, Positive)
    codes = array("labels", codes)
    sizes = np.bincount(codes)
    if len(sizes) < 2 or sizes.min() < FOLDS:
        raise ValueError(
            f"trust needs at least 2 classes of {FOLDS} images or more; there are {len(sizes)} classes, the "
            f"smallest of {sizes.min()}"
        )
    fold = folds(codes, seed, STREAM)
    trains = fold != np.arange(FOLDS)[:, None]  # (folds, n)
    logits = np.zeros((len(codes), len(sizes)))
    for code in range(1 if len(sizes) == 2 else 0, len(sizes)):
        label = (codes == code).astype(np.int64)
        design = StandardisedFeatures(features, label, device=device)
        everyone = np.ones(len(codes), dtype=bool)
        heads = fit_heads(
            features,
            label,
            trains.astype(np.float32),
            l2,
            standardised_by=everyone,
            design=design,
        )
        logits[:, code] = heads.logits(features)[fold, np.arange(len(codes))]
    return logits


def trust_in_labels(logits, codes) -> LabelTrust:
    """Turn out-of-fold logits of any model into trust: steps 2 and 3 of this module's head.

    Parameters
    ----------
    logits : array, shape (n, C)
        Of models that did not see the image: the judge must not have learnt the label by heart.
    codes : int array, shape (n,)
        Classes from 0.
    """
    from scipy.optimize import minimize

    logits = np.asarray(logits, dtype=np.float64)
    codes = np.asarray(codes)
    classes = logits.shape[1]
    limits = [(np.log(0.05), np.log(20))] + [(-10, 10)] * (classes - 1) + [(0, MOST)] * classes
    spread = max(float(np.std(logits - logits.mean(axis=1, keepdims=True))), 1e-6)
    unit = logits / spread  # so that a temperature near 1 fits features of any strength

    def loss(unknowns) -> float:
        right, wrong = _likelihoods(unit, codes, unknowns)
        return -np.log(np.maximum(right + wrong, 1e-300)).mean()

    found = []
    for temperature, rate in STARTS:
        start = [np.log(temperature), *[0.0] * (classes - 1), *[rate] * classes]
        options = {"ftol": TOLERANCE, "maxiter": 500}
        found.append(minimize(loss, start, method="L-BFGS-B", bounds=limits, options=options))
    best = min(found, key=lambda end: round(end.fun, 9))
    right, wrong = _likelihoods(unit, codes, best.x)
    probabilities = _probabilities(unit, best.x)
    return LabelTrust(
        probability=right / np.maximum(right + wrong, 1e-300),
        rates=best.x[classes:],
        temperature=float(spread * np.exp(best.x[0])),
        expected=probabilities.argmax(axis=1),
    )


def trust_by_neighbours_too(logits, codes, evidence) -> LabelTrust:
    """As :func:`trust_in_labels`, also by what the images most like an image tell of its label.

    For weights the product with surprise does that. For counts of what is wrong, as in an audit, it must
    be in the probability: among surprised images many more labels are wrong than elsewhere. The
    probabilities are ``q = softmax((logit + b) / T + s evidence)``, s within :data:`SHARES`. (Without that
    range the likelihood, to which few surprised images matter, chose none of it on photographs.) All
    labels are right unless the features alone ask for wrong ones, by :data:`ASKED`.

    Parameters
    ----------
    logits, codes
        As in :func:`trust_in_labels`.
    evidence : array, shape (n, C)
        Log probabilities of the classes among an image's neighbours, less those of the class frequencies.
    """
    from scipy.optimize import minimize

    logits = np.asarray(logits, dtype=np.float64)
    codes = np.asarray(codes)
    classes = logits.shape[1]
    spread = max(float(np.std(logits - logits.mean(axis=1, keepdims=True))), 1e-6)
    unit = logits / spread

    def likelihoods(unknowns):
        own, share = unknowns[:-1], unknowns[-1]
        return _likelihoods(unit + share * np.exp(own[0]) * evidence, codes, own)

    def loss(unknowns) -> float:
        right, wrong = likelihoods(unknowns)
        return -np.log(np.maximum(right + wrong, 1e-300)).mean()

    def fitted(most: float, shares: tuple[float, float]):
        limits = [(np.log(0.05), np.log(20))] + [(-10, 10)] * (classes - 1)
        limits += [(0, most)] * classes + [shares]
        options = {"ftol": TOLERANCE, "maxiter": 500}
        ends = []
        for temperature, rate in STARTS:
            rates = [min(rate, most)] * classes
            start = [np.log(temperature), *[0.0] * (classes - 1), *rates, shares[0]]
            ends.append(minimize(loss, start, method="L-BFGS-B", bounds=limits, options=options))
        return min(ends, key=lambda end: round(end.fun, 9))

    alone = (0.0, 0.0)
    asked = 2 * len(codes) * (fitted(0.0, alone).fun - fitted(MOST, alone).fun) >= ASKED
    best = fitted(MOST if asked else 0.0, SHARES)
    right, wrong = likelihoods(best.x)
    joined = unit + best.x[-1] * np.exp(best.x[0]) * evidence
    return LabelTrust(
        probability=right / np.maximum(right + wrong, 1e-300),
        rates=best.x[classes:-1],
        temperature=float(spread * np.exp(best.x[0])),
        expected=_probabilities(joined, best.x).argmax(axis=1),
    )


def _probabilities(logits, unknowns) -> np.ndarray:
    """The probabilities (n, C) that each class is right: ``unknowns`` begin with log T and the biases."""
    classes = logits.shape[1]
    bias = np.concatenate([[0.0], unknowns[1:classes]])
    scaled = (logits + bias) / np.exp(unknowns[0])
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def _likelihoods(logits, codes, unknowns) -> tuple[np.ndarray, np.ndarray]:
    """The likelihood (n,) that the label stands there and is right, and that it does and is wrong."""
    classes = logits.shape[1]
    rates = np.asarray(unknowns[classes:])
    probability = _probabilities(logits, unknowns)
    own = probability[np.arange(len(codes)), codes]
    right = (1 - rates[codes]) * own
    wrong = (probability @ rates - rates[codes] * own) / (classes - 1)
    return right, wrong
