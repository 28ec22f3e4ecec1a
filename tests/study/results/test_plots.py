"""Figures: what must not be drawn is not."""

from __future__ import annotations

import numpy as np
import pytest
from IPython.display import Image, Markdown

from study.results import plots


@pytest.mark.parametrize(
    "card, kind", [({}, Image), ({"show_images": True}, Image), ({"show_images": False}, Markdown)]
)
def test_the_card_decides_whether_photographs_are_shown(card, kind):
    faces = [np.full((8, 8, 3), value, np.uint8) for value in (0, 255)]
    shown = plots.face_grid(faces, card, columns=2)
    assert type(shown) is kind
    assert kind is Image or "not shown" in shown.data
