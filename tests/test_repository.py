"""What the repository promises beyond its code: pins, notebooks, and figures that are up to date."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

import cid
from study.pipeline import findings, kept, overview, params, protocols

ROOT = Path(__file__).parents[1]
yaml = YAML(typ="safe")
STUDIES = kept.names(ROOT / "studies")
REPORTED = sorted(path.parent.name for path in (ROOT / "reports").glob("[!.]*/card.json"))
ROWS = protocols.read(ROOT / protocols.TABLE)
CONFIRMATORY = [  # also those that were run again since
    row for row in ROWS if row.state == "confirmatory" and row.study in REPORTED
]
# All modules, from the top of the house to its ground; one imports only those that come after it.
ORDER = """
people.__main__ study.__main__ study.cli
study.tune study.distributed study.pipeline.rehearse study.pipeline.new study.pipeline.study study.pipeline.workspace study.pipeline.cost study.pipeline.report study.pipeline.documents study.pipeline.findings study.pipeline.confirmed study.pipeline.overview study.pipeline.predicted study.pipeline.pages study.pipeline.verdicts study.pipeline.earlier study.pipeline.provenance study.pipeline.protocols
study.pipeline.publish study.pipeline.reproduced study.pipeline.git study.pipeline.kept study.pipeline.notebook study.pipeline.stages study.pipeline.params
study.results.plots study.results.drawing study.results.palette study.results.sentences study.results.files study.results.tables study.results.claims
study.results.varied study.results.sizes study.results.inference study.results.metrics study.results.titles study.results.rounding
study.experiment.train study.experiment.network_runs study.experiment.factors study.experiment.audited study.experiment.unidentified study.experiment.proxies study.experiment.variations study.experiment.runs study.experiment.penalties study.experiment.arrays study.experiment.scores study.experiment.mislabelled
study.methods.registry study.methods.audited study.methods.logits study.methods.prototypes study.methods.erase study.methods.ula study.methods.two_stage study.methods.robust study.methods.trusted study.methods.weighting study.methods.stacks study.methods.base
study.experiment.design study.experiment.levels
study.faces.labels study.faces.importers study.faces.looks study.faces.parquet_files study.faces.parts study.faces.annotations study.faces.people study.faces.render people.records people.image people.person people.head people.raster
study.faces.mobilefacenet study.faces.sface study.faces.imagenet study.faces.shipped study.faces.detector study.faces.embed study.faces.verification study.faces.onnx study.faces.network_files study.faces.dataset study.faces.tasks study.cores study.store
study.source study.errors study.commands cid.distributed cid.networks cid.schedule cid.training cid.models cid.choosing
cid.__main__ cid.door.cli cid.door.leaks cid.door.audit cid.door.weigh cid.door.detector cid.door.page cid.door.predictions cid.door.doubted cid.door.inputs cid.door.faces cid.door.kept cid.door.photographs cid.door.tables cid.pictures
cid.auditing cid.trust cid.penalty cid.softmax cid.prototypes cid.heads cid.curvature cid.lbfgs cid.risks cid.classified cid.estimates cid.kin cid.offsets cid.large cid.weights cid.neighbours cid.cells cid.factors cid.posterior cid.density cid.pairs cid.recognition cid.dlib cid.detection cid.blazeface cid.tflite cid.align cid.precision cid.arrays cid.options cid.settings cid.reference cid.names cid.moved
""".split()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements(extra: str | None = None) -> list[Requirement]:
    """Those of the project, of one of its extras ("" for what it always needs), or all."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    wanted = lists if extra is None else [extra]
    return [Requirement(text) for name in wanted for text in lists[name]]


def test_every_dependency_is_pinned_to_a_version_that_fits():
    known = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins().items()}
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name == "cid-faces":  # an extra that contains another of its own
            continue
        assert name in known, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(known[name].split("+")[0]), name


def test_pins_name_no_index_and_no_local_build():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and " @ " not in text and "+cpu" not in text
    assert pins()["torch"] != "2.13.0"


@pytest.mark.parametrize(
    "name, extras", [("study", ["study"]), ("test", ["study", "people", "test"])]
)
def test_what_make_installs_is_the_lock_with_the_hashes_of_every_file(name, extras):
    text = (ROOT / "hashes" / f"{name}.txt").read_text()
    assert "://" not in text
    wanted = re.findall(
        r"(?m)^([\w.-]+)==([^ ]+)(?: ;[^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}", text
    )
    assert len(wanted) == len(re.findall(r"(?m)^[\w.-]+==", text))
    known = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins().items()}
    for package, version in wanted:
        assert known.get(package, version) == version, (
            f"{package} of hashes/ is not that of the lock"
        )
    assert len([package for package, _ in wanted if package in known]) > 200
    named = {package for package, _ in wanted}
    for extra in ["", *extras]:
        for requirement in requirements(extra):
            if requirement.name == "cid-faces":  # itself, with another extra
                assert set(requirement.extras) <= {"faces"} and requirements("faces")
                continue
            assert re.sub(r"[-_.]+", "-", requirement.name).lower() in named, requirement
    for requirement in requirements("faces"):
        assert re.sub(r"[-_.]+", "-", requirement.name).lower() in named, requirement


def test_conda_users_get_the_same_list():
    entries = yaml.load(ROOT / "environment.yml")["dependencies"]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert "-c requirements.lock" in pip and "-e .[study,people,test]" in pip


def test_modules_import_only_modules_below_them():
    files = [path for name in ("cid", "people", "study") for path in (ROOT / name).rglob("*.py")]
    modules = {module_name(path): path for path in files if path.stem != "__init__"}
    assert sorted(modules) == sorted(ORDER)
    for position, module in enumerate(ORDER):
        for node in ast.walk(ast.parse(modules[module].read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in {node.module, *names} & set(ORDER):
                assert ORDER.index(name) > position, f"{module} imports {name}"


def test_the_renderer_stands_alone():
    """Only its command needs the experiment, and of the experiment only two places need it."""
    allowed = ("people", "study.faces.render", "study.tune")
    for path in [*ROOT.glob("cid/*.py"), *ROOT.glob("people/*.py"), *ROOT.glob("study/**/*.py")]:
        module = module_name(path)
        for node in ast.walk(ast.parse(path.read_text())):
            name = (getattr(node, "module", None) or "") if isinstance(node, ast.ImportFrom) else ""
            top = name.partition(".")[0]
            assert top != "people" or module.startswith(allowed), f"{module} imports {name}"
            if module.startswith("people.") and module != "people.__main__":
                assert top not in ("cid", "study"), f"{module} imports {name}"


ALONE = """
import importlib.machinery, sys, time

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {libraries}:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(spec.name + " is not installed", name=spec.name)

    exec_module = create_module

sys.meta_path.insert(0, Refuse())
began = time.process_time()
{code}
"""
STUDY = ["pandas", "pyarrow", "dvc", "papermill", "nbformat", "matplotlib", "IPython"]
METHOD = [
    name for name in ORDER if name.startswith("cid.") and not name.startswith(("cid._", "cid.door"))
]
FACES = ["torchvision", "facenet_pytorch", "face_recognition_models", "tflite"]


@pytest.mark.parametrize(
    "libraries, code",
    [
        (
            [*STUDY, "scipy", "sklearn", "torchvision", "facenet_pytorch", "tqdm"],
            "import numpy as np, torch\n"
            "libraries = time.process_time() - began\n"
            "from cid import cid_weights\n"
            "assert time.process_time() - began < 2 * libraries\n"
            "assert len(cid_weights(np.eye(4), [0, 0, 1, 1], 0.1)) == 4",
        ),
        (["torch", "sklearn", "scipy", *STUDY], "import study.methods.registry"),
        (
            [*STUDY, "sklearn"],
            "import " + ", ".join(name for name in METHOD),
        ),
        (
            [
                "torch",
                "sklearn",
                "scipy",
                "seaborn",
            ],  # of every section of the paper, several at a time
            "import study.results.plots, study.results.sentences, study.results.files\n"
            "import study.results.tables\n"
            "assert 'pyarrow.parquet' not in sys.modules",
        ),
        (
            ["torch", "sklearn", "matplotlib", "papermill"],  # each a second or more of a stage
            "import numpy as np, pandas as pd\n"
            "from study.results import claims, tables\n"
            "from study.results.inference import estimate\n"
            "rows = [(0.5, s, 'seen', r, 0.0, r % 2 - 0.5) for s in (0, 1) for r in range(8)]\n"
            "table = pd.DataFrame(rows, columns='level seed test row minority erm'.split())\n"
            "study = estimate(table, ['erm'], np.arange(8) % 2, np.arange(8) // 4, replicates=20)\n"
            "assert study.point['seen', 'accuracy'] == 1",
        ),
        (
            ["torch", "sklearn", "scipy", "pandas", "papermill"],
            "from study.pipeline import params; params.read()",
        ),
        (  # what `pip install .` brings is enough for who has embeddings
            [
                *FACES,
                "sklearn",
                "seaborn",
                "dvc",
                "papermill",
                "nbformat",
                "IPython",
                "jinja2",
                "study",
            ],
            "import " + ", ".join(name for name in ORDER if name.startswith("cid.door")) + "\n"
            "import numpy as np, tempfile\n"
            "from cid.door.cli import main\n"
            "from cid.door.page import figure\n"
            "from cid.auditing import Estimate\n"
            "assert figure([Estimate('m', 'minority', 0.5, 0.4, 0.6, 9)]).startswith('<svg')\n"
            "with tempfile.TemporaryDirectory() as t:\n"
            "    np.save(f'{t}/z.npy', np.eye(8) + 0.1)\n"
            "    np.save(f'{t}/y.npy', np.arange(8) % 2)\n"
            "    words = f'weigh --embeddings {t}/z.npy --labels {t}/y.npy -o {t}/w.csv'\n"
            "    assert main(words.split()) == 0",
        ),
    ],
    ids=["weights", "registry", "method", "figures", "intervals", "parameters", "door"],
)
def test_a_part_needs_no_more_than_it_says(libraries, code):
    text = ALONE.replace("{libraries}", repr(set(libraries))).replace("{code}", code)
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/*.ipynb"))


def test_a_verification_auc_is_never_without_what_may_flatter_it():
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8").lower()
        said = re.search(r"may have been[\W n]*trained on photographs of the same", text)
        assert said or "verification auc" not in text, path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebooks_hold_no_logic_a_test_could_want(path):
    cells = json.loads(path.read_text())["cells"]
    assert len(cells) <= 20
    for cell in cells:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            for node in ast.walk(tree):
                assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), path.name
                if isinstance(node, ast.ImportFrom) and path.parent.name == "compute":
                    assert "plots" not in [node.module, *(alias.name for alias in node.names)]


def test_the_readme_shows_the_committed_numbers(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    studies = overview.read_studies()
    documents = findings.documents(params.read(), studies)
    assert documents.keys() == {findings.README, findings.FINDINGS}
    for path, filled in documents.items():
        assert path.read_text() == filled, "run `python -m study documents`"
    results = (ROOT / "docs/results.md").read_text()
    assert overview.results_page(params.read(), studies) == results, "run the same command"
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)|src=\"((?!http)[^\"]+)\"", text):
        target = next(filter(None, name))
        assert (ROOT / target).exists(), f"README.md points to {target}, which does not exist"


def test_the_committed_report_is_of_the_committed_parameters():
    own = params.read(ROOT / "params.yaml")
    assert own == params.filled(kept.resolve(own["study"], ROOT / "studies"))
    assert {"train", "evaluate", "report", "publish"} <= set(yaml.load(ROOT / "dvc.lock")["stages"])


@pytest.mark.parametrize("name", STUDIES)
def test_a_kept_study_has_its_report_or_says_that_it_was_not_run(name):
    folder = ROOT / "reports" / name
    study = kept.resolve(name, ROOT / "studies")
    assert study["study"] == name
    if not folder.exists():
        assert study["protocol"]["note"].startswith("not run")
        return
    # By content: a report from before its study stood over a base lacks keys that no method of it reads;
    # tests/study/pipeline/test_kept_studies.py compares the others one by one.
    made_with = yaml.load(folder / "params.yaml")
    of_report = protocols.content_digest(made_with, ROOT / "studies")
    assert of_report == protocols.content_digest(study, ROOT / "studies")
    card = json.loads((folder / "card.json").read_text())
    assert study["data"] == card["name"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 4.5e6, f"{folder.name} holds {size / 1e6:.1f} MB; a clone carries every study"


def git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.mark.parametrize("row", CONFIRMATORY, ids=lambda row: row.study)
def test_a_protocol_was_committed_before_its_result_and_not_touched_after(row):
    """By the first file of the results that only studies with a protocol have.

    That the row's content is the one of its commit, a test of kept studies shows. The report of a study
    that was run again names that commit, too.
    """
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("the history is shallow or absent")
    name, fixed = row.study, row.commit
    made = json.loads((ROOT / "reports" / name / "provenance.json").read_text())
    assert made["protocol"]["commit"] == fixed
    added = ["log", "--format=%H", "--diff-filter=A", "--", f"reports/{name}/power.csv"]
    for result in git(*added).split():  # none: they are about to be committed
        done = subprocess.run(["git", "merge-base", "--is-ancestor", fixed, result], cwd=ROOT)
        assert result != fixed and done.returncode == 0, (
            f"studies/{name}.yaml is younger than its result"
        )


@pytest.mark.parametrize("name", REPORTED)
def test_reports_show_no_photograph_that_must_not_be_shown(name):
    """Faces are the only JPEGs that are drawn, alone or inside an SVG; charts are PNG and SVG."""
    folder = ROOT / "reports" / name
    allowed = json.loads((folder / "card.json").read_text()).get("show_images", True)
    pictures = [p.name for p in folder.rglob("*") if p.suffix in (".jpg", ".jpeg", ".webp")]
    drawings = folder.glob("figures/*.svg")
    pictures += [path.name for path in drawings if "image/jpeg" in path.read_text()]
    assert bool(pictures) == allowed
    for path in [folder / "index.html", *folder.glob("notebooks/*.ipynb")]:
        assert allowed or "image/jpeg" not in path.read_text(), path
        assert path.stat().st_size < 2e6, f"{path} is too large for a code host to show"


def test_the_page_of_speeds_shows_the_measured_numbers():
    tables = importlib.import_module("benchmarks.tables")
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert tables.filled(page) == page, "run `make bench`, or `python -m benchmarks.tables`"


def test_code_is_formatted_and_linted():
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_same_everywhere():
    citation = yaml.load(ROOT / "CITATION.cff")
    assert citation["version"] == cid.__version__
    assert f"## {cid.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License")


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]


def anchors(page: Path) -> set[str]:
    """The anchors that a code host makes of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} points to {name}"
        assert not anchor or anchor in anchors(target), f"{page.name} points to {link}"


def test_the_map_names_every_module():
    drawn = (ROOT / "CONTRIBUTING.md").read_text().split("## The map")[1].split("\n## ")[0]
    for name in ORDER:
        word = name.removesuffix(".__main__").rpartition(".")[2]
        assert re.search(rf"\b{word}\b", drawn), f"{name} is not on the map in CONTRIBUTING.md"


def test_the_first_page_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_bytes()) <= 9000


@pytest.mark.parametrize("path", ["README.md", "docs/findings.md"])
def test_every_figure_of_a_result_is_computed(path):
    """Outside of the blocks that `python -m study documents` writes there is none."""
    text = (ROOT / path).read_text()
    prose = re.sub(r"<!-- (\w+): begin -->.*?<!-- \1: end -->", "", text, flags=re.DOTALL)
    assert len(prose) < len(text)
    assert not re.findall(r"[+−]\d+\.\d+|\[[+−]\d|\b(?!95 %)\d+(?:\.\d+)? %", prose)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_import_what_there_is(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (
            "benchmarks",
            "cid",
            "study",
        ):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                found = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                assert found, f"{path.name} imports {name} from {node.module}"


def test_the_benchmark_of_scaling_runs():
    scaling = importlib.import_module("benchmarks.scaling")
    small = scaling.BASE | {"people": 10, "seeds": 2}
    for changes in (
        {"images": min(scaling.VARIED["images"])},
        {"levels": max(scaling.VARIED["levels"])},
    ):
        assert scaling.seconds(**(small | changes)) > 0


def test_the_tests_that_the_table_of_inputs_names_exist():
    named = set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "tests/inputs.md").read_text()))
    assert len(named) > 50
    missing = [f"{f}::{t}" for f, t in named if f"def {t}(" not in (ROOT / f).read_text()]
    assert not missing


def test_celeba_on_disk_is_one_command_from_a_report():
    def make(*told):
        return subprocess.run(
            ["make", "-n", "celeba", *told],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    lines = make("FOLDER=my CelebA", "NAME=celeba-mouth-8").splitlines()
    # Always through the importer, which keeps what is there only if it is of the same files and people.
    assert lines[-3:] == [
        'python -m study import celeba "my CelebA" --part development --unless-there',
        "dvc add --quiet data",
        "python -m study run celeba-mouth-8",
    ]
    assert make("FOLDER=C").splitlines()[-1].endswith("celeba-smiling-8")
    assert "--part confirmation" in make("FOLDER=C", "PART=confirmation")
    assert "say where CelebA is" in make()


def _wheel(folder: Path, name: str, version: str) -> str:
    """An empty wheel, as a page of a package index links to it."""
    info = f"{name}-{version}.dist-info"
    file = f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / file, "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{file.replace("+", "%2B")}">{file}</a>')
    return file


def test_torch_for_processors_comes_from_the_index_that_is_named_at_the_version_of_the_lock(
    tmp_path,
):
    for name in ("torch", "torchvision"):
        _wheel(tmp_path / "index" / name, name, f"{pins()[name]}+cpu")
    address = (tmp_path / "index").as_uri()
    (tmp_path / "env/bin").mkdir(parents=True)  # an environment whose pip is that of the tests
    (tmp_path / "env/bin/python").symlink_to(sys.executable)
    told = subprocess.run(
        [
            "make",
            "-n",
            f"VENV={tmp_path / 'env'}",
            f"TORCH={address}",
            f"{tmp_path / 'env'}/.study",
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "1.8 GB" in told and "--require-hashes" not in told
    torch, rest = (line for line in told.splitlines() if " -m pip install " in line)
    assert rest.endswith("-c requirements.lock -e '.[study]'")
    python, *command = shlex.split(torch)
    assert python == str(tmp_path / "env/bin/python") and command[-2:] == ["torch", "torchvision"]
    tried = [
        "--dry-run",
        "--ignore-installed",
        "--no-cache-dir",
        "--report",
        str(tmp_path / "report"),
    ]
    subprocess.run([sys.executable, *command, *tried], cwd=ROOT, check=True, capture_output=True)
    report = json.loads((tmp_path / "report").read_text())
    found = {one["metadata"]["name"]: one["metadata"]["version"] for one in report["install"]}
    assert found == {name: f"{pins()[name]}+cpu" for name in ("torch", "torchvision")}
    for requirement in requirements():  # so that the second command installs neither again
        if requirement.name in found:
            assert requirement.specifier.contains(found[requirement.name])


def test_no_two_figures_of_a_report_share_a_file():
    """A name of a figure is a file in the report: the later section would replace the earlier's."""
    shown = []
    for path in sorted((ROOT / "notebooks" / "paper").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.show":
                shown.append(ast.unparse(node.args[1]))
    assert len(shown) > 20 and len(set(shown)) == len(shown)
