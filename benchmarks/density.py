"""`cid.density` and the neighbours of `cid.posterior` against what else could be used."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.neighbors import KernelDensity

from benchmarks.common import one_thread, row, side_by_side
from cid import density
from cid.arrays import unit_vectors
from cid.density import class_density, neighbour_width, product_by_convolution
from cid.factors import Factors
from cid.posterior import label_posterior, without_class_direction
from cid.weights import inverse_weights

TAU = 0.01


def people(n: int, d: int, per_person: int = 20, seed: int = 0) -> np.ndarray:
    """Clustered vectors with a common direction of the strength that face embeddings have."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // per_person), d))
    noise = 0.27 * rng.normal(size=(n, d))
    return (1 + centres[rng.integers(len(centres), size=n)] + noise).astype(np.float32)


def product(unit: torch.Tensor, block: int = 2048) -> None:
    """The bare product of all with all, block by block, thrown away: the limit without symmetry."""
    out = torch.empty(block, len(unit))
    for rows in unit.split(block):
        torch.mm(rows, unit.T, out=out[: len(rows)])


def naive(unit: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(torch.cdist(unit, unit) ** 2) / (2 * TAU)).mean(dim=1)


def measure(rounds: int) -> list[dict]:
    rows = []
    for n, d, times in [(2000, 128, 3), (2000, 512, 3), (10_000, 128, 2), (10_000, 512, 1),
                        (50_000, 128, 0), (50_000, 512, 0)]:  # fmt: skip
        vectors = people(n, d)
        unit, one = unit_vectors(vectors), np.zeros(n, int)
        references = {"bare product": lambda unit=unit: product(unit)}
        if n <= 10_000:
            references["torch.cdist, naive"] = lambda unit=unit: naive(unit)
        found = side_by_side(
            lambda vectors=vectors, one=one: class_density(vectors, one, TAU),
            references,
            rounds * times or 2,
            warm=n < 50_000,
        )
        limit = 0.75 if d == 512 else 1.0
        for name in references:
            bare = name == "bare product"
            rows.append(
                row(
                    "density",
                    f"n = {n:,}, d = {d}",
                    name,
                    found,
                    f"at most {limit} x its time" if bare and n >= 10_000 else "",
                    (lambda r, limit=limit: 1 / r <= limit) if bare and n >= 10_000 else None,
                )  # fmt: skip
            )
    rows += limit(rounds) + one_product(rounds)
    rows += libraries() + neighbours(rounds) + stored(rounds) + shared(rounds)
    return rows


def half_products(unit: torch.Tensor, block: int = 1024) -> dict[str, Callable[[], None]]:
    """Ways to multiply every pair of blocks once, and throw the products away."""
    blocks = unit.split(block)
    arrays = [rows.numpy() for rows in blocks]
    out = torch.empty(block, block)
    nothing = torch.zeros(block)

    def by_torch():
        for first, ours in enumerate(blocks):
            for theirs in blocks[first:]:
                torch.mm(ours, theirs.T, out=out[: len(ours), : len(theirs)])

    def by_numpy():
        for first, ours in enumerate(arrays):
            for theirs in arrays[first:]:
                np.matmul(ours, theirs.T, out=out.numpy()[: len(ours), : len(theirs)])

    def by_convolution():
        for first, ours in enumerate(blocks):
            for theirs in blocks[first:]:
                product_by_convolution(ours, theirs, nothing[: len(theirs)])

    return {"torch": by_torch, "NumPy": by_numpy, "convolution": by_convolution}


def limit(rounds: int) -> list[dict]:
    """The true limit of an exact density: half of the fastest product at hand, one thread."""
    rows = []
    for d in (128, 512):
        vectors = people(10_000, d)
        one = np.zeros(len(vectors), int)
        calls = half_products(unit_vectors(vectors))
        with one_thread():
            found = side_by_side(
                lambda vectors=vectors, one=one: class_density(vectors, one, TAU), calls, rounds
            )
        fastest = min(calls, key=lambda name: found[name]["seconds"])
        rows.append(
            row("density", f"n = 10,000, d = {d}, one thread", f"half of the fastest product ({fastest})",
                {"ours": found["ours"], f"half of the fastest product ({fastest})": found[fastest]})
        )  # fmt: skip
    return rows


def one_product(rounds: int) -> list[dict]:
    """All factors of a training set of a study's size from one product, against one function each."""
    vectors = people(1600, 128)
    labels = np.random.default_rng(0).integers(2, size=len(vectors))

    def together(estimators):
        factors = Factors(vectors, labels)
        factors.density(in_class=True)
        for estimator in estimators:
            factors.posterior(estimator=estimator)

    def alone(estimators):
        class_density(vectors, labels, neighbour_width(vectors))
        cleaned = without_class_direction(vectors, labels)
        for estimator in estimators:
            label_posterior(cleaned, labels, estimator=estimator)

    rows = []
    for estimators in (("knn",), ("knn", "kernel")):
        with one_thread():
            found = side_by_side(
                lambda some=estimators: together(some),
                {"one function after the other": lambda some=estimators: alone(some)},
                5 * rounds,
            )
        rows.append(
            row("weights", f"CID and posterior ({', '.join(estimators)}), n = 1,600, d = 128, one thread",
                "one function after the other", found)
        )  # fmt: skip
    return rows


def libraries() -> list[dict]:
    """scipy and sklearn for a tenth of the queries, times 10: their work is the same for every query."""
    n, d = 10_000, 512
    vectors = people(n, d)
    unit, one = unit_vectors(vectors).double().numpy(), np.zeros(n, int)
    part = unit[: n // 10]
    fitted = KernelDensity(kernel="gaussian", bandwidth=np.sqrt(TAU)).fit(unit)
    calls = {
        "scipy cdist": lambda: np.exp(-(cdist(part, unit) ** 2) / (2 * TAU)).mean(axis=1),
        "sklearn KernelDensity": lambda: fitted.score_samples(part),
    }
    if importlib.util.find_spec("pykeops"):
        from pykeops.torch import LazyTensor

        single = torch.from_numpy(unit).float()
        queries, keys = LazyTensor(single[: n // 10, None]), LazyTensor(single[None])
        calls["KeOps"] = lambda: (-((queries - keys) ** 2).sum(-1) / (2 * TAU)).exp().sum(1)
    rows = []
    for name, call in calls.items():
        found = side_by_side(lambda: class_density(vectors, one, TAU), {name: call}, 2)
        found[name]["seconds"] *= 10
        found[name]["ratio"] = {key: 10 * value for key, value in found[name]["ratio"].items()}
        wanted = "at least 300 x" if name.startswith("sklearn") else ""
        rows.append(
            row("density", f"n = {n:,}, d = {d}", name, found, wanted,
                (lambda r: r >= 300) if wanted else None, "a tenth of the queries, times 10")
        )  # fmt: skip
    return rows


def neighbours(rounds: int) -> list[dict]:
    if not importlib.util.find_spec("faiss"):
        return []
    import faiss

    vectors = people(10_000, 128)
    labels = np.random.default_rng(0).integers(2, size=len(vectors))
    unit = unit_vectors(vectors).numpy()

    def search():
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        return index.search(unit, 31)

    found = side_by_side(
        lambda: label_posterior(vectors, labels, scale=30, slope=1.0),
        {"faiss, flat": search},
        rounds,
    )
    return [row("posterior", "30 neighbours, n = 10,000, d = 128", "faiss, flat", found,
                note="faiss: the search alone")]  # fmt: skip


def stored(rounds: int) -> list[dict]:
    """Embeddings left on disk: the same sums, two chunks in memory at a time."""
    vectors, one = people(20_000, 128), np.zeros(20_000, int)
    whole, chunk = density.CHUNK, 4096
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "e.npy", vectors)
        mapped = np.load(Path(folder) / "e.npy", mmap_mode="r")
        try:
            density.CHUNK = chunk
            found = side_by_side(
                lambda: class_density(mapped, one, TAU),
                {"in memory": lambda: class_density(vectors, one, TAU)},
                rounds,
            )
        finally:
            density.CHUNK = whole
    return [
        row(
            "density",
            f"memory-mapped, n = 20,000, d = 128, chunks of {chunk:,}",
            "in memory",
            found,
        )
    ]


def shared(rounds: int) -> list[dict]:
    """One Gram matrix of all images for every training set of a sweep, against one for each."""
    n, share, sets = 4800, 0.3, 100
    vectors, labels = people(n, 128), np.random.default_rng(1).integers(2, size=n)
    member = np.random.default_rng(2).random((sets, n)) < share
    unit = unit_vectors(vectors)
    in_sets = torch.from_numpy(member).float()

    def once():
        for code in (0, 1):
            rows = torch.from_numpy(np.flatnonzero(labels == code))
            kernel = ((unit[rows] @ unit[rows].T - 1) / TAU).exp_()
            in_sets[:, rows] @ kernel / in_sets[:, rows].sum(1, keepdim=True)

    def each():
        for own in member:
            class_density(vectors[own], labels[own], TAU)

    found = side_by_side(each, {"one Gram for all": once}, rounds)
    seconds = found["ours"] / sets
    return [row("density", f"{sets} training sets of {int(n * share):,} among {n:,} images, d = 128",
                "one Gram for all", found,
                note=f"{seconds * 1000:.0f} ms a set: too little of a study to share")]  # fmt: skip


def approximations() -> pd.DataFrame:
    """What sampling and truncation do to the weights, where the exact ones are at hand.

    Returns
    -------
    pandas.DataFrame
        ``kept``: what the density is estimated from; errors of the weight relative to the exact one,
        ``median`` and ``95 %``, and ``rank correlation`` of the weights.
    """
    vectors = people(20_000, 128, per_person=40)
    one = np.zeros(len(vectors), int)
    exact = inverse_weights(class_density(vectors, one, TAU), one).astype(float)
    unit = unit_vectors(vectors)
    n, rows = len(unit), []

    def kernel(block, keys):
        return ((block @ keys.T - 1) / TAU).exp_()

    def add(kept, density):
        found = inverse_weights(density.double().numpy(), one)
        error = np.abs(found / exact - 1)
        rows.append(
            {
                "kept": kept,
                "median": np.median(error),
                "95 %": np.quantile(error, 0.95),
                "rank correlation": spearmanr(found, exact).statistic,
            }
        )

    for share in (0.5, 0.1, 0.02):
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: int(share * n)]
        left_out = torch.ones(n)
        left_out[chosen] = 0
        sums = torch.cat([kernel(block, unit[chosen]).sum(1) for block in unit.split(2048)])
        # A sample counts itself, as in the exact density, whether it was drawn or not.
        own = 1 - left_out
        add(f"a random {share:.0%} of the samples", ((sums - own) / share + 1) / n)
    for k in (10, 30, 100, 300):
        sums = torch.cat(
            [kernel(block, unit).topk(k, dim=1).values.sum(1) for block in unit.split(2048)]
        )
        add(f"the {k} nearest neighbours", sums / n)
    return pd.DataFrame(rows)
