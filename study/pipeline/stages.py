"""The stages of dvc.yaml: their parameters, the code they use, and whether their work was done before.

    python -m study stages check    which stages name other code than they use
    python -m study stages write    put the code that each stage uses into dvc.yaml

dvc.yaml is the one place that says which parameters a stage reads: its notebook receives the keys listed
there, each under its last name. A stage depends on every module that its notebooks import, however deep,
so an edit runs what it can change and nothing else.
"""

import ast
import atexit
import builtins
import hashlib
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from symtable import symtable

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import study
from cid.names import suggest
from study import source
from study.commands import COMMANDS, parser, run_renamed
from study.pipeline.params import parsed
from study.store import KEPT, digest, write_text

DVC = Path("dvc.yaml")
METHODS = Path("study/methods")
COMPUTE = Path("notebooks/compute")
PAPER = Path("notebooks/paper")
EXECUTED = Path("build/notebooks")
DIGESTS = Path("build/code.json")  # of code, as stages found them
CODE = "code"  # in the metadata of an executed notebook: digests of the code that its stage ran
TEMPLATES = "study/pipeline/templates"
PINS = "requirements.lock"
DRAWING = ("matplotlib", "seaborn", "pandas")  # whose versions may change a section of the paper
# What users import from, which finds names in other modules and computes nothing.
FORWARDERS = {Path("cid/__init__.py"), Path("cid/moved.py")}
LARGE = 2**30  # bytes of outputs above which they are not kept a second time


def read_stages() -> dict[str, dict]:
    """The stages of dvc.yaml, in its order; ``ValueError`` if there are none."""
    if not DVC.is_file():
        raise ValueError(
            f"{DVC} is missing in {Path.cwd()}; run this in the root of the repository"
        )
    try:
        return parsed(DVC)["stages"]
    except (YAMLError, KeyError, TypeError):
        raise ValueError(f"{DVC} holds no stages; restore it with `git checkout {DVC}`") from None


def notebook_of(stage: str) -> Path:
    """Where the notebook of a stage is, if it has one."""
    return COMPUTE / f"{stage}.ipynb"


def parameter_keys(stage: str) -> list[str]:
    """Dotted keys of params.yaml that a stage reads.

    Raises
    ------
    ValueError
        If dvc.yaml has no such stage, or if two keys of the stage have the same last name.
    """
    known = read_stages()
    if stage not in known:
        nearest = suggest(stage, known)
        raise ValueError(f"dvc.yaml has no stage {stage!r}{nearest}; it has {', '.join(known)}")
    keys = known[stage].get("params", [])
    names = [last_name(key) for key in keys]
    for key, name in zip(keys, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"dvc.yaml: stage {stage}: {key!r} and another of its params end in {name!r};"
                " its notebook would receive only one of them"
            )
    return keys


def last_name(key: str) -> str:
    """``tau`` of ``weights.tau``."""
    return key.rpartition(".")[2]


# ---- the code that a stage uses ----------------------------------------------------------------


def command_of(stage: Mapping) -> list[str]:
    """The words of a stage's command, after ``python -m study``."""
    python, dash_m, package, *words = shlex.split(stage["cmd"])
    return words


def used_code(stage: str, known: Mapping[str, Mapping]) -> list[str]:
    """Code that a stage depends on, as sorted paths from the root of the repository.

    A stage with notebooks uses the notebooks and what they import. Any other stage uses the module of
    its command and what that imports. The report also uses the templates, and the code of the paper,
    whose digests it records; those of the other stages' code are in their executed notebooks. The
    command line itself (:mod:`study.cli`) only finds the module and calls it, so nothing depends on it.

    Parameters
    ----------
    stage : str
        Its name.
    known : mapping
        All stages of dvc.yaml by name.
    """
    command, *_ = command_of(known[stage])
    if command == "stage":
        notebook = notebook_of(stage)
        return sorted({str(notebook), PINS} | _imported([code_of(notebook)]))
    if command == "paper":
        sections = [code_of(path) for path in PAPER.glob("*.ipynb")]
        return sorted({str(PAPER)} | _imported(sections))
    used = _imported([f"import {COMMANDS[command].module}"])
    if command == "report":
        used.update((TEMPLATES, PINS))
        for name in known:
            if command_of(known[name])[0] == "paper":
                used.update(used_code(name, known))
    return sorted(used)


def _imported(programs: Iterable[str]) -> set[str]:
    """Files of this repository that programs import, except files that mark a package or forward names.

    The methods stand for all files of their folder, so that a method's file that is added there counts.
    """
    root = Path(study.__file__).resolve().parents[1]
    paths = source.files(ast.parse(program) for program in programs)
    files = {path.relative_to(root) for path in paths if not _is_marker(path)} - FORWARDERS
    return {str(METHODS if METHODS in file.parents else file) for file in files}


def _is_marker(path: Path) -> bool:
    """Whether a file is an ``__init__.py`` without imports, functions and classes."""
    works = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    if path.name != "__init__.py":
        return False
    return not any(isinstance(node, works) for node in ast.parse(path.read_text("utf-8")).body)


def is_code(dep: str) -> bool:
    """Whether a dependency of a stage is code of this repository, or the list of pinned packages."""
    return dep.startswith(("cid/", "people/", "study/", "notebooks/")) or dep == PINS


def code_digests(deps: Iterable[str]) -> dict[str, str]:
    """Digest of every file of code among dependencies, but for the list of packages; of Python, by what it does."""
    code = (dep for dep in deps if is_code(dep) and dep != PINS and Path(dep).exists())
    files = sorted({file for dep in code for file in _files_under(Path(dep))})
    return {file: _digest_of(file)[:16] for file in files}


def differences() -> list[str]:
    """Where the code that dvc.yaml names for a stage differs from the code it uses, as lines to print."""
    lines = []
    known = read_stages()
    for name, stage in known.items():
        named = {dep for dep in stage.get("deps", []) if is_code(dep)}
        used = set(used_code(name, known))
        lines += [f"{name}: lacks {dep}" for dep in sorted(used - named)]
        lines += [f"{name}: does not use {dep}" for dep in sorted(named - used)]
    return lines


def write_deps() -> None:
    """Put the code that every stage uses into its ``deps``; data, comments and order stay."""
    yaml = YAML()
    yaml.width = 110
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree = yaml.load(DVC)
    for name, stage in tree["stages"].items():
        deps = stage.setdefault("deps", [])
        other = [dep for dep in deps if not is_code(dep)]
        deps[:] = other + used_code(name, tree["stages"])
    text = io.StringIO()
    yaml.dump(tree, text)
    write_text(DVC, text.getvalue())


# ---- work that was done before -----------------------------------------------------------------


def done_before(stage: str, parameters: Mapping, work: Callable[[], object]) -> bool:
    """Do the work of a stage, unless it was done with the same inputs: then put its outputs back.

    DVC compares files, so it starts a stage again after an edit of a comment or docstring in code that
    the stage imports. Here such an edit changes nothing, because code is compared by what it does. To
    compute again, remove ``build/runs``.

    Parameters
    ----------
    stage : str
        Its name in dvc.yaml.
    parameters : mapping
        Those that its notebook receives.
    work : callable
        Makes the outputs.

    Returns
    -------
    bool
        Whether the work was done before.

    Raises
    ------
    ValueError
        If an earlier stage has not made what this one depends on, or if that was edited while the stage ran.
    """
    entry = read_stages().get(stage, {})
    deps = entry.get("deps", [])
    outputs = [Path(out) for out in entry.get("outs", [])]
    if _are_missing(deps, stage) or not outputs:
        work()  # which names what is missing
        return False

    stood = stamps(stage)
    inputs = _digests_under(deps)
    key = digest(dict(parameters), sys.version, source.versions(), *inputs)
    kept = KEPT / f"stage-{stage}-{key[:24]}"
    if kept.is_dir():
        for output in outputs:
            _copy(kept / output.name, output)
        print(f"{stage}: nothing that counts has changed; its outputs are put back")
        return True
    work()
    check_unedited(stage, stood, dict(inputs))
    if _size(outputs) <= LARGE:
        _keep(outputs, kept)
    return False


def stamps(stage: str) -> dict[str, tuple[int, int]]:
    """Size and time of every file that a stage depends on, for :func:`check_unedited`."""
    deps = read_stages().get(stage, {}).get("deps", [])
    files = (file for dep in deps for file in _files_under(Path(dep)))
    return {file: _stamp(file) for file in files if Path(file).exists()}


def _stamp(file: str) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def check_unedited(
    stage: str, stood: Mapping[str, tuple[int, int]], digests: Mapping[str, str] | None = None
) -> None:
    """Refuse results of files that were edited while they were made: DVC would record them as of the edit.

    Parameters
    ----------
    stage : str
    stood : mapping
        What :func:`stamps` said when the stage began.
    digests : mapping, optional
        Digests by file from then: a file that was saved anew but means the same does not count as edited.
    """
    for file, stamp in stood.items():
        there = Path(file).exists()
        if there and _stamp(file) == stamp:
            continue
        if not there or not digests or _digest_of(file) != digests[file]:
            raise ValueError(edited_meanwhile(file, stage))


def edited_meanwhile(what: str, stage: str) -> str:
    """The sentence that refuses the results of a stage because of an edit."""
    return f"{what} was edited while {stage} ran, which began before; run it again: finished work is kept"


def kept_section(section: Path, inputs: str) -> Path:
    """Where a section of the paper is kept, with its figures, once it was executed.

    The name of the folder holds a digest of the notebook, of the definitions its cells use, and of
    ``inputs``. So an edit of one figure's code executes the sections that show the figure, and no other.

    Parameters
    ----------
    section : path
        The source notebook.
    inputs : str
        From :func:`paper_inputs`.
    """
    versions = [version(package) for package in DRAWING]
    code = source.program(code_of(section))
    key = digest(section.read_bytes(), code, inputs, sys.version, versions)
    return KEPT / f"section-{section.stem}-{key[:24]}"


def paper_inputs() -> str:
    """Digest of the results that the sections read; "" if files are missing, so that nothing is kept.

    Raises
    ------
    ValueError
        If an earlier stage has not made its results.
    """
    deps = read_stages().get("paper", {}).get("deps", [])
    results = [dep for dep in deps if not is_code(dep)]
    return "" if _are_missing(results, "paper") else digest(_digests_under(results))


def put_section_back(kept: Path, folder: Path) -> bool:
    """Copy a section that was kept, and its figures, into the folder of the paper, if it is there."""
    if not kept.is_dir():
        return False
    for file in kept.iterdir():
        place = folder if file.suffix == ".ipynb" else folder / "figures"
        _copy(file, place / file.name)
    return True


def keep_section(executed: Path, kept: Path) -> None:
    """Keep an executed section and the figures that it shows."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [output.get("metadata", {}).get("figure", {}).get("name") for output in outputs]
    figures = [file for name in shown if name for file in executed.parent.glob(f"figures/{name}.*")]
    _keep([executed, *figures], kept)


def _are_missing(deps: Iterable[str], stage: str) -> bool:
    """Whether dependencies are missing; ``ValueError`` if an earlier stage would make one of them."""
    missing = [dep for dep in deps if not Path(dep).exists()]
    for dep in missing:
        if dep.startswith("build/"):
            raise ValueError(f"{dep} is missing; run `dvc repro {stage}`, which makes it first")
    return bool(missing)


def _digests_under(deps: Iterable[str]) -> list[tuple[str, str]]:
    """Name and digest of every file that dependencies hold."""
    return [(file, _digest_of(file)) for dep in deps for file in _files_under(Path(dep))]


def _keep(outputs: Iterable[Path], kept: Path) -> None:
    """Copy outputs into a folder, which appears complete or not at all."""
    draft = kept.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):  # a full disk: the stage itself is done
        for output in outputs:
            _copy(output, draft / output.name)
        os.replace(draft, kept)
    shutil.rmtree(draft, ignore_errors=True)


def _size(outputs: Iterable[Path]) -> int:
    """Bytes of some files and folders."""
    return sum(Path(file).stat().st_size for output in outputs for file in _files_under(output))


def _files_under(path: Path) -> list[str]:
    """All files of a folder, sorted, but for compiled ones; of a file, itself."""
    if not path.is_dir():
        return [str(path)]
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(str(file) for file in files if "__pycache__" not in file.parts)


def _digest_of(file: str) -> str:
    """Digest of a file; of Python code, by what the code does."""
    if file.endswith(".py"):
        return _digest_of_code(file, Path(file).read_bytes())
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache  # by content: a stage asks twice for the digests of its code
def _digest_of_code(file: str, content: bytes) -> str:
    """Digest of what a file of Python does.

    Every stage asks for the same files, and a short one would spend half of its time on them, so they are
    kept in :data:`DIGESTS`.
    """
    known = _kept_digests()
    key = hashlib.sha256(content).hexdigest()
    if key not in known:
        if not _FOUND:
            atexit.register(_keep_digests)
        _FOUND[key] = known[key] = digest(source.text(file))
    return known[key]


_FOUND: dict[str, str] = {}  # what this process adds to those that are kept


@cache
def _kept_digests() -> dict[str, str]:
    """Digests of code by the SHA-256 of its file, as earlier stages found them."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(DIGESTS.read_text(encoding="utf-8"))
        if kept["by"] == _digested_by():
            return kept["digests"]
    return {}


@cache
def _digested_by() -> str:
    """What a digest of code depends on besides its file: the version of Python, and how it is found."""
    return digest(sys.version, Path(source.__file__).read_bytes())


def _keep_digests() -> None:
    """Leave the digests of code for the next stage, where there are stages."""
    if DIGESTS.parent.is_dir():
        kept = {"by": _digested_by(), "digests": _kept_digests()}
        with suppress(OSError):  # a full disk: they are found again
            write_text(DIGESTS, json.dumps(kept, indent=0))


def _copy(original: Path, copy: Path) -> None:
    """Copy a file or a folder; a folder replaces the one that is there."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if original.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
    else:
        shutil.copyfile(original, copy)


# ---- the code of a notebook --------------------------------------------------------------------


def code_of(path: Path, without: str = "") -> str:
    """The code cells of a notebook as one program, but for those with a tag."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    code = [cell for cell in code if without not in cell.get("metadata", {}).get("tags", [])]
    return "\n".join("".join(cell["source"]) for cell in code)


def imports_of(path: Path) -> str:
    """The import statements of a notebook; "" if it cannot be read, which running it will report."""
    with suppress(OSError, SyntaxError, ValueError, LookupError):
        nodes = ast.parse(code_of(path)).body
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        return "\n".join(ast.unparse(node) for node in imports)
    return ""


def name_mistakes(path: Path, keys: Iterable[str] = (), without: str = "") -> list[str]:
    """Parameters that a notebook receives and does not use, and names it uses that nothing defines.

    Cells that have the tag ``without`` do not count.
    """
    tables = [symtable(code_of(path, without), str(path), "exec")]
    for table in tables:  # which grows by the functions and comprehensions inside
        tables += table.get_children()
    symbols = [symbol for table in tables for symbol in table.get_symbols() if symbol.is_global()]
    used = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
    defined = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_local()}
    received = {last_name(key) for key in keys}
    unknown = used - defined - received - set(dir(builtins)) - {"display"}
    unused = [f"{path} does not use {name!r}" for name in sorted(received - used)]
    undefined = [f"{path} uses {name!r}, which nothing defines" for name in sorted(unknown)]
    return unused + undefined


def main(arguments: list[str]) -> int:
    options = parser("stages")
    options.add_argument("command", choices=["check", "write"])
    if options.parse_args(arguments).command == "write":
        write_deps()
    lines = differences()
    print("\n".join(lines) or "Every stage names the code that it uses.")
    return int(bool(lines))


if __name__ == "__main__":
    run_renamed(__spec__.name)
