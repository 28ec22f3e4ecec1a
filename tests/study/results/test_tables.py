"""What is printed; a second."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from study.results import tables, varied
from tests.study.results.made_up import CLEAR, LOST, NOTHING, area, controls, evaluated, leads


@pytest.fixture
def made() -> dict[str, pd.DataFrame]:
    return evaluated()


def test_a_difference_is_printed_to_what_its_interval_bears():
    assert tables.points(-0.0123, -np.inf, 0.001) == "−1.23 [−∞, +0.10]"
    assert tables.points(0.0123, 0.0023, 0.0222) == "+1.23 [+0.23, +2.22]"
    assert tables.points(0.0123, 0.0023, 0.0223) == "+1.2 [+0.2, +2.2]"
    assert tables.points(-1e-9, 0, 0) == "+0.00 [+0.00, +0.00]"


def test_a_table_in_markdown():
    text = tables.markdown_table(["a", "b"], [["1", "2"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_headline_shows_the_methods_that_were_run(made):
    head, rows = tables.headline_table(made["difference"], made["summary"])
    assert head == [
        "bias", "accuracy, ERM", "CID − ERM", "accuracy on minority cells, ERM", "CID − ERM",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["0", "0.5", "1"]
    assert rows[2][1:3] == ["81.2 %", "+0.33 [−0.28, +0.95]"]
    # Of unseen people no class is rare.
    nothing = made["summary"]["metric"] == "minority_accuracy"
    made["summary"].loc[nothing, "mean"] = np.nan
    assert tables.headline_table(made["difference"], made["summary"])[0] == head[:3]


def test_the_main_metrics_are_those_that_a_study_has(made):
    assert tables.main_metrics(made["summary"]) == ["accuracy", "minority_accuracy"]
    without = made["summary"][made["summary"]["metric"] == "accuracy"]
    assert tables.main_metrics(without) == ["accuracy"]
    worst = pd.concat([without, without.assign(metric="worst_decile")])
    assert tables.main_metrics(worst) == ["accuracy", "worst_decile"]


def test_methods_stand_by_their_gain_and_those_told_identities_last():
    gains = {"surprise": 0.9, "jtt": 0.2, "oracle": 1.0, "ula": 0.6}
    given = pd.concat(
        [area([g, g - 0.1, g + 0.1], [3 * g, 0, 9], method=m) for m, g in gains.items()]
    ).drop_duplicates(["metric", "method"])
    lead = leads(jtt=(0.7, 0.01), oracle=(-0.1, 0.6), ula=(0.3, 0.04), erm=(0.9, 0.001))
    head, rows = tables.rivals_table(given, lead)
    assert head == ["method", "labels", "accuracy, − ERM", "Label surprise (k-NN) − it",
                    "accuracy on minority cells, − ERM", "Label surprise (k-NN) − it"]  # fmt: skip
    assert [row[0] for row in rows] == ["Label surprise (k-NN)", "uLA", "JTT", "Oracle"]
    assert rows[1][:4] == ["uLA", "class", "+0.60 [+0.50, +0.70]", "+0.30 [+0.10, +0.50]"]
    assert rows[0][3] == "–" and rows[2][1] == "none" and rows[3][1] == "class, identity"


def test_tables_name_what_gains_are_over():
    given = pd.concat(
        [
            area([0.9, 0.1, 1.7], [1, 0, 2]).assign(reference="balanced"),
            area([0.2, 0.1, 0.3], [1, 0, 2], method="jtt").assign(reference="erm"),
        ]
    ).drop_duplicates(["metric", "method"])
    head, rows = tables.rivals_table(given, leads(jtt=(0.7, 0.01)))
    assert head[:4] == ["method", "labels", "reference", "accuracy, − its reference"]
    assert [row[2] for row in rows] == ["Class-balanced", "ERM"]
    made = evaluated()
    made["difference"]["reference"] = "balanced"
    head, _ = tables.headline_table(made["difference"], made["summary"])
    assert head[2] == "CID − Class-balanced"


@pytest.mark.parametrize(
    ("verdict", "p", "border", "expected"),
    [
        ("supported", 0.001, [], "supported"),
        ("no gain", 0.3, [], "no gain"),
        ("no gain", 0.03, [], "no gain, though clear of 0"),
        ("supported", 0.001, ["supported, size uncertain"],
         "supported; on the border of supported, size uncertain"),
        ("no gain", 0.3, ["inconclusive", "not testable"],
         "no gain; on the border of inconclusive and of not testable"),
    ],
)  # fmt: skip
def test_a_verdict_in_words(verdict, p, border, expected):
    entry = {"verdict": verdict, "p_holm": p, "border": border}
    assert tables.verdict_words(entry) == expected


def test_controls_are_listed_by_what_they_tell_of_people():
    gains, _ = controls(pixels=(NOTHING, LOST), own_trunk=(CLEAR, NOTHING))
    aucs = {"dlib-resnet": 0.9, "pixels": 0.6, "own trunk": 0.95}
    names = ["verification AUC", "same-label AUC within a person"]
    names += [f"{name}, class direction removed" for name in names]
    rows = [{"proxy": p, **dict.fromkeys(names, auc)} for p, auc in aucs.items()]
    told = varied.join_trunks({"dlib-resnet": pd.DataFrame(rows)})
    assert list(told)[:3] == ["trunk", "proxy", "verification AUC"]
    head, rows = tables.controls_table(gains, told)
    assert head == [
        "proxy", *names[:2], "the same, class direction removed",
        "accuracy, Label surprise (k-NN) − ERM",
        "accuracy on minority cells, Label surprise (k-NN) − ERM",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["own trunk", "dlib-resnet", "pixels"]
    assert rows[2] == ["pixels", *["0.600"] * 3, *["+0.10 [−0.50, +0.70]"] * 2]
    with_right, cells = tables.controls_table(gains, told.assign(**{"right pairs": 0.3}))
    assert with_right[1:4] == [names[0], "right pairs", names[1]]
    assert cells[2][:4] == ["pixels", "0.600", "0.300", "0.600"]
    more = varied.join_trunks(
        {trunk: told.drop(columns="trunk") for trunk in ("dlib-resnet", "b/c.onnx@1")}
    )
    both = pd.concat([gains, gains.assign(trunk="b/c.onnx@1")])
    head, rows = tables.controls_table(both, more)
    assert head[:2] == ["proxy", "heads on"] and [row[1] for row in rows[::3]] == [
        "dlib-resnet",
        "c.onnx",
    ]


def test_the_penalty_that_was_chosen_stands_out():
    penalties = pd.DataFrame(
        {"level": 0.9, "method": "erm", "l2": [0.03, 0.1], "loss": [0.25, 0.5],
         "chosen": [True, False], "sets": 2, "images": 1600}
    )  # fmt: skip
    head, rows = tables.penalties_table(penalties)
    assert head == ["bias", "chosen for", "L2 0.03", "L2 0.1", "sets", "images"]
    assert rows == [["0.9", "erm", "**0.2500**", "0.5000", "2", "1,600"]]


def test_ways_to_choose_are_judged_by_the_truth_among_methods_without_identities():
    rows = pd.DataFrame(
        {
            "method": ["erm", "surprise", "oracle"],
            "truth": [0.80, 0.85, 0.90],
            "plain": [0.95, 0.93, 0.99],
            "estimate": [0.81, 0.86, 0.91],
        }
    ).assign(level=0.9, proxy="as it is", measure="balanced")
    other = rows.assign(proxy="random", truth=0.0)
    head, printed = tables.choices_table(pd.concat([rows, other]))
    surprise = "Label surprise (k-NN)"
    assert printed == [
        ["0.9", f"{surprise}, 85.0 %", "ERM, −5.00", f"{surprise}, +0.00", "−5.00", "+0.00"]
    ]
    assert head[-2:] == ["always ERM", f"always {surprise}"]  # no column of what was not run
    with_audited = pd.concat([rows, rows[:1].assign(method="audited", truth=0.84)])
    head, printed = tables.choices_table(with_audited)
    assert head[-1] == "always Audited" and printed[0][-1] == "−1.00"
    unknown = tables.choices_table(rows.assign(estimate=np.nan))[1]
    assert unknown[0][3] == "–"
