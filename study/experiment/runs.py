"""The biased training sets of a study, weighed and trained by every method, with finished work kept.

A *set* is a bias level and a seed; a table of sets may hold many. What is kept is keyed by what one
method's result comes from: its sets, its own settings and options, its own code. So another method,
seed or level costs its own share and nothing else, and the order in which methods are listed does not
matter.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cid.device import pick_device
from cid.heads import Heads, StandardisedFeatures
from cid.models import get_model, initialisation, read_options
from cid.options import NetworkOptions, read
from cid.training import fit, place
from study import store
from study.cores import on_all_cores
from study.experiment.methods import (
    METHODS,
    get_method,
    kind_of,
    needed_column,
    training_needs,
    training_weights,
)
from study.experiment.options import NEEDS, HeadOptions, of_kind
from study.experiment.trainers import Cell, fit_method, fit_weighted
from study.source import code

SEEDS = 10  # heads fitted together: another seed changes no byte of a full block
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}{postfix}]"

known_code = cache(code)  # a process runs the code that it has read, whatever is edited meanwhile


def whole(labels) -> np.ndarray:
    """Labels as int64; 0 where an image has none (NaN), which is a row of the data and in no set."""
    return np.nan_to_num(np.asarray(labels, dtype=float)).astype(np.int64)


def weigh_sets(
    sets, embeddings, labels, identities, methods: list[str], settings: dict, folder=None
) -> pd.DataFrame:
    """Weigh every training set by every method.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`study.experiment.design.draw_sets`.
    embeddings, labels, identities : array, shape (n, ...)
        Of the whole data set; identities may be None where no method sees them.
    settings : dict
        As in :func:`study.experiment.methods.training_weights`.
    folder : path, optional
        Where finished work is kept: a later call takes from it whatever it would compute in the same
        way.

    Returns
    -------
    pandas.DataFrame
        ``sets`` with one column a method, the weight of a training image, and one column
        (:func:`study.experiment.methods.needed_column`) for each method that needs more; NaN for a test image.
    """
    specs, keys = {method: get_method(method) for method in methods}, {}
    for method, spec in specs.items():
        made_by = known_code(
            f"study.experiment.methods.METHODS[{method}]", "study.experiment.methods.Sample"
        )
        keys[method] = store.digest({key: settings[key] for key in spec.settings}, made_by)

    def weigh(train: pd.DataFrame) -> pd.DataFrame:
        rows, found = train["row"].to_numpy(), {}
        people = None if identities is None else np.unique(identities[rows], return_inverse=True)[1]
        given = embeddings[rows], whole(labels[rows]), people
        seen, shared = store.digest(*given[:2]), {}
        for method, spec in specs.items():

            def once(method=method) -> dict:
                weights = training_weights(method, *given, settings, shared)
                needed = training_needs(method, *given, settings, shared)
                return {"weights": weights} | ({} if needed is None else {"needed": needed})

            key = store.digest(keys[method], seen, people if "identity" in spec.sees else None)
            result = store.kept(folder, f"weights-{method}-{key[:24]}", once)
            found[method] = result["weights"]
            if spec.needed:
                found[needed_column(method)] = result["needed"].astype(float)
        return pd.DataFrame(found, train.index)

    each = [train for _, train in sets[sets["part"] == "train"].groupby(["level", "seed"])]
    columns = [*methods, *filter(None, map(needed_column, methods))]
    found = pd.concat(on_all_cores(weigh, each))
    return pd.concat([sets, found.reindex(sets.index)[columns]], axis=1)


def blocks(sets: pd.DataFrame) -> list[pd.DataFrame]:
    """The sets of each level, :data:`SEEDS` seeds at a time."""
    return [block for _, block in sets.groupby(["level", sets["seed"] // SEEDS], sort=False)]


def train_sets(
    sets, features, labels, methods, l2, options=None, *, design=None, folder=None, progress=None
) -> tuple[pd.DataFrame, dict[str, Heads]]:
    """Fit linear heads on every training set by every method, and score the test images.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`weigh_sets`.
    features : float32 array, shape (n, d)
        Of the whole data set; labels likewise.
    methods : list of str
        Weight columns of ``sets``. A method that is not of the registry is trained by its weights.
    options : HeadOptions, optional
    l2, design, progress
        As in :func:`cid.heads.fit_heads`; a design is of all rows.
    folder
        As in :func:`weigh_sets`; :data:`SEEDS` seeds of a level are kept together.

    Returns
    -------
    predictions : pandas.DataFrame
        One row a test image of a set: ``level``, ``seed``, ``test``, ``row``, ``minority``, and a score
        (logit of class 1) for every method.
    heads : dict of Heads
        Of every method, one head a set, in the order of the sets.
    """
    labels, options, keys = whole(labels), options or HeadOptions(), {}
    # A design of all rows standardises in another way than one of the training images.
    data = store.digest(features, labels, design is None, pick_device("auto").type)
    for method in methods:
        kind = kind_of(method)
        made_by = known_code("cid.heads.fit_heads", f"study.experiment.trainers.TRAINERS[{kind}]")
        keys[method] = store.digest(data, kind, l2, of_kind(options, kind), made_by)

    def fit_block(block: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Heads]]:
        seeds, train = block["seed"].unique(), block[block["part"] == "train"]
        table = tested(block)
        at = np.searchsorted(seeds, table["seed"]), table["row"].to_numpy()
        files, found = {}, {}
        if folder is not None:
            images = store.digest(train["seed"].to_numpy(), train["row"].to_numpy(), *at)
            for method in methods:
                own = [train[c].to_numpy() for c in (method, needed_column(method)) if c in train]
                key = store.digest(keys[method], images, *own)
                files[method] = Path(folder) / f"heads-{method}-{key[:24]}.npz"
            read = {method: store.read(file) for method, file in files.items()}
            found = {method: arrays for method, arrays in read.items() if arrays}
        missing = [method for method in methods if method not in found]
        if missing:
            ready = design or StandardisedFeatures(features, labels, train["row"].unique())
            cell = Cell(seeds, features, labels, ready, l2, options, progress)
            for method, heads in _fitted(cell, missing, train).items():
                found[method] = vars(heads) | {"scores": heads.logits(features)[at]}
        for method in files.keys() & missing:
            store.keep(files[method], found[method])
        scores = {method: found[method].pop("scores") for method in methods}
        return table.assign(**scores), {method: Heads(**found[method]) for method in methods}

    tables, fitted = zip(*on_all_cores(fit_block, blocks(sets)), strict=True)
    heads = {method: Heads.joined([found[method] for found in fitted]) for method in methods}
    return pd.concat(tables, ignore_index=True), heads


def _fitted(cell: Cell, methods: list[str], train: pd.DataFrame) -> dict[str, Heads]:
    """Heads of some methods on the training sets of a cell."""
    where = np.searchsorted(cell.seeds, train["seed"]), train["row"]

    def spread(column: str, dtype) -> np.ndarray:
        """A column of the training sets as an array (seeds, n), 0 off the training set."""
        values = np.zeros((len(cell.seeds), len(cell.labels)), dtype)
        values[where] = train[column]
        return values

    found, stacked = {}, [method for method in methods if kind_of(method) == "weighted"]
    if stacked:  # the bulk of a study, in one go
        heads = fit_weighted(cell, [spread(method, np.float32) for method in stacked])
        found = dict(zip(stacked, heads, strict=True))
    for method in methods:
        if method not in found:
            column, kind = needed_column(method), kind_of(method)
            dtype = np.float32 if NEEDS.get(kind) == "offset" else np.int64
            needed = spread(column, dtype) if column in train else None
            found[method] = fit_method(cell, kind, spread(method, np.float32), needed)
    return found


@dataclass(eq=False)
class Run:
    """One network to train: a method on a set."""

    level: float
    seed: int
    method: str
    training: str
    given: dict[str, np.ndarray]  # the weights or groups that this kind of training works with
    rows: np.ndarray  # of the training images
    tested: pd.Series  # rows of the test images, by their place in the predictions
    file: Path | None = None  # where it is kept
    found: dict | None = None  # once finished: logits of the test images, and what info tells


def train_networks(
    sets: pd.DataFrame,
    inputs,
    labels,
    methods: list[str],
    model: str,
    options: NetworkOptions | None = None,
    *,
    folder: str | Path | None = None,
    device: str = "auto",
    progress: str | None = None,
    rank: int = 0,
    world: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a network on every training set by every method, and score the test images.

    On a CPU a run has one thread, and as many are trained at once as there are cores: small networks
    gain little from more threads, and so no byte depends on the number of cores.

    Parameters
    ----------
    sets, methods, progress
        As in :func:`train_sets`.
    inputs, labels, model, options, device
        As in :func:`cid.training.fit`.
    folder
        As in :func:`weigh_sets`; also goes on with a run that was interrupted.
    rank, world : int
        Of ``world`` processes that share a folder, the one with this number trains its part of the
        runs only. They need not run at the same time.

    Returns
    -------
    predictions : pandas.DataFrame
        As from :func:`train_sets`. With ``world`` above 1, NaN for other processes' runs that are not
        finished.
    info : pandas.DataFrame
        One row a finished run: ``level``, ``seed``, ``method``, ``training``, ``initialised``,
        ``epoch`` (that stayed, from 1), ``loss`` (its mean training risk), ``accuracy`` (share of the
        images trained on that the network has right) and ``seconds``.

    Raises
    ------
    ValueError
        As :func:`cid.training.fit`, or on a missing column of ``sets``, or processes that cannot share.
    """
    options, device = options or read_options(model), pick_device(device)
    inputs, labels = place(inputs, device), whole(labels)
    predictions = tested(sets).assign(**dict.fromkeys(methods, np.float32("nan")))
    runs, origin = _runs(sets, predictions, methods), initialisation(model, options.pretrained)
    if folder is not None:
        shared = store.digest(model, origin, device.type, known_code("cid.training.fit"), inputs)
        for run in runs:
            own = [run.training, of_kind(options, run.training), run.seed, run.rows]
            own += [run.tested.to_numpy(), labels[run.rows]]
            key = store.digest(shared, *own, *run.given.items())
            run.file = Path(folder) / f"{model}-{run.seed}-{run.training}-{key[:16]}.npz"
            run.found = store.read(run.file)
    # Two methods may weigh a set alike, as erm and balanced where the classes are as many: one run then.
    alone = {}
    for run in runs:
        alone.setdefault(run.file or id(run), run)
    # By method, then by set: every process gets its part of the methods that take longest, and if the
    # sets divide evenly whole sets. What is finished must not matter, as it changes meanwhile.
    mine = list(alone.values())[rank :: max(world, 1)]
    if world > 1 and folder is None or not 0 <= rank < world or not mine and runs:
        raise ValueError(
            f"process {rank} of {world} cannot share {len(alone)} runs; give a folder, number the "
            "processes from 0, and start no more of them than there are runs"
        )
    # Set by set, so that whole sets are finished first.
    missing = sorted((run for run in mine if not run.found), key=lambda run: (run.level, run.seed))
    # The bar also moves within a run, so that its estimate holds from the first on.
    how = {"desc": progress, "disable": progress is None, "bar_format": BAR}
    how |= {"mininterval": 5, "miniters": 0, "smoothing": 0}
    with tqdm(total=len(mine), initial=len(mine) - len(missing), **how) as bar:
        _train(missing, bar, model, inputs, labels, options=options, device=device, save=_save)
    for run in runs:
        run.found = run.found or alone[run.file or id(run)].found
    finished = [run for run in runs if run.found]
    for run in finished:
        predictions.loc[run.tested.index, run.method] = run.found["logits"]
    numbers = {"epoch": int, "loss": float, "accuracy": float, "seconds": float}
    head = ["level", "seed", "method", "training", "initialised", *numbers]
    info = pd.DataFrame([vars(run) | run.found | {"initialised": origin} for run in finished])
    return predictions, info[head].astype(numbers)


def _runs(sets: pd.DataFrame, tests: pd.DataFrame, methods: list[str]) -> list[Run]:
    """Every run by method, then by set; a column that one will ask for and lacks is named."""
    train, runs = sets[sets["part"] == "train"], []
    tested = dict(list(tests.groupby(["level", "seed"])["row"]))
    for method in sorted(methods, key=lambda method: kind_of(method) == "retrain"):
        kind = kind_of(method)
        name = "weights" if kind == "weighted" else NEEDS.get(kind)
        column = method if name == "weights" else needed_column(method)
        if name and (column not in train or train[column].isna().any()):
            raise ValueError(
                f"the sets lack the column {column!r}, or a value in it, which training of the kind "
                f"{kind} needs; weigh the sets by the method {method!r} again"
            )
        for (level, seed), part in train.groupby(["level", "seed"]):
            given, rows = {name: part[column].to_numpy()} if name else {}, part["row"].to_numpy()
            runs.append(Run(level, int(seed), method, kind, given, rows, tested[level, seed]))
    return runs


def _train(missing: list[Run], bar: tqdm, model: str, inputs, labels, **how) -> None:
    """Train runs, on a CPU as many at once as there are cores, each kept in its file if it has one."""
    lock = Lock()

    def train(chain: list[Run]) -> None:
        """One after the other, as the first may be the network that the others start from."""
        base = None
        for run in chain:
            began, file, told = time.monotonic(), run.file, 0.0

            def show(done, epochs, risk, run=run):
                nonlocal told
                text = f"level {run.level:g}, seed {run.seed}, {run.method}, loss {risk:.3f}"
                with lock:
                    bar.set_postfix_str(text, refresh=False)
                    bar.update(done / epochs - told)
                told = done / epochs

            own = run.given | {"training": run.training, "seed": run.seed, "base": base}
            own |= {"checkpoint": file and file.with_suffix(".pt"), "on_epoch": show}
            fitted = fit(model, inputs, labels, run.rows, **own, **how)
            base = base or fitted
            right = (fitted.logits(inputs, fitted.rows) > 0) == (labels[fitted.rows] == 1)
            run.found = {"logits": fitted.logits(inputs, run.tested), "accuracy": right.mean()}
            run.found |= {"loss": fitted.loss, "epoch": fitted.epoch}
            run.found["seconds"] = time.monotonic() - began
            if file:
                store.keep(file, run.found)
                file.with_suffix(".pt").unlink(missing_ok=True)
            with lock:
                bar.update(1 - told)  # a run may go by without an epoch

    on_all_cores(train, _chains(missing), how["device"])


def _chains(runs: list[Run]) -> list[list[Run]]:
    """Each run alone, but those that retrain a last layer behind ERM's run of their set, if it is here."""
    chains, erm = [], {}
    for run in runs:
        where = run.level, run.seed
        if run.training == "retrain" and where in erm:
            erm[where].append(run)
            continue
        chains.append([run])
        if run.training == "weighted" and np.ptp(run.given["weights"]) == 0:
            erm.setdefault(where, chains[-1])
    return chains


def _save(state: dict, path: Path) -> None:
    """A checkpoint, whole or not at all."""
    store.write(path, lambda file: torch.save(state, file))


def train_model(
    sets, features, images, labels, methods, train: dict, *, folder=None, rank=0, world=1
) -> tuple[pd.DataFrame, str]:
    """Train the model that ``train.model`` names, linear heads or a network.

    Parameters
    ----------
    sets, labels, methods, folder, rank, world
        As in :func:`train_networks`; linear heads are fitted together, by every process.
    features : float32 array, shape (n, d)
        For models that take features.
    images : array, shape (n, c, h, w), or None
        For the other models: from :func:`study.faces.dataset.read_images`.
    train : dict
        The section ``train`` of params.yaml.

    Returns
    -------
    predictions : pandas.DataFrame
        As from :func:`train_sets`.
    sentence : str
        What was trained.

    Raises
    ------
    ValueError
        On an unknown model, wrong options, or no images for a model that takes them.
    """
    model = train["model"]
    if model == "linear":
        options = head_options(train)
        data, how = (features, labels, methods), {"folder": folder, "progress": "fit heads"}
        predictions, fitted = train_sets(sets, *data, train["l2"], options, **how)
        heads = Heads.joined(list(fitted.values()))
        return predictions, (
            f"{len(heads.weight)} linear heads on {features.shape[1]:,} features converged (largest "
            f"gradient left: {heads.gradient.max():.0e} of the initial one)."
        )
    spec, options = get_model(model), read_options(model, train["network"])
    takes = "faces" if spec.side else "activations" if spec.maps else None
    if takes and images is None:
        raise ValueError(
            f"train.model is {model}, which takes {takes}, and there are none in build/embed; run the "
            "stage embed again"
        )
    data = images if takes else features, labels, methods
    how = {"folder": folder, "progress": "networks", "rank": rank, "world": world}
    predictions, info = train_networks(sets, *data, model, options, **how)
    starts = {"imagenet": "ImageNet weights", "recognition": "its weights", "scratch": "scratch"}
    start = starts[info["initialised"].iloc[0]]
    right = info.groupby("method", sort=False)["accuracy"].mean()
    low, high = (f"{right[m]:.1%} ({METHODS[m].title})" for m in (right.idxmin(), right.idxmax()))
    sentence = (
        f"{len(info)} networks ({spec.title}), trained from {start}; at the end they had {low} to {high} "
        "of their training images right, in the mean of a method."
    )
    if options.held_out:
        first, middle, last = (f"{info['epoch'].quantile(q):.0f}" for q in (0, 0.5, 1))
        sentence += (
            f" Of {options.epochs} epochs one between {first} and {last} stayed (median {middle}), by the "
            f"class-balanced loss on {options.held_out:.0%} of the training images, which trained nothing."
        )
    return predictions, sentence


def head_options(train: dict) -> HeadOptions:
    """How linear heads are trained, by the section ``train`` of params.yaml."""
    return read(HeadOptions, train["robust"], "train.robust", {"through": train["through"]})


def tested(sets: pd.DataFrame) -> pd.DataFrame:
    """The test images of some sets, as predictions begin: without a score."""
    test = sets.loc[sets["part"] != "train", ["level", "seed", "part", "row", "minority"]]
    return test.rename(columns={"part": "test"}).reset_index(drop=True)
