"""The front door for training sets of any size: exact while all pairs can be compared, else estimated.

Up to a size these functions are those of :mod:`cid.weights` and :mod:`cid.posterior`. Beyond, a density comes
from a part of all pairs (:mod:`cid.cells`), with a standard error for each, and neighbours from likely places
(:mod:`cid.neighbours`), with a check of what was missed.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cid.arrays import (
    as_tensor,
    class_codes,
    like,
    pick_device,
    unit_vectors,
    warn_of_many_classes,
)
from cid.cells import cell_density, width_in_parts
from cid.density import Precision
from cid.neighbours import Neighbours, likely_neighbours, neighbours_among_all
from cid.posterior import (
    Posterior,
    of_kind,
    posterior_of_neighbours,
    probability_of,
    two_classes,
    without_class_direction,
)
from cid.posterior import label_posterior as exact_label_posterior
from cid.settings import (
    ClassPrior,
    Exponent,
    ExponentOrAuto,
    Truth,
    Whole,
    WidthOrAuto,
    checked,
    one_of,
)
from cid.weights import cid_weights as exact_cid_weights
from cid.weights import inverse_weights, log_product
from cid.weights import surprise_weights as exact_surprise_weights

Method = one_of("auto", "exact", "cells")
EXACT = 100_000  # samples of a class, up to which "auto" compares all for a density
MANY = 50_000  # samples, up to which it does for neighbours
CHECKED = 1000  # samples whose neighbours are compared with those among all


def cid_weights(
    embeddings,
    labels,
    tau: float | str = "auto",
    *,
    method: str = "auto",
    class_prior: str = "balanced",
    power: float = 1.0,
    include_self: bool = True,
    precision: str = "single",
    device: str = "auto",
    seed: int = 0,
    return_error: bool = False,
):
    """Compute conditional inverse density (CID) weights, ``w_i ~ p(z_i | y_i) ^ -power``.

    After Qi & Ardeshir, "Improving Identity-Robustness for Face Models", arXiv 2304.03838.

    >>> embeddings = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]
    >>> cid_weights(embeddings, labels=[0, 0, 0, 1], tau=0.1).round(2)
    array([0.51, 0.51, 0.99, 2.  ])

    Parameters
    ----------
    embeddings, labels, tau, include_self, precision, device
        As in :func:`cid.density.class_density`.
    method : {"auto", "exact", "cells"}
        "exact" compares all samples of a class with each other. "cells" estimates the density of each from
        some thousand others (:mod:`cid.cells`), on the CPU; classes of fewer stay exact. "auto" takes cells
        for classes of more than :data:`EXACT` samples, and is exact on a GPU, under half precision and
        without a sample's own term.
    class_prior : {"balanced", "empirical"}
        Total weight of a class: the same for all, or proportional to its number of samples.
    power : float
        0 gives uniform weights within each class, 1 CID as published.
    seed : int
        Of what "cells" draws. The same seed gives the same bytes on the same machine and number of threads.
    return_error : bool
        Also return the standard error of each weight.

    Returns
    -------
    weights : array or tensor, shape (n,)
        Weights of mean 1, of the kind, floating type and device of ``embeddings``.
    error : array or tensor, shape (n,)
        Only with ``return_error``: how far a weight may be from the exact one, as a standard error; 0 where
        it is exact. **An unseen near neighbour is not in it**: where a sample has one in a cell that promised
        little and was not drawn, weight and error miss it both. So the exact weight lies within two errors
        less often than 95 times in 100 (`benchmarks/README.md` says how often).

    Raises
    ------
    ValueError
        As :func:`cid.density.class_density`, or on a setting out of range.
    """
    method = checked("method", method, Method)
    class_prior = checked("class_prior", class_prior, ClassPrior)
    power = checked("power", power, Exponent)
    seed = checked("seed", seed, Whole)
    include_self = checked("include_self", include_self, Truth)
    precision = checked("precision", precision, Precision)
    if method == "cells" and not (include_self and precision == "single"):
        raise ValueError(
            "method 'cells' needs include_self true and precision 'single'; set them, or method 'exact'"
        )
    if not _by_cells(labels, method, include_self, precision, device):
        options = {"include_self": include_self, "precision": precision, "device": device}
        weights = exact_cid_weights(
            embeddings, labels, tau, class_prior=class_prior, power=power, **options
        )
        return (weights, weights * 0) if return_error else weights
    tau = checked("tau", tau, WidthOrAuto)
    if tau == "auto":
        stored = isinstance(embeddings, np.memmap)
        tau = width_in_parts(embeddings if stored else as_tensor(embeddings, ndim=2))
    few = {"few": EXACT} if method == "auto" else {}
    density, error = cell_density(embeddings, labels, tau, seed=seed, **few)
    weights = inverse_weights(density, labels, class_prior=class_prior, power=power)
    found = [
        like(torch.from_numpy(np.asarray(values)), embeddings)
        for values in (weights, power * weights * error / density)
    ]
    return tuple(found) if return_error else found[0]


def _by_cells(labels, method: str, include_self: bool, precision: str, device) -> bool:
    """Whether a method takes cells for some class."""
    if method != "auto":
        return method == "cells"
    codes, _ = class_codes(labels)
    plain = include_self and precision == "single"
    return plain and np.bincount(codes).max() > EXACT and pick_device(device).type == "cpu"


def label_posterior(
    embeddings,
    labels,
    *,
    estimator: str = "knn",
    scale: float | str = "auto",
    slope: float | str = "auto",
    local_scaling: bool = False,
    device: str = "auto",
    method: str = "auto",
    seed: int = 0,
    return_check: bool = False,
):
    """Estimate each sample's label posterior from its neighbours: :func:`cid.posterior.label_posterior`.

    >>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]
    >>> label_posterior(embeddings, [0, 0, 0, 1, 1, 0], scale=2, slope=1.0).probability.round(2)
    array([0.83, 0.83, 0.83, 0.42, 0.42, 0.33])

    Parameters
    ----------
    embeddings, labels, estimator, scale, slope, local_scaling, device
        As there.
    method : {"auto", "exact", "cells"}
        "exact" compares all samples with each other. "cells" looks for the nearest in the likeliest cells of
        each (:mod:`cid.neighbours`), on the CPU. "auto" does so beyond :data:`MANY` samples, and is exact on a
        GPU, with a kernel and under local scaling.
    seed : int
        Of the cells. The same seed gives the same bytes on the same machine and number of threads.
    return_check : bool
        Also return what the cells missed, measured on some samples: a :class:`Check`.

    Returns
    -------
    posterior : Posterior
    check : Check
        Only with ``return_check``.

    Raises
    ------
    ValueError
        As there.
    """
    method = checked("method", method, Method)
    seed = checked("seed", seed, Whole)
    plain = estimator == "knn" and local_scaling is False
    if method == "cells" and not plain:
        raise ValueError(
            "method 'cells' needs estimator 'knn' and local_scaling false; set them, or method 'exact'"
        )
    options = {"estimator": estimator, "local_scaling": local_scaling, "device": device}
    many = plain and len(labels) > MANY and pick_device(device).type == "cpu"
    if method == "exact" or method == "auto" and not many:
        found = exact_label_posterior(embeddings, labels, scale=scale, slope=slope, **options)
        return (found, EXACT_CHECK) if return_check else found
    unit = unit_vectors(embeddings, "cpu").float()
    codes = two_classes(labels, len(unit))
    found, near = posterior_of_neighbours(
        codes, scale, slope, lambda k: likely_neighbours(unit, k, seed)
    )
    result = of_kind(found, found.probability, embeddings)
    return (result, _check(unit, codes, found, near)) if return_check else result


@dataclass(frozen=True)
class Check:
    """What cells missed, among samples whose neighbours were looked up among all."""

    recall: float  # share of the nearest that were found
    median: float  # how far a weight 1 / probability is from the exact one, as a share of that
    most: float  # 95 of 100 are nearer
    largest: float
    looked_up: float  # share of all samples whose neighbours are exact, as they were in doubt


EXACT_CHECK = Check(1.0, 0.0, 0.0, 0.0, 1.0)


def _check(unit, codes: np.ndarray, found: Posterior, near: Neighbours) -> Check:
    """Compare the neighbours of some samples with those among all, and the weights that follow from them."""
    rows = np.linspace(0, len(codes) - 1, min(CHECKED, len(codes))).astype(int)
    true = neighbours_among_all(unit, rows, near.rows.shape[1])
    recall = [np.isin(one, other).mean() for one, other in zip(true, near.rows[rows], strict=True)]
    exact = probability_of(codes, rows, true[:, : int(found.scale)], found.slope)
    off = np.abs(exact / found.probability[rows] - 1)
    return Check(
        recall=float(np.mean(recall)),
        median=float(np.median(off)),
        most=float(np.quantile(off, 0.95)),
        largest=float(off.max()),
        looked_up=float(near.again.mean()),
    )


def surprise_weights(
    embeddings,
    labels,
    *,
    neighbours: int | str = "auto",
    surprise: float | str = "auto",
    class_prior: str = "balanced",
    keep_class_direction: bool = False,
    local_scaling: bool = False,
    device: str = "auto",
    method: str = "auto",
    seed: int = 0,
    return_check: bool = False,
):
    """Compute label surprise weights, ``w_i ~ 1 / p(y_i | z_i)``: :func:`cid.weights.surprise_weights`.

    >>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]
    >>> labels = [0, 0, 1, 1, 1, 0]  # each of two people has one image of their rarer class
    >>> options = {"neighbours": 2, "surprise": 1.0, "keep_class_direction": True}
    >>> weights = surprise_weights(embeddings, labels, **options)
    >>> bool(weights[2] > weights[3])
    True

    Parameters
    ----------
    embeddings, labels, neighbours, surprise, class_prior, keep_class_direction, local_scaling, device
        As there.
    method, seed, return_check
        As in :func:`label_posterior`.

    Returns
    -------
    weights : array or tensor, shape (n,)
        As there.
    check : Check
        Only with ``return_check``.

    Raises
    ------
    ValueError
        As there.
    """
    method = checked("method", method, Method)
    many = len(labels) > MANY and not local_scaling and pick_device(device).type == "cpu"
    if method == "exact" or method == "auto" and not many:
        weights = exact_surprise_weights(
            embeddings,
            labels,
            neighbours=neighbours,
            surprise=surprise,
            class_prior=class_prior,
            keep_class_direction=keep_class_direction,
            local_scaling=local_scaling,
            device=device,
        )
        return (weights, EXACT_CHECK) if return_check else weights
    surprise = checked("surprise", surprise, ExponentOrAuto)
    warn_of_many_classes(labels)
    cleaned = embeddings
    if not keep_class_direction:
        cleaned = without_class_direction(embeddings, labels, device="cpu")
    posterior, check = label_posterior(
        cleaned,
        labels,
        scale=neighbours,
        slope="auto" if surprise == "auto" else 1.0,
        local_scaling=local_scaling,
        method="cells",
        seed=seed,
        return_check=True,
    )
    logs = log_product(posterior.probability, surprise=surprise)
    weights = inverse_weights(logs, labels, class_prior=class_prior, log=True)
    weights = like(as_tensor(weights, "weights"), embeddings)
    return (weights, check) if return_check else weights
