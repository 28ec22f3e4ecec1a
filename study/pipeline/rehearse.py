"""A study rehearsed at its true size, without an image: how long it will take, and how much memory.

    python -m study.pipeline.rehearse ANNOTATIONS [--study celeba-smiling] [--natural] [--seeds N] [--varied]

Identities and attributes are those of a table, ``image``, ``identity`` and attributes of 0 and 1, as
parquet or CSV; proxies and features are made up. Sets are drawn, weighed, trained on and evaluated as
the stages do it, one step after another. Nothing is kept, and nothing of a study is touched.
"""

import resource
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd

from cid.names import suggest
from study.experiment import proxies, runs, variations
from study.experiment.arrays import Arrays
from study.experiment.design import draw_sets, usable_identities
from study.pipeline import kept, params
from study.results import inference, tables
from study.results.claims import PRIMARY

PROXY, TRUNK = 128, 2048  # numbers a face, as dlib-resnet has
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
    for column in ("image", "identity", task):
        if column not in frame:
            near = suggest(column, map(str, frame))
            raise ValueError(f"{path} has no column {column!r}{near}; the study needs it")
        if column != task and frame[column].isna().any():
            row = int(frame[column].isna().argmax())
            raise ValueError(f"{path}: {column} is empty in row {row}; fill it in or drop the row")
    found = frame[task].dropna().unique()
    if not set(found) <= {0, 1}:
        values = ", ".join(map(str, found[:5]))
        raise ValueError(f"{path}: {task} holds {values}; an attribute is 0 or 1, or empty")
    return frame


def made_up(identities, labels) -> Arrays:
    """Proxies and features of images that nobody has: the same for the same people and labels.

    A person is a cluster, as near to others as in face embeddings; a label moves an image a little in
    the proxy and more in the features.
    """
    rng = np.random.default_rng(0)
    people, n = np.unique(identities, return_inverse=True)[1], len(labels)
    side = np.nan_to_num(2.0 * labels - 1).astype(np.float32)[:, None]

    def normal(*shape) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    proxy = 2 + normal(people.max() + 1, PROXY)[people]
    proxy += 0.7 * normal(n, PROXY) + 0.15 * side * normal(PROXY)
    trunk = normal(n, TRUNK)
    trunk[:, :PROXY] += proxy
    trunk += 0.05 * side * normal(TRUNK)
    return Arrays(proxy, trunk, np.asarray(labels, dtype=float), np.asarray(identities))


def as_found(own: dict, seeds: int = NATURAL_SEEDS) -> dict:
    """The parameters of a study with the data as they are: bias of the kind natural."""
    bias = own["bias"] | {"kind": "natural", "levels": [0.0], "people": None, "cohorts": False}
    level = {"level": 0.0}
    changed = {"bias": bias, "seeds": seeds, "breadth": own["breadth"] | {"kinds": ["natural"]}}
    changed |= {part: own[part] | level for part in ("proxies", "ablation")}
    return own | changed


class Steps:
    """What has been done: rows of ``step``, ``seconds`` and the peak ``GB`` of the process."""

    def __init__(self, show=print):
        self.rows, self.show = [], show

    def __call__(self, name: str, work):
        """Do the work, and note what it took."""
        _forget_peak()
        began = time.perf_counter()
        result = work()
        row = {"step": name, "seconds": time.perf_counter() - began, "GB": _peak()}
        self.rows.append(row)
        self.show(f"{name}: {row['seconds']:.1f} s, {row['GB']:.1f} GB")
        return result


def _forget_peak() -> None:
    """Let the peak begin anew, where Linux allows it; else it is that of all steps so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> float:
    """The largest memory of the process since it was forgotten, in GB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1e6
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def rehearse(frame: pd.DataFrame, own: dict, varied: bool = False, show=print) -> pd.DataFrame:
    """The steps of a study with the parameters ``own``, on the people and labels of ``frame``.

    Returns
    -------
    pandas.DataFrame
        ``step``, ``seconds``, ``GB``. Every method is weighed by itself, so what several share is
        counted for each. ``varied``: also breadth, proxies and ablations.
    """
    steps, task = Steps(show), own["task"]
    people = frame["identity"].astype(str).to_numpy()
    arrays = steps("make up", lambda: made_up(people, frame[task].to_numpy(dtype=float)))
    data = arrays.proxy, arrays.labels, arrays.identities
    where = dict(seeds=own["seeds"], **own["bias"])
    sets = steps("draw", lambda: draw_sets(people, arrays.labels, **where))
    for method in own["methods"]:
        given = sets, *data, [method], own["weights"]
        found = steps(f"weigh: {method}", lambda given=given: runs.weigh_sets(*given))
        sets = sets.join(found[found.columns.difference(sets.columns)])
    # Linear heads, because networks need faces.
    fitted = sets, arrays.features, arrays.labels, own["methods"], own["train"]
    predictions, _ = steps("train", lambda: runs.train_sets(*fitted))
    given, many = (arrays.labels, people), {"replicates": own["bootstrap"]}
    evaluated = predictions, own["methods"], *given
    steps("evaluate", lambda: inference.estimate(*evaluated, **many))
    if varied:
        _vary(frame, own, arrays, steps, many)
    return pd.DataFrame(steps.rows)


def _vary(frame, own: dict, arrays: Arrays, steps: Steps, many: dict) -> None:
    """What varies the study, as the stages breadth, proxies and ablate do it."""
    keys = ("seeds", "bias", "weights", "train")
    settings = {key: own[key] for key in keys} | {"methods": own["breadth"]["methods"]}

    def judged(predictions, labels, methods, condition="level"):
        more = many | {"metrics": PRIMARY, "condition": condition}
        return inference.estimate(predictions, methods, labels, arrays.identities, **more)

    def study(kind, task):
        labels = frame[task].to_numpy(dtype=float)
        other = Arrays(arrays.proxy, arrays.features, labels, arrays.identities)
        changed = settings | {"bias": own["bias"] | {"kind": kind}}
        return judged(variations.run(other, changed), labels, settings["methods"])

    for kind in own["breadth"]["kinds"]:
        for task in own["breadth"]["tasks"]:
            steps(f"breadth: {task}, {kind}", lambda kind=kind, task=task: study(kind, task))
    settings["methods"], level = own["proxies"]["methods"], own["proxies"]["level"]
    versions = proxies.degraded(arrays.proxy, arrays.identities, own["proxies"]["noise"])

    def compare():
        found = variations.vary_proxy(arrays, settings, versions, level)
        return judged(found, arrays.labels, settings["methods"], "value")

    steps("proxies", compare)
    some, design = settings | own["ablation"], arrays.design()
    for name, one in own["ablations"].items():

        def ablate(one=one):
            what = one["setting"], one["values"], own["ablation"]["level"]
            found = variations.vary(arrays, some, *what, design=design)
            return judged(found, arrays.labels, some["methods"], "value")

        steps(f"ablation: {name}", ablate)


def people_sentence(frame: pd.DataFrame, own: dict) -> str:
    """How many people are usable, and the cohorts they make."""
    bias, n = own["bias"], frame["identity"].nunique()
    how = [bias[key] for key in ("images_per_identity", "test_per_class", "kind", "levels")]
    table = usable_identities(frame["identity"].astype(str), frame[own["task"]], *how)
    usable = int(table["usable"].sum())
    said = f"{len(frame):,} images of {n:,} people, {usable:,} of them usable for {own['task']}"
    if not bias["cohorts"]:
        return f"{said}."
    most = usable // bias["people"]
    return f"{said}: {most} cohorts of {bias['people']}, of which {own['seeds']} are taken."


def told(steps: pd.DataFrame, images: int, times: float = 1.0) -> str:
    """The table, and what a real run will take if its steps take ``times`` as long."""
    rows = [[row.step, f"{row.seconds:.1f}", f"{row.GB:.1f}"] for row in steps.itertuples()]
    real = steps[steps["step"] != "make up"]
    embedding, rest = images / FACES / 60, times * real["seconds"].sum() / 60
    return "\n".join(
        [
            tables.markdown_table(["step", "seconds", "GB"], rows),
            f"Predicted for the real run: {embedding + rest:.0f} minutes, {embedding:.0f} of them "
            f"before the first step, to embed the faces ({FACES} a second on 2 cores), and "
            f"{steps['GB'].max():.0f} GB of memory.",
        ]
    )


@params.command
def main(argv: list[str] | None) -> None:
    parser = ArgumentParser("study.pipeline.rehearse", description=__doc__.split("\n")[0])
    parser.add_argument("annotations", help="table: image, identity, attributes of 0 and 1")
    parser.add_argument("--study", default="celeba-smiling", help="of a file in studies/")
    parser.add_argument("--natural", action="store_true", help="with the data as they are, 3 seeds")
    parser.add_argument("--seeds", type=int, help="rehearse fewer; the prediction is for all")
    parser.add_argument("--varied", action="store_true", help="breadth, proxies, ablations as well")
    args = parser.parse_args(argv)
    own = kept.resolve(args.study)
    own = as_found(own) if args.natural else own
    seeds = args.seeds or own["seeds"]
    if not 2 <= seeds <= own["seeds"]:
        raise ValueError(f"--seeds is {seeds}; it must be from 2 to the study's {own['seeds']}")
    tasks = [own["task"], *(own["breadth"]["tasks"] if args.varied else [])]
    frame = [read_annotations(args.annotations, task) for task in dict.fromkeys(tasks)][0]
    print(people_sentence(frame, own), flush=True)
    found = rehearse(
        frame, own | {"seeds": seeds}, args.varied, lambda text: print(text, flush=True)
    )
    print(f"\n{told(found, len(frame), own['seeds'] / seeds)}")


if __name__ == "__main__":
    sys.exit(main())
