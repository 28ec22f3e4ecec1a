"""Endpoints, and a verdict on each claim of the method, by rules fixed here for every study.

The claims are those of Qi & Ardeshir, "Improving Identity-Robustness for Face Models", arXiv
2304.03838 (2023): with conditional inverse density weights and no identity annotation, (1) performance
is more uniform over people, (2) overall performance often improves too, and (3) the model is much less
sensitive to bias of the training set.

**Endpoints.** Primary, as means over the bias range, are of claim 2 the accuracy; of claim 1, on people
seen in training, the accuracy on *minority cells* (test images of the class that was rare for their
person in training), and the standard deviation over people and the worst tenth of people, of accuracies
over all seeds, so that a person has images enough. Each is a difference to the method's *reference*: ERM;
or, where the data are taken as they are found and classes may be unequal, class-balanced training, if the
method balances classes itself (:func:`references`). Everything else is descriptive: slopes, and what
further tasks or kinds of bias show.

**Correction.** The family are the primary endpoints of one method in one study, over both test sets.
Holm's procedure tests each at a level of its own (:func:`study.results.inference.holm_levels`); p value,
interval and detectable effect of an endpoint are all of this level, wherever they are printed. So an
interval leaves out 0 exactly where the corrected p is below .05.

**Verdicts** on a primary endpoint, the first that holds. The *smallest effect of interest* is
:data:`SMALLEST`; the oracles' 95 % intervals are not corrected, as they are no claim.

1. The interval lies above 0. Its lower end reaches the smallest effect of interest: *supported*. Its upper
   end does, but not the lower: *supported, size uncertain*.
2. It lies below 0, and reaches as far as a harm of that size: *does harm*.
3. It lies below the smallest effect of interest, clear of 0 or not. The intervals of the oracles do, too, so
   that there was nothing to be had: *nothing to gain*; else *no gain*, which is a precise null.
4. The study would have detected the smallest effect of interest with probability .8 or more:
   *inconclusive*, which is bad luck.
5. Else *not testable*: it lacked the power, and that alone.

A narrow interval cannot lose by this order, nor a wide one win: to be supported needs a lower end.

**On the border.** A verdict that another processor's rounding could turn says so, and names what it could
turn into: what :func:`verdict` says when every number that it compares moves by
:data:`study.results.rounding.MOVES`.

"Much less sensitive" (3b) is judged against what the oracle removes of the slope over the bias: supported
if the whole interval of that share lies above :data:`MUCH`, not supported if below, not testable where
the oracle removes nothing that is clear of 0. It is to be read beside claim 2: a model that is poor at
every bias level is not sensitive either.

Whether a method needs a face recogniser as its proxy is decided by :func:`recogniser_verdict`.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from cid.names import find
from study.methods.registry import METHODS
from study.results import inference
from study.results.inference import ALPHA, BASELINE, ORACLE, Estimates, holm, holm_levels
from study.results.metrics import METRICS, TOO_FEW
from study.results.rounding import MOVES
from study.results.titles import method_title

PRIMARY = ("accuracy", "minority_accuracy")  # of main figures and tables
UNIFORMITY = ("people_sd", "worst_tenth")
ENDPOINTS = (*PRIMARY, *UNIFORMITY)
ORACLES = (ORACLE, "oracle-tempered")  # a study can show an effect where one of them has one
BALANCED = "balanced"  # plain training in which every class has the same total weight
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
    "worst_tenth": 0.01,
    "people_sd": 0.005,
}
MUCH = 0.5  # "much less sensitive": at least this share of what the oracle removes

SUPPORTED = "supported"
UNCERTAIN = "supported, size uncertain"
HARM = "does harm"
NO_GAIN = "no gain"
NOTHING_TO_GAIN = "nothing to gain"
INCONCLUSIVE = "inconclusive"
NOT_TESTABLE = "not testable"
NOT_SUPPORTED = "not supported"  # of claims 3b and 4
DESCRIPTIVE = "descriptive"
GAINS = (SUPPORTED, UNCERTAIN)  # verdicts that say that there is a gain

_MEASURES = {
    "area": "{}, mean over the bias range, minus that of {}",
    "slope": "{}, slope over the bias level, minus that of {}",
    "share": "{}, share of the oracle's reduction of the slope over the bias level",
}
# Claim, metric, measure, statement with a place for the reference.
_CLAIMS = (
    ("1", "minority_accuracy", "area", "Minority cells are classified better than by {}."),
    ("1", "people_sd", "area", "Accuracy varies less between people than under {}."),
    ("1", "worst_tenth", "area", "The worst tenth of people is served better than by {}."),
    ("2", "accuracy", "area", "Overall accuracy is higher than under {}."),
    ("3a", "accuracy", "slope", "Accuracy is less sensitive to bias than under {}."),
    (
        "3a",
        "minority_accuracy",
        "slope",
        "Minority cells are less sensitive to bias than under {}.",
    ),
    ("3b", "accuracy", "share", "Accuracy is much less sensitive to bias than under {}."),
    (
        "3b",
        "minority_accuracy",
        "share",
        "Minority cells are much less sensitive to bias than under {}.",
    ),
)


def verdict(
    low: float, high: float, *, smallest: float, detectable: float, oracle_high: float
) -> tuple[str, str]:
    """Verdict on the claim that a method gains over its reference, by the rules above, and why.

    Parameters
    ----------
    low, high : float
        The interval of the gain at the level that Holm's correction leaves; more is better.
    smallest : float
        The smallest effect of interest, > 0.
    detectable : float
        The smallest effect that the study finds at that level with probability .8.
    oracle_high : float
        The upper end of the oracles' gain, the larger of the two; NaN without an oracle.
    """
    matters = points_of(smallest)
    if low >= smallest:
        return SUPPORTED, f"the whole interval reaches {matters}"
    if low > 0 and high >= smallest:
        return UNCERTAIN, f"clear of 0, but not of effects under {matters}"
    if high < 0 and low <= -smallest:
        return HARM, "the whole interval lies below 0"
    if high < smallest:
        clear = "clear of 0, but " if low > 0 or high < 0 else ""
        reason = f"{clear}the whole interval is short of {matters}"
        if oracle_high < smallest:
            return NOTHING_TO_GAIN, f"{reason}, and so is that of the oracle"
        return NO_GAIN, reason
    if detectable <= smallest:
        return INCONCLUSIVE, f"the interval holds 0 and {matters}"
    return NOT_TESTABLE, (
        f"only an effect of {100 * detectable:.2f} points would be detected, and {matters} would matter"
    )


def borders(
    low: float, high: float, *, smallest: float, detectable: float, oracle_high: float,
    oracle_half: float = 0.0, moves: float = MOVES,
) -> list[str]:  # fmt: skip
    """What :func:`verdict` could say on another processor, each once.

    Every end moves by ``moves`` of half its interval, either way and each for itself, and ``detectable``,
    which is in proportion to that half, by as much of itself. ``oracle_half`` is half the oracles' interval.
    """
    if not np.isfinite(high - low):
        return []
    step = moves * (high - low) / 2
    oracle_step = moves * oracle_half if np.isfinite(oracle_half) else 0.0
    found = []
    for at_low, at_high, of_detectable, of_oracle in product((0, -1, 1), repeat=4):
        word, _ = verdict(
            low + at_low * step,
            high + at_high * step,
            smallest=smallest,
            detectable=detectable * (1 + of_detectable * moves),
            oracle_high=oracle_high + of_oracle * oracle_step,
        )
        found.append(word)
    return list(dict.fromkeys(found))


def share_verdict(low: float, high: float) -> tuple[str, str]:
    """Verdict on "much less sensitive" from the share of the oracle's reduction, and why."""
    if not np.isfinite(low + high):
        return NOT_TESTABLE, "the oracle makes no difference to the slope that is clear of 0"
    if low > MUCH:
        return SUPPORTED, f"the whole interval is above {MUCH:g}"
    if high < MUCH:
        return NOT_SUPPORTED, f"the whole interval is below {MUCH:g}"
    return INCONCLUSIVE, f"the interval holds {MUCH:g}"


def share_borders(low: float, high: float, moves: float = MOVES) -> list[str]:
    """What :func:`share_verdict` could say on another processor; see :func:`borders`."""
    if not np.isfinite(low + high):
        return []
    step = moves * (high - low) / 2
    moved = product((0, -1, 1), repeat=2)
    words = [
        share_verdict(low + at_low * step, high + at_high * step)[0] for at_low, at_high in moved
    ]
    return list(dict.fromkeys(words))


def points_of(effect: float) -> str:
    """The size of an effect in words: ``0.5 points``."""
    return "1 point" if effect == 0.01 else f"{100 * effect:g} points"


def references(kind: str, balancing: Iterable[str]) -> dict[str, str]:
    """What each method is compared with, where that is not ERM.

    ``kind`` is the kind of bias and ``balancing`` the methods that give every class the same total weight
    (:func:`study.methods.registry.balancing`). Data of the kind natural are taken as they are found, so
    classes may be unequal, and balancing them is a gain of its own that no method may claim.
    """
    if kind != "natural":
        return {}
    return {method: BALANCED for method in balancing if method not in (BASELINE, BALANCED)}


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
        ``claim``, ``statement``, ``task``, ``kind``, ``method``, ``reference``, ``test``, ``metric``,
        ``measure``, ``primary``, ``effect``, ``low``, ``high``, ``p``, ``detectable``, ``alpha`` (the level of
        these), ``p_holm`` (None unless primary), ``smallest``, ``oracle_low`` and ``oracle_high`` (None unless
        primary), ``labels_used``, ``verdict``, ``reason``, ``border``: other verdicts that are within
        :data:`~study.results.rounding.MOVES`.
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
    reference = method_title(chosen.reference(method))
    entries = []
    for test in TESTS:
        if (test, "accuracy") not in chosen.point:
            continue
        for claim, metric, measure, statement in _CLAIMS:
            undefined = metric in PRIMARY and np.isnan(chosen.point[test, metric]).all()
            needs_levels = measure != "area"
            if undefined or (needs_levels and len(chosen.levels) < 2):
                continue
            if metric in UNIFORMITY and test != "seen":
                continue
            primary = measure == "area"
            entry = {
                "claim": claim,
                "statement": statement.format(reference),
                "task": task,
                "kind": kind,
                "method": method,
                "reference": chosen.reference(method),
                "test": test,
                "metric": metric,
                "primary": primary,
                "measure": _MEASURES[measure].format(METRICS[metric].title, reference),
                "degrees_of_freedom": chosen.degrees_of_freedom((test, metric)),
                **_numbers(tables[measure], test, method, metric),
                "labels_used": _labels_used(method),
            }
            if primary:
                entry |= _oracles(tables["area"], test, metric)
            entries.append(entry)
    return judge(entries)


def judge(entries: list[dict], moves: float = MOVES) -> list[dict]:
    """Correct the primary endpoints of one method in one study, and give every entry its verdict.

    An entry needs ``claim``, ``metric``, ``primary``, ``degrees_of_freedom``, ``effect``, and ``low``, ``high``
    and ``detectable`` at 95 %, and ``p``; a primary one also ``oracle_low`` and ``oracle_high``. Returned are
    new entries, completed as :func:`claims` says. On another processor numbers move by ``moves`` of half
    their interval.
    """
    family = [entry for entry in entries if entry["primary"]]
    p_values = [entry["p"] for entry in family]
    corrected = {
        "p_holm": holm(p_values),
        "alpha": holm_levels(p_values),
        # The levels that the family has where rounding moves every p value up, or down.
        "alpha_up": holm_levels([_moved_p(entry, moves) for entry in family]),
        "alpha_down": holm_levels([_moved_p(entry, -moves) for entry in family]),
    }
    judged = []
    for entry in entries:
        none = {"p_holm": None, "smallest": None, "oracle_low": None, "oracle_high": None}
        if not entry["primary"]:
            word, reason, border = _judged(entry, moves)
            entry = none | entry | {"alpha": ALPHA}
        else:
            place = [other is entry for other in family].index(True)
            of_entry = {name: float(values[place]) for name, values in corrected.items()}
            alphas = [of_entry[name] for name in ("alpha", "alpha_up", "alpha_down")]
            entry = entry | {"p_holm": of_entry["p_holm"], "alpha": alphas[0]}
            entry |= {"smallest": SMALLEST[entry["metric"]]}
            word, reason, border, at_level = _judged_primary(entry, alphas, moves)
            entry |= at_level
        judged.append(entry | {"verdict": word, "reason": reason, "border": border})
    return judged


def rejudge(
    entries: Iterable[dict], area: pd.DataFrame, power: pd.DataFrame, moves: float = MOVES
) -> list[dict]:
    """Verdicts by today's rules on a report of before them: entries, area and power read back from files.

    Their intervals are all of 95 %, and all differences are to ERM. Claims on what was no endpoint then,
    and is one now, are none here: such a report has no interval for them.
    """
    by_method: dict[str, list[dict]] = {}
    people = power.set_index(["test", "metric", "method"])
    for entry in entries:
        entry = {"reference": BASELINE, "border": [], "alpha": None, "oracle_high": None} | entry
        if entry["primary"]:
            where = (entry["test"], entry["metric"])
            row = people.loc[(*where, entry["method"])]
            bounds = {
                "effect": np.nan,
                "low": -np.inf,
                "high": np.inf,
                "detectable": np.inf,
                "p": np.nan if entry["effect"] is None else 1.0,
            }
            entry |= {name: other for name, other in bounds.items() if entry[name] is None}
            entry["degrees_of_freedom"] = int(min(row["seeds"], row["people"])) - 1
            entry |= _oracles(area, *where)
            by_method.setdefault(entry["method"], []).append(entry)
    return [entry for family in by_method.values() for entry in judge(family, moves)]


def _judged_primary(
    entry: dict, alphas: list[float], moves: float
) -> tuple[str, str, list[str], dict]:
    """Verdict, reason, other verdicts near it, and the interval at the first of the levels ``alphas``."""
    if np.isnan(entry["effect"]):
        return NOT_TESTABLE, TOO_FEW, [], {}
    higher = METRICS[entry["metric"]].better == "higher"
    sign = 1 if higher else -1
    gains = []
    for alpha in alphas:
        alpha = alpha if np.isfinite(alpha) else ALPHA
        ends = inference.at_level(entry["low"], entry["high"], entry["degrees_of_freedom"], alpha)
        low, high = sorted((sign * ends["low"], sign * ends["high"]))
        gains.append({"low": low, "high": high, "detectable": ends["detectable"]})
    own = gains[0]
    of_oracle = sorted((sign * entry["oracle_low"], sign * entry["oracle_high"]))
    oracle = {"oracle_high": of_oracle[1]}
    half = (of_oracle[1] - of_oracle[0]) / 2
    word, reason = verdict(**own, smallest=entry["smallest"], **oracle)
    near = []
    for gain in gains:
        width = gain["high"] - gain["low"]
        # Numbers move by a share of half their 95 % interval, whatever the level of this one.
        share = (entry["high"] - entry["low"]) / width if np.isfinite(width) and width else 1.0
        how = {"smallest": entry["smallest"], "moves": moves * share}
        near += borders(**gain, **oracle, oracle_half=half / share, **how)
    border = [other for other in dict.fromkeys(near) if other != word]
    low, high = sorted((sign * own["low"], sign * own["high"]))
    return word, reason, border, {"low": low, "high": high, "detectable": own["detectable"]}


def _moved_p(entry: dict, moves: float) -> float:
    """The p value of an endpoint whose effect moves by ``moves`` of half its 95 % interval.

    Towards 0, at most to it; with a negative number away from it, so that p falls.
    """
    half = (entry["high"] - entry["low"]) / 2
    if not (np.isfinite(half) and half > 0):
        return entry["p"]
    size = max(abs(entry["effect"]) - moves * half, 0.0)
    se = half / inference.t_quantile(entry["degrees_of_freedom"])
    return float(inference.interval(size, se, entry["degrees_of_freedom"])["p"])


def in_tables(tables: dict[str, pd.DataFrame], entries: list[dict]) -> dict[str, pd.DataFrame]:
    """The tables ``area``, ``power`` and ``difference`` with the corrected numbers of what is judged.

    Whoever prints a mean over the bias range prints these tables, so that a page has one interval and one
    p value of it. (With one bias level ``difference`` has it, too; with several it holds nothing of it.) ``alpha`` is the level of a row: that which Holm's correction left for an endpoint with a
    verdict, and .05 for everything else.
    """
    numbers = {
        "area": {"low": "low_difference", "high": "high_difference", "p_holm": "p_holm",
                 "detectable": "detectable", "alpha": "alpha"},
        "power": {"detectable": "detectable", "alpha": "alpha"},
        "difference": {name: name for name in ("low", "high", "p_holm", "detectable", "alpha")},
    }  # fmt: skip
    changed = {}
    for name in numbers.keys() & tables.keys():
        columns = numbers[name]
        table = tables[name].copy()
        if name == "difference" and table["level"].nunique() > 1:
            continue
        table["alpha"] = ALPHA
        for entry in entries:
            if entry["primary"] and not np.isnan(entry["effect"]):
                rows = (table["test"] == entry["test"]) & (table["metric"] == entry["metric"])
                rows &= table["method"] == entry["method"]
                for key, column in columns.items():
                    table.loc[rows, column] = entry[key]
        changed[name] = table
    return changed


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
        "alpha": None,
        "reference": None,
        "oracle_low": None,
        "oracle_high": None,
        "border": [],
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


def _judged(entry: dict, moves: float) -> tuple[str, str, list[str]]:
    """Verdict on an entry that is no primary endpoint, why, and other verdicts near it."""
    if entry["claim"] == "3b":
        word, reason = share_verdict(entry["low"], entry["high"])
        near = share_borders(entry["low"], entry["high"], moves)
        return word, reason, [other for other in near if other != word]
    if np.isnan(entry["effect"]):
        return NOT_TESTABLE, TOO_FEW, []
    return DESCRIPTIVE, "no endpoint of the protocol", []


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
    wanted = (BASELINE, estimates.reference(method), method, *ORACLES)
    names = [name for name in dict.fromkeys(wanted) if name in estimates.methods]
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


def _oracles(area: pd.DataFrame, test: str, metric: str) -> dict[str, float]:
    """The interval of the oracle that gains more, by its better end; NaN without an oracle."""
    better_end = "high" if METRICS[metric].better == "higher" else "low"
    sign = 1 if better_end == "high" else -1
    found = [_numbers(area, test, oracle, metric) for oracle in ORACLES]
    found = [numbers for numbers in found if np.isfinite(numbers[better_end])]
    if not found:
        return {"oracle_low": np.nan, "oracle_high": np.nan}
    best = max(found, key=lambda numbers: sign * numbers[better_end])
    return {"oracle_low": best["low"], "oracle_high": best["high"]}


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
