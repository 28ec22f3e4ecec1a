"""The code that a result comes from: the definitions it uses, and the files it imports.

Kept work (:mod:`study.store`) is out of date when code that made it changes, and only then. So the code
of a function is followed by definition: its own text and that of every function, class and constant it
uses, through all packages of this repository, wherever they live. An edit of a neighbour in the same
file, of a comment or of a docstring changes nothing.

Everything is read from the sources; nothing is imported, so a digest costs milliseconds.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")  # whose versions may move a number


Definition = tuple[str, str]  # a module, and a name of its top level, or "" for all of it


@dataclass(frozen=True)
class Module:
    """The top level of a source file: the statements that make a name, and what imported names are.

    ``imported`` maps a name to a module and a name in it ("" for the module itself).
    """

    made: dict[str, list[ast.stmt]]
    imported: dict[str, Definition]


def code(*names: str) -> str:
    """Digest of some definitions and of all code they use, with the versions of :data:`LIBRARIES`.

    Parameters
    ----------
    names : str
        A dotted name (``cid.heads.fit_heads``), a module, or one entry of a dict that is written out
        (``cid.methods.METHODS[cid]``), whose other entries then do not count.

    Raises
    ------
    ValueError
        If there is no such definition.
    """
    state = hashlib.sha256(" ".join(map(version, LIBRARIES)).encode())
    for definition in sorted(_reached(names)):
        for statement in _statements(*definition):
            state.update(f"{definition} {_text(statement)}\n".encode())
    return state.hexdigest()


def files(trees: Iterable[ast.AST]) -> set[Path]:
    """Source files of this repository that parsed code imports, and those that they import in turn."""
    found: dict[str, Path] = {}
    waiting = [module for tree in trees for module, _ in _imports(tree).values()]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += [module for module, _ in _imports(_parsed(path)).values()]
    return set(found.values())


def _reached(names: Iterable[str]) -> set[Definition]:
    found, waiting = set(), [_located(name) for name in names]
    while waiting:
        definition = waiting.pop()
        if definition not in found:
            found.add(definition)
            for statement in _statements(*definition):
                waiting += _uses(definition[0], statement)
    return found


def _located(name: str) -> Definition:
    """The module and the name in it that a dotted name means."""
    dotted, bracket, rest = name.partition("[")
    module, parts = dotted, []
    while module and _path(module) is None:
        module, _, last = module.rpartition(".")
        parts.insert(0, last)
    if not module or len(parts) > 1 or not _statements(module, ".".join(parts) + bracket + rest):
        raise ValueError(f"there is no definition {name!r} in this repository; name one that is")
    return module, ".".join(parts) + bracket + rest


def _statements(module: str, name: str) -> list[ast.AST]:
    """What makes a name; of a dict's entry its key and value."""
    made = _module(_path(module)).made
    name, _, key = name.removesuffix("]").partition("[")
    if not name:
        return [statement for statements in made.values() for statement in statements]
    if not key:
        return made.get(name, [])
    return [
        node
        for statement in made.get(name, [])
        if isinstance(getattr(statement, "value", None), ast.Dict)
        for known, value in zip(statement.value.keys, statement.value.values, strict=True)
        if isinstance(known, ast.Constant) and known.value == key
        for node in (known, value)
    ]


def _uses(module: str, node: ast.AST) -> Iterator[Definition]:
    """The definitions of this repository that a piece of a module mentions."""
    around = _module(_path(module))
    imported = around.imported | _imports(node)
    for chain in _chains(node):
        if chain[0] in imported:
            yield from _follow(*imported[chain[0]], chain[1:])
        elif chain[0] in around.made:
            yield module, chain[0]


def _follow(module: str, name: str, attributes: list[str]) -> Iterator[Definition]:
    """What an imported name with attributes means: a module as far as it goes, then a name in it."""
    words = [*([name] if name else []), *attributes]
    while words and _path(f"{module}.{words[0]}"):
        module, words = f"{module}.{words[0]}", words[1:]
    path = _path(module)
    if path is None:
        return
    around = _module(path)
    if words and words[0] in around.made:
        yield module, words[0]
    elif words and words[0] in around.imported:  # handed on
        yield from _follow(*around.imported[words[0]], words[1:])
    elif not words:  # the module as a value: all of it may be used
        yield module, ""


def _chains(node: ast.AST) -> Iterator[list[str]]:
    """Every ``a.b.c`` in a piece of code as its names, each as long as it goes."""
    names, inner = [], node
    while isinstance(inner, ast.Attribute):
        names.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield [inner.id, *names]
        return
    for part in ast.iter_child_nodes(inner):
        yield from _chains(part)


def _imports(tree: ast.AST) -> dict[str, Definition]:
    """Names that a piece of code imports at any depth: each a module and a name in it, or ""."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or name] = (name, "")
                found.setdefault(f"import {alias.name}", (alias.name, ""))  # runs in any case
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = _path(inner) is not None
                place = (inner, "") if is_module else (node.module, alias.name)
                found[alias.asname or alias.name] = place
    return found


@cache
def _path(module: str) -> Path | None:
    """The file of a module of this repository; None for a library's, or where there is none."""
    top, *parts = module.split(".")
    root = _package(top)
    if root is None:
        return None
    if not parts:
        return root
    if root.name != "__init__.py":
        return None
    place = root.parent.joinpath(*parts)
    found = [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    return found[0] if found else None


@cache
def _package(name: str) -> Path | None:
    """The file of a package or module at the top, unless it belongs to an installed library."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).resolve()
    libraries = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")}
    return None if libraries & set(path.parents) else path


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _module(path: Path) -> Module:
    made: dict[str, list[ast.stmt]] = {}
    imported: dict[str, Definition] = {}
    for statement in _parsed(path).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            imported |= _imports(statement)
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.setdefault(statement.name, []).append(statement)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = getattr(statement, "targets", None) or [statement.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            for name in dict.fromkeys(names):
                made.setdefault(name, []).append(statement)
    return Module(made, imported)


def _text(node: ast.AST) -> str:
    """A statement without comments, docstrings and layout."""
    dumped = ast.dump(node)
    for part in ast.walk(node):
        body = getattr(part, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                dumped = dumped.replace(ast.dump(body[0]), "", 1)
    return re.sub(r"\s+", " ", dumped)


def forget() -> None:
    """Read the sources again at the next call, as they may have been edited."""
    for cached in (_path, _package, _parsed, _module):
        cached.cache_clear()
