"""Inputs of ordinary days: settings, folders and machines that are not as they should be, each told
apart before anything runs, and what to do about it."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from study import cli
from study.faces.dataset import write_faces
from study.faces.network_files import pinned
from study.pipeline import cost, notebook, params, publish, report, reproduced, stages
from tests.study.pipeline.test_params import put
from tests.study.pipeline.test_report import study as study  # a fixture

ROOT = Path(__file__).parents[3]
TREE = YAML(typ="safe").load(ROOT / "params.yaml")


# ---- parameters --------------------------------------------------------------------------------


def ablation(setting, *values) -> dict:
    return {"ablations": {"new": {"setting": setting, "values": list(values)}}}


NATURAL = {"bias.kind": "natural", "bias.levels": [0.0], "ablations": {}}


@pytest.mark.parametrize(
    "changes, said",
    [
        *[({key: value}, f"{key} is {value}; it must be a number")
          for key in ("weights.tau", "weights.power", "weights.temper", "weights.rarity",
                      "weights.surprise", "weights.posterior_tau", "train.l2")
          for value in (math.inf, math.nan)],
        ({"train.robust.tilt": math.inf}, "train.robust.tilt is inf; it must be a number above 0, 1e30 at most"),
        ({"train.robust.alpha": math.nan}, "train.robust.alpha is nan; it must be a number in (0, 1]"),
        ({"bias.unseen_share": math.nan}, "bias.unseen_share is nan; it must be a number"),
        ({"bias.levels": [0.0, math.nan]}, "bias.levels[1] is nan; it must be a number from 0 to 1"),
        ({"proxies.noise": [0.1, math.inf]}, "proxies.noise[1] is inf; it must be a number above 0"),
        ({"proxies.zooms": [math.inf]}, "proxies.zooms[0] is inf; it must be a number from 0.1 to 10"),
        ({"proxies.level": math.nan}, "proxies.level is nan; it must be a number from 0 to 1"),
        ({"protocol.detectable": {"accuracy": math.inf, "minority_accuracy": 1.0}}, "accuracy is inf"),
        (ablation("weights.tau", 0.1, math.inf), "ablations.new.values: weights.tau is inf; it must be"),
        (ablation("bias.levels", [0.0], [0.5]), "ablations.new.setting is bias.levels, but an ablation has one"),
        (ablation("train.model", "linear"), "ablations.new.setting is train.model, but an ablation is of linear"),
        (ablation("weights.tau", 0.1, 0.2) | {"ablation.methods": ["erm", "surprise", "oracle"]},
         "ablations.new.setting is weights.tau, which no method of ablation.methods reads, so its figure would"),
        (ablation("weights.local_scaling", "no"), "ablations.new.values: weights.local_scaling is 'no'; it must be true or"),
        (ablation("ablation.level", 0.5), "ablations.new.setting 'ablation.level' is unknown"),
        (ablation("weights.tau", 0.1, "auto", 0.1), "ablations.new.values has 0.1 twice; drop one"),
        (ablation("train.l2", 1, 1.0), "ablations.new.values has 1.0 twice; drop one"),
        ({"ablations": {"settings": {"setting": "weights.tau", "values": [1]}}}, "name this one otherwise"),
        ({"ablations": {n: {"setting": "weights.tau", "values": [1]} for n in ("a", "A")}},
         "ablations.a and A would share a file on some disks; rename one"),
        ({"ablations": {"Settings": {"setting": "weights.tau", "values": [1]}}}, "name this one otherwise"),
        ({"proxies.zooms": [0.9, 0.90000001]}, "proxies.zooms names a zoom twice"),
        ({"proxies.zooms": [1e-300]}, "proxies.zooms[0] is 1e-300; it must be a number from 0.1 to 10"),
        ({"train.l2": 1e300}, "train.l2 is 1e+300; it must be a number above 0, 1e30 at most"),
        ({"proxies.noise": [1, 1.0]}, "proxies.noise names a length twice"),
        ({"proxies.noise": [1e308]}, "proxies.noise[0] is 1e+308; it must be a number above 0, 1e6 at most"),
        ({"breadth.tasks": ["smiling", "smiling"]}, "breadth.tasks names a task twice"),
        ({"breadth.kinds": ["longtail", "longtail"]}, "breadth.kinds names a kind twice"),
        ({"seeds": 10**12}, "seeds is 1000000000000; it must be a whole number of at least 2, 10,000 at most"),
        ({"bootstrap": 10**15}, "it must be a whole number of at least 20, 1e6 at most"),
        ({"study": "index.html"}, "study is index.html, as is the list of all studies; name it otherwise"),
        ({"weights.tau": 1e-10}, "weights.tau is 1e-10; it must be a number from 1e-9 to 1e9, or auto"),
        ({"weights.power": 1e7}, "weights.power is 10000000.0; it must be a number from 0 to 1e6"),
        ({"weights.surprise": -1}, "weights.surprise is -1; it must be a number from 0 to 1e6, or auto"),
        ({"methods": ["erm"]}, "methods holds erm alone; name a method to compare with it"),
        (NATURAL | {"methods": ["erm", "cid"]}, "under which cid is compared with balanced, as it balances classes"),
        (NATURAL | {"breadth.kinds": ["natural"]}, "proxies.level: bias level 0.9 of the kind natural"),
        (NATURAL | {"breadth.kinds": ["natural"], "proxies.level": 0}, "ablation.level: bias level 0.9 of"),
        (ablation("bias.kind", "longtail", "natural") | {"bias.levels": [0.0]}, "new.values: bias level 0.9 of"),
        ({"bias.levels": [0.0, 0.8, 0.81]}, "bias.levels: bias levels 0.8 and 0.81 both leave a person 2 of 20"),
        ({"bias.kind": "longtail", "bias.images_per_identity": 7}, "under correlation it must be even"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)  # fmt: skip
def test_settings_that_could_not_work_are_refused_when_they_are_read(changes, said):
    tree = copy.deepcopy(TREE)
    for key, value in changes.items():
        put(tree, key, value)
    with pytest.raises(ValueError) as error:
        params.check(tree)
    assert said in str(error.value) and str(error.value).startswith("params.yaml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        NATURAL | {"breadth.kinds": ["natural"], "proxies.level": 0, "ablation.level": 0.0},
        ablation(
            "bias.images_per_identity", 6, 12, 20
        ),  # whose levels of the study would clash at 6
        ablation("bias.people", 10, None),
        {"bias.kind": "longtail", "bias.levels": [0.0, 0.8, 0.81], "breadth.kinds": ["longtail"]},
    ],
)
def test_settings_that_work_are_let_through(changes):
    tree = copy.deepcopy(TREE)
    for key, value in changes.items():
        put(tree, key, value)
    params.check(tree)


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "params.yaml is missing in "),
        (b"study: [a\ntask: b\n", "params.yaml, line 2: "),
        (b"seeds: 2\nseeds: 3\n", 'params.yaml, line 2: found duplicate key "seeds"'),
        (
            "study: caf\xe9\n".encode("latin-1"),
            "params.yaml: unacceptable character #x-001: incomplete UTF-8",
        ),
        (b"", "params.yaml holds no keys"),
        (b"[" * 3000, "params.yaml, line 2: did not find expected node content"),
    ],
)
def test_a_file_of_parameters_that_is_none_is_named_with_the_line(
    tmp_path, monkeypatch, capsys, content, said
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("params.yaml").write_bytes(content)
    assert cli.main(["params"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_folder_that_dvc_cannot_work_in_is_told_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert cli.main(["params"]) == 1 and "has no folder .dvc" in capsys.readouterr().err
    Path(".dvc").mkdir()
    for command in ("params", "cost"):
        assert cli.main([command]) == 1
        said = capsys.readouterr().err
        assert "is no git repository" in said and "dvc config --local core.no_scm true" in said
    Path(".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert cli.main(["params"]) == 0
    Path(".dvc/config.local").unlink()
    Path(".git").mkdir()
    assert cli.main(["params"]) == 0
    with pytest.raises(ValueError, match="dvc.yaml is missing in .*; run this in the root"):
        stages.read_stages()


# ---- the stage `data` --------------------------------------------------------------------------


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """``faces(people, **attributes)`` makes a data set of 16 images a person; an attribute's function
    of the person's and the image's number gives its labels."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def make(people: int, **attributes) -> None:
        def record(who, number):
            path = tmp_path / "image.png"
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
            image = {"bytes": path.read_bytes(), "path": f"{who}-{number}"}
            labels = {name: int(rule(who, number)) for name, rule in attributes.items()}
            return {"image": image, "identity": f"p{who}"} | labels

        records = [record(who, number) for who in range(people) for number in range(16)]
        about = {"name": "made", "source": "s", "licence": "l"}
        card = about | {"attributes": list(attributes), "demographics": []}
        write_faces("data", records, card)

    return make


def half(who, number):
    return number % 2


def data_stage(**changes) -> None:
    """The code of notebooks/compute/data.ipynb, with its parameters, in the current folder."""
    tree = copy.deepcopy(TREE) | {"data": None, "task": "smiling", "seeds": 2, "ablations": {}}
    few = {
        "levels": [0.0, 0.5],
        "images_per_identity": 8,
        "test_per_class": 2,
        "unseen_share": 0.25,
    }
    tree["bias"] |= few
    tree["proxies"]["level"] = tree["ablation"]["level"] = 0.5
    tree["breadth"] = {"tasks": ["smiling"], "kinds": ["correlation"]}
    for key, value in changes.items():
        put(tree, key.replace("__", "."), value)
    keys = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["data"]["params"]
    exec(stages.code_of(ROOT / "notebooks/compute/data.ipynb"), notebook.pick(tree, keys))


@pytest.mark.parametrize(
    "people, changes, said",
    [
        (8, {"task": "smilling"}, r"no attribute 'smilling' \(did you mean 'smiling'\?\); it has"),
        (8, {"breadth__tasks": ["smiling", "glases"]},
         r"breadth, glases under correlation: .* \(did you mean 'glasses'\?\)"),
        (8, {"breadth__tasks": ["glasses"]},  # constant within people
         "breadth, glasses under correlation: 0 of 8 .*none of the 8 people has images of both classes"),
        (8, {"task": "glasses"}, "bias: 0 of 8 identities are usable .*none of the 8 people has images of"),
        (8, {"bias__images_per_identity": 20},
         "bias: 0 of 8 .*with images_per_identity 8 and test_per_class 2: 8 people"),
        (8, {"breadth": {"tasks": ["uneven"], "kinds": ["longtail"]}},
         "breadth, uneven under longtail: 0 of 8 identities are usable"),
        (8, {"bias__unseen_share": 0}, "bias.unseen_share is 0, which keeps nobody out of training"),
        (2, {}, "bias.unseen_share is 0.25, which keeps nobody out of training"),
        (2, {"bias__unseen_share": 0.5}, "bias: 2 of 2 identities are usable .*at least 2 for training"),
        (8, {"proxies__level": 1.0}, "proxies: 0 of 8 identities are usable"),
        (8, {"weights__neighbours": 48}, "weights.neighbours is 48, but a training set has 48 images of bias; take fewer"),
        (8, {"bias__images_per_identity": 10**9},  # typed by mistake: soon told all the same
         "bias: 0 of 8 .*with images_per_identity 8 and test_per_class 2: 8 people"),
        (1, {}, "bias: 1 of 1 identities are usable .*at least 2 for training"),
    ],
)  # fmt: skip
def test_what_the_data_do_not_allow_is_said_before_anything_is_embedded(
    faces, people, changes, said
):
    glasses = [lambda who, number: number == 0, lambda who, number: who % 2][people > 1]
    faces(
        people, smiling=half, glasses=glasses, uneven=lambda who, number: number < 6 + who % 2 * 4
    )
    with pytest.raises(ValueError, match=said):
        data_stage(**changes)


def test_what_the_data_allow_passes(faces, capsys):
    faces(8, smiling=half)
    data_stage(ablations={"n": {"setting": "bias.people", "values": [4, None]}})
    assert capsys.readouterr().out.startswith("128 images, 8 of 8 people usable for smiling.\n")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"breadth": {"tasks": ["smiling", "uneven"], "kinds": ["longtail"]}},
         "breadth, uneven under longtail: 0 of 8 identities are usable"),
        ({"ablations": {"n": {"setting": "bias.people", "values": [4, 9]}}},
         "ablations.n, 9: bias.people is 9; it must be null (all) or a number from 2 to 8"),
        ({"ablation__level": 1.0, "ablations": {"n": {"setting": "weights.tau", "values": [1]}}},
         "ablation: 0 of 8 identities are usable"),
        ({"ablations": {"k": {"setting": "weights.neighbours", "values": [5, 90]}}},
         "ablations.k, 90: weights.neighbours is 90, but a training set has 48 images"),
    ],
)  # fmt: skip
def test_what_the_data_do_not_allow_of_variations_is_left_out_with_a_line(
    faces, capsys, changes, said
):
    faces(8, smiling=half, uneven=lambda who, number: number < 6 + who % 2 * 4)
    data_stage(**changes)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(f"Will be left out: {said}")] == lines[-1:]


# ---- what a run costs --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def lacking(*names, state="not in cache") -> dict:
    """What `dvc status` says of stages of which all outputs are gone."""
    known = stages.read_stages()
    built = {dep for s in known.values() for dep in s["deps"] if dep.startswith("build/")}
    return {
        name: [
            {"changed deps": {d: "deleted" for d in known[name]["deps"] if d in built}},
            {"changed outs": {out: state for out in known[name]["outs"] if isinstance(out, str)}},
        ]
        for name in names or known
    }


def test_what_would_run_is_known_without_any_file_of_earlier_stages(folder):
    every = list(stages.read_stages())
    assert cost.outdated({}) == []
    assert cost.outdated(lacking()) == every  # a fresh clone
    assert cost.outdated(lacking(state="deleted")) == []  # all is in DVC's cache
    level = {"weights": [{"changed deps": {"params.yaml": {"bias": "modified"}}}]}
    after = [
        s
        for s in every
        if s not in ("data", "embed", "views", "factors", "proxies", "breadth", "ablate")
    ]
    assert cost.outdated(level) == after
    assert cost.outdated(lacking(state="deleted") | level) == after
    assert cost.outdated({"publish": ["changed command"], "data.dvc": [{"x": {"y": "z"}}]}) == [
        "publish"
    ]


def test_dvcs_own_words_are_cut_to_what_is_wrong(folder, monkeypatch):
    said = "ERROR: Unable to acquire lock.\n\nHaving any troubles? Hit us up at https://dvc.org/support\n"
    failed = subprocess.CompletedProcess([], 255, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *args, **how: failed)
    with pytest.raises(ValueError) as error:
        cost.cost()
    assert str(error.value) == "DVC cannot say what is out of date: Unable to acquire lock."


@pytest.mark.parametrize(
    "command, said",
    [
        (lambda: cli.main(["stage", "train"]), "build/data is missing; run `dvc repro train`, which makes it first"),
        (lambda: cli.main(["stage", "report"]), "build/data is missing; run `dvc repro report`"),
        (lambda: cli.main(["publish"]), "build/report/params.yaml is missing; run `dvc repro`, which builds"),
        (lambda: cli.main(["report", "headline"]), "virtual-people holds no report yet; run `dvc repro`"),
        (lambda: cli.main(["run", "photos"]), "card.json is no card of a data set with a name; fetch the data"),
        (lambda: cli.main(["cost"]), "No such file or directory: 'dvc'; dvc is installed with the packages of"),
    ],
)  # fmt: skip
def test_a_command_that_comes_too_early_is_told_what_to_run_first(
    folder, monkeypatch, capsys, command, said
):
    as_git(folder, monkeypatch, None)
    for name in (".dvc", ".git", "data", "studies"):
        Path(name).mkdir()
    Path("data/card.json").write_text("{}")
    shutil.copy("params.yaml", "studies/photos.yaml")
    assert command() == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_card_without_counts_costs_no_estimate(folder, monkeypatch):
    Path("data").mkdir()
    Path("data/card.json").write_text("{}")
    done = subprocess.CompletedProcess([], 0, json.dumps(lacking()), "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **how: done)
    assert "embed, views" in cost.cost() and "faces" not in cost.cost()


@pytest.mark.parametrize("text", ["", "stages: [", "stage: {}"])
def test_a_dvc_yaml_that_holds_no_stages_is_told_how_to_restore_it(folder, text):
    Path("dvc.yaml").write_text(text)
    with pytest.raises(ValueError, match="dvc.yaml holds no stages; restore it with `git checkout"):
        stages.read_stages()


# ---- where a report comes from, and what its reader must know first -----------------------------


def as_git(folder: Path, monkeypatch, program: str | None) -> None:
    """Put a program of our own in the place of git, or nothing."""
    places = folder / "programs"
    places.mkdir()
    if program:
        (places / "git").write_text(f"#!/bin/sh\n{program}\n")
        (places / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(places))


@pytest.mark.parametrize(
    "program, said",
    [
        (None, "git is not installed"),
        ("echo \"fatal: detected dubious ownership in repository at '/x'\" >&2; exit 128",
         "another user's, which git refuses to read; allow it by git config --global --add safe.directory"),
        ("echo 'fatal: not a git repository' >&2; exit 128", "not in a repository"),
        ("exit 0", "no commit of its repository holds the code"),  # unpacked inside another's
    ],
)  # fmt: skip
def test_a_report_without_a_commit_says_why_on_its_front_and_on_the_screen(
    study, tmp_path, monkeypatch, capsys, program, said
):
    as_git(tmp_path, monkeypatch, program)
    text = report.build(study).read_text()
    made = json.loads((reproduced.RUN / reproduced.FILE).read_text())
    assert made["commit"] is None and said in made["no_commit"]
    assert f"warning: This report names no commit of its code: {made['no_commit']}." in (
        capsys.readouterr().err
    )
    front, made_of = text.split("<nav", 1)
    assert said in unescape(front) and said in unescape(made_of)
    publish.publish()
    assert ("compare with." if program == "exit 0" else said) in report.headline(study)[0]


def test_a_report_with_a_commit_has_no_warning(study, monkeypatch, capsys):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    for number, key in enumerate(("user.name", "user.email")):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", "a@example.org")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run(["git", *command], check=True)
    assert "Warning" not in report.build(study).read_text().split("<nav")[0]
    assert "no_commit" not in json.loads((reproduced.RUN / reproduced.FILE).read_text())
    assert capsys.readouterr().err == ""


def test_faces_that_were_not_found_are_on_the_front(study, capsys):
    about = json.loads(Path("build/evaluate/about.json").read_text())
    about["proxy"]["warning"] = "Only 40.0% of the faces were found."
    Path("build/evaluate/about.json").write_text(json.dumps(about))
    assert "Only 40.0% of the faces" in report.build(study).read_text().split("<nav")[0]
    assert "warning: Only 40.0% of the faces" in capsys.readouterr().err


# ---- machines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, status, said",
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), 1, "; free some space and run it again"),
        (OSError(errno.EROFS, "Read-only file system", "a"), 1, "; work in a folder that can be written to"),
        (ValueError("cell 3: OSError: [Errno 28] No space left on device"), 1, "; free some space and run"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), 1, "error: [Errno 2] No such file: 'a'\n"),
        (KeyboardInterrupt(), 130, "interrupted; what is done is kept\n"),
    ],
)  # fmt: skip
def test_a_full_disk_a_place_that_is_read_only_and_an_interrupt_are_one_sentence(
    monkeypatch, capsys, error, status, said
):
    def fail(arguments):
        raise error

    monkeypatch.setattr(params, "main", fail)
    assert cli.main(["params"]) == status
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_computed(
    folder, monkeypatch, capsys
):
    shutil.copytree(ROOT / "notebooks/compute", "notebooks/compute")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("build/notebooks"))
    assert cli.main(["stage", "data"]) == 1
    assert re.fullmatch(
        r"error: .*Permission denied: 'build/notebooks'; work in a folder .*\n",
        capsys.readouterr().err,
    )


def test_a_disk_that_is_full_is_what_is_said_and_not_that_the_notebook_was_not_kept(
    folder, monkeypatch
):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(notebook, "write_text", full)
    source = notebook.nbformat.v4.new_notebook()
    source.cells = [
        notebook.nbformat.v4.new_code_cell("raise OSError(28, 'No space left on device')")
    ]
    Path("fills.ipynb").write_text(notebook.dumps(source))
    with pytest.raises(
        notebook.CellFailed, match=r"cell 1 of 1: OSError: \[Errno 28\] No space left"
    ):
        notebook.run_notebook("fills.ipynb", "out/fills.ipynb")
    notebook.record_time("fills", 1.0)  # how long it took is not worth a stage


@pytest.mark.parametrize(
    "name, transport", [("k" * 80, "ipc"), ("é" * 80, "tcp"), ("k" * 120, "tcp")]
)
def test_sockets_go_where_their_names_fit_in_bytes(name, transport):
    assert notebook._sockets(f"/{name}")["transport"] == transport


def test_a_kernel_starts_in_a_temporary_folder_of_a_long_name(folder, monkeypatch):
    place = folder / ("é" * 60)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    source = notebook.nbformat.v4.new_notebook()
    source.cells = [notebook.nbformat.v4.new_code_cell("print(1)")]
    Path("prints.ipynb").write_text(notebook.dumps(source))
    notebook.run_notebook("prints.ipynb", "out/prints.ipynb")
    assert notebook.read_notebook("out/prints.ipynb").cells[0].outputs[0].text == "1\n"


def test_a_driver_that_is_too_old_fails_no_test():
    warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
    with pytest.raises(UserWarning):
        warnings.warn("anything else", stacklevel=1)


def test_a_network_that_a_queued_experiment_lacks_is_not_to_be_put_where_it_will_be_gone(
    tmp_path, monkeypatch
):
    name = "networks/own.onnx@0123456789ab"
    for folder, said in (
        (tmp_path, "put the network there"),
        (tmp_path / ".dvc/tmp/exps/standalone/x", "run it without --queue and --temp"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        with pytest.raises(FileNotFoundError, match=said):
            pinned(name)
