"""The command that renders the data set of virtual people.

python -m study people FOLDER --seed 0 --identities 100 --images 48 --size 112
"""

import os

from study.commands import parser, run_renamed
from study.faces.dataset import write_faces

# Not defined here: processes that are spawned cannot import the __main__ of a package.
from study.faces.people.records import card, records


def main(arguments: list[str]) -> None:
    """Render a data set into a folder."""
    command = parser("people")
    command.add_argument("folder", help="where to write; an existing data set there is replaced")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--identities", type=int, default=100)
    command.add_argument("--images", type=int, default=48, help="images of each person, even")
    command.add_argument("--size", type=int, default=112, help="edge of the images in pixels")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = vars(command.parse_args(arguments))
    folder, workers = options.pop("folder"), options.pop("workers")
    try:
        write_faces(folder, records(**options, workers=workers), card(**options))
    except ImportError as error:  # an optional package is missing
        raise ValueError(str(error)) from None


if __name__ == "__main__":
    run_renamed(__spec__.name)
