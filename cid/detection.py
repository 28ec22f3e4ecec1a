"""Find the face in a photo: five landmarks, by which :func:`cid.align.align` cuts it out.

Three detectors, :data:`DETECTORS`. Each ends in the last network, O-Net, of MTCNN (Zhang et al. 2016, "Joint
Face Detection and Alignment Using Multitask Cascaded Convolutional Networks"), as packaged in facenet-pytorch:

- ``joined``: BlazeFace (:mod:`cid.blazeface`) says where the face is, O-Net where its landmarks are. MTCNN's
  own two steps before O-Net see a face badly where the picture ends near it; BlazeFace does not.
- ``margin``: MTCNN on the photo with a margin of repeated edge, and without one where that finds nothing. It
  stands in for ``joined`` where BlazeFace's file is not at hand.
- ``mtcnn``: MTCNN on the photo as it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cid import blazeface
from cid.align import DLIB_TEMPLATE, Images, checked_images, cut, exact, in_batches, stack
from cid.arrays import pick_device
from cid.names import find

DETECT_SIDE = 160  # px: photos are resized to this longer side for MTCNN
MIN_FACE = 0.2  # the smallest face MTCNN searches for, as a share of the photo's shorter side
SURE = 0.9  # faces of at least this probability compete by size and place
MARGIN = 0.3  # of `margin`: on every side, as a share of the photo's longer side
FALLBACK_SIDE = (
    0.7  # side of the centre crop where MTCNN finds no face, of the photo's shorter side
)
# BlazeFace sees something in every photo. Its best score was at least .2 in photographs of faces, however
# turned or cut, and .02 to .04 in pictures of one colour: below this the centre is cropped, wider, because
# where BlazeFace sees no face at all a photo of one is hardly more than the face.
NOTHING = 0.1
WIDE_FALLBACK_SIDE = 1.4
ONET_SIDE = 48  # px: of O-Net's input
ONET_BOX = 1.1  # side of O-Net's first square, of the longer side of BlazeFace's box


@dataclass(frozen=True)
class Detection:
    """The result of :func:`detect` for n photos."""

    landmarks: np.ndarray  # float32 (n, 5, 2), px of each photo, in the templates' order
    probability: (
        np.ndarray
    )  # float32 (n,), of the face that was kept; of MTCNN 0 where there is none
    faces: np.ndarray  # int64 (n,): the number of faces found
    found: np.ndarray  # bool (n,): whether there was any


def at_hand(detector: str) -> str:
    """Return the detector that runs where this one is asked for: without BlazeFace's file, another.

    ValueError if there is no detector of this name.
    """
    find("detector", detector, DETECTORS)
    if detector == "joined" and not blazeface.place().is_file():
        return "margin"
    return detector


def detect(
    images: Images, detector: str = "joined", *,
    device: str = "auto", batch_size: int | None = None, progress: bool = True,
) -> Detection:  # fmt: skip
    """Find one face in each photo.

    Among the faces of which a detector is sure, the one kept has the largest area minus twice the squared
    distance of its centre from the photo's. (By area alone, a bystander cut off by the edge often wins.)
    If it is sure of none, the most probable one is kept. MTCNN is sure from a probability of :data:`SURE`
    on, and may see no face at all: then the landmarks make `align` crop the central square of
    :data:`FALLBACK_SIDE`. BlazeFace is sure from .5 on, which alone counts as found; below, its best box
    is still looked at, which serves better than the middle of the picture. (Only where it sees nothing,
    below :data:`NOTHING`, the middle is cropped, :data:`WIDE_FALLBACK_SIDE` wide.)

    Parameters
    ----------
    images : iterable of uint8 arrays (h, w, 3), RGB
        Photos of one size share a batch.
    detector : str
        One of :data:`DETECTORS`. Without BlazeFace's file, `joined` is `margin`: see :func:`at_hand`.
    device : "auto" (CUDA where there is one) or any torch device
    batch_size : int, optional
        By default that of :data:`cid.align.BATCH`. A batch that does not fit into the device's memory is
        halved.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    ValueError
        If there is no image, or one is not a uint8 (h, w, 3) array (the message has its index); if there
        is no detector of this name, or BlazeFace's file is another than is known.
    """
    images = checked_images(images)
    find_faces = DETECTORS[at_hand(detector)]
    label = "detect" if progress else ""
    return find_faces(images, pick_device(device), batch_size, label)


def _find_joined(
    images: list[np.ndarray], device: torch.device, batch_size: int | None, label: str
) -> Detection:
    """BlazeFace's box, and the mean of the points that O-Net sees in two looks.

    The second look is along the box of the first, which matters where that of BlazeFace is off: for turned
    heads. It is no better elsewhere; the mean of both is. Measured with the recogniser dlib-resnet (class
    labels were not used, identities were), verification AUC and right pairs of the first look, the second,
    and their mean: 633 grey photographs with turned heads (CMU) .790 .070, .815 .078, .807 .074; 480
    photographs of PINS .994 .719, .992 .710, .994 .729; 400 rendered ones .990 .590, .987 .579, .988 .599.
    """
    boxes, scores, faces = _blazeface(images, device, batch_size, label)
    first, boxes = _onet(images, boxes, ONET_BOX, device, batch_size)
    second, _ = _onet(images, boxes, 1.0, device, batch_size)
    landmarks = (first + second) / 2
    # Points that coincide cannot be aligned, whatever the picture.
    usable = np.isfinite(landmarks).all((1, 2)) & (np.ptp(landmarks, axis=1) > 1e-2).all(1)
    nothing = (scores < NOTHING) | ~usable
    shapes = np.array([image.shape[:2] for image in images])
    landmarks[nothing] = _central(shapes[nothing], WIDE_FALLBACK_SIDE)
    return Detection(
        landmarks=landmarks.astype(np.float32),
        probability=scores.astype(np.float32),
        faces=faces,
        found=faces > 0,
    )


def _blazeface(
    images: list[np.ndarray], device: torch.device, batch_size: int | None, label: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (n, 4) in px of each photo, scores (n,), and how many sure faces there are (n,).

    Edges of boxes are counted from the upper left corner of the photo, so that its width is its right edge.
    """
    network = blazeface.load(device)
    n = len(images)
    side = blazeface.SIDE
    squares = torch.zeros(n, 3, side, side).to(memory_format=torch.channels_last)
    corners = np.zeros((n, 2))  # of the photo within its square, as (x, y)
    small_sides = np.zeros((n, 2))  # of the photo within its square: height, width
    shapes = np.array([image.shape[:2] for image in images])

    def fit(rows: list[int]) -> None:
        """Fit photos of one size into the middle of squares."""
        height, width = shapes[rows[0]]
        small = np.maximum(np.round(shapes[rows[0]] * side / max(height, width)).astype(int), 1)
        top, left = (side - small) // 2
        batch = stack(images, rows, device) / 127.5 - 1
        batch = F.interpolate(batch, tuple(small.tolist()), mode="bilinear", antialias=True)
        squares[rows, :, top : top + small[0], left : left + small[1]] = batch.cpu()
        corners[rows] = (left, top)
        small_sides[rows] = small

    in_batches(fit, shapes, batch_size, device)
    boxes = np.zeros((n, 4))
    scores = np.zeros(n)
    faces = np.zeros(n, np.int64)

    def look(rows: list[int]) -> None:
        with exact():
            coordinates, numbers = network(squares[rows].to(device))
        for row, *places in zip(
            rows, coordinates.cpu().numpy(), numbers.cpu().numpy(), strict=True
        ):
            found = blazeface.decode(*places)
            in_photo = found.boxes * side - np.tile(corners[row], 2)
            best = _choose(in_photo, found.scores, small_sides[row], blazeface.SURE)
            boxes[row] = in_photo[best] * np.tile((shapes[row] / small_sides[row])[::-1], 2)
            scores[row] = found.scores[best]
            faces[row] = (found.scores >= blazeface.SURE).sum()

    in_batches(look, np.full((n, 2), side), batch_size, device, label)
    return boxes, scores, faces


def _onet(
    images: list[np.ndarray], boxes: np.ndarray, factor: float,
    device: torch.device, batch_size: int | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Look at a square around a box of each photo by MTCNN's O-Net.

    Parameters
    ----------
    boxes : array (n, 4)
        Left, top, right, bottom, in px counted from the photo's corner.
    factor : float
        Side of the square, of the longer side of its box. Outside the photo its edge is repeated.

    Returns
    -------
    points : array (n, 5, 2)
        Landmarks, in px whose centres have integer coordinates.
    boxes : array (n, 4)
        The face's, as above.
    """
    network = _load_mtcnn(device, get_ident()).onet
    sides = factor * (boxes[:, 2:] - boxes[:, :2]).max(1).clip(1)
    corners = (boxes[:, :2] + boxes[:, 2:]) / 2 - sides[:, None] / 2
    squares = torch.zeros(len(images), 3, ONET_SIDE, ONET_SIDE, device=device)
    squares = squares.to(memory_format=torch.channels_last)

    def keep(rows: list[int], batch: Tensor) -> None:
        squares[rows] = (batch - 127.5) * 0.0078125

    a = ONET_SIDE / sides
    b = -(corners @ (1, 1j)) * a - (0.5 + 0.5j) * (1 - a)
    cut(images, a + 0j, b, ONET_SIDE, keep, device=device, batch_size=batch_size, outside="border")
    outputs = np.empty((len(images), 14))

    def look(rows: list[int]) -> None:
        with exact():
            edges, points, _ = network(squares[rows])
        outputs[rows] = torch.cat([edges, points], 1).cpu().numpy()

    in_batches(look, np.full((len(images), 2), ONET_SIDE), batch_size, device)
    square_boxes = np.concatenate([corners, corners + sides[:, None]], 1)
    boxes = square_boxes + outputs[:, :4] * sides[:, None]
    points = outputs[:, 4:].reshape(-1, 2, 5).transpose(0, 2, 1)
    points = points * sides[:, None, None] + corners[:, None] - 0.5
    return points, boxes


def _find_with_margin(
    images: list[np.ndarray], device: torch.device, batch_size: int | None, label: str
) -> Detection:
    margins = [round(MARGIN * max(image.shape[:2])) for image in images]
    padded = [
        np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        for image, margin in zip(images, margins, strict=True)
    ]
    wide = _find_by_mtcnn(padded, device, batch_size, label)
    landmarks = wide.landmarks - np.array(margins, np.float32)[:, None, None]
    missed = np.flatnonzero(~wide.found)
    if len(missed):
        near = _find_by_mtcnn([images[row] for row in missed], device, batch_size, "")
        landmarks[missed] = near.landmarks
        for name in ("probability", "faces", "found"):
            getattr(wide, name)[missed] = getattr(near, name)
    return Detection(landmarks, wide.probability, wide.faces, wide.found)


def _find_by_mtcnn(
    images: list[np.ndarray], device: torch.device, batch_size: int | None, label: str
) -> Detection:
    shapes = np.array([image.shape[:2] for image in images])  # height, width
    landmarks = _central(shapes, FALLBACK_SIDE)
    probability = np.zeros(len(images), np.float32)
    faces = np.zeros(len(images), np.int64)

    def look(rows: list[int]) -> None:
        batch = stack(images, rows, device)
        sides = np.array(batch.shape[2:])
        small_sides = np.maximum(np.round(sides * DETECT_SIDE / sides.max()).astype(int), 12)
        shape = tuple(small_sides.tolist())
        batch = F.interpolate(batch, shape, mode="bilinear", antialias=True)
        for row, (boxes, probabilities, points) in zip(rows, _mtcnn(batch), strict=True):
            if len(boxes) == 0:
                continue
            best = _choose(boxes, probabilities, small_sides, SURE)
            faces[row] = len(boxes)
            probability[row] = probabilities[best]
            # Pixel centres have integer coordinates, so resizing also shifts.
            landmarks[row] = (points[best] + 0.5) * (sides / small_sides)[::-1] - 0.5

    in_batches(look, shapes, batch_size, device, label)
    return Detection(landmarks, probability, faces, found=faces > 0)


def _central(shapes: np.ndarray, share: float) -> np.ndarray:
    """Return landmarks (n, 5, 2) on dlib's template of the central square, `share` of the shorter side wide.

    ``shapes`` (n, 2) are height and width of the photos.
    """
    sides = share * shapes.min(1)[:, None, None]
    corners = (shapes[:, None, ::-1] - sides) / 2
    return (DLIB_TEMPLATE * sides + corners - 0.5).astype(np.float32)


# By name. `study/pipeline/params.py` reads these keys from the source: importing torch would take seconds.
DETECTORS: dict[str, Callable[..., Detection]] = {
    "joined": _find_joined,
    "margin": _find_with_margin,
    "mtcnn": _find_by_mtcnn,
}


def _mtcnn(batch: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield boxes (k, 4), probabilities (k,) and points (k, 5, 2) for each image of a float batch."""
    # Each thread has its own detector, because the smallest face is a setting of the detector.
    detector = _load_mtcnn(batch.device, get_ident())
    detector.min_face_size = max(12, int(MIN_FACE * min(batch.shape[2:])))
    with exact():
        boxes, probabilities, points = detector.detect(batch.permute(0, 2, 3, 1), landmarks=True)
    for image in zip(boxes, probabilities, points, strict=True):
        if image[0] is None:  # no face
            yield np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2))
        else:
            yield tuple(part.astype(float) for part in image)


@lru_cache(maxsize=16)
def _load_mtcnn(device: torch.device, thread: int) -> nn.Module:
    from facenet_pytorch import MTCNN

    # Channels last: without it the networks' pooling takes a third of the time on a CPU.
    return MTCNN(keep_all=True, device=device).eval().to(memory_format=torch.channels_last)


def _choose(boxes: np.ndarray, probabilities: np.ndarray, shape: np.ndarray, sure: float) -> int:
    """Choose the face to keep in an image of this (height, width); return its number."""
    candidates = probabilities >= sure
    if not candidates.any():
        return int(np.argmax(probabilities))
    low = boxes[:, :2]
    high = boxes[:, 2:]
    area = (high - low).prod(1)
    off_centre = (((low + high) / 2 - shape[::-1] / 2) ** 2).sum(1)
    return int(np.argmax(np.where(candidates, area - 2 * off_centre, -np.inf)))
