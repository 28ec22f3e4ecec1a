"""Parquet files as hubs of data sets deliver them: labels of every kind, and images row group by row group."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from study import cli
from study.faces import importers, parquet_files
from study.faces.dataset import read_faces


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [{"bytes": picture(k), "path": f"{k:06d}.jpg"} for k in range(8)]
SMILES = [True, False, True, False, None, True, False, True]
CELEB = [7, 7, 7, 12, 12, None, None, 12]


def features(**classes) -> dict:
    """The metadata that the library `datasets` writes."""
    named = {column: {"names": names, "_type": "ClassLabel"} for column, names in classes.items()}
    return {"huggingface": json.dumps({"info": {"features": named}})}


@pytest.fixture
def hub(tmp_path):
    """Eight images in two files of two row groups each."""
    folder = tmp_path / "faces"
    folder.mkdir()
    table = pa.table(
        {
            "image": pa.array(IMAGES, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "celeb_id": pa.array(CELEB, pa.int64()),
            "Smiling": SMILES,
            "Young": pa.array([0, 1, 1, -1, 1, 1, 0, 0], pa.int64()),
            "mood": pa.array(["glad", "sad"] * 4).dictionary_encode(),
            "sign": pa.array([-1, 1] * 4, pa.int8()),
            "score": [0.1, 0.9, 0.5, 0.8, 0.2, 0.0, 1.0, None],
            "row": list(range(8)),
            "tags": [["a"]] * 8,
        }
    ).replace_schema_metadata(features(Young=["no", "yes"]))
    pq.write_table(table[:4], folder / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table[4:], folder / "train-00001-of-00002.parquet", row_group_size=2)
    return folder


def imported(hub, capsys, *options) -> tuple:
    out = hub.parent / "out"
    status = cli.main(["import", "parquet", str(hub), "--out", str(out), *options])
    captured = capsys.readouterr()
    return (read_faces(out), captured.out) if status == 0 else (None, captured.err)


def test_people_labels_and_images_arrive_as_they_are(hub, capsys):
    options = ["--identity", "celeb_id", "--attribute", "Smiling", "--attribute", "Young"]
    data, said = imported(hub, capsys, *options, "--keep-names", "--name", "stars")
    assert data.card["name"] == "stars" and data.card["attributes"] == ["Smiling", "Young"]
    np.testing.assert_array_equal(data.labels("Smiling"), np.array(SMILES, dtype=float))
    np.testing.assert_array_equal(data.labels("Young"), [0, 1, 1, np.nan, 1, 1, 0, 0])
    wanted = [None if person is None else str(person) for person in CELEB]  # no "7.0"
    assert [None if pd.isna(name) else name for name in data.frame["identity"]] == wanted
    assert data.frame["path"].tolist() == [image["path"] for image in IMAGES]
    assert [content.as_py() for content in data.encoded] == [image["bytes"] for image in IMAGES]
    assert "8 images of 2 people\n  nobody knows who is on 2 images" in said


@pytest.mark.parametrize(
    "attribute, threshold, labels",
    [
        ("glad=mood:glad", (), [1, 0] * 4),
        ("sign", (), [0, 1] * 4),
        ("hat=score", ("--threshold", "0.2", "0.8"), [0, 1, np.nan, 1, 0, 0, 1, np.nan]),
        ("both=mood:sad+sign", (), [0, 1] * 4),
        ("not_young=Young:no", (), [1, 0, 0, np.nan, 0, 0, 1, 1]),
    ],
)
def test_labels_of_every_kind_are_read(hub, attribute, threshold, labels):
    cut = tuple(map(float, threshold[1:])) or None
    listing = importers.from_parquet([hub], [attribute], cut)
    np.testing.assert_array_equal(listing.table.iloc[:, 2], labels)
    assert listing.table["identity"].isna().all()
    assert "if 'celeb_id' does, import again with --identity celeb_id" in listing.notes[0]


@pytest.mark.parametrize(
    "options, why",
    [
        (["--attribute", "smiling"], "no column 'smiling' (did you mean 'Smiling'?)"),
        (["--attribute", "Smiling", "--identity", "celeb"], "no column 'celeb' (did you mean 'celeb_id'?)"),
        (["--attribute", "Smiling", "--image", "img"], "no column 'img' (did you mean 'image'?); it has image, celeb_id"),
        (["--attribute", "Smiling", "--image", "row"], "column 'row': is int64; images are bytes, or a struct"),
        (["--attribute", "mood"], "column 'mood': 'glad' is not a number"),
        (["--attribute", "x=mood:angry"], "column 'mood': no row is 'angry'; it holds glad, sad"),
        (["--attribute", "tags"], "column 'tags': holds lists or sets"),
        (["--attribute", "row", "--threshold", "0", "1"], "another whole number for every image (0, 1, 2, 3, 4"),
        (["--attribute", "score"], "are not 0 and 1; say by --threshold"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(hub, capsys, options, why):
    data, said = imported(hub, capsys, *options)
    assert data is None and why in said and said.count("\n") == 1


def test_files_that_are_none_are_named(hub, tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    for place, why in (
        ("broken.parquet", "is not a readable Parquet file"),
        ("none.parquet", "does not exist; name the Parquet files"),
        ("empty", "holds no .*parquet; name the files"),
    ):
        with pytest.raises(ValueError, match=why):
            importers.from_parquet([tmp_path / place], ["Smiling"])


def test_images_without_names_of_their_own_get_numbers(hub):
    file = hub / "train-00000-of-00002.parquet"
    table = pq.read_table(file)
    bare = table.set_column(0, "image", pa.array([image["bytes"] for image in IMAGES[:4]]))
    pq.write_table(bare, file)
    listing = importers.from_parquet([hub], ["Smiling"])
    names = listing.table["image"].tolist()
    assert names[:2] == ["train-00000-of-00002/000000", "train-00000-of-00002/000001"]
    assert [listing.read(name) for name in names] == [image["bytes"] for image in IMAGES]


def test_a_few_row_groups_are_in_memory(hub, monkeypatch):
    images = parquet_files.ImageColumn(parquet_files.find_files([hub]), "image")
    read = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: read.append(group) or whole(self, group, **options),
    )
    for name, image in zip(images.names, IMAGES, strict=True):
        assert images.read(name) == image["bytes"]
        assert len(images._groups) <= parquet_files.GROUPS
    assert read == [0, 1, 0, 1]  # each once, file by file
