"""Sentences about all studies: computed, marked, and true whatever the tables say."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pandas as pd
import pytest

from study.pipeline import earlier, findings, overview

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def studies():
    with contextlib.chdir(ROOT):
        return overview.read_studies()


@pytest.fixture
def here(monkeypatch, studies):
    monkeypatch.chdir(ROOT)
    return studies


def test_a_marked_block_is_written_and_the_rest_stays():
    text = (
        "a\n<!-- one: begin -->\nold\n<!-- one: end -->\nb\n<!-- two: begin --><!-- two: end -->\n"
    )
    blocks = {"one": lambda: "new\n", "two": lambda: "+1\n", "three": lambda: 1 / 0}
    filled = findings.filled(text, blocks)
    assert filled == (
        "a\n<!-- one: begin -->\nnew\n<!-- one: end -->\nb\n<!-- two: begin -->\n+1\n<!-- two: end -->\n"
    )
    assert findings.filled(filled, blocks) == filled
    with pytest.raises(ValueError, match="four: begin --> is no block; there are one, two, three"):
        findings.filled("<!-- four: begin --><!-- four: end -->", blocks)
    with pytest.raises(ValueError, match="has no <!-- one: end --> after it"):
        findings.filled("<!-- one: end --><!-- one: begin -->", blocks)


def test_the_result_names_what_every_method_reaches_at_the_strongest_bias(here):
    text = findings.result(ROOT / "reports/virtual-people")
    summary = pd.read_csv(ROOT / "reports/virtual-people/summary.csv")
    strongest = summary.query("test == 'seen' and level == level.max()")
    at_erm = "method == 'erm' and metric == 'accuracy'"
    for method in ("erm", "surprise", "cid", "oracle"):
        rows = strongest[strongest["method"] == method].set_index("metric")["mean"]
        assert f"{100 * rows['minority_accuracy']:.1f} %" in text
    assert f"gets {100 * strongest.query(at_erm)['mean'].item():.1f} % of the test images" in text
    gains = pd.read_csv(ROOT / "reports/virtual-people/difference.csv")
    row = gains.query("test == 'seen' and level == level.max() and method == 'cid'").iloc[0]
    assert row["metric"] == "accuracy" and f"CID {100 * row['mean']:+.2f} (" in text


def test_every_study_of_photographs_stands_under_the_state_of_its_protocol(here):
    text = findings.study_by_study(here)
    for study in here:
        wanted = study.model == "linear" and study.name[:4] in ("lfw-", "pins", "cmu-", "cele")
        assert (f"[`{study.name}`]" in text) == wanted
    for state, heading in overview.GROUPS.items():
        part = text.partition(heading)[2].partition("\n\nRun again")[0].partition("\n\nExpl")[0]
        named = set(re.findall(r"\[`([\w-]+)`\]", part))
        assert named <= {study.name for study in here if study.protocol["status"] == state}


def test_a_gain_is_printed_where_the_verdict_says_that_there_is_one(here, monkeypatch):
    study = next(study for study in here if study.name == "lfw-mouth")
    entries = [
        {"primary": True, "test": "seen", "method": method, "metric": metric, "verdict": verdict,
         "effect": 0.01, "low": 0.005, "high": 0.015}
        for method, metric, verdict in (
            ("surprise", "accuracy", "supported"), ("surprise", "minority_accuracy", "no gain"),
            ("cid", "accuracy", "does harm"), ("cid", "minority_accuracy", "not testable"),
        )
    ]  # fmt: skip
    judged = overview.Study(**{**vars(study), "claims": entries, "protocol": {"status": "rerun"}})
    text = findings.photographs([judged])
    assert text == (
        "- *Run again*: confirmatory before, with other settings; exploratory now (1 study). Label "
        "surprise, accuracy: *supported* in `lfw-mouth` +1.00; minority cells: 1 without "
        "a gain shown. CID, accuracy: 1 *does harm*; minority cells: 1 without a gain shown.\n"
    )
    assert findings.in_short([judged]) == (
        "On photographs, label surprise raises accuracy in 1 of 1 study run again; CID raises accuracy in 0 "
        "of 1 study run again."
    )
    assert findings.photographs([]).startswith("- There is no study")


def test_weights_and_logits_stand_side_by_side(here):
    rows = findings.weights_or_logits(here).splitlines()[2:]
    studies = [study for study in here if study.gain("accuracy", "surprise-logits")]
    assert len(rows) == 2 * len(studies) > 0
    for study, weights, logits in zip(studies, rows[::2], rows[1::2], strict=True):
        for row, method in ((weights, "surprise"), (logits, "surprise-logits")):
            assert row.startswith(f"| `{study.name}`, ")
            assert study.gain("accuracy", method) in row
            assert study.gain("accuracy", method, "unseen") in row


def test_the_networks_of_all_trunks_stand_in_one_table(here):
    text = findings.recogniser(here)
    tried = [study for study in here if study.params["proxies"].get("trunks")]
    assert tried
    for study in tried:
        gains = pd.read_csv(ROOT / f"reports/{study.name}/proxies-controls.csv")
        at = gains.query("test == 'seen' and metric == 'accuracy' and method == 'surprise'")
        rows = [line for line in text.splitlines() if line.startswith(f"| `{study.name}`, ")]
        left_out = {"untrained", "pixels", "random"}
        assert len(rows) == (~at["proxy"].isin(left_out)).sum()
        of_imagenet = at[at["proxy"].str.contains("efficientnet")]
        sentence = next(line for line in text.splitlines() if line.startswith(f"- `{study.name}`."))
        assert ("taught on ImageNet" in sentence) == (len(of_imagenet) > 0)
        if len(of_imagenet):
            assert f"it gains {100 * of_imagenet['mean'].iloc[0]:+.2f} [" in sentence


@pytest.mark.parametrize(
    "mean, p_holm, said",
    [
        (-0.86, 0.10, "is not told apart from CID in accuracy: the difference is −0.86"),
        (1.5, 0.001, "is told apart from CID in accuracy: the difference is +1.50"),
    ],
)
def test_the_order_from_scratch_is_one_of_two_trainings(monkeypatch, mean, p_holm, said):
    monkeypatch.chdir(ROOT)
    row = {
        "test": "seen",
        "metric": "accuracy",
        "method": "cid",
        "mean": mean / 100,
        "p_holm": p_holm,
    }
    row |= {"low": mean / 100 - 0.005, "high": mean / 100 + 0.005}
    monkeypatch.setattr(findings, "_table", lambda study, name: pd.DataFrame([row]))
    text = findings.order_from_scratch()
    assert said in text and "trained once before" in text
    old = next(r for r in earlier.before("cnn") if r.method == "surprise" and r.reference == "cid")
    same = (old.estimate > 0) == (mean > 0)
    assert ("same sign" in text) == same and ("differ in sign" in text) != same


@pytest.mark.parametrize("gain, p_holm", [(0.02, 0.001), (0.02, 0.2), (-0.02, 0.001)])
def test_under_a_long_tail_only_methods_that_were_run_are_spoken_of(monkeypatch, gain, p_holm):
    tail = pd.DataFrame(
        {"kind": "longtail", "test": "seen", "metric": "accuracy", "method": ["erm", "cid", "oracle"],
         "mean_difference": [float("nan"), gain, 0.0], "p_holm": [float("nan"), p_holm, 1.0], "task": "smiling"}
    )  # fmt: skip
    lead = pd.DataFrame(columns=["test", "metric", "method"])
    tables = {"lead": lead, "breadth-area": tail}
    monkeypatch.setattr(findings, "_table", lambda study, name: tables[name])
    text = findings.factors(Path("reports/x"))
    assert "CID and Oracle were run, on 1 tasks" in text and "Other methods were not run" in text
    shown = gain > 0 and p_holm < 0.05
    assert ("shown to gain for CID on *smiling*" in text) == shown
    assert ("none of them is shown" in text) != shown


def test_the_figure_of_detectors_is_of_the_committed_reports(monkeypatch):
    from benchmarks import detector_studies

    monkeypatch.chdir(ROOT)
    assert detector_studies.FILE.read_bytes() == detector_studies.svg()
