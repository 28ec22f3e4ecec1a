"""Find the face in a photo, and crop it so that eyes, nose and mouth lie where a network expects them.

:func:`detect` finds five landmarks by MTCNN (Zhang et al. 2016, "Joint Face Detection and Alignment
Using Multitask Cascaded Convolutional Networks") as packaged in facenet-pytorch; :func:`align` moves
them to a template by a similarity transform. Pixel centres have integer coordinates, points are (x, y).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cid.arrays import pick_device, reals
from cid.settings import Count, checked

# A template says where the left eye, the right eye (as seen in the picture), the nose and the corners
# of the mouth go in a crop of side 1.
# dlib's was measured in faces that dlib cropped for its own network, in pixels of a 150 px crop.
DLIB_TEMPLATE = np.array([(45, 40.3), (101.8, 40.3), (73.2, 73.3), (48.6, 99.4), (97.2, 99.4)])
DLIB_TEMPLATE = (DLIB_TEMPLATE + 0.5) / 150
# FaceNet's is wider and lower: the median place of the landmarks over photos of 60 people, made
# symmetric, in MTCNN's box plus the margin of 14 in 160 that facenet-pytorch evaluates with.
FACENET_TEMPLATE = np.array([(288, 405), (712, 405), (500, 589), (309, 741), (691, 741)]) / 1000
DETECT_SIDE = 160  # px: photos are resized to this longer side for MTCNN
MIN_FACE = 0.2  # the smallest face searched for, as a share of the photo's shorter side
SURE = 0.9  # faces of at least this probability compete by size and place
FALLBACK_SIDE = (
    0.7  # side of the centre crop where no face is found, as a share of the shorter side
)
BATCH = {"cpu": 32, "cuda": 1024}  # images in a batch at first; a batch that does not fit is halved
PIXELS = 64 * 300 * 300  # source pixels held as floats at once, which bounds memory on large photos

Images = Iterable[np.ndarray]  # uint8 (h, w, 3), RGB; sizes may differ


@dataclass(frozen=True)
class Detection:
    """The result of :func:`detect` for n photos."""

    landmarks: np.ndarray  # float32 (n, 5, 2), px of each photo, in the templates' order
    probability: np.ndarray  # float32 (n,), of the face that was kept; 0 where there is none
    faces: np.ndarray  # int64 (n,): the number of faces found
    found: np.ndarray  # bool (n,): whether there was any


def detect(
    images: Images, *, device: str = "auto", batch_size: int | None = None, progress: bool = True
) -> Detection:
    """Find one face in each photo with MTCNN, with settings for portraits.

    Among the faces with a probability of at least `SURE`, the one kept has the largest area minus twice
    the squared distance of its centre from the photo's. (By area alone, a bystander cut off by the
    edge often wins.) If there is none, the most probable face is kept. Where there is no face, the
    landmarks make `align` crop the central square whose side is `FALLBACK_SIDE` of the shorter side.

    Parameters
    ----------
    images : iterable of uint8 arrays (h, w, 3), RGB
        Photos of one size share a batch.
    device : "auto" (CUDA where there is one) or any torch device
    batch_size : int, optional
        By default that of :data:`BATCH`. A batch that does not fit into the device's memory is halved.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    ValueError
        If there is no image, or one is not a uint8 (h, w, 3) array; the message has its index.
    """
    images = _checked(images)
    device = pick_device(device)
    shapes = np.array([image.shape[:2] for image in images])  # height, width
    # The fallback: landmarks on the template of the central square.
    square_sides = FALLBACK_SIDE * shapes.min(1)[:, None, None]
    square_corners = (shapes[:, None, ::-1] - square_sides) / 2
    landmarks = (DLIB_TEMPLATE * square_sides + square_corners - 0.5).astype(np.float32)
    probability = np.zeros(len(images), np.float32)
    faces = np.zeros(len(images), np.int64)

    def find(rows: list[int]) -> None:
        batch = _stack(images, rows, device)
        sides = np.array(batch.shape[2:])
        small_sides = np.maximum(np.round(sides * DETECT_SIDE / sides.max()).astype(int), 12)
        shape = tuple(small_sides.tolist())
        batch = F.interpolate(batch, shape, mode="bilinear", antialias=True)
        for row, (boxes, probabilities, points) in zip(rows, _mtcnn(batch), strict=True):
            if len(boxes) == 0:
                continue
            best = _choose(boxes, probabilities, small_sides)
            faces[row] = len(boxes)
            probability[row] = probabilities[best]
            # Pixel centres have integer coordinates, so resizing also shifts.
            landmarks[row] = (points[best] + 0.5) * (sides / small_sides)[::-1] - 0.5

    in_batches(find, shapes, batch_size, device, "detect" if progress else "")
    return Detection(landmarks, probability, faces, found=faces > 0)


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


def _choose(boxes: np.ndarray, probabilities: np.ndarray, shape: np.ndarray) -> int:
    """Choose the face to keep in an image of this (height, width); return its number."""
    sure = probabilities >= SURE
    if not sure.any():
        return int(np.argmax(probabilities))
    low = boxes[:, :2]
    high = boxes[:, 2:]
    area = (high - low).prod(1)
    off_centre = (((low + high) / 2 - shape[::-1] / 2) ** 2).sum(1)
    return int(np.argmax(np.where(sure, area - 2 * off_centre, -np.inf)))


def similarity(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the rotation, scale and shift that move points to a target by least squares, no reflection.

    Umeyama (1991), "Least-squares estimation of transformation parameters between two point patterns",
    in the plane: a linear regression z -> a z + b of points as complex numbers.

    Parameters
    ----------
    points : array (n, k, 2)
    target : array (n, k, 2), or (k, 2) for all

    Returns
    -------
    a : complex array (n,)
        Its absolute value is the scale, its angle the rotation.
    b : complex array (n,)
        The shift.

    Raises
    ------
    ValueError
        If points are not finite or all coincide; the message has the first such row.

    Examples
    --------
    >>> square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    >>> a, b = similarity(square[None], 2 * square + 5)
    >>> bool(np.allclose([a[0], b[0]], [2, 5 + 5j]))
    True
    """
    points = np.asarray(points, float)
    with np.errstate(invalid="ignore"):  # values that are not finite are refused below
        z = points @ (1, 1j)
        w = np.broadcast_to(target, points.shape) @ (1, 1j)
    z_mean = z.mean(1, keepdims=True)
    w_mean = w.mean(1, keepdims=True)
    spread = (abs(z - z_mean) ** 2).sum(1)
    bad = ~(np.isfinite(spread) & (spread > 1e-6))
    if bad.any():
        raise ValueError(
            f"landmarks of row {int(np.argmax(bad))} are not finite or all coincide; "
            "give five distinct points"
        )
    a = ((z - z_mean).conj() * (w - w_mean)).sum(1) / spread
    b = w_mean[:, 0] - a * z_mean[:, 0]
    return a, b


def align(
    images: Images, landmarks: np.ndarray, size: int = 150, *,
    template: np.ndarray = DLIB_TEMPLATE, device: str = "auto", batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Crop each face so that its landmarks fall on the template.

    Sampling is bilinear. Where the photo shrinks by a factor f, each crop pixel is the mean of a
    k x k grid of samples, k = round(f) up to 16, so that large photos do not alias. Pixels outside
    the photo are black, as in dlib's own crops.

    Parameters
    ----------
    images, device, batch_size
        As in :func:`detect`.
    landmarks : array (n, 5, 2)
        As in :class:`Detection`.
    size : int
        Side of the crops in pixels.
    template : array (5, 2)
        Where the landmarks go in a crop of side 1, such as :data:`DLIB_TEMPLATE`.

    Returns
    -------
    uint8 tensor (n, 3, size, size), on the CPU

    Raises
    ------
    ValueError
        As :func:`detect` and :func:`similarity`, or if there are not five landmarks for each image.

    Examples
    --------
    >>> photo = np.full((100, 100, 3), 255, np.uint8)
    >>> crops = align([photo], 80 * DLIB_TEMPLATE[None] + 10, size=64, device="cpu")
    >>> crops.shape, crops.dtype
    (torch.Size([1, 3, 64, 64]), torch.uint8)
    """
    images = _checked(images)
    device = pick_device(device)
    n = len(images)
    size = checked("size", size, Count)
    landmarks = reals("landmarks", landmarks)
    template = reals("template", template)
    if landmarks.shape != (n, 5, 2):
        raise ValueError(f"landmarks have shape {landmarks.shape}; {n} images need ({n}, 5, 2)")
    five_points = template.shape == (5, 2) and np.ptp(template, axis=0).all()
    if not (five_points and np.isfinite(template).all()):
        raise ValueError(f"template has shape {template.shape}; it must be five points, (5, 2)")
    a, b = similarity(landmarks, template * size - 0.5)
    samples = np.clip(np.round(1 / abs(a)), 1, 16).astype(int)
    keys = [(*image.shape[:2], k) for image, k in zip(images, samples, strict=True)]
    crops = torch.empty(n, 3, size, size, dtype=torch.uint8)

    def cut(rows: list[int]) -> None:
        height, width, k = keys[rows[0]]
        # A crop's pixel p lies at (p - b) / a in the photo. affine_grid and grid_sample want this map
        # between coordinates whose -1 and 1 are the outer edges of the outer pixels, on both sides.
        turn = size / 2 / a[rows]
        shift = ((size - 1) / 2 * (1 + 1j) - b[rows]) / a[rows] + (0.5 + 0.5j)
        theta = np.stack([turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag], 1)
        theta = theta.reshape(-1, 2, 3) * np.array([2 / width, 2 / height])[:, None]
        theta[:, :, 2] -= 1
        theta = torch.from_numpy(theta.astype(np.float32)).to(device)
        grid = F.affine_grid(theta, (len(rows), 3, size * k, size * k), align_corners=False)
        batch = F.grid_sample(_stack(images, rows, device), grid, align_corners=False)
        crops[rows] = F.avg_pool2d(batch, int(k)).round().clamp(0, 255).byte().cpu()

    in_batches(cut, keys, batch_size, device)
    return crops


def _checked(images: Images) -> list[np.ndarray]:
    """The images as a list, or a ValueError that names the first one that is no RGB image."""
    try:
        images = list(images)
    except TypeError:
        raise ValueError(f"images are {type(images).__name__}; pass a list of arrays") from None
    if not images:
        raise ValueError("there are no images; pass at least one")
    for i, image in enumerate(images):
        kind = getattr(image, "dtype", type(image).__name__)
        shape = np.shape(image)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(
                f"image {i} is {kind} of shape {shape}; pass a uint8 RGB array (height, width, 3), "
                "and repeat a grey image's channel three times"
            )
    return images


def in_batches(
    compute: Callable[[list[int]], None], keys: Sequence[Sequence[int]],
    batch_size: int | None, device: torch.device, label: str = "",
) -> None:  # fmt: skip
    """Call ``compute`` on batches of rows with equal keys (height, width, ...), in order of appearance.

    A batch that does not fit into memory is halved, and so are all batches after it. A progress bar is
    shown if there is a ``label``.
    """
    if batch_size is not None:
        batch_size = checked("batch_size", batch_size, Count)
    groups: dict[tuple, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(row)
    size = batch_size or BATCH.get(device.type, BATCH["cpu"])
    with tqdm(total=len(keys), desc=label, unit="image", mininterval=5, disable=not label) as bar:
        for (height, width, *_), rows in groups.items():
            while rows:
                step = min(size, max(1, PIXELS // (height * width)))
                try:
                    compute(rows[:step])
                except torch.OutOfMemoryError:
                    if step == 1:
                        raise
                    size = step // 2
                    torch.cuda.empty_cache()
                else:
                    bar.update(len(rows[:step]))
                    del rows[:step]


def _stack(images: Sequence[np.ndarray], rows: list[int], device: torch.device) -> Tensor:
    """Stack the images of some rows into one float tensor (b, 3, h, w) in 0..255."""
    batch = torch.from_numpy(np.stack([images[row] for row in rows]))
    return batch.to(device).permute(0, 3, 1, 2).float()


@contextmanager
def exact():
    """Compute without gradients; on a GPU, convolutions in true float32 by deterministic algorithms."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), flags:
        yield
