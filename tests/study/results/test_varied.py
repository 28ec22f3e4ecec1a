"""Many small studies beside each other are what each is alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.experiment import variations
from study.results import varied
from study.results.inference import difference, estimate, summary

WEIGHTS = {"tau": 0.05, "class_prior": "balanced", "include_self": True}
BIAS = {"kind": "correlation", "images_per_identity": 6, "test_per_class": 2, "unseen_share": 0.2,
        "people": None, "levels": [0.0, 0.8]}  # fmt: skip
STUDY = {
    "seeds": 2,
    "methods": ["erm", "cid"],
    "bias": BIAS,
    "weights": WEIGHTS,
    "train": {"l2": 0.1, "through": "loss", "robust": {}},
}
HOW = {"metrics": ["accuracy", "identity_sd"], "replicates": 20}


@pytest.mark.parametrize("kept", [True, False])
def test_the_breadth_of_a_study_is_of_every_task_and_kind(arrays, tmp_path, kept):
    tasks = {"smiling": arrays.labels, "frowning": 1 - arrays.labels}
    none = replace(arrays, labels=None)  # those of a task count, not these
    data = SimpleNamespace(labels=tasks.__getitem__)
    studies = [(task, kind) for kind in ("correlation", "longtail") for task in tasks]
    about = none, data, STUDY, studies
    found = varied.breadth(*about, **HOW, folder=tmp_path if kept else None)
    kinds = ["correlation"] * 2 + ["longtail"] * 2
    assert list(found) == list(zip(["smiling", "frowning"] * 2, kinds, strict=True))
    for (task, kind), study in found.items():
        given = replace(arrays, labels=tasks[task])
        predictions = variations.run(given, STUDY | {"bias": BIAS | {"kind": kind}})
        alone = estimate(predictions, STUDY["methods"], given.labels, given.identities, **HOW)
        pd.testing.assert_frame_equal(study.runs, alone.runs)
        pd.testing.assert_frame_equal(difference(study), difference(alone))


def test_ablations_are_each_what_one_is_alone(arrays, tmp_path):
    ablations = {
        "tau": {"setting": "weights.tau", "values": [0.01, 0.2]},
        "people": {"setting": "bias.people", "values": [10, None]},
    }
    found = varied.ablate(arrays, STUDY, ablations, 0.8, **HOW, folder=tmp_path)
    assert list(found) == ["tau", "people"]
    for name, own in ablations.items():
        predictions = variations.vary(arrays, STUDY, own["setting"], own["values"], 0.8)
        about = STUDY["methods"], arrays.labels, arrays.identities
        alone = difference(estimate(predictions, *about, condition="value", **HOW))
        gains = difference(found[name])
        pd.testing.assert_frame_equal(gains, alone)
        values = ["all" if v is None else str(v) for v in own["values"]]
        assert gains["value"].unique().tolist() == values
        erm = summary(found[name]).query("method == 'erm'")["mean"]
        own_accuracy = varied.baselines(found).query("ablation == @name")
        np.testing.assert_array_equal(own_accuracy["mean"], erm)
        rows = own_accuracy.query("test == 'seen' and metric == 'accuracy'")
        assert rows["value"].tolist() == values and set(rows["method"]) == {"erm"}


def test_a_study_without_ablations_has_an_empty_table_of_baselines():
    assert list(varied.baselines({})) == [
        "ablation", "test", "metric", "value", "method", "mean", "low", "high"
    ]  # fmt: skip


def test_the_penalties_of_every_study_are_listed(arrays):
    auto = STUDY | {"train": STUDY["train"] | {"l2": "auto"}}
    data = SimpleNamespace(labels=lambda task: arrays.labels)
    studies = [("smiling", "correlation"), ("smiling", "longtail")]
    table = varied.breadth_penalties(arrays, data, auto, studies)
    assert table.groupby(["task", "kind", "level"])["chosen"].sum().tolist() == [1, 1, 1, 1]
    ablations = {
        "tau": {"setting": "weights.tau", "values": [0.01]},
        "people": {"setting": "bias.people", "values": [10, None]},
        "l2": {"setting": "train.l2", "values": [0.5, "auto", "own"]},
    }
    table = varied.ablate_penalties(arrays, auto, ablations, 0.8)
    assert set(table["ablation"]) == {"people", "l2"}  # the width of a kernel moves no penalty
    chosen = table[table["chosen"]].set_index(["value", "method"])["l2"]
    assert chosen["0.5", "erm"] == 0.5
    assert chosen["own", "erm"] == chosen["auto", "erm"] == chosen["all", "erm"]
    assert set(chosen["own"].index) == {"erm", "cid"}
    assert varied.ablate_penalties(arrays, auto, {}, 0.8).empty
