"""The penalty that cross-validation chooses, against plain scikit-learn on the same folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import StandardScaler

from cid import penalty
from cid.penalty import GRID, best_penalty, choose_l2, cross_validated_losses, folds, search


def problem(n, d, seed=0):
    """n images of d features on different scales, a quarter of which tell the label."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    signal = rng.normal(size=d) * (np.arange(d) % 4 == 0) * 0.5
    features = rng.normal(size=(n, d)) + labels[:, None] * signal
    return (features * np.geomspace(0.1, 10, d) + 3).astype(np.float32), labels


def by_scikit_learn(features, labels, penalties, weights, seed):
    x = StandardScaler().fit_transform(features.astype(np.float64))
    losses = []
    for l2 in penalties:
        total = 0.0
        for train, test in PredefinedSplit(folds(labels, seed)).split():
            strength = 1 / (l2 * weights[train].sum())
            model = LogisticRegression(C=strength, tol=1e-10, solver="newton-cholesky")
            model.fit(x[train], labels[train], sample_weight=weights[train])
            total += log_loss(
                labels[test],
                model.predict_proba(x[test]),
                sample_weight=weights[test],
                normalize=False,
            )
        losses.append(total / weights.sum())
    return losses


@pytest.mark.parametrize("d", [20, 150], ids=["primal", "dual"])
def test_the_losses_are_those_of_scikit_learn(d):
    features, labels = problem(90, d)
    penalties = (0.01, 0.1, 1.0)
    weights = np.random.default_rng(1).exponential(size=90)
    plain = cross_validated_losses(features, labels, penalties=penalties, seed=7)
    weighted = cross_validated_losses(features, labels, weights, penalties=penalties, seed=7)
    expected = by_scikit_learn(features, labels, penalties, np.ones(90), 7)
    np.testing.assert_allclose(plain, expected, rtol=1e-3)
    expected = by_scikit_learn(features, labels, penalties, weights, 7)
    np.testing.assert_allclose(weighted, expected, rtol=1e-3)
    assert not np.allclose(plain, weighted, rtol=0.01)


def test_the_choice_is_scikit_learns():
    features, labels = problem(90, 150)
    for seed in range(2):
        losses = by_scikit_learn(features, labels, GRID, np.ones(90), seed)
        expected = best_penalty(dict(zip(GRID, losses, strict=True)))
        assert choose_l2(features, labels, seed=seed) == expected
    assert 0.003 < expected < 10


def test_folds_deal_out_each_class_and_are_drawn_from_the_seed():
    labels = np.array([1] * 7 + [0] * 32)
    codes = folds(labels, 3)
    assert np.ptp(np.bincount(codes)) <= 1
    assert np.ptp(np.bincount(codes[labels == 1], minlength=5)) <= 1
    assert np.ptp(np.bincount(codes[labels == 0], minlength=5)) <= 1
    np.testing.assert_array_equal(codes, folds(labels, 3))
    assert (codes != folds(labels, 4)).any()


def test_only_the_images_of_the_set_and_their_labels_decide():
    """Neither the scale of the features nor a change of no label moves the losses."""
    features, labels = problem(60, 80)
    plain = cross_validated_losses(features, labels)
    np.testing.assert_allclose(cross_validated_losses(100 * features - 7, labels), plain, rtol=2e-3)
    flipped = labels.copy()
    flipped[:20] = 1 - flipped[:20]
    assert not np.allclose(cross_validated_losses(features, flipped), plain, rtol=0.05)


def test_losses_as_good_as_the_least_give_the_largest_penalty():
    assert best_penalty({0.01: 0.4, 0.03: 0.4003, 0.1: 0.41}) == 0.03
    assert best_penalty({0.01: 0.4, 0.03: 0.4005, 0.1: 0.41}) == 0.01
    assert best_penalty({0.01: np.inf, 0.03: 0.5}) == 0.03
    with pytest.raises(ValueError, match="give train.l2 a number"):
        best_penalty({0.01: np.inf})


@pytest.mark.parametrize("centre", [*GRID, 1e-5, 100.0])
def test_a_search_finds_the_minimum_wherever_it_is(centre):
    asked = []

    def losses_at(penalties):
        asked.extend(penalties)
        return [abs(np.log(l2 / centre)) for l2 in penalties]

    found = search(losses_at)
    assert len(asked) == len(set(asked)) and list(found) == sorted(asked)
    assert min(found, key=found.get) == min(GRID, key=lambda l2: abs(np.log(l2 / centre)))


def test_heads_that_do_not_converge_are_not_chosen(monkeypatch):
    features, labels = problem(60, 80)
    monkeypatch.setattr(penalty, "STEPS", 12)
    losses = cross_validated_losses(features, labels)
    assert np.isinf(losses[0]) and np.isfinite(losses[GRID.index(0.3)])


@pytest.mark.parametrize(
    "labels, words",
    [([0] * 9 + [1], "fewer than 2 training images"), ([0] * 10, "fewer than 2 training images")],
)
def test_a_class_that_cannot_be_held_out_is_refused(labels, words):
    with pytest.raises(ValueError, match=words):
        choose_l2(np.zeros((10, 3)), labels)
