"""Data of which nobody is known, judged by the audit: against a truth that the study does not get."""

from __future__ import annotations

import numpy as np
import pytest

from study.experiment import runs, unidentified
from study.experiment.design import draw_sets
from study.results import plots, sentences, tables

NATURAL = {
    "kind": "natural",
    "levels": [0.0],
    "images_per_identity": 8,
    "test_per_class": 1,
    "unseen_share": 0.2,
}


@pytest.fixture(scope="module")
def crowd():
    """60 people whose images are much alike, and their labels: for nine tenths of an image's people the same."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(60), 20)
    proxy = rng.normal(size=(60, 16))[person] + 0.1 * rng.normal(size=(1200, 16))
    labels = (rng.random(1200) < np.where(person % 2, 0.85, 0.15)).astype(int)
    return person, proxy, labels


def audited(proxy, labels, scores, folder=None):
    sets = draw_sets(np.full(len(labels), -1), labels, seeds=3, **NATURAL)
    predictions = runs.tested(sets)
    for method, of_images in scores.items():
        predictions[method] = of_images[predictions["row"]]
    return unidentified.audit_held_out(
        predictions, sets, proxy, labels, list(scores), replicates=50, folder=folder
    )


def test_a_model_that_knows_who_is_told_from_one_that_knows_what(crowd, tmp_path):
    person, proxy, labels = crowd
    scores = {"surprise": labels - 0.5, "erm": person % 2 - 0.5}
    found = audited(proxy, labels, scores, tmp_path)
    assert unidentified.refusal(found["splits"]) == ""
    mean = found["audited"].set_index(["method", "measure"])["mean"]
    assert mean["erm", "minority"] < 0.1 and mean["erm", "majority"] > 0.95
    assert abs(mean["erm", "balanced"] - 0.5) < 0.05  # the truth, which plain accuracy (.85) hides
    assert mean["surprise", "balanced"] == 1
    gain = found["audited-gains"].set_index(["method", "measure"]).loc[("surprise", "balanced")]
    assert gain["mean"] == pytest.approx(1 - mean["erm", "balanced"])
    assert 0 < gain["low"] < gain["mean"] and gain["smallest"] > 0
    kept = sorted(path.name for path in tmp_path.iterdir())
    again = audited(proxy, labels, scores, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept  # nothing was computed again
    for name, table in found.items():
        assert table.equals(again[name])


def test_nothing_in_it_is_called_a_measure_of_people(crowd):
    person, proxy, labels = crowd
    found = audited(proxy, labels, {"erm": person % 2 - 0.5, "surprise": labels - 0.5})
    assert set(found["audited"]["measure"]) == {"minority", "majority", "balanced"}
    columns = {name for table in found.values() for name in table}
    assert not columns & {"people", "identity", "person", "spread"}


def test_labels_that_nobody_could_be_known_by_are_refused_and_no_number_is_shown(crowd):
    person, proxy, _ = crowd
    labels = np.random.default_rng(1).integers(0, 2, 1200)
    found = audited(proxy, labels, {"erm": person % 2 - 0.5, "surprise": labels - 0.5})
    why = unidentified.refusal(found["splits"])
    assert "no better than chance" in why
    gains = found["audited-gains"]
    said = sentences.unidentified_sentence(found["audited"], gains, found["splits"], why, "hat")
    shown = tables.unidentified_markdown(found["audited"], gains, why)
    for text in (said, shown, plots.unidentified(gains, why).data):
        assert "refuse" in text.lower() and "points" not in text and "|" not in text


def test_the_tables_name_the_best_first_and_how_the_audit_trusts_itself(crowd):
    person, proxy, labels = crowd
    found = audited(proxy, labels, {"erm": person % 2 - 0.5, "surprise": labels - 0.5})
    head, rows = tables.unidentified_table(found["audited"], found["audited-gains"])
    assert [row[0] for row in rows] == ["Label surprise (k-NN)", "ERM"]
    assert rows[1][head.index("balanced − ERM")] == "–" and all(
        len(row) == len(head) for row in rows
    )
    head, rows = tables.splits_table(found["splits"])
    assert [row[head.index("trusted")] for row in rows].count("yes") >= 2
    said = sentences.unidentified_sentence(
        found["audited"], found["audited-gains"], found["splits"], "", "hat"
    )
    assert "clearly better than ERM is Label surprise (k-NN) (+" in said
    mean = found["audited"].set_index(["method", "measure"])["mean"]
    assert f"(ERM) classifies *hat* right on {100 * mean['erm', 'minority']:.1f} % [" in said
    assert f"and on {100 * mean['erm', 'majority']:.1f} % [" in said
    assert len(plots.unidentified(found["audited-gains"], "").axes) == 2
