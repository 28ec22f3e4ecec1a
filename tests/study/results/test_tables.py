"""What is written, and what is said of it; a second."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from study.results import tables

LEVELS, METRICS = (0.0, 0.5, 1.0), ("accuracy", "minority_accuracy")


def gains(half: float = 0.0061234) -> pd.DataFrame:
    """A table of differences of CID to ERM, a third of a point per unit of bias."""
    rows = [
        {
            "test": test,
            "metric": metric,
            "level": level,
            "method": "cid",
            "mean": 0.00333333 * level,
        }
        for test, metric, level in itertools.product(("seen", "unseen"), METRICS, LEVELS)
    ]
    table = pd.DataFrame(rows)
    return table.assign(low=table["mean"] - half, high=table["mean"] + half, p=0.123456)


@pytest.fixture
def made() -> dict[str, pd.DataFrame]:
    cid = gains().drop(columns="p")
    cid[["mean", "low", "high"]] += 0.8
    erm = cid.assign(method="erm", mean=0.81234567)
    return {"summary": pd.concat([erm, cid]), "difference": gains()}


def area(accuracy, worst, *, method="surprise", test="seen") -> pd.DataFrame:
    """A table of areas in which a method differs from ERM by these (mean, low, high), in points."""
    names = ["mean_difference", "low_difference", "high_difference"]
    rows = [
        {"test": test, "metric": metric, "method": name, "mean": 0.8}
        | dict(zip(names, np.array(values, dtype=float) / 100, strict=True))
        for metric, own in zip(METRICS, (accuracy, worst), strict=True)
        for name, values in (("erm", [np.nan] * 3), (method, own))
    ]
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------- digits


@pytest.mark.parametrize(
    ("half", "expected"),
    [
        (0.5, 2),
        (0.0123, 3),
        (0.0061, 4),
        (0.00061, 5),
        (0.000061, 6),
        (6e-9, 6),  # and no more
        (60.0, 2),  # and no fewer
        (0.0, 4),
        (np.inf, 4),
        (np.nan, 4),
    ],
)
def test_decimals_are_two_digits_of_half_the_interval(half, expected):
    assert tables.decimals(0.5 - half, 0.5 + half) == expected


def test_numbers_are_rounded_row_by_row():
    table = pd.DataFrame(
        {
            "method": ["a", "b", "c"],
            "people": [10, 11, 12],
            "mean": [0.123456789, 0.123456789, 0.123456789],
            "low": [0.1, 0.1234, -np.inf],
            "high": [0.2, 0.1235, np.inf],
            "mean_difference": [0.55555, np.nan, -1e-9],
            "low_difference": [-0.55555, np.nan, -0.5],
            "high_difference": [1.66666, np.nan, 0.5],
            "p": [0.98765432, 1e-7, np.nan],
        }
    )
    found = tables.rounded(table)
    assert found["mean"].tolist() == [0.123, 0.123457, 0.1235]
    assert found["low"].tolist() == [0.1, 0.1234, -np.inf]
    assert found["mean_difference"].tolist()[::2] == [0.56, 0] and "-" not in str(
        found.loc[2, "mean_difference"]
    )
    assert found["p"].tolist()[:2] == [0.9877, 0.0] and found["people"].tolist() == [10, 11, 12]
    assert list(found) == list(table)


def test_last_digits_do_not_reach_a_file(tmp_path):
    """Sums in another order leave the files as they are."""
    table = gains()
    moved = table.assign(
        mean=table["mean"] * (1 + 1e-9), low=table["low"] - 1e-12, p=table["p"] + 1e-12
    )
    tables.write(tmp_path / "a", t=table)
    tables.write(tmp_path / "b", t=moved)
    text = (tmp_path / "a/t.csv").read_text()
    assert text == (tmp_path / "b/t.csv").read_text()
    assert text.splitlines()[:3] == [
        "test,metric,level,method,mean,low,high,p",
        "seen,accuracy,0.0,cid,0.0,-0.0061,0.0061,0.1235",
        "seen,accuracy,0.5,cid,0.0017,-0.0045,0.0078,0.1235",
    ]
    tables.write(tmp_path, t=[table, table], empty=table.iloc[:0])
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2 * len(table)
    assert list(pd.read_csv(tmp_path / "empty.csv")) == list(table)


# ---------------------------------------------------------------------------- tables


def test_the_headline_shows_the_methods_that_were_run(made):
    head, rows = tables.headline_cells(made["difference"], made["summary"])
    assert head == [
        "bias", "accuracy, ERM", "CID − ERM", "accuracy on minority cells, ERM", "CID − ERM",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["0", "0.5", "1"]
    assert rows[2][1:3] == ["81.2 %", "+0.33 [−0.28, +0.95]"]
    # Of unseen people no class is rare.
    nothing = made["summary"]["metric"] == "minority_accuracy"
    made["summary"].loc[nothing, "mean"] = np.nan
    assert tables.headline_cells(made["difference"], made["summary"])[0] == head[:3]


def test_the_main_metrics_are_those_that_a_study_has(made):
    assert tables.main(made["summary"]) == ["accuracy", "minority_accuracy"]
    without = made["summary"][made["summary"]["metric"] == "accuracy"]
    assert tables.main(without) == ["accuracy"]
    worst = pd.concat([without, without.assign(metric="worst_decile")])
    assert tables.main(worst) == ["accuracy", "worst_decile"]


def test_power_is_said_of_what_could_be_detected():
    keys = {"test": "seen", "metric": METRICS, "method": "surprise"}
    power = pd.DataFrame(keys | {"detectable": [0.00512, np.nan]})
    said = tables.power_sentence(power)
    assert said.endswith("in points: accuracy, seen people: 0.51 (Label surprise (k-NN)).")
    assert tables.power_sentence(power[1:]).startswith("With so few seeds or people")


def test_a_difference_is_printed_to_what_its_interval_bears():
    assert tables.points(-0.0123, -np.inf, 0.001) == "−1.23 [−∞, +0.10]"
    assert tables.points(0.0123, 0.0023, 0.0222) == "+1.23 [+0.23, +2.22]"
    assert tables.points(0.0123, 0.0023, 0.0223) == "+1.2 [+0.2, +2.2]"
    assert tables.points(-1e-9, 0, 0) == "+0.00 [+0.00, +0.00]"


def test_a_table_in_markdown():
    text = tables.markdown_table(["a", "b"], [["1", "2"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_written_tables_can_be_read_back(made, tmp_path):
    runs = pd.DataFrame({"level": [0.0], "seed": [1], "accuracy": [1 / 3]})
    tables.write_tables(tmp_path, runs, made, {"task": "smiling"})
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert list(numbers) == ["task", "seen", "unseen"]
    assert json.loads((tmp_path / "about.json").read_text()) == {"task": "smiling"}
    assert numbers["seen"]["bias 1"]["accuracy"]["mean"] == {"erm": 0.8123, "cid": 0.8033}
    gain = numbers["seen"]["bias 1"]["accuracy"]["minus ERM"]
    assert gain == {"mean": {"cid": 0.0033}, "low": {"cid": -0.0028}, "high": {"cid": 0.0095}}
    assert list(pd.read_csv(tmp_path / "accuracy-seen.csv")) == ["level", "cid", "erm"]
    assert pd.read_csv(tmp_path / "runs.csv")["accuracy"].tolist() == [0.3333]
    read = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in ("difference", "summary")}
    text = tables.markdown_table(*tables.headline_cells(**read))
    assert (tmp_path / "headline.md").read_text(encoding="utf-8") == text


def test_unbounded_intervals_are_null(made, tmp_path):
    made["difference"] = made["difference"].assign(low=-np.inf, high=np.inf)
    tables.write_tables(tmp_path, pd.DataFrame({"seed": [1]}), made, {})
    gain = json.loads((tmp_path / "metrics.json").read_text())["seen"]["bias 1"]["accuracy"]
    assert gain["minus ERM"]["low"] == {"cid": None}


# ---------------------------------------------------------------------------- the sentence


@pytest.mark.parametrize(
    ("accuracy", "worst", "expected"),
    [
        (
            (0.8, 0.44, 1.15),
            (1.56, 0.33, 2.8),
            "raises the accuracy of *smiling* on held-out images (+0.80 [+0.44, +1.15] points) and "
            "that on minority cells (+1.6 [+0.3, +2.8] points).",
        ),
        (
            (-0.8, -1.15, -0.44),
            (-1, -1.5, -0.5),
            "lowers the accuracy of *smiling* on held-out images (−0.80 [−1.15, −0.44] points) and "
            "that on minority",
        ),
        (
            (0.1, -0.2, 0.4),
            (0.1, -0.2, 0.4),
            "is not shown to change the accuracy of *smiling* on held-out images (+0.10 [−0.20, "
            "+0.40] points) or that on minority cells",
        ),
        ((0.5, 0.2, 0.8), (-1, -1.5, -0.5), "points) but lowers that on minority"),
        ((0.5, 0.2, 0.8), (0.1, -0.2, 0.4), "points) and is not shown to change that on"),
        ((0.5, -np.inf, np.inf), (0.5, -np.inf, np.inf), "is not shown to change the accuracy of"),
    ],
)
def test_the_sentence_says_what_was_found(accuracy, worst, expected):
    said = tables.sentence(area(accuracy, worst), "smiling", [0.0, 0.5, 0.95])
    assert said.startswith(
        "Compared with plain training and averaged over bias levels 0 to 0.95, Label surprise (k-NN) "
    )
    assert expected in said and said.endswith(" points).")


def test_the_sentence_names_the_oracle_and_one_level():
    table = pd.concat(
        [
            area((0.8, 0.44, 1.15), (1.0, 0.3, 1.7)),
            area((0.99, 0.6, 1.4), (-0.5, -0.9, -0.1), method="oracle"),
        ]
    )
    assert tables.sentence(table, "smiling", [0.0, 0.9]).endswith(
        "; the oracle, which is told the true identities, raises the former (+0.99 [+0.60, +1.40] "
        "points) but lowers the latter (−0.50 [−0.90, −0.10] points)."
    )
    assert tables.sentence(table, "smiling", [0.9]).startswith(
        "Compared with plain training at bias level 0.9, Label surprise"
    )
    unseen = area((1, 0.5, 1.5), (1, 0.5, 1.5), method="cid", test="unseen")
    said = tables.sentence(unseen, "smiling", [0.9], "unseen")
    assert "CID raises" in said and "images of people never seen in training" in said
    only = table[table["method"] == "erm"]
    assert tables.sentence(only, "smiling", [0.9]).startswith("Only plain training was run")


# ---------------------------------------------------------------------------- weights


def test_weights_are_summed_up_by_level_and_cell():
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"level": level, "seed": seed, "part": "train", "row": range(1000)}).assign(
            cell_size=np.r_[1, np.tile([3, 9, 9], 333)], erm=1.0, cid=rng.random(1000)
        )
        for level in (0.0, 0.9)
        for seed in range(3)
    ]
    sets = pd.concat([*parts, parts[0].assign(part="seen", cid=99.0)])
    found = tables.weights_summary(sets, ["erm", "cid"])
    weights = found["weights"].set_index(["level", "cell_size", "method"])
    assert sorted(set(found["weights"]["cell_size"])) == [3, 9]  # 1 is too rare
    own = pd.concat(parts[3:]).query("cell_size == 9")["cid"]
    expected = [own.mean(), own.quantile(0.1), own.quantile(0.9)]
    assert weights.loc[0.9, 9, "cid"].tolist() == pytest.approx(expected)
    effective = found["effective"].set_index(["level", "method"])
    kish = [w.sum() ** 2 / (1000 * (w**2).sum()) for w in (part["cid"] for part in parts[:3])]
    assert effective.loc[(0.0, "cid"), "mean"] == pytest.approx(np.mean(kish))
    assert effective.loc[(0.0, "erm")].tolist() == [1, 1, 1]


# ---------------------------------------------------------------------------- rivals


def leads(**by_method) -> pd.DataFrame:
    """A table of leads: of every method (mean in points, p after Holm)."""
    rows = [
        {"test": "seen", "metric": metric, "method": name, "mean": mean / 100, "p_holm": p}
        | {"low": mean / 100 - 0.002, "high": mean / 100 + 0.002}
        for metric in METRICS
        for name, (mean, p) in by_method.items()
    ]
    return pd.DataFrame(rows)


def test_methods_stand_by_their_gain_and_those_told_identities_last():
    gains = {"surprise": 0.9, "jtt": 0.2, "oracle": 1.0, "ula": 0.6}
    given = pd.concat(
        [area([g, g - 0.1, g + 0.1], [3 * g, 0, 9], method=m) for m, g in gains.items()]
    ).drop_duplicates(["metric", "method"])
    lead = leads(jtt=(0.7, 0.01), oracle=(-0.1, 0.6), ula=(0.3, 0.04), erm=(0.9, 0.001))
    head, rows = tables.rivals(given, lead)
    assert head == ["method", "labels", "accuracy, − ERM", "Label surprise (k-NN) − it",
                    "accuracy on minority cells, − ERM", "Label surprise (k-NN) − it"]  # fmt: skip
    assert [row[0] for row in rows] == ["Label surprise (k-NN)", "uLA", "JTT", "Oracle"]
    assert rows[1][:4] == ["uLA", "class", "+0.60 [+0.50, +0.70]", "+0.30 [+0.10, +0.50]"]
    assert rows[0][3] == "–" and rows[2][1] == "none" and rows[3][1] == "class, identity"


def test_the_lead_is_said_as_holms_correction_leaves_it():
    lead = leads(erm=(0.9, 0.001), jtt=(0.7, 0.01), ula=(0.3, 0.2), afr=(-0.4, 0.02),
                 cid=(0.5, 0.001), oracle=(-0.1, 0.001))  # fmt: skip
    assert tables.lead_sentence(lead) == (
        "In accuracy on held-out images of seen people, at 5 % after Holm's correction, label surprise "
        "is ahead of ERM and JTT; it is behind AFR; it is not told apart from uLA."
    )


# ---------------------------------------------------------------------------- controls of the proxy

CLEAR, LOST, NOTHING = (2.0, 1.0, 3.0), (-1.5, -2.0, -1.0), (0.1, -0.5, 0.7)  # in points


def controls(trunk="dlib-resnet", own=CLEAR, method="surprise", **proxies):
    """Gains with proxies, the study's first, and their differences to it: ``name=(gain, difference)``."""
    named = {"dlib-resnet": (own, None)} | {k.replace("_", " "): v for k, v in proxies.items()}
    gains, apart = [], []
    for metric, (name, (gain, change)) in itertools.product(METRICS, named.items()):
        where = {"trunk": trunk, "test": "seen", "metric": metric, "proxy": name}
        for kept, value in ((gains, gain), (apart, change)):
            if value is not None:
                numbers = dict(zip(("mean", "low", "high"), np.array(value) / 100, strict=True))
                kept.append(where | {"method": method} | numbers)
                kept.append(kept[-1] | {"method": "oracle", "mean": 0.03})
    return pd.DataFrame(gains), pd.DataFrame(apart)


WHICH = ", which never learned from a face"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            {"untrained": (NOTHING, LOST), "pixels": (NOTHING, LOST), "own_trunk": (CLEAR, NOTHING)},
            "**A face recogniser is needed** on these faces: with `dlib-resnet` as the proxy, Label surprise "
            "(k-NN) raises accuracy (+2.0 [+1.0, +3.0] points); it gains less with untrained (−1.50 [−2.00, "
            f"−1.00]) and pixels (−1.50 [−2.00, −1.00]){WHICH}; it is not shown to gain less with the "
            "features that the heads are trained on, of `dlib-resnet` (+0.10 [−0.50, +0.70]).",
        ),
        (
            {"untrained": (NOTHING, LOST), "pixels": (CLEAR, LOST), "own_trunk": (NOTHING, LOST)},
            "**A face recogniser is needed for the whole gain** on these faces",
        ),
        (
            {"untrained": (CLEAR, NOTHING), "pixels": (NOTHING, LOST), "own_trunk": (NOTHING, LOST)},
            "**A face recogniser is not shown to be needed** on these faces: with `dlib-resnet` as the proxy, "
            "Label surprise (k-NN) raises accuracy (+2.0 [+1.0, +3.0] points); it is not shown to gain less "
            f"with untrained (+0.10 [−0.50, +0.70]) but gains less with pixels (−1.50 [−2.00, −1.00]){WHICH}; "
            "it gains less with the features that the heads are trained on, of `dlib-resnet` (−1.50",
        ),
        (
            {"own": NOTHING, "untrained": (NOTHING, LOST), "own_trunk": (NOTHING, LOST)},
            "**Whether a face recogniser is needed cannot be told** on these faces: with `dlib-resnet` as the "
            "proxy, Label surprise (k-NN) is not shown to change accuracy (+0.10 [−0.50, +0.70] points); it",
        ),
        (  # nothing is compared that never saw a face
            {"facenet-casia": (NOTHING, LOST), "own_trunk": (NOTHING, LOST)},
            "raises accuracy (+2.0 [+1.0, +3.0] points); it gains less with the features that the heads are",
        ),
        (  # one seed
            {"own": (2, -np.inf, np.inf), "pixels": (LOST, LOST), "own_trunk": (LOST, LOST)},
            "**Whether a face recogniser is needed cannot be told** on these faces",
        ),
    ],
    ids=["needed", "whole", "not", "no-gain", "no-control", "one-seed"],
)  # fmt: skip
def test_whether_a_face_recogniser_is_needed_is_said_as_it_was_found(found, expected):
    said = tables.controls_sentence(*controls(**found), "dlib-resnet")
    assert expected in said and said.endswith(".")
    assert said.startswith("**Whether") == ("untrained" not in found or found.get("own") == NOTHING)


def test_other_trunks_are_judged_beside_the_first():
    needed = {"pixels": (NOTHING, LOST), "own_trunk": (CLEAR, NOTHING)}
    parts = [
        controls(**needed),
        controls("nets/a.onnx@12", **needed),
        controls("pixels", own=NOTHING, **needed),
        controls("untrained", **needed),  # whose own features never learned from a face either
    ]
    gains, apart = (pd.concat(each) for each in zip(*parts, strict=True))
    assert tables.controls_sentence(gains, apart, "dlib-resnet").endswith(
        "; with heads on `a.onnx`, a face recogniser is needed; with heads on `pixels`, whether a face "
        "recogniser is needed cannot be told; with heads on `untrained`, a face recogniser is not shown to "
        "be needed."
    )
    one = [table[table["trunk"] == "untrained"] for table in (gains, apart)]
    said = tables.controls_sentence(*one, "dlib-resnet")
    assert said.endswith(
        f"but is not shown to gain less with own trunk (+0.10 [−0.50, +0.70]){WHICH}."
    )
    told = [table[table["method"] == "oracle"] for table in one]
    assert tables.controls_sentence(*told, "dlib-resnet").startswith("No method was run")


def test_a_study_on_pixels_cannot_tell():
    gains, apart = controls(untrained=(NOTHING, LOST), own_trunk=(NOTHING, LOST))
    gains = gains.replace({"proxy": {"dlib-resnet": "pixels"}})
    said = tables.controls_sentence(gains, apart, "pixels")
    assert said.startswith(
        "**Whether a face recogniser is needed cannot be told** on these faces: with `pix"
    )


def test_controls_are_listed_by_what_they_tell_of_people():
    gains, _ = controls(pixels=(NOTHING, LOST), own_trunk=(CLEAR, NOTHING))
    aucs = {"dlib-resnet": 0.9, "pixels": 0.6, "own trunk": 0.95}
    names = ["verification AUC", "same-label AUC within a person"]
    names += [f"{name}, class direction removed" for name in names]
    rows = [{"proxy": p, **dict.fromkeys(names, auc)} for p, auc in aucs.items()]
    told = tables.by_trunk({"dlib-resnet": pd.DataFrame(rows)})
    assert list(told)[:3] == ["trunk", "proxy", "verification AUC"]
    head, rows = tables.controls_table(gains, told)
    assert head == [
        "proxy", *names[:2], "the same, class direction removed",
        "accuracy, Label surprise (k-NN) − ERM",
        "accuracy on minority cells, Label surprise (k-NN) − ERM",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["own trunk", "dlib-resnet", "pixels"]
    assert rows[2] == ["pixels", *["0.600"] * 3, *["+0.10 [−0.50, +0.70]"] * 2]
    more = tables.by_trunk(
        {trunk: told.drop(columns="trunk") for trunk in ("dlib-resnet", "b/c.onnx@1")}
    )
    both = pd.concat([gains, gains.assign(trunk="b/c.onnx@1")])
    head, rows = tables.controls_table(both, more)
    assert head[:2] == ["proxy", "heads on"] and [row[1] for row in rows[::3]] == [
        "dlib-resnet",
        "c.onnx",
    ]
