"""HTML pages of the report: one look, no script, nothing fetched, light and dark.

Every page opens from disk without a network. :func:`render` turns executed notebooks into such
pages; :func:`page` is the shell that it and the index page share.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path

from study.pipeline.notebook import headings, read, write

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --dim: #646c76; --line: #dfe2e6;
  --paper: #fff; --shade: #f5f6f8; --link: #0b5fb0; --word: #8a3ea8; --text: #2a7a3b;
  --num: #b3541e }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e8; --dim: #98a1ab; --line: #343a42;
  --paper: #15181c; --shade: #1e2228; --link: #77b5f5; --word: #cf9be6; --text: #8ccf98;
  --num: #e8a578 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 56rem; padding: 1rem 1.25rem 4rem; color: var(--ink);
  background: var(--paper); font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; -webkit-text-size-adjust: 100% }
a { color: var(--link); text-underline-offset: .15em }
header { display: flex; gap: .75rem; padding-bottom: .6rem; border-bottom: 1px solid var(--line);
  color: var(--dim); font-size: .9rem }
h1, h2, h3, h4 { line-height: 1.25; margin: 2.2em 0 .6em; text-wrap: balance }
h1 { font-size: 1.9rem; margin-top: 1.2em }
h2 { font-size: 1.4rem } h3 { font-size: 1.15rem } h4 { font-size: 1rem }
p, ul, ol { margin: .9em 0 } li { margin: .25em 0 }
blockquote { margin: 1em 0; padding-left: 1em; border-left: 3px solid var(--line);
  color: var(--dim) }
img, svg { display: block; max-width: 100%; height: auto; margin: 1.2rem auto; border-radius: 6px }
@media (prefers-color-scheme: dark) { img { background: #fff; padding: .4rem } }
code, pre { font: .84em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace }
:not(pre) > code { background: var(--shade); padding: .1em .3em; border-radius: 4px }
pre { margin: .8rem 0; padding: .7rem .9rem; overflow-x: auto; background: var(--shade);
  border-radius: 6px }
.output, .text_cell_render:has(table) { overflow-x: auto }
.output pre { background: none; border-left: 3px solid var(--line); border-radius: 0 }
details { margin: .6rem 0 } details pre { margin: .4rem 0 }
summary { color: var(--dim); font-size: .85rem; cursor: pointer; width: fit-content }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; border: 0;
  font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: right; border: 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.highlight [class^="k"], .highlight .ow { color: var(--word) }
.highlight [class^="s"] { color: var(--text) }
.highlight [class^="m"] { color: var(--num) }
.highlight [class^="c"] { color: var(--dim); font-style: italic }
"""


# Prose stays as it is, code is folded, outputs lose their prompts.
TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{%- block input -%}
{%- set tags = cell.metadata.get('tags', []) -%}
{%- set title = 'Parameters of this run' if 'injected-parameters' in tags else
                'Parameters' if 'parameters' in tags else 'Code' -%}
<details><summary>{{ title }}</summary>{{ cell.source | highlight_code }}</details>
{%- endblock -%}
"""


def page(title: str, body_html: str, *, header_html: str = "") -> str:
    """A complete HTML page of the report: no script, no request, light and dark.

    ``title`` is plain text; ``body_html`` and ``header_html`` (the small line on top) are HTML.
    """
    header = f"<header>{header_html}</header>\n" if header_html else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f"{header}<main>\n{body_html.strip()}\n</main>\n</body>\n</html>\n"
    )


def _outside(page_html: str) -> str | None:
    """What a page would fetch or run, if anything."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page_html, "html.parser")
    for tag in soup.find_all(True):
        names = ("src", "srcset", "poster", "data") + (("href",) if tag.name == "link" else ())
        if tag.name == "script" or any(not tag.get(a, "data:").startswith("data:") for a in names):
            return str(tag)[:80]
        style = tag.get("style", "") + (tag.text if tag.name == "style" else "")
        found = re.search(r"@import|url\(\s*['\"]?(?!data:|#)", style)
        if found:
            return style[found.start() :][:80]
    return None


def render(
    executed: Iterable[str | Path], folder: str | Path, *, home: str = "index.html"
) -> list[Path]:
    """Render executed notebooks as self-contained HTML, ``<notebook stem>.html`` in ``folder``.

    The title is the notebook's first heading, code is folded, ``home`` is linked on top.

    Raises
    ------
    ValueError
        If a page would need a script or anything outside its own file.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    shown = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
    exporter = HTMLExporter(
        config=Config(NbConvertBase={"display_data_priority": shown}),  # no scripts, no widgets
        template_name="basic",
        raw_template=TEMPLATE,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    pages = []
    for source in map(Path, executed):
        nb = read(source)
        nb.metadata["language_info"] = {"name": "python"}  # for the highlighting
        above = [source.stem]
        for cell in nb.cells:
            above += headings(cell)
            cell.metadata["alt"] = above[-1]  # what a figure shows, for who cannot see it
        body, _ = exporter.from_notebook_node(nb)
        line = f'<a href="{html.escape(home)}">All pages</a> {html.escape(source.stem)}'
        text = page(above[:2][-1], body, header_html=line)
        if outside := _outside(text):
            raise ValueError(f"{source} would not open without a network: {outside}")
        pages.append(Path(folder, f"{source.stem}.html"))
        write(pages[-1], text)
    return pages
