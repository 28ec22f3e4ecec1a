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
