"""The label posterior among neighbours in the proxy embedding: label surprise is its inverse.

By Bayes, an inverse class-conditional density is rarity, 1 / p(z), times label surprise, 1 / p(y | z)
(:mod:`cid.weights`). A kernel wide enough to estimate the first factor flattens the second, on which
everything rests where people differ in their labels and not in their number of images. Here the
posterior is estimated on its own scale. Whatever is left open (the number of neighbours, the kernel's
width, the smoothing, and how sharp the posterior is) is chosen by the leave-one-out likelihood of the
*class labels* of the training set; no other label and no test image is used.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from annotated_types import Ge, Le

from cid.arrays import BLOCK, class_codes, like, unit_vectors
from cid.density import (
    MANY,
    add_kernel_sums,
    farthest,
    half_squares,
    powers_of_two,
    precise_enough,
    probes,
)
from cid.moved import forwarder
from cid.precision import true_float32
from cid.settings import Count, CountOrAuto, PositiveOrAuto, Truth, checked, one_of, or_auto

Estimator = one_of("knn", "kernel")
NEIGHBOURS = (3, 5, 7, 10, 15, 20, 30)  # tried by scale "auto"
WIDTHS = tuple(0.001 * 2 ** (step / 2) for step in range(12))  # tried by scale "auto"; .001 to .045
PSEUDO_MASS = (0.01, 0.1, 1.0)  # kernel mass of the class prior; an identical image has mass 1
PAIRS = 2**25  # cosines held at once, 128 MiB
HUB = 10  # neighbours whose mean cosine tells how crowded a place is
MAX_SLOPE = 4.0
Slope = or_auto("a number from 0 to 20", float, Ge(0), Le(20))  # exp() ends beyond

MOVED = {"surprise_weights": "cid.weights.surprise_weights"}
__getattr__ = forwarder(__name__, MOVED)


@dataclass(frozen=True)
class Posterior:
    """Leave-one-out posterior of every sample's own label."""

    # float64 (n,), an array or a tensor as the embeddings were: p(y_i | z_i) in (0, 1), estimated from
    # the other samples. Always float64, because weights divide by it. Of new samples (m, C): p(c | z_i).
    probability: Any
    scale: float  # number of neighbours, or kernel width tau
    smoothing: float  # neighbours, or kernel mass, that the class frequencies count as
    slope: float  # exponent of the posterior's odds against the prior's (1: as counted)
    loss: float  # mean of -log probability, in nats, which chose the scale and the slope
    prior_loss: float  # the same for class frequencies alone, without the embedding


@true_float32()
def label_posterior(
    embeddings,
    labels,
    *,
    estimator: str = "knn",
    scale: float | str = "auto",
    slope: float | str = "auto",
    local_scaling: bool = False,
    device: str = "auto",
) -> Posterior:
    """Estimate each sample's label posterior from its neighbours, leaving the sample itself out.

    With ``m`` of ``k`` neighbours (or, with a kernel, a mass ``m`` of ``k``) sharing the label and
    ``q`` the label's frequency, the estimate is ``(m + s q) / (k + s)``: Laplace's rule, with s the
    number of classes for neighbours and the best of :data:`PSEUDO_MASS` for a kernel. Its odds
    against the prior are then raised to ``slope`` and normalised, the one-parameter calibration of
    Guo et al., "On Calibration of Modern Neural Networks" (2017, arXiv 1706.04599).

    >>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]
    >>> found = label_posterior(embeddings, [0, 0, 0, 1, 1, 0], scale=2, slope=1.0)
    >>> found.probability.round(2)
    array([0.83, 0.83, 0.83, 0.42, 0.42, 0.33])

    Parameters
    ----------
    embeddings, labels
        As in :func:`cid.density.class_density`; at least two classes.
    estimator : {"knn", "kernel"}
    scale : int, float or "auto"
        Number of neighbours, or tau; "auto": the likeliest of :data:`NEIGHBOURS` or :data:`WIDTHS`.
        Beyond :data:`cid.density.MANY` samples the likeliest width is that of about
        :data:`cid.density.PROBES` of them, among all.
    slope : float or "auto"
        1 leaves the estimate as counted, 0 gives the prior, "auto" is the likeliest up to
        :data:`MAX_SLOPE`.
    local_scaling : bool
        With neighbours: subtract half a sample's mean cosine with its own :data:`HUB` nearest from
        every cosine with it, so that samples of crowded places are not everybody's neighbours (CSLS:
        Conneau et al., "Word Translation Without Parallel Data", 2018, arXiv 1710.04087).

    Raises
    ------
    ValueError
        On unusable embeddings, an unknown estimator, a scale out of range, or a single class.
    """
    estimator = checked("estimator", estimator, Estimator)
    slope = checked("slope", slope, Slope)
    local_scaling = checked("local_scaling", local_scaling, Truth)
    unit = unit_vectors(embeddings, device)
    codes = two_classes(labels, len(unit))
    prior = np.bincount(codes) / len(codes)
    tried = _scales(estimator, scale, len(unit))
    if estimator == "knn":
        shares = _neighbour_shares(unit, codes, tried, prior, local_scaling)
    elif len(unit) <= MANY:
        shares = _kernel_shares(_kernel_mass(unit, codes, tried), tried, prior)
    else:
        if len(tried) > 1:  # all pairs under all widths would take a quarter of an hour
            rows = probes(len(unit))
            shares = _kernel_shares(_kernel_mass(unit, codes, tried, rows), tried, prior)
            tried = [_likeliest(shares, prior, codes[rows], slope).scale]
        shares = _kernel_shares(_kernel_mass_of_pairs(unit, codes, tried[0]), tried, prior)
    likeliest = _likeliest(shares, prior, codes, slope)
    return _of_kind(likeliest, likeliest.probability, embeddings)


def new_posterior(
    embeddings,
    labels,
    new_embeddings,
    *,
    estimator: str = "knn",
    scale: float | str = "auto",
    slope: float | str = "auto",
    local_scaling: bool = False,
    device: str = "auto",
) -> Posterior:
    """Estimate the posterior of every class for new samples, among the samples whose labels are given.

    It is the estimate of :func:`label_posterior`. What is "auto" is chosen by the leave-one-out
    likelihood of the given labels; beyond :data:`cid.density.MANY` samples, by that of about
    :data:`cid.density.PROBES` of them, among all.

    >>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]
    >>> found = new_posterior(embeddings, [0, 0, 0, 1, 1, 0], [[1, 0.1], [0, 1]], scale=2, slope=1.0)
    >>> found.probability.round(2)
    array([[0.83, 0.17],
           [0.33, 0.67]])

    Parameters
    ----------
    embeddings, labels, estimator, scale, slope, local_scaling
        As in :func:`label_posterior`.
    new_embeddings : array or tensor, shape (m, d)

    Returns
    -------
    Posterior
        ``probability`` has shape (m, C), of the classes in their order, and is of the kind of
        ``new_embeddings``. The losses are those of the given samples, each without itself.

    Raises
    ------
    ValueError
        As :func:`label_posterior`, or if the new embeddings have another number of dimensions.
    """
    estimator = checked("estimator", estimator, Estimator)
    slope = checked("slope", slope, Slope)
    local_scaling = checked("local_scaling", local_scaling, Truth)
    unit = unit_vectors(embeddings, device)
    codes = two_classes(labels, len(unit))
    new = _unit_like(new_embeddings, unit)
    prior = np.bincount(codes) / len(codes)

    def shares(tried, rows, new=None):
        if estimator == "knn":
            return _neighbour_shares(unit, codes, tried, prior, local_scaling, rows, new)
        return _kernel_shares(_kernel_mass(unit, codes, tried, rows, new), tried, prior)

    rows = probes(len(unit), every=MANY)
    tried = _scales(estimator, scale, len(unit))
    chosen = _likeliest(shares(tried, rows), prior, codes[rows], slope)
    for _, smoothing, share in shares([chosen.scale], torch.arange(len(new)), new):
        if smoothing == chosen.smoothing:
            logs = _log_odds(np.log(prior)[:, None], np.log(share / prior).T, chosen.slope)
    probability = np.exp(logs - np.logaddexp.reduce(logs, axis=0)).T
    return _of_kind(chosen, probability, new_embeddings)


def _of_kind(posterior: Posterior, probability: np.ndarray, source) -> Posterior:
    """A posterior with another probability, a tensor on the device of ``source`` if that is one."""
    if isinstance(source, torch.Tensor):
        probability = torch.from_numpy(probability).to(source.device)
    return Posterior(**{**vars(posterior), "probability": probability})


def _unit_like(new_embeddings, unit: torch.Tensor) -> torch.Tensor:
    """New embeddings as unit vectors of the type and device of others."""
    new = unit_vectors(new_embeddings, str(unit.device)).to(unit.dtype)
    if new.shape[1] != unit.shape[1]:
        raise ValueError(
            f"the new embeddings have {new.shape[1]} dimensions and the others {unit.shape[1]}; "
            "embed both by the same network"
        )
    return new


def _scales(estimator: str, scale, n: int) -> list:
    """The numbers of neighbours or the widths to try."""
    scale = checked("scale", scale, CountOrAuto if estimator == "knn" else PositiveOrAuto)
    if estimator == "kernel":
        return list(WIDTHS) if scale == "auto" else [scale]
    if scale == "auto":
        tried = [k for k in NEIGHBOURS if k < n]
        if not tried:
            raise ValueError(
                f"there are {n} samples; scale 'auto' needs {NEIGHBOURS[0] + 1} at least"
            )
        return tried
    if scale >= n:
        raise ValueError(
            f"scale is {scale}; it must be a whole number below the number of samples, {n}"
        )
    return [scale]


@true_float32()
def without_class_direction(
    embeddings, labels, new_embeddings=None, *, neighbours: int = 5, device: str = "auto"
):
    """Remove the direction along which a label shifts the embedding: unit vectors, (n, d).

    A face-recognition network is not blind to, say, a smile: among images of one person those of one
    label lie a little closer together, and a local posterior mistakes that for information about the
    person. Every sample is paired with its nearest ones of another class (``neighbours`` of them),
    mostly the same person with another label; the mean difference is the label's own direction, and is
    projected out. A difference of class means would contain people in a biased training set. Of more
    than :data:`cid.density.MANY` of a class about :data:`cid.density.PROBES` are paired.

    >>> without_class_direction([[1, 0.0], [0.8, 0.6], [-1, 0.0]], [0, 1, 0]).shape
    (3, 2)

    The result is of the kind, floating type and device of ``embeddings``; arguments and errors are
    those of :func:`label_posterior`. With ``new_embeddings`` (m, d) there are two results: of these,
    the direction that the labelled ones show is removed, too.
    """
    neighbours = checked("neighbours", neighbours, Count)
    unit = unit_vectors(embeddings, device)
    codes = torch.from_numpy(two_classes(labels, len(unit))).to(unit.device)
    basis = _class_directions(unit, codes, neighbours)
    cleaned = like(_projected(unit, basis), embeddings)
    if new_embeddings is None:
        return cleaned
    return cleaned, like(_projected(_unit_like(new_embeddings, unit), basis), new_embeddings)


def _projected(unit: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Unit vectors without their part along the columns of an orthonormal basis (d, r)."""
    if not basis.shape[1]:
        return unit
    return unit_vectors(unit - (unit @ basis) @ basis.T, str(unit.device))


def _class_directions(unit: torch.Tensor, codes: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Orthonormal basis (d, at most C - 1) of what :func:`without_class_direction` removes."""
    n_classes = int(codes.max()) + 1
    directions = []
    for code in range(n_classes):
        others = unit[codes != code]
        members = unit[codes == code]
        members = members[probes(len(members), every=MANY)]  # of many, some tell a mean
        k = min(neighbours, len(others))
        difference = torch.zeros_like(unit[0], dtype=torch.float64)
        for rows in members.split(BLOCK):
            nearest = (rows @ others.T).topk(k, dim=1).indices
            difference += (rows[:, None] - others[nearest]).double().sum(dim=(0, 1))
        directions.append(difference / (len(members) * k))
    # Two classes give one direction, seen from each side; C classes span at most C.
    basis, size, _ = torch.linalg.svd(torch.stack(directions).T, full_matrices=False)
    kept = min(n_classes - 1, unit.shape[1] - 1) if float(size[0]) > 0 else 0
    return basis[:, :kept].to(unit.dtype)


# One estimate: the scale, the smoothing, and class shares (n, C) of all rows or of those asked for.
Shares = tuple[float, float, np.ndarray]


def _cosines(unit, rows=None, new=None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Places and cosines with all samples, block by block of all rows, or of those given.

    The rows are those of ``new``, if there are new samples. Else the cosine of a sample with itself is
    minus infinity.
    """
    rows = torch.arange(len(unit)) if rows is None else rows
    source = unit if new is None else new
    places = torch.arange(len(rows))
    for place in places.split(max(1, min(BLOCK, PAIRS // len(unit)))):
        block = rows[place]
        cosine = source[block] @ unit.T
        if new is None:
            cosine[torch.arange(len(block)), block] = -torch.inf
        yield place, cosine


def _neighbour_shares(
    unit, codes, tried, prior, local_scaling, rows=None, new=None
) -> Iterator[Shares]:
    """For each k: smoothed class shares among the k nearest other samples; rows as in :func:`_cosines`."""
    n = len(unit)
    n_classes = len(prior)
    most = max(tried)
    ranks = [k - 1 for k in tried]
    onehot = np.eye(n_classes)[codes]
    n_rows = n if rows is None else len(rows)
    counted = np.empty((n_rows, len(tried), n_classes), dtype=np.uint8 if most < 256 else np.int32)
    crowding = torch.zeros(n, dtype=unit.dtype, device=unit.device)
    if local_scaling:
        for place, cosine in _cosines(unit):
            crowding[place] = cosine.topk(min(HUB, n - 1), dim=1).values.mean(dim=1)
    for place, cosine in _cosines(unit, rows, new):
        if local_scaling:  # a sample's own crowding shifts all its cosines alike: no order changes
            cosine -= crowding / 2
        nearest = cosine.topk(most, dim=1).indices.cpu().numpy()
        counted[place] = onehot[nearest].cumsum(axis=1)[:, ranks]
    for rank, k in enumerate(tried):
        yield k, n_classes, (counted[:, rank] + n_classes * prior) / (k + n_classes)


def _kernel_shares(masses, tried, prior) -> Iterator[Shares]:
    """For each tau and pseudo mass: smoothed class shares of the kernel masses (n, C) under each tau."""
    for tau, mass in zip(tried, masses, strict=True):
        for pseudo in PSEUDO_MASS:
            total = mass.sum(axis=1, keepdims=True) + pseudo
            yield tau, pseudo, (mass + pseudo * prior) / total


def _kernel_mass(unit, codes, tried, rows=None, new=None) -> np.ndarray:
    """Kernel mass of the others, by class, for each tau (tau, n, C); rows as in :func:`_cosines`."""
    onehot = torch.from_numpy(np.eye(codes.max() + 1)[codes]).to(unit.device)
    masses = []
    for _, cosine in _cosines(unit, rows, new):
        cosine = cosine.double() - 1
        masses.append(torch.stack([(cosine / tau).exp_() @ onehot for tau in tried]))
    return torch.cat(masses, dim=1).cpu().numpy()


def _kernel_mass_of_pairs(unit, codes, tau: float) -> np.ndarray:
    """The same for a single tau, around all rows, (1, n, C): each pair of blocks is computed once."""
    common = unit.mean(dim=0, dtype=torch.float64)
    if precise_enough(farthest(unit, common) / tau) == torch.float64:
        unit = unit.double()
    u = (unit - common.to(unit.dtype)) * powers_of_two(tau)
    half = half_squares(u).to(u.dtype)
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    sets = [(u[rows], half[rows]) for rows in members]
    mass = torch.zeros(len(u), len(sets), dtype=torch.float64, device=u.device)
    for c, rows in enumerate(members):
        for other, theirs in enumerate(members[: c + 1]):
            ours = mass[rows, other]  # what our rows gain from theirs
            back = ours if other == c else mass[theirs, c]  # and theirs from ours
            own = 0.0 if other == c else None
            add_kernel_sums(sets[c], sets[other], ours, back, own)
            mass[rows, other] = ours
            mass[theirs, c] = back
    return mass[None].cpu().numpy()


def _likeliest(shares: Iterable[Shares], prior, codes, slope) -> Posterior:
    """The likeliest of some estimates, with the best slope for "auto"."""
    log_prior = np.log(prior)[:, None]
    best = None
    for scale, smoothing, share in shares:
        log_odds = np.log(share / prior).T
        chosen = _likeliest_slope(log_prior, log_odds, codes) if slope == "auto" else slope
        probability = np.exp(_log_sharpened(log_prior, log_odds, codes, chosen))
        loss = float(-np.log(probability).mean())
        if best is None or loss < best.loss:
            prior_loss = float(-np.log(prior[codes]).mean())
            best = Posterior(probability, scale, smoothing, chosen, loss, prior_loss)
    return best


def _log_sharpened(log_prior, log_odds, codes, slope) -> np.ndarray:
    """Log probability of the own label with the odds (C, n) against the prior raised to ``slope``."""
    logs = _log_odds(log_prior, log_odds, slope)
    return logs[codes, np.arange(len(codes))] - np.logaddexp.reduce(logs, axis=0)


def _log_odds(log_prior, log_odds, slope) -> np.ndarray:
    """Logarithms (C, n) of what is proportional to the probabilities of all classes."""
    return log_prior + slope * log_odds


def _likeliest_slope(log_prior, log_odds, codes) -> float:
    from scipy.optimize import minimize_scalar  # it takes half a second to import

    def loss(slope):
        return -_log_sharpened(log_prior, log_odds, codes, slope).mean()

    best = minimize_scalar(loss, bounds=(0.0, MAX_SLOPE), method="bounded", options={"xatol": 1e-3})
    return float(best.x)


def two_classes(labels, n: int, name: str = "labels") -> np.ndarray:
    """Codes (n,) of labels of at least two classes."""
    codes, n_classes = class_codes(labels, n, name)
    if n_classes < 2:
        only = np.asarray(labels)[0]
        raise ValueError(f"all {name} are {only}; a posterior needs at least two classes")
    return codes
