"""Bias levels: whole images of a person, by hand."""

import pytest

from study.experiment.levels import built_levels, minority_images


@pytest.mark.parametrize(
    ("level", "k", "few"),
    [(0, 20, 10), (0.5, 20, 5), (0.9, 20, 1), (0.97, 20, 1), (1, 20, 0), (0.5, 6, 2)],
)
def test_the_level_fixes_the_images_of_the_minority_class(level, k, few):
    assert minority_images(level, k) == few


def test_levels_are_named_by_what_is_built():
    assert built_levels([0, 0.5, 0.9], 20, "correlation") == [0.0, 0.5, 0.9]
    assert built_levels([0, 0.5, 0.9], 18, "correlation") == [0.0, 0.5556, 0.8889]
    assert built_levels([0, 0.5, 0.9], 17, "longtail") == [0.0, 0.5, 0.9]


def test_the_remedy_of_an_odd_number_is_one_that_works():
    with pytest.raises(ValueError, match="is 1; under correlation it must be even.*: write 2$"):
        built_levels([0], 1, "correlation")
