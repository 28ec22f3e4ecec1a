"""Bring photographs into the data-set format of :mod:`study.faces.dataset`, one command a source.

    python -m study.faces.importers celeba    FOLDER
    python -m study.faces.importers lfw       FOLDER --labels labels.csv --attribute smiling
    python -m study.faces.importers cmu_faces FOLDER
    python -m study.faces.importers folder    FOLDER --labels labels.csv --attribute glasses=p_glasses

A source is read into a :class:`Listing`. :func:`import_faces` then takes every image that can be
used, shard by shard, and lists the others with a reason in ``excluded.csv``, which the report shows.
An import that fails or is interrupted leaves what was there before.
"""

import argparse
import errno
import io
import json
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from cid.names import suggest
from study.faces import dataset

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".pgm", ".ppm", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 50_000_000  # larger files are left out: a few kB can unpack to gigabytes
MAX_SIDE = 1024  # px; larger photos are shrunk, as no network here sees more than 160
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is higher, and its warning no error


@dataclass
class Listing:
    """What a source holds, before an image is opened.

    `table` has one row an image: ``image`` (its name in the source), ``identity``, a column of 0, 1
    or NaN for every attribute, and any further columns. `card` has ``name``, ``source``, ``licence``.
    `read` gives the encoded bytes of an image by its name. `excluded` are images that are already
    known to be unusable, and why.
    """

    table: pd.DataFrame
    attributes: list[str]
    card: dict
    read: Callable[[str], bytes]
    excluded: list[tuple[str, str]] = field(default_factory=list)


def import_faces(listing: Listing, out, keep_names=False, show_images=False, progress=True) -> Path:
    """Write a data set from a listing; what cannot be used is left out and listed.

    A data set at ``out`` is replaced once the new one is complete. ``keep_names`` keeps the source's
    names of people and images instead of numbers. Without ``show_images``, notebooks and reports show
    no photograph of anyone. ValueError if nothing usable is left, no attribute has both values, or
    ``out`` is another folder; OSError if the disk is full or not writable.
    """
    table, excluded = _usable(listing)
    if len(table) and all(table[a].nunique() < 2 for a in listing.attributes):
        raise ValueError(
            f"no attribute of {', '.join(listing.attributes)} has images of both values among the "
            f"{len(table)} that could be used; check the labels, or the threshold"
        )
    records = _records(listing, _named(table, keep_names), excluded, progress)
    try:
        with dataset.replacing(out) as partial:
            counts = dataset.write_shards(partial, records, listing.attributes)
            reasons = Counter(reason.partition(": ")[0] for _, reason in excluded)
            if not counts["images"]:
                why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
                name = listing.card["name"]
                raise ValueError(f"no image of {name} can be used ({why or 'none is listed'})")
            # The column of an attribute that has one value, maybe by an exclusion, stays in the table.
            positives = counts["positives"].items()
            positives = {a: count for a, count in positives if 0 < count < counts["images"]}
            card = listing.card | {
                "attributes": list(positives),
                "demographics": [],
                "show_images": show_images,
                "single_valued": [a for a in listing.attributes if a not in positives],
                "excluded": dict(sorted(reasons.items())),
                "counts": counts | {"positives": positives},
            }
            dataset.write_card(partial, card)
            table = pd.DataFrame(excluded, columns=["image", "reason"])
            table.to_csv(partial / dataset.EXCLUDED, index=False)
    except OSError as error:
        why = "no space is left" if error.errno == errno.ENOSPC else error.strerror or error
        why = f"{why} while writing {out}; nothing of it is kept, so import again after"
        raise OSError(error.errno, why) from None
    return Path(out)


def _usable(listing: Listing) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The rows with a name of their own, an identity and every label; the others with a reason."""
    table, excluded = listing.table.reset_index(drop=True), list(listing.excluded)

    def leave_out(rows, reason):
        nonlocal table
        excluded.extend((str(name), reason) for name in table.loc[rows, "image"])
        table = table[~rows].reset_index(drop=True)

    leave_out(table.duplicated(), "listed again in another row")
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
        return table.assign(path=table["image"], identity=people)
    known, code = np.unique(people, return_inverse=True)
    number = np.random.default_rng(0).permutation(len(known))[code]
    width = len(str(len(known) - 1))
    identity = "person-" + pd.Series(number, table.index).astype(str).str.zfill(width)
    place = identity.groupby(identity).cumcount()
    return table.assign(path=identity + "/" + place.astype(str).str.zfill(4), identity=identity)


def _records(listing: Listing, table: pd.DataFrame, left_out: list, progress) -> Iterator[dict]:
    """The images as records of the data set; those that cannot be used are added to ``left_out``."""

    def take(name: str) -> bytes | str:
        try:
            return normalise(listing.read(name))
        except (FileNotFoundError, KeyError):
            return "no such image"
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            return str(error)

    table = table.astype(dict.fromkeys(listing.attributes, int))
    bar = tqdm(total=len(table), desc="import", unit="image", mininterval=5, disable=not progress)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(table), dataset.AHEAD):
            rows = table.iloc[start : start + dataset.AHEAD].to_dict("records")
            images = pool.map(take, [row["image"] for row in rows])
            for row, image in zip(rows, images, strict=True):
                name, path = row.pop("image"), row.pop("path")
                if isinstance(image, str):
                    left_out.append((name, image))
                else:
                    yield {"image": {"bytes": image, "path": path}} | row
            bar.update(len(rows))


def normalise(encoded: bytes) -> bytes:
    """Check that an image decodes, and bring it to 8 bits a channel if it is not a plain photo.

    A JPEG, PNG or WebP of 8-bit grey or RGB within :data:`MAX_SIDE` stays byte for byte. Anything
    else (CMYK, palette, 16 bits, other formats, larger) becomes a PNG, or a JPEG where it was one.
    The file's extension plays no part. A ValueError says why a file cannot be used.
    """
    if not encoded:
        raise ValueError("empty file")
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"too large to unpack: {width} x {height} pixels")
            picture.load()
            kind = picture.format
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
            picture.save(buffer, "JPEG" if kind == "JPEG" else "PNG", quality=95)
            return buffer.getvalue()
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None


def celeba(folder) -> Listing:
    """CelebA: 202,599 aligned photos of 10,177 celebrities, 40 attributes (Liu et al. 2015).

    Expected in ``folder``: ``img_align_celeba/`` or its ``.zip``, ``list_attr_celeba.txt`` and
    ``identity_CelebA.txt``; optional: ``list_eval_partition.txt`` (column ``partition``) and
    ``list_landmarks_align_celeba.txt`` (with which detection can be skipped). About 1.4 GB.
    """
    folder = Path(folder)
    signs = _celeba_table(folder / "list_attr_celeba.txt")
    table = ((signs + 1) // 2).astype(float).reset_index()
    identity = _celeba_table(folder / "identity_CelebA.txt", header=False)[1]
    table["identity"] = table["image"].map(identity.astype(str))
    split = folder / "list_eval_partition.txt"
    if split.exists():
        names = {0: "train", 1: "valid", 2: "test"}
        table["partition"] = table["image"].map(_celeba_table(split, header=False)[1]).map(names)
    points = folder / "list_landmarks_align_celeba.txt"
    if points.exists():
        places = _celeba_table(points).reindex(table["image"]).astype(float)
        if places.isna().any(axis=None):
            raise ValueError(f"{points} lacks images; remove the file to detect the faces instead")
        table["landmarks"] = list(places.itertuples(index=False, name=None))
    images, packed = folder / "img_align_celeba", folder / "img_align_celeba.zip"
    if not images.is_dir() and not packed.exists():
        raise ValueError(f"{folder} lacks {images.name}/ and {packed.name}; {STEPS['celeba']}")
    read, present = _files(images) if images.is_dir() else _zip(packed)
    card = {
        "name": "celeba",
        "source": "Liu et al. 2015, Deep Learning Face Attributes in the Wild; public layout",
        "licence": "non-commercial research only; see the data set's agreement",
    }
    return Listing(table, list(signs), card, read, _unlabelled(present, table))


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
    except ValueError as error:
        raise ValueError(f"{path} is not a table of CelebA ({error}); fetch it again") from None
    if len(table) != count:
        raise ValueError(f"{path} announces {count} rows and has {len(table)}; fetch it again")
    return table


def lfw(folder, labels, attributes: list[str], threshold=(0.5, 0.5)) -> Listing:
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
    read, present = _files(folder)
    eyes, expressions = ["sunglasses"], ["angry", "happy", "neutral", "sad"]
    poses = ["left", "right", "straight", "up"]
    names = pd.Series([n for n in sorted(present) if re.search(r"(?<!_[24])\.pgm$", n)], dtype=str)
    pattern = rf"([^/]+)_({'|'.join(poses)})_({'|'.join(expressions)})_(open|sunglasses)\.pgm$"
    table = names.str.extract(pattern).set_axis(["identity", "pose", "expression", "eyes"], axis=1)
    named = table["identity"].notna()
    if not named.any():
        raise ValueError(f"{folder} holds no such images; {STEPS['cmu_faces']}")
    excluded = [(name, "the name does not say pose, expression and eyes") for name in names[~named]]
    for column, values in (("eyes", eyes), ("expression", expressions), ("pose", poses)):
        for value in values:
            table[value] = (table[column] == value).astype(float)
    attributes = [*eyes, *expressions, *poses]
    table = table.assign(image=names).loc[named, ["image", "identity", *attributes]]
    card = {
        "name": "cmu-faces",
        "source": "Mitchell 1997, Machine Learning, CMU face images; public layout",
        "licence": "CC BY 4.0 (UCI Machine Learning Repository, CMU Face Images)",
    }
    return Listing(table, attributes, card, read, excluded)


def from_table(
    folder, labels, attributes: list[str], threshold=(0.5, 0.5), identity: str | None = "identity"
) -> Listing:
    """Images in any layout, and a CSV that says who and what is in them.

    The CSV has the columns ``image`` (path below ``folder``), ``identity`` (None: the folder an image
    lies in) and those of the attributes, each given as ``name``, ``name=column`` or
    ``name=column+column``; several columns must agree. A value counts as 1 from the second number of
    the threshold on and as 0 up to the first (as 1 if both hold); an image between the two is left
    out. ValueError on a missing folder, file or column, or a value that is not a number.
    """
    read, present = _files(folder)
    low, high = threshold
    if not low <= high:
        raise ValueError(f"threshold {low} {high}: the first number must not be above the second")
    try:
        frame = pd.read_csv(labels, dtype=str)
    except (OSError, ValueError) as error:
        raise ValueError(f"{labels} is not a readable CSV ({error})") from None

    def column(key: str) -> pd.Series:
        if key not in frame:
            has = f"{suggest(key, frame.columns)}; it has {', '.join(frame.columns)}"
            raise ValueError(f"{labels} has no column {key!r}{has}")
        return frame[key]

    def vote(key: str) -> np.ndarray:
        values = pd.to_numeric(column(key), errors="coerce")
        wrong = values.isna() & frame[key].notna()
        if wrong.any():
            where = f"{labels}, line {wrong.idxmax() + 2}, column {key!r}"
            raise ValueError(f"{where}: {frame[key][wrong.idxmax()]!r} is not a number")
        return np.select([values >= high, values <= low], [1.0, 0.0], np.nan)

    table = pd.DataFrame({"image": column("image")})
    parents = table["image"].map(lambda name: Path(name).parent.name, na_action="ignore")
    table["identity"] = parents if identity is None else column(identity)
    for text in attributes:
        name, _, columns = text.partition("=")
        first, *others = [vote(key) for key in (columns or name).split("+")]
        agree = np.all([first == other for other in others], axis=0)
        table[name] = np.where(agree, first, np.nan)
    card = {
        "name": Path(folder).resolve().name,
        "source": f"imported with the labels of {Path(labels).name}",
        "licence": "unknown; write the licence of your images here",
    }
    table = table.dropna(subset="image")
    return Listing(table, list(table)[2:], card, read, _unlabelled(present, table))


def _files(folder) -> tuple[Callable[[str], bytes], set[str]]:
    """Reader of the images below a folder by their paths in it, and those paths."""
    folder = Path(folder)
    try:
        why = "" if os.listdir(folder) else "it is empty"
    except OSError as error:
        why = error.strerror
    if why:
        raise ValueError(
            f"the folder {folder} cannot be read ({why}); name the one with the images"
        )
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    names = {path.relative_to(folder).as_posix() for path in found}
    return lambda name: (folder / name).read_bytes(), names


def _zip(path: Path) -> tuple[Callable[[str], bytes], set[str]]:
    """Reader of a zip by the last part of the names in it, and those names."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a complete zip ({error}); fetch it again") from None
    members = {Path(name).name: name for name in archive.namelist() if not name.endswith("/")}
    return lambda name: archive.read(members[name]), set(members)


def _unlabelled(present: set[str], table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(name, "no labels") for name in sorted(present - set(table["image"]))]


STEPS = {
    "celeba": "get the aligned images and the annotation files from the CelebA project page, under "
    "its agreement, and put them into one folder",
    "lfw": "get lfw-deepfunneled.tgz from the LFW project page, or lfw-funneled.tgz from scikit-learn's "
    "mirror, and unpack it",
    "cmu_faces": "get 'CMU Face Images' from the UCI Machine Learning Repository and unpack faces_4",
}  # fmt: skip
SOURCES = {"celeba": celeba, "lfw": lfw, "cmu_faces": cmu_faces, "folder": from_table}


def download(source: str, folder) -> Path:
    """Fetch a source by the library that keeps its address and checksum; the folder to import.

    LFW by scikit-learn, CelebA by torchvision (which needs the package gdown). If it cannot be had,
    the message of a ConnectionError has the steps by hand.
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
        raise OSError("it has no free download that a program may use")
    except (OSError, RuntimeError, ImportError) as error:
        what = f"{source} could not be fetched ({error}); by hand: {STEPS[source]}"
        raise ConnectionError(what) from None


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``python -m study.faces.importers``; the exit status."""
    what = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m study.faces.importers", description=what)
    commands = parser.add_subparsers(dest="source", required=True)
    for source, read in SOURCES.items():
        add = commands.add_parser(source, help=f"import {source}").add_argument
        add("folder", help="where the source lies")
        add("--out", default="data", help="data set to write (default: data)")
        add("--keep-names", action="store_true", help="keep the names of people")
        add("--show-images", action="store_true", help="let reports show the photos")
        if source in STEPS:
            add("--download", action="store_true", help="fetch it into the folder first")
        if read in (lfw, from_table):
            add("--labels", required=True, help="CSV keyed by image")
            add("--attribute", action="append", required=True, metavar="NAME[=COLUMN[+COLUMN]]")
            add("--threshold", default=(0.5, 0.5), nargs=2, type=float, metavar=("LOW", "HIGH"))
    options = parser.parse_args(arguments)
    try:
        dataset.check_replaceable(options.out)  # before a download, or hours of reading
        folder, labels = options.folder, ()
        if getattr(options, "download", False):
            folder = download(options.source, folder)
        if "labels" in options:
            labels = options.labels, options.attribute, options.threshold
        listing = SOURCES[options.source](folder, *labels)
        out = import_faces(listing, options.out, options.keep_names, options.show_images)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    card = json.loads((out / dataset.CARD).read_text(encoding="utf-8"))
    print(f"{out}: {card['counts']['images']} images of {card['counts']['identities']} people")
    for reason, count in card["excluded"].items():
        print(f"  left out: {count} x {reason}")
    for attribute in card["single_valued"]:
        print(f"  no attribute any more, as it has one value only: {attribute}")
    print(
        f"next: dvc add {out}, set data in params.yaml to {card['name']} and task to one of "
        f"{', '.join(card['attributes'])}, dvc repro"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
