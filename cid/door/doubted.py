"""How far labels can be trusted, what is said of it, and the table of those that are doubted most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cid.door import tables
from cid.door.faces import say
from cid.door.inputs import Given

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from cid.trust import LabelTrust

NAME = "doubted.csv"
DOUBTED = 0.5  # a label less probable than this is more likely wrong than right
SURE = 3.0  # standard errors that features must tell labels better than chance
NEAREST = 3  # neighbours that are named beside each
RESERVED = ("expected", *(f"near_{place + 1}" for place in range(NEAREST)))  # columns of the table
ROWS = 256  # doubted images that are compared with all others at once
AT_ONCE = 8192  # images that are standardised at once
LONG = 20_000  # images from which on judging them takes a while
NO_FEATURES = (
    "not to be had from a face embedding, which was trained to forget what varies within a person "
    "(features of the task: --features)"
)


def can_judge(given: Given, labels: np.ndarray, what: str) -> bool:
    """Return whether labels (n,) can be judged; where not, say why in one line, and ``what`` goes on."""
    from cid.trust import FOLDS

    names, counts = np.unique(labels, return_counts=True)
    why = ""
    if given.features is None:
        why = NO_FEATURES
    elif _all_alike(given.features):
        why = "the features are the same of every image"
    elif counts.min() < FOLDS:
        few = str(names[counts.argmin()])
        why = f"class {few!r} has {counts.min()} images, and labels are judged from {FOLDS} a class on"
    if why:
        say(f"trust: {why}; {what} goes on without")
        return False
    if len(labels) >= LONG:
        say(f"trust: judging {len(labels):,} labels by {given.features.shape[1]:,} features")
    return True


def _all_alike(features: np.ndarray) -> bool:
    """Return whether all rows without NaN or infinite values are the same."""
    first = None
    for start in range(0, len(features), AT_ONCE):
        some = np.asarray(features[start : start + AT_ONCE])
        some = some[np.isfinite(some).all(axis=1)]
        if len(some) and first is None:
            first = some[0]
        if len(some) and (some != first).any():
            return False
    return True


def judged(
    given: Given, usable: np.ndarray, labels: np.ndarray, device: str = "auto"
) -> LabelTrust | None:
    """Judge the labels (n,) of the rows that can be used; None where :func:`can_judge` says no."""
    if not can_judge(given, labels, "weighing"):
        return None
    from cid.arrays import class_codes
    from cid.trust import out_of_fold_logits, trust_in_labels

    features = np.asarray(given.features[usable], dtype=np.float32)
    codes, _ = class_codes(labels, len(labels))
    logits = out_of_fold_logits(features, codes, device=device)
    if not _tell(logits, codes):
        say(
            "trust: the features tell the label no better than chance, so they cannot judge it (are they "
            "those of the same images?); weighing goes on without"
        )
        return None
    return trust_in_labels(logits, codes)


def _tell(logits: np.ndarray, codes: np.ndarray) -> bool:
    """Return whether logits (n, C) rank the images of any class above others, clear of chance.

    Without this the likelihood knows no share of wrong labels from another, and chance chooses one.
    """
    from scipy.stats import rankdata

    n = len(codes)
    for code in np.unique(codes):
        own = codes == code
        size = own.sum()
        relative = logits[:, code] - np.delete(logits, code, axis=1).max(axis=1)
        auc = (rankdata(relative)[own].mean() - (size + 1) / 2) / (n - size)
        error = ((n + 1) / (12 * size * (n - size))) ** 0.5  # of the AUC, where nothing is told
        if auc > 0.5 + SURE * error:
            return True
    return False


def told(found: LabelTrust, labels: np.ndarray, listed: int) -> list[str]:
    """Return what the estimate says, in lines for the screen."""
    from cid.trust import MOST

    rates = dict(zip(np.unique(labels).tolist(), found.rates, strict=True))
    rates = [f"{rates[name]:.1%} of {name!r}" for name in tables.in_order(rates)]
    lines = [
        f"wrong labels, as estimated: {tables.listed(rates)} are labelled as something else; trust weighs "
        "such labels down"
    ]
    if max(found.rates) >= MOST:
        lines.append(
            f"warning: {MOST:.0%} is the most that is estimated of a class; are the features those of the "
            "same images, and do they show what the label is about?"
        )
    if listed:
        lines.append(
            f"labels that are more likely wrong than right: {listed:,}, in {NAME}; look at them first"
        )
    return lines


def table(
    found: LabelTrust, given: Given, usable: np.ndarray, labels: np.ndarray, label: str
) -> pd.DataFrame:
    """Return the images whose labels are doubted, least trusted first, beside their like.

    Each has the class that the features let expect, and its :data:`NEAREST` neighbours in the features,
    each standardised, with their labels.
    """
    trust = found.probability
    doubted = np.flatnonzero(trust < DOUBTED)
    doubted = doubted[np.argsort(trust[doubted], kind="stable")]
    names = np.array(given.rows.names, dtype=object)[usable]
    columns = {
        tables.IMAGE: names[doubted],
        label: labels[doubted],
        "expected": np.unique(labels)[found.expected[doubted]],
        "trust": trust[doubted].round(6),
    }
    near = _nearest(given.features[usable], doubted)
    for place in range(near.shape[1]):
        columns[f"near_{place + 1}"] = names[near[:, place]]
        columns[f"near_{place + 1}_{label}"] = labels[near[:, place]]
    return pd.DataFrame(columns)


def _nearest(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The nearest others of some rows by Euclidean distance of standardised features: int array (k, near)."""
    mean = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1

    def unit(some) -> np.ndarray:
        return ((features[some] - mean) / spread).astype(np.float32)

    near = np.empty((len(rows), min(NEAREST, len(features) - 1)), dtype=np.int64)
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        doubted = unit(some)
        distance = np.empty((len(some), len(features)), dtype=np.float32)
        for first in range(0, len(features), AT_ONCE):
            others = unit(slice(first, first + AT_ONCE))
            squares = (others**2).sum(axis=1)
            distance[:, first : first + AT_ONCE] = squares - 2 * doubted @ others.T
        distance[np.arange(len(some)), some] = np.inf
        near[start : start + ROWS] = np.argsort(distance, axis=1, kind="stable")[:, : near.shape[1]]
    return near
