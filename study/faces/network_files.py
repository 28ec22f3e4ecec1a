"""Recognition networks in ONNX files: names that pin the content of a file, and their options.

Importing this module is cheap, because every check of a parameter file does it;
:mod:`study.faces.onnx` runs the networks.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from annotated_types import Ge

from cid.settings import Options, one_of, rule, satisfying

DIGITS = 12  # the smallest number of digits of a SHA-256 that pins a file
# What is known of the files that `make networks` makes, by the first digits of their SHA-256.
LICENCES = {
    "7842c6d1ea984648": "package MIT; trained on unnamed data, for research (study.faces.mobilefacenet)",
    "c76e505d6a3f9385": "Apache 2.0; trained on unnamed data, for research (study.faces.sface)",
}
TEMPLATES = ("arcface", "dlib", "facenet")  # of :mod:`cid.align`


def is_file(name: str) -> bool:
    """Return whether a network's name is that of a file."""
    return "@" in name or name.endswith(".onnx")


def pinned(name: str) -> tuple[Path, str]:
    """Return the file that ``path/to/model.onnx@SHA256`` names, and its whole SHA-256, lower case.

    Behind @ stand the first :data:`DIGITS` or more digits of the checksum. FileNotFoundError if there is
    no such file. ValueError, with the name to write, if the checksum is missing or another one, or if
    the file is a text.
    """
    if "@" in name:
        path, _, digits = name.rpartition("@")
    else:
        path = name
        digits = ""
    digits = digits.lower()
    complete = re.fullmatch(f"[0-9a-f]{{{DIGITS},64}}", digits) is not None
    file = Path(path)
    if not file.is_file():
        if not complete:
            raise ValueError(
                f"{name} pins no file; write {path}@ and {DIGITS} or more of the first digits of that "
                "file's SHA-256"
            )
        raise FileNotFoundError(f"{path} is missing in {Path.cwd()}; {_remedy(file)}")
    with file.open("rb") as stream:
        head = stream.read(512)
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", head):  # no control characters: a text
        begins = " ".join(head.decode(errors="replace").split())[:40]
        raise ValueError(f"{path} is no ONNX file but a text, {begins!r}; fetch the file again")
    state = file.stat()
    sha256 = _sha256(file, state.st_size, state.st_mtime_ns)
    if not complete:
        problem = "lacks its SHA-256 behind @"
    elif not sha256.startswith(digits):
        problem = f"has another SHA-256 than {digits}"
    else:
        return file, sha256
    raise ValueError(f"{path} {problem}; if it is the file you mean, write {path}@{sha256[:16]}")


def _remedy(file: Path) -> str:
    """What to do about a network that is missing here."""
    here = Path.cwd().parts
    if (".dvc", "tmp") not in zip(here, here[1:], strict=False):
        return "put the network there"
    return (
        "a queued experiment runs in a copy of what git knows, which is gone after it: run it without "
        f"--queue and --temp, name the file by its absolute path, or take {file.parent} out of .gitignore "
        "and add it to git"
    )


@lru_cache
def _sha256(file: Path, size: int, modified: int) -> str:
    """Return the checksum of a file, read again only if its size or modification time has changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _numbers(value, count: int) -> bool:
    """Return whether a value is a list of ``count`` finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in value)


def _per_channel(values, low: float) -> bool:
    """Return whether a value is one finite number above ``low``, or three of them."""
    if not isinstance(values, list | tuple):
        values = [values] * 3
    return _numbers(values, 3) and min(values) > low


def _is_mean(value) -> bool:
    return value == "auto" or _per_channel(value, -math.inf)


def _is_scale(value) -> bool:
    return value == "auto" or _per_channel(value, 0)


def _is_template(value) -> bool:
    if isinstance(value, str):
        return value in TEMPLATES
    if not isinstance(value, list | tuple) or len(value) != 5:
        return False
    if not all(_numbers(point, 2) for point in value):
        return False
    # Points that lie within 2 px are given in parts of a side, not in pixels.
    return all(max(side) - min(side) > 2 for side in zip(*value, strict=True))


Template = satisfying(
    f"{', '.join(TEMPLATES)} or five points [x, y] in pixels of the crop", _is_template
)
Mean = satisfying("a number, or a list of three, one per channel, or auto", _is_mean)
Scale = satisfying(
    "a number greater than 0, or a list of three, one per channel, or auto", _is_scale
)


@dataclass(frozen=True)
class OnnxOptions(Options):
    """The input of a network in an ONNX file; ``embed.onnx`` of params.yaml. By default ArcFace's."""

    # Where the landmarks go: left eye, right eye, nose and the mouth's corners, as seen in the picture.
    template: Template = "arcface"
    size: rule("a whole number of at least 8", int, Ge(8)) = 112  # px: side of the crop
    channels: one_of("rgb", "bgr") = "rgb"  # their order
    # What is subtracted from values in 0..255, and by what the difference is divided; in that order.
    # "auto": both 127.5, or 0 and 1 if the network's own first operations normalise pixels.
    mean: Mean = "auto"
    scale: Scale = "auto"

    def __post_init__(self):
        super().__post_init__()
        for name in ("template", "mean", "scale"):  # tuples, so that equal options have one hash
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, _as_tuple(value))


def _as_tuple(value):
    """Return nested lists as nested tuples."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(_as_tuple(item) for item in value)
