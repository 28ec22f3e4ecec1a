"""Run a study that is kept in studies/, and leave params.yaml as it was.

python -m study run lfw-smiling
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cid.names import suggest
from study.commands import parser, run_renamed
from study.errors import check_repository
from study.pipeline import params
from study.store import write_text

STUDIES, CARD = Path("studies"), Path("data/card.json")
ASIDE = Path("build/params.yaml.aside")  # params.yaml, while a study has its place


def kept(name: str) -> Path:
    """Where the parameters of a kept study are; a ``ValueError`` names the nearest, if there is none."""
    path, known = STUDIES / f"{name}.yaml", sorted(file.stem for file in STUDIES.glob("*.yaml"))
    if name not in known:
        near = suggest(name, known)
        raise ValueError(f"{path} does not exist{near}; there are {', '.join(known)}")
    return path


def check(name: str) -> Path:
    """The parameters of a kept study; ``ValueError`` if they or the data set in ``data/`` do not fit."""
    path = kept(name)
    wanted = params.read(path)["data"]
    try:
        there = json.loads(CARD.read_text(encoding="utf-8"))["name"] if CARD.exists() else None
    except (ValueError, KeyError, TypeError):
        problem = "is no card of a data set with a name"
        raise ValueError(f"{CARD} {problem}; fetch the data again, or import it") from None
    if wanted not in (None, there):
        raise ValueError(
            f"{path} is of the data set {wanted!r}, but data/ holds {repr(there) if there else 'none'};"
            " import it first (python -m study import --help)"
        )
    return path


def run(name: str) -> int:
    """Run a kept study by ``dvc repro``, whose exit status it returns."""
    restore()
    check_repository()
    path = check(name)
    write_text(ASIDE, params.PARAMS.read_text(encoding="utf-8"))
    with sigterm_exits():
        try:
            shutil.copy(path, params.PARAMS)
            return repro()
        finally:
            restore()


def repro() -> int:
    """Run ``dvc repro`` and return its exit status; an interrupt ends DVC first."""
    with subprocess.Popen(["dvc", "repro"], process_group=0) as process:
        try:
            return process.wait()
        except BaseException:  # DVC and its stage must end before their parameters go
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that what has to be put back is put back."""
    default_handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, default_handler)


def restore() -> None:
    """Put params.yaml back; also that of an earlier run which was killed."""
    if ASIDE.exists():
        os.replace(ASIDE, params.PARAMS)


def main(arguments: list[str]) -> int:
    options = parser("run")
    options.add_argument("name", nargs="?", help="of a file in studies/; default: params.yaml")
    name = options.parse_args(arguments).name
    if name is None:
        restore()
        check_repository()
        params.read()
        with sigterm_exits():
            return repro()
    try:
        return run(name)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("params.yaml is as it was") from None


if __name__ == "__main__":
    run_renamed(__spec__.name)
