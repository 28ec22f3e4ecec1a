"""The table of chosen settings, and that the parameters are what it chose; a few seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study import tune
from study.experiment.arrays import Arrays
from study.pipeline import params

ROOT = Path(__file__).parents[2]


def test_the_criteria_by_hand():
    """Level .5 of 4 images: a quarter of the training images are in minority cells."""
    labels = np.array([0, 1, 0, 1])
    predictions = pd.DataFrame(
        {"level": 0.5, "test": "seen", "row": range(4), "minority": [0, 1, 0, 1],
         "erm": [-1.0, 1.0, 1.0, 1.0]}
    )  # fmt: skip
    other = predictions.assign(test="unseen", erm=-9.0)
    found = tune.measured(pd.concat([predictions, other]), "erm", labels)
    assert found == {
        "accuracy": 0.75,
        "minority_accuracy": 1.0,
        "accuracy_as_trained": pytest.approx(0.25 * 1.0 + 0.75 * 0.5),
    }


def test_every_setting_of_the_grid_is_tried_and_the_best_is_marked(monkeypatch):
    rng = np.random.default_rng(0)
    people, labels = np.repeat(np.arange(12), 20), np.tile([0, 1], 120)
    proxy = np.eye(12)[people] + 0.1 * rng.normal(size=(240, 12))
    arrays = Arrays(
        proxy.astype(np.float32),
        np.c_[proxy, labels + rng.normal(size=240)].astype(np.float32), labels, people,
    )  # fmt: skip
    parameters = params.read(ROOT / "params.yaml")
    settings = {key: parameters[key] for key in ("weights", "train")} | {"seeds": 2}
    settings["bias"] = parameters["bias"] | {
        "levels": [0.0, 0.75], "images_per_identity": 8, "test_per_class": 3,
    }  # fmt: skip
    monkeypatch.setattr(tune, "GRID", {("oracle-tempered", "weights.temper"): [0.5, 1.25]})
    monkeypatch.setattr(tune, "NEAR", (5,))
    table = tune.tuned(arrays, settings)
    assert table["value"].tolist() == ["0.5", "1.25", *(f"the 5th, {s} of it" for s in tune.SHARE)]
    assert table["used"].tolist() == [False, True, False, True, False]
    for _, own in table.groupby("method"):
        assert own.loc[own["chosen"], "accuracy"].tolist() == [own["accuracy"].max()]
        assert own["chosen_without_identities"].sum() == 1
    assert table["accuracy"].nunique() > 2
    alone = tune.tuned(arrays, settings, methods=["oracle-tempered"])
    pd.testing.assert_frame_equal(
        alone, table[table["method"] == "oracle-tempered"], check_dtype=False
    )


def test_the_parameters_are_what_the_committed_table_chose():
    table = pd.read_csv(ROOT / tune.TABLE, dtype={"value": str})
    parameters = params.read(ROOT / "params.yaml")
    grid = {key for key in tune.GRID if key[0] not in tune.DEFAULTS}
    grid |= {("cid", "cid.density.neighbour_width")}
    assert set(zip(table["method"], table["setting"], strict=True)) == grid
    for (_, setting), own in table.groupby(["method", "setting"], sort=False):
        used = own.loc[own["used"], "value"].tolist()
        if setting == "train.l2":  # chosen on the training sets of every study
            assert parameters["train"]["l2"] == "auto" and not used
            continue
        if setting.startswith(("weights", "train")):
            assert used == [str(tune.at(parameters, setting))]
        if setting in tune.ADAPTS:
            assert used == ["auto"]
        elif setting not in tune.DEFINED:
            assert used == own.loc[own["chosen"], "value"].tolist(), setting
