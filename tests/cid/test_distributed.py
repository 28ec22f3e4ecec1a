"""Weights and training on several processes against one. Groups are gloo's, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cid import align, distributed, networks
from cid.density import cid_weights
from cid.distributed import distributed_cid_weights
from study.distributed import main
from study.experiment import runs
from study.faces import embed

TAU = 0.02
WORLDS = [2, 3, 4]  # processes in a group
SECONDS = 50  # after which processes count as stuck


def people(n=500, d=24, classes=2, dtype=np.float32):
    """Clustered vectors with a common direction, as face embeddings have; and labels."""
    rng = np.random.default_rng(0)
    vectors = 2 + rng.normal(size=(20, d))[rng.integers(20, size=n)] + 0.4 * rng.normal(size=(n, d))
    return vectors.astype(dtype), rng.integers(classes, size=n)


def case(name):
    """Embeddings, labels and settings; the ranks take unequal shares of the rows, in order."""
    vectors, labels = people(classes=3 if name in ("lacking", "lone") else 2)
    if name == "empirical":
        return vectors, labels, {"class_prior": "empirical"}
    if name == "power":
        return vectors, labels, {"power": 0.5}
    if name == "without_self":
        return vectors, labels, {"include_self": False}
    if name == "lacking":  # sorted, so that the first rank never has class 2
        return vectors, np.sort(labels) - 7, {}
    if name == "lone":  # class 2 is one sample
        labels[labels == 2] = 0
        labels[41] = 2
        return vectors, labels, {"include_self": False, "class_prior": "empirical"}
    if name == "float64":
        return vectors.astype(np.float64), labels, {}
    if name == "tensors":
        return torch.from_numpy(vectors), torch.from_numpy(labels), {"device": "cpu"}
    return vectors, labels, {}


CASES = ["plain", "empirical", "power", "without_self", "lacking", "lone", "float64", "tensors"]


def spoilt(name, rank, vectors, labels):
    """Arguments and settings of which those of rank 1 are bad; and what is to be said of it."""
    settings = {"tau": TAU}
    if rank == 1:
        if name == "nan":
            vectors = vectors.copy()
            vectors[3, 2] = np.nan
        elif name == "labels":
            labels = labels[:-1]
        elif name == "text":
            labels = labels.astype(str)
        elif name == "none":
            vectors, labels = vectors[:0], labels[:0]
        elif name == "differ":
            settings["tau"] = 2 * TAU
        elif name == "dimension":
            vectors = vectors[:, :-1]
        elif name == "tau":
            settings["tau"] = -1
    return vectors, labels, settings


SPOILT = {
    "nan": "input of rank 1: embeddings row 3 holds NaN",
    "labels": "input of rank 1: labels have shape",
    "text": "input of rank 1: labels are <U21; number the classes",
    "none": "input of rank 1: embeddings have shape (0, 24)",
    "differ": "rank 1 has {'tau': 0.04",
    "dimension": "'d': 23, 'dtype': 'torch.float32'} but rank 0 has",
    "tau": "input of rank 1: tau is -1; it must",
    "stray": "samples have no neighbour of their class within reach",
}


def share(n, rank, world):
    """Ranks' shares grow: 1 : 2 : ..."""
    ends = np.cumsum(np.r_[0, np.arange(1, world + 1)]) * n // (world * (world + 1) // 2)
    return slice(ends[rank], ends[rank + 1])


def work(rank, folder):
    """What every process does: all cases in groups of every size, as starting it takes longest."""
    torch.set_num_threads(1)
    distributed.BLOCK = 64
    for world in WORLDS[WORLDS.index(max(2, rank + 1)) :]:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store-{world}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=SECONDS),
        )
        compute(rank, world, folder)
        dist.destroy_process_group()


def compute(rank, world, folder):
    for name in CASES:
        vectors, labels, settings = case(name)
        rows = share(len(vectors), rank, world)
        weights = distributed_cid_weights(vectors[rows], labels[rows], TAU, **settings)
        assert isinstance(weights, type(vectors))
        np.save(f"{folder}/{name}-{rank}-of-{world}.npy", weights)
    said = {}
    for name in SPOILT:
        vectors, labels = people()
        rows = share(len(vectors), rank, world)
        vectors, labels, settings = spoilt(name, rank, vectors[rows], labels[rows])
        if name == "stray":
            settings = {"tau": 1e-6, "include_self": False}
        try:
            distributed_cid_weights(vectors, labels, **settings)
        except ValueError as error:
            said[name] = str(error)
    Path(f"{folder}/said-{rank}-of-{world}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder where the processes left their results."""
    folder = tmp_path_factory.mktemp("results")
    processes = mp.spawn(work, (str(folder),), nprocs=WORLDS[-1], join=False)
    until = time.monotonic() + SECONDS
    while not processes.join(timeout=1):
        if time.monotonic() > until:
            for process in processes.processes:
                process.kill()
            pytest.fail("the processes are stuck")
    return folder


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_one_process(results, world, name):
    vectors, labels, settings = case(name)
    parts = [np.load(results / f"{name}-{rank}-of-{world}.npy") for rank in range(world)]
    found = np.concatenate(parts)
    expected = np.asarray(cid_weights(vectors, labels, TAU, **settings))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-11 if name == "float64" else 1e-5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", SPOILT)
def test_bad_input_of_one_rank_is_named_on_all(results, world, name):
    for rank in range(world):
        said = json.loads((results / f"said-{rank}-of-{world}.json").read_text())
        assert SPOILT[name] in said[name]


def test_without_a_group_torchrun_is_named():
    with pytest.raises(RuntimeError, match="torchrun --nproc-per-node 2"):
        distributed_cid_weights(*people(), TAU)


# --- command line ---------------------------------------------------------------------------------


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
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            *torchrun,
            "cid.distributed",
            "weights",
            *arguments,
            many,
            *settings,
        ],
        check=True,
        timeout=SECONDS,
    )
    assert main(["weights", *arguments, one, *settings]) == 0
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
    assert main(["weights", embeddings, labels, out, "--tau", "0.1"]) == 1
    assert "labels.npy has shape (300,) but" in capsys.readouterr().err
    assert main(["weights", "nowhere.npy", labels, out, "--tau", "0.1"]) == 1
    assert "nowhere.npy" in capsys.readouterr().err
    np.save(labels, values)
    assert main(["weights", embeddings, labels, out, "--tau", "0"]) == 1
    assert "tau is 0.0" in capsys.readouterr().err
    assert not dist.is_initialized()
    assert not Path(out).exists()


PARAMS = """
task: smiling
methods: [erm, cid]
train: {model: %s, l2: 0.1, through: loss, robust: {}, network: {epochs: 2, jtt_epochs: 1}}
"""


def test_processes_leave_their_runs_where_the_stage_train_finds_them(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(80, 6)).astype(np.float32), np.arange(80) % 2
    parts = np.repeat(["train", "seen"], [60, 20])
    sets = pd.concat(
        [pd.DataFrame({"seed": s, "part": parts, "row": rng.permutation(80)}) for s in range(3)],
        ignore_index=True,
    ).assign(erm=1.0, cid=rng.exponential(size=240))
    data = SimpleNamespace(labels=lambda task: {"smiling": labels}[task])
    monkeypatch.chdir(tmp_path)
    for folder in ("build/embed", "build/weights/0.9"):
        Path(folder).mkdir(parents=True)
    np.save("build/embed/trunk.npy", features)
    np.savez("build/embed/detection.npz", landmarks=np.zeros((80, 5, 2)))
    sets.to_parquet("build/weights/0.9/sets.parquet")
    Path("params.yaml").write_text(PARAMS % "mlp")
    monkeypatch.setattr(distributed, "read_faces", lambda *args, **how: data)

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert main(["train", "0.9"]) == 0
        assert len(list(Path("build/runs").iterdir())) == 3 * (rank + 1)

    # As in notebooks/04_train.ipynb.
    train = {"model": "mlp", "network": {"epochs": 2, "jtt_epochs": 1}}
    monkeypatch.setattr(networks, "fit", None)
    predictions, about = runs.train_model(
        sets, data, features, None, labels, ["erm", "cid"], train, folder="build/runs"
    )
    assert predictions.notna().all(axis=None) and about.startswith("6 networks")

    Path("params.yaml").write_text(PARAMS % "linear")
    capsys.readouterr()
    assert main(["train", "0.9"]) == 1
    assert "train.model is linear" in capsys.readouterr().err


def test_processes_leave_their_chunks_where_the_stage_embed_finds_them(tmp_path, monkeypatch):
    photos = np.random.default_rng(0).integers(0, 256, (5, 60, 50, 3), dtype=np.uint8)
    points = np.repeat((align.DLIB_TEMPLATE * 40 + 5)[None], 5, axis=0).astype(np.float32)

    class Photos(list):
        def images(self, rows=None):
            return (self[row] for row in (range(5) if rows is None else rows))

        def landmarks(self):
            return points

    data = Photos(photos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "read_faces", lambda *args, **how: data)
    monkeypatch.setattr(distributed, "CHUNK", 2)
    Path("params.yaml").write_text(
        "embed: {network: dlib-resnet, trunk: dlib-resnet, precision: single, detect: false}"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, files in enumerate([2, 3]):
        monkeypatch.setenv("RANK", str(rank))
        assert main(["embed"]) == 0
        assert len(list(Path("build/embedding").iterdir())) == files

    # As in notebooks/02_embed.ipynb.
    whole = embed.embed_faces(data, landmarks=points, chunk=2, progress=False)
    monkeypatch.setattr(embed, "embed", None)
    found = embed.embed_faces(
        data.images(), landmarks=points, chunk=2, folder="build/embedding", progress=False
    )
    assert torch.equal(found.embedding, whole.embedding)
    assert torch.equal(found.trunk, whole.trunk)
