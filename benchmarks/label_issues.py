"""Wrong training labels: trust against the library of that field, cleanlab, on the rendered people.

    python -m benchmarks.label_issues

After `dvc repro`, with `pip install cleanlab`. Labels of the training sets of the most biased level are
made wrong by lot. `find_label_issues`, as it comes, names images whose label is wrong, by out-of-fold
probabilities of heads with the study's penalty or with that of trust; they are dropped, and plain heads
or heads under label surprise of what is left are trained. Judged on balanced test images with true
labels, against plain heads on all images. Writes `label_issues.csv` beside this file.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cid import surprise_weights
from cid.heads import StandardisedFeatures, fit_heads
from cid.trust import L2, out_of_fold_logits, trust_in_labels
from study.experiment.mislabelled import mislabelled
from study.pipeline.params import load

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
KEPT = 0.8  # trust from which on an image is kept, where doubted ones are dropped as cleanlab's are
SETS = 6
SHARES = (0.0, 0.02, 0.05, 0.1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Of two classes (n, 2), from logits whose first column is 0."""
    second = 1 / (1 + np.exp(-logits[:, 1]))
    return np.stack([1 - second, second], axis=1)


def training_weights(
    features, embeddings, labels, penalty: float
) -> tuple[dict[str, np.ndarray], dict]:
    """Weights (n,) of every contestant, 0 for what is dropped, and whom each doubts, bool (n,)."""
    from cleanlab.filter import find_label_issues

    plain = np.ones(len(labels))
    weights = {"plain": plain, "label surprise": surprise_weights(embeddings, labels)}
    doubted = {}
    strong = out_of_fold_logits(features, labels, l2=L2)
    found = {"": out_of_fold_logits(features, labels, l2=penalty), ", strong penalty": strong}
    for name, logits in found.items():
        issues = find_label_issues(labels, probabilities(logits), n_jobs=1)
        left = np.flatnonzero(~issues)
        weights[f"cleanlab{name}"] = np.where(issues, 0.0, 1.0)
        both = np.zeros(len(labels))
        both[left] = surprise_weights(embeddings[left], labels[left])
        weights[f"label surprise after cleanlab{name}"] = both
        doubted[f"cleanlab{name}"] = issues
    trust = trust_in_labels(strong, labels).probability
    weights["trust"] = trust
    weights["label surprise × trust"] = weights["label surprise"] * trust
    weights["trust, doubted dropped"] = np.where(trust < KEPT, 0.0, 1.0)
    weights["label surprise, doubted dropped"] = np.where(
        trust < KEPT, 0.0, weights["label surprise"]
    )
    doubted["trust"] = trust < 0.5
    doubted["trust, doubted dropped"] = trust < KEPT
    for name, values in weights.items():
        weights[name] = _balanced(values, labels)
    return weights, doubted


def _balanced(weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights with half of the total in either class."""
    totals = np.bincount(labels, weights)
    return weights * (len(labels) / 2 / totals)[labels]


def compare() -> pd.DataFrame:
    """One row a contestant and share: accuracy, gain over plain heads and its standard error over sets."""
    task = load(HERE.parent / "params.yaml")["task"]
    table = pd.read_parquet(BUILD / "data" / "labels.parquet")
    right = table[task].to_numpy(dtype=np.float64)
    people = table["identity"].to_numpy()
    features = np.load(BUILD / "embed" / "trunk.npy", mmap_mode="r")
    proxy = np.load(BUILD / "embed" / "proxy.npy")
    sets = pd.read_parquet(
        BUILD / "weights" / "sets.parquet", columns=["level", "seed", "part", "row"]
    )
    sets = sets[(sets["level"] == sets["level"].max()) & (sets["seed"] < SETS)]
    penalties = pd.read_csv(BUILD / "train" / "penalties.csv")
    of_level = penalties["chosen"] & np.isclose(penalties["level"], sets["level"].max(), atol=1e-3)
    penalty = float(penalties.loc[of_level, "l2"].iloc[0])
    rows = []
    for share in SHARES:
        for seed, one in sets.groupby("seed"):
            given = mislabelled(right, people, "labels.wrong", share, int(seed))
            train = one.loc[one["part"] == "train", "row"].to_numpy()
            test = one.loc[one["part"] == "seen", "row"].to_numpy()
            labels = given[train].astype(np.int64)
            x = np.asarray(features[train], dtype=np.float32)
            weights, doubted = training_weights(x, proxy[train], labels, penalty)
            design = StandardisedFeatures(x, labels)
            stacked = np.stack(list(weights.values())).astype(np.float32)
            heads = fit_heads(x, labels, stacked, penalty, design=design)
            predicted = heads.logits(np.asarray(features[test], dtype=np.float32)) > 0
            accuracy = 100 * (predicted == (right[test] == 1)).mean(axis=1)
            wrong = labels != right[train]
            for name, value in zip(weights, accuracy, strict=True):
                row = {"share": share, "seed": seed, "method": name, "accuracy": value}
                if name in doubted:
                    hits = (doubted[name] & wrong).sum()
                    row |= {"doubted": doubted[name].sum(), "hits": hits, "wrong": wrong.sum()}
                rows.append(row | {"gain": value - accuracy[0]})
    return summary(pd.DataFrame(rows))


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over sets; precision and recall among the wrong labels of all sets together."""
    by = runs.groupby(["share", "method"], sort=False)
    found = by[["accuracy", "gain"]].mean()
    found["error"] = by["gain"].std() / by["gain"].size() ** 0.5
    sums = by[["doubted", "hits", "wrong"]].sum(min_count=1)
    found["precision"] = sums["hits"] / sums["doubted"].where(sums["doubted"] > 0)
    found["recall"] = sums["hits"] / sums["wrong"].where(sums["wrong"] > 0)
    return found.reset_index()


if __name__ == "__main__":
    results = compare()
    results.to_csv(HERE / "label_issues.csv", index=False, float_format="%.4g")
    print(results.to_string())
