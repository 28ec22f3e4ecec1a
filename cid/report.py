"""Collect what a reader opens: ``reports/<study>/`` from the executed notebooks and the evaluation.

python -m cid.report            build the report of the study in params.yaml
python -m cid.report headline   print where it is and its headline numbers
python -m cid.report readme     put the headline numbers, and all studies side by side, into README.md
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

from cid.claims import claims_table, headline_cells, markdown_table, write_claims
from cid.methods import METHODS
from cid.metrics import METRICS
from cid.pages import page, render

BUILD = Path("build")
PARAMS = Path("params.yaml")
MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"


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
        "06_factors": "CID taken apart",
        "07_proxies": "Better and worse proxies",
        "08_breadth": "Every task and kind of bias",
        "09_ablation": "One setting at a time",
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
    for name in ("factors", "proxies", "breadth", "ablate"):
        _collect(BUILD / name, folder)
    shutil.copy(PARAMS, folder / "params.yaml")
    shutil.copy("data/card.json", folder / "card.json")
    pages = render(executed, folder)
    links = dict(zip((file.name for file in pages), executed.values(), strict=True))
    index = folder / "index.html"
    index.write_text(
        page(f"Study: {params['study']}", _index(params, folder, links)), encoding="utf-8"
    )
    return index


def _collect(part: Path, folder: Path) -> None:
    """Copy what one stage found: figures, and tables under the stage's name."""
    for file in sorted(part.iterdir()):
        if file.suffix in (".png", ".svg"):
            shutil.copy(file, folder / "figures" / file.name)
        elif file.suffix == ".csv":
            shutil.copy(file, folder / f"{part.name}-{file.name}")
    if (part / "claims.json").exists():
        # The main study's verdicts stand for its task and kind; the others join them.
        entries = json.loads((folder / "claims.json").read_text())
        have = {(entry["task"], entry["kind"]) for entry in entries}
        more = json.loads((part / "claims.json").read_text())
        entries += [entry for entry in more if (entry["task"], entry["kind"]) not in have]
        write_claims(folder / "claims.json", entries)


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
        "<h2>Verdicts</h2>",
        "<p>On the claims of the abstract, for held-out images of seen people; the rules were fixed "
        "beforehand. Effects on accuracy are means over the bias range or slopes over it, against ERM. "
        "Labels used: class labels to train, true identities to evaluate. "
        "<a href='claims.json'>claims.json</a> has all of them, with unseen people.</p>",
        _verdicts(folder, params["task"], params["bias"]["kind"]),
        "<details><summary>The other tasks and kinds of bias</summary>",
        _verdicts(folder, None, None, but=(params["task"], params["bias"]["kind"])),
        "</details>",
        "<h2>Held-out images of people seen in training</h2>",
        _figure(
            figure.format("seen"), "Accuracy and worst-decile accuracy against bias, seen people"
        ),
        _headline(folder, "seen"),
        "<h2>Every method</h2>",
        _figure("figures/compare.png", "Gain over ERM of every method"),
        "<p>Squares: methods that were told the true identities.</p>",
        "<h2>People never seen in training</h2>",
        _figure(
            figure.format("unseen"),
            "Accuracy and worst-decile accuracy against bias, unseen people",
        ),
        _headline(folder, "unseen"),
        f"<p>Gains in percentage points, with 95 % intervals from {params['bootstrap']} resamples of "
        f"the {params['seeds']} seeds and of the people. Worst decile: mean accuracy of the worst-served "
        "tenth of the people. Training used class labels only, but for the methods marked so, which used "
        "true identities; the bias itself and all evaluation use true identities.</p>",
        "<h2>CID taken apart</h2>",
        _figure("figures/factors.png", "Rarity and label surprise against the true cell size"),
        "<h2>Every task, every kind of bias</h2>",
        _figure("figures/breadth.png", "Gain over ERM by task and kind of bias"),
        "<h2>Definitions</h2>",
        "<details><summary>Every metric, and which labels it uses</summary><dl>"
        + "".join(
            f"<dt>{html.escape(m.title)} ({m.better} is better)</dt><dd>{html.escape(m.definition)}</dd>"
            for m in METRICS.values()
        )
        + "</dl></details>",
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
    return _html_table(*_table(folder, test))


def _html_table(head: list[str], rows: list[list[str]], wrap: bool = False) -> str:
    """A table that scrolls where it is too wide; ``wrap`` breaks its lines and aligns them left."""
    style = "text-align:left" if wrap else "white-space:nowrap"
    body = "".join(
        "<tr>" + "".join(f'<td style="{style}">{c}</td>' for c in line) + "</tr>" for line in rows
    )
    top = "<tr>" + "".join(f'<th style="{style if wrap else ""}">{c}</th>' for c in head) + "</tr>"
    return f'<div style="overflow-x:auto"><table>{top}{body}</table></div>'


def _verdicts(folder: Path, task: str | None, kind: str | None, but: tuple = ()) -> str:
    """The verdicts on seen people, of one task and kind or of all but one; a column each method."""
    entries = [
        entry
        for entry in json.loads((folder / "claims.json").read_text())
        if entry["test"] in ("seen", None)
        and (
            (entry["task"], entry["kind"]) != but
            if but
            else (entry["task"], entry["kind"]) == (task, kind)
        )
    ]
    lines: dict[tuple, dict[str, str]] = {}
    for cells in claims_table(entries)[1]:
        claim, task, kind, method, _, statement, effect, p, verdict = cells
        where = f"{html.escape(task)}, {html.escape(kind)}: " if but else ""
        line = lines.setdefault((claim, where + statement), {})
        note = "" if p == "–" else f" (p {p})"
        line[method] = f"<strong>{verdict}</strong><br><small>{effect}{note}</small>"
    methods = list(dict.fromkeys(method for line in lines.values() for method in line))
    rows = [[*key, *(line.get(method, "–") for method in methods)] for key, line in lines.items()]
    return _html_table(["claim", "statement", *methods], rows, wrap=True)


def _cells(links: dict[str, str]) -> str:
    """Links in reading order; the cells of a stage, one a bias level, share a line."""
    lines: dict[str, list[str]] = {}
    for file, text in links.items():
        name, _, level = text.partition(", ")
        alone = sum(other.partition(", ")[0] == name for other in links.values()) == 1
        what = text if alone else level
        lines.setdefault(name, []).append(f'<a href="{file}">{html.escape(what)}</a>')
    items = (
        f"<li>{cells[0]}</li>"
        if len(cells) == 1
        else f"<li>{html.escape(name)}: {', '.join(cells)}</li>"
        for name, cells in lines.items()
    )
    return "<ol>" + "".join(items) + "</ol>"


def _table(folder: Path, test: str, methods=("cid", "cid-knn", "oracle")) -> tuple:
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("summary", "difference")}
    return headline_cells(tables["difference"], tables["summary"], test, methods)


def _markdown(params: dict) -> str:
    return markdown_table(*_table(Path("reports", params["study"]), "seen"))


def studies(folder: Path = Path("reports")) -> str:
    """All studies side by side, as a Markdown table: gains over ERM, means over the bias range."""
    head = ["study", "data", "people", "task, bias", "model", "seeds", "accuracy, ERM"]
    columns = [
        (metric, m) for metric in ("accuracy", "worst_decile") for m in ("cid", "cid-knn", "oracle")
    ]
    head += [f"{METRICS[metric].title.lower()}, {METHODS[m].title} − ERM" for metric, m in columns]
    rows = []
    for card_file in sorted(folder.glob("*/card.json")):
        study = card_file.parent
        card, params = (
            json.loads(card_file.read_text()),
            YAML(typ="safe").load(study / "params.yaml"),
        )
        area = (
            pd.read_csv(study / "area.csv").query("test == 'seen'").set_index(["metric", "method"])
        )
        gains = []
        for key in columns:
            if key not in area.index:
                gains.append("–")
                continue
            low, mean, high = (
                100 * area.loc[key, f"{name}_difference"] for name in ("low", "mean", "high")
            )
            gains.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−"))
        kind, levels = params["bias"]["kind"], params["bias"]["levels"]
        span = f" {min(levels):g} to {max(levels):g}" if len(levels) > 1 else ""
        rows.append(
            [
                f"[{study.name}]({study.as_posix()}/index.html)", card["name"],
                f"{card['counts']['identities']:,}", f"{params['task']}, {kind}{span}",
                params["train"]["model"], str(params["seeds"]),
                f"{100 * area.loc[('accuracy', 'erm'), 'mean']:.1f} %", *gains,
            ]
        )  # fmt: skip
    return markdown_table(head, rows)


def readme(params: dict) -> str:
    """README.md with its tables between their marks: the study's headline, and all studies.

    Raises
    ------
    ValueError
        If README.md lacks a mark.
    """
    text = Path("README.md").read_text(encoding="utf-8")
    for name, table in (("headline", _markdown(params)), ("studies", studies())):
        begin, end = (mark.format(name) for mark in MARKS)
        if begin not in text or end not in text:
            raise ValueError(f"README.md lacks {begin} or {end}; put both around the {name} table")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}{end}{after}"
    return text


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
            print(_markdown(params))
    except (ValueError, OSError) as error:
        print(f"cid.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
