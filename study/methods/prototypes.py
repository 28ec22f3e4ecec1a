"""DPE: an ensemble of diverse prototypes in place of a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cid.settings import Count, CountFrom2, NotNegative, Options, Positive
from study.methods.base import Method, TrainingStack

if TYPE_CHECKING:
    from cid.heads import Heads


@dataclass(frozen=True)
class PrototypeSettings(Options):
    dpe_members: Count = 15  # prototypes of a class
    dpe_epochs: Count = 20  # of the training of a member
    dpe_batch: CountFrom2 = 64  # images of a step, about
    dpe_rate: Positive = 1e-3  # learning rate
    dpe_likeness: NotNegative = 5e4  # strength of the penalty on prototypes that are alike


def fit_prototype_ensembles(
    stack: TrainingStack, weights, needed, settings: PrototypeSettings
) -> Heads:
    """DPE: :func:`cid.prototypes.fit_prototypes`, on features standardised as those of all heads are.

    The features are fixed here anyway, so that all training images train prototypes, where the paper keeps
    a validation set for them.
    """
    import torch

    from cid.prototypes import fit_prototypes

    design = stack.design
    ensembles, centres, spreads = [], [], []
    for seed, own_weights in zip(stack.seeds, weights, strict=True):
        rows = np.flatnonzero(own_weights)
        own = design.in_own_units(torch.from_numpy(rows).to(design.features.device))
        ensembles.append(
            fit_prototypes(
                own.features,
                stack.labels[rows],
                members=settings.dpe_members,
                epochs=settings.dpe_epochs,
                batch=settings.dpe_batch,
                learning_rate=settings.dpe_rate,
                likeness=settings.dpe_likeness,
                seed=int(seed),
                device=design.features.device.type,
            )
        )
        centres.append((design.centre + own.shift * design.spread).cpu().numpy())
        spreads.append((own.scale * design.spread).cpu().numpy())
    return _as_heads(ensembles, centres, spreads)


def _as_heads(ensembles, centres, spreads) -> Heads:
    """Ensembles where heads are expected: their logits are log-odds of the mean probabilities."""
    from cid.heads import Heads

    class PrototypeHeads(Heads):
        """``weight`` are all prototypes of an ensemble in a row, ``bias`` the members' scales. How far
        their training has converged is not known: the gradient is NaN."""

        __slots__ = ()

        def logits(self, features) -> np.ndarray:
            found = []
            for ensemble, centre, spread in zip(ensembles, centres, spreads, strict=True):
                logs = np.log(ensemble.probabilities((features - centre) / spread))
                found.append(logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs)
            return np.stack(found)

    return PrototypeHeads(
        weight=np.stack([ensemble.places.reshape(-1) for ensemble in ensembles]),
        bias=np.stack([ensemble.scales for ensemble in ensembles]),
        iterations=0,
        gradient=np.full(len(ensembles), np.nan),
    )


DPE = Method(
    name="dpe",
    title="DPE",
    colour="#b35806",
    uses=("class",),
    summary="an ensemble of diverse prototypes, each of a class-balanced part of the images",
    source="To et al. 2025",
    fit=fit_prototype_ensembles,
    fit_settings=PrototypeSettings,
    network=None,
    two_classes=True,
    tried={
        "train.robust.dpe_rate": [3e-4, 1e-3, 3e-3, 1e-2],
        "train.robust.dpe_epochs": [10, 20, 40],
        "train.robust.dpe_likeness": [0.0, 5e3, 5e4, 5e5],
    },
)
