"""The commands of ``python -m study``: their names, their arguments, and where their code is.

The code is named by text and imported when its command runs, so that no command waits for the imports of
the others. :mod:`study.pipeline.stages` reads the same table to find the module that a stage runs.
"""

import importlib
import sys
from argparse import ArgumentParser
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    """One command; its code is ``function(arguments)`` of a module, which raises what is wrong."""

    module: str
    usage: str  # its arguments, for the list of commands
    summary: str
    function: str = "main"


NOTEBOOK = "study.pipeline.notebook"
GROUPS = {  # in the order in which a newcomer needs them
    "Start": {
        "params": Command("study.pipeline.params", "", "check params.yaml before anything runs"),
        "methods": Command(
            "study.cli", "", "list every method, its labels and its settings", "print_methods"
        ),
        "cost": Command("study.pipeline.cost", "", "what a run takes, and what it would detect"),
        "run": Command("study.pipeline.study", "[NAME]", "run params.yaml, or a study of studies/"),
        "try": Command(
            "study.pipeline.study",
            "NAME KEY=VALUE",
            "run params.yaml with other values, and leave it as it is",
            "main_try",
        ),
    },
    "Look at the results": {
        "report": Command("study.pipeline.report", "STEP", "build, headline or pages"),
        "provenance": Command(
            "study.pipeline.provenance",
            "check|verify",
            "is a report of this code? are its numbers the committed ones?",
        ),
        "lab": Command(
            NOTEBOOK, "", "the notebooks with their parameters, in build/lab", "main_lab"
        ),
    },
    "Bring photographs and networks": {
        "import": Command("study.faces.importers", "SOURCE FOLDER", "photographs into data/"),
        "new": Command("study.pipeline.new", "NAME", "write a first study of the data in data/"),
        "labels": Command("study.faces.labels", "TABLE FOLDER", "labels for photographs on disk"),
        "rehearse": Command("study.pipeline.rehearse", "TABLE", "time and memory without images"),
        "people": Command("study.faces.render", "FOLDER", "render the virtual people"),
        "detector": Command("study.faces.detector", "", "the file of the face detector"),
        "mobilefacenet": Command("study.faces.mobilefacenet", "", "a second recognition network"),
        "sface": Command("study.faces.sface", "", "a third one"),
        "imagenet": Command("study.faces.imagenet", "", "a network that was taught no face"),
    },
    "Share the work": {
        "distributed": Command(
            "study.distributed", "weights|embed|train", "the share of one process, under torchrun"
        ),
    },
    "Called by dvc.yaml": {
        "stage": Command(NOTEBOOK, "NAME", "execute the notebook of a stage", "main_stage"),
        "paper": Command(NOTEBOOK, "", "execute the sections of the report", "main_paper"),
        "publish": Command("study.pipeline.publish", "", "copy the report to reports/"),
    },
    "Work on the code": {
        "stages": Command("study.pipeline.stages", "check|write", "compare dvc.yaml with the code"),
        "notebooks": Command(
            NOTEBOOK, "clean|check FILES", "strip outputs from notebooks", "main_notebooks"
        ),
        "documents": Command(
            "study.pipeline.documents", "", "the numbers of all reports into README and docs"
        ),
        "protocols": Command(
            "study.pipeline.protocols",
            "[withdraw NAME WHY]",
            "note since when the content of every study stands",
        ),
        "earlier": Command(
            "study.pipeline.earlier", "COMMIT [NAMES]", "keep what the reports of a commit say"
        ),
        "verdicts": Command(
            "study.pipeline.verdicts", "COMMIT", "verdicts of old reports by the rules of now"
        ),
        "tune": Command("study.tune", "FOLDER", "choose settings on development people"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

# What was run as `python -m MODULE ...` until version 0.1, and its command now.
RENAMED = {
    "study.distributed": "distributed",
    "study.faces.importers": "import",
    "study.faces.mobilefacenet": "mobilefacenet",
    "study.faces.people": "people",
    "study.pipeline.cost": "cost",
    "study.pipeline.notebook": "notebooks",
    "study.pipeline.notebook clean": "notebooks clean",
    "study.pipeline.notebook clean --check": "notebooks check",
    "study.pipeline.notebook lab": "lab",
    "study.pipeline.notebook paper": "paper",
    "study.pipeline.notebook run": "stage",
    "study.pipeline.params": "params",
    "study.pipeline.provenance": "provenance",
    "study.pipeline.rehearse": "rehearse",
    "study.pipeline.report": "report",
    "study.pipeline.stages": "stages",
    "study.pipeline.study": "run",
    "study.tune": "tune",
}


class Parser(ArgumentParser):
    """A parser of arguments that names a mistake in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def parser(name: str) -> Parser:
    """A parser for the arguments of one of the :data:`COMMANDS`."""
    return Parser(prog=f"python -m study {name}", description=COMMANDS[name].summary)


def run_renamed(module: str) -> NoReturn:
    """Run what was ``python -m MODULE`` as a command, after one line of warning, and exit."""
    words = [module.removesuffix(".__main__"), *sys.argv[1:]]
    length = max(n for n in range(1, 4) if " ".join(words[:n]) in RENAMED)
    old = " ".join(words[:length])
    new = RENAMED[old]
    print(f"warning: `python -m {old}` is now `python -m study {new}`", file=sys.stderr)
    # By text: an import of the command line, which stands above all modules, would point upward.
    cli = importlib.import_module("study.cli")
    sys.exit(cli.main([*new.split(), *words[length:]]))
