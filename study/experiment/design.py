"""Biased training sets with balanced test sets, built from a face data set and its identities.

A seed decides who takes part, who is never seen in training, which class is each person's majority,
which images are held out, and in which order images are used. All of this is drawn before the bias level
is looked at. Levels of one seed therefore share their test images and differ only in how many images of
each person and class are used: a curve over the level is a paired comparison.

A *cell* is a person and a class. Identities are used here and in the evaluation only, never by a method
without identity labels. An image of which nobody knows who it shows is no test image; under ``natural`` it
trains.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.experiment.levels import (
    CORRELATED,
    REPEATED,
    built_level,
    built_levels,
    minority_images,
)

UNKNOWN = -1  # the number of an image's person where nobody knows who it shows
WITHOUT_IDENTITIES = (
    "a study tests models person by person, so name the people of at least some images, or, without any, "
    "weigh images by `python -m cid weigh` and judge models by `python -m cid audit`"
)
FEW = 20  # below this many usable people, suggest settings that would include more


def usable_identities(
    identities,
    labels,
    images_per_identity: int,
    test_per_class: int,
    kind: str = CORRELATED,
    levels: Iterable[float] = (0.0, 1.0),
) -> pd.DataFrame:
    """Find the identities that have enough images for all levels, and say why the others do not.

    Every identity needs ``test_per_class`` test images of each class, and training images besides. Under
    ``correlation`` these are, of one class, what the strongest level takes of the majority class, and of
    the other, what the weakest level takes of the minority class. Under ``longtail`` they are, of each
    class, what the head of the distribution takes at the strongest level. Under ``natural``, where
    everybody's images train, they are one of each class.

    Parameters
    ----------
    identities, labels : array, shape (n,)
        Who each image shows, None or below 0 where that is not known; and its label: 0 or 1, or NaN for an
        image without one, which takes no part.

    Returns
    -------
    pandas.DataFrame
        One row an identity, in sorted order: ``identity``, ``class_0``, ``class_1`` (image counts),
        ``usable``, ``majority_0``, ``majority_1`` (whether that class can be its majority), ``reason``
        (empty when usable).
    """
    table = _counts(identities, labels)
    most, least = _needed(images_per_identity, test_per_class, kind, levels)
    counts = table[["class_0", "class_1"]].to_numpy()
    majority_0 = (counts[:, 0] >= most) & (counts[:, 1] >= least)
    majority_1 = (counts[:, 1] >= most) & (counts[:, 0] >= least)
    usable = majority_0 | majority_1
    if most == least:
        needed = f"{most} of each"
    else:
        needed = f"{most} of one and {least} of the other"
    reasons = [f"{a} images of one class, {b} of the other; {needed} are needed" for a, b in counts]
    return table.assign(
        usable=usable,
        majority_0=majority_0,
        majority_1=majority_1,
        reason=np.where(usable, "", reasons),
    )


def _counts(identities, labels) -> pd.DataFrame:
    """Images of each class of every identity that has a labelled image."""
    known = pd.notna(labels) & is_known(identities)
    names, codes = np.unique(np.asarray(identities)[known], return_inverse=True)
    labels = np.asarray(labels)[known]
    class_0 = np.bincount(codes[labels == 0], minlength=len(names))
    class_1 = np.bincount(codes[labels == 1], minlength=len(names))
    return pd.DataFrame({"identity": names, "class_0": class_0, "class_1": class_1})


def is_known(identities) -> np.ndarray:
    """Say of every image whether it is known who it shows, from names or numbers: bool (n,)."""
    identities = np.asarray(identities)
    if identities.dtype.kind in "iu":
        return identities > UNKNOWN
    return pd.notna(identities)


def _numbered(identities) -> np.ndarray:
    """People as numbers, in the order of their names: to group by numbers is a hundred times as fast."""
    known = is_known(identities)
    numbers = np.full(len(known), UNKNOWN)
    numbers[known] = np.unique(np.asarray(identities)[known], return_inverse=True)[1]
    return numbers


def _needed(images_per_identity: int, test_per_class: int, kind: str, levels) -> tuple[int, int]:
    """Images of the majority class and of the other from which all levels can be built."""
    levels = list(levels)
    if kind == "natural":
        majority = minority = 1
    elif kind == "longtail":
        majority = minority = math.ceil(images_per_identity / 2 * (1 + max(levels)))
    else:
        majority = images_per_identity - minority_images(max(levels), images_per_identity)
        minority = minority_images(min(levels), images_per_identity)
    return majority + test_per_class, minority + test_per_class


def advice(identities, labels, images_per_identity, test_per_class, kind, levels) -> str:
    """Suggest numbers with which more identities would be usable, or say that none would help."""

    def usable(images: int, tests: int) -> int:
        table = usable_identities(identities, labels, images, tests, kind, levels)
        return int(table["usable"].sum())

    now = usable(images_per_identity, test_per_class)
    counts = _counts(identities, labels)[["class_0", "class_1"]].to_numpy()
    largest = 2 * int(counts.max(initial=0))  # that anybody could have
    most = min(images_per_identity, largest)
    sizes = range(most - most % 2, 1, -2)
    offers = []
    for tests in dict.fromkeys((test_per_class, 1)):
        # As many images as possible for FEW people; if there are fewer, for the most people.
        people = {images: usable(images, tests) for images in sizes}
        enough = [images for images, number in people.items() if number >= FEW]
        images = enough[0] if enough else max(people, key=people.get)
        if people[images] > max(now, 3):
            offers.append(
                f"with images_per_identity {images} and test_per_class {tests}: "
                f"{people[images]} people"
            )
    if not offers:
        return "the attribute hardly varies within people, so no other numbers would help"
    return "; ".join(offers)


def draw_sets(
    identities,
    labels,
    *,
    seeds: int,
    levels,
    kind: str,
    images_per_identity: int,
    test_per_class: int,
    unseen_share: float,
    people: int | None = None,
    cohorts: bool | str = False,
    only: Iterable[float] | None = None,
) -> pd.DataFrame:
    """Draw the training and test sets of every level and of seeds 0 .. seeds - 1.

    Parameters
    ----------
    identities, labels
        As in :func:`usable_identities`; identities it finds unusable are left out.
    levels : iterable of float in [0, 1]
        Strengths of the bias, rising, 0 for none. They decide who is usable.
    kind : {"correlation", "longtail", "natural"}
        How the training set is biased. ``correlation``: every identity has a majority class, and
        :func:`minority_images` of its training images are of the other, the same number for everybody.
        The majority is drawn at random where both classes have the images for it, so that each class
        is the majority of the same number of people; where too few people could have one of them, others
        are left out at random. So the two classes have the same number of images at every level.
        ``longtail``: a person has the same number of images of each class, but that number falls from
        person to person, in random order, from ``1 + level`` times the mean to ``1 - level`` times it
        (and never below one image of each class). ``natural``: the data as they are, at level 0 only;
        all images train except the test images: held-out images of people with enough images to be
        tested, and those of the unseen people, who are drawn among these.
    images_per_identity : int
        Training images of a seen identity, of all (``correlation``) or on average (``longtail``): the
        training set has the same size at every level.
    test_per_class : int
        Held-out images of each class of every seen identity. Of an unseen one, all images of the rarer
        class and the same number of the other are test images.
    unseen_share : float in [0, 1)
        Share of the identities that is kept out of training.
    people : int, optional
        How many of the usable identities take part: the first by name; all without it.
    cohorts : bool or "repeated"
        True: give every seed ``people`` identities of its own, drawn at random, that no other seed has:
        independent replications. ``repeated``: the usable identities make as many such cohorts as they
        can, and the seeds take these in turn, each with draws of its own; where there are fewer than
        ``people``, all are one cohort.
    only : iterable of float, optional
        The levels to draw; all without it.

    Returns
    -------
    pandas.DataFrame
        One row an image of a set, by level and seed: ``level`` (:func:`built_level`), ``seed``, ``part``
        ("train", "seen" or "unseen"), ``row`` (of the data set), ``cell_size``: in training, how many
        training images share its person and class, 0 in the test sets and where the person is not known;
        and ``minority``: 1 if the image is of the class that is rare for its person in training, else 0,
        and NaN where no class is rare: in the long tail, for unseen or unknown people, and, under
        ``natural``, for people with the same number of images of each class.

    Raises
    ------
    ValueError
        On settings out of range, or too few usable identities: with numbers that would work.
    """
    identities = _numbered(identities)
    if not (identities > UNKNOWN).any():
        raise ValueError(f"no image says who it shows; {WITHOUT_IDENTITIES}")
    labels = np.asarray(labels)
    wanted = list(levels) if only is None else list(only)
    levels = sorted({*levels, *wanted})
    built_levels(wanted, images_per_identity, kind)
    if not 0 <= unseen_share < 1:
        raise ValueError(f"unseen_share is {unseen_share}; it must be in [0, 1)")

    def advise() -> str:
        return advice(identities, labels, images_per_identity, test_per_class, kind, levels)

    table = usable_identities(identities, labels, images_per_identity, test_per_class, kind, levels)
    usable = table[table["usable"]].reset_index(drop=True)
    cells = pd.Series(labels).groupby([identities, labels]).indices
    plans = []
    for seed, members in enumerate(_members(usable, seeds, people, cohorts, advise)):
        rng = np.random.default_rng(seed)
        plan = _plan(members, cells, kind, test_per_class, unseen_share, rng)
        if len(plan.seen) < 2:
            raise ValueError(
                f"{len(members)} of {identities.max() + 1} identities are usable with "
                f"bias.images_per_identity {images_per_identity} and bias.test_per_class "
                f"{test_per_class}; at least 2 for training are needed: {advise()}"
            )
        plans.append(plan)

    sets = []
    for level in wanted:
        for seed, plan in enumerate(plans):
            sizes = None if kind == "natural" else _sizes(plan, level, images_per_identity, kind)
            columns = _set(plan, sizes, identities, labels)
            images = len(columns["row"])
            level_column = np.full(images, built_level(level, images_per_identity, kind))
            sets.append({"level": level_column, "seed": np.full(images, seed), **columns})
    return pd.DataFrame({name: np.concatenate([one[name] for one in sets]) for name in sets[0]})


def check_draws(data, params: dict) -> None:
    """Draw what every stage of a study will draw, at one level, to find early what cannot work.

    Parameters
    ----------
    data
        Has ``labels(attribute)`` and ``identities()``, such as :class:`study.faces.dataset.FaceSet`.
    params : dict
        Of params.yaml ``task``, ``seeds``, ``bias``, ``tasks`` and ``kinds`` of breadth, ``level`` of
        proxies, ``ablation``, ``ablations`` and ``neighbours``.

    Raises
    ------
    ValueError
        If a stage could not draw its sets; the message names the key.
    """
    bias = params["bias"]
    smallest = {}  # training images of the smallest set of every draw
    unseen = {}  # whether anybody is kept out of training
    for draw in _draws(params):
        try:
            sets = draw_sets(
                data.identities(),
                data.labels(draw.attribute),
                seeds=draw.seeds,
                only=[draw.level],
                **draw.bias,
            )
        except ValueError as error:
            raise ValueError(f"params.yaml: {draw.name}: {error}") from None
        unseen[draw.name] = (sets["part"] == "unseen").any()
        train = sets[sets["part"] == "train"]
        smallest[draw.name] = train.groupby(["level", "seed"]).size().min()
    if not unseen["bias"]:
        raise ValueError(
            f"params.yaml: bias.unseen_share is {bias['unseen_share']}, which keeps nobody out of "
            "training; the report shows people never seen, so raise it to 1 / people or more, with at "
            "least 3 people"
        )
    neighbours = [(name, params["neighbours"]) for name in smallest]
    for varied in params["ablations"].values():
        if varied["setting"] == "weights.neighbours":
            neighbours += [("ablation", number) for number in varied["values"]]
    for name, number in neighbours:
        if number != "auto" and number >= smallest[name]:
            raise ValueError(
                f"params.yaml: weights.neighbours is {number}, but a training set of {name} has "
                f"{smallest[name]} images; take fewer than that, or auto"
            )


@dataclass(frozen=True)
class _Draw:
    """Sets that a stage will draw, at one level."""

    name: str  # the key of params.yaml, for messages
    attribute: str  # that gives the labels
    bias: dict  # the section ``bias`` of the stage
    seeds: int
    level: float


def _draws(params: dict) -> Iterator[_Draw]:
    task = params["task"]
    bias = params["bias"]
    seeds = params["seeds"]
    first = bias["levels"][0]
    ablation = params["ablation"]
    yield _Draw("bias", task, bias, seeds, first)
    for other in params["tasks"]:
        for kind in params["kinds"]:
            name = f"breadth, {other} under {kind}"
            yield _Draw(name, other, bias | {"kind": kind}, seeds, first)
    yield _Draw("proxies", task, bias, seeds, params["level"])
    yield _Draw("ablation", task, bias, ablation["seeds"], ablation["level"])
    for name, varied in params["ablations"].items():
        section, _, key = varied["setting"].partition(".")
        if section == "bias":
            for value in varied["values"]:
                changed = bias | {key: value}
                where = f"ablations.{name}, {value}"
                yield _Draw(where, task, changed, ablation["seeds"], ablation["level"])


@dataclass(frozen=True)
class _Plan:
    """What a seed decides, before the level is looked at."""

    people: np.ndarray  # numbers of the identities that take part
    seen: np.ndarray  # places, among these, of those in training
    chance: np.ndarray  # of all people, uniform: puts them in order
    majority: (
        np.ndarray | None
    )  # class of all people, under correlation; -1 for those not in training
    # Rows of images:
    held_out: list[np.ndarray]  # test images of the seen people, by person and class
    training: list[np.ndarray]  # their other images, in the order of use
    unseen: list[np.ndarray]  # test images of the unseen people, by person and class


def _plan(
    members: pd.DataFrame, cells: dict, kind: str, test_per_class: int, unseen_share: float, rng
) -> _Plan:
    """Draw the plan of a seed; ``cells`` are the rows of the images by person and class."""
    people = members["identity"].to_numpy()
    number = len(people)
    unseen = rng.choice(number, round(unseen_share * number), replace=False)
    # Drawn for every identity, seen or not, so that one draw never shifts the next.
    chance = rng.random(number)
    shuffled = [[rng.permutation(cells[person, c]) for c in (0, 1)] for person in people]

    seen = np.setdiff1d(np.arange(number), unseen)
    majority = None
    if kind == CORRELATED:
        can_be = members[["majority_0", "majority_1"]].to_numpy()
        majority = np.full(number, -1)
        majority[seen] = _majorities(can_be[seen], chance[seen], rng)
        seen = seen[majority[seen] >= 0]

    of_unseen = []
    for place in np.sort(unseen):
        rarer = min(len(rows) for rows in shuffled[place])
        of_unseen += [rows[:rarer] for rows in shuffled[place]]
    of_seen = [rows for place in seen for rows in shuffled[place]]
    return _Plan(
        people=people,
        seen=seen,
        chance=chance,
        majority=majority,
        held_out=[rows[:test_per_class] for rows in of_seen],
        training=[rows[test_per_class:] for rows in of_seen],
        unseen=of_unseen,
    )


def _sizes(plan: _Plan, level: float, images_per_identity: int, kind: str) -> np.ndarray:
    """Training images of every seen identity and class, shape (identities, 2)."""
    if kind == "longtail":
        return _long_tailed(level, images_per_identity, plan.chance[plan.seen])
    minority = minority_images(level, images_per_identity)
    is_majority = plan.majority[plan.seen][:, None] == [0, 1]
    return np.where(is_majority, images_per_identity - minority, minority)


def _set(plan: _Plan, sizes: np.ndarray | None, identities, labels) -> dict[str, np.ndarray]:
    """The images of a set as columns. With ``sizes`` None every image that tests nothing trains."""
    if sizes is None:
        unseen = np.isin(identities, np.delete(plan.people, plan.seen))
        rest = np.flatnonzero(~unseen & pd.notna(labels))
        train = [np.setdiff1d(rest, np.concatenate(plan.held_out))]
    else:
        train = [rows[:size] for rows, size in zip(plan.training, sizes.flat, strict=True)]
    parts = {"train": train, "seen": plan.held_out, "unseen": plan.unseen}
    none = np.empty(0, dtype=np.int64)  # because nobody can be unseen
    rows = {part: np.sort(np.concatenate([none, *cells])) for part, cells in parts.items()}
    part = np.repeat(list(rows), [len(own) for own in rows.values()])
    row = np.concatenate(list(rows.values()))

    person = identities[row]
    label = labels[row]
    trains = part == "train"
    # An unknown person's cell is the last one: nobody's.
    unknown = person == UNKNOWN
    cell = 2 * np.where(unknown, identities.max() + 1, person) + (label == 1)
    cell_sizes = np.bincount(cell[trains], minlength=2 * identities.max() + 4)
    cell_sizes[-2:] = 0
    minority = np.full(len(row), np.nan)
    if plan.majority is not None:
        majority = np.full(identities.max() + 1, -1)
        majority[plan.people] = plan.majority
        minority = (label != majority[person]).astype(float)
    elif sizes is None:
        own = cell_sizes[cell]
        other = cell_sizes[cell ^ 1]  # the person's other class
        minority = np.where(own == other, np.nan, own < other)
    minority[(part == "unseen") | unknown] = np.nan
    return {
        "part": part,
        "row": row,
        "cell_size": np.where(trains, cell_sizes[cell], 0),
        "minority": minority,
    }


def count_cohorts(usable: int, seeds: int, people: int | None, cohorts: bool | str) -> tuple:
    """How many different cohorts the seeds have, and how many people are in one, as in :func:`draw_sets`.

    ``usable`` is how many identities have enough images.
    """
    if not cohorts:
        return 1, usable if people is None else min(people, usable)
    if cohorts == REPEATED:
        size = min(people, usable)
        return min(seeds, usable // size) if size else 0, size
    return seeds, people


def _members(
    usable: pd.DataFrame, seeds: int, people: int | None, cohorts: bool | str, advise
) -> list[pd.DataFrame]:
    """The identities of every seed, of those usable."""
    n = len(usable)
    if cohorts == REPEATED and people is not None:
        if n < 2:  # which is refused where everybody takes part, too
            return [usable] * seeds
        people = min(people, n)
    if people is not None and not 2 <= people <= n:
        raise ValueError(
            f"bias.people is {people}; it must be null (all) or a number from 2 to {n}, the identities "
            f"with enough images; {advise()}"
        )
    if not cohorts:
        members = usable if people is None else usable[:people]
        return [members] * seeds
    if people is None:
        shown = str(cohorts).lower()
        raise ValueError(
            f"bias.cohorts is {shown}, so bias.people must say how many people one holds"
        )
    number, _ = count_cohorts(n, seeds, people, cohorts)
    if number * people > n:
        raise ValueError(
            f"{seeds} cohorts of {people} people need {seeds * people}, and {n} are usable; set seeds "
            f"to {n // people} at most, or bias.people to {n // seeds}, or bias.cohorts to {REPEATED}"
        )
    order = np.random.default_rng(0).permutation(n)
    places = [np.sort(order[c * people : (c + 1) * people]) for c in range(number)]
    members = [usable.iloc[of_cohort].reset_index(drop=True) for of_cohort in places]
    return [members[seed % number] for seed in range(seeds)]


def _majorities(can_be: np.ndarray, chance: np.ndarray, rng) -> np.ndarray:
    """The majority class of every identity, each class for the same number of people; -1 for people who
    would be one too many.

    ``can_be`` (people, 2) says which class a person's majority can be; ``chance`` puts people in order.
    """
    order = np.argsort(chance)
    both = can_be[:, 0] & can_be[:, 1]
    majority = np.where(both, -1, np.where(can_be[:, 1], 1, 0))
    free = order[majority[order] == -1]
    half = (len(can_be) + int(rng.integers(2))) // 2
    free_to_0 = int(np.clip(half - (majority == 0).sum(), 0, len(free)))
    majority[free[:free_to_0]] = 0
    majority[free[free_to_0:]] = 1
    surplus = (majority == 1).sum() - (majority == 0).sum()
    larger = order[majority[order] == (surplus > 0)]
    majority[larger[: abs(surplus)]] = -1
    return majority


def _long_tailed(level: float, images_per_identity: int, chance: np.ndarray) -> np.ndarray:
    """Training images of every identity and class, shape (identities, 2); ``chance`` gives the order."""
    people = len(chance)
    place = (np.argsort(np.argsort(chance)) + 0.5) / people
    exact = images_per_identity / 2 * (1 + level * (1 - 2 * place))
    sizes = np.maximum(1, np.floor(exact)).astype(int)
    # Whole numbers of the same sum at every level: the largest remainders round up, and what the
    # minimum of one image adds is taken from the people with the most images.
    short = people * images_per_identity // 2 - sizes.sum()
    if short > 0:
        sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    for _ in range(-short):
        sizes[np.argmax(sizes)] -= 1
    return np.stack([sizes, sizes], axis=1)
