"""``python -m cid leaks``: the same person, or frames of one film, on both sides of a split.

From the embeddings alone. Two measures of every test image's nearest training image:

- *near copy*: its cosine is above :data:`COPY`, as between frames of one film or copies of one photograph.
- *same person*: its cosine, after the mean embedding is taken away, is higher than different people would reach.
  Most pairs of images show different people, so the lower half of all cosines tells how those of different
  people spread; a normal distribution of that width says what the nearest of so many strangers reaches by
  chance in :data:`BY_CHANCE` of the test images. Measured with dlib-resnet, identities known, the share so named
  of test images without and with their person among the training images: rendered people .02 .80, PINS .00 .66,
  LFW .14 .85, CelebA (development people) .10 .89; CMU, where the embedding hardly knows people, .24 .85.
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cid.door import tables
from cid.door.audit import check_sides, split_sides
from cid.door.inputs import embedded, keep_read, opened, tell_left_out
from cid.door.weigh import check_output

COPY = 0.995
BY_CHANCE = 0.05
SHOWN = 10  # pairs that are printed
PAIRS = 200_000  # random pairs that tell how different people spread
ROWS = 1024  # test images compared with all training images at a time
COLUMNS = ("image", "nearest_training_image", "cosine", "near_copy", "same_person")


@dataclass(frozen=True)
class Leaks:
    """The nearest training image of each of m test images."""

    nearest: np.ndarray  # int (m,): row among the training images
    cosine: np.ndarray  # float (m,)
    copy: np.ndarray  # bool (m,)
    person: np.ndarray  # bool (m,): looks like a person of the training images; copies do, too


def run(options: Namespace) -> int:
    """Compare both sides of the split; print what leaks, and write a table if one is asked for."""
    output = Path(options.output) if options.output else None
    if output is not None:
        check_output(output, (".csv", ".parquet", ".pq"))
        keep_read(options, output)
    found = opened(options)
    sides = split_sides(found.rows, options.split)
    got = embedded(found, options, output or Path("leaks.csv"), [options.split])
    tell_left_out(got.reasons)
    usable = got.usable()
    check_sides(usable & (sides == "train"), usable & (sides == "test"), options.split)
    train = np.flatnonzero(usable & (sides == "train"))
    test = np.flatnonzero(usable & (sides == "test"))
    leaks = compare(got.embedding[train], got.embedding[test], options.device)
    names = np.array(got.rows.names, dtype=object)
    columns = (
        names[test],
        names[train[leaks.nearest]],
        leaks.cosine.round(5),
        leaks.copy,
        leaks.person,
    )
    table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    _tell(table)
    if output is not None:
        tables.write_table(output, table)
        print(f"written: {output}, the nearest training image of every test image")
    return 0


def compare(train, test, device: str = "auto", progress: bool = True) -> Leaks:
    """Find the nearest training image (n, d) of every test image (m, d).

    Parameters
    ----------
    train, test : arrays (n, d) and (m, d)
    """

    from cid.arrays import unit_vectors
    from cid.precision import true_float32

    n = len(train)
    unit = unit_vectors(np.concatenate([train, test]), device).float()
    centred = unit - unit.mean(dim=0)
    centred = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
    limit = _by_chance(centred, n)
    nearest = np.empty(len(test), dtype=np.int64)
    cosine = np.empty(len(test))
    person = np.empty(len(test), dtype=bool)
    bar = tqdm(total=len(test), desc="compare", unit="image", disable=not progress)
    with true_float32(), bar:
        for start in range(0, len(test), ROWS):
            rows = slice(start, start + ROWS)
            among = slice(n + start, n + start + ROWS)
            best = (unit[among] @ unit[:n].T).max(dim=1)
            nearest[rows] = best.indices.cpu().numpy()
            cosine[rows] = best.values.clamp(max=1).cpu().numpy()
            alike = (centred[among] @ centred[:n].T).amax(dim=1)
            person[rows] = (alike > limit).cpu().numpy()
            bar.update(len(best.indices))
    copy = cosine > COPY
    return Leaks(nearest, cosine, copy, person | copy)


def _by_chance(unit, n: int) -> float:
    """Return the cosine that the nearest of n strangers exceeds in :data:`BY_CHANCE` of the cases."""
    from scipy.stats import norm

    generator = np.random.default_rng(0)
    first = generator.integers(0, len(unit), PAIRS)
    second = generator.integers(0, len(unit), PAIRS)
    apart = first != second
    pairs = zip(np.array_split(first[apart], 50), np.array_split(second[apart], 50), strict=True)
    cosines = np.concatenate([(unit[a] * unit[b]).sum(dim=1).cpu().numpy() for a, b in pairs])
    middle = np.median(cosines)
    width = np.sqrt(np.mean((cosines[cosines <= middle] - middle) ** 2))
    return float(middle + width * norm.isf(BY_CHANCE / n))


def _tell(table: pd.DataFrame) -> None:
    m = len(table)
    copies = int(table["near_copy"].sum())
    people = int(table["same_person"].sum())
    print(
        f"near copies: {copies:,} of {m:,} test images ({copies / m:.1%}) have a training image above cosine "
        f"{COPY}, as frames of one film have"
    )
    print(
        f"same person: {people:,} of {m:,} test images ({people / m:.1%}) look like somebody of the training "
        f"images; by chance it would be some {BY_CHANCE:.0%}, and more where the embedding hardly knows people"
    )
    if people / m <= 2 * BY_CHANCE:
        print("nothing speaks for people on both sides beyond chance")
    else:
        print(
            "what to do: look at the pairs below; where they are right, leave the test images with same_person 1 "
            "out of the test, or split anew by film, album or person, and run this again"
        )
    print(f"the surest pairs (test image, its nearest training image, cosine), {SHOWN} at most:")
    surest = table.sort_values("cosine", ascending=False, kind="stable").head(SHOWN)
    for row in surest.itertuples():
        print(f"  {row.image}  {row.nearest_training_image}  {row.cosine:.4f}")
