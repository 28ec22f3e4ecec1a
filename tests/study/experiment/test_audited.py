"""The audit without identities, beside the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cid.auditing import MEASURES, Audit, Difference, Estimate, refusal
from study.experiment import audited
from study.faces import verification

PEOPLE = np.repeat(np.arange(6), 40)  # of a data set of 240 images
LABELS = np.tile([0, 1], 120)
METHODS = ["erm", "good", "oracle"]


@pytest.fixture
def study(monkeypatch):
    """Two sets: nine of ten training images of a person are of one class; balanced seen test images."""
    monkeypatch.setattr(verification, "SIMILARITIES", 2000)  # coarser bins take less time
    train, tests = [], []
    for seed in range(2):
        for person in range(6):
            own = [np.flatnonzero((PEOPLE == person) & (LABELS == label)) for label in (0, 1)]
            usual = (person + seed) % 2
            rows = np.concatenate([own[usual][:9], own[1 - usual][:1]])
            train.append(pd.DataFrame({"seed": seed, "row": rows, "part": "train"}))
            for label in (0, 1):
                test = pd.DataFrame({"seed": seed, "row": own[label][10:20], "test": "seen"})
                tests.append(test.assign(minority=float(label != usual)))
    predictions = pd.concat(tests, ignore_index=True).assign(level=0.8)
    right = np.where(LABELS[predictions["row"]] == 1, 1.0, -1.0)
    place = np.arange(len(right))
    rare = predictions["minority"] == 1
    predictions["erm"] = np.where(rare & (place % 2 == 0), -right, right)
    predictions["good"] = np.where(rare & (place % 10 == 0), -right, right)
    predictions["oracle"] = right
    proxy = np.eye(6)[PEOPLE] + 0.01 * np.random.default_rng(0).normal(size=(240, 6))
    return pd.concat(train, ignore_index=True).assign(level=0.8), predictions, proxy


def perfect(train, train_labels, test, test_labels, predictions, *, seed, bootstrap):
    """An audit that knows the minority images: those whose person has another label in training."""
    common = {}
    for person in range(6):
        own = train_labels[train.argmax(axis=1) == person]
        common[person] = len(own) > 0 and own.mean() > 0.5
    usual = np.array([common[person] for person in test.argmax(axis=1)])
    flagged = usual != test_labels
    parts = {"minority": flagged, "majority": ~flagged, "balanced": flagged | True}
    estimates, differences = [], []
    for model, classes in predictions.items():
        for measure, part in parts.items():
            value = (classes == test_labels)[part].mean()
            estimates.append(Estimate(model, measure, value, value - 0.2, value + 0.2, part.sum()))
        if model != "erm":
            differences.append(Difference(model, "erm", "minority", 0.0, -1.0, 1.0, 0.1))
    signs = dict.fromkeys(("agreement_direction", "agreement_neighbours"), float(train.max() < 1.1))
    signs |= {"gain": 1.0, "gain_error": 0.1, "flagged_images": flagged.sum()}
    return Audit(estimates, differences, refusal(signs), signs, flagged, ())


def test_test_images_are_thinned_to_the_classes_of_training(study):
    train, predictions, _ = study
    own = predictions[predictions["seed"] == 0]
    rows, trained = own["row"].to_numpy(), train.loc[train["seed"] == 0, "row"].to_numpy()
    drawn = [audited.as_biased(rows, trained, LABELS, PEOPLE, seed) for seed in range(30)]
    common = own["minority"].to_numpy() == 0
    assert all(keep[common].all() for keep in drawn)
    rare = np.stack(drawn)[:, ~common]
    assert set(rare.sum(axis=1)) <= {6, 7}  # a ninth of 60
    assert (
        0.5 < rare.mean(axis=0).std() / np.sqrt(8 / 81 / 30) < 1.5
    )  # no image is drawn more often
    np.testing.assert_array_equal(drawn[3], audited.as_biased(rows, trained, LABELS, PEOPLE, 3))


def test_the_truth_by_hand():
    correct = np.array([[1, 1, 0, 0, 1, 0]]).T == 1
    minority = np.array([1, 0, 1, 0, np.nan, 0])
    found = audited.true_measures(correct, minority, np.array([7, 7, 3, 3, 9, 9]), np.ones(6))
    assert found["minority"] == 0.5 and found["majority"] == pytest.approx(1 / 3)
    assert found["balanced"] == 0.5
    assert found["spread"] == pytest.approx(
        np.sqrt(1 / 12)
    )  # of pairs: (1 + 1 - 1) / 3, a quarter each
    shares = np.array([1, 1, 1, 1, 0, 0.0])  # the last person is never met
    assert audited.true_measures(correct, minority, [7, 7, 3, 3, 9, 9], shares)["spread"] == 0.5
    nobody = audited.true_measures(correct, np.full(6, np.nan), np.arange(6), np.ones(6))
    assert np.isnan(nobody["minority"]) and np.isnan(nobody["spread"])


def test_an_audit_stands_beside_the_truth(study, monkeypatch, tmp_path):
    train, predictions, proxy = study
    monkeypatch.setattr(audited, "audit", perfect)
    given = (predictions, train, proxy, LABELS, PEOPLE, METHODS)
    more = {"noise": [3.0], "noise_level": 0.8, "folder": tmp_path}
    found = audited.audit_study(*given, **more)
    table, quality = found["audit"], found["audit-quality"].set_index("proxy")
    assert list(quality.index) == ["true identity", "as it is", "noise 3", "random"]
    own = quality.loc["as it is"]
    assert own["found"] == 1 and own["false"] == 0 and own["sets"] == 2
    assert own["refused"] == 1 and own["distrusted"] == 0  # of six or seven flagged images
    assert quality.loc["noise 3", "distrusted"] == 1
    assert own["auc"] == pytest.approx(1) and quality.loc["random", "auc"] < 0.6
    assert own["right_pairs"] == pytest.approx(1) and quality.loc["random", "right_pairs"] < 0.2
    assert own["rank_minority"] == pytest.approx(1) and own["plain_rank_minority"] == pytest.approx(
        1
    )
    rows = table[table["proxy"] == "as it is"].set_index(["method", "measure"])
    assert len(rows) == len(METHODS) * len(MEASURES)
    assert rows.loc[("erm", "minority"), "truth"] == 0.5
    assert rows.loc[("good", "minority"), "truth"] == pytest.approx(0.9)
    assert rows.loc[("oracle", "minority"), ["estimate", "truth", "plain"]].tolist() == [1, 1, 1]
    assert rows.loc[("oracle", "minority"), "covered"] == 1
    assert rows.loc[("good", "minority"), "difference_covered"] == 1
    assert np.isnan(rows.loc[("erm", "minority"), "difference_covered"])
    plain = rows.loc[("erm", "balanced"), "plain"]
    assert plain > 0.9  # half of the rare images are wrong, and few of the images are rare
    assert own["plain_error_balanced"] > 0.05

    def never(*arguments, **more):
        raise AssertionError("an audit that was kept is made again")

    monkeypatch.setattr(audited, "audit", never)
    again = audited.audit_study(*given, **more)
    for name in found:
        pd.testing.assert_frame_equal(again[name], found[name])


def test_only_as_many_sets_are_audited_as_it_takes(study, monkeypatch):
    train, predictions, proxy = study
    monkeypatch.setattr(audited, "audit", perfect)
    many = [table.assign(seed=table["seed"] + 2 * k) for k in range(12) for table in (train,)]
    tests = [predictions.assign(seed=predictions["seed"] + 2 * k) for k in range(12)]
    sets, tested = pd.concat(many), pd.concat(tests)

    def number(noise=(), **constants) -> list[int]:
        for name, value in constants.items():
            monkeypatch.setattr(audited, name, value)
        found = audited.audit_study(
            tested, sets, proxy, LABELS, PEOPLE, METHODS, noise=noise, noise_level=0.8
        )
        return found["audit-quality"]["sets"].tolist()

    assert number(MOST=20) == [20]
    assert number(RARE=30) == [5]
    assert number([1.0], RARE=1, OTHERS=2) == [2, 3, 2, 2]
    assert number(IMAGES=60) == [1]


def test_what_is_the_same_everywhere_has_no_rank():
    methods = pd.Series([0.9, 0.8, 0.7])
    assert audited._rank_correlation(methods, methods**2) == 1
    assert np.isnan(audited._rank_correlation(methods, pd.Series([1.0, 1.0, 1.0])))
