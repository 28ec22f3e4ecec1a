"""What a command was handed: rows with their labels, an embedding and features of each, or why there is none."""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cid.door import photographs, tables
from cid.door.faces import NETWORK, NO_FACE, USUAL, embed, say
from cid.door.kept import FOLDER
from cid.door.photographs import Photographs, open_source
from cid.door.tables import Rows

NO_LABEL = "no label"
NO_EMBEDDING = "its embedding holds NaN or infinite values"
NO_FEATURES = "its features hold NaN or infinite values"
NO_DIRECTION = "its embedding has norm 0"
EMBEDDINGS = (".npy", ".parquet", ".pq", ".csv", ".tsv", ".txt")
ROWS = 8192  # looked at together
UNNAMED = re.compile(r"\s*|Unnamed: \d+")  # what a column of numbers of rows is called
LISTS = (list, np.ndarray)  # of a cell that holds a vector
NOT_NAMED = {"embeddings": "no embedding of this name", "features": "no features of this name"}


class Refused(ValueError):
    """A table whose mistake is named."""


@dataclass(frozen=True)
class Given:
    """Rows, and an embedding of each.

    Attributes
    ----------
    rows : Rows
    embedding : array (n, d)
    reasons : list of str
        Why a row cannot be used, "" where it can.
    features : array (n, t), optional
        Of the task, by which labels can be judged.
    """

    rows: Rows
    embedding: np.ndarray
    reasons: list[str]
    features: np.ndarray | None = None

    def usable(self) -> np.ndarray:
        """Return which rows can be used, bool (n,)."""
        return np.array([not reason for reason in self.reasons])


@dataclass(frozen=True)
class Opened:
    """Rows whose labels are known, before any photograph is opened."""

    rows: Rows
    source: Photographs | None  # None: embeddings take their place


def opened(options: Namespace) -> Opened:
    """Read the labels that the options name, or those that stand beside the pictures of Parquet files.

    ``options`` has ``photographs``, ``labels``, ``embeddings`` and ``image``. ValueError if something is
    missing, or one thing too many.
    """
    if bool(options.photographs) == bool(options.embeddings):
        raise ValueError("name photographs, or embeddings by --embeddings: one of the two")
    source = open_source(options.photographs) if options.photographs else None
    if options.labels:
        need_names = source is not None
        return Opened(tables.read_rows(options.labels, options.image, need_names), source)
    if source is not None and source.table is not None:
        return Opened(tables.named_rows(source.table, tables.IMAGE, source.where), source)
    what = "photographs" if source else "embeddings"
    raise ValueError(f"the labels of these {what} are missing; name their table by --labels")


def keep_read(options: Namespace, *outputs: Path) -> None:
    """Refuse outputs that would be written over a file that the options name to be read."""
    names = [
        options.labels,
        options.embeddings,
        getattr(options, "features", None),
        getattr(options, "predictions", None),
        *options.photographs,
    ]
    for output in outputs:
        keep(output, [Path(name) for name in names if name])


def keep(output: Path, read: Sequence[Path]) -> None:
    """Refuse an output that would be written over one of the files that are read."""
    if output.exists() and any(path.exists() and output.samefile(path) for path in read):
        raise ValueError(
            f"{output} would be written over, and it is read here; name another output"
        )


def embedded(found: Opened, options: Namespace, output: Path, columns: Sequence[str] = ()) -> Given:
    """Embed the photographs, or read their embeddings.

    Parameters
    ----------
    options : Namespace
        ``embeddings``, ``features``, ``image``, ``keep``, ``network`` and ``device``.
    output : path
        Embeddings of photographs are kept beside it.
    columns : sequence of str
        Columns in which two rows of one image may not differ.
    """
    named = getattr(options, "features", None)
    # A mistake in them is said before photographs are embedded, which can take hours.
    features = _features(found.rows, options) if named else None
    if found.source is None:
        given = _with_embeddings(found.rows, options, columns)
    else:
        given = _with_photographs(found.rows, found.source, options, output, columns)
    return _with_features(given, *features, named) if features else given


def _with_embeddings(rows: Rows, options: Namespace, columns: Sequence[str]) -> Given:
    path = Path(options.embeddings)
    vectors, reasons = _vectors_of_rows(path, rows, options, "embeddings")
    if path.suffix != ".npy":  # an embedding found by name would count twice
        twice = tables.written_twice(rows, _contents(rows, columns))
        reasons = [one or other for one, other in zip(twice, reasons, strict=True)]
    norms = np.concatenate(
        [_norms(vectors[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
    )
    for row in np.flatnonzero(~(norms > 0) | ~np.isfinite(norms)):
        if not reasons[row]:
            reasons[row] = NO_DIRECTION if norms[row] == 0 else NO_EMBEDDING
    if all(reasons):
        raise ValueError(f"{path}: no row can be used ({_counted(reasons)})")
    return Given(rows, vectors, reasons)


def _features(rows: Rows, options: Namespace) -> tuple[np.ndarray, list[str]]:
    """Features (n, t) of all rows, and a reason for every row that has none."""
    path = Path(options.features)
    if options.embeddings and path.absolute() == Path(options.embeddings).absolute():
        raise ValueError(
            f"{path} is named by --embeddings and by --features; a face embedding cannot judge labels, so "
            "name features of the task, or leave --features out"
        )
    vectors, reasons = _vectors_of_rows(path, rows, options, "features")
    sums = np.concatenate(
        [_norms(vectors[start : start + ROWS]) for start in range(0, len(vectors), ROWS)]
    )
    for row in np.flatnonzero(~np.isfinite(sums)):
        reasons[row] = reasons[row] or NO_FEATURES
    return vectors, reasons


def _with_features(given: Given, vectors: np.ndarray, missing: list[str], path: str) -> Given:
    """Put features in place of those of photographs; a row without them cannot be used."""
    reasons = [one or other for one, other in zip(given.reasons, missing, strict=True)]
    if all(reasons):
        raise ValueError(f"{path}: no row can be used ({_counted(reasons)})")
    return replace(given, features=vectors, reasons=reasons)


def _vectors_of_rows(
    path: Path, rows: Rows, options: Namespace, what: str
) -> tuple[np.ndarray, list[str]]:
    """Vectors (n, d) of all rows from a file, and a reason for every row that it has none of.

    ``what`` they are, "embeddings" or "features", for messages.
    """
    if path.suffix not in EMBEDDINGS:
        raise ValueError(
            f"{path} ends in none of {', '.join(EMBEDDINGS)}; save {what} as .npy (n, d)"
        )
    if path.suffix == ".npy":
        vectors = tables.read_array(path)
        if len(vectors.shape) != 2 or not vectors.shape[1] or vectors.dtype.kind not in "fiu":
            raise ValueError(
                f"{path} holds {vectors.dtype} of shape {vectors.shape}; {what} are numbers (n, d)"
            )
        if len(vectors) != len(rows):
            raise ValueError(
                f"{path} has {len(vectors)} rows and {rows.where} {len(rows)}; the rows of both must be "
                "the same images in the same order"
            )
        say(f"{what}: row i of {path} is taken for row i of {rows.where}")
        reasons = [""] * len(rows)
    else:
        vectors, reasons = _by_name(path, rows, options.image or tables.IMAGE, what)
    return np.asarray(vectors, np.float64 if vectors.dtype == np.float64 else np.float32), reasons


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors.astype(np.float64), axis=1)


def _by_name(path: Path, rows: Rows, image: str, what: str) -> tuple[np.ndarray, list[str]]:
    """Vectors of a table that names its images: a column of lists, or a column a number."""
    if not rows.named:
        raise ValueError(
            f"{path} names its images, but {rows.where} has no column {tables.IMAGE!r}; add it, or pass "
            f"{what} as .npy in the order of its rows"
        )
    table = tables.read_table(path, text=False)
    if image in table:
        table[image] = tables.as_text(table[image])
    names = tables.named_rows(table, image, str(path)).names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two rows of {twice[0]!r}; keep one")
    vectors = _vectors(table.drop(columns=image), rows, path, what)
    places = {name: row for row, name in enumerate(names)}
    chosen = np.full((len(rows), vectors.shape[1]), np.nan, np.float32)
    reasons = [""] * len(rows)
    for row, name in enumerate(rows.names):
        if name in places:
            chosen[row] = vectors[places[name]]
        else:
            reasons[row] = NOT_NAMED[what]
    if all(reasons):
        raise ValueError(
            f"none of the {len(rows)} images in {rows.where} is in {path}: the first are "
            f"{rows.names[0]!r} and {names[0]!r}"
        )
    return chosen, reasons


def _vectors(table: pd.DataFrame, rows: Rows, path: Path, what: str) -> np.ndarray:
    lists = [name for name in table if table[name].map(lambda cell: isinstance(cell, LISTS)).any()]
    try:
        return (
            _of_lists(table[lists], path, what) if lists else _of_numbers(table, rows, path, what)
        )
    except Refused:
        raise
    except (TypeError, ValueError):
        raise ValueError(
            f"{path} holds no {what}: beside the image, one column of lists of equal length, or a "
            "column of numbers for each dimension"
        ) from None


def _of_lists(table: pd.DataFrame, path: Path, what: str) -> np.ndarray:
    """The vectors of the one column of lists, or, of several, that which is called as they are."""
    names = [name for name in table if str(name).lower() in (what, what[:-1])] or list(table)
    if len(names) > 1:
        raise Refused(
            f"{path} has {len(names)} columns of lists ({tables.listed(names)}); call the one of the "
            f"{what} {what[:-1]!r}, or leave the others out"
        )
    cells = table[names[0]]
    sizes = cells.map(lambda cell: np.size(cell) if isinstance(cell, LISTS) else 0)
    odd = np.flatnonzero(sizes != sizes.mode()[0])
    if len(odd):
        raise Refused(
            f"{path}, column {names[0]!r}: row {odd[0] + 1} has {sizes.iloc[odd[0]]} numbers, others "
            f"{sizes.mode()[0]}; leave the row out"
        )
    say(f"{what}: column {names[0]!r} of {path} is taken")
    return np.stack([np.asarray(cell, np.float32) for cell in cells])


def _of_numbers(table: pd.DataFrame, rows: Rows, path: Path, what: str) -> np.ndarray:
    """The vectors of a table with a column a number."""
    unnamed = [name for name in table if UNNAMED.fullmatch(str(name))]
    table = table.drop(columns=unnamed)  # numbers of rows, as pandas writes them
    shared = [name for name in table if name in rows.table]
    if shared:
        raise Refused(
            f"{path} has the column {shared[0]!r} of {rows.where}, which would count among the {what}; "
            f"leave it out, or pass {what} as .npy"
        )
    if table.columns.empty:
        raise ValueError
    vectors = table.to_numpy(np.float32)
    names = list(table)
    say(f"{what}: {len(names)} columns of {path} are taken, {names[0]!r} to {names[-1]!r}")
    return vectors


def _with_photographs(
    rows: Rows, source: Photographs, options: Namespace, output: Path, columns: Sequence[str]
) -> Given:
    names = photographs.found_names(source, rows.names, rows.where)
    contents = _contents(rows, columns)
    twice = tables.written_twice(rows, contents)
    strangers = len(set(source.names) - set(names))
    if strangers:
        say(f"{strangers:,} photographs of {source.where} have no row in {rows.where}")
    folder = None if options.keep == "no" else output.parent / FOLDER
    network = options.network or NETWORK
    # Rows that are left out anyway, also for want of a label, need not be looked at.
    unknown = ["" in row for row in contents]
    wanted = [
        "" if reason or empty else name
        for name, reason, empty in zip(names, twice, unknown, strict=True)
    ]
    faces = embed(source, wanted, folder, network=network, device=options.device)
    reasons = [
        one or ("" if empty else other)
        for one, empty, other in zip(twice, unknown, faces.reasons, strict=True)
    ]
    found = sum(not (reason or empty) for reason, empty in zip(reasons, unknown, strict=True))
    _tell_faces(found, reasons.count(NO_FACE), folder)
    if not found:
        raise ValueError(f"no photograph of {source.where} can be used ({_counted(reasons)})")
    return Given(rows, faces.embedding, reasons, faces.features)


def _contents(rows: Rows, columns: Sequence[str]) -> list[tuple]:
    """The cells of some columns of every row."""
    cells = [rows.table[column].map(tables.class_text) for column in columns]
    return list(zip(*cells, strict=True)) if cells else [()] * len(rows)


def _tell_faces(found: int, missed: int, folder: Path | None) -> None:
    """Say in how many photographs a face was found, and where embeddings lie."""
    looked_at = found + missed
    print(f"faces: found in {found:,} of {looked_at:,} photographs")
    if found < USUAL * looked_at:
        say(
            f"warning: faces were found in {found / looked_at:.0%} only, where {USUAL:.0%} and more are "
            "usual; are the photographs turned, tiny, or of something else?"
        )
    if folder is not None:
        print(
            f"embeddings: kept in {folder}, readable by you alone. They identify people in other "
            "photographs; delete the folder when you are done. With --keep no there is none."
        )


def labelled(
    rows: Rows, column: str, reasons: Sequence[str] = ()
) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the class of every row, all classes that can be used, and a reason for every row.

    ``reasons`` are those that are known so far. ValueError if fewer than two classes are left.
    """
    texts, _ = tables.classes(rows.column(column, "the label"), rows.where)
    reasons = reasons or [""] * len(rows)
    reasons = [
        reason or ("" if text else NO_LABEL) for reason, text in zip(reasons, texts, strict=True)
    ]
    usable = [text for text, reason in zip(texts, reasons, strict=True) if not reason]
    known = tables.in_order(set(usable))
    if len(known) < 2:
        only = f"all are {known[0]!r}" if known else "there is none"
        raise ValueError(
            f"column {column!r} of {rows.where} needs two classes at least among the "
            f"{len(usable):,} images that can be used; {only}"
        )
    return texts, known, reasons


def tell_left_out(reasons: Sequence[str]) -> None:
    """Say how many rows are left out, and why."""
    left_out = sum(bool(reason) for reason in reasons)
    if left_out:
        print(f"left out: {left_out:,} of {len(reasons):,} rows ({_counted(reasons)})")


def _counted(reasons: Sequence[str]) -> str:
    counts = Counter(reason.partition(": ")[0] for reason in reasons if reason)
    return ", ".join(f"{count:,} x {reason}" for reason, count in counts.most_common(5))
