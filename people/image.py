"""One image of a person. Drawn per image: expression, pose, camera, light, background and noise."""

import numpy as np
from scipy import ndimage

from people.head import Head, Part, atlas_coordinates
from people.person import Person, draw_actions
from people.raster import bump, linear, rasterise, step, sunlit, unit, vertex_normals

PIVOT = np.array((0.0, 0.03, -0.09), np.float32)  # the head turns about the upper neck
SUPERSAMPLE = 2
UNPAIRED = ("browInnerUp", "mouthPucker", "jawOpen")  # actions without a left and a right
OPEN_MOUTH = {"jawOpen": 0.75, "mouthLowerDown": 0.25}
# What faces also do: small movements of speech and fidgeting, which have no label. Mean and spread, for
# `draw_actions`.
FIDGETS = {
    "mouthPucker": (-0.08, 0.14),
    "mouthFrown": (-0.10, 0.18),
    "mouthStretch": (-0.12, 0.18),
    "mouthUpperUp": (-0.12, 0.16),
    "browDown": (-0.1, 0.2),
    "cheekSquint": (-0.1, 0.18),
}


def expression(person: Person, strengths: dict[str, float], rng) -> dict[str, float]:
    """Return the facial actions (label -> amount) of a person at the given attribute strengths."""
    actions: dict[str, float] = {}

    def add(face: dict[str, float], level: float = 1.0) -> None:
        for name, amount in face.items():
            for label in _labels_of(name):
                actions[label] = actions.get(label, 0.0) + amount * level

    smiling = strengths["smiling"]
    raised = strengths["brows_raised"]
    # A smile pulls frown and pout apart; the rest of the resting face stays.
    rest = {}
    for name, amount in person.rest.items():
        faded = 0.8 if name in ("mouthFrown", "mouthPucker") else 0.4
        rest[name] = amount * (1 - faded * smiling)
    add(rest)
    add(person.smile, smiling)
    add(OPEN_MOUTH, strengths["mouth_open"])
    add(person.brow_raise, raised)
    blink = person.blink * strengths["eyes_closed"]
    add({"eyeBlink": blink})
    fidgets = draw_actions(rng, FIDGETS)
    fidgets["browDown"] = fidgets["browDown"] * (1 - raised)
    add(fidgets)
    crooked = ("mouthSmileLeft", "mouthSmileRight")[rng.integers(2)]
    add(draw_actions(rng, {crooked: (-0.03, 0.06)}))
    for label in actions:
        if label.startswith(("eyeSquint", "eyeWide")):
            actions[label] *= 1 - min(blink, 1.0)  # lids that are shut do not narrow or widen
    return {label: min(amount, 1.3) for label, amount in actions.items() if amount > 1e-4}


def _labels_of(action: str) -> tuple[str, ...]:
    """Return the model's labels of an action, one for each side if it has sides."""
    if action in UNPAIRED or action.endswith(("Left", "Right")):
        return (action,)
    return (f"{action}Left", f"{action}Right")


def render(
    head: Head, person: Person, strengths: dict[str, float], rng, size: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Render one image of a person.

    Parameters
    ----------
    strengths : dict
        Of every attribute, in [0, 1].
    rng : numpy Generator
    size : int
        Side of the image in pixels.

    Returns
    -------
    picture : uint8 array (size, size, 3)
        RGB.
    pose : dict
        ``yaw``, ``pitch`` and ``roll`` in degrees (yaw > 0: towards the person's left).
    """
    count = len(head.canonical)  # vertices of the face; those of teeth, body and hair follow
    vertices = _expressive(head, person, expression(person, strengths, rng))

    spread = np.array((11, 6.5, 5))  # degrees
    yaw, pitch, roll = np.clip(rng.normal(0, spread), -2.3 * spread, 2.3 * spread).tolist()
    turned = (vertices - PIVOT) @ _rotation(yaw, pitch, roll).T + PIVOT
    vertices = np.where(person.turns[:, None], turned, vertices)

    # The camera looks at the middle of the face from 0.55 to 1.5 m.
    resolution = SUPERSAMPLE * size
    distance = np.float32(rng.uniform(0.55, 1.5))
    field = np.float32(0.248 * np.exp(rng.normal(0, 0.055)))  # metres across, near the face
    focal = resolution / field * (distance - np.float32(0.1))
    target = np.array((rng.normal(0, 0.008), 0, 0.012 + rng.normal(0, 0.008)), np.float32)
    target[:2] += (turned[:count].mean(0) - person.vertices[:count].mean(0))[:2] * 0.8
    camera = target + np.array((0, -distance, 0), np.float32)
    screen = _project(vertices - target, distance, focal, resolution)

    shown = _visible_triangles(person, screen)
    pixels, seen, weights, _ = rasterise(screen, person.triangles[shown], (resolution, resolution))
    seen = shown[seen]
    normals = vertex_normals(vertices, person.triangles, person.gather)
    attributes = np.concatenate([vertices, normals, person.coordinates, person.masks], 1)
    corners = attributes[person.triangles[seen]].astype(np.float32)
    surface = Surface(np.einsum("pkc,pk->pc", corners, weights))

    gaze = _direction(rng.normal(0, 7), rng.normal(0, 4) - 0.3 * pitch)
    shirt = linear(rng.uniform(15, 225, 3) * 0.6 + rng.uniform(10, 90))
    albedo, gloss, hair = _materials(head, person, person.part[seen], surface, gaze, shirt)
    light = _draw_light(rng)
    picture = _background(rng, resolution, light).reshape(-1, 3)
    picture[pixels] = _shade(surface, albedo, gloss, hair, light, camera, vertices, person)
    picture = picture.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE, 3).mean((1, 3))
    return _expose(rng, picture), {"yaw": yaw, "pitch": pitch, "roll": roll}


class Surface:
    """What is interpolated between vertices, for the p visible pixels."""

    def __init__(self, values: np.ndarray):
        self.place = values[:, :3]  # metres
        self.normal = values[:, 3:6]
        self.coordinates = values[:, 6:9]  # canonical position, or hair and tooth coordinates
        self.lips = values[:, 9]
        self.cavity = values[:, 10]
        self.ambient = values[:, 11]


def _expressive(head: Head, person: Person, actions: dict[str, float]) -> np.ndarray:
    """Return the vertices (n, 3) of a person with facial actions."""
    vertices = person.vertices.copy()
    count = len(head.canonical)
    for name, amount in actions.items():
        vertices[:count] += np.float32(amount) * head.blends[head.blend_index[name]]
    # The lower teeth go where the tongue goes.
    tongue = np.unique(head.triangles[head.part == Part.TONGUE])
    jaw = head.blends[head.blend_index["jawOpen"]][tongue].mean(0)
    vertices[person.jaw] += np.float32(actions.get("jawOpen", 0)) * jaw
    return vertices


def _project(vertices, distance, focal, resolution) -> np.ndarray:
    """Project vertices, relative to the camera's target, to column, row and depth (n, 3)."""
    across, away, up = vertices.T
    depth = away + distance
    column = resolution / 2 + focal * across / depth
    row = resolution / 2 + -focal * up / depth
    return np.column_stack([column, row, depth])


def _visible_triangles(person: Person, screen) -> np.ndarray:
    """Return the triangles that face the camera, and those of open sheets.

    Closed surfaces are never seen from behind; teeth, hair and cloth are open sheets.
    """
    corners = screen[person.triangles][..., :2]
    x1, y1 = (corners[:, 1] - corners[:, 0]).T
    x2, y2 = (corners[:, 2] - corners[:, 0]).T
    return np.flatnonzero((x1 * y2 - x2 * y1 < 0) | (person.part >= Part.TEETH))


def _rotation(yaw, pitch, roll) -> np.ndarray:
    """Return the matrix of a turn to the person's left, then a nod up, then a lean, in degrees."""
    angles = np.radians((yaw, pitch, roll))
    cy, cp, cr = np.cos(angles)
    sy, sp, sr = np.sin(angles)
    turn = np.array(((cy, -sy, 0), (sy, cy, 0), (0, 0, 1)))
    nod = np.array(((1, 0, 0), (0, cp, sp), (0, -sp, cp)))
    lean = np.array(((cr, 0, sr), (0, 1, 0), (-sr, 0, cr)))
    return (lean @ nod @ turn).astype(np.float32)


def _direction(azimuth, elevation) -> np.ndarray:
    """Return a unit vector; azimuth 0 is straight ahead of the person, rising to their left; degrees."""
    a, e = np.radians((azimuth, elevation))
    return np.array((np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)), np.float32)


def _materials(head: Head, person: Person, part, surface: Surface, gaze, shirt):
    """Return linear albedo (p, 3), gloss (p,) and whether it is hair (p,) of every visible pixel."""
    albedo = np.zeros((len(part), 3), np.float32)
    gloss = np.full(len(part), 0.02, np.float32)

    skin = part == Part.SKIN
    albedo[skin], gloss[skin] = _skin_material(
        person, surface.coordinates[skin], surface.lips[skin], surface.cavity[skin]
    )
    eye = part == Part.EYE
    albedo[eye] = _eye_albedo(head, person, surface.coordinates[eye], gaze)
    gloss[eye] = 0.5
    albedo[part == Part.TONGUE] = linear((150, 68, 68))
    teeth = part == Part.TEETH
    albedo[teeth] = _tooth_albedo(surface.coordinates[teeth])
    gloss[teeth] = 0.12
    hair = part == Part.HAIR
    albedo[hair] = _hair_albedo(person, surface.coordinates[hair])
    gloss[hair] = person.hair_shine * 0.06
    albedo[part == Part.CLOTH] = shirt
    return albedo, gloss, hair


def _skin_material(person: Person, at, lips, cavity) -> tuple[np.ndarray, np.ndarray]:
    """Return albedo and gloss of skin, lips and the inside of the mouth."""
    row, column = atlas_coordinates(at)
    colour = _bilinear(person.skin, row - 0.5, column - 0.5)
    lip = np.clip(lips * 1.4 - 0.2, 0, 1)[:, None]
    grain = colour.mean(1, keepdims=True) / person.skin.mean()
    colour = colour * (1 - lip) + person.lip_colour * np.clip(grain, 0.75, 1.2) * lip
    inside = np.clip(cavity, 0, 1)[:, None]
    albedo = colour * (1 - inside) + linear((96, 34, 36)) * 0.5 * inside
    gloss = person.gloss * (0.035 + 0.05 * lip[:, 0]) * (1 - inside[:, 0])
    return albedo, gloss


def _eye_albedo(head: Head, person: Person, at, gaze) -> np.ndarray:
    """Paint pupil, iris and sclera by the angle to where the eye looks."""
    centre = head.eyes[(at[:, 0] > 0).astype(int)]
    radial = unit(at - centre)
    angle = np.degrees(np.arccos(np.clip(radial @ gaze, -1, 1)))[:, None]
    iris = step(23.5, angle, 0.9)
    pupil = step(9.5, angle, 0.8)
    ring = 1 - 0.6 * bump(angle, 22.5, 3.0) + 0.25 * bump(angle, 13, 4)
    colour = person.sclera * (1 - iris) + person.iris * ring * iris
    return colour * (1 - pupil) + 0.004 * pupil


def _tooth_albedo(at) -> np.ndarray:
    """Paint teeth, with gaps and darker to the sides, and gums."""
    number, gum, outward = at.T
    gap = 0.45 * bump((number + 0.5) % 1, 0.5, 0.09)
    enamel = linear((226, 216, 198)) * ((1 - gap) * (1 - 0.55 * outward**2))[:, None]
    gum = np.clip(1.6 * gum - 0.2, 0, 1)[:, None]
    return enamel * gum + linear((160, 82, 82)) * (1 - gum)


def _hair_albedo(person: Person, at) -> np.ndarray:
    """Paint strands: waves round the head of two lengths, and a streak of the person's own."""
    turn, along, streak = at.T
    strands = 0.14 * np.sin(turn * 331 + 2 * streak + 5 * along)
    strands = strands + 0.10 * np.sin(turn * 787 + 7 * along)
    return person.hair * np.clip(1 + strands + 0.14 * streak, 0.35, 1.7)[:, None]


def _bilinear(texture, row, column) -> np.ndarray:
    """Read a texture (rows, columns, 3) between its texels; columns go round."""
    rows, columns = texture.shape[:2]
    row = np.clip(row, 0, rows - 1.001)
    column = column % (columns - 1.001)
    i = row.astype(int)
    j = column.astype(int)
    v = (row - i)[:, None]
    u = (column - j)[:, None]
    top = texture[i, j] * (1 - u) + texture[i, j + 1] * u
    bottom = texture[i + 1, j] * (1 - u) + texture[i + 1, j + 1] * u
    return top * (1 - v) + bottom * v


def _draw_light(rng) -> dict[str, np.ndarray]:
    """Draw a key light, which casts a shadow, a weak fill light, and light from all around."""
    warmth = rng.normal(0, 0.12)
    tint = np.array((1 + warmth, 1 + 0.15 * warmth, 1 - warmth))
    return {
        "key": _direction(np.clip(rng.normal(0, 38), -85, 85), rng.uniform(8, 65)),
        "key_colour": rng.uniform(0.5, 1.35) * tint,
        "fill": _direction(rng.uniform(-100, 100), rng.uniform(-15, 40)),
        "fill_colour": rng.uniform(0.05, 0.4) * (1 + rng.normal(0, 0.12, 3)),
        "sky": rng.uniform(0.30, 0.75) * (2 - tint) * (1 + rng.normal(0, 0.06, 3)),
        "ground": rng.uniform(0.10, 0.35) * tint * (1 + rng.normal(0, 0.08, 3)),
    }


def _shade(
    surface: Surface, albedo, gloss, hair, light, camera, vertices, person: Person
) -> np.ndarray:
    """Return the linear colour of every visible pixel: wrapped diffuse, highlight, shadow, ambient."""
    view = unit(camera - surface.place)
    normal = unit(surface.normal)
    back = (normal * view).sum(1) < 0
    normal = np.where((back & (hair | (surface.lips == 0)))[:, None], -normal, normal)
    raised = surface.place + 0.002 * normal
    lit = sunlit(vertices, person.triangles, light["key"], raised, resolution=176, bias=0.004)

    # Skin passes red light furthest, so red wraps further round the shaded side (a cheap stand-in
    # for subsurface scattering).
    wrap = np.array((0.28, 0.12, 0.06))
    colour = np.zeros_like(albedo, dtype=np.float64)
    for name, shadow in (("key", lit), ("fill", 0.4 + 0.6 * surface.ambient)):
        towards = light[name]
        light_colour = light[f"{name}_colour"]
        cosine = normal @ towards
        diffuse = np.clip((cosine[:, None] + wrap) / (1 + wrap), 0, None)
        colour += albedo * diffuse * shadow[:, None] * light_colour
        half = unit(view + towards)
        power = np.where(gloss > 0.3, 90, np.where(hair, 9, 22))
        shine = np.clip((normal * half).sum(1), 0, None) ** power * gloss * (cosine > 0)
        strength = np.where(gloss > 0.3, 5.0, 2.2)
        colour += (shine * strength * shadow)[:, None] * light_colour
    up = (0.5 + 0.5 * normal[:, 2])[:, None]
    around = light["sky"] * up + light["ground"] * (1 - up)
    return colour + albedo * around * surface.ambient[:, None]


def _background(rng, resolution, light) -> np.ndarray:
    """Draw a wall: a slope between two colours, often with blurred things in front of it."""
    y, x = np.mgrid[0:resolution, 0:resolution] / np.float64(resolution) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.clip(0.5 + np.cos(angle) * x + np.sin(angle) * y, 0, 1)[..., None]
    first = linear(np.clip(rng.uniform(25, 235) + rng.normal(0, 22, 3), 8, 250))
    second = (first * np.exp(rng.normal(0, 0.45)) * np.exp(rng.normal(0, 0.12, 3))).clip(0.002, 1)
    picture = first * (1 - slope) + second * slope
    for _ in range(rng.poisson(2.5)):
        centre_x, centre_y = rng.uniform(-0.6, 0.6, 2)
        width, height = rng.uniform(0.04, 0.4, 2)
        soft = rng.uniform(0.012, 0.08)
        inside = step(width, np.abs(x - centre_x), soft) * step(height, np.abs(y - centre_y), soft)
        colour = linear(np.clip(rng.uniform(15, 235) + rng.normal(0, 35, 3), 5, 250))
        picture = picture + (inside * rng.uniform(0.3, 0.9))[..., None] * (colour - picture)
    return picture * (0.5 + 0.5 * light["sky"].mean() + 0.2)


def _expose(rng, picture) -> np.ndarray:
    """Apply the camera: exposure, blur, shot and read noise, a tone curve, and 8 bits."""
    gain = np.exp(rng.normal(0, 0.16)) * (0.34 / max(np.percentile(picture, 60), 0.02)) ** 0.35
    picture = ndimage.gaussian_filter(picture * gain, rng.uniform(0.0, 0.6), axes=(0, 1))
    noise = rng.standard_normal(picture.shape) * rng.uniform(0.2, 1.0)
    picture = picture + noise * np.sqrt(0.00012 * np.clip(picture, 0, None) + 4e-6)
    picture = np.clip(picture, 0, None)
    picture = picture * (1 + picture / 2.6) / (1 + picture)  # soft shoulder, white at about 2
    return np.clip(255 * (1.12 * picture) ** (1 / 2.2) + 0.5, 0, 255).astype(np.uint8)
