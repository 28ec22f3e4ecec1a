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
from cid.options import SIDES, NetworkOptions, read
from cid.recognition import load_network

FETCH_SECONDS = 10  # without an answer after which a download of weights is given up
# What torchvision's weights were trained with; a fixed scale serves the small network as well.
PIXEL_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
PIXEL_SPREAD = 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
BUILDING = Lock()  # threads that build networks share the generator that draws their first weights
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A network's title in figures and tables, and how it is built and trained."""

    title: str
    side: int | None  # of :data:`cid.options.SIDES`; None where it takes no faces
    # (dimension of the features or None) -> (body, width of the body's output)
    build: Callable[[int | None], tuple[nn.Module, int]]
    imagenet: str | None = None  # torchvision's network whose ImageNet weights the body can take
    defaults: dict = field(default_factory=dict)  # options that differ from :class:`NetworkOptions`
    maps: tuple[int, int, int] | None = None  # shape of the activations it takes, if it takes such


class Net(nn.Module):
    """Standardise the input, apply the body, then a linear layer: one logit, that of class 1."""

    def __init__(self, body: nn.Module, width: int, centre: Tensor, spread: Tensor):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 1)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)

    def penultimate(self, x: Tensor) -> Tensor:
        """What the last layer sees, shape (n, width)."""
        x = (x.float() - self.centre) / self.spread
        return self.body(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.penultimate(x))[:, 0]


def _mlp(dimension: int | None) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Linear(dimension, 256), nn.ReLU()), 256


def _cnn(dimension: int | None) -> tuple[nn.Module, int]:
    """64 px to 4 x 4 in four halvings; the map is kept, as aligned faces have their mouths in place."""
    from torchvision.ops import Conv2dNormActivation as block  # batch normalisation, ReLU; 3 x 3

    coarse = [block(3, 16, kernel_size=5, stride=2), block(16, 32, stride=2), block(32, 32)]
    fine = [block(32, 64, stride=2), block(64, 64), block(64, 128, stride=2)]
    return nn.Sequential(*coarse, *fine, nn.Flatten()), 128 * 4 * 4


def _resnet(title: str, name: str) -> Model:
    """torchvision's network of a name, without its last layer."""

    def build(dimension: int | None) -> tuple[nn.Module, int]:
        from torchvision.models import get_model

        body = get_model(name, weights=None)
        width, body.fc = body.fc.in_features, nn.Identity()
        return body, width

    return Model(title, SIDES[name], build, name, {"learning_rate": 3e-4, "epochs": 15})


def _last_block(dimension: int | None) -> tuple[nn.Module, int]:
    """The last block of dlib's recognition network, with its weights, on what the others make."""
    dlib = load_network("dlib-resnet", torch.device("cpu"))
    return DlibLastBlock(dlib.blocks[-1]), DLIB_MAPS[0]


MODELS: dict[str, Model] = {
    "mlp": Model("One hidden layer", None, _mlp, defaults={"epochs": 5}),
    "cnn": Model("Small CNN", SIDES["cnn"], _cnn, defaults={"learning_rate": 3e-3, "batch": 32}),
    "resnet18": _resnet("ResNet-18", "resnet18"),
    "resnet50": _resnet("ResNet-50", "resnet50"),
    "finetune": Model(
        "Last block of the recognition network", None, _last_block,
        defaults={"learning_rate": 3e-4, "epochs": 10, "augment": False}, maps=DLIB_MAPS,
    ),
}  # fmt: skip


def get_model(name: str) -> Model:
    """Look a model up by name, or say which there are."""
    return find("model", name, MODELS)


def read_options(model: str, values: dict | None = None) -> NetworkOptions:
    """Options of a model: its own defaults under ``values``; errors as of :func:`cid.options.read`."""
    return read(NetworkOptions, values or {}, "train.network", get_model(model).defaults)


@lru_cache
def _imagenet(name: str) -> tuple[dict | None, str]:
    """ImageNet weights from torch's hub cache or the network, or None and why; tried once a process."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).IMAGENET1K_V1
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(FETCH_SECONDS)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        reason = f"{cached} could not be read or fetched ({error})"
        log.warning("%s starts from scratch unless ImageNet is demanded: %s", name, reason)
        return None, reason
    finally:
        socket.setdefaulttimeout(before)
    return {key: value for key, value in state.items() if not key.startswith("fc.")}, ""


def initialisation(model: str, pretrained: str) -> str:
    """Where a model's first weights come from under a setting: "imagenet", "recognition" or "scratch".

    A ValueError if ``pretrained`` is "imagenet" and there are no such weights to be had, or it is
    not "auto" for a model that is part of a recognition network.
    """
    name = get_model(model).imagenet
    if get_model(model).maps:
        if pretrained != "auto":
            problem = f"pretrained is {pretrained}, but {model} starts from its recognition network"
            raise ValueError(f"{problem}; set it to auto")
        return "recognition"
    if pretrained == "none" or (pretrained == "auto" and name is None):
        return "scratch"
    if name is None:
        raise ValueError(f"model {model!r} has no ImageNet weights; set pretrained to auto or none")
    state, reason = _imagenet(name)
    if state is None and pretrained == "imagenet":
        problem = f"the ImageNet weights of {name} are not to be had: {reason}"
        raise ValueError(f"{problem}; put the file there or set pretrained to auto or none")
    return "scratch" if state is None else "imagenet"


def build_network(model, initialised, seed, stream, statistics, device) -> Net:
    """A new network on the device, its weights a function of seed and stream."""
    spec, (centre, spread) = get_model(model), statistics
    with BUILDING, torch.random.fork_rng(devices=[]):
        # Layers draw their weights from the global generator; only the CPU's is seeded, and put back.
        torch.random.default_generator.manual_seed(seed_for(seed, "weights", stream))
        body, width = spec.build(centre.shape[-1] if spec.side is None else None)
        net = Net(body, width, centre, spread)
    if initialised == "imagenet":
        body.load_state_dict(_imagenet(spec.imagenet)[0])
    layout = torch.channels_last if spec.side else torch.preserve_format
    return net.to(device, memory_format=layout)


def seed_for(seed: int, purpose: str, number: int) -> int:
    """A 63-bit seed of its own for every purpose and epoch."""
    words = ("weights", "order", "augment", "subset", "held").index(purpose), number
    return int(np.random.SeedSequence([int(seed), *words]).generate_state(1, np.uint64)[0] >> 1)
