"""The library against the method in plain NumPy, cid/reference.py."""

from __future__ import annotations

import numpy as np
import pytest

from cid import CIDWeights, cid_weights, class_density, label_posterior, reference, surprise_weights


@pytest.fixture(scope="module")
def people():
    """40 people of 12 images, more often of one class or the other, in a proxy with a common direction."""
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(40), 12)
    labels = (rng.random(480) < np.where(identities % 2, 0.8, 0.3)).astype(int)
    embeddings = 2 + rng.normal(size=(40, 16))[identities] + 0.4 * rng.normal(size=(480, 16))
    return embeddings, labels


@pytest.mark.parametrize("tau", [0.003, 0.01, 0.05])
def test_cid_is_the_reference(people, tau):
    embeddings, labels = people
    density = class_density(embeddings, labels, tau)
    np.testing.assert_allclose(density, reference.density(embeddings, labels, tau), rtol=1e-9)
    weights = cid_weights(embeddings, labels, tau)
    np.testing.assert_allclose(weights, reference.cid(embeddings, labels, tau), rtol=1e-9)
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("k", [3, 10])
def test_label_surprise_is_the_reference(people, k):
    embeddings, labels = people
    posterior = label_posterior(embeddings, labels, scale=k, slope=1.0).probability
    np.testing.assert_allclose(posterior, reference.posterior(embeddings, labels, k), rtol=1e-12)
    weights = surprise_weights(
        embeddings, labels, neighbours=k, surprise=1.0, keep_class_direction=True
    )
    np.testing.assert_allclose(weights, reference.surprise(embeddings, labels, k), rtol=1e-12)


def test_weights_of_other_samples_are_those_of_training_samples_at_the_same_place(people):
    embeddings, labels = people
    model = CIDWeights(tau=0.02, power=2.0)
    weights = model.fit_weights(embeddings, labels)
    np.testing.assert_allclose(model.predict_weights(embeddings, labels), weights, rtol=1e-9)
    np.testing.assert_allclose(weights, cid_weights(embeddings, labels, 0.02, power=2.0))
    auto = CIDWeights().fit_weights(embeddings, labels)
    np.testing.assert_allclose(auto, cid_weights(embeddings, labels))
    with pytest.raises(ValueError, match="label 7 was in no training sample; fit with it first"):
        model.predict_weights(embeddings[:1], [7])
