"""The nearest neighbours of every sample of hundreds of thousands, from its likeliest cells.

The samples are divided into cells (:mod:`cid.cells`), and each looks for its neighbours in the :data:`LOOKS` cells
that promise most; all who look into a cell do so in one matrix product. faiss's inverted files take about as
long at the same recall, and would be one more package. What cells that were
left out promise, against the nearness of the last neighbour found, tells which samples are in doubt. The most
doubtful look at all.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from cid.cells import BATCH, Cells, batches, divided, promised_by
from cid.pairs import half_squares, nearest
from cid.precision import true_float32

LOOKS = 48  # cells into which a sample looks
AROUND = 8  # cells around its own, which tell how near its neighbours are at least
GROUP = 512  # samples whose likeliest cells are found together, about
AT_ONCE = 512  # samples that look into a cell at once
AGAIN = 0.01  # share of the samples, the most doubtful, that look at all
WIDTH = 64  # cells that tell how far neighbours are
NEAR = 5  # neighbours, at whose distance the kernel is wide enough to promise


@dataclass(frozen=True)
class Neighbours:
    """The nearest others of every sample."""

    rows: np.ndarray  # int64 (n, k), the nearest first
    again: np.ndarray  # bool (n,), who looked at all


@true_float32()
def likely_neighbours(unit: torch.Tensor, k: int, seed: int = 0) -> Neighbours:
    """Find the k nearest others of each unit vector (n, d) among those of its likeliest cells."""
    rng = np.random.default_rng(seed)
    mean = unit.mean(dim=0, dtype=torch.float64)
    order, edges = divided(unit - mean.float(), rng)
    vectors = unit.float()[torch.from_numpy(order)]
    cells = Cells.of(vectors, mean, _width(vectors, edges), edges)
    found = np.empty((len(unit), k), dtype=np.int64)
    doubt = np.empty(len(unit))
    for first, last in batches(edges, BATCH):
        rows = cells.rows(first, last)
        found[rows], doubt[rows] = _in_likeliest_cells(cells, first, last, k)
    most = np.sort(np.argsort(-doubt, kind="stable")[: math.ceil(AGAIN * len(doubt))])
    most = np.union1d(most, np.flatnonzero(doubt == math.inf))
    for rows in np.array_split(most, math.ceil(len(most) / AT_ONCE)):
        found[rows] = _nearest_rows(cells.u, cells.half, torch.from_numpy(rows), k)
    again = np.zeros(len(doubt), dtype=bool)
    again[most] = True
    place = np.argsort(order)
    return Neighbours(order[found][place], again[place])


def _width(vectors: torch.Tensor, edges: np.ndarray) -> float:
    """Half the median distance ``1 - cos`` of a sample to a near one of its cell."""
    distances = []
    for cell in range(0, len(edges) - 1, math.ceil((len(edges) - 1) / WIDTH)):
        inside = vectors[int(edges[cell]) : int(edges[cell + 1])]
        cosine = (inside @ inside.T).fill_diagonal_(-1)
        distances.append(1 - cosine.topk(min(NEAR, len(inside)), dim=1).values[:, -1])
    return max(0.5 * float(torch.cat(distances).median()), 1e-6)


def _in_likeliest_cells(cells: Cells, first: int, last: int, k: int):
    """The k nearest (m, k) of the samples of some cells, and how doubtful each is (m,)."""
    start = int(cells.edges[first])
    looked, left, reach = [], [], []
    for begin, end in batches(cells.edges[first : last + 1], GROUP):
        some, beyond, _ = promised_by(cells, first + begin, first + end, LOOKS)
        looked.append(some.numpy())
        left.append(beyond)
        for cell in range(first + begin, first + end):
            reach.append(_reached(cells, cell, k))
    reach = torch.cat(reach)
    left = torch.cat(left)
    row, column, nearness = _within_reach(cells, np.concatenate(looked), reach, start)
    # The nearest of each sample first; a sample's own are side by side.
    by = np.lexsort((-nearness, row))
    number = np.bincount(row, minlength=len(reach))
    begins = number.cumsum() - number
    enough = number >= k
    places = np.where(enough, begins, 0)[:, None] + np.arange(k)
    by = by[np.minimum(places, len(by) - 1)]
    rows = slice(start, start + len(reach))
    last_found = torch.from_numpy(nearness[by[:, -1]]) - cells.half[rows]
    doubt = (left / last_found.exp2_().clamp_min(1e-30)).double().numpy()
    return column[by], np.where(enough, doubt, math.inf)


def _reached(cells: Cells, cell: int, k: int) -> torch.Tensor:
    """Nearness (m,) of the k-th nearest of each sample of a cell in the cells around it."""
    around = torch.addmv(-cells.centre_half, cells.centres, cells.centres[cell])
    around[cell] = math.inf
    near = around.topk(min(AROUND, len(cells))).indices.tolist()
    rows = cells.rows(cell)
    others = [cells.rows(one) for one in near]
    seen = torch.cat([cells.u[some] for some in others])
    half = torch.cat([cells.half[some] for some in others])
    nearness = torch.addmm(-half, cells.u[rows], seen.T)
    nearness[:, : rows.stop - rows.start].fill_diagonal_(-math.inf)  # its own cell comes first
    if nearness.shape[1] <= k:
        return torch.full((len(nearness),), -math.inf)
    return nearness.topk(k, dim=1).values[:, -1]


def _within_reach(cells: Cells, looked: np.ndarray, reach: torch.Tensor, start: int):
    """Samples from ``start`` on, those that are within reach in the cells that they look into, and how near."""
    flat = looked.reshape(-1)
    by_cell = np.argsort(flat, kind="stable")
    some, begins = np.unique(flat[by_cell], return_index=True)
    lookers = torch.from_numpy(by_cell // looked.shape[1])
    found = []
    vectors = torch.empty(AT_ONCE, cells.u.shape[1])
    buffer = torch.empty(AT_ONCE * int(cells.size.max()))
    for cell, rows in zip(some.tolist(), lookers.tensor_split(begins[1:].tolist()), strict=True):
        others = cells.rows(cell)
        size = others.stop - others.start
        minus = -cells.half[others]
        seen = cells.u[others].T
        for part in rows.split(AT_ONCE):
            ours = torch.index_select(cells.u, 0, part + start, out=vectors[: len(part)])
            nearness = buffer[: len(part) * size].view(len(part), size)
            torch.addmm(minus, ours, seen, out=nearness)
            place = np.flatnonzero((nearness >= reach[part, None]).numpy())
            row, column = np.divmod(place, size)
            found.append(
                (part.numpy()[row], others.start + column, nearness.numpy().reshape(-1)[place])
            )
    row, column, near = (np.concatenate(parts) for parts in zip(*found, strict=True))
    other = row + start != column  # than itself
    return row[other], column[other], near[other]


def _nearest_rows(u: torch.Tensor, half: torch.Tensor, rows: torch.Tensor, k: int) -> np.ndarray:
    """The k nearest others (m, k) of some vectors among all (n, d), in blocks of vectors."""
    values, columns = [], []
    for start in range(0, len(u), BATCH):
        others = slice(start, min(start + BATCH, len(u)))
        nearness = torch.addmm(-half[others], u[rows], u[others].T)
        inside = ((rows >= start) & (rows < others.stop)).nonzero()[:, 0]
        nearness[inside, rows[inside] - start] = -math.inf
        near = nearest(nearness, min(k, nearness.shape[1]))
        values.append(nearness.gather(1, near))
        columns.append(near + start)
    best = nearest(torch.cat(values, dim=1), k)
    return torch.cat(columns, dim=1).gather(1, best).numpy()


@true_float32()
def neighbours_among_all(unit: torch.Tensor, rows: np.ndarray, k: int) -> np.ndarray:
    """The k nearest others (m, k) of some unit vectors among all (n, d), the nearest first."""
    centred = unit - unit.mean(dim=0, dtype=torch.float64).float()
    half = half_squares(centred).float()
    found = [
        _nearest_rows(centred, half, part, k) for part in torch.from_numpy(rows).split(AT_ONCE)
    ]
    return np.concatenate(found)
