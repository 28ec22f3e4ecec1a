"""HTML pages of the report: executed notebooks as a paper, without a script and without a request.

:func:`blocks` reads an executed notebook as prose, figures and tables; the templates lay them out.
Formulas become MathML, and everything a page shows lies in its own folder. Light and dark.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from html import escape
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
MANY = 8  # a table of more columns is set closer

# Formulas of Markdown, and before them what Jupyter, too, leaves alone: fenced code and code in a line. A
# dollar that is escaped, or that a digit follows where the formula would end, is a dollar.
_FENCED = r"^ {0,3}(?P<fence>`{3,}|~{3,}).*?(?:^ {0,3}(?P=fence)|\Z)"
_IN_LINE = r"(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
_DISPLAYED = r"(?<!\\)\$\$(?P<displayed>.+?)\$\$"
_FORMULA = r"(?<!\\)\$(?=\S)(?P<formula>[^$\n]+?)(?<=[^\s\\])\$(?!\d)"
_FORMULAS = re.compile(f"{_FENCED}|{_IN_LINE}|{_DISPLAYED}|{_FORMULA}", re.DOTALL | re.MULTILINE)

_markdown = create_markdown(plugins=["table"])
_environment = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass
class Block:
    """A piece of a page.

    Attributes
    ----------
    kind : str
        ``prose`` (Markdown of a cell), ``result`` (Markdown or HTML that a cell computed), ``fold`` (a
        result behind a summary), ``figure``, ``text`` (plain output) or ``code`` (source).
    body : str
        HTML of prose and results, a figure's caption; plain text of the others.
    src, alt : str
        Address and description of a figure; ``alt`` is the summary of a fold.
    number : int, optional
        Of a figure with a name.
    faces : bool
        Whether a figure shows faces, whose colours a dark page leaves as they are.
    """

    kind: str
    body: Markup | str
    src: str = ""
    alt: str = ""
    number: int | None = None
    faces: bool = False


def blocks(
    path: Path,
    source: Callable[[str, dict], str],
    numbers: Iterator[int] | None = None,
    *,
    level: int = 1,
    code: bool = False,
) -> list[Block]:
    """Read an executed notebook as a list of :class:`Block`.

    Parameters
    ----------
    path : Path
        The notebook.
    source : callable
        ``source(name, data)`` gives the address of a figure from its name and the output's data.
    numbers : iterator of int, optional
        Numbers of the figures; by default 1, 2, ...
    level : int
        Level of the notebook's title among the headings of the page.
    code : bool
        Whether to include the code of the cells.
    """
    numbers = numbers or count(1)
    found = []
    heading = path.stem
    for cell in read_notebook(path).cells:
        heading = ([heading] + headings(cell))[-1]
        if cell.cell_type == "markdown":
            found.append(Block("prose", markdown(cell.source, level)))
            continue
        if cell.cell_type == "code" and code and cell.source:
            found.append(Block("code", cell.source))
        for output in cell.get("outputs", []):
            block = _output_block(output, source, numbers, level, heading)
            if block is not None:
                found.append(block)
    return found


def _output_block(
    output: dict, source: Callable, numbers: Iterator[int], level: int, heading: str
) -> Block | None:
    """The block of one output of a cell; None for an output that is not shown by itself."""
    data = output.get("data", {})
    metadata = output.get("metadata", {})
    has_image = any(kind in data for kind in IMAGES)
    if "caption" in metadata:
        return None  # it stands under its figure
    if "fold" in metadata:
        summary = metadata["fold"]
        text = data["text/markdown"].removeprefix(f"**{summary}**")
        return Block("fold", markdown(text, level), alt=summary)
    if "figure" in metadata or has_image:
        about = metadata.get("figure", {"name": "", "caption": "", "alt": heading})
        caption = Markup(re.sub("</?p>", "", markdown(about["caption"])))
        return Block(
            "figure",
            caption,
            src=source(about["name"], data),
            alt=about["alt"],
            number=next(numbers) if about["name"] else None,
            faces=about.get("faces", False),
        )
    if "text/markdown" in data:
        return Block("result", markdown(data["text/markdown"], level))
    if "text/html" in data:
        return Block("result", _tables(data["text/html"]))
    text = output.get("text") or data.get("text/plain")
    return Block("text", text) if text else None


def markdown(text: str, level: int = 1) -> Markup:
    """Convert Markdown to HTML: raw HTML stays text, formulas become MathML, headings start at ``level``.

    A formula that cannot be read is shown as it was written.
    """
    formulas: list[str] = []

    def keep_formula(match: re.Match) -> str:
        if not match["displayed"] and not match["formula"]:
            return match[0]  # code
        formulas.append(_mathml(match))
        return f"\x02{len(formulas) - 1}\x03"

    def shift_heading(match: re.Match) -> str:
        return f"{match[1]}{min(int(match[2]) + level - 1, 6)}>"

    html = _markdown(_FORMULAS.sub(keep_formula, text))
    html = re.sub(r"(</?h)(\d)>", shift_heading, html)
    html = re.sub("\x02(\\d+)\x03", lambda match: formulas[int(match[1])], html)
    return _tables(html)


def in_line(text: str) -> Markup:
    """Convert a paragraph of Markdown to HTML that stands in a paragraph of its own."""
    html = markdown(text).strip()
    return Markup(html.removeprefix("<p>").removesuffix("</p>"))


def _mathml(match: re.Match) -> str:
    """A formula that :data:`_FORMULAS` found as MathML, or as it was written if that is no LaTeX."""
    displayed = match["displayed"] is not None
    tex = match["displayed"] if displayed else match["formula"]
    display = "block" if displayed else "inline"
    try:
        return convert(tex.replace(r"\!", ""), display=display)  # browsers know no negative space
    except Exception:  # its errors, such as DoubleSubscriptsError, have no base of their own
        return f"<code>{escape(match[0])}</code>"


def _tables(html: str) -> Markup:
    """HTML whose tables scroll where they are too wide, with numbers set to the right."""
    if "<table" not in html:
        return Markup(html)
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        table.attrs = {}
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
        if len(rows[0]) > MANY:
            table["class"] = "many"
        full_rows = [row for row in rows if len(row) == len(rows[0])]
        columns = list(zip(*full_rows, strict=True))
        for column in columns[1:]:  # the first one names its row
            if _is_numeric(column[1:]):
                for cell in column:
                    _set_number(soup, cell)
        table.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0"}))
    return Markup(str(soup))


def _is_numeric(cells) -> bool:
    texts = [cell.get_text().strip() for cell in cells]
    numbers = sum(bool(re.match(r"[+−-]?[.\d]|–?$", text)) for text in texts)
    return numbers > len(texts) / 2


def _set_number(soup: BeautifulSoup, cell) -> None:
    """Set a cell to the right; an interval may stand below its estimate."""
    cell["class"] = "number"
    parts = re.fullmatch(r"\s*(\S+) (\[[^\]]+\])\s*", cell.get_text())
    if parts:
        cell["class"] = "number range"
        cell.clear()
        cell.extend([f"{parts[1]} ", soup.new_tag("span", string=parts[2])])


def page(
    template: str, path: Path, *, alone: bool = False, links: Collection[str] = (), **shown
) -> Path:
    """Fill a template and write the page.

    Parameters
    ----------
    template : str
        Name of the template, without its ending.
    path : Path
        The file to write.
    alone : bool
        Whether the page must be complete in its own file.
    links : collection of str
        Addresses outside the page's folder that it may link to.
    **shown
        The variables of the template.

    Raises
    ------
    ValueError
        If the page would run a script, or need anything outside its own folder or file.
    """
    text = _environment.get_template(f"{template}.html.j2").render(**shown)
    folder = None if alone else path.parent
    outside = _outside(text, folder, links)
    if outside:
        raise ValueError(f"{path} would not open without a network: {outside}")
    write_text(path, text)
    return path


def _outside(text: str, folder: Path | None, links: Collection[str]) -> str | None:
    """The first tag of a page that runs, fetches, or points to a file that is not there."""
    for tag in BeautifulSoup(text, "html.parser").find_all(True):
        runs = tag.name in ("script", "iframe", "object", "embed", "form", "base")
        listens = any(name.startswith("on") for name in tag.attrs)
        style = tag.get("style", "") + (tag.text if tag.name == "style" else "")
        fetches = re.search(r"@import|url\(\s*['\"]?(?!data:|#)", style)
        if runs or listens or fetches or not _all_inside(tag, folder, links):
            return str(tag)[:80]
    return None


def _all_inside(tag, folder: Path | None, links: Collection[str]) -> bool:
    """Whether every address of a tag is one that the page may use."""
    names = ["src", "srcset", "poster", "data"]
    if tag.name in ("link", "a"):
        names.append("href")
    addresses = [tag[name] for name in names if tag.get(name)]
    is_link = tag.name == "a"
    allowed = links if is_link else ()
    return all(address in allowed or _inside(address, folder, is_link) for address in addresses)


def _inside(address: str, folder: Path | None, is_link: bool) -> bool:
    """Whether an address leads to a file of a folder, or to none; a link may lead to the web."""
    parts = urlsplit(address)
    if address.startswith(("data:", "#")):
        return True
    if is_link and parts.scheme in ("http", "https"):
        return True
    if folder is None or parts.scheme or parts.netloc or not parts.path:
        return False
    file = (folder / unquote(parts.path)).resolve()
    return file.is_file() and folder.resolve() in file.parents


def embedded(name: str, data: dict) -> str:
    """Return a figure as an address that holds it."""
    kind = next(kind for kind in IMAGES[1:] if kind in data)
    return f"data:{kind};base64,{data[kind]}"


def single(path: Path, folder: Path) -> Path:
    """Write one executed notebook as one file, with its code folded away."""
    titles = [text for cell in read_notebook(path).cells for text in headings(cell)]
    title = titles[0] if titles else path.stem
    body = blocks(path, embedded, code=True)
    target = folder / f"{path.stem}.html"
    return page("notebook", target, alone=True, page_title=title, blocks=body)
