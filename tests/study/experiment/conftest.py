"""A small study, and weighted sets of it, as several tests take them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

EVERY = ["erm", "cid", "cvar-dro", "kl-dro", "jtt", "lff", "group-dro", "last-layer"]


@pytest.fixture
def sets(features):
    """Two seeds of a level: 100 training images of 10 people, 30 seen and 30 unseen test images."""
    _, labels = features
    tables = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        parts = np.repeat(["train", "seen", "unseen"], [100, 30, 30])
        rows = rng.permutation(160)
        tables.append(pd.DataFrame({"level": 0.9, "seed": seed, "part": parts, "row": rows}))
    table = pd.concat(tables, ignore_index=True)
    table["minority"] = np.where(table["part"] == "seen", table.index % 2, np.nan)
    train = table["part"] == "train"
    people = np.arange(len(table)) % 10
    for name in EVERY:
        table[name] = np.where(train, 1.0, np.nan)
    weights = np.random.default_rng(9).exponential(size=len(table))
    table["cid"] = np.where(train, weights, np.nan)
    cells = 2 * people + labels[table["row"]]
    table["group-dro:groups"] = np.where(train, cells, np.nan)
    table["last-layer:groups"] = np.where(train, people, np.nan)
    return table


@pytest.fixture
def every() -> list[str]:
    """The methods of ``sets``."""
    return EVERY


@pytest.fixture
def weights() -> dict:
    """The section ``weights`` of a small study."""
    return {
        "tau": 0.05,
        "power": 2.0,
        "temper": 2.0,
        "class_prior": "balanced",
        "include_self": True,
        "rarity": 1.0,
        "surprise": "auto",
        "neighbours": "auto",
        "posterior_tau": "auto",
        "keep_class_direction": False,
        "local_scaling": False,
        "clusters": "auto",
        "erase_clusters": "auto",
        "bias_l2": 0.1,
    }


@pytest.fixture
def bias() -> dict:
    """The section ``bias`` of a small study, but for the levels."""
    return {
        "kind": "correlation",
        "images_per_identity": 6,
        "test_per_class": 2,
        "unseen_share": 0.2,
        "people": None,
    }


@pytest.fixture
def settings(bias, weights) -> dict:
    """What a small study with linear heads depends on."""
    return {
        "seeds": 2,
        "methods": ["erm", "cid", "cid-knn", "oracle"],
        "bias": bias | {"levels": [0.0, 0.8]},
        "weights": weights,
        "train": {"l2": 0.1, "through": "loss", "robust": {}},
    }
