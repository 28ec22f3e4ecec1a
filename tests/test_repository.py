"""What the repository promises beyond its code: pins, notebooks, and figures that are up to date."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

import cid
from cid.methods import METHODS
from study.pipeline import report
from study.results import plots

ROOT = Path(__file__).parents[1]
yaml = YAML(typ="safe")
# The modules of cid/; one imports only those that come after it.
ORDER = """report provenance pages notebook plots claims inference sweep distributed networks metrics train
methods posterior bias density embed people importers faces store device params""".split()


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements() -> list[Requirement]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for part in lists for text in part]


def test_every_dependency_is_pinned_to_a_version_that_fits():
    known = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins().items()}
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in known, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(known[name].split("+")[0]), name


def test_pins_name_no_index_and_no_local_build():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and " @ " not in text and "+cpu" not in text
    assert pins()["torch"] != "2.13.0"


def test_conda_users_get_the_same_list():
    entries = yaml.load(ROOT / "environment.yml")["dependencies"]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert "-c requirements.lock" in pip and "-e .[people,test]" in pip


def test_modules_import_only_modules_below_them():
    order = ORDER
    found = {path.stem for path in (ROOT / "cid").glob("*.py")} - {"__init__"}
    assert found == set(order)
    for position, module in enumerate(order):
        tree = ast.parse((ROOT / "cid" / f"{module}.py").read_text())
        names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
        for name in names:
            if name.startswith("cid."):
                assert order.index(name.removeprefix("cid.")) > position, f"{module} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_hold_no_logic_a_test_could_want(path):
    cells = json.loads(path.read_text())["cells"]
    assert len(cells) <= 15
    for cell in cells:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            for node in ast.walk(tree):
                assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), path.name


def test_the_readme_shows_the_committed_numbers(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = report.read()
    text = (ROOT / "README.md").read_text()
    assert report.readme(params) == text, "run `python -m study.pipeline.report readme`"
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)|src=\"((?!http)[^\"]+)\"", text):
        target = next(filter(None, name))
        assert (ROOT / target).exists(), f"README.md points to {target}, which does not exist"


def test_the_committed_report_is_of_the_committed_parameters():
    params = yaml.load(ROOT / "params.yaml")
    assert yaml.load(ROOT / "reports" / params["study"] / "params.yaml") == params
    lock = yaml.load(ROOT / "dvc.lock")["stages"]
    assert {f"train@{level}" for level in params["bias"]["levels"]} <= set(lock)


@pytest.mark.parametrize(
    "card", sorted(ROOT.glob("reports/*/card.json")), ids=lambda p: p.parent.name
)
def test_reports_show_no_photograph_that_must_not_be_shown(card):
    """Pictures of faces are the only JPEGs that are drawn; other figures are PNG and SVG."""
    shown = [
        page.name for page in card.parent.glob("*.html") if "data:image/jpeg" in page.read_text()
    ]
    allowed = json.loads(card.read_text()).get("show_images", True)
    assert bool(shown) == allowed, shown
    files = [f.name for f in card.parent.rglob("*") if f.suffix in (".jpg", ".jpeg", ".webp")]
    assert files == (["idea.jpg"] if allowed else [])
    for path in card.parent.glob("notebooks/*.ipynb"):
        assert allowed or "image/jpeg" not in path.read_text(), path
        assert path.stat().st_size < 2e6, f"{path} is too large for a code host to show"


def test_the_page_of_speeds_shows_the_measured_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert tables.filled(page) == page, "run `make bench`, or `python benchmarks/tables.py`"


def test_code_is_formatted_and_linted():
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_figure_style_has_a_colour_for_every_method():
    assert set(plots.COLOURS) == set(METHODS)
    assert len(set(plots.COLOURS.values())) == len(METHODS)


def test_the_version_is_the_same_everywhere():
    citation = yaml.load(ROOT / "CITATION.cff")
    assert citation["version"] == cid.__version__
    assert f"## {cid.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License")


@pytest.mark.parametrize(
    "page", ["README.md", "COOKBOOK.md", "CONTRIBUTING.md", "benchmarks/README.md"]
)
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} points to {target}"


def test_the_house_is_drawn_as_it_stands():
    """README.md and CONTRIBUTING.md name the modules in the order that the imports keep."""
    for page in ("README.md", "CONTRIBUTING.md"):
        drawn = re.search(r"report > provenance[\w\s>]+params", (ROOT / page).read_text())[0]
        assert re.split(r"[\s>]+", drawn) == ORDER


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_import_what_there_is(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cid":
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                found = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                assert found, f"{path.name} imports {name} from {node.module}"
