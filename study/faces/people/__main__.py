"""The command that renders the data set of virtual people.

python -m study.faces.people FOLDER --seed 0 --identities 100 --images 48 --size 112
"""

import argparse
import os

from study.faces.dataset import write_faces

# Not defined here: processes that are spawned cannot import the __main__ of a package.
from study.faces.people.records import card, records


def main(arguments: list[str] | None = None) -> None:
    """Command line: render a data set into a folder."""
    parser = argparse.ArgumentParser(prog="python -m study.faces.people", description=main.__doc__)
    parser.add_argument("folder", help="where to write; an existing data set there is replaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--identities", type=int, default=100)
    parser.add_argument("--images", type=int, default=48, help="images of each person, even")
    parser.add_argument("--size", type=int, default=112, help="edge of the images in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = vars(parser.parse_args(arguments))
    folder, workers = options.pop("folder"), options.pop("workers")
    try:
        write_faces(folder, records(**options, workers=workers), card(**options))
    except (ImportError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
