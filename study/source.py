"""The code that a result comes from: the definitions it uses, and the files it imports.

Kept work (:mod:`study.store`) is out of date when code that made it changes, and only then. So the code
of a function is followed by definition: its own text and that of every function, class and constant it
uses, through all packages of this repository, wherever they live. An edit of a neighbour in the same
file, of a comment or of a docstring changes nothing.

Everything is read from the sources; nothing is imported, so a digest costs milliseconds.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[1]  # whose packages are the project's code
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")  # whose versions may move a number
PARSING = (
    Lock()
)  # two threads that parse at once can fail: "AST constructor recursion depth mismatch"
Definition = tuple[str, str]  # a module and a name of its top level, or "" for all of it


def code(*names: str) -> str:
    """Digest of some definitions and of all code they use, with the versions of :data:`LIBRARIES`.

    Parameters
    ----------
    names : str
        A dotted name (``cid.heads.fit_heads``), a module, or one entry of a dict that is written out
        (``study.results.metrics.METRICS[accuracy]``), whose other entries then do not count.

    Raises
    ------
    ValueError
        If there is no such definition.
    """
    return _digest_of_all([_located(name) for name in names])


def program(text: str) -> str:
    """Digest of the definitions that a program uses, such as the cells of a notebook, with all code they use.

    What the program itself says is not part of it.

    Parameters
    ----------
    text : str
        Python code.
    """
    with PARSING:
        tree = ast.parse(text)
    imported = _imports(tree)
    used = [(name, chain) for chain in _chains(tree) if (name := chain[0]) in imported]
    followed = [_follow(*imported[name], chain[1:]) for name, chain in used]
    return _digest_of_all([definition for definitions in followed for definition in definitions])


def _digest_of_all(waiting: list[Definition]) -> str:
    """Digest of definitions and of all they use, with the versions of :data:`LIBRARIES`."""
    found: set[Definition] = set()
    while waiting:
        definition = waiting.pop()
        if definition not in found:
            found.add(definition)
            waiting += _read(definition)[1]
    state = hashlib.sha256(versions().encode())
    for definition in sorted(found):
        state.update(_read(definition)[0].encode())
    return state.hexdigest()


def versions() -> str:
    """Those of :data:`LIBRARIES`."""
    return " ".join(map(version, LIBRARIES))


def files(trees: Iterable[ast.AST]) -> set[Path]:
    """Source files of this repository that parsed code imports, and those that they import in turn."""
    found: dict[str, Path] = {}
    waiting = [module for tree in trees for module, _ in _imports(tree).values()]
    while waiting:
        name = waiting.pop()
        if name not in found and (path := _path(name)):
            found[name] = path
            waiting += [name.rpartition(".")[0]] if "." in name else []  # its package runs, too
            waiting += _imported_modules(path)
            if path.name == "__init__.py" and _looks_for_modules(_parsed(path)):
                waiting += _discovered(name)
    return set(found.values())


def _looks_for_modules(tree: ast.AST) -> bool:
    """Whether code imports the modules of its package that it finds, as study.methods does."""
    attributes = (node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return "iter_modules" in attributes


def _discovered(package: str) -> list[str]:
    """The modules of a package."""
    return [f"{package}.{file.stem}" for file in sorted(_path(package).parent.glob("[!_]*.py"))]


def text(path: str | Path) -> str:
    """A file of Python without comments, docstrings and layout: what it does, and no more."""
    with PARSING:
        return _text(ast.parse(Path(path).read_text(encoding="utf-8"), str(path)))


def forget() -> None:
    """Read the sources again at the next call, as they may have been edited."""
    for cached in (_path, _parsed, _imported_modules, _module, _read):
        cached.cache_clear()


def _located(name: str) -> Definition:
    """The module and the name in it that a dotted name means."""
    dotted, bracket, key = name.partition("[")
    whole = _path(dotted) is not None
    module, _, last = (dotted, "", "") if whole else dotted.rpartition(".")
    rest = last + bracket + key
    if _path(module) is None or not _statements(module, rest):
        raise ValueError(f"there is no definition {name!r} in this repository; name one that is")
    return module, rest


def _statements(module: str, name: str) -> list[ast.AST]:
    """What makes a name; of a dict's entry its value."""
    made, _ = _module(module)
    name, _, key = name.removesuffix("]").partition("[")
    found = made.get(name, []) if name else [part for parts in made.values() for part in parts]
    if not key:
        return found
    written = [part.value for part in found if isinstance(getattr(part, "value", None), ast.Dict)]
    return [
        value
        for entries in written
        for known, value in zip(entries.keys, entries.values, strict=True)
        if isinstance(known, ast.Constant) and known.value == key
    ]


@cache
def _read(definition: Definition) -> tuple[str, list[Definition]]:
    """What a definition says, and the definitions it mentions."""
    module, _ = definition
    parts = _statements(*definition)
    uses = [used for part in parts for used in _uses(module, part)]
    if any(_looks_for_modules(part) for part in parts):
        uses += [(name, "") for name in _discovered(module)]
    return "".join(f"{definition} {_text(part)}\n" for part in parts), uses


def _uses(module: str, node: ast.AST) -> Iterator[Definition]:
    """The definitions of this repository that a piece of a module mentions."""
    made, imported = _module(module)
    imported = imported | _imports(node)
    for first, *rest in _chains(node):
        if first in imported:
            yield from _follow(*imported[first], rest)
        elif first in made:
            yield module, first


def _follow(module: str, name: str, attributes: list[str]) -> Iterator[Definition]:
    """What an imported name with attributes means: a module as far as it goes, then a name in it."""
    words = [*([name] if name else []), *attributes]
    while words and _path(f"{module}.{words[0]}"):
        module, words = f"{module}.{words[0]}", words[1:]
    if _path(module) is None:
        return
    made, imported = _module(module)
    if not words:  # the module as a value: all of it may be used
        yield module, ""
    elif words[0] in made:
        yield module, words[0]
    elif words[0] in imported:  # handed on
        yield from _follow(*imported[words[0]], words[1:])


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
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = (alias.name if alias.asname else top, "")
                found[f"import {alias.name}"] = (alias.name, "")  # it runs in any case
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                place = (inner, "") if _path(inner) else (node.module, alias.name)
                found[alias.asname or alias.name] = place
    return found


@cache
def _path(module: str) -> Path | None:
    """The file of a module of this repository; None for a library's, or where there is none.

    The project's code is what lies in its folder, whatever Python's search path holds: a library stays one
    in an environment behind a link, in the user's own packages, or in a folder of ``PYTHONPATH``.
    """
    above, _, name = module.rpartition(".")
    package = _path(above) if above else ROOT / "__init__.py"
    if package is None or package.name != "__init__.py":
        return None
    places = (package.with_name(f"{name}.py"), package.with_name(name) / "__init__.py")
    return next((place for place in places if place.is_file()), None)


@cache
def _parsed(path: Path) -> ast.Module:
    with PARSING:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _imported_modules(path: Path) -> list[str]:
    """Modules that a file imports, at any depth."""
    return [module for module, _ in _imports(_parsed(path)).values()]


@cache
def _module(name: str) -> tuple[dict[str, list[ast.stmt]], dict[str, Definition]]:
    """A file's statements by the name they make, and what its imported names mean."""
    made, imported = {}, {}
    for part in _parsed(_path(name)).body:
        if isinstance(part, (ast.Import, ast.ImportFrom)):
            imported |= _imports(part)
        elif isinstance(part, (ast.FunctionDef, ast.ClassDef)):
            made.setdefault(part.name, []).append(part)
        elif isinstance(part, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = getattr(part, "targets", None) or [part.target]
            for node in {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}:
                made.setdefault(node, []).append(part)
    return made, imported


def _text(node: ast.AST) -> str:
    """A piece of code without comments, docstrings and layout."""
    text = ast.dump(node)
    for part in ast.walk(node):
        documented = isinstance(part, (ast.Module, ast.FunctionDef, ast.ClassDef))
        if documented and ast.get_docstring(part):
            text = text.replace(ast.dump(part.body[0]), "", 1)
    return text
