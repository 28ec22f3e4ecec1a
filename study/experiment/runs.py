"""TODO."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cid.device import pick_device
from cid.heads import Design, Heads
from cid.methods import METHODS, get_method, group_column, training_groups, training_weights
from cid.networks import KINDS, Options, _place, fit, get_model, initialisation, read_options
from cid.trainers import Cell, Options, _fit_cell
from cid.trainers import Options as LinearOptions
from study.faces.dataset import FaceSet
from study.faces.embed import aligned_faces
from study.source import code
from study.store import digest, kept, read, write

KEPT = ("logits", "loss", "seconds")  # of a finished run


def train_networks(
    sets: pd.DataFrame,
    inputs,
    labels,
    methods: list[str],
    model: str,
    options: Options | None = None,
    *,
    training: dict[str, str] | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    progress: str | None = None,
    rank: int = 0,
    world: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every method on the training set of every seed and score the test images.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`study.experiment.runs.weigh_sets`: a weight column a method, and a column
        ``<method>:group`` for a method of a kind that works on groups.
    inputs, labels, model, options, device
        As in :func:`fit`.
    methods : list of str
    training : dict of str, optional
        Kind of a method, for methods whose kind is not the one the registry gives.
    folder : path, optional
        Where finished runs are kept. A later call takes from it every run of which nothing has
        changed, and goes on with the one that was interrupted.
    progress : str, optional
        Label of a progress bar over the runs; none without it.
    rank, world : int
        Of ``world`` processes that share a folder, the one with this number trains its part of the
        runs only. They need not run at the same time.

    Returns
    -------
    predictions : pandas.DataFrame
        One row a test image and seed: ``seed``, ``test``, ``row``, and a score (logit of class 1)
        for every method, as :func:`study.experiment.runs.train_sets` returns. With ``world`` above 1, NaN for
        other processes' runs that are not finished.
    info : pandas.DataFrame
        One row a finished run: ``seed``, ``method``, ``training``, ``initialised``, ``loss`` (mean
        training risk of the last epoch) and ``seconds``.

    Raises
    ------
    ValueError
        As :func:`fit`, or on a missing column of ``sets``, an unreadable file in ``folder``, or
        processes that cannot share.
    """
    options = options or read_options(model)
    device = pick_device(device)
    inputs, labels = _place(inputs, device), np.asarray(labels)
    registered = {name: METHODS[name].training for name in methods if name in METHODS}
    kinds = {name: "weighted" for name in methods} | registered | (training or {})
    parts = {seed: _split(sets, seed) for seed in sets["seed"].unique().tolist()}
    # Before hours of training: every column that a run will ask for.
    given = {
        (seed, name): _columns(train, name, kinds[name])
        for seed, (train, _) in parts.items()
        for name in methods
    }
    # ERM goes before the methods that start from its network, which is then at hand.
    ordered = sorted(methods, key=lambda name: kinds[name] == "retrain")
    # By method, then by seed: every process gets its part of the methods that take longest, and if
    # the seeds divide evenly whole seeds. What is finished must not matter, as it changes meanwhile.
    mine = set([(seed, name) for name in ordered for seed in parts][rank :: max(world, 1)])
    if world > 1 and folder is None or not 0 <= rank < world or not mine and given:
        raise ValueError(
            f"process {rank} of {world} cannot share {len(given)} runs; give a folder, number the "
            "processes from 0, and start no more of them than there are runs"
        )
    origin = initialisation(model, options.pretrained)
    files, finished = {}, {}
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        shared = digest(model, origin, device.type, code(__name__), inputs)
        for (seed, name), columns in given.items():
            rows, test_rows = (part["row"].to_numpy() for part in parts[seed])
            own = [kinds[name], _options_of(kinds[name], options), seed, rows, labels[rows]]
            key = digest(shared, *own, test_rows, *columns.items())
            files[seed, name] = Path(folder) / f"{model}-{seed}-{name}-{key[:16]}.npz"
        finished = {run: found for run, file in files.items() if (found := _read_run(file))}

    with _bar(progress, len(mine), len(mine & finished.keys())) as bar:
        for seed, (train, test) in parts.items():
            base = None
            for name in ordered:
                run = seed, name
                if run in finished or run not in mine:
                    continue
                began, file = time.monotonic(), files.get(run)

                def show(done, total, risk, run=run, before=bar.n):
                    bar.set_postfix_str(f"seed {run[0]}, {run[1]}, loss {risk:.3f}", refresh=False)
                    bar.update(before + done / total - bar.n)

                fitted = fit(
                    model,
                    inputs,
                    labels,
                    train["row"],
                    training=kinds[name],
                    **given[run],
                    options=options,
                    seed=seed,
                    device=device,
                    base=base if kinds[name] == "retrain" else None,
                    checkpoint=file and file.with_suffix(".pt"),
                    on_epoch=show,
                )
                logits = fitted.logits(inputs, test["row"])
                finished[run] = logits, fitted.loss, time.monotonic() - began
                if kinds[name] == "weighted" and np.ptp(given[run]["weights"]) == 0:
                    base = fitted
                if file:
                    kept = dict(zip(KEPT, finished[run], strict=True))
                    write(file, lambda stream, kept=kept: np.savez(stream, **kept))
                    file.with_suffix(".pt").unlink(missing_ok=True)
                bar.n = len(mine & finished.keys())  # a run may go by without an epoch
                bar.update(0)

    tables, info = [], []
    for seed, (_, test) in parts.items():
        table = test[["seed", "part", "row"]].rename(columns={"part": "test"})
        for name in methods:
            table[name] = np.float32("nan")
            if (seed, name) in finished:
                table[name], loss, seconds = finished[seed, name]
                info.append((seed, name, kinds[name], origin, loss, seconds))
        tables.append(table)
    head = ["seed", "method", "training", "initialised", "loss", "seconds"]
    return pd.concat(tables, ignore_index=True), pd.DataFrame(info, columns=head)


def train_model(
    sets,
    data: FaceSet,
    features,
    landmarks,
    labels,
    methods: list[str],
    train: dict,
    *,
    folder=None,
    rank: int = 0,
    world: int = 1,
) -> tuple[pd.DataFrame, str]:
    """Train the model that ``train.model`` names, linear heads or a network.

    Parameters
    ----------
    sets, labels, methods, folder, rank, world
        As in :func:`train_networks`; linear heads are fitted together, by every process.
    data : FaceSet
        Its faces are cut for a network that takes images.
    features : float32 array, shape (n, d)
        For models that take features.
    landmarks : array, shape (n, 5, 2)
        From :func:`cid.align.detect`.
    train : dict
        The section ``train`` of params.yaml.

    Returns
    -------
    predictions : pandas.DataFrame
    about : str
        One sentence on what was trained.
    """
    if train["model"] == "linear":
        options = LinearOptions.of(train["robust"], train["through"])
        predictions, heads = train_sets(
            sets,
            features,
            labels,
            methods,
            train["l2"],
            options,
            folder=folder,
            progress="fit heads",
        )
        return predictions, (
            f"{len(heads.weight)} linear heads on {features.shape[1]:,} features converged in at most "
            f"{heads.iterations} steps (largest gradient left: {heads.gradient.max():.0e} of the "
            "initial one)."
        )
    model = get_model(train["model"])
    inputs = features if model.side is None else aligned_faces(data, landmarks, model.side)
    options = read_options(train["model"], train["network"])
    predictions, info = train_networks(
        sets,
        inputs,
        labels,
        methods,
        train["model"],
        options,
        folder=folder,
        progress="networks",
        rank=rank,
        world=world,
    )
    start = {"imagenet": "ImageNet weights", "scratch": "scratch"}[info["initialised"].iloc[0]]
    return predictions, f"{len(info)} networks ({model.title}), trained from {start}."


def _options_of(kind: str, options: Options) -> dict:
    """The options that a training kind depends on."""
    foreign = {key for keys in KINDS.values() for key in keys} - set(KINDS[kind])
    return {key: value for key, value in asdict(options).items() if key not in foreign}


def _split(sets: pd.DataFrame, seed) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training and the test images of a seed."""
    part = sets[sets["seed"] == seed]
    return part[part["part"] == "train"], part[part["part"] != "train"]


def _columns(train: pd.DataFrame, name: str, kind: str) -> dict[str, np.ndarray]:
    """The weights or groups of a training set that a kind works with."""
    what = {"weighted": "weights", "group-dro": "groups", "retrain": "groups"}.get(kind)
    if what is None:
        return {}
    column = name if what == "weights" else group_column(name)
    if column not in train or train[column].isna().any():
        raise ValueError(
            f"the sets lack the column {column!r}, or a value in it, which training of the kind "
            f"{kind} needs; weigh the sets by the method {name!r} again"
        )
    return {what: train[column].to_numpy(np.float64 if what == "weights" else np.int64)}


def _read_run(path: Path) -> tuple[np.ndarray, float, float] | None:
    """A finished run, if it is kept there."""
    found = read(path)
    if found is None:
        return None
    logits, loss, seconds = (found[name] for name in KEPT)
    return logits, float(loss), float(seconds)


def _bar(label: str | None, runs: int, finished: int) -> tqdm:
    """A bar over runs that also moves within a run, so that its estimate holds from the first on."""
    layout = (
        "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}{postfix}]"
    )
    how = {"mininterval": 5, "miniters": 0, "smoothing": 0, "bar_format": layout}
    return tqdm(total=runs, initial=finished, desc=label, disable=label is None, **how)


def weigh_sets(
    sets: pd.DataFrame,
    embeddings,
    labels,
    identities,
    methods: list[str],
    settings: dict,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Weigh the training set of every seed by every method.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`study.experiment.design.draw_sets`.
    embeddings, labels, identities : array, shape (n, ...)
        Of the whole data set; identities may be None where no method sees them.
    methods : list of str
    settings : dict
        As in :func:`training_weights`.
    folder : path, optional
        Where the weights of a seed are kept: a later call takes from it whatever it would compute
        in the same way.

    Returns
    -------
    pandas.DataFrame
        ``sets`` with one column a method, the weight of a training image, and one column
        ``<method>:group`` for each method with groups; NaN for a test image.
    """
    columns = list(methods) + [group_column(m) for m in methods if get_method(m).groups]
    found = pd.DataFrame(np.nan, index=sets.index, columns=columns)
    for _, train in sets[sets["part"] == "train"].groupby("seed"):
        rows = train["row"].to_numpy()
        people = None if identities is None else np.unique(identities[rows], return_inverse=True)[1]
        given = embeddings[rows], labels[rows], people

        def weigh(given=given) -> dict:
            columns, shared = {}, {}
            for method in methods:
                columns[method] = training_weights(method, *given, settings, shared)
                groups = training_groups(method, *given, settings, shared)
                if groups is not None:
                    columns[group_column(method)] = groups
            return columns

        name = digest(*given, methods, settings, code(__name__))[:24] if folder is not None else ""
        for column, values in kept(folder, f"weights-{name}", weigh).items():
            found.loc[train.index, column] = values
    return pd.concat([sets, found], axis=1)


SEEDS = 10  # fitted and kept together: another seed changes no byte of a full block


def train_sets(
    sets: pd.DataFrame,
    features,
    labels,
    methods: list[str],
    l2: float,
    options: Options = Options(),
    *,
    design: Design | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    progress: str | None = None,
) -> tuple[pd.DataFrame, Heads]:
    """Train every method on the training set of every seed and score the test images.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`study.experiment.runs.weigh_sets`.
    features : float32 array, shape (n, d)
        Of the whole data set; labels likewise.
    methods : list of str
        Weight columns of ``sets``. A method that is not of the registry is trained by its weights.
    l2 : float
        As in :func:`fit_heads`.
    options : Options
    design : Design, optional
        As in :func:`fit_heads`.
    folder : path, optional
        Where heads are kept, :data:`SEEDS` seeds at a time: a later call takes from it whatever it
        would compute in the same way.

    Returns
    -------
    predictions : pandas.DataFrame
        One row a test image and seed: ``seed``, ``test``, ``row``, and a score (logit of class 1)
        for every method.
    heads : Heads
        In the order (seed, method), methods fastest.
    """
    labels = np.asarray(labels)
    seeds = sets["seed"].unique()
    train, test = sets[sets["part"] == "train"], sets[sets["part"] != "train"]
    columns = [c for m in methods for c in (m, group_column(m)) if c in train]
    about = ""
    if folder is not None:
        data = design.digest if design else digest(features, labels, pick_device(device).type)
        about = digest(data, methods, l2, asdict(options), code(__name__))
    blocks = []
    for start in range(0, len(seeds), SEEDS):
        own = seeds[start : start + SEEDS]
        part = train[train["seed"].isin(own)]

        def fit(part=part, own=own) -> dict:
            ready = design or Design(features, labels, part["row"].unique(), device)
            return _fit_cell(
                Cell(part, own, features, labels, ready, l2, options, progress), methods
            )

        key = digest(about, *(part[c].to_numpy() for c in ("seed", "row", *columns)))
        blocks.append(kept(folder, f"heads-{key[:24]}", fit))
    heads = Heads(
        np.concatenate([block["weight"] for block in blocks]),
        np.concatenate([block["bias"] for block in blocks]),
        max(int(block["iterations"]) for block in blocks),
        np.concatenate([block["gradient"] for block in blocks]),
    )
    scores = heads.logits(features).reshape(len(seeds), len(methods), len(labels))
    place = np.searchsorted(seeds, test["seed"])
    predictions = test[["seed", "part", "row"]].rename(columns={"part": "test"})
    for m, method in enumerate(methods):
        predictions[method] = scores[place, m, test["row"]]
    return predictions.reset_index(drop=True), heads
