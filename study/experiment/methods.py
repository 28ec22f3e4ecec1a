"""The registry of methods, and which labels each may see.

A method acts through the weights of the training images, through groups of them, through its way of
training, or several of these. It is handed the class labels, the proxy embeddings and the settings
that it declares; identities reach only a method that declares that it needs them, so "without identity
labels" is a property of the code and not a promise. How each way of training works is said in
:mod:`study.experiment.trainers` (heads) and :mod:`cid.training` (networks).

Importing this module is cheap, as whoever checks a parameter file or draws a figure reads the names
and facts in it; torch and scikit-learn are imported by the functions that compute.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cid.checks import COUNT, EXPONENT, array, class_codes, number
from cid.names import find
from study.experiment.options import NEEDS

CLUSTERS = (10, 20, 40, 80)  # per class, tried by clusters: auto


@dataclass(frozen=True)
class Sample:
    """What a method may look at: one training set of n images."""

    embeddings: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,)
    identities: np.ndarray | None  # (n,) for methods that declare them, else None
    shared: dict = field(default_factory=dict)  # what methods of one training set have in common

    def once(self, key, compute: Callable[[], object]):
        """What ``compute`` returns, computed by whichever method asks first."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]


def _uniform(sample: Sample, settings: dict) -> np.ndarray:
    return np.ones(len(sample.labels))


@dataclass(frozen=True)
class Method:
    """A way to train without, or with, identity labels."""

    title: str  # in figures and tables
    # Labels of the training set that weights or groups are made of: "class", "identity", or neither.
    # (Every method trains on the class labels.)
    sees: tuple[str, ...]
    summary: str  # one line for the report, with its source
    weigh: Callable[[Sample, dict], np.ndarray] = _uniform  # float (n,), of mean 1
    settings: tuple[str, ...] = ()  # the keys of ``weights`` of params.yaml that it is handed
    training: str = "weighted"  # a key of study.experiment.options.KINDS
    # (n,): what study.experiment.options.NEEDS says that this kind of training needs, int codes or float log-odds.
    needed: Callable[[Sample, dict], np.ndarray] | None = None


def kind_of(method: str) -> str:
    """How a method trains, a key of study.experiment.options.KINDS; what is not of the registry, by its weights."""
    return METHODS[method].training if method in METHODS else "weighted"


def needed_column(method: str) -> str | None:
    """Name of the column, in a table of training sets, of what a method needs besides weights."""
    kind = kind_of(method)
    return f"{method}:{NEEDS[kind]}" if kind in NEEDS else None


def training_weights(
    method: str, embeddings, labels, identities, settings: dict, shared: dict | None = None
) -> np.ndarray:
    """Weights of a training set under a method, a key of :data:`METHODS`.

    The arrays are those of :class:`Sample`; ``settings`` is the section ``weights`` of params.yaml, and
    may lack what the method does not declare; ``shared`` is handed to several calls with the same
    embeddings, labels and settings. Returns a float64 array (n,) of mean 1. A ValueError if the method
    is unknown, or needs identities and there are none, or on arrays and settings that are unusable.
    """
    spec, *allowed = _allowed(method, embeddings, labels, identities, settings, shared)
    return array("weights", spec.weigh(*allowed)).astype(np.float64)


def training_needs(
    method: str, embeddings, labels, identities, settings: dict, shared: dict | None = None
):
    """What a method needs besides weights, (n,): int codes of groups, or float log-odds; or None.

    Else as :func:`training_weights`.
    """
    spec, *allowed = _allowed(method, embeddings, labels, identities, settings, shared)
    return None if spec.needed is None else np.asarray(spec.needed(*allowed))


def _allowed(method, embeddings, labels, identities, settings, shared):
    """A method, and the sample and settings it may see: the one place where identities are withheld."""
    spec, labels = get_method(method), class_codes(labels)[0]
    if "identity" not in spec.sees:
        sample = Sample(embeddings, labels, None, {} if shared is None else shared)
    elif identities is None:
        raise ValueError(f"method {method!r} needs identities and none were given")
    else:
        people, _ = class_codes(identities, len(labels), "identities")
        sample = Sample(embeddings, labels, people)  # what such a method computes stays with it
    return spec, sample, {key: settings[key] for key in spec.settings}  # any other: a KeyError


def get_method(name: str) -> Method:
    """Look a method up by name, or say which there are."""
    return find("method", name, METHODS)


def _inverse(density, sample: Sample, settings: dict, **more) -> np.ndarray:
    from cid.density import inverse_weights

    return inverse_weights(density, sample.labels, class_prior=settings["class_prior"], **more)


def _balanced(sample: Sample, settings: dict) -> np.ndarray:
    return _inverse(np.ones(len(sample.labels)), sample, {"class_prior": "balanced"})


def kernel_width(sample: Sample, settings: dict) -> float:
    """The kernel width of the densities; "auto": :func:`cid.density.neighbour_width`."""
    if settings["tau"] != "auto":
        return settings["tau"]
    from cid.density import neighbour_width

    return sample.once("tau", lambda: neighbour_width(sample.embeddings))


def proxy_density(sample: Sample, settings: dict) -> np.ndarray:
    """Density of the proxy embedding whatever the class, shape (n,)."""
    from cid.density import class_density

    one_class = np.zeros(len(sample.labels), dtype=int)
    given, how = (sample.embeddings, one_class), {"include_self": settings["include_self"]}
    return sample.once(
        "density", lambda: class_density(*given, kernel_width(sample, settings), **how)
    )


def _inverse_density(sample: Sample, settings: dict) -> np.ndarray:
    return _inverse(proxy_density(sample, settings), sample, settings)


def _cid(sample: Sample, settings: dict) -> np.ndarray:
    """As published where no ``power`` is handed over, else sharpened by it."""
    from cid.density import cid_weights

    how = {
        key: settings[key] for key in ("class_prior", "power", "include_self") if key in settings
    }
    return cid_weights(sample.embeddings, sample.labels, kernel_width(sample, settings), **how)


def surprise(sample: Sample, settings: dict, estimator: str):
    """The :class:`cid.posterior.Posterior` that the two-factor methods divide by."""
    from cid.posterior import label_posterior, without_class_direction

    given = embeddings, labels = sample.embeddings, sample.labels
    if not settings["keep_class_direction"]:
        embeddings = sample.once("cleaned", lambda: without_class_direction(*given))
    how = {"slope": "auto" if settings["surprise"] == "auto" else 1.0, "estimator": estimator}
    if estimator == "knn":
        how |= {"scale": settings["neighbours"], "local_scaling": settings["local_scaling"]}
    else:
        how["scale"] = settings["posterior_tau"]
    return sample.once(("posterior", estimator), lambda: label_posterior(embeddings, labels, **how))


def _two_factors(estimator: str, rare: bool = True):
    """Weights ``1 / (p(z)^a p(y|z)^b)``, normalised within each class; CID is a = b = 1.

    With ``surprise: auto`` the posterior is as sharp as the labels make likeliest, and b = 1.
    """

    def weigh(sample: Sample, settings: dict) -> np.ndarray:
        b = number("surprise", settings["surprise"], EXPONENT, auto=True)
        b = 1.0 if b == "auto" else b
        logs = b * np.log(surprise(sample, settings, estimator).probability)
        if rare:
            density = array("density", proxy_density(sample, settings)).astype(np.float64)
            logs = logs + number("rarity", settings["rarity"], EXPONENT) * np.log(density)
        return _inverse(logs, sample, settings, log=True)

    return weigh


def _clusters(sample: Sample, settings: dict) -> np.ndarray:
    """Clusters of the proxy within each class; "auto": as many as the silhouette is best with, of
    about :data:`cid.density.PROBES` of many images."""
    return _grouped(sample, sample.labels, "clusters", settings)


def _clusters_of_all(sample: Sample, settings: dict) -> np.ndarray:
    return _grouped(sample, np.zeros(len(sample.labels)), "erase_clusters", settings)


def _grouped(sample: Sample, classes, key: str, settings: dict) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances, silhouette_score

    from cid.density import MANY, probes, unit_vectors

    wanted = number(key, settings[key], COUNT, int, auto=True)
    tried = CLUSTERS if wanted == "auto" else (wanted,)
    unit = unit_vectors(sample.embeddings).cpu().numpy()
    class_codes(sample.labels, len(unit))  # as many of both
    codes = np.empty(len(unit), dtype=np.int64)
    start = 0
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        if wanted != "auto" and wanted > len(rows):
            problem = (
                f"weights.{key} is {wanted}, but {len(rows)} training images are to be clustered"
            )
            raise ValueError(f"{problem}; take fewer, or auto")
        ks = [k for k in tried if k < len(rows)] or [max(1, len(rows) // 2)]
        found = [KMeans(k, n_init=1, random_state=0).fit_predict(unit[rows]) for k in ks]
        best = 0
        if len(found) > 1:
            some = probes(len(rows), every=MANY).numpy()
            apart = pairwise_distances(unit[rows[some]])
            np.fill_diagonal(apart, 0)
            scores = [silhouette_score(apart, own[some], metric="precomputed") for own in found]
            best = np.argmax(scores)
        codes[rows] = start + found[best]
        start += found[best].max() + 1
    return codes


def _log_odds(sample: Sample, settings: dict) -> np.ndarray:
    """Log-odds of class 1 by a linear model of the label from the proxy embedding."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from cid.density import unit_vectors

    x = StandardScaler().fit_transform(unit_vectors(sample.embeddings).double().cpu().numpy())
    strength = 1 / (settings["bias_l2"] * len(x))  # the same penalty as of cid.heads
    model = LogisticRegression(C=strength, max_iter=1000).fit(x, sample.labels)
    return model.decision_function(x)


def _people(sample: Sample, settings: dict) -> np.ndarray:
    return np.unique(sample.identities, return_inverse=True)[1]


def _cells(sample: Sample, settings: dict) -> np.ndarray:
    """(identity, class) codes."""
    classes, label = np.unique(sample.labels, return_inverse=True)
    return _people(sample, settings) * len(classes) + label


def _oracle(sample: Sample, settings: dict) -> np.ndarray:
    """Each cell of the same weight, spread over its images; or tempered, by a power of its size."""
    cell, power = _cells(sample, settings), settings.get("temper", 1.0)
    return _inverse(np.bincount(cell)[cell].astype(np.float64), sample, settings, power=power)


_DENSITY = ("tau", "include_self", "class_prior")
_FACTORS = (*_DENSITY, "rarity", "surprise", "keep_class_direction")
METHODS = {
    "erm": Method("ERM", (), "every image counts the same"),
    "balanced": Method("Class-balanced", ("class",), "every class counts the same", _balanced),
    "inverse-density": Method(
        "Inverse density", ("class",),
        "inverse density of the proxy embedding, not conditional on the class",
        _inverse_density, _DENSITY),
    "cid": Method(
        "CID", ("class",),
        "inverse density of the proxy embedding within the class (Qi & Ardeshir 2023)",
        _cid, _DENSITY),
    "cid-power": Method(
        "CID, sharpened", ("class",), "CID weights raised to a power, its best form",
        _cid, (*_DENSITY, "power")),
    "cid-kernel": Method(
        "CID, two factors (kernel)", ("class",),
        "rarity times label surprise, the label posterior by a kernel of its own width",
        _two_factors("kernel"), (*_FACTORS, "posterior_tau")),
    "cid-knn": Method(
        "CID, two factors (k-NN)", ("class",),
        "rarity times label surprise, the label posterior among nearest neighbours",
        _two_factors("knn"), (*_FACTORS, "neighbours", "local_scaling")),
    "surprise": Method(
        "Label surprise (k-NN)", ("class",),
        "the second factor alone: inverse label posterior among nearest neighbours",
        _two_factors("knn", rare=False),
        ("class_prior", "surprise", "neighbours", "keep_class_direction", "local_scaling")),
    "cvar-dro": Method(
        "CVaR-DRO", (), "the mean loss of the worst share of the images (Levy et al. 2020)",
        training="cvar-dro"),
    "kl-dro": Method("KL-DRO", (), "exponentially tilted loss (Li et al. 2021)", training="kl-dro"),
    "jtt": Method(
        "JTT", (), "trained twice, the first model's errors weigh more (Liu et al. 2021)",
        training="jtt"),
    "lff": Method(
        "LfF", (), "images that a deliberately biased model finds hard weigh more (Nam et al. 2020)",
        training="lff"),
    "cluster-dro": Method(
        "Cluster-GroupDRO", ("class",),
        "GroupDRO over clusters of the proxy within each class (after Sohoni et al. 2020)",
        settings=("clusters",), needed=_clusters, training="group-dro"),
    "afr": Method(
        "AFR", ("class",),
        "refitted on held-out images, hard ones weigh more (Qiu et al. 2023)", training="afr"),
    "selective": Method(
        "SELF", ("class",),
        "refitted on held-out images about which a second model disagrees (LaBonte et al. 2023)",
        training="selective"),
    "xrm": Method(
        "XRM + GroupDRO", ("class",),
        "GroupDRO over (class, mistaken) groups of two models of half the images each "
        "(Pezeshki et al. 2024)",
        training="xrm"),
    "ula": Method(
        "uLA", ("class",),
        "logits adjusted by a model of the label from the proxy (Tsirigotis et al. 2023)",
        settings=("bias_l2",), needed=_log_odds, training="ula"),
    "erase": Method(
        "Identity erased", (),
        "what tells clusters of the proxy apart is removed from the features "
        "(after Belrose et al. 2023)",
        settings=("erase_clusters",), needed=_clusters_of_all, training="erase"),
    "oracle": Method(
        "Oracle", ("class", "identity"),
        "every (identity, class) cell counts the same, by the true identities",
        _oracle, ("class_prior",)),
    "oracle-tempered": Method(
        "Oracle, tempered", ("class", "identity"),
        "a cell weighs by a power of its size, by the true identities",
        _oracle, ("class_prior", "temper")),
    "group-dro": Method(
        "GroupDRO", ("class", "identity"),
        "the worst (identity, class) cells decide (Sagawa et al. 2020)",
        needed=_cells, training="group-dro"),
    "last-layer": Method(
        "Last-layer retraining", ("class", "identity"),
        "trained anew on subsets balanced within every identity (after Kirichenko et al. 2023)",
        needed=_people, training="retrain"),
}  # fmt: skip
