"""Diverse prototypes: what they learn, how they are kept apart, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cid import prototypes
from cid.prototypes import Prototypes, fit_prototypes


def data(classes=3, n=120, d=30):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(classes), n // classes))
    features = rng.normal(size=(n, d)) + 2 * rng.normal(size=(classes, d))[labels]
    return features.astype(np.float32), labels


def test_an_ensemble_tells_classes_apart():
    features, labels = data()
    options = {"members": 3, "batch": 32, "likeness": 500.0, "device": "cpu"}
    found = fit_prototypes(features, labels, **options)
    probability = found.probabilities(features)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    assert (probability.argmax(axis=1) == labels).mean() > 0.95
    assert found.places.shape == (3, 3, 30) and found.scales.shape == (3,)
    again = fit_prototypes(features, labels, **options)
    np.testing.assert_array_equal(found.places, again.places)


def test_a_member_says_by_distance_and_the_ensemble_by_the_mean():
    places = np.array([[[2.0, -2, 0], [0, 0, 1]], [[1, 1, -2], [-3, 0, 3]]], dtype=np.float32)
    found = Prototypes(places, np.array([1.0, 3.0], dtype=np.float32))
    image = np.array([[4.0, 1, 1]])
    x = (image - 2) / np.sqrt(6)
    expected = []
    for member, scale in zip(places, (1, 3), strict=True):
        unit = member / np.linalg.norm(member, axis=1, keepdims=True)
        logits = np.exp(-scale * np.linalg.norm(x - unit, axis=1))
        expected.append(logits / logits.sum())
    np.testing.assert_allclose(found.probabilities(image)[0], np.mean(expected, axis=0), rtol=1e-5)


def test_members_are_less_alike_under_the_penalty():
    features, labels = data(2)

    def alike(likeness):
        found = fit_prototypes(
            features, labels, members=4, batch=32, likeness=likeness, device="cpu"
        )
        unit = normalize(torch.from_numpy(found.places), dim=2)
        return float(torch.einsum("mcd,kcd->mk", unit, unit).triu(diagonal=1).mean())

    assert alike(500.0) < 0.5 * alike(0.0)


def test_a_subset_has_equally_many_images_of_each_class():
    codes = np.repeat([0, 1, 2], [5, 20, 8])
    subset = prototypes._balanced(codes, 5, torch.Generator().manual_seed(0)).numpy()
    assert len(set(subset)) == 15
    np.testing.assert_array_equal(np.bincount(codes[subset]), [5, 5, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(120, int)}, "all labels are 0; two classes"),
        ({"features": np.full((120, 30), np.nan)}, "NaN or infinite"),
        ({"members": 0}, "members"),
    ],
)
def test_what_cannot_be_trained_on_is_named(change, message):
    features, labels = data(2)
    with pytest.raises(ValueError, match=message):
        fit_prototypes(**({"features": features, "labels": labels, "device": "cpu"} | change))
