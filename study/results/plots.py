"""Figures of the report, one function each, in one colour-blind-safe style.

Every function takes tidy tables as the stages write them; the name in brackets is the function that makes
the table, of :mod:`study.results.inference` where no module is named. It returns a figure, or a sentence
where there is nothing to draw or photographs must not be shown. Methods that a table lacks are left out,
and so are panels without a number. :func:`show` writes a figure for the paper and displays it.
"""

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from pandas import DataFrame

from study.faces.tasks import class_names, classes_of
from study.faces.verification import FALSE_MATCHES
from study.results.drawing import (
    ACCENT,
    FIGURES,
    OTHER,
    PRIVATE,
    QUIET,
    TEXT,
    Drawn,
    LineEnd,
    Picture,
    add_legend,
    bias_axis,
    done,
    draw_against_bias,
    draw_band,
    draw_intervals,
    draw_side_by_side,
    label_ends,
    list_rows,
    log_axis,
    marker_style,
    panels,
    percent_tick,
    points_tick,
    present,
    show,
    show_folded,
    style,
    value_name,
    without_erm,
    words,
    zero_line,
)
from study.results.metrics import METRICS
from study.results.palette import colour
from study.results.tables import RIGHT, STRONG
from study.results.titles import (
    level_title,
    marked_title,
    method_title,
    network_title,
    reference_title,
    uses_identities,
    without_identities,
)

__all__ = ["FIGURES", "STRONG", "show", "show_folded", "style"]

TESTS = {"seen": "Seen people, held-out images", "unseen": "People never seen in training"}
MANY_ATTRIBUTES = 10  # more have a correlation without its number
FACE_PIXELS = 72  # side of a face in a figure: more than it is shown with

AUDITED = {"minority": "Minority cells", "balanced": "Balanced images"}  # titles of panels

UNIDENTIFIED = {
    "minority": "Surprised images",
    "balanced": "Balanced set",
}  # the same of an audit alone

# Titles of ablations; a key without an entry is shown as the words of its last part.
SETTINGS = {
    "weights.tau": "width τ of CID's kernel",
    "weights.power": "power of CID's weights",
    "weights.temper": "exponent of the tempered oracle",
    "weights.rarity": "exponent of rarity",
    "weights.surprise": "exponent of label surprise",
    "weights.neighbours": "neighbours k of label surprise",
    "weights.class_prior": "total weight of each class",
    "weights.include_self": "density counts the image itself",
    "weights.keep_class_direction": "class direction kept in the proxy",
    "weights.local_scaling": "local scaling of the kernel",
    "bias.images_per_identity": "training images per person",
    "bias.people": "people in the training set",
    "train.l2": "L2 penalty",
    "labels.wrong": "share of wrong labels, at random",
    "labels.wrong_of_class_1": "share of wrong labels, all of class 1",
    "labels.wrong_of_some_people": "share of wrong labels, of a fifth of the people",
    "labels.wrong_of_slipped_rows": "share of wrong labels, in rows that slipped by one",
    "labels.wrong_of_swapped_people": "share of wrong labels, of pairs of people that were swapped",
    "labels.wrong_of_reversed_folders": "share of wrong labels, of people labelled the other way round",
    "train.through": "how training uses the weights",
}


# ---------------------------------------------------------------------------- faces


def face_grid(
    crops, rows, card: dict, *, columns: int, captions=None, row_titles=None
) -> Picture | Markdown:
    """Draw faces in a grid, read row by row.

    Parameters
    ----------
    crops : uint8 array of shape (n, 3, side, side), or None
        Aligned faces of the whole data set; None where the study keeps none.
    rows : sequence of int
        The faces to show.
    card : dict
        Data card; nothing is drawn where its ``show_images`` is false.
    captions, row_titles : sequence of str, optional
        Text under each face, and left of each row.
    """
    if not _may_show(crops, card):
        return PRIVATE
    height = 1.04 if captions is None else 1.22  # of a row, in sides of a face
    lines = -(-len(rows) // columns)
    # All faces share an axis: an axis for each takes ten times as long.
    figure, axis = plt.subplots(figsize=(0.72 * columns, 0.72 * lines * height), layout="none")
    for place, row in enumerate(rows):
        x = 1.04 * (place % columns)
        y = -height * (place // columns)
        _draw_face(axis, crops[row], x, y, 1.0)
        if captions is not None:
            axis.text(x + 0.5, y - 0.03, captions[place], fontsize=7.5, ha="center", va="top")
    for line, text in enumerate(row_titles or []):
        axis.text(-0.08, 0.5 - height * line, text, fontsize=8, ha="right", va="center")
    axis.set(xlim=(0, 1.04 * columns - 0.04), ylim=(1 - height * lines, 1))
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return Picture(done(figure))


def _may_show(crops, card: dict) -> bool:
    return crops is not None and card.get("show_images", True)


def _draw_face(axis: Axes, crop: np.ndarray, x: float, y: float, side: float) -> None:
    """Draw a face, its lower left corner at (x, y)."""
    face = PIL.Image.fromarray(np.moveaxis(np.asarray(crop), 0, -1))
    if face.width > FACE_PIXELS:
        face = face.resize((FACE_PIXELS, FACE_PIXELS), PIL.Image.Resampling.LANCZOS)
    axis.imshow(np.asarray(face), extent=(x, x + side, y, y + side), interpolation="none")


def idea(
    crops,
    card: dict,
    sets: DataFrame,
    proxy: np.ndarray,
    labels: np.ndarray,
    identities: np.ndarray,
    task: str,
    method: str = "cid",
    kind: str = "correlation",
) -> Picture | Markdown:
    """Draw the idea: a person's faces, the faces nearest to one of them, and weights as bias grows.

    Parameters
    ----------
    crops, card
        As in :func:`face_grid`.
    sets : DataFrame
        Training sets of all levels (:func:`study.experiment.runs.weigh_sets`); the first seed is drawn.
    proxy : float array of shape (n, d)
        Unit vectors.
    labels, identities : arrays of shape (n,)
        Of the whole data set; the labels are those of ``task``.
    method : str
        Whose weights are drawn, beside those of the oracle if it took part.
    kind : str
        Of bias.
    """
    if not _may_show(crops, card):
        return PRIVATE
    first_seed = sets["seed"].min()
    train = sets[(sets["seed"] == first_seed) & (sets["part"] == "train")]
    train = train.assign(person=identities[train["row"]], label=labels[train["row"]])
    person = _most_mixed_person(train)
    training_sets = dict(tuple(train[train["person"] == person].groupby("level")))
    levels = list(training_sets)
    shown = sorted({levels[0], levels[len(levels) // 2], levels[-1]})
    columns = min(20, max(len(training_sets[level]) for level in shown))
    gaps = max(training_sets[level]["label"].nunique() for level in shown) - 1
    top = max(training_sets[level][method].max() for level in shown)

    own = np.flatnonzero(identities == person)
    own = own[np.linspace(0, len(own) - 1, min(columns, len(own))).astype(int)]
    near = np.argsort(-(proxy @ proxy[own[0]]), kind="stable")[1 : columns + 1]
    same = (identities[near] == person).sum()
    near_title = (
        f"Nearest to the first face\nin the proxy, of all:\n{same} of {len(near)} are theirs"
    )

    # One strip a row: its title, the faces, the weights above them if any, and its vertical limits.
    strips = [("One person", own, None, (0, 1.02)), (near_title, near, None, (0, 1.02))]
    for level in shown:
        part = _rarer_label_first(training_sets[level], columns)
        drawn = [name for name in (method, "oracle") if name in part]
        tallest = min(part[drawn].max(axis=None) / top, 1.1)
        limits = (-0.22, 1.3 + 0.95 * tallest)
        name = f"Their training set\n{level_title(level, kind)}"
        strips.append((name, part["row"].to_numpy(), part, limits))
    heights = [1.12 * (high - low) for *_, (low, high) in strips]
    size = (11, 11 / (columns + 3.2) * sum(heights))
    figure, axes = plt.subplots(len(strips), 1, figsize=size, height_ratios=heights, layout="none")
    for axis, (name, rows, part, limits) in zip(axes, strips, strict=True):
        x = np.arange(len(rows), dtype=float)
        if part is not None:
            x += 0.35 * np.unique(part["label"], return_inverse=True)[1]
            _weights_above(axis, x, part, method, top, task)
        for left, row in zip(x, rows, strict=True):
            _draw_face(axis, crops[row], left, 0, 0.94)
            if identities[row] != person:
                axis.add_patch(_frame(left))
        axis.set(xlim=(0, columns + 0.05 + 0.35 * gaps), ylim=limits, aspect="equal")
        axis.axis("off")
        axis.text(-0.25, 0.47, name, ha="right", va="center", fontsize=9)
    add_legend(figure, loc="lower center", reverse=True)
    figure.subplots_adjust(left=0.14, right=0.99, top=0.99, bottom=0.07, hspace=0.12)
    return Picture(done(figure))


def _most_mixed_person(train: DataFrame):
    """A person whose training sets keep an image of the rarer label up to the highest bias."""
    labels_kept = train.groupby(["level", "person"])["label"].nunique()
    return labels_kept.groupby("person").sum().idxmax()


def _rarer_label_first(part: DataFrame, columns: int) -> DataFrame:
    """At most ``columns`` images, none of the rarer label left out for one of the other; by label."""
    images_of_label = part.groupby("label")["row"].transform("size")
    kept = part.loc[images_of_label.sort_values(kind="stable").index[:columns]]
    return kept.sort_values(["label", "row"])


def _frame(left: float) -> plt.Rectangle:
    """A dotted frame around a face of somebody else."""
    look = {"fill": False, "edgecolor": ACCENT, "linewidth": 1.5, "linestyle": ":"}
    return plt.Rectangle((left, 0), 0.94, 0.94, label="somebody else", **look)


def _weights_above(axis: Axes, x, part: DataFrame, method: str, top: float, task: str) -> None:
    """Draw the weights of a training set's images above their faces, and their label below."""
    scale = 0.95 / top
    bars = {"bottom": 1.08, "color": colour(method), "label": f"weight, {marked_title(method)}"}
    axis.bar(x + 0.47, part[method] * scale, 0.7, **bars)
    green = colour("oracle")
    for left, weight in zip(x, part.get("oracle", []), strict=False):
        height = 1.08 + min(weight, 1.1 * top) * scale
        name = f"weight, {marked_title('oracle')}"
        axis.hlines(height, left + 0.08, left + 0.86, color=green, lw=1.6, label=name)
        if weight > 1.1 * top:  # beyond the picture
            text = f"↑ {weight:.1f}"
            axis.text(
                left + 0.47, height, text, color=green, fontsize=7.5, ha="center", va="bottom"
            )
    for value, count in zip(*np.unique(part["label"], return_counts=True), strict=True):
        first = x[part["label"].to_numpy() == value][0]
        name = f"{words(task)} = {value}"
        if classes_of(task) > 2:
            name = words(class_names(task)[int(value)])
        axis.text(first, -0.05, f"{name}: {count}", fontsize=8, va="top")


# ---------------------------------------------------------------------------- data and proxy


def audit(people: DataFrame, attribute: str) -> Figure:
    """Draw images per person and label (:func:`study.experiment.design.usable_identities`)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    counts = people.filter(regex=r"^class_\d+$")
    images = counts.sum(axis=1)
    low = images.min()
    high = images.max()
    step = max(1, round((high - low) / 40))
    left.hist(images, bins=np.arange(low - 0.5, high + step + 0.5, step), color=OTHER, rwidth=0.9)
    left.set_xlim(low - 3, high + 3)  # whole numbers on the axis, also where all have the same
    left.set(title="Images per person", xlabel="images", ylabel="people")

    x, y = people["class_0"], people["class_1"]
    if counts.shape[1] > 2:
        x, y = counts.max(axis=1), counts.min(axis=1)
    spots = people.assign(x=x, y=y).groupby(["x", "y", "usable"]).size().reset_index(name="people")
    looks = (
        (False, "excluded", {"color": QUIET, "marker": "x", "linewidth": 1.0}),
        (True, "used", {"color": OTHER, "marker": "o", "linewidth": 0.0, "alpha": 0.8}),
    )
    for usable, label, look in looks:
        part = spots[spots["usable"] == usable]
        if len(part):
            size = (18 + 5 * part["people"]).clip(upper=250)
            name = f"{label}: {part['people'].sum()} people"
            right.scatter(part["x"], part["y"], s=size, label=name, **look)
    right.set(title="Label balance inside people", xlim=(0, None), ylim=(0, None))
    if counts.shape[1] == 2:
        right.set_xlabel(f"images with {words(attribute)} = 0")
        right.set_ylabel(f"images with {words(attribute)} = 1")
    else:
        right.set_xlabel("images of a person's most frequent class")
        right.set_ylabel("images of their rarest class")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for handle in right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0)).legend_handles:
        handle.set_sizes([30])  # whatever the size of the first spot
    return done(figure)


def attribute_correlation(frame: DataFrame, attributes: list[str]) -> Figure:
    """Draw the correlation of the 0/1 attributes over images, and of each with identity.

    Dependence on identity is the share of a label's variance that lies between people (eta squared);
    it is 0 when everyone has the same share of positive images.
    """
    import seaborn as sns  # late: it takes a second to import, and only this figure needs it

    many = len(attributes) > MANY_ATTRIBUTES  # as small as their names can be read, without numbers
    size = max(3.2, (0.28 if many else 0.75) * len(attributes) + 1.4)
    figure, axis = plt.subplots(figsize=(size + 1, size * 0.8))
    table = frame[attributes].corr()
    known = frame[frame["identity"].notna()]
    means = known.groupby("identity")[attributes].transform("mean")
    table["identity (η²)"] = means.var(ddof=0) / known[attributes].var(ddof=0)
    sns.heatmap(
        table.rename(index=words, columns=words),
        vmin=-1,
        vmax=1,
        cmap="vlag",
        square=True,
        annot=None if many else table.map(lambda value: f"{value:z.2f}".replace("-", "−")),
        fmt="",
        annot_kws={"fontsize": 8},
        linewidths=0.5 if many else 1,
        xticklabels=True,
        yticklabels=True,
        cbar_kws={"shrink": 0.7, "label": "correlation"},
        ax=axis,
    )
    axis.tick_params(axis="x", length=0, rotation=60 if many else 35)
    axis.tick_params(axis="y", length=0, rotation=0)
    if many:
        axis.tick_params(labelsize=9)
    plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    return done(figure)


def demographics(people: DataFrame, columns: list[str]) -> Figure:
    """Draw people per demographic group; ``people`` has one row per identity."""
    figure, axes = plt.subplots(1, len(columns), figsize=(2.8 * len(columns), 2.6), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        counts = people[column].value_counts().sort_index()
        bars = axis.barh(counts.index.astype(str), counts, color=OTHER, height=0.7)
        axis.bar_label(bars, padding=3, fontsize=8)
        axis.set(title=words(column), xlabel="people")
        axis.margins(x=0.18)
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
    return done(figure)


def verification(
    similarity: DataFrame, roc: DataFrame, auc: float, right_pairs: float | None = None
) -> Figure:
    """Draw the similarity of same-person and different-people pairs, and the ROC curve.

    ``similarity`` has the ``left`` and ``right`` edge of bins of cosine similarity and the densities
    ``same`` and ``different`` of pairs; ``roc`` has ``false_match_rate`` and ``true_match_rate``.
    ``right_pairs`` is marked at the rate that it is for.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    edges = np.append(similarity["left"], similarity["right"].iloc[-1])
    pairs = {"different": ("different people", QUIET), "same": ("same person", ACCENT)}
    for column, (name, shade) in pairs.items():
        density = similarity[column].to_numpy()
        left.stairs(density, edges, fill=True, color=shade, alpha=0.75)
        peak = density.argmax()
        place = (edges[peak : peak + 2].mean(), density[peak])
        look = {"color": shade, "fontweight": "bold", "ha": "center"}
        left.annotate(name, place, (0, 3), textcoords="offset points", **look)
    left.margins(y=0.12)
    left.set_ylim(bottom=0)
    left.set(title="Similarity of pairs", xlabel="cosine similarity", ylabel="density", yticks=[])
    drawn = roc[roc["false_match_rate"] > 0]
    right.plot(drawn["false_match_rate"], drawn["true_match_rate"], color=ACCENT, lw=2)
    title = f"Verification ROC, area {auc:.4f}"
    if right_pairs is not None:
        right.plot([FALSE_MATCHES], [right_pairs], "o", color=ACCENT)
        title += f", right pairs {right_pairs:.1%}"
    right.set(title=title, xscale="log", ylim=(0, 1.02))
    right.set(xlabel="false match rate (log scale)", ylabel="true match rate")
    right.grid(alpha=0.3)
    return done(figure)


# ---------------------------------------------------------------------------- weights


def weights_by_level(table: DataFrame, methods: list[str], kind: str = "correlation") -> Drawn:
    """Draw weights by the true number of images of the same person and class (`metrics.weights_summary`).

    Methods that give every image the weight 1 are left out.
    """
    distance_from_1 = (table[["mean", "low", "high"]] - 1).abs().max(axis=1)
    farthest = distance_from_1.groupby(table["method"]).max()
    methods = [method for method in present(table, methods) if farthest[method] > 1e-3]
    if not methods:
        return Markdown("*Every method gives all images the same weight.*")
    levels = np.unique(table["level"])
    figure, axes = panels(len(levels), 5, 2.35, 3.0, sharex=True, sharey=True)
    for axis, level in zip(axes.flat, levels, strict=False):
        for method in methods:
            rows = table[(table["level"] == level) & (table["method"] == method)]
            draw_band(axis, rows["cell_size"], rows, method, alpha=0.15, markersize=3)
        axis.axhline(1, color=QUIET, lw=0.8, ls=":", zorder=0)
        log_axis(axis)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.set(title=level_title(level, kind), xlabel="images per person and class")
    for row in axes:
        row[0].set_ylabel("weight (mean 1, log scale)")
    return done(add_legend(figure))


def effective_sizes(table: DataFrame, methods: list[str], kind: str = "correlation") -> Figure:
    """Draw the effective sample size of uneven weights, as a share of n (`metrics.weights_summary`)."""
    uneven = set(table.loc[table["mean"] < 0.9995, "method"]) | {"erm"}
    methods = [method for method in present(table, methods) if method in uneven]
    levels = np.unique(table["level"])
    if len(levels) == 1:
        title = level_title(levels[0], kind)
        return _effective_sizes_at_one_level(table.set_index("method"), methods, title)
    figure, axis = plt.subplots(figsize=(7, 3.6))
    ends = [draw_against_bias(axis, table, method) for method in methods]
    bias_axis(axis, levels)
    axis.set(ylim=(0, 1.05), title="Effective sample size", ylabel="share of the training images")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    label_ends(axis, ends)
    return done(figure)


def _effective_sizes_at_one_level(rows: DataFrame, methods: list[str], title: str) -> Figure:
    """The same as a list, the largest first."""
    size_of = rows["mean"].to_dict()
    methods = sorted(methods, key=lambda method: -size_of[method])
    figure, axis = plt.subplots(figsize=(7, 0.3 * len(methods) + 1.1))
    for place, method in enumerate(methods):
        draw_intervals(axis, place, rows.loc[[method]], method)
    list_rows(axis, [marked_title(method) for method in methods])
    axis.set(xlim=(0, 105), title=f"Effective sample size, {title}")
    axis.set_xlabel("percent of the training images")
    return done(figure)


def factors(tables: dict[str, DataFrame], columns: dict[str, str]) -> Figure:
    """Draw each factor of the weights, and the true one, by the images of the same person and class.

    ``tables`` (`factors.factors`) are by the title of a row of panels, ``columns`` are the titles of
    the panels by factor.
    """
    size = (2.75 * len(columns), 2.6 * len(tables) + 0.3)
    shape = (len(tables), len(columns))
    figure, axes = plt.subplots(*shape, figsize=size, sharex="row", sharey="row", squeeze=False)
    for row, (kind, table) in zip(axes, tables.items(), strict=True):
        for axis, (factor, name) in zip(row, columns.items(), strict=True):
            _draw_factor(axis, table[table["factor"] == factor].sort_values("cell_size"))
            if axis in axes[0]:
                axis.set_title(name, fontsize=9.5)
        row[0].set_ylabel(f"{words(kind)}\nfactor (mean 1, log scale)", fontsize=9)
    figure.supxlabel("training images of the same person and class", fontsize=9.5)
    return done(figure)


def _draw_factor(axis: Axes, rows: DataFrame) -> None:
    size = rows["cell_size"]
    truth = rows["truth"]
    green = colour("oracle")
    axis.plot(size, truth, "--", color=green, lw=1.8)
    axis.fill_between(size, rows["low"], rows["high"], color=OTHER, alpha=0.15, lw=0)
    axis.plot(size, rows["mean"], "o-", ms=3, color=OTHER)
    log_axis(axis)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(rows):
        place = (size.iloc[0], truth.iloc[0])
        look = {"color": green, "fontsize": 8.5, "fontweight": "bold"}
        axis.annotate("truth", place, (6, 4), textcoords="offset points", **look)


def posteriors(table: DataFrame) -> Drawn:
    """Draw the likeliest posteriors at each bias level, and how well they fit (`factors.posteriors`).

    A study of one level has no curve: it gets a sentence with the same means.
    """
    mean = table.groupby(["estimator", "level"]).mean(numeric_only=True)
    knn = mean.loc["knn"]
    kernel = mean.loc["kernel"]
    if table["level"].nunique() == 1:
        return _posteriors_at_one_level(knn.iloc[0], kernel.iloc[0])
    near = ("k-NN", knn, colour("cid-knn"), "v-")
    wide = ("kernel", kernel, colour("cid-kernel"), "o-")
    prior = ("prior", kernel, QUIET, ":")
    truth = ("truth", kernel, colour("oracle"), "--")
    losses = [(near, "loss"), (wide, "loss"), (prior, "prior_loss"), (truth, "true_loss")]
    curves = {
        "Loss of the posterior (nats)": losses,
        "Neighbours k": [(near, "scale")],
        "Kernel width τ": [(wide, "scale")],
        "Exponent of the odds": [(near, "slope"), (wide, "slope")],
    }
    figure, axes = plt.subplots(1, 4, figsize=(11.5, 2.9))
    axes[3].axhline(1, color=QUIET, lw=0.8, ls=":")
    for axis, (heading, lines) in zip(axes, curves.items(), strict=True):
        ends = []
        for (name, rows, shade, form), column in lines:
            axis.plot(rows.index, rows[column], form, ms=4, color=shade, lw=1.6)
            ends.append(LineEnd(rows.index[-1], rows[column].iloc[-1], name, shade))
        axis.set_title(heading, fontsize=9.5)
        axis.set_ylim(bottom=0)
        axis.margins(x=0.08)
        bias_axis(axis, np.unique(table["level"]))
        if len(ends) > 1:
            label_ends(axis, ends)
    return done(figure)


def _posteriors_at_one_level(knn, kernel) -> Markdown:
    return Markdown(
        "The likelihood of the class labels chooses the posterior on each training set. Means over the "
        f"training sets: {knn['scale']:.1f} neighbours and {knn['slope']:.2f} as the exponent of the odds "
        f"for k-NN; width {kernel['scale']:.4f} and exponent {kernel['slope']:.2f} for the kernel. The "
        f"leave-one-out loss is {knn['loss']:.3f} nats for k-NN and {kernel['loss']:.3f} for the kernel, "
        f"compared with {kernel['prior_loss']:.3f} for the class frequencies and "
        f"{kernel['true_loss']:.3f} for each person's true frequencies."
    )


# ---------------------------------------------------------------------------- metrics against the bias


def against_bias(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Draw metrics against the bias level, with 95 % bands (`summary`)."""
    table = table[table["test"] == test]
    levels = np.unique(table["level"])
    if len(levels) == 1:  # no curve: a list of intervals
        label = f"percent, bias {levels[0]:g}: {TESTS[test].lower()}"
        return _forest(table, metrics, methods, label, "Only ERM was run.", zero=False)
    figure, axes = _metric_panels(metrics, test)
    for axis, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric]
        ends = [draw_against_bias(axis, rows, method) for method in present(rows, methods)]
        axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(percent_tick)
        bias_axis(axis, levels)
        label_ends(axis, ends)
        axis.set_title(METRICS[metric].title)
    return done(figure)


def difference_to_erm(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Draw paired differences to the reference, such as ERM, against the bias level (`difference`)."""
    table = table[table["test"] == test]
    methods = without_erm(methods)
    against = reference_title(table[table["method"].isin(methods)])
    levels = np.unique(table["level"])
    if len(levels) == 1:  # no curve: a list of intervals
        label = f"points over {against}, bias {levels[0]:g}: {TESTS[test].lower()}"
        return _forest(table, metrics, methods, label, "Only ERM was run.")
    figure, axes = _metric_panels(metrics, test)
    for axis, metric in zip(axes, metrics, strict=True):
        ends = _draw_gains(axis, table[table["metric"] == metric], methods)
        bias_axis(axis, levels)
        label_ends(axis, ends)
        axis.set_title(f"{METRICS[metric].title} − {against}")
        axis.set_ylabel("percentage points")
    return done(figure)


def _draw_gains(axis: Axes, table: DataFrame, methods: list[str]) -> list[LineEnd]:
    """Draw gains over ERM as lines with whiskers, the methods side by side; return the lines' ends."""
    levels = np.unique(table["level"])
    axis.hlines(0, levels.min(), levels.max(), color=colour("erm"), lw=1.2)
    ends = [LineEnd(levels.max(), 0.0, "ERM", colour("erm"))]
    methods = present(table, methods)
    for order, method in enumerate(methods):
        rows = table[table["method"] == method].sort_values("level")
        step = 0.012 * (levels.max() - levels.min())
        places = rows["level"].to_numpy() + step * (order - (len(methods) - 1) / 2)
        axis.plot(places, rows["mean"], lw=1.4, color=colour(method))
        draw_intervals(axis, places, rows, method, upright=True, scale=1)
        end = LineEnd(places[-1], rows["mean"].iloc[-1], method_title(method), colour(method))
        ends.append(end)
    axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(points_tick)
    axis.grid(axis="y", alpha=0.25)
    return ends


def _metric_panels(metrics: list[str], test: str) -> tuple[Figure, np.ndarray]:
    """A figure with one panel per metric, and the test set as its title."""
    size = (5.4 * len(metrics), 3.9)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, squeeze=False)
    figure.suptitle(TESTS[test], x=0.01, ha="left", fontsize=10, color=TEXT)
    figure.get_layout_engine().set(wspace=0.06)
    return figure, axes[0]


def identity_distribution(
    people: DataFrame, methods: list[str], level: float, kind: str = "correlation"
) -> Figure:
    """Draw the accuracy of every person, averaged over seeds and sorted, and each person's gain.

    ``people`` has one row per person and one column per method: the mean over the seeds that saw them.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9))
    rank = np.arange(1, len(people) + 1)
    erm = people["erm"]
    methods = [method for method in methods if method in people]
    for method in methods:
        accuracy = np.sort(people[method])
        left.plot(rank, accuracy, lw=2, color=colour(method), label=marked_title(method))
    for method in without_erm(methods):
        gain = 100 * (people[method] - erm)
        look = {"color": colour(method), "marker": marker_style(method)["marker"]}
        right.scatter(erm, gain, s=15, alpha=0.5, lw=0, **look)
        if np.ptp(erm) > 0:
            slope, intercept = np.polyfit(erm, gain, 1)
            ends = np.array([erm.min(), erm.max()])
            right.plot(ends, intercept + slope * ends, color=colour(method), lw=2)
    zero_line(right, upright=False)
    for axis in (left.yaxis, right.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    title = f"Accuracy person by person, {level_title(level, kind)}"
    left.set(title=title, xlabel="people, worst first")
    left.set_ylabel("accuracy")
    right.set(title="Who gains", xlabel="the person's accuracy under ERM")
    right.set_ylabel("gain over ERM (points)")
    return done(add_legend(figure))


# ---------------------------------------------------------------------------- lists of methods


def sensitivity(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Draw slopes over the bias level with intervals; nearer 0 is less sensitive (`sensitivity`)."""
    nothing = "This study has one bias level, so there is no slope over the bias."
    label = "change of the metric from bias 0 to 1 (points)"
    return _forest(table[table["test"] == test], metrics, methods, label, nothing)


def recovered(
    table: DataFrame,
    metrics: list[str],
    test: str,
    methods: list[str],
    level: float,
    kind: str = "correlation",
) -> Drawn:
    """Draw the share of the oracle's gain over ERM that methods recover (`oracle_gap_recovered`)."""
    rows = table[(table["test"] == test) & (table["level"] == level)]
    nothing = "The oracle was not run, so it has no gain to recover."
    where = level_title(level, kind)
    label = f"share of the oracle's gain over ERM, {where} (0 = ERM, 1 = oracle)"
    return _forest(rows, metrics, methods, label, nothing, scale=1)


def compare(table: DataFrame, metrics: list[str], test: str, methods: list[str]) -> Drawn:
    """Draw gains over ERM, means over the bias range, the largest first (`area`).

    Methods that use true identities stand below the others.
    """
    rows = table[(table["test"] == test) & (table["method"] != "erm")]
    gain = rows[rows["metric"] == metrics[0]].set_index("method")["mean_difference"]
    methods = present(rows, methods)
    methods = sorted(methods, key=lambda method: (uses_identities(method), -gain[method]))
    nothing = "Only ERM was run, so there is nothing to compare it with."
    label = f"points over {reference_title(rows)}, mean over the bias range"
    return _forest(rows, metrics, methods, label, nothing, suffix="_difference")


def _forest(
    table: DataFrame,
    metrics: list[str],
    methods: list[str],
    label: str,
    nothing: str,
    *,
    suffix: str = "",
    scale: float = 100.0,
    zero: bool = True,
    titles: dict[str, str] | None = None,
) -> Drawn:
    """Draw intervals of methods below each other, one panel per metric.

    ``label`` is that of the horizontal axis; ``nothing`` is the sentence where no method was run; ``titles`` are
    of the panels, where they are not those of the metrics.
    """
    methods = present(table, methods)
    if not methods:
        return Markdown(f"*{nothing}*")
    size = (3.6 * len(metrics) + 2.6, 0.3 * len(methods) + 1.1)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, squeeze=False, sharey=True)
    use_identities = [uses_identities(method) for method in methods]
    for axis, metric in zip(axes[0], metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("method")
        if zero:
            zero_line(axis)
        for place, method in enumerate(methods):
            draw_intervals(axis, place, rows.loc[[method]], method, suffix=suffix, scale=scale)
            if not np.isfinite(rows.loc[method, f"mean{suffix}"]):
                note = "undefined: no clear gain of the oracle"
                look = {"va": "center", "fontsize": 8, "color": TEXT}
                axis.annotate(note, (0, place), (4, 0), textcoords="offset points", **look)
        if any(use_identities) and use_identities == sorted(use_identities):
            first = use_identities.index(True)
            if first:
                axis.axhline(first - 0.5, color=QUIET, lw=0.8, ls=":")
        list_rows(axis, [marked_title(method) for method in methods])
        axis.set_title(titles[metric] if titles else METRICS[metric].title)
    figure.supxlabel(label, fontsize=9.5)
    return done(figure)


def unidentified(gains: DataFrame, refusal: str) -> Drawn:
    """Draw the gains over ERM that the audit estimates where nobody is known, the largest first.

    ``gains`` is ``audited-gains`` of :func:`study.experiment.unidentified.audit_held_out`; where the audits
    refuse to be trusted, nothing is drawn.
    """
    if refusal:
        return Markdown("*The audit refuses, so no estimate is drawn.*")
    rows = gains.rename(columns={"measure": "metric"})
    balanced = rows[rows["metric"] == "balanced"].sort_values(
        "mean", ascending=False, kind="stable"
    )
    label = "points over ERM, estimated without identities"
    nothing = "Only ERM was run, so there is nothing to compare it with."
    methods = balanced["method"].tolist()
    return _forest(rows, list(UNIDENTIFIED), methods, label, nothing, titles=UNIDENTIFIED)


# ---------------------------------------------------------------------------- variations of a study


def ablation(table: DataFrame, setting: str, metrics: list[str], methods: list[str]) -> Figure:
    """Draw the gain over ERM on seen people for every ``value`` of a setting (`difference`)."""
    size = (5.2 * len(metrics), 3.5)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        _draw_values(axis, table, metric, methods)
        axis.set(xlabel=setting, title=f"{METRICS[metric].title} − ERM")
    axes[0, 0].set_ylabel("percentage points")
    return done(add_legend(figure))


def ablations(
    tables: dict[str, DataFrame],
    metric: str,
    methods: list[str],
    baselines: dict[str, DataFrame] | None = None,
) -> Figure:
    """Draw :func:`ablation` for many settings: a small panel each, one scale per row.

    ``tables`` are by setting; ``baselines``, of ERM's own accuracy under each value (`summary`), are
    written below the values where they are known.
    """
    baselines = baselines or {}
    # Many methods, as where labels are wrong, take wider and higher panels, and fewer in a row.
    marks = max(
        table["value"].nunique() * len(present(table, without_erm(methods)))
        for table in tables.values()
    )
    width = max(2.8, 0.06 * marks)
    height = 2.4 if width == 2.8 else 3.2
    figure, axes = panels(len(tables), max(1, int(11.2 / width)), width, height, sharey="row")
    for axis, (setting, table) in zip(axes.flat, tables.items(), strict=False):
        _draw_values(axis, table, metric, methods, small=True, baseline=baselines.get(setting))
        axis.set_title(setting_title(setting), fontsize=9)
    for row in axes:
        row[0].set_ylabel("points over ERM")
    return done(add_legend(figure))


def setting_title(setting: str) -> str:
    """Return a setting's name in words."""
    return SETTINGS.get(setting, words(setting.rpartition(".")[2]))


def _draw_values(
    axis: Axes,
    table: DataFrame,
    metric: str,
    methods: list[str],
    *,
    small: bool = False,
    baseline: DataFrame | None = None,
) -> None:
    """Draw intervals of the gain over ERM for every value of a setting."""
    rows = table[(table["test"] == "seen") & (table["metric"] == metric)].set_index("value")
    values = rows.index.unique()
    zero_line(axis, upright=False)
    places = np.arange(len(values))
    size = 3.5 if small else 4.5
    methods = present(table, without_erm(methods))
    step = min(0.13, 0.8 / max(len(methods) - 1, 1))  # so that all stay near their value
    draw_side_by_side(axis, places, step, rows, values, methods, upright=True, size=size)
    names = [value_name(value) for value in values]
    axis.set_xlim(-0.5, len(values) - 0.5)
    axis.grid(axis="y", alpha=0.25)
    if baseline is None:
        axis.set_xticks(places, names)
    else:
        erm = baseline[(baseline["test"] == "seen") & (baseline["metric"] == metric)]
        pairs = zip(names, erm["mean"], strict=True)
        labels = [f"{name}\n{100 * accuracy:.1f}" for name, accuracy in pairs]
        axis.set_xticks(places, labels, fontsize=8)
    longest = max(map(len, names))
    crowded = sum(map(len, names)) > (26 if small else 60)
    if crowded or longest > (9 if small else 7):
        plt.setp(axis.get_xticklabels(), rotation=25, ha="right", rotation_mode="anchor")


def breadth(table: DataFrame, metrics: list[str], methods: list[str]) -> Figure:
    """Draw gains over ERM on seen people, by ``task`` and ``kind`` of bias (`area`).

    A metric or a panel without a number, such as minority cells in a long tail, is left out.
    """
    table = table[(table["test"] == "seen") & table["mean_difference"].notna()]
    kinds = list(table["kind"].unique())
    tasks = list(table["task"].unique())
    metrics = [metric for metric in metrics if metric in set(table["metric"])]
    height = len(kinds) * (0.55 * len(tasks) + 0.9) + 0.5
    size = (4.8 * len(metrics), height)
    shape = (len(kinds), len(metrics))
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, sharey=True)
    places = np.arange(len(tasks))
    last_kinds = table.groupby("metric")["kind"].last()
    lowest = [(last_kinds[metric], metric) for metric in metrics]  # panels at the foot of a column
    for row, kind in zip(axes, kinds, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            rows = table[(table["kind"] == kind) & (table["metric"] == metric)].set_index("task")
            list_rows(axis, [words(task) for task in tasks])
            if rows.empty:
                axis.axis("off")
                continue
            zero_line(axis)
            chosen = without_erm(methods)
            draw_side_by_side(axis, places, 0.2, rows, tasks, chosen, suffix="_difference")
            axis.set_title(f"{words(kind)}: {METRICS[metric].title.lower()} − ERM", fontsize=9.5)
            if (kind, metric) in lowest:
                axis.set_xlabel("points over ERM, mean over the bias range", fontsize=9)
    return done(add_legend(figure))


def controls(table: DataFrame, leaks: DataFrame, metric: str, methods: list[str]) -> Drawn:
    """Draw the gain over ERM on seen people with every proxy, one panel a trunk.

    The oracle's gain is a band. Panels stand below each other, to be read in a column of text.

    Parameters
    ----------
    table : DataFrame
        Of :func:`study.results.inference.difference`, with a column ``trunk``.
    leaks : DataFrame
        What each proxy reveals (:func:`study.experiment.proxies.leaks_of`), with a column ``trunk``;
        its verification AUC orders the proxies and stands beside each, with the right pairs.
    """
    rows = table[(table["test"] == "seen") & (table["metric"] == metric)]
    methods = without_identities(present(rows, methods))
    if not methods:
        return Markdown("*No method was run that needs a proxy.*")
    trunks = rows["trunk"].unique()
    leaks = leaks.set_index(["trunk", "proxy"])
    auc = leaks["verification AUC"]
    beside_each = {"AUC": auc}
    if RIGHT in leaks:
        beside_each["right"] = leaks[RIGHT]
    proxies = auc[trunks[0]].sort_values(ascending=False, kind="stable").index
    size = (5.2, len(trunks) * (0.36 * len(proxies) + 0.45) + 1.0)
    figure, axes = plt.subplots(len(trunks), 1, figsize=size, squeeze=False, sharex=True)
    places = np.arange(len(proxies))
    beside = {"annotation_clip": False, "fontsize": 9, "color": TEXT}
    for axis, trunk in zip(axes[:, 0], trunks, strict=True):
        part = rows[rows["trunk"] == trunk].set_index("proxy")
        zero_line(axis)
        _draw_oracle_band(axis, part)
        draw_side_by_side(axis, places, 0.26, part, proxies, methods, size=5.5)
        list_rows(axis, [network_title(proxy) for proxy in proxies])
        for number, (head, values) in enumerate(beside_each.items()):
            x = 1.02 + 0.13 * number
            for place, proxy in zip(places, proxies, strict=True):
                where = ("axes fraction", "data")
                text = f"{values[trunk, proxy]:.2f}"
                axis.annotate(text, (x, place), xycoords=where, va="center", **beside)
            axis.annotate(head, (x, 1.02), xycoords="axes fraction", **beside)
        axis.set_title(f"Heads on {network_title(trunk)}")
    axes[-1, 0].set_xlabel(f"{METRICS[metric].title} − ERM (points)")
    return done(add_legend(figure))


def audited(table: DataFrame, proxies: DataFrame) -> Figure:
    """Draw what the audit estimates without identities against the truth, at the strongest bias level.

    A panel for the minority cells and one for balanced images, a point a method; diamonds are the plain
    accuracy on the same biased images. Where the audit was made with several proxies, a third panel shows
    what it flags against how well the proxy tells people apart.

    Parameters
    ----------
    table, proxies : DataFrame
        ``audit`` and ``audit-quality`` of :func:`study.experiment.audited.audit_study`.
    """
    level = table["level"].max()
    own = table[(table["level"] == level) & (table["proxy"] == "as it is")]
    known = own[own["truth"].notna()]
    measures = [name for name in ("minority", "balanced") if (known["measure"] == name).any()]
    several = proxies[proxies.groupby("level")["proxy"].transform("size") > 1]
    figure, axes = panels(len(measures) + (len(several) > 0), 3, 3.3, 3.2)
    for axis, measure in zip(axes.flat, measures, strict=False):
        _draw_estimates(axis, known[known["measure"] == measure], AUDITED[measure])
    if len(several):
        _draw_flags(axes.flat[len(measures)], several)
    return done(add_legend(figure))


def _draw_estimates(axis: Axes, rows: DataFrame, title: str) -> None:
    """Estimates of one measure against the truth, a point a method."""
    values = np.concatenate([rows[name].dropna() for name in ("truth", "estimate", "plain")])
    margin = 0.04 * (np.ptp(values) or 0.1)
    ends = np.array([values.min() - margin, values.max() + margin])
    axis.plot(ends, ends, color=QUIET, lw=1)
    axis.plot(
        rows["truth"], rows["plain"], "D", ms=4, mfc="none", mec=QUIET, label="plain accuracy"
    )
    for _, row in rows.iterrows():
        method = row["method"]
        strong = method in STRONG
        look = marker_style(method) if strong else {"marker": "o", "color": ACCENT, "alpha": 0.5}
        name = f"audit, {marked_title(method)}" if strong else "audit, other methods"
        size = 6 if strong else 4
        axis.plot(row["truth"], row["estimate"], ls="", ms=size, zorder=3, label=name, **look)
    axis.set(xlim=ends, ylim=ends, xlabel="true accuracy", ylabel="without identities", title=title)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(4))
        side.set_major_formatter(percent_tick)


def _draw_flags(axis: Axes, proxies: DataFrame) -> None:
    """What the audit flags with each proxy; a cross where it does not trust the proxy most times.

    Proxies stand at their right pairs: beside these, the area under the ROC curve hides what is wrong.
    """
    rows = proxies.sort_values("right_pairs")
    right = rows["right_pairs"]
    axis.plot(right, rows["found"], "o-", color=OTHER, label="minority images flagged")
    axis.plot(right, rows["false"], "v--", color=ACCENT, label="other images flagged")
    refused = right[rows["distrusted"] > 0.5]
    above = np.full(len(refused), 1.06)
    axis.plot(refused, above, "x", color=TEXT, label="the audit distrusts the proxy")
    axis.set(ylim=(-0.03, 1.1), title="Proxies")
    axis.set(xlabel="right pairs, at a false match rate of 0.001")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(percent_tick)


def _draw_oracle_band(axis: Axes, rows: DataFrame) -> None:
    """Draw the oracle's gain, which no proxy changes, as a line and its interval as a band."""
    for _, oracle in rows[rows["method"] == "oracle"].head(1).iterrows():
        low = 100 * oracle["low"]
        high = 100 * oracle["high"]
        green = colour("oracle")
        if np.isfinite(low):
            axis.axvspan(low, high, color=green, alpha=0.12, lw=0)
        axis.axvline(
            100 * oracle["mean"], color=green, lw=1.6, ls="--", label=marked_title("oracle")
        )


def by_group(
    table: DataFrame, methods: list[str], level: float, kind: str = "correlation"
) -> Drawn:
    """Draw accuracy of groups of seen people under ERM, and gains over it (`accuracy_by_group`)."""
    rows = table[(table["test"] == "seen") & (table["level"] == level) & (table["group"] != "gap")]
    if rows.empty:
        return Markdown("*This data set names no demographic groups.*")
    rows = rows.set_index(["column", "group", "people"])
    groups = rows.index.unique()
    names = [f"{words(column)}: {group} ({people})" for column, group, people in groups]
    column = groups.get_level_values("column").to_series()
    is_new_column = column.ne(column.shift()).to_numpy()
    places = np.arange(len(groups)) + 0.6 * is_new_column.cumsum()
    size = (10.5, 0.36 * len(groups) + 1.5)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=[1, 1.3])
    gaining = without_erm(methods)
    draw_side_by_side(left, places, 0.2, rows, groups, ["erm"])
    draw_side_by_side(right, places, 0.2, rows, groups, gaining, suffix="_difference", size=4.5)
    for axis in (left, right):
        list_rows(axis, names, places)
    left.set(title=f"Accuracy under ERM, {level_title(level, kind)}", xlabel="accuracy (%)")
    left.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    zero_line(right)
    right.set(title="Gain over ERM", xlabel="percentage points")
    return done(add_legend(figure))
