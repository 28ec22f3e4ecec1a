"""Follow COOKBOOK.md from top to bottom, whole, and time every command: `benchmarks/cookbook.csv`.

    python -m benchmarks.cookbook     in a fresh clone, after `make reproduce`; about an hour on two cores

What the recipes take from their user is made here, out of the images of the study: photographs with labels,
annotations, and a recognition network. `make lab` is left out, which waits for a reader.
"""

from __future__ import annotations

import csv
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from study.faces.dataset import read_faces

TABLE = Path(__file__).with_name("cookbook.csv")
BROUGHT = ("PHOTOS", "labels.csv", "annotations.parquet", "MODEL.onnx")


def recipes(text: str) -> list[list[str]]:
    """The commands of every block of a cookbook, in its order."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [re.findall(r"(?m)^\$ (.+)$", block) for block in blocks]


def bring(folder: Path) -> None:
    """Put what the recipes take from their user into a clone with its data, where git ignores it."""
    faces = read_faces(folder / "data")
    names = [f"{who}/{row}.png" for row, who in enumerate(faces.frame["identity"])]
    for row, name in enumerate(names):
        path = folder / "PHOTOS" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(faces.encoded[row].as_py())
    people = pd.DataFrame({"image": names, "identity": faces.frame["identity"]})
    labels = people.assign(glasses=faces.frame["smiling"])
    labels.to_csv(folder / "labels.csv", index=False)
    smiling = faces.frame["smiling"]
    annotations = people.assign(smiling=smiling, Smiling=smiling)  # as CelebA writes it
    annotations.to_parquet(folder / "annotations.parquet")
    write_network(folder / "MODEL.onnx")
    with open(folder / ".git" / "info" / "exclude", "a") as file:
        file.write("\n".join(BROUGHT) + "\n")


def write_network(path: Path) -> None:
    """Write a network whose embedding is a crop of 112 px, shrunk to 8 x 8 pixels of each channel."""
    from onnx import TensorProto, helper

    shrunk = helper.make_node(
        "AveragePool", ["crop"], ["small"], kernel_shape=[14, 14], strides=[14, 14]
    )
    nodes = [shrunk, helper.make_node("Flatten", ["small"], ["embedding"])]
    crop = helper.make_tensor_value_info("crop", TensorProto.FLOAT, ("n", 3, 112, 112))
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("n", 192))
    graph = helper.make_graph(nodes, "pixels", [crop], [embedding])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def main() -> int:
    if not all(Path(name).exists() for name in BROUGHT):
        bring(Path())
    with open(TABLE, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["command", "seconds"])
        followed = recipes(Path("COOKBOOK.md").read_text(encoding="utf-8"))
        for command in itertools.chain.from_iterable(followed):
            if command == "make lab":
                continue
            print(f"$ {command}", flush=True)
            began = time.monotonic()
            done = subprocess.run(["bash", "-c", command])
            if done.returncode:
                print(f"error: {command} ended with {done.returncode}", file=sys.stderr)
                return 1
            table.writerow([command, round(time.monotonic() - began)])
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
