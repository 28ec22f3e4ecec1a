"""Bias levels, in whole images: how many of a person's training images are of which class."""

from collections.abc import Iterable

from cid.names import find

KINDS = ("correlation", "longtail", "natural")
CORRELATED = "correlation"
REPEATED = "repeated"  # a value of bias.cohorts: seeds take the cohorts in turn


def minority_images(level: float, images_per_identity: int, classes: int = 2) -> int:
    """Return how many of a person's training images are of minority classes, under ``correlation``.

    These are all classes but the person's majority class, which has the share ``1/C + level (1 - 1/C)`` of C
    classes. The whole number nearest to the rest of the images, and below level 1 at least one: without a
    single image there is nothing that a weight could raise.

    >>> minority_images(0.9, 20)
    1
    >>> minority_images(0.0, 8, classes=4)
    6
    """
    nearest = round((1 - level) * (1 - 1 / classes) * images_per_identity)
    return nearest if level == 1 else max(1, nearest)


def built_level(
    level: float, images_per_identity: int, kind: str = CORRELATED, classes: int = 2
) -> float:
    """Return the level that whole images give, which every table and figure of a study shows."""
    if kind != CORRELATED:
        return float(level)
    minority = minority_images(level, images_per_identity, classes)
    if classes == 2:
        return round(1 - 2 * minority / images_per_identity, 4)
    return round(1 - minority / images_per_identity / (1 - 1 / classes), 4)


def built_levels(
    levels: Iterable[float], images_per_identity: int, kind: str, classes: int = 2
) -> list[float]:
    """Return :func:`built_level` of all levels.

    Raises
    ------
    ValueError
        On a level outside [0, 1]; a number of images that level 0 cannot share out evenly among the
        classes, under ``correlation``; two levels that would build the same sets; or a level other than 0
        under ``natural``.
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
    rest = images_per_identity % classes
    if kind == CORRELATED and rest:
        fewer = f"{images_per_identity - rest} or " if images_per_identity > rest else ""
        must = "even, so that level 0 halves it"
        if classes > 2:
            must = f"a multiple of {classes}, so that level 0 has as many of each of the {classes} classes"
        raise ValueError(
            f"bias.images_per_identity is {images_per_identity}; under correlation it must be {must}: "
            f"write {fewer}{images_per_identity + classes - rest}"
        )
    built = [built_level(level, images_per_identity, kind, classes) for level in levels]
    for place in range(1, len(levels)):
        if built[place] == built[place - 1]:
            raise ValueError(
                f"bias levels {levels[place - 1]:g} and {levels[place]:g} both leave a person "
                f"{minority_images(levels[place], images_per_identity, classes)} of {images_per_identity} "
                f"images of {'the minority class' if classes == 2 else 'minority classes'}; drop one of them"
            )
    return built
