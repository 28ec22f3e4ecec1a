"""Predictions of a classifier in any usual form: classes, scores of the second class, scores of all."""

from collections.abc import Sequence

import numpy as np

from cid.arrays import array, reals


def places_of_classes(labels, classes: Sequence, name: str) -> np.ndarray:
    """Place (n,) of every label among ``classes``.

    Raises a ValueError that names the first label which is none of them.
    """
    values = array(name, labels).tolist()
    place = {value: number for number, value in enumerate(classes)}
    found = np.array([place.get(value, -1) for value in values], dtype=np.int64)
    if (found < 0).any():
        row = int((found < 0).argmax())
        known = ", ".join(map(repr, list(classes)[:10]))
        raise ValueError(f"{name} hold {values[row]!r} in row {row}; the classes are {known}")
    return found


def predicted_classes(prediction, classes: Sequence, n: int, name: str = "predictions"):
    """Places (n,) among ``classes`` of the classes that a model predicts.

    >>> predicted_classes(["no", "yes"], ["no", "yes"], 2)
    array([0, 1])
    >>> predicted_classes([0.2, 0.7], ["no", "yes"], 2)
    array([0, 1])
    >>> predicted_classes([[0.2, 3.0], [0.7, 0.1]], ["no", "yes"], 2)
    array([1, 0])

    Parameters
    ----------
    prediction : array, tensor or sequence
        Classes (n,); or, of two classes, scores (n,) of the second: it is predicted where a probability
        is above .5, or, if any score is outside [0, 1], where a logit is above 0; or scores (n, C),
        of which the highest counts.
    classes : sequence of C values
        In the order of the columns of scores.

    Raises
    ------
    ValueError
        If it has another shape, or holds what is neither a class nor a finite score.
    """
    values = array(name, prediction)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2) or len(values) != n:
        raise ValueError(f"{name} have shape {values.shape}, but there are {n} test images")
    if values.ndim == 2:
        if values.shape[1] != len(classes):
            raise ValueError(
                f"{name} have {values.shape[1]} columns of scores, but there are {len(classes)} classes"
            )
        return _finite(name, values).argmax(axis=1)
    known = set(classes)
    if all(value in known for value in set(values.tolist())) or values.dtype.kind not in "iuf":
        return places_of_classes(values, classes, name)
    scores = _finite(name, values)
    if len(classes) != 2:
        row = int(np.argmax([value not in known for value in values.tolist()]))
        raise ValueError(
            f"{name} hold {values[row]} in row {row}, which is none of the {len(classes)} classes; "
            f"pass classes, or scores of shape ({n}, {len(classes)})"
        )
    probabilities = 0 <= scores.min() and scores.max() <= 1
    return (scores > (0.5 if probabilities else 0)).astype(np.int64)


def _finite(name: str, values) -> np.ndarray:
    """Real numbers, none of them NaN; infinite scores have an order, too."""
    scores = reals(name, values)
    if np.isnan(scores).any():
        row = int(np.isnan(scores.reshape(len(scores), -1)).any(axis=1).argmax())
        raise ValueError(f"{name} hold NaN in row {row}; predict all test images")
    return scores
