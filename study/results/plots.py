"""Figures, one function each, in one style: colour-blind-safe, one colour a method everywhere.

Every function takes tidy data and returns a matplotlib figure; :func:`save` writes it as PNG and SVG
with the same bytes for the same data.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cid.methods import METHODS
from study.results.metrics import METRICS

# Okabe & Ito's colour-blind-safe palette. The method under study is the strong one; methods it is
# compared with stand back.
COLOURS = {
    "erm": "#4d4d4d",
    "balanced": "#8c8c8c",
    "inverse-density": "#cc79a7",
    "cid": "#d55e00",
    "cid-kernel": "#e69f00",
    "cid-knn": "#0072b2",
    "surprise": "#56b4e9",
    # Paul Tol's muted palette for what they are compared with.
    "cvar-dro": "#999933",
    "kl-dro": "#ddcc77",
    "jtt": "#882255",
    "lff": "#aa4499",
    "cluster-dro": "#332288",
    "oracle": "#009e73",
    "group-dro": "#117733",
    "last-layer": "#44aa99",
}


STRONG = ("erm", "cid", "cid-knn", "oracle")


OTHER, ACCENT, QUIET = "#0072b2", "#d55e00", "#9a9a9a"


TESTS = {"seen": "Seen people, held-out images", "unseen": "People never seen in training"}


def style() -> None:
    """Set the figure style; call once at the top of a notebook."""
    sns.set_theme(
        style="ticks",
        context="notebook",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "figure.facecolor": "white",
            "font.family": "DejaVu Sans",  # ships with matplotlib, so the same everywhere
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "cid",
            "svg.fonttype": "none",
        },
    )


def save(figure: Figure, stem) -> Figure:
    """Write ``stem.png`` and ``stem.svg`` and hand the figure back, for a notebook to display."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (
        (".png", {"Software": None}),
        (".svg", {"Date": None, "Creator": None}),
    ):
        figure.savefig(stem.with_suffix(suffix), bbox_inches="tight", metadata=metadata)
    return figure


def title(method: str) -> str:
    """A method's name in figures; the oracle is marked, as it alone saw true identities."""
    spec = METHODS[method]
    return spec.title + (" (true identities)" if "identity" in spec.sees else "")


def _done(figure: Figure) -> Figure:
    """Close a finished figure: a notebook then shows it once, where it is the cell's value."""
    plt.close(figure)
    return figure


def face_grid(
    images, card: dict, *, columns: int, captions=None, row_titles=None, cell: float = 0.9
) -> Image | Markdown:
    """Faces in a grid, read row by row, as a JPEG: a tenth of a PNG's size for photographs.

    A sentence instead, where the data card forbids showing photographs.

    Parameters
    ----------
    card : dict
        The data card; its ``show_images`` decides, and without that key images are shown.
    images : sequence of uint8 arrays (height, width, 3)
    columns : int
    captions : sequence of str, optional
        Text under each face.
    row_titles : sequence of str, optional
        Text left of each row.
    cell : float
        Width of a face in inches.
    """
    if not card.get("show_images", True):
        return Markdown("*The photographs of this data set are of real people and not shown.*")
    rows = -(-len(images) // columns)
    height = cell * (1.22 if captions is not None else 1.04)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * cell, rows * height), squeeze=False
    )
    for k, axis in enumerate(axes.flat):
        axis.set_xticks([])
        axis.set_yticks([])
        sns.despine(ax=axis, left=True, bottom=True)
        if k < len(images):
            axis.imshow(images[k])
            if captions is not None:
                axis.set_xlabel(captions[k], fontsize=7.5, labelpad=2)
    for axis, text in zip(axes[:, 0], row_titles or [], strict=False):
        axis.set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    figure.subplots_adjust(wspace=0.04, hspace=0.24 if captions is not None else 0.04)
    buffer = io.BytesIO()
    _done(figure).savefig(
        buffer, format="jpeg", dpi=110, bbox_inches="tight", pil_kwargs={"quality": 88}
    )
    return Image(buffer.getvalue(), format="jpeg")


def idea(
    image, card: dict, sets: dict, proxy, labels, identities, task: str, stem, method: str = "cid"
) -> Image | Markdown:
    """The study in pictures: a person's faces, their neighbours, and their weights as bias grows.

    Parameters
    ----------
    image : callable
        ``row -> uint8 array (height, width, 3)``.
    card : dict
        As in :func:`face_grid`: a sentence instead where photographs must not be shown.
    sets : dict of pandas.DataFrame
        From :func:`study.experiment.runs.weigh_sets`, by bias level; the first seed is drawn.
    proxy : array, shape (n, d)
        Unit vectors.
    labels, identities : int array, shape (n,)
    stem : path
        Where the picture is written, without its ending: a JPEG.
    method : str
        Whose weights are drawn; the oracle's are marked where it took part.
    """
    if not card.get("show_images", True):
        return Markdown("*The photographs of this data set are of real people and not shown.*")
    parts = {}
    for level, table in sets.items():
        part = table[(table["seed"] == table["seed"].min()) & (table["part"] == "train")]
        parts[level] = part.assign(person=identities[part["row"]], label=labels[part["row"]])
    # Somebody whose training sets keep an image of the rarer label for as long as anybody's.
    mixed = sum(part.groupby("person")["label"].nunique() for part in parts.values())
    person = mixed.idxmax()
    parts = {level: part[part["person"] == person] for level, part in parts.items()}
    shown = sorted({list(parts)[k] for k in (0, len(parts) // 2, -1)})
    columns = min(18, max(len(parts[level]) for level in shown))
    top = max(parts[level][method].max() for level in shown)

    of_one = np.flatnonzero(identities == person)
    of_one = of_one[np.linspace(0, len(of_one) - 1, min(columns, len(of_one))).astype(int)]
    near = np.argsort(-(proxy @ proxy[of_one[0]]), kind="stable")[1 : columns + 1]
    same = (identities[near] == person).sum()
    rows = [
        ("One person", of_one, None),
        (
            f"Nearest to the first face\nin the proxy, of all:\n{same} of {len(near)} are theirs",
            near,
            None,
        ),
    ]
    for level in shown:
        part = parts[level].sort_values(["label", "row"])[:columns]
        rows.append((f"Their training set\nat bias {level:g}", part["row"].to_numpy(), part))
    heights = [1.15 if part is None else 2.75 for *_, part in rows]
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(11, 11 / (columns + 3.2) * sum(heights)), height_ratios=heights
    )
    for axis, (text, row, part) in zip(axes, rows, strict=True):
        x, gap = np.arange(len(row), dtype=float), 0.0
        if part is not None:
            x += 0.35 * (part["label"].to_numpy() > part["label"].min())
        for at, index in zip(x, row, strict=True):
            axis.imshow(image(index), extent=(at, at + 0.94, 0, 0.94))
            if identities[index] != person:
                frame = plt.Rectangle((at, 0), 0.94, 0.94, fill=False, ec=ACCENT, lw=1.5, ls=":")
                axis.add_patch(frame)
        if part is not None:
            scale = 0.95 / top
            axis.bar(x + 0.47, part[method] * scale, 0.7, bottom=1.08, color=COLOURS[method])
            for at, weight in zip(x, part.get("oracle", []), strict=False):
                high = 1.08 + min(weight, 1.1 * top) * scale
                axis.hlines(high, at + 0.08, at + 0.86, color=COLOURS["oracle"], lw=1.6)
                if weight > 1.1 * top:  # beyond the picture
                    where = {"ha": "center", "va": "bottom", "fontsize": 7.5}
                    axis.text(at + 0.47, high, f"↑ {weight:.1f}", color=COLOURS["oracle"], **where)
            for value, own in zip(*np.unique(part["label"], return_counts=True), strict=True):
                where = x[part["label"].to_numpy() == value]
                axis.text(where[0], -0.05, f"{task} = {value}: {own}", fontsize=8, va="top")
            gap = 0.22
        axis.set(xlim=(0, columns + 0.4), ylim=(-gap, 1.02 if part is None else 2.4))
        axis.set_aspect("equal")
        axis.axis("off")
        axis.text(-0.25, 0.47, text, ha="right", va="center", fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[method])]
    names = [f"weight, {title(method)}"]
    if "oracle" in parts[shown[0]]:
        handles.append(plt.Line2D([], [], color=COLOURS["oracle"], lw=1.6))
        names.append("weight, " + title("oracle"))
    if (identities[near] != person).any():
        handles.append(plt.Rectangle((0, 0), 1, 1, fill=False, ec=ACCENT, lw=1.5, ls=":"))
        names.append("somebody else")
    figure.legend(handles, names, loc="lower center", ncols=3, fontsize=9)
    figure.subplots_adjust(left=0.14, right=0.99, top=0.99, bottom=0.05, hspace=0.12)
    path = Path(stem).with_suffix(".jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    _done(figure).savefig(path, dpi=130, bbox_inches="tight", pil_kwargs={"quality": 88})
    return Image(path.read_bytes(), format="jpeg")


def audit(people: pd.DataFrame, attribute: str, needed: int) -> Figure:
    """Images per identity and the balance of the label inside identities.

    Parameters
    ----------
    people : pandas.DataFrame
        From :func:`study.experiment.design.usable_identities`.
    attribute : str
    needed : int
        Images of either class an identity needs to be used.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    images = people["class_0"] + people["class_1"]
    low, high = images.min(), images.max()
    step = max(1, round((high - low) / 40))
    left.hist(images, bins=np.arange(low - 0.5, high + step + 0.5, step), color=OTHER, rwidth=0.9)
    left.set_xlim(low - 3, high + 3)  # whole numbers on the axis, also where all have the same
    left.set(title="Images per person", xlabel="images", ylabel="people")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))

    spots = people.groupby(["class_0", "class_1", "usable"]).size().reset_index(name="people")
    for usable, colour, label in ((True, OTHER, "used"), (False, QUIET, "excluded")):
        part = spots[spots["usable"] == usable]
        if len(part):
            right.scatter(
                part["class_0"],
                part["class_1"],
                s=18 + 5 * part["people"],
                color=colour,
                alpha=0.8,
                label=f"{label}: {part['people'].sum()} people",
            )
    right.axvline(needed, color=ACCENT, lw=1, ls="--")
    right.axhline(needed, color=ACCENT, lw=1, ls="--", label=f"needed: {needed} of either class")
    right.set(
        title="Label balance inside people",
        xlabel=f"images with {attribute} = 0",
        ylabel=f"images with {attribute} = 1",
    )
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    right.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    return _done(figure)


def attribute_correlation(frame: pd.DataFrame, attributes: list[str]) -> Figure:
    """Correlation of the 0/1 attributes over images, and of each with identity.

    Dependence on identity is the share of a label's variance that lies between people (eta squared);
    it is 0 when everyone has the same share of positive images.
    """
    size = max(3.2, 0.75 * len(attributes) + 1.4)
    figure, axis = plt.subplots(figsize=(size + 1, size * 0.8))
    table = frame[attributes].corr()
    means = frame.groupby("identity")[attributes].transform("mean")
    table["identity (η²)"] = means.var(ddof=0) / frame[attributes].var(ddof=0)
    sns.heatmap(
        table, vmin=-1, vmax=1, cmap="vlag", annot=len(attributes) <= 10, fmt=".2f", square=True,
        cbar_kws={"shrink": 0.7}, annot_kws={"fontsize": 8}, ax=axis,
    )  # fmt: skip
    axis.set_title("Labels against each other and against identity")
    axis.tick_params(axis="x", rotation=35)
    plt.setp(axis.get_xticklabels(), ha="right")
    return _done(figure)


def demographics(people: pd.DataFrame, columns: list[str]) -> Figure:
    """People per demographic group; ``people`` has one row an identity."""
    figure, axes = plt.subplots(1, len(columns), figsize=(2.8 * len(columns), 2.6), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        counts = people[column].value_counts().sort_index()
        axis.barh(counts.index.astype(str), counts, color=OTHER, height=0.7)
        for y, count in enumerate(counts):
            axis.text(count, y, f" {count}", va="center", fontsize=8)
        axis.set(title=column.replace("_", " "), xlabel="people")
        axis.margins(x=0.18)
        axis.invert_yaxis()
    figure.tight_layout()
    return _done(figure)


def verification(same, different, auc: float) -> Figure:
    """Similarity histograms of same-person and different-people pairs, and the ROC curve.

    Parameters
    ----------
    same, different : float arrays
        Cosine similarities, from :func:`study.results.metrics.pair_similarities`.
    auc : float
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    bins = np.linspace(min(same.min(), different.min()), 1, 120)
    for values, colour, label in (
        (different, QUIET, "different people"),
        (same, ACCENT, "same person"),
    ):
        left.hist(values, bins=bins, density=True, color=colour, alpha=0.75)
        centre = np.median(values)
        peak = np.histogram(values, bins=bins, density=True)[0].max()
        left.annotate(label, (centre, peak), (0, 3), textcoords="offset points", ha="center",
                      color=colour, fontsize=9, fontweight="bold")  # fmt: skip
    left.margins(y=0.12)
    left.set(
        title="Proxy similarity of pairs", xlabel="cosine similarity", ylabel="density", yticks=[]
    )

    # The curve from a fine histogram: millions of pairs need no exact sort to be drawn.
    edges = np.linspace(-1, 1, 20001)
    false_rate = np.r_[0, np.cumsum(np.histogram(different, edges)[0][::-1])] / len(different)
    true_rate = np.r_[0, np.cumsum(np.histogram(same, edges)[0][::-1])] / len(same)
    shown = false_rate > 0
    right.plot(false_rate[shown], true_rate[shown], color=ACCENT, lw=2)
    right.set_xscale("log")
    right.set(
        title=f"Verification ROC, AUC {auc:.4f}",
        xlabel="false match rate",
        ylabel="true match rate",
        ylim=(0, 1.02),
    )
    right.grid(alpha=0.3)
    figure.tight_layout()
    return _done(figure)


def weight_by_cell(table: pd.DataFrame, methods: list[str]) -> Figure:
    """Weight of a training image against the true size of its (identity, class) cell.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a training image: ``cell_size`` and one weight column a method.
    methods : list of str
    """
    figure, axis = plt.subplots(figsize=(7, 3.8))
    sizes = np.sort(table["cell_size"].unique())
    for method in methods:
        groups = table.groupby("cell_size")[method]
        middle, low, high = groups.mean(), groups.quantile(0.1), groups.quantile(0.9)
        axis.fill_between(sizes, low, high, color=COLOURS[method], alpha=0.15, lw=0)
        axis.plot(sizes, middle, "o-", ms=4, color=COLOURS[method], label=title(method))
    axis.axhline(1, color=QUIET, lw=0.8, ls=":")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axis.set(
        title="Weight against the true size of the (person, class) cell",
        xlabel="training images of the same person and class",
        ylabel="weight (mean 1, log scale)",
    )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8)
    figure.tight_layout()
    return _done(figure)


def weight_distribution(table: pd.DataFrame, methods: list[str], ess: dict[str, float]) -> Figure:
    """Distribution of the weights of each method, with its effective sample size (share of n)."""
    figure, axes = plt.subplots(
        len(methods), 1, figsize=(7, 0.75 * len(methods) + 0.9), sharex=True, squeeze=False
    )
    shown = table[methods].to_numpy()
    bins = np.geomspace(shown.min() / 1.1, shown.max() * 1.1, 90)
    for axis, method in zip(axes[:, 0], methods, strict=True):
        axis.hist(table[method], bins=bins, color=COLOURS[method])
        axis.set(xscale="log", yticks=[])
        sns.despine(ax=axis, left=True)
        axis.text(
            0.995, 0.6, f"{title(method)}\neffective size {ess[method]:.0%} of n",
            transform=axis.transAxes, ha="right", fontsize=8.5, color=COLOURS[method],
        )  # fmt: skip
    axes[0, 0].set_title("Distribution of weights over training images")
    axes[-1, 0].set_xlabel("weight (mean 1, log scale)")
    axes[-1, 0].xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    return _done(figure)


def run_accuracy(runs: pd.DataFrame, methods: list[str]) -> Figure:
    """Accuracy of every run of one bias level; seeds joined by a line, as they share their images."""
    width = max(10, 1.1 * len(methods))
    figure, axes = plt.subplots(1, 2, figsize=(width, 3.6), sharey=True)
    for axis, (test, name) in zip(axes, TESTS.items(), strict=True):
        values = runs[runs["test"] == test].pivot(index="seed", columns="method", values="accuracy")
        values = values[methods]
        axis.plot(values.to_numpy().T, color=QUIET, lw=0.6, alpha=0.6)
        for x, method in enumerate(methods):
            axis.plot(
                [x] * len(values), values[method], "o", ms=4, color=COLOURS[method], alpha=0.7
            )
            axis.plot([x - 0.22, x + 0.22], [values[method].mean()] * 2, color="black", lw=1.8)
        axis.set(title=name, xticks=range(len(methods)))
        axis.set_xticklabels([METHODS[m].title for m in methods], rotation=30, ha="right")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes[0].set_ylabel("accuracy (a point: one seed; bar: mean)")
    figure.tight_layout()
    return _done(figure)


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
    for (_, x, text, colour), y in zip(spots, heights, strict=True):
        axis.annotate(text, (x, y), (7, 0), textcoords="offset points", va="center", color=colour,
                      fontsize=8.5, fontweight="bold", annotation_clip=False)  # fmt: skip


def against_bias(table: pd.DataFrame, metrics: list[str], test: str, methods: list[str]) -> Figure:
    """Metrics against the bias level, with 95 % bands; one panel a metric.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`study.results.inference.summary`.
    """
    return _curves(table, metrics, test, methods, zero=False)


def difference_to_erm(
    table: pd.DataFrame, metrics: list[str], test: str, methods: list[str]
) -> Figure:
    """Paired difference to ERM against the bias level, with 95 % bands; one panel a metric.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`study.results.inference.difference`.
    """
    return _curves(table, metrics, test, [m for m in methods if m != "erm"], zero=True)


def _curves(table, metrics, test, methods, zero) -> Figure:
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.6 * len(metrics), 3.9), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        rows = table[(table["test"] == test) & (table["metric"] == metric)]
        ends = []
        if zero:
            axis.axhline(0, color=COLOURS["erm"], lw=1.2)
            ends.append((0.0, rows["level"].max(), "ERM", COLOURS["erm"]))
        for place, method in enumerate(methods):
            line = rows[rows["method"] == method].sort_values("level")
            strong = method in STRONG
            if len(line) == 1:  # no curve: intervals side by side
                line = line.assign(level=line["level"] + 0.01 * place)
                axis.vlines(line["level"], line["low"], line["high"], color=COLOURS[method])
            axis.fill_between(line["level"], line["low"], line["high"], color=COLOURS[method],
                              alpha=0.18 if strong else 0.08, lw=0)  # fmt: skip
            axis.plot(line["level"], line["mean"], "o-", color=COLOURS[method],
                      lw=2.2 if strong else 1.2, ms=4.5 if strong else 3)  # fmt: skip
            ends.append((line["mean"].iloc[-1], line["level"].iloc[-1], METHODS[method].title,
                         COLOURS[method]))  # fmt: skip
        _direct_labels(axis, ends)
        axis.set(
            title=METRICS[metric].title + (" − ERM" if zero else ""),
            xlabel="bias level of the training set",
        )
        levels = sorted(rows["level"].unique())
        axis.set_xticks(levels, [f"{level:g}" for level in levels], rotation=50, fontsize=8)
        if zero:
            axis.yaxis.set_major_formatter(
                mpl.ticker.FuncFormatter(lambda y, _: f"{100 * y:+.1f}".replace("-", "−"))
            )
            axis.set_ylabel("percentage points")
        else:
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.suptitle(TESTS[test], x=0.01, ha="left", fontsize=10, color="#555555")
    figure.tight_layout(w_pad=4)
    return _done(figure)


def identity_distribution(per_identity: pd.DataFrame, methods: list[str], level: float) -> Figure:
    """Accuracy of every person, averaged over seeds, sorted; and each person's gain over ERM.

    Parameters
    ----------
    per_identity : pandas.DataFrame
        One row a person, one column a method: mean accuracy over the seeds that saw this person.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8))
    rank = np.arange(1, len(per_identity) + 1)
    for method in methods:
        left.plot(
            rank, np.sort(per_identity[method]), color=COLOURS[method], lw=2, label=title(method)
        )
    left.set(title=f"Accuracy person by person, bias {level:g}", xlabel="people, worst first",
             ylabel="accuracy")  # fmt: skip
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.legend(fontsize=8, loc="lower right")
    for method in methods:
        if method == "erm":
            continue
        gain = 100 * (per_identity[method] - per_identity["erm"])
        right.scatter(per_identity["erm"], gain, s=14, color=COLOURS[method], alpha=0.75)
        slope, cut = np.polyfit(per_identity["erm"], gain, 1)
        ends = np.array([per_identity["erm"].min(), per_identity["erm"].max()])
        right.plot(ends, cut + slope * ends, color=COLOURS[method], lw=1.5, label=title(method))
    right.axhline(0, color=COLOURS["erm"], lw=1)
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set(title="Who gains", xlabel="the person's accuracy under ERM",
              ylabel="gain over ERM (points)")  # fmt: skip
    right.legend(fontsize=8)
    figure.tight_layout()
    return _done(figure)


def sensitivity(table: pd.DataFrame, metrics: list[str], test: str, methods: list[str]) -> Figure:
    """Slope of each metric over the bias level with its 95 % interval; nearer 0 is less sensitive.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`study.results.inference.sensitivity`.
    """
    if table.empty:
        figure, axis = plt.subplots(figsize=(4, 0.4))
        axis.text(0, 0.5, "One bias level only: there is no slope over the bias.", fontsize=9)
        axis.axis("off")
        return _done(figure)
    return _forest(
        table[table["test"] == test],
        metrics,
        methods,
        "change of the metric from bias 0 to 1 (points)",
        lambda metric: f"Sensitivity: {METRICS[metric].title.lower()}",
        100,
    )


def recovered(
    table: pd.DataFrame, metrics: list[str], test: str, methods: list[str], level
) -> Figure:
    """Share of the oracle's gain over ERM that each method without identity labels recovers."""
    rows = table[(table["test"] == test) & (table["level"] == level)]
    return _forest(
        rows,
        metrics,
        [m for m in methods if m not in ("erm", "oracle")],
        "share of the oracle's gain over ERM (0 = ERM, 1 = oracle)",
        lambda metric: f"Oracle gap recovered, bias {level:g}: {METRICS[metric].title.lower()}",
        1,
    )


def _forest(rows, metrics, methods, xlabel, name, scale) -> Figure:
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(5.2 * len(metrics), 0.36 * len(methods) + 1.5), squeeze=False
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = rows[rows["metric"] == metric].set_index("method")
        axis.axvline(0, color=QUIET, lw=1)
        for y, method in enumerate(methods):
            mean, low, high = scale * part.loc[method, ["mean", "low", "high"]].astype(float)
            if np.isfinite(mean):
                axis.plot([low, high], [y, y], color=COLOURS[method], lw=2.4, solid_capstyle="butt")
                axis.plot(mean, y, _marker(method), ms=6, color=COLOURS[method])
            else:
                axis.text(
                    0,
                    y,
                    "  undefined: the oracle's gain is not clear of 0",
                    va="center",
                    fontsize=8,
                )
        axis.set_yticks(range(len(methods)), [title(m) for m in methods])
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.set_title(name(metric), fontsize=9.5)
        axis.set_xlabel(xlabel, fontsize=8.5)
    for axis in axes[0, 1:]:
        axis.set_yticklabels([])
    figure.tight_layout()
    return _done(figure)


def _marker(method: str) -> str:
    """Methods that saw true identities have a square, the others a disc."""
    return "s" if "identity" in METHODS[method].sees else "o"


def compare(table: pd.DataFrame, metrics: list[str], test: str, methods: list[str]) -> Figure:
    """Gain over ERM of every method, averaged over the bias range; best of each kind first.

    Methods that saw true identities stand below the others and have squares.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`study.results.inference.area`.
    """
    rows = table[table["test"] == test].drop(columns=["mean", "low", "high"])
    rows = rows.rename(columns=lambda name: name.removesuffix("_difference"))
    gain = rows[rows["metric"] == metrics[0]].set_index("method")["mean"]
    order = sorted(
        (m for m in methods if m != "erm"),
        key=lambda m: ("identity" in METHODS[m].sees, -gain[m]),
    )
    return _forest(
        rows,
        metrics,
        order,
        "points over ERM, mean over the bias range",
        lambda metric: f"{METRICS[metric].title}: gain over ERM",
        100,
    )


def factors(tables: dict[str, pd.DataFrame], columns: dict[str, str]) -> Figure:
    """Each factor of the weights against the true size of the (person, class) cell.

    Parameters
    ----------
    tables : dict of pandas.DataFrame
        From :func:`study.experiment.variations.factors`, by the title of a panel row.
    columns : dict of str
        Factor to the title of its panel; the true factor is drawn beside it.
    """
    figure, axes = plt.subplots(
        len(tables), len(columns), figsize=(3.1 * len(columns), 2.9 * len(tables)),
        sharex="row", sharey="row", squeeze=False,
    )  # fmt: skip
    for row, (kind, table) in zip(axes, tables.items(), strict=True):
        # Where all cells are alike but for rounding, a handful of images would be the axis.
        size = table.groupby("cell_size")["row"].transform("size")
        table = table[size >= 0.002 * len(table)]
        groups = table.groupby("cell_size")
        for axis, (column, name) in zip(row, columns.items(), strict=True):
            truth = groups["true rarity" if column == "rarity" else "true surprise"].mean()
            middle = groups[column].mean()
            low, high = groups[column].quantile(0.1), groups[column].quantile(0.9)
            axis.plot(truth.index, truth, "--", color=COLOURS["oracle"], lw=1.8)
            axis.fill_between(middle.index, low, high, color=OTHER, alpha=0.15, lw=0)
            axis.plot(middle.index, middle, "o-", ms=3, color=OTHER)
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
            axis.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axis in axes[0]:
                axis.set_title(name, fontsize=9)
            axis.annotate(
                "truth", (truth.index[0], truth.iloc[0]), (6, 3), textcoords="offset points",
                color=COLOURS["oracle"], fontsize=8, fontweight="bold",
            )  # fmt: skip
        row[0].set_ylabel(f"{kind}\nfactor (mean 1, log scale)", fontsize=8.5)
    for axis in axes[-1]:
        axis.set_xlabel("images of the same person and class", fontsize=8)
    figure.tight_layout()
    return _done(figure)


def posteriors(table: pd.DataFrame) -> Figure:
    """What the labels' leave-one-out likelihood chooses at each bias level, and how well it fits.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`study.experiment.variations.posteriors`.
    """
    figure, axes = plt.subplots(1, 4, figsize=(12.5, 3))
    mean = table.groupby(["estimator", "level"]).mean(numeric_only=True)
    names = {"knn": ("k-NN", COLOURS["cid-knn"]), "kernel": ("kernel", COLOURS["cid-kernel"])}
    ends = []
    for estimator, (name, colour) in names.items():
        part = mean.loc[estimator]
        axes[0].plot(part.index, part["loss"], "o-", ms=4, color=colour)
        ends.append((part["loss"].iloc[-1], part.index[-1], name, colour))
        axes[3].plot(part.index, part["slope"], "o-", ms=4, color=colour, label=name)
        axes[1 if estimator == "knn" else 2].plot(
            part.index, part["scale"], "o-", ms=4, color=colour
        )
    part = mean.loc["knn"]
    axes[0].plot(part.index, part["prior_loss"], ":", color=QUIET)
    axes[0].plot(part.index, part["true_loss"], "--", color=COLOURS["oracle"])
    ends.append((part["prior_loss"].iloc[-1], part.index[-1], "prior", QUIET))
    ends.append((part["true_loss"].iloc[-1], part.index[-1], "truth", COLOURS["oracle"]))
    axes[0].set_ylim(bottom=0)
    _direct_labels(axes[0], ends)
    axes[0].set_title("Loss of the posterior (nats)", fontsize=9.5)
    axes[1].set_title("Neighbours k", fontsize=9.5)
    axes[2].set_title("Kernel width τ", fontsize=9.5)
    axes[3].set_title("Exponent of the odds", fontsize=9.5)
    axes[3].axhline(1, color=QUIET, lw=0.8, ls=":")
    axes[3].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("bias level", fontsize=8.5)
        axis.margins(x=0.08)
    figure.tight_layout(w_pad=2.5)
    return _done(figure)


def ablation(
    table: pd.DataFrame, values: list, setting: str, metrics: list[str], methods: list[str]
) -> Figure:
    """Gain over ERM for every value of a setting, one panel a metric.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`study.results.inference.difference`, on seen people; ``level`` is a value's place.
    values : list
    setting : str
        Name of the horizontal axis.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 3.4), squeeze=False)
    drawn = [m for m in methods if m != "erm"]
    for axis, metric in zip(axes[0], metrics, strict=True):
        axis.axhline(0, color=COLOURS["erm"], lw=1.2)
        rows = table[(table["test"] == "seen") & (table["metric"] == metric)]
        for k, method in enumerate(drawn):
            part = rows[rows["method"] == method].sort_values("level")
            x = part["level"] + 0.09 * (k - (len(drawn) - 1) / 2)
            axis.vlines(x, 100 * part["low"], 100 * part["high"], color=COLOURS[method], lw=1.6)
            axis.plot(x, 100 * part["mean"], _marker(method) + "-", ms=4.5, lw=1,
                      color=COLOURS[method], label=title(method))  # fmt: skip
        axis.set_xticks(range(len(values)), [_value(v) for v in values])
        if max(len(_value(v)) for v in values) > 7:
            plt.setp(axis.get_xticklabels(), rotation=25, ha="right")
        axis.set(xlabel=setting, title=f"{METRICS[metric].title} − ERM")
    axes[0, 0].set_ylabel("percentage points")
    # Beside the panels: no place inside is free for every study.
    axes[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return _done(figure)


def _value(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def breadth(table: pd.DataFrame, metrics: list[str], methods: list[str]) -> Figure:
    """Gain over ERM, mean over the bias range, for every task and kind of bias.

    Parameters
    ----------
    table : pandas.DataFrame
        ``task``, ``kind``, ``metric``, ``method``, ``mean``, ``low``, ``high``: of seen people.
    """
    kinds, tasks = table["kind"].unique(), table["task"].unique()
    figure, axes = plt.subplots(
        len(kinds), len(metrics), squeeze=False, sharex="col",
        figsize=(5.2 * len(metrics), len(kinds) * (0.62 * len(tasks) + 0.9)),
    )  # fmt: skip
    drawn = [m for m in methods if m != "erm"]
    for row, kind in zip(axes, kinds, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            axis.axvline(0, color=COLOURS["erm"], lw=1.2)
            for k, method in enumerate(drawn):
                part = table[
                    (table["kind"] == kind)
                    & (table["metric"] == metric)
                    & (table["method"] == method)
                ]
                part = part.set_index("task").loc[tasks]
                y = np.arange(len(tasks)) + 0.2 * (k - (len(drawn) - 1) / 2)
                axis.hlines(y, 100 * part["low"], 100 * part["high"], color=COLOURS[method], lw=2)
                axis.plot(100 * part["mean"], y, _marker(method), ms=5, color=COLOURS[method],
                          label=title(method))  # fmt: skip
            axis.set_yticks(range(len(tasks)), [task.replace("_", " ") for task in tasks])
            axis.set_ylim(len(tasks) - 0.5, -0.5)
            axis.set_title(f"{kind}: {METRICS[metric].title.lower()} − ERM", fontsize=9.5)
    for axis in axes[-1]:
        axis.set_xlabel("points over ERM, mean over the bias range", fontsize=8.5)
    for axis in axes[:, 1:].flat:
        axis.set_yticklabels([])
    axes[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return _done(figure)


def by_group(table: pd.DataFrame, methods: list[str], level: float) -> Figure:
    """Accuracy of demographic groups under ERM, and what methods gain for each, on seen people.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`study.results.inference.accuracy_by_group`.
    level : float
        Bias level shown.
    """
    rows = table[(table["test"] == "seen") & (table["level"] == level) & (table["group"] != "gap")]
    names = rows[["column", "group", "people"]].drop_duplicates().reset_index(drop=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 0.3 * len(names) + 1.2), sharey=True,
        gridspec_kw={"width_ratios": [1, 1.3]},
    )  # fmt: skip
    y = np.arange(len(names), dtype=float)
    y += names["column"].ne(names["column"].shift()).cumsum().to_numpy() * 0.6
    for method in ["erm", *[m for m in methods if m != "erm"]]:
        part = rows[rows["method"] == method].set_index(["column", "group"])
        part = part.loc[list(zip(names["column"], names["group"], strict=True))]
        if method == "erm":
            left.hlines(y, part["low"], part["high"], color=COLOURS["erm"], lw=2)
            left.plot(part["mean"], y, "o", ms=5, color=COLOURS["erm"])
            continue
        at = y + 0.17 * (methods.index(method) - len(methods) / 2)
        right.hlines(at, 100 * part["low_difference"], 100 * part["high_difference"],
                     color=COLOURS[method], lw=1.8)  # fmt: skip
        right.plot(100 * part["mean_difference"], at, _marker(method), ms=4.5,
                   color=COLOURS[method], label=title(method))  # fmt: skip
    left.set_yticks(
        y,
        [
            f"{column.replace('_', ' ')}: {group} ({people})"
            for column, group, people in names.itertuples(index=False)
        ],
        fontsize=8,
    )
    left.invert_yaxis()
    left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set_title(f"Accuracy under ERM, bias {level:g}", fontsize=9.5)
    right.axvline(0, color=COLOURS["erm"], lw=1.2)
    right.set_title("Gain over ERM (points)", fontsize=9.5)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return _done(figure)
