"""How many digits are written, and how far numbers move on another processor.

Numbers have as many digits as their interval supports. A rerun on another processor, whose sums differ
in the last place, therefore leaves most of the files as they are. What is printed is computed from the
rounded numbers, so that a table that was read back prints the same.

A sum that differs in its last place can turn a choice: which of two neighbours is nearer, how many of
them are likeliest, where an image lies whose score is nearly 0. Then a number moves, by the share of half
its interval that :func:`moved` says. ``benchmarks/kernels.py`` measured :data:`MOVES`.
"""

import math

import numpy as np
import pandas as pd

DECIMALS = 4  # of a number without an interval
INTERVAL = ["mean", "low", "high"]

# How far a number moves on another processor, as a share of half its 95 % interval: most of what was
# measured by `python -m benchmarks.kernels`, see benchmarks/README.md.
MOVES = 0.1
# Share of the numbers that can move further, if none moves by more than half its interval.
TIES = 0.05
# Half an interval counts as at least this much: where two methods differ on a single image, one image
# more is not another result.
NARROW = 5e-4


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


def moved(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """By which share of half its interval in ``old`` every number of a table with intervals moved.

    Parameters
    ----------
    old, new : pandas.DataFrame
        The same rows. Numbers are the columns ``mean...`` that have columns ``low...`` and ``high...``;
        the columns before the first of them name the row.

    Returns
    -------
    pandas.DataFrame
        A row for each mean that is known in one of both, under the name of its row: the shares by which
        ``mean``, ``low`` and ``high`` moved; infinite where one of both is unknown.
    """
    means = [c for c in old if c.startswith("mean") and c.replace("mean", "low") in old]
    tables = [pd.DataFrame(columns=INTERVAL, dtype=float)]
    for mean in means:
        naming = old.columns[: old.columns.get_loc(means[0])]
        rows = [" ".join(map(str, row)) for row in old[naming].itertuples(index=False)]
        low, high = (old[mean.replace("mean", end)] for end in INTERVAL[1:])
        half = ((high - low) / 2).clip(lower=NARROW)
        shares = {}
        for end in INTERVAL:
            before, after = (table[mean.replace("mean", end)] for table in (old, new))
            share = ((after - before).abs() / half).replace(np.inf, np.nan)
            shares[end] = share.mask(before.isna() != after.isna(), np.inf)
        tables.append(pd.DataFrame(shares).set_axis(rows).dropna(subset="mean"))
    return pd.concat(tables)


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
