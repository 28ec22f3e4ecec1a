"""How networks are trained: the kinds of training, and their settings.

Nothing heavy is imported here, so that a parameter file can be checked in a moment.
"""

from dataclasses import dataclass, fields
from typing import Annotated

from cid.settings import (
    AtLeast1,
    Count,
    CountFrom2,
    CountOrAuto,
    NotNegativeOrAuto,
    Options,
    Positive,
    Share,
    ShareBelow1,
    Truth,
    field_types,
    one_of,
)

# Every kind of training of a network, and how its risk or its images differ from plain training.
KINDS = {
    "weighted": "every image has a weight",
    "cvar-dro": "the mean loss of the worst images",
    "kl-dro": "an exponential tilt towards images of large loss",
    "group-dro": "an exponential tilt towards groups of large loss",
    "jtt": "trained twice; the errors of the first model count more in the second",
    "lff": "images that a biased model finds hard count more",
    "retrain": "the last layer is fitted again on balanced subsets",
    "offset": "offsets are added to the logits in training, and left out afterwards",
}
# px: side of the aligned faces that a network takes; a model that is not here takes features.
SIDES = {"cnn": 64, "resnet18": 112, "resnet50": 112}


class Only(str):
    """Marks a setting that one kind of training alone depends on."""


@dataclass(frozen=True)
class NetworkOptions(Options):
    """Settings of the training of networks; ``train.network`` of params.yaml.

    Risks are of a minibatch. The learning rate is AdamW's: it rises over the first tenth of the steps
    and falls along a cosine to 0.
    """

    # epochs and weight_decay can be auto: chosen on a held-out tenth of the training images, by class labels
    # alone, for ERM and for all methods of a bias level alike (:mod:`cid.schedule`). Nothing else here is
    # chosen by data, because it would take a grid of trainings for every setting. The other values were
    # tuned for no method; what is not of a single method is the same for all.
    epochs: CountOrAuto = 20
    batch: CountFrom2 = 64  # images a step, at most
    learning_rate: Positive = 1e-3
    weight_decay: NotNegativeOrAuto = 0.05
    # Share of a set's training images that trains nothing: the epoch whose network has the smallest
    # class-balanced loss on them is kept (:func:`cid.training.fit`). 0: the last epoch is kept.
    held_out: ShareBelow1 = 0.0
    augment: Truth = True  # flip faces, and shift them by at most 1/16 of a side
    # A minibatch holds few rare images. When each has a large weight, the loss is too noisy to train
    # the networks here from scratch; a sampler shows the rare images at every step. It draws the
    # batches of every method, those of ERM with equal chances.
    through: one_of("sampler", "loss") = "sampler"
    # ImageNet weights for a network that has them: when they can be had, always, or never.
    pretrained: one_of("auto", "imagenet", "none") = "auto"
    alpha: Annotated[Share, Only("cvar-dro")] = 0.5
    tilt: Annotated[Positive, Only("kl-dro")] = 1.0
    group_step: Annotated[Positive, Only("group-dro")] = 0.01  # of the weights of the groups
    jtt_epochs: Annotated[Count, Only("jtt")] = 2  # of the first network, which shows its errors
    jtt_upweight: Annotated[AtLeast1, Only("jtt")] = 4.0
    lff_q: Annotated[Share, Only("lff")] = 0.7
    draws: Annotated[Count, Only("retrain")] = 10
    retrain_l2: Annotated[Positive, Only("retrain")] = 0.1  # of the new last layer

    def __post_init__(self):
        super().__post_init__()
        if self.epochs != "auto" and self.jtt_epochs > self.epochs:
            raise ValueError(
                f"jtt_epochs is {self.jtt_epochs}, more than the {self.epochs} epochs; stop the first "
                "training of jtt earlier"
            )


def of_kind(options: NetworkOptions, kind: str) -> dict:
    """The options that a kind of training depends on, by name: its own, and those of all kinds."""
    types = field_types(type(options))
    depends = {}
    for field in fields(options):
        only = [mark for mark in types[field.name].__metadata__ if isinstance(mark, Only)]
        if not only or kind in only:
            depends[field.name] = getattr(options, field.name)
    return depends
