"""Tables as people have them, CSV or Parquet: read as text, matched by column name, written complete."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cid.names import suggest

IMAGE = "image"  # the column that names the image of a row
EMPTY = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None")
MEASURED = 20  # whole numbers with more values than this may be a measurement, such as an age
ODD = ("-1", "9", "99", "-9", "-99", "999")  # beside 0 and 1 these more often mean "not known"


@dataclass(frozen=True)
class Rows:
    """A table of labels.

    Attributes
    ----------
    table : DataFrame (n rows)
        Texts; NaN where a cell is empty.
    names : list of str
        The image of each row; numbers from 0 where the table has no such column.
    named : bool
        Whether it has one.
    where : str
        The file, for messages.
    """

    table: pd.DataFrame
    names: list[str]
    named: bool
    where: str

    def __len__(self) -> int:
        return len(self.names)

    def column(self, name: str, role: str) -> pd.Series:
        """Return a column; ValueError with what there is, if it is missing."""
        if name in self.table:
            return self.table[name]
        raise ValueError(
            f"{self.where} has no column {name!r} ({role}){suggest(name, self.table.columns)}; it has "
            f"{listed(self.table.columns)}"
        )


def read_rows(path, image: str | None = None, need_names: bool = True) -> Rows:
    """Read a table of labels; with ``.npy`` its only column is called ``label``.

    Parameters
    ----------
    path : path
    image : str, optional
        The column that names the images; by default :data:`IMAGE`.
    need_names : bool
        Refuse a table without that column.
    """
    table = read_table(path)
    if image is None and IMAGE not in table and not need_names:
        return Rows(table, [str(row) for row in range(len(table))], False, str(path))
    return named_rows(table, image or IMAGE, str(path))


def named_rows(table: pd.DataFrame, image: str, where: str) -> Rows:
    """Return the rows of a table that names its images; ValueError if it does not."""
    rows = Rows(table, [""] * len(table), True, where)
    names = rows.column(image, "the file of each image")
    if names.isna().any():
        line = int(np.flatnonzero(names.isna())[0])
        raise ValueError(f"{where}, row {line + 1} names no image in column {image!r}; fill it in")
    return Rows(table, [name.strip() for name in names], True, where)


def read_table(path, text: bool = True) -> pd.DataFrame:
    """Read a CSV, Parquet or ``.npy`` file; every cell is a text, or NaN where it is empty.

    Without ``text`` cells of Parquet stay as they are. A ValueError names the file, and the line where there
    is one.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {what}; name a CSV, Parquet or .npy file")
    if path.suffix == ".npy":
        values = read_array(path)
        if values.ndim != 1:
            raise ValueError(f"{path} has shape {values.shape}; a table of one column is (n,)")
        table = pd.DataFrame({"label": values})
    elif path.suffix in (".parquet", ".pq"):
        table = _read_parquet(path)
    else:
        return read_csv(path)
    return table.apply(as_text) if text else table


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return without_row_numbers(pq.read_table(path).to_pandas(ignore_metadata=True))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a readable Parquet file ({reason})") from None


def without_row_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Drop what pandas adds to Parquet files where rows have no names; an index with a name is a column."""
    return table.drop(columns=[name for name in table if str(name).startswith("__index_level_")])


def as_text(cells: pd.Series) -> pd.Series:
    """Return cells as texts, NaN where they are empty; lists and structs stay as they are."""

    def text(cell):
        if isinstance(cell, (list, dict, np.ndarray)):
            return cell
        if cell is None or pd.isna(cell) or str(cell).strip() in EMPTY:
            return np.nan
        return str(cell)

    return cells.map(text).astype(object)


def read_csv(path) -> pd.DataFrame:
    """Read a table as text, separated by commas, semicolons, tabs or bars."""
    try:
        content = Path(path).read_bytes()
        problem = posing(content) or _no_table(content)
        if problem:
            raise ValueError(problem)
        lines, separator = csv_lines(content)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; save it as CSV UTF-8") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is not a readable CSV ({error}); save it again") from None
    if len(lines) < 2:
        raise ValueError(f"{path} has no rows below its line of column names")
    return csv_table(lines, separator, path).reset_index(drop=True)


def csv_lines(content: bytes) -> tuple[list[tuple[int, list[str]]], str]:
    """Split a CSV into its lines, each with its number in the file, and tell the separator.

    Blank lines are passed over. UnicodeDecodeError if it is no text in UTF-8, ``csv.Error`` if it is no CSV.
    """
    text = content.decode("utf-8-sig")
    separator = max(",;\t|", key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines = [(reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()]
    return lines, separator


def csv_table(lines: Sequence[tuple[int, list[str]]], separator: str, path) -> pd.DataFrame:
    """Make a table of lines, the first of which names the columns; its index is the line, from 0.

    ValueError if two columns have one name, or a line has more or fewer cells than there are columns.
    """
    (first, names), *lines = lines
    names = [" ".join(name.split()) for name in names]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}; rename or remove one")
    for line, row in lines:
        if len(row) != len(names):  # nobody knows which cell is missing
            raise ValueError(
                f"{path}, line {line} has {len(row)} cells, but line {first}, which names the columns, "
                f"{len(names)}; leave unknown cells empty, and quote what holds {separator!r}"
            )
    cells = [[np.nan if cell.strip() in EMPTY else cell for cell in row] for _, row in lines]
    index = [line - 1 for line, _ in lines]
    return pd.DataFrame(cells, index=index, columns=names, dtype=object)


def posing(content: bytes) -> str:
    """Say what was stored in place of a file, from its first bytes; empty if it is nothing known."""
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, get the file by `git lfs pull`"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)", content[:200], re.IGNORECASE):
        return "a web page"
    return ""


def _no_table(content: bytes) -> str:
    if content.startswith(b"PK"):
        return "a spreadsheet or an archive"
    return "no text" if b"\0" in content[:1000] and not content.startswith(b"\xff\xfe") else ""


def read_array(path) -> np.ndarray:
    """Read a ``.npy`` file without copying it into memory; ValueError if it is none."""
    try:
        with open(path, "rb") as file:
            if not file.read(6).startswith(b"\x93NUMPY"):
                raise ValueError("it is another kind of file")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; name a .npy file") from None
    except (ValueError, EOFError, OSError) as error:
        reason = "it holds Python objects" if "Python objects" in str(error) else str(error)
        raise ValueError(f"{path} is not a readable .npy file ({reason}); save numbers") from None


def classes(cells: pd.Series, where: str) -> tuple[np.ndarray, list[str]]:
    """Read cells as classes: text, or whole numbers in any spelling (1, 1.0, 1.0000).

    Returns
    -------
    texts : object array (n,)
        The class of every row, "" where there is none.
    known : list of str
        All classes; numbers in their order, else in alphabetical order.

    Raises
    ------
    ValueError
        If numbers are no whole ones: a measurement must be cut first.
    """
    texts = np.array([class_text(cell) for cell in cells], dtype=object)
    known = in_order(set(texts) - {""})
    endless = [name for name in known if name.lower().lstrip("+-") in ("inf", "infinity")]
    if endless or known and all(is_number(name) for name in known):
        broken = next((n for n in known if n in endless or not float(n).is_integer()), None)
        if broken is not None:
            raise ValueError(
                f"{where}, column {cells.name!r} holds {broken!r}, which is no class but a measurement; "
                "cut it at a threshold and write 0 and 1"
            )
    return texts, known


def class_text(cell) -> str:
    """Return how a class is written here, "" for an empty cell: ``1.0000`` and ``1`` are the same class."""
    if isinstance(cell, float) and np.isnan(cell):
        return ""
    text = str(cell).strip()
    return re.sub(r"^([+-]?\d+)\.0*$", r"\1", text)


def in_order(names) -> list[str]:
    """Sort classes: numbers by value, else by alphabet."""
    if all(is_number(name) for name in names):
        return sorted(names, key=float)
    return sorted(names)


def is_number(text: str) -> bool:
    """Return whether a text is a finite number."""
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def doubts(texts: Sequence[str], known: list[str], column: str) -> list[str]:
    """Return a sentence on everything that is strange about classes."""
    lines = []
    counts = Counter(texts)
    if len(known) > MEASURED and all(is_number(name) for name in known):
        lines.append(
            f"column {column!r} holds {len(known)} different numbers, each taken as a class of its own; "
            "if they are a measurement, such as an age, cut it at a threshold first"
        )
    folded = Counter(name.casefold() for name in known)
    alike = [name for name in known if folded[name.casefold()] > 1]
    if alike:
        lines.append(
            f"classes {alike[0]!r} and {alike[1]!r} differ in letter case alone, and count as two; write "
            "one name if they are one"
        )
    odd = [name for name in known if name in ODD]
    if odd and {"0", "1"} < set(known) and len(known) == 2 + len(odd):
        lines.append(
            f"class {odd[0]!r} ({counts[odd[0]]} images) stands beside 0 and 1; if it means that the label "
            "is not known, leave these cells empty"
        )
    return lines


def listed(names, most: int = 12) -> str:
    """Write names one after the other, the first few of many."""
    names = [str(name) for name in names]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def written_twice(rows: Rows, contents: Sequence[tuple]) -> list[str]:
    """Return a reason for every row whose image stands in another row, too, else "".

    Of rows with the same ``contents`` the first is good; of others none, as nobody knows which is right.
    """
    places: dict[str, list[int]] = {}
    for row, name in enumerate(rows.names):
        places.setdefault(name, []).append(row)
    reasons = [""] * len(rows)
    for same in places.values():
        if len(same) == 1:
            continue
        if len({contents[row] for row in same}) > 1:
            for row in same:
                reasons[row] = "listed twice with different values"
        else:
            for row in same[1:]:
                reasons[row] = "listed again in another row"
    return reasons


def write_table(path, table: pd.DataFrame) -> None:
    """Write a table as Parquet or CSV, by the name of the file; it appears complete or not at all."""
    path = Path(path)
    if path.suffix in (".parquet", ".pq"):
        write(path, lambda file: table.to_parquet(file, index=False))
    else:
        text = table.to_csv(index=False)
        write(path, lambda file: file.write(text.encode()))


def write(path: Path, save, mode: int = 0o666) -> None:
    """Write a file by ``save(open file)``; it appears complete or not at all.

    ``mode`` says who may read it, before the user's own mask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            save(file)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
