"""Execute and clean the notebooks of the study.

    python -m study stage NAME                     notebooks/compute/NAME.ipynb, as dvc.yaml calls it
    python -m study paper                          notebooks/paper/*.ipynb, several at a time
    python -m study lab                            copies to run by hand, in build/lab/
    python -m study notebooks clean|check FILES    strip outputs, or say which files have some

A stage's notebook receives the keys of params.yaml that dvc.yaml lists for it, each under its last name,
below the cell tagged ``parameters``; there are no defaults. A cell tagged ``people`` is left out where no image
of the data says who it shows, and one tagged ``nobody`` everywhere else. ``lab`` puts copies of the notebooks with these
parameters into ``build/lab/``, to be run by hand in JupyterLab with the same result.

Executing the same notebook twice gives the same bytes: outputs are stored without times, random ids,
progress bars or memory addresses, and cells run with a fixed hash seed.
"""

import errno
import itertools
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from study import source
from study.commands import parser, run_renamed
from study.pipeline import params, stages
from study.store import digest, write_text

# nbformat checks no value against a grammar of internationalised addresses, which jsonschema would
# compile at import, for more than a second.
sys.modules.setdefault("rfc3987_syntax", None)
import nbformat  # noqa: E402

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LAB = "written"  # metadata of a copy to run by hand: the digest of its cells as they were written
INJECTED = "injected-parameters"  # papermill's tag of the cell that holds the parameters
WIDGET = "application/vnd.jupyter.widget-view+json"
ONE_LEVEL = ("proxies", "ablate")  # stages at one level of bias, which their own section names
EVALUATED = Path("build/evaluate/about.json")  # what the sections begin with
# Tags of cells that are for studies of people, and for data of which nobody knows whom they show.
PEOPLE, NOBODY = "people", "nobody"
KNOWN = Path("build/data/people.csv")  # a row for everybody who is known
TIMES = Path("build/seconds.csv")  # how long the last run of every stage took, here
# Errors that are raised with a sentence for whoever runs the study.
SENTENCES = (
    "ValueError",
    "DoesNotFit",
    "FileNotFoundError",
    "ConnectionError",
    "ModuleNotFoundError",
)
# Libraries take tqdm's bar for notebooks, which warns where ipywidgets is missing and is then one of text.
NO_WIDGETS = "ignore:IProgress not found"
DIED = "DeadKernelError: the kernel died, most often for lack of memory."


class CellFailed(ValueError):
    """A cell raised; the message names the notebook, the cell and what was raised."""


# ---- notebooks as files ------------------------------------------------------------------------


def read_notebook(path: str | Path) -> nbformat.NotebookNode:
    """Read a notebook of format 4; ``ValueError`` if the file holds anything else."""
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


def headings(cell: Mapping) -> list[str]:
    """Headings of a Markdown cell, as plain text; none for other cells."""
    if cell.cell_type != "markdown":
        return []
    found = re.findall(r"(?m)^#+ +(.+?) *$", cell.source)
    return [re.sub("[`*]", "", text) for text in found]


def _tags(cell: Mapping) -> list[str]:
    return cell.metadata.get("tags", [])


def _is_injected(cell: Mapping) -> bool:
    return INJECTED in _tags(cell)


def _code_cells(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def left_out() -> str:
    """The tag of the cells that are not for these data: :data:`PEOPLE` where the stage ``data`` found nobody."""
    nobody = KNOWN.exists() and len(KNOWN.read_text(encoding="utf-8").splitlines()) < 2
    return PEOPLE if nobody else NOBODY


def read_for_data(notebook: str | Path, tag: str) -> nbformat.NotebookNode:
    """Read a notebook without the cells that have a tag; none may be left."""
    nb = read_notebook(notebook)
    nb.cells = [cell for cell in nb.cells if tag not in _tags(cell)]
    return nb


# ---- parameters --------------------------------------------------------------------------------


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


def stage_parameters(stage: str, tree: Mapping) -> dict[str, Any]:
    """The parameters that the notebook of a stage receives: those that dvc.yaml lists.

    Stages at one level of bias receive only the ends of ``bias.levels``. The ends decide who is usable;
    the levels between them change nothing for such a stage.
    """
    parameters = pick(tree, stages.parameter_keys(stage))
    if stage in ONE_LEVEL:
        levels = parameters["bias"]["levels"]
        ends = sorted({min(levels), max(levels)})
        parameters["bias"] = parameters["bias"] | {"levels": ends}
    return parameters


# ---- kernels -----------------------------------------------------------------------------------


@contextmanager
def start_kernel(one_thread: bool = False, first: str = "") -> Iterator[Any]:
    """Start a kernel of *this* interpreter in the current folder; shut it down at the end.

    It gets ready while the caller goes on. The kernel called ``python3`` would be one in the user's
    home, often of another environment.

    Parameters
    ----------
    one_thread : bool
        Whether torch and NumPy compute on one thread.
    first : str
        Code that the kernel executes while it gets ready, such as imports that take seconds.
    """
    from jupyter_core.utils import run_sync

    options = ["--InteractiveShell.xmode=Plain", "--HistoryManager.hist_file=:memory:"]
    if first:
        options.append(f"--IPKernelApp.code_to_run={first}")
    with tempfile.TemporaryDirectory() as folder:
        kernel = _kernel_manager(folder, one_thread)
        run_sync(kernel.start_kernel)(extra_arguments=options)
        try:
            yield kernel
        finally:
            run_sync(kernel.shutdown_kernel)(now=True)
            for client in kernel.clients:
                client.stop_channels()


def _kernel_manager(folder: str, one_thread: bool):
    """A manager of one kernel, which knows its clients and can empty its kernel."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from traitlets.config import Config

    environment = {
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": folder,
        "PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), NO_WIDGETS])),
    }
    if one_thread:  # read by torch, and by every BLAS of numpy
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = "1"
    clients: list = []

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict(), env=environment)

        def client(self, **options):
            clients.append(super().client(**options))
            return clients[-1]

        async def empty(self) -> None:
            """Forget all names and the count of cells, so that another notebook can run."""
            code = "get_ipython().reset()"
            await clients[-1].execute(code, silent=True, reply=True, timeout=60)

    kernel = ThisInterpreter(config=Config(KernelManager=_sockets(folder)))
    kernel.clients = clients
    return kernel


def _sockets(folder: str) -> dict[str, str]:
    """How to talk to a kernel: by files in a folder, so that no ports clash and nothing listens."""
    short = len(os.fsencode(folder)) < 90  # the system limits the path of a socket, in bytes
    return {"transport": "ipc" if short else "tcp", "connection_file": f"{folder}/k"}


# ---- executing one notebook --------------------------------------------------------------------


class Progress:
    """Which cell of a notebook runs: kept for messages and, unless ``quiet``, printed on stderr."""

    def __init__(self, source: nbformat.NotebookNode, name: str, quiet: bool):
        self.labels = _labels(source)
        self.name = name
        self.quiet = quiet
        self.current = "cell 1"

    def __call__(self, cell: Mapping, cell_index: int) -> None:
        """Called by papermill before every cell."""
        self.current = self.labels.get(cell.id, "the injected parameters")
        if not self.quiet:
            print(f"{self.name}: {self.current}", file=sys.stderr, flush=True)


def _labels(nb: nbformat.NotebookNode) -> dict[str, str]:
    """Cell id to ``cell 5 of 9 (the heading above it)``."""
    labels = {}
    heading = ""
    for number, cell in enumerate(nb.cells, start=1):
        heading = ([heading] + headings(cell))[-1]
        place = f" ({heading})" if heading else ""
        labels[cell.id] = f"cell {number} of {len(nb.cells)}{place}"
    return labels


def run_notebook(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping | None = None,
    *,
    kernel=None,
    quiet: bool = False,
    code: Mapping[str, str] | None = None,
) -> None:
    """Execute a notebook with papermill and store it normalised.

    The output is written once, at the end.

    Parameters
    ----------
    notebook, output : path
        The source, and where the executed notebook goes.
    parameters : mapping, optional
        Names that the notebook's cells find defined.
    kernel : optional
        One that :func:`start_kernel` made; by default one of its own.
    quiet : bool
        Whether not to print on stderr which cell runs.
    code : mapping of str to str, optional
        Digests of the code that it runs, by file, which the executed notebook then names.

    Raises
    ------
    CellFailed
        If a cell raises, exits, or takes the kernel down. The half-executed notebook is kept as
        ``<output stem>.failed.ipynb``.
    """
    if kernel is None:
        with start_kernel() as kernel:
            return run_notebook(notebook, output, parameters, kernel=kernel, quiet=quiet, code=code)

    notebook = Path(notebook)
    output = Path(output)
    failed = output.with_suffix(".failed.ipynb")
    source = read_for_data(notebook, left_out())
    clean(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(output.parent, os.W_OK):  # refused now, and not after all is computed
        raise PermissionError(errno.EACCES, "Permission denied", str(output.parent))
    failed.unlink(missing_ok=True)

    progress = Progress(source, output.stem, quiet)
    nb, died = _execute(source, parameters or {}, kernel, progress)
    problem = _raised(nb) or (DIED if died else "")
    if problem:
        with suppress(OSError):  # it may have failed because the disk is full
            write_text(failed, dumps(nb))
            print(f"Kept, with the whole traceback: {failed}\n", file=sys.stderr)
        raise CellFailed(f"{notebook}, {progress.current}: {problem}")

    normalise(nb)
    if code:
        nb.metadata[stages.CODE] = dict(code)
    write_text(output, dumps(nb))


def _execute(
    source: nbformat.NotebookNode, parameters: Mapping, kernel, progress: Progress
) -> tuple[nbformat.NotebookNode, bool]:
    """The notebook as far as it was executed, and whether its kernel died."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of every parameter
    died = False
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder, "executed.ipynb")
        try:
            papermill.execute_notebook(
                source,
                executed,
                parameters,
                progress_bar=False,
                stderr_file=sys.stderr,
                on_cell_execute=progress,
                km=kernel,
            )
        except papermill.PapermillExecutionError:
            pass  # the cell's output says more
        except DeadKernelError:
            died = True
        return read_notebook(executed), died


def _raised(nb: nbformat.NotebookNode) -> str:
    """What a cell raised, with its traceback printed on stderr; "" if no cell raised anything.

    This finds SystemExit too, which papermill takes for success.
    """
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    errors = [output for output in outputs if "ename" in output]
    if not errors:
        return ""
    error = errors[0]
    colour = r"\x1b\[[\d;]*m"
    traceback = re.sub(colour, "", "\n".join(error.traceback))
    if not _is_said_by_the_project(error.ename, traceback):
        print(traceback, file=sys.stderr)
    return f"{error.ename}: {error.evalue}".removesuffix(": ")


def _is_said_by_the_project(name: str, traceback: str) -> bool:
    """Whether an error is a sentence of this repository to its user, who needs no traceback.

    That is one of the kinds that such sentences are raised as, by a statement ``raise`` of a file of the
    repository. What it may have been raised from is in the notebook that is kept.
    """
    places = re.findall(r"(?m)^ *File (.+?):\d+.*\n *(.*)", traceback)
    if name not in SENTENCES or not places:
        return False
    file, statement = places[-1]
    inside = source.ROOT in Path(file).expanduser().resolve().parents
    return inside and "site-packages" not in file and statement.startswith("raise ")


# ---- stages and sections -----------------------------------------------------------------------


def run_stage(stage: str) -> bool:
    """Execute the notebook of a stage into ``build/notebooks/``.

    Returns whether that was :func:`study.pipeline.stages.done_before`.
    """
    notebook = stages.notebook_of(stage)
    output = stages.EXECUTED / f"{stage}.ipynb"
    parameters = stage_parameters(stage, params.read())  # which checks the whole file
    code = stages.code_digests(stages.read_stages()[stage].get("deps", []))

    def work() -> None:
        # The kernel imports what the notebook needs while papermill is imported here.
        with start_kernel(first=stages.imports_of(notebook)) as kernel:
            run_notebook(notebook, output, parameters, kernel=kernel, code=code)
        now = stage_parameters(stage, params.read())
        if edited := [name for name in parameters if now[name] != parameters[name]]:
            raise ValueError(
                stages.edited_meanwhile(f"{', '.join(edited)} of {params.PARAMS}", stage)
            )

    return stages.done_before(stage, parameters, work)


def run_paper() -> bool:
    """Execute the section notebooks into ``build/paper/``, one kernel a processor.

    Returns whether all of them had been executed before.

    A section that was executed before with the same code and results is put back. A kernel runs many
    sections and is emptied in between, because most of a section's time would be imports. A section
    that fails stops no other; the error at the end names every one that failed.
    """
    folder = Path("build/paper")
    shutil.rmtree(folder, ignore_errors=True)
    stood = stages.stamps("paper")
    inputs = stages.paper_inputs()
    tag = left_out()
    shown = [path for path in stages.PAPER.glob("*.ipynb") if read_for_data(path, tag).cells]
    kept = {path: stages.kept_section(path, inputs) for path in shown}
    sections = sorted(path for path in kept if not stages.put_section_back(kept[path], folder))
    if len(sections) < len(kept):
        print(
            f"paper: {len(kept) - len(sections)} of {len(kept)} sections are put back as they were"
        )
    waiting = iter(sections)  # shared: each thread takes the next one
    failures: list[str] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        list(pool.map(lambda _: _run_sections(waiting, folder, failures), sections))
    finally:
        list(waiting)  # after an interrupt: nothing more is begun
        pool.shutdown(cancel_futures=True)
    stages.check_unedited("paper", stood)
    for path in sections:
        if inputs and (folder / path.name).exists():
            stages.keep_section(folder / path.name, kept[path])
    if failures:
        raise CellFailed("\nerror: ".join(sorted(failures)))
    return not sections


def _run_sections(waiting: Iterator[Path], folder: Path, failures: list[str]) -> None:
    """Execute sections until none is waiting; a failure ends the kernel, and another one goes on."""
    from jupyter_core.utils import ensure_event_loop, run_sync

    try:
        while path := next(waiting, None):
            with start_kernel(one_thread=True) as kernel:
                while path and _run_section(path, folder, kernel, failures):
                    run_sync(kernel.empty)()
                    path = next(waiting, None)
    finally:
        ensure_event_loop().close()  # this thread's, which Jupyter leaves open


def _run_section(path: Path, folder: Path, kernel, failures: list[str]) -> bool:
    """Execute one section; return whether that went well."""
    began = time.monotonic()
    try:
        run_notebook(path, folder / path.name, kernel=kernel, quiet=True)
    except ValueError as error:
        failures.append(str(error))
        return False
    print(f"{path.stem}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return True


def read_times(path: str | Path = TIMES) -> dict[str, float]:
    """Seconds by stage: the first two columns of a CSV, if it exists."""
    text = Path(path).read_text() if Path(path).exists() else ""
    return {name: float(took) for name, took in re.findall(r"(?m)^([^,]+),([\d.]+)", text)}


def record_time(stage: str, took: float) -> None:
    """Keep how many seconds a stage took, for an estimate of the next run."""
    times = read_times() | {stage: round(took, 1)}
    with suppress(OSError):  # the stage itself is done
        write_text(TIMES, "".join(f"{name},{value}\n" for name, value in sorted(times.items())))


def lab() -> list[Path]:
    """Write copies of the notebooks with their parameters, which work in this folder wherever they start."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    tree = params.read()
    tag = left_out()
    written = []
    for path in [*sorted(stages.COMPUTE.glob("*.ipynb")), *sorted(stages.PAPER.glob("*.ipynb"))]:
        nb = load_notebook_node(str(path))
        nb.cells = [cell for cell in nb.cells if tag not in _tags(cell)]
        if not nb.cells:
            continue
        parameters = stage_parameters(path.stem, tree) if path.parent == stages.COMPUTE else {}
        if parameters:
            nb = parameterize_notebook(nb, parameters)
        for cell in _code_cells(nb)[:1]:
            cell.source = f"import os\n\nos.chdir({str(Path.cwd())!r})\n{cell.source}"
        _tidy(nb)
        nb.metadata[LAB] = _sources(nb)
        written.append(Path("build/lab", path.name))
        _put_aside(written[-1], nb)
        write_text(written[-1], dumps(nb))
    return written


def _sources(nb: nbformat.NotebookNode) -> str:
    """Digest of the sources of a notebook's cells."""
    return digest([[cell.cell_type, cell.source] for cell in nb.cells])[:16]


def _put_aside(path: Path, nb: nbformat.NotebookNode) -> None:
    """Rename a copy whose cells were edited, so that a new one does not take its place."""
    if not path.exists():
        return
    there = read_notebook(path)
    if _sources(there) in (there.metadata.get(LAB), nb.metadata[LAB]):
        return
    numbers = itertools.count(1)
    aside = next(
        a for n in numbers if not (a := path.with_stem(f"{path.stem}-edited-{n}")).exists()
    )
    path.rename(aside)
    print(f"{path} was edited, and is {aside.name} now", file=sys.stderr)


# ---- cleaning ----------------------------------------------------------------------------------


def _tidy(nb: nbformat.NotebookNode) -> None:
    """Keep metadata that is known, and number the cells; an injected cell does not shift the others."""
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC})
    nb.nbformat = 4
    nb.nbformat_minor = 5
    number = 0
    for cell in nb.cells:
        tags = _tags(cell)
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if INJECTED in tags:
            cell.id = INJECTED
        else:
            number += 1
            cell.id = f"cell-{number:02d}"


def clean(nb: nbformat.NotebookNode) -> None:
    """Make a notebook a source, in place: no outputs, counts or volatile metadata."""
    nb.cells = [cell for cell in nb.cells if not _is_injected(cell)]
    for cell in _code_cells(nb):
        cell.outputs = []
        cell.execution_count = None
    _tidy(nb)


def normalise(nb: nbformat.NotebookNode) -> None:
    """Remove what differs from run to run from an executed notebook, in place.

    That includes widget views, the random ids of styled tables, and how stdout is cut into pieces.
    """
    _tidy(nb)
    for cell in _code_cells(nb):
        cell.outputs = _joined(cell.outputs)
        for number, output in enumerate(cell.outputs):
            _normalise_output(output, f"T_{cell.id}-{number}")


def _joined(outputs: list) -> list:
    """The outputs of a cell without stderr, and with consecutive pieces of stdout as one."""
    kept: list[Any] = []
    for output in outputs:
        name = output.get("name")
        follows = kept and output.output_type == kept[-1].output_type == "stream"
        if follows and name == "stdout":
            kept[-1].text += output.text
        elif name != "stderr":
            kept.append(output)
    return kept


def _normalise_output(output, table_id: str) -> None:
    """Remove a widget's view and memory addresses; give a styled table an id that stays."""
    data = output.get("data", {})
    data.pop(WIDGET, None)
    for holder, key in [(data, "text/html"), (data, "text/plain"), (output, "text")]:
        if key in holder:
            text = re.sub(r" at 0x[0-9a-f]{6,}", "", holder[key])
            holder[key] = re.sub(r"\bT_[0-9a-f]{5}(?![0-9a-z])", table_id, text)


def clean_files(paths: Iterable[Path], check: bool) -> int:
    """Clean notebooks, or only say which are not clean; return the exit status."""
    dirty = 0
    for path in paths:
        nb = read_notebook(path)
        clean(nb)
        if dumps(nb) == path.read_text(encoding="utf-8"):
            continue
        dirty += 1
        if check:
            print(f"{path} is not clean")
        else:
            write_text(path, dumps(nb))
            print(f"{path} cleaned")
    return int(check and dirty > 0)


# ---- commands ----------------------------------------------------------------------------------


def _timed(stage: str, work: Callable[[], bool]) -> None:
    """Do the work of a stage, and keep how long it took unless it was done before."""
    began = time.monotonic()
    try:
        before = work()
    except KeyboardInterrupt:
        logging.disable()  # asyncio would complain about the cell it can no longer await
        raise
    if not before:
        record_time(stage, time.monotonic() - began)


def main_stage(arguments: list[str]) -> None:
    options = parser("stage")
    options.add_argument("stage", help="a stage of dvc.yaml that has a notebook")
    stage = options.parse_args(arguments).stage
    _timed(stage, partial(run_stage, stage))


def main_paper(arguments: list[str]) -> None:
    parser("paper").parse_args(arguments)
    _timed("paper", run_paper)


def main_lab(arguments: list[str]) -> None:
    parser("lab").parse_args(arguments)
    print(*lab(), sep="\n")
    missing = [path for path in (Path("data/card.json"), EVALUATED) if not path.exists()]
    if missing:
        print(
            f"warning: {missing[0]} is missing, so only the first notebooks can run: `make reproduce` makes "
            "what the others read",
            file=sys.stderr,
        )


def main_notebooks(arguments: list[str]) -> int:
    options = parser("notebooks")
    options.add_argument(
        "command",
        choices=["clean", "check"],
        help="check changes nothing, and fails if one is dirty",
    )
    options.add_argument("notebooks", type=Path, nargs="+")
    args = options.parse_args(arguments)
    return clean_files(args.notebooks, check=args.command == "check")


if __name__ == "__main__":
    run_renamed(__spec__.name)
