"""Cells in one call: the same as by hand, and what varies is what was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_methods import SETTINGS as WEIGHTS

from cid import heads, methods
from cid.heads import Design
from study.experiment import variations
from study.experiment.design import draw_sets
from study.experiment.runs import train_sets, weigh_sets

BIAS = {"kind": "correlation", "images_per_identity": 6, "test_per_class": 2, "unseen_share": 0.2}
STUDY = {
    "seeds": 2,
    "methods": ["erm", "cid", "cid-knn", "oracle"],
    "bias": BIAS | {"levels": [0.0, 0.8]},
    "weights": WEIGHTS,
    "train": {"l2": 0.1, "through": "loss", "robust": {}},
}


@pytest.fixture(scope="module")
def arrays():
    """20 people of 16 images; a proxy that knows the person, features that know person and label."""
    rng = np.random.default_rng(0)
    people, labels = np.repeat(np.arange(20), 16), np.tile([0, 1], 160)
    proxy = rng.normal(size=(20, 12))[people] + 0.2 * rng.normal(size=(320, 12))
    features = np.hstack([proxy, labels[:, None] + rng.normal(size=(320, 4))])
    return variations.Arrays(*(a.astype(np.float32) for a in (proxy, features)), labels, people)


def test_a_run_is_its_parts(arrays):
    found = variations.run(arrays, STUDY)
    sets = draw_sets(arrays.identities, arrays.labels, seeds=2, level=0.8, **BIAS)
    sets = weigh_sets(
        sets, arrays.proxy, arrays.labels, arrays.identities, STUDY["methods"], WEIGHTS
    )
    expected, _ = train_sets(sets, arrays.features, arrays.labels, STUDY["methods"], 0.1)
    strong = found[found["level"] == 0.8].drop(columns="level").reset_index(drop=True)
    pd.testing.assert_frame_equal(strong, expected)
    assert set(found["level"]) == {0.0, 0.8}


def test_varying_a_setting_changes_what_depends_on_it_and_nothing_else(arrays):
    found = variations.vary(arrays, STUDY, "weights.tau", [0.01, 0.2], 0.8)
    first, second = (found[found["level"] == k].reset_index(drop=True) for k in (0, 1))
    design = Design(arrays.features, arrays.labels)
    same = variations.run(arrays, variations.changed(STUDY, "weights.tau", 0.2), [0.8], design)
    pd.testing.assert_series_equal(second["cid"], same["cid"])
    assert (first["cid"] != second["cid"]).any()
    for method in ("erm", "oracle"):
        np.testing.assert_allclose(first[method], second[method], atol=1e-2)
    assert STUDY["weights"]["tau"] == WEIGHTS["tau"]  # the settings themselves stay as they were


def test_another_seed_level_or_method_costs_only_its_own_share(arrays, tmp_path, monkeypatch):
    done = []
    for module, name in ((methods, "training_weights"), (heads, "_fit_cell")):
        work = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, work=work, name=name: done.append(name) or work(*a)
        )

    def run(**changes):
        done.clear()
        found = variations.run(arrays, STUDY | {"seeds": 11} | changes, folder=tmp_path)
        return found, (done.count("training_weights"), done.count("_fit_cell"))

    first, costs = run()
    assert costs == (2 * 11 * 4, 2 * 2)  # levels x seeds x methods; levels x blocks of ten seeds
    again, costs = run()
    assert costs == (0, 0)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    more, costs = run(seeds=12)
    assert costs == (2 * 4, 2)
    old = more[more["seed"] < 10].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        old, first[first["seed"] < 10].reset_index(drop=True), check_exact=True
    )
    assert run(bias=BIAS | {"levels": [0.0, 0.5, 0.8]})[1] == (11 * 4, 2)
    assert run(train=STUDY["train"] | {"l2": 0.2})[1] == (0, 4)
    assert run(weights=WEIGHTS | {"tau": 0.2})[1] == (2 * 11 * 4, 4)
    damaged = sorted(tmp_path.glob("heads-*"))
    for file in damaged:
        file.write_bytes(b"")
    again, costs = run()
    assert costs == (0, 4)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    other = replace(arrays, labels=1 - arrays.labels)
    variations.run(other, STUDY, folder=tmp_path)
    assert done.count("_fit_cell") == 4 + 2


def test_an_unknown_setting_names_the_nearest(arrays):
    with pytest.raises(
        ValueError, match=r"'weights.tua' is unknown \(did you mean 'weights.tau'\?\)"
    ):
        variations.vary(arrays, STUDY, "weights.tua", [1], 0.8)


def test_factors_multiply_to_the_truth_where_the_proxy_is_the_person(arrays):
    true = variations.degraded(arrays.proxy, arrays.identities, [])["true identity"]
    exact = variations.Arrays(true, arrays.features, arrays.labels, arrays.identities)
    table = variations.factors(exact, STUDY, 0.8)
    assert (table["person_size"] == 6).all()
    columns = [
        "rarity",
        "surprise, CID's kernel",
        "surprise, kernel",
        "surprise, k-NN",
        "true surprise",
    ]
    assert table.groupby("seed")[columns].mean().to_numpy() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(table["rarity"], 1, rtol=0.05)  # all people have as many images
    by_cell = table.groupby("cell_size")[columns].mean()
    assert by_cell["surprise, k-NN"].is_monotonic_decreasing
    assert by_cell["surprise, k-NN"].iloc[0] > 2 * by_cell["surprise, k-NN"].iloc[-1]
    assert np.ptp(by_cell["rarity"]) < 0.05


def test_posteriors_come_near_the_truth_and_beat_the_prior(arrays):
    table = variations.posteriors(arrays, STUDY, [0.8])
    assert len(table) == 4  # seeds x estimators
    assert (table["loss"] < table["prior_loss"] - 0.1).all()
    assert (table["true_loss"] < table["prior_loss"]).all()


def test_proxies_degrade_in_order(arrays):
    proxies = variations.degraded(arrays.proxy, arrays.identities, [0.5, 5.0])
    assert list(proxies) == ["true identity", "as it is", "noise 0.5", "noise 5", "random"]
    found = variations.vary_proxy(arrays, STUDY, proxies, 0.8)
    assert set(found["level"]) == set(range(5))


def test_same_label_auc_of_a_blind_and_of_a_leaking_proxy(arrays):
    rng = np.random.default_rng(1)
    blind = rng.normal(size=(320, 12))
    assert variations.same_label_auc(blind, arrays.labels, arrays.identities) == pytest.approx(
        0.5, abs=0.04
    )
    leaking = np.eye(2)[arrays.labels]
    assert variations.same_label_auc(leaking, arrays.labels, arrays.identities) == 1
