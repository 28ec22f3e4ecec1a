"""Neighbours from likely cells against all pairs, and the posterior that follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cid
from cid import cells, large, neighbours, posterior, weights
from cid.arrays import unit_vectors
from cid.neighbours import likely_neighbours, neighbours_among_all


@pytest.fixture(scope="module")
def people():
    """1,500 images of 75 people, each with a preferred label."""
    rng = np.random.default_rng(0)
    person = rng.integers(75, size=1500)
    vectors = 1.5 + rng.normal(size=(75, 24))[person] + 0.5 * rng.normal(size=(1500, 24))
    labels = (rng.random(1500) < np.where(person % 2, 0.8, 0.2)).astype(int)
    return vectors.astype(np.float32), labels


@pytest.fixture
def small(monkeypatch):
    """Cells so small that a set of fifteen hundred has many."""
    for name, value in {"SIZE": 16, "CANDIDATES": 40, "NEXT": 8}.items():
        monkeypatch.setattr(cells, name, value)
    for name, value in {"BATCH": 500, "GROUP": 64, "LOOKS": 12}.items():
        monkeypatch.setattr(neighbours, name, value)


def brute(vectors, k):
    unit = unit_vectors(vectors).double()
    return (unit @ unit.T).fill_diagonal_(-2).topk(k, dim=1).indices.numpy()


def test_neighbours_among_all_are_those_of_brute_force(people):
    vectors, _ = people
    rows = np.arange(0, 1500, 7)
    found = neighbours_among_all(unit_vectors(vectors), rows, 10)
    np.testing.assert_array_equal(found, brute(vectors, 10)[rows])


def test_who_looks_into_every_cell_finds_the_nearest_in_their_order(small, monkeypatch, people):
    monkeypatch.setattr(neighbours, "LOOKS", 10_000)
    monkeypatch.setattr(cells, "CANDIDATES", 10_000)
    monkeypatch.setattr(neighbours, "AGAIN", 0.001)
    vectors, _ = people
    found = likely_neighbours(unit_vectors(vectors), 7).rows
    assert (found == brute(vectors, 7)).mean() > 0.999  # but for ties


def test_likely_cells_hold_most_and_the_doubtful_look_at_all(small, monkeypatch, people):
    vectors, _ = people
    unit = unit_vectors(vectors)
    true = brute(vectors, 7)
    monkeypatch.setattr(neighbours, "AGAIN", 0.2)
    found = likely_neighbours(unit, 7)
    assert likely_neighbours(unit, 7).rows.tobytes() == found.rows.tobytes()
    assert 0.19 < found.again.mean() < 0.3
    assert (found.rows == true)[found.again].mean() > 0.999
    assert not (found.rows == np.arange(1500)[:, None]).any()
    monkeypatch.setattr(neighbours, "AGAIN", 0.001)
    before = likely_neighbours(unit, 7).rows
    recall = np.array([np.isin(a, b).mean() for a, b in zip(true, before, strict=True)])
    assert 0.9 < recall.mean() < 1
    assert recall[found.again].mean() < recall[~found.again].mean()  # the right ones were in doubt


def test_the_posterior_is_exact_up_to_a_size_and_then_says_what_it_missed(
    small, monkeypatch, people
):
    vectors, labels = people
    exact = posterior.label_posterior(vectors, labels)
    found = cid.label_posterior(vectors, labels)
    np.testing.assert_array_equal(found.probability, exact.probability)
    assert cid.label_posterior(vectors, labels, return_check=True)[1] == large.EXACT_CHECK
    monkeypatch.setattr(large, "MANY", 1000)
    found, check = cid.label_posterior(torch.from_numpy(vectors), labels, return_check=True)
    assert isinstance(found.probability, torch.Tensor) and found.scale == exact.scale
    off = np.abs(found.probability.numpy() / exact.probability - 1)
    assert np.quantile(off, 0.9) < 0.05
    assert 0.9 < check.recall <= 1 and check.median <= check.most <= check.largest
    assert check.most == pytest.approx(np.quantile(off, 0.95), abs=0.02)
    assert 0 < check.looked_up < 0.1


def test_surprise_weights_beyond_a_size_are_near_the_exact_ones(small, monkeypatch, people):
    vectors, labels = people
    exact = weights.surprise_weights(vectors, labels)
    np.testing.assert_array_equal(cid.surprise_weights(vectors, labels), exact)
    monkeypatch.setattr(large, "MANY", 1000)
    found, check = cid.surprise_weights(vectors, labels, return_check=True)
    assert found.dtype == np.float32 and found.mean() == pytest.approx(1, rel=1e-5)
    assert np.median(np.abs(found / exact - 1)) < 0.02 and check.recall > 0.9
    np.testing.assert_array_equal(cid.surprise_weights(vectors, labels, method="exact"), exact)


@pytest.mark.parametrize("setting", [{"estimator": "kernel"}, {"local_scaling": True}])
def test_cells_refuse_what_they_cannot_find(setting, people):
    with pytest.raises(ValueError, match="method 'cells' needs estimator 'knn'"):
        cid.label_posterior(*people, method="cells", **setting)
