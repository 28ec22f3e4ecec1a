"""uLA: logits adjusted by a model of the label from the proxy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cid.settings import Options, Positive
from study.methods.base import Method, Sample, TrainingStack

if TYPE_CHECKING:
    from cid.heads import Heads


@dataclass(frozen=True)
class BiasModelSettings(Options):
    bias_l2: Positive = 1.0  # penalty of the linear model of the label from the proxy


@dataclass(frozen=True)
class AdjustmentSettings(Options):
    ula_strength: Positive = 1.0  # times the log-odds that are added


def log_odds(sample: Sample, settings: BiasModelSettings) -> np.ndarray:
    """Log-odds (n,) of class 1 by a linear model of the label from the proxy embedding."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from cid.arrays import unit_vectors

    unit = unit_vectors(sample.embeddings).double().cpu().numpy()
    standardised = StandardScaler().fit_transform(unit)
    strength = 1 / (settings.bias_l2 * len(unit))  # the same penalty as that of cid.heads
    model = LogisticRegression(C=strength, max_iter=1000).fit(standardised, sample.labels)
    return model.decision_function(standardised)


def fit_adjusted(stack: TrainingStack, weights, odds, settings: AdjustmentSettings) -> Heads:
    """uLA: Tsirigotis et al., "Group Robust Classification Without Any Group Information" (2023, arXiv
    2310.18555).

    The log-odds of class 1 by a model that knows the bias, here from the proxy embedding, are added to
    the logits in training and left out afterwards: what they explain is not learnt.
    """
    return stack.fit(weights, offset=settings.ula_strength * odds)


ULA = Method(
    name="ula",
    title="uLA",
    colour="#aa7744",
    uses=("class",),
    summary="logits adjusted by a model of the label from the proxy",
    source="Tsirigotis et al. 2023",
    weigh_settings=BiasModelSettings,
    needs="offset",
    needed=log_odds,
    fit=fit_adjusted,
    fit_settings=AdjustmentSettings,
    network=None,
    two_classes=True,
    tried={
        "weights.bias_l2": [0.1, 0.3, 1.0, 3.0, 10.0],
        "train.robust.ula_strength": [0.25, 0.5, 1.0, 2.0],
    },
)
