"""Weights on several processes against one. Groups are gloo's, on the CPU."""

from __future__ import annotations

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cid import density
from cid.distributed import distributed_cid_weights
from cid.weights import cid_weights

TAU = 0.02
WORLDS = [2, 3, 4]  # processes in a group
PATIENCE = timedelta(hours=1)  # of one process for another: no test fails because a machine is slow


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
    density.BLOCK = 64
    for world in WORLDS[WORLDS.index(max(2, rank + 1)) :]:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store-{world}",
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
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
    # All are forked from one process that has imported the packages and has no threads.
    multiprocessing.set_forkserver_preload(["torch.distributed", "torch.multiprocessing", "pytest"])
    # If one process dies, this ends the others, which would wait for it, and raises its error.
    mp.start_processes(work, (str(folder),), nprocs=WORLDS[-1], start_method="forkserver")
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
