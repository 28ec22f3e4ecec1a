"""Label surprise as offsets of the logits, against the posterior that its weights are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cid import label_posterior, surprise_offsets, without_class_direction
from cid.factors import Factors
from cid.offsets import logs_of_classes
from cid.posterior import class_logs

rng = np.random.default_rng(0)
PEOPLE = np.arange(120) % 12
EMBEDDINGS = 3 * rng.normal(size=(12, 8))[PEOPLE] + rng.normal(size=(120, 8))


def labels_of(classes: int) -> np.ndarray:
    """Labels that follow the person in three of four images."""
    drawn = np.random.default_rng(1)
    own = PEOPLE % classes
    return np.where(drawn.random(120) < 0.75, own, drawn.integers(classes, size=120))


@pytest.mark.parametrize("options", [{}, {"neighbours": 5, "slope": 2.0}, {"local_scaling": True}])
@pytest.mark.parametrize("classes", [2, 4])
def test_offsets_are_the_logs_of_a_posterior_whose_own_class_is_label_surprises(classes, options):
    labels = labels_of(classes)
    offsets = surprise_offsets(EMBEDDINGS, labels, **options)
    np.testing.assert_allclose(np.exp(offsets).sum(axis=1), 1)
    scale = {"scale": options["neighbours"]} if "neighbours" in options else {}
    same = {key: value for key, value in options.items() if key != "neighbours"} | scale
    cleaned = without_class_direction(EMBEDDINGS, labels)
    expected = label_posterior(cleaned, labels, **same).probability
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(np.exp(offsets)[np.arange(120), labels], expected, rtol=1e-6)


def test_every_class_is_counted_among_the_neighbours_as_laplace_would():
    labels = labels_of(3)
    offsets = surprise_offsets(
        EMBEDDINGS, labels, strength=0.5, neighbours=4, slope=1.0, keep_class_direction=True
    )
    unit = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    cosine = unit @ unit.T - 4 * np.eye(120)
    near = labels[np.argsort(-cosine, axis=1)[:, :4]]
    frequency = np.bincount(labels) / 120
    counted = (near[:, :, None] == np.arange(3)).sum(axis=1)
    np.testing.assert_allclose(offsets, 0.5 * np.log((counted + 3 * frequency) / 7), rtol=1e-6)


def test_two_classes_need_no_second_count():
    factors = Factors(EMBEDDINGS, labels_of(2))
    posterior = factors.posterior()
    counted = factors.cleaned.in_rows(class_logs(factors.cleaned, posterior))
    np.testing.assert_allclose(logs_of_classes(factors, posterior), counted, atol=1e-12)


def test_offsets_are_of_the_kind_of_the_embeddings():
    labels = labels_of(2)
    single = surprise_offsets(torch.tensor(EMBEDDINGS, dtype=torch.float32), labels)
    assert isinstance(single, torch.Tensor) and single.dtype == torch.float32
    plain = surprise_offsets(EMBEDDINGS, labels, strength=0)
    assert plain.dtype == np.float64 and not plain.any()
    with pytest.raises(ValueError, match="strength"):
        surprise_offsets(EMBEDDINGS, labels, strength=-1)
