"""Figures, one function each, in one style: colour-blind-safe, one colour a method everywhere.

A function takes tables as the stages write them, of the function in brackets (where no module is named,
of :mod:`study.results.inference`). It returns a matplotlib figure, or a sentence where there is nothing
to draw or photographs must not be shown. Of the methods named it draws those that the table has, of the
metrics one panel each. :func:`show` writes a figure for the paper and displays it.
"""

import base64
import io
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox
from pandas import DataFrame

from study import store
from study.methods.registry import METHODS
from study.results.metrics import METRICS
from study.results.tables import STRONG
from study.results.titles import network_title, without_identities

Drawn = Figure | Markdown  # a sentence where there is nothing to draw

FIGURES = Path("build/paper/figures")
LAID_OUT = {"figure.constrained_layout.use": False}  # of a figure that will not move any more
README_PNG = {"against-bias-seen"}  # code hosts show a PNG in a README at any size

# Okabe & Ito's colour-blind-safe palette. The method under study is the strong one; methods it is
# compared with stand back.
COLOURS = {
    "erm": "#4d4d4d",
    "balanced": "#8c8c8c",
    "inverse-density": "#cc79a7",
    "cid": "#d55e00",
    "cid-power": "#8c3b00",
    "cid-kernel": "#e69f00",
    "cid-knn": "#56b4e9",
    "surprise": "#0072b2",
    # Paul Tol's muted palette for what they are compared with.
    "cvar-dro": "#999933",
    "kl-dro": "#ddcc77",
    "jtt": "#882255",
    "lff": "#aa4499",
    "cluster-dro": "#332288",
    "afr": "#88ccee",
    "selective": "#6699cc",
    "xrm": "#cc6677",
    "ula": "#aa7744",
    "erase": "#77aadd",
    "oracle": "#009e73",
    "oracle-tempered": "#66c2a5",
    "group-dro": "#117733",
    "last-layer": "#44aa99",
}

OTHER, ACCENT, QUIET, TEXT = "#0072b2", "#d55e00", "#9a9a9a", "#555555"

TESTS = {"seen": "Seen people, held-out images", "unseen": "People never seen in training"}
PRIVATE = Markdown("*The photographs of this data set are of real people and not shown.*")


def style() -> None:
    """Set the figure style; call once at the top of a notebook."""
    mpl.rc(("figure", "savefig"), dpi=110, facecolor="white")  # legible on a dark page too
    mpl.rc("figure.constrained_layout", use=True)
    # The first ships with matplotlib; a reader's machine has it or the second, which is as wide.
    mpl.rc("font", **{"family": "sans-serif", "sans-serif": ["DejaVu Sans", "Verdana"], "size": 10})
    mpl.rc("axes", edgecolor=TEXT, labelsize=9.5)
    mpl.rc("axes", titlesize=10.5, titleweight="bold", titlelocation="left")
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc(("xtick", "ytick"), color=TEXT, labelcolor="black", labelsize=9)
    mpl.rc("lines", solid_capstyle="butt")
    mpl.rc("legend", frameon=False, fontsize=9)


def show(figure: Figure | Image | Markdown, name: str, caption: str, alt: str) -> None:
    """Write a figure into :data:`FIGURES` and display it with its caption.

    A matplotlib figure is written as ``<name>.svg`` (and ``.png``, if in :data:`README_PNG`), a
    picture as ``<name>.jpg``, with the same bytes for the same data; a sentence is only displayed.
    The caption says in Markdown what to see; ``alt`` says what is shown, for who cannot see it.
    """
    if isinstance(figure, Markdown):
        display(figure)
        return
    if isinstance(figure, Image):
        kind, data = "image/jpeg", figure.data
        store.write(FIGURES / f"{name}.jpg", lambda file: file.write(data))
    else:
        area = _area(figure)
        kind, data, svg = "image/png", _png(figure, area), _svg(figure, area)
        store.write(FIGURES / f"{name}.svg", lambda file: file.write(svg))
        if name in README_PNG:
            png = _png(figure, area, dpi=200)
            store.write(FIGURES / f"{name}.png", lambda file: file.write(png))
    about = {"name": name, "caption": caption, "alt": alt}
    picture = {kind: base64.b64encode(data).decode(), "text/plain": alt}
    display(picture, raw=True, metadata={"figure": about})
    display({"text/markdown": caption, "text/plain": caption}, raw=True, metadata={"caption": name})


def title(method: str) -> str:
    """A method's name in figures; the oracle is marked, as it alone saw true identities."""
    return METHODS[method].title + (" (true identities)" if _told(method) else "")


def face_grid(
    crops, rows, card: dict, *, columns: int, captions=None, row_titles=None
) -> Image | Markdown:
    """Faces in a grid, read row by row, as a JPEG: a tenth of a PNG's size for photographs.

    ``crops``, uint8 of shape (n, 3, side, side), are of the whole data set, None where none are kept;
    ``rows`` are shown, unless ``show_images`` of the data card is false. ``captions`` stand under each
    face, ``row_titles`` left of each row.
    """
    if crops is None or not card.get("show_images", True):
        return PRIVATE
    high = 1.04 if captions is None else 1.22  # of a line, by the side of a face
    lines = -(-len(rows) // columns)
    # One axis for all faces: an axis each takes ten times as long.
    figure, axis = plt.subplots(figsize=(0.72 * columns, 0.72 * lines * high), layout="none")
    for k, row in enumerate(rows):
        x, y = 1.04 * (k % columns), -high * (k // columns)
        axis.imshow(np.moveaxis(crops[row], 0, -1), extent=(x, x + 1, y, y + 1))
        if captions is not None:
            axis.text(x + 0.5, y - 0.03, captions[k], fontsize=7.5, ha="center", va="top")
    for line, text in enumerate(row_titles or []):
        axis.text(-0.08, 0.5 - high * line, text, fontsize=8, ha="right", va="center")
    axis.set(xlim=(0, 1.04 * columns - 0.04), ylim=(1 - high * lines, 1))
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return _jpeg(figure)


def idea(
    crops, card: dict, sets: DataFrame, proxy, labels, identities, task: str, method: str = "cid"
) -> Image | Markdown:
    """The study in pictures: a person's faces, their neighbours, and their weights as bias grows.

    ``crops`` and ``card`` are as in :func:`face_grid`; ``sets`` of all levels
    (:func:`study.experiment.runs.weigh_sets`), of which the first seed is drawn; ``proxy``, unit vectors
    (n, d), and ``labels`` (of ``task``) and ``identities``, (n,), of the whole data set. Weights are
    ``method``'s and, where it took part, the oracle's.
    """
    if crops is None or not card.get("show_images", True):
        return PRIVATE
    train = sets[(sets["seed"] == sets["seed"].min()) & (sets["part"] == "train")]
    train = train.assign(person=identities[train["row"]], label=labels[train["row"]])
    # Somebody whose training sets keep an image of the rarer label for as long as anybody's.
    mixed = train.groupby(["level", "person"])["label"].nunique()
    person = mixed.groupby("person").sum().idxmax()
    parts = dict(tuple(train[train["person"] == person].groupby("level")))
    shown = sorted({list(parts)[k] for k in (0, len(parts) // 2, -1)})
    columns = min(20, max(len(parts[level]) for level in shown))
    top = max(parts[level][method].max() for level in shown)

    of_one = np.flatnonzero(identities == person)
    of_one = of_one[np.linspace(0, len(of_one) - 1, min(columns, len(of_one))).astype(int)]
    near = np.argsort(-(proxy @ proxy[of_one[0]]), kind="stable")[1 : columns + 1]
    same = (identities[near] == person).sum()
    nearest = f"Nearest to the first face\nin the proxy, of all:\n{same} of {len(near)} are theirs"
    rows = [("One person", of_one, None, (0, 1.02)), (nearest, near, None, (0, 1.02))]
    for level in shown:
        part = parts[level]
        rarer = part.groupby("label")["row"].transform(
            "size"
        )  # what does not fit is of the other label
        part = part.loc[rarer.sort_values(kind="stable").index[:columns]]
        part = part.sort_values(["label", "row"])
        tallest = min(part[[m for m in (method, "oracle") if m in part]].max(axis=None) / top, 1.1)
        span = (-0.22, 1.3 + 0.95 * tallest)
        rows.append((f"Their training set\nat bias {level:g}", part["row"].to_numpy(), part, span))
    heights = [1.12 * (high - low) for *_, (low, high) in rows]
    size = (11, 11 / (columns + 3.2) * sum(heights))
    figure, axes = plt.subplots(len(rows), 1, figsize=size, height_ratios=heights, layout="none")
    for axis, (text, row, part, span) in zip(axes, rows, strict=True):
        x = np.arange(len(row), dtype=float)
        if part is not None:
            x += 0.35 * (part["label"].to_numpy() > part["label"].min())
            _weights_above(axis, x, part, method, top, task)
        for at, index in zip(x, row, strict=True):
            axis.imshow(np.moveaxis(crops[index], 0, -1), extent=(at, at + 0.94, 0, 0.94))
            if identities[index] != person:
                frame = {"fill": False, "ec": ACCENT, "lw": 1.5, "ls": ":"}
                axis.add_patch(plt.Rectangle((at, 0), 0.94, 0.94, label="somebody else", **frame))
        axis.set(xlim=(0, columns + 0.4), ylim=span, aspect="equal")
        axis.axis("off")
        axis.text(-0.25, 0.47, text, ha="right", va="center", fontsize=9)
    _legend(figure, loc="lower center", reverse=True)
    figure.subplots_adjust(left=0.14, right=0.99, top=0.99, bottom=0.07, hspace=0.12)
    return _jpeg(figure, dpi=110)


def _weights_above(axis, x, part: DataFrame, method: str, top: float, task: str) -> None:
    """Weights of a training set's images over their faces, and what is under them."""
    scale, colour = 0.95 / top, COLOURS["oracle"]
    bars = {"bottom": 1.08, "color": COLOURS[method], "label": f"weight, {title(method)}"}
    axis.bar(x + 0.47, part[method] * scale, 0.7, **bars)
    line = {"color": colour, "lw": 1.6, "label": f"weight, {title('oracle')}"}
    for at, weight in zip(x, part.get("oracle", []), strict=False):
        high = 1.08 + min(weight, 1.1 * top) * scale
        axis.hlines(high, at + 0.08, at + 0.86, **line)
        if weight > 1.1 * top:  # beyond the picture
            where = {"ha": "center", "va": "bottom", "fontsize": 7.5, "color": colour}
            axis.text(at + 0.47, high, f"↑ {weight:.1f}", **where)
    for value, own in zip(*np.unique(part["label"], return_counts=True), strict=True):
        first = x[part["label"].to_numpy() == value][0]
        axis.text(first, -0.05, f"{task} = {value}: {own}", fontsize=8, va="top")


def audit(people: DataFrame, attribute: str) -> Figure:
    """Images per person and label (:func:`study.experiment.design.usable_identities`)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    images = people["class_0"] + people["class_1"]
    low, high = images.min(), images.max()
    step = max(1, round((high - low) / 40))
    left.hist(images, bins=np.arange(low - 0.5, high + step + 0.5, step), color=OTHER, rwidth=0.9)
    left.set_xlim(low - 3, high + 3)  # whole numbers on the axis, also where all have the same
    left.set(title="Images per person", xlabel="images", ylabel="people")

    spots = people.groupby(["class_0", "class_1", "usable"]).size().reset_index(name="people")
    for usable, colour, label in ((True, OTHER, "used"), (False, QUIET, "excluded")):
        part = spots[spots["usable"] == usable]
        if len(part):
            size = (18 + 5 * part["people"]).clip(upper=250)
            right.scatter(
                part["class_0"], part["class_1"], s=size, color=colour, alpha=0.8,
                lw=0, label=f"{label}: {part['people'].sum()} people",
            )  # fmt: skip
    x, y = (f"images with {attribute} = {value}" for value in (0, 1))
    right.set(title="Label balance inside people", xlabel=x, ylabel=y)
    right.set(xlim=(0, None), ylim=(0, None))
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for handle in right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0)).legend_handles:
        handle.set_sizes([30])  # whatever the size of the first spot
    return _done(figure)


def attribute_correlation(frame: DataFrame, attributes: list[str]) -> Figure:
    """Correlation of the 0/1 attributes over images, and of each with identity.

    Dependence on identity is the share of a label's variance that lies between people (eta squared);
    it is 0 when everyone has the same share of positive images.
    """
    import seaborn as sns  # late: it takes a second to import, and only this figure needs it

    size = max(3.2, 0.75 * len(attributes) + 1.4)
    figure, axis = plt.subplots(figsize=(size + 1, size * 0.8))
    table = frame[attributes].corr()
    means = frame.groupby("identity")[attributes].transform("mean")
    table["identity (η²)"] = means.var(ddof=0) / frame[attributes].var(ddof=0)
    sns.heatmap(
        table.rename(index=_words, columns=_words), vmin=-1, vmax=1, cmap="vlag", square=True,
        annot=len(attributes) <= 10, fmt=".2f", annot_kws={"fontsize": 8}, linewidths=1,
        cbar_kws={"shrink": 0.7, "label": "correlation"}, ax=axis,
    )  # fmt: skip
    axis.tick_params(axis="x", length=0, rotation=35)
    axis.tick_params(axis="y", length=0, rotation=0)
    plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    return _done(figure)


def demographics(people: DataFrame, columns: list[str]) -> Figure:
    """People per demographic group; ``people`` has one row an identity."""
    figure, axes = plt.subplots(1, len(columns), figsize=(2.8 * len(columns), 2.6), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        counts = people[column].value_counts().sort_index()
        bars = axis.barh(counts.index.astype(str), counts, color=OTHER, height=0.7)
        axis.bar_label(bars, padding=3, fontsize=8)
        axis.set(title=_words(column), xlabel="people")
        axis.margins(x=0.18)
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
    return _done(figure)


def verification(similarity: DataFrame, roc: DataFrame, auc: float) -> Figure:
    """Similarity of same-person and different-people pairs, and the ROC curve.

    ``similarity`` has the ``left`` and ``right`` edge of bins of cosine similarity and the densities
    ``same`` and ``different`` of pairs; ``roc`` has ``false_match_rate`` and ``true_match_rate``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    edges = np.append(similarity["left"], similarity["right"].iloc[-1])
    pairs = {"different": ("different people", QUIET), "same": ("same person", ACCENT)}
    for column, (name, colour) in pairs.items():
        density = similarity[column].to_numpy()
        left.stairs(density, edges, fill=True, color=colour, alpha=0.75)
        peak = density.argmax()
        left.annotate(name, (edges[peak : peak + 2].mean(), density[peak]), (0, 3), ha="center",
                      textcoords="offset points", color=colour, fontweight="bold")  # fmt: skip
    left.margins(y=0.12)
    left.set_ylim(bottom=0)
    left.set(title="Similarity of pairs", xlabel="cosine similarity", ylabel="density", yticks=[])
    drawn = roc[roc["false_match_rate"] > 0]
    right.plot(drawn["false_match_rate"], drawn["true_match_rate"], color=ACCENT, lw=2)
    right.set(title=f"Verification ROC, area {auc:.4f}", xscale="log", ylim=(0, 1.02),
              xlabel="false match rate (log scale)", ylabel="true match rate")  # fmt: skip
    right.grid(alpha=0.3)
    return _done(figure)


def weights_by_level(table: DataFrame, methods: list[str]) -> Drawn:
    """Weight of an image by the true size of its (person, class) cell (`metrics.weights_summary`).

    Methods that weigh all images by 1 are left out.
    """
    apart = (table[["mean", "low", "high"]] - 1).abs().max(axis=1).groupby(table["method"]).max()
    methods = [m for m in _present(table, methods) if apart[m] > 1e-3]
    if not methods:
        return Markdown("*All methods weigh all images alike.*")
    levels = np.unique(table["level"])
    figure, axes = _panels(len(levels), 5, 2.35, 3.0, sharex=True, sharey=True)
    for axis, level in zip(axes.flat, levels, strict=False):
        for method in methods:
            part = table[(table["level"] == level) & (table["method"] == method)]
            _band(axis, part["cell_size"], part, method, "o-", alpha=0.15, ms=3)
        axis.axhline(1, color=QUIET, lw=0.8, ls=":", zorder=0)
        _log_numbers(axis)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.set(title=f"bias {level:g}", xlabel="size of the (person, class) cell")
    figure.supylabel("weight (mean 1, log scale)", fontsize=9.5)
    return _done(_legend(figure))


def effective_sizes(table: DataFrame, methods: list[str]) -> Figure:
    """Effective sample size of uneven weights, as a share of n (`metrics.weights_summary`)."""
    figure, axis = plt.subplots(figsize=(7, 3.6))
    uneven = set(table.loc[table["mean"] < 0.9995, "method"]) | {"erm"}
    ends = [_line(axis, table, m) for m in _present(table, methods) if m in uneven]
    _level_axis(axis, table)
    axis.set(ylim=(0, 1.05), title="Effective sample size", ylabel="share of the training images")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _direct_labels(axis, ends)
    return _done(figure)


def against_bias(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Metrics against the bias level, with 95 % bands (`summary`)."""
    return _curves(table, metrics, test, methods, zero=False)


def front(summary, difference, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """:func:`against_bias`; of a study of one level, whose wide intervals would hide what is paired,
    :func:`difference_to_erm`."""
    if summary["level"].nunique() > 1:
        return against_bias(summary, metrics, test, methods)
    return difference_to_erm(difference, metrics, test, methods)


def difference_to_erm(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Paired differences to ERM against the bias level, with 95 % bands (`difference`)."""
    return _curves(table, metrics, test, _but_erm(methods), zero=True)


def _curves(table, metrics, test, methods, zero) -> Drawn:
    table = table[table["test"] == test]
    levels = np.unique(table["level"])
    if len(levels) == 1:  # no curve: intervals below each other
        what = "points over ERM" if zero else "percent"
        label = f"{what}, bias {levels[0]:g}: {TESTS[test].lower()}"
        return _forest(table, metrics, methods, label, "Only ERM was run.", zero=zero)
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.4 * len(metrics), 3.9), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        rows = table[table["metric"] == metric]
        ends = [_line(axis, rows, method) for method in _present(rows, methods)]
        axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 2):g} %")
        if zero:
            axis.yaxis.set_major_formatter(_points)
            axis.hlines(0, levels.min(), levels.max(), color=COLOURS["erm"], lw=1.2)
            ends.append((0.0, levels.max(), "ERM", COLOURS["erm"]))
            axis.set_ylabel("percentage points")
        _level_axis(axis, rows)
        _direct_labels(axis, ends)
        axis.set_title(METRICS[metric].title + (" − ERM" if zero else ""))
    figure.suptitle(TESTS[test], x=0.01, ha="left", fontsize=10, color=TEXT)
    figure.get_layout_engine().set(wspace=0.06)
    return _done(figure)


def identity_distribution(people: DataFrame, methods: list[str], level: float) -> Figure:
    """Accuracy of every person, averaged over seeds, sorted; and each person's gain over ERM.

    ``people`` has one row a person and one column a method: the mean over seeds that saw them.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9))
    rank, erm = np.arange(1, len(people) + 1), people["erm"]
    methods = [m for m in methods if m in people]
    for method in methods:
        left.plot(rank, np.sort(people[method]), lw=2, color=COLOURS[method], label=title(method))
    for method in _but_erm(methods):
        colour = COLOURS[method]
        gain = 100 * (people[method] - erm)
        right.scatter(erm, gain, s=13, color=colour, alpha=0.5, lw=0)
        if np.ptp(erm) > 0:
            slope, cut = np.polyfit(erm, gain, 1)
            ends = np.array([erm.min(), erm.max()])
            right.plot(ends, cut + slope * ends, color=colour, lw=2)
    right.axhline(0, color=COLOURS["erm"], lw=1.2)
    for axis in (left.yaxis, right.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set(title=f"Accuracy person by person, bias {level:g}", xlabel="people, worst first",
             ylabel="accuracy")  # fmt: skip
    right.set(title="Who gains", xlabel="the person's accuracy under ERM",
              ylabel="gain over ERM (points)")  # fmt: skip
    return _done(_legend(figure))


def sensitivity(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Slope over the bias level with its interval; nearer 0 is less sensitive (`sensitivity`)."""
    nothing = "One bias level only: there is no slope over the bias."
    label = "change of the metric from bias 0 to 1 (points)"
    return _forest(table[table["test"] == test], metrics, methods, label, nothing)


def recovered(
    table: DataFrame, metrics: list[str], test: str, methods: list[str], level: float
) -> Drawn:
    """Share of the oracle's gain over ERM that methods recover (`oracle_gap_recovered`)."""
    rows = table[(table["test"] == test) & (table["level"] == level)]
    nothing = "The oracle was not run: there is no gain of it to recover."
    label = f"share of the oracle's gain over ERM at bias {level:g} (0 = ERM, 1 = oracle)"
    return _forest(rows, metrics, methods, label, nothing, scale=1)


def compare(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Gain over ERM, mean over the bias range; best of each kind first (`area`).

    Methods that saw true identities stand below the others and have squares.
    """
    rows = table[(table["test"] == test) & (table["method"] != "erm")]
    gain = rows[rows["metric"] == metrics[0]].set_index("method")["mean_difference"]
    methods = sorted(_present(rows, methods), key=lambda method: (_told(method), -gain[method]))
    nothing = "Only ERM was run: there is nothing to compare it with."
    label = "points over ERM, mean over the bias range"
    return _forest(rows, metrics, methods, label, nothing, suffix="_difference")


def _forest(rows, metrics, methods, label, nothing, *, suffix="", scale=100, zero=True) -> Drawn:
    """Intervals of methods below each other, one panel a metric; a sentence where there is none."""
    methods = _present(rows, methods)
    if not methods:
        return Markdown(f"*{nothing}*")
    size = (3.6 * len(metrics) + 2.6, 0.3 * len(methods) + 1.1)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, squeeze=False, sharey=True)
    told = [_told(method) for method in methods]
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = rows[rows["metric"] == metric].set_index("method")
        if zero:
            axis.axvline(0, color=COLOURS["erm"], lw=1)
        for y, method in enumerate(methods):
            _intervals(axis, y, part.loc[[method]], method, suffix=suffix, scale=scale)
            if not np.isfinite(part.loc[method, f"mean{suffix}"]):
                note = "undefined: no clear gain of the oracle"
                axis.annotate(note, (0, y), (4, 0), textcoords="offset points", va="center",
                              fontsize=8, color=TEXT)  # fmt: skip
        if told == sorted(told) and any(told) and not all(told):
            axis.axhline(told.index(True) - 0.5, color=QUIET, lw=0.8, ls=":")
        _listed(axis, [title(method) for method in methods])
        axis.set_title(METRICS[metric].title)
    figure.supxlabel(label, fontsize=9.5)
    return _done(figure)


def factors(tables: dict[str, DataFrame], columns: dict[str, str]) -> Figure:
    """Each factor of the weights, and the true one, by the size of the (person, class) cell.

    Tables (`variations.factors`) by the title of a panel row; titles of panels by factor.
    """
    figure, axes = plt.subplots(
        len(tables), len(columns), figsize=(2.75 * len(columns), 2.6 * len(tables) + 0.3),
        sharex="row", sharey="row", squeeze=False,
    )  # fmt: skip
    for row, (kind, table) in zip(axes, tables.items(), strict=True):
        for axis, (factor, name) in zip(row, columns.items(), strict=True):
            part = table[table["factor"] == factor].sort_values("cell_size")
            size, truth = part["cell_size"], part["truth"]
            axis.plot(size, truth, "--", color=COLOURS["oracle"], lw=1.8)
            axis.fill_between(size, part["low"], part["high"], color=OTHER, alpha=0.15, lw=0)
            axis.plot(size, part["mean"], "o-", ms=3, color=OTHER)
            _log_numbers(axis)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if axis in axes[0]:
                axis.set_title(name, fontsize=9.5)
            if len(part):
                axis.annotate("truth", (size.iloc[0], truth.iloc[0]), (6, 4), fontsize=8.5,
                              textcoords="offset points", color=COLOURS["oracle"],
                              fontweight="bold")  # fmt: skip
        row[0].set_ylabel(f"{kind}\nfactor (mean 1, log scale)", fontsize=9)
    figure.supxlabel("training images of the same person and class", fontsize=9.5)
    return _done(figure)


def posteriors(table: DataFrame) -> Figure:
    """The likeliest posteriors at each bias level, and how well they fit (`variations.posteriors`)."""
    figure, axes = plt.subplots(1, 4, figsize=(11.5, 2.9))
    axes[3].axhline(1, color=QUIET, lw=0.8, ls=":")
    mean = table.groupby(["estimator", "level"]).mean(numeric_only=True)
    one = table["level"].nunique() == 1
    knn = ("k-NN", mean.loc["knn"], COLOURS["cid-knn"], "o-")
    kernel = ("kernel", mean.loc["kernel"], COLOURS["cid-kernel"], "o-")
    prior = ("prior", mean.loc["kernel"], QUIET, "s" if one else ":")
    truth = ("truth", mean.loc["kernel"], COLOURS["oracle"], "s" if one else "--")
    losses = [(knn, "loss"), (kernel, "loss"), (prior, "prior_loss"), (truth, "true_loss")]
    panels = {
        "Loss of the posterior (nats)": losses,
        "Neighbours k": [(knn, "scale")],
        "Kernel width τ": [(kernel, "scale")],
        "Exponent of the odds": [(knn, "slope"), (kernel, "slope")],
    }
    for axis, (heading, lines) in zip(axes, panels.items(), strict=True):
        ends = []
        for (name, part, colour, form), column in lines:
            axis.plot(part.index, part[column], form, ms=4, color=colour, lw=1.6)
            ends.append((part[column].iloc[-1], part.index[-1], name, colour))
        axis.set_title(heading, fontsize=9.5)
        axis.set_ylim(bottom=0)
        axis.margins(x=0.08)
        _level_axis(axis, table)
        _direct_labels(axis, ends if len(ends) > 1 else [])
    return _done(figure)


def ablation(table: DataFrame, setting: str, metrics: list[str], methods: list[str]) -> Figure:
    """Gain over ERM on seen people for every ``value`` of a setting (`difference`)."""
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 3.5), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        _varied(axis, table, metric, methods)
        axis.set(xlabel=setting, title=f"{METRICS[metric].title} − ERM")
    axes[0, 0].set_ylabel("percentage points")
    return _done(_legend(figure))


def ablations(tables: dict[str, DataFrame], metric: str, methods: list[str]) -> Figure:
    """As :func:`ablation`, tables by setting: a small panel each, one scale a row."""
    figure, axes = _panels(len(tables), 4, 2.8, 2.3, sharey="row")
    for axis, (setting, table) in zip(axes.flat, tables.items(), strict=False):
        _varied(axis, table, metric, methods, small=True)
        axis.set_title(_words(setting), fontsize=9.5)
    figure.supylabel(f"{METRICS[metric].title} − ERM (points)", fontsize=9.5)
    return _done(_legend(figure))


def _varied(axis, table, metric, methods, small: bool = False) -> None:
    """Intervals of the gain over ERM for every value of a setting."""
    rows = table[(table["test"] == "seen") & (table["metric"] == metric)].set_index("value")
    values = rows.index.unique()
    axis.axhline(0, color=COLOURS["erm"], lw=1.2)
    at, size = np.arange(len(values)), 3.5 if small else 4.5
    _beside(axis, at, 0.13, rows, values, _but_erm(methods), upright=True, size=size)
    names = [_value(v) for v in values]
    axis.set_xticks(at, names)
    axis.set_xlim(-0.5, len(values) - 0.5)
    if max(map(len, names)) > 7 or sum(map(len, names)) > (26 if small else 60):
        plt.setp(axis.get_xticklabels(), rotation=25, ha="right", rotation_mode="anchor")
    axis.grid(axis="y", alpha=0.25)


def breadth(table: DataFrame, metrics: list[str], methods: list[str]) -> Figure:
    """Gain over ERM on seen people, by ``task`` and ``kind`` of bias (`area`)."""
    table = table[table["test"] == "seen"]
    kinds, tasks = table["kind"].unique(), table["task"].unique()
    figure, axes = plt.subplots(
        len(kinds), len(metrics), squeeze=False, sharex="col", sharey=True,
        figsize=(4.8 * len(metrics), len(kinds) * (0.55 * len(tasks) + 0.6) + 0.7),
    )  # fmt: skip
    for row, kind in zip(axes, kinds, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            axis.axvline(0, color=COLOURS["erm"], lw=1.2)
            rows = table[(table["kind"] == kind) & (table["metric"] == metric)].set_index("task")
            at = np.arange(len(tasks))
            _beside(axis, at, 0.2, rows, tasks, _but_erm(methods), suffix="_difference")
            _listed(axis, [_words(task) for task in tasks])
            axis.set_title(f"{kind}: {METRICS[metric].title.lower()} − ERM")
    for axis in axes[-1]:
        axis.set_xlabel("points over ERM, mean over the bias range")
    return _done(_legend(figure))


def controls(table: DataFrame, told: DataFrame, metric: str, methods: list[str]) -> Drawn:
    """Gain over ERM on seen people with every proxy, one panel a trunk, and the oracle's as a band.

    ``table`` is of :func:`study.results.inference.difference`, ``told``, which orders the proxies and says
    beside each how well it tells people apart, of :func:`study.experiment.variations.leaks_of`; both with
    a column ``trunk``. Narrow, with panels below each other, to be read in a column of text.
    """
    rows = table[(table["test"] == "seen") & (table["metric"] == metric)]
    shown = without_identities(_present(rows, methods))
    if not shown:
        return Markdown("*No method was run that needs a proxy.*")
    trunks = rows["trunk"].unique()
    auc = told.set_index(["trunk", "proxy"])["verification AUC"]
    names = auc[trunks[0]].sort_values(ascending=False, kind="stable").index
    size = (5.2, len(trunks) * (0.36 * len(names) + 0.45) + 1.0)
    figure, axes = plt.subplots(len(trunks), 1, figsize=size, squeeze=False, sharex=True)
    at = np.arange(len(names))
    for axis, trunk in zip(axes[:, 0], trunks, strict=True):
        part = rows[rows["trunk"] == trunk].set_index("proxy")
        axis.axvline(0, color=COLOURS["erm"], lw=1.2)
        for _, best in part[part["method"] == "oracle"].head(1).iterrows():
            if np.isfinite(best["low"]):
                span = 100 * best["low"], 100 * best["high"]
                axis.axvspan(*span, color=COLOURS["oracle"], alpha=0.12, lw=0)
            line = {"color": COLOURS["oracle"], "lw": 1.6, "ls": "--", "label": title("oracle")}
            axis.axvline(100 * best["mean"], **line)
        _beside(axis, at, 0.26, part, names, shown, size=5.5)
        _listed(axis, [network_title(name) for name in names])
        for y, name in zip(at, names, strict=True):
            axis.annotate(f"{auc[trunk, name]:.2f}", (1.02, y), xycoords=("axes fraction", "data"),
                          va="center", fontsize=9, color=TEXT, annotation_clip=False)  # fmt: skip
        axis.annotate("AUC", (1.02, 1.02), xycoords="axes fraction", fontsize=9, color=TEXT)
        axis.set_title(f"Heads on {network_title(trunk)}")
    axes[-1, 0].set_xlabel(f"{METRICS[metric].title} − ERM (points)")
    return _done(_legend(figure))


def by_group(table: DataFrame, methods: list[str], level: float) -> Drawn:
    """Accuracy of groups of seen people under ERM, and gains over it (`accuracy_by_group`)."""
    rows = table[(table["test"] == "seen") & (table["level"] == level) & (table["group"] != "gap")]
    if rows.empty:
        return Markdown("*This data set names no demographic groups.*")
    rows = rows.set_index(["column", "group", "people"])
    groups = rows.index.unique()
    names = [f"{_words(column)}: {group} ({people})" for column, group, people in groups]
    column = groups.get_level_values("column").to_series()
    y = np.arange(len(groups)) + 0.6 * column.ne(column.shift()).cumsum().to_numpy()
    size = (10.5, 0.36 * len(groups) + 1.5)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=[1, 1.3])
    _beside(left, y, 0.2, rows, groups, ["erm"])
    _beside(right, y, 0.2, rows, groups, _but_erm(methods), suffix="_difference", size=4.5)
    for axis in (left, right):
        _listed(axis, names, y)
    left.set(title=f"Accuracy under ERM, bias {level:g}", xlabel="accuracy (%)")
    left.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    right.axvline(0, color=COLOURS["erm"], lw=1.2)
    right.set(title="Gain over ERM", xlabel="percentage points")
    return _done(_legend(figure))


# ---------------------------------------------------------------------------- what figures share


def _done(figure: Figure) -> Figure:
    """Close a finished figure: a notebook then shows it once, where it is told to."""
    plt.close(figure)
    return figure


def _bytes(figure: Figure, kind: str, area: Bbox, **options) -> bytes:
    buffer = io.BytesIO()
    # The same ids in every run; letters as letters, a third of the bytes of their outlines.
    with mpl.rc_context({"svg.hashsalt": "cid", "svg.fonttype": "none"} | LAID_OUT):
        figure.savefig(buffer, format=kind, bbox_inches=area, **options)
    return buffer.getvalue()


def _area(figure: Figure) -> Bbox:
    """What of a figure holds something, in inches. It is laid out once and for all: saving would do so
    twice for every file, which takes longer than to draw it."""
    figure.draw_without_rendering()
    with mpl.rc_context(LAID_OUT):
        figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])


def _svg(figure: Figure, area: Bbox) -> bytes:
    """With coordinates to a hundredth of a point, so that no last digit of a sum is seen."""
    text = _bytes(figure, "svg", area, metadata={"Date": None, "Creator": None}).decode()
    number = re.compile(r"(?<![\w.])-?\d+\.\d{3,}")
    short = re.sub(
        "<[^>]+>", lambda tag: number.sub(lambda found: f"{float(found[0]):.2f}", tag[0]), text
    )
    return re.sub(r"\n +", "\n", short).encode()


def _png(figure: Figure, area: Bbox, dpi: int = 100) -> bytes:
    """With a palette of 128 colours, which no eye tells from all of them: a third of the bytes."""
    drawn = _bytes(figure, "png", area, metadata={"Software": None}, dpi=dpi)
    picture = PIL.Image.open(io.BytesIO(drawn))
    buffer = io.BytesIO()
    picture.convert("RGB").quantize(128).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _jpeg(figure: Figure, dpi: int = 100) -> Image:
    data = _bytes(_done(figure), "jpeg", _area(figure), dpi=dpi, pil_kwargs={"quality": 82})
    return Image(data, format="jpeg")


def _evenly(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for so many, with at most so many in a row, evenly filled."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def _panels(count: int, most: int, width: float, height: float, **shared) -> tuple:
    """A figure and its axes, :func:`_evenly` filled rows; what is left over is blank."""
    rows, columns = _evenly(count, most)
    size = (max(5.5, width * columns), height * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **shared)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes


def _present(table: DataFrame, methods) -> list[str]:
    """Those of the methods that a table has rows of."""
    return [m for m in methods if m in set(table["method"])]


def _but_erm(methods) -> list[str]:
    return [m for m in methods if m != "erm"]


def _told(method: str) -> bool:
    """Whether a method is told the true identities."""
    return "identity" in METHODS[method].uses


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value) -> str:
    if str(value) in ("True", "False"):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _points(share: float, _=None) -> str:
    """A tick in percentage points."""
    return f"{round(100 * share, 2):+g}".replace("-", "−") if share else "0"


def _marker(method: str) -> str:
    """Methods that saw true identities have a square, the others a disc."""
    return "s" if _told(method) else "o"


def _intervals(axis, at, part, method, *, upright=False, suffix="", scale=100.0, size=5.0) -> None:
    """Means and 95 % intervals of a method at places of an axis; an unbounded one is not drawn."""
    at = np.broadcast_to(at, len(part))
    names = [name + suffix for name in ("mean", "low", "high")]
    mean, low, high = scale * part[names].to_numpy(dtype=float).T
    bounded = np.isfinite(low) & np.isfinite(high)
    lines = axis.vlines if upright else axis.hlines
    lines(at[bounded], low[bounded], high[bounded], color=COLOURS[method], lw=1.8)
    where = (at, mean) if upright else (mean, at)
    axis.plot(*where, _marker(method), ms=size, color=COLOURS[method], label=title(method))


def _beside(axis, at, step, table, keys, methods, *, upright=False, suffix="", size=5.0) -> None:
    """Intervals of several methods at each place, ``step`` apart: the table's rows at ``keys``."""
    methods = _present(table, methods)
    for k, method in enumerate(methods):
        part = table[table["method"] == method].reindex(keys)
        places = at + step * (k - (len(methods) - 1) / 2)
        if upright:  # the values of a setting, so a line leads from one to the next
            mean = 100 * part["mean"].to_numpy()
            axis.plot(places, mean, lw=0.8, color=COLOURS[method], alpha=0.6)
        _intervals(axis, places, part, method, upright=upright, suffix=suffix, size=size)


def _listed(axis, names, at=None) -> None:
    """Names down the vertical axis, the first on top."""
    at = np.arange(len(names)) if at is None else at
    axis.set_yticks(at, names)
    axis.set_ylim(at[-1] + 0.5, at[0] - 0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25)


def _band(axis, x, part, method, form, *, alpha, **line) -> None:
    """A method's mean as a line, and its interval as a band where it is bounded."""
    low, high = (part[name].where(np.isfinite(part[name])) for name in ("low", "high"))
    axis.fill_between(x, low, high, color=COLOURS[method], alpha=alpha, lw=0)
    axis.plot(x, part["mean"], form, color=COLOURS[method], label=title(method), **line)


def _line(axis, table, method) -> tuple:
    """A method against the bias level; returns what :func:`_direct_labels` takes."""
    part, strong = table[table["method"] == method].sort_values("level"), method in STRONG
    _band(axis, part["level"], part, method, _marker(method) + "-", alpha=0.15 if strong else 0.08,
          lw=2.2 if strong else 1.2, ms=4.5 if strong else 3)  # fmt: skip
    last = part.iloc[-1]
    return last["mean"], last["level"], METHODS[method].title, COLOURS[method]


def _level_axis(axis, table) -> None:
    levels = np.unique(table["level"])
    axis.set_xticks(levels, [f"{level:g}" for level in levels], rotation=50, fontsize=8.5)
    axis.set_xlabel("bias level of the training set")
    if len(levels) == 1:
        axis.set_xlim(levels[0] - 0.1, levels[0] + 0.1)


def _log_numbers(axis) -> None:
    """A logarithmic axis with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, loc: str = "outside lower center", reverse: bool = False) -> Figure:
    """One legend for all panels, below them: no place inside is free in every study."""
    entries = {}
    for axis in figure.axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    _, columns = _evenly(len(entries), 4)
    figure.legend(entries.values(), entries.keys(), loc=loc, ncols=columns, reverse=reverse)
    return figure


def _direct_labels(axis, entries) -> None:
    """Write names at the right end of lines, pushed apart where they would overlap."""
    low, high = axis.get_ylim()
    gap = 0.065 * (high - low)
    spots = sorted(entries, key=lambda entry: entry[0])
    heights = [entry[0] for entry in spots]
    for _ in range(100):  # neighbours push each other half the overlap; few entries, fast to settle
        for k in range(len(heights) - 1):
            overlap = gap - (heights[k + 1] - heights[k])
            if overlap > 0:
                heights[k] -= overlap / 2
                heights[k + 1] += overlap / 2
        heights = [max(height, low + gap / 2) for height in heights]  # above the axis
    for (_, x, text, colour), y in zip(spots, heights, strict=True):
        axis.annotate(text, (x, y), (7, 0), textcoords="offset points", va="center", color=colour,
                      fontsize=8.5, fontweight="bold", annotation_clip=False)  # fmt: skip
