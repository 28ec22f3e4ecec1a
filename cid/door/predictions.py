"""Predictions of models as people have them: class names, or scores of a class, told apart and said."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cid.door import tables
from cid.door.tables import Rows


@dataclass(frozen=True)
class Predictions:
    """What models predict of the rows of a table of labels.

    Attributes
    ----------
    classes : dict of str to object array (n,)
        By the model's name, the class of every row, "" where the model has none.
    told : list of str
        A sentence on each model: as what its column was taken.
    """

    classes: dict[str, np.ndarray]
    told: list[str]


def read(
    path, rows: Rows, known: list[str], image: str, positive: str | None = None
) -> Predictions:
    """Read a table of predictions.

    A column is a model, of classes or of scores of one class; ``MODEL:CLASS``, a column for every class, are
    scores of which the largest counts. With ``.npy`` the rows are those of the labels: (n,), or (n, C) scores
    in the order of the classes.

    Parameters
    ----------
    path : path
    rows : Rows
        The labels.
    known : list of str
        All classes, in order.
    image : str
        The column that names images.
    positive : str, optional
        The class that scores are of; by default the last one.

    Raises
    ------
    ValueError
        If the table is of other images, or a column can be no predictions.
    """
    path = Path(path)
    if positive is not None and tables.class_text(positive) not in known:
        raise ValueError(f"--positive {positive} is no class; there are {tables.listed(known)}")
    positive = known[-1] if positive is None else tables.class_text(positive)
    if path.suffix == ".npy":
        values = tables.read_array(path)
        if values.shape[:1] != (len(rows),) or values.shape[1:] not in ((), (len(known),)):
            raise ValueError(
                f"{path} has shape {values.shape}; ({len(rows)},) or ({len(rows)}, {len(known)}) is needed, "
                f"the rows of {rows.where} in their order"
            )
        columns = {"model": values} if values.ndim == 1 else {}
        if values.ndim == 2:
            columns = {f"model:{name}": values[:, c] for c, name in enumerate(known)}
        table = pd.DataFrame(columns).apply(tables.as_text)
    else:
        table = _of_rows(path, rows, image)
    models = _models(table, known, path)
    found = {}
    told = []
    for model, columns in models.items():
        texts, taken_as = _classes(table[columns], known, positive, f"{path}, model {model!r}")
        found[model] = texts
        line = f"model {model!r}: {taken_as}"
        said = set(texts) - {""}
        if len(said) == 1:
            line += f"; it says {said.pop()!r} of every image"
        told.append(line)
    return Predictions(found, told)


def _of_rows(path: Path, rows: Rows, image: str) -> pd.DataFrame:
    """The columns of models, for the rows of the labels in their order."""
    table = tables.read_table(path)
    if not rows.named and image not in table:
        if len(table) == len(rows):
            return table
        raise ValueError(
            f"{path} has {len(table)} rows and {rows.where} {len(rows)}; name the images of both in a column "
            f"{image!r}"
        )
    names = tables.named_rows(table, image, str(path)).names
    twice = pd.Series(names).duplicated()
    if twice.any():
        raise ValueError(f"{path} has two rows of {names[twice.idxmax()]!r}; keep one")
    if len(set(rows.names)) < len(rows):
        twice = pd.Series(rows.names).duplicated()
        name = rows.names[twice.idxmax()]
        raise ValueError(
            f"{rows.where} has two rows of {name!r}, so predictions cannot find theirs; keep one"
        )
    if not set(names) & set(rows.names):
        raise ValueError(
            f"{path} holds predictions of other images: none of its {len(names)} names is in {rows.where}; "
            f"the first are {names[0]!r} and {rows.names[0]!r}"
        )
    table = table.drop(columns=image)
    table.index = names
    return table.reindex(rows.names).reset_index(drop=True)


def _models(table: pd.DataFrame, known: list[str], path: Path) -> dict[str, list[str]]:
    """Return the columns of every model: one, or one for each class."""
    models: dict[str, list[str]] = {}
    for column in table:
        model, colon, name = str(column).rpartition(":")
        if colon and tables.class_text(name) in known:
            models.setdefault(model, []).append(column)
        elif column:  # one without a name holds the numbers of the rows
            models.setdefault(column, []).append(column)
    for model, columns in models.items():
        named = [tables.class_text(column.rpartition(":")[2]) for column in columns]
        if columns != [model] and sorted(named) != sorted(known):
            raise ValueError(
                f"{path}: model {model!r} has columns of {tables.listed(named)}, but the classes are "
                f"{tables.listed(known)}; give a column {model}:CLASS for each"
            )
    if not models:
        raise ValueError(f"{path} has no column of a model beside that of the images")
    return models


def _classes(
    columns: pd.DataFrame, known: list[str], positive: str, where: str
) -> tuple[np.ndarray, str]:
    """Return the class that a model predicts of every row, and as what its columns were taken."""
    if columns.shape[1] > 1:
        scores = np.column_stack([_numbers(columns[name], where) for name in columns])
        named = [tables.class_text(name.rpartition(":")[2]) for name in columns]
        chosen = np.array(named, dtype=object)[np.nan_to_num(scores, nan=-np.inf).argmax(axis=1)]
        whole = ~np.isnan(scores).any(axis=1)
        return np.where(whole, chosen, ""), "scores of every class; the largest counts"
    cells = columns.iloc[:, 0]
    texts = np.array([tables.class_text(cell) for cell in cells], dtype=object)
    said = set(texts) - {""}
    if not said:
        raise ValueError(f"{where} predicts nothing of these images; its cells are empty")
    if said <= set(known):
        return texts, "classes"
    truths = dict(zip(("true", "false"), ("1", "0"), strict=True))
    written = {truths.get(name.lower(), name): name for name in known}
    same = {text: written.get(truths.get(text.lower(), text), "") for text in said}
    if set(known) == set(written.values()) and all(same.values()):  # true and false are 1 and 0
        return np.array([same.get(text, "") for text in texts], dtype=object), "classes"
    strange = sorted(text for text in said - set(known) if not tables.is_number(text))
    if strange:
        raise ValueError(
            f"{where} holds {strange[0]!r}, which is no class ({tables.listed(known)}) and no number"
        )
    if len(known) > 2:
        example = sorted(said - set(known))[0]
        raise ValueError(
            f"{where} holds {example}, and no class of that name; of {len(known)} classes, scores need a "
            f"column MODEL:CLASS for each ({tables.listed(known)})"
        )
    return _of_scores(_numbers(cells, where), known, positive, where)


def _of_scores(
    scores: np.ndarray, known: list[str], positive: str, where: str
) -> tuple[np.ndarray, str]:
    """Cut scores of one of two classes: probabilities at .5, logits at 0."""
    low = np.nanmin(scores)
    high = np.nanmax(scores)
    if 0 <= low and high <= 1:
        kind = "probabilities"
        cut = 0.5
    elif low < 0 < high:
        kind = "logits"
        cut = 0.0
    else:
        raise ValueError(
            f"{where} holds numbers from {low:g} to {high:g}: neither classes ({tables.listed(known)}), nor "
            "probabilities (0 to 1), nor logits (below and above 0)"
        )
    other = next(name for name in known if name != positive)
    texts = np.where(scores >= cut, positive, other).astype(object)
    texts[np.isnan(scores)] = ""
    return texts, f"{kind} of class {positive!r}, cut at {cut:g}"


def _numbers(cells: pd.Series, where: str) -> np.ndarray:
    try:
        numbers = cells.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise ValueError(f"{where} mixes texts and numbers; write classes, or scores") from None
    if np.isinf(numbers).any():
        raise ValueError(f"{where} holds infinite scores; write classes instead")
    return numbers
