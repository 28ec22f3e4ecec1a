"""Networks trained on many sets: against one alone, together, interrupted, shared and kept."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from threading import Barrier

import numpy as np
import pandas as pd
import pytest

from cid import schedule, training
from cid.models import read_options
from cid.training import fit
from study.experiment import network_runs
from study.experiment.network_runs import train_networks

CPU = {"device": "cpu"}
QUICK = {"epochs": 3, "jtt_epochs": 1}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("through", ["loss", "sampler"])
def test_train_networks_scores_every_test_image(features, sets, through, every):
    x, labels = features
    options = read_options("mlp", QUICK | {"through": through})
    predictions, info = train_networks(sets, x, labels, every, "mlp", options, **CPU)
    assert list(predictions) == ["level", "seed", "test", "row", "minority", *every]
    test = sets[sets["part"] != "train"].reset_index(drop=True)
    assert predictions["row"].tolist() == test["row"].tolist()
    assert predictions["test"].tolist() == test["part"].tolist()
    assert np.isfinite(predictions[every]).all(axis=None)
    assert len(info) == 16 and set(info["initialised"]) == {"scratch"}
    kinds = info[info["seed"] == 0].set_index("method")["training"]
    assert kinds["last-layer"] == "retrain" and kinds["cid"] == "weighted"
    # No two methods are the same run.
    assert predictions[every].T.drop_duplicates().shape[0] == len(every)

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
    features, sets, monkeypatch, every
):
    """On four cores, four runs at a time, last-layer's behind the network it starts from."""
    x, labels = features
    arguments = sets, x, labels, every, "mlp", read_options("mlp", QUICK)
    four, begun = Barrier(4), Counter()

    def together(*given, training, base, **how):
        begun[training, base is not None] += 1
        if begun.total() <= 4:
            four.wait(timeout=600)  # fails if runs wait for each other
        return fit(*given, training=training, base=base, **how)

    monkeypatch.setattr(network_runs, "fit", together)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found, _ = train_networks(*arguments, **CPU)
    assert begun.total() == 16 and begun["retrain", True] == 2
    monkeypatch.setattr(network_runs, "fit", fit)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone, _ = train_networks(*arguments, **CPU)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)


def test_networks_take_labels_that_lack_one(features, sets, every):
    """An image without a label (NaN) is in no set, and changes nothing."""
    x, labels = features
    options = read_options("mlp", QUICK)
    more = np.vstack([x, x[:1]]), np.r_[labels, np.nan]
    found, plain = (
        train_networks(sets, *given, every, "mlp", options, **CPU)[0]
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
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    options = read_options("mlp", {"epochs": 5, "jtt_epochs": 2})
    arguments = sets[sets["seed"] == 0], x, labels, [method], "mlp", options
    whole, _ = train_networks(*arguments, **CPU)

    steps, schedule = [], training._schedule

    def interrupt(step, total):
        steps.append(step)
        if len(steps) == 9 + 4 * (method == "jtt"):  # 2 batches an epoch: in the fifth epoch
            raise Stop
        return schedule(step, total)

    monkeypatch.setattr(training, "_schedule", interrupt)
    with pytest.raises(Stop):
        train_networks(*arguments, folder=tmp_path, **CPU)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]
    steps.clear()
    monkeypatch.setattr(training, "_schedule", lambda *at: steps.append(at) or schedule(*at))
    resumed, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    assert len(steps) == 2 + 4 * (method == "jtt")  # the last epoch, and jtt's first network
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_finished_runs_are_kept_until_something_they_depend_on_changes(
    features, sets, tmp_path, monkeypatch, weights
):
    x, labels = features
    done = []
    monkeypatch.setattr(
        network_runs,
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

    monkeypatch.setattr(network_runs, "fit", None)
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


def test_epochs_and_decay_are_chosen_for_erm_and_taken_by_every_method(
    features, sets, monkeypatch, tmp_path
):
    x, labels = features
    monkeypatch.setattr(schedule, "EPOCHS", (2, 6))
    monkeypatch.setattr(schedule, "DECAYS", (0.0, 50.0))
    options = read_options("mlp", {"epochs": "auto", "weight_decay": "auto", "jtt_epochs": 1})
    methods = ["erm", "cid", "group-dro"]
    arguments = sets, x, labels, methods, "mlp", options
    found, info = train_networks(*arguments, **CPU)
    first = sets[(sets["seed"] == 0) & (sets["part"] == "train")]["row"].to_numpy()
    tried = schedule.candidates(options)
    losses = [schedule.held_out_loss("mlp", x, labels, first, one, **CPU) for one in tried]
    assert len(set(losses)) == 4
    best = schedule.best_options(tried, losses)
    assert set(info["epochs"]) == {best.epochs} and set(info["weight_decay"]) == {best.weight_decay}
    fixed, _ = train_networks(sets, x, labels, methods, "mlp", best, folder=tmp_path, **CPU)
    pd.testing.assert_frame_equal(found, fixed, check_exact=True)
    # What is kept is found under the values that were used.
    monkeypatch.setattr(network_runs, "fit", None)
    kept, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    pd.testing.assert_frame_equal(kept, fixed, check_exact=True)
