"""The one data-set format of the project, and its validation.

A data set is a folder::

    data/
      card.json            what this is: name, source, licence, counts, attributes, seed, versions
      faces-00000.parquet  one row an image, images embedded as encoded bytes
      faces-00001.parquet  ...
      excluded.csv         optional: images an import left out, and why

Columns: ``image`` (struct of ``bytes``, an encoded JPEG / PNG / WebP, and ``path``, a name unique in
the data set), ``identity`` (string), a column of 0, 1 or null (no label) for every attribute the
card lists, and any further columns, of which the card's ``demographics`` are constant within a
person. No picture occurs twice: it could be trained on and tested on at once. An optional column
``landmarks`` (ten numbers, x and y of five points in pixels, as :class:`cid.align.Detection` orders
them) lets embedding skip detection. ``show_images: false`` in the card keeps photographs of real
people out of notebooks and reports.

Later stages need no images: they read the card and the labels by :func:`read_labels`. Identities
are stored as an identity-robust evaluation needs them. Nothing that trains a model without identity
labels may read that column; see :mod:`study.methods.registry`.
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from cid.names import suggest
from study.store import digest, write, write_text

CARD = "card.json"
EXCLUDED = "excluded.csv"
# Of the stages data and embed.
LABELS, CROPS, ACTIVATIONS = "labels.parquet", "crops.npy", "activations.npy"
RESERVED = ("image", "identity", "path", "landmarks")  # columns with a meaning of their own
REQUIRED_CARD_KEYS = ("name", "source", "licence", "attributes", "demographics")
SHARD_IMAGES, SHARD_BYTES = 2048, 256 * 2**20  # whichever comes first; bounds memory
AHEAD = 256  # images decoded ahead of their use


@dataclass(frozen=True)
class Labels:
    """The data card, and one row an image (0..n-1) with its ``path`` and all columns but ``image``."""

    card: dict
    frame: pd.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    def labels(self, attribute: str) -> np.ndarray:
        """The 0/1 labels of an attribute, int64 of shape (n,); float64 with NaN if any is missing."""
        if attribute not in self.card["attributes"]:
            known = self.card["attributes"]
            raise ValueError(
                f"the data set {self.card['name']!r} has no attribute {attribute!r}"
                f"{suggest(attribute, known)}; it has {', '.join(known)}"
            )
        values = self.frame[attribute].to_numpy(dtype=np.float64, na_value=np.nan)
        return values if np.isnan(values).any() else values.astype(np.int64)

    def identities(self) -> np.ndarray:
        """Identity of every image as an integer code, int64 of shape (n,), in sorted name order."""
        return np.unique(self.frame["identity"].to_numpy(dtype=str), return_inverse=True)[1]


@dataclass(frozen=True)
class FaceSet(Labels):
    """A face data set held in memory, images still encoded.

    `excluded` lists what an import left out: ``image`` (name in the source) and ``reason``.
    """

    encoded: pa.ChunkedArray
    excluded: pd.DataFrame = field(default_factory=pd.DataFrame)

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
            raise ValueError("the data set came without landmarks; set embed.detect to true")
        try:
            points = np.array(self.frame["landmarks"].tolist(), np.float32).reshape(len(self), 5, 2)
            if np.isfinite(points).all():
                return points
        except (TypeError, ValueError):
            pass
        raise ValueError(
            f"column 'landmarks' of the data set {self.card['name']!r} has not ten finite numbers in "
            "every row; mend it, or set embed.detect to true"
        )


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decode an encoded image to uint8 (height, width, 3) RGB, upright by its EXIF orientation."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            return np.asarray(in_8_bits(ImageOps.exif_transpose(picture)).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        why = str(error).partition(" <")[0]  # before the address of a file in memory
        raise ValueError(
            f"image {name!r} cannot be decoded ({why}); replace or remove it"
        ) from None


def in_8_bits(picture: Image.Image) -> Image.Image:
    """Any picture in grey or RGB of 8 bits; what is transparent is laid on white, as on a page."""
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "L" else picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of more bits in 8: of floats and 32 bits, the largest value tells what white is."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:  # NaN, too
        raise ValueError(f"grey values out of range: from {low:g} to {high:g}")
    white = 65535 if high > 255 or picture.mode.startswith("I;16") else 255
    white = 1 if picture.mode == "F" and high <= 1 else white
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def write_labels(data: FaceSet, folder) -> None:
    """Write what later stages need of a data set: its card, its labels, what was left out if any."""
    folder = Path(folder)
    write_card(folder, data.card)
    table = data.frame.drop(columns="landmarks", errors="ignore")
    write(folder / LABELS, lambda file: table.to_parquet(file, index=False))
    if len(data.excluded):
        write_text(folder / EXCLUDED, data.excluded.to_csv(index=False))


def read_labels(folder="build/data") -> Labels:
    """Read what :func:`write_labels` wrote; ValueError if it has not."""
    folder = Path(folder)
    if not (folder / LABELS).exists():
        raise ValueError(f"{folder / LABELS} is missing; run `dvc repro data`")
    return Labels(_read_card(folder), pd.read_parquet(folder / LABELS))


def read_crops(folder="build/embed") -> np.ndarray | None:
    """Aligned faces, uint8 (n, 3, side, side), still on disk; None if the study keeps none."""
    return _on_disk(Path(folder) / CROPS)


def read_images(model: str, folder="build/embed") -> np.ndarray | None:
    """What a network of this name is trained on, if not on features: aligned faces, as
    :func:`read_crops`; for finetune their activations, float16 (n, c, h, w).
    """
    return _on_disk(Path(folder) / (ACTIVATIONS if model == "finetune" else CROPS))


def _on_disk(path: Path) -> np.ndarray | None:
    return np.load(path, mmap_mode="r") if path.exists() else None


def write_faces(folder, records: Iterable[dict], card: dict) -> Path:
    """Write a data set; the folder appears, or replaces a data set, complete or not at all.

    A record holds the columns of one image, the same in every record. The card holds
    :data:`REQUIRED_CARD_KEYS` and whatever else describes the set; ``counts`` is added here.
    ValueError if there is no record, or :func:`check_replaceable` refuses the folder.
    """
    with replacing(folder) as partial:
        write_shards(partial, records, card["attributes"])
        counts = count_labels(partial, card["attributes"])
        if not counts["images"]:
            raise ValueError(f"no images to write to {folder}; the list of records is empty")
        write_card(partial, card | {"counts": counts})
    return Path(folder)


def check_replaceable(folder) -> None:
    """Refuse, by a ValueError, a file, a mount point, and a folder of anything but a data set."""
    folder = Path(folder).resolve()
    if os.path.ismount(folder):
        raise ValueError(f"{folder} is a mount point and cannot be replaced; name a folder in it")
    empty = not folder.exists() or folder.is_dir() and not any(folder.iterdir())
    if not empty and not (folder / CARD).exists():
        raise ValueError(f"{folder} exists and is not a data set (no {CARD}); name a new folder")


@contextmanager
def replacing(folder) -> Iterator[Path]:
    """An empty folder that takes the place of a data set if the block ends well, and else goes.

    The old data set goes last: whenever this is killed, the next call finds it. A symbolic link is
    followed. ValueError if another process is at it.
    """
    check_replaceable(folder)
    folder = Path(folder).resolve()
    work = folder.with_name(folder.name + ".partial")
    new, old = work / "new", work / "old"
    with _alone(work):
        try:
            if old.exists() and not folder.exists():  # killed between the two moves below
                os.replace(old, folder)
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
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
    """Hold the folder against other processes; the system ends the lock of one that was killed."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
        except (BlockingIOError, FileNotFoundError):  # not found: the other has just ended
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
    """Take images out of the shards again."""
    for file in sorted(folder.glob("faces-*.parquet")) if paths else []:
        with pq.ParquetFile(file) as shard:
            names = shard.read(columns=["image.path"]).column("image").to_pylist()
        stay = [name["path"] not in paths for name in names]
        if not any(stay):
            file.unlink()
        elif not all(stay):
            _write_table(file, pq.read_table(file).filter(stay))


def count_labels(folder: Path, attributes: list[str]) -> dict:
    """The counts of the data card: of images, identities and positives; of labels if some lack."""
    columns = ["identity", *attributes]
    tables = [pq.read_table(f, columns=columns) for f in sorted(folder.glob("faces-*.parquet"))]
    frame = pa.concat_tables(tables).to_pandas() if tables else pd.DataFrame(columns=columns)
    positives = {a: int(frame[a].sum()) for a in attributes}
    counts = {
        "images": len(frame),
        "identities": frame["identity"].nunique(),
        "positives": positives,
    }
    labelled = {a: int(frame[a].count()) for a in attributes}
    lacking = any(count < len(frame) for count in labelled.values())
    return counts | ({"labelled": labelled} if lacking else {})


def _in_shards(records: Iterable[dict]) -> Iterator[list[dict]]:
    shard, size = [], 0
    for record in records:
        shard.append(record)
        size += len(record["image"]["bytes"])
        if len(shard) == SHARD_IMAGES or size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def write_shard(path: Path, records: list[dict], attributes: list[str]) -> None:
    """Write one Parquet file of a data set; a label that is None is missing."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"image": image} | dict.fromkeys(attributes, pa.int8())
    columns = {key: pa.array([r[key] for r in records], types.get(key)) for key in records[0]}
    _write_table(path, pa.table(columns))


def _write_table(path: Path, table: pa.Table) -> None:
    # Encoded images do not compress further; small pages keep a row cheap to reach.
    pq.write_table(
        table, path, compression="zstd", row_group_size=256,
        use_dictionary=["identity"], write_statistics=False,
    )  # fmt: skip


def write_card(folder: Path, card: dict) -> None:
    """Write the data card."""
    write_text(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_faces(folder, name: str | None = None, *, check_images: bool = True) -> FaceSet:
    """Read and validate a data set, whose card must call it by the name, if one is given.

    ``check_images`` also decodes every image once (about 7,000 small images a second and core) and
    refuses two of the same pixels. A ValueError names the file, the row and the column of the first
    problem.
    """
    folder = Path(folder)
    card = _read_card(folder)
    if name is not None and card["name"] != name:
        raise ValueError(
            f"params.yaml: data is {name!r}, but {folder}/ holds {card['name']!r}; import it first "
            "(python -m study import ...) or set data"
        )
    seen: tuple[set, dict] = set(), {}
    files = sorted(folder.glob("faces-*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no faces-*.parquet; fetch it with `dvc pull data.dvc`")
    tables = [_read_shard(file, card, *seen, check_images) for file in files]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"the shards of {folder} disagree on a column type: {error}") from None
    # Chunks stay as they are: combining them would copy every image.
    encoded = pc.struct_field(table.column("image"), "bytes")
    frame = table.drop_columns(["image"]).to_pandas()
    frame.insert(0, "path", pc.struct_field(table.column("image"), "path").to_pandas())
    _check_whole(folder, frame, card)
    if not (folder / EXCLUDED).exists():
        return FaceSet(card, frame, encoded)
    try:
        excluded = pd.read_csv(folder / EXCLUDED, dtype=str, keep_default_na=False)
        excluded = excluded[["image", "reason"]]
    except (ValueError, KeyError):
        what = "is no table of the columns image and reason; restore or remove it"
        raise ValueError(f"{folder / EXCLUDED} {what}") from None
    return FaceSet(card, frame, encoded, excluded)


def _read_card(folder: Path) -> dict:
    path = folder / CARD
    if not path.exists():
        raise ValueError(
            f"{path} is missing; fetch the data with `dvc pull data.dvc` or import some"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of what is no text
        raise ValueError(f"{path} is not valid JSON ({error}); restore it") from None
    for key in REQUIRED_CARD_KEYS:
        if key not in card:
            raise ValueError(f"{path} lacks the key {key!r}; add it")
    attributes, demographics = card["attributes"], card["demographics"]
    for key, wanted, right in (
        ("name", "a text", isinstance(card["name"], str)),
        ("attributes", "a list of one or more columns", attributes and _columns(attributes)),
        ("demographics", "a list of columns, or []", _columns(demographics)),
        ("counts", "a mapping, as an import writes it", isinstance(card.get("counts", {}), dict)),
        ("show_images", "true or false", isinstance(card.get("show_images", True), bool)),
    ):
        if not right:
            others = f", each once and none of {', '.join(RESERVED)}" * ("columns" in wanted)
            raise ValueError(f"{path}: {key} is {card[key]!r}; it must be {wanted}{others}")
    return card


def _columns(names) -> bool:
    """Whether these are a list of columns that labels may have, each once."""
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return texts and len(set(names)) == len(names) and not set(RESERVED) & set(names)


def _read_shard(
    file: Path, card: dict, paths: set[str], pixels: dict[str, str], check_images: bool
) -> pa.Table:
    """One file, checked; ``paths`` and ``pixels`` (digest: path) are those seen so far."""
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file ({error}); restore it") from None
    for column in ("image", "identity", *card["attributes"], *card["demographics"]):
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
    if pa.types.is_nested(table.schema.field("identity").type):
        raise ValueError(f"{file}, column 'identity': holds lists; write one name or number a row")
    for column in ("identity", *card["attributes"]):
        values = table.column(column).to_pandas()
        wrong = values.isna()
        if column == "identity":
            wrong |= values.map(_untidy)
        else:
            wrong = ~(values.isin((0, 1)) | wrong)
        if wrong.any():
            value = values[wrong.idxmax()]
            if pd.isna(value):
                why = "the value is missing"
            elif column == "identity":
                why = f"{value!r} is empty, has spaces around it or is not NFC"
            else:
                why = f"{repr(value) if isinstance(value, str) else value} is not 0 or 1"
            where = f"{file}, row {wrong.idxmax()}, column {column!r}"
            raise ValueError(f"{where}: {why} ({wrong.sum()} such rows); mend or remove the row")
    for row, struct in enumerate(table.column("image")):
        image = struct.as_py()
        try:
            if not (image and image["bytes"] and image["path"]):
                raise ValueError("bytes or path are missing")
            if image["path"] in paths:
                raise ValueError(
                    f"the path {image['path']!r} occurs twice; each image needs its own"
                )
            if check_images:
                content = digest(decode(image["bytes"], image["path"]))
                twin = pixels.setdefault(content, image["path"])
                if twin != image["path"]:
                    raise ValueError(f"{image['path']!r} is the same picture as {twin!r}; keep one")
        except ValueError as error:
            raise ValueError(f"{file}, row {row}, column 'image': {error}") from None
        paths.add(image["path"])
    return table


def tidy(name: str) -> str:
    """A person's name as data sets hold it: in Unicode NFC, without spaces around it."""
    return normalize("NFC", name.strip())


def _untidy(name) -> bool:
    """Whether a name, if it is a text, is none or may be written in two ways that look the same."""
    return isinstance(name, str) and (not name or tidy(name) != name)


def _check_whole(folder: Path, frame: pd.DataFrame, card: dict) -> None:
    for column in card["attributes"]:
        values = frame[column].dropna()
        if values.nunique() < 2:
            found = f"the value {values.iloc[0]:g}" if len(values) else "no label"
            raise ValueError(
                f"{folder}, column {column!r}: every one of the {len(values) or len(frame)} rows "
                f"has {found}; an attribute needs both 0 and 1, so remove it from the card"
            )
    for column in card["demographics"]:
        varying = frame.groupby("identity")[column].nunique(dropna=False)
        if (varying > 1).any():
            raise ValueError(
                f"{folder}, column {column!r}: differs between images of the identity "
                f"{varying.idxmax()!r}; a demographic column must be constant within a person"
            )
    for key, value in (("images", len(frame)), ("identities", frame["identity"].nunique())):
        stated = card.get("counts", {}).get(key, value)
        if stated != value:
            raise ValueError(
                f"{folder / CARD} states {stated} {key} but the shards hold {value}; "
                "a shard is missing or left over, fetch the data again"
            )
