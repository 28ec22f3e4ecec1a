"""What a report was made of, and whether it still is.

python -m study provenance check [NAME]     is the report whole, and of these data, settings and code?
python -m study provenance verify [NAME]    are the numbers those that were committed?
"""

import ast
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from cid.names import suggest
from study.commands import parser, run_renamed
from study.faces.network_files import is_file
from study.pipeline import kept, params, protocols, stages
from study.pipeline.git import WORKSPACES, git, is_shallow, no_git, repository
from study.pipeline.notebook import INJECTED, stage_parameters
from study.pipeline.publish import LATEST, main_numbers
from study.pipeline.reproduced import FILE, REPORTS, Verified, run_of, verify
from study.store import digest, write_text

PACKAGES = ("torch", "torchvision", "facenet-pytorch", "numpy", "scipy", "scikit-learn", "pandas",
            "matplotlib", "dvc")  # fmt: skip


class Place(NamedTuple):
    """Where a study runs: what its parameters are now, and the folder of its build/ and dvc.lock."""

    parameters: Mapping | None  # None: not known here
    folder: Path | None  # None: it was not run here


HERE = Path()
KINDS = {".csv", ".html", ".ipynb", ".jpg", ".json", ".png", ".svg", ".yaml"}  # of a report's files
FREE = {key.rpartition(".")[2] for key in kept.WHOLE}  # mappings whose keys are a free choice
REMEDY = (
    "run it (`dvc repro`, or `make study NAME=...` for a kept one); where that runs nothing, DVC was told by "
    "`dvc exp save` or `dvc commit` that old results are of now, and `dvc repro --force` makes them anew"
)


def place_of(study: str) -> Place:
    """Where a study of this name runs: here, if it is that of params.yaml, or in its workspace."""
    own = params.read()
    if study == own["study"]:
        return Place(own, HERE)
    workspace = WORKSPACES / study
    folder = workspace if (workspace / params.PARAMS).is_file() else None
    if study in kept.names():
        return Place(params.filled(kept.resolve(study)), folder)
    return Place(params.read(workspace / params.PARAMS) if folder else None, folder)


def made_of(place: Place | None = None) -> dict:
    """Digests of everything a report depends on.

    ``data`` (DVC's hash), ``parameters`` (of their values: comments do not count), ``packages`` (of
    requirements.lock), ``code`` (one a file, of what it does: comments and docstrings do not count),
    ``stages`` (of the files that each made, from dvc.lock). Of a study that was not run here, ``stages``
    and, if they are not known, ``parameters`` are None.
    """
    parameters, folder = place or Place(params.read(), HERE)
    data = repository() / "data.dvc"
    return {
        "data": params.parsed(data)["outs"][0]["md5"] if data.exists() else None,
        "parameters": _short(parameters) if parameters else None,
        "packages": _short(Path(stages.PINS).read_text()),
        "code": stages.code_digests(_all_deps()),
        "stages": _stages(folder) if folder is not None else None,
    }


def _ran(folder: Path) -> dict:
    """The stages that dvc.lock records in a folder."""
    lock = folder / "dvc.lock"
    return params.parsed(lock)["stages"] if lock.exists() else {}


def _stages(folder: Path) -> str:
    made = {
        name: [(out["path"], out["md5"]) for out in entry.get("outs", [])]
        for name, entry in _ran(folder).items()
        if name not in ("report", "publish")
    }
    return _short(made)


def _short(value) -> str:
    return digest(value)[:16]


def _all_deps() -> set[str]:
    """What the stages of dvc.yaml depend on."""
    return {dep for stage in stages.read_stages().values() for dep in stage.get("deps", [])}


def record() -> dict:
    """:func:`made_of`, and the commits and versions behind it.

    ``commit`` is the last one that touched code or packages (of a history that is cut off: the last one),
    with a note where there are edits since; ``no_commit`` says why none is known. ``edited`` has the
    parameters that stages ran with other values of, if there are any. ``protocol`` has the commit that
    fixed the study's protocol; of a rerun, the commit that fixed the confirmatory one, and under ``again``
    what the rerun is of.
    """
    study = params.read()
    made = made_of()
    paths = [stages.PINS, *sorted(made["code"])]
    since = [] if is_shallow() else ["--", *paths]  # where the history begins, all seems to be new
    commit, _, date = git("log", "-1", "--format=%H %cI", *since).strip().partition(" ")
    if commit and git("status", "--porcelain", "--untracked-files=no", "--", *paths):
        commit += " with edits"
    made["data"] = _data_that_ran() or made["data"]
    made["code"] |= _edited_since_run(made["code"])
    if edited := _parameters_since_run(study, HERE):
        made["edited"] = edited
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


def _data_that_ran() -> str | None:
    """DVC's hash of the data that the stage ``data`` read, from dvc.lock."""
    deps = _ran(HERE).get("data", {}).get("deps", [])
    return next((dep["md5"] for dep in deps if dep["path"] == "data"), None)


def _parameters_since_run(study: Mapping, folder: Path) -> dict[str, list[str]]:
    """By stage, the parameters that it ran with other values of than a study has now.

    The executed notebooks say what they ran with, whatever dvc.lock records.
    """
    found = {}
    known = stages.read_stages()
    for path in sorted((folder / stages.EXECUTED).glob("[!.]*.ipynb")):
        then = ran_with(path)
        if path.stem not in known:
            continue
        now = stage_parameters(path.stem, study)
        if names := [name for name in now if name in then and _differ(name, then[name], now[name])]:
            found[path.stem] = names
    return found


def _differ(name: str, then, now) -> bool:
    """Whether a parameter has another value; a setting that has come since, at its default, is none."""
    if not isinstance(then, Mapping) or not isinstance(now, Mapping) or name in FREE:
        return then != now
    return any(key not in now or _differ(key, then[key], now[key]) for key in then)


def ran_with(notebook: Path) -> dict:
    """The parameters that an executed notebook received, as far as they are plain values."""
    cells = json.loads(notebook.read_text(encoding="utf-8")).get("cells", [])
    received = {}
    for cell in cells:
        if INJECTED in cell["metadata"].get("tags", []):
            for node in ast.parse("".join(cell["source"])).body:
                with suppress(ValueError):  # such as float("inf")
                    if isinstance(node, ast.Assign):
                        received[node.targets[0].id] = ast.literal_eval(node.value)
    return received


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


def seal(folder: Path) -> None:
    """Write the digests of a report's files into its record, so that an edit of one is seen."""
    record_file = folder / FILE
    made = json.loads(record_file.read_text(encoding="utf-8"))
    made["files"] = _files(folder)
    write_text(record_file, json.dumps(made, indent=1, sort_keys=True) + "\n")


def _files(folder: Path) -> dict[str, str]:
    """Digest of every file of a report but its record, by its place in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    return {path.relative_to(folder).as_posix(): _short(path.read_bytes()) for path in files}


def check(folder: Path) -> list[str]:
    """Lines that say in what a report differs from data, parameters, packages and code at hand, and from itself.

    Of a committed report that stayed where it was because a run here moved it by rounding alone
    (:func:`study.pipeline.reproduced.in_place_of`), data, parameters and code are those of that run.
    """
    file = folder / FILE
    if not file.exists():
        raise ValueError(f"{file} is missing; run `dvc repro`, which writes it")
    place = place_of(folder.name)
    then = json.loads((run_of(folder) / FILE).read_text(encoding="utf-8"))
    now = made_of(place)
    lines = _own_files(folder)
    lines += [
        f"{name}: {then[name]} in the report, {now[name]} here"
        for name in ("data", "parameters", "packages", "stages")
        if now[name] is not None and then[name] != now[name]
    ]
    lines += _data_edited()
    lines += _latest_edited(folder)
    edited = then.get("edited") or {}
    if place.folder is not None and place.parameters:
        edited = edited | _parameters_since_run(place.parameters, place.folder)
    for stage, names in edited.items():
        lines.append(f"parameters: {stage} ran with another value of {', '.join(names)}")
    for path in sorted(then["code"].keys() | now["code"].keys()):
        if then["code"].get(path) != now["code"].get(path):
            lines.append(f"{path}: edited since, or new, or gone")
    return lines


def _own_files(folder: Path) -> list[str]:
    """Files of a report that are not as it was written; of a record from before there were digests, as committed."""
    then = json.loads((folder / FILE).read_text(encoding="utf-8")).get("files")
    if then is None:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", folder.as_posix())
        files = [line[3:] for line in changed.splitlines() if not line.endswith(f"/{FILE}")]
        return [f"{file}: not as it was committed" for file in files]
    now = _files(folder)
    words = {True: "edited since the report was written", False: "missing"}
    lines = [
        f"{folder / name}: {words[name in now]}" for name in then if now.get(name) != then[name]
    ]
    more = [name for name in now if name not in then and Path(name).suffix in KINDS]
    return lines + [f"{folder / name}: not of this report" for name in more]


def _latest_edited(folder: Path) -> list[str]:
    """A line if the main numbers in ``latest/`` are not the report's, where they are of its study."""
    shown = LATEST / "metrics.json"
    if not shown.is_file() or not Path(params.PARAMS).is_file():
        return []
    if params.read()["study"] != folder.name or folder.parent != REPORTS:
        return []
    if json.loads(shown.read_text(encoding="utf-8")) == main_numbers(folder):
        return []
    return [f"{shown}: not the numbers of this report; `python -m study publish` writes it again"]


def _data_edited() -> list[str]:
    """A line if the files in data/ are not those of data.dvc; none where DVC cannot tell."""
    if not (Path("data").exists() and Path("data.dvc").exists() and Path(".dvc").is_dir()):
        return []
    with suppress(OSError, ValueError):
        command = ["dvc", "status", "--json", "data.dvc"]
        if json.loads(subprocess.run(command, capture_output=True, text=True).stdout):
            return ["data: edited since `dvc add data`"]
    return []


def checked(folder: Path, commit: str = "HEAD") -> Verified:
    """Whether the numbers of a report are the committed ones, unless they are of something else than is here.

    Raises
    ------
    ValueError
        If no numbers are committed, or none are known.
    """
    if lines := check(folder):
        more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
        sentence = f"{folder} is not what is here: {lines[0]}{more}; {REMEDY}."
        return Verified(lines, False, sentence, current=False)
    return verify(folder, commit)


def main(arguments: list[str]) -> int:
    options = parser("provenance")
    commands = options.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check")
    verifying = commands.add_parser("verify")
    for command in (checking, verifying):
        command.add_argument("name", nargs="?", help="of a kept study; else that of params.yaml")
    verifying.add_argument("--commit", default="HEAD", help="whose numbers to compare with")
    args = options.parse_args(arguments)
    folder = _reported(args.name) if args.name else REPORTS / params.read()["study"]
    if args.command == "check":
        lines = check(folder)
        print("\n".join(lines) or f"{folder} comes from these data, settings and code.")
        return int(bool(lines))
    verified = checked(folder, args.commit)
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
