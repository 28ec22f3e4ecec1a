"""Executed notebooks as pages: what is shown, and that nothing runs or is fetched."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from itertools import count

import nbformat
import pytest
from bs4 import BeautifulSoup

from study.pipeline import notebook, pages
from study.results import tables

PNG = base64.b64encode(b"\x89PNG").decode()


class Tags(HTMLParser):
    """Collects (tag, attributes) with the standard library's parser, not the one under test."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def put(path, *cells):
    """A notebook of Markdown cells (texts) and code cells (lists of outputs)."""
    made = [
        nbformat.v4.new_markdown_cell(cell)
        if isinstance(cell, str)
        else nbformat.v4.new_code_cell("secret()", outputs=cell, execution_count=1)
        for cell in cells
    ]
    path.write_text(notebook.dumps(nbformat.v4.new_notebook(cells=made)))
    return path


def shown(data, **metadata):
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


def figure(name, caption="What *to* see", alt="A <chart>"):
    told = {"name": name, "caption": caption, "alt": alt}
    return [
        shown({"image/png": PNG}, figure=told),
        shown({"text/markdown": caption}, caption=name),
    ]


def test_a_notebook_is_read_as_prose_figures_tables_and_text(tmp_path):
    path = put(
        tmp_path / "x.ipynb",
        "# Title\n\nProse & `code`",
        figure("a") + figure("b"),
        [shown({"text/html": "<table border='1'><tr><th>m</th></tr><tr><td>1</td></tr></table>"})],
        [nbformat.v4.new_output("stream", name="stdout", text="a < b\n")],
        [shown({"image/png": PNG, "text/plain": "<Figure>"})],
        [shown({"application/javascript": "alert(1)", "text/plain": "fallback"})],
    )
    numbers = count(3)
    found = pages.blocks(path, lambda name, data: f"figures/{name}.svg", numbers, level=2)
    assert [b.kind for b in found] == [
        "prose", "figure", "figure", "result", "text", "figure", "text"
    ]  # fmt: skip
    assert found[0].body == "<h2>Title</h2>\n<p>Prose &amp; <code>code</code></p>\n"
    first, second = found[1:3]
    assert (first.number, second.number, next(numbers)) == (3, 4, 5)
    assert (first.src, first.alt) == ("figures/a.svg", "A <chart>")
    assert first.body.strip() == "What <em>to</em> see"
    assert found[3].body.startswith('<div class="wide" tabindex="0"><table><tr>')
    assert found[4].body == "a < b\n" and found[6].body == "fallback"
    assert found[5].alt == "Title" and found[5].number is None


def test_what_a_notebook_folds_is_folded_on_the_page(tmp_path):
    rows = {"text/markdown": "**The rest**\n\n| a |\n|---|\n| b |\n"}
    faces = [
        shown({"image/png": PNG}, figure={"name": "f", "caption": "", "alt": "", "faces": True})
    ]
    path = put(tmp_path / "x.ipynb", "# T", [shown(rows, fold="The rest")], faces)
    _, fold, picture = pages.blocks(path, lambda name, data: f"figures/{name}.svg")
    assert (fold.kind, fold.alt) == ("fold", "The rest")
    assert fold.body.startswith("<div") and "The rest" not in fold.body
    assert picture.faces
    text = pages.single(path, tmp_path / "html").read_text()
    assert "<summary>The rest</summary>" in text and 'class="faces"' in text


def test_a_page_may_link_to_a_file_outside_its_folder_that_it_names(tmp_path):
    body = [pages.Block("result", pages.Markup('<a href="../index.html">x</a>'))]
    pages.page(
        "notebook", tmp_path / "x.html", links=["../index.html"], page_title="x", blocks=body
    )
    with pytest.raises(ValueError, match="would not open"):
        pages.page("notebook", tmp_path / "x.html", page_title="x", blocks=body)


def test_formulas_need_no_script():
    text = pages.markdown(
        "Costs $z_i = f(x)$ and\n\n$$\\frac{1}{p(z \\mid y)}$$\n\n| a | b |\n|---|---|\n| x | $\\tau$ |"
    )
    assert text.count("<math") == 3 and "$" not in text and "<mfrac>" in text
    assert text.count('display="block"') == 1
    assert "<math" not in pages.markdown("5 $ and 6 $ are no formula")


@pytest.mark.parametrize(
    "text, shown",
    [
        ("`echo $HOME and $PATH` and `` a`$b$ ``", "<code>echo $HOME and $PATH</code>"),
        ("```\nprice = $a$\n```\n", "price = $a$\n"),
        ("~~~\n$$x$$\n~~~\n", "$$x$$\n"),
        ("from \\$a to $5-$6 and \\$b", "from $a to $5-$6 and $b"),
        ("see $a_b_c$ here", "see <code>$a_b_c$</code> here"),
        ("see $$a^b^c$$", "see <code>$$a^b^c$$</code>"),
    ],
)
def test_dollars_that_are_no_formula_stay_as_they_were_written(text, shown):
    html = pages.markdown(text)
    assert shown in html and "<math" not in html


def test_a_formula_beside_code_is_one():
    html = pages.markdown("`$x$` is $x$, and\n\n```\n$y$\n```\n\n$z$")
    assert html.count("<math") == 2 and "<code>$x$</code>" in html and "$y$" in html


def test_a_bar_or_a_line_break_in_a_cell_stays_in_it():
    table = tables.markdown_table(["a|b", "c"], [["1\n2", "x|y"], ["p \\| q", "$p(y \\| z)$"]])
    cells = BeautifulSoup(pages.markdown(table), "html.parser").find_all(["th", "td"])
    assert [cell.get_text() for cell in cells][:5] == ["a|b", "c", "1 2", "x|y", "p | q"]
    assert len(cells) == 6


def test_a_column_of_numbers_is_set_to_the_right_and_the_first_names_its_row():
    table = "| claim | who | gain |\n|---|---|---|\n| 1 | CID | +0.50 [−0.10, +1.10] |\n| 2 | ERM | – |\n"
    cells = [(tag, a.get("class")) for tag, a in Tags(pages.markdown(table)).found if tag[0] == "t"]
    rows = [css for tag, css in cells if tag in ("th", "td")]
    assert rows == [None, None, "number", None, None, "number range", None, None, "number"]
    assert "+0.50 <span>[−0.10, +1.10]</span>" in pages.markdown(table)
    many = "|" + "1 |" * (pages.MANY + 1)
    wide = pages.markdown(f"{many}\n{'|---' * (pages.MANY + 1)}|\n{many}")
    assert 'class="many"' in wide and 'class="many"' not in pages.markdown(table)


def test_raw_html_of_prose_stays_text():
    assert "<script" not in pages.markdown("# <script>alert(1)</script>\n\n<img src=x>")


def test_a_notebook_of_its_own_is_one_file_with_its_code_folded(tmp_path):
    path = put(tmp_path / "x.ipynb", "# A < *b*", figure("a"))
    page = pages.single(path, tmp_path / "html")
    text = page.read_text()
    tags = Tags(text).found
    assert [a["src"] for tag, a in tags if tag == "img"] == [f"data:image/png;base64,{PNG}"]
    assert "<title>A &lt; b</title>" in text and "<details><summary>Code</summary>" in text
    assert pages.single(path, tmp_path / "again").read_bytes() == page.read_bytes()


@pytest.mark.parametrize(
    "fetching",
    [
        "<script>alert(1)</script>",
        '<img src="https://example.org/face.png">',
        '<img src="//example.org/face.png">',
        '<img src="figures/gone.png">',
        '<img src="../outside.png">',
        '<img src="data:image/png;base64," onerror="alert(1)">',
        '<a href="gone.html">x</a>',
        '<a href="javascript:alert(1)">x</a>',
        '<iframe srcdoc="x"></iframe>',
        '<link rel="stylesheet" href="https://example.org/style.css">',
        '<p style="background: url(https://example.org/face.png)">x</p>',
        "<style>@import 'https://example.org/style.css';</style>",
    ],
)
def test_a_page_that_needs_more_than_its_folder_is_refused(tmp_path, fetching):
    (tmp_path / "outside.png").touch()
    body = [pages.Block("result", pages.Markup(fetching))]
    path = tmp_path / "report" / "index.html"
    with pytest.raises(ValueError, match="index.html would not open without a network"):
        pages.page("notebook", path, page_title="x", blocks=body)
    assert not path.exists()


def test_a_page_may_use_files_of_its_folder_and_link_elsewhere(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a b.png").touch()
    inside = '<img src="figures/a%20b.png"><a href="https://example.org">x</a><a href="#y">y</a>'
    body = [pages.Block("result", pages.Markup(inside))]
    pages.page("notebook", tmp_path / "index.html", page_title="x", blocks=body)
    with pytest.raises(ValueError, match="figures/a%20b.png"):
        pages.page("notebook", tmp_path / "index.html", alone=True, page_title="x", blocks=body)
