"""Power that a protocol predicted, beside the power that its study turned out to have.

A prediction stands in the protocol, ``protocol.detectable``, and never changes. What was found follows from
the report's table ``power``. Both are the smallest gain that is detected with probability .8 on people seen
in training, at 5 % before any correction.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from study.methods.registry import JUDGED
from study.results import inference
from study.results.claims import PRIMARY
from study.results.metrics import METRICS
from study.results.tables import Printed
from study.results.titles import method_title


def judged_method(power: pd.DataFrame) -> str | None:
    """The method that predictions are about: the first of :data:`JUDGED` in a table of power."""
    return next((method for method in JUDGED if method in set(power["method"])), None)


def found(power: pd.DataFrame, metric: str) -> float:
    """The gain that a study detects on seen people, in points; NaN where it is not known.

    ``power`` is from :func:`study.results.inference.power`.
    """
    of_method = (power["test"] == "seen") & (power["method"] == judged_method(power))
    rows = power[of_method & (power["metric"] == metric)]
    if rows.empty or not math.isfinite(rows["se"].iloc[0]):
        return math.nan
    row = rows.iloc[0]
    degrees_of_freedom = int(min(row["seeds"], row["people"])) - 1
    return 100 * float(inference.interval(0.0, row["se"], degrees_of_freedom)["detectable"])


def sentence(protocol: Mapping, power: pd.DataFrame) -> str:
    """Both, side by side; empty where the protocol predicts nothing."""
    predicted = protocol["detectable"]
    method = judged_method(power)
    if not predicted or method is None:
        return ""
    parts = [
        f"{METRICS[metric].title.lower()} {predicted[metric]:.2f} predicted, {_points(found(power, metric))} found"
        for metric in PRIMARY
        if metric in predicted
    ]
    return (
        f"Power: the smallest gain of {method_title(method)} on seen people that is detected with probability "
        f".8, at 5 % before correction, in points: {'; '.join(parts)}."
    )


def table(studies: Iterable[tuple[str, Mapping, pd.DataFrame]]) -> Printed:
    """Both, of all studies that have a prediction: of each its name, its parameters and its table ``power``."""
    head = ["study"]
    for metric in PRIMARY:
        name = METRICS[metric].title.lower()
        head += [f"{name}: predicted", f"{name}: found"]
    rows = []
    for name, params, power in studies:
        predicted: Mapping[str, Any] | None = params["protocol"]["detectable"]
        if predicted:
            cells = [name]
            for metric in PRIMARY:
                cells += [f"{predicted[metric]:.2f}", _points(found(power, metric))]
            rows.append(cells)
    return head, rows


def _points(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"
