"""One product for all factors of a training set, against the functions that compute one each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from cid import density, pairs, posterior
from cid.arrays import unit_vectors
from cid.density import class_density, neighbour_width
from cid.factors import Factors
from cid.pairs import Pairs, nearest
from cid.posterior import label_posterior, without_class_direction


@pytest.fixture(scope="module", params=[2, 3])
def faces(request):
    """40 people of 8 images with a common direction, and that of their label."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 8)
    labels = (person + (rng.random(320) < 0.3)) % request.param
    vectors = 1 + rng.normal(size=(40, 24))[person] + 0.5 * rng.normal(size=(320, 24))
    vectors[:, 0] += 2.0 * labels
    return vectors.astype(np.float32), labels


@pytest.mark.parametrize("kept", [2**28, 0])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_factors_are_what_each_function_computes(faces, monkeypatch, kept, kind):
    monkeypatch.setattr(pairs, "KEPT", kept)
    monkeypatch.setattr(pairs, "CACHED", 50 * len(faces[0]))  # several blocks
    vectors, labels = faces[0].astype(kind), faces[1]
    factors = Factors(vectors, labels)
    tolerance = 2e-5 if kind == np.float32 else 1e-9
    width = neighbour_width(vectors)
    assert factors.width == pytest.approx(width, rel=tolerance)
    one = np.zeros(len(labels), int)
    for options in ({"tau": 0.02}, {"tau": 1e-4}, {"tau": 0.02, "include_self": False}):
        found = factors.density(**options)
        assert found.dtype == kind
        np.testing.assert_allclose(found, class_density(vectors, one, **options), rtol=tolerance)
        found = factors.density(in_class=True, **options)
        np.testing.assert_allclose(found, class_density(vectors, labels, **options), rtol=tolerance)
    cleaned = without_class_direction(vectors, labels)
    for options in ({}, {"local_scaling": True}, {"estimator": "kernel"}):
        for keep, given in ((True, vectors), (False, cleaned)):
            found = factors.posterior(keep_class_direction=keep, **options)
            known = label_posterior(given, labels, **options)
            assert found.scale == known.scale
            np.testing.assert_allclose(found.probability, known.probability, rtol=1e-3)


def test_the_best_slope_is_scipys(faces):
    vectors, labels = faces
    for k in (1, 5, 20):
        found = label_posterior(vectors, labels, scale=k)

        def loss(slope, k=k):
            return label_posterior(vectors, labels, scale=k, slope=slope).loss

        best = minimize_scalar(loss, bounds=(0, 4), method="bounded", options={"xatol": 1e-8})
        assert found.slope == pytest.approx(best.x, abs=1e-5)


def test_a_slope_without_an_end_stops_at_the_limits():
    base = np.zeros((1, 200))
    odds = np.stack([np.full((1, 200), -1.0), np.full((1, 200), 1.0)])  # always right, always wrong
    assert posterior._likeliest_slopes(base, odds).tolist() == [posterior.MAX_SLOPE, 0.0]


def test_the_nearest_come_in_order_also_where_some_are_as_near():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(20, 50)).astype(np.float32)
    values[3:5] = np.round(values[3:5])
    for k in (1, 7, 50):
        columns = nearest(torch.from_numpy(values), k).numpy()
        found = np.take_along_axis(values, columns, axis=1)
        np.testing.assert_array_equal(found, -np.sort(-values, axis=1)[:, :k])
        assert all(len(set(row)) == k for row in columns.tolist())


def test_what_is_left_of_almost_nothing_is_compared_anew(faces):
    vectors, labels = faces
    unit = unit_vectors(vectors)
    basis = torch.eye(24)[:, :1]
    unit[0] = torch.eye(24)[0] + 1e-3 * torch.eye(24)[5]
    found = Pairs(unit, labels, keep=True).without(basis)
    left = unit.double() - (unit.double() @ basis.double()) @ basis.T.double()
    left /= left.norm(dim=1, keepdim=True)
    expected = (left @ left.T - 1)[found.order][:, found.order].fill_diagonal_(0)
    block = torch.cat([nearness.clone() for _, nearness in found.blocks(own=0.0)])
    np.testing.assert_allclose(block, expected, atol=1e-4)


def test_no_block_is_larger_than_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(
        density, "nearest_value", lambda block, k: seen.append(block) or block[:, 0]
    )
    monkeypatch.setattr(pairs, "PAIRS", 700)
    neighbour_width(np.random.default_rng(0).normal(size=(100, 5)))
    assert len(seen) == 15 and all(block.numel() <= 700 for block in seen)


def test_one_product_serves_all(faces, monkeypatch):
    formed = []
    original = pairs._own_product
    monkeypatch.setattr(pairs, "_own_product", lambda *a: formed.append(1) or original(*a))
    monkeypatch.setattr(Pairs, "_formed", None)
    factors = Factors(*faces)
    factors.density()
    factors.density(in_class=True)
    for estimator in ("knn", "kernel"):
        factors.posterior(estimator=estimator)
        factors.posterior(estimator=estimator, keep_class_direction=True)
    assert len(formed) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "tree"}, "estimator"),
        ({"slope": -1.0}, "slope"),
        ({"scale": 0}, "scale"),
        ({"keep_class_direction": "yes"}, "keep_class_direction"),
    ],
)
def test_a_setting_out_of_range_is_named(faces, arguments, message):
    factors = Factors(*faces)
    with pytest.raises(ValueError, match=message):
        factors.posterior(**arguments)
    with pytest.raises(ValueError, match="tau"):
        factors.density(tau=-1)
    with pytest.raises(ValueError, match="at least two classes"):
        Factors(faces[0], np.zeros(len(faces[0]), int)).posterior()
