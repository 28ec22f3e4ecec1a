"""Intervals and comparisons, by one bootstrap clustered by training set and by person.

The numbers of a study vary for two reasons: other training sets would have been drawn (seeds), and
other people would have been photographed (identities). Every seed tests many identities and every
identity is tested under many seeds, so the two are crossed and neither alone gives an honest
interval. The crossed ("pigeonhole") bootstrap draws seeds with replacement and, independently,
identities with replacement; what a seed says of an identity counts as often as the product of the
two. A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007, shows that its
variance is mildly conservative, whatever the variances of seeds and identities: noise that belongs to
one (seed, identity) pair is counted up to three times, so intervals err on the wide side.

:func:`bootstrap` resamples; all methods, levels, metrics and both test sets share the resamples, so
every comparison is paired. Everything else here is a function of its result:

- an interval is ``point +- t * se``, at 95 %, where ``se`` is the standard deviation over replicates
  and t is Student's quantile with one degree of freedom less than there are seeds or identities,
  whichever are fewer;
- a p value is two-sided and from the same t, so that it is below .05 exactly where the interval leaves
  out 0;
- with one seed or one identity the interval is unbounded (infinite) and p is 1.

So an interval speaks of redraws of the training sets *and* of the people, from the population that
these people were drawn from. It does not speak of another population, and where a metric is a maximum
or minimum over people (the gaps, the worst identity) it is a rough guide only: a resample cannot hold
anyone worse than the worst.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from cid.names import suggest
from study.results.metrics import METRICS, Run, evaluate, ratio, share

CONFIDENCE = 0.95


NOTHING = 1e-12  # differences of equal numbers, summed in another order


@dataclass(frozen=True)
class Replicates:
    """A study and its resamples.

    Attributes
    ----------
    levels : float array, shape (L,)
    methods : list of str
        M of them.
    runs : pandas.DataFrame
        Metrics of every run, from :func:`study.results.metrics.evaluate`.
    point : dict of float arrays, shape (L, M)
        By (test, metric): mean over seeds of the run's metric.
    draws : dict of float arrays, shape (R, L, M)
        By (test, metric): the same over the drawn seeds, of the drawn identities.
    freedom : dict of int
        By (test, metric): degrees of freedom of an interval.
    """

    levels: np.ndarray
    methods: list[str]
    runs: pd.DataFrame
    point: dict[tuple, np.ndarray]
    draws: dict[tuple, np.ndarray]
    freedom: dict[tuple, int]


def bootstrap(
    predictions: pd.DataFrame,
    methods,
    labels,
    identities,
    *,
    metrics=METRICS,
    replicates: int = 1000,
    seed: int = 0,
) -> Replicates:
    """Crossed bootstrap of a study over seeds and identities.

    Parameters
    ----------
    predictions : pandas.DataFrame
        ``level``, ``seed``, ``test``, ``row`` and a column of logits for every method. Every seed must
        have been run at every level and on every test set.
    methods : list of str
    labels, identities : array, shape (n,)
        Of the whole data set, indexed by ``row``.
    metrics : iterable of str
        Keys of :data:`study.results.metrics.METRICS`; all by default.
    replicates : int
        Resamples, at least 2.
    seed : int
        Of the resampling; the same seed gives the same numbers.

    Returns
    -------
    Replicates

    Raises
    ------
    ValueError
        On an unknown metric, a method without scores, scores that are not finite, a seed that lacks a
        level or test set, or fewer than 2 replicates.
    """
    methods, metrics = list(methods), list(metrics)
    for name in metrics:
        if name not in METRICS:
            raise ValueError(
                f"metric {name!r} is unknown{suggest(name, METRICS)}; known: {', '.join(METRICS)}"
            )
    measures = {name: METRICS[name].weighted for name in metrics}
    draws = _draws(predictions, methods, labels, identities, measures, replicates, seed)
    runs = evaluate(predictions, methods, labels, identities, metrics)
    seeds = runs["seed"].nunique()
    people = _people(predictions, identities).groupby(predictions["test"]).nunique()
    point = {}
    for test, rows in runs.groupby("test"):
        for name in metrics:
            means = rows.groupby(["level", "method"])[name].mean().unstack()
            point[test, name] = means[methods].to_numpy()
    freedom = {(test, name): min(seeds, int(people[test])) - 1 for test, name in point}
    return Replicates(np.unique(runs["level"]), methods, runs, point, draws, freedom)


def resample(
    predictions: pd.DataFrame, methods, labels, identities, measures, seed_counts, identity_counts
) -> dict[tuple, np.ndarray]:
    """Values of a study in which every seed and every identity counts as often as told.

    Parameters
    ----------
    predictions, methods, labels, identities
        As in :func:`bootstrap`.
    measures : dict of callable
        ``(run, counts) -> values``: the metrics of one run under every method, shape (R, M), when its
        k people count as often as ``counts``, shape (R, k); NaN where undefined.
    seed_counts : int array, shape (R, S)
        Columns: the seeds of ``predictions``, sorted.
    identity_counts : int array, shape (R, I)
        Columns: the identities of ``predictions``, sorted.

    Returns
    -------
    dict of float arrays, shape (R, L, M)
        By (test, name of the measure): mean over seeds, each as often as it counts, of those runs
        where the measure is defined; NaN where none is.
    """
    methods, labels = list(methods), np.asarray(labels, dtype=float)
    levels, seeds = np.unique(predictions["level"]), np.unique(predictions["seed"])
    people = np.unique(_people(predictions, identities), return_inverse=True)[1]
    counts = np.asarray(identity_counts, dtype=float)
    seed_counts = np.asarray(seed_counts, dtype=float)
    shape = (len(counts), len(levels), len(methods))
    keys = [
        (test, name) for test in np.unique(predictions["test"].astype(str)) for name in measures
    ]
    total, weight = ({key: np.zeros(shape) for key in keys} for _ in range(2))
    runs = predictions.assign(person=people).sort_values("person", kind="stable")
    runs = runs.groupby(["level", "seed", "test"])
    for (level, seed, test), part in tqdm(runs, desc="bootstrap", mininterval=5, delay=2):
        person, starts = np.unique(part["person"], return_index=True)
        rows = part["row"].to_numpy()
        run = Run(rows, labels[rows], part[methods].to_numpy(dtype=float), starts)
        at = np.searchsorted(levels, level)
        drawn = seed_counts[:, [np.searchsorted(seeds, seed)]]
        for name, measure in measures.items():
            values = measure(run, counts[:, person])
            defined = drawn * np.isfinite(values)
            total[test, name][:, at] += np.where(defined > 0, values, 0) * defined
            weight[test, name][:, at] += defined
    return {key: ratio(total[key], weight[key]) for key in keys}


def _draws(predictions, methods, labels, identities, measures, replicates, seed):
    """:func:`resample` with random counts."""
    _check(predictions, methods, replicates)
    rng = np.random.default_rng(seed)
    seed_counts, identity_counts = (
        rng.multinomial(n, np.full(n, 1 / n), size=replicates)
        for n in (predictions["seed"].nunique(), _people(predictions, identities).nunique())
    )
    return resample(
        predictions, methods, labels, identities, measures, seed_counts, identity_counts
    )


def _check(predictions: pd.DataFrame, methods, replicates: int) -> None:
    if replicates < 2:
        raise ValueError(f"replicates is {replicates}; at least 2 are needed, 1000 is usual")
    for method in methods:
        if method not in predictions:
            raise ValueError(
                f"predictions have no column {method!r}{suggest(method, predictions.columns)}; train "
                "that method or leave it out"
            )
        bad = ~np.isfinite(predictions[method].to_numpy(dtype=float))
        if bad.any():
            first = predictions[bad].iloc[0]
            raise ValueError(
                f"predictions of {method!r} are not finite at level {first['level']}, seed "
                f"{first['seed']}, row {first['row']}; train it again"
            )
    there = predictions.groupby(["level", "seed", "test"]).size()
    grid = pd.MultiIndex.from_product(there.index.levels, names=there.index.names)
    if len(missing := grid.difference(there.index)):
        level, seed, test = missing[0]
        raise ValueError(
            f"predictions have no rows of level {level}, seed {seed}, test {test!r}; every seed needs "
            "every level and test set"
        )


def _people(predictions: pd.DataFrame, identities) -> pd.Series:
    return pd.Series(np.asarray(identities)[predictions["row"]], predictions.index)


def interval(point, draws, freedom: int) -> dict[str, np.ndarray]:
    """Student t interval and p value of an estimate from its bootstrap replicates.

    Parameters
    ----------
    point : float array, shape (...)
    draws : float array, shape (R, ...)
        NaN where a replicate is undefined.
    freedom : int
        Degrees of freedom; 0 gives an unbounded interval.

    Returns
    -------
    dict of float arrays, shape (...)
        ``mean`` (the point), ``low``, ``high``, and ``p`` of the hypothesis that it is 0.
    """
    point, draws = np.asarray(point, dtype=float), np.asarray(draws, dtype=float)
    defined = np.isfinite(draws)
    n = defined.sum(axis=0)
    centre = np.where(defined, draws, 0).sum(axis=0) / np.maximum(n, 1)
    squares = (np.where(defined, draws - centre, 0) ** 2).sum(axis=0)
    se = np.sqrt(squares / np.maximum(n - 1, 1))
    if freedom < 1:
        reach, p = np.full(point.shape, np.inf), np.ones(point.shape)
    else:
        se = np.where(n > 1, se, np.inf)
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * se
        tiny = np.maximum(se, NOTHING)
        p = np.where(
            np.maximum(np.abs(point), se) < NOTHING,
            1.0,
            2 * stats.t.sf(np.abs(point) / tiny, freedom),
        )
    p = np.where(np.isnan(point), np.nan, p)
    return {"mean": point, "low": point - reach, "high": point + reach, "p": p}


def fieller(numerator, denominator, numerator_draws, denominator_draws, freedom: int) -> dict:
    """Ratio of two estimates with Fieller's interval.

    The interval holds the ratios r for which ``numerator - r * denominator`` is not significantly
    different from 0: exact under normality. Where the denominator is not clear of 0 it is unbounded,
    the ratio means nothing, and all three values are NaN. E. C. Fieller, "Some problems in interval
    estimation", J. R. Stat. Soc. B 16 (1954).

    Parameters
    ----------
    numerator, denominator : float
    numerator_draws, denominator_draws : float array, shape (R,)
        Paired replicates; their covariance is that of the estimates.
    freedom : int

    Returns
    -------
    dict of float
        ``mean`` (the ratio), ``low``, ``high``.
    """
    undefined = dict.fromkeys(("mean", "low", "high"), np.nan)
    pairs = np.stack([numerator_draws, denominator_draws])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if freedom < 1 or pairs.shape[1] < 2 or not np.isfinite([numerator, denominator]).all():
        return undefined
    covariance = np.cov(pairs)
    t2 = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) ** 2
    # q2 r^2 - 2 q1 r + q0 <= 0
    q2 = denominator**2 - t2 * covariance[1, 1]
    q1 = numerator * denominator - t2 * covariance[0, 1]
    q0 = numerator**2 - t2 * covariance[0, 0]
    if q2 <= NOTHING**2:
        return undefined
    root = np.sqrt(max(q1**2 - q2 * q0, 0.0))
    return {"mean": numerator / denominator, "low": (q1 - root) / q2, "high": (q1 + root) / q2}


def holm(p_values) -> np.ndarray:
    """Holm's step-down adjusted p values, which bound the chance of any false positive.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6 (1979). NaN stands for no test and stays NaN.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    adjusted = np.full(p.shape, np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def summary(replicates: Replicates) -> pd.DataFrame:
    """Mean over seeds of every metric, with its interval.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric, level and method: ``mean``, ``low``, ``high``.
    """
    return _by_level(replicates, lambda values: values, replicates.methods).drop(columns="p")


def difference(replicates: Replicates, baseline: str = "erm") -> pd.DataFrame:
    """As :func:`summary`, for each method's paired difference to the baseline.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric, level and method but the baseline: ``mean``, ``low``, ``high``,
        ``p``, and ``p_holm``, which is adjusted over the methods and levels of a metric and test.

    Raises
    ------
    ValueError
        If the baseline is not among the methods; so do the functions below.
    """
    b = _baseline(replicates, baseline)
    others = [m for m in replicates.methods if m != baseline]
    table = _by_level(replicates, lambda v: np.delete(v - v[..., [b]], b, axis=-1), others)
    table["p_holm"] = table.groupby(["test", "metric"])["p"].transform(holm)
    return table


def sensitivity(replicates: Replicates, baseline: str = "erm") -> pd.DataFrame:
    """Sensitivity to bias: least-squares slope of a metric over the bias level.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric and method: ``mean``, ``low``, ``high`` of the slope; the same with
        the suffix ``_difference`` for the slope minus the baseline's; ``p`` and ``p_holm`` (over the
        methods) of that difference. The baseline's own difference is NaN. Empty with fewer than two
        levels.
    """
    return _over_levels(replicates, slope_weights(replicates.levels), baseline)


def area(replicates: Replicates, baseline: str = "erm") -> pd.DataFrame:
    """Mean level of a metric: the area under its curve over the bias, by the range of the bias.

    Columns as in :func:`sensitivity`. The area is the trapezoids'; with one level it is the metric.
    """
    return _over_levels(replicates, area_weights(replicates.levels), baseline)


def oracle_gap_recovered(
    replicates: Replicates, baseline: str = "erm", oracle: str = "oracle"
) -> pd.DataFrame:
    """Share of the oracle's gain over the baseline that a method reaches, with Fieller's interval.

    NaN where the oracle's own gain is not clear of 0, or is a loss: the share then means nothing.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric, level and method: ``mean``, ``low``, ``high``; and one for the area
        over all levels, whose ``level`` is NaN. Empty if the oracle was not run.
    """
    methods = replicates.methods
    b, rows = _baseline(replicates, baseline), []
    others = [m for m in methods if m not in (baseline, oracle)] if oracle in methods else []
    # One line of coefficients a level, and one for the area.
    lines = np.vstack([np.eye(len(replicates.levels)), area_weights(replicates.levels)])
    for test, metric in replicates.point:
        gain, draws = (
            v - v[..., [b]] for v in _contract(replicates, (test, metric), "kl,...lm->...km", lines)
        )
        for k, level in enumerate([*replicates.levels, np.nan]):
            for method in others:
                m, whole = methods.index(method), methods.index(oracle)
                share = _share_of_gain(replicates, (test, metric), gain[k], draws[:, k], m, whole)
                where = {"test": test, "metric": metric, "level": level, "method": method}
                rows.append(where | share)
    return pd.DataFrame(rows, columns=["test", "metric", "level", "method", *_INTERVAL])


def sensitivity_removed(replicates: Replicates, baseline: str = "erm") -> pd.DataFrame:
    """Share of the baseline's sensitivity to bias that a method removes, with Fieller's interval.

    ``(slope of the baseline - slope of the method) / slope of the baseline``: 0 is as sensitive as
    the baseline, 1 not at all, above 1 the metric improves with the bias. NaN where the baseline's
    slope is not clear of 0, or its metric improves with the bias.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric and method but the baseline: ``mean``, ``low``, ``high``. Empty with
        fewer than two levels.
    """
    methods = replicates.methods
    b, rows = _baseline(replicates, baseline), []
    weights = slope_weights(replicates.levels)
    for test, metric in replicates.point if weights is not None else ():
        slope, draws = _contract(replicates, (test, metric), "l,...lm->...m", weights)
        # The baseline's slope is a loss; a flat curve would gain all of it, the last column.
        gain = np.append(slope - slope[b], -slope[b])
        draws = np.column_stack([draws - draws[:, [b]], -draws[:, b]])
        for m, method in enumerate(methods):
            if method != baseline:
                share = _share_of_gain(replicates, (test, metric), gain, draws, m, -1)
                rows.append({"test": test, "metric": metric, "method": method} | share)
    return pd.DataFrame(rows, columns=["test", "metric", "method", *_INTERVAL])


def accuracy_by_group(
    predictions: pd.DataFrame,
    methods,
    labels,
    identities,
    groups,
    *,
    baseline: str = "erm",
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy by demographic group, and the gap between the best-served group and the worst.

    A gap is a maximum minus a minimum, so it is above 0 by chance alone, the more so the smaller the
    groups; look at its difference between two methods, or at the groups themselves.

    Parameters
    ----------
    predictions, methods, labels, identities, replicates, seed
        As in :func:`bootstrap`.
    groups : pandas.DataFrame or dict of arrays, shape (n,)
        Demographic columns of the whole data set, indexed by ``row``; an image whose group is missing
        is left out.
    baseline : str

    Returns
    -------
    pandas.DataFrame
        One row per test, column, group, level and method: ``people`` of the group in the test set;
        ``mean``, ``low``, ``high``; ``mean_difference``, ``low_difference``, ``high_difference``,
        ``p`` and ``p_holm`` (over methods and levels) of the paired difference to the baseline. The
        row of the gap has the group ``gap`` and the people of the smallest group. Degrees of freedom
        follow the seeds or the people of the group, whichever are fewer. Empty without columns.

    Raises
    ------
    ValueError
        As :func:`bootstrap` and :func:`difference` do.
    """
    methods, first = list(methods), ["test", "column", "group", "people", "level", "method"]
    identities, rows = np.asarray(identities), predictions["row"].to_numpy()
    measures, people = {}, {}
    for column in groups:
        codes, names = pd.factorize(pd.Series(groups[column]), sort=True)
        names = [str(name) for name in names]
        measures |= {(column, name): _group_accuracy(codes, g) for g, name in enumerate(names)}
        measures[column, "gap"] = _group_gap(codes, len(names))
        for test in predictions["test"].unique():
            at = rows[predictions["test"] == test]
            found = [len(set(identities[at[codes[at] == g]])) for g in range(len(names))]
            people |= {(test, (column, name)): n for name, n in zip(names, found, strict=True)}
            people[test, (column, "gap")] = min((n for n in found if n), default=0)
    if not measures:
        return pd.DataFrame(columns=[*first, *_INTERVAL, *_DIFFERENCE])
    about = (predictions, methods, labels, identities, measures)
    draws = _draws(*about, replicates, seed)
    n_seeds, n_people = predictions["seed"].nunique(), np.unique(identities[rows]).size
    once = resample(*about, np.ones((1, n_seeds)), np.ones((1, n_people)))
    freedom = {key: min(n_seeds, n) - 1 for key, n in people.items()}
    study = Replicates(
        np.unique(predictions["level"]),
        methods,
        pd.DataFrame(),
        {key: values[0] for key, values in once.items()},
        draws,
        freedom,
    )
    table = _beside(summary(study), difference(study, baseline), ["level"])
    keys = list(zip(table["test"], table["metric"], strict=True))
    table["people"] = [people[key] for key in keys]
    table["column"], table["group"] = zip(*table["metric"], strict=True)
    return table[[*first, *_INTERVAL, *_DIFFERENCE]]


def _group_accuracy(codes: np.ndarray, group: int) -> Callable:
    return lambda run, counts: share(run, counts, run.right, codes[run.row] == group)


def _group_gap(codes: np.ndarray, n_groups: int) -> Callable:
    def measure(run: Run, counts: np.ndarray) -> np.ndarray:
        shares = np.stack([_group_accuracy(codes, g)(run, counts) for g in range(n_groups)])
        return np.fmax.reduce(shares) - np.fmin.reduce(shares)  # both pass over groups not drawn

    return measure


def slope_weights(levels) -> np.ndarray | None:
    """Coefficients whose product with a curve over the levels is its least-squares slope.

    None with fewer than two levels.
    """
    centred = np.asarray(levels, dtype=float) - np.mean(levels)
    return centred / (centred @ centred) if len(centred) > 1 else None


def area_weights(levels) -> np.ndarray:
    """Coefficients whose product with a curve is its area (trapezoids) by the range of the levels."""
    levels = np.asarray(levels, dtype=float)
    if len(levels) == 1:
        return np.ones(1)
    steps = np.diff(levels) / 2
    return (np.append(steps, 0) + np.insert(steps, 0, 0)) / np.ptp(levels)


_INTERVAL = ["mean", "low", "high"]


_DIFFERENCE = [*(f"{name}_difference" for name in _INTERVAL), "p", "p_holm"]


def _baseline(replicates: Replicates, baseline: str) -> int:
    if baseline not in replicates.methods:
        raise ValueError(
            f"baseline {baseline!r} is not among the methods {', '.join(replicates.methods)}; add it "
            "to methods"
        )
    return replicates.methods.index(baseline)


def _contract(replicates: Replicates, key: tuple, formula: str, weights) -> list[np.ndarray]:
    """Point and replicates of linear combinations over the levels."""
    return [np.einsum(formula, weights, v[key]) for v in (replicates.point, replicates.draws)]


def _share_of_gain(replicates, key, gain, draws, part: int, whole: int) -> dict[str, float]:
    """Ratio of two columns of ``gain``; undefined unless the whole is clearly a gain."""
    sign = 1 if METRICS[key[1]].better == "higher" else -1
    if not sign * gain[whole] > 0:
        return dict.fromkeys(_INTERVAL, np.nan)
    return fieller(
        gain[part], gain[whole], draws[:, part], draws[:, whole], replicates.freedom[key]
    )


def _by_level(replicates: Replicates, transform: Callable, methods: list[str]) -> pd.DataFrame:
    """Intervals of ``transform`` of the (..., L, M) arrays, whose last axis becomes ``methods``."""
    n = len(replicates.levels)
    tables = []
    for (test, metric), point in replicates.point.items():
        found = interval(
            transform(point),
            transform(replicates.draws[test, metric]),
            replicates.freedom[test, metric],
        )
        tables.append(
            pd.DataFrame(
                {
                    "test": test,
                    "metric": [metric] * (n * len(methods)),
                    "level": np.repeat(replicates.levels, len(methods)),
                    "method": methods * n,
                }
                | {name: values.ravel() for name, values in found.items()}
            )
        )
    return pd.concat(tables, ignore_index=True)


def _over_levels(replicates: Replicates, weights, baseline: str) -> pd.DataFrame:
    """Table of one linear combination over the levels, and of its difference to the baseline."""
    _baseline(replicates, baseline)
    if weights is None:
        return pd.DataFrame(columns=["test", "metric", "method", *_INTERVAL, *_DIFFERENCE])
    point, draws = (
        {key: np.einsum("l,...lm->...m", weights, v)[..., None, :] for key, v in of.items()}
        for of in (replicates.point, replicates.draws)
    )
    folded = replace(replicates, levels=np.zeros(1), point=point, draws=draws)
    return _beside(summary(folded), difference(folded, baseline), []).drop(columns="level")


def _beside(table: pd.DataFrame, apart: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A summary with its difference to the baseline in the columns of suffix ``_difference``."""
    keys = ["test", "metric", *keys, "method"]
    apart = apart.rename(columns={name: f"{name}_difference" for name in _INTERVAL})
    return table.merge(apart[[*keys, *_DIFFERENCE]], on=keys, how="left")
