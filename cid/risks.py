"""TODO."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def weighted_risk(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``weights * losses``; weights of mean 1 over the training set keep its scale."""
    return (weights * losses).mean()


def minibatch_risk(risk: Risk, losses: Tensor) -> Tensor:
    """A risk of :mod:`cid.heads`, such as ``cvar_risk(0.2)``, of a minibatch; differentiable.

    The risk brings its own gradient by the losses, so autograd need not pass through it.
    """
    fixed = losses.detach()[None]
    value, slope = risk(fixed, torch.full_like(fixed, 1 / len(losses)))
    return value[0] + (slope[0] * (losses - fixed[0])).sum()


def jtt_weights(wrong, upweight: float) -> np.ndarray:
    """Weights of the second training of Just Train Twice: errors count ``upweight`` times; mean 1.

    Liu et al. 2021, "Just Train Twice", arXiv 2107.09044.
    """
    weights = np.where(np.asarray(wrong, dtype=bool), float(upweight), 1.0)
    return weights / weights.mean()


def relative_difficulty(biased: Tensor, debiased: Tensor) -> Tensor:
    """Weight of a sample in Learning from Failure, ``biased / (biased + debiased)`` of its losses.

    Nam et al. 2020, "Learning from Failure", arXiv 2007.02561. Carries no gradient.
    """
    biased, debiased = biased.detach(), debiased.detach()
    return biased / (biased + debiased).clamp_min(1e-12)


# (losses (h, n), weights (h, n) of row sum 1) -> (risk (h,), its gradient by the losses (h, n))
Risk = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def mean_risk(losses, weights):
    """The weighted mean."""
    return (weights * losses).sum(1), weights


def cvar_risk(share: float, smoothing: float = 0.05) -> Risk:
    """Mean loss of the worst ``share`` of the images, smoothed by entropy.

    The supremum of ``sum q_i l_i - smoothing KL(q | w)`` over ``0 <= q_i <= w_i / share``,
    ``sum q = 1``: the smoothed conditional value at risk of Levy et al., "Large-Scale Methods for
    Distributionally Robust Optimization" (2020, arXiv 2010.05893), which has a gradient everywhere.
    """

    def risk(losses, weights):
        low, high = losses.min(1, keepdim=True).values, losses.max(1, keepdim=True).values
        low = low + smoothing * np.log(share) - smoothing  # there every ratio is at its cap
        for _ in range(40):  # the cut at which the capped weights sum to 1
            middle = (low + high) / 2
            mass = (weights * _capped(losses, middle, smoothing, share)).sum(1, keepdim=True)
            low, high = torch.where(mass > 1, middle, low), torch.where(mass > 1, high, middle)
        ratio = _capped(losses, high, smoothing, share)
        q = weights * ratio
        q = q / q.sum(1, keepdim=True)
        divergence = (q * ratio.clamp_min(1e-30).log()).sum(1)
        return (q * losses).sum(1) - smoothing * divergence, q

    return risk


def _capped(losses, cut, smoothing, share):
    return ((losses - cut) / smoothing).clamp(max=-np.log(share)).exp()


def tilted_risk(tilt: float) -> Risk:
    """``log(mean(exp(tilt loss))) / tilt``, the dual of a KL ball around the training set.

    Li et al., "Tilted Empirical Risk Minimization" (2021, arXiv 2007.01162).
    """

    def risk(losses, weights):
        # In float64: the division by a small tilt would blow up the rounding of the logarithm.
        logs = tilt * losses.double() + weights.double().log()  # log 0 = -inf leaves an image out
        return (logs.logsumexp(1) / tilt).to(losses), logs.softmax(1).to(losses)

    return risk


def group_risk(tilt: float, groups) -> Risk:
    """Tilted mean over groups of each group's weighted mean loss.

    As ``tilt`` grows this is the worst group's loss, the objective of Sagawa et al.,
    "Distributionally Robust Neural Networks" (2020, arXiv 1911.08731); a finite tilt is the entropy
    that their exponentiated-gradient steps put on the group weights, in closed form.

    Parameters
    ----------
    groups : int tensor, shape (h, n)
        Codes from 0; where the weight is 0 any code will do.
    """

    def risk(losses, weights):
        kind, losses, weights = losses, losses.double(), weights.double()  # as in tilted_risk
        size = int(groups.max()) + 1
        empty = torch.zeros(len(losses), size, dtype=losses.dtype, device=losses.device)
        mass = empty.scatter_add(1, groups, weights)
        present = mass > 0
        mean = empty.scatter_add(1, groups, weights * losses) / mass.clamp_min(1e-30)
        logs = (tilt * mean).masked_fill(~present, -torch.inf)
        value = (logs.logsumexp(1) - present.sum(1).double().log()) / tilt
        share = logs.softmax(1) / mass.clamp_min(1e-30)
        return value.to(kind), (weights * share.gather(1, groups)).to(kind)

    return risk


def generalised_cross_entropy(q: float) -> Risk:
    """Mean of ``(1 - p^q) / q`` for cross-entropies ``-log p``: easy images dominate its gradient.

    Zhang & Sabuncu, "Generalized Cross Entropy Loss" (2018, arXiv 1805.07836), which Nam et al. train
    their biased model with.
    """

    def risk(losses, weights):
        p = (-q * losses).exp()
        return (weights * (1 - p)).sum(1) / q, weights * p

    return risk
