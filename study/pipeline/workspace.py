"""A workspace for a study that is not that of params.yaml: ``build/studies/NAME/``.

DVC reads a study from params.yaml. A kept study, or one that is tried, therefore runs in a folder of its
own, with a params.yaml, a dvc.lock and a build/ of its own. The file of the user is only read. The
workspace holds copies of the code, so that an edit made meanwhile is not run, and links to everything
else: data, networks, and the finished work in build/runs. DVC's cache is shared, so that a stage that
was run anywhere is not run again.
"""

import os
import shutil
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from study.pipeline import params
from study.pipeline.git import WORKSPACES
from study.store import KEPT, write_text

LOCK = Path("build/study.lock")  # held while a study runs; names it and its processes
CODE = ("cid", "people", "study", "notebooks", "studies")
FILES = ("dvc.yaml", "requirements.lock", ".dvcignore")
OWN = ("build", "reports", "latest", "params.yaml", "dvc.lock", "data.dvc")
# DVC without git: what is run here is nobody's commit.
CONFIG = """\
[core]
    no_scm = true
    analytics = false
    check_update = false
[cache]
    dir = {cache}
"""
SKIPPED = {"__pycache__", ".ipynb_checkpoints"}  # what Python and Jupyter leave in folders of code


def of_study(name: str) -> Path:
    """Where a study has its workspace."""
    return WORKSPACES / name


def prepare(name: str, parameters: str) -> Path:
    """Make or refresh the workspace of a study.

    Parameters
    ----------
    name : str
        Of the study.
    parameters : str
        The text of its params.yaml.

    Returns
    -------
    Path
        The folder, in which ``dvc repro`` runs the study.
    """
    folder = of_study(name)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in CODE:
        _copy_folder(Path(entry), folder / entry)
    for entry in FILES:
        _copy_file(Path(entry), folder / entry)
    _link_others(folder)
    (folder / KEPT).parent.mkdir(exist_ok=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    _link(KEPT, folder / KEPT)
    if not (folder / "dvc.lock").exists():
        _copy_file(Path("dvc.lock"), folder / "dvc.lock")
    write_text(folder / ".dvc/config", CONFIG.format(cache=_cache()))
    write_text(folder / params.PARAMS, parameters)
    return folder


def _cache() -> Path:
    """Where DVC keeps outputs: as its settings here say, or in ``.dvc/cache``."""
    settings = ConfigParser(interpolation=None)
    settings.read([".dvc/config", ".dvc/config.local"])
    return Path(".dvc", settings.get("cache", "dir", fallback="cache")).resolve()


def _copy_folder(original: Path, copy: Path) -> None:
    """Make a folder hold what another one holds; a file whose bytes stay keeps its time."""
    files = {file.relative_to(original) for file in _files(original)}
    for old in _files(copy):
        if old.relative_to(copy) not in files:
            old.unlink()
    for file in files:
        _copy_file(original / file, copy / file)


def _files(folder: Path) -> list[Path]:
    """The files of a folder, but for those in :data:`SKIPPED`."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not SKIPPED & {*path.parts}]


def _copy_file(original: Path, copy: Path) -> None:
    """Copy a file if there is one and the copy differs."""
    if not original.is_file():
        return
    if copy.is_file() and copy.read_bytes() == original.read_bytes():
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(original, copy)


def _link_others(folder: Path) -> None:
    """Link what is neither code nor the study's own: data, networks, photographs, ..."""
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    for entry in Path().iterdir():
        if entry.name not in (*CODE, *FILES, *OWN) and not entry.name.startswith("."):
            _link(entry, folder / entry.name)


def _link(original: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(original.resolve())


# ---- one at a time -----------------------------------------------------------------------------


@contextmanager
def alone(name: str) -> Iterator[int]:
    """Hold the lock of this folder's studies, which names the study and its process.

    The system frees it when the last process that holds it ends, however that ends. DVC is to inherit the
    descriptor: it can outlive the process that started it.

    Yields
    ------
    int
        The descriptor.

    Raises
    ------
    ValueError
        If another study runs; names it.
    """
    LOCK.parent.mkdir(exist_ok=True)
    with open(LOCK, "a+", encoding="utf-8") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise ValueError(_held(LOCK.read_text(encoding="utf-8"))) from None
        file.truncate(0)
        file.write(f"{name}\n{os.getpid()}\n")
        file.flush()
        yield file.fileno()


def note(process: int) -> None:
    """Add the number of DVC's process to the lock."""
    with open(LOCK, "a", encoding="utf-8") as file:
        file.write(f"{process}\n")


def _held(text: str) -> str:
    """Who holds the lock, in a sentence."""
    name, *processes = text.split()
    living = [pid for pid in processes if _lives(int(pid))]
    pid = (living or processes or ["?"])[0]
    return f"{name} is being run here by process {pid}; wait until it is done, or end it"


def _lives(process: int) -> bool:
    """Whether a process of this number runs."""
    with suppress(PermissionError):  # another user's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True
