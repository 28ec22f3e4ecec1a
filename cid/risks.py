"""Risks: what makes one number of the images' losses, for heads and (by minibatch) networks."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# (losses (h, n), weights (h, n) of row sum 1) -> (risk (h,), its gradient by the losses (h, n))
Risk = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mean_risk(losses, weights):
    """The weighted mean."""
    return (weights * losses).sum(1), weights


def cvar_risk(share: float, smoothing: float = 0.05) -> Risk:
    """Mean loss of the worst ``share`` of the images, smoothed by entropy so that it has a gradient.

    The supremum of ``sum q_i l_i - smoothing KL(q | w)`` over ``0 <= q_i <= w_i / share``,
    ``sum q = 1``: Levy et al., "Large-Scale Methods for Distributionally Robust Optimization" (2020,
    arXiv 2010.05893).
    """

    def capped(losses, cut):
        return ((losses - cut) / smoothing).clamp(max=-np.log(share)).exp()

    def risk(losses, weights):
        low, high = losses.min(1, keepdim=True).values, losses.max(1, keepdim=True).values
        low = low + smoothing * np.log(share) - smoothing  # there every ratio is at its cap
        for _ in range(40):  # the cut at which the capped weights sum to 1
            middle = (low + high) / 2
            mass = (weights * capped(losses, middle)).sum(1, keepdim=True)
            low, high = torch.where(mass > 1, middle, low), torch.where(mass > 1, high, middle)
        ratio = capped(losses, high)
        q = weights * ratio
        q = q / q.sum(1, keepdim=True)
        divergence = (q * ratio.clamp_min(1e-30).log()).sum(1)
        return (q * losses).sum(1) - smoothing * divergence, q

    return risk


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
    """Tilted mean over groups, int (h, n) from 0, of each group's weighted mean loss.

    As ``tilt`` grows this is the worst group's loss, the objective of Sagawa et al.,
    "Distributionally Robust Neural Networks" (2020, arXiv 1911.08731); a finite tilt is the entropy
    that their exponentiated-gradient steps put on the group weights, in closed form.
    """

    def risk(losses, weights):
        kind, losses, weights = losses, losses.double(), weights.double()  # as in tilted_risk
        size = int(groups.max()) + 1
        empty = losses.new_zeros(len(losses), size)
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

    Zhang & Sabuncu, "Generalized Cross Entropy Loss" (2018, arXiv 1805.07836).
    """

    def risk(losses, weights):
        p = (-q * losses).exp()
        return (weights * (1 - p)).sum(1) / q, weights * p

    return risk


def weighted_risk(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``weights * losses``; weights of mean 1 over the training set keep its scale."""
    return (weights * losses).mean()


def minibatch_risk(risk: Risk, losses: Tensor) -> Tensor:
    """A :data:`Risk`, such as ``cvar_risk(0.2)``, of the losses (b,) of a minibatch; differentiable."""
    fixed = losses.detach()[None]  # the risk brings its own gradient, which autograd need not find
    value, slope = risk(fixed, torch.full_like(fixed, 1 / len(losses)))
    return value[0] + (slope[0] * (losses - fixed[0])).sum()


def jtt_weights(wrong, upweight: float) -> np.ndarray:
    """Weights of mean 1, errors ``upweight`` times: Just Train Twice (Liu et al., arXiv 2107.09044)."""
    weights = np.where(np.asarray(wrong, dtype=bool), float(upweight), 1.0)
    return weights / weights.mean()


def relative_difficulty(biased, debiased) -> Tensor:
    """``biased / (biased + debiased)`` of losses (arrays or tensors of one shape), without a gradient.

    Nam et al., "Learning from Failure" (2020, arXiv 2007.02561).
    """
    biased, debiased = (torch.as_tensor(losses).detach() for losses in (biased, debiased))
    return biased / (biased + debiased).clamp_min(1e-12)


def online_group_risk(
    losses: Tensor, groups: Tensor, sizes: Tensor, shares: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """One online step of group DRO: exponentiated-gradient ascent on the groups, then their loss.

    Sagawa et al. (see :func:`group_risk`), algorithm 1. There a step draws one group uniformly. Here a
    minibatch holds many; a group's mean loss is ``n / (b n_g)`` times the sum of its losses there.

    Losses and groups, codes 0 .. G - 1, are (b,), of a minibatch; sizes and shares are float (G,): of
    every group n_g, in proportion to its expected images in a minibatch, and its weight q before the
    step; n sums the n_g, and q sums to 1. Returns ``sum_g q_g L_g`` with the new weights, and these,
    which carry no gradient.
    """
    # A product with 0s and 1s, as sums by index have no fixed order on a GPU.
    member = (groups[:, None] == torch.arange(len(sizes), device=groups.device)).to(losses.dtype)
    means = (losses @ member) * (sizes.sum() / (len(losses) * sizes.clamp_min(1)))
    shares = (shares.log() + step * means.detach()).softmax(0)
    return (shares * means).sum(), shares
