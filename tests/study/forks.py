"""A Python that starts in no time, forked from a process that has imported the packages.

A study is run by many processes: DVC, a process and a kernel for every stage, kernels for the sections. Each
of them imports the same packages, for some 5 s, of which the work of a tiny study is a fraction.
:class:`Forks` keeps a process that has imported them, and makes a folder of programs: ``python``,
``python3`` and ``dvc``. Started like any other, such a program asks that process to fork. The fork gets the
program's streams, arguments, variables and working directory, and runs what was asked for. The program
hands it the signals it gets and ends as it ends; if the program is killed, so is the fork.

No package of this repository is imported before a fork, so a fork sees every edit, as a process does.
What is not asked for as ``-m MODULE`` runs in the true Python.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

IMPORTED = """
    annotated_types bs4 dulwich.ignore dulwich.index dulwich.worktree dvc._debug dvc.analytics dvc.cachemgr
    dvc.cli.parser dvc.commands.experiments.run dvc.compare dvc.data_cloud dvc.dirs dvc.render.convert
    dvc.render.match dvc.repo.artifacts dvc.repo.brancher dvc.repo.collect dvc.repo.commit dvc.repo.datasets
    dvc.repo.diff dvc.repo.experiments.brancher dvc.repo.experiments.ls dvc.repo.experiments.queue.workspace
    dvc.repo.graph dvc.repo.index dvc.repo.metrics.diff dvc.repo.open_repo dvc.repo.params.diff
    dvc.repo.plots dvc.repo.reproduce dvc.repo.stage dvc.repo.trie dvc.stage.run dvc.ui.table dvc.utils.diff
    dvc.utils.plots dvc.utils.strictyaml dvc_data.fs dvc_data.hashfile.db.local dvc_data.hashfile.status
    dvc_data.index.checkout dvc_render facenet_pytorch flatten_dict fsspec.implementations.memory
    ipykernel.comm ipykernel.debugger ipykernel.kernelapp ipykernel.zmqshell IPython.core.completerlib
    IPython.core.logger IPython.core.oinspect IPython.core.pylabtools IPython.extensions.storemagic jinja2
    jupyter_client latex2mathml.converter matplotlib.backends.backend_svg matplotlib.pyplot
    matplotlib_inline.backend_inline mistune nbclient nbconvert.nbconvertapp nbformat networkx numpy pandas
    pandas.io.formats.style papermill PIL.BmpImagePlugin PIL.GifImagePlugin PIL.Image PIL.JpegImagePlugin
    PIL.PngImagePlugin PIL.PpmImagePlugin psutil pyarrow.dataset pyarrow.pandas_compat pyarrow.parquet
    pydantic._internal._validators pydantic.json_schema pydantic.plugin._loader pydantic.type_adapter
    pydantic.types pygit2 rich.json ruamel.yaml.mergevalue scipy.linalg scipy.optimize scipy.spatial
    scipy.special scipy.stats scmrepo.fs scmrepo.git.backend.pygit2.filter seaborn sklearn.cluster
    sklearn.linear_model sklearn.metrics sklearn.neighbors sklearn.preprocessing symtable tabulate tflite
    threadpoolctl torch torch.nn.functional torchvision tornado.locks tornado.platform.asyncio
    tornado.queues tqdm.auto wcwidth
""".split()

# What `python` is: the other end of :func:`serve`, in a Python that imports next to nothing.
PROGRAM = """\
#!{python} -IS
import os, signal, socket, sys

words = sys.argv[1:]
if os.path.basename(sys.argv[0]) == "dvc":
    words = ["-m", "dvc", *words]
if words[:1] == ["-u"]:  # what it writes appears when it ends
    del words[0]
if words[:1] != ["-m"]:
    os.execv({python!r}, [{python!r}, *words])
variables = [f"{{name}}={{value}}" for name, value in os.environ.items()]
parts = [os.getcwd(), str(len(words)), *words, *variables]
request = "\\0".join(parts).encode(errors="surrogateescape")
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"%12d" % len(request)], [0, 1, 2])
server.sendall(request)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
answer = server.recv(2)
if not answer:
    sys.exit("the process that was to run " + " ".join(words) + " is gone")
killed_by, status = answer
if killed_by:
    signal.signal(killed_by, signal.SIG_DFL)
    os.kill(os.getpid(), killed_by)
sys.exit(status)
"""


class Forks:
    """A process that forks, and programs that ask it to.

    The processes of one test run share it: the first one starts it, and it ends when none is left.

    Attributes
    ----------
    python : str
        The program to start in place of ``sys.executable``; ``dvc`` stands beside it.
    """

    def __init__(self):
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        # A short path: the system limits a socket's.
        folder = Path(tempfile.gettempdir(), f"forks-{run}") if run else Path(tempfile.mkdtemp())
        folder.mkdir(exist_ok=True)
        self.python = str(folder / "python")
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self.user = os.open(folder / "users", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # there is none, or nobody reads it
                self.user = start(folder)

    def close(self) -> None:
        """Use it no longer; without users the process ends, with every fork that still runs."""
        os.close(self.user)


def start(folder: Path) -> int:
    """Start the process that forks, with its programs in a folder, and return what keeps it.

    That is one end of a pipe: its standard input, which ends when nobody has it open.
    """
    address = str(folder / "forks")
    text = PROGRAM.format(python=sys.executable, address=address)
    for name in ("python", "python3", "dvc"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        variables[name] = "1"  # a fork has no threads but its own
    variables["PYTHONHASHSEED"] = "0"
    variables["PYDEVD_DISABLE_FILE_VALIDATION"] = (
        "1"  # the debugger of kernels says nothing of itself
    )
    for name in ("users", "forks"):
        (folder / name).unlink(missing_ok=True)  # of a process that was killed
    os.mkfifo(folder / "users")
    users = os.open(folder / "users", os.O_RDONLY | os.O_NONBLOCK)
    user = os.open(folder / "users", os.O_WRONLY)
    hearing, telling = os.pipe()
    command = [sys.executable, __file__, address, str(folder / "python")]
    streams = [(os.POSIX_SPAWN_DUP2, users, 0), (os.POSIX_SPAWN_DUP2, telling, 1)]
    os.posix_spawn(sys.executable, command, variables, file_actions=streams, setsid=True)
    for number in (users, telling):
        os.close(number)
    with open(hearing, "rb") as heard:
        assert heard.readline() == b"ready\n", "the process that forks did not start"
    return user


# ---- the process that forks --------------------------------------------------------------------


class Request(NamedTuple):
    """What a program was asked to run, as it was asked."""

    folder: str
    words: list[str]
    variables: dict[str, str]
    streams: list[int]


def serve(address: str) -> Request:
    """Fork for every program that asks, until stdin ends; returns in the forks alone."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    ended, awake = socket.socketpair()
    awake.setblocking(False)
    ended.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # so that it writes to `awake`
    signal.set_wakeup_fd(awake.fileno(), warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    for file in (0, listening, ended):
        selector.register(file, selectors.EVENT_READ)
    running: dict[socket.socket, int] = {}
    os.write(1, b"ready\n")
    while True:
        for file in [key.fileobj for key, _ in selector.select()]:
            if file == 0:
                for pid in running.values():
                    os.kill(pid, signal.SIGKILL)
                shutil.rmtree(Path(address).parent)
                sys.exit()
            elif file is listening:
                program, _ = listening.accept()
                request = receive(program)
                if request is None:
                    program.close()
                    continue
                with warnings.catch_warnings():  # of threads of libraries, which forks do without
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for opened in (selector, listening, ended, awake, program, *running):
                        opened.close()
                    return request
                for stream in request.streams:
                    os.close(stream)
                running[program] = pid
                selector.register(program, selectors.EVENT_READ)
            elif file is ended:
                with suppress(BlockingIOError):
                    ended.recv(4096)
                reap(running, selector)
            elif file in running:
                for number in heard(file):
                    os.kill(running[file], number)


def receive(program: socket.socket) -> Request | None:
    """What a program asks for; None if it is gone before it has asked."""
    head, streams, *_ = socket.recv_fds(program, 12, 3)
    text = b""
    while head and len(text) < int(head):
        part = program.recv(int(head) - len(text))
        if not part:
            return None
        text += part
    if not head:
        return None
    folder, count, *parts = text.decode(errors="surrogateescape").split("\0")
    words, variables = parts[: int(count)], parts[int(count) :]
    return Request(folder, words, dict(part.split("=", 1) for part in variables), streams)


def heard(program: socket.socket) -> bytes:
    """The signals that a program hands on; SIGKILL if it is gone."""
    try:
        return program.recv(64) or bytes([signal.SIGKILL])
    except ConnectionError:
        return bytes([signal.SIGKILL])


def reap(running: dict[socket.socket, int], selector: selectors.BaseSelector) -> None:
    """Tell the programs whose forks have ended how they did, and forget them."""
    for program, pid in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            with suppress(OSError):  # it may be gone, too
                program.sendall(bytes([-code, 0] if code < 0 else [0, code]))
            selector.unregister(program)
            program.close()
            del running[program]


# ---- a fork ------------------------------------------------------------------------------------


def become(request: Request, python: str) -> None:
    """Run what was asked for in this process, as if it had been started for it."""
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.variables)
    import matplotlib

    if "MPLBACKEND" in request.variables:  # which is read when matplotlib is imported
        matplotlib.rcParams["backend"] = request.variables["MPLBACKEND"]
    _, module, *arguments = request.words
    added = request.variables.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [request.folder, *filter(None, added)]
    sys.argv = [module, *arguments]
    sys.executable = python
    sys.dont_write_bytecode = False
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def end(status: object) -> None:
    """End this process as ``sys.exit(status)`` does, but leave the memory as it is: most of it is shared."""
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, or closed
            stream.flush()
    os._exit(status or 0)


def main(address: str, python: str) -> None:
    del sys.path[0]  # the folder of this file
    os.chdir(Path(address).parent)
    sys.modules.setdefault("rfc3987_syntax", None)  # as study.pipeline.notebook does, and why
    for name in IMPORTED:
        with suppress(ImportError):  # of another release; a fork imports what it needs
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is imported stays, and stays shared
    request = serve(address)
    try:
        become(request, python)
    except SystemExit as ended:
        end(ended.code)
    except BaseException:
        traceback.print_exc()
        end(1)
    end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
