"""Weights that are chosen on a training set, without identities."""

import numpy as np
import pytest

from cid.choosing import (
    AGREE,
    CANDIDATES,
    START,
    agreement,
    best_candidate,
    candidate_weights,
    choose_weights,
    held_out_losses,
)
from cid.heads import fit_heads
from cid.penalty import cross_validated_losses, folds
from cid.posterior import label_posterior, without_class_direction
from cid.weights import cid_weights, inverse_weights, surprise_weights

PEOPLE = np.repeat(np.arange(20), 20)


def biased(rng, knows: str):
    """20 people of 20 images, one in ten of a person's rarer class: features, proxy, labels.

    The features tell the person better than the label; the proxy tells the person, the label, or nothing.
    """
    usual = PEOPLE % 2
    labels = np.where(np.arange(400) % 10 == 0, 1 - usual, usual)
    person = rng.normal(size=(20, 30))[PEOPLE]
    seen = {"person": person, "label": 4 * np.eye(30)[labels], "nothing": np.zeros((400, 30))}
    features = person + 0.5 * rng.normal(size=(400, 30))
    features[:, 0] = labels + 0.7 * rng.normal(size=400)
    return features, seen[knows] + 0.3 * rng.normal(size=(400, 30)), labels


def test_label_surprise_is_chosen_where_the_proxy_knows_people():
    features, proxy, labels = biased(np.random.default_rng(0), "person")
    found = choose_weights(features, proxy, labels, l2=0.1)
    assert found.agreement >= AGREE and found.candidate.startswith("surprise")
    assert list(found.losses) == list(CANDIDATES)
    assert found.losses[found.candidate] < found.losses["erm"]
    assert found.weights.mean() == pytest.approx(1)
    if found.candidate == CANDIDATES[START]:
        np.testing.assert_allclose(found.weights, surprise_weights(proxy, labels))


@pytest.mark.parametrize("knows", ["label", "nothing"])
def test_no_weights_are_chosen_where_the_proxy_knows_no_people(knows):
    features, proxy, labels = biased(np.random.default_rng(0), knows)
    found = choose_weights(features, proxy, labels, l2=0.1)
    assert found.agreement < AGREE
    assert found.candidate == "erm" and not found.losses
    np.testing.assert_array_equal(found.weights, np.ones(400))


def test_candidates_are_the_weights_of_the_library():
    _, proxy, labels = biased(np.random.default_rng(1), "person")
    clean = without_class_direction(proxy, labels)
    probability = label_posterior(clean, labels).probability
    surprise, rival = inverse_weights(probability, labels), cid_weights(proxy, labels)
    found = candidate_weights(surprise, rival, labels)
    expected = [np.ones(400), rival]
    expected += [inverse_weights(probability, labels, power=power) for power in (0.5, 1.0, 1.5)]
    np.testing.assert_allclose(found, expected)


def test_a_held_out_loss_is_of_a_head_that_did_not_see_the_image():
    features, _, labels = biased(np.random.default_rng(2), "person")
    weights = np.stack([np.ones(400), np.random.default_rng(3).gamma(2, size=400)])
    found = held_out_losses(features, labels, weights, 0.3, seed=5)
    fold = folds(labels, 5)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    for one, own in enumerate(weights):
        heads = fit_heads(
            standard, labels, (own * (fold != 2))[None], 0.3, standardised_by=fold >= 0
        )
        expected = np.logaddexp(0, -heads.logits(standard)[0] * (2 * labels - 1))
        np.testing.assert_allclose(found[one, fold == 2], expected[fold == 2], atol=2e-3)
    plain = cross_validated_losses(features, labels, penalties=[0.3], seed=5)
    assert found[0].mean() == pytest.approx(plain[0], rel=1e-3)


def test_the_start_is_left_only_for_what_is_clearly_better():
    base = np.random.default_rng(0).random(100)
    step = np.where(np.arange(100) % 2, 0.03, -0.01)  # mean .01, standard error .002
    noise = np.where(np.arange(100) % 2, 0.51, -0.5)  # mean .005, standard error .05
    ones = np.ones(100)
    assert best_candidate([base, base + step, base + 2 * step], ones, start=1) == 0
    assert best_candidate([base + noise, base], ones, start=0) == 0
    # Of two that are clearly better, the weaker one where they nearly tie.
    assert best_candidate([base, base - noise * 0.02, base + step], ones, start=2) == 0
    assert best_candidate([base + 0.7 * step, base, base + step], ones, start=2) == 1
    # Weights decide which images count.
    first = np.arange(100) < 50
    losses = [base - first, base - 2.0 * ~first]
    assert [best_candidate(losses, w, start=1) for w in (first + 0.01, ones)] == [0, 1]


def test_the_agreement_is_of_the_surprised_images():
    _, proxy, labels = biased(np.random.default_rng(4), "person")
    assert agreement(proxy, labels) > 0.95
    leaky = proxy + 20 * labels[:, None] * np.eye(30)[5]
    assert agreement(leaky, labels) < 0.5
    lonely = np.where(labels[:, None], [[1.0, 0]], [[0, 1.0]])  # nobody is surprised
    assert agreement(lonely + 1e-3 * proxy[:, :2], labels) < AGREE
