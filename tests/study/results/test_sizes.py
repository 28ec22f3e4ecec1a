"""People and images of a training set."""

from __future__ import annotations

import pandas as pd

from study.results import sizes


def made_up() -> tuple[pd.DataFrame, list[str]]:
    """Two seeds: of person a two images, of b one are trained on; then of a one and of c three."""
    rows = [(0.5, 0, "train", row) for row in (0, 1, 4)] + [
        (0.5, 0, "seen", 2),
        (0.5, 0, "unseen", 8),
    ]
    rows += [(0.5, 1, "train", row) for row in (1, 8, 9, 10)] + [(0.5, 1, "seen", 11)]
    table = pd.DataFrame(rows, columns=["level", "seed", "part", "row"])
    return table, list("aaaabbbbcccc")


def test_every_part_is_counted_by_set():
    found = sizes.set_sizes(*made_up())
    assert found == {
        "train": {"people": [2, 2], "images": [3, 4], "people_in_all": [3]},
        "seen": {"people": [1, 1], "images": [1, 1], "people_in_all": [2]},
        "unseen": {"people": [1, 1], "images": [1, 1], "people_in_all": [1]},
    }


def test_the_sentence_says_who_trains_and_who_is_tested():
    found = sizes.set_sizes(*made_up())
    assert sizes.sizes_sentence(found) == (
        "A training set has 3 to 4 images of 2 people; it is tested on 1 held-out images of 1 of these "
        "people (seen); on 1 images of 1 other people (unseen). Over all sets 3 people are trained on."
    )
    assert sizes.people_and_images(found) == "2 people, 3 to 4 images"
    del found["unseen"]
    assert "unseen" not in sizes.sizes_sentence(found)
