"""The whole pipeline, end to end, on the study of :mod:`tests.study.small`."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest

from study import cli
from study.faces.dataset import read_faces
from study.pipeline import notebook, stages
from study.results import rounding
from tests.study.small import (
    BUILD_REPORT,
    COMMAND,
    COMPUTING,
    DRAWN,
    NEWCOMER,
    ROOT,
    call,
    edit,
    execute,
    finished_study,
    forks,
    locked,
    needs_data,
    parameters,
    ran,
    yaml,
)

pytestmark = needs_data


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
        digits = int(rounding.decimals(*summary.loc[method, ["low", "high"]]))
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
    assert "surprise_min" in call(study, "dvc", "metrics", "show")
    assert "index.html" in call(study, "dvc", "plots", "show")


def test_a_second_run_runs_nothing(study):
    assert ran(call(study, "dvc", "repro")) == []


def test_a_report_that_lost_a_file_is_written_again(study):
    """Also one whose numbers were edited: the last stage looks at the files."""
    page, table = (study / "reports/tiny" / name for name in ("index.html", "area.csv"))
    before = page.read_bytes(), table.read_bytes()
    page.unlink()
    table.write_text(table.read_text().replace("0.", "1.", 1))
    assert ran(call(study, "dvc", "repro", "--single-item", "publish")) == ["publish"]
    assert (page.read_bytes(), table.read_bytes()) == before


def outputs(folder, stage: str) -> list[str]:
    """The outputs of a stage, as dvc.yaml names them."""
    with contextlib.chdir(folder):
        return stages.read_stages()[stage]["outs"]


def changed(folder, names: list[str]) -> dict[str, list[str]]:
    """The stages of whose outputs DVC says that they are not those it recorded, with what it says."""
    found = json.loads(call(folder, "dvc", "status", "--json", *names))
    parts = [(stage, part) for stage, whole in found.items() for part in whole]
    return {stage: part["changed outs"] for stage, part in parts if "changed outs" in part}


def remove(folder, names: list[str]) -> None:
    for path in (folder / name for name in names):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_forced_run_gives_the_same_bytes(study):
    """Nothing is kept, and no output is left: everything is computed again."""
    runs, aside = study / "build/runs", study / "build/aside"
    runs.rename(aside)
    computed = ["embed", "weights", "train", "evaluate"]
    for name in [*computed, "report"]:
        remove(study, outputs(study, name))
    assert changed(study, [*computed, "report"]).keys() == {*computed, "report"}
    execute(study, *computed)
    call(study, *BUILD_REPORT)
    assert changed(study, [*computed, "report"]) == {}
    shutil.rmtree(runs)
    aside.rename(runs)


def test_notebooks_run_by_hand_show_what_the_pipeline_shows(study, tmp_path):
    made = call(study, *COMMAND, "lab").split()
    assert all((study / path).exists() for path in made)
    call(
        study, sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute",
        "build/lab/weights.ipynb", "build/lab/04_results.ipynb", "--output-dir", str(tmp_path),
    )  # fmt: skip
    for stem, folder in (("weights", "notebooks"), ("04_results", "paper")):
        shown = []
        for path in (tmp_path / f"{stem}.ipynb", study / "build" / folder / f"{stem}.ipynb"):
            nb = notebook.read_notebook(path)
            notebook.normalise(nb)
            shown.append([cell.outputs for cell in nb.cells if cell.cell_type == "code"])
        assert shown[0] == shown[1]


def kept(folder) -> dict[str, int]:
    """Finished work that is kept, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "build/runs").iterdir()}


def refuse() -> None:
    raise AssertionError("a stage computes again")


def test_a_figures_code_is_drawn_again_and_nothing_else(study):
    before = locked(study)
    with open(study / "study/results/plots.py", "a") as file:
        file.write("\nEDITED = 1\n")
    assert ran(call(study, "dvc", "repro")) == DRAWN
    after = locked(study)
    assert after["build/paper"] == before["build/paper"]  # drawn again to the byte


def test_a_docstring_computes_nothing(study):
    before, lock = kept(study), (study / "dvc.lock").read_text()
    paths = [study / f"cid/{name}.py" for name in ("heads", "align")]
    for path in paths:
        path.write_text(path.read_text().replace('"""', '"""Edited. ', 1))
    edited = json.loads(call(study, "dvc", "status", "--json"))
    assert {"embed", "train", "breadth"} <= edited.keys()
    output = call(study, "dvc", "repro", "--single-item", "embed")
    assert ran(output) == ["embed"] and "its outputs are put back" in output
    for stage in COMPUTING:  # what DVC would start for each of the others
        with contextlib.chdir(study):
            remove(study, outputs(study, stage))
            assert stages.done_before(stage, parameters(stage), work=refuse)
    assert changed(study, COMPUTING) == {} and kept(study) == before
    for path in paths:  # the tests below begin where this one did
        path.write_text(path.read_text().replace('"""Edited. ', '"""', 1))
    (study / "dvc.lock").write_text(lock)


def test_an_edit_runs_only_what_depends_on_it(study):
    before = kept(study)
    edit(study, ablations={"l2": {"setting": "train.l2", "values": [0.1, 0.3]}})
    assert ran(call(study, "dvc", "repro", "data", forked=False)) == ["data"]
    computing = ["evaluate", "proxies", "breadth", "ablate"]
    assert ran(call(study, "dvc", "repro", *computing)) == ["ablate"]
    assert kept(study).items() >= before.items()
    edit(study, train__l2=0.3)
    assert ran(call(study, "dvc", "repro", "--dry", "evaluate")) == ["train", "evaluate"]
    edit(study, train__l2="auto")


def test_a_method_more_computes_its_own_share(study):
    before = kept(study)
    params = yaml.load(study / "params.yaml")
    methods = [m for m in params["methods"] if m != "surprise"]
    edit(study, methods=methods)
    execute(study, "weights", "train")
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
        said = [(cli.main(["report", "build"]), capsys.readouterr().err)]
        # Also through DVC: of all reports, and of a folder outside.
        if name in ("", "../notes"):
            said.append(call(study, "dvc", "repro", check=False))
        for code, output in said:
            assert code != 0 and "study is" in output and "letters, digits" in output
        assert (notes / "mine.txt").read_text() == "mine"
        assert sorted(study.rglob("reports/**/*")) == reports
    edit(study, study="tiny")


def test_a_fork_ends_as_a_process_would(tmp_path):
    """What starts the programs here runs the folder's files as they are now, and hands on how they end."""
    (tmp_path / "mine.py").write_text("import sys\n\nsys.exit('no')\n")
    assert call(tmp_path, "python", "-m", "mine", check=False) == (1, "no\n")
    (tmp_path / "mine.py").write_text("import time\n\nprint('on', flush=True)\ntime.sleep(3600)\n")
    command = [forks().python, "-m", "mine"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        process.terminate()
        assert process.wait() == -signal.SIGTERM


NAMING = ("00_abstract", "03_method", "04_results")  # sections that name methods


def test_a_new_method_is_one_file(study):
    """Found in weights, heads, tables, figures and the report, and its setting in the parameters."""
    (study / "study/methods/newcomer.py").write_text(NEWCOMER.lstrip())
    edit(study, study="tiny", methods=["erm", "newcomer", "cid", "surprise", "oracle"])
    checked = call(study, *COMMAND, "stages", "check")
    for section in (study / "notebooks/paper").glob("*.ipynb"):
        if section.stem not in NAMING:
            section.unlink()
    for stage in ("weights", "train", "evaluate"):
        call(study, *COMMAND, "stage", stage)
    call(study, *COMMAND, "paper")
    call(study, *BUILD_REPORT)
    listed = call(study, *COMMAND, "methods")
    assert "newcomer (The newcomer)" in listed
    assert checked.strip() == "Every stage names the code that it uses."
    sets = pd.read_parquet(study / "build/weights/sets.parquet")
    weights = sets.loc[sets["part"] == "train", "newcomer"]
    assert sorted(set(weights.round(6))) == [0.5, 1.5]
    predictions = pd.read_parquet(study / "build/train/predictions.parquet")
    assert predictions["newcomer"].notna().all()
    assert (predictions["newcomer"] != predictions["erm"]).any()
    report = study / "build" / "report"
    assert "newcomer" in set(pd.read_csv(report / "difference.csv")["method"])
    assert "newcomer_weight: 3.0" in (report / "params.yaml").read_text()
    assert "every other image weighs more (the tests)" in (report / "index.html").read_text()
    figures = [path.read_text() for path in (report / "figures").glob("*.svg")]
    assert any("The newcomer" in text and "#123456" in text for text in figures)
