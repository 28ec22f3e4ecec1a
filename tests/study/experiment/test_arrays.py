"""A data set as arrays."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study.experiment import arrays as module


def test_arrays_are_read_from_what_stages_wrote(tmp_path):
    for folder in ("data", "embed"):
        (tmp_path / folder).mkdir()
    card = {
        "name": "tiny",
        "source": "drawn for a test",
        "licence": "CC0",
        "attributes": ["smiling"],
        "demographics": [],
    }
    (tmp_path / "data/card.json").write_text(json.dumps(card))
    labels = pd.DataFrame({"identity": ["b", "a", "b"], "smiling": [1, None, 0]})
    labels.to_parquet(tmp_path / "data/labels.parquet")
    proxy = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "embed/proxy.npy", proxy)
    np.save(tmp_path / "embed/trunk.npy", 2 * proxy)
    arrays = module.load("smiling", tmp_path)
    np.testing.assert_array_equal(arrays.proxy, proxy)
    np.testing.assert_array_equal(arrays.features, 2 * proxy)
    np.testing.assert_array_equal(arrays.labels, [1, np.nan, 0])
    assert arrays.identities.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="has no attribute 'smilling'"):
        module.load("smilling", tmp_path)
    with pytest.raises(ValueError, match=r"labels.parquet is missing; run `dvc repro data`"):
        module.load("smiling", tmp_path / "nowhere")


def test_people_are_numbered_by_name(arrays):
    named = replace(arrays, identities=np.array(["eve", "ann", "eve", "bob"]))
    assert named.people().tolist() == [2, 0, 2, 1]


def test_an_image_without_a_label_counts_as_class_0_where_nothing_looks():
    assert module.whole([1.0, np.nan, 0.0]).tolist() == [1, 0, 0]
