"""Risks: hand-worked values, and their gradients by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from cid.risks import (
    cvar_risk,
    generalised_cross_entropy,
    group_risk,
    jtt_weights,
    mean_risk,
    minibatch_risk,
    online_group_risk,
    relative_difficulty,
    tilted_risk,
    weighted_risk,
)

LOSSES = torch.tensor([[0.1, 2.0, 0.5, 1.0, 0.2, 3.0]], dtype=torch.float64)
EVEN = torch.full((1, 6), 1 / 6, dtype=torch.float64)
UNEVEN = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.3, 0.1]], dtype=torch.float64)
GROUPS = torch.tensor([[0, 0, 0, 1, 1, 2]])


def test_cvar_is_the_mean_of_the_worst_share():
    assert float(cvar_risk(1 / 3, 1e-4)(LOSSES, EVEN)[0]) == pytest.approx(2.5, abs=1e-3)
    assert float(cvar_risk(0.5, 1e-4)(LOSSES, EVEN)[0]) == pytest.approx(2.0, abs=1e-3)
    assert float(cvar_risk(1.0, 1e-4)(LOSSES, EVEN)[0]) == pytest.approx(6.8 / 6, abs=1e-3)
    # Uneven weights: the worst adversary within the caps, as a linear programme.
    w, share = UNEVEN[0].numpy(), 0.4
    best = linprog(
        -LOSSES[0].numpy(), A_eq=[np.ones(6)], b_eq=[1], bounds=[(0, v / share) for v in w]
    )
    value, q = cvar_risk(share, 1e-4)(LOSSES, UNEVEN)
    assert float(value) == pytest.approx(-best.fun, abs=1e-3)
    np.testing.assert_allclose(q[0], best.x, atol=1e-3)


def test_tilted_risk_of_a_hand_worked_case():
    expected = np.log((np.exp(2 * LOSSES.numpy()) * UNEVEN.numpy()).sum()) / 2
    assert float(tilted_risk(2.0)(LOSSES, UNEVEN)[0]) == pytest.approx(float(expected))
    assert float(tilted_risk(1e-4)(LOSSES, UNEVEN)[0]) == pytest.approx(
        float((LOSSES * UNEVEN).sum()), abs=1e-3
    )


def test_group_risk_goes_from_the_mean_of_groups_to_the_worst():
    means = [(0.1 + 2 * 2.0) / 3, (1.0 + 0.2) / 2, 3.0]  # by the uneven weights
    for tilt, expected in ((1e-5, np.mean(means)), (200.0, 3.0 - np.log(3) / 200)):
        value, q = group_risk(tilt, GROUPS)(LOSSES, UNEVEN)
        assert float(value) == pytest.approx(expected, abs=1e-3)
        assert float(q.sum()) == pytest.approx(1)
    np.testing.assert_allclose(q[0], [0, 0, 0, 0, 0, 1], atol=1e-6)
    # A group without weight is no group.
    apart = torch.tensor([[0, 0, 3, 1, 1, 2]])
    np.testing.assert_allclose(group_risk(1.0, apart)(LOSSES, UNEVEN)[0],
                               group_risk(1.0, GROUPS)(LOSSES, UNEVEN)[0])  # fmt: skip


@pytest.mark.parametrize(
    "risk",
    [mean_risk, cvar_risk(0.4), tilted_risk(2.0), group_risk(1.5, GROUPS), generalised_cross_entropy(0.7)],
    ids=["mean", "cvar", "tilted", "group", "gce"],
)  # fmt: skip
def test_the_gradient_of_a_risk_is_that_of_finite_differences(risk):
    gradient = risk(LOSSES, UNEVEN)[1][0].numpy()
    for k in range(6):
        step = torch.zeros_like(LOSSES)
        step[0, k] = 1e-5
        slope = (risk(LOSSES + step, UNEVEN)[0] - risk(LOSSES - step, UNEVEN)[0]) / 2e-5
        assert gradient[k] == pytest.approx(float(slope), abs=1e-5)


def test_relative_difficulty_of_arrays_and_tensors_where_both_losses_may_be_zero():
    biased, debiased = np.array([3.0, 0.0, 0.0]), np.array([1.0, 2.0, 0.0])
    for losses in ((biased, debiased), tuple(map(torch.from_numpy, (biased, debiased)))):
        assert relative_difficulty(*losses).tolist() == [0.75, 0, 0]


# --- of minibatches ---


@pytest.mark.parametrize("risk", [cvar_risk(0.4), tilted_risk(2.0), generalised_cross_entropy(0.7)])
def test_a_minibatch_has_the_risk_of_the_heads_and_its_gradient(risk):
    losses = torch.tensor([1.0, 4.0, 2.0, 3.0], requires_grad=True)
    value, slope = risk(losses.detach()[None], torch.full((1, 4), 0.25))
    found = minibatch_risk(risk, losses)
    assert found.item() == pytest.approx(value.item())
    found.backward()
    torch.testing.assert_close(losses.grad, slope[0])


def test_group_step_by_hand():
    losses = torch.tensor([1.0, 3.0, 2.0, 0.0], requires_grad=True)
    groups = torch.tensor([0, 0, 1, 2])
    sizes = torch.tensor([2.0, 1.0, 1.0])
    shares = torch.tensor([0.5, 0.25, 0.25])
    risk, new = online_group_risk(losses, groups, sizes, shares, step=0.1)
    # The batch is the training set, so the groups' mean losses are 2, 2 and 0.
    raw = np.array([0.5, 0.25, 0.25]) * np.exp(0.1 * np.array([2.0, 2.0, 0.0]))
    wanted = raw / raw.sum()
    np.testing.assert_allclose(new.numpy(), wanted, rtol=1e-6)
    assert risk.item() == pytest.approx(wanted @ [2, 2, 0], rel=1e-6)
    risk.backward()  # the shares are constants of the descent step
    np.testing.assert_allclose(
        losses.grad, [wanted[0] / 2, wanted[0] / 2, wanted[1], wanted[2]], rtol=1e-6
    )


def test_group_means_are_right_on_average_over_the_batches_of_an_epoch():
    losses = torch.tensor([1.0, 3.0, 2.0, 0.5, 1.5, 7.0])
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    sizes = torch.tensor([2.0, 3.0, 1.0])
    shares = torch.tensor([0.2, 0.5, 0.3])
    batches = [[0, 2, 5], [1, 3, 4]]
    risks = [online_group_risk(losses[b], groups[b], sizes, shares, 0.0)[0] for b in batches]
    assert np.mean(risks) == pytest.approx(0.2 * 2 + 0.5 * 4 / 3 + 0.3 * 7, rel=1e-6)


def test_relative_difficulty_by_hand():
    weight = relative_difficulty(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0]))
    assert weight.tolist() == [0.75, 0, 0]


def test_jtt_weights_errors_and_keeps_the_mean():
    weights = jtt_weights([True, False, False, True], 4)
    assert weights.tolist() == [1.6, 0.4, 0.4, 1.6]


def test_weights_are_copies():
    losses = torch.tensor([0.5, 2.0, 1.0])
    weights = torch.tensor([2.0, 0.0, 1.0])
    assert weighted_risk(losses, weights) == losses[[0, 0, 2]].mean()
