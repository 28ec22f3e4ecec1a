"""Kept studies: put over their base, run with params.yaml lent to them, and fixed by their content."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from study import cli
from study.faces.tasks import classes_of
from study.methods.registry import (
    METHODS,
    all_fit_settings,
    all_weigh_settings,
    of_two_classes,
    training_needs,
    training_weights,
)
from study.pipeline import git, kept, params, protocols, stages, study

ROOT = Path(__file__).parents[3]
OWN = (ROOT / "params.yaml").read_text()
STUDIES = kept.names(ROOT / "studies")
ROWS = protocols.read(ROOT / protocols.TABLE)
yaml = YAML(typ="safe")
NEW = """\
# What this study is about.

base: base-1
data: virtual-people
protocol: {status: confirmatory, note: nothing was known, detectable: {accuracy: 1.0, minority_accuracy: 2.0}}
seeds: 3
weights: {power: 3.0}
train: {robust: {alpha: 0.5}}
ablations:
  tau: {setting: weights.tau, values: [0.01, auto]}
"""


@cache
def _resolved(name: str) -> dict:
    return kept.resolve(name, ROOT / "studies")


def resolved(name: str) -> dict:
    """The parameters of a committed study."""
    return copy.deepcopy(_resolved(name))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Kept studies, and a `dvc` that keeps the parameters it found and makes an empty report."""
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
        f'#!/bin/sh\ncd "$PWD"; echo $$ > {tmp_path}/pid; cp params.yaml {tmp_path}/found\n'
        'mkdir -p build/report; cp params.yaml build/report; echo "{}" > build/report/provenance.json\n'
        '[ "$NAP" ] && exec sleep "$NAP"; exit "${STATUS:-0}"\n'
    )
    dvc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def overlay(folder):
    """Writes one more kept study, ``new``, over the committed base; returns its parameters."""
    shutil.copy(ROOT / "studies/base-1.yaml", "studies")

    def write(text: str = NEW, name: str = "new") -> dict:
        Path(f"studies/{name}.yaml").write_text(text)
        return kept.resolve(name)

    return write


def mine() -> bool:
    """Whether params.yaml is the user's own, byte for byte."""
    return Path("params.yaml").read_text() == "# mine\n" + OWN


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


def test_a_study_over_a_base_runs_with_all_parameters_and_their_comments(overlay):
    tree = overlay()
    assert cli.main(["run", "new"]) == 0
    found = Path("found").read_text()
    assert yaml.load(found) == tree and mine()
    assert found.startswith("# What this study is about.\n\nstudy: new")
    assert "seeds: 3 # training sets drawn per bias level" in found
    assert "people: null # how many people take part" in found


def test_a_study_of_the_values_of_params_yaml_keeps_its_comments(folder):
    Path("studies/same.yaml").write_text(OWN)
    assert cli.main(["run", "same"]) == 0
    assert Path("found").read_text() == "# mine\n" + OWN and mine()


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


def heed_signals() -> None:
    """As a process in the foreground does, whatever started the tests: ``&`` and nohup have signals ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(*words: str, **variables: str) -> subprocess.Popen:
    """Start ``python -m study ...``, and wait until its DVC runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "study", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NAP": "600"} | variables,
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_signals,
    )
    while not Path("found").exists():
        assert process.poll() is None, "it ended before DVC began"
        time.sleep(0.05)
    return process


def wait_for_the_lock() -> None:
    """Wait until the system has freed the lock of a process that was killed."""
    for _ in range(100):
        with contextlib.suppress(ValueError), study.workspace.alone("nobody"):
            return
        time.sleep(0.05)


@pytest.mark.parametrize(
    "kill", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda k: k.name
)
def test_a_second_study_is_refused_and_parameters_are_untouched_whatever_happens(
    folder, capsys, kill
):
    process = start("run", "fewer")
    dvc = int(Path("pid").read_text())
    Path("params.yaml").write_text("# mine\n" + OWN)  # saved meanwhile: DVC has a file of its own
    for words in (["run", "fewer"], ["run"], ["try", "other"]):
        assert cli.main(words) == 1
        said = f"error: fewer is being run here by process {process.pid}; wait until it is done"
        assert capsys.readouterr().err.startswith(said)
    process.send_signal(kill)
    process.wait()
    if kill == signal.SIGKILL:  # its DVC lives on, and so does the lock
        assert cli.main(["run", "fewer"]) == 1
        assert f"fewer is being run here by process {dvc};" in capsys.readouterr().err
        os.kill(dvc, signal.SIGKILL)
        wait_for_the_lock()
    else:
        assert process.returncode == {signal.SIGINT: 130}.get(kill, 128 + kill)
        with pytest.raises(ProcessLookupError):
            os.kill(dvc, 0)
    assert mine()
    assert cli.main(["run", "fwer"]) == 1 and mine()  # a slip afterwards replaces nothing
    assert cli.main(["run", "fewer"]) == 0 and mine()


def test_a_hangup_that_is_ignored_ends_nothing(folder, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with study.signals_exit():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_a_workspace_has_copies_of_code_and_links_to_the_rest(folder):
    Path("study").mkdir()
    Path("study/new.py").write_text("a = 1\n")
    Path("MODEL.onnx").touch()
    Path(".dvc/config").write_text("[cache]\n    dir = ../kept\n")
    assert cli.main(["run", "fewer"]) == 0
    there = Path("build/studies/fewer")
    assert not (there / "study").is_symlink() and (there / "study/new.py").exists()
    assert (there / "data/card.json").resolve() == (folder / "data/card.json")
    assert (there / "MODEL.onnx").is_symlink() and (there / "build/runs").is_symlink()
    assert f"dir = {folder / 'kept'}\n" in (there / ".dvc/config").read_text()
    Path("study/new.py").rename("study/newer.py")
    Path("MODEL.onnx").unlink()
    assert cli.main(["run", "fewer"]) == 0
    assert [file.name for file in (there / "study").iterdir()] == ["newer.py"]
    assert not (there / "MODEL.onnx").is_symlink()
    published = Path("reports/virtual-people/params.yaml")  # as the file names the study
    assert published.read_text() == Path("found").read_text()


def test_other_values_are_tried_without_an_edit(folder, capsys):
    words = [
        "try",
        "tail",
        "bias.kind=longtail",
        "bias.levels=[0.0, 0.8]",
        "weights.power=3",
        "ablations.tau.values=[0.01]",
    ]
    assert cli.main(words) == 0 and mine()
    found = Path("found").read_text()
    tree = yaml.load(found)
    assert tree["bias"]["kind"] == "longtail" and tree["bias"]["levels"] == [0.0, 0.8]
    assert tree["ablations"]["tau"] == {"setting": "weights.tau", "values": [0.01]}
    assert tree["weights"]["power"] == 3 and tree["protocol"]["status"] == "exploratory"
    assert tree["protocol"]["note"].startswith("tried with bias.kind=longtail, bias.levels=")
    assert set(OWN.splitlines()) - set(found.splitlines()) < set(OWN.splitlines())
    assert "seeds: 20  # training sets drawn per bias level" in found
    assert "\n  levels: [0.0, 0.8] " in found
    assert Path("reports/tail/params.yaml").exists()
    assert cli.main(words) == 0


def test_a_list_of_one_value_a_line_stays_so(tmp_path, monkeypatch):
    """As DVC leaves params.yaml after `exp run -S`, with comments behind the keys."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("levels:  # how biased\n- 0.0\n- 0.8\nmethods:\n- erm\n- cid\n")
    text = study._text_with({"levels": [0.0, 0.5, 0.9]})
    assert yaml.load(text) == {"levels": [0.0, 0.5, 0.9], "methods": ["erm", "cid"]}
    assert "# how biased" in text


@pytest.mark.parametrize(
    "words, said",
    [
        (["fewer"], "fewer is a study that is kept; name this one otherwise"),
        (["virtual-people"], "virtual-people is a study that is kept"),
        (["a/b"], "params.yaml: study is 'a/b'"),
        (["x", "weights.rarety=1"], "params.yaml with weights.rarety=1: weights.rarety is unknown (did you"),
        (["x", "seeds"], "'seeds' is no setting; write key=value"),
        (["x", "seeds=["], "'seeds=[': '[' is no value as in params.yaml"),
        (["x", "seeds.more=1"], "seeds.more is no key: seeds of params.yaml has no keys in it"),
        (["x", "--to", "evalute"], "--to 'evalute' is unknown (did you mean 'evaluate'?)"),
        (["notes", "seeds=2"], "reports/notes is no report, and would be lost; move it away"),
        (["others", "seeds=2"], "reports/others holds a report that was not made by `try`"),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_is_said_before_anything_runs(folder, capsys, words, said):
    shutil.copy(ROOT / "dvc.yaml", ".")
    Path("reports/others").mkdir(parents=True)
    Path("reports/others/provenance.json").write_text("{}")
    Path("reports/notes").mkdir()
    Path("reports/notes/mine.md").touch()
    assert cli.main(["try", *words]) == 1
    assert said in capsys.readouterr().err
    assert mine() and not Path("found").exists() and not Path("build/studies").exists()


def test_mappings_merge_key_by_key_and_all_else_replaces(overlay):
    base = yaml.load(ROOT / "studies/base-1.yaml")
    tree = overlay()
    assert tree == base | {
        "study": "new",
        "protocol": {
            "status": "confirmatory", "note": "nothing was known",
            "detectable": {"accuracy": 1.0, "minority_accuracy": 2.0},
        },
        "seeds": 3,
        "weights": base["weights"] | {"power": 3.0},
        "train": base["train"] | {"robust": base["train"]["robust"] | {"alpha": 0.5}},
        "ablations": {"tau": {"setting": "weights.tau", "values": [0.01, "auto"]}},
    }  # fmt: skip
    changes = {
        "train": {"network": {"epochs": 3}},
        "embed": {"onnx": {}},
        "bias": {"levels": [0.5]},
    }
    before = {
        "train": {"l2": 1.0, "network": {"batch": 8}},
        "embed": {"onnx": {"mean": 1}},
        "bias": {"levels": [0.0, 0.5]},
    }
    assert kept.merge(before, changes) == {
        "train": {"l2": 1.0, "network": {"epochs": 3}},
        "embed": {"onnx": {}},
        "bias": {"levels": [0.5]},
    }


@pytest.mark.parametrize(
    "before, after, said",
    [
        ("base-1", "base-3", "studies/new.yaml: base is 'base-3' (did you mean 'base-1'?); there is base-1"),
        ("base-1", "[1]", "studies/new.yaml: base is [1]"),
        ("alpha", "alhpa", "studies/new.yaml: train.robust.alhpa is unknown (did you mean 'alpha'?)"),
        ("seeds: 3", "sedes: 3", "studies/new.yaml: sedes is unknown (did you mean 'seeds'?)"),
        ("{power: 3.0}", "3", "studies/new.yaml: weights is 3; it must be a mapping"),
        ("seeds: 3", "seeds: 3\nstudy: old", "study is 'old', but a kept study is named after its file"),
        ("note: nothing was known, ", "", "studies/new.yaml: protocol.note is missing"),
        ("seeds: 3", "seeds: [", "studies/new.yaml, line "),
    ],
)  # fmt: skip
def test_a_study_that_is_wrong_is_refused_in_one_sentence(overlay, before, after, said):
    assert before in NEW
    with pytest.raises(ValueError) as error:
        overlay(NEW.replace(before, after))
    assert said in str(error.value) and "\n" not in str(error.value)


def read_settings(tree: dict) -> set[tuple[str, str]]:
    """The settings that one of a study's methods reads, as (section, key)."""
    methods = {*tree["methods"]}
    for section in ("breadth", "proxies", "ablation"):
        methods |= {*tree[section]["methods"]}
    found = set()
    for method in methods:
        spec = METHODS[method]
        found |= {("weights", field.name) for field in fields(spec.weigh_settings)}
        found |= {("train.robust", field.name) for field in fields(spec.fit_settings)}
    return found


def settings(tree: dict) -> dict[tuple[str, str], object]:
    """All values of the sections of settings, by (section, key)."""
    found = {("weights", key): value for key, value in tree["weights"].items()}
    return found | {("train.robust", key): v for key, v in tree["train"]["robust"].items()}


def leaves(tree: dict, within: tuple = ()) -> dict:
    """All single values and lists of a tree, by their place in it."""
    found = {}
    for key, value in tree.items():
        inner = leaves(value, (*within, key)) if isinstance(value, dict) else {}
        found |= inner or {(*within, key): value}
    return found


# What the code did where a report's parameters do not say it.
UNSAID = {("train.robust", "lff_l2"): 0.1}
UNSAID_SECTIONS = {("embed", "onnx"): {}, ("proxies", "controls"): [], ("proxies", "trunks"): []}


# Of every setting of a method, by the section it stands in: what a study has that does not name it.
DEFAULTS = {
    (section, field.name): field.default
    for method in METHODS.values()
    for section, settings_of in (
        ("weights", method.weigh_settings),
        ("train.robust", method.fit_settings),
    )
    for field in fields(settings_of)
}


@pytest.mark.parametrize("name", [n for n in STUDIES if (ROOT / "reports" / n).exists()])
def test_a_resolved_study_is_what_its_report_was_made_with(name):
    """Every value of the report's parameters is the same, and what they lack was not read, or was so."""
    tree = resolved(name)
    report = yaml.load(ROOT / "reports" / name / "params.yaml")
    values = leaves(tree)
    later = set().union(*LATER.values())
    for key, value in leaves(report).items():
        if key in values:
            assert values[key] == value, key
        else:  # a report writes out the defaults of all methods
            setting = (".".join(key[:-1]), key[-1])
            assert key[-1] in later
            of_study = settings(tree).get(setting, DEFAULTS[setting])
            assert setting not in read_settings(tree) or of_study == value
    assert tree["ablations"] == report["ablations"]
    assert tree["train"]["network"] == report["train"]["network"]
    filled = settings(tree).keys() - settings(report).keys()
    for key in filled & read_settings(tree):
        assert settings(tree)[key] == UNSAID[key]
    more = values.keys() - leaves(report).keys()
    for key in more:
        if key[0] != "weights" and key[:2] != ("train", "robust"):
            assert values[key] == UNSAID_SECTIONS[key]


@pytest.mark.parametrize("name", STUDIES)
def test_a_committed_study_is_valid_with_every_method_added(name):
    """Every setting that a method needs has a value, and reaches the stages that use it.

    Those of a method that came after the first base have the defaults of its own file.
    """
    tree = resolved(name)
    assert yaml.load(kept.text(name, ROOT / "studies")) == tree
    if tree["train"]["model"] != "linear":
        return  # networks take some of the methods
    fitting = list(METHODS)
    if classes_of(tree["task"]) > 2:
        fitting = [method for method in METHODS if method not in of_two_classes(METHODS)]
    for section in ("breadth", "proxies", "ablation"):
        tree[section]["methods"] = fitting
    tree["methods"] = fitting
    params.check(tree, name)
    later = set().union(*LATER.values())
    assert {key for key in read_settings(tree) if key[1] not in later} <= settings(tree).keys()
    assert all(value is not None for value in settings(tree).values())


def test_every_method_computes_with_the_settings_of_every_study_of_heads(people):
    identities, labels, proxy, _ = people
    trees = [resolved(name) for name in STUDIES]
    of_heads = [tree for tree in trees if tree["train"]["model"] == "linear"]
    distinct = {json.dumps(tree["weights"]): tree["weights"] for tree in of_heads}
    for weights in distinct.values():
        for method in METHODS:
            found = training_weights(method, proxy, labels, identities, weights)
            assert len(found) == len(labels)
            training_needs(method, proxy, labels, identities, weights)


def test_the_stages_that_weigh_and_train_get_all_settings(monkeypatch):
    monkeypatch.chdir(ROOT)
    for stage in ("weights", "train", "proxies", "breadth", "ablate"):
        assert "weights" in stages.parameter_keys(stage)
    for stage in ("train", "proxies", "breadth", "ablate"):
        assert {"train", "train.robust"} & {*stages.parameter_keys(stage)}


# Settings of methods that came after the first base. No study that stands on it runs these methods, and
# their defaults stand in their own files.
LATER = {
    "surprise-logits": {"logit_strength"},
    "afr-crossed": {"afr_crossed_gamma", "afr_crossed_l2"},
    "selective-crossed": {
        "selective_crossed_stop_l2", "selective_crossed_share", "selective_crossed_l2",
    },
    "dpe": {"dpe_members", "dpe_epochs", "dpe_batch", "dpe_rate", "dpe_likeness"},
}  # fmt: skip


def test_the_first_base_names_every_setting_of_the_methods_of_its_day():
    base = yaml.load(ROOT / "studies/base-1.yaml")
    later = set().union(*LATER.values())
    assert all_weigh_settings().keys() - later <= base["weights"].keys()
    assert all_fit_settings().keys() - later <= base["train"]["robust"].keys()
    assert later <= all_weigh_settings().keys() | all_fit_settings().keys()
    assert not LATER.keys() & set(base["methods"])


def test_a_setting_of_a_later_method_is_of_no_earlier_one():
    for method in METHODS.values():
        own = {
            field.name for field in (*fields(method.weigh_settings), *fields(method.fit_settings))
        }
        assert own & set().union(*LATER.values()) <= LATER.get(method.name, set()), method.name


def test_every_study_is_short_and_over_a_base():
    for name in STUDIES:
        text = kept.find(name, ROOT / "studies").read_text()
        assert "\nbase: base-" in text and len(text.splitlines()) <= 50


@pytest.mark.parametrize("name", STUDIES)
def test_the_content_of_a_kept_study_is_that_of_the_table(name):
    rows = protocols.of_study(name, ROWS)
    assert rows, "commit the study, then run `python -m study protocols`"
    tree = resolved(name)
    assert protocols.content_digest(tree, ROOT / "studies") == rows[-1].digest
    assert rows[-1].state == tree["protocol"]["status"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.study}-{row.state}")
def test_the_table_names_the_commit_in_which_a_content_first_stood(row, monkeypatch):
    """Also of a content that is no longer today's, and of a protocol that was withdrawn."""
    monkeypatch.chdir(ROOT)
    if git.git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("the history is shallow or absent")
    found = protocols.first_stood(row.study, row.digest, still=False)
    state = "confirmatory" if row.state == "withdrawn" else row.state
    assert found == row._replace(state=state, note="")


def test_every_state_of_a_protocol_is_kept_to():
    """A rerun stands below the confirmatory row of its study; a withdrawn protocol was never run."""
    for name in {row.study for row in ROWS}:
        states = [row.state for row in protocols.of_study(name, ROWS) if row.state != "withdrawn"]
        assert states in ([], ["confirmatory"], ["confirmatory", "rerun"], ["exploratory"]), name
        assert bool(states) == (name in STUDIES), name
    for row in ROWS:
        assert bool(row.note) == (row.state in ("rerun", "withdrawn")), row


def test_a_digest_is_of_the_content_alone(overlay):
    digest = protocols.content_digest(overlay())
    other = NEW.replace("# What this study", "# What it").replace("seeds: 3\n", "")
    assert protocols.content_digest(overlay(other + "seeds: 3\n", "other")) == digest
    Path("studies/complete.yaml").write_text(kept.text("new"))
    assert protocols.content_digest(kept.resolve("complete")) == digest
    assert protocols.content_digest(overlay(NEW.replace("0.5", "0.6"))) != digest


def test_a_study_from_before_there_were_controls_had_none(folder):
    shutil.copy(ROOT / "studies/base-1.yaml", "studies")
    tree = yaml.load(OWN)
    tree["proxies"] |= {"controls": [], "trunks": []}
    digest = protocols.content_digest(tree)
    tree["weights"]["bias_l2"] = 1.0  # named at its default or not: the same
    assert protocols.content_digest(tree) == digest
    del tree["proxies"]["controls"], tree["proxies"]["trunks"], tree["weights"]["bias_l2"]
    assert protocols.content_digest(tree) == digest
    tree["weights"]["bias_l2"] = 2.0
    assert protocols.content_digest(tree) != digest


def test_a_study_from_before_there_was_a_choice_of_detectors_has_mtcnn(folder):
    shutil.copy(ROOT / "studies/base-1.yaml", "studies")
    tree = yaml.load(OWN)
    for name in ("detector", "mirror"):
        tree["embed"].pop(name, None)
    digest = protocols.content_digest(tree)
    filled = params.filled(tree)
    assert (filled["embed"]["detector"], filled["embed"]["mirror"]) == ("mtcnn", False)
    assert protocols.content_digest(filled) == digest
    for name, other in (("detector", "joined"), ("mirror", True)):
        changed = {**filled, "embed": filled["embed"] | {name: other}}
        assert protocols.content_digest(changed) != digest


def test_a_setting_that_a_method_gets_later_changes_no_content(folder, monkeypatch):
    tree = params.filled(yaml.load(OWN))
    digest = protocols.content_digest(tree)
    newer = protocols.all_weigh_settings() | {"reach": (float, 3.0)}
    monkeypatch.setattr(protocols, "all_weigh_settings", lambda: newer)
    tree["weights"]["reach"] = 3.0
    assert protocols.content_digest(tree) == digest
    tree["weights"]["reach"] = 4.0
    assert protocols.content_digest(tree) != digest


def commit(message: str, day: int) -> str:
    """Commit everything on a day of 2026; returns the commit."""
    date = f"2026-01-{day:02}T03:04:05+00:00"
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    env = os.environ | {"GIT_COMMITTER_DATE": date}
    for command in (["add", "-A"], [*identity, "commit", "-qm", message]):
        subprocess.run(["git", *command], check=True, env=env)
    return git.git("rev-parse", "HEAD").strip()


@pytest.fixture
def history(overlay):
    """A repository with one kept study, ``new``, and its commit of day 1; returns that commit."""
    shutil.rmtree(".git")
    subprocess.run(["git", "init", "-q"], check=True)
    for name in ("fewer", "photos", "wrong"):
        Path(f"studies/{name}.yaml").unlink()
    overlay()
    return commit("the content", 1)


def report(name: str = "new") -> None:
    """Put a report of a study in its place."""
    Path(f"reports/{name}").mkdir(parents=True)
    Path(f"reports/{name}/provenance.json").write_text("{}")


AGAIN = NEW.replace("status: confirmatory", "status: rerun").replace("seeds: 3", "seeds: 4")


def test_a_protocol_stands_since_its_content_does(overlay):
    shutil.rmtree(".git")
    subprocess.run(["git", "init", "-q"], check=True)
    for name in ("fewer", "photos", "wrong"):
        Path(f"studies/{name}.yaml").unlink()
    overlay(NEW.replace("seeds: 3", "seeds: 4"), "old-name")
    commit("another content", 1)
    overlay(name="old-name")
    first = commit("the content", 2)
    assert protocols.update() == [f"old-name: since {first[:7]} of 2026-01-02"]
    Path("studies/old-name.yaml").rename("studies/new.yaml")
    commit("another name", 3)
    Path("studies/new.yaml").write_text("# A comment.\n" + NEW)
    commit("a comment", 4)
    tree = kept.resolve("new")
    digest = protocols.content_digest(tree)
    expected = protocols.Row("new", "confirmatory", digest, first, "2026-01-02T03:04:05+00:00")
    assert protocols.fixed(tree) == expected  # by the history
    assert protocols.update() == [f"new: since {first[:7]} of 2026-01-02", "old-name: gone"]
    assert protocols.read() == [expected]
    assert protocols.update() == ["studies/protocols.csv is up to date"]
    assert protocols.fixed(tree | {"seeds": 5}) is None
    overlay(NEW, "later")
    assert "later: not committed as it stands" in protocols.update()[0]
    shutil.rmtree(".git")
    assert protocols.fixed(tree) == expected  # by the table


def test_the_protocol_of_a_study_that_was_run_cannot_be_entered_anew(history, overlay):
    protocols.update()
    overlay(NEW.replace("seeds: 3", "seeds: 4"))
    second = commit("another content", 2)
    report()
    with pytest.raises(ValueError, match="of a study that was run does not change"):
        protocols.update()
    shutil.rmtree("reports")  # not run: another protocol takes its place
    assert protocols.update() == [f"new: since {second[:7]} of 2026-01-02"]
    assert [row.commit for row in protocols.read()] == [second]


def test_a_rerun_stands_beside_the_protocol_that_was_confirmatory(history, overlay):
    protocols.update()
    (before,) = protocols.read()
    report()
    tree = overlay(AGAIN)
    second = commit("other settings", 2)
    assert protocols.update() == [
        f"new: since {second[:7]} of 2026-01-02, a rerun: seeds: 3, now 4"
    ]
    rows = protocols.read()
    assert rows[0] == before and [row.state for row in rows] == ["confirmatory", "rerun"]
    assert protocols.fixed(tree) == rows[1] and protocols.confirmed("new") == before
    assert protocols.update() == ["studies/protocols.csv is up to date"]
    overlay(AGAIN.replace("seeds: 4", "seeds: 5"))  # once more: the protocol stays
    third = commit("other settings again", 3)
    protocols.update()
    assert [row.commit for row in protocols.read()] == [history, third]
    overlay(NEW.replace("seeds: 3", "seeds: 6"))
    with pytest.raises(ValueError, match="write protocol.status: rerun"):
        protocols.update()
    shutil.rmtree(".git")  # as in a clone without history
    assert protocols.fixed(overlay(AGAIN.replace("seeds: 4", "seeds: 5"))).state == "rerun"


@pytest.mark.parametrize("status, was_run", [("confirmatory", False), ("exploratory", True)])
def test_only_a_confirmatory_study_that_was_run_is_a_rerun(history, overlay, status, was_run):
    overlay(
        NEW.replace("status: confirmatory", f"status: {status}").replace("seeds: 3", "seeds: 2")
    )
    commit("as it was", 2)
    protocols.update()
    if was_run:
        report()
    overlay(AGAIN)
    commit("said to be a rerun", 3)
    with pytest.raises(ValueError, match="no confirmatory study new was run"):
        protocols.update()


def test_an_exploratory_study_that_was_run_stays_so(history, overlay):
    overlay(NEW.replace("status: confirmatory", "status: exploratory"))
    commit("exploratory", 2)
    protocols.update()
    report()
    overlay(
        NEW.replace("status: confirmatory", "status: exploratory").replace("seeds: 3", "seeds: 4")
    )
    second = commit("other settings", 3)
    assert protocols.update() == [f"new: since {second[:7]} of 2026-01-03"]
    assert [row.state for row in protocols.read()] == ["exploratory"]
    overlay(NEW.replace("seeds: 3", "seeds: 4"))
    commit("said to be confirmatory", 4)
    with pytest.raises(ValueError, match="the study was run as exploratory"):
        protocols.update()


def test_a_protocol_is_withdrawn_in_a_line(history, overlay, capsys):
    overlay(name="other")
    commit("another study", 2)
    protocols.update()
    Path("studies/new.yaml").unlink()
    assert cli.main(["protocols"]) == 0  # the other study has the same content
    overlay()
    protocols.update()
    Path("studies/other.yaml").unlink()
    Path("studies/new.yaml").unlink()
    with pytest.raises(ValueError, match="protocols withdraw new WHY"):
        protocols.update()
    overlay()
    assert cli.main(["protocols", "withdraw", "new", "other people\nare at hand"]) == 1
    assert cli.main(["protocols", "withdraw", "new", "other people are at hand"]) == 0
    assert not Path("studies/new.yaml").exists() and "new: withdrawn" in capsys.readouterr().out
    row = next(row for row in protocols.read() if row.study == "new")
    assert (row.state, row.note) == ("withdrawn", "other people are at hand")
    assert protocols.update() == ["other: gone"] and protocols.read() == [row]
    assert protocols.confirmed("new") is None
    overlay(NEW.replace("seeds: 3", "seeds: 9"))  # a new protocol may take the name
    commit("a new protocol", 3)
    protocols.update()
    assert [found.state for found in protocols.read()] == ["withdrawn", "confirmatory"]
    report()
    with pytest.raises(ValueError, match="new was run"):
        protocols.withdraw("new", "too late")
    with pytest.raises(ValueError, match="no confirmatory study 'gone'"):
        protocols.withdraw("gone", "there is none")
