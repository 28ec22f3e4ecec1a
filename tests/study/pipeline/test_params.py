"""What may stand in params.yaml, and what is said of what may not."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cid import methods, networks, recognition, trainers
from study.faces import embed
from study.pipeline import params

ROOT = Path(__file__).parents[1]
yaml = YAML(typ="safe")


@pytest.fixture
def tree():
    return copy.deepcopy(yaml.load(ROOT / "params.yaml"))


def put(tree, key, value):
    *sections, last = key.split(".")
    for name in sections:
        tree = tree[name]
    tree[last] = value


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("weights.tua", 0.1, "weights.tua is unknown (did you mean 'tau'?)"),
        ("breadht", {}, "breadht is unknown (did you mean 'breadth'?); delete or rename it"),
        ("train.robust.alhpa", 0.5, "train.robust.alhpa is unknown (did you mean 'alpha'?)"),
        ("weights.tau", -1, "weights.tau is -1; it must be above 0; or auto"),
        ("weights.tau", "atuo", "weights.tau is 'atuo'; it must be a number; or auto (did you mean"),
        ("weights.tau", None, "weights.tau is None; it must be a number; or auto"),
        ("weights.neighbours", 2.5, "weights.neighbours is 2.5; it must be a whole number; or auto"),
        ("weights.include_self", "yes", "weights.include_self is 'yes'; it must be true or false"),
        ("weights", 3, "weights is 3; it must be a mapping"),
        ("seeds", 1, "seeds is 1; it must be at least 2"),
        ("seeds", True, "seeds is True; it must be a whole number"),
        ("seeds", "20", "seeds is '20'; it must be a whole number"),
        ("bias.levels", 0.5, "bias.levels is 0.5; it must be a list"),
        ("bias.levels", [0.0, 1.5], "bias.levels[1] is 1.5; it must be at most 1"),
        ("bias.levels", [0.5, 0.1], "bias: levels must rise, each given once"),
        ("bias.levels", [], "bias.levels is []; it must be a list of at least 1"),
        ("bias.kind", "natural", "bias: kind natural takes the data as they are: write levels: [0.0]"),
        ("bias.unseen_share", 1, "bias.unseen_share is 1; it must be below 1"),
        ("methods", ["erm", "cdi"], "methods[1] is 'cdi'; it must be erm, balanced, "),
        ("methods", ["cid"], "methods lacks erm, the baseline of every difference"),
        ("methods", ["erm", "cid", "cid"], "methods names a method twice"),
        ("embed.network", "facenet", "(did you mean 'facenet-casia'?)"),
        ("train.model", "resnet", "it must be linear, mlp, cnn, resnet18 or resnet50 (did you mean"),
        ("train.network", {"epochs": 3}, "train: network has options, but model linear takes none"),
        ("study", "a/b", "study is 'a/b'; it must be letters, digits, -, _ and dots"),
        ("ablations.tau.values", [0.1, -2], "ablations.tau.values: weights.tau is -2; it must be above"),
        ("ablations.tau.setting", "weights.tua", "ablations.tau.setting is 'weights.tua' (did you mean"),
        ("ablations.tau.valeus", [1], "ablations.tau.valeus is unknown (did you mean 'values'?)"),
        ("ablations.new", {"setting": "weights.tau"}, "ablations.new.values is missing"),
    ],
)  # fmt: skip
def test_what_may_not_stand_there_is_named_with_what_may(tree, key, value, said):
    put(tree, key, value)
    with pytest.raises(ValueError) as error:
        params.check(tree)
    assert str(error.value).startswith("params.yaml: ") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_key_is_named_with_the_one_that_is_missing(tree):
    tree["weights"]["tua"] = tree["weights"].pop("tau")
    with pytest.raises(ValueError, match=r"weights.tua is unknown \(did you mean 'tau'\?\)"):
        params.check(tree)


@pytest.mark.parametrize(
    "key, value",
    [("bias.levels", [0, 1]), ("weights.tau", "auto"), ("weights.tau", 1), ("bias.people", 2),
     ("weights.power", 0), ("embed.precision", "half"), ("ablations", {})],
)  # fmt: skip
def test_what_may_stand_there_is_let_through_unchanged(tree, key, value, tmp_path):
    put(tree, key, value)
    before = copy.deepcopy(tree)
    params.check(tree)
    assert tree == before
    YAML().dump(tree, tmp_path / "params.yaml")
    assert params.read(tmp_path / "params.yaml") == before


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted(ROOT.glob("reports/*/params.yaml"))], ids=str
)
def test_committed_files_are_valid(path):
    params.read(path)


def test_the_names_are_those_of_the_registries():
    assert params.METHODS == tuple(methods.METHODS)
    assert params.NETWORKS == tuple(recognition.NETWORKS)
    assert set(params.Embed.model_fields["precision"].annotation.__args__) == set(embed.PRECISIONS)
    assert set(params.Train.model_fields["model"].annotation.__args__) == {
        "linear",
        *networks.MODELS,
    }
    robust = set(params.Robust.model_fields)
    assert robust | {"through"} == set(trainers.Options.__dataclass_fields__)


def test_every_key_says_what_it_means_and_what_runs_again():
    """A comment on every line that holds a key; in brackets the stages whose ``params`` have it."""
    stages = yaml.load(ROOT / "dvc.yaml")["stages"]
    stages.pop("report")
    place, seen = [], 0
    text = (ROOT / "params.yaml").read_text().replace(",\n", ", ")  # a list over two lines
    for line in filter(None, text.splitlines()):
        found = re.match(r"( *)([\w.-]+):(.*)", line)
        if line.lstrip().startswith("#"):
            continue
        depth = len(found[1]) // 2
        place = [*place[:depth], found[2]]
        key, (value, _, comment) = ".".join(place), found[3].partition("  # ")
        assert comment, f"{key} has no comment"
        if not value.strip():
            continue  # a section
        readers = [
            name
            for name, stage in stages.items()
            if any(f"{key}.".startswith(f"{p}.") for p in map(str, stage["params"]))
        ]
        assert comment.endswith(f"[{' '.join(readers) or 'report'}]"), key
        seen += 1
    tree = yaml.load(ROOT / "params.yaml")
    flat = [
        value
        for section in tree.values()
        if isinstance(section, dict)
        for value in section.values()
    ]
    scalars = sum(not isinstance(section, dict) for section in tree.values())
    assert seen == scalars + len(flat) - 1 + len(tree["train"]["robust"])


def test_a_slip_is_said_before_anything_runs(tmp_path):
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("rarity:", "rarety:", 1)
    )
    arguments = ["notebooks/01_data.ipynb", "build/01_data.ipynb", "--params", "task"]
    for command in (["study.pipeline.params"], ["study.pipeline.notebook", "run", *arguments]):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1 and list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]
        assert done.stderr == (
            "error: params.yaml: weights.rarety is unknown (did you mean 'rarity'?); delete or rename it\n"
        )
