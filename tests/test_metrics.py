"""Metrics and intervals against hand-worked cases and independent implementations."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cid import metrics

LABELS = np.array([1, 1, 0, 0, 1, 1, 0, 0])
SCORES = np.array([2, 1, -1, -1, 1, -1, 1, -2.0])  # person a: all right; b: one of each class wrong
PEOPLE = np.array(list("aaaabbbb"))


def test_run_metrics_of_a_hand_worked_case():
    found = metrics.run_metrics(LABELS, SCORES, PEOPLE)
    assert found == {
        "accuracy": 0.75,
        "worst_decile": 0.5,
        "worst_identity": 0.5,
        "identity_sd": 0.25,
        "tpr_gap": 0.5,
        "tnr_gap": 0.5,
    }


def test_worst_decile_is_the_mean_of_the_worst_tenth():
    values = np.random.default_rng(0).permutation(np.linspace(0, 1, 41))
    assert metrics.worst_decile(values) == pytest.approx(np.mean([0, 0.025, 0.05, 0.075, 0.1]))
    assert metrics.worst_decile([0.3, 0.9]) == 0.3


def test_mean_interval_is_scipys_t_interval():
    values = np.random.default_rng(0).normal(size=12)
    found = metrics.mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert metrics.mean_interval([0.4]) == {"mean": 0.4, "low": -np.inf, "high": np.inf, "n": 1}


def test_ratio_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        b = rng.normal(2, 1, size=20)
        a = 0.3 * b + rng.normal(0, 1, size=20)
        found = metrics.ratio_interval(a, b)
        inside += found["low"] <= 0.3 <= found["high"]
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def test_ratio_is_undefined_where_the_denominator_may_be_zero():
    noise = np.random.default_rng(0).normal(size=20)
    assert np.isnan(metrics.ratio_interval(noise, noise - noise.mean())["mean"])
    assert metrics.ratio_interval(2 * noise + 20, noise + 10)["mean"] == pytest.approx(2)


def make_runs():
    """ERM falls by .1 per unit of bias, CID by half of that, the oracle not at all."""
    rng = np.random.default_rng(1)
    rows = []
    for seed in range(10):
        shared = rng.normal(0, 0.05)
        for level in (0.0, 0.5, 1.0):
            for method, slope in (("erm", -0.1), ("cid", -0.05), ("oracle", 0.0)):
                value = 0.9 + shared + slope * level + rng.normal(0, 1e-3)
                rows.append(
                    {"level": level, "seed": seed, "test": "seen", "method": method}
                    | dict.fromkeys(metrics.METRICS, value)
                )
    return pd.DataFrame(rows)


def row(table, **where):
    found = table.loc[(table[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


def test_comparisons_are_paired_within_the_seed():
    runs = make_runs()
    where = {"test": "seen", "metric": "accuracy", "level": 1.0, "method": "cid"}
    alone, paired = row(metrics.summary(runs), **where), row(metrics.difference(runs), **where)
    assert paired["mean"] == pytest.approx(0.05, abs=2e-3)
    assert paired["high"] - paired["low"] < 0.1 * (alone["high"] - alone["low"])


def test_sensitivity_and_oracle_gap():
    runs = make_runs()
    slope = row(metrics.sensitivity(runs), test="seen", metric="accuracy", method="cid")
    assert slope["mean"] == pytest.approx(-0.05, abs=2e-3)
    assert slope["low_difference"] < 0.05 < slope["high_difference"]
    gap = metrics.oracle_gap_recovered(runs)
    share = row(gap, test="seen", metric="accuracy", level=1.0, method="cid")
    assert share["low"] < 0.5 < share["high"] and share["high"] - share["low"] < 0.1
    assert np.isnan(row(gap, test="seen", metric="accuracy", level=0.0, method="cid")["mean"])
    assert metrics.sensitivity(runs[runs["level"] == 0]).empty


def test_evaluate_joins_predictions_with_the_truth():
    predictions = pd.DataFrame(
        {"level": 0.5, "seed": 3, "test": "seen", "row": range(8), "erm": SCORES}
    )
    shuffled = predictions.sample(frac=1, random_state=0)
    runs = metrics.evaluate(shuffled, ["erm"], LABELS, PEOPLE)
    expected = {"level": 0.5, "seed": 3, "test": "seen", "method": "erm"}
    assert runs.iloc[0].to_dict() == expected | metrics.run_metrics(LABELS, SCORES, PEOPLE)
    by_person = metrics.accuracy_by_identity(shuffled, ["erm"], LABELS, PEOPLE)
    assert by_person.loc[0.5, "seen"]["erm"].to_dict() == {"a": 1.0, "b": 0.5}


def test_written_tables_can_be_read_back(tmp_path):
    runs = make_runs()
    tables = {"summary": metrics.summary(runs), "difference": metrics.difference(runs)}
    metrics.write_tables(tmp_path, runs, tables, {"task": "smiling"})
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    gain = numbers["seen"]["bias 1"]["accuracy"]["minus ERM"]
    assert gain["low"]["cid"] < 0.05 < gain["high"]["cid"] and "erm" not in gain["mean"]
    wide = pd.read_csv(tmp_path / "accuracy-seen.csv")
    assert list(wide) == ["level", "cid", "erm", "oracle"]
    text = (tmp_path / "headline.md").read_text()
    assert text == metrics.headline(tables) and len(text.splitlines()) == 2 + 3


def test_verification_auc_of_a_hand_worked_case():
    unit = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]])
    same, different = metrics.pair_similarities(unit, ["a", "a", "b", "b"])
    np.testing.assert_allclose(sorted(same), [0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(sorted(different), [0, 0.6, 0.6, 0.96], rtol=1e-6, atol=1e-7)
    assert metrics.verification_auc(same, different) == 0.75
