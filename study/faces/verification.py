"""How well embeddings tell people apart: statistics over all pairs of images.

Verification asks whether two images show the same person. Pairs are counted in fine bins of their
cosine, so that the n² / 2 pairs of a large set need little memory.
"""

import numpy as np
import pandas as pd

SIMILARITIES = 2_000_000  # bins of equal width for the cosines of pairs, on [-1, 1]
FALSE_MATCHES = (
    1e-3  # share of the pairs of different people that :func:`right_pairs` allows to match
)
BLOCK = 256  # images that are compared with all later ones at once
NEAR = 0.995  # cosine from which two images are near copies


def pair_similarities(embeddings, identities) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs of images by their cosine: of the same person, and of different people.

    Parameters
    ----------
    embeddings : array (n, d)
        Rows of unit norm.
    identities : array (n,)

    Returns
    -------
    same, different : int64 arrays (SIMILARITIES,)
        Number of pairs in each bin of equal width on [-1, 1].

    Raises
    ------
    ValueError
        If there is no pair of one of the two kinds.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    codes = np.unique(np.asarray(identities), return_inverse=True)[1]
    n = len(codes)
    same = np.zeros(SIMILARITIES, np.int64)
    different = np.zeros(SIMILARITIES, np.int64)
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        cosines = embeddings[rows] @ embeddings[start:].T
        bins = ((cosines + 1) * (SIMILARITIES / 2)).astype(np.int64).clip(0, SIMILARITIES - 1)
        later = np.arange(start, n) > rows[:, None]  # every pair once, and no image with itself
        same_person = codes[start:] == codes[rows, None]
        same += np.bincount(bins[later & same_person], minlength=SIMILARITIES)
        different += np.bincount(bins[later & ~same_person], minlength=SIMILARITIES)
    if not (same.any() and different.any()):
        raise ValueError("a proxy is measured by two images of one person, and two people")
    return same, different


def near_copies(embeddings) -> pd.DataFrame:
    """Find images that have a near copy: whose nearest other image has a cosine above :data:`NEAR`.

    A photograph that was saved anew, frames of one film and empty pictures are such.

    Parameters
    ----------
    embeddings : array (n, d)
        Rows of unit norm.

    Returns
    -------
    DataFrame
        One row an image with a near copy: ``row``, ``copy`` (its nearest other image) and ``cosine``; the
        nearest pairs first.

    Examples
    --------
    >>> near_copies([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[["row", "copy"]].to_numpy()
    array([[0, 2],
           [2, 0]])
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    tables = []
    for start in range(0, len(embeddings), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(embeddings)))
        cosines = embeddings[rows] @ embeddings.T
        cosines[rows - start, rows] = -np.inf
        nearest = cosines.argmax(axis=1)
        table = pd.DataFrame(
            {
                "row": rows,
                "copy": nearest,
                "cosine": cosines[rows - start, nearest],
            }
        )
        tables.append(table[table["cosine"] > NEAR])
    found = pd.concat(tables, ignore_index=True)
    return found.sort_values("cosine", ascending=False, kind="stable", ignore_index=True)


def verification_auc(same: np.ndarray, different: np.ndarray) -> float:
    """Return the area under the ROC curve of telling apart the pairs of :func:`pair_similarities`.

    It is the probability that a pair of the same person has a larger cosine than a pair of different
    people; ties count half.
    """
    below = np.cumsum(different) - different / 2
    return float((same * below).sum() / (same.sum() * different.sum()))


def right_pairs(same: np.ndarray, different: np.ndarray) -> float:
    """Return the share of a person's pairs that are matched while :data:`FALSE_MATCHES` of the others are.

    Pairs match from a cosine on, the smallest one that no more than that share of the pairs of different
    people reaches. The arguments are those of :func:`verification_auc`.

    Examples
    --------
    >>> same, different = np.array([1, 0, 3]), np.array([5000, 4, 0])
    >>> right_pairs(same, different)
    0.75
    """
    false_matches = np.cumsum(different[::-1]) / different.sum()
    matched = int((false_matches <= FALSE_MATCHES).sum())  # bins, from the largest cosine down
    return float(same[::-1][:matched].sum() / same.sum())


def similarity_densities(same: np.ndarray, different: np.ndarray, bins: int = 120) -> pd.DataFrame:
    """Return the two densities of the cosine, from the smallest that occurs up to 1, in coarse bins.

    Columns: ``left`` and ``right``, the edges of a bin, and the densities ``same`` and ``different``.
    """
    smallest = int(np.argmax(same + different > 0))
    width = -(-(SIMILARITIES - smallest) // bins)  # rounded up
    start = max(SIMILARITIES - bins * width, 0)
    edges = np.arange(start, SIMILARITIES, width)
    ends = np.append(edges[1:], SIMILARITIES)
    table = {"left": edges / SIMILARITIES * 2 - 1, "right": ends / SIMILARITIES * 2 - 1}
    for name, counts in (("same", same), ("different", different)):
        share = np.add.reduceat(counts, edges) / counts.sum()
        table[name] = share / (table["right"] - table["left"])
    return pd.DataFrame(table)


def roc_curve(same: np.ndarray, different: np.ndarray, points: int = 400) -> pd.DataFrame:
    """Return the ROC curve at no more than ``points`` false match rates, evenly spaced in logarithm.

    Columns: ``false_match_rate`` and ``true_match_rate``.
    """
    false_matches = np.cumsum(different[::-1]) / different.sum()
    true_matches = np.cumsum(same[::-1]) / same.sum()
    smallest = false_matches[false_matches > 0][0]
    wanted = np.geomspace(smallest, 1, points).clip(smallest, 1)
    at = np.unique(np.searchsorted(false_matches, wanted))
    return pd.DataFrame(
        {"false_match_rate": false_matches[at], "true_match_rate": true_matches[at]}
    )
