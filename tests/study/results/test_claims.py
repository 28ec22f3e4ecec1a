"""Verdicts on studies in which the truth is known; about 5 seconds."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from study.results import claims, inference, tables

LEVELS, PEOPLE, IMAGES = (0.0, 0.5, 1.0), 20, 40
LABELS = np.tile([0, 1], PEOPLE * IMAGES // 2)
PERSON = np.repeat(np.arange(PEOPLE), IMAGES)


def study(change, *, seeds=8, levels=LEVELS) -> inference.Replicates:
    """ERM loses up to 38 points, most on the last people; CID's rate of right is ``change`` of that.

    ``change(rng, loss, shape)`` gives CID's gain over ERM by (seed, person). An image is right when
    its own random number is below the rate, the same number for both methods.
    """
    rng = np.random.default_rng(0)
    parts = []
    for level in levels:
        loss = level * 0.02 * np.arange(PEOPLE)
        erm = np.broadcast_to(0.9 - loss, (seeds, PEOPLE))
        cid = erm + change(rng, loss, (seeds, PEOPLE))
        for seed in range(seeds):
            luck = np.random.default_rng(seed).random(len(LABELS))
            table = {"level": level, "seed": seed, "test": "seen", "row": np.arange(len(LABELS))}
            for method, rate in (("erm", erm), ("cid", cid)):
                right = luck < rate[seed, PERSON]
                table[method] = np.where(right == (LABELS == 1), 1.0, -1.0)
            parts.append(pd.DataFrame(table))
    return inference.bootstrap(
        pd.concat(parts), ["erm", "cid"], LABELS, PERSON, metrics=list(claims.SMALLEST),
        replicates=200,
    )  # fmt: skip


STUDIES = {
    "much better": lambda rng, loss, shape: 0.9 * loss,
    "a little better": lambda rng, loss, shape: 0.2 * loss,
    "half as sensitive": lambda rng, loss, shape: 0.5 * loss,
    "worse": lambda rng, loss, shape: -0.5 * loss,
    "alike": lambda rng, loss, shape: rng.normal(0, 2e-4, shape),
    "noisy": lambda rng, loss, shape: rng.normal(0, 0.08, (shape[0], 1)),
    "tiny": lambda rng, loss, shape: np.full(shape, 0.004),
}


@pytest.fixture(scope="module")
def found():
    """By study: the verdicts by (claim, metric)."""
    made = {}
    for name, change in STUDIES.items():
        replicates = study(change, seeds={"noisy": 4, "tiny": 24}.get(name, 8))
        entries = claims.claims(replicates, "cid", task="smiling", kind="correlation")
        made[name] = {(entry["claim"], entry["metric"]): entry for entry in entries}
    return made


def verdicts(entries) -> dict:
    return {key: entry["verdict"] for key, entry in entries.items()}


def test_every_claim_is_supported_where_it_holds(found):
    assert set(verdicts(found["much better"]).values()) == {"supported"}
    assert list(found["much better"]) == [
        ("1", "worst_decile"), ("1", "identity_sd"), ("2", "accuracy"), ("3a", "accuracy"),
        ("3a", "worst_decile"), ("3b", "accuracy"), ("3b", "worst_decile"),
    ]  # fmt: skip
    assert all(found["much better"][key]["relevant"] for key in found["much better"]
               if key[0] != "3b")  # fmt: skip


def test_less_sensitive_is_not_much_less_sensitive(found):
    little = verdicts(found["a little better"])
    assert little["3a", "accuracy"] == "supported"
    assert little["3b", "accuracy"] == little["3b", "worst_decile"] == "not supported"
    assert verdicts(found["half as sensitive"])["3b", "accuracy"] == "inconclusive"
    share = found["half as sensitive"]["3b", "accuracy"]
    assert share["effect"] == pytest.approx(0.5, abs=0.05) and np.isnan(share["p_holm"])


def test_the_opposite_refutes_every_claim(found):
    assert set(verdicts(found["worse"]).values()) == {"not supported"}


def test_a_precise_null_refutes_and_a_noisy_one_does_not(found):
    assert set(verdicts(found["alike"]).values()) == {"not supported"}
    assert found["alike"]["2", "accuracy"]["p_holm"] > 0.05
    noisy = verdicts(found["noisy"])
    assert noisy["1", "worst_decile"] == noisy["2", "accuracy"] == "inconclusive"


def test_a_clear_effect_below_interest_is_supported_and_not_relevant(found):
    entry = found["tiny"]["2", "accuracy"]
    assert entry["verdict"] == "supported" and entry["relevant"] is False
    assert 0 < entry["effect"] < entry["smallest"] == claims.SMALLEST["accuracy"]


def test_levels_clear_of_zero_are_listed(found):
    assert found["much better"]["2", "accuracy"]["levels"] == {
        "better": [0.5, 1.0], "worse": [], "of": 3,
    }  # fmt: skip
    assert found["worse"]["2", "accuracy"]["levels"]["worse"] == [0.5, 1.0]


def test_p_values_are_corrected_over_the_differences_of_the_method(found):
    entries = [e for e in found["noisy"].values() if e["claim"] != "3b"]
    expected = inference.holm([e["p"] for e in entries])
    assert [e["p_holm"] for e in entries] == expected.tolist()


def test_an_entry_says_which_labels_were_used(found):
    used = found["tiny"]["2", "accuracy"]["labels_used"]
    assert "identity" not in used["training"] and "identity" in used["evaluation"]


def test_without_bias_levels_sensitivity_is_undefined():
    entries = claims.claims(
        study(STUDIES["worse"], levels=(1.0,)), "cid", task="smiling", kind="correlation"
    )
    by_claim = {entry["claim"]: entry for entry in entries}
    assert by_claim["2"]["verdict"] == "not supported"
    for claim in ("3a", "3b"):
        assert by_claim[claim]["verdict"] == "inconclusive" and np.isnan(by_claim[claim]["effect"])


def test_one_seed_decides_nothing():
    entries = claims.claims(
        study(STUDIES["much better"], seeds=1), "cid", task="smiling", kind="correlation"
    )
    assert {entry["verdict"] for entry in entries} == {"inconclusive"}
    head, rows = tables.claims_table(entries)
    assert "[−∞, +∞]" in rows[0][head.index("effect [95 % interval]")]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.02, 0.01, 0.03, 0.001, 0.005), "supported"),
        ((0.02, 0.01, 0.03, 0.06, 0.005), "inconclusive"),  # not clear of 0 after correction
        ((-0.02, -0.03, -0.01, 0.001, 0.005), "not supported"),
        ((0.001, -0.002, 0.004, 0.6, 0.005), "not supported"),  # short of any relevant effect
        ((0.001, -0.004, 0.006, 0.6, 0.005), "inconclusive"),
        ((np.nan, np.nan, np.nan, np.nan, 0.005), "inconclusive"),
    ],
)
def test_the_rule(numbers, expected):
    effect, low, high, p, smallest = numbers
    assert claims.verdict(effect, low, high, p, smallest) == expected
    assert claims.verdict(-effect, -high, -low, p, smallest, "lower") == expected


def test_the_rule_for_shares():
    assert claims.share_verdict(0.51, 0.9) == "supported"
    assert claims.share_verdict(0.1, 0.49) == "not supported"
    assert claims.share_verdict(0.4, 0.6) == claims.share_verdict(np.nan, np.nan) == "inconclusive"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("oracle", {}, "method 'oracle' is not among erm, cid"),
        ("erm", {}, "method 'erm' is the baseline"),
        ("cid", {"test": "unseen"}, "metric 'accuracy' of test set 'unseen' was not resampled"),
    ],
)
def test_bad_input_is_one_clear_sentence(method, options, message):
    replicates = study(STUDIES["tiny"], seeds=2)
    with pytest.raises(ValueError, match=message):
        claims.claims(replicates, method, task="smiling", kind="correlation", **options)


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
    tables.write_claims(tmp_path / "claims.json", entries[::-1])
    read = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert [e["claim"] for e in read] == ["1", "1", "2", "3a", "3a", "3b", "3b", "4"]
    tiny = found["tiny"]["2", "accuracy"]
    assert 0.001 < (tiny["high"] - tiny["low"]) / 2 < 0.01  # so that two digits are four decimals
    assert [read[2][k] for k in ("effect", "low")] == [round(tiny[k], 4) for k in ("effect", "low")]
    assert read[5]["p"] is None
    # What was read back makes the same table, to the printed digits.
    head, rows = tables.claims_table(read)
    assert (head, rows) == tables.claims_table(entries)
    assert {len(row) for row in rows} == {len(head)}
    assert rows[2][-1] == "supported, but smaller than 0.5 points"
    assert rows[-1][-3:] == ["bytes equal", "–", "supported"]
    assert all(isinstance(cell, str) for row in rows for cell in row)
