"""What a reader gets: the files of a stage, the headline table, the table of claims, one sentence.

Numbers are written to as many digits as their interval can bear, so that a rerun on another processor,
whose sums differ in the last place, leaves the files as they are. What is printed is computed from the
rounded numbers, so that a table read back prints the same.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from study import store
from study.experiment.methods import METHODS
from study.experiment.options import JUDGED
from study.results.claims import PRIMARY, SMALLEST
from study.results.inference import Estimates
from study.results.metrics import METRICS

Printed = tuple[list[str], list[list[str]]]  # a head and rows of cells, for Markdown and HTML alike

BUILD = Path("build")
HEADLINE = ("cid", "surprise", "oracle", "oracle-tempered")
STRONG = ("erm", "cid", "surprise", "oracle")  # of main figures
DECIMALS = 4  # of what has no interval
MAIN = PRIMARY  # metrics of main tables and figures
FACELESS = ("untrained", "pixels")  # of cid.recognition.NETWORKS, those no face was used to train
_INTERVAL = ["mean", "low", "high"]
_OWN = "own trunk"  # of study.experiment.variations.controls
_NOT_SHOWN = "is not shown to change"


def decimals(low, high) -> np.ndarray:
    """Decimals that give half an interval two significant digits, 2 to 6; else :data:`DECIMALS`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        half = (np.asarray(high, dtype=float) - np.asarray(low, dtype=float)) / 2
        digits = 1 - np.floor(np.log10(half))
    return np.where(np.isfinite(digits), np.clip(digits, 2, 6), DECIMALS).astype(int)


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its numbers as they are written.

    ``mean``, ``low`` and ``high`` of a row (and the same with the suffix ``_difference``) have the
    :func:`decimals` of their interval; other numbers that are not whole have :data:`DECIMALS`.
    """
    numbers = table.select_dtypes("floating")
    digits = {name: [DECIMALS] * len(table) for name in numbers}
    for suffix in ("", "_difference"):
        names = [name + suffix for name in _INTERVAL]
        if set(names) <= set(numbers):
            digits |= dict.fromkeys(names, decimals(numbers[names[1]], numbers[names[2]]))
    return table.assign(**{k: list(map(_round, numbers[k], digits[k])) for k in numbers})


def write(folder, **tables: pd.DataFrame | Sequence[pd.DataFrame]) -> None:
    """Write tables as ``<folder>/<name>.csv``, :func:`rounded`; several under one name are joined."""
    for name, table in tables.items():
        if not isinstance(table, pd.DataFrame):
            table = pd.concat(table, ignore_index=True)
        store.write_text(Path(folder) / f"{name}.csv", rounded(table).to_csv(index=False))


def read(name: str) -> pd.DataFrame:
    """A table that a stage has written, such as ``evaluate/area``; empty where it wrote none."""
    path = BUILD / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def main(table: pd.DataFrame) -> list[str]:
    """The metrics of main figures: :data:`MAIN`, or the worst decile, if known, where no class is rare."""
    known = set(table.loc[table["mean"].notna(), "metric"])
    return [MAIN[0], *[m for m in (MAIN[1], "worst_decile") if m in known][:1]]


def power_sentence(power: pd.DataFrame) -> str:
    """What the study would have detected, of :func:`study.results.inference.power` or read from CSV."""
    rows = power[(power["method"].isin(HEADLINE)) & power["detectable"].notna()]
    said = []
    for (test, metric), part in rows[rows["metric"].isin(PRIMARY)].groupby(["test", "metric"]):
        each = (
            f"{100 * v:.2f} ({title(m)})"
            for m, v in zip(part["method"], part["detectable"], strict=True)
        )
        said.append(f"{METRICS[metric].title.lower()}, {test} people: {', '.join(each)}")
    if not said:
        return "With so few seeds or people, no effect of any size would be detected reliably."
    return (
        "**Power.** The smallest effect that this study would have detected with probability .8, as a mean "
        f"over the bias range, in points: {'; '.join(said)}."
    )


def read_about() -> dict:
    """What the stage ``evaluate`` says of the study: its task, kind of bias, levels, methods, ..."""
    return json.loads((BUILD / "evaluate/about.json").read_text())


def read_claims(stage: str = "evaluate") -> list[dict]:
    """The verdicts that a stage has written."""
    return json.loads((BUILD / stage / "claims.json").read_text())


def write_tables(folder, runs: pd.DataFrame, tables: dict[str, pd.DataFrame], about: dict) -> None:
    """Write everything the evaluation found: ``runs`` (``Estimates.runs``), ``tables`` and ``about``.

    ``folder`` receives one CSV a table (of which ``summary`` and ``difference`` are needed), for ``dvc
    plots`` ``accuracy-<test>.csv`` and ``minority_accuracy-<test>.csv`` (means, one column a method),
    ``headline.md``, ``about.json``, and ``metrics.json``: ``about`` and the metrics of the claims.
    """
    folder = Path(folder)
    write(folder, runs=runs, **tables)
    summary, difference = rounded(tables["summary"]), rounded(tables["difference"])
    numbers = dict(about)
    for test, rows in summary.groupby("test"):
        means = rows.pivot(index="level", columns=["metric", "method"], values="mean")
        for metric in MAIN:
            write(folder, **{f"{metric}-{test}": means[metric].sort_index(axis=1).reset_index()})
        gains = difference[difference["test"] == test]
        numbers[test] = {
            f"bias {level:g}": {
                metric: _numbers(rows, metric, level, ["mean"])
                | {"minus ERM": _numbers(gains, metric, level, _INTERVAL)}
                for metric in SMALLEST
                if metric in set(rows["metric"])
            }
            for level in np.unique(rows["level"])
        }
    store.write_text(folder / "metrics.json", json.dumps(numbers, indent=2) + "\n")
    store.write_text(folder / "about.json", json.dumps(about, indent=2) + "\n")
    store.write_text(folder / "headline.md", markdown_table(*headline_cells(difference, summary)))


def write_claims(path, entries: list[dict]) -> None:
    """Write entries as JSON, sorted and rounded as tables are; unbounded or undefined is null."""
    text = json.dumps(_ordered(entries), indent=2, allow_nan=False, ensure_ascii=False)
    store.write_text(path, text + "\n")


def claims_table(entries: list[dict]) -> Printed:
    """One row a claim, of :func:`study.results.claims.claims` or read back from JSON."""
    head = ["claim", "method", "test", "statement", "effect [95 % interval]", "p (Holm)"]
    head += ["detectable", "verdict", "why"]
    rows = [
        [entry["claim"], title(entry["method"]), entry["test"] or "–", entry["statement"],
         _effect(entry), _p(entry["p_holm"]), _detectable(entry), entry["verdict"], entry["reason"]]
        for entry in _ordered(entries)
    ]  # fmt: skip
    return head, rows


def verdicts(entries: list[dict]) -> Printed:
    """What is judged of one study on seen people, one row a claim and one column a method."""
    lines: dict[tuple, dict[str, str]] = {}
    for entry in _ordered(entries):
        judged = entry["primary"] or entry["claim"] in ("3b", "4")
        if judged and entry["test"] in ("seen", None):
            note = "" if entry["p_holm"] is None else f", p {_p(entry['p_holm'])}"
            cell = f"**{entry['verdict']}** ({_effect(entry)}{note})"
            lines.setdefault((entry["claim"], entry["statement"]), {})[entry["method"]] = cell
    methods = list(dict.fromkeys(method for line in lines.values() for method in line))
    rows = [[*key, *(line.get(method, "–") for method in methods)] for key, line in lines.items()]
    return ["claim", "statement", *map(title, methods)], rows


def methods_table(methods: Sequence[str]) -> Printed:
    """What each method does and which labels of the training set it sees."""
    specs = [METHODS[method] for method in methods]
    rows = [[s.title, s.summary, ", ".join(s.sees) or "none beyond the task's"] for s in specs]
    return ["method", "how it weighs or trains", "labels it is made of"], rows


def headline_cells(difference: pd.DataFrame, summary: pd.DataFrame, test: str = "seen") -> Printed:
    """The study in one table: ERM, and what methods gain over it, in the main metrics.

    The tables are of the functions of those names in :mod:`study.results.inference`, or read back from
    CSV. One row a bias level; of :data:`HEADLINE` a method that was not run is left out, and so is a
    metric that a test set does not have.
    """
    value, gain = _lookup(summary, test), _lookup(difference, test)
    known = {metric for (metric, *_), row in value.items() if math.isfinite(row["mean"])}
    methods = [m for m in HEADLINE if m in set(difference["method"])]
    head, gains = ["bias"], [f"{title(m)} − ERM" for m in methods]
    metrics = [metric for metric in MAIN if metric in known]
    for metric in metrics:
        head += [f"{METRICS[metric].title.lower()}, ERM", *gains]
    rows = []
    for level in np.unique(summary["level"]):
        cells = [f"{level:g}"]
        for metric in metrics:
            cells.append(f"{100 * value[metric, level, 'erm']['mean']:.1f} %")
            cells += [points(**gain[metric, level, m]) for m in methods]
        rows.append(cells)
    return head, rows


def rivals(area: pd.DataFrame, lead: pd.DataFrame, test: str = "seen") -> Printed:
    """Every method's gain over ERM, and how far label surprise is ahead of it, in the main metrics.

    The tables are of the functions of those names in :mod:`study.results.inference`, or read back from
    CSV; the best method in accuracy comes first, those told the true identities last.
    """
    gain = area[area["test"] == test].set_index(["metric", "method"])
    gain = gain[[f"{name}_difference" for name in _INTERVAL]].set_axis(_INTERVAL, axis=1)
    ahead = lead[lead["test"] == test].set_index(["metric", "method"])[_INTERVAL]
    metrics = [m for m in MAIN if np.isfinite(gain.loc[m, "mean"]).any()]
    names = gain.loc[MAIN[0]].drop(index="erm", errors="ignore").index
    told = {m: m in METHODS and "identity" in METHODS[m].sees for m in names}
    names = sorted(names, key=lambda m: (told[m], -gain.loc[(MAIN[0], m), "mean"]))
    head, rows = ["method", "labels"], []
    for metric in metrics:
        head += [f"{METRICS[metric].title.lower()}, − ERM", f"{title('surprise')} − it"]
    for m in names:
        cells = [title(m), ", ".join(METHODS[m].sees) or "none" if m in METHODS else "class"]
        for metric in metrics:
            cells.append(points(**gain.loc[(metric, m)]))
            cells.append("–" if m == "surprise" else points(**ahead.loc[(metric, m)]))
        rows.append(cells)
    return head, rows


def lead_sentence(lead: pd.DataFrame, test: str = "seen") -> str:
    """Which methods without identities label surprise is ahead of, behind, or neither, Holm-corrected.

    ``lead`` is of :func:`study.results.inference.lead`, or read back from CSV; CID's own forms are left
    out, as it is one of them.
    """
    rows = lead[(lead["test"] == test) & (lead["metric"] == MAIN[0])]
    family = [m for m in METHODS if m.startswith("cid")]
    free = [m for m, spec in METHODS.items() if "identity" not in spec.sees and m not in family]
    rows = rows[rows["method"].isin(free)]
    clear = rows["p_holm"] < 0.05
    groups = {
        "is ahead of": rows[clear & (rows["mean"] > 0)],
        "is behind": rows[clear & (rows["mean"] < 0)],
        "is not told apart from": rows[~clear],
    }
    parts = [f"{verb} {_listed(part['method'])}" for verb, part in groups.items() if len(part)]
    images = "held-out images of seen people" if test == "seen" else "people never seen in training"
    return f"In accuracy on {images}, at 5 % after Holm's correction, label surprise {'; it '.join(parts)}."


def _listed(methods: Sequence[str]) -> str:
    names = list(map(title, methods))
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def sentence(area: pd.DataFrame, task: str, levels: Sequence[float], test: str = "seen") -> str:
    """What the study found, in one sentence of Markdown that holds whatever was found.

    A change is said where its 95 % interval is clear of 0, and is otherwise "not shown". ``area`` is of
    :func:`study.results.inference.area`, or read back from CSV.
    """
    rows = area[area["test"] == test].set_index(["method", "metric"])
    names = [f"{name}_difference" for name in _INTERVAL]
    rows = rows[names].set_axis(_INTERVAL, axis=1).dropna(subset="mean").to_dict("index")
    second = MAIN[1] if any(metric == MAIN[1] for _, metric in rows) else "worst_decile"
    found = {m: [rows[m, k] for k in (MAIN[0], second) if (m, k) in rows] for m, _ in rows}
    judged = next((m for m in (*JUDGED, *found) if m in found), None)
    if judged is None:
        return "Only plain training was run, so there is nothing to compare it with."
    where = f" at bias level {levels[0]:g}"
    if len(levels) > 1:
        where = f" and averaged over bias levels {min(levels):g} to {max(levels):g}"
    images = "held-out images" if test == "seen" else "images of people never seen in training"
    one = f"the accuracy of *{task}* on {images}"
    two = {
        MAIN[1]: "that on minority cells",
        "worst_decile": "the mean accuracy of the worst-served tenth of the people",
    }[second]
    changes = _changes(found[judged], (one, two))
    text = f"Compared with plain training{where}, {title(judged)} {changes}"
    if "oracle" in found and judged != "oracle":
        changes = _changes(found["oracle"], ("the former", "the latter"))
        text += f"; the oracle, which is told the true identities, {changes}"
    return text + "."


def points(mean: float, low: float, high: float) -> str:
    """A difference and its interval in percentage points, as in ``+0.50 [−0.10, +1.10]``.

    One decimal where half the interval is a point or more, else two.
    """
    low_, mean_, high_ = (round(100 * value, 4) for value in (low, mean, high))
    digits = 1 if math.isfinite(high_ - low_) and high_ - low_ >= 2 else 2
    return _typeset(f"{mean_:+z.{digits}f} [{low_:+z.{digits}f}, {high_:+z.{digits}f}]")


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, with a line break at its end."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def by_task(studies: dict[tuple, Estimates], functional) -> pd.DataFrame:
    """One table of a functional of :mod:`study.results.inference` over studies by (task, kind)."""
    found = [functional(study).assign(task=t, kind=k) for (t, k), study in studies.items()]
    return pd.concat(found, ignore_index=True)


def by_trunk(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One table of tables by the network whose features were classified, its first column ``trunk``."""
    tables = [table.assign(trunk=name)[["trunk", *table]] for name, table in found.items()]
    return pd.concat(tables, ignore_index=True)


def network(name: str) -> str:
    """A network's name in figures and tables; of one that is a file, the file's."""
    return name.partition("@")[0].rpartition("/")[2]


def kind_of_people(card: dict) -> str:
    """Who is in a data set, by its data card: rendered people, or photographs of real ones."""
    rendered = card["source"].startswith("rendered")
    return "rendered people who do not exist" if rendered else "photographs of real people"


def controls_table(gains: pd.DataFrame, told: pd.DataFrame) -> Printed:
    """What every proxy tells of people and of the label, and what methods gain with it on seen people.

    ``gains`` and ``told`` are ``proxies/controls`` and ``proxies/controls-auc``. One row a trunk and
    proxy, of each trunk first what tells people apart best.
    """
    gains = gains[gains["test"] == "seen"]
    value = gains.set_index(["trunk", "proxy", "metric", "method"])[_INTERVAL].to_dict("index")
    metrics, methods = main(gains), untold(gains["method"])
    crossed = told["trunk"].nunique() > 1
    person, label = told.columns[2:4]
    head = ["proxy", *["heads on"] * crossed, person, label, "the same, class direction removed"]
    head += [f"{METRICS[k].title.lower()}, {title(m)} − ERM" for k in metrics for m in methods]
    rows = []
    for trunk, part in told.groupby("trunk", sort=False):
        part = part.sort_values(person, ascending=False, kind="stable")
        aucs = part[[person, label, f"{label}, class direction removed"]]
        for proxy, each in zip(part["proxy"], aucs.to_numpy(), strict=True):
            gained = [points(**value[trunk, proxy, k, m]) for k in metrics for m in methods]
            on = [network(trunk)] * crossed
            rows.append([network(proxy), *on, *(f"{auc:.3f}" for auc in each), *gained])
    return head, rows


def controls_sentence(gains: pd.DataFrame, apart: pd.DataFrame, own: str) -> str:
    """Whether a face recogniser is needed, in one sentence of Markdown that holds whatever was found.

    It is of accuracy on held-out images of seen people, under the first of :data:`JUDGED` that was run.
    A recogniser is *needed* where the method gains with the study's own network as the proxy, and less
    with every proxy of :data:`FACELESS` (the trunk's own features count as that where the trunk does):
    *for the whole gain* where one of these gains as well. It is *not shown to be needed* where one is not
    shown to gain less. Nothing is *told* where there is no gain, no such proxy, or no recogniser. All by
    95 % intervals clear of 0, of paired differences. ``gains`` and ``apart`` are ``proxies/controls`` and
    ``proxies/controls-against``, ``own`` the name of the study's network.
    """
    methods = untold(gains["method"])
    if not methods:
        return "No method was run that needs a proxy."
    method = next(m for m in (*JUDGED, *methods) if m in methods)
    where = f"test == 'seen' and metric == '{MAIN[0]}' and method == '{method}'"
    gain, change = (
        table.query(where).set_index(["trunk", "proxy"])[_INTERVAL].to_dict("index")
        for table in (gains, apart)
    )
    first, *others = dict.fromkeys(gains["trunk"])
    free = _faceless(change, first)
    said = [_compared(change, first, free) + ", which never learned from a face"] if free else []
    if _OWN not in free:
        heads = f"the features that the heads are trained on, of `{network(first)}`"
        said.append(_compared(change, first, [_OWN]).replace(_OWN, heads))
    verdicts = {trunk: _needed(gain, change, trunk, own) for trunk in (first, *others)}
    for found in dict.fromkeys(verdicts[trunk] for trunk in others):
        names = " and ".join(f"`{network(t)}`" for t in others if verdicts[t] == found)
        said.append(f"with heads on {names}, {found[0].lower()}{found[1:]}")
    does = _changes([gain[first, own]], ["accuracy"])
    return (
        f"**{verdicts[first]}** on these faces: with `{network(own)}` as the proxy, {title(method)} "
        f"{does}; {'; '.join(said)}."
    )


def untold(methods: Iterable[str]) -> list[str]:
    """Those methods but ERM, each once, that are not told identities, and so can need a proxy."""
    return [m for m in dict.fromkeys(methods) if m != "erm" and "identity" not in METHODS[m].sees]


def _faceless(known: Iterable[tuple[str, str]], trunk: str) -> list[str]:
    """Of the (trunk, proxy) of one trunk, the proxies that no face was used to train."""
    own = [_OWN] if trunk in FACELESS else []
    return [proxy for at, proxy in known if at == trunk and proxy in (*FACELESS, *own)]


def _needed(gain: dict, change: dict, trunk: str, own: str) -> str:
    """The verdict of :func:`controls_sentence` on one trunk."""
    free = _faceless(change, trunk)
    if own in FACELESS or not free or not gain[trunk, own]["low"] > 0:
        return "Whether a face recogniser is needed cannot be told"
    if not all(change[trunk, proxy]["high"] < 0 for proxy in free):
        return "A face recogniser is not shown to be needed"
    some = any(gain[trunk, proxy]["low"] > 0 for proxy in free)
    return "A face recogniser is needed" + (" for the whole gain" if some else "")


def _compared(change: dict, trunk: str, proxies: Sequence[str]) -> str:
    """How much less is gained with some proxies, as in "it gains less with a (−1 ...) and b (−2 ...)"."""
    found: dict[str, list[str]] = {}
    for proxy in proxies:
        interval = change[trunk, proxy]
        verb = "gains less" if interval["high"] < 0 else "is not shown to gain less"
        found.setdefault(verb, []).append(f"{proxy} ({points(**interval)})")
    return "it " + " but ".join(f"{verb} with {' and '.join(p)}" for verb, p in found.items())


def weights_summary(sets: pd.DataFrame, methods: list[str]) -> dict[str, pd.DataFrame]:
    """What the weights of a study are like, from :func:`study.experiment.runs.weigh_sets` at all levels.

    ``weights`` has one row per level, method and ``cell_size`` (training images of the same person and
    class): ``mean``, and ``low`` and ``high``, the 10 % and 90 % quantiles over images; sizes with under
    .2 % of a level's images are left out. ``effective`` has one row per level and method, Kish's
    effective sample size as a share of n: ``mean``, ``low`` and ``high`` over seeds.
    """
    train = sets[sets["part"] == "train"]
    images = train.groupby(["level", "cell_size"])["row"].transform("size")
    common = train[images >= 0.002 * train.groupby("level")["row"].transform("size")]
    by_set = train.groupby(["level", "seed"])[methods]
    squares = (train[methods] ** 2).groupby([train["level"], train["seed"]]).mean()
    return {
        "weights": _spread(common, ["level", "cell_size"], methods),
        "effective": _spread((by_set.mean() ** 2 / squares).reset_index(), ["level"], methods),
    }


def title(method: str) -> str:
    """A method's name in tables."""
    return METHODS[method].title if method in METHODS else method


def _spread(table: pd.DataFrame, keys: list[str], methods: list[str]) -> pd.DataFrame:
    """Mean and 10 % and 90 % quantiles of the columns ``methods`` in every group, one row each."""
    groups = table.groupby(keys)[methods]
    found = {"mean": groups.mean(), "low": groups.quantile(0.1), "high": groups.quantile(0.9)}
    found = pd.DataFrame({name: values.stack() for name, values in found.items()})
    return found.rename_axis([*keys, "method"]).reset_index()


def _changes(intervals: Sequence[dict], names: Sequence[str]) -> str:
    """What happens to metrics, as in "raises A (+1 points) but lowers B (−1 points)"."""
    verbs = [_verb(**interval) for interval in intervals]
    said = [
        f"{n} ({points(**interval)} points)" for n, interval in zip(names, intervals, strict=False)
    ]
    if len(set(verbs)) == 1:
        return f"{verbs[0]} {(' or ' if verbs[0] == _NOT_SHOWN else ' and ').join(said)}"
    joint = " but " if set(verbs) == {"raises", "lowers"} else " and "
    return joint.join(f"{verb} {what}" for verb, what in zip(verbs, said, strict=True))


def _verb(mean: float, low: float, high: float) -> str:
    return "raises" if low > 0 else "lowers" if high < 0 else _NOT_SHOWN


def _round(value: float, digits: int) -> float:
    return round(float(value), int(digits)) + 0.0  # no minus before a zero


def _lookup(table: pd.DataFrame, test: str) -> dict[tuple, dict[str, float]]:
    """``mean``, ``low`` and ``high`` by (metric, level, method)."""
    rows = table[table["test"] == test].set_index(["metric", "level", "method"])
    return rows[_INTERVAL].to_dict("index")


def _numbers(table: pd.DataFrame, metric: str, level: float, columns: list[str]) -> dict[str, dict]:
    """Columns as dicts by method; what is unbounded or undefined is null."""
    rows = table.query("metric == @metric and level == @level").set_index("method")[columns]
    return rows.astype(object).where(np.isfinite(rows), None).to_dict()


def _ordered(entries: list[dict]) -> list[dict]:
    keys = ("task", "kind", "method", "claim", "test", "metric")
    return sorted(map(_plain, entries), key=lambda entry: [str(entry[key]) for key in keys])


def _plain(entry: dict) -> dict:
    """An entry with its numbers as they are written: rounded, and null for what is not finite."""
    digits = dict.fromkeys(("p", "p_holm"), DECIMALS)
    if entry["effect"] is not None:
        low, high = (np.nan if entry[k] is None else entry[k] for k in ("low", "high"))
        digits |= dict.fromkeys(("effect", "low", "high"), int(decimals(low, high)))
    rounded = {k: _round(v, digits.get(k, 6)) for k, v in entry.items() if isinstance(v, float)}
    return entry | {k: v if math.isfinite(v) else None for k, v in rounded.items()}


def _effect(entry: dict) -> str:
    if entry["claim"] == "4":
        return "differ: " + ", ".join(entry["differing"]) if entry["differing"] else "bytes equal"
    # JSON has no infinity: null on a side of an effect that is there means unbounded.
    mean, low, high = (entry[key] for key in ("effect", "low", "high"))
    if mean is None:
        return "undefined"
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if entry["claim"] == "3b":
        return _typeset(f"{mean:z.2f} [{low:z.2f}, {high:z.2f}]")
    return points(mean, low, high) + " points"


def _p(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "under 0.001"


def _detectable(entry: dict) -> str:
    return "–" if entry["detectable"] is None else f"{100 * entry['detectable']:.2f} points"


def _typeset(text: str) -> str:
    return text.replace("-", "−").replace("inf", "∞")
