"""Printed tables: a head and rows of cells, for Markdown and HTML alike.

Every function takes tables of :mod:`study.results.inference`, or those tables read back from CSV.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from study.methods.registry import METHODS
from study.results.claims import NO_GAIN, NOTHING_TO_GAIN, PRIMARY
from study.results.inference import ALPHA
from study.results.metrics import METRICS
from study.results.rounding import INTERVAL, rounded_claims
from study.results.titles import (
    labels_used,
    level_title,
    method_title,
    network_title,
    reference_title,
    uses_identities,
    without_identities,
)

Printed = tuple[list[str], list[list[str]]]  # a head and rows of cells

HEADLINE = ("cid", "surprise", "oracle", "oracle-tempered")
STRONG = ("erm", "cid", "surprise", "oracle")  # of main figures
NONE = "–"  # in a cell with nothing to show
RIGHT = "right pairs"  # beside the verification AUC: see study.faces.verification


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, with a line break at its end; bars and line breaks in a cell stay in it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_in_a_cell, cells))} |\n" for cells in lines)


def _in_a_cell(text: str) -> str:
    """The text of a cell as Markdown that does not end it: a bar is escaped, unless it is already."""
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(text.splitlines()))


def points(mean: float, low: float, high: float) -> str:
    """A difference and its interval in percentage points, such as ``+0.50 [−0.10, +1.10]``.

    One decimal where half the interval is a point or more, else two.
    """
    low, mean, high = (round(100 * value, 4) for value in (low, mean, high))
    wide = math.isfinite(high - low) and high - low >= 2
    digits = 1 if wide else 2
    return _typeset(f"{mean:+z.{digits}f} [{low:+z.{digits}f}, {high:+z.{digits}f}]")


def main_metrics(table: pd.DataFrame) -> list[str]:
    """The metrics of main figures: the primary ones.

    Where no class is rare for a person, the worst decile, if known, replaces the second one.
    """
    first, second = PRIMARY
    known = set(table.loc[table["mean"].notna(), "metric"])
    for metric in (second, "worst_decile"):
        if metric in known:
            return [first, metric]
    return [first]


def claims_table(entries: list[dict]) -> Printed:
    """One row per claim, of :func:`study.results.claims.claims` or read back from JSON."""
    head = [
        "claim", "method", "test", "statement", "effect [interval]", "level", "p (Holm)",
        "detectable", "verdict", "why",
    ]  # fmt: skip
    rows = [
        [
            entry["claim"],
            method_title(entry["method"]),
            entry["test"] or NONE,
            entry["statement"],
            _effect(entry),
            _level(entry),
            _p_value(entry["p_holm"]),
            _detectable(entry),
            verdict_words(entry),
            entry["reason"],
        ]
        for entry in rounded_claims(entries)
    ]
    return head, rows


def verdicts_table(entries: list[dict]) -> Printed:
    """The verdicts of one study on seen people: one row per claim and one column per method.

    Intervals and p values are corrected, as those of :func:`claims_table`.
    """
    lines: dict[tuple, dict[str, str]] = {}
    for entry in rounded_claims(entries):
        judged = entry["primary"] or entry["claim"] in ("3b", "4")
        if judged and entry["test"] in ("seen", None):
            note = "" if entry["p_holm"] is None else f", p {_p_value(entry['p_holm'])}"
            line = lines.setdefault((entry["claim"], entry["statement"]), {})
            word = entry["verdict"]
            more = verdict_words(entry).removeprefix(word)
            line[entry["method"]] = f"**{word}**{more} ({_effect(entry)}{note})"
    methods = list(dict.fromkeys(method for line in lines.values() for method in line))
    head = ["claim", "statement", *map(method_title, methods)]
    rows = [
        [claim, statement, *(line.get(method, NONE) for method in methods)]
        for (claim, statement), line in lines.items()
    ]
    return head, rows


def verdict_words(entry: dict) -> str:
    """A verdict, and what rounding on another processor could turn it into.

    Of an effect that is too small to matter it is said where it is clear of 0 all the same.
    """
    words = entry["verdict"]
    if words in (NO_GAIN, NOTHING_TO_GAIN) and entry["p_holm"] < ALPHA:
        words += ", though clear of 0"
    border = entry.get("border")  # reports of before there were borders have none
    return f"{words}; on the border of {' and of '.join(border)}" if border else words


def methods_table(methods: Sequence[str]) -> Printed:
    """What each method does, and which labels of the training set it uses."""
    head = ["method", "how it weighs or trains", "labels it is made of"]
    rows = [
        [
            method_title(method),
            METHODS[method].description,
            labels_used(method, none="none beyond the task's"),
        ]
        for method in methods
    ]
    return head, rows


def headline_table(
    difference: pd.DataFrame,
    summary: pd.DataFrame,
    test: str = "seen",
    kind: str = "correlation",
) -> Printed:
    """The study in one table: ERM, and what methods gain over their reference, in the main metrics.

    One row per bias level (``kind`` is that of the bias). A method of :data:`HEADLINE` that was not run is left out, and so is a
    metric that the test set does not have.
    """
    values = _intervals_of_test(summary, test)
    gains = _intervals_of_test(difference, test)
    known = {metric for (metric, _, _), row in values.items() if math.isfinite(row["mean"])}
    metrics = [metric for metric in PRIMARY if metric in known]
    methods = [method for method in HEADLINE if method in set(difference["method"])]
    head = ["bias"]
    for metric in metrics:
        head.append(f"{METRICS[metric].title.lower()}, ERM")
        for method in methods:
            against = reference_title(difference[difference["method"] == method])
            head.append(f"{method_title(method)} − {against}")
    rows = []
    for level in np.unique(summary["level"]):
        cells = [level_title(level, kind).removeprefix("bias ")]
        for metric in metrics:
            cells.append(f"{100 * values[metric, level, 'erm']['mean']:.1f} %")
            cells += [points(**gains[metric, level, method]) for method in methods]
        rows.append(cells)
    return head, rows


def rivals_table(area: pd.DataFrame, lead: pd.DataFrame, test: str = "seen") -> Printed:
    """Every method's gain over its reference, and how far label surprise is ahead, in the main metrics.

    Intervals of gains with a verdict, and of leads, are corrected by Holm's method; the others are not. The best method in accuracy comes first; methods that use true identities come last.
    """
    gains = area[area["test"] == test].set_index(["metric", "method"])
    gains = gains[[f"{name}_difference" for name in INTERVAL]].set_axis(INTERVAL, axis=1)
    leads = lead[lead["test"] == test].set_index(["metric", "method"])[INTERVAL]
    metrics = [metric for metric in PRIMARY if np.isfinite(gains.loc[metric, "mean"]).any()]

    accuracy = gains.loc["accuracy", "mean"].drop(index="erm", errors="ignore")
    methods = sorted(accuracy.index, key=lambda m: (uses_identities(m), -accuracy[m]))
    references = area.get("reference", pd.Series(dtype=str)).dropna().unique()
    several = len(references) > 1
    head = ["method", "labels"] + (["reference"] if several else [])
    reference_of = {}
    if several:
        reference_of = area.set_index("method")["reference"].to_dict()
    for metric in metrics:
        head.append(f"{METRICS[metric].title.lower()}, − {reference_title(area)}")
        head.append(f"{method_title('surprise')} − it")
    rows = []
    for method in methods:
        cells = [method_title(method), labels_used(method)]
        if several:
            cells.append(method_title(reference_of[method]))
        for metric in metrics:
            cells.append(points(**gains.loc[(metric, method)]))
            known = (metric, method) in leads.index
            cells.append(points(**leads.loc[(metric, method)]) if known else NONE)
        rows.append(cells)
    return head, rows


def controls_table(gains: pd.DataFrame, leaks: pd.DataFrame) -> Printed:
    """What every proxy reveals of people and of the label, and what methods gain with it on seen people.

    ``gains`` and ``leaks`` are ``proxies/controls`` and ``proxies/controls-auc``. One row per trunk and
    proxy; within a trunk, the proxy that tells people apart best comes first.
    """
    gains = gains[gains["test"] == "seen"]
    by_proxy = gains.set_index(["trunk", "proxy", "metric", "method"])[INTERVAL].to_dict("index")
    metrics = main_metrics(gains)
    methods = without_identities(gains["method"])
    several_trunks = leaks["trunk"].nunique() > 1
    person, label = leaks.columns[2:4]

    head = ["proxy"]
    if several_trunks:
        head.append("heads on")
    told = [person, label, f"{label}, class direction removed"]
    head += [person, label, "the same, class direction removed"]
    if RIGHT in leaks:  # as since there are right pairs
        told.insert(1, RIGHT)
        head.insert(-2, RIGHT)
    for metric in metrics:
        for method in methods:
            head.append(f"{METRICS[metric].title.lower()}, {method_title(method)} − ERM")
    rows = []
    for trunk, part in leaks.groupby("trunk", sort=False):
        part = part.sort_values(person, ascending=False, kind="stable")
        for _, leak in part.iterrows():
            proxy = leak["proxy"]
            cells = [network_title(proxy)]
            if several_trunks:
                cells.append(network_title(trunk))
            for column in told:
                cells.append(f"{leak[column]:.3f}")
            for metric in metrics:
                for method in methods:
                    cells.append(points(**by_proxy[trunk, proxy, metric, method]))
            rows.append(cells)
    return head, rows


def kind_of_people(card: dict) -> str:
    """Who is in a data set, by its data card: rendered people, or photographs of real ones."""
    rendered = card["source"].startswith("rendered")
    return "rendered people who do not exist" if rendered else "photographs of real people"


def _intervals_of_test(table: pd.DataFrame, test: str) -> dict[tuple, dict[str, float]]:
    """``mean``, ``low`` and ``high`` by (metric, level, method)."""
    rows = table[table["test"] == test].set_index(["metric", "level", "method"])
    return rows[INTERVAL].to_dict("index")


def _effect(entry: dict) -> str:
    if entry["claim"] == "4":
        return "differ: " + ", ".join(entry["differing"]) if entry["differing"] else "bytes equal"
    if entry["effect"] is None:
        return "undefined"
    # JSON has no infinity: null on a side of an effect that is there means unbounded.
    mean = entry["effect"]
    low = -math.inf if entry["low"] is None else entry["low"]
    high = math.inf if entry["high"] is None else entry["high"]
    if entry["claim"] == "3b":
        return _typeset(f"{mean:z.2f} [{low:z.2f}, {high:z.2f}]")
    return points(mean, low, high) + " points"


def _level(entry: dict) -> str:
    """The confidence of an entry's interval: 95 %, or more where several endpoints share the 5 %."""
    alpha = entry.get("alpha")
    if alpha is None or entry["effect"] is None:
        return NONE
    return f"{100 * (1 - alpha):.4g} %"


def _p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return f"{p:.3f}" if p >= 0.001 else "under 0.001"


def _detectable(entry: dict) -> str:
    return NONE if entry["detectable"] is None else f"{100 * entry['detectable']:.2f} points"


def _typeset(text: str) -> str:
    return text.replace("-", "−").replace("inf", "∞")


def audited_table(proxies: pd.DataFrame) -> Printed:
    """How far the audit without identities agrees with the truth, one row a bias level and proxy.

    ``proxies`` is ``audit-quality`` of :func:`study.experiment.audited.audit_study`. What is unknown, such as
    minority cells where no class is rare for anybody, is a dash. Of proxies other than the study's it says
    what is flagged.
    """
    head = [
        "bias", "proxy", "AUC", RIGHT, "minority flagged", "others flagged", "audits refused",
        "for the proxy",
        "rank, minority", "the same, plain", "error, minority", "error, balanced", "the same, plain",
        "covered", "differences covered",
    ]  # fmt: skip
    rows = []
    for _, row in proxies.iterrows():
        cells = [f"{row['level']:g}", row["proxy"]]
        cells += [_two_digits(row["auc"]), _percent(row["right_pairs"])]
        cells += [_percent(row[name]) for name in ("found", "false", "refused", "distrusted")]
        if row["proxy"] != "as it is":  # of few sets, which show what is flagged and no more
            rows.append(cells + [NONE] * (len(head) - len(cells)))
            continue
        cells += [_two_digits(row[name], "+") for name in ("rank_minority", "plain_rank_minority")]
        for name in ("minority", "balanced"):
            cells.append(_error(row[f"error_{name}"], row[f"scatter_{name}"]))
        cells.append(_error(row["plain_error_balanced"], row["plain_scatter_balanced"]))
        cells += [
            _percent(row[name]) for name in ("covered_minority", "difference_covered_minority")
        ]
        rows.append(cells)
    return head, rows


def unidentified_table(audited: pd.DataFrame, gains: pd.DataFrame, short: bool = False) -> Printed:
    """What the audit estimates where nobody is known, one row a method, the best on a balanced set first.

    Both are of :func:`study.experiment.unidentified.audit_held_out`. ``short`` leaves out what the balanced set
    is joined from.
    """
    columns = {"balanced": "balanced"}
    if not short:
        columns = {"minority": "surprised images", "majority": "the others"} | columns
    found = audited.set_index(["measure", "method"])
    gained = gains[gains["measure"] == "balanced"].set_index("method")
    head = ["method", *columns.values(), "balanced − ERM"]
    if not short:
        head.append("would be found")
    rows = []
    for method in found.loc["balanced"].sort_values("mean", ascending=False, kind="stable").index:
        row = [method_title(method), *(_share(found.loc[name, method]) for name in columns)]
        if method in gained.index:
            gain = gained.loc[method]
            row += [points(*gain[["mean", "low", "high"]]), f"{100 * gain['smallest']:.2f}"]
        else:
            row += [NONE, NONE]
        rows.append(row[: len(head)])
    return head, rows


def unidentified_markdown(
    audited: pd.DataFrame, gains: pd.DataFrame, refusal: str, short: bool = False
) -> str:
    """The same as Markdown; where the audit says that it must not be trusted, why, and no number."""
    if refusal:
        return f"**Refused.** No estimate is given: {refusal}.\n"
    return markdown_table(*unidentified_table(audited, gains, short))


def splits_table(splits: pd.DataFrame) -> Printed:
    """What the trust in the audits of random splits rests on, one row a split.

    ``splits`` is of :func:`study.experiment.unidentified.audit_held_out`.
    """
    head = ["split", "held-out images", "surprised", "gain, nats", "agreement, direction kept",
            "agreement, fewer neighbours", "trusted"]  # fmt: skip
    rows = []
    for _, row in splits.iterrows():
        rows.append(
            [
                f"{row['seed']:g}",
                f"{row['images']:,.0f}",
                f"{row['flagged_images']:,.0f}",
                _typeset(f"{row['gain']:+.3f} ± {row['gain_error']:.3f}"),
                _two_digits(row["agreement_direction"]),
                _two_digits(row["agreement_neighbours"]),
                "yes" if row["trusted"] else "no",
            ]
        )
    return head, rows


def _share(row: pd.Series) -> str:
    """An accuracy in percent with its interval."""
    mean, low, high = (100 * row[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]" if math.isfinite(mean) else NONE


def choices_table(audited: pd.DataFrame) -> Printed:
    """What accuracy is lost by ways to choose a method without identities, one row a bias level.

    ``audited`` is ``audit`` of :func:`study.experiment.audited.audit_study`. Chosen is among the methods that
    use no identities; accuracy is the true one on balanced images of seen people. A way that cannot choose is a
    dash; a method that was not run has no column.
    """
    rows = audited[(audited["proxy"] == "as it is") & (audited["measure"] == "balanced")]
    rows = rows[~rows["method"].map(uses_identities)]
    always = [name for name in ("erm", "surprise", "audited") if name in set(rows["method"])]
    printed = []
    for level, part in rows.groupby("level"):
        part = part.set_index("method")
        truth = part["truth"]
        best = truth.idxmax()
        cells = [f"{level:g}", f"{method_title(best)}, {100 * truth[best]:.1f} %"]
        for column in ("plain", "estimate"):
            chosen = part[column].idxmax() if part[column].notna().any() else None
            cells.append(_loss(truth, chosen, named=True))
        cells += [_loss(truth, method) for method in always]
        printed.append(cells)
    head = ["bias", "best", "by plain accuracy", "by the audit"]
    return [*head, *(f"always {method_title(name)}" for name in always)], printed


def _loss(truth: pd.Series, method: str | None, named: bool = False) -> str:
    """The true accuracy of a method less the best one's, in points."""
    if method not in truth:
        return NONE
    loss = _typeset(f"{100 * (truth[method] - truth.max()):+.2f}")
    return f"{method_title(method)}, {loss}" if named else loss


def _two_digits(value: float, sign: str = "") -> str:
    return _typeset(f"{value:{sign}.2f}") if math.isfinite(value) else NONE


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else NONE


def _error(mean: float, scatter: float) -> str:
    """A mean error and its standard deviation over methods, in points."""
    return _typeset(f"{100 * mean:+.1f} ± {100 * scatter:.1f}") if math.isfinite(mean) else NONE


def penalties_table(penalties: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The L2 penalties that were tried at each level, with their losses; the chosen one in bold.

    ``penalties`` are of :func:`study.experiment.penalties.choose`.
    """
    tried = sorted(penalties["l2"].unique())
    rows = []
    for (level, method), cell in penalties.groupby(["level", "method"], sort=False):
        by_penalty = cell.set_index("l2")
        row = [f"{level:g}", method]
        for l2 in tried:
            loss = by_penalty["loss"].get(l2)
            text = "" if loss is None else f"{loss:.4f}"
            chosen = loss is not None and by_penalty.loc[l2, "chosen"]
            row.append(f"**{text}**" if chosen else text)
        rows.append([*row, str(cell["sets"].iloc[0]), f"{cell['images'].iloc[0]:,}"])
    header = ["bias", "chosen for", *(f"L2 {l2:g}" for l2 in tried), "sets", "images"]
    return header, rows
