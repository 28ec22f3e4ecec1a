"""Names that somebody typed: looked up, or refused with the right one or the nearest."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
DIGITS = 12  # of a SHA-256, at least, that pin a file


def suggest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known word, or an empty string."""
    near = get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def find(what: str, name: str, known: Mapping[str, Found]) -> Found:
    """What is known under a name, or a ValueError that says which ``what``, as "method", there are."""
    if not (isinstance(name, str) and name in known):
        problem = f"{what} {name!r} is unknown{suggest(name, known)}"
        remedy = f"known: {', '.join(known)}" if isinstance(name, str) else "a name is one text"
        raise ValueError(f"{problem}; {remedy}")
    return known[name]


def is_file(name: str) -> bool:
    """Whether a network's name is that of a file."""
    return "@" in name or name.endswith(".onnx")


def pinned(name: str) -> tuple[Path, str]:
    """The file that ``path/to/model.onnx@SHA256`` names, and its whole SHA-256, lower case.

    The digits behind @ are the first of the checksum, :data:`DIGITS` or more. A FileNotFoundError if
    there is no such file; a ValueError, with what to write, if the checksum is missing or not the
    file's, or if the file is a text.
    """
    path, _, digits = name.rpartition("@") if "@" in name else (name, "", "")
    digits = digits.lower()
    complete = re.fullmatch(f"[0-9a-f]{{{DIGITS},64}}", digits) is not None
    file = Path(path)
    if not file.is_file():
        if not complete:
            what = f"{DIGITS} or more of the first digits of that file's SHA-256"
            raise ValueError(f"{name} pins no file; write {path}@ and {what}")
        raise FileNotFoundError(f"{path} is missing in {Path.cwd()}; put the network there")
    with file.open("rb") as stream:
        if not re.search(rb"[\x00-\x08\x0e-\x1f]", head := stream.read(512)):
            begins = " ".join(head.decode(errors="replace").split())[:40]
            raise ValueError(f"{path} is no ONNX file but a text, {begins!r}; fetch the file again")
    state = file.stat()
    found = _sha256(file, state.st_size, state.st_mtime_ns)
    if not (complete and found.startswith(digits)):
        problem = f"has another SHA-256 than {digits}" if complete else "lacks its SHA-256 behind @"
        raise ValueError(f"{path} {problem}; if it is the file you mean, write {path}@{found[:16]}")
    return file, found


@lru_cache
def _sha256(file: Path, size: int, modified: int) -> str:
    """Read once as long as neither the size nor the time of the last change is another."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
