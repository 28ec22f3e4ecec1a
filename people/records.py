"""The data set of virtual people: its labels, its records and its card."""

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from people.head import load_head
from people.image import render
from people.person import make_person

ATTRIBUTES = ("smiling", "mouth_open", "brows_raised", "eyes_closed")
DEMOGRAPHICS = ("age_group", "gender", "ancestry", "skin_tone")
# (low, high) of label 0 and of label 1, and the two shape parameters of the beta distribution
# between them. Only `smiling` overlaps: it is the attribute that the default study is about.
STRENGTHS = {
    "smiling": ((0.0, 0.42, 1.1, 2.8), (0.30, 1.0, 1.4, 1.2)),
    "mouth_open": ((0.0, 0.08, 1.0, 2.0), (0.25, 0.85, 1.2, 1.5)),
    "brows_raised": ((0.0, 0.15, 1.0, 2.0), (0.55, 1.0, 1.2, 1.2)),
    "eyes_closed": ((0.0, 0.30, 1.0, 2.0), (0.80, 1.0, 1.5, 1.0)),
}
JPEG_QUALITY = 91


def records(
    identities: int = 100, images: int = 48, seed: int = 0, size: int = 112, *, workers: int = 1
) -> Iterator[dict]:
    """Render people, one record per image, person after person.

    Person i is the same in every set with this seed and size.

    Parameters
    ----------
    identities : int
        Number of people.
    images : int
        Images of each person, an even number, so that every label is balanced.
    seed : int
    size : int
        Side of the square images in pixels.
    workers : int
        Number of processes, which changes the time and nothing else.

    Raises
    ------
    ValueError
        If a number is out of range.
    ImportError
        Without the optional package ``anny``.
    """
    _check_at_least(1, "identities", identities)
    _check_at_least(2, "images", images)
    _check_at_least(0, "seed", seed)
    _check_at_least(32, "size", size)
    _check_at_least(1, "workers", workers)
    if images % 2:
        raise ValueError(f"images is {images}, which is odd; half of them must have each attribute")
    load_head()  # a missing package is noticed here, once, and not in every worker
    render_person = partial(person_records, images=images, seed=seed, size=size)
    return _render_all(render_person, identities, min(workers, identities))


def _check_at_least(least: int, name: str, value) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} is {value!r}, not a whole number of at least {least}")


def _render_all(render_person, identities: int, workers: int) -> Iterator[dict]:
    if workers > 1:
        pool = ProcessPoolExecutor(workers, get_context("spawn"))
    else:
        pool = nullcontext()
    with pool:
        apply = pool.map if workers > 1 else map
        people = apply(render_person, range(identities))
        for person in tqdm(people, "people", identities, unit="person", mininterval=5):
            yield from person


def person_records(index: int, images: int, seed: int, size: int) -> list[dict]:
    """Render all images of one person; return their records, one dict of columns per image."""
    head = load_head()
    name = f"p{index:03d}"
    person = make_person(head, seed, index)
    drawn = draw_labels(seed, index, images)
    records = []
    for image in range(images):
        strengths = {attribute: float(drawn[attribute][1][image]) for attribute in ATTRIBUTES}
        rng = np.random.default_rng((seed, index, 2, image))
        pixels, pose = render(head, person, strengths, rng, size)
        record = {"image": {"bytes": _encode(pixels), "path": f"{name}/{image:02d}.jpg"}}
        record["identity"] = name
        for attribute in ATTRIBUTES:
            record[attribute] = int(drawn[attribute][0][image])
        for attribute, strength in strengths.items():
            record[f"{attribute}_strength"] = strength
        record |= person.columns
        for angle, degrees in pose.items():
            record[angle] = round(degrees, 2)
        records.append(record)
    return records


def draw_labels(seed: int, index: int, images: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw one person's labels, of which exactly half are 1, and strengths: attribute -> two arrays."""
    rng = np.random.default_rng((seed, index, 1, images))
    drawn = {}
    for attribute in ATTRIBUTES:
        labels = rng.permutation(np.arange(images) % 2)
        low, high, a, b = np.array(STRENGTHS[attribute]).T  # each of label 0 and of label 1
        strengths = low[labels] + (high - low)[labels] * rng.beta(a[labels], b[labels])
        drawn[attribute] = (labels, np.round(strengths, 4))
    return drawn


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def card(identities: int = 100, images: int = 48, seed: int = 0, size: int = 112) -> dict:
    """Return the data card that belongs to :func:`records` with the same arguments."""
    return {
        "name": "virtual-people",
        "source": (
            "rendered by study.faces.people from the parametric human model anny; nobody in it exists. "
            f"python -m study.faces.people FOLDER --seed {seed} --identities {identities} "
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
            "pillow": PIL.__version__,
        },
    }
