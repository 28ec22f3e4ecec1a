"""Verdicts of committed reports by the rules of then and of now, and why each moved.

python -m study verdicts COMMIT    write reports/verdicts.csv from the reports of a commit

The numbers are those of the reports; only the rules differ. What a study that is run again finds stands in
its own report.
"""

import csv
import io
import json
from pathlib import Path

import pandas as pd

from study.commands import parser, run_renamed
from study.pipeline.git import git
from study.results import claims
from study.results.tables import points
from study.store import write_text

TABLE = Path("reports/verdicts.csv")
TOO_SMALL = "supported, but too small to matter"  # a verdict of the rules before these
# Why a verdict moved, by the verdicts before and after. The rest is in the reason of the new one.
MOVED = {
    ("supported", claims.UNCERTAIN): "the lower end now decides, not the upper one",
    ("supported", claims.NOT_TESTABLE): "its corrected interval holds 0 by a rounded digit",
    (TOO_SMALL, claims.NO_GAIN): "another word for the same",
    (TOO_SMALL, claims.NOTHING_TO_GAIN): "another word, and the oracle gains no more",
    (TOO_SMALL, claims.UNCERTAIN): "the corrected interval is wider and holds what would matter",
    (claims.NOT_SUPPORTED, claims.NO_GAIN): "another word for the same",
    (claims.NOT_SUPPORTED, claims.NOTHING_TO_GAIN): "a precise null where the oracle gains nothing",
    (claims.NOT_SUPPORTED, claims.HARM): "another word for the same",
    (claims.NOT_TESTABLE, claims.NO_GAIN): "a precise null, whatever was detectable or the oracle gains",
    (claims.NOT_TESTABLE, claims.NOTHING_TO_GAIN): "a precise null, and the oracle gains no more",
    (claims.NOT_TESTABLE, claims.INCONCLUSIVE): "there was the power; the oracle no longer excuses it",
    (claims.NOT_TESTABLE, claims.HARM): "harm is asked for before power",
    (claims.INCONCLUSIVE, claims.NOT_TESTABLE): "at Holm's level the power is lacking",
    (claims.NOT_SUPPORTED, claims.NOT_TESTABLE): "the corrected interval is wider and holds what would matter",
    (claims.NOT_SUPPORTED, claims.INCONCLUSIVE): "the corrected interval is wider and holds what would matter",
}  # fmt: skip


def at(commit: str) -> pd.DataFrame:
    """The verdicts of all reports of a commit on primary endpoints, before and after.

    One row per study, method, test and metric: ``status`` of the protocol; in points ``gain`` with the 95 %
    interval, ``corrected`` with that of ``level``; ``p_holm``; the verdicts ``before`` and ``after``, the
    ``border`` of the latter and the ``reason`` for it; and why it ``moved``.
    """
    names = git("ls-tree", "--name-only", commit, "reports/").split()
    rows = []
    for folder in names:
        listed = git("ls-tree", "--name-only", f"{commit}:{folder}").split()
        if not {"claims.json", "area.csv"} <= set(listed):  # no report, or one without people
            continue

        def text(name: str, folder: str = folder) -> str:
            return git("show", f"{commit}:{folder}/{name}")

        entries = json.loads(text("claims.json"))
        tables = [pd.read_csv(io.StringIO(text(f"{name}.csv"))) for name in ("area", "power")]
        status = json.loads(text("provenance.json"))["protocol"]["status"]
        before = {_key(entry): entry for entry in entries}
        for entry in claims.rejudge(entries, *tables):
            old = before[_key(entry)]
            rows.append(
                {
                    "study": Path(folder).name,
                    "status": status,
                    "method": entry["method"],
                    "test": entry["test"],
                    "metric": entry["metric"],
                    "gain, 95 %": points(old["effect"], old["low"], old["high"]),
                    "corrected": points(entry["effect"], entry["low"], entry["high"]),
                    "level": round(entry["alpha"], 4),
                    "p_holm": old["p_holm"],
                    "before": old["verdict"],
                    "after": entry["verdict"],
                    "border": "; ".join(entry["border"]),
                    "reason": entry["reason"],
                    "moved": why_moved(old, entry),
                }
            )
    return pd.DataFrame(rows)


def why_moved(before: dict, after: dict) -> str:
    """Why a verdict is another one by the rules of now; empty where it is the same."""
    words = before["verdict"], after["verdict"]
    if words[0] == words[1]:
        return ""
    return MOVED.get(words, "")


def _key(entry: dict) -> tuple:
    return tuple(entry[name] for name in ("kind", "claim", "method", "test", "metric"))


def main(arguments: list[str]) -> None:
    options = parser("verdicts")
    options.add_argument("commit", help="whose reports are judged again")
    commit = options.parse_args(arguments).commit
    table = at(commit)
    write_text(TABLE, table.to_csv(index=False, quoting=csv.QUOTE_MINIMAL))
    moved = (table["before"] != table["after"]).sum()
    print(f"{TABLE}: {len(table)} verdicts, {moved} of which moved")


if __name__ == "__main__":
    run_renamed(__spec__.name)
