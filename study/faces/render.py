"""The command that renders the virtual people (:mod:`people`) and writes them as a data set.

python -m study people FOLDER --seed 0 --identities 100 --images 48 --size 112
"""

import os

from people.records import card, records
from study.commands import parser
from study.faces.dataset import write_faces


def main(arguments: list[str]) -> None:
    """Render virtual people into a data set.

    Raises ValueError if an argument is out of range or the optional package anny is missing.
    """
    command = parser("people")
    command.add_argument("folder", help="where to write; a data set that is there is replaced")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--identities", type=int, default=100, help="number of people")
    command.add_argument("--images", type=int, default=48, help="images per person, an even number")
    command.add_argument("--size", type=int, default=112, help="side of the images in pixels")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = vars(command.parse_args(arguments))
    folder = options.pop("folder")
    workers = options.pop("workers")
    try:
        write_faces(folder, records(**options, workers=workers), card(**options))
    except ImportError as error:
        raise ValueError(str(error)) from None
