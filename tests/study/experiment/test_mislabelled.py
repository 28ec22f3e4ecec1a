"""Labels made wrong on purpose: as many as asked for, of whom it says, and seen by training alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study.experiment import variations
from study.experiment.mislabelled import CARELESS, KINDS, mislabelled
from study.pipeline import params

PEOPLE = np.repeat(np.arange(50), 40)
SETS = ["seed", "test", "row", "minority"]
LABELS = np.random.default_rng(0).permutation(np.tile([0.0, 1.0], 1000))


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_is_that_of_all_labels(kind):
    wrong = mislabelled(LABELS, PEOPLE, kind, 0.1) != LABELS
    assert wrong.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(mislabelled(LABELS, PEOPLE, kind, 0.0), LABELS)


def test_kinds_are_what_they_say():
    of_class = mislabelled(LABELS, PEOPLE, "labels.wrong_of_class_1", 0.1) != LABELS
    assert not of_class[LABELS == 0].any()
    of_people = mislabelled(LABELS, PEOPLE, "labels.wrong_of_some_people", 0.1) != LABELS
    assert len(np.unique(PEOPLE[of_people])) == 50 // CARELESS


def test_clerical_errors_happen_to_rows_and_people_together():
    def wrong(kind):
        return mislabelled(LABELS, PEOPLE, f"labels.wrong_of_{kind}", 0.1, seed=3) != LABELS

    rows = np.flatnonzero(wrong("slipped_rows"))
    stretch = np.sort((rows - rows[0] + 1000) % 2000)
    assert np.ptp(stretch) < 500  # of 200 rows, half of which had the label of the row above
    given = np.where(wrong("slipped_rows"), 1 - LABELS, LABELS)
    np.testing.assert_array_equal(given[rows], np.roll(LABELS, 1)[rows])
    people, counts = np.unique(PEOPLE[wrong("reversed_folders")], return_counts=True)
    assert len(people) == 5 and (counts == 40).all()
    swapped = np.where(wrong("swapped_people"), 1 - LABELS, LABELS).reshape(50, 40)
    (changed,) = np.nonzero((swapped != LABELS.reshape(50, 40)).any(axis=1))
    right = {tuple(row) for row in LABELS.reshape(50, 40)}
    assert sum(tuple(swapped[person]) in right for person in changed) >= len(changed) - 2


def test_an_image_without_a_label_stays_without():
    labels = np.where(PEOPLE == 0, np.nan, LABELS)
    for kind in KINDS:
        given = mislabelled(labels, PEOPLE, kind, 0.2)
        np.testing.assert_array_equal(np.isnan(given), np.isnan(labels))


def test_training_sees_wrong_labels_and_the_design_and_the_test_do_not(arrays):
    settings = {
        "seeds": 2,
        "methods": ["erm", "oracle"],
        "bias": {"kind": "correlation", "levels": [0.5], "images_per_identity": 8,
                 "test_per_class": 2, "unseen_share": 0.2, "people": None, "cohorts": False},
        "weights": {},
        "train": {"l2": 0.1, "through": "loss", "robust": {}},
    }  # fmt: skip
    true, wrong = (
        variations.vary(arrays, settings, "labels.wrong", [share], 0.5).drop(columns="value")
        for share in (0.0, 0.2)
    )
    pd.testing.assert_frame_equal(true[SETS], wrong[SETS])
    assert (true["erm"] != wrong["erm"]).any()
    given = mislabelled(arrays.labels, arrays.identities, "labels.wrong", 0.2)
    alone = variations.run(
        replace(arrays, given=given), settings, design=replace(arrays, given=given).design()
    )
    np.testing.assert_array_equal(alone["erm"], wrong["erm"])
    right_true, right_wrong = (
        ((table["erm"] > 0) == arrays.labels[table["row"]]).mean() for table in (true, wrong)
    )
    assert right_true > right_wrong


@pytest.mark.parametrize(
    "values, message", [([0.5], "0 to 0.2"), ([True], "0 to"), ([0.1, 0.1], "twice")]
)
def test_what_is_no_share_is_refused(values, message):
    tree = params.read()
    tree["ablations"] = {"wrong": {"setting": "labels.wrong", "values": values}}
    with pytest.raises(ValueError, match=message):
        params.check(tree, "params.yaml")
