"""The command line of shared work: the same files from several processes as from one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch.distributed as dist
from ruamel.yaml import YAML

from cid.weights import cid_weights
from study import cli, distributed
from study.experiment import network_runs
from study.experiment.train import train_model
from tests.study.small import call

TAU = 0.02
ROOT = Path(__file__).parents[2]


def people(n=500, d=24):
    """Clustered vectors with a common direction, as face embeddings have; and labels."""
    rng = np.random.default_rng(0)
    vectors = 2 + rng.normal(size=(20, d))[rng.integers(20, size=n)] + 0.4 * rng.normal(size=(n, d))
    return vectors.astype(np.float32), rng.integers(2, size=n)


@pytest.fixture
def files(tmp_path):
    vectors, labels = people(n=301)
    np.save(tmp_path / "embeddings.npy", vectors)
    np.save(tmp_path / "labels.npy", labels)
    return [str(tmp_path / name) for name in ("embeddings.npy", "labels.npy")], vectors, labels


def test_the_command_line_writes_the_same_file_under_torchrun_and_alone(files, tmp_path):
    arguments, vectors, labels = files
    settings = ["--tau", str(TAU), "--power", "0.5", "--class-prior", "empirical"]
    many, one = str(tmp_path / "many.npy"), str(tmp_path / "one.npy")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    weights = ["-m", "study", "distributed", "weights", *arguments, many, *settings]
    call(ROOT, sys.executable, *torchrun, *weights)
    assert cli.main(["distributed", "weights", *arguments, one, *settings]) == 0
    assert not dist.is_initialized()
    expected = cid_weights(vectors, labels, TAU, power=0.5, class_prior="empirical")
    for path in (many, one):
        assert np.load(path).dtype == np.float32
        np.testing.assert_allclose(np.load(path), expected, rtol=1e-5)
    assert not list(tmp_path.glob("*.partial"))


def test_bad_files_are_named(files, tmp_path, capsys):
    (embeddings, labels), _, values = files
    out = str(tmp_path / "weights.npy")
    np.save(labels, values[1:])
    assert cli.main(["distributed", "weights", embeddings, labels, out, "--tau", "0.1"]) == 1
    assert "labels.npy has shape (300,) but" in capsys.readouterr().err
    assert cli.main(["distributed", "weights", "nowhere.npy", labels, out, "--tau", "0.1"]) == 1
    assert "nowhere.npy" in capsys.readouterr().err
    np.save(labels, values)
    assert cli.main(["distributed", "weights", embeddings, labels, out, "--tau", "0"]) == 1
    assert "tau is 0.0" in capsys.readouterr().err
    assert not dist.is_initialized()
    assert not Path(out).exists()


@pytest.mark.parametrize("way", ["embeddings", "labels", "link"])
def test_what_is_read_is_not_written_over(files, tmp_path, capsys, way):
    (embeddings, labels), vectors, _ = files
    before = Path(embeddings).read_bytes(), Path(labels).read_bytes()
    (tmp_path / "link.npy").hardlink_to(embeddings)
    out = (
        str(tmp_path / "sub" / ".." / f"{way}.npy") if way != "link" else str(tmp_path / "link.npy")
    )
    (tmp_path / "sub").mkdir()
    assert cli.main(["distributed", "weights", embeddings, labels, out, "--tau", "0.1"]) == 1
    assert f"{out} is to be written but is also read; name a new file" in capsys.readouterr().err
    assert (Path(embeddings).read_bytes(), Path(labels).read_bytes()) == before


PARAMS = """
task: smiling
methods: [erm, cid]
train: {model: %s, l2: 0.1, through: loss, robust: {}, network: {epochs: 2, jtt_epochs: 1}}
"""


class Labels:
    """What the stage data leaves: labels of the task."""

    def labels(self, task):
        return {"smiling": np.arange(80) % 2}[task]


def say(monkeypatch, text: str) -> None:
    """Let params.yaml hold a text; whether it is valid is tested elsewhere."""
    monkeypatch.setattr(distributed.params, "read", lambda: YAML(typ="safe").load(text))


def test_processes_leave_their_runs_where_the_stage_train_finds_them(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 6)).astype(np.float32)
    parts = np.repeat(["train", "seen"], [60, 20])
    sets = pd.concat(
        [
            pd.DataFrame({"level": level, "seed": s, "part": parts, "row": rng.permutation(80)})
            for level in (0.5, 0.9)
            for s in range(3)
        ],
        ignore_index=True,
    )
    sets = sets.assign(minority=0.0, erm=1.0, cid=rng.exponential(size=len(sets)))
    monkeypatch.chdir(tmp_path)
    for folder in ("build/embed", "build/weights"):
        Path(folder).mkdir(parents=True)
    np.save("build/embed/trunk.npy", features)
    sets.to_parquet("build/weights/sets.parquet")
    say(monkeypatch, PARAMS % "mlp")
    monkeypatch.setattr(distributed, "read_labels", Labels)

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert cli.main(["distributed", "train", "0.9"]) == 0
        assert len(list(Path("build/runs").iterdir())) == 3 * (rank + 1)
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert cli.main(["distributed", "train"]) == 0
    assert len(list(Path("build/runs").iterdir())) == 12

    # As in notebooks/compute/train.ipynb.
    train = {"model": "mlp", "network": {"epochs": 2, "jtt_epochs": 1}}
    monkeypatch.setattr(network_runs, "fit", None)
    predictions, about = train_model(
        sets, features, None, Labels().labels("smiling"), ["erm", "cid"], train, folder="build/runs"
    )
    assert predictions.notna().all(axis=None) and about.startswith("12 networks")

    capsys.readouterr()
    assert cli.main(["distributed", "train", "0.7"]) == 1
    assert "level 0.7 is not in build/weights; known: [0.5, 0.9]" in capsys.readouterr().err
    say(monkeypatch, PARAMS % "linear")
    assert cli.main(["distributed", "train"]) == 1
    assert "train.model is linear" in capsys.readouterr().err


def test_a_process_embeds_its_share(tmp_path, monkeypatch):
    """How a share is taken is tested with :func:`study.faces.embed.embed_share`."""
    given = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "read_faces", lambda folder, check_images: folder)
    monkeypatch.setattr(distributed, "embed_share", lambda *a, **k: given.append((a, k)))
    say(monkeypatch, "embed: {network: dlib-resnet, detect: false}")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["distributed", "embed"]) == 0
    settings = {"network": "dlib-resnet", "detect": False}
    assert given == [(("data", settings, 1, 3), {"folder": distributed.KEPT})]
