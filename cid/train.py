"""Weighted training: many linear heads on cached features as one stacked computation.

A run of the study is a head: one method on one biased training set. All runs read the same feature
matrix and differ in their sample weights, which are 0 off the training set. So a whole cell of the
study, every method times every seed, is one optimisation whose cost is a few hundred products of the
feature matrix with a thin matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import softplus
from tqdm import tqdm

HISTORY = 10  # pairs an L-BFGS step remembers; more gained nothing on face features


@dataclass(frozen=True)
class Heads:
    """Linear heads: ``logit = features @ weight.T + bias``.

    Attributes
    ----------
    weight : float32 array, shape (h, d)
    bias : float32 array, shape (h,)
    iterations : int
        Optimiser steps until every head had converged.
    gradient : float64 array, shape (h,)
        Norm of the objective's gradient at the end, relative to that at the start.
    """

    weight: np.ndarray
    bias: np.ndarray
    iterations: int
    gradient: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logit of class 1 under every head, float32 of shape (h, n)."""
        product = torch.from_numpy(self.weight) @ torch.from_numpy(features).T
        return product.numpy() + self.bias[:, None]


def fit_heads(
    features,
    labels,
    sample_weights,
    l2: float,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
    device: str = "auto",
    progress: str | None = None,
) -> Heads:
    """Fit one L2-regularised logistic regression for every row of sample weights, all together.

    Head h minimises over w and b

        sum_i s_hi softplus(-y_i (w . x_i + b)) / sum_i s_hi  +  l2 / 2 |w|^2,

    where y is +-1 and x are the features standardised by the mean and standard deviation of the
    head's own training images (those of positive weight, each counted once), so that no statistic of
    a test image enters. The returned heads are in units of the raw features.

    Parameters
    ----------
    features : float32 array, shape (n, d)
    labels : int array, shape (n,)
        0 or 1.
    sample_weights : array, shape (h, n)
        Non-negative; 0 keeps an image out of the head's training set.
    l2 : float
        Strength of the L2 penalty on standardised features, > 0.
    tolerance : float
        A head has converged when its gradient norm is this share of the initial one.
    max_iterations : int
        Limit on optimiser steps.
    progress : str, optional
        Label of a progress bar; none without it.

    Raises
    ------
    ValueError
        On shapes that disagree, l2 <= 0, a head without both classes, or no convergence.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    weights = torch.as_tensor(np.asarray(sample_weights), dtype=torch.float32, device=device)
    labels = np.asarray(labels)
    _check(features, labels, weights, l2)

    # Images no head trains on only cost time.
    used = torch.nonzero((weights > 0).any(dim=0))[:, 0]
    x = torch.as_tensor(np.asarray(features), dtype=torch.float32, device=device)[used]
    sign = torch.as_tensor(labels * 2.0 - 1.0, dtype=torch.float32, device=device)[used]
    weights = weights[:, used]
    weights = weights / weights.sum(dim=1, keepdim=True)

    # Standardise once with all images, which is exact for no head, then correct each head by its own
    # shift and scale: the big matrix is shared and every head still sees its own statistics.
    centre, spread = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-6)
    x = (x - centre) / spread
    member = (weights > 0).float()
    member /= member.sum(dim=1, keepdim=True)
    shift = member @ x
    scale = (member @ x**2 - shift**2).clamp_min(1e-6).sqrt()

    def objective(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w, b = theta[:, :-1], theta[:, -1:]
        v = w / scale
        margin = torch.addmm(b - (v * shift).sum(1, keepdim=True), v, x.T) * sign
        loss = (weights * softplus(-margin)).sum(1) + 0.5 * l2 * (w * w).sum(1)
        slope = -weights * torch.sigmoid(-margin) * sign
        total = slope.sum(1, keepdim=True)
        gradient = torch.cat([(slope @ x - total * shift) / scale + l2 * w, total], dim=1)
        return loss, gradient

    start = torch.zeros(len(weights), x.shape[1] + 1, device=device)
    theta, steps, relative = _lbfgs(objective, start, tolerance, max_iterations, progress)
    worst = float(relative.max())
    if worst > tolerance:
        raise ValueError(
            f"{int((relative > tolerance).sum())} of {len(weights)} heads have not converged after "
            f"{steps} steps (gradient {worst:.1e} of the initial one, {tolerance:.0e} wanted); raise "
            "train.l2 or max_iterations"
        )
    v = theta[:, :-1] / scale
    raw = v / spread
    bias = theta[:, -1] - (v * shift).sum(1) - (raw * centre).sum(1)
    return Heads(raw.cpu().numpy(), bias.cpu().numpy(), steps, relative.cpu().double().numpy())


def train_sets(
    sets: pd.DataFrame, features, labels, methods: list[str], l2: float, **options
) -> tuple[pd.DataFrame, Heads]:
    """Train every method on the training set of every seed and score the test images.

    Parameters
    ----------
    sets : pandas.DataFrame
        From :func:`cid.methods.weigh_sets`.
    features : float32 array, shape (n, d)
        Of the whole data set; labels likewise.
    methods : list of str
        Weight columns of ``sets``.
    l2 : float
        As in :func:`fit_heads`, which also takes the further options.

    Returns
    -------
    predictions : pandas.DataFrame
        One row a test image and seed: ``seed``, ``test``, ``row``, and a score (logit of class 1)
        for every method.
    heads : Heads
        In the order (seed, method), methods fastest.
    """
    seeds = sets["seed"].unique()
    weights = np.zeros((len(seeds), len(methods), len(labels)), dtype=np.float32)
    train, test = sets[sets["part"] == "train"], sets[sets["part"] != "train"]
    for k, seed in enumerate(seeds):
        part = train[train["seed"] == seed]
        weights[k][:, part["row"]] = part[methods].to_numpy().T
    heads = fit_heads(features, labels, weights.reshape(-1, len(labels)), l2, **options)

    scores = heads.logits(features).reshape(weights.shape)
    place = np.searchsorted(seeds, test["seed"])
    predictions = test[["seed", "part", "row"]].rename(columns={"part": "test"})
    for m, method in enumerate(methods):
        predictions[method] = scores[place, m, test["row"]]
    return predictions.reset_index(drop=True), heads


def _lbfgs(objective, theta, tolerance, max_iterations, progress):
    """Minimise many smooth convex functions of equal dimension together by L-BFGS.

    Nocedal & Wright, Numerical Optimization, algorithm 7.4, with one history, step length and
    Armijo backtracking for every row of ``theta``. A row stops moving once converged.

    Returns
    -------
    theta : tensor, shape (h, p)
    steps : int
    relative : tensor, shape (h,)
        Gradient norm over the initial gradient norm.
    """
    loss, gradient = objective(theta)
    initial = gradient.norm(dim=1).clamp_min(1e-30)
    relative = gradient.norm(dim=1) / initial
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    steps = 0
    bar = tqdm(total=max_iterations, desc=progress, disable=progress is None, mininterval=5)
    while steps < max_iterations and bool((relative > tolerance).any()):
        direction = _lbfgs_direction(gradient, pairs)
        descent = (direction * gradient).sum(1)
        # A row whose history misleads it (rounding, near its optimum) falls back to the gradient.
        uphill = descent >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        descent = torch.where(uphill, -(gradient**2).sum(1), descent)
        moving = relative > tolerance
        first = 1.0 / gradient.norm(dim=1).clamp_min(1.0) if not pairs else torch.ones_like(loss)
        step = torch.where(moving, first, torch.zeros_like(loss))
        for _ in range(20):
            trial = theta + step[:, None] * direction
            new_loss, new_gradient = objective(trial)
            # The slack is float32 rounding of a loss of order 1.
            short = moving & (new_loss > loss + 1e-4 * step * descent + 1e-7 * loss.abs())
            if not bool(short.any()):
                break
            step = torch.where(short, step / 2, step)
        s, y = trial - theta, new_gradient - gradient
        sy = (s * y).sum(1)
        rho = torch.where(sy > 1e-12, 1 / sy.clamp_min(1e-12), torch.zeros_like(sy))
        pairs = [*pairs, (s, y, rho)][-HISTORY:]
        theta, loss, gradient = trial, new_loss, new_gradient
        relative = gradient.norm(dim=1) / initial
        steps += 1
        bar.update()
    bar.close()
    return theta, steps, relative


def _lbfgs_direction(gradient, pairs):
    """Two-loop recursion for every row; a pair of rho 0 is skipped by its row."""
    q = -gradient
    taken = []
    for s, y, rho in reversed(pairs):
        alpha = rho * (s * q).sum(1)
        q = q - alpha[:, None] * y
        taken.append(alpha)
    if pairs:
        s, y, rho = pairs[-1]
        gamma = torch.where(
            rho > 0, 1 / (rho * (y * y).sum(1)).clamp_min(1e-30), torch.ones_like(rho)
        )
        q = q * gamma[:, None]
    for (s, y, rho), alpha in zip(pairs, reversed(taken), strict=True):
        q = q + (alpha - rho * (y * q).sum(1))[:, None] * s
    return q


def _check(features, labels, weights, l2) -> None:
    shape = np.shape(features)
    if len(shape) != 2 or labels.shape != shape[:1] or weights.shape[1:] != shape[:1]:
        raise ValueError(
            f"features {shape}, labels {labels.shape} and sample weights {tuple(weights.shape)} "
            "disagree; (n, d), (n,) and (heads, n) are needed"
        )
    if not l2 > 0:
        raise ValueError(f"train.l2 is {l2}; it must be greater than 0")
    if not set(np.unique(labels)) <= {0, 1}:
        raise ValueError(f"labels hold {np.unique(labels)[:5].tolist()}; 0 and 1 are needed")
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("sample weights hold negative or non-finite values")
    one = torch.as_tensor(labels == 1, device=weights.device)
    for name, rows in (("1", one), ("0", ~one)):
        empty = (weights[:, rows] > 0).sum(1) == 0
        if empty.any():
            raise ValueError(
                f"head {int(torch.nonzero(empty)[0])} has no training image of class {name}"
            )
