"""Intervals and comparisons, by variances clustered by training set and by person.

The numbers of a study vary for two reasons: other training sets would have been drawn (seeds), and
other people would have been photographed (identities). Every seed tests many identities and every
identity is tested under many seeds, so the two are crossed and neither alone gives an honest interval.
The two-way clustered variance adds the variance between seeds to that between people and subtracts
what both of them contain, the noise of single (seed, person) pairs: A. C. Cameron, J. B. Gelbach, D. L.
Miller, "Robust inference with multiway clustering", Journal of Business & Economic Statistics 29 (2011).
As in that paper, it is never taken to be less than either of the two. (Resampling seeds and people
together, A. B. Owen's pigeonhole bootstrap, counts the pairs' noise up to three times: intervals would be
a third to a half too wide in studies like these.)

Every number is a mean over seeds of a metric of a test set, and :func:`estimate` finds the three
covariances of these means, over all levels and methods at once:

- *seed*: between seeds, of the metric of whole test sets;
- *person*: between resamples of people, the same for all test sets (a bootstrap, because most metrics are
  not means);
- *pair*: in the same resamples, of each test set's deviation from the mean over seeds. For a metric that
  is a mean this is the variance of the pairs' noise alone; that of the people, which a bootstrap of
  single pairs would include, drops out.

Everything else is a linear function of the means, or a ratio of two, and follows from the covariances. All
methods and levels share the resamples, so every comparison is paired.

Metrics that are *pooled* (the spread over people of their accuracies over all seeds) are no means over
seeds. Theirs are: *seed*, the jackknife, which leaves out one training set at a time; *person*, the same
resamples of people; *pair*, the sum over pairs of the square of what each moves the metric by, to first order.
B. Efron, C. Stein, "The jackknife estimate of variance", Annals of Statistics 9 (1981). Where every seed has
people of its own the intervals are wider than need be.

From a point and its covariances:

- an interval is ``point +- t * se``, at 95 %, where t is Student's quantile with one degree of freedom
  less than the number of seeds or of identities, whichever is smaller;
- a p value is two-sided and from the same t: below .05 exactly where the interval leaves out 0;
- with one seed or one identity the interval is unbounded (infinite) and p is 1.

``tests/study/results/test_coverage.py`` checks the coverage on simulated studies whose truth is known. An
interval is about redrawing the training sets *and* the people, from the population that these people
were drawn from. It says nothing about another population, and where a metric is a maximum or minimum over
people (the gaps, the worst identity) it is a rough guide only: a resample cannot contain anyone worse than
the worst.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cid.names import find, suggest
from study import store
from study.experiment.scores import columns_of
from study.results.metrics import (
    METRICS,
    Metric,
    RightByPerson,
    TestSet,
    conditions,
    evaluate,
    iterate_test_sets,
    mean_over_images,
    right_by_person,
)
from study.results.rounding import INTERVAL

ALPHA = 0.05
CONFIDENCE = 1 - ALPHA
POWER = 0.8
BASELINE = "erm"  # differences are to this method
ORACLE = "oracle"  # and are compared with this one's
NOTHING = 1e-12  # differences of equal numbers, summed in another order

_WHERE = ["test", "metric", "level", "method"]
_DIFFERENCE = [*(f"{name}_difference" for name in INTERVAL), "p", "detectable", "p_holm"]
_UNDEFINED = dict.fromkeys(INTERVAL, np.nan)


@dataclass(frozen=True)
class Estimates:
    """A study of L levels and M methods, and how its means vary.

    Attributes
    ----------
    levels : array, shape (L,)
        The bias levels, rising; with another ``condition``, its values in order of appearance.
    methods : list of str
    runs : pandas.DataFrame
        Metrics of every test set, from :func:`study.results.metrics.evaluate`.
    point : dict of float arrays, shape (L, M)
        By (test, metric): mean of the metric over seeds.
    covariance : dict of float arrays, shape (3, L, M, L, M)
        By (test, metric): covariances of these means by seed, by person and by pair.
    seeds : int
    people : dict of int
        By (test, metric): how many people are tested, over all seeds.
    pairs : dict of int
        By (test, metric): how many pairs there are of a seed and a person that it tests.
    condition : str
        What ``levels`` are: the column of that name in every table.
    references : dict of str
        By method, the one whose differences are reported, where that is not ERM.
    """

    levels: np.ndarray
    methods: list[str]
    runs: pd.DataFrame
    point: dict[tuple, np.ndarray]
    covariance: dict[tuple, np.ndarray]
    seeds: int
    people: dict[tuple, int]
    pairs: dict[tuple, int]
    condition: str = "level"
    references: dict[str, str] = field(default_factory=dict)

    def reference(self, method: str) -> str:
        """The method that another one is compared with: ERM, where ``references`` names no other."""
        return self.references.get(method, BASELINE)

    def degrees_of_freedom(self, key: tuple) -> int:
        """Degrees of freedom of an interval, by (test, metric)."""
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
    condition: str = "level",
    references: dict[str, str] | None = None,
    folder: str | Path | None = None,
) -> Estimates:
    """Estimate the means of a study, and their covariances by seed, person and pair.

    Parameters
    ----------
    predictions, methods, labels, identities, metrics, condition
        As in :func:`study.results.metrics.evaluate`. Every seed must have been run under every condition
        and on every test set.
    replicates, seed : int
        Resamples of people, at least 2, and the seed that decides which.
    references : dict of str, optional
        As in :class:`Estimates`.
    folder : path, optional
        Where the covariances are kept (:mod:`study.store`), so that they are not computed twice.

    Raises
    ------
    ValueError
        On an unknown metric, a method without scores, scores that are not finite, a seed that lacks a
        level or test set, or fewer than 2 replicates.
    """
    methods = list(methods)
    metrics = list(metrics)
    found = {name: find("metric", name, METRICS) for name in metrics}
    measures = {name: metric.measure for name, metric in found.items() if not metric.is_pooled}
    pooled = {name: metric for name, metric in found.items() if metric.is_pooled}
    _check_predictions(predictions, methods, replicates, condition)
    for method, reference in (references or {}).items():
        if method in methods and reference not in methods:
            raise ValueError(
                f"method {method!r} is compared with {reference!r}, which was not run; add {reference} to "
                "the methods"
            )

    def compute() -> dict[str, np.ndarray]:
        estimated = _estimate_measures(
            predictions, methods, labels, identities, measures, replicates, seed, condition
        )
        covariances = {key: covariance for key, (_, covariance) in estimated.items()}
        covariances |= _pooled_covariances(counted, pooled, replicates, seed)
        return {"/".join(key): covariance for key, covariance in covariances.items()}

    tests = predictions["test"].astype(str)
    counted = {}
    if pooled:
        for test, part in predictions.groupby(tests):
            counted[test] = right_by_person(part, methods, labels, identities, condition)
    inputs = None
    if folder is not None:
        inputs = _covariance_inputs(
            predictions, methods, labels, identities, metrics, replicates, seed, condition
        )
    code = [
        "study.results.inference._estimate_measures",
        "study.results.inference._pooled_covariances",
        *(f"study.results.metrics.METRICS[{metric}]" for metric in metrics),
    ]
    kept = store.kept(folder, "covariances", inputs, code, compute)
    covariance = {tuple(name.split("/")): values for name, values in kept.items()}

    runs = evaluate(predictions, methods, labels, identities, measures, condition)
    levels = conditions(predictions, condition)
    means = runs.groupby(["test", condition, "method"])[list(measures)].mean()
    order = pd.MultiIndex.from_product([levels, methods])
    point = {}
    for test, metric in covariance:
        if metric in pooled:
            point[test, metric] = _pooled_points(counted[test], pooled[metric])
        else:
            of_metric = means.loc[test][metric].loc[order]
            point[test, metric] = of_metric.to_numpy().reshape(len(levels), -1)

    persons = _person_of_prediction(predictions, identities)
    tested = pd.DataFrame({"test": tests, "seed": predictions["seed"], "person": persons})
    people_by_test = persons.groupby(tests).nunique()
    pairs_by_test = tested.drop_duplicates().groupby("test").size()
    return Estimates(
        levels=levels,
        methods=methods,
        runs=runs,
        point=point,
        covariance=covariance,
        seeds=runs["seed"].nunique(),
        people={(test, metric): int(people_by_test[test]) for test, metric in point},
        pairs={(test, metric): int(pairs_by_test[test]) for test, metric in point},
        condition=condition,
        references=references or {},
    )


def _estimate_measures(
    predictions, methods, labels, identities, measures, replicates, seed, condition="level"
) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
    """Means, shape (L, M), and their covariances, (3, L, M, L, M), by (test, name of the measure).

    ``measures`` are by name and as :attr:`study.results.metrics.Metric.measure`.
    """
    # Late: figures and tables import this module and resample nothing.
    from tqdm import tqdm

    from study.cores import on_all_cores

    levels = conditions(predictions, condition).tolist()
    seeds = np.unique(predictions["seed"])
    tests = predictions["test"].astype(str)
    persons = _person_of_prediction(predictions, identities)
    names = np.unique(persons)
    counts = _resampled_counts(len(names), replicates, seed)
    shape = (len(counts), len(seeds), len(levels), len(methods))
    estimated = {}
    bar = tqdm(
        total=len(levels) * len(seeds) * tests.nunique(), desc="resample", mininterval=5, delay=2
    )
    for test, part in predictions.groupby(tests):
        values = {name: np.full(shape, np.nan) for name in measures}

        def resample(item, values=values) -> None:
            (level, seed_of_set, _), test_set = item
            s = np.searchsorted(seeds, seed_of_set)
            k = levels.index(level)
            counts_of_set = counts[:, np.searchsorted(names, test_set.people)]
            for name, measure in measures.items():
                values[name][:, s, k] = measure(test_set, counts_of_set)
            bar.update()

        test_sets = iterate_test_sets(part, methods, labels, identities, condition)
        on_all_cores(resample, test_sets, "cpu")
        people = persons[part.index].nunique()
        for name in measures:
            estimated[test, name] = _mean_and_covariances(values[name], people)
    bar.close()
    return estimated


def _resampled_counts(people: int, replicates: int, seed: int) -> np.ndarray:
    """How often each person counts, (1 + R, people): once each in the first row, which is the data."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(people, np.full(people, 1 / people), size=replicates)
    return np.vstack([np.ones(people), counts]).astype(float)


def _mean_and_covariances(values: np.ndarray, people: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds, (L, M), and its covariances by seed, person and pair, (3, L, M, L, M).

    ``values``, shape (1 + R, S, L, M), is a metric of the data, in the first row, and of R resamples of
    ``people`` people.
    """
    _, seeds, *shape = values.shape
    flat = values.reshape(len(values), seeds, -1)
    plain = flat[0]  # (S, L * M)
    draws = flat[1:]  # (R, S, L * M)
    defined = np.isfinite(plain)
    number = defined.sum(axis=0)  # seeds that define the metric
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(defined, plain, 0).sum(axis=0) / number
        # A seed in which a metric is undefined has no influence on its mean.
        scale = defined / np.sqrt(number * (number - 1.0))
    known = number > 1  # from one seed alone nothing is known but its value
    scale[:, ~known] = 0

    seed_deviation = np.where(defined, plain - mean, 0) * scale
    by_seed = seed_deviation.T @ seed_deviation

    # A resample in which a test set has no value says nothing about it.
    draws = np.where(np.isfinite(draws), draws, np.where(defined, plain, 0)[None])
    draws = np.where(defined, draws - draws.mean(axis=0), 0)
    small_sample = people / max(people - 1, 1) / max(len(draws) - 1, 1)
    common = draws.sum(axis=1) / np.maximum(number, 1)  # what all seeds share
    by_person = small_sample * common.T @ common

    pair_deviation = ((draws - common[:, None]) * scale).reshape(-1, draws.shape[2])
    by_pair = small_sample * pair_deviation.T @ pair_deviation

    covariance = np.stack([by_seed, by_person, by_pair])
    covariance[:, ~known] = np.nan
    covariance[:, :, ~known] = np.nan
    return mean.reshape(shape), covariance.reshape(3, *shape, *shape)


def _pooled_points(counted: list[RightByPerson], metric: Metric) -> np.ndarray:
    """A pooled metric under every condition and method, (L, M)."""
    everyone = np.ones((1, counted[0].images.shape[1]))
    return np.stack([of_level.measure(metric, everyone)[0] for of_level in counted])


def _pooled_covariances(
    counted: dict[str, list[RightByPerson]],
    metrics: dict[str, Metric],
    replicates: int,
    seed: int,
) -> dict[tuple, np.ndarray]:
    """Covariances of pooled metrics by seed, person and pair, (3, L, M, L, M), by (test, metric).

    ``counted`` holds, by test, what :func:`study.results.metrics.right_by_person` counts.
    """
    covariances = {}
    for test, levels in counted.items():
        seeds, people, methods = levels[0].right.shape
        counts = _resampled_counts(people, replicates, seed)[1:]
        everyone = np.ones((1, people))
        for name, metric in metrics.items():
            shape = (3, len(levels), methods, len(levels), methods)
            covariances[test, name] = np.full(shape, np.nan)
            if seeds == 1 or np.isnan(_pooled_points(levels, metric)).any():
                continue
            left_out = [[c.measure(metric, everyone, s)[0] for c in levels] for s in range(seeds)]
            without_seed = np.array(left_out).reshape(seeds, -1)  # (S, L * M)
            without_seed -= without_seed.mean(axis=0)
            by_seed = (seeds - 1) / seeds * without_seed.T @ without_seed

            resampled = np.stack([c.measure(metric, counts) for c in levels], axis=1)
            draws = resampled.reshape(replicates, -1)
            draws = draws - draws.mean(axis=0)
            small_sample = people / max(people - 1, 1) / (replicates - 1)
            by_person = small_sample * draws.T @ draws

            influences = np.stack([c.pair_influence(metric) for c in levels], axis=2)
            influences = influences.reshape(seeds * people, -1)
            by_pair = influences.T @ influences
            covariances[test, name] = np.stack([by_seed, by_person, by_pair]).reshape(shape)
    return covariances


def _check_predictions(predictions: pd.DataFrame, methods, replicates: int, condition: str) -> None:
    if replicates < 2:
        raise ValueError(f"replicates is {replicates}; at least 2 are needed, 1000 is usual")
    for method in methods:
        columns = columns_of(predictions, method)
        if not columns:
            raise ValueError(
                f"predictions have no column {method!r}{suggest(method, predictions.columns)}; train "
                "that method or leave it out"
            )
        bad = ~np.isfinite(predictions[columns].to_numpy(dtype=float)).all(axis=1)
        if bad.any():
            first = predictions[bad].iloc[0]
            raise ValueError(
                f"predictions of {method!r} are not finite at {condition} {first[condition]}, seed "
                f"{first['seed']}, row {first['row']}; train it again"
            )
    there = predictions.groupby([condition, "seed", "test"]).size()
    missing = pd.MultiIndex.from_product(there.index.levels).difference(there.index)
    if len(missing):
        value, seed, test = missing[0]
        raise ValueError(
            f"predictions have no rows of {condition} {value}, seed {seed}, test {test!r}; every seed "
            f"needs every {condition} and test set"
        )


def _person_of_prediction(predictions: pd.DataFrame, identities) -> pd.Series:
    return pd.Series(np.asarray(identities)[predictions["row"]], predictions.index)


def _covariance_inputs(
    predictions, methods, labels, identities, metrics, replicates, seed, condition
) -> dict:
    """Everything that covariances depend on besides code."""
    columns = [condition, "seed", "test", "row", "minority"]
    for method in methods:
        columns += columns_of(predictions, method)
    scores = predictions[[name for name in columns if name in predictions]]
    truth = pd.DataFrame({"label": labels, "identity": identities})
    return {
        "methods": methods,
        "metrics": metrics,
        "replicates": replicates,
        "seed": seed,
        "condition": condition,
        "scores": pd.util.hash_pandas_object(scores, index=False).to_numpy(),
        "truth": pd.util.hash_pandas_object(truth, index=False).to_numpy(),
    }


def variance(covariance: np.ndarray) -> np.ndarray:
    """Two-way clustered variances, shape (...), from those by seed, person and pair, shape (3, ...)."""
    seed, person, pair = covariance
    return np.maximum(seed + person - pair, np.maximum(seed, person))


def interval(point, se, degrees_of_freedom: int, alpha: float = ALPHA) -> dict[str, np.ndarray]:
    """Student t interval and p value of an estimate and its standard error, shape (...).

    The interval holds the truth in a share 1 - ``alpha`` of all studies. With 0 degrees of freedom, or an unknown (NaN) error, the interval is unbounded. Returns ``mean`` (the
    point), ``low``, ``high``, ``p`` of the hypothesis that it is 0, and ``detectable``: the smallest true
    value that would be found clear of 0 with probability :data:`POWER`; shape (...).
    """
    from scipy.special import stdtr  # Student's distribution function

    point = np.asarray(point, dtype=float)
    se = np.asarray(se, dtype=float)
    se = np.where(np.isnan(se) | (degrees_of_freedom < 1), np.inf, se)
    se = np.where(np.isfinite(point), se, np.nan)
    half = t_quantile(degrees_of_freedom, 1 - alpha) * se
    t = np.abs(point) / np.maximum(se, NOTHING)
    p = 2 * stdtr(max(degrees_of_freedom, 1), -t)
    zero = np.maximum(np.abs(point), se) < NOTHING  # equal numbers, up to the order of sums
    return {
        "mean": point,
        "low": point - half,
        "high": point + half,
        "p": np.where(zero, 1.0, p),
        "detectable": half + t_quantile(degrees_of_freedom, 2 * POWER - 1) * se,
    }


def t_quantile(degrees_of_freedom: int, confidence: float = CONFIDENCE) -> float:
    """Student's quantile of a two-sided interval; with no degree of freedom that of one."""
    from scipy.special import stdtrit

    return float(stdtrit(max(degrees_of_freedom, 1), (1 + confidence) / 2))


def at_level(low: float, high: float, degrees_of_freedom: int, alpha: float) -> dict[str, float]:
    """The interval of a level ``alpha``, from the 95 % interval: ``low``, ``high`` and ``detectable``."""
    if not np.isfinite(high - low):  # unbounded at every level, or undefined
        return {"low": low, "high": high, "detectable": high}
    se = (high - low) / 2 / t_quantile(degrees_of_freedom)
    found = interval((low + high) / 2, se, degrees_of_freedom, alpha)
    return {name: float(found[name]) for name in ("low", "high", "detectable")}


def fieller(
    numerator: float, denominator: float, covariance: np.ndarray, degrees_of_freedom: int
) -> dict:
    """Ratio of two estimates with Fieller's interval: ``mean`` (the ratio), ``low``, ``high``.

    The interval holds the ratios r for which ``numerator - r * denominator`` is not significantly
    different from 0: exact under normality. Where the denominator is not clear of 0 it is unbounded,
    the ratio means nothing, and all three values are NaN. E. C. Fieller, "Some problems in interval
    estimation", J. R. Stat. Soc. B 16 (1954). ``covariance``, shape (3, 2, 2), is of the two estimates by
    seed, person and pair; as the variance of a difference is the largest of three, the interval is the
    union of theirs.
    """
    seed, person, pair = covariance
    t2 = t_quantile(degrees_of_freedom) ** 2
    ends = []
    for c in (seed + person - pair, seed, person):
        # The ends are the roots r of q2 r^2 - 2 q1 r + q0 = 0.
        q2 = denominator**2 - t2 * c[1, 1]
        q1 = numerator * denominator - t2 * c[0, 1]
        q0 = numerator**2 - t2 * c[0, 0]
        if degrees_of_freedom < 1 or not q2 > NOTHING**2:
            return dict(_UNDEFINED)
        root = np.sqrt(max(q1**2 - q2 * q0, 0.0))
        ends.append((q1 - root) / q2)
        ends.append((q1 + root) / q2)
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


def holm_levels(p_values, alpha: float = ALPHA) -> np.ndarray:
    """The level at which Holm's procedure tests each hypothesis: p below it means rejected.

    The smallest of m p values is tested at ``alpha / m``, the next one at ``alpha / (m - 1)``, and so on,
    until one is not rejected; that one and all that follow have its level. An interval of this level
    leaves out 0 exactly where :func:`holm` gives a p value below ``alpha``. NaN stays NaN.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    levels = np.full(p.shape, np.nan)
    left = len(order)
    for place in order:
        levels[place] = alpha / left
        if p[place] < levels[place]:
            left = max(left - 1, 1)
    return levels


def summary(estimates: Estimates) -> pd.DataFrame:
    """Mean over seeds of every metric, with its interval.

    One row per test, metric, level and method: ``mean``, ``low``, ``high``.
    """
    return _interval_table(estimates).drop(columns=["p", "detectable"])


def difference(estimates: Estimates) -> pd.DataFrame:
    """As :func:`summary`, for each other method's paired difference to its ``reference``, such as ERM.

    With ``p``, ``detectable`` (see :func:`interval`), ``p_holm``, which is adjusted over the methods and
    levels of a metric and test, and ``reference`` (:meth:`Estimates.reference`).
    """
    table = _difference_table(_gains(estimates))
    table["reference"] = table["method"].map(estimates.reference)
    return table


def difference_of_gains(estimates: Estimates, reference) -> pd.DataFrame:
    """How much more each method gains over ERM under other conditions than under ``reference``.

    Columns as in :func:`difference`. Each row is a method's gain under a condition minus its gain under
    ``reference``, paired. A condition is a bias level, or a value of what :attr:`Estimates.condition` names.
    ``p_holm`` is adjusted over the methods and conditions of a metric and test.
    """
    at = list(estimates.levels).index(reference)
    others = np.delete(estimates.levels, at)
    contrasts = _contrasts(len(estimates.levels), at)
    return difference(_combine_levels(estimates, contrasts, others))


def sensitivity(estimates: Estimates) -> pd.DataFrame:
    """Sensitivity to bias: least-squares slope of a metric over the bias level.

    One row per test, metric and method: ``mean``, ``low``, ``high`` of the slope; the same with the
    suffix ``_difference`` for the slope minus that of the ``reference``; ``p``, ``detectable`` and
    ``p_holm`` (over the methods) of that difference. ERM's own difference is NaN. Empty with fewer than two
    levels.
    """
    return _summary_with_difference(_slope(estimates)).drop(columns="level")


def area(estimates: Estimates) -> pd.DataFrame:
    """Mean level of a metric: the area under its curve over the bias, divided by the range of the bias.

    Columns as in :func:`sensitivity`. The area is the trapezoids'; with one level it is the metric.
    """
    return _summary_with_difference(_area(estimates)).drop(columns="level")


def lead(estimates: Estimates, method: str) -> pd.DataFrame:
    """How far one method is ahead of every other, paired, as a mean over the bias range.

    The row of a method is ``method`` minus it. Columns as in :func:`difference`, without the level and the
    reference, and with ``alpha``: ``low``, ``high`` and ``detectable`` are of the level that Holm's correction
    over the methods leaves, so that an interval leaves out 0 where ``p_holm`` is below .05. The lead over
    the method's own reference is its gain (:func:`area`) and is left out.
    """
    others = _differences_to(_area(estimates), method)
    rivals = [name for name in others.methods if name != estimates.reference(method)]
    behind = np.eye(len(others.methods))[[others.methods.index(name) for name in rivals]]
    ahead = _combine_methods(others, -behind, rivals)
    table = _difference_table(ahead).drop(columns="level")
    table["alpha"] = table.groupby(["test", "metric"])["p"].transform(holm_levels)
    judged = table[np.isfinite(table["alpha"])]
    ends = [
        at_level(row.low, row.high, ahead.degrees_of_freedom((row.test, row.metric)), row.alpha)
        for row in judged.itertuples()
    ]
    if ends:  # all at once: pandas takes a millisecond to set a row
        columns = pd.DataFrame(ends, index=judged.index)
        table.loc[judged.index, list(columns)] = columns
    return table


def power(estimates: Estimates) -> pd.DataFrame:
    """What a study could have shown: the smallest difference of the area to its reference's it would detect.

    One row per test, metric and method but ERM: ``seeds``, ``people``, ``seed_sd``, ``person_sd`` and
    ``pair_sd`` (standard deviation of the difference between training sets, between people, and between
    pairs of them), ``se`` and ``detectable``: see :func:`detectable`. NaN where an error is unknown.
    """
    gains = _gains(_area(estimates))
    rows = []
    for (test, metric), covariance in gains.covariance.items():
        for m, method in enumerate(gains.methods):
            variances = covariance[:, 0, m, 0, m]
            se = float(np.sqrt(variance(variances)))
            of_no_effect = interval(
                0.0 if np.isfinite(se) else np.nan, se, gains.degrees_of_freedom((test, metric))
            )
            seed_variance, person_variance, pair_variance = variances
            # The three parts must add up to the variance, which is no less than either of the first two.
            pair_variance = min(pair_variance, max(seed_variance, person_variance))
            people = gains.people[test, metric]
            pairs = gains.pairs[test, metric]
            rows.append(
                {
                    "test": test,
                    "metric": metric,
                    "method": method,
                    "seeds": gains.seeds,
                    "people": people,
                    "seed_sd": _root((seed_variance - pair_variance) * gains.seeds),
                    "person_sd": _root((person_variance - pair_variance) * people),
                    "pair_sd": _root(pair_variance * pairs),
                    "se": se,
                    "detectable": float(of_no_effect["detectable"]),
                }
            )
    return pd.DataFrame(rows)


def detectable(
    row, seeds: int, people: int, pairs: int | None = None, alpha: float = ALPHA
) -> float:
    """The smallest difference that another study like that of a row of :func:`power` would detect.

    With probability :data:`POWER`, with other numbers of seeds and people:
    ``se^2 = seed_sd^2 / seeds + person_sd^2 / people + pair_sd^2 / pairs``. Pairs are those of a seed
    and a person that it tests: ``seeds * people`` by default, but ``people`` if each seed has its own.
    The test's level is ``alpha``; for the smallest of m p values Holm leaves ``ALPHA / m``.
    """
    if pairs is None:
        pairs = seeds * people
    between_sets_and_people = row["seed_sd"] ** 2 / seeds + row["person_sd"] ** 2 / people
    se = np.sqrt(between_sets_and_people + row["pair_sd"] ** 2 / pairs)
    return float(interval(0.0, se, min(seeds, people) - 1, alpha)["detectable"])


def oracle_gap_recovered(estimates: Estimates) -> pd.DataFrame:
    """Share of the oracle's gain over ERM that a method reaches, with Fieller's interval.

    One row per test, metric, level and method: ``mean``, ``low``, ``high``; and one for the area over
    all levels, whose ``level`` is NaN. Undefined (NaN) where the oracle's own gain is not clear of 0,
    or is a loss. Empty if the oracle was not run.
    """
    levels = estimates.levels
    every_level_and_area = np.vstack([np.eye(len(levels)), area_weights(levels)])
    combined = _combine_levels(estimates, every_level_and_area, np.append(levels, np.nan))
    return _share_of_oracle_gain(combined)


def sensitivity_removed(estimates: Estimates) -> pd.DataFrame:
    """How much of ERM's sensitivity to bias a method removes, as a share of what the oracle removes.

    ``(slope of the method - slope of ERM) / (slope of the oracle - slope of ERM)``, with Fieller's
    interval: 0 is as sensitive as ERM, 1 as the oracle. One row per test, metric and method but these
    two: ``mean``, ``low``, ``high``; NaN where the oracle removes nothing that is clear of 0. Empty with
    fewer than two levels, or without the oracle.
    """
    return _share_of_oracle_gain(_slope(estimates)).drop(columns="level")


def accuracy_by_group(
    predictions: pd.DataFrame, methods, labels, identities, groups, *, replicates: int = 1000
) -> pd.DataFrame:
    """Accuracy by demographic group, and the gap between the best-served group and the worst.

    A gap is a maximum minus a minimum, so chance alone makes it positive, and more so in small groups. Look
    at its difference between two methods, or at the groups themselves.

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
        the number of seeds or of people in the group, whichever is smaller. Empty without columns.
    """
    methods = list(methods)
    identities = np.asarray(identities)
    tests = predictions["test"].astype(str)
    measures = {}  # by (column, group)
    people = {}  # by (test, (column, group))
    for column in groups:
        codes, names = pd.factorize(pd.Series(groups[column]), sort=True)
        for g, name in enumerate(names):
            measures[column, str(name)] = _group_accuracy(codes, g)
        measures[column, "gap"] = _group_gap(codes, len(names))
        for test, rows in predictions.groupby(tests)["row"]:
            sizes = [len(set(identities[rows[codes[rows] == g]])) for g in range(len(names))]
            for name, size in zip(names, sizes, strict=True):
                people[test, (column, str(name))] = size
            people[test, (column, "gap")] = min((n for n in sizes if n), default=0)
    columns = [
        "test", "column", "group", "people", "level", "method", *INTERVAL, *_DIFFERENCE,
    ]  # fmt: skip
    if not measures:
        return pd.DataFrame(columns=columns)
    _check_predictions(predictions, methods, replicates, "level")
    estimated = _estimate_measures(
        predictions, methods, labels, identities, measures, replicates, seed=0
    )
    estimates = Estimates(
        levels=conditions(predictions, "level"),
        methods=methods,
        runs=pd.DataFrame(),
        point={key: point for key, (point, _) in estimated.items()},
        covariance={key: covariance for key, (_, covariance) in estimated.items()},
        seeds=predictions["seed"].nunique(),
        people=people,
        pairs=people,  # not read: power is of whole test sets
    )
    table = _summary_with_difference(estimates)
    table["people"] = [people[key] for key in zip(table["test"], table["metric"], strict=True)]
    table["column"] = [column for column, _ in table["metric"]]
    table["group"] = [group for _, group in table["metric"]]
    return table[columns]


def _group_accuracy(codes: np.ndarray, group: int) -> Callable:
    """A measure: accuracy on the images of one group, by the ``codes`` of all rows of the data set."""

    def measure(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
        in_group = codes[test_set.rows] == group
        return mean_over_images(test_set, counts, test_set.correct, in_group)

    return measure


def _group_gap(codes: np.ndarray, n_groups: int) -> Callable:
    """A measure: accuracy on the best-served group minus that on the worst."""
    measures = [_group_accuracy(codes, group) for group in range(n_groups)]

    def measure(test_set: TestSet, counts: np.ndarray) -> np.ndarray:
        accuracies = np.stack([of_group(test_set, counts) for of_group in measures])
        # Both ignore groups of which nobody was drawn.
        return np.fmax.reduce(accuracies) - np.fmin.reduce(accuracies)

    return measure


def slope_weights(levels) -> np.ndarray:
    """A row, (1, L), whose product with a curve over the levels is its least-squares slope.

    No row, shape (0, 1), for a single level.
    """
    centred = np.asarray(levels, dtype=float) - np.mean(levels)
    if len(centred) < 2:
        return np.empty((0, 1))
    return (centred / (centred @ centred))[None]


def area_weights(levels) -> np.ndarray:
    """A row, (1, L), whose product with a curve is its area (trapezoids) by the range of the levels."""
    if len(levels) == 1:
        return np.ones((1, 1))
    half_steps = np.diff(np.asarray(levels, dtype=float)) / 2
    return (np.append(half_steps, 0) + np.insert(half_steps, 0, 0))[None] / np.ptp(levels)


def _slope(estimates: Estimates) -> Estimates:
    """The study with the slopes over its levels in their place; no level where it had only one."""
    return _over_bias(estimates, slope_weights(estimates.levels))


def _area(estimates: Estimates) -> Estimates:
    """The study with the areas over its levels in their place."""
    return _over_bias(estimates, area_weights(estimates.levels))


def _over_bias(estimates: Estimates, weights: np.ndarray) -> Estimates:
    """The study with weighted sums of its levels, ``weights`` (K, L), in their place."""
    combined = _combine_levels(estimates, weights, np.arange(len(weights)))
    return replace(combined, condition="level")


def _combine_levels(estimates: Estimates, weights: np.ndarray, names) -> Estimates:
    """The study with weighted sums of its levels, ``weights`` (K, L), as new levels ``names``."""
    methods = np.eye(len(estimates.methods))
    return replace(_linear_map(estimates, weights, methods), levels=names)


def _combine_methods(estimates: Estimates, weights: np.ndarray, names: list[str]) -> Estimates:
    """The study with weighted sums of its methods, ``weights`` (N, M), as new methods ``names``."""
    levels = np.eye(len(estimates.levels))
    return replace(_linear_map(estimates, levels, weights), methods=names)


def _gains(estimates: Estimates) -> Estimates:
    """The study's differences of all methods but ERM, each to its own reference."""
    others = [method for method in estimates.methods if method != BASELINE]
    contrasts = np.zeros((len(others), len(estimates.methods)))
    for row, method in zip(contrasts, others, strict=True):
        row[estimates.methods.index(method)] = 1
        row[estimates.methods.index(estimates.reference(method))] = -1
    return _combine_methods(estimates, contrasts, others)


def _differences_to(estimates: Estimates, baseline: str) -> Estimates:
    """The study's differences of all other methods to one."""
    others = [method for method in estimates.methods if method != baseline]
    contrasts = _contrasts(len(estimates.methods), estimates.methods.index(baseline))
    return _combine_methods(estimates, contrasts, others)


def _contrasts(number: int, reference: int) -> np.ndarray:
    """The contrast matrix, (number - 1, number): differences of all others to one of some numbers."""
    contrasts = np.delete(np.eye(number), reference, axis=0)
    contrasts[:, reference] = -1
    return contrasts


def _linear_map(estimates: Estimates, levels: np.ndarray, methods: np.ndarray) -> Estimates:
    """The means and covariances under linear maps of levels, (K, L), and of methods, (N, M)."""
    point = {}
    covariance = {}
    for key, means in estimates.point.items():
        before = estimates.covariance[key]
        half = np.einsum(
            "ka,nb,xabcd->xkncd", levels, methods, np.nan_to_num(before), optimize=True
        )
        after = np.einsum("lc,md,xkncd->xknlm", levels, methods, half, optimize=True)
        # What is unknown makes unknown what it has a weight in, and nothing else (0 * NaN would be NaN).
        unknown_means = _touched(np.isnan(means), levels, methods)
        variances = np.einsum("abab->ab", before[0])
        unknown_variances = _touched(np.isnan(variances), levels, methods)
        mapped = levels @ np.nan_to_num(means) @ methods.T
        point[key] = np.where(unknown_means, np.nan, mapped)
        after[:, unknown_variances] = np.nan
        after[:, :, :, unknown_variances] = np.nan
        covariance[key] = after
    return replace(estimates, point=point, covariance=covariance)


def _touched(marked: np.ndarray, levels: np.ndarray, methods: np.ndarray) -> np.ndarray:
    """Which results (K, N) of the two linear maps have a weight on something ``marked``, (L, M)."""
    return (levels != 0).astype(float) @ marked @ (methods != 0).T > 0


def _share_of_oracle_gain(estimates: Estimates) -> pd.DataFrame:
    """The other methods' gains over ERM as shares of the oracle's, where that is a gain."""
    columns = [*_WHERE, *INTERVAL]
    if ORACLE not in estimates.methods:
        return pd.DataFrame(columns=columns)
    gains = _gains(estimates)
    oracle = gains.methods.index(ORACLE)
    rows = []
    for (test, metric), point in gains.point.items():
        sign = 1 if METRICS[metric].better == "higher" else -1
        covariance = gains.covariance[test, metric]
        degrees_of_freedom = gains.degrees_of_freedom((test, metric))
        for k, level in enumerate(gains.levels):
            for m, method in enumerate(gains.methods):
                if method == ORACLE:
                    continue
                share = _UNDEFINED
                if sign * point[k, oracle] > 0:
                    pair = [m, oracle]
                    share = fieller(
                        numerator=point[k, m],
                        denominator=point[k, oracle],
                        covariance=covariance[:, k][:, pair, k][:, :, pair],
                        degrees_of_freedom=degrees_of_freedom,
                    )
                rows.append([test, metric, level, method, *(share[name] for name in INTERVAL)])
    return pd.DataFrame(rows, columns=columns)


def _interval_table(estimates: Estimates) -> pd.DataFrame:
    """Interval and p value of every number of a study, one row each."""
    levels = estimates.levels
    methods = estimates.methods
    tables = []
    for (test, metric), point in estimates.point.items():
        variances = np.einsum("xlmlm->xlm", estimates.covariance[test, metric])
        se = np.sqrt(variance(variances))
        intervals = interval(point, se, estimates.degrees_of_freedom((test, metric)))
        columns = {
            "test": test,
            "metric": [metric] * point.size,
            estimates.condition: np.repeat(levels, len(methods)),
            "method": methods * len(levels),
        }
        for name, values in intervals.items():
            columns[name] = values.ravel()
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _difference_table(differences: Estimates) -> pd.DataFrame:
    """Differences with their intervals, and p values adjusted over all of a metric and test."""
    table = _interval_table(differences)
    table["p_holm"] = table.groupby(["test", "metric"])["p"].transform(holm)
    return table


def _summary_with_difference(estimates: Estimates) -> pd.DataFrame:
    """A summary beside its differences to the methods' references."""
    return summary(estimates).merge(
        difference(estimates), "left", _WHERE, suffixes=("", "_difference")
    )


def _root(square: float) -> float:
    return np.sqrt(max(square, 0.0))
