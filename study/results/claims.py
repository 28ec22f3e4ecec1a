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
from dataclasses import replace

import numpy as np
import pandas as pd

from cid.methods import get_method
from study.results.inference import (
    Replicates,
    area,
    difference,
    holm,
    sensitivity,
    sensitivity_removed,
)
from study.results.metrics import METRICS
from study.results.tables import _size

ALPHA = 0.05


# Smallest effects of interest: about a tenth of what the strongest bias cost ERM in the runs that
# settled the design (5 points of accuracy, 10 of worst decile), and a twentieth of the standard
# deviation over people there (10 points). For a slope it is the effect on the change from bias 0 to 1.
SMALLEST = {"accuracy": 0.005, "worst_decile": 0.01, "identity_sd": 0.005}


MUCH = 0.5  # "much less sensitive": at least this share of ERM's slope is removed


SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"


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


_INTERVAL = ("mean", "low", "high")
