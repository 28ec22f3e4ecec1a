"""How many digits are written.

Numbers have as many digits as their interval supports. A rerun on another processor, whose sums differ
in the last place, therefore leaves the files as they are. What is printed is computed from the rounded
numbers, so that a table that was read back prints the same.
"""

import math

import numpy as np
import pandas as pd

DECIMALS = 4  # of a number without an interval
INTERVAL = ["mean", "low", "high"]


def decimals(low, high) -> np.ndarray:
    """Decimals that give half an interval two significant digits, 2 to 6; else :data:`DECIMALS`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        half = (np.asarray(high, dtype=float) - np.asarray(low, dtype=float)) / 2
        digits = 1 - np.floor(np.log10(half))
    return np.where(np.isfinite(digits), np.clip(digits, 2, 6), DECIMALS).astype(int)


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its numbers as they are written.

    ``mean``, ``low`` and ``high`` of a row (and the same with the suffix ``_difference``) have the
    :func:`decimals` of their interval; other numbers that are not whole have :data:`DECIMALS`.
    """
    numbers = table.select_dtypes("floating")
    digits = {name: [DECIMALS] * len(table) for name in numbers}
    for suffix in ("", "_difference"):
        mean, low, high = (name + suffix for name in INTERVAL)
        if {mean, low, high} <= set(numbers):
            of_interval = decimals(numbers[low], numbers[high])
            digits[mean] = of_interval
            digits[low] = of_interval
            digits[high] = of_interval
    columns = {
        name: [_round(v, d) for v, d in zip(numbers[name], digits[name], strict=True)]
        for name in numbers
    }
    return table.assign(**columns)


def rounded_claims(entries: list[dict]) -> list[dict]:
    """Entries of :func:`study.results.claims.claims` sorted, with their numbers as they are written.

    What is unbounded or undefined is None.
    """
    keys = ("task", "kind", "method", "claim", "test", "metric")
    return sorted(map(_rounded_claim, entries), key=lambda entry: [str(entry[k]) for k in keys])


def _rounded_claim(entry: dict) -> dict:
    digits = {"p": DECIMALS, "p_holm": DECIMALS}
    if entry["effect"] is not None:
        low = np.nan if entry["low"] is None else entry["low"]
        high = np.nan if entry["high"] is None else entry["high"]
        of_interval = int(decimals(low, high))
        digits |= {"effect": of_interval, "low": of_interval, "high": of_interval}
    changed = {}
    for key, value in entry.items():
        if isinstance(value, float):
            number = _round(value, digits.get(key, 6))
            changed[key] = number if math.isfinite(number) else None
    return entry | changed


def _round(value: float, digits: int) -> float:
    return round(float(value), int(digits)) + 0.0  # no minus before a zero
