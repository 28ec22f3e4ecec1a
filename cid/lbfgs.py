"""L-BFGS for many smooth convex functions at once, each in its own row of one tensor."""

import torch
from tqdm import tqdm

HISTORY = 10  # pairs an L-BFGS step remembers; more gained nothing on face features


def minimise(objective, dot, theta, tolerance: float, max_iterations: int, progress: str | None):
    """Minimise many smooth convex functions of equal dimension together by L-BFGS.

    Nocedal & Wright, Numerical Optimization, algorithm 7.4, with one history, step length and
    Armijo backtracking for every row of ``theta`` (h, p), which starts where it is and is moved. No
    row depends on another, and one that has converged stays. ``objective`` maps theta to values (h,) and gradients
    (h, p), ``dot`` gives the inner products (h,) of two tensors' rows, all else is as in
    :func:`cid.heads.fit_heads`.

    Returns theta, the number of steps, and gradient norms (h,) over the initial ones.
    """

    loss, gradient = objective(theta)
    initial = dot(gradient, gradient).clamp_min(1e-30).sqrt()
    relative = torch.ones_like(loss)
    gamma, step = torch.ones_like(loss), 1 / initial.clamp_min(1)
    pairs, steps = [], 0  # pairs: (step, change of the gradient, rho), the oldest first
    bar = tqdm(total=max_iterations, desc=progress, disable=progress is None, mininterval=5)
    while steps < max_iterations and bool((relative > tolerance).any()):
        direction = _direction(gradient, pairs, gamma, dot)
        descent = dot(direction, gradient)
        # A row whose history misleads it (rounding, near its optimum) falls back to the gradient.
        uphill = descent >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        descent = torch.where(uphill, -dot(gradient, gradient), descent)
        trial = torch.addcmul(theta, step[:, None], direction)
        new_loss, new_gradient = objective(trial)
        # The slack is some float32 roundings of the loss. A row whose step was too long tries half
        # of it in the next round, while the others go on: one evaluation a round, whoever fails.
        good = new_loss <= loss + 1e-4 * step * descent + 1e-6 * loss.abs()
        good = (relative > tolerance) & (good | (step < 2**-20))
        step = torch.where(good, 1.0, step / 2)
        theta_step = torch.where(good[:, None], trial - theta, 0)
        change = torch.where(good[:, None], new_gradient - gradient, 0)
        sy = dot(theta_step, change)
        rho = torch.where(sy > 1e-12, 1 / sy.clamp_min(1e-12), 0)
        gamma = torch.where(rho > 0, sy / dot(change, change).clamp_min(1e-30), gamma)
        pairs = [*pairs, (theta_step, change, rho)][-HISTORY:]
        theta, gradient = theta.add_(theta_step), gradient + change
        loss = torch.where(good, new_loss, loss)
        relative = dot(gradient, gradient).clamp_min(0).sqrt() / initial
        steps += 1
        bar.update()
    bar.close()
    return theta, steps, relative


def _direction(gradient, pairs, gamma, dot):
    """Two-loop recursion for every row; a pair of rho 0 is skipped by its row."""
    q, taken = -gradient, []
    for s, y, rho in reversed(pairs):
        alpha = (rho * dot(s, q))[:, None]
        q.addcmul_(alpha, y, value=-1)
        taken.append(alpha)
    q.mul_(gamma[:, None])
    for (s, y, rho), alpha in zip(pairs, reversed(taken), strict=True):
        q.addcmul_(alpha - (rho * dot(y, q))[:, None], s)
    return q
