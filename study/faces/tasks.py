"""Tasks: what a model predicts, an attribute or several crossed.

``smiling`` has the classes 0 and 1, without and with it. ``smiling x mouth_open`` crosses two attributes to
four classes, of which the first attribute decides the upper half: neither, mouth open, smiling, both.
"""

import numpy as np

CROSS = " x "


def attributes_of(task: str) -> list[str]:
    """The attributes that a task crosses, most often one.

    >>> attributes_of("smiling x mouth_open")
    ['smiling', 'mouth_open']
    """
    return [name.strip() for name in task.split(CROSS)]


def classes_of(task: str) -> int:
    """How many classes a task has: two of an attribute, twice as many for every further one."""
    return 2 ** len(attributes_of(task))


def class_names(task: str) -> list[str]:
    """What the classes of a task are, in their order.

    >>> class_names("smiling x mouth_open")
    ['neither', 'mouth_open', 'smiling', 'smiling, mouth_open']
    """
    attributes = attributes_of(task)
    names = []
    for code in range(2 ** len(attributes)):
        bits = [code >> place & 1 for place in reversed(range(len(attributes)))]
        present = [name for name, bit in zip(attributes, bits, strict=True) if bit]
        names.append(", ".join(present) or ("neither" if len(attributes) == 2 else "none"))
    return names


def crossed(columns: list[np.ndarray]) -> np.ndarray:
    """Classes (n,) from the labels (n,) of several attributes; NaN where one of them is missing."""
    codes = np.zeros(len(columns[0]))
    for labels in columns:
        codes = 2 * codes + labels
    return codes
