"""Stacked heads against sklearn, one head at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from cid.train import fit_heads, train_sets


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
    np.testing.assert_allclose(a.logits(features), b.logits(features), atol=1e-4)


def test_train_sets_scores_the_test_images_with_the_right_head(problem):
    features, labels, _ = problem
    rng = np.random.default_rng(2)
    sets = []
    for seed in range(2):
        order = rng.permutation(400)
        sets.append(
            pd.DataFrame(
                {
                    "seed": seed,
                    "part": np.repeat(["train", "seen", "unseen"], [200, 100, 100]),
                    "row": order,
                }
            )
        )
    sets = pd.concat(sets, ignore_index=True)
    train = sets["part"] == "train"
    sets["erm"] = np.where(train, 1.0, np.nan)
    sets["odd"] = np.where(train, rng.exponential(size=len(sets)), np.nan)
    predictions, heads = train_sets(sets, features, labels, ["erm", "odd"], 0.1)
    assert list(predictions) == ["seed", "test", "row", "erm", "odd"]
    assert heads.weight.shape == (4, 60) and len(predictions) == 400

    weights = np.zeros(400)
    part = sets[train & (sets["seed"] == 1)]
    weights[part["row"]] = part["odd"]
    alone = fit_heads(features, labels, weights[None], 0.1).logits(features)[0]
    mine = predictions[predictions["seed"] == 1]
    np.testing.assert_allclose(mine["odd"], alone[mine["row"]], atol=5e-3 * alone.std())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": 0}, "l2 is 0"),
        ({"labels": np.full(400, 2)}, "0 and 1 are needed"),
        ({"labels": np.zeros(400, int)}, "head 0 has no training image of class 1"),
        ({"labels": np.zeros(3, int)}, "disagree"),
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
