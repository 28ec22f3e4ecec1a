"""How methods train, beyond their weights: one dataclass for linear heads, one for networks; and
what a network in an ONNX file takes.

A field is a setting. Its metadata say what it may hold and which kind of training alone depends on
it, so that a parameter file can be checked, and kept work be keyed, without importing what trains.
"""

import math
from dataclasses import dataclass, field, fields
from typing import TypeVar

from cid.names import find, suggest

# Every kind of training, and how its risk or its images differ from plain training.
KINDS = {
    "weighted": "every image has a weight",
    "cvar-dro": "the mean loss of the worst images",
    "kl-dro": "an exponential tilt towards images of large loss",
    "group-dro": "an exponential tilt towards groups of large loss",
    "jtt": "trained twice; the errors of the first model count more in the second",
    "lff": "images that a biased model finds hard count more",
    "retrain": "the last layer is fitted again on balanced subsets",
    "afr": "refitted on held-out images; those the first head finds hard count more",
    "selective": "refitted on held-out images about which two heads disagree",
    "xrm": "groups by the mistakes of two heads on each other's half, then as group-dro",
    "ula": "a label's log-odds by the proxy are added to the logits while training",
    "erase": "what tells clusters of the proxy apart is removed from the features",
}
# What a kind works with besides weights, a number an image: codes of groups, or log-odds.
NEEDS = {"group-dro": "groups", "retrain": "groups", "erase": "groups", "ula": "offset"}
HEADS_ONLY = ("afr", "selective", "xrm", "ula", "erase")  # kinds that networks are not trained by
# px: side of the aligned faces a network takes; a model that is not here takes features.
SIDES = {"cnn": 64, "resnet18": 112, "resnet50": 112}
TEMPLATES = ("arcface", "dlib", "facenet")  # of :mod:`cid.align`


# What a setting may hold: in words, and as a check of a value of its type.
SHARE = "a number in (0, 1]", lambda value: 0 < value <= 1
POSITIVE = "a number greater than 0", lambda value: 0 < value < math.inf
BOOL = "true or false", lambda value: True


def _at_least(low: int, noun: str = "a whole number"):
    return f"{noun} of at least {low}", lambda value: low <= value < math.inf


def _one_of(*names: str):
    return f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names


def _numbers(value, count: int) -> bool:
    """Whether a value is a list of so many finite numbers."""
    real = isinstance(value, list | tuple) and len(value) == count
    return real and all(type(v) in (int, float) and math.isfinite(v) for v in value)


def _a_channel(low: float) -> dict:
    """Of a setting that is one finite number above ``low``, or three."""
    be = "a number" if low < 0 else "a number greater than 0"

    def holds(value):
        values = value if isinstance(value, list | tuple) else [value] * 3
        return _numbers(values, 3) and min(values) > low

    wanted = f"{be}, or a list of three, one a channel", holds
    return {"may_hold": wanted, "types": (float, list, tuple)}


def _setting(default, may_hold: tuple, kind: str | None = None, **more):
    """A field of the type of its default; ``kind`` None: all kinds of training depend on it."""
    return field(default=default, metadata={"may_hold": may_hold, "kind": kind, **more})


class _Options:
    """Checks every field of a dataclass by its metadata; a whole number may stand for a float."""

    def __post_init__(self):
        for one in fields(self):
            value, kind = getattr(self, one.name), type(one.default)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
                object.__setattr__(self, one.name, value)
            types = one.metadata.get("types", kind)
            same = isinstance(value, types) and isinstance(value, bool) == (kind is bool)
            wanted, holds = one.metadata["may_hold"]
            if not (same and holds(value)):
                raise ValueError(f"{one.name} is {value!r}; it must be {wanted}")


@dataclass(frozen=True)
class HeadOptions(_Options):
    """How linear heads are trained; ``train.through`` and ``train.robust`` of params.yaml."""

    # A weight multiplies the image's loss, or its chance in a sample of the training set with
    # replacement, of the same size. Stands beside the section, so it is no key of the section.
    through: str = _setting("loss", _one_of("loss", "sampler"), beside=True)
    alpha: float = _setting(0.2, SHARE, "cvar-dro")  # share of worst images, whose mean counts
    tilt: float = _setting(3.0, POSITIVE, "kl-dro")  # t of log(mean(exp(t loss))) / t
    group_tilt: float = _setting(10.0, POSITIVE, "group-dro")  # of group means; large: the worst
    jtt_l2: float = _setting(10.0, POSITIVE, "jtt")  # penalty of the first head
    jtt_upweight: float = _setting(2.0, POSITIVE, "jtt")  # weight of the images it gets wrong
    lff_q: float = _setting(0.7, SHARE, "lff")  # exponent of the generalised cross-entropy
    lff_l2: float = _setting(0.1, POSITIVE, "lff")  # penalty of the biased head
    lff_rounds: int = _setting(4, _at_least(1), "lff")  # times relative difficulty is taken anew
    draws: int = _setting(10, _at_least(1), "retrain")  # balanced subsets, averaged over
    afr_gamma: float = _setting(4.0, _at_least(0, "a number"), "afr")  # weight exp(-gamma p(label))
    afr_l2: float = _setting(1.0, POSITIVE, "afr")  # of the difference to the first head
    selective_stop_l2: float = _setting(10.0, POSITIVE, "selective")  # of the head "stopped early"
    selective_share: float = _setting(0.5, SHARE, "selective")  # of the rarer class's held-out ones
    selective_l2: float = _setting(1.0, POSITIVE, "selective")  # of the change of the first head
    xrm_rounds: int = _setting(5, _at_least(1), "xrm")  # times labels are flipped
    xrm_tilt: float = _setting(3.0, POSITIVE, "xrm")  # of the four groups found, as group_tilt
    ula_strength: float = _setting(1.0, POSITIVE, "ula")  # how often the log-odds are added


@dataclass(frozen=True)
class NetworkOptions(_Options):
    """How networks are trained; ``train.network`` of params.yaml, over the defaults of a model.

    Names shared with :class:`HeadOptions` mean the same, of a minibatch. The learning rate is
    AdamW's: it rises over the first tenth of the steps and falls along a cosine to 0.
    """

    epochs: int = _setting(20, _at_least(1))
    batch: int = _setting(64, _at_least(2))  # images a step, at most
    learning_rate: float = _setting(1e-3, POSITIVE)
    weight_decay: float = _setting(0.05, _at_least(0, "a number"))
    # Share of a set's training images, drawn by its seed alone, that no network is trained on: of
    # all epochs the one whose network has the smallest class-balanced loss on them stays, the first of
    # equals (:func:`cid.networks.fit`). 0: the last epoch stays. The learning rate falls all the same.
    held_out: float = _setting(0.0, ("a number of at least 0 and below 1", lambda v: 0 <= v < 1))
    augment: bool = _setting(True, BOOL)  # flip faces, shift them by <= 1/16 of a side
    # With a minibatch's few rare images, each of a large weight, the loss is too noisy to train the
    # networks here from scratch; a sampler shows the rare images at every step. It draws the batches
    # of every method, ERM's with equal chances.
    through: str = _setting("sampler", _one_of("sampler", "loss"))
    # ImageNet weights for a network that has them: when to be had, always, or never.
    pretrained: str = _setting("auto", _one_of("auto", "imagenet", "none"))
    alpha: float = _setting(0.5, SHARE, "cvar-dro")
    tilt: float = _setting(1.0, POSITIVE, "kl-dro")
    group_step: float = _setting(0.01, POSITIVE, "group-dro")  # of the weights of the groups
    jtt_epochs: int = _setting(2, _at_least(1), "jtt")  # before the first network shows its errors
    jtt_upweight: float = _setting(4.0, _at_least(1, "a number"), "jtt")
    lff_q: float = _setting(0.7, SHARE, "lff")
    draws: int = _setting(10, _at_least(1), "retrain")
    retrain_l2: float = _setting(0.1, POSITIVE, "retrain")  # of the new last layer

    def __post_init__(self):
        super().__post_init__()
        if self.jtt_epochs > self.epochs:
            problem = f"jtt_epochs is {self.jtt_epochs}, more than the {self.epochs} epochs"
            raise ValueError(f"{problem}; stop the first training of jtt earlier")


def _is_template(value) -> bool:
    if isinstance(value, str):
        return value in TEMPLATES
    if len(value) != 5 or not all(_numbers(point, 2) for point in value):
        return False
    return all(max(side) - min(side) > 2 for side in zip(*value, strict=True))  # so not in sides


@dataclass(frozen=True)
class OnnxOptions(_Options):
    """What a network in an ONNX file takes; ``embed.onnx`` of params.yaml. ArcFace's by default."""

    # Where the landmarks go: left eye, right eye, nose and the mouth's corners, as seen in the picture.
    template: str | tuple = _setting(
        "arcface",
        (f"{', '.join(TEMPLATES)} or five points [x, y] in pixels of the crop", _is_template),
        types=(str, list, tuple),
    )
    size: int = _setting(112, _at_least(8))  # px: side of the crop
    channels: str = _setting("rgb", _one_of("rgb", "bgr"))  # their order
    # What is subtracted from values in 0..255, and by what the difference is divided; in that order.
    mean: float | tuple = _setting(127.5, **_a_channel(-math.inf))
    scale: float | tuple = _setting(127.5, **_a_channel(0))

    def __post_init__(self):
        super().__post_init__()
        for name in ("template", "mean", "scale"):  # so that equal options have one hash
            if isinstance(value := getattr(self, name), list | tuple):
                rows = (tuple(v) if isinstance(v, list | tuple) else v for v in value)
                object.__setattr__(self, name, tuple(rows))


Options = TypeVar("Options", HeadOptions, NetworkOptions, OnnxOptions)


def read(cls: type[Options], values: dict, where: str, defaults: dict | None = None) -> Options:
    """Options of a class from ``values``, a section of a parameter file named ``where`` in messages.

    ``defaults`` go before the class's: a model's own, and ``through`` of heads, which stands beside.
    A ValueError is one sentence, on an unknown key, a value of the wrong type or out of range.
    """
    known = [one.name for one in fields(cls) if "beside" not in one.metadata]
    for key in values:
        if key not in known:
            problem = f"{where}.{key} is unknown{suggest(key, known)}"
            raise ValueError(f"{problem}; known: {', '.join(known)}")
    try:
        return cls(**{**(defaults or {}), **values})
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def of_kind(options: HeadOptions | NetworkOptions, kind: str) -> dict:
    """The options that a kind of training depends on, by name: its own, and those of all kinds."""
    find("training kind", kind, KINDS)
    own = [one.name for one in fields(options) if one.metadata["kind"] in (None, kind)]
    return {name: getattr(options, name) for name in own}
