"""What is said of results; a second."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from study.results import sentences
from tests.study.results.made_up import CLEAR, LOST, METRICS, NOTHING, area, controls, leads

# ---------------------------------------------------------------------------- the result


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
    said = sentences.result_sentence(area(accuracy, worst), "smiling", [0.0, 0.5, 0.95])
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
    assert sentences.result_sentence(table, "smiling", [0.0, 0.9]).endswith(
        "; the oracle, which knows the true identities, raises the former (+0.99 [+0.60, +1.40] "
        "points) but lowers the latter (−0.50 [−0.90, −0.10] points)."
    )
    assert sentences.result_sentence(table, "smiling", [0.9]).startswith(
        "Compared with plain training at bias level 0.9, Label surprise"
    )
    unseen = area((1, 0.5, 1.5), (1, 0.5, 1.5), method="cid", test="unseen")
    said = sentences.result_sentence(unseen, "smiling", [0.9], "unseen")
    assert "CID raises" in said and "images of people never seen in training" in said
    only = table[table["method"] == "erm"]
    assert sentences.result_sentence(only, "smiling", [0.9]).startswith(
        "Only plain training was run"
    )


def test_the_sentence_names_what_a_method_is_compared_with():
    table = area((0.8, 0.44, 1.15), (1.0, 0.3, 1.7)).assign(reference="balanced")
    said = sentences.result_sentence(table, "smiling", [0.0])
    assert said.startswith("Compared with *Class-balanced* at bias level 0, Label surprise")


# ---------------------------------------------------------------------------- the level of ERM


def levels_of_erm(**metrics) -> pd.DataFrame:
    """ERM's accuracies in percent, by metric (mean, low, high)."""
    rows = [
        {"test": "seen", "metric": metric, "method": "erm"}
        | dict(zip(("mean", "low", "high"), np.array(numbers) / 100, strict=True))
        for metric, numbers in metrics.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("minority", "balanced", "named"),
    [
        ((82, 79, 85), (90, 88, 92), []),
        ((37.6, 33, 42.2), (64, 61, 67), ["accuracy on minority cells 37.6 % [33.0, 42.2]"]),
        ((52, 49, 55), (70, 68, 72), ["accuracy on minority cells 52.0 % [49.0, 55.0]"]),
        ((60, 55, 65), (51, 49, 53), ["balanced accuracy 51.0 % [49.0, 53.0]"]),
        (
            (45, 40, 50),
            (51, 49, 53),
            [
                "balanced accuracy 51.0 % [49.0, 53.0] and of accuracy on minority cells 45.0 % [40.0, 50.0]"
            ],
        ),
        ((np.nan, np.nan, np.nan), (90, 88, 92), []),
    ],
)
def test_erms_own_accuracy_is_said_and_a_warning_near_chance(minority, balanced, named):
    table = levels_of_erm(
        accuracy=(90, 88, 92), minority_accuracy=minority, balanced_accuracy=balanced
    )
    said = sentences.level_sentence(table, "necktie", [0.75])
    assert said.startswith(
        "Plain training (ERM) classifies *necktie* right on 90.0 % [88.0, 92.0] of the held-out images"
    )
    assert ("minority cells" in said) == bool(np.isfinite(minority[0]))
    assert ("**Warning: near chance.**" in said) == bool(named)
    for words in named:
        assert f"The interval of {words} reaches 50 %" in said


# ---------------------------------------------------------------------------- power and lead


def test_the_smallest_effects_are_named():
    assert sentences.smallest_sentence().endswith(
        ": 0.5 points (accuracy; standard deviation over people, over all seeds), 1 point (accuracy on "
        "minority cells; accuracy of the worst tenth of people, over all seeds)."
    )


def test_power_is_said_of_what_could_be_detected():
    keys = {"test": "seen", "metric": METRICS, "method": "surprise"}
    power = pd.DataFrame(keys | {"detectable": [0.00512, np.nan]})
    said = sentences.power_sentence(power)
    assert said.endswith("in points: accuracy, seen people: 0.51 (Label surprise (k-NN)).")
    assert sentences.power_sentence(power[1:]).startswith("With so few seeds or people")


def test_the_lead_is_said_as_holms_correction_leaves_it():
    lead = leads(erm=(0.9, 0.001), jtt=(0.7, 0.01), ula=(0.3, 0.2), afr=(-0.4, 0.02),
                 cid=(0.5, 0.001), oracle=(-0.1, 0.001))  # fmt: skip
    assert sentences.lead_sentence(lead) == (
        "In accuracy on held-out images of seen people, at 5 % after Holm's correction, label surprise "
        "is ahead of JTT; it is behind AFR; it cannot be told apart from uLA."
    )


# ---------------------------------------------------------------------------- controls of the proxy

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
    said = sentences.controls_sentence(*controls(**found), "dlib-resnet")
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
    assert sentences.controls_sentence(gains, apart, "dlib-resnet").endswith(
        "; with heads on `a.onnx`, a face recogniser is needed; with heads on `pixels`, whether a face "
        "recogniser is needed cannot be told; with heads on `untrained`, a face recogniser is not shown to "
        "be needed."
    )
    one = [table[table["trunk"] == "untrained"] for table in (gains, apart)]
    said = sentences.controls_sentence(*one, "dlib-resnet")
    assert said.endswith(
        f"but is not shown to gain less with own trunk (+0.10 [−0.50, +0.70]){WHICH}."
    )
    told = [table[table["method"] == "oracle"] for table in one]
    assert sentences.controls_sentence(*told, "dlib-resnet").startswith("No method was run")


def test_a_study_on_pixels_cannot_tell():
    gains, apart = controls(untrained=(NOTHING, LOST), own_trunk=(NOTHING, LOST))
    gains = gains.replace({"proxy": {"dlib-resnet": "pixels"}})
    said = sentences.controls_sentence(gains, apart, "pixels")
    assert said.startswith(
        "**Whether a face recogniser is needed cannot be told** on these faces: with `pix"
    )


# ---------------------------------------------------------------------------- the audit


def audited(**more) -> pd.DataFrame:
    row = {
        "level": 0.9,
        "proxy": "as it is",
        "found": 0.97,
        "false": 0.0,
        "refused": 0.3,
        "distrusted": 0.1,
    }
    for measure in ("minority", "balanced"):
        row |= {f"rank_{measure}": 0.92, f"plain_rank_{measure}": -0.6}
        row |= {f"error_{measure}": 0.004, f"scatter_{measure}": 0.005}
    weaker = row | {"level": 0.5, "found": 0.1}
    other = row | {"proxy": "noise 0.4", "found": 0.2}
    return pd.DataFrame([weaker, row | more, other])


def test_the_audit_is_judged_at_the_strongest_bias_with_the_studys_proxy():
    said = sentences.audited_sentence(audited())
    assert "flagged 97 % of the true minority images and 0 % of the others" in said
    assert "+0.92 with the true one (plain accuracy on the same images: −0.60)" in said
    assert "errs by +0.4 ± 0.5 points. 30 % of the audits said" in said
    assert "must not be trusted, 10 % because of the proxy, the others because too few" in said


def test_without_minority_cells_the_audit_is_judged_on_balanced_images():
    unknown = {"found": np.nan, "false": 0.1, "rank_minority": np.nan, "refused": 1.0}
    said = sentences.audited_sentence(audited(**unknown))
    assert "accuracy on balanced images has the rank" in said and "it flagged" not in said
    assert "100 % of the audits said" in said
    assert sentences.audited_sentence(audited(refused=0.0)).endswith(
        ". No audit said that it must not be trusted."
    )
