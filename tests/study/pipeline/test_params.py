"""What may stand in params.yaml, and what is said of what may not."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from study.pipeline import params

ROOT = Path(__file__).parents[3]
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
        ("weights.tau", -1, "weights.tau is -1; it must be a number from 1e-9 to 1e9, or auto"),
        ("weights.tau", "atuo", "weights.tau is 'atuo'; it must be a number from 1e-9 to 1e9, or auto (did you mean"),
        ("weights.tau", None, "weights.tau is None; it must be a number from 1e-9 to 1e9, or auto"),
        ("weights.neighbours", 2.5, "weights.neighbours is 2.5; it must be a whole number of at least 1, or auto"),
        ("weights.include_self", "yes", "weights.include_self is 'yes'; it must be true or false"),
        ("weights.temper", -1, "weights.temper is -1; it must be a number from 0 to 1e6"),
        ("weights", 3, "weights is 3; it must be a mapping"),
        ("seeds", 1, "seeds is 1; it must be a whole number of at least 2"),
        ("seeds", True, "seeds is True; it must be a whole number"),
        ("seeds", "20", "seeds is '20'; it must be a whole number"),
        ("bias.levels", 0.5, "bias.levels is 0.5; it must be a list"),
        ("bias.levels", [0.0, 1.5], "bias.levels[1] is 1.5; it must be a number from 0 to 1"),
        ("bias.levels", [0.5, 0.1], "bias: levels must rise, each given once"),
        ("bias.levels", [], "bias.levels is empty; it must be a list of at least 1"),
        ("bias.kind", "natural", "bias: kind natural takes the data as they are: write levels: [0.0]"),
        ("bias.images_per_identity", 7, "bias: images_per_identity must be even, so that level 0 halves it"),
        ("bias.cohorts", True, "bias: cohorts is true, so people must say how many one holds"),
        ("bias.cohorts", 60, "bias.cohorts is 60; it must be true, false or repeated"),
        ("protocol.status", "confirmed", "protocol.status is 'confirmed'; it must be exploratory, confirmatory or rerun"),
        ("protocol.note", None, "protocol.note is None; it must be a text"),
        ("protocol.detectable", {"accuracy": 1.0}, "protocol.detectable.minority_accuracy is missing"),
        ("protocol.detectable", {"accuracy": 0, "minority_accuracy": 1}, "protocol.detectable.accuracy is 0; it must be"),
        ("bias.unseen_share", 1, "bias.unseen_share is 1; it must be a number of at least 0 and below 1"),
        ("methods", ["erm", "cdi"], "methods[1] is 'cdi'; it must be erm, balanced, "),
        ("methods", ["cid"], "methods lacks erm, the baseline of every difference"),
        ("methods", ["erm", "cid", "cid"], "methods names a method twice"),
        ("embed.network", "facenet", "(did you mean 'facenet-casia'?)"),
        ("proxies.controls", ["pixel"], "proxies.controls[0] is 'pixel'; it must be "),
        ("proxies.trunks", ["pixels", "pixels"], "proxies.trunks names a network twice"),
        ("proxies.controls", "pixels", "proxies.controls is 'pixels'; it must be a list"),
        ("embed.network", "x.onnx", "embed.network: x.onnx pins no file; write x.onnx@ and 12 or more"),
        ("embed.trunk", "a.onnx@0123456789", "embed.trunk: a.onnx@0123456789 pins no file; write a.onnx@ and 12"),
        ("embed.onnx", {"size": 150}, "embed.onnx has options, but no network is an ONNX file"),
        ("embed.onnx", None, "embed.onnx is None; it must be a mapping"),
        ("train.model", "resnet", "it must be linear, mlp, cnn, resnet18, resnet50 or finetune (did you mean"),
        ("train.network", {"epochs": 3}, "train: network has options, but model linear takes none"),
        ("study", "a/b", "study is 'a/b'; it must be letters, digits, -, _ and dots inside, 60 at most"),
        ("study", "..", "study is '..'; it must be letters"),
        ("study", ".", "study is '.'; it must be letters"),
        ("study", ".git", "study is '.git'; it must be letters"),
        ("study", "a" * 61, "'; it must be letters"),
        ("data", 3, "data is 3; it must be the name of a data set, or null"),
        ("bias.people", 1, "bias.people is 1; it must be a whole number of at least 2, or null"),
        ("train.robust.alpha", 1.5, "train.robust.alpha is 1.5; it must be a number in (0, 1]"),
        ("train.robust.through", "loss", "train.robust.through is unknown"),
        ("ablations.tau.values", [0.1, -2], "ablations.tau.values: weights.tau is -2; it must be a number from"),
        ("ablations.tau.setting", "weights.tua", "ablations.tau.setting 'weights.tua' is unknown (did you mean 'weights.tau'?)"),
        ("ablations.tau.valeus", [1], "ablations.tau.valeus is unknown (did you mean 'values'?)"),
        ("ablations.new", {"setting": "weights.tau"}, "ablations.new.values is missing"),
        ("ablations.new", {"setting": "train.robust", "values": [{"afr_gamma": 1.0}, {"afr_gamma": 2.0}]},
         "ablations.new.values differ in afr_gamma, which no method of ablation.methods reads, so its figure would be flat; add afr"),
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
     ("weights.power", 0), ("weights.temper", 0), ("protocol.status", "confirmatory"),
     ("protocol.detectable", {"accuracy": 0.4, "minority_accuracy": 1}), ("embed.precision", "half"), ("ablations", {}), ("data", None),
     ("study", "lfw-1.0"), ("train.robust", {"alpha": 1})],
)  # fmt: skip
def test_what_may_stand_there_is_let_through_unchanged(tree, key, value, tmp_path):
    put(tree, key, value)
    before = copy.deepcopy(tree)
    params.check(tree)
    assert tree == before
    YAML().dump(tree, tmp_path / "params.yaml")
    assert params.load(tmp_path / "params.yaml") == before


@pytest.mark.parametrize(
    "options, said",
    [
        ({"sise": 1}, "embed.onnx.sise is unknown (did you mean 'size'?)"),
        ({"size": 0}, "embed.onnx.size is 0; it must be a whole number of at least 8"),
        ({"template": "arc"}, "is 'arc'; it must be arcface, dlib, facenet or five points [x, y] in pixels"),
        ({"template": [[30, 30], [70, 30], [50, 50], [40, 70]]}, "or five points [x, y] in pixels"),
        ({"template": [[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.3, 0.7], [0.7, 0.7]]}, "in pixels of the crop"),
        ({"channels": "gbr"}, "embed.onnx.channels is 'gbr'; it must be rgb or bgr"),
        ({"mean": [1, 2]}, "embed.onnx.mean is [1, 2]; it must be a number, or a list of three"),
        ({"mean": True}, "embed.onnx.mean is True; it must be a number"),
        ({"scale": [1, 0, 1]}, "embed.onnx.scale is [1, 0, 1]; it must be a number greater than 0, or a list"),
    ],
)  # fmt: skip
def test_what_an_onnx_file_takes_is_checked(tree, options, said):
    tree["embed"] |= {"network": "x.onnx@0123456789ab", "onnx": options}
    with pytest.raises(ValueError) as error:
        params.check(tree)
    assert str(error.value).startswith("params.yaml: embed.onnx.") and said in str(error.value)


def test_an_onnx_file_is_a_network_and_its_checksum_is_compared_if_it_is_there(tree, tmp_path):
    points = [[38.3, 51.7], [73.5, 51], [56, 71.7], [41.5, 92.4], [70.7, 92.2]]
    file = tmp_path / "net.onnx"
    tree["embed"] |= {
        "trunk": f"{file}@{'0' * 12}",
        "onnx": {"template": points, "mean": [1, 2.5, 3]},
    }
    params.check(tree)  # whoever lacks the file can read the study
    file.write_bytes(b"\x08\x07")
    with pytest.raises(
        ValueError, match="embed.trunk: .*net.onnx has another SHA-256 than 000"
    ) as error:
        params.check(tree)
    tree["embed"]["trunk"] = str(error.value).split()[-1]  # what it says is what may stand there
    params.check(tree)
    del tree["embed"]["onnx"]
    params.check(tree)


def test_the_long_tail_takes_an_odd_number_of_images_and_cohorts_take_people(tree):
    tree["bias"] |= {"kind": "longtail", "images_per_identity": 7, "cohorts": True, "people": 5}
    tree["breadth"]["kinds"], tree["ablations"] = ["longtail"], {}
    params.check(tree)


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted(ROOT.glob("studies/base-*.yaml"))], ids=str
)
def test_committed_files_are_valid(path):
    params.read(path)


def test_studies_from_before_there_were_controls_stay_valid(tree):
    del tree["proxies"]["controls"], tree["proxies"]["trunks"]
    params.check(tree)


def test_options_of_networks_are_checked_before_anything_runs(tree):
    tree["train"] |= {"model": "cnn", "network": {"epohcs": 3}}
    tree["methods"] = ["erm", "cid"]
    with pytest.raises(
        ValueError, match=r"train.network.epohcs is unknown \(did you mean 'epochs'"
    ):
        params.check(tree)
    tree["train"]["network"] = {"epochs": 3}
    params.check(tree)


def test_fine_tuning_needs_the_trunk_of_its_network(tree):
    tree["train"]["model"] = "finetune"
    tree["methods"] = ["erm", "cid"]
    params.check(tree)
    tree["embed"]["trunk"] = "facenet-casia"
    with pytest.raises(ValueError, match="but embed.trunk is facenet-casia; write trunk: dlib-res"):
        params.check(tree)


def test_methods_of_heads_alone_are_refused_for_networks_before_anything_runs(tree):
    tree["train"]["model"] = "mlp"
    tree["methods"] = ["erm", "cid", "afr", "erase"]
    said = "methods has afr, which trains linear heads only, but train.model is mlp; drop afr, erase, or"
    with pytest.raises(ValueError, match=said):
        params.check(tree)


def test_the_names_are_those_of_the_registries():
    from cid import models, recognition

    assert params._registered("recognition", "NETWORKS") == tuple(recognition.NETWORKS)
    assert params._registered("models", "MODELS") == tuple(models.MODELS)
    with pytest.raises(LookupError):
        params._registered("models", "MODLES")
    assert set(params.Embed.model_fields["precision"].annotation.__args__) == set(
        recognition.PRECISIONS
    )


def test_every_key_says_what_it_means():
    """A comment beside every key, or above it."""
    seen = []
    text = (ROOT / "params.yaml").read_text().replace(",\n", ", ")  # a list over two lines
    above = ""
    for line in filter(None, text.splitlines()):
        if found := re.match(r" *([\w.-]+):(.*)", line):
            seen.append(found[1])
            explained = "  # " in found[2] or above.lstrip().startswith("#")
            assert explained, f"{found[1]} has no comment"
        above = line
    assert len(seen) > 60


def test_an_ablation_of_what_a_factor_of_power_0_was_made_with_is_refused(tree):
    tree["ablation"]["methods"] = ["erm", "cid-power"]
    tree["ablations"] = {"tau": {"setting": "weights.tau", "values": [0.01, 0.1]}}
    params.check(tree)
    tree["weights"]["power"] = 0
    with pytest.raises(
        ValueError, match="is without effect where weights.power is 0, so its figure"
    ):
        params.check(tree)
    tree["ablation"]["methods"] += ["cid"]  # whose power is 1
    params.check(tree)


def test_a_slip_is_said_before_anything_runs(tmp_path):
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("rarity:", "rarety:", 1)
    )
    for command in (["params"], ["stage", "data"]):
        done = subprocess.run(
            [sys.executable, "-m", "study", *command],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1 and list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]
        assert done.stderr == (
            "error: params.yaml: weights.rarety is unknown (did you mean 'rarity'?); delete or rename it\n"
        )


def test_methods_for_two_classes_are_refused_where_a_task_has_more(tree):
    tree["task"] = "smiling x mouth_open"
    tree["bias"] |= {"images_per_identity": 8, "levels": [0.0, 0.667]}
    tree["proxies"]["level"] = tree["ablation"]["level"] = 0.667
    tree["ablations"] = {}
    tree["breadth"]["tasks"] = ["smiling x mouth_open", "eyes_closed"]
    for section in (tree, tree["breadth"], tree["proxies"], tree["ablation"]):
        section["methods"] = ["erm", "surprise", "oracle"]
    params.check(tree)
    tree["breadth"]["methods"] = ["erm", "xrm", "erase"]
    with pytest.raises(
        ValueError, match=r"breadth.methods has xrm, erase, made for two .* take them out"
    ):
        params.check(tree)
    tree["breadth"]["methods"] = ["erm", "jtt"]
    tree["bias"]["images_per_identity"] = 10
    with pytest.raises(ValueError, match=r"bias.levels: .* must be a multiple of 4"):
        params.check(tree)
    tree["bias"]["images_per_identity"] = 8
    tree["train"] |= {"model": "mlp"}
    with pytest.raises(ValueError, match="mlp, which is trained for two classes.*: linear$"):
        params.check(tree)
