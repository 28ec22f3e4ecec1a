"""A study in one call, and what varies it: one setting at a time, or another proxy.

The pipeline runs the main study as stages; another task, another kind of bias, an ablation or another
proxy goes through here, always with linear heads.

``settings`` are the keys of params.yaml that a function's work depends on: ``seeds``, ``methods``, and
the sections ``bias``, ``weights`` and ``train``. ``folder`` is where finished work is kept: a later call
takes from it whatever it would compute in the same way; None keeps nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cid.arrays import pick_device
from cid.heads import StandardisedFeatures
from cid.names import find
from study import store
from study.cores import on_all_cores
from study.experiment import penalties as cells
from study.experiment.arrays import Arrays
from study.experiment.design import draw_sets
from study.experiment.mislabelled import KINDS, mislabelled
from study.experiment.runs import blocks, tested, train_sets, weigh_sets
from study.experiment.scores import columns_of, scores_of


def train_section(l2: float | str, through: str, robust: dict) -> dict:
    """Put together the section ``train`` of ``settings``.

    A stage that trains linear heads alone lists these three keys in dvc.yaml, and gets them one by one:
    if it listed the whole section, another model would run it again.
    """
    return {"l2": l2, "through": through, "robust": robust}


def drawn(arrays: Arrays, settings: dict, levels: Iterable[float] | None = None) -> pd.DataFrame:
    """Draw the sets of a study, of ``bias.levels`` or others: :func:`study.experiment.design.draw_sets`."""
    bias = settings["bias"] | {"only": levels}
    return draw_sets(arrays.identities, arrays.labels, seeds=settings["seeds"], **bias)


def weighed(arrays: Arrays, sets: pd.DataFrame, settings: dict, folder=None) -> pd.DataFrame:
    """Weight the sets by every method: :func:`study.experiment.runs.weigh_sets`."""
    return weigh_sets(
        sets,
        arrays.proxy,
        arrays.training_labels,
        arrays.identities,
        settings["methods"],
        settings["weights"],
        folder,
    )


def penalties(arrays: Arrays, sets: pd.DataFrame, settings: dict, folder=None) -> pd.DataFrame:
    """Find the penalty of every level of some sets: :func:`study.experiment.penalties.choose`."""
    first = cells.first_sets(sets)
    if settings["train"]["l2"] == "own":
        first = weighed(arrays, first, settings, folder)
    return cells.choose(
        first,
        arrays.features,
        arrays.training_labels,
        settings["methods"],
        settings["train"],
        folder,
    )


def penalties_of(
    arrays: Arrays, settings: dict, levels: Iterable[float] | None = None, folder=None
) -> pd.DataFrame:
    """As :func:`penalties`, for the sets that :func:`run` would draw: what its heads were fitted with."""
    few = settings | {"seeds": min(settings["seeds"], cells.MOST)}
    return penalties(arrays, drawn(arrays, few, levels), settings, folder)


def run(
    arrays: Arrays,
    settings: dict,
    levels: Iterable[float] | None = None,
    design: StandardisedFeatures | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Predict by linear heads on every set: as :func:`study.experiment.runs.train_sets`.

    Parameters
    ----------
    levels : iterable of float, optional
        Instead of ``bias.levels``.
    design : StandardisedFeatures, optional
        Of the features and labels, for calls that have training sets in common. One of all rows, as the
        variations here use, standardises by all rows and then by the training set's own: the same but
        for rounding.
    """
    return _run(arrays, drawn(arrays, settings, levels), settings, design, folder)


def _run(arrays: Arrays, sets: pd.DataFrame, settings: dict, design, folder) -> pd.DataFrame:
    """As :func:`run`. Scores are kept by block of sets, whose weights then need not even be read."""
    chosen = penalties(arrays, sets, settings, folder)
    if folder is None:
        return _computed(arrays, sets, settings, chosen, design, folder)
    methods = settings["methods"]
    parts = blocks(sets)
    files = _score_files(arrays, parts, settings, chosen, design, folder)
    scores = [store.read(file) for file in files]
    missing = [place for place, found in enumerate(scores) if found is None]
    if missing:
        missing_sets = pd.concat([parts[place] for place in missing])
        computed = _computed(arrays, missing_sets, settings, chosen, design, folder)
        columns = [name for method in methods for name in columns_of(computed, method)]
        first = 0
        for place in missing:
            last = first + len(tested(parts[place]))
            block = computed[first:last]
            scores[place] = {name: block[name].to_numpy() for name in columns}
            store.keep(files[place], scores[place])
            first = last
    tables = [tested(part).assign(**own) for part, own in zip(parts, scores, strict=True)]
    return pd.concat(tables, ignore_index=True)


def _score_files(arrays: Arrays, parts: list[pd.DataFrame], settings: dict, chosen, design, folder):
    """Where the scores of every block of sets are kept."""
    shared = store.digest(
        {
            "proxy": arrays.proxy,
            "features": arrays.features,
            "labels": arrays.training_labels,
            "people": arrays.people(),
            "own design": design is None,
            "methods": settings["methods"],
            "weights": settings["weights"],
            "train": {key: value for key, value in settings["train"].items() if key != "l2"},
            "device": pick_device("auto").type,
        }
    )
    files = []
    for part in parts:
        level = part["level"].iloc[0]
        inputs = {
            "shared": shared,
            "l2": [cells.of_method(chosen, level, method) for method in settings["methods"]],
            "level": part["level"].to_numpy(),
            "seed": part["seed"].to_numpy(),
            "row": part["row"].to_numpy(),
            "train": (part["part"] == "train").to_numpy(),
        }
        code = ["study.experiment.variations._computed"]
        files.append(store.kept_path(folder, "scores", inputs, code))
    return files


def _computed(
    arrays: Arrays, sets: pd.DataFrame, settings: dict, chosen: pd.DataFrame, design, folder
) -> pd.DataFrame:
    weighed_sets = weighed(arrays, sets, settings, folder)
    return _trained(arrays, weighed_sets, settings, chosen, design, folder)


def _trained(
    arrays: Arrays,
    sets: pd.DataFrame,
    settings: dict,
    chosen: pd.DataFrame,
    design=None,
    folder=None,
) -> pd.DataFrame:
    predictions, _ = train_sets(
        sets,
        arrays.features,
        arrays.training_labels,
        settings["methods"],
        settings["train"],
        penalties=chosen,
        design=design,
        folder=folder,
    )
    return predictions


def vary(
    arrays: Arrays,
    settings: dict,
    setting: str,
    values: Sequence,
    level: float,
    *,
    design: StandardisedFeatures | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Predict at one bias level under several values of one setting, such as ``weights.tau``.

    The setting can also be one of :data:`study.experiment.mislabelled.KINDS`. As from :func:`run`, with the value as text ("all" for None), ``value``, in the place of ``level``.
    Errors as of :func:`changed`.
    """
    versions = {}
    for value in values:
        versions[value_name(value)] = version(arrays, settings, setting, value)
    return _vary(versions, level, design, folder)


def version(arrays: Arrays, settings: dict, setting: str, value) -> tuple[Arrays, dict]:
    """The data and the settings under one value of a setting."""
    if setting in KINDS:
        given = mislabelled(arrays.labels, arrays.identities, setting, value)
        return replace(arrays, given=given), settings
    return arrays, changed(settings, setting, value)


def value_name(value) -> str:
    """A value of a setting as text, as tables of :func:`vary` have it."""
    return "all" if value is None else str(value)


def vary_proxy(
    arrays: Arrays,
    settings: dict,
    proxies: dict[str, np.ndarray],
    level: float,
    *,
    design: StandardisedFeatures | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """As :func:`vary`, for proxy embeddings ``{name: (n, d) array}`` in the place of values."""
    versions = {name: (replace(arrays, proxy=proxy), settings) for name, proxy in proxies.items()}
    return _vary(versions, level, design, folder, progress="proxies")


def _vary(
    versions: dict[str, tuple[Arrays, dict]], level: float, design, folder, progress=None
) -> pd.DataFrame:
    """Predictions of every version, which is a data set and its settings."""
    design = design or next(iter(versions.values()))[0].design()
    # Few settings decide how sets are drawn, and a proxy does not: equal sets are drawn once.
    sets = {}
    for arrays, settings in versions.values():
        if _drawing(settings) not in sets:
            sets[_drawing(settings)] = drawn(arrays, settings, [level])

    def predict(value: str) -> pd.DataFrame:
        arrays, settings = versions[value]
        own = design if arrays.given is None else arrays.design()
        predictions = _run(arrays, sets[_drawing(settings)], settings, own, folder)
        return predictions.rename(columns={"level": "value"}).assign(value=value)

    return pd.concat(on_all_cores(predict, versions, label=progress), ignore_index=True)


def _drawing(settings: dict) -> str:
    """What decides how the sets of a data set are drawn."""
    return store.digest(settings["bias"], settings["seeds"])


def changed(settings: dict, key: str, value) -> dict:
    """Return a copy of the settings with the dotted key (``weights.tau``, ``train.robust.alpha``) set.

    A ValueError on an unknown key names the nearest known one.
    """
    find("setting", key, dict.fromkeys(_keys(settings)))
    first, *rest = key.split(".")
    return _with_value(settings, first, rest, value)


def _with_value(settings: dict, name: str, below: list[str], value) -> dict:
    if below:
        value = _with_value(settings[name], below[0], below[1:], value)
    return settings | {name: value}


def _keys(settings: dict, above: str = "") -> Iterator[str]:
    """The dotted keys of everything inside sections, at any depth."""
    for name, value in settings.items():
        if above or isinstance(value, dict):
            yield above + name
        if isinstance(value, dict):
            yield from _keys(value, f"{above}{name}.")


def withheld(arrays: Arrays, sets: pd.DataFrame, methods: list[str], settings: dict) -> dict:
    """Compute what methods make of one set, given the identities and without.

    The set is that of the first level and seed of ``sets``, which together choose the penalty.

    Returns
    -------
    dict
        ``{method: (with, without)}``, each a dict of the arrays ``weights`` and ``logits``.
    """
    settings = settings | {"methods": methods}
    first = (sets["level"] == sets["level"].min()) & (sets["seed"] == sets["seed"].min())
    one_set = sets.loc[first, ["level", "seed", "part", "row", "minority"]]
    sides = []
    for identities in (arrays.identities, None):
        given = replace(arrays, identities=identities)
        chosen = penalties(given, sets[["level", "seed", "part", "row"]], settings)
        weights = weighed(given, one_set, settings)
        logits = _trained(given, weights, settings, chosen)
        side = {}
        for method in methods:
            side[method] = {
                "weights": weights[method].to_numpy(),
                "logits": scores_of(logits, [method])[:, 0],
            }
        sides.append(side)
    return {method: tuple(side[method] for side in sides) for method in methods}
