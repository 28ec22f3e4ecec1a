"""Collect what a reader opens: one page of the study, with its tables, figures and provenance.

python -m study report build      write build/report/ from the results of the stages
python -m study report headline   print where it is, its main numbers, and whether they are
                                  reproduced
python -m study report pages      write every executed notebook as a page of its own, in build/html/
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pandas as pd

from study.commands import parser, run_renamed
from study.faces import annotations
from study.pipeline import (
    earlier,
    overview,
    pages,
    predicted,
    protocols,
    provenance,
    stages,
)
from study.pipeline.git import no_git
from study.pipeline.overview import headline_markdown
from study.pipeline.params import read, resolved_text
from study.pipeline.reproduced import FILE, REPORTS, RUN
from study.results.metrics import METRICS
from study.results.tables import markdown_table
from study.store import write_text

BUILD = Path("build")
ALL_STUDIES = "../index.html"  # as a report in reports/ links to it


def build(params: dict) -> Path:
    """Write ``build/report/`` and return its page.

    Raises
    ------
    ValueError
        If no section was executed, if photographs would be shown that must not be, or if the page would
        not open without a network.
    """
    sections = sorted((BUILD / "paper").glob("[!.]*.ipynb"))
    if not sections:
        raise ValueError(f"{BUILD}/paper holds no sections; run `dvc repro`, which executes them")
    shutil.rmtree(RUN, ignore_errors=True)
    shutil.copytree(BUILD / "evaluate", RUN)
    for part in ("factors", "proxies", "breadth", "ablate"):
        for file in (BUILD / part).glob("*.csv"):
            shutil.copy(file, RUN / f"{part}-{file.name}")
    shutil.copytree(BUILD / "paper" / "figures", RUN / "figures")
    write_text(RUN / "params.yaml", resolved_text())
    shutil.copy(BUILD / "data" / "card.json", RUN)
    (RUN / "notebooks").mkdir()
    for path in sections:
        shutil.copy(path, RUN / "notebooks")
    made = provenance.record()
    card = json.loads((RUN / "card.json").read_text(encoding="utf-8"))
    write_text(RUN / FILE, json.dumps(made, indent=1, sort_keys=True) + "\n")
    _check_photographs(card)
    warnings = _warnings(made, card)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    page = _page(sections, params=params, card=card, made=made, warnings=warnings)
    provenance.seal(RUN)
    return page


def _warnings(made: dict, card: dict) -> list[str]:
    """What a reader must know before any number: of the faces, and of where data and code came from."""
    proxy = json.loads((RUN / "about.json").read_text(encoding="utf-8"))["proxy"]
    warnings = []
    if "warning" in proxy:
        warnings.append(proxy["warning"])
    copy = card.get("copy")
    if copy and copy["all"]["here"] < copy["all"]["listed"]:
        warnings.append(f"The data are {annotations.share_here(copy)}.")
    for stage, names in made.get("edited", {}).items():
        warnings.append(
            f"The stage {stage} ran with other values of {', '.join(names)} than are below."
        )
    if "no_commit" in made:
        warnings.append(f"This report names no commit of its code: {made['no_commit']}.")
    return warnings


def _check_photographs(card: dict) -> None:
    """Refuse pictures of faces where the data card forbids them.

    Faces are the only JPEGs that are drawn, alone or inside an SVG or a notebook; charts are vectors and
    PNGs.
    """
    if card.get("show_images", True):
        return
    for file in sorted(RUN.rglob("*")):
        shows_faces = file.suffix in (".jpg", ".jpeg")
        if file.suffix in (".ipynb", ".svg"):
            shows_faces = "image/jpeg" in file.read_text(encoding="utf-8")
        if shows_faces:
            raise ValueError(f"{file} shows images of {card['name']}, whose card forbids that")


def _page(paths: list[Path], *, params: dict, card: dict, made: dict, warnings: list[str]) -> Path:
    """Write the page: the finding on its first screen, then the sections, then what it was made of."""
    numbers = count(1)
    sections = []
    for path in paths:
        first, *rest = pages.blocks(path, _figure, numbers, level=2)
        title, _, first.body = first.body.removeprefix("<h2>").partition("</h2>")
        anchor = re.sub(r"[^a-z0-9]+", "-", title.unescape().lower()).strip("-")
        section = {"title": title, "anchor": anchor, "blocks": [first, *rest], "file": path.name}
        sections.append(section)
    title = sections[0]["title"]
    sections[0]["title"] = "Abstract"
    front = _split_front(sections[0]["blocks"])
    sections[0]["blocks"] = front.rest
    tables = (".csv", ".json", ".yaml", ".md")
    return pages.page(
        "study",
        RUN / "index.html",
        links=[ALL_STUDIES],
        page_title=f"{params['study']}: {title.striptags()}",
        title=title,
        all_studies=ALL_STUDIES,
        front=front,
        sections=sections,
        params=params,
        card=card,
        made=made,
        warnings=warnings,
        status=pages.in_line(status_text(params["protocol"], made)),
        before=before_and_after(params["study"], made["protocol"]),
        power=_power(params["protocol"]),
        parameters=(RUN / "params.yaml").read_text(encoding="utf-8"),
        metrics=list(METRICS.values()),
        files=sorted(file.name for file in RUN.iterdir() if file.suffix in tables),
    )


def _power(protocol: dict) -> str:
    """Power as predicted and as found; empty where nobody is known, so that none is."""
    table = RUN / "power.csv"
    return predicted.sentence(protocol, pd.read_csv(table)) if table.exists() else ""


def status_text(protocol: dict, made: dict) -> str:
    """What was fixed before the study was run, in words: the state of its protocol, and its note."""
    of = made["protocol"]
    known = of["commit"] is not None
    if of["status"] == protocols.RERUN:
        text = (
            f"Run again: confirmatory under its protocol {_since(of)}, with other settings. What that run "
            "found was known when the study was run again, so that the numbers of this page are "
            "exploratory; both stand side by side below. Its protocol said"
        )
    elif of["status"] == protocols.CONFIRMATORY and known:
        text = (
            "Confirmatory: design and endpoints were committed before the first run "
            f"({of['commit'][:7]}, {_minute(of['date'])}); this report {_of_commit(made)}"
        )
    elif of["status"] == protocols.CONFIRMATORY:
        text = "Confirmatory by name only: no commit of its protocol is known"
    else:
        text = overview.EXPLORATORY
    note = protocol["note"].rstrip(". ")
    if of["status"] == protocols.RERUN:
        return f"{text}: {note}."
    return f"{text}. {note[0].upper()}{note[1:]}."


def _of_commit(made: dict) -> str:
    if not made["commit"]:
        return "names no commit"
    return f"is of commit {made['commit'][:7]}{made['commit'][40:]}, {_minute(made['date'])}"


def _since(of: dict) -> str:
    return f"of {_minute(of['date'])} ({of['commit'][:7]})" if of["commit"] else "(not committed)"


def _minute(date: str) -> str:
    return date[:16].replace("T", " ")


def before_and_after(study: str, of: dict) -> pages.Markup | None:
    """What an earlier report said beside what this one says; None where none was kept, or nothing moved."""
    old = earlier.before(study)
    if not old:
        return None
    head, rows = earlier.side_by_side(old, earlier.now(RUN))
    again = of["status"] == protocols.RERUN
    if not again and all(row[3:5] == row[5:7] for row in rows):
        return None
    if again:
        settings = of["again"]["settings"]
        text = (
            f"This study was confirmatory under its protocol {_since(of)}. "
            + (f"The settings that differ: {settings}. " if settings else "")
            + "The verdicts of its protocol are those *before*"
        )
    else:
        text = (
            "Exploratory then and now. What differs are settings, code or the rules of the verdicts"
        )
    text += (
        f"; the page that gave them is in commit {old[0].commit}, and `studies/earlier.csv` has every one. "
        "Gains in points, with 95 % intervals."
    )
    return pages.markdown(f"{text}\n\n{markdown_table(head, rows)}")


@dataclass(frozen=True)
class Front:
    """The first screen: the first result of the abstract, and its part from the first subheading to the
    first figure, if it has one. ``rest`` is what is left of the abstract."""

    finding: str
    verdicts: list[pages.Block]
    figure: pages.Block | None
    rest: list[pages.Block]


def _split_front(abstract: list[pages.Block]) -> Front:
    kinds = [block.kind for block in abstract]
    finding = abstract[kinds.index("result")]
    others = [block for block in abstract if block is not finding]
    start = next(place for place, block in enumerate(others) if "<h3>" in block.body)
    figures = [place for place, block in enumerate(others) if block.kind == "figure"]
    stop = figures[0] if figures else len(others)
    return Front(
        finding=finding.body,
        verdicts=others[start:stop],
        figure=others[stop] if figures else None,
        rest=others[:start] + others[stop + 1 :],
    )


def _figure(name: str, data: dict) -> str:
    """Address of a figure in the report: the sharpest file there is, else the picture itself."""
    if name:
        for suffix in (".svg", ".jpg", ".png"):
            address = f"figures/{name}{suffix}"
            if (RUN / address).exists():
                return address
    return pages.embedded(name, data)


def headline(params: dict) -> tuple[str, bool]:
    """Where the report is, its main numbers, and whether they are those that were committed.

    And whether the report is of the data, settings and code at hand, and as it was written.
    """
    current = True
    folder = REPORTS / params["study"]
    if not (folder / FILE).exists():
        raise ValueError(f"{folder} holds no report yet; run `dvc repro`, which writes it")
    try:
        _, _, reproduced, current = provenance.checked(folder)
    except ValueError:
        reproduced = "There is no committed report of this study to compare with"
        reason = no_git()
        reproduced += f": {reason}." if reason else "."
    if (folder / "difference.csv").exists():
        about = "Held-out images of people seen in training; gains in points with 95 % intervals."
    else:
        about = "Nobody knows whom the images show; estimates of the audit, with 95 % intervals."
    text = f"\nOpen {folder.resolve() / 'index.html'}\n\n{about}\n\n{headline_markdown(folder)}\n{reproduced}"
    return text, current


def main(arguments: list[str]) -> int:
    options = parser("report")
    options.add_argument("command", choices=["build", "headline", "pages"])
    chosen = options.parse_args(arguments).command
    params = read()
    if chosen == "pages":
        executed = sorted(BUILD.glob("notebooks/[!.]*.ipynb")) + sorted(BUILD.glob("paper/*.ipynb"))
        for path in executed:
            print(pages.single(path, BUILD / "html"))
    elif chosen == "build":
        stood = stages.stamps("report")
        page = build(params)
        stages.check_unedited("report", stood)
        print(page)
    else:
        text, current = headline(params)
        print(text)
        return int(not current)
    return 0


if __name__ == "__main__":
    run_renamed(__spec__.name)
