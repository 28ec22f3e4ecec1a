"""The biased training sets of a study: weighted by every method, and linear heads trained on them.

A *set* is a bias level and a seed: its training images and its test images. A table of sets can hold
many, one row an image. Finished work is kept under what one method's result comes from: its sets, its
own settings and options, and its own code. So another method, seed or level costs its own share and
nothing else, and the order in which methods are listed does not matter.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cid.arrays import pick_device
from cid.heads import Heads, StandardisedFeatures
from cid.softmax import SoftmaxHeads
from study import store
from study.cores import on_all_cores
from study.experiment import penalties as cells
from study.experiment.arrays import whole
from study.experiment.design import is_known, number_of_classes
from study.experiment.scores import named
from study.methods.base import TrainingStack
from study.methods.registry import (
    check_fit_settings,
    fit_method,
    fit_settings,
    fit_weighted_methods,
    get_method,
    is_weighted,
    needed_column,
    needed_columns,
    training_code,
    training_needs,
    training_weights,
    weigh_settings,
    weighing_code,
)
from study.methods.stacks import SoftmaxStack

SEEDS = 10  # heads fitted together: another seed changes no byte of a full block


# --- weights --------------------------------------------------------------------------------------


def weigh_sets(
    sets: pd.DataFrame,
    embeddings,
    labels,
    identities,
    methods: list[str],
    settings: dict,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Compute every method's weights on every training set.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`study.experiment.design.draw_sets`.
    embeddings, labels, identities : array, shape (n, ...)
        Of the whole data set; identities can be None where no method uses them, and below 0 where it is not
        known who an image shows.
    methods : list of str
    settings : dict
        The section ``weights`` of params.yaml.
    folder : path, optional
        Where finished work is kept: a later call takes from it whatever it would compute in the same
        way.

    Returns
    -------
    pandas.DataFrame
        ``sets`` with one column a method, the weight of a training image, and one column
        (:func:`study.methods.registry.needed_column`) for each method that needs more; NaN for a test
        image.

    Raises
    ------
    ValueError
        If a method uses the identities of training images that have none.
    """
    train = sets[sets["part"] == "train"]
    if identities is not None:
        _check_known(is_known(np.asarray(identities)[train["row"]]), methods)

    def weigh(training_set: pd.DataFrame) -> pd.DataFrame:
        rows = training_set["row"].to_numpy()
        people = None
        if identities is not None and is_known(identities[rows]).all():
            people = np.unique(identities[rows], return_inverse=True)[1]
        columns = _weigh(embeddings[rows], whole(labels[rows]), people, methods, settings, folder)
        return pd.DataFrame(columns, training_set.index)

    training_sets = [training_set for _, training_set in train.groupby(["level", "seed"])]
    weighed = pd.concat(on_all_cores(weigh, training_sets))
    columns = list(methods)
    for method in methods:
        columns += needed_columns(weighed, method)
    return pd.concat([sets, weighed.reindex(sets.index)[columns]], axis=1)


def _check_known(known: np.ndarray, methods: list[str]) -> None:
    """Refuse methods that use identities, where training images have none."""
    needing = [method for method in methods if get_method(method).uses_identities]
    if needing and not known.all():
        raise ValueError(
            f"{needing[0]} uses the true identity of every training image, and "
            f"{(~known).mean():.1%} of these have none; take {', '.join(needing)} out of all lists of "
            "methods in params.yaml"
        )


def _weigh(embeddings, labels, people, methods, settings, folder) -> dict[str, np.ndarray]:
    """The columns that :func:`weigh_sets` adds, of one training set."""
    images = None if folder is None else store.digest(embeddings, labels)
    shared = {}  # what several methods compute alike
    columns = {}
    for method in methods:
        spec = get_method(method)

        def compute(method=method) -> dict[str, np.ndarray]:
            arrays = {
                "weights": training_weights(method, embeddings, labels, people, settings, shared)
            }
            needed = training_needs(method, embeddings, labels, people, settings, shared)
            if needed is not None:
                arrays["needed"] = needed
            return arrays

        inputs = {
            "images": images,
            "people": people if spec.uses_identities else None,
            "settings": asdict(weigh_settings(method, settings)),
        }
        code = weighing_code(method)
        arrays = store.kept(folder, f"weights-{method}", inputs, code, compute)
        columns[method] = arrays["weights"]
        if spec.needed:
            needed = arrays["needed"].astype(float)
            columns |= named(needed_column(method), needed)
    return columns


# --- linear heads ---------------------------------------------------------------------------------


def tested(sets: pd.DataFrame) -> pd.DataFrame:
    """Return the test images of some sets, to which predictions add a score for each method."""
    test = sets.loc[sets["part"] != "train", ["level", "seed", "part", "row", "minority"]]
    return test.rename(columns={"part": "test"}).reset_index(drop=True)


def blocks(sets: pd.DataFrame) -> list[pd.DataFrame]:
    """Split sets into what is fitted together: each level, :data:`SEEDS` seeds at a time."""
    return [block for _, block in sets.groupby(["level", sets["seed"] // SEEDS], sort=False)]


def train_sets(
    sets: pd.DataFrame,
    features,
    labels,
    methods: list[str],
    train: dict,
    *,
    penalties: pd.DataFrame | None = None,
    design: StandardisedFeatures | None = None,
    folder: str | Path | None = None,
    progress: str | None = None,
) -> tuple[pd.DataFrame, dict[str, Heads]]:
    """Fit linear heads on every training set by every method, and score the test images.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`weigh_sets`.
    features : float32 array, shape (n, d)
        Of the whole data set; labels likewise.
    methods : list of str
        Weight columns of ``sets``. A method that is not in the registry is trained by its weights.
    train : dict
        The section ``train`` of params.yaml: ``l2``, and optionally ``through`` ("loss" or "sampler")
        and ``robust``, the settings of methods that train in a way of their own.
    penalties : pandas.DataFrame, optional
        From :func:`study.experiment.penalties.choose`, for sets that are a part of a study's; otherwise
        chosen here, on the sets at hand.
    design
        As in :func:`cid.heads.fit_heads`, of all rows.
    progress : str, optional
        Label of a progress bar, which counts blocks of sets: a bar of every fit would come several at a
        time, and end where the fit converges.
    folder
        As in :func:`weigh_sets`; :data:`SEEDS` seeds of a level are kept together.

    Returns
    -------
    predictions : pandas.DataFrame
        One row a test image of a set: ``level``, ``seed``, ``test``, ``row``, ``minority``, and the scores
        of every method (:mod:`study.experiment.scores`).
    heads : dict of Heads
        Of every method, one head a set, in the order of the sets.
    """
    check_fit_settings(train.get("robust", {}))
    if penalties is None:
        penalties = cells.choose(sets, features, labels, methods, train, folder)
    fits = _HeadFits(
        features=features,
        labels=whole(labels),
        methods=methods,
        penalties=penalties,
        through=train.get("through", "loss"),
        robust=train.get("robust", {}),
        design=design,
        folder=folder,
    )
    data = None if folder is None else fits.data_digest()
    fitted = on_all_cores(lambda block: fits.fit_block(block, data), blocks(sets), label=progress)
    predictions = pd.concat([table for table, _ in fitted], ignore_index=True)
    kind = fits.kind
    heads = {method: kind.joined([found[method] for _, found in fitted]) for method in methods}
    return predictions, heads


@dataclass(frozen=True)
class _HeadFits:
    """The arguments of :func:`train_sets`, and what it does with a block of sets."""

    features: np.ndarray
    labels: np.ndarray
    methods: list[str]
    penalties: pd.DataFrame
    through: str
    robust: dict
    design: StandardisedFeatures | None
    folder: str | Path | None

    @property
    def classes(self) -> int:
        return number_of_classes(self.labels)

    @property
    def kind(self) -> type:
        return Heads if self.classes == 2 else SoftmaxHeads

    def data_digest(self) -> str:
        # A design of all rows standardises in another way than one of the training images.
        own_design = self.design is None
        return store.digest(self.features, self.labels, own_design, pick_device("auto").type)

    def fit_block(self, block: pd.DataFrame, data: str | None) -> tuple[pd.DataFrame, dict]:
        """The test images of a block with their scores, and every method's heads.

        ``data`` is :meth:`data_digest`, which takes too long to be made for every block.
        """
        train = block[block["part"] == "train"]
        table = tested(block)
        seeds = block["seed"].unique()
        # Where the scores of the table stand among the logits (seeds, images).
        at = (np.searchsorted(seeds, table["seed"]), table["row"].to_numpy())

        files = {} if self.folder is None else self._files(train, at, data)
        kept = {method: store.read(file) for method, file in files.items()}
        found = {method: arrays for method, arrays in kept.items() if arrays}
        missing = {}  # methods by their penalty, which heads that are fitted together share
        for method in self.methods:
            if method not in found:
                missing.setdefault(self._l2(block, method), []).append(method)
        for l2, methods in missing.items():
            for method, heads in self._fit(methods, train, seeds, l2).items():
                found[method] = {**vars(heads), "scores": heads.logits(self.features)[at]}
                if method in files:
                    store.keep(files[method], found[method])
        scores = {}
        for method in self.methods:
            scores |= named(method, found[method].pop("scores"))
        heads = {method: self.kind(**found[method]) for method in self.methods}
        return table.assign(**scores), heads

    def _l2(self, block: pd.DataFrame, method: str) -> float:
        """The penalty of a method's heads on the sets of a block, which are of one level."""
        return cells.of_method(self.penalties, block["level"].iloc[0], method)

    def _files(self, train: pd.DataFrame, at: tuple, data: str) -> dict[str, Path]:
        """Where every method's heads on a block of training sets are kept."""
        images = store.digest(train["seed"].to_numpy(), train["row"].to_numpy(), *at)
        files = {}
        for method in self.methods:
            columns = [name for name in [method, *needed_columns(train, method)] if name in train]
            inputs = {
                "data": data,
                "images": images,
                "columns": [train[name].to_numpy() for name in columns],
                "l2": self._l2(train, method),
                "through": self.through,
                "settings": asdict(fit_settings(method, self.robust)),
            }
            code = training_code(method, self.classes)
            files[method] = store.kept_path(self.folder, f"heads-{method}", inputs, code)
        return files

    def _fit(self, methods: list[str], train: pd.DataFrame, seeds, l2: float) -> dict[str, Heads]:
        """Heads of some methods, one for each of the training sets of a block."""
        design = self.design
        if self.classes == 2 and design is None:
            design = StandardisedFeatures(self.features, self.labels, train["row"].unique())
        stack = (TrainingStack if self.classes == 2 else SoftmaxStack)(
            seeds=seeds,
            features=self.features,
            labels=self.labels,
            design=design,
            l2=l2,
            through=self.through,
        )
        where = (np.searchsorted(seeds, train["seed"]), train["row"])

        def spread(column: str, dtype) -> np.ndarray:
            """A column of the training sets as an array (seeds, n), 0 off the training set."""
            values = np.zeros((len(seeds), len(self.labels)), dtype)
            values[where] = train[column]
            return values

        heads = {}
        weighted = [method for method in methods if is_weighted(method)]
        if weighted:  # the bulk of a study, in one go
            weights = [spread(method, np.float32) for method in weighted]
            heads = dict(zip(weighted, fit_weighted_methods(stack, weights), strict=True))
        for method in methods:
            if method not in heads:
                dtype = np.int64 if get_method(method).needs == "groups" else np.float32
                columns = [spread(column, dtype) for column in needed_columns(train, method)]
                needed = None
                if columns:
                    needed = columns[0] if len(columns) == 1 else np.stack(columns, axis=2)
                weights = spread(method, np.float32)
                heads[method] = fit_method(stack, method, weights, needed, self.robust)
        return heads
