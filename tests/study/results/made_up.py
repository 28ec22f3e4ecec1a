"""Made-up results, as the functions of :mod:`study.results.inference` return them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

LEVELS, METRICS = (0.0, 0.5, 1.0), ("accuracy", "minority_accuracy")
CLEAR, LOST, NOTHING = (2.0, 1.0, 3.0), (-1.5, -2.0, -1.0), (0.1, -0.5, 0.7)  # in points


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


def evaluated() -> dict[str, pd.DataFrame]:
    """Tables ``summary`` and ``difference`` of ERM and CID."""
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


def leads(**by_method) -> pd.DataFrame:
    """A table of leads: of every method (mean in points, p after Holm)."""
    rows = [
        {"test": "seen", "metric": metric, "method": name, "mean": mean / 100, "p_holm": p}
        | {"low": mean / 100 - 0.002, "high": mean / 100 + 0.002}
        for metric in METRICS
        for name, (mean, p) in by_method.items()
    ]
    return pd.DataFrame(rows)


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
