"""Verdicts on studies in which the truth is known; about 5 seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study.methods import registry
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
ENDPOINTS = [*PRIMARY, ("1", "people_sd"), ("1", "worst_tenth")]


def test_every_claim_is_supported_where_it_holds(found):
    told = verdicts(found["much better"])
    assert list(told) == [
        ("1", "minority_accuracy"), ("1", "people_sd"), ("1", "worst_tenth"), ("2", "accuracy"),
        ("3a", "accuracy"), ("3a", "minority_accuracy"),
        ("3b", "accuracy"), ("3b", "minority_accuracy"),
    ]  # fmt: skip
    shares = [("3b", "accuracy"), ("3b", "minority_accuracy")]
    assert {told[key] for key in ENDPOINTS + shares} == {"supported"}
    assert {v for key, v in told.items() if key not in ENDPOINTS + shares} == {"descriptive"}


def test_sensitivity_is_judged_against_what_the_oracle_removes(found):
    assert verdicts(found["a little better"])["3b", "accuracy"] == "not supported"
    share = found["half as sensitive"]["3b", "accuracy"]
    assert share["effect"] == pytest.approx(0.5, abs=0.05) and share["verdict"] == "inconclusive"
    blind = judged(study(STUDIES["much better"], oracle=0.0))
    assert blind["3b", "accuracy"]["verdict"] == "not testable"


def test_the_opposite_is_called_harm(found):
    assert {found["worse"][key]["verdict"] for key in PRIMARY} == {"does harm"}


def test_a_precise_null_is_no_gain_and_says_whether_there_was_one_to_be_had(found):
    entry = found["alike"]["2", "accuracy"]
    assert entry["verdict"] == "no gain" and entry["p_holm"] > 0.05
    entry = judged(study(STUDIES["alike"], oracle=0.0, seeds=24))["2", "accuracy"]
    assert entry["verdict"] == "nothing to gain" and entry["reason"].endswith("that of the oracle")


def test_a_study_that_could_not_have_seen_an_effect_is_not_testable(found):
    entry = found["noisy"]["2", "accuracy"]
    assert entry["detectable"] > entry["smallest"] and entry["oracle_low"] > 0
    assert entry["verdict"] == "not testable" and "would be detected" in entry["reason"]


def test_a_clear_effect_below_interest_is_no_gain(found):
    entry = found["tiny"]["2", "accuracy"]
    assert entry["verdict"] == "no gain" and entry["reason"].startswith("clear of 0, but")
    assert 0 < entry["high"] < entry["smallest"] == claims.SMALLEST["accuracy"]


def test_interval_p_value_and_detectable_effect_are_of_one_level(found):
    for entries in found.values():
        for entry in entries.values():
            if entry["primary"]:
                clear = entry["low"] > 0 or entry["high"] < 0
                assert clear == (entry["p_holm"] < 0.05) and 0.0125 <= entry["alpha"] <= 0.05


def test_tables_get_the_numbers_of_the_verdicts():
    estimates = study(STUDIES["a little better"])
    entries = claims.claims(estimates, "cid", task="smiling", kind="correlation")
    plain = {"area": inference.area(estimates), "power": inference.power(estimates)}
    corrected = claims.in_tables(plain, entries)
    for entry in entries:
        if entry["primary"]:
            for name, columns in {"area": ["low_difference", "high_difference", "p_holm", "detectable"],
                                  "power": ["detectable"]}.items():  # fmt: skip
                table = corrected[name].query("method == 'cid' and metric == @entry['metric']")
                names = [column.removesuffix("_difference") for column in columns]
                assert table[columns].iloc[0].tolist() == [entry[key] for key in names]
                assert table["alpha"].iloc[0] == entry["alpha"]
    oracle = corrected["area"].query("method == 'oracle'")
    pd.testing.assert_frame_equal(
        oracle.drop(columns="alpha"), plain["area"].query("method == 'oracle'")
    )
    assert set(oracle["alpha"]) == {0.05}


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
        ("seen", "minority_accuracy"), ("seen", "people_sd"), ("seen", "worst_tenth"),
        ("seen", "accuracy"), ("unseen", "accuracy"),
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
    assert found["2", "accuracy"]["verdict"] == "does harm"


def test_one_seed_decides_nothing():
    found = judged(study(STUDIES["much better"], seeds=1))
    assert {found[key]["verdict"] for key in PRIMARY} == {"not testable"}
    head, rows = tables.claims_table(list(found.values()))
    assert "[−∞, +∞]" in rows[0][head.index("effect [interval]")]


def test_people_with_few_images_have_no_worst_tenth():
    few = study(STUDIES["much better"])
    for metric in claims.UNIFORMITY:
        for values in (few.point, few.covariance):
            values["seen", metric] = np.full_like(values["seen", metric], np.nan)
    entry = judged(few)["1", "worst_tenth"]
    assert (entry["verdict"], entry["reason"]) == ("not testable", "too few images a person")


# Intervals by where their ends lie: below -.5 points, above that, at 0, above 0, above .5 points.
SPANS = {
    "supported": [(0.5, 0.9), (0.6, 9.0)],
    "supported, size uncertain": [(0.01, 0.5), (0.4, 2.0)],
    "does harm": [(-0.9, -0.6), (-0.9, -0.1), (-0.5, -0.01)],
    "no gain": [(0.1, 0.49), (0.0, 0.4), (-0.4, 0.4), (-0.4, -0.1), (-9.0, 0.1), (-0.6, 0.0), (0.0, 0.0)],
    None: [(0.0, 0.5), (-0.1, 0.6), (-9.0, 9.0), (-np.inf, np.inf)],  # decided by the power
}  # fmt: skip


@pytest.mark.parametrize("oracle_high", [0.4, 0.5, 2.0, np.nan])
@pytest.mark.parametrize("detectable", [0.3, 0.5, 0.6, np.inf])
@pytest.mark.parametrize(("word", "span"), [(w, s) for w, spans in SPANS.items() for s in spans])
def test_the_rule(word, span, detectable, oracle_high):
    """Power decides only where the interval holds both 0 and the smallest effect of interest."""
    found, reason = claims.verdict(
        span[0] / 100,
        span[1] / 100,
        smallest=0.005,
        detectable=detectable / 100,
        oracle_high=oracle_high / 100,
    )
    if word is None:
        word = "inconclusive" if detectable <= 0.5 else "not testable"
    if word == "no gain" and oracle_high < 0.5:
        word = "nothing to gain"
    assert found == word
    assert ("clear of 0, but the whole" in reason) == (span in [(0.1, 0.49), (-0.4, -0.1)])


def test_the_noisier_of_two_studies_is_not_the_one_that_is_supported():
    """One estimate, .4 points, and ever wider intervals."""
    words = [
        claims.verdict(
            0.004 - half, 0.004 + half, smallest=0.005, detectable=1.4 * half, oracle_high=0.03
        )[0]
        for half in (0.0005, 0.003, 0.0041, 0.02)
    ]
    assert words == ["no gain", "supported, size uncertain", "not testable", "not testable"]
    assert "supported" not in words


def test_a_metric_that_is_better_when_lower_is_judged_alike(found):
    entry = found["much better"]["1", "people_sd"]
    turned = entry | {"low": -entry["high"], "high": -entry["low"], "effect": -entry["effect"]}
    turned |= {"oracle_low": -entry["oracle_high"], "oracle_high": -entry["oracle_low"]}
    (other,) = claims.judge([turned | {"metric": "worst_tenth", "p": 0.0}])
    assert entry["high"] < 0 and entry["verdict"] == other["verdict"] == "supported"


# ---------------------------------------------------------------------------- the border


@pytest.mark.parametrize(
    ("low", "high", "detectable", "oracle", "expected"),
    [  # a tenth of half the interval is .02 points
        (0.51, 0.91, 0.3, (1, 3), ["supported", "supported, size uncertain"]),
        (0.55, 0.95, 0.3, (1, 3), ["supported"]),
        (0.01, 0.61, 0.4, (1, 3), ["supported, size uncertain", "inconclusive"]),
        (0.01, 0.61, 0.47, (1, 3), ["supported, size uncertain", "inconclusive", "not testable"]),
        (0.1, 0.49, 0.3, (1, 3), ["no gain", "supported, size uncertain"]),
        (-0.1, 0.4, 0.3, (-0.5, 0.49), ["nothing to gain", "no gain"]),
        (-0.1, 0.4, 0.3, (-0.1, 0.4), ["nothing to gain"]),
        (-0.7, -0.01, 0.5, (1, 3), ["does harm", "no gain"]),
        (-1, 1, 0.52, (1, 3), ["not testable", "inconclusive"]),
        (-1, 1, 1.4, (1, 3), ["not testable"]),
        (-np.inf, np.inf, np.inf, (1, 3), []),
    ],
)
def test_what_rounding_could_turn_is_on_the_border(low, high, detectable, oracle, expected):
    found = claims.borders(
        low / 100,
        high / 100,
        smallest=0.005,
        detectable=detectable / 100,
        oracle_high=oracle[1] / 100,
        oracle_half=(oracle[1] - oracle[0]) / 200,
        moves=0.1,
    )
    assert sorted(found) == sorted(expected) and found[:1] == expected[:1]


def entry_of(t: float) -> dict:
    """An endpoint of 21 seeds whose effect is ``t`` standard errors of half a point."""
    found = inference.interval(0.005 * t, 0.005, 20)
    numbers = {name: float(values) for name, values in found.items()}
    return numbers | {
        "claim": "2", "metric": "accuracy", "primary": True, "degrees_of_freedom": 20,
        "effect": numbers["mean"], "oracle_low": 0.01, "oracle_high": 0.03,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "words", "border"),
    [
        (2.45, "supported, size uncertain", ["not testable"]),  # t of .025 is 2.42, so near
        (2.40, "not testable", ["supported, size uncertain"]),
        (2.80, "supported, size uncertain", []),
        (2.30, "not testable", []),
    ],
)
def test_an_endpoint_is_on_the_border_where_another_decides_its_level(first, words, border):
    """The second has t 2.25: clear of 0 at .05, and not at .025, which it has if the first fails."""
    one, other = claims.judge([entry_of(first), entry_of(2.25)], moves=0.02)
    assert one["alpha"] == 0.025 and other["alpha"] == (0.05 if "supported" in words else 0.025)
    assert other["verdict"] == words and other["border"] == border


def test_shares_have_a_border():
    assert claims.share_borders(0.51, 0.9, moves=0.1) == ["supported", "inconclusive"]
    assert claims.share_borders(0.6, 0.9, moves=0.1) == ["supported"]
    assert claims.share_borders(np.nan, np.nan) == []


# ---------------------------------------------------------------------------- the reference


def test_methods_that_balance_classes_are_judged_against_balanced_where_data_are_as_found():
    methods = ["erm", "balanced", "cid", "surprise", "jtt", "oracle"]
    balancing = registry.balancing(methods, {})
    assert balancing == ["cid", "surprise", "oracle"]
    assert registry.balancing(methods, {"class_prior": "empirical"}) == []
    expected = dict.fromkeys(balancing, "balanced")
    assert claims.references("natural", balancing) == expected
    assert claims.references("correlation", balancing) == {}
    estimates = study(STUDIES["much better"], levels=(1.0,))
    told = replace(estimates, references={"cid": "oracle"})
    entry = judged(told)["2", "accuracy"]
    assert entry["reference"] == "oracle" and entry["statement"].endswith("than under Oracle.")
    assert entry["effect"] == pytest.approx(
        judged(estimates)["2", "accuracy"]["effect"]
        - judged(estimates, "oracle")["2", "accuracy"]["effect"]
    )


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
    assert rows[3][head.index("verdict")] == "no gain, though clear of 0"
    assert rows[-1][4:9] == ["bytes equal", "–", "–", "–", "supported"]
    assert rows[3][head.index("level")].endswith(" %")
    assert all(isinstance(cell, str) for row in rows for cell in row)
