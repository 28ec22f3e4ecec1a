"""The command that renders the virtual people (:mod:`people`) and writes them as a data set.

python -m people FOLDER --seed 0 --identities 100 --images 48 --size 112
"""

import argparse
import os

from people.records import card, records
from study.faces.dataset import write_faces


def main(arguments: list[str] | None = None) -> None:
    """Render virtual people into a data set; this is ``python -m people``.

    Exits with status 2 and one line on stderr if an argument is out of range or the optional package
    anny is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m people", description="Render virtual people into a data set."
    )
    parser.add_argument("folder", help="where to write; a data set that is there is replaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--identities", type=int, default=100, help="number of people")
    parser.add_argument("--images", type=int, default=48, help="images per person, an even number")
    parser.add_argument("--size", type=int, default=112, help="side of the images in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder")
    workers = options.pop("workers")
    try:
        write_faces(folder, records(**options, workers=workers), card(**options))
    except (ImportError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
