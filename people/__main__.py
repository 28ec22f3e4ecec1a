"""Render the data set of virtual people: ``python -m people FOLDER --seed 0``.

The only file here that needs the experiment: :mod:`study.faces.render` writes what is rendered.
"""

import sys

from study.cli import main

if __name__ == "__main__":
    sys.exit(main(["people", *sys.argv[1:]]))
