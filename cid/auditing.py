"""Audit the predictions of models without identities: who is failed, and when this must not be trusted.

The test images are as biased as the training images, so the accuracy on them says little about the
people whose rarer class is at stake. An image is *surprised* if the posterior among the training images
that resemble it (:mod:`cid.posterior`) finds another label likelier than its own. Such images stand for
each person's rarer classes, the others for their most frequent one. Nothing here knows an identity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MEASURES = ("minority", "majority", "balanced", "spread")


@dataclass(frozen=True)
class Estimate:
    """One measure of one model, with its 95 % interval."""

    model: str
    measure: str  # one of MEASURES
    estimate: float  # NaN where nothing can be estimated
    low: float
    high: float
    images: int  # test images that it rests on


@dataclass(frozen=True)
class Difference:
    """One measure of a model less that of another, on the same images, with its 95 % interval."""

    model: str
    against: str
    measure: str
    difference: float
    low: float
    high: float
    smallest: float  # difference that would be found with a chance of 80 %


@dataclass(frozen=True)
class Audit:
    """What an audit found, and what it could not know."""

    estimates: list[Estimate]
    differences: list[Difference]
    refusal: str | None  # one sentence that says why nothing of it must be trusted, or None
    signs: Mapping[str, float]  # what the quality of the proxy was judged by
    flagged: Any  # bool (m,): surprised test images
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
    """Estimate how models serve the people whose labels are unusual for them, without identities."""
    rows = [(name, measure) for name in predictions for measure in MEASURES]
    estimates = [Estimate(*row, np.nan, np.nan, np.nan, 0) for row in rows]
    names = list(predictions)
    pairs = [(b, a) for place, a in enumerate(names) for b in names[place + 1 :]]
    differences = [
        Difference(model, against, measure, np.nan, np.nan, np.nan, np.nan)
        for model, against in pairs
        for measure in MEASURES
    ]
    refusal = "this is a skeleton, which estimates nothing; wait for the next version"
    flagged = np.zeros(len(test_labels), dtype=bool)
    return Audit(estimates, differences, refusal, {}, flagged, ())
