"""Power that a protocol predicted, beside the power that its study turned out to have.

A prediction stands in the protocol, ``protocol.detectable``, and never changes. What was found follows from
the report's table ``power``. Both are the smallest gain that is detected with probability .8 on people seen
in training, at the level that the prediction names: ``level``, such as ``make cost`` says it, or else 5 %
before any correction, as all protocols meant that name none.
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


def level_of(detectable: Mapping) -> float:
    """The level that a protocol's prediction is of."""
    return detectable.get("level", inference.ALPHA)


def found(power: pd.DataFrame, metric: str, level: float = inference.ALPHA) -> float:
    """The gain that a study detects on seen people at a level, in points; NaN where it is not known.

    ``power`` is from :func:`study.results.inference.power`.
    """
    of_method = (power["test"] == "seen") & (power["method"] == judged_method(power))
    rows = power[of_method & (power["metric"] == metric)]
    if rows.empty or not math.isfinite(rows["se"].iloc[0]):
        return math.nan
    row = rows.iloc[0]
    degrees_of_freedom = int(min(row["seeds"], row["people"])) - 1
    of_no_effect = inference.interval(0.0, row["se"], degrees_of_freedom, level)
    return 100 * float(of_no_effect["detectable"])


def sentence(protocol: Mapping, power: pd.DataFrame) -> str:
    """Both, side by side; empty where the protocol predicts nothing."""
    predicted = protocol["detectable"]
    method = judged_method(power)
    if not predicted or method is None:
        return ""
    level = level_of(predicted)
    parts = [
        f"{METRICS[metric].title.lower()} {predicted[metric]:.2f} predicted, "
        f"{_points(found(power, metric, level))} found"
        for metric in PRIMARY
        if metric in predicted
    ]
    before = "" if "level" in predicted else " before correction"
    return (
        f"Power: the smallest gain of {method_title(method)} on seen people that is detected with probability "
        f".8, at {100 * level:g} %{before}, in points: {'; '.join(parts)}."
    )


def table(studies: Iterable[tuple[str, Mapping, pd.DataFrame]]) -> Printed:
    """Both, of all studies that have a prediction: of each its name, its parameters and its table ``power``.

    Found is of the same level as predicted (:func:`level_of`).
    """
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
                at_level = found(power, metric, level_of(predicted))
                cells += [f"{predicted[metric]:.2f}", _points(at_level)]
            rows.append(cells)
    return head, rows


def _points(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"
