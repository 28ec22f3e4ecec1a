"""Crop a photo so that eyes, nose and mouth lie where a network expects them.

:mod:`cid.detection` finds these five landmarks; :func:`align` moves them to a template by a similarity
transform. Pixel centres have integer coordinates, points are (x, y).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cid.arrays import pick_device, reals
from cid.moved import forwarder
from cid.precision import true_float32
from cid.settings import Count, checked

# A template says where the left eye, the right eye (as seen in the picture), the nose and the corners
# of the mouth go in a crop of side 1.
# dlib's was measured in faces that dlib cropped for its own network, in pixels of a 150 px crop.
DLIB_TEMPLATE = np.array([(45, 40.3), (101.8, 40.3), (73.2, 73.3), (48.6, 99.4), (97.2, 99.4)])
DLIB_TEMPLATE = (DLIB_TEMPLATE + 0.5) / 150
# FaceNet's is wider and lower: the median place of the landmarks over photos of 60 people, made
# symmetric, in MTCNN's box plus the margin of 14 in 160 that facenet-pytorch evaluates with.
FACENET_TEMPLATE = np.array([(288, 405), (712, 405), (500, 589), (309, 741), (691, 741)]) / 1000
BATCH = {"cpu": 32, "cuda": 1024}  # images in a batch at first; a batch that does not fit is halved
PIXELS = 64 * 300 * 300  # source pixels held as floats at once, which bounds memory on large photos

Images = Iterable[np.ndarray]  # uint8 (h, w, 3), RGB; sizes may differ

MOVED = {"Detection": "cid.detection.Detection", "detect": "cid.detection.detect"}
__getattr__ = forwarder(__name__, MOVED)


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
    template: np.ndarray = DLIB_TEMPLATE, rounded: bool = True, device: str = "auto",
    batch_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Crop each face so that its landmarks fall on the template.

    Sampling is bilinear. Where the photo shrinks by a factor f, each crop pixel is the mean of a
    k x k grid of samples, k = round(f) up to 16, so that large photos do not alias. Pixels outside
    the photo are black, as in dlib's own crops.

    Parameters
    ----------
    images, device, batch_size
        As in :func:`cid.detection.detect`.
    landmarks : array (n, 5, 2)
        As in :class:`cid.detection.Detection`.
    size : int
        Side of the crops in pixels.
    template : array (5, 2)
        Where the landmarks go in a crop of side 1, such as :data:`DLIB_TEMPLATE`.
    rounded : bool
        Round pixels to whole numbers. On another processor 1 of 10,000 is rounded to its other neighbour,
        which moves an embedding by some 1e-4, and without rounding by some 1e-6.

    Returns
    -------
    uint8 tensor (n, 3, size, size), on the CPU; float32, from 0 to 255, if not ``rounded``

    Raises
    ------
    ValueError
        As :func:`cid.detection.detect` and :func:`similarity`, or if there are not five landmarks for each image.

    Examples
    --------
    >>> photo = np.full((100, 100, 3), 255, np.uint8)
    >>> crops = align([photo], 80 * DLIB_TEMPLATE[None] + 10, size=64, device="cpu")
    >>> crops.shape, crops.dtype
    (torch.Size([1, 3, 64, 64]), torch.uint8)
    """
    images = checked_images(images)
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
    crops = torch.empty(n, 3, size, size, dtype=torch.uint8 if rounded else torch.float32)

    def keep(rows: list[int], batch: Tensor) -> None:
        batch = batch.clamp(0, 255)  # a mean of pixels of 255 may be a little more
        crops[rows] = (batch.round().byte() if rounded else batch).cpu()

    cut(images, a, b, size, keep, device=device, batch_size=batch_size)
    return crops


def cut(
    images: Sequence[np.ndarray], a: np.ndarray, b: np.ndarray, size: int,
    keep: Callable[[list[int], Tensor], None], *,
    device: torch.device, batch_size: int | None = None, outside: str = "zeros",
) -> None:  # fmt: skip
    """Sample a square of each photo, and hand the squares to ``keep``, batch by batch.

    Parameters
    ----------
    images : sequence of uint8 arrays (h, w, 3)
    a, b : complex arrays (n,)
        From :func:`similarity`: point z of a photo lies at a z + b of its square.
    size : int
        Side of the squares in pixels.
    keep : function of rows and batch
        The batch is a float tensor (len(rows), 3, size, size) in 0..255, on the device.
    device, batch_size
        As in :func:`in_batches`.
    outside : "zeros" (black) or "border" (the photo's edge, repeated)
        What is seen outside the photo.
    """
    samples = np.clip(np.round(1 / abs(a)), 1, 16).astype(int)
    keys = [(*image.shape[:2], k) for image, k in zip(images, samples, strict=True)]

    def sample(rows: list[int]) -> None:
        height, width, k = keys[rows[0]]
        # A square's pixel p lies at (p - b) / a in the photo. affine_grid and grid_sample want this map
        # between coordinates whose -1 and 1 are the outer edges of the outer pixels, on both sides.
        turn = size / 2 / a[rows]
        shift = ((size - 1) / 2 * (1 + 1j) - b[rows]) / a[rows] + (0.5 + 0.5j)
        theta = np.stack([turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag], 1)
        theta = theta.reshape(-1, 2, 3) * np.array([2 / width, 2 / height])[:, None]
        theta[:, :, 2] -= 1
        theta = torch.from_numpy(theta.astype(np.float32)).to(device)
        grid = F.affine_grid(theta, (len(rows), 3, size * k, size * k), align_corners=False)
        batch = stack(images, rows, device)
        batch = F.grid_sample(batch, grid, padding_mode=outside, align_corners=False)
        keep(rows, F.avg_pool2d(batch, int(k)))

    in_batches(sample, keys, batch_size, device)


def checked_images(images: Images) -> list[np.ndarray]:
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


def stack(images: Sequence[np.ndarray], rows: list[int], device: torch.device) -> Tensor:
    """Stack the images of some rows into one float tensor (b, 3, h, w) in 0..255."""
    batch = torch.from_numpy(np.stack([images[row] for row in rows]))
    return batch.to(device).permute(0, 3, 1, 2).float()


@contextmanager
def exact():
    """Compute without gradients, in true float32; on a GPU by deterministic algorithms."""
    cudnn = torch.backends.cudnn
    before = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    # Not by cudnn.flags: it asks for the old switch of TF32, which torch refuses beside the new ones.
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = (True, False, True)
    try:
        with torch.inference_mode(), true_float32():
            yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before
