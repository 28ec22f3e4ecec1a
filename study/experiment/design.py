"""Biased training sets with balanced test sets, built from a face data set and its identities.

Everything a seed decides (which identities are never seen in training, which class is whose
majority, which images are held out, in which order images are used) is drawn before the bias level
is looked at. Levels of one seed therefore share their test images and differ only in how many images
of which person and class are used: a curve over the level is a paired comparison.

Identities are used here and in the evaluation only, never by a method without identity labels.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cid.names import find


@dataclass(frozen=True)
class Split:
    """Row numbers (int64) of one biased training set and of its two test sets.

    The test sets hold as many images of either class in every identity: ``test_seen`` held-out images of
    those in training, ``test_unseen`` images of those absent from it.
    """

    train: np.ndarray
    test_seen: np.ndarray
    test_unseen: np.ndarray


def usable_identities(
    identities, labels, images_per_identity: int, test_per_class: int, kind: str = "correlation"
) -> pd.DataFrame:
    """Which identities have enough images for every bias level, and why the others do not.

    An identity needs ``images_per_identity + test_per_class`` images of either class: at level 1 of
    kind ``correlation`` all its training images are of its majority class, whichever that is, and of
    kind ``longtail`` the head of the distribution has twice as many images as the mean. The rule does
    not depend on the levels under study, so that adding one changes no other. Of kind ``natural``, where
    everybody's images train, it is about who can be tested: ``test_per_class + 1`` images of either
    class are needed.

    Parameters
    ----------
    identities, labels : array, shape (n,)
        Of every image, who is on it and its label, 0 or 1.

    Returns
    -------
    pandas.DataFrame
        One row an identity, in sorted order: ``identity``, ``class_0``, ``class_1`` (image counts),
        ``usable``, ``reason`` (empty when usable), ``needed`` (images of either class).
    """
    needed = (1 if kind == "natural" else images_per_identity) + test_per_class
    names, codes = np.unique(np.asarray(identities), return_inverse=True)
    counts = [np.bincount(codes[np.asarray(labels) == c], minlength=len(names)) for c in (0, 1)]
    table = pd.DataFrame({"identity": names, "class_0": counts[0], "class_1": counts[1]})
    least = np.minimum(*counts)
    why = ["" if n >= needed else f"only {n} images of a class; {needed} are needed" for n in least]
    return table.assign(usable=least >= needed, reason=why, needed=needed)


def biased_split(
    identities,
    labels,
    *,
    kind: str,
    level: float,
    seed: int,
    images_per_identity: int,
    test_per_class: int,
    unseen_share: float,
    people: int | None = None,
) -> Split:
    """Draw one biased training set and its test sets.

    Parameters
    ----------
    identities, labels
        As in :func:`usable_identities`; identities it finds unusable are left out.
    kind : {"correlation", "longtail", "natural"}
        How the training set is biased. ``correlation``: every identity has a majority class, drawn
        at random, and a share ``(1 + level) / 2`` of its training images is of that class. Where the
        share is not a whole number of images it is rounded at random, right on average.
        ``longtail``: as many images of either class, but the number of images falls from identity to
        identity, in random order, from ``1 + level`` times the mean to ``1 - level`` times it (and
        never below one image of either class). ``natural``: the data as they are, at level 0 only; all
        images train but the held-out ones of people with enough images to be tested, and those of
        the unseen people, who are drawn among these.
    level, seed
        Strength of the bias in [0, 1], 0 for none; the seed decides everything else.
    images_per_identity : int
        Training images of a seen identity, of all (``correlation``) or on average (``longtail``): the
        training set is as large at every level.
    test_per_class : int
        Held-out images of either class of every seen identity.
    unseen_share : float in [0, 1)
        Share of the identities that is kept out of training.
    people : int, optional
        How many of the usable identities take part: the first by name; all without it.

    Raises
    ------
    ValueError
        On an unknown kind, a level outside [0, 1], or too few usable identities.
    """
    kinds = {"correlation": _correlated, "longtail": _long_tailed, "natural": None}
    sized = find("bias kind", kind, kinds)
    if not 0 <= level <= 1:
        raise ValueError(f"bias level {level} is outside [0, 1]")
    if not 0 <= unseen_share < 1:
        raise ValueError(f"unseen_share is {unseen_share}; it must be in [0, 1)")
    if kind == "natural" and level != 0:
        raise ValueError(
            f"bias level {level} of the kind natural: the data as they are have no level, so set "
            "bias.levels to [0.0]"
        )
    identities, labels = np.asarray(identities), np.asarray(labels)
    table = usable_identities(identities, labels, images_per_identity, test_per_class, kind)
    usable = table.loc[table["usable"], "identity"].to_numpy()
    if people is not None:
        if not 2 <= people <= len(usable):
            raise ValueError(
                f"bias.people is {people}; it must be null (all) or a number from 2 to {len(usable)}, the "
                "identities with enough images of either class"
            )
        usable = usable[:people]
    n_unseen = round(unseen_share * len(usable))
    if len(usable) - n_unseen < 2:
        raise ValueError(
            f"{len(usable)} of {len(table)} identities have enough images of either class "
            f"(bias.images_per_identity {images_per_identity}, bias.test_per_class {test_per_class}); at "
            "least 2 for training are needed, so lower one of the two"
        )

    rng = np.random.default_rng(seed)
    unseen = set(rng.choice(usable, n_unseen, replace=False).tolist())
    cells = pd.Series(labels).groupby([identities, labels]).indices
    order, draws, seen_test, unseen_test = [], [], [], []
    for identity in usable:
        # Drawn for every identity, seen or not, so that one draw never shifts the next.
        majority, chance = int(rng.integers(2)), rng.random()
        rows = [rng.permutation(cells[identity, c]) for c in (0, 1)]
        if identity in unseen:
            fewest = min(map(len, rows))
            unseen_test += [r[:fewest] for r in rows]
            continue
        seen_test += [r[:test_per_class] for r in rows]
        order += [r[test_per_class:] for r in rows]
        draws.append((majority, chance))
    if kind == "natural":
        others = np.flatnonzero(~np.isin(identities, list(unseen)))
        train = [np.setdiff1d(others, np.concatenate(seen_test))]
    else:
        sizes = sized(level, images_per_identity, *map(np.array, zip(*draws, strict=True)))
        train = [r[:n] for r, n in zip(order, sizes.flat, strict=True)]
    none = np.empty(0, dtype=np.int64)  # as nobody may be unseen
    return Split(*(np.sort(np.concatenate([none, *p])) for p in (train, seen_test, unseen_test)))


def _correlated(level: float, k: int, majority: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Training images of every identity and class, shape (identities, 2), under ``correlation``."""
    n_majority = np.floor((1 + level) / 2 * k + chance).astype(int)
    sizes = np.stack([k - n_majority, n_majority], axis=1)
    return np.where(majority[:, None] == 1, sizes, sizes[:, ::-1])


def _long_tailed(level: float, k: int, majority: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """As :func:`_correlated`, under ``longtail``; ``chance`` puts the identities in order."""
    people = len(chance)
    place = (np.argsort(np.argsort(chance)) + 0.5) / people
    exact = k / 2 * (1 + level * (1 - 2 * place))
    sizes = np.maximum(1, np.floor(exact)).astype(int)
    # Whole numbers of the same sum at every level: the largest remainders round up, and what the
    # floor of one image adds is taken from the head.
    short = people * k // 2 - sizes.sum()
    if short > 0:
        sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    for _ in range(-short):
        sizes[np.argmax(sizes)] -= 1
    return np.stack([sizes, sizes], axis=1)


def draw_sets(identities, labels, *, seeds: int, levels, **settings) -> pd.DataFrame:
    """The training and test sets of every level and of seeds 0 .. seeds - 1.

    All other arguments are those of :func:`biased_split`.

    Returns
    -------
    pandas.DataFrame
        One row an image of a set, by level and seed: ``level``, ``seed``, ``part`` ("train", "seen" or
        "unseen"), ``row`` (of the data set), and ``cell_size``: in training, how many training images
        share its person and class; 0 in the test sets.
    """
    identities, labels = np.asarray(identities), np.asarray(labels)
    tables = []
    for level, seed in itertools.product(map(float, levels), range(seeds)):
        split = biased_split(identities, labels, level=level, seed=seed, **settings)
        train = pd.DataFrame({"row": split.train, "part": "train"})
        cell = [identities[split.train], labels[split.train]]
        train["cell_size"] = train.groupby(cell)["row"].transform("size")
        seen = pd.DataFrame({"row": split.test_seen, "part": "seen", "cell_size": 0})
        unseen = pd.DataFrame({"row": split.test_unseen, "part": "unseen", "cell_size": 0})
        tables.append(pd.concat([train, seen, unseen]).assign(level=level, seed=seed))
    return pd.concat(tables, ignore_index=True)[["level", "seed", "part", "row", "cell_size"]]
