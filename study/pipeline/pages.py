"""HTML pages of the report: executed notebooks as a paper, without a script and without a request.

:func:`blocks` reads an executed notebook as prose, figures and tables; the templates lay them out.
Formulas become MathML, and everything a page shows lies in its own folder. Light and dark.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml.converter import convert
from markupsafe import Markup
from mistune import create_markdown

from study.pipeline.notebook import headings, read_notebook
from study.store import write_text

IMAGES = ("image/svg+xml", "image/png", "image/jpeg")
MANY = 8  # columns, beyond which a table is set closer

_markdown = create_markdown(plugins=["table"])
_environment = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


@dataclass
class Block:
    """A piece of a page: Markdown of a cell (prose), Markdown or HTML that a cell computed (a result), a
    figure, plain output (text), or source (code)."""

    kind: str
    body: Markup | str  # HTML of prose and results, a figure's caption; plain text of the others
    src: str = ""
    alt: str = ""
    number: int | None = None


def blocks(path: Path, source: Callable, numbers=None, *, level: int = 1, code: bool = False):
    """An executed notebook as a list of :class:`Block`, if wanted with its code.

    ``source(name, data)`` gives the address of a figure from its name and the output's data;
    ``numbers`` is where figures get their numbers from, and ``level`` that of the notebook's title
    among the headings of the page.
    """
    numbers, found, heading = numbers or count(1), [], path.stem
    for cell in read_notebook(path).cells:
        heading = ([heading] + headings(cell))[-1]
        if cell.cell_type == "markdown":
            found.append(Block("prose", markdown(cell.source, level)))
            continue
        if cell.cell_type == "code" and code and cell.source:
            found.append(Block("code", cell.source))
        for output in cell.get("outputs", []):
            data, meta = output.get("data", {}), output.get("metadata", {})
            image = next((kind for kind in IMAGES if kind in data), None)
            if "caption" in meta:
                continue  # stands under its figure
            if "figure" in meta or image:
                told = meta.get("figure", {"name": "", "caption": "", "alt": heading})
                src = source(told["name"], data)
                caption = Markup(re.sub("</?p>", "", markdown(told["caption"])))
                number = next(numbers) if told["name"] else None
                found.append(Block("figure", caption, src, told["alt"], number))
            elif "text/markdown" in data:
                found.append(Block("result", markdown(data["text/markdown"], level)))
            elif "text/html" in data:
                found.append(Block("result", _tables(data["text/html"])))
            elif text := output.get("text") or data.get("text/plain"):
                found.append(Block("text", text))
    return found


def markdown(text: str, level: int = 1) -> Markup:
    """Markdown as HTML: raw HTML stays text, formulas become MathML, headings start at a level."""
    formulas = []

    def keep(match: re.Match) -> str:
        shown, tex = ("block", match[1]) if match[1] else ("inline", match[2])
        # A negative space is nothing that browsers know.
        formulas.append(convert(tex.replace(r"\!", ""), display=shown))
        return f"\x02{len(formulas) - 1}\x03"

    text = re.sub(r"\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$", keep, text, flags=re.DOTALL)
    shown = _markdown(text)
    shown = re.sub(r"(</?h)(\d)>", lambda m: f"{m[1]}{min(int(m[2]) + level - 1, 6)}>", shown)
    shown = re.sub("\x02(\\d+)\x03", lambda m: formulas[int(m[1])], shown)
    return _tables(shown)


def _tables(text: str) -> Markup:
    """HTML whose tables scroll where they are too wide, with numbers set to the right."""
    if "<table" not in text:
        return Markup(text)
    soup = BeautifulSoup(text, "html.parser")
    for table in soup.find_all("table"):
        table.attrs = {}
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
        if len(rows[0]) > MANY:
            table["class"] = "many"
        columns = list(zip(*(row for row in rows if len(row) == len(rows[0])), strict=True))
        for column in columns[1:]:  # the first one names its row
            texts = [cell.get_text().strip() for cell in column[1:]]
            numeric = sum(bool(re.match(r"[+−-]?[.\d]|–?$", text)) for text in texts)
            for cell in column if numeric > len(texts) / 2 else ():
                cell["class"] = "number"
                if parts := re.fullmatch(r"\s*(\S+) (\[[^\]]+\])\s*", cell.get_text()):
                    cell["class"] = "number range"  # an interval may stand below its estimate
                    cell.clear()
                    cell.extend([f"{parts[1]} ", soup.new_tag("span", string=parts[2])])
        table.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0"}))
    return Markup(str(soup))


def page(template: str, path: Path, *, alone: bool = False, **shown) -> Path:
    """Fill a template and write the page; ``ValueError`` if it would run a script, or need anything
    outside its own folder (``alone``: outside its own file)."""
    text = _environment.get_template(f"{template}.html.j2").render(**shown)
    if outside := _outside(text, None if alone else path.parent):
        raise ValueError(f"{path} would not open without a network: {outside}")
    write_text(path, text)
    return path


def _outside(text: str, folder: Path | None) -> str | None:
    """The tag of a page that runs, fetches, or looks for something where it is not, if there is one."""
    for tag in BeautifulSoup(text, "html.parser").find_all(True):
        runs = tag.name in ("script", "iframe", "object", "embed", "form", "base")
        names = ["src", "srcset", "poster", "data"] + ["href"] * (tag.name in ("link", "a"))
        addresses = [tag[name] for name in names if tag.get(name)]
        style = tag.get("style", "") + (tag.text if tag.name == "style" else "")
        if (
            runs
            or any(name.startswith("on") for name in tag.attrs)
            or not all(_inside(address, folder, tag.name == "a") for address in addresses)
            or re.search(r"@import|url\(\s*['\"]?(?!data:|#)", style)
        ):
            return str(tag)[:80]
    return None


def _inside(address: str, folder: Path | None, link: bool) -> bool:
    """Whether an address leads to a file of a folder, or is none; a link may lead elsewhere."""
    parts = urlsplit(address)
    if address.startswith(("data:", "#")) or (link and parts.scheme in ("http", "https")):
        return True
    if folder is None or parts.scheme or parts.netloc or not parts.path:
        return False
    file = (folder / unquote(parts.path)).resolve()
    return file.is_file() and folder.resolve() in file.parents


def embedded(name: str, data: dict) -> str:
    """A figure as an address that holds it."""
    kind = next(kind for kind in IMAGES[1:] if kind in data)
    return f"data:{kind};base64,{data[kind]}"


def single(path: Path, folder: Path) -> Path:
    """One executed notebook as one file, with its code folded away."""
    title = next((text for cell in read_notebook(path).cells for text in headings(cell)), path.stem)
    body, target = blocks(path, embedded, code=True), folder / f"{path.stem}.html"
    return page("notebook", target, alone=True, title=title, blocks=body)
