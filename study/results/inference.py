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
- a p value is two-sided and from the same t: below .05 exactly where the interval leaves out 0;
- with one seed or one identity the interval is unbounded (infinite) and p is 1.

So an interval speaks of redraws of the training sets *and* of the people, from the population that
these people were drawn from. It does not speak of another population, and where a metric is a maximum
or minimum over people (the gaps, the worst identity) it is a rough guide only: a resample cannot hold
anyone worse than the worst.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from cid.names import find, suggest
from study import source, store
from study.results.metrics import METRICS, Run, cells, evaluate, ratio, runs, share

CONFIDENCE = 0.95
BASELINE, ORACLE = "erm", "oracle"  # what differences are to, and what is the most there is to gain
NOTHING = 1e-12  # differences of equal numbers, summed in another order

_WHERE, _INTERVAL = ["test", "metric", "level", "method"], ["mean", "low", "high"]
_DIFFERENCE = [*(f"{name}_difference" for name in _INTERVAL), "p", "p_holm"]
_UNDEFINED = dict.fromkeys(_INTERVAL, np.nan)


@dataclass(frozen=True)
class Replicates:
    """A study of L levels and M methods, and its R resamples.

    Attributes
    ----------
    levels : array, shape (L,)
        The bias levels, rising; with another ``cell``, its values in order of appearance.
    methods : list of str
    runs : pandas.DataFrame
        Metrics of every run, from :func:`study.results.metrics.evaluate`.
    point, draws : dict of float arrays, shapes (L, M) and (R, L, M)
        By (test, metric): mean over seeds of the run's metric; and the same over the drawn seeds, of
        the drawn identities.
    freedom : dict of int
        By (test, metric): degrees of freedom of an interval.
    cell : str
        What ``levels`` are: the column of that name in every table.
    """

    levels: np.ndarray
    methods: list[str]
    runs: pd.DataFrame
    point: dict[tuple, np.ndarray]
    draws: dict[tuple, np.ndarray]
    freedom: dict[tuple, int]
    cell: str = "level"


def bootstrap(
    predictions: pd.DataFrame,
    methods,
    labels,
    identities,
    *,
    metrics=METRICS,
    replicates: int = 1000,
    seed: int = 0,
    cell: str = "level",
    folder: str | Path | None = None,
) -> Replicates:
    """Crossed bootstrap of a study over seeds and identities.

    Parameters
    ----------
    predictions, methods, labels, identities, metrics, cell
        As in :func:`study.results.metrics.evaluate`. Every seed must have been run in every cell and
        on every test set.
    replicates, seed : int
        Resamples, at least 2, and the seed that decides which.
    folder : path, optional
        Where draws are kept (:mod:`study.store`), so that they are not drawn twice.

    Raises
    ------
    ValueError
        On an unknown metric, a method without scores, scores that are not finite, a seed that lacks a
        level or test set, or fewer than 2 replicates.
    """
    methods, metrics = list(methods), list(metrics)
    measures = {name: find("metric", name, METRICS).measure for name in metrics}
    about = (predictions, methods, labels, identities)
    _check(predictions, methods, replicates, cell)

    def compute() -> dict[str, np.ndarray]:
        found = _draws(*about, measures, replicates, seed, cell)
        return {"/".join(key): values for key, values in found.items()}

    key = None if folder is None else _key(*about, metrics, replicates, seed, cell)
    draws = {tuple(k.split("/")): v for k, v in store.kept(folder, f"draws-{key}", compute).items()}
    table, levels = evaluate(*about, metrics, cell), cells(predictions, cell)
    means = table.groupby(["test", cell, "method"])[metrics].mean()
    order = pd.MultiIndex.from_product([levels, methods])
    point = {
        (test, name): means.loc[test][name].loc[order].to_numpy().reshape(len(levels), -1)
        for test, name in draws
    }
    seeds = table["seed"].nunique()
    people = _people(predictions, identities).groupby(predictions["test"].astype(str)).nunique()
    freedom = {(test, name): min(seeds, int(people[test])) - 1 for test, name in point}
    return Replicates(levels, methods, table, point, draws, freedom, cell)


def resample(
    predictions, methods, labels, identities, measures, seed_counts, identity_counts, cell="level"
) -> dict[tuple, np.ndarray]:
    """Values of a study in which every seed and every identity counts as often as told.

    ``measures`` are by name and as :attr:`study.results.metrics.Metric.measure`. The counts, shapes
    (R, S) and (R, I), have a column for every seed and identity of ``predictions``, sorted. All else
    is as in :func:`bootstrap`.

    Returns
    -------
    dict of float arrays, shape (R, L, M)
        By (test, name of the measure): mean over seeds, each as often as it counts, of those runs
        where the measure is defined; NaN where none is.
    """
    from tqdm import tqdm  # late: figures and tables import this module and resample nothing

    levels, seeds = cells(predictions, cell).tolist(), np.unique(predictions["seed"])
    people = np.unique(_people(predictions, identities))
    counts = np.asarray(identity_counts, dtype=float)
    shape = (len(counts), len(levels), len(methods))
    keys = list(product(np.unique(predictions["test"].astype(str)), measures))
    total, weight = ({key: np.zeros(shape) for key in keys} for _ in range(2))
    every = runs(predictions, methods, labels, identities, cell)
    for (value, seed, test), run in tqdm(every, desc="bootstrap", mininterval=5, delay=2):
        at, person = levels.index(value), np.searchsorted(people, run.people)
        drawn = seed_counts[:, [np.searchsorted(seeds, seed)]]
        for name, measure in measures.items():
            values = measure(run, counts[:, person])
            defined = drawn * np.isfinite(values)
            total[test, name][:, at] += np.where(defined > 0, values, 0) * defined
            weight[test, name][:, at] += defined
    return {key: ratio(total[key], weight[key]) for key in keys}


def _draws(predictions, methods, labels, identities, measures, replicates, seed, cell):
    """:func:`resample` with random counts."""
    rng = np.random.default_rng(seed)
    sizes = predictions["seed"].nunique(), _people(predictions, identities).nunique()
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=replicates) for n in sizes]
    return resample(predictions, methods, labels, identities, measures, *counts, cell)


def _check(predictions: pd.DataFrame, methods, replicates: int, cell: str) -> None:
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
                f"predictions of {method!r} are not finite at {cell} {first[cell]}, seed "
                f"{first['seed']}, row {first['row']}; train it again"
            )
    there = predictions.groupby([cell, "seed", "test"]).size()
    missing = pd.MultiIndex.from_product(there.index.levels).difference(there.index)
    if len(missing):
        value, seed, test = missing[0]
        raise ValueError(
            f"predictions have no rows of {cell} {value}, seed {seed}, test {test!r}; every seed needs "
            f"every {cell} and test set"
        )


def _people(predictions: pd.DataFrame, identities) -> pd.Series:
    return pd.Series(np.asarray(identities)[predictions["row"]], predictions.index)


def _key(predictions, methods, labels, identities, metrics, replicates, seed, cell) -> str:
    """Digest of all that draws depend on."""
    code = source.code(
        "study.results.inference._draws", *(f"study.results.metrics.METRICS[{m}]" for m in metrics)
    )
    truth = pd.DataFrame({"label": labels, "identity": identities})
    tables = (predictions[[cell, "seed", "test", "row", *methods]], truth)
    rows = [pd.util.hash_pandas_object(table, index=False).to_numpy() for table in tables]
    return store.digest(code, methods, metrics, replicates, seed, cell, *rows)


def interval(point, draws, freedom: int) -> dict[str, np.ndarray]:
    """Student t interval and p value of an estimate, shape (...), from its draws, shape (R, ...).

    Draws may be NaN where undefined; with 0 degrees of freedom the interval is unbounded. Returns
    ``mean`` (the point), ``low``, ``high``, and ``p`` of the hypothesis that it is 0, shape (...).
    """
    from scipy.special import stdtr  # Student's distribution function

    point, draws = np.asarray(point, dtype=float), np.asarray(draws, dtype=float)
    defined = np.isfinite(draws)
    n = defined.sum(axis=0)
    centre = np.where(defined, draws, 0).sum(axis=0) / np.maximum(n, 1)
    squares = (np.where(defined, draws - centre, 0) ** 2).sum(axis=0)
    known = (n > 1) & (freedom > 0)
    se = np.where(known, np.sqrt(squares / np.maximum(n - 1, 1)), np.inf)
    reach, t = _t(freedom) * se, np.abs(point) / np.maximum(se, NOTHING)
    alike = np.maximum(np.abs(point), se) < NOTHING
    p = np.where(alike, 1.0, 2 * stdtr(max(freedom, 1), -t))
    return {"mean": point, "low": point - reach, "high": point + reach, "p": p}


def _t(freedom: int) -> float:
    """Student's quantile of a two-sided interval; with no degree of freedom that of one."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), (1 + CONFIDENCE) / 2))


def fieller(numerator, denominator, numerator_draws, denominator_draws, freedom: int) -> dict:
    """Ratio of two estimates with Fieller's interval: ``mean`` (the ratio), ``low``, ``high``.

    The interval holds the ratios r for which ``numerator - r * denominator`` is not significantly
    different from 0: exact under normality. Where the denominator is not clear of 0 it is unbounded,
    the ratio means nothing, and all three values are NaN. E. C. Fieller, "Some problems in interval
    estimation", J. R. Stat. Soc. B 16 (1954). Draws, shape (R,), are paired; their covariance is that
    of the estimates.
    """
    pairs = np.stack([numerator_draws, denominator_draws])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if freedom < 1 or pairs.shape[1] < 2:
        return dict(_UNDEFINED)
    covariance = np.cov(pairs)
    t2 = _t(freedom) ** 2
    # q2 r^2 - 2 q1 r + q0 <= 0
    q2 = denominator**2 - t2 * covariance[1, 1]
    q1 = numerator * denominator - t2 * covariance[0, 1]
    q0 = numerator**2 - t2 * covariance[0, 0]
    if q2 <= NOTHING**2:
        return dict(_UNDEFINED)
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

    One row per test, metric, level and method: ``mean``, ``low``, ``high``.
    """
    return _intervals(replicates).drop(columns="p")


def difference(replicates: Replicates) -> pd.DataFrame:
    """As :func:`summary`, for each other method's paired difference to ERM.

    With ``p``, and ``p_holm``, which is adjusted over the methods and levels of a metric and test.
    """
    erm = replicates.methods.index(BASELINE)
    others = [method for method in replicates.methods if method != BASELINE]
    gains = _mapped(replicates, lambda v: np.delete(v - v[..., [erm]], erm, -1), methods=others)
    table = _intervals(gains)
    table["p_holm"] = table.groupby(["test", "metric"])["p"].transform(holm)
    return table


def sensitivity(replicates: Replicates) -> pd.DataFrame:
    """Sensitivity to bias: least-squares slope of a metric over the bias level.

    One row per test, metric and method: ``mean``, ``low``, ``high`` of the slope; the same with the
    suffix ``_difference`` for the slope minus ERM's; ``p`` and ``p_holm`` (over the methods) of that
    difference. ERM's own difference is NaN. Empty with fewer than two levels.
    """
    slopes = _combined(replicates, slope_weights(replicates.levels))
    return _with_difference(slopes).drop(columns="level")


def area(replicates: Replicates) -> pd.DataFrame:
    """Mean level of a metric: the area under its curve over the bias, by the range of the bias.

    Columns as in :func:`sensitivity`. The area is the trapezoids'; with one level it is the metric.
    """
    areas = _combined(replicates, area_weights(replicates.levels))
    return _with_difference(areas).drop(columns="level")


def oracle_gap_recovered(replicates: Replicates) -> pd.DataFrame:
    """Share of the oracle's gain over ERM that a method reaches, with Fieller's interval.

    One row per test, metric, level and method: ``mean``, ``low``, ``high``; and one for the area over
    all levels, whose ``level`` is NaN. Undefined (NaN) where the oracle's own gain is not clear of 0,
    or is a loss. Empty if the oracle was not run.
    """
    levels = replicates.levels
    lines = _combined(replicates, np.vstack([np.eye(len(levels)), area_weights(levels)]))
    return _shares(replace(lines, levels=np.append(levels, np.nan)), ORACLE)


def sensitivity_removed(replicates: Replicates) -> pd.DataFrame:
    """Share of ERM's sensitivity to bias that a method removes, with Fieller's interval.

    ``(slope of ERM - slope of the method) / slope of ERM``: 0 is as sensitive as ERM, 1 not at all,
    above 1 the metric improves with the bias. One row per test, metric and method but ERM: ``mean``,
    ``low``, ``high``. NaN where ERM's slope is not clear of 0, or its metric improves with the bias.
    Empty with fewer than two levels.
    """
    slopes = _combined(replicates, slope_weights(replicates.levels))
    methods = [*replicates.methods, "flat"]  # with a slope of 0, whose gain is all there is
    slopes = _mapped(slopes, lambda v: np.insert(v, v.shape[-1], 0, axis=-1), methods=methods)
    return _shares(slopes, "flat").drop(columns="level")


def accuracy_by_group(
    predictions: pd.DataFrame, methods, labels, identities, groups, *, replicates: int = 1000
) -> pd.DataFrame:
    """Accuracy by demographic group, and the gap between the best-served group and the worst.

    A gap is a maximum minus a minimum, so it is above 0 by chance alone, the more so the smaller the
    groups; look at its difference between two methods, or at the groups themselves.

    Parameters
    ----------
    predictions, methods, labels, identities, replicates
        As in :func:`bootstrap`, which says what is raised.
    groups : pandas.DataFrame or dict of arrays, shape (n,)
        Demographic columns of the whole data set, indexed by ``row``; an image whose group is missing
        is left out.

    Returns
    -------
    pandas.DataFrame
        One row per test, column, group, level and method: ``people`` of the group in the test set,
        and the columns of :func:`sensitivity`, with ``p_holm`` over methods and levels. The row of
        the gap has the group ``gap`` and the people of the smallest group. Degrees of freedom follow
        the seeds or the people of the group, whichever are fewer. Empty without columns.
    """
    methods, identities = list(methods), np.asarray(identities)
    columns = ["test", "column", "group", "people", "level", "method", *_INTERVAL, *_DIFFERENCE]
    measures, people = {}, {}
    for column in groups:
        codes, names = pd.factorize(pd.Series(groups[column]), sort=True)
        keys = [(column, str(name)) for name in names]
        measures |= {key: _group_accuracy(codes, g) for g, key in enumerate(keys)}
        measures[column, "gap"] = _group_gap(codes, len(names))
        for test, rows in predictions.groupby(predictions["test"].astype(str))["row"]:
            found = [len(set(identities[rows[codes[rows] == g]])) for g in range(len(names))]
            people |= {(test, key): n for key, n in zip(keys, found, strict=True)}
            people[test, (column, "gap")] = min((n for n in found if n), default=0)
    if not measures:
        return pd.DataFrame(columns=columns)
    _check(predictions, methods, replicates, "level")
    about = (predictions, methods, labels, identities, measures)
    n_seeds = predictions["seed"].nunique()
    n_people = _people(predictions, identities).nunique()
    once = resample(*about, np.ones((1, n_seeds)), np.ones((1, n_people)))
    study = Replicates(
        levels=cells(predictions, "level"),
        methods=methods,
        runs=pd.DataFrame(),
        point={key: values[0] for key, values in once.items()},
        draws=_draws(*about, replicates, 0, "level"),
        freedom={key: min(n_seeds, n) - 1 for key, n in people.items()},
    )
    table = _with_difference(study)
    table["people"] = [people[key] for key in zip(table["test"], table["metric"], strict=True)]
    table["column"], table["group"] = zip(*table["metric"], strict=True)
    return table[columns]


def _group_accuracy(codes: np.ndarray, group: int) -> Callable:
    return lambda run, counts: share(run, counts, run.right, codes[run.row] == group)


def _group_gap(codes: np.ndarray, n_groups: int) -> Callable:
    def measure(run: Run, counts: np.ndarray) -> np.ndarray:
        shares = np.stack([_group_accuracy(codes, g)(run, counts) for g in range(n_groups)])
        return np.fmax.reduce(shares) - np.fmin.reduce(shares)  # both pass over groups not drawn

    return measure


def slope_weights(levels) -> np.ndarray:
    """A row whose product with a curve is its least-squares slope; none with fewer than two levels."""
    centred = np.asarray(levels, dtype=float) - np.mean(levels)
    return (centred / (centred @ centred))[None] if len(centred) > 1 else np.empty((0, 1))


def area_weights(levels) -> np.ndarray:
    """A row whose product with a curve is its area (trapezoids) by the range of the levels."""
    if len(levels) == 1:
        return np.ones((1, 1))
    steps = np.diff(np.asarray(levels, dtype=float)) / 2
    return (np.append(steps, 0) + np.insert(steps, 0, 0))[None] / np.ptp(levels)


def _mapped(replicates: Replicates, transform: Callable, **changes) -> Replicates:
    """The study after a ``transform`` of its (..., L, M) arrays."""
    point = {key: transform(values) for key, values in replicates.point.items()}
    draws = {key: transform(values) for key, values in replicates.draws.items()}
    return replace(replicates, point=point, draws=draws, **changes)


def _combined(replicates: Replicates, weights: np.ndarray) -> Replicates:
    """The study with linear combinations of its levels, ``weights`` (K, L), in place of levels."""
    combine = partial(np.einsum, "kl,...lm->...km", weights)
    return _mapped(replicates, combine, levels=np.arange(len(weights)), cell="level")


def _shares(replicates: Replicates, whole: str) -> pd.DataFrame:
    """The other methods' gains over ERM as shares of the gain of ``whole``, where that is a gain."""
    methods, rows = replicates.methods, []
    erm = methods.index(BASELINE)
    others = [m for m in methods if m not in (BASELINE, whole)] if whole in methods else []
    for key, point in replicates.point.items():
        sign = 1 if METRICS[key[1]].better == "higher" else -1
        gain, draws = (v - v[..., [erm]] for v in (point, replicates.draws[key]))
        for (k, level), method in product(enumerate(replicates.levels), others):
            pair, found = [methods.index(method), methods.index(whole)], _UNDEFINED
            if sign * gain[k, pair[1]] > 0:
                found = fieller(*gain[k, pair], *draws[:, k, pair].T, replicates.freedom[key])
            rows.append([*key, level, method, *found.values()])
    return pd.DataFrame(rows, columns=[*_WHERE, *_INTERVAL])


def _intervals(replicates: Replicates) -> pd.DataFrame:
    """Interval and p value of every number of a study."""
    levels, methods = replicates.levels, replicates.methods
    tables = []
    for (test, metric), point in replicates.point.items():
        found = interval(point, replicates.draws[test, metric], replicates.freedom[test, metric])
        where = {"test": test, "metric": [metric] * point.size}
        where |= {replicates.cell: np.repeat(levels, len(methods)), "method": methods * len(levels)}
        numbers = {name: values.ravel() for name, values in found.items()}
        tables.append(pd.DataFrame(where | numbers))
    return pd.concat(tables, ignore_index=True)


def _with_difference(replicates: Replicates) -> pd.DataFrame:
    """A summary beside its differences to ERM."""
    apart = difference(replicates)
    return summary(replicates).merge(apart, "left", _WHERE, suffixes=("", "_difference"))
