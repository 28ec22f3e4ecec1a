"""Images of people whom nobody knows: they train where data are taken as found, and measure nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study.experiment import audited, factors, proxies, runs
from study.experiment.arrays import Arrays
from study.experiment.design import HELD_OUT, draw_sets, is_known, usable_identities
from study.results.metrics import weights_summary
from study.results.sizes import set_sizes, sizes_sentence

NATURAL = {
    "kind": "natural",
    "levels": [0.0],
    "images_per_identity": 8,
    "test_per_class": 2,
    "unseen_share": 0.2,
}


@pytest.fixture
def some(arrays) -> Arrays:
    """20 people of 16 images, of which every third is of nobody known, and one without a label."""
    identities = np.where(np.arange(320) % 3 == 0, -1, arrays.identities)
    labels = arrays.labels.astype(float)
    labels[3] = np.nan
    return replace(arrays, identities=identities, labels=labels)


def test_they_train_and_test_nothing(some):
    sets = draw_sets(some.identities, some.labels, seeds=3, **NATURAL)
    unknown = some.identities == -1
    for _, own in sets.groupby("seed"):
        of_unknown = own[unknown[own["row"]]]
        assert set(of_unknown["row"]) == set(np.flatnonzero(unknown)) - {3}
        assert (of_unknown["part"] == "train").all() and (of_unknown["cell_size"] == 0).all()
        assert of_unknown["minority"].isna().all()
        known = own[(own["part"] == "train") & ~unknown[own["row"]]]
        person = some.identities[known["row"]]
        label = some.labels[known["row"]]
        size = pd.Series(known["row"].to_numpy()).groupby([person, label]).transform("size")
        np.testing.assert_array_equal(known["cell_size"], size)
    built = draw_sets(some.identities, some.labels, seeds=2, **NATURAL | {"kind": "correlation", "images_per_identity": 4})  # fmt: skip
    assert not unknown[built["row"]].any()


def test_the_known_are_drawn_as_if_they_were_alone(some):
    known = some.identities != -1
    rows = np.flatnonzero(known)
    all_ = draw_sets(some.identities, some.labels, seeds=2, **NATURAL)
    alone = draw_sets(some.identities[known], some.labels[known], seeds=2, **NATURAL)
    alone["row"] = rows[alone["row"]]
    columns = ["level", "seed", "part", "row", "cell_size", "minority"]
    expected = all_[known[all_["row"]]].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone[columns], expected[columns])


def test_names_and_numbers_say_the_same(some):
    names = pd.Series([f"p{k:02d}" if k >= 0 else None for k in some.identities], dtype=object)
    assert (is_known(names) == is_known(some.identities)).all()
    pd.testing.assert_frame_equal(
        draw_sets(names, some.labels, seeds=2, **NATURAL),
        draw_sets(some.identities, some.labels, seeds=2, **NATURAL),
    )
    table = usable_identities(names, some.labels, 8, 2, "natural", [0.0])
    assert (
        len(table) == 20
        and table["class_0"].sum() == (some.labels[some.identities >= 0] == 0).sum()
    )


def test_where_nobody_is_known_a_share_of_the_images_is_held_out(some):
    labels = some.labels
    sets = draw_sets(np.full(320, -1), labels, seeds=3, **NATURAL)
    assert list(sets["part"].unique()) == ["train", HELD_OUT]
    assert (sets["cell_size"] == 0).all() and sets["minority"].isna().all()
    for _, own in sets.groupby("seed"):
        assert sorted(own["row"]) == [row for row in range(320) if row != 3]  # 3 has no label
        assert (own["part"] == HELD_OUT).sum() == 64
    first, second, _ = (
        set(own["row"]) for _, own in sets[sets["part"] == HELD_OUT].groupby("seed")
    )
    assert first != second
    told = sizes_sentence(set_sizes(sets, np.full(320, -1)))
    assert told == (
        "A training set has 255 images, and it is tested on 64 others, drawn at random. Nobody knows whom they show."
    )


def test_without_people_no_bias_is_built_and_no_class_may_be_missing(some):
    nobody = np.full(320, -1)
    with pytest.raises(
        ValueError, match="bias.kind is longtail, which builds .*; write kind: natural"
    ):
        draw_sets(nobody, some.labels, seeds=2, **NATURAL | {"kind": "longtail"})
    with pytest.raises(ValueError, match="a training set would hold one class; label more images"):
        draw_sets(nobody, np.zeros(320), seeds=2, **NATURAL)


def test_methods_that_use_identities_are_refused(some, weights):
    sets = draw_sets(some.identities, some.labels, seeds=2, **NATURAL)
    given = (some.proxy, some.labels, some.identities)
    with pytest.raises(ValueError) as error:
        runs.weigh_sets(sets, *given, ["erm", "oracle", "cid", "group-dro"], weights)
    assert str(error.value).startswith(
        "oracle uses the true identity of every training image, and "
    )
    assert str(error.value).endswith(
        "take oracle, group-dro out of all lists of methods in params.yaml"
    )
    weighed = runs.weigh_sets(sets, *given, ["erm", "cid"], weights)
    train = weighed[weighed["part"] == "train"]
    assert train["cid"].notna().all()
    summary = weights_summary(weighed, ["erm", "cid"])
    assert (summary["weights"]["cell_size"] > 0).all()
    sizes = set_sizes(sets, some.identities)
    assert sizes["train"]["people"] == [16, 16] and sizes["train"]["unknown"] == [106, 106]
    assert "unknown" not in sizes["seen"]
    assert "(of 106 of these images nobody knows whom" in sizes_sentence(sizes)


def test_only_the_known_measure(some, settings):
    some = Arrays(some.proxy[:160], some.features[:160], some.labels[:160], some.identities[:160])
    known = some.identities != -1
    alone = replace(
        some,
        proxy=some.proxy[known],
        features=some.features[known],
        labels=some.labels[known],
        identities=some.identities[known],
    )
    pd.testing.assert_frame_equal(proxies.leaks(some), proxies.leaks(alone))
    true = proxies.degraded(some.proxy, some.identities, [])["true identity"]
    cosines = true @ true.T / np.outer(*[np.linalg.norm(true, axis=1)] * 2)
    unknown = np.flatnonzero(~known)
    others = cosines[unknown]
    others[np.arange(len(unknown)), unknown] = 0
    assert others.max() < 0.99 < cosines[1, 2]  # a direction of its own; 1 and 2 are one person
    train = np.arange(0, 120)
    one = {"train": train, "test": pd.DataFrame({"row": np.flatnonzero(known)[-20:]})}
    without = one | {"train": train[known[train]]}
    measured = [
        audited._verification({"own": some.proxy}, some.identities + 1, given)
        for given in (one, without)
    ]
    assert measured[0] == measured[1]
    natural = settings | {"bias": NATURAL, "seeds": 1}
    table = factors.factor_values(some, natural, 0.0)
    assert known[table["row"]].all() and np.isfinite(table.to_numpy()).all()
    columns = ["rarity", "surprise, k-NN", "true rarity", "true surprise"]
    np.testing.assert_allclose(table[columns].mean(), 1, rtol=1e-5)
    losses = factors.posteriors(some, natural, [0.0])
    assert np.isfinite(losses["true_loss"]).all()
