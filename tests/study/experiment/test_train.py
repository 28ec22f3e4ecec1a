"""The model of params.yaml, trained."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cid.models import read_options
from cid.training import fit
from study.experiment import train
from study.experiment.network_runs import train_networks
from study.experiment.runs import train_sets
from study.experiment.train import train_model

CPU = {"device": "cpu"}

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_named_model_is_trained(tmp_path, features, sets):
    settings = {"l2": 0.1, "through": "loss", "robust": {}, "network": {}}
    features, labels = features
    methods = ["erm", "cid"]
    arguments = (sets, features, None, labels, methods)
    found, about = train_model(*arguments, settings | {"model": "linear"})
    expected, _ = train_sets(sets, features, labels, methods, {"l2": 0.1})
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
        train, "train_networks", lambda sets, inputs, *a, **k: given.append(inputs) or (None, INFO)
    )
    section = {"model": "cnn", "network": {}, "robust": {}, "through": "loss", "l2": 0.1}
    _, about = train_model(sets, None, crops, labels, ["erm"], section)
    assert given[0] is crops and about.startswith("1 networks (Small CNN), trained from scratch; ")
    _, about = train_model(
        sets, None, crops, labels, ["erm"], section | {"network": {"held_out": 0.1}}
    )
    assert about == (
        "1 networks (Small CNN), trained from scratch; at the end they had 50.0% (ERM) to 50.0% (ERM) "
        "of their training images right, in the mean of a method. Of 20 epochs one between 9 and 9 "
        "stayed (median 9), by the class-balanced loss on 10% of the training images, which trained nothing."
    )


INFO = pd.DataFrame(
    {
        "initialised": ["scratch"],
        "method": ["erm"],
        "accuracy": [0.5],
        "epoch": [9],
        "epochs": [20],
        "weight_decay": [0.05],
    }
)


def test_the_sentence_says_how_the_penalty_was_chosen():
    chosen = pd.DataFrame(
        {"level": [0.5, 0.9], "method": "erm", "l2": [0.1, 0.03], "loss": 0.2, "chosen": True,
         "sets": 3, "images": 1600}
    )  # fmt: skip
    (said,) = train.sentences_of_penalties(chosen)
    assert "L2 penalty, 0.03 to 0.1, is the same for every method of a bias level" in said
    assert "up to 3 training sets" in said and "by class labels alone" in said
    (own,) = train.sentences_of_penalties(chosen.assign(method=["erm", "cid"]))
    assert own.startswith("Each method's L2 penalty, 0.03 to 0.1,")
    assert train.sentences_of_penalties(chosen.assign(loss=np.nan)) == []
