"""Many small studies: other tasks and kinds of bias, and every value of many settings.

As many are worked on at once as there are cores, as each has parts that keep only one of them busy.
``settings`` and ``folder`` are as in :mod:`study.experiment.variations`, ``how`` are the metrics and
replicates of :func:`study.results.inference.estimate`.
"""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from study.cores import on_all_cores
from study.experiment import variations
from study.faces.dataset import FaceSet
from study.results.inference import BASELINE, Estimates, estimate, summary


def breadth(
    arrays: variations.Arrays,
    data: FaceSet,
    settings: dict,
    tasks: Iterable[str],
    kinds: Iterable[str],
    *,
    folder=None,
    **how,
) -> dict[tuple[str, str], Estimates]:
    """The study once more for every task and kind of bias, by (task, kind), kind after kind.

    The labels of ``arrays`` are not looked at; ``data`` has those of every task.
    """

    def one(study: tuple[str, str]) -> Estimates:
        task, kind = study
        given = replace(arrays, labels=data.labels(task))
        own = settings | {"bias": settings["bias"] | {"kind": kind}}
        predictions = variations.run(given, own, folder=folder)
        about = own["methods"], given.labels, given.identities
        return estimate(predictions, *about, folder=folder, **how)

    studies = [(task, kind) for kind in kinds for task in tasks]
    return dict(zip(studies, on_all_cores(one, studies, label="breadth"), strict=True))


def ablate(
    arrays: variations.Arrays,
    settings: dict,
    ablations: dict[str, dict],
    level: float,
    *,
    folder=None,
    **how,
) -> dict[str, Estimates]:
    """Estimates for every value of one setting at a time, by the name of the ablation.

    ``ablations`` holds a ``setting`` and its ``values`` by name; all else is as in
    :func:`study.experiment.variations.vary`.
    """
    design = arrays.design()  # cells share what they have in common

    def one(name: str) -> Estimates:
        varied = ablations[name]["setting"], ablations[name]["values"]
        predictions = variations.vary(
            arrays, settings, *varied, level, design=design, folder=folder
        )
        about = settings["methods"], arrays.labels, arrays.identities
        return estimate(predictions, *about, cell="value", folder=folder, **how)

    return dict(zip(ablations, on_all_cores(one, ablations, label="ablations"), strict=True))


def baselines(studies: dict[str, Estimates]) -> pd.DataFrame:
    """ERM's own metrics under every value of every setting, which gains over it do not show.

    ``studies`` are of :func:`ablate`; the first column, ``ablation``, holds their names.
    """
    columns = ["ablation", "test", "metric", "value", "method", "mean", "low", "high"]
    tables = [pd.DataFrame(columns=columns)] if not studies else []
    for name, study in studies.items():
        table = summary(study).assign(ablation=name)
        tables.append(table.loc[table["method"] == BASELINE, columns])
    return pd.concat(tables, ignore_index=True)
