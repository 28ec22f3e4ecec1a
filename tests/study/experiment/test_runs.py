"""Sets weighed and trained: against one set alone, and what is kept of them against computing it anew."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from threading import Barrier

import numpy as np
import pandas as pd
import pytest

from cid import networks
from cid.density import cid_weights
from cid.heads import fit_heads
from cid.networks import fit, read_options
from study.experiment import runs
from study.experiment.design import draw_sets
from study.experiment.methods import METHODS, training_weights
from study.experiment.options import HeadOptions
from study.experiment.runs import train_model, train_networks, train_sets, weigh_sets

CPU = {"device": "cpu"}
WEIGHTS = {
    "tau": 0.05, "power": 2.0, "temper": 2.0, "class_prior": "balanced", "include_self": True, "rarity": 1.0,
    "surprise": "auto", "neighbours": "auto", "posterior_tau": "auto",
    "keep_class_direction": False, "local_scaling": False, "clusters": "auto", "erase_clusters": "auto",
    "bias_l2": 0.1,
}  # fmt: skip
BIAS = {"kind": "correlation", "images_per_identity": 6, "test_per_class": 2, "unseen_share": 0.2}
EVERY = ["erm", "cid", "cvar-dro", "kl-dro", "jtt", "lff", "group-dro", "last-layer"]
QUICK = {"epochs": 3, "jtt_epochs": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sets(features):
    """Two seeds of a level: 100 training images of 10 people, 30 seen and 30 unseen test images."""
    _, labels = features
    tables = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        parts = np.repeat(["train", "seen", "unseen"], [100, 30, 30])
        rows = rng.permutation(160)
        tables.append(pd.DataFrame({"level": 0.9, "seed": seed, "part": parts, "row": rows}))
    table = pd.concat(tables, ignore_index=True)
    table["minority"] = np.where(table["part"] == "seen", table.index % 2, np.nan)
    train = table["part"] == "train"
    people = np.arange(len(table)) % 10
    for name in EVERY:
        table[name] = np.where(train, 1.0, np.nan)
    weights = np.random.default_rng(9).exponential(size=len(table))
    table["cid"] = np.where(train, weights, np.nan)
    cells = 2 * people + labels[table["row"]]
    table["group-dro:groups"] = np.where(train, cells, np.nan)
    table["last-layer:groups"] = np.where(train, people, np.nan)
    return table


# --- weights --------------------------------------------------------------------------------------


def test_sets_are_weighed_set_by_set(people):
    identities, labels, proxy, _ = people
    sets = draw_sets(identities, labels, seeds=2, levels=[0.0, 0.3333], **BIAS)
    weighed = weigh_sets(sets, proxy, labels, identities, list(METHODS), WEIGHTS)
    columns = weighed.columns.difference(sets.columns)
    more = [f"{m}:groups" for m in ("cluster-dro", "group-dro", "last-layer", "erase")]
    assert set(columns) == {*METHODS, *more, "ula:offset"}
    train = sets["part"] == "train"
    assert weighed.loc[~train, columns].isna().all(axis=None)
    assert weighed.loc[train, columns].notna().all(axis=None)
    one = weighed[train & (sets["seed"] == 1) & (sets["level"] == 0.3333)]
    expected = cid_weights(proxy[one["row"]], labels[one["row"]], 0.05)
    np.testing.assert_allclose(one["cid"], expected)
    pd.testing.assert_frame_equal(weighed[sets.columns], sets)


def test_weights_are_kept_under_what_a_method_may_see(people, tmp_path, monkeypatch):
    identities, labels, proxy, _ = people
    sets = draw_sets(identities, labels, seeds=2, levels=[0.5], **BIAS)
    methods, done = ["erm", "cid", "cid-knn", "oracle"], []
    monkeypatch.setattr(
        runs, "training_weights", lambda m, *a: done.append(m) or training_weights(m, *a)
    )

    def weighed(methods=methods, identities=identities, proxy=proxy, **changes):
        done.clear()
        found = weigh_sets(sets, proxy, labels, identities, methods, WEIGHTS | changes, tmp_path)
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


def test_train_sets_scores_the_test_images_with_the_right_head(features, sets):
    x, labels = features
    predictions, heads = train_sets(sets, x, labels, EVERY, 0.1)
    assert list(predictions) == ["level", "seed", "test", "row", "minority", *EVERY]
    assert set(heads) == set(EVERY) and heads["cid"].weight.shape == (2, 12)
    test = sets[sets["part"] != "train"].reset_index(drop=True)
    assert predictions["row"].tolist() == test["row"].tolist()
    assert predictions["test"].tolist() == test["part"].tolist()
    pd.testing.assert_series_equal(predictions["minority"], test["minority"])
    assert np.linalg.matrix_rank(predictions[EVERY].to_numpy()) == len(EVERY)  # each its own head
    for method in EVERY:
        assert ((predictions[method] > 0) == labels[predictions["row"]]).mean() > 0.6

    weights = np.zeros(160)
    part = sets[(sets["part"] == "train") & (sets["seed"] == 1)]
    weights[part["row"]] = part["cid"]
    alone = fit_heads(x, labels, weights[None], 0.1).logits(x)[0]
    mine = predictions[predictions["seed"] == 1]
    np.testing.assert_allclose(mine["cid"], alone[mine["row"]], atol=5e-3 * alone.std())


def test_a_sampler_draws_in_proportion_to_the_weights(features, sets):
    x, labels = features
    sampler = HeadOptions(through="sampler")
    by_loss = train_sets(sets, x, labels, ["cid"], 0.1)[0]["cid"]
    sampled, again = (train_sets(sets, x, labels, ["cid"], 0.1, sampler)[0]["cid"] for _ in "ab")
    np.testing.assert_array_equal(sampled, again)
    assert 0.8 < np.corrcoef(by_loss, sampled)[0, 1] < 0.9999


def test_another_method_seed_or_level_trains_its_own_share_only(people, tmp_path, monkeypatch):
    identities, labels, proxy, features = people
    done = Counter()
    alone, stacked = runs.fit_method, runs.fit_weighted

    def count_method(cell, kind, *given):
        done[kind] += len(cell.seeds)
        return alone(cell, kind, *given)

    def count_weighted(cell, stack):
        done["weighted"] += len(stack) * len(cell.seeds)
        return stacked(cell, stack)

    monkeypatch.setattr(runs, "fit_method", count_method)
    monkeypatch.setattr(runs, "fit_weighted", count_weighted)

    def trained(methods, seeds=11, levels=(0.0, 0.6667), l2=0.1, folder=tmp_path, **options):
        done.clear()
        sets = draw_sets(identities, labels, seeds=seeds, levels=levels, **BIAS)
        sets = weigh_sets(sets, proxy, labels, identities, methods, WEIGHTS)
        options = HeadOptions(**options)
        found, _ = train_sets(sets, features, labels, methods, l2, options, folder=folder)
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


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["loss", "sampler"])
def test_train_networks_scores_every_test_image(features, sets, through):
    x, labels = features
    options = read_options("mlp", QUICK | {"through": through})
    predictions, info = train_networks(sets, x, labels, EVERY, "mlp", options, **CPU)
    assert list(predictions) == ["level", "seed", "test", "row", "minority", *EVERY]
    test = sets[sets["part"] != "train"].reset_index(drop=True)
    assert predictions["row"].tolist() == test["row"].tolist()
    assert predictions["test"].tolist() == test["part"].tolist()
    assert np.isfinite(predictions[EVERY]).all(axis=None)
    assert len(info) == 16 and set(info["initialised"]) == {"scratch"}
    kinds = info[info["seed"] == 0].set_index("method")["training"]
    assert kinds["last-layer"] == "retrain" and kinds["cid"] == "weighted"
    # No two methods are the same run.
    assert predictions[EVERY].T.drop_duplicates().shape[0] == len(EVERY)

    part = sets[(sets["seed"] == 1) & (sets["part"] == "train")]
    alone = fit("mlp", x, labels, part["row"], weights=part["cid"], options=options, seed=1, **CPU)
    mine = predictions[predictions["seed"] == 1]
    assert alone.logits(x, mine["row"]).tobytes() == mine["cid"].to_numpy().tobytes()


def test_networks_of_several_levels_are_those_of_each(features, sets):
    x, labels = features
    other = sets.assign(level=0.5, row=sets["row"].to_numpy()[::-1].copy())
    methods, options = ["erm", "last-layer"], read_options("mlp", QUICK)
    both = pd.concat([other, sets], ignore_index=True)
    found, info = train_networks(both, x, labels, methods, "mlp", options, **CPU)
    assert len(info) == 8
    for level, part in (("0.5", other), ("0.9", sets)):
        alone, _ = train_networks(part, x, labels, methods, "mlp", options, **CPU)
        mine = found[found["level"] == float(level)].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, alone, check_exact=True)


def test_networks_are_trained_at_once_to_the_bytes_of_one_after_the_other(
    features, sets, monkeypatch
):
    """On four cores, four runs at a time, last-layer's behind the network it starts from."""
    x, labels = features
    arguments = sets, x, labels, EVERY, "mlp", read_options("mlp", QUICK)
    four, begun = Barrier(4), Counter()

    def together(*given, training, base, **how):
        begun[training, base is not None] += 1
        if begun.total() <= 4:
            four.wait(timeout=600)  # fails if runs wait for each other
        return fit(*given, training=training, base=base, **how)

    monkeypatch.setattr(runs, "fit", together)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found, _ = train_networks(*arguments, **CPU)
    assert begun.total() == 16 and begun["retrain", True] == 2
    monkeypatch.setattr(runs, "fit", fit)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone, _ = train_networks(*arguments, **CPU)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)


def test_networks_take_labels_that_lack_one(features, sets):
    """An image without a label (NaN) is in no set, and changes nothing."""
    x, labels = features
    options = read_options("mlp", QUICK)
    more = np.vstack([x, x[:1]]), np.r_[labels, np.nan]
    found, plain = (
        train_networks(sets, *given, EVERY, "mlp", options, **CPU)[0]
        for given in (more, (x, labels))
    )
    pd.testing.assert_frame_equal(found, plain, check_exact=True)


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["cid", "group-dro", "lff", "jtt", "last-layer"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    features, sets, method, tmp_path, monkeypatch
):
    x, labels = features
    monkeypatch.setattr(networks, "CHECKPOINT_SECONDS", 0)
    options = read_options("mlp", {"epochs": 5, "jtt_epochs": 2})
    arguments = sets[sets["seed"] == 0], x, labels, [method], "mlp", options
    whole, _ = train_networks(*arguments, **CPU)

    steps, schedule = [], networks._schedule

    def interrupt(step, total):
        steps.append(step)
        if len(steps) == 9 + 4 * (method == "jtt"):  # 2 batches an epoch: in the fifth epoch
            raise Stop
        return schedule(step, total)

    monkeypatch.setattr(networks, "_schedule", interrupt)
    with pytest.raises(Stop):
        train_networks(*arguments, folder=tmp_path, **CPU)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]
    steps.clear()
    monkeypatch.setattr(networks, "_schedule", lambda *at: steps.append(at) or schedule(*at))
    resumed, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    assert len(steps) == 2 + 4 * (method == "jtt")  # the last epoch, and jtt's first network
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_finished_runs_are_kept_until_something_they_depend_on_changes(
    features, sets, tmp_path, monkeypatch
):
    x, labels = features
    done = []
    monkeypatch.setattr(
        runs,
        "fit",
        lambda *a, training, **k: done.append(training) or fit(*a, training=training, **k),
    )
    options = read_options("mlp", {"epochs": 2})

    def ran(options=options, sets=sets, x=x, labels=labels, methods=("erm", "cid", "cvar-dro")):
        done.clear()
        methods = list(methods)
        result, info = train_networks(
            sets, x, labels, methods, "mlp", options, folder=tmp_path, **CPU
        )
        assert len(info) == 2 * len(methods)
        return result, sorted(done)

    first, trained = ran()
    assert trained == ["cvar-dro"] * 2 + ["weighted"] * 4
    again, trained = ran(methods=("cvar-dro", "erm", "cid"))
    assert trained == []
    pd.testing.assert_frame_equal(first, again[first.columns], check_exact=True)
    more, trained = ran(methods=("erm", "lff", "cid", "cvar-dro"))
    assert trained == ["lff"] * 2
    pd.testing.assert_frame_equal(first, more[first.columns], check_exact=True)
    twice = sets.assign(balanced=sets["erm"])  # the same weights: one run a set
    alike, trained = ran(sets=twice, x=x + 2, methods=("balanced", "erm"))
    assert trained == ["weighted"] * 2
    np.testing.assert_array_equal(alike["balanced"], alike["erm"])
    assert ran(dataclasses.replace(options, lff_q=0.5))[1] == []  # of no method here
    assert ran(dataclasses.replace(options, alpha=0.3))[1] == ["cvar-dro"] * 2
    changed = sets.copy()
    changed.loc[changed["seed"] == 1, "cid"] *= np.linspace(0.5, 1.5, 160)
    assert ran(sets=changed)[1] == ["weighted"]
    assert len(ran(x=x + 1)[1]) == 6
    flipped = labels.copy()
    flipped[sets["row"][0]] ^= 1  # a training image of seed 0, and of seed 1 or not
    assert len(ran(labels=flipped)[1]) in (3, 6)
    assert len(ran(dataclasses.replace(options, epochs=1, jtt_epochs=1))[1]) == 6


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_runs_of_a_folder(features, sets, world, tmp_path, monkeypatch):
    """One after the other; afterwards nothing is left to train, and every byte is a lone process's."""
    x, labels = features
    methods = [
        "last-layer",
        "erm",
        "cid",
    ]  # last-layer starts from erm, which another rank may have
    arguments = sets, x, labels, methods, "mlp", read_options("mlp", QUICK)
    alone, _ = train_networks(*arguments, folder=tmp_path / "alone", **CPU)
    shared = tmp_path / "shared"
    trained = []
    for rank in range(world):
        found, info = train_networks(*arguments, folder=shared, rank=rank, world=world, **CPU)
        trained.append(len(info))
        missing = found[methods].isna().groupby(found["seed"]).all().to_numpy().sum()
        assert missing == 6 - len(info)
        assert (found[methods].dtypes == np.float32).all()
    assert np.diff([0, *trained]).tolist() == [6 // world] * world
    names = [
        sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "alone", shared)
    ]
    assert names[0] == names[1]

    monkeypatch.setattr(runs, "fit", None)
    found, _ = train_networks(*arguments, folder=shared, **CPU)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)


@pytest.mark.parametrize(
    "rank, world, kept", [(0, 2, False), (2, 2, True), (0, 0, True), (2, 3, True)]
)
def test_processes_that_cannot_share_are_told(features, sets, rank, world, kept, tmp_path):
    x, labels = features
    how = {"folder": tmp_path if kept else None, "rank": rank, "world": world}
    with pytest.raises(ValueError, match=f"process {rank} of {world} cannot share 2 runs"):
        train_networks(sets, x, labels, ["erm"], "mlp", **how, **CPU)


def test_a_bar_counts_runs_on_stderr_only(features, sets, capsys):
    x, labels = features
    options = read_options("mlp", QUICK)
    train_networks(sets, x, labels, ["erm"], "mlp", options, progress="networks", **CPU)
    out, err = capsys.readouterr()
    assert out == "" and "networks" in err and "2.0/2 runs" in err


def test_columns_that_are_missing_stop_before_the_first_run(features, sets):
    x, labels = features
    with pytest.raises(ValueError, match="lack the column 'group-dro:groups'"):
        train_networks(sets.drop(columns="group-dro:groups"), x, labels, ["group-dro"], "mlp")


def test_a_damaged_file_of_a_run_is_replaced(features, sets, tmp_path):
    x, labels = features
    arguments = sets, x, labels, ["erm"], "mlp", read_options("mlp", QUICK)
    first, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    whole = sorted(tmp_path.iterdir())[0]
    before = whole.read_bytes()
    whole.write_bytes(before[:100])  # as after a power cut
    again, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert len(whole.read_bytes()) == len(before)


# --- the model of params.yaml ---------------------------------------------------------------------


def test_the_named_model_is_trained(tmp_path, features, sets):
    settings = {"l2": 0.1, "through": "loss", "robust": {}, "network": {}}
    features, labels = features
    methods = ["erm", "cid"]
    arguments = (sets, features, None, labels, methods)
    found, about = train_model(*arguments, settings | {"model": "linear"})
    expected, _ = train_sets(sets, features, labels, methods, 0.1)
    pd.testing.assert_frame_equal(found, expected)
    assert about.startswith("4 linear heads on 12 features converged")
    network = {"epochs": 2, "jtt_epochs": 1}
    found, about = train_model(
        *arguments, settings | {"model": "mlp", "network": network}, folder=tmp_path
    )
    expected, info = train_networks(
        sets, features, labels, methods, "mlp", read_options("mlp", network)
    )
    pd.testing.assert_frame_equal(found, expected)
    assert about.startswith("4 networks (One hidden layer), trained from scratch; at the end they")
    assert set(info["epoch"]) == {2} and f"{info['accuracy'][:2].mean():.1%} (ERM)" in about
    first = sets[(sets["seed"] == 0) & (sets["part"] == "train")]["row"].to_numpy()
    erm = fit("mlp", features, labels, first, options=read_options("mlp", network), **CPU)
    right = (erm.logits(features, first) > 0) == labels[first]
    assert info["accuracy"][0] == right.mean() < 1
    assert len(list(tmp_path.glob("*.npz"))) == 4
    for wrong, message in (
        ({"model": "mpl"}, "'mpl' is unknown.*'mlp'"),
        ({"model": "cnn"}, "train.model is cnn, which takes faces, and there are none"),
        (
            {"model": "finetune"},
            "train.model is finetune, which takes activations, and there are none",
        ),
        ({"model": "linear", "robust": {"alpa": 1.0}}, "train.robust.alpa is unknown"),
        ({"model": "mlp", "network": {"epoch": 1}}, "train.network.epoch is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            train_model(*arguments, settings | wrong)


def test_a_network_of_faces_is_trained_on_the_crops(sets, monkeypatch):
    crops, labels = np.zeros((160, 3, 64, 64), np.uint8), np.arange(160) % 2
    given = []
    monkeypatch.setattr(
        runs, "train_networks", lambda sets, inputs, *a, **k: given.append(inputs) or (None, INFO)
    )
    train = {"model": "cnn", "network": {}, "robust": {}, "through": "loss", "l2": 0.1}
    _, about = train_model(sets, None, crops, labels, ["erm"], train)
    assert given[0] is crops and about.startswith("1 networks (Small CNN), trained from scratch; ")
    _, about = train_model(
        sets, None, crops, labels, ["erm"], train | {"network": {"held_out": 0.1}}
    )
    assert about == (
        "1 networks (Small CNN), trained from scratch; at the end they had 50.0% (ERM) to 50.0% (ERM) "
        "of their training images right, in the mean of a method. Of 20 epochs one between 9 and 9 "
        "stayed (median 9), by the class-balanced loss on 10% of the training images, which trained nothing."
    )


INFO = pd.DataFrame(
    {"initialised": ["scratch"], "method": ["erm"], "accuracy": [0.5], "epoch": [9]}
)
