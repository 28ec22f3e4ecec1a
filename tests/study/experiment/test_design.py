"""Biased training sets: what they promise, checked on a population made for the test."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from study.experiment.design import (
    DoesNotFit,
    advice,
    check_draws,
    draw_sets,
    fitting_ablations,
    unequal_classes,
    usable_identities,
)
from study.experiment.levels import minority_images

SETTINGS = {
    "kind": "correlation",
    "levels": [0.0, 0.5, 0.8, 0.9],
    "images_per_identity": 20,
    "test_per_class": 4,
    "unseen_share": 0.2,
}


@pytest.fixture(scope="module")
def population():
    """50 people with 24 images of either class, in shuffled order."""
    order = np.random.default_rng(0).permutation(50 * 48)
    return np.repeat(np.arange(50), 48)[order], np.tile([0, 1], 50 * 24)[order]


def counts(rows, identities, labels):
    """Images of every person and class, shape (people, 2)."""
    table = np.zeros((identities.max() + 1, 2), int)
    np.add.at(table, (identities[rows], labels[rows].astype(int)), 1)
    return table


def drawn(population, seed=0, level=0.9, **changes):
    """The rows of one set by part, and the set."""
    settings = SETTINGS | changes
    settings.setdefault("only", [level])
    sets = draw_sets(*population, seeds=seed + 1, **settings)
    own = sets[sets["seed"] == seed]
    return {
        part: own.loc[own["part"] == part, "row"].to_numpy() for part in ("train", "seen", "unseen")
    }, own


@pytest.mark.parametrize("level", SETTINGS["levels"])
def test_everybody_has_the_same_numbers_at_every_level(population, level):
    few = minority_images(level, 20)
    for seed in range(3):
        parts, own = drawn(population, seed, level)
        train = counts(parts["train"], *population)
        seen = train.sum(axis=1) > 0
        assert seen.sum() == 40
        assert (train[seen].min(axis=1) == few).all() and (train[seen].sum(axis=1) == 20).all()
        # Either class is the majority of as many people, so the classes are of one size.
        assert train[:, 0].sum() == train[:, 1].sum()
        if level:
            assert (train[seen][:, 1] > train[seen][:, 0]).sum() == 20
        assert (counts(parts["seen"], *population) == 4 * seen[:, None]).all()
        assert (counts(parts["unseen"], *population) == 24 * ~seen[:, None]).all()
        assert not set(parts["train"]) & set(parts["seen"])
        assert own["level"].unique().tolist() == [level]


def test_minority_cells_are_the_class_that_is_rare_for_the_person(population):
    identities, labels = population
    parts, own = drawn(population)
    train = counts(parts["train"], *population)
    for part in ("train", "seen"):
        rows = own[own["part"] == part]
        rare = train[identities[rows["row"]]].argmin(axis=1)
        np.testing.assert_array_equal(rows["minority"], labels[rows["row"]] == rare)
    assert own.loc[own["part"] == "unseen", "minority"].isna().all()
    # At level 0 no class is rarer; the cells are those of the other levels, so that the cost shows there.
    none = drawn(population, level=0.0)[1]
    tests = [sets[sets["part"] == "seen"].set_index("row")["minority"] for sets in (none, own)]
    assert tests[0].equals(tests[1])


def test_majorities_are_drawn_and_balanced_as_far_as_people_allow():
    # Ten people could only have class 0, two only class 1, four either: 5 of 0 and 5 of 1 at most 6.
    able = [(40, 6)] * 10 + [(6, 40)] * 2 + [(40, 40)] * 4
    identities = np.repeat(np.arange(16), [a + b for a, b in able])
    labels = np.concatenate([np.r_[np.zeros(a, int), np.ones(b, int)] for a, b in able])
    changes = {"levels": [0.9], "unseen_share": 0.0}
    seen, majority = [], []
    for seed in range(8):
        train = counts(drawn((identities, labels), seed, **changes)[0]["train"], identities, labels)
        own = np.flatnonzero(train.sum(axis=1))
        assert len(own) == 12 and (train[own, 1] == 19).sum() == 6
        assert {10, 11, 12, 13, 14, 15} <= set(own)  # whoever can have the scarce majority has it
        seen.append(tuple(own))
    assert len(set(seen)) > 1  # who is left out is drawn
    for seed in range(8):
        train = counts(drawn((identities[identities >= 12] - 12, labels[identities >= 12]), seed, **changes)[0]["train"],
                       identities[identities >= 12] - 12, labels[identities >= 12])  # fmt: skip
        majority.append(tuple(train.argmax(axis=1)))
        assert sum(majority[-1]) == 2
    assert len(set(majority)) > 1


def test_levels_of_a_seed_share_tests_people_and_most_images(population):
    low, high = (drawn(population, 3, level)[0] for level in (0.5, 0.9))
    np.testing.assert_array_equal(low["seen"], high["seen"])
    np.testing.assert_array_equal(low["unseen"], high["unseen"])
    assert len(set(low["train"]) & set(high["train"])) >= 0.75 * len(low["train"])


def test_a_level_alone_is_the_same_as_among_the_others(population):
    every = draw_sets(*population, seeds=2, **SETTINGS)
    alone = draw_sets(*population, seeds=2, only=[0.8], **SETTINGS)
    assert every[every["level"] == 0.8].reset_index(drop=True).equals(alone)
    assert every["level"].drop_duplicates().tolist() == SETTINGS["levels"]
    ends = SETTINGS | {"levels": [min(SETTINGS["levels"]), max(SETTINGS["levels"])]}
    assert draw_sets(*population, seeds=2, only=[0.8], **ends).equals(alone)


def test_same_seed_same_set_and_another_seed_another(population):
    first, again, other = (drawn(population, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["train"], again["train"])
    assert not np.array_equal(first["train"], other["train"])
    assert not np.array_equal(first["unseen"], other["unseen"])


def test_usable_is_who_can_have_one_class_as_majority():
    identities = np.repeat(["ann", "bob", "eve", "joe"], [12, 8, 12, 9])
    labels = np.r_[[0] * 10, [1] * 2, [0, 1] * 4, [1] * 10, [0] * 2, [0] * 9].astype(float)
    table = usable_identities(identities, labels, 8, 1, levels=[0.75])
    assert table["usable"].tolist() == [True, False, True, False]
    assert table["majority_0"].tolist() == [True, False, False, False]
    assert table["majority_1"].tolist() == [False, False, True, False]
    assert (
        table["reason"][1]
        == "4 images of one class, 4 of the other; 8 of one and 2 of the other are needed"
    )
    # Level 0 takes half of either class.
    assert not usable_identities(identities, labels, 8, 1, levels=[0.0, 0.75])["usable"].any()
    # An image without a label takes no part.
    labels[0] = labels[1] = labels[2] = np.nan
    assert usable_identities(identities, labels, 8, 1, levels=[0.75])["usable"].tolist()[0] is False


def test_an_image_without_a_label_is_in_no_set(population):
    identities, labels = population
    missing = labels.astype(float)
    missing[:100] = np.nan
    changes = {"images_per_identity": 10, "levels": [0.0, 0.8]}
    for kind in ("correlation", "longtail"):
        sets = draw_sets(identities, missing, seeds=2, **SETTINGS | changes | {"kind": kind})
        assert sets["row"].min() >= 100
    natural = {"kind": "natural", "levels": [0.0]}
    assert draw_sets(identities, missing, seeds=2, **SETTINGS | natural)["row"].min() >= 100


def test_draw_sets_gives_true_cell_sizes(population):
    sets = draw_sets(*population, seeds=2, **SETTINGS)
    assert list(sets) == ["level", "seed", "part", "row", "cell_size", "minority"]
    for _, own in sets.groupby(["level", "seed"]):
        train = own[own["part"] == "train"]
        cell = counts(train["row"], *population)
        expected = cell[population[0][train["row"]], population[1][train["row"]]]
        np.testing.assert_array_equal(train["cell_size"], expected)
    assert (sets.loc[sets["part"] != "train", "cell_size"] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "correlated"}, "kind 'correlated' is unknown"),
        ({"levels": [1.2]}, r"level 1.2 is outside \[0, 1\]"),
        ({"unseen_share": 1.0}, "unseen_share is 1.0"),
        ({"images_per_identity": 19}, "is 19; under correlation it must be even.*write 18 or 20"),
        ({"levels": [0.9, 0.95]}, "0.9 and 0.95 both leave a person 1 of 20 images"),
        (
            {"images_per_identity": 40},
            "0 of 50 identities.*with images_per_identity 20 and test_per",
        ),
        ({"people": 51}, r"people is 51; it must be null \(all\) or a number from 2 to 50"),
        ({"cohorts": True}, "bias.people must say how many people one holds"),
        ({"cohorts": True, "people": 20}, "60, and 50 are usable; set seeds to 2 at most"),
        ({"cohorts": True, "people": 20}, "or bias.people to 16, or bias.cohorts to repeated"),
        ({"cohorts": "repeated"}, "bias.cohorts is repeated, so bias.people must say how many"),
        ({"kind": "natural"}, "no level, so set bias.levels"),
    ],
)
def test_bad_settings_are_named(population, change, message):
    with pytest.raises(ValueError, match=message):
        draw_sets(*population, seeds=3, **SETTINGS | change)


def people_of(*counts):
    """Identities and labels of people with so many images of class 0 and of class 1 each."""
    identities = np.repeat(np.arange(len(counts)), [a + b for a, b in counts])
    return identities, np.concatenate([np.repeat([0, 1], pair) for pair in counts])


@pytest.mark.parametrize(
    "people, changes, said",
    [
        # What was tested, each by a case of its own.
        ([(40, 0)] * 15 + [(0, 40)] * 15, {}, "none of the 30 people has images of both classes"),
        ([(40, 40)] + [(0, 40)] * 15, {}, "1 of 16 .* one of the 16 people has images of both"),
        ([(40, 40)], {}, "1 of 1 .* the data show one person, and bias between people needs several"),
        ([(40, 40)] * 15, {"unseen_share": 0.999},
         "15 of 15 .* bias.unseen_share 0.999 keeps 15 of them out; lower it to 0.866 at most"),
        ([(40, 40)] * 2, {"unseen_share": 0.5}, "keeps 1 of them out, and a third person is needed"),
        ([(5, 5)] * 3, {}, "0 of 3 .*: with images_per_identity 4 and test_per_class 2: 2 people"),
        ([(1, 40)] * 15, {}, "15 of the 15 people have images of both classes, but nobody has a training and a test image"),
        ([(1, 40)] * 15 + [(40, 40)], {}, "16 of the 16 people .*, but only one of them has a training and"),
        ([(2, 40)] * 15, {}, "with images_per_identity 20 and test_per_class 1: 15 people"),
        ([(0, 24), (24, 24)] * 3, {"levels": [1.0], "images_per_identity": 10, "test_per_class": 0},
         None),
    ],
)  # fmt: skip
def test_the_cause_that_was_tested_makes_the_message(people, changes, said):
    settings = {"levels": [0.9], "test_per_class": 2} | changes
    if said is None:
        drawn(people_of(*people), **settings)
        return
    with pytest.raises(DoesNotFit, match=said):
        drawn(people_of(*people), **settings)


def test_of_people_who_all_take_part_more_numbers_are_not_said_to_help():
    identities, labels = people_of(*[(24, 24)] * 15)
    said = advice(identities, labels, 20, 4, "correlation", [0.9])
    assert said.startswith("nearly all of the 15 people with images of both classes take part")
    identities, labels = people_of(*[(24, 24)] * 5, *[(1, 24)] * 5)
    assert advice(identities, labels, 20, 4, "correlation", [0.9]).startswith("no other numbers")


def test_an_attribute_that_is_rare_for_everybody_gets_a_design_with_majorities_as_they_come():
    identities, labels = people_of(*[(30, 3)] * 10)
    rare = {"levels": [0.9], "test_per_class": 2}
    parts, own = drawn((identities, labels), **rare)
    table = counts(parts["train"], identities, labels)
    assert sorted(map(tuple, table)) == [(0, 0)] * 2 + [(19, 1)] * 8
    assert unequal_classes(own, labels)
    assert (own.loc[own["part"] == "seen", "minority"] == labels[parts["seen"]]).all()
    # Level 1 takes nothing of the rare class: everything would be of one class.
    with pytest.raises(DoesNotFit, match="a training set would hold one class; lower the level"):
        drawn((identities, labels), level=1.0, **rare | {"levels": [1.0]})


def test_classes_are_equal_wherever_majorities_are_balanced(population):
    sets = draw_sets(*population, seeds=2, **SETTINGS)
    assert not unequal_classes(sets, population[1])


class Data:
    """A data set of which some attributes cannot be drawn."""

    def __init__(self, population, **attributes):
        self.known = {"task": population[1]} | attributes
        self.people = population[0]

    def identities(self):
        return self.people

    def labels(self, name):
        if name not in self.known:
            raise ValueError(f"no attribute {name!r}")
        return self.known[name]


def planned(**changes):
    return {
        "task": "task",
        "seeds": 2,
        "bias": {"people": None, "cohorts": False} | SETTINGS,
        "tasks": ["task"],
        "kinds": ["correlation"],
        "level": 0.9,
        "ablation": {"level": 0.9, "seeds": 3},
        "ablations": {},
        "neighbours": "auto",
    } | changes


def test_what_the_data_do_not_allow_is_left_out_with_a_line_and_all_else_stays(population):
    data = Data(population, rare=(population[0] % 2).astype(int))
    ablations = {
        "people": {"setting": "bias.people", "values": [25, 80, None]},
        "neighbours": {"setting": "weights.neighbours", "values": [5, 5000, "auto"]},
        "gone": {"setting": "bias.people", "values": [51]},
        "tau": {"setting": "weights.tau", "values": [0.1]},
    }
    about = planned(tasks=["task", "rare"], ablations=ablations)
    lines = check_draws(data, about)
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        "breadth, rare under correlation",
        "ablations.people, 80",
        "ablations.neighbours, 5000",
        "ablations.gone, 51",
    ]
    fitting, left_out = fitting_ablations(
        *population, about["bias"], about["ablation"], ablations, "auto"
    )
    assert {name: varied["values"] for name, varied in fitting.items()} == {
        "people": [25, None], "neighbours": [5, "auto"], "tau": [0.1]
    }  # fmt: skip
    assert [f"Will be left out: {line}" for line in left_out] == lines[1:]
    with pytest.raises(ValueError, match="breadth, wrong under correlation: no attribute 'wrong'"):
        check_draws(data, planned(tasks=["task", "wrong"]))
    with pytest.raises(ValueError, match="breadth, rare under correlation: 0 of 50"):
        check_draws(data, planned(tasks=["rare"]))


def test_cohorts_need_no_people_for_ablations_that_would_not_run(population):
    people = {"people": {"setting": "bias.people", "values": [12, 25, None]}}
    bias = planned()["bias"] | {"people": 12, "cohorts": True}
    for ablation, left in (({"level": 0.9, "seeds": 3}, 2), ({"level": 0.9, "seeds": 10}, 1)):
        about = planned(bias=bias, ablation=ablation, ablations=people)
        assert len(check_draws(Data(population), about)) == left
    assert check_draws(Data(population), planned(bias=bias)) == []


def test_that_majorities_come_as_they_are_is_said():
    data = Data(people_of(*[(30, 3)] * 10))
    about = planned(bias=planned()["bias"] | {"levels": [0.9], "test_per_class": 2})
    (line,) = check_draws(data, about)
    assert line.startswith("Majorities stay as they come")


def test_that_balanced_majorities_leave_out_most_people_is_said():
    about = planned(bias=planned()["bias"] | {"levels": [0.9], "test_per_class": 1})
    few_of_one = [(40, 3)] * 38 + [(3, 40)] * 2
    (line,) = check_draws(Data(people_of(*few_of_one)), about)
    assert line.startswith("At most 4 of 40 usable people train")
    assert "only 2 have enough images of class 1" in line
    assert check_draws(Data(people_of(*[(40, 3)] * 12, *[(3, 40)] * 8)), about) == []


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9, 1.0])
def test_a_long_tail_is_as_large_at_every_level_and_balanced(population, level):
    parts, own = drawn(population, 4, level, kind="longtail")
    table = counts(parts["train"], *population)
    people = table[table.sum(axis=1) > 0]
    assert (people[:, 0] == people[:, 1]).all()
    assert len(parts["train"]) == 40 * 20 and len(people) == 40
    sizes = np.sort(people.sum(axis=1))[::-1]
    place = (np.arange(40) + 0.5) / 40
    # Whole pairs of images: within a pair of the straight line, and never without one.
    assert abs(sizes - np.maximum(2, 20 * (1 + level * (1 - 2 * place)))).max() <= 2
    assert own["minority"].isna().all()


def test_the_order_of_the_tail_is_the_seeds_and_the_same_at_every_level(population):
    def sizes(seed, level):
        parts, _ = drawn(population, seed, level, kind="longtail")
        return counts(parts["train"], *population).sum(axis=1)

    low, high, other = sizes(0, 0.5), sizes(0, 0.9), sizes(1, 0.9)
    assert np.corrcoef(low, high)[0, 1] > 0.95
    assert abs(np.corrcoef(high, other)[0, 1]) < 0.5


def test_fewer_people_are_the_first_by_name(population):
    parts, _ = drawn(population, people=10)
    people = population[0][np.concatenate([parts["train"], parts["unseen"]])]
    assert set(people) == set(range(10))


def test_cohorts_share_nobody(population):
    sets = draw_sets(*population, seeds=4, **SETTINGS | {"people": 12, "cohorts": True})
    people = [set(population[0][own["row"]]) for _, own in sets.groupby("seed")]
    assert [len(own) for own in people] == [12] * 4
    assert len(set.union(*people)) == 48
    names = sorted(people[0])
    assert names != list(range(12))  # drawn, not the first by name


def test_seeds_take_cohorts_in_turn_with_draws_of_their_own(population):
    changes = {"people": 12, "cohorts": "repeated"}
    sets = draw_sets(*population, seeds=10, **SETTINGS | changes)
    of_seed = [own for _, own in sets.groupby("seed")]
    people = [frozenset(population[0][own["row"]]) for own in of_seed]
    assert [len(own) for own in people] == [12] * 10
    assert people[:4] * 2 + people[:2] == people and len(set(people)) == 4
    assert len(frozenset.union(*people)) == 48
    for one, again in zip(of_seed[:4], of_seed[4:8], strict=True):
        train, other = (set(own.loc[own["part"] == "train", "row"]) for own in (one, again))
        assert train != other


def test_as_many_seeds_as_cohorts_are_independent_replications_to_the_byte(population):
    one, other = (
        draw_sets(*population, seeds=4, **SETTINGS | {"people": 12, "cohorts": cohorts})
        for cohorts in (True, "repeated")
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_fewer_people_than_one_cohort_holds_are_one(population):
    changes = {"people": 80, "cohorts": "repeated"}
    sets = draw_sets(*population, seeds=3, **SETTINGS | changes)
    everybody = draw_sets(*population, seeds=3, **SETTINGS)
    pd.testing.assert_frame_equal(sets, everybody, check_exact=True)


def test_natural_trains_on_everything_but_the_tests():
    # Person 0 and 1 can be tested; 2 has one image of a class, 3 a single image.
    identities = np.repeat([0, 1, 2, 3, 4, 5], [8, 6, 4, 1, 6, 7])
    labels = np.concatenate(
        [[0, 1] * 4, [0, 1] * 3, [0, 0, 0, 1], [1], [0, 1] * 3, [0, 1] * 3 + [0]]
    )
    changes = {"kind": "natural", "levels": [0.0], "test_per_class": 2, "unseen_share": 0.25}
    parts, own = drawn((identities, labels), 0, 0.0, **changes)
    everything = np.concatenate(list(parts.values()))
    (unseen,) = np.unique(identities[parts["unseen"]])
    left_out = np.setdiff1d(np.arange(len(labels)), everything)
    assert len(np.unique(everything)) == len(everything)
    assert (identities[left_out] == unseen).all()  # nothing else is lost
    assert not (identities[parts["train"]] == unseen).any()
    assert {2, 3} <= set(identities[parts["train"]])
    seen = identities[parts["seen"]]
    assert len(np.unique(seen)) == 3
    for person in np.unique(seen):
        label = labels[parts["seen"]][seen == person]
        assert (label == 0).sum() == (label == 1).sum() == 2
    if (
        unseen != 5
    ):  # person 5 trains on 2 images of class 0 and 1 of class 1, the others on as many
        rare = own[(own["part"] == "seen") & (own["minority"] == 1)]["row"]
        assert set(identities[rare]) == {5} and set(labels[rare]) == {1}
