"""Encoded pictures as arrays: upright, RGB, 8 bits, white where they are transparent."""

import io

import numpy as np
from PIL import Image, ImageOps


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decode an image to uint8 (height, width, 3) RGB, turned upright by its EXIF orientation."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            upright = ImageOps.exif_transpose(picture)
            return np.asarray(in_8_bits(upright).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        why = str(error).partition(" <")[0]  # without the address of a file in memory
        raise ValueError(
            f"image {name!r} cannot be decoded ({why}); replace or remove it"
        ) from None


def in_8_bits(picture: Image.Image) -> Image.Image:
    """Convert a picture to grey or RGB of 8 bits; transparent parts become white, as on a page."""
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode == "L":
        return picture
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale grey of more bits to 8. Of floats and 32 bits, the largest value decides what white is."""
    values = np.asarray(picture, dtype=np.float64)
    low = values.min()
    high = values.max()
    if not 0 <= low <= high <= 65535:  # NaN, too
        raise ValueError(f"grey values out of range: from {low:g} to {high:g}")
    if picture.mode == "F" and high <= 1:
        white = 1
    elif picture.mode.startswith("I;16") or high > 255:
        white = 65535
    else:
        white = 255
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))
