"""The command that renders the virtual people and writes them as a data set."""

from __future__ import annotations

import subprocess
import sys

import pytest

from people import records as made
from people.head import load_head
from study import cli
from study.faces.dataset import read_faces


@pytest.fixture(scope="module")
def head():
    pytest.importorskip("anny")
    return load_head()


def test_command_without_the_package_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "anny", None)
    monkeypatch.setattr(made, "load_head", load_head.__wrapped__)
    assert cli.main(["people", str(tmp_path / "set"), "--identities", "1", "--images", "2"]) == 1
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_command_writes_a_valid_data_set_the_same_for_any_number_of_workers(head, tmp_path):
    folder = tmp_path / "set"
    # As a command, with workers: they cannot import what stands in the __main__ of a package.
    options = "--seed 5 --identities 2 --images 2 --size 64 --workers 2".split()
    command = [sys.executable, "-m", "people", str(folder), *options]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stdout == ""
    faces = read_faces(folder)
    assert len(faces) == 4 and faces.image(3).shape == (64, 64, 3)
    alone = [record["image"]["bytes"] for record in made.records(2, 2, seed=5, size=64)]
    assert faces.encoded.to_pylist() == alone
    assert faces.card["attributes"] == list(made.ATTRIBUTES)
    assert faces.card["demographics"] == list(made.DEMOGRAPHICS)
    assert faces.card["seed"] == 5 and faces.card["counts"]["identities"] == 2


def test_command_reports_bad_arguments_in_one_line(head, tmp_path, capsys):
    assert cli.main(["people", str(tmp_path / "set"), "--images", "3"]) == 1
    error = capsys.readouterr().err
    assert "odd" in error and error.count("\n") == 1
