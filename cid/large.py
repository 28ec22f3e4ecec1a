"""The front door for training sets of any size: exact while all pairs can be compared, else estimated.

Up to :data:`EXACT` samples of a class these functions are those of :mod:`cid.weights`. Beyond, a density comes
from a part of all pairs (:mod:`cid.cells`), with a standard error for each.
"""

import numpy as np
import torch

from cid.arrays import class_codes, like, pick_device
from cid.cells import cell_density
from cid.density import Precision, neighbour_width
from cid.settings import ClassPrior, Exponent, Truth, Whole, WidthOrAuto, checked, one_of
from cid.weights import cid_weights as exact_cid_weights
from cid.weights import inverse_weights

Method = one_of("auto", "exact", "cells")
EXACT = 100_000  # samples of a class, up to which "auto" compares all with all


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
    tau = neighbour_width(embeddings, device=device) if tau == "auto" else tau
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
