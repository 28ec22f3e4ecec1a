"""What is written, and read back; a second."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from study.results import files, tables
from tests.study.results.made_up import evaluated, gains


@pytest.fixture
def made() -> dict[str, pd.DataFrame]:
    return evaluated()


def test_last_digits_do_not_reach_a_file(tmp_path):
    """Sums in another order leave the files as they are."""
    table = gains()
    moved = table.assign(
        mean=table["mean"] * (1 + 1e-9), low=table["low"] - 1e-12, p=table["p"] + 1e-12
    )
    files.write_tables(tmp_path / "a", {"t": table})
    files.write_tables(tmp_path / "b", {"t": moved})
    text = (tmp_path / "a/t.csv").read_text()
    assert text == (tmp_path / "b/t.csv").read_text()
    assert text.splitlines()[:3] == [
        "test,metric,level,method,mean,low,high,p",
        "seen,accuracy,0.0,cid,0.0,-0.0061,0.0061,0.1235",
        "seen,accuracy,0.5,cid,0.0017,-0.0045,0.0078,0.1235",
    ]
    files.write_tables(tmp_path, {"t": [table, table], "empty": table.iloc[:0]})
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2 * len(table)
    assert list(pd.read_csv(tmp_path / "empty.csv")) == list(table)


def test_written_tables_can_be_read_back(made, tmp_path):
    runs = pd.DataFrame({"level": [0.0], "seed": [1], "accuracy": [1 / 3]})
    files.write_evaluation(tmp_path, runs, made, {"task": "smiling"})
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert list(numbers) == ["task", "seen", "unseen"]
    assert json.loads((tmp_path / "about.json").read_text()) == {"task": "smiling"}
    assert numbers["seen"]["bias 1"]["accuracy"]["mean"] == {"erm": 0.8123, "cid": 0.8033}
    gain = numbers["seen"]["bias 1"]["accuracy"]["minus ERM"]
    assert gain == {"mean": {"cid": 0.0033}, "low": {"cid": -0.0028}, "high": {"cid": 0.0095}}
    assert list(pd.read_csv(tmp_path / "accuracy-seen.csv")) == ["level", "cid", "erm"]
    assert pd.read_csv(tmp_path / "runs.csv")["accuracy"].tolist() == [0.3333]
    read = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in ("difference", "summary")}
    text = tables.markdown_table(*tables.headline_table(**read))
    assert (tmp_path / "headline.md").read_text(encoding="utf-8") == text


def test_unbounded_intervals_are_null(made, tmp_path):
    made["difference"] = made["difference"].assign(low=-np.inf, high=np.inf)
    files.write_evaluation(tmp_path, pd.DataFrame({"seed": [1]}), made, {})
    gain = json.loads((tmp_path / "metrics.json").read_text())["seen"]["bias 1"]["accuracy"]
    assert gain["minus ERM"]["low"] == {"cid": None}
