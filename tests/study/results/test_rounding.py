"""How many digits are written; a second."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from study.results import rounding


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
    assert rounding.decimals(0.5 - half, 0.5 + half) == expected


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
    found = rounding.rounded(table)
    assert found["mean"].tolist() == [0.123, 0.123457, 0.1235]
    assert found["low"].tolist() == [0.1, 0.1234, -np.inf]
    assert found["mean_difference"].tolist()[::2] == [0.56, 0] and "-" not in str(
        found.loc[2, "mean_difference"]
    )
    assert found["p"].tolist()[:2] == [0.9877, 0.0] and found["people"].tolist() == [10, 11, 12]
    assert list(found) == list(table)


def test_numbers_move_by_shares_of_half_their_interval():
    old = pd.DataFrame(
        {
            "method": ["a", "b", "c", "d"],
            "people": [10, 10, 10, 10],
            "mean": [0.5, 0.5, np.nan, 0.5],
            "low": [0.4, 0.5, np.nan, 0.4],
            "high": [0.6, 0.5, np.nan, 0.6],
            "p": [0.1, 1.0, np.nan, 0.1],
        }
    )
    new = old.assign(
        mean=[0.51, 0.501, np.nan, np.nan],
        low=[0.4, 0.5, np.nan, np.nan],
        high=[0.65, 0.5, np.nan, np.nan],
    )
    found = rounding.moved(old, new)
    assert list(found.index) == ["a 10", "b 10", "d 10"]  # what neither knows has not moved
    assert found.loc["a 10"].tolist() == pytest.approx([0.1, 0, 0.5])
    assert found.loc["b 10", "mean"] == pytest.approx(0.001 / rounding.NARROW)  # not of width 0
    assert np.isinf(found.loc["d 10", "mean"])
    assert rounding.moved(old, old).to_numpy().max() == 0
    assert rounding.moved(old[["method"]], new[["method"]]).empty
