"""The command line: one list of commands, one way to say an error; some 10 s, most of them imports."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from study import cli, commands
from study.methods.registry import METHODS
from study.pipeline import params

ROOT = Path(__file__).parents[2]


def python(*arguments, folder=ROOT):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_alone_it_lists_every_command_on_one_line(capsys, arguments):
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in commands.COMMANDS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert command.summary in line and len(line) <= 100


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_its_code_and_explains_itself(capsys, name):
    command = commands.COMMANDS[name]
    assert callable(getattr(importlib.import_module(command.module), command.function))
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert said.startswith(f"usage: python -m study {name} ") and command.summary in said


@pytest.mark.parametrize(
    "name, said",
    [
        ("parms", "(did you mean 'params'?); `python -m study` lists them"),
        ("qqq", "'qqq'; `python"),
    ],
)
def test_an_unknown_command_names_the_nearest(capsys, name, said):
    assert cli.main([name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no command {name!r}") and said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["params", "more"], "unrecognized arguments: more; see `python -m study params --help`"),
        (["stage"], "the following arguments are required: stage; see `python -m study stage --help`"),
        (["report", "biuld"], "invalid choice: 'biuld'"),
        (["distributed", "weights"], "see `python -m study distributed weights --help`"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_arguments_is_one_line_and_exits_with_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error, status, said",
    [
        (ValueError("task is wrong; mend it"), 1, "error: task is wrong; mend it\n"),
        (OSError(28, "No space left on device"), 1,
         "error: [Errno 28] No space left on device; free some space and run it again: what is done is kept\n"),
        (KeyboardInterrupt(), 130, "interrupted; what is done is kept\n"),
        (KeyboardInterrupt("data is as it was"), 130, "interrupted; data is as it was\n"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_its_status(monkeypatch, capsys, error, status, said):
    def fail(arguments):
        raise error

    monkeypatch.setattr(params, "main", fail)
    assert cli.main(["params"]) == status
    assert capsys.readouterr() == ("", said)


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(params, "main", lambda arguments: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["params"])


def test_a_command_gets_its_arguments_and_gives_its_status(monkeypatch):
    monkeypatch.setattr(params, "main", lambda arguments: len(arguments))
    assert cli.main(["params", "a", "b"]) == 2
    assert cli.main(["params"]) == 0


def test_every_method_is_listed_with_the_labels_it_uses(capsys):
    assert cli.main(["methods"]) == 0
    said = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"{name} ({method.title}): {method.description}\n" in said
    assert "oracle (Oracle): " in said and "    labels: class, identity\n" in said
    assert "    train.robust.afr_gamma: 0.5\n" in said


def test_a_command_imports_nothing_of_the_others():
    code = (
        "import sys\nfrom study import cli\nassert cli.main(['params']) == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
        "print(*sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    packages, modules = done.stdout.splitlines()
    assert not {"torch", "sklearn", "pandas", "scipy", "nbformat"} & set(packages.split())
    assert not {"study.pipeline.notebook", "study.pipeline.report"} & set(modules.split())


def test_it_runs_as_a_module(tmp_path):
    assert python("-m", "study", "params").returncode == 0
    done = python("-m", "study", "params", folder=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: params.yaml is missing in ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "old, new, rest",
    [
        ("study.pipeline.params", "params", ""),
        ("study.pipeline.notebook run", "stage", "data"),
        ("study.pipeline.notebook clean --check", "notebooks check", "a.ipynb b.ipynb"),
        ("study.pipeline.notebook", "notebooks", "--help"),
        ("study.pipeline.study", "run", "lfw-mouth"),
        ("study.faces.importers", "import", "lfw LFW"),
    ],
)
def test_a_command_of_the_last_version_names_its_new_one_and_runs_it(
    monkeypatch, capsys, old, new, rest
):
    called = []
    monkeypatch.setattr(cli, "main", lambda arguments: called.append(arguments) or 3)
    module, *words = old.split()
    monkeypatch.setattr(sys, "argv", ["x", *words, *rest.split()])
    with pytest.raises(SystemExit) as stop:
        commands.run_renamed(module)
    assert stop.value.code == 3 and called == [[*new.split(), *rest.split()]]
    assert capsys.readouterr().err == f"warning: `python -m {old}` is now `python -m study {new}`\n"


def test_modules_of_the_last_version_still_run_as_commands(tmp_path):
    done = python("-m", "study.pipeline.params", folder=tmp_path)
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert warning == "warning: `python -m study.pipeline.params` is now `python -m study params`"
    assert error.startswith("error: params.yaml is missing in ")
    done = python("-m", "study.faces.people", "--help", folder=tmp_path)  # a package
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m study people ")


def test_every_command_of_the_last_version_leads_to_one_of_this():
    for old, new in commands.RENAMED.items():
        assert new.split()[0] in commands.COMMANDS
        module = importlib.util.find_spec(old.split()[0])
        assert module is not None
