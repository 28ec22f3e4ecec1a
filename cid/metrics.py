"""Identity-robustness metrics, their intervals, and comparisons between methods.

A *run* is one method on one biased training set (one level, one seed). Its metrics are computed from
the scores of its test images and their true identities, which are evaluation data: no method without
identity labels sees them.

Intervals are Student t intervals over seeds. A seed redraws which identities are unseen, which class
is whose majority, and which images train and test; so an interval speaks of redraws from this
population of people, not of another population.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import roc_auc_score

METRICS = {
    "accuracy": "Accuracy",
    "worst_decile": "Worst-decile accuracy",
    "worst_identity": "Worst-identity accuracy",
    "identity_sd": "Standard deviation over identities",
    "tpr_gap": "Largest TPR gap",
    "tnr_gap": "Largest TNR gap",
}
CONFIDENCE = 0.95


def identity_accuracy(labels, scores, identities) -> pd.Series:
    """Share of each identity's images that are classified right (score > 0 means class 1).

    Parameters
    ----------
    labels : int array, shape (n,)
    scores : float array, shape (n,)
        Logits of class 1.
    identities : array, shape (n,)

    Returns
    -------
    pandas.Series indexed by identity.
    """
    right = (np.asarray(scores) > 0) == (np.asarray(labels) == 1)
    return pd.Series(right).groupby(np.asarray(identities)).mean()


def worst_decile(per_identity) -> float:
    """Mean accuracy of the worst tenth of identities, rounded up to at least one identity."""
    ordered = np.sort(np.asarray(per_identity, dtype=float))
    return float(ordered[: max(1, int(np.ceil(len(ordered) / 10)))].mean())


def run_metrics(labels, scores, identities) -> dict[str, float]:
    """All metrics of one run; arguments as in :func:`identity_accuracy`.

    ``accuracy`` is the share of all test images classified right; the study's test sets hold as many
    images of either class for every identity, so it is class-balanced too. ``worst_decile``,
    ``worst_identity`` and ``identity_sd`` describe the distribution of accuracy over identities.
    ``tpr_gap`` and ``tnr_gap`` are the largest differences between two identities' true positive and
    true negative rates.
    """
    labels, scores, identities = map(np.asarray, (labels, scores, identities))
    per_identity = identity_accuracy(labels, scores, identities)
    gaps = {}
    for name, value in (("tpr_gap", 1), ("tnr_gap", 0)):
        rows = labels == value
        rate = identity_accuracy(labels[rows], scores[rows], identities[rows])
        gaps[name] = float(rate.max() - rate.min())
    return {
        "accuracy": float(((scores > 0) == (labels == 1)).mean()),
        "worst_decile": worst_decile(per_identity),
        "worst_identity": float(per_identity.min()),
        "identity_sd": float(per_identity.std(ddof=0)),
        **gaps,
    }


def evaluate(predictions: pd.DataFrame, methods, labels, identities) -> pd.DataFrame:
    """Metrics of every run.

    Parameters
    ----------
    predictions : pandas.DataFrame
        ``level``, ``seed``, ``test``, ``row`` and a score column for every method.
    methods : list of str
    labels, identities : array, shape (n,)
        Of the whole data set, indexed by ``row``.

    Returns
    -------
    pandas.DataFrame
        One row a run and test set: ``level``, ``seed``, ``test``, ``method``, and the metrics.
    """
    labels, identities = np.asarray(labels), np.asarray(identities)
    runs = []
    for (level, seed, test), part in predictions.groupby(["level", "seed", "test"]):
        rows = part["row"].to_numpy()
        for method in methods:
            runs.append(
                {"level": level, "seed": seed, "test": test, "method": method}
                | run_metrics(labels[rows], part[method].to_numpy(), identities[rows])
            )
    return pd.DataFrame(runs)


def accuracy_by_identity(predictions: pd.DataFrame, methods, labels, identities) -> pd.DataFrame:
    """Accuracy of every identity under every method, over all seeds that tested it.

    Arguments as in :func:`evaluate`.

    Returns
    -------
    pandas.DataFrame
        One row a level, test set and identity (the index), one column a method.
    """
    truth = np.asarray(labels)[predictions["row"]] == 1
    right = (predictions[methods] > 0).eq(truth, axis=0)
    keys = [predictions["level"], predictions["test"]]
    people = pd.Series(
        np.asarray(identities)[predictions["row"]], predictions.index, name="identity"
    )
    return right.groupby([*keys, people]).mean()


def mean_interval(values) -> dict[str, float]:
    """Mean of independent values with a Student t interval: ``mean``, ``low``, ``high``, ``n``.

    With one value the interval is unbounded (infinite), never absent.
    """
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return {"mean": mean, "low": -np.inf, "high": np.inf, "n": n}
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "n": n}


def wide(runs: pd.DataFrame, metric: str, test: str) -> pd.DataFrame:
    """Values of one metric on one test set: rows (level, seed), one column a method."""
    rows = runs[runs["test"] == test]
    return rows.pivot(index=["level", "seed"], columns="method", values=metric)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over seeds of every metric.

    Parameters
    ----------
    runs : pandas.DataFrame
        One row a run and test set: ``level``, ``seed``, ``method``, ``test``, and the metrics.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric, level and method: ``mean``, ``low``, ``high``, ``n``.
    """
    return _over_seeds(runs, lambda values: values)


def difference(runs: pd.DataFrame, baseline: str = "erm") -> pd.DataFrame:
    """As :func:`summary`, for each method's difference to the baseline within the same seed."""
    return _over_seeds(
        runs, lambda values: values.sub(values[baseline], axis=0).drop(columns=baseline)
    )


def _over_seeds(runs, transform) -> pd.DataFrame:
    rows = []
    for test in runs["test"].unique():
        for metric in METRICS:
            for level, values in transform(wide(runs, metric, test)).groupby("level"):
                for method in values:
                    rows.append(
                        {"test": test, "metric": metric, "level": level, "method": method}
                        | mean_interval(values[method])
                    )
    return pd.DataFrame(rows)


def sensitivity(runs: pd.DataFrame, baseline: str = "erm") -> pd.DataFrame:
    """Sensitivity to bias: least-squares slope of a metric over the bias level, per seed.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric and method: ``mean``, ``low``, ``high``, ``n`` of the slope, and the
        same with the suffix ``_difference`` for the slope minus the baseline's. Empty with fewer than
        two levels.
    """
    rows = []
    if runs["level"].nunique() < 2:
        return pd.DataFrame(rows)
    for test in runs["test"].unique():
        for metric in METRICS:
            values = wide(runs, metric, test)
            slopes = values.groupby("seed").apply(
                lambda table: pd.Series(
                    np.polyfit(table.index.get_level_values("level"), table.to_numpy(), 1)[0],
                    index=table.columns,
                )
            )
            for method in slopes:
                apart = mean_interval(slopes[method] - slopes[baseline])
                rows.append(
                    {"test": test, "metric": metric, "method": method}
                    | mean_interval(slopes[method])
                    | {f"{key}_difference": value for key, value in apart.items()}
                )
    return pd.DataFrame(rows)


def oracle_gap_recovered(
    runs: pd.DataFrame, baseline: str = "erm", oracle: str = "oracle"
) -> pd.DataFrame:
    """Share of the oracle's gain over the baseline that a method reaches, with Fieller's interval.

    The share is a ratio of two means over the same seeds. Fieller's theorem gives its exact interval
    under normality; where the oracle's own gain is not clear of 0 the interval is unbounded, the
    share means nothing, and all three values are NaN.

    Returns
    -------
    pandas.DataFrame
        One row per test, metric, level and method: ``mean``, ``low``, ``high``, ``n``.
    """
    rows = []
    for test in runs["test"].unique():
        for metric in METRICS:
            values = wide(runs, metric, test)
            for level, table in values.sub(values[baseline], axis=0).groupby("level"):
                for method in table.columns.drop([baseline, oracle]):
                    rows.append(
                        {"test": test, "metric": metric, "level": level, "method": method}
                        | ratio_interval(table[method], table[oracle])
                    )
    return pd.DataFrame(rows)


def ratio_interval(numerator, denominator) -> dict[str, float]:
    """Ratio of two paired means with Fieller's interval; NaN where the denominator may be 0.

    E. C. Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954).
    """
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    n = len(a)
    undefined = {"mean": np.nan, "low": np.nan, "high": np.nan, "n": n}
    if n < 2:
        return undefined
    covariance = np.cov(a, b) / n
    t2 = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) ** 2
    # Ratios r for which mean(a - r b) is not significantly different from 0: a quadratic in r.
    q2 = b.mean() ** 2 - t2 * covariance[1, 1]
    q1 = a.mean() * b.mean() - t2 * covariance[0, 1]
    q0 = a.mean() ** 2 - t2 * covariance[0, 0]
    if q2 <= 0:
        return undefined
    root = np.sqrt(max(q1**2 - q2 * q0, 0.0))
    return {"mean": a.mean() / b.mean(), "low": (q1 - root) / q2, "high": (q1 + root) / q2, "n": n}


def pair_similarities(embeddings, identities) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarity of all pairs of images, same person and different people.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit vectors.
    identities : array, shape (n,)

    Returns
    -------
    same, different : float32 arrays
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    codes = np.unique(np.asarray(identities), return_inverse=True)[1]
    first, second = np.triu_indices(len(codes), 1)
    cosine = (embeddings @ embeddings.T)[first, second]
    same = codes[first] == codes[second]
    return cosine[same], cosine[~same]


def verification_auc(same, different) -> float:
    """Area under the ROC curve of telling same-person pairs from different-people pairs."""
    truth = np.r_[np.ones(len(same), bool), np.zeros(len(different), bool)]
    return float(roc_auc_score(truth, np.r_[same, different]))


def headline(tables: dict[str, pd.DataFrame], test: str = "seen") -> str:
    """The study in one Markdown table: ERM, and the gain of CID and of the oracle over it.

    Parameters
    ----------
    tables : dict of pandas.DataFrame
        ``summary`` and ``difference``, from the functions of those names.
    test : {"seen", "unseen"}
    """
    value = _lookup(tables["summary"], test)
    gain = _lookup(tables["difference"], test)
    lines = [
        "| bias | accuracy, ERM | CID − ERM | oracle − ERM | worst decile, ERM | CID − ERM | oracle − ERM |",
        "|---|---|---|---|---|---|---|",
    ]
    for level in sorted(tables["summary"]["level"].unique()):
        cells = [f"{level:g}"]
        for metric in ("accuracy", "worst_decile"):
            cells.append(f"{100 * value[metric, level, 'erm']['mean']:.1f} %")
            cells += [_points(gain.get((metric, level, m))) for m in ("cid", "oracle")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _lookup(table: pd.DataFrame, test: str) -> dict:
    rows = table[table["test"] == test]
    return {(row["metric"], row["level"], row["method"]): row for row in rows.to_dict("records")}


def _points(row: dict | None) -> str:
    if row is None:  # the study does not run this method
        return "–"
    text = f"{100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
    return text.replace("-", "−")


def write_tables(folder, runs: pd.DataFrame, tables: dict[str, pd.DataFrame], about: dict) -> None:
    """Write everything the evaluation found.

    Parameters
    ----------
    folder : path-like
        Receives ``runs.csv``, one CSV a table, ``<metric>-<test>.csv`` (means, one column a method,
        for ``dvc plots``), ``headline.md``, and ``metrics.json`` (for ``dvc metrics``).
    runs : pandas.DataFrame
        From :func:`evaluate`.
    tables : dict of pandas.DataFrame
        ``summary``, ``difference``, ``sensitivity``, ``recovered``.
    about : dict
        What goes first into ``metrics.json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {"runs": runs, **tables}.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    numbers: dict = dict(about)
    for test in sorted(runs["test"].unique()):
        for metric in ("accuracy", "worst_decile"):
            rows = tables["summary"].query("test == @test and metric == @metric")
            means = rows.pivot(index="level", columns="method", values="mean")
            means.to_csv(folder / f"{metric}-{test}.csv", float_format="%.6g")
        numbers[test] = {
            f"bias {level:g}": {
                metric: {
                    "mean": _numbers(tables["summary"], test, metric, level)["mean"],
                    "minus ERM": _numbers(tables["difference"], test, metric, level),
                }
                for metric in METRICS
            }
            for level in sorted(runs["level"].unique())
        }
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (folder / "headline.md").write_text(headline(tables), encoding="utf-8")


def _numbers(table: pd.DataFrame, test: str, metric: str, level: float) -> dict:
    """``{"mean": {method: value}, "low": ..., "high": ...}`` to five decimals; unbounded is null."""
    rows = table.query("test == @test and metric == @metric and level == @level")
    return {
        key: {
            row["method"]: round(row[key], 5) if np.isfinite(row[key]) else None
            for row in rows.to_dict("records")
        }
        for key in ("mean", "low", "high")
    }
