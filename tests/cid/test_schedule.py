"""Epochs and weight decay chosen on a held-out tenth, against networks trained one by one."""

from __future__ import annotations

import numpy as np
import pytest

from cid import schedule
from cid.models import read_options
from cid.schedule import best_options, candidates, held_out_loss, held_out_part, is_open
from cid.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")


def test_open_options_have_candidates_the_simplest_first():
    both = read_options("mlp", {"epochs": "auto", "weight_decay": "auto"})
    assert is_open(both) and not is_open(read_options("mlp"))
    tried = [(options.epochs, options.weight_decay) for options in candidates(both)]
    assert tried[:3] == [(10, 0.5), (10, 0.05), (10, 0.005)]
    assert len(tried) == len(schedule.EPOCHS) * len(schedule.DECAYS)
    one = candidates(read_options("mlp", {"epochs": 7, "weight_decay": "auto"}))
    assert [options.epochs for options in one] == [7, 7, 7]
    found = best_options(one, [0.5, 0.4, 0.4])
    assert found is one[1]


def test_a_tenth_of_each_class_judges_and_trains_nothing(features):
    x, labels = features
    rows = np.arange(20, 160)
    part = held_out_part(labels[rows], seed=3)
    for label in (0, 1):
        assert part[labels[rows] == label].mean() == pytest.approx(0.1, abs=0.01)
    options = read_options("mlp", {"epochs": 4})
    loss = held_out_loss("mlp", x, labels, rows, options, seed=3, device="cpu")
    fitted = fit("mlp", x, labels, rows[~part], options=options, seed=3, device="cpu")
    assert not set(fitted.rows) & set(rows[part])
    p = 1 / (1 + np.exp(-fitted.logits(x, rows[part]).astype(float)))
    judged = labels[rows[part]]
    expected = -(judged * np.log(p) + (1 - judged) * np.log(1 - p)).mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    # Images that judge cannot change what was trained; those of other sets change nothing at all.
    changed = x.copy()
    changed[:20] = 0
    assert held_out_loss("mlp", changed, labels, rows, options, seed=3, device="cpu") == loss


def test_a_training_needs_numbers(features):
    x, labels = features
    options = read_options("mlp", {"epochs": "auto"})
    with pytest.raises(ValueError, match="epochs or weight_decay is auto"):
        fit("mlp", x, labels, np.arange(100), options=options, device="cpu")
