"""What the command line checks before it works, and what to do where the system refuses."""

import errno
import re
from pathlib import Path

REMEDIES = {  # by the number of the system's error
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "work in a folder that can be written to",
    errno.EACCES: "work in a folder that can be written to",
    errno.EPERM: "work in a folder that can be written to",
}


def remedy(message: str) -> str:
    """Say what to do about an error of the system, given its message; "" for any other error.

    The message is enough: an error in a notebook reaches the command line as text only.
    """
    if message.endswith("No such file or directory: 'dvc'"):  # the program: no file has this name
        return (
            "; dvc is installed with the packages of requirements.lock: activate their environment"
        )
    number = re.search(r"\[Errno (\d+)\]", message)
    step = REMEDIES.get(int(number[1])) if number else None
    return f"; {step} and run it again: what is done is kept" if step else ""


def check_repository() -> None:
    """Refuse a folder where DVC cannot work, such as a download without history.

    Raises
    ------
    ValueError
        With the remedy, if the current folder has no ``.dvc``, or if no git repository holds it.
    """
    here = Path.cwd()
    if not (here / ".dvc").is_dir():
        raise ValueError(f"{here} has no folder .dvc; run this in the root of the repository")
    settings = [file for file in (here / ".dvc").glob("config*") if file.is_file()]
    if any("no_scm" in file.read_text() for file in settings):
        return  # DVC was set up to work without git
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        raise ValueError(
            f"{here} is no git repository, which DVC asks for: clone it, or, if the report need not "
            "name its commit, run `dvc config --local core.no_scm true`"
        )
