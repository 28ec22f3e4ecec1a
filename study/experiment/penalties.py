"""The penalty of a study's linear heads: one for each of its cells, chosen by class labels alone.

A *cell* is all that is drawn in one way: a bias level of a study, of another task or kind of bias, or of an
ablation that draws other sets. ``train.l2`` of params.yaml says how its penalty is found:

- a number: that number;
- ``auto``: :mod:`cid.penalty` chooses for ERM on the cell's first training sets together (:func:`first_sets`),
  and every method on every set of the cell takes it, so that methods differ in nothing else. A choice for
  every single set follows the noise of few images, and costs as much as training;
- ``own``: the same choice for each method by itself, under its own weights. A check, and no baseline: an
  oracle's weights come from identities.

What the methods with two penalties call their own (``jtt_l2``, ``lff_l2``, ``afr_l2``, ...) is a setting like
others and does not move.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cid.arrays import pick_device
from cid.heads import StandardisedFeatures
from cid.penalty import FOLDS, best_penalty, cross_validated_losses, folds, search
from study import store
from study.cores import on_all_cores
from study.experiment.arrays import whole
from study.experiment.design import number_of_classes
from study.methods.base import TrainingStack
from study.methods.registry import (
    fit_method,
    fit_settings,
    is_weighted,
    needed_columns,
    training_code,
)
from study.methods.stacks import SoftmaxStack

BASELINE = "erm"  # the method that the choice is made for
IMAGES = 1500  # that the sets of a choice hold together, at least ...
MOST = 10  # ... unless they would be more sets than this
COLUMNS = ["level", "method", "l2", "loss", "chosen", "sets", "images"]


def first_sets(sets: pd.DataFrame) -> pd.DataFrame:
    """Select the training images that decide: of every level, those of the first sets that hold
    :data:`IMAGES` images together, of at most :data:`MOST` sets.

    A study of small sets needs several, because one alone would choose at random; another seed added to
    a study changes no choice.
    """
    train = sets[sets["part"] == "train"]
    parts = []
    for _, cell in train.groupby("level", sort=False):
        sizes = cell.groupby("seed").size().sort_index()
        before = sizes.cumsum() - sizes  # images of the sets before
        chosen = sizes.index[before < IMAGES][:MOST]
        parts.append(cell[cell["seed"].isin(chosen)])
    return pd.concat(parts)


def choose(
    sets: pd.DataFrame,
    features,
    labels,
    methods: list[str],
    train: dict,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Find the penalty of every level.

    Parameters
    ----------
    sets : pandas.DataFrame
        All sets of a study, or those of :func:`first_sets`; with the weights of ``methods`` where
        ``train.l2`` is ``own``.
    features : float32 array, shape (n, d)
        Of the whole data set; labels likewise.
    methods, train, folder
        As in :func:`study.experiment.runs.train_sets`.

    Returns
    -------
    pandas.DataFrame
        One row a penalty that was tried: ``level``, ``method`` (``erm``, whose choice all methods take, or
        each method, under ``own``), ``l2``, its cross-validated ``loss``, ``chosen``, and the number of
        ``sets`` and ``images`` that decided. Where ``train.l2`` is a number, one row a level, whose loss
        is NaN.
    """
    l2 = train["l2"]
    first = first_sets(sets)
    labels = whole(labels)
    choosing = list(dict.fromkeys([BASELINE, *methods])) if l2 == "own" else [BASELINE]

    def tried(cell: pd.DataFrame) -> list[dict]:
        about = {
            "level": cell["level"].iloc[0],
            "sets": cell["seed"].nunique(),
            "images": len(cell),
        }
        if l2 not in ("auto", "own"):
            about |= {"sets": 0, "images": 0}
            return [about | {"method": BASELINE, "l2": float(l2), "loss": np.nan, "chosen": True}]
        rows = []
        for method in choosing:
            found = _losses(cell, features, labels, method, train, folder)
            best = best_penalty(found)
            for value, loss in found.items():
                rows.append(
                    about | {"method": method, "l2": value, "loss": loss, "chosen": value == best}
                )
        return rows

    cells = [cell for _, cell in first.groupby("level", sort=False)]
    rows = [row for part in on_all_cores(tried, cells) for row in part]
    return pd.DataFrame(rows, columns=COLUMNS)


def of_method(penalties: pd.DataFrame, level: float, method: str) -> float:
    """The penalty of a method at a level, from a table of :func:`choose`."""
    cell = penalties[(penalties["level"] == level) & penalties["chosen"]]
    by_method = dict(zip(cell["method"], cell["l2"], strict=True))
    return float(by_method.get(method, by_method[BASELINE]))


def _losses(cell, features, labels, method: str, train: dict, folder) -> dict[float, float]:
    """The losses of the penalties that a search for one method's has tried, in the mean over sets."""
    weighted = train["l2"] == "auto" or is_weighted(method)
    columns = []
    if train["l2"] == "own":
        columns = [name for name in [method, *needed_columns(cell, method)] if name in cell]
    robust = train.get("robust", {})
    inputs = {}
    if folder is not None:
        rows = cell["row"].to_numpy()
        inputs = {
            "features": np.ascontiguousarray(features[rows]),
            "labels": labels[rows],
            "seed": cell["seed"].to_numpy(),
            "columns": [cell[name].to_numpy() for name in columns],
            "through": "loss" if weighted else train.get("through", "loss"),
            "settings": vars(fit_settings(method, robust)),
            "device": pick_device("auto").type,
        }

    def compute() -> dict:
        of_sets = [
            _losses_of(training_set, features, labels, method, train)
            for _, training_set in cell.groupby("seed")
        ]
        found = search(lambda l2s: np.mean([losses_at(l2s) for losses_at in of_sets], axis=0))
        return {"l2": np.array(list(found)), "loss": np.array(list(found.values()))}

    code = ["study.experiment.penalties._losses_of", "cid.penalty.search"]
    code += [] if weighted else training_code(method, number_of_classes(labels))
    kept = store.kept(folder, f"penalty-{method}", inputs, code, compute)
    return dict(zip(kept["l2"].tolist(), kept["loss"].tolist(), strict=True))


def _losses_of(training_set: pd.DataFrame, features, labels, method: str, train: dict):
    """A function from penalties to a method's cross-validated losses on one set."""
    rows = training_set["row"].to_numpy()
    seed = int(training_set["seed"].iloc[0])
    own_features = np.ascontiguousarray(features[rows])
    own_labels = labels[rows]
    classes = number_of_classes(labels)
    design = StandardisedFeatures(own_features, own_labels) if classes == 2 else None
    own = train["l2"] == "own"
    weights = np.ones(len(rows))
    if own and method in training_set:
        weights = training_set[method].to_numpy()

    def by_weights(penalties) -> np.ndarray:
        return cross_validated_losses(
            own_features, own_labels, weights, penalties=penalties, seed=seed, design=design
        )

    def by_training(penalties) -> np.ndarray:
        """As the above, of a method that trains in a way of its own, which standardises by fold."""
        in_fold = folds(own_labels, seed) == np.arange(FOLDS)[:, None]
        columns = needed_columns(training_set, method)
        needed = None
        if columns:
            needed = training_set[columns].to_numpy()
            needed = needed[:, 0] if len(columns) == 1 else needed
            needed = np.broadcast_to(needed, (FOLDS, *needed.shape))
            needed = needed.astype(np.int64 if columns[0].endswith(":groups") else np.float32)
        losses = []
        for l2 in penalties:
            stack = (TrainingStack if classes == 2 else SoftmaxStack)(
                seeds=np.full(FOLDS, seed),
                features=own_features,
                labels=own_labels,
                design=design,
                l2=l2,
                through=train.get("through", "loss"),
            )
            masked = (weights * ~in_fold).astype(np.float32)
            heads = fit_method(stack, method, masked, needed, train.get("robust", {}))
            losses.append((stack.losses(heads) * weights * in_fold).sum() / weights.sum())
        return np.array(losses)

    return by_weights if not own or is_weighted(method) else by_training
