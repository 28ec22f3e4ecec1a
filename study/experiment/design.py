"""Biased training sets with balanced test sets, built from a face data set and its identities.

A seed decides who takes part, who is never seen in training, which class is each person's majority,
which images are held out, and in which order images are used. All of this is drawn before the bias level
is looked at. Levels of one seed therefore share their test images and differ only in how many images of
each person and class are used: a curve over the level is a paired comparison.

A *cell* is a person and a class; there are two classes or more, numbered from 0. Identities are used here and in the evaluation only, never by a method
without identity labels. An image of which nobody knows who it shows is no test image; under ``natural`` it
trains. Where nobody is known at all, images are held out by chance (:func:`draw_images`), and a study is
judged by the audit without identities (:mod:`study.experiment.unidentified`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from study.experiment.levels import (
    CORRELATED,
    REPEATED,
    built_level,
    built_levels,
    minority_images,
)
from study.faces.tasks import task_labels

UNKNOWN = -1  # the number of an image's person where nobody knows who it shows
HELD_OUT = "held-out"  # the part of a set that tests where nobody is known
WITHOUT_IDENTITIES = (
    "a study tests models person by person, so name the people of more images, or import them without the "
    "column 'identity': the study is then judged by the audit without identities"
)
# What compares people, and is left out where nobody is known.
OF_PEOPLE = "breadth, ablation and proxies, and every metric of people"
FEW = 20  # below this many usable people, suggest settings that would include more
LEAST = 2  # people that a training set must have


class DoesNotFit(ValueError):
    """Settings are in order, but the data have too few people or images for them."""


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
    each other one, what the weakest level takes of a minority class. Under ``longtail`` they are, of each
    class, what the head of the distribution takes at the strongest level. Under ``natural``, where
    everybody's images train, they are one of each class.

    Parameters
    ----------
    identities, labels : array, shape (n,)
        Who each image shows, None or below 0 where that is not known; and its label: a class from 0, or NaN
        for an image without one, which takes no part.

    Returns
    -------
    pandas.DataFrame
        One row an identity, in sorted order: ``identity``, ``class_0``, ``class_1``, ... (image counts),
        ``usable``, ``majority_0``, ``majority_1``, ... (whether that class can be its majority), ``reason``
        (empty when usable).
    """
    table = _counts(identities, labels)
    counts = _of_classes(table, "class")
    classes = counts.shape[1]
    most, least = _needed(images_per_identity, test_per_class, kind, levels, classes)
    # Every class has images to be a minority, and the majority class those to be it.
    can_be = (counts >= most) & ((counts >= least).sum(axis=1) == classes)[:, None]
    usable = can_be.any(axis=1)
    other = "the other" if classes == 2 else "each other"
    if most == least:
        needed = f"{most} of each"
    else:
        needed = f"{most} of one and {least} of {other}"
    if classes == 2:
        found = [f"{a} images of one class, {b} of the other" for a, b in counts]
    else:
        found = [f"{', '.join(map(str, own))} images of the {classes} classes" for own in counts]
    reasons = [f"{own}; {needed} are needed" for own in found]
    majorities = {f"majority_{code}": can_be[:, code] for code in range(classes)}
    return table.assign(usable=usable, **majorities, reason=np.where(usable, "", reasons))


def number_of_classes(labels) -> int:
    """How many classes some labels have: one more than the largest, and at least two."""
    labels = np.asarray(labels, dtype=float)
    labels = labels[np.isfinite(labels)]
    return max(2, int(labels.max(initial=0)) + 1)


def _counts(identities, labels) -> pd.DataFrame:
    """Images of each class of every identity that has a labelled image."""
    known = pd.notna(labels) & is_known(identities)
    names, codes = np.unique(np.asarray(identities)[known], return_inverse=True)
    classes = number_of_classes(labels)
    labels = np.asarray(labels)[known]
    counts = {
        f"class_{code}": np.bincount(codes[labels == code], minlength=len(names))
        for code in range(classes)
    }
    return pd.DataFrame({"identity": names, **counts})


def _of_classes(table: pd.DataFrame, what: str) -> np.ndarray:
    """The columns ``what_0``, ``what_1``, ... of a table of people, (people, classes)."""
    columns = [name for name in table if name.startswith(f"{what}_")]
    return table[columns].to_numpy()


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


def _needed(
    images_per_identity: int, test_per_class: int, kind: str, levels, classes: int
) -> tuple[int, int]:
    """Images of the majority class and of each other one from which all levels can be built."""
    levels = list(levels)
    if kind == "natural":
        majority = minority = 1
    elif kind == "longtail":
        majority = minority = math.ceil(images_per_identity / classes * (1 + max(levels)))
    else:
        majority = images_per_identity - minority_images(max(levels), images_per_identity, classes)
        of_all_others = minority_images(min(levels), images_per_identity, classes)
        minority = math.ceil(of_all_others / (classes - 1))
    return majority + test_per_class, minority + test_per_class


def advice(identities, labels, images_per_identity, test_per_class, kind, levels) -> str:
    """Suggest numbers with which more people would train, or say why none would help.

    People are counted after majorities are balanced, or as they come where balancing leaves nobody; those
    that ``bias.unseen_share`` keeps out of training are still among them.
    """

    def training(images: int, tests: int) -> int:
        table = usable_identities(identities, labels, images, tests, kind, levels)
        return most_in_training(table, kind)

    now = training(images_per_identity, test_per_class)
    counts = _of_classes(_counts(identities, labels), "class")
    classes = counts.shape[1]
    largest = classes * int(counts.max(initial=0))  # that anybody could have
    most = min(images_per_identity, largest)
    sizes = range(most - most % classes, 1, -classes)
    offers = []
    for tests in dict.fromkeys((test_per_class, 1)):
        # As many images as possible for FEW people; if there are fewer, for the most people.
        people = {images: training(images, tests) for images in sizes}
        enough = [images for images, number in people.items() if number >= FEW]
        images = enough[0] if enough else max(people, key=people.get, default=0)
        if images and people[images] >= max(now + 1, LEAST):
            offers.append(
                f"with images_per_identity {images} and test_per_class {tests}: "
                f"{people[images]} people"
            )
    return "; ".join(offers) or _no_numbers_help(counts, now)


def most_in_training(table: pd.DataFrame, kind: str) -> int:
    """How many people of :func:`usable_identities` could train at most, if none were kept out."""
    usable = int(table["usable"].sum())
    if kind != CORRELATED:
        return usable
    can_be = _of_classes(table[table["usable"]], "majority")
    majority = _majorities(can_be, np.arange(usable), np.random.default_rng(0))
    balanced = int((majority >= 0).sum())
    return balanced if balanced >= LEAST else usable


def _no_numbers_help(counts: np.ndarray, now: int) -> str:
    """Why no other numbers would include more people; ``counts`` (people, classes) are images by class."""
    people = len(counts)
    of_all = "both classes" if counts.shape[1] == 2 else f"all {counts.shape[1]} classes"
    vary = int((counts > 0).all(axis=1).sum())
    if people == 1:
        return "the data show one person, and bias between people needs several"
    if vary < LEAST:
        who = "none" if vary == 0 else "one"
        return (
            f"{who} of the {people} people has images of {of_all}, so no other numbers would help"
        )
    if now >= vary - 1:  # balanced majorities leave out one of an odd number
        return (
            f"nearly all of the {vary} people with images of {of_all} take part, so only more people "
            "would help"
        )
    if now >= LEAST:
        return (
            "no other numbers would include more people, so only more images or people would help"
        )
    twice = int((counts > 1).all(axis=1).sum())
    have = {0: "nobody has", 1: "only one of them has"}.get(twice, f"only {twice} of them have")
    return (
        f"{vary} of the {people} people have images of {of_all}, but {have} a training and a test image "
        "of each, so only more images would help"
    )


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
        :func:`minority_images` of its training images are of the other, the same number for everybody;
        several others share them as evenly as whole images allow.
        The majority is drawn at random where several classes have the images for it, so that each class
        is the majority of the same number of people; where too few people could have one of them, others
        are left out at random. So all classes have the same number of images at every level (of more than
        two, but for single images where the others cannot share evenly). Where
        that would leave fewer than two people in a training set, as with an attribute that is rare for
        everybody, nobody is left out and majorities stay *as they come*: the classes are then unequal.
        ``longtail``: a person has the same number of images of each class, but that number falls from
        person to person, in random order, from ``1 + level`` times the mean to ``1 - level`` times it
        (and never below one image of each class). ``natural``: the data as they are, at level 0 only;
        all images train except the test images: held-out images of people with enough images to be
        tested, and those of the unseen people, who are drawn among these.
    images_per_identity : int
        Training images of a seen identity, of all (``correlation``) or on average (``longtail``): the
        training set has the same size at every level.
    test_per_class : int
        Held-out images of each class of every seen identity. Of an unseen one, all images of the rarest
        class and the same number of each other are test images.
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
        ``natural``, for people with the same number of images of each class. Where nobody is known:
        :func:`draw_images`.

    Raises
    ------
    ValueError
        On settings out of range.
    DoesNotFit
        If too few people are usable, with numbers that would work, or the cause where there are none.
    """
    labels = np.asarray(labels)
    if not is_known(identities).any():
        return draw_images(labels, seeds=seeds, kind=kind, share=unseen_share)
    identities = _numbered(identities)
    classes = number_of_classes(labels)
    wanted = list(levels) if only is None else list(only)
    levels = sorted({*levels, *wanted})
    built_levels(wanted, images_per_identity, kind, classes)
    if not 0 <= unseen_share < 1:
        raise ValueError(f"unseen_share is {unseen_share}; it must be in [0, 1)")

    def advise() -> str:
        return advice(identities, labels, images_per_identity, test_per_class, kind, levels)

    table = usable_identities(identities, labels, images_per_identity, test_per_class, kind, levels)
    usable = table[table["usable"]].reset_index(drop=True)
    cells = pd.Series(labels).groupby([identities, labels]).indices
    members = _members(usable, seeds, people, cohorts, advise)

    def plan(balanced: bool) -> list[_Plan]:
        draw = partial(_plan, cells=cells, kind=kind, test_per_class=test_per_class)
        return [
            draw(own, unseen_share=unseen_share, rng=np.random.default_rng(seed), balanced=balanced)
            for seed, own in enumerate(members)
        ]

    plans = plan(balanced=True)
    if kind == CORRELATED and min(len(one.seen) for one in plans) < LEAST:
        plans = plan(balanced=False)
    fewest = min(plans, key=lambda one: len(one.seen))
    if len(fewest.seen) < LEAST:
        where = (
            f"{len(fewest.people)} of {identities.max() + 1} identities are usable with "
            f"bias.images_per_identity {images_per_identity} and bias.test_per_class {test_per_class}; "
            f"at least {LEAST} for training are needed"
        )
        raise DoesNotFit(f"{where}: {_too_few(fewest, unseen_share) or advise()}")
    if kind == CORRELATED and minority_images(max(levels), images_per_identity, classes) == 0:
        if any(len(np.unique(one.majority[one.seen])) < classes for one in plans):
            lacks = "everybody's majority is the same class, so a training set would hold one class"
            if classes > 2:
                lacks = "a class is nobody's majority, so a training set would lack it"
            raise DoesNotFit(
                f"bias level {max(levels):g} takes no image of anybody's minority class, and {lacks}; lower "
                "the level"
            )

    sets = []
    for level in wanted:
        for seed, plan in enumerate(plans):
            sizes = None
            if kind != "natural":
                sizes = _sizes(plan, level, images_per_identity, kind, classes)
            columns = _set(plan, sizes, identities, labels)
            images = len(columns["row"])
            level_column = np.full(images, built_level(level, images_per_identity, kind, classes))
            sets.append({"level": level_column, "seed": np.full(images, seed), **columns})
    return pd.DataFrame({name: np.concatenate([one[name] for one in sets]) for name in sets[0]})


def draw_images(labels, *, seeds: int, kind: str, share: float) -> pd.DataFrame:
    """Split images of which nobody knows whom they show: a share is held out, all others train.

    Held-out images are drawn at random, so that they are as biased as those that train. Nobody knows whether
    their people have other images in training, so that they are called neither seen nor unseen.

    Parameters
    ----------
    labels, seeds, kind
        As in :func:`draw_sets`.
    share : float in [0, 1)
        Of the labelled images, at least one.

    Returns
    -------
    pandas.DataFrame
        As from :func:`draw_sets`, at level 0, of the parts ``train`` and :data:`HELD_OUT`; ``cell_size`` is 0
        and ``minority`` NaN.

    Raises
    ------
    ValueError
        Under another kind than ``natural``, as a bias is built from people, or if a training set would lack a
        class.
    """
    if kind != "natural":
        raise ValueError(
            f"no image says who it shows, and bias.kind is {kind}, which builds a bias from people; write "
            "kind: natural and levels: [0.0], or name the people"
        )
    labels = np.asarray(labels, dtype=float)
    rows = np.flatnonzero(np.isfinite(labels))
    tested = min(max(1, round(share * len(rows))), len(rows) - 1)
    sets = []
    for seed in range(seeds):
        held_out = np.random.default_rng(seed).choice(rows, tested, replace=False)
        train = np.setdiff1d(rows, held_out)
        if len(np.unique(labels[train])) < 2:
            raise DoesNotFit(
                "a training set would hold one class; label more images, or lower bias.unseen_share"
            )
        part = np.repeat(["train", HELD_OUT], [len(train), tested])
        row = np.concatenate([train, np.sort(held_out)])
        sets.append(pd.DataFrame({"level": 0.0, "seed": seed, "part": part, "row": row}))
    return pd.concat(sets, ignore_index=True).assign(cell_size=0, minority=np.nan)


def _too_few(plan: "_Plan", unseen_share: float) -> str:
    """Why a plan has too few people in training, if that is because others are kept out; else ""."""
    people = len(plan.people)
    if people < LEAST or round(unseen_share * people) == 0:
        return ""
    kept_out = f"bias.unseen_share {unseen_share} keeps {round(unseen_share * people)} of them out"
    if people == LEAST:
        return f"{kept_out}, and a third person is needed to be kept out"
    return (
        f"{kept_out}; lower it to {math.floor(1000 * (people - LEAST) / people) / 1000:g} at most"
    )


# ---- what the data allow -----------------------------------------------------------------------


def _left_out_by_balance(identities, labels, bias: Mapping) -> list[str]:
    """A line if balanced majorities keep more than half of those out of training who could take part."""
    settings = (bias[key] for key in ("images_per_identity", "test_per_class", "kind", "levels"))
    table = usable_identities(identities, labels, *settings)
    usable = int(table["usable"].sum())
    training = most_in_training(table, bias["kind"])
    if 2 * training >= usable:
        return []
    can_be = _of_classes(table[table["usable"]], "majority").sum(axis=0)
    return [
        f"At most {training} of {usable} usable people train, because every class is the majority of the "
        f"same number of people, and only {can_be.min()} have enough images of class {can_be.argmin()} for "
        "it: with fewer bias.images_per_identity more could, and bias.kind natural takes everybody."
    ]


def check_draws(data, params: Mapping) -> list[str]:
    """Draw what every stage of a study will draw, at one level, to find early what cannot work.

    Parameters
    ----------
    data
        Has ``labels(attribute)`` and ``identities()``, such as :class:`study.faces.dataset.FaceSet`.
    params : mapping
        Of params.yaml ``task``, ``seeds``, ``bias``, ``tasks`` and ``kinds`` of breadth, ``level`` of
        proxies, ``ablation``, ``ablations`` and ``neighbours``.

    Returns
    -------
    list of str
        A line for everything that the stages ``breadth`` and ``ablate`` will leave out, because the data
        do not allow it, and one if majorities stay as they come, or leave out most people.

    Raises
    ------
    ValueError
        If the study itself, its proxies, or all of its breadth could not be drawn; the message names the key.
    """
    notes = []
    bias = params["bias"]
    neighbours = params["neighbours"]
    identities = data.identities()
    if not is_known(identities).any():
        return [_check_images(data, params)]
    for name, level in (("bias", bias["levels"][0]), ("proxies", params["level"])):
        try:
            labels = task_labels(data, params["task"])
            sets = draw_sets(identities, labels, seeds=params["seeds"], only=[level], **bias)
        except ValueError as error:
            raise ValueError(f"params.yaml: {name}: {error}") from None
        if problem := _too_many_neighbours(sets, neighbours):
            raise ValueError(f"params.yaml: {problem} of {name}; take fewer than that, or auto")
        if not (sets["part"] == "unseen").any():
            raise ValueError(
                f"params.yaml: bias.unseen_share is {bias['unseen_share']}, which keeps nobody out of "
                "training; the report shows people never seen, so raise it to 1 / people or more, with at "
                "least 3 people"
            )
        if name == "bias" and bias["kind"] == CORRELATED and unequal_classes(sets, labels):
            notes.append(
                "Majorities stay as they come, because hardly anybody has enough images for both classes to "
                "be the majority: classes are unequal, so compare with balanced what balances them."
            )
        elif name == "bias":
            notes += _left_out_by_balance(identities, labels, bias)
    studies, left_out = fitting_breadth(
        data, bias, params["seeds"], params["tasks"], params["kinds"], neighbours
    )
    if not studies:
        raise ValueError(f"params.yaml: {left_out[0]}")
    _, values_left_out = fitting_ablations(
        identities,
        labels,
        bias,
        params["ablation"],
        params["ablations"],
        neighbours,
    )
    return notes + [f"Will be left out: {line}" for line in left_out + values_left_out]


def _check_images(data, params: Mapping) -> str:
    """Draw the sets of data of which nobody is known; return a note on what the study leaves out."""
    bias = params["bias"]
    try:
        labels = task_labels(data, params["task"])
        sets = draw_images(
            labels, seeds=params["seeds"], kind=bias["kind"], share=bias["unseen_share"]
        )
    except ValueError as error:
        raise ValueError(f"params.yaml: bias: {error}") from None
    if problem := _too_many_neighbours(sets, params["neighbours"]):
        raise ValueError(f"params.yaml: {problem} of bias; take fewer than that, or auto")
    return (
        f"No image says who it shows: {bias['unseen_share']:.0%} of the images are held out at random, and models "
        f"are judged by the audit without identities. Will be left out: {OF_PEOPLE}."
    )


def fitting_breadth(
    data, bias: Mapping, seeds: int, tasks: Iterable[str], kinds: Iterable[str], neighbours
) -> tuple[list[tuple[str, str]], list[str]]:
    """Find the tasks and kinds of bias of which the data allow sets, kind after kind.

    ``data`` is as in :func:`check_draws`; ``neighbours`` is ``weights.neighbours``.

    Returns
    -------
    list of (str, str)
        Pairs of a task and a kind.
    list of str
        A line for each of the others, which says why.

    Raises
    ------
    ValueError
        If the data have no such attribute.
    """
    fitting = []
    left_out = []
    for kind in kinds:
        for task in tasks:
            name = f"breadth, {task} under {kind}"
            try:
                labels = task_labels(data, task)
            except ValueError as error:
                raise ValueError(f"params.yaml: {name}: {error}") from None
            problem = _misfit(
                data.identities(),
                labels,
                seeds,
                bias["levels"][0],
                {**bias, "kind": kind},
                neighbours,
            )
            if problem:
                left_out.append(f"{name}: {problem}")
            else:
                fitting.append((task, kind))
    return fitting, left_out


def fitting_ablations(
    identities, labels, bias: Mapping, ablation: Mapping, ablations: Mapping, neighbours
) -> tuple[dict, list[str]]:
    """Find the values of every ablation for which the data allow sets.

    ``ablation``, ``ablations`` and ``neighbours`` are of params.yaml. An ablation without a value is left
    out; all are where the study cannot be drawn with ``ablation.seeds`` at ``ablation.level``.

    Returns
    -------
    dict
        As ``ablations``.
    list of str
        A line for each value that is left out, which says why.
    """
    misfit = partial(_misfit, identities, labels, ablation["seeds"], ablation["level"])
    if problem := misfit(bias, neighbours):
        return {}, [f"ablation: {problem}"] if ablations else []
    fitting = {}
    left_out = []
    for name, varied in ablations.items():
        section, _, key = varied["setting"].partition(".")
        values = []
        for value in varied["values"]:
            problem = ""
            if section == "bias":
                problem = misfit({**bias, key: value}, neighbours)
            elif varied["setting"] == "weights.neighbours":
                problem = misfit(bias, value)
            if problem:
                left_out.append(f"ablations.{name}, {value}: {problem}")
            else:
                values.append(value)
        if values:
            fitting[name] = {**varied, "values": values}
    return fitting, left_out


def _misfit(identities, labels, seeds: int, level: float, bias: Mapping, neighbours) -> str:
    """Why the data allow no such sets at a level, or no weights on them; "" if they do."""
    try:
        sets = draw_sets(identities, labels, seeds=seeds, only=[level], **bias)
    except DoesNotFit as error:
        return str(error)
    return _too_many_neighbours(sets, neighbours)


def _too_many_neighbours(sets: pd.DataFrame, neighbours: int | str) -> str:
    """That the smallest training set has no more images than a method looks at; "" if it has."""
    smallest = sets[sets["part"] == "train"].groupby(["level", "seed"]).size().min()
    if neighbours == "auto" or neighbours < smallest:
        return ""
    return f"weights.neighbours is {neighbours}, but a training set has {smallest} images"


def unequal_classes(sets: pd.DataFrame, labels) -> bool:
    """Whether a training set of :func:`draw_sets` has more images of one class than of another.

    Of more than two classes single images are not counted, which the others of a majority cannot share
    evenly. So it is under ``natural``, and under ``correlation`` where majorities stay as they come. A method that
    balances classes then gains by that alone, so it is compared with plain training that does.
    """
    train = sets[sets["part"] == "train"]
    classes = number_of_classes(labels)
    own = np.asarray(labels)[train["row"]]
    sets = train.groupby(["level", "seed"]).ngroup().to_numpy()
    sizes = np.stack(
        [np.bincount(sets[own == code], minlength=sets.max() + 1) for code in range(classes)]
    )
    spare = classes - 1 if classes > 2 else 0
    return bool((sizes.max(axis=0) - sizes.min(axis=0) > spare).any())


@dataclass(frozen=True)
class _Plan:
    """What a seed decides, before the level is looked at."""

    people: np.ndarray  # numbers of the identities that take part
    seen: np.ndarray  # places, among these, of those in training
    chance: np.ndarray  # of all people, uniform: puts them in order
    # Class of all people, under correlation; -1 for those not in training.
    majority: np.ndarray | None
    # Rows of images:
    held_out: list[np.ndarray]  # test images of the seen people, by person and class
    training: list[np.ndarray]  # their other images, in the order of use
    unseen: list[np.ndarray]  # test images of the unseen people, by person and class


def _plan(
    members: pd.DataFrame,
    *,
    cells: dict,
    kind: str,
    test_per_class: int,
    unseen_share: float,
    rng,
    balanced: bool,
) -> _Plan:
    """Draw the plan of a seed; ``cells`` are the rows of the images by person and class.

    ``balanced`` is whether people are left out so that each class is the majority of equally many.
    """
    people = members["identity"].to_numpy()
    number = len(people)
    unseen = rng.choice(number, round(unseen_share * number), replace=False)
    # Drawn for every identity, seen or not, so that one draw never shifts the next.
    chance = rng.random(number)
    classes = [name for name in members if name.startswith("class_")]
    codes = range(len(classes))
    shuffled = [[rng.permutation(cells[person, code]) for code in codes] for person in people]

    seen = np.setdiff1d(np.arange(number), unseen)
    majority = None
    if kind == CORRELATED:
        can_be = _of_classes(members, "majority")
        majority = np.full(number, -1)
        majority[seen] = _majorities(can_be[seen], chance[seen], rng, balanced)
        seen = seen[majority[seen] >= 0]

    of_unseen = []
    for place in np.sort(unseen):
        rarest = min(len(rows) for rows in shuffled[place])
        of_unseen += [rows[:rarest] for rows in shuffled[place]]
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


def _sizes(
    plan: _Plan, level: float, images_per_identity: int, kind: str, classes: int
) -> np.ndarray:
    """Training images of every seen identity and class, shape (identities, classes)."""
    if kind == "longtail":
        return _long_tailed(level, images_per_identity, plan.chance[plan.seen], classes)
    minority = minority_images(level, images_per_identity, classes)
    majority = plan.majority[plan.seen]
    each, left = divmod(minority, classes - 1)
    sizes = np.full((len(majority), classes), each)
    if left:
        # The classes after a person's majority class, in a circle, take turns with the images left over, so
        # that over the people of one majority class each has as many of them, or one more.
        for code in range(classes):
            people = np.flatnonzero(majority == code)
            people = people[np.argsort(plan.chance[plan.seen][people])]
            turns = (np.arange(len(people))[:, None] * left + np.arange(left)) % (classes - 1)
            sizes[people[:, None], (code + 1 + turns) % classes] += 1
    sizes[np.arange(len(majority)), majority] = images_per_identity - minority
    return sizes


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
    # The cells of unknown people are the last ones: nobody's.
    unknown = person == UNKNOWN
    classes = number_of_classes(labels)
    cell = classes * np.where(unknown, identities.max() + 1, person) + label.astype(int)
    cell_sizes = np.bincount(cell[trains], minlength=classes * (identities.max() + 2))
    cell_sizes[-classes:] = 0
    minority = np.full(len(row), np.nan)
    if plan.majority is not None:
        majority = np.full(identities.max() + 1, -1)
        majority[plan.people] = plan.majority
        minority = (label != majority[person]).astype(float)
    elif sizes is None:
        own = cell_sizes[cell]
        of_person = cell_sizes.reshape(-1, classes)
        largest = of_person.max(axis=1)[cell // classes]
        smallest = of_person.min(axis=1)[cell // classes]
        minority = np.where(largest == smallest, np.nan, own < largest)
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
    if n < LEAST:  # which is refused as where everybody takes part
        return [usable] * seeds
    if cohorts == REPEATED and people is not None:
        people = min(people, n)
    if people is not None and not LEAST <= people <= n:
        raise DoesNotFit(
            f"bias.people is {people}; it must be null (all) or a number from 2 to {n}, the identities "
            f"with enough images; {advise()}"
        )
    if not cohorts:
        members = usable if people is None else usable[:people]
        return [members] * seeds
    if people is None:
        shown = str(cohorts).lower()
        raise DoesNotFit(
            f"bias.cohorts is {shown}, so bias.people must say how many people one holds"
        )
    number, _ = count_cohorts(n, seeds, people, cohorts)
    if number * people > n:
        raise DoesNotFit(
            f"{seeds} cohorts of {people} people need {seeds * people}, and {n} are usable; set seeds "
            f"to {n // people} at most, or bias.people to {n // seeds}, or bias.cohorts to {REPEATED}"
        )
    order = np.random.default_rng(0).permutation(n)
    places = [np.sort(order[c * people : (c + 1) * people]) for c in range(number)]
    members = [usable.iloc[of_cohort].reset_index(drop=True) for of_cohort in places]
    return [members[seed % number] for seed in range(seeds)]


def _majorities(can_be: np.ndarray, chance: np.ndarray, rng, balanced: bool = True) -> np.ndarray:
    """The majority class of every identity, each class for the same number of people; -1 for people who
    would be one too many.

    ``can_be`` (people, classes) says which class a person's majority can be; ``chance`` puts people in order.
    Unless ``balanced``, nobody is one too many.
    """
    people, classes = can_be.shape
    order = np.argsort(chance)
    choices = can_be.sum(axis=1)
    majority = np.where(choices == 1, can_be.argmax(axis=1), -1)
    # Who may be several things joins, in order, the first class that has fewer people than its share.
    quota = _quotas(people, classes, rng)
    free = order[majority[order] == -1]
    for code in range(classes):
        still_free = free[majority[free] == -1]
        fitting = still_free[can_be[still_free, code]]
        if code == classes - 1:
            wanted = len(fitting)
        else:
            wanted = int(np.clip(quota[code] - (majority == code).sum(), 0, len(fitting)))
        majority[fitting[:wanted]] = code
    for person in free[majority[free] == -1]:  # who cannot be of the last class
        sizes = np.bincount(majority[majority >= 0], minlength=classes)
        majority[person] = np.where(can_be[person], sizes, people + 1).argmin()
    if not balanced:
        return majority
    sizes = np.bincount(majority, minlength=classes)
    for code in range(classes):
        members = order[majority[order] == code]
        majority[members[: sizes[code] - sizes.min()]] = -1
    return majority


def _quotas(people: int, classes: int, rng) -> np.ndarray:
    """How many people have each class as their majority, (classes,): the same number, or one more by lot."""
    if classes == 2:  # as it was drawn before there were more
        first = (people + int(rng.integers(2))) // 2
        return np.array([first, people - first])
    return (people + rng.permutation(classes)) // classes


def _long_tailed(
    level: float, images_per_identity: int, chance: np.ndarray, classes: int
) -> np.ndarray:
    """Training images of every identity and class, (identities, classes); ``chance`` gives the order."""
    people = len(chance)
    place = (np.argsort(np.argsort(chance)) + 0.5) / people
    exact = images_per_identity / classes * (1 + level * (1 - 2 * place))
    sizes = np.maximum(1, np.floor(exact)).astype(int)
    # Whole numbers of the same sum at every level: the largest remainders round up, and what the
    # minimum of one image adds is taken from the people with the most images.
    short = people * images_per_identity // classes - sizes.sum()
    if short > 0:
        sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    for _ in range(-short):
        sizes[np.argmax(sizes)] -= 1
    return np.repeat(sizes[:, None], classes, axis=1)
