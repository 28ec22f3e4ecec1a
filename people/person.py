"""What makes a person, all drawn once, in a fixed order: shape, skin, hair, clothes and manner."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

from people.head import ATLAS, AZIMUTH, HAIR_CENTRE, POLAR, Head, Part, directions
from people.raster import ambient_light, bump, incidence, linear, stacked, step, unit

SKIN_TONES = ("I", "II", "III", "IV", "V", "VI")
# sRGB albedo at the centre of each skin tone class, light to dark.
SKIN_RAMP = (
    (243, 207, 187),
    (229, 184, 156),
    (205, 155, 122),
    (170, 119, 86),
    (124, 82, 58),
    (78, 52, 41),
)
AGE_GROUPS = ("18-29", "30-44", "45-59", "60+")
MELANIN = {"african": 0.83, "asian": 0.38, "european": 0.17}
ANNY_ANCESTRY = {"african": "african", "asian": "asian", "european": "caucasian"}
# Spread (standard deviation, in slider units of [-1, 1]) of the shape changes that make a person.
# A group is a prefix of the model's own label, without its side; the first prefix that fits counts.
# None leaves the change out (a sideways shift of this size is a deformity, not a likeness).
SHAPE_SPREAD = {
    "head-trans": None,
    "head-angle": None,
    "nose-trans-out": None,
    "mouth-trans-out": None,
    "nose-compression": None,
    "ear-shape-triangle": None,
    "eye-bag": 0.18,
    "eye-epicanthus": 0.15,
    "eye-push": 0.12,
    "eye-height": 0.21,
    "eye-corner": 0.24,
    "eye-trans": 0.27,
    "eye-scale": 0.24,
    "eye-eyefold": 0.21,
    "nose-": 0.25,
    "mouth-angles": 0.12,
    "mouth-laugh": 0.18,
    "mouth-dimples": 0.15,
    "mouth-": 0.23,
    "chin-": 0.25,
    "cheek-": 0.25,
    "forehead-": 0.24,
    "eyebrows-": 0.27,
    "ear-": 0.21,
    "head-fat": 0.21,
    "head-age": 0.15,
    "head-back": 0.15,
    "head-scale": 0.18,
    "head-": 0.24,
    "neck-double": 0.15,
    "neck-scale-horiz": 0.15,
}
# The model's average face has narrow eyes and a high skull for a photograph; shift the average.
SHAPE_CENTRE = {"eye-height": 0.22, "eye-scale": 0.15, "head-scale-vert": -0.15}

# sRGB colours to choose from.
LIPSTICK = ((178, 52, 66), (150, 40, 70), (205, 98, 98), (170, 70, 60))
LIGHT_EYES = ((96, 130, 158), (110, 140, 120), (122, 118, 84), (130, 140, 146))
DARK_EYES = ((62, 38, 22), (84, 54, 30), (42, 26, 18), (104, 70, 36))
DARK_HAIR = ((22, 17, 15), (38, 26, 20), (58, 40, 28))
HAIR = (*DARK_HAIR, (92, 62, 38), (128, 90, 52), (176, 138, 86), (205, 172, 120), (128, 56, 28))
FEMALE_STYLES = ("short", "bob", "long", "long", "bob", "tied", "curly", "long", "fringe")
MALE_STYLES = ("short", "short", "shaved", "short", "quiff", "short", "quiff", "receding", "curly")
# Thickness of the hair (metres; top, sides, back) and how late it tapers off. Curls grow with their
# length.
HAIR_SHAPE = {
    "short": (0.012, 0.007, 0.009, 6),
    "quiff": (0.026, 0.006, 0.008, 6),
    "receding": (0.006, 0.007, 0.008, 6),
    "tied": (0.007, 0.005, 0.007, 6),
    "curly": (0.036, 0.028, 0.036, 5),
    "bob": (0.016, 0.016, 0.016, 8),
    "long": (0.016, 0.016, 0.016, 8),
    "fringe": (0.016, 0.016, 0.016, 8),
}
HAIR_ROWS = 18  # of the sheet of hair, from the crown to the hairline
HAIR_FALLS = 10  # further rows that hang down from there
# Azimuth (degrees from the front) of the knots of a hairline, and its polar angle there.
HAIRLINE_AT = (0, 24, 42, 58, 72, 84, 96, 116, 132, 180)
HAIRLINE = (58, 58, 57, 62, 84, 104, 92, 96, 122, 130)
BALD_LINE = (12, 12, 14, 20, 50, 60, 60, 90, 118, 126)
# How a person's own hairline differs: where it is higher or lower in front, and at the temples.
FRONT = (1, 1, 1, 0.8, 0.3, 0, 0, 0, 0, 0)
TEMPLES = (-0.3, 0.2, 1, 0.8, 0.3, 0, 0, 0, 0, 0)
# Facial actions at rest: mean and spread, for `draw_actions`.
REST = {
    "browDown": (0.0, 0.25),
    "browInnerUp": (-0.05, 0.15),
    "mouthPress": (0.0, 0.2),
    "mouthPucker": (-0.05, 0.12),
    "eyeSquint": (0.0, 0.2),
    "cheekSquint": (-0.05, 0.15),
}


@dataclass(frozen=True)
class Person:
    """What stays the same in all images of a person (n vertices, f triangles, all parts)."""

    columns: dict  # the demographic and descriptive columns
    vertices: np.ndarray  # (n, 3) face at rest
    triangles: np.ndarray  # (f, 3)
    part: np.ndarray  # (f,)
    coordinates: np.ndarray  # (n, 3) canonical position, or hair and tooth coordinates
    masks: np.ndarray  # (n, 3) lips, inside of the mouth, ambient visibility
    turns: np.ndarray  # (n,) whether a vertex follows the head; those of the body do not
    jaw: np.ndarray  # vertices of the lower teeth
    gather: sparse.csr_matrix  # (n, f) incidence of vertices and triangles
    skin: np.ndarray  # (rows, columns, 3) linear albedo
    gloss: float
    lip_colour: np.ndarray
    iris: np.ndarray
    sclera: np.ndarray
    hair: np.ndarray
    hair_shine: float
    rest: dict[str, float]  # facial actions at rest
    smile: dict[str, float]  # facial actions of a full smile
    blink: float  # how far closed lids close
    brow_raise: dict[str, float]  # facial actions of fully raised brows


def make_person(head: Head, seed: int, index: int) -> Person:
    """Draw person number ``index`` of the set with this seed."""
    rng = np.random.default_rng((seed, index, 0))
    # Genders and main ancestries take turns, so that all groups are equally large.
    female = index % 2 == 0
    gender = np.clip(rng.normal(0.88 if female else 0.12, 0.12), 0, 1)
    years = float(np.round(18 + 62 * rng.beta(1.2, 1.7)))
    mix = rng.dirichlet(np.where(np.arange(3) == index % 3, 4.0, 0.35))
    ancestry = dict(zip(MELANIN, mix, strict=True))
    melanin = sum(MELANIN[name] * share for name, share in ancestry.items())
    melanin = np.clip(melanin + rng.normal(0, 0.09), 0, 1)

    vertices = _shape(head, rng, gender, years, ancestry)
    hair = _draw_hair(rng, female, years, ancestry)
    skin_colour = _skin_colour(rng, melanin)
    moustache, beard = _draw_face_hair(rng, female)
    skin = _paint_skin(
        head,
        rng,
        colour=skin_colour,
        melanin=melanin,
        years=years,
        female=female,
        hair=hair,
        moustache=moustache,
        beard=beard,
    )
    lip_colour = _lip_colour(rng, skin_colour, female)

    meshes = [
        (vertices, head.triangles, head.part, head.canonical),
        *_teeth(head, vertices),
        _torso(vertices),
    ]
    if hair["style"] not in ("bald", "shaved"):
        meshes.append(_hair_mesh(head, rng, vertices, hair))
    mesh, ends = _joined(meshes)
    face_end, upper_teeth_end, teeth_end, torso_end = ends[:4]
    gather = incidence(mesh["triangles"], len(mesh["vertices"]))

    masks = _masks(head, mesh, gather, face_end, teeth_end)
    turns = np.ones(len(mesh["vertices"]), bool)
    turns[teeth_end:torso_end] = False

    gloss = rng.uniform(0.5, 1.3)
    eyes = LIGHT_EYES if rng.random() < 0.65 * ancestry["european"] else DARK_EYES
    iris = linear(rng.choice(eyes)) * rng.uniform(0.85, 1.15)
    sclera = linear((222, 216, 210)) * rng.uniform(0.8, 1.05)
    hair_shine = rng.uniform(0.5, 1.3)
    manner = _draw_manner(rng)
    columns = {
        "age": years,
        "age_group": AGE_GROUPS[np.digitize(years, (30, 45, 60))],
        "gender": "female" if gender >= 0.5 else "male",
        "ancestry": max(ancestry, key=ancestry.get),
        "skin_tone": SKIN_TONES[min(int(melanin * 6), 5)],
        "hair": hair["style"],
        "beard": round(float(beard), 3),
    }
    return Person(
        columns=columns,
        **mesh,
        masks=masks,
        turns=turns,
        jaw=np.arange(upper_teeth_end, teeth_end),
        gather=gather,
        skin=skin.astype(np.float32),
        gloss=gloss,
        lip_colour=lip_colour,
        iris=iris,
        sclera=sclera,
        hair=hair["colour"],
        hair_shine=hair_shine,
        **manner,
    )


def _masks(head: Head, mesh: dict, gather, face_end: int, teeth_end: int) -> np.ndarray:
    """Return lips, inside of the mouth and ambient visibility of every vertex (n, 3)."""
    masks = np.zeros((len(mesh["vertices"]), 3), np.float32)
    masks[:face_end, 0] = head.lips
    masks[:face_end, 1] = head.cavity
    masks[:, 2] = ambient_light(mesh["vertices"], mesh["triangles"], gather)
    # Teeth get light of their own, because the mouth is closed here.
    masks[face_end:teeth_end, 2] = 0.75
    masks[:face_end, 2] = np.maximum(masks[:face_end, 2], 0.45 * head.lips)
    return masks


def _joined(meshes: list[tuple]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Join meshes (vertices, triangles, part, coordinates) into one; and where each one's vertices end."""
    ends = np.cumsum([len(vertices) for vertices, _, _, _ in meshes])
    starts = [0, *ends[:-1]]
    triangles = [mesh[1] + start for mesh, start in zip(meshes, starts, strict=True)]
    joined = {
        "vertices": np.concatenate([mesh[0] for mesh in meshes]).astype(np.float32),
        "triangles": np.concatenate(triangles),
        "part": np.concatenate([mesh[2] for mesh in meshes]),
        "coordinates": np.concatenate([mesh[3] for mesh in meshes]).astype(np.float32),
    }
    return joined, ends


def _shape(head: Head, rng, gender, years, ancestry) -> np.ndarray:
    """Draw the vertices of the face at rest, in the frame of the reference head."""
    phenotype = {
        "gender": gender,
        "age": 2 / 3 + (years - 22) / 68 / 3,  # 2/3 is a young adult, 1 is ninety
        "weight": np.clip(rng.normal(0.52, 0.17), 0.1, 1),
        "height": 0.5,
        "cupsize": 0.5,
        "muscle": np.clip(rng.normal(0.5, 0.18), 0, 1),
        "proportions": rng.uniform(0.3, 1),
        "firmness": 0.5,
    }
    for name, share in ancestry.items():
        phenotype[ANNY_ANCESTRY[name]] = share
    changes = {}
    sides = {}
    for label in head.model.local_change_labels:
        plain = label.removeprefix("l-").removeprefix("r-")
        spread = next((v for prefix, v in SHAPE_SPREAD.items() if plain.startswith(prefix)), None)
        if spread is None:
            continue
        if plain not in sides:  # both sides alike, except for a small asymmetry
            centre = sum(v for prefix, v in SHAPE_CENTRE.items() if plain.startswith(prefix))
            sides[plain] = rng.normal(centre, spread)
        asymmetry = rng.normal(0, 0.05) if plain != label else 0.0
        changes[label] = float(np.clip(sides[plain] + asymmetry, -1.0, 1.0))
    # This public call leaves the facial actions (52 columns after the phenotypes) at zero.
    coefficients = head.model.get_phenotype_blendshape_coefficients(
        **phenotype, local_changes=changes
    )
    # Rounding hides the last bit, which could depend on the number of threads.
    return head.morph(np.round(coefficients.numpy()[0], 9)).astype(np.float32)


def _skin_colour(rng, melanin) -> np.ndarray:
    """Draw the linear base albedo on the light-to-dark ramp, with a personal undertone."""
    place = np.clip(melanin * 6 - 0.5, 0, 5)
    ramp = [np.interp(place, range(6), channel) for channel in zip(*SKIN_RAMP, strict=True)]
    warm = rng.normal(0, 0.05)
    rosy = rng.normal(0, 0.035)
    return linear(ramp) * (1 + warm * np.array((0.6, 0, -1.2)) + rosy * np.array((1, -0.9, -0.4)))


def _draw_face_hair(rng, female) -> tuple[float, float]:
    """Draw how dense moustache and beard are, in [0, 1]."""
    dense = 0.0 if female or rng.random() < 0.45 else rng.uniform(0.25, 1.0)
    moustache = dense * (rng.random() < 0.85)
    beard = dense * (rng.random() < 0.75)
    return moustache, beard


def _lip_colour(rng, skin_colour, female) -> np.ndarray:
    colour = skin_colour * np.array((0.88, 0.56, 0.58)) * rng.uniform(0.85, 1.1)
    if female and rng.random() < 0.4:
        lipstick = linear(rng.choice(LIPSTICK))
        amount = rng.uniform(0.3, 0.8)
        colour = colour * (1 - amount) + lipstick * amount
    return colour


def _draw_hair(rng, female, years, ancestry) -> dict:
    """Draw style, colour and measures of the hair, including the brows."""
    natural = linear(rng.choice(HAIR if rng.random() < ancestry["european"] else DARK_HAIR))
    grey = np.clip((years - rng.normal(58, 9)) / 18, 0, 0.95)
    dyed = rng.random() < (0.45 if female else 0.08)
    colour = natural if dyed else natural * (1 - grey) + linear((185, 182, 178)) * grey
    style = str(rng.choice(FEMALE_STYLES if female else MALE_STYLES))
    if ancestry["african"] > 0.5 and style in ("quiff", "bob", "fringe") and rng.random() < 0.7:
        style = "curly"
    if not female and years > 45 and rng.random() < 0.35:
        style = ("receding", "bald")[rng.integers(2)]
    return {
        "style": style,
        "colour": colour,
        "brow_colour": natural * (1 - 0.6 * grey) + linear((150, 146, 140)) * 0.6 * grey,
        "line": rng.normal(0, 0.055) + (-0.28 if style == "receding" else 0.0),
        "peak": rng.uniform(-0.02, 0.12) + (0.16 if style == "receding" else 0.0),
        "volume": rng.uniform(0.75, 1.4),
        "length": rng.uniform(0.06, 0.2),
        "parting": rng.normal(0, 0.5),
        "curl": rng.uniform(0.0, 1.0),
    }


def _hairline(hair, azimuth) -> np.ndarray:
    """Return the polar angle (radians) down to which hair grows, for azimuths in radians."""
    if hair["style"] == "bald":
        angles = BALD_LINE
    else:
        shift = np.array(FRONT) * hair["line"] - np.array(TEMPLES) * hair["peak"]
        angles = HAIRLINE + np.degrees(shift)
    return np.radians(np.interp(np.degrees(np.abs(azimuth)), HAIRLINE_AT, angles))


def _noise(rng, scale, shape=ATLAS, dtype=np.float32) -> np.ndarray:
    """Draw smooth noise of unit spread; ``scale`` is its grain in texels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape).astype(dtype), scale, mode="wrap")
    return field / field.std()


def _paint_skin(
    head: Head, rng, *, colour, melanin, years, female, hair, moustache, beard
) -> np.ndarray:
    """Paint the unrolled skin (rows, columns, 3), linear albedo, from the lowest layer to the highest."""
    painter = _Painter(head, rng, colour)
    painter.pigment(melanin)
    painter.spots()
    painter.wrinkles(years)
    painter.beard(female, hair, moustache, beard)
    painter.brows(female, hair)
    painter.lashes(female)
    painter.scalp(hair)
    return np.clip(painter.skin, 0.002, 0.95)


class _Painter:
    """The unrolled skin of one person while it is painted; all places are in metres."""

    def __init__(self, head: Head, rng, colour):
        self.head = head
        self.rng = rng
        self.skin = np.broadcast_to(colour, (*ATLAS, 3)).astype(np.float32)
        self.x, self.y, self.z = np.moveaxis(head.atlas, -1, 0)
        self.side = np.abs(self.x)
        self.radius = np.hypot(self.x, self.y)
        self.front = step(-self.y, 0.03, 0.008)

    def absorb(self, amount, red_green_blue) -> None:
        self.skin *= 1 - amount[..., None] * np.array(red_green_blue)

    def cover(self, amount, paint) -> None:
        amount = np.clip(amount, 0, 1)[..., None]
        self.skin = self.skin * (1 - amount) + amount * paint

    def noise(self, scale) -> np.ndarray:
        return _noise(self.rng, scale)

    def pigment(self, melanin) -> None:
        rng = self.rng
        side = self.side
        z = self.z
        coarse = 0.035 * self.noise(14)
        fine = 0.03 * self.noise(3)
        self.skin *= 1 + (coarse + fine)[..., None]
        # Blood shows on cheeks, nose and ears of light skin.
        red = 0.8 * bump(side, 0.043, 0.018) * bump(z, -0.018, 0.018)
        red = red + 0.8 * bump(side, 0, 0.014) * bump(z, -0.022, 0.012)
        ears = 0.7 * (self.radius > 0.082) * (z < 0.03)
        red = (red * self.front + ears) * rng.uniform(0.2, 1.2)
        self.absorb(red * (0.03 + 0.08 * (1 - melanin)), (-0.5, 1.2, 0.9))
        # Shade under and above the eyes.
        shade = rng.uniform(0.0, 0.28) * bump(side, 0.029, 0.014) * bump(z, 0.004, 0.006)
        shade += rng.uniform(0, 0.15) * bump(side, 0.03, 0.016) * bump(z, 0.027, 0.006)
        self.absorb(shade * self.front, (0.7, 1, 0.8))

    def spots(self) -> None:
        """Freckles, blotches and moles, if any."""
        rng = self.rng
        if rng.random() < 0.35:
            freckles = np.clip(self.noise(1.3) - rng.uniform(1.0, 1.7), 0, 1.2)
            where = bump(self.side, 0.025, 0.035) * bump(self.z, -0.008, 0.03) * self.front
            self.absorb(0.45 * freckles * where, (0.6, 1, 1.1))
        if rng.random() < 0.4:
            blotches = np.clip(self.noise(6) - 0.9, 0, 1.5)
            self.absorb(blotches * rng.uniform(0.05, 0.22), (0.7, 1, 1))
        for _ in range(rng.poisson(1.2)):
            x = rng.uniform(-0.06, 0.06)
            z = rng.uniform(-0.085, 0.07)
            distance = (self.x - x) ** 2 + (self.z - z) ** 2
            mole = np.exp(-distance / rng.uniform(0.0008, 0.0018) ** 2) * self.front
            self.skin *= 1 - 0.75 * mole[..., None]

    def wrinkles(self, years) -> None:
        """Lines on the forehead, folds beside the mouth, and uneven skin, from the age of 38 on."""
        x = self.x
        z = self.z
        side = self.side
        old = np.clip((years - 38) / 35, 0, 1)
        heights = (0.058, 0.068, 0.078)
        lines = sum(bump(z, height + 0.02 * x**2 / 0.05**2 * 0.1, 0.0012) for height in heights)
        fold = np.interp(-z, (0.015, 0.03, 0.06, 0.075), (0.017, 0.026, 0.036, 0.036))
        creases = 0.9 * bump(side, fold, 0.0022) * step(-z, 0.018, 0.003) * step(z, -0.068, 0.004)
        lines = 0.5 * lines * bump(side, 0, 0.035) + creases
        self.skin *= 1 - (0.35 * old * lines * self.front)[..., None]
        self.absorb(0.12 * old * np.clip(self.noise(4), 0, 2), (0.5, 1, 1))

    def beard(self, female, hair, moustache, beard) -> None:
        """A beard, whose border runs from the sideburn to the corner of the mouth and under the jaw."""
        side = self.side
        z = self.z
        grain = np.clip(0.75 + 0.3 * self.noise(0.8) + 0.15 * self.noise(4), 0, 1.4)
        lip = np.clip(self.head.atlas_lips * 1.5, 0, 1)
        border = np.interp(side, (0, 0.012, 0.03, 0.05, 0.066, 0.08), (-68, -66, -56, -42, -16, 12))
        chin = step(border / 1e3 + 0.004 * self.noise(8), z, 0.0035) * step(z, -0.108, 0.006)
        chin = chin * step(-self.y, -0.03, 0.006)
        upper = bump(z, -0.0395, 0.0062) * step(-side, -0.026, 0.003) * self.front
        amount = (beard * chin + moustache * upper) * grain * (1 - lip) * 0.95
        self.cover(amount, hair["brow_colour"] * 0.9)
        if not female:  # a shaved beard still shades the skin a little
            stubble = self.rng.uniform(0, 0.16) * np.maximum(chin, upper) * (1 - lip)
            self.absorb(stubble, (1, 0.9, 0.7))

    def brows(self, female, hair) -> None:
        """An arch from the nose outward, thinner to the outside."""
        rng = self.rng
        inner = rng.uniform(0.009, 0.016)
        outer = rng.uniform(0.047, 0.056)
        along = (self.side - inner) / (outer - inner)
        height = 0.0375 + rng.normal(0, 0.0016) - rng.uniform(0.0, 0.006) * along**3
        height = height + rng.uniform(0.0, 0.006) * np.sin(np.pi * np.clip(along, 0, 1) ** 1.3)
        height = height + rng.normal(0, 0.0018) * (along - 0.5)
        thick = rng.uniform(0.0024, 0.0052) * (0.8 if female else 1.15)
        thick = thick * np.interp(along, (-0.1, 0.1, 0.5, 1.0), (0.6, 1.0, 0.85, 0.35))
        strokes = np.clip(0.85 + 0.3 * self.noise(0.7), 0, 1.2)
        brow = np.exp(-(((self.z - height) / thick) ** 4))
        brow = brow * step(along, 0, 0.03) * step(-along, -1, 0.03)
        amount = brow * strokes * self.front * rng.uniform(0.6, 0.97)
        self.cover(amount, hair["brow_colour"] * 0.8)

    def lashes(self, female) -> None:
        """A dark rim, stronger above the eye."""
        lash = self.head.lash
        upper_lid = bump(lash, 0, 0.0019) * (lash >= 0)
        lower_lid = bump(lash, 0, 0.0011) * (lash < 0)
        liner = self.rng.uniform(0.75, 1.0) if female else self.rng.uniform(0.4, 0.8)
        amount = (liner * upper_lid + 0.45 * liner * lower_lid) * self.front
        self.cover(amount, linear((28, 20, 18)))

    def scalp(self, hair) -> None:
        """Roots of the hair, with a soft edge."""
        style = hair["style"]
        hairline = _hairline(hair, np.arctan2(self.x, -self.y))
        border = hairline + 0.03 + 0.035 * self.noise(2)
        polar = np.arctan2(self.radius, self.z - HAIR_CENTRE[2])
        grown = step(border, polar, 0.02) * (self.radius <= 0.086)  # not on the ears
        roots = 0.0 if style == "bald" and self.rng.random() < 0.5 else 0.92
        if style in ("shaved", "bald"):
            roots = roots * self.rng.uniform(0.3, 0.9)
        if style == "bald":
            grown = grown * step(polar, 0.6, 0.08)
        strands = np.clip(0.85 + 0.15 * self.noise(0.8), 0, 1)
        self.cover(grown * roots * strands, hair["colour"])


def _sheet(part, place, coordinates, *, closed):
    """Return the mesh of a grid of vertices (rows, columns, 3), closed along the columns or not."""
    rows, columns, _ = place.shape
    row, column = np.mgrid[: rows - 1, : columns - (not closed)]
    a = row * columns + column
    b = row * columns + (column + 1) % columns
    quads = np.stack([a, b, a + columns, b, b + columns, a + columns], -1)
    triangles = quads.reshape(-1, 3).astype(np.int32)
    parts = np.full(len(triangles), part, np.int8)
    return place.reshape(-1, 3), triangles, parts, coordinates.reshape(-1, 3)


def _teeth(head: Head, vertices):
    """Yield two curved rows of teeth behind the lips, moved and scaled with the mouth: upper, lower."""
    near = np.flatnonzero(head.lips > 0.5)
    ours = vertices[near]
    reference = head.canonical[near]
    width = np.ptp(ours[:, 0]) / np.ptp(reference[:, 0])
    moved = (ours.mean(0) - reference.mean(0)) * (0, 1, 1)
    x = np.linspace(-0.021, 0.021, 29)
    tooth = np.arcsinh(52 * x) / 52 / 0.0072  # teeth follow the arch, not the chord
    for levels, gum in (
        ((-0.041, -0.0445, -0.0475, -0.0555), (0, 0.25, 1, 1)),
        ((-0.0567, -0.0635, -0.066, -0.069), (1, 1, 0.25, 0)),
    ):
        place = stacked(x * width, -0.1045 + 26 * x**2, np.array(levels)[:, None]) + moved
        coordinates = stacked(tooth, np.array(gum)[:, None], np.abs(x) / 0.021)
        yield _sheet(Part.TEETH, place, coordinates, closed=False)


def _torso(vertices):
    """Return collar and shoulders: rings about the neck, wide enough to fill the lower corners."""
    neck = vertices[vertices[:, 2] < -0.105]
    middle = (neck.max(0) + neck.min(0)) / 2
    spread = np.ptp(neck, axis=0) / 2
    z = np.array((-0.098, -0.112, -0.125, -0.142, -0.17, -0.26, -0.40))[:, None]
    wide = np.array((1.08, 1.22, 1.8, 2.8, 3.7, 4.2, 4.3), np.float32)[:, None] * spread[0]
    deep = np.array((1.10, 1.20, 1.35, 1.6, 1.9, 2.2, 2.3), np.float32)[:, None] * spread[1]
    angle = np.arange(32) * 2 * np.pi / 32
    x = middle[0] + wide * np.sin(angle)
    y = middle[1] + deep * np.cos(angle)
    # A collar is lower in front than behind.
    place = stacked(x, y, z - 0.014 * (1 - np.cos(angle)) * (z > -0.15))
    return _sheet(Part.CLOTH, place, place, closed=True)


def _hair_mesh(head: Head, rng, vertices, hair):
    """Return a sheet of hair over the scalp; some styles hang down beside and behind the face."""
    rays = len(AZIMUTH)
    limit, edge, hang = _hair_outline(hair)
    t = np.linspace(0.0, 1.0, HAIR_ROWS) ** 0.8  # 0 on the crown, 1 at the border
    polar = np.maximum(t[:, None] * limit[None], POLAR[0])
    surface = _scalp_at(head, vertices, polar)
    outward = directions(polar, AZIMUTH)
    # Waves run along the hair; locks vary round the head; curls are grain in both.
    locks = _noise(rng, (3, 1.2), (HAIR_ROWS, rays), np.float64)
    grain = _noise(rng, 0.8, (HAIR_ROWS, rays), np.float64)
    thick = _hair_thickness(hair, t, polar, locks, grain)
    taper = t[:, None] ** HAIR_SHAPE[hair["style"]][3]
    place = surface + outward * (thick * (1 - taper) + edge * taper)[..., None]

    fall = np.linspace(0, 1, HAIR_FALLS + 1)[1:, None]
    ring = unit(outward[-1] * (1, 1, 0))
    sway = 0.006 * (1 + hair["curl"]) * np.sin(4 * fall + 3 * hair["parting"]) * locks[-1]
    sway = sway - 0.016 * fall**2 * (hair["curl"] < 0.5)
    hanging = place[-1] + (sway * (hang > 0.01))[..., None] * ring
    hanging[..., 2] -= fall * hang * (1 + 0.06 * locks[0])
    place = np.concatenate([place, hanging])

    streak = ndimage.gaussian_filter1d(rng.standard_normal(4 * rays), 0.7, mode="wrap")[::4]
    turn = np.arange(rays) / rays
    turn = np.minimum(turn, 1 - turn)  # no seam: mirrored halves
    along = np.arange(len(place))[:, None] / HAIR_ROWS
    coordinates = stacked(turn, along, streak / streak.std())
    return _sheet(Part.HAIR, place, coordinates, closed=True)


def _hair_outline(hair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, per azimuth, how far down hair lies (radians), how thick it ends, and how far it hangs (m)."""
    style = hair["style"]
    away = np.degrees(np.abs(AZIMUTH))
    limit = _hairline(hair, AZIMUTH)
    edge = np.full(len(AZIMUTH), -0.0015)
    hang = np.zeros(len(AZIMUTH))
    if style in ("bob", "long", "fringe"):
        behind = step(away, 66, 4.0)
        long = np.radians(np.interp(away, (60, 80, 180), (66, 92, 100)))
        limit = np.where(away > 60, long, limit)
        edge = edge + behind * 0.016 * hair["volume"]
        hang = behind * (0.1 + (0.09 if style == "long" else 0.0) + 0.25 * hair["length"])
    if style == "fringe":
        fringe = np.interp(away, (0, 34, 56), (1, 1, 0))
        limit = limit + fringe * np.radians(np.interp(hair["curl"], (0, 1), (12, 20)))
        edge = edge + fringe * 0.006
    return limit, edge, hang


def _scalp_at(head: Head, vertices, polar) -> np.ndarray:
    """Return the surface (rows, rays, 3) at polar angles (rows, rays), between the rays of the chart."""
    rays = len(AZIMUTH)
    triangles, weights = head.chart
    base = (vertices[triangles] * weights[..., None]).sum(1).reshape(rays, len(POLAR), 3)
    at = np.clip((polar - POLAR[0]) / (POLAR[1] - POLAR[0]), 0, len(POLAR) - 1.001)
    ray = np.arange(rays)
    low = at.astype(int)
    share = (at % 1)[..., None]
    return base[ray, low] * (1 - share) + base[ray, low + 1] * share


def _hair_thickness(hair, t, polar, locks, grain) -> np.ndarray:
    """Return the thickness of the hair in metres (rows, rays)."""
    style = hair["style"]
    away = np.degrees(np.abs(AZIMUTH))
    top, sides, back, _ = HAIR_SHAPE[style]
    if style == "curly":
        top, sides, back = np.array((top, sides, back)) * (0.4 + hair["length"] * 6)
    lie = np.sin(polar) ** 2  # 0 on the crown, 1 on the sides
    around = np.interp(away, (0, 50, 90, 180), (top, 0.5 * (top + sides), sides, back))
    thick = (top * (1 - lie) + around * lie) * hair["volume"]
    thick = thick * (1 + 0.10 * locks)
    if style == "curly":
        thick = thick + 0.0022 * hair["volume"] * grain
    if style in ("bob", "long", "tied") or (style == "short" and hair["curl"] > 0.6):
        parting = np.abs(AZIMUTH - hair["parting"])[None] < 0.16
        thick = thick * np.where(parting & (t[:, None] > 0.05), 0.55, 1.0)
    return thick


def draw_actions(rng, table: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Draw an amount of each facial action in a table (name -> mean, spread): normal, never below 0."""
    return {name: max(rng.normal(*values), 0.0) for name, values in table.items()}


def _draw_manner(rng) -> dict:
    """Draw how a person holds and moves the face: at rest, smiling, blinking, raising the brows."""
    corner = rng.normal(0.0, 0.13)
    lean = rng.normal(0, 0.10)
    power = rng.uniform(0.7, 1.15)
    smile = {
        "mouthSmileLeft": power * (1 + lean),
        "mouthSmileRight": power * (1 - lean),
        "cheekSquint": power * rng.uniform(0.1, 0.9),
        "eyeSquint": power * rng.uniform(0.0, 0.5),
        "mouthDimple": rng.uniform(0.0, 0.6) ** 2,
        "mouthStretch": rng.uniform(0.0, 0.45),
        "mouthUpperUp": rng.uniform(0.0, 0.8) ** 1.5,
        "mouthLowerDown": rng.uniform(0.0, 0.35),
        "mouthPress": rng.uniform(0.0, 0.3),
    }
    rest = {"mouthSmile": max(corner, 0.0) * 1.3, "mouthFrown": max(-corner, 0.0) * 1.6}
    rest |= draw_actions(rng, REST)
    brow_raise = {
        "browInnerUp": rng.uniform(0.5, 1.1),
        "browOuterUp": rng.uniform(0.5, 1.1),
        "eyeWide": rng.uniform(0.0, 0.5),
    }
    blink = rng.uniform(0.94, 1.02)
    return {"rest": rest, "smile": smile, "blink": blink, "brow_raise": brow_raise}
