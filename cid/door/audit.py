"""``python -m cid audit``: how models serve the people whose label is unusual for them."""

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cid.door import doubted, page, predictions, tables
from cid.door.faces import say
from cid.door.inputs import Given, embedded, keep_read, labelled, opened, tell_left_out
from cid.door.tables import Rows
from cid.door.weigh import only_column, say_time

REFUSED = 3  # the exit status
TABLE = "audit.csv"
SIDES = ("train", "test")
ALIKE = {  # other words for the two sides
    "train": ("train", "training", "0"),
    "test": ("test", "testing", "val", "valid", "validation", "holdout", "eval", "1", "2"),
}
COLUMNS = ("model", "measure", "estimate", "low", "high", "images")
NO_PREDICTION = "a model predicts nothing of it"


def run(options: Namespace) -> int:
    """Audit the models; leave a page and a table; return 0, or 3 where the audit refuses."""
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    keep_read(options, folder / page.NAME, folder / TABLE)
    found = opened(options)
    rows = found.rows
    sides = split_sides(rows, options.split)
    label = options.label or only_column(rows.table, (options.split,), rows.where)
    if label == options.split:
        raise ValueError(f"column {label!r} cannot be the label and the split; name another")
    _, known, _ = labelled(rows, label)
    image = options.image or tables.IMAGE
    models = predictions.read(options.predictions, rows, known, image, options.positive)
    for line in models.told:
        print(line)
    got = embedded(found, options, folder, [label, options.split])
    texts, known, reasons = labelled(rows, label, got.reasons)
    reasons = _with_sides(reasons, sides, options.split)
    for classes in models.classes.values():
        for row in np.flatnonzero((classes == "") & (sides == "test")):
            reasons[row] = reasons[row] or NO_PREDICTION
    tell_left_out(reasons)
    usable = np.array([not reason for reason in reasons])
    train = usable & (sides == "train")
    test = usable & (sides == "test")
    check_sides(train, test, options.split)
    _check_classes(texts, train, test, label)
    print(f"images: {train.sum():,} trained, {test.sum():,} are audited, of {len(known)} classes")
    result = _audited(got, texts, train, test, models.classes, options)
    return _leave(result, folder, options, int(train.sum()), int(test.sum()))


def split_sides(rows: Rows, column: str) -> np.ndarray:
    """Return the side of every row: "train", "test" or "" where it is on none; object array (n,).

    ValueError if the column holds other words, or one side only.
    """
    cells = rows.column(column, "which images trained: train or test")
    words = np.array([tables.class_text(cell).lower() for cell in cells], dtype=object)
    sides = np.full(len(words), "", dtype=object)
    for side in SIDES:
        sides[np.isin(words, ALIKE[side])] = side
    strange = (sides == "") & (words != "")
    if strange.any():
        raise ValueError(
            f"{rows.where}, column {column!r} holds {cells.iloc[strange.argmax()]!r}; write train or test"
        )
    taken = {side: tables.in_order(set(words[sides == side])) for side in SIDES}
    if any(names not in ([], [side]) for side, names in taken.items()):
        said = [f"{', '.join(map(repr, names))} for {side}" for side, names in taken.items()]
        say(f"column {column!r} of {rows.where}: taken are {'; '.join(said)}")
    missing = [side for side in SIDES if side not in sides]
    if missing:
        raise ValueError(
            f"column {column!r} of {rows.where} has no row of {missing[0]!r}; both are needed"
        )
    return sides


def check_sides(train: np.ndarray, test: np.ndarray, column: str) -> None:
    """Refuse a side of which no image is left."""
    for side, rows in zip(SIDES, (train, test), strict=True):
        if not rows.any():
            raise ValueError(
                f"no image of the side {side!r} (column {column!r}) can be used; the line above says why"
            )


def _check_classes(texts: np.ndarray, train: np.ndarray, test: np.ndarray, column: str) -> None:
    """Refuse training images of one class, and test images of a class that no training image has."""
    trained = set(texts[train])
    if len(trained) < 2:
        raise ValueError(
            f"column {column!r}: the {train.sum():,} training images that can be used are all "
            f"{trained.pop()!r}; two classes are needed to tell what is unusual"
        )
    new = tables.in_order(set(texts[test]) - trained)
    if new:
        raise ValueError(
            f"column {column!r}: {(texts[test] == new[0]).sum():,} test images are {new[0]!r}, and no training "
            "image is; leave their labels empty, or split anew"
        )


def _with_sides(reasons: list[str], sides: np.ndarray, column: str) -> list[str]:
    return [
        reason or ("" if side else f"no side in column {column}")
        for reason, side in zip(reasons, sides, strict=True)
    ]


def _audited(got: Given, texts, train, test, models: Mapping[str, np.ndarray], options: Namespace):
    """Call :func:`cid.auditing.audit` for the images of both sides."""
    from cid.auditing import audit

    labels = texts.astype(str)
    used = train | test
    known = np.array(tables.in_order(set(labels[used])))
    features = {}
    if options.trust == "yes" and doubted.can_judge(got, labels[used], "the audit"):
        features = {"train_features": got.features[train], "test_features": got.features[test]}
    say_time(int(used.sum()), got.embedding.shape[1])
    return audit(
        got.embedding[train],
        labels[train],
        got.embedding[test],
        labels[test],
        predictions={name: classes[test].astype(str) for name, classes in models.items()},
        **features,
        classes=known,
        seed=options.seed,
        device=options.device,
    )


def _leave(result, folder: Path, options: Namespace, trained: int, audited: int) -> int:
    """Write page and table, say what they say, and return the exit status.

    Where the audit refuses, neither holds a number: nobody should copy one out of it.
    """
    shown = [] if result.refusal else list(result.estimates)
    if shown and result.wrong is not None:
        shown.append(result.wrong)
    table = pd.DataFrame(
        [[getattr(row, name) for name in COLUMNS] for row in shown], columns=COLUMNS
    )
    tables.write_table(folder / TABLE, table)
    text = page.page(result, trained, audited, Path(options.predictions).name)
    tables.write(folder / page.NAME, lambda file: file.write(text.encode()))
    if result.refusal:
        print(f"refused: {result.refusal}", file=sys.stderr)
        return REFUSED
    for line in page.lines(result):
        print(line)
    if result.wrong is not None:
        print(page.wrong_labels(result.wrong))
    say(f"written: {folder / page.NAME} and {folder / TABLE}")
    return 0
