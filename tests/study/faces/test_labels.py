"""Labels without names, and the cards that say where data come from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from study import cli
from study.faces import labels
from study.pipeline import kept

ROOT = Path(__file__).parents[3]
CARDS = sorted(path for path in (ROOT / "docs/data").glob("*.md") if path.stem != "README")
PARTS = (
    "Source", "Version", "Labels", "Agreement", "Licence", "Consent", "How to make it",
    "Who may redo it",
)  # fmt: skip


def parts_of(card: Path) -> dict[str, str]:
    """The text below each heading of a card."""
    pieces = re.split(r"(?m)^## (.+)\n", card.read_text(encoding="utf-8"))
    return dict(zip(pieces[1::2], map(str.strip, pieces[2::2]), strict=True))


def commands_of(card: Path) -> list[list[str]]:
    """The words of every command that a card has, without its prompt."""
    blocks = re.findall(r"```console\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line[2:]) for line in lines]


@pytest.fixture
def photographs(tmp_path):
    """Two people with two photographs each, and a table of labels by name; the last has none."""
    for number, name in enumerate(("Ann/Ann_1.png", "Ann/Ann_2.png", "Bob/Bob_1.png", "Bob/x.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    named = tmp_path / "named.csv"
    named.write_text(
        "score,image,person\n0.25,Ann/Ann_1.png,Ann\n1,Ann/Ann_2.png,Ann\n0.5000,Bob/Bob_1.png,Bob\n"
        ",Bob/x.png,Bob\n"
    )
    return tmp_path


def run(*words) -> int:
    return cli.main(["labels", *map(str, words)])


def test_labels_come_back_to_the_photographs_that_they_were_of(photographs, capsys):
    table, out = photographs / "table.csv", photographs / "labels.csv"
    source = photographs / "photos"
    assert run(photographs / "named.csv", source, "--out", table, "--hashed", "score") == 0
    text = table.read_text()
    assert text.startswith("sha256,score\n") and "Ann" not in text and "Bob" not in text
    moved = photographs / "elsewhere"
    moved.mkdir()
    (source / "Ann").rename(moved / "somebody")
    (moved / "gone.png").symlink_to(photographs / "gone.png")
    (source / "Bob/Bob_1.png").rename(moved / "b.png")
    Image.new("RGB", (8, 8), (99, 0, 0)).save(moved / "new.png")
    assert run(table, moved, "--out", out) == 0
    assert capsys.readouterr().out.endswith("labels.csv: labels of 3 images\n")
    assert out.read_text().splitlines() == [
        "image,identity,score",
        "b.png,elsewhere,0.5000",
        "somebody/Ann_1.png,somebody,0.25",
        "somebody/Ann_2.png,somebody,1",
    ]


def test_what_does_not_fit_is_named(photographs, capsys):
    table, source = photographs / "table.csv", photographs / "photos"
    named = photographs / "named.csv"
    assert run(named, source, "--out", table, "--hashed", "smile") == 1
    assert "has no column 'smile'; it has score, image, person" in capsys.readouterr().err
    assert run(named, source, "--out", table) == 1
    assert "lacks a column sha256" in capsys.readouterr().err
    assert run(table, source, "--out", named) == 1
    assert "table.csv is no table of labels" in capsys.readouterr().err
    assert run(named, photographs / "gone", "--out", table, "--hashed", "score") == 1
    assert "gone does not exist; name the folder" in capsys.readouterr().err
    table.write_text("sha256,score\nabc,1\n")
    assert run(table, source, "--out", photographs / "new.csv") == 1
    assert "knows none of the 4 images" in capsys.readouterr().err
    assert not (photographs / "new.csv").exists()


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs/data").glob("*.csv")))
def test_a_committed_table_names_nobody(name):
    table = labels.read_hashed(ROOT / "docs/data" / name)
    assert table[labels.DIGEST].str.fullmatch(f"[0-9a-f]{{{labels.DIGITS}}}").all()
    assert table[labels.DIGEST].is_monotonic_increasing
    scores = table.drop(columns=labels.DIGEST).apply(pd.to_numeric)
    assert scores.stack().dropna().between(0, 1).all()


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_leaves_nothing_out(card):
    parts = parts_of(card)
    assert list(parts) == list(PARTS) and all(parts.values())
    for text in parts.values():  # what is not known is said with what was looked up
        unknown = re.search(r"(?i)\bnot known\b|\bunknown\b", text)
        assert not unknown or "ooked up: " in text
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", card.read_text()):
        assert (card.parent / target).exists(), target


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_the_commands_of_a_card_are_understood(card, tmp_path, monkeypatch, capsys):
    """Their photographs are not here, and that is what they say: not that an argument is wrong."""
    commands = commands_of(card)
    assert commands
    monkeypatch.chdir(tmp_path)
    for words in commands:
        if words[0] == "make":
            assert re.search(rf"(?m)^{words[1]}:", (ROOT / "Makefile").read_text())
        elif words[3] in ("import", "labels"):
            assert words[:3] == ["python", "-m", "study"]
            assert cli.main(words[3:]) == 1
            assert re.match(r"error: .*\b(LFW|PINS|CMU|CELEBA)\b", capsys.readouterr().err)


def test_every_study_has_a_card_with_the_commands_of_its_head():
    for name in kept.names(ROOT / "studies"):
        data = kept.resolve(name, ROOT / "studies")["data"]
        data = data.removesuffix("-development").removesuffix("-confirmation")
        card = (ROOT / "docs/data" / f"{data}.md").read_text()
        head = (ROOT / "studies" / f"{name}.yaml").read_text().partition("\nbase:")[0]
        words = " ".join(head.replace("#", " ").split())
        for command in re.findall(r"python -m study import .+?(?= `| *$)", words):
            assert command in card, f"{name}: {command}"
