"""What git knows of this folder."""

import os
import subprocess
from pathlib import Path


def git(*arguments: str) -> str:
    """What a git command prints, or nothing where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout


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
