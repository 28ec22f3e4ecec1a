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
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_a_run_is_estimated_from_the_last_one(folder, monkeypatch, capsys):
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks/profile.csv").write_text(
        "stage,seconds,share\nembed,60.0,0.4\ntrain,80.0,0.6\ntotal,140.0,1\n"
    )
    (folder / "data").mkdir()
    (folder / "data/card.json").write_text('{"counts": {"images": 4800}}')
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
    # Five primary endpoints: Holm tests the smallest p value at a fifth of 5 %.
    t = stats.t.ppf(0.995, 19) + stats.t.ppf(0.8, 19)
    said = cost.power(own, tested)
    assert "at the level of 1 % that Holm's correction leaves at the least" in said
    assert "With 20 seeds and 100 people" in said and "varied in other-task" in said
    seen, unseen = (100 * t * 0.2 / np.sqrt(pairs) for pairs in (1600, 400))
    assert said.endswith(
        f"accuracy of seen people {seen:.2f}, accuracy on minority cells of seen people {seen:.2f}, "
        f"accuracy of unseen people {unseen:.2f}."
    )
    # In 20 cohorts 100 people are 100 pairs; without unseen people there are four endpoints.
    of_4 = stats.t.ppf(1 - 0.0125 / 2, 19) + stats.t.ppf(0.8, 19)
    assert f"seen people {100 * of_4 * 0.2 / np.sqrt(100):.2f}," in cost.power(
        own, {"seen": (100, 100)}
    )
    said = cost.power(own, tested, pilot="other-model")
    assert f"in other-model, in points: accuracy of seen people {seen / 2:.2f}," in said
    at_5 = stats.t.ppf(0.975, 19) + stats.t.ppf(0.8, 19)
    said = cost.power(own, tested, level=0.05)
    assert "at the level of 5 %, and by what surprise varied in other-task" in said
    assert f"of seen people {100 * at_5 * 0.2 / np.sqrt(1600):.2f}," in said
    with pytest.raises(
        ValueError, match="pilot 'other-tusk' is unknown .did you mean 'other-task'"
    ):
        cost.power(own, tested, pilot="other-tusk")


def test_of_studies_of_the_same_task_the_one_with_the_same_levels_is_taken(folder):
    committed(folder, "a-single-level", 0.3, levels="[0.9]")
    committed(folder, "b-same", 0.1)
    committed(folder, "c-few-images", 0.2, images_per_identity="6")
    assert "varied in b-same" in cost.power(params.read(), {"seen": (100, 1600)})


def test_the_strictest_level_is_that_of_the_verdicts():
    # Of every method in every committed study; where all of a family are clear of 0, none has it any more.
    seen = 0
    for file in (ROOT / "reports").glob("[!.]*/claims.json"):
        primary = [entry for entry in json.loads(file.read_text()) if entry["primary"]]
        for method in {entry["method"] for entry in primary}:
            family = [entry for entry in primary if entry["method"] == method]
            levels = [
                entry["alpha"] for entry in family if entry.get("alpha") and entry["p"] is not None
            ]
            strictest = cost.strictest_level(dict.fromkeys(entry["test"] for entry in family))
            if levels and len(levels) == len(family):
                assert min(levels) == pytest.approx(strictest, abs=1e-6)
                seen += len(family) == 5
    assert seen > 10


def test_one_person_gives_no_infinite_effect(folder):
    committed(folder, "pilot", 0.1)
    said = cost.power(params.read(), {"seen": (100, 1600), "unseen": (1, 20)})
    assert "inf" not in said and said.endswith("unseen people not known (one person).")


def test_no_minutes_are_said_of_a_study_that_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(cost, "check_repository", lambda: None)
    monkeypatch.setattr(cost, "cost", lambda: "About 7 minutes")
    monkeypatch.setattr(cost, "power", lambda *a, **how: "power")

    def refused(study):
        raise ValueError("params.yaml: bias: 0 of 8 identities are usable")

    monkeypatch.setattr(cost, "count_tested", refused)
    assert cli.main(["cost"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "0 of 8 identities are usable" in said.err
    monkeypatch.setattr(cost, "count_tested", lambda study: {})
    assert cli.main(["cost"]) == 0 and capsys.readouterr().out == "About 7 minutes\npower\n"
    with pytest.raises(SystemExit):
        cli.main(["cost", "--level", "5"])
    assert "5 is no level" in capsys.readouterr().err


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
