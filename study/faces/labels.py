"""Tables of labels that name no file: a photograph is known by the SHA-256 of its file.

    python -m study labels TABLE FOLDER --out labels.csv                 labels of the photographs in a folder
    python -m study labels TABLE FOLDER --out FILE --hashed COLUMN ...   make such a table of one with names

File names of public photographs are people's names, and so are not committed. A table here has the column
``sha256``, of which the first :data:`DIGITS` hexadecimal digits are enough to tell files apart, and columns of
scores. Joined to a folder it becomes what ``python -m study import`` reads: ``image``, ``identity`` (the
folder that an image lies in) and the scores.
"""

import hashlib
from pathlib import Path

import pandas as pd

from cid.door.inputs import keep
from study.commands import parser
from study.faces.importers import IMAGES
from study.store import write_text

DIGEST = "sha256"
DIGITS = 24


def digests(folder: str | Path) -> pd.DataFrame:
    """The photographs of a folder, at any depth: ``image``, ``identity`` and ``sha256``.

    Raises
    ------
    ValueError
        If the folder is missing or holds no image.
    """
    folder = Path(folder)
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGES and file.is_file()
    ]
    if not files:
        missing = "holds no image" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {missing}; name the folder of the photographs")
    return pd.DataFrame(
        {
            "image": [file.relative_to(folder).as_posix() for file in files],
            "identity": [file.parent.name for file in files],
            DIGEST: [hashlib.sha256(file.read_bytes()).hexdigest()[:DIGITS] for file in files],
        }
    )


def read_hashed(path: str | Path) -> pd.DataFrame:
    """A committed table of labels; ``ValueError`` if it is none."""
    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no table of labels ({problem})") from None
    if DIGEST not in table or len(table.columns) < 2:
        raise ValueError(f"{path} lacks a column {DIGEST}, or labels; take one of docs/data/")
    return table.drop_duplicates(DIGEST)


def joined(table: str | Path, folder: str | Path) -> pd.DataFrame:
    """The labels of the photographs in a folder; images that the table does not know are left out.

    Raises
    ------
    ValueError
        If it knows none of them.
    """
    images = digests(folder)
    labelled = images.merge(read_hashed(table), on=DIGEST).drop(columns=DIGEST)
    if labelled.empty:
        raise ValueError(
            f"{table} knows none of the {len(images):,} images of {folder}: they are other photographs, or "
            "were saved anew, which changes a file's SHA-256; take the files as they are published"
        )
    return labelled


def hashed(table: str | Path, folder: str | Path, columns: list[str]) -> pd.DataFrame:
    """Make a table without names of one that is keyed by ``image``; rows are in the order of digests.

    Raises
    ------
    ValueError
        If the table lacks a column.
    """
    named = pd.read_csv(table, dtype=str)  # scores as they are written
    missing = [column for column in ("image", *columns) if column not in named]
    if missing:
        raise ValueError(f"{table} has no column {missing[0]!r}; it has {', '.join(named)}")
    known = digests(folder).merge(named[["image", *columns]], on="image")
    known = known.dropna(subset=columns, how="all")
    return known[[DIGEST, *columns]].drop_duplicates().sort_values(DIGEST, ignore_index=True)


def main(arguments: list[str]) -> None:
    options = parser("labels")
    options.add_argument("table", help="of docs/data/; with --hashed, one that is keyed by image")
    options.add_argument("folder", help="of the photographs")
    options.add_argument("--out", required=True, help="CSV to write")
    options.add_argument("--hashed", nargs="+", metavar="COLUMN", help="columns to keep by digest")
    args = options.parse_args(arguments)
    out = Path(args.out)
    keep(out, [Path(args.table)])
    if args.hashed:
        table = hashed(args.table, args.folder, args.hashed)
    else:
        table = joined(args.table, args.folder)
    write_text(out, table.to_csv(index=False))
    print(f"{args.out}: labels of {len(table):,} images")
