"""Options of training: a dataclass whose fields say what they may hold, and the one of networks.

A field is a setting. Its metadata say what it may hold and which kind of training alone depends on
it, so that a parameter file can be checked, and kept work be keyed, without importing what trains.
"""

import math
from dataclasses import dataclass, field, fields
from typing import TypeVar

from cid.names import suggest

# Every kind of training of a network, and how its risk or its images differ from plain training.
KINDS = {
    "weighted": "every image has a weight",
    "cvar-dro": "the mean loss of the worst images",
    "kl-dro": "an exponential tilt towards images of large loss",
    "group-dro": "an exponential tilt towards groups of large loss",
    "jtt": "trained twice; the errors of the first model count more in the second",
    "lff": "images that a biased model finds hard count more",
    "retrain": "the last layer is fitted again on balanced subsets",
}
# px: side of the aligned faces a network takes; a model that is not here takes features.
SIDES = {"cnn": 64, "resnet18": 112, "resnet50": 112}


# What a setting may hold: in words, and as a check of a value of its type.
SHARE = "a number in (0, 1]", lambda value: 0 < value <= 1
POSITIVE = "a number greater than 0", lambda value: 0 < value < math.inf
BOOL = "true or false", lambda value: True


def at_least(low: int, noun: str = "a whole number"):
    return f"{noun} of at least {low}", lambda value: low <= value < math.inf


def one_of(*names: str):
    return f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names


def setting(default, may_hold: tuple, kind: str | None = None, **more):
    """A field of the type of its default; ``kind`` None: all kinds of training depend on it."""
    return field(default=default, metadata={"may_hold": may_hold, "kind": kind, **more})


class Options:
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
class NetworkOptions(Options):
    """How networks are trained; ``train.network`` of params.yaml, over the defaults of a model.

    Risks are of a minibatch. The learning rate is AdamW's: it rises over the first tenth of the steps
    and falls along a cosine to 0.
    """

    epochs: int = setting(20, at_least(1))
    batch: int = setting(64, at_least(2))  # images a step, at most
    learning_rate: float = setting(1e-3, POSITIVE)
    weight_decay: float = setting(0.05, at_least(0, "a number"))
    # Share of a set's training images that trains nothing: the epoch whose network has the smallest
    # class-balanced loss on them stays (:func:`cid.networks.fit`). 0: the last one stays.
    held_out: float = setting(0.0, ("a number of at least 0 and below 1", lambda v: 0 <= v < 1))
    augment: bool = setting(True, BOOL)  # flip faces, shift them by <= 1/16 of a side
    # With a minibatch's few rare images, each of a large weight, the loss is too noisy to train the
    # networks here from scratch; a sampler shows the rare images at every step. It draws the batches
    # of every method, ERM's with equal chances.
    through: str = setting("sampler", one_of("sampler", "loss"))
    # ImageNet weights for a network that has them: when to be had, always, or never.
    pretrained: str = setting("auto", one_of("auto", "imagenet", "none"))
    alpha: float = setting(0.5, SHARE, "cvar-dro")
    tilt: float = setting(1.0, POSITIVE, "kl-dro")
    group_step: float = setting(0.01, POSITIVE, "group-dro")  # of the weights of the groups
    jtt_epochs: int = setting(2, at_least(1), "jtt")  # before the first network shows its errors
    jtt_upweight: float = setting(4.0, at_least(1, "a number"), "jtt")
    lff_q: float = setting(0.7, SHARE, "lff")
    draws: int = setting(10, at_least(1), "retrain")
    retrain_l2: float = setting(0.1, POSITIVE, "retrain")  # of the new last layer

    def __post_init__(self):
        super().__post_init__()
        if self.jtt_epochs > self.epochs:
            problem = f"jtt_epochs is {self.jtt_epochs}, more than the {self.epochs} epochs"
            raise ValueError(f"{problem}; stop the first training of jtt earlier")


Some = TypeVar("Some", bound=Options)


def read(cls: type[Some], values: dict, where: str, defaults: dict | None = None) -> Some:
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
