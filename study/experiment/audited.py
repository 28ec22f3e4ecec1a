"""Can it be known without identities? The audit of :mod:`cid.auditing` beside the truth.

The audit gets what a user without identities has: the training images, test images that are as biased as
these (:func:`as_biased`), their labels and the predictions. The truth is of all held-out images of seen
people, which are balanced, by the true identities. Nothing is trained, and nothing is chosen by this.

How the images are thinned to the bias of training is chance, and few of a minority cell stay. Intervals and
refusals are those of one audit. Estimates are the mean over all ways to thin: which images the audit flags
does not depend on it, so it is a weighted mean over all held-out images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cid.auditing import FEWEST as FEWEST_FLAGGED
from cid.auditing import MEASURES, audit, refusal
from study import store
from study.cores import on_all_cores
from study.experiment.arrays import whole
from study.experiment.design import number_of_classes
from study.experiment.proxies import degraded
from study.experiment.scores import predicted, scores_of
from study.faces.verification import pair_similarities, right_pairs, verification_auc

AS_IT_IS = "as it is"
BASELINE = "erm"  # that differences are to
# How many sets of a level are audited: until they have this many biased test images of minority cells ...
RARE = 200
FEWEST, MOST = 3, 30  # ... but no fewer than these, and no more ...
IMAGES = 5000  # ... and none once they have this many biased test images
OTHERS = 3  # sets with proxies other than the study's


def as_biased(test_rows, train_rows, labels, people, seed: int) -> np.ndarray:
    """Thin test images until each person's classes are as frequent as in training: bool (m,).

    A test image counts with the size of its (person, class) cell in training over that of the person's
    largest cell, and systematic sampling keeps as many images, person by person and class by class.
    ``numpy.random.default_rng([seed, 4])`` draws where it starts and the order of a cell's images.

    Parameters
    ----------
    test_rows, train_rows : int array, shape (m,) and (n,)
        Rows of the data set.
    labels, people : int array
        Of the whole data set: classes from 0, and codes from 0.
    seed : int

    Examples
    --------
    >>> labels, people = np.array([0, 0, 1, 0, 1]), np.zeros(5, dtype=int)
    >>> as_biased([3, 4], [0, 1], labels, people, seed=0)  # nobody has the label 1 in training
    array([ True, False])
    """
    chance = _chances(test_rows, train_rows, labels, people)
    rng = np.random.default_rng([seed, 4])
    order = np.lexsort((rng.random(len(chance)), labels[test_rows], people[test_rows]))
    passed = np.floor(np.concatenate([[0], chance[order].cumsum()]) + rng.random())
    keep = np.zeros(len(chance), dtype=bool)
    keep[order] = np.diff(passed) > 0
    return keep


def _chances(test_rows, train_rows, labels, people) -> np.ndarray:
    """The size of every test image's cell in training over that of its person's largest cell."""
    cells = np.zeros((people.max() + 1, number_of_classes(labels)))
    np.add.at(cells, (people[train_rows], labels[train_rows]), 1)
    own = cells[people[test_rows], labels[test_rows]]
    largest = cells[people[test_rows]].max(axis=1)
    return own / np.maximum(largest, 1)


def true_measures(correct, minority, people, shares) -> dict[str, np.ndarray]:
    """Measure what the audit estimates, by the true identities: (methods,) for each measure.

    Parameters
    ----------
    correct : bool array, shape (m, methods)
        Of balanced test images.
    minority : array, shape (m,)
        1 where the label is the one rare for its person in training, 0 where not, NaN where there is none.
    people : int array, shape (m,)
    shares : array, shape (m,)
        How often images like this one are in a set as biased as training.

    Returns
    -------
    dict
        ``minority``, ``majority`` and ``balanced`` accuracy, and ``spread``: the standard deviation over
        people of the accuracy on images that occur as in training, from the errors that two images of one
        person have in common. NaN where a measure has no image.
    """
    correct = np.asarray(correct, dtype=float)
    everything = np.ones(len(correct), dtype=bool)
    parts = {"minority": minority == 1, "majority": minority == 0, "balanced": everything}
    nothing = np.full(correct.shape[1], np.nan)
    means = {
        name: correct[part].mean(axis=0) if part.any() else nothing for name, part in parts.items()
    }
    deviation = shares[:, None] * (correct - np.average(correct, axis=0, weights=shares))
    pairs = _over_pairs(shares[:, None], people)
    spread = np.sqrt((_over_pairs(deviation, people) / pairs).clip(min=0)) if pairs else nothing
    return means | {"spread": spread}


def _over_pairs(values: np.ndarray, people) -> np.ndarray:
    """Sums (k,) of the products of values (m, k) over ordered pairs of images of one person."""
    codes = np.unique(people, return_inverse=True)[1]
    sums = np.zeros((codes.max() + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    return (sums**2).sum(axis=0) - (values**2).sum(axis=0)


def audit_study(
    predictions: pd.DataFrame,
    sets: pd.DataFrame,
    proxy,
    labels,
    identities,
    methods: Sequence[str],
    *,
    noise: Sequence[float] = (),
    noise_level: float | None = None,
    replicates: int = 1000,
    folder: str | Path | None = None,
) -> dict[str, pd.DataFrame]:
    """Audit the predictions of a study, and compare with the truth.

    Parameters
    ----------
    predictions, sets : pandas.DataFrame
        Of the stages ``train`` and ``weights``.
    proxy : array, shape (n, d)
        Of the whole data set, like labels and identities (n,).
    methods : sequence of str
        Columns of the predictions.
    noise, noise_level : sequence of float, float
        At this bias level also with the proxies of :func:`study.experiment.proxies.degraded`.
    replicates : int
        Resamples behind the audit's intervals.
    folder : path, optional
        Where finished audits are kept.

    Returns
    -------
    dict
        ``audit``, one row a level, proxy, method and measure: ``estimate`` of the audit in the mean over
        sets and ways to thin; ``low`` and ``high`` of one audit, in the mean over sets, and the ``truth``; ``plain``, the accuracy on the same biased images; the number
        of ``images`` of one audit that the estimate rests on; ``covered``, the share of sets in which the
        interval holds the truth, and ``difference_covered``, the same of the difference to ERM.
        ``audit-quality``, one row a level and proxy: see :func:`quality`.
    """
    labels = whole(labels)
    people = np.unique(identities, return_inverse=True)[1]
    first = [BASELINE] if BASELINE in methods else []
    methods = first + [method for method in methods if method != BASELINE]
    seen = predictions[predictions["test"] == "seen"]
    sets = sets.loc[sets["part"] == "train", ["level", "seed", "row"]]
    tasks = []
    for level, tested in seen.groupby("level"):
        proxies = {AS_IT_IS: proxy}
        if noise_level is not None and np.isclose(level, noise_level, atol=1e-3) and len(noise):
            proxies = degraded(proxy, identities, noise)
        chosen = _first_sets(tested, sets[sets["level"] == level], labels, people)
        told_apart = _verification(proxies, people, chosen[0])
        for name, embeddings in proxies.items():
            some = chosen if name == AS_IT_IS else chosen[:OTHERS]
            tasks += [(level, name, told_apart[name], embeddings, one) for one in some]

    def audited(task) -> pd.DataFrame:
        level, name, verification, embeddings, one = task
        table = _audited_set(one, embeddings, labels, people, methods, replicates, folder)
        return table.assign(level=level, proxy=name, **verification)

    found = pd.concat(on_all_cores(audited, tasks, label="audit"), ignore_index=True)
    return {"audit": _over_sets(found), "audit-quality": quality(found)}


def _first_sets(tested: pd.DataFrame, train: pd.DataFrame, labels, people) -> list[dict]:
    """The sets of a level that are audited: their training rows and biased test images."""
    chosen = []
    rare = images = 0
    by_seed = dict(list(train.groupby("seed")["row"]))
    for seed, test in tested.groupby("seed"):
        train_rows = by_seed[seed].to_numpy()
        keep = as_biased(test["row"].to_numpy(), train_rows, labels, people, int(seed))
        chosen.append({"seed": int(seed), "train": train_rows, "test": test, "biased": keep})
        rare += (test["minority"].to_numpy()[keep] == 1).sum()
        images += keep.sum()
        enough = rare >= RARE and len(chosen) >= FEWEST
        if enough or len(chosen) == MOST or images >= IMAGES:
            break
    return chosen


def _verification(proxies: dict[str, np.ndarray], people, one: dict) -> dict[str, dict[str, float]]:
    """How well every proxy tells people apart, on the test images of one set: all are of known people.

    By proxy: ``auc``, and ``right_pairs``, the share of pairs of one person that is found with one false
    match in a thousand.
    """
    rows = one["test"]["row"].to_numpy()
    found = {}
    for name, proxy in proxies.items():
        unit = proxy[rows] / np.linalg.norm(proxy[rows], axis=1, keepdims=True)
        pairs = pair_similarities(unit, people[rows])
        found[name] = {"auc": verification_auc(*pairs), "right_pairs": right_pairs(*pairs)}
    return found


def _audited_set(
    one: dict, proxy, labels, people, methods: list[str], replicates: int, folder
) -> pd.DataFrame:
    """One audit beside the truth: one row a method and measure."""
    test = one["test"]
    rows = test["row"].to_numpy()
    given = {
        "embeddings": np.ascontiguousarray(proxy[one["train"]]),
        "labels": labels[one["train"]],
        "test_embeddings": np.ascontiguousarray(proxy[rows]),
        "test_labels": labels[rows],
        "biased": one["biased"],
        "shares": _chances(rows, one["train"], labels, people),
        "people": people[rows],
        "minority": test["minority"].to_numpy(dtype=float),
        "methods": methods,
        "classes": predicted(scores_of(test, methods)),
        "seed": one["seed"],
        "replicates": replicates,
    }
    kept = store.kept(
        folder,
        "audit",
        given,
        code=["study.experiment.audited._compare"],
        compute=lambda: _compare(**given),
    )
    table = pd.MultiIndex.from_product([methods, MEASURES], names=["method", "measure"]).to_frame()
    for name, values in kept.items():
        table[name] = _column(values, len(methods))
    return table.reset_index(drop=True).assign(seed=one["seed"])


def _column(values, methods: int) -> np.ndarray:
    """Values of methods and measures, of methods, or of the audit as a whole, for every row of a table."""
    values = np.asarray(values)
    values = values.reshape(values.shape + (1,) * (2 - values.ndim))
    return np.broadcast_to(values, (methods, len(MEASURES))).ravel()


def _compare(
    *,
    embeddings,
    labels,
    test_embeddings,
    test_labels,
    biased,
    shares,
    people,
    minority,
    methods,
    classes,
    seed,
    replicates,
) -> dict[str, np.ndarray]:
    """Audit one set and measure the truth: arrays of shape (methods, measures), (methods,) or ()."""
    correct = classes == test_labels[:, None]
    found = audit(
        embeddings,
        labels,
        test_embeddings[biased],
        test_labels[biased],
        {method: classes[biased, place] for place, method in enumerate(methods)},
        seed=seed,
        bootstrap=replicates,
    )
    estimates = {(row.model, row.measure): row for row in found.estimates}
    to_baseline = {
        (row.model, row.measure): row for row in found.differences if row.against == methods[0]
    }
    shape = (len(methods), len(MEASURES))
    arrays = {
        name: np.full(shape, np.nan)
        for name in ("estimate", "low", "high", "images", "difference_low", "difference_high")
    }
    for at, key in enumerate((method, measure) for method in methods for measure in MEASURES):
        place = np.unravel_index(at, shape)
        if key in estimates:
            row = estimates[key]
            arrays["estimate"][place] = row.estimate
            arrays["low"][place] = row.low
            arrays["high"][place] = row.high
            arrays["images"][place] = row.images
        if key in to_baseline:
            arrays["difference_low"][place] = to_baseline[key].low
            arrays["difference_high"][place] = to_baseline[key].high
    truth = true_measures(correct, minority, people, shares)
    everything = {methods[0]: classes[:, 0]}
    flags = audit(
        embeddings, labels, test_embeddings, test_labels, everything, seed=seed, bootstrap=20
    ).flagged
    for measure, values in _expected(flags, shares, correct).items():
        arrays["estimate"][:, MEASURES.index(measure)] = values
    rare = minority == 1
    enough = {**found.signs, "flagged_images": FEWEST_FLAGGED}
    return arrays | {
        "truth": np.stack([truth[measure] for measure in MEASURES], axis=1),
        "plain": _weighted_mean(correct, shares),
        "tested": np.array(biased.sum()),
        "flagged": np.array(found.flagged.sum()),
        "found": _weighted_mean(flags, shares * rare),
        "false": _weighted_mean(flags, shares * ~rare),
        "refused": np.array(found.refusal is not None),
        "distrusted": np.array(refusal(enough) is not None),
    }


def _expected(flags, shares, correct) -> dict[str, np.ndarray]:
    """What the audit estimates in the mean over all ways to thin the images: (methods,) for a measure."""
    minority = _weighted_mean(correct, shares * flags)
    majority = _weighted_mean(correct, shares * ~flags)
    return {"minority": minority, "majority": majority, "balanced": (minority + majority) / 2}


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over the first axis; NaN where nothing has a weight."""
    if not weights.any():
        return np.full(values.shape[1:], np.nan)
    return np.average(values.astype(float), axis=0, weights=weights)


def _over_sets(found: pd.DataFrame) -> pd.DataFrame:
    """Means over sets of every level, proxy, method and measure."""
    keys = ["level", "proxy", "method", "measure"]
    truth = found["truth"]
    own = found["method"] == found["method"].iloc[0]
    baseline = found[own].set_index(["level", "proxy", "measure", "seed"])["truth"]
    of_row = pd.MultiIndex.from_frame(found[["level", "proxy", "measure", "seed"]])
    gain = truth - baseline.reindex(of_row).to_numpy()
    table = found.assign(
        covered=_inside(truth, found["low"], found["high"]),
        difference_covered=_inside(gain, found["difference_low"], found["difference_high"]),
    )
    columns = [
        "estimate",
        "low",
        "high",
        "truth",
        "plain",
        "images",
        "covered",
        "difference_covered",
    ]
    return table.groupby(keys, sort=False)[columns].mean().reset_index()


def _inside(values: pd.Series, low: pd.Series, high: pd.Series) -> pd.Series:
    """1 where an interval holds a value, 0 where not, NaN where one of them is unknown."""
    known = values.notna() & low.notna() & high.notna()
    return ((low <= values) & (values <= high)).astype(float).where(known)


def quality(found: pd.DataFrame) -> pd.DataFrame:
    """Judge audits over methods, one row a level and proxy.

    Parameters
    ----------
    found : pandas.DataFrame
        One row a set, method and measure, with the columns of :func:`_compare`.

    Returns
    -------
    pandas.DataFrame
        ``level``, ``proxy``; ``auc`` of verification and ``right_pairs``, the share of pairs of one person
        that is found with one false match in a thousand; number of ``sets``; of one audit the ``tested`` and
        ``flagged`` images; the share of true minority images that was ``found`` and of others that was
        flagged, ``false``; the share of audits that was ``refused``, and that would have been with as many
        flagged images as are needed, because of the proxy: ``distrusted``. For the ``minority`` and ``balanced``
        accuracy, in the mean over sets: ``rank_...``, the rank correlation of estimate and truth over
        methods, and ``plain_rank_...``, the same of the plain accuracy; ``error_...``, the mean error over
        methods, and ``scatter_...``, the standard deviation of the error over methods, likewise with
        ``plain_``; ``covered_...`` and ``difference_covered_...``: as in :func:`audit_study`, over methods.
    """
    means = _over_sets(found)
    rows = []
    for (level, proxy), part in found.groupby(["level", "proxy"], sort=False):
        of_audit = part.drop_duplicates("seed")
        row = {
            "level": level,
            "proxy": proxy,
            "auc": part["auc"].iloc[0],
            "right_pairs": part["right_pairs"].iloc[0],
            "sets": len(of_audit),
            **of_audit[["tested", "flagged", "found", "false", "refused", "distrusted"]]
            .astype(float)
            .mean(),
        }
        own = means[(means["level"] == level) & (means["proxy"] == proxy)]
        for measure in ("minority", "balanced"):
            row |= _agreement(own[own["measure"] == measure], measure)
        rows.append(row)
    return pd.DataFrame(rows)


def _rank_correlation(one: pd.Series, other: pd.Series) -> float:
    """Spearman's rank correlation; NaN where one of the two is the same everywhere."""
    if min(one.nunique(), other.nunique()) < 2:
        return float("nan")
    return one.corr(other, method="spearman")


def _agreement(methods: pd.DataFrame, measure: str) -> dict[str, float]:
    """How well estimates of one measure agree with the truth over methods."""
    found = {}
    for prefix, column in (("", "estimate"), ("plain_", "plain")):
        error = methods[column] - methods["truth"]
        found[f"{prefix}rank_{measure}"] = _rank_correlation(methods[column], methods["truth"])
        found[f"{prefix}error_{measure}"] = error.mean()
        found[f"{prefix}scatter_{measure}"] = error.std(ddof=0)
    found[f"covered_{measure}"] = methods["covered"].mean()
    found[f"difference_covered_{measure}"] = methods["difference_covered"].mean()
    return found
