"""Whether the numbers of a run are those that were committed."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from study.pipeline.git import WORKSPACES, git, no_git
from study.results.rounding import MOVES, TIES, moved

FILE = "provenance.json"  # of a report: what it was made of
REPORTS = Path("reports")
RUN = Path("build/report")  # the report of the last run, before it is published
SHOWN = 3  # files that a sentence names
# Two reports with the same entries here differ by rounding alone, or not at all.
SOURCES = ("data", "parameters", "packages", "code", "protocol")
CLAIM = ("task", "kind", "claim", "method", "test", "metric")  # what names an entry of claims.json


class Verified(NamedTuple):
    """How the numbers of a run compare with those of the committed report."""

    lines: list[str]  # one for each file that differs
    within: bool  # the same verdicts, no mean outside its interval, few beyond MOVES
    sentence: str  # the same in words
    current: bool = (
        True  # the report is of the data, settings and code at hand, and as it was written
    )


class Difference(NamedTuple):
    """How two versions of one file of numbers differ."""

    words: str
    moved: pd.Series  # of every mean, the share of half its interval; the index names its row
    comparable: bool = True  # False: other rows, other verdicts, or no file


def verify(folder: Path, commit: str = "HEAD") -> Verified:
    """Compare the numbers of a report with those committed.

    Of a run for which :func:`in_place_of` left the committed report in its folder, the numbers of that
    run are compared. ``ValueError`` if no numbers are committed, or none are known.
    """
    return _verify(run_of(folder), folder, commit)


def run_of(folder: Path) -> Path:
    """The report of the last run of the same sources as a report, here or in a workspace; else the report itself."""
    for run in (RUN, WORKSPACES / folder.name / RUN):
        if _same_sources(run, folder):
            return run
    return folder


def _verify(run: Path, folder: Path, commit: str) -> Verified:
    """Compare the numbers in ``run`` with those that a commit holds in ``folder``."""
    if unknown := no_git():
        raise ValueError(f"no committed numbers are known to compare with: {unknown}")
    names = _committed_numbers(folder, commit)
    if not names:
        raise ValueError(f"{commit} holds no numbers in {folder}; commit a report first")
    differences = {}
    for name in names:
        before = git("show", f"{commit}:{(folder / name).as_posix()}")
        after = (run / name).read_text(encoding="utf-8") if (run / name).exists() else None
        if before != after:
            differences[name] = compare(name, before, after)
    return _verdict(differences, files=len(names))


def _committed_numbers(folder: Path, commit: str) -> list[str]:
    """Names of the tables and JSON files that a commit holds in a report's folder."""
    names = git("ls-tree", "--name-only", f"{commit}:{folder.as_posix()}").split()
    of_numbers = (name for name in names if name.endswith((".csv", ".json")))
    return [name for name in of_numbers if name not in (FILE, "card.json")]


def _verdict(differences: dict[str, Difference], files: int) -> Verified:
    """Whether the files that differ hold the same results, by the rules at the head of this module."""
    lines = [f"{name}: {difference.words}" for name, difference in differences.items()]
    other = [
        line
        for line, difference in zip(lines, differences.values(), strict=True)
        if not difference.comparable
    ]
    if other:
        more = f", and {len(other) - 1} more" if len(other) > 1 else ""
        return Verified(lines, False, f"Not reproduced: {other[0]}{more}.")
    means = _joined(differences)
    largest = means.max() if len(means) else 0.0
    far = means > MOVES
    ties = (
        f"{far.sum():,} of {len(means):,} means moved by more than {MOVES:g} of half their interval"
    )
    if far.any():
        ties += f", most of all {means.idxmax()}, by {largest:.2g}"
    if far.mean() > TIES or largest > 1:
        return Verified(lines, False, f"Not reproduced: {ties}.")
    if far.any():
        sentence = (
            f"Reproduced except for near ties, as on another kind of processor: {ties}; "
            "every verdict is the same"
        )
    elif lines:
        sentence = f"Reproduced: means moved by at most {largest:.2g} of half their interval"
    else:
        sentence = f"Reproduced: {files} files identical to the byte"
    return Verified(lines, True, f"{sentence}.")


def _joined(differences: dict[str, Difference]) -> pd.Series:
    """By how much every mean of every file moved; the index names row and file."""
    tables = [pd.Series(dtype=float)]
    for name, difference in differences.items():
        rows = [f"{row} in {name}" for row in difference.moved.index]
        tables.append(difference.moved.set_axis(rows))
    return pd.concat(tables)


def compare(name: str, before: str, after: str | None) -> Difference:
    """Compare two versions of a file of numbers; ``after`` is None where the file is missing."""
    nothing = pd.Series(dtype=float)
    if after is None:
        return Difference("missing here", nothing, comparable=False)
    if name == "claims.json":
        others = _other_verdicts(before, after)
        return Difference(f"{others} other verdicts", nothing, comparable=others == 0)
    if not name.endswith(".csv"):
        return Difference("other numbers", nothing)  # which are those of the tables
    old = pd.read_csv(io.StringIO(before))
    new = pd.read_csv(io.StringIO(after))
    if list(old) != list(new) or len(old) != len(new):
        return Difference("other rows or columns", nothing, comparable=False)
    means = moved(old, new)["mean"]
    largest = means.max() if len(means) else 0.0
    return Difference(f"means move by at most {largest:.2g} of half their interval", means)


def _other_verdicts(before: str, after: str) -> int:
    """The number of claims of which one version says something else than the other, or nothing.

    A verdict on the border says what else it could be on another processor; that is no other verdict.
    """
    old = _verdicts(before)
    new = _verdicts(after)
    others = 0
    for key in old.keys() | new.keys():
        if key not in old or key not in new:
            others += 1
        elif new[key][0] not in old[key] and old[key][0] not in new[key]:
            others += 1
    return others


def _verdicts(text: str) -> dict[tuple, list[str]]:
    """By claim its verdict, and after it those on whose border it is."""
    entries = json.loads(text)
    return {
        tuple(entry[key] for key in CLAIM): [entry["verdict"], *entry.get("border", [])]
        for entry in entries
    }


def in_place_of(run: Path, folder: Path) -> str | None:
    """Why a committed report stays in its folder in place of a new run, or None: publish the run.

    It stays where both come from the same data, parameters, packages and code, and the numbers of the
    run are the committed ones but for rounding: on another kind of processor the last digits differ. So it
    does where figures alone differ, which the sentence then names.
    """
    if not _same_sources(run, folder) or no_git():
        return None
    if not _committed_numbers(folder, "HEAD") or git("status", "--porcelain", "--", str(folder)):
        return None
    committed = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if not committed["commit"] or committed["commit"].endswith("edits"):
        return None  # a run of committed code says more
    verified = _verify(run, folder, "HEAD")
    others = _different_files(run, folder)
    if not verified.within or not others:
        return None
    said = f"{folder} stays as it was committed; this run is in {run}. {verified.sentence}"
    if (
        not verified.lines
    ):  # of the same code and data, so that the machine draws them in another way
        named = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        said += f" Files without numbers differ: {named}."
    return said


def _same_sources(run: Path, folder: Path) -> bool:
    """Whether two reports record the same data, parameters, packages, code and protocol."""
    if not (run / FILE).exists() or not (folder / FILE).exists():
        return False
    ours = json.loads((run / FILE).read_text(encoding="utf-8"))
    theirs = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return all(ours.get(key) == theirs.get(key) for key in SOURCES)


def _different_files(run: Path, folder: Path) -> list[str]:
    """The files, by name, that only one of two folders holds, or of which they hold different bytes."""
    contents = []
    for place in (run, folder):
        files = (file for file in place.rglob("*") if file.is_file())
        contents.append({file.relative_to(place).as_posix(): file.read_bytes() for file in files})
    ours, theirs = contents
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
