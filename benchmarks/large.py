"""Densities and posteriors by cells against the exact loops, on embeddings resampled from real photographs.

    python -m benchmarks.large N D BUILD ...     two rows of `large.csv`, and the table of `README.md`

BUILD is the folder `build/` of a clone that ran a study of photographs. D is 128 for its proxy, or more for as
many directions of its trunk, in which people are apart from the differences between images of one person.
One thread, CPU seconds, the contestants in turn. The exact loop is timed on a part of the samples, as its time
grows with their square, and errors are those of some samples whose exact density is computed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import tables
from benchmarks.common import one_thread
from cid.arrays import unit_vectors
from cid.cells import cell_density
from cid.density import class_density, neighbour_width
from cid.large import label_posterior

HERE = Path(__file__).parent
TOLD = 2000  # samples whose exact density is computed
PART = 20_000  # samples on which the exact loop is timed, twice
PER_PERSON = 50  # images of a made-up person in the mean, log-normal
FEWEST = 8  # images of a real person whose differences are used


def real(builds: list[Path], d: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (m, d) of real photographs, and the people (m,) whom they show."""
    vectors, people = [], []
    for number, build in enumerate(builds):
        known = pd.read_parquet(build / "data" / "labels.parquet", columns=["identity"])["identity"]
        of_person = known.groupby(known).transform("size").fillna(0).to_numpy() >= FEWEST
        file = "proxy.npy" if d == 128 else "trunk.npy"
        vectors.append(np.load(build / "embed" / file, mmap_mode="r")[of_person])
        people.append(str(number) + "/" + known[of_person].astype(str).to_numpy().astype(object))
    found = np.concatenate(vectors).astype(np.float64)
    people = np.unique(np.concatenate(people), return_inverse=True)[1]
    return (found if d == 128 else discriminant(found, people, d)), people


def discriminant(vectors: np.ndarray, people: np.ndarray, d: int) -> np.ndarray:
    """Unit vectors (m, d): principal directions, each less where images of one person differ much."""
    vectors = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    found = vectors @ directions[:, -d:]
    within = found - means(found, people)[people]
    variance, directions = np.linalg.eigh(within.T @ within / len(within))
    found = found @ (directions / np.sqrt(variance + 0.3 * variance.mean()))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def means(vectors: np.ndarray, people: np.ndarray) -> np.ndarray:
    total = np.zeros((people.max() + 1, vectors.shape[1]))
    np.add.at(total, people, vectors)
    return total / np.bincount(people)[:, None]


def resampled(vectors: np.ndarray, people: np.ndarray, n: int, seed: int = 0):
    """Embeddings (n, d) of made-up people, and labels (n,) of which nine in ten are as the person's others.

    A person is a mixture of real ones, with the differences between images of one of them.
    """
    rng = np.random.default_rng(seed)
    sizes = []
    while sum(sizes) < n:
        drawn = rng.lognormal(np.log(PER_PERSON) - 0.32, 0.8)
        sizes.append(int(np.clip(drawn, 2, 20 * PER_PERSON)))
    person = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)[:n])
    count = np.bincount(people)
    centres = means(vectors, people)
    within = (vectors - centres[people]) * np.sqrt(count / (count - 1))[people, None]
    mixed = rng.integers(len(count), size=(len(sizes), 6))
    shares = rng.normal(size=mixed.shape)
    shares /= np.linalg.norm(shares, axis=1, keepdims=True)
    middle = centres.mean(axis=0)
    made = middle + np.einsum("pk,pkd->pd", shares, (centres - middle)[mixed])
    order = np.argsort(people, kind="stable")
    first = count.cumsum() - count
    donor = rng.integers(len(count), size=len(sizes))[person]
    noise = 0.15 * np.sqrt((within**2).mean())
    found = np.empty((n, vectors.shape[1]), dtype=np.float32)
    for start in range(0, n, 20_000):
        rows = slice(start, start + 20_000)
        some = donor[rows]
        one, other = (order[first[some] + rng.integers(count[some])] for _ in range(2))
        angle = rng.uniform(0, np.pi / 2, size=(len(some), 1))
        found[rows] = made[person[rows]] + np.cos(angle) * within[one]
        found[rows] += np.sin(angle) * within[other] + noise * rng.normal(size=found[rows].shape)
    usual = rng.random(len(sizes)) < 0.5
    labels = (usual[person] == (rng.random(n) < 0.9)).astype(int)
    return found, labels


def seconds(call) -> tuple[float, object]:
    """CPU seconds of a call, and what it returns."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def exact(unit: torch.Tensor, tau: float, rows: np.ndarray) -> np.ndarray:
    """Density of some rows among all, in parts."""
    total = np.zeros(len(rows))
    for others in unit.split(2**15):
        for place in np.array_split(np.arange(len(rows)), 8):
            kernel = ((unit[rows[place]] @ others.T - 1) / tau).exp_()
            total[place] += kernel.double().sum(dim=1).numpy()
    return total / len(unit)


def speed(n: int, ours: float, before: float, after: float) -> dict:
    """Seconds and ratios; those of the exact loop are of a part of the samples, before and after ours."""
    more = (n / PART) ** 2
    return {
        "ours, s": ours,
        "exact, s": (before + after) / 2 * more,
        "ratio": (before + after) / 2 * more / ours,
        "low": min(before, after) * more / ours,
        "high": max(before, after) * more / ours,
    }


def measured_posterior(vectors: np.ndarray, labels: np.ndarray) -> dict:
    """How much faster neighbours of likely cells are, and how far the weights from those of the nearest."""
    part = vectors[:PART], labels[:PART]
    before, _ = seconds(lambda: label_posterior(*part, method="exact"))
    ours, (_, check) = seconds(
        lambda: label_posterior(vectors, labels, method="cells", return_check=True)
    )
    after, _ = seconds(lambda: label_posterior(*part, method="exact"))
    return speed(len(vectors), ours, before, after) | {
        "median": check.median,
        "95 %": check.most,
        "largest": check.largest,
        "recall": check.recall,
    }


def measured(vectors: np.ndarray) -> dict:
    """How much faster cells are, how far from the exact weights, and how often intervals hold them."""
    n = len(vectors)
    one = np.zeros(n, dtype=int)
    tau = neighbour_width(vectors)
    part = vectors[:PART]
    before, _ = seconds(lambda: class_density(part, one[:PART], tau))
    ours, (density, error) = seconds(lambda: cell_density(vectors, one, tau))
    after, _ = seconds(lambda: class_density(part, one[:PART], tau))
    rows = np.sort(np.random.default_rng(5).choice(n, TOLD, replace=False))
    true = exact(unit_vectors(vectors, "cpu"), tau, rows)
    found, error = density[rows], error[rows]
    off = np.abs((1 / found) / (1 / found).mean() / ((1 / true) / (1 / true).mean()) - 1)
    return speed(n, ours, before, after) | {
        "median": np.median(off),
        "95 %": np.quantile(off, 0.95),
        "largest": off.max(),
        "error": np.median(error / true),
        "held": (np.abs(found - true) <= 1.96 * error + 1e-5 * true).mean(),
    }


def main(arguments: list[str]) -> None:
    n, d = int(arguments[0]), int(arguments[1])
    vectors, labels = resampled(*real([Path(build) for build in arguments[2:]], d), n)
    with one_thread():
        add({"part": "density", "n": n, "d": d} | measured(vectors))
        add({"part": "posterior", "n": n, "d": d} | measured_posterior(vectors, labels))


def add(row: dict) -> None:
    """Write a row into the table, in the place of an earlier one of the same case."""
    file = HERE / "large.csv"
    case = ["part", "d", "n"]
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    rows = [one for one in rows if any(one[key] != row[key] for key in case)]
    pd.DataFrame([*rows, row]).sort_values(case).to_csv(file, index=False, float_format="%.4g")
    tables.write()
    print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
