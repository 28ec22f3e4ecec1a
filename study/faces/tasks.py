"""Tasks: what a model predicts, an attribute or several together.

- ``smiling``: the classes 0 and 1, without and with it.
- ``smiling x mouth_open``: two attributes crossed, four classes: neither, mouth open, smiling, both.
- ``happy | sad | angry``: one of several attributes that exclude each other, such as expressions; three
  classes, in this order. An image with none of them, or with two, has no label.
"""

from collections.abc import Iterable

import numpy as np

CROSS = " x "
EITHER = " | "


def attributes_of(task: str) -> list[str]:
    """The attributes that a task is made of, most often one.

    >>> attributes_of("smiling x mouth_open")
    ['smiling', 'mouth_open']
    >>> attributes_of("happy | sad | angry")
    ['happy', 'sad', 'angry']
    """
    return [name.strip() for name in task.split(EITHER if EITHER in task else CROSS)]


def classes_of(task: str) -> int:
    """How many classes a task has.

    >>> [classes_of(task) for task in ("smiling", "smiling x mouth_open", "happy | sad | angry")]
    [2, 4, 3]
    """
    attributes = attributes_of(task)
    return len(attributes) if EITHER in task else 2 ** len(attributes)


def class_names(task: str) -> list[str]:
    """What the classes of a task are, in their order.

    >>> class_names("smiling x mouth_open")
    ['neither', 'mouth_open', 'smiling', 'smiling and mouth_open']
    """
    attributes = attributes_of(task)
    if EITHER in task:
        return attributes
    names = []
    for code in range(2 ** len(attributes)):
        bits = [code >> place & 1 for place in reversed(range(len(attributes)))]
        present = [name for name, bit in zip(attributes, bits, strict=True) if bit]
        names.append(" and ".join(present) or ("neither" if len(attributes) == 2 else "none"))
    return names


def task_labels(data, task: str) -> np.ndarray:
    """Return the classes of a task, from 0: int64 (n,), or float64 with NaN where there is none.

    ``data`` has ``labels(attribute)``, such as :class:`study.faces.dataset.Labels`, whose ValueError names an
    attribute that there is none of.
    """
    columns = [data.labels(attribute) for attribute in attributes_of(task)]
    if EITHER in task:
        present = np.stack(columns, axis=1)
        one = present.sum(axis=1) == 1  # not where a label is missing, as a sum with NaN is NaN
        classes = present.argmax(axis=1)
        return classes if one.all() else np.where(one, classes, np.nan)
    classes = columns[0]
    for labels in columns[1:]:
        classes = 2 * classes + labels
    return classes


def some_of_each_class(labels, groups: Iterable, columns: int = 10) -> list[int]:
    """Choose rows of a data set to be shown, group after group, equally many of each class side by side.

    ``labels`` (n,) are classes from 0, of the whole data set; ``groups`` hold rows of it. A group gives one
    line of at most ``columns`` images, and none where it has too few of a class.
    """
    labels = np.asarray(labels)
    classes = int(np.nanmax(labels)) + 1
    number = columns // classes
    chosen = []
    for rows in groups:
        rows = np.asarray(rows)
        line = [rows[labels[rows] == code][:number] for code in range(classes)]
        if all(len(own) == number for own in line):
            chosen += np.concatenate(line).tolist()
    return chosen
