"""Stacked heads against sklearn, one head at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from cid import heads
from cid.heads import fit_heads
from cid.lbfgs import minimise
from cid.risks import cvar_risk, group_risk, tilted_risk


@pytest.fixture(scope="module")
def problem():
    """400 samples of 60 features on very different scales, and weights of 6 heads."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 60)) * np.geomspace(0.01, 100, 60) + rng.normal(size=60) * 5
    noise = rng.normal(size=400)
    labels = (
        (features[:, 30] - features[:, 30].mean()) / features[:, 30].std() + noise > 0
    ).astype(int)
    weights = rng.exponential(size=(6, 400)) * (rng.random((6, 400)) < 0.5)
    return features.astype(np.float32), labels, weights


@pytest.mark.parametrize("l2", [0.003, 0.1])
def test_every_head_is_sklearns_optimum_on_its_own_images(problem, l2):
    features, labels, weights = problem
    heads = fit_heads(features, labels, weights, l2, tolerance=1e-5)
    logits = heads.logits(features)
    for weight, ours in zip(weights, logits, strict=True):
        used = weight > 0
        x = features.astype(np.float64)
        x = (x - x[used].mean(axis=0)) / x[used].std(axis=0)
        theirs = LogisticRegression(C=1 / (l2 * weight.sum()), tol=1e-10, max_iter=10_000)
        theirs.fit(x[used], labels[used], sample_weight=weight[used])
        np.testing.assert_allclose(ours, theirs.decision_function(x), atol=2e-3 * ours.std())


def test_images_of_weight_zero_do_not_count(problem):
    features, labels, weights = problem
    changed = features.copy()
    unused = weights[0] == 0
    changed[unused] = 1e3
    alone = fit_heads(features, labels, weights[:1], 0.1).logits(features[~unused])
    np.testing.assert_allclose(
        fit_heads(changed, labels, weights[:1], 0.1).logits(features[~unused]), alone, atol=1e-5
    )


def test_the_scale_of_the_weights_does_not_count(problem):
    features, labels, weights = problem
    a = fit_heads(features, labels, weights, 0.1, tolerance=1e-5)
    b = fit_heads(features, labels, 1000 * weights, 0.1, tolerance=1e-5)
    np.testing.assert_allclose(a.logits(features), b.logits(features), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": 0}, "l2 is 0"),
        ({"labels": np.full(400, 2)}, "0 and 1 are needed"),
        ({"labels": np.zeros(400, int)}, "head 0 has no training image of class 1"),
        ({"labels": np.zeros(3, int)}, r"labels have shape \(3,\) but there are 400"),
        ({"sample_weights": -np.ones((1, 400))}, "negative"),
        ({"max_iterations": 1}, "6 of 6 heads have not converged"),
    ],
)
def test_bad_input_is_named(problem, change, message):
    features, labels, weights = problem
    arguments = {
        "features": features,
        "labels": labels,
        "sample_weights": weights,
        "l2": 0.1,
    } | change
    with pytest.raises(ValueError, match=message):
        fit_heads(**arguments)


def test_a_robust_head_is_scipys_optimum():
    """Tilted, CVaR and group heads against a general optimiser of the same objective."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = (x[:, 0] + rng.normal(size=60) > 0).astype(int)
    groups = rng.integers(0, 3, size=(1, 60))
    sign = torch.from_numpy(2.0 * y - 1)
    even = torch.full((1, 60), 1 / 60, dtype=torch.float64)
    made = {
        "tilted": (tilted_risk(2.0), {"risk": tilted_risk(2.0)}),
        "cvar": (cvar_risk(0.3), {"risk": cvar_risk(0.3)}),
        "group": (
            group_risk(3.0, torch.from_numpy(groups)),
            {"risk": lambda codes: group_risk(3.0, codes), "groups": groups},
        ),
    }
    for name, (risk, arguments) in made.items():

        def objective(theta, risk=risk):
            w = torch.from_numpy(theta)
            margin = (torch.from_numpy(x).double() @ w[:3] + w[3]) * sign
            losses = torch.nn.functional.softplus(-margin)[None]
            return float(risk(losses, even)[0]) + 0.05 * float(w[:3] @ w[:3])

        best = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-6})
        heads = fit_heads(x, y, np.ones((1, 60)), 0.1, tolerance=1e-5, **arguments)
        found = np.append(heads.weight[0], heads.bias[0])
        np.testing.assert_allclose(found, best.x, atol=5e-3, err_msg=name)


@pytest.mark.parametrize("risk", ["mean", "cvar", "group"])
def test_heads_over_images_and_over_features_are_the_same(monkeypatch, risk):
    """Fewer images than features: the dual; the primal finds the same heads."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(90, 70)), rng.integers(2, size=90)
    x[:, 0] += y
    weights = np.zeros((5, 90))
    for head in weights[:3]:  # three heads on one training set, two on another
        head[:60] = rng.gamma(2, size=60)
    weights[3:, 40:] = rng.gamma(2, size=(2, 50))
    more = {
        "mean": {},
        "cvar": {"risk": cvar_risk(0.3)},
        "group": {
            "risk": lambda codes: group_risk(3.0, codes),
            "groups": rng.integers(4, size=(5, 90)),
        },
    }[risk]
    dual = fit_heads(x, y, weights, 0.1, tolerance=1e-5, **more)
    monkeypatch.setattr(heads, "_fit_dual", heads._fit_primal)
    primal = fit_heads(x, y, weights, 0.1, tolerance=1e-5, **more)
    np.testing.assert_allclose(dual.weight, primal.weight, atol=2e-4)
    np.testing.assert_allclose(dual.bias, primal.bias, atol=2e-4)


def test_standardised_features_keep_gram_matrices_as_memory_allows(monkeypatch):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(40, 60)), np.arange(40) % 2
    design = heads.StandardisedFeatures(x, y)
    sets = [torch.arange(start, start + 20) for start in (0, 10, 20)]

    def gram(k):
        return design.gram_stack(sets[k : k + 1], 32).gram

    part, first = design.in_own_units(sets[0]).features, gram(0)
    torch.testing.assert_close(first[0, :20, :20], part @ part.T, atol=1e-3, rtol=1e-5)
    assert not first[0, 20:].any() and not first[0, :, 20:].any()
    assert gram(0) is first
    monkeypatch.setattr(heads, "HELD", 2 * design.gram_stack(sets[:1], 32).numel())
    kept = gram(1)
    gram(0), gram(2)  # the longest unused went
    assert gram(0) is first
    assert gram(1) is not kept
    assert design.gram_stack(sets[:1], 64).gram.shape == (1, 64, 64)
    weights = np.zeros((2, 40))
    weights[0, :20] = weights[1, 10:30] = 1
    shared = fit_heads(x, y, weights, 0.1, design=design)
    np.testing.assert_array_equal(
        shared.weight, fit_heads(x, y, weights, 0.1, design=heads.StandardisedFeatures(x, y)).weight
    )


@pytest.mark.parametrize("d", [20, 400], ids=["primal", "dual"])
def test_a_flipped_share_is_a_copy_under_the_other_label(d):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, d)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=200) > 0).astype(int)
    weights, flipped = rng.exponential(size=(2, 200)), rng.uniform(0.01, 0.99, size=(2, 200))
    found = fit_heads(x, y, weights, 0.1, flipped=flipped, tolerance=1e-6)
    both = np.concatenate([weights * (1 - flipped), weights * flipped], axis=1)
    twice = np.concatenate([x, x]), np.concatenate([y, 1 - y])
    expected = fit_heads(*twice, both, 0.1, tolerance=1e-6).logits(x)
    np.testing.assert_allclose(found.logits(x), expected, atol=1e-3 * expected.std())


@pytest.mark.parametrize("d", [8, 300], ids=["primal", "dual"])
def test_an_offset_is_added_in_training_and_is_no_part_of_the_head(d):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(200, d)), np.arange(200) % 2
    offset, weights = rng.normal(size=(2, 200)), rng.exponential(size=(2, 200))
    found = fit_heads(x, y, weights, 0.1, offset=offset, tolerance=1e-6)
    z, side = (x - x.mean(axis=0)) / x.std(axis=0), 2 * y - 1
    for h in range(2):  # at the optimum the gradient by the standardised weights vanishes
        margin = side * (x @ found.weight[h] + found.bias[h] + offset[h])
        slope = -side * weights[h] / weights[h].sum() / (1 + np.exp(margin))
        own = found.weight[h] * x.std(axis=0)
        np.testing.assert_allclose(slope @ z + 0.1 * own, 0, atol=1e-5)
        assert abs(slope.sum()) < 1e-5


def test_a_loss_that_was_rounded_down_does_not_hold_a_head_up():
    """Near its optimum a loss of many images falls by less than it is rounded by."""
    scale = torch.logspace(0, 2, 40)

    def steps(luck: float) -> int:
        spot = []

        def objective(theta):
            gradient = scale * theta
            if not spot and gradient.norm() < 1e-6 * scale.norm():
                spot.append(theta.clone())
            rounded = luck * (bool(spot) and torch.equal(theta, spot[0]))
            return 0.25 + 0.5 * (gradient * theta).sum(1) - rounded, gradient

        start = torch.full((1, 40), 1e-3)
        how = {"tolerance": 1e-4, "max_iterations": 300, "progress": None}
        return minimise(objective, lambda p, q: (p * q).sum(1), start, **how)[1]

    assert steps(1e-7) == steps(0)


def test_heads_with_a_penalty_each_are_those_with_it_alone(problem):
    features, labels, weights = problem
    for x in (features, np.tile(features, (1, 8))):  # more images than features, and fewer
        penalties = np.geomspace(0.01, 10, len(weights))
        together = fit_heads(x, labels, weights, penalties, tolerance=1e-5).logits(x)
        for weight, l2, logits in zip(weights, penalties, together, strict=True):
            alone = fit_heads(x, labels, weight[None], l2, tolerance=1e-5).logits(x)[0]
            np.testing.assert_allclose(logits, alone, atol=2e-3 * alone.std())
    with pytest.raises(ValueError, match="l2 of every head must be a number above 0"):
        fit_heads(features, labels, weights, -penalties)


def test_images_that_only_standardise_train_nothing(problem):
    features, labels, weights = problem
    everyone = np.ones(len(features), dtype=bool)
    for x in (features, np.tile(features, (1, 8))):
        found = fit_heads(x, labels, weights, 0.1, standardised_by=everyone, tolerance=1e-5)
        flipped = np.where((weights > 0).any(axis=0), labels, 1 - labels)
        again = fit_heads(x, flipped, weights, 0.1, standardised_by=everyone, tolerance=1e-5)
        np.testing.assert_array_equal(found.weight, again.weight)
        z = (x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
        weight = weights[0]
        theirs = LogisticRegression(C=1 / (0.1 * weight.sum()), tol=1e-10, max_iter=10_000)
        theirs.fit(z[weight > 0], labels[weight > 0], sample_weight=weight[weight > 0])
        ours = found.logits(x)[0]
        np.testing.assert_allclose(ours, theirs.decision_function(z), atol=2e-3 * ours.std())
    with pytest.raises(ValueError, match="leaves out an image that a head trains on"):
        fit_heads(features, labels, weights, 0.1, standardised_by=~everyone)


@pytest.mark.parametrize("d", [20, 300], ids=["primal", "dual"])
@pytest.mark.parametrize("l2", [0.001, 1.0])
def test_a_shared_curvature_changes_the_way_and_not_the_optimum(monkeypatch, d, l2):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(200, d)) @ np.diag(np.geomspace(0.1, 3, d)) + 3 * rng.normal(size=(200, 1))
    y = (x[:, 0] + x[:, -1] + rng.normal(size=200) > 0).astype(int)
    weights = rng.gamma(1, size=(4, 200)) + 1e-3
    arguments = {"tolerance": 1e-6, "max_iterations": 2000}
    shared = fit_heads(x, y, weights, l2, **arguments)

    def plain(*given, precondition=None, norm_before=None, **more):
        objective, dot, start = given
        return minimise(objective, dot, torch.zeros_like(start), **more)

    monkeypatch.setattr(heads, "minimise", plain)
    alone = fit_heads(x, y, weights, l2, **arguments)
    logits = alone.logits(x)
    np.testing.assert_allclose(shared.logits(x), logits, atol=2e-3 * logits.std())
    assert shared.iterations < 0.8 * alone.iterations


def test_heads_converge_under_a_weak_penalty_on_features_that_hang_together():
    """Heads that stop short look worse than they are, plain training most of all."""
    rng = np.random.default_rng(0)
    images, size, trained = 400, 300, 300
    factors = rng.normal(size=(images, size)) * np.geomspace(1, 0.01, size)
    labels = (factors @ rng.normal(size=size) > 0).astype(int)
    features = (factors @ np.linalg.qr(rng.normal(size=(size, size)))[0]).astype(np.float32)
    weights = np.zeros((1, images), np.float32)
    weights[0, :trained] = 1
    fitted = [
        fit_heads(features, labels, weights, 0.003, strict=False, **how).logits(features[trained:])
        for how in ({}, {"tolerance": 1e-7, "max_iterations": 3000})
    ]
    assert np.abs(fitted[0] - fitted[1]).max() < 8e-4 * fitted[1].std()
