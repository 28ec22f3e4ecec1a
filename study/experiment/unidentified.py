"""A study of images of which nobody knows whom they show, judged by :mod:`cid.auditing` and nothing else.

Every set is a random split into training images and held-out images, which are as biased as these
(:func:`study.experiment.design.draw_images`). The audit gets class labels, embeddings and predictions. No
person is guessed: what cannot be known without identities is not computed.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cid.auditing import Audit, audit
from study import store
from study.cores import on_all_cores
from study.experiment.arrays import whole
from study.experiment.scores import predicted, scores_of

BASELINE = "erm"  # that differences are to
MEASURES = ("minority", "majority", "balanced")  # of the audit: all but the spread over people
ENOUGH = 0.5  # share of the splits from which on a refusal is that of the study
ESTIMATE = ("mean", "low", "high")


def audit_held_out(
    predictions: pd.DataFrame,
    sets: pd.DataFrame,
    proxy,
    labels,
    methods: Sequence[str],
    *,
    replicates: int = 1000,
    folder: str | Path | None = None,
) -> dict[str, pd.DataFrame]:
    """Audit the predictions of every split.

    Parameters
    ----------
    predictions, sets : pandas.DataFrame
        Of the stages ``train`` and ``weights``.
    proxy : array, shape (n, d)
        Of the whole data set, like labels (n,).
    methods : sequence of str
        Columns of the predictions.
    replicates : int
        Resamples behind the audit's intervals.
    folder : path, optional
        Where finished audits are kept.

    Returns
    -------
    dict
        ``audited``, one row a method and measure of :data:`MEASURES`: ``mean``, ``low`` and ``high`` of the
        audit, and the test ``images`` that it rests on, each in the mean over splits. Splits share their images,
        so the interval is that of one audit. ``audited-gains``: the same of the difference
        to ERM, and ``smallest``, the true difference that one audit would find with probability .8.
        ``splits``, one row a split: numbers of images, the signs that trust rests on, whether the audit
        is ``trusted``, and if not, why: ``refusal``.
    """
    labels = whole(labels)
    methods = [BASELINE, *(method for method in methods if method != BASELINE)]
    train = dict(list(sets[sets["part"] == "train"].groupby("seed")["row"]))

    def audited(split) -> dict[str, pd.DataFrame]:
        seed, test = split
        rows = test["row"].to_numpy()
        given = {
            "embeddings": np.ascontiguousarray(proxy[train[seed]]),
            "labels": labels[train[seed]],
            "test_embeddings": np.ascontiguousarray(proxy[rows]),
            "test_labels": labels[rows],
            "methods": methods,
            "classes": predicted(scores_of(test, methods)),
            "seed": int(seed),
            "replicates": replicates,
        }
        code = ["study.experiment.unidentified._audit"]
        kept = store.kept(folder, "held-out", given, code, lambda: _audit(**given))
        return _tables(kept, int(seed), len(rows))

    splits = list(predictions.groupby("seed"))
    found = on_all_cores(audited, splits, label="audit")
    joined = {name: pd.concat([one[name] for one in found]) for name in found[0]}
    keys = ["method", "measure"]
    return {
        name: table if name == "splits" else table.groupby(keys, sort=False).mean().reset_index()
        for name, table in joined.items()
    }


def _audit(
    *, embeddings, labels, test_embeddings, test_labels, methods, classes, seed, replicates
) -> dict[str, np.ndarray]:
    """Audit one split; ERM is the first of the methods. Arrays by name, as :mod:`study.store` keeps them."""
    found = audit(
        embeddings,
        labels,
        test_embeddings,
        test_labels,
        {method: classes[:, place] for place, method in enumerate(methods)},
        seed=seed,
        bootstrap=replicates,
    )
    return _arrays(found)


def _arrays(found: Audit) -> dict[str, np.ndarray]:
    estimates = [row for row in found.estimates if row.measure in MEASURES]
    gains = [row for row in found.differences if row.measure in MEASURES]
    gains = [row for row in gains if row.against == BASELINE]
    return {
        "of": np.array([(row.model, row.measure) for row in estimates]),
        "estimates": np.array([(r.estimate, r.low, r.high, r.images) for r in estimates]),
        "gains_of": np.array([(row.model, row.measure) for row in gains]),
        "gains": np.array([(r.difference, r.low, r.high, r.smallest) for r in gains]),
        "signs_of": np.array(list(found.signs)),
        "signs": np.array(list(found.signs.values()), dtype=float),
        "refusal": np.array(found.refusal or ""),
    }


def _tables(kept: dict[str, np.ndarray], seed: int, images: int) -> dict[str, pd.DataFrame]:
    """One audit as the tables of :func:`audit_held_out`."""
    of = pd.DataFrame(kept["of"], columns=["method", "measure"])
    gains_of = pd.DataFrame(kept["gains_of"], columns=["method", "measure"])
    estimates = pd.DataFrame(kept["estimates"], columns=[*ESTIMATE, "images"])
    gains = pd.DataFrame(kept["gains"], columns=[*ESTIMATE, "smallest"])
    split = {
        "seed": seed,
        "images": images,
        **dict(zip(kept["signs_of"].tolist(), kept["signs"].tolist(), strict=True)),
        "trusted": not str(kept["refusal"]),
        "refusal": str(kept["refusal"]),
    }
    return {
        "audited": pd.concat([of, estimates], axis=1),
        "audited-gains": pd.concat([gains_of, gains], axis=1),
        "splits": pd.DataFrame([split]),
    }


def refusal(splits: pd.DataFrame) -> str:
    """Why the audits of a study must not be trusted, by most of its splits; "" where they may be."""
    refused = splits.loc[~splits["trusted"], "refusal"]
    if len(refused) < ENOUGH * len(splits):
        return ""
    return refused.mode().iloc[0]
