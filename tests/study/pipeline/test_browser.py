"""The pages of the reports in a real browser: no message on the console, no request, at two widths."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

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
PROBE = """
<script>
addEventListener("load", () => document.title = JSON.stringify([
  document.documentElement.scrollWidth, window.innerWidth,
  getComputedStyle(document.body).backgroundColor, [...document.images].every(i => i.naturalWidth > 0),
  [...document.querySelectorAll(".wide")].every(w => w.scrollWidth <= w.clientWidth + 1
    || (getComputedStyle(w).overflowX == "auto" && getComputedStyle(w).backgroundImage != "none")),
  [...document.querySelectorAll(".wide")].filter(w => w.scrollWidth > w.clientWidth + 1).length
]));
</script>
"""

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium on the PATH")


def browse(page: Path, folder: Path, width: int, *options: str) -> tuple[str, str, list[str]]:
    """The page after it ran, what was said on stderr, and the addresses it asked for."""
    log = folder / "net.json"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", f"--window-size={width},900",
         "--virtual-time-budget=3000", *options, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = json.loads(log.read_text())["events"]
    # A browser asks for updates of its own; what a page asks for has the page as its initiator.
    asked = [e["params"] for e in events if "initiator" in e.get("params", {})]
    own = ("file:", "data:", "blob:", "about:", "chrome")
    asked = [p["url"] for p in asked if p["initiator"] != "not an origin"]
    return done.stdout, done.stderr, [url for url in asked if not url.startswith(own)]


def probed(page: Path) -> Path:
    """A copy of a page beside it in a copy of its folder, with a probe that measures it."""
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    return page


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_from_disk_without_a_request_or_a_complaint(page, tmp_path):
    """The page in a copy of its folder, where nothing else is."""
    shutil.copytree((ROOT / page).parent, tmp_path / "report")
    copy = probed(tmp_path / "report" / "index.html")
    papers = set()
    for width, scheme in ((1280, "light"), (420, "dark")):
        options = ["--blink-settings=preferredColorScheme=" + ("0" if scheme == "dark" else "1")]
        dom, said, asked = browse(copy, tmp_path, width, *options)
        assert "CONSOLE" not in said, said
        assert asked == []
        needed, there, paper, drawn, shadowed, cut = json.loads(
            re.search(r"<title>(\[.*?\])</title>", dom)[1]
        )
        assert needed <= there, f"{page} needs {needed} px at a width of {there}"
        assert drawn, f"{page} lacks a picture"
        assert shadowed, f"{page} has a table that is cut off unseen"
        if width == 1280:
            assert not cut, f"{page} has {cut} tables that a desktop does not show whole"
        papers.add(paper)
    assert len(papers) == 2, "light and dark look alike"


@needs_browser
def test_the_probe_sees_what_it_is_there_for(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><body><img src='http://127.0.0.1:9/x.png'><script>undefinedFunction()</script>"
        "<div class='wide' style='overflow: hidden'><p style='width:3000px'>cut off</p></div>"
        f"<p style='width:3000px'>wide</p>{PROBE}</body></html>"
    )
    dom, said, asked = browse(page, tmp_path, 500)
    assert "undefinedFunction" in said and "CONSOLE" in said
    assert asked == ["http://127.0.0.1:9/x.png"]
    needed, there, _, drawn, shadowed, _ = json.loads(
        re.search(r"<title>(\[.*?\])</title>", dom)[1]
    )
    assert needed > there and not drawn and not shadowed
