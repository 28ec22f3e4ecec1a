"""Bring photographs into the data-set format of :mod:`study.faces.dataset`, one command a source.

    python -m study.faces.importers celeba    FOLDER
    python -m study.faces.importers lfw       FOLDER --labels labels.csv --attribute smiling
    python -m study.faces.importers cmu_faces FOLDER
    python -m study.faces.importers folder    FOLDER --labels labels.csv --attribute glasses=p_glasses

A source is read into a :class:`Listing`: which images there are, who is in them, what is known of
them. :func:`import_faces` then takes every image that can be used, shard by shard, and lists the others
with a reason in ``excluded.csv``, which the audit notebook shows. An interrupted import goes on where
it stopped. People become numbers on the way, unless their names are asked for.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from cid.names import suggest
from study.faces.dataset import CARD, EXCLUDED, finish, write_shard

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".pgm", ".ppm", ".bmp", ".gif", ".tif", ".tiff")


MAX_PIXELS = 50_000_000  # larger files are left out: a few kB can unpack to gigabytes


MAX_SIDE = 1024  # px; larger photos are shrunk, as no network here sees more than 160


BLOCK = 256  # images decoded together


SHARD_IMAGES, SHARD_BYTES = 2048, 256 * 2**20  # whichever comes first; bounds memory


PROGRESS = "progress.json"


@dataclass
class Listing:
    """What a source holds, before an image is opened.

    Attributes
    ----------
    table : pandas.DataFrame
        One row an image: ``image`` (its name in the source), ``identity``, a column of 0, 1 or NaN
        for every attribute, and any further columns.
    attributes : list of str
    card : dict
        ``name``, ``source`` and ``licence``.
    read : callable
        The encoded bytes of an image, by name.
    excluded : list of (str, str)
        Images that are already known to be unusable, and why.
    """

    table: pd.DataFrame
    attributes: list[str]
    card: dict
    read: Callable[[str], bytes]
    excluded: list[tuple[str, str]] = field(default_factory=list)


def import_faces(
    listing: Listing,
    out,
    *,
    keep_names: bool = False,
    show_images: bool = False,
    progress: bool = True,
) -> Path:
    """Write a data set from a listing; what cannot be used is left out and listed.

    Parameters
    ----------
    listing : Listing
    out : path-like
        Folder of the data set; one that is there is replaced once the new one is complete.
    keep_names : bool
        Keep the source's names of people and images instead of numbers.
    show_images : bool
        Let notebooks and reports show the images. Without it they show no photograph of anyone.
    progress : bool

    Raises
    ------
    ValueError
        If nothing usable is left, no attribute has both values, or ``out`` is another folder.
    OSError
        If the disk is full or not writable. What was written stays, and the same call goes on.
    """
    out = Path(out)
    if (
        out.exists()
        and not out.is_dir()
        or out.is_dir()
        and any(out.iterdir())
        and not (out / CARD).exists()
    ):
        raise ValueError(f"{out} exists and is not a data set (no {CARD}); name a new folder")
    table, excluded = _usable(listing)
    if table.empty:
        raise ValueError(_nothing_left(listing, excluded))
    attributes = [a for a in listing.attributes if table[a].nunique() == 2]
    if not attributes:
        raise ValueError(
            f"no attribute of {', '.join(listing.attributes)} has images of both values among the "
            f"{len(table)} that could be used; check the labels, or the threshold"
        )
    table = _named(table, keep_names)
    partial = out.with_name(out.name + ".partial")
    state = _resume(partial, table)
    try:
        _write(listing.read, table, listing.attributes, partial, state, progress)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        raise OSError(
            error.errno,
            f"{'no space is left' if full else error.strerror or error} while writing {partial}; the "
            f"{state['done']} images done are kept, so {'free some and' if full else 'mend it and'} run the "
            "same command again",
        ) from None
    excluded = excluded + [tuple(pair) for pair in state["excluded"]]
    if not state["images"]:
        raise ValueError(_nothing_left(listing, excluded))
    # An exclusion can take the last image of a value; the column stays, the attribute goes.
    attributes = [a for a in attributes if 0 < state["positives"][a] < state["images"]]
    card = listing.card | {
        "attributes": attributes,
        "demographics": listing.card.get("demographics", []),
        "show_images": show_images,
        "single_valued": [a for a in listing.attributes if a not in attributes],
        "excluded": pd.Series([reason for _, reason in excluded], dtype=str).map(_kind)
        .value_counts().sort_index().to_dict(),
    }  # fmt: skip
    pd.DataFrame(excluded, columns=["image", "reason"]).to_csv(partial / EXCLUDED, index=False)
    (partial / PROGRESS).unlink()
    counts = {
        "images": state["images"],
        "identities": len(set(state["people"])),
        "positives": {a: state["positives"][a] for a in attributes},
    }
    return finish(partial, out, card, counts)


def _usable(listing: Listing) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The rows with a name of their own, an identity and every label; the others with a reason."""
    table, excluded = listing.table.reset_index(drop=True), list(listing.excluded)

    def leave_out(rows, reason):
        nonlocal table
        excluded.extend((str(name), reason) for name in table.loc[rows, "image"])
        table = table[~rows].reset_index(drop=True)

    same = table.duplicated(keep="first")
    leave_out(same, "listed again in another row")
    leave_out(table["image"].duplicated(keep=False), "listed twice with different values")
    nobody = table["identity"].isna() | (table["identity"].astype(str).str.strip() == "")
    leave_out(nobody, "identity missing")
    for attribute in listing.attributes:
        leave_out(table[attribute].isna(), f"label {attribute} missing or uncertain")
    return table, excluded


def _named(table: pd.DataFrame, keep_names: bool) -> pd.DataFrame:
    """Columns ``path`` and ``identity`` of the data set; without names, numbers in a shuffled order."""
    people = table["identity"].astype(str)
    if keep_names:
        return table.assign(path=table["image"].astype(str), identity=people)
    known = np.sort(people.unique())
    number = dict(zip(known, np.random.default_rng(0).permutation(len(known)), strict=True))
    width = len(str(len(known) - 1))
    identity = people.map(lambda name: f"person-{number[name]:0{width}d}")
    place = identity.groupby(identity).cumcount()
    return table.assign(path=identity + "/" + place.astype(str).str.zfill(4), identity=identity)


def _resume(partial: Path, table: pd.DataFrame) -> dict:
    """What an interrupted import of the same rows has done, or a fresh start."""
    content = table.to_csv(index=False).encode()
    fresh = {
        "rows": hashlib.sha256(content).hexdigest(), "done": 0, "images": 0, "shards": 0,
        "people": [], "positives": {}, "excluded": [],
    }  # fmt: skip
    try:
        state = json.loads((partial / PROGRESS).read_text(encoding="utf-8"))
        if state["rows"] == fresh["rows"]:
            for file in partial.glob("faces-*"):  # a shard whose record was not written
                if file.name >= f"faces-{state['shards']:05d}":
                    file.unlink()
            return state
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return fresh


def _write(read, table, attributes, partial, state, progress) -> None:
    """Write the rest of the shards; ``state`` is true of the disk after every one of them."""
    records, size, left_out = [], 0, []

    def take(name: str) -> bytes | str:
        try:
            return normalise(read(name))
        except FileNotFoundError:
            return "no such image"
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            return str(error)

    def flush(done: int) -> None:
        nonlocal records, size, left_out
        if records:
            write_shard(partial / f"faces-{state['shards']:05d}.parquet", records, attributes)
        state["positives"] = {
            a: state["positives"].get(a, 0) + sum(record[a] for record in records)
            for a in attributes
        }
        state["people"] = sorted({*state["people"], *(record["identity"] for record in records)})
        state["images"] += len(records)
        state["shards"] += bool(records)
        state["excluded"] += left_out
        state["done"] = done
        _replace(partial / PROGRESS, json.dumps(state, ensure_ascii=False))
        records, size, left_out = [], 0, []

    columns = [c for c in table.columns if c not in ("image", "path")]
    bar = tqdm(
        total=len(table), initial=state["done"], desc="import", unit="image", mininterval=5,
        disable=not progress,
    )  # fmt: skip
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(state["done"], len(table), BLOCK):
            block = table.iloc[start : start + BLOCK]
            rows = block[columns].to_dict("records")
            found = pool.map(take, block["image"])
            for name, path, row, image in zip(
                block["image"], block["path"], rows, found, strict=True
            ):
                if isinstance(image, str):
                    left_out.append((str(name), image))
                    continue
                row |= {attribute: int(row[attribute]) for attribute in attributes}
                records.append({"image": {"bytes": image, "path": path}} | row)
                size += len(image)
            bar.update(len(block))
            if len(records) >= SHARD_IMAGES or size >= SHARD_BYTES:
                flush(start + len(block))
        flush(len(table))


def normalise(encoded: bytes) -> bytes:
    """Check that an image decodes, and bring it to 8 bits a channel if it is not a plain photo.

    A JPEG, PNG or WebP of 8-bit grey or RGB within :data:`MAX_SIDE` stays byte for byte. Anything
    else (CMYK, palette, 16 bits, other formats, larger) becomes a PNG, or a JPEG where it was one.
    The file's extension plays no part.

    Raises
    ------
    ValueError
        On an empty, truncated, oversized or unreadable file.
    """
    if not encoded:
        raise ValueError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the limit here is lower
            picture = Image.open(io.BytesIO(encoded))
        with picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"too large to unpack: {width} x {height} pixels")
            kind = picture.format
            picture.load()
            plain = picture.mode in ("L", "RGB") and kind in ("JPEG", "PNG", "WEBP")
            if plain and max(width, height) <= MAX_SIDE:
                return encoded
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith(("I", "F")):
                values = np.asarray(picture, dtype=np.float64)
                values = values * (255 / 65535 if values.max() > 255 else 1)
                picture = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
            picture = picture if picture.mode == "L" else picture.convert("RGB")
            picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            how = {"format": "JPEG", "quality": 95} if kind == "JPEG" else {"format": "PNG"}
            picture.save(buffer, **how)
            return buffer.getvalue()
    except Image.DecompressionBombError:
        raise ValueError("too large to unpack") from None
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None


def _kind(reason: str) -> str:
    """A reason without the particulars of one file."""
    return re.sub(r"(: .*)$", "", reason)


def _nothing_left(listing: Listing, excluded) -> str:
    reasons = pd.Series([_kind(reason) for _, reason in excluded], dtype=str).value_counts()
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
    return f"no image of {listing.card['name']} can be used ({listed or 'none is listed'})"


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def celeba(folder) -> Listing:
    """CelebA: 202,599 aligned photos of 10,177 celebrities, 40 attributes (Liu et al. 2015).

    Expected in ``folder``: ``img_align_celeba/`` or ``img_align_celeba.zip``,
    ``list_attr_celeba.txt``, ``identity_CelebA.txt``; read where present:
    ``list_eval_partition.txt`` (column ``partition``) and ``list_landmarks_align_celeba.txt`` (with
    which detection can be skipped). About 1.4 GB.
    """
    folder = _folder(folder)
    attributes = _celeba_table(folder / "list_attr_celeba.txt")
    attributes = ((attributes + 1) // 2).astype(float)
    identity = _celeba_table(folder / "identity_CelebA.txt", header=False)[1]
    table = attributes.rename_axis("image").reset_index()
    table["identity"] = table["image"].map(identity.astype(str))
    split = folder / "list_eval_partition.txt"
    if split.exists():
        names = {0: "train", 1: "valid", 2: "test"}
        table["partition"] = table["image"].map(_celeba_table(split, header=False)[1]).map(names)
    points = folder / "list_landmarks_align_celeba.txt"
    if points.exists():
        places = _celeba_table(points)
        known = dict(zip(places.index, places.to_numpy(float).tolist(), strict=True))
        table["landmarks"] = table["image"].map(known)
        missing = table["landmarks"].isna()
        if missing.any():
            raise ValueError(
                f"{points} lacks the image {table.loc[missing, 'image'].iloc[0]!r}; remove the file to "
                "detect the faces instead"
            )
        table["landmarks"] = table["landmarks"].map(tuple)
    images, packed = folder / "img_align_celeba", folder / "img_align_celeba.zip"
    if images.is_dir():
        read, present = _files(images), {entry.name for entry in os.scandir(images)}
    elif packed.exists():
        read, present = _zip(packed)
    else:
        raise ValueError(
            f"{folder} holds neither img_align_celeba/ nor img_align_celeba.zip; {STEPS['celeba']}"
        )
    return Listing(
        table, list(attributes.columns),
        {
            "name": "celeba",
            "source": "Liu et al. 2015, Deep Learning Face Attributes in the Wild; public layout",
            "licence": "non-commercial research only; see the data set's agreement",
        },
        read, _unlabelled(present, table),
    )  # fmt: skip


def _celeba_table(path: Path, header: bool = True) -> pd.DataFrame:
    """A whitespace-separated table of CelebA, indexed by image; some begin with a count and names."""
    if not path.exists():
        raise ValueError(f"{path} is missing; {STEPS['celeba']}")
    try:
        if not header:
            return pd.read_csv(path, sep=r"\s+", header=None, index_col=0)
        with open(path, encoding="utf-8") as file:
            count, names = int(file.readline()), file.readline().split()
            table = pd.read_csv(file, sep=r"\s+", header=None, index_col=0, names=["image", *names])
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is not a table of CelebA ({error}); fetch it again") from None
    if len(table) != count:
        raise ValueError(f"{path} announces {count} rows and has {len(table)}; fetch it again")
    return table


def lfw(
    folder, labels, attributes: list[str], threshold: tuple[float, float] = (0.5, 0.5)
) -> Listing:
    """Labeled Faces in the Wild: 13,233 press photos of 5,749 people (Huang et al. 2007).

    Expected: ``folder/Name/Name_0001.jpg``, and a CSV of labels keyed by ``image``
    (``Name/Name_0001.jpg``), as LFW itself has none. A person is a folder. About 180 MB.
    """
    listing = from_table(folder, labels, attributes, threshold, identity=None)
    listing.card = {
        "name": "lfw",
        "source": "Huang et al. 2007, Labeled Faces in the Wild; public layout",
        "licence": "research; press photos, rights remain with their owners",
    }
    return listing


def cmu_faces(folder) -> Listing:
    """CMU face images: 20 people, 4 poses x 4 expressions x eyes open or in sunglasses (Mitchell 1997).

    Expected: ``folder/name/name_pose_expression_eyes.pgm``. The copies at half and quarter size
    (``_2.pgm``, ``_4.pgm``) are passed over. Attributes: ``sunglasses``, and one for every expression
    (``angry``, ``happy``, ``neutral``, ``sad``) and pose (``left``, ``right``, ``straight``, ``up``).
    """
    folder = _folder(folder)
    poses, expressions = ("left", "right", "straight", "up"), ("angry", "happy", "neutral", "sad")
    named = re.compile(rf"(.+)_({'|'.join(poses)})_({'|'.join(expressions)})_(open|sunglasses)$")
    rows, excluded = [], []
    for path in sorted(folder.rglob("*.pgm")):
        if re.search(r"_[24]$", path.stem):
            continue
        name, found = path.relative_to(folder).as_posix(), named.match(path.stem)
        if not found:
            excluded.append((name, "the name does not say pose, expression and eyes"))
            continue
        person, pose, expression, eyes = found.groups()
        values = {"sunglasses": eyes == "sunglasses"}
        values |= {e: e == expression for e in expressions} | {p: p == pose for p in poses}
        rows.append({"image": name, "identity": person} | {k: float(v) for k, v in values.items()})
    if not rows:
        raise ValueError(
            f"{folder} holds no images name_pose_expression_eyes.pgm; {STEPS['cmu_faces']}"
        )
    card = {
        "name": "cmu-faces",
        "source": "Mitchell 1997, Machine Learning, CMU face images; public layout",
        "licence": "CC BY 4.0 (UCI Machine Learning Repository, CMU Face Images)",
    }
    attributes = ["sunglasses", *expressions, *poses]
    return Listing(pd.DataFrame(rows), attributes, card, _files(folder), excluded)


def from_table(
    folder,
    labels,
    attributes: list[str],
    threshold: tuple[float, float] = (0.5, 0.5),
    *,
    identity: str | None = "identity",
    name: str | None = None,
) -> Listing:
    """Images in any layout, and a CSV that says who and what is in them.

    Parameters
    ----------
    folder : path-like
    labels : path-like
        CSV with the columns ``image`` (path below ``folder``), ``identity`` and those of the
        attributes.
    attributes : list of str
        Each ``name``, ``name=column`` or ``name=column+column``. Several columns must agree.
    threshold : (float, float)
        A value counts as 1 from the second number on and as 0 up to the first; an image between the
        two is left out. Of equal numbers, the value itself counts as 1.
    identity : str or None
        Column of the person; None: the folder an image lies in.

    Raises
    ------
    ValueError
        On a missing folder, file or column, or a value that is not a number.
    """
    folder, labels = _folder(folder), Path(labels)
    low, high = threshold
    if not low <= high:
        raise ValueError(f"threshold {low} {high}: the first number must not be above the second")
    try:
        frame = pd.read_csv(labels, dtype=str, keep_default_na=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{labels} is not a readable CSV ({error})") from None

    def column(key: str) -> pd.Series:
        if key not in frame:
            raise ValueError(
                f"{labels} has no column {key!r}{suggest(key, frame.columns)}; it has "
                + ", ".join(frame.columns)
            )
        return frame[key]

    table = pd.DataFrame({"image": column("image")})
    table = table[table["image"].notna()]
    if identity is None:
        table["identity"] = table["image"].map(lambda path: Path(path).parent.name)
    else:
        table["identity"] = column(identity)
    names = []
    for text in attributes:
        attribute, _, columns = text.partition("=")
        names.append(attribute)
        votes = []
        for key in (columns or attribute).split("+"):
            values = pd.to_numeric(column(key), errors="coerce")
            wrong = values.isna() & frame[key].notna()
            if wrong.any():
                row = int(np.argmax(wrong))
                raise ValueError(
                    f"{labels}, line {row + 2}, column {key!r}: {frame[key][row]!r} is not a number"
                )
            vote = pd.Series(np.nan, index=frame.index)
            vote[values <= low], vote[values >= high] = 0.0, 1.0
            votes.append(vote)
        votes = pd.concat(votes, axis=1)
        agree = votes.notna().all(axis=1) & (votes.nunique(axis=1) == 1)
        table[attribute] = votes.iloc[:, 0].where(agree)
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGES
    }
    card = {
        "name": name or folder.resolve().name,
        "source": f"imported with the labels of {labels.name}",
        "licence": "unknown; write the licence of your images here",
    }
    return Listing(table, names, card, _files(folder), _unlabelled(present, table))


def _folder(folder) -> Path:
    folder = Path(folder)
    try:
        with os.scandir(folder) as entries:
            next(entries)
    except (OSError, StopIteration) as error:
        why = getattr(error, "strerror", None) or "it is empty"
        raise ValueError(
            f"the folder {folder} cannot be read ({why}); name the one with the images"
        ) from None
    return folder


def _files(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def _zip(path: Path) -> tuple[Callable[[str], bytes], set[str]]:
    """Reader of a zip by the last part of the names in it, and those names."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a complete zip ({error}); fetch it again") from None
    members = {Path(name).name: name for name in archive.namelist() if not name.endswith("/")}

    def read(name: str) -> bytes:
        if name not in members:
            raise FileNotFoundError(name)
        return archive.read(members[name])

    return read, set(members)


def _unlabelled(present: Iterable[str], table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(name, "no labels") for name in sorted(set(present) - set(table["image"]))]


STEPS = {
    "celeba": "get the aligned images and the annotation files from the CelebA project page, under "
    "its agreement, and put them into one folder",
    "lfw": "get lfw-deepfunneled.tgz from the LFW project page, or lfw-funneled.tgz from scikit-learn's "
    "mirror, and unpack it",
    "cmu_faces": "get 'CMU Face Images' from the UCI Machine Learning Repository and unpack faces_4",
}  # fmt: skip


def download(source: str, folder) -> Path:
    """Fetch a source by the library that keeps its address and checksum; the folder to import.

    LFW by scikit-learn, CelebA by torchvision (which needs the package gdown).

    Raises
    ------
    ConnectionError
        If it cannot be had; the message has the steps by hand.
    """
    try:
        if source == "lfw":
            from sklearn.datasets import fetch_lfw_people

            fetch_lfw_people(data_home=str(folder), min_faces_per_person=500)
            return Path(folder) / "lfw_home" / "lfw_funneled"
        if source == "celeba":
            from torchvision.datasets import CelebA

            CelebA(str(folder), split="all", download=True)
            return Path(folder) / "celeba"
    except (OSError, RuntimeError, ImportError) as error:
        raise ConnectionError(
            f"{source} could not be fetched ({error}); by hand: {STEPS[source]}"
        ) from None
    raise ConnectionError(f"{source} has no free download that a program may use; {STEPS[source]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m study.faces.importers", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="source", required=True)
    for source in ("celeba", "lfw", "cmu_faces", "folder"):
        command = commands.add_parser(source, help=f"import {source}")
        command.add_argument("folder", help="where the source lies")
        command.add_argument("--out", default="data", help="data set to write (default: data)")
        command.add_argument("--keep-names", action="store_true", help="keep the names of people")
        command.add_argument(
            "--show-images", action="store_true", help="let notebooks and reports show the photos"
        )
        if source in STEPS:
            command.add_argument(
                "--download", action="store_true", help="fetch it into the folder first"
            )
        if source in ("lfw", "folder"):
            command.add_argument("--labels", required=True, help="CSV keyed by image")
            command.add_argument(
                "--attribute", action="append", required=True, metavar="NAME[=COLUMN[+COLUMN]]"
            )
            command.add_argument(
                "--threshold", nargs=2, type=float, default=(0.5, 0.5), metavar=("LOW", "HIGH")
            )
    options = parser.parse_args(arguments)
    try:
        folder = options.folder
        if getattr(options, "download", False):
            folder = download(options.source, folder)
        if options.source == "celeba":
            listing = celeba(folder)
        elif options.source == "cmu_faces":
            listing = cmu_faces(folder)
        else:
            build = lfw if options.source == "lfw" else from_table
            listing = build(folder, options.labels, options.attribute, tuple(options.threshold))
        out = import_faces(
            listing, options.out, keep_names=options.keep_names, show_images=options.show_images
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    card = json.loads((out / CARD).read_text(encoding="utf-8"))
    counts = card["counts"]
    print(f"{out}: {counts['images']} images of {counts['identities']} people")
    for reason, count in card["excluded"].items():
        print(f"  left out: {count} x {reason}")
    for attribute in card["single_valued"]:
        print(f"  no attribute any more, as it has one value only: {attribute}")
    print(
        f"next: dvc add {out}, set task in params.yaml to one of {', '.join(card['attributes'])}, dvc repro"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
