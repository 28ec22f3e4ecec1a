"""Trust in the study: weights times trust, of class labels alone."""

from dataclasses import replace

import numpy as np
import pytest

from cid.heads import StandardisedFeatures, fit_heads
from cid.trust import label_trust
from study.methods.base import TrainingStack
from study.methods.registry import METHODS, fit_method
from study.methods.trusted import trust_of_sets

TRUSTED = ("trusted", "cid-trusted", "surprise-trusted")


@pytest.fixture(scope="module")
def stack():
    """Two seeds, each with its own 240 of 300 images, of which 20 have a wrong label."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 150)
    features = rng.normal(size=(300, 12)) + 1.5 * labels[:, None]
    labels[:20] = 1 - labels[:20]
    features = features.astype(np.float32)
    design = StandardisedFeatures(features, labels)
    return TrainingStack(np.arange(2), features, labels, design, 0.1)


@pytest.fixture(scope="module")
def weights(stack):
    weights = np.random.default_rng(1).uniform(0.5, 2, size=(2, 300)).astype(np.float32)
    weights[0, 240:] = 0
    weights[1, 20:80] = 0
    return weights


def test_a_training_set_is_judged_as_the_library_judges_it(stack, weights):
    found = trust_of_sets(stack, weights)
    for own, trust in zip(weights, found, strict=True):
        member = own > 0
        alone = label_trust(stack.features[member], stack.labels[member])
        np.testing.assert_allclose(trust[member], alone.probability, atol=0.02)
        assert (trust[~member] == 0).all()


def test_heads_are_those_of_weights_times_trust(stack, weights):
    found = fit_method(stack, "surprise-trusted", weights).logits(stack.features)
    trusted = weights * trust_of_sets(stack, weights)
    for label in (0, 1):
        of_class = stack.labels == label
        total = weights[:, of_class].sum(axis=1) / trusted[:, of_class].sum(axis=1)
        trusted[:, of_class] *= total[:, None]
    expected = fit_heads(stack.features, stack.labels, trusted, 0.1).logits(stack.features)
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())
    plain = fit_heads(stack.features, stack.labels, weights, 0.1).logits(stack.features)
    assert np.abs(plain - expected).max() > 0.1 * expected.std()


def test_trust_is_fitted_once_for_all_methods_of_a_stack(stack, weights, monkeypatch):
    fitted = []

    def counted(own, given):
        fitted.append(own)
        return (given > 0).astype(float)

    monkeypatch.setattr("study.methods.trusted.trust_of_sets", counted)
    fresh = replace(stack, shared={})
    for name in TRUSTED:
        fit_method(fresh, name, weights)
    fit_method(fresh, "trusted", np.roll(weights, 1, axis=0))  # other training sets
    assert len(fitted) == 2


def test_wrong_labels_lose_their_pull(stack, weights):
    true = np.where(np.arange(300) < 20, 1 - stack.labels, stack.labels)
    held_out = np.arange(240, 300)

    def accuracy(heads):
        return ((heads.logits(stack.features)[:1] > 0) == true)[:, held_out].mean()

    plain = fit_heads(stack.features, stack.labels, weights, 0.1)
    assert accuracy(fit_method(stack, "trusted", weights)) >= accuracy(plain)


def test_no_identity_reaches_them():
    assert all(METHODS[name].uses == ("class",) for name in TRUSTED)
