"""What detectors find, and what a recogniser makes of it: a table of detectors on data sets.

    python -m benchmarks.detectors TABLE.csv FOLDER FOLDER ... [--people 60] [--each 8]

A folder holds a data set (study/faces/dataset.py), or a folder of photographs for each person. Of the people with
so many photographs, as many as asked for are drawn by lot, and the first of each. Rows are added to the
table, those of a data set that is already there are replaced. Columns: `data`, `images`, `people`, `detector`;
`found`, the share of faces found; `auc` and `right`, verification AUC and right pairs of dlib-resnet on all images,
found or not; `ms`, CPU time of the detection of a photo on one thread, many photos at a time. Identities are used
to draw and to measure, no other label.
"""

import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cid.align import align
from cid.detection import DETECTORS, at_hand, detect
from cid.recognition import embed
from study.faces.dataset import CARD, read_faces
from study.faces.verification import pair_similarities, right_pairs, verification_auc

COLUMNS = ["data", "images", "people", "detector", "found", "auc", "right", "ms"]
KINDS = (".jpg", ".jpeg", ".png", ".pgm")


def drawn(identities, people: int, each: int) -> np.ndarray:
    """Return the rows of the first ``each`` images of ``people`` people who have so many."""
    identities = np.asarray(identities)
    names, counts = np.unique(identities, return_counts=True)
    names = np.random.default_rng(0).permutation(names[counts >= each])[:people]
    return np.concatenate([np.flatnonzero(identities == name)[:each] for name in names])


def sample(folder: Path, people: int, each: int) -> tuple[str, list[np.ndarray], np.ndarray]:
    """Return the name of a data set, photographs, uint8 (h, w, 3), and the person on each."""
    if (folder / CARD).exists():
        data = read_faces(folder, check_images=False)
        identities = data.identities()
        rows = drawn(identities, people, each)
        return data.card["name"], list(data.images(rows)), identities[rows]
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in KINDS)
    identities = np.array([file.parent.name for file in files])
    rows = drawn(identities, people, each)
    photos = [np.asarray(Image.open(files[row]).convert("RGB")) for row in rows]
    return folder.name, photos, identities[rows]


def measured(name: str, photos: list[np.ndarray], identities: np.ndarray, detector: str) -> dict:
    """Return a row of the table."""
    start = time.thread_time()
    found = detect(photos, detector, device="cpu", progress=False)
    seconds = time.thread_time() - start
    crops = align(photos, found.landmarks, rounded=False, device="cpu")
    unit = embed(crops, device="cpu").embedding
    pairs = pair_similarities(unit, identities)
    row = {
        "data": name,
        "images": len(photos),
        "people": len(np.unique(identities)),
        "detector": detector,
        "found": round(float(found.found.mean()), 4),
        "auc": round(verification_auc(*pairs), 4),
        "right": round(right_pairs(*pairs), 4),
        "ms": round(seconds / len(photos) * 1e3, 2),
    }
    print(row, flush=True)
    return row


def main() -> None:
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("table", type=Path)
    options.add_argument("folders", type=Path, nargs="+")
    options.add_argument("--people", type=int, default=60)
    options.add_argument("--each", type=int, default=8)
    options.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    given = options.parse_args()
    for name in given.detectors:
        if at_hand(name) != name:
            raise SystemExit(f"error: {name} is not at hand; run `python -m study detector`")
    torch.set_num_threads(1)
    for folder in given.folders:
        name, photos, identities = sample(folder, given.people, given.each)
        for detector in given.detectors:
            row = measured(name, photos, identities, detector)
            known = (
                pd.read_csv(given.table) if given.table.exists() else pd.DataFrame(columns=COLUMNS)
            )
            others = known[(known["data"] != name) | (known["detector"] != detector)]
            parts = [others, pd.DataFrame([row])] if len(others) else [pd.DataFrame([row])]
            table = pd.concat(parts).sort_values(["data", "detector"], kind="stable")
            table.to_csv(given.table, index=False)


if __name__ == "__main__":
    main()
