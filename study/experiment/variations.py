"""Cells of a study in one call, and cells that differ in one setting.

A *cell* is one bias level of one data set: its training sets, weighed and trained by every method.
The pipeline runs the main study's cells as stages; what varies the study (another task, another
kind of bias, one setting at a time, another proxy) goes through here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from cid.heads import Design
from cid.methods import Sample, proxy_density, surprise
from cid.names import suggest
from cid.posterior import label_posterior, without_class_direction
from cid.trainers import Options
from study.experiment.design import draw_sets
from study.experiment.runs import train_sets, weigh_sets
from study.results.metrics import pair_similarities, verification_auc


@dataclass(frozen=True)
class Arrays:
    """A data set as the methods see it.

    ``proxy`` (n, d) and ``features`` (n, t) float32; ``labels`` (n,) int, 0 or 1; ``identities``
    (n,), which build the biased sets, the oracles and nothing else.
    """

    proxy: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    identities: np.ndarray


def draw(arrays: Arrays, settings: dict, level: float, folder=None) -> pd.DataFrame:
    """The sets of one cell, weighed by every method: :func:`study.experiment.runs.weigh_sets`.

    Parameters
    ----------
    settings : dict
        ``seeds``, ``methods``, and the sections ``bias`` and ``weights`` of params.yaml.
    folder : path, optional
        As in :func:`study.experiment.runs.weigh_sets`.
    """
    bias = {key: value for key, value in settings["bias"].items() if key != "levels"}
    sets = draw_sets(arrays.identities, arrays.labels, seeds=settings["seeds"], level=level, **bias)
    return weigh_sets(
        sets,
        arrays.proxy,
        arrays.labels,
        arrays.identities,
        settings["methods"],
        settings["weights"],
        folder,
    )


def run(
    arrays: Arrays,
    settings: dict,
    levels: Iterable[float] | None = None,
    design: Design | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Predictions of linear heads in every cell: as :func:`study.experiment.runs.train_sets`, with ``level``.

    Parameters
    ----------
    settings : dict
        As in :func:`draw`, and the section ``train``.
    levels : iterable of float, optional
        Instead of ``bias.levels``.
    design : Design, optional
        Of the features and labels, for cells that have training sets in common.
    folder : path, optional
        Where weights and heads are kept: whatever a later call would compute in the same way, it
        takes from there.
    """
    cells = []
    options = Options.of(settings["train"]["robust"], settings["train"]["through"])
    for level in settings["bias"]["levels"] if levels is None else levels:
        predictions, _ = train_sets(
            draw(arrays, settings, level, folder),
            arrays.features,
            arrays.labels,
            settings["methods"],
            settings["train"]["l2"],
            options,
            design=design,
            folder=folder,
        )
        cells.append(predictions.assign(level=level))
    return pd.concat(cells, ignore_index=True)


def vary(
    arrays: Arrays,
    settings: dict,
    setting: str,
    values: Sequence,
    level: float,
    *,
    design: Design | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Predictions of one cell under several values of one setting.

    Parameters
    ----------
    setting : str
        Dotted key of ``settings``, such as ``weights.tau``.
    values : sequence
    level : float
        Bias level of the cell.
    design, folder
        As in :func:`run`.

    Returns
    -------
    pandas.DataFrame
        As :func:`run`; ``level`` is the value's place in ``values``, from 0.
    """
    design = design or Design(arrays.features, arrays.labels)
    cells = [
        run(arrays, changed(settings, setting, value), [level], design, folder).assign(level=place)
        for place, value in enumerate(tqdm(values, desc=setting, mininterval=5))
    ]
    return pd.concat(cells, ignore_index=True)


def vary_proxy(
    arrays: Arrays,
    settings: dict,
    proxies: dict,
    level: float,
    *,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """As :func:`vary`, for proxy embeddings ``{name: (n, d) array}`` in the place of values."""
    design = Design(arrays.features, arrays.labels)
    cells = [
        run(replace(arrays, proxy=proxy), settings, [level], design, folder).assign(level=place)
        for place, proxy in enumerate(tqdm(proxies.values(), desc="proxies", mininterval=5))
    ]
    return pd.concat(cells, ignore_index=True)


def changed(settings: dict, key: str, value) -> dict:
    """A copy of nested settings with one dotted key set.

    Raises
    ------
    ValueError
        If the key does not exist; the nearest that does is named.
    """
    result = copy.deepcopy(settings)
    *sections, last = key.split(".")
    place = result
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        known = [
            f"{section}.{name}" if section else name
            for section, part in {"": settings, **settings}.items()
            if isinstance(part, dict)
            for name in part
        ]
        raise ValueError(f"setting {key!r} is unknown{suggest(key, known)}")
    place[last] = value
    return result


def factors(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    """The factors of the weights on every training image of a cell, each of mean 1 in its set.

    Returns
    -------
    pandas.DataFrame
        ``seed``, ``row``, ``cell_size`` (training images of the same person and class),
        ``person_size`` (of the same person), and a column each for 1/p(z), for 1/p(y|z) by a kernel
        of CID's own width, by a kernel and by neighbours of the likeliest scale; and for the truth,
        1/p(person) and 1/p(y|person).
    """
    sets = draw(arrays, {**settings, "methods": ["erm"]}, level)
    train = sets[sets["part"] == "train"]
    tables = []
    for _, part in train.groupby("seed"):
        rows = part["row"].to_numpy()
        sample = Sample(arrays.proxy[rows], arrays.labels[rows], None)
        person = part.groupby(arrays.identities[rows])["row"].transform("size").to_numpy()
        table = part[["seed", "row", "cell_size"]].assign(person_size=person)
        same_width = label_posterior(
            sample.embeddings, sample.labels, estimator="kernel", slope=1.0,
            scale=settings["weights"]["tau"],
        )  # fmt: skip
        found = {
            "rarity": 1 / proxy_density(sample, settings["weights"]),
            "surprise, CID's kernel": 1 / same_width.probability,
            "surprise, kernel": 1 / surprise(sample, settings["weights"], "kernel").probability,
            "surprise, k-NN": 1 / surprise(sample, settings["weights"], "knn").probability,
            "true rarity": 1 / person,
            "true surprise": person / part["cell_size"].to_numpy(),
        }
        tables.append(table.assign(**{name: v / v.mean() for name, v in found.items()}))
    return pd.concat(tables, ignore_index=True)


def posteriors(arrays: Arrays, settings: dict, levels: Iterable[float]) -> pd.DataFrame:
    """What the leave-one-out likelihood of the labels chooses, and how near the truth it comes.

    Returns
    -------
    pandas.DataFrame
        One row a level, seed and estimator: ``level``, ``seed``, ``estimator``, ``scale``,
        ``slope``, ``loss``, ``prior_loss``, and ``true_loss``, that of the frequencies of the labels
        among the person's other images (true identities).
    """
    rows = []
    for level in levels:
        sets = draw(arrays, {**settings, "methods": ["erm"]}, level)
        train = sets[sets["part"] == "train"]
        for seed, part in train.groupby("seed"):
            images = part["row"].to_numpy()
            sample = Sample(arrays.proxy[images], arrays.labels[images], None)
            person = part.groupby(arrays.identities[images])["row"].transform("size").to_numpy()
            cell = part["cell_size"].to_numpy()
            true_loss = -np.log(cell / person).mean()
            for estimator in ("kernel", "knn"):
                found = surprise(sample, settings["weights"], estimator)
                rows.append(
                    {"level": level, "seed": seed, "estimator": estimator, "true_loss": true_loss}
                    | {key: getattr(found, key) for key in ("scale", "slope", "loss", "prior_loss")}
                )
    return pd.DataFrame(rows)


def degraded(proxy: np.ndarray, identities, noise: Sequence[float]) -> dict[str, np.ndarray]:
    """Proxies from the true identity down to chance.

    Parameters
    ----------
    proxy : float32 array, shape (n, d)
        Unit vectors.
    noise : sequence of float
        Length of the Gaussian noise added to a unit vector, in expectation.

    Returns
    -------
    dict of float32 arrays (n, d)
        ``true identity`` (a random direction for every identity), ``as it is``, ``noise <s>`` and
        ``random``.
    """
    n, d = proxy.shape
    generator = torch.Generator().manual_seed(0)
    codes = np.unique(identities, return_inverse=True)[1]
    direction = torch.randn(codes.max() + 1, d, generator=generator).numpy()
    jitter = torch.randn(n, d, generator=generator).numpy()
    # A trace of noise, so that neighbours of one person have an order.
    found = {"true identity": direction[codes] + 1e-3 * jitter, "as it is": proxy}
    for length in noise:
        found[f"noise {length:g}"] = proxy + length * jitter / np.sqrt(d)
    return found | {"random": jitter}


def remedies(proxy: np.ndarray, views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Proxies that might leak less of the label, none of which sees a label or an identity.

    Parameters
    ----------
    proxy : float32 array, shape (n, d)
        Unit vectors of the photos.
    views : dict of float32 arrays (n, d)
        From :func:`study.faces.embed.embed_views`.

    Returns
    -------
    dict of float32 arrays (n, d)
    """
    crops = proxy + sum(view for name, view in views.items() if name != "mirrored")
    return {
        "as it is": proxy,
        "mirror averaged": proxy + views["mirrored"],
        "crops averaged": crops,
        "all views": crops + views["mirrored"],
        "centred": proxy - proxy.mean(axis=0),
    }


def leaks(arrays: Arrays) -> pd.DataFrame:
    """What the proxy tells of the label within a person, and of the person, with and without remedy.

    Returns
    -------
    pandas.DataFrame
        One row a version of the proxy: ``proxy``, ``same-label AUC within a person``, ``verification
        AUC``. Labels remove the class direction; identities measure.
    """
    cleaned = without_class_direction(arrays.proxy, arrays.labels).cpu().numpy()
    rows = []
    for name, proxy in (("as it is", arrays.proxy), ("class direction removed", cleaned)):
        pairs = pair_similarities(
            proxy / np.linalg.norm(proxy, axis=1, keepdims=True), arrays.identities
        )
        rows.append(
            {
                "proxy": name,
                "same-label AUC within a person": same_label_auc(
                    proxy, arrays.labels, arrays.identities
                ),
                "verification AUC": verification_auc(*pairs),
            }
        )
    return pd.DataFrame(rows)


def withheld(arrays: Arrays, sets: pd.DataFrame, methods: list[str], settings: dict) -> dict:
    """Weights and logits of one seed, with the identities handed to the methods and without.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`study.experiment.design.draw_sets`; its first seed is used.
    methods : list of str
    settings : dict
        The sections ``weights`` and ``train`` of params.yaml.

    Returns
    -------
    dict
        ``{method: (with, without)}``, either a dict of the arrays ``weights`` and ``logits``.
    """
    sets = sets.loc[sets["seed"] == sets["seed"].min(), ["seed", "part", "row"]]
    options = Options.of(settings["train"]["robust"], settings["train"]["through"])
    sides = []
    for identities in (arrays.identities, None):
        weighed = weigh_sets(
            sets, arrays.proxy, arrays.labels, identities, methods, settings["weights"]
        )
        logits, _ = train_sets(
            weighed, arrays.features, arrays.labels, methods, settings["train"]["l2"], options
        )
        sides.append(
            {m: {"weights": weighed[m].to_numpy(), "logits": logits[m].to_numpy()} for m in methods}
        )
    return {method: (sides[0][method], sides[1][method]) for method in methods}


def same_label_auc(proxy: np.ndarray, labels, identities) -> float:
    """How well similarity tells same-label pairs of one person: .5 where the proxy is blind to it.

    Area under the ROC curve over all pairs of images of the same identity.
    """
    unit = proxy / np.linalg.norm(proxy, axis=1, keepdims=True)
    same, cosine = [], []
    for rows in pd.Series(np.arange(len(labels))).groupby(np.asarray(identities)).indices.values():
        first, second = np.triu_indices(len(rows), 1)
        cosine.append((unit[rows] @ unit[rows].T)[first, second])
        same.append((labels[rows][:, None] == labels[rows])[first, second])
    return float(roc_auc_score(np.concatenate(same), np.concatenate(cosine)))
