"""The old place of :mod:`cid.models` and :mod:`cid.training`; the next version does without it."""

from cid.moved import forwarder

MOVED = {
    "MODELS": "cid.models.MODELS",
    "Model": "cid.models.Model",
    "Net": "cid.models.Net",
    "PIXEL_MEAN": "cid.models.PIXEL_MEAN",
    "PIXEL_SPREAD": "cid.models.PIXEL_SPREAD",
    "get_model": "cid.models.get_model",
    "initialisation": "cid.models.initialisation",
    "read_options": "cid.models.read_options",
    "Fitted": "cid.training.Fitted",
    "fit": "cid.training.fit",
    "place": "cid.training.place",
}
__getattr__ = forwarder(__name__, MOVED)
