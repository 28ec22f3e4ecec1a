"""The registry of methods, and which labels each may see.

A method turns a training set into sample weights. It is handed the class labels and the proxy
embeddings; identities reach only a method that declares it needs them, so "without identity labels"
is a property of the code and not a promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cid.density import cid_weights, class_density, inverse_weights
from cid.faces import suggest


@dataclass(frozen=True)
class Method:
    """A way to weight training samples.

    Attributes
    ----------
    title : str
        Name in figures and tables.
    sees : tuple of str
        Labels of the training set it uses: "class", "identity", or neither.
    summary : str
        One line for the report.
    weigh : callable
        ``(sample, settings) -> weights of shape (n,)``, of mean 1.
    """

    title: str
    sees: tuple[str, ...]
    summary: str
    weigh: Callable[[Sample, dict], np.ndarray]


@dataclass(frozen=True)
class Sample:
    """What a method may look at: one training set of n images.

    ``embeddings`` (n, d), ``labels`` (n,) and, for methods that declare it only, ``identities``
    (n,), else None.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    identities: np.ndarray | None


def training_weights(method: str, embeddings, labels, identities, settings: dict) -> np.ndarray:
    """Weights of a training set under a method.

    Parameters
    ----------
    method : str
        A key of :data:`METHODS`.
    embeddings : array, shape (n, d)
        Proxy embeddings of the training images.
    labels, identities : array, shape (n,)
        ``identities`` may be None for methods that do not see them.
    settings : dict
        ``tau``, ``power``, ``class_prior``, ``include_self``: see :func:`cid.density.cid_weights`.

    Returns
    -------
    float64 array, shape (n,), mean 1.

    Raises
    ------
    ValueError
        On an unknown method, or identities missing for a method that needs them.
    """
    spec = get_method(method)
    needs_identity = "identity" in spec.sees
    if needs_identity and identities is None:
        raise ValueError(f"method {method!r} needs identities and none were given")
    sample = Sample(embeddings, labels, identities if needs_identity else None)
    return np.asarray(spec.weigh(sample, settings), dtype=np.float64)


def weigh_sets(
    sets: pd.DataFrame, embeddings, labels, identities, methods: list[str], settings: dict
) -> pd.DataFrame:
    """Weigh the training set of every seed by every method.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`cid.bias.draw_sets`.
    embeddings, labels, identities : array, shape (n, ...)
        Of the whole data set.
    methods : list of str
    settings : dict
        As in :func:`training_weights`.

    Returns
    -------
    pandas.DataFrame
        ``sets`` with one column a method: the weight of a training image, NaN for a test image.
    """
    for method in methods:
        get_method(method)
    weights = pd.DataFrame(np.nan, index=sets.index, columns=list(methods))
    for _, train in sets[sets["part"] == "train"].groupby("seed"):
        rows = train["row"].to_numpy()
        for method in methods:
            weights.loc[train.index, method] = training_weights(
                method, embeddings[rows], labels[rows], identities[rows], settings
            )
    return pd.concat([sets, weights], axis=1)


def get_method(name: str) -> Method:
    """Look a method up by name, or say which there are."""
    if name not in METHODS:
        raise ValueError(
            f"method {name!r} is unknown{suggest(name, METHODS)}; known: {', '.join(METHODS)}"
        )
    return METHODS[name]


def _erm(sample: Sample, settings: dict) -> np.ndarray:
    return np.ones(len(sample.labels))


def _balanced(sample: Sample, settings: dict) -> np.ndarray:
    return inverse_weights(np.ones(len(sample.labels)), sample.labels, class_prior="balanced")


def _inverse_density(sample: Sample, settings: dict) -> np.ndarray:
    density = class_density(
        sample.embeddings,
        np.zeros(len(sample.labels), dtype=int),  # one class: the density is not conditional
        settings["tau"],
        include_self=settings["include_self"],
    )
    return inverse_weights(
        density, sample.labels, class_prior=settings["class_prior"], power=settings["power"]
    )


def _cid(sample: Sample, settings: dict) -> np.ndarray:
    return cid_weights(
        sample.embeddings,
        sample.labels,
        settings["tau"],
        class_prior=settings["class_prior"],
        power=settings["power"],
        include_self=settings["include_self"],
    )


def _oracle(sample: Sample, settings: dict) -> np.ndarray:
    classes = np.unique(sample.labels, return_inverse=True)[1]
    people = np.unique(sample.identities, return_inverse=True)[1]
    cell = people * (classes.max() + 1) + classes
    size = np.bincount(cell)[cell]
    # A cell's weight is spread over its images, and every class holds the same total weight.
    return inverse_weights(
        size.astype(np.float64), sample.labels, class_prior=settings["class_prior"]
    )


METHODS = {
    "erm": Method("ERM", (), "every image counts the same", _erm),
    "balanced": Method("Class-balanced", ("class",), "every class counts the same", _balanced),
    "inverse-density": Method(
        "Inverse density",
        ("class",),
        "inverse density of the proxy embedding, not conditional on the class",
        _inverse_density,
    ),
    "cid": Method(
        "CID",
        ("class",),
        "inverse density of the proxy embedding within the class",
        _cid,
    ),
    "oracle": Method(
        "Oracle",
        ("class", "identity"),
        "every (identity, class) cell counts the same, by the true identities",
        _oracle,
    ),
}
