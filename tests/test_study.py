"""The whole pipeline, end to end, on a tiny study in a copy of the repository.

The data are a dozen people of the embedded data set, so detection, alignment and embedding are real.
About four minutes on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from cid.faces import read_faces, write_faces

ROOT = Path(__file__).parents[1]
PEOPLE = 12
TRAINED = ["train@0.0", "train@0.9", "evaluate", "proxies", "breadth", "ablate", "report"]
STAGES = ["data", "embed", "weights@0.0", "weights@0.9", "factors", *TRAINED]
yaml = YAML()

pytestmark = pytest.mark.skipif(
    not (ROOT / "data" / "card.json").exists(), reason="needs the data set: run `make data`"
)


def call(folder, *command, check=True):
    """Run a command of this environment in a folder; returns what it wrote."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output
    return output if check else (done.returncode, output)


def edit(folder, **values):
    """Set dotted keys of params.yaml, keeping the rest as it is."""
    params = yaml.load(folder / "params.yaml")
    for key, value in values.items():
        *sections, last = key.split("__")
        section = params
        for name in sections:
            section = section[name]
        section[last] = value
    yaml.dump(params, folder / "params.yaml")


def locked(folder) -> dict[str, str]:
    """Hash of every output that dvc.lock records."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def small_study(folder):
    """Make a folder a fresh repository with the working tree's files and a tiny data set."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (
            not name.startswith(("remote/", "reports/", "data.dvc", "dvc.lock"))
            and (ROOT / name).exists()
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    call(folder, "git", "init", "-q")

    faces = read_faces(ROOT / "data")
    few = faces.frame["identity"].unique()[:PEOPLE]
    rows = np.flatnonzero(faces.frame["identity"].isin(few))
    records = (
        {"image": {"bytes": faces.encoded[int(row)].as_py(), "path": faces.frame["path"][row]}}
        | faces.frame.drop(columns="path").iloc[row].to_dict()
        for row in rows
    )
    write_faces(folder / "data", records, faces.card)
    call(folder, "dvc", "add", "-q", "data")
    edit(
        folder, study="tiny", bias__levels=[0.0, 0.9], seeds=3, bootstrap=100, ablation__seeds=2,
        breadth__tasks=["smiling"], breadth__kinds=["longtail"], proxies__noise=[0.4],
        ablations={"tau": {"setting": "weights.tau", "values": [0.01, "auto"]}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study, after one finished repro."""
    folder = tmp_path_factory.mktemp("study")
    small_study(folder)
    output = call(folder, "dvc", "repro")
    assert sorted(ran(output)) == sorted(STAGES) and ran(output)[-1] == "report"
    return folder


def test_the_report_is_complete(study):
    report = study / "reports" / "tiny"
    index = (report / "index.html").read_text()
    names = {path.name for path in report.iterdir()}
    for stem in ("01_data", "02_embed", "03_weights-0.9", "04_train-0.0", "05_evaluate", "06_factors",
                 "07_proxies", "08_breadth", "09_ablate"):  # fmt: skip
        assert f"{stem}.html" in names and f'href="{stem}.html"' in index
    assert "<script" not in index and 'src="http' not in index
    numbers = json.loads((report / "metrics.json").read_text())
    assert set(numbers["seen"]) == {"bias 0", "bias 0.9"}
    assert numbers["proxy"]["verification_auc"] > 0.9


def test_the_numbers_are_those_of_the_predictions(study):
    """Accuracy in metrics.json, computed again from the stored scores by hand."""
    numbers = json.loads((study / "reports/tiny/metrics.json").read_text())
    predictions = pd.read_parquet(study / "build/train/0.9/predictions.parquet")
    seen = predictions[predictions["test"] == "seen"]
    truth = read_faces(study / "data").frame["smiling"].to_numpy()[seen["row"]]
    for method in ("erm", "cid", "cid-knn", "last-layer", "oracle"):
        by_seed = ((seen[method] > 0) == truth).groupby(seen["seed"]).mean()
        mean = numbers["seen"]["bias 0.9"]["accuracy"]["mean"][method]
        assert mean == pytest.approx(by_seed.mean(), abs=1e-5)


def test_every_claim_has_a_verdict(study):
    entries = json.loads((study / "reports/tiny/claims.json").read_text())
    main = [e for e in entries if (e["task"], e["kind"]) == ("smiling", "correlation")]
    assert {e["claim"] for e in main} == {"1", "2", "3a", "3b", "4"}
    assert {e["method"] for e in main} == {"cid", "cid-knn"}
    assert all(e["verdict"] == "supported" for e in main if e["claim"] == "4")
    assert any(e["kind"] == "longtail" for e in entries)
    assert "Verdicts" in (study / "reports/tiny/index.html").read_text()


def test_metrics_and_plots_are_known_to_dvc(study):
    assert "bias 0.9" in call(study, "dvc", "metrics", "show")
    assert "index.html" in call(study, "dvc", "plots", "show")


def test_a_second_run_runs_nothing(study):
    assert ran(call(study, "dvc", "repro")) == []


def test_a_forced_run_gives_the_same_bytes(study):
    before = locked(study)
    assert len(ran(call(study, "dvc", "repro", "--force"))) == len(STAGES)
    assert locked(study) == before


def test_an_edit_runs_only_what_depends_on_it(study):
    edit(study, train__l2=0.3)
    assert sorted(ran(call(study, "dvc", "repro"))) == sorted(TRAINED)


def test_a_bad_parameter_stops_with_one_sentence(study):
    edit(study, task="smilling")
    code, output = call(study, "dvc", "repro", "data", check=False)
    assert code != 0
    assert "has no attribute 'smilling' (did you mean 'smiling'?)" in output
    edit(study, task="smiling")
