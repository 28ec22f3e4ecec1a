"""Sets weighted and heads trained: against one set alone, and what is kept against computing it anew."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from cid.heads import fit_heads
from cid.weights import cid_weights
from study.experiment import runs
from study.experiment.design import draw_sets
from study.experiment.runs import train_sets, weigh_sets
from study.methods.registry import METHODS, training_weights

pytestmark = pytest.mark.usefixtures("one_thread")


# --- weights --------------------------------------------------------------------------------------


def test_sets_are_weighed_set_by_set(people, weights, bias):
    identities, labels, proxy, _ = people
    sets = draw_sets(identities, labels, seeds=2, levels=[0.0, 0.3333], **bias)
    weighed = weigh_sets(sets, proxy, labels, identities, list(METHODS), weights)
    columns = weighed.columns.difference(sets.columns)
    more = [f"{m}:groups" for m in ("cluster-dro", "group-dro", "last-layer", "erase")]
    assert set(columns) == {
        *METHODS,
        *more,
        "ula:offset",
        "surprise-logits:offset",
        "audited:rival",
    }
    train = sets["part"] == "train"
    assert weighed.loc[~train, columns].isna().all(axis=None)
    assert weighed.loc[train, columns].notna().all(axis=None)
    one = weighed[train & (sets["seed"] == 1) & (sets["level"] == 0.3333)]
    expected = cid_weights(proxy[one["row"]], labels[one["row"]], 0.05)
    np.testing.assert_allclose(one["cid"], expected, rtol=1e-5)
    pd.testing.assert_frame_equal(weighed[sets.columns], sets)


def test_a_bar_counts_blocks_of_sets_and_comes_alone(people, weights, bias, capsys):
    identities, labels, proxy, features = people
    sets = draw_sets(identities, labels, seeds=2, levels=[0.0, 0.3333], **bias)
    weighed = weigh_sets(sets, proxy, labels, identities, ["erm"], weights)
    train = {"l2": 0.1, "through": "loss"}
    train_sets(weighed, features, labels, ["erm"], train, progress="fit heads")
    shown = capsys.readouterr().err
    assert "fit heads: 100%" in shown and "\x1b" not in shown
    assert f"{len(runs.blocks(weighed))}/{len(runs.blocks(weighed))}" in shown


def test_weights_are_kept_under_what_a_method_may_see(people, tmp_path, monkeypatch, weights, bias):
    identities, labels, proxy, _ = people
    sets = draw_sets(identities, labels, seeds=2, levels=[0.5], **bias)
    methods, done = ["erm", "cid", "cid-knn", "oracle"], []
    monkeypatch.setattr(
        runs, "training_weights", lambda m, *a: done.append(m) or training_weights(m, *a)
    )

    def weighed(methods=methods, identities=identities, proxy=proxy, **changes):
        done.clear()
        found = weigh_sets(sets, proxy, labels, identities, methods, weights | changes, tmp_path)
        return found, sorted(done)

    first, computed = weighed()
    assert computed == sorted(2 * methods)
    again, computed = weighed(methods[::-1])
    assert not computed
    pd.testing.assert_frame_equal(first, again[first.columns], check_exact=True)
    assert weighed(tau=0.2)[1] == 2 * ["cid"] + 2 * ["cid-knn"]
    assert weighed(neighbours=5)[1] == 2 * ["cid-knn"]
    assert weighed(clusters=7)[1] == []
    # Other people are nothing to a method without identity labels, and everything to the oracle.
    assert weighed(identities=np.random.default_rng(0).permutation(identities))[1] == ["oracle"] * 2
    assert weighed(methods[:3], identities=None)[1] == []
    assert weighed([*methods, "balanced"])[1] == ["balanced"] * 2
    assert weighed(proxy=proxy[::-1])[1] == sorted(2 * methods)


# --- linear heads ---------------------------------------------------------------------------------


def test_train_sets_scores_the_test_images_with_the_right_head(features, sets, every):
    x, labels = features
    predictions, heads = train_sets(sets, x, labels, every, {"l2": 0.1})
    assert list(predictions) == ["level", "seed", "test", "row", "minority", *every]
    assert set(heads) == set(every) and heads["cid"].weight.shape == (2, 12)
    test = sets[sets["part"] != "train"].reset_index(drop=True)
    assert predictions["row"].tolist() == test["row"].tolist()
    assert predictions["test"].tolist() == test["part"].tolist()
    pd.testing.assert_series_equal(predictions["minority"], test["minority"])
    assert np.linalg.matrix_rank(predictions[every].to_numpy()) == len(every)  # each its own head
    for method in every:
        assert ((predictions[method] > 0) == labels[predictions["row"]]).mean() > 0.6

    weights = np.zeros(160)
    part = sets[(sets["part"] == "train") & (sets["seed"] == 1)]
    weights[part["row"]] = part["cid"]
    alone = fit_heads(x, labels, weights[None], 0.1).logits(x)[0]
    mine = predictions[predictions["seed"] == 1]
    np.testing.assert_allclose(mine["cid"], alone[mine["row"]], atol=5e-3 * alone.std())


def test_a_sampler_draws_in_proportion_to_the_weights(features, sets):
    x, labels = features
    sampler = {"l2": 0.1, "through": "sampler"}
    by_loss = train_sets(sets, x, labels, ["cid"], {"l2": 0.1})[0]["cid"]
    sampled, again = (train_sets(sets, x, labels, ["cid"], sampler)[0]["cid"] for _ in "ab")
    np.testing.assert_array_equal(sampled, again)
    assert 0.8 < np.corrcoef(by_loss, sampled)[0, 1] < 0.9999


def test_another_method_seed_or_level_trains_its_own_share_only(
    people, tmp_path, monkeypatch, weights, bias
):
    identities, labels, proxy, features = people
    done = Counter()
    alone, stacked = runs.fit_method, runs.fit_weighted_methods

    def count_method(stack, method, *given):
        done[method] += len(stack.seeds)
        return alone(stack, method, *given)

    def count_weighted(stack, weights):
        done["weighted"] += len(weights) * len(stack.seeds)
        return stacked(stack, weights)

    monkeypatch.setattr(runs, "fit_method", count_method)
    monkeypatch.setattr(runs, "fit_weighted_methods", count_weighted)

    def trained(methods, seeds=11, levels=(0.0, 0.6667), l2=0.1, folder=tmp_path, **options):
        done.clear()
        sets = draw_sets(identities, labels, seeds=seeds, levels=levels, **bias)
        sets = weigh_sets(sets, proxy, labels, identities, methods, weights)
        train = {"l2": l2, "through": options.pop("through", "loss"), "robust": options}
        found, _ = train_sets(sets, features, labels, methods, train, folder=folder)
        return found, dict(done)

    first, computed = trained(["erm", "cid", "jtt"])
    assert computed == {"weighted": 2 * 2 * 11, "jtt": 2 * 11}
    again, computed = trained(["jtt", "cid", "erm"])
    assert not computed
    pd.testing.assert_frame_equal(first, again[first.columns], check_exact=True)

    more, computed = trained(["erm", "oracle", "cid", "jtt", "lff"])
    assert computed == {"weighted": 2 * 11, "lff": 2 * 11}
    pd.testing.assert_frame_equal(first, more[first.columns], check_exact=True)
    # As if all had been fitted at once, and as if each had been alone.
    at_once, _ = trained(["lff", "cid", "oracle", "jtt", "erm"], folder=None)
    pd.testing.assert_frame_equal(more, at_once[more.columns], check_exact=True)
    single, _ = trained(["oracle"], folder=None)
    pd.testing.assert_series_equal(more["oracle"], single["oracle"], check_exact=True)

    # Of ten seeds and one, the second block is fitted again with its new seed.
    grown, computed = trained(["erm", "cid", "jtt"], seeds=12)
    assert computed == {"weighted": 2 * 2 * 2, "jtt": 2 * 2}
    full = [table[table["seed"] < 10].reset_index(drop=True) for table in (first, grown)]
    pd.testing.assert_frame_equal(*full, check_exact=True)
    found, computed = trained(["erm", "jtt"], levels=(0.0, 0.3333, 0.6667))
    assert computed == {"weighted": 11, "jtt": 11}
    assert found["level"].unique().tolist() == [0.0, 0.3333, 0.6667]

    assert trained(["erm", "jtt"], jtt_upweight=3.0)[1] == {"jtt": 2 * 11}
    assert trained(["erm", "jtt"], lff_q=0.5)[1] == {}
    assert trained(["erm", "jtt"], l2=0.2)[1] == {"weighted": 2 * 11, "jtt": 2 * 11}
    for file in tmp_path.glob("heads-jtt-*"):
        file.write_bytes(b"")
    again, computed = trained(["erm", "cid", "jtt"])
    assert computed == {"jtt": 2 * 11}
    pd.testing.assert_frame_equal(first, again, check_exact=True)
