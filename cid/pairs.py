"""How near any two samples of a set are: what widths, densities, directions and posteriors start from.

Nearness is ``cos - 1``: 0 for the same direction, -2 for opposite ones. It is minus half the squared
distance of unit vectors, so it is computed from vectors without their mean. Face embeddings share a large
common direction; without it the products are small, and so is their rounding error.
"""

import math
from collections.abc import Iterator
from copy import copy

import numpy as np
import torch

from cid.arrays import BLOCK, unit_vectors

KEPT = 2**28  # bytes in which the nearness of all pairs is kept: of 8,192 samples in float32
PAIRS = 2**25  # pairs formed at once, 128 MiB
CACHED = 2**19  # pairs looked at at once where all are kept: 2 MiB, which stays in the cache
SHORT = 0.1  # what is left of a vector from which cosines would be formed too coarsely


class Pairs:
    """The samples of a set in the order of their classes, and how near any two of them are.

    Parameters
    ----------
    unit : tensor, shape (n, d)
        Unit vectors.
    codes : int array, shape (n,), optional
        Classes from 0; all one class without them.
    keep : bool
        Form all pairs once and keep them, for several uses, where :data:`KEPT` allows. Else every use
        forms them anew, block by block.

    Attributes
    ----------
    order : int array, shape (n,)
        In which row of ``unit`` each sample was. All else is in the new order.
    place : int array, shape (n,)
        Where each row of ``unit`` is now.
    codes : int array, shape (n,)
    classes : list of slice
        The samples of each class.
    centred : tensor, shape (n, d)
        Unit vectors less their mean, which is ``mean`` (d,).
    """

    def __init__(self, unit: torch.Tensor, codes: np.ndarray | None = None, keep: bool = False):
        codes = np.zeros(len(unit), dtype=int) if codes is None else codes
        self.order = np.argsort(codes, kind="stable")
        self.place = np.argsort(self.order)
        self.codes = codes[self.order]
        ends = np.bincount(codes).cumsum().tolist()
        self.classes = [slice(*edges) for edges in zip([0, *ends], ends, strict=False)]
        self._place(unit[torch.from_numpy(self.order)])
        fits = len(unit) ** 2 * unit.element_size() <= KEPT
        self.kept = self._all() if keep and fits else None
        self.removed = (
            None  # parts (n, r + 1) along directions, the last one what is left; 1 / the last
        )

    def _place(self, unit: torch.Tensor) -> None:
        """Put vectors (n, d), ordered by class, in the place of what they were; they are overwritten."""
        self.mean = unit.mean(dim=0, dtype=torch.float64).to(unit.dtype)
        self.centred = unit.sub_(self.mean)
        self.half = half_squares(self.centred).to(unit.dtype)

    def _all(self) -> torch.Tensor:
        """Nearness (n, n) of all pairs."""
        return _own_product(self.centred).sub_(self.half).sub_(self.half[:, None])

    def rows_at_once(self) -> int:
        pairs = PAIRS if self.kept is None else CACHED
        return max(1, min(BLOCK, pairs // len(self)))

    def __len__(self) -> int:
        return len(self.centred)

    def blocks(
        self,
        rows: torch.Tensor | None = None,
        new: torch.Tensor | None = None,
        own: float = -torch.inf,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Nearness (r, n) to all samples, block by block, of all of them or of some.

        Parameters
        ----------
        rows : int tensor, shape (m,), optional
            Which samples; where pairs are kept, some that follow one another.
        new : tensor, shape (m, d), optional
            Unit vectors of other samples, in place of these.
        own : float
            What stands for a sample and itself.

        Yields
        ------
        place : int tensor, shape (r,)
            From 0 to m - 1.
        nearness : tensor, shape (r, n)
            Not to be written to: it can be what is kept.
        """
        if new is not None:
            new = new - self.mean
            half = half_squares(new).to(new.dtype)
        if rows is None:
            rows = torch.arange(len(self if new is None else new))
        if self.kept is not None:
            self.kept.fill_diagonal_(own)
        for place in torch.arange(len(rows)).split(self.rows_at_once()):
            some = rows[place]
            if new is not None:
                yield place, self._formed(new[some], half[some])
                continue
            following = slice(int(some[0]), int(some[-1]) + 1)
            if self.kept is not None and self.removed is None:
                yield place, self.kept[following]
                continue
            if self.kept is None:
                nearness = self._formed(self.centred[some], self.half[some])
            else:
                nearness = self._remaining(following)
            nearness[torch.arange(len(some)), some] = own
            yield place, nearness

    def without(self, basis: torch.Tensor) -> "Pairs":
        """The same samples without their part along the columns of an orthonormal basis (d, r)."""
        unit = self.centred + self.mean
        along = unit @ basis
        rest = unit - along @ basis.T
        length = rest.norm(dim=1)
        found = copy(self)
        found._place(unit_vectors(rest, str(rest.device)))
        if self.kept is not None and float(length.min()) > SHORT:
            found.removed = (torch.cat([along, length[:, None]], dim=1), 1 / length)
        elif self.kept is not None:
            found.kept = found._all()
        return found

    def _remaining(self, rows: slice) -> torch.Tensor:
        """Nearness of what :meth:`without` left of the vectors, from that of the whole ones.

        What is left of two vectors, of lengths l and m, is apart by ``|z_i - z_j|^2 - |t_i - t_j|^2``, t
        being what was removed; and its cosine less 1 is half of ``(l - m)^2`` less that, over ``l m``.
        """
        parts, scale = self.removed
        nearness = self.kept[rows].clone()
        for column in parts.T:
            apart = column[rows, None] - column
            nearness.addcmul_(apart, apart, value=0.5)
        return nearness.mul_(scale).mul_(scale[rows, None])

    def _formed(self, vectors: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
        product = torch.addmm(self.half, vectors, self.centred.T, beta=-1)
        return product.sub_(half[:, None])

    def in_rows(self, values):
        """Values (n, ...) of the samples, in the order in which these came."""
        return values[self.place]


def _own_product(vectors: torch.Tensor) -> torch.Tensor:
    """Products (n, n) of all vectors (n, d) with all."""
    if vectors.is_cuda:
        return vectors @ vectors.T
    array = vectors.numpy()
    return torch.from_numpy(array @ array.T)  # NumPy computes one half and mirrors it


def half_squares(u: torch.Tensor) -> torch.Tensor:
    """``|u|^2 / 2`` of every row, float64 (n,), without a float64 copy of all."""
    return torch.cat([(rows.double() ** 2).sum(dim=1) / 2 for rows in u.split(BLOCK)])


def nearest_value(nearness: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest value (r,) of every row (r, n)."""
    if nearness.is_cuda:
        return nearness.topk(k, dim=1).values[:, -1]
    values, _ = _largest(nearness, k)
    return torch.from_numpy(-np.partition(-values, k - 1, axis=1)[:, k - 1])


def nearest(nearness: torch.Tensor, k: int) -> torch.Tensor:
    """Columns (r, k) of the k largest values of every row (r, n), the largest first."""
    if nearness.is_cuda:
        return nearness.topk(k, dim=1).indices
    values, columns = _largest(nearness, k)
    falling = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return torch.from_numpy(np.take_along_axis(columns, falling, axis=1))


def _largest(nearness: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest values of every row and a few more, and their columns; (r, some) each, in no order.

    All others are far from being among them, and are put aside by one comparison.
    """
    values = nearness.numpy()
    reach = values >= _exceeded(nearness, k)[:, None]
    row, column = np.divmod(np.flatnonzero(reach), values.shape[1])
    if len(row) == k * len(values):
        columns = column.reshape(-1, k)
        return np.take_along_axis(values, columns, axis=1), columns
    # What is left of each row, side by side; rows with less are filled up.
    number = np.bincount(row, minlength=len(values))
    rank = np.arange(len(row)) - np.repeat(number.cumsum() - number, number)
    some = np.full((len(values), number.max()), -np.inf, dtype=values.dtype)
    some[row, rank] = values[row, column]
    columns = np.zeros(some.shape, dtype=np.int64)
    columns[row, rank] = column
    return some, columns


def _exceeded(nearness: torch.Tensor, k: int) -> np.ndarray:
    """A value (r,) that k or more of every row reach, and not many more.

    It is the k-th largest among the largest of 4k groups of columns or more. In short rows it is the k-th
    largest of all.
    """
    n = nearness.shape[1]
    groups = 2 ** math.ceil(math.log2(4 * k))
    each = n // groups
    if each >= 8:
        nearness = nearness[:, : each * groups].unflatten(1, (each, groups)).amax(dim=1)
    place = nearness.shape[1] - k
    return np.partition(nearness.numpy(), place, axis=1)[:, place]
