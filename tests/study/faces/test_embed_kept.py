"""What stays of an embedding when its disk fills, and what is said where few faces were found."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cid import align, detection
from study import store
from study.faces import embed as faces
from tests.study.faces.test_embed import GOOD, embed_faces, face_set

SETTINGS = {
    "network": "dlib-resnet",
    "trunk": "dlib-resnet",
    "precision": "single",
    "detect": False,
}


@pytest.fixture
def data(monkeypatch):
    """Five photographs of two people, embedded two at a time."""
    monkeypatch.setattr(faces, "CHUNK", 2)
    points = np.repeat((align.DLIB_TEMPLATE * 40 + 5)[None], 5, axis=0)
    photos = np.random.default_rng(3).integers(0, 256, (5, 60, 50, 3), np.uint8)
    return face_set(photos, points, people=["a", "a", "a", "b", "b"])


def full_at(monkeypatch, refuses) -> None:
    """A disk without room for files whose name ``refuses`` accepts."""
    opened = open

    def on_a_full_disk(path, *arguments, **how):
        file = opened(path, *arguments, **how)
        if refuses(Path(path).name):
            monkeypatch.setattr(store, "open", opened, raising=False)  # space is freed
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return file

    monkeypatch.setattr(store, "open", on_a_full_disk, raising=False)


@pytest.mark.parametrize(
    "name", ["proxy.npy", "trunk.npy", "detection.npz", "summary.json", "roc.csv"]
)
def test_a_disk_that_fills_while_results_are_saved_loses_nothing(data, tmp_path, monkeypatch, name):
    kept, out = tmp_path / "runs", tmp_path / "embed"
    result = embed_faces(data, **SETTINGS, folder=kept)
    full_at(monkeypatch, lambda file: file.startswith(name))
    with pytest.raises(OSError, match="No space left"):
        faces.write_embeddings(out, result, data, SETTINGS)
    assert len(list(kept.iterdir())) == 3
    assert not (out / name).exists() and not list(out.glob("*.partial"))
    monkeypatch.setattr(faces, "embed", None)  # and nothing is embedded again
    again = embed_faces(data, **SETTINGS, folder=kept)
    faces.write_embeddings(out, again, data, SETTINGS)
    np.testing.assert_array_equal(np.load(out / "proxy.npy"), result.embedding)


def test_a_disk_that_fills_while_chunks_are_kept_keeps_those_that_are_done(
    data, tmp_path, monkeypatch
):
    calls, compute = [], faces.embed
    monkeypatch.setattr(faces, "embed", lambda *a, **k: calls.append(1) or compute(*a, **k))
    seen = []
    full_at(monkeypatch, lambda file: ".partial" in file and (seen.append(file) or len(seen)) == 2)
    with pytest.raises(OSError, match="No space left"):
        embed_faces(data, **SETTINGS, folder=tmp_path)
    done = len(list(tmp_path.iterdir()))
    assert done in (1, 2) and not list(tmp_path.glob("*.partial"))
    calls.clear()
    embed_faces(data, **SETTINGS, folder=tmp_path)
    assert len(calls) == 3 - done


def test_another_network_does_not_look_for_faces_again(data, tmp_path, monkeypatch):
    first = embed_faces(data, "pixels", "pixels", folder=tmp_path)
    monkeypatch.setattr(faces, "find_faces", None)
    second = embed_faces(data, "untrained", "untrained", folder=tmp_path)
    np.testing.assert_array_equal(second.detection.landmarks, first.detection.landmarks)
    assert second.embedding.shape != first.embedding.shape


@pytest.mark.parametrize("known, copied", [(True, None), (False, None), (True, 2), (True, 1)])
def test_a_proxy_that_knows_nobody_and_photographs_that_occur_twice_are_said(
    tmp_path, capsys, known, copied
):
    """Image 0 again as image 2, of the same person, or as image 1, of the other one."""
    n = 100
    unit = two_people(n) if known else np.eye(n, dtype=np.float32)
    if copied is not None:
        unit[copied] = unit[0]
    points = np.zeros((n, 5, 2), np.float32)
    found = np.ones(n, bool)
    result = faces.FaceEmbeddings(
        detection.Detection(points, found * 1.0, found * 1, found), unit, unit, None
    )
    data = face_set([GOOD] * n, people=["a", "b"] * (n // 2))
    summary = faces.write_embeddings(tmp_path, result, data, SETTINGS)
    said = capsys.readouterr()
    warned = summary.get("warning", "")
    assert said.err == (f"warning: {warned}\n" if warned else "")
    copies = f"2 of {n} images (2.0%) have a near copy"
    assert (copies in said.out) == (copied is not None)
    assert copied is None or f"Rows of such pairs in data/: 0 and {copied}." in said.out
    another = "2 of them resemble an image of another person"
    assert (copies in warned) == (another in warned) == (copied == 1)
    hardly = "hardly tells these people apart: at a false match rate of 0.001 it matches 0.0% of"
    # Image 1 is as near to 49 images of the other person as these are to each other.
    assert (hardly in warned) == bool(warned) == (not known or copied == 1)


def two_people(n: int) -> np.ndarray:
    """Unit vectors of two people in turn: cosines .8 of one person and 0 of different ones."""
    unit = np.hstack([np.eye(2)[np.arange(n) % 2], 0.5 * np.eye(n)])
    return np.float32(unit / np.linalg.norm(unit, axis=1, keepdims=True))


@pytest.mark.parametrize("share, warned", [(0.85, True), (0.9, False), (1.0, False)])
def test_few_faces_found_are_a_warning_in_the_metrics_and_on_the_screen(
    tmp_path, capsys, share, warned
):
    n = 20
    found = np.arange(n) < share * n
    points = np.zeros((n, 5, 2), np.float32)
    unit = two_people(n)
    result = faces.FaceEmbeddings(
        detection.Detection(points, found * 1.0, found * 1, found), unit, unit, None
    )
    data = face_set([GOOD] * n, people=["a", "b"] * (n // 2))
    summary = faces.write_embeddings(tmp_path, result, data, SETTINGS)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == summary and ("warning" in written) == warned
    said = capsys.readouterr().err
    assert said == (f"warning: {written['warning']}\n" if warned else "")
    assert not warned or written["warning"].startswith(
        "Only 85.0% of the faces were found, where 90%"
    )
