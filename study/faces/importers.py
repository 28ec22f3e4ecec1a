"""Bring photographs into the data-set format of :mod:`study.faces.dataset`, one command a source.

    python -m study import celeba    FOLDER
    python -m study import lfw       FOLDER --labels labels.csv --attribute smiling
    python -m study import cmu_faces FOLDER
    python -m study import folder    FOLDER --labels labels.csv --attribute glasses=p_glasses

A source is read into a :class:`Listing`. :func:`import_faces` then takes every image that can be
used, shard by shard, and lists the others with a reason in ``excluded.csv``, which the report shows:
also a picture that came under several names, so that none is trained on and tested on at once. What
is but strange, as two names that may be of one person, is said in a line. An import that fails or
is interrupted leaves what was there before.
"""

import errno
import io
import json
import lzma
import os
import posixpath
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from cid.names import suggest
from study.commands import parser, run_renamed
from study.faces import annotations, dataset
from study.store import digest

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".pgm", ".ppm", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 50_000_000  # larger files are left out: a few kB can unpack to gigabytes
MAX_SIDE = 1024  # px; larger photos are shrunk, as no network here sees more than 160
UNPACKING = zipfile.BadZipFile, zlib.error, lzma.LZMAError  # what a damaged member of a zip raises
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is higher, and its warning no error


@dataclass
class Listing:
    """What a source holds, before an image is opened.

    `table` has one row an image: ``image`` (its name in the source), ``identity``, a column of 0, 1
    or NaN (no label) for every attribute, and any further columns; names of people lose surrounding
    spaces and become Unicode NFC. `card` has ``name``, ``source``, ``licence``. `read` gives the
    encoded bytes of an image by its name. `excluded` are images that are already known to be
    unusable, and why.
    """

    table: pd.DataFrame
    attributes: list[str]
    card: dict
    read: Callable[[str], bytes]
    excluded: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self):
        people = self.table["identity"]
        people = people.map(lambda name: dataset.tidy(str(name)), na_action="ignore")
        self.table = self.table.assign(identity=people)


def import_faces(listing: Listing, out, keep_names=False, show_images=False, progress=True) -> Path:
    """Write a data set from a listing; what cannot be used is left out and listed.

    A data set at ``out`` is replaced once the new one is complete. ``keep_names`` keeps the source's
    names of people and images instead of numbers. Without ``show_images``, notebooks and reports show
    no photograph of anyone. A label that is missing costs the image only where it has no other. Of
    images with the same pixels the first is taken; none, if they differ in person or label, as nobody
    can tell which is right. ValueError if nothing usable is left, no attribute has both values, or
    ``out`` is another folder; OSError if the disk is full or not writable.
    """
    table, excluded = _usable(listing)
    one_valued = (
        f"no attribute of {', '.join(listing.attributes)} has images of both values among those "
        "that could be used; check the labels, or the threshold"
    )
    if len(table) and all(table[a].nunique() < 2 for a in listing.attributes):
        raise ValueError(one_valued)
    named, withdrawn = _named(table, keep_names), set()
    records = _records(listing, named, excluded, withdrawn, progress)
    called = dict(zip(table["identity"], named["identity"], strict=True))
    try:
        with dataset.replacing(out) as partial, closing(records):
            dataset.write_shards(partial, records, listing.attributes)
            dataset.drop_images(partial, withdrawn)
            counts = dataset.count_labels(partial, listing.attributes)
            reasons = Counter(reason.partition(": ")[0] for _, reason in excluded)
            if not counts["images"]:
                why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
                name = listing.card["name"]
                raise ValueError(f"no image of {name} can be used ({why or 'none is listed'})")
            # The column of an attribute that has one value, maybe by an exclusion, stays in the table.
            labelled = counts.get("labelled") or dict.fromkeys(listing.attributes, counts["images"])
            positives = counts["positives"].items()
            positives = {a: count for a, count in positives if 0 < count < labelled[a]}
            if not positives:
                raise ValueError(one_valued)
            card = listing.card | {
                "attributes": list(positives),
                "demographics": [],
                "show_images": show_images,
                "single_valued": [a for a in listing.attributes if a not in positives],
                "excluded": dict(sorted(reasons.items())),
                "counts": counts | {"positives": positives},
            }
            if warnings := annotations.doubts(table["identity"], called):
                card["warnings"] = warnings
            dataset.write_card(partial, card)
            table = pd.DataFrame(excluded, columns=["image", "reason"])
            table.to_csv(partial / dataset.EXCLUDED, index=False)
    except OSError as error:
        why = "no space is left" if error.errno == errno.ENOSPC else error.strerror or error
        why += f" ({error.filename})" * (error.filename is not None)
        why = f"{why} while writing {out}; nothing of it is kept, so import again after"
        raise OSError(error.errno, why) from None
    return Path(out)


def _usable(listing: Listing) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The rows with a name of their own, an identity and a label; the others with a reason."""
    table, excluded = listing.table.reset_index(drop=True), list(listing.excluded)

    def leave_out(rows, reason):
        nonlocal table
        excluded.extend((str(name), reason) for name in table.loc[rows, "image"])
        table = table[~rows].reset_index(drop=True)

    leave_out(table.duplicated(), "listed again in another row")
    leave_out(table["image"].duplicated(keep=False), "listed twice with different values")
    leave_out(table["identity"].isna() | (table["identity"] == ""), "identity missing")
    which = listing.attributes[0] if len(listing.attributes) == 1 else "of every attribute"
    unlabelled = table[listing.attributes].isna().all(axis=1)
    leave_out(unlabelled, f"label {which} missing or uncertain")
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


def _records(
    listing: Listing, table: pd.DataFrame, left_out: list, withdrawn: set[str], progress
) -> Iterator[dict]:
    """The images as records of the data set; those that cannot be used are added to ``left_out``.

    ``withdrawn`` takes the paths of records that turned out unusable after they were handed on.
    """

    def take(name: str) -> tuple[bytes, str] | str:
        try:
            return normalise(listing.read(name))
        except (FileNotFoundError, KeyError):
            return "no such image"
        except (OSError, ValueError, EOFError, NotImplementedError, *UNPACKING) as error:
            return str(error)

    labels = table[listing.attributes].astype("Int8").astype(object)
    table = table.assign(**labels.where(labels.notna(), None))
    known: dict[str, int] = {}  # the row that was the first to show the pixels of a digest
    bar = tqdm(total=len(table), desc="import", unit="image", mininterval=5, disable=not progress)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(table), dataset.AHEAD):
            rows = table.iloc[start : start + dataset.AHEAD].to_dict("records")
            images = pool.map(take, [row["image"] for row in rows])
            for place, (row, taken) in enumerate(zip(rows, images, strict=True), start):
                if isinstance(taken, str):
                    left_out.append((row["image"], taken))
                    continue
                image, pixels = taken
                first = known.setdefault(pixels, place)
                if first == place:
                    del row["image"]
                    yield {"image": {"bytes": image, "path": row.pop("path")}} | row
                    continue
                twin = table.iloc[first].to_dict()
                how, clash = _same_picture(twin, row, listing.attributes)
                left_out.append((row["image"], f"{how}: {twin['image']}"))
                if clash and twin["path"] not in withdrawn:
                    withdrawn.add(twin["path"])
                    left_out.append((twin["image"], f"{how}: {row['image']}"))
            bar.update(len(rows))


def _same_picture(first: dict, later: dict, attributes: list[str]) -> tuple[str, bool]:
    """How two rows with the same pixels relate, in words, and whether they contradict each other."""
    if first["identity"] != later["identity"]:
        return "the same picture as of another person", True
    pairs = [(first[a], later[a]) for a in attributes]
    if any(one != other for one, other in pairs if None not in (one, other)):
        return "the same picture as one with another label", True
    return "the same picture as another", False


def normalise(encoded: bytes) -> tuple[bytes, str]:
    """Check that an image decodes, bring it to 8 bits if it is no plain photo; and digest its pixels.

    A JPEG, PNG or WebP of 8-bit grey or RGB within :data:`MAX_SIDE` stays byte for byte. Anything
    else (CMYK, palette, 16 bits, other formats, larger) becomes a PNG, or a JPEG where it was one.
    What is transparent is laid on white, as a page would show it. The file's extension plays no part.
    A ValueError says why a file cannot be used.
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
            plain = plain and not picture.has_transparency_data and max(width, height) <= MAX_SIDE
            ImageOps.exif_transpose(picture, in_place=True)
            if plain:
                return encoded, digest(np.asarray(picture))
            picture = dataset.in_8_bits(picture)
            picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG" if kind == "JPEG" else "PNG", quality=95)
            return buffer.getvalue(), digest(np.asarray(picture))
    except UnidentifiedImageError:
        what = annotations.posing(encoded)
        raise ValueError(f"not an image but {what}" if what else "not an image") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None


def celeba(folder) -> Listing:
    """CelebA: 202,599 aligned photos of 10,177 celebrities, 40 attributes (Liu et al. 2015).

    Expected in ``folder``, or in its ``Img/``, ``Anno/`` and ``Eval/``: ``img_align_celeba/``, its
    ``.zip`` or those of ``img_align_celeba_png``; ``list_attr_celeba.txt`` and
    ``identity_CelebA.txt``; optional: ``list_eval_partition.txt`` (column ``partition``) and
    ``list_landmarks_align_celeba.txt`` (with which detection can be skipped). Kaggle's ``.csv`` of
    the same names do as well. About 1.4 GB.
    """
    folder = Path(folder)
    path, signs = annotations.read_celeba(folder, "list_attr_celeba", header=True)
    whose, people = annotations.read_celeba(folder, "identity_CelebA")
    for needed, found in ((path, signs), (whose, people)):
        if found is None:
            raise ValueError(f"{needed} is missing; {STEPS['celeba']}")
    values = set(np.unique(signs))
    if not (values <= {-1, 1} or values <= {0, 1}):
        odd = max(values - {-1, 1}, key=abs)
        raise ValueError(f"{path} has a label {odd} beside 1 and -1; fetch it again")
    if odd := set(dataset.RESERVED) & set(signs):
        raise ValueError(f"{path} has a column {odd.pop()}, which is no attribute; fetch it again")
    table = (signs > 0).astype(float).reset_index()
    table["identity"] = table["image"].map(people[1])
    if table["identity"].isna().all():
        raise ValueError(
            f"{whose} names none of the images of {path}, but {people.index[0]} where that has "
            f"{signs.index[0]}; fetch it again"
        )
    where, split = annotations.read_celeba(folder, "list_eval_partition")
    if split is not None:
        names = {"0": "train", "1": "valid", "2": "test"}
        table["partition"] = table["image"].map(split[1]).map(names)
        if table["partition"].isna().any():
            name = table["image"][table["partition"].isna().idxmax()]
            raise ValueError(f"{where} has no 0, 1 or 2 for {name}; fetch it again, or remove it")
    place, points = annotations.read_celeba(folder, "list_landmarks_align_celeba", header=True)
    if points is not None:
        places = points.reindex(table["image"]).astype(float)
        if places.isna().any(axis=None) or places.shape[1] != 10:
            raise ValueError(
                f"{place} lacks images, or has not ten numbers of each; remove the file to detect the "
                "faces instead"
            )
        table["landmarks"] = list(places.itertuples(index=False, name=None))
    kinds = [f"img_align_celeba{end}" for end in ("", ".zip", "_png", "_png.zip")]
    found = [place for kind in kinds for place in (folder / kind, folder / "Img" / kind)]
    images = next((place for place in found if place.exists()), None)
    if images is None:
        raise ValueError(f"{folder} lacks {kinds[0]}/ and {kinds[1]}; {STEPS['celeba']}")
    read, present = _files(images) if images.is_dir() else _zip(images)
    # The tables say 000001.jpg, whatever folders it lies in, and also of the PNG.
    members: dict[str, str] = {}
    for name in sorted(present):
        stem = posixpath.splitext(posixpath.basename(name))[0]
        if stem in members:
            raise ValueError(f"{images} holds {members[stem]} and {name}; keep one of them")
        members[stem] = name
    table["image"] = [
        posixpath.basename(members.get(posixpath.splitext(name)[0], name))
        for name in table["image"]
    ]
    if present and not set(table["image"]) & {*map(posixpath.basename, present)}:
        annotations.explain_strangers(images, path, sorted(present), list(signs.index))
    excluded = _unlabelled({posixpath.basename(name) for name in present}, table)
    card = {
        "name": "celeba",
        "source": "Liu et al. 2015, Deep Learning Face Attributes in the Wild; public layout",
        "licence": "non-commercial research only; see the data set's agreement",
    }

    def read_member(name: str) -> bytes:
        return read(members[posixpath.splitext(name)[0]])

    return Listing(table, list(signs), card, read_member, excluded)


def lfw(folder, labels, attributes: list[str], threshold=None) -> Listing:
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
    folder, labels, attributes: list[str], threshold=None, identity: str | None = "identity"
) -> Listing:
    """Images in any layout, and a CSV that says who and what is in them.

    The CSV has the columns ``image`` (path below ``folder``), ``identity`` (None: the folder an image
    lies in) and those of the attributes, each given as ``name``, ``name=column`` or
    ``name=column+column``; several columns must agree, unless one is called so.
    :func:`study.faces.annotations.votes` says what a column may hold, and when it needs the threshold.
    ValueError on a missing folder, file or column, a path that leads out of the folder, or a table none
    of whose images is there.
    """
    read, present = _files(folder)
    frame = annotations.read_csv(labels)

    def column(key: str) -> pd.Series:
        if key not in frame:
            has = f"{suggest(key, frame.columns)}; it has {', '.join(frame.columns)}"
            raise ValueError(f"{labels} has no column {key!r}{has}")
        return frame[key]

    table = pd.DataFrame({"image": column("image").str.strip().replace("", np.nan)})
    nameless = table["image"].isna()
    excluded = [(f"line {k + 1}", "image not named") for k in table.index[nameless]]
    table = table[~nameless]
    table["image"] = [
        annotations.inside(n, f"{labels}, line {k + 1}") for k, n in table["image"].items()
    ]
    parents = table["image"].map(lambda name: posixpath.basename(posixpath.dirname(name)))
    table["identity"] = parents if identity is None else column(identity)
    if len(table) and (table["identity"].isna() | (table["identity"] == "")).all():
        where = "a folder of its own" if identity is None else f"a value in the column {identity!r}"
        raise ValueError(f"{labels} says of no image who is on it; give every person {where}")
    for text in attributes:
        name, _, columns = text.partition("=")
        name = text if text in frame else name  # a column may hold = and + in its own name
        if not name or {"+", "="} & set(name) or name in dataset.RESERVED or name in table:
            raise ValueError(
                f"--attribute {text}: {name!r} cannot be the name of an attribute; write "
                "NAME=COLUMN or NAME=COLUMN+COLUMN, every NAME once and none of "
                f"{', '.join(dataset.RESERVED)}"
            )
        keys = [columns] if columns in frame else (columns or name).split("+")
        first, *others = [annotations.votes(column(key), labels, threshold) for key in keys]
        for other in others:
            first = first.where(first == other)
        table[name] = first
    if present.isdisjoint(table["image"]):
        annotations.explain_strangers(folder, labels, sorted(present), list(table["image"]))
    card = {
        "name": Path(folder).resolve().name,
        "source": f"imported with the labels of {Path(labels).name}",
        "licence": "unknown; write the licence of your images here",
    }
    excluded += _unlabelled(present, table)
    return Listing(table, list(table)[2:], card, read, excluded)


def _files(folder) -> tuple[Callable[[str], bytes], set[str]]:
    """Reader of the images below a folder by their plain paths in it, and those paths."""
    folder = Path(folder)
    try:
        why = "" if os.listdir(folder) else "it is empty"
    except OSError as error:
        why = error.strerror
    if why:
        raise ValueError(
            f"the folder {folder} cannot be read ({why}); name the one with the images"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGES:
            name = annotations.plain(path.relative_to(folder).as_posix())
            if name in found:
                raise ValueError(f"{found[name]} and {path} have the same name; rename one of them")
            found[name] = path
    return lambda name: found.get(name, folder / name).read_bytes(), set(found)


def _zip(path: Path) -> tuple[Callable[[str], bytes], set[str]]:
    """Reader of the images of a zip by their names in it, and those names."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        with open(path, "rb") as file:
            why = annotations.posing(file.read(200)) or error
        raise ValueError(f"{path} is not a complete zip ({why}); fetch it again") from None
    if any(member.flag_bits & 1 for member in archive.infolist()):
        raise ValueError(f"{path} is locked by a password; unpack it into a folder of its name")
    names = archive.namelist()
    return archive.read, {n for n in names if n.lower().endswith(IMAGES)}


def _unlabelled(present: set[str], table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(name, "no labels") for name in sorted(present - set(table["image"]))]


STEPS = {
    "celeba": "get the aligned images and the annotation files from the CelebA project page, under "
    "its agreement, and put them into one folder (Kaggle's copy has no identity_CelebA.txt: take it "
    "from the project page)",
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


def main(arguments: list[str]) -> None:
    command = parser("import")
    commands = command.add_subparsers(dest="source", required=True)
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
            add("--threshold", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of a score")
    options = command.parse_args(arguments)
    try:
        dataset.check_replaceable(options.out)  # before a download, or hours of reading
        folder, labels = options.folder, ()
        if getattr(options, "download", False):
            folder = download(options.source, folder)
        if "labels" in options:
            labels = options.labels, options.attribute, options.threshold
        listing = SOURCES[options.source](folder, *labels)
        out = import_faces(listing, options.out, options.keep_names, options.show_images)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{options.out} is as it was") from None
    card = json.loads((out / dataset.CARD).read_text(encoding="utf-8"))
    print(f"{out}: {card['counts']['images']} images of {card['counts']['identities']} people")
    for reason, count in card["excluded"].items():
        print(f"  left out: {count} x {reason}")
    for attribute, count in card["counts"].get("labelled", {}).items():
        print(f"  labelled {attribute}: {count}")
    for line in annotations.doubts(
        listing.table["identity"]
    ):  # with the names, which the card does without
        print(f"  warning: {line}")
    for attribute in card["single_valued"]:
        print(f"  no attribute any more, as it has one value only: {attribute}")
    print(
        f"next: dvc add {out}, set data in params.yaml to {card['name']} and task to one of "
        f"{', '.join(card['attributes'])}, dvc repro"
    )


if __name__ == "__main__":
    run_renamed(__spec__.name)
