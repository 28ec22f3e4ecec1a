"""Which weights to train under, chosen without identities: label surprise, unless another is clearly better.

No strength of the weights is best everywhere. What can be compared on a training set by itself is the loss
on held-out images of it, each weighted by its label surprise, ``1 / p(y | z)``: if the proxy knows people,
the images then stand for a set in which everybody has every class alike (Horvitz & Thompson 1952), which
plain held-out images do not. Candidates, from the weakest to the strongest: no weights, CID, and label
surprise to the powers .5, 1 and 1.5.

The choice starts from label surprise and leaves it only for what is better by more than one standard error
of the difference. It sees class labels, features and the proxy; no identity, and no test image.

Where the proxy sees the label itself, all of this misleads. One sign tells, without identities
(:func:`agreement`): the images whose label is unusual among their neighbours are other ones once the
direction between the class means has left the proxy. Below :data:`AGREE` no weights are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cid.arrays import as_tensor, class_codes, reals, unit_vectors
from cid.heads import StandardisedFeatures, fit_heads
from cid.penalty import FOLDS, choose_l2, folds
from cid.posterior import label_posterior, without_class_direction
from cid.precision import true_float32
from cid.weights import cid_weights, inverse_weights

POWERS = (0.5, 1.0, 1.5)  # of label surprise
CANDIDATES = ("erm", "cid", *(f"surprise^{power:g}" for power in POWERS))  # the weakest first
START = CANDIDATES.index("surprise^1")
CLEAR = 1.0  # standard errors by which another candidate must be better
NEIGHBOURS = 10  # among which a label is unusual, for the agreement
AGREE = 0.8  # least agreement of a proxy that is trusted; rendered people: above .92 under bias, below .77 without


@dataclass(frozen=True)
class Choice:
    """Weights of a training set, and how they were chosen."""

    weights: np.ndarray  # float64 (n,), of mean 1
    candidate: str  # one of CANDIDATES
    losses: dict[str, float]  # of the candidates; empty where the proxy is not trusted
    agreement: float  # of the proxy, see :func:`agreement`


def choose_weights(
    features, embeddings, labels, *, l2: float | str = "auto", seed: int = 0, device: str = "auto"
) -> Choice:
    """Choose the weights of a training set by its class labels alone, for a linear head.

    Parameters
    ----------
    features : array, shape (n, d)
        What the head is trained on.
    embeddings : array, shape (n, p)
        The proxy, as in :func:`cid.weights.cid_weights`.
    labels : array, shape (n,)
        0 or 1, with at least two images of each class.
    l2 : float or "auto"
        Penalty of the head; "auto" is :func:`cid.penalty.choose_l2`.
    seed : int
        Draws the folds.

    Raises
    ------
    ValueError
        As :func:`cid.weights.surprise_weights` and :func:`cid.penalty.cross_validated_losses`.
    """
    agrees = agreement(embeddings, labels, device=device)
    if agrees < AGREE:
        return Choice(np.ones(len(labels)), CANDIDATES[0], {}, agrees)
    clean = without_class_direction(embeddings, labels, device=device)
    posterior = label_posterior(clean, labels, device=device)
    surprise = reals("weights", inverse_weights(posterior.probability, labels))
    rarity = reals("weights", cid_weights(embeddings, labels, device=device))
    weights = candidate_weights(surprise, rarity, labels)
    l2 = choose_l2(features, labels, seed=seed, device=device) if l2 == "auto" else l2
    losses = held_out_losses(features, labels, weights, l2, seed=seed, device=device)
    chosen = best_candidate(losses, surprise)
    means = (losses * surprise).sum(axis=1) / surprise.sum()
    return Choice(
        weights=weights[chosen],
        candidate=CANDIDATES[chosen],
        losses=dict(zip(CANDIDATES, means.tolist(), strict=True)),
        agreement=agrees,
    )


def candidate_weights(surprise, rival, labels) -> np.ndarray:
    """Weights of the candidates, (5, n): from those of label surprise and of CID, each of shape (n,).

    A power keeps the total weight that label surprise gives each class.

    Examples
    --------
    >>> candidate_weights(np.array([1.6, 0.4, 1.0]), np.ones(3), [0, 0, 1])[2].round(2)
    array([1.33, 0.67, 1.  ])
    """
    surprise = reals("weights", surprise)
    powers = [with_class_totals(surprise**power, surprise, labels) for power in POWERS]
    return np.stack([np.ones_like(surprise), reals("weights", rival), *powers])


def with_class_totals(weights, like, labels) -> np.ndarray:
    """Scale weights (..., n) so that each class keeps the total that the weights ``like`` give it.

    Examples
    --------
    >>> with_class_totals([3.0, 1.0, 5.0], like=np.ones(3), labels=[0, 0, 1])
    array([1.5, 0.5, 1. ])
    """
    weights = np.array(weights, dtype=np.float64)
    codes, classes = class_codes(labels, weights.shape[-1])
    for code in range(classes):
        own = codes == code
        before = like[..., own].sum(axis=-1, keepdims=True)
        weights[..., own] *= before / weights[..., own].sum(axis=-1, keepdims=True)
    return weights


def held_out_losses(
    features,
    labels,
    weights,
    l2: float,
    *,
    seed: int = 0,
    design: StandardisedFeatures | None = None,
    device: str = "auto",
) -> np.ndarray:
    """Compute every image's log loss under heads that did not train on it, for each of several weights.

    The images are split and standardised as in :mod:`cid.penalty`. All heads, :data:`FOLDS` for each
    candidate, are fitted in one computation.

    Parameters
    ----------
    features, labels, seed, design, device
        As in :func:`cid.penalty.cross_validated_losses`.
    weights : array, shape (k, n)
        Of each candidate.
    l2 : float
        Penalty of all heads.

    Returns
    -------
    float64 array, shape (k, n)
    """
    labels = np.asarray(labels)
    weights = as_tensor(weights, "weights", 2).cpu().numpy()
    fold = folds(labels, seed)
    in_fold = fold == np.arange(FOLDS)[:, None]  # (folds, n)
    heads = fit_heads(
        features,
        labels,
        (weights[:, None] * ~in_fold).reshape(-1, len(labels)),
        l2,
        standardised_by=np.ones(len(labels), dtype=bool),
        strict=False,
        design=design,
        device=device,
    )
    logits = heads.logits(features).reshape(len(weights), FOLDS, -1).astype(np.float64)
    unseen = logits[:, fold, np.arange(len(labels))]
    return np.logaddexp(0, -unseen * np.where(labels == 1, 1, -1))


def best_candidate(losses, importance, start: int = START) -> int:
    """Choose among candidates by their losses on held-out images: the place of one of them.

    It is ``start``, unless the candidate of the least weighted loss is clearly better: by more than
    :data:`CLEAR` standard errors of the weighted mean difference over images. Then it is the weakest, which
    is the first, of those that are clearly better than ``start`` and not clearly worse than the best.

    Parameters
    ----------
    losses : array, shape (k, n)
        From the weakest candidate to the strongest.
    importance : array, shape (n,)
        Weights of the images in the mean.

    Examples
    --------
    >>> losses = np.array([[0.2, 0.4, 0.3], [0.3, 0.5, 0.4], [0.3, 0.3, 0.5]])
    >>> best_candidate(losses, [1, 1, 1], start=1)
    0
    >>> best_candidate(losses, [1, 1, 1], start=2)  # the difference is noise
    2
    """
    losses = np.asarray(losses, dtype=np.float64)
    share = reals("weights", importance)
    share = share / share.sum()
    best = int((losses @ share).argmin())

    def clearly_better(one: int, other: int) -> bool:
        differences = losses[other] - losses[one]
        mean = differences @ share
        return mean > CLEAR * np.sqrt((share**2) @ (differences - mean) ** 2)

    if not clearly_better(best, start):
        return start
    return next(
        place
        for place in range(len(losses))
        if clearly_better(place, start) and not clearly_better(best, place)
    )


@true_float32()
def agreement(embeddings, labels, *, device: str = "auto") -> float:
    """Measure how far the proxy's surprised images depend on the label's own direction, in [0, 1].

    An image is surprised if fewer than half of its :data:`NEIGHBOURS` nearest others have its label, by
    Laplace's rule. Returned is how far the surprised images are the same ones (Jaccard's index) once the
    direction between the class means has left the proxy. With no surprised image at all it is 0, as nothing
    can be told.
    """
    unit = unit_vectors(embeddings, device)
    codes, _ = class_codes(labels, len(unit))
    scale = min(NEIGHBOURS, len(unit) - 1)
    means = [unit[np.flatnonzero(codes == code)].mean(dim=0) for code in range(codes.max() + 1)]
    shifts = np.stack([(mean - means[0]).cpu().numpy() for mean in means[1:]])
    basis = unit.new_tensor(np.linalg.qr(shifts.T.astype(np.float64))[0])
    flags = []
    for proxy in (unit, unit - (unit @ basis) @ basis.T):
        probability = label_posterior(proxy, codes, scale=scale, slope=1.0).probability
        flags.append(reals("probability", probability) < 0.5)
    either = (flags[0] | flags[1]).sum()
    return float((flags[0] & flags[1]).sum() / either) if either else 0.0
