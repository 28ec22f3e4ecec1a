"""The second factor of CID: the label posterior among neighbours in the proxy embedding.

By Bayes, an inverse class-conditional density is a product of two factors,

    1 / p(z | y)  ~  1 / p(z)  x  1 / p(y | z)         (within a class),

*rarity* (few images look like this person) times *label surprise* (among images that look like this
person, this label is unusual). A kernel wide enough to estimate the first flattens the second, on
which everything rests where people differ in their labels and not in their number of images. Here
the posterior is estimated on its own scale. Whatever is left open (the number of neighbours, the
kernel's width, the smoothing, and how sharp the posterior is) is chosen by the leave-one-out
likelihood of the *class labels* of the training set; no other label and no test image is used.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cid import density as exact
from cid.checks import COUNT, POSITIVE, class_codes, number
from cid.density import BLOCK, MANY, probes, unit_vectors

ESTIMATORS = ("knn", "kernel")
NEIGHBOURS = (3, 5, 7, 10, 15, 20, 30)  # tried by k: auto
WIDTHS = tuple(0.001 * 2 ** (step / 2) for step in range(12))  # tried by tau: auto; .001 to .045
PSEUDO_MASS = (0.01, 0.1, 1.0)  # kernel mass of the class prior; an identical image has mass 1
PAIRS = 2**25  # cosines held at once, 128 MiB
HUB = 10  # neighbours whose mean cosine tells how crowded a place is
MAX_SLOPE = 4.0
SLOPE = "a number from 0 to 20", lambda value: 0 <= value <= 20  # exp() ends beyond


@dataclass(frozen=True)
class Posterior:
    """Leave-one-out posterior of every sample's own label."""

    probability: np.ndarray  # float64 (n,): p(y_i | z_i) in (0, 1), from the other samples
    scale: float  # number of neighbours, or kernel width tau
    slope: float  # exponent of the posterior's odds against the prior's (1: as counted)
    loss: float  # mean of -log probability, in nats, which chose the scale and the slope
    prior_loss: float  # the same for class frequencies alone, without the embedding


def surprise_weights(embeddings, labels, *, class_prior="balanced", device="auto") -> np.ndarray:
    """Label surprise, CID's second factor alone: weights float64 (n,) of mean 1, all else as tuned.

    The inverse of :func:`label_posterior` :func:`without_class_direction`, normalised within each class;
    arguments and errors are those of the two and of :func:`cid.density.cid_weights`.
    """
    clean = without_class_direction(embeddings, labels, device=device)
    probability = label_posterior(clean, labels, device=device).probability
    return exact.inverse_weights(probability, labels, class_prior=class_prior)


def label_posterior(
    embeddings, labels, *, estimator: str = "knn", scale: float | str = "auto",
    slope: float | str = "auto", local_scaling: bool = False, device: str = "auto",
) -> Posterior:  # fmt: skip
    """Estimate each sample's label posterior from its neighbours, leaving the sample itself out.

    With ``m`` of ``k`` neighbours (or, with a kernel, a mass ``m`` of ``k``) sharing the label and
    ``q`` the label's frequency, the estimate is ``(m + s q) / (k + s)``: Laplace's rule, with s the
    number of classes for neighbours and the best of :data:`PSEUDO_MASS` for a kernel. Its odds
    against the prior are then raised to ``slope`` and normalised, the one-parameter calibration of
    Guo et al., "On Calibration of Modern Neural Networks" (2017, arXiv 1706.04599).

    Parameters
    ----------
    embeddings, labels
        As in :func:`cid.density.cid_weights`; at least two classes.
    estimator : {"knn", "kernel"}
    scale : int, float or "auto"
        Number of neighbours, or tau; "auto": the likeliest of :data:`NEIGHBOURS` or :data:`WIDTHS`.
        Beyond :data:`cid.density.MANY` samples the likeliest width is that of about
        :data:`cid.density.PROBES` of them, among all.
    slope : float or "auto"
        1 leaves the estimate as counted, 0 gives the prior, "auto" is the likeliest up to
        :data:`MAX_SLOPE`.
    local_scaling : bool
        With neighbours: take half a sample's mean cosine with its own :data:`HUB` nearest off every
        cosine with it, so that samples of crowded places are not everybody's neighbours (CSLS:
        Conneau et al., "Word Translation Without Parallel Data", 2018, arXiv 1710.04087).

    Raises
    ------
    ValueError
        On unusable embeddings, an unknown estimator, a scale out of range, or a single class.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; it must be one of {', '.join(ESTIMATORS)}")
    unit = unit_vectors(embeddings, device)
    codes = _codes(labels, len(unit))
    known = f"a whole number below the number of samples, {len(unit)}"
    count = (known, lambda k: 1 <= k < len(unit)), int
    how = count if estimator == "knn" else (POSITIVE,)
    scale, slope = number("scale", scale, *how, auto=True), number("slope", slope, SLOPE, auto=True)
    if scale == "auto":
        tried = [k for k in NEIGHBOURS if k < len(unit)] if estimator == "knn" else list(WIDTHS)
        if not tried:
            fewest = NEIGHBOURS[0] + 1
            raise ValueError(f"there are {len(unit)} samples; scale 'auto' needs {fewest} at least")
    else:
        tried = [scale]
    prior = np.bincount(codes) / len(codes)
    if estimator == "knn":
        shares = _neighbour_shares(unit, codes, tried, prior, local_scaling)
    else:
        many = len(unit) > MANY
        if many and len(tried) > 1:  # all pairs under all widths would take a quarter of an hour
            rows = probes(len(unit))
            shares = _kernel_shares(_kernel_mass(unit, codes, tried, rows), tried, prior)
            tried = [_likeliest(shares, prior, codes[rows], slope).scale]
        mass = (_kernel_mass_of_pairs if many else _kernel_mass)(unit, codes, tried)
        shares = _kernel_shares(mass, tried, prior)
    return _likeliest(shares, prior, codes, slope)


def without_class_direction(embeddings, labels, *, neighbours: int = 5, device: str = "auto"):
    """Embeddings, as a tensor of unit vectors, without the direction in which a label moves them.

    A face-recognition network is not blind to, say, a smile: among images of one person those of one
    label lie a little closer together, and a local posterior mistakes that for information about the
    person. Every sample is paired with its nearest ones of another class (``neighbours`` of them),
    mostly the same person with another label; the mean difference is the label's own direction, and is
    projected out. A difference of class means would contain people in a biased training set. Of more
    than :data:`cid.density.MANY` of a class about :data:`cid.density.PROBES` are paired.
    """
    neighbours = number("neighbours", neighbours, COUNT, int)
    unit = unit_vectors(embeddings, device)
    codes = torch.from_numpy(_codes(labels, len(unit))).to(unit.device)
    directions = []
    for code in range(int(codes.max()) + 1):
        own, other = unit[codes == code], unit[codes != code]
        own = own[probes(len(own), every=MANY)]  # of many, some tell a mean
        k, apart = min(neighbours, len(other)), torch.zeros_like(unit[0], dtype=torch.float64)
        for block in own.split(BLOCK):
            near = (block @ other.T).topk(k, dim=1).indices
            apart += (block[:, None] - other[near]).double().sum(dim=(0, 1))
        directions.append(apart / (len(own) * k))
    # Two classes give one direction, seen from either side; C classes span at most C.
    basis, size, _ = torch.linalg.svd(torch.stack(directions).T, full_matrices=False)
    if float(size[0]) == 0:
        return unit
    basis = basis[:, : min(len(directions) - 1, unit.shape[1] - 1)].to(unit.dtype)
    return unit_vectors(unit - (unit @ basis) @ basis.T, str(unit.device))


def _cosines(unit, rows=None):
    """Cosines with all samples, block by block of all rows or those given; with itself below all."""
    rows = torch.arange(len(unit)) if rows is None else rows
    for own in rows.split(max(1, min(BLOCK, PAIRS // len(unit)))):
        cosine = unit[own] @ unit.T
        cosine[torch.arange(len(own)), own] = -3.0
        yield own, cosine


def _neighbour_shares(unit, codes, tried, prior, local_scaling):
    """For each k: smoothed class shares (n, C) among the k nearest other samples."""
    n, n_classes, most = len(unit), len(prior), max(tried)
    onehot = np.eye(n_classes)[codes]
    counted = np.empty((n, most, n_classes), dtype=np.uint8 if most < 256 else np.int32)
    crowding = torch.zeros(n, dtype=unit.dtype, device=unit.device)
    if local_scaling:
        for rows, cosine in _cosines(unit):
            crowding[rows] = cosine.topk(min(HUB, n - 1), dim=1).values.mean(dim=1)
    for rows, cosine in _cosines(unit):
        if local_scaling:  # a sample's own crowding shifts all its cosines alike: no order changes
            cosine -= crowding / 2
        near = cosine.topk(most, dim=1).indices.cpu().numpy()
        counted[rows] = onehot[near].cumsum(axis=1)
    for k in tried:
        yield k, (counted[:, k - 1] + n_classes * prior) / (k + n_classes)


def _kernel_shares(masses, tried, prior):
    """For each tau and pseudo mass: smoothed class shares of the kernel masses (n, C) under each tau."""
    for tau, mass in zip(tried, masses, strict=True):
        for pseudo in PSEUDO_MASS:
            total = mass.sum(axis=1, keepdims=True) + pseudo
            yield tau, (mass + pseudo * prior) / total


def _kernel_mass(unit, codes, tried, rows=None):
    """Kernel mass of the others around all rows or those given, by class, for each tau: (tau, n, C)."""
    onehot = torch.from_numpy(np.eye(codes.max() + 1)[codes]).to(unit.device)
    parts = []
    for own, cosine in _cosines(unit, rows):
        cosine = cosine.double() - 1
        cosine[torch.arange(len(own)), own] = -torch.inf
        parts.append(torch.stack([(cosine / tau).exp_() @ onehot for tau in tried]))
    return torch.cat(parts, dim=1).cpu().numpy()


def _kernel_mass_of_pairs(unit, codes, tried):
    """The same for a single tau, around all rows, by the products of :mod:`cid.density`: each pair once."""
    (tau,), common = tried, unit.mean(dim=0, dtype=torch.float64)
    if exact.precise_enough(exact.farthest(unit, common) / tau) == torch.float64:
        unit = unit.double()
    u = (unit - common.to(unit.dtype)) / tau**0.5
    half = exact.half_squares(u).to(u.dtype)
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    sets = [(u[rows], half[rows]) for rows in members]
    mass = torch.zeros(len(u), len(sets), dtype=torch.float64, device=u.device)
    for c, rows in enumerate(members):
        for other, theirs in enumerate(members[: c + 1]):
            ours = mass[rows, other]  # what our rows gain from theirs, and theirs from ours
            back = ours if other == c else mass[theirs, c]
            own = 0.0 if other == c else None
            exact.add_kernel_sums(sets[c], sets[other], ours, back, own)
            mass[rows, other], mass[theirs, c] = ours, back
    return mass[None].cpu().numpy()


def _likeliest(shares, prior, codes, slope) -> Posterior:
    """The likeliest of the estimates ``(scale, class shares (n, C))``, with the best slope for "auto"."""
    best = None
    for value, share in shares:
        given = np.log(prior)[:, None], np.log(share / prior).T, codes
        chosen = _likeliest_slope(*given) if slope == "auto" else slope
        probability = np.exp(_log_sharpened(*given, chosen))
        loss = float(-np.log(probability).mean())
        if best is None or loss < best.loss:
            best = Posterior(probability, value, chosen, loss, float(-np.log(prior[codes]).mean()))
    return best


def _log_sharpened(prior, odds, codes, slope):
    """Log probability of the own label with the odds (C, n) against the prior raised to ``slope``."""
    logs = prior + slope * odds
    return logs[codes, np.arange(len(codes))] - np.logaddexp.reduce(logs, axis=0)


def _likeliest_slope(prior, odds, codes) -> float:
    from scipy.optimize import minimize_scalar  # which takes half a second to import

    def loss(slope):
        return -_log_sharpened(prior, odds, codes, slope).mean()

    bounds, how = (0.0, MAX_SLOPE), {"xatol": 1e-3}
    return float(minimize_scalar(loss, bounds=bounds, method="bounded", options=how).x)


def _codes(labels, n: int) -> np.ndarray:
    codes, n_classes = class_codes(labels, n)
    if n_classes < 2:
        only = np.asarray(labels)[0]
        raise ValueError(f"all labels are {only}; a posterior needs at least two classes")
    return codes
