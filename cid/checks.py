"""What a caller hands over: taken as it is meant, or refused in one sentence that names it."""

import sys

import numpy as np

LARGEST = sys.float_info.max
# What a number may be: in words, and as a check of it.
POSITIVE = "a number greater than 0", lambda value: 0 < value <= LARGEST
EXPONENT = "a number from -1e6 to 1e6", lambda value: -1e6 <= value <= 1e6
WHOLE = "a whole number of at least 0", lambda value: 0 <= value <= sys.maxsize
COUNT = "a whole number of at least 1", lambda value: 1 <= value <= sys.maxsize
BOOL = "true or false", lambda value: True


def number(name: str, value, may_be: tuple, kind: type = float, auto: bool = False):
    """A Python, NumPy or torch scalar as a plain number: a float, an int or (of 0 or 1) a bool.

    With ``auto`` the text "auto" may stand for it.
    """
    wanted, holds = may_be
    if auto and isinstance(value, str) and value == "auto":
        return value
    wanted = "'auto' or " * auto + wanted
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    real = isinstance(plain, int | float) and (kind is bool or not isinstance(plain, bool))
    if not (real and holds(plain) and kind(plain) == plain):
        raise ValueError(f"{name} is {' '.join(repr(value).split())[:60]}; it must be {wanted}")
    return kind(plain)


def array(name: str, values) -> np.ndarray:
    """Values of any kind that NumPy can read, none of them masked, as an array on the CPU."""
    if hasattr(values, "detach"):  # a tensor, of which NumPy lacks some types
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    if np.ma.is_masked(values):
        raise ValueError(f"{name} hold masked values; fill them in or remove these samples")
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        problem = str(error).partition(". ")[0]
        raise ValueError(f"{name} are no array ({problem}); hand over one") from None


def reals(name: str, values) -> np.ndarray:
    """Values as a float64 array; a ValueError if they are no real numbers, masked or ragged."""
    found = array(name, values)
    try:
        if found.dtype.kind in "biuf" or found.dtype.kind == "O" and found.ndim:
            return found.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} ({type(values).__name__}) hold no real numbers; convert them")


def class_codes(labels, n: int | None = None, name: str = "labels") -> tuple[np.ndarray, int]:
    """Labels as codes 0..C-1 in their order, int (n,), and C.

    A class is a whole number, a truth value, a text or a date. ValueError on anything else, on what is
    missing in whatever way NumPy and pandas have for it, and on another number of labels than ``n``.
    """
    values = array(name, labels)
    if values.dtype.kind == "U" and not hasattr(labels, "dtype"):
        values = np.asarray(labels, dtype=object)  # as text, NaN in a list would be a class
    if values.ndim != 1 or n is not None and len(values) != n:
        found = f"{name} have shape {values.shape}" + (f" but there are {n} samples" if n else "")
        raise ValueError(f"{found}; one each is needed")
    if values.dtype.kind in "cV":
        raise ValueError(f"{name} are {values.dtype}; number the classes by integers")
    if values.dtype.kind == "f":
        wrong = ~np.isfinite(values) | (values != np.trunc(values))
    elif values.dtype.kind == "O":
        wrong = np.fromiter(map(_no_class, values), bool, len(values))
    elif values.dtype.kind == "U":  # what was missing where an array of texts was made
        wrong = np.isin(values, ["nan", "NaN", "NaT", "<NA>"])
    else:
        wrong = values != values  # not a time
    if wrong.any():
        at = wrong.argmax()
        remedy = "fill in what is missing, and cut what is measured at a threshold"
        raise ValueError(f"{name} hold {values[at]} in row {at}, which is no class; {remedy}")
    try:
        classes, codes = np.unique(values, return_inverse=True)
    except TypeError:
        kinds = " and ".join(sorted({type(value).__name__ for value in values}))
        raise ValueError(f"{name} mix {kinds}; let all be of one type") from None
    return codes, len(classes)


def _no_class(value) -> bool:
    try:
        if hasattr(value, "as_integer_ratio") and not isinstance(value, int):  # decimals, fractions
            return not float(value).is_integer()
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither
        return True
