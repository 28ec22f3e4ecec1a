"""The label posterior among neighbours in the proxy embedding: label surprise is its inverse.

By Bayes, an inverse class-conditional density is rarity, 1 / p(z), times label surprise, 1 / p(y | z)
(:mod:`cid.weights`). A kernel wide enough to estimate the first factor flattens the second, on which
everything rests where people differ in their labels and not in their number of images. Here the
posterior is estimated on its own scale. Whatever is left open (the number of neighbours, the kernel's
width, the smoothing, and how sharp the posterior is) is chosen by the leave-one-out likelihood of the
*class labels* of the training set; no other label and no test image is used.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from annotated_types import Ge, Le

from cid.arrays import class_codes, like, unit_vectors
from cid.density import (
    MANY,
    add_kernel_sums,
    farthest,
    powers_of_two,
    precise_enough,
    probed,
    probes,
)
from cid.moved import forwarder
from cid.pairs import Pairs, half_squares, nearest
from cid.precision import true_float32
from cid.settings import Count, CountOrAuto, PositiveOrAuto, Truth, checked, one_of, or_auto

Estimator = one_of("knn", "kernel")
NEIGHBOURS = (3, 5, 7, 10, 15, 20, 30)  # tried by scale "auto"
# Tried by scale "auto": .001 to .045, each the double of the last but one.
WIDTHS = tuple(0.001 * 2 ** (step / 2) for step in range(12))
LOG2_E = math.log2(math.e)
PSEUDO_MASS = (0.01, 0.1, 1.0)  # kernel mass of the class prior; an identical image has mass 1
HUB = 10  # neighbours whose mean cosine tells how crowded a place is
MAX_SLOPE = 4.0
NEWTON = 50  # steps at most; a handful are taken
CLOSE = 1e-4  # the last step: what is left is about its square
AT_ONCE = 2**21  # numbers of estimates whose slopes are found together: 16 MiB
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
    found = posterior_among(Pairs(unit, codes), estimator, scale, slope, local_scaling)
    return of_kind(found, found.probability, embeddings)


def posterior_among(
    pairs: Pairs, estimator: str, scale, slope, local_scaling: bool = False
) -> Posterior:
    """:func:`label_posterior` of samples whose pairs are at hand; arguments are checked, but the scale."""
    n = len(pairs)
    codes = pairs.codes
    prior = np.bincount(codes) / n
    tried = _scales(estimator, scale, n)
    if estimator == "knn":
        shares = _neighbour_shares(pairs, tried, prior, local_scaling)
    elif n <= MANY:
        shares = _kernel_shares(_kernel_mass(pairs, tried), tried, prior)
    else:
        if len(tried) > 1:  # all pairs under all widths would take a quarter of an hour
            rows = probed(pairs)
            shares = _kernel_shares(_kernel_mass(pairs, tried, rows), tried, prior)
            tried = [_likeliest(shares, prior, codes[rows], slope).scale]
        shares = _kernel_shares(_kernel_mass_of_pairs(pairs, tried[0]), tried, prior)
    found = _likeliest(shares, prior, codes, slope)
    return replace(found, probability=pairs.in_rows(found.probability))


def class_logs(pairs: Pairs, found: Posterior, local_scaling: bool = False) -> np.ndarray:
    """Log probabilities (n, C) of every class, by the estimate among neighbours that was ``found``.

    ``found`` is of :func:`posterior_among`, whose probabilities are those of the samples' own classes.
    Samples are in the order of ``pairs``.
    """
    prior = np.bincount(pairs.codes) / len(pairs)
    ((_, _, share),) = _neighbour_shares(pairs, [found.scale], prior, local_scaling)
    logs = np.log(prior) + found.slope * np.log(share / prior)
    return logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)


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
    pairs = Pairs(unit, codes)
    prior = np.bincount(codes) / len(codes)

    def shares(tried, rows=None, new=None):
        if estimator == "knn":
            return _neighbour_shares(pairs, tried, prior, local_scaling, rows, new)
        return _kernel_shares(_kernel_mass(pairs, tried, rows, new), tried, prior)

    rows = probed(pairs, every=MANY)
    tried = _scales(estimator, scale, len(unit))
    chosen = _likeliest(shares(tried, rows), prior, pairs.codes[rows], slope)
    for _, smoothing, share in shares([chosen.scale], new=new):
        if smoothing == chosen.smoothing:
            logs = (np.log(prior) + chosen.slope * np.log(share / prior)).T
    probability = np.exp(logs - np.logaddexp.reduce(logs, axis=0)).T
    return of_kind(chosen, probability, new_embeddings)


def of_kind(posterior: Posterior, probability: np.ndarray, source) -> Posterior:
    """A posterior with another probability, a tensor on the device of ``source`` if that is one."""
    if isinstance(source, torch.Tensor):
        probability = torch.from_numpy(probability).to(source.device)
    return replace(posterior, probability=probability)


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
    basis = class_directions(Pairs(unit, two_classes(labels, len(unit))), neighbours)
    cleaned = like(_projected(unit, basis), embeddings)
    if new_embeddings is None:
        return cleaned
    return cleaned, like(_projected(_unit_like(new_embeddings, unit), basis), new_embeddings)


def _projected(unit: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Unit vectors without their part along the columns of an orthonormal basis (d, r)."""
    if not basis.shape[1]:
        return unit
    return unit_vectors(unit - (unit @ basis) @ basis.T, str(unit.device))


def class_directions(pairs: Pairs, neighbours: int = 5) -> torch.Tensor:
    """Orthonormal basis (d, at most C - 1) of what :func:`without_class_direction` removes."""
    n_classes = len(pairs.classes)
    directions = []
    for members in pairs.classes:
        rows = torch.arange(members.start, members.stop)
        rows = rows[probes(len(rows), every=MANY)]  # of many, some tell a mean
        size = members.stop - members.start
        k = min(neighbours, len(pairs) - size)
        times = torch.zeros(len(pairs), dtype=torch.int64)  # that a sample is among the nearest
        for _, nearness in pairs.blocks(rows):
            others = [nearness[:, : members.start], nearness[:, members.stop :]]
            others = [part for part in others if part.shape[1]]  # of two classes, one
            others = others[0] if len(others) == 1 else torch.cat(others, dim=1)
            found = nearest(others, k).flatten().cpu()
            found[found >= members.start] += size
            times += found.bincount(minlength=len(pairs))
        mean = pairs.centred[rows].mean(dim=0, dtype=torch.float64)
        weights = (times / times.sum()).to(pairs.centred)
        directions.append(mean - (weights @ pairs.centred).double())
    # Two classes give one direction, seen from each side; C classes span at most C.
    basis, size, _ = torch.linalg.svd(torch.stack(directions).T, full_matrices=False)
    kept = min(n_classes - 1, pairs.centred.shape[1] - 1) if float(size[0]) > 0 else 0
    return basis[:, :kept].to(pairs.centred.dtype)


# One estimate: the scale, the smoothing, and class shares (n, C) of all rows or of those asked for.
Shares = tuple[float, float, np.ndarray]


def posterior_of_neighbours(codes: np.ndarray, scale, slope, find) -> tuple[Posterior, Any]:
    """:func:`label_posterior` of samples whose neighbours something else finds.

    ``find`` is called with the number of neighbours and returns an object whose ``rows`` (n, k) hold their row
    numbers, the nearest first. It is returned, too.
    """
    slope = checked("slope", slope, Slope)
    tried = _scales("knn", scale, len(codes))
    near = find(max(tried))
    prior = np.bincount(codes) / len(codes)
    shares = [(k, len(prior), _shares_among(codes, near.rows[:, :k], prior)) for k in tried]
    return _likeliest(shares, prior, codes, slope), near


def probability_of(codes: np.ndarray, rows, neighbours: np.ndarray, slope: float) -> np.ndarray:
    """Posterior of the own label (m,) of some samples, from their neighbours (m, k) and a slope."""
    prior = np.bincount(codes) / len(codes)
    share = _shares_among(codes, neighbours, prior)
    base, odds = _odds_against_own([share], prior, codes[rows])
    return 1 / (1 + np.exp(base + slope * odds[0]).sum(axis=0))


def _shares_among(codes: np.ndarray, neighbours: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Smoothed class shares (m, C) among neighbours (m, k)."""
    n_classes = len(prior)
    labels = codes[neighbours]
    counted = np.stack([(labels == code).sum(axis=1) for code in range(n_classes)], axis=1)
    return (counted + n_classes * prior) / (neighbours.shape[1] + n_classes)


def _neighbour_shares(
    pairs: Pairs, tried, prior, local_scaling, rows=None, new=None
) -> Iterator[Shares]:
    """For each k: class shares among the k nearest others; rows as in :meth:`cid.pairs.Pairs.blocks`."""
    n = len(pairs)
    n_classes = len(prior)
    most = max(tried)
    ranks = [k - 1 for k in tried]
    onehot = np.eye(n_classes, dtype=np.uint8 if most < 256 else np.int32)[pairs.codes]
    if local_scaling:
        crowding = torch.zeros_like(pairs.half)
        for place, nearness in pairs.blocks():
            crowding[place] = nearness.topk(min(HUB, n - 1), dim=1).values.mean(dim=1)
    counted = []
    for _, nearness in pairs.blocks(rows, new):
        if local_scaling:  # a sample's own crowding shifts all its cosines alike: no order changes
            nearness = nearness - crowding / 2
        near = onehot[nearest(nearness, most).cpu().numpy()]
        counted.append(near.cumsum(axis=1, dtype=onehot.dtype)[:, ranks])
    counted = np.concatenate(counted)
    for rank, k in enumerate(tried):
        yield k, n_classes, (counted[:, rank] + n_classes * prior) / (k + n_classes)


def _kernel_shares(masses, tried, prior) -> Iterator[Shares]:
    """For each tau and pseudo mass: smoothed class shares of the kernel masses (n, C) under each tau."""
    for tau, mass in zip(tried, masses, strict=True):
        for pseudo in PSEUDO_MASS:
            total = mass.sum(axis=1, keepdims=True) + pseudo
            yield tau, pseudo, (mass + pseudo * prior) / total


def _kernel_mass(pairs: Pairs, tried, rows=None, new=None) -> np.ndarray:
    """Kernel mass of the others, by class, for each tau (tau, n, C); rows as in :meth:`Pairs.blocks`.

    Half a width squares the kernel, so that the twelve :data:`WIDTHS` take two exponentials.
    """
    # Places of the widths, from the widest to the narrowest, each the half of the last.
    chains = [range(len(tried))[last::-2] for last in (-1, -2)] if len(tried) > 1 else [[0]]
    masses = []
    for _, nearness in pairs.blocks(rows, new):
        mass = torch.empty(len(tried), len(nearness), len(pairs.classes), dtype=torch.float64)
        for chain in chains:
            kernel = (nearness * (LOG2_E / tried[chain[0]])).exp2_()
            for step, place in enumerate(chain):
                if step:
                    kernel.square_()
                for code, members in enumerate(pairs.classes):
                    mass[place, :, code] = kernel[:, members].sum(dim=1)
        masses.append(mass)
    return torch.cat(masses, dim=1).numpy()


def _kernel_mass_of_pairs(pairs: Pairs, tau: float) -> np.ndarray:
    """The same for a single tau, around all samples, (1, n, C): each pair of blocks is computed once."""
    u = pairs.centred
    if precise_enough(farthest(u, torch.zeros_like(pairs.mean)) / tau) == torch.float64:
        u = u.double()
    u = u * powers_of_two(tau)
    half = half_squares(u).to(u.dtype)
    mass = torch.zeros(len(u), len(pairs.classes), dtype=torch.float64, device=u.device)
    for code, rows in enumerate(pairs.classes):
        for other, theirs in enumerate(pairs.classes[: code + 1]):
            own = 0.0 if other == code else None
            add_kernel_sums(
                (u[rows], half[rows]),
                (u[theirs], half[theirs]),
                mass[rows, other],  # what our samples gain from theirs
                mass[theirs, code],  # and theirs from ours
                own,
            )
    return mass[None].cpu().numpy()


def _likeliest(shares: Iterable[Shares], prior, codes, slope) -> Posterior:
    """The likeliest of some estimates, with the best slope for "auto"."""
    shares = list(shares)
    at_once = max(1, AT_ONCE // (len(codes) * len(prior)))
    best = None
    for start in range(0, len(shares), at_once):
        some = shares[start : start + at_once]
        base, odds = _odds_against_own([share for _, _, share in some], prior, codes)
        slopes = np.full(len(some), slope) if slope != "auto" else _likeliest_slopes(base, odds)
        loss = _losses(base, odds, slopes)
        first = int(loss.argmin())
        if best is None or loss[first] < best.loss:
            scale, smoothing, _ = some[first]
            best = Posterior(
                probability=1 / (1 + np.exp(base + slopes[first] * odds[first]).sum(axis=0)),
                scale=scale,
                smoothing=smoothing,
                slope=float(slopes[first]),
                loss=float(loss[first]),
                prior_loss=float(-np.log(prior[codes]).mean()),
            )
    return best


def _odds_against_own(shares, prior, codes) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of the other classes against a sample's own one.

    Returns
    -------
    base : float array, shape (C - 1, n)
        Of the class frequencies.
    odds : float array, shape (K, C - 1, n)
        Of each of K estimates, less those of the class frequencies.
    """
    n_classes = len(prior)
    rows = np.arange(len(codes))
    others = (codes + np.arange(1, n_classes)[:, None]) % n_classes
    log_prior = np.log(prior)
    log_odds = np.log(np.stack(shares) / prior)
    base = log_prior[others] - log_prior[codes]
    return base, log_odds[:, rows, others] - log_odds[:, None, rows, codes]


def _losses(base, odds, slopes) -> np.ndarray:
    """Mean of -log probability of each of K estimates, (K,)."""
    ratio = np.exp(
        base + slopes[:, None, None] * odds
    )  # of probabilities, to that of the own class
    return np.log(1 + ratio.sum(axis=1)).mean(axis=1)


def _derivatives(base, odds, slopes) -> tuple[np.ndarray, np.ndarray]:
    """The first two derivatives (K,) of :func:`_losses` by the slopes."""
    ratio = np.exp(base + slopes[:, None, None] * odds)
    probability = ratio / (1 + ratio.sum(axis=1, keepdims=True))  # of the other classes
    probability *= odds
    mean = probability.sum(axis=1)
    probability *= odds
    variance = probability.sum(axis=1) - mean**2
    return mean.mean(axis=1), variance.mean(axis=1)


def _likeliest_slopes(base, odds) -> np.ndarray:
    """The slope of smallest loss of each of K estimates, from 0 to :data:`MAX_SLOPE`, (K,).

    The loss is convex in the slope. All estimates take Newton's steps together; one whose step would leave
    what is known to hold the best slope halves that instead.
    """
    slopes = np.ones(len(odds))
    low = np.full(len(odds), -np.inf)  # tried, and less than the best
    high = np.full(len(odds), np.inf)
    left = np.arange(len(odds))  # those that still move
    for _ in range(NEWTON):
        now = slopes[left]
        rise, bend = _derivatives(base, odds[left], now)
        low[left] = np.where(rise < 0, now, low[left])
        high[left] = np.where(rise < 0, high[left], now)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.clip(now - rise / bend, 0, MAX_SLOPE)
        halved = (np.maximum(low[left], 0) + np.minimum(high[left], MAX_SLOPE)) / 2
        inside = (low[left] < step) & (step < high[left])
        slopes[left] = np.where(inside, step, halved)
        left = left[np.abs(slopes[left] - now) > CLOSE]
        if not len(left):
            break
    return slopes


def two_classes(labels, n: int, name: str = "labels") -> np.ndarray:
    """Codes (n,) of labels of at least two classes."""
    codes, n_classes = class_codes(labels, n, name)
    if n_classes < 2:
        only = np.asarray(labels)[0]
        raise ValueError(f"all {name} are {only}; a posterior needs at least two classes")
    return codes
