"""Predicted power beside the power that was found."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy import stats

from study.pipeline import predicted

DETECTABLE = {"detectable": {"accuracy": 0.4, "minority_accuracy": 0.85}}


def power(**changes) -> pd.DataFrame:
    """Label surprise's rows: a standard error of .001 on accuracy, of .002 on minority cells."""
    row = {"test": "seen", "method": "surprise", "seeds": 20, "people": 12, "detectable": 9.9}
    rows = [
        row | {"metric": "accuracy", "se": 0.001},
        row | {"metric": "minority_accuracy", "se": 0.002},
        row | {"metric": "accuracy", "se": 0.5, "test": "unseen"},
        row | {"metric": "accuracy", "se": 0.5, "method": "cid"},
    ]
    return pd.DataFrame([one | changes for one in rows])


def test_what_was_found_is_of_the_same_level_as_what_was_predicted():
    # Eleven degrees of freedom, as there are twelve people; whatever level the table's own column has.
    expected = 0.1 * (stats.t.ppf(0.975, 11) + stats.t.ppf(0.8, 11))
    assert predicted.found(power(), "accuracy") == pytest.approx(expected)
    said = predicted.sentence(DETECTABLE, power())
    assert said.startswith("Power: the smallest gain of Label surprise")
    assert said.endswith(
        f"in points: accuracy 0.40 predicted, {expected:.2f} found; accuracy on minority cells 0.85 "
        f"predicted, {2 * expected:.2f} found."
    )


def test_a_prediction_at_a_level_of_its_own_is_compared_at_that_level():
    at_1 = 0.1 * (stats.t.ppf(0.995, 11) + stats.t.ppf(0.8, 11))
    protocol = {"detectable": DETECTABLE["detectable"] | {"level": 0.01}}
    said = predicted.sentence(protocol, power())
    assert (
        ".8, at 1 %, in points: accuracy 0.40 predicted, " in said and f"{at_1:.2f} found" in said
    )
    assert ".8, at 5 % before correction, in" in predicted.sentence(DETECTABLE, power())
    _, rows = predicted.table([("new", {"protocol": protocol}, power())])
    assert rows[0][2] == f"{at_1:.2f}"


def test_nothing_is_said_without_a_prediction_or_a_judged_method():
    assert predicted.sentence({"detectable": None}, power()) == ""
    assert predicted.sentence(DETECTABLE, power(method="erm")) == ""


def test_what_is_not_known_is_a_dash():
    unknown = power(se=math.nan)
    assert "accuracy 0.40 predicted, – found" in predicted.sentence(DETECTABLE, unknown)
    assert math.isnan(predicted.found(power().query("test == 'unseen'"), "accuracy"))


def test_the_table_has_the_studies_with_a_prediction():
    studies = [
        ("first", {"protocol": DETECTABLE}, power()),
        ("second", {"protocol": {"detectable": None}}, power()),
    ]
    head, rows = predicted.table(studies)
    assert [row[0] for row in rows] == ["first"]
    assert len(head) == len(rows[0]) == 5
    assert rows[0][1] == "0.40" and rows[0][3] == "0.85"
