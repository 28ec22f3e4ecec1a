"""The commands of COOKBOOK.md, from top to bottom, on the study of :mod:`tests.study.small`.

Those before :data:`MIDDLE` are run here; :mod:`tests.study.test_cookbook_later` goes on, on another copy of the
study, so that two processes can share the work.
"""

import re

import pytest

from benchmarks import cookbook
from tests.study.faces.test_onnx import made
from tests.study.small import (
    ROOT,
    STAGES,
    call,
    execute_here,
    finished_study,
    needs_data,
    ran,
)

pytestmark = needs_data


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return finished_study(tmp_path_factory)


# Where a study ends in this test, if not where its command does: what follows is as ever. The first stage
# is run by the command; the others are executed here, which spares the start of their processes.
ENDS = {
    "eyes-closed": ["data", "weights"],
    "longtail": ["data", "weights"],
    "levels": ["data", "weights"],
    "facenet": ["data"],  # that its weights are read from a file is tested with `study.faces.embed`
    "net": ["embed", "weights", "train"],
    "grid": ["data", "ablate"],
    "controls": ["views", "proxies"],
    "cohorts": ["data", "weights"],
    "end-to-end": ["embed", "weights", "train"],
    "own": ["embed", "data", "weights"],
    "eyes": ["data"],
}


MIDDLE = "## Your own photographs\n"


def recipes(later: bool = False) -> list[list[str]]:
    """The commands of every block of COOKBOOK.md up to the middle, or from there on."""
    first, heading, second = (ROOT / "COOKBOOK.md").read_text().partition(MIDDLE)
    assert heading
    return cookbook.recipes(second if later else first)


def target(name: str, *variables: str) -> list[str]:
    """What a target of the Makefile runs, but for JupyterLab, which would wait for a reader."""
    found = re.search(rf"(?m)^{name}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    text = found[1]
    for key, _, value in (variable.partition("=") for variable in variables):
        text = text.replace(f"$({key})", value)
    text = re.sub(r"\$\(\w+\)", "", text)  # a variable that is not given is empty
    return [line for line in text.split("\n\t") if "jupyter lab" not in line]


@pytest.fixture(scope="module")
def photographs(study):
    """What the recipes take from their user: photographs with labels, and a network."""
    cookbook.bring(study)
    (study / "networks").mkdir()
    for name in ("mobilefacenet", "sface", "efficientnet-lite0"):
        made(study / "networks" / f"{name}.onnx")  # so that none is fetched


@pytest.mark.parametrize("commands", recipes(), ids=lambda c: re.sub(r"\W+", "-", c[0])[:40])
def test_the_recipes_of_the_cookbook_run_one_after_another(study, photographs, commands):
    """Nothing is put back in between but by the cookbook itself."""
    follow(study, commands)


def follow(study, commands: list[str]) -> None:
    """Run the commands of a recipe."""
    before = (study / "params.yaml").read_bytes()
    for command in commands:
        words = command.split()
        lines = target(*words[1:]) if words[0] == "make" else [command]
        for line in map(str.strip, lines):
            if line.startswith(("dvc exp run", "python -m study try")):
                run_study(study, line)
            else:
                call(study, "bash", "-c", line)
    if commands[0].startswith(("python -m study", "make")):
        assert (study / "params.yaml").read_bytes() == before


def words_of(study, command: str) -> list[str]:
    """The words of a command, as a shell reads them."""
    return call(study, "bash", "-c", f"printf '%s\\n' {command}").splitlines()


def run_study(study, command: str) -> None:
    """Run a study's command up to the first stage of :data:`ENDS`, then the other stages here."""
    command, _, last = command.partition(" --to ")
    words = words_of(study, command)
    name = words[words.index("-n" if "-n" in words else "try") + 1]
    first, *others = ENDS.get(name, [last])
    tried = words[0] != "dvc"
    end = ["--to", first] if tried else [first]
    output = call(study, *words, *end)
    known = f"Stage '{first}' is cached" in output  # as another recipe left it
    assert first in STAGES and (known or first in ran(output))
    if others:
        folder = study / "build" / "studies" / name
        call(folder, "dvc", "checkout", "--force", "-q")  # of the stages that nothing changed
        execute_here(folder, *others)


def tried(study) -> set[str]:
    """The studies that recipes have run in folders of their own."""
    return {path.name for path in (study / "build" / "studies").iterdir()}


def test_what_a_recipe_leaves_is_what_it_says(study):
    """After the first half: the committed files, and the studies that were tried."""
    assert call(study, "git", "status", "--porcelain", "--untracked-files=no") == ""
    assert tried(study) == set(ENDS) - {"eyes", "own"}
