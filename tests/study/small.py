"""A tiny study in a copy of the repository, for the tests that need a finished one.

The data are nine people of the embedded data set, so detection, alignment and embedding are real.
One finished study is made per test run; every test file that asks for one gets a copy.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from jupyter_core.utils import run_sync
from ruamel.yaml import YAML

from study.faces.dataset import read_faces, write_faces
from study.pipeline import notebook, params, stages
from tests.study.forks import Forks

ROOT = Path(__file__).parents[2]
PEOPLE = 9
IMAGES = 10  # of each class of a person
STAGES = ["data", "embed", "views", "weights", "train", "evaluate", "factors", "proxies", "breadth",
          "ablate", "paper", "report", "publish"]  # fmt: skip
DRAWN = ["paper", "report", "publish"]
COMPUTING = [stage for stage in STAGES if stage not in DRAWN]
METHODS = ["erm", "cid", "cid-power", "cid-knn", "surprise", "jtt", "cluster-dro", "xrm", "oracle",
           "group-dro", "last-layer"]  # fmt: skip
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
COMMAND = [sys.executable, "-m", "study"]
BUILD_REPORT = [sys.executable, "-m", "study", "report", "build"]
yaml = YAML()

needs_data = pytest.mark.skipif(
    not (ROOT / "data" / "card.json").exists(), reason="needs the data set: run `make data`"
)


@cache
def forks() -> Forks:
    """What starts the programs of this test process; it lives as long as this process."""
    started = Forks()
    atexit.register(started.close)
    return started


def environment(folder) -> dict[str, str]:
    """Variables of a process that finds this interpreter's programs and the folder's own packages."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(folder)}


def call(folder, *command, check=True, forked=True, **variables):
    """Run a command of this environment in a folder; returns what it wrote.

    With ``forked``, Python and DVC start as forks (:mod:`tests.study.forks`), also where the command or
    DVC starts them.
    """
    known = environment(folder) | variables
    if forked:
        known["PATH"] = os.pathsep.join([str(Path(forks().python).parent), known["PATH"]])
        command = [forks().python if word == sys.executable else word for word in command]
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output
    return output if check else (done.returncode, output)


def edit(folder, **values):
    """Set dotted keys of params.yaml, keeping the rest as it is."""
    tree = yaml.load(folder / "params.yaml")
    for key, value in values.items():
        *sections, last = key.split("__")
        section = tree
        for name in sections:
            section = section[name]
        section[last] = value
    yaml.dump(tree, folder / "params.yaml")


def locked(folder) -> dict[str, str]:
    """Hash of every output that dvc.lock records."""
    recorded = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in recorded.values() for out in stage["outs"]}


def ran(output: str) -> list[str]:
    """The stages that DVC says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def parameters(stage: str) -> dict:
    """What the notebook of a stage gets from params.yaml, in the current folder."""
    return notebook.stage_parameters(stage, params.read())


@contextlib.contextmanager
def forked_kernel(packages):
    """A kernel that is a fork and finds the packages of a folder, in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(packages))
        patch.setattr(sys, "executable", forks().python)
        with notebook.start_kernel() as kernel:
            yield kernel


def execute(folder, *names: str) -> None:
    """Execute the notebooks of stages one after another in one kernel, without DVC.

    The kernel finds the folder's own packages, as a stage's does, and is emptied in between. It is a fork.
    """
    with contextlib.chdir(folder), forked_kernel(folder) as kernel:
        for name in names:
            source, output = stages.notebook_of(name), f"build/notebooks/{name}.ipynb"
            code = stages.code_digests(stages.read_stages()[name]["deps"])
            how = {"kernel": kernel, "quiet": True, "code": code}
            notebook.run_notebook(source, output, parameters(name), **how)
            run_sync(kernel.empty)()


def execute_here(folder, *names: str) -> None:
    """Execute the code of stages' notebooks in this process, with its packages and without DVC."""
    with contextlib.chdir(folder):
        for name in names:
            exec(stages.code_of(stages.notebook_of(name)), parameters(name))


# A method of the tests alone: one file, found by all stages.
NEWCOMER = '''
"""Every other image weighs more."""

from dataclasses import dataclass

import numpy as np

from cid.settings import Options, Positive
from study.methods.base import Method


@dataclass(frozen=True)
class NewcomerSettings(Options):
    newcomer_weight: Positive = 3.0


def weigh(sample, settings):
    weights = np.where(np.arange(len(sample.labels)) % 2, settings.newcomer_weight, 1.0)
    return weights / weights.mean()


NEWCOMER = Method(
    name="newcomer",
    title="The newcomer",
    colour="#123456",
    uses=("class",),
    summary="every other image weighs more",
    source="the tests",
    weigh=weigh,
    weigh_settings=NewcomerSettings,
)
'''


def small_study(folder):
    """Make a folder a fresh repository with the working tree's files and a tiny data set."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (
            not name.startswith(("remote/", "reports/", "latest/", "data.dvc", "dvc.lock"))
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
        proxies__noise=[0.4], proxies__zooms=[1.1], proxies__level=0.8, proxies__controls=["pixels"],
        ablations={"tau": {"setting": "weights.tau", "values": [0.01, "auto"]}},
    )  # fmt: skip
    # Two kept studies: one that differs in its name alone, and one of a network and few methods.
    named = yaml.load(folder / "params.yaml") | {"study": "virtual-people"}
    yaml.dump(named, folder / "studies" / "virtual-people.yaml")
    network = named["train"] | {"model": "cnn", "network": {"epochs": 1, "jtt_epochs": 1}}
    short = {"study": "celeba-smiling-8", "methods": ["erm", "cid", "oracle"], "train": network}
    yaml.dump(named | short, folder / "studies" / "celeba-smiling-8.yaml")
    call(folder, "git", "add", "-A")
    call(folder, *GIT, "commit", "-qm", "the code")


def finished_study(factory):
    """A copy of the small study after one finished `dvc repro`, which all processes of a test run share.

    ``factory`` is pytest's ``tmp_path_factory``.
    """
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
