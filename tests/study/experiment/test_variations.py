"""Cells in one call: the same as by hand, and what varies is what was asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cid.density import neighbour_width
from cid.heads import StandardisedFeatures
from study.experiment import runs, variations
from study.experiment.design import draw_sets
from study.experiment.runs import train_sets, weigh_sets

WEIGHTS = {
    "tau": 0.05, "power": 2.0, "temper": 2.0, "class_prior": "balanced", "include_self": True, "rarity": 1.0,
    "surprise": "auto", "neighbours": "auto", "posterior_tau": "auto",
    "keep_class_direction": False, "local_scaling": False, "clusters": "auto",
}  # fmt: skip
BIAS = {"kind": "correlation", "images_per_identity": 6, "test_per_class": 2, "unseen_share": 0.2,
        "people": None}  # fmt: skip
STUDY = {
    "seeds": 2,
    "methods": ["erm", "cid", "cid-knn", "oracle"],
    "bias": BIAS | {"levels": [0.0, 0.8]},
    "weights": WEIGHTS,
    "train": {"l2": 0.1, "through": "loss", "robust": {}},
}


def test_a_run_is_its_parts(arrays):
    found = variations.run(arrays, STUDY)
    sets = draw_sets(arrays.identities, arrays.labels, seeds=2, levels=[0.0, 0.8], **BIAS)
    sets = weigh_sets(
        sets, arrays.proxy, arrays.labels, arrays.identities, STUDY["methods"], WEIGHTS
    )
    expected, _ = train_sets(sets, arrays.features, arrays.labels, STUDY["methods"], 0.1)
    pd.testing.assert_frame_equal(found, expected)
    assert set(found["level"]) == {0.0, 0.6667}  # one of six images is the least
    one = variations.run(arrays, STUDY, [0.8])
    strong = found[found["level"] == 0.6667].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, strong)


def test_varying_a_setting_changes_what_depends_on_it_and_nothing_else(arrays):
    found = variations.vary(arrays, STUDY, "weights.tau", [0.01, 0.2], 0.8)
    assert list(found)[:4] == ["value", "seed", "test", "row"]
    first, second = (found[found["value"] == v].reset_index(drop=True) for v in ("0.01", "0.2"))
    design = StandardisedFeatures(arrays.features, arrays.labels)
    same = variations.run(arrays, variations.changed(STUDY, "weights.tau", 0.2), [0.8], design)
    pd.testing.assert_series_equal(second["cid"], same["cid"])
    assert (first["cid"] != second["cid"]).any()
    for method in ("erm", "oracle"):
        np.testing.assert_array_equal(first[method], second[method])
    assert STUDY["weights"]["tau"] == WEIGHTS["tau"]  # the settings themselves stay as they were
    everyone = variations.vary(arrays, STUDY, "bias.people", [None, 10], 0.8)
    assert everyone["value"].unique().tolist() == ["all", "10"]


def test_another_value_seed_or_level_costs_only_its_own_share(arrays, tmp_path, monkeypatch):
    done = Counter()
    weigh, fit = runs.training_weights, runs.fit_weighted

    def count_weights(method, *given):
        done["weights"] += 1
        return weigh(method, *given)

    def count_heads(cell, stack):
        done["heads"] += len(stack) * len(cell.seeds)
        return fit(cell, stack)

    monkeypatch.setattr(runs, "training_weights", count_weights)
    monkeypatch.setattr(runs, "fit_weighted", count_heads)

    def run(**changes):
        done.clear()
        found = variations.run(arrays, STUDY | {"seeds": 11} | changes, folder=tmp_path)
        return found, (done["weights"], done["heads"])

    first, costs = run()
    assert costs == (2 * 11 * 4, 2 * 11 * 4)  # levels x seeds x methods
    again, costs = run()
    assert costs == (0, 0)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    more, costs = run(seeds=12)
    assert costs == (2 * 4, 2 * 2 * 4)  # the block of the last two seeds is fitted again
    old = [table[table["seed"] < 10].reset_index(drop=True) for table in (more, first)]
    pd.testing.assert_frame_equal(*old, check_exact=True)
    assert run(bias=BIAS | {"levels": [0.0, 0.5, 0.8]})[1] == (11 * 4, 11 * 4)
    assert run(train=STUDY["train"] | {"l2": 0.2})[1] == (0, 2 * 11 * 4)
    # Of erm, cid, cid-knn and oracle, the kernel's width is nothing to the first and the last.
    assert run(weights=WEIGHTS | {"tau": 0.2})[1] == (2 * 11 * 2, 2 * 11 * 2)
    other = replace(arrays, labels=1 - arrays.labels)
    done.clear()
    variations.run(other, STUDY, folder=tmp_path)
    assert done["heads"] == 2 * 2 * 4
    for file in [*tmp_path.glob("weights-*"), *tmp_path.glob("heads-*")]:
        file.unlink()  # which finished blocks of sets need no more
    again, costs = run(seeds=12)
    assert costs == (0, 0)
    pd.testing.assert_frame_equal(again, more, check_exact=True)


def test_an_unknown_setting_names_the_nearest(arrays):
    with pytest.raises(
        ValueError, match=r"'weights.tua' is unknown \(did you mean 'weights.tau'\?\)"
    ):
        variations.vary(arrays, STUDY, "weights.tua", [1], 0.8)


def test_factors_multiply_to_the_truth_where_the_proxy_is_the_person(arrays):
    true = variations.degraded(arrays.proxy, arrays.identities, [])["true identity"]
    exact = variations.Arrays(true, arrays.features, arrays.labels, arrays.identities)
    table = variations.factor_values(exact, STUDY, 0.8)
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


def test_cids_kernel_is_as_wide_as_its_density(arrays):
    """Also where the width is chosen on the training set."""
    one = STUDY | {"seeds": 1}
    auto = variations.factor_values(arrays, variations.changed(one, "weights.tau", "auto"), 0.8)
    width = neighbour_width(arrays.proxy[auto["row"]])
    wide = variations.factor_values(arrays, variations.changed(one, "weights.tau", width), 0.8)
    pd.testing.assert_frame_equal(auto, wide)
    fixed = variations.factor_values(arrays, one, 0.8)
    assert (auto["surprise, CID's kernel"] != fixed["surprise, CID's kernel"]).any()


def test_factors_are_summed_up_by_cell_size(arrays, tmp_path, monkeypatch):
    values = variations.factor_values(arrays, STUDY, 0.8)
    table = variations.factors(arrays, STUDY, 0.8, folder=tmp_path)
    assert list(table) == ["cell_size", "factor", "mean", "low", "high", "truth", "n"]
    assert table.groupby("factor").size().to_dict() == dict.fromkeys(
        ["rarity", "surprise, CID's kernel", "surprise, kernel", "surprise, k-NN"],
        values["cell_size"].nunique(),
    )
    one = table[(table["factor"] == "surprise, k-NN") & (table["cell_size"] == 1)].iloc[0]
    own = values[values["cell_size"] == 1]
    assert one["n"] == len(own)
    assert one["mean"] == pytest.approx(own["surprise, k-NN"].mean())
    assert one["truth"] == pytest.approx(own["true surprise"].mean())
    assert (one["low"], one["high"]) == pytest.approx(
        np.quantile(own["surprise, k-NN"], [0.1, 0.9])
    )
    rarity = table[(table["factor"] == "rarity") & (table["cell_size"] == 1)].iloc[0]
    assert rarity["truth"] == pytest.approx(own["true rarity"].mean())

    rare = values.assign(cell_size=5)
    rare.loc[0, "cell_size"] = 1  # one image of many is no point of a figure
    many = pd.concat([rare] * 5, ignore_index=True).assign(row=0)
    many.loc[1:, "cell_size"] = 5
    monkeypatch.setattr(variations, "factor_values", lambda *a: many)
    assert set(variations.factors(arrays, STUDY, 0.8)["cell_size"]) == {5}
    kept = variations.factors(arrays, STUDY, 0.8, folder=tmp_path)
    pd.testing.assert_frame_equal(table, kept, check_exact=True, check_dtype=False)
    other = STUDY | {"weights": WEIGHTS | {"tau": 0.2}}
    assert set(variations.factors(arrays, other, 0.8, folder=tmp_path)["cell_size"]) == {5}


def test_posteriors_come_near_the_truth_and_beat_the_prior(arrays, tmp_path, monkeypatch):
    table = variations.posteriors(arrays, STUDY, [0.8], tmp_path)
    assert len(table) == 4  # seeds x estimators
    assert (table["loss"] < table["prior_loss"] - 0.09).all()
    # Five of a person's six images have other four of their label; one has none; by Laplace's rule.
    truth = -(5 * np.log((4 + 1) / (5 + 2)) + np.log(1 / (5 + 2))) / 6
    assert table["true_loss"].to_numpy() == pytest.approx(truth)
    assert (abs(table["loss"] - table["true_loss"]) < 0.03).all()
    calls, draw = [], variations.draw_sets
    monkeypatch.setattr(
        variations,
        "draw_sets",
        lambda *a, only, **k: calls.append(only) or draw(*a, only=only, **k),
    )
    more = variations.posteriors(arrays, STUDY, [0.5, 0.8], tmp_path)
    assert calls == [[0.5]]  # a level more costs its own share
    pd.testing.assert_frame_equal(more[more["level"] == 0.6667].reset_index(drop=True), table)


def test_the_proxy_leaks_less_of_the_label_without_the_class_direction(arrays):
    proxy = arrays.proxy + arrays.labels[:, None].astype(np.float32)
    table = variations.leaks(replace(arrays, proxy=proxy)).set_index("proxy")
    label, person = table.columns
    assert label == "same-label AUC within a person" and person == "verification AUC"
    assert table.loc["as it is", label] > table.loc["class direction removed", label] + 0.1
    assert table.loc["class direction removed", person] > 0.9


def test_methods_without_identity_labels_do_the_same_without_them(arrays):
    sets = draw_sets(arrays.identities, arrays.labels, seeds=2, levels=[0.8], **BIAS)
    sides = variations.withheld(arrays, sets, ["cid", "cid-knn"], STUDY)
    for given, without in sides.values():
        assert given["weights"].tobytes() == without["weights"].tobytes()
        assert given["logits"].tobytes() == without["logits"].tobytes()
    with pytest.raises(ValueError, match="'oracle' needs identities"):
        variations.withheld(arrays, sets, ["oracle"], STUDY)


def test_proxies_degrade_in_order(arrays):
    proxies = variations.degraded(arrays.proxy, arrays.identities, [0.5, 5.0])
    assert list(proxies) == ["true identity", "as it is", "noise 0.5", "noise 5", "random"]
    found = variations.vary_proxy(arrays, STUDY, proxies, 0.8)
    assert found["value"].unique().tolist() == list(proxies)
    remedies = variations.remedies(
        arrays.proxy, {"mirrored": arrays.proxy, "wider": 0 * arrays.proxy}
    )
    np.testing.assert_array_equal(remedies["mirror averaged"], 2 * arrays.proxy)
    np.testing.assert_array_equal(remedies["crops averaged"], arrays.proxy)
    np.testing.assert_array_equal(remedies["all views"], 2 * arrays.proxy)
    np.testing.assert_allclose(remedies["centred"].mean(axis=0), 0, atol=1e-6)


def test_same_label_auc_of_a_blind_and_of_a_leaking_proxy(arrays):
    rng = np.random.default_rng(1)
    blind = rng.normal(size=(320, 12))
    assert variations.same_label_auc(blind, arrays.labels, arrays.identities) == pytest.approx(
        0.5, abs=0.04
    )
    leaking = np.eye(2)[arrays.labels]
    assert variations.same_label_auc(leaking, arrays.labels, arrays.identities) == 1


def test_images_without_a_label_change_nothing(arrays):
    """A data set with unlabelled images gives what the labelled ones alone give."""
    extra = np.zeros(5, dtype=int)
    more = variations.Arrays(
        np.r_[arrays.proxy, arrays.proxy[extra]], np.r_[arrays.features, arrays.features[extra]],
        np.r_[arrays.labels, np.full(5, np.nan)], np.r_[arrays.identities, arrays.identities[extra]],
    )  # fmt: skip
    found, plain = (variations.run(a, STUDY, [0.8]) for a in (more, arrays))
    assert found["row"].equals(plain["row"])
    scores = STUDY["methods"]
    np.testing.assert_allclose(found[scores], plain[scores], rtol=2e-3, atol=2e-3)
    assert variations.leaks(more).equals(variations.leaks(arrays))


def test_controls_reach_from_the_true_identity_to_chance(arrays):
    features = np.c_[arrays.features, np.ones(320, np.float32)]  # one that is the same in all
    given = replace(arrays, features=features)
    other = np.random.default_rng(2).normal(size=(320, 3)).astype(np.float32)
    found = variations.controls(given, {"dlib": arrays.proxy, "untrained": other})
    assert list(found) == ["true identity", "dlib", "untrained", "own trunk", "random"]
    assert found["dlib"] is arrays.proxy and found["untrained"] is other
    ends = variations.degraded(arrays.proxy, arrays.identities, [])  # so that kept work is shared
    for name in ("true identity", "random"):
        np.testing.assert_array_equal(found[name], ends[name])
    centred = arrays.features - arrays.features.mean(axis=0)
    expected = centred / arrays.features.std(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["own trunk"][:, :-1], expected, atol=1e-5)
    assert not found["own trunk"][:, -1].any() and found["own trunk"].dtype == np.float32


def test_what_proxies_tell_stands_in_a_row_each(arrays, tmp_path, monkeypatch):
    true = variations.degraded(arrays.proxy, arrays.identities, [])
    proxies = {name: true[name] for name in ("true identity", "random")}
    table = variations.leaks_of(arrays, proxies, tmp_path)
    assert list(table)[:3] == ["proxy", "verification AUC", "same-label AUC within a person"]
    assert table["proxy"].tolist() == list(proxies)
    assert table["verification AUC"].to_numpy() == pytest.approx([1, 0.5], abs=0.02)
    by_hand = variations.leaks(replace(arrays, proxy=true["random"])).set_index("proxy")
    for column in table.columns[1:3]:
        assert table.loc[1, column] == by_hand.loc["as it is", column]
        cleaned = f"{column}, class direction removed"
        assert table.loc[1, cleaned] == by_hand.loc["class direction removed", column]
    monkeypatch.setattr(variations, "leaks", None)  # taken from where it was kept
    pd.testing.assert_frame_equal(variations.leaks_of(arrays, proxies, tmp_path), table)


def test_a_setting_is_changed_at_any_depth_and_in_a_copy():
    settings = {"seeds": 3, "train": {"l2": 0.1, "robust": {"alpha": 0.2}}}
    assert variations.changed(settings, "train.robust.alpha", 1) == {
        "seeds": 3, "train": {"l2": 0.1, "robust": {"alpha": 1}},
    }  # fmt: skip
    assert variations.changed(settings, "train.l2", 1)["train"]["l2"] == 1
    assert settings == {"seeds": 3, "train": {"l2": 0.1, "robust": {"alpha": 0.2}}}
    with pytest.raises(ValueError, match=r"'train.robust.alpa' is unknown \(did you mean"):
        variations.changed(settings, "train.robust.alpa", 1)
