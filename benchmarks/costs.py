"""What every method costs: seconds for one training set, weights and head apart, on one thread.

    python -m benchmarks.costs        adds the study in build/, by `dvc repro data embed`, to benchmarks/costs.csv

Methods are timed in turn on the same sets, each alone, so that nothing is shared: neighbours, Gram
matrices and first heads are computed anew for every method; every other set from the last method to the
first, as a machine that slows down would favour the first. ``ratio`` is the sum over ERM's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from study.experiment import runs, variations
from study.experiment.arrays import Arrays
from study.faces import dataset
from study.methods.registry import METHODS
from study.pipeline import params

TABLE = Path(__file__).with_name("costs.csv")
SETS = 4


def costs(arrays: Arrays, settings: dict, methods=tuple(METHODS)) -> pd.DataFrame:
    """Seconds of ``weights`` and ``head``, medians over training sets of the strongest bias."""
    level = max(settings["bias"]["levels"])
    sets = variations.drawn(arrays, settings | {"seeds": SETS}, [level])
    rows = []
    for seed, own in sets.groupby("seed"):
        for method in tqdm(methods[:: -1 if seed % 2 else 1], desc=f"set {seed}"):
            start = time.perf_counter()
            weighed = variations.weighed(arrays, own, settings | {"methods": [method]})
            middle = time.perf_counter()
            runs.train_sets(weighed, arrays.features, arrays.labels, [method], settings["train"])
            found = {"weights, s": middle - start, "head, s": time.perf_counter() - middle}
            rows.append({"method": method, "images": (own["part"] == "train").sum()} | found)
    table = pd.DataFrame(rows).groupby("method", sort=False).median()
    total = table["weights, s"] + table["head, s"]
    return table.assign(ratio=total / total["erm"]).reset_index()


def main() -> None:
    torch.set_num_threads(1)
    settings = params.read()
    data = dataset.read_labels()
    arrays = Arrays(
        np.load("build/embed/proxy.npy"),
        np.load("build/embed/trunk.npy"),
        data.labels(settings["task"]),
        data.identities(),
    )
    table = costs(arrays, settings).assign(study=settings["study"])
    known = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["study"])
    table = pd.concat([known[known["study"] != settings["study"]], table], ignore_index=True)
    table.insert(0, "study", table.pop("study"))
    table.to_csv(TABLE, index=False, float_format="%.3g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
