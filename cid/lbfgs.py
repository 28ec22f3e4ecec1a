"""L-BFGS for many smooth convex functions at once, each in its own row of one tensor."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

HISTORY = 10  # steps that L-BFGS remembers; more gained nothing on face features


def minimise(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    dot: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    tolerance: float,
    max_iterations: int,
    progress: str | None,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    norm_before: Tensor | None = None,
) -> tuple[Tensor, int, Tensor]:
    """Minimise many smooth convex functions of equal dimension together by L-BFGS.

    Nocedal & Wright, Numerical Optimization, algorithm 7.4, with a history, a step length and Armijo
    backtracking of its own for every row of ``theta``. No row depends on another, and a row that has
    converged stays where it is.

    Parameters
    ----------
    objective : callable
        From theta (h, p) to values (h,) and gradients (h, p).
    dot : callable
        From two tensors (h, p) to the inner products (h,) of their rows.
    theta : tensor (h, p)
        The start; overwritten.
    tolerance, max_iterations, progress
        As in :func:`cid.heads.fit_heads`.
    precondition : callable, optional
        Multiplies rows (h, p) by roughly the inverse Hessian of each: the matrix that L-BFGS starts from,
        times a number of each row that it finds. By default the identity.
    norm_before : tensor (h,), optional
        What a gradient's norm is compared with; by default the norm at the start.

    Returns
    -------
    theta : tensor (h, p)
    steps : int
    relative : tensor (h,)
        Final gradient norms over those before.

    Examples
    --------
    >>> target = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> def objective(theta):
    ...     return ((theta - target) ** 2).sum(1) / 2, theta - target
    >>> theta, steps, relative = minimise(
    ...     objective, lambda p, q: (p * q).sum(1), torch.zeros(2, 2), 1e-6, 50, None
    ... )
    >>> theta.round(decimals=3) + 0.0
    tensor([[1., 2.],
            [3., 4.]])
    """
    loss, gradient = objective(theta)
    norm = dot(gradient, gradient).clamp_min(1e-30).sqrt()
    norm_before = norm if norm_before is None else norm_before
    relative = norm / norm_before
    gamma = torch.ones_like(loss)  # scale of the initial inverse Hessian
    if precondition is None:
        step = 1 / norm.clamp_min(1)
    else:
        step = torch.ones_like(loss)
    history = []  # of (step, change of the gradient, rho), the oldest first
    steps = 0
    bar = tqdm(total=max_iterations, desc=progress, disable=progress is None, mininterval=5)
    while steps < max_iterations and bool((relative > tolerance).any()):
        direction = _direction(gradient, history, gamma, dot, precondition)
        descent = dot(direction, gradient)
        # A row whose history misleads it (by rounding, near its optimum) goes down the gradient.
        uphill = descent >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        descent = torch.where(uphill, -dot(gradient, gradient), descent)
        trial = torch.addcmul(theta, step[:, None], direction)
        trial_loss, trial_gradient = objective(trial)
        # The slack is a few float32 roundings of the loss. A row whose step was too long tries half
        # of it in the next round, while the others go on: one evaluation a round, whichever rows fail.
        accepted = trial_loss <= loss + 1e-4 * step * descent + 1e-6 * loss.abs()
        accepted = (relative > tolerance) & (accepted | (step < 2**-20))
        step = torch.where(accepted, 1.0, step / 2)
        theta_change = torch.where(accepted[:, None], trial - theta, 0)
        gradient_change = torch.where(accepted[:, None], trial_gradient - gradient, 0)
        curvature = dot(theta_change, gradient_change)
        rho = torch.where(curvature > 1e-12, 1 / curvature.clamp_min(1e-12), 0)
        scaled_change = precondition(gradient_change) if precondition else gradient_change
        squared_change = dot(gradient_change, scaled_change).clamp_min(1e-30)
        gamma = torch.where(rho > 0, curvature / squared_change, gamma)
        history.append((theta_change, gradient_change, rho))
        history = history[-HISTORY:]
        theta = theta.add_(theta_change)
        gradient = gradient + gradient_change
        loss = torch.where(accepted, trial_loss, loss)
        relative = dot(gradient, gradient).clamp_min(0).sqrt() / norm_before
        steps += 1
        bar.update()
    bar.close()
    return theta, steps, relative


def _direction(
    gradient: Tensor,
    history: list[tuple],
    gamma: Tensor,
    dot: Callable,
    precondition: Callable | None,
) -> Tensor:
    """Compute every row's step by the two-loop recursion; a row skips entries where its rho is 0."""
    direction = -gradient
    alphas = []
    for theta_change, gradient_change, rho in reversed(history):
        alpha = (rho * dot(theta_change, direction))[:, None]
        direction.addcmul_(alpha, gradient_change, value=-1)
        alphas.append(alpha)
    if precondition:
        direction = precondition(direction)
    direction.mul_(gamma[:, None])
    for (theta_change, gradient_change, rho), alpha in zip(history, reversed(alphas), strict=True):
        beta = (rho * dot(gradient_change, direction))[:, None]
        direction.addcmul_(alpha - beta, theta_change)
    return direction
