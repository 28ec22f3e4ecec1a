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
# between them. Only `smiling` overlaps: it is the attribute the study is about.
STRENGTHS = {
    "smiling": ((0.0, 0.42, 1.1, 2.8), (0.30, 1.0, 1.4, 1.2)),
    "mouth_open": ((0.0, 0.08, 1.0, 2.0), (0.25, 0.85, 1.2, 1.5)),
    "brows_raised": ((0.0, 0.15, 1.0, 2.0), (0.55, 1.0, 1.2, 1.2)),
    "eyes_closed": ((0.0, 0.30, 1.0, 2.0), (0.80, 1.0, 1.5, 1.0)),
}
JPEG_QUALITY = 91


def draw_labels(seed: int, index: int, images: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels (exactly half are 1) and strengths of one person: attribute -> two arrays."""
    rng = np.random.default_rng((seed, index, 1, images))
    drawn = {}
    for attribute in ATTRIBUTES:
        labels = rng.permutation(np.arange(images) % 2)
        low, high, a, b = np.array(STRENGTHS[attribute]).T
        strengths = low[labels] + (high - low)[labels] * rng.beta(a[labels], b[labels])
        drawn[attribute] = labels, np.round(strengths, 4)
    return drawn


def person_records(index: int, images: int, seed: int, size: int) -> list[dict]:
    """All records of one person, in the format of :func:`study.faces.dataset.write_faces`."""
    head, name = load_head(), f"p{index:03d}"
    person = make_person(head, seed, index)
    drawn = draw_labels(seed, index, images)
    records = []
    for image in range(images):
        labels = {a: int(labels[image]) for a, (labels, _) in drawn.items()}
        strengths = {a: float(strengths[image]) for a, (_, strengths) in drawn.items()}
        rng = np.random.default_rng((seed, index, 2, image))
        picture, pose = render(head, person, strengths, rng, size)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
        record = {"image": {"bytes": buffer.getvalue(), "path": f"{name}/{image:02d}.jpg"}}
        record |= {"identity": name, **labels, **{f"{a}_strength": v for a, v in strengths.items()}}
        records.append(record | person.columns | {k: round(v, 2) for k, v in pose.items()})
    return records


def records(
    identities: int = 100, images: int = 48, seed: int = 0, size: int = 112, *, workers: int = 1
) -> Iterator[dict]:
    """Render people, one record an image, person after person.

    ``images`` of each person, an even number, so that every label is balanced; ``size`` is the edge
    of the square images in pixels. Person i is the same in every set with this seed and size;
    ``workers`` are processes, and change the time and nothing else. Raises ``ValueError`` for a
    number out of range and ``ImportError`` without the optional package ``anny``.
    """
    least = {"identities": 1, "images": 2, "seed": 0, "size": 32, "workers": 1}
    for name, value in zip(least, (identities, images, seed, size, workers), strict=True):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < least[name]:
            raise ValueError(f"{name} is {value!r}, not a whole number of at least {least[name]}")
    if images % 2:
        raise ValueError(f"images is {images}, which is odd; half of them must have each attribute")
    load_head()  # a missing package is noticed here, once, and not in every worker
    one = partial(person_records, images=images, seed=seed, size=size)
    return _render_all(one, identities, min(workers, identities))


def _render_all(one, identities, workers) -> Iterator[dict]:
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, spawn) if workers > 1 else nullcontext() as pool:
        people = (pool.map if pool else map)(one, range(identities))
        for person in tqdm(people, "people", identities, unit="person", mininterval=5):
            yield from person


def card(identities: int = 100, images: int = 48, seed: int = 0, size: int = 112) -> dict:
    """The data card that belongs to :func:`records` with the same arguments."""
    anny = load_head().version
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
        "versions": {"anny": anny, "numpy": np.__version__, "pillow": PIL.__version__},
    }
