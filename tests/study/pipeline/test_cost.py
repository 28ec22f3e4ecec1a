"""What a study costs and could show, said before it starts; a second."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study import cli
from study.pipeline import cost, notebook, params, stages

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def test_a_run_is_estimated_from_the_last_one(folder, monkeypatch, capsys):
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks/profile.csv").write_text(
        "stage,seconds,share\nembed,60.0,0.4\ntrain,80.0,0.6\ntotal,140.0,1\n"
    )
    (folder / "data").mkdir()
    (folder / "data/card.json").write_text('{"counts": {"images": 4800}}')
    shutil.copy(ROOT / "dvc.yaml", folder)
    changed = ["embed", "train", "evaluate"]
    alone = {name: {"deps": [], "outs": []} for name in stages.read_stages()}
    monkeypatch.setattr(stages, "read_stages", lambda: alone)

    def dvc(command, **how):
        said = json.dumps(
            {stage: [{"changed deps": {"cid/a.py": "modified"}}] for stage in changed}
        )
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(subprocess, "run", dvc)
    assert cost.cost() == (
        "3 stages would run: embed, train, evaluate.\n4,800 faces would be embedded.\n"
        "About 3 minutes, by the times partly of the committed run, on 2 cores."  # 60 + 80 + 15
    )
    for stage, took in (("embed", 200.0), ("train", 100.0), ("evaluate", 180.0)):
        notebook.record_time(stage, took)
    assert notebook.read_times() == {"embed": 200.0, "evaluate": 180.0, "train": 100.0}
    assert cost.cost().endswith("About 8 minutes, by the times of the last runs here.")
    changed.clear()
    assert cost.cost() == "Nothing to run: everything is up to date."
    (folder / "params.yaml").write_text("study: x\n")
    assert cli.main(["cost"]) == 1
    assert "params.yaml: data is missing" in capsys.readouterr().err


def committed(folder, name, pair_sd, **changes):
    """A committed study, of which only the noise of pairs is left."""
    target = folder / "reports" / name
    target.mkdir(parents=True)
    text = (folder / "params.yaml").read_text()
    for key, value in changes.items():
        text = text.replace(f"{key}: ", f"{key}: {value} #", 1)
    (target / "params.yaml").write_text(text)
    sds = {"seeds": 20, "people": 50, "seed_sd": 0.0, "person_sd": 0.0, "pair_sd": pair_sd}
    rows = [
        {"test": "seen", "metric": metric, "method": "surprise", "se": 0.0, "detectable": 0.0} | sds
        for metric in ("accuracy", "minority_accuracy")
    ]
    rows.append(rows[0] | {"test": "unseen"})
    pd.DataFrame(rows).to_csv(target / "power.csv", index=False)


def test_power_is_predicted_from_the_study_most_like_it(folder):
    own = params.read()
    tested = {"seen": (100, 1600), "unseen": (90, 400)}
    assert cost.power(own, tested).startswith("No study is committed")
    committed(folder, "other-model", 0.1, model="cnn")
    committed(folder, "other-task", 0.2, task="eyes_closed")
    t = stats.t.ppf(0.975, 19) + stats.t.ppf(0.8, 19)
    said = cost.power(own, tested)
    assert "With 20 seeds and 100 people" in said and "varied in other-task" in said
    seen, unseen = (100 * t * 0.2 / np.sqrt(pairs) for pairs in (1600, 400))
    assert said.endswith(
        f"accuracy of seen people {seen:.2f}, accuracy on minority cells of seen people {seen:.2f}, "
        f"accuracy of unseen people {unseen:.2f}."
    )
    # In 20 cohorts 100 people are 100 pairs.
    assert f"seen people {100 * t * 0.2 / np.sqrt(100):.2f}," in cost.power(
        own, {"seen": (100, 100)}
    )
    said = cost.power(own, tested, pilot="other-model")
    assert f"in other-model, in points: accuracy of seen people {seen / 2:.2f}," in said
    with pytest.raises(
        ValueError, match="pilot 'other-tusk' is unknown .did you mean 'other-task'"
    ):
        cost.power(own, tested, pilot="other-tusk")


def test_those_tested_are_counted_by_drawing_as_the_study_does(folder, monkeypatch):
    shutil.copytree(ROOT / "data", folder / "data")
    own = params.read() | {"seeds": 6}
    # A fifth is unseen in a seed, and hardly anybody in six.
    found = cost.count_tested(own)
    assert 95 <= found["seen"][0] <= 100 and found["seen"][1] == 6 * 80
    assert 60 <= found["unseen"][0] <= 90 and found["unseen"][1] == 6 * 20
    own["bias"] |= {"people": 10}
    assert cost.count_tested(own)["seen"][1] == 6 * 8
    own["bias"] |= {"cohorts": True}
    assert cost.count_tested(own) == {"seen": (48, 48), "unseen": (12, 12)}
    own["bias"] |= {"cohorts": "repeated", "people": 40}
    people, pairs = cost.count_tested(own)["seen"]
    assert 70 <= people <= 80 and pairs == 6 * 32
    own["bias"] |= {"people": None, "cohorts": False, "test_per_class": 20}
    with pytest.raises(ValueError, match="0 of 100 identities are usable"):
        cost.count_tested(own)
