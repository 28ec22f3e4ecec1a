"""Training labels made wrong on purpose, for ablations that ask what wrong labels do.

A setting of :data:`KINDS` can be varied like one of params.yaml. Its values are the share of all labels
that are wrong. Sets are drawn, and models judged, by the true labels; weights, penalties and models see
the wrong ones.
"""

from collections.abc import Callable

import numpy as np

MOST = 0.2  # the largest share
CARELESS = 5  # one in so many people is labelled without care


def at_random(labels, people, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose labels to be wrong, bool (n,): every one with the same chance."""
    return rng.random(len(labels)) < share


def of_class_1(labels, people, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose labels to be wrong, bool (n,): of class 1 alone, as where few are looked for and some missed."""
    of_class = labels == 1
    return of_class & (rng.random(len(labels)) < share / max(of_class.mean(), share))


def of_some_people(labels, people, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose labels to be wrong, bool (n,): of one person in :data:`CARELESS`, as of one hasty annotator."""
    from study.experiment.design import is_known  # which imports pandas

    names = np.unique(np.asarray(people)[is_known(people)])
    careless = rng.permutation(names)[: max(1, len(names) // CARELESS)]
    of_careless = np.isin(people, careless)
    return of_careless & (rng.random(len(labels)) < share / max(of_careless.mean(), share))


def of_slipped_rows(labels, people, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose labels to be wrong, bool (n,): a stretch of the table has each the label of the row above."""
    rows = np.flatnonzero(~np.isnan(labels))
    rows = np.roll(rows, -rng.integers(len(rows)))  # it begins anywhere
    slipped = rows[labels[rows] != labels[np.roll(rows, 1)]]
    return _first(slipped, share, labels)


def of_swapped_people(labels, people, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose labels to be wrong, bool (n,): pairs of people have each other's, image by image."""
    swapped = []
    images = _of_people(labels, people, rng)
    for one, other in zip(images[::2], images[1::2], strict=False):
        size = min(len(one), len(other))
        differ = labels[one[:size]] != labels[other[:size]]
        swapped += [one[:size][differ], other[:size][differ]]
    return _first(np.concatenate(swapped), share, labels)


def of_reversed_folders(labels, people, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose labels to be wrong, bool (n,): all of some people, whose folders were labelled the other way."""
    return _first(np.concatenate(_of_people(labels, people, rng)), share, labels)


def _of_people(labels, people, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows that have a label of each known person, the people in an order drawn by lot."""
    from study.experiment.design import is_known

    names = np.unique(np.asarray(people)[is_known(people)])
    return [np.flatnonzero((people == name) & ~np.isnan(labels)) for name in rng.permutation(names)]


def _first(rows: np.ndarray, share: float, labels) -> np.ndarray:
    """As many of the rows, from the first on, as are a share of all labels; fewer if there are fewer."""
    wrong = np.zeros(len(labels), dtype=bool)
    wrong[rows[: round(share * (~np.isnan(labels)).sum())]] = True
    return wrong


KINDS: dict[str, Callable] = {
    "labels.wrong": at_random,
    "labels.wrong_of_class_1": of_class_1,
    "labels.wrong_of_some_people": of_some_people,
    "labels.wrong_of_slipped_rows": of_slipped_rows,
    "labels.wrong_of_swapped_people": of_swapped_people,
    "labels.wrong_of_reversed_folders": of_reversed_folders,
}


def mislabelled(labels, people, kind: str, share: float, seed: int = 0) -> np.ndarray:
    """Return labels of which a share is wrong.

    Parameters
    ----------
    labels : array, shape (n,)
        0 or 1; an image without a label (NaN) stays without.
    people : array, shape (n,)
        True identities.
    kind : str
        A key of :data:`KINDS`.
    share : float
        Of all labels, from 0 to :data:`MOST`.

    Examples
    --------
    >>> labels = np.tile([0.0, 1.0], 500)
    >>> wrong = mislabelled(labels, np.arange(1000) // 10, "labels.wrong", 0.1) != labels
    >>> bool(0.08 < wrong.mean() < 0.12)
    True
    """
    labels = np.asarray(labels, dtype=np.float64)
    wrong = KINDS[kind](labels, people, share, np.random.default_rng([seed, 6]))
    return np.where(wrong, 1 - labels, labels)
