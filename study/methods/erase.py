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
    from cid.heads import Heads, fit_heads

    fitted = []
    for own_weights, groups in zip(weights, clusters, strict=True):
        member = own_weights > 0
        labels = stack.labels[member]
        clean, mean, spread, tell, shift = _cleaned(stack.features, member, groups[member])
        heads = fit_heads(clean, labels, own_weights[None, member], stack.l2)
        del clean  # before the next seed's are made
        # The head of the clean features, as one of the raw features.
        weight = (heads.weight - tell @ (shift @ heads.weight[0])) / spread
        bias = heads.bias - weight @ mean
        fitted.append(
            Heads(
                weight.astype(np.float32),
                bias.astype(np.float32),
                heads.iterations,
                heads.gradient,
            )
        )
    return Heads.joined(fitted)


def _cleaned(features, member, groups) -> tuple[np.ndarray, ...]:
    """The members' features standardised and free of the groups, float32; then their mean and spread,
    and what was subtracted.

    In place, and in a function of its own so that it is let go of: of all of CelebA, x takes 2.4 GB.
    """
    x = features[member].astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    squares = sum((part**2).sum(axis=0) for part in _parts(x))
    spread = np.maximum(np.sqrt(squares / len(x)), 1e-6)
    x /= spread
    tell, shift = erasure(x, groups)
    for part in _parts(x):
        part -= (part @ tell) @ shift
    return x.astype(np.float32), mean, spread, tell, shift


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
    x : float64 array, shape (n, d)
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
    product = (x @ x.T if few else x.T @ x) / n
    level = np.trace(product) / d
    square = (product**2).sum()
    if share is None:
        squares = np.concatenate([(part**2).sum(axis=1) for part in _parts(x)])
        noise = (squares**2).mean() - square
        share = np.clip(noise / n / max(square - d * level**2, 1e-30), 0, 1)
    shrunk = (1 - share) * product + share * level * np.eye(len(product))
    tell = x.T @ np.linalg.solve(shrunk, member) if few else np.linalg.solve(shrunk, x.T @ member)
    together = x.T @ member / n
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
    tried={"weights.erase_clusters": [2, 5, 10, 20, 40]},
)
