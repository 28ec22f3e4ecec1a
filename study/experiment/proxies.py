"""Better and worse proxies for identity, and what each tells of the label and of the person."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cid.posterior import without_class_direction
from study import store
from study.cores import on_all_cores
from study.experiment.arrays import Arrays, whole
from study.experiment.design import is_known
from study.faces.verification import pair_similarities, right_pairs, verification_auc

# What a proxy tells.
LABEL = "same-label AUC within a person"
PERSON = "verification AUC"
RIGHT = "right pairs"


def degraded(proxy: np.ndarray, identities, noise: Sequence[float]) -> dict[str, np.ndarray]:
    """Make proxies (n, d) from the true identity down to chance, out of one of unit vectors.

    ``true identity`` is a random direction for every identity, and one for every image whose identity is not
    known; then ``as it is``; ``noise <s>`` with
    Gaussian noise of an expected length s for every s in ``noise``; and ``random``.
    """
    n, d = proxy.shape
    generator = torch.Generator().manual_seed(0)
    known = is_known(identities)
    codes = np.zeros(n, dtype=np.int64)
    codes[known] = np.unique(np.asarray(identities)[known], return_inverse=True)[1]
    codes[~known] = codes.max() + 1 + np.arange((~known).sum())
    directions = torch.randn(codes.max() + 1, d, generator=generator).numpy()
    jitter = torch.randn(n, d, generator=generator).numpy()
    # A trace of noise, so that neighbours of one person have an order.
    proxies = {"true identity": directions[codes] + 1e-3 * jitter, "as it is": proxy}
    for length in noise:
        proxies[f"noise {length:g}"] = proxy + length * jitter / np.sqrt(d)
    proxies["random"] = jitter
    return proxies


def remedies(proxy: np.ndarray, views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make proxies (n, d) that can leak less of the label, without labels or identities.

    ``proxy`` are unit vectors of the photos, ``views`` from :func:`study.faces.embed.embed_views`.
    """
    crops = proxy + sum(view for name, view in views.items() if name != "mirrored")
    return {
        "as it is": proxy,
        "mirror averaged": proxy + views["mirrored"],
        "crops averaged": crops,
        "all views": crops + views["mirrored"],
        "centred": proxy - proxy.mean(axis=0),
    }


def controls(arrays: Arrays, networks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make proxies (n, d) that show whether only a face-recognition network can stand in for identity.

    ``networks`` are embeddings of the whole data set by name, the study's own and others', trained on
    faces or not. Around them stand ``true identity`` and ``random``, as of :func:`degraded`, and ``own
    trunk``: the features that the heads are trained on, each less its mean and divided by its standard
    deviation over all images of the data set (0 for a feature that is the same in all), and every image
    then scaled to unit length. No label is used.
    """
    ends = degraded(arrays.proxy, arrays.identities, [])
    spread = arrays.features.std(axis=0)
    trunk = (arrays.features - arrays.features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    trunk = (trunk / np.linalg.norm(trunk, axis=1, keepdims=True)).astype(np.float32)
    between = networks | {"own trunk": trunk}
    return {"true identity": ends["true identity"], **between, "random": ends["random"]}


def leaks_of(
    arrays: Arrays, proxies: dict[str, np.ndarray], folder: str | Path | None = None
) -> pd.DataFrame:
    """Compute :func:`leaks` of several proxies, one row each.

    Columns ``proxy``, the two AUC and the right pairs, of the proxy as it is and, with ``, class direction removed`` after
    their names, as label surprise sees it by default.
    """
    people = arrays.people()
    columns = [PERSON, LABEL, RIGHT]

    def auc(name: str) -> np.ndarray:
        kept = store.kept(
            folder,
            "leaks",
            inputs={"proxy": proxies[name], "labels": arrays.labels, "people": people},
            code=["study.experiment.proxies.leaks"],
            compute=lambda: {
                "auc": leaks(replace(arrays, proxy=proxies[name]))[columns].to_numpy()
            },
        )
        return kept["auc"].ravel()

    cleaned = [f"{column}, class direction removed" for column in columns]
    table = pd.DataFrame(on_all_cores(auc, proxies), columns=columns + cleaned)
    table.insert(0, "proxy", list(proxies))
    return table


def leaks(arrays: Arrays) -> pd.DataFrame:
    """Measure what the proxy tells of the label within a person, and of the person.

    One row for the proxy as it is and one for the proxy without its class direction, which labels remove;
    identities measure, of images that have a label and an identity. Columns ``proxy``, ``same-label AUC within a person``, ``verification AUC``,
    ``right pairs``.
    """
    known = np.isfinite(arrays.labels) & is_known(arrays.identities)
    proxy = arrays.proxy[known]
    labels = whole(arrays.labels[known])
    identities = arrays.identities[known]
    versions = {
        "as it is": proxy,
        "class direction removed": without_class_direction(proxy, labels),
    }
    rows = []
    for name, version in versions.items():
        unit = version / np.linalg.norm(version, axis=1, keepdims=True)
        pairs = pair_similarities(unit, identities)
        row = {
            "proxy": name,
            LABEL: same_label_auc(version, labels, identities),
            PERSON: verification_auc(*pairs),
            RIGHT: right_pairs(*pairs),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def same_label_auc(proxy: np.ndarray, labels, identities) -> float:
    """Measure how well similarity tells same-label pairs of one person: .5 if the proxy is blind to it.

    Area under the ROC curve over all pairs of images of the same identity.
    """
    from sklearn.metrics import roc_auc_score  # which takes a second to import

    unit = proxy / np.linalg.norm(proxy, axis=1, keepdims=True)
    same = []
    cosine = []
    by_person = pd.Series(np.arange(len(labels))).groupby(np.asarray(identities)).indices
    for rows in by_person.values():
        first, second = np.triu_indices(len(rows), 1)
        cosine.append((unit[rows] @ unit[rows].T)[first, second])
        same.append((labels[rows][:, None] == labels[rows])[first, second])
    return float(roc_auc_score(np.concatenate(same), np.concatenate(cosine)))
