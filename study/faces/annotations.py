"""Tables that say who and what is in photographs, as people have them: read, or refused in a line.

What has one meaning only is read: separators of columns and paths, letter case of yes and no,
decimal commas. What could mean two things is refused by a ValueError that names the place and the
remedy.
"""

import csv
import io
import posixpath
import re
from collections import defaultdict
from pathlib import Path
from unicodedata import category, normalize

import numpy as np
import pandas as pd

# What tables write where there is no number, an empty cell and no name.
MISSING = (-1, -9, -99, -999, -9999, 9, 88, 98, 99, 888, 998, 999, 9999)
EMPTY = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None")
NOBODY = ("unknown", "unbekannt", "anonymous", "nobody", "none", "null", "nan", "na", "n/a", "undefined",
          "missing", "tbd", "n.n.", "xxx", "other", "others")  # fmt: skip


def read_csv(path) -> pd.DataFrame:
    """A table as text, with commas, semicolons, tabs or bars; a row's index is its line, from 0."""
    try:
        content = Path(path).read_bytes()
        if posing(content):
            raise ValueError(posing(content))
        text = content.decode("utf-8-sig")
        separator = max(",;\t|", key=text.lstrip().partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, r) for r in reader if len(r) > 1 or "".join(r).strip()]
        if not rows:
            raise ValueError("it is empty")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not a readable CSV (it is no text in UTF-8); save it as CSV UTF-8"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable CSV ({error})") from None
    (first, names), *rows = rows
    names = [" ".join(name.split()) for name in names]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}; rename or remove one")
    for line, row in rows:
        if len(row) != len(names):  # is a cell missing, and which?
            raise ValueError(
                f"{path}, line {line} has {len(row)} cells, but line {first}, which names the columns, "
                f"{len(names)}; leave unknown cells empty, and quote what holds {separator!r}"
            )
    cells = [[np.nan if cell.strip() in EMPTY else cell for cell in row] for _, row in rows]
    return pd.DataFrame(cells, [line - 1 for line, _ in rows], names, dtype=object)


def read_celeba(folder: Path, name: str, header=False) -> tuple[Path, pd.DataFrame | None]:
    """A table of CelebA by image, None if missing, after its path; of numbers if of a header.

    Official tables are separated by spaces, and some begin with a count and a header. Copies of them
    have commas, or a header more, or no count.
    """
    ends = [f"{part}{name}.{end}" for end in ("txt", "csv") for part in ("", "Anno/", "Eval/")]
    path = next((folder / end for end in ends if (folder / end).exists()), None)
    if path is None:
        return folder / ends[0], None
    content = path.read_bytes()
    try:
        if posing(content):
            raise ValueError(posing(content))
        first, _, rest = content.decode("utf-8-sig").partition("\n")
        count = int(first) if first.strip().isdigit() else None
        if count is not None:
            first, _, rest = rest.partition("\n")
        if not first.strip():
            raise ValueError("it is empty")
        comma, named = "," in first, "." not in first.replace(",", " ").split()[0]
        if header and not named:
            raise ValueError("it has no line of names")
        table = pd.read_csv(
            io.StringIO(rest if named else f"{first}\n{rest}"), sep="," if comma else r"\s+",
            header=None, index_col=0, skipinitialspace=True, dtype={0: str} if header else str,
        ).rename_axis("image")  # fmt: skip
        if header:
            names = [part.strip() for part in first.split("," if comma else None)]
            if table.isna().any(axis=None):
                raise ValueError(f"it lacks a value of {table.index[table.isna().any(axis=1)][0]}")
            table = table.set_axis(names[-table.shape[1] :], axis=1).astype(int)
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"it has two columns {twice[0]}")
        if table.empty or not table.shape[1]:
            raise ValueError("it has no second column, after a space or comma")
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            raise ValueError(f"it has two rows of {twice}")
    except (ValueError, IndexError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is not a table of CelebA ({why}); fetch it again") from None
    if count not in (None, len(table)):
        raise ValueError(f"{path} announces {count} rows and has {len(table)}; fetch it again")
    return path, table


def posing(content: bytes) -> str:
    """What has been stored in place of a file by its first bytes; empty if nothing known."""
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, get the file by `git lfs pull`"
    page = re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)", content[:200], re.IGNORECASE)
    return "a web page" if page else ""


def plain(path: str) -> str:
    """A path with ``/``, without ``./``, in Unicode NFC, which tables and file systems differ in."""
    return posixpath.normpath(normalize("NFC", path.replace("\\", "/")))


def inside(name: str, where: str) -> str:
    """The path of an image as paths are compared; ValueError if it leads out of the folder."""
    path = plain(name)
    if path.startswith(("/", "../")) or path == ".." or re.match("[A-Za-z]:", path):
        raise ValueError(
            f"{where}, column 'image': {name!r} leads out of the folder of images; write paths in it"
        )
    return path


def explain_strangers(folder, labels, present: list[str], names: list[str]) -> None:
    """ValueError if none of the images of a table is there: what differs, with an example."""
    if not present or not names or any((Path(folder) / name).is_file() for name in names):
        return
    alike = {
        "they differ in letter case": str.casefold,
        "they differ in the extension": lambda name: posixpath.splitext(name)[0],
        "they differ in the folders in front": posixpath.basename,
    }
    name, file, cause = names[0], present[0], "name the folder in which the paths begin"
    for why, key in alike.items():
        files = {key(file): file for file in present}
        if match := next((name for name in names if key(name) in files), None):
            name, file, cause = match, files[key(match)], why
            break
    raise ValueError(
        f"none of the {len(names)} images in {labels} is in {folder}: the table has {name!r}, the "
        f"folder {file!r}; {cause}"
    )


def votes(cells: pd.Series, labels, threshold) -> pd.Series:
    """What a column of text says of every image: 0.0, 1.0, or NaN for a label that is missing.

    Columns of 0 and 1, -1 and 1, yes and no, or true and false (also as percentages, with decimal
    commas, in any letter case) are read as they are. Others need a ``threshold`` of two numbers: a
    value counts as 1 from the second on, as 0 up to the first (as 1 if both hold), and between the
    two as missing. ValueError if there is none, and on what looks like a code for a missing label.
    """
    text = cells.str.strip().str.lower().replace("", np.nan)
    text = text.replace({"true": "1", "yes": "1", "false": "0", "no": "0"})
    values = pd.to_numeric(text.str.rstrip("%").str.replace(",", "."), errors="coerce")
    percent = text.str.endswith("%", na=False)
    values = values / np.where(percent, 100, 1)

    def refuse(rows, problem: str):
        if rows.any():
            line = rows.idxmax() + 1
            problem = problem.format(repr(cells[rows.idxmax()]))
            raise ValueError(f"{labels}, line {line}, column {cells.name!r}: {problem}")

    odd = values.isna() & text.notna() | np.isinf(values)
    refuse(odd, "{} is not a number, nor yes, no, true or false; leave the cell empty if unknown")
    comma = "{} may have its comma before decimals or thousands; write a point, or leave it out"
    refuse(text.str.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+%?", na=False), comma)
    bare = "{} has no percent sign, which others have; write all in one way"
    refuse(~percent & (values.abs() > 1) & percent.any(), bare)
    found = sorted(set(values.dropna()))
    if set(found) <= {0, 1} or set(found) <= {-1, 1}:
        return (values > 0).astype(float).where(values.notna())
    numbers = [value for value in found if value not in MISSING] or [0]
    signed, above = min(numbers) < 0, max(numbers) > 1
    codes = [v for v in found if v in MISSING and not (signed if v < 0 else above)]
    refuse(
        values.isin(codes),
        "{} looks like a code for a label that is missing; leave such cells empty",
    )
    if threshold is None:
        shown = ", ".join(f"{value:g}" for value in found[:5]) + ", ..." * (len(found) > 5)
        raise ValueError(
            f"{labels}, column {cells.name!r}: its {len(found)} values ({shown}) are not 0 and 1; "
            "say by --threshold LOW HIGH up to where a value counts as 0 and from where on as 1"
        )
    low, high = threshold
    if not low <= high:
        raise ValueError(f"threshold {low} {high}: the first number must not be above the second")
    votes = np.select([values >= high, values <= low], [1.0, 0.0], np.nan)
    return pd.Series(votes, values.index)


def _bare(name: str) -> str:
    """What of a name is left without letter case, accents, invisible signs and forms of spaces and
    numbers."""
    letters = (c for c in normalize("NFKD", name) if category(c) != "Mn" and category(c)[0] != "C")
    words = re.sub(r"[\s_]+", " ", "".join(letters)).strip().casefold()
    return re.sub(r"^0*(\d+?)(\.0+)?$", r"\1", words)


def doubts(people: pd.Series, called: dict | None = None) -> list[str]:
    """A line for whatever is strange in identities, one an image; ``called`` renames examples."""
    counts, called = people[people != ""].value_counts().sort_index(), called or {}

    def say(name: str) -> str:
        return repr(called.get(name, name))

    alike = defaultdict(list)
    for name in counts.index:
        alike[_bare(name)].append(name)
    alike = [group for group in alike.values() if len(group) > 1]
    nobody = [n for n in counts.index if n.casefold() in NOBODY or not re.search(r"\w", n)]
    month = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"  # of a date that was another text
    broken = r"[+-]?\d+([.,]\d+)?E[+-]?\d+|#(REF|NAME|VALUE|N/A|DIV/0|NUM)[!?]?"
    broken = rf"{broken}|\d\d?-{month}|{month}-\d\d"
    damaged = [name for name in counts.index if re.fullmatch(broken, name, re.IGNORECASE)]
    lines = []
    if alike:
        first, second, *_ = alike[0]
        lines.append(
            f"the identities {say(first)} and {say(second)} differ only in letter case, accents, "
            f"spaces, leading zeros or a final .0 ({len(alike)} such cases), and count as different "
            "people; write one name if they are one"
        )
    if nobody:
        lines.append(
            f"the identity {say(nobody[0])} ({counts[nobody[0]]} images) looks like a placeholder, "
            "and counts as one person; leave the cell empty where the person is not known"
        )
    if damaged:
        lines.append(
            f"the identity {say(damaged[0])} ({counts[damaged[0]]} images) looks like a cell that a "
            "spreadsheet changed, and may be several people; export the column as text"
        )
    if len(counts) > 20 and counts.max() > max(0.2 * counts.sum(), 10 * counts.median()):
        lines.append(
            f"the identity {say(counts.idxmax())} has {counts.max()} of {counts.sum()} images, the "
            f"median person {counts.median():g}; is it one person?"
        )
    return lines
