"""Risk functions: aggregate the losses of images into a scalar.

Linear heads (:mod:`cid.heads`) minimise a risk of their whole training set, networks
(:mod:`cid.training`) one of every minibatch.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# (losses (h, n), weights (h, n) of row sum 1) -> (risk (h,), its gradient by the losses (h, n))
Risk = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mean_risk(losses, weights):
    """Compute the weighted mean, shape (h,), and its gradient; a :data:`Risk`.

    Examples
    --------
    >>> mean_risk(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]]))[0]
    tensor([1.7500])
    """
    return (weights * losses).sum(1), weights


def cvar_risk(share: float, smoothing: float = 0.05) -> Risk:
    """Make the mean loss of the worst ``share`` of the images, smoothed so that it has a gradient.

    The supremum of ``sum q_i l_i - smoothing KL(q | w)`` over ``0 <= q_i <= w_i / share``,
    ``sum q = 1``: Levy et al., "Large-Scale Methods for Distributionally Robust Optimization" (2020,
    arXiv 2010.05893).

    Examples
    --------
    >>> losses, even = torch.tensor([[0.0, 1.0, 2.0, 5.0]]), torch.full((1, 4), 0.25)
    >>> round(float(cvar_risk(0.5, smoothing=1e-3)(losses, even)[0]), 2)
    3.5
    """

    def ratio_to_weight(losses, cut):
        """``q / w`` at a cut, at most ``1 / share``."""
        return ((losses - cut) / smoothing).clamp(max=-np.log(share)).exp()

    def risk(losses, weights):
        # Bisect for the cut at which q sums to 1.
        low = losses.min(1, keepdim=True).values
        low = low + smoothing * np.log(share) - smoothing  # there every ratio is at its cap
        high = losses.max(1, keepdim=True).values
        for _ in range(40):
            middle = (low + high) / 2
            mass = (weights * ratio_to_weight(losses, middle)).sum(1, keepdim=True)
            low = torch.where(mass > 1, middle, low)
            high = torch.where(mass > 1, high, middle)
        ratio = ratio_to_weight(losses, high)
        q = weights * ratio
        q = q / q.sum(1, keepdim=True)
        divergence = (q * ratio.clamp_min(1e-30).log()).sum(1)
        return (q * losses).sum(1) - smoothing * divergence, q

    return risk


def tilted_risk(tilt: float) -> Risk:
    """Make ``log(mean(exp(tilt loss))) / tilt``, the dual of a KL ball around the training set.

    Li et al., "Tilted Empirical Risk Minimization" (2021, arXiv 2007.01162).
    """

    def risk(losses, weights):
        # In float64: the division by a small tilt would blow up the rounding of the logarithm.
        logs = tilt * losses.double() + weights.double().log()  # log 0 = -inf leaves an image out
        return (logs.logsumexp(1) / tilt).to(losses), logs.softmax(1).to(losses)

    return risk


def group_risk(tilt: float, groups) -> Risk:
    """Make the tilted mean, over groups, of each group's weighted mean loss.

    ``groups`` are codes from 0, int (h, n). As ``tilt`` grows this becomes the worst group's loss, the
    objective of Sagawa et al., "Distributionally Robust Neural Networks" (2020, arXiv 1911.08731). A
    finite tilt is, in closed form, the entropy that their exponentiated-gradient steps put on the
    group weights.
    """

    def risk(losses, weights):
        result_type = losses
        losses = losses.double()  # as in tilted_risk
        weights = weights.double()
        empty = losses.new_zeros(len(losses), int(groups.max()) + 1)
        mass = empty.scatter_add(1, groups, weights)
        present = mass > 0
        mean = empty.scatter_add(1, groups, weights * losses) / mass.clamp_min(1e-30)
        logs = (tilt * mean).masked_fill(~present, -torch.inf)
        value = (logs.logsumexp(1) - present.sum(1).double().log()) / tilt
        share = logs.softmax(1) / mass.clamp_min(1e-30)
        return value.to(result_type), (weights * share.gather(1, groups)).to(result_type)

    return risk


def generalised_cross_entropy(q: float) -> Risk:
    """Make the mean of ``(1 - p^q) / q`` for cross-entropies ``-log p``.

    Easy images dominate its gradient, so it makes a model that learns what is easy.

    Zhang & Sabuncu, "Generalized Cross Entropy Loss" (2018, arXiv 1805.07836).
    """

    def risk(losses, weights):
        p = (-q * losses).exp()
        return (weights * (1 - p)).sum(1) / q, weights * p

    return risk


def weighted_risk(losses: Tensor, weights: Tensor) -> Tensor:
    """Average ``weights * losses``, both (b,); weights with mean 1 over the set keep the scale."""
    return (weights * losses).mean()


def minibatch_risk(risk: Risk, losses: Tensor) -> Tensor:
    """Apply a :data:`Risk`, such as ``cvar_risk(0.2)``, to the losses (b,) of a minibatch.

    The result is a scalar that autograd can differentiate.
    """
    # The risk brings its own gradient, so autograd only needs to see a function that is linear in the
    # losses, with this value and this slope.
    fixed = losses.detach()[None]
    value, slope = risk(fixed, torch.full_like(fixed, 1 / len(losses)))
    return value[0] + (slope[0] * (losses - fixed[0])).sum()


def jtt_weights(wrong, upweight: float) -> np.ndarray:
    """Weight the errors of a first model ``upweight`` times, scaled to mean 1.

    Liu et al., "Just Train Twice" (2021, arXiv 2107.09044).

    Examples
    --------
    >>> jtt_weights([True, False, False, True], 4).tolist()
    [1.6, 0.4, 0.4, 1.6]
    """
    weights = np.where(np.asarray(wrong, dtype=bool), float(upweight), 1.0)
    return weights / weights.mean()


def relative_difficulty(biased, debiased) -> Tensor:
    """Compute ``biased / (biased + debiased)`` of the losses of two models, without a gradient.

    The losses are arrays or tensors of one shape. Nam et al., "Learning from Failure" (2020, arXiv
    2007.02561).
    """
    biased, debiased = (torch.as_tensor(losses).detach() for losses in (biased, debiased))
    return biased / (biased + debiased).clamp_min(1e-12)


def online_group_risk(
    losses: Tensor, groups: Tensor, sizes: Tensor, shares: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Take one online step of group DRO: move weight to the groups of large loss, then weigh by it.

    Sagawa et al. (see :func:`group_risk`), algorithm 1. There a step draws one group uniformly. Here a
    minibatch holds many groups; a group's mean loss is estimated by ``n / (b n_g)`` times the sum of
    its losses in the batch.

    Parameters
    ----------
    losses : tensor (b,)
        Of a minibatch.
    groups : int tensor (b,)
        Codes 0 .. G - 1.
    sizes : float tensor (G,)
        ``n_g``, in proportion to a group's expected number of images in a minibatch; n is their sum.
    shares : float tensor (G,)
        The weight ``q_g`` of every group before the step, sum 1.
    step : float
        Step size of the exponentiated-gradient ascent on the weights.

    Returns
    -------
    risk : scalar tensor
        ``sum_g q_g L_g`` with the new weights.
    shares : tensor (G,)
        The new weights, which carry no gradient.
    """
    # A product with 0s and 1s, because sums by index have no fixed order on a GPU.
    member = (groups[:, None] == torch.arange(len(sizes), device=groups.device)).to(losses.dtype)
    means = (losses @ member) * (sizes.sum() / (len(losses) * sizes.clamp_min(1)))
    shares = (shares.log() + step * means.detach()).softmax(0)
    return (shares * means).sum(), shares
