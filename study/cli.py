"""The command line: ``python -m study COMMAND ...``.

A command's function receives its arguments and raises what is wrong. Here, and only here, an error
becomes one line on stderr and an exit status: 1 for an error, 2 for a mistake in the arguments, 130 for
Ctrl-C.
"""

import importlib
import sys

from ruamel.yaml.error import YAMLError

from study.commands import COMMANDS, GROUPS, parser
from study.errors import remedy

EXPECTED = (ValueError, OSError, SyntaxError, YAMLError)  # others are faults of the code


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    Parameters
    ----------
    arguments : list of str, optional
        The name of a command and its arguments; by default those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: {unknown_command(name)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[name].module)
        return run(getattr(module, COMMANDS[name].function), rest)
    except KeyboardInterrupt as interrupt:
        # A command that keeps nothing says what became of its work.
        print(f"interrupted; {str(interrupt) or 'what is done is kept'}", file=sys.stderr)
        return 130


def run(function, arguments: list[str]) -> int:
    """Call the function of a command; return its exit status, 1 after one line on what is wrong."""
    try:
        return function(arguments) or 0
    except BrokenPipeError:  # who read the output, such as `head`, has enough
        sys.stdout = None
        return 0
    except EXPECTED as error:
        print(f"error: {error}{remedy(str(error))}", file=sys.stderr)
        return 1


def overview() -> str:
    """The list of all commands, one a line."""
    lines = ["usage: python -m study COMMAND ...", ""]
    for title, commands in GROUPS.items():
        lines.append(f"{title}:")
        for name, command in commands.items():
            words = f"{name} {command.usage}".strip()
            lines.append(f"  {words:<32} {command.summary}")
        lines.append("")
    lines.append("`python -m study COMMAND --help` explains the arguments of one.")
    return "\n".join(lines)


def unknown_command(name: str) -> str:
    """Say that there is no such command, with the nearest."""
    from cid.names import suggest

    return f"there is no command {name!r}{suggest(name, COMMANDS)}; `python -m study` lists them"


def print_methods(arguments: list[str]) -> None:
    """Print every method: name, title, summary, the labels it uses, and its settings with defaults."""
    from study.methods.registry import METHODS

    parser("methods").parse_args(arguments)
    print(
        "labels: those that weights or groups are made of; every method trains on the class labels"
    )
    for method in METHODS.values():
        print(f"{method.name} ({method.title}): {method.description}")
        print(f"    labels: {', '.join(method.uses) or 'none beyond the task'}")
        if method.two_classes:
            print("    made for two classes")
        sections = {"weights": method.weigh_settings, "train.robust": method.fit_settings}
        for section, settings in sections.items():
            for name, value in vars(settings()).items():
                print(f"    {section}.{name}: {value}")
