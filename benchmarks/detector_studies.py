"""The same studies behind two detectors: a figure from their committed reports.

    python -m benchmarks.detector_studies

Writes docs/detectors.svg. A pair is a study with `embed.detector: mtcnn` and the one with the same data, task
and training sets behind the joined detector; both choose their penalty in the same way. Class labels train;
true identities build the bias, feed the oracle and evaluate.
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.pipeline.overview import Study, read_studies
from study.results.drawing import (
    TEXT,
    add_legend,
    chart_svg,
    done,
    list_rows,
    style,
    used_area,
    zero_line,
)
from study.results.metrics import METRICS
from study.results.titles import method_title

FILE = Path("docs/detectors.svg")
SHOWN = ("cid", "surprise", "oracle")
PANELS = ("accuracy", "minority_accuracy")
# Detector: its colour and marker, and its distance from the middle of a row.
LOOKS = {"mtcnn": ("#9a6324", "s", -0.16), "joined": ("#0b6e99", "o", 0.16)}
NAMES = {"mtcnn": "MTCNN as it is", "joined": "joined detector"}


class Pair(NamedTuple):
    """One study behind either detector."""

    mtcnn: Study
    joined: Study


def pairs(studies: list[Study]) -> list[Pair]:
    """Studies that differ in the detector, in the order of their names."""
    found = []
    for study in studies:
        if (
            study.params["embed"].get("detector") != "mtcnn"
            or study.params["train"]["l2"] != "auto"
        ):
            continue
        others = [other for other in studies if _differ_in_the_detector(study, other)]
        if others:
            found.append(Pair(mtcnn=study, joined=others[0]))
    return found


def _differ_in_the_detector(study: Study, other: Study) -> bool:
    if other.params["embed"] != study.params["embed"] | {"detector": "joined"}:
        return False
    if other.params["train"] != study.params["train"]:
        return False
    return all(other.params[key] == study.params[key] for key in ("data", "task", "bias", "seeds"))


def drawn(found: list[Pair]) -> Figure:
    """Draw the gains of both detectors, a block of rows a data set.

    Raises
    ------
    ValueError
        If there is no pair: the reports of the studies behind MTCNN are missing.
    """
    if not found:
        raise ValueError(
            "no report behind MTCNN has one behind the joined detector; run `make study`"
        )
    style()
    rows = [(pair, method) for pair in found for method in SHOWN]
    places = np.arange(len(rows)) + 0.9 * (np.arange(len(rows)) // len(SHOWN))
    size = (9.0, 0.36 * len(rows) + 0.5 * len(found) + 1.0)
    figure, axes = plt.subplots(1, len(PANELS), figsize=size, sharey=True)
    for axis, metric in zip(axes, PANELS, strict=True):
        zero_line(axis)
        for place, (pair, method) in zip(places, rows, strict=True):
            for detector, (colour, marker, shift) in LOOKS.items():
                row = getattr(pair, detector).area.loc[metric, method]
                _interval(axis, place + shift, row, colour, marker, NAMES[detector])
        list_rows(axis, [method_title(method) for _, method in rows], places)
        axis.set_ylim(places[-1] + 0.6, places[0] - 1.1)
        axis.set_title(METRICS[metric].title)
        axis.set_xlabel("gain over ERM in points, seen people, 95 % intervals")
    for pair, place in zip(found, places[:: len(SHOWN)], strict=True):
        heading = axes[0].text(
            0.01, place - 0.6, _of_erm(pair), fontsize=8.5, color=TEXT, weight="bold",
            transform=axes[0].get_yaxis_transform(),
        )  # fmt: skip
        heading.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        heading.set_in_layout(False)  # it may reach into the next panel
    return done(add_legend(figure))


def _interval(axis, place: float, row: pd.Series, colour: str, marker: str, label: str) -> None:
    low, mean, high = (100 * row[f"{end}_difference"] for end in ("low", "mean", "high"))
    axis.hlines(place, low, high, color=colour, lw=1.8)
    axis.plot(mean, place, marker, color=colour, markersize=5, label=label)


def _of_erm(pair: Pair) -> str:
    """The data set, and what ERM reaches behind either detector."""
    before, now = (100 * study.area.loc[("accuracy", "erm"), "mean"] for study in pair)
    name = f"{pair.joined.params['data']}, {pair.joined.params['task']}".replace("_", " ")
    return f"{name}: ERM {before:.1f} % (MTCNN), {now:.1f} %"


def svg() -> bytes:
    """The figure of all pairs among the committed reports."""
    figure = drawn(pairs(read_studies()))
    return chart_svg(figure, used_area(figure))


if __name__ == "__main__":
    FILE.write_bytes(svg())
    print(FILE)
