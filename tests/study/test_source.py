"""What code a result comes from."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from study import source


@pytest.fixture
def parcel(tmp_path, monkeypatch):
    """Two packages that import each other's modules in every way there is."""
    texts = {
        "parcel/__init__.py": "",
        "parcel/upper.py": '''"""Top."""
from parcel.lower import helper
from parcel import other
import numpy as np

LIMIT = 3


def used(x):
    """Say something."""
    # and comment on it
    return helper(x) + other.constant + LIMIT


def neighbour():
    return 1


def late():
    from crate.deep.inside import far

    return far()


REGISTRY = {"a": used, "b": neighbour}
''',
        "parcel/lower.py": "def helper(x):\n    return np.abs(x)\n\n\ndef idle():\n    pass\n",
        "parcel/other.py": "constant = 1\nunrelated = 2\n",
        "crate/__init__.py": "",
        "crate/deep/__init__.py": "",
        "crate/deep/inside.py": "import parcel.other as o\n\n\ndef far():\n    return o.constant\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(source, "ROOT", tmp_path)

    def edit(name, old, new):
        text = (tmp_path / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new))
        source.forget()

    source.forget()
    yield edit
    source.forget()


def digests():
    return {
        name: source.code(f"parcel.upper.{name}")
        for name in ("used", "neighbour", "late", "REGISTRY[a]", "REGISTRY[b]", "REGISTRY")
    }


@pytest.mark.parametrize(
    "file, old, new, changed",
    [
        ("parcel/upper.py", "and comment on it", "or not", ""),
        ("parcel/upper.py", "Say something.", "Say nothing.", ""),
        ("parcel/upper.py", "+ other.constant", "+   other.constant", ""),
        ("parcel/lower.py", "    pass", "    return 1", ""),
        ("parcel/other.py", "unrelated = 2", "unrelated = 3", ""),
        ("parcel/upper.py", "return 1", "return 2", "neighbour REGISTRY[b] REGISTRY"),
        ("parcel/upper.py", "LIMIT = 3", "LIMIT = 4", "used REGISTRY[a] REGISTRY"),
        ("parcel/lower.py", "np.abs(x)", "abs(x)", "used REGISTRY[a] REGISTRY"),
        ("parcel/other.py", "constant = 1", "constant = 5", "used late REGISTRY[a] REGISTRY"),
        ("crate/deep/inside.py", "o.constant", "o.constant + 1", "late"),
        ("parcel/upper.py", '"b": neighbour', '"b": used', "REGISTRY[b] REGISTRY"),
    ],
)
def test_a_digest_changes_with_what_a_definition_uses_and_with_nothing_else(
    parcel, file, old, new, changed
):
    before = digests()
    assert len(set(before.values())) == len(before)
    parcel(file, old, new)
    after = digests()
    assert [name for name in after if after[name] != before[name]] == changed.split()


def test_a_function_that_moves_into_a_package_is_still_followed(parcel, tmp_path):
    (tmp_path / "crate/deep/moved.py").write_text((tmp_path / "parcel/lower.py").read_text())
    parcel("parcel/upper.py", "from parcel.lower import", "from crate.deep.moved import")
    before = digests()
    parcel("crate/deep/moved.py", "np.abs(x)", "abs(x)")
    assert digests()["used"] != before["used"] and digests()["late"] == before["late"]


def test_a_program_is_followed_to_the_definitions_that_it_uses(parcel):
    text = "from parcel import upper\nx = [upper.used(n) for n in (1, 2)]\n"
    before = source.program(text)
    parcel("parcel/upper.py", "return 1", "return 2")
    assert source.program(text) == before == source.program(text + "y = x\n")
    parcel("parcel/lower.py", "np.abs(x)", "abs(x)")
    assert source.program(text) != before


def test_what_is_not_there_is_refused(parcel):
    for name in ("parcel.upper.gone", "parcel.gone", "numpy.abs", "parcel.upper.REGISTRY[c]"):
        with pytest.raises(ValueError, match="there is no definition"):
            source.code(name)


def test_files_are_those_of_all_local_imports(parcel, tmp_path):
    tree = ast.parse("import numpy\nfrom parcel import upper\n")
    found = {path.relative_to(tmp_path).as_posix() for path in source.files([tree])}
    assert found == {f"parcel/{name}.py" for name in ("__init__", "upper", "lower", "other")} | {
        f"crate/{name}.py" for name in ("__init__", "deep/__init__", "deep/inside")
    }


def test_the_sources_here_can_be_followed():
    source.forget()
    root = Path(source.__file__).parents[1]
    files = [*(root / "cid").glob("*.py"), *(root / "study").rglob("*.py")]
    names = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in files
        if path.stem not in ("__init__", "__main__") and "def " in path.read_text()
    ]
    assert len({source.code(name) for name in names}) == len(names) > 30


def test_a_library_is_none_of_the_projects_code_wherever_it_lies(tmp_path, monkeypatch):
    # As of `pip --user`, PYTHONPATH or an environment behind a link: no folder that Python calls its own.
    (tmp_path / "everywhere").mkdir()
    (tmp_path / "everywhere/__init__.py").write_text(
        "def huge():\n    return " + "(" * 50 + ")" * 50
    )
    monkeypatch.syspath_prepend(tmp_path)
    source.forget()
    assert source.files([ast.parse("import everywhere, numpy, study.errors")]) == {
        source.ROOT / "study/__init__.py",
        source.ROOT / "study/errors.py",
    }
    before = source.program("import everywhere\neverywhere.huge()")
    assert before == source.program("pass")
