"""The data-set format: what is written is read, and what is broken is named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from study.faces import dataset
from study.faces.dataset import (
    CARD,
    FaceSet,
    decode,
    read_faces,
    read_labels,
    write_faces,
    write_labels,
)

CARD_VALUES = {
    "name": "tiny",
    "source": "drawn for a test",
    "licence": "CC0",
    "attributes": ["smiling"],
    "demographics": ["gender"],
}


def encode(pixels, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def records(n=10):
    rng = np.random.default_rng(0)
    for i in range(n):
        yield {
            "image": {
                "bytes": encode(rng.integers(256, size=(8, 6, 3), dtype=np.uint8)),
                "path": f"{i}.png",
            },
            "identity": f"p{i // 4}",
            "smiling": i % 2,
            "gender": "female" if i < 4 else "male",
            "smiling_strength": i / 10,
        }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 4)
    return write_faces(tmp_path / "data", records(), CARD_VALUES)


def edit(folder, shard, change):
    """Rewrite one shard after a change to its rows."""
    file = folder / f"faces-{shard:05d}.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_what_is_written_is_read(folder):
    faces = read_faces(folder)
    assert len(faces) == 10 and len(list(folder.glob("faces-*.parquet"))) == 3
    assert faces.card["counts"] == {"images": 10, "identities": 3, "positives": {"smiling": 5}}
    expected = pd.DataFrame(records())
    for column in ("identity", "smiling", "gender", "smiling_strength"):
        assert faces.frame[column].tolist() == expected[column].tolist()
    assert faces.frame["path"].tolist() == [f"{i}.png" for i in range(10)]
    for row in (0, 9):
        np.testing.assert_array_equal(faces.image(row), decode(expected["image"][row]["bytes"], ""))
    assert faces.labels("smiling").tolist() == [0, 1] * 5
    assert faces.identities().tolist() == [0] * 4 + [1] * 4 + [2] * 2


def test_same_records_same_bytes(folder, tmp_path):
    again = write_faces(tmp_path / "again", records(), CARD_VALUES)
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_later_stages_read_labels_without_images(folder, tmp_path):
    faces = read_faces(folder)
    faces.frame["landmarks"] = [np.zeros(10)] * len(faces)
    excluded = pd.DataFrame({"image": ["a"], "reason": ["empty file"]})
    for k, data in enumerate((faces, FaceSet(faces.card, faces.frame, faces.encoded, excluded))):
        out = tmp_path / f"build{k}"
        write_labels(data, out)
        labels = read_labels(out)
        assert labels.card == faces.card and len(labels) == 10
        pd.testing.assert_frame_equal(labels.frame, faces.frame.drop(columns="landmarks"))
        assert (labels.labels("smiling") == faces.labels("smiling")).all()
        assert (labels.identities() == faces.identities()).all()
        assert (out / "excluded.csv").exists() == bool(k)
    with pytest.raises(ValueError, match=r"no attribute 'smilin' \(did you mean 'smiling'\?\)"):
        labels.labels("smilin")
    with pytest.raises(ValueError, match="labels.parquet is missing; run `dvc repro data`"):
        read_labels(tmp_path)


def test_the_data_set_of_another_study_is_refused(folder):
    assert len(read_faces(folder, "tiny")) == 10
    with pytest.raises(
        ValueError,
        match="params.yaml: data is 'lfw', but .*data/ holds 'tiny'; import it first .*or set data",
    ):
        read_faces(folder, "lfw")


def test_an_exif_rotated_grey_image_is_decoded_upright_in_rgb():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright = decode(encode(pixels, "PNG", exif=exif), "x")
    assert upright.shape == (3, 2, 3)
    np.testing.assert_array_equal(upright[:, :, 1], np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "pixels, kind, shown",
    [
        (np.full((2, 2), 32896, np.uint16), "PNG", 128),
        (np.float32([[0, 1], [0.5, 1]]), "TIFF", [[0, 255], [128, 255]]),
        (np.uint8([[[200, 200, 200, 0]]]), "PNG", 255),  # what an eraser leaves behind
    ],
)
def test_a_picture_of_more_bits_or_transparent_is_shown_as_an_import_shows_it(pixels, kind, shown):
    found = decode(encode(pixels, kind), "x")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.broadcast_to(np.uint8(shown)[..., None], found.shape))


def test_writing_replaces_a_data_set_but_no_other_folder(folder, tmp_path):
    write_faces(folder, records(8), CARD_VALUES)
    assert len(read_faces(folder)) == 8
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not a data set"):
        write_faces(tmp_path / "thesis", records(), CARD_VALUES)
    with pytest.raises(ValueError, match="no images to write"):
        write_faces(tmp_path / "new", [], CARD_VALUES)


def test_a_failing_source_leaves_the_old_data_set_in_place(folder):
    def broken():
        yield from records(5)
        raise RuntimeError("the camera fell")

    with pytest.raises(RuntimeError):
        write_faces(folder, broken(), CARD_VALUES)
    assert len(read_faces(folder)) == 10


def drop(column):
    return lambda rows: [row.pop(column) for row in rows]


def put(row, column, value):
    return lambda rows: rows[row].__setitem__(column, value)


def each(column, value):
    return lambda rows: [row.__setitem__(column, value) for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("smiling"), r"faces-00001.parquet lacks the column 'smiling' \(did you mean"),
        (drop("identity"), "faces-00001.parquet lacks the column 'identity'"),
        (put(2, "identity", None), "states 0 images without an identity but the shards hold 1"),
        (put(2, "identity", ""), "row 2, column 'identity': '' is empty, has spaces"),
        (put(2, "identity", "p1 "), "row 2, column 'identity': 'p1 ' is empty, has spaces"),
        (put(2, "identity", "Zoe\u0308"), "column 'identity': .* or is not NFC"),
        (each("identity", ["p", "1"]), "faces-00001.parquet, column 'identity': holds lists"),
        (each("path", "x"), "faces-00001.parquet has a column 'path', which image.path becomes"),
        (each("smiling", "1"), "row 0, column 'smiling': '1' is not 0 or 1"),
        (put(1, "smiling", 2), "faces-00001.parquet, row 1, column 'smiling': 2 is not 0 or 1"),
        (
            put(3, "image", {"bytes": b"\x89PNG but no more", "path": "x.png"}),
            "faces-00001.parquet, row 3, column 'image': image 'x.png' cannot be decoded",
        ),
        (
            put(0, "image", {"bytes": b"", "path": "x.png"}),
            "row 0, column 'image': bytes or path are missing",
        ),
        (put(0, "image", None), "row 0, column 'image': bytes or path are missing"),
        (
            put(2, "image", {"bytes": next(records())["image"]["bytes"], "path": "twin.png"}),
            "faces-00001.parquet, row 2, column 'image': 'twin.png' is the same picture as '0.png'",
        ),
        (
            lambda rows: rows[0].__setitem__("image", rows[0]["image"] | {"path": "1.png"}),
            "faces-00001.parquet, row 0, column 'image': the path '1.png' occurs twice",
        ),
        (
            put(0, "gender", "female"),
            "column 'gender': differs between images of the identity 'p1'",
        ),
        (lambda rows: rows.pop(), "states 10 images but the shards hold 9"),
    ],
)
def test_a_broken_shard_is_named_with_row_and_column(folder, change, message):
    edit(folder, 1, change)
    with pytest.raises(ValueError, match=message):
        read_faces(folder)


def test_an_attribute_with_one_value_is_named(tmp_path):
    constant = [record | {"smiling": 1} for record in records()]
    folder = write_faces(tmp_path / "data", constant, CARD_VALUES)
    with pytest.raises(
        ValueError, match="column 'smiling': every one of the 10 rows has the value 1"
    ):
        read_faces(folder)


def test_a_missing_label_is_neither_0_nor_1(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_IMAGES", 4)
    some = [
        record | {"smiling": None if k in (1, 6) else k % 2} for k, record in enumerate(records())
    ]
    folder = write_faces(tmp_path / "data", some, CARD_VALUES)
    data = read_faces(folder)
    assert data.card["counts"]["labelled"] == {"smiling": 8}
    assert data.card["counts"]["positives"] == {"smiling": 4}
    write_labels(data, tmp_path / "build")
    for labels in (data.labels("smiling"), read_labels(tmp_path / "build").labels("smiling")):
        np.testing.assert_array_equal(labels, [0, np.nan, 0, 1, 0, 1, np.nan, 1, 0, 1])
    none = [record | {"smiling": None} for record in records()]
    with pytest.raises(ValueError, match="column 'smiling': every one of the 10 rows has no label"):
        read_faces(write_faces(folder, none, CARD_VALUES))


def test_a_data_set_behind_a_link_is_replaced_and_the_link_stays(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    write_faces(link, records(8), CARD_VALUES)
    assert link.is_symlink() and len(read_faces(folder)) == 8
    link.unlink()
    link.symlink_to(tmp_path / "not yet")
    write_faces(link, records(), CARD_VALUES)
    assert link.is_symlink() and len(read_faces(tmp_path / "not yet")) == 10


def test_a_mount_point_is_refused(folder, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == folder)
    with pytest.raises(
        ValueError, match="data is a mount point and cannot be replaced; name a folder"
    ):
        write_faces(folder, records(), CARD_VALUES)


def test_what_cannot_be_moved_in_leaves_the_old_data_set(folder, monkeypatch):
    replace = os.replace

    def failing(source, target):
        if Path(source).name == "new":
            raise OSError("a disk went")
        replace(source, target)

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(OSError, match="a disk went"):
        write_faces(folder, records(8), CARD_VALUES)
    assert len(read_faces(folder)) == 10
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_the_data_set_of_a_killed_replacement_comes_back(folder):
    work = folder.with_name("data.partial")
    work.mkdir()
    folder.rename(work / "old")  # as a kill between the two moves leaves it
    (work / "new").mkdir()
    with pytest.raises(ValueError, match="no images to write"):
        write_faces(folder, [], CARD_VALUES)
    assert len(read_faces(folder)) == 10 and not work.exists()


def test_two_imports_into_one_folder_do_not_mix(folder):
    other = (
        "import sys; from study.faces.dataset import replacing\n"
        "with replacing(sys.argv[1]): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", other, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match="another import is writing to .*data.partial; wait"):
            write_faces(folder, records(8), CARD_VALUES)
        process.kill()
    write_faces(folder, records(8), CARD_VALUES)  # what the other left behind is no obstacle
    assert len(read_faces(folder)) == 8 and not folder.with_name("data.partial").exists()


def test_a_file_system_without_locks_will_do(folder, monkeypatch):
    def unsupported(*_):
        raise OSError("Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    write_faces(folder, records(8), CARD_VALUES)
    assert len(read_faces(folder)) == 8


def test_a_truncated_image_is_named(folder):
    jpeg = encode(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8), "JPEG")
    edit(folder, 0, put(0, "image", {"bytes": jpeg[: len(jpeg) // 2], "path": "half.jpg"}))
    with pytest.raises(
        ValueError, match="row 0, column 'image': image 'half.jpg' cannot be decoded"
    ):
        read_faces(folder)


def test_broken_folders_are_named(folder, tmp_path):
    with pytest.raises(
        ValueError, match="card.json is missing; fetch the data with `dvc pull data.dvc`"
    ):
        read_faces(tmp_path / "nowhere")
    card = json.loads((folder / CARD).read_text())
    del card["licence"]
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="lacks the key 'licence'"):
        read_faces(folder)
    (folder / CARD).write_text("{")
    with pytest.raises(ValueError, match="card.json is not valid JSON"):
        read_faces(folder)


@pytest.mark.parametrize(
    "key, value, wanted",
    [
        ("name", None, "a text"),
        (
            "attributes",
            "smiling",
            "a list of one or more columns, each once and none of image, ident",
        ),
        ("attributes", None, "a list of one or more columns"),
        ("attributes", [], "a list of one or more columns"),
        ("attributes", ["smiling", "smiling"], "a list of one or more columns"),
        ("attributes", ["smiling", "identity"], "a list of one or more columns"),
        ("demographics", None, "a list of columns, or .., each once"),
        ("demographics", "gender", "a list of columns, or "),
        ("counts", None, "a mapping, as an import writes it"),
        ("show_images", "false", "true or false"),  # which would show photographs
    ],
)
def test_a_card_of_ones_own_is_told_what_it_must_say(folder, key, value, wanted):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {key: value}))
    with pytest.raises(ValueError, match=rf"card.json: {key} is .*; it must be {wanted}"):
        read_faces(folder)


@pytest.mark.parametrize("points", [[1.0] * 8, [1.0] * 136, [np.nan] * 10, None])
def test_landmarks_that_are_not_five_points_are_named(folder, points):
    data = read_faces(folder)
    data.frame["landmarks"] = [list(range(10))] * len(data)
    assert data.landmarks().shape == (10, 5, 2)
    data.frame.at[3, "landmarks"] = points
    with pytest.raises(ValueError, match="'landmarks' of the data set 'tiny' has not ten finite"):
        data.landmarks()


@pytest.mark.parametrize("text", ["", "name,why\na,b\n"])
def test_a_table_of_exclusions_that_is_none_is_named(folder, text):
    (folder / "excluded.csv").write_text(text)
    with pytest.raises(
        ValueError, match="excluded.csv is no table of the columns image and reason"
    ):
        read_faces(folder)


def test_a_card_in_another_encoding_is_named(folder):
    (folder / CARD).write_bytes('{"name": "Zoë"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="card.json is not valid JSON .*restore it"):
        read_faces(folder)


def test_a_damaged_parquet_file_is_named(folder):
    file = folder / "faces-00002.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="faces-00002.parquet is not a readable Parquet file"):
        read_faces(folder)


def test_an_unknown_attribute_is_named_with_the_nearest(folder):
    with pytest.raises(ValueError, match=r"no attribute 'smilling' \(did you mean 'smiling'\?\)"):
        read_faces(folder).labels("smilling")


def shuffled(folder, how) -> None:
    """Write the shards again as pandas does, after a shuffle or a filter."""
    for file in sorted(folder.glob("faces-*.parquet")):
        how(pq.read_table(file).to_pandas()).to_parquet(file)


@pytest.mark.parametrize(
    "how",
    [
        lambda table: table.sample(frac=1, random_state=1),
        lambda table: table[table.index != 0],
        lambda table: table.set_index("identity"),
        lambda table: table.set_index(["identity", "gender"]),
        lambda table: table.set_index(table["smiling_strength"].rename("other")).sample(frac=1),
    ],
    ids=["shuffled", "filtered", "identity as index", "two as index", "an index of one's own"],
)
def test_shards_that_pandas_wrote_keep_every_image_with_its_name(folder, how):
    card = json.loads((folder / CARD).read_text())
    del card["counts"]
    (folder / CARD).write_text(json.dumps(card))
    shuffled(folder, how)
    data = read_faces(folder)
    wanted = {record["image"]["path"]: record for record in records()}
    assert len(data) >= 7 and not [name for name in data.frame if name.startswith("__index")]
    for row, path in enumerate(data.frame["path"]):
        assert data.encoded[row].as_py() == wanted[path]["image"]["bytes"]
        for column in ("identity", "smiling", "gender"):
            assert data.frame[column].iloc[row] == wanted[path][column]


def test_nobody_needs_to_be_known(folder, tmp_path):
    def nameless(number):
        for record in records(number):
            del record["identity"]
            del record["gender"]
            yield record

    card = CARD_VALUES | {"demographics": []}
    data = read_faces(write_faces(tmp_path / "nobody", nameless(10), card))
    assert data.card["counts"] == {
        "images": 10, "identities": 0, "unidentified": 10, "positives": {"smiling": 5},
    }  # fmt: skip
    assert data.identities().tolist() == [-1] * 10
    half = [
        record | {"identity": record["identity"] if k % 2 else None}
        for k, record in enumerate(records())
    ]
    data = read_faces(write_faces(tmp_path / "half", half, card))
    assert data.identities().tolist() == [-1, 0, -1, 0, -1, 1, -1, 1, -1, 2]
    assert data.card["counts"]["unidentified"] == 5
    write_labels(data, tmp_path / "build")
    assert read_labels(tmp_path / "build").identities().tolist() == data.identities().tolist()
    for near in ("Identity", "identiy", "identity_id"):
        renamed = [{near: record.pop("identity"), **record} for record in records()]
        with pytest.raises(ValueError, match=f"has no column 'identity', but '{near}'; rename"):
            read_faces(write_faces(tmp_path / near, renamed, card))
