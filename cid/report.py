"""Collect what a reader opens: ``reports/<study>/`` from the executed notebooks and the evaluation.

python -m cid.report            build the report of the study in params.yaml
python -m cid.report headline   print where it is and its headline numbers
python -m cid.report readme     put the headline numbers into README.md
"""

from __future__ import annotations

import argparse
import html
import json
import shutil
import sys
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from cid.metrics import headline
from cid.pages import page, render

BUILD = Path("build")
PARAMS = Path("params.yaml")
MARKS = ("<!-- headline: begin -->", "<!-- headline: end -->")


def read_params() -> dict:
    """The parameters of the study, by the parser DVC uses."""
    return YAML(typ="safe").load(PARAMS)


def notebooks(params: dict) -> dict[str, str]:
    """Executed notebooks of a study, in reading order: file stem to what a link says."""
    levels = params["bias"]["levels"]
    cells = {
        f"{stage}-{level}": f"{title}, bias {level:g}"
        for stage, title in (("03_weights", "Training sets and weights"), ("04_train", "Training"))
        for level in levels
    }
    return {
        "01_data": "The data set",
        "02_embed": "Proxy embeddings",
        **cells,
        "05_evaluate": "Results",
    }


def build(params: dict) -> Path:
    """Write ``reports/<study>/`` and return its index page.

    Raises
    ------
    ValueError
        If an executed notebook is missing.
    """
    folder = Path("reports", params["study"])
    executed = {
        BUILD / "notebooks" / f"{stem}.ipynb": text for stem, text in notebooks(params).items()
    }
    missing = [str(path) for path in executed if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]} is missing; run `dvc repro`, which executes it")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BUILD / "evaluate", folder)
    shutil.copy(PARAMS, folder / "params.yaml")
    shutil.copy("data/card.json", folder / "card.json")
    pages = render(executed, folder)
    links = dict(zip((file.name for file in pages), executed.values(), strict=True))
    index = folder / "index.html"
    index.write_text(
        page(f"Study: {params['study']}", _index(params, folder, links)), encoding="utf-8"
    )
    return index


def _index(params: dict, folder: Path, links: dict[str, str]) -> str:
    numbers = json.loads((folder / "metrics.json").read_text())
    card = json.loads((folder / "card.json").read_text())
    proxy = numbers["proxy"]
    figure = "figures/against-bias-{}.png"
    data = (
        f"{card['name']}: {card['counts']['images']:,} images of {card['counts']['identities']} "
        f"people. Source: {card['source']}. Licence: {card['licence']}."
    )
    parts = [
        f"<h1>Study: {html.escape(params['study'])}</h1>",
        f"<p>Does weighting training faces by conditional inverse density (CID) make a classifier of "
        f"<em>{html.escape(params['task'])}</em> robust to who is in the picture, without identity "
        f"labels? Data: {html.escape(data)} Proxy for identity: {html.escape(proxy['network'])}, "
        f"verification AUC {proxy['verification_auc']:.4f}.</p>",
        "<h2>Held-out images of people seen in training</h2>",
        _figure(
            figure.format("seen"), "Accuracy and worst-decile accuracy against bias, seen people"
        ),
        _headline(folder, "seen"),
        "<h2>People never seen in training</h2>",
        _figure(
            figure.format("unseen"),
            "Accuracy and worst-decile accuracy against bias, unseen people",
        ),
        _headline(folder, "unseen"),
        f"<p>Gains in percentage points, with 95 % Student t intervals over {params['seeds']} paired seeds. "
        "Worst decile: mean accuracy of the worst-served tenth of the people. Training used class "
        "labels only, but for the oracle, which used true identities; the bias itself and all "
        "evaluation use true identities.</p>",
        "<h2>The notebooks</h2>",
        _cells(links),
        "<h2>Numbers and settings</h2>",
        "<ul>"
        + "".join(
            f'<li><a href="{path.name}">{path.name}</a></li>'
            for path in sorted(folder.iterdir())
            if path.suffix in (".csv", ".json", ".yaml")
        )
        + "</ul>",
        f"<details><summary>params.yaml</summary><pre>{html.escape(PARAMS.read_text())}</pre></details>",
    ]
    return "\n".join(parts)


def _figure(source: str, text: str) -> str:
    return f'<p><img src="{source}" alt="{html.escape(text)}" style="background:white"></p>'


def _headline(folder: Path, test: str) -> str:
    lines = [line.strip("| ").split(" | ") for line in _table(folder, test).splitlines()]
    head, body = lines[0], lines[2:]
    rows = "".join(
        "<tr>" + "".join(f'<td style="white-space:nowrap">{c}</td>' for c in line) + "</tr>"
        for line in body
    )
    top = "<tr>" + "".join(f"<th>{c}</th>" for c in head) + "</tr>"
    return f'<div style="overflow-x:auto"><table>{top}{rows}</table></div>'


def _cells(links: dict[str, str]) -> str:
    """Links in reading order; the cells of a stage, one a bias level, share a line."""
    lines: dict[str, list[str]] = {}
    for file, text in links.items():
        name, _, level = text.partition(", ")
        lines.setdefault(name, []).append(f'<a href="{file}">{html.escape(level or name)}</a>')
    items = (
        f"<li>{cells[0]}</li>"
        if len(cells) == 1
        else f"<li>{html.escape(name)}: {', '.join(cells)}</li>"
        for name, cells in lines.items()
    )
    return "<ol>" + "".join(items) + "</ol>"


def _table(folder: Path, test: str) -> str:
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("summary", "difference")}
    return headline(tables, test)


def readme(params: dict) -> str:
    """README.md with the headline table of the study between its marks.

    Raises
    ------
    ValueError
        If README.md lacks a mark.
    """
    text = Path("README.md").read_text(encoding="utf-8")
    begin, end = MARKS
    if begin not in text or end not in text:
        raise ValueError(f"README.md lacks {begin} or {end}; put both around the headline table")
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{_table(Path('reports', params['study']), 'seen')}{end}{after}"


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m cid.report``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="cid.report", description=__doc__.split("\n")[0])
    parser.add_argument(
        "command", nargs="?", default="build", choices=["build", "headline", "readme"]
    )
    command = parser.parse_args(argv).command
    try:
        params = read_params()
        folder = Path("reports", params["study"])
        if command == "build":
            print(build(params))
        elif command == "readme":
            Path("README.md").write_text(readme(params), encoding="utf-8")
        else:
            print(f"\nOpen {folder.resolve() / 'index.html'}\n")
            print(
                "Held-out images of people seen in training; gains in points with 95 % intervals.\n"
            )
            print(_table(folder, "seen"))
    except (ValueError, OSError) as error:
        print(f"cid.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
