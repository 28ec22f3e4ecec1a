"""A data set as arrays: what the methods, the heads and the evaluation see of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cid.heads import StandardisedFeatures
from study.experiment.design import number_of_classes
from study.faces.dataset import read_labels
from study.faces.tasks import task_labels


@dataclass(frozen=True)
class Arrays:
    """A data set as the methods see it; row i of every array is image i.

    Attributes
    ----------
    proxy : float32 array, shape (n, d)
        Embeddings by a face-recognition network, which stand in for the identity.
    features : float32 array, shape (n, t)
        What linear heads are trained on.
    labels : array, shape (n,)
        Classes from 0, or NaN for an image without a label.
    identities : array, shape (n,)
        True identities. They build the biased sets and the oracles, and evaluate.
    given : array, shape (n,), optional
        Labels as training sees them, where some are wrong (:mod:`study.experiment.mislabelled`).
    """

    proxy: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    identities: np.ndarray
    given: np.ndarray | None = None

    @property
    def training_labels(self) -> np.ndarray:
        """The labels that weights, penalties and models see."""
        return self.labels if self.given is None else self.given

    def design(self) -> StandardisedFeatures | None:
        """Prepare the features and labels for many fits of heads on the same data set.

        Heads of more than two classes share nothing, so for these there is nothing to prepare.
        """
        if number_of_classes(self.training_labels) > 2:
            return None
        return StandardisedFeatures(self.features, whole(self.training_labels))

    def people(self) -> np.ndarray:
        """Return the identities as whole numbers from 0, in the order of their names."""
        return np.unique(self.identities, return_inverse=True)[1]


def load(task: str, build: str | Path = "build") -> Arrays:
    """Read what the stages ``data`` and ``embed`` wrote.

    Parameters
    ----------
    task : str
        The attribute that gives the labels, or several that are crossed (:mod:`study.faces.tasks`).
    build : path
        The folder of their output.
    """
    build = Path(build)
    data = read_labels(build / "data")
    return Arrays(
        proxy=np.load(build / "embed/proxy.npy"),
        features=np.load(build / "embed/trunk.npy"),
        labels=task_labels(data, task),
        identities=data.identities(),
    )


def whole(labels) -> np.ndarray:
    """Return labels as int64, with 0 for an image without a label (NaN), which is in no set."""
    return np.nan_to_num(np.asarray(labels, dtype=float)).astype(np.int64)
