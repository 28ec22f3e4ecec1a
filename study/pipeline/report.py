"""Collect what a reader opens: one page of the study, with its tables, figures and provenance.

python -m study report build      build/report/, from what the stages found
python -m study report publish    copy it to reports/<study>/
python -m study report headline   where it is, its main numbers, and whether they are reproduced
python -m study report readme     the main numbers, and all studies side by side, into README.md
                                  and reports/index.html
python -m study report pages      every executed notebook as a page of its own, in build/html/
"""

import json
import math
import re
import shutil
import sys
from itertools import count
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from study.commands import parser, run_renamed
from study.methods.registry import METHODS
from study.pipeline import pages, provenance
from study.pipeline.params import PARAMS, read
from study.results.claims import PRIMARY
from study.results.metrics import METRICS
from study.results.tables import HEADLINE, headline_table, markdown_table, points
from study.store import digest, write_text

BUILD, REPORTS = Path("build"), Path("reports")
REPORT = BUILD / "report"
MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
COSTS = Path("benchmarks/costs.csv")
ENDS = ["mean_difference", "low_difference", "high_difference"]


def build(params: dict) -> Path:
    """Write ``build/report/`` and return its page; ``ValueError`` if no section was executed, if
    photographs would be shown that must not be, or if the page would not open without a network."""
    sections = sorted((BUILD / "paper").glob("[!.]*.ipynb"))
    if not sections:
        raise ValueError(f"{BUILD}/paper holds no sections; run `dvc repro`, which executes them")
    shutil.rmtree(REPORT, ignore_errors=True)
    shutil.copytree(BUILD / "evaluate", REPORT)
    for part in ("factors", "proxies", "breadth", "ablate"):
        for file in (BUILD / part).glob("*.csv"):
            shutil.copy(file, REPORT / f"{part}-{file.name}")
    shutil.copytree(BUILD / "paper" / "figures", REPORT / "figures")
    shutil.copy(PARAMS, REPORT / "params.yaml")
    shutil.copy(BUILD / "data" / "card.json", REPORT)
    (REPORT / "notebooks").mkdir()
    for path in sections:
        shutil.copy(path, REPORT / "notebooks")
    made, card = provenance.record(), json.loads((REPORT / "card.json").read_text())
    write_text(REPORT / provenance.FILE, json.dumps(made, indent=1, sort_keys=True) + "\n")
    _check_photographs(card)
    warnings = _warnings(made)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _page(sections, params=params, card=card, made=made, warnings=warnings)


def _warnings(made: dict) -> list[str]:
    """What a reader must know before any number: of the faces, and of where the code came from."""
    proxy = json.loads((REPORT / "about.json").read_text(encoding="utf-8"))["proxy"]
    said = [proxy["warning"]] if "warning" in proxy else []
    if "no_commit" in made:
        said.append(f"This report names no commit of its code: {made['no_commit']}.")
    return said


def _check_photographs(card: dict) -> None:
    """Pictures of faces are the only JPEGs that are drawn; other figures are SVG and PNG."""
    if card.get("show_images", True):
        return
    for file in REPORT.rglob("*"):
        inside = file.suffix == ".ipynb" and "image/jpeg" in file.read_text(encoding="utf-8")
        if inside or file.suffix in (".jpg", ".jpeg"):
            raise ValueError(f"{file} shows images of {card['name']}, whose card forbids that")


def _page(paths: list[Path], **shown) -> Path:
    """The page: what was found on its first screen, then the sections, then what it was made of."""
    numbers, sections = count(1), []
    for path in paths:
        first, *rest = pages.blocks(path, _figure, numbers, level=2)
        title, _, first.body = first.body.removeprefix("<h2>").partition("</h2>")
        anchor = re.sub(r"[^a-z0-9]+", "-", title.unescape().lower()).strip("-")
        body = [first, *rest]
        sections.append({"title": title, "anchor": anchor, "blocks": body, "file": path.name})
    title, sections[0]["title"] = sections[0]["title"], "Abstract"
    finding, verdicts, figure, sections[0]["blocks"] = _front(sections[0]["blocks"])
    return pages.page(
        "study", REPORT / "index.html", **shown,
        title=title, finding=finding, verdicts=verdicts, main_figure=figure, sections=sections,
        parameters=PARAMS.read_text(encoding="utf-8"), metrics=list(METRICS.values()),
        files=sorted(f.name for f in REPORT.iterdir() if f.suffix in (".csv", ".json", ".yaml", ".md")),
    )  # fmt: skip


def _front(body: list[pages.Block]) -> tuple:
    """What the first screen shows of the abstract: its first result, then from the first subheading to
    the first figure; and the rest."""
    kinds = [block.kind for block in body]
    finding = body.pop(kinds.index("result"))
    start = next(i for i, block in enumerate(body) if "<h3>" in block.body)
    stop = next(i for i, block in enumerate(body) if block.kind == "figure")
    return finding.body, body[start:stop], body[stop], body[:start] + body[stop + 1 :]


def _figure(name: str, data: dict) -> str:
    """Address of a figure in the report: the sharpest file there is, else the picture itself."""
    files = [f"figures/{name}{suffix}" for suffix in (".svg", ".jpg", ".png") if name]
    return next((f for f in files if (REPORT / f).exists()), None) or pages.embedded(name, data)


def publish(params: dict) -> Path:
    """Copy ``build/report/`` to ``reports/<study>/``, in place of the report there, unless the two
    differ by rounding alone; ``ValueError`` if it is none."""
    if not REPORT.is_dir():
        raise ValueError(f"{REPORT} is missing; run `dvc repro`, which builds it")
    target, draft = REPORTS / params["study"], REPORTS / f".{params['study']}.partial"
    if target.is_symlink() or REPORTS.is_symlink() or target.resolve().parent != REPORTS.resolve():
        raise ValueError(f"{target} is not a folder in {REPORTS}/; name the study otherwise")
    if target.exists() and not (target / provenance.FILE).exists():
        raise ValueError(f"{target} is no report, and would be lost; move it away")
    shutil.rmtree(draft, ignore_errors=True)
    if reason := provenance.in_place_of(REPORT, target):
        print(reason)
    else:
        shutil.copytree(REPORT, draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    files = sorted(file for file in target.rglob("*") if file.is_file())
    copied = {str(f.relative_to(target)): digest(f.read_bytes())[:16] for f in files}
    write_text(BUILD / "published.json", json.dumps({str(target): copied}, indent=1) + "\n")
    return target / "index.html"


def headline(params: dict) -> str:
    """Where the report is, its main numbers, and whether they are those that were committed."""
    folder = REPORTS / params["study"]
    if not (folder / provenance.FILE).exists():
        raise ValueError(f"{folder} holds no report yet; run `dvc repro`, which writes it")
    try:
        reproduced = provenance.verify(folder).sentence
    except ValueError:
        unknown = provenance.no_git()
        reproduced = "There is no committed report of this study to compare with"
        reproduced += f": {unknown}." if unknown else "."
    return (
        f"\nOpen {folder.resolve() / 'index.html'}\n\nHeld-out images of people seen in training; gains in "
        f"points with 95 % intervals.\n\n{_markdown(folder)}\n{reproduced}"
    )


def _markdown(folder: Path) -> str:
    tables = (pd.read_csv(folder / f"{name}.csv") for name in ("difference", "summary"))
    return markdown_table(*headline_table(*tables))


def studies() -> tuple[list[str], list[list[str]]]:
    """All studies side by side, as a head and rows that begin with the study's name: gains over ERM,
    means over the bias range, and the smallest that would have been detected with probability .8."""
    head = ["study", "data", "people", "task, bias", "model", "seeds", "protocol", "accuracy, ERM"]
    for metric in PRIMARY:
        name = METRICS[metric].title.lower()
        head += [f"{name}: detectable", *(f"{name}, {METHODS[m].title} − ERM" for m in HEADLINE)]
    rows = []
    for file in sorted(REPORTS.glob("[!.]*/card.json")):
        study, card = file.parent, json.loads(file.read_text(encoding="utf-8"))
        params = YAML(typ="safe").load(study / "params.yaml")
        area, power = _seen(study / "area.csv"), _seen(study / "power.csv")
        kind, levels = (
            params["bias"]["kind"],
            json.loads((study / "about.json").read_text())["levels"],
        )
        span = f" {min(levels):g} to {max(levels):g}" if len(levels) > 1 else f" {levels[0]:g}"
        cells = []
        for metric in PRIMARY:
            found = power["detectable"].get((metric, "surprise"), math.nan)
            cells.append(f"{100 * found:.2f}" if math.isfinite(found) else "–")
            cells += [_gain(area, metric, m) for m in HEADLINE]
        rows.append([
            study.name, card["name"], f"{int(power['people'].max()):,}",
            f"{params['task']}, {kind}{span * (kind != 'natural')}", params["train"]["model"],
            str(params["seeds"]), _protocol(json.loads((study / provenance.FILE).read_text())),
            f"{100 * area.loc[('accuracy', 'erm'), 'mean']:.1f} %", *cells,
        ])  # fmt: skip
    return head, rows


def rivals() -> tuple[list[str], list[list[str]]]:
    """Every method on every study whose costs were measured: gains over ERM, means over the bias range
    on seen people, and seconds for one training set, by ``benchmarks/costs.py``."""
    costs = pd.read_csv(COSTS).set_index(["study", "method"])
    head, names = ["method", "labels behind weights or groups"], costs.index.unique("study")
    areas = {name: _seen(REPORTS / name / "area.csv") for name in names}
    for name in names:
        gained = (f"{METRICS[metric].title.lower()} − ERM" for metric in PRIMARY)
        head += [f"{name}: {what}" for what in (*gained, "seconds")]
    rows = []
    for method, spec in METHODS.items():
        row = [spec.title, ", ".join(spec.uses) or "none"]
        for name in names:
            row += [_gain(areas[name], metric, method) for metric in PRIMARY]
            parts = costs.loc[(name, method)] if (name, method) in costs.index else None
            spent = "–" if parts is None else f"{parts['weights, s'] + parts['head, s']:.2f}"
            row.append(spent)
        rows.append(row)
    return head, rows


def networks() -> tuple[list[str], list[list[str]]]:
    """Every method on every study of networks: gains over ERM, means over the bias range on seen people,
    and behind each the smallest that would have been detected with probability .8."""
    head, areas = ["method", "labels behind weights or groups"], []
    for file in sorted(REPORTS.glob("[!.]*/about.json")):
        if json.loads(file.read_text(encoding="utf-8"))["model"] != "linear":
            areas.append(_seen(file.with_name("area.csv")))
            head += [f"{file.parent.name}: {METRICS[m].title.lower()} − ERM" for m in PRIMARY]
    rows = []
    for method, spec in METHODS.items():
        cells = [
            _gain(area, metric, method, detectable=True) for area in areas for metric in PRIMARY
        ]
        if {*cells} - {"–"}:
            rows.append([spec.title, ", ".join(spec.uses) or "none", *cells])
    return head, rows


def _seen(file: Path) -> pd.DataFrame:
    """A report's table on held-out images of people seen in training, by metric and method."""
    return pd.read_csv(file).query("test == 'seen'").set_index(["metric", "method"])


def _gain(area: pd.DataFrame, metric: str, method: str, detectable: bool = False) -> str:
    """A method's gain over ERM, on demand with the smallest that would have been detected; a dash for ERM
    and for what the study lacks."""
    found = area.reindex([(metric, method)]).iloc[0]
    if not math.isfinite(found[ENDS[0]]):
        return "–"
    return points(*found[ENDS]) + (f" ({100 * found['detectable']:.1f})" if detectable else "")


def _protocol(made: dict) -> str:
    """What a study's protocol was, and when it was committed."""
    protocol = made["protocol"]
    if protocol["status"] != "confirmatory":
        return protocol["status"]
    if not protocol["commit"]:
        return "confirmatory, not committed"
    return f"confirmatory, {protocol['commit'][:7]} of {protocol['date'][:10]}"


def studies_page() -> Path:
    """Write ``reports/index.html``: the studies side by side, and the main figure of each."""
    head, rows = studies()
    # What stands under the headings is left out of the table.
    cells = [[f"[{row[0]}]({row[0]}/index.html)", *row[7:]] for row in rows]
    table = pages.markdown(markdown_table([head[0], *head[7:]], cells))
    figures = {file.parts[-3] for file in REPORTS.glob("*/figures/against-bias-seen.svg")}
    shown = {"table": table, "rows": [row[:7] for row in rows], "figures": figures}
    return pages.page("studies", REPORTS / "index.html", **shown)


def readme(params: dict) -> str:
    """README.md with the study's headline, all studies and all methods between their marks, which it must
    have.

    A study links to its abstract as a notebook, which code hosts show, and to its page.
    """
    text = Path("README.md").read_text(encoding="utf-8")
    head, rows = studies()
    link = "[{0}](reports/{0}/notebooks/00_abstract.ipynb) ([page](reports/{0}/index.html))"
    rows = [[link.format(name), *rest] for name, *rest in rows]
    headline = _markdown(REPORTS / params["study"])
    tables = {"headline": headline, "studies": markdown_table(head, rows)}
    tables |= {"rivals": markdown_table(*rivals()), "networks": markdown_table(*networks())}
    for name, table in tables.items():
        begin, end = (mark.format(name) for mark in MARKS)
        if begin not in text or end not in text:
            raise ValueError(f"README.md lacks {begin} or {end}; put both around the {name} table")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}{end}{after}"
    return text


def main(arguments: list[str]) -> None:
    commands = {"build": build, "publish": publish, "headline": headline}
    options = parser("report")
    options.add_argument("command", choices=[*commands, "readme", "pages"])
    chosen = options.parse_args(arguments).command
    params = read()
    if chosen == "readme":
        write_text(Path("README.md"), readme(params))
        print(studies_page())
    elif chosen == "pages":
        executed = sorted(BUILD.glob("notebooks/[!.]*.ipynb")) + sorted(BUILD.glob("paper/*.ipynb"))
        for path in executed:
            print(pages.single(path, BUILD / "html"))
    else:
        print(commands[chosen](params))


if __name__ == "__main__":
    run_renamed(__spec__.name)
