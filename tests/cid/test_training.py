"""Networks: runs against each other. No network is fetched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from cid import training
from cid.dlib import DLIB_MAPS, DlibLastBlock
from cid.models import read_options
from cid.options import KINDS
from cid.recognition import load_network
from cid.training import fit

CPU = {"device": "cpu"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def faces():
    """120 noise images of 64 px; those of class 1 are a little lighter at the bottom."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    images = rng.integers(60, 160, size=(120, 3, 64, 64), dtype=np.uint8)
    images[labels == 1, :, 40:56, 16:48] += 40
    return images, labels


QUICK = {"epochs": 3, "jtt_epochs": 1}


# --- runs -----------------------------------------------------------------------------------------


def test_integer_weights_equal_copies(features):
    """On the full batch; one hidden layer, as batch normalisation would count the copies."""
    x, labels = features
    rows, counts = np.arange(100), np.random.default_rng(3).integers(1, 4, size=100)
    options = read_options("mlp", {"epochs": 30, "batch": 1000, "through": "loss"})
    weighted = fit("mlp", x, labels, rows, weights=counts, options=options, **CPU)
    copied = fit("mlp", x, labels, np.repeat(rows, counts), options=options, **CPU)
    plain = fit("mlp", x, labels, rows, options=options, **CPU)
    a, b, c = (fitted.logits(x, np.arange(160)) for fitted in (weighted, copied, plain))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.abs(a - c).max() > 0.01  # the weights mattered


def test_the_sampler_draws_in_proportion():
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    counts = sum(
        np.bincount(training._order(4, weights, seed).numpy(), minlength=4) for seed in range(2000)
    )
    assert counts[0] == 0
    assert chisquare(counts[1:], 8000 * weights[1:] / 8).pvalue > 0.001


def test_the_sampler_trains_on_the_weights(features):
    """Weights that favour one class move the logits its way, through the loss or the sampler."""
    x, labels = features
    rows, everyone = np.arange(100), np.arange(160)
    weights = np.where(labels[rows] == 1, 20.0, 1.0)
    for through in ("loss", "sampler"):
        options = read_options("mlp", {"epochs": 20, "through": through})
        plain = fit("mlp", x, labels, rows, options=options, **CPU).logits(x, everyone)
        moved = fit("mlp", x, labels, rows, weights=weights, options=options, **CPU)
        assert moved.logits(x, everyone).mean() > plain.mean() + 0.5


def test_the_cnn_learns_and_repeats_to_the_byte(faces):
    images, labels = faces
    options = read_options("cnn", {"epochs": 6, "batch": 16})
    runs = [
        fit("cnn", images, labels, np.arange(90), options=options, seed=seed, **CPU)
        for seed in (4, 4, 5)
    ]
    a, b, other = (run.logits(images, np.arange(90, 120)) for run in runs)
    assert ((a > 0) == labels[90:]).mean() >= 0.9
    assert a.tobytes() == b.tobytes() and a.dtype == np.float32
    assert not np.array_equal(a, other)
    assert runs[0].initialised == "scratch"


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_a_resnet_takes_a_step(model):
    images = np.random.default_rng(0).integers(0, 255, size=(4, 3, 112, 112), dtype=np.uint8)
    options = read_options(model, QUICK | {"epochs": 1, "pretrained": "none"})
    fitted = fit(model, images, [0, 1, 0, 1], [0, 1, 2, 3], options=options, **CPU)
    assert np.isfinite(fitted.logits(images, [0, 3])).all()


def test_fine_tuning_starts_from_the_recognition_network_and_leaves_it_alone():
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 2
    maps = rng.exponential(size=(48, *DLIB_MAPS)).astype(np.float16)
    maps[labels == 1, :32] += 2
    rows, everyone = np.arange(40), np.arange(48)
    before = [
        value.clone()
        for value in load_network("dlib-resnet", torch.device("cpu")).state_dict().values()
    ]
    start = DlibLastBlock(load_network("dlib-resnet", torch.device("cpu")).blocks[-1]).first.weight
    options = read_options("finetune", {"epochs": 4, "batch": 8, "jtt_epochs": 1})
    a, b, other = (
        fit("finetune", maps, labels, rows, options=options, seed=seed, **CPU) for seed in (1, 1, 2)
    )
    assert a.initialised == "recognition"
    assert a.logits(maps, everyone).tobytes() == b.logits(maps, everyone).tobytes()
    assert not np.array_equal(a.logits(maps, everyone), other.logits(maps, everyone))
    assert ((a.logits(maps, rows) > 0) == labels[rows]).mean() > 0.9
    moved = (a.module.body.first.weight - start).abs()
    assert 0 < moved.max() < 0.05  # from these weights, and not far
    for value, old in zip(
        load_network("dlib-resnet", torch.device("cpu")).state_dict().values(), before, strict=True
    ):
        assert torch.equal(value, old)
    single = fit("finetune", maps.astype(np.float32), labels, rows, options=options, seed=1, **CPU)
    assert single.logits(maps, rows).tobytes() == a.logits(maps, rows).tobytes()


def test_methods_of_a_seed_share_start_and_batches(features, monkeypatch):
    """Every kind builds the same first network and takes the same batches in the same order."""
    x, labels = features
    rows = np.arange(100)
    seen = {}
    build, take = training.build_network, training._take

    def record_build(model, *, stream, **more):
        net = build(model, stream=stream, **more)
        if stream == 0:
            seen[kind]["start"].append(net.head.weight.detach().clone())
        return net

    def record_take(inputs, where, generator):
        seen[kind]["batches"].append(where.tolist())
        return take(inputs, where, generator)

    monkeypatch.setattr(training, "build_network", record_build)
    monkeypatch.setattr(training, "_take", record_take)
    groups = rows % 10
    for kind in KINDS:
        seen[kind] = {"start": [], "batches": []}
        given = {"groups": groups} if kind in ("group-dro", "retrain") else {}
        given |= {"offset": groups - 4.5} if kind == "offset" else {}
        # A sampler gives the second training of jtt draws of its own.
        options = read_options("mlp", QUICK | {"through": "loss"})
        fit("mlp", x, labels, rows, training=kind, options=options, seed=7, **given, **CPU)
    for kind, record in seen.items():
        assert all(torch.equal(w, seen["weighted"]["start"][0]) for w in record["start"]), kind
        assert record["batches"][-6:] == seen["weighted"]["batches"], kind  # 3 epochs of 2


def test_an_offset_acts_in_training_alone(features):
    """What it explains is learnt less, what it denies more; one of 0 is plain training to the byte."""
    x, labels = features
    rows = np.arange(100)
    options = read_options("mlp", QUICK | {"learning_rate": 0.02})
    sides = 2.0 * labels[rows] - 1

    def margins(**given) -> np.ndarray:
        fitted = fit("mlp", x, labels, rows, options=options, seed=3, **given, **CPU)
        return sides * fitted.logits(x, rows)

    plain = margins()
    np.testing.assert_array_equal(margins(training="offset", offset=0 * sides), plain)
    denied = np.where(rows < 50, -3, 3)
    gain = margins(training="offset", offset=denied * sides) - plain
    assert gain[:50].mean() > 0.3 + gain[50:].mean()


def test_faces_are_flipped_and_shifted_whole():
    """One image of two bright points: their distance survives, their places vary, so does the side."""
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[0, :, 30, 20], image[0, :, 33, 30] = 100, 200
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(200, dtype=torch.int64)
    batch = training._take(image, rows, generator)
    assert batch.shape == (200, 3, 64, 64)
    offsets, places = set(), set()
    for picture in batch[:, 0]:
        (y1, x1), (y2, x2) = ((picture == v).nonzero()[0].tolist() for v in (100, 200))
        offsets.add((y2 - y1, x2 - x1))
        places.add((y1, x1 if x2 > x1 else 63 - x1))
    assert offsets == {(3, 10), (3, -10)}
    assert {y for y, _ in places} == set(range(26, 35))
    assert {x for _, x in places} == set(range(16, 25))


def test_retraining_balances_classes_within_identities(features, monkeypatch):
    x, labels = features
    rows = np.arange(150)
    people = rows % 7
    members = []

    def record(features, labels, weights, l2, **more):
        members.append(weights.copy())
        return fit_heads(features, labels, weights, l2, **more)

    fit_heads = training.fit_heads
    monkeypatch.setattr(training, "fit_heads", record)
    options = read_options("mlp", {"epochs": 3, "draws": 4})
    erm = fit("mlp", x, labels, rows, options=options, **CPU)
    before = erm.logits(x, rows)
    how = {"training": "retrain", "groups": people, "options": options, **CPU}
    given = fit("mlp", x, labels, rows, base=erm, **how).logits(x, rows)
    own = fit("mlp", x, labels, rows, **how).logits(x, rows)
    assert given.tobytes() == own.tobytes()  # the ERM network of the seed is the one it trains
    assert erm.logits(x, rows).tobytes() == before.tobytes() != own.tobytes()

    cells = 2 * people + labels[rows]
    size = np.bincount(cells, minlength=14).reshape(7, 2)
    for member in members[0]:
        counts = np.bincount(cells[member > 0], minlength=14).reshape(7, 2)
        np.testing.assert_array_equal(counts, np.repeat(size.min(axis=1, keepdims=True), 2, 1))
    assert members[0].shape == (4, 150) and not np.array_equal(*members[0][:2])


def test_retraining_is_the_mean_of_its_heads(features):
    x, labels = features
    rows = np.arange(150)
    people = rows % 7
    options = read_options("mlp", {"epochs": 3, "draws": 3})
    erm = fit("mlp", x, labels, rows, options=options, **CPU)
    how = {"training": "retrain", "groups": people, "options": options, "base": erm, **CPU}
    net = fit("mlp", x, labels, rows, **how)
    rng = np.random.default_rng(training.seed_for(0, "subset", 0))
    hidden = erm.penultimate(x, rows)
    logits = []
    for _ in range(3):
        keep = training.balanced_subset(people, labels[rows], np.ones(150, bool), rng)
        heads = training.fit_heads(hidden, labels[rows], keep[None], 0.1, device="cpu")
        logits.append(heads.logits(hidden)[0])
    np.testing.assert_allclose(net.logits(x, rows), np.mean(logits, axis=0), atol=2e-2)


@pytest.mark.parametrize(("through", "share"), [("sampler", 1 / 3), ("loss", None)])
def test_group_dro_draws_a_group_then_an_image_of_it(features, through, share, monkeypatch):
    """Or all images alike, whose groups' mean losses are then made up by their sizes."""
    x, labels = features
    groups = np.repeat([0, 1, 3], [80, 15, 5])  # any codes
    draws, sizes = [], []
    order, risk = training._order, training.risks.online_group_risk
    monkeypatch.setattr(training, "_order", lambda *a: draws.append(a[1]) or order(*a))

    def online(losses, codes, n_g, *rest):
        sizes.append(n_g / n_g.sum())
        return risk(losses, codes, n_g, *rest)

    monkeypatch.setattr(training.risks, "online_group_risk", online)
    options = read_options("mlp", {"epochs": 2, "through": through})
    fit(
        "mlp",
        x,
        labels,
        np.arange(100),
        training="group-dro",
        groups=groups,
        options=options,
        **CPU,
    )
    if share is None:
        assert draws[0] is None
        np.testing.assert_allclose(sizes[0], [0.8, 0.15, 0.05], rtol=1e-6)
        return
    drawn = np.bincount(groups, draws[0] / draws[0].sum())[[0, 1, 3]]
    np.testing.assert_allclose(drawn, share)
    np.testing.assert_allclose(sizes[0], drawn, rtol=1e-6)


@pytest.mark.parametrize("kind", ["weighted", "cvar-dro", "jtt", "lff", "group-dro"])
def test_the_epoch_of_the_smallest_loss_on_images_kept_from_training_stays(
    features, kind, monkeypatch
):
    """The class-balanced loss after every epoch by hand, from the network as it is then."""
    x, labels = features
    rows, nets, losses, logits = np.arange(100), [], [], []
    given = {"weights": np.random.default_rng(0).exponential(size=100)} if kind[0] == "w" else {}
    given |= {"groups": rows % 7} if kind == "group-dro" else {}
    values = {"epochs": 20, "jtt_epochs": 2, "learning_rate": 0.1, "weight_decay": 0}
    options = read_options("mlp", values | {"held_out": 0.3})
    build = training.build_network
    monkeypatch.setattr(
        training, "build_network", lambda *a, **more: nets.append(build(*a, **more)) or nets[-1]
    )
    used = fit("mlp", x, labels, rows, options=options, **CPU).rows
    held = np.setdiff1d(rows, used)
    assert len(held) == 30

    def by_hand(done, total, mean):
        if kind == "jtt" and done <= 2:  # its first network, whose last epoch counts
            return
        own = nets[0] if kind == "lff" else nets[-1]
        logits.append(own(torch.from_numpy(x)).detach().numpy())
        each = np.logaddexp(0, np.where(labels == 1, -1, 1) * logits[-1])[held]
        losses.append(np.mean([each[labels[held] == label].mean() for label in (0, 1)]))

    nets.clear()
    how = {"training": kind, "options": options, "on_epoch": by_hand, **given, **CPU}
    fitted = fit("mlp", x, labels, rows, **how)
    assert fitted.rows.tolist() == used.tolist()  # the same for every method of a seed
    best = int(np.argmin(losses))
    assert fitted.epoch == best + 1 < len(losses) == 20
    np.testing.assert_array_equal(fitted.logits(x, np.arange(160)), logits[best])
    other = fit("mlp", x, labels, rows, options=options, seed=1, **CPU)
    assert other.rows.tolist() != used.tolist()


def test_the_last_layer_is_not_retrained_on_images_kept_from_training(features):
    x, labels = features
    rows = np.arange(100)
    options = read_options("mlp", QUICK | {"held_out": 0.3})
    used = fit("mlp", x, labels, rows, options=options, **CPU).rows
    flipped = labels.copy()
    flipped[np.setdiff1d(rows, used)] ^= 1
    how = {"training": "retrain", "groups": rows % 7, "options": options, **CPU}
    base = fit("mlp", x, labels, rows, options=options, **CPU)
    a, b = (fit("mlp", x, given, rows, base=base, **how) for given in (labels, flipped))
    assert a.logits(x, rows).tobytes() == b.logits(x, rows).tobytes()
    assert a.epoch == base.epoch and a.rows.tolist() == used.tolist()


class Stop(Exception):
    pass


@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_a_resumed_cnn_keeps_its_normalisation_augmentation_and_best_epoch(
    faces, held_out, tmp_path, monkeypatch
):
    images, labels = faces
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    options = read_options("cnn", {"epochs": 3, "held_out": held_out})
    arguments = {"options": options, "training": "lff", **CPU}
    rows, test = np.arange(90), np.arange(90, 120)
    whole = fit("cnn", images, labels, rows, **arguments).logits(images, test)

    def stop(done, total, risk):
        if done == 3:
            raise Stop

    file = tmp_path / "run.pt"
    with pytest.raises(Stop):
        fit("cnn", images, labels, rows, checkpoint=file, on_epoch=stop, **arguments)
    epochs = []
    arguments["on_epoch"] = lambda done, total, risk: epochs.append(done)
    resumed = fit("cnn", images, labels, rows, checkpoint=file, **arguments)
    assert epochs == [3]
    assert resumed.logits(images, test).tobytes() == whole.tobytes()


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": "dro"}, "kind 'dro' is unknown"),
        ({"model": "cnn"}, r"inputs are \(160, 12\) float32; the network 'cnn' needs"),
        ({"inputs": np.zeros((160, 12))}, r"float64; the network 'mlp' needs \(n, d\) float32"),
        ({"labels": np.zeros(3, int)}, "160 inputs need one each"),
        ({"labels": np.zeros(160, int)}, r"labels of the training images are \[0\]"),
        ({"rows": [160]}, "numbers from 0 to 159"),
        ({"weights": np.ones(3)}, r"weights have shape \(3,\); 100 training images"),
        ({"weights": -np.ones(100)}, "none below 0"),
        ({"training": "lff", "weights": np.ones(100)}, "the kind lff takes no weights"),
        ({"training": "group-dro"}, "group-dro needs groups"),
        ({"training": "offset"}, "offset needs an offset"),
        ({"training": "offset", "offset": np.full(100, np.nan)}, "offset must be a finite number"),
        ({"offset": np.ones(100)}, "the kind weighted takes no offset"),
        (
            {"options": read_options("mlp", {"held_out": 0.004})},
            "keeps 0 of 100 images from training",
        ),
        (
            {
                "weights": np.eye(100)[2],  # one of those kept from training
                "options": read_options("mlp", {"held_out": 0.5}),
            },
            "held_out is 0.5, which keeps 50 of 100 images .* the rest a weight above 0",
        ),
        ({"training": "retrain", "groups": np.zeros(3)}, r"groups have shape \(3,\)"),
        ({"options": read_options("mlp", {"pretrained": "imagenet"})}, "no ImageNet weights"),
        (
            {"model": "finetune"},
            r"the network 'finetune' needs \(n, 256, 4, 4\) float16 or float32",
        ),
        (
            {
                "model": "finetune",
                "inputs": np.zeros((160, *DLIB_MAPS), np.float16),
                "options": read_options("finetune", {"pretrained": "none"}),
            },
            "pretrained is none, but finetune starts from its recognition network; set it to auto",
        ),
    ],
)
def test_bad_input_is_named(features, change, message):
    x, labels = features
    arguments = {"model": "mlp", "inputs": x, "labels": labels, "rows": np.arange(100)} | change
    with pytest.raises(ValueError, match=message):
        fit(**arguments, **CPU)


def test_one_class_an_identity_leaves_nothing_to_retrain_on(features):
    x, labels = features
    rows = np.arange(100)
    people = 2 * (rows % 5) + labels[rows]
    with pytest.raises(ValueError, match="no identity of a training set has images of both"):
        options = read_options("mlp", QUICK)
        fit("mlp", x, labels, rows, training="retrain", groups=people, options=options, **CPU)
