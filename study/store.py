"""Finished work kept on disk, so that nothing is computed twice.

A piece of work is kept under a digest of everything it was computed from, the code included. Nothing
in such a folder is ever out of date; it may be deleted at any time.
"""

import hashlib
import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import get_ident

import numpy as np

KEPT = Path("build/runs")  # where a study keeps its work


def kept(folder: str | Path | None, name: str, compute: Callable[[], dict]) -> dict:
    """The arrays that ``compute`` returned when last called under this name, or returns now.

    The name, of a file, holds a :func:`digest` of all that counts. No folder keeps nothing.
    """
    if folder is None:
        return compute()
    path = Path(folder) / f"{name}.npz"
    found = read(path)
    if found is None:
        found = compute()
        keep(path, found)
    return found


def read(path: str | Path) -> dict | None:
    """The arrays of an ``.npz`` file, or None where there is none that can be read."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def keep(path: str | Path, arrays: dict) -> None:
    """Write arrays to an ``.npz`` file, which :func:`read` reads; it appears complete or not at all."""
    write(path, lambda file: np.savez(file, **arrays))


def write(path: str | Path, save: Callable) -> None:
    """Write a file by ``save(open file)``; it appears complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes and threads that compute the same must not mix their bytes.
    writer = f"{socket.gethostname()}-{os.getpid()}-{get_ident()}"
    draft = path.with_name(f"{path.name}.{writer}.partial")
    try:
        with open(draft, "wb") as file:
            save(file)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8; it appears complete or not at all."""
    write(path, lambda file: file.write(text.encode()))


def digest(*parts) -> str:
    """SHA-256 of arrays, tensors, bytes and plain values, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, (tuple, list)):
            state.update(digest(*part).encode())
        elif isinstance(part, np.ndarray) or hasattr(part, "cpu"):
            state.update(f"{part.dtype} {tuple(part.shape)}".encode())
            for start in range(0, len(part), 4096):  # a copy of a large set would not fit
                chunk = part[start : start + 4096]
                chunk = chunk if isinstance(chunk, np.ndarray) else chunk.cpu().numpy()
                state.update(np.ascontiguousarray(chunk))
        elif isinstance(part, bytes):
            state.update(f"{len(part)} bytes ".encode() + part)
        else:
            state.update(json.dumps(part, sort_keys=True).encode())
        state.update(b"|")
    return state.hexdigest()
