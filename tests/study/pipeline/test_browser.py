"""The pages of the reports in a real browser: no message on the console, no request, at two widths.

A browser takes seconds to start, so one opens all pages, one after another, each in a frame of the width of
a screen. A page is loaded once and then shown on the other screens. Its figures are empty frames of their
size, which takes half the time of figures; that these are whole is looked at without a browser.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import pytest

ROOT = Path(__file__).parents[3]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
PAGES = [
    "reports/index.html",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("reports/*/index.html")),
]
STUCK = 3600  # seconds, far more than a busy machine takes
SCREENS = {1280: "light", 420: "dark"}  # width in pixels, and what its reader prefers
# What a page measures of itself once it is loaded, and again whenever the page that frames it asks. Its
# pictures are loaded and take their place, but nobody looks at them, so they are not painted.
PROBE = """
<style>img { visibility: hidden }</style>
<script>
function measure() {
  const wide = [...document.querySelectorAll(".wide")];
  const cut = wide.filter(w => w.scrollWidth > w.clientWidth + 1);
  const scrolls = w => getComputedStyle(w).overflowX == "auto";
  const shadowed = w => getComputedStyle(w).backgroundImage != "none";
  parent.postMessage({
    needed: document.documentElement.scrollWidth,
    width: window.innerWidth,
    background: getComputedStyle(document.body).backgroundColor,
    drawn: [...document.images].every(i => i.naturalWidth > 0),
    shadowed: cut.every(w => scrolls(w) && shadowed(w)),
    cut: cut.length,
  }, "*");
}
addEventListener("load", measure);
addEventListener("message", measure);
</script>
"""
# Opens one page after another; its title becomes what they measured, a list of each page's screens.
FRAMES = """
<html><head><title></title></head><body><script>
const pages = %s;
const screens = %s;
const found = [];
let frame;
function show(screen) {
  frame.width = screen.width;
  frame.style.colorScheme = screen.scheme;
}
function open() {
  if (found.length == pages.length) return;
  frame = document.createElement("iframe");
  frame.height = 900;
  frame.src = pages[found.length];
  found.push([]);
  show(screens[0]);
  document.body.append(frame);
}
addEventListener("message", event => {
  const measured = found[found.length - 1];
  measured.push(event.data);
  document.title = JSON.stringify(found);
  if (measured.length < screens.length) {
    show(screens[measured.length]);
    frame.contentWindow.postMessage("measure", "*");
  } else {
    frame.remove();
    open();
  }
});
open();
</script></body></html>
"""

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium on the PATH")


@dataclass
class Visit:
    """What pages measured of themselves, what was said on stderr, and the addresses they asked for."""

    measured: dict[tuple[str, int], dict]  # by page and width
    said: str
    asked: list[str]


def browse(pages: dict[str, Path], folder: Path, screens: dict[int, str]) -> Visit:
    """Open pages that hold the probe, by name, each in a frame that becomes every screen in turn.

    A page in a frame prefers what the frame's own colour scheme is.
    """
    addresses = [path.as_uri() for path in pages.values()]
    shown = [{"width": width, "scheme": scheme} for width, scheme in screens.items()]
    (folder / "frames.html").write_text(FRAMES % (json.dumps(addresses), json.dumps(shown)))
    log = folder / "net.json"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--window-size=1400,1000",
         "--virtual-time-budget=3000", "--dump-dom", (folder / "frames.html").as_uri()],
        capture_output=True, text=True, timeout=STUCK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    found = json.loads(html.unescape(title) or "[]")
    measured = {
        (name, width): one
        for name, of_page in zip(pages, found, strict=False)
        for width, one in zip(screens, of_page, strict=False)
    }
    events = json.loads(log.read_text())["events"]
    # A browser asks for updates of its own; what a page asks for has the page as its initiator.
    asked = [e["params"] for e in events if "initiator" in e.get("params", {})]
    own = ("file:", "data:", "blob:", "about:", "chrome")
    asked = [p["url"] for p in asked if p["initiator"] != "not an origin"]
    return Visit(measured, done.stderr, [url for url in asked if not url.startswith(own)])


def frame_of(figure: str) -> str:
    """An SVG figure of the same size with nothing in it."""
    head = figure[: figure.index(">", figure.index("<svg")) + 1]
    return head + "</svg>"


@pytest.fixture(scope="module")
def visit(tmp_path_factory) -> Visit:
    """All pages at every width, each with the pictures it names, in a folder where nothing else is."""
    folder = tmp_path_factory.mktemp("pages")
    copies = {}
    for number, page in enumerate(PAGES):
        text = (ROOT / page).read_text()
        copies[page] = folder / str(number) / "index.html"
        copies[page].parent.mkdir()
        copies[page].write_text(text.replace("</body>", PROBE + "</body>"))
        for name in re.findall(r'<img src="([^":]+)"', text):
            picture, copy = (ROOT / page).parent / name, copies[page].parent / name
            if picture.exists():  # if not, the browser finds that the page lacks it
                copy.parent.mkdir(exist_ok=True)
                if copy.suffix == ".svg":
                    copy.write_text(frame_of(picture.read_text()))
                else:
                    shutil.copy(picture, copy)
    return browse(copies, folder, SCREENS)


def test_the_figures_of_the_reports_are_whole():
    figures = sorted(ROOT.glob("reports/*/figures/*.svg"))
    assert len(figures) > 10 * (len(PAGES) - 1)
    for figure in figures:
        expat.ParserCreate().Parse(figure.read_bytes(), True)  # raises what is wrong with it


@needs_browser
def test_no_page_makes_a_request_or_a_complaint(visit):
    assert "CONSOLE" not in visit.said, visit.said
    assert visit.asked == []


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_from_disk_whole(visit, page):
    backgrounds = set()
    for width in SCREENS:
        assert (page, width) in visit.measured, f"{page} did not load"
        found = visit.measured[page, width]
        assert found["width"] == width
        assert found["needed"] <= width, f"{page} needs {found['needed']} px at a width of {width}"
        assert found["drawn"], f"{page} lacks a picture"
        assert found["shadowed"], f"{page} has a table that is cut off unseen"
        if width == 1280:
            assert not found["cut"], (
                f"{page} has {found['cut']} tables that a desktop does not show whole"
            )
        backgrounds.add(found["background"])
    assert len(backgrounds) == 2, "light and dark look alike"


@needs_browser
def test_the_probe_sees_what_it_is_there_for(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><body><img src='http://127.0.0.1:9/x.png'><script>undefinedFunction()</script>"
        "<div class='wide' style='overflow: hidden'><p style='width:3000px'>cut off</p></div>"
        f"<p style='width:1000px'>wide</p>{PROBE}</body></html>"
    )
    visit = browse({"bad": page}, tmp_path, {1280: "dark", 500: "light"})
    assert "undefinedFunction" in visit.said and "CONSOLE" in visit.said
    assert visit.asked == ["http://127.0.0.1:9/x.png"]
    for width, found in ((width, visit.measured["bad", width]) for width in (1280, 500)):
        assert found["width"] == width and (found["needed"] > width) == (width == 500)
        assert not found["drawn"] and not found["shadowed"]
