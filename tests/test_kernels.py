"""The benchmark that runs a study as on another kind of processor."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest

from benchmarks import kernels
from tests.study.small import finished_study, needs_data

CLAIM = {
    "task": "smiling",
    "kind": "correlation",
    "claim": "2",
    "test": "seen",
    "metric": "accuracy",
}


def write(folder, means: list[float], verdicts: dict[str, str], border: list[str]):
    for stage in ("embed", "evaluate"):
        (folder / "build" / stage).mkdir(parents=True)
    np.save(folder / "build/embed/proxy.npy", np.float32(means)[:, None])
    folder /= "build/evaluate"
    table = pd.DataFrame({"method": ["cid", "surprise"], "mean": means, "low": 0.0, "high": 0.2})
    table.to_csv(folder / "area.csv", index=False)
    pd.DataFrame({"method": ["cid"], "people": [3]}).to_csv(folder / "people.csv", index=False)
    entries = [
        CLAIM | {"method": method, "verdict": verdict, "border": border}
        for method, verdict in verdicts.items()
    ]
    (folder / "claims.json").write_text(json.dumps(entries))
    return folder.parents[1]


def test_what_moved_is_counted_table_by_table(tmp_path, capsys):
    before = {"cid": "no gain", "surprise": "supported"}
    one = write(tmp_path / "one", [0.1, 0.1], before, border=["inconclusive"])
    turned = {"cid": "inconclusive", "surprise": "does harm"}
    other = write(tmp_path / "other", [0.11, 0.15], turned, border=[])
    embeddings, area, verdicts = kernels.compare(one, other).to_dict("records")  # not people.csv
    assert embeddings["numbers"] == 2 and embeddings["largest"] == pytest.approx(0.05)
    assert area["table"] == "area" and area["numbers"] == 6  # two means with two ends each
    assert area["largest"] == pytest.approx(0.5) and area["median"] == 0 and area["beyond"] == 1
    assert (verdicts["numbers"], verdicts["turned"], verdicts["unsaid"]) == (2, 2, 1)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("no gain -> inconclusive (on the border)")
    assert said[1].endswith("supported -> does harm (unsaid)")
    same = kernels.compare(one, one)
    assert same["largest"].max() == 0 and same["turned"].max() == 0


@needs_data
def test_a_small_study_runs_under_both_kernels(tmp_path_factory, tmp_path, monkeypatch):
    """The libraries obey: scores differ in their last digits, and numbers by little or nothing."""
    monkeypatch.chdir(finished_study(tmp_path_factory))
    scores = []
    compute = kernels.compute

    def watched(folder, stages, kernel) -> None:
        compute(folder, stages, kernel)
        assert not os.path.samefile(folder / "build", "build")
        scores.append(pd.read_parquet(folder / "build/train/predictions.parquet"))

    monkeypatch.setattr(kernels, "compute", watched)
    monkeypatch.setattr(kernels, "TABLE", tmp_path / "kernels.csv")
    kernels.main(["virtual-people", "--first", "train"])
    own, plain = (table.select_dtypes("float32").to_numpy() for table in scores)
    assert 0 < np.abs(own - plain).max() < 0.05
    table = pd.read_csv(tmp_path / "kernels.csv")
    assert set(table["study"]) == {"virtual-people"} and {"area", "verdicts"} <= set(table["table"])
    assert (table["largest"].dropna() <= 1).all()
