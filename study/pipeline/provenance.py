"""What a report was made of, and whether it still is.

python -m study provenance check     does the report come from these data, settings and code?
python -m study provenance verify    are the numbers those that were committed?
"""

import io
import json
import os
import platform
import subprocess
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from study.commands import parser, run_renamed
from study.faces.network_files import is_file
from study.pipeline import params, stages
from study.store import digest

FILE = "provenance.json"
PACKAGES = ("torch", "torchvision", "facenet-pytorch", "numpy", "scipy", "scikit-learn", "pandas",
            "matplotlib", "dvc")  # fmt: skip
# Half an interval is taken for so much at least: where two methods score all images but one alike, an
# image more is no other result.
NARROW = 5e-4
TOLERANCE = 0.1  # by which a mean may move, as a share of half the width of its 95 % interval
# Share of the means that may move further, if none leaves its interval: on another kind of processor
# choices between near ties, such as clusters or the worst person, fall otherwise.
TIES = 0.05


def made_of() -> dict:
    """Digests of everything a report depends on.

    ``data`` (DVC's hash), ``parameters`` (of their values: comments do not count), ``packages`` (of
    requirements.lock), ``code`` (one a file), ``stages`` (of what each read and wrote, from dvc.lock).
    """
    yaml, lock, data = YAML(typ="safe"), Path("dvc.lock"), Path("data.dvc")
    ran = yaml.load(lock)["stages"] if lock.exists() else {}
    return {
        "data": yaml.load(data)["outs"][0]["md5"] if data.exists() else None,
        "parameters": _short(params.read()),
        "packages": _short(Path(stages.PINS).read_text()),
        "code": {str(file): _short(file.read_text(encoding="utf-8")) for file in code_files()},
        "stages": _short({k: ran[k] for k in ran if k not in ("report", "publish")}),
    }


def _short(value) -> str:
    return digest(value)[:16]


def code_files() -> list[Path]:
    """The modules, notebooks and templates that dvc.yaml names as dependencies, sorted."""
    deps = {dep for stage in stages.read_stages().values() for dep in stage.get("deps", [])}
    named = [Path(dep) for dep in deps if stages.is_code(dep) and dep != stages.PINS]
    return sorted(f for path in named for f in ([path] if path.is_file() else path.glob("[!.]*.*")))


def record() -> dict:
    """:func:`made_of`, with the versions; the last commit that touched the code and packages, with a
    note where there are edits since, or, in ``no_commit``, why none is known; and the commit that fixed
    the study's protocol; with dates."""
    paths = [stages.PINS, *map(str, code_files())]
    commit = _git("log", "-1", "--format=%H", "--", *paths).strip() or None
    if commit and _git("status", "--porcelain", "--untracked-files=no", "--", *paths):
        commit += " with edits"
    study = params.read()
    file = Path("studies", f"{study['study']}.yaml")
    fixed, _, date = _git("log", "-1", "--format=%H %cI", "--", str(file)).strip().partition(" ")
    protocol = {
        "status": study["protocol"]["status"],
        "commit": fixed or None,
        "date": date or None,
    }
    networks = study["embed"]["network"], study["embed"]["trunk"]
    packages = [*PACKAGES, *["onnxruntime"] * any(map(is_file, networks))]
    versions = {"python": platform.python_version()} | {p: version(p) for p in packages}
    made = {
        "commit": commit,
        "date": _git("log", "-1", "--format=%cI", "--", *paths).strip() or None,
    }
    if not commit:
        made["no_commit"] = no_git() or "no commit of its repository holds the code"
    made |= {"protocol": protocol, "versions": versions, "processors": os.cpu_count()}
    return made_of() | made


def _git(*arguments: str) -> str:
    """What a git command prints, or nothing where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout


def no_git() -> str | None:
    """Why git knows nothing of this folder, or None where it does."""
    try:
        command = ["git", "rev-parse", "--git-dir"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}
        )
    except FileNotFoundError:
        return "git is not installed"
    if "dubious ownership" in done.stderr:
        allow = f"git config --global --add safe.directory {Path.cwd()}"
        return f"the repository is another user's, which git refuses to read; allow it by {allow}"
    return "not in a repository" if done.returncode else None


def check(folder: Path) -> list[str]:
    """What of a report's recorded digests is not that of the files at hand, as lines to print."""
    file = folder / FILE
    if not file.exists():
        raise ValueError(f"{file} is missing; run `dvc repro`, which writes it")
    then, now = json.loads(file.read_text()), made_of()
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
    """How a report's numbers lie to those committed."""

    lines: list[str]  # one a file that differs
    within: bool  # no other verdict, no mean out of its interval, few beyond TOLERANCE
    sentence: str  # the same in words


def verify(folder: Path, commit: str = "HEAD") -> Verified:
    """Compare a report's numbers with those committed; ``ValueError`` if none are, or none are known."""
    if unknown := no_git():
        raise ValueError(f"no committed numbers are known to compare with: {unknown}")
    names = _git("ls-tree", "--name-only", f"{commit}:{folder.as_posix()}").split()
    names = [n for n in names if n.endswith((".csv", ".json")) and n not in (FILE, "card.json")]
    if not names:
        raise ValueError(f"{commit} holds no numbers in {folder}; commit a report first")
    lines, broken, tables = [], [], [pd.Series(dtype=float)]
    for name in names:
        before, file = _git("show", f"{commit}:{(folder / name).as_posix()}"), folder / name
        after = file.read_text(encoding="utf-8") if file.exists() else None
        if before == after:
            continue
        said, moved = _compare(name, before, after)
        lines.append(f"{name}: {said}")
        if moved is None:
            broken.append(lines[-1])
        else:
            tables.append(moved.rename(lambda row, name=name: f"{row} in {name}"))
    moved = pd.concat(tables)
    largest, far = moved.max() if len(moved) else 0.0, moved > TOLERANCE
    ties = (
        f"{far.sum():,} of {len(moved):,} means moved by more than a tenth of half their interval"
    )
    ties += f", most of all {moved.idxmax()}, by {largest:.2g}" if far.any() else ""
    if broken:
        more = f", and {len(broken) - 1} more" if broken[1:] else ""
        return Verified(lines, False, f"Not reproduced: {broken[0]}{more}.")
    if far.mean() > TIES or largest > 1:
        return Verified(lines, False, f"Not reproduced: {ties}.")
    sentence = f"Reproduced: {len(names)} files identical to the byte"
    if far.any():
        sentence = f"Reproduced but for near ties, as on another kind of processor: {ties}"
        sentence += "; every verdict is the same"
    elif lines:
        sentence = f"Reproduced: means moved by at most {largest:.2g} of half their interval"
    return Verified(lines, True, f"{sentence}.")


def _compare(name: str, before: str, after: str | None) -> tuple[str, pd.Series | None]:
    """How two versions of a file of numbers differ, in words, and by which share of half its interval
    every mean has moved, under what its row is of; None where they cannot be the same numbers.
    """
    none = pd.Series(dtype=float)
    if after is None:
        return "missing here", None
    if name == "claims.json":
        key = itemgetter("task", "kind", "claim", "method", "test", "metric")
        old, new = ({key(e): e["verdict"] for e in json.loads(t)} for t in (before, after))
        others = [key for key in old | new if old.get(key) != new.get(key)]
        return f"{len(others)} other verdicts", None if others else none
    if not name.endswith(".csv"):
        return "other numbers", none  # those of the tables
    old, new = (pd.read_csv(io.StringIO(text)) for text in (before, after))
    if list(old) != list(new) or len(old) != len(new):
        return "other rows or columns", None
    means = [mean for mean in old if mean.startswith("mean") and mean.replace("mean", "low") in old]
    named, found = old.columns[: list(old).index(means[0])] if means else [], [none]
    rows = [" ".join(map(str, row)) for row in old[list(named)].itertuples(index=False)]
    for mean in means:
        low, high = (mean.replace("mean", end) for end in ("low", "high"))
        half = ((old[high] - old[low]) / 2).clip(lower=NARROW)
        moved = ((new[mean] - old[mean]).abs() / half).replace(np.inf, np.nan)
        moved[new[mean].isna() != old[mean].isna()] = np.inf
        found.append(moved.set_axis(rows).dropna())
    moved = pd.concat(found)
    largest = moved.max() if len(moved) else 0.0
    return f"means move by at most {largest:.2g} of half their interval", moved


def main(arguments: list[str]) -> int:
    options = parser("provenance")
    options.add_argument("command", choices=["check", "verify"])
    options.add_argument("--commit", default="HEAD", help="whose numbers `verify` compares with")
    args = options.parse_args(arguments)
    folder = Path("reports", params.read()["study"])
    if args.command == "check":
        differing = check(folder)
        print("\n".join(differing) or f"{folder} comes from these data, settings and code.")
        return int(bool(differing))
    found = verify(folder, args.commit)
    print(*found.lines, found.sentence, sep="\n")
    return int(not found.within)


if __name__ == "__main__":
    run_renamed(__spec__.name)
