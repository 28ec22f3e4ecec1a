"""Densities of classes too large for all pairs: each sample sees its likeliest cells, and draws from the rest.

The samples of a class are divided into cells of about :data:`SIZE` by k-means. What a cell adds to a
sample's density can be told roughly from the cell's centre and spread: the mean of the kernel over a normal
distribution. So every sample sees exactly the :data:`LOOKS` cells that promise most, and :data:`DRAWS` samples
of all others, drawn by strata with chances in proportion to what the centres promise. Each draw counts by one
over its chance (Horvitz and Thompson, "A generalization of sampling without replacement from a finite
universe", 1952), so a density is right in the mean, and differences of neighbouring draws tell its standard
error. The most doubtful are computed again from all pairs.

What an error does not tell: a near neighbour in a cell that promised little, and that was not drawn. It is
missing from the density *and* from the error, so that intervals of two errors to each side hold the density
less often than 95 times in 100.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from cid.arrays import as_tensor, class_codes, unit_vectors
from cid.density import CHUNK, class_density, farthest, powers_of_two, precise_enough, probes
from cid.pairs import half_squares
from cid.precision import true_float32

SIZE = 64  # samples in a cell, about
LOOKS = 16, 32  # cells that a sample sees exactly: of long vectors, of short ones
DRAWS = 4096, 8192  # samples of other cells that it sees, likewise; even
SHORT = 256  # numbers in a vector, up to which it is short
CANDIDATES = 512  # cells near its own, among which those are that it looks into, at least,
PART = 4  # or one in so many of all cells, as those of large sets are many
GROUP = 512  # samples that share their draws, about
BATCH = 2**16  # samples whose cells are looked up at once
AT_ONCE = 512  # samples whose kernels are computed at once
UNIFORM = 0.02  # share of the draws that goes by the number of samples, whatever the cells promise
DOUBTFUL = 0.05  # error, as a share of the density, above which a density is computed again,
AGAIN = 0.01  # up to this share of all
FEW = 2 * SIZE * LOOKS[1]  # samples of a class of which all pairs are no more work
COARSE = 256  # samples a coarse cell from which its centre is found
ROUNDS = 6  # of k-means, for coarse cells
FINE = 4  # rounds within them
SETTLED = 4  # rounds in which samples move to cells of other coarse ones
COVERED = 20_000  # samples whose spread around their centres is looked at
FILLED = 0.5  # of their dimensions, as a cell's are fewer than those of all together
NEXT = 64  # cells among which a sample then finds its nearest
SHOWN = 50_000  # samples from which on progress is shown


@true_float32()
def cell_density(
    embeddings, labels, tau: float, *, seed: int = 0, few: int = FEW
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the density of every sample within its own class, and the standard error of each.

    Parameters
    ----------
    embeddings, labels, tau
        As in :func:`cid.density.class_density`, with ``tau`` a number. All is computed in float32; where the
        kernel is too narrow for that, all pairs are compared in float64, as there. A ``numpy.memmap`` is read
        in parts, and one class of it is held at a time.
    seed : int
        Of the draws. The same seed gives the same bytes on the same machine and number of threads.
    few : int
        A class of no more samples is computed exactly.

    Returns
    -------
    density, error : float64 array, shape (n,)
        The error is 0 where the density is exact.

    Raises
    ------
    ValueError
        As :func:`cid.density.class_density`.
    """
    stored = isinstance(embeddings, np.memmap)
    vectors = embeddings if stored else as_tensor(embeddings, ndim=2)
    codes, n_classes = class_codes(labels, len(vectors))
    for start in range(0, len(vectors), CHUNK):  # the checks, with row numbers
        unit_vectors(as_tensor(vectors[start : start + CHUNK]), "cpu", first=start)
    density = np.empty(len(codes))
    error = np.zeros(len(codes))
    for code in range(n_classes):
        rows = np.flatnonzero(codes == code)
        if len(rows) <= few:
            density[rows] = _of_all_pairs(vectors, rows, tau)
        else:
            density[rows], error[rows] = _of_class(vectors, rows, tau, seed)
    return density, error


@true_float32()
def width_in_parts(vectors, near: int = 5, share: float = 0.5) -> float:
    """:func:`cid.density.neighbour_width` of embeddings (n, d) that are read in parts, from memory or a file."""
    rows = probes(len(vectors)).numpy()
    ours = _unit(vectors, rows)
    mean = ours.mean(dim=0)
    ours -= mean
    half = half_squares(ours).float()
    best = torch.full((len(rows), near + 1), -math.inf)  # the sample itself is one of them
    for start in range(0, len(vectors), CHUNK):
        theirs = _unit(vectors, np.arange(start, min(start + CHUNK, len(vectors)))) - mean
        theirs_half = half_squares(theirs).float()
        for place in torch.arange(len(rows)).split(AT_ONCE):
            nearness = torch.addmm(-theirs_half, ours[place], theirs.T).sub_(half[place, None])
            found = torch.cat([best[place], nearness], dim=1)
            best[place] = found.topk(near + 1, dim=1).values
    return max(share * -float(best[:, -1].clamp_max(0).median()), 1e-6)


def _of_all_pairs(vectors, rows: np.ndarray, tau: float) -> np.ndarray:
    """Exact density (m,) of the samples of a class."""
    some = as_tensor(vectors[rows])
    density = class_density(some, np.zeros(len(rows), dtype=int), tau, device="cpu")
    return density.cpu().numpy()


def _of_class(vectors, rows: np.ndarray, tau: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Density and error (m,) of the samples of a class, whose row numbers are given."""
    rng = np.random.default_rng(seed)
    unit = _unit(vectors, rows)
    mean = unit.mean(dim=0, dtype=torch.float64)
    if precise_enough(farthest(unit, mean) / tau) != torch.float32:
        return _of_all_pairs(vectors, rows, tau), np.zeros(len(rows))
    order, edges = divided(unit.sub_(mean.float()), rng)
    del unit  # read again in the order of the cells: never are two copies held
    cells = Cells.of(_unit(vectors, rows[order]), mean, tau, edges)
    total, error = _estimated(cells, rng)
    _compute_again(cells, total, error)
    place = np.argsort(order)
    n = len(rows)
    return np.minimum(total.numpy() / n, 1.0)[place], (error.numpy() / n)[place]


def _unit(vectors, rows: np.ndarray) -> torch.Tensor:
    """Unit vectors of some rows, float32 (m, d), read in parts."""
    unit = torch.empty(len(rows), vectors.shape[1])
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        unit[start : start + len(some)] = unit_vectors(as_tensor(vectors[some]), "cpu")
    return unit


@dataclass(frozen=True)
class Cells:
    """The samples of a class, cell by cell; all on the scale on which a kernel is a power of 2."""

    u: torch.Tensor  # (n, d), centred: the kernel is 2 ^ (u_i . u_j - half_i - half_j)
    half: torch.Tensor  # (n,), |u|^2 / 2
    own: torch.Tensor  # (n,), 2 ^ -half
    edges: np.ndarray  # (K + 1,): where the samples of each cell begin, and where the last ends
    size: torch.Tensor  # (K,), samples of each, as floats
    centres: torch.Tensor  # (K, d), mean of u
    centre_half: torch.Tensor  # (K,), |centre|^2 / 2
    spread: torch.Tensor  # (K,), ln 2 times the variance of u along a dimension that it fills
    dimensions: float  # that cells fill

    @classmethod
    def of(cls, unit, mean, tau: float, edges: np.ndarray) -> "Cells":
        """Make cells of unit vectors (n, d) in their order, which are overwritten."""
        u = unit.sub_(mean.float()).mul_(powers_of_two(tau))
        half = half_squares(u).float()
        count = torch.from_numpy(np.diff(edges))
        code = torch.repeat_interleave(count)
        centres, _ = _means(u, code, len(count))
        within = half_squares(u) - half_squares(centres)[code]  # in the sum over a cell
        variance = 2 * torch.zeros(len(count)).double().index_add_(0, code, within) / count
        dimensions = FILLED * _dimensions(u, centres, code)
        return cls(
            u=u,
            half=half,
            own=torch.exp2(-half),
            edges=edges,
            size=count.float(),
            centres=centres,
            centre_half=half_squares(centres).float(),
            spread=(math.log(2) * variance.clamp_min(0) / dimensions).float(),
            dimensions=dimensions,
        )

    def __len__(self) -> int:
        return len(self.size)

    def of_length(self, numbers: tuple[int, int]) -> int:
        """Which of two numbers holds for vectors of this length."""
        return numbers[self.u.shape[1] <= SHORT]

    def rows(self, first: int, last: int | None = None) -> slice:
        """The samples of a cell, or of all cells from the first to before the last."""
        last = first + 1 if last is None else last
        return slice(int(self.edges[first]), int(self.edges[last]))

    def kernel(self, rows, others) -> torch.Tensor:
        """``2 ^ (u_i . u_j - half_j)``, which times ``own_i`` is the kernel; (r, s)."""
        return torch.addmm(-self.half[others], self.u[rows], self.u[others].T).exp2_()


def _dimensions(u: torch.Tensor, centres: torch.Tensor, code: torch.Tensor) -> float:
    """Dimensions that samples fill around their centres: the participation ratio of their variances."""
    some = torch.arange(0, len(u), math.ceil(len(u) / COVERED))
    within = (u[some] - centres[code[some]]).double()
    product = within.T @ within
    return max(1.0, float(product.trace() ** 2 / (product**2).sum().clamp_min(1e-300)))


def divided(u: torch.Tensor, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples (n, d) into cells: their order (n,), and where each cell begins, (K + 1,).

    k-means in coarse cells, and within each of them in fine ones, takes next to nothing. What decides how
    much the centres know is the rest: samples then move to the nearest of the fine cells beyond.
    """
    n_coarse = max(1, round(math.sqrt(len(u) / SIZE)))
    some = np.sort(rng.choice(len(u), min(len(u), COARSE * n_coarse), replace=False))
    coarse = _nearest(u, _k_means(u[torch.from_numpy(some)], n_coarse, ROUNDS, rng))
    code = torch.empty(len(u), dtype=torch.int64)
    begun = 0
    for number in _walk(_means(u, coarse, n_coarse)[0]):
        rows = (coarse == number).nonzero()[:, 0]
        if not len(rows):
            continue
        inside = u[rows]
        centres = _k_means(inside, max(1, round(len(rows) / SIZE)), FINE, rng)
        place = torch.empty(len(centres), dtype=torch.int64)
        place[torch.tensor(_walk(centres))] = torch.arange(len(centres))
        code[rows] = begun + place[_nearest(inside, centres)]
        begun += len(centres)
    code = _settled(u, code, begun).numpy()
    order = np.argsort(code, kind="stable")
    return order, _edges(np.bincount(code))


def _edges(count: np.ndarray) -> np.ndarray:
    """Where cells begin that hold so many; none is empty, and those of many are cut."""
    parts = np.maximum(1, np.round(count / (1.5 * SIZE)).astype(int))
    sizes = [
        (number + np.arange(part)) // part
        for number, part in zip(count.tolist(), parts.tolist(), strict=True)
        if number
    ]
    return np.concatenate([[0], *sizes]).cumsum()


def _k_means(x: torch.Tensor, k: int, rounds: int, rng: np.random.Generator) -> torch.Tensor:
    """Centres (k, d) of vectors (n, d), from some of them that are drawn."""
    drawn = np.sort(rng.choice(len(x), k, replace=False))
    centres = x[torch.from_numpy(drawn)]
    for _ in range(rounds):
        means, count = _means(x, _nearest(x, centres), k)
        centres = torch.where(count[:, None] > 0, means, centres)
    return centres


def _means(x: torch.Tensor, code: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (k, d) of the vectors of each code, and their number (k,)."""
    count = torch.bincount(code, minlength=k)
    total = torch.zeros(k, x.shape[1], dtype=x.dtype).index_add_(0, code, x)
    return total / count.clamp_min(1)[:, None], count


def _nearest(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The nearest centre of each vector, (n,)."""
    half = half_squares(centres).to(x.dtype)
    return torch.cat([torch.addmm(-half, part, centres.T).argmax(1) for part in x.split(4096)])


def _walk(centres: torch.Tensor) -> list[int]:
    """An order of centres: from one to the nearest that is left."""
    half = half_squares(centres).to(centres.dtype)
    found = [0]
    while len(found) < len(centres):
        half[found[-1]] = math.inf
        found.append(int(torch.addmv(-half, centres, centres[found[-1]]).argmax()))
    return found


def _settled(u: torch.Tensor, code: torch.Tensor, n_cells: int) -> torch.Tensor:
    """Cells (n,) after rounds of k-means in which each sample looks at the :data:`NEXT` cells around its own."""
    for _ in range(SETTLED):
        centres, count = _means(u, code, n_cells)
        half = half_squares(centres).to(u.dtype)
        half[count == 0] = math.inf
        found = torch.empty_like(code)
        members = torch.argsort(code, stable=True).split(count.tolist())
        for some in torch.arange(n_cells).split(AT_ONCE):
            nearness = torch.addmm(-half, centres[some], centres.T)
            near = nearness.topk(min(NEXT, n_cells), dim=1).indices
            for cell, around in zip(some.tolist(), near, strict=True):
                rows = members[cell]
                inner = torch.addmm(
                    -half[around], u.index_select(0, rows), centres.index_select(0, around).T
                )
                found[rows] = around[inner.argmax(dim=1)]
        code = found
    return code


def _estimated(cells: Cells, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the kernel over all samples, and their standard errors; float64 (n,)."""
    from tqdm import tqdm  # the weights alone do without

    n = len(cells.u)
    total = torch.zeros(n, dtype=torch.float64)
    error = torch.zeros(n, dtype=torch.float64)
    bar = tqdm(total=n, desc="density", unit="image", mininterval=5, leave=False, disable=n < SHOWN)
    with bar:
        for first, last in batches(cells.edges, BATCH):
            looked, groups = _seen(cells, first, last)
            start = int(cells.edges[first])
            _look(cells, looked, total, start)
            for begin, end, promised in groups:
                rows = cells.rows(begin, end)
                known = looked[rows.start - start : rows.stop - start]
                _draw(cells, rows, known, promised, rng, total, error)
                bar.update(rows.stop - rows.start)
    return total, error


def batches(edges: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Cells that follow one another with up to so many samples: the first, and that after the last."""
    found = []
    first = 0
    while first < len(edges) - 1:
        last = int(np.searchsorted(edges, edges[first] + most, side="right")) - 1
        last = max(last, first + 1)
        found.append((first, last))
        first = last
    return found


# Cells whose samples share their draws: the first, that after the last, and what every cell promises (K,).
Group = tuple[int, int, np.ndarray]


def _seen(cells: Cells, first: int, last: int) -> tuple[np.ndarray, list[Group]]:
    """The cells (m, looks) that each sample of some cells looks into, its own among them; and the groups."""
    looked = []
    groups = []
    for begin, end in batches(cells.edges[first : last + 1], GROUP):
        some, _, promised = promised_by(cells, first + begin, first + end, cells.of_length(LOOKS))
        looked.append(some.numpy())
        groups.append((first + begin, first + end, promised.numpy()))
    return np.concatenate(looked), groups


def promised_by(
    cells: Cells, first: int, last: int, looks: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the cells' centres promise to the samples of some cells, each as a share of its density.

    Returns
    -------
    looked : int tensor, shape (m, looks)
        Cells of which one sample, in the mean, promises most, and the sample's own, which comes first.
    left : tensor, shape (m,)
        What all other cells promise together.
    promised : float64 tensor, shape (K,)
        What each cell promises to all samples here that do not look into it.
    """
    some = slice(first, last)
    around = torch.addmm(-cells.centre_half, cells.centres[some], cells.centres.T)
    width = 1 + cells.spread[some, None] + cells.spread
    around = around.sub_(cells.centre_half[some, None]).div_(width)
    around = around.sub_(width.log2_(), alpha=cells.dimensions / 2).exp2_()
    whole = around @ cells.size
    likely = (around / (1 + whole)[:, None]).sum(dim=0)
    likely[first:last] = math.inf
    number = max(CANDIDATES, len(cells) // PART, last - first)
    near = likely.topk(min(number, len(cells)), sorted=False).indices
    near = near.sort().values
    rows = cells.rows(first, last)
    number = torch.from_numpy(np.diff(cells.edges[first : last + 1]))  # of samples in each
    beyond = whole - around[:, near] @ cells.size[near]
    width = 1 + cells.spread[near]
    level = -cells.centre_half[near] / width - cells.dimensions / 2 * width.log2()
    share = torch.addmm(level, cells.u[rows], (cells.centres[near] / width[:, None]).T)
    share = share.addcmul_(cells.half[rows, None], 1 / width, value=-1).exp2_()
    # 1: the sample itself
    total = 1 + share @ cells.size[near] + torch.repeat_interleave(beyond.clamp_min(0), number)
    share.div_(total[:, None])
    own = torch.searchsorted(near, torch.repeat_interleave(torch.arange(first, last), number))
    share[torch.arange(len(share)), own] = math.inf
    top = share.topk(min(looks, len(near)), dim=1).indices
    share.scatter_(1, top, 0)
    promised = ((number / (1 + whole)) @ around * cells.size).double()
    promised[near] = (share.sum(dim=0) * cells.size[near]).double()
    left = (share @ cells.size[near]).mul_(total)
    return near[top], left, promised


def _look(cells: Cells, looked: np.ndarray, total: torch.Tensor, start: int) -> None:
    """Add to the totals what samples from the row ``start`` on get from the cells that they look into."""
    flat = looked.reshape(-1)
    by_cell = np.argsort(flat, kind="stable")
    some, begins = np.unique(flat[by_cell], return_index=True)
    lookers = torch.from_numpy(start + by_cell // looked.shape[1])
    # Memory that is used again: new one for each cell takes as long as the products.
    vectors = torch.empty(AT_ONCE, cells.u.shape[1])
    buffer = torch.empty(AT_ONCE * int(cells.size.max()))
    for cell, rows in zip(some.tolist(), lookers.tensor_split(begins[1:].tolist()), strict=True):
        others = cells.rows(cell)
        size = others.stop - others.start
        one = torch.ones(size)
        minus = -cells.half[others]
        seen = cells.u[others].T
        for part in rows.split(AT_ONCE):
            ours = torch.index_select(cells.u, 0, part, out=vectors[: len(part)])
            kernel = buffer[: len(part) * size].view(len(part), size)
            torch.addmm(minus, ours, seen, out=kernel).exp2_()
            total.index_add_(0, part, (kernel @ one).mul_(cells.own[part]).double())


def _draw(cells: Cells, rows: slice, looked, promised, rng, total, error) -> None:
    """Add to the totals what the samples of a group get from draws of the cells that they do not look into.

    The columns of the first half of the draws are strata 0, 2, 4, ..., those of the second 1, 3, 5, ...
    """
    draws = cells.of_length(DRAWS)
    cell, drawn, chance = _drawn(cells, promised, draws, rng)
    pairwise = np.concatenate([np.arange(0, draws, 2), np.arange(1, draws, 2)])
    column = np.argsort(pairwise)
    ends = np.searchsorted(cell, np.arange(len(cells) + 1))
    drawn = torch.from_numpy(drawn[pairwise])
    lift = torch.from_numpy(-np.log2(draws * chance[pairwise])).to(cells.u) - cells.half[drawn]
    vectors = cells.u.index_select(0, drawn).T
    buffer = torch.empty(AT_ONCE, draws)
    for start in range(rows.start, rows.stop, AT_ONCE):
        some = slice(start, min(start + AT_ONCE, rows.stop))
        kernel = torch.addmm(lift, cells.u[some], vectors, out=buffer[: some.stop - start]).exp2_()
        known = looked[start - rows.start : some.stop - rows.start]
        # Draws of cells that a sample has seen whole do not count for it.
        number = ends[known + 1] - ends[known]
        row = np.repeat(np.arange(len(known)), number.sum(axis=1))
        number = number.reshape(-1)
        first = np.repeat(ends[known].reshape(-1), number)
        rank = np.arange(len(first)) - np.repeat(number.cumsum() - number, number)
        kernel[torch.from_numpy(row), torch.from_numpy(column[first + rank])] = 0
        one, other = kernel[:, : draws // 2], kernel[:, draws // 2 :]
        total[some] += kernel.sum(dim=1) * cells.own[some]
        error[some] = torch.linalg.vector_norm(one - other, dim=1) * cells.own[some]


def _drawn(
    cells: Cells, promised: np.ndarray, draws: int, rng
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw samples, one of each stratum: their cells in rising order, rows, and chances each."""
    size = np.diff(cells.edges)
    chance = (1 - UNIFORM) * promised / max(promised.sum(), 1e-300) + UNIFORM * size / size.sum()
    ends = chance.cumsum()
    at = (np.arange(draws) + rng.random(draws)) / draws * ends[-1]
    cell = np.minimum(np.searchsorted(ends, at, side="right"), len(size) - 1)
    within = (at - ends[cell] + chance[cell]) / chance[cell] * size[cell]
    within = np.clip(within.astype(np.int64), 0, size[cell] - 1)
    return cell, cells.edges[cell] + within, chance[cell] / size[cell] / ends[-1]


def _compute_again(cells: Cells, total: torch.Tensor, error: torch.Tensor) -> None:
    """Compute the most doubtful totals from all pairs."""
    doubt = error / total
    most = torch.topk(doubt, int(AGAIN * len(total))).indices
    for rows in most[doubt[most] > DOUBTFUL].sort().values.split(1024):
        found = torch.zeros(len(rows), dtype=torch.float64)
        for others in range(0, len(total), 4096):
            others = slice(others, others + 4096)
            found += cells.kernel(rows, others).sum(dim=1)
        total[rows] = found * cells.own[rows]
        error[rows] = 0
