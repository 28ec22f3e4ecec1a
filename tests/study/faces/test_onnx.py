"""Networks in ONNX files, on files of a few nodes made here: a network that averages each channel."""

import hashlib
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from cid import align, recognition
from study.faces import network_files
from study.faces.onnx import get_network

SIDE = 8


def made(path, shape=("n", 3, SIDE, SIDE), nodes=(), outputs=(("mean", ("n", 3)),), dtype=None):
    """A file of a network, and the name it has: channel means, then `nodes` (operator, from, to, ...)."""
    first = (
        [("Transpose", "x", "y", {"perm": [0, 3, 1, 2]})]
        if shape[-1] == 3
        else [("Identity", "x", "y")]
    )
    first += [("GlobalAveragePool", "y", "pooled"), ("Flatten", "pooled", "mean")]
    nodes = [
        helper.make_node(kind, [takes], [gives], **(more[0] if more else {}))
        for kind, takes, gives, *more in [*first, *nodes]
    ]
    dtype = dtype or TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, dtype, s) for name, s in outputs]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", dtype, shape)], ends)
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    )
    return named(path)


def named(path, digits=12):
    return f"{path}@{hashlib.sha256(path.read_bytes()).hexdigest()[:digits]}"


def flat(*colours):
    """Crops of one colour each."""
    return torch.tensor(colours, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, -1, SIDE, SIDE)


def embed(name, crops, **onnx):
    return recognition.embed(crops, get_network(name, {"size": SIDE} | onnx), device="cpu")


@pytest.mark.parametrize("first", ["n", 1], ids=["any", "one"])
@pytest.mark.parametrize("layout", [("n", 3, SIDE, "w"), ("n", "h", "w", 3)], ids=["NCHW", "NHWC"])
def test_a_network_is_run_on_normalised_crops_of_its_own_layout(tmp_path, layout, first):
    name = made(tmp_path / "net.onnx", (first, *layout[1:]), outputs=[("mean", (first, 3))])
    found = embed(name, flat((255, 0, 0), (204, 102, 255), (0, 51, 255)))
    # (x - 127.5) / 127.5 of each channel, and nothing else: the trunk is the embedding as it came.
    expected = torch.tensor([[1, -1, -1], [0.6, -0.2, 1], [-1, -0.6, 1]])
    torch.testing.assert_close(found.trunk, expected)
    torch.testing.assert_close(found.embedding, F.normalize(expected))
    other = embed(name, flat((204, 102, 255)), channels="bgr", mean=[1, 2, 3], scale=[1, 4, 10])
    torch.testing.assert_close(other.trunk, torch.tensor([[254, 25, 20.1]]))
    grey = flat((204, 102, 255), (127, 127, 127))
    with pytest.raises(
        ValueError, match="an embedding of zeros, .*, for 1 of 2 images; see whether"
    ):
        embed(name, grey, mean=127)
    twice = embed(name, flat((204, 102, 255)), mean=0, scale=2)
    torch.testing.assert_close(twice.trunk, torch.tensor([[102, 51, 127.5]]))


@pytest.mark.parametrize(
    "layout", [("n", 3, SIDE, SIDE), ("n", SIDE, SIDE, 3)], ids=["NCHW", "NHWC"]
)
def test_the_second_output_is_the_trunk_and_a_map_is_pooled(tmp_path, layout):
    crops = torch.arange(2 * 3 * SIDE**2).view(2, 3, SIDE, SIDE).to(torch.uint8)
    both = [("mean", ("n", 3)), ("map", layout)]
    name = made(tmp_path / "map.onnx", layout, [("Neg", "x", "map")], both)
    found = embed(name, crops, mean=0, scale=1)
    # 2 x 2 pixels fall into each of the 4 x 4 places.
    pooled = -crops.float().view(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(found.trunk, pooled.flatten(1))
    vectors = [("mean", ("n", 3)), ("other", ("n", 3)), ("mean2", ("n", 3))]
    nodes = [("Neg", "mean", "other"), ("Neg", "other", "mean2")]
    name = made(tmp_path / "vectors.onnx", layout, nodes, vectors)
    found = embed(name, crops, mean=0, scale=1)
    torch.testing.assert_close(found.trunk, -crops.float().mean((2, 3)))


def test_half_precision_files_are_fed_what_they_take(tmp_path):
    name = made(tmp_path / "half.onnx", dtype=TensorProto.FLOAT16)
    found = embed(name, flat((255, 0, 127)))
    assert found.trunk.dtype == found.embedding.dtype == torch.float32
    torch.testing.assert_close(found.trunk, torch.tensor([[1, -1, -0.0039]]), atol=1e-3, rtol=0)


def test_a_network_of_a_file_says_what_it_is(tmp_path):
    name = made(tmp_path / "net.onnx", outputs=[("mean", ("n", 3)), ("pooled", ("n", 3, 1, 1))])
    net = get_network(name, {"size": SIDE})
    assert (net.dimension, net.trunk_dimension, net.size) == (3, 48, SIDE)
    sha256 = hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()
    assert net.source == f"ONNX file net.onnx, SHA-256 {sha256}"
    assert net.licence == "see where it came from" and str(tmp_path) not in net.key
    # The bytes and every option are in the key, and a list is as good as a number of its kind.
    keys = {get_network(name, {"size": SIDE, "scale": s}).key for s in (1, 2, [1, 2, 3])}
    assert len(keys | {net.key}) == 4
    other = made(tmp_path / "other.onnx", nodes=[("Neg", "mean", "x2")])
    assert get_network(other, {"size": SIDE}).key not in keys | {net.key}
    assert get_network("dlib-resnet").key == ""
    with pytest.raises(ValueError, match=r"onnx.sise is unknown \(did you mean 'size'"):
        get_network(name, {"sise": SIDE})


def test_templates_are_those_of_their_names_or_pixels(tmp_path):
    name = made(tmp_path / "net.onnx", ("n", 3, "h", "w"))
    for size in (112, 224):  # ArcFace's by default; as published, for 112 px
        template = get_network(name, {"size": size}).template * 112 - 0.5
        np.testing.assert_allclose(template[0], (38.29, 51.70))
        np.testing.assert_allclose(template[4], (70.73, 92.20))
    net = get_network(name, {"template": "dlib"})
    assert net.template is align.DLIB_TEMPLATE
    points = [[2, 2], [6, 2], [4, 4], [2, 6], [6, 6]]
    template = get_network(name, {"size": SIDE, "template": points}).template
    photo = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    crop = align.align([photo], np.array([points]), SIDE, template=template, device="cpu")
    np.testing.assert_array_equal(crop[0].permute(1, 2, 0), photo)  # what lies there stays there


@pytest.mark.parametrize(
    "how, said",
    [
        ({"shape": ("n", 1, SIDE, SIDE)}, r"takes tensor\(float\) of shape \['n', 1, 8, 8\]; it must take images"),
        ({"shape": ("n", "c", SIDE, SIDE)}, "it must take images"),
        ({"shape": (3, SIDE, SIDE)}, "it must take images"),
        ({"shape": ("n", 3, 16, 16)}, "takes 16 x 16 px, and size is 8; write size: 16 and the template"),
        ({"shape": ("n", 16, "w", 3)}, "takes 16 x any px, and size is 8; write size: 16"),
        ({"shape": (4, 3, SIDE, SIDE), "outputs": [("mean", (4, 3))]}, "takes exactly 4 images at once; export it"),
        ({"outputs": [("pooled", ("n", 3, 1, 1))]}, r"gives \(2, 3, 1, 1\) as its first output for 2 images; it must be \(n, d\)"),
        ({"nodes": [("Flatten", "mean", "f", {"axis": 0})], "outputs": [("f", (1, "k"))]}, r"gives \(1, 6\) as its first"),
        ({"nodes": [("Size", "mean", "s"), ("Cast", "s", "f", {"to": 1})], "outputs": [("f", ())]}, r"gives \(1,\) as its first"),
        ({"nodes": [("Flatten", "mean", "f", {"axis": 0})], "outputs": [("mean", ("n", 3)), ("f", (1, "k"))]},
         r"gives \(1, 6\) as its second output for 2 images; it must be \(n, t\) or a map"),
        ({"nodes": [("SpaceToDepth", "x", "d", {"blocksize": 3}), ("GlobalAveragePool", "d", "p"), ("Flatten", "p", "f")],
          "outputs": [("f", ("n", 27))]}, "cannot be run: .*; export it again"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, how, said, capfd):
    name = made(tmp_path / "net.onnx", **how)
    with pytest.raises(ValueError, match=said) as error:
        get_network(name, {"size": SIDE})
    assert str(error.value).startswith(f"{tmp_path / 'net.onnx'} ") and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "kind, inputs, dtype, said",
    [
        ("Add", "ab", TensorProto.FLOAT, r"takes tensor\(float\) .*, tensor\(float\) .*; it must take images"),
        ("Identity", "a", TensorProto.UINT8, r"takes tensor\(uint8\) of shape .* of float32 or float16"),
    ],
)  # fmt: skip
def test_two_inputs_and_whole_numbers_are_no_image(tmp_path, kind, inputs, dtype, said):
    shape = ("n", 3, SIDE, SIDE)
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name in [*inputs, "c"]]
    graph = helper.make_graph([helper.make_node(kind, [*inputs], ["c"])], "g", ends[:-1], ends[-1:])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), path)
    with pytest.raises(ValueError, match=said):
        get_network(named(path), {"size": SIDE})


def test_values_that_are_not_finite_stop_the_run(tmp_path):
    second = [("mean", ("n", 3)), ("root", ("n", 3))]
    for number, outputs in enumerate(([second[1]], second)):
        name = made(tmp_path / f"{number}.onnx", nodes=[("Log", "mean", "root")], outputs=outputs)
        how = {"mean": 0, "scale": 255}
        embed(name, flat((200, 200, 200)), **how)
        with pytest.raises(
            ValueError, match="values that are not finite for 1 of 3 images; see whether mean"
        ):
            embed(name, flat((200, 200, 200), (200, 200, 0), (254, 254, 254)), **how)


def own(path, steps=(), outputs=("v",), unused=0):
    """A file of steps (operator, inputs, output, attributes) from x to v, with constants by their values."""
    nodes = []
    weights = {}
    for kind, takes, gives, *more in steps:
        names = []
        for value in takes:
            if not isinstance(value, str):
                weights[f"w{len(weights)}"] = np.asarray(value)
                value = f"w{len(weights) - 1}"
            names.append(value)
        nodes.append(helper.make_node(kind, names, [gives], **(more[0] if more else {})))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, SIDE, SIDE))]
    inputs += [
        helper.make_tensor_value_info(f"left{i}", TensorProto.FLOAT, (1,)) for i in range(unused)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", "k")) for name in outputs]
    kept = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, ends, kept)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return named(path)


F4 = np.float32
MEANS = [("GlobalAveragePool", ["x"], "p"), ("Flatten", ["p"], "m")]
# Sixty numbers: of three, one draw in eight drops all, and zeros are refused for being zeros.
DROPPED = [
    ("Tile", ["m", np.array([1, 20])], "d"),
    ("Dropout", ["d", F4(0.5), np.array(True)], "v"),
]
BATCH = [("ReduceMean", ["m"], "c", {"axes": [0]}), ("Sub", ["m", "c"], "v")]


@pytest.mark.parametrize(
    "steps, said",
    [
        ([*MEANS, *DROPPED], "gives an image other numbers at every run, as in training, .*; export it after model.eval"),
        ([("BatchNormalization", ["x", F4([1, 1, 1]), F4([0, 0, 0]), F4([0, 0, 0]), F4([1, 1, 1])], "n", {"training_mode": 1}),
          ("GlobalAveragePool", ["n"], "p"), ("Flatten", ["p"], "v")], "normalises by each batch, as in training; export it after model.eval"),
        ([*MEANS, *BATCH], "an embedding of zeros|other numbers beside other images, as in training"),
        ([*MEANS, ("Mul", ["m", F4(2)], "d"), ("ReduceMean", ["d"], "c", {"axes": [0]}), ("Sub", ["d", "c"], "e"),
          ("Add", ["e", F4([1, 2, 3])], "v")], "other numbers beside other images, as in training"),
        ([*MEANS, ("Mul", ["m", F4(1e-9)], "d"), ("Add", ["d", F4([1, 2, 3])], "v")],
         "the same embedding for two different images; see whether mean and scale are"),
        ([*MEANS, ("Mul", ["m", F4(0)], "v")], "an embedding of zeros, which has no direction, for 2 of 2 made-up images"),
        ([*MEANS, ("Sub", ["m", F4(2)], "d"), ("Sqrt", ["d"], "v")], "values that are not finite for 2 of 2 made-up images"),
    ],
    ids=["dropout", "training mode", "batch", "batch shifted", "constant", "zero", "nan"],
)  # fmt: skip
def test_a_network_that_is_not_ready_is_refused_before_a_face_is_embedded(tmp_path, steps, said):
    path = tmp_path / "net.onnx"
    with pytest.raises(ValueError, match=said) as error:
        get_network(own(path, steps), {"size": SIDE})
    assert str(error.value).startswith(f"{path} ")


@pytest.mark.parametrize(
    "first",
    [
        [("Sub", ["x", F4(127.5)], "a"), ("Mul", ["a", F4(1 / 128)], "n")],
        [("Div", ["x", F4(255)], "a"), ("Sub", ["a", F4([0.5, 0.4, 0.4]).reshape(3, 1, 1)], "b"), ("Div", ["b", F4(0.2)], "n")],
        [("Mul", [F4(1 / 255), "x"], "n")],
        [("Clip", ["x", F4(0), F4(255)], "a"), ("Gather", ["a", np.array([2, 1, 0])], "b", {"axis": 1}),
         ("Sub", ["b", F4(127.5)], "c"), ("Mul", ["c", F4(1 / 128)], "n")],
        [("BatchNormalization", ["x", F4([1, 1, 1]), F4([0, 0, 0]), F4([130, 120, 110]), F4([4900] * 3)], "n")],
        [("Conv", ["x", F4(np.eye(3) / 128).reshape(3, 3, 1, 1), F4([-1, -1, -1])], "n")],
        [("Conv", ["x", F4([1 / 255] * 3).reshape(3, 1, 1, 1)], "n", {"group": 3})],
    ],
    ids=["sub mul", "div sub div", "mul", "clip and swap first", "batch", "convolution", "by channel"],
)  # fmt: skip
def test_a_network_that_normalises_pixels_itself_gets_pixels(tmp_path, capsys, first):
    path = tmp_path / "net.onnx"
    name = own(path, [*first, ("GlobalAveragePool", ["n"], "p"), ("Flatten", ["p"], "v")])
    found = embed(name, flat((255, 0, 102)))
    assert f"{path} normalises pixels itself" in capsys.readouterr().err
    stated = embed(name, flat((255, 0, 102)), mean=0, scale=1)
    assert torch.equal(found.trunk, stated.trunk) and found.trunk.abs().max() > 0.9
    for again in ({"mean": 127.5}, {"scale": [128, 128, 128]}, {"mean": 127.5, "scale": 127.5}):
        with pytest.raises(ValueError, match="would do it twice; write mean: 0 and scale: 1"):
            embed(name, flat((255, 0, 102)), **again)


@pytest.mark.parametrize(
    "first",
    [
        [("Mul", ["x", F4(127.5 / 128)], "n")],  # of what is normalised already
        [("Sub", ["x", F4(0.5)], "a"), ("Div", ["a", F4(0.2)], "n")],  # of 0..1
        [("Sub", ["x", "x"], "a"), ("Add", ["a", "x"], "n")],
        [
            (
                "BatchNormalization",
                ["x", F4([1, 1, 1]), F4([0, 0, 0]), F4([0.1, 0, 0]), F4([0.3] * 3)],
                "n",
            )
        ],
        [("Conv", ["x", F4(np.eye(3)).reshape(3, 3, 1, 1)], "n")],
        [
            ("Conv", ["x", F4(np.full((3, 3, 3, 3), 1 / 255))], "n", {"pads": [1, 1, 1, 1]})
        ],  # a layer
    ],
    ids=["scale", "unit", "itself", "batch of what is normalised", "convolution", "layer"],
)
def test_other_first_operations_do_not_count_as_normalisation(tmp_path, capsys, first):
    name = own(
        tmp_path / "net.onnx", [*first, ("GlobalAveragePool", ["n"], "p"), ("Flatten", ["p"], "v")]
    )
    expected = embed(name, flat((255, 0, 102)), mean=127.5, scale=127.5)
    assert torch.equal(embed(name, flat((255, 0, 102))).trunk, expected.trunk)
    assert capsys.readouterr().err == ""


def test_inputs_that_nothing_reads_and_a_tensor_called_location_are_no_fault(tmp_path):
    name = own(
        tmp_path / "net.onnx", [*MEANS[:1], ("Flatten", ["p"], "location")], ["location"], unused=29
    )
    assert get_network(name, {"size": SIDE}).dimension == 3


@pytest.mark.parametrize(
    "data, said",
    [
        (b"<!DOCTYPE html>\n<title>Not found \xc3\xa9</title>", "is no ONNX file but a text, '<!DOCTYPE html> "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "but a text, 'version https://git-lfs"),
        (b"", "but a text, ''; fetch the file again"),
        (b"PK\x03\x04" * 99, "is no ONNX file that onnxruntime can run: .*; fetch or export it again"),
        (b"\x08\x07\x12", "is no ONNX file that onnxruntime can run: .*"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_said(tmp_path, data, said, capfd):
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said) as error:
        get_network(named(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_weights_in_a_second_file_are_refused_as_they_have_no_checksum(tmp_path):
    made(path := tmp_path / "net.onnx")
    model = onnx.load(path)
    weight = onnx.numpy_helper.from_array(np.ones((3, 400), np.float32), "w")
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("MatMul", ["mean", "w"], ["v"]))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("v", TensorProto.FLOAT, ("n", 400))
    )
    onnx.save(model, path)
    assert get_network(named(path), {"size": SIDE}).dimension == 400
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    with pytest.raises(ValueError, match="keeps weights in a second file; save it in one"):
        get_network(named(path), {"size": SIDE})


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch, package):
    name = made(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=rf"net.onnx needs {package}; .*pip install .* '.\[onnx\]'"
    ):
        get_network(name, {"size": SIDE})


def test_a_file_is_named_with_its_checksum(tmp_path):
    path = tmp_path / "a@b.onnx"
    path.write_bytes(b"\x08\x07")
    sha256 = hashlib.sha256(b"\x08\x07").hexdigest()
    for digits in (sha256[:12], sha256.upper(), sha256[:40]):
        assert network_files.pinned(f"{path}@{digits}") == (path, sha256)
    right = f"if it is the file you mean, write {path}@{sha256[:16]}"
    for given, problem in [
        (f"{path}@", "lacks its SHA-256"),
        (f"{path}@{sha256[:11]}", "lacks its SHA-256"),
        (f"{path}@{'0' * 64}", f"has another SHA-256 than {'0' * 64}"),
        (f"{path}@{sha256}0", "lacks its SHA-256"),
    ]:
        with pytest.raises(ValueError) as error:
            network_files.pinned(given)
        assert problem in str(error.value) and str(error.value).endswith(right)
    with pytest.raises(
        FileNotFoundError, match="none.onnx is missing in .*; put the network there"
    ):
        network_files.pinned(f"none.onnx@{sha256}")
    with pytest.raises(ValueError, match="none.onnx pins no file; write none.onnx@ and 12 or more"):
        network_files.pinned("none.onnx")
    path.write_bytes(b"\x08\x08 changed")  # and is read again
    with pytest.raises(ValueError, match="has another SHA-256"):
        network_files.pinned(f"{path}@{sha256}")
    assert (
        network_files.is_file("x.onnx")
        and network_files.is_file("x@0")
        and not network_files.is_file("dlib-resnet")
    )


def test_dlibs_network_gives_the_same_from_an_onnx_file(tmp_path, monkeypatch):
    path, net = tmp_path / "dlib.onnx", recognition.load_network("dlib-resnet", torch.device("cpu"))

    class Standardised(torch.nn.Module):
        def forward(self, x):
            return net(x * 256 + net.mean)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        # Its map has 8 x 8 places; the exporter wants to know that.
        patch.setattr(F, "adaptive_avg_pool2d", lambda x, side: F.avg_pool2d(x, 2))
        warnings.simplefilter(
            "ignore"
        )  # of the exporter: that it is the old one, and what it traces
        names = {"input_names": ["x"], "output_names": ["v", "t"]}
        free = {"dynamic_axes": {name: {0: "n"} for name in "xvt"}}
        torch.onnx.export(
            Standardised(), (torch.zeros(1, 3, 150, 150),), path, dynamo=False, **names, **free
        )
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (4, 3, 12, 12), generator=generator).float()
    crops = F.interpolate(small, 150, mode="bicubic").clamp(0, 255).byte()
    onnx = {"template": "dlib", "size": 150, "mean": [122.782, 117.001, 104.298], "scale": 256}
    expected = recognition.embed(crops, device="cpu")
    found = recognition.embed(crops, get_network(named(path), onnx), device="cpu")
    assert abs(expected.embedding[0] - expected.embedding[1]).max() > 0.01
    torch.testing.assert_close(found.embedding, expected.embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.trunk, expected.trunk, atol=1e-5, rtol=1e-4)
    again = recognition.embed(crops, get_network(named(path), onnx), device="cpu")
    assert torch.equal(again.embedding, found.embedding) and torch.equal(again.trunk, found.trunk)
