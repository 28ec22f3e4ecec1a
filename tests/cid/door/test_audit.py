"""`python -m cid audit` and `leaks`: predictions of every kind, splits, refusals, the page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cid import auditing
from cid.auditing import Audit, Difference, Estimate
from cid.door import leaks

UNKNOWN = ("It cannot know <people>.",)


@pytest.fixture
def audited(case, monkeypatch):
    """The same case; what the audit was called with is in ``case.calls``, what it says in ``case.refusal``."""
    case.calls = []
    case.refusal = None

    def audit(train, train_labels, test, test_labels, predictions, **settings):
        case.calls.append((train, train_labels, test, test_labels, predictions, settings))
        rows = [
            Estimate(model, measure, 0.5 + 0.1 * place, 0.4, 0.9, 7)
            for model in predictions
            for place, measure in enumerate(auditing.MEASURES)
        ]
        difference = [Difference("b", "a", "balanced", 0.02, -0.01, 0.05, 0.04)]
        flagged = np.arange(len(test_labels)) < 7
        return Audit(rows, difference, case.refusal, {"flagged": 0.175}, flagged, UNKNOWN)

    monkeypatch.setattr(auditing, "audit", audit)
    return case


def predicted(case, **columns):
    case.predictions = pd.DataFrame({"image": case.images, **columns})
    case.write()


def test_the_sides_of_the_split_and_the_predictions_reach_the_audit_in_order(audited):
    predicted(audited, a=audited.labels, b=1 - audited.labels)
    audited.predictions = audited.predictions.sample(frac=1, random_state=0)  # another order
    audited.write()
    status, out, err = audited.audit()
    assert status == 0, err
    train, train_labels, test, test_labels, models, _ = audited.calls[0]
    tested = audited.split == "test"
    np.testing.assert_array_equal(train, audited.z[~tested])
    np.testing.assert_array_equal(test, audited.z[tested])
    np.testing.assert_array_equal(test_labels, audited.labels[tested].astype(str))
    np.testing.assert_array_equal(models["a"], audited.labels[tested].astype(str))
    np.testing.assert_array_equal(models["b"], (1 - audited.labels[tested]).astype(str))
    found = pd.read_csv("audit/audit.csv")
    assert list(found.columns) == ["model", "measure", "estimate", "low", "high", "images"]
    assert list(found["measure"]) == list(auditing.MEASURES) * 2
    assert "model 'a': classes" in out and "80 trained, 40 are audited" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "val", "test"], "taken are 'train' for train; 'test', 'val' for test"),
        ([0, 0, 1], "taken are '0' for train; '1' for test"),
        (["train", "train", "test"], ""),
    ],
)
def test_other_words_of_a_split_are_said_to_be_taken_for_a_side(audited, words, said):
    audited.table["split"] = np.tile(words, 40)
    audited.write()
    status, _, err = audited.audit()
    assert status == 0 and said in err and ("taken are" in err) == bool(said)


def scores(case, kind):
    signs = 2.0 * case.labels - 1
    return {"logits": 3 * signs, "probabilities": 0.5 + 0.4 * signs, "classes": case.labels}[kind]


@pytest.mark.parametrize("kind", ["classes", "probabilities", "logits"])
def test_scores_are_cut_and_it_is_said_what_they_were_taken_for(audited, kind):
    predicted(audited, mine=scores(audited, kind))
    status, out, err = audited.audit()
    assert status == 0, err
    *_, test_labels, models, _ = audited.calls[0]
    np.testing.assert_array_equal(models["mine"], test_labels)
    assert f"model 'mine': {kind}" in out


def test_scores_can_be_of_the_other_class(audited):
    audited.table["smiling"] = np.where(audited.labels, "no", "yes")
    predicted(audited, mine=scores(audited, "probabilities"))
    status, out, _ = audited.audit("--positive no")
    *_, test_labels, models, _ = audited.calls[0]
    np.testing.assert_array_equal(models["mine"], test_labels)
    assert "probabilities of class 'no', cut at 0.5" in out


def test_scores_of_every_class_are_columns_of_their_names(audited):
    kinds = np.array(["a", "b", "c"])[np.arange(120) // 3 % 3]
    audited.table["smiling"] = kinds
    predicted(audited, **{f"net:{name}": (kinds == name) - 0.5 for name in "cab"})
    status, out, err = audited.audit()
    assert status == 0, err
    *_, test_labels, models, _ = audited.calls[0]
    np.testing.assert_array_equal(models["net"], test_labels)
    assert "model 'net': scores of every class; the largest counts" in out


def test_rows_that_cannot_be_audited_are_counted(audited):
    predictions = pd.Series(audited.labels.astype(object))
    predictions[2] = None  # a test image
    predictions[0] = None  # a training image, of which no prediction is needed
    predicted(audited, mine=predictions)
    audited.table.loc[3, "split"] = None
    audited.write()
    status, out, _ = audited.audit()
    assert status == 0 and len(audited.calls[0][0]) == 79 and len(audited.calls[0][2]) == 39
    assert "left out: 2 of 120 rows (1 x a model predicts nothing of it, 1 x no side" in out


def test_a_refusal_is_status_3_and_one_sentence_and_leaves_no_number(audited):
    assert audited.audit()[0] == 0
    audited.refusal = "the proxy is too weak"
    status, _, err = audited.audit()
    assert status == 3 and err.splitlines()[-1] == "refused: the proxy is too weak"
    assert len(pd.read_csv("audit/audit.csv")) == 0  # nor does an older one stay
    page = Path("audit/index.html").read_text()
    assert "the proxy is too weak" in page and "<svg" not in page


class Tags(HTMLParser):
    """Tags that stand open, and what a page asks other places for."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.asked = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        self.asked += [
            v for k, v in attributes if k in ("src", "href", "xlink:href") and v[:1] != "#"
        ]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_asks_for_nothing_and_shows_names_as_they_are(audited):
    predicted(audited, **{"<b>net</b>": audited.labels})
    assert audited.audit()[0] == 0
    page = Path("audit/index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.asked == []
    assert "&lt;b&gt;net" in page and "<b>net" not in page and page.count("<svg") == 1
    assert "share of test images that are surprised 0.17" in page or "0.18" in page
    assert "It cannot know &lt;people&gt;." in page and "b less a: +2.0 [−1.0, +5.0]" in page


def spoil_split(words):
    def apply(case):
        case.table["split"] = words

    return apply


def spoil_predictions(**columns):
    def apply(case):
        case.predictions = case.predictions.drop(columns="mine").assign(**columns)

    return apply


def other_images(case):
    case.predictions["image"] = [f"other/{name}" for name in case.images]


def twice_predicted(case):
    case.predictions.loc[1, "image"] = "0.png"


def twice_labelled(case):
    case.table.loc[1, "image"] = "0.png"


def trained_on_one(case):
    case.table.loc[case.split == "train", "smiling"] = 1


def tested_on_another(case):
    case.table.loc[case.table.index[case.split == "test"][:3], "smiling"] = 2
    case.predictions["mine"] = case.labels


def three_classes(case):
    case.table["smiling"] = np.arange(120) % 3
    case.predictions["mine"] = 0.3


@pytest.mark.parametrize(
    "spoil, more, said",
    [
        (lambda case: None, "--split part", "no column 'part' (which images trained: train or test)"),
        (spoil_split("train"), "", "column 'split' of labels.csv has no row of 'test'; both are needed"),
        (spoil_split(["a", "b"] * 60), "", "column 'split' holds 'a'; write train or test"),
        (lambda case: None, "--label split", "column 'split' cannot be the label and the split"),
        (lambda case: None, "--predictions gone.csv", "gone.csv does not exist"),
        (other_images, "", "holds predictions of other images: none of its 120 names is in labels.csv"),
        (twice_predicted, "", "predictions.csv has two rows of '0.png'; keep one"),
        (twice_labelled, "", "labels.csv has two rows of '0.png', so predictions cannot find theirs"),
        (spoil_predictions(mine="smile"), "", "holds 'smile', which is no class (0, 1) and no number"),
        (spoil_predictions(mine=np.nan), "", "predicts nothing of these images; its cells are empty"),
        (spoil_predictions(mine=50), "", "numbers from 50 to 50: neither classes (0, 1), nor probabilities"),
        (spoil_predictions(mine=[np.inf, 0.5] * 60), "", "holds 'inf'"),
        (spoil_predictions(), "", "has no column of a model beside that of the images"),
        (spoil_predictions(**{"net:1": 0.2}), "", "model 'net' has columns of 1, but the classes are 0, 1"),
        (trained_on_one, "", "column 'smiling': the 80 training images that can be used are all '1'"),
        (tested_on_another, "", "column 'smiling': 3 test images are '2', and no training image is; leave their"),
        (three_classes, "", "scores need a column MODEL:CLASS for each (0, 1, 2)"),
        (lambda case: None, "--positive 2", "--positive 2 is no class; there are 0, 1"),
        (lambda case: None, "-o labels.csv", "labels.csv is a file; name a folder"),
        (lambda case: np.save("p.npy", np.zeros((90, 2))), "--predictions p.npy", "p.npy has shape (90, 2)"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_refused_in_one_sentence(audited, spoil, more, said):
    spoil(audited)
    audited.write()
    status, _, err = audited.audit(more)
    assert status == 1 and said in err and not audited.calls
    assert err.splitlines()[-1].startswith("error: ")


def test_predictions_as_an_array_are_in_the_order_of_the_labels(audited):
    np.save("p.npy", np.eye(2)[audited.labels])
    status, out, err = audited.audit("--predictions p.npy")
    assert status == 0, err
    *_, test_labels, models, _ = audited.calls[0]
    np.testing.assert_array_equal(models["model"], test_labels)


# ---- leaks -------------------------------------------------------------------------------------


def test_leaks_are_found_and_people_on_one_side_only_are_not(case):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 32))
    person = np.repeat(np.arange(60), 20)
    z = centres[person] + 0.3 * rng.normal(size=(1200, 32))
    apart = leaks.compare(z[person < 40], z[person >= 40], "cpu", progress=False)
    assert apart.person.mean() < 0.25 and not apart.copy.any()
    both = np.arange(1200) % 2 == 0
    mixed = leaks.compare(z[both], z[~both], "cpu", progress=False)
    assert mixed.person.mean() > 0.95 and not mixed.copy.any()
    test = z[~both].copy()
    test[:30] = z[both][:30] + 1e-3 * rng.normal(size=(30, 32))
    copied = leaks.compare(z[both], test, "cpu", progress=False)
    assert list(np.flatnonzero(copied.copy)) == list(range(30))
    assert list(copied.nearest[:30]) == list(range(30))


def test_the_surest_pairs_are_printed_and_all_are_written(case):
    case.z[2] = case.z[1]  # 2.png is a test image, 1.png trained
    case.write()
    status, out, err = case.run("leaks --embeddings z.npy --labels labels.csv -o leaks.csv")
    assert status == 0, err
    found = pd.read_csv("leaks.csv")
    assert list(found.columns) == list(leaks.COLUMNS) and len(found) == 40
    assert tuple(found.iloc[0][["image", "nearest_training_image"]]) == ("2.png", "1.png")
    assert "2.png  1.png  1.0000" in out.split("surest pairs")[1].splitlines()[1]
    copies = int((found["cosine"] > 0.995).sum())
    assert f"near copies: {copies} of 40 test images" in out
    advised = "split anew by film, album or person" in out
    assert advised == (found["same_person"].mean() > 2 * leaks.BY_CHANCE)
    assert advised != ("nothing speaks for people" in out)


def test_one_image_on_each_side_is_enough_for_leaks(case):
    case.table["split"] = ["test", "train"] + [""] * 118
    case.write()
    status, out, err = case.run("leaks --embeddings z.npy --labels labels.csv")
    assert status == 0 and "of 1 test images" in out, err
