"""Stacked heads against sklearn, one head at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linprog, minimize
from sklearn.linear_model import LogisticRegression

from cid import heads
from cid.heads import fit_heads
from cid.methods import group_column
from cid.risks import cvar_risk, generalised_cross_entropy, group_risk, mean_risk, tilted_risk
from cid.trainers import Options, balanced_subset
from study.experiment.runs import train_sets


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
    heads = sets["part"] == "train"
    sets["erm"] = np.where(heads, 1.0, np.nan)
    sets["odd"] = np.where(heads, rng.exponential(size=len(sets)), np.nan)
    predictions, heads = train_sets(sets, features, labels, ["erm", "odd"], 0.1)
    assert list(predictions) == ["seed", "test", "row", "erm", "odd"]
    assert heads.weight.shape == (4, 60) and len(predictions) == 400

    weights = np.zeros(400)
    part = sets[heads & (sets["seed"] == 1)]
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


LOSSES = torch.tensor([[0.1, 2.0, 0.5, 1.0, 0.2, 3.0]], dtype=torch.float64)
EVEN = torch.full((1, 6), 1 / 6, dtype=torch.float64)
UNEVEN = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.3, 0.1]], dtype=torch.float64)
GROUPS = torch.tensor([[0, 0, 0, 1, 1, 2]])


def test_cvar_is_the_mean_of_the_worst_share():
    assert float(cvar_risk(1 / 3, 1e-4)(LOSSES, EVEN)[0]) == pytest.approx(2.5, abs=1e-3)
    assert float(cvar_risk(0.5, 1e-4)(LOSSES, EVEN)[0]) == pytest.approx(2.0, abs=1e-3)
    assert float(cvar_risk(1.0, 1e-4)(LOSSES, EVEN)[0]) == pytest.approx(6.8 / 6, abs=1e-3)
    # Uneven weights: the worst adversary within the caps, as a linear programme.
    w, share = UNEVEN[0].numpy(), 0.4
    best = linprog(
        -LOSSES[0].numpy(), A_eq=[np.ones(6)], b_eq=[1], bounds=[(0, v / share) for v in w]
    )
    value, q = cvar_risk(share, 1e-4)(LOSSES, UNEVEN)
    assert float(value) == pytest.approx(-best.fun, abs=1e-3)
    np.testing.assert_allclose(q[0], best.x, atol=1e-3)


def test_tilted_risk_of_a_hand_worked_case():
    expected = np.log((np.exp(2 * LOSSES.numpy()) * UNEVEN.numpy()).sum()) / 2
    assert float(tilted_risk(2.0)(LOSSES, UNEVEN)[0]) == pytest.approx(float(expected))
    assert float(tilted_risk(1e-4)(LOSSES, UNEVEN)[0]) == pytest.approx(
        float((LOSSES * UNEVEN).sum()), abs=1e-3
    )


def test_group_risk_goes_from_the_mean_of_groups_to_the_worst():
    means = [(0.1 + 2 * 2.0) / 3, (1.0 + 0.2) / 2, 3.0]  # by the uneven weights
    for tilt, expected in ((1e-5, np.mean(means)), (200.0, 3.0 - np.log(3) / 200)):
        value, q = group_risk(tilt, GROUPS)(LOSSES, UNEVEN)
        assert float(value) == pytest.approx(expected, abs=1e-3)
        assert float(q.sum()) == pytest.approx(1)
    np.testing.assert_allclose(q[0], [0, 0, 0, 0, 0, 1], atol=1e-6)
    # A group without weight is no group.
    apart = torch.tensor([[0, 0, 3, 1, 1, 2]])
    np.testing.assert_allclose(group_risk(1.0, apart)(LOSSES, UNEVEN)[0],
                               group_risk(1.0, GROUPS)(LOSSES, UNEVEN)[0])  # fmt: skip


@pytest.mark.parametrize(
    "risk",
    [mean_risk, cvar_risk(0.4), tilted_risk(2.0), group_risk(1.5, GROUPS), generalised_cross_entropy(0.7)],
    ids=["mean", "cvar", "tilted", "group", "gce"],
)  # fmt: skip
def test_the_gradient_of_a_risk_is_that_of_finite_differences(risk):
    gradient = risk(LOSSES, UNEVEN)[1][0].numpy()
    for k in range(6):
        step = torch.zeros_like(LOSSES)
        step[0, k] = 1e-5
        slope = (risk(LOSSES + step, UNEVEN)[0] - risk(LOSSES - step, UNEVEN)[0]) / 2e-5
        assert gradient[k] == pytest.approx(float(slope), abs=1e-5)


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


def test_a_balanced_subset_has_as_many_of_either_class_in_every_identity():
    groups = np.array([0] * 5 + [1] * 2 + [2] * 3 + [4] * 2 + [5] * 4)
    member = np.ones(len(groups), bool)
    member[0] = False
    chosen = [balanced_subset(groups, member, np.random.default_rng(s)) for s in range(30)]
    for keep in chosen:
        assert np.bincount(groups[keep], minlength=6).tolist() == [2, 2, 0, 0, 2, 2]
        assert not keep[0]
    assert np.any(chosen, axis=0)[member & (groups != 2)].all()  # any image may be drawn


@pytest.fixture(scope="module")
def cell(problem):
    """One seed's sets with every column the ways of training need."""
    features, labels, _ = problem
    part = np.repeat(["train", "seen"], [300, 100])
    sets = pd.DataFrame({"seed": 0, "part": part, "row": np.arange(400)})
    heads = part == "train"
    codes = 2 * (np.arange(400) % 10) + labels
    for method in ("erm", "jtt", "lff", "cvar-dro", "kl-dro", "group-dro", "last-layer", "cid"):
        sets[method] = np.where(heads, 1.0, np.nan)
    for method in ("group-dro", "last-layer"):
        sets[group_column(method)] = np.where(heads, codes, np.nan)
    return sets, features, labels


def test_just_train_twice_upweights_the_first_heads_errors(cell):
    sets, features, labels = cell
    options = Options(jtt_l2=1.0, jtt_upweight=5.0)
    found = train_sets(sets, features, labels, ["jtt"], 0.1, options)[0]["jtt"]
    weights = (np.arange(400) < 300).astype(float)
    first = fit_heads(features, labels, weights[None], 1.0).logits(features)[0]
    weights[(first > 0) != labels] *= 5
    second = fit_heads(features, labels, weights[None], 0.1).logits(features)[0]
    np.testing.assert_allclose(found, second[300:], atol=1e-3 * second.std())


def test_learning_from_failure_trusts_the_difficulty_relative_to_a_biased_head(cell):
    sets, features, labels = cell
    options = Options(lff_q=0.7, lff_rounds=2)
    found = train_sets(sets, features, labels, ["lff"], 0.1, options)[0]["lff"]
    weights = (np.arange(400) < 300).astype(float)[None]
    sign = np.where(labels == 1, 1, -1)

    def loss(heads):
        return np.logaddexp(0, -sign * heads.logits(features))

    biased = loss(fit_heads(features, labels, weights, 0.1, risk=generalised_cross_entropy(0.7)))
    heads = fit_heads(features, labels, weights, 0.1)
    for _ in range(2):
        difficulty = biased / (biased + loss(heads))
        heads = fit_heads(features, labels, weights * difficulty, 0.1)
    logits = heads.logits(features)[0]
    np.testing.assert_allclose(found, logits[300:], atol=1e-3 * logits.std())


def test_every_way_of_training_gives_a_head_of_its_own(cell):
    sets, features, labels = cell
    methods = ["erm", "jtt", "lff", "cvar-dro", "kl-dro", "group-dro", "last-layer"]
    predictions, heads = train_sets(sets, features, labels, methods, 0.1)
    assert heads.weight.shape == (7, 60) and list(predictions)[3:] == methods
    for method in methods:
        assert ((predictions[method] > 0) == labels[300:]).mean() > 0.6
    assert np.linalg.matrix_rank(predictions[methods].to_numpy()) == len(methods)


def test_a_sampler_draws_in_proportion_to_the_weights(cell):
    sets, features, labels = cell
    heavy = sets.assign(cid=np.where(sets["part"] == "train", np.arange(400) % 3, np.nan))
    by_loss = train_sets(heavy, features, labels, ["cid"], 0.1)[0]["cid"]
    sampled = train_sets(heavy, features, labels, ["cid"], 0.1, Options(through="sampler"))[0][
        "cid"
    ]
    again = train_sets(heavy, features, labels, ["cid"], 0.1, Options(through="sampler"))[0]["cid"]
    np.testing.assert_array_equal(sampled, again)
    assert 0.8 < np.corrcoef(by_loss, sampled)[0, 1] < 0.9999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpa": 0.1}, r"train.robust.alpa is unknown \(did you mean 'alpha'\?\)"),
        ({"alpha": 1.5}, "train.robust.alpha is 1.5; it is at most 1"),
        ({"tilt": 0}, "train.robust.tilt is 0; it must be above 0"),
    ],
)
def test_bad_options_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Options.of(settings)
    with pytest.raises(ValueError, match="train.through is 'los'; write loss or sampler"):
        Options.of({}, "los")


def test_nothing_to_balance_is_said():
    with pytest.raises(
        ValueError, match="no identity of a training set has images of both classes"
    ):
        balanced_subset([0, 0, 3, 3], np.ones(4, dtype=bool), np.random.default_rng(0))


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


def test_a_design_keeps_gram_matrices_as_memory_allows(monkeypatch):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(40, 60)), np.arange(40) % 2
    design = heads.Design(x, y)
    sets = [torch.arange(start, start + 20) for start in (0, 10, 20)]
    first = design.gram(sets[0])
    part, shift, scale = design.standardised(sets[0])
    torch.testing.assert_close(first, part @ part.T, atol=1e-3, rtol=1e-5)
    assert design.gram(sets[0]) is first
    monkeypatch.setattr(heads, "GRAM", 2 * 400)
    kept = design.gram(sets[1])
    design.gram(sets[0]), design.gram(sets[2])  # the longest unused went
    assert design.gram(sets[0]) is first
    assert design.gram(sets[1]) is not kept
    weights = np.zeros((2, 40))
    weights[0, :20] = weights[1, 10:30] = 1
    shared = fit_heads(x, y, weights, 0.1, design=design)
    np.testing.assert_array_equal(
        shared.weight, fit_heads(x, y, weights, 0.1, design=heads.Design(x, y)).weight
    )
