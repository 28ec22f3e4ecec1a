"""A study in one call: the same as by hand, and what varies is what was asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cid.heads import StandardisedFeatures
from study.experiment import proxies, runs, variations
from study.experiment.arrays import Arrays
from study.experiment.design import draw_sets
from study.experiment.runs import train_sets, weigh_sets


def test_a_run_is_its_parts(arrays, settings, weights, bias):
    found = variations.run(arrays, settings)
    sets = draw_sets(arrays.identities, arrays.labels, seeds=2, levels=[0.0, 0.8], **bias)
    sets = weigh_sets(
        sets, arrays.proxy, arrays.labels, arrays.identities, settings["methods"], weights
    )
    expected, _ = train_sets(sets, arrays.features, arrays.labels, settings["methods"], {"l2": 0.1})
    pd.testing.assert_frame_equal(found, expected)
    assert set(found["level"]) == {0.0, 0.6667}  # one of six images is the least
    one = variations.run(arrays, settings, [0.8])
    strong = found[found["level"] == 0.6667].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, strong)


def test_varying_a_setting_changes_what_depends_on_it_and_nothing_else(arrays, settings, weights):
    found = variations.vary(arrays, settings, "weights.tau", [0.01, 0.2], 0.8)
    assert list(found)[:4] == ["value", "seed", "test", "row"]
    first, second = (found[found["value"] == v].reset_index(drop=True) for v in ("0.01", "0.2"))
    design = StandardisedFeatures(arrays.features, arrays.labels)
    same = variations.run(arrays, variations.changed(settings, "weights.tau", 0.2), [0.8], design)
    pd.testing.assert_series_equal(second["cid"], same["cid"])
    assert (first["cid"] != second["cid"]).any()
    for method in ("erm", "oracle"):
        np.testing.assert_array_equal(first[method], second[method])
    assert settings["weights"]["tau"] == weights["tau"]  # the settings themselves stay as they were
    everyone = variations.vary(arrays, settings, "bias.people", [None, 10], 0.8)
    assert everyone["value"].unique().tolist() == ["all", "10"]


def test_another_value_seed_or_level_costs_only_its_own_share(
    arrays, tmp_path, monkeypatch, settings, weights, bias
):
    done = Counter()
    weigh, fit = runs.training_weights, runs.fit_weighted_methods

    def count_weights(method, *given):
        done["weights"] += 1
        return weigh(method, *given)

    def count_heads(cell, stack):
        done["heads"] += len(stack) * len(cell.seeds)
        return fit(cell, stack)

    monkeypatch.setattr(runs, "training_weights", count_weights)
    monkeypatch.setattr(runs, "fit_weighted_methods", count_heads)

    def run(**changes):
        done.clear()
        found = variations.run(arrays, settings | {"seeds": 11} | changes, folder=tmp_path)
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
    assert run(bias=bias | {"levels": [0.0, 0.5, 0.8]})[1] == (11 * 4, 11 * 4)
    assert run(train=settings["train"] | {"l2": 0.2})[1] == (0, 2 * 11 * 4)
    # Of erm, cid, cid-knn and oracle, the kernel's width is nothing to the first and the last.
    assert run(weights=weights | {"tau": 0.2})[1] == (2 * 11 * 2, 2 * 11 * 2)
    other = replace(arrays, labels=1 - arrays.labels)
    done.clear()
    variations.run(other, settings, folder=tmp_path)
    assert done["heads"] == 2 * 2 * 4
    for file in [*tmp_path.glob("weights-*"), *tmp_path.glob("heads-*")]:
        file.unlink()  # which finished blocks of sets need no more
    again, costs = run(seeds=12)
    assert costs == (0, 0)
    pd.testing.assert_frame_equal(again, more, check_exact=True)


def test_an_unknown_setting_names_the_nearest(arrays, settings):
    with pytest.raises(
        ValueError, match=r"'weights.tua' is unknown \(did you mean 'weights.tau'\?\)"
    ):
        variations.vary(arrays, settings, "weights.tua", [1], 0.8)


def test_methods_without_identity_labels_do_the_same_without_them(arrays, settings, bias):
    sets = draw_sets(arrays.identities, arrays.labels, seeds=2, levels=[0.8], **bias)
    sides = variations.withheld(arrays, sets, ["cid", "cid-knn"], settings)
    for given, without in sides.values():
        assert given["weights"].tobytes() == without["weights"].tobytes()
        assert given["logits"].tobytes() == without["logits"].tobytes()
    with pytest.raises(ValueError, match="'oracle' needs identities"):
        variations.withheld(arrays, sets, ["oracle"], settings)


def test_images_without_a_label_change_nothing(arrays, settings):
    """A data set with unlabelled images gives what the labelled ones alone give."""
    extra = np.zeros(5, dtype=int)
    more = Arrays(
        np.r_[arrays.proxy, arrays.proxy[extra]], np.r_[arrays.features, arrays.features[extra]],
        np.r_[arrays.labels, np.full(5, np.nan)], np.r_[arrays.identities, arrays.identities[extra]],
    )  # fmt: skip
    found, plain = (variations.run(a, settings, [0.8]) for a in (more, arrays))
    assert found["row"].equals(plain["row"])
    scores = settings["methods"]
    np.testing.assert_allclose(found[scores], plain[scores], rtol=2e-3, atol=2e-3)
    assert proxies.leaks(more).equals(proxies.leaks(arrays))


def test_a_setting_is_changed_at_any_depth_and_in_a_copy():
    settings = {"seeds": 3, "train": {"l2": 0.1, "robust": {"alpha": 0.2}}}
    assert variations.changed(settings, "train.robust.alpha", 1) == {
        "seeds": 3, "train": {"l2": 0.1, "robust": {"alpha": 1}},
    }  # fmt: skip
    assert variations.changed(settings, "train.l2", 1)["train"]["l2"] == 1
    assert settings == {"seeds": 3, "train": {"l2": 0.1, "robust": {"alpha": 0.2}}}
    with pytest.raises(ValueError, match=r"'train.robust.alpa' is unknown \(did you mean"):
        variations.changed(settings, "train.robust.alpa", 1)
