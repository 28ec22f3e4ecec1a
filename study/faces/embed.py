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

import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cid.align import (
    DLIB_TEMPLATE,
    Detection,
    _bar,
    _check_images,
    _exact,
    _in_batches,
    align,
    detect,
)
from cid.device import pick_device
from cid.recognition import _load_network, _network
from study.faces.dataset import FaceSet
from study.source import code
from study.store import digest, kept


def aligned_faces(
    data: FaceSet, landmarks, size: int, *, chunk: int = 512, progress: bool = True
) -> Tensor:
    """Cut every face of a data set by stored landmarks.

    Parameters
    ----------
    data : FaceSet
    landmarks : array, shape (n, 5, 2)
        From :func:`cid.align.detect`.
    size : int
        Side of the faces in pixels: ``MODELS[model].side``.
    chunk : int
        Photos decoded at once.

    Returns
    -------
    uint8 tensor, shape (n, 3, size, size)

    Raises
    ------
    ValueError
        If there are not five landmarks for every image, or an image cannot be decoded.
    """
    if np.shape(landmarks) != (len(data), 5, 2):
        raise ValueError(
            f"landmarks have shape {np.shape(landmarks)}; {len(data)} images need "
            f"({len(data)}, 5, 2), so detect them again"
        )
    faces = torch.empty(len(data), 3, size, size, dtype=torch.uint8)
    faces = faces.contiguous(memory_format=torch.channels_last)  # as training wants them
    with tqdm(
        total=len(data), desc="align", unit="image", mininterval=5, disable=not progress
    ) as bar:
        for start in range(0, len(data), chunk):
            rows = slice(start, min(start + chunk, len(data)))
            photos = [data.image(row) for row in range(rows.start, rows.stop)]
            faces[rows] = align(photos, landmarks[rows], size, template=DLIB_TEMPLATE)
            bar.update(len(photos))
    return faces


CHUNK = 512  # photos decoded at once, and kept together


PRECISIONS = ("single", "half")


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
