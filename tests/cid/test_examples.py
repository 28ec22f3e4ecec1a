"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "align", "auditing", "classified", "heads", "kin", "lbfgs", "models", "moved", "offsets", "penalty", "prototypes", "recognition", "risks", "schedule", "training",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_give_what_they_show(name, one_thread):
    failed, tried = doctest.testmod(importlib.import_module(f"cid.{name}"))
    assert tried and not failed
