"""Identity-robust face models without identity labels: conditional inverse density (CID).

Weigh the training images of a classifier by an embedding of a face-recognition network, so that a model
trained on them works more alike for all people. No identity labels are needed.

>>> from cid import cid_weights, surprise_weights
>>> embeddings = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]  # (n, d)
>>> labels = [0, 0, 1, 1, 1, 0]  # (n,)
>>> cid_weights(embeddings, labels).shape, surprise_weights(embeddings, labels).shape
((6,), (6,))

How models serve people whose labels are unusual for them, or why that cannot be told:

>>> from cid import audit
>>> found = audit(embeddings, labels, embeddings, labels, predictions={"mine": [0, 0, 0, 1, 1, 1]})
>>> [row.measure for row in found.estimates], found.refusal is None
(['minority', 'majority', 'balanced', 'spread'], False)
"""

from importlib import import_module

__version__ = "0.2.0"

# The public names, and the modules that hold them; a module is imported when a name is first used.
_PLACES = {
    "cid_weights": "cid.large",
    "surprise_weights": "cid.large",
    "two_factor_weights": "cid.weights",
    "inverse_weights": "cid.weights",
    "effective_sample_size": "cid.weights",
    "CIDWeights": "cid.weights",
    "class_density": "cid.density",
    "neighbour_width": "cid.density",
    "label_posterior": "cid.large",
    "label_trust": "cid.trust",
    "new_posterior": "cid.posterior",
    "audit": "cid.auditing",
    "surprise_offsets": "cid.offsets",
    "without_class_direction": "cid.posterior",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
