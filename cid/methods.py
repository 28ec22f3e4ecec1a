"""The registry of methods, and which labels each may see.

A method acts through the weights of the training images, through groups of them, through its way of
training, or several of these. It is handed the class labels and the proxy embeddings; identities
reach only a method that declares it needs them, so "without identity labels" is a property of the
code and not a promise. How each way of training works is said in :mod:`cid.heads` (heads) and
:mod:`cid.networks` (networks); this module decides what goes into it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances, silhouette_score

from cid.density import cid_weights, class_density, inverse_weights, unit_vectors
from cid.names import suggest
from cid.posterior import Posterior, label_posterior, without_class_direction

CLUSTERS = (10, 20, 40, 80)  # per class, tried by clusters: auto


TRAINING = ("weighted", "cvar-dro", "kl-dro", "group-dro", "jtt", "lff", "retrain")


@dataclass(frozen=True)
class Sample:
    """What a method may look at: one training set of n images.

    ``embeddings`` (n, d), ``labels`` (n,) and, for methods that declare it only, ``identities``
    (n,), else None. ``shared`` keeps what methods of one training set have in common, computed from
    embeddings and class labels.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    identities: np.ndarray | None
    shared: dict = field(default_factory=dict)

    def once(self, key, compute: Callable[[], object]):
        """What ``compute`` returns, computed by whichever method asks first."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]


def _uniform(sample: Sample, settings: dict) -> np.ndarray:
    return np.ones(len(sample.labels))


@dataclass(frozen=True)
class Method:
    """A way to train without, or with, identity labels.

    Attributes
    ----------
    title : str
        Name in figures and tables.
    sees : tuple of str
        Labels of the training set it uses: "class", "identity", or neither. (Every method trains
        on the class labels; here they count where weights or groups are made of them.)
    summary : str
        One line for the report, with its source.
    weigh : callable
        ``(sample, settings) -> weights of shape (n,)``, of mean 1.
    groups : callable, optional
        ``(sample, settings) -> int codes of shape (n,)``, for ways of training that need groups.
    training : str
        One of :data:`TRAINING`.
    """

    title: str
    sees: tuple[str, ...]
    summary: str
    weigh: Callable[[Sample, dict], np.ndarray] = _uniform
    groups: Callable[[Sample, dict], np.ndarray] | None = None
    training: str = "weighted"


def group_column(method: str) -> str:
    """Name of the column that holds a method's groups in a table of training sets."""
    return f"{method}:group"


def training_weights(
    method: str, embeddings, labels, identities, settings: dict, shared: dict | None = None
) -> np.ndarray:
    """Weights of a training set under a method.

    Parameters
    ----------
    method : str
        A key of :data:`METHODS`.
    embeddings : array, shape (n, d)
        Proxy embeddings of the training images.
    labels, identities : array, shape (n,)
        ``identities`` may be None for methods that do not see them.
    settings : dict
        The section ``weights`` of params.yaml, where every key is explained.
    shared : dict, optional
        Handed to several calls with the same embeddings, labels and settings, it keeps what their
        methods have in common.

    Returns
    -------
    float64 array, shape (n,), mean 1.

    Raises
    ------
    ValueError
        On an unknown method, or identities missing for a method that needs them.
    """
    spec, sample = _allowed(method, embeddings, labels, identities, shared)
    return np.asarray(spec.weigh(sample, settings), dtype=np.float64)


def training_groups(
    method: str, embeddings, labels, identities, settings: dict, shared: dict | None = None
):
    """Groups of a training set under a method: int array of shape (n,), or None if it has none.

    Arguments and errors as in :func:`training_weights`.
    """
    spec, sample = _allowed(method, embeddings, labels, identities, shared)
    return None if spec.groups is None else np.asarray(spec.groups(sample, settings))


def _allowed(method, embeddings, labels, identities, shared) -> tuple[Method, Sample]:
    """A method and what it may see: the one place where identities are handed on or withheld."""
    spec = get_method(method)
    needs_identity = "identity" in spec.sees
    if needs_identity and identities is None:
        raise ValueError(f"method {method!r} needs identities and none were given")
    if needs_identity:  # what such a method computes stays with it
        return spec, Sample(embeddings, labels, identities)
    return spec, Sample(embeddings, labels, None, {} if shared is None else shared)


def get_method(name: str) -> Method:
    """Look a method up by name, or say which there are."""
    if name not in METHODS:
        raise ValueError(
            f"method {name!r} is unknown{suggest(name, METHODS)}; known: {', '.join(METHODS)}"
        )
    return METHODS[name]


def _balanced(sample: Sample, settings: dict) -> np.ndarray:
    return inverse_weights(np.ones(len(sample.labels)), sample.labels, class_prior="balanced")


def _tau(sample: Sample, settings: dict) -> float:
    """The kernel width of the densities; "auto": the likeliest for the labels, left one out.

    The likelihood of the density itself is of no use: face embeddings fill few of their dimensions,
    so a von Mises-Fisher kernel in all of them is likeliest when so narrow that every image is alone.
    """
    if settings["tau"] != "auto":
        return settings["tau"]
    return sample.once(
        "tau",
        lambda: (
            label_posterior(sample.embeddings, sample.labels, estimator="kernel", slope=1.0).scale
        ),
    )


def proxy_density(sample: Sample, settings: dict) -> np.ndarray:
    """Density of the proxy embedding whatever the class, shape (n,)."""
    one_class = np.zeros(len(sample.labels), dtype=int)
    return sample.once(
        "density",
        lambda: class_density(
            sample.embeddings,
            one_class,
            _tau(sample, settings),
            include_self=settings["include_self"],
        ),
    )


def _inverse_density(sample: Sample, settings: dict) -> np.ndarray:
    return inverse_weights(
        proxy_density(sample, settings),
        sample.labels,
        class_prior=settings["class_prior"],
        power=settings["power"],
    )


def _cid(sample: Sample, settings: dict) -> np.ndarray:
    return cid_weights(
        sample.embeddings,
        sample.labels,
        _tau(sample, settings),
        class_prior=settings["class_prior"],
        power=settings["power"],
        include_self=settings["include_self"],
    )


def surprise(sample: Sample, settings: dict, estimator: str) -> Posterior:
    """The local label posterior as the two-factor methods estimate it."""
    embeddings = sample.embeddings
    if not settings["keep_class_direction"]:
        embeddings = sample.once(
            "cleaned", lambda: without_class_direction(sample.embeddings, sample.labels)
        )
    return sample.once(
        ("posterior", estimator),
        lambda: label_posterior(
            embeddings,
            sample.labels,
            estimator=estimator,
            scale=settings["neighbours" if estimator == "knn" else "posterior_tau"],
            slope="auto" if settings["surprise"] == "auto" else 1.0,
            local_scaling=settings["local_scaling"],
        ),
    )


def _two_factors(estimator: str, rare: bool = True):
    """Weights ``1 / (p(z)^a p(y|z)^b)``, normalised within each class; CID is a = b = 1.

    With ``surprise: auto`` the posterior is as sharp as the labels make likeliest, and b = 1.
    """

    def weigh(sample: Sample, settings: dict) -> np.ndarray:
        b = 1.0 if settings["surprise"] == "auto" else settings["surprise"]
        logs = b * np.log(surprise(sample, settings, estimator).probability)
        if rare:
            logs = logs + settings["rarity"] * np.log(
                proxy_density(sample, settings).astype(np.float64)
            )
        # As a density whose inverse is wanted; only ratios within a class count.
        return inverse_weights(
            np.exp(logs - logs.max()), sample.labels, class_prior=settings["class_prior"]
        )

    return weigh


def _clusters(sample: Sample, settings: dict) -> np.ndarray:
    """Clusters of the proxy within each class; "auto": as many as the silhouette is best with."""
    unit = unit_vectors(sample.embeddings).cpu().numpy()
    codes = np.empty(len(unit), dtype=np.int64)
    start = 0
    for label in np.unique(sample.labels):
        rows = np.flatnonzero(sample.labels == label)
        wanted = CLUSTERS if settings["clusters"] == "auto" else (settings["clusters"],)
        wanted = [k for k in wanted if k < len(rows)] or [max(1, len(rows) // 2)]
        found = [KMeans(k, n_init=1, random_state=0).fit_predict(unit[rows]) for k in wanted]
        if len(found) > 1:
            apart = pairwise_distances(unit[rows])
            np.fill_diagonal(apart, 0)
            found = [
                max(found, key=lambda codes: silhouette_score(apart, codes, metric="precomputed"))
            ]
        codes[rows] = start + found[0]
        start += found[0].max() + 1
    return codes


def _cells(sample: Sample, settings: dict) -> np.ndarray:
    """(identity, class) codes: ``identity * number of classes + class``."""
    classes, label = np.unique(sample.labels, return_inverse=True)
    return np.unique(sample.identities, return_inverse=True)[1] * len(classes) + label


def _oracle(sample: Sample, settings: dict) -> np.ndarray:
    cell = _cells(sample, settings)
    size = np.bincount(cell)[cell]
    # A cell's weight is spread over its images, and every class holds the same total weight.
    return inverse_weights(
        size.astype(np.float64), sample.labels, class_prior=settings["class_prior"]
    )


METHODS = {
    "erm": Method("ERM", (), "every image counts the same"),
    "balanced": Method("Class-balanced", ("class",), "every class counts the same", _balanced),
    "inverse-density": Method(
        "Inverse density",
        ("class",),
        "inverse density of the proxy embedding, not conditional on the class",
        _inverse_density,
    ),
    "cid": Method(
        "CID",
        ("class",),
        "inverse density of the proxy embedding within the class (Qi & Ardeshir 2023)",
        _cid,
    ),
    "cid-kernel": Method(
        "CID, two factors (kernel)",
        ("class",),
        "rarity times label surprise, the label posterior by a kernel of its own width",
        _two_factors("kernel"),
    ),
    "cid-knn": Method(
        "CID, two factors (k-NN)",
        ("class",),
        "rarity times label surprise, the label posterior among nearest neighbours",
        _two_factors("knn"),
    ),
    "surprise": Method(
        "Label surprise (k-NN)",
        ("class",),
        "the second factor alone: inverse label posterior among nearest neighbours",
        _two_factors("knn", rare=False),
    ),
    "cvar-dro": Method(
        "CVaR-DRO",
        (),
        "the mean loss of the worst share of the images (Levy et al. 2020)",
        training="cvar-dro",
    ),
    "kl-dro": Method(
        "KL-DRO",
        (),
        "exponentially tilted loss (Li et al. 2021)",
        training="kl-dro",
    ),
    "jtt": Method(
        "JTT",
        (),
        "trained twice, the first model's errors weigh more (Liu et al. 2021)",
        training="jtt",
    ),
    "lff": Method(
        "LfF",
        (),
        "images that a deliberately biased model finds hard weigh more (Nam et al. 2020)",
        training="lff",
    ),
    "cluster-dro": Method(
        "Cluster-GroupDRO",
        ("class",),
        "GroupDRO over clusters of the proxy within each class (after Sohoni et al. 2020)",
        groups=_clusters,
        training="group-dro",
    ),
    "oracle": Method(
        "Oracle",
        ("class", "identity"),
        "every (identity, class) cell counts the same, by the true identities",
        _oracle,
    ),
    "group-dro": Method(
        "GroupDRO",
        ("class", "identity"),
        "the worst (identity, class) cells decide (Sagawa et al. 2020)",
        groups=_cells,
        training="group-dro",
    ),
    "last-layer": Method(
        "Last-layer retraining",
        ("class", "identity"),
        "trained anew on subsets balanced within every identity (after Kirichenko et al. 2023)",
        groups=_cells,
        training="retrain",
    ),
}
