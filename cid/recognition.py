"""Face-recognition networks: from aligned crops to unit vectors and mid-level features.

A network's unit-norm embedding is the proxy for identity, in which densities are estimated. Its
mid-level map, the trunk, is the input of the linear heads.
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
    """A face-recognition network and the crops it takes."""

    dimension: int  # of the embedding
    trunk_dimension: int  # of the flattened trunk
    size: int  # px: side of the crops
    template: np.ndarray  # of the crops: see :func:`cid.align.align`
    licence: str
    source: str
    load: Callable[[], nn.Module]  # float crops in 0..255 -> (embedding of any norm, trunk)
    key: str = ""  # for a network outside NETWORKS: what its embeddings depend on besides the crops


@dataclass(frozen=True)
class Embeddings:
    """The result of :func:`embed`, on the CPU."""

    embedding: Tensor  # float32 (n, d), of unit norm
    trunk: Tensor  # float32 (n, t)


def embed(
    crops: Tensor, network: str | Network = "dlib-resnet", *, precision: str = "single",
    device: str = "auto", batch_size: int | None = None, progress: bool = False,
) -> Embeddings:  # fmt: skip
    """Run a face-recognition network on aligned crops.

    Parameters
    ----------
    crops : uint8 or float32 tensor (n, 3, size, size)
        From :func:`cid.align.align`, with the network's size and template; best not rounded.
    network : str or Network
        A key of :data:`NETWORKS`, or another network.
    precision : {"single", "half"}
        "single": float32 without TF32. "half": float16 where that is safe, for speed on a GPU;
        embeddings differ by a few 1e-3. It has no effect on a network that torch does not run.
    device, batch_size, progress
        As in :func:`cid.detection.detect`.

    Raises
    ------
    ValueError
        If the name is unknown, the crops do not fit, or the weights are unreadable.
    FileNotFoundError
        If the weights are missing.
    ConnectionError
        If the weights cannot be downloaded.

    Examples
    --------
    >>> crops = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    >>> embed(crops, "pixels", device="cpu").embedding.shape
    torch.Size([2, 256])
    """
    spec = get_network(network)
    name = network if isinstance(network, str) else network.source
    crops = _checked(crops, name, spec.size)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    device = pick_device(device)
    model = load_network(network, device)
    embedding = torch.empty(len(crops), spec.dimension)
    trunk = torch.empty(len(crops), spec.trunk_dimension)

    def forward(rows: list[int], batch: Tensor) -> None:
        with torch.autocast(device.type, torch.float16, enabled=precision == "half"):
            vectors, maps = model(batch)
        embedding[rows] = F.normalize(vectors.float(), dim=1).cpu()
        trunk[rows] = maps.float().cpu()

    label = f"embed ({name})" if progress else ""
    _in_batches(forward, crops, batch_size, device, label)
    return Embeddings(embedding, trunk)


def activations(
    crops: Tensor, *, device: str = "auto", batch_size: int | None = None, progress: bool = False
) -> Tensor:
    """Compute the input of the last block of dlib's network, for fine-tuning that block.

    Parameters and errors are those of :func:`embed`.

    Returns
    -------
    float16 tensor (n, 256, 4, 4), on the CPU
        Values are at most about 20; float16 rounds them by less than 0.05 %.
    """
    crops = _checked(crops, "dlib-resnet", NETWORKS["dlib-resnet"].size)
    device = pick_device(device)
    network = load_network("dlib-resnet", device)
    maps = torch.empty(len(crops), *DLIB_MAPS, dtype=torch.float16)

    def forward(rows: list[int], batch: Tensor) -> None:
        maps[rows] = network.stem(batch, DLIB_FROZEN).half().cpu()

    _in_batches(forward, crops, batch_size, device, "activations" if progress else "")
    return maps


def _in_batches(
    forward: Callable[[list[int], Tensor], None],
    crops: Tensor,
    batch_size: int | None,
    device: torch.device,
    label: str,
) -> None:
    """Call ``forward(rows, batch)`` with float crops on the device, batch by batch."""

    def compute(rows: list[int]) -> None:
        batch = crops[rows].to(device).float()
        forward(rows, batch.contiguous(memory_format=torch.channels_last))

    with exact():
        in_batches(compute, [crops.shape[2:]] * len(crops), batch_size, device, label)


def _checked(crops, network: str, size: int) -> Tensor:
    """Crops as a tensor, or a ValueError that says which ones the network needs."""
    if not isinstance(crops, Tensor):
        crops = array("crops", crops)
    dtype = str(crops.dtype).removeprefix("torch.")
    if dtype not in ("uint8", "float32") or crops.shape[1:] != (3, size, size):
        raise ValueError(
            f"crops are {crops.dtype} of shape {tuple(crops.shape)}; "
            f"{network} needs uint8 or float32 of shape (n, 3, {size}, {size})"
        )
    crops = torch.as_tensor(crops)
    if crops.is_floating_point() and len(crops):
        low, high = (float(end) for end in torch.aminmax(crops))
        if low < 0 or 0 < high <= 1 or high > 255:  # all black is a picture, too
            raise ValueError(
                f"crops are float32 from {low:g} to {high:g}; {network} needs pixels from 0 to 255"
            )
    return crops


class Pixels(nn.Module):
    """No network at all: grey pixels minus their mean, as the embedding and as the trunk."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grey = x.mean(1).flatten(1)
        grey = grey - grey.mean(1, keepdim=True)
        return grey, grey


class FaceNet(nn.Module):
    """facenet-pytorch's Inception-ResNet v1; the trunk is `repeat_1`, average pooled to 4 x 4."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.last_call = local()  # threads can share a network
        net.repeat_1.register_forward_hook(self._keep_map)

    def _keep_map(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.last_call.map = output

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.net((x - 127.5) / 128)
        return vectors, F.adaptive_avg_pool2d(self.last_call.map, 4).flatten(1)


def _facenet(name: str, data: str, date: str) -> Network:
    """A network of facenet-pytorch, by its training data and the date in its weights' file name."""
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
            raise ValueError(
                f"{path} does not hold the weights of {name}; fetch it again"
            ) from error

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


# Keyed by name. `study/pipeline/params.py` reads these keys from the source: importing torch would
# take seconds.
NETWORKS: dict[str, Network] = {
    "dlib-resnet": Network(
        dimension=128,
        trunk_dimension=2048,  # 128 channels, 4 x 4
        size=150,
        template=DLIB_TEMPLATE,
        licence="public domain (CC0)",
        source="King 2017, dlib_face_recognition_resnet_model_v1, http://dlib.net/files",
        load=load_dlib,
    ),
    "facenet-vggface2": _facenet("facenet-vggface2", "VGGFace2", "20180402-114759"),
    "facenet-casia": _facenet("facenet-casia", "CASIA-WebFace", "20180408-102900"),
    # No face was used to train these two, which serve as controls.
    "untrained": Network(
        dimension=128,
        trunk_dimension=2048,
        size=150,
        template=DLIB_TEMPLATE,
        licence="none needed",
        source="random weights",
        load=load_untrained_dlib,
    ),
    "pixels": Network(
        dimension=256,
        trunk_dimension=256,
        size=16,
        template=DLIB_TEMPLATE,
        licence="none needed",
        source="16 x 16 grey pixels",
        load=Pixels,
    ),
}


def get_network(network: str | Network) -> Network:
    """Look up a network by name; the error for an unknown name lists the known ones.

    A :class:`Network` is returned as it is.

    Examples
    --------
    >>> get_network("facenet-casia").size
    160
    """
    if isinstance(network, Network):
        return network
    return find("network", network, NETWORKS)


def load_network(network: str | Network, device: torch.device) -> nn.Module:
    """Load a network onto a device, in eval mode; later calls return the same module."""
    return _loaded(get_network(network), device)


@lru_cache(maxsize=4)
def _loaded(spec: Network, device: torch.device) -> nn.Module:
    return spec.load().eval().to(device)
