"""Label surprise put into the logits: offsets in training in place of weights.

A model that is trained with ``log p(c | z)`` added to its logits need not learn again what the neighbours
of an image tell of its label; without the offsets it then predicts as if they told nothing. So the
posterior of :mod:`cid.posterior`, whose inverse are the weights of label surprise, acts without any
weights: no rare image counts more than another, and no sampler is needed.
"""

import numpy as np
import torch

from cid.arrays import like
from cid.factors import Factors
from cid.posterior import Posterior, class_logs
from cid.precision import true_float32
from cid.settings import NotNegative, checked


def surprise_offsets(
    embeddings,
    labels,
    *,
    strength: float = 1.0,
    neighbours: int | str = "auto",
    slope: float | str = "auto",
    keep_class_direction: bool = False,
    local_scaling: bool = False,
    device: str = "auto",
):
    """Compute what is added to the logits of every class in training: ``strength * log p(c | z)``.

    It is left out when the model predicts. With the class frequencies in place of the posterior this is
    logit adjustment: Menon et al., "Long-tail learning via logit adjustment" (2021, arXiv 2007.07314).

    >>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]
    >>> offsets = surprise_offsets(embeddings, [0, 0, 0, 1, 1, 0], neighbours=2, slope=1.0)
    >>> np.exp(offsets).round(2)
    array([[0.83, 0.17],
           [0.83, 0.17],
           [0.83, 0.17],
           [0.58, 0.42],
           [0.58, 0.42],
           [0.33, 0.67]])

    Parameters
    ----------
    embeddings, labels
        As in :func:`cid.density.class_density`; at least two classes.
    strength : float
        At least 0. 0: plain training; 1: all that the neighbours tell is taken for known.
    neighbours : int or "auto"
        As ``scale`` in :func:`cid.posterior.label_posterior`; likewise ``slope`` and ``local_scaling``.
    keep_class_direction : bool
        Leave the label's own direction in the embeddings, which otherwise
        :func:`cid.posterior.without_class_direction` removes.
    device : str
        As in :func:`cid.detection.detect`.

    Returns
    -------
    array or tensor, shape (n, C)
        Of the classes in their order; of the kind, floating type and device of ``embeddings``.

    Raises
    ------
    ValueError
        As :func:`cid.posterior.label_posterior`, or if the strength is below 0.
    """
    strength = checked("strength", strength, NotNegative)
    factors = Factors(embeddings, labels, device)
    posterior = factors.posterior(
        scale=neighbours,
        slope=slope,
        keep_class_direction=keep_class_direction,
        local_scaling=local_scaling,
    )
    logs = logs_of_classes(
        factors,
        posterior,
        keep_class_direction=keep_class_direction,
        local_scaling=local_scaling,
    )
    return like(torch.from_numpy(strength * logs), embeddings)


@true_float32()
def logs_of_classes(
    factors: Factors,
    posterior: Posterior,
    *,
    keep_class_direction: bool = False,
    local_scaling: bool = False,
) -> np.ndarray:
    """Compute ``log p(c | z)`` of every sample and class, float64 (n, C), each sample left out.

    ``posterior`` is what ``factors.posterior`` made among neighbours with the same two settings.
    """
    pairs = factors.pairs if keep_class_direction else factors.cleaned
    if len(pairs.classes) > 2:
        return pairs.in_rows(class_logs(pairs, posterior, local_scaling))
    own = torch.as_tensor(posterior.probability).cpu().numpy()
    logs = np.stack([np.log1p(-own), np.log(own)], axis=1)  # of the other class, and of its own
    first = pairs.in_rows(pairs.codes) == 0
    logs[first] = logs[first, ::-1]
    return logs
