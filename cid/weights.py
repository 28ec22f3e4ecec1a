"""Weights of training samples, without identity labels: CID, and each of its two factors.

By Bayes, the inverse class-conditional density is, within a class, a product of two factors:

    1 / p(z | y)  ~  1 / p(z)  x  1 / p(y | z)

*Rarity* is high where few images look like this person. *Label surprise* is high where this label is
unusual among images that look like this person. :func:`cid_weights` divides by the density itself,
:func:`surprise_weights` by the second factor alone, :func:`two_factor_weights` by any powers of both.

Every function takes arrays or tensors (n, d) and (n,) and returns weights (n,) of mean 1, of the kind and
device of the embeddings; float64 if these are, else float32.
"""

import math

import numpy as np
import torch

from cid.arrays import (
    array,
    as_tensor,
    class_codes,
    like,
    reals,
    unit_vectors,
    warn_of_many_classes,
)
from cid.density import class_density, neighbour_width, refuse_strays
from cid.factors import Factors
from cid.settings import (
    ClassPrior,
    CountOrAuto,
    Exponent,
    ExponentOrAuto,
    PositiveOrAuto,
    Truth,
    checked,
)

BLOCK = 1024  # new samples compared with the training samples at a time


def cid_weights(
    embeddings,
    labels,
    tau: float | str = "auto",
    *,
    class_prior: str = "balanced",
    power: float = 1.0,
    include_self: bool = True,
    precision: str = "single",
    device: str = "auto",
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
    class_prior : {"balanced", "empirical"}
        Total weight of a class: the same for all, or proportional to its number of samples.
    power : float
        0 gives uniform weights within each class, 1 CID as published.

    Returns
    -------
    array or tensor, shape (n,)
        Weights of mean 1, of the kind, floating type and device of ``embeddings``.

    Raises
    ------
    ValueError
        As :func:`cid.density.class_density`, or on a setting out of range.
    """
    density = class_density(
        embeddings, labels, tau, include_self=include_self, precision=precision, device=device
    )
    return inverse_weights(density, labels, class_prior=class_prior, power=power)


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
):
    """Compute label surprise weights, ``w_i ~ 1 / p(y_i | z_i)``: the second factor of CID alone.

    The posterior is estimated among the nearest other samples, after removing the direction along which
    the label itself shifts the embedding. Nothing has to be chosen.

    >>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]
    >>> labels = [0, 0, 1, 1, 1, 0]  # each of two people has one image of their rarer class
    >>> options = {"neighbours": 2, "surprise": 1.0, "keep_class_direction": True}
    >>> weights = surprise_weights(embeddings, labels, **options)
    >>> bool(weights[2] > weights[3])
    True

    Parameters
    ----------
    embeddings, labels, class_prior, device
        As in :func:`cid_weights`; at least two classes.
    neighbours, surprise, keep_class_direction, local_scaling
        As in :func:`two_factor_weights`.

    Returns
    -------
    array or tensor, shape (n,)
        As from :func:`cid_weights`.

    Raises
    ------
    ValueError
        As :func:`two_factor_weights`.
    """
    return two_factor_weights(
        embeddings,
        labels,
        rarity=0.0,
        surprise=surprise,
        neighbours=neighbours,
        class_prior=class_prior,
        keep_class_direction=keep_class_direction,
        local_scaling=local_scaling,
        device=device,
    )


def two_factor_weights(
    embeddings,
    labels,
    *,
    rarity: float = 1.0,
    surprise: float | str = "auto",
    tau: float | str = "auto",
    estimator: str = "knn",
    neighbours: int | str = "auto",
    posterior_tau: float | str = "auto",
    class_prior: str = "balanced",
    include_self: bool = True,
    keep_class_direction: bool = False,
    local_scaling: bool = False,
    device: str = "auto",
):
    """Compute weights ``w_i ~ 1 / (p(z_i)^rarity p(y_i | z_i)^surprise)``, each factor on its own scale.

    >>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]
    >>> weights = two_factor_weights(embeddings, [0, 0, 1, 1, 1, 0], neighbours=2)
    >>> float(weights.mean().round(6))
    1.0

    Parameters
    ----------
    embeddings, labels, class_prior, device
        As in :func:`cid_weights`; at least two classes.
    rarity : float
        Exponent of ``1 / p(z)``; 0 leaves this factor out.
    surprise : float or "auto"
        Exponent of ``1 / p(y | z)``. "auto" is 1, with the odds of the posterior as sharp as the class
        labels make likeliest; a number leaves the posterior as counted.
    tau, include_self
        Of the density p(z): as in :func:`cid.density.class_density`.
    estimator : {"knn", "kernel"}
        Of the posterior p(y | z): as in :func:`cid.posterior.label_posterior`.
    neighbours : int or "auto"
        Number of neighbours of the estimator "knn".
    posterior_tau : float or "auto"
        Kernel width of the estimator "kernel".
    keep_class_direction : bool
        Keep the direction along which the label itself shifts the embedding; by default the posterior
        is estimated :func:`cid.posterior.without_class_direction`.
    local_scaling : bool
        As in :func:`cid.posterior.label_posterior`.

    Returns
    -------
    array or tensor, shape (n,)
        As from :func:`cid_weights`.

    Raises
    ------
    ValueError
        As :func:`cid.density.class_density` and :func:`cid.posterior.label_posterior`.
    """
    rarity = checked("rarity", rarity, Exponent)
    surprise = checked("surprise", surprise, ExponentOrAuto)
    neighbours = checked("neighbours", neighbours, CountOrAuto)
    posterior_tau = checked("posterior_tau", posterior_tau, PositiveOrAuto)
    warn_of_many_classes(labels)
    factors = Factors(embeddings, labels, device=device)
    posterior = factors.posterior(
        estimator=estimator,
        scale=neighbours if estimator == "knn" else posterior_tau,
        slope="auto" if surprise == "auto" else 1.0,
        keep_class_direction=keep_class_direction,
        local_scaling=local_scaling,
    )
    density = factors.density(tau, include_self=include_self) if rarity else None
    logs = log_product(posterior.probability, density, rarity=rarity, surprise=surprise)
    weights = inverse_weights(logs, labels, class_prior=class_prior, log=True)
    return like(as_tensor(weights, "weights"), embeddings)


def log_product(probability, density=None, *, rarity: float = 1.0, surprise: float | str = "auto"):
    """``log(p(z)^rarity p(y|z)^surprise)``, which :func:`inverse_weights` turns into weights.

    ``probability`` and ``density`` have shape (n,); without a density the first factor is left out.
    "auto" as an exponent is 1. Returns a float64 array (n,).
    """
    rarity = checked("rarity", rarity, Exponent)
    surprise = checked("surprise", surprise, ExponentOrAuto)
    exponent = 1.0 if surprise == "auto" else surprise
    logs = exponent * np.log(reals("probability", probability))
    if density is not None:
        logs = logs + rarity * np.log(reals("density", density))
    return logs


def inverse_weights(
    density,
    labels,
    *,
    class_prior: str = "balanced",
    power: float = 1.0,
    log: bool = False,
):
    """Compute weights ``density^-power``, normalised within each class, then over classes to mean 1.

    >>> inverse_weights([1.0, 1.0, 0.5], labels=[0, 0, 0])
    array([0.75, 0.75, 1.5 ])

    ``density`` (n,) is positive, or with ``log`` its logarithm, which no product of factors can
    underflow. Only ratios within a class count. All else is as in :func:`cid_weights`; the result is
    of the kind of ``density``.
    """
    class_prior = checked("class_prior", class_prior, ClassPrior)
    power = checked("power", power, Exponent)
    log = checked("log", log, Truth)
    values = as_tensor(density, "density", 1).double()
    codes, n_classes = class_codes(labels, len(values))
    codes = torch.from_numpy(codes).to(values.device)
    count = torch.bincount(codes, minlength=n_classes).double()
    logs = values if log else values.log()
    if not torch.isfinite(logs).all():
        row = int((~torch.isfinite(logs)).nonzero()[0])
        needed = "finite" if log else "above 0"
        raise ValueError(f"density is {float(values[row])} in row {row}; {needed} is needed")
    return like(class_weights(logs, codes, count, class_prior, power), density)


def class_weights(logs, codes, count, class_prior: str, power: float, reduce=None):
    """:func:`inverse_weights` of float64 log densities (n,), whose samples may be a part of all.

    ``codes`` (n,) are classes from 0 and ``count`` (C,) their samples, as floats, those held elsewhere
    included. ``reduce``, ``(values (C,), "max" or "sum") -> values``, joins what the holders found.
    """
    reduce = reduce or (lambda values, how: values)
    # Each class starts from its own largest weight, so that no power can overflow.
    logs = -power * logs
    top = torch.full_like(count, -math.inf).scatter_reduce(0, codes, logs, "amax")
    raw = (logs - reduce(top, "max")[codes]).exp()
    total = reduce(torch.zeros_like(count).scatter_add(0, codes, raw), "sum")
    balanced = (count.sum() / len(count)).expand_as(count)
    share = count if class_prior == "empirical" else balanced
    return raw * (share / total)[codes]


def effective_sample_size(weights) -> float:
    """Kish's effective sample size as a share of n, ``(sum w)^2 / (n sum w^2)``, in (0, 1].

    >>> effective_sample_size([1, 1, 0, 0])
    0.5
    """
    weights = as_tensor(weights, "weights", 1).double().cpu().numpy()
    with np.errstate(over="ignore"):
        squares = (weights**2).sum()
    if not (0 < squares < math.inf and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative, and some greater than 0")
    return float(weights.sum() ** 2 / (len(weights) * squares))


class CIDWeights:
    """CID weights with the interface of adapt's reweighting estimators, for new samples too.

    >>> model = CIDWeights(tau=0.1)
    >>> model.fit_weights([[1, 0], [1, 0.1], [0, 1]], [0, 0, 0]).round(2)
    array([0.76, 0.76, 1.48])
    >>> model.predict_weights([[0.0, 1.0]], [0]).round(2)
    array([1.48])
    """

    def __init__(self, tau: float | str = "auto", *, class_prior="balanced", power: float = 1.0):
        self.tau = tau
        self.class_prior = class_prior
        self.power = power

    def fit_weights(self, embeddings, labels):
        """Weights (n,) of the training samples: :func:`cid_weights`."""
        self.tau_ = neighbour_width(embeddings) if self.tau == "auto" else self.tau
        self.embeddings_ = unit_vectors(embeddings, "cpu")
        self.labels_ = array("labels", labels)
        self.weights_ = cid_weights(
            embeddings, labels, self.tau_, class_prior=self.class_prior, power=self.power
        )
        return self.weights_

    def predict_weights(self, embeddings, labels):
        """Weights (m,) of other samples by their density among the training samples of their class."""
        if not hasattr(self, "weights_"):
            raise ValueError("there are no training samples yet; call fit_weights first")
        unit = unit_vectors(embeddings, "cpu")
        labels = array("labels", labels)
        trained = as_tensor(self.weights_, "weights").double().cpu()
        weights = torch.full((len(unit),), math.nan, dtype=torch.float64)
        for label in set(labels.tolist()):
            own = torch.from_numpy(self.labels_ == label)
            if not own.any():
                raise ValueError(f"label {label!r} was in no training sample; fit with it first")
            train = self.embeddings_[own]
            # A weight times its density is the same for all of a class, and new samples share it.
            factor = (
                trained[own][0].log() + self.power * _density(train[:1], train, self.tau_).log()
            )
            new = torch.from_numpy(labels == label)
            weights[new] = (factor - self.power * _density(unit[new], train, self.tau_).log()).exp()
        return like(weights, embeddings)


def _density(unit: torch.Tensor, train: torch.Tensor, tau: float) -> torch.Tensor:
    """Kernel density (m,) of unit vectors (m, d) among training samples (n, d), float64."""
    train = train.double()
    blocks = unit.double().split(BLOCK)
    density = torch.cat([((rows @ train.T - 1) / tau).exp().mean(dim=1) for rows in blocks])
    refuse_strays(int((density == 0).sum()), tau)
    return density
