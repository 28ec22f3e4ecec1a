"""Identity erased: what tells clusters of the proxy apart is removed from the features (LEACE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cid.settings import CountOrAuto, Options
from study.methods.base import Method, Sample, TrainingStack
from study.methods.robust import clusters_of

if TYPE_CHECKING:
    from cid.heads import Heads

ROWS = 2**14  # of a matrix worked on at once


@dataclass(frozen=True)
class EraseSettings(Options):
    erase_clusters: CountOrAuto = 2  # clusters, whatever the class, that are made alike


def clusters_of_all(sample: Sample, settings: EraseSettings) -> np.ndarray:
    """Codes (n,) of clusters of the proxy, whatever the class."""
    one_class = np.zeros(len(sample.labels))
    return clusters_of(sample, one_class, "erase_clusters", settings.erase_clusters)


def fit_erased(stack: TrainingStack, weights, clusters, settings: Options) -> Heads:
    """Fit plain heads on features from which no linear model can tell the clusters: :func:`erasure`."""
    import torch

    from cid.heads import Heads, fit_heads

    design = stack.design
    centre, spread = (
        part.cpu().numpy().astype(np.float64) for part in (design.centre, design.spread)
    )
    fitted = []
    for own_weights, groups in zip(weights, clusters, strict=True):
        rows = np.flatnonzero(own_weights)
        own = design.in_own_units(torch.from_numpy(rows).to(design.features.device))
        clean = own.features.cpu().numpy()
        tell, shift = erasure(clean, groups[rows])
        for part in _parts(clean):
            part -= (part @ tell.astype(np.float32)) @ shift.astype(np.float32)
        heads = fit_heads(clean, stack.labels[rows], own_weights[None, rows], stack.l2)
        # The head of the clean features, as one of the raw features.
        weight = heads.weight - tell @ (shift @ heads.weight[0])
        weight /= own.scale.cpu().numpy() * spread
        bias = heads.bias - weight @ (centre + own.shift.cpu().numpy() * spread)
        fitted.append(
            Heads(
                weight.astype(np.float32),
                bias.astype(np.float32),
                heads.iterations,
                heads.gradient,
            )
        )
        del own, clean  # before the next seed's are made: of all of CelebA they take 1.2 GB
    return Heads.joined(fitted)


def _parts(x) -> list[np.ndarray]:
    """Views of some rows each, which bounds the memory of what is made of them."""
    return np.split(x, range(ROWS, len(x), ROWS))


def erasure(x, groups, share: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Find what to subtract from centred features so that no linear model tells groups apart.

    Of all such changes it is the least. LEACE: Belrose et al., "LEACE: Perfect Linear Concept Erasure in
    Closed Form" (2023, arXiv 2306.03819). Because there are about as many features as images, their
    covariance S is shrunk towards a multiple of the identity by ``share``; by default as Ledoit & Wolf,
    "A well-conditioned estimator for large-dimensional covariance matrices" (2004).

    Parameters
    ----------
    x : array, shape (n, d)
        Products are in its precision, what is solved in float64.
    groups : array, shape (n,)
    share : float, optional

    Returns
    -------
    tell : array, shape (d, k)
        ``S^-1 C``, where C (d, k) is the covariance of the features and the k groups.
    shift : array, shape (k, d)
        ``(C^T S^-1 C)^+ C^T``: ``x - x tell shift`` is free of the groups.
    """
    n, d = x.shape
    names = np.unique(groups)
    member = (np.asarray(groups)[:, None] == names).astype(float)
    member -= member.mean(axis=0)
    few = n <= d  # S^-1 X^T = X^T (...)^-1: the smaller of the two products has what S is made of
    product = (x @ x.T if few else x.T @ x).astype(np.float64) / n
    level = np.trace(product) / d
    square = np.vdot(product, product)
    if share is None:
        squares = np.concatenate([np.einsum("ij,ij->i", part, part) for part in _parts(x)])
        squares = squares.astype(np.float64)
        noise = (squares**2).mean() - square
        share = np.clip(noise / n / max(square - d * level**2, 1e-30), 0, 1)
    product *= 1 - share
    product[np.diag_indices_from(product)] += share * level
    ours = member.astype(x.dtype)
    if few:
        tell = x.T @ np.linalg.solve(product, member).astype(x.dtype)
    else:
        tell = np.linalg.solve(product, x.T @ ours)
    tell = tell.astype(np.float64)
    together = (x.T @ ours / n).astype(np.float64)
    return tell / n, np.linalg.pinv(together.T @ tell / n, rcond=1e-9, hermitian=True) @ together.T


ERASE = Method(
    name="erase",
    title="Identity erased",
    colour="#77aadd",
    uses=(),
    summary="what tells clusters of the proxy apart is removed from the features",
    source="after Belrose et al. 2023",
    weigh_settings=EraseSettings,
    needs="groups",
    needed=clusters_of_all,
    fit=fit_erased,
    network=None,
    two_classes=True,
    tried={"weights.erase_clusters": [2, 5, 10, 20, 40]},
)
