"""One look at every picture: what shows nothing, and what is there twice, is said with a share and examples."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from study.faces import importers, looks
from study.faces.dataset import read_faces


def scene(seed: int, size=(96, 80)) -> Image.Image:
    """A smooth picture in colour, as a photograph is; another one for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved_anew(picture: Image.Image) -> dict[str, bytes]:
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    return {
        "quality 50": encoded(picture, "JPEG", quality=50),
        "half the size": encoded(half),
        "half the size, quality 80": encoded(half, "JPEG", quality=80),
        "as WebP": encoded(picture, "WEBP", quality=60),
        "in grey": encoded(picture.convert("L")),
        "sharpened a little": encoded(picture.filter(ImageFilter.UnsharpMask(1, 30))),
    }


def grey_of(content: bytes) -> np.ndarray:
    return importers.normalise(content).look.grey


@pytest.mark.parametrize("how", saved_anew(scene(0)))
def test_a_photo_saved_anew_is_near_and_others_are_far(how):
    greys = [grey_of(encoded(scene(seed))) for seed in range(20)]
    greys.append(grey_of(saved_anew(scene(7))[how]))
    assert looks.near_pairs(greys).tolist() == [[7, 20]]


def test_all_near_pairs_are_found():
    rng = np.random.default_rng(0)
    greys = rng.normal(size=(60, looks.SIDE**2)).astype(np.float32)
    greys[30:] = greys[:30] + rng.uniform(0, 0.05, (30, 1)) * rng.choice([-1, 1], (30, 256))
    apart = np.sqrt(((greys[:, None] - greys) ** 2).mean(axis=2))
    wanted = np.argwhere(np.triu(apart <= looks.NEAR, 1))
    assert 10 < len(wanted) < 30
    np.testing.assert_array_equal(looks.near_pairs(list(greys)), wanted)


def twelve_bits() -> Image.Image:
    return Image.fromarray((np.asarray(scene(3).convert("L")).astype(np.uint16)) * 16)


def transparent() -> Image.Image:
    picture = scene(4).convert("RGBA")
    picture.putalpha(0)
    return picture


@pytest.mark.parametrize(
    "picture, empty",
    [
        (Image.new("RGB", (40, 40), "grey"), True),
        (Image.new("L", (40, 40), 0), True),
        (transparent(), True),
        (twelve_bits(), True),
        (scene(5), False),
        (scene(5).point(lambda value: value // 4), False),  # dark, but a picture
    ],
    ids=["flat", "black", "transparent", "12 bits as 16", "a picture", "a dark picture"],
)
def test_what_shows_nothing_is_told_from_a_picture(picture, empty):
    assert (grey_of(encoded(picture)) is None) == empty


def test_an_import_says_what_is_suspicious_with_names_and_keeps_it_with_numbers(tmp_path):
    pictures = {f"{k}.png": encoded(scene(k)) for k in range(8)}
    pictures |= {"black.png": encoded(Image.new("L", (9, 9))), "blank.png": encoded(transparent())}
    pictures |= {"again.jpg": encoded(scene(0), "JPEG"), "film.jpg": encoded(scene(1), "JPEG")}
    table = pd.DataFrame({"image": list(pictures)})
    table["identity"] = ["ann", "bob"] * 4 + ["ann", "bob", "bob", "bob"]
    table["hat"] = [0.0, 1.0] * 6
    table["partition"] = ["train"] * 11 + ["test"]
    card = {"name": "x", "source": "", "licence": ""}
    said = []
    out = importers.import_faces(
        importers.Listing(table, ["hat"], card, pictures.__getitem__),
        tmp_path / "out",
        progress=False,
        say=said.append,
    )
    empty, other, sides, own = said
    assert empty.startswith(
        "2 of 12 images (17 %) hardly have any contrast, such as 'black.png', 'blank.png'"
    )
    assert other.startswith(
        "2 of 12 images (17 %) look like one of another person, such as '0.png' and"
    )
    assert "'0.png' and 'again.jpg'" in other and "'1.png' and 'film.jpg'" in sides
    assert "look like one of another partition" in sides
    assert "'1.png' and 'film.jpg'" in own and "frames of one film" in own
    kept = read_faces(out).card["warnings"]
    assert len(kept) == 4 and ".png" not in " ".join(kept) and "person-" in kept[1]
