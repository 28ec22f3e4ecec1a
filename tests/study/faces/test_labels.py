"""Labels without names, and the cards that say where data come from."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from study import cli
from study.faces import labels
from study.faces.dataset import read_faces
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


def test_the_table_that_is_read_is_not_written_over(photographs, capsys):
    table = photographs / "named.csv"
    before = table.read_bytes()
    assert run(table, photographs / "photos", "--out", table, "--hashed", "score") == 1
    assert "named.csv would be written over, and it is read here" in capsys.readouterr().err
    assert table.read_bytes() == before


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


def picture(folder: Path, name: str, number: int) -> Path:
    """A small picture that no other number has, of the kind that the end of its name says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    (image.convert("L") if path.suffix == ".pgm" else image).save(path)
    return path


def committed(table: str, paths: list[Path], **columns) -> None:
    """A table as those of docs/data/, of made-up photographs."""
    found = [hashlib.sha256(path.read_bytes()).hexdigest()[: labels.DIGITS] for path in paths]
    Path("docs/data").mkdir(parents=True)
    pd.DataFrame({labels.DIGEST: found, **columns}).to_csv(f"docs/data/{table}", index=False)


def made_lfw() -> None:
    names = [f"{person}/{person}_000{k}.jpg" for person in ("Ann_A", "Bob_B") for k in (1, 2, 3, 4)]
    paths = [picture(Path("LFW"), name, number) for number, name in enumerate(names)]
    scores = [0.1, 0.9, 0.05, 0.95] * 2
    committed("lfw-labels.csv", paths, p_mouth_open=scores, p_eyeglasses=scores, p_smiling=scores)


def made_pins() -> None:
    names = [f"pins_{person}/{k}.jpg" for person in ("Ann", "Bob") for k in range(4)]
    paths = [picture(Path("PINS"), name, number) for number, name in enumerate(names)]
    committed("pins-labels.csv", paths, mouth_open=[0, 1] * 4, turned=[0, 0, 1, 1] * 2)


def made_cmu() -> None:
    for number, person in enumerate(("an2i", "at33")):
        for look in ("open", "sunglasses"):
            picture(Path("CMU"), f"{person}/{person}_left_angry_{look}.pgm", 2 * number + len(look))


def made_celeba() -> None:
    names = [f"{k + 1:06d}.jpg" for k in range(40)]
    for number, name in enumerate(names):
        picture(Path("CELEBA/img_align_celeba"), name, number)
    people = "".join(f"{name} {number // 2}\n" for number, name in enumerate(names))
    Path("CELEBA/identity_CelebA.txt").write_text(people)
    signs = "".join(f"{name} {(-1) ** number}\n" for number, name in enumerate(names))
    Path("CELEBA/list_attr_celeba.txt").write_text(f"{len(names)}\nSmiling\n{signs}")


@pytest.mark.parametrize(
    "card, make, images",
    [("lfw", made_lfw, 8), ("pins", made_pins, 8), ("cmu-faces", made_cmu, 4), ("celeba", made_celeba, None)],
)  # fmt: skip
def test_the_commands_of_a_card_run(card, make, images, tmp_path, monkeypatch, capsys):
    """One after another, on made-up files in the place of the photographs."""
    monkeypatch.chdir(tmp_path)
    make()
    for words in commands_of(ROOT / "docs/data" / f"{card}.md"):
        if (
            "smiling=smiling+p_smiling" in words
        ):  # the half of the label that is not in the repository
            table = pd.read_csv("labels.csv")
            table.assign(smiling=table["p_smiling"].round()).to_csv("labels.csv", index=False)
        assert cli.main(words[3:]) in (None, 0), capsys.readouterr().err
        if "import" in words and images:
            assert len(read_faces("data")) == images


def test_every_study_has_a_card_with_the_commands_of_its_head():
    for name in kept.names(ROOT / "studies"):
        data = kept.resolve(name, ROOT / "studies")["data"]
        data = data.removesuffix("-development").removesuffix("-confirmation")
        card = (ROOT / "docs/data" / f"{data}.md").read_text()
        head = (ROOT / "studies" / f"{name}.yaml").read_text().partition("\nbase:")[0]
        words = " ".join(head.replace("#", " ").split())
        for command in re.findall(r"python -m study import .+?(?= `| *$)", words):
            assert command in card, f"{name}: {command}"
        assert f"`{name}`" in card or data == "celeba", f"{name} is not on the card"
