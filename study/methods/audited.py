"""Label surprise, or what is clearly better on the training set itself: chosen without identities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from study.methods.base import Method, Sample, TrainingStack
from study.methods.weighting import (
    DensitySettings,
    NeighbourSettings,
    weigh_cid,
    weigh_surprise,
)

if TYPE_CHECKING:  # torch takes seconds to import, and names and facts need none of it
    from cid.heads import Heads


@dataclass(frozen=True)
class AuditedSettings(DensitySettings, NeighbourSettings):
    """Those of CID and of label surprise."""


def weigh_if_trusted(sample: Sample, settings: AuditedSettings) -> np.ndarray:
    """The weights of label surprise; all alike where the proxy sees the label itself."""
    return weigh_surprise(sample, settings) if _trusted(sample) else np.ones(len(sample.labels))


def rival_if_trusted(sample: Sample, settings: AuditedSettings) -> np.ndarray:
    """The weights of CID; all alike where the proxy sees the label itself."""
    return weigh_cid(sample, settings) if _trusted(sample) else np.ones(len(sample.labels))


def _trusted(sample: Sample) -> bool:
    from cid.choosing import AGREE, agreement

    agrees = sample.once("agreement", lambda: agreement(sample.embeddings, sample.labels))
    return agrees >= AGREE


def fit_audited(stack: TrainingStack, weights, rival, settings) -> Heads:
    """Fit heads under the weights that :mod:`cid.choosing` chooses for each training set."""
    from cid.choosing import best_candidate, candidate_weights, held_out_losses

    if stack.through != "loss":
        raise ValueError(
            f"the method audited compares weights in the loss, and train.through is {stack.through}; set "
            "train.through to loss, or leave the method out"
        )
    chosen = np.zeros_like(weights)
    for row, seed in enumerate(stack.seeds):
        rows = np.flatnonzero(weights[row])
        surprise = weights[row, rows]
        if np.ptp(surprise) == 0:  # not trusted, or nothing to tell images apart by
            chosen[row, rows] = 1
            continue
        features = stack.features[rows]
        labels = stack.labels[rows]
        candidates = candidate_weights(surprise, rival[row, rows], labels)
        losses = held_out_losses(features, labels, candidates, stack.l2, seed=int(seed))
        chosen[row, rows] = candidates[best_candidate(losses, surprise)]
    return stack.fit_each([chosen])[0]  # to the byte as ERM, where all weights are alike


AUDITED = Method(
    name="audited",
    title="Audited",
    colour="#661100",
    uses=("class",),
    summary="label surprise, or what is clearly better on held-out images of the training set",
    weigh=weigh_if_trusted,
    weigh_settings=AuditedSettings,
    needs="rival",
    needed=rival_if_trusted,
    fit=fit_audited,
    network=None,
    two_classes=True,
)
