"""Files of the stages that compute: tables as CSV, verdicts and facts about the study as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from study import store
from study.results.claims import PRIMARY, SMALLEST
from study.results.rounding import INTERVAL, rounded, rounded_claims
from study.results.tables import headline_table, markdown_table, unidentified_markdown

BUILD = Path("build")


def write_tables(folder, tables: dict[str, pd.DataFrame | Sequence[pd.DataFrame]]) -> None:
    """Write tables as ``<folder>/<name>.csv``, rounded; several tables under one name are joined."""
    for name, table in tables.items():
        if not isinstance(table, pd.DataFrame):
            table = pd.concat(table, ignore_index=True)
        store.write_text(Path(folder) / f"{name}.csv", rounded(table).to_csv(index=False))


def read_table(name: str) -> pd.DataFrame:
    """Read a table that a stage has written, such as ``evaluate/area``; empty where there is none."""
    path = BUILD / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def write_evaluation(
    folder, runs: pd.DataFrame, tables: dict[str, pd.DataFrame], about: dict
) -> None:
    """Write what the evaluation found: ``runs`` (``Estimates.runs``), ``tables`` and ``about``.

    ``folder`` receives one CSV per table (``summary`` and ``difference`` are needed), for ``dvc plots``
    ``accuracy-<test>.csv`` and ``minority_accuracy-<test>.csv`` (means, one column per method),
    ``headline.md``, ``about.json``, and ``metrics.json``: ``about`` and the metrics of the claims.
    """
    folder = Path(folder)
    write_tables(folder, {"runs": runs, **tables})
    summary = rounded(tables["summary"])
    difference = rounded(tables["difference"])
    for test, rows in summary.groupby("test"):
        means = rows.pivot(index="level", columns=["metric", "method"], values="mean")
        by_metric = {
            f"{metric}-{test}": means[metric].sort_index(axis=1).reset_index() for metric in PRIMARY
        }
        write_tables(folder, by_metric)
    numbers = about | _claimed_metrics(summary, difference)
    _write_json(folder / "metrics.json", numbers)
    _write_json(folder / "about.json", about)
    headline = markdown_table(*headline_table(difference, summary))
    store.write_text(folder / "headline.md", headline)


def write_audited(folder, tables: dict[str, pd.DataFrame], about: dict) -> None:
    """Write what the evaluation found where nobody is known: no claim, and no metric of people.

    ``tables`` are of :func:`study.experiment.unidentified.audit_held_out`; ``headline.md`` and ``about.json`` are
    as in :func:`write_evaluation`.
    """
    folder = Path(folder)
    write_tables(folder, tables)
    _write_json(folder / "about.json", about)
    write_claims(folder / "claims.json", [])
    shown = {name: rounded(table) for name, table in tables.items()}
    headline = unidentified_markdown(shown["audited"], shown["audited-gains"], about["refusal"])
    store.write_text(folder / "headline.md", headline)


def write_left_out(folder) -> str:
    """Leave a note in the folder of a stage that compares people, where nobody is known; return it."""
    note = "Left out: no image of the data says who it shows, and this stage compares people."
    store.write_text(Path(folder) / "left-out.txt", note + "\n")
    return note


def read_about() -> dict:
    """Read what the stage ``evaluate`` wrote about the study: its task, bias, levels, methods, ..."""
    return json.loads((BUILD / "evaluate/about.json").read_text())


def write_claims(path, entries: list[dict]) -> None:
    """Write verdicts as JSON, sorted and rounded as tables are; unbounded or undefined is null."""
    text = json.dumps(rounded_claims(entries), indent=2, allow_nan=False, ensure_ascii=False)
    store.write_text(path, text + "\n")


def read_claims(stage: str = "evaluate") -> list[dict]:
    """Read the verdicts that a stage has written."""
    return json.loads((BUILD / stage / "claims.json").read_text())


def _write_json(path: Path, content: dict) -> None:
    store.write_text(path, json.dumps(content, indent=2) + "\n")


def _claimed_metrics(summary: pd.DataFrame, difference: pd.DataFrame) -> dict[str, dict]:
    """The metrics that claims are about, by test set, bias level and metric."""
    numbers = {}
    for test, rows in summary.groupby("test"):
        gains = difference[difference["test"] == test]
        by_level = {}
        for level in np.unique(rows["level"]):
            by_metric = {}
            for metric in SMALLEST:
                if metric in set(rows["metric"]):
                    means = _columns_by_method(rows, metric, level, ["mean"])
                    minus_erm = _columns_by_method(gains, metric, level, INTERVAL)
                    by_metric[metric] = means | {"minus ERM": minus_erm}
            by_level[f"bias {level:g}"] = by_metric
        numbers[test] = by_level
    return numbers


def _columns_by_method(
    table: pd.DataFrame, metric: str, level: float, columns: list[str]
) -> dict[str, dict]:
    """Each column as a dict by method; what is unbounded or undefined is None."""
    rows = table.query("metric == @metric and level == @level").set_index("method")[columns]
    return rows.astype(object).where(np.isfinite(rows), None).to_dict()
