"""What the stages of dvc.yaml are handed and depend on.

    python -m study.pipeline.stages check    which stages name other code than they use
    python -m study.pipeline.stages write    put what they use into dvc.yaml

dvc.yaml is the one place where a stage's parameters are declared: its notebook finds the keys listed
there under their last names. The modules a stage depends on are those that its notebooks import, however
deep, so that an edit runs what it can change and nothing else.
"""

import ast
import builtins
import hashlib
import io
import json
import os
import shlex
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from symtable import symtable

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import study
from cid.names import suggest
from study import source
from study.pipeline.params import command
from study.store import KEPT, digest, write_text

DVC = Path("dvc.yaml")
COMPUTE, PAPER = Path("notebooks/compute"), Path("notebooks/paper")
TEMPLATES = "study/pipeline/templates"
PINS = "requirements.lock"
LARGE = 2**30  # bytes of outputs above which they are not kept a second time


def stages() -> dict[str, dict]:
    """The stages of dvc.yaml, in its order; ``ValueError`` where there is none."""
    if not DVC.is_file():
        raise ValueError(
            f"{DVC} is missing in {Path.cwd()}; run this in the root of the repository"
        )
    try:
        return YAML(typ="safe").load(DVC)["stages"]
    except (YAMLError, KeyError, TypeError):
        raise ValueError(f"{DVC} holds no stages; restore it with `git checkout {DVC}`") from None


def notebook(stage: str) -> Path:
    """Where the notebook of a stage is, if it has one."""
    return COMPUTE / f"{stage}.ipynb"


def parameters(stage: str) -> list[str]:
    """Dotted keys of params.yaml that a stage reads; ``ValueError`` if there is no such stage."""
    known = stages()
    if stage not in known:
        near = suggest(stage, known)
        raise ValueError(f"dvc.yaml has no stage {stage!r}{near}; it has {', '.join(known)}")
    keys = known[stage].get("params", [])
    names = [key.rpartition(".")[2] for key in keys]
    for key, name in zip(keys, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"dvc.yaml: stage {stage}: {key!r} and another of its params end in {name!r};"
                " a notebook would be handed one of them only"
            )
    return keys


def closure(stage: str, known: Mapping[str, Mapping]) -> list[str]:
    """Code that one of the known stages depends on, as sorted paths from the repository's root.

    Of a stage with notebooks: the notebooks and what they import. Of another: the module it runs, what
    that imports, and its templates; the report, which records the digests of all code, depends on it.
    """
    _, _, module, verb, *_ = shlex.split(known[stage]["cmd"])
    if module == "study.pipeline.notebook":
        run = verb == "run"
        paths = [notebook(stage)] if run else PAPER.glob("*.ipynb")
        found = {str(notebook(stage)), PINS} if run else {str(PAPER)}
        return sorted(found | _files(map(code, paths)))
    found = {TEMPLATES} | _files([f"import {module}"])
    if verb == "build":
        others = [name for name in known if "pipeline.notebook" in known[name]["cmd"]]
        found |= {PINS}.union(*(closure(name, known) for name in others))
    return sorted(found)


def _files(programs: Iterable[str]) -> set[str]:
    """What programs import of this repository, but for files that only mark a package."""
    root = Path(study.__file__).resolve().parents[1]
    works = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return {
        str(path.relative_to(root))
        for path in source.files(map(ast.parse, programs))
        if path.name != "__init__.py"
        or any(isinstance(node, works) for node in ast.parse(path.read_text("utf-8")).body)
    }


def done_before(stage: str, given: Mapping, work: Callable[[], object]) -> bool:
    """Do the work of a stage, unless it was done with the same inputs: then put its outputs back.

    DVC compares files, so it starts a stage again after an edit of a comment or docstring in code that
    the stage imports. Here the same code is the same whatever is said about it. ``given`` are the
    stage's parameters. Returns whether it was done before. To compute again, remove ``build/runs``.
    ValueError where an earlier stage has not made what this one depends on.
    """
    known = {"deps": [], "outs": []} | stages().get(stage, {})
    if lacking := [dep for dep in known["deps"] if not Path(dep).exists()]:
        if made := [dep for dep in lacking if dep.startswith("build/")]:
            raise ValueError(f"{made[0]} is missing; run `dvc repro {stage}`, which makes it first")
        work()  # which says what is missing
        return False
    inputs = [(file, _content(file)) for dep in known["deps"] for file in _under(Path(dep))]
    key = digest(dict(given), sys.version, source.versions(), *inputs)
    folder, outs = KEPT / f"stage-{stage}-{key[:24]}", list(map(Path, known["outs"]))
    if outs and folder.is_dir():
        for out in outs:
            _copy(folder / out.name, out)
        print(f"{stage}: nothing that counts has changed; its outputs are put back")
        return True
    work()
    if sum(file.stat().st_size for out in outs for file in map(Path, _under(out))) > LARGE:
        return False
    draft = folder.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):  # a full disk: the stage itself is done
        for out in outs:
            _copy(out, draft / out.name)
        os.replace(draft, folder)
    shutil.rmtree(draft, ignore_errors=True)
    return False


def _under(path: Path) -> list[str]:
    return sorted(str(f) for f in path.rglob("*") if f.is_file()) if path.is_dir() else [str(path)]


def _content(file: str) -> str:
    """Digest of a file, of code by what it does."""
    if file.endswith(".py"):
        return digest(source.text(file))
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy(this: Path, there: Path) -> None:
    there.parent.mkdir(parents=True, exist_ok=True)
    if not this.is_dir():
        shutil.copyfile(this, there)
        return
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(this, there)


def is_code(dep: str) -> bool:
    """Whether a dependency of a stage is code of this repository, or the packages under it."""
    return dep.startswith(("cid/", "study/", "notebooks/")) or dep == PINS


def code(path: Path) -> str:
    """The code cells of a notebook as one program."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def imports(path: Path) -> str:
    """The import statements of a notebook; none of what is no program, as running it will say."""
    with suppress(OSError, SyntaxError, ValueError, LookupError):
        nodes = ast.parse(code(path)).body
        return "\n".join(
            ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)
        )
    return ""


def mistakes(path: Path, keys: Iterable[str] = ()) -> list[str]:
    """Parameters that a notebook is handed and does not use, and names it uses that nothing defines."""
    tables = [symtable(code(path), str(path), "exec")]
    for table in tables:  # which grows by the functions and comprehensions inside
        tables += table.get_children()
    names = [name for table in tables for name in table.get_symbols() if name.is_global()]
    used = {name.get_name() for name in names if name.is_referenced()}
    made = {name.get_name() for name in tables[0].get_symbols() if name.is_local()}
    handed = {key.rpartition(".")[2] for key in keys}
    unknown = used - made - handed - set(dir(builtins)) - {"display"}
    return [f"{path} does not use {name!r}" for name in sorted(handed - used)] + [
        f"{path} uses {name!r}, which nothing defines" for name in sorted(unknown)
    ]


def differences() -> list[str]:
    """What dvc.yaml names and a stage does not use, or the other way round, as lines to print."""
    lines, known = [], stages()
    for name, stage in known.items():
        named, used = set(filter(is_code, stage.get("deps", []))), set(closure(name, known))
        lines += [f"{name}: lacks {dep}" for dep in sorted(used - named)]
        lines += [f"{name}: does not use {dep}" for dep in sorted(named - used)]
    return lines


def write() -> None:
    """Put the code that every stage uses into its ``deps``; data, comments and order stay."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 110, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree = yaml.load(DVC)
    for name, stage in tree["stages"].items():
        deps = stage.setdefault("deps", [])
        deps[:] = [dep for dep in deps if not is_code(dep)] + closure(name, tree["stages"])
    text = io.StringIO()
    yaml.dump(tree, text)
    write_text(DVC, text.getvalue())


@command
def main(argv: list[str] | None) -> int:
    parser = ArgumentParser("study.pipeline.stages", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["check", "write"])
    if parser.parse_args(argv).command == "write":
        write()
    lines = differences()
    print("\n".join(lines) or "Every stage names the code that it uses.")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
