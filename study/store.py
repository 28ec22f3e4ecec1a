"""A cache on disk, so that nothing is computed twice.

The name of a file holds a digest of everything that its content was computed from: the inputs, and the
code with all that it uses. A file is therefore never out of date, and the folder can be deleted at any
time.
"""

import hashlib
import json
import os
import socket
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import get_ident

import numpy as np

from study import source

KEPT = Path("build/runs")  # where a study keeps its work

# A process runs the code that it has read, whatever is edited meanwhile.
_code_digest = cache(source.code)


def kept(
    folder: str | Path | None, label: str, inputs, code: Sequence[str], compute: Callable[[], dict]
) -> dict:
    """Return what ``compute()`` returns, from the cache if it is there.

    Parameters
    ----------
    folder : path or None
        Where results are kept; with None nothing is kept, and nothing is digested.
    label, inputs, code
        As in :func:`kept_path`, which names the file.
    compute : callable
        Returns a dict of arrays.
    """
    if folder is None:
        return compute()
    path = kept_path(folder, label, inputs, code)
    arrays = read(path)
    if arrays is None:
        arrays = compute()
        keep(path, arrays)
    return arrays


def kept_path(folder: str | Path, label: str, inputs, code: Sequence[str]) -> Path:
    """Return the file that keeps a result: ``<label>-<24 hexadecimal digits>.npz``.

    Parameters
    ----------
    folder : path
    label : str
        Says to a reader of the folder what the file holds.
    inputs
        Everything the result depends on besides the code, as :func:`digest` takes it. Where many
        results share large arrays, pass the digest of these, made once, in their place.
    code : sequence of str
        Dotted names of the definitions that compute the result, as :func:`study.source.code` takes
        them; whatever these use counts, too.
    """
    key = digest(inputs, _code_digest(*code))
    return Path(folder) / f"{label}-{key[:24]}.npz"


def read(path: str | Path) -> dict | None:
    """Read the arrays of an ``.npz`` file; None if it is missing or damaged."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def keep(path: str | Path, arrays: dict) -> None:
    """Write arrays to an ``.npz`` file for :func:`read`; it appears complete or not at all."""
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
    """Return the SHA-256 of arrays, tensors, bytes, plain values and any nesting of these in tuples,
    lists and dicts (with text as keys), as 64 hexadecimal digits.

    Raises
    ------
    TypeError
        On a value of another type.
    """
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, (tuple, list)):
            state.update(digest(*part).encode())
        elif _is_array(part):
            _update_with_array(state, part)
        elif isinstance(part, bytes):
            state.update(f"{len(part)} bytes ".encode() + part)
        else:
            state.update(json.dumps(part, sort_keys=True, default=_for_json).encode())
        state.update(b"|")
    return state.hexdigest()


def _for_json(part):
    """Replace what JSON cannot write: a scalar of NumPy by its value, an array by its digest."""
    if isinstance(part, np.generic):
        return part.item()
    if _is_array(part) or isinstance(part, bytes):
        return digest(part)
    raise TypeError(f"a value of type {type(part).__name__} has no digest; pass an array or text")


def _is_array(part) -> bool:
    return isinstance(part, np.ndarray) or hasattr(part, "cpu")


def _update_with_array(state, array) -> None:
    state.update(f"{array.dtype} {tuple(array.shape)}".encode())
    rows = array if len(array.shape) else array.reshape(1)
    for start in range(0, len(rows), 4096):  # a copy of a large set would not fit into memory
        chunk = rows[start : start + 4096]
        chunk = chunk if isinstance(chunk, np.ndarray) else chunk.cpu().numpy()
        state.update(np.ascontiguousarray(chunk))
