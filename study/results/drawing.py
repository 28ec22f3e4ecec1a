"""What all figures share: style, files, intervals, legends and axes.

:mod:`study.results.plots` holds the figures, :mod:`study.results.palette` the look of each method.
:func:`show` writes a figure for the paper and displays it in a notebook.
"""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from pandas import DataFrame

from study import store
from study.faces.tasks import CROSS
from study.results.palette import HOLLOW, colour, marker
from study.results.tables import STRONG
from study.results.titles import marked_title, method_title


@dataclass(frozen=True)
class Picture:
    """A figure that shows faces. The report refuses it where the data card forbids that."""

    figure: Figure


Drawn = Figure | Markdown  # a sentence where there is nothing to draw
Shown = Figure | Picture | Markdown

FIGURES = Path("build/paper/figures")
FINAL_LAYOUT = {"figure.constrained_layout.use": False}  # of a figure that will not change any more
README_PNG = {"gain-seen", "idea"}  # a code host shows a PNG at any size

OTHER, ACCENT, QUIET, TEXT = "#0072b2", "#d55e00", "#9a9a9a", "#555555"

PRIVATE = Markdown("*The photographs of this data set show real people and are not reproduced.*")


# ---------------------------------------------------------------------------- style, and what is shown


def style() -> None:
    """Set the figure style; call once at the top of a notebook."""
    mpl.rc(("figure", "savefig"), dpi=110, facecolor="white")
    mpl.rc("figure.constrained_layout", use=True)
    # matplotlib ships with the first font; a reader's machine has it, or the second, which is as wide.
    mpl.rc("font", **{"family": "sans-serif", "sans-serif": ["DejaVu Sans", "Verdana"], "size": 10})
    mpl.rc("axes", edgecolor=TEXT, labelsize=9.5)
    mpl.rc("axes", titlesize=10.5, titleweight="bold", titlelocation="left")
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc(("xtick", "ytick"), color=TEXT, labelcolor="black", labelsize=9)
    mpl.rc("lines", solid_capstyle="butt")
    mpl.rc("legend", frameon=False, fontsize=9)
    mpl.rc("image", composite_image=False)  # an SVG keeps every face at its own resolution


def show(figure: Shown, name: str, caption: str, alt: str) -> None:
    """Write a figure into :data:`FIGURES` and display it with its caption.

    The same data give the same bytes. A sentence is displayed and not written; :data:`PRIVATE` is
    neither, because one section of the report says it for all of them.

    Parameters
    ----------
    figure : Figure, Picture or Markdown
        Written as ``<name>.svg``, and as ``<name>.png`` where the name is in :data:`README_PNG`.
    name : str
        Name of the file without its ending.
    caption : str
        Markdown that says what to look at.
    alt : str
        Describes the figure to readers who cannot see it.
    """
    if figure is PRIVATE:
        return
    if isinstance(figure, Markdown):
        display(figure)
        return
    about: dict[str, object] = {"name": name, "caption": caption, "alt": alt}
    if isinstance(figure, Picture):
        about["faces"] = True
        drawn = figure.figure
        area = used_area(drawn)
        svg = picture_svg(drawn, area)
        png = partial(picture_png, drawn, area, dpi=110)
        kind = "image/jpeg"
        displayed = picture_jpeg(drawn, area, dpi=90)
    else:
        area = used_area(figure)
        svg = chart_svg(figure, area)
        png = partial(chart_png, figure, area, dpi=200)
        kind = "image/png"
        displayed = chart_png(figure, area, dpi=100)
    store.write(FIGURES / f"{name}.svg", lambda file: file.write(svg))
    if name in README_PNG:  # drawn for these alone, as it takes as long as the figure itself
        store.write(FIGURES / f"{name}.png", lambda file: file.write(png()))
    picture = {kind: base64.b64encode(displayed).decode(), "text/plain": alt}
    display(picture, raw=True, metadata={"figure": about})
    display({"text/markdown": caption, "text/plain": caption}, raw=True, metadata={"caption": name})


def show_folded(summary: str, text: str) -> None:
    """Display Markdown under a summary; on the page of the report it is folded away."""
    shown = f"**{summary}**\n\n{text}"
    bundle = {"text/markdown": shown, "text/plain": shown}
    display(bundle, raw=True, metadata={"fold": summary})


# ---------------------------------------------------------------------------- methods


def marker_style(method: str) -> dict:
    """Return the marker of a method and its colours, as keyword arguments of ``Axes.plot``."""
    face = "white" if method in HOLLOW else colour(method)
    return {"marker": marker(method), "markerfacecolor": face, "markeredgecolor": colour(method)}


def present(table: DataFrame, methods: Iterable[str]) -> list[str]:
    """Those of the methods that a table has rows of."""
    known = set(table["method"])
    return [method for method in methods if method in known]


def without_erm(methods: Iterable[str]) -> list[str]:
    return [method for method in methods if method != "erm"]


# ---------------------------------------------------------------------------- words


def words(name: str) -> str:
    """A name of a column, or of a task, as words."""
    return name.replace("_", " ").replace(CROSS, " × ")


def value_name(value) -> str:
    """A value of a setting as it is written in params.yaml."""
    if str(value) in ("True", "False"):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def points_tick(share: float, _=None) -> str:
    """A tick in percentage points."""
    return f"{round(100 * share, 2):+g}".replace("-", "−") if share else "0"


def percent_tick(share: float, _=None) -> str:
    """A tick in percent."""
    return f"{round(100 * share, 2):g} %"


# ---------------------------------------------------------------------------- files


def done(figure: Figure) -> Figure:
    """Close a finished figure, so that a notebook displays it once, in :func:`show`."""
    plt.close(figure)
    return figure


def used_area(figure: Figure) -> Bbox:
    """The part of a figure that holds something, in inches; fixes the layout.

    Saving would otherwise lay the figure out twice for every file, which takes longer than to draw it.
    """
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
    with mpl.rc_context(FINAL_LAYOUT):
        figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])


def saved(figure: Figure, kind: str, area: Bbox, **options) -> bytes:
    """The bytes of a figure as a file of this kind."""
    buffer = io.BytesIO()
    # The same ids in every run; letters as letters, which take a third of the bytes of their outlines.
    fixed = {"svg.hashsalt": "cid", "svg.fonttype": "none"}
    with mpl.rc_context(fixed | FINAL_LAYOUT):
        figure.savefig(buffer, format=kind, bbox_inches=area, **options)
    return buffer.getvalue()


def chart_svg(figure: Figure, area: Bbox, **options) -> bytes:
    """A figure as SVG, its coordinates rounded to .01 points, which hides the last digit of a sum."""
    undated = {"Date": None, "Creator": None}
    text = saved(figure, "svg", area, metadata=undated, **options).decode()
    number = re.compile(r"(?<![\w.])-?\d+\.\d{3,}")

    def shorten(tag: re.Match) -> str:
        return number.sub(lambda found: f"{float(found[0]):.2f}", tag[0])

    text = re.sub(r"<[^>]+>", shorten, text)
    text = re.sub(r"\n +", "\n", text)
    return _share_styles(text).encode()


def _share_styles(svg: str) -> str:
    """Write a style that several elements have once, as a class: a third of a chart's bytes."""
    attribute = re.compile(r' style="([^"]+)"')
    styles = Counter(attribute.findall(svg))
    repeated = [style for style, uses in styles.items() if uses > 1]
    classes = {style: f"c{number}" for number, style in enumerate(repeated)}

    def as_class(match: re.Match) -> str:
        return f' class="{classes[match[1]]}"' if match[1] in classes else match[0]

    rules = "\n".join(f".{name} {{ {style} }}" for style, name in classes.items())
    head, separator, rest = attribute.sub(as_class, svg).partition("<defs>")
    return f"{head}<style>\n{rules}\n</style>\n{separator}{rest}"


def chart_png(figure: Figure, area: Bbox, dpi: int) -> bytes:
    """A chart with a palette of 128 colours: a third of the bytes, and no difference to the eye."""
    return _with_palette(saved(figure, "png", area, metadata={"Software": None}, dpi=dpi), 128)


def picture_png(figure: Figure, area: Bbox, dpi: int) -> bytes:
    """A figure of faces with a palette of 256 colours."""
    return _with_palette(saved(figure, "png", area, metadata={"Software": None}, dpi=dpi), 256)


def picture_jpeg(figure: Figure, area: Bbox, dpi: int) -> bytes:
    """A figure of faces as one JPEG, for notebooks."""
    return saved(figure, "jpeg", area, dpi=dpi, pil_kwargs={"quality": 72})


def picture_svg(figure: Figure, area: Bbox) -> bytes:
    """A figure of faces as SVG: text and lines as such, every face as a JPEG of its own.

    It has no background, and its text is light where the reader prefers a dark page.
    """
    text = chart_svg(figure, area, facecolor="none").decode()
    text = re.sub(r"data:image/png;base64,([^\"]+)", _png_to_jpeg, text)
    light = "@media (prefers-color-scheme: dark) { text { fill: #dee2e7 } }"
    head, separator, rest = text.partition("<defs>")
    return f"{head}<style>{light}</style>\n{separator}{rest}".encode()


def _png_to_jpeg(match: re.Match) -> str:
    face = PIL.Image.open(io.BytesIO(base64.b64decode(match[1])))
    buffer = io.BytesIO()
    face.convert("RGB").save(buffer, "jpeg", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _with_palette(png: bytes, colours: int) -> bytes:
    picture = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(colours).save(buffer, "png", optimize=True)
    return buffer.getvalue()


# ---------------------------------------------------------------------------- panels and legends


def even_rows(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for ``count`` items, at most ``most`` in a row, the rows evenly filled."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def panels(count: int, most: int, width: float, height: float, **shared) -> tuple:
    """Make a figure of ``count`` panels in :func:`even_rows`; panels beyond them are blank."""
    rows, columns = even_rows(count, most)
    size = (max(5.5, width * columns), height * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **shared)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes


def add_legend(figure: Figure, loc: str = "outside lower center", reverse: bool = False) -> Figure:
    """Add one legend of all panels below them, where it covers nothing in any study."""
    entries: dict[str, object] = {}
    for axis in figure.axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    _, columns = even_rows(len(entries), 4)
    figure.legend(entries.values(), entries.keys(), loc=loc, ncols=columns, reverse=reverse)
    return figure


def list_rows(axis: Axes, names: Sequence[str], places: np.ndarray | None = None) -> None:
    """Write names down the vertical axis, the first on top."""
    if places is None:
        places = np.arange(len(names))
    axis.set_yticks(places, names)
    axis.set_ylim(places[-1] + 0.5, places[0] - 0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25)


def log_axis(axis: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def bias_axis(axis: Axes, levels: np.ndarray) -> None:
    """Label the horizontal axis as the bias level."""
    axis.set_xticks(levels, [f"{level:g}" for level in levels], rotation=50, fontsize=8.5)
    axis.set_xlabel("bias level of the training set")


def zero_line(axis: Axes, upright: bool = True) -> None:
    """Draw the line of no difference to ERM."""
    draw = axis.axvline if upright else axis.axhline
    draw(0, color=colour("erm"), lw=1.2)


# ---------------------------------------------------------------------------- intervals and lines


def draw_intervals(
    axis: Axes,
    places,
    rows: DataFrame,
    method: str,
    *,
    upright: bool = False,
    suffix: str = "",
    scale: float = 100.0,
    size: float = 5.0,
) -> None:
    """Draw means and 95 % intervals of a method; an unbounded interval is left out.

    Parameters
    ----------
    places : float or array
        Where each row stands on the axis of the names.
    rows : DataFrame
        Columns ``mean``, ``low`` and ``high``, each followed by ``suffix``.
    upright : bool
        Draw the intervals vertically.
    scale : float
        Factor of the numbers: 100 for percentage points.
    size : float
        Size of the marker, in points.
    """
    places = np.broadcast_to(places, len(rows))
    mean = scale * rows[f"mean{suffix}"].to_numpy(dtype=float)
    low = scale * rows[f"low{suffix}"].to_numpy(dtype=float)
    high = scale * rows[f"high{suffix}"].to_numpy(dtype=float)
    bounded = np.isfinite(low) & np.isfinite(high)
    draw_lines = axis.vlines if upright else axis.hlines
    draw_lines(places[bounded], low[bounded], high[bounded], color=colour(method), lw=1.8)
    x, y = (places, mean) if upright else (mean, places)
    style_of_marker = marker_style(method)
    axis.plot(x, y, linestyle="", markersize=size, label=marked_title(method), **style_of_marker)


def draw_side_by_side(
    axis: Axes,
    places: np.ndarray,
    step: float,
    table: DataFrame,
    keys,
    methods: Iterable[str],
    *,
    upright: bool = False,
    suffix: str = "",
    size: float = 5.0,
) -> None:
    """Draw the intervals of several methods at each place, ``step`` apart.

    ``table`` is indexed by what ``keys`` lists, one key a place. Upright intervals are of the values of
    one setting, so a thin line joins them.
    """
    methods = present(table, methods)
    for order, method in enumerate(methods):
        rows = table[table["method"] == method].reindex(keys)
        shifted = places + step * (order - (len(methods) - 1) / 2)
        if upright:
            means = 100 * rows["mean"].to_numpy()
            axis.plot(shifted, means, lw=0.8, color=colour(method), alpha=0.6)
        draw_intervals(axis, shifted, rows, method, upright=upright, suffix=suffix, size=size)


def draw_band(axis: Axes, x, rows: DataFrame, method: str, *, alpha: float, **line) -> None:
    """Draw the means of a method as a line, and their intervals as a band where they are bounded."""
    low = rows["low"].where(np.isfinite(rows["low"]))
    high = rows["high"].where(np.isfinite(rows["high"]))
    axis.fill_between(x, low, high, color=colour(method), alpha=alpha, lw=0)
    look = {"color": colour(method), "label": marked_title(method)} | marker_style(method) | line
    axis.plot(x, rows["mean"], **look)


@dataclass(frozen=True)
class LineEnd:
    """The right end of a line, and the name to be written there."""

    x: float
    y: float
    name: str
    colour: str


def draw_against_bias(axis: Axes, table: DataFrame, method: str) -> LineEnd:
    """Draw a method against the bias level; the methods under study stand out."""
    rows = table[table["method"] == method].sort_values("level")
    if method in STRONG:
        draw_band(axis, rows["level"], rows, method, alpha=0.15, lw=2.2, markersize=4.5)
    else:
        draw_band(axis, rows["level"], rows, method, alpha=0.08, lw=1.2, markersize=3)
    last = rows.iloc[-1]
    name = method_title(method)
    return LineEnd(x=last["level"], y=last["mean"], name=name, colour=colour(method))


def label_ends(axis: Axes, ends: Iterable[LineEnd]) -> None:
    """Write names at the right ends of lines, moved apart where they would overlap."""
    bottom, top = axis.get_ylim()
    gap = 0.065 * (top - bottom)
    ends = sorted(ends, key=lambda end: end.y)
    heights = [end.y for end in ends]
    for _ in range(
        100
    ):  # two neighbours move apart by their overlap; few names, so it settles fast
        for lower in range(len(heights) - 1):
            overlap = gap - (heights[lower + 1] - heights[lower])
            if overlap > 0:
                heights[lower] -= overlap / 2
                heights[lower + 1] += overlap / 2
        heights = [max(height, bottom + gap / 2) for height in heights]  # above the axis
    for end, height in zip(ends, heights, strict=True):
        axis.annotate(
            end.name,
            (end.x, height),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=end.colour,
            fontsize=8.5,
            fontweight="bold",
            annotation_clip=False,
        )
