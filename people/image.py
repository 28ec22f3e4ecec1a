"""One image of a person, all drawn anew: expression, pose, camera, light, background, noise."""

import numpy as np
from scipy import ndimage

from people.head import Head, Part, atlas_coordinates
from people.person import Person, draw_actions
from people.raster import bump, linear, rasterise, step, sunlit, unit, vertex_normals

PIVOT = np.array((0.0, 0.03, -0.09), np.float32)  # the head turns about the upper neck
SUPERSAMPLE = 2
UNPAIRED = ("browInnerUp", "mouthPucker", "jawOpen")  # actions without a left and a right
OPEN_MOUTH = {"jawOpen": 0.75, "mouthLowerDown": 0.25}
# What faces do besides: speech and fidgeting, small, and no label says so (for `draw_actions`).
FIDGETS = {
    "mouthPucker": (-0.08, 0.14), "mouthFrown": (-0.10, 0.18), "mouthStretch": (-0.12, 0.18),
    "mouthUpperUp": (-0.12, 0.16), "browDown": (-0.1, 0.2), "cheekSquint": (-0.1, 0.18),
}  # fmt: skip


def expression(person: Person, strengths: dict, rng) -> dict:
    """Facial actions (label -> amount) of a person at the given attribute strengths."""
    actions: dict[str, float] = {}

    def add(face, level=1.0):
        for name, amount in face.items():
            alone = name in UNPAIRED or name.endswith(("Left", "Right"))
            for label in (name,) if alone else (f"{name}Left", f"{name}Right"):
                actions[label] = actions.get(label, 0.0) + amount * level

    smiling, raised = strengths["smiling"], strengths["brows_raised"]
    # A smile pulls frown and pout apart; the rest of the resting face stays.
    fade = dict.fromkeys(("mouthFrown", "mouthPucker"), 1 - 0.8 * smiling)
    add({name: v * fade.get(name, 1 - 0.4 * smiling) for name, v in person.rest.items()})
    add(person.smile, smiling)
    add(OPEN_MOUTH, strengths["mouth_open"])
    add(person.raise_, raised)
    blink = person.blink * strengths["eyes_closed"]
    add({"eyeBlink": blink})
    fidgets = draw_actions(rng, FIDGETS)
    add(fidgets | {"browDown": fidgets["browDown"] * (1 - raised)})
    side = ("mouthSmileLeft", "mouthSmileRight")[rng.integers(2)]
    add(draw_actions(rng, {side: (-0.03, 0.06)}))
    for name in actions:
        if name.startswith(("eyeSquint", "eyeWide")):
            actions[name] *= 1 - min(blink, 1.0)  # lids that are shut do not narrow or widen
    return {name: min(amount, 1.3) for name, amount in actions.items() if amount > 1e-4}


def render(head: Head, person: Person, strengths: dict, rng, size: int) -> tuple[np.ndarray, dict]:
    """One image of a person: uint8 RGB, shape (size, size, 3), before encoding; and its pose.

    The pose is ``yaw``, ``pitch`` and ``roll`` in degrees (yaw > 0: towards the person's left).
    """
    vertices = person.vertices.copy()
    count = len(head.canonical)
    actions = expression(person, strengths, rng)
    for name, amount in actions.items():
        vertices[:count] += np.float32(amount) * head.blends[head.blend_index[name]]
    # The lower teeth go where the tongue goes.
    tongue = np.unique(head.triangles[head.part == Part.TONGUE])
    jaw = head.blends[head.blend_index["jawOpen"]][tongue].mean(0)
    vertices[person.jaw] += np.float32(actions.get("jawOpen", 0)) * jaw

    spread = np.array((11, 6.5, 5))
    yaw, pitch, roll = np.clip(rng.normal(0, spread), -2.3 * spread, 2.3 * spread).tolist()
    turned = (vertices - PIVOT) @ _rotation(yaw, pitch, roll).T + PIVOT
    vertices = np.where(person.turns[:, None], turned, vertices)
    # The camera looks at the middle of the face from 0.55 to 1.5 m.
    distance = np.float32(rng.uniform(0.55, 1.5))
    resolution = SUPERSAMPLE * size
    field = np.float32(0.248 * np.exp(rng.normal(0, 0.055)))  # metres across, near the face
    focal = resolution / field * (distance - np.float32(0.1))
    target = np.array((rng.normal(0, 0.008), 0, 0.012 + rng.normal(0, 0.008)), np.float32)
    target[:2] += (turned[:count].mean(0) - person.vertices[:count].mean(0))[:2] * 0.8
    across, away, up = (vertices - target).T
    depth = away + distance
    column, row = focal * across / depth, -focal * up / depth
    screen = np.column_stack([resolution / 2 + column, resolution / 2 + row, depth])
    eye = target + np.array((0, -distance, 0), np.float32)

    # Closed surfaces are never seen from behind; hair and cloth are open sheets.
    corners = screen[person.triangles][..., :2]
    (x1, y1), (x2, y2) = ((corners[:, k] - corners[:, 0]).T for k in (1, 2))
    shown = np.flatnonzero((x1 * y2 - x2 * y1 < 0) | (person.part >= Part.TEETH))
    pixels, seen, weights, _ = rasterise(screen, person.triangles[shown], (resolution, resolution))
    seen = shown[seen]
    normals = vertex_normals(vertices, person.triangles, person.gather)
    attributes = np.concatenate([vertices, normals, person.coordinates, person.masks], 1)
    values = np.einsum("pkc,pk->pc", attributes[person.triangles[seen]].astype(np.float32), weights)
    gaze = _direction(rng.normal(0, 7), rng.normal(0, 4) - 0.3 * pitch)
    shirt = linear(rng.uniform(15, 225, 3) * 0.6 + rng.uniform(10, 90))
    albedo, gloss, hair = _materials(head, person, person.part[seen], values, gaze, shirt)
    light = _draw_light(rng)
    picture = _background(rng, resolution, light).reshape(-1, 3)
    picture[pixels] = _shade(values, albedo, gloss, hair, light, eye, vertices, person)
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

    skin = part == Part.SKIN
    row, column = atlas_coordinates(at[skin])
    colour = _bilinear(person.skin, row - 0.5, column - 0.5)
    lip = np.clip(lips[skin] * 1.4 - 0.2, 0, 1)[:, None]
    grain = colour.mean(1, keepdims=True) / person.skin.mean()
    colour = colour * (1 - lip) + person.lip_colour * np.clip(grain, 0.75, 1.2) * lip
    inside = np.clip(cavity[skin], 0, 1)[:, None]
    albedo[skin] = colour * (1 - inside) + linear((96, 34, 36)) * 0.5 * inside
    gloss[skin] = person.gloss * (0.035 + 0.05 * lip[:, 0]) * (1 - inside[:, 0])

    eye = part == Part.EYE
    radial = unit(at[eye] - head.eyes[(at[eye][:, 0] > 0).astype(int)])
    angle = np.degrees(np.arccos(np.clip(radial @ gaze, -1, 1)))[:, None]
    iris, pupil = step(23.5, angle, 0.9), step(9.5, angle, 0.8)
    ring = 1 - 0.6 * bump(angle, 22.5, 3.0) + 0.25 * bump(angle, 13, 4)
    colour = person.sclera * (1 - iris) + person.iris * ring * iris
    albedo[eye] = colour * (1 - pupil) + 0.004 * pupil
    gloss[eye] = 0.5

    albedo[part == Part.TONGUE] = linear((150, 68, 68))
    teeth = part == Part.TEETH
    number, gum, out = at[teeth].T
    gap = 0.45 * bump((number + 0.5) % 1, 0.5, 0.09)
    enamel = linear((226, 216, 198)) * ((1 - gap) * (1 - 0.55 * out**2))[:, None]
    gum = np.clip(1.6 * gum - 0.2, 0, 1)[:, None]
    albedo[teeth] = enamel * gum + linear((160, 82, 82)) * (1 - gum)
    gloss[teeth] = 0.12

    hair = part == Part.HAIR
    turn, along, streak = at[hair].T
    strands = 0.14 * np.sin(turn * 331 + 2 * streak + 5 * along)
    strands = strands + 0.10 * np.sin(turn * 787 + 7 * along)
    albedo[hair] = person.hair * np.clip(1 + strands + 0.14 * streak, 0.35, 1.7)[:, None]
    gloss[hair] = person.hair_shine * 0.06
    albedo[part == Part.CLOTH] = shirt
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
    return {
        "key": _direction(np.clip(rng.normal(0, 38), -85, 85), rng.uniform(8, 65)),
        "key_colour": rng.uniform(0.5, 1.35) * tint,
        "fill": _direction(rng.uniform(-100, 100), rng.uniform(-15, 40)),
        "fill_colour": rng.uniform(0.05, 0.4) * (1 + rng.normal(0, 0.12, 3)),
        "sky": rng.uniform(0.30, 0.75) * (2 - tint) * (1 + rng.normal(0, 0.06, 3)),
        "ground": rng.uniform(0.10, 0.35) * tint * (1 + rng.normal(0, 0.08, 3)),
    }


def _shade(values, albedo, gloss, hair, light, eye, vertices, person) -> np.ndarray:
    """Linear colour of every visible pixel: wrapped diffuse, a highlight, shadow and ambient."""
    where, normal, ambient = values[:, :3], values[:, 3:6], values[:, 11]
    view, normal = unit(eye - where), unit(normal)
    back = (normal * view).sum(1) < 0
    normal = np.where((back & (hair | (values[:, 9] == 0)))[:, None], -normal, normal)
    raised = where + 0.002 * normal
    lit = sunlit(vertices, person.triangles, light["key"], raised, resolution=176, bias=0.004)

    # Skin passes red light furthest, so red wraps further round the shaded side (a cheap stand-in
    # for subsurface scattering).
    wrap = np.array((0.28, 0.12, 0.06))
    colour = np.zeros_like(albedo, dtype=np.float64)
    for name, shadow in (("key", lit), ("fill", 0.4 + 0.6 * ambient)):
        cosine = normal @ light[name]
        diffuse = np.clip((cosine[:, None] + wrap) / (1 + wrap), 0, None)
        colour += albedo * diffuse * shadow[:, None] * light[name + "_colour"]
        half = unit(view + light[name])
        power = np.where(gloss > 0.3, 90, np.where(hair, 9, 22))
        shine = np.clip((normal * half).sum(1), 0, None) ** power * gloss * (cosine > 0)
        strength = np.where(gloss > 0.3, 5.0, 2.2)
        colour += (shine * strength * shadow)[:, None] * light[name + "_colour"]
    up = (0.5 + 0.5 * normal[:, 2])[:, None]
    return colour + albedo * (light["sky"] * up + light["ground"] * (1 - up)) * ambient[:, None]


def _background(rng, resolution, light) -> np.ndarray:
    """A wall: one or two colours in a slope, often with blurred things in front of it."""
    y, x = np.mgrid[0:resolution, 0:resolution] / np.float64(resolution) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.clip(0.5 + np.cos(angle) * x + np.sin(angle) * y, 0, 1)[..., None]
    first = linear(np.clip(rng.uniform(25, 235) + rng.normal(0, 22, 3), 8, 250))
    second = (first * np.exp(rng.normal(0, 0.45)) * np.exp(rng.normal(0, 0.12, 3))).clip(0.002, 1)
    picture = first * (1 - slope) + second * slope
    for _ in range(rng.poisson(2.5)):
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        w, h = rng.uniform(0.04, 0.4, 2)
        soft = rng.uniform(0.012, 0.08)
        inside = step(w, np.abs(x - cx), soft) * step(h, np.abs(y - cy), soft)
        colour = linear(np.clip(rng.uniform(15, 235) + rng.normal(0, 35, 3), 5, 250))
        picture = picture + (inside * rng.uniform(0.3, 0.9))[..., None] * (colour - picture)
    return picture * (0.5 + 0.5 * light["sky"].mean() + 0.2)


def _expose(rng, picture) -> np.ndarray:
    """Camera: exposure, blur, shot and read noise, tone curve, 8 bits."""
    gain = np.exp(rng.normal(0, 0.16)) * (0.34 / max(np.percentile(picture, 60), 0.02)) ** 0.35
    picture = ndimage.gaussian_filter(picture * gain, rng.uniform(0.0, 0.6), axes=(0, 1))
    noise = rng.standard_normal(picture.shape) * rng.uniform(0.2, 1.0)
    picture = picture + noise * np.sqrt(0.00012 * np.clip(picture, 0, None) + 4e-6)
    picture = np.clip(picture, 0, None)
    picture = picture * (1 + picture / 2.6) / (1 + picture)  # soft shoulder, white at about 2
    return np.clip(255 * (1.12 * picture) ** (1 / 2.2) + 0.5, 0, 255).astype(np.uint8)
