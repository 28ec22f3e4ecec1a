"""Bias levels: what they make of a person's training images, in whole images."""

from collections.abc import Iterable

from cid.names import find

KINDS = ("correlation", "longtail", "natural")
CORRELATED = "correlation"


def minority_images(level: float, images_per_identity: int) -> int:
    """How many of a person's training images are of the minority class, under ``correlation``.

    The whole number nearest to ``(1 - level) / 2`` of them, and at least one below level 1: without a
    single one there is nothing that a weight could raise.
    """
    wanted = round((1 - level) / 2 * images_per_identity)
    return wanted if level == 1 else max(1, wanted)


def built_level(level: float, images_per_identity: int, kind: str = CORRELATED) -> float:
    """The level that whole images give: what every table and figure of a study calls the level."""
    if kind != CORRELATED:
        return float(level)
    return round(1 - 2 * minority_images(level, images_per_identity) / images_per_identity, 4)


def built_levels(levels: Iterable[float], images_per_identity: int, kind: str) -> list[float]:
    """:func:`built_level` of all levels.

    Raises
    ------
    ValueError
        On a level outside [0, 1], an odd number of images under ``correlation``, which level 0 cannot
        halve, two levels that would build the same sets, or a level of the kind ``natural``.
    """
    find("bias kind", kind, dict.fromkeys(KINDS))
    k, levels = images_per_identity, list(map(float, levels))
    for level in levels:
        if not 0 <= level <= 1:
            raise ValueError(f"bias level {level} is outside [0, 1]")
        if kind == "natural" and level != 0:
            raise ValueError(
                f"bias level {level} of the kind natural: the data as they are have no level, so set "
                "bias.levels to [0.0]"
            )
    if kind == CORRELATED and k % 2:
        raise ValueError(
            f"bias.images_per_identity is {k}; under correlation it must be even, so that level 0 "
            f"halves it: write {k - 1} or {k + 1}"
        )
    built = [built_level(level, k, kind) for level in levels]
    for before, level, one, two in zip(levels, levels[1:], built, built[1:], strict=False):
        if one == two:
            raise ValueError(
                f"bias levels {before:g} and {level:g} both leave a person "
                f"{minority_images(level, k)} of {k} images of the minority class; drop one of them"
            )
    return built
