"""Verdicts on studies in which the truth is known; about 5 seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study.results import claims, files, inference, tables

LEVELS, PEOPLE, IMAGES = (0.0, 0.5, 1.0), 20, 40
LABELS = np.tile([0, 1], PEOPLE * IMAGES // 2)
PERSON = np.repeat(np.arange(PEOPLE), IMAGES)
RARE = LABELS == PERSON % 2  # the class that is rare in training: of every second person the other


def study(change, *, oracle=0.9, seeds=8, levels=LEVELS) -> inference.Estimates:
    """ERM loses up to 76 points on minority cells, most on the last people; CID's gain is ``change`` of that.

    ``change(rng, loss, shape)`` gives CID's gain in accuracy over ERM by (seed, person), twice as much on
    minority cells and nothing elsewhere; the oracle regains a share of the loss. An image is right when its
    own random number is below the rate, the same number for all methods.
    """
    rng = np.random.default_rng(0)
    parts = []
    for level in levels:
        loss = level * 0.02 * np.arange(PEOPLE)
        erm = np.broadcast_to(-loss, (seeds, PEOPLE))
        cid = erm + change(rng, loss, (seeds, PEOPLE))
        best = erm + oracle * loss
        for seed in range(seeds):
            luck = np.random.default_rng(seed).random(len(LABELS))
            table = {"level": level, "seed": seed, "test": "seen", "row": np.arange(len(LABELS))}
            table |= {"minority": RARE.astype(float)}
            for method, change_of in (("erm", erm), ("cid", cid), ("oracle", best)):
                right = luck < 0.9 + 2 * RARE * change_of[seed, PERSON]
                table[method] = np.where(right == (LABELS == 1), 1.0, -1.0)
            parts.append(pd.DataFrame(table))
    return inference.estimate(
        pd.concat(parts), ["erm", "cid", "oracle"], LABELS, PERSON, metrics=claims.ENDPOINTS,
        replicates=200,
    )  # fmt: skip


STUDIES = {
    "much better": lambda rng, loss, shape: 0.9 * loss,
    "a little better": lambda rng, loss, shape: 0.2 * loss,
    "half as sensitive": lambda rng, loss, shape: 0.45 * loss,
    "worse": lambda rng, loss, shape: -0.1 * loss,
    "alike": lambda rng, loss, shape: rng.normal(0, 2e-4, shape),
    "noisy": lambda rng, loss, shape: rng.normal(0, 0.08, (shape[0], 1)),
    "tiny": lambda rng, loss, shape: np.full(shape, 0.0015),
}


def judged(estimates, method="cid") -> dict:
    entries = claims.claims(estimates, method, task="smiling", kind="correlation")
    return {(entry["claim"], entry["metric"]): entry for entry in entries}


@pytest.fixture(scope="module")
def found():
    """By study: the entries by (claim, metric)."""
    seeds = {"noisy": 4, "tiny": 24, "alike": 24}
    return {name: judged(study(c, seeds=seeds.get(name, 8))) for name, c in STUDIES.items()}


def verdicts(entries) -> dict:
    return {key: entry["verdict"] for key, entry in entries.items()}


PRIMARY = [("1", "minority_accuracy"), ("2", "accuracy")]


def test_every_claim_is_supported_where_it_holds(found):
    told = verdicts(found["much better"])
    assert list(told) == [
        ("1", "minority_accuracy"), ("1", "worst_decile"), ("1", "identity_sd"), ("2", "accuracy"),
        ("3a", "accuracy"), ("3a", "minority_accuracy"),
        ("3b", "accuracy"), ("3b", "minority_accuracy"),
    ]  # fmt: skip
    shares = [("3b", "accuracy"), ("3b", "minority_accuracy")]
    assert {told[key] for key in PRIMARY + shares} == {"supported"}
    assert {v for key, v in told.items() if key not in PRIMARY + shares} == {"descriptive"}


def test_sensitivity_is_judged_against_what_the_oracle_removes(found):
    assert verdicts(found["a little better"])["3b", "accuracy"] == "not supported"
    share = found["half as sensitive"]["3b", "accuracy"]
    assert share["effect"] == pytest.approx(0.5, abs=0.05) and share["verdict"] == "inconclusive"
    blind = judged(study(STUDIES["much better"], oracle=0.0))
    assert blind["3b", "accuracy"]["verdict"] == "not testable"


def test_the_opposite_refutes(found):
    assert {found["worse"][key]["verdict"] for key in PRIMARY} == {"not supported"}


def test_a_precise_null_refutes_only_where_there_was_something_to_find(found):
    assert found["alike"]["2", "accuracy"]["verdict"] == "not supported"
    assert found["alike"]["2", "accuracy"]["p_holm"] > 0.05
    entry = judged(study(STUDIES["alike"], oracle=0.0, seeds=24))["2", "accuracy"]
    assert entry["verdict"] == "not testable" and entry["reason"].startswith("no oracle gains")


def test_a_study_that_could_not_have_seen_an_effect_is_not_testable(found):
    entry = found["noisy"]["2", "accuracy"]
    assert entry["detectable"] > entry["smallest"] and entry["oracle_low"] > 0
    assert entry["verdict"] == "not testable" and "would be detected" in entry["reason"]


def test_a_clear_effect_below_interest_does_not_count_as_support(found):
    entry = found["tiny"]["2", "accuracy"]
    assert entry["verdict"] == "supported, but too small to matter"
    assert 0 < entry["high"] < entry["smallest"] == claims.SMALLEST["accuracy"]


def test_p_values_are_corrected_over_the_primary_endpoints_of_both_test_sets():
    both = study(STUDIES["noisy"], seeds=4)
    unseen = {("unseen", metric): both.point["seen", metric] for metric in claims.ENDPOINTS}
    unseen["unseen", "minority_accuracy"] = np.full_like(both.point["seen", "accuracy"], np.nan)
    copied = {
        name: getattr(both, name) | {key: getattr(both, name)["seen", key[1]] for key in unseen}
        for name in ("covariance", "people")
    }
    entries = claims.claims(
        replace(both, point=both.point | unseen, **copied),
        "cid",
        task="smiling",
        kind="correlation",
    )
    family = [e for e in entries if e["primary"]]
    assert [(e["test"], e["metric"]) for e in family] == [
        ("seen", "minority_accuracy"), ("seen", "accuracy"), ("unseen", "accuracy"),
    ]  # fmt: skip
    expected = inference.holm([e["p"] for e in family])
    assert [e["p_holm"] for e in family] == expected.tolist()
    assert {e["p_holm"] for e in entries if not e["primary"]} == {None}


def test_an_entry_says_which_labels_were_used(found):
    used = found["tiny"]["2", "accuracy"]["labels_used"]
    assert "identity" not in used["training"] and "identity" in used["evaluation"]


def test_one_level_has_no_sensitivity():
    found = judged(study(STUDIES["worse"], levels=(1.0,)))
    assert {claim for claim, _ in found} == {"1", "2"}
    assert found["2", "accuracy"]["verdict"] == "not supported"


def test_one_seed_decides_nothing():
    found = judged(study(STUDIES["much better"], seeds=1))
    assert {found[key]["verdict"] for key in PRIMARY} == {"not testable"}
    head, rows = tables.claims_table(list(found.values()))
    assert "[−∞, +∞]" in rows[0][head.index("effect [95 % interval]")]


def test_people_with_few_images_have_no_worst_decile(found, monkeypatch):
    few = study(STUDIES["much better"])
    for metric in claims.SECONDARY:
        for values in (few.point, few.covariance):
            values["seen", metric] = np.full_like(values["seen", metric], np.nan)
    entry = judged(few)["1", "worst_decile"]
    assert (entry["verdict"], entry["reason"]) == ("not testable", "too few images a person")


@pytest.mark.parametrize(
    ("numbers", "detectable", "oracle_low", "expected"),
    [
        ((0.02, 0.01, 0.03, 0.001), 0.02, -1, "supported"),  # whatever was predicted
        ((0.003, 0.002, 0.004, 0.001), 0.001, 0.01, "supported, but too small to matter"),
        ((0.02, 0.01, 0.03, 0.06), 0.004, 0.01, "inconclusive"),  # not clear of 0 after correction
        ((-0.02, -0.03, -0.01, 0.001), 0.02, -1, "not supported"),
        ((0.001, -0.002, 0.004, 0.6), 0.004, 0.01, "not supported"),  # short of any relevant effect
        ((0.001, -0.002, 0.004, 0.6), 0.004, -0.01, "not testable"),  # nothing to find
        ((0.001, -0.002, 0.004, 0.6), 0.004, np.nan, "not testable"),  # no oracle was run
        ((0.001, -0.002, 0.004, 0.6), 0.006, 0.01, "not testable"),  # too little power
        ((0.001, -0.004, 0.006, 0.6), 0.004, 0.01, "inconclusive"),
    ],
)
def test_the_rule(numbers, detectable, oracle_low, expected):
    effect, low, high, p = numbers
    how = {"smallest": 0.005, "detectable": detectable, "oracle_low": oracle_low}
    assert claims.verdict(effect, low, high, p, **how)[0] == expected
    assert claims.verdict(-effect, -high, -low, p, better="lower", **how)[0] == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.51, 0.9, "supported"), (0.1, 0.49, "not supported"), (0.4, 0.6, "inconclusive"),
     (np.nan, np.nan, "not testable")],
)  # fmt: skip
def test_the_rule_for_shares(low, high, expected):
    assert claims.share_verdict(low, high)[0] == expected


@pytest.mark.parametrize(
    ("method", "drop", "message"),
    [
        ("jtt", None, "method 'jtt' is not among erm, cid, oracle"),
        ("erm", None, "method 'erm' is the baseline"),
        ("cid", "accuracy", "metric 'accuracy' was not estimated"),
    ],
)
def test_bad_input_is_one_clear_sentence(method, drop, message):
    some = study(STUDIES["tiny"], seeds=2)
    some.point.pop(("seen", drop), None)
    with pytest.raises(ValueError, match=message):
        claims.claims(some, method, task="smiling", kind="correlation")


# ---------------------------------------------------------------------------- claim 4


def test_identity_free_compares_bytes():
    weights, logits = np.linspace(0, 2, 5), np.zeros((2, 3), np.float32)
    where = {"task": "smiling", "kind": "correlation", "method": "cid"}
    given = {"weights": weights, "logits": logits}
    same = claims.identity_free(given, {"logits": logits.copy(), "weights": weights + 0}, **where)
    assert same["verdict"] == "supported" and same["differing"] == []
    assert same["sha256"]["with_identities"] == same["sha256"]["without"]
    for other in (
        {"weights": np.nextafter(weights, 3), "logits": logits},
        {"weights": weights.astype(np.float32), "logits": logits},
        {"weights": weights[:, None], "logits": logits},
        {"logits": logits},
    ):
        entry = claims.identity_free(given, other, **where)
        assert entry["verdict"] == "not supported" and entry["differing"] == ["weights"]
        assert entry["sha256"]["with_identities"] == same["sha256"]["without"]
        assert entry["sha256"]["without"] != same["sha256"]["without"]
    with pytest.raises(ValueError, match="nothing to compare"):
        claims.identity_free({}, given, **where)
    with pytest.raises(ValueError, match="array 'weights' holds Python objects"):
        claims.identity_free({"weights": np.array([None])}, given, **where)


# ---------------------------------------------------------------------------- what is written


def test_written_claims_are_sorted_plain_json(found, tmp_path):
    entries = [*found["tiny"].values()]
    entries.append(
        claims.identity_free(
            {"weights": np.ones(3)},
            {"weights": np.ones(3)},
            task="smiling",
            kind="correlation",
            method="cid",
        )  # fmt: skip
    )
    files.write_claims(tmp_path / "claims.json", entries[::-1])
    read = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert [e["claim"] for e in read] == ["1", "1", "1", "2", "3a", "3a", "3b", "3b", "4"]
    tiny = found["tiny"]["2", "accuracy"]
    assert 0.0001 < (tiny["high"] - tiny["low"]) / 2 < 0.001  # so that two digits are five decimals
    assert [read[3][k] for k in ("effect", "low")] == [round(tiny[k], 5) for k in ("effect", "low")]
    assert read[6]["p"] is None
    # What was read back makes the same table, to the printed digits.
    head, rows = tables.claims_table(read)
    assert (head, rows) == tables.claims_table(entries)
    assert {len(row) for row in rows} == {len(head)}
    assert rows[3][head.index("verdict")] == "supported, but too small to matter"
    assert rows[-1][4:8] == ["bytes equal", "–", "–", "supported"]
    assert all(isinstance(cell, str) for row in rows for cell in row)
