"""Better and worse proxies, and what each tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study.experiment import proxies, variations


def test_the_proxy_leaks_less_of_the_label_without_the_class_direction(arrays):
    proxy = arrays.proxy + arrays.labels[:, None].astype(np.float32)
    table = proxies.leaks(replace(arrays, proxy=proxy)).set_index("proxy")
    label, person, right = table.columns
    assert label == "same-label AUC within a person" and person == "verification AUC"
    assert right == "right pairs" and table[right].between(0, 1).all()
    assert table.loc["as it is", label] > table.loc["class direction removed", label] + 0.1
    assert table.loc["class direction removed", person] > 0.9


def test_proxies_degrade_in_order(arrays, settings):
    versions = proxies.degraded(arrays.proxy, arrays.identities, [0.5, 5.0])
    assert list(versions) == ["true identity", "as it is", "noise 0.5", "noise 5", "random"]
    found = variations.vary_proxy(arrays, settings, versions, 0.8)
    assert found["value"].unique().tolist() == list(versions)
    averaged = proxies.remedies(arrays.proxy, {"mirrored": arrays.proxy, "wider": 0 * arrays.proxy})
    np.testing.assert_array_equal(averaged["mirror averaged"], 2 * arrays.proxy)
    np.testing.assert_array_equal(averaged["crops averaged"], arrays.proxy)
    np.testing.assert_array_equal(averaged["all views"], 2 * arrays.proxy)
    np.testing.assert_allclose(averaged["centred"].mean(axis=0), 0, atol=1e-6)


def test_same_label_auc_of_a_blind_and_of_a_leaking_proxy(arrays):
    rng = np.random.default_rng(1)
    blind = rng.normal(size=(320, 12))
    assert proxies.same_label_auc(blind, arrays.labels, arrays.identities) == pytest.approx(
        0.5, abs=0.04
    )
    leaking = np.eye(2)[arrays.labels]
    assert proxies.same_label_auc(leaking, arrays.labels, arrays.identities) == 1


def test_controls_reach_from_the_true_identity_to_chance(arrays):
    features = np.c_[arrays.features, np.ones(320, np.float32)]  # one that is the same in all
    given = replace(arrays, features=features)
    other = np.random.default_rng(2).normal(size=(320, 3)).astype(np.float32)
    found = proxies.controls(given, {"dlib": arrays.proxy, "untrained": other})
    assert list(found) == ["true identity", "dlib", "untrained", "own trunk", "random"]
    assert found["dlib"] is arrays.proxy and found["untrained"] is other
    ends = proxies.degraded(arrays.proxy, arrays.identities, [])  # so that kept work is shared
    for name in ("true identity", "random"):
        np.testing.assert_array_equal(found[name], ends[name])
    centred = arrays.features - arrays.features.mean(axis=0)
    expected = centred / arrays.features.std(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["own trunk"][:, :-1], expected, atol=1e-5)
    assert not found["own trunk"][:, -1].any() and found["own trunk"].dtype == np.float32


def test_what_proxies_tell_stands_in_a_row_each(arrays, tmp_path, monkeypatch):
    true = proxies.degraded(arrays.proxy, arrays.identities, [])
    versions = {name: true[name] for name in ("true identity", "random")}
    table = proxies.leaks_of(arrays, versions, tmp_path)
    assert list(table)[:3] == ["proxy", "verification AUC", "same-label AUC within a person"]
    assert table["proxy"].tolist() == list(versions)
    assert table["verification AUC"].to_numpy() == pytest.approx([1, 0.5], abs=0.02)
    by_hand = proxies.leaks(replace(arrays, proxy=true["random"])).set_index("proxy")
    for column in table.columns[1:4]:
        assert table.loc[1, column] == by_hand.loc["as it is", column]
        cleaned = f"{column}, class direction removed"
        assert table.loc[1, cleaned] == by_hand.loc["class direction removed", column]
    monkeypatch.setattr(proxies, "leaks", None)  # taken from where it was kept
    pd.testing.assert_frame_equal(proxies.leaks_of(arrays, versions, tmp_path), table)
