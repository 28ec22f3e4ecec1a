"""All studies side by side: one forest plot, the tables behind it, and what the README shows of them.

Everything is read from the committed reports in ``reports/``; no number is typed in.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from study.methods.registry import METHODS
from study.pipeline import earlier, pages, predicted, protocols
from study.pipeline.params import parsed
from study.pipeline.reproduced import FILE, REPORTS
from study.results import claims
from study.results.claims import PRIMARY
from study.results.inference import ALPHA, holm
from study.results.metrics import METRICS
from study.results.palette import colour, marker
from study.results.sizes import people_and_images
from study.results.tables import (
    HEADLINE,
    Printed,
    headline_table,
    kind_of_people,
    markdown_table,
    points,
    unidentified_markdown,
    verdict_words,
)
from study.results.titles import labels_used, marked_title, method_title, reference_title

RESULTS = Path("docs/results.md")
COSTS = Path("benchmarks/costs.csv")
PUBLISHED = (
    "surprise",
    "cid",
)  # methods of the table of families: label surprise, and CID as published
FOREST = ("cid", "surprise", "oracle")  # methods of the forest plot, the README's figure and table
# What holds of every exploratory study: of looked-at people, and of new ones without a protocol.
EXPLORATORY = "Exploratory: no protocol was committed before results on these people were known"
GROUPS = {  # of reports/index.html, by the state of the protocol
    protocols.CONFIRMATORY: "Confirmatory: the design was committed before the first run",
    protocols.RERUN: "Run again: confirmatory before, with other settings; exploratory as shown here",
    protocols.EXPLORATORY: EXPLORATORY,
}
NOBODY = "Data of which nobody knows whom they show: estimates of the audit"
DIFFERENCE = ["mean_difference", "low_difference", "high_difference"]

INTRODUCTION = """# Results, in tables

`python -m study documents` writes this page from the files in `reports/`; no number on it was
typed in. [All studies in one figure](../reports/index.html) is the same as a page for a browser.

How to read it:

- **ERM** is plain training: every image counts the same. Every other number is a gain in percentage
  points, on held-out images of people seen in training, over what the table names: ERM or, where data are
  taken as they are found and a method balances classes, class-balanced training.
- The **interval** of a gain, as a mean over bias levels, of label surprise and CID is the one that Holm's
  correction over the endpoints of the study leaves, as in the verdict. All others are 95 % intervals.
- **CID** weighs an image by its inverse density among images of its own class, in the embedding of a
  face-recognition network. **Label surprise** is the second factor of CID alone: it weighs an image by how
  unusual its label is among the images nearest to it. Neither uses an identity.
- The **oracle** uses the true identities: every person counts the same in each class. *Tempered*, it
  raises rare images further. It is a yardstick; other weights can gain more.
- **Bias level**: 0 is none. The higher it is, the fewer of a person's training images are of the class
  that is rare for that person. **Minority cells** are the test images of that rare class.
- **Detectable** is the smallest gain of label surprise that a study would have found with probability .8,
  at the level of its interval.
  Where the interval contains 0, nothing was shown in either direction.
- A **confirmatory** study's design and endpoints were committed before its first run. One that was **run
  again** was confirmatory with other settings; its results were known when it got those of today, so that
  today's numbers are exploratory; both stand side by side at the end of this page.
  **Exploratory** is every other study: no protocol was committed before results on its people were known.
"""


# ---------------------------------------------------------------------------- reading the reports


@dataclass(frozen=True)
class Study:
    """A committed report, as far as the overview needs it.

    ``gains`` is its table ``area``, by test set, metric and method, ``power`` that of seen people, by metric and
    method, and ``claims`` its verdicts. All three are by the rules of now (:func:`tables_of`).
    """

    name: str
    card: dict
    params: dict
    levels: list[float]
    model: str
    protocol: dict
    gains: pd.DataFrame
    power: pd.DataFrame
    claims: list[dict]
    sets: dict  # of study.results.sizes; empty in reports from before these were counted

    @property
    def area(self) -> pd.DataFrame:
        """The gains on held-out images of seen people, by metric and method."""
        return self.gains.xs("seen")

    def gain(self, metric: str, method: str, test: str = "seen") -> str:
        """A method's gain over its reference with its interval; empty for ERM and for what was not run."""
        key = (test, metric, method)
        if key not in self.gains.index:
            return ""
        row = self.gains.loc[key]
        return points(*row[DIFFERENCE]) if math.isfinite(row["mean_difference"]) else ""

    def judged(self, metric: str, method: str, test: str = "seen") -> dict | None:
        """The verdict on a primary endpoint; None where there is none."""
        for entry in self.claims:
            key = (entry["metric"], entry["method"], entry["test"])
            if entry["primary"] and key == (metric, method, test):
                return entry
        return None

    @property
    def reference(self) -> str:
        """What the gains of the methods of the headline are over."""
        shown = self.area.index.get_level_values("method").isin(HEADLINE)
        return reference_title(self.area[shown])

    @property
    def people_text(self) -> str:
        """How many people are tested, and people and images of a training set where they are known."""
        trained = f"; trained on {people_and_images(self.sets)}" if self.sets else ""
        return f"{self.people:,} tested{trained}"

    @property
    def people(self) -> int:
        return int(self.power["people"].max())

    @property
    def bias(self) -> str:
        """The task, the kind of bias and its levels."""
        kind = self.params["bias"]["kind"]
        text = f"{self.params['task']}, {kind}"
        if kind == "natural":
            return text
        if len(self.levels) == 1:
            return f"{text} {self.levels[0]:g}"
        return f"{text} {min(self.levels):g} to {max(self.levels):g}"

    @property
    def protocol_text(self) -> str:
        """The state of the study's protocol, and when the confirmatory one was committed."""
        state, commit, date = (self.protocol[key] for key in ("status", "commit", "date"))
        if state == protocols.EXPLORATORY:
            return state
        since = f"{commit[:7]} of {date[:10]}" if commit else "not committed"
        if state == protocols.RERUN:
            return f"run again; confirmatory before, {since}"
        return f"confirmatory, {since}"


def read_studies() -> list[Study]:
    """Read all committed reports of people, in the order of their names."""
    return [read_study(file.parent) for file in sorted(REPORTS.glob("[!.]*/area.csv"))]


def unidentified(link: str) -> str:
    """Markdown: what the reports of data say of which nobody is known; empty where there is none.

    ``link`` is a link to a report, with the place of its name.
    """
    folders = [file.parent for file in sorted(REPORTS.glob("[!.]*/audited.csv"))]
    parts = [f"{link.format(folder.name)}:\n\n{headline_markdown(folder)}" for folder in folders]
    return "\n".join(parts)


def read_study(folder: Path) -> Study:
    about = _read_json(folder / "about.json")
    entries, tables = tables_of(folder)
    return Study(
        name=folder.name,
        card=_read_json(folder / "card.json"),
        params=parsed(folder / "params.yaml"),
        levels=about["levels"],
        model=about["model"],
        protocol=_read_json(folder / FILE)["protocol"],
        gains=tables["area"].set_index(["test", "metric", "method"]),
        power=seen_people(tables["power"]),
        claims=entries,
        sets=about.get("sets", {}),
    )


def tables_of(folder: Path) -> tuple[list[dict], dict[str, pd.DataFrame]]:
    """The verdicts of a report and its tables ``area`` and ``power``, by the rules of now.

    Reports of before intervals were corrected are judged again from their numbers.
    """
    entries = _read_json(folder / "claims.json")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("area", "power")}
    if "alpha" in tables["area"]:
        return entries, tables
    judged = claims.rejudge(entries, **tables)
    return judged, claims.in_tables(tables, judged)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def seen_people(table: pd.DataFrame) -> pd.DataFrame:
    """A report's table on held-out images of people seen in training, by metric and method."""
    return table[table["test"] == "seen"].set_index(["metric", "method"])


def gain_cell(study: Study, metric: str, method: str, detectable: bool = False) -> str:
    """:meth:`Study.gain` in a table, a dash where there is none.

    With ``detectable``, the smallest gain that would have been found follows in brackets.
    """
    text = study.gain(metric, method)
    if not text:
        return "–"
    return (
        f"{text} ({100 * study.area.loc[(metric, method), 'detectable']:.1f})"
        if detectable
        else text
    )


# ---------------------------------------------------------------------------- tables


def headline_markdown(folder: Path) -> str:
    """The main numbers of a report, as Markdown: one row a bias level, every method of the headline.

    Where nobody is known: the estimates of the audit.
    """
    if not (folder / "difference.csv").exists():
        tables = [pd.read_csv(folder / f"{name}.csv") for name in ("audited", "audited-gains")]
        return unidentified_markdown(*tables, _read_json(folder / "about.json")["refusal"])
    difference = pd.read_csv(folder / "difference.csv")
    summary = pd.read_csv(folder / "summary.csv")
    kind = _read_json(folder / "about.json")["kind"]
    return markdown_table(*headline_table(difference, summary, kind=kind))


def short_headline(folder: Path) -> Printed:
    """The README's table of a report: ERM, and the gains of label surprise and the oracle.

    Numbers on minority cells follow in brackets.
    """
    gains = _by_level(folder / "difference.csv")
    values = _by_level(folder / "summary.csv")
    head = ["bias", "ERM: accuracy (minority cells)", "label surprise − ERM", "oracle − ERM"]
    rows = []
    for level in sorted({level for _, level, _ in values}):
        accuracy, minority = (values.get((metric, level, "erm")) for metric in PRIMARY)
        row = [f"{level:g}", _pair(accuracy, minority, _percent)]
        for method in ("surprise", "oracle"):
            accuracy, minority = (gains.get((metric, level, method)) for metric in PRIMARY)
            row.append(_pair(accuracy, minority, _points))
        rows.append(row)
    return head, rows


def _pair(accuracy: dict | None, minority: dict | None, text: Callable[[dict], str]) -> str:
    """A number, followed in brackets by that on minority cells; a dash for what is not known."""
    if accuracy is None or not math.isfinite(accuracy["mean"]):
        return "–"
    if minority is None or not math.isfinite(minority["mean"]):
        return text(accuracy)
    return f"{text(accuracy)} ({text(minority)})"


def _percent(row: dict) -> str:
    return f"{100 * row['mean']:.1f} %"


def _points(row: dict) -> str:
    return points(row["mean"], row["low"], row["high"])


def _by_level(file: Path) -> dict[tuple[str, float, str], dict[str, float]]:
    """``mean``, ``low`` and ``high`` on seen people, by (metric, level, method)."""
    table = pd.read_csv(file).query("test == 'seen'").set_index(["metric", "level", "method"])
    return table[["mean", "low", "high"]].to_dict("index")


def studies_table(studies: Iterable[Study]) -> Printed:
    """All studies side by side: gains, means over the bias range, and what was detectable."""
    head = ["study", "data", "people", "task, bias", "model", "seeds", "protocol", "accuracy, ERM",
            "gains over"]  # fmt: skip
    for metric in PRIMARY:
        name = METRICS[metric].title.lower()
        head.append(f"{name}: detectable")
        head += [f"{name}: gain of {method_title(method)}" for method in HEADLINE]
    rows = []
    for study in studies:
        row = [
            study.name,
            study.card["name"],
            study.people_text,
            study.bias,
            study.params["train"]["model"],
            str(study.params["seeds"]),
            study.protocol_text,
            f"{100 * study.area.loc[('accuracy', 'erm'), 'mean']:.1f} %",
            study.reference,
        ]
        for metric in PRIMARY:
            detectable = study.power["detectable"].get((metric, "surprise"), math.nan)
            row.append(f"{100 * detectable:.2f}" if math.isfinite(detectable) else "–")
            row += [gain_cell(study, metric, method) for method in HEADLINE]
        rows.append(row)
    return head, rows


def power_table() -> Printed:
    """Predicted and found power of the committed studies that have a prediction."""
    folders = [file.parent for file in sorted(REPORTS.glob("[!.]*/power.csv"))]
    return predicted.table(
        (folder.name, parsed(folder / "params.yaml"), pd.read_csv(folder / "power.csv"))
        for folder in folders
    )


def linear_heads_table() -> Printed:
    """Every method on every study whose costs ``benchmarks/costs.py`` measured.

    Gains over ERM, means over the bias range on seen people, and seconds for one training set.
    """
    costs = pd.read_csv(COSTS).set_index(["study", "method"])
    names = costs.index.unique("study")
    studies = [read_study(REPORTS / name) for name in names]
    head = ["method", "labels behind weights or groups"]
    for name in names:
        head += [f"{name}: {METRICS[metric].title.lower()} − ERM" for metric in PRIMARY]
        head.append(f"{name}: seconds")
    rows = []
    for method in METHODS:
        row = [method_title(method), labels_used(method)]
        for study in studies:
            row += [gain_cell(study, metric, method) for metric in PRIMARY]
            if (study.name, method) in costs.index:
                cost = costs.loc[(study.name, method)]
                row.append(f"{cost['weights, s'] + cost['head, s']:.2f}")
            else:
                row.append("–")
        if set(row[2:]) != {"–"}:  # a method that none of these studies ran
            rows.append(row)
    return head, rows


def before_and_after_table(studies: Iterable[Study]) -> Printed:
    """What the first kept reports said beside what today's say, for studies of which something moved."""
    old, new = [], []
    for study in studies:
        was, now = earlier.before(study.name), earlier.now(REPORTS / study.name)
        again = study.protocol["status"] == protocols.RERUN
        if was and (again or earlier.side_by_side(was, was) != earlier.side_by_side(was, now)):
            old += was
            new += now
    return earlier.every_study(old, new)


def protocols_table() -> Printed:
    """Every row of the table of protocols: its state, since when it stands, and what is noted."""
    head = ["study", "state", "since", "note"]
    rows = [
        [row.study, row.state, f"{row.commit[:7]} of {row.date[:10]}", row.note or "–"]
        for row in protocols.read()
    ]
    return head, rows


def networks_table(studies: Iterable[Study]) -> Printed:
    """Every method on every study of networks: gains over ERM, and behind each what was detectable."""
    trained = [study for study in studies if study.model != "linear"]
    head = ["method", "labels behind weights or groups"]
    for study in trained:
        head += [f"{study.name}: {METRICS[metric].title.lower()} − ERM" for metric in PRIMARY]
    rows = []
    for method in METHODS:
        cells = [
            gain_cell(study, metric, method, detectable=True)
            for study in trained
            for metric in PRIMARY
        ]
        if set(cells) - {"–"}:
            rows.append([method_title(method), labels_used(method), *cells])
    return head, rows


# ---------------------------------------------------------------------------- families of studies


def over_studies(studies: Iterable[Study], method: str) -> pd.DataFrame:
    """The primary endpoints of a method in several studies, corrected over all of them by Holm's method.

    One row per study, test and metric: ``entry``, its verdict within the study; ``gains``, whether that is
    a gain clear of 0; ``p_all``, the p value corrected over all rows; ``keeps``, whether it is a gain still.
    """
    rows = [
        {"study": study.name, "test": entry["test"], "metric": entry["metric"], "entry": entry}
        for study in studies
        for entry in study.claims
        if entry["primary"] and entry["method"] == method and entry["p"] is not None
    ]
    table = pd.DataFrame(rows, columns=["study", "test", "metric", "entry"])
    table["p_all"] = holm([entry["p"] for entry in table["entry"]])
    better = [METRICS[metric].better == "higher" for metric in table["metric"]]
    effects = [entry["effect"] for entry in table["entry"]]
    rises = [(effect > 0) == higher for effect, higher in zip(effects, better, strict=True)]
    clear = [entry["p_holm"] < ALPHA for entry in table["entry"]]
    table["gains"] = [rise and sure for rise, sure in zip(rises, clear, strict=True)]
    table["keeps"] = table["gains"] & (table["p_all"] < ALPHA)
    return table


def families_table(studies: Iterable[Study]) -> Printed:
    """Every primary endpoint of several studies, with p values corrected over all of them."""
    head = ["study", "people", "endpoint"]
    for method in PUBLISHED:
        name = method_title(method)
        head += [f"{name}: effect", "p in its study", "p over all", "verdict in its study"]
    cells: dict[tuple, list[str]] = {}
    for place, method in enumerate(PUBLISHED):
        for row in over_studies(studies, method).itertuples():
            title = METRICS[row.metric].title
            line = cells.setdefault((row.study, row.test, title), ["–"] * 4 * len(PUBLISHED))
            effect, low, high = (
                other if row.entry[name] is None else row.entry[name]
                for name, other in (("effect", 0.0), ("low", -math.inf), ("high", math.inf))
            )
            p_all = _p_value(row.p_all)
            line[4 * place : 4 * place + 4] = [
                points(effect, low, high),
                _p_value(row.entry["p_holm"]),
                f"**{p_all}**" if row.keeps else p_all,
                verdict_words(row.entry),
            ]
    return head, [[*key, *line] for key, line in cells.items()]


def families_sentences(studies: list[Study]) -> list[str]:
    """How many gains of label surprise, and of CID as published, several studies leave."""
    sentences = []
    for method in PUBLISHED:
        table = over_studies(studies, method)
        words = [entry["verdict"] for entry in table["entry"]]
        name = f"{method_title(method)}, as published," if method == "cid" else method_title(method)
        sentences.append(
            f"{name} has {table['gains'].sum()} gains clear of 0 among its {len(table)} primary endpoints in "
            f"{_counted(len(studies), 'study', 'studies')}, each corrected within its study; "
            f"{table['keeps'].sum()} of these stay clear of 0 when all {len(table)} are corrected together. "
            f"Verdicts: {words.count(claims.SUPPORTED)} supported, {words.count(claims.UNCERTAIN)} supported with "
            f"their size uncertain, {words.count(claims.HARM)} harm."
        )
    return sentences


def families(studies: list[Study]) -> str:
    """Markdown: the sentences and the table of several studies."""
    text = "\n\n".join(families_sentences(studies))
    return f"{text}\n\n{markdown_table(*families_table(studies))}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "under 0.001"


def moved_verdicts() -> str:
    """Markdown: how the verdicts of old reports moved with the rules, by ``reports/verdicts.csv``."""
    table = pd.read_csv(REPORTS / "verdicts.csv", keep_default_na=False)
    changed = table[table["moved"] != ""]
    kinds = changed.groupby(["before", "after", "moved"], sort=False).size()
    counts = kinds.sort_values(ascending=False, kind="stable").reset_index(name="verdicts")
    rows = [[str(row.verdicts), row.before, row.after, row.moved] for row in counts.itertuples()]
    confirmed = changed[(changed["status"] == "confirmatory") & changed["method"].isin(PUBLISHED)]
    each = [
        [row.study, method_title(row.method), row.test, METRICS[row.metric].title.lower(), row.corrected,
         row.before, row.after, row.reason]
        for row in confirmed.itertuples()
    ]  # fmt: skip
    return (
        f"The rules changed after these studies were run. By those of now {len(changed)} of "
        f"{len(table)} verdicts on the same numbers are other ones; `reports/verdicts.csv` has all of them.\n\n"
        + markdown_table(["verdicts", "before", "after", "why"], rows)
        + "\nThose of confirmatory studies:\n\n"
        + markdown_table(
            [
                "study",
                "method",
                "people",
                "endpoint",
                "gain [corrected interval]",
                "before",
                "after",
                "why now",
            ],
            each,
        )
    )


# ---------------------------------------------------------------------------- README and docs/results.md


def results_page(params: dict, studies: list[Study] | None = None) -> str:
    """docs/results.md: every table across bias levels, studies and methods, and the words they use.

    A study links to its abstract as a notebook, which code hosts show, and to its page. ``studies`` are those of
    :func:`read_studies`, if the caller has read them.
    """
    studies = read_studies() if studies is None else studies
    head, rows = studies_table(studies)
    link = "[{0}](../reports/{0}/notebooks/00_abstract.ipynb) ([page](../reports/{0}/index.html))"
    rows = [[link.format(name), *rest] for name, *rest in rows]
    name = params["study"]
    sections = [
        INTRODUCTION,
        f"## {name}: every bias level\n\n"
        "Accuracy over all held-out images, then over minority cells. Intervals are clustered by training "
        "set and by person.\n\n" + headline_markdown(REPORTS / name),
        *(
            f"## {heading}\n\n{families(members)}"
            for heading, members in {
                "All confirmatory studies together": _with_status(studies, "confirmatory"),
                "Studies run again with other settings, together": _with_status(studies, "rerun"),
            }.items()
            if members
        ),
        "## All studies\n\n"
        "Means over the bias levels of each study.\n\n" + markdown_table(head, rows),
        "## Power, predicted and found\n\n"
        "Of the studies whose protocol predicts it: the smallest gain of label surprise on seen people that is "
        "detected with probability .8, at 5 % before correction, in points.\n\n"
        + markdown_table(*power_table()),
        "## Every method, with linear heads\n\n"
        "Gains as above, and seconds for one training set (weights and head together; "
        "[how they were measured](../benchmarks/README.md)).\n\n"
        + markdown_table(*linear_heads_table()),
        "## Every method, with networks\n\n"
        "Behind each gain, in brackets, the smallest gain that the study would have found with probability "
        ".8.\n\n" + markdown_table(*networks_table(studies)),
    ]
    if found := unidentified("[{0}](../reports/{0}/index.html)"):
        sections.append(f"## {NOBODY}\n\n{found}")
    if (REPORTS / "verdicts.csv").exists():
        sections.append("## Verdicts before and after the rules changed\n\n" + moved_verdicts())
    head, rows = before_and_after_table(studies)
    if rows:
        sections.append(
            "## Run again: before and after\n\n"
            "Seen people. *Before*: the first report that was kept ([`studies/earlier.csv`](../studies/earlier.csv) "
            "has all verdicts, and the commit that holds each page). *Now*: today's report.\n\n"
            + markdown_table(head, rows)
        )
    head, rows = protocols_table()
    if rows:
        sections.append(
            "## Every protocol\n\n"
            "A confirmatory protocol that was run never changes. A *rerun* is a later content of the same study, "
            "with what differs. *Withdrawn* protocols were never run.\n\n"
            + markdown_table(head, rows)
        )
    return "\n".join(sections)


def _with_status(studies: Iterable[Study], status: str) -> list[Study]:
    return [study for study in studies if study.protocol["status"] == status]


# ---------------------------------------------------------------------------- reports/index.html


@dataclass(frozen=True)
class Mark:
    """One method's interval in a panel; ``at``, ``low`` and ``high`` are percent of its width."""

    method: str
    colour: str
    shape: str
    y: int  # pixels from the top of the panel
    at: str
    low: str
    high: str
    text: str


@dataclass(frozen=True)
class Axis:
    """A horizontal axis in percentage points, the same for every study."""

    metric: str
    low: float
    high: float
    ticks: list[float]

    def percent(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"


def make_axis(studies: Iterable[Study], metric: str) -> Axis:
    """An axis that holds every bounded interval of the forest plot, with round ends."""
    values = [0.0]
    for study in studies:
        for method in FOREST:
            interval = study.area.reindex([(metric, method)]).iloc[0][DIFFERENCE]
            values += [100 * value for value in interval if math.isfinite(value)]
    span = max(values) - min(values)
    magnitude = 10.0 ** math.floor(math.log10(max(span, 1e-9) / 5))
    step = next(magnitude * k for k in (1, 2, 5, 10) if span / (magnitude * k) <= 8)
    first = math.floor(min(values) / step)
    last = max(math.ceil(max(values) / step), first + 1)
    ticks = [round(k * step, 6) for k in range(first, last + 1)]
    return Axis(metric, low=ticks[0], high=ticks[-1], ticks=ticks)


def marks(study: Study, axis: Axis) -> list[Mark]:
    """The intervals of a study's methods on an axis."""
    found = []
    for place, method in enumerate(FOREST):
        interval = study.area.reindex([(axis.metric, method)]).iloc[0][DIFFERENCE]
        mean, low, high = (100 * value for value in interval)
        if not math.isfinite(mean):
            continue
        bounded = math.isfinite(low) and math.isfinite(high)
        found.append(
            Mark(
                method=method,
                colour=colour(method),
                shape=marker(method),
                y=10 + 13 * place,
                at=axis.percent(mean),
                low=axis.percent(low if bounded else mean),
                high=axis.percent(high if bounded else mean),
                text=f"{method_title(method)} {points(*interval)}",
            )
        )
    return found


def studies_page(studies: list[Study] | None = None) -> Path:
    """Write ``reports/index.html``: a forest plot of all studies, and the tables behind it.

    ``studies`` are those of :func:`read_studies`, if the caller has read them.
    """
    studies = read_studies() if studies is None else studies
    axes = [make_axis(studies, metric) for metric in PRIMARY]
    groups = {
        heading: [study for study in studies if study.protocol["status"] == state]
        for state, heading in GROUPS.items()
    }
    head, rows = studies_table(studies)
    linked = [[f"[{name}]({name}/index.html)", *rest] for name, *rest in rows]
    numbers = [[row[0], *row[7:]] for row in linked]
    designs = [row[:7] for row in linked]
    return pages.page(
        "studies",
        REPORTS / "index.html",
        page_title="All studies of CID and label surprise",
        count=len(studies),
        groups={name: members for name, members in groups.items() if members},
        axes=axes,
        marks=marks,
        metrics=METRICS,
        kind_of_people=kind_of_people,
        legend=[(marked_title(method), colour(method), marker(method)) for method in FOREST],
        families=[
            (heading, pages.markdown(families(members)))
            for heading, members in {
                "All confirmatory studies together": _with_status(studies, "confirmatory"),
                "Studies run again, together": _with_status(studies, "rerun"),
            }.items()
            if members
        ]
        + [
            (NOBODY, pages.markdown(found))
            for found in [unidentified("[{0}]({0}/index.html)")]
            if found
        ],
        numbers=pages.markdown(markdown_table([head[0], *head[7:]], numbers)),
        designs=pages.markdown(markdown_table(head[:7], designs)),
    )
