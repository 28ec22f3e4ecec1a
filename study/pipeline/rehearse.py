"""A study rehearsed at its true size without an image: how long it will take, and how much memory.

    python -m study rehearse ANNOTATIONS [--study celeba-smiling-8] [--natural] [--seeds N] [--varied]

Identities and attributes come from a table, parquet or CSV, with the columns ``image``, ``identity`` and
attributes of 0 and 1; proxies and features are made up. Sets are drawn, weighed, trained on and evaluated
as the stages do it, one step after another. Nothing is kept, and no file of a study is touched.
"""

import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cid.names import suggest
from study.commands import parser, run_renamed
from study.experiment import proxies, runs, variations
from study.experiment.arrays import Arrays
from study.experiment.design import count_cohorts, draw_sets, usable_identities
from study.pipeline import kept, params
from study.results import inference, tables
from study.results.claims import PRIMARY

PROXY = 128  # numbers a face, as dlib-resnet has
TRUNK = 2048
FACES = 100  # found, aligned and embedded in a second, on 2 cores
NATURAL_SEEDS = 3


def read_annotations(path: str | Path, task: str) -> pd.DataFrame:
    """The table: one row an image; ``ValueError`` names the file, the column and what is wrong."""
    try:
        reader = pd.read_csv if Path(path).suffix == ".csv" else pd.read_parquet
        frame = reader(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give the table of annotations") from None
    except (OSError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no parquet file or .csv ({problem})") from None
    if any(name is not None for name in frame.index.names):  # pandas stores them as columns
        frame = frame.reset_index()
    for column in ("image", "identity", task):
        if column not in frame:
            nearest = suggest(column, map(str, frame))
            raise ValueError(f"{path} has no column {column!r}{nearest}; the study needs it")
        if column != task and frame[column].isna().any():
            row = int(frame[column].isna().argmax())
            raise ValueError(f"{path}: {column} is empty in row {row}; fill it in or drop the row")
    values = frame[task].dropna().unique()
    if not set(values) <= {0, 1}:
        shown = ", ".join(map(str, values[:5]))
        raise ValueError(f"{path}: {task} holds {shown}; an attribute is 0 or 1, or empty")
    return frame


def make_up(identities, labels) -> Arrays:
    """Make up proxies and features; the same people and labels always give the same arrays.

    A person is a cluster, about as near to others as in face embeddings. A label moves an image a little
    in the proxy and more in the features.
    """
    rng = np.random.default_rng(0)
    people = np.unique(identities, return_inverse=True)[1]
    n = len(labels)
    side = np.nan_to_num(2.0 * labels - 1).astype(np.float32)[
        :, None
    ]  # (n, 1): -1, 1, or -1 for none

    def normal(*shape) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    proxy = 2 + normal(people.max() + 1, PROXY)[people]
    proxy += 0.7 * normal(n, PROXY) + 0.15 * side * normal(PROXY)
    features = normal(n, TRUNK)
    features[:, :PROXY] += proxy
    features += 0.05 * side * normal(TRUNK)
    return Arrays(
        proxy=proxy,
        features=features,
        labels=np.asarray(labels, dtype=float),
        identities=np.asarray(identities),
    )


def as_natural(study: Mapping, seeds: int = NATURAL_SEEDS) -> dict:
    """The parameters of a study with the data as they are: bias of the kind natural."""
    natural = {"kind": "natural", "levels": [0.0], "people": None, "cohorts": False}
    return {
        **study,
        "bias": study["bias"] | natural,
        "seeds": seeds,
        "breadth": study["breadth"] | {"kinds": ["natural"]},
        "proxies": study["proxies"] | {"level": 0.0},
        "ablation": study["ablation"] | {"level": 0.0},
    }


# ---- time and memory ---------------------------------------------------------------------------


class Stopwatch:
    """Measures steps: ``rows`` of ``step``, ``seconds`` and the peak ``GB`` of the process."""

    def __init__(self, show: Callable[[str], object] = print):
        self.rows: list[dict] = []
        self.show = show

    def measure(self, step: str, work: Callable[[], Any]) -> Any:
        """Do the work of a step; note and show what it took; return what it returned."""
        _forget_peak()
        began = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began
        memory = _peak()
        self.rows.append({"step": step, "seconds": seconds, "GB": memory})
        self.show(f"{step}: {seconds:.1f} s, {memory:.1f} GB")
        return result


def _forget_peak() -> None:
    """Let the peak begin anew, where Linux allows it; elsewhere it is that of all steps so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> float:
    """The largest memory of the process since :func:`_forget_peak`, in GB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1e6
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


# ---- the steps of a study ----------------------------------------------------------------------


class Rehearsal:
    """The steps of a study with its parameters, on the people and labels of a table.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`read_annotations`.
    study : mapping
        Parameters such as those of params.yaml.
    show : callable
        Receives a line after every step.
    """

    def __init__(self, frame: pd.DataFrame, study: Mapping, show: Callable[[str], object] = print):
        self.frame = frame
        self.study = study
        self.watch = Stopwatch(show)
        identities = frame["identity"].astype(str).to_numpy()
        labels = frame[study["task"]].to_numpy(dtype=float)
        self.arrays = self.watch.measure("make up", lambda: make_up(identities, labels))

    def run(self) -> None:
        """Draw, weigh, train and evaluate. Every method is weighed by itself, so what methods share is
        counted for each."""
        study = self.study
        arrays = self.arrays
        sets = self.watch.measure(
            "draw",
            lambda: draw_sets(
                arrays.identities, arrays.labels, seeds=study["seeds"], **study["bias"]
            ),
        )
        for method in study["methods"]:
            weigh = partial(
                runs.weigh_sets,
                sets,
                arrays.proxy,
                arrays.labels,
                arrays.identities,
                [method],
                study["weights"],
            )
            weighed = self.watch.measure(f"weigh: {method}", weigh)
            sets = sets.join(weighed[weighed.columns.difference(sets.columns)])
        predictions, _ = self.watch.measure(
            "train",
            lambda: runs.train_sets(  # linear heads, because networks need faces
                sets,
                arrays.features,
                arrays.labels,
                study["methods"],
                study["train"],
            ),
        )
        self.watch.measure(
            "evaluate",
            lambda: inference.estimate(
                predictions,
                study["methods"],
                arrays.labels,
                arrays.identities,
                replicates=study["bootstrap"],
            ),
        )

    def run_variations(self) -> None:
        """What the stages breadth, proxies and ablate do."""
        breadth = self.study["breadth"]
        for kind in breadth["kinds"]:
            for task in breadth["tasks"]:
                self.watch.measure(f"breadth: {task}, {kind}", partial(self._breadth, kind, task))
        noise = self.study["proxies"]["noise"]
        versions = proxies.degraded(self.arrays.proxy, self.arrays.identities, noise)
        self.watch.measure("proxies", lambda: self._proxies(versions))
        design = self.arrays.design()
        for name, ablation in self.study["ablations"].items():
            self.watch.measure(f"ablation: {name}", partial(self._ablation, ablation, design))

    def _settings(self, methods: list[str]) -> dict:
        """What :mod:`study.experiment.variations` reads of a study."""
        keys = ("seeds", "bias", "weights", "train")
        return {key: self.study[key] for key in keys} | {"methods": methods}

    def _evaluate(self, predictions, labels, methods, condition: str):
        return inference.estimate(
            predictions,
            methods,
            labels,
            self.arrays.identities,
            replicates=self.study["bootstrap"],
            metrics=PRIMARY,
            condition=condition,
        )

    def _breadth(self, kind: str, task: str):
        methods = self.study["breadth"]["methods"]
        settings = self._settings(methods)
        settings["bias"] = settings["bias"] | {"kind": kind}
        labels = self.frame[task].to_numpy(dtype=float)
        arrays = Arrays(
            proxy=self.arrays.proxy,
            features=self.arrays.features,
            labels=labels,
            identities=self.arrays.identities,
        )
        predictions = variations.run(arrays, settings)
        return self._evaluate(predictions, labels, methods, "level")

    def _proxies(self, proxies: Mapping[str, np.ndarray]):
        methods = self.study["proxies"]["methods"]
        level = self.study["proxies"]["level"]
        predictions = variations.vary_proxy(self.arrays, self._settings(methods), proxies, level)
        return self._evaluate(predictions, self.arrays.labels, methods, "value")

    def _ablation(self, ablation: Mapping, design):
        methods = self.study["ablation"]["methods"]
        settings = self._settings(methods) | self.study["ablation"]
        predictions = variations.vary(
            self.arrays,
            settings,
            ablation["setting"],
            ablation["values"],
            self.study["ablation"]["level"],
            design=design,
        )
        return self._evaluate(predictions, self.arrays.labels, methods, "value")


def rehearse(
    frame: pd.DataFrame, study: Mapping, varied: bool = False, show: Callable[[str], object] = print
) -> pd.DataFrame:
    """Do the steps of a study; ``varied`` adds breadth, proxies and ablations.

    Returns
    -------
    pandas.DataFrame
        ``step``, ``seconds``, ``GB``. Parameters as of :class:`Rehearsal`.
    """
    rehearsal = Rehearsal(frame, study, show)
    rehearsal.run()
    if varied:
        rehearsal.run_variations()
    return pd.DataFrame(rehearsal.watch.rows)


# ---- what is printed ---------------------------------------------------------------------------


def people_sentence(frame: pd.DataFrame, study: Mapping) -> str:
    """How many people are usable, and the cohorts they make."""
    bias = study["bias"]
    table = usable_identities(
        frame["identity"].astype(str),
        frame[study["task"]],
        bias["images_per_identity"],
        bias["test_per_class"],
        bias["kind"],
        bias["levels"],
    )
    people = frame["identity"].nunique()
    usable = int(table["usable"].sum())
    sentence = (
        f"{len(frame):,} images of {people:,} people, {usable:,} of them usable for {study['task']}"
    )
    if not bias["cohorts"]:
        return f"{sentence}."
    number, size = count_cohorts(usable, study["seeds"], bias["people"], bias["cohorts"])
    return f"{sentence}: {study['seeds']} seeds of {number} cohorts of {size} people."


def prediction(steps: pd.DataFrame, images: int, factor: float = 1.0) -> str:
    """The table of steps, and what a real run will take if its steps take ``factor`` times as long."""
    rows = [[row.step, f"{row.seconds:.1f}", f"{row.GB:.1f}"] for row in steps.itertuples()]
    table = tables.markdown_table(["step", "seconds", "GB"], rows)
    real = steps[steps["step"] != "make up"]
    embedding = images / FACES / 60  # minutes
    rest = factor * real["seconds"].sum() / 60
    return (
        f"{table}\n"
        f"Predicted for the real run: {embedding + rest:.0f} minutes, {embedding:.0f} of them "
        f"before the first step, to embed the faces ({FACES} a second on 2 cores), and "
        f"{steps['GB'].max():.0f} GB of memory."
    )


def main(arguments: list[str]) -> None:
    options = parser("rehearse")
    options.add_argument("annotations", help="table: image, identity, attributes of 0 and 1")
    options.add_argument("--study", default="celeba-smiling-8", help="name of a file in studies/")
    options.add_argument("--natural", action="store_true", help="the data as they are, 3 seeds")
    options.add_argument("--seeds", type=int, help="rehearse fewer; the prediction is for all")
    options.add_argument("--varied", action="store_true", help="also breadth, proxies, ablations")
    args = options.parse_args(arguments)

    study = params.filled(kept.resolve(args.study))
    if args.natural:
        study = as_natural(study)
    seeds = args.seeds or study["seeds"]
    if not 2 <= seeds <= study["seeds"]:
        raise ValueError(f"--seeds is {seeds}; it must be from 2 to the study's {study['seeds']}")
    frame = read_annotations(args.annotations, study["task"])
    if args.varied:
        for task in set(study["breadth"]["tasks"]) - {study["task"]}:
            read_annotations(args.annotations, task)  # refuses a table that lacks its column
    print(people_sentence(frame, study), flush=True)
    steps = rehearse(frame, study | {"seeds": seeds}, args.varied, partial(print, flush=True))
    print(f"\n{prediction(steps, len(frame), study['seeds'] / seeds)}")


if __name__ == "__main__":
    run_renamed(__spec__.name)
