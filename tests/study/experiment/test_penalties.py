"""The penalty of a cell: what decides it, who takes it, and under which key heads are kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cid.penalty import best_penalty, cross_validated_losses, search
from study.experiment import penalties, runs, variations
from study.experiment.design import draw_sets
from study.experiment.runs import train_sets, weigh_sets

pytestmark = pytest.mark.usefixtures("one_thread")
AUTO = {"l2": "auto", "through": "loss", "robust": {}}
METHODS = ["erm", "cid", "oracle", "jtt"]


@pytest.fixture
def weighed(people, weights, bias):
    identities, labels, proxy, _ = people
    sets = draw_sets(identities, labels, seeds=3, levels=[0.0, 0.6667], **bias)
    return weigh_sets(sets, proxy, labels, identities, METHODS, weights)


@pytest.fixture
def chosen(people, weighed):
    _, labels, _, features = people
    return penalties.choose(weighed, features, labels, METHODS, AUTO)


def test_erms_mean_loss_over_the_first_sets_decides(people, weighed, chosen):
    _, labels, _, features = people
    assert list(chosen) == penalties.COLUMNS
    assert set(chosen["method"]) == {"erm"} and set(chosen["sets"]) == {3}
    for level, cell in chosen.groupby("level"):
        train = weighed[(weighed["level"] == level) & (weighed["part"] == "train")]
        own = []
        for seed, training_set in train.groupby("seed"):
            rows = training_set["row"]
            own.append(
                cross_validated_losses(
                    features[rows], labels[rows], penalties=tuple(cell["l2"]), seed=seed
                )
            )
        np.testing.assert_allclose(cell["loss"], np.mean(own, axis=0), rtol=1e-3)
        losses = dict(zip(cell["l2"], cell["loss"], strict=True))
        assert cell.loc[cell["chosen"], "l2"].tolist() == [best_penalty(losses)]
        for method in METHODS:
            assert penalties.of_method(chosen, level, method) == best_penalty(losses)


def test_small_sets_decide_together_and_large_ones_alone():
    def first(images: int, seeds: int) -> int:
        one = pd.DataFrame({"level": 0.9, "row": range(images), "part": "train"})
        sets = pd.concat([one.assign(seed=seed) for seed in reversed(range(seeds))])
        kept = penalties.first_sets(sets)
        assert set(kept["seed"]) == set(range(kept["seed"].nunique()))
        return kept["seed"].nunique()

    assert first(1500, 3) == 1
    assert first(1499, 3) == 2
    assert first(100, 30) == penalties.MOST
    assert first(100, 4) == 4


def test_neither_identities_nor_weights_nor_test_images_decide(people, weighed, chosen):
    _, labels, _, features = people
    blind = weighed[["level", "seed", "part", "row"]]
    blind = blind[blind["part"] == "train"]
    again = penalties.choose(blind, features, labels, ["erm", "surprise"], AUTO)
    pd.testing.assert_frame_equal(chosen, again, check_exact=True)


def test_every_method_takes_the_choice(people, weighed, chosen):
    _, labels, _, features = people
    predictions, _ = train_sets(weighed, features, labels, METHODS, AUTO)
    for level, own in predictions.groupby("level"):
        l2 = penalties.of_method(chosen, level, "erm")
        sets = weighed[weighed["level"] == level]
        fixed, _ = train_sets(sets, features, labels, METHODS, AUTO | {"l2": l2})
        pd.testing.assert_frame_equal(own[METHODS].reset_index(drop=True), fixed[METHODS])
    # Of two levels with different penalties, so that a mix-up would show.
    two = pd.DataFrame({"level": [0.0, level], "method": "erm", "l2": [0.3, 0.01], "chosen": True})
    mixed, _ = train_sets(weighed, features, labels, METHODS, AUTO, penalties=two)
    for other, l2 in two[["level", "l2"]].itertuples(index=False):
        sets = weighed[weighed["level"] == other]
        fixed, _ = train_sets(sets, features, labels, METHODS, AUTO | {"l2": l2})
        own = mixed[mixed["level"] == other].reset_index(drop=True)
        pd.testing.assert_frame_equal(own[METHODS], fixed[METHODS])


def test_own_choices_differ_and_are_each_methods_own(people, weighed):
    _, labels, _, features = people
    own = AUTO | {"l2": "own"}
    found = penalties.choose(weighed, features, labels, METHODS, own)
    assert set(found["method"]) == set(METHODS)
    auto = penalties.choose(weighed, features, labels, METHODS, AUTO)
    erm = found[found["method"] == "erm"].reset_index(drop=True)
    pd.testing.assert_frame_equal(erm, auto, check_exact=True)
    # One method's on one set, by its weights.
    one = weighed[(weighed["level"] > 0) & (weighed["seed"] == 1)]
    train = one[one["part"] == "train"]
    rows, weights = train["row"], train["cid"].to_numpy()
    expected = search(
        lambda l2s: cross_validated_losses(
            features[rows], labels[rows], weights, penalties=l2s, seed=1
        )
    )
    alone = penalties.choose(one, features, labels, ["cid"], own)
    alone = alone[alone["method"] == "cid"]
    assert alone["l2"].tolist() == list(expected)
    np.testing.assert_allclose(alone["loss"], list(expected.values()), rtol=1e-3)

    predictions, _ = train_sets(weighed, features, labels, METHODS, own, penalties=found)
    for (level, method), l2 in found[found["chosen"]].set_index(["level", "method"])["l2"].items():
        sets = weighed[weighed["level"] == level]
        fixed, _ = train_sets(sets, features, labels, [method], own | {"l2": l2})
        mine = predictions[predictions["level"] == level]
        np.testing.assert_array_equal(mine[method], fixed[method])


def test_a_number_is_taken_as_it_is(people, weighed):
    _, labels, _, features = people
    table = penalties.choose(weighed, features, labels, METHODS, AUTO | {"l2": 0.2})
    assert table["l2"].tolist() == [0.2, 0.2] and table["loss"].isna().all()
    assert penalties.of_method(table, 0.0, "cid") == 0.2


def test_kept_heads_are_found_under_the_value_that_was_used(
    people, weighed, chosen, tmp_path, monkeypatch
):
    _, labels, _, features = people
    done = []
    fit = runs.fit_weighted_methods
    monkeypatch.setattr(
        runs, "fit_weighted_methods", lambda stack, w: done.append(stack.l2) or fit(stack, w)
    )
    first, _ = train_sets(weighed, features, labels, ["erm", "cid"], AUTO, folder=tmp_path)
    assert len(done) == 2
    again, _ = train_sets(weighed, features, labels, ["erm", "cid"], AUTO, folder=tmp_path)
    assert len(done) == 2
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    level = weighed["level"].max()
    sets = weighed[weighed["level"] == level]
    same = AUTO | {"l2": penalties.of_method(chosen, level, "erm")}
    train_sets(sets, features, labels, ["erm", "cid"], same, folder=tmp_path)
    assert len(done) == 2
    train_sets(sets, features, labels, ["erm", "cid"], AUTO | {"l2": 7.0}, folder=tmp_path)
    assert done[2:] == [7.0]


def test_another_processor_or_order_makes_the_same_choice(people, weighed, chosen):
    """Features that differ by far more than rounding, in another order of the sets."""
    _, labels, _, features = people
    jitter = 1 + 1e-5 * np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    shuffled = weighed.sort_values(["seed", "level"], kind="stable")
    again = penalties.choose(shuffled, features * jitter, labels, METHODS, AUTO)
    for level in (0.0, weighed["level"].max()):
        assert penalties.of_method(again, level, "erm") == penalties.of_method(chosen, level, "erm")


def test_variations_choose_for_the_sets_that_they_draw(arrays, settings, tmp_path):
    settings = settings | {"train": AUTO}
    by_run = variations.run(arrays, settings, folder=tmp_path)
    plain = variations.run(arrays, settings)
    pd.testing.assert_frame_equal(by_run, plain, check_exact=True)
    table = variations.penalties_of(arrays, settings)
    for level, own in by_run.groupby("level"):
        l2 = penalties.of_method(table, level, "erm")
        fixed = variations.run(arrays, settings | {"train": AUTO | {"l2": l2}}, [level])
        own = own[settings["methods"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, fixed[settings["methods"]])
    # Half of the people: other sets, another choice.
    few = variations.changed(settings, "bias.people", 8)
    assert not table.equals(variations.penalties_of(arrays, few))
