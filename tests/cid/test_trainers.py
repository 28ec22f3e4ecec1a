"""Ways of training against what they say they do, one step after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cid.heads import Design, fit_heads
from cid.options import KINDS, HeadOptions
from cid.risks import generalised_cross_entropy
from cid.trainers import STACK, TRAINERS, Cell, balanced_subset, fit_method, fit_weighted

PEOPLE = np.arange(400) % 10


def cell_of(shape, seeds=1, **options):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape) * np.geomspace(0.1, 10, shape[1]) + 5
    odds = 2 * (features[:, 30] - features[:, 30].mean()) / features[:, 30].std()
    labels = (odds + rng.normal(size=len(features)) > 0).astype(int)
    features = features.astype(np.float32)
    design, options = Design(features, labels), HeadOptions(**options)
    return Cell(np.arange(seeds), features, labels, design, 0.1, options)


@pytest.fixture(scope="module")
def cell():
    """One seed, which trains on the first 300 of 400 images."""
    return cell_of((400, 60))


ONES = (np.arange(400) < 300).astype(np.float32)[None]


def test_just_train_twice_upweights_the_first_heads_errors(cell):
    cell = replace(cell, options=HeadOptions(jtt_l2=1.0, jtt_upweight=5.0))
    found = fit_method(cell, "jtt", ONES).logits(cell.features)
    weights = ONES.copy()
    first = fit_heads(cell.features, cell.labels, weights, 1.0).logits(cell.features)
    weights[(first > 0) != cell.labels] *= 5
    second = fit_heads(cell.features, cell.labels, weights, 0.1).logits(cell.features)
    np.testing.assert_allclose(found, second, atol=1e-3 * second.std())


def test_learning_from_failure_trusts_the_difficulty_relative_to_a_biased_head(cell):
    cell = replace(cell, options=HeadOptions(lff_q=0.7, lff_rounds=2))
    features, labels = cell.features, cell.labels
    found = fit_method(cell, "lff", ONES).logits(features)
    sign = np.where(labels == 1, 1, -1)

    def loss(heads):
        return np.logaddexp(0, -sign * heads.logits(features))

    biased = loss(fit_heads(features, labels, ONES, 0.1, risk=generalised_cross_entropy(0.7)))
    heads = fit_heads(features, labels, ONES, 0.1)
    for _ in range(2):
        difficulty = biased / (biased + loss(heads))
        heads = fit_heads(features, labels, ONES * difficulty, 0.1)
    logits = heads.logits(features)
    np.testing.assert_allclose(found, logits, atol=1e-3 * logits.std())


def test_retraining_averages_the_heads_of_balanced_subsets(cell):
    cell = replace(cell, options=HeadOptions(draws=3))
    found = fit_method(cell, "retrain", ONES, PEOPLE[None])
    draws = []
    for draw in range(3):
        chosen = balanced_subset(PEOPLE, cell.labels, ONES[0] > 0, np.random.default_rng([0, draw]))
        draws.append(fit_heads(cell.features, cell.labels, ONES * chosen, 0.1).weight[0])
    np.testing.assert_allclose(found.weight[0], np.mean(draws, axis=0), atol=2e-3)


def test_every_way_of_training_gives_a_head_of_its_own(cell):
    groups = {"group-dro": (2 * PEOPLE + cell.labels)[None], "retrain": PEOPLE[None]}
    found = [fit_method(cell, kind, ONES, groups.get(kind)) for kind in TRAINERS]
    logits = np.concatenate([heads.logits(cell.features) for heads in found])[:, 300:]
    assert (((logits > 0) == cell.labels[300:]).mean(axis=1) > 0.6).all()
    assert np.linalg.matrix_rank(logits) == len(TRAINERS) == len(KINDS)
    assert set(TRAINERS) == set(KINDS)


def test_unknown_kinds_and_missing_groups_are_named(cell):
    with pytest.raises(ValueError, match=r"kind 'jt' is unknown \(did you mean 'jtt'\?\)"):
        fit_method(cell, "jt", ONES)
    for kind in ("group-dro", "retrain"):
        with pytest.raises(ValueError, match=f"kind {kind} needs groups and none were given"):
            fit_method(cell, kind, ONES)


def test_a_sampler_draws_in_proportion_to_the_weights(cell):
    heavy = ONES * (np.arange(400) % 3)
    drawn = replace(cell, options=HeadOptions(through="sampler"))
    counts = drawn.sampled(heavy)
    assert counts.sum() == (heavy > 0).sum() and not counts[heavy == 0].any()
    assert counts[heavy == 2].sum() > 1.5 * counts[heavy == 1].sum()
    np.testing.assert_array_equal(cell.sampled(heavy), heavy)
    by_loss, sampled, again = (
        fit_method(one, "weighted", heavy).logits(cell.features) for one in (cell, drawn, drawn)
    )
    np.testing.assert_array_equal(sampled, again)
    assert 0.8 < np.corrcoef(by_loss[0], sampled[0])[0, 1] < 0.9999


# Odd sizes, so that rows of a stack end within a processor's vectors.
@pytest.mark.parametrize("through", ["loss", "sampler"])
@pytest.mark.parametrize("shape", [(300, 250), (401, 60)], ids=["dual", "primal"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_methods_heads_do_not_depend_on_what_is_fitted_beside_them(seeds, shape, through):
    cell = cell_of(shape, seeds, through=through)
    rng = np.random.default_rng(1)
    member = np.zeros((seeds, shape[0]), dtype=np.float32)
    for row in member:
        row[rng.permutation(shape[0])[:201]] = 1
    others = [member * rng.gamma(2, size=member.shape) for _ in range(STACK)]
    alone = fit_method(cell, "weighted", member)
    for place in (0, 1, STACK - 1, STACK):  # in a stack with room, a full one, and one of its own
        beside = others[: max(STACK - 2, place)]
        found = fit_weighted(cell, [*beside[:place], member, *beside[place:]])
        assert len(found) == len(beside) + 1
        assert found[place].weight.tobytes() == alone.weight.tobytes()
        assert found[place].bias.tobytes() == alone.bias.tobytes()
    assert found[0].weight.tobytes() != alone.weight.tobytes()


def test_a_balanced_subset_has_as_many_of_either_class_in_every_identity():
    codes = np.array([0] * 5 + [1] * 2 + [2] * 3 + [4] * 2 + [5] * 4)
    people, labels = np.array(["ann", "bob", "cyd"])[codes // 2], codes % 2
    member = np.ones(len(codes), bool)
    member[0] = False
    rngs = map(np.random.default_rng, range(30))
    chosen = [balanced_subset(people, labels, member, rng) for rng in rngs]
    for keep in chosen:
        assert np.bincount(codes[keep], minlength=6).tolist() == [2, 2, 0, 0, 2, 2]
        assert not keep[0]
    assert np.any(chosen, axis=0)[member & (codes != 2)].all()  # any image may be drawn


def test_nothing_to_balance_is_said():
    people, labels, member = [0, 0, 1, 1], [0, 0, 1, 1], np.ones(4, dtype=bool)
    with pytest.raises(
        ValueError, match="no identity of a training set has images of both classes"
    ):
        balanced_subset(people, labels, member, np.random.default_rng(0))
