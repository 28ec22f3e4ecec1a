"""The local label posterior against sklearn, brute force, and populations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from cid import density, pairs, posterior
from cid.posterior import (
    NEIGHBOURS,
    PSEUDO_MASS,
    WIDTHS,
    label_posterior,
    new_posterior,
    without_class_direction,
)


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    return unit(rng.normal(size=(120, 6))), rng.integers(0, 3, size=120)


@pytest.fixture(scope="module")
def people():
    """60 people of 30 images, label 1 with chance .2 or .8; well apart in the proxy."""
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(60), 30)
    label = (rng.random(1800) < np.where(person % 2, 0.8, 0.2)).astype(int)
    return (
        unit(rng.normal(size=(60, 16))[person] + 0.05 * rng.normal(size=(1800, 16))),
        label,
        person,
    )


@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_are_sklearns(cloud, k):
    z, y = cloud
    near = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False)
    prior = np.bincount(y) / len(y)
    expected = ((y[near] == y[:, None]).sum(1) + 3 * prior[y]) / (k + 3)
    found = label_posterior(z, y, scale=k, slope=1.0)
    np.testing.assert_allclose(found.probability, expected)
    assert found.loss == pytest.approx(-np.log(expected).mean())
    assert found.prior_loss == pytest.approx(-np.log(prior[y]).mean())


def test_kernel_is_brute_force(cloud):
    z, y = cloud
    kernel = np.exp((z @ z.T - 1) / 0.1)
    np.fill_diagonal(kernel, 0)
    prior = np.bincount(y) / len(y)
    same = (kernel * (y[:, None] == y)).sum(1)
    tries = [(same + s * prior[y]) / (kernel.sum(1) + s) for s in PSEUDO_MASS]
    best = min(tries, key=lambda p: -np.log(p).mean())
    found = label_posterior(z, y, estimator="kernel", scale=0.1, slope=1.0)
    np.testing.assert_allclose(found.probability, best, rtol=1e-6)


def test_slope_sharpens_the_odds_against_the_prior(cloud):
    z, y = cloud
    prior = (np.bincount(y) / len(y))[y]
    assert label_posterior(z, y, scale=5, slope=0.0).probability == pytest.approx(prior)
    binary = (y > 0).astype(int)
    prior = (np.bincount(binary) / len(y))[binary]

    def odds(slope):
        p = label_posterior(z, binary, scale=5, slope=slope).probability
        return p / (1 - p) / (prior / (1 - prior))

    np.testing.assert_allclose(odds(2.0), odds(1.0) ** 2)


@pytest.mark.parametrize("estimator", ["knn", "kernel"])
def test_auto_is_the_likeliest_of_all_that_are_tried(cloud, estimator):
    z, y = cloud
    chosen = label_posterior(z, y, estimator=estimator)
    scales = NEIGHBOURS if estimator == "knn" else WIDTHS
    for scale in scales:
        for slope in (0.0, 0.5, 1.0, 2.0):
            other = label_posterior(z, y, estimator=estimator, scale=scale, slope=slope)
            assert chosen.loss <= other.loss + 1e-4


def test_many_samples_are_counted_pair_by_pair_under_a_width_chosen_on_some(people, monkeypatch):
    z, y, _ = people
    y = y + (np.arange(len(y)) % 5 == 0)  # three classes
    few = [
        label_posterior(z, y, estimator="kernel", scale=scale, slope=1.0)
        for scale in (0.002, 0.03, "auto")
    ]
    monkeypatch.setattr(posterior, "MANY", 1000)
    monkeypatch.setattr(density, "PROBES", 500)
    for known, scale in zip(few, (0.002, 0.03, "auto"), strict=True):
        found = label_posterior(z, y, estimator="kernel", scale=scale, slope=1.0)
        assert found.scale == pytest.approx(known.scale, rel=0.5)  # a step of the widths, at most
        if scale != "auto":
            np.testing.assert_allclose(found.probability, known.probability, rtol=1e-4)
    assert density.probes(1001).tolist()[:3] == [0, 3, 6] and len(density.probes(500)) == 500


@pytest.mark.parametrize("estimator", ["knn", "kernel"])
def test_blocks_of_any_size_count_the_same(cloud, monkeypatch, estimator):
    whole = label_posterior(*cloud, estimator=estimator).probability
    monkeypatch.setattr(pairs, "PAIRS", 7 * len(cloud[0]))
    parts = label_posterior(*cloud, estimator=estimator).probability
    np.testing.assert_allclose(parts, whole, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["knn", "kernel"])
def test_it_finds_the_share_of_the_label_in_each_person(people, estimator):
    z, y, person = people
    found = label_posterior(z, y, estimator=estimator).probability
    chance = np.where(person % 2 == y, 0.8, 0.2)
    for value in (0.2, 0.8):
        assert found[chance == value].mean() == pytest.approx(value, abs=0.05)


def test_where_the_proxy_tells_nothing_the_posterior_is_the_prior():
    rng = np.random.default_rng(2)
    z, y = rng.normal(size=(600, 8)), rng.integers(0, 2, size=600)
    found = label_posterior(z, y)
    assert abs(found.probability - 0.5).max() < 0.15
    assert found.loss == pytest.approx(np.log(2), abs=0.01)


def test_the_own_label_of_an_image_does_not_count(people):
    z, y, _ = people
    flipped = y.copy()
    flipped[0] ^= 1
    before = label_posterior(z, y, scale=10, slope=1.0).probability[0]
    after = label_posterior(z, flipped, scale=10, slope=1.0).probability[0]
    assert before + after == pytest.approx(1, abs=2e-3)  # up to the class frequencies


def test_the_direction_of_the_label_is_removed_and_the_people_stay(people):
    z, _, person = people
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, size=len(z))
    direction = unit(rng.normal(size=(1, 16)))[0]
    leaking = unit(z + 0.3 * np.outer(2 * label - 1, direction))
    cleaned = without_class_direction(leaking, label)
    np.testing.assert_allclose(np.linalg.norm(cleaned, axis=1), 1, rtol=1e-6)

    def auc(vectors, codes, among):
        first, second = np.triu_indices(len(vectors), 1)
        kept = among[first] == among[second] if among is not None else slice(None)
        same = (codes[first] == codes[second])[kept]
        return roc_auc_score(same, (vectors @ vectors.T)[first, second][kept])

    assert auc(leaking, label, person) > 0.95
    assert auc(cleaned, label, person) < 0.6
    assert auc(cleaned, person, None) > 0.98


def test_the_direction_of_many_is_that_of_some(people, monkeypatch):
    z, _, _ = people
    rng = np.random.default_rng(4)
    label = rng.integers(0, 2, size=len(z))
    leaking = unit(z + 0.3 * np.outer(2 * label - 1, unit(rng.normal(size=(1, 16)))[0]))
    every = without_class_direction(leaking, label)
    monkeypatch.setattr(posterior, "MANY", 500)
    monkeypatch.setattr(density, "PROBES", 250)
    some = without_class_direction(leaking, label)
    assert 0 < np.abs(some - every).max() < 0.02


def test_bad_input_is_named():
    z = np.random.default_rng(0).normal(size=(8, 3))
    y = np.array([0, 1] * 4)
    with pytest.raises(ValueError, match="estimator is 'knnn'; it must be knn or kernel"):
        label_posterior(z, y, estimator="knnn")
    with pytest.raises(
        ValueError, match="scale is 8; it must be a whole number below .* samples, 8"
    ):
        label_posterior(z, y, scale=8)
    with pytest.raises(ValueError, match="scale is 'wide'; it must be a number above 0, or auto"):
        label_posterior(z, y, estimator="kernel", scale="wide")
    with pytest.raises(
        ValueError, match="all labels are 1; a posterior needs at least two classes"
    ):
        label_posterior(z, np.ones(8, int))
    with pytest.raises(ValueError, match=r"labels have shape \(7,\) but there are 8 samples"):
        without_class_direction(z, y[:7])


def test_local_scaling_takes_hubs_off_the_lists():
    # Sample 0 is nearer to a crowd of the other class than to the few, far apart, of its own.
    rng = np.random.default_rng(0)
    crowd = np.array([1.0, 0.0, 0.0]) + 0.01 * rng.normal(size=(12, 3))
    alone = np.array([[0.8, 0.6, 0.0], [0.1, 0.99, 0.1], [0.1, 0.99, -0.1], [0.0, 1.0, 0.0]])
    points = np.vstack([alone, crowd]).astype(np.float32)
    labels = np.array([1] * 4 + [0] * 12)
    plain, scaled = (
        label_posterior(points, labels, scale=3, slope=1.0, local_scaling=on).probability[0]
        for on in (False, True)
    )
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -3)
    crowding = np.sort(cosine, axis=1)[:, -10:].mean(axis=1)
    for found, score in ((plain, cosine[0]), (scaled, cosine[0] - crowding / 2)):
        own = labels[np.argsort(-score)[:3]].sum()
        assert found == pytest.approx((own + 2 * 0.25) / (3 + 2))
    assert scaled > plain


@pytest.mark.parametrize("k", [1, 7])
def test_new_samples_count_sklearns_neighbours(cloud, k):
    z, y = cloud
    new = unit(np.random.default_rng(1).normal(size=(30, 6)))
    near = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(new, return_distance=False)
    prior = np.bincount(y) / len(y)
    expected = ((y[near][..., None] == np.arange(3)).sum(1) + 3 * prior) / (k + 3)
    found = new_posterior(z, y, new, scale=k, slope=1.0)
    np.testing.assert_allclose(found.probability, expected)
    sharper = new_posterior(z, y, new, scale=k, slope=2.0).probability
    odds = (expected / prior) ** 2 * prior
    np.testing.assert_allclose(sharper, odds / odds.sum(axis=1, keepdims=True))


def test_new_samples_under_a_kernel_are_brute_force(cloud):
    z, y = cloud
    new = unit(np.random.default_rng(1).normal(size=(30, 6)))
    kernel = np.exp((new @ z.T - 1) / 0.1)
    mass = np.stack([kernel[:, y == code].sum(1) for code in range(3)], axis=1)
    prior = np.bincount(y) / len(y)
    found = new_posterior(z, y, new, estimator="kernel", scale=0.1, slope=1.0)
    smoothed = (mass + found.smoothing * prior) / (mass.sum(1, keepdims=True) + found.smoothing)
    assert found.smoothing in PSEUDO_MASS
    np.testing.assert_allclose(found.probability, smoothed, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["knn", "kernel"])
@pytest.mark.parametrize("local_scaling", [False, True])
def test_new_samples_are_scored_by_what_the_training_samples_chose(
    people, estimator, local_scaling, monkeypatch
):
    z, y, _ = people
    options = {"estimator": estimator, "local_scaling": local_scaling}
    alone = label_posterior(z[:900], y[:900], **options)
    new = new_posterior(z[:900], y[:900], z[900:1000], **options)
    for name in ("scale", "smoothing", "slope", "loss", "prior_loss"):
        assert getattr(new, name) == getattr(alone, name)
    np.testing.assert_allclose(new.probability.sum(axis=1), 1)
    # One sample left out and scored as a new one is that sample of the leave-one-out estimate, nearly.
    fixed = {**options, "scale": new.scale, "slope": new.slope}
    left_out = new_posterior(z[1:900], y[1:900], z[:1], **fixed).probability[0, y[0]]
    assert left_out == pytest.approx(
        label_posterior(z[:900], y[:900], **fixed).probability[0], abs=0.01
    )
    monkeypatch.setattr(pairs, "PAIRS", 7 * 900)
    parts = new_posterior(z[:900], y[:900], z[900:1000], **options)
    np.testing.assert_allclose(parts.probability, new.probability, rtol=1e-9)


def test_what_many_samples_chose_is_chosen_by_some(people, monkeypatch):
    z, y, _ = people
    every = new_posterior(z[:1700], y[:1700], z[1700:])
    monkeypatch.setattr(posterior, "MANY", 1000)
    monkeypatch.setattr(density, "PROBES", 500)
    some = new_posterior(z[:1700], y[:1700], z[1700:])
    assert some.loss == pytest.approx(every.loss, abs=0.06)
    assert np.abs(some.probability - every.probability).mean() < 0.05


def test_the_direction_leaves_new_samples_as_it_leaves_the_others(people):
    z, _, _ = people
    label = np.random.default_rng(3).integers(0, 2, size=len(z))
    leaking = unit(z + 0.3 * np.outer(2 * label - 1, unit(np.ones((1, 16)))[0]))
    cleaned, new = without_class_direction(leaking, label, leaking[:50])
    np.testing.assert_allclose(new, cleaned[:50])
    np.testing.assert_allclose(cleaned, without_class_direction(leaking, label))
    with pytest.raises(ValueError, match="new embeddings have 3 dimensions and the others 16"):
        without_class_direction(leaking, label, np.ones((2, 3)))
    tensor = new_posterior(torch.from_numpy(z), label, torch.from_numpy(z[:5])).probability
    assert isinstance(tensor, torch.Tensor) and tensor.shape == (5, 2)
