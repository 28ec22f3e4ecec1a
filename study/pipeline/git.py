"""What git knows of this folder, or, in the workspace of a study, of the repository that holds it."""

import os
import subprocess
from pathlib import Path

WORKSPACES = Path("build/studies")  # a folder for every study that is not run with params.yaml


def repository() -> Path:
    """The folder whose history counts: inside ``build/studies/NAME`` the one that holds ``build``."""
    here = Path.cwd()
    if here.parts[-3:-1] == WORKSPACES.parts:
        return here.parents[2]
    return here


def git(*arguments: str) -> str:
    """What a git command prints, or nothing where it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=repository(), capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout


def no_git() -> str | None:
    """Why git knows nothing of this folder, or None where it does."""
    folder = repository()
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--git-dir"],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        return "git is not installed"
    if "dubious ownership" in done.stderr:
        allow = f"git config --global --add safe.directory {folder}"
        return f"the repository is another user's, which git refuses to read; allow it by {allow}"
    return "not in a repository" if done.returncode else None


def is_shallow() -> bool:
    """Whether the history is cut off, so that the commit where it begins is not the one that made a file."""
    return git("rev-parse", "--is-shallow-repository").strip() == "true"
