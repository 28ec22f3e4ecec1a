"""Label surprise in the logits: its posterior as an offset in training, in place of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cid.settings import CountOrAuto, ExponentOrAuto, Options, Positive, Truth
from study.methods.base import Method, Sample, TrainingStack
from study.methods.weighting import factors_of, posterior_of

if TYPE_CHECKING:
    from cid.heads import Heads


@dataclass(frozen=True)
class LogitSettings(Options):
    """The settings of label surprise that shape its posterior, and how strongly that acts."""

    surprise: ExponentOrAuto = "auto"  # of the posterior; auto: 1, with the likeliest sharpness
    keep_class_direction: Truth = False  # leave the label's own direction in the proxy
    neighbours: CountOrAuto = "auto"  # that estimate p(y|z)
    local_scaling: Truth = False  # cosines less how crowded a place is (CSLS)
    logit_strength: Positive = 1.0  # times log p(c|z), which is added to the logit of class c


def surprise_in_logits(sample: Sample, settings: LogitSettings) -> np.ndarray:
    """Offsets of the logits: :func:`cid.offsets.surprise_offsets`.

    Of two classes (n,), that of class 1 less that of class 0; of more (n, C).
    """
    from cid.offsets import logs_of_classes

    logs = logs_of_classes(
        factors_of(sample),
        posterior_of(sample, settings, "knn"),
        keep_class_direction=settings.keep_class_direction,
        local_scaling=settings.local_scaling,
    )
    exponent = 1.0 if settings.surprise == "auto" else settings.surprise
    offsets = settings.logit_strength * exponent * logs
    return offsets[:, 1] - offsets[:, 0] if offsets.shape[1] == 2 else offsets


def fit_with_offsets(stack: TrainingStack, weights, offsets, settings: Options) -> Heads:
    """Train heads on logits to which offsets are added, and leave these out afterwards."""
    return stack.fit(weights, offset=offsets)


SURPRISE_LOGITS = Method(
    name="surprise-logits",
    title="Label surprise in the logits",
    colour="#6a3d9a",
    uses=("class",),
    summary="logits adjusted by the label posterior among nearest neighbours, in place of weights",
    source="after Menon et al. 2021",
    weigh_settings=LogitSettings,
    needs="offset",
    needed=surprise_in_logits,
    fit=fit_with_offsets,
    network="offset",
    tried={"weights.logit_strength": [0.25, 0.5, 0.75, 1.0, 1.25]},
)
