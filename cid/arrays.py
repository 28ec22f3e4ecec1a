"""Arrays at the door of the library: converted where the meaning is clear, refused where it is not.

Every error is a ValueError of one sentence that names the argument and says what to do. Results go
back as what came in: the same kind of array, the same floating type, the same device.
"""

import sys
import warnings

import numpy as np
import torch

BLOCK = 1024  # rows at a time: 4 MiB of float32, large enough for a fast product, small for a cache
MANY_CLASSES = 20  # more integer values than this are more often a measurement than classes


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device of a name; "auto" is a GPU when there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
    except (TypeError, RuntimeError):
        raise ValueError(f"device is {device!r}; it must be auto, cpu, cuda or cuda:0") from None
    if picked.type != "cpu" and not (picked.type == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"device is {device!r}, but torch finds no such GPU; use auto or cpu")
    return picked


def array(name: str, values) -> np.ndarray:
    """Convert values that NumPy can read, none of them masked, to an array on the CPU."""
    if hasattr(values, "detach"):  # a tensor; NumPy lacks some of its types
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    if np.ma.is_masked(values):
        raise ValueError(f"{name} hold masked values; fill them in or remove these samples")
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        problem = str(error).partition(". ")[0]
        raise ValueError(f"{name} are no array ({problem}); pass an array") from None


def reals(name: str, values) -> np.ndarray:
    """Convert values to a float64 array; they must be real numbers, neither masked nor ragged."""
    numbers = array(name, values)
    try:
        if numbers.dtype.kind in "biuf" or numbers.dtype.kind == "O" and numbers.ndim:
            return numbers.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} ({type(values).__name__}) hold no real numbers; convert them")


def class_codes(labels, n: int | None = None, name: str = "labels") -> tuple[np.ndarray, int]:
    """Number the classes of some labels 0..C-1 in their order.

    Parameters
    ----------
    labels : array, tensor or sequence, shape (n,)
        A class is a whole number, a truth value, a text or a date.
    n : int, optional
        How many labels there must be.
    name : str
        What messages call them.

    Returns
    -------
    codes : int array, shape (n,)
    n_classes : int

    Raises
    ------
    ValueError
        On a label that is no class, such as a set, that is missing in any way NumPy and pandas know, on
        another number of labels than ``n``, and on labels of which no two are alike.
    """
    if isinstance(labels, (set, frozenset)):
        raise ValueError(f"{name} are a set, which has no order; give a list, one for each sample")
    values = array(name, labels)
    if values.dtype.kind == "U" and not hasattr(labels, "dtype"):
        values = np.asarray(labels, dtype=object)  # as text, NaN in a list would be a class
    if values.ndim != 1 or n is not None and len(values) != n:
        shape = f"{name} have shape {values.shape}" + (f" but there are {n} samples" if n else "")
        raise ValueError(f"{shape}; one each is needed")
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
        row = wrong.argmax()
        raise ValueError(
            f"{name} hold {values[row]} in row {row}, which is no class; fill in what is missing, and "
            "cut what is measured at a threshold"
        )
    try:
        classes, codes = np.unique(values, return_inverse=True)
    except TypeError:
        kinds = " and ".join(sorted({type(value).__name__ for value in values}))
        raise ValueError(f"{name} mix {kinds}; let all be of one type") from None
    if name == "labels" and len(classes) == len(values) > MANY_CLASSES:
        raise ValueError(
            f"labels hold another class for each of the {len(values)} samples, as row numbers and ids do; "
            "give the class of each"
        )
    return codes, len(classes)


def _no_class(value) -> bool:
    if isinstance(value, (set, frozenset, list, dict)):  # sets even have an order, but not this one
        return True
    try:
        if hasattr(value, "as_integer_ratio") and not isinstance(value, int):  # decimals, fractions
            return not float(value).is_integer()
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither
        return True


def warn_of_many_classes(labels) -> None:
    """Warn, in one line, if numbers with many values are used as classes: they may be ages."""
    values = array("labels", labels)
    if values.dtype.kind in "iuf":
        n_classes = len(np.unique(values))
        if n_classes > MANY_CLASSES:
            warnings.warn(
                f"labels hold {n_classes} different numbers, each taken as a class of its own; if they "
                "are a measurement, such as an age, cut it at a threshold first",
                stacklevel=_frames_of_library() + 1,
            )


def _frames_of_library() -> int:
    """How many calls lie between the user's code and the caller of this function, that one included."""
    frame = sys._getframe(1)
    count = 0
    own = ("cid.", "contextlib")  # a context manager that decorates a function calls it from there
    while frame is not None and frame.f_globals.get("__name__", "").startswith(own):
        frame = frame.f_back
        count += 1
    return count


def as_tensor(values, name: str = "embeddings", ndim: int | None = None) -> torch.Tensor:
    """Convert real numbers to a tensor, in the same memory if that may be written to.

    A ValueError names an argument that holds none, or that is empty or of another shape than ``ndim``
    (1 or 2) asks for.
    """
    if isinstance(values, torch.Tensor) and values.layout == torch.strided:
        tensor = values.dequantize() if getattr(values, "is_quantized", False) else values
        tensor = tensor.detach()
    else:
        tensor = _array_as_tensor(values, name)
    if not isinstance(tensor, torch.Tensor) or tensor.is_complex() or tensor.is_meta:
        raise ValueError(f"{name} ({type(values).__name__}) hold no real numbers; convert them")
    if ndim and (tensor.ndim != ndim or 0 in tensor.shape):
        needed = "(n,) with n" if ndim == 1 else "(n, d) with n and d"
        raise ValueError(f"{name} have shape {tuple(tensor.shape)}; {needed} at least 1 is needed")
    return tensor


def _array_as_tensor(values, name: str):
    """An array as a tensor, or unchanged if it holds no numbers that torch knows."""
    numbers = array(name, values)
    if numbers.dtype.kind == "O":
        numbers = reals(name, values)
    if numbers.dtype.kind not in "biuf":
        return numbers
    # torch knows native types of at most 8 bytes.
    native = numbers.dtype.newbyteorder("=") if numbers.dtype.itemsize <= 8 else np.float64
    numbers = np.asarray(numbers.astype(native, copy=False), order="C")
    return torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())


def like(result: torch.Tensor, source):
    """Return ``result`` as the kind, floating type and device of ``source``."""
    dtype = source.dtype if hasattr(source, "dtype") else np.asarray(source).dtype
    double = str(dtype).endswith(("float64", "f8"))
    kind = torch.float64 if double else torch.float32
    if isinstance(source, torch.Tensor):
        return result.to(source.device, kind)
    return result.to("cpu", kind).numpy()


def unit_vectors(embeddings, device: str = "auto", first: int = 0) -> torch.Tensor:
    """Scale embeddings to unit norm, on the device: tensor of shape (n, d).

    ``first`` is the row number of the first one, for messages. A ValueError names the first row that
    holds NaN or infinite values, or that has no direction.
    """
    vectors = as_tensor(embeddings, ndim=2).to(pick_device(device))
    double = vectors.dtype == torch.float64
    unit = torch.empty_like(vectors, dtype=torch.float64 if double else torch.float32)
    # The norm in float64: a relative error of 6e-8 here would be divided by tau in the exponent.
    for rows, out in zip(vectors.split(BLOCK), unit.split(BLOCK), strict=True):  # fits the cache
        rows = rows.double()
        norm = rows.norm(dim=1, keepdim=True)
        out.copy_(rows / torch.where(norm < torch.inf, norm, torch.nan))
    if not torch.isfinite(unit.sum(dim=1)).all():
        _refuse_directionless(vectors, first)
    return unit


def _refuse_directionless(vectors: torch.Tensor, first: int) -> None:
    """Raise the ValueError of :func:`unit_vectors`."""
    bad = torch.nonzero(~torch.isfinite(vectors).all(dim=1))[:, 0]
    if len(bad):
        raise ValueError(
            f"embeddings row {first + int(bad[0])} holds NaN or infinite values ({len(bad)} such rows); "
            "remove these samples or embed them again"
        )
    norm = vectors.double().norm(dim=1)
    row = int(torch.nonzero((norm == 0) | (norm == torch.inf))[0])
    raise ValueError(
        f"embeddings row {first + row} has norm {float(norm[row]):g}, so no direction; remove this sample"
    )
