"""What a report was made of, whether it still is, and what a study will cost before it starts.

python -m study.pipeline.provenance check     does the report come from these data, settings and code?
python -m study.pipeline.provenance verify    are the numbers those that were committed?
python -m study.pipeline.provenance cost      what `dvc repro` would run, and about how long
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML, YAMLError

from study.pipeline import params
from study.pipeline.notebook import TIMES, seconds
from study.store import digest

FILE = "provenance.json"


PACKAGES = ("torch", "torchvision", "facenet-pytorch", "numpy", "scipy", "scikit-learn", "pandas",
            "matplotlib", "dvc")  # fmt: skip


PROFILE = Path("benchmarks/profile.csv")  # seconds of every stage as committed, on two cores


TOLERANCE = 0.1  # by which a mean may move, as a share of half the width of its 95 % interval


yaml = YAML(typ="safe")


def made_of() -> dict:
    """Digests of everything a report depends on.

    Returns
    -------
    dict
        ``data`` (DVC's hash), ``parameters`` (of their values: comments do not count), ``packages``
        (of requirements.lock), ``code`` (a digest for each file that dvc.yaml names), ``stages`` (of
        what every stage read and wrote, from dvc.lock).
    """
    files = code_files()
    lock = yaml.load(Path("dvc.lock"))["stages"] if Path("dvc.lock").exists() else {}
    of_data = yaml.load(Path("data.dvc"))["outs"][0]["md5"] if Path("data.dvc").exists() else None
    pins = Path("requirements.lock")
    return {
        "data": of_data,
        "parameters": digest(params.read())[:16],
        "packages": digest(pins.read_text())[:16] if pins.exists() else None,
        "code": {str(file): digest(file.read_text(encoding="utf-8"))[:16] for file in files},
        "stages": digest({name: lock[name] for name in sorted(lock) if name != "report"})[:16],
    }


def code_files() -> list[Path]:
    """The modules and notebooks that dvc.yaml names as dependencies, sorted."""
    stages = yaml.load(Path("dvc.yaml"))["stages"].values()
    names = {str(dep) for stage in stages for dep in stage.get("deps", [])}
    return sorted(
        file
        for name in names
        if name.startswith(("cid/", "notebooks/"))
        for file in ([Path(name)] if Path(name).is_file() else Path(name).glob("*.ipynb"))
    )


def record() -> dict:
    """:func:`made_of`, with the commit that the code comes from, and the versions."""
    return made_of() | {
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "processors": os.cpu_count(),
    }


def _commit() -> str | None:
    """The last commit that touched the code and packages; with a note where there are edits since."""
    paths = ["requirements.lock", *map(str, code_files())]
    found = _git("log", "-1", "--format=%H", "--", *paths)
    if not found:
        return None
    edited = _git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    return found.strip() + (" with edits" if edited else "")


def _git(*arguments: str) -> str:
    """What a git command prints, or nothing where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def check(folder: Path) -> list[str]:
    """What of a report's recorded digests is not that of the files at hand, as lines to print."""
    file = folder / FILE
    if not file.exists():
        raise ValueError(f"{file} is missing; run `dvc repro`, which writes it")
    then, now = json.loads(file.read_text()), made_of()
    lines = []
    for name in ("data", "parameters", "packages", "stages"):
        if then[name] != now[name]:
            lines.append(f"{name}: {then[name]} in the report, {now[name]} here")
    for path in sorted(then["code"].keys() | now["code"].keys()):
        if then["code"].get(path) != now["code"].get(path):
            lines.append(f"{path}: edited since, or new, or gone")
    return lines


def verify(folder: Path, commit: str = "HEAD") -> tuple[list[str], bool]:
    """Compare a report's numbers with those committed.

    Returns
    -------
    lines : list of str
        One a file that differs, or one that says that none does.
    within : bool
        Whether every mean that has an interval is within :data:`TOLERANCE` of the committed one, and
        every verdict on the study's own task and bias is the same.
    """
    names = _git("ls-tree", "--name-only", f"{commit}:{folder.as_posix()}").split()
    names = [n for n in names if n.endswith((".csv", ".json")) and n not in (FILE, "card.json")]
    if not names:
        raise ValueError(f"{commit} holds no numbers in {folder}; commit a report first")
    lines, within = [], True
    for name in names:
        before, file = _git("show", f"{commit}:{(folder / name).as_posix()}"), folder / name
        if not file.exists():
            lines.append(f"{name}: missing here")
            within = False
        elif before != file.read_text(encoding="utf-8"):
            text, close = _compare(before, file.read_text(encoding="utf-8"), name)
            lines.append(f"{name}: {text}")
            within &= close
    return lines or [f"{len(names)} files of numbers, all identical to the byte"], within


def _compare(before: str, after: str, name: str) -> tuple[str, bool]:
    """How far two versions of a file of numbers lie apart, and whether that is near enough."""
    if name == "claims.json":
        old, new = ({_key(e): e["verdict"] for e in json.loads(t)} for t in (before, after))
        own = next(iter(old))[:2]  # the main study's verdicts come first
        others = [key for key in old | new if old.get(key) != new.get(key)]
        return f"{len(others)} other verdicts", not any(key[:2] == own for key in others)
    if not name.endswith(".csv"):
        return "other numbers", True  # those of the tables
    old, new = (pd.read_csv(io.StringIO(text)) for text in (before, after))
    if list(old) != list(new) or len(old) != len(new):
        return "other rows or columns", False
    apart = [0.0]
    for mean in [column for column in old if column.startswith("mean")]:
        low, high = (mean.replace("mean", end) for end in ("low", "high"))
        if low in old:
            half = ((old[high] - old[low]) / 2).clip(lower=1e-6)
            moved = ((new[mean] - old[mean]).abs() / half).replace(np.inf, np.nan)
            apart.append(moved.max(skipna=True))
            apart.append(np.inf if (new[mean].isna() != old[mean].isna()).any() else 0.0)
    largest = np.nanmax(apart)
    return f"means move by at most {largest:.2g} of half their interval", largest <= TOLERANCE


def _key(entry: dict) -> tuple:
    return tuple(entry.get(k) for k in ("task", "kind", "claim", "method", "test", "metric"))


def cost() -> str:
    """What ``dvc repro`` would run now, and an estimate of how long that takes, as text.

    Times are those of the last run of a stage here, or of another cell of the stage, or the committed
    ones. They assume that whatever is upstream changes everything downstream.
    """
    params.read()
    done = subprocess.run(["dvc", "repro", "--dry"], capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr or done.stdout).strip().splitlines()[-1])
    stages = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running")]
    if not stages:
        return "Nothing to run: everything is up to date."
    here, committed = _by_stage(seconds(TIMES)), _by_stage(seconds(PROFILE))
    total, guessed, counts = 0.0, 0, {}
    for stage in stages:
        name = stage.partition("@")[0]
        counts[name] = counts.get(name, 0) + 1
        known = here.get(stage) or here.get(name) or committed.get(name)
        guessed += not (stage in here or name in here)
        total += known or 15
    parts = [f"{name} x {n}" if n > 1 else name for name, n in counts.items()]
    lines = [f"{len(stages)} stages would run: {', '.join(parts)}."]
    card = Path("data/card.json")
    if "embed" in counts and card.exists():
        images = json.loads(card.read_text())["counts"]["images"]
        lines.append(f"{images:,} faces would be embedded.")
    source = "of the last runs here" if not guessed else "partly of the committed run, on 2 cores"
    lines.append(f"About {max(1, round(total / 60))} minutes, by the times {source}.")
    return "\n".join(lines)


def _by_stage(seconds: dict[str, float]) -> dict[str, float]:
    """Times by stage; those of a stage's cells also, as their mean, under the stage's own name."""
    found: dict[str, list[float]] = {}
    for name, value in seconds.items():
        stage, _, cell = name.partition("@")
        found.setdefault(stage, []).append(value)
        if cell:
            found[name] = [value]
    return {name: float(np.mean(values)) for name, values in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m study.pipeline.provenance``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="study.pipeline.provenance", description=__doc__.split("\n")[0]
    )
    parser.add_argument("command", choices=["check", "verify", "cost"])
    parser.add_argument("--commit", default="HEAD", help="whose numbers `verify` compares with")
    args = parser.parse_args(argv)
    try:
        if args.command == "cost":
            print(cost())
            return 0
        folder = Path("reports", params.read()["study"])
        if args.command == "check":
            differing = check(folder)
            print("\n".join(differing) or f"{folder} comes from these data, settings and code.")
            return int(bool(differing))
        lines, within = verify(folder, args.commit)
        print("\n".join(lines))
        print("Reproduced." if within else "Not reproduced.")
        return int(not within)
    except (ValueError, OSError, YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
