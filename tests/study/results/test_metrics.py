"""Metrics of a run against hand-worked cases and sklearn; two seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from study.results import metrics

LABELS = np.array([1, 1, 0, 0, 1, 1, 0, 0])
SCORES = np.array([2, 1, -1, -1, 1, -1, 1, -2.0])  # person a: all right; b: one of each class wrong
PEOPLE = np.array(list("aaaabbbb"))


@pytest.fixture(scope="module")
def problem():
    """Unbalanced labels, informative logits with ties."""
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.3).astype(int)
    return labels, np.round(rng.normal(2 * labels - 1, 1.5), 1)


def test_run_metrics_of_a_hand_worked_case():
    found = metrics.run_metrics(LABELS, SCORES, PEOPLE)
    # Confidence sigmoid(1) = .731 is in the bin (10/15, 11/15]: six images, four of them right;
    # sigmoid(2) = .881 in (13/15, 14/15]: two, both right.
    one, two = expit(1.0), expit(2.0)
    assert found == pytest.approx(
        {
            "accuracy": 0.75,
            "balanced_accuracy": 0.75,
            "identity_balanced_accuracy": 0.75,
            # Positives 2, 1, 1, -1 against negatives -1, -1, 1, -2: 4 + 3.5 + 3.5 + 2 of 16.
            "auroc": 13 / 16,
            "ece": (abs(4 - 6 * one) + abs(2 - 2 * two)) / 8,
            "brier": (2 * (1 - two) ** 2 + 4 * (1 - one) ** 2 + 2 * one**2) / 8,
            "worst_decile": 0.5,
            "worst_identity": 0.5,
            "identity_sd": 0.25,
            # Distance .5 in two of the four ordered pairs, over twice the mean .75.
            "identity_gini": 0.25 / 1.5,
            "tpr_gap": 0.5,
            "tnr_gap": 0.5,
        }
    )
    assert list(found) == list(metrics.METRICS)
    assert metrics.run_metrics(LABELS, SCORES, PEOPLE, ["ece"]) == {"ece": found["ece"]}


def test_overall_metrics_are_sklearns(problem):
    labels, scores = problem
    assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.brier(labels, scores) == pytest.approx(brier_score_loss(labels, expit(scores)))
    expected = balanced_accuracy_score(labels, scores > 0)
    assert metrics.balanced_accuracy(labels, scores) == pytest.approx(expected)


def test_calibration_error_bin_by_bin(problem):
    labels, scores = problem
    confidence = np.maximum(expit(scores), 1 - expit(scores))
    right = (scores > 0) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        rows = (confidence > low) & (confidence <= low + 1 / 15)
        if rows.any():
            expected += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    assert metrics.ece(labels, scores) == pytest.approx(expected)
    assert metrics.ece([1, 0], [50.0, -50.0]) == pytest.approx(0, abs=1e-12)


def test_a_missing_class_leaves_rates_undefined():
    for measure in (metrics.auroc, metrics.balanced_accuracy):
        assert np.isnan(measure([1, 1], [1.0, 2.0]))
    assert np.isnan(metrics.rate_gap([1, 1], [1.0, 2.0], ["a", "b"], 0))
    # Person b has no positive, so only a and c are compared.
    assert metrics.rate_gap([1, 0, 1], [1.0, 1.0, -1.0], ["a", "b", "c"], 1) == 1


def test_worst_decile_is_the_mean_of_the_worst_tenth():
    values = np.random.default_rng(0).permutation(np.linspace(0, 1, 41))
    assert metrics.worst_decile(values) == pytest.approx(np.mean([0, 0.025, 0.05, 0.075, 0.1]))
    assert metrics.worst_decile([0.3, 0.9]) == 0.3
    assert metrics.worst_decile(np.linspace(0, 1, 10)) == 0  # ten people: one


def test_gini_is_the_mean_distance_of_pairs():
    a = np.random.default_rng(0).random(37)
    expected = np.abs(a[:, None] - a).mean() / (2 * a.mean())
    assert metrics.gini(a) == pytest.approx(expected)
    assert metrics.gini([0.8, 0.8, 0.8]) == pytest.approx(0)
    assert metrics.gini([0, 0, 0, 1]) == pytest.approx(0.75)  # (n - 1) / n: one has it all
    assert metrics.gini([0, 0]) == 0


def test_groups_are_accuracies_over_images():
    groups = ["x", "x", "x", "y", "y", "y", "y", "y"]
    found = metrics.identity_accuracy(LABELS, SCORES, groups)
    assert found.to_dict() == {"x": 1.0, "y": 0.6}
    assert metrics.group_gap(LABELS, SCORES, groups) == pytest.approx(0.4)


def test_every_metric_says_what_it_is():
    for metric in metrics.METRICS.values():
        assert metric.better in ("higher", "lower")
        assert metric.definition.endswith(".") and "uses class labels" in metric.definition


def test_evaluate_joins_predictions_with_the_truth():
    predictions = pd.DataFrame(
        {"level": 0.5, "seed": 3, "test": "seen", "row": range(8), "erm": SCORES}
    )
    shuffled = predictions.sample(frac=1, random_state=0)
    runs = metrics.evaluate(shuffled, ["erm"], LABELS, PEOPLE)
    found = runs.iloc[0].to_dict()
    expected = {"level": 0.5, "seed": 3, "test": "seen", "method": "erm"}
    assert {key: found.pop(key) for key in expected} == expected
    assert found == pytest.approx(metrics.run_metrics(LABELS, SCORES, PEOPLE))
    by_person = metrics.accuracy_by_identity(shuffled, ["erm"], LABELS, PEOPLE)
    assert by_person.loc[0.5, "seen"]["erm"].to_dict() == {"a": 1.0, "b": 0.5}


def test_verification_auc_of_a_hand_worked_case():
    unit = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]])
    same, different = metrics.pair_similarities(unit, ["a", "a", "b", "b"])
    np.testing.assert_allclose(sorted(same), [0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(sorted(different), [0, 0.6, 0.6, 0.96], rtol=1e-6, atol=1e-7)
    assert metrics.verification_auc(same, different) == 0.75
