"""How the cost of a study grows with its size: measured, one thing varied at a time."""

from __future__ import annotations

import time

import numpy as np

from study.experiment import variations
from study.experiment.arrays import Arrays

BASE = {"people": 100, "images": 48, "seeds": 10, "levels": 2}
VARIED = {
    "people": [25, 50, 100, 200],
    "images": [24, 48, 96],
    "seeds": [5, 10, 20],
    "levels": [1, 2, 4],
}
METHODS = ["erm", "cid", "cid-knn", "oracle"]
WEIGHTS = {
    "tau": 0.01, "class_prior": "balanced", "include_self": True, "rarity": 1.0,
    "surprise": "auto", "neighbours": "auto", "posterior_tau": "auto",
    "keep_class_direction": False, "local_scaling": False, "clusters": 10,
}  # fmt: skip


def seconds(people: int, images: int, seeds: int, levels: int) -> float:
    """Weights and heads of a study of this size, on made-up features."""
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(people), images)
    labels = np.tile(np.arange(images) % 2, people)
    proxy = rng.normal(size=(people, 128))[identities] + 0.3 * rng.normal(size=(len(labels), 128))
    features = rng.normal(size=(people, 512))[identities] + rng.normal(size=(len(labels), 512))
    features[:, :8] += labels[:, None]
    arrays = Arrays(proxy.astype(np.float32), features.astype(np.float32), labels, identities)
    settings = {
        "seeds": seeds,
        "methods": METHODS,
        "bias": {
            "kind": "correlation", "levels": [k / 5 for k in range(levels)],
            "images_per_identity": images // 3, "test_per_class": images // 8, "unseen_share": 0.2,
        },
        "weights": WEIGHTS,
        "train": {"l2": 0.1, "through": "loss", "robust": {}},
    }  # fmt: skip
    start = time.perf_counter()
    variations.run(arrays, settings)
    return time.perf_counter() - start


def measure() -> list[dict]:
    """Rows ``varied``, ``value``, ``seconds / base``: the base is measured beside every point."""
    seconds(**BASE)  # warms up
    rows = []
    for name, values in VARIED.items():
        for value in values:
            base = seconds(**BASE)
            ratio = 1.0 if value == BASE[name] else seconds(**(BASE | {name: value})) / base
            rows.append({"varied": name, "value": value, "cost": ratio})
    return rows
