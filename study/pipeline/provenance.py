"""What a report was made of, and whether it still is.

python -m study provenance check            does the report come from these data, settings and code?
python -m study provenance verify [NAME]    are the numbers those that were committed?
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from ruamel.yaml import YAML

from cid.names import suggest
from study.commands import parser, run_renamed
from study.faces.network_files import is_file
from study.pipeline import params, protocols, stages
from study.pipeline.git import git, no_git
from study.pipeline.reproduced import FILE, REPORTS, verify
from study.store import digest

PACKAGES = ("torch", "torchvision", "facenet-pytorch", "numpy", "scipy", "scikit-learn", "pandas",
            "matplotlib", "dvc")  # fmt: skip


def made_of() -> dict:
    """Digests of everything a report depends on.

    ``data`` (DVC's hash), ``parameters`` (of their values: comments do not count), ``packages`` (of
    requirements.lock), ``code`` (one a file, of what it does: comments and docstrings do not count),
    ``stages`` (of the files that each made, from dvc.lock).
    """
    yaml = YAML(typ="safe")
    lock = Path("dvc.lock")
    data = Path("data.dvc")
    ran = yaml.load(lock)["stages"] if lock.exists() else {}
    made = {
        name: [(out["path"], out["md5"]) for out in entry.get("outs", [])]
        for name, entry in ran.items()
        if name not in ("report", "publish")
    }
    return {
        "data": yaml.load(data)["outs"][0]["md5"] if data.exists() else None,
        "parameters": _short(params.read()),
        "packages": _short(Path(stages.PINS).read_text()),
        "code": stages.code_digests(_all_deps()),
        "stages": _short(made),
    }


def _short(value) -> str:
    return digest(value)[:16]


def _all_deps() -> set[str]:
    """What the stages of dvc.yaml depend on."""
    return {dep for stage in stages.read_stages().values() for dep in stage.get("deps", [])}


def record() -> dict:
    """:func:`made_of`, and the commits and versions behind it.

    ``commit`` is the last one that touched code or packages, with a note where there are edits since;
    ``no_commit`` says why none is known. ``protocol`` has the commit that fixed the study's protocol; of a
    rerun, the commit that fixed the confirmatory one, and under ``again`` what the rerun is of.
    """
    study = params.read()
    made = made_of()
    paths = [stages.PINS, *sorted(made["code"])]
    commit, _, date = git("log", "-1", "--format=%H %cI", "--", *paths).strip().partition(" ")
    if commit and git("status", "--porcelain", "--untracked-files=no", "--", *paths):
        commit += " with edits"
    made["code"] |= _edited_since_run(made["code"])
    made["commit"] = commit or None
    made["date"] = date or None
    if not commit:
        made["no_commit"] = no_git() or "no commit of its repository holds the code"
    made["protocol"] = _protocol(study)
    made["versions"] = _versions(study["embed"])
    made["processors"] = os.cpu_count()
    return made


def _edited_since_run(now: dict[str, str]) -> dict[str, str]:
    """Digests of the code that stages ran, where they are not those of the files at hand."""
    ran: dict[str, str] = {}
    for path in sorted(stages.EXECUTED.glob("[!.]*.ipynb")):
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        ran |= {
            file: then
            for file, then in metadata.get(stages.CODE, {}).items()
            if then != now.get(file)
        }
    return ran


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
