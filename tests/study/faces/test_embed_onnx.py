"""A study whose networks are ONNX files: what is kept of it, what it writes, and its notebooks."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from jupyter_core.utils import run_sync
from ruamel.yaml import YAML

from cid import align
from study.faces import embed as faces
from study.faces.dataset import write_faces
from study.pipeline import notebook, params
from tests.study.faces.test_embed import face_set
from tests.study.faces.test_onnx import SIDE, made, named
from tests.study.small import forked_kernel

ROOT = Path(__file__).parents[3]
MAP = {
    "nodes": [("Neg", "x", "map")],
    "outputs": [("mean", ("n", 3)), ("map", ("n", 3, SIDE, SIDE))],
}
POINTS = (align.DLIB_TEMPLATE * 40 + 5).astype(np.float32)
PHOTOS = np.random.default_rng(3).integers(0, 256, (5, 60, 50, 3), np.uint8)
PEOPLE = ["a", "a", "a", "b", "b"]
HOW = {"device": "cpu", "progress": False}


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    return face_set(PHOTOS, np.repeat(POINTS[None], 5, axis=0), people=PEOPLE)


@pytest.fixture
def settings(tmp_path):
    """The section `embed` of a params.yaml that is valid."""
    made(tmp_path / "mean.onnx")
    tree = YAML(typ="safe").load(ROOT / "params.yaml")
    tree["embed"] |= {
        "network": named(tmp_path / "mean.onnx"),
        "trunk": made(tmp_path / "map.onnx", **MAP),
        "detect": False,
        "onnx": {"size": SIDE, "template": "dlib", "mean": 0, "scale": 255},
    }
    params.check(copy.deepcopy(tree))
    return tree["embed"]


def test_faces_are_cut_and_embedded_as_the_parameters_say(data, settings, tmp_path):
    found = faces.embed_faces(data, **settings, folder=None, **HOW)
    landmarks = np.repeat(POINTS[None], 5, axis=0)
    crops = align.align(
        PHOTOS, landmarks, SIDE, rounded=False, template=align.DLIB_TEMPLATE, device="cpu"
    )
    means = crops.float().mean((2, 3)) / 255
    expected = means / means.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(found.embedding, expected, atol=1e-6)
    pooled = -torch.nn.functional.adaptive_avg_pool2d(crops.float() / 255, 4).flatten(1)
    np.testing.assert_allclose(found.trunk, pooled, atol=1e-6)
    views = faces.embed_views(
        data, landmarks, settings["network"], onnx=settings["onnx"], folder=None, **HOW
    )
    np.testing.assert_allclose(views["mirrored"], expected, atol=1e-6)  # a mean has no sides
    summary = faces.write_embeddings(tmp_path / "out", found, data, settings)
    source = r"ONNX file {}.onnx, SHA-256 [0-9a-f]{{64}}, licence: see where it came from"
    both = "; ".join(source.format(name) for name in ("mean", "map"))
    assert re.fullmatch(both, summary["files"])


def test_what_is_kept_is_of_these_bytes_and_these_options(data, settings, tmp_path):
    kept, views = tmp_path / "kept", {"folder": tmp_path / "views", **HOW}

    def chunks(**changed) -> int:
        """How many chunks there are after an embedding with some other settings."""
        faces.embed_faces(data, **(settings | changed), folder=kept, **HOW)
        used = {key: (settings | changed)[key] for key in ("network", "onnx")}
        faces.embed_views(data, data.landmarks(), **used, **views)
        assert len(list(kept.iterdir())) == len(list(views["folder"].iterdir()))
        return len(list(kept.iterdir()))

    assert chunks() == chunks() == 3
    for rank in range(2):  # a process's share is kept where the study finds it
        faces.embed_share(data, settings, rank, 2, folder=kept)
    assert chunks() == 3
    assert chunks(onnx=settings["onnx"] | {"mean": 1}) == 6
    assert chunks(onnx=settings["onnx"] | {"mean": 1.0}) == 6
    path = tmp_path / "mean.onnx"
    other = made(path, nodes=[("Neg", "mean", "less")], outputs=[("less", ("n", 3))])
    assert chunks(network=other) == 9
    with pytest.raises(ValueError, match="mean.onnx has another SHA-256"):
        chunks()


def test_the_notebooks_hand_on_what_an_onnx_file_takes(data, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = (
        {"image": {"bytes": data.encoded[row].as_py(), "path": f"{row}.png"},
         "identity": PEOPLE[row], "smiling": row % 2, "landmarks": POINTS.ravel().tolist()}
        for row in range(5)
    )  # fmt: skip
    about = {"name": "noise", "source": "a test", "licence": "CC0"}
    write_faces("data", records, about | {"attributes": ["smiling"], "demographics": []})
    given = {"embed": settings, "model": "linear", "proxies": {"zooms": [1.0]}}
    with forked_kernel(ROOT) as kernel:
        for stage, names in (("embed", ["embed", "model"]), ("views", ["embed", "proxies"])):
            used = {name: given[name] for name in names}
            source = ROOT / f"notebooks/compute/{stage}.ipynb"
            notebook.run_notebook(source, f"{stage}.ipynb", used, kernel=kernel)
            run_sync(kernel.empty)()
    summary = json.loads(Path("build/embed/summary.json").read_text())
    assert summary["files"].startswith("ONNX file mean.onnx, SHA-256 ")
    views, proxy = np.load("build/views/views.npz"), np.load("build/embed/proxy.npy")
    np.testing.assert_allclose(views["zoom 1"], proxy, atol=1e-6)
