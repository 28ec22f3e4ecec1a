"""How long a network is trained, and with how much weight decay: chosen on held-out training images.

The criterion is that of :mod:`cid.penalty` for linear heads, on one held-out part instead of five folds,
because a network takes long to train: the log loss of the plain network (all images count the same) on a
tenth of the images, which did not train it. It sees class labels alone.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from cid.arrays import array
from cid.options import NetworkOptions
from cid.training import fit

EPOCHS = (10, 20, 40)
DECAYS = (0.005, 0.05, 0.5)
HELD_OUT = 0.1  # of the images of each class, at least one
NEAR = 1e-3  # losses nearer than this, relative to the least, are equal


def is_open(options: NetworkOptions) -> bool:
    """Whether options leave something to be chosen."""
    return "auto" in (options.epochs, options.weight_decay)


def candidates(options: NetworkOptions) -> list[NetworkOptions]:
    """List what can stand where options say ``auto``; the simplest first: few epochs, much decay."""
    epochs = EPOCHS if options.epochs == "auto" else (options.epochs,)
    decays = DECAYS if options.weight_decay == "auto" else (options.weight_decay,)
    return [
        replace(options, epochs=length, weight_decay=decay)
        for length, decay in product(sorted(epochs), sorted(decays, reverse=True))
    ]


def held_out_part(labels, seed: int = 0) -> np.ndarray:
    """Choose the images of a training set that judge, bool (n,): a tenth of each class.

    They are the first of each class in the order of ``numpy.random.default_rng([seed, 4])``.

    Examples
    --------
    >>> int(held_out_part([0, 1] * 50).sum())
    10
    """
    labels = array("labels", labels)
    rng = np.random.default_rng([seed, 4])
    part = np.zeros(len(labels), dtype=bool)
    for label in (0, 1):
        members = rng.permutation(np.flatnonzero(labels == label))
        part[members[: max(1, round(HELD_OUT * len(members)))]] = True
    return part


def held_out_loss(
    model: str, inputs, labels, rows, options: NetworkOptions, *, seed: int = 0, device="auto"
) -> float:
    """Train the plain network on nine tenths of a training set and return its log loss on the others.

    Parameters and errors are those of :func:`cid.training.fit`.
    """
    rows = array("rows", rows)
    labels = array("labels", labels)
    judges = held_out_part(labels[rows], seed)
    fitted = fit(model, inputs, labels, rows[~judges], options=options, seed=seed, device=device)
    logits = fitted.logits(inputs, rows[judges]).astype(np.float64)
    signs = np.where(labels[rows[judges]] == 1, 1, -1)
    return float(np.logaddexp(0, -signs * logits).mean())


def best_options(options: list[NetworkOptions], losses) -> NetworkOptions:
    """Choose the simplest candidate that is as good as the best; ``losses`` stand as they do."""
    losses = np.asarray(losses)
    good = losses <= (1 + NEAR) * losses.min()
    return options[int(np.argmax(good))]
