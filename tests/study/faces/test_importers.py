"""Importers: every source on a few tiny images, every kind of bad input, and interruptions."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from study import cli
from study.faces import annotations, dataset, importers, parts
from study.faces.dataset import read_faces

LABELS = "image,identity,glasses\n"
LFW = ["--labels", "labels.csv", "--attribute", "smiling"]


def picture(seed: int = 0, mode: str = "RGB", size=(24, 20)) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    ).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """Six images of two people in a folder, and their labels."""
    folder = tmp_path / "source"
    lines = []
    for k in range(6):
        name = f"{'ann' if k < 3 else 'bob'}/{k}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(k)))
        lines.append(f"{name},{name[:3]},{k % 2}\n")
    (tmp_path / "labels.csv").write_text(LABELS + "".join(lines))
    return folder


def imported(source, **options):
    listing = importers.from_table(source, source.parent / "labels.csv", ["glasses"])
    options = {"progress": False} | options
    return read_faces(importers.import_faces(listing, source.parent / "out", **options))


def reasons(data) -> dict[str, str]:
    return dict(zip(data.excluded["image"], data.excluded["reason"], strict=True))


def add(source, line: str) -> None:
    with open(source.parent / "labels.csv", "a", encoding="utf-8") as file:
        file.write(line + "\n")


# --- sources --------------------------------------------------------------------------------------


@pytest.fixture
def celeba(tmp_path):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{k:06d}.jpg" for k in range(1, 5)]
    for k, name in enumerate(names):
        (folder / "img_align_celeba" / name).write_bytes(encoded(picture(k), "JPEG"))
    signs = ["-1  1", " 1 -1", "-1 -1", " 1  1"]
    attributes = "".join(f"{n} {s}\n" for n, s in zip(names, signs, strict=True))
    (folder / "list_attr_celeba.txt").write_text(f"4\nEyeglasses Smiling \n{attributes}")
    (folder / "identity_CelebA.txt").write_text(
        "".join(f"{n} {9 + (k > 1)}\n" for k, n in enumerate(names))
    )
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{n} {k % 3}\n" for k, n in enumerate(names))
    )
    points = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    (folder / "list_landmarks_align_celeba.txt").write_text(
        f"4\n{points}\n" + "".join(f"{n} 1 2 3 4 5 6 7 8 9 {k}\n" for k, n in enumerate(names))
    )
    return folder


def test_celeba_from_its_folder_and_from_its_zip(celeba, tmp_path):
    out = importers.import_faces(
        importers.celeba(celeba), tmp_path / "a", keep_names=True, progress=False
    )
    data = read_faces(out)
    assert data.card["attributes"] == ["Eyeglasses", "Smiling"]
    assert data.labels("Smiling").tolist() == [1, 0, 0, 1]
    assert data.frame["identity"].tolist() == ["9", "9", "10", "10"]
    assert data.frame["partition"].tolist() == ["train", "valid", "test", "train"]
    np.testing.assert_array_equal(data.landmarks()[2], [[1, 2], [3, 4], [5, 6], [7, 8], [9, 2]])
    shutil.make_archive(str(celeba / "img_align_celeba"), "zip", celeba, "img_align_celeba")
    shutil.rmtree(celeba / "img_align_celeba")
    packed = importers.import_faces(
        importers.celeba(celeba), tmp_path / "b", keep_names=True, progress=False
    )
    for name in ("faces-00000.parquet", "card.json"):
        assert (packed / name).read_bytes() == (out / name).read_bytes()
    archive = celeba / "img_align_celeba.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match="img_align_celeba.zip is not a complete zip"):
        importers.celeba(celeba)


@pytest.fixture
def crowd(tmp_path):
    """CelebA with 40 people of three images each, in its three partitions."""
    folder = tmp_path / "crowd"
    (folder / "img_align_celeba").mkdir(parents=True)
    tables = {"identity_CelebA": [], "list_eval_partition": [], "list_attr_celeba": []}
    for k in range(120):
        name = f"{k + 1:06d}.jpg"
        (folder / "img_align_celeba" / name).write_bytes(encoded(picture(k, size=(8, 8)), "JPEG"))
        tables["identity_CelebA"].append(f"{name} {100 + k // 3}")
        tables["list_eval_partition"].append(f"{name} {k // 3 % 3}")
        tables["list_attr_celeba"].append(f"{name} {1 if k % 2 else -1}")
    tables["list_attr_celeba"][:0] = ["120", "Smiling"]
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_who_is_left_for_confirmation_is_never_imported_for_development(crowd, tmp_path):
    found = {}
    for part in parts.PARTS:
        listing = importers.only(importers.celeba(crowd), part)
        out = importers.import_faces(listing, tmp_path / part, keep_names=True, progress=False)
        found[part] = read_faces(out)
    people = {part: set(data.frame["identity"]) for part, data in found.items()}
    assert people["all"] == {str(number) for number in range(100, 140)}
    assert people["development"] | people["confirmation"] == people["all"]
    assert people["development"].isdisjoint(people["confirmation"])
    confirms = {person for person in people["all"] if parts.lot(person) < 0.25}
    assert people["confirmation"] == confirms and len(confirms) > 3
    card = found["development"].card
    assert card["name"] == "celeba-development"
    assert card["part"]["left_out"] == len(confirms)
    assert card["excluded"] == {"the person is not in the part development": 3 * len(confirms)}
    assert found["all"].card["name"] == "celeba" and "part" not in found["all"].card


def test_an_image_of_nobody_known_is_in_no_part(crowd):
    """It may show somebody who is left alone."""
    table = crowd / "identity_CelebA.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[3:]))
    whole = importers.celeba(crowd)
    assert whole.table["identity"].isna().sum() == 3
    for part in (parts.DEVELOPMENT, parts.CONFIRMATION):
        listing = importers.only(whole, part)
        assert listing.table["identity"].notna().all()
        unknown = [name for name, why in listing.excluded if why == "the part of an unknown person"]
        assert unknown == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert len(importers.only(whole, parts.ALL).table) == 120


def test_a_part_of_celeba_is_taken_and_said_to_be_one(crowd, tmp_path, capsys):
    names = sorted(path.name for path in (crowd / "img_align_celeba").iterdir())
    for name in names[6:]:  # two people of 40 are left: 5 %
        (crowd / "img_align_celeba" / name).unlink()
    assert cli.main(["import", "celeba", str(crowd), "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "o: 6 images of 2 people" in said
    assert (
        "an incomplete copy: 6 of the 120 images in the tables are here (5 %): train 3 of 42, valid 3 of "
        "39, test 0 of 39; the tables are incomplete, too: CelebA has 202,599 images\n"
    ) in said
    card = read_faces(tmp_path / "o").card
    assert card["copy"]["all"] == {"listed": 120, "here": 6}
    assert card["excluded"] == {"no such image": 114}
    for name in names[:6]:
        (crowd / "img_align_celeba" / name).unlink()
    (crowd / "img_align_celeba" / "note.txt").write_text("")
    with pytest.raises(
        ValueError, match="no image of celeba can be used .114 x no such image|120 x"
    ):
        importers.import_faces(importers.celeba(crowd), tmp_path / "o", progress=False)
    assert read_faces(tmp_path / "o").card["counts"]["images"] == 6  # as it was


def test_only_what_was_made_of_the_same_files_is_kept(crowd, tmp_path, capsys):
    out = tmp_path / "o"
    command = ["import", "celeba", str(crowd), "--out", str(out), "--unless-there"]

    def runs(*options) -> bool:
        """Whether the command imports anything."""
        before = (out / "card.json").stat().st_mtime_ns if out.exists() else None
        assert cli.main([*command, *options]) == 0
        imported = (out / "card.json").stat().st_mtime_ns != before
        assert (
            "kept, as it was made of these very tables and files" in capsys.readouterr().out
        ) != imported
        return imported

    development = ("--part", "development")
    assert runs(*development)
    assert not runs(*development)
    assert runs()  # all people: another data set
    assert runs(*development)
    image = crowd / "img_align_celeba" / "000001.jpg"
    kept = image.read_bytes()
    image.unlink()  # half a copy
    assert runs(*development)
    image.write_bytes(encoded(picture(500), "JPEG"))  # another picture of that name
    assert runs(*development)
    image.write_bytes(kept)
    assert runs(*development)
    table = crowd / "identity_CelebA.txt"
    table.write_text(table.read_text().replace("000001.jpg 100", "000001.jpg 101"))
    assert runs(*development)
    assert not runs(*development)
    assert runs(*development, "--show-images")  # other options
    shard = out / "faces-00000.parquet"
    half = pq.read_table(shard)[:10]
    pq.write_table(half, shard)  # half of what its card says
    assert cli.main([*command, *development]) == 0
    said = capsys.readouterr().out
    assert "o: the data set there is not kept, as its files hold 10 of its" in said
    shard.unlink()
    assert runs(*development)
    assert cli.main([*command, *development]) == 0
    said = capsys.readouterr().out
    assert "very tables and files: celeba-development, " in said and " people\n  " in said
    assert (
        "an incomplete copy" not in said and "120 of the 120 images in the tables are here" in said
    )
    (out / "card.json").write_text("{")
    assert runs(*development)
    importers.import_faces(  # of another source
        importers.Listing(
            pd.DataFrame({"image": ["a", "b"], "identity": "x", "y": [0.0, 1.0]}),
            ["y"],
            {"name": "celeba-development", "source": "", "licence": ""},
            lambda name: encoded(picture(ord(name))),
        ),
        out,
        progress=False,
    )
    assert runs(*development)


def rows(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if line.strip()]


def official(folder):
    for part, names in (("Anno", ("list_attr*", "identity*", "list_land*")), ("Eval", ("list_eval*",)),
                        ("Img", ("img_align_celeba",))):  # fmt: skip
        (folder / part).mkdir()
        for path in [path for name in names for path in folder.glob(name)]:
            path.rename(folder / part / path.name)


def kaggle(folder):
    for name in ("list_attr_celeba", "list_landmarks_align_celeba", "list_eval_partition"):
        lines = rows(folder / f"{name}.txt")
        names = ["partition"] if "eval" in name else lines[1]
        body = lines if "eval" in name else lines[2:]
        text = "\n".join(",".join(line) for line in [["image_id", *names], *body])
        (folder / f"{name}.csv").write_text(text)
        (folder / f"{name}.txt").unlink()
    (folder / "img_align_celeba").rename(folder / "nested")
    (folder / "img_align_celeba").mkdir()
    (folder / "nested").rename(folder / "img_align_celeba" / "img_align_celeba")


def edited(folder):
    attributes, identity = folder / "list_attr_celeba.txt", folder / "identity_CelebA.txt"
    attributes.write_text(attributes.read_text().partition("\n")[2], encoding="utf-8-sig")
    people = "".join(f"{', '.join(row)}\n" for row in rows(identity))
    identity.write_text("image, identity\n" + people, encoding="utf-8-sig")


def unheaded(folder):
    identity = folder / "identity_CelebA.txt"
    identity.write_text("".join(f"{','.join(row)}\r\n" for row in rows(identity)))


def lossless(folder):
    (folder / "img_align_celeba").rename(folder / "img_align_celeba_png")
    for path in (folder / "img_align_celeba_png").iterdir():
        path.rename(path.with_suffix(".png"))


@pytest.mark.parametrize("layout", [official, kaggle, edited, unheaded, lossless])
def test_celeba_as_people_have_it(celeba, tmp_path, layout):
    wanted = importers.celeba(celeba)
    layout(celeba)
    found = importers.celeba(celeba)
    images = found.table["image"].str.replace(".png", ".jpg")
    pd.testing.assert_frame_equal(found.table.assign(image=images), wanted.table)
    assert found.attributes == wanted.attributes and found.excluded == []
    for name, other in zip(found.table["image"], wanted.table["image"], strict=True):
        assert found.read(name) == encoded(picture(int(other[:6]) - 1), "JPEG")
    with pytest.raises(KeyError):
        found.read("000009.jpg")


def with_row_numbers(folder):
    """All tables as pandas writes them: separated by commas, after a column of row numbers."""
    for name in (
        "list_attr_celeba",
        "list_landmarks_align_celeba",
        "identity_CelebA",
        "list_eval_partition",
    ):
        lines = rows(folder / f"{name}.txt")
        headed = len(lines[0]) == 1
        names = lines[1] if headed else ["partition" if "eval" in name else "celeb_id"]
        frame = pd.DataFrame(lines[2:] if headed else lines, columns=["image_id", *names])
        frame[frame.columns[::-1]].to_csv(folder / f"{name}.csv")  # and in another order
        (folder / f"{name}.txt").unlink()


def test_columns_of_celeba_are_found_by_their_names_alone(celeba):
    wanted = importers.celeba(celeba).table
    with_row_numbers(celeba)
    pd.testing.assert_frame_equal(importers.celeba(celeba).table[list(wanted)], wanted)
    attributes = celeba / "list_attr_celeba.csv"
    frame = pd.read_csv(attributes, index_col=0)
    frame.drop(columns="Eyeglasses").to_csv(attributes)  # cut away with its name: the others stay
    found = importers.celeba(celeba)
    assert found.attributes == ["Smiling"]
    pd.testing.assert_series_equal(found.table["Smiling"], wanted["Smiling"])


def test_celeba_names_the_file_that_is_not_what_it_seems(celeba):
    images = celeba / "img_align_celeba"
    (images / "more").mkdir()
    shutil.copy(images / "000001.jpg", images / "more" / "000001.png")
    with pytest.raises(ValueError, match="holds 000001.jpg and more/000001.png; keep one of them"):
        importers.celeba(celeba)
    shutil.rmtree(images)
    with zipfile.ZipFile(celeba / "img_align_celeba.zip", "w") as archive:
        for name in ("a/000001.jpg", "b/000001.jpg"):
            archive.writestr(name, "x")
    with pytest.raises(
        ValueError, match="zip holds a/000001.jpg and b/000001.jpg; keep one of them"
    ):
        importers.celeba(celeba)
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    (celeba / "img_align_celeba.zip").write_bytes(pointer)
    with pytest.raises(ValueError, match="celeba.zip is not a complete zip .a Git LFS pointer"):
        importers.celeba(celeba)
    (celeba / "identity_CelebA.txt").write_bytes(b" <html><body>Quota exceeded")
    with pytest.raises(
        ValueError, match="identity_CelebA.txt is not a table of CelebA .a web page"
    ):
        importers.celeba(celeba)
    (celeba / "identity_CelebA.txt").write_text("000001.jpg 1\n000001.jpg 2\n")
    with pytest.raises(ValueError, match="identity_CelebA.txt .* .it has two rows of 000001.jpg"):
        importers.celeba(celeba)
    (celeba / "identity_CelebA.txt").unlink()
    with pytest.raises(
        ValueError, match="Kaggle's copy has no identity_CelebA.txt: take it from the"
    ):
        importers.celeba(celeba)


def test_celeba_names_the_file_that_is_wrong(celeba):
    attributes = celeba / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("4\n", "5\n", 1))
    with pytest.raises(ValueError, match="list_attr_celeba.txt announces 5 rows and has 4"):
        importers.celeba(celeba)
    attributes.write_text("2\nA\n000001.jpg 1\n000002.jpg 0\n000003.jpg -1\n".replace("2", "3", 1))
    with pytest.raises(ValueError, match="list_attr_celeba.txt has a label 0 beside 1 and -1"):
        importers.celeba(celeba)
    attributes.write_text("000001.jpg 1\n")
    with pytest.raises(ValueError, match="list_attr_celeba.txt .* .it has no line of names"):
        importers.celeba(celeba)
    attributes.write_text("nonsense")
    with pytest.raises(ValueError, match="list_attr_celeba.txt is not a table of CelebA"):
        importers.celeba(celeba)
    (celeba / "identity_CelebA.txt").unlink()
    attributes.write_text("1\nA\n000001.jpg 1\n")
    with pytest.raises(ValueError, match="identity_CelebA.txt is missing; get the aligned images"):
        importers.celeba(celeba)


@pytest.mark.parametrize(
    "name, before, after, said",
    [
        ("list_eval_partition", " 2", " 3", "partition.txt has no 0, 1 or 2 for 000003.jpg"),
        ("list_eval_partition", "000001.jpg 0\n", "", "partition.txt has no 0, 1 or 2 for 000001.jpg"),
        ("identity_CelebA", " ", ";", "CelebA.txt .* .it has no second column, after a space or comma"),
        ("identity_CelebA", ".jpg", "", "names none of the images of .*, but 000001 where that has 000001.jpg"),
        ("list_attr_celeba", "Eyeglasses", "Smiling", "attr_celeba.txt .* .it has two columns Smiling"),
        ("list_attr_celeba", "Eyeglasses", "identity", "celeba.txt has a column identity, which is no attr"),
        ("list_attr_celeba", "000002.jpg  1 -1", "000002.jpg  1", ".it lacks a value of 000002.jpg"),
        ("list_landmarks_align_celeba", "000001.jpg 1 2 3 4 5 6 7 8 9 0\n", "", "announces 4 rows and has 3"),
        ("list_landmarks_align_celeba", "nose_x", "nose", "lacks images, or has not ten numbers of each; remove"),
        # A column that was cut away shifts no other, and a number that is no label is none.
        ("list_landmarks_align_celeba", " 9", "", "as many cells as it names columns .10., and none is the image's"),
        ("list_attr_celeba", " 1 -1\n", " 1\n", "it lacks a value of 000002.jpg"),
        ("list_attr_celeba", "Eyeglasses Smiling", "a b c Smiling", "names 4 columns, and its rows have 3 cells"),
        ("list_attr_celeba", "000002.jpg  1", "000002.jpg  1.7", "attr_celeba.txt has a label 1.7 beside 1 and -1"),
        ("list_attr_celeba", "000002.jpg  1", "000002.jpg  yes", "could not convert string to float: 'yes'"),
        ("identity_CelebA", "000001.jpg", "image_id Smiling\n000001.jpg", "no column identity or .*, but Smiling"),
        ("identity_CelebA", " 9", " 9 1", "it has 3 columns, none with a name, where 2 are expected|Expected"),
    ],
)  # fmt: skip
def test_celeba_names_the_table_that_does_not_fit(celeba, name, before, after, said):
    table = celeba / f"{name}.txt"
    table.write_text(table.read_text().replace(before, after))
    with pytest.raises(ValueError, match=said) as error:
        importers.celeba(celeba)
    assert "\n" not in str(error.value)


def test_celeba_of_other_numbers_or_behind_a_password_is_told(celeba, tmp_path):
    images = celeba / "img_align_celeba"
    for path in list(images.iterdir()):
        path.rename(path.with_name(path.name.lstrip("0")))
    with pytest.raises(
        ValueError, match="attr_celeba.txt is in .*: the table has '000001.jpg', the folder '1.jpg'"
    ):
        importers.celeba(celeba)
    shutil.rmtree(images)
    archive = celeba / "img_align_celeba.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for k in range(4):
            file.writestr(f"{k + 1:06d}.jpg", encoded(picture(k), "BMP"))
    whole = archive.read_bytes()
    at = whole.index(b"000001.jpg") + 40
    archive.write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])  # damaged on the way
    data = read_faces(
        importers.import_faces(importers.celeba(celeba), tmp_path / "o", progress=False)
    )
    assert len(data) == 3 and list(data.excluded["image"]) == ["000001.jpg"]
    flagged = whole.replace(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1")
    archive.write_bytes(flagged)
    with pytest.raises(
        ValueError, match="celeba.zip is locked by a password; unpack it into a folder"
    ):
        importers.celeba(celeba)


def test_lfw_takes_people_from_folders_and_agreed_labels(tmp_path):
    lines = ["image,smiling,p_smiling"]
    votes = [(1, 0.9), (0, 0.1), (1, 0.2), (0, 0.3), ("", 0.9), (1, 0.8)]
    for k, (label, chance) in enumerate(votes):
        name = f"Ann_{'AB'[k % 2]}/Ann_{k}.jpg"
        (tmp_path / "lfw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lfw" / name).write_bytes(encoded(picture(k), "JPEG"))
        lines.append(f"{name},{label},{chance}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match="column 'p_smiling': its 5 values .* --threshold LOW HIGH"
    ):
        importers.lfw(tmp_path / "lfw", labels, ["smiling=smiling+p_smiling"])
    listing = importers.lfw(tmp_path / "lfw", labels, ["smiling=smiling+p_smiling"], (0.5, 0.5))
    data = read_faces(
        importers.import_faces(listing, tmp_path / "out", keep_names=True, progress=False)
    )
    assert data.frame["path"].str[-5].astype(int).tolist() == [0, 1, 3, 5]
    assert data.labels("smiling").tolist() == [1, 0, 0, 1]
    assert set(data.frame["identity"]) == {"Ann_A", "Ann_B"}
    assert data.card["excluded"] == {"label smiling missing or uncertain": 2}


def test_cmu_faces_read_their_names(tmp_path):
    folder = tmp_path / "cmu"
    for k, person in enumerate(("an2i", "at33")):
        (folder / person).mkdir(parents=True)
        for rest in ("left_angry_open", "up_happy_sunglasses", "up_happy_sunglasses_4"):
            image = encoded(picture(2 * k + len(rest), "L"), "PPM")
            (folder / person / f"{person}_{rest}.pgm").write_bytes(image)
    (folder / "at33" / "at33_odd.pgm").write_bytes(b"")
    data = read_faces(
        importers.import_faces(importers.cmu_faces(folder), tmp_path / "out", progress=False)
    )
    assert len(data) == 4
    assert data.labels("sunglasses").tolist() == [0, 1, 0, 1]
    assert (data.labels("happy") == data.labels("up")).all()
    assert data.card["attributes"] == ["sunglasses", "angry", "happy", "left", "up"]
    assert data.card["single_valued"] == ["neutral", "sad", "right", "straight"]
    assert "does not say pose" in reasons(data)["at33/at33_odd.pgm"]


def test_uncertain_values_are_left_out(source):
    labels = source.parent / "labels.csv"
    table = pd.read_csv(labels)
    table["p"] = [0.1, 0.5, 0.9, 0.2, 0.8, 0.79]
    table.to_csv(labels, index=False)
    listing = importers.from_table(source, labels, ["glasses=p"], (0.2, 0.8))
    assert listing.table["glasses"].tolist()[:1] == [0]
    data = read_faces(importers.import_faces(listing, source.parent / "out", progress=False))
    assert data.labels("glasses").tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="the first number must not be above"):
        importers.from_table(source, labels, ["glasses=p"], (0.8, 0.2))


def test_columns_and_values_are_named(source):
    labels = source.parent / "labels.csv"
    with pytest.raises(ValueError, match=r"no column 'glases' \(did you mean 'glasses'\?\)"):
        importers.from_table(source, labels, ["glases"])
    add(source, "ann/0.png,ann,often")
    with pytest.raises(ValueError, match="line 8, column 'glasses': 'often' is not a number"):
        importers.from_table(source, labels, ["glasses"])
    for name in ("image", "path", "glasses+hat", ""):
        with pytest.raises(
            ValueError, match=f"{re.escape(repr(name))} cannot be the name of an att"
        ):
            importers.from_table(source, labels, [f"{name}=glasses" if "+" not in name else name])
    labels.write_text("image,identity,glasses,glasses\nann/0.png,ann,0,1\n")
    with pytest.raises(
        ValueError, match="labels.csv has two columns 'glasses'; rename or remove one"
    ):
        importers.from_table(source, labels, ["glasses"])
    labels.write_bytes(b"")
    with pytest.raises(ValueError, match="labels.csv is not a readable CSV"):
        importers.from_table(source, labels, ["glasses"])


# --- bad images -----------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG that announces 20,000 x 20,000 pixels."""
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    end = b"IEND"
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)),
            struct.pack(">I", 0) + end + struct.pack(">I", zlib.crc32(end)),
        ]
    )


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "no such image"),
        (b"", "empty file"),
        (b"not an image at all", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an image but a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "not an image but a web page"),
        (encoded(picture(), "JPEG")[:200], "cannot be decoded: "),
        (encoded(picture(), "PNG")[:-300], "cannot be decoded: "),
        (bomb(), "too large to unpack"),
    ],
    ids=["missing", "empty", "text", "pointer", "page", "truncated JPEG", "truncated PNG", "bomb"],
)
def test_what_cannot_be_used_is_left_out_and_listed(source, content, reason):
    if content is not None:
        (source / "ann/bad.jpg").write_bytes(content)
    add(source, "ann/bad.jpg,ann,1")
    data = imported(source)
    assert len(data) == 6
    assert reasons(data).keys() == {"ann/bad.jpg"}
    assert reasons(data)["ann/bad.jpg"].startswith(reason)
    assert list(data.card["excluded"].values()) == [1]


def test_links_to_nothing_and_folders_named_like_images_are_left_out(source):
    """Those with a row are listed; the others are no images without a label."""
    for name in ("listed.jpg", "other.jpg"):
        (source / "ann" / name).symlink_to(source / "gone.jpg")
    (source / "album.jpg").mkdir()
    add(source, "ann/listed.jpg,ann,1")
    data = imported(source)
    assert len(data) == 6
    assert reasons(data) == {"ann/listed.jpg": "no such image"}


def test_a_large_image_is_measured_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(importers, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="too large to unpack: 24 x 20 pixels"):
        importers.normalise(encoded(picture()))


def normalised(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(importers.normalise(content)[0]))


@pytest.mark.parametrize(
    "mode, kind", [("CMYK", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "BMP")]
)
def test_other_colours_and_formats_are_converted(mode, kind):
    ramp = np.linspace(0, 255, 24 * 20 * 3).reshape(20, 24, 3).astype(np.uint8)
    image = Image.fromarray(ramp).convert(mode)
    found = normalised(encoded(image, kind))
    assert found.format in ("PNG", "JPEG") and found.mode in ("RGB", "L")
    wanted = np.asarray(Image.open(io.BytesIO(encoded(image, kind))).convert("RGB"), dtype=int)
    assert np.abs(np.asarray(found.convert("RGB"), dtype=int) - wanted).mean() < 6


@pytest.mark.parametrize(
    "dtype, top, kind",
    [
        (np.uint16, 65535, "PNG"),
        (np.uint16, 65535, "TIFF"),
        (np.uint16, 200, "TIFF"),  # nearly black, and not an image of 8 bits
        (np.int32, 65535, "TIFF"),
        (np.int32, 255, "TIFF"),
        (np.float32, 1, "TIFF"),
        (np.float32, 255, "TIFF"),
        (np.float32, 65535, "TIFF"),
    ],
)
def test_grey_of_more_bits_is_scaled_and_not_clipped(dtype, top, kind):
    values = np.linspace(0, top, 20 * 24).astype(dtype).reshape(20, 24)
    white = 65535 if dtype == np.uint16 else top
    found = np.asarray(normalised(encoded(Image.fromarray(values), kind)))
    np.testing.assert_allclose(found, values * (255 / white), atol=0.51)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 1e6])
def test_grey_of_no_known_range_is_refused(value):
    values = np.full((4, 4), 0.5, np.float32)
    values[0, 0] = value
    with pytest.raises(ValueError, match="grey values out of range: from"):
        importers.normalise(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(mode):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[0] = (200, 200, 200, 0)  # what an eraser leaves behind
    image = Image.fromarray(pixels).convert(mode)
    options = {
        "RGB": {"transparency": (200, 200, 200)},
        "P": {"transparency": image.getpixel((0, 0))},
    }
    found = np.asarray(normalised(encoded(image, "PNG", **options.get(mode, {}))))
    assert found.shape == (4, 4, 3) and (found[0] == 255).all() and (found[1:] == 0).all()


def test_plain_photos_stay_byte_for_byte_and_large_ones_shrink(monkeypatch):
    photo = encoded(picture(), "JPEG")
    assert importers.normalise(photo)[0] == photo
    monkeypatch.setattr(importers, "MAX_SIDE", 12)
    assert normalised(photo).size == (12, 10)


def test_a_rotated_photo_is_upright_and_an_extension_means_nothing(source):
    top = Image.fromarray(
        np.repeat([[[255] * 3], [[0] * 3]], 16, axis=0).astype(np.uint8).repeat(32, 1)
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    (source / "ann/turned.jpg").write_bytes(
        encoded(top.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    )
    (source / "ann/really-a-png.jpg").write_bytes(encoded(picture(7)))
    add(source, "ann/turned.jpg,ann,1\nann/really-a-png.jpg,ann,0")
    data = imported(source, keep_names=True)
    row = data.frame.index[data.frame["path"] == "ann/turned.jpg"][0]
    upright = data.image(row)
    assert upright[:8].mean() > 250 and upright[-8:].mean() < 5
    assert len(data) == 8 and data.excluded.empty


# --- bad labels and folders -----------------------------------------------------------------------


def test_rows_that_repeat_or_say_nothing_are_left_out(source):
    add(source, "ann/0.png,ann,0")  # the same again
    add(source, "bob/3.png,bob,0")  # another value than before
    (source / "ann/nobody.png").write_bytes(encoded(picture(8)))
    (source / "ann/unknown.png").write_bytes(encoded(picture(9)))
    (source / "ann/forgotten.png").write_bytes(encoded(picture(10)))
    add(source, "ann/nobody.png,,1\nann/unknown.png,ann,\n,ann,1")
    data = imported(source)
    assert len(data) == 6
    assert data.card["excluded"] == {
        "image not named": 1,
        "label glasses missing or uncertain": 1,
        "listed again in another row": 1,
        "listed twice with different values": 2,
        "no labels": 1,
    }
    assert reasons(data)["ann/forgotten.png"] == "no labels"
    assert reasons(data)["line 12"] == "image not named"
    assert data.frame["identity"].isna().sum() == data.card["counts"]["unidentified"] == 1


def test_an_attribute_of_one_value_is_dropped_and_the_last_one_stops(source):
    labels = source.parent / "labels.csv"
    table = pd.read_csv(labels).assign(hat=1)
    table.to_csv(labels, index=False)
    listing = importers.from_table(source, labels, ["glasses", "hat"])
    data = read_faces(importers.import_faces(listing, source.parent / "out", progress=False))
    assert data.card["attributes"] == ["glasses"] and data.card["single_valued"] == ["hat"]
    with pytest.raises(ValueError, match="no attribute of hat has images of both values"):
        importers.import_faces(
            importers.from_table(source, labels, ["hat"]), source.parent / "new", progress=False
        )
    for k in (1, 3, 5):
        (source / f"{'ann' if k < 3 else 'bob'}/{k}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no attribute of glasses, hat has images of both values"):
        importers.import_faces(listing, source.parent / "new", progress=False)
    assert not (source.parent / "new").exists()


def test_names_may_hold_spaces_and_any_letters(source):
    name = "Zoë Müller-李/first photo.png"
    (source / name).parent.mkdir()
    (source / name).write_bytes(encoded(picture(7)))
    add(source, f"{name},Zoë Müller-李,1")
    data = imported(source, keep_names=True)
    assert (
        data.frame["path"].iloc[-1] == name and data.frame["identity"].iloc[-1] == "Zoë Müller-李"
    )


def test_folders_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, why in (
        ("none", "No such file"),
        ("empty", "it is empty"),
        ("file", "Not a directory"),
    ):
        with pytest.raises(ValueError, match=f"{name} cannot be read .{why}"):
            importers.cmu_faces(tmp_path / name)


def test_another_folder_is_not_overwritten(source, monkeypatch, capsys):
    out = source.parent / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="out exists and is not a data set"):
        imported(source)
    assert (out / "thesis.tex").read_text() == "years"
    monkeypatch.setattr(importers, "download", None)  # refused before any work
    for where in (out, out / "thesis.tex"):
        assert cli.main(["import", "lfw", "x", "--download", "--out", str(where), *LFW]) == 1
        assert "is not a data set" in capsys.readouterr().err


def test_nothing_usable_says_why(source):
    shutil.rmtree(source / "ann")
    shutil.rmtree(source / "bob")
    (source / "x").mkdir()
    with pytest.raises(ValueError, match=r"no image of source can be used \(6 x no such image\)"):
        imported(source)


def test_images_of_nobody_are_taken_and_said_to_be_so(source, capsys):
    labels = source.parent / "labels.csv"
    labels.write_text("image,glasses,person\n0.png,1,ann\n1.png,0,bob\n")
    for k in range(2):
        picture(k).save(source / f"{k}.png")
    out = source.parent / "out"
    command = ["folder", source, "--labels", labels, "--out", out, "--attribute", "glasses"]
    assert cli.main(["import", *map(str, command)]) == 0
    said = capsys.readouterr().out
    assert "2 images of 0 people\n  nobody knows who is on 2 images" in said
    assert "no column says who is on an image" in said
    assert "if 'person' does, import again with --identity person" in said
    assert "it writes a study of these data, judged by the audit without identities" in said
    data = read_faces(out)
    assert data.identities().tolist() == [-1, -1] and data.labels("glasses").tolist() == [1, 0]
    assert cli.main(["import", *map(str, command), "--identity", "person"]) == 0
    assert sorted(read_faces(out).identities()) == [0, 1]
    assert cli.main(["import", *map(str, command), "--identity", "persn"]) == 1
    assert "no column 'persn' (did you mean 'person'?)" in capsys.readouterr().err
    for near in ("Identity", "identiy", "identity_id"):  # people would be lost without a word
        labels.write_text(f"image,glasses,{near}\n0.png,1,ann\n1.png,0,bob\n")
        assert cli.main(["import", *map(str, command)]) == 1
        assert f"but '{near}': if it says who is on an image, add --identity" in (
            capsys.readouterr().err
        )
    with pytest.raises(
        ValueError, match="no image who is on it; give every person a folder of its own"
    ):
        importers.lfw(source, labels, ["glasses"])


def test_a_file_in_the_way_is_named(source):
    (source.parent / "out.partial").write_text("mine")
    with pytest.raises(OSError, match="File exists .*out.partial. while writing .*out;"):
        imported(source)
    assert (source.parent / "out.partial").read_text() == "mine"


# --- one picture under several names --------------------------------------------------------------


def test_of_the_same_picture_the_first_is_taken(source):
    (source / "ann/again.png").write_bytes((source / "ann/0.png").read_bytes())
    picture(1).save(source / "ann/again.bmp")  # the same pixels in another file
    add(source, "ann/again.png,ann,0\nann/again.bmp,ann,1")
    data = imported(source, keep_names=True)
    assert data.frame["path"].tolist() == [f"{'ann' if k < 3 else 'bob'}/{k}.png" for k in range(6)]
    assert reasons(data) == {
        "ann/again.png": "the same picture as another: ann/0.png",
        "ann/again.bmp": "the same picture as another: ann/1.png",
    }
    assert data.card["excluded"] == {"the same picture as another": 2}


@pytest.mark.parametrize("steps", [2, 100], ids=["in a shard written before", "in the same shard"])
@pytest.mark.parametrize(
    "person, label, reason",
    [
        ("bob", 0, "the same picture as of another person"),
        ("ann", 1, "the same picture as one with another label"),
    ],
)
def test_a_picture_that_is_two_things_is_left_out_under_all_its_names(
    source, monkeypatch, steps, person, label, reason
):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", steps)
    for name in ("other.png", "third.png"):
        (source / person / name).write_bytes((source / "ann/0.png").read_bytes())
        add(source, f"{person}/{name},{person},{label}")
    data = imported(source, keep_names=True)
    assert data.frame["path"].tolist() == [
        "ann/1.png",
        "ann/2.png",
        "bob/3.png",
        "bob/4.png",
        "bob/5.png",
    ]
    assert reasons(data) == {
        "ann/0.png": f"{reason}: {person}/other.png",
        f"{person}/other.png": f"{reason}: ann/0.png",
        f"{person}/third.png": f"{reason}: ann/0.png",
    }
    assert data.card["counts"]["positives"] == {"glasses": 3}


def test_a_shard_of_nothing_but_contradictions_goes(source, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 1)
    (source / "bob/other.png").write_bytes((source / "ann/0.png").read_bytes())
    add(source, "bob/other.png,bob,0")
    assert len(imported(source)) == 5
    assert not (source.parent / "out/faces-00000.parquet").exists()


# --- labels as people write them ------------------------------------------------------------------


def votes(cells: list[str], threshold=None) -> list:
    return annotations.votes(
        pd.Series(cells, name="p", dtype=str), "labels.csv", threshold
    ).tolist()


@pytest.mark.parametrize(
    "cells",
    ["1 0", "1.0 0.0", "1 -1", "True FALSE", "yes No", "100% 0%", "1,0 0,0", "1e0 0"],
)
def test_two_plain_values_are_read_without_a_threshold(cells):
    assert votes(cells.split()) == [1, 0]
    assert np.isnan(votes([*cells.split(), " "])[2])


def test_scores_need_a_threshold():
    cells = ["12%", "0,9", "0.5", "1"]
    with pytest.raises(
        ValueError, match=r"column 'p': its 4 values \(0.12, 0.5, 0.9, 1\) are not 0 an"
    ):
        votes(cells)
    np.testing.assert_array_equal(votes(cells, (0.2, 0.8)), [0, 1, np.nan, 1])
    for pair in ("1 2", "0.2 0.9", "0 5"):
        with pytest.raises(ValueError, match="its 2 values .* --threshold LOW HIGH"):
            votes(pair.split())
    assert votes(["1", "5", "9", "-3"], (2, 4)) == [0, 1, 1, 0]  # 9 is a score among others


@pytest.mark.parametrize("threshold", [None, (0.5, 0.5)])
@pytest.mark.parametrize(
    "cells, why",
    [
        ("0 1 9", "'9' looks like a code"),
        ("0 1 -1", "'-1' looks like a code"),
        ("0.3 99 0.8", "'99' looks like a code"),
        ("3 5 -9", "'-9' looks like a code"),
        ("0 1 inf", "'inf' is not a number"),
        ("0 1 maybe", "'maybe' is not a number"),
        ("0.2 1 9999", "'9999' looks like a code"),
        ("0.2 88 0.7", "'88' looks like a code"),
        ("800 1,000 7", "'1,000' may have its comma before decimals or thousands"),
        ("12% 80 90%", "'80' has no percent sign, which others have"),
    ],
)
def test_codes_for_missing_labels_and_what_means_two_things_are_no_labels(cells, why, threshold):
    line = 1 + next(k for k, cell in enumerate(cells.split()) if repr(cell) in why)
    with pytest.raises(ValueError, match=f"labels.csv, line {line}, column 'p': {why}"):
        votes(cells.split(), threshold)


def test_tables_of_a_spreadsheet_are_read(source):
    labels = source.parent / "labels.csv"
    text = labels.read_text().replace(",", ";").replace("glasses", " glasses ")
    labels.write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert imported(source, keep_names=True).labels("glasses").tolist() == [0, 1, 0, 1, 0, 1]
    labels.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 1\n")
    with pytest.raises(ValueError, match="labels.csv is not a readable CSV .a Git LFS pointer"):
        imported(source)


@pytest.mark.parametrize(
    "line, cells",
    [("bob/9.png,1", 2), ("bob/9.png,bob,x,1", 4), ("# a note", 1), ("bob/9.png,bob,0,9", 4)],
)
def test_a_row_whose_columns_have_shifted_is_named(source, line, cells):
    add(source, line)
    with pytest.raises(
        ValueError, match=f"labels.csv, line 8 has {cells} cells, but line 1, .* 3;"
    ):
        imported(source)


@pytest.mark.parametrize("times", [1, 2])
def test_row_numbers_that_pandas_writes_first_are_never_read(source, times):
    """As ``DataFrame.to_csv()`` writes them, also of a table that had been written so before."""
    labels = source.parent / "labels.csv"
    for _ in range(times):
        pd.read_csv(labels).to_csv(labels)
    assert labels.read_text().startswith(",")
    for attribute in ("glasses", "glasses=", "x=glasses"):
        listing = importers.from_table(source, labels, [attribute], (0.2, 0.8))
        assert listing.table.iloc[:, 2].tolist() == [0, 1, 0, 1, 0, 1]
        assert listing.table["identity"].tolist() == ["ann"] * 3 + ["bob"] * 3
    with pytest.raises(ValueError, match="has no column ''|cannot be the name"):
        importers.from_table(source, labels, ["x=+glasses"])
    if times == 2:
        with pytest.raises(ValueError, match="'Unnamed: 0': has another whole number for every im"):
            importers.from_table(source, labels, ["x=Unnamed: 0"], (0, 1))


@pytest.mark.parametrize(
    "values, numbers",
    [
        (range(6), True),
        (range(100, 105), True),
        ([5, 3, 4, 2, 1], True),
        (range(0, 300, 7), True),  # ids, though not one after the other
        (range(4), False),  # four scores
        ([1, 3, 5, 7, 9, 11], False),
        ([0, 1, 2, 3, 4, 4], False),
        ([k / 50 for k in range(40)], False),  # probabilities are all different, too
    ],
)
def test_row_numbers_and_ids_are_no_labels_and_scores_are(values, numbers):
    cells = pd.Series([f"{value:g}" for value in values], name="id")
    if numbers:
        with pytest.raises(ValueError, match="t.csv, column 'id': has another whole number for ev"):
            annotations.votes(cells, "t.csv", (0.2, 0.8))
    else:
        assert annotations.votes(cells, "t.csv", (0.2, 0.8)).notna().any()


@pytest.mark.parametrize(
    "encoding, separator, newline, readable",
    [("utf-16", "\t", "\n", False), ("latin-1", ",", "\n", False), ("utf-8", "|", "\r", True)],
)
def test_other_encodings_are_refused_and_bars_read(source, encoding, separator, newline, readable):
    labels = source.parent / "labels.csv"
    text = "\n" + labels.read_text().replace("ann,", "zoë,").replace(",", separator)
    labels.write_text(text, encoding=encoding, newline=newline)
    if readable:
        assert imported(source, keep_names=True).frame["identity"].iloc[0] == "zoë"
        add(source, "bob/5.png|bob|often")
        with pytest.raises(ValueError, match="line 9, column 'glasses': 'often'"):  # of the file
            imported(source)
        return
    with pytest.raises(ValueError, match="it is no text in UTF-8.; save it as CSV UTF-8"):
        imported(source)


def test_columns_whose_names_hold_signs_are_read_by_a_name_of_ones_own(source):
    labels = source.parent / "labels.csv"
    labels.write_text(labels.read_text().replace("glasses", "glasses=1+hat", 1))
    with pytest.raises(ValueError, match="'glasses=1.hat' cannot be the name .* NAME=COLUMN"):
        importers.from_table(source, labels, ["glasses=1+hat"])
    listing = importers.from_table(source, labels, ["glasses=glasses=1+hat"])
    assert listing.table["glasses"].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_missing_label_costs_the_image_for_that_attribute_only(source):
    labels = source.parent / "labels.csv"
    table = pd.read_csv(labels)
    table["hat"] = ["", 1, 0, 1, 0, ""]
    table["glasses"] = [0, 1, "", 1, 0, ""]
    table.to_csv(labels, index=False)
    listing = importers.from_table(source, labels, ["glasses", "hat"])
    out = importers.import_faces(listing, source.parent / "out", keep_names=True, progress=False)
    data = read_faces(out)
    assert reasons(data) == {"bob/5.png": "label of every attribute missing or uncertain"}
    np.testing.assert_array_equal(data.labels("glasses"), [0, 1, np.nan, 1, 0])
    np.testing.assert_array_equal(data.labels("hat"), [np.nan, 1, 0, 1, 0])
    assert data.card["counts"]["labelled"] == {"glasses": 4, "hat": 4}
    assert data.card["counts"]["positives"] == {"glasses": 2, "hat": 2}


# --- people and paths as people write them --------------------------------------------------------


def test_names_of_people_lose_spaces_and_unicode_forms(source):
    for k, name in enumerate(("Zoë", "Zoe\u0308 ", " Zoë")):
        picture(20 + k).save(source / f"z{k}.png")
        add(source, f"z{k}.png,{name},{k % 2}")
    data = imported(source, keep_names=True)
    assert set(data.frame["identity"]) == {"ann", "bob", "Zoë"} and "warnings" not in data.card


@pytest.mark.parametrize(
    "people, warning",
    [
        (["Ann", "ann"], "'Ann' and 'ann' differ only in letter case, .* .1 such cases"),
        (["12", "12.0", "120"], "'12' and '12.0' differ only in"),
        (["007", "7", "70"], "'007' and '7' differ only in .*leading zeros"),
        (["Ann Lee", "Ann_Lee", "AnnLee"], "'Ann Lee' and 'Ann_Lee' differ only in"),
        (["Ann  Lee", "Ann Lee", "Ann\u00a0Lee"], "differ only in .* .1 such cases"),
        (["Ann", "Ann\u200b"], "differ only in"),
        (["José", "Jose"], "'Jose' and 'José' differ only in .*accents"),
        (["１２", "12"], "differ only in"),
        (["Ann", "TBD", "TBD"], "'TBD' .2 images. looks like a placeholder"),
        (["Ann", "1-Mar"], "'1-Mar' .1 images. looks like a cell that a spreadsheet changed"),
        (["Ann", "Unknown"], "'Unknown' .1 images. looks like a placeholder"),
        (["Ann", "?"], "'[?]' .1 images. looks like a placeholder"),
        (["Ann", "-", "-"], "'-' .2 images. looks like a placeholder"),
        (["Ann", "1.2E+11"], r"'1.2E\+11' .1 images. looks like a cell that a spreadsheet changed"),
        ([*map(str, range(30)), *["7"] * 11], "'7' has 12 of 41 images, the median person 1;"),
        (["Ann", "Anna", "12", "Bob E+1", "100", "1", "0", "A-1", "A-01"], None),
        ([*map(str, range(30)), *["7"] * 5], None),
        (["1", *["7"] * 50], None),
    ],
)
def test_strange_names_of_people_are_said_in_a_line(people, warning):
    lines = annotations.doubts(pd.Series(people))
    assert len(lines) == (warning is not None)
    assert warning is None or re.search(warning, lines[0])


def test_warnings_are_printed_with_names_and_kept_without(source, capsys):
    picture(20).save(source / "x.png")
    add(source, "x.png,Bob,1")
    out = source.parent / "out"
    command = ["folder", source, "--labels", source.parent / "labels.csv", "--out", out]
    assert cli.main(["import", *map(str, command), "--attribute", "glasses"]) == 0
    assert "warning: the identities 'Bob' and 'bob' differ" in (said := capsys.readouterr().out)
    assert "'Bob' and 'bob'" in said
    (kept,) = json.loads((out / "card.json").read_text())["warnings"]
    assert "person-" in kept and "ob'" not in kept


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/x.png", "ann/../../x.png", "C:\\x.png", ".."]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(source, path):
    picture().save(source.parent / "secret.png")
    add(source, f"{path},ann,1")
    with pytest.raises(
        ValueError, match="line 8, column 'image': .* leads out of the folder of images"
    ):
        imported(source)


def test_separators_and_unicode_forms_of_paths_do_not_matter(source):
    (source / "zoe\u0308").mkdir()
    picture(20).save(source / "zoe\u0308" / "1.png")
    add(source, "zoë/1.png,zoe,1")
    labels = source.parent / "labels.csv"
    labels.write_text(labels.read_text().replace("ann/", ".\\ann\\").replace("bob/", "./bob/"))
    data = imported(source, keep_names=True)
    assert len(data) == 7 and data.excluded.empty
    assert data.frame["path"].tolist()[::6] == ["ann/0.png", "zoë/1.png"]
    (source / "zoë").mkdir()
    picture(21).save(source / "zoë" / "1.png")
    with pytest.raises(
        ValueError, match="1.png and .*1.png have the same name; rename one of them"
    ):
        imported(source)


@pytest.mark.parametrize(
    "change, why",
    [
        (
            lambda name: name.upper(),
            "the table has 'ANN/0.PNG', the folder 'ann/0.png'; .* letter case",
        ),
        (
            lambda name: name.replace("png", "jpg"),
            "'ann/0.jpg', the folder 'ann/0.png'; .* extension",
        ),
        (
            lambda name: "photos/" + name,
            "'photos/ann/0.png', the folder 'ann/0.png'; .*folders in front",
        ),
        (
            lambda name: f"x{name[4]}.png",
            "'x0.png', the folder 'ann/0.png'; name the folder in which",
        ),
    ],
)
def test_a_table_of_other_images_says_how_they_differ(source, change, why):
    labels = source.parent / "labels.csv"
    table = pd.read_csv(labels)
    table.assign(image=table["image"].map(change)).to_csv(labels, index=False)
    with pytest.raises(ValueError, match=f"none of the 6 images in .*labels.csv is in .*: .*{why}"):
        imported(source)


# --- interruptions --------------------------------------------------------------------------------


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(dataset, "AHEAD", 2)
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left while writing .*out"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error while writing .*out"),
        (KeyboardInterrupt("stopped"), "stopped"),
    ],
    ids=["full disk", "broken disk", "interrupt"],
)
def test_an_import_that_fails_leaves_what_was_there(
    source, small_steps, monkeypatch, error, message
):
    imported(source)
    before = contents(source.parent / "out")
    assert len([name for name in before if name.startswith("faces-")]) == 3
    labels = source.parent / "labels.csv"
    labels.write_text(labels.read_text().replace("ann/0.png,ann,0", "ann/0.png,ann,1"))
    write = dataset.write_shard

    def failing(path, records, attributes):
        if path.name != "faces-00000.parquet":
            raise error
        write(path, records, attributes)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_shard", failing)
        with pytest.raises(type(error), match=message):
            imported(source)
    assert contents(source.parent / "out") == before
    assert not (source.parent / "out.partial").exists()
    (source.parent / "out.partial").mkdir()  # as a kill leaves it
    (source.parent / "out.partial" / "faces-00007.parquet").write_text("half")
    assert imported(source, keep_names=True).labels("glasses").tolist() == [1, 1, 0, 1, 0, 1]
    assert not (source.parent / "out.partial").exists()


def test_an_interrupt_is_one_line(source, small_steps, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    imported(source)
    out = source.parent / "out"
    before = contents(out)
    monkeypatch.setattr(dataset, "write_shard", stop)
    command = ["folder", source, "--labels", source.parent / "labels.csv", "--out", out]
    assert cli.main(["import", *map(str, command), "--attribute", "glasses"]) == 130
    assert capsys.readouterr().err.endswith(f"interrupted; {out} is as it was\n")
    assert contents(out) == before


def test_memory_holds_one_shard(source, small_steps, monkeypatch):
    sizes, write = [], dataset.write_shard
    monkeypatch.setattr(
        dataset,
        "write_shard",
        lambda p, records, a: sizes.append(len(records)) or write(p, records, a),
    )
    imported(source)
    assert sizes == [2, 2, 2]
    monkeypatch.setattr(dataset, "SHARD_BYTES", 1)
    imported(source)
    assert sizes[3:] == [1] * 6


# --- privacy and the command line -----------------------------------------------------------------


def test_names_do_not_enter_the_data_set_unless_asked_for(source):
    data = imported(source)
    text = (source.parent / "out/card.json").read_text() + data.frame.to_csv()
    assert "ann" not in text and "bob" not in text
    assert data.frame.groupby("identity").size().tolist() == [3, 3]
    assert data.card["show_images"] is False
    assert set(imported(source, keep_names=True).frame["identity"]) == {"ann", "bob"}


def test_the_command_line_says_what_was_done_and_what_is_next(source, capsys):
    (source / "ann/1.png").write_bytes(b"")
    out = source.parent / "out"
    command = [
        "folder",
        str(source),
        "--labels",
        str(source.parent / "labels.csv"),
        "--out",
        str(out),
    ]
    assert cli.main(["import", *command, "--attribute", "glasses"]) == 0
    said = capsys.readouterr().out
    assert "5 images of 2 people" in said and "left out: 1 x empty file" in said
    assert "dvc add" in said and "glasses" in said
    assert cli.main(["import", *command, "--attribute", "hat"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert json.loads((out / "card.json").read_text())["counts"]["images"] == 5


def test_a_download_that_fails_gives_the_steps_by_hand(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", offline)
    monkeypatch.setattr("torchvision.datasets.CelebA", offline)
    for source in ("lfw", "celeba"):
        with pytest.raises(ConnectionError, match="no route to host.*by hand: get"):
            importers.download(source, tmp_path)
    with pytest.raises(ConnectionError, match="UCI"):
        importers.download("cmu_faces", tmp_path)
