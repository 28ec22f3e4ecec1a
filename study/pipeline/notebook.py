"""Run and clean the study's notebooks.

    python -m study.pipeline.notebook run notebooks/03_weights.ipynb build/weights-0.5.ipynb \\
        --params study weights bias.kind -p bias_level 0.5
    python -m study.pipeline.notebook clean [--check] notebooks/*.ipynb
    python -m study.pipeline.notebook lab

`run` is what the pipeline's stages call; ``lab`` puts the notebooks into ``build/lab/`` with the
parameters the pipeline would give them, to be run by hand in JupyterLab with the same result.

A notebook's cell tagged ``parameters`` declares what the notebook needs.  Its defaults serve
interactive work only: ``run`` wants a value for every declared parameter and refuses every other
one, so no result ever rests on a default or on a misspelt name.

Executing the same notebook twice gives the same bytes: outputs are stored without times, random
ids, progress bars or memory addresses, and cells run with a fixed hash seed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from ruamel.yaml import YAML, YAMLError

from study.pipeline import params

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


INJECTED = "injected-parameters"


TIMES = Path("build/seconds.csv")  # how long the last run of every cell of the pipeline took, here


class CellFailed(RuntimeError):
    """A cell raised; the message names the notebook, the cell and what was raised."""


def read(path: str | Path) -> nbformat.NotebookNode:
    """Read a notebook of format 4; a file that is none raises ``ValueError``."""
    try:
        nb = nbformat.v4.reads(Path(path).read_text(encoding="utf-8"))
        if nb.nbformat == 4 and isinstance(nb.cells, list):
            return nb
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not a Jupyter notebook of format 4; save it again from Jupyter.")


def dumps(nb: nbformat.NotebookNode) -> str:
    """The one way a notebook is stored: indent 1, sorted keys, a newline at the end."""
    return nbformat.v4.writes(nb, indent=1, sort_keys=True) + "\n"


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all, so that an interrupted run never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _tags(cell: Mapping) -> list[str]:
    return cell.metadata.get("tags", [])


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"the nearest name is {close[0]!r}" if close else "there are none"


def _dotted(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` becomes ``{"a": {"b": 1}, "a.b": 1}``."""
    flat = {}
    for key, value in tree.items():
        flat[f"{prefix}{key}"] = value
        if isinstance(value, Mapping):
            flat |= _dotted(value, f"{prefix}{key}.")
    return flat


def pick(params_file: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """Take dotted keys out of a YAML file, each under its last name.

    ``["embed", "weights.tau"]`` gives ``{"embed": {...}, "tau": 0.01}``.  The parser is the one
    DVC uses (YAML 1.2: ``1e-3`` is a number), so both always see the same values.

    Raises
    ------
    ValueError
        If the file lacks a key, or two keys end in the same name.
    """
    known = _dotted(YAML(typ="safe").load(Path(params_file)) or {}) if keys else {}
    picked: dict[str, Any] = {}
    for key in keys:
        name = key.rpartition(".")[2]
        if key not in known:
            raise ValueError(f"{params_file} has no key {key!r}; {_nearest(key, known)}.")
        if name in picked:
            raise ValueError(f"{key!r} would be the second parameter named {name!r}; pass one.")
        picked[name] = known[key]
    return picked


def _scalar(text: str) -> Any:
    """A command-line value, read as params.yaml would read it."""
    value = YAML(typ="safe").load(text)
    if isinstance(value, (Mapping, list)):
        raise ValueError(f"-p takes single values, not {text!r}; put it into the params file.")
    return value


def declared(nb: nbformat.NotebookNode, source: str | Path = "the notebook") -> dict[str, Any]:
    """Names assigned in the cell tagged ``parameters``, with their defaults.

    A default that is not a literal is given as None.  No such cell: no parameters.
    """
    cells = [cell for cell in nb.cells if "parameters" in _tags(cell)]
    if len(cells) > 1:
        raise ValueError(f"{source} has {len(cells)} cells tagged 'parameters'; keep one.")
    names: dict[str, Any] = {}
    for statement in ast.parse(cells[0].source, str(source)).body if cells else []:
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
            continue
        targets = getattr(statement, "targets", None) or [statement.target]
        try:
            default = ast.literal_eval(statement.value)
        except (ValueError, TypeError):
            default = None
        names |= {target.id: default for target in targets if isinstance(target, ast.Name)}
    return names


def _checked(nb: nbformat.NotebookNode, parameters: Mapping, source: str | Path) -> dict[str, Any]:
    """The parameters in the order of their declaration, or one clear error."""
    names = declared(nb, source)
    for name, value in parameters.items():
        if name not in names:
            raise ValueError(
                f"{source} declares no parameter {name!r}; {_nearest(name, names)} (its cell"
                " tagged 'parameters' declares them)."
            )
        default, number = names[name], (int, float)
        expected = number if type(default) in number else type(default)
        right = isinstance(value, expected) and isinstance(value, bool) == isinstance(default, bool)
        if default is not None and value is not None and not right:
            raise ValueError(
                f"{source}: parameter {name!r} is {value!r}, but its declaration"
                f" ({name} = {default!r}) asks for a {type(default).__name__}."
            )
    missing = [name for name in names if name not in parameters]
    if missing:
        raise ValueError(
            f"{source} declares the parameter {missing[0]!r}, but no value was passed; add it to"
            " --params (from the params file) or -p (a name and a value)."
        )
    return {name: parameters[name] for name in names}


def _kernel(folder: str) -> dict[str, Any]:
    """Settings that start *this* interpreter as the kernel, and nothing of the user's with it.

    Looking ``python3`` up by name would prefer a kernel installed in the user's home, often one
    of another environment.  Sockets and IPython's own files live in ``folder``.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from traitlets.config import Config

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self):
            inline = "module://matplotlib_inline.backend_inline"
            env = {"PYTHONHASHSEED": "0", "MPLBACKEND": inline, "IPYTHONDIR": folder}
            return KernelSpec(**get_kernel_dict(), env=env)

    # Files as sockets: no ports to race for, nothing listens.  Their paths must be short.
    transport = "ipc" if len(folder) < 90 else "tcp"
    sockets = {"transport": transport, "connection_file": f"{folder}/k"}
    return {
        "kernel_name": "python3",
        "kernel_manager_class": ThisInterpreter,
        "config": Config(KernelManager=sockets),
        "extra_arguments": ["--InteractiveShell.xmode=Plain"],
    }


def headings(cell: Mapping) -> list[str]:
    """Headings of a Markdown cell, as plain text; none for other cells."""
    if cell.cell_type != "markdown":
        return []
    return [re.sub("[`*]", "", text) for text in re.findall(r"(?m)^#+ +(.+?) *$", cell.source)]


def _labels(nb: nbformat.NotebookNode) -> dict[str, str]:
    """Cell id to ``cell 5 (the heading it stands under)``."""
    labels, heading = {}, ""
    for number, cell in enumerate(nb.cells, start=1):
        heading = ([heading] + headings(cell))[-1]
        labels[cell.id] = f"cell {number} of {len(nb.cells)}" + (f" ({heading})" if heading else "")
    return labels


def run(
    notebook: str | Path, output: str | Path, parameters: Mapping[str, Any] | None = None
) -> Path:
    """Execute a notebook with papermill and store it normalised.

    The kernel is this interpreter and works in the current folder.  Progress and what the
    notebook writes to stderr go to stderr.  The output is written once, at the end; of a run that
    fails, the half-executed notebook is kept as ``<output stem>.failed.ipynb``.

    Parameters
    ----------
    notebook, output
        Source and executed notebook; the output's folder is made.
    parameters
        A value for each name the notebook declares, and for nothing else.

    Raises
    ------
    ValueError
        If a parameter is unknown, missing, or of another type than the declared default.
    CellFailed
        If a cell raises, exits, or takes the kernel down.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    notebook, output = Path(notebook), Path(output)
    source = read(notebook)
    clean(source)
    parameters = _checked(source, parameters or {}, notebook)
    labels = _labels(source)
    failed = output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    begun = ["cell 1"]

    def progress(cell, cell_index):
        begun.append(labels.get(cell.id, "the injected parameters"))
        print(f"{output.stem}: {begun[-1]}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder, "executed.ipynb")
        raised = ("", "")
        try:
            papermill.execute_notebook(
                source,
                executed,
                parameters,
                progress_bar=False,
                stderr_file=sys.stderr,
                on_cell_execute=progress,
                **_kernel(folder),
            )
        except papermill.PapermillExecutionError as error:
            raised = (error.ename, error.evalue)
        except DeadKernelError:
            raised = ("DeadKernelError", "the kernel died, most often for lack of memory.")
        nb = read(executed)

    errors = [out for cell in nb.cells for out in cell.get("outputs", []) if "ename" in out]
    if errors:  # also SystemExit, which papermill takes for success
        raised = (errors[0].ename, errors[0].evalue)
        traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(errors[0].traceback))
        print(traceback, file=sys.stderr)
    if raised[0]:
        write(failed, dumps(nb))
        print(f"The half-executed notebook is kept: {failed}\n", file=sys.stderr)
        raise CellFailed(f"{notebook}, {begun[-1]}: {': '.join(filter(None, raised))}")

    for cell_id in normalise(nb):
        label = labels.get(cell_id, cell_id)
        print(f"{notebook}, {label}: a memory address was cut from its output", file=sys.stderr)
    write(output, dumps(nb))
    return output


def seconds(path: str | Path = TIMES) -> dict[str, float]:
    """Seconds by stage (``train@0.9``), as :func:`_remember` keeps them."""
    if not Path(path).exists():
        return {}
    found = {}
    for line in Path(path).read_text().splitlines():
        try:
            name, value, *_ = line.split(",")
            found[name] = float(value)
        except ValueError:  # a header, or a line cut short
            continue
    return found


def _remember(output: Path, took: float) -> None:
    """Keep how long the notebook of a stage took, for an estimate of the next run."""
    stage = re.sub(r"^\d+_", "", output.stem).replace("-", "@", 1)
    known = seconds() | {stage: round(took, 1)}
    write(TIMES, "".join(f"{name},{value}\n" for name, value in sorted(known.items())))


def commands(dvc_file: str | Path = "dvc.yaml") -> list[list[str]]:
    """The ``run`` command of every cell of the pipeline, as its words after ``run``."""
    tree = YAML(typ="safe").load(Path(params.PARAMS))
    known, found = _dotted(tree), []
    for stage in YAML(typ="safe").load(Path(dvc_file))["stages"].values():
        if "study.pipeline.notebook run" not in stage.get("cmd", ""):
            continue
        levels = [None]
        if "matrix" in stage:
            levels = known[stage["matrix"]["level"].strip("${}")]
        for level in levels:
            words = stage["cmd"].replace("${item.level}", str(level)).split()
            found.append(words[words.index("run") + 1 :])
    return found


def lab(folder: str | Path = "build/lab") -> list[Path]:
    """Copies of the notebooks that hold the parameters the pipeline would give them.

    They work in the repository's folder, whatever folder Jupyter starts them in.
    """
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    params.read()
    written = []
    for words in commands():
        notebook, output, *options = words
        parser = argparse.ArgumentParser()
        parser.add_argument("--params", nargs="*", default=[])
        parser.add_argument("-p", nargs=2, action="append", default=[])
        args = parser.parse_args(options)
        given = pick(params.PARAMS, args.params) | {name: _scalar(value) for name, value in args.p}
        source = load_notebook_node(notebook)
        given = _checked(source, given, notebook)
        nb = parameterize_notebook(source, given, kernel_name="python3", language="python")
        (cell,) = [cell for cell in nb.cells if INJECTED in _tags(cell)]
        cell.source = f"import os\n\nos.chdir({str(Path.cwd())!r})\n{cell.source}"
        _tidy(nb)
        written.append(Path(folder, Path(output).name))
        write(written[-1], dumps(nb))
    return written


def _tidy(nb: nbformat.NotebookNode) -> None:
    """Whitelisted metadata, ids by position (an injected cell does not shift the others)."""
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC})
    nb.nbformat, nb.nbformat_minor = 4, 5
    number = 0
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({"tags": _tags(cell)} if _tags(cell) else {})
        number += INJECTED not in _tags(cell)
        cell.id = INJECTED if INJECTED in _tags(cell) else f"cell-{number:02d}"


def clean(nb: nbformat.NotebookNode) -> bool:
    """Make a notebook a source, in place: no outputs, counts or volatile metadata.

    Returns
    -------
    bool
        Whether anything changed.
    """
    before = copy.deepcopy(nb)
    nb.cells = [cell for cell in nb.cells if INJECTED not in _tags(cell)]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    _tidy(nb)
    return nb != before


def normalise(nb: nbformat.NotebookNode) -> list[str]:
    """Take everything out of an executed notebook, in place, that differs from run to run.

    Goes: metadata, stderr (progress bars), widget views, memory addresses, the random ids of
    styled tables.  Adjacent pieces of stdout are joined, since how a stream is cut is chance.

    Returns
    -------
    list of str
        Ids of the cells that printed a memory address.
    """
    _tidy(nb)
    printed: dict[str, None] = {}
    count = 0
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        count += cell.execution_count is not None
        cell.execution_count = count if cell.execution_count is not None else None
        outputs: list[Any] = []
        for out in cell.outputs:
            if out.output_type == "stream":
                if out.name == "stderr":
                    continue
                if outputs and outputs[-1].output_type == "stream":
                    outputs[-1].text += out.text
                    continue
            if "execution_count" in out:
                out.execution_count = count
            outputs.append(out)
        cell.outputs = outputs
        for number, out in enumerate(outputs):
            data = out.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            styled = f"T_{cell.id}-{number}"
            for holder, key in [(data, "text/html"), (data, "text/plain"), (out, "text")]:
                if key in holder:
                    text = re.sub(r"\bT_[0-9a-f]{5}(?![0-9a-z])", styled, holder[key])
                    holder[key], cuts = re.subn(r" at 0x[0-9a-f]{6,}", "", text)
                    if cuts and not (key == "text/plain" and len(data) > 1):  # else unseen
                        printed[cell.id] = None
    return list(printed)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m study.pipeline.notebook``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="study.pipeline.notebook", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("run", help="execute a notebook")
    add.add_argument("notebook", type=Path)
    add.add_argument("output", type=Path)
    add.add_argument("--params", nargs="*", default=[], metavar="KEY", help="keys of the file")
    add.add_argument("--params-file", type=Path, default=params.PARAMS)
    add.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add = commands.add_parser("clean", help="strip outputs, counts and volatile metadata")
    add.add_argument("notebooks", type=Path, nargs="+")
    add.add_argument("--check", action="store_true", help="change nothing, fail if dirty")
    commands.add_parser("lab", help="copies of the notebooks with the current parameters")
    args = parser.parse_args(argv)
    try:
        return {"run": _run, "clean": _clean, "lab": _lab}[args.command](args)
    except (ValueError, OSError, SyntaxError, YAMLError, CellFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        logging.disable()  # asyncio would complain about the cell it can no longer await
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.params_file == params.PARAMS and args.params:
        params.read()  # the whole file: a slip in it should not wait for the stage that it is about
    parameters = pick(args.params_file, args.params)
    for name, value in args.p:
        if name in parameters:
            raise ValueError(f"the parameter {name!r} was passed twice; pass it once.")
        parameters[name] = _scalar(value)
    began = time.monotonic()
    run(args.notebook, args.output, parameters)
    if args.params_file == params.PARAMS and args.params:
        _remember(args.output, time.monotonic() - began)
    return 0


def _lab(args: argparse.Namespace) -> int:
    for path in lab():
        print(path)
    return 0


def _clean(args: argparse.Namespace) -> int:
    dirty = []
    for path in args.notebooks:
        nb = read(path)
        clean(nb)
        if dumps(nb) != path.read_text(encoding="utf-8"):
            dirty.append(path)
            if not args.check:
                write(path, dumps(nb))
    for path in dirty:
        print(f"{path} is not clean" if args.check else f"{path} cleaned")
    return int(bool(dirty and args.check))


if __name__ == "__main__":
    sys.exit(main())
