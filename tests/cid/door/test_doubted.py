"""`python -m cid weigh` with features of the task: trust, the rate of wrong labels, and doubted labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cid import auditing, label_trust, surprise_weights
from cid.auditing import Audit, Estimate
from cid.door import doubted
from cid.door.doubted import _nearest
from cid.trust import MOST, LabelTrust

WRONG = [3, 40, 77, 101]


@pytest.fixture
def spoilt(case):
    """The same case with four wrong labels, and features that tell what is right."""
    rng = np.random.default_rng(5)
    case.x = rng.normal(size=(120, 4)).astype(np.float32)
    case.x[:, 0] += 12 * case.labels
    case.labels[WRONG] = 1 - case.labels[WRONG]
    case.table["smiling"] = case.labels
    case.write()
    np.save("x.npy", case.x)
    return case


def test_weights_are_surprise_times_trust_and_a_class_keeps_its_total(spoilt):
    status, out, err = spoilt.weigh("--features x.npy")
    assert status == 0, err
    found = pd.read_csv("w.csv")
    trust = label_trust(spoilt.x, spoilt.labels).probability
    surprise = surprise_weights(spoilt.z, spoilt.labels)
    np.testing.assert_allclose(found["trust"], trust, rtol=1e-6)
    expected = surprise * trust
    for label in (0, 1):
        own = spoilt.labels == label
        expected[own] *= surprise[own].sum() / expected[own].sum()
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-6)
    assert (found["surprise"] >= 1).all()
    assert "of '0', " in out and "of '1' are labelled as something else; trust weighs" in out
    assert "more likely wrong than right: 4, in doubted.csv" in out


def test_doubted_labels_stand_beside_what_is_expected_and_their_like(spoilt):
    spoilt.weigh("--features x.npy")
    found = pd.read_csv("doubted.csv")
    assert sorted(found["image"]) == sorted(spoilt.images[row] for row in WRONG)
    assert found["trust"].is_monotonic_increasing and (found["trust"] < 0.5).all()
    assert (found["expected"] == 1 - found["smiling"]).all()
    rows = [spoilt.images.index(name) for name in found["near_1"]]
    np.testing.assert_array_equal(found["near_1_smiling"], spoilt.labels[rows])
    assert (found["near_1_smiling"] == found["expected"]).mean() > 0.5


def test_the_nearest_are_brute_force(monkeypatch):
    features = np.random.default_rng(0).normal(size=(30, 3)) * [1, 10, 0]
    unit = features[:, :2] / features[:, :2].std(axis=0)
    distance = np.linalg.norm(unit[:, None] - unit, axis=2)
    np.fill_diagonal(distance, np.inf)
    rows = np.array([4, 9])
    monkeypatch.setattr(doubted, "AT_ONCE", 7)
    np.testing.assert_array_equal(_nearest(features, rows), np.argsort(distance[rows])[:, :3])


def test_without_features_it_says_so_in_one_line_and_goes_on(spoilt):
    status, _, err = spoilt.weigh()
    assert status == 0 and not Path("doubted.csv").exists()
    (line,) = [line for line in err.splitlines() if line.startswith("trust: ")]
    assert "not to be had from a face embedding" in line
    found = pd.read_csv("w.csv")
    assert found["trust"].isna().all() and found["surprise"].notna().all()
    np.testing.assert_allclose(
        found["weight"], surprise_weights(spoilt.z, spoilt.labels), rtol=1e-6
    )


def test_trust_no_asks_for_none(spoilt):
    status, out, err = spoilt.weigh("--features x.npy --trust no")
    assert status == 0 and "trust" not in out + err and not Path("doubted.csv").exists()
    Path("doubted.csv").touch()
    assert "note: doubted.csv is of an earlier call" in spoilt.weigh("--trust no")[2]


def test_a_row_without_features_keeps_its_place_and_has_a_reason(spoilt):
    spoilt.x[7, 2] = np.nan
    spoilt.x[8, 1] = -np.inf
    spoilt.x[9] = 0  # no direction is needed
    np.save("x.npy", spoilt.x)
    assert spoilt.weigh("--features x.npy")[0] == 0
    found = pd.read_csv("w.csv")
    assert list(found["reason"][[7, 8]]) == ["its features hold NaN or infinite values"] * 2
    assert found["weight"].isna().sum() == 2 and found["trust"].isna().sum() == 2
    assert found["weight"].mean() == pytest.approx(1)


def test_features_of_a_table_are_matched_by_name(spoilt):
    spoilt.weigh("--features x.npy")
    expected = pd.read_csv("w.csv")["weight"]
    named = pd.DataFrame({"image": spoilt.images, "features": list(spoilt.x)})
    named.sample(frac=1, random_state=0).to_parquet("x.parquet")
    assert spoilt.weigh("--features x.parquet")[0] == 0
    np.testing.assert_allclose(pd.read_csv("w.csv")["weight"], expected, rtol=1e-6)
    named[5:].to_parquet("x.parquet")
    spoilt.weigh("--features x.parquet")
    assert list(pd.read_csv("w.csv")["reason"][:5]) == ["no features of this name"] * 5


def test_constant_features_judge_nothing(spoilt):
    np.save("x.npy", np.ones((120, 3)))
    status, _, err = spoilt.weigh("--features x.npy")
    assert status == 0, err
    assert "trust: the features are the same of every image; weighing goes on without" in err
    assert not Path("doubted.csv").exists() and pd.read_csv("w.csv")["trust"].isna().all()


@pytest.mark.parametrize("seed", range(3))
def test_features_that_tell_nothing_of_the_label_judge_nothing(spoilt, seed):
    np.save("x.npy", np.random.default_rng(seed).permuted(spoilt.x, axis=0))
    status, _, err = spoilt.weigh("--features x.npy")
    assert status == 0 and "trust: the features tell the label no better than chance" in err
    assert not Path("doubted.csv").exists() and pd.read_csv("w.csv")["trust"].isna().all()


def test_what_is_true_of_no_label_is_asked_about():
    rates = np.array([0.0, MOST])
    found = LabelTrust(np.full(4, 0.9), rates, 1.0, np.array([0, 0, 1, 1]))
    labels = np.array(["a", "a", "b", "b"])
    first, second = doubted.told(found, labels, 0)
    assert "0.0% of 'a', 40.0% of 'b' are labelled as something else" in first
    assert "are the features those of the same images" in second


def test_a_class_that_is_too_small_to_be_judged_is_one_line(spoilt):
    spoilt.table["smiling"] = np.r_[np.tile(["a", "b"], 58), ["c"] * 4]
    spoilt.write()
    status, _, err = spoilt.weigh("--features x.npy")
    assert status == 0 and pd.read_csv("w.csv")["trust"].isna().all()
    assert "trust: class 'c' has 4 images, and labels are judged from 5 a class on" in err


def saved(values):
    return lambda case: np.save("x.npy", values)


def change(**columns):
    def apply(case):
        case.table = case.table.assign(**columns)

    return apply


def named(**columns):
    def save(case):
        pd.DataFrame(columns).to_parquet("x.parquet")

    return save


def unnamed(case):
    named(image=case.images, a=np.zeros(120))(case)
    case.table = case.table.drop(columns="image")


@pytest.mark.parametrize(
    "spoil, more, said",
    [
        (saved(np.zeros((90, 3))), "x.npy", "x.npy has 90 rows and labels.csv 120"),
        (saved(np.zeros(120)), "x.npy", "of shape (120,); features are numbers (n, d)"),
        (saved(np.zeros((120, 2, 2))), "x.npy", "of shape (120, 2, 2); features are numbers"),
        (saved(np.zeros((120, 0))), "x.npy", "of shape (120, 0); features are numbers"),
        (saved(np.zeros((120, 2), complex)), "x.npy", "holds complex128 of shape"),
        (saved(np.array([["a"] * 3] * 120)), "x.npy", "features are numbers (n, d)"),
        (saved(np.array([[{}]] * 120, dtype=object)), "x.npy", "it holds Python objects"),
        (saved(np.full((120, 3), np.nan)), "x.npy", "no row can be used (120 x its features hold NaN"),
        (lambda case: Path("x.npy").write_text("no array"), "x.npy", "is not a readable .npy file"),
        (lambda case: None, "gone.npy", "gone.npy does not exist; name a .npy file"),
        (lambda case: None, "gone.csv", "gone.csv does not exist; name a CSV"),
        (lambda case: Path("x.npz").touch(), "x.npz", "x.npz ends in none of .npy, .parquet"),
        (lambda case: None, "z.npy", "z.npy is named by --embeddings and by --features; a face embedding"),
        (lambda case: None, "./z.npy", "name features of the task, or leave --features out"),
        (named(a=[1.0]), "x.parquet", "x.parquet has no column 'image'"),
        (named(image=["?"], a=[1.0]), "x.parquet", "none of the 120 images in labels.csv is in x.parquet"),
        (named(image=["0.png"], a=["b"]), "x.parquet", "x.parquet holds no features: beside the image"),
        (named(image=["0.png"] * 2, a=[1.0, 2]), "x.parquet", "x.parquet has two rows of '0.png'; keep one"),
        (unnamed, "x.parquet", "or pass features as .npy in the order of its rows"),
        (lambda case: None, "x.npy -o doubted.csv", "doubted.csv is where doubted labels are listed"),
        (change(expected=[0, 1] * 60), "x.npy --label expected", "the output has a column of its own"),
        (lambda case: None, "x.npy --label trust", "the output has a column of its own with this name"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_used_are_refused_in_one_sentence(spoilt, spoil, more, said):
    spoil(spoilt)
    spoilt.write()
    status, _, err = spoilt.weigh(f"--features {more}")
    assert status == 1 and said in err and not Path("w.csv").exists()
    assert err.splitlines()[-1].startswith("error: ")


@pytest.fixture
def audited(spoilt, monkeypatch):
    """The same case; what the audit was called with is in ``case.settings``."""

    def audit(train, train_labels, test, test_labels, predictions, **settings):
        spoilt.settings = settings
        row = Estimate("mine", "balanced", 0.5, 0.4, 0.6, 7)
        wrong = None
        if "test_features" in settings:
            wrong = Estimate(auditing.LABELS, "wrong", 0.031, 0.01, 0.05, len(test_labels))
        flagged = np.zeros(len(test_labels), bool)
        return Audit([row], [], None, {}, flagged, (), wrong)

    monkeypatch.setattr(auditing, "audit", audit)
    return spoilt


def test_the_audit_gets_the_features_of_its_sides_and_says_how_many_labels_are_wrong(audited):
    status, out, err = audited.audit("--features x.npy")
    assert status == 0, err
    test = audited.split == "test"
    np.testing.assert_array_equal(audited.settings["test_features"], audited.x[test])
    np.testing.assert_array_equal(audited.settings["train_features"], audited.x[~test])
    last = pd.read_csv("audit/audit.csv").iloc[-1]
    assert (last["model"], last["measure"], last["estimate"]) == ("(labels)", "wrong", 0.031)
    said = "rong labels among the test images, as estimated: 3.1 % [1.0, 5.0]"
    assert said in out and said in Path("audit/index.html").read_text()


@pytest.mark.parametrize("more", ["", "--features x.npy --trust no"])
def test_the_audit_goes_on_without_features(audited, more):
    status, out, err = audited.audit(more)
    assert status == 0 and "test_features" not in audited.settings
    assert "wrong" not in out + Path("audit/index.html").read_text()
    assert ("the audit goes on without" in err) == (not more)
