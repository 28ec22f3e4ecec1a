"""Images that are each other's nearest neighbours: most often of one person, known without identities."""

import numpy as np

from cid.arrays import unit_vectors
from cid.pairs import Pairs, nearest
from cid.settings import Count, checked

DRAWN = 2**22  # numbers of times that groups are drawn, held at once: 32 MiB


def mutual_neighbours(embeddings, near: int = 3, device: str = "auto") -> np.ndarray:
    """Pairs of images each of which is among the ``near`` nearest others of the other: int array (p, 2).

    The smaller row number comes first. Every pair of all images is looked at, in blocks.

    >>> mutual_neighbours([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], near=1)
    array([[0, 1],
           [2, 3]])
    """
    near = checked("near", near, Count)
    unit = unit_vectors(embeddings, device)
    n = len(unit)
    near = min(near, n - 1)
    if not near:
        return np.empty((0, 2), dtype=np.int64)
    found = np.empty((n, near), dtype=np.int64)
    for rows, nearness in Pairs(unit).blocks():
        found[rows] = nearest(nearness, near).cpu().numpy()
    first = np.repeat(np.arange(n), near)
    second = found.reshape(-1)
    ahead = np.minimum(first, second) * n + np.maximum(first, second)
    pair, times = np.unique(ahead, return_counts=True)
    pair = pair[times == 2]
    return np.column_stack([pair // n, pair % n])


def groups(n: int, pairs: np.ndarray) -> np.ndarray:
    """Number the connected groups of n images that pairs (p, 2) link: int array (n,) from 0.

    >>> groups(4, np.array([[0, 2]]))
    array([0, 1, 0, 2], dtype=int32)
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    linked = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(linked, directed=False)[1]


def resampled_sums(sums: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Sums (R, k) over groups that are drawn with replacement, of sums (G, k) over each group.

    >>> resampled_sums(np.ones((5, 1)), replicates=2, seed=0)
    array([[5.],
           [5.]])
    """
    n_groups = len(sums)
    rng = np.random.default_rng(seed)
    drawn = np.empty((replicates, sums.shape[1]))
    at_once = max(1, DRAWN // n_groups)
    for start in range(0, replicates, at_once):
        some = min(at_once, replicates - start)
        counts = np.stack(
            [
                np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
                for _ in range(some)
            ]
        )
        drawn[start : start + some] = counts @ sums
    return drawn
