"""Ways of training against what they say they do, one step after the other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from cid.heads import StandardisedFeatures, balanced_subset, fit_heads
from cid.penalty import folds
from cid.prototypes import fit_prototypes
from cid.risks import generalised_cross_entropy, group_risk
from study.methods import erase, two_stage
from study.methods.base import GRAM_STACK, TrainingStack
from study.methods.erase import erasure
from study.methods.registry import METHODS, fit_method, fit_weighted_methods

PEOPLE = np.arange(400) % 10


def stack_of(shape, seeds=1, through="loss"):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape) * np.geomspace(0.1, 10, shape[1]) + 5
    odds = 2 * (features[:, 30] - features[:, 30].mean()) / features[:, 30].std()
    labels = (odds + rng.normal(size=len(features)) > 0).astype(int)
    features = features.astype(np.float32)
    design = StandardisedFeatures(features, labels)
    return TrainingStack(np.arange(seeds), features, labels, design, 0.1, through)


@pytest.fixture(scope="module")
def stack():
    """One seed, which trains on the first 300 of 400 images."""
    return stack_of((400, 60))


ONES = (np.arange(400) < 300).astype(np.float32)[None]


def test_just_train_twice_upweights_the_first_heads_errors(stack):
    settings = dict(jtt_l2=1.0, jtt_upweight=5.0)
    found = fit_method(stack, "jtt", ONES, settings=settings).logits(stack.features)
    weights = ONES.copy()
    first = fit_heads(stack.features, stack.labels, weights, 1.0).logits(stack.features)
    weights[(first > 0) != stack.labels] *= 5
    second = fit_heads(stack.features, stack.labels, weights, 0.1).logits(stack.features)
    np.testing.assert_allclose(found, second, atol=1e-3 * second.std())


def test_learning_from_failure_trusts_the_difficulty_relative_to_a_biased_head(stack):
    settings = dict(lff_q=0.7, lff_rounds=2, lff_l2=0.4)
    features, labels = stack.features, stack.labels
    found = fit_method(stack, "lff", ONES, settings=settings).logits(features)
    sign = np.where(labels == 1, 1, -1)

    def loss(heads):
        return np.logaddexp(0, -sign * heads.logits(features))

    biased = loss(fit_heads(features, labels, ONES, 0.4, risk=generalised_cross_entropy(0.7)))
    heads = fit_heads(features, labels, ONES, 0.1)
    for _ in range(2):
        difficulty = biased / (biased + loss(heads))
        heads = fit_heads(features, labels, ONES * difficulty, 0.1)
    logits = heads.logits(features)
    np.testing.assert_allclose(found, logits, atol=1e-3 * logits.std())


def test_retraining_averages_the_heads_of_balanced_subsets(stack):
    settings = dict(draws=3)
    found = fit_method(stack, "last-layer", ONES, PEOPLE[None], settings)
    draws = []
    for draw in range(3):
        chosen = balanced_subset(
            PEOPLE, stack.labels, ONES[0] > 0, np.random.default_rng([0, draw])
        )
        draws.append(fit_heads(stack.features, stack.labels, ONES * chosen, 0.1).weight[0])
    np.testing.assert_allclose(found.weight[0], np.mean(draws, axis=0), atol=2e-3)


def split(stack):
    """The images that are fitted first, and those held out, a fifth of either class."""
    held = stack.part(ONES, 0.2)
    for label in (0, 1):
        own = held[0] & (stack.labels == label)
        assert own.sum() == round(0.2 * ((stack.labels == label) & (ONES[0] > 0)).sum())
    assert not held[0, 300:].any()
    first = fit_heads(stack.features, stack.labels, ONES * ~held, 0.1)
    return (
        held,
        first,
        1 / (1 + np.exp(-np.where(stack.labels == 1, 1, -1) * first.logits(stack.features))),
    )


def test_afr_corrects_a_head_on_held_out_images_that_it_finds_hard(stack):
    settings = dict(afr_gamma=3.0, afr_l2=0.5)
    held, first, right = split(stack)
    weights = held * np.exp(-3 * right)
    for label in (0, 1):
        own = stack.labels == label
        weights[0, own] /= (held[0] & own).sum()
    logits = first.logits(stack.features)
    change = fit_heads(stack.features, stack.labels, weights, 0.5, offset=logits)
    expected = logits + change.logits(stack.features)
    found = fit_method(stack, "afr", ONES, settings=settings).logits(stack.features)
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())
    # A pull without end leaves the first head's direction as it was.
    tied = fit_method(stack, "afr", ONES, settings={"afr_l2": 1e6})
    np.testing.assert_allclose(tied.weight, stack.fit(ONES * ~held).weight, atol=1e-5)


def test_self_corrects_a_head_where_a_second_one_disagrees_most(stack):
    settings = dict(selective_stop_l2=5.0, selective_share=0.3, selective_l2=0.5)
    held, first, p = split(stack)
    stopped = fit_heads(stack.features, stack.labels, ONES * ~held, 5.0)
    q = 1 / (1 + np.exp(-np.where(stack.labels == 1, 1, -1) * stopped.logits(stack.features)))
    divergence = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))[0]
    classes = [np.flatnonzero(held[0] & (stack.labels == label)) for label in (0, 1)]
    count = round(0.3 * min(map(len, classes)))
    chosen = np.zeros_like(ONES)
    for own in classes:
        chosen[0, sorted(own, key=lambda i: -divergence[i])[:count]] = 1
    logits = first.logits(stack.features)
    change = fit_heads(stack.features, stack.labels, chosen, 0.5, offset=logits)
    expected = logits + change.logits(stack.features)
    found = fit_method(stack, "selective", ONES, settings=settings).logits(stack.features)
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())


def out_of_fold(stack, l2):
    """Probabilities of the labels of 300 training images by heads that left out a fold of them."""
    fold = folds(stack.labels[:300], 0, two_stage.FOLD_STREAM)
    found = np.zeros(300)
    for left in range(5):
        weights = ONES.copy()
        weights[0, :300][fold == left] = 0
        logits = fit_heads(stack.features, stack.labels, weights, l2).logits(stack.features)[0]
        side = np.where(stack.labels == 1, 1, -1)
        found[fold == left] = (1 / (1 + np.exp(-side * logits)))[:300][fold == left]
    return found


def corrected(stack, weights, l2):
    first = fit_heads(stack.features, stack.labels, ONES, 0.1)
    before = first.logits(stack.features)
    change = fit_heads(stack.features, stack.labels, weights, l2, offset=before)
    return before + change.logits(stack.features)


def test_a_head_that_is_right_already_is_corrected_all_the_same(stack):
    """What is left of its gradient is near the rounding, so it cannot fall to a hundred-thousandth of that."""
    labels = np.random.default_rng(1).integers(0, 2, 400)  # as uncertain as they can be
    stack = replace(stack, labels=labels, design=StandardisedFeatures(stack.features, labels))
    first = stack.fit(ONES, l2=1e-5)
    found = two_stage._corrected(stack, first, ONES, 3.0).logits(stack.features)
    before = first.logits(stack.features)
    np.testing.assert_allclose(found, before, atol=1e-2 * before.std())


def test_crossed_afr_asks_heads_that_did_not_see_an_image(stack):
    settings = dict(afr_crossed_gamma=3.0, afr_crossed_l2=0.5)
    found = fit_method(stack, "afr-crossed", ONES, settings=settings).logits(stack.features)
    weights = ONES.copy()
    weights[0, :300] = np.exp(-3 * out_of_fold(stack, 0.1))
    weights[0, :300] /= np.bincount(stack.labels[:300])[stack.labels[:300]]
    expected = corrected(stack, weights, 0.5)
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.std())


def test_crossed_self_corrects_where_heads_that_did_not_see_an_image_disagree(stack):
    settings = dict(
        selective_crossed_stop_l2=5.0, selective_crossed_share=0.2, selective_crossed_l2=0.5
    )
    found = fit_method(stack, "selective-crossed", ONES, settings=settings).logits(stack.features)
    p, q = out_of_fold(stack, 0.1), out_of_fold(stack, 5.0)
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    weights, own = np.zeros_like(ONES), stack.labels[:300]
    count = round(0.2 * np.bincount(own).min())
    for label in (0, 1):
        images = np.flatnonzero(own == label)
        weights[0, images[np.argsort(-divergence[images])[:count]]] = 1
    expected = corrected(stack, weights, 0.5)
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.std())


def test_dpe_is_the_ensemble_of_cid_on_features_in_units_of_the_training_set(stack):
    settings = dict(dpe_members=2, dpe_epochs=3)
    found = fit_method(stack, "dpe", ONES, settings=settings).logits(stack.features)
    centre, spread = stack.features[:300].mean(axis=0), stack.features[:300].std(axis=0)
    x = (stack.features - centre) / spread
    ensemble = fit_prototypes(x[:300], stack.labels[:300], members=2, epochs=3, batch=64)
    p = ensemble.probabilities(x)
    expected = np.log(p[:, 1] / p[:, 0])
    np.testing.assert_allclose(found[0], expected, atol=1e-2 * expected.std())


@pytest.mark.parametrize("rounds", [1, 2])
def test_xrm_groups_by_class_and_by_the_mistakes_of_the_other_half(stack, rounds):
    settings = dict(xrm_rounds=rounds, xrm_tilt=2.0)
    features, labels = stack.features, stack.labels
    half, p = stack.part(ONES, 0.5), np.full((2, 400), 1.0)
    for _ in range(rounds):
        # Of an image, by what the other head thinks of its label; above 0, so that both copies count in
        # the statistics that features are standardised by.
        flip = np.clip(1 - 2 * p, 1e-9, 1)
        heads = []
        for member, other in ((half, flip[1]), (~half, flip[0])):
            weights = ONES * member
            both = np.concatenate([weights * (1 - other), weights * other], axis=1)
            twice, flipped = np.concatenate([features] * 2), np.concatenate([labels, 1 - labels])
            heads.append(fit_heads(twice, flipped, both, 0.1))
        side = np.where(labels == 1, 1, -1)
        p = np.concatenate([1 / (1 + np.exp(-side * h.logits(features))) for h in heads])
    wrong = np.where(half[0], p[1], p[0]) < 0.5
    risk = partial(group_risk, 2.0)
    expected = fit_heads(features, labels, ONES, 0.1, risk=risk, groups=(2 * labels + wrong)[None])
    found = fit_method(stack, "xrm", ONES, settings=settings).logits(features)
    expected = expected.logits(features)
    np.testing.assert_allclose(found, expected, atol=5e-3 * expected.std())
    assert 10 < wrong[:300].sum() < 150


def test_surprise_in_the_logits_is_an_offset_that_no_head_keeps(stack):
    offsets = 0.4 * (stack.features[None, :, 30] - 5)
    found = fit_method(stack, "surprise-logits", ONES, offsets)
    expected = fit_heads(stack.features, stack.labels, ONES, 0.1, offset=offsets)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-4)


def test_ula_does_not_learn_what_the_proxy_explains(stack):
    log_odds = 0.8 * (stack.features[None, :, 30] - 5)
    settings = dict(ula_strength=0.5)
    found = fit_method(stack, "ula", ONES, log_odds, settings)
    expected = fit_heads(stack.features, stack.labels, ONES, 0.1, offset=0.5 * log_odds)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-4)
    plain = fit_heads(stack.features, stack.labels, ONES, 0.1)
    assert abs(found.weight[0, 30]) < 0.9 * abs(plain.weight[0, 30])


@pytest.mark.parametrize("noisy", [False, True])
def test_audited_leaves_label_surprise_only_for_what_is_clearly_better(stack, noisy):
    """Weights that follow nothing but chance do harm, and images that were held out say so."""
    rng = np.random.default_rng(0)
    weights = ONES.copy()
    if noisy:
        weights[0, :300] = rng.gamma(0.2, size=300).astype(np.float32)
        weights /= weights[:, :300].mean()
    else:
        weights[0, :300] += 0.01 * rng.random(300).astype(np.float32)
    found = fit_method(stack, "audited", weights, ONES).logits(stack.features)
    expected = fit_method(stack, "erm" if noisy else "surprise", ONES if noisy else weights)
    np.testing.assert_allclose(found, expected.logits(stack.features), atol=1e-3)


def test_audited_trains_plainly_where_all_weights_are_alike(stack):
    found, plain = (fit_method(stack, name, ONES, ONES) for name in ("audited", "erm"))
    np.testing.assert_array_equal(found.weight, plain.weight)


def test_audited_refuses_a_sampler(stack):
    with pytest.raises(ValueError, match="train.through is sampler; set train.through to loss"):
        fit_method(replace(stack, through="sampler"), "audited", ONES, ONES)


def test_erasure_leaves_no_linear_trace_of_the_groups():
    rng = np.random.default_rng(3)
    groups = rng.integers(5, size=300)
    x = (
        rng.normal(size=(300, 20)) @ rng.normal(size=(20, 20))
        + 2 * rng.normal(size=(5, 20))[groups]
    )
    x -= x.mean(axis=0)
    tell, shift = erasure(x, groups)
    clean = x - x @ tell @ shift
    means = np.stack([clean[groups == g].mean(axis=0) for g in range(5)])
    np.testing.assert_allclose(means, 0, atol=1e-8)
    assert np.linalg.matrix_rank(tell @ shift, tol=1e-8) == 4  # of five means around their mean
    np.testing.assert_allclose(erasure(clean, np.zeros(300))[0], 0)  # one group tells nothing


def test_erasure_of_two_groups_is_the_closed_form():
    """Without shrinkage: x - D (D^T S^-1 D)^-1 D^T S^-1 x for a difference D of means."""
    x = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, -1.0], [-3.0, -1.0]])
    tell, shift = erasure(x, np.array([0, 0, 1, 1]), 0.0)
    inverse, d = np.linalg.inv(x.T @ x / 4), np.array([2.0, 2.0])
    expected = x - np.outer(x @ inverse @ d, d) / (d @ inverse @ d)
    np.testing.assert_allclose(x - x @ tell @ shift, expected, atol=1e-9)


@pytest.mark.parametrize("d", [6, 40])
def test_the_covariance_is_shrunk_as_ledoit_and_wolf_do(d):
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(30, d)) * np.geomspace(1, 9, d), np.arange(30) % 3
    x -= x.mean(axis=0)
    share = ledoit_wolf_shrinkage(x, assume_centered=True)
    for one, other in zip(erasure(x, groups), erasure(x, groups, share), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    member = (groups[:, None] == np.arange(3)) - 1 / 3
    covariance = (1 - share) * x.T @ x / 30 + share * np.trace(x.T @ x) / 30 / d * np.eye(d)
    tell = np.linalg.solve(covariance, x.T @ member / 30)
    np.testing.assert_allclose(erasure(x, groups)[0], tell, atol=1e-9)


def test_features_are_erased_in_parts(stack, monkeypatch):
    whole = fit_method(stack, "erase", ONES, PEOPLE[None]).logits(stack.features)
    monkeypatch.setattr(erase, "ROWS", 70)
    parts = fit_method(stack, "erase", ONES, PEOPLE[None]).logits(stack.features)
    np.testing.assert_allclose(parts, whole, atol=1e-4 * whole.std())


def test_a_head_on_erased_features_is_in_raw_units(stack):
    found = fit_method(stack, "erase", ONES, PEOPLE[None])
    x = stack.features[:300].astype(float)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    z = (x - centre) / spread
    tell, shift = erasure(z, PEOPLE[:300])
    clean = z - z @ tell @ shift
    expected = fit_heads(clean, stack.labels[:300], ONES[:, :300], 0.1).logits(clean.astype("f4"))
    found = found.logits(stack.features[:300])
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.std())


# One method for each way of training linear heads.
WAYS = {method.fit: method.name for method in METHODS.values()}.values()


def test_every_way_of_training_gives_a_head_of_its_own(stack):
    needed = {"group-dro": (2 * PEOPLE + stack.labels)[None], "ula": stack.features[None, :, 0] - 5}
    needed |= dict.fromkeys(("last-layer", "erase"), PEOPLE[None])
    needed["audited"] = ONES
    needed["surprise-logits"] = stack.features[None, :, 1] - 5
    weights = dict.fromkeys(WAYS, ONES) | {"audited": ONES * (1 + 4 * (PEOPLE > 7))}
    fitted = [fit_method(stack, way, weights[way], needed.get(way)) for way in WAYS]
    logits = np.concatenate([heads.logits(stack.features) for heads in fitted])[:, 300:]
    assert (((logits > 0) == stack.labels[300:]).mean(axis=1) > 0.6).all()
    assert np.linalg.matrix_rank(logits) == len(WAYS) == 18


def test_what_a_method_needs_and_lacks_is_named(stack):
    needy = [method for method in METHODS.values() if method.needs]
    assert {method.needs for method in needy} == {"groups", "offset", "rival"}
    for method in needy:
        with pytest.raises(ValueError, match=f"{method.name} needs {method.needs} and none were"):
            fit_method(stack, method.name, ONES)


def test_a_sampler_draws_in_proportion_to_the_weights(stack):
    heavy = ONES * (np.arange(400) % 3)
    drawn = replace(stack, through="sampler")
    counts = drawn.sampled(heavy)
    assert counts.sum() == (heavy > 0).sum() and not counts[heavy == 0].any()
    assert counts[heavy == 2].sum() > 1.5 * counts[heavy == 1].sum()
    np.testing.assert_array_equal(stack.sampled(heavy), heavy)
    by_loss, sampled, again = (
        fit_method(one, "erm", heavy).logits(stack.features) for one in (stack, drawn, drawn)
    )
    np.testing.assert_array_equal(sampled, again)
    assert 0.8 < np.corrcoef(by_loss[0], sampled[0])[0, 1] < 0.9999


# Odd sizes, so that rows of a stack end within a processor's vectors.
@pytest.mark.parametrize("through", ["loss", "sampler"])
@pytest.mark.parametrize("shape", [(300, 250), (401, 60)], ids=["dual", "primal"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_methods_heads_do_not_depend_on_what_is_fitted_beside_them(seeds, shape, through):
    stack = stack_of(shape, seeds, through=through)
    rng = np.random.default_rng(1)
    member = np.zeros((seeds, shape[0]), dtype=np.float32)
    for row in member:
        row[rng.permutation(shape[0])[:201]] = 1
    others = [member * rng.gamma(2, size=member.shape) for _ in range(GRAM_STACK)]
    alone = fit_method(stack, "erm", member)
    # In stacks with some and all places taken, and in one of its own.
    for number, place in [(0, 0), (1, 1), (2, 0), (3, 3), (4, 4), (7, 0), (7, 7), (8, 8)]:
        beside = others[:number]
        found = fit_weighted_methods(stack, [*beside[:place], member, *beside[place:]])
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
