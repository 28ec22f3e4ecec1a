"""A picture of what a command shows in a terminal of 120 columns.

$ python -m benchmarks.terminal docs/metrics-diff.svg dvc metrics diff

The command runs in a pseudo-terminal, so it colours its output as it does for a person. Longer lines are cut
where the terminal ends, as DVC's pager cuts them.
"""

import argparse
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

COLUMNS = 120
LINES = 50
# Plain, so that the picture asks for no font: rich's own names one on the web.
PICTURE = """\
<svg class="{unique_id}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: monospace; font-size: {char_height}px; line-height: {line_height}px;
  font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs>{lines}</defs>
{backgrounds}
<rect width="{width}" height="{height}" fill="#ffffff" stroke="#cccccc"/>
<g class="{unique_id}-matrix" transform="translate(9, 9)">{matrix}</g>
</svg>
"""


def shown(command: list[str]) -> str:
    """Return what a command writes to a terminal, with its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "DVC_PAGER": "cat"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed: on Linux, an error
            break
        if not part:
            break
        written += part
    os.close(ours)
    if process.wait():
        raise ValueError(f"{' '.join(command)} failed: {written.decode().strip()}")
    return written.decode().replace("\r\n", "\n")


def draw(text: str, path: Path, title: str) -> None:
    """Draw what a terminal shows as SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, color_system="standard")
        console.print(f"$ {title}", highlight=False, markup=False)
        for line in text.rstrip("\n").split("\n"):
            console.print(Text.from_ansi(line), no_wrap=True, overflow="crop", crop=True)
        console.save_svg(
            str(path),
            title=title,
            theme=DEFAULT_TERMINAL_THEME,
            code_format=PICTURE,
            unique_id="terminal",
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("picture", type=Path, help="SVG file to write")
    options.add_argument("command", nargs=argparse.REMAINDER)
    given = options.parse_args()
    try:
        draw(shown(given.command), given.picture, " ".join(given.command))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
