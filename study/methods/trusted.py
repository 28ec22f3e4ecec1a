"""Weights times trust in the label, so that what is wrong does not pass for what is rare.

Trust is :mod:`cid.trust`: the probability that a label is right, by out-of-fold heads on the features that
the study trains on. The weights of each method are multiplied by it and scaled so that each class keeps
its total. Class labels are all that is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cid.settings import Options
from study.methods.base import Method, TrainingStack
from study.methods.weighting import (
    DensitySettings,
    NeighbourSettings,
    weigh_balanced,
    weigh_cid,
    weigh_surprise,
)

if TYPE_CHECKING:
    from cid.heads import Heads


def fit_trusted(stack: TrainingStack, weights, needed, settings: Options) -> Heads:
    """Train heads whose losses are weighted by weight times trust."""
    from cid.choosing import with_class_totals

    key = ("trust", (weights > 0).tobytes())
    trust = stack.once(key, lambda: trust_of_sets(stack, weights))
    trusted = with_class_totals(weights * trust, weights, stack.labels)
    return stack.fit_each([stack.sampled(trusted)])[0]


def trust_of_sets(stack: TrainingStack, weights) -> np.ndarray:
    """Trust in the label of each training image, (seeds, n); 0 where a weight is 0.

    That of :func:`cid.trust.label_trust` for each training set, with the features of the stack.
    """
    from cid.penalty import FOLDS, folds
    from cid.trust import L2, STREAM, trust_in_labels

    trust = np.zeros(weights.shape)
    for row, member in enumerate(weights > 0):
        own = np.flatnonzero(member)
        labels = stack.labels[own]
        fold = folds(labels, stream=STREAM)
        trains = np.zeros((FOLDS, len(member)), dtype=np.float32)
        trains[:, own] = fold != np.arange(FOLDS)[:, None]
        heads = stack.fit(trains, L2, standardised_by=member)
        logits = heads.logits(stack.features[own])[fold, np.arange(len(own))]
        if logits.ndim == 1:  # of two classes, that of class 1
            logits = np.stack([np.zeros(len(own)), logits], axis=1)
        trust[row, own] = trust_in_labels(logits, labels).probability
    return trust


TRUSTED = Method(
    name="trusted",
    title="Class-balanced × trust",
    colour="#b8b8b8",
    uses=("class",),
    summary="every class counts the same, and an image by how far its label is trusted",
    weigh=weigh_balanced,
    fit=fit_trusted,
    network=None,
)
CID_TRUSTED = Method(
    name="cid-trusted",
    title="CID × trust",
    colour="#f0a070",
    uses=("class",),
    summary="CID, times how far the label is trusted",
    source="Qi & Ardeshir 2023, and trust",
    weigh=weigh_cid,
    weigh_settings=DensitySettings,
    fit=fit_trusted,
    network=None,
)
SURPRISE_TRUSTED = Method(
    name="surprise-trusted",
    title="Label surprise × trust",
    colour="#003f66",
    uses=("class",),
    summary="inverse label posterior among nearest neighbours, times how far the label is trusted",
    weigh=weigh_surprise,
    weigh_settings=NeighbourSettings,
    fit=fit_trusted,
    network=None,
)
