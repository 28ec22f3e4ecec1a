"""Run and clean the study's notebooks.

    python -m study.pipeline.notebook run STAGE        notebooks/compute/STAGE.ipynb, as dvc.yaml has it
    python -m study.pipeline.notebook paper            notebooks/paper/*.ipynb, several at a time
    python -m study.pipeline.notebook clean [--check] FILES
    python -m study.pipeline.notebook lab

``run`` hands a notebook the keys of params.yaml that its stage lists in dvc.yaml, each under its last
name, below the cell tagged ``parameters``; there are no defaults. ``lab`` puts copies of the notebooks
with these parameters into ``build/lab/``, to be run by hand in JupyterLab with the same result.

Executing the same notebook twice gives the same bytes: outputs are stored without times, random ids,
progress bars or memory addresses, and cells run with a fixed hash seed.
"""

import errno
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from study.pipeline import params, stages
from study.store import write_text

# nbformat checks no value against a grammar of internationalised addresses, which jsonschema would
# compile at import, for more than a second.
sys.modules.setdefault("rfc3987_syntax", None)
import nbformat  # noqa: E402

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
INJECTED = "injected-parameters"
ONE_LEVEL = ("proxies", "ablate")  # stages whose own section says which
TIMES = Path("build/seconds.csv")  # how long the last run of every stage took, here


class CellFailed(ValueError):
    """A cell raised; the message names the notebook, the cell and what was raised."""


def read(path: str | Path) -> nbformat.NotebookNode:
    """A notebook of format 4; a file that is none raises ``ValueError``."""
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


def _tags(cell: Mapping) -> list[str]:
    return cell.metadata.get("tags", [])


def pick(tree: Mapping, keys: Iterable[str]) -> dict[str, Any]:
    """Dotted keys of a tree under their last names: ``["embed", "weights.tau"]`` gives
    ``{"embed": {...}, "tau": 0.01}``. A key that the tree lacks raises ``ValueError``."""
    picked = {}
    for key in keys:
        value = tree
        for name in key.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise ValueError(f"dvc.yaml lists the key {key!r}, which params.yaml does not have")
            value = value[name]
        picked[name] = value
    return picked


def handed(stage: str, tree: Mapping) -> dict[str, Any]:
    """The parameters that the notebook of a stage is handed: those that dvc.yaml lists.

    Of bias.levels, stages of one level are handed the ends, as these decide who is usable and the others
    nothing: so another level between them changes nothing for such a stage.
    """
    given = pick(tree, stages.parameters(stage))
    if stage in ONE_LEVEL:
        levels = given["bias"]["levels"]
        given["bias"] = given["bias"] | {"levels": sorted({min(levels), max(levels)})}
    return given


def _sockets(folder: str) -> dict[str, str]:
    """How to talk to a kernel, by files in a folder: no ports to race for, nothing listens."""
    transport = "ipc" if len(os.fsencode(folder)) < 90 else "tcp"  # a path is short, in bytes
    return {"transport": transport, "connection_file": f"{folder}/k"}


@contextmanager
def started(one_thread: bool = False, first: str = "") -> Iterator[Any]:
    """A kernel of *this* interpreter in the current folder, which gets ready while the caller goes on:
    ``python3`` looked up by name would be one in the user's home, often of another environment.

    ``first`` is code, such as imports that take seconds, that it executes meanwhile.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_core.utils import run_sync
    from traitlets.config import Config

    with tempfile.TemporaryDirectory() as folder:
        inline = "module://matplotlib_inline.backend_inline"
        env = {"PYTHONHASHSEED": "0", "MPLBACKEND": inline, "IPYTHONDIR": folder}
        if one_thread:  # read by torch, and by every BLAS of numpy
            names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"
            env |= dict.fromkeys(names, "1")
        clients: list = []

        class ThisInterpreter(AsyncKernelManager):
            kernel_spec = KernelSpec(**get_kernel_dict(), env=env)

            def client(self, **how):
                clients.append(super().client(**how))
                return clients[-1]

            async def empty(self) -> None:
                """Forget all names and how many cells have run, so that another notebook may."""
                code = "get_ipython().reset()"
                await clients[-1].execute(code, silent=True, reply=True, timeout=60)

        kernel = ThisInterpreter(config=Config(KernelManager=_sockets(folder)))
        told = ["--InteractiveShell.xmode=Plain", "--HistoryManager.hist_file=:memory:"]
        told += [f"--IPKernelApp.code_to_run={first}"] if first else []
        run_sync(kernel.start_kernel)(extra_arguments=told)
        try:
            yield kernel
        finally:
            run_sync(kernel.shutdown_kernel)(now=True)
            for client in clients:
                client.stop_channels()


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


def run(notebook, output, parameters: Mapping | None = None, *, kernel=None, quiet=False) -> None:
    """Execute a notebook with papermill, with some names defined, and store it normalised.

    The kernel is one that has :func:`started`, by default one of its own. Unless ``quiet``, it is said
    on stderr which cell runs. The output is written once, at the end. If a cell raises, exits, or takes
    the kernel down, ``CellFailed`` says which, and the half-executed notebook is kept as
    ``<output stem>.failed.ipynb``.
    """
    if kernel is None:
        with started() as kernel:
            return run(notebook, output, parameters, kernel=kernel, quiet=quiet)
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of every parameter
    from nbclient.exceptions import DeadKernelError

    notebook, output = Path(notebook), Path(output)
    source = read(notebook)
    clean(source)
    labels = _labels(source)
    failed = output.with_suffix(".failed.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(output.parent, os.W_OK):  # said now, and not after all is computed
        raise PermissionError(errno.EACCES, "Permission denied", str(output.parent))
    failed.unlink(missing_ok=True)
    begun, raised = ["cell 1"], ""

    def begin(cell, cell_index):
        begun.append(labels.get(cell.id, "the injected parameters"))
        if not quiet:
            print(f"{output.stem}: {begun[-1]}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder, "executed.ipynb")
        try:
            papermill.execute_notebook(
                source, executed, parameters or {}, progress_bar=False, stderr_file=sys.stderr,
                on_cell_execute=begin, km=kernel,
            )  # fmt: skip
        except papermill.PapermillExecutionError:
            pass  # the cell's output says more
        except DeadKernelError:
            raised = "DeadKernelError: the kernel died, most often for lack of memory."
        nb = read(executed)

    errors = [out for cell in nb.cells for out in cell.get("outputs", []) if "ename" in out]
    if errors:  # also SystemExit, which papermill takes for success
        raised = f"{errors[0].ename}: {errors[0].evalue}".removesuffix(": ")
        traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(errors[0].traceback))
        print(traceback, file=sys.stderr)
    if raised:
        with suppress(OSError):  # a full disk is what it may have failed for
            write_text(failed, dumps(nb))
            print(f"The half-executed notebook is kept: {failed}\n", file=sys.stderr)
        raise CellFailed(f"{notebook}, {begun[-1]}: {raised}")

    normalise(nb)
    write_text(output, dumps(nb))


def run_stage(stage: str) -> bool:
    """Execute the notebook of a stage with its parameters, into ``build/notebooks/``; returns whether
    that was :func:`study.pipeline.stages.done_before`."""
    output = f"build/notebooks/{stage}.ipynb"
    notebook = stages.notebook(stage)
    # Beside the reading of what it works on.
    with started(first=stages.imports(notebook)) as kernel:
        given = handed(stage, params.read())  # which checks the whole file
        work = partial(run, notebook, output, given, kernel=kernel)
        return stages.done_before(stage, given, work)


def run_paper() -> None:
    """Execute the section notebooks into ``build/paper/``, in as many kernels as there are processors:
    one runs many, emptied in between, as most of a section's time would be imports. Every section that
    failed is named after the others have run.
    """
    from jupyter_core.utils import ensure_event_loop, run_sync

    folder, failed = Path("build/paper"), []
    shutil.rmtree(folder, ignore_errors=True)
    found = sorted(stages.PAPER.glob("*.ipynb"))
    left = iter(found)  # shared: each thread takes what is next

    def section(path: Path, kernel) -> bool:
        began = time.monotonic()
        try:
            run(path, folder / path.name, kernel=kernel, quiet=True)
        except ValueError as error:
            failed.append(str(error))
            return False
        print(f"{path.stem}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        return True

    def sections(_) -> None:
        try:
            while path := next(left, None):
                with started(one_thread=True) as kernel:  # another one after a failure
                    while path and section(path, kernel):
                        run_sync(kernel.empty)()
                        path = next(left, None)
        finally:
            ensure_event_loop().close()  # this thread's, which Jupyter leaves open

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        list(pool.map(sections, found))
    finally:
        list(left)  # an interrupt: nothing more is begun
        pool.shutdown(cancel_futures=True)
    if failed:
        raise CellFailed("\nerror: ".join(sorted(failed)))


def seconds(path: str | Path = TIMES) -> dict[str, float]:
    """Seconds by stage: the first two columns of a CSV, if it exists."""
    text = Path(path).read_text() if Path(path).exists() else ""
    return {name: float(took) for name, took in re.findall(r"(?m)^([^,]+),([\d.]+)", text)}


def _remember(stage: str, took: float) -> None:
    """Keep how long a stage took, for an estimate of the next run."""
    known = seconds() | {stage: round(took, 1)}
    with suppress(OSError):  # the stage itself is done
        write_text(TIMES, "".join(f"{name},{value}\n" for name, value in sorted(known.items())))


def lab() -> list[Path]:
    """Copies of the notebooks with their parameters, which work in this folder wherever they start."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    tree = params.read()
    notebooks = sorted(stages.COMPUTE.glob("*.ipynb")) + sorted(stages.PAPER.glob("*.ipynb"))
    written = []
    for path in notebooks:
        nb = load_notebook_node(str(path))
        if path.parent == stages.COMPUTE and (given := handed(path.stem, tree)):
            nb = parameterize_notebook(nb, given)
        for cell in [cell for cell in nb.cells if cell.cell_type == "code"][:1]:
            cell.source = f"import os\n\nos.chdir({str(Path.cwd())!r})\n{cell.source}"
        _tidy(nb)
        written.append(Path("build/lab", path.name))
        write_text(written[-1], dumps(nb))
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


def clean(nb: nbformat.NotebookNode) -> None:
    """Make a notebook a source, in place: no outputs, counts or volatile metadata."""
    nb.cells = [cell for cell in nb.cells if INJECTED not in _tags(cell)]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    _tidy(nb)


def normalise(nb: nbformat.NotebookNode) -> None:
    """Take everything out of an executed notebook, in place, that differs from run to run: also
    widget views, the random ids of styled tables, and how stdout is cut into pieces."""
    _tidy(nb)
    for cell in (cell for cell in nb.cells if cell.cell_type == "code"):
        kept: list[Any] = []
        for out in cell.outputs:
            if (
                kept
                and out.output_type == kept[-1].output_type == "stream"
                and out.name == "stdout"
            ):
                kept[-1].text += out.text
            elif out.get("name") != "stderr":
                kept.append(out)
        cell.outputs = kept
        for number, out in enumerate(kept):
            data = out.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            for holder, key in [(data, "text/html"), (data, "text/plain"), (out, "text")]:
                if key in holder:
                    text = re.sub(r" at 0x[0-9a-f]{6,}", "", holder[key])
                    styled = f"T_{cell.id}-{number}"
                    holder[key] = re.sub(r"\bT_[0-9a-f]{5}(?![0-9a-z])", styled, text)


@params.command
def main(argv: list[str] | None) -> int:
    parser = ArgumentParser("study.pipeline.notebook", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="execute the notebook of a stage").add_argument("stage")
    commands.add_parser("paper", help="execute the section notebooks")
    add = commands.add_parser("clean", help="strip outputs, counts and volatile metadata")
    add.add_argument("notebooks", type=Path, nargs="+")
    add.add_argument("--check", action="store_true", help="change nothing, fail if dirty")
    commands.add_parser("lab", help="copies of the notebooks with the current parameters")
    args = parser.parse_args(argv)
    if args.command == "clean":
        return _clean(args.notebooks, args.check)
    if args.command == "lab":
        print(*lab(), sep="\n")
        return 0
    began = time.monotonic()
    try:
        if args.command == "run":
            before = run_stage(args.stage)
        else:
            before = stages.done_before("paper", {}, run_paper)
    except KeyboardInterrupt:
        logging.disable()  # asyncio would complain about the cell it can no longer await
        print("interrupted; the next run goes on from the work that is finished", file=sys.stderr)
        return 130
    if not before:
        _remember(getattr(args, "stage", "paper"), time.monotonic() - began)
    return 0


def _clean(paths: list[Path], check: bool) -> int:
    dirty = 0
    for path in paths:
        nb = read(path)
        clean(nb)
        if dumps(nb) != path.read_text(encoding="utf-8"):
            dirty += 1
            print(f"{path} is not clean" if check else f"{path} cleaned")
            if not check:
                write_text(path, dumps(nb))
    return int(dirty > 0 and check)


if __name__ == "__main__":
    sys.exit(main())
