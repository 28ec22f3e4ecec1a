"""Whether the numbers of a run are those that were committed."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from study.pipeline.git import git, no_git

FILE = "provenance.json"  # of a report: what it was made of
REPORTS = Path("reports")
RUN = Path("build/report")  # the report of the last run, before it is published
# Half an interval counts as at least this much: where two methods differ on a single image, one image
# more is not another result.
NARROW = 5e-4
TOLERANCE = 0.1  # by which a mean can move, as a share of half the width of its 95 % interval
# Share of the means that can move further, if none leaves its interval: on another kind of processor
# choices between near ties, such as clusters or the worst person, turn out differently.
TIES = 0.05
# Two reports with the same entries here differ by rounding alone, or not at all.
SOURCES = ("data", "parameters", "packages", "code", "protocol")
CLAIM = ("task", "kind", "claim", "method", "test", "metric")  # what names an entry of claims.json


class Verified(NamedTuple):
    """How the numbers of a run compare with those of the committed report."""

    lines: list[str]  # one for each file that differs
    within: bool  # the same verdicts, no mean outside its interval, few beyond TOLERANCE
    sentence: str  # the same in words


class Difference(NamedTuple):
    """How two versions of one file of numbers differ."""

    words: str
    moved: pd.Series  # of every mean, the share of half its interval; the index names its row
    comparable: bool = True  # False: other rows, other verdicts, or no file


def verify(folder: Path, commit: str = "HEAD") -> Verified:
    """Compare the numbers of a report with those committed.

    Of a run for which :func:`in_place_of` left the committed report in its folder, the numbers in
    ``build/report`` are compared. ``ValueError`` if no numbers are committed, or none are known.
    """
    return _verify(RUN if _same_sources(RUN, folder) else folder, folder, commit)


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
    moved = _joined(differences)
    largest = moved.max() if len(moved) else 0.0
    far = moved > TOLERANCE
    ties = (
        f"{far.sum():,} of {len(moved):,} means moved by more than a tenth of half their interval"
    )
    if far.any():
        ties += f", most of all {moved.idxmax()}, by {largest:.2g}"
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
    moved = _moved_means(old, new)
    largest = moved.max() if len(moved) else 0.0
    return Difference(f"means move by at most {largest:.2g} of half their interval", moved)


def _other_verdicts(before: str, after: str) -> int:
    """The number of claims of which one version says something else than the other, or nothing."""
    old = _verdicts(before)
    new = _verdicts(after)
    return sum(old.get(key) != new.get(key) for key in old.keys() | new.keys())


def _verdicts(text: str) -> dict[tuple, str]:
    entries = json.loads(text)
    return {tuple(entry[key] for key in CLAIM): entry["verdict"] for entry in entries}


def _moved_means(old: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
    """By which share of half its interval every mean of a table moved; the index names the row.

    Means are the columns ``mean...`` with columns ``low...`` and ``high...``; the columns before the
    first of them name the row.
    """
    means = [c for c in old if c.startswith("mean") and c.replace("mean", "low") in old]
    if not means:
        return pd.Series(dtype=float)
    naming = list(old.columns[: old.columns.get_loc(means[0])])
    rows = [" ".join(map(str, row)) for row in old[naming].itertuples(index=False)]
    tables = []
    for mean in means:
        low = old[mean.replace("mean", "low")]
        high = old[mean.replace("mean", "high")]
        half = ((high - low) / 2).clip(lower=NARROW)
        moved = ((new[mean] - old[mean]).abs() / half).replace(np.inf, np.nan)
        moved[new[mean].isna() != old[mean].isna()] = np.inf
        tables.append(moved.set_axis(rows).dropna())
    return pd.concat(tables)


def in_place_of(run: Path, folder: Path) -> str | None:
    """Why a committed report stays in its folder in place of a new run, or None: publish the run.

    It stays where both come from the same data, parameters, packages and code, and the numbers of the
    run are the committed ones but for rounding: on another kind of processor the last digits differ.
    """
    if not _same_sources(run, folder) or no_git():
        return None
    if not _committed_numbers(folder, "HEAD") or git("status", "--porcelain", "--", str(folder)):
        return None
    committed = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if not committed["commit"] or committed["commit"].endswith("edits"):
        return None  # a run of committed code says more
    verified = _verify(run, folder, "HEAD")
    if not verified.within or _same_files(run, folder):
        return None
    return f"{folder} stays as it was committed; this run is in {run}. {verified.sentence}"


def _same_sources(run: Path, folder: Path) -> bool:
    """Whether two reports record the same data, parameters, packages, code and protocol."""
    if not (run / FILE).exists() or not (folder / FILE).exists():
        return False
    ours = json.loads((run / FILE).read_text(encoding="utf-8"))
    theirs = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return all(ours.get(key) == theirs.get(key) for key in SOURCES)


def _same_files(run: Path, folder: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    contents = []
    for place in (run, folder):
        files = (file for file in place.rglob("*") if file.is_file())
        contents.append({file.relative_to(place): file.read_bytes() for file in files})
    return contents[0] == contents[1]
