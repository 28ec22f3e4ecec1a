"""The page of an audit: one screen with one figure, in one file that asks for no other."""

import html
import io
import math
from collections.abc import Sequence
from importlib.resources import files

from cid.auditing import Audit, Estimate

NAME = "index.html"
SHOWN = {
    "minority": "#b3261e",
    "balanced": "#1c1b1f",
    "majority": "#1f6f43",
}  # colours of the figure
TITLES = {
    "minority": "surprised images",
    "balanced": "balanced",
    "majority": "the others",
    "spread": "spread over people",
}
SIGNS = {  # of what the audit's trust rests on, those that a reader can use
    "flagged": "share of test images that are surprised",
    "gain": "what neighbours tell of a label beyond class frequencies (nats an image)",
    "agreement_direction": "agreement of the flags with those found without removing the label's own direction",
    "agreement_neighbours": "with those found by another number of neighbours",
}
MOST = 12  # models in the figure, and differences that are listed


def page(result: Audit, trained: int, audited: int, source: str) -> str:
    """Return the page as HTML.

    ``trained`` and ``audited`` are numbers of images, ``source`` the name of the file of predictions.
    """
    flagged = int(sum(result.flagged))
    if result.refusal:
        main = (
            f'<p class="refused"><b>Refused.</b> {html.escape(result.refusal)}</p>{_signs(result)}'
        )
    else:
        main = (
            f'<div class="two"><div>{_table(result)}{_differences(result)}</div>'
            f"<figure>{figure(result.estimates)}<figcaption>Accuracy of each model with 95&nbsp;% intervals: "
            "on <b>surprised</b> images, whose label is unusual among the training images most like them; on "
            "<b>the others</b>; and on a <b>balanced</b> set, in which every person has every class alike."
            f"</figcaption></figure></div>{_signs(result)}"
        )
    template = (files("cid.door") / "page.html").read_text(encoding="utf-8")
    counts = (
        f"{audited:,} test images, {flagged:,} of them surprised; {trained:,} training images; predictions: "
        f"{html.escape(source)}. No identity was used."
    )
    if result.wrong is not None and not result.refusal:
        counts += (
            f" {wrong_labels(result.wrong).capitalize()}; an image counts by how probable it is that its label is "
            "right."
        )
    return template.replace("{{counts}}", counts).replace("{{main}}", main)


def lines(result: Audit) -> list[str]:
    """Return the same estimates as lines for the screen."""
    width = max(len(model) for model in _models(result.estimates))
    text = []
    for model in _models(result.estimates):
        cells = [
            f"{TITLES[row.measure]} {_interval(row)}"
            for row in result.estimates
            if row.model == model and not math.isnan(row.estimate)
        ]
        text.append(f"{model:<{width}}  {', '.join(cells)}")
    return text


def wrong_labels(row: Estimate) -> str:
    """Say how many of the test labels are wrong, in a line."""
    return f"wrong labels among the test images, as estimated: {_interval(row)}"


def figure(estimates: Sequence[Estimate]) -> str:
    """Draw the accuracies of each model, and return them as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    models = _models(estimates)[:MOST]
    drawing = Figure(figsize=(5.6, 0.9 + 0.55 * len(models)), layout="constrained")
    axes = drawing.subplots()
    for place, (measure, colour) in enumerate(SHOWN.items()):
        rows = [row for row in estimates if row.measure == measure and row.model in models]
        rows = [row for row in rows if not math.isnan(row.estimate)]
        heights = [models.index(row.model) + (place - 1) * 0.22 for row in rows]
        axes.hlines(
            heights,
            [100 * row.low for row in rows],
            [100 * row.high for row in rows],
            colors=colour,
            linewidth=2,
        )
        axes.plot(
            [100 * row.estimate for row in rows],
            heights,
            "o",
            color=colour,
            markersize=5,
            label=TITLES[measure],
        )
    axes.set_yticks(range(len(models)), [_short(model) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlabel("accuracy, %")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=3, frameon=False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cid", "svg.fonttype": "none"}):
        drawing.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    label = (
        "Accuracy of each model on surprised images, on the others, and balanced, with intervals"
    )
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _models(estimates: Sequence[Estimate]) -> list[str]:
    return list(dict.fromkeys(row.model for row in estimates))


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _interval(row: Estimate) -> str:
    if math.isnan(row.estimate):
        return "not known"
    return f"{100 * row.estimate:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _cell(row: Estimate) -> str:
    estimate, bracket, interval = _interval(row).partition("[")
    return f"{estimate}<br><small>{bracket}{interval}</small>" if bracket else estimate


def _table(result: Audit) -> str:
    head = "".join(f"<th>{TITLES[measure]}</th>" for measure in TITLES)
    body = ""
    for model in _models(result.estimates):
        rows = {row.measure: row for row in result.estimates if row.model == model}
        cells = "".join(
            f'<td title="{rows[measure].images:,} images">{_cell(rows[measure])}</td>'
            if measure in rows
            else "<td></td>"
            for measure in TITLES
        )
        body += f"<tr><th>{html.escape(model)}</th>{cells}</tr>"
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _differences(result: Audit) -> str:
    rows = [row for row in result.differences if row.measure == "balanced"]
    rows = [row for row in rows if not math.isnan(row.difference)]
    items = "".join(
        f"<li>{html.escape(row.model)} less {html.escape(row.against)}: {_signed(row.difference)} "
        f"[{_signed(row.low)}, {_signed(row.high)}]; a true difference of {100 * row.smallest:.1f} would "
        "be found with a chance of 80 %</li>"
        for row in rows[:MOST]
    )
    more = f"<li>{len(rows) - MOST} more</li>" if len(rows) > MOST else ""
    if not items:
        return ""
    return f"<h2>Balanced accuracy, differences in points</h2><ul>{items}{more}</ul>"


def _signs(result: Audit) -> str:
    signs = "; ".join(
        f"{title} {result.signs[name]:.2f}" for name, title in SIGNS.items() if name in result.signs
    )
    unknown = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in result.unknown)
    text = f"<h2>What the trust in this rests on</h2><p>{signs}</p>" if signs else ""
    return text + (f"<h2>What it cannot know</h2><ul>{unknown}</ul>" if unknown else "")
