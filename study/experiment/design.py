"""Biased training sets with balanced test sets, built from a face data set and its identities.

Everything a seed decides (who takes part, who is never seen in training, which class is whose majority,
which images are held out, in which order images are used) is drawn before the bias level is looked at.
Levels of one seed therefore share their test images and differ only in how many images of which person
and class are used: a curve over the level is a paired comparison.

Identities are used here and in the evaluation only, never by a method without identity labels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from study.experiment.levels import CORRELATED, built_level, built_levels, minority_images

FEW = 20  # people with fewer than this usable say little, and numbers that would give more are offered


def usable_identities(
    identities, labels, images_per_identity: int, test_per_class: int, kind: str = CORRELATED,
    levels: Iterable[float] = (0.0, 1.0),
) -> pd.DataFrame:  # fmt: skip
    """Which identities have enough images for all levels asked for, and why the others do not.

    Besides ``test_per_class`` test images of either class an identity needs, under ``correlation``, of
    its majority class what the strongest level takes and of the other what the weakest takes, whichever
    of the classes these are; under ``longtail``, of either class what the head of the distribution takes
    at the strongest level; and under ``natural``, where everybody's images train, one of either class.

    Parameters
    ----------
    identities, labels : array, shape (n,)
        Of every image, who is on it and its label, 0 or 1, or NaN where it has none: such an image takes
        no part.

    Returns
    -------
    pandas.DataFrame
        One row an identity, in sorted order: ``identity``, ``class_0``, ``class_1`` (image counts),
        ``usable``, ``majority_0``, ``majority_1`` (whether that class may be its majority), ``reason``
        (empty when usable).
    """
    counts, (most, least) = _counts(identities, labels), _needed(
        images_per_identity, test_per_class, kind, levels
    )  # fmt: skip
    own = counts[["class_0", "class_1"]].to_numpy()
    able = np.stack([(own[:, c] >= most) & (own[:, 1 - c] >= least) for c in (0, 1)], axis=1)
    needed = f"{most} of either" if most == least else f"{most} of one and {least} of the other"
    why = [f"{a} images of one class, {b} of the other; {needed} are needed" for a, b in own]
    usable = able.any(axis=1)
    return counts.assign(
        usable=usable,
        majority_0=able[:, 0],
        majority_1=able[:, 1],
        reason=np.where(usable, "", why),
    )


def _counts(identities, labels) -> pd.DataFrame:
    """Images of either class of every identity that has a labelled one."""
    known = pd.notna(labels)
    names, codes = np.unique(np.asarray(identities)[known], return_inverse=True)
    labels = np.asarray(labels)[known]
    counts = [np.bincount(codes[labels == c], minlength=len(names)) for c in (0, 1)]
    return pd.DataFrame({"identity": names, "class_0": counts[0], "class_1": counts[1]})


def _needed(k: int, test_per_class: int, kind: str, levels) -> tuple[int, int]:
    """Images of the majority class and of the other that all levels can be built from."""
    levels = list(levels)
    if kind == "natural":
        sizes = 1, 1
    elif kind == "longtail":
        sizes = (math.ceil(k / 2 * (1 + max(levels))),) * 2
    else:
        sizes = k - minority_images(max(levels), k), minority_images(min(levels), k)
    return sizes[0] + test_per_class, sizes[1] + test_per_class


def advice(identities, labels, images_per_identity, test_per_class, kind, levels) -> str:
    """Numbers under which more identities would be usable, or that none would help."""

    def usable(*numbers: int) -> int:
        return int(usable_identities(identities, labels, *numbers, kind, levels)["usable"].sum())

    now, offers = usable(images_per_identity, test_per_class), []
    classes = _counts(identities, labels)[["class_0", "class_1"]].to_numpy()
    most = min(images_per_identity, 2 * int(classes.max(initial=0)))  # that anybody could have
    sizes = range(most - most % 2, 1, -2)
    for t in dict.fromkeys(
        (test_per_class, 1)
    ):  # as many images as possible for FEW people, or most people
        counts = {k: usable(k, t) for k in sizes}
        enough = [k for k, n in counts.items() if n >= FEW] or [max(counts, key=counts.get)]
        k = enough[0]
        if counts[k] > max(now, 3):
            said = f"with images_per_identity {k} and test_per_class {t}: {counts[k]} people"
            offers.append(said)
    return "; ".join(offers) or (
        "the attribute hardly varies within people, so no other numbers would help"
    )


def draw_sets(
    identities, labels, *, seeds: int, levels, kind: str, images_per_identity: int,
    test_per_class: int, unseen_share: float, people: int | None = None, cohorts: bool = False,
    only: Iterable[float] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The training and test sets of every level and of seeds 0 .. seeds - 1.

    Parameters
    ----------
    identities, labels
        As in :func:`usable_identities`; identities it finds unusable are left out.
    levels : iterable of float in [0, 1]
        Strengths of the bias, rising, 0 for none. They decide who is usable.
    kind : {"correlation", "longtail", "natural"}
        How the training set is biased. ``correlation``: every identity has a majority class, and
        :func:`minority_images` of its training images are of the other, the same number for everybody.
        The majority is drawn at random where both classes have the images for it, so that either class
        is the majority of as many people; where too few people could have one of them, others are left
        out at random. So the two classes have the same number of images at every level.
        ``longtail``: as many images of either class, but the number of images falls from identity to
        identity, in random order, from ``1 + level`` times the mean to ``1 - level`` times it (and
        never below one image of either class). ``natural``: the data as they are, at level 0 only; all
        images train but the held-out ones of people with enough images to be tested, and those of
        the unseen people, who are drawn among these.
    images_per_identity : int
        Training images of a seen identity, of all (``correlation``) or on average (``longtail``): the
        training set is as large at every level.
    test_per_class : int
        Held-out images of either class of every seen identity; all that are balanced of an unseen one.
    unseen_share : float in [0, 1)
        Share of the identities that is kept out of training.
    people : int, optional
        How many of the usable identities take part: the first by name; all without it.
    cohorts : bool
        Give every seed ``people`` identities of its own, drawn at random, that no other seed has:
        independent replications.
    only : iterable of float, optional
        The levels to draw; all without it.

    Returns
    -------
    pandas.DataFrame
        One row an image of a set, by level and seed: ``level`` (:func:`built_level`), ``seed``, ``part``
        ("train", "seen" or "unseen"), ``row`` (of the data set), ``cell_size``: in training, how many
        training images share its person and class, 0 in the test sets; and ``minority``: whether the
        image is of the class that is rare for its person in training, 1 or 0, and NaN where there is
        none: in the long tail, of unseen people, and of as many images of either class by nature.

    Raises
    ------
    ValueError
        On settings out of range, or too few usable identities: with numbers that would work.
    """
    # People as numbers, in the order of their names: quicker to group by, a hundred times.
    identities, labels = np.unique(identities, return_inverse=True)[1], np.asarray(labels)
    wanted = list(levels) if only is None else list(only)
    levels = sorted({*levels, *wanted})
    built_levels(wanted, images_per_identity, kind)
    if not 0 <= unseen_share < 1:
        raise ValueError(f"unseen_share is {unseen_share}; it must be in [0, 1)")
    args = images_per_identity, test_per_class, kind, levels
    table = usable_identities(identities, labels, *args)
    table = table[table["usable"]].reset_index(drop=True)
    members = _members(table, seeds, people, cohorts, lambda: advice(identities, labels, *args))
    cells = pd.Series(labels).groupby([identities, labels]).indices

    def too_few(n: int) -> str:
        return (
            f"{n} of {len(np.unique(identities))} identities are usable with bias.images_per_identity "
            f"{images_per_identity} and bias.test_per_class {test_per_class}; at least 2 for training are "
            f"needed: {advice(identities, labels, *args)}"
        )

    plans = []
    for seed, own in enumerate(members):
        plan = _plan(own, cells, kind, test_per_class, unseen_share, np.random.default_rng(seed))
        if len(plan.seen) < 2:
            raise ValueError(too_few(len(own)))
        plans.append(plan)
    found = []
    for level, (seed, plan) in product(wanted, enumerate(plans)):
        sizes = None if kind == "natural" else _sizes(plan, level, images_per_identity, kind)
        where = {"level": built_level(level, images_per_identity, kind), "seed": seed}
        columns = _set(plan, sizes, identities, labels)
        found.append({k: np.full(len(columns["row"]), v) for k, v in where.items()} | columns)
    return pd.DataFrame({k: np.concatenate([one[k] for one in found]) for k in found[0]})


def check_draws(data, params: dict) -> None:
    """Draw what every stage of a study will draw, at one level, so that what cannot work is said early.

    ``data`` gives ``labels(attribute)`` and ``identities()``, as :class:`study.faces.dataset.FaceSet`;
    ``params`` are the keys ``task``, ``seeds``, ``bias``, ``tasks`` and ``kinds`` of breadth, ``level``
    of proxies, ``ablation``, ``ablations`` and ``neighbours`` of params.yaml. A ValueError names the key.
    """
    bias, task, seeds = (params[key] for key in ("bias", "task", "seeds"))
    own, first, draws = params["ablation"], bias["levels"][:1], []
    draws.append(("bias", task, bias, seeds, first))
    for other, kind in product(params["tasks"], params["kinds"]):
        draws.append((f"breadth, {other} under {kind}", other, bias | {"kind": kind}, seeds, first))
    draws.append(("proxies", task, bias, seeds, [params["level"]]))
    draws.append(("ablation", task, bias, own["seeds"], [own["level"]]))
    for name, varied in params["ablations"].items():
        section, _, key = varied["setting"].partition(".")
        for value in varied["values"] if section == "bias" else ():
            where = f"ablations.{name}, {value}"
            draws.append((where, task, bias | {key: value}, own["seeds"], [own["level"]]))
    unseen, smallest = [], {}
    for where, attribute, settings, number, only in draws:
        try:
            given = data.identities(), data.labels(attribute)
            sets = draw_sets(*given, seeds=number, only=only, **settings)
        except ValueError as error:
            raise ValueError(f"params.yaml: {where}: {error}") from None
        unseen.append((sets["part"] == "unseen").any())
        smallest[where] = sets[sets["part"] == "train"].groupby(["level", "seed"]).size().min()
    if not unseen[0]:
        raise ValueError(
            f"params.yaml: bias.unseen_share is {bias['unseen_share']}, which keeps nobody out of "
            "training; the report shows people never seen, so raise it to 1 / people or more, with at "
            "least 3 people"
        )
    near = [(where, params["neighbours"]) for where in smallest]
    for varied in params["ablations"].values():
        if varied["setting"] == "weights.neighbours":
            near += [("ablation", k) for k in varied["values"]]
    for where, k in near:
        if k != "auto" and k >= smallest[where]:
            raise ValueError(
                f"params.yaml: weights.neighbours is {k}, but a training set of {where} has "
                f"{smallest[where]} images; take fewer than that, or auto"
            )


@dataclass(frozen=True)
class _Plan:
    """What a seed decides, before the level is looked at."""

    names: np.ndarray  # numbers of the identities that take part
    seen: np.ndarray  # places of those in training
    chance: np.ndarray  # of all, uniform: puts them in order
    majority: np.ndarray | None  # class of all, under correlation
    held: list[np.ndarray]  # test images of the seen ones, by identity and class
    left: list[np.ndarray]  # their other images, in the order of use
    never: list[np.ndarray]  # test images of the others


def _plan(own: pd.DataFrame, cells, kind: str, test_per_class: int, unseen_share, rng) -> _Plan:
    names = own["identity"].to_numpy()
    unseen = rng.choice(len(own), round(unseen_share * len(own)), replace=False)
    # Drawn for every identity, seen or not, so that one draw never shifts the next.
    chance = rng.random(len(own))
    shuffled = [[rng.permutation(cells[who, c]) for c in (0, 1)] for who in names]
    seen, majority = np.setdiff1d(np.arange(len(own)), unseen), None
    if kind == CORRELATED:
        majority = np.full(len(own), -1)
        able = own[["majority_0", "majority_1"]].to_numpy()
        majority[seen] = _majorities(able[seen], chance[seen], rng)
        seen = seen[majority[seen] >= 0]
    never = [rows[: min(map(len, shuffled[i]))] for i in np.sort(unseen) for rows in shuffled[i]]
    mine = [rows for i in seen for rows in shuffled[i]]
    held, left = [r[:test_per_class] for r in mine], [r[test_per_class:] for r in mine]
    return _Plan(names, seen, chance, majority, held, left, never)


def _sizes(plan: _Plan, level: float, k: int, kind: str) -> np.ndarray:
    """Training images of every seen identity and class, shape (identities, 2)."""
    if kind == "longtail":
        return _long_tailed(level, k, plan.chance[plan.seen])
    few = minority_images(level, k)
    majority = plan.majority[plan.seen][:, None]
    return np.where(majority == [0, 1], k - few, few)


def _set(plan: _Plan, sizes: np.ndarray | None, identities, labels) -> dict[str, np.ndarray]:
    """The images of a set as columns; with ``sizes`` None all that are in no test train."""
    if sizes is None:
        seen_or_untested = ~np.isin(identities, np.delete(plan.names, plan.seen))
        rest = np.flatnonzero(seen_or_untested & pd.notna(labels))
        train = [np.setdiff1d(rest, np.concatenate(plan.held))]
    else:
        train = [rows[:n] for rows, n in zip(plan.left, sizes.flat, strict=True)]
    none = np.empty(0, dtype=np.int64)  # as nobody may be unseen
    parts = {"train": train, "seen": plan.held, "unseen": plan.never}
    rows = {name: np.sort(np.concatenate([none, *found])) for name, found in parts.items()}
    part = np.repeat(list(rows), [len(r) for r in rows.values()])
    row = np.concatenate(list(rows.values()))
    who, label, trains = identities[row], labels[row], part == "train"
    cell = 2 * who + (label == 1)
    size = np.bincount(cell[trains], minlength=2 * identities.max() + 2)
    minority = np.full(len(row), np.nan)
    if plan.majority is not None:
        majority = np.full(identities.max() + 1, -1)
        majority[plan.names] = plan.majority
        minority = (label != majority[who]).astype(float)
    elif sizes is None:
        own, other = size[cell], size[cell ^ 1]
        minority = np.where(own == other, np.nan, own < other)
    minority[part == "unseen"] = np.nan
    cell_size = np.where(trains, size[cell], 0)
    return {"part": part, "row": row, "cell_size": cell_size, "minority": minority}


def _members(table: pd.DataFrame, seeds, people, cohorts, advise) -> list[pd.DataFrame]:
    """The identities of every seed, of those usable."""
    n = len(table)
    if people is not None and not 2 <= people <= n:
        raise ValueError(
            f"bias.people is {people}; it must be null (all) or a number from 2 to {n}, the identities "
            f"with enough images; {advise()}"
        )
    if not cohorts:
        return [table if people is None else table[:people]] * seeds
    if people is None:
        raise ValueError("bias.cohorts is true, so bias.people must say how many people one holds")
    if seeds * people > n:
        raise ValueError(
            f"{seeds} cohorts of {people} people need {seeds * people}, and {n} are usable; set seeds "
            f"to {n // people} at most, or bias.people to {n // seeds}"
        )
    order = np.random.default_rng(0).permutation(n)
    parts = (np.sort(order[s * people : (s + 1) * people]) for s in range(seeds))
    return [table.iloc[part].reset_index(drop=True) for part in parts]


def _majorities(able: np.ndarray, chance: np.ndarray, rng) -> np.ndarray:
    """The majority class of every identity, each of as many; -1 for those that are one too many.

    ``able`` (people, 2) says which class may be; ``chance`` puts the people in order.
    """
    order = np.argsort(chance)
    majority = np.where(able[:, 0] & able[:, 1], -1, np.where(able[:, 1], 1, 0))
    free = order[majority[order] == -1]
    half = (len(able) + int(rng.integers(2))) // 2
    to_0 = int(np.clip(half - (majority == 0).sum(), 0, len(free)))
    majority[free[:to_0]], majority[free[to_0:]] = 0, 1
    surplus = (majority == 1).sum() - (majority == 0).sum()
    many = order[majority[order] == (surplus > 0)]
    majority[many[: abs(surplus)]] = -1
    return majority


def _long_tailed(level: float, k: int, chance: np.ndarray) -> np.ndarray:
    """Training images of every identity and class, shape (identities, 2); ``chance`` gives the order."""
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
