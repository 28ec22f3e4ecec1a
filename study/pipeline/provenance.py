"""What a report was made of, and whether it still is.

python -m study provenance check            does the report come from these data, settings and code?
python -m study provenance verify [NAME]    are the numbers those that were committed?
"""

import io
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from ruamel.yaml import YAML

from cid.names import suggest
from study.commands import parser, run_renamed
from study.faces.network_files import is_file
from study.pipeline import params, protocols, stages
from study.pipeline.protocols import git
from study.results.rounding import MOVES, TIES, moved
from study.store import digest

FILE = "provenance.json"
REPORTS = Path("reports")
RUN = Path("build/report")  # the report of the last run, before it is published
PACKAGES = ("torch", "torchvision", "facenet-pytorch", "numpy", "scipy", "scikit-learn", "pandas",
            "matplotlib", "dvc")  # fmt: skip
# Two reports with the same entries here differ by rounding alone, or not at all.
SOURCES = ("data", "parameters", "packages", "code", "protocol")
CLAIM = ("task", "kind", "claim", "method", "test", "metric")  # what names an entry of claims.json


def made_of() -> dict:
    """Digests of everything a report depends on.

    ``data`` (DVC's hash), ``parameters`` (of their values: comments do not count), ``packages`` (of
    requirements.lock), ``code`` (one a file), ``stages`` (of what each read and wrote, from dvc.lock).
    """
    yaml = YAML(typ="safe")
    lock = Path("dvc.lock")
    data = Path("data.dvc")
    ran = yaml.load(lock)["stages"] if lock.exists() else {}
    before = {name: entry for name, entry in ran.items() if name not in ("report", "publish")}
    return {
        "data": yaml.load(data)["outs"][0]["md5"] if data.exists() else None,
        "parameters": _short(params.read()),
        "packages": _short(Path(stages.PINS).read_text()),
        "code": {str(file): _short(file.read_text(encoding="utf-8")) for file in code_files()},
        "stages": _short(before),
    }


def _short(value) -> str:
    return digest(value)[:16]


def code_files() -> list[Path]:
    """The modules, notebooks and templates that dvc.yaml names as dependencies, sorted."""
    deps = {dep for stage in stages.read_stages().values() for dep in stage.get("deps", [])}
    files = []
    for dep in deps:
        if stages.is_code(dep) and dep != stages.PINS:
            path = Path(dep)
            files += [path] if path.is_file() else path.glob("[!.]*.*")
    return sorted(files)


def record() -> dict:
    """:func:`made_of`, and the commits and versions behind it.

    ``commit`` is the last one that touched code or packages, with a note where there are edits since;
    ``no_commit`` says why none is known. ``protocol`` has the commit that fixed the study's protocol; of a
    rerun, the commit that fixed the confirmatory one, and under ``again`` what the rerun is of.
    """
    study = params.read()
    paths = [stages.PINS, *map(str, code_files())]
    commit, _, date = git("log", "-1", "--format=%H %cI", "--", *paths).strip().partition(" ")
    if commit and git("status", "--porcelain", "--untracked-files=no", "--", *paths):
        commit += " with edits"
    made = made_of()
    made["commit"] = commit or None
    made["date"] = date or None
    if not commit:
        made["no_commit"] = no_git() or "no commit of its repository holds the code"
    made["protocol"] = _protocol(study)
    made["versions"] = _versions(study["embed"])
    made["processors"] = os.cpu_count()
    return made


def _protocol(study: dict) -> dict:
    """The status of a study's protocol, and the commit in which it first stood, if it is known."""
    status = study["protocol"]["status"]
    fixed = protocols.fixed(study)
    if status != protocols.RERUN:
        return {"status": status} | _since(fixed)
    first = protocols.confirmed(study["study"])
    again = _since(fixed) | {"settings": fixed.note if fixed else ""}
    return {"status": status} | _since(first) | {"again": again}


def _since(row: protocols.Row | None) -> dict[str, str | None]:
    return {"commit": row.commit if row else None, "date": row.date if row else None}


def _versions(embed: dict) -> dict[str, str]:
    """Versions of Python and of the packages that numbers come from."""
    packages = list(PACKAGES)
    if is_file(embed["network"]) or is_file(embed["trunk"]):
        packages.append("onnxruntime")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def no_git() -> str | None:
    """Why git knows nothing of this folder, or None where it does."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--git-dir"],
            capture_output=True,
            text=True,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        return "git is not installed"
    if "dubious ownership" in done.stderr:
        allow = f"git config --global --add safe.directory {Path.cwd()}"
        return f"the repository is another user's, which git refuses to read; allow it by {allow}"
    return "not in a repository" if done.returncode else None


def check(folder: Path) -> list[str]:
    """Lines that say which recorded digests of a report differ from those of the files at hand."""
    file = folder / FILE
    if not file.exists():
        raise ValueError(f"{file} is missing; run `dvc repro`, which writes it")
    then = json.loads(file.read_text())
    now = made_of()
    lines = [
        f"{name}: {then[name]} in the report, {now[name]} here"
        for name in ("data", "parameters", "packages", "stages")
        if then[name] != now[name]
    ]
    for path in sorted(then["code"].keys() | now["code"].keys()):
        if then["code"].get(path) != now["code"].get(path):
            lines.append(f"{path}: edited since, or new, or gone")
    return lines


class Verified(NamedTuple):
    """How the numbers of a run compare with those of the committed report."""

    lines: list[str]  # one for each file that differs
    within: bool  # the same verdicts, no mean outside its interval, few beyond MOVES
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


def main(arguments: list[str]) -> int:
    options = parser("provenance")
    commands = options.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    verifying = commands.add_parser("verify")
    verifying.add_argument("name", nargs="?", help="of a kept study; else that of params.yaml")
    verifying.add_argument("--commit", default="HEAD", help="whose numbers to compare with")
    args = options.parse_args(arguments)
    if args.command == "check":
        folder = REPORTS / params.read()["study"]
        lines = check(folder)
        print("\n".join(lines) or f"{folder} comes from these data, settings and code.")
        return int(bool(lines))
    folder = _reported(args.name) if args.name else REPORTS / params.read()["study"]
    verified = verify(folder, args.commit)
    print(*verified.lines, verified.sentence, sep="\n")
    return int(not verified.within)


def _reported(name: str) -> Path:
    """The folder of a study's report; ``ValueError`` with the nearest name where there is none."""
    known = sorted(file.parent.name for file in REPORTS.glob(f"[!.]*/{FILE}"))
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "there is none"
        raise ValueError(f"{REPORTS / name} holds no report{suggest(name, known)}; {there}")
    return REPORTS / name


if __name__ == "__main__":
    run_renamed(__spec__.name)
