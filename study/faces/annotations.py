"""Tables that say who and what is in photographs, as people have them.

Whatever has only one meaning is read: different separators of columns and paths, any letter case of yes
and no, decimal commas. What could mean two things is refused by a ValueError that names the place and the
remedy.
"""

import csv
import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from unicodedata import category, normalize

import numpy as np
import pandas as pd

from cid.door.tables import csv_lines, csv_table, posing

# What tables write instead of a missing number and a missing name.
MISSING = (-1, -9, -99, -999, -9999, 9, 88, 98, 99, 888, 998, 999, 9999)
NOBODY = (
    *("unknown", "unbekannt", "anonymous", "nobody", "none", "null", "nan", "na", "n/a"),
    *("undefined", "missing", "tbd", "n.n.", "xxx", "other", "others"),
)

IMAGE_COLUMNS = ("image", "image_id", "img", "file", "filename", "file_name", "path")
CELEBA_IMAGES = 202_599  # of Liu et al. 2015


def read_csv(path) -> pd.DataFrame:
    """Read a table as text, separated by commas, semicolons, tabs or bars.

    The index of a row is its line in the file, counted from 0. Columns without a name are passed over, such
    as the row numbers that ``DataFrame.to_csv()`` writes first.
    """
    try:
        content = Path(path).read_bytes()
        problem = posing(content)
        if problem:
            raise ValueError(problem)
        lines, separator = csv_lines(content)
        if not lines:
            raise ValueError("it is empty")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not a readable CSV (it is no text in UTF-8); save it as CSV UTF-8"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable CSV ({error})") from None
    frame = csv_table(lines, separator, path)
    return frame.loc[:, [bool(name) for name in frame.columns]]


def read_celeba(
    folder: Path, name: str, wanted: Collection[str] | None = None
) -> tuple[Path, pd.DataFrame | None]:
    """Read a table of CelebA, one row per image; return its path and the table, or None if missing.

    Official tables are separated by spaces, and some begin with a count and a header. Copies of them have
    commas, or one header more, or no count, or row numbers in front. Named columns are found by their names
    alone.

    Parameters
    ----------
    wanted : collection of str, optional
        Names for the one column that is wanted, as text; the table has it under the first of them. Where no
        column has a name, it is the one after the image. Without it the table must have a line of names, and
        all its columns are returned as numbers.
    """
    ends = [f"{part}{name}.{end}" for end in ("txt", "csv") for part in ("", "Anno/", "Eval/")]
    path = next((folder / end for end in ends if (folder / end).exists()), None)
    if path is None:
        return folder / ends[0], None
    try:
        count, table = _parse_celeba(path.read_bytes(), wanted)
    except (ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a table of CelebA ({reason}); fetch it again") from None
    if count not in (None, len(table)):
        raise ValueError(f"{path} announces {count} rows and has {len(table)}; fetch it again")
    return path, table


def _parse_celeba(
    content: bytes, wanted: Collection[str] | None
) -> tuple[int | None, pd.DataFrame]:
    """Return the count of rows that the first line announces, if it does, and the table."""
    problem = posing(content)
    if problem:
        raise ValueError(problem)
    first, _, rest = content.decode("utf-8-sig").partition("\n")
    count = None
    if first.strip().isdigit():
        count = int(first)
        first, _, rest = rest.partition("\n")
    if not first.strip():
        raise ValueError("it is empty")
    comma = "," in first
    cells = [cell.strip() for cell in first.split("," if comma else None)]
    # Images have an extension, or are numbers; names of columns are neither.
    named = not cells[0].isdigit() and not any("." in cell for cell in cells)
    if wanted is None and not named:
        raise ValueError("it has no line of names")
    table = pd.read_csv(
        io.StringIO(rest if named else f"{first}\n{rest}"),
        sep="," if comma else r"\s+",
        header=None,
        skipinitialspace=True,
        dtype=str if wanted else {0: str},
    )
    if table.empty or table.shape[1] < 2:
        raise ValueError("it has no second column, after a space or comma")
    table = _with_names(table, cells if named else None, wanted)
    if not table.index.is_unique:
        image = table.index[table.index.duplicated()][0]
        raise ValueError(f"it has two rows of {image}")
    incomplete = table.isna().any(axis=1)
    if wanted is None and incomplete.any():
        raise ValueError(f"it lacks a value of {table.index[incomplete][0]}")
    return count, table if wanted else table.astype(float)


def _with_names(
    table: pd.DataFrame, names: list[str] | None, wanted: Collection[str] | None
) -> pd.DataFrame:
    """Name the columns of a table of CelebA, with the image as the index; keep those that are wanted."""
    width = table.shape[1]
    if names is None:
        if width != 2:
            raise ValueError(f"it has {width} columns, none with a name, where 2 are expected")
        names = ["image", next(iter(wanted or ()))]
    elif len(names) == width - 1 and names[0].lower() not in IMAGE_COLUMNS:
        names = ["image", *names]  # the official form: that of the image has no name
    elif len(names) != width:
        raise ValueError(f"it names {len(names)} columns, and its rows have {width} cells")
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise ValueError(f"it has two columns {twice[0]}")
    table = table.set_axis(names, axis=1)
    images = [name for name in names if name.lower() in IMAGE_COLUMNS]
    if not images:
        raise ValueError(
            f"its rows have as many cells as it names columns ({width}), and none is the image's: a "
            "column was cut away, or image_id is missing"
        )
    table = table.set_index(images[0]).rename_axis("image")
    table.index = table.index.astype(str)
    if wanted is None:
        return table[[name for name in table if name]]
    found = [name for name in table if name.lower() in wanted]
    if not found:
        there = ", ".join(name for name in table if name) or "no other"
        raise ValueError(f"it has no column {' or '.join(wanted)}, but {there}")
    return table[found[:1]].set_axis([next(iter(wanted))], axis=1)


def completeness(table: pd.DataFrame, files: Collection[str]) -> dict[str, dict[str, int]]:
    """Count the images that CelebA's tables list, and those of them that are here.

    Parameters
    ----------
    table : DataFrame
        ``image`` (the name of its file) and, where it is known, ``partition``.

    Returns
    -------
    dict
        ``listed`` and ``here`` of ``all`` and of every partition.
    """
    is_here = table["image"].isin(set(files))
    of_group = {"all": is_here}
    if "partition" in table:
        of_group |= dict(iter(is_here.groupby(table["partition"], sort=False)))
    return {
        group: {"listed": len(rows), "here": int(rows.sum())} for group, rows in of_group.items()
    }


def share_here(copy: dict[str, dict[str, int]]) -> str:
    """Say which share of the images in CelebA's tables is here, from :func:`completeness`."""
    here, listed = copy["all"]["here"], copy["all"]["listed"]
    groups = [
        f"{group} {count['here']:,} of {count['listed']:,}"
        for group, count in copy.items()
        if group != "all"
    ]
    text = f"{here:,} of the {listed:,} images in the tables are here ({100 * here / listed:.3g} %)"
    if groups:
        text += f": {', '.join(groups)}"
    if here < listed:
        text = f"an incomplete copy: {text}"
    if listed < CELEBA_IMAGES:
        text += f"; the tables are incomplete, too: CelebA has {CELEBA_IMAGES:,} images"
    return text


def plain(path: str) -> str:
    """Return a path with ``/``, without ``./`` and in Unicode NFC: tables and file systems differ there."""
    return posixpath.normpath(normalize("NFC", path.replace("\\", "/")))


def inside(name: str, where: str) -> str:
    """Return the :func:`plain` path of an image; ValueError if it leads out of the folder of images."""
    path = plain(name)
    if path.startswith(("/", "../")) or path == ".." or re.match("[A-Za-z]:", path):
        raise ValueError(
            f"{where}, column 'image': {name!r} leads out of the folder of images; write paths in it"
        )
    return path


def explain_strangers(folder, labels, present: list[str], names: list[str]) -> None:
    """Raise a ValueError if none of the images of a table is there; say what differs, with an example."""
    if not present or not names or any((Path(folder) / name).is_file() for name in names):
        return
    alike = {
        "they differ in letter case": str.casefold,
        "they differ in the extension": lambda name: posixpath.splitext(name)[0],
        "they differ in the folders in front": posixpath.basename,
    }
    name = names[0]
    file = present[0]
    cause = "name the folder in which the paths begin"
    for difference, key in alike.items():
        files = {key(file): file for file in present}
        match = next((name for name in names if key(name) in files), None)
        if match:
            name = match
            file = files[key(match)]
            cause = difference
            break
    raise ValueError(
        f"none of the {len(names)} images in {labels} is in {folder}: the table has {name!r}, the "
        f"folder {file!r}; {cause}"
    )


def votes(cells: pd.Series, labels, threshold, place: str = "line") -> pd.Series:
    """Read a column of text as labels: 0.0, 1.0, or NaN for a label that is missing.

    Columns of 0 and 1, -1 and 1, yes and no, or true and false (also as percentages, with decimal
    commas, in any letter case) need no threshold. Others need a ``threshold`` of two numbers (low, high):
    values from ``high`` on become 1, values up to ``low`` become 0 (1 if both hold), and values between
    the two are missing. ``place`` is what a row of the table is called. ValueError if a threshold is needed and there is none, and for values that look
    like a code for a missing label.
    """
    text = cells.str.strip().str.lower().replace("", np.nan)
    text = text.replace({"true": "1", "yes": "1", "false": "0", "no": "0"})
    percent = text.str.endswith("%", na=False)
    values = pd.to_numeric(text.str.rstrip("%").str.replace(",", "."), errors="coerce")
    values = values / np.where(percent, 100, 1)

    def refuse(rows, problem: str):
        if rows.any():
            row = rows.idxmax()
            raise ValueError(
                f"{labels}, {place} {row + 1}, column {cells.name!r}: {cells[row]!r} {problem}"
            )

    refuse(
        (values.isna() & text.notna()) | np.isinf(values),
        "is not a number, nor yes, no, true or false; leave the cell empty if unknown, or name the value "
        "that is to be 1 by --attribute NAME=COLUMN:VALUE",
    )
    refuse(
        text.str.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+%?", na=False),
        "may have its comma before decimals or thousands; write a point, or leave it out",
    )
    refuse(
        ~percent & (values.abs() > 1) & percent.any(),
        "has no percent sign, which others have; write all in one way",
    )
    distinct = sorted(set(values.dropna()))
    if set(distinct) <= {0, 1} or set(distinct) <= {-1, 1}:
        return (values > 0).astype(float).where(values.notna())
    numbers = [value for value in distinct if value not in MISSING] or [0]
    signed = min(numbers) < 0
    large = max(numbers) > 1
    # -9 is a code unless other values are negative, too; 9 unless others are above 1, too.
    codes = [
        value for value in distinct if value in MISSING and not (signed if value < 0 else large)
    ]
    refuse(
        values.isin(codes),
        "looks like a code for a label that is missing; leave such cells empty",
    )
    shown = ", ".join(f"{value:g}" for value in distinct[:5])
    if len(distinct) > 5:
        shown += ", ..."
    if _number_rows(values.dropna()):
        raise ValueError(
            f"{labels}, column {cells.name!r}: has another whole number for every image ({shown}), as row "
            "numbers and ids have; name the column of a label"
        )
    if threshold is None:
        raise ValueError(
            f"{labels}, column {cells.name!r}: its {len(distinct)} values ({shown}) are not 0 and 1; "
            "say by --threshold LOW HIGH up to where a value counts as 0 and from where on as 1"
        )
    low, high = threshold
    if not low <= high:
        raise ValueError(f"threshold {low} {high}: the first number must not be above the second")
    labelled = np.select([values >= high, values <= low], [1.0, 0.0], np.nan)
    return pd.Series(labelled, values.index)


def _number_rows(values: pd.Series) -> bool:
    """Whether values look like row numbers or ids: whole, and all different; a few must be consecutive."""
    whole = bool((values == values.round()).all())
    if len(values) < 5 or not whole or values.nunique() < len(values):
        return False
    return len(values) > 20 or values.max() - values.min() == len(values) - 1


def _bare(name: str) -> str:
    """Strip a name of letter case, accents, invisible characters and different ways to write spaces
    and numbers."""
    decomposed = normalize("NFKD", name)
    kept = [c for c in decomposed if category(c) != "Mn" and category(c)[0] != "C"]
    words = re.sub(r"[\s_]+", " ", "".join(kept)).strip().casefold()
    return re.sub(r"^0*(\d+?)(\.0+)?$", r"\1", words)


# Cells that a spreadsheet has changed: large numbers, errors, and dates that were another text.
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_SPREADSHEET = (
    r"[+-]?\d+([.,]\d+)?E[+-]?\d+|#(REF|NAME|VALUE|N/A|DIV/0|NUM)[!?]?"
    rf"|\d\d?-{_MONTH}|{_MONTH}-\d\d"
)


def doubts(people: pd.Series, called: dict | None = None) -> list[str]:
    """Return one line for everything that is strange in identities.

    Parameters
    ----------
    people : series (n,)
        The identity of every image, "" where it is unknown.
    called : dict, optional
        Other names for people, to be used in the lines.
    """
    called = called or {}
    counts = people[people != ""].value_counts().sort_index()

    def shown(name: str) -> str:
        return repr(called.get(name, name))

    by_bare_name = defaultdict(list)
    for name in counts.index:
        by_bare_name[_bare(name)].append(name)
    alike = [names for names in by_bare_name.values() if len(names) > 1]
    nobody = [name for name in counts.index if _is_placeholder(name)]
    damaged = [name for name in counts.index if re.fullmatch(_SPREADSHEET, name, re.IGNORECASE)]
    lines = []
    if alike:
        first, second, *_ = alike[0]
        lines.append(
            f"the identities {shown(first)} and {shown(second)} differ only in letter case, accents, "
            f"spaces, leading zeros or a final .0 ({len(alike)} such cases), and count as different "
            "people; write one name if they are one"
        )
    if nobody:
        lines.append(
            f"the identity {shown(nobody[0])} ({counts[nobody[0]]} images) looks like a placeholder, "
            "and counts as one person; leave the cell empty where the person is not known"
        )
    if damaged:
        lines.append(
            f"the identity {shown(damaged[0])} ({counts[damaged[0]]} images) looks like a cell that a "
            "spreadsheet changed, and may be several people; export the column as text"
        )
    if len(counts) > 20 and counts.max() > max(0.2 * counts.sum(), 10 * counts.median()):
        lines.append(
            f"the identity {shown(counts.idxmax())} has {counts.max()} of {counts.sum()} images, the "
            f"median person {counts.median():g}; is it one person?"
        )
    return lines


def _is_placeholder(name: str) -> bool:
    return name.casefold() in NOBODY or not re.search(r"\w", name)
