"""Tasks of more than two classes, from the sets to the estimates; on a small problem of four."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from study.experiment import scores
from study.experiment.design import (
    check_draws,
    draw_sets,
    number_of_classes,
    unequal_classes,
    usable_identities,
)
from study.experiment.levels import built_level, built_levels, minority_images
from study.experiment.runs import train_sets, weigh_sets
from study.faces.tasks import (
    attributes_of,
    class_names,
    classes_of,
    some_of_each_class,
    task_labels,
)
from study.methods.registry import METHODS, of_two_classes
from study.results import metrics
from study.results.inference import estimate

pytestmark = pytest.mark.usefixtures("one_thread")

BIAS = {
    "kind": "correlation",
    "images_per_identity": 8,
    "test_per_class": 2,
    "unseen_share": 0.25,
}


class Faces:
    """Two 0/1 attributes of 24 people with 10 images of each of the four classes."""

    def __init__(self):
        self.people = np.repeat(np.arange(24), 40)
        self.classes = np.tile(np.repeat(np.arange(4), 10), 24)

    def labels(self, attribute: str) -> np.ndarray:
        return {"a": self.classes // 2, "b": self.classes % 2}[attribute]

    def identities(self) -> np.ndarray:
        return self.people


@pytest.fixture(scope="module")
def faces():
    return Faces()


@pytest.fixture(scope="module")
def arrays(faces):
    """A proxy that knows people, and features that know people and classes."""
    rng = np.random.default_rng(0)
    of_person = rng.normal(size=(24, 16))[faces.people]
    of_class = rng.normal(size=(4, 16))[faces.classes]
    noise = rng.normal(size=(2, len(faces.people), 16))
    proxy = (of_person + 0.3 * noise[0]).astype(np.float32)
    return proxy, (0.5 * of_class + of_person + 0.6 * noise[1]).astype(np.float32)


def test_a_task_crosses_attributes(faces):
    assert attributes_of("a x b") == ["a", "b"] and classes_of("a x b") == 4
    assert attributes_of("axis x box") == ["axis", "box"]
    np.testing.assert_array_equal(task_labels(faces, "a x b"), faces.classes)
    np.testing.assert_array_equal(task_labels(faces, "b"), faces.classes % 2)
    assert class_names("a x b") == ["neither", "b", "a", "a and b"]
    assert class_names("a x b x c")[5] == "a and c"


def test_a_task_is_one_of_several_attributes():
    class Expressions:
        def labels(self, attribute):
            return np.array(
                {"happy": [1, 0, 0, 1], "sad": [0, 1, 0, 1], "shy": [0, 0, 1, 0]}[attribute]
            )

    assert classes_of("happy | sad | shy") == 3 == len(class_names("happy | sad | shy"))
    found = task_labels(Expressions(), "happy | sad | shy")
    np.testing.assert_array_equal(found, [0, 1, 2, np.nan])  # nobody is happy and sad
    assert np.isnan(task_labels(Expressions(), "happy | sad")[2])


def test_a_missing_label_of_one_attribute_leaves_the_image_out():
    class Missing(Faces):
        def labels(self, attribute):
            labels = super().labels(attribute).astype(float)
            labels[0] = np.nan if attribute == "b" else 1
            return labels

    labels = task_labels(Missing(), "a x b")
    assert np.isnan(labels[0]) and number_of_classes(labels) == 4


def test_the_level_is_the_share_of_the_majority_class_over_an_even_one():
    assert [minority_images(level, 8, 4) for level in (0, 0.667, 0.833, 1)] == [6, 2, 1, 0]
    assert built_level(0.667, 8, "correlation", 4) == 0.6667
    assert built_levels([0, 0.5], 12, "correlation", 3) == [0.0, 0.5]
    with pytest.raises(ValueError, match="a multiple of 4, .*: write 8 or 12$"):
        built_levels([0], 10, "correlation", 4)


@pytest.mark.parametrize("level", [0.0, 0.6667, 0.8333])
def test_majorities_and_the_other_classes_are_shared_out_evenly(faces, level):
    sets = draw_sets(
        faces.people, faces.classes, seeds=3, levels=[0.0, 0.6667, 0.8333], only=[level], **BIAS
    )
    assert (sets["level"] == level).all()
    classes = faces.classes[sets["row"]]
    people = faces.people[sets["row"]]
    assert not unequal_classes(sets, faces.classes)
    for _, one in sets.groupby("seed"):
        train = one[one["part"] == "train"]
        own = pd.crosstab(people[train.index], classes[train.index])
        assert (own.sum(axis=1) == 8).all()
        largest = own.max(axis=1)
        assert (largest == 8 - minority_images(level, 8, 4)).all()
        if level:
            majorities = own.to_numpy().argmax(axis=1)
            assert np.ptp(np.bincount(majorities, minlength=4)) == 0
            minority = classes[train.index] != pd.Series(majorities, own.index)[people[train.index]]
            np.testing.assert_array_equal(train["minority"], minority.astype(float))
        seen = one[one["part"] == "seen"]
        assert (pd.crosstab(people[seen.index], classes[seen.index]) == 2).all(axis=None)


def test_natural_minorities_are_what_is_not_most_frequent():
    people = np.repeat([0, 1, 2, 3], 12)
    labels = np.tile([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2], 4)
    natural = BIAS | {"kind": "natural", "test_per_class": 1}
    sets = draw_sets(people, labels, seeds=1, levels=[0.0], **natural)
    train = sets[(sets["part"] == "train")]
    np.testing.assert_array_equal(train["minority"], (labels[train["row"]] > 0).astype(float))
    assert unequal_classes(sets, labels)


def test_everybody_needs_images_of_every_class(faces):
    few = faces.classes.copy().astype(float)
    few[(faces.people == 0) & (faces.classes == 3)] = np.nan
    table = usable_identities(faces.people, few, 8, 2, "correlation", [0.0])
    assert not table["usable"][0] and table["usable"][1:].all()
    assert table["reason"][0] == "10, 10, 10, 0 images of the 4 classes; 4 of each are needed"


def test_scores_of_several_classes_have_a_column_each():
    logits = np.arange(12.0).reshape(4, 3)
    table = pd.DataFrame(scores.named("erm", logits) | scores.named("cid", -logits))
    assert scores.columns_of(table, "erm") == ["erm:0", "erm:1", "erm:2"]
    assert scores.columns_of(table, "jtt") == []
    found = scores.scores_of(table, ["cid", "erm"])
    np.testing.assert_array_equal(found[:, 1], logits)
    np.testing.assert_array_equal(scores.predicted(found), [[0, 2]] * 4)
    two = pd.DataFrame(scores.named("erm", logits[:, 0] - 4))
    np.testing.assert_array_equal(
        scores.predicted(scores.scores_of(two, ["erm"]))[:, 0], [0, 0, 1, 1]
    )


def test_every_method_for_several_classes_is_trained_and_judged(faces, arrays, tmp_path, weights):
    proxy, features = arrays
    methods = [name for name in METHODS if name not in of_two_classes(METHODS)]
    sets = draw_sets(
        faces.people, faces.classes, seeds=2, levels=[0.0, 0.8333], only=[0.8333], **BIAS
    )
    weighed = weigh_sets(sets, proxy, faces.classes, faces.people, methods, weights)
    train = {"l2": 0.1}
    predictions, heads = train_sets(
        weighed, features, faces.classes, methods, train, folder=tmp_path
    )
    again, _ = train_sets(weighed, features, faces.classes, methods, train, folder=tmp_path)
    pd.testing.assert_frame_equal(predictions, again)
    assert heads["erm"].weight.shape == (2, 4, 16)
    study = estimate(
        predictions,
        methods,
        faces.classes,
        faces.people,
        metrics=["accuracy", "minority_accuracy", "auroc", "tpr_gap"],
        replicates=20,
    )
    accuracy = dict(zip(methods, study.point["seen", "accuracy"][0], strict=True))
    minority = dict(zip(methods, study.point["seen", "minority_accuracy"][0], strict=True))
    assert min(accuracy.values()) > 0.4  # chance is .25
    for better in ("surprise", "oracle"):
        assert minority[better] > minority["erm"] + 0.02
    assert np.isnan(study.point["seen", "tpr_gap"]).all()


def test_metrics_of_several_classes_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    logits = rng.normal(size=(200, 3)) + 2 * np.eye(3)[labels]
    test_set = metrics.TestSet.from_images(
        np.arange(200), labels, logits[:, None], np.zeros(200, int)
    )
    once = np.ones((1, 1))
    found = {
        name: metrics.METRICS[name].formula(test_set, once).item() for name in metrics.OF_TEST_SETS
    }
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, logits.argmax(axis=1))
    )
    expected = roc_auc_score(labels, probability, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(expected)
    squares = ((probability - np.eye(3)[labels]) ** 2).sum(axis=1).mean()
    assert found["brier"] == pytest.approx(squares / 2)
    assert 0 < found["ece"] < 0.2


def test_several_classes_of_two_are_the_metrics_of_two():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=100)
    logit = rng.normal(size=100) + labels
    both = np.stack([np.zeros(100), logit], axis=1)
    people = np.arange(100) % 7
    one, two = (
        metrics.TestSet.from_images(np.arange(100), labels, values, people)
        for values in (logit[:, None], both[:, None])
    )
    once = np.ones((1, 7))
    for name in metrics.OF_TEST_SETS:
        formula = metrics.METRICS[name].formula
        np.testing.assert_allclose(formula(one, once), formula(two, once), err_msg=name)


def test_faces_of_each_class_stand_side_by_side(faces):
    chosen = some_of_each_class(faces.classes, [np.flatnonzero(faces.people == p) for p in (0, 1)])
    assert faces.classes[chosen].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 2


def test_a_study_of_four_classes_is_checked_before_it_runs(faces):
    params = {
        "task": "a x b",
        "seeds": 2,
        "bias": BIAS | {"levels": [0.0, 0.8333]},
        "tasks": ["a x b", "a"],
        "kinds": ["correlation"],
        "level": 0.8333,
        "ablation": {"seeds": 2, "level": 0.8333},
        "ablations": {},
        "neighbours": "auto",
    }
    assert check_draws(faces, params) == []
    params["bias"] = params["bias"] | {"images_per_identity": 10}
    with pytest.raises(ValueError, match="params.yaml: bias: .*must be a multiple of 4"):
        check_draws(faces, params)


def test_the_heads_of_a_method_are_the_same_beside_others(faces, arrays, weights):
    proxy, features = arrays
    sets = draw_sets(
        faces.people, faces.classes, seeds=2, levels=[0.0, 0.8333], only=[0.8333], **BIAS
    )
    methods = ["erm", "cid", "surprise", "oracle", "balanced"]
    weighed = weigh_sets(sets, proxy, faces.classes, faces.people, methods, weights)
    _, together = train_sets(weighed, features, faces.classes, methods, {"l2": 0.1})
    for method in methods:
        _, alone = train_sets(weighed, features, faces.classes, [method], {"l2": 0.1})
        np.testing.assert_array_equal(together[method].weight, alone[method].weight)
