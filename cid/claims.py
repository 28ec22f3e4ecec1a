"""What a reader gets: a verdict on each claim of the method, the headline table, and the files.

The claims are those of Qi & Ardeshir, "Improving Identity-Robustness for Face Models", arXiv
2304.03838 (2023): with conditional inverse density weights and no identity annotation, (1) performance
is more uniform over people, (2) overall performance often improves too, and (3) the model is much less
sensitive to bias of the training set.

The rules are fixed here, the same for every result. For a difference to ERM: *supported* if it is clear of 0
in the claimed direction after Holm's correction over the differences of one method, task and bias kind;
*not supported* if it is as clear in the other direction, or if its whole 95 % interval lies below the
smallest effect of interest, so that a precise null is a refutation; else *inconclusive*. A clear effect
that is smaller than of interest stays supported and is marked as not relevant.

Claim 3 is to be read beside claim 2: a model that is poor at every bias level is not sensitive either.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cid.inference import Replicates, area, difference, holm, sensitivity, sensitivity_removed
from cid.methods import METHODS, get_method
from cid.metrics import METRICS

ALPHA = 0.05
# Smallest effects of interest: about a tenth of what the strongest bias cost ERM in the runs that
# settled the design (5 points of accuracy, 10 of worst decile), and a twentieth of the standard
# deviation over people there (10 points). For a slope it is the effect on the change from bias 0 to 1.
SMALLEST = {"accuracy": 0.005, "worst_decile": 0.01, "identity_sd": 0.005}
MUCH = 0.5  # "much less sensitive": at least this share of ERM's slope is removed
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
HEADLINE = ("cid", "cid-knn", "oracle")

# Claim, functional, metric, statement.
_CLAIMS = (
    ("1", "area", "worst_decile", "The worst-served tenth of people is served better than by ERM."),
    ("1", "area", "identity_sd", "Accuracy varies less between people than under ERM."),
    ("2", "area", "accuracy", "Overall accuracy is higher than under ERM."),
    ("3a", "slope", "accuracy", "Accuracy is less sensitive to bias than under ERM."),
    ("3a", "slope", "worst_decile", "The worst decile is less sensitive to bias than under ERM."),
    ("3b", "share", "accuracy", "Accuracy is much less sensitive to bias than under ERM."),
    (
        "3b",
        "share",
        "worst_decile",
        "The worst decile is much less sensitive to bias than under ERM.",
    ),
)
_MEASURES = {
    "area": "{}, mean over the bias range, minus ERM's",
    "slope": "{}, slope over the bias level, minus ERM's",
    "share": "{}, share of ERM's slope over the bias level that is removed",
}


# ---------------------------------------------------------------------------- verdicts


def verdict(
    effect: float, low: float, high: float, p_holm: float, smallest: float, better: str = "higher"
) -> str:
    """Verdict on the claim that a difference to ERM is an improvement, by the rule above.

    Parameters
    ----------
    effect, low, high : float
        Difference and its 95 % interval; NaN where undefined.
    p_holm : float
        Adjusted p value of the hypothesis that it is 0.
    smallest : float
        Smallest effect of interest, > 0.
    better : {"higher", "lower"}
        Direction of an improvement.

    Returns
    -------
    str
        "supported", "not supported" or "inconclusive".
    """
    gain, most = (effect, high) if better == "higher" else (-effect, -low)
    if p_holm < ALPHA and gain > 0:
        return SUPPORTED
    if (p_holm < ALPHA and gain < 0) or most < smallest:
        return NOT_SUPPORTED
    return INCONCLUSIVE


def share_verdict(low: float, high: float) -> str:
    """Verdict on "much less sensitive" from the interval of the share of the slope removed."""
    if low > MUCH:
        return SUPPORTED
    return NOT_SUPPORTED if high < MUCH else INCONCLUSIVE


def claims(
    replicates: Replicates,
    method: str,
    *,
    task: str,
    kind: str,
    test: str = "seen",
    baseline: str = "erm",
) -> list[dict]:
    """Verdicts on claims 1 to 3 for one method, task and bias kind.

    Parameters
    ----------
    replicates : Replicates
        With the metrics ``accuracy``, ``worst_decile`` and ``identity_sd``.
    method : str
        A key of :data:`cid.methods.METHODS`.
    task, kind : str
        Attribute predicted and kind of bias, for the record.
    test : {"seen", "unseen"}
    baseline : str

    Returns
    -------
    list of dict
        ``claim``, ``statement``, ``task``, ``kind``, ``method``, ``test``, ``metric``, ``measure``,
        ``effect``, ``low``, ``high``, ``p``, ``p_holm`` (None for a share, which is judged by its
        interval), ``smallest``, ``relevant`` (whether the effect reaches the smallest of interest;
        None for a share), ``labels_used``, ``verdict``, ``rule``; and for claim 2 ``levels``: at which
        bias levels the difference is clear of 0 after Holm's correction over the levels. Undefined
        numbers are NaN.

    Raises
    ------
    ValueError
        If the method, baseline, test set or a metric is missing from the replicates.
    """
    pair = _pair(replicates, method, test, baseline)
    tables = {
        "area": _by_metric(area(pair, baseline), method, "_difference"),
        "slope": _by_metric(sensitivity(pair, baseline), method, "_difference"),
        "share": _by_metric(sensitivity_removed(pair, baseline), method, ""),
    }
    entries = []
    for claim, functional, metric, statement in _CLAIMS:
        found = tables[functional].get(metric, dict.fromkeys(("effect", "low", "high"), np.nan))
        entries.append(
            {"claim": claim, "statement": statement, "task": task, "kind": kind}
            | {"method": method, "test": test, "metric": metric}
            | {"measure": _MEASURES[functional].format(METRICS[metric].title)}
            | found
            | {"p": found.get("p", np.nan), "p_holm": np.nan, "smallest": None, "relevant": None}
            | {"labels_used": _labels_used(method)}
        )
    for entry, p_holm in zip(entries, holm([e["p"] for e in entries]), strict=True):
        entry["p_holm"] = float(p_holm)
        _judge(entry)
        if entry["claim"] == "2":
            entry["levels"] = _clear_levels(difference(pair, baseline), entry["metric"])
    return entries


def identity_free(
    with_identities: dict, without: dict, *, task: str, kind: str, method: str
) -> dict:
    """Verdict on claim 4, that training needs no identity annotation: an exact comparison.

    Parameters
    ----------
    with_identities, without : dict of arrays
        The same named results (weights, logits), computed with the true identities handed to the
        method and withheld from it.
    task, kind, method : str

    Returns
    -------
    dict
        As in :func:`claims`, without numbers, and with ``sha256`` of both sides and ``differing``, the
        names of the arrays whose type, shape or bytes differ.

    Raises
    ------
    ValueError
        If there is nothing to compare, or an array holds Python objects.
    """
    if not with_identities or not without:
        raise ValueError("nothing to compare: name at least one array on either side")
    names = sorted(with_identities.keys() | without.keys())
    one, two = ({n: _digest(side, n) for n in names} for side in (with_identities, without))
    differing = [name for name in names if one[name] != two[name]]
    sides = {
        label: hashlib.sha256("".join(f"{n} {d}\n" for n, d in side.items()).encode()).hexdigest()
        for label, side in (("with_identities", one), ("without", two))
    }
    return (
        {"claim": "4", "statement": "Training uses no identity annotation.", "task": task}
        | {"kind": kind, "method": method, "test": None, "metric": None}
        | {"measure": "bytes of " + ", ".join(names) + ", with the identities and without"}
        | dict.fromkeys(("effect", "low", "high", "p", "p_holm", "smallest", "relevant"))
        | {"labels_used": _labels_used(method) | {"evaluation": []}}
        | {"verdict": NOT_SUPPORTED if differing else SUPPORTED}
        | {"rule": "supported if and only if all bytes are equal with the identities withheld"}
        | {"sha256": sides, "differing": differing}
    )


def _judge(entry: dict) -> None:
    """Fill in the verdict of an entry, its rule, and whether the effect is of interest."""
    low, high, metric = entry["low"], entry["high"], entry["metric"]
    if entry["claim"] == "3b":
        entry["verdict"] = share_verdict(low, high)
        entry["rule"] = (
            f"supported if the whole 95 % interval is above {MUCH:g}, not supported if it is below, "
            "else inconclusive; undefined where ERM's own slope is not clearly a loss"
        )
        return
    smallest, better = SMALLEST[metric], METRICS[metric].better
    gain = entry["effect"] if better == "higher" else -entry["effect"]
    entry["smallest"], entry["relevant"] = smallest, bool(gain >= smallest)
    entry["verdict"] = verdict(entry["effect"], low, high, entry["p_holm"], smallest, better)
    entry["rule"] = (
        f"supported if {better} than ERM's with p < {ALPHA:g} after Holm; not supported if the opposite "
        f"holds or the whole 95 % interval is short of {_size(smallest)}; else inconclusive"
    )


def _pair(replicates: Replicates, method: str, test: str, baseline: str) -> Replicates:
    """Only the two methods, the test set and the metrics that the claims are about."""
    for name in (method, baseline):
        if name not in replicates.methods:
            raise ValueError(
                f"method {name!r} is not among {', '.join(replicates.methods)}; evaluate it too"
            )
    if method == baseline:
        raise ValueError(
            f"method {method!r} is the baseline; name the method that is claimed better"
        )
    keys = [(test, metric) for metric in SMALLEST]
    for key in keys:
        if key not in replicates.point:
            raise ValueError(
                f"metric {key[1]!r} of test set {key[0]!r} was not resampled; give it to bootstrap"
            )
    at = [replicates.methods.index(name) for name in (baseline, method)]
    return replace(
        replicates,
        methods=[baseline, method],
        point={key: replicates.point[key][..., at] for key in keys},
        draws={key: replicates.draws[key][..., at] for key in keys},
        freedom={key: replicates.freedom[key] for key in keys},
    )


def _by_metric(table: pd.DataFrame, method: str, suffix: str) -> dict[str, dict[str, float]]:
    """``effect``, ``low``, ``high`` and, where there is one, ``p`` of a method by metric."""
    names = {f"mean{suffix}": "effect", f"low{suffix}": "low", f"high{suffix}": "high", "p": "p"}
    rows = table[table["method"] == method].to_dict("records")
    return {
        row["metric"]: {new: float(row[old]) for old, new in names.items() if old in row}
        for row in rows
    }


def _clear_levels(table: pd.DataFrame, metric: str) -> dict:
    rows = table[table["metric"] == metric]
    clear = rows[rows["p_holm"] < ALPHA]
    return {
        "better": [float(b) for b in clear.loc[clear["mean"] > 0, "level"]],
        "worse": [float(b) for b in clear.loc[clear["mean"] < 0, "level"]],
        "of": len(rows),
    }


def _labels_used(method: str) -> dict[str, list[str]]:
    return {"training": list(get_method(method).sees), "evaluation": ["class", "identity"]}


def _digest(arrays: dict, name: str) -> str:
    """Hash of an array's type, shape and bytes; what is missing differs from everything."""
    if name not in arrays:
        return "missing"
    array = np.ascontiguousarray(arrays[name])
    if array.dtype.hasobject:
        raise ValueError(
            f"array {name!r} holds Python objects, whose bytes say nothing; give numbers"
        )
    about = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(about + array.tobytes()).hexdigest()


# ---------------------------------------------------------------------------- what is written


def write_claims(path, entries: list[dict]) -> None:
    """Write entries as JSON: sorted, effects to five decimals, p to three digits.

    What is unbounded or undefined is null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{key: _plain(key, value) for key, value in e.items()} for e in _ordered(entries)]
    text = json.dumps(lines, indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def claims_table(entries: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Entries as a table: a head and one row of cells a claim, for Markdown and HTML alike.

    Entries may come from :func:`claims` or be read back from JSON.
    """
    head = ["claim", "task", "bias", "method", "test", "statement"]
    head += ["effect [95 % interval]", "p (Holm)", "verdict"]
    rows = [
        [
            entry["claim"],
            entry["task"],
            entry["kind"],
            _title(entry["method"]),
            entry["test"] or "–",
            entry["statement"],
            _effect(entry),
            _p(entry["p_holm"]),
            _verdict_cell(entry),
        ]
        for entry in _ordered(entries)
    ]
    return head, rows


def headline_cells(
    difference: pd.DataFrame, summary: pd.DataFrame, test: str = "seen", methods=HEADLINE
) -> tuple[list[str], list[list[str]]]:
    """The study in one table: accuracy and worst decile of ERM, and what methods gain over it.

    Parameters
    ----------
    difference, summary : pandas.DataFrame
        From the functions of those names in :mod:`cid.inference`, or read back from CSV.
    test : {"seen", "unseen"}
    methods : iterable of str
        In this order; one that was not run is left out.

    Returns
    -------
    head : list of str
    rows : list of lists of str, one a bias level
        Gains are in percentage points, with intervals.
    """
    value, gain = _lookup(summary, test), _lookup(difference, test)
    methods = [m for m in methods if m in set(difference["method"])]
    gains = [f"{_title(m)} − ERM" for m in methods]
    head = ["bias", "accuracy, ERM", *gains, "worst decile, ERM", *gains]
    rows = []
    for level in sorted(summary["level"].unique()):
        cells = [f"{level:g}"]
        for metric in ("accuracy", "worst_decile"):
            cells.append(f"{100 * value[metric, level, 'erm']['mean']:.1f} %")
            cells += [points(**gain[metric, level, m]) for m in methods]
        rows.append(cells)
    return head, rows


def points(mean: float, low: float, high: float) -> str:
    """A difference and its interval in percentage points, as in ``+0.50 [−0.10, +1.10]``."""
    # Rounded to what a CSV keeps first, so that a table read back is printed the same.
    mean, low, high = (round(100 * value, 4) for value in (mean, low, high))
    return _typeset(f"{mean:+z.2f} [{low:+z.2f}, {high:+z.2f}]")


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, with a line break at its end."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def write_tables(folder, runs: pd.DataFrame, tables: dict[str, pd.DataFrame], about: dict) -> None:
    """Write everything the evaluation found.

    Parameters
    ----------
    folder : path-like
        Receives ``runs.csv``, one CSV a table, ``accuracy-<test>.csv`` and ``worst_decile-<test>.csv``
        (means, one column a method, for ``dvc plots``), ``headline.md``, and ``metrics.json`` (for
        ``dvc metrics``; the metrics that the claims rest on).
    runs : pandas.DataFrame
        ``Replicates.runs``.
    tables : dict of pandas.DataFrame
        ``summary`` and ``difference``, and any others under their names.
    about : dict
        What goes first into ``metrics.json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {"runs": runs, **tables}.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    summary, difference = tables["summary"], tables["difference"]
    numbers: dict = dict(about)
    for test in sorted(summary["test"].unique()):
        value, gain = _lookup(summary, test), _lookup(difference, test)
        for metric in ("accuracy", "worst_decile"):
            rows = summary[(summary["test"] == test) & (summary["metric"] == metric)]
            means = rows.pivot(index="level", columns="method", values="mean")
            means.to_csv(folder / f"{metric}-{test}.csv", float_format="%.6g")
        numbers[test] = {
            f"bias {level:g}": {
                metric: {
                    "mean": _numbers(value, metric, level, "mean"),
                    "minus ERM": {k: _numbers(gain, metric, level, k) for k in _INTERVAL},
                }
                for metric in SMALLEST
                if metric in set(summary["metric"])
            }
            for level in sorted(summary["level"].unique())
        }
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    text = markdown_table(*headline_cells(difference, summary))
    (folder / "headline.md").write_text(text, encoding="utf-8")


def write_rows(path, table: pd.DataFrame, names: list) -> None:
    """Write a table whose ``level`` is a place in ``names``, with the names in its stead."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = ["all" if name is None else str(name) for name in names]
    named = table.assign(level=[shown[int(place)] for place in table["level"]])
    named.rename(columns={"level": "value"}).to_csv(path, index=False, float_format="%.6g")


def by_task(studies: dict[tuple, Replicates], functional) -> pd.DataFrame:
    """One table of a functional of :mod:`cid.inference` over studies by (task, kind)."""
    return pd.concat(
        [functional(study).assign(task=task, kind=kind) for (task, kind), study in studies.items()],
        ignore_index=True,
    )


_INTERVAL = ("mean", "low", "high")


def _lookup(table: pd.DataFrame, test: str) -> dict[tuple, dict[str, float]]:
    """``mean``, ``low`` and ``high`` by (metric, level, method)."""
    rows = table[table["test"] == test]
    keys = zip(rows["metric"], rows["level"], rows["method"], strict=True)
    return dict(zip(keys, rows[list(_INTERVAL)].to_dict("records"), strict=True))


def _numbers(cells: dict, metric: str, level: float, key: str) -> dict:
    """``{method: value}`` to five decimals; what is unbounded or undefined is null."""
    return {
        method: round(row[key], 5) if np.isfinite(row[key]) else None
        for (name, at, method), row in cells.items()
        if (name, at) == (metric, level)
    }


def _ordered(entries: list[dict]) -> list[dict]:
    keys = ("task", "kind", "method", "claim", "test", "metric")
    return sorted(entries, key=lambda entry: [str(entry[key]) for key in keys])


def _plain(key: str, value):
    """A value as JSON knows it."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return float(f"{value:.3g}") if key in ("p", "p_holm") else round(value, 5)


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def _effect(entry: dict) -> str:
    if entry["claim"] == "4":
        return "differ: " + ", ".join(entry["differing"]) if entry["differing"] else "bytes equal"
    # JSON has no infinity: null on a side of an effect that is there means unbounded.
    mean, low, high = (entry[key] for key in ("effect", "low", "high"))
    if mean is None or math.isnan(mean):
        return "undefined"
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if entry["claim"] == "3b":
        return _typeset(f"{mean:z.2f} [{low:z.2f}, {high:z.2f}]")
    return points(mean, low, high) + " points"


def _p(p: float | None) -> str:
    if p is None or math.isnan(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "under 0.001"


def _verdict_cell(entry: dict) -> str:
    if entry["verdict"] == SUPPORTED and entry["relevant"] is False:
        return f"{SUPPORTED}, but smaller than {_size(entry['smallest'])}"
    return entry["verdict"]


def _size(smallest: float) -> str:
    return "1 point" if smallest == 0.01 else f"{100 * smallest:g} points"


def _typeset(text: str) -> str:
    return text.replace("-", "−").replace("inf", "∞")
