"""Face-recognition networks: from aligned crops to unit vectors and mid-level features.

A network's unit-norm embedding is the proxy for identity, in which densities are estimated; its
mid-level map, the trunk, is the input of the trained heads.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import local

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cid.align import DLIB_TEMPLATE, FACENET_TEMPLATE, exact, in_batches
from cid.arrays import array, pick_device
from cid.dlib import DLIB_FROZEN, DLIB_MAPS, load_dlib, load_untrained_dlib
from cid.moved import forwarder
from cid.names import find

PRECISIONS = ("single", "half")

MOVED = {
    "DlibBlock": "cid.dlib.DlibBlock",
    "DlibLastBlock": "cid.dlib.DlibLastBlock",
    "DlibResNet": "cid.dlib.DlibResNet",
    "read_dlib_weights": "cid.dlib.read_dlib_weights",
}
__getattr__ = forwarder(__name__, MOVED)


@dataclass(frozen=True, eq=False)
class Network:
    """A network and the crops it takes, of side ``size`` and cut with ``template``."""

    dimension: int
    trunk_dimension: int
    size: int
    template: np.ndarray
    licence: str
    source: str
    load: Callable[[], nn.Module]  # float crops in 0..255 -> (embedding of any norm, trunk)
    key: str = ""  # of a network of no registry: what its embeddings come from besides the crops


@dataclass(frozen=True)
class Embeddings:
    """What :func:`embed` gives, on the CPU."""

    embedding: Tensor  # float32 (n, d), of unit norm
    trunk: Tensor  # float32 (n, t)


def embed(
    crops: Tensor, network: str | Network = "dlib-resnet", *, precision: str = "single",
    device: str = "auto", batch_size: int | None = None, progress: bool = False,
) -> Embeddings:  # fmt: skip
    """Run a network, of :data:`NETWORKS` by its name or another, on aligned crops.

    Parameters
    ----------
    crops : uint8 tensor (n, 3, size, size)
        From :func:`cid.align.align`, with the network's size and template.
    precision : {"single", "half"}
        float32, TF32 off; or float16 where that is safe, for speed on a GPU: embeddings differ by a
        few 1e-3. A network that torch does not run is as it is.
    device, batch_size, progress
        As in :func:`cid.align.detect`.

    Raises
    ------
    ValueError, FileNotFoundError, ConnectionError
        If the name is unknown, the crops do not fit, or the weights are unreadable; if the weights are
        missing; if they cannot be downloaded.
    """
    spec, name = get_network(network), network if isinstance(network, str) else network.source
    crops = _checked(crops, name, spec.size)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    device = pick_device(device)
    model = load_network(network, device)
    embedding = torch.empty(len(crops), spec.dimension)
    trunk = torch.empty(len(crops), spec.trunk_dimension)

    def forward(rows: list[int], batch: Tensor) -> None:
        vector, features = model(batch)
        embedding[rows] = F.normalize(vector.float(), dim=1).cpu()
        trunk[rows] = features.float().cpu()

    label = f"embed ({name})" if progress else ""
    with torch.autocast(device.type, torch.float16, enabled=precision == "half"):
        _in_batches(forward, crops, batch_size, device, label)
    return Embeddings(embedding, trunk)


def _in_batches(forward, crops: Tensor, batch_size, device, label: str) -> None:
    def compute(rows: list[int]) -> None:
        batch = crops[rows].to(device).float()
        forward(rows, batch.contiguous(memory_format=torch.channels_last))

    with exact():
        in_batches(compute, [crops.shape[2:]] * len(crops), batch_size, device, label)


def _checked(crops, network: str, size: int) -> Tensor:
    crops = crops if isinstance(crops, Tensor) else array("crops", crops)
    if str(crops.dtype).removeprefix("torch.") != "uint8" or crops.shape[1:] != (3, size, size):
        given = f"crops are {crops.dtype} of shape {tuple(crops.shape)}"
        raise ValueError(f"{given}; {network} needs uint8 of shape (n, 3, {size}, {size})")
    return torch.as_tensor(crops)


def activations(
    crops: Tensor, *, device: str = "auto", batch_size: int | None = None, progress: bool = False
) -> Tensor:
    """What dlib's network makes of aligned crops before its last block, which can be fine-tuned on it.

    Float16 (n, 256, 4, 4), on the CPU, in which the network's values (at most some 20) are rounded by
    less than 0.05 %; arguments and errors are as of :func:`embed`.
    """
    crops = _checked(crops, "dlib-resnet", NETWORKS["dlib-resnet"].size)
    device = pick_device(device)
    net = load_network("dlib-resnet", device)
    maps = torch.empty(len(crops), *DLIB_MAPS, dtype=torch.float16)

    def forward(rows: list[int], batch: Tensor) -> None:
        maps[rows] = net.stem(batch, DLIB_FROZEN).half().cpu()

    _in_batches(forward, crops, batch_size, device, "activations" if progress else "")
    return maps


class Pixels(nn.Module):
    """No network at all: grey pixels less their mean, as the embedding and as the trunk."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grey = x.mean(1).flatten(1)
        grey = grey - grey.mean(1, keepdim=True)
        return grey, grey


class FaceNet(nn.Module):
    """facenet-pytorch's Inception-ResNet v1; the trunk is `repeat_1`, average pooled to 4 x 4."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.kept = net, local()  # threads may share a network
        net.repeat_1.register_forward_hook(lambda *call: setattr(self.kept, "map", call[-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.net((x - 127.5) / 128)
        return vector, F.adaptive_avg_pool2d(self.kept.map, 4).flatten(1)


def _facenet(name: str, data: str, date: str) -> Network:
    """Of the network's name, the data it was trained on, and the date in its weights' file name."""
    pretrained = data.lower()
    file = f"{date}-{pretrained}.pt"

    def load() -> nn.Module:
        from facenet_pytorch import InceptionResnetV1
        from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

        path = Path(get_torch_home()) / "checkpoints" / file
        try:
            return FaceNet(InceptionResnetV1(pretrained=pretrained))
        except OSError as error:
            raise ConnectionError(
                f"the weights of {name} could not be downloaded ({error}); fetch {file} from "
                "https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9 elsewhere and put "
                f"it at {path}, or use dlib-resnet, which needs no download"
            ) from error
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            message = f"{path} does not hold the weights of {name}; fetch it again"
            raise ValueError(message) from error

    return Network(
        dimension=512,
        trunk_dimension=4096,  # 256 channels, 4 x 4
        size=160,
        template=FACENET_TEMPLATE,
        licence=f"code and weights MIT; {data}, which they were trained on, is for research",
        source="Schroff, Kalenichenko and Philbin 2015, FaceNet; Inception-ResNet v1 trained by "
        f"D. Sandberg on {data}, converted by facenet-pytorch",
        load=load,
    )


DLIB_SIZES = 128, 2048, 150, DLIB_TEMPLATE  # the trunk has 128 channels, 4 x 4
NETWORKS: dict[str, Network] = {
    "dlib-resnet": Network(
        *DLIB_SIZES,
        licence="public domain (CC0)",
        source="King 2017, dlib_face_recognition_resnet_model_v1, http://dlib.net/files",
        load=load_dlib,
    ),
    "facenet-vggface2": _facenet("facenet-vggface2", "VGGFace2", "20180402-114759"),
    "facenet-casia": _facenet("facenet-casia", "CASIA-WebFace", "20180408-102900"),
    # No face was used to train these, with which others are compared.
    "untrained": Network(*DLIB_SIZES, "none needed", "random weights", load_untrained_dlib),
    "pixels": Network(256, 256, 16, DLIB_TEMPLATE, "none needed", "16 x 16 grey pixels", Pixels),
}


def get_network(network: str | Network) -> Network:
    """A network of :data:`NETWORKS` by its name, or a ValueError that says which there are."""
    return network if isinstance(network, Network) else find("network", network, NETWORKS)


def load_network(network: str | Network, device: torch.device) -> nn.Module:
    """A network as of :func:`get_network`, on a device and in eval mode; loaded once."""
    return _loaded(get_network(network), device)


@lru_cache(maxsize=4)
def _loaded(spec: Network, device: torch.device) -> nn.Module:
    return spec.load().eval().to(device)
