"""Sentences of Markdown about a study's results, each true whatever was found.

Every function takes tables of :mod:`study.results.inference`, or those tables read back from CSV.
"""

import inspect
from collections.abc import Sequence

import pandas as pd

from cid import reference
from study.faces.tasks import class_names, classes_of
from study.methods.registry import JUDGED, METHODS
from study.results.claims import (
    OWN_TRUNK,
    PRIMARY,
    SMALLEST,
    faceless_proxies,
    points_of,
    recogniser_verdict,
)
from study.results.inference import BASELINE
from study.results.metrics import METRICS
from study.results.rounding import INTERVAL
from study.results.tables import HEADLINE, kind_of_people, points
from study.results.titles import (
    method_title,
    network_title,
    reference_title,
    uses_identities,
    without_identities,
)

_NOT_SHOWN = "is not shown to change"


def level_sentence(
    area: pd.DataFrame, task: str, levels: Sequence[float], test: str = "seen"
) -> str:
    """How good plain training itself is, with a warning where that is near chance.

    Near chance means that the 95 % interval of ERM's balanced accuracy, or of its accuracy on minority
    cells, reaches that of a guess (.5 of two classes): the task cannot be learned from these pictures, or the bias is learned instead.
    """
    rows = area[(area["test"] == test) & (area["method"] == "erm")].set_index("metric")
    levels_of_erm = rows[INTERVAL].dropna(subset="mean").to_dict("index")
    first, second = PRIMARY
    images = "held-out images" if test == "seen" else "images of people never seen in training"
    over = (
        f", averaged over bias levels {min(levels):g} to {max(levels):g}" if len(levels) > 1 else ""
    )
    parts = [f"{_percent(levels_of_erm[first])} of the {images}"]
    if second in levels_of_erm:
        parts.append(f"{_percent(levels_of_erm[second])} of those in minority cells")
    text = f"Plain training (ERM) classifies *{task}* right on {' and '.join(parts)}{over}."
    chance = 1 / classes_of(task)  # accuracy of a guess, where all classes count the same
    near = [
        f"{METRICS[metric].title.lower()} {_percent(levels_of_erm[metric])}"
        for metric in ("balanced_accuracy", second)
        if metric in levels_of_erm and levels_of_erm[metric]["low"] <= chance
    ]
    if near:
        text += (
            f" **Warning: near chance.** The interval of {' and of '.join(near)} reaches {100 * chance:g} %, "
            "so a gain "
            "over it says little: look whether the pictures show what is to be classified."
        )
    return text


def classes_sentence(task: str, what: str) -> str:
    """What a figure of faces shows, a class beside the other; ``what`` is shown, such as "rows of people"."""
    if classes_of(task) == 2:
        return (
            f"The task: {what} with *{task}* = 0 (left half) and 1 (right half). A label is worth predicting if "
            "the two halves look different."
        )
    names = ", ".join(f"*{name}*" for name in class_names(task))
    return f"The task: {what}, from left to right {names}. A class is worth predicting if it looks different."


def _percent(interval: dict) -> str:
    """An accuracy with its interval, such as ``93.0 % [91.4, 94.6]``."""
    mean, low, high = (100 * interval[name] for name in INTERVAL)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]".replace("inf", "∞").replace("-", "−")


def result_sentence(
    area: pd.DataFrame, task: str, levels: Sequence[float], test: str = "seen"
) -> str:
    """What the study found about the first of :data:`JUDGED` that was run, and about the oracle.

    A change is stated where its interval in ``area`` is clear of 0, and is otherwise "not shown". Of a
    method with a verdict that is the interval that Holm's correction leaves, so that sentence and verdict
    agree; the oracle's is the 95 % interval. Data that are taken as they are found have no ``levels``.
    """
    of_test = area[area["test"] == test]
    rows = of_test.set_index(["method", "metric"])
    rows = rows[[f"{name}_difference" for name in INTERVAL]].set_axis(INTERVAL, axis=1)
    gains = rows.dropna(subset="mean").to_dict("index")
    first, second = PRIMARY
    if not any(metric == second for _, metric in gains):
        second = "worst_decile"
    gains_of = {
        method: [gains[method, m] for m in (first, second) if (method, m) in gains]
        for method, _ in gains
    }
    judged = next((method for method in (*JUDGED, *gains_of) if method in gains_of), None)
    if judged is None:
        return "Only plain training was run, so there is nothing to compare it with."

    if len(levels) > 1:
        where = f" and averaged over bias levels {min(levels):g} to {max(levels):g}"
    elif levels:
        where = f" at bias level {levels[0]:g}"
    else:
        where = " on data as they are found"
    images = "held-out images" if test == "seen" else "images of people never seen in training"
    accuracy = f"the accuracy of *{task}* on {images}"
    if second == "worst_decile":
        other = "the mean accuracy of the worst-served tenth of the people"
    else:
        other = "that on minority cells"
    changes = _changes(gains_of[judged], (accuracy, other))
    against = reference_title(of_test[of_test["method"] == judged])
    reference = "plain training" if against == method_title("erm") else f"*{against}*"
    text = f"Compared with {reference}{where}, {method_title(judged)} {changes}"
    if "oracle" in gains_of and judged != "oracle":
        changes = _changes(gains_of["oracle"], ("the former", "the latter"))
        text += f"; the oracle, which knows the true identities, {changes}"
    return text + "."


def smallest_sentence() -> str:
    """The smallest effects of interest, which verdicts compare intervals with."""
    named: dict[float, list[str]] = {}
    for metric, effect in SMALLEST.items():
        named.setdefault(effect, []).append(METRICS[metric].title.lower())
    parts = [f"{points_of(effect)} ({'; '.join(titles)})" for effect, titles in named.items()]
    return f"Smallest effects of interest, the same for every study: {', '.join(parts)}."


def power_sentence(power: pd.DataFrame) -> str:
    """The smallest effects that the study would have detected."""
    rows = power[power["method"].isin(HEADLINE) & power["detectable"].notna()]
    rows = rows[rows["metric"].isin(PRIMARY)]
    parts = []
    for (test, metric), part in rows.groupby(["test", "metric"]):
        effects = [
            f"{100 * effect:.2f} ({method_title(method)})"
            for method, effect in zip(part["method"], part["detectable"], strict=True)
        ]
        parts.append(f"{METRICS[metric].title.lower()}, {test} people: {', '.join(effects)}")
    if not parts:
        return "With so few seeds or people, no effect of any size would be detected reliably."
    return (
        "**Power.** The smallest effect that this study would have detected with probability .8, at the level "
        "that Holm's correction leaves where there is a verdict and else at 5 %, as a mean over the bias range, "
        f"in points: {'; '.join(parts)}."
    )


def lead_sentence(lead: pd.DataFrame, test: str = "seen") -> str:
    """Which methods without identities label surprise is ahead of, behind, or neither, Holm-corrected.

    CID's own forms are left out, because label surprise is one of them; so is plain training, of which the
    verdicts speak.
    """
    rivals = [m for m in METHODS if not uses_identities(m) and not m.startswith("cid")]
    rivals.remove(BASELINE)
    rows = lead[(lead["test"] == test) & (lead["metric"] == "accuracy")]
    rows = rows[rows["method"].isin(rivals)]
    clear = rows["p_holm"] < 0.05
    groups = {
        "is ahead of": rows[clear & (rows["mean"] > 0)],
        "is behind": rows[clear & (rows["mean"] < 0)],
        "cannot be told apart from": rows[~clear],
    }
    parts = [f"{verb} {_listed(part['method'])}" for verb, part in groups.items() if len(part)]
    images = "held-out images of seen people" if test == "seen" else "people never seen in training"
    return f"In accuracy on {images}, at 5 % after Holm's correction, label surprise {'; it '.join(parts)}."


def controls_sentence(gains: pd.DataFrame, changes: pd.DataFrame, network: str) -> str:
    """Whether a face recogniser is needed, by :func:`study.results.claims.recogniser_verdict`.

    The sentence is about accuracy on held-out images of seen people, under the first of :data:`JUDGED`
    that was run. ``gains`` and ``changes`` are ``proxies/controls`` and ``proxies/controls-against``;
    ``network`` is the name of the study's network.
    """
    methods = without_identities(gains["method"])
    if not methods:
        return "No method was run that needs a proxy."
    method = next(m for m in (*JUDGED, *methods) if m in methods)
    gain = _by_trunk_and_proxy(gains, method)
    change = _by_trunk_and_proxy(changes, method)
    first, *others = dict.fromkeys(gains["trunk"])
    verdicts = {
        trunk: recogniser_verdict(gain, change, trunk, network) for trunk in (first, *others)
    }

    parts = []
    faceless = faceless_proxies(change, first)
    if faceless:
        parts.append(_compared(change, first, faceless) + ", which never learned from a face")
    if OWN_TRUNK not in faceless:
        heads = f"the features that the heads are trained on, of `{network_title(first)}`"
        parts.append(_compared(change, first, [OWN_TRUNK]).replace(OWN_TRUNK, heads))
    for verdict in dict.fromkeys(verdicts[trunk] for trunk in others):
        trunks = [f"`{network_title(trunk)}`" for trunk in others if verdicts[trunk] == verdict]
        parts.append(f"with heads on {' and '.join(trunks)}, {verdict[0].lower()}{verdict[1:]}")
    accuracy = _changes([gain[first, network]], ["accuracy"])
    return (
        f"**{verdicts[first]}** on these faces: with `{network_title(network)}` as the proxy, "
        f"{method_title(method)} {accuracy}; {'; '.join(parts)}."
    )


def _by_trunk_and_proxy(table: pd.DataFrame, method: str) -> dict[tuple[str, str], dict]:
    """A method's intervals of accuracy on seen people."""
    rows = table.query("test == 'seen' and metric == 'accuracy' and method == @method")
    return rows.set_index(["trunk", "proxy"])[INTERVAL].to_dict("index")


def _compared(change: dict, trunk: str, proxies: Sequence[str]) -> str:
    """How much less is gained with some proxies, as in "it gains less with a (−1 ...) and b (−2 ...)"."""
    proxies_by_verb: dict[str, list[str]] = {}
    for proxy in proxies:
        interval = change[trunk, proxy]
        verb = "gains less" if interval["high"] < 0 else "is not shown to gain less"
        proxies_by_verb.setdefault(verb, []).append(f"{proxy} ({points(**interval)})")
    parts = [f"{verb} with {' and '.join(named)}" for verb, named in proxies_by_verb.items()]
    return "it " + " but ".join(parts)


def _changes(intervals: Sequence[dict], names: Sequence[str]) -> str:
    """What happens to metrics, as in "raises A (+1 points) but lowers B (−1 points)"."""
    verbs = [_verb(**interval) for interval in intervals]
    objects = [
        f"{name} ({points(**interval)} points)"
        for name, interval in zip(names, intervals, strict=False)
    ]
    if len(set(verbs)) == 1:
        joint = " or " if verbs[0] == _NOT_SHOWN else " and "
        return f"{verbs[0]} {joint.join(objects)}"
    joint = " but " if set(verbs) == {"raises", "lowers"} else " and "
    return joint.join(f"{verb} {what}" for verb, what in zip(verbs, objects, strict=True))


def _verb(mean: float, low: float, high: float) -> str:
    if low > 0:
        return "raises"
    if high < 0:
        return "lowers"
    return _NOT_SHOWN


def _listed(methods: Sequence[str]) -> str:
    *names, last = map(method_title, methods)
    return f"{', '.join(names)} and {last}" if names else last


def tuning_sentence(model: str) -> str:
    """How the settings of the methods were chosen, which differs between linear heads and networks."""
    if model == "linear":
        return (
            "Every method has the settings that were best on different people, judged with those people's "
            "identities (`studies/settings.csv`)."
        )
    return (
        "No method was tuned for this model: settings are those of linear heads (`studies/settings.csv`), options "
        "of training are the study's. So a method that does badly does so with these."
    )


def audited_sentence(proxies: pd.DataFrame) -> str:
    """How far the audit without identities agreed with the truth at the strongest bias level.

    ``proxies`` is ``audit-quality`` of :func:`study.experiment.audited.audit_study`.
    """
    own = proxies[proxies["proxy"] == "as it is"].sort_values("level").iloc[-1]
    measure = "minority" if pd.notna(own["rank_minority"]) else "balanced"
    where = {"minority": "on minority cells", "balanced": "on balanced images"}[measure]
    parts = []
    if pd.notna(own["found"]):
        parts.append(
            f"it flagged {own['found']:.0%} of the true minority images and {own['false']:.0%} of the others"
        )
    if pd.notna(own[f"rank_{measure}"]):
        ranks = [f"{own[f'{prefix}rank_{measure}']:+.2f}" for prefix in ("", "plain_")]
        errors = [
            f"{100 * own[f'{part}_{measure}']:{form}}"
            for part, form in (("error", "+.1f"), ("scatter", ".1f"))
        ]
        parts.append(
            f"over methods, its accuracy {where} has the rank correlation {ranks[0]} with the true one "
            f"(plain accuracy on the same images: {ranks[1]}) and errs by {errors[0]} ± {errors[1]} points"
        )
    trust = "No audit said that it must not be trusted"
    if own["refused"]:
        trust = (
            f"{own['refused']:.0%} of the audits said that they must not be trusted, "
            f"{own['distrusted']:.0%} because of the proxy, the others because too few images are flagged"
        )
    found = "; ".join(parts) or "it estimated nothing that can be compared"
    text = f"With the study's proxy, at its strongest bias, {found}. {trust}."
    return text.replace("%", " %").replace("-", "\N{MINUS SIGN}")


def unidentified_sentence(
    audited: pd.DataFrame, gains: pd.DataFrame, splits: pd.DataFrame, refusal: str, task: str
) -> str:
    """What the audit says of plain training and of the methods where nobody is known.

    The tables are of :func:`study.experiment.unidentified.audit_held_out`.
    """
    refused = int((~splits["trusted"]).sum())
    if refusal:
        return (
            f"Nobody knows whom the images show, and **the audit refuses**: on {refused} of {len(splits)} random "
            f"splits of the images it must not be trusted, because {refusal}. So nothing is said of any method."
        )
    of_erm = audited[audited["method"] == BASELINE].set_index("measure")
    surprised, others = (
        "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * of_erm.loc[measure, INTERVAL]))
        for measure in ("minority", "majority")
    )
    balanced = gains[gains["measure"] == "balanced"]
    better = balanced[balanced["low"] > 0].sort_values("mean", ascending=False, kind="stable")
    worse = balanced[balanced["high"] < 0]
    parts = [
        f"{method_title(row['method'])} ({points(row['mean'], row['low'], row['high'])} points)"
        for _, row in better.iterrows()
    ]
    clear = "no method is clearly better than ERM"
    if parts:
        clear = f"clearly better than ERM {'is' if len(parts) == 1 else 'are'} {', '.join(parts)}"
    if len(worse):
        clear += f"; clearly worse: {', '.join(map(method_title, worse['method']))}"
    trust = f" On {refused} of them it must not be trusted." if refused else ""
    return (
        f"Nobody knows whom the images show. As the audit estimates without identities, plain training (ERM) "
        f"classifies *{task}* right on {surprised} of the *surprised* held-out images, whose label is unusual among "
        f"the training images most like them, and on {others} of the others. On a set in which everybody has "
        f"every class alike, {clear}. The audit was made on {len(splits)} random splits of the images, with "
        f"{splits['flagged_images'].mean():,.0f} surprised images among {splits['images'].mean():,.0f} held-out "
        f"ones each.{trust}"
    )


def limits(card: dict) -> str:
    """What the pictures of a data set, rendered or photographs, cannot show."""
    if kind_of_people(card).startswith("rendered"):
        return (
            "A rendered person has one hairstyle, one age and one set of clothes in all images; there is one "
            "kind of camera, and labels are drawn independently of everything else. Photographs differ in all "
            "of this."
        )
    return (
        "In photographs, a label is the opinion of an annotator or a network, and the name of a person is the "
        "opinion of whoever collected them. Photographs of one event look alike, whoever they show. "
        "Well-known people may have been among those that the recognition network was trained on."
    )


def reference_code(agreement: pd.DataFrame) -> str:
    """The code of :mod:`cid.reference` as Markdown, and how well the library agrees with it.

    ``agreement`` is the table of :func:`study.experiment.factors.agreement`; it can be empty.
    """
    source = inspect.getsource(reference)
    functions = source[
        source.index("import numpy") :
    ].strip()  # without the docstring of the module
    code = f"```python\n{functions}\n```"
    if agreement.empty:
        return code
    compared = [f"{row.weights} to {row.agree_to}" for row in agreement.itertuples()]
    images = agreement["images"].iloc[0]
    return (
        f"{code}\n\nOn one training set of {images:,} images, in the proxy as it is and with ten neighbours, "
        f"the library's weights agree with these: {' and '.join(compared)}, the largest relative "
        "difference of a weight."
    )
