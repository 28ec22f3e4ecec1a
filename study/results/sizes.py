"""How many people and images a training set has, and on how many it is tested."""

import numpy as np
import pandas as pd

from study.experiment.design import HELD_OUT, is_known

# Of a set: training images, test images of two kinds of people, and those where nobody is known.
PARTS = ("train", "seen", "unseen", HELD_OUT)


def set_sizes(sets: pd.DataFrame, identities) -> dict[str, dict[str, list[int]]]:
    """Count the people and the images of every part of the sets of a study.

    Parameters
    ----------
    sets : DataFrame
        One row per image of a set, with ``level``, ``seed``, ``part`` and ``row``, its row in the data.
    identities : array_like
        The person of every image of the data set, as in :func:`study.experiment.design.draw_sets`.

    Returns
    -------
    dict
        By part that the sets have: ``people`` and ``images``, each the fewest and the most of a set, and
        ``people_in_all``, the number of people over all sets. ``unknown``, where there are any, is the
        number of images of which nobody knows who they show.
    """
    people = np.asarray(identities)[sets["row"].to_numpy()]
    known = is_known(people)
    named = sets[["level", "seed", "part"]].assign(person=people, unknown=~known)
    named["person"] = named["person"].where(known)
    sizes = {}
    for part in PARTS:
        of_part = named[named["part"] == part]
        if of_part.empty:
            continue
        of_set = of_part.groupby(["level", "seed"])["person"]
        counts = {"people": of_set.nunique(), "images": of_set.size()}
        sizes[part] = {name: [int(n.min()), int(n.max())] for name, n in counts.items()}
        sizes[part]["people_in_all"] = [int(of_part["person"].nunique())]
        unknown = of_part.groupby(["level", "seed"])["unknown"].sum()
        if unknown.any():
            sizes[part]["unknown"] = [int(unknown.min()), int(unknown.max())]
    return sizes


def sizes_sentence(sizes: dict[str, dict[str, list[int]]]) -> str:
    """What :func:`set_sizes` counts, in words."""
    if HELD_OUT in sizes:
        return (
            f"A training set has {_range(sizes['train']['images'])} images, and it is tested on "
            f"{_range(sizes[HELD_OUT]['images'])} others, drawn at random. Nobody knows whom they show."
        )
    words = {
        "train": "A training set has {images} images of {people} people",
        "seen": "it is tested on {images} held-out images of {people} of these people (seen)",
        "unseen": "on {images} images of {people} other people (unseen)",
    }
    parts = [
        words[part].format(images=_range(of["images"]), people=_range(of["people"]))
        for part, of in sizes.items()
    ]
    if "unknown" in sizes["train"]:
        parts[0] += (
            f" (of {_range(sizes['train']['unknown'])} of these images nobody knows whom they show, perhaps "
            "people who are called unseen here)"
        )
    in_all = _range(sizes["train"]["people_in_all"])
    return f"{'; '.join(parts)}. Over all sets {in_all} people are trained on."


def people_and_images(sizes: dict[str, dict[str, list[int]]]) -> str:
    """People and images of a training set, as in ``80 people, 1,600 images``."""
    of = sizes["train"]
    return f"{_range(of['people'])} people, {_range(of['images'])} images"


def _range(ends: list[int]) -> str:
    first, last = ends[0], ends[-1]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
