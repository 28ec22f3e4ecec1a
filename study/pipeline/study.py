"""Run a study that is kept in studies/, and leave params.yaml as it was.

python -m study run lfw-mouth
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from study.commands import parser, run_renamed
from study.errors import check_repository
from study.pipeline import kept, params
from study.store import write_text

CARD = Path("data/card.json")
ASIDE = Path("build/params.yaml.aside")  # params.yaml, while a study takes its place


def check(name: str) -> dict:
    """The parameters of a kept study; ``ValueError`` if they are not valid or data/ holds other data."""
    tree = kept.resolve(name)
    wanted = tree["data"]
    there = _data_set()
    if wanted not in (None, there):
        raise ValueError(
            f"{kept.find(name)} is of the data set {wanted!r}, but data/ holds "
            f"{repr(there) if there else 'none'}; "
            "import it first (python -m study import --help)"
        )
    return tree


def _data_set() -> str | None:
    """The name of the data set in data/; None where there is none."""
    if not CARD.exists():
        return None
    try:
        return json.loads(CARD.read_text(encoding="utf-8"))["name"]
    except (ValueError, KeyError, TypeError):
        problem = "is no card of a data set with a name"
        raise ValueError(f"{CARD} {problem}; fetch the data again, or import it") from None


def run(name: str) -> int:
    """Run a kept study by ``dvc repro`` and return its exit status."""
    restore()
    check_repository()
    tree = check(name)
    write_text(ASIDE, params.PARAMS.read_text(encoding="utf-8"))
    with sigterm_exits():
        try:
            if not _holds(tree):
                write_text(params.PARAMS, kept.text(name))
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


def _holds(tree: dict) -> bool:
    """Whether params.yaml has these values already: its comments then stay in the report."""
    with suppress(ValueError):
        return params.load() == tree
    return False


def restore() -> None:
    """Put params.yaml back, also after an earlier run that was killed."""
    if ASIDE.exists():
        os.replace(ASIDE, params.PARAMS)


def main(arguments: list[str]) -> int:
    options = parser("run")
    options.add_argument("name", nargs="?", help="of a file in studies/; default: params.yaml")
    name = options.parse_args(arguments).name
    if name is None:
        restore()
        check_repository()
        params.load()
        with sigterm_exits():
            return repro()
    try:
        return run(name)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("params.yaml is as it was") from None


if __name__ == "__main__":
    run_renamed(__spec__.name)
