"""Metrics of a test set against hand-worked cases, formulas and scikit-learn; two seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from study.results import metrics

LABELS = np.array([1, 1, 0, 0, 1, 1, 0, 0])
SCORES = np.array([2, 1, -1, -1, 1, -1, 1, -2.0])  # person a: all right; b: one of each class wrong
PEOPLE = np.array(list("aaaabbbb"))
RARE = np.array([1, 1, 0, 0, 0, 0, 1, 1])  # in training, a's positives and b's negatives


@pytest.fixture(scope="module")
def problem():
    """Unbalanced labels, informative logits with ties."""
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.3).astype(int)
    return labels, np.round(rng.normal(2 * labels - 1, 1.5), 1)


def measured(labels, scores, people=None, names=metrics.OF_TEST_SETS, minority=None) -> dict:
    """Metrics of one test set and one method in which everybody counts once; by default one person's.

    By their formulas, also where people have too few images for a study.
    """
    scores = np.asarray(scores, dtype=float)
    people = np.zeros(len(scores)) if people is None else people
    test_set = metrics.TestSet.from_images(
        np.arange(len(scores)), labels, scores[:, None], people, minority
    )
    once = np.ones((1, len(test_set.people)))
    return {name: metrics.METRICS[name].formula(test_set, once).item() for name in names}


def of_people(rates, name) -> float:
    """A metric of people with these accuracies, in thousandths, 1000 images each."""
    right = np.arange(1000) < np.round(1000 * np.asarray(rates))[:, None]
    people = np.repeat(np.arange(len(right)), 1000)
    return measured(np.ones(right.size), np.where(right.ravel(), 1, -1), people, [name])[name]


def test_every_metric_of_a_hand_worked_case():
    found = measured(LABELS, SCORES, PEOPLE, minority=RARE)
    # Confidence sigmoid(1) = .731 is in the bin (10/15, 11/15]: six images, four of them right;
    # sigmoid(2) = .881 in (13/15, 14/15]: two, both right.
    one, two = expit(1.0), expit(2.0)
    assert found == pytest.approx(
        {
            "accuracy": 0.75,
            "minority_accuracy": 0.75,  # both positives of a, one of two negatives of b
            "balanced_accuracy": 0.75,
            "identity_balanced_accuracy": 0.75,
            # Positives 2, 1, 1, -1 against negatives -1, -1, 1, -2: 4 + 3.5 + 3.5 + 2 of 16.
            "auroc": 13 / 16,
            "ece": (abs(4 - 6 * one) + abs(2 - 2 * two)) / 8,
            "brier": (2 * (1 - two) ** 2 + 4 * (1 - one) ** 2 + 2 * one**2) / 8,
            "worst_decile": 0.5,
            "worst_identity": 0.5,
            "identity_sd": 0.25,
            # Distance .5 in two of the four ordered pairs, over twice the mean .75.
            "identity_gini": 0.25 / 1.5,
            "tpr_gap": 0.5,
            "tnr_gap": 0.5,
        }
    )


def test_overall_metrics_are_sklearns(problem):
    labels, scores = problem
    for people in (None, np.arange(500) % 7):  # who is in the images does not matter
        found = measured(labels, scores, people)
        assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores))
        assert found["brier"] == pytest.approx(brier_score_loss(labels, expit(scores)))
        expected = balanced_accuracy_score(labels, scores > 0)
        assert found["balanced_accuracy"] == pytest.approx(expected)
        assert found["accuracy"] == pytest.approx(((scores > 0) == labels).mean())


def test_pairs_are_counted_alike_by_people_and_by_place(problem, monkeypatch):
    """In resamples, with ties, and people who have one class only."""
    labels, scores = problem
    people = np.where(labels == 1, np.arange(500) % 31, np.arange(500) % 40)
    test_set = metrics.TestSet.from_images(
        np.arange(500), labels, np.stack([scores, -scores], axis=1), people
    )
    counts = np.random.default_rng(2).multinomial(40, np.full(40, 1 / 40), size=50).astype(float)
    monkeypatch.setattr(metrics, "FEW_PEOPLE", 40)
    few = metrics.METRICS["auroc"].formula(test_set, counts)
    monkeypatch.setattr(metrics, "FEW_PEOPLE", 39)
    many = metrics.METRICS["auroc"].formula(test_set, counts)
    assert few.tobytes() == many.tobytes()
    drawn = np.repeat(np.arange(500), counts[3].astype(int)[people])
    assert few[3, 0] == pytest.approx(roc_auc_score(labels[drawn], scores[drawn]))


def test_calibration_error_bin_by_bin(problem):
    labels, scores = problem
    confidence = np.maximum(expit(scores), 1 - expit(scores))
    right = (scores > 0) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        rows = (confidence > low) & (confidence <= low + 1 / 15)
        if rows.any():
            expected += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    assert measured(labels, scores)["ece"] == pytest.approx(expected)
    assert measured([1, 0], [50.0, -50.0])["ece"] == pytest.approx(0, abs=1e-12)


def test_metrics_over_people_are_those_of_their_accuracies(problem):
    labels, scores = problem
    people = np.random.default_rng(1).integers(0, 23, 500)
    found = measured(labels, scores, people)
    right = pd.Series((scores > 0) == labels)
    rate = right.groupby(people).mean()
    assert found["identity_balanced_accuracy"] == pytest.approx(rate.mean())
    assert found["identity_sd"] == pytest.approx(rate.std(ddof=0))
    assert found["worst_identity"] == rate.min()
    assert found["worst_decile"] == pytest.approx(rate.nsmallest(3).mean())
    for name, value in (("tpr_gap", 1), ("tnr_gap", 0)):
        own = right[labels == value].groupby(people[labels == value]).mean()
        assert found[name] == pytest.approx(np.ptp(own))


def test_a_missing_class_leaves_rates_undefined():
    found = measured([1, 1], [1.0, 2.0], ["a", "b"])
    assert {name for name, value in found.items() if np.isnan(value)} == {
        "auroc", "balanced_accuracy", "tnr_gap", "minority_accuracy",
    }  # fmt: skip
    # Person b has no positive, so only a and c are compared.
    assert measured([1, 0, 1], [1.0, 1.0, -1.0], ["a", "b", "c"])["tpr_gap"] == 1


def test_minority_cells_are_those_marked():
    """Where no class is rare for a person (NaN), its images do not count."""
    labels, scores = [1, 0, 1, 0], [1.0, 1.0, -1.0, -1.0]
    for minority, expected in (([1, 1, 0, 0], 0.5), ([1, 0, 0, np.nan], 1.0), ([0, 1, 1, 0], 0.0)):
        found = measured(labels, scores, names=["minority_accuracy"], minority=minority)
        assert found == {"minority_accuracy": expected}
    assert np.isnan(measured(labels, scores, names=["minority_accuracy"])["minority_accuracy"])


def test_people_are_compared_only_where_everybody_has_enough_images():
    metric, once = metrics.METRICS["worst_decile"], np.ones((1, 2))
    for fewest, known in ((metrics.MIN_IMAGES, True), (metrics.MIN_IMAGES - 1, False)):
        people = np.repeat([0, 1], [20, fewest])
        labels = np.ones(len(people))
        test_set = metrics.TestSet.from_images(
            np.arange(len(people)), labels, labels[:, None], people
        )
        assert np.isfinite(metric.measure(test_set, once)).all() == known


def test_worst_decile_is_the_mean_of_the_worst_tenth():
    values = np.random.default_rng(0).permutation(np.linspace(0, 1, 41))
    expected = np.mean([0, 0.025, 0.05, 0.075, 0.1])
    assert of_people(values, "worst_decile") == pytest.approx(expected)
    assert of_people([0.3, 0.9], "worst_decile") == 0.3
    assert of_people(np.arange(10) / 10, "worst_decile") == 0  # ten people: one


def test_gini_is_the_mean_distance_of_pairs():
    a = np.random.default_rng(0).integers(0, 1000, 37) / 1000
    expected = np.abs(a[:, None] - a).mean() / (2 * a.mean())
    assert of_people(a, "identity_gini") == pytest.approx(expected)
    assert of_people([0.8, 0.8, 0.8], "identity_gini") == pytest.approx(0)
    # (n - 1) / n: one has it all
    assert of_people([0, 0, 0, 1], "identity_gini") == pytest.approx(0.75)
    assert of_people([0, 0], "identity_gini") == 0


def counted(seeds=6, people=23, methods=2) -> metrics.RightByPerson:
    """What seeds classify right of people, 4 images each; some pairs are not tested."""
    rng = np.random.default_rng(0)
    images = 4.0 * (rng.random((seeds, people)) > 0.1)
    right = rng.binomial(4, 0.7, (seeds, people, methods)) * (images[..., None] > 0)
    return metrics.RightByPerson(right=right.astype(float), images=images)


@pytest.mark.parametrize("name", ["people_sd", "worst_tenth"])
def test_a_pooled_metric_is_that_of_one_test_set_of_all_seeds(name):
    of_people, metric = counted(), metrics.METRICS[name]
    people = of_people.images.shape[1]
    accuracy = of_people.right.sum(axis=0) / of_people.images.sum(axis=0)[:, None]
    found = of_people.measure(metric, np.ones((1, people)))[0]
    if name == "people_sd":
        np.testing.assert_allclose(found, accuracy.std(axis=0))
    else:
        np.testing.assert_allclose(found, np.sort(accuracy, axis=0)[:3].mean(axis=0))
    other = metrics.RightByPerson(right=of_people.right[1:], images=of_people.images[1:])
    np.testing.assert_allclose(
        of_people.measure(metric, np.ones((1, people)), without=0),
        other.measure(metric, np.ones((1, people))),
    )
    few = metrics.RightByPerson(right=of_people.right[:2], images=of_people.images[:2])
    assert np.isnan(few.measure(metric, np.ones((1, people)))).all()  # eight images at most


@pytest.mark.parametrize("name", ["people_sd", "worst_tenth"])
def test_the_slopes_of_a_pooled_metric_are_its_derivative(name):
    metric = metrics.METRICS[name]
    accuracy = np.random.default_rng(1).random((23, 2))
    once, step = np.ones((1, 23)), 1e-6
    slopes = metric.slopes(accuracy)
    for person in range(23):
        moved = accuracy.copy()
        moved[person] += step
        ends = [metric.formula(metrics.PooledPeople(a), once)[0] for a in (accuracy, moved)]
        np.testing.assert_allclose((ends[1] - ends[0]) / step, slopes[person], atol=1e-4)


def test_every_metric_says_what_it_is():
    for metric in metrics.METRICS.values():
        assert metric.better in ("higher", "lower")
        assert metric.definition.endswith(".") and "uses class labels" in metric.definition


def test_a_test_set_is_sorted_by_person():
    test_set = metrics.TestSet.from_images(
        [5, 6, 7, 8], [1, 0, 1, 1], [[1], [2], [3], [4]], ["b", "a", "b", "a"]
    )
    assert test_set.rows.tolist() == [6, 8, 5, 7] and test_set.scores.ravel().tolist() == [
        2,
        4,
        1,
        3,
    ]
    assert test_set.people.tolist() == ["a", "b"] and test_set.starts.tolist() == [0, 2]
    assert test_set.person_accuracy.ravel().tolist() == [0.5, 1.0]


def test_evaluate_joins_predictions_with_the_truth():
    predictions = pd.DataFrame(
        {"level": 0.5, "seed": 3, "test": "seen", "row": range(8), "erm": SCORES, "cid": -SCORES,
         "minority": RARE}
    )  # fmt: skip
    shuffled = predictions.sample(frac=1, random_state=0)
    table = metrics.evaluate(shuffled, ["erm", "cid"], LABELS, PEOPLE)
    assert list(table)[:4] == ["level", "seed", "test", "method"] and len(table) == 2
    for (_, found), (method, scores) in zip(
        table.iterrows(), {"erm": SCORES, "cid": -SCORES}.items(), strict=True
    ):
        assert found.tolist()[:4] == [0.5, 3, "seen", method]
        shown = {k: v for k, v in metrics.METRICS.items() if v.images == 1}
        assert found[list(shown)].to_dict() == pytest.approx(
            measured(LABELS, scores, PEOPLE, shown, RARE)
        )
        few = [k for k in metrics.OF_TEST_SETS if metrics.METRICS[k].images == metrics.MIN_IMAGES]
        assert len(few) == 6 and found[few].isna().all()  # four images a person
    by_person = metrics.accuracy_by_identity(shuffled, ["erm"], LABELS, PEOPLE)
    assert by_person.loc[0.5, "seen"]["erm"].to_dict() == {"a": 1.0, "b": 0.5}


def test_other_conditions_keep_their_order():
    predictions = pd.concat(
        pd.DataFrame({"value": v, "seed": 0, "test": "seen", "row": range(8), "erm": SCORES})
        for v in ("auto", "0.5", "all")
    )
    table = metrics.evaluate(predictions, ["erm"], LABELS, PEOPLE, ["accuracy"], "value")
    assert table["value"].tolist() == ["auto", "0.5", "all"]
    assert list(table) == ["value", "seed", "test", "method", "accuracy"]


def test_weights_are_summed_up_by_level_and_cell():
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"level": level, "seed": seed, "part": "train", "row": range(1000)}).assign(
            cell_size=np.r_[1, np.tile([3, 9, 9], 333)], erm=1.0, cid=rng.random(1000)
        )
        for level in (0.0, 0.9)
        for seed in range(3)
    ]
    sets = pd.concat([*parts, parts[0].assign(part="seen", cid=99.0)])
    found = metrics.weights_summary(sets, ["erm", "cid"])
    weights = found["weights"].set_index(["level", "cell_size", "method"])
    assert sorted(set(found["weights"]["cell_size"])) == [3, 9]  # 1 is too rare
    own = pd.concat(parts[3:]).query("cell_size == 9")["cid"]
    expected = [own.mean(), own.quantile(0.1), own.quantile(0.9)]
    assert weights.loc[0.9, 9, "cid"].tolist() == pytest.approx(expected)
    effective = found["effective"].set_index(["level", "method"])
    kish = [w.sum() ** 2 / (1000 * (w**2).sum()) for w in (part["cid"] for part in parts[:3])]
    assert effective.loc[(0.0, "cid"), "mean"] == pytest.approx(np.mean(kish))
    assert effective.loc[(0.0, "erm")].tolist() == [1, 1, 1]
