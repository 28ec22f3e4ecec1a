"""What the reports of studies said before the studies were run again: ``studies/earlier.csv``.

A study whose results are known is run again with other settings: its report is replaced, and what the
old one said stays here, with the commit that holds the old page. A row is a verdict of claims.json or,
with no claim, a number that verdicts are read beside: ERM's own, the oracles' gain, how far label surprise is
ahead of CID and of the oracle, and how many faces were found and told apart.

python -m study earlier COMMIT [NAME ...]     keep what the reports of a commit say
"""

import csv
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from study.commands import parser
from study.pipeline import kept
from study.pipeline.git import git
from study.results.claims import ENDPOINTS, PRIMARY, TESTS
from study.results.metrics import METRICS
from study.results.tables import Printed, points
from study.results.titles import labels_used, method_title
from study.store import write_text

TABLE = kept.STUDIES / "earlier.csv"
DIGITS = 12  # of a commit in the table
SIDE_BY_SIDE = ("erm", "cid", "surprise", "oracle")  # methods of the comparison
BESIDE = ("erm", "oracle", "oracle-tempered")  # methods that get no verdict
FACES = {  # of about.json: what is kept of it, and the labels behind it
    "detected": ("faces found", "none"),
    "verification_auc": ("verification AUC", "identity"),
    "right_pairs": ("right pairs", "identity"),
}
KEPT = (*ENDPOINTS, "worst_decile", "identity_sd")  # endpoints of which all numbers are kept
NONE = "–"


class Row(NamedTuple):
    """One verdict of a study, or a number beside it; empty text and NaN where there is none."""

    study: str
    claim: str  # of study.results.claims; empty: a number beside the verdicts
    population: str  # seen or unseen people
    endpoint: str  # a metric of study.results.metrics
    method: str
    reference: str  # the method that the estimate is a difference to; empty: it is none
    estimate: float
    low: float
    high: float
    p: float
    p_holm: float
    detectable: float
    verdict: str
    labels: str  # used in training, and in evaluation
    commit: str  # that holds the page


EVALUATED_BY = "class, identity"  # the labels behind every number of people
NUMBERS = ("estimate", "low", "high", "p", "p_holm", "detectable")


def read(path: Path = TABLE) -> list[Row]:
    """The rows of the table; none where there is no table."""
    return list(_rows(path.read_text(encoding="utf-8"))) if path.exists() else []


@lru_cache(maxsize=4)
def _rows(text: str) -> tuple[Row, ...]:
    """The rows of a table as text; kept, as a page of all studies asks for those of each."""
    return tuple(_parsed(row) for row in csv.DictReader(io.StringIO(text)))


def _parsed(row: dict[str, str]) -> Row:
    return Row(**{key: _number(text) if key in NUMBERS else text for key, text in row.items()})


def _number(text: str | float | None) -> float:
    return math.nan if text in ("", None) else float(text)


def keep(commit: str, names: Collection[str] = ()) -> list[Row]:
    """What the reports of a commit say, of all studies or of those that are named.

    Raises
    ------
    ValueError
        If the commit is not known, or holds no report.
    """
    full = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").strip()
    if not full:
        raise ValueError(f"there is no commit {commit} here; fetch the history, or name another")
    rows = []
    for path in git("ls-tree", "-d", "--name-only", full, "reports/").split():
        name = Path(path).name
        claims, about = (git("show", f"{full}:{path}/{n}.json") for n in ("claims", "about"))
        area, lead = (git("show", f"{full}:{path}/{table}.csv") for table in ("area", "lead"))
        if claims and area and (not names or name in names):
            tables = [pd.read_csv(io.StringIO(text)) for text in (area, lead) if text]
            rows += of_report(name, json.loads(claims), *tables, commit=full[:DIGITS])
            rows += _of_faces(name, json.loads(about)["proxy"], full[:DIGITS])
    if missing := sorted(set(names) - {row.study for row in rows}):
        raise ValueError(f"{commit} holds no report of {', '.join(missing)} in reports/")
    if not rows:
        raise ValueError(f"{commit} holds no report in reports/")
    return rows


def of_report(
    study: str,
    entries: Iterable[dict],
    area: pd.DataFrame,
    lead: pd.DataFrame | None = None,
    *,
    commit: str,
) -> list[Row]:
    """The rows of one report, from its claims.json, its area.csv and, if it has one, its lead.csv."""
    rows = _beside(study, area, commit)
    if lead is not None:
        rows += _leads(study, lead, commit)
    for entry in entries:
        if entry["metric"] is None:  # claim 4, which has no number
            continue
        labels = entry["labels_used"]
        rows.append(
            _row(
                study,
                entry,
                commit,
                method=entry["method"],
                reference=entry.get("reference", "erm"),
                labels=(", ".join(labels["training"]), ", ".join(labels["evaluation"])),
                claim=entry["claim"],
                estimate="effect",
                verdict=entry["verdict"],
            )
        )
    return rows


def _row(
    study: str,
    found: Mapping,
    commit: str,
    *,
    method: str,
    reference: str,
    labels: tuple[str, str],
    claim: str = "",
    estimate: str = "mean",
    suffix: str = "",
    verdict: str = "",
) -> Row:
    """One row, of a record of a table or of an entry of claims.json.

    ``estimate`` is the key of its number, ``suffix`` that of the number and its interval; ``labels`` are those
    of training and of evaluation.
    """
    training, evaluation = labels
    return Row(
        study=study,
        claim=claim,
        population=found["test"],
        endpoint=found["metric"],
        method=method,
        reference=reference,
        estimate=_number(found[f"{estimate}{suffix}"]),
        low=_number(found[f"low{suffix}"]),
        high=_number(found[f"high{suffix}"]),
        p=_number(found["p"]),
        p_holm=_number(found["p_holm"]),
        detectable=_number(found["detectable"]),
        verdict=verdict,
        labels=f"training: {training}; evaluation: {evaluation}",
        commit=commit,
    )


def _beside(study: str, area: pd.DataFrame, commit: str) -> list[Row]:
    """ERM's own accuracy, and the oracles' gain, on every endpoint of the table of gains that it has."""
    rows = []
    for found in area.to_dict("records"):
        method = found["method"]
        of_erm = method == "erm"
        suffix = "" if of_erm else "_difference"
        if method not in BESIDE or found["metric"] not in KEPT:
            continue
        if math.isfinite(found[f"mean{suffix}"]):
            reference = "" if of_erm else "erm"
            labels = (labels_used(method), EVALUATED_BY)
            rows.append(
                _row(
                    study,
                    found,
                    commit,
                    method=method,
                    reference=reference,
                    labels=labels,
                    suffix=suffix,
                )
            )
    return rows


def _leads(study: str, lead: pd.DataFrame, commit: str) -> list[Row]:
    """How far label surprise is ahead of CID and of the oracle, on every endpoint."""
    rows = []
    for found in lead.to_dict("records"):
        other = found["method"]
        known = math.isfinite(found["mean"]) and found["metric"] in KEPT
        if other in ("cid", "oracle") and known:
            labels = (labels_used(other), EVALUATED_BY)
            rows.append(
                _row(study, found, commit, method="surprise", reference=other, labels=labels)
            )
    return rows


def _of_faces(study: str, proxy: dict, commit: str) -> list[Row]:
    """The share of the faces that were found, and how well the embedding tells people apart."""
    none = math.nan
    return [
        Row(study, "", "all", endpoint, proxy["network"], "", proxy[key],
            none, none, none, none, none, "", f"training: none; evaluation: {labels}", commit)
        for key, (endpoint, labels) in FACES.items()
        if key in proxy
    ]  # fmt: skip


def before(study: str, path: Path = TABLE) -> list[Row]:
    """What the first kept report of a study said; nothing where none was kept."""
    rows = [row for row in read(path) if row.study == study]
    return [row for row in rows if row.commit == rows[0].commit]


def now(folder: Path) -> list[Row]:
    """What the report in a folder says; its commit is left empty."""
    entries = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    return of_report(folder.name, entries, pd.read_csv(folder / "area.csv"), commit="")


def side_by_side(old: Iterable[Row], new: Iterable[Row]) -> Printed:
    """Old and new estimates, intervals and verdicts: of ERM, CID, label surprise and the oracle.

    One row per test set, primary endpoint and method that both reports have.
    """
    head = ["people", "measure", "method", "before", "verdict before", "now", "verdict now"]
    old_by_key = {_key(row): row for row in old}
    new_by_key = {_key(row): row for row in new}
    rows = []
    for test in TESTS:
        for metric in PRIMARY:
            for method in SIDE_BY_SIDE:
                key = (test, metric, method)
                if key in old_by_key and key in new_by_key:
                    was, now = old_by_key[key], new_by_key[key]
                    rows.append(
                        [
                            test,
                            METRICS[metric].title.lower(),
                            method_title(method) + (" − ERM" if was.reference else ""),
                            _estimate(was),
                            was.verdict or NONE,
                            _estimate(now),
                            now.verdict or NONE,
                        ]
                    )
    return head, rows


def every_study(old: Iterable[Row], new: Iterable[Row]) -> Printed:
    """As :func:`side_by_side`, of seen people, with a row per study and endpoint and a verdict behind a gain."""
    head = ["study", "measure"]
    for method in SIDE_BY_SIDE:
        name = method_title(method) + ("" if method == "erm" else " − ERM")
        head += [f"{name}, before", f"{name}, now"]
    old_by_key = {(row.study, _key(row)): row for row in old}
    new_by_key = {(row.study, _key(row)): row for row in new}
    rows = []
    for study in dict.fromkeys(row.study for row in old_by_key.values()):
        for metric in PRIMARY:
            cells = []
            for method in SIDE_BY_SIDE:
                key = (study, ("seen", metric, method))
                cells += [_with_verdict(known.get(key)) for known in (old_by_key, new_by_key)]
            if set(cells) != {NONE}:
                rows.append([study, METRICS[metric].title.lower(), *cells])
    return head, rows


def _with_verdict(row: Row | None) -> str:
    if row is None:
        return NONE
    return _estimate(row) + (f", {row.verdict}" if row.verdict else "")


def _key(row: Row) -> tuple[str, str, str] | None:
    """Test set, endpoint and method of a mean over the bias range; None for slopes, shares and leads."""
    is_lead = not row.claim and row.method not in BESIDE
    if row.claim.startswith("3") or is_lead:
        return None
    return row.population, row.endpoint, row.method


def _estimate(row: Row) -> str:
    """ERM's own accuracy in percent, else the gain in points, each with its interval."""
    if not math.isfinite(row.estimate):
        return NONE
    if row.reference:
        return points(row.estimate, row.low, row.high)
    return f"{100 * row.estimate:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def update(commit: str, names: Collection[str] = ()) -> str:
    """Add what a commit's reports say to the table, or replace it; the line to print."""
    found = keep(commit, names)
    kept_anew = {(row.study, row.commit) for row in found}
    others = [row for row in read() if (row.study, row.commit) not in kept_anew]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in [*others, *found]:
        writer.writerow([_written(value) for value in row])
    write_text(TABLE, stream.getvalue())
    studies = len({row.study for row in found})
    return f"{TABLE}: {len(found)} rows of {studies} studies, of {found[0].commit}"


def _written(value: str | float) -> str | float:
    return "" if isinstance(value, float) and math.isnan(value) else value


def main(arguments: list[str]) -> None:
    options = parser("earlier")
    options.add_argument("commit", help="that holds reports/")
    options.add_argument("names", nargs="*", help="of studies; default: all of that commit")
    args = options.parse_args(arguments)
    print(update(args.commit, args.names))
