"""Methods whose risk looks at the worst images or groups: CVaR, KL, and GroupDRO of three kinds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cid.settings import CountOrAuto, Options, Positive, Share
from study.methods.base import Method, Sample, TrainingStack
from study.methods.weighting import cells_of

if TYPE_CHECKING:
    from cid.heads import Heads

CLUSTERS = (10, 20, 40, 80)  # per class, tried by "auto"


@dataclass(frozen=True)
class CVaRSettings(Options):
    alpha: Share = 0.8  # share of the worst images, whose mean loss counts


@dataclass(frozen=True)
class KLSettings(Options):
    tilt: Positive = 1.0  # t of log(mean(exp(t loss))) / t


@dataclass(frozen=True)
class GroupSettings(Options):
    group_tilt: Positive = 3.0  # of the means of groups; large: the worst group alone


@dataclass(frozen=True)
class ClusterSettings(Options):
    clusters: CountOrAuto = "auto"  # per class; auto: by the silhouette


def fit_cvar(stack: TrainingStack, weights, needed, settings: CVaRSettings) -> Heads:
    """Minimise the mean loss of the worst images: :func:`cid.risks.cvar_risk`."""
    from cid.risks import cvar_risk

    return stack.fit(weights, risk=cvar_risk(settings.alpha))


def fit_kl(stack: TrainingStack, weights, needed, settings: KLSettings) -> Heads:
    """Minimise an exponentially tilted loss: :func:`cid.risks.tilted_risk`."""
    from cid.risks import tilted_risk

    return stack.fit(weights, risk=tilted_risk(settings.tilt))


def fit_groups(stack: TrainingStack, weights, groups, settings: GroupSettings) -> Heads:
    """Minimise a tilted mean of the losses of groups: :func:`cid.risks.group_risk`."""
    from cid.risks import group_risk

    return stack.fit(weights, risk=partial(group_risk, settings.group_tilt), groups=groups)


def clusters_within_classes(sample: Sample, settings: ClusterSettings) -> np.ndarray:
    """Codes (n,) of clusters of the proxy within each class.

    "auto": as many as the silhouette is best with; of many images, of about
    :data:`cid.density.PROBES` of them.
    """
    return clusters_of(sample, sample.labels, "clusters", settings.clusters)


def clusters_of(sample: Sample, classes: np.ndarray, name: str, wanted: int | str) -> np.ndarray:
    """Codes (n,) of k-means clusters of the proxy within each of some classes (n,).

    ``wanted`` clusters a class, or "auto"; ``name`` is that of the setting, for messages.
    """
    from sklearn.cluster import KMeans

    from cid.arrays import class_codes, unit_vectors

    tried = CLUSTERS if wanted == "auto" else (wanted,)
    unit = unit_vectors(sample.embeddings).cpu().numpy()
    class_codes(sample.labels, len(unit))  # there must be as many labels as embeddings
    codes = np.empty(len(unit), dtype=np.int64)
    start = 0
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        if wanted != "auto" and wanted > len(rows):
            raise ValueError(
                f"weights.{name} is {wanted}, but {len(rows)} training images are to be clustered; take "
                "fewer, or auto"
            )
        counts = [k for k in tried if k < len(rows)] or [max(1, len(rows) // 2)]
        clusterings = [KMeans(k, n_init=1, random_state=0).fit_predict(unit[rows]) for k in counts]
        best = clusterings[0] if len(counts) == 1 else _best_silhouette(unit[rows], clusterings)
        codes[rows] = start + best
        start += best.max() + 1
    return codes


def _best_silhouette(unit: np.ndarray, clusterings: list[np.ndarray]) -> np.ndarray:
    """The clustering (n,) with the best silhouette."""
    from sklearn.metrics import pairwise_distances, silhouette_score

    from cid.density import MANY, probes

    probed = probes(len(unit), every=MANY).numpy()
    distances = pairwise_distances(unit[probed])
    np.fill_diagonal(distances, 0)
    scores = [
        silhouette_score(distances, clusters[probed], metric="precomputed")
        for clusters in clusterings
    ]
    return clusterings[np.argmax(scores)]


CVAR_DRO = Method(
    name="cvar-dro",
    title="CVaR-DRO",
    colour="#999933",
    uses=(),
    summary="the mean loss of the worst share of the images",
    source="Levy et al. 2020",
    fit=fit_cvar,
    fit_settings=CVaRSettings,
    network="cvar-dro",
    tried={"train.robust.alpha": [0.1, 0.2, 0.5, 0.8]},
)
KL_DRO = Method(
    name="kl-dro",
    title="KL-DRO",
    colour="#ddcc77",
    uses=(),
    summary="exponentially tilted loss",
    source="Li et al. 2021",
    fit=fit_kl,
    fit_settings=KLSettings,
    network="kl-dro",
    tried={"train.robust.tilt": [0.3, 1.0, 3.0, 10.0]},
)
CLUSTER_DRO = Method(
    name="cluster-dro",
    title="Cluster-GroupDRO",
    colour="#332288",
    uses=("class",),
    summary="GroupDRO over clusters of the proxy within each class",
    source="after Sohoni et al. 2020",
    weigh_settings=ClusterSettings,
    needs="groups",
    needed=clusters_within_classes,
    fit=fit_groups,
    fit_settings=GroupSettings,
    network="group-dro",
    tried={"weights.clusters": [10, 40, 80, "auto"]},
)
GROUP_DRO = Method(
    name="group-dro",
    title="GroupDRO",
    colour="#117733",
    uses=("class", "identity"),
    summary="the worst (identity, class) cells decide",
    source="Sagawa et al. 2020",
    needs="groups",
    needed=cells_of,
    fit=fit_groups,
    fit_settings=GroupSettings,
    network="group-dro",
    tried={"train.robust.group_tilt": [3.0, 10.0, 30.0]},
)
