"""Running a kept study: params.yaml is lent to it, and put back whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study import cli
from study.pipeline import study

ROOT = Path(__file__).parents[3]
OWN = (ROOT / "params.yaml").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two kept studies, and a `dvc` that says which parameters it found."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("# mine\n" + OWN)
    for name in ("studies", ".dvc", ".git"):
        Path(name).mkdir()
    Path("studies/fewer.yaml").write_text(OWN.replace("seeds: 20", "seeds: 2", 1))
    Path("studies/photos.yaml").write_text(OWN.replace("data: virtual-people", "data: lfw", 1))
    Path("studies/wrong.yaml").write_text(OWN.replace("rarity:", "rarety:", 1))
    Path("data").mkdir()
    Path("data/card.json").write_text(json.dumps({"name": "virtual-people"}))
    Path("bin").mkdir()
    dvc = Path("bin/dvc")
    dvc.write_text(
        '#!/bin/sh\necho $$ > pid; cp params.yaml found; [ "$NAP" ] && exec sleep "$NAP"; exit "${STATUS:-0}"\n'
    )
    dvc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def mine() -> bool:
    return Path("params.yaml").read_text() == "# mine\n" + OWN and not study.ASIDE.exists()


@pytest.mark.parametrize("status", [0, 3])
def test_a_study_runs_with_its_own_parameters(folder, monkeypatch, status):
    monkeypatch.setenv("STATUS", str(status))
    assert cli.main(["run", "fewer"]) == status
    assert Path("found").read_text() == Path("studies/fewer.yaml").read_text()
    assert mine()


def test_without_a_name_it_runs_the_parameters_at_hand(folder, monkeypatch):
    monkeypatch.setenv("STATUS", "3")
    assert cli.main(["run"]) == 3
    assert Path("found").read_text() == Path("params.yaml").read_text() and mine()


@pytest.mark.parametrize(
    "name, said",
    [
        ("fwer", "does not exist (did you mean 'fewer'?); there are fewer, photos, wrong"),
        ("../params", "does not exist"),
        ("photos", "is of the data set 'lfw', but data/ holds 'virtual-people'; import it first"),
        ("wrong", "studies/wrong.yaml: weights.rarety is unknown"),
    ],
)
def test_what_cannot_run_is_said_before_anything_moves(folder, capsys, name, said):
    assert cli.main(["run", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error
    assert mine() and not Path("found").exists()


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_parameters_are_put_back_whatever_happens(folder, kill):
    process = subprocess.Popen(
        [sys.executable, "-m", "study", "run", "fewer"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NAP": "60"},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not Path("found").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(kill)
    process.wait(timeout=30)
    if kill == signal.SIGKILL:  # nothing can be done then; the next run does it
        os.kill(int(Path("pid").read_text()), signal.SIGKILL)
        assert not mine()
        assert cli.main(["run", "fewer"]) == 0
    else:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[kill]
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path("pid").read_text()), 0)
    assert mine()


def test_committed_studies_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in study.STUDIES.glob("*.yaml"):
        study.params.read(path)
