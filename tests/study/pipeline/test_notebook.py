"""Running and cleaning notebooks.  Some 20 s: a dozen runs of a kernel."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from ruamel.yaml import YAML

from study import source
from study.cli import main
from study.pipeline import notebook, stages
from tests.study.small import forks

ROOT = Path(__file__).parents[3]
FIXTURES = Path(__file__).parent / "notebooks"
SOURCES = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
CLEAN = [path for path in sorted(FIXTURES.glob("*.ipynb")) if path.stem != "dirty"]

STAGES = """\
stages:
  noisy: {cmd: python -m study stage noisy, params: [ablation.level, embed]}
  raises: {cmd: python -m study stage raises}
  sleeps: {cmd: python -m study stage sleeps}
  misspelt: {cmd: python -m study stage misspelt, params: [weights.tua]}
  twice: {cmd: python -m study stage twice, params: [bias.people, weights.people]}
"""


def fill(folder: Path) -> None:
    """A working folder with a study of the notebooks here."""
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "notebooks").mkdir()
    for kind, names in (
        ("compute", ["noisy", "raises", "sleeps"]),
        ("paper", ["dies", "exits", "raises"]),
    ):
        (folder / "notebooks" / kind).mkdir()
        for name in names:
            shutil.copy(FIXTURES / f"{name}.ipynb", folder / "notebooks" / kind)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forked_kernels(monkeypatch):
    """Kernels start as forks, which import in no time."""
    monkeypatch.setattr(sys, "executable", forks().python)


# ---- parameters: everything here stops before a kernel starts ----------------------------------


@pytest.mark.parametrize(
    "stage, message",
    [
        ("nosiy", "dvc.yaml has no stage 'nosiy' (did you mean 'noisy'?); it has noisy, raises, "),
        ("misspelt", "lists the key 'weights.tua', which params.yaml does not have"),
        ("twice", "stage twice: 'bias.people' and another of its params end in 'people'"),
    ],
)
def test_wrong_parameters_stop_with_one_sentence(folder, capsys, stage, message):
    assert main(["stage", stage]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (folder / "build").exists()


def test_keys_are_picked_under_their_last_name():
    tree = {"embed": {"network": "x"}, "weights": {"tau": 1e-3, "people": None}}
    picked = notebook.pick(tree, ["embed", "weights.tau", "weights.people"])
    assert picked == {"embed": {"network": "x"}, "tau": 1e-3, "people": None}


def test_a_stage_of_one_level_is_handed_the_ends_of_the_others():
    tree = YAML(typ="safe").load(Path(__file__).parents[3] / "params.yaml")
    tree["bias"]["levels"] = [0.0, 0.5, 0.7, 0.9]
    assert notebook.stage_parameters("breadth", tree)["bias"] == tree["bias"]
    for stage in notebook.ONE_LEVEL:
        assert notebook.stage_parameters(stage, tree)["bias"] == tree["bias"] | {
            "levels": [0.0, 0.9]
        }
        code = (Path(__file__).parents[3] / "notebooks/compute" / f"{stage}.ipynb").read_text()
        assert "levels" not in code  # so that it does not say what it was not handed
    tree["bias"]["levels"] = [0.5]
    assert notebook.stage_parameters("ablate", tree)["bias"]["levels"] == [0.5]


def test_copies_to_run_by_hand_hold_the_parameters(folder, capsys):
    (folder / "dvc.yaml").write_text(STAGES.split("  misspelt")[0])
    assert main(["lab"]) == 0
    said = capsys.readouterr()
    assert "build/lab/noisy.ipynb" in said.out.split()
    assert "data/card.json is missing" in said.err and "`make reproduce` makes" in said.err
    nb = notebook.read_notebook("build/lab/noisy.ipynb")
    assert f"os.chdir({str(folder)!r})" in nb.cells[1].source
    assert nb.cells[2].id == "injected-parameters" and "level = 0.9" in nb.cells[2].source
    section, source = (
        notebook.read_notebook(p) for p in ("build/lab/exits.ipynb", "notebooks/paper/exits.ipynb")
    )
    assert [cell.id for cell in section.cells] == [cell.id for cell in source.cells]
    assert section.cells[1].source.startswith("import os")


def test_a_copy_that_was_edited_is_put_aside(folder, capsys):
    (folder / "dvc.yaml").write_text(STAGES.split("  misspelt")[0])
    copy = folder / "build/lab/noisy.ipynb"
    edited = copy.with_stem("noisy-edited-1")
    for _again in range(2):
        assert main(["lab"]) == 0
    nb = notebook.read_notebook(copy)
    nb.cells[3].outputs = [nbformat.v4.new_output("stream", text="run by hand")]
    nbformat.write(nb, copy)
    assert main(["lab"]) == 0 and not edited.exists()  # its cells are as they were
    nb.cells[3].source = "mine"
    nbformat.write(nb, copy)
    assert main(["lab"]) == 0
    assert "noisy.ipynb was edited, and is noisy-edited-1.ipynb now" in capsys.readouterr().err
    assert notebook.read_notebook(edited).cells[3].source == "mine"
    assert notebook.read_notebook(copy).cells[3].source != "mine"


# ---- running -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The noisy notebook executed twice, in a home with a stale kernel and a headless backend."""
    folder = tmp_path_factory.mktemp("executed")
    fill(folder)
    stale = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(
        json.dumps({"argv": ["/gone/python"], "display_name": "stale", "language": "python"})
    )
    paths = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("MPLBACKEND", "agg")
        assert KernelSpecManager().get_kernel_spec("python3").argv == ["/gone/python"]
        for run in (1, 2):
            assert main(["stage", "noisy"]) == 0
            assert [path.name for path in Path("build/notebooks").iterdir()] == ["noisy.ipynb"]
            paths.append(folder / f"noisy-{run}.ipynb")
            Path("build/notebooks/noisy.ipynb").rename(paths[-1])
        assert list(notebook.read_times()) == ["noisy"]
    return paths


def test_two_executions_give_the_same_bytes(executed):
    assert executed[0].read_bytes() == executed[1].read_bytes()


def test_kernel_is_this_interpreter_in_this_folder_with_these_parameters(executed):
    cells = notebook.read_notebook(executed[0]).cells
    embed = YAML(typ="safe").load(ROOT / "params.yaml")["embed"]
    folder = executed[0].parent
    assert cells[3].outputs[0].text == f"0.9 {embed} {sys.executable} {folder}\n"
    assert cells[2].id == "injected-parameters" and cells[3].id == "cell-03"


def test_normalised_outputs_keep_what_a_reader_wants(executed):
    nb = notebook.read_notebook(executed[0])
    nbformat.validate(nb)
    by_id = {cell.id: cell for cell in nb.cells}
    stream, result = by_id["cell-05"].outputs
    assert (stream.name, stream.text) == ("stdout", "0\n1\n2\n")
    assert by_id["cell-06"].outputs[0].data["text/plain"] == "<object>"
    assert "T_cell-08-0" in by_id["cell-08"].outputs[0].data["text/html"]
    assert "image/png" in by_id["cell-09"].outputs[0].data
    assert set(nb.metadata) == {"kernelspec"}
    assert all(set(cell.metadata) <= {"tags"} for cell in nb.cells)
    counts = [cell.execution_count for cell in nb.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)) and result.execution_count == 4


SENTENCE = "ValueError: tau must be above 0, got -1; set weights.tau in params.yaml."


@pytest.mark.usefixtures("forked_kernels")
def test_a_raising_cell(folder, capfd):
    assert main(["stage", "raises"]) == 1
    error = capfd.readouterr().err
    place = "notebooks/compute/raises.ipynb, cell 4 of 5 (Weights of cid)"
    assert error.endswith(f"\nerror: {place}: {SENTENCE}\n")
    assert "a word on stderr" in error
    assert "\x1b" not in error
    kept = Path("build/notebooks/raises.failed.ipynb")
    assert list(kept.parent.iterdir()) == [kept] and not notebook.TIMES.exists()
    assert "got -1" in kept.read_text() and "never reached" in kept.read_text()


PLACE = f"  File {ROOT}/study/faces/network_files.py:48 in pinned\n    "
LIBRARY = "  File /usr/lib/python3/urllib/request.py:1344 in do_open\n    raise URLError(err)\n"


@pytest.mark.parametrize(
    "name, end, printed",
    [
        ("FileNotFoundError", PLACE + "raise FileNotFoundError(said)", False),
        ("ConnectionError", LIBRARY * 70 + PLACE + "raise ConnectionError(", False),
        ("ValueError", PLACE + "return rows.reshape(2)", True),  # NumPy's own
        ("ValueError", PLACE + "return fit(rows)\n" + LIBRARY, True),
        (
            "ValueError",
            PLACE.replace("study/", ".venv/lib/site-packages/") + "raise ValueError",
            True,
        ),
        ("ValueError", "  Cell In[1], line 2\n    raise ValueError('here')", True),
        ("KeyError", PLACE + "raise KeyError(name)", True),
    ],
)
def test_a_sentence_of_the_project_comes_without_a_traceback(capsys, name, end, printed):
    error = nbformat.v4.new_output("error", ename=name, evalue="said", traceback=["Trace", end])
    cell = nbformat.v4.new_code_cell("x", outputs=[error])
    assert notebook._raised(nbformat.v4.new_notebook(cells=[cell])) == f"{name}: said"
    assert ("Trace" in capsys.readouterr().err) == printed


def test_a_kernel_does_not_warn_of_missing_widgets(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error::ResourceWarning")
    given = notebook._kernel_manager(str(tmp_path), one_thread=False).kernel_spec.env
    assert given["PYTHONWARNINGS"] == "error::ResourceWarning,ignore:IProgress not found"


@pytest.mark.usefixtures("forked_kernels")
def test_sections_run_side_by_side_and_every_failure_is_said(folder, capfd):
    shutil.copy(FIXTURES / "raises.ipynb", "notebooks/paper/again.ipynb")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        "import os\nfrom IPython.display import Image, display\n"
        "display(os.environ['OMP_NUM_THREADS'], metadata={'figure': {'name': 'x'}})"
    )])  # fmt: skip
    Path("notebooks/paper/fine.ipynb").write_text(notebook.dumps(nb))
    Path("build/paper").mkdir(parents=True)
    Path("build/paper/gone.ipynb").touch()
    assert main(["paper"]) == 1
    error = capfd.readouterr().err
    assert re.search(r"(?m)^fine: \d+\.\d s$", error)
    assert error.count("\nerror: ") == 4 and error.count(SENTENCE) >= 2
    for name, message in (("dies", "the kernel died"), ("exits", "SystemExit")):
        assert re.search(rf"(?m)^error: notebooks/paper/{name}\.ipynb, .*{message}", error)
    assert sorted(path.name for path in Path("build/paper").glob("[!.]*")) == [
        "again.failed.ipynb", "dies.failed.ipynb", "exits.failed.ipynb", "fine.ipynb",
        "raises.failed.ipynb",
    ]  # fmt: skip
    (output,) = notebook.read_notebook("build/paper/fine.ipynb").cells[0].outputs
    assert output.data["text/plain"] == "'1'" and output.metadata == {"figure": {"name": "x"}}


@pytest.mark.usefixtures("forked_kernels")
def test_a_section_is_executed_again_only_if_what_it_uses_has_changed(folder, monkeypatch, capfd):
    # Two threads of papermill would write into the folder of the last test: it keeps a working folder.
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    Path("lines.py").write_text("def a():\n    return 1\n\n\ndef b():\n    return 2\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(source, "ROOT", folder)
    shutil.rmtree("notebooks/paper")
    for name in "ab":
        Path("notebooks/paper").mkdir(exist_ok=True)
        code = f"""
import lines, os
from IPython.display import display
x = lines.{name}()
os.makedirs("build/paper/figures", exist_ok=True)
with open("build/paper/figures/figure-{name}.svg", "w") as file:
    file.write(str(x))
display(x, metadata={{"figure": {{"name": "figure-{name}"}}}})
"""
        cells = [nbformat.v4.new_code_cell(code)]
        nb = nbformat.v4.new_notebook(cells=cells)
        Path(f"notebooks/paper/{name}.ipynb").write_text(notebook.dumps(nb))

    def run() -> tuple[str, dict[str, bytes]]:
        source.forget()
        assert main(["paper"]) == 0
        files = [path for path in Path("build/paper").rglob("*") if path.is_file()]
        contents = {str(path): path.read_bytes() for path in files}
        return capfd.readouterr().out, contents

    said, first = run()
    assert "put back" not in said and len(first) == 4
    said, second = run()
    assert "2 of 2 sections are put back" in said and second == first
    text = Path("lines.py").read_text()
    Path("lines.py").write_text(f"# a comment\n{text}\n\ndef c():\n    return 3\n")
    assert "2 of 2 sections" in run()[0]
    Path("lines.py").write_text(text.replace("return 2", "return 20"))
    said, third = run()
    assert "1 of 2 sections are put back" in said
    changed = {name for name in third if third[name] != first[name]}
    assert changed == {"build/paper/b.ipynb", "build/paper/figures/figure-b.svg"}


@pytest.mark.usefixtures("forked_kernels")
def test_an_executed_notebook_names_the_code_that_it_ran(folder):
    Path("dvc.yaml").write_text(
        STAGES.replace("sleeps}", "sleeps, deps: [notebooks/compute/quick.ipynb]}").replace(
            "sleeps", "quick"
        )
    )
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    Path("notebooks/compute/quick.ipynb").write_text(notebook.dumps(nb))
    assert main(["stage", "quick"]) == 0
    executed = notebook.read_notebook("build/notebooks/quick.ipynb")
    assert list(executed.metadata["code"]) == ["notebooks/compute/quick.ipynb"]
    assert executed.metadata["code"] == stages.code_digests(["notebooks/compute/quick.ipynb"])


def edit(path: str, before: str, after: str) -> None:
    Path(path).write_text(Path(path).read_text().replace(before, after, 1))


@pytest.mark.parametrize(
    "meanwhile, what",
    [
        (lambda: edit("params.yaml", "detect: true", "detect: false"), "embed of params.yaml"),
        (lambda: edit("a.py", "1", "2"), "a.py"),
        (lambda: Path("data.csv").write_text("other"), "data.csv"),
        (lambda: Path("data.csv").unlink(), "data.csv"),
        (lambda: edit("a.py", "1", "1  # one"), None),
        (lambda: edit("params.yaml", "seeds: 20", "seeds: 3"), None),  # which it does not read
        (lambda: Path("data.csv").touch(), None),
    ],
)
def test_what_is_edited_while_a_stage_runs_is_not_recorded_as_what_it_ran_with(
    folder, monkeypatch, capsys, meanwhile, what
):
    files = "deps: [a.py, data.csv], outs: [build/noisy]"
    Path("dvc.yaml").write_text(
        STAGES.replace("[ablation.level, embed]", "[ablation.level, embed], " + files)
    )
    Path("a.py").write_text("a = 1\n")
    Path("data.csv").write_text("data")

    def run_notebook(*arguments, **how):
        Path("build/noisy").mkdir(parents=True)
        meanwhile()

    monkeypatch.setattr(notebook, "start_kernel", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(notebook, "run_notebook", run_notebook)
    assert main(["stage", "noisy"]) == (1 if what else 0)
    said = f"error: {what} was edited while noisy ran, which began before; run it again"
    assert capsys.readouterr().err.startswith(said if what else "")
    assert bool(list(Path("build/runs").glob("stage-noisy-*"))) == (what is None)


@pytest.mark.usefixtures("forked_kernels")
def test_a_kernel_has_executed_what_it_was_started_with(folder):
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_code_cell("print(first)")]
    Path("x.ipynb").write_text(nbformat.writes(nb))
    with notebook.start_kernel(first="import os\nfirst = os.sep * 3") as kernel:
        notebook.run_notebook("x.ipynb", "y.ipynb", kernel=kernel, quiet=True)
    assert notebook.read_notebook("y.ipynb").cells[0].outputs[0].text == "///\n"


@pytest.mark.usefixtures("forked_kernels")
def test_sections_share_a_kernel_and_no_names(folder, monkeypatch):
    """The second finds what the first imported, and nothing else of it."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    shutil.rmtree("notebooks/paper")
    Path("notebooks/paper").mkdir()
    cells = [
        "import os, sys\nx = 'seen' in globals()\nseen = True",
        "print(x, 'wave' in sys.modules)",
    ]
    for name in "abc":
        code = [*cells, "import wave\nopen(f'pid-{os.getpid()}', 'a').close()", "x"]
        nb = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, code)))
        Path(f"notebooks/paper/{name}.ipynb").write_text(notebook.dumps(nb))
    assert main(["paper"]) == 0
    assert len(list(Path().glob("pid-*"))) == 1
    first, second, third = (notebook.read_notebook(f"build/paper/{name}.ipynb") for name in "abc")
    assert first.cells[1].outputs[0].text == "False False\n"
    assert second.cells[1].outputs[0].text == "False True\n"
    assert second == third and second.cells[3].execution_count == 4


@pytest.mark.parametrize(
    "name, message",
    [("exits", "cell 2 of 3 (Leaves early): SystemExit"), ("dies", "the kernel died")],
)
@pytest.mark.usefixtures("forked_kernels")
def test_a_notebook_that_ends_early_is_no_success(folder, name, message):
    with pytest.raises(notebook.CellFailed) as failure:
        notebook.run_notebook(FIXTURES / f"{name}.ipynb", f"{name}.ipynb")
    assert message in str(failure.value)
    assert not (folder / f"{name}.ipynb").exists()
    assert (folder / f"{name}.failed.ipynb").exists()


def test_interrupting_leaves_nothing_behind(folder):
    before = folder / "build/notebooks/sleeps.ipynb"
    before.parent.mkdir(parents=True)
    before.write_text("of an earlier run")
    scratch = folder / "t"
    scratch.mkdir()
    command = [sys.executable, "-m", "study", "stage", "sleeps"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    # A shell's background job ignores SIGINT, and so would every process these tests start.
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pid = folder / "kernel.pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None, "it ended before its cell began"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode == 130
    assert error.endswith("interrupted; what is done is kept\n")
    assert before.read_text() == "of an earlier run"
    assert list(before.parent.iterdir()) == [before] and not notebook.TIMES.exists()
    assert list(scratch.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# ---- cleaning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES + CLEAN, ids=lambda path: path.stem)
def test_committed_notebooks_are_clean(path, capsys):
    assert main(["notebooks", "check", str(path)]) == 0, capsys.readouterr().out


def test_dirty_is_named_and_cleaned_once(folder, capsys):
    original = (FIXTURES / "dirty.ipynb").read_text()
    Path("dirty.ipynb").write_text(original)
    Path("fine.ipynb").write_text(CLEAN[0].read_text())
    both = ["dirty.ipynb", "fine.ipynb"]
    assert main(["notebooks", "check", *both]) == 1
    assert capsys.readouterr().out == "dirty.ipynb is not clean\n"
    assert Path("dirty.ipynb").read_text() == original
    assert main(["notebooks", "clean", *both]) == 0
    assert capsys.readouterr().out == "dirty.ipynb cleaned\n"
    cleaned = Path("dirty.ipynb").read_text()
    assert main(["notebooks", "clean", *both]) == 0 and main(["notebooks", "check", *both]) == 0
    assert Path("dirty.ipynb").read_text() == cleaned

    nb = json.loads(cleaned)
    nbformat.validate(nbformat.from_dict(nb))
    assert [cell["id"] for cell in nb["cells"]] == ["cell-01", "cell-02", "cell-03"]
    assert [cell["metadata"] for cell in nb["cells"]] == [
        {}, {"tags": ["parameters"]}, {"tags": ["keep-me"]}
    ]  # fmt: skip
    assert nb["cells"][2]["outputs"] == [] and nb["cells"][2]["execution_count"] is None
    assert nb["cells"][2]["source"] == ["level"]
    assert nb["metadata"]["kernelspec"]["name"] == "python3"
    assert set(nb["metadata"]) == {"kernelspec"}


@pytest.mark.parametrize("text", ["", "[]", '{"nbformat": 3, "worksheets": []}'])
def test_what_is_no_notebook_is_named(folder, capsys, text):
    Path("broken.ipynb").write_text(text)
    assert main(["notebooks", "clean", "broken.ipynb"]) == 1
    assert "broken.ipynb is not a Jupyter notebook" in capsys.readouterr().err
