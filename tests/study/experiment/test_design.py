"""Biased training sets: what they promise, checked on a population made for the test."""

from __future__ import annotations

import numpy as np
import pytest

from study.experiment.design import biased_split, draw_sets, usable_identities

SETTINGS = {
    "kind": "correlation",
    "images_per_identity": 18,
    "test_per_class": 6,
    "unseen_share": 0.2,
}


@pytest.fixture(scope="module")
def population():
    """50 people with 24 images of either class, in shuffled order."""
    order = np.random.default_rng(0).permutation(50 * 48)
    return np.repeat(np.arange(50), 48)[order], np.tile([0, 1], 50 * 24)[order]


def counts(rows, identities, labels):
    table = np.zeros((50, 2), int)
    np.add.at(table, (identities[rows], labels[rows]), 1)
    return table


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9, 0.95, 1.0])
def test_counts_at_every_level(population, level):
    identities, labels = population
    majority = []
    for seed in range(20):
        split = biased_split(*population, level=level, seed=seed, **SETTINGS)
        train = counts(split.train, identities, labels)
        seen = train.sum(axis=1) > 0
        assert seen.sum() == 40
        assert (train[seen].sum(axis=1) == 18).all()
        majority += (train[seen].max(axis=1) / 18).tolist()
        assert (counts(split.test_seen, identities, labels) == 6 * seen[:, None]).all()
        assert (counts(split.test_unseen, identities, labels) == 24 * ~seen[:, None]).all()
        assert not set(split.train) & set(split.test_seen)
    # Rounding a person's share to whole images must be right on average.
    assert np.mean(majority) == pytest.approx((1 + level) / 2, abs=0.004)


def test_majorities_are_split_over_the_classes(population):
    identities, labels = population
    split = biased_split(*population, level=1.0, seed=3, **SETTINGS)
    ones = counts(split.train, identities, labels)[:, 1]
    assert 8 < (ones == 18).sum() < 32


def test_levels_of_a_seed_share_tests_people_and_most_images(population):
    low, high = (biased_split(*population, level=b, seed=7, **SETTINGS) for b in (0.5, 0.9))
    np.testing.assert_array_equal(low.test_seen, high.test_seen)
    np.testing.assert_array_equal(low.test_unseen, high.test_unseen)
    assert len(set(low.train) & set(high.train)) >= 0.75 * len(low.train)


def test_same_seed_same_split_and_another_seed_another(population):
    a, b, c = (biased_split(*population, level=0.8, seed=s, **SETTINGS) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.train, b.train)
    assert not np.array_equal(a.train, c.train)
    assert not np.array_equal(a.test_unseen, c.test_unseen)


def test_people_with_too_few_images_are_listed_and_left_out():
    identities = np.repeat(["ann", "bob", "eve"], [8, 8, 5])
    labels = np.r_[np.tile([0, 1], 8), 0, 0, 0, 0, 1]
    table = usable_identities(identities, labels, images_per_identity=2, test_per_class=1)
    assert table["usable"].tolist() == [True, True, False]
    assert table["reason"].tolist()[2] == "only 1 images of a class; 3 are needed"
    split = biased_split(
        identities, labels, kind="correlation", level=1, seed=0, images_per_identity=2,
        test_per_class=1, unseen_share=0,
    )  # fmt: skip
    assert max(split.train) < 16 and len(split.test_unseen) == 0


def test_draw_sets_gives_true_cell_sizes(population):
    identities, labels = population
    sets = draw_sets(*population, seeds=2, levels=[0.0, 0.5], **SETTINGS)
    assert list(sets) == ["level", "seed", "part", "row", "cell_size"]
    for level in (0.0, 0.5):
        own = sets[(sets["seed"] == 1) & (sets["level"] == level)]
        split = biased_split(*population, seed=1, level=level, **SETTINGS)
        parts = {"train": split.train, "seen": split.test_seen, "unseen": split.test_unseen}
        for part, rows in parts.items():
            np.testing.assert_array_equal(own.loc[own["part"] == part, "row"], rows)
        train = own[own["part"] == "train"]
        cell = counts(train["row"], identities, labels)
        expected = cell[identities[train["row"]], labels[train["row"]]]
        np.testing.assert_array_equal(train["cell_size"], expected)
    assert (sets.loc[sets["part"] != "train", "cell_size"] == 0).all()
    assert len(sets.groupby(["level", "seed"], sort=False)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "correlated"}, "kind 'correlated' is unknown"),
        ({"level": 1.2}, r"level 1.2 is outside \[0, 1\]"),
        ({"unseen_share": 1.0}, "unseen_share is 1.0"),
        ({"images_per_identity": 40}, "0 of 50 identities have enough images"),
    ],
)
def test_bad_settings_are_named(population, change, message):
    with pytest.raises(ValueError, match=message):
        biased_split(*population, **({"level": 0.5, "seed": 0} | SETTINGS | change))


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9, 1.0])
def test_a_long_tail_is_as_large_at_every_level_and_balanced(population, level):
    identities, labels = population
    split = biased_split(*population, level=level, seed=4, **SETTINGS | {"kind": "longtail"})
    table = counts(split.train, identities, labels)
    people = table[table.sum(axis=1) > 0]
    assert (people[:, 0] == people[:, 1]).all()
    assert len(split.train) == 40 * 18 and len(people) == 40
    sizes = np.sort(people.sum(axis=1))[::-1]
    place = (np.arange(40) + 0.5) / 40
    # Whole pairs of images: within a pair of the straight line, and never without one.
    assert abs(sizes - np.maximum(2, 18 * (1 + level * (1 - 2 * place)))).max() <= 2
    same = biased_split(*population, level=level, seed=4, **SETTINGS)
    np.testing.assert_array_equal(split.test_seen, same.test_seen)
    np.testing.assert_array_equal(split.test_unseen, same.test_unseen)


def test_the_order_of_the_tail_is_the_seeds_and_the_same_at_every_level(population):
    identities, labels = population

    def sizes(seed, level):
        split = biased_split(*population, level=level, seed=seed, **SETTINGS | {"kind": "longtail"})
        return counts(split.train, identities, labels).sum(axis=1)

    low, high, other = sizes(0, 0.5), sizes(0, 0.9), sizes(1, 0.9)
    assert np.corrcoef(low, high)[0, 1] > 0.95
    assert abs(np.corrcoef(high, other)[0, 1]) < 0.5


def test_fewer_people_are_the_first_by_name(population):
    identities, labels = population
    split = biased_split(*population, level=0.5, seed=0, **SETTINGS, people=10)
    assert set(identities[split.train]) | set(identities[split.test_unseen]) == set(range(10))
    with pytest.raises(
        ValueError, match=r"people is 51; it must be null \(all\) or a number from 2 to 50"
    ):
        biased_split(*population, level=0.5, seed=0, **SETTINGS, people=51)


def test_natural_trains_on_everything_but_the_tests():
    # Person 0 and 1 can be tested; 2 has one image of a class, 3 a single image.
    identities = np.repeat([0, 1, 2, 3, 4, 5], [8, 6, 4, 1, 6, 6])
    labels = np.concatenate([[0, 1] * 4, [0, 1] * 3, [0, 0, 0, 1], [1], [0, 1] * 3, [0, 1] * 3])
    settings = SETTINGS | {
        "kind": "natural",
        "level": 0.0,
        "test_per_class": 2,
        "unseen_share": 0.25,
    }
    split = biased_split(identities, labels, seed=0, **settings)
    everything = np.concatenate([split.train, split.test_seen, split.test_unseen])
    (unseen,) = np.unique(identities[split.test_unseen])
    left_out = np.setdiff1d(np.arange(len(labels)), everything)
    assert len(np.unique(everything)) == len(everything)
    assert (identities[left_out] == unseen).all()  # nothing else is lost
    assert not (identities[split.train] == unseen).any()
    assert {2, 3} <= set(identities[split.train])
    seen = identities[split.test_seen]
    assert len(np.unique(seen)) == 3
    for person in np.unique(seen):
        own = labels[split.test_seen][seen == person]
        assert (own == 0).sum() == (own == 1).sum() == 2
    with pytest.raises(ValueError, match="no level, so set bias.levels"):
        biased_split(identities, labels, seed=0, **settings | {"level": 0.5})
