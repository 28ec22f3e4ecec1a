"""Trust in labels: known rates are found, wrong labels are told from rare ones, and bad input is refused."""

import numpy as np
import pytest

from cid.penalty import FOLDS, folds
from cid.trust import (
    STREAM,
    label_trust,
    out_of_fold_logits,
    trust_by_neighbours_too,
    trust_in_labels,
)


def known(rates, n=4000, strength=6.0, seed=0):
    """Logits (n, C) of a calibrated judge, labels with known rates of wrong ones, and which are wrong."""
    rng = np.random.default_rng(seed)
    classes = len(rates)
    logits = strength * rng.normal(size=(n, classes))
    logits[:, 0] = 0 if classes == 2 else logits[:, 0]
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (rng.random((n, 1)) > chance.cumsum(axis=1)).sum(axis=1)
    wrong = rng.random(n) < np.asarray(rates)[true]
    shift = rng.integers(1, classes, size=n)
    return logits, np.where(wrong, (true + shift) % classes, true), wrong


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.05, 0.05), (0.15, 0.0), (0.1, 0.02, 0.2)])
def test_known_rates_are_found_and_the_probabilities_are_calibrated(rates):
    logits, labels, wrong = known(rates, n=8000)
    found = trust_in_labels(2.5 * logits, labels)  # whatever the strength of the judge
    np.testing.assert_allclose(found.rates, rates, atol=0.02)
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.wrong == pytest.approx(wrong.mean(), abs=0.012)
    for low, high in ((0, 0.2), (0.2, 0.6), (0.6, 0.95)):
        within = (found.probability >= low) & (found.probability < high)
        if within.sum() > 200:
            assert found.probability[within].mean() == pytest.approx(
                1 - wrong[within].mean(), abs=0.08
            )


def test_the_expected_class_is_the_likeliest():
    logits, labels, wrong = known((0.1, 0.1, 0.1), strength=6.0)
    found = trust_in_labels(logits, labels)
    assert (found.expected == logits.argmax(axis=1)).mean() > 0.98


def test_a_rare_label_is_trusted_and_a_wrong_one_is_not():
    """The person says nothing about trust: only the task's features are asked."""
    rng = np.random.default_rng(1)
    labels = np.tile([0, 1], 300)
    features = rng.normal(size=(600, 20))
    features[:, :4] += 2 * labels[:, None]
    given = labels.copy()
    wrong = rng.random(600) < 0.05
    given[wrong] = 1 - given[wrong]
    found = label_trust(features, given)
    assert np.median(found.probability[~wrong]) > 0.95
    assert np.median(found.probability[wrong]) < 0.3
    assert found.wrong == pytest.approx(wrong.mean(), abs=0.02)


def test_a_judge_never_saw_the_image():
    """An image that only its own head could know stays unexplained."""
    rng = np.random.default_rng(2)
    labels = np.tile([0, 1], 50)
    features = rng.normal(size=(100, 400))  # room enough to learn every label by heart
    logits = out_of_fold_logits(features, labels)
    right = (logits[:, 1] > 0) == (labels == 1)
    assert 0.3 < right.mean() < 0.7


def test_names_of_classes_and_their_order_do_not_matter():
    rng = np.random.default_rng(3)
    codes = np.arange(150) % 3
    features = rng.normal(size=(150, 6)) + 2 * np.eye(3)[codes] @ rng.normal(size=(3, 6))
    named = label_trust(features, np.array(["ash", "beech", "cedar"])[codes])
    same = label_trust(features, codes)
    np.testing.assert_array_equal(named.probability, same.probability)
    assert named.rates.shape == (3,)


def test_what_neighbours_tell_counts_where_labels_are_wrong_and_not_where_all_are_right():
    rng = np.random.default_rng(6)
    right = rng.integers(0, 2, 800)
    logits = 3 * np.eye(2)[right] + rng.normal(size=(800, 2))
    evidence = 2 * np.eye(2)[right] + rng.normal(size=(800, 2))
    assert (trust_by_neighbours_too(logits, right, evidence).probability == 1).all()
    wrong = rng.random(800) < 0.06
    labels = np.where(wrong, 1 - right, right)
    alone = trust_in_labels(logits, labels).probability
    both = trust_by_neighbours_too(logits, labels, evidence)
    np.testing.assert_allclose(both.rates, 0.06, atol=0.04)
    assert both.wrong == pytest.approx(wrong.mean(), abs=0.015)
    assert ((both.probability < 0.5) == wrong).mean() > ((alone < 0.5) == wrong).mean()
    assert (both.expected == right).mean() > 0.98


def test_folds_are_even_and_repeatable():
    codes = np.repeat([0, 1, 2], [11, 40, 7])
    found = folds(codes, seed=4, stream=STREAM)
    assert np.bincount(found, minlength=FOLDS).max() - np.bincount(found).min() <= 1
    np.testing.assert_array_equal(found, folds(codes, seed=4, stream=STREAM))
    assert (found != folds(codes, seed=5, stream=STREAM)).any()
    assert (found != folds(codes, seed=4)).any()


@pytest.mark.parametrize(
    "features, labels, message",
    [
        (np.zeros((10, 2)), np.zeros(10), "at least 2 classes"),
        (np.zeros((12, 2)), [0] * 8 + [1] * 4, "the smallest of 4"),
        (np.zeros((12, 2)), [0, 1] * 5, "10"),
        (np.full((12, 2), np.nan), [0, 1] * 6, "finite|nan"),
    ],
)
def test_bad_input_gets_one_sentence(features, labels, message):
    with pytest.raises(ValueError, match=message):
        label_trust(features, labels)


def test_a_penalty_must_be_positive():
    with pytest.raises(ValueError, match="l2"):
        label_trust(np.zeros((12, 2)), [0, 1] * 6, l2=0)
