"""The one data-set format of the project, and its validation.

A data set is a folder::

    data/
      card.json            what this is: name, source, licence, counts, attributes, seed, versions
      faces-00000.parquet  one row an image, images embedded as encoded bytes
      faces-00001.parquet  ...
      excluded.csv         optional: images an import left out, and why

Columns: ``image`` (struct of ``bytes``, an encoded JPEG / PNG / WebP, and ``path``, a name unique in
the data set), ``identity`` (string), one 0/1 column for every attribute the card lists, and any
further columns, of which the card's ``demographics`` are constant within a person. An optional column
``landmarks`` (ten numbers, x and y of five points in pixels, as :mod:`study.faces.embed` orders them) lets
embedding skip detection. ``show_images: false`` in the card keeps photographs of real people out of
notebooks and reports.

Identities are stored because an identity-robust evaluation needs them. Nothing that trains a model
without identity labels may read that column; see :mod:`cid.methods`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from cid.names import suggest

CARD = "card.json"


EXCLUDED = "excluded.csv"


AHEAD = 256  # images decoded ahead of their use


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


REQUIRED_CARD_KEYS = ("name", "source", "licence", "attributes", "demographics")


@dataclass(frozen=True)
class FaceSet:
    """A face data set held in memory, images still encoded.

    Attributes
    ----------
    card : dict
        The data card.
    frame : pandas.DataFrame
        One row an image, index 0..n-1: ``path``, ``identity``, attributes, further columns.
    encoded : pyarrow.ChunkedArray
        The encoded images, in the order of ``frame``.
    excluded : pandas.DataFrame
        Images that an import left out: ``image`` (name in the source), ``reason``.
    """

    card: dict
    frame: pd.DataFrame
    encoded: pa.ChunkedArray
    excluded: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["image", "reason"], dtype=str)
    )

    def __len__(self) -> int:
        return len(self.frame)

    def image(self, row: int) -> np.ndarray:
        """Decode one image to a uint8 array of shape (height, width, 3), RGB."""
        return decode(self.encoded[int(row)].as_py(), self.frame["path"].iloc[row])

    def images(self, rows=None) -> Iterator[np.ndarray]:
        """Decode images in order, some ahead of their use, on all cores: Pillow decodes unlocked."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(rows), AHEAD):
                yield from pool.map(self.image, rows[start : start + AHEAD])

    def landmarks(self) -> np.ndarray:
        """The landmarks that came with the data, float32 (n, 5, 2)."""
        if "landmarks" not in self.frame:
            raise ValueError(
                f"the data set {self.card['name']!r} came without landmarks; set embed.detect to true"
            )
        return np.stack(self.frame["landmarks"]).astype(np.float32).reshape(-1, 5, 2)

    def labels(self, attribute: str) -> np.ndarray:
        """The 0/1 labels of an attribute, int64 of shape (n,)."""
        if attribute not in self.card["attributes"]:
            raise ValueError(
                f"the data set {self.card['name']!r} has no attribute {attribute!r}"
                f"{suggest(attribute, self.card['attributes'])}; it has "
                + ", ".join(self.card["attributes"])
            )
        return self.frame[attribute].to_numpy(dtype=np.int64)

    def identities(self) -> np.ndarray:
        """Identity of every image as an integer code, int64 of shape (n,), in sorted name order."""
        return np.unique(self.frame["identity"].to_numpy(dtype=str), return_inverse=True)[1]


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decode an encoded image to uint8 (height, width, 3) RGB, upright by its EXIF orientation."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"image {name!r} cannot be decoded ({error}); replace it or remove its row"
        ) from None


def write_faces(folder, records, card: dict, *, shard_rows: int = 2048) -> Path:
    """Write a data set; the folder appears complete or not at all.

    Parameters
    ----------
    folder : path-like
        Where to write. An existing data set there is replaced; any other folder is refused.
    records : iterable of dict
        One dict an image: ``image`` ({"bytes", "path"}), ``identity``, every attribute, and any
        further columns, the same keys in every record.
    card : dict
        ``name``, ``source``, ``licence``, ``attributes`` and ``demographics`` (lists of columns) and
        whatever else describes the set. ``counts`` is computed here.
    shard_rows : int
        Images per Parquet file; memory is bounded by one shard.
    """
    folder = Path(folder)
    missing = [key for key in REQUIRED_CARD_KEYS if key not in card]
    if missing:
        raise ValueError(
            f"the data card lacks {', '.join(missing)}; add it before writing {folder}"
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / CARD).exists():
        raise ValueError(
            f"{folder} exists and is not a data set (no {CARD}); name an empty or new folder"
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    shard, shards, total, people = [], 0, 0, set()
    positives = dict.fromkeys(card["attributes"], 0)

    def flush():
        nonlocal shard, shards
        write_shard(partial / f"faces-{shards:05d}.parquet", shard, card["attributes"])
        shard, shards = [], shards + 1

    for record in records:
        shard.append(record)
        total += 1
        people.add(record["identity"])
        for attribute in positives:
            positives[attribute] += int(record[attribute])
        if len(shard) == shard_rows:
            flush()
    if shard:
        flush()
    if not total:
        shutil.rmtree(partial)
        raise ValueError(f"no images to write to {folder}; the list of records is empty")

    counts = {"images": total, "identities": len(people), "positives": positives}
    return finish(partial, folder, card, counts)


def write_shard(path: Path, records: list[dict], attributes: list[str]) -> None:
    """Write one Parquet file of a data set; records as for :func:`write_faces`."""
    types = {"image": IMAGE_TYPE} | dict.fromkeys(attributes, pa.int8())
    arrays = {
        key: pa.array([record[key] for record in records], type=types.get(key))
        for key in records[0]
    }
    # Encoded images do not compress further; small pages keep a row cheap to reach.
    pq.write_table(
        pa.table(arrays),
        path,
        compression="zstd",
        row_group_size=256,
        use_dictionary=["identity"],
        write_statistics=False,
    )


def finish(partial: Path, folder: Path, card: dict, counts: dict) -> Path:
    """Give the shards in ``partial`` their card, and the folder its place."""
    text = json.dumps({**card, "counts": counts}, indent=2, ensure_ascii=False) + "\n"
    (partial / CARD).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def read_faces(folder, *, check_images: bool = True) -> FaceSet:
    """Read and validate a data set.

    Parameters
    ----------
    folder : path-like
        A folder in the format of this module.
    check_images : bool
        Also decode every image once (about 10,000 small images a second and core).

    Raises
    ------
    ValueError
        On the first problem found, naming file, row and column: a missing card, shard or column, a
        null identity, an attribute that is not 0/1 or has one value only, a repeated path, an image
        that cannot be decoded, a demographic column that varies within a person, or counts that
        differ from the card.
    """
    folder = Path(folder)
    card = _read_card(folder)
    attributes, demographics = card["attributes"], card["demographics"]
    files = sorted(folder.glob("faces-*.parquet"))
    if not files:
        raise ValueError(
            f"{folder} holds no faces-*.parquet; fetch the data with `dvc pull data.dvc`"
        )

    tables, origin = [], []
    for file in files:
        table = _read_shard(file, ["image", "identity", *attributes, *demographics])
        _check_shard(file, table, attributes, check_images)
        tables.append(table)
        origin += [(file.name, row) for row in range(len(table))]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"the shards of {folder} disagree on a column type: {error}") from None

    # combine_chunks would copy every image; a row is reached through its chunk just as well.
    structs = [chunk for chunk in table.column("image").chunks]
    encoded = pa.chunked_array([chunk.field("bytes") for chunk in structs], pa.binary())
    paths = pa.chunked_array([chunk.field("path") for chunk in structs], pa.string())
    frame = table.drop_columns(["image"]).to_pandas()
    frame.insert(0, "path", paths.to_pandas())
    _check_whole(folder, frame, card, origin)
    left_out = folder / EXCLUDED
    if not left_out.exists():
        return FaceSet(card, frame, encoded)
    return FaceSet(card, frame, encoded, pd.read_csv(left_out, dtype=str, keep_default_na=False))


def _read_card(folder: Path) -> dict:
    path = folder / CARD
    if not path.exists():
        raise ValueError(
            f"{path} is missing; fetch the data with `dvc pull data.dvc` or import a data set"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it") from None
    for key in REQUIRED_CARD_KEYS:
        if key not in card:
            raise ValueError(f"{path} lacks the key {key!r}; add it")
    return card


def _read_shard(file: Path, needed: list[str]) -> pa.Table:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{file} is not a readable Parquet file ({error}); fetch it again"
        ) from None
    for column in needed:
        if column not in table.column_names:
            raise ValueError(
                f"{file} lacks the column {column!r}{suggest(column, table.column_names)}; "
                f"it has {', '.join(table.column_names)}"
            )
    if not pa.types.is_struct(table.schema.field("image").type) or {
        field.name for field in table.schema.field("image").type
    } < {"bytes", "path"}:
        raise ValueError(f"{file}, column 'image': must be a struct with the fields bytes and path")
    return table


def _check_shard(file: Path, table: pa.Table, attributes: list[str], check_images: bool) -> None:
    for column in ("identity", *attributes):
        nulls = np.flatnonzero(table.column(column).is_null().to_numpy())
        if len(nulls):
            raise ValueError(
                f"{file}, row {nulls[0]}, column {column!r}: the value is missing "
                f"({len(nulls)} such rows); fill it in or remove the row"
            )
    for column in attributes:
        values = np.asarray(table.column(column).to_pylist())
        wrong = np.flatnonzero((values != 0) & (values != 1))
        if len(wrong):
            raise ValueError(
                f"{file}, row {wrong[0]}, column {column!r}: {values[wrong[0]]} is not 0 or 1"
            )
    for row, image in enumerate(table.column("image")):
        content = image.as_py()
        if content is None or not content["bytes"] or not content["path"]:
            raise ValueError(f"{file}, row {row}, column 'image': bytes or path are missing")
        if check_images:
            try:
                decode(content["bytes"], content["path"])
            except ValueError as error:
                raise ValueError(f"{file}, row {row}, column 'image': {error}") from None


def _check_whole(folder: Path, frame: pd.DataFrame, card: dict, origin: list) -> None:
    repeated = np.flatnonzero(frame["path"].duplicated())
    if len(repeated):
        file, row = origin[repeated[0]]
        raise ValueError(
            f"{folder / file}, row {row}, column 'image': the path "
            f"{frame['path'].iloc[repeated[0]]!r} occurs twice; every image needs its own"
        )
    for column in card["attributes"]:
        values = frame[column].unique()
        if len(values) < 2:
            raise ValueError(
                f"{folder}, column {column!r}: every one of the {len(frame)} rows has the value "
                f"{values[0]}; an attribute needs both 0 and 1, so remove it from the card"
            )
    for column in card["demographics"]:
        varying = frame.groupby("identity")[column].nunique(dropna=False)
        if (varying > 1).any():
            raise ValueError(
                f"{folder}, column {column!r}: differs between images of the identity "
                f"{varying.idxmax()!r}; a demographic column must be constant within a person"
            )
    found = {"images": len(frame), "identities": frame["identity"].nunique()}
    for key, value in found.items():
        stated = card.get("counts", {}).get(key, value)
        if stated != value:
            raise ValueError(
                f"{folder / CARD} states {stated} {key} but the shards hold {value}; "
                "a shard is missing or left over, fetch the data again"
            )
