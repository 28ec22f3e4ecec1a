"""Who is left alone for a later confirmation: a lot for every person, which anybody can draw again.

A study in which something is found uses up its people. What is found is confirmed on people whom nobody
has looked at, so a quarter is set aside before anything runs. The lot of a person is a digest of the name
that the source gives this person. So it depends on nobody else: a copy with fewer people, or more, leaves
the same people alone.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from cid.names import find

ALL, DEVELOPMENT, CONFIRMATION = "all", "development", "confirmation"
PARTS = (ALL, DEVELOPMENT, CONFIRMATION)
SHARE = 0.25  # of the people, for confirmation
DRAW = "confirmation, drawn on 2026-11-30"  # the seed: with another text others are drawn


def lot(person: str) -> float:
    """Return a person's lot, a number in [0, 1): the first 48 bits of a SHA-256 of the draw and the name."""
    drawn = hashlib.sha256(f"{DRAW}: {person}".encode()).digest()
    return int.from_bytes(drawn[:6], "big") / 2**48


def belongs(people: Iterable[str], part: str) -> np.ndarray:
    """Say of every person of an iterable whether this person is in a part, shape (n,).

    Raises
    ------
    ValueError
        If ``part`` is none of :data:`PARTS`.
    """
    find("part", part, dict.fromkeys(PARTS))
    people = list(people)
    if part == ALL:
        return np.ones(len(people), dtype=bool)
    lots = {person: lot(str(person)) for person in set(people)}
    confirms = np.array([lots[person] < SHARE for person in people], dtype=bool)
    return confirms if part == CONFIRMATION else ~confirms
