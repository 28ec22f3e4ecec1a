"""Densities from a part of all pairs, against all pairs, and the errors that they state."""

from __future__ import annotations

import numpy as np
import pytest

import cid
from cid import cells, large, weights
from cid.cells import cell_density
from cid.density import class_density, neighbour_width

TAU = 0.05


def people(n=1500, d=24, per_person=20, seed=0):
    """Clustered vectors with a common direction; one class of two thirds, one of one."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n // per_person, d))
    vectors = 1.5 + centres[rng.integers(len(centres), size=n)] + 0.4 * rng.normal(size=(n, d))
    return vectors.astype(np.float32), (rng.random(n) < 1 / 3).astype(int)


@pytest.fixture
def small(monkeypatch):
    """Cells so small that a set of fifteen hundred has many."""
    for name, value in {
        "SIZE": 16, "LOOKS": (6, 6), "DRAWS": (256, 256), "CANDIDATES": 40, "GROUP": 64, "BATCH": 500, "NEXT": 8,
    }.items():  # fmt: skip
        monkeypatch.setattr(cells, name, value)


def test_who_looks_into_every_cell_sees_the_exact_density(small, monkeypatch):
    monkeypatch.setattr(cells, "LOOKS", (10_000, 10_000))
    monkeypatch.setattr(cells, "CANDIDATES", 10_000)
    vectors, labels = people(n=900)
    density, error = cell_density(vectors, labels, TAU, few=0)
    np.testing.assert_allclose(density, class_density(vectors, labels, TAU), rtol=1e-5)
    assert (error == 0).all()


def test_a_density_by_cells_is_near_the_exact_one_and_right_in_the_mean(small, monkeypatch):
    vectors, labels = people()
    exact = class_density(vectors, labels, TAU)
    monkeypatch.setattr(cells, "AGAIN", 0)
    found = np.stack([cell_density(vectors, labels, TAU, seed=s, few=0)[0] for s in range(3)])
    off = found / exact - 1
    assert 0.001 < np.median(np.abs(off)) < 0.03  # it is an estimate, and a good one
    assert abs(off.mean()) < 0.005


def test_intervals_of_95_percent_hold_the_density_about_that_often(small, monkeypatch):
    monkeypatch.setattr(cells, "AGAIN", 0)
    vectors, labels = people()
    exact = class_density(vectors, labels, TAU)
    density, error = cell_density(vectors, labels, TAU, few=0)
    held = (np.abs(density - exact) <= 1.96 * error + 1e-6 * exact).mean()
    assert 0.85 < held < 0.99  # less than 95 of 100: near neighbours that were not seen
    z = (density - exact) / np.maximum(error, 1e-12)
    assert 0.6 < np.median(np.abs(z)) / 0.6745 < 1.6


def test_the_most_doubtful_are_computed_again_from_all_pairs(small, monkeypatch):
    vectors, labels = people()
    exact = class_density(vectors, labels, TAU)
    monkeypatch.setattr(cells, "DOUBTFUL", 0)
    monkeypatch.setattr(cells, "AGAIN", 0.2)
    density, error = cell_density(vectors, labels, TAU, few=0)
    again = error == 0
    assert 0.15 < again.mean() < 0.3
    np.testing.assert_allclose(density[again], exact[again], rtol=1e-5)
    monkeypatch.setattr(cells, "AGAIN", 0)
    before, doubt = cell_density(vectors, labels, TAU, few=0)
    assert np.median((doubt / before)[again]) > np.median((doubt / before)[~again])


def test_the_same_seed_gives_the_same_bytes_also_of_a_file(small, tmp_path):
    vectors, labels = people()
    first = cell_density(vectors, labels, TAU, few=0)
    np.save(tmp_path / "e.npy", vectors)
    stored = cell_density(np.load(tmp_path / "e.npy", mmap_mode="r"), labels, TAU, few=0)
    for one, other in zip(first, stored, strict=True):
        assert one.tobytes() == other.tobytes()
    other = cell_density(vectors, labels, TAU, seed=1, few=0)[0]
    assert (other != first[0]).any()


def test_a_kernel_too_narrow_for_float32_is_computed_from_all_pairs(small):
    vectors, labels = people(n=300)
    twice = np.concatenate([vectors, vectors]), np.concatenate([labels, labels])
    density, error = cell_density(*twice, 1e-4, few=0)
    np.testing.assert_array_equal(density, class_density(*twice, 1e-4))
    assert not error.any()


def test_the_width_of_embeddings_in_a_file_is_found_in_parts(monkeypatch, tmp_path):
    vectors, _ = people()
    monkeypatch.setattr(cells, "CHUNK", 400)
    monkeypatch.setattr(cells, "AT_ONCE", 300)
    np.save(tmp_path / "e.npy", vectors.astype(np.float16))
    stored = np.load(tmp_path / "e.npy", mmap_mode="r")
    assert cells.width_in_parts(stored) == pytest.approx(neighbour_width(stored), rel=1e-5)
    density, _ = cell_density(stored, np.zeros(len(stored), int), TAU, few=0)
    whole = cell_density(vectors.astype(np.float16), np.zeros(len(stored), int), TAU, few=0)[0]
    np.testing.assert_array_equal(density, whole)


def test_weights_are_exact_up_to_a_size_and_then_say_their_error(small, monkeypatch):
    vectors, labels = people()
    exact = weights.cid_weights(vectors, labels, TAU)
    np.testing.assert_array_equal(cid.cid_weights(vectors, labels, TAU), exact)
    _, error = cid.cid_weights(vectors, labels, TAU, return_error=True)
    assert (error == 0).all()
    monkeypatch.setattr(large, "EXACT", 700)  # the larger class goes by cells
    found, error = cid.cid_weights(vectors, labels, TAU, return_error=True)
    assert found.dtype == error.dtype == np.float32
    assert found.mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found[labels == 1], exact[labels == 1], rtol=1e-5)
    off = np.abs(found / exact - 1)[labels == 0]
    assert 0 < np.median(off) < 0.03
    assert (error[labels == 1] == 0).all() and (error[labels == 0] > 0).mean() > 0.8
    forced = cid.cid_weights(vectors, labels, TAU, method="exact")
    np.testing.assert_array_equal(forced, exact)
    without = cid.cid_weights(vectors, labels, TAU, include_self=False)
    np.testing.assert_array_equal(
        without, weights.cid_weights(vectors, labels, TAU, include_self=False)
    )


@pytest.mark.parametrize("setting", [{"include_self": False}, {"precision": "half"}])
def test_cells_refuse_what_they_cannot_estimate(setting):
    with pytest.raises(ValueError, match="method 'cells' needs include_self true"):
        cid.cid_weights(np.eye(3), [0, 0, 0], 0.1, method="cells", **setting)


def test_a_bad_row_is_named_by_its_number():
    vectors, labels = people(n=300)
    vectors[200, 3] = np.nan
    with pytest.raises(ValueError, match="row 200 holds NaN"):
        cid.cid_weights(vectors, labels, TAU, method="cells")
