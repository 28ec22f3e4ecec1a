"""What the stages of dvc.yaml are handed and depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from study import cli
from study.pipeline import params, stages
from study.pipeline.notebook import NOBODY, PEOPLE, pick, read_for_data

ROOT = Path(__file__).parents[3]
COMPUTING = sorted(path.stem for path in ROOT.glob("notebooks/compute/*.ipynb"))


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_stage_names_the_code_that_it_uses():
    assert stages.differences() == [], "run `python -m study stages write`"


@pytest.mark.parametrize("stage", COMPUTING)
def test_a_notebook_uses_what_it_is_handed_and_nothing_else(stage):
    keys = stages.parameter_keys(stage)
    assert stages.name_mistakes(stages.notebook_of(stage), keys) == []
    assert len(pick(params.read(), keys)) == len(keys)


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/paper/*.ipynb")), ids=lambda p: p.stem)
def test_a_section_uses_no_parameters(path):
    assert stages.name_mistakes(path) == []


@pytest.mark.parametrize("tag", [PEOPLE, NOBODY])
def test_names_are_defined_whichever_cells_the_data_leave_out(tag):
    for path in sorted(ROOT.glob("notebooks/*/*.ipynb")):
        keys = stages.parameter_keys(path.stem) if path.parent.name == "compute" else []
        mistakes = stages.name_mistakes(path, keys, without=tag)
        assert not [text for text in mistakes if "nothing defines" in text]


def test_sections_that_compare_people_are_left_out_whole_and_the_abstract_says_so():
    sections = sorted(ROOT.glob("notebooks/paper/*.ipynb"))
    shown = {
        tag: [path.stem for path in sections if read_for_data(path, tag).cells]
        for tag in (PEOPLE, NOBODY)
    }
    gone = [path.stem for path in sections if path.stem not in shown[PEOPLE]]
    assert [name[:2] for name in gone] == ["04", "05", "06", "07", "08"]
    assert len(shown[NOBODY]) == len(sections)
    abstract = read_for_data(sections[0], PEOPLE)
    assert "Sections 4 to 8 compare people, and are left out." in str(abstract)
    for path in sections:  # a section keeps its number
        titles = [
            read_for_data(path, tag).cells[0].source.splitlines()[0][:5]
            for tag in shown
            if path.stem in shown[tag]
        ]
        assert path == sections[0] or len(set(titles)) == 1


def test_every_key_of_the_parameters_is_read_by_a_stage():
    read = [key for stage in COMPUTING for key in stages.parameter_keys(stage)]
    tree = params.read()
    keys = [
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in tree.items()
        for key in (value if isinstance(value, dict) else [""])
    ]
    unread = [k for k in keys if not any(f"{k}.".startswith(f"{r}.") for r in read)]
    # Of publish, and of the report, which shows the whole file.
    assert unread == ["study", "protocol.status", "protocol.note", "protocol.detectable"]


@pytest.fixture
def notebook(tmp_path):
    def written(*cells):
        path = tmp_path / "x.ipynb"
        kinds = [{"cell_type": "code", "source": [text]} for text in cells]
        path.write_text(json.dumps({"cells": kinds}))
        return path

    return written


def test_the_imports_of_a_notebook_are_those_of_its_cells(notebook, tmp_path):
    path = notebook("import a.b as c\nx = 1", "from d import (\n    e,\n)\nif x:\n    import f")
    assert stages.imports_of(path) == "import a.b as c\nfrom d import e"
    assert stages.imports_of(notebook("import a", "def")) == ""
    assert stages.imports_of(tmp_path / "none.ipynb") == ""


def test_what_a_notebook_does_not_define_is_named(notebook):
    fine = notebook("import numpy as np\nn = len(tau)", "sum(n for n in [np.pi]); display(task)")
    assert stages.name_mistakes(fine, ["weights.tau", "task"]) == []
    path = notebook("x = [tua for _ in levels]", "def f(a):\n    return a + b")
    assert stages.name_mistakes(path, ["weights.tau", "bias.levels"]) == [
        f"{path} does not use 'tau'",
        f"{path} uses 'b', which nothing defines",
        f"{path} uses 'tua', which nothing defines",
    ]


def test_code_that_a_stage_uses_is_put_into_its_dependencies(tmp_path, monkeypatch, capsys):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    stages.write_deps()
    written, tree = Path("dvc.yaml").read_text(), YAML(typ="safe").load(Path("dvc.yaml"))
    comments = [line for line in (ROOT / "dvc.yaml").read_text().splitlines() if "#" in line]
    assert [line for line in written.splitlines() if "#" in line] == comments
    deps = tree["stages"]["embed"]["deps"]
    assert deps[0] == "data" and {"study/faces/embed.py", "cid/align.py"} < set(deps)
    assert not [dep for dep in deps if "results" in dep or "experiment" in dep]
    report = set(tree["stages"]["report"]["deps"])
    assert {"study/pipeline/templates", "study/pipeline/pages.py", "notebooks/paper"} < report
    assert not {"study/faces/embed.py", "notebooks/compute/embed.ipynb"} & report
    for stage in tree["stages"].values():
        assert all((ROOT / d).exists() for d in stage["deps"] if d.startswith(("cid/", "study/")))

    Path("dvc.yaml").write_text(written.replace("      - cid/align.py\n", "", 1))
    assert cli.main(["stages", "check"]) == 1
    assert capsys.readouterr().out == "embed: lacks cid/align.py\n"
    assert cli.main(["stages", "write"]) == 0 and Path("dvc.yaml").read_text() == written
    there = "      - cid/align.py\n"
    unused = written.replace(there, f"{there}      - study/results/plots.py\n", 1)
    Path("dvc.yaml").write_text(unused)
    assert cli.main(["stages", "check"]) == 1
    assert capsys.readouterr().out.endswith("embed: does not use study/results/plots.py\n")


@pytest.fixture
def one_stage(tmp_path, monkeypatch):
    """A stage that writes what a module and a table say; ``work()`` counts how often it was done."""
    monkeypatch.chdir(tmp_path)
    Path("code.py").write_text('"""Doubles."""\n\nFACTOR = 2  # twice\n')
    Path("data").mkdir()
    Path("data/a.txt").write_text("3")
    outs = {"deps": ["code.py", "data"], "outs": ["build/made", "build/notebooks/made.ipynb"]}
    monkeypatch.setattr(stages, "read_stages", lambda: {"made": outs})
    done = []

    def work():
        done.append(1)
        factor = int(Path("code.py").read_text().partition("FACTOR = ")[2][0])
        for name in ("build/made/result", "build/notebooks/made.ipynb"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(str(factor * int(Path("data/a.txt").read_text())))

    def run(given=None):
        """Like DVC, which removes the outputs first; (number of times worked, what is there)."""
        shutil.rmtree("build/made", ignore_errors=True)
        Path("build/notebooks/made.ipynb").unlink(missing_ok=True)
        before = stages.done_before("made", given or {"level": 0.9}, work)
        found = {Path(o).read_text() for o in ("build/made/result", "build/notebooks/made.ipynb")}
        assert len(found) == 1
        return before, len(done), found.pop()

    return run


def test_what_only_says_something_else_is_not_done_again(one_stage):
    assert one_stage() == (False, 1, "6")
    Path("code.py").write_text('"""Twice."""\nFACTOR = 2\n')
    assert one_stage() == (True, 1, "6")
    Path("code.py").write_text('"""Twice."""\nFACTOR = 4\n')
    assert one_stage() == (False, 2, "12")
    Path("data/a.txt").write_text("2")
    assert one_stage() == (False, 3, "8")
    assert one_stage({"level": 0.5}) == (False, 4, "8")
    Path("data/b.txt").write_text("a file more")
    assert one_stage() == (False, 5, "8")
    Path("build/made/result").write_text("by hand")  # what is kept is a copy
    assert one_stage() == (True, 5, "8")


def test_digests_of_code_are_found_once(tmp_path, monkeypatch):
    """And again by another Python, or after an edit."""

    def digests() -> dict[str, str]:
        for known in (stages._digest_of_code, stages._kept_digests, stages._digested_by):
            known.cache_clear()
        monkeypatch.setattr(stages, "_FOUND", {})
        found = stages.code_digests(["study/one.py", "study/two.py"])
        stages._keep_digests()
        return found

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages.atexit, "register", lambda work: None)
    asked = []
    text = stages.source.text
    monkeypatch.setattr(stages.source, "text", lambda file: asked.append(file) or text(file))
    for folder in ("study", "build"):
        Path(folder).mkdir()
    Path("study/one.py").write_text("x = 1  # a comment\n")
    Path("study/two.py").write_text("y = 2\n")
    first = digests()
    assert asked == ["study/one.py", "study/two.py"] and digests() == first and len(asked) == 2
    Path("study/one.py").write_text("x = 1  # another\n")
    assert digests() == first and asked[2:] == ["study/one.py"]
    monkeypatch.setattr(stages.sys, "version", "another")
    assert digests() == first and len(asked) == 5
    stages.DIGESTS.write_text("torn")
    assert digests() == first and len(asked) == 7
    for known in (stages._digest_of_code, stages._kept_digests, stages._digested_by):
        known.cache_clear()


def test_large_outputs_are_not_kept_twice(one_stage, monkeypatch):
    monkeypatch.setattr(stages, "LARGE", 1)
    assert [one_stage()[:2] for _ in range(2)] == [(False, 1), (False, 2)]


def test_a_disk_without_room_does_not_undo_a_stage(one_stage, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stages, "_copy", full)
    assert one_stage() == (False, 1, "6")
    assert not list(Path("build").glob("runs/*"))


def test_what_is_published_is_looked_at_and_never_removed_by_dvc(monkeypatch):
    """An output without a cache is committed with an experiment; `persist` keeps DVC from removing it."""
    monkeypatch.chdir(ROOT)
    how = {"cache": False, "persist": True}
    assert stages.read_stages()["publish"]["outs"] == [{"reports/${study}": how}, {"latest": how}]
