"""Parquet files in which hubs of data sets deliver faces: images as bytes, labels and people beside them.

A file has a column of images, each a struct of ``bytes`` and ``path`` or bytes alone; columns of labels: true
or false, numbers, class names, or numbers of classes whose names the file's metadata hold; and often one that
says who it is. Labels are read at once, images one row group after the other.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cid.names import suggest

GROUPS = 2  # row groups of images in memory


def find_files(places: Iterable) -> list[Path]:
    """Return Parquet files, in order, of files and folders; ValueError if one is missing or has none."""
    files = []
    for place in map(Path, places):
        own = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
        if not own:
            raise ValueError(f"{place} holds no *.parquet; name the files")
        files += own
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} does not exist; name the Parquet files, or a folder of them")
    return files


class ImageColumn:
    """The images of Parquet files by name; ``names`` are their paths where these differ, else numbers."""

    def __init__(self, files: Sequence[Path], column: str):
        self.files = files
        self.column = column
        self.names: list[str] = []
        self._places: dict[str, tuple[int, int, int]] = {}  # file, row group, row
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()  # images are read from several threads
        paths: list[str | None] = []
        numbers = []
        places = []
        for number, file in enumerate(files):
            own = _paths(file, column)
            paths += own
            numbers += [f"{file.stem}/{row:06d}" for row in range(len(own))]
            with open_file(file) as opened:
                for group in range(opened.num_row_groups):
                    rows = opened.metadata.row_group(group).num_rows
                    places += [(number, group, row) for row in range(rows)]
        tell_apart = None not in paths and len(set(paths)) == len(paths)
        self.names = paths if tell_apart else numbers
        self._places = dict(zip(self.names, places, strict=True))
        if len(self._places) < len(places):
            raise ValueError(f"two of the files are named {files[0].name}; rename one")

    def read(self, name: str) -> bytes:
        """Return the encoded bytes of an image; ValueError if the file has none."""
        file, group, row = self._places[name]
        with self._lock:
            images = self._groups.get((file, group))
            if images is None:
                with open_file(self.files[file]) as opened:
                    table = opened.read_row_group(group, columns=[self.column])
                images = table.column(self.column)
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                self._groups[file, group] = images
                if len(self._groups) > GROUPS:
                    self._groups.popitem(last=False)
        content = images[row].as_py()
        if content is None:
            raise ValueError("no bytes in the Parquet file")
        return content


def open_file(file: Path) -> pq.ParquetFile:
    """Open a Parquet file; ValueError if it is none."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        problem = str(error).partition("\n")[0]
        raise ValueError(
            f"{file} is not a readable Parquet file ({problem}); fetch it again"
        ) from None


def _paths(file: Path, column: str) -> list[str | None]:
    """Return the path of every image of a file, None where it has none; ValueError if there are no images."""
    with open_file(file) as opened:
        schema = opened.schema_arrow
        if column not in schema.names:
            raise ValueError(missing(file, column, schema.names))
        kind = schema.field(column).type
        fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
        if "bytes" not in fields and not _is_binary(kind):
            raise ValueError(
                f"{file}, column {column!r}: is {kind}; images are bytes, or a struct of bytes and path"
            )
        if "path" not in fields:
            return [None] * opened.metadata.num_rows
        table = opened.read(columns=[f"{column}.path"])
    paths = pc.struct_field(table.column(column), "path").to_pylist()
    return [path or None for path in paths]


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def missing(file, column: str, columns: Iterable[str]) -> str:
    """Say that a column is missing, with the nearest and all others."""
    columns = [name for name in columns if not name.startswith("__index_level_")]
    return f"{file} has no column {column!r}{suggest(column, columns)}; it has {', '.join(columns)}"


def read_columns(files: Sequence[Path], columns: Sequence[str]) -> pd.DataFrame:
    """Read columns of several files as text, as :func:`study.faces.annotations.votes` takes it.

    NaN is a missing value. ValueError if a column is missing or holds lists, sets or the like.
    """
    tables = []
    for file in files:
        with open_file(file) as opened:
            schema = opened.schema_arrow
            for column in columns:
                if column not in schema.names:
                    raise ValueError(missing(file, column, schema.names))
                if pa.types.is_nested(schema.field(column).type):
                    raise ValueError(
                        f"{file}, column {column!r}: holds lists or sets; name a column of one value a row"
                    )
            table = opened.read(columns=list(columns))
        names = _class_names(schema.metadata)
        tables.append(
            pd.DataFrame(
                {
                    name: _as_text(table.column(name), names.get(name), f"{file}, column {name!r}")
                    for name in columns
                },
                index=range(table.num_rows),
                dtype=object,
            )
        )
    return pd.concat(tables, ignore_index=True)


def _class_names(metadata: dict | None) -> dict[str, list[str]]:
    """Return the names of classes by column, as the library `datasets` notes them in a file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _as_text(column: pa.ChunkedArray, names: list[str] | None, where: str) -> np.ndarray:
    """Return a column as text, with NaN where it is missing; ``names`` are those of numbered classes."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    values = column.to_pylist()
    if names is not None and pa.types.is_integer(kind):
        known = range(-1, len(names))  # -1: no label
        wrong = [value for value in values if value is not None and value not in known]
        if wrong:
            raise ValueError(f"{where}: is {wrong[0]}, but the file names {len(names)} classes")
        values = [None if value in (None, -1) else names[value] for value in values]
    return np.array([_one_text(value) for value in values], dtype=object)


def _one_text(value):
    if value is None or value != value:  # NaN
        return np.nan
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
