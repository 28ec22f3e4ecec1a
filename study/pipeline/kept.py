"""Kept studies: what each differs in, put over the base it names.

``studies/NAME.yaml`` names a base, as ``base: base-1``, and holds the study's protocol and the values
that differ from ``studies/base-1.yaml``. A file that names no base is complete, as params.yaml is.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from cid.names import suggest
from study.pipeline import params

STUDIES = Path("studies")
BASE = re.compile(r"base-\d+")
# Mappings whose keys are a free choice: a study's own replaces the base's as a whole.
WHOLE = ("ablations", "train.network", "embed.onnx")


def names(folder: Path = STUDIES) -> list[str]:
    """Names of the kept studies, sorted; the bases are none."""
    stems = sorted(file.stem for file in folder.glob("*.yaml"))
    return [stem for stem in stems if not BASE.fullmatch(stem)]


def find(name: str, folder: Path = STUDIES) -> Path:
    """The file of a kept study; ``ValueError`` with the nearest name where there is none."""
    known = names(folder)
    path = folder / f"{name}.yaml"
    if name not in known:
        there = f"there are {', '.join(known)}"
        raise ValueError(f"{path} does not exist{suggest(name, known)}; {there}")
    return path


def resolve(name: str, folder: Path = STUDIES) -> dict:
    """The complete parameters of a kept study.

    ``ValueError``, in one sentence, if the study or its base does not exist, if the study has no
    protocol of its own, or if a key or a value is none that params.yaml could have.
    """
    path = find(name, folder)
    study = _load(path)
    if not isinstance(study, Mapping) or "base" not in study:
        return params.load(path)
    _check_own(study, path)
    base = params.load(_base(study, path))
    tree = _put_together(base, study, name)
    params.check(tree, path)
    return tree


def text(name: str, folder: Path = STUDIES) -> str:
    """The complete parameters of a kept study as a YAML file, with the comments of its base."""
    path = find(name, folder)
    yaml = YAML()
    yaml.width = 110
    yaml.Representer = params.NullAsWord
    study = yaml.load(path)
    if "base" not in study:
        return path.read_text(encoding="utf-8")
    base = yaml.load(_base(study, path))
    base.ca.comment = study.ca.comment  # the head of the file
    tree = _put_together(base, study, name)
    _move_comments_left(tree)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def _move_comments_left(tree: CommentedMap) -> None:
    """Put the comment behind a value beside it: its column was that of another value."""
    for comments in tree.ca.items.values():
        if comments[2] is not None:
            comments[2].column = 0
    for value in tree.values():
        if isinstance(value, CommentedMap):
            _move_comments_left(value)


def merge(base: Mapping, changes: Mapping, within: str = "") -> Mapping:
    """Put changes into a tree of parameters and return it.

    Mappings are merged key by key, except those of :data:`WHOLE`. Those, lists and single values
    replace what was there. ``within`` is where in the tree the two stand, as ``train.``.
    """
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        if both and f"{within}{key}" not in WHOLE:
            merge(base[key], value, f"{within}{key}.")
        else:
            base[key] = value
    return base


def _put_together(base: Mapping, study: Mapping, name: str) -> Mapping:
    """A base with the values of a study, which is named after its file."""
    changes = {key: value for key, value in study.items() if key != "base"}
    return merge(base, changes | {"study": name})


def _base(study: Mapping, path: Path) -> Path:
    """The file of the base that a study names; ``ValueError`` where there is none."""
    name = study["base"]
    known = sorted(file.stem for file in path.parent.glob("base-*.yaml"))
    if name not in known:
        there = ", ".join(known) or "none"
        raise ValueError(f"{path}: base is {name!r}{suggest(name, known)}; there is {there}")
    return path.parent / f"{name}.yaml"


def _check_own(study: Mapping, path: Path) -> None:
    """Refuse a study without a protocol of its own, or with another name than its file's."""
    protocol = study.get("protocol")
    for key in ("status", "note"):
        if not isinstance(protocol, Mapping) or key not in protocol:
            raise ValueError(f"{path}: protocol.{key} is missing; every kept study states its own")
    if study.get("study", path.stem) != path.stem:
        raise ValueError(
            f"{path}: study is {study['study']!r}, but a kept study is named after its file; "
            "delete the line"
        )


def _load(path: Path) -> Any:
    try:
        return params.parsed(path)
    except (YAMLError, RecursionError):
        return params.load(path)  # raises the sentence that says what is wrong, and in which line
