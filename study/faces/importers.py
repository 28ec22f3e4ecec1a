"""Import photographs into the data-set format of :mod:`study.faces.dataset`, one command per source.

    python -m study import celeba    FOLDER
    python -m study import lfw       FOLDER --labels labels.csv --attribute smiling
    python -m study import cmu_faces FOLDER
    python -m study import folder    FOLDER --labels labels.csv --attribute glasses=p_glasses
    python -m study import parquet   FILES --identity celeb_id --attribute Smiling

A source is read into a :class:`Listing`. :func:`import_faces` then takes every usable image, shard by
shard, and lists the others with a reason in ``excluded.csv``, which the report shows. A picture that came
under several names is taken once or not at all, so that none is in a training set and a test set at once.
Suspicious but usable input, such as two names that may belong to one person, or pictures that show nothing,
produces a one-line warning. Where a source does not say who is on an image, it has no identity.
An import that fails or is interrupted leaves the old data set in place.

``--part development`` leaves a quarter of the people out, for a later confirmation
(:mod:`study.faces.parts`). A copy of CelebA can be incomplete: what is there is taken, and the card says
which share of the images in its tables that is. With ``--unless-there`` a data set that was made of the
very same tables and files is kept; anything else is replaced.
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
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from cid.names import suggest
from cid.pictures import in_8_bits
from study.commands import parser, run_renamed
from study.faces import annotations, dataset, looks, parquet_files, parts
from study.store import digest

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".pgm", ".ppm", ".bmp", ".gif", ".tif", ".tiff")
PERSON_COLUMNS = ("identity", "identity_id", "id", "celeb_id", "person", "person_id")
LANDMARKS = [
    f"{part}_{axis}"
    for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    for axis in "xy"
]  # columns of CelebA, in the order of the data set
MAX_PIXELS = 50_000_000  # larger files are left out: a few kB can unpack to gigabytes
MAX_SIDE = 1024  # px; larger photos are shrunk, because no network here sees more than 160
UNPACKING = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)  # what a damaged member of a zip raises
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is higher, and only warns


@dataclass
class Listing:
    """What a source holds, before any image is opened.

    Attributes
    ----------
    table : DataFrame
        One row per image: ``image`` (its name in the source), ``identity`` (None where nobody knows who it
        is), a column of 0, 1 or NaN (no label) for every attribute, and any further columns. Names of
        people lose surrounding spaces and become Unicode NFC.
    attributes : list of str
    card : dict
        ``name``, ``source`` and ``licence``.
    read : callable
        From the name of an image to its encoded bytes.
    excluded : list of (image, reason)
        Images that are already known to be unusable.
    notes : list of str
        Warnings about its tables.
    """

    table: pd.DataFrame
    attributes: list[str]
    card: dict
    read: Callable[[str], bytes]
    excluded: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # warnings about its tables

    def __post_init__(self):
        people = self.table["identity"].astype(object)
        people = people.map(lambda name: dataset.tidy(str(name)), na_action="ignore")
        people = people.where(people != "", np.nan)
        self.table = self.table.assign(identity=people)


def only(listing: Listing, part: str) -> Listing:
    """Return a listing without the people outside of a part, which its name then says.

    An image of an unknown person is in no part but all: it may show anybody. A study of ``celeba-development`` can therefore not be run on data that hold anybody else.

    Raises
    ------
    ValueError
        If ``part`` is none of :data:`study.faces.parts.PARTS`.
    """
    people = listing.table["identity"]
    named = people.notna()
    taken = parts.belongs(people.astype(str), part)
    if part == parts.ALL:
        return listing
    taken &= named
    other = np.where(
        named, f"the person is not in the part {part}", "the part of an unknown person"
    )
    left_out = [
        (str(name), reason) for name, reason in zip(listing.table["image"], other, strict=True)
    ]
    left_out = [row for row, stays in zip(left_out, taken, strict=True) if not stays]
    chosen = {
        "part": part,
        "people": int(people[taken].nunique()),
        "left_out": int(people[~taken].nunique()),
        "draw": parts.DRAW,
    }
    return replace(
        listing,
        table=listing.table[taken].reset_index(drop=True),
        card=listing.card | {"name": f"{listing.card['name']}-{part}", "part": chosen},
        excluded=listing.excluded + left_out,
    )


def import_faces(
    listing: Listing, out, keep_names=False, show_images=False, progress=True, say=None
) -> Path:
    """Write a data set from a listing; what cannot be used is left out and listed.

    A data set at ``out`` is replaced once the new one is complete. A missing label excludes an image only
    if it has no other label. Of images with the same pixels the first is taken; none, if they differ in
    person or label, because nobody can tell which is right. An image of an unknown person is taken: it has
    no identity in the data set.

    Parameters
    ----------
    keep_names : bool
        Keep the source's names of people and images instead of numbers.
    show_images : bool
        Let notebooks and reports show photographs.
    say : callable, optional
        Receives the warnings, with the names of the source; those in the card have numbers.

    Raises
    ------
    ValueError
        If nothing usable is left, no attribute has both values, or ``out`` is another kind of folder.
    OSError
        If the disk is full or not writable.
    """
    table, excluded = _usable(listing)
    if len(table) and all(table[attribute].nunique() < 2 for attribute in listing.attributes):
        raise ValueError(_one_valued(listing.attributes))
    named = _named(table, keep_names)
    withdrawn: set[str] = set()
    gallery = looks.Gallery()
    records = _records(listing, named, excluded, withdrawn, gallery, progress)
    try:
        with dataset.replacing(out) as partial, closing(records):
            dataset.write_shards(partial, records, listing.attributes)
            dataset.drop_images(partial, withdrawn)
            counts = dataset.count_labels(partial, listing.attributes)
            card = _card(listing, counts, excluded, show_images)
            if keep_names:
                card["keeps_names"] = True
            called = dict(zip(table["identity"], named["identity"], strict=True))
            people = table["identity"].fillna("")
            warnings = [
                *listing.notes,
                *annotations.doubts(people, called),
                *gallery.doubts(table, list(named["path"])),
            ]
            said = [
                *listing.notes,
                *annotations.doubts(people),
                *gallery.doubts(table, list(table["image"])),
            ]
            if warnings:
                card["warnings"] = warnings
            dataset.write_card(partial, card)
            left_out = pd.DataFrame(excluded, columns=["image", "reason"])
            left_out.to_csv(partial / dataset.EXCLUDED, index=False)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason = "no space is left"
        else:
            reason = str(error.strerror or error)
        if error.filename is not None:
            reason += f" ({error.filename})"
        message = f"{reason} while writing {out}; nothing of it is kept, so import again after"
        raise OSError(error.errno, message) from None
    for line in said if say else ():
        say(line)
    return Path(out)


def _one_valued(attributes: list[str]) -> str:
    return (
        f"no attribute of {', '.join(attributes)} has images of both values among those "
        "that could be used; check the labels, or the threshold"
    )


def _card(
    listing: Listing, counts: dict, excluded: list[tuple[str, str]], show_images: bool
) -> dict:
    """Return the data card; ValueError if no image is left, or no attribute with both values."""
    reasons = Counter(reason.partition(": ")[0] for _, reason in excluded)
    if not counts["images"]:
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        raise ValueError(
            f"no image of {listing.card['name']} can be used ({listed or 'none is listed'})"
        )
    labelled = counts.get("labelled") or dict.fromkeys(listing.attributes, counts["images"])
    positives = {
        attribute: count
        for attribute, count in counts["positives"].items()
        if 0 < count < labelled[attribute]
    }
    if not positives:
        raise ValueError(_one_valued(listing.attributes))
    # An attribute can have a single value left after an exclusion. Its column stays in the table.
    single_valued = [attribute for attribute in listing.attributes if attribute not in positives]
    return listing.card | {
        "attributes": list(positives),
        "demographics": [],
        "show_images": show_images,
        "single_valued": single_valued,
        "excluded": dict(sorted(reasons.items())),
        "counts": counts | {"positives": positives},
    }


def _usable(listing: Listing) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Return the rows with a name of their own and a label; and the others with a reason."""
    table = listing.table.reset_index(drop=True)
    excluded = list(listing.excluded)

    def leave_out(rows, reason):
        nonlocal table
        excluded.extend((str(name), reason) for name in table.loc[rows, "image"])
        table = table[~rows].reset_index(drop=True)

    leave_out(table.duplicated(), "listed again in another row")
    leave_out(table["image"].duplicated(keep=False), "listed twice with different values")
    which = listing.attributes[0] if len(listing.attributes) == 1 else "of every attribute"
    unlabelled = table[listing.attributes].isna().all(axis=1)
    leave_out(unlabelled, f"label {which} missing or uncertain")
    return table, excluded


def _named(table: pd.DataFrame, keep_names: bool) -> pd.DataFrame:
    """Set ``path`` and ``identity`` of the data set: names, or numbers in a shuffled order."""
    people = table["identity"]
    if keep_names:
        return table.assign(path=table["image"], identity=people)
    known = people.notna()
    names, codes = np.unique(people[known].astype(str), return_inverse=True)
    numbers = np.random.default_rng(0).permutation(len(names))[codes]
    width = len(str(len(names) - 1))
    identity = pd.Series(None, table.index, dtype=object)
    identity[known] = "person-" + pd.Series(numbers, people[known].index).astype(str).str.zfill(
        width
    )
    folder = identity.where(known, "unknown")
    within_person = folder.groupby(folder).cumcount()
    path = folder + "/" + within_person.astype(str).str.zfill(4)
    return table.assign(path=path, identity=identity)


def _records(
    listing: Listing,
    table: pd.DataFrame,
    left_out: list[tuple[str, str]],
    withdrawn: set[str],
    gallery: looks.Gallery,
    progress: bool,
) -> Iterator[dict]:
    """Yield the images as records of the data set.

    Images that cannot be used are added to ``left_out``. ``withdrawn`` collects the paths of records
    that turned out unusable after they were yielded; ``gallery`` collects how images look.
    """

    def take(name: str) -> Normalised | str:
        """Return an image, or why it cannot be used."""
        try:
            return normalise(listing.read(name))
        except (FileNotFoundError, KeyError):
            return "no such image"
        except (OSError, ValueError, EOFError, NotImplementedError, *UNPACKING) as error:
            return str(error)

    labels = table[listing.attributes].astype("Int8").astype(object)
    people = [None if pd.isna(person) else person for person in table["identity"]]
    table = table.assign(**labels.where(labels.notna(), None)).assign(
        identity=pd.Series(people, table.index, dtype=object)
    )
    first_rows: dict[str, int] = {}  # of every digest of pixels, the row that showed them first
    bar = tqdm(total=len(table), desc="import", unit="image", mininterval=5, disable=not progress)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(table), dataset.AHEAD):
            rows = table.iloc[start : start + dataset.AHEAD].to_dict("records")
            taken = pool.map(take, [row["image"] for row in rows])
            for place, (row, image) in enumerate(zip(rows, taken, strict=True), start):
                if isinstance(image, str):
                    left_out.append((row["image"], image))
                    continue
                first = first_rows.setdefault(image.pixels, place)
                if first == place:
                    gallery.add(place, image.look)
                    del row["image"]
                    yield {"image": {"bytes": image.encoded, "path": row.pop("path")}} | row
                    continue
                twin = table.iloc[first].to_dict()
                relation, contradicts = _same_picture(twin, row, listing.attributes)
                left_out.append((row["image"], f"{relation}: {twin['image']}"))
                if contradicts and twin["path"] not in withdrawn:
                    withdrawn.add(twin["path"])
                    left_out.append((twin["image"], f"{relation}: {row['image']}"))
            bar.update(len(rows))


def _same_picture(first: dict, later: dict, attributes: list[str]) -> tuple[str, bool]:
    """Say how two rows with the same pixels relate, and return whether they contradict each other."""
    people = (first["identity"], later["identity"])
    if None not in people and people[0] != people[1]:
        return "the same picture as of another person", True
    for attribute in attributes:
        labels = (first[attribute], later[attribute])
        if None not in labels and labels[0] != labels[1]:
            return "the same picture as one with another label", True
    return "the same picture as another", False


class Normalised(NamedTuple):
    """An image of 8 bits: encoded, a digest of its pixels, and how it looks from afar."""

    encoded: bytes
    pixels: str
    look: looks.Look


def normalise(encoded: bytes) -> Normalised:
    """Check that an image decodes, convert it to 8 bits if needed, and digest its pixels.

    A JPEG, PNG or WebP of 8-bit grey or RGB within :data:`MAX_SIDE` stays byte for byte. Anything
    else (CMYK, palette, 16 bits, other formats, larger) becomes a PNG, or a JPEG if it was one.
    Transparent parts become white, as on a page. The file's extension plays no part. A ValueError says
    why a file cannot be used.
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
            unchanged = (
                kind in ("JPEG", "PNG", "WEBP")
                and picture.mode in ("L", "RGB")
                and not picture.has_transparency_data
                and max(width, height) <= MAX_SIDE
            )
            ImageOps.exif_transpose(picture, in_place=True)
            if unchanged:
                return Normalised(encoded, digest(np.asarray(picture)), looks.look(picture))
            picture = in_8_bits(picture)
            picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG" if kind == "JPEG" else "PNG", quality=95)
            return Normalised(buffer.getvalue(), digest(np.asarray(picture)), looks.look(picture))
    except UnidentifiedImageError:
        disguised = annotations.posing(encoded)
        raise ValueError(f"not an image but {disguised}" if disguised else "not an image") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None


def celeba(folder) -> Listing:
    """List CelebA: 202,599 aligned photos of 10,177 celebrities, 40 attributes (Liu et al. 2015).

    Expected in ``folder``, or in its ``Img/``, ``Anno/`` and ``Eval/``: ``img_align_celeba/``, its
    ``.zip`` or those of ``img_align_celeba_png``; ``list_attr_celeba.txt`` and
    ``identity_CelebA.txt``; optional: ``list_eval_partition.txt`` (column ``partition``) and
    ``list_landmarks_align_celeba.txt`` (with which detection can be skipped). Kaggle's ``.csv`` files of
    the same names work as well. About 1.4 GB.
    """
    folder = Path(folder)
    path, table, attributes = _celeba_labels(folder)
    _add_partition(folder, table)
    _add_landmarks(folder, table)
    images, read, present = _celeba_images(folder)
    # The tables say 000001.jpg, for an image in any folder and also for a PNG.
    members: dict[str, str] = {}
    for member in sorted(present):
        stem = posixpath.splitext(posixpath.basename(member))[0]
        if stem in members:
            raise ValueError(f"{images} holds {members[stem]} and {member}; keep one of them")
        members[stem] = member
    labelled = list(table["image"])
    names = [members.get(posixpath.splitext(name)[0], name) for name in labelled]
    table["image"] = [posixpath.basename(name) for name in names]
    files = {posixpath.basename(member): size for member, size in present.items()}
    if present and files.keys().isdisjoint(table["image"]):
        annotations.explain_strangers(images, path, sorted(present), labelled)
    card = {
        "name": "celeba",
        "source": "Liu et al. 2015, Deep Learning Face Attributes in the Wild; public layout",
        "licence": "non-commercial research only; see the data set's agreement",
        "copy": annotations.completeness(table, files),
        "made_of": _made_of(table, files),
    }

    def read_member(name: str) -> bytes:
        return read(members[posixpath.splitext(name)[0]])

    return Listing(
        table=table,
        attributes=attributes,
        card=card,
        read=read_member,
        excluded=_unlabelled(files, table),
    )


def _made_of(table: pd.DataFrame, files: Mapping[str, int]) -> str:
    """16 digits that change with the tables of a source, and with the name or the size of a file."""
    rows = pd.util.hash_pandas_object(table.astype(str), index=False).to_numpy()
    return digest(list(table), rows, dict(files))[:16]


def _celeba_labels(folder: Path) -> tuple[Path, pd.DataFrame, list[str]]:
    """Return the file of the labels, the table and the names of its attributes.

    The table has ``image``, the attributes as 0.0 or 1.0, and ``identity``.
    """
    path, signs = annotations.read_celeba(folder, "list_attr_celeba")
    people_path, people = annotations.read_celeba(folder, "identity_CelebA", PERSON_COLUMNS)
    if signs is None:
        raise ValueError(f"{path} is missing; {STEPS['celeba']}")
    if people is None:
        raise ValueError(f"{people_path} is missing; {STEPS['celeba']}")
    values = set(np.unique(signs))
    if not (values <= {-1, 1} or values <= {0, 1}):
        odd = max(values - {-1, 1}, key=abs)
        raise ValueError(f"{path} has a label {odd:g} beside 1 and -1; fetch it again")
    reserved = set(dataset.RESERVED) & set(signs)
    if reserved:
        raise ValueError(
            f"{path} has a column {reserved.pop()}, which is no attribute; fetch it again"
        )
    table = (signs > 0).astype(float).reset_index()
    table["identity"] = table["image"].map(people["identity"])
    if table["identity"].isna().all():
        raise ValueError(
            f"{people_path} names none of the images of {path}, but {people.index[0]} where that has "
            f"{signs.index[0]}; fetch it again"
        )
    return path, table, list(signs)


def _add_partition(folder: Path, table: pd.DataFrame) -> None:
    """Add the column ``partition``, if the source has it: train, valid or test."""
    path, split = annotations.read_celeba(folder, "list_eval_partition", ("partition", "split"))
    if split is None:
        return
    names = {"0": "train", "1": "valid", "2": "test"}
    table["partition"] = table["image"].map(split["partition"]).map(names)
    missing = table["partition"].isna()
    if missing.any():
        image = table["image"][missing.idxmax()]
        raise ValueError(f"{path} has no 0, 1 or 2 for {image}; fetch it again, or remove it")


def _add_landmarks(folder: Path, table: pd.DataFrame) -> None:
    """Add the column ``landmarks``, if the source has it: ten numbers."""
    path, points = annotations.read_celeba(folder, "list_landmarks_align_celeba")
    if points is None:
        return
    landmarks = points.reindex(table["image"], columns=list(LANDMARKS))
    if landmarks.isna().any(axis=None):
        raise ValueError(
            f"{path} lacks images, or has not ten numbers of each; remove the file to detect the "
            "faces instead"
        )
    table["landmarks"] = list(landmarks.itertuples(index=False, name=None))


def _celeba_images(folder: Path) -> tuple[Path, Callable[[str], bytes], dict[str, int]]:
    """Return the folder or zip of the images, its reader, and the sizes of those in it by name."""
    kinds = [f"img_align_celeba{end}" for end in ("", ".zip", "_png", "_png.zip")]
    for kind in kinds:
        for place in (folder / kind, folder / "Img" / kind):
            if place.exists():
                read, present = _files(place) if place.is_dir() else _zip(place)
                return place, read, present
    raise ValueError(f"{folder} lacks {kinds[0]}/ and {kinds[1]}; {STEPS['celeba']}")


def lfw(folder, labels, attributes: list[str], threshold=None) -> Listing:
    """List Labeled Faces in the Wild: 13,233 press photos of 5,749 people (Huang et al. 2007).

    Expected: ``folder/Name/Name_0001.jpg``, and a CSV of labels keyed by ``image``
    (``Name/Name_0001.jpg``), because LFW itself has none. A person is a folder. About 180 MB.
    """
    listing = from_table(folder, labels, attributes, threshold, identity=None)
    listing.card = {
        "name": "lfw",
        "source": "Huang et al. 2007, Labeled Faces in the Wild; public layout",
        "licence": "research; press photos, rights remain with their owners",
    }
    return listing


def cmu_faces(folder) -> Listing:
    """List the CMU face images: 20 people, 4 poses x 4 expressions x eyes open or in sunglasses.

    Mitchell 1997, Machine Learning. Expected: ``folder/name/name_pose_expression_eyes.pgm``. The copies at
    half and quarter size (``_2.pgm``, ``_4.pgm``) are passed over. Attributes: ``sunglasses``, and one for
    every expression (``angry``, ``happy``, ``neutral``, ``sad``) and pose (``left``, ``right``,
    ``straight``, ``up``).
    """
    read, present = _files(folder)
    expressions = ["angry", "happy", "neutral", "sad"]
    poses = ["left", "right", "straight", "up"]
    full_size = [name for name in sorted(present) if re.search(r"(?<!_[24])\.pgm$", name)]
    names = pd.Series(full_size, dtype=str)
    pattern = rf"([^/]+)_({'|'.join(poses)})_({'|'.join(expressions)})_(open|sunglasses)\.pgm$"
    parts = names.str.extract(pattern).set_axis(["identity", "pose", "expression", "eyes"], axis=1)
    named = parts["identity"].notna()
    if not named.any():
        raise ValueError(f"{folder} holds no such images; {STEPS['cmu_faces']}")
    excluded = [(name, "the name does not say pose, expression and eyes") for name in names[~named]]
    table = pd.DataFrame({"image": names, "identity": parts["identity"]})
    table["sunglasses"] = (parts["eyes"] == "sunglasses").astype(float)
    for expression in expressions:
        table[expression] = (parts["expression"] == expression).astype(float)
    for pose in poses:
        table[pose] = (parts["pose"] == pose).astype(float)
    card = {
        "name": "cmu-faces",
        "source": "Mitchell 1997, Machine Learning, CMU face images; public layout",
        "licence": "CC BY 4.0 (UCI Machine Learning Repository, CMU Face Images)",
    }
    return Listing(
        table=table[named],
        attributes=["sunglasses", *expressions, *poses],
        card=card,
        read=read,
        excluded=excluded,
    )


def from_table(
    folder, labels, attributes: list[str], threshold=None, identity: str | None = "identity"
) -> Listing:
    """List images in any layout, with a CSV that says who and what is in them.

    Parameters
    ----------
    labels : path
        A CSV with the columns ``image`` (path below ``folder``) and those of the attributes, and, where it
        is known who is on the images, ``identity``.
    attributes : list of str
        Each as ``name``, ``name=column`` or ``name=column+column``. If several columns disagree, the label
        is missing. A column can be ``column:value``: 1 where it holds this value, and 0 elsewhere. A single
        column that is called ``column+column`` or the like is preferred.
    threshold : (low, high), optional
        See :func:`study.faces.annotations.votes`, also for what a column can hold.
    identity : str, optional
        The column of people; nobody is known where there is no column of the default name. None: a person
        is the folder that an image lies in.

    Raises
    ------
    ValueError
        On a missing folder, file or column, a path that leads out of the folder, or a table none of
        whose images is there.
    """
    read, present = _files(folder)
    frame = annotations.read_csv(labels)
    images = _column(frame, "image", labels).str.strip().replace("", np.nan)
    nameless = images.isna()
    excluded = [(f"line {row + 1}", "image not named") for row in images.index[nameless]]
    images = images[~nameless]
    table = pd.DataFrame(index=images.index)
    table["image"] = [
        annotations.inside(name, f"{labels}, line {row + 1}") for row, name in images.items()
    ]
    notes = []
    if identity is None:
        people = [posixpath.basename(posixpath.dirname(name)) for name in table["image"]]
        if people and not any(people):
            raise ValueError(
                f"{labels} says of no image who is on it; give every person a folder of its own"
            )
    else:
        people, notes = _people(frame, identity, labels)
    table["identity"] = people
    _add_labels(table, frame, attributes, labels, threshold)
    if present.keys().isdisjoint(table["image"]):
        annotations.explain_strangers(folder, labels, sorted(present), list(table["image"]))
    card = {
        "name": Path(folder).resolve().name,
        "source": f"imported with the labels of {Path(labels).name}",
        "licence": "unknown; write the licence of your images here",
    }
    return Listing(
        table=table,
        attributes=list(table)[2:],
        card=card,
        read=read,
        excluded=excluded + _unlabelled(present, table),
        notes=notes,
    )


def from_parquet(
    files, attributes: list[str], threshold=None, identity: str | None = None, image: str = "image"
) -> Listing:
    """List the images of Parquet files, as hubs of data sets deliver them (:mod:`study.faces.parquet_files`).

    Parameters
    ----------
    files : list of path
        Files, or folders of them.
    attributes, threshold
        As of :func:`from_table`.
    identity : str, optional
        The column of people, such as ``celeb_id``. None: nobody is known.
    image : str
        The column of images.

    Raises
    ------
    ValueError
        On a missing file or column, and on one that holds something else.
    """
    files = parquet_files.find_files(files)
    images = parquet_files.ImageColumn(files, image)
    with parquet_files.open_file(files[0]) as first:
        header = pd.DataFrame(columns=first.schema_arrow.names)
    wanted = [] if identity is None else [identity]
    for attribute in attributes:
        _, columns = _attribute(attribute, header, taken=dataset.RESERVED)
        wanted += [_of_value(column, header)[0] for column in columns]
    where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    frame = parquet_files.read_columns(files, list(dict.fromkeys(wanted)))
    table = pd.DataFrame({"image": images.names}, dtype=object)
    notes = []
    if identity is None:
        table["identity"] = None
        notes = _unread_people(header)
    else:
        table["identity"] = frame[identity]
    _add_labels(table, frame, attributes, where, threshold, place="row")
    folder = files[0].resolve().parent
    card = {
        "name": folder.name,
        "source": f"imported from {files[0].name}"
        + (f" and {len(files) - 1} more Parquet files" if len(files) > 1 else ""),
        "licence": "unknown; write the licence of your images here",
    }
    return Listing(
        table=table,
        attributes=list(table)[2:],
        card=card,
        read=images.read,
        notes=notes,
    )


def _people(frame: pd.DataFrame, identity: str, labels) -> tuple[pd.Series | None, list[str]]:
    """Return who is on the images of a table, None if it does not say, and warnings about it."""
    if identity in frame or identity != "identity":
        return _column(frame, identity, labels), []
    near = dataset.near_names(frame.columns)
    if near:
        raise ValueError(
            f"{labels} has no column 'identity', but {near[0]!r}: if it says who is on an image, add "
            f"--identity {near[0]!r}, or else rename it"
        )
    return None, _unread_people(frame)


def _unread_people(frame: pd.DataFrame) -> list[str]:
    """Say that nobody is known, and which column may say who it is."""
    line = "no column says who is on an image: nothing can be told of people"
    columns = [name for name in frame if str(name).lower() in PERSON_COLUMNS]
    if columns:
        line += f"; if {columns[0]!r} does, import again with --identity {columns[0]}"
    return [line]


def _add_labels(
    table: pd.DataFrame, frame: pd.DataFrame, attributes: list[str], labels, threshold, place="line"
) -> None:
    """Add a column of labels for every attribute to a table, from the columns of another one."""
    for attribute in attributes:
        name, columns = _attribute(attribute, frame, taken=[*dataset.RESERVED, *table])
        votes = [_votes(frame, column, labels, threshold, place) for column in columns]
        table[name] = _agreed(votes)


def _votes(frame: pd.DataFrame, column: str, labels, threshold, place: str) -> pd.Series:
    """Read one column of labels, which can be given as COLUMN:VALUE."""
    name, value = _of_value(column, frame)
    cells = _column(frame, name, labels)
    if value is None:
        return annotations.votes(cells, labels, threshold, place)
    text = cells.str.strip()
    if value not in set(text):
        values = ", ".join(map(str, text.dropna().unique()[:5])) or "nothing"
        raise ValueError(f"{labels}, column {name!r}: no row is {value!r}; it holds {values}")
    return (text == value).astype(float).where(text.notna() & (text != ""))


def _of_value(column: str, frame: pd.DataFrame) -> tuple[str, str | None]:
    """Return the column and the value of COLUMN:VALUE; None of a plain column."""
    name, colon, value = column.partition(":")
    if column in frame or not colon or name not in frame:
        return column, None
    return name, value


def _column(frame: pd.DataFrame, name: str, labels) -> pd.Series:
    if name not in frame:
        raise ValueError(
            f"{labels} has no column {name!r}{suggest(name, frame.columns)}; it has "
            f"{', '.join(frame.columns)}"
        )
    return frame[name]


def _attribute(text: str, frame: pd.DataFrame, taken: list[str]) -> tuple[str, list[str]]:
    """Return the name of an attribute and its columns, from NAME, NAME=COLUMN or NAME=COLUMN+COLUMN."""
    name, _, columns = text.partition("=")
    if text in frame:  # a column with = or + in its own name, which the message then shows
        name = text
    if not name or "+" in name or "=" in name or name in taken:
        raise ValueError(
            f"--attribute {text}: {name!r} cannot be the name of an attribute; write "
            "NAME=COLUMN or NAME=COLUMN+COLUMN, every NAME once and none of "
            f"{', '.join(dataset.RESERVED)}"
        )
    if columns and columns in frame:
        return name, [columns]
    return name, (columns or name).split("+")


def _agreed(votes: list[pd.Series]) -> pd.Series:
    """Return the labels in which all columns agree; NaN where they do not."""
    first, *others = votes
    for other in others:
        first = first.where(first == other)
    return first


def _files(folder) -> tuple[Callable[[str], bytes], dict[str, int]]:
    """Return a reader of the images below a folder, by their plain paths in it, and their sizes by path."""
    folder = Path(folder)
    try:
        problem = "" if os.listdir(folder) else "it is empty"
    except OSError as error:
        problem = error.strerror
    if problem:
        raise ValueError(
            f"the folder {folder} cannot be read ({problem}); name the one with the images"
        )
    paths: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGES and path.is_file():  # no link to nothing, no folder
            name = annotations.plain(path.relative_to(folder).as_posix())
            if name in paths:
                raise ValueError(f"{paths[name]} and {path} have the same name; rename one of them")
            paths[name] = path

    def read(name: str) -> bytes:
        return paths.get(name, folder / name).read_bytes()

    return read, {name: path.stat().st_size for name, path in paths.items()}


def _zip(path: Path) -> tuple[Callable[[str], bytes], dict[str, int]]:
    """Return a reader of the images in a zip, by their names in it, and their sizes by name."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        with open(path, "rb") as file:
            problem = annotations.posing(file.read(200)) or error
        raise ValueError(f"{path} is not a complete zip ({problem}); fetch it again") from None
    if any(member.flag_bits & 1 for member in archive.infolist()):
        raise ValueError(f"{path} is locked by a password; unpack it into a folder of its name")
    members = archive.infolist()
    images = [member for member in members if member.filename.lower().endswith(IMAGES)]
    return archive.read, {member.filename: member.file_size for member in images}


def _unlabelled(present: Mapping[str, int], table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(name, "no labels") for name in sorted(present.keys() - set(table["image"]))]


STEPS = {
    "celeba": "get the aligned images and the annotation files from the CelebA project page, under "
    "its agreement, and put them into one folder (Kaggle's copy has no identity_CelebA.txt: take it "
    "from the project page)",
    "lfw": "get lfw-deepfunneled.tgz from the LFW project page, or lfw-funneled.tgz from scikit-learn's "
    "mirror, and unpack it",
    "cmu_faces": "get 'CMU Face Images' from the UCI Machine Learning Repository and unpack faces_4",
}  # fmt: skip
SOURCES = {
    "celeba": celeba,
    "lfw": lfw,
    "cmu_faces": cmu_faces,
    "folder": from_table,
    "parquet": from_parquet,
}


def download(source: str, folder) -> Path:
    """Fetch a source with the library that keeps its address and checksum; return the folder to import.

    LFW with scikit-learn, CelebA with torchvision (which needs the package gdown). If that fails, a
    ConnectionError lists the steps by hand.
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
        raise ConnectionError(
            f"{source} could not be fetched ({error}); by hand: {STEPS[source]}"
        ) from None


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    try:
        dataset.check_replaceable(options.out)  # before a download, or hours of reading
        folder = options.folder
        if getattr(options, "download", False):
            folder = download(options.source, folder)
        read = SOURCES[options.source]
        if options.source == "parquet":
            listing = read(
                folder, options.attribute, options.threshold, options.identity, options.image
            )
        elif options.source == "folder":
            listing = read(
                folder, options.labels, options.attribute, options.threshold, options.identity
            )
        elif options.source == "lfw":
            listing = read(folder, options.labels, options.attribute, options.threshold)
        else:
            listing = read(folder)
        if getattr(options, "name", None):
            listing.card["name"] = options.name
        listing = only(listing, options.part)
        if getattr(options, "unless_there", False):
            why = difference(listing, options.out, options.keep_names, options.show_images)
            if not why:
                _print_kept(options.out)
                return
            print(f"{options.out}: the data set there is not kept, as {why}")
        said: list[str] = []
        out = import_faces(
            listing, options.out, options.keep_names, options.show_images, say=said.append
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{options.out} is as it was") from None
    _print_result(out, said)


def difference(listing: Listing, out, keep_names=False, show_images=False) -> str:
    """Say in what the data set at ``out`` differs from one that an import would write; "" if in nothing.

    It must be whole, of the same name, made of the same tables and files, and by the same options.
    """
    try:
        card = json.loads((Path(out) / dataset.CARD).read_text(encoding="utf-8"))
        name = card["name"]
        made_of = card.get("made_of")
        images = card["counts"]["images"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "none with a readable card is there"
    if name != listing.card["name"]:
        return f"it is {name!r}"
    if made_of is None or made_of != listing.card.get("made_of"):
        return "it was made of other tables or files"
    held = dataset.count_rows(out)
    if held != images:
        return f"its files hold {held:,} of its {images:,} images"
    if bool(card.get("show_images")) != show_images or bool(card.get("keeps_names")) != keep_names:
        return "it was made with other options, --keep-names or --show-images"
    return ""


def _print_kept(out) -> None:
    """Print what a data set that is kept holds."""
    card = json.loads((Path(out) / dataset.CARD).read_text(encoding="utf-8"))
    counts = card["counts"]
    print(
        f"{out}: kept, as it was made of these very tables and files: {card['name']}, "
        f"{counts['images']:,} images of {counts['identities']:,} people"
    )
    if "copy" in card:
        print(f"  {annotations.share_here(card['copy'])}")


def _options(arguments: list[str]) -> Namespace:
    import_parser = parser("import")
    commands = import_parser.add_subparsers(dest="source", required=True)
    for source in SOURCES:
        command = commands.add_parser(source, help=f"import {source}")
        if source == "parquet":
            command.add_argument("folder", nargs="+", metavar="FILES", help="or folders of them")
        else:
            command.add_argument("folder", help="where the source lies")
        command.add_argument("--out", default="data", help="data set to write (default: data)")
        command.add_argument("--keep-names", action="store_true", help="keep the names of people")
        command.add_argument(
            "--part", choices=parts.PARTS, default=parts.ALL, help="of the people (default: all)"
        )
        command.add_argument(
            "--show-images", action="store_true", help="let reports show the photos"
        )
        if source in STEPS:
            command.add_argument(
                "--download", action="store_true", help="fetch it into the folder first"
            )
        if source == "celeba":
            command.add_argument(
                "--unless-there", action="store_true", help="keep a data set made of the same files"
            )
        if source in ("folder", "parquet"):
            command.add_argument("--name", help="of the data set (default: the folder's)")
            command.add_argument(
                "--identity",
                metavar="COLUMN",
                default="identity" if source == "folder" else None,
                help="that says who is on an image",
            )
        if source == "parquet":
            command.add_argument("--image", metavar="COLUMN", default="image", help="of the images")
        if source in ("lfw", "folder"):
            command.add_argument("--labels", required=True, help="CSV keyed by image")
        if source in ("lfw", "folder", "parquet"):
            command.add_argument(
                "--attribute",
                action="append",
                required=True,
                metavar="NAME[=COLUMN[:VALUE][+COLUMN]]",
            )
            command.add_argument(
                "--threshold", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of a score"
            )
    return import_parser.parse_args(arguments)


def _print_result(out: Path, warnings: list[str]) -> None:
    """Print what was imported, what was left out and why, and what to do next."""
    card = json.loads((out / dataset.CARD).read_text(encoding="utf-8"))
    counts = card["counts"]
    print(f"{out}: {counts['images']} images of {counts['identities']} people")
    if "unidentified" in counts:
        print(f"  nobody knows who is on {counts['unidentified']} images")
    if "part" in card:
        print(f"  part {card['part']['part']}: {card['part']['left_out']} people are left out")
    if "copy" in card:
        print(f"  {annotations.share_here(card['copy'])}")
    for reason, count in card["excluded"].items():
        print(f"  left out: {count} x {reason}")
    for attribute, count in counts.get("labelled", {}).items():
        print(f"  labelled {attribute}: {count}")
    for line in warnings:
        print(f"  warning: {line}")
    for attribute in card["single_valued"]:
        print(f"  no longer an attribute, because it has one value only: {attribute}")
    judged = "" if counts["identities"] else ", judged by the audit without identities"
    print(
        f"next: dvc add {out}, then `python -m study new NAME --task T`, with T one of "
        f"{', '.join(card['attributes'])}: it writes a study of these data{judged}"
    )


if __name__ == "__main__":
    run_renamed(__spec__.name)
