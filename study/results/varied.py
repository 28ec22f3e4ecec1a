"""Many small studies: other tasks and kinds of bias, and every value of many settings.

Each study has parts that keep only one core busy, so one study runs on every core at the same time.
``settings`` and ``folder`` are as in :mod:`study.experiment.variations`; ``metrics`` and ``replicates`` as
in :func:`study.results.inference.estimate`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pandas as pd

from study.cores import on_all_cores
from study.experiment import penalties as cells
from study.experiment import variations
from study.experiment.arrays import Arrays
from study.faces.dataset import FaceSet
from study.faces.tasks import task_labels
from study.results.inference import BASELINE, Estimates, estimate, summary


def breadth(
    arrays: Arrays,
    data: FaceSet,
    settings: dict,
    studies: Sequence[tuple[str, str]],
    *,
    metrics: Iterable[str],
    replicates: int,
    folder=None,
) -> dict[tuple[str, str], Estimates]:
    """Repeat the study for every (task, kind of bias): estimates by these pairs.

    Of which the data allow any is said by :func:`study.experiment.design.fitting_breadth`. The labels come from ``data``, which has those of every task, not from ``arrays``.
    """

    def study_of(task: str, kind: str) -> Estimates:
        labelled = replace(arrays, labels=task_labels(data, task))
        changed = settings | {"bias": settings["bias"] | {"kind": kind}}
        return estimate(
            variations.run(labelled, changed, folder=folder),
            settings["methods"],
            labelled.labels,
            labelled.identities,
            metrics=metrics,
            replicates=replicates,
            folder=folder,
        )

    estimates = on_all_cores(lambda study: study_of(*study), studies, label="breadth")
    return dict(zip(studies, estimates, strict=True))


def ablate(
    arrays: Arrays,
    settings: dict,
    ablations: dict[str, dict],
    level: float,
    *,
    metrics: Iterable[str],
    replicates: int,
    folder=None,
) -> dict[str, Estimates]:
    """Estimates for every value of one setting at a time, by the name of the ablation.

    ``ablations`` holds a ``setting`` and its ``values`` by name; all else is as in
    :func:`study.experiment.variations.vary`.
    """
    design = arrays.design()  # computed once for all values

    def estimates_of(name: str) -> Estimates:
        predictions = variations.vary(
            arrays,
            settings,
            ablations[name]["setting"],
            ablations[name]["values"],
            level,
            design=design,
            folder=folder,
        )
        return estimate(
            predictions,
            settings["methods"],
            arrays.labels,
            arrays.identities,
            metrics=metrics,
            replicates=replicates,
            condition="value",
            folder=folder,
        )

    estimates = on_all_cores(estimates_of, ablations, label="ablations")
    return dict(zip(ablations, estimates, strict=True))


def breadth_penalties(
    arrays: Arrays,
    data: FaceSet,
    settings: dict,
    studies: Sequence[tuple[str, str]],
    *,
    folder=None,
) -> pd.DataFrame:
    """The penalties of :func:`breadth`'s heads: columns ``task``, ``kind``, and those of
    :func:`study.experiment.penalties.choose`."""
    tables = []
    for task, kind in studies:
        changed = settings | {"bias": settings["bias"] | {"kind": kind}}
        labelled = replace(arrays, labels=task_labels(data, task))
        table = variations.penalties_of(labelled, changed, folder=folder)
        table.insert(0, "task", task)
        table.insert(1, "kind", kind)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def ablate_penalties(
    arrays: Arrays, settings: dict, ablations: dict[str, dict], level: float, *, folder=None
) -> pd.DataFrame:
    """The penalties of :func:`ablate`'s heads: columns ``ablation``, ``value`` as text, and those of
    :func:`study.experiment.penalties.choose`.

    Only where they can differ from those of the study itself: in ablations of the penalty, of how sets are
    drawn, and of wrong labels.
    """
    tables = []
    for name, ablation in ablations.items():
        setting = ablation["setting"]
        if not setting.startswith(("bias.", "labels.")) and setting != "train.l2":
            continue
        for value in ablation["values"]:
            labelled, changed = variations.version(arrays, settings, setting, value)
            table = variations.penalties_of(labelled, changed, [level], folder)
            table.insert(0, "ablation", name)
            table.insert(1, "value", variations.value_name(value))
            tables.append(table)
    if not tables:
        return pd.DataFrame(columns=["ablation", "value", *cells.COLUMNS])
    return pd.concat(tables, ignore_index=True)


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


def join_studies(
    studies: dict[tuple[str, str], Estimates], functional: Callable[[Estimates], pd.DataFrame]
) -> pd.DataFrame:
    """One table of ``functional`` over studies by (task, kind), with the columns ``task`` and ``kind``.

    ``functional`` is a function of :mod:`study.results.inference`, such as ``area``.
    """
    tables = [
        functional(estimates).assign(task=task, kind=kind)
        for (task, kind), estimates in studies.items()
    ]
    return pd.concat(tables, ignore_index=True)


def join_trunks(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One table of tables by the trunk whose features were classified, its first column ``trunk``."""
    named = [
        table.assign(trunk=trunk)[["trunk", *table.columns]] for trunk, table in tables.items()
    ]
    return pd.concat(named, ignore_index=True)
