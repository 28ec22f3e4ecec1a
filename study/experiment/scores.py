"""What a table of predictions holds of every method: its scores of the test images.

Of two classes a method has one column, of its name: the logit of class 1. Of more classes it has one column
a class, ``name:0``, ``name:1``, ...: the logits of all of them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def named(method: str, scores: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a method's scores, which have shape (n,), or (n, C) of more than two classes."""
    if scores.ndim == 1:
        return {method: scores}
    return {f"{method}:{code}": own for code, own in enumerate(scores.T)}


def columns_of(table: pd.DataFrame, method: str) -> list[str]:
    """The names of a method's columns in a table of predictions; none where it has no scores."""
    if method in table:
        return [method]
    columns = []
    while f"{method}:{len(columns)}" in table:
        columns.append(f"{method}:{len(columns)}")
    return columns


def scores_of(table: pd.DataFrame, methods: Sequence[str]) -> np.ndarray:
    """Scores of m methods, (n, m), or (n, m, C) of more than two classes."""
    methods = list(methods)
    columns = [columns_of(table, method) for method in methods]
    missing = [method for method, own in zip(methods, columns, strict=True) if not own]
    if missing:
        raise KeyError(f"predictions have no column {missing[0]!r}")
    if all(own == [method] for method, own in zip(methods, columns, strict=True)):
        return table[methods].to_numpy()
    return np.stack([table[own].to_numpy() for own in columns], axis=1)


def predicted(scores: np.ndarray) -> np.ndarray:
    """The classes that scores (n, m), or (n, m, C), predict: int64 (n, m)."""
    if scores.ndim == 2:
        return (scores > 0).astype(np.int64)
    return scores.argmax(axis=2)
