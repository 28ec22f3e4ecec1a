"""Running, cleaning and rendering notebooks.  Some 20 s: six runs of a kernel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from study.pipeline import notebook, pages
from study.pipeline.notebook import main

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "notebooks"
SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
CLEAN = [path for path in sorted(FIXTURES.glob("*.ipynb")) if path.stem != "dirty"]

TOY = [
    "--params-file",
    "toy.yaml",
]  # the name params.yaml stands for a study's own, which is checked
PARAMS = """\
level: 0.5
noisy:
  section: {name: "dlib", rate: 1e-3, on: true}
other:
  section: 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a file of parameters."""
    (tmp_path / "toy.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- parameters: everything here stops before a kernel starts ----------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--params", "noisy.sectoin"], "has no key 'noisy.sectoin'; the nearest name is 'noisy.s"),
        (["--params", "lvl"], "the nearest name is 'level'"),
        (["--params", "noisy.section", "-p", "levle", "0.5"], "declares no parameter 'levle'"),
        (["-p", "levle", "0.5"], "the nearest name is 'level'"),
        (["-p", "level", "0.5"], "declares the parameter 'section', but no value was passed"),
        (["--params", "level", "-p", "level", "0.5"], "'level' was passed twice"),
        (["--params", "noisy.section", "other.section"], "second parameter named 'section'"),
        (["--params", "noisy.section", "-p", "level", "O.5"], "'level' is 'O.5', but"),
        (["--params", "noisy.section", "-p", "level", "true"], "'level' is True, but"),
        (["--params", "noisy.section", "-p", "level", "[0.5]"], "-p takes single values"),
        (["--params", "level", "--params-file", "gone.yaml"], "gone.yaml"),
    ],
)
def test_wrong_parameters_stop_with_one_sentence(folder, capsys, arguments, message):
    assert main(["run", *TOY, str(FIXTURES / "noisy.ipynb"), "out/noisy.ipynb", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_notebook_without_parameters_takes_none(folder, capsys):
    assert main(["run", *TOY, str(FIXTURES / "raises.ipynb"), "out.ipynb", "-p", "tau", "1"]) == 1
    assert "declares no parameter 'tau'; there are none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, value",
    [("0.5", 0.5), ("1e-3", 1e-3), ("3", 3), ("true", True), ("null", None), ("no", "no")],
)
def test_command_line_values_read_as_yaml_1_2(text, value):
    scalar = notebook._scalar(text)
    assert scalar == value and type(scalar) is type(value)


def test_declared_reads_python_not_lines():
    source = 'a: int = 1\nb = c = {\n    "x": 2,\n}\nd = a + 1  # e = 5\nf"{a}"\nNONE = None'
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[cell])
    expected = {"a": 1, "b": {"x": 2}, "c": {"x": 2}, "d": None, "NONE": None}
    assert notebook.declared(nb) == expected
    nb.cells *= 2
    with pytest.raises(ValueError, match="2 cells tagged 'parameters'"):
        notebook.declared(nb)


# ---- running -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The noisy notebook executed twice, in a home with a stale kernel and a headless backend."""
    folder = tmp_path_factory.mktemp("executed")
    (folder / "toy.yaml").write_text(PARAMS)
    stale = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(
        json.dumps({"argv": ["/gone/python"], "display_name": "stale", "language": "python"})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("MPLBACKEND", "agg")
        assert KernelSpecManager().get_kernel_spec("python3").argv == ["/gone/python"]
        paths = [folder / "new" / "folder" / f"noisy-{run}.ipynb" for run in (1, 2)]
        for path in paths:
            source = str(FIXTURES / "noisy.ipynb")
            assert main(["run", *TOY, source, str(path), "--params", "level", "noisy.section"]) == 0
    return paths


def test_two_executions_give_the_same_bytes(executed):
    assert executed[0].read_bytes() == executed[1].read_bytes()


def test_output_folder_holds_the_outputs_only(executed):
    assert sorted(executed[0].parent.iterdir()) == executed


def test_kernel_is_this_interpreter_in_this_folder_with_these_parameters(executed):
    cells = notebook.read(executed[0]).cells
    section = {"name": "dlib", "rate": 1e-3, "on": True}
    folder = executed[0].parents[2]
    assert cells[3].outputs[0].text == f"0.5 {section} {sys.executable} {folder}\n"
    assert cells[2].id == "injected-parameters" and cells[3].id == "cell-03"


def test_normalised_outputs_keep_what_a_reader_wants(executed):
    nb = notebook.read(executed[0])
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


def test_a_raising_cell(folder, capfd):
    source = FIXTURES / "raises.ipynb"
    (folder / "out").mkdir()
    assert main(["run", *TOY, str(source), "out/weights-0.5.ipynb"]) == 1
    error = capfd.readouterr().err
    sentence = "ValueError: tau must be above 0, got -1; set weights.tau in params.yaml."
    last = f"error: {source}, cell 4 of 5 (Weights of cid): {sentence}\n"
    assert error.endswith("\n" + last)
    assert "a word on stderr" in error
    assert "\x1b" not in error
    kept = folder / "out" / "weights-0.5.failed.ipynb"
    assert list((folder / "out").iterdir()) == [kept]
    assert "got -1" in kept.read_text() and "never reached" in kept.read_text()


@pytest.mark.parametrize(
    "name, message",
    [("exits", "cell 2 of 3 (Leaves early): SystemExit"), ("dies", "the kernel died")],
)
def test_a_notebook_that_ends_early_is_no_success(folder, name, message):
    with pytest.raises(notebook.CellFailed) as failure:
        notebook.run(FIXTURES / f"{name}.ipynb", f"{name}.ipynb")
    assert message in str(failure.value)
    assert not (folder / f"{name}.ipynb").exists()
    assert (folder / f"{name}.failed.ipynb").exists()


def test_interrupting_leaves_nothing_behind(folder):
    before = folder / "out.ipynb"
    before.write_text("of an earlier run")
    scratch = folder / "t"
    scratch.mkdir()
    source = str(FIXTURES / "sleeps.ipynb")
    command = [sys.executable, "-m", "study.pipeline.notebook", "run", source, "out.ipynb", *TOY]
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
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert error.endswith("interrupted; nothing was written\n")
    assert before.read_text() == "of an earlier run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "kernel.pid", "out.ipynb", "t", "toy.yaml"
    ]  # fmt: skip
    assert list(scratch.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# ---- cleaning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES + CLEAN, ids=lambda path: path.stem)
def test_committed_notebooks_are_clean(path, capsys):
    assert main(["clean", "--check", str(path)]) == 0, capsys.readouterr().out


def test_the_study_has_notebooks():
    assert SOURCES


def test_dirty_is_named_and_cleaned_once(folder, capsys):
    original = (FIXTURES / "dirty.ipynb").read_text()
    Path("dirty.ipynb").write_text(original)
    Path("fine.ipynb").write_text(CLEAN[0].read_text())
    both = ["dirty.ipynb", "fine.ipynb"]
    assert main(["clean", "--check", *both]) == 1
    assert capsys.readouterr().out == "dirty.ipynb is not clean\n"
    assert Path("dirty.ipynb").read_text() == original
    assert main(["clean", *both]) == 0
    assert capsys.readouterr().out == "dirty.ipynb cleaned\n"
    cleaned = Path("dirty.ipynb").read_text()
    assert main(["clean", *both]) == 0 and main(["clean", "--check", *both]) == 0
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


def test_clean_says_whether_it_changed():
    nb = notebook.read(FIXTURES / "dirty.ipynb")
    assert notebook.clean(nb) is True
    assert notebook.clean(nb) is False


@pytest.mark.parametrize("text", ["", "[]", '{"nbformat": 3, "worksheets": []}'])
def test_what_is_no_notebook_is_named(folder, capsys, text):
    Path("broken.ipynb").write_text(text)
    assert main(["clean", "broken.ipynb"]) == 1
    assert "broken.ipynb is not a Jupyter notebook" in capsys.readouterr().err


# ---- rendering ---------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Collects (tag, attributes) with the standard library's parser, not the one under test."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_rendered_page_opens_from_disk(executed, tmp_path):
    (path,) = pages.render([executed[0]], tmp_path / "html")
    assert path == tmp_path / "html" / "noisy-1.html"
    text = path.read_text()
    tags = Tags(text).found
    names = {tag for tag, _ in tags}
    assert not names & {"script", "iframe", "object", "embed"}
    assert {"details", "table", "img"} <= names
    for tag, attributes in tags:
        assert attributes.get("src", "data:").startswith("data:")
        if tag == "link":
            assert attributes["href"].startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links == ["index.html", "https://example.org/page"]
    images = [attributes["alt"] for tag, attributes in tags if tag == "img"]
    assert images == ["Tables and figures"]
    assert "<title>Noisy outputs</title>" in text
    assert text.count("<summary>Parameters</summary>") == 1
    assert text.count("<summary>Parameters of this run</summary>") == 1
    assert "url(" not in text and "@import" not in text

    pages.render([executed[0]], tmp_path / "again")
    assert (tmp_path / "again" / "noisy-1.html").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "fetching",
    [
        "<script>alert(1)</script>",
        '<img src="https://example.org/face.png">',
        '<img src="figures/face.png">',
        '<link rel="stylesheet" href="https://example.org/style.css">',
        '<p style="background: url(https://example.org/face.png)">x</p>',
        "<style>@import 'https://example.org/style.css';</style>",
    ],
)
def test_render_refuses_what_needs_a_network(tmp_path, fetching):
    output = nbformat.v4.new_output("display_data", {"text/html": fetching})
    for cell in (
        nbformat.v4.new_code_cell("1", outputs=[output], execution_count=1),
        nbformat.v4.new_markdown_cell(f"# Title\n\n{fetching}"),
    ):
        nb = nbformat.v4.new_notebook(cells=[cell])
        source = tmp_path / "page.ipynb"
        source.write_text(notebook.dumps(nb))
        with pytest.raises(ValueError, match="page.ipynb would not open without a network"):
            pages.render([source], tmp_path / "html")
    assert not (tmp_path / "html").exists()


def test_widgets_and_scripts_fall_back_to_text(tmp_path):
    data = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "8a7b"},
        "application/javascript": "alert(1)",
        "text/plain": "fallback",
    }
    output = nbformat.v4.new_output("display_data", data)
    cell = nbformat.v4.new_code_cell("widget", outputs=[output], execution_count=1)
    source = tmp_path / "page.ipynb"
    source.write_text(notebook.dumps(nbformat.v4.new_notebook(cells=[cell])))
    (page,) = pages.render([source], tmp_path / "html")
    assert "fallback" in page.read_text() and "<script" not in page.read_text()


def test_page_escapes_its_title_only():
    text = pages.page("a < b & c", "<p>body</p>", header_html="<b>top</b>")
    assert "<title>a &lt; b &amp; c</title>" in text
    assert "<p>body</p>" in text and "<header><b>top</b></header>" in text
