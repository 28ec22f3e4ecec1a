"""The method taken apart: what rarity and label surprise see, against the truth.

True identities are used here for the comparison only. ``settings`` and ``folder`` are as in
:mod:`study.experiment.variations`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from cid import reference
from cid.density import neighbour_width
from cid.posterior import label_posterior
from cid.weights import cid_weights, surprise_weights
from study import store
from study.experiment.arrays import Arrays, whole
from study.experiment.variations import drawn
from study.methods.base import Sample
from study.methods.registry import weigh_settings
from study.methods.weighting import kernel_width, posterior_of, proxy_density

FEW = 0.002  # share of the training images under which a cell size is left out of the factors


def factors(
    arrays: Arrays, settings: dict, level: float, folder: str | Path | None = None
) -> pd.DataFrame:
    """Compare the factors of the weights with the true size of the (person, class) cell.

    Returns
    -------
    pandas.DataFrame
        One row a cell size and factor: ``cell_size`` (training images of the same person and class),
        ``factor`` ("rarity" or "surprise, ..."), its ``mean`` and its 10 % and 90 % quantiles ``low``
        and ``high`` over the training images, the mean ``truth``, and their number ``n``. Sizes that
        fewer than :data:`FEW` of all training images have are left out: where all cells are alike but
        for rounding, a handful of images would be most of the range.
    """
    columns = store.kept(
        folder,
        "factors",
        _inputs(arrays, settings, level),
        code=["study.experiment.factors._factors"],
        compute=lambda: _as_arrays(_factors(arrays, settings, level)),
    )
    return pd.DataFrame(columns)


def _factors(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    images = factor_values(arrays, settings, level)
    size = images.groupby("cell_size")["row"].transform("size")
    by_size = images[size >= FEW * len(images)].groupby("cell_size")
    tables = []
    for factor in [name for name in images if name.startswith(("rarity", "surprise"))]:
        values = by_size[factor]
        table = pd.DataFrame(
            {
                "factor": factor,
                "mean": values.mean(),
                "low": values.quantile(0.1),
                "high": values.quantile(0.9),
                "truth": by_size[f"true {factor.split(',')[0]}"].mean(),
                "n": values.size(),
            }
        )
        tables.append(table.reset_index())
    return pd.concat(tables, ignore_index=True)


def factor_values(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    """Compute the factors of every training image whose person is known, each of mean 1 in its set.

    Returns
    -------
    pandas.DataFrame
        ``seed``, ``row``, ``cell_size``, ``person_size`` (training images of the same person), and a
        column each for 1/p(z), for 1/p(y|z) by a kernel of CID's own width, by a kernel and by
        neighbours of the likeliest scale; and for the truth, 1/p(person) and 1/p(y|person).
    """
    by_kernel = weigh_settings("cid-kernel", settings["weights"])
    by_neighbours = weigh_settings("cid-knn", settings["weights"])
    tables = []
    for table, sample in _training_sets(arrays, settings, level):
        person_size = table["person_size"]
        cell_size = table["cell_size"]
        same_width = label_posterior(
            sample.embeddings,
            sample.labels,
            estimator="kernel",
            slope=1.0,
            scale=kernel_width(sample, by_kernel),
        )
        values = {
            "rarity": 1 / proxy_density(sample, by_kernel),
            "surprise, CID's kernel": 1 / same_width.probability,
            "surprise, kernel": 1 / posterior_of(sample, by_kernel, "kernel").probability,
            "surprise, k-NN": 1 / posterior_of(sample, by_neighbours, "knn").probability,
            "true rarity": 1 / person_size,
            "true surprise": person_size / cell_size,
        }
        columns = table[["seed", "row", "cell_size", "person_size"]]
        known = cell_size.to_numpy() > 0  # whose person is known
        of_mean_1 = {name: value[known] / value[known].mean() for name, value in values.items()}
        tables.append(columns[known].assign(**of_mean_1))
    return pd.concat(tables, ignore_index=True)


def posteriors(
    arrays: Arrays, settings: dict, levels: Iterable[float], folder: str | Path | None = None
) -> pd.DataFrame:
    """Show what the leave-one-out likelihood of the labels chooses, and how near it comes to the truth.

    Returns
    -------
    pandas.DataFrame
        One row a level, seed and estimator: ``level``, ``seed``, ``estimator``, ``scale``,
        ``slope``, ``loss``, ``prior_loss``, and ``true_loss``, that of the frequencies of the labels
        among the person's other images (true identities), smoothed by Laplace's rule; it is the mean over
        the images whose person is known.
    """
    tables = []
    for level in levels:
        columns = store.kept(
            folder,
            "posteriors",
            _inputs(arrays, settings, level),
            code=["study.experiment.factors._posteriors"],
            compute=lambda level=level: _as_arrays(_posteriors(arrays, settings, level)),
        )
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _posteriors(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    rows = []
    for table, sample in _training_sets(arrays, settings, level):
        # Of the person's other images, smoothed as the estimators are: there can be none of its label.
        others = table["person_size"] - 1
        alike = table["cell_size"] - 1
        prior = np.bincount(sample.labels)[sample.labels] / len(sample.labels)
        known = alike >= 0
        likely = (alike + 2 * prior) / (others + 2)
        true_loss = -np.log(likely[known]).mean()
        for estimator, method in (("kernel", "cid-kernel"), ("knn", "cid-knn")):
            estimate = posterior_of(sample, weigh_settings(method, settings["weights"]), estimator)
            row = {
                "level": table["level"].iloc[0],
                "seed": table["seed"].iloc[0],
                "estimator": estimator,
                "true_loss": true_loss,
                "scale": estimate.scale,
                "slope": estimate.slope,
                "loss": estimate.loss,
                "prior_loss": estimate.prior_loss,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def agreement(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    """Compare the library with the method in plain NumPy (:mod:`cid.reference`) on one training set.

    It is the first one of the level, and both compute in float64: CID with the width of ``tau: auto``,
    label surprise by ten neighbours, as counted, in the proxy as it is.

    Returns
    -------
    pandas.DataFrame
        One row per kind of ``weights``: the number of ``images``, and ``agree_to``, a text: the power of
        ten, 1e-9 or more, that no relative difference of two weights exceeds.
    """
    _, sample = next(_training_sets(arrays, settings, level))
    embeddings = sample.embeddings.astype(np.float64)
    labels = sample.labels
    tau = neighbour_width(embeddings)
    surprise = surprise_weights(
        embeddings, labels, neighbours=10, surprise=1.0, keep_class_direction=True
    )
    pairs = {
        "CID": (cid_weights(embeddings, labels, tau), reference.cid(embeddings, labels, tau)),
        "label surprise": (surprise, reference.surprise(embeddings, labels, 10)),
    }
    rows = []
    for name, (library, plain) in pairs.items():
        largest = np.abs(library / plain - 1).max()
        power = max(-9, int(np.ceil(np.log10(max(largest, 1e-300)))))
        rows.append({"weights": name, "images": len(labels), "agree_to": f"1e{power}"})
    return pd.DataFrame(rows)


def _training_sets(
    arrays: Arrays, settings: dict, level: float
) -> Iterator[tuple[pd.DataFrame, Sample]]:
    """Every training set of a level as methods see it, and its table with the true sizes of each image's
    person and cell."""
    sets = drawn(arrays, settings, [level])
    for _, table in sets[sets["part"] == "train"].groupby("seed"):
        rows = table["row"].to_numpy()
        person_size = table.groupby(arrays.identities[rows])["row"].transform("size")
        table = table.assign(person_size=person_size).reset_index(drop=True)
        yield table, Sample(arrays.proxy[rows], whole(arrays.labels[rows]), None)


def _inputs(arrays: Arrays, settings: dict, level: float) -> dict:
    """What the tables of this module are computed from."""
    return {
        "proxy": arrays.proxy,
        "labels": arrays.labels,
        "people": arrays.people(),
        "seeds": settings["seeds"],
        "bias": settings["bias"],
        "weights": settings["weights"],
        "level": level,
    }


def _as_arrays(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The columns of a table as arrays, text as NumPy's own, which is kept without pickle."""
    arrays = {}
    for name, column in table.items():
        is_number = column.dtype.kind in "bif"
        arrays[name] = column.to_numpy(None if is_number else str)
    return arrays
