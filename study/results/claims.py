"""A verdict on each claim of the method, by rules fixed here.

The claims are those of Qi & Ardeshir, "Improving Identity-Robustness for Face Models", arXiv
2304.03838 (2023): with conditional inverse density weights and no identity annotation, (1) performance
is more uniform over people, (2) overall performance often improves too, and (3) the model is much less
sensitive to bias of the training set.

The rules are the same for every result. For a difference to ERM: *supported* if it is clear of 0 in the
claimed direction after Holm's correction over the differences of one method, task and bias kind; *not
supported* if it is as clear in the other direction, or if its whole 95 % interval lies below the
smallest effect of interest, so that a precise null is a refutation; else *inconclusive*. A clear effect
that is smaller than of interest stays supported and is marked as not relevant.

Claim 3 is to be read beside claim 2: a model that is poor at every bias level is not sensitive either.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd

from cid.methods import METHODS
from cid.names import find
from study.results import inference
from study.results.inference import BASELINE, Replicates, holm
from study.results.metrics import METRICS

ALPHA = 0.05

# Smallest effects of interest: about a tenth of what the strongest bias cost ERM in the runs that
# settled the design (5 points of accuracy, 10 of worst decile), and a twentieth of the standard
# deviation over people there (10 points). For a slope it is the effect on the change from bias 0 to 1.
SMALLEST = {"accuracy": 0.005, "worst_decile": 0.01, "identity_sd": 0.005}
MUCH = 0.5  # "much less sensitive": at least this share of ERM's slope is removed

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"

_MEASURES = {
    "area": "{}, mean over the bias range, minus ERM's",
    "slope": "{}, slope over the bias level, minus ERM's",
    "share": "{}, share of ERM's slope over the bias level that is removed",
}

_MEASURE_OF = {"1": "area", "2": "area", "3a": "slope", "3b": "share"}
# Claim, metric, statement.
_CLAIMS = (
    ("1", "worst_decile", "The worst-served tenth of people is served better than by ERM."),
    ("1", "identity_sd", "Accuracy varies less between people than under ERM."),
    ("2", "accuracy", "Overall accuracy is higher than under ERM."),
    ("3a", "accuracy", "Accuracy is less sensitive to bias than under ERM."),
    ("3a", "worst_decile", "The worst decile is less sensitive to bias than under ERM."),
    ("3b", "accuracy", "Accuracy is much less sensitive to bias than under ERM."),
    ("3b", "worst_decile", "The worst decile is much less sensitive to bias than under ERM."),
)


def verdict(
    effect: float, low: float, high: float, p_holm: float, smallest: float, better: str = "higher"
) -> str:
    """Verdict on the claim that a difference to ERM is an improvement, by the rule above.

    ``effect``, ``low`` and ``high`` are the difference and its 95 % interval, NaN where undefined;
    ``smallest`` is the smallest effect of interest, > 0; ``better`` is "higher" or "lower".
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


def points_of(effect: float) -> str:
    """The size of an effect in words: ``0.5 points``."""
    return "1 point" if effect == 0.01 else f"{100 * effect:g} points"


def claims(
    replicates: Replicates, method: str, *, task: str, kind: str, test: str = "seen"
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

    Returns
    -------
    list of dict
        ``claim``, ``statement``, ``task``, ``kind``, ``method``, ``test``, ``metric``, ``measure``,
        ``effect``, ``low``, ``high``, ``p``, ``p_holm`` (None for a share, which is judged by its
        interval), ``smallest``, ``relevant`` (whether the effect reaches the smallest of interest;
        None for a share), ``labels_used``, ``verdict``, ``rule``; and for claim 2 ``levels``: at which
        the difference is clear of 0 after Holm's correction over them. Undefined numbers are NaN.

    Raises
    ------
    ValueError
        If the method, test set or a metric is missing from the replicates.
    """
    pair = _pair(replicates, method, test)
    tables = {
        "area": inference.area(pair),
        "slope": inference.sensitivity(pair),
        "share": inference.sensitivity_removed(pair),
    }
    entries = []
    for claim, metric, statement in _CLAIMS:
        measure = _MEASURE_OF[claim]
        entries.append(
            {"claim": claim, "statement": statement, "task": task, "kind": kind}
            | {"method": method, "test": test, "metric": metric}
            | {"measure": _MEASURES[measure].format(METRICS[metric].title)}
            | _numbers(tables[measure], method, metric)
            | {"p_holm": np.nan, "smallest": None, "relevant": None}
            | {"labels_used": _labels_used(method)}
        )
    for entry, p_holm in zip(entries, holm([e["p"] for e in entries]), strict=True):
        entry["p_holm"] = float(p_holm)
        _judge(entry)
        if entry["claim"] == "2":
            entry["levels"] = _clear_levels(inference.difference(pair), entry["metric"])
    return entries


def identity_free(
    with_identities: dict, without: dict, *, task: str, kind: str, method: str
) -> dict:
    """Verdict on claim 4, that training needs no identity annotation: an exact comparison.

    Both sides are the same named arrays (weights, logits), computed with the true identities handed
    to the method and withheld from it. The entry is as in :func:`claims`, without numbers, but with
    ``sha256`` of both sides and ``differing``: names of arrays whose type, shape or bytes differ.

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
        f"holds or the whole 95 % interval is short of {points_of(smallest)}; else inconclusive"
    )


def _pair(replicates: Replicates, method: str, test: str) -> Replicates:
    """Only ERM and the method, the test set and the metrics that the claims are about."""
    if method not in replicates.methods:
        known = ", ".join(replicates.methods)
        raise ValueError(f"method {method!r} is not among {known}; evaluate it too")
    if method == BASELINE:
        raise ValueError(f"method {method!r} is the baseline; name one that is claimed better")
    keys = [(test, metric) for metric in SMALLEST]
    for key in keys:
        if key not in replicates.point:
            raise ValueError(
                f"metric {key[1]!r} of test set {key[0]!r} was not resampled; give it to bootstrap"
            )
    at = [replicates.methods.index(name) for name in (BASELINE, method)]
    return replace(
        replicates,
        methods=[BASELINE, method],
        point={key: replicates.point[key][..., at] for key in keys},
        draws={key: replicates.draws[key][..., at] for key in keys},
        freedom={key: replicates.freedom[key] for key in keys},
    )


def _numbers(table: pd.DataFrame, method: str, metric: str) -> dict[str, float]:
    """Effect, interval and p value of a method's difference, or of its share, which has no p value."""
    suffix = "_difference" if "p" in table else ""
    columns = [f"mean{suffix}", f"low{suffix}", f"high{suffix}", "p"]
    rows = table[(table["method"] == method) & (table["metric"] == metric)].reindex(columns=columns)
    values = rows.iloc[0] if len(rows) else [np.nan] * 4  # with one bias level there is no slope
    return dict(zip(("effect", "low", "high", "p"), map(float, values), strict=True))


def _clear_levels(table: pd.DataFrame, metric: str) -> dict:
    rows = table[table["metric"] == metric]
    clear = rows[rows["p_holm"] < ALPHA]
    levels, gain = clear["level"].astype(float), clear["mean"]
    return {"better": [*levels[gain > 0]], "worse": [*levels[gain < 0]], "of": len(rows)}


def _labels_used(method: str) -> dict[str, list[str]]:
    sees = list(find("method", method, METHODS).sees)
    return {"training": sees, "evaluation": ["class", "identity"]}


def _digest(arrays: dict, name: str) -> str:
    """Hash of an array's type, shape and bytes; what is missing differs from everything."""
    if name not in arrays:
        return "missing"
    array = np.ascontiguousarray(arrays[name])
    if array.dtype.hasobject:
        raise ValueError(f"array {name!r} holds Python objects; give numbers")
    about = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(about + array.tobytes()).hexdigest()
