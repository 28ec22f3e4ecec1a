"""A folder as a user has it: labels, a split, embeddings, predictions, photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cid import detection
from cid.align import DLIB_TEMPLATE

PEOPLE = 12
EACH = 10


class Case:
    """The files of one user, and the command line over them."""

    def __init__(self, capsys):
        rng = np.random.default_rng(0)
        person = np.repeat(np.arange(PEOPLE), EACH)
        majority = np.arange(PEOPLE) % 2
        self.labels = np.where(
            rng.random(len(person)) < 0.85, majority[person], 1 - majority[person]
        )
        self.z = rng.normal(size=(PEOPLE, 8))[person] + 0.2 * rng.normal(size=(len(person), 8))
        self.z = self.z.astype(np.float32)
        self.images = [f"{row}.png" for row in range(len(person))]
        self.split = np.tile(["train", "train", "test"], len(person) // 3)
        self.table = pd.DataFrame(
            {"image": self.images, "smiling": self.labels, "split": self.split}
        )
        self.predictions = pd.DataFrame({"image": self.images, "mine": self.labels})
        self.capsys = capsys
        self.write()

    def write(self):
        np.save("z.npy", self.z)
        self.table.to_csv("labels.csv", index=False)
        self.predictions.to_csv("predictions.csv", index=False)

    def run(self, words: str) -> tuple[int, str, str]:
        from cid.door.cli import main

        self.capsys.readouterr()
        try:
            status = main(words.split())
        except SystemExit as left:
            status = left.code
        out, err = self.capsys.readouterr()
        return status, out, err

    def weigh(self, more: str = "") -> tuple[int, str, str]:
        return self.run(
            f"weigh --embeddings z.npy --labels labels.csv --label smiling -o w.csv {more}"
        )

    def audit(self, more: str = "") -> tuple[int, str, str]:
        return self.run(
            "audit --embeddings z.npy --labels labels.csv --label smiling "
            f"--predictions predictions.csv -o audit {more}"
        )


@pytest.fixture
def case(tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(tmp_path)
    return Case(capsys)


@pytest.fixture
def photos(case, monkeypatch):
    """The same case with a photograph for each image, and a face in all but the first."""
    folder = Path("photos")
    folder.mkdir()
    rng = np.random.default_rng(1)
    for row, name in enumerate(case.images):
        shade = rng.integers(0, 255, (24, 24, 3)) if row else np.zeros((24, 24, 3))
        Image.fromarray(shade.astype(np.uint8)).save(folder / name)

    def detect(images, detector="joined", **_):
        found = np.array([image.any() for image in images])
        landmarks = np.stack([20 * DLIB_TEMPLATE + 2] * len(images)).astype(np.float32)
        return detection.Detection(landmarks, found.astype(np.float32), found.astype(int), found)

    monkeypatch.setattr(detection, "detect", detect)
    monkeypatch.setattr(detection, "at_hand", lambda name: name)
    return case
