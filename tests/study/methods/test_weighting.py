"""Methods: hand-worked weights, and what each may see."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from cid import density, factors, surprise_offsets
from cid.density import class_density, neighbour_width
from cid.options import KINDS
from cid.posterior import label_posterior
from cid.settings import Exponent, Options
from cid.weights import cid_weights, surprise_weights
from study.methods.base import Method
from study.methods.registry import (
    METHODS,
    all_fit_settings,
    all_weigh_settings,
    training_needs,
    training_weights,
)

ROOT = Path(__file__).parents[3]
pairwise = sklearn.metrics.pairwise_distances
SETTINGS = {
    "tau": 0.05, "power": 2.0, "temper": 2.0, "class_prior": "balanced", "include_self": True, "rarity": 1.0,
    "surprise": "auto", "neighbours": "auto", "posterior_tau": "auto",
    "keep_class_direction": False, "local_scaling": False, "clusters": "auto", "erase_clusters": "auto",
    "bias_l2": 0.1, "logit_strength": 0.75,
}  # fmt: skip
LABELS = np.array([0, 0, 0, 0, 1, 1])
PEOPLE = np.array([7, 7, 7, 8, 7, 8])


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def weigh(method, embeddings, identities=PEOPLE):
    return training_weights(method, embeddings, LABELS, identities, SETTINGS)


def test_hand_worked_weights(embeddings):
    np.testing.assert_allclose(weigh("erm", embeddings), 1)
    np.testing.assert_allclose(weigh("balanced", embeddings), [0.75] * 4 + [1.5] * 2)
    # Cells: (7, 0) of 3 images, (8, 0) of 1, (7, 1) of 1, (8, 1) of 1; each class weighs 3 in all.
    np.testing.assert_allclose(weigh("oracle", embeddings), [0.5] * 3 + [1.5] * 3)
    # By the square of the size: 1/9 for each of three against 1.
    np.testing.assert_allclose(
        weigh("oracle-tempered", embeddings), [0.25] * 3 + [2.25] + [1.5] * 2
    )


def test_cid_is_conditional_and_inverse_density_is_not(embeddings):
    np.testing.assert_allclose(
        weigh("cid", embeddings), cid_weights(embeddings, LABELS, 0.05), rtol=1e-6
    )
    near = np.eye(6, 5, dtype=np.float32) + 0.01
    near[4] = near[0]  # same place, other class: a neighbour only where the class does not count
    conditional, plain = weigh("cid", near), weigh("inverse-density", near)
    assert conditional[0] == pytest.approx(conditional[1], rel=1e-4)
    assert plain[0] == pytest.approx(plain[1] / 2, rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_positive_weights_of_mean_one(method, embeddings):
    weights = weigh(method, embeddings)
    assert (
        weights.shape == (6,)
        and (weights > 0).all()
        and weights.mean() == pytest.approx(1, rel=1e-5)
    )


@pytest.mark.parametrize("method", [m for m, spec in METHODS.items() if not spec.uses_identities])
def test_a_method_without_identity_labels_never_receives_them(method, embeddings):
    class Untouchable:
        def __getattribute__(self, name):
            raise AssertionError(f"{method} looked at the identities")

    np.testing.assert_array_equal(
        weigh(method, embeddings, Untouchable()), weigh(method, embeddings, None)
    )
    arguments = (method, embeddings, LABELS)
    np.testing.assert_array_equal(
        training_needs(*arguments, Untouchable(), SETTINGS),
        training_needs(*arguments, None, SETTINGS),
    )


def by_hand(weights):
    """Every class the same total, mean 1."""
    total = np.bincount(LABELS, weights=weights)
    return weights / total[LABELS] * 3


@pytest.mark.parametrize(("rarity", "power"), [(1.0, 1.0), (0.5, 2.0)])
def test_the_two_factors_multiply(embeddings, rarity, power):
    """1 / (p(z)^a p(y|z)^b), normalised within the class."""
    settings = SETTINGS | {
        "rarity": rarity, "surprise": power, "neighbours": 2, "keep_class_direction": True,
    }  # fmt: skip
    found = training_weights("cid-knn", embeddings, LABELS, None, settings)
    density = class_density(embeddings, np.zeros(6, int), 0.05).astype(float)
    posterior = label_posterior(embeddings, LABELS, scale=2, slope=1.0).probability
    expected = by_hand(1 / (density**rarity * posterior**power))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = training_weights("surprise", embeddings, LABELS, None, settings)
    np.testing.assert_allclose(alone, by_hand(1 / posterior**power), rtol=1e-5)


def test_by_bayes_cid_is_the_product_of_its_factors(embeddings):
    """With the own term in both, 1/p(z) x 1/p(y|z) is 1/p(z|y) up to a factor of the class."""
    one = np.zeros(6, int)
    density = class_density(embeddings, one, 0.05).astype(float)
    within = class_density(embeddings, LABELS, 0.05).astype(float)
    count = np.bincount(LABELS)[LABELS]
    posterior = count * within / (6 * density)
    np.testing.assert_allclose(
        by_hand(1 / (density * posterior)), cid_weights(embeddings, LABELS, 0.05), rtol=1e-5
    )


def test_tau_auto_reaches_the_nearest_neighbours(embeddings):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    # Of five others the fifth nearest is the farthest; half the median of that distance, for which
    # torch takes the lower of the middle two.
    tau = np.sort((1 - unit @ unit.T).max(axis=1))[2] / 2
    assert neighbour_width(embeddings) == pytest.approx(tau, rel=1e-5)
    found = training_weights("cid", embeddings, LABELS, None, SETTINGS | {"tau": "auto"})
    np.testing.assert_allclose(found, cid_weights(embeddings, LABELS, tau), rtol=1e-4)
    # Of many samples some tell, whichever labels they have.
    many = np.random.default_rng(1).normal(size=(9000, 8)).astype(np.float32)
    every = many / np.linalg.norm(many, axis=1, keepdims=True)
    fifth = np.partition(1 - every[::10] @ every.T, 5, axis=1)[:, 5]
    assert neighbour_width(many) == pytest.approx(np.median(fifth) / 2, rel=0.03)
    assert neighbour_width(np.ones((9, 4), np.float32)) == 1e-6  # a kernel needs some width


def test_cid_is_as_published_and_sharpened_beside(embeddings):
    sharp = cid_weights(embeddings, LABELS, 0.05, power=2.0)
    np.testing.assert_allclose(weigh("cid-power", embeddings), sharp, rtol=1e-6)


def test_groups_are_cells_of_the_truth_or_clusters_within_a_class(embeddings):
    codes = training_needs("group-dro", embeddings, LABELS, PEOPLE, SETTINGS)
    np.testing.assert_array_equal(codes, 2 * (PEOPLE == 8) + LABELS)
    people = training_needs("last-layer", embeddings, LABELS, PEOPLE, SETTINGS)
    np.testing.assert_array_equal(people, PEOPLE == 8)
    assert training_needs("cid", embeddings, LABELS, PEOPLE, SETTINGS) is None
    far = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1], [1, 0, 1]])
    clusters = training_needs("cluster-dro", far, LABELS, None, SETTINGS | {"clusters": 2})
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
    assert not set(clusters[LABELS == 0]) & set(clusters[LABELS == 1])


def test_log_odds_are_those_of_a_ridge_model_on_the_proxy(embeddings):
    """At the optimum of the mean loss plus the penalty the gradient vanishes."""
    found = training_needs("ula", embeddings, LABELS, None, SETTINGS)
    z = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    z = ((z - z.mean(axis=0)) / z.std(axis=0)).astype(float)
    z = np.hstack([z, np.ones((6, 1))])
    weight = np.linalg.lstsq(z, found, rcond=None)[0]
    np.testing.assert_allclose(z @ weight, found, atol=1e-5)
    error = 1 / (1 + np.exp(-found)) - LABELS
    penalty = 0.1 * np.append(weight[:-1], 0)
    np.testing.assert_allclose(z.T @ error / 6 + penalty, 0, atol=1e-3)


def test_offsets_are_those_of_the_method_in_cid(embeddings):
    """Of two classes one number an image, of more one for each class."""
    wanted = {"neighbours": 3, "logit_strength": 0.5}
    settings = SETTINGS | wanted | {"surprise": "auto"}
    found = training_needs("surprise-logits", embeddings, LABELS, None, settings)
    expected = surprise_offsets(embeddings, LABELS, strength=0.5, neighbours=3)
    np.testing.assert_allclose(found, expected[:, 1] - expected[:, 0], rtol=1e-6)
    assert np.ptp(found) > 0
    three = np.array([0, 1, 2, 0, 1, 2])
    found = training_needs("surprise-logits", embeddings, three, None, settings)
    expected = surprise_offsets(embeddings, three, strength=0.5, neighbours=3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_number_of_clusters_of_many_images_is_chosen_on_some(monkeypatch):
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(20, 6))
    z = centres[np.arange(800) % 20] + 0.1 * rng.normal(size=(800, 6))
    labels = np.arange(800) // 400
    every = training_needs("cluster-dro", z, labels, None, SETTINGS)
    monkeypatch.setattr(density, "MANY", 300)
    monkeypatch.setattr(density, "PROBES", 150)
    asked = []
    monkeypatch.setattr(
        sklearn.metrics, "pairwise_distances", lambda z: (asked.append(len(z)), pairwise(z))[1]
    )
    np.testing.assert_array_equal(training_needs("cluster-dro", z, labels, None, SETTINGS), every)
    assert asked == [134, 134]


@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_handed_the_settings_that_it_declares_and_no_other(method, auto, embeddings):
    fixed = {
        "tau": 0.1,
        "surprise": 2.0,
        "neighbours": 2,
        "posterior_tau": 0.1,
        "clusters": 1,
        "erase_clusters": 2,
    }
    settings = SETTINGS | ({} if auto else fixed)
    declared = fields(METHODS[method].weigh_settings)
    own = {field.name: settings[field.name] for field in declared}
    given = method, embeddings, LABELS, PEOPLE
    np.testing.assert_array_equal(training_weights(*given, own), training_weights(*given, settings))
    np.testing.assert_array_equal(training_needs(*given, own), training_needs(*given, settings))


def test_a_setting_that_is_left_out_has_its_default(embeddings):
    plain = training_weights("oracle-tempered", embeddings, LABELS, PEOPLE, {})
    by_default = training_weights("oracle-tempered", embeddings, LABELS, PEOPLE, {"temper": 1.25})
    np.testing.assert_array_equal(plain, by_default)
    other = training_weights("oracle-tempered", embeddings, LABELS, PEOPLE, {"temper": 2.0})
    assert (plain != other).any()


def test_a_setting_that_is_not_declared_is_an_error(embeddings, monkeypatch):
    @dataclass(frozen=True)
    class PowerAlone(Options):
        power: Exponent = 1.0

    def weigh(sample, settings):
        return np.full(len(sample.labels), settings.tau)

    sly = Method("sly", "Sly", "#000000", (), "", weigh=weigh, weigh_settings=PowerAlone)
    monkeypatch.setitem(METHODS, "sly", sly)
    with pytest.raises(AttributeError, match="tau"):
        training_weights("sly", embeddings, LABELS, None, SETTINGS)


def test_factors_beyond_the_range_of_a_float_still_make_weights(embeddings):
    settings = SETTINGS | {"rarity": 500.0, "tau": 0.01}
    weights = training_weights("cid-kernel", embeddings, LABELS, None, settings)
    density = class_density(embeddings, np.zeros(6, int), 0.01).astype(float)
    assert np.isfinite(weights).all() and weights.mean() == pytest.approx(1)
    assert weights[:4].argmax() == density[:4].argmin()


def test_every_way_of_training_is_known():
    assert {spec.network for spec in METHODS.values()} == {*KINDS, None}


def test_the_oracle_says_that_it_needs_identities(embeddings):
    with pytest.raises(ValueError, match="'oracle' needs identities"):
        weigh("oracle", embeddings, None)


def test_unknown_method_is_named_with_the_nearest(embeddings):
    with pytest.raises(ValueError, match=r"'cdi' is unknown \(did you mean 'cid'\?\)"):
        weigh("cdi", embeddings)


def test_what_methods_share_is_computed_once_and_changes_nothing(embeddings, monkeypatch):
    names = ["inverse-density", "cid-kernel", "cid-knn", "surprise", "oracle"]
    alone = [training_weights(m, embeddings, LABELS, PEOPLE, SETTINGS) for m in names]
    calls = []
    original = factors.posterior_among
    monkeypatch.setattr(
        factors, "posterior_among", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    shared = {}
    together = [training_weights(m, embeddings, LABELS, PEOPLE, SETTINGS, shared) for m in names]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(calls) == 2  # one by the kernel, one by neighbours
    assert not any("identit" in str(key) for key in shared)


def test_the_library_gives_the_studys_label_surprise():
    rng = np.random.default_rng(5)
    person = np.arange(80) // 8
    z = rng.normal(size=(10, 6))[person] + 0.1 * rng.normal(size=(80, 6))
    y = (person % 2) ^ (rng.random(80) < 0.2)
    settings = {"class_prior": "empirical", "surprise": "auto", "neighbours": "auto"}
    settings |= {"keep_class_direction": False, "local_scaling": False}
    expected = training_weights("surprise", z, y, None, settings)
    found = surprise_weights(z, y, class_prior="empirical", device="cpu")
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.ptp(found) > 0.5


def test_the_default_of_every_setting_is_the_value_that_is_used():
    """One default, in one place: studies/settings.csv says which value is used, and which was chosen."""
    table = pd.read_csv(ROOT / "studies" / "settings.csv", dtype={"value": str})
    defaults = {f"weights.{name}": default for name, (_, default) in all_weigh_settings().items()}
    defaults |= {f"train.robust.{name}": value for name, (_, value) in all_fit_settings().items()}
    used = table[table["used"]].set_index("setting")["value"]
    compared = [setting for setting in defaults if setting in used.index]
    assert len(compared) > 20
    for setting in compared:
        assert str(defaults[setting]) == used[setting], setting


@pytest.mark.parametrize(
    "weights",
    [np.full(6, np.nan), np.full(6, 5.0), np.ones(7), -np.ones(6), np.array([-1, 3.0] * 3)],
)
def test_a_method_that_gives_no_weights_is_named(embeddings, monkeypatch, weights):
    wrong = Method("wrong", "Wrong", "#000000", (), "", weigh=lambda sample, settings: weights)
    monkeypatch.setitem(METHODS, "wrong", wrong)
    with pytest.raises(ValueError, match="the method wrong gives weights that are not one finite"):
        training_weights("wrong", embeddings, LABELS, None, SETTINGS)


def test_every_method_has_facts_of_its_own():
    for field in ("title", "colour", "summary"):
        values = [getattr(method, field) for method in METHODS.values()]
        assert all(values) and len(set(values)) == len(values)
