"""The examples of docs/without-identities.md, run as they stand there on a small case."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

PAGE = Path(__file__).parents[3] / "docs" / "without-identities.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_guide_run(case, number, capsys):
    case.table["smiling"] = case.table["smiling"].astype(object)
    case.table.loc[4, "smiling"] = None
    case.write()
    assert case.weigh("-o weights.csv")[0] == 0
    rng = np.random.default_rng(0)
    features = np.c_[case.labels + rng.normal(size=120), case.z].astype(np.float32)
    training = {
        "images": torch.from_numpy(features),
        "labels": torch.from_numpy(case.labels),
        "torch": torch,
        "network": torch.nn.Linear(9, 2),
        "features": features,
    }
    sides = {"train": case.split == "train", "test": case.split == "test", "embeddings": case.z}
    names = training | (sides | {"labels": case.labels} if "audit" in EXAMPLES[number] else {})
    before = training["network"].weight.clone()
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), names)
    if "optimizer" in names:
        assert not torch.equal(before, training["network"].weight)
    if "target" in names:
        assert names["loss"] > 0
    if "model" in names:
        assert names["model"].score(features, case.labels) > 0.5
    if "found" in names:
        assert {row.model for row in names["found"].estimates} == {"before", "after"}


def test_each_way_to_use_weights_has_an_example_of_about_ten_lines():
    for word in ("WeightedRandomSampler", "sample_weight", "backward()", "audit("):
        assert any(word in example for example in EXAMPLES)
    assert all(len(example.splitlines()) <= 12 for example in EXAMPLES)
