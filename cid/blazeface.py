"""BlazeFace, short range: where faces are in a photo, and how sure that is.

V. Bazarevsky, Y. Kartynnik, A. Vakunov, K. Raveendran, M. Grundmann. BlazeFace: Sub-millisecond Neural Face
Detection on Mobile GPUs. 2019, arXiv 1907.05047. The weights are those of MediaPipe, Apache 2.0, in the file
`face_detection_short_range.tflite`: 128 px in, and 896 places at which a face may be.

This is a port to torch of the file's 37 convolutions (16 blocks of two, the first, and four heads). It runs
in batches on any device. Against the file's own interpreter (ai-edge-litert 2.3.0, on 200 photographs of LFW
and 8 pictures of noise) coordinates differ by up to .004 px, where in noise they reach 3,300 px, and the
scores of faces by up to .000002.

How numbers become boxes, as in MediaPipe's graph `face_detection_short_range`: see :func:`decode`.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cid.tflite import CONVOLUTIONS, Graph

FILE = "face_detection_short_range.tflite"
SHA256 = "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633"
SIDE = 128  # px: photos are fitted into a square of this side
# Places at which a face may be: a regular grid of so many a side, and so many faces at each.
GRIDS = ((16, 2), (8, 6))
# Of the blocks: the channels that leave each, and those that halve height and width.
CHANNELS = (24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88, 96, 96, 96, 96, 96)
HALVING = (2, 5, 11)
SURE = 0.5  # MediaPipe's `min_score_thresh`: less likely places are no faces
SAME_FACE = 0.3  # boxes that share more of their union show one face: `min_suppression_threshold`


class Faces(NamedTuple):
    """The faces in one photo, the surest first; at least one, however unsure."""

    boxes: np.ndarray  # float64 (k, 4): left, top, right, bottom, in parts of the square
    scores: np.ndarray  # float64 (k,), in [0, 1]


class Block(nn.Module):
    """A depthwise and a pointwise convolution beside a shortcut, which is pooled if they halve the sides.

    Where more channels leave than enter, the shortcut adds nothing to the further ones.
    """

    def __init__(self, channels: int, channels_out: int, halves: bool):
        super().__init__()
        self.halves = halves
        # TensorFlow pads an even side for stride 2 on its far edge alone, which `forward` does.
        self.depthwise = nn.Conv2d(
            channels, channels, 3, 2 if halves else 1, 0 if halves else 1, groups=channels
        )
        self.pointwise = Pointwise(channels, channels_out)

    def forward(self, maps: Tensor) -> Tensor:
        padded = F.pad(maps, (0, 1, 0, 1)) if self.halves else maps
        new = self.pointwise(self.depthwise(padded))
        shortcut = F.max_pool2d(maps, 2) if self.halves else maps
        new[:, : shortcut.shape[1]] += shortcut
        return new.relu_()


class Pointwise(nn.Linear):
    """A convolution with kernels of 1 x 1: a matrix product, a third faster on a CPU than `nn.Conv2d`."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BlazeFace(nn.Module):
    """The network: float pictures (n, 3, 128, 128) in -1..1 to numbers for each of the 896 places.

    Returns ``coordinates`` (n, 896, 16) and ``faces`` (n, 896), as :func:`decode` takes them.
    """

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS[0], 5, 2)
        blocks = []
        channels = CHANNELS[0]
        for number, channels_out in enumerate(CHANNELS):
            blocks.append(Block(channels, channels_out, number in HALVING))
            channels = channels_out
        self.fine = nn.Sequential(*blocks[: HALVING[-1]])
        self.coarse = nn.Sequential(*blocks[HALVING[-1] :])
        kinds = [(CHANNELS[HALVING[-1] - 1], GRIDS[0][1]), (CHANNELS[-1], GRIDS[1][1])]
        self.faces = nn.ModuleList(Pointwise(wide, count) for wide, count in kinds)
        self.coordinates = nn.ModuleList(Pointwise(wide, 16 * count) for wide, count in kinds)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        maps = F.relu(self.first(F.pad(pictures, (1, 2, 1, 2))))
        fine = self.fine(maps)
        coarse = self.coarse(fine)
        n = len(pictures)
        faces = []
        coordinates = []
        for number, maps in enumerate((fine, coarse)):
            # Channels last, so that the faces at one point of the grid follow each other.
            faces.append(self.faces[number](maps).permute(0, 2, 3, 1).reshape(n, -1))
            places = self.coordinates[number](maps).permute(0, 2, 3, 1)
            coordinates.append(places.reshape(n, -1, 16))
        return torch.cat(coordinates, 1), torch.cat(faces, 1)


def place() -> Path:
    """Return where the file is looked for: where torch keeps the weights that it downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def read(data: bytes) -> BlazeFace:
    """Return the network with the weights of the TensorFlow Lite file."""
    graph = Graph(data)
    convolutions = [
        graph.convolution(operator) for operator in graph.operators if operator.kind in CONVOLUTIONS
    ]
    network = BlazeFace()
    blocks = [*network.fine, *network.coarse]
    layers = [network.first]
    for block in blocks:
        layers += [block.depthwise, block.pointwise]
    layers += [*network.faces, *network.coordinates]
    for layer, convolution in zip(layers, convolutions, strict=True):
        weight = torch.tensor(convolution.weight).reshape(layer.weight.shape)
        layer.load_state_dict({"weight": weight, "bias": torch.tensor(convolution.bias)})
    return network


def load(device: torch.device) -> BlazeFace:
    """Load the network onto a device, in eval mode; later calls return the same module.

    FileNotFoundError if its file is not at :func:`place`; ValueError if that is another file.
    """
    file = place()
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; python -m study detector fetches it, or detect faces with margin"
        )
    return _loaded(file, device)


@lru_cache(maxsize=4)
def _loaded(file: Path, device: torch.device) -> BlazeFace:
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != SHA256:
        raise ValueError(f"{file} has another SHA-256 than {SHA256[:16]}; remove it")
    network = read(data).eval().to(device)
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def anchors() -> np.ndarray:
    """Return the points of the square, (896, 2) as (x, y) in 0..1, from which boxes are counted.

    They are the centres of the cells of :data:`GRIDS`, row by row, each as often as a face may be there
    (MediaPipe's `SsdAnchorsCalculator` with strides 8, 16, 16, 16 and anchors of one size).
    """
    points = []
    for cells, count in GRIDS:
        centres = (np.arange(cells) + 0.5) / cells
        across, down = np.meshgrid(centres, centres)
        grid = np.stack([across.ravel(), down.ravel()], 1)
        points.append(np.repeat(grid, count, axis=0))
    return np.concatenate(points)


def decode(coordinates: np.ndarray, faces: np.ndarray) -> Faces:
    """Turn the numbers of one picture into its faces.

    A place's first four numbers are its box: the way from its anchor to the box's centre, right and down,
    then width and height, all in px of the 128. Its face's score is the logistic function of the other
    number. Places of at least :data:`SURE` are joined, from the surest on: those that share more than
    :data:`SAME_FACE` of their union with it are one face, whose box is their mean, weighted by score. If
    no place is sure, the surest is the only face. (MediaPipe: `TensorsToDetectionsCalculator`,
    `NonMaxSuppressionCalculator` with WEIGHTED.) The other twelve numbers, six points, are not used.

    Parameters
    ----------
    coordinates : array (896, 16)
    faces : array (896,)
    """
    scores = 1 / (1 + np.exp(-np.clip(np.asarray(faces, float), -100, 100)))
    rows = np.flatnonzero(scores >= SURE)
    if not len(rows):
        rows = np.array([np.argmax(scores)])
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    scores = scores[rows]
    numbers = np.asarray(coordinates, float)[rows, :4] / SIDE
    centres = numbers[:, :2] + ANCHORS[rows]
    boxes = np.concatenate([centres - numbers[:, 2:] / 2, centres + numbers[:, 2:] / 2], 1)
    joined = []
    best = []
    while len(scores):
        same = _overlap(boxes[0], boxes) > SAME_FACE
        same[0] = True  # a box without an area overlaps nothing, itself included
        joined.append(np.average(boxes[same], axis=0, weights=scores[same]))
        best.append(scores[0])
        boxes = boxes[~same]
        scores = scores[~same]
    return Faces(np.array(joined), np.array(best))


ANCHORS = anchors()


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the share of their union that a box has in common with each of others (k, 4)."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
    area = (box[2:] - box[:2]).clip(0).prod()
    return common / np.maximum(area + areas - common, 1e-12)
