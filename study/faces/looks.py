"""One cheap look at every picture that comes in: does it show anything, and is it there twice?

A picture saved anew, at another size or quality, has other bytes and other pixels. So pictures are compared
as they look from afar, in grey of 16 by 16 pixels, less their mean and divided by their standard deviation.
Of photographs in four data sets, copies at half the size or at JPEG quality 50 lie within .025 of each other,
and pictures of different people more than .12; what lies between are frames of one film.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from PIL import Image

SIDE = 16  # px
CONTRAST = (
    2.0  # standard deviation of the grey values, of 8 bits, from afar; photographs have 12 and more
)
RANGE = 16  # from the darkest to the brightest value; 12 bits that are read as 16 end there
NEAR = 0.03  # root mean square of the difference of two looks
DIRECTIONS = 8  # in which pictures differ most: candidates are found in these
BLOCK = 8192  # looks that are compared at once
SHOWN = 3  # examples in a sentence


@dataclass(frozen=True)
class Look:
    """A picture from afar: ``grey`` is float16 (SIDE²,), of mean 0 and deviation 1; None if it is empty."""

    grey: np.ndarray | None


def look(picture: Image.Image) -> Look:
    """Look at a picture of 8 bits."""
    grey = picture.convert("L")
    low, high = grey.getextrema()
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    deviation = small.std()
    if high - low <= RANGE or deviation < CONTRAST:
        return Look(None)
    return Look(((small - small.mean()) / deviation).ravel().astype(np.float16))


@dataclass
class Gallery:
    """The looks of all pictures of an import, with their names and the rows of their table."""

    rows: list[int] = field(default_factory=list)
    greys: list[np.ndarray] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)  # rows of pictures that show nothing
    number: int = 0  # of pictures seen

    def add(self, row: int, seen: Look) -> None:
        """Add a picture; ``row`` is its place in the table."""
        self.number += 1
        if seen.grey is None:
            self.empty.append(row)
        else:
            self.rows.append(row)
            self.greys.append(seen.grey)

    def doubts(self, table: pd.DataFrame, names: Sequence[str]) -> list[str]:
        """Return a sentence for each kind of suspicious pictures, with a share and examples.

        Parameters
        ----------
        table : DataFrame
            One row per image, with ``identity``, and ``partition`` where the source has one.
        names : sequence of str
            What to call the images of the table.
        """
        lines = []
        if self.empty:
            shown = ", ".join(repr(names[row]) for row in self.empty[:SHOWN])
            lines.append(
                f"{_share(len(self.empty), self.number)} hardly have any contrast, such as {shown}: they are "
                "empty, transparent, or of 12 bits read as 16; look at them, and mend them or leave them out"
            )
        pairs = (
            np.asarray(self.rows)[near_pairs(self.greys)] if self.greys else np.empty((0, 2), int)
        )
        if not len(pairs):
            return lines
        people = table["identity"].fillna("").to_numpy(dtype=str)[pairs]
        differ = (people[:, 0] != people[:, 1]) & (people != "").all(axis=1)
        if differ.any():
            lines.append(
                f"{_share(len(np.unique(pairs[differ])), self.number)} look like one of another person, such "
                f"as {_examples(pairs[differ], names)}: one photo saved anew under two names; keep one"
            )
        if "partition" in table:
            sides = table["partition"].to_numpy(dtype=str)[pairs]
            across = sides[:, 0] != sides[:, 1]
            if across.any():
                lines.append(
                    f"{_share(len(np.unique(pairs[across])), self.number)} look like one of another "
                    f"partition, such as {_examples(pairs[across], names)}: a test of the source's split "
                    "knows their answer"
                )
        if not differ.all():
            own = pairs[~differ]
            lines.append(
                f"{_share(len(np.unique(own)), self.number)} look like another one, not by the name of "
                f"another person, such as {_examples(own, names)}: saved anew, or frames of one film; one may "
                "train and the other test, so keep one"
            )
        return lines


def near_pairs(greys: Sequence[np.ndarray]) -> np.ndarray:
    """Find all pairs of looks within :data:`NEAR`: int array (pairs, 2), of places in ``greys``, sorted."""
    from scipy.spatial import cKDTree  # late: it takes a while to import

    pictures = np.stack(greys)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(pictures), BLOCK):
            yield pictures[start : start + BLOCK].astype(np.float32) / SIDE

    _, directions = np.linalg.eigh(sum(block.T @ block for block in blocks()))
    # In fewer directions two pictures are never further apart, so no pair is missed.
    within = np.concatenate([block @ directions[:, -DIRECTIONS:] for block in blocks()])
    pairs = cKDTree(within).query_pairs(NEAR, output_type="ndarray")
    first, second = (pictures[pairs[:, end]].astype(np.float32) / SIDE for end in (0, 1))
    pairs = np.sort(pairs[np.linalg.norm(first - second, axis=1) <= NEAR], axis=1)
    return pairs[np.lexsort(pairs.T[::-1])]


def _share(part: int, all_: int) -> str:
    return f"{part:,} of {all_:,} images ({100 * part / all_:.2g} %)"


def _examples(pairs: np.ndarray, names: Sequence[str]) -> str:
    return ", ".join(f"{names[a]!r} and {names[b]!r}" for a, b in pairs[:SHOWN])
