"""Lots: who is left alone for a confirmation, whoever else is there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from study.faces import parts
from study.pipeline import kept

ROOT = Path(__file__).parents[3]


def test_a_lot_can_be_drawn_again_by_hand():
    digits = hashlib.sha256(b"confirmation, drawn on 2026-11-30: 7760").hexdigest()[:12]
    assert parts.lot("7760") == int(digits, 16) / 16**12


def test_the_parts_share_nobody_and_a_quarter_confirms():
    people = [str(number) for number in range(4000)]
    develops = parts.belongs(people, "development")
    confirms = parts.belongs(people, "confirmation")
    np.testing.assert_array_equal(develops, ~confirms)
    assert parts.belongs(people, "all").all()
    # Five standard deviations of 4,000 lots; and lots do not run with the numbers.
    assert abs(confirms.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert abs(confirms[:2000].mean() - confirms[2000:].mean()) < 0.07


def test_a_lot_does_not_depend_on_who_else_is_there():
    people = ["12", "7", "12", "9041", "3"]
    of_all = dict(zip(people, parts.belongs(people, "confirmation"), strict=True))
    for person in people:
        assert parts.belongs([person], "confirmation") == [of_all[person]]


def test_another_part_is_refused():
    with pytest.raises(ValueError, match="part 'half' is unknown; known: all, development, conf"):
        parts.belongs(["1"], "half")


def test_only_the_studies_of_the_quarter_use_it():
    """By the name of its data set: that of another part is refused before anything runs."""
    names = [name for name in kept.names(ROOT / "studies") if name.startswith("celeba")]
    data = {name: kept.resolve(name, ROOT / "studies")["data"] for name in names}
    assert set(data.values()) == {"celeba-development", "celeba-confirmation"}
    for name in names:
        assert (data[name] == "celeba-confirmation") == name.startswith("celeba-quarter-")
