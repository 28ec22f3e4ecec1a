"""What the linear heads on one training set have in common: in which directions the loss is steep.

Whatever weights a head is trained under, it meets nearly the same curvature. So one *reference* is fitted
for each training set, roughly: plain ERM. The steepest eigenvectors of its Hessian then precondition the
optimiser (:mod:`cid.lbfgs`) of every other head on these images, and heads start from the reference, which
leaves a third to a half of the steps. The optimum is the same: a preconditioner changes the way to it.

With w standardised weights, p the reference's probabilities and n images, the Hessian is
``X^T D X + l2``, ``D = p (1 - p) / n``. Its :data:`RANK` largest eigenvalues ``lambda + l2`` are inverted one
by one, all others together as if they were equal, ``rest + l2`` (Nocedal & Wright, Numerical Optimization,
section 7.2, on the initial matrix of L-BFGS). The eigenvectors come from a subspace iteration (Halko,
Martinsson & Tropp, "Finding Structure with Randomness", 2011), whose random start is always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

L2 = 0.03  # of the reference; heads of .001 to 10 take fewer steps by it, those near it the fewest
TOLERANCE = (
    3e-3  # of the reference: 15 to 20 steps; with less heads take more steps, with more not fewer
)
RANK = 64  # eigenvectors; 128 spare one or two steps more, and cost as much
SPARE = 16  # columns of the subspace iteration beyond these


@dataclass(frozen=True)
class Curvature:
    """The reference of each of several training sets, and the curvature around it.

    Heads are rows of p unknowns: the last is the bias, and the k before it are what products with the
    eigenvectors are taken of. Over weights k = d and p = d + 1; over coefficients a of the images these k
    are the logits K a, and p = 2 k + 1 (:mod:`cid.heads`).
    """

    reference: Tensor  # (sets, p): unknowns
    measure: Tensor  # (sets, k, rank): from those k to the components along the eigenvectors
    spread: Tensor  # (sets, rank, p - 1): the eigenvectors as unknowns
    eigenvalues: Tensor  # (sets, rank)
    rest: Tensor  # (sets,): mean of the other eigenvalues
    total: Tensor  # (sets,): second derivative by the bias

    def numel(self) -> int:
        """Count the numbers in memory."""
        return self.reference.numel() + self.measure.numel() + self.spread.numel()

    def preconditioner(
        self, l2: Tensor, room: int, times: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """Make the inverse of the Hessian near the reference: from rows (sets * slots, p) to the same.

        ``l2`` is the penalty of every head, (sets * slots, 1); products, by ``times``, have room for ``room``
        slots a set.
        """
        sets, k, _ = self.measure.shape
        l2 = l2.view(sets, -1, 1)
        flat = 1 / (l2 + self.rest[:, None, None])
        steep = 1 / (l2 + self.eigenvalues[:, None]) - flat
        total = self.total[:, None, None]

        def apply(rows: Tensor) -> Tensor:
            rows = rows.view(*l2.shape[:2], -1)
            slots = rows.shape[1]
            along = times(padded(rows[:, :, -1 - k : -1], room), self.measure)[:, :slots] * steep
            added = times(padded(along, room), self.spread)[:, :slots]
            changed = added.addcmul_(flat, rows[:, :, :-1])
            return torch.cat([changed, rows[:, :, -1:] / total], dim=2).flatten(0, 1)

        return apply


def leading_eigenvectors(
    times: Callable[[Tensor], Tensor], like: Tensor, size: int, rank: int
) -> tuple[Tensor, Tensor]:
    """Estimate the largest eigenvalues of symmetric matrices, (sets, rank), and their vectors.

    ``times`` multiplies the matrices (sets, size, size), which it need not hold, with (sets, size, columns);
    results have the type and device of ``like``, which has ``sets`` rows.

    Examples
    --------
    >>> diagonal = torch.tensor([[4.0, 3.0, 0.5, 0.1]])
    >>> leading_eigenvectors(lambda x: diagonal[:, :, None] * x, diagonal, 4, 2)[0].round(decimals=3)
    tensor([[3., 4.]])
    """
    columns = min(size, rank + SPARE)
    generator = torch.Generator().manual_seed(0)
    basis = (
        torch.randn(size, columns, generator=generator, dtype=torch.float32)
        .to(like)
        .expand(len(like), -1, -1)
    )
    for _ in range(2):
        basis = torch.linalg.qr(times(basis))[0]
    values, vectors = torch.linalg.eigh(basis.mT @ times(basis))
    return values[:, -rank:].clamp_min(1e-12), basis @ vectors[:, :, -rank:]


def product(left: Tensor, right: Tensor) -> Tensor:
    """Compute ``left @ right``; on a CPU by NumPy, which is faster, twice so if right is left.T."""
    if left.device.type != "cpu":
        return left @ right
    return torch.from_numpy(left.numpy() @ right.numpy())


def padded(matrix: Tensor, rows: int) -> Tensor:
    """Pad with zero rows to a multiple of ``rows``: the last bits of a product depend on its shape."""
    return pad(matrix, (0, 0, 0, -matrix.shape[-2] % rows))
