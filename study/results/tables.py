"""TODO."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from cid.methods import METHODS
from study.results.claims import _INTERVAL, SMALLEST, SUPPORTED
from study.results.inference import Replicates

HEADLINE = ("cid", "cid-knn", "oracle")


def write_claims(path, entries: list[dict]) -> None:
    """Write entries as JSON: sorted, effects to five decimals, p to three digits.

    What is unbounded or undefined is null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{key: _plain(key, value) for key, value in e.items()} for e in _ordered(entries)]
    text = json.dumps(lines, indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def claims_table(entries: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Entries as a table: a head and one row of cells a claim, for Markdown and HTML alike.

    Entries may come from :func:`claims` or be read back from JSON.
    """
    head = ["claim", "task", "bias", "method", "test", "statement"]
    head += ["effect [95 % interval]", "p (Holm)", "verdict"]
    rows = [
        [
            entry["claim"],
            entry["task"],
            entry["kind"],
            _title(entry["method"]),
            entry["test"] or "–",
            entry["statement"],
            _effect(entry),
            _p(entry["p_holm"]),
            _verdict_cell(entry),
        ]
        for entry in _ordered(entries)
    ]
    return head, rows


def headline_cells(
    difference: pd.DataFrame, summary: pd.DataFrame, test: str = "seen", methods=HEADLINE
) -> tuple[list[str], list[list[str]]]:
    """The study in one table: accuracy and worst decile of ERM, and what methods gain over it.

    Parameters
    ----------
    difference, summary : pandas.DataFrame
        From the functions of those names in :mod:`study.results.inference`, or read back from CSV.
    test : {"seen", "unseen"}
    methods : iterable of str
        In this order; one that was not run is left out.

    Returns
    -------
    head : list of str
    rows : list of lists of str, one a bias level
        Gains are in percentage points, with intervals.
    """
    value, gain = _lookup(summary, test), _lookup(difference, test)
    methods = [m for m in methods if m in set(difference["method"])]
    gains = [f"{_title(m)} − ERM" for m in methods]
    head = ["bias", "accuracy, ERM", *gains, "worst decile, ERM", *gains]
    rows = []
    for level in sorted(summary["level"].unique()):
        cells = [f"{level:g}"]
        for metric in ("accuracy", "worst_decile"):
            cells.append(f"{100 * value[metric, level, 'erm']['mean']:.1f} %")
            cells += [points(**gain[metric, level, m]) for m in methods]
        rows.append(cells)
    return head, rows


def points(mean: float, low: float, high: float) -> str:
    """A difference and its interval in percentage points, as in ``+0.50 [−0.10, +1.10]``."""
    # Rounded to what a CSV keeps first, so that a table read back is printed the same.
    mean, low, high = (round(100 * value, 4) for value in (mean, low, high))
    return _typeset(f"{mean:+z.2f} [{low:+z.2f}, {high:+z.2f}]")


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, with a line break at its end."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def write_tables(folder, runs: pd.DataFrame, tables: dict[str, pd.DataFrame], about: dict) -> None:
    """Write everything the evaluation found.

    Parameters
    ----------
    folder : path-like
        Receives ``runs.csv``, one CSV a table, ``accuracy-<test>.csv`` and ``worst_decile-<test>.csv``
        (means, one column a method, for ``dvc plots``), ``headline.md``, and ``metrics.json`` (for
        ``dvc metrics``; the metrics that the claims rest on).
    runs : pandas.DataFrame
        ``Replicates.runs``.
    tables : dict of pandas.DataFrame
        ``summary`` and ``difference``, and any others under their names.
    about : dict
        What goes first into ``metrics.json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {"runs": runs, **tables}.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    summary, difference = tables["summary"], tables["difference"]
    numbers: dict = dict(about)
    for test in sorted(summary["test"].unique()):
        value, gain = _lookup(summary, test), _lookup(difference, test)
        for metric in ("accuracy", "worst_decile"):
            rows = summary[(summary["test"] == test) & (summary["metric"] == metric)]
            means = rows.pivot(index="level", columns="method", values="mean")
            means.to_csv(folder / f"{metric}-{test}.csv", float_format="%.6g")
        numbers[test] = {
            f"bias {level:g}": {
                metric: {
                    "mean": _numbers(value, metric, level, "mean"),
                    "minus ERM": {k: _numbers(gain, metric, level, k) for k in _INTERVAL},
                }
                for metric in SMALLEST
                if metric in set(summary["metric"])
            }
            for level in sorted(summary["level"].unique())
        }
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    text = markdown_table(*headline_cells(difference, summary))
    (folder / "headline.md").write_text(text, encoding="utf-8")


def write_rows(path, table: pd.DataFrame, names: list) -> None:
    """Write a table whose ``level`` is a place in ``names``, with the names in its stead."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = ["all" if name is None else str(name) for name in names]
    named = table.assign(level=[shown[int(place)] for place in table["level"]])
    named.rename(columns={"level": "value"}).to_csv(path, index=False, float_format="%.6g")


def by_task(studies: dict[tuple, Replicates], functional) -> pd.DataFrame:
    """One table of a functional of :mod:`study.results.inference` over studies by (task, kind)."""
    return pd.concat(
        [functional(study).assign(task=task, kind=kind) for (task, kind), study in studies.items()],
        ignore_index=True,
    )


def _lookup(table: pd.DataFrame, test: str) -> dict[tuple, dict[str, float]]:
    """``mean``, ``low`` and ``high`` by (metric, level, method)."""
    rows = table[table["test"] == test]
    keys = zip(rows["metric"], rows["level"], rows["method"], strict=True)
    return dict(zip(keys, rows[list(_INTERVAL)].to_dict("records"), strict=True))


def _numbers(cells: dict, metric: str, level: float, key: str) -> dict:
    """``{method: value}`` to five decimals; what is unbounded or undefined is null."""
    return {
        method: round(row[key], 5) if np.isfinite(row[key]) else None
        for (name, at, method), row in cells.items()
        if (name, at) == (metric, level)
    }


def _ordered(entries: list[dict]) -> list[dict]:
    keys = ("task", "kind", "method", "claim", "test", "metric")
    return sorted(entries, key=lambda entry: [str(entry[key]) for key in keys])


def _plain(key: str, value):
    """A value as JSON knows it."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return float(f"{value:.3g}") if key in ("p", "p_holm") else round(value, 5)


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def _effect(entry: dict) -> str:
    if entry["claim"] == "4":
        return "differ: " + ", ".join(entry["differing"]) if entry["differing"] else "bytes equal"
    # JSON has no infinity: null on a side of an effect that is there means unbounded.
    mean, low, high = (entry[key] for key in ("effect", "low", "high"))
    if mean is None or math.isnan(mean):
        return "undefined"
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if entry["claim"] == "3b":
        return _typeset(f"{mean:z.2f} [{low:z.2f}, {high:z.2f}]")
    return points(mean, low, high) + " points"


def _p(p: float | None) -> str:
    if p is None or math.isnan(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "under 0.001"


def _verdict_cell(entry: dict) -> str:
    if entry["verdict"] == SUPPORTED and entry["relevant"] is False:
        return f"{SUPPORTED}, but smaller than {_size(entry['smallest'])}"
    return entry["verdict"]


def _size(smallest: float) -> str:
    return "1 point" if smallest == 0.01 else f"{100 * smallest:g} points"


def _typeset(text: str) -> str:
    return text.replace("-", "−").replace("inf", "∞")
