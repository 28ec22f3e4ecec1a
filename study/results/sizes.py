"""How many people and images a training set has, and on how many it is tested."""

import numpy as np
import pandas as pd

PARTS = (
    "train",
    "seen",
    "unseen",
)  # of a set: training images, and test images of two kinds of people


def set_sizes(sets: pd.DataFrame, identities) -> dict[str, dict[str, list[int]]]:
    """Count the people and the images of every part of the sets of a study.

    Parameters
    ----------
    sets : DataFrame
        One row per image of a set, with ``level``, ``seed``, ``part`` and ``row``, its row in the data.
    identities : array_like
        The person of every image of the data set.

    Returns
    -------
    dict
        By part that the sets have: ``people`` and ``images``, each the fewest and the most of a set, and
        ``people_in_all``, the number of people over all sets.
    """
    people = np.asarray(identities)[sets["row"].to_numpy()]
    named = sets[["level", "seed", "part"]].assign(person=people)
    sizes = {}
    for part in PARTS:
        of_part = named[named["part"] == part]
        if of_part.empty:
            continue
        of_set = of_part.groupby(["level", "seed"])["person"]
        counts = {"people": of_set.nunique(), "images": of_set.size()}
        sizes[part] = {name: [int(n.min()), int(n.max())] for name, n in counts.items()}
        sizes[part]["people_in_all"] = [int(of_part["person"].nunique())]
    return sizes


def sizes_sentence(sizes: dict[str, dict[str, list[int]]]) -> str:
    """What :func:`set_sizes` counts, in words."""
    words = {
        "train": "A training set has {images} images of {people} people",
        "seen": "it is tested on {images} held-out images of {people} of these people (seen)",
        "unseen": "on {images} images of {people} other people (unseen)",
    }
    parts = [
        words[part].format(images=_range(of["images"]), people=_range(of["people"]))
        for part, of in sizes.items()
    ]
    in_all = _range(sizes["train"]["people_in_all"])
    return f"{'; '.join(parts)}. Over all sets {in_all} people are trained on."


def people_and_images(sizes: dict[str, dict[str, list[int]]]) -> str:
    """People and images of a training set, as in ``80 people, 1,600 images``."""
    of = sizes["train"]
    return f"{_range(of['people'])} people, {_range(of['images'])} images"


def _range(ends: list[int]) -> str:
    first, last = ends[0], ends[-1]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
