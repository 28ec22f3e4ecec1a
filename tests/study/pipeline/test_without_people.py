"""A study of data of which nobody is known, from the training sets to the page, without a kernel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from papermill.iorw import papermill_io

from study.pipeline import kept, new, notebook, overview, params, publish, report, stages
from study.pipeline.notebook import PEOPLE
from tests.study.pipeline.test_new import crowd
from tests.study.pipeline.test_pages import put, shown

ROOT = Path(__file__).parents[3]
COMPARE = ("factors", "proxies", "breadth", "ablate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the stages before ``weights`` leave of 40 people of 20 images, none of whom is known."""
    folder = tmp_path_factory.mktemp("nobody")
    (folder / "studies").mkdir()
    for name in ("dvc.yaml", "dvc.lock", "data.dvc", "requirements.lock", "studies/base-2.yaml"):
        shutil.copy(ROOT / name, folder / name)
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 20)
    data = crowd(40, 20, unknown=1.1)
    data.frame["hat"] = (rng.random(800) < np.where(person % 2, 0.85, 0.15)).astype(int)
    proxy = (rng.normal(size=(40, 16))[person] + 0.1 * rng.normal(size=(800, 16))).astype(
        np.float32
    )
    build = folder / "build"
    for part in ("data", "embed", "train"):
        (build / part).mkdir(parents=True)
    data.frame.to_parquet(build / "data/labels.parquet", index=False)
    counts = {"images": 800, "identities": 0}
    (build / "data/card.json").write_text(json.dumps(data.card | {"counts": counts}))
    (build / "data/people.csv").write_text("identity,class_0,class_1,usable\n")
    np.save(build / "embed/proxy.npy", proxy)
    np.save(build / "embed/trunk.npy", np.hstack([proxy, data.frame[["hat"]] + rng.normal(size=(800, 1))]).astype(np.float32))  # fmt: skip
    summary = {"network": "n", "trunk": "t", "detected": 1.0, "detector": "joined"}
    (build / "embed/summary.json").write_text(json.dumps(summary))
    (folder / "studies/first.yaml").write_text(new.compose(data, "hat"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tree = params.filled(kept.resolve("first"))
        tree |= {"methods": ["erm", "balanced", "surprise"], "seeds": 2, "bootstrap": 20}
        Path("params.yaml").write_text(json.dumps(tree))
        for stage in ("weights", "train", "evaluate", *COMPARE):
            code = stages.code_of(ROOT / f"notebooks/compute/{stage}.ipynb", without=PEOPLE)
            keys = stages.parameter_keys(stage)
            exec(code, notebook.pick(tree, keys))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def test_what_compares_people_leaves_a_note_and_nothing_else(here):
    assert notebook.left_out() == PEOPLE
    for stage in COMPARE:
        (note,) = (here / "build" / stage).iterdir()
        assert note.name == "left-out.txt" and "no image of the data says who" in note.read_text()


def test_no_claim_is_made_and_no_table_is_of_people(here):
    evaluated = here / "build/evaluate"
    assert json.loads((evaluated / "claims.json").read_text()) == []
    tables = sorted(path.stem for path in evaluated.glob("*.csv"))
    assert tables == ["audited", "audited-gains", "effective", "penalties", "splits"]
    audited = pd.read_csv(evaluated / "audited.csv").set_index(["method", "measure"])["mean"]
    assert audited["erm", "minority"] < audited["erm", "majority"]
    assert audited["surprise", "minority"] > audited["erm", "minority"]


def test_run_by_hand_the_notebooks_give_the_same_bytes(here, monkeypatch, tmp_path):
    shutil.copytree(ROOT / "notebooks", here / "notebooks", dirs_exist_ok=True)
    # Threads that leave papermill at once leave it the folder of one of them to read from.
    monkeypatch.setattr(papermill_io.get_handler("local"), "_cwd", None)
    written = {path.stem: (here / path).resolve() for path in notebook.lab()}
    assert "04_results" not in written and "00_abstract" in written
    before = {path: path.read_bytes() for path in (here / "build").glob("evaluate/*")}
    shutil.rmtree(here / "build/evaluate")
    monkeypatch.chdir(tmp_path)  # JupyterLab starts them in its own folder
    for stage in ("weights", "train", "evaluate"):
        exec(stages.code_of(written[stage]), {"__name__": "__main__"})
    assert Path.cwd() == here
    assert {path: path.read_bytes() for path in (here / "build").glob("evaluate/*")} == before


def test_every_section_that_is_left_can_be_executed(here, capsys):
    executed = []
    for path in sorted((ROOT / "notebooks/paper").glob("*.ipynb")):
        code = stages.code_of(path, without=PEOPLE)
        if notebook.read_for_data(path, PEOPLE).cells:
            exec(code, {"display": print})
            executed.append(path.stem)
    assert executed == ["00_abstract", "01_data", "02_proxy", "03_method", "09_audit", "09_limitations"]  # fmt: skip
    drawn = {path.stem for path in Path("build/paper/figures").glob("*.svg")}
    assert {"gain-audited", "effective-sizes"} <= drawn


def test_the_page_and_its_main_numbers_are_those_of_the_audit(here, monkeypatch):
    tree = params.read()
    put(
        Path("build/paper/00_abstract.ipynb"),
        "# Whom do they fail?",
        [shown({"text/markdown": "Nobody knows."})],
        "## What the audit estimates",
    )
    Path("build/paper/figures").mkdir(parents=True, exist_ok=True)
    page = report.build(tree).read_text()
    assert "800 images of people whom nobody knows" in page and "Nobody knows." in page
    numbers = publish.main_numbers(Path("build/report"))
    assert set(numbers) == {"erm_audited", "surprise_audited"} and numbers["surprise_audited"] > 0
    publish.publish()
    assert overview.read_studies() == []  # which are of people
    listed = overview.unidentified("[{0}]({0}/index.html)")
    assert listed.startswith("[first](first/index.html):\n\n| method |")
    about = json.loads(Path("build/report/about.json").read_text())
    why = about | {"refusal": "the proxy is too weak"}
    Path("build/report/about.json").write_text(json.dumps(why))
    assert publish.main_numbers(Path("build/report")) == {}
    refused = overview.headline_markdown(Path("build/report"))
    assert refused == "**Refused.** No estimate is given: the proxy is too weak.\n"
