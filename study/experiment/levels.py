"""Bias levels, in whole images: how many of a person's training images are of which class."""

from collections.abc import Iterable

from cid.names import find

KINDS = ("correlation", "longtail", "natural")
CORRELATED = "correlation"
REPEATED = "repeated"  # a value of bias.cohorts: seeds take the cohorts in turn


def minority_images(level: float, images_per_identity: int) -> int:
    """Return how many of a person's training images are of the minority class, under ``correlation``.

    The whole number nearest to ``(1 - level) / 2`` of them, and below level 1 at least one: without a
    single image there is nothing that a weight could raise.
    """
    nearest = round((1 - level) / 2 * images_per_identity)
    return nearest if level == 1 else max(1, nearest)


def built_level(level: float, images_per_identity: int, kind: str = CORRELATED) -> float:
    """Return the level that whole images give, which every table and figure of a study shows."""
    if kind != CORRELATED:
        return float(level)
    minority = minority_images(level, images_per_identity)
    return round(1 - 2 * minority / images_per_identity, 4)


def built_levels(levels: Iterable[float], images_per_identity: int, kind: str) -> list[float]:
    """Return :func:`built_level` of all levels.

    Raises
    ------
    ValueError
        On a level outside [0, 1]; an odd number of images under ``correlation``, which level 0 cannot
        halve; two levels that would build the same sets; or a level other than 0 under ``natural``.
    """
    find("bias kind", kind, dict.fromkeys(KINDS))
    levels = [float(level) for level in levels]
    for level in levels:
        if not 0 <= level <= 1:
            raise ValueError(f"bias level {level} is outside [0, 1]")
        if kind == "natural" and level != 0:
            raise ValueError(
                f"bias level {level} of the kind natural: the data as they are have no level, so set "
                "bias.levels to [0.0]"
            )
    if kind == CORRELATED and images_per_identity % 2:
        fewer = f"{images_per_identity - 1} or " if images_per_identity > 1 else ""
        raise ValueError(
            f"bias.images_per_identity is {images_per_identity}; under correlation it must be even, so "
            f"that level 0 halves it: write {fewer}{images_per_identity + 1}"
        )
    built = [built_level(level, images_per_identity, kind) for level in levels]
    for place in range(1, len(levels)):
        if built[place] == built[place - 1]:
            raise ValueError(
                f"bias levels {levels[place - 1]:g} and {levels[place]:g} both leave a person "
                f"{minority_images(levels[place], images_per_identity)} of {images_per_identity} images "
                "of the minority class; drop one of them"
            )
    return built
