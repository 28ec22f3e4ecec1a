"""The one data-set format of the project, and its validation.

A data set is a folder::

    data/
      card.json            what this is: name, source, licence, counts, attributes, seed, versions
      faces-00000.parquet  one row per image, images embedded as encoded bytes
      faces-00001.parquet  ...
      excluded.csv         optional: images that an import left out, and why

Columns: ``image`` (struct of ``bytes``, an encoded JPEG / PNG / WebP, and ``path``, a name that is unique
in the data set), ``identity`` (string; null, or no such column, where nobody knows who it is), a column of
0, 1 or null (no label) for every attribute that the card lists, and any further columns; the card's ``demographics`` are columns that are constant within a
person. No picture occurs twice: it could be in a training set and in a test set at once. With an optional
column ``landmarks`` (ten numbers, x and y of five points in pixels, in the order of
:class:`cid.detection.Detection`) the embedding can skip detection. ``show_images: false`` in the card keeps
photographs of real people out of notebooks and reports.

Columns are what Parquet itself says they are: the index that pandas notes beside them is not used.

Later stages need no images: they read the card and the labels by :func:`read_labels`. Identities are
stored because an identity-robust evaluation needs them. A data set can lack them for some images, which
then only train (``bias.kind: natural``); without any, nothing can be evaluated by person. Nothing that trains a model without identity
labels may read that column; see :mod:`study.methods`.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cid.names import suggest
from cid.pictures import decode
from study.store import digest, write, write_text

CARD = "card.json"
EXCLUDED = "excluded.csv"
LABELS = "labels.parquet"  # written by the stage data
CROPS = "crops.npy"  # these two by the stage embed
ACTIVATIONS = "activations.npy"
RESERVED = ("image", "identity", "path", "landmarks")  # columns with a meaning of their own
REQUIRED_CARD_KEYS = ("name", "source", "licence", "attributes", "demographics")
# A shard ends at whichever comes first, which bounds the memory.
SHARD_IMAGES = 2048
SHARD_BYTES = 256 * 2**20
AHEAD = 256  # images that are decoded ahead of their use


@dataclass(frozen=True)
class Labels:
    """The data card, and a table with one row per image: its ``path`` and all columns but ``image``."""

    card: dict
    frame: pd.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    def labels(self, attribute: str) -> np.ndarray:
        """Return the labels of an attribute, 0 or 1: int64 (n,), or float64 with NaN if any is missing."""
        known = self.card["attributes"]
        if attribute not in known:
            raise ValueError(
                f"the data set {self.card['name']!r} has no attribute {attribute!r}"
                f"{suggest(attribute, known)}; it has {', '.join(known)}"
            )
        values = self.frame[attribute].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isnan(values).any():
            return values
        return values.astype(np.int64)

    def identities(self) -> np.ndarray:
        """Return the identity of every image as a code, int64 (n,), in the order of sorted names.

        -1 is an image of which nobody knows who it shows.
        """
        names = self.frame["identity"]
        known = names.notna().to_numpy()
        codes = np.full(len(names), -1)
        codes[known] = np.unique(names[known].to_numpy(dtype=str), return_inverse=True)[1]
        return codes


@dataclass(frozen=True)
class FaceSet(Labels):
    """A face data set in memory, its images still encoded.

    `excluded` lists what an import left out: columns ``image`` (name in the source) and ``reason``.
    """

    encoded: pa.ChunkedArray
    excluded: pd.DataFrame = field(default_factory=pd.DataFrame)

    def image(self, row: int) -> np.ndarray:
        """Decode one image to a uint8 array (height, width, 3), RGB."""
        return decode(self.encoded[int(row)].as_py(), self.frame["path"].iloc[row])

    def images(self, rows=None) -> Iterator[np.ndarray]:
        """Decode images in order, on all cores and some ahead of their use; Pillow releases the lock."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(rows), AHEAD):
                yield from pool.map(self.image, rows[start : start + AHEAD])

    def landmarks(self) -> np.ndarray:
        """Return the landmarks that came with the data, float32 (n, 5, 2), in pixels."""
        if "landmarks" not in self.frame:
            raise ValueError("the data set came without landmarks; set embed.detect to true")
        try:
            points = np.array(self.frame["landmarks"].tolist(), np.float32)
            points = points.reshape(len(self), 5, 2)
            if np.isfinite(points).all():
                return points
        except (TypeError, ValueError):
            pass  # refused below
        raise ValueError(
            f"column 'landmarks' of the data set {self.card['name']!r} has not ten finite numbers in "
            "every row; mend it, or set embed.detect to true"
        )


def write_labels(data: FaceSet, folder) -> None:
    """Write what later stages need of a data set: its card, its labels, and what an import left out."""
    folder = Path(folder)
    write_card(folder, data.card)
    table = data.frame.drop(columns="landmarks", errors="ignore")
    write(folder / LABELS, lambda file: table.to_parquet(file, index=False))
    if len(data.excluded):
        write_text(folder / EXCLUDED, data.excluded.to_csv(index=False))


def read_labels(folder="build/data") -> Labels:
    """Read what :func:`write_labels` wrote; ValueError if it is missing."""
    folder = Path(folder)
    if not (folder / LABELS).exists():
        raise ValueError(f"{folder / LABELS} is missing; run `dvc repro data`")
    return Labels(_read_card(folder), pd.read_parquet(folder / LABELS))


def read_crops(folder="build/embed") -> np.ndarray | None:
    """Return the aligned faces, uint8 (n, 3, side, side), still on disk; None if the study keeps none."""
    return _on_disk(Path(folder) / CROPS)


def read_images(model: str, folder="build/embed") -> np.ndarray | None:
    """Return the images that a network of this name is trained on, still on disk; None if it needs none.

    They are the faces of :func:`read_crops`; for ``finetune`` their activations, float16 (n, c, h, w).
    """
    if model == "finetune":
        return _on_disk(Path(folder) / ACTIVATIONS)
    return read_crops(folder)


def _on_disk(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    return np.load(path, mmap_mode="r")


def write_faces(folder, records: Iterable[dict], card: dict) -> Path:
    """Write a data set; the folder appears, or replaces an old data set, complete or not at all.

    Parameters
    ----------
    records : iterable of dict
        The columns of one image each, the same in every record.
    card : dict
        :data:`REQUIRED_CARD_KEYS` and anything else that describes the set; ``counts`` is added here.

    Raises
    ------
    ValueError
        If there is no record, or :func:`check_replaceable` refuses the folder.
    """
    with replacing(folder) as partial:
        write_shards(partial, records, card["attributes"])
        counts = count_labels(partial, card["attributes"])
        if not counts["images"]:
            raise ValueError(f"no images to write to {folder}; the list of records is empty")
        write_card(partial, card | {"counts": counts})
    return Path(folder)


def check_replaceable(folder) -> None:
    """Raise a ValueError for a file, a mount point, or a folder that holds something else than a data set."""
    folder = Path(folder).resolve()
    if os.path.ismount(folder):
        raise ValueError(f"{folder} is a mount point and cannot be replaced; name a folder in it")
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / CARD).exists():
        raise ValueError(f"{folder} exists and is not a data set (no {CARD}); name a new folder")


@contextmanager
def replacing(folder) -> Iterator[Path]:
    """Yield an empty folder that takes the place of a data set if the block succeeds, or else is removed.

    The old data set is removed last: if the process is killed at any moment, the next call restores it.
    A symbolic link is followed. ValueError if another process is writing there.
    """
    check_replaceable(folder)
    folder = Path(folder).resolve()
    work = folder.with_name(folder.name + ".partial")
    new = work / "new"
    old = work / "old"
    with _alone(work):
        try:
            if old.exists() and not folder.exists():  # killed between the two moves below
                os.replace(old, folder)
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
            new.mkdir()
            yield new
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
        finally:
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Lock the folder against other processes; the system ends the lock of a process that was killed."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
        except (BlockingIOError, FileNotFoundError):  # not found: the other process has just ended
            ours = False
        except OSError:  # a file system without locks
            ours = True
        if not ours:
            raise ValueError(
                f"another import is writing to {work}; wait for it or name a new folder"
            )
        yield


def write_shards(folder: Path, records: Iterable[dict], attributes: list[str]) -> None:
    """Write records (see :func:`write_faces`) into an empty folder."""
    for number, shard in enumerate(_in_shards(records)):
        write_shard(folder / f"faces-{number:05d}.parquet", shard, attributes)


def drop_images(folder: Path, paths: set[str]) -> None:
    """Remove images from the shards again, by their paths."""
    if not paths:
        return
    for file in sorted(folder.glob("faces-*.parquet")):
        with pq.ParquetFile(file) as shard:
            names = shard.read(columns=["image.path"]).column("image").to_pylist()
        keep = [name["path"] not in paths for name in names]
        if not any(keep):
            file.unlink()
        elif not all(keep):
            _write_table(file, pq.read_table(file).filter(keep))


def count_labels(folder: Path, attributes: list[str]) -> dict:
    """Return the counts of the data card: images, identities and positives.

    Also, where there are any, images without an identity, and labels if some are missing.
    """
    columns = ["identity", *attributes]
    files = sorted(folder.glob("faces-*.parquet"))
    tables = []
    for file in files:
        there = [name for name in columns if name in pq.read_schema(file).names]
        tables.append(pq.read_table(file, columns=there))
    if tables:
        frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    else:
        frame = pd.DataFrame(columns=columns)
    if "identity" not in frame:
        frame["identity"] = None
    counts = {
        "images": len(frame),
        "identities": frame["identity"].nunique(),
    }
    unidentified = int(frame["identity"].isna().sum())
    if unidentified:
        counts["unidentified"] = unidentified
    counts |= {
        "positives": {attribute: int(frame[attribute].sum()) for attribute in attributes},
    }
    labelled = {attribute: int(frame[attribute].count()) for attribute in attributes}
    if any(count < len(frame) for count in labelled.values()):
        counts["labelled"] = labelled
    return counts


def count_rows(folder) -> int:
    """Count the images in the files of a data set, without reading them; one that is unreadable has none."""
    rows = 0
    for file in Path(folder).glob("faces-*.parquet"):
        with suppress(pa.ArrowException, OSError):
            rows += pq.read_metadata(file).num_rows
    return rows


def _in_shards(records: Iterable[dict]) -> Iterator[list[dict]]:
    shard = []
    size = 0  # bytes
    for record in records:
        shard.append(record)
        size += len(record["image"]["bytes"])
        if len(shard) == SHARD_IMAGES or size >= SHARD_BYTES:
            yield shard
            shard = []
            size = 0
    if shard:
        yield shard


def write_shard(path: Path, records: list[dict], attributes: list[str]) -> None:
    """Write one Parquet file of a data set; a label that is None is missing."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"image": image} | dict.fromkeys(attributes, pa.int8())
    columns = {}
    for key in records[0]:
        values = [record[key] for record in records]
        if key == "identity" and all(value is None for value in values):
            types[key] = pa.string()
        columns[key] = pa.array(values, types.get(key))
    _write_table(path, pa.table(columns))


def _write_table(path: Path, table: pa.Table) -> None:
    # Encoded images do not compress further; small row groups make a single row cheap to read.
    pq.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=256,
        use_dictionary=["identity"],
        write_statistics=False,
    )


def write_card(folder: Path, card: dict) -> None:
    """Write the data card."""
    write_text(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_faces(folder, name: str | None = None, *, check_images: bool = True) -> FaceSet:
    """Read and validate a data set; its card must have this name, if one is given.

    ``check_images`` also decodes every image once (about 7,000 small images per second and core) and
    refuses two with the same pixels. A ValueError names the file, the row and the column of the first
    problem.
    """
    folder = Path(folder)
    card = _read_card(folder)
    if name is not None and card["name"] != name:
        raise ValueError(
            f"params.yaml: data is {name!r}, but {folder}/ holds {card['name']!r}; import it first "
            "(python -m study import ...) or set data"
        )
    files = sorted(folder.glob("faces-*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no faces-*.parquet; fetch it with `dvc pull data.dvc`")
    paths: set[str] = set()
    pixels: dict[str, str] = {}
    tables = [_read_shard(file, card, paths, pixels, check_images) for file in files]
    without = [
        file
        for file, table in zip(files, tables, strict=True)
        if "identity" not in table.column_names
    ]
    if 0 < len(without) < len(files):
        raise ValueError(f"{without[0]} lacks the column 'identity', which others have; mend it")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"the shards of {folder} disagree on a column type: {error}") from None
    # Chunks stay as they are: combining them would copy every image.
    encoded = pc.struct_field(table.column("image"), "bytes")
    frame = table.drop_columns(["image"]).to_pandas()
    frame.insert(0, "path", pc.struct_field(table.column("image"), "path").to_pandas())
    if "identity" not in frame:
        frame.insert(1, "identity", None)
    _check_whole(folder, frame, card)
    if not (folder / EXCLUDED).exists():
        return FaceSet(card, frame, encoded)
    return FaceSet(card, frame, encoded, _read_excluded(folder / EXCLUDED))


def _read_excluded(path: Path) -> pd.DataFrame:
    try:
        excluded = pd.read_csv(path, dtype=str, keep_default_na=False)
        return excluded[["image", "reason"]]
    except (ValueError, KeyError):
        raise ValueError(
            f"{path} is no table of the columns image and reason; restore or remove it"
        ) from None


def _read_card(folder: Path) -> dict:
    path = folder / CARD
    if not path.exists():
        raise ValueError(
            f"{path} is missing; fetch the data with `dvc pull data.dvc` or import some"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also if it is no text
        raise ValueError(f"{path} is not valid JSON ({error}); restore it") from None
    for key in REQUIRED_CARD_KEYS:
        if key not in card:
            raise ValueError(f"{path} lacks the key {key!r}; add it")
    columns = f", each once and none of {', '.join(RESERVED)}"
    _check_key(path, card, "name", isinstance(card["name"], str), "a text")
    _check_key(
        path,
        card,
        "attributes",
        bool(card["attributes"]) and _columns(card["attributes"]),
        f"a list of one or more columns{columns}",
    )
    _check_key(
        path,
        card,
        "demographics",
        _columns(card["demographics"]),
        f"a list of columns, or []{columns}",
    )
    _check_key(
        path,
        card,
        "counts",
        isinstance(card.get("counts", {}), dict),
        "a mapping, as an import writes it",
    )
    _check_key(
        path,
        card,
        "show_images",
        isinstance(card.get("show_images", True), bool),
        "true or false",
    )
    return card


def _check_key(path: Path, card: dict, key: str, valid: bool, wanted: str) -> None:
    if not valid:
        raise ValueError(f"{path}: {key} is {card[key]!r}; it must be {wanted}")


def _columns(names) -> bool:
    """Return whether these are a list of columns that labels can have, each once."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    return len(set(names)) == len(names) and not set(RESERVED) & set(names)


def _read_shard(
    file: Path, card: dict, paths: set[str], pixels: dict[str, str], check_images: bool
) -> pa.Table:
    """Read and check one file; ``paths`` and ``pixels`` (digest: path) collect those of all files."""
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file ({error}); restore it") from None
    table = as_stored(table)
    _check_columns(file, table, card)
    if "identity" in table.column_names:
        _check_identities(file, table.column("identity").to_pandas())
    for attribute in card["attributes"]:
        _check_labels(file, attribute, table.column(attribute).to_pandas())
    for row, struct in enumerate(table.column("image")):
        try:
            _check_image(struct.as_py(), paths, pixels, check_images)
        except ValueError as error:
            raise ValueError(f"{file}, row {row}, column 'image': {error}") from None
    return table


def as_stored(table: pa.Table) -> pa.Table:
    """Return a table of columns alone, as every reader but pandas sees it.

    After a filter or a shuffle pandas stores the old row numbers, and would align columns by them.
    """
    table = table.replace_schema_metadata(None)
    numbers = [name for name in table.column_names if name.startswith("__index_level_")]
    return table.drop_columns(numbers)


def _check_columns(file: Path, table: pa.Table, card: dict) -> None:
    misspelt = [] if "identity" in table.column_names else near_names(table.column_names)
    if misspelt:
        raise ValueError(
            f"{file} has no column 'identity', but {misspelt[0]!r}; rename that to identity if it says who "
            "is on an image, or else to something less like it"
        )
    for column in ("image", *card["attributes"], *card["demographics"]):
        if column not in table.column_names:
            raise ValueError(
                f"{file} lacks the column {column!r}{suggest(column, table.column_names)}"
            )
    kind = table.schema.field("image").type
    if not pa.types.is_struct(kind) or not {"bytes", "path"} <= {part.name for part in kind}:
        raise ValueError(f"{file}, column 'image': must be a struct with the fields bytes and path")
    if "path" in table.column_names:
        raise ValueError(
            f"{file} has a column 'path', which image.path becomes; rename or remove it"
        )
    kind = table.schema.field("identity").type if "identity" in table.column_names else pa.null()
    if pa.types.is_nested(kind):
        raise ValueError(f"{file}, column 'identity': holds lists; write one name or number a row")


def near_names(columns: Iterable[str]) -> list[str]:
    """Return columns that may be a misspelt ``identity``: people would be lost without a word."""
    plain = {name: name.strip().lower().removesuffix("_id") for name in columns}
    return [
        name
        for name, word in plain.items()
        if word == "identities" or get_close_matches(word, ["identity"], cutoff=0.85)
    ]


def _check_identities(file: Path, values: pd.Series) -> None:
    wrong = values.map(_untidy).astype(bool)
    if wrong.any():
        value = values[wrong.idxmax()]
        _refuse_rows(
            file,
            "identity",
            wrong,
            value,
            f"{value!r} is empty, has spaces around it or is not NFC",
        )


def _check_labels(file: Path, attribute: str, values: pd.Series) -> None:
    wrong = ~(values.isin((0, 1)) | values.isna())
    if wrong.any():
        value = values[wrong.idxmax()]
        shown = repr(value) if isinstance(value, str) else value
        _refuse_rows(file, attribute, wrong, value, f"{shown} is not 0 or 1")


def _refuse_rows(file: Path, column: str, wrong: pd.Series, value, problem: str) -> None:
    if pd.isna(value):
        problem = "the value is missing"
    raise ValueError(
        f"{file}, row {wrong.idxmax()}, column {column!r}: {problem} ({wrong.sum()} such rows); mend or "
        "remove the row"
    )


def _check_image(
    image: dict | None, paths: set[str], pixels: dict[str, str], check_images: bool
) -> None:
    if not (image and image["bytes"] and image["path"]):
        raise ValueError("bytes or path are missing")
    path = image["path"]
    if path in paths:
        raise ValueError(f"the path {path!r} occurs twice; each image needs its own")
    if check_images:
        content = digest(decode(image["bytes"], path))
        twin = pixels.setdefault(content, path)
        if twin != path:
            raise ValueError(f"{path!r} is the same picture as {twin!r}; keep one")
    paths.add(path)


def tidy(name: str) -> str:
    """Return a person's name as data sets hold it: in Unicode NFC, without spaces around it."""
    return normalize("NFC", name.strip())


def _untidy(name) -> bool:
    """Return whether a name, if it is a text, is empty or could be written in another way that looks alike."""
    return isinstance(name, str) and (not name or tidy(name) != name)


def _check_whole(folder: Path, frame: pd.DataFrame, card: dict) -> None:
    for column in card["attributes"]:
        values = frame[column].dropna()
        if values.nunique() < 2:
            content = f"the value {values.iloc[0]:g}" if len(values) else "no label"
            raise ValueError(
                f"{folder}, column {column!r}: every one of the {len(values) or len(frame)} rows "
                f"has {content}; an attribute needs both 0 and 1, so remove it from the card"
            )
    for column in card["demographics"]:
        varying = frame.groupby("identity")[column].nunique(dropna=False)
        if (varying > 1).any():
            raise ValueError(
                f"{folder}, column {column!r}: differs between images of the identity "
                f"{varying.idxmax()!r}; a demographic column must be constant within a person"
            )
    counts = card.get("counts", {})
    unknown = int(frame["identity"].isna().sum())
    for what, value, stated in (
        ("images", len(frame), counts.get("images")),
        ("identities", frame["identity"].nunique(), counts.get("identities")),
        (
            "images without an identity",
            unknown,
            counts.get("unidentified", 0 if "identities" in counts else None),
        ),
    ):
        if stated not in (None, value):
            raise ValueError(
                f"{folder / CARD} states {stated} {what} but the shards hold {value}; "
                "a shard is missing or left over, fetch the data again"
            )
