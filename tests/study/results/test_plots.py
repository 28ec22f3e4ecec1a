"""Figures: what must not be drawn is not, whatever is there is drawn, and bytes repeat; 15 seconds."""

from __future__ import annotations

import io
import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure

from study.methods.registry import METHODS as REGISTRY
from study.results import drawing, palette, plots
from study.results.drawing import Picture

METRICS, METHODS = ["accuracy", "worst_decile"], list(REGISTRY)
CROPS = np.random.default_rng(0).integers(0, 255, (40, 3, 8, 8), dtype=np.uint8)
INTERVAL = {"mean": 0.02, "low": -0.01, "high": 0.03}


@pytest.fixture(autouse=True, scope="module")
def _style():
    with drawing.mpl.rc_context():
        plots.style()
        yield


def table(levels=(0.0, 0.5, 0.9), methods=("erm", "cid", "oracle"), **more) -> pd.DataFrame:
    """Both metrics of seen people at every level under every method, as a stage writes them."""
    rows = [
        {"test": "seen", "metric": metric, "level": level, "method": method} | INTERVAL | more
        for metric, level, method in itertools.product(METRICS, levels, methods)
    ]
    rows = pd.DataFrame(rows)
    return rows.assign(**{f"{name}_difference": rows[name] for name in INTERVAL})


def by(column, values, **more) -> pd.DataFrame:
    return pd.concat([table(levels=(0.9,), **more).assign(**{column: v}) for v in values])


def weights(levels=(0.0, 0.5, 0.9)) -> pd.DataFrame:
    rows = itertools.product(levels, ("erm", "cid"), (1, 5, 9))
    found = pd.DataFrame(rows, columns=["level", "method", "cell_size"])
    spread = np.where(found["method"] == "cid", 0.5, 0.0)
    return found.assign(mean=1.0, low=1 - spread, high=1 + spread)


def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"erm": rng.random(30), "cid": rng.random(30)})


def groups() -> pd.DataFrame:
    both = [table(levels=(0.9,)).assign(group=group, people=5) for group in ("a", "b", "gap")]
    return pd.concat(both).query("metric == 'accuracy'").assign(column="hair")


def posteriors(levels=(0.0, 0.9)) -> pd.DataFrame:
    rows = itertools.product(levels, range(2), ("kernel", "knn"))
    found = pd.DataFrame(rows, columns=["level", "seed", "estimator"])
    names = ("scale", "slope", "loss", "prior_loss", "true_loss")
    return found.assign(**dict.fromkeys(names, 0.3))


def factors() -> pd.DataFrame:
    rows = pd.DataFrame({"cell_size": [1, 5, 9], "factor": "rarity", "truth": 1.0, "n": 30})
    return rows.assign(**INTERVAL | {"low": 0.01})


def controls(trunks=("dlib-resnet",), methods=("erm", "cid", "oracle"), **more) -> tuple:
    """Gains of two proxies on every trunk, and their AUC."""
    parts = [
        by("proxy", ("nets/a.onnx@12", "random"), methods=methods, **more).assign(trunk=t)
        for t in trunks
    ]
    told = pd.DataFrame({"proxy": ["random", "nets/a.onnx@12"], "verification AUC": [0.5, 0.98]})
    return pd.concat(parts), pd.concat([told.assign(trunk=trunk) for trunk in trunks])


def audited(proxies=("as it is", "noise 0.4"), minority=0.7) -> tuple:
    """What an audit estimates, and with which proxy."""
    rows = itertools.product((0.0, 0.9), METHODS, ("minority", "balanced", "spread"))
    table = pd.DataFrame(rows, columns=["level", "method", "measure"]).assign(proxy="as it is")
    numbers = {"estimate": 0.8, "truth": minority, "plain": 0.9}
    told = {
        "level": 0.9,
        "auc": 0.9,
        "right_pairs": 0.25,
        "found": 0.8,
        "false": 0.1,
        "distrusted": [0.0, 1.0][: len(proxies)],
    }
    return table.assign(**numbers), pd.DataFrame({"proxy": proxies, **told})


def sets(levels=(0.0, 0.9)) -> pd.DataFrame:
    train = {"seed": 0, "part": "train", "row": range(0, 40, 2), "cid": 1.0, "oracle": 2.0}
    return pd.concat([pd.DataFrame(train).assign(level=level) for level in levels])


def idea(crops=CROPS, card=None, **more) -> Picture | Markdown:
    proxy = np.random.default_rng(0).normal(size=(40, 4))
    labels, identities = np.arange(40) // 2 % 2, np.repeat(list("abcd"), 10)
    return plots.idea(crops, card or {}, sets(**more), proxy, labels, identities, "smiling")


FIGURES = {
    "against_bias": lambda: plots.against_bias(table(), METRICS, "seen", METHODS),
    "difference_to_erm": lambda: plots.difference_to_erm(table(), METRICS, "seen", METHODS),
    "compare": lambda: plots.compare(table(levels=(0.0,)), METRICS, "seen", METHODS),
    "sensitivity": lambda: plots.sensitivity(table(levels=(0.0,)), METRICS, "seen", METHODS),
    "recovered": lambda: plots.recovered(table(), METRICS, "seen", ["cid", "jtt"], 0.9),
    "undefined": lambda: plots.recovered(table(mean=np.nan), METRICS, "seen", ["cid"], 0.9),
    "identity_distribution": lambda: plots.identity_distribution(people(), METHODS, 0.9),
    "by_group": lambda: plots.by_group(groups(), METHODS, 0.9),
    "weights_by_level": lambda: plots.weights_by_level(weights(), METHODS),
    "effective_sizes": lambda: plots.effective_sizes(table(), METHODS),
    "factors": lambda: plots.factors({"natural": factors()}, {"rarity": "1 / p(z)"}),
    "posteriors": lambda: plots.posteriors(posteriors()),
    "ablation": lambda: plots.ablation(by("value", [0.5, "auto"]), "tau", METRICS, METHODS),
    "ablations": lambda: plots.ablations(
        {"tau": by("value", [0.5, 1.0]), "self": by("value", [True, False])}, "accuracy", METHODS
    ),
    "ablations beside ERM": lambda: plots.ablations(
        {"weights.tau": by("value", [0.5, 1.0])},
        "accuracy",
        METHODS,
        {"weights.tau": by("value", [0.5, 1.0], methods=["erm"])},
    ),
    "controls": lambda: plots.controls(*controls(), "accuracy", METHODS),
    "one seed's controls": lambda: plots.controls(
        *controls(low=-np.inf, high=np.inf), "accuracy", METHODS
    ),
    "audited": lambda: plots.audited(*audited()),
    "audited with one proxy": lambda: plots.audited(*audited(["as it is"])),
    "breadth": lambda: plots.breadth(
        by("task", ["smiling", "mouth_open"], kind="longtail"), METRICS, METHODS
    ),
    "verification": lambda: plots.verification(
        pd.DataFrame(
            {"left": [0, 0.5], "right": [0.5, 1], "same": [0, 2], "different": [1.5, 0.5]}
        ),
        pd.DataFrame({"false_match_rate": [0, 0.1, 1], "true_match_rate": [0.3, 0.5, 1]}),
        0.9,
    ),
    "audit": lambda: plots.audit(
        pd.DataFrame({"class_0": [3, 9], "class_1": [9, 9], "usable": [False, True]}), "smiling"
    ),
    "attributes": lambda: plots.attribute_correlation(
        pd.DataFrame({"identity": list("aabb"), "smiling": [0, 1, 1, 1], "closed": [0, 0, 1, 0]}),
        ["smiling", "closed"],
    ),
    "demographics": lambda: plots.demographics(
        pd.DataFrame({"age_group": list("aab")}), ["age_group"]
    ),
    # One bias level, and one seed, whose intervals are unbounded.
    "one level": lambda: plots.against_bias(table(levels=(0.0,)), METRICS, "seen", METHODS),
    "one level's difference": lambda: plots.difference_to_erm(
        table(levels=(0.0,)), METRICS, "seen", METHODS
    ),
    "one level's weights": lambda: plots.weights_by_level(weights(levels=(0.0,)), METHODS),
    "one level's sizes": lambda: plots.effective_sizes(table(levels=(0.0,)), METHODS),
    "one seed": lambda: plots.against_bias(
        table(low=-np.inf, high=np.inf), METRICS, "seen", METHODS
    ),
    "one seed's gains": lambda: plots.ablation(
        by("value", ["all"], low=-np.inf, high=np.inf), "people", METRICS, METHODS
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_on_white(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    png = drawing.saved(figure, "png", drawing.used_area(figure))
    pixels = plots.plt.imread(io.BytesIO(png))
    assert (pixels[0, 0] == 1).all() and (pixels < 0.5).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: plots.sensitivity(table().iloc[:0], METRICS, "seen", METHODS), "no slope"),
        (
            lambda: plots.recovered(table().iloc[:0], METRICS, "seen", METHODS, 0.9),
            "oracle was not",
        ),
        (
            lambda: plots.compare(table(methods=["erm"]), METRICS, "seen", METHODS),
            "Only ERM was run",
        ),
        (lambda: plots.weights_by_level(weights(), ["erm"]), "the same weight"),
        (lambda: plots.posteriors(posteriors(levels=(0.0,))), "0.3 neighbours"),
        (lambda: plots.by_group(groups().iloc[:0], METHODS, 0.9), "no demographic groups"),
        (
            lambda: plots.controls(*controls(methods=["erm", "oracle"]), "accuracy", METHODS),
            "needs a proxy",
        ),
    ],
)
def test_where_there_is_nothing_to_draw_a_sentence_says_so(make, words):
    found = make()
    assert isinstance(found, Markdown) and words in found.data


def test_methods_that_were_not_run_are_not_drawn():
    figure = plots.compare(table(levels=(0.0,)), METRICS, "seen", METHODS)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["CID", "Oracle (true identities)"]


@pytest.mark.parametrize(
    "card, kind",
    [({}, Picture), ({"show_images": True}, Picture), ({"show_images": False}, Markdown)],
)
def test_the_card_decides_whether_photographs_are_shown(card, kind):
    for shown in (plots.face_grid(CROPS, [0, 1], card, columns=2), idea(card=card)):
        assert type(shown) is kind
        assert kind is Picture or "not reproduced" in shown.data


def test_without_crops_a_sentence_takes_the_place_of_photographs():
    for shown in (plots.face_grid(None, [0], {}, columns=2), idea(crops=None)):
        assert type(shown) is Markdown


def test_the_idea_is_drawn_at_one_level():
    assert type(idea(levels=(0.0,))) is Picture


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """What was displayed: pairs of a bundle and its metadata."""
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "display", lambda data, raw=False, metadata=None: found.append(
        (data if raw else data.data, metadata)))  # fmt: skip
    return found


def test_a_figure_is_written_and_displayed_with_its_caption(shown, tmp_path):
    for _ in range(2):
        figure = plots.difference_to_erm(table(), METRICS, "seen", METHODS)
        plots.show(figure, "gain-seen", "Look *here*.", "Two curves rise.")
        files = {path.name: path.read_bytes() for path in plots.FIGURES.iterdir()}
        assert sorted(files) == ["gain-seen.png", "gain-seen.svg"]
        shown.append(files)
    picture, caption, first = shown[:3]
    assert shown[3:] == [picture, caption, first]  # the same bytes again
    assert set(picture[0]) == {"image/png", "text/plain"}
    about = {"name": "gain-seen", "caption": "Look *here*.", "alt": "Two curves rise."}
    assert picture[1] == {"figure": about}
    assert caption[0]["text/markdown"] == "Look *here*."
    assert caption[1] == {"caption": "gain-seen"}
    plots.show(plots.posteriors(posteriors()), "posteriors", "c", "a")
    assert not (plots.FIGURES / "posteriors.png").exists()


def test_a_picture_of_faces_has_text_as_text_and_every_face_as_a_jpeg(shown):
    for _ in range(2):
        picture = plots.face_grid(CROPS, [0, 1], {}, columns=2, row_titles=["person 7"])
        plots.show(picture, "faces", "Faces.", "Two faces.")
        (file,) = plots.FIGURES.iterdir()
        shown.append(file.read_bytes())
    assert file.name == "faces.svg" and shown[:3] == shown[3:]
    svg = shown[2].decode()
    assert svg.count("data:image/jpeg;base64,") == 2 and "image/png" not in svg
    assert ">person 7</text>" in svg
    assert set(shown[0][0]) == {"image/jpeg", "text/plain"}
    assert shown[0][1]["figure"]["faces"] is True


def test_photographs_that_are_not_shown_are_mentioned_by_one_section_and_not_by_every_figure(shown):
    plots.show(plots.PRIVATE, "private", "Faces.", "Two faces.")
    assert shown == [] and not plots.FIGURES.exists()


def test_markdown_is_displayed_under_the_summary_that_folds_it(shown):
    plots.show_folded("The rest", "| a |\n|---|\n")
    ((bundle, metadata),) = shown
    assert bundle["text/markdown"] == "**The rest**\n\n| a |\n|---|\n"
    assert metadata == {"fold": "The rest"}


def test_a_method_has_one_look_even_if_nobody_chose_its_colour():
    assert palette.colour("cid") == REGISTRY["cid"].colour
    red, green, blue = matplotlib.colors.to_rgb(palette.colour("new-method"))
    assert red == green == blue, "grey"
    assert palette.marker("new-method") == "o"
    strong = [palette.marker(method) for method in plots.STRONG]
    assert len(set(strong)) == len(strong), "in print, some colours are one grey"
    figure = plots.compare(
        table(levels=(0.0,), methods=["erm", "new-method"]), METRICS, "seen", ["new-method"]
    )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["new-method"]


def test_titles_of_ablations_are_words():
    assert (
        plots.setting_title("weights.keep_class_direction") == "class direction kept in the proxy"
    )
    assert plots.setting_title("train.robust.tilt_of_all") == "tilt of all"


def test_a_metric_or_panel_without_a_number_is_left_out():
    known = by("task", ["smiling"], kind="correlation")
    unknown = known.assign(mean_difference=np.nan)
    tail = known[known["metric"] == "accuracy"].assign(kind="longtail")
    figure = plots.breadth(
        pd.concat([known, tail, unknown.assign(metric="identity_sd")]),
        [*METRICS, "identity_sd"],
        METHODS,
    )
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.axison]
    assert [text.partition(":")[0] for text in titles] == ["correlation"] * 2 + ["longtail"]


def test_no_label_of_an_axis_lies_under_the_legend():
    two = {"weights.tau": by("value", [0.5, 1.0]), "train.l2": by("value", [1.0, 2.0])}
    figure = plots.ablations(two, "accuracy", METHODS)
    drawing.used_area(figure)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    for axis in figure.axes:
        assert not box.overlaps(axis.yaxis.label.get_window_extent())


def test_marks_of_many_methods_stay_in_their_panel():
    many = [method for method in METHODS if method != "erm"][:15]
    one = {"labels.wrong": by("value", [0.0, 0.05, 0.1], methods=["erm", *many])}
    (axis,) = plots.ablations(one, "accuracy", METHODS).axes
    low, high = axis.get_xlim()
    lines = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 3]
    assert len(lines) >= len(many)
    for line in lines:
        assert low < min(line) and max(line) < high
        assert (
            np.abs(np.asarray(line) - [0, 1, 2]) < 0.5
        ).all()  # nearer to its value than to another


def test_every_one_of_many_attributes_is_named_in_letters_that_can_be_read():
    labels = np.random.default_rng(0).integers(0, 2, (60, 40))
    names = [f"attribute_{k}" for k in range(40)]
    frame = pd.DataFrame(labels, columns=names).assign(identity=np.arange(60) // 6)
    axis = plots.attribute_correlation(frame, names).axes[0]
    assert len(axis.get_yticklabels()) == 40 and len(axis.get_xticklabels()) == 41
    page = 1216 / axis.figure.get_figwidth() / 72  # pixels of a page's widest figure per point
    assert axis.get_yticklabels()[0].get_fontsize() * page > 10


def test_the_gain_of_a_study_of_one_level_is_a_list():
    many, one = (
        plots.difference_to_erm(table(levels=levels), METRICS, "seen", METHODS)
        for levels in ((0.0, 0.9), (0.9,))
    )
    assert many.axes[0].get_xlabel() == "bias level of the training set"
    names = [label.get_text() for label in one.axes[0].get_yticklabels()]
    assert names == ["CID", "Oracle (true identities)"]


def test_of_a_set_too_large_to_show_the_rarer_label_is_shown(monkeypatch):
    """Twenty-five images of a person, one of them of the rarer label, in a row of twenty."""
    proxy, labels = np.eye(40, dtype=np.float32), np.arange(40) == 24
    rows = pd.DataFrame({"row": range(25), "part": "train", "seed": 0, "cid": 1.0})
    sets = pd.concat([rows.assign(level=level) for level in (0.0, 0.5, 0.9)])
    seen = []
    monkeypatch.setattr(plots, "_weights_above", lambda axis, x, part, *a: seen.append(part))
    monkeypatch.setattr(plots, "add_legend", lambda *a, **k: None)
    plots.idea(CROPS, {}, sets, proxy, labels.astype(int), np.arange(40) // 25, "smiling", "cid")
    assert [len(part) for part in seen] == [20] * 3
    assert all(part["label"].sum() == 1 for part in seen)


def test_controls_stand_below_each_other_with_the_oracle_as_a_band():
    """What tells people apart best comes first; a panel a trunk, narrow enough for a column of text."""
    figure = plots.controls(*controls(["dlib-resnet", "pixels"]), "accuracy", METHODS)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Heads on dlib-resnet",
        "Heads on pixels",
    ]
    assert figure.get_figwidth() < 5.5
    for axis in figure.axes:
        assert [label.get_text() for label in axis.get_yticklabels()] == ["a.onnx", "random"]
        assert [text.get_text() for text in axis.texts] == ["0.98", "0.50", "AUC"]
        (band,) = [patch for patch in axis.patches if patch.get_width() > 0]
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-1, 3))
        assert {line.get_label() for line in axis.lines} >= {"CID", "Oracle (true identities)"}


def test_right_pairs_stand_beside_the_auc_of_every_proxy_and_on_the_roc_curve():
    gains, told = controls()
    figure = plots.controls(gains, told.assign(**{"right pairs": [0.01, 0.7]}), "accuracy", METHODS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.98", "0.50", "AUC", "0.70", "0.01", "right"]
    edges = {"left": [-1.0, 0.0], "right": [0.0, 1.0], "same": [0.2, 0.8], "different": [0.8, 0.2]}
    roc = pd.DataFrame({"false_match_rate": [0.001, 1.0], "true_match_rate": [0.3, 1.0]})
    figure = plots.verification(pd.DataFrame(edges), roc, 0.877, 0.29)
    curve = figure.axes[1]
    assert curve.get_title(loc="left") == "Verification ROC, area 0.8770, right pairs 29.0%"
    assert curve.lines[-1].get_xydata().tolist() == [[0.001, 0.29]]
