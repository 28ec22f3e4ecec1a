"""How well embeddings tell people apart, against scikit-learn and a case worked by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from study.faces import verification


def test_pairs_are_told_apart_as_well_as_scikit_learn_says(monkeypatch):
    monkeypatch.setattr(verification, "BLOCK", 7)
    rng = np.random.default_rng(0)
    people = rng.integers(0, 6, 40)
    unit = rng.normal(size=(6, 8))[people] + rng.normal(size=(40, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    first, second = np.triu_indices(40, 1)
    cosine, alike = (unit @ unit.T)[first, second], people[first] == people[second]
    same, different = verification.pair_similarities(unit, people)
    assert same.sum() == alike.sum() and different.sum() == (~alike).sum()
    assert verification.verification_auc(same, different) == pytest.approx(
        roc_auc_score(alike, cosine), abs=1e-5
    )
    curve = verification.roc_curve(same, different)
    assert len(curve) <= 400 and curve.iloc[-1].tolist() == [1, 1]
    for rate, found in curve.itertuples(index=False):  # the threshold that lets so many pass
        passed = np.sort(cosine[~alike])[::-1][round(rate * (~alike).sum()) - 1]
        assert found == pytest.approx((cosine[alike] >= passed).mean(), abs=0.02)
    bars = verification.similarity_densities(same, different)
    width = bars["right"] - bars["left"]
    assert len(bars) == 120 and (bars["left"].iloc[1:].to_numpy() == bars["right"].iloc[:-1]).all()
    for name, pairs in (("same", cosine[alike]), ("different", cosine[~alike])):
        assert (bars[name] * width).sum() == pytest.approx(1)
        centre = (bars[name] * width * (bars["left"] + bars["right"]) / 2).sum()
        assert centre == pytest.approx(pairs.mean(), abs=0.01)


def test_verification_auc_of_a_hand_worked_case():
    unit = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]])
    same, different = verification.pair_similarities(unit, ["a", "a", "b", "b"])
    places = np.round(np.arange(verification.SIMILARITIES) / verification.SIMILARITIES * 2 - 1, 3)
    assert np.repeat(places, same).tolist() == [0.8, 0.8]
    assert np.repeat(places, different).tolist() == [0, 0.6, 0.6, 0.96]
    assert verification.verification_auc(same, different) == 0.75
    with pytest.raises(ValueError, match="two images of one person, and two people"):
        verification.pair_similarities(unit, [1, 2, 3, 4])


def test_right_pairs_are_those_above_what_one_in_a_thousand_foreign_pairs_reaches():
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(12), 8)
    unit = rng.normal(size=(12, 16))[people] + rng.normal(size=(96, 16))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    first, second = np.triu_indices(96, 1)
    cosine, alike = (unit @ unit.T)[first, second], people[first] == people[second]
    allowed = int(verification.FALSE_MATCHES * (~alike).sum())
    expected = (cosine[alike] > np.sort(cosine[~alike])[::-1][allowed]).mean()
    pairs = verification.pair_similarities(unit, people)
    assert 0.05 < expected < 0.95
    assert verification.right_pairs(*pairs) == pytest.approx(expected, abs=2 / alike.sum())


def test_too_few_foreign_pairs_allow_no_false_match():
    same, different = np.array([0, 1, 2]), np.array([0, 3, 0])
    assert verification.right_pairs(same, different) == pytest.approx(2 / 3)
