"""Recognition networks in files: their names, which pin what a file holds, and what one takes.

Importing this module is cheap, as whoever checks a parameter file reads it; :mod:`study.faces.onnx` runs
the networks.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from annotated_types import Ge

from cid.settings import Options, one_of, rule, satisfying

DIGITS = 12  # of a SHA-256, at least, that pin a file
TEMPLATES = ("arcface", "dlib", "facenet")  # of :mod:`cid.align`


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


def _numbers(value, count: int) -> bool:
    """Whether a value is a list of so many finite numbers."""
    real = isinstance(value, list | tuple) and len(value) == count
    return real and all(type(v) in (int, float) and math.isfinite(v) for v in value)


def _per_channel(values, low: float) -> bool:
    """Whether a value is one finite number above ``low``, or three."""
    values = values if isinstance(values, list | tuple) else [values] * 3
    return _numbers(values, 3) and min(values) > low


def _is_mean(value) -> bool:
    return _per_channel(value, -math.inf)


def _is_scale(value) -> bool:
    return _per_channel(value, 0)


def _is_template(value) -> bool:
    if isinstance(value, str):
        return value in TEMPLATES
    if (
        not isinstance(value, list | tuple)
        or len(value) != 5
        or not all(_numbers(point, 2) for point in value)
    ):
        return False
    return all(max(side) - min(side) > 2 for side in zip(*value, strict=True))  # so not in sides


Template = satisfying(
    f"{', '.join(TEMPLATES)} or five points [x, y] in pixels of the crop", _is_template
)
Mean = satisfying("a number, or a list of three, one a channel", _is_mean)
Scale = satisfying("a number greater than 0, or a list of three, one a channel", _is_scale)


@dataclass(frozen=True)
class OnnxOptions(Options):
    """What a network in an ONNX file takes; ``embed.onnx`` of params.yaml. ArcFace's by default."""

    # Where the landmarks go: left eye, right eye, nose and the mouth's corners, as seen in the picture.
    template: Template = "arcface"
    size: rule("a whole number of at least 8", int, Ge(8)) = 112  # px: side of the crop
    channels: one_of("rgb", "bgr") = "rgb"  # their order
    # What is subtracted from values in 0..255, and by what the difference is divided; in that order.
    mean: Mean = 127.5
    scale: Scale = 127.5

    def __post_init__(self):
        super().__post_init__()
        for name in ("template", "mean", "scale"):  # so that equal options have one hash
            if isinstance(value := getattr(self, name), list | tuple):
                rows = (tuple(v) if isinstance(v, list | tuple) else v for v in value)
                object.__setattr__(self, name, tuple(rows))
