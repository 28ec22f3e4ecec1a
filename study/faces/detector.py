"""The file of the face detector BlazeFace: :mod:`cid.door.detector` as a command of the study.

    python -m study detector      fetches the file, unless it is there, and prints where it is

The set-up of the Makefile does this once. Where it cannot, faces are found by MTCNN with a margin.
"""

from cid.door.detector import fetch
from study.commands import parser


def main(arguments: list[str]) -> None:
    parser("detector").parse_args(arguments)
    print(fetch())
