"""Collect what a reader opens: ``reports/<study>/`` from the executed notebooks and the evaluation.

python -m study.pipeline.report            build the report of the study in params.yaml
python -m study.pipeline.report headline   print where it is and its headline numbers
python -m study.pipeline.report readme     put the headline numbers, and all studies side by side, into README.md
                                and reports/index.html
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML, YAMLError

from cid.methods import METHODS
from study.pipeline.pages import page, render
from study.pipeline.params import PARAMS, read
from study.pipeline.provenance import FILE, PACKAGES, record
from study.results.metrics import METRICS
from study.results.tables import claims_table, headline_cells, markdown_table, write_claims

BUILD = Path("build")


MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"


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
        "09_ablate": "One setting at a time",
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
    (folder / FILE).write_text(json.dumps(record(), indent=1, sort_keys=True) + "\n")
    (folder / "notebooks").mkdir()
    for path in executed:  # for JupyterLab and code hosts
        shutil.copy(path, folder / "notebooks" / path.name)
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
        if file.suffix in (".png", ".svg", ".jpg"):
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
    made = json.loads((folder / FILE).read_text())
    proxy, task = numbers["proxy"], html.escape(params["task"])
    shown = [
        "<h1>Do models get robust to <em>who</em> is in the picture?</h1>",
        f"<p>Study <strong>{html.escape(params['study'])}</strong>: a classifier of <em>{task}</em>, "
        "trained on sets in which who somebody is hints at the label more and more. Every training "
        "image is weighted by its conditional inverse density (CID) in the embedding of a "
        "face-recognition network, without identity labels. "
        f"{card['counts']['images']:,} images of {card['counts']['identities']:,} people "
        f"({html.escape(card['name'])}); proxy {html.escape(proxy['network'])}, verification AUC "
        f"{proxy['verification_auc']:.4f}.</p>",
        "<h2>Verdicts</h2>",
        "<p>On the claims of the abstract, for held-out images of seen people, by rules fixed "
        "beforehand. Effects on accuracy are means over the bias range or slopes over it, against "
        "plain training (ERM). Labels used: class labels to train, true identities to evaluate.</p>",
        _verdicts(folder, params["task"], params["bias"]["kind"]),
        "<details><summary>The other tasks and kinds of bias</summary>",
        _verdicts(folder, None, None, but=(params["task"], params["bias"]["kind"])),
        "</details>",
        "<h2>Held-out images of people seen in training</h2>",
        _figure(folder, "against-bias-seen", "Accuracy and worst-decile accuracy against bias"),
        _headline(folder, "seen"),
        "<p><small>Gains over ERM in percentage points, with 95 % intervals from "
        f"{params['bootstrap']:,} resamples of the {params['seeds']} seeds and of the people. Worst "
        "decile: mean accuracy of the worst-served tenth of the people. The oracle is told the true "
        "identities; every other method here saw class labels only.</small></p>",
        *_section(
            folder, "idea", "The idea", "A person's faces, neighbours, and weights as bias grows"
        ),
        *_section(folder, "compare", "Every method", "Gain over ERM of every method"),
        "<p><small>Squares: methods that were told the true identities.</small></p>",
        "<h2>People never seen in training</h2>",
        _figure(folder, "against-bias-unseen", "Accuracy and worst-decile accuracy, unseen people"),
        _headline(folder, "unseen"),
        *_section(
            folder, "factors", "CID taken apart", "Rarity and label surprise against the truth"
        ),
        *_section(
            folder, "breadth", "Every task, every kind of bias", "Gain over ERM by task and bias"
        ),
        "<h2>The notebooks</h2>",
        "<p>Each stage of the pipeline, as it was executed: prose, figures, and the code folded away. "
        "The <a href='notebooks/'>notebook files</a> open in JupyterLab.</p>",
        _cells(links),
        "<h2>What it was made of</h2>",
        _provenance(made, card),
        f"<details><summary>params.yaml</summary><pre>{html.escape(PARAMS.read_text())}</pre></details>",
        "<details><summary>Every metric, and which labels it uses</summary><dl>"
        + "".join(
            f"<dt>{html.escape(m.title)} ({m.better} is better)</dt><dd>{html.escape(m.definition)}</dd>"
            for m in METRICS.values()
        )
        + "</dl></details>",
        "<details><summary>All numbers, as files</summary><ul>"
        + "".join(
            f'<li><a href="{path.name}">{path.name}</a></li>'
            for path in sorted(folder.iterdir())
            if path.suffix in (".csv", ".json", ".yaml")
        )
        + "</ul></details>",
    ]
    return "\n".join(shown)


def _section(folder: Path, name: str, title: str, text: str) -> list[str]:
    """A heading and its figure, or nothing where the figure was not drawn."""
    picture = _figure(folder, name, text)
    return [f"<h2>{title}</h2>", picture] if picture else []


def _figure(folder: Path, name: str, text: str) -> str:
    """A figure inside the page, which then needs no other file; empty where there is none."""
    for suffix, kind in ((".png", "image/png"), (".jpg", "image/jpeg")):
        file = folder / "figures" / f"{name}{suffix}"
        if file.exists():
            data = base64.b64encode(file.read_bytes()).decode()
            return f'<p><img src="data:{kind};base64,{data}" alt="{html.escape(text)}"></p>'
    return ""


def _provenance(made: dict, card: dict) -> str:
    versions = made["versions"]
    rows = [
        [
            "data",
            f"{card['name']}, {made['data']}<br>{card['source']}<br>Licence: {card['licence']}",
        ],
        ["commit", made["commit"] or "not in a repository"],
        ["parameters", made["parameters"]],
        ["packages", f"{made['packages']} (requirements.lock)"],
        ["stages", f"{made['stages']} (dvc.lock)"],
        ["code", f"{len(made['code'])} files, in <a href='{FILE}'>{FILE}</a>"],
        ["versions", ", ".join(f"{p} {versions[p]}" for p in ("python", *PACKAGES))],
    ]
    rows = [[name, re.sub(r"&lt;br&gt;", "<br>", html.escape(text)) if name == "data" else text]
            for name, text in rows]  # fmt: skip
    return _html_table(["", ""], rows, wrap=True) + (
        "<p><small><code>make check</code> compares the digests with the files at hand, "
        "<code>make verify</code> the numbers of a new run with the committed ones.</small></p>"
    )


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


def studies(folder: Path = Path("reports")) -> tuple[list[str], list[list[str]]]:
    """All studies side by side: gains over ERM, means over the bias range.

    Returns
    -------
    head, rows : list of str, list of list of str
        The first cell of a row is the study's name.
    """
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
                study.name, card["name"],
                f"{card['counts']['identities']:,}", f"{params['task']}, {kind}{span}",
                params["train"]["model"], str(params["seeds"]),
                f"{100 * area.loc[('accuracy', 'erm'), 'mean']:.1f} %", *gains,
            ]
        )  # fmt: skip
    return head, rows


def _studies_page(folder: Path = Path("reports")) -> str:
    """reports/index.html: the studies side by side, and the main figure of each."""
    head, rows = studies(folder)
    body = [
        "<h1>All studies</h1>",
        "<p>Gains over plain training (ERM) in percentage points, means over the bias range with 95 % "
        "intervals, on held-out images of people seen in training. CID sees class labels only, the "
        "oracle the true identities.</p>",
        _html_table(
            [head[0], *head[6:]],  # the rest stands under each study's heading
            [[f'<a href="{row[0]}/index.html">{row[0]}</a>', *row[6:]] for row in rows],
        ),
    ]
    for name, data, people, task, model, seeds, *_ in rows:
        body += [
            f'<h2><a href="{name}/index.html">{name}</a></h2>',
            f"<p>{html.escape(task)}; {people} people of {html.escape(data)}; model {model}, "
            f"{seeds} seeds.</p>",
            _figure(folder / name, "against-bias-seen", f"Accuracy against bias in {name}"),
        ]
    return page("All studies", "\n".join(body))


def readme(params: dict) -> str:
    """README.md with its tables between their marks: the study's headline, and all studies.

    Raises
    ------
    ValueError
        If README.md lacks a mark.
    """
    text = Path("README.md").read_text(encoding="utf-8")
    head, rows = studies()
    rows = [[f"[{name}](reports/{name}/index.html)", *rest] for name, *rest in rows]
    tables = {"headline": _markdown(params), "studies": markdown_table(head, rows)}
    for name, table in tables.items():
        begin, end = (mark.format(name) for mark in MARKS)
        if begin not in text or end not in text:
            raise ValueError(f"README.md lacks {begin} or {end}; put both around the {name} table")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}{end}{after}"
    return text


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m study.pipeline.report``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="study.pipeline.report", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "command", nargs="?", default="build", choices=["build", "headline", "readme"]
    )
    command = parser.parse_args(argv).command
    try:
        params = read()
        folder = Path("reports", params["study"])
        if command == "build":
            print(build(params))
        elif command == "readme":
            Path("README.md").write_text(readme(params), encoding="utf-8")
            Path("reports/index.html").write_text(_studies_page(), encoding="utf-8")
        else:
            print(f"\nOpen {folder.resolve() / 'index.html'}\n")
            print(
                "Held-out images of people seen in training; gains in points with 95 % intervals.\n"
            )
            print(_markdown(params))
    except (ValueError, OSError, YAMLError) as error:
        print(f"study.pipeline.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
