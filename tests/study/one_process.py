"""Commands of DVC and of ``python -m study``, one after another in one process and one kernel.

A command that starts a process, which starts a kernel, imports the same packages twice: some 7 s, of which the
work of a tiny study is a fraction. Run as a script in the folder of a study, this reads one command a line
from stdin, as JSON (``["dvc", "repro"]``), calls what that program would call, and writes one line for each:
the exit status and what the command wrote. DVC decides what to run, as ever. It calls the command of a stage
as a function, and notebooks of stages run in one kernel, which is emptied in between. The sections of the
report have kernels of their own, as ever.

:class:`OneProcess` is the other end.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager


class OneProcess:
    """A process in a folder that runs one command after another; a context.

    It imports the folder's own code once: edit code before the first command.

    Parameters
    ----------
    folder : path
        The root of a copy of this repository.
    environment : mapping
        Variables of the process.
    """

    def __init__(self, folder, environment):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *raised) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def call(self, *command: str) -> str:
        """Run a command, which has to succeed; returns what it wrote."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{command}: the process ended"
        status, output = json.loads(answer)
        assert status == 0, output
        return output


def serve() -> None:
    """Run the commands of stdin until it ends."""
    import dvc.stage.run

    from study.pipeline import notebook, study

    answers = os.fdopen(os.dup(1), "w")
    commands = os.fdopen(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    dvc.stage.run._run = call_stage
    study.repro = repro_here
    with ExitStack() as opened:
        notebook.start_kernel = sharing_one(notebook.start_kernel, opened)
        for line in commands:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


def answer(command: list[str]) -> tuple[int, str]:
    """Run one command; returns its status and what it and its processes wrote."""
    home = os.getcwd()
    variables = dict(os.environ)
    with tempfile.TemporaryFile("w+") as written:
        for stream in (1, 2):
            os.dup2(written.fileno(), stream)
        status = run_program(command)
        sys.stdout.flush()
        sys.stderr.flush()
        written.seek(0)
        output = written.read()
    os.chdir(home)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    return status, output


def run_program(command: list[str]) -> int:
    """Call what ``dvc ...`` or ``python -m study ...`` calls."""
    from dvc.cli import main

    from study import cli

    if command[0] == "dvc":
        return main(command[1:])
    assert command[1:3] == ["-m", "study"], command
    return cli.main(command[3:])


def call_stage(executable: str, command: str, **how) -> None:
    """Call the command of a stage here, where DVC would start a process."""
    from dvc.stage.exceptions import StageCmdFailedError

    status = run_program(shlex.split(command))
    if status:
        raise StageCmdFailedError(command, status)


def repro_here(folder, last: str | None, lock: int) -> int:
    """Call ``dvc repro`` in a folder, for :func:`study.pipeline.study.repro`, which would start a process."""
    home = os.getcwd()
    os.chdir(folder)
    try:
        return run_program(["dvc", "repro", *([last] if last else [])])
    finally:
        os.chdir(home)


def sharing_one(start_kernel, opened: ExitStack):
    """Make a ``start_kernel`` that gives one kernel in this thread; other threads start their own."""
    from jupyter_core.utils import run_sync

    shared: list = []

    async def move(client, folder: str) -> None:
        code = f"__import__('os').chdir({folder!r})"
        await client.execute(code, silent=True, reply=True, timeout=60)

    @contextmanager
    def shared_kernel(one_thread: bool = False, first: str = ""):
        if threading.current_thread() is not threading.main_thread():
            with start_kernel(one_thread, first) as kernel:
                yield kernel
            return
        if not shared:
            shared.append(opened.enter_context(start_kernel(one_thread, first)))
        if shared[0].clients:  # it may stand in the workspace of another study
            run_sync(move)(shared[0].clients[-1], os.getcwd())
        yield shared[0]
        if shared[0].clients:  # it has run something
            run_sync(shared[0].empty)()

    return shared_kernel


if __name__ == "__main__":
    serve()
