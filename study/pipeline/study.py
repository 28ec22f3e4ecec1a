"""Run a study that is kept in studies/, or try another one; params.yaml stays as it is.

    python -m study run                          the study of params.yaml
    python -m study run lfw-mouth                studies/lfw-mouth.yaml
    python -m study try eyes task=eyes_closed    params.yaml with other values

The last two work in a folder of their own, ``build/studies/NAME/``
(:mod:`study.pipeline.workspace`). Their report goes to ``reports/NAME/``, as any other.
"""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import YAMLError

from cid.names import find
from study.commands import parser, run_renamed
from study.errors import check_repository
from study.pipeline import kept, params, publish, stages, workspace
from study.pipeline.reproduced import FILE, REPORTS, RUN

CARD = Path("data/card.json")
# What a study is when its parameters were given on the command line.
TRIED = {"status": "exploratory", "detectable": None}


def check(name: str) -> dict:
    """The parameters of a kept study; ``ValueError`` if they are not valid or data/ holds other data."""
    tree = kept.resolve(name)
    wanted = tree["data"]
    there = _data_set()
    if wanted not in (None, there):
        raise ValueError(
            f"{kept.find(name)} is of the data set {wanted!r}, but data/ holds "
            f"{repr(there) if there else 'none'}; "
            "import it first (python -m study import --help), or, if it is the rendered people, fetch it by "
            "`dvc pull data.dvc`"
        )
    return tree


def _data_set() -> str | None:
    """The name of the data set in data/; None where there is none."""
    if not CARD.exists():
        return None
    try:
        return json.loads(CARD.read_text(encoding="utf-8"))["name"]
    except (ValueError, KeyError, TypeError):
        problem = "is no card of a data set with a name"
        raise ValueError(f"{CARD} {problem}; fetch the data again, or import it") from None


def run(name: str | None, last: str | None = None) -> int:
    """Run a kept study, or that of params.yaml, by ``dvc repro``; return its exit status.

    ``last`` names the stage to stop at; by default the report is published.
    """
    check_repository()
    check_stage(last)
    if name is None:
        with workspace.alone(params.load()["study"]) as lock:
            return repro(Path(), last, lock)
    tree = check(name)
    text = kept.text(name)
    with suppress(ValueError):
        if params.load() == tree:  # its comments then stay in the report
            text = params.PARAMS.read_text(encoding="utf-8")
    return run_in_workspace(name, text, last)


def check_stage(name: str | None) -> None:
    """Refuse a stage that dvc.yaml does not have."""
    if name is not None:
        find("--to", name, stages.read_stages())


def run_in_workspace(name: str, parameters: str, last: str | None) -> int:
    """Run a study with parameters of its own; publish its report here, where it has one."""
    with workspace.alone(name) as lock:
        folder = workspace.prepare(name, parameters)
        print(f"{name} runs in {folder}; params.yaml stays as it is.", flush=True)
        status = repro(folder, last, lock)
        if status == 0 and last in (None, "publish"):
            print(publish.publish(folder / RUN))
        return status


def repro(folder: Path, last: str | None, lock: int) -> int:
    """Run ``dvc repro`` in a folder, up to a stage, and return its exit status.

    An interrupt, a hangup or SIGTERM ends DVC first. ``lock`` is of :func:`study.pipeline.workspace.alone`.
    """
    command = ["dvc", "repro", *([last] if last else [])]
    how = {"cwd": folder, "env": _environment(folder), "process_group": 0, "pass_fds": [lock]}
    with signals_exit(), subprocess.Popen(command, **how) as process:
        workspace.note(process.pid)
        try:
            return process.wait()
        except BaseException:  # DVC and its stage end before their lock is free
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise


def _environment(folder: Path) -> dict[str, str]:
    """Variables of a process that finds the code of a folder, also in the kernels that it starts."""
    paths = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def signals_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, so that what was begun is ended; one that is ignored stays so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- other values of params.yaml ---------------------------------------------------------------


def try_out(name: str, settings: Sequence[str], last: str | None = None) -> int:
    """Run params.yaml with other values, as a study of another name; return the exit status.

    Parameters
    ----------
    name : str
        Of the study and its report; not that of a kept study.
    settings : sequence of str
        ``key=value`` with dotted keys and values as in YAML, such as ``bias.levels=[0.0,0.8]``.
    last : str, optional
        The stage to stop at.

    Raises
    ------
    ValueError
        If the name is taken, or a setting is none that params.yaml can have.
    """
    check_repository()
    check_stage(last)
    if name in kept.names() or name == params.load()["study"]:
        raise ValueError(f"{name} is a study that is kept; name this one otherwise")
    note = f"tried with {', '.join(settings)}" if settings else "tried as it is"
    values = dict(map(_parsed, settings))
    values |= {"study": name, "protocol": TRIED | {"note": note}}
    where = f"{params.PARAMS} with {' '.join(settings)}" if settings else params.PARAMS
    params.check(_with(values, params.load()), where)
    _check_tried(name)
    return run_in_workspace(name, _text_with(values), last)


def _parsed(setting: str) -> tuple[str, Any]:
    """``("bias.kind", "longtail")`` of ``bias.kind=longtail``."""
    key, equals, text = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"{setting!r} is no setting; write key=value, such as bias.kind=longtail")
    try:
        return key, YAML(typ="safe").load(text)
    except (YAMLError, RecursionError):
        raise ValueError(f"{setting!r}: {text!r} is no value as in params.yaml") from None


def _with(values: Mapping[str, Any], tree: MutableMapping) -> MutableMapping:
    """A tree of parameters with other values of dotted keys."""
    for key, value in values.items():
        *sections, last = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, MutableMapping):
                raise ValueError(f"{key} is no key: {name} of {params.PARAMS} has no keys in it")
        section[last] = value
    return tree


def _check_tried(name: str) -> None:
    """Refuse the name of a report that was not tried: a kept study's, or one brought from elsewhere."""
    report = REPORTS / name
    if (report / FILE).exists() and not workspace.of_study(name).is_dir():
        raise ValueError(
            f"{report} holds a report that was not made by `try`; name this one otherwise"
        )
    if report.is_dir() and any(report.iterdir()) and not (report / FILE).exists():
        raise ValueError(f"{report} is no report, and would be lost; move it away")


def _text_with(values: Mapping[str, Any]) -> str:
    """The text of params.yaml with other values; its comments stay."""
    yaml = YAML()
    yaml.width = 110
    yaml.Representer = params.NullAsWord
    tree = yaml.load(params.PARAMS)
    lists = {key: CommentedSeq(value) for key, value in values.items() if isinstance(value, list)}
    for key, value in lists.items():
        before = _at(tree, key)
        if not isinstance(before, CommentedSeq) or before.fa.flow_style():
            value.fa.set_flow_style()  # on one line, as in the file
    stream = io.StringIO()
    yaml.dump(_with(values | lists, tree), stream)
    return stream.getvalue()


def _at(tree: Mapping, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


# ---- commands ----------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    options = parser("run")
    options.add_argument("name", nargs="?", help="of a file in studies/; default: params.yaml")
    options.add_argument("--to", metavar="STAGE", help="stop at this stage of dvc.yaml")
    args = options.parse_args(arguments)
    return run(args.name, args.to)


def main_try(arguments: list[str]) -> int:
    options = parser("try")
    options.add_argument("name", help="of the study; its report goes to reports/NAME/")
    options.add_argument("settings", nargs="*", metavar="key=value", help="as in params.yaml")
    options.add_argument("--to", metavar="STAGE", help="stop at this stage of dvc.yaml")
    args = options.parse_args(arguments)
    return try_out(args.name, args.settings, args.to)


if __name__ == "__main__":
    run_renamed(__spec__.name)
