"""Models: their options and their first weights. No network is fetched."""

from __future__ import annotations

import pytest
import torch

from cid import models
from cid.models import MODELS, read_options


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epoch": 3}, r"train.network.epoch is unknown \(did you mean 'epochs'\?\)"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"epochs": True}, "epochs is True"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"through": "both"}, "it must be sampler or loss"),
        ({"alpha": 1.5}, r"a number in \(0, 1\]"),
        ({"held_out": 1}, "held_out is 1; it must be a number of at least 0 and below 1"),
        ({"pretrained": True}, "auto, imagenet or none"),
        ({"jtt_epochs": 5, "epochs": 4}, "jtt_epochs is 5, more than the 4"),
    ],
)
def test_options_are_checked(params, message):
    with pytest.raises(ValueError, match=message):
        read_options("cnn", params)


def test_options_start_from_the_models_own():
    for name, model in MODELS.items():
        options = read_options(name, {"weight_decay": 1})
        assert options.weight_decay == 1.0
        for key, value in model.defaults.items():
            assert getattr(options, key) == value
    with pytest.raises(ValueError, match=r"'ccn' is unknown \(did you mean 'cnn'\?\)"):
        read_options("ccn")


def test_imagenet_weights_are_tried_once_and_their_lack_is_said(tmp_path, monkeypatch, caplog):
    tries = []

    def fetch(*args, **kwargs):
        tries.append(args)
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    models._imagenet.cache_clear()
    try:
        for _ in range(2):
            assert models.initialisation("resnet18", "auto") == "scratch"
        assert caplog.text.count("resnet18 starts from scratch") == 1
        assert "no route" in caplog.text
        with pytest.raises(ValueError, match="ImageNet weights of resnet18 are not available"):
            models.initialisation("resnet18", "imagenet")
        assert len(tries) == 1
        assert models.initialisation("resnet18", "none") == "scratch"
    finally:
        models._imagenet.cache_clear()


def test_imagenet_weights_in_the_cache_are_the_start(monkeypatch):
    import torchvision

    torch_state = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda *a, **k: torch_state
    )
    models._imagenet.cache_clear()
    try:
        assert models.initialisation("resnet18", "imagenet") == "imagenet"
        net = models.build_network(
            "resnet18",
            initialised="imagenet",
            seed=0,
            stream=0,
            centre=models.PIXEL_MEAN,
            spread=models.PIXEL_SPREAD,
            device=torch.device("cpu"),
        )
        assert torch.equal(net.body.conv1.weight, torch_state["conv1.weight"])
    finally:
        models._imagenet.cache_clear()
