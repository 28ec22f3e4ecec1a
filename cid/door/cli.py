"""The command line ``python -m cid COMMAND``, its arguments and its exit status.

An error becomes one line on stderr: exit status 1, 2 for a mistake in the arguments, 3 where an audit refuses,
130 for Ctrl-C.
"""

import errno
import importlib
import re
import sys
import warnings
from argparse import ArgumentParser
from typing import NoReturn

COMMANDS = {
    "weigh": "a weight for every image",
    "audit": "how models serve the people whose label is unusual for them",
    "leaks": "the same person, or frames of one film, on both sides of a split",
    "detector": "fetch the file of the better face detector, once",
}
EXPECTED = (ValueError, OSError, ImportError, MemoryError)  # others are faults of the code
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "write to another folder",
    errno.EACCES: "write to another folder",
    errno.EPERM: "write to another folder",
}


class Parser(ArgumentParser):
    """A parser of arguments that names a mistake in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = parser().parse_args(arguments)
    warnings.showwarning = _one_line
    try:
        module = importlib.import_module(f"cid.door.{options.command}")
        return module.run(options)
    except KeyboardInterrupt:
        kept = "; embeddings that were made are kept, and the same command goes on from them"
        print(f"interrupted{'' if _keeps_none(options) else kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read the output, such as `head`, has enough
        sys.stdout = None
        return 0
    except EXPECTED as error:
        print(f"error: {_told(error)}", file=sys.stderr)
        return 1


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(prog="python -m cid", description="For face data without identities.")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    weigh = commands.add_parser("weigh", help=COMMANDS["weigh"], description=COMMANDS["weigh"])
    _add_source(weigh)
    weigh.add_argument(
        "--label", metavar="COLUMN", help="the column of classes: text or whole numbers"
    )
    weigh.add_argument(
        "--method",
        choices=("surprise", "cid", "two-factor"),
        default="surprise",
        help="label surprise (default), the paper's CID, or both factors",
    )
    weigh.add_argument(
        "--class-prior",
        choices=("balanced", "empirical"),
        default="balanced",
        help="total weight of a class: the same for all (default), or as many images as it has",
    )
    weigh.add_argument(
        "--exact",
        action="store_true",
        help="compare all images with each other, also beyond 50,000",
    )
    _add_trust(weigh, "weigh down images whose labels look wrong")
    weigh.add_argument("-o", "--output", required=True, help=".csv, .parquet or .npy")
    audit = commands.add_parser("audit", help=COMMANDS["audit"], description=COMMANDS["audit"])
    _add_source(audit)
    audit.add_argument(
        "--label", metavar="COLUMN", help="the column of classes: text or whole numbers"
    )
    _add_split(audit)
    audit.add_argument(
        "--predictions",
        required=True,
        metavar="TABLE",
        help="a column `image` and a column a model: classes, or scores of a class",
    )
    audit.add_argument(
        "--positive", metavar="CLASS", help="the class that scores are of (default: the last one)"
    )
    _add_trust(audit, "count test images as far as their labels look right")
    audit.add_argument("--seed", type=int, default=0, help="of the intervals (default 0)")
    audit.add_argument("-o", "--output", required=True, help="a folder: index.html and audit.csv")
    leaks = commands.add_parser("leaks", help=COMMANDS["leaks"], description=COMMANDS["leaks"])
    _add_source(leaks)
    _add_split(leaks)
    leaks.add_argument(
        "-o", "--output", help=".csv or .parquet: the nearest training image of each"
    )
    commands.add_parser("detector", help=COMMANDS["detector"], description=COMMANDS["detector"])
    return top


def _add_source(command: ArgumentParser) -> None:
    command.add_argument(
        "photographs",
        nargs="*",
        metavar="PHOTOS",
        help="a folder of photographs, or Parquet files with a column of pictures",
    )
    command.add_argument(
        "--labels", metavar="TABLE", help="CSV or Parquet, a row an image; .npy of labels"
    )
    command.add_argument(
        "--embeddings", metavar="FILE", help="in place of photographs: .npy (n, d), Parquet or CSV"
    )
    command.add_argument(
        "--image", metavar="COLUMN", help="the column of image files (default: image)"
    )
    command.add_argument(
        "--keep",
        choices=("yes", "no"),
        default="yes",
        help="keep embeddings of photographs beside the output (default), or do not",
    )
    command.add_argument("--network", help="of face recognition (default: dlib-resnet)")
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda")


def _add_trust(command: ArgumentParser, what: str) -> None:
    command.add_argument(
        "--features",
        metavar="FILE",
        help="of the task, rows as of --labels: labels are judged by them (photographs have their own)",
    )
    command.add_argument(
        "--trust",
        choices=("yes", "no"),
        default="yes",
        help=f"{what} (default, where there are features), or do not",
    )


def _add_split(command: ArgumentParser) -> None:
    command.add_argument(
        "--split",
        metavar="COLUMN",
        default="split",
        help="the column that says which images trained: train or test (default: split)",
    )


def _keeps_none(options) -> bool:
    return not getattr(options, "photographs", None) or options.keep == "no"


def _told(error: BaseException) -> str:
    """Return what an error says in one line, with a remedy where the system refused."""
    if isinstance(error, MemoryError):
        return "there is not enough memory; pass fewer images, or close other programs"
    message = " ".join(str(error).split())
    number = re.search(r"\[Errno (\d+)\]", message)
    step = REMEDIES.get(int(number[1])) if number else None
    return (
        f"{message}; {step} and run it again: embeddings that were made are kept"
        if step
        else message
    )


def _one_line(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)
