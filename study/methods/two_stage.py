"""Methods that train a first model to find the hard images, or retrain a last layer.

With heads that can be fitted to the end, what the papers do by stopping a training early is done here by
a strong penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cid.settings import Count, NotNegative, Options, Positive, Share
from study.methods.base import Method, TrainingStack
from study.methods.stacks import wrong
from study.methods.weighting import people_of

if TYPE_CHECKING:
    from cid.heads import Heads

HELD_OUT = 0.2  # share of the images that AFR and SELF keep for their second step
CONVERGED = 1e-5  # part of the gradient at 0 that may be left of a head, as in cid.heads
STEPS = 2000  # of a correction, at most
FOLD_STREAM = 6  # of random numbers, for the folds of their cross-fitted forms


@dataclass(frozen=True)
class JTTSettings(Options):
    jtt_l2: Positive = 1.0  # penalty of the first head
    jtt_upweight: Positive = 2.0  # weight of the images that it gets wrong


@dataclass(frozen=True)
class LfFSettings(Options):
    lff_q: Share = 0.5  # exponent of the biased head's generalised cross-entropy
    lff_l2: Positive = 0.1  # penalty of the biased head
    lff_rounds: Count = 4  # how often relative difficulty is computed anew


@dataclass(frozen=True)
class LastLayerSettings(Options):
    draws: Count = 10  # balanced subsets, averaged over


@dataclass(frozen=True)
class AFRSettings(Options):
    afr_gamma: NotNegative = 0.5  # a held-out image weighs exp(-gamma p), p its label's probability
    afr_l2: Positive = 3.0  # penalty of the change of the first head


@dataclass(frozen=True)
class SELFSettings(Options):
    selective_stop_l2: Positive = 10.0  # penalty of the second head, in place of stopping early
    selective_share: Share = 0.5  # images of each class, as a share of the rarer's held-out ones
    selective_l2: Positive = 1.0  # penalty of the change of the first head


@dataclass(frozen=True)
class CrossedAFRSettings(Options):
    afr_crossed_gamma: NotNegative = 4.0  # an image weighs exp(-gamma p), p out of fold
    afr_crossed_l2: Positive = 3.0  # penalty of the change of the first head


@dataclass(frozen=True)
class CrossedSELFSettings(Options):
    selective_crossed_stop_l2: Positive = 10.0  # penalty of the second head of a fold
    selective_crossed_share: Share = 0.5  # images of each class, as a share of the rarer's
    selective_crossed_l2: Positive = 1.0  # penalty of the change of the first head


@dataclass(frozen=True)
class XRMSettings(Options):
    xrm_rounds: Count = 5  # how often labels are flipped anew
    xrm_tilt: Positive = 30.0  # of the four groups found, as group_tilt


def fit_jtt(stack: TrainingStack, weights, needed, settings: JTTSettings) -> Heads:
    """JTT: see :func:`cid.risks.jtt_weights`.

    The first model is kept from learning the hard images by a strong penalty, where the paper stops
    its training early.
    """
    first = stack.fit(weights, l2=settings.jtt_l2)
    upweight = np.float32(settings.jtt_upweight)
    return stack.fit(weights * np.where(wrong(stack, first), upweight, np.float32(1)))


def fit_lff(stack: TrainingStack, weights, needed, settings: LfFSettings) -> Heads:
    """LfF: see :func:`cid.risks.relative_difficulty`.

    The paper moves both models together, step by step; with heads that can be fitted to the end, the
    relative difficulty is taken from finished heads, and a few times anew. The biased head has a
    penalty of its own, because what is easy to learn depends on how much can be learnt.
    """
    from cid.risks import generalised_cross_entropy, relative_difficulty

    risk = generalised_cross_entropy(settings.lff_q)
    biased_losses = stack.losses(stack.fit(weights, l2=settings.lff_l2, risk=risk))
    heads = stack.fit(weights)
    for _ in range(settings.lff_rounds):
        difficulty = relative_difficulty(biased_losses, stack.losses(heads)).numpy()
        heads = stack.fit(weights * difficulty)
    return heads


def fit_last_layer(stack: TrainingStack, weights, identities, settings: LastLayerSettings) -> Heads:
    """Last-layer retraining: after Kirichenko et al., "Last Layer Re-Training is Sufficient for
    Robustness to Spurious Correlations" (2023, arXiv 2204.02937).

    The features are fixed here anyway, so what remains is their second step: the head is fitted on
    random subsets with equally many images of each class in every identity, and averaged over subsets.
    """
    from cid.heads import Heads, balanced_subset

    draws = []
    for draw in range(settings.draws):
        for row, seed in enumerate(stack.seeds):
            rng = np.random.default_rng([int(seed), draw])
            chosen = balanced_subset(identities[row], stack.labels, weights[row] > 0, rng)
            draws.append(weights[row] * chosen)
    heads = stack.fit(np.stack(draws))
    shape = (settings.draws, len(weights))
    return Heads(
        heads.weight.reshape(*shape, -1).mean(axis=0),
        heads.bias.reshape(shape).mean(axis=0),
        heads.iterations,
        heads.gradient.reshape(shape).max(axis=0),
    )


def fit_afr(stack: TrainingStack, weights, needed, settings: AFRSettings) -> Heads:
    """AFR: Qiu, Potapczynski, Izmailov & Wilson, "Simple and Fast Group Robustness by Automatic Feature
    Reweighting" (2023, arXiv 2306.11074).

    A head is fitted on most of the images. On those held out it is corrected under weights
    ``exp(-gamma p) / n_c``, p the first head's probability of the image's class, n_c the images of that
    class; the penalty is on the difference to the first head.
    """
    held_out = stack.part(weights, HELD_OUT)
    first = stack.fit(weights * ~held_out)
    probability = np.exp(-stack.losses(first))
    second = weights * held_out * np.exp(-settings.afr_gamma * probability)
    return _corrected(stack, first, _over_class_sizes(stack, second, held_out), settings.afr_l2)


def fit_selective(stack: TrainingStack, weights, needed, settings: SELFSettings) -> Heads:
    """SELF: LaBonte, Muthukumar & Kumar, "Towards Last-Layer Retraining for Group Robustness with Fewer
    Annotations" (2023, arXiv 2309.08534).

    A head is fitted on most of the images, and a second one under a strong penalty, in place of one
    that was stopped early. The first is corrected on those of the images held out about which the two
    disagree most (KL divergence), equally many of each class.
    """
    held_out = stack.part(weights, HELD_OUT)
    first = stack.fit(weights * ~held_out)
    stopped = stack.fit(weights * ~held_out, l2=settings.selective_stop_l2)
    p = np.exp(-stack.losses(first)).clip(1e-7, 1 - 1e-7)
    q = np.exp(-stack.losses(stopped)).clip(1e-7, 1 - 1e-7)
    chosen = _most_disputed(stack, held_out, p, q, settings.selective_share)
    return _corrected(stack, first, weights * chosen, settings.selective_l2)


def fit_afr_crossed(stack: TrainingStack, weights, needed, settings) -> Heads:
    """AFR without images that are held out: :func:`fit_afr`, cross-fitted.

    Of some hundred images a fifth is little to correct a head by, and the head misses it. Here the
    probability of an image's class is that of a head which did not see its fold; the first head is fitted on
    all images and corrected on all.
    """
    member = weights > 0
    probability = np.exp(-_out_of_fold(stack, weights))
    second = weights * np.exp(-settings.afr_crossed_gamma * probability)
    first = stack.fit(weights)
    second = _over_class_sizes(stack, second, member)
    return _corrected(stack, first, second, settings.afr_crossed_l2)


def fit_selective_crossed(stack: TrainingStack, weights, needed, settings) -> Heads:
    """SELF without images that are held out: :func:`fit_selective`, cross-fitted.

    How much two heads disagree about an image is asked of heads that did not see its fold; the head that is
    corrected is fitted on all images.
    """
    member = weights > 0
    p, q = (
        np.exp(-_out_of_fold(stack, weights, l2)).clip(1e-7, 1 - 1e-7)
        for l2 in (None, settings.selective_crossed_stop_l2)
    )
    chosen = _most_disputed(stack, member, p, q, settings.selective_crossed_share)
    first = stack.fit(weights)
    return _corrected(stack, first, weights * chosen, settings.selective_crossed_l2)


def _out_of_fold(stack: TrainingStack, weights, l2: float | None = None) -> np.ndarray:
    """Losses (seeds, n) of the training images, each under a head that did not see its fold."""
    from cid.penalty import FOLDS, folds

    fold = np.zeros(weights.shape, dtype=np.int64)
    for row, seed in enumerate(stack.seeds):
        images = np.flatnonzero(weights[row])
        fold[row, images] = folds(stack.labels[images], int(seed), FOLD_STREAM)
    heads = stack.fit(np.concatenate([weights * (fold != left) for left in range(FOLDS)]), l2)
    losses = stack.losses(heads).reshape(FOLDS, *weights.shape)
    return np.take_along_axis(losses, fold[None], axis=0)[0]


def _most_disputed(stack: TrainingStack, members, p, q, share: float) -> np.ndarray:
    """The members about whom two heads disagree most (KL divergence), equally many of each class.

    Parameters
    ----------
    members : bool array (seeds, n)
        Among whom to choose.
    p, q : float arrays (seeds, n)
        Each head's probability of the image's own class.
    share : float
        How many of a class, as a share of the members of the smallest.
    """
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    chosen = np.zeros_like(members)
    for row in range(len(members)):
        present = np.unique(stack.labels[members[row]])
        classes = [np.flatnonzero(members[row] & (stack.labels == label)) for label in present]
        smallest = min(len(images) for images in classes)
        count = max(1, round(share * smallest))
        for images in classes:
            most_disputed = np.argsort(-divergence[row, images], kind="stable")[:count]
            chosen[row, images[most_disputed]] = True
    return chosen


def _corrected(stack: TrainingStack, first: Heads, weights, l2: float) -> Heads:
    """Heads refitted under weights, pulled towards what they were: ``l2 / 2`` times the change squared.

    The gradient of a head that is nearly right is small before the correction starts, and a
    hundred-thousandth of it can lie below the rounding. So a correction has converged when what is left is
    :data:`CONVERGED` of the gradient at 0, where other heads start.
    """
    from cid.heads import Heads

    offset = first.logits(stack.features)
    part = _gradients(stack, weights, offset) / _gradients(stack, weights, 0 * offset)
    tolerance = min(float((CONVERGED / part).max()), 0.5)
    change = stack.fit(weights, l2=l2, offset=offset, tolerance=tolerance, max_iterations=STEPS)
    return Heads(
        first.weight + change.weight,
        first.bias + change.bias,
        max(first.iterations, change.iterations),
        np.maximum(first.gradient, change.gradient * part),
    )


def _gradients(stack: TrainingStack, weights, logits) -> np.ndarray:
    """Norms (seeds,) of the gradient of the weighted loss by heads of standardised features, at logits."""
    import torch

    found = []
    for own_weights, own_logits in zip(weights, logits, strict=True):
        rows = np.flatnonzero(own_weights)
        own = stack.design.in_own_units(torch.from_numpy(rows).to(stack.design.features.device))
        side = np.where(stack.labels[rows] == 1, 1, -1)
        slope = side / (1 + np.exp(side * own_logits[rows].astype(np.float64)))
        slope *= own_weights[rows] / own_weights[rows].sum()
        by_weight = own.features.cpu().numpy().T @ slope.astype(np.float32)
        found.append(np.hypot(np.linalg.norm(by_weight), slope.sum()))
    return np.array(found)


def _over_class_sizes(stack: TrainingStack, weights, members) -> np.ndarray:
    """Weights over the number of members of an image's class in its set."""
    classes, codes = np.unique(stack.labels, return_inverse=True)
    sizes = [(members & (codes == code)).sum(axis=1) for code in range(len(classes))]
    return weights / np.stack(sizes, axis=1).clip(1)[:, codes]


def fit_xrm(stack: TrainingStack, weights, needed, settings: XRMSettings) -> Heads:
    """XRM, then GroupDRO: Pezeshki et al., "Discovering Environments with XRM" (2024, arXiv 2309.16748).

    Two heads learn from one half of the images each. Where one is confidently wrong about an image of
    the other's half, the other learns the wrong label with probability ``2 p(wrong) - 1``: here, because
    heads are fitted to the end, an image counts that much under its flipped label, and a few times
    anew. The groups are the class, and whether the head that did not see the image is wrong.
    """
    from cid.risks import group_risk

    size = len(stack.seeds)
    half = stack.part(weights, 0.5)
    twins = np.concatenate([weights * half, weights * ~half])
    flipped = np.zeros_like(twins)
    for _ in range(settings.xrm_rounds):
        heads = stack.fit(twins, flipped=flipped)
        # Each image's label probability by the head that did not train on it.
        unseen = np.roll(np.exp(-stack.losses(heads)), size, axis=0)
        flipped = np.clip(1 - 2 * unseen, 0, 1).astype(np.float32)
    wrong = np.where(half, unseen[:size], unseen[size:]) < 0.5
    groups = 2 * (stack.labels == 1) + wrong
    return stack.fit(weights, risk=partial(group_risk, settings.xrm_tilt), groups=groups)


JTT = Method(
    name="jtt",
    title="JTT",
    colour="#882255",
    uses=(),
    summary="trained twice, the first model's errors weigh more",
    source="Liu et al. 2021",
    fit=fit_jtt,
    fit_settings=JTTSettings,
    network="jtt",
    tried={
        "train.robust.jtt_l2": [1.0, 10.0, 100.0],
        "train.robust.jtt_upweight": [2.0, 5.0, 20.0],
    },
)
LFF = Method(
    name="lff",
    title="LfF",
    colour="#aa4499",
    uses=(),
    summary="images that a deliberately biased model finds hard weigh more",
    source="Nam et al. 2020",
    fit=fit_lff,
    fit_settings=LfFSettings,
    network="lff",
    tried={
        "train.robust.lff_q": [0.3, 0.5, 0.7, 0.9],
        "train.robust.lff_l2": [0.03, 0.1, 0.3, 1.0, 3.0],
    },
)
AFR = Method(
    name="afr",
    title="AFR",
    colour="#88ccee",
    uses=("class",),
    summary="refitted on held-out images, hard ones weigh more",
    source="Qiu et al. 2023",
    fit=fit_afr,
    fit_settings=AFRSettings,
    network=None,
    two_classes=True,
    tried={
        "train.robust.afr_gamma": [0.5, 1.0, 2.0, 4.0, 8.0],
        "train.robust.afr_l2": [0.3, 1.0, 3.0, 10.0, 30.0],
    },
)
SELF = Method(
    name="selective",
    title="SELF",
    colour="#6699cc",
    uses=("class",),
    summary="refitted on held-out images about which a second model disagrees",
    source="LaBonte et al. 2023",
    fit=fit_selective,
    fit_settings=SELFSettings,
    network=None,
    two_classes=True,
    tried={
        "train.robust.selective_stop_l2": [1.0, 10.0, 100.0],
        "train.robust.selective_share": [0.1, 0.25, 0.5],
        "train.robust.selective_l2": [0.3, 1.0, 3.0, 10.0, 30.0],
    },
)
AFR_CROSSED = Method(
    name="afr-crossed",
    title="Cross-fitted AFR",
    colour="#3d9fc9",
    uses=("class",),
    summary="AFR on all images: the first model's probabilities come out of fold",
    source="after Qiu et al. 2023",
    fit=fit_afr_crossed,
    fit_settings=CrossedAFRSettings,
    network=None,
    two_classes=True,
    tried={
        "train.robust.afr_crossed_gamma": [0.5, 1.0, 2.0, 4.0, 8.0],
        "train.robust.afr_crossed_l2": [0.3, 1.0, 3.0, 10.0, 30.0],
    },
)
SELF_CROSSED = Method(
    name="selective-crossed",
    title="Cross-fitted SELF",
    colour="#2f5d8a",
    uses=("class",),
    summary="SELF on all images: the two models disagree out of fold",
    source="after LaBonte et al. 2023",
    fit=fit_selective_crossed,
    fit_settings=CrossedSELFSettings,
    network=None,
    two_classes=True,
    tried={
        "train.robust.selective_crossed_stop_l2": [1.0, 10.0, 100.0],
        "train.robust.selective_crossed_share": [0.1, 0.25, 0.5],
        "train.robust.selective_crossed_l2": [0.3, 1.0, 3.0, 10.0, 30.0],
    },
)
XRM = Method(
    name="xrm",
    title="XRM + GroupDRO",
    colour="#cc6677",
    uses=("class",),
    summary="GroupDRO over (class, mistaken) groups of two models of half the images each",
    source="Pezeshki et al. 2024",
    fit=fit_xrm,
    fit_settings=XRMSettings,
    network=None,
    two_classes=True,
    tried={
        "train.robust.xrm_rounds": [2, 5, 10],
        "train.robust.xrm_tilt": [3.0, 10.0, 30.0, 100.0],
    },
)
LAST_LAYER = Method(
    name="last-layer",
    title="Last-layer retraining",
    colour="#44aa99",
    uses=("class", "identity"),
    summary="trained anew on subsets balanced within every identity",
    source="after Kirichenko et al. 2023",
    needs="groups",
    needed=people_of,
    fit=fit_last_layer,
    fit_settings=LastLayerSettings,
    network="retrain",
    two_classes=True,
)
