"""The benchmark that runs a study as on another kind of processor."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import kernels
from tests.study.small import edit, finished_study, needs_data

FEW = ["erm", "cid", "surprise"]
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


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return finished_study(tmp_path_factory)


@needs_data
def test_the_libraries_obey(study, tmp_path, monkeypatch):
    """Scores differ in their last digits from those of the study, and by no more."""
    monkeypatch.chdir(study)
    kernels.copy_of(study, tmp_path, "virtual-people")
    edit(tmp_path, methods=FEW)
    kernels.compute(tmp_path, ("train",), kernels.PLAIN)
    places = [folder / "build/train/predictions.parquet" for folder in (study, tmp_path)]
    own, plain = (pd.read_parquet(path)[FEW].to_numpy() for path in places)
    assert 0 < np.abs(own - plain).max() < 0.05


@needs_data
def test_a_study_takes_its_own_place_in_the_table(study, tmp_path, monkeypatch):
    monkeypatch.chdir(study)
    ran = []
    monkeypatch.setattr(kernels, "compute", lambda *what: ran.append(what[1:]))
    monkeypatch.setattr(kernels, "TABLE", tmp_path / "kernels.csv")
    for first in ("train", "weights", "train"):
        kernels.main(["virtual-people", "--first", first])
    assert ran[:2] == [(("train", "evaluate"), {}), (("train", "evaluate"), kernels.PLAIN)]
    table = pd.read_csv(kernels.TABLE)
    assert (table["table"] == "verdicts").sum() == 2 and {"area", "embeddings"} <= set(
        table["table"]
    )
    assert table["largest"].max() == 0 and table["turned"].max() == 0  # nothing was computed
