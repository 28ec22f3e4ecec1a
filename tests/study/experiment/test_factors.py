"""The factors of the weights, against the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cid.density import neighbour_width
from study.experiment import factors, proxies, variations
from study.experiment.arrays import Arrays


def test_factors_multiply_to_the_truth_where_the_proxy_is_the_person(arrays, settings):
    true = proxies.degraded(arrays.proxy, arrays.identities, [])["true identity"]
    exact = Arrays(true, arrays.features, arrays.labels, arrays.identities)
    table = factors.factor_values(exact, settings, 0.8)
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


def test_cids_kernel_is_as_wide_as_its_density(arrays, settings):
    """Also where the width is chosen on the training set."""
    one = settings | {"seeds": 1}
    auto = factors.factor_values(arrays, variations.changed(one, "weights.tau", "auto"), 0.8)
    width = neighbour_width(arrays.proxy[auto["row"]])
    wide = factors.factor_values(arrays, variations.changed(one, "weights.tau", width), 0.8)
    pd.testing.assert_frame_equal(auto, wide)
    fixed = factors.factor_values(arrays, one, 0.8)
    assert (auto["surprise, CID's kernel"] != fixed["surprise, CID's kernel"]).any()


def test_factors_are_summed_up_by_cell_size(arrays, tmp_path, monkeypatch, settings, weights):
    values = factors.factor_values(arrays, settings, 0.8)
    table = factors.factors(arrays, settings, 0.8, folder=tmp_path)
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
    monkeypatch.setattr(factors, "factor_values", lambda *a: many)
    assert set(factors.factors(arrays, settings, 0.8)["cell_size"]) == {5}
    kept = factors.factors(arrays, settings, 0.8, folder=tmp_path)
    pd.testing.assert_frame_equal(table, kept, check_exact=True, check_dtype=False)
    other = settings | {"weights": weights | {"tau": 0.2}}
    assert set(factors.factors(arrays, other, 0.8, folder=tmp_path)["cell_size"]) == {5}


def test_posteriors_come_near_the_truth_and_beat_the_prior(arrays, tmp_path, monkeypatch, settings):
    table = factors.posteriors(arrays, settings, [0.8], tmp_path)
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
    more = factors.posteriors(arrays, settings, [0.5, 0.8], tmp_path)
    assert calls == [[0.5]]  # a level more costs its own share
    pd.testing.assert_frame_equal(more[more["level"] == 0.6667].reset_index(drop=True), table)


def test_the_library_agrees_with_the_method_in_numpy(arrays, settings):
    table = factors.agreement(arrays, settings, 0.8)
    assert table["weights"].tolist() == ["CID", "label surprise"]
    assert table["agree_to"].tolist() == ["1e-9", "1e-9"]
    assert (table["images"] > 50).all()
