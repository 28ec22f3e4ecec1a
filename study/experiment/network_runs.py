"""Networks trained on every training set by every method, several at once, each kept when finished.

A *run* is one network: a method on one set. An interrupted run goes on from its last checkpoint.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cid.arrays import pick_device
from cid.models import initialisation, read_options
from cid.options import NetworkOptions, of_kind
from cid.schedule import best_options, candidates, held_out_loss, is_open
from cid.training import Fitted, fit, place
from study import store
from study.cores import on_all_cores
from study.experiment.arrays import whole
from study.experiment.runs import tested
from study.methods.registry import METHODS, kind_of, needed_column

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}{postfix}]"


@dataclass(eq=False)
class NetworkRun:
    """One network to train: a method on a set."""

    level: float
    seed: int
    method: str
    training: str  # the kind of training
    needed: dict[str, np.ndarray]  # the weights or groups that this kind of training works with
    rows: np.ndarray  # of the training images
    tested: pd.Series  # rows of the test images, by their place in the predictions
    options: NetworkOptions  # those of all runs of the level, whatever the method
    file: Path | None = None  # where it is kept
    result: dict | None = None  # once finished: logits of the test images, and what info holds

    @property
    def checkpoint(self) -> Path | None:
        """Where the state of an unfinished run is kept."""
        return self.file and self.file.with_suffix(".pt")


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

    On a CPU a run has one thread, and one run a core is trained at the same time: small networks gain
    little from more threads, and so no byte depends on the number of cores.

    Parameters
    ----------
    sets, methods, progress
        As in :func:`study.experiment.runs.train_sets`.
    inputs, labels, model, options, device
        As in :func:`cid.training.fit`.
    folder
        As in :func:`study.experiment.runs.weigh_sets`; an interrupted run goes on from there, too.
    rank, world : int
        Of ``world`` processes that share a folder, the one with this number trains its part of the
        runs only. They need not run at the same time.

    Returns
    -------
    predictions : pandas.DataFrame
        As from :func:`study.experiment.runs.train_sets`. With ``world`` above 1, NaN for other
        processes' runs that are not finished.
    info : pandas.DataFrame
        One row a finished run: ``level``, ``seed``, ``method``, ``training``, ``initialised``,
        ``epochs`` and ``weight_decay`` (as given, or as chosen where the options say ``auto``),
        ``epoch`` (that stayed, from 1), ``loss`` (its mean training risk), ``accuracy`` (share of the
        images trained on that the network classifies correctly) and ``seconds``.

    Raises
    ------
    ValueError
        As :func:`cid.training.fit`, or on a missing column of ``sets``, or processes that cannot share.
    """
    options = options or read_options(model)
    device = pick_device(device)
    inputs = place(inputs, device)
    labels = whole(labels)
    start = initialisation(model, options.pretrained)

    predictions = tested(sets).assign(**dict.fromkeys(methods, np.float32("nan")))
    shared = None if folder is None else store.digest(model, start, device.type, inputs)
    by_level = dict.fromkeys(sets["level"].unique(), options)
    if is_open(options):
        choice = _Choice(model, inputs, labels, options, device, folder, shared)
        by_level = {level: choice.at_level(sets, level) for level in by_level}
    runs = _runs(sets, predictions, methods, by_level)
    if folder is not None:
        for run in runs:
            run.file = _file(run, folder, model, labels, shared)
            run.result = store.read(run.file)
    # Two methods can weight a set alike, such as erm and balanced if the classes have the same size:
    # then one run is trained for both.
    distinct = {}
    for run in runs:
        distinct.setdefault(run.file or id(run), run)
    mine = _share(list(distinct.values()), folder, rank, world)
    # Set by set, so that whole sets are finished first.
    missing = sorted((run for run in mine if not run.result), key=lambda run: (run.level, run.seed))
    bar = tqdm(
        desc=progress,
        total=len(mine),
        initial=len(mine) - len(missing),
        disable=progress is None,
        bar_format=BAR,
        mininterval=5,
        miniters=0,
        smoothing=0,
    )
    with bar:
        training = _Training(model, inputs, labels, device, bar)
        on_all_cores(training.train_chain, _chains(missing), device)
    for run in runs:
        run.result = run.result or distinct[run.file or id(run)].result
        if run.result:
            predictions.loc[run.tested.index, run.method] = run.result["logits"]
    return predictions, _info(runs, start)


@dataclass(frozen=True)
class _Choice:
    """What :mod:`cid.schedule` chooses, once a level, for ERM; every method of the level takes it."""

    model: str
    inputs: torch.Tensor
    labels: np.ndarray
    options: NetworkOptions
    device: torch.device
    folder: str | Path | None
    shared: str | None  # the digest of what all runs have in common

    def at_level(self, sets: pd.DataFrame, level: float) -> NetworkOptions:
        """The options of a level, by its first training set."""
        cell = sets[(sets["level"] == level) & (sets["part"] == "train")]
        seed = int(cell["seed"].min())
        rows = cell.loc[cell["seed"] == seed, "row"].to_numpy()
        tried = candidates(self.options)

        def loss_of(options: NetworkOptions) -> float:
            kept = store.kept(
                self.folder,
                f"schedule-{self.model}",
                {
                    "shared": self.shared,
                    "options": of_kind(options, "weighted"),
                    "seed": seed,
                    "rows": rows,
                    "labels": self.labels[rows],
                },
                code=["cid.schedule.held_out_loss"],
                compute=lambda: {
                    "loss": held_out_loss(
                        self.model,
                        self.inputs,
                        self.labels,
                        rows,
                        options,
                        seed=seed,
                        device=self.device.type,
                    )
                },
            )
            return float(kept["loss"])

        return best_options(tried, on_all_cores(loss_of, tried, self.device))


def _runs(
    sets: pd.DataFrame,
    tests: pd.DataFrame,
    methods: list[str],
    by_level: dict[float, NetworkOptions],
) -> list[NetworkRun]:
    """Every run by method, then by set; a ValueError names a column that a method lacks."""
    train = sets[sets["part"] == "train"]
    test_rows = dict(list(tests.groupby(["level", "seed"])["row"]))
    runs = []
    for method in sorted(methods, key=lambda method: kind_of(method) == "retrain"):
        kind = kind_of(method)
        name = "weights" if kind == "weighted" else METHODS[method].needs
        column = method if name == "weights" else needed_column(method)
        if name and (column not in train or train[column].isna().any()):
            raise ValueError(
                f"the sets lack the column {column!r}, or a value in it, which training of the kind "
                f"{kind} needs; weigh the sets by the method {method!r} again"
            )
        for (level, seed), training_set in train.groupby(["level", "seed"]):
            run = NetworkRun(
                level=level,
                seed=int(seed),
                method=method,
                training=kind,
                needed={name: training_set[column].to_numpy()} if name else {},
                rows=training_set["row"].to_numpy(),
                tested=test_rows[level, seed],
                options=by_level[level],
            )
            runs.append(run)
    return runs


def _file(run: NetworkRun, folder, model: str, labels, shared: str) -> Path:
    """Where a run is kept; ``shared`` is the digest of what all runs have in common."""
    inputs = {
        "shared": shared,
        "training": run.training,
        "options": of_kind(run.options, run.training),
        "seed": run.seed,
        "rows": run.rows,
        "labels": labels[run.rows],
        "needed": run.needed,
        "tested": run.tested.to_numpy(),
    }
    label = f"{model}-{run.seed}-{run.training}"
    return store.kept_path(folder, label, inputs, code=["cid.training.fit"])


def _share(runs: list[NetworkRun], folder, rank: int, world: int) -> list[NetworkRun]:
    """The part of all runs that the process ``rank`` of ``world`` trains.

    The runs are listed by method, then by set: so every process gets its part of the methods that take
    longest, and, if the sets divide evenly, whole sets. Which runs are finished must not matter, because
    that changes while the processes work.
    """
    mine = runs[rank :: max(world, 1)]
    shareable = world <= 1 or folder is not None
    if not shareable or not 0 <= rank < world or (runs and not mine):
        raise ValueError(
            f"process {rank} of {world} cannot share {len(runs)} runs; give a folder, number the "
            "processes from 0, and start no more of them than there are runs"
        )
    return mine


def _chains(runs: list[NetworkRun]) -> list[list[NetworkRun]]:
    """Runs to be trained one after the other: a run that retrains a last layer comes after ERM's run of
    the same set, if that is here, and every other run is alone."""
    chains = []
    erm = {}
    for run in runs:
        where = (run.level, run.seed)
        if run.training == "retrain" and where in erm:
            erm[where].append(run)
            continue
        chains.append([run])
        if run.training == "weighted" and np.ptp(run.needed["weights"]) == 0:
            erm.setdefault(where, chains[-1])
    return chains


class _Training:
    """What all runs are trained on and how; on a CPU several threads train at the same time."""

    def __init__(self, model: str, inputs, labels, device, bar: tqdm):
        self.model = model
        self.inputs = inputs
        self.labels = labels
        self.device = device
        self.bar = bar
        self.lock = Lock()  # of the bar

    def train_chain(self, chain: list[NetworkRun]) -> None:
        """Train runs one after the other: the first can be the network that the others start from."""
        base = None
        for run in chain:
            fitted = self.train(run, base)
            base = base or fitted

    def train(self, run: NetworkRun, base: Fitted | None) -> Fitted:
        """Train a run, and keep it in its file if it has one."""
        began = time.monotonic()
        progress = _Progress(self, run)
        fitted = fit(
            self.model,
            self.inputs,
            self.labels,
            run.rows,
            **run.needed,
            training=run.training,
            options=run.options,
            seed=run.seed,
            device=self.device,
            base=base,
            checkpoint=run.checkpoint,
            save=_save,
            on_epoch=progress.show,
        )
        trained_on = fitted.rows
        right = (fitted.logits(self.inputs, trained_on) > 0) == (self.labels[trained_on] == 1)
        run.result = {
            "logits": fitted.logits(self.inputs, run.tested),
            "accuracy": right.mean(),
            "loss": fitted.loss,
            "epoch": fitted.epoch,
            "seconds": time.monotonic() - began,
        }
        if run.file:
            store.keep(run.file, run.result)
            run.checkpoint.unlink(missing_ok=True)
        progress.finish()
        return fitted


class _Progress:
    """A run's share of the bar, which moves within a run so that its estimate holds from the start."""

    def __init__(self, training: _Training, run: NetworkRun):
        self.training = training
        self.run = run
        self.shown = 0.0  # share of the run that the bar shows

    def show(self, done: int, epochs: int, risk: float) -> None:
        """Called after every epoch."""
        run = self.run
        text = f"level {run.level:g}, seed {run.seed}, {run.method}, loss {risk:.3f}"
        with self.training.lock:
            self.training.bar.set_postfix_str(text, refresh=False)
            self.training.bar.update(done / epochs - self.shown)
        self.shown = done / epochs

    def finish(self) -> None:
        """Show the whole run: one that was resumed can end without an epoch."""
        with self.training.lock:
            self.training.bar.update(1 - self.shown)


def _save(state: dict, path: Path) -> None:
    """Write a checkpoint; it appears complete or not at all."""
    store.write(path, lambda file: torch.save(state, file))


def _info(runs: list[NetworkRun], start: str) -> pd.DataFrame:
    """The table ``info`` of :func:`train_networks`."""
    numbers = {"epoch": int, "loss": float, "accuracy": float, "seconds": float}
    rows = []
    for run in runs:
        if run.result:
            row = {
                "level": run.level,
                "seed": run.seed,
                "method": run.method,
                "training": run.training,
                "initialised": start,
                "epochs": run.options.epochs,
                "weight_decay": run.options.weight_decay,
            }
            rows.append(row | {name: run.result[name] for name in numbers})
    of_run = ["level", "seed", "method", "training", "initialised", "epochs", "weight_decay"]
    return pd.DataFrame(rows, columns=[*of_run, *numbers]).astype(numbers)
