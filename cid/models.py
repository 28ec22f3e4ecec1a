"""Networks that can be trained on aligned faces: which there are, and how one is built."""

import logging
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from cid.dlib import DLIB_MAPS, DlibLastBlock
from cid.names import find
from cid.options import SIDES, NetworkOptions
from cid.recognition import load_network
from cid.settings import read

FETCH_SECONDS = 10  # a download of weights is given up after this long without an answer
# Mean and standard deviation of the pixels that torchvision's weights were trained with. The small
# network uses this fixed scale, too.
PIXEL_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
PIXEL_SPREAD = 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
BUILDING = Lock()  # threads that build networks share the generator that draws their first weights
# Every use of random numbers has its own stream; a use's position in this list is part of its seed.
PURPOSES = ("weights", "order", "augment", "subset", "held")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A kind of network: its title in figures and tables, and how it is built and trained."""

    title: str
    side: int | None  # of the faces it takes, of :data:`cid.options.SIDES`; None if it takes none
    # (dimension of the features or None) -> (body, width of the body's output)
    build: Callable[[int | None], tuple[nn.Module, int]]
    imagenet: str | None = None  # torchvision's name of the network with ImageNet weights for it
    defaults: dict = field(default_factory=dict)  # options that differ from :class:`NetworkOptions`
    maps: tuple[int, int, int] | None = None  # shape of the activations it takes; None if none


class Net(nn.Module):
    """A body on standardised inputs, then a linear layer with one output: the logit of class 1."""

    def __init__(self, body: nn.Module, width: int, centre: Tensor, spread: Tensor):
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 1)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)

    def penultimate(self, x: Tensor) -> Tensor:
        """Compute the input of the last layer, shape (n, width)."""
        x = (x.float() - self.centre) / self.spread
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.penultimate(x))[:, 0]


def _mlp(dimension: int | None) -> tuple[nn.Module, int]:
    """One hidden layer on features."""
    return nn.Sequential(nn.Linear(dimension, 256), nn.ReLU()), 256


def _cnn(dimension: int | None) -> tuple[nn.Module, int]:
    """A small network for faces of 64 px, which four halvings bring down to 4 x 4.

    The last map is flattened, not averaged: aligned faces have their mouths in one place.
    """
    # A convolution, 3 x 3 by default, batch normalisation and ReLU.
    from torchvision.ops import Conv2dNormActivation as Block

    body = nn.Sequential(
        Block(3, 16, kernel_size=5, stride=2),
        Block(16, 32, stride=2),
        Block(32, 32),
        Block(32, 64, stride=2),
        Block(64, 64),
        Block(64, 128, stride=2),
        nn.Flatten(),
    )
    return body, 128 * 4 * 4


def _resnet(title: str, name: str) -> Model:
    """torchvision's network of this name, without its last layer."""

    def build(dimension: int | None) -> tuple[nn.Module, int]:
        from torchvision.models import get_model

        body = get_model(name, weights=None)
        width = body.fc.in_features
        body.fc = nn.Identity()
        return body, width

    return Model(
        title,
        side=SIDES[name],
        build=build,
        imagenet=name,
        defaults={"learning_rate": 3e-4, "epochs": 15},
    )


def _last_block(dimension: int | None) -> tuple[nn.Module, int]:
    """The last block of dlib's recognition network, with its weights, on the output of the others."""
    dlib = load_network("dlib-resnet", torch.device("cpu"))
    return DlibLastBlock(dlib.blocks[-1]), DLIB_MAPS[0]


# `study/pipeline/params.py` reads these keys from the source: importing torch would take seconds.
MODELS: dict[str, Model] = {
    "mlp": Model("One hidden layer", side=None, build=_mlp, defaults={"epochs": 5}),
    "cnn": Model(
        "Small CNN",
        side=SIDES["cnn"],
        build=_cnn,
        defaults={"learning_rate": 3e-3, "batch": 32},
    ),
    "resnet18": _resnet("ResNet-18", "resnet18"),
    "resnet50": _resnet("ResNet-50", "resnet50"),
    "finetune": Model(
        "Last block of the recognition network",
        side=None,
        build=_last_block,
        defaults={"learning_rate": 3e-4, "epochs": 10, "augment": False},
        maps=DLIB_MAPS,
    ),
}


def get_model(name: str) -> Model:
    """Look up a model by name; the error for an unknown name lists the known ones.

    Examples
    --------
    >>> get_model("cnn").side
    64
    """
    return find("model", name, MODELS)


def read_options(model: str, values: dict | None = None) -> NetworkOptions:
    """Combine a model's own defaults with ``values``, which win; errors as :func:`cid.options.read`.

    Examples
    --------
    >>> options = read_options("cnn", {"epochs": 3})
    >>> options.epochs, options.batch
    (3, 32)
    """
    return read(NetworkOptions, values or {}, "train.network", get_model(model).defaults)


def initialisation(model: str, pretrained: str) -> str:
    """Find out what a network starts from: "imagenet", "recognition" or "scratch".

    Parameters
    ----------
    model : str
        A key of :data:`MODELS`.
    pretrained : {"auto", "imagenet", "none"}
        "auto" means ImageNet weights if the model has them and they are cached or can be
        downloaded. It is the only choice for a model that is part of a recognition network.

    Raises
    ------
    ValueError
        If ``pretrained`` is "imagenet" and there are no such weights or they cannot be read, or it is
        not "auto" for a model that is part of a recognition network.

    Examples
    --------
    >>> initialisation("cnn", "auto")
    'scratch'
    """
    imagenet = get_model(model).imagenet
    if get_model(model).maps:
        if pretrained != "auto":
            raise ValueError(
                f"pretrained is {pretrained}, but {model} starts from its recognition network; "
                "set it to auto"
            )
        return "recognition"
    if pretrained == "none" or (pretrained == "auto" and imagenet is None):
        return "scratch"
    if imagenet is None:
        raise ValueError(f"model {model!r} has no ImageNet weights; set pretrained to auto or none")
    weights, problem = _imagenet(imagenet)
    if weights is None and pretrained == "imagenet":
        raise ValueError(
            f"the ImageNet weights of {imagenet} are not available: {problem}; "
            "put the file there or set pretrained to auto or none"
        )
    return "scratch" if weights is None else "imagenet"


@lru_cache
def _imagenet(name: str) -> tuple[dict | None, str]:
    """Load ImageNet weights from torch's hub cache or the network, tried once per process.

    Returns the weights without those of the last layer and an empty text, or None and the problem.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).IMAGENET1K_V1
    timeout_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(FETCH_SECONDS)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        problem = f"{cached} could not be read or fetched ({error})"
        log.warning("%s starts from scratch unless ImageNet is demanded: %s", name, problem)
        return None, problem
    finally:
        socket.setdefaulttimeout(timeout_before)
    return {key: value for key, value in state.items() if not key.startswith("fc.")}, ""


def build_network(
    model: str,
    *,
    initialised: str,
    seed: int,
    stream: int,
    centre: Tensor,
    spread: Tensor,
    device: torch.device,
) -> Net:
    """Build a new network on the device.

    Parameters
    ----------
    model : str
        A key of :data:`MODELS`.
    initialised : str
        As :func:`initialisation` returns it.
    seed, stream : int
        Decide its random first weights; networks that are trained side by side differ in the stream.
    centre, spread : tensor
        It standardises its inputs by these.
    """
    spec = get_model(model)
    dimension = centre.shape[-1] if spec.side is None else None
    with BUILDING, torch.random.fork_rng(devices=[]):
        # Layers draw their weights from torch's global generator. Only that of the CPU is seeded here,
        # and put back afterwards.
        torch.random.default_generator.manual_seed(seed_for(seed, "weights", stream))
        body, width = spec.build(dimension)
        network = Net(body, width, centre, spread)
    if initialised == "imagenet":
        weights, _ = _imagenet(spec.imagenet)
        body.load_state_dict(weights)
    layout = torch.channels_last if spec.side else torch.preserve_format
    return network.to(device, memory_format=layout)


def seed_for(seed: int, purpose: str, number: int) -> int:
    """Derive an independent 63-bit seed for every one of :data:`PURPOSES` and every epoch or stream."""
    sequence = np.random.SeedSequence([int(seed), PURPOSES.index(purpose), number])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
