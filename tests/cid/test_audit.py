"""The audit without identities, on cases worked by hand and on people whose accuracy is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cid import audit, auditing, kin, pairs
from cid.classified import predicted_classes
from cid.estimates import Counts, _wilson, estimated
from cid.kin import groups, mutual_neighbours, resampled_sums


def crowd(people=40, images=12, unusual=2, classes=2, noise=0.05, seed=0):
    """Embeddings, labels, person, and whether a label is the person's usual one; half of it trains.

    Of every person's images in each half, ``unusual`` have one of the other classes.
    """
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), images)
    faces = rng.normal(size=(people, 16))[person] + noise * rng.normal(size=(len(person), 16))
    usual = person % classes
    is_usual = np.tile(np.arange(images) >= unusual, people)
    shift = 1 + np.tile(np.arange(images), people) % (classes - 1)
    return faces, np.where(is_usual, usual, (usual + shift) % classes), person, is_usual


def audited(predict, bootstrap=50, **options):
    """Audit models of a crowd: from (labels, person, is_usual) to predictions by name."""
    faces, labels, person, is_usual = crowd(**options)
    near = crowd(**{**options, "seed": options.get("seed", 0)})[0]
    near = near + 0.01 * np.random.default_rng(9).normal(size=near.shape)
    predictions = predict(labels, person, is_usual)
    return audit(faces, labels, near, labels, predictions, bootstrap=bootstrap), is_usual


def value(found, measure, model="mine"):
    (row,) = [row for row in found.estimates if (row.model, row.measure) == (model, measure)]
    return row


def wrong_at(labels, rows, classes=2):
    """Predictions that are wrong at some rows."""
    predicted = labels.copy()
    predicted[rows] = (predicted[rows] + 1) % classes
    return predicted


@pytest.mark.parametrize("classes, balanced", [(2, 0.5 * 0.75 + 0.5), (3, 2 / 3 * 0.75 + 1 / 3)])
def test_measures_on_a_case_worked_by_hand(classes, balanced):
    """A quarter of the unusual images is wrong: every fourth person's, and nothing else."""

    def predict(labels, person, is_usual):
        return {"mine": wrong_at(labels, ~is_usual & (person % 4 == 0), classes), "right": labels}

    found, is_usual = audited(predict, classes=classes)
    assert found.refusal is None
    np.testing.assert_array_equal(found.flagged, ~is_usual)
    assert value(found, "minority").estimate == pytest.approx(0.75)
    assert value(found, "majority").estimate == 1
    assert value(found, "balanced").estimate == pytest.approx(balanced)
    assert value(found, "minority").images == (~is_usual).sum() == 80
    assert value(found, "balanced", "right").estimate == 1
    for row in found.estimates:
        assert row.low <= row.estimate <= row.high
    minority, *_ = found.differences
    assert (minority.model, minority.against, minority.measure) == ("right", "mine", "minority")
    assert minority.difference == pytest.approx(0.25)
    assert 0 < minority.low < 0.25 < minority.high
    assert minority.smallest == pytest.approx((minority.high - 0.25) * 2.8 / 1.96)


def test_spread_is_the_standard_deviation_over_people():
    """People are right on all or on none of their images: half of them each."""
    found, _ = audited(lambda y, person, usual: {"mine": wrong_at(y, person % 4 < 2)})
    assert value(found, "spread").estimate == pytest.approx(0.5, abs=0.03)
    rng = np.random.default_rng(1)
    even, _ = audited(lambda y, person, usual: {"mine": wrong_at(y, rng.random(len(y)) < 0.3)})
    row = value(even, "spread")
    assert row.low == 0 and row.estimate < row.high < 0.2


def test_features_tell_wrong_labels_from_rare_ones(one_thread):
    """A tenth of all labels is wrong; the model is right about three of four unusual images, and all others."""
    faces, right, person, is_usual = crowd(people=40, images=24, unusual=4)
    rng = np.random.default_rng(4)
    features = rng.normal(size=(len(right), 3)) + 6 * right[:, None]
    labels = np.where(rng.random(len(right)) < 0.1, 1 - right, right)
    train = np.arange(len(right)) % 2 == 0
    predicted = wrong_at(right, ~is_usual & (person % 4 == 0))
    given = (
        faces[train],
        labels[train],
        faces[~train],
        labels[~train],
        {"mine": predicted[~train]},
    )
    blind = audit(*given, bootstrap=50)
    found = audit(
        *given, train_features=features[train], test_features=features[~train], bootstrap=50
    )
    truth = 0.5 * 0.75 + 0.5
    assert abs(value(found, "balanced").estimate - truth) < 0.03
    assert value(blind, "balanced").estimate < truth - 0.1
    share = (labels != right)[~train].mean()
    assert found.wrong.low < share < found.wrong.high and found.wrong.images == (~train).sum()
    doubted = found.trust < 0.5
    assert (doubted == (labels != right)[~train]).mean() > 0.99
    np.testing.assert_array_equal(found.flagged, blind.flagged)
    assert auditing.LABELS_UNKNOWN in blind.unknown and auditing.LABELS_JUDGED in found.unknown
    assert blind.wrong is None and blind.trust is None


@pytest.mark.parametrize("share", [1 + 1e-16, 1.0, 1 - 1e-16, 0.0, -1e-20])
def test_an_interval_stands_where_sums_of_weights_round(share):
    low, high = _wilson(
        share, 1e-33, 12.5
    )  # a share of images that hardly count varies by rounding
    assert 0 <= low < high <= 1 and high - low < 0.3


def test_where_all_labels_are_right_features_change_nothing():
    faces, labels, person, is_usual = crowd(people=30, images=16, unusual=3)
    features = np.random.default_rng(1).normal(size=(len(labels), 3)) + 2 * labels[:, None]
    train = np.arange(len(labels)) % 2 == 0
    predicted = {"mine": wrong_at(labels, person % 7 == 0)[~train]}
    given = (faces[train], labels[train], faces[~train], labels[~train], predicted)
    sides = {"train_features": features[train], "test_features": features[~train]}
    found = audit(*given, **sides, bootstrap=20)
    assert found.estimates == audit(*given, bootstrap=20).estimates
    assert (found.trust == 1).all() and found.wrong.estimate == found.wrong.low == 0


def test_intervals_hold_the_truth_as_often_as_they_say():
    """People whose accuracy varies; the truth is that of all people who could be drawn."""
    truth = {"minority": 0.7, "majority": 0.95, "balanced": 0.825}
    hit = dict.fromkeys(truth, 0)
    better = 0
    runs = 60
    faces, _, person, is_usual = crowd(people=40, images=8, unusual=2)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        skill = rng.choice([0.5, 0.9], size=40)  # on unusual images; mean .7
        chance = np.stack([skill[person], np.full(len(person), 0.7)], axis=1)
        correct = rng.random((len(person), 2)) < np.where(is_usual[:, None], 0.95, chance)
        counts = Counts(torch.from_numpy(faces), ~is_usual, correct.astype(float), n_classes=2)
        estimates, differences = estimated(["mine", "other"], counts, seed, bootstrap=200)
        for row in estimates[:3]:
            hit[row.measure] += row.low <= truth[row.measure] <= row.high
        better += not differences[0].low <= 0 <= differences[0].high
    # At 95 %, fewer than 52 of 60, or more than 8, happen about once in 250 such tests.
    assert min(hit.values()) >= 52
    assert better <= 8  # the two models are equally good


def test_it_refuses_where_the_proxy_knows_nobody():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=(2, 300))
    found = audit(
        *pairs_of(rng.normal(size=(2, 300, 8)), labels), {"mine": labels[1]}, bootstrap=20
    )
    assert "no better than chance" in found.refusal
    assert found.signs["gain"] < 0.05


def test_it_refuses_where_every_person_has_one_image():
    faces, labels, *_ = crowd(people=400, images=2, unusual=0)
    labels = np.random.default_rng(3).integers(0, 2, size=len(labels))
    first = np.arange(len(labels)) % 2 == 0
    found = audit(faces[first][:200], labels[:200], faces[first][200:], labels[200:400],
                  {"mine": labels[200:400]}, bootstrap=20)  # fmt: skip
    assert "every person has one image" in found.refusal


def test_it_refuses_a_proxy_that_sees_the_label(one_thread):
    """People are blurred, and images of one label and one person lie together in many directions."""
    faces, labels, person, _ = crowd(people=40, images=30, unusual=8, noise=0.9)
    rng = np.random.default_rng(1)
    looks = rng.normal(size=(2, 40, 16))  # how a label shows differs from person to person
    faces = faces + 1.2 * looks[labels, person]
    train = np.arange(len(labels)) % 2 == 0
    found = audit(faces[train], labels[train], faces[~train], labels[~train],
                  {"mine": labels[~train]}, bootstrap=20)  # fmt: skip
    assert "agree by" in found.refusal


def test_it_refuses_few_surprised_images():
    found, _ = audited(lambda y, person, usual: {"mine": y}, people=12, images=20, unusual=1)
    assert found.refusal.startswith("only 12 test images")


def test_a_case_that_is_refused_still_says_what_was_found():
    signs = {"gain": 1.0, "gain_error": 0.1, "flagged_images": 50,
             "agreement_direction": 1.0, "agreement_neighbours": 1.0}  # fmt: skip
    assert auditing.refusal(signs) is None
    assert "agree by 40% only" in auditing.refusal({**signs, "agreement_direction": 0.4})
    assert "agree by 40% only" in auditing.refusal({**signs, "agreement_neighbours": 0.4})


def pairs_of(faces, labels):
    return faces[0], labels[0], faces[1], labels[1]


def test_classes_can_be_texts_and_results_do_not_depend_on_their_names():
    def numbers(labels, person, is_usual):
        return {"mine": wrong_at(labels, ~is_usual & (person % 4 == 0))}

    found, _ = audited(numbers)
    faces, labels, person, is_usual = crowd()
    near = faces + 0.01 * np.random.default_rng(9).normal(size=faces.shape)
    names = np.array(["neutral", "smiling"])
    (predicted,) = numbers(labels, person, is_usual).values()
    texts = audit(torch.from_numpy(faces), names[labels].tolist(), near, names[labels],
                  {"mine": names[predicted]}, bootstrap=50)  # fmt: skip
    assert texts.estimates == found.estimates
    scores = np.stack([predicted, 1 - predicted], axis=1)  # columns in another order
    columns = audit(faces, names[labels], near, names[labels], {"mine": scores},
                    classes=["smiling", "neutral"], bootstrap=50)  # fmt: skip
    assert columns.estimates == found.estimates


def test_the_same_seed_gives_the_same_intervals():
    first, second, third = (
        audit(*pairs_of(np.stack([crowd()[0]] * 2), np.stack([crowd()[1]] * 2)),
              {"mine": wrong_at(crowd()[1], crowd()[2] % 3 == 0)}, seed=seed, bootstrap=50)
        for seed in (0, 0, 1)
    )  # fmt: skip
    assert first.estimates == second.estimates != third.estimates


@pytest.mark.parametrize(
    "change, message",
    [
        ({"test_embeddings": np.full((40, 16), np.nan)}, "test embeddings row 0 holds NaN"),
        ({"train_embeddings": np.zeros((40, 16))}, "train embeddings row 0 has norm 0"),
        ({"test_embeddings": np.ones((40, 5))}, "new embeddings have 5 dimensions and the others 16"),
        ({"test_labels": [0] * 39}, r"test labels have shape \(39,\) but there are 40 samples"),
        ({"train_labels": [1] * 40}, "all train labels are 1; a posterior needs at least two"),
        ({"test_labels": [0] * 39 + [7]}, "test labels hold 7 in row 39; the classes are 0, 1"),
        ({"test_labels": [0.5] * 40}, "test labels hold 0.5 in row 0, which is no class"),
        ({"predictions": {}}, "predictions are dict; pass a dict of at least one model"),
        ({"predictions": [0] * 40}, "predictions are list; pass a dict"),
        ({"predictions": {"a": [0] * 39}}, r"predictions of 'a' have shape \(39,\), but there are 40"),
        ({"predictions": {"a": [np.nan] * 40}}, "predictions of 'a' hold NaN in row 0"),
        ({"predictions": {"a": ["yes"] * 40}}, "predictions of 'a' hold 'yes' in row 0; the classes"),
        ({"predictions": {"a": np.zeros((40, 3))}}, "have 3 columns of scores, but there are 2 cl"),
        ({"classes": [0, 2]}, "train labels hold 1 in row 1; the classes are 0, 2"),
        ({"bootstrap": 0}, "bootstrap is 0; it must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        ({"test_features": np.ones((40, 2))}, "train_features are missing; pass the features of both sides"),
        ({"train_features": np.ones((40, 2))}, "test_features are missing; pass the features of both sides"),
        ({"train_features": np.ones((39, 2)), "test_features": np.ones((40, 2))}, r"train features are float64 of shape \(39, 2\)"),
        ({"train_features": np.ones((40, 2)), "test_features": np.ones(40)}, r"40 images need numbers of shape \(40, t\)"),
        ({"train_features": np.ones((40, 2)), "test_features": np.ones((40, 3))}, "the train features have 2 columns and the test features 3"),
        ({"train_features": np.ones((40, 2)), "test_features": np.full((40, 2), np.nan)}, "test features row 0 holds NaN or infinite"),
        ({"train_features": [["a"]] * 40, "test_features": np.ones((40, 1))}, "train features are <U1 of shape"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(change, message):
    faces, labels, *_ = crowd(people=10, images=4, unusual=1)
    labels[:2] = 0, 1
    usable = {"train_embeddings": faces, "train_labels": labels, "test_embeddings": faces,
              "test_labels": labels, "predictions": {"mine": labels}, "bootstrap": 20}  # fmt: skip
    with pytest.raises(ValueError, match=message) as caught:
        audit(**{**usable, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "prediction, expected",
    [
        ([0, 1, 1], [0, 1, 1]),
        ([False, True, True], [0, 1, 1]),
        ([0.2, 0.6, 1.0], [0, 1, 1]),  # probabilities
        ([-0.2, 0.3, 7.0], [0, 1, 1]),  # logits
        ([[0.2], [0.6], [1.0]], [0, 1, 1]),
        ([[3.0, 1.0], [-2.0, -1.0], [0.0, np.inf]], [0, 1, 1]),
        (torch.tensor([-1.0, 0.5, 2.0], dtype=torch.bfloat16), [0, 1, 1]),
    ],
)
def test_predictions_come_in_any_usual_form(prediction, expected):
    assert predicted_classes(prediction, [0, 1], 3).tolist() == expected


def test_scores_of_one_class_need_two_classes():
    with pytest.raises(ValueError, match="hold 0.5 in row 1, which is none of the 3 classes"):
        predicted_classes([0, 0.5], [0, 1, 2], 2)


@pytest.mark.parametrize("near", [1, 3, 50])
def test_mutual_neighbours_are_brute_force(near, monkeypatch):
    points = np.random.default_rng(0).normal(size=(40, 3))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    of = [set(np.argsort(-row)[: min(near, 39)]) for row in cosine]
    expected = [(i, j) for i in range(40) for j in range(i + 1, 40) if i in of[j] and j in of[i]]
    assert [tuple(pair) for pair in mutual_neighbours(points, near)] == expected
    monkeypatch.setattr(pairs, "PAIRS", 7 * 40)
    assert [tuple(pair) for pair in mutual_neighbours(points, near)] == expected


def test_groups_are_what_pairs_connect():
    assert groups(5, np.array([[0, 1], [1, 4]])).tolist() == [0, 0, 1, 2, 0]
    assert len(mutual_neighbours([[1.0, 0.0]])) == 0


def test_resamples_vary_as_sums_over_independent_groups_do(monkeypatch):
    sums = np.random.default_rng(0).normal(size=(200, 2))
    drawn = resampled_sums(sums, 2000, seed=1)
    np.testing.assert_allclose(drawn.mean(axis=0), sums.sum(axis=0), atol=1.5)
    np.testing.assert_allclose(drawn.var(axis=0), 200 * sums.var(axis=0), rtol=0.15)
    monkeypatch.setattr(kin, "DRAWN", 1000)
    np.testing.assert_allclose(resampled_sums(sums, 2000, seed=1), drawn, rtol=1e-9)
