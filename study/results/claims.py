"""Endpoints, and a verdict on each claim of the method, by rules fixed here for every study.

The claims are those of Qi & Ardeshir, "Improving Identity-Robustness for Face Models", arXiv
2304.03838 (2023): with conditional inverse density weights and no identity annotation, (1) performance
is more uniform over people, (2) overall performance often improves too, and (3) the model is much less
sensitive to bias of the training set.

**Endpoints.** Primary are accuracy (claim 2) and accuracy on *minority cells*, the test images of the
class that was rare for their person in training (claim 1), as differences to ERM, means over the bias
range. The family for Holm's correction are the primary endpoints of one method in one study, over both
test sets. Everything else is descriptive: worst decile and spread over people, slopes, and what further
tasks or kinds of bias show.

**Verdicts** on a primary endpoint, the first that holds:

1. clear of 0 in the claimed direction after Holm: *supported*; or, if the whole interval lies below
   the smallest effect of interest, *supported, but too small to matter*, which counts as no support;
2. as clear in the other direction: *not supported*;
3. the oracles' gain is not clear of 0, so that there is nothing to find, or the smallest effect that
   the study would detect with probability .8 exceeds the smallest of interest: *not testable*;
4. the whole interval lies below the smallest effect of interest: *not supported*;
5. else *inconclusive*.

"Much less sensitive" (3b) is judged against what the oracle removes of the slope over the bias: supported
if the whole interval of that share lies above :data:`MUCH`, not supported if below, not testable where
the oracle removes nothing that is clear of 0. It is to be read beside claim 2: a model that is poor at
every bias level is not sensitive either.

Whether a method needs a face recogniser as its proxy is decided by :func:`recogniser_verdict`.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from cid.names import find
from study.methods.registry import METHODS
from study.results import inference
from study.results.inference import BASELINE, ORACLE, Estimates, holm
from study.results.metrics import METRICS, TOO_FEW

ALPHA = 0.05
PRIMARY = ("accuracy", "minority_accuracy")
SECONDARY = ("worst_decile", "identity_sd")
ENDPOINTS = (*PRIMARY, *SECONDARY)
ORACLES = (ORACLE, "oracle-tempered")  # a study can show an effect where one of them has one
TESTS = ("seen", "unseen")
FACELESS = ("untrained", "pixels")  # networks of cid.recognition that were not trained on faces
OWN_TRUNK = "own trunk"  # of study.experiment.variations.controls

# Smallest effects of interest: about a tenth of what the strongest bias cost ERM in the runs that
# settled the design (5 points of accuracy, 10 of worst decile), and a twentieth of the standard
# deviation over people there (10 points). Minority cells are half of the test images: a point there
# alone is half a point of accuracy.
SMALLEST = {
    "accuracy": 0.005,
    "minority_accuracy": 0.01,
    "worst_decile": 0.01,
    "identity_sd": 0.005,
}
MUCH = 0.5  # "much less sensitive": at least this share of what the oracle removes

SUPPORTED = "supported"
TOO_SMALL = "supported, but too small to matter"
NOT_SUPPORTED = "not supported"
INCONCLUSIVE = "inconclusive"
NOT_TESTABLE = "not testable"
DESCRIPTIVE = "descriptive"

_MEASURES = {
    "area": "{}, mean over the bias range, minus ERM's",
    "slope": "{}, slope over the bias level, minus ERM's",
    "share": "{}, share of the oracle's reduction of the slope over the bias level",
}
# Claim, metric, measure, statement.
_CLAIMS = (
    ("1", "minority_accuracy", "area", "Minority cells are classified better than by ERM."),
    ("1", "worst_decile", "area", "The worst-served tenth of people is served better than by ERM."),
    ("1", "identity_sd", "area", "Accuracy varies less between people than under ERM."),
    ("2", "accuracy", "area", "Overall accuracy is higher than under ERM."),
    ("3a", "accuracy", "slope", "Accuracy is less sensitive to bias than under ERM."),
    (
        "3a",
        "minority_accuracy",
        "slope",
        "Minority cells are less sensitive to bias than under ERM.",
    ),
    ("3b", "accuracy", "share", "Accuracy is much less sensitive to bias than under ERM."),
    (
        "3b",
        "minority_accuracy",
        "share",
        "Minority cells are much less sensitive to bias than under ERM.",
    ),
)


def verdict(
    effect: float, low: float, high: float, p_holm: float, *, smallest: float, detectable: float,
    oracle_low: float, better: str = "higher",
) -> tuple[str, str]:  # fmt: skip
    """Verdict on the claim that a difference to ERM is an improvement, by the rules above, and why.

    ``effect``, ``low`` and ``high`` are the difference and its 95 % interval; ``smallest`` is the
    smallest effect of interest, > 0; ``detectable`` the smallest that is found with probability .8;
    ``oracle_low`` the lower end of the oracles' gain, NaN without one; ``better`` is "higher" or "lower".
    """
    gain = effect if better == "higher" else -effect
    most = high if better == "higher" else -low
    if p_holm < ALPHA and gain > 0:
        if most < smallest:
            return TOO_SMALL, f"the whole interval is short of {points_of(smallest)}"
        return SUPPORTED, "clear of 0 after Holm"
    if p_holm < ALPHA and gain < 0:
        return NOT_SUPPORTED, "clear of 0 after Holm, in the other direction"
    if not oracle_low > 0:
        return NOT_TESTABLE, "no oracle gains anything that is clear of 0"
    if detectable > smallest:
        return NOT_TESTABLE, (
            f"only an effect of {100 * detectable:.2f} points would be detected, and "
            f"{points_of(smallest)} would matter"
        )
    if most < smallest:
        return NOT_SUPPORTED, f"the whole interval is short of {points_of(smallest)}"
    return INCONCLUSIVE, "not clear of 0 after Holm"


def share_verdict(low: float, high: float) -> tuple[str, str]:
    """Verdict on "much less sensitive" from the share of the oracle's reduction, and why."""
    if not np.isfinite(low + high):
        return NOT_TESTABLE, "the oracle makes no difference to the slope that is clear of 0"
    if low > MUCH:
        return SUPPORTED, f"the whole interval is above {MUCH:g}"
    if high < MUCH:
        return NOT_SUPPORTED, f"the whole interval is below {MUCH:g}"
    return INCONCLUSIVE, f"the interval holds {MUCH:g}"


def points_of(effect: float) -> str:
    """The size of an effect in words: ``0.5 points``."""
    return "1 point" if effect == 0.01 else f"{100 * effect:g} points"


def claims(estimates: Estimates, method: str, *, task: str, kind: str) -> list[dict]:
    """Verdicts on claims 1 to 3 for one method, task and bias kind, on both test sets.

    Parameters
    ----------
    estimates : Estimates
        With the metrics of :data:`ENDPOINTS`.
    method : str
        A key of :data:`study.methods.registry.METHODS`.
    task, kind : str
        Attribute predicted and kind of bias, for the record.

    Returns
    -------
    list of dict
        ``claim``, ``statement``, ``task``, ``kind``, ``method``, ``test``, ``metric``, ``measure``,
        ``primary``, ``effect``, ``low``, ``high``, ``p``, ``p_holm`` (None unless primary), ``smallest``,
        ``detectable`` and ``oracle_low`` (None unless primary), ``labels_used``, ``verdict``, ``reason``.
        Left out is what a study does not define: minority cells of unseen people, the slope over one level.

    Raises
    ------
    ValueError
        If the method or a metric is missing from the estimates.
    """
    chosen = _chosen(estimates, method)
    tables = {
        "area": inference.area(chosen),
        "slope": inference.sensitivity(chosen),
        "share": inference.sensitivity_removed(chosen),
    }
    entries = []
    for test in TESTS:
        if (test, "accuracy") not in chosen.point:
            continue
        for claim, metric, measure, statement in _CLAIMS:
            undefined = metric not in SECONDARY and np.isnan(chosen.point[test, metric]).all()
            needs_levels = measure != "area"
            if undefined or (needs_levels and len(chosen.levels) < 2):
                continue
            primary = measure == "area" and metric in PRIMARY
            numbers = _numbers(tables[measure], test, method, metric)
            entries.append(
                {
                    "claim": claim,
                    "statement": statement,
                    "task": task,
                    "kind": kind,
                    "method": method,
                    "test": test,
                    "metric": metric,
                    "primary": primary,
                    "measure": _MEASURES[measure].format(METRICS[metric].title),
                    "effect": numbers["effect"],
                    "low": numbers["low"],
                    "high": numbers["high"],
                    "p": numbers["p"],
                    "detectable": numbers["detectable"],
                    "p_holm": None,
                    "smallest": SMALLEST[metric] if primary else None,
                    "oracle_low": _oracle_low(tables["area"], test, metric) if primary else None,
                    "labels_used": _labels_used(method),
                }
            )
    family = [entry for entry in entries if entry["primary"]]
    adjusted = holm([entry["p"] for entry in family])
    for entry, p_holm in zip(family, adjusted, strict=True):
        entry["p_holm"] = float(p_holm)
    for entry in entries:
        entry["verdict"], entry["reason"] = _judged(entry)
    return entries


def identity_free(
    with_identities: dict, without: dict, *, task: str, kind: str, method: str
) -> dict:
    """Verdict on claim 4, that training needs no identity annotation: an exact comparison.

    Both sides are the same named arrays (weights, logits), computed once with the true identities
    available to the method and once with them withheld. The entry is as in :func:`claims`, without numbers, but with
    ``sha256`` of both sides and ``differing``: names of arrays whose type, shape or bytes differ.

    Raises
    ------
    ValueError
        If there is nothing to compare, or an array holds Python objects.
    """
    if not with_identities or not without:
        raise ValueError("nothing to compare: name at least one array on each side")
    names = sorted(with_identities.keys() | without.keys())
    digests_with = {name: _digest(with_identities, name) for name in names}
    digests_without = {name: _digest(without, name) for name in names}
    differing = [name for name in names if digests_with[name] != digests_without[name]]
    return {
        "claim": "4",
        "statement": "Training uses no identity annotation.",
        "task": task,
        "kind": kind,
        "method": method,
        "test": None,
        "metric": None,
        "measure": "bytes of " + ", ".join(names) + ", with the identities and without",
        "primary": False,
        "effect": None,
        "low": None,
        "high": None,
        "p": None,
        "p_holm": None,
        "smallest": None,
        "detectable": None,
        "oracle_low": None,
        "labels_used": _labels_used(method) | {"evaluation": []},
        "verdict": NOT_SUPPORTED if differing else SUPPORTED,
        "reason": "supported if and only if all bytes are equal with the identities withheld",
        "sha256": {
            "with_identities": _joint_digest(digests_with),
            "without": _joint_digest(digests_without),
        },
        "differing": differing,
    }


def recogniser_verdict(gain: dict, change: dict, trunk: str, network: str) -> str:
    """Whether a face recogniser is needed as the proxy, with heads on the features of one trunk.

    A recogniser is *needed* where the method gains with the study's own network as the proxy, and less
    with every proxy that no face was used to train (:func:`faceless_proxies`). It is needed *for the
    whole gain* where the method also gains with one of these. It is *not shown to be needed* where, with
    one of these, the method is not shown to gain less. The question is left open where there is no gain,
    no such proxy, or no recogniser. Each comparison holds where its 95 % interval is clear of 0.

    Parameters
    ----------
    gain, change : dict
        By (trunk, proxy), dicts with ``low`` and ``high``: the method's gain over ERM with that proxy, and
        the paired difference of this gain to the gain with the study's own network.
    trunk, network : str
        The trunk that is judged, and the study's own network.
    """
    faceless = faceless_proxies(change, trunk)
    if network in FACELESS or not faceless or not gain[trunk, network]["low"] > 0:
        return "Whether a face recogniser is needed cannot be told"
    if not all(change[trunk, proxy]["high"] < 0 for proxy in faceless):
        return "A face recogniser is not shown to be needed"
    if any(gain[trunk, proxy]["low"] > 0 for proxy in faceless):
        return "A face recogniser is needed for the whole gain"
    return "A face recogniser is needed"


def faceless_proxies(known: Iterable[tuple[str, str]], trunk: str) -> list[str]:
    """The proxies of one trunk, among ``known`` pairs (trunk, proxy), that no face was used to train.

    These are :data:`FACELESS`, and the trunk's own features where the trunk is one of them.
    """
    faceless = FACELESS
    if trunk in FACELESS:
        faceless = (*FACELESS, OWN_TRUNK)
    return [proxy for of_trunk, proxy in known if of_trunk == trunk and proxy in faceless]


def _judged(entry: dict) -> tuple[str, str]:
    """Verdict on an entry, and why."""
    if entry["claim"] == "3b":
        return share_verdict(entry["low"], entry["high"])
    if np.isnan(entry["effect"]):
        return NOT_TESTABLE, TOO_FEW
    if not entry["primary"]:
        return DESCRIPTIVE, "no endpoint of the protocol"
    return verdict(
        effect=entry["effect"],
        low=entry["low"],
        high=entry["high"],
        p_holm=entry["p_holm"],
        smallest=entry["smallest"],
        detectable=entry["detectable"],
        oracle_low=entry["oracle_low"],
        better=METRICS[entry["metric"]].better,
    )


def _chosen(estimates: Estimates, method: str) -> Estimates:
    """Only ERM, the method and the oracles, and the metrics that the claims are about."""
    if method not in estimates.methods:
        known = ", ".join(estimates.methods)
        raise ValueError(f"method {method!r} is not among {known}; evaluate it too")
    if method == BASELINE:
        raise ValueError(f"method {method!r} is the baseline; name one that is claimed better")
    keys = [key for key in estimates.point if key[1] in ENDPOINTS]
    for metric in ENDPOINTS:
        if metric not in {name for _, name in keys}:
            raise ValueError(f"metric {metric!r} was not estimated; give it to estimate")
    names = [m for m in dict.fromkeys((BASELINE, method, *ORACLES)) if m in estimates.methods]
    at = [estimates.methods.index(name) for name in names]
    return replace(
        estimates,
        methods=names,
        point={key: estimates.point[key][..., at] for key in keys},
        covariance={key: estimates.covariance[key][:, :, at][..., at] for key in keys},
    )


def _numbers(table: pd.DataFrame, test: str, method: str, metric: str) -> dict[str, float]:
    """Effect, interval, p value and detectable effect of a method's difference, or of its share."""
    suffix = "_difference" if "p" in table else ""
    columns = {
        "effect": f"mean{suffix}",
        "low": f"low{suffix}",
        "high": f"high{suffix}",
        "p": "p",
        "detectable": "detectable",
    }
    of_method = (table["test"] == test) & (table["method"] == method)
    rows = table[of_method & (table["metric"] == metric)].reindex(columns=list(columns.values()))
    if rows.empty:  # with one bias level there is no slope
        return dict.fromkeys(columns, np.nan)
    return {name: float(rows[column].iloc[0]) for name, column in columns.items()}


def _oracle_low(area: pd.DataFrame, test: str, metric: str) -> float:
    """The lower end of the oracles' gain, the larger of the two; NaN without an oracle."""
    ends = [_numbers(area, test, oracle, metric)["low"] for oracle in ORACLES]
    return float(np.fmax.reduce(ends))


def _labels_used(method: str) -> dict[str, list[str]]:
    sees = list(find("method", method, METHODS).uses)
    return {"training": sees, "evaluation": ["class", "identity"]}


def _digest(arrays: dict, name: str) -> str:
    """Hash of an array's type, shape and bytes; what is missing differs from everything."""
    if name not in arrays:
        return "missing"
    array = np.ascontiguousarray(arrays[name])
    if array.dtype.hasobject:
        raise ValueError(f"array {name!r} holds Python objects; give numbers")
    header = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def _joint_digest(digests: dict[str, str]) -> str:
    """One hash of the hashes of several named arrays."""
    text = "".join(f"{name} {digest}\n" for name, digest in digests.items())
    return hashlib.sha256(text.encode()).hexdigest()
