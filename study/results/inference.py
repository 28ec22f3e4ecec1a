"""Intervals and comparisons, by variances clustered by training set and by person.

The numbers of a study vary for two reasons: other training sets would have been drawn (seeds), and
other people would have been photographed (identities). Every seed tests many identities and every
identity is tested under many seeds, so the two are crossed and neither alone gives an honest interval.
The two-way clustered variance adds the variance between seeds to that between people and takes off
what both of them hold, the noise of single (seed, person) pairs: A. C. Cameron, J. B. Gelbach, D. L.
Miller, "Robust inference with multiway clustering", Journal of Business & Economic Statistics 29 (2011);
as there, it is never taken to be less than either alone. (Resampling seeds and people together, A. B.
Owen's pigeonhole bootstrap, counts the pairs' noise up to three times: intervals a third to a half too
wide in studies like these.)

Every number is a mean over seeds of a run's metric, and :func:`estimate` finds the three covariances of
these means, over all levels and methods at once:

- *seed*: between seeds, of the metric of whole runs;
- *person*: between resamples of people, the same for all runs (a bootstrap, as most metrics are no means);
- *pair*: in the same resamples, of each run's deviation from the mean over seeds. For a metric that is
  a mean this is the variance of the pairs' own noise alone; that of the people, which a bootstrap of
  single pairs would hold as well, drops out.

All else is a linear function of the means, or a ratio of two, and follows from the covariances. All
methods and levels share the resamples, so every comparison is paired:

- an interval is ``point +- t * se``, at 95 %, where t is Student's quantile with one degree of freedom
  less than there are seeds or identities, whichever are fewer;
- a p value is two-sided and from the same t: below .05 exactly where the interval leaves out 0;
- with one seed or one identity the interval is unbounded (infinite) and p is 1.

``tests/study/results/test_coverage.py`` holds the coverage on simulated studies of known truth. An
interval speaks of redraws of the training sets *and* of the people, from the population that these people
were drawn from. It does not speak of another population, and where a metric is a maximum or minimum over
people (the gaps, the worst identity) it is a rough guide only: a resample cannot hold anyone worse than
the worst.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from cid.names import find, suggest
from study import source, store
from study.results.metrics import METRICS, Run, cells, evaluate, runs, share

CONFIDENCE, POWER = 0.95, 0.8
BASELINE, ORACLE = "erm", "oracle"  # what differences are to, and what they are compared with
NOTHING = 1e-12  # differences of equal numbers, summed in another order

_WHERE, _INTERVAL = ["test", "metric", "level", "method"], ["mean", "low", "high"]
_DIFFERENCE = [*(f"{name}_difference" for name in _INTERVAL), "p", "detectable", "p_holm"]
_UNDEFINED = dict.fromkeys(_INTERVAL, np.nan)


@dataclass(frozen=True)
class Estimates:
    """A study of L levels and M methods, and how its means vary.

    Attributes
    ----------
    levels : array, shape (L,)
        The bias levels, rising; with another ``cell``, its values in order of appearance.
    methods : list of str
    runs : pandas.DataFrame
        Metrics of every run, from :func:`study.results.metrics.evaluate`.
    point : dict of float arrays, shape (L, M)
        By (test, metric): mean over seeds of the run's metric.
    covariance : dict of float arrays, shape (3, L, M, L, M)
        By (test, metric): of these means, by seed, by person and by pair.
    seeds : int
    people : dict of int
        By (test, metric): how many people are tested, over all seeds.
    pairs : dict of int
        By (test, metric): how many pairs of a seed and a person that it tests.
    cell : str
        What ``levels`` are: the column of that name in every table.
    """

    levels: np.ndarray
    methods: list[str]
    runs: pd.DataFrame
    point: dict[tuple, np.ndarray]
    covariance: dict[tuple, np.ndarray]
    seeds: int
    people: dict[tuple, int]
    pairs: dict[tuple, int]
    cell: str = "level"

    def freedom(self, key: tuple) -> int:
        """Degrees of freedom of an interval."""
        return min(self.seeds, self.people[key]) - 1


def estimate(
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
) -> Estimates:
    """Means of a study, and their covariances by seed, person and pair.

    Parameters
    ----------
    predictions, methods, labels, identities, metrics, cell
        As in :func:`study.results.metrics.evaluate`. Every seed must have been run in every cell and
        on every test set.
    replicates, seed : int
        Resamples of people, at least 2, and the seed that decides which.
    folder : path, optional
        Where the covariances are kept (:mod:`study.store`), so that they are not computed twice.

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
        found = _covariances(*about, measures, replicates, seed, cell)
        return {"/".join(key): values for key, (_, values) in found.items()}

    key = None if folder is None else _key(*about, metrics, replicates, seed, cell)
    kept = store.kept(folder, "covariances", key, [], compute)
    covariance = {tuple(k.split("/")): v for k, v in kept.items()}
    table, levels = evaluate(*about, metrics, cell), cells(predictions, cell)
    means = table.groupby(["test", cell, "method"])[metrics].mean()
    order = pd.MultiIndex.from_product([levels, methods])
    point = {
        (test, name): means.loc[test][name].loc[order].to_numpy().reshape(len(levels), -1)
        for test, name in covariance
    }
    tests, who = predictions["test"].astype(str), _people(predictions, identities)
    tested = pd.DataFrame({"test": tests, "seed": predictions["seed"], "person": who})
    pairs = tested.drop_duplicates().groupby("test").size()
    people = who.groupby(tests).nunique()
    by_key = [{(test, name): int(n[test]) for test, name in point} for n in (people, pairs)]
    n_seeds = table["seed"].nunique()
    return Estimates(levels, methods, table, point, covariance, n_seeds, *by_key, cell)


def _covariances(
    predictions, methods, labels, identities, measures, replicates, seed, cell="level"
) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
    """Means, shape (L, M), and their covariances, (3, L, M, L, M), by (test, name of the measure).

    ``measures`` are by name and as :attr:`study.results.metrics.Metric.measure`.
    """
    # Late: figures and tables import this module and resample nothing.
    from tqdm import tqdm

    from study.cores import on_all_cores

    levels, seeds = cells(predictions, cell).tolist(), np.unique(predictions["seed"])
    person = _people(predictions, identities)
    names = np.unique(person)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    counts = np.vstack([np.ones(len(names)), counts]).astype(float)  # the plain value comes first
    found, tests = {}, predictions["test"].astype(str)
    bar = tqdm(
        total=len(levels) * len(seeds) * tests.nunique(), desc="resample", mininterval=5, delay=2
    )
    shape = (len(counts), len(seeds), len(levels), len(methods))
    for test, part in predictions.groupby(tests):
        values = {name: np.full(shape, np.nan) for name in measures}

        def resample(one, values=values) -> None:
            (value, own, _), run = one
            at = slice(None), np.searchsorted(seeds, own), levels.index(value)
            drawn = counts[:, np.searchsorted(names, run.people)]
            for name, measure in measures.items():
                values[name][at] = measure(run, drawn)
            bar.update()

        on_all_cores(resample, runs(part, methods, labels, identities, cell), "cpu")
        people = person[part.index].nunique()
        for name, drawn in values.items():
            found[test, name] = _reduced(drawn, people)
    bar.close()
    return found


def _reduced(values: np.ndarray, people: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and its covariances from a measure of shape (1 + R, S, L, M), the plain one first."""
    seeds, shape = values.shape[1], values.shape[2:]
    flat = values.reshape(len(values), seeds, -1)
    plain, draws = flat[0], flat[1:]
    defined = np.isfinite(plain)
    number = defined.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(defined, plain, 0).sum(axis=0) / number
        # A seed in which a metric is undefined has no influence on its mean.
        scale = defined / np.sqrt(number * (number - 1.0))
    known = number > 1  # of one seed alone nothing is known but its value
    scale[:, ~known] = 0
    spread = np.where(defined, plain - mean, 0) * scale
    by_seed = spread.T @ spread
    # A resample in which a run has no value says nothing of it.
    draws = np.where(np.isfinite(draws), draws, np.where(defined, plain, 0)[None])
    draws = np.where(defined, draws - draws.mean(axis=0), 0)
    few = people / max(people - 1, 1) / max(len(draws) - 1, 1)
    common = draws.sum(axis=1) / np.maximum(number, 1)
    by_person = few * common.T @ common
    apart = ((draws - common[:, None]) * scale).reshape(-1, draws.shape[2])
    by_pair = few * apart.T @ apart
    covariance = np.stack([by_seed, by_person, by_pair])
    covariance[:, ~known] = np.nan
    covariance[:, :, ~known] = np.nan
    return mean.reshape(shape), covariance.reshape(3, *shape, *shape)


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
    """Digest of all that covariances depend on."""
    code = source.code(
        "study.results.inference._covariances",
        *(f"study.results.metrics.METRICS[{m}]" for m in metrics),
    )
    truth = pd.DataFrame({"label": labels, "identity": identities})
    named = [c for c in (cell, "seed", "test", "row", "minority", *methods) if c in predictions]
    rows = [
        pd.util.hash_pandas_object(table, index=False).to_numpy()
        for table in (predictions[named], truth)
    ]
    return store.digest(code, methods, metrics, replicates, seed, cell, *rows)


def variance(covariance: np.ndarray) -> np.ndarray:
    """Two-way clustered variances, shape (...), from those by seed, person and pair, shape (3, ...)."""
    seed, person, pair = covariance
    return np.maximum(seed + person - pair, np.maximum(seed, person))


def interval(point, se, freedom: int) -> dict[str, np.ndarray]:
    """Student t interval and p value of an estimate and its standard error, shape (...).

    With 0 degrees of freedom, or an unknown (NaN) error, the interval is unbounded. Returns ``mean`` (the
    point), ``low``, ``high``, ``p`` of the hypothesis that it is 0, and ``detectable``: the smallest true
    value that would be found clear of 0 with probability :data:`POWER`; shape (...).
    """
    from scipy.special import stdtr  # Student's distribution function

    point, se = np.asarray(point, dtype=float), np.asarray(se, dtype=float)
    se = np.where(np.isnan(se) | (freedom < 1), np.inf, se)
    se = np.where(np.isfinite(point), se, np.nan)
    reach, t = _t(freedom) * se, np.abs(point) / np.maximum(se, NOTHING)
    alike = np.maximum(np.abs(point), se) < NOTHING
    p = np.where(alike, 1.0, 2 * stdtr(max(freedom, 1), -t))
    found = {"mean": point, "low": point - reach, "high": point + reach, "p": p}
    return found | {"detectable": reach + _t(freedom, 2 * POWER - 1) * se}


def _t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Student's quantile of a two-sided interval; with no degree of freedom that of one."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), (1 + confidence) / 2))


def fieller(numerator: float, denominator: float, covariance: np.ndarray, freedom: int) -> dict:
    """Ratio of two estimates with Fieller's interval: ``mean`` (the ratio), ``low``, ``high``.

    The interval holds the ratios r for which ``numerator - r * denominator`` is not significantly
    different from 0: exact under normality. Where the denominator is not clear of 0 it is unbounded,
    the ratio means nothing, and all three values are NaN. E. C. Fieller, "Some problems in interval
    estimation", J. R. Stat. Soc. B 16 (1954). ``covariance``, shape (3, 2, 2), is of the two estimates by
    seed, person and pair; as the variance of a difference is the largest of three, the interval is the
    union of theirs.
    """
    seed, person, pair = covariance
    t2, ends = _t(freedom) ** 2, []
    for c in (seed + person - pair, seed, person):
        # q2 r^2 - 2 q1 r + q0 <= 0
        q2 = denominator**2 - t2 * c[1, 1]
        q1 = numerator * denominator - t2 * c[0, 1]
        q0 = numerator**2 - t2 * c[0, 0]
        if freedom < 1 or not q2 > NOTHING**2:
            return dict(_UNDEFINED)
        root = np.sqrt(max(q1**2 - q2 * q0, 0.0))
        ends += [(q1 - root) / q2, (q1 + root) / q2]
    return {"mean": numerator / denominator, "low": min(ends), "high": max(ends)}


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


def summary(estimates: Estimates) -> pd.DataFrame:
    """Mean over seeds of every metric, with its interval.

    One row per test, metric, level and method: ``mean``, ``low``, ``high``.
    """
    return _intervals(estimates).drop(columns=["p", "detectable"])


def difference(estimates: Estimates) -> pd.DataFrame:
    """As :func:`summary`, for each other method's paired difference to ERM.

    With ``p``, ``detectable`` (see :func:`interval`), and ``p_holm``, which is adjusted over the methods
    and levels of a metric and test.
    """
    return _tested(_gains(estimates))


def against(estimates: Estimates, reference) -> pd.DataFrame:
    """As :func:`difference`, for each other cell's paired difference of gains over ERM to one cell's.

    A cell is a level, or a value of whatever else :attr:`Estimates.cell` names; ``reference`` is one of
    them. ``p_holm`` is adjusted over the methods and cells of a metric and test.
    """
    at = list(estimates.levels).index(reference)
    others = np.delete(estimates.levels, at)
    return difference(replace(_linear(estimates, _apart(len(others), at)), levels=others))


def sensitivity(estimates: Estimates) -> pd.DataFrame:
    """Sensitivity to bias: least-squares slope of a metric over the bias level.

    One row per test, metric and method: ``mean``, ``low``, ``high`` of the slope; the same with the
    suffix ``_difference`` for the slope minus ERM's; ``p``, ``detectable`` and ``p_holm`` (over the
    methods) of that difference. ERM's own difference is NaN. Empty with fewer than two levels.
    """
    return _with_difference(_over_levels(estimates, slope_weights)).drop(columns="level")


def area(estimates: Estimates) -> pd.DataFrame:
    """Mean level of a metric: the area under its curve over the bias, by the range of the bias.

    Columns as in :func:`sensitivity`. The area is the trapezoids'; with one level it is the metric.
    """
    return _with_difference(_over_levels(estimates, area_weights)).drop(columns="level")


def lead(estimates: Estimates, method: str) -> pd.DataFrame:
    """How far one method is ahead of every other, paired, as a mean over the bias range.

    Columns as in :func:`difference`, without the level: the row of a method is ``method`` minus it.
    """
    behind = _gains(_over_levels(estimates, area_weights), method)
    return _tested(_linear(behind, methods=-np.eye(len(behind.methods)))).drop(columns="level")


def power(estimates: Estimates) -> pd.DataFrame:
    """What a study could have shown: the smallest difference to ERM of the area it would detect.

    One row per test, metric and method but ERM: ``seeds``, ``people``, ``seed_sd``, ``person_sd`` and
    ``pair_sd`` (standard deviation of the difference between training sets, between people, and between
    pairs of them), ``se`` and ``detectable``: see :func:`detectable`. NaN where an error is unknown.
    """
    gains, rows = _gains(_over_levels(estimates, area_weights)), []
    for (key, covariance), (m, method) in product(
        gains.covariance.items(), enumerate(gains.methods)
    ):
        seeds, people = gains.seeds, gains.people[key]
        by_seed, by_person, by_pair = own = covariance[:, 0, m, 0, m]
        by_pair = min(by_pair, max(by_seed, by_person))  # so that they add up to the variance
        pairs = gains.pairs[key]
        sds = (by_seed - by_pair) * seeds, (by_person - by_pair) * people, by_pair * pairs
        names = ("seed_sd", "person_sd", "pair_sd")
        found = {name: np.sqrt(max(v, 0.0)) for name, v in zip(names, sds, strict=True)}
        se = float(np.sqrt(variance(own)))
        told = interval(0.0 if np.isfinite(se) else np.nan, se, gains.freedom(key))
        where = dict(zip(("test", "metric"), key, strict=True)) | {"method": method}
        rows.append(where | {"seeds": seeds, "people": people} | found | {"se": se}
                    | {"detectable": float(told["detectable"])})  # fmt: skip
    return pd.DataFrame(rows)


def detectable(row, seeds: int, people: int, pairs: int | None = None) -> float:
    """The smallest difference that another study like that of a row of :func:`power` would detect.

    With probability :data:`POWER`, with other numbers of seeds and people:
    ``se^2 = seed_sd^2 / seeds + person_sd^2 / people + pair_sd^2 / pairs``. Pairs are those of a seed
    and a person that it tests: ``seeds * people`` unless told, but ``people`` if each seed has its own.
    """
    pairs = seeds * people if pairs is None else pairs
    square = row["seed_sd"] ** 2 / seeds + row["person_sd"] ** 2 / people
    se = np.sqrt(square + row["pair_sd"] ** 2 / pairs)
    return float(interval(0.0, se, min(seeds, people) - 1)["detectable"])


def oracle_gap_recovered(estimates: Estimates) -> pd.DataFrame:
    """Share of the oracle's gain over ERM that a method reaches, with Fieller's interval.

    One row per test, metric, level and method: ``mean``, ``low``, ``high``; and one for the area over
    all levels, whose ``level`` is NaN. Undefined (NaN) where the oracle's own gain is not clear of 0,
    or is a loss. Empty if the oracle was not run.
    """
    levels = estimates.levels
    lines = _linear(estimates, np.vstack([np.eye(len(levels)), area_weights(levels)]))
    return _shares(replace(lines, levels=np.append(levels, np.nan)))


def sensitivity_removed(estimates: Estimates) -> pd.DataFrame:
    """What a method takes off ERM's sensitivity to bias, as a share of what the oracle takes off.

    ``(slope of the method - slope of ERM) / (slope of the oracle - slope of ERM)``, with Fieller's
    interval: 0 is as sensitive as ERM, 1 as the oracle. One row per test, metric and method but these
    two: ``mean``, ``low``, ``high``; NaN where the oracle takes off nothing that is clear of 0. Empty with
    fewer than two levels, or without the oracle.
    """
    return _shares(_over_levels(estimates, slope_weights)).drop(columns="level")


def accuracy_by_group(
    predictions: pd.DataFrame, methods, labels, identities, groups, *, replicates: int = 1000
) -> pd.DataFrame:
    """Accuracy by demographic group, and the gap between the best-served group and the worst.

    A gap is a maximum minus a minimum, so it is above 0 by chance alone, the more so the smaller the
    groups; look at its difference between two methods, or at the groups themselves.

    Parameters
    ----------
    predictions, methods, labels, identities, replicates
        As in :func:`estimate`, which says what is raised.
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
    found = _covariances(predictions, methods, labels, identities, measures, replicates, 0)
    study = Estimates(
        levels=cells(predictions, "level"),
        methods=methods,
        runs=pd.DataFrame(),
        point={key: point for key, (point, _) in found.items()},
        covariance={key: covariance for key, (_, covariance) in found.items()},
        seeds=predictions["seed"].nunique(),
        people=people,
        pairs=people,  # not read: power is of whole test sets
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


def _linear(estimates: Estimates, levels=None, methods=None, **changes) -> Estimates:
    """The study after linear maps of its levels, (K, L), and of its methods, (N, M)."""
    w = np.eye(len(estimates.levels)) if levels is None else levels
    b = np.eye(len(estimates.methods)) if methods is None else methods
    point, covariance = {}, {}
    for key, values in estimates.point.items():
        known = estimates.covariance[key]
        both = np.einsum("ka,nb,xabcd->xkncd", w, b, np.nan_to_num(known), optimize=True)
        both = np.einsum("lc,md,xkncd->xknlm", w, b, both, optimize=True)
        # What is unknown spoils what it has a weight in, and nothing else (0 * NaN would be NaN).
        lost, blurred = (
            (w != 0).astype(float) @ np.isnan(v) @ (b != 0).T > 0
            for v in (values, np.einsum("abab->ab", known[0]))
        )
        point[key] = np.where(lost, np.nan, w @ np.nan_to_num(values) @ b.T)
        both[:, blurred] = both[:, :, :, blurred] = np.nan
        covariance[key] = both
    return replace(estimates, point=point, covariance=covariance, **changes)


def _gains(estimates: Estimates, baseline: str = BASELINE) -> Estimates:
    """The study's differences to ERM, or to another method."""
    others = [method for method in estimates.methods if method != baseline]
    apart = _apart(len(others), estimates.methods.index(baseline))
    return replace(_linear(estimates, methods=apart), methods=others)


def _apart(others: int, at: int) -> np.ndarray:
    """The linear map, (others, others + 1), from numbers to what the others are above the one ``at``."""
    apart = np.delete(np.eye(others + 1), at, axis=0)
    apart[:, at] = -1
    return apart


def _over_levels(estimates: Estimates, weights: Callable) -> Estimates:
    """The study with combinations of its levels, of which ``weights`` makes rows (K, L), in their place."""
    rows = weights(estimates.levels)
    if not len(rows):
        rows = np.empty((0, len(estimates.levels)))
    levels = np.arange(len(rows))
    return replace(_linear(estimates, rows), levels=levels, cell="level")


def _shares(estimates: Estimates) -> pd.DataFrame:
    """The other methods' gains over ERM as shares of the oracle's, where that is a gain."""
    columns, rows = [*_WHERE, *_INTERVAL], []
    if ORACLE not in estimates.methods:
        return pd.DataFrame(columns=columns)
    gains = _gains(estimates)
    oracle = gains.methods.index(ORACLE)
    others = [m for m in gains.methods if m != ORACLE]
    for key, point in gains.point.items():
        sign = 1 if METRICS[key[1]].better == "higher" else -1
        for (k, level), method in product(enumerate(gains.levels), others):
            pair, found = [gains.methods.index(method), oracle], _UNDEFINED
            if sign * point[k, oracle] > 0:
                covariance = gains.covariance[key][:, k][:, pair, k][:, :, pair]
                found = fieller(*point[k, pair], covariance, gains.freedom(key))
            rows.append([*key, level, method, *found.values()])
    return pd.DataFrame(rows, columns=columns)


def _intervals(estimates: Estimates) -> pd.DataFrame:
    """Interval and p value of every number of a study."""
    levels, methods = estimates.levels, estimates.methods
    tables = []
    for (test, metric), point in estimates.point.items():
        own = np.einsum("xlmlm->xlm", estimates.covariance[test, metric])
        found = interval(point, np.sqrt(variance(own)), estimates.freedom((test, metric)))
        where = {"test": test, "metric": [metric] * point.size}
        where |= {estimates.cell: np.repeat(levels, len(methods)), "method": methods * len(levels)}
        numbers = {name: values.ravel() for name, values in found.items()}
        tables.append(pd.DataFrame(where | numbers))
    return pd.concat(tables, ignore_index=True)


def _tested(estimates: Estimates) -> pd.DataFrame:
    """Differences with their intervals, and p values adjusted over all of a metric and test."""
    table = _intervals(estimates)
    table["p_holm"] = table.groupby(["test", "metric"])["p"].transform(holm)
    return table


def _with_difference(estimates: Estimates) -> pd.DataFrame:
    """A summary beside its differences to ERM."""
    apart = difference(estimates)
    return summary(estimates).merge(apart, "left", _WHERE, suffixes=("", "_difference"))
