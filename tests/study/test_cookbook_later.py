"""The commands of COOKBOOK.md from one's own photographs on: the second half of :mod:`tests.study.test_cookbook`."""

import re

import pytest

from tests.study import test_cookbook as cookbook
from tests.study.small import call, needs_data

pytestmark = needs_data
study = cookbook.study  # a copy of its own, as fixtures are made for each file
photographs = cookbook.photographs


@pytest.mark.parametrize(
    "commands", cookbook.recipes(later=True), ids=lambda c: re.sub(r"\W+", "-", c[0])[:40]
)
def test_the_recipes_of_the_cookbook_run_one_after_another(study, photographs, commands):
    """Nothing is put back in between but by the cookbook itself."""
    cookbook.follow(study, commands)


def test_what_a_recipe_leaves_is_what_it_says(study):
    """After the cookbook: the committed files, the experiment and its branch, the studies that were tried."""
    assert call(study, "git", "status", "--porcelain", "--untracked-files=no") == ""
    assert "eyes" in call(study, "dvc", "exp", "list", "--name-only").split()
    assert "eyes-closed-by-dvc" in call(study, "git", "branch", "--list", "eyes-closed-by-dvc")
    assert cookbook.tried(study) == {"own", "virtual-people"}
