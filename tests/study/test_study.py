"""The whole pipeline, end to end, on a tiny study in a copy of the repository.

The data are a dozen people of the embedded data set, so detection, alignment and embedding are real.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from study.faces.dataset import read_faces, write_faces
from study.pipeline import notebook, report
from study.results import tables

ROOT = Path(__file__).parents[2]
PEOPLE, IMAGES = 12, 10  # and so many images of either class
STAGES = ["data", "embed", "views", "weights", "train", "evaluate", "factors", "proxies", "breadth",
          "ablate", "paper", "report", "publish"]  # fmt: skip
METHODS = ["erm", "cid", "cid-power", "cid-knn", "surprise", "jtt", "cluster-dro", "xrm", "oracle",
           "group-dro", "last-layer"]  # fmt: skip
DRAWN = ["paper", "report", "publish"]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
yaml = YAML()

pytestmark = pytest.mark.skipif(
    not (ROOT / "data" / "card.json").exists(), reason="needs the data set: run `make data`"
)


def environment(folder) -> dict[str, str]:
    """That of a process which finds this interpreter's programs, and the folder's own `cid`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(folder)}


def call(folder, *command, check=True, **variables):
    """Run a command of this environment in a folder; returns what it wrote."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder) | variables,
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
    place = faces.frame.groupby(["identity", "smiling"]).cumcount()
    rows = np.flatnonzero(faces.frame["identity"].isin(few) & (place < IMAGES))
    records = (
        {"image": {"bytes": faces.encoded[int(row)].as_py(), "path": faces.frame["path"][row]}}
        | faces.frame.drop(columns="path").iloc[row].to_dict()
        for row in rows
    )
    write_faces(folder / "data", records, faces.card)
    call(folder, "dvc", "add", "-q", "data")
    edit(
        folder, study="tiny", methods=METHODS, bias__levels=[0.0, 0.8],
        bias__images_per_identity=10, bias__test_per_class=1, seeds=2, bootstrap=100,
        ablation__seeds=2, ablation__level=0.8, breadth__tasks=["smiling"], breadth__kinds=["longtail"],
        proxies__noise=[0.4], proxies__zooms=[1.1], proxies__level=0.8,
        ablations={"tau": {"setting": "weights.tau", "values": [0.01, "auto"]}},
    )  # fmt: skip
    short = yaml.load(folder / "params.yaml")
    short["methods"] = ["erm", "cid", "oracle"]
    network = short["train"] | {"model": "cnn", "network": {"epochs": 1, "jtt_epochs": 1}}
    for name, train in (("virtual-people", short["train"]), ("celeba-smiling", network)):
        yaml.dump(short | {"study": name, "train": train}, folder / "studies" / f"{name}.yaml")
    call(folder, "git", "add", "-A")
    call(folder, *GIT, "commit", "-qm", "the code")


def finished_study(factory):
    """A small study after one finished repro: a copy of the one that all processes of a test run share."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    base = factory.getbasetemp() if alone else factory.getbasetemp().parent
    made, folder = base / "finished-study", factory.mktemp("study") / "study"
    with open(base / "finished-study.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "finished").exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            small_study(made)
            output = call(made, "dvc", "repro")
            assert sorted(ran(output)) == sorted(STAGES) and ran(output)[-1] == "publish"
            call(made, "git", "add", "-A")
            call(made, *GIT, "commit", "-qm", "a small study")
            (made / ".git" / "info" / "exclude").write_text("finished\n")
            (made / "finished").touch()
    shutil.copytree(made, folder, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return finished_study(tmp_path_factory)


def test_the_report_is_complete(study):
    report = study / "reports" / "tiny"
    index = (report / "index.html").read_text()
    for section in sorted((ROOT / "notebooks" / "paper").glob("*.ipynb")):
        executed = report / "notebooks" / section.name
        assert executed.exists() and f'href="notebooks/{section.name}"' in index
    figures = {path.name for path in (report / "figures").iterdir()}
    shown = set(re.findall(r'<img[^>]*src="figures/([^"]+)"', index))
    assert shown <= figures and {"gain-seen.svg", "compare.svg", "idea.svg"} <= shown
    assert "<script" not in index and 'src="http' not in index
    numbers = json.loads((report / "metrics.json").read_text())
    assert set(numbers["seen"]) == {"bias 0", "bias 0.8"}
    assert numbers["proxy"]["verification_auc"] > 0.9


def test_the_numbers_are_those_of_the_predictions(study):
    """Accuracy in metrics.json, computed again from the stored scores by hand."""
    numbers = json.loads((study / "reports/tiny/metrics.json").read_text())
    summary = pd.read_csv(study / "reports/tiny/summary.csv").query(
        "test == 'seen' and level == 0.8"
    )
    summary = summary[summary["metric"] == "accuracy"].set_index("method")
    predictions = pd.read_parquet(study / "build/train/predictions.parquet")
    seen = predictions[(predictions["test"] == "seen") & (predictions["level"] == 0.8)]
    truth = read_faces(study / "data").frame["smiling"].to_numpy()[seen["row"]]
    for method in ("erm", "cid", "cid-knn", "last-layer", "oracle"):
        by_seed = ((seen[method] > 0) == truth).groupby(seen["seed"]).mean()
        mean = numbers["seen"]["bias 0.8"]["accuracy"]["mean"][method]
        digits = int(tables.decimals(*summary.loc[method, ["low", "high"]]))
        assert mean == pytest.approx(by_seed.mean(), abs=0.501 * 10**-digits)


def test_every_claim_has_a_verdict(study):
    entries = json.loads((study / "reports/tiny/claims.json").read_text())
    main = [e for e in entries if (e["task"], e["kind"]) == ("smiling", "correlation")]
    assert {e["claim"] for e in main} == {"1", "2", "3a", "3b", "4"}
    assert {e["method"] for e in main} == {"surprise", "cid", "cid-power"}
    assert {e["test"] for e in main if e["primary"]} == {"seen", "unseen"}
    assert all(e["verdict"] == "supported" for e in main if e["claim"] == "4")
    assert len(main) == len(entries)  # other kinds of bias are described, not judged
    assert "Verdicts" in (study / "reports/tiny/index.html").read_text()


def test_metrics_and_plots_are_known_to_dvc(study):
    assert "bias 0.8" in call(study, "dvc", "metrics", "show")
    assert "index.html" in call(study, "dvc", "plots", "show")


def test_a_second_run_runs_nothing(study):
    assert ran(call(study, "dvc", "repro")) == []


def test_a_forced_run_gives_the_same_bytes(study):
    before = locked(study)
    runs, aside = study / "build/runs", study / "build/aside"
    runs.rename(aside)  # nothing kept: everything is computed again
    stages = ["embed", "weights", "train", "evaluate", "report"]
    output = call(study, "dvc", "repro", "--force", "--single-item", *stages)
    assert ran(output) == stages
    assert locked(study) == before
    shutil.rmtree(runs)
    aside.rename(runs)


def test_notebooks_run_by_hand_show_what_the_pipeline_shows(study, tmp_path):
    made = call(study, sys.executable, "-m", "study.pipeline.notebook", "lab").split()
    assert all((study / path).exists() for path in made)
    for stem, folder in (("weights", "notebooks"), ("04_results", "paper")):
        call(
            study, sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute",
            f"build/lab/{stem}.ipynb", "--output-dir", str(tmp_path),
        )  # fmt: skip
        shown = []
        for path in (tmp_path / f"{stem}.ipynb", study / "build" / folder / f"{stem}.ipynb"):
            nb = notebook.read(path)
            notebook.normalise(nb)
            shown.append([cell.outputs for cell in nb.cells if cell.cell_type == "code"])
        assert shown[0] == shown[1]


def kept(folder) -> dict[str, int]:
    """Finished work that is kept, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "build/runs").iterdir()}


def test_a_figures_code_is_drawn_again_and_nothing_else(study):
    before = locked(study)
    with open(study / "study/results/plots.py", "a") as file:
        file.write("\nEDITED = 1\n")
    assert ran(call(study, "dvc", "repro")) == DRAWN
    after = locked(study)
    assert after["build/paper"] == before["build/paper"]  # drawn again to the byte


def test_a_docstring_computes_nothing(study):
    before, numbers, lock = kept(study), locked(study), (study / "dvc.lock").read_text()
    paths = [study / f"cid/{name}.py" for name in ("heads", "align")]
    for path in paths:
        path.write_text(path.read_text().replace('"""', '"""Edited. ', 1))
    computing = [stage for stage in STAGES if stage not in DRAWN]
    assert {"embed", "train", "breadth"} <= set(ran(call(study, "dvc", "repro", *computing)))
    assert kept(study) == before and locked(study) == numbers
    for path in paths:  # the tests below begin where this one did
        path.write_text(path.read_text().replace('"""Edited. ', '"""', 1))
    (study / "dvc.lock").write_text(lock)


def test_an_edit_runs_only_what_depends_on_it(study):
    before = kept(study)
    edit(study, ablations={"l2": {"setting": "train.l2", "values": [0.1, 0.3]}})
    computing = ["evaluate", "proxies", "breadth", "ablate"]
    assert ran(call(study, "dvc", "repro", *computing)) == ["data", "ablate"]
    assert kept(study).items() >= before.items()
    edit(study, train__l2=0.3)
    assert ran(call(study, "dvc", "repro", "evaluate")) == ["train", "evaluate"]


def test_a_method_more_computes_its_own_share(study):
    before = kept(study)
    params = yaml.load(study / "params.yaml")
    methods = [m for m in params["methods"] if m != "surprise"]
    edit(study, methods=methods)
    call(study, "dvc", "repro", "evaluate")
    assert not [n for n in kept(study).keys() - before.keys() if n.startswith(("weights", "heads"))]


def test_a_bad_parameter_stops_with_one_sentence(study):
    edit(study, task="smilling")
    code, output = call(study, "dvc", "repro", "data", check=False)
    assert code != 0
    assert "has no attribute 'smilling' (did you mean 'smiling'?)" in output
    edit(study, task="smiling")


def test_no_name_of_a_study_removes_anything(study, monkeypatch, capsys):
    notes = study.parent / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    reports = sorted(study.rglob("reports/**/*"))
    monkeypatch.chdir(study)
    for name in ("", ".", "..", "../notes", "/tmp/notes", "a/b", "tiny/../../notes"):
        edit(study, study=name)
        said = [(report.main(["publish"]), capsys.readouterr().err)]
        # Also through DVC: of all reports, and of a folder outside.
        if name in ("", "../notes"):
            said.append(call(study, "dvc", "repro", check=False))
        for code, output in said:
            assert code != 0 and "study is" in output and "letters, digits" in output
        assert (notes / "mine.txt").read_text() == "mine"
        assert sorted(study.rglob("reports/**/*")) == reports
    edit(study, study="tiny")
