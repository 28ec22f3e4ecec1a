"""Photographs by name: those of a folder, or inside the Parquet files in which hubs deliver data sets."""

import io
import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd

from cid.door import tables

KINDS = (".jpg", ".jpeg", ".png", ".webp", ".pgm", ".ppm", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 50_000_000  # a few kB can unpack to gigabytes
MAX_SIDE = 1024  # px; larger photographs are shrunk, because no network here sees more than 160
IMAGE_NAMES = ("image", "img", "picture", "photo")  # of the column of a hub that holds pictures


@dataclass(frozen=True)
class Photographs:
    """What a source holds, before any photograph is opened.

    Attributes
    ----------
    names : list of str
    read : callable
        From a name to the encoded bytes; FileNotFoundError where there is none.
    where : str
        The source, for messages.
    table : DataFrame or None
        The other columns of Parquet files, with the names in :data:`cid.door.tables.IMAGE`.
    """

    names: list[str]
    read: Callable[[str], bytes]
    where: str
    table: pd.DataFrame | None = None


def open_source(paths: Sequence[str | Path]) -> Photographs:
    """Open a folder of photographs, or one or several Parquet files of a hub, or a folder of these.

    ValueError if there is nothing of the kind.
    """
    paths = [Path(path) for path in paths]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]} does not exist; name a folder of photographs")
    if len(paths) == 1 and paths[0].is_dir():
        return _of_folder(paths[0])
    other = [path for path in paths if path.is_dir() or path.suffix not in (".parquet", ".pq")]
    if other:
        raise ValueError(
            f"{other[0]} is no Parquet file; name one folder of photographs, or Parquet files"
        )
    return of_parquet(paths)


def _of_folder(folder: Path) -> Photographs:
    names = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in KINDS and not hidden and path.is_file():
            names.append(path.relative_to(folder).as_posix())
    if not names:
        files = sorted(folder.rglob("*.parquet"))
        if files:
            return of_parquet(files)
        raise ValueError(f"{folder} holds no photographs ({', '.join(KINDS)}) and no Parquet files")
    return Photographs(sorted(names), lambda name: (folder / name).read_bytes(), str(folder))


def of_parquet(files: Sequence[Path]) -> Photographs:
    """Open Parquet files with a column of pictures, a struct of ``bytes`` and ``path``.

    A picture's name is its path; where that is missing or not the only one, the name of its file and the
    number of its row. Numbers that stand for classes become the classes' names, where the file has them.
    """
    import pyarrow.parquet as pq

    places: dict[str, tuple[Path, int, int]] = {}  # file, row group, row within it
    frames = []
    for path in files:
        shard = _opened(path)
        column = _picture_column(shard, path)
        names = []
        for group in range(shard.num_row_groups):
            # A struct cannot be read by halves everywhere, so the names come with the pictures.
            rows = shard.read_row_group(group, columns=[f"{column}.path"])
            for row, picture in enumerate(rows.column(column).to_pylist()):
                name = (picture or {}).get("path") or ""
                if not name or name in places:
                    name = f"{path.name}#{len(names)}"
                places[name] = (path, group, row)
                names.append(name)
        others = [name for name in shard.schema_arrow.names if name != column]
        frame = pq.read_table(path, columns=others).to_pandas(ignore_metadata=True)
        frame = tables.without_row_numbers(frame)
        frame = _with_class_names(frame, shard.schema_arrow.metadata)
        if tables.IMAGE != column and tables.IMAGE in frame:
            frame = frame.drop(columns=tables.IMAGE)
        frame.insert(0, tables.IMAGE, names)
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True).apply(tables.as_text)
    where = str(files[0]) if len(files) == 1 else f"{len(files)} Parquet files"

    @lru_cache(maxsize=4)
    def pictures(path: Path, group: int) -> list:
        shard = _opened(path)
        column = _picture_column(shard, path)
        return shard.read_row_group(group, columns=[f"{column}.bytes"]).column(column).to_pylist()

    def read(name: str) -> bytes:
        if name not in places:
            raise FileNotFoundError(name)
        path, group, row = places[name]
        return (pictures(path, group)[row] or {}).get("bytes") or b""

    return Photographs(list(places), read, where, table)


def _opened(path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a readable Parquet file ({reason})") from None


def _picture_column(shard, path: Path) -> str:
    """Return the name of the column that holds pictures."""
    import pyarrow as pa

    schema = shard.schema_arrow
    structs = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and {"bytes", "path"} <= {field.type.field(i).name for i in range(field.type.num_fields)}
    ]
    for name in (*IMAGE_NAMES, *structs):
        if name in structs:
            return name
    raise ValueError(
        f"{path} has no column of pictures (a struct of bytes and path); it has "
        f"{tables.listed(schema.names)}; a table of labels goes to --labels"
    )


def _with_class_names(frame: pd.DataFrame, metadata: dict | None) -> pd.DataFrame:
    """Replace numbers of classes by names, where the data set's own description says them."""
    try:
        description = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = description.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return frame
    for column, feature in features.items():
        names = feature.get("names") if isinstance(feature, dict) else None
        if column in frame and names:
            numbered = dict(enumerate(names))
            frame[column] = frame[column].map(numbered)
    return frame


def found_names(photographs: Photographs, names: Sequence[str], labels: str) -> list[str]:
    """Return for each name of a table that of the photograph, or "" where there is none.

    Separators and forms of Unicode may differ, and the table may have whole paths. ValueError if none is
    there; it says how the names differ.
    """
    by_name = {_plain(name): name for name in photographs.names}
    folder = Path(photographs.where)
    found = [by_name.get(_plain(_below(folder, name)), "") for name in names]
    if not any(found):
        raise ValueError(_strangers(photographs, list(names), labels))
    return found


def _below(folder: Path, name: str) -> str:
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        return path.relative_to(folder.absolute()).as_posix()
    return name


def _plain(name: str) -> str:
    return posixpath.normpath(normalize("NFC", name.replace("\\", "/")))


def _strangers(photographs: Photographs, names: list[str], labels: str) -> str:
    """Say how the names of a table differ from those of the photographs, with an example."""
    alike = {
        "they differ in letter case": str.casefold,
        "they differ in the extension": lambda name: posixpath.splitext(name)[0],
        "they differ in the folders in front": posixpath.basename,
    }
    name = names[0]
    file = photographs.names[0]
    cause = "name the folder in which the paths begin"
    for difference, key in alike.items():
        files = {key(_plain(file)): file for file in photographs.names}
        match = next((name for name in names if key(_plain(name)) in files), None)
        if match is not None:
            name = match
            file = files[key(_plain(match))]
            cause = difference
            break
    return (
        f"none of the {len(names)} images in {labels} is in {photographs.where}: the table has {name!r}, "
        f"the photographs {file!r}; {cause}"
    )


def opened(encoded: bytes) -> np.ndarray:
    """Decode a photograph to uint8 (height, width, 3), RGB, of :data:`MAX_SIDE` at most.

    ValueError says why it cannot be used.
    """
    from PIL import Image, UnidentifiedImageError

    from cid.pictures import decode

    if not encoded:
        raise ValueError("empty file")
    Image.MAX_IMAGE_PIXELS = None  # the limit below is lower, and Pillow's own only warns
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            width, height = picture.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise ValueError("not an image") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"too large to unpack: {width} x {height} pixels")
    try:
        pixels = decode(encoded, "")
    except ValueError:
        raise ValueError("cannot be decoded; it is damaged") from None
    if max(width, height) <= MAX_SIDE:
        return pixels
    smaller = Image.fromarray(pixels)
    smaller.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(smaller)
