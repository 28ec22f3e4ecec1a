"""Heads of several classes against sklearn, and of two classes against the heads for two."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cid.heads import fit_heads
from cid.penalty import choose_l2, cross_validated_losses
from cid.risks import cvar_risk, group_risk
from cid.softmax import SoftmaxHeads, cross_entropies, fit_softmax_heads


@pytest.fixture(scope="module")
def problem():
    """300 samples of 20 features on different scales, four classes, weights of 3 heads."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=300)
    features = rng.normal(size=(300, 20)) + 0.4 * rng.normal(size=(4, 20))[labels]
    features = features * np.geomspace(0.1, 10, 20) + 3
    weights = rng.exponential(size=(3, 300)) * (rng.random((3, 300)) < 0.6)
    return features.astype(np.float32), labels, weights


def probabilities(logits) -> np.ndarray:
    """(..., C) logits as probabilities."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("l2", [0.01, 0.3])
def test_every_head_is_sklearns_optimum_on_its_own_images(problem, l2):
    features, labels, weights = problem
    heads = fit_softmax_heads(features, labels, weights, l2)
    for weight, logits in zip(weights, heads.logits(features), strict=True):
        used = weight > 0
        x = (features - features[used].mean(axis=0)) / features[used].std(axis=0)
        theirs = LogisticRegression(C=1 / (2 * l2 * weight.sum()), tol=1e-9, max_iter=10_000)
        theirs.fit(x[used], labels[used], sample_weight=weight[used])
        np.testing.assert_allclose(probabilities(logits), theirs.predict_proba(x), atol=1e-3)


def test_of_two_classes_it_is_the_head_for_two(problem):
    features, labels, weights = problem
    two = labels % 2
    penalties = [0.01, 0.1, 1.0]
    expected = fit_heads(features, two, weights, penalties).logits(features)
    found = fit_softmax_heads(features, two, weights, penalties).logits(features)
    np.testing.assert_allclose(found[:, :, 1] - found[:, :, 0], expected, atol=5e-3)


def test_fewer_images_than_features_give_the_same_head(problem):
    features, labels, _ = problem
    rng = np.random.default_rng(1)
    wide = np.hstack([features[:40], rng.normal(size=(40, 80))]).astype(np.float32)
    labels = labels[:40]
    ones = np.ones((1, 40))
    heads = fit_softmax_heads(wide, labels, ones, 0.1)
    x = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    theirs = LogisticRegression(C=1 / (2 * 0.1 * 40), tol=1e-9, max_iter=10_000).fit(x, labels)
    found = probabilities(heads.logits(wide)[0])
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=1e-3)


def test_a_risk_and_groups_act_as_on_two_classes(problem):
    features, labels, weights = problem
    two = labels % 2
    groups = np.broadcast_to(labels, weights.shape)
    for how in (
        {"risk": cvar_risk(0.5)},
        {"risk": lambda own: group_risk(3.0, own), "groups": groups},
    ):
        expected = fit_heads(features, two, weights, 0.1, **how).logits(features)
        found = fit_softmax_heads(features, two, weights, 0.1, **how).logits(features)
        np.testing.assert_allclose(found[:, :, 1] - found[:, :, 0], expected, atol=5e-3)


def test_an_offset_acts_as_on_two_classes(problem):
    features, labels, weights = problem
    two = labels % 2
    odds = np.random.default_rng(2).normal(size=weights.shape)
    offset = np.stack([np.zeros_like(odds), odds], axis=2)
    expected = fit_heads(features, two, weights, 0.1, offset=odds).logits(features)
    found = fit_softmax_heads(features, two, weights, 0.1, offset=offset).logits(features)
    np.testing.assert_allclose(found[:, :, 1] - found[:, :, 0], expected, atol=5e-3)


def test_heads_on_other_images_change_no_byte(problem):
    features, labels, weights = problem
    together = fit_softmax_heads(features, labels, weights, 0.1)
    alone = fit_softmax_heads(features, labels, weights[1:2], 0.1)
    np.testing.assert_array_equal(together.weight[1:2], alone.weight)
    joined = SoftmaxHeads.joined([together.rows(slice(0, 1)), together.rows(slice(1, 3))])
    np.testing.assert_array_equal(joined.bias, together.bias)


def test_the_penalty_of_several_classes_is_cross_validated(problem):
    features, labels, _ = problem
    features, labels = features[:80], labels[:80]
    losses = cross_validated_losses(features, labels, penalties=[0.001, 0.1, 100.0])
    assert losses[1] < losses[0]
    assert losses[2] == pytest.approx(np.log(4), abs=0.05)  # nothing is learnt
    assert 0.01 <= choose_l2(features, labels) <= 1


def test_cross_entropies_are_of_the_label():
    logits = np.log([[[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]])
    np.testing.assert_allclose(cross_entropies(logits, [2, 1]), [[-np.log(0.5), -np.log(0.8)]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_weights": np.ones((1, 299))}, "disagree"),
        ({"sample_weights": -np.ones((1, 300))}, "negative"),
        ({"l2": 0.0}, "train.l2"),
        ({"l2": [0.1, 0.2]}, "of every head"),
        ({"offset": np.zeros((1, 300, 3))}, "offset must be finite numbers of shape"),
        ({"standardised_by": np.zeros(300, bool)}, "leaves out an image"),
        ({"max_iterations": 2}, "have not converged after 2 steps"),
    ],
)
def test_bad_arguments_are_named(problem, changes, message):
    features, labels, _ = problem
    arguments = {"sample_weights": np.ones((1, 300)), "l2": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        fit_softmax_heads(features, labels, **arguments)


def test_a_head_needs_every_class(problem):
    features, labels, weights = problem
    with pytest.raises(ValueError, match="head 0 has no training image of class 3"):
        fit_softmax_heads(features, labels, weights * (labels != 3), 0.1)
