"""Networks: the risks against hand-worked cases, runs against each other. No network is fetched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chisquare

from cid import networks
from cid.networks import MODELS, fit, group_risk, read_options
from cid.risks import (
    cvar_risk,
    generalised_cross_entropy,
    jtt_weights,
    minibatch_risk,
    relative_difficulty,
    tilted_risk,
    weighted_risk,
)
from study.experiment.runs import train_model, train_networks, train_sets
from study.faces.embed import aligned_faces

CPU = {"device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order whatever the machine; small batches gain nothing from more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def faces():
    """120 noise images of 64 px; those of class 1 are a little lighter at the bottom."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    images = rng.integers(60, 160, size=(120, 3, 64, 64), dtype=np.uint8)
    images[labels == 1, :, 40:56, 16:48] += 40
    return images, labels


@pytest.fixture(scope="module")
def features():
    """160 samples of 12 features on different scales, labels by a noisy linear rule."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(160, 12)) * np.geomspace(0.1, 10, 12) + 3
    labels = ((x[:, 6] - 3) / x[:, 6].std() + 0.5 * rng.normal(size=160) > 0).astype(int)
    return x.astype(np.float32), labels


@pytest.fixture
def sets(features):
    """Two seeds: 100 training images of 10 people, 30 seen and 30 unseen test images."""
    _, labels = features
    tables = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        parts = np.repeat(["train", "seen", "unseen"], [100, 30, 30])
        tables.append(pd.DataFrame({"seed": seed, "part": parts, "row": rng.permutation(160)}))
    table = pd.concat(tables, ignore_index=True)
    train = table["part"] == "train"
    weights = np.random.default_rng(9).exponential(size=len(table))
    people = np.arange(len(table)) % 10
    codes = 2 * people + labels[table["row"]]
    for name in ("erm", "cvar-dro", "kl-dro", "jtt", "lff", "group-dro", "last-layer"):
        table[name] = np.where(train, 1.0, np.nan)
    table["cid"] = np.where(train, weights, np.nan)
    for name in ("group-dro", "last-layer"):
        table[f"{name}:group"] = np.where(train, codes, np.nan)
    return table


EVERY = ["erm", "cid", "cvar-dro", "kl-dro", "jtt", "lff", "group-dro", "last-layer"]
QUICK = {"epochs": 3, "jtt_epochs": 1}


# --- risks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("risk", [cvar_risk(0.4), tilted_risk(2.0), generalised_cross_entropy(0.7)])
def test_a_minibatch_has_the_risk_of_the_heads_and_its_gradient(risk):
    losses = torch.tensor([1.0, 4.0, 2.0, 3.0], requires_grad=True)
    value, slope = risk(losses.detach()[None], torch.full((1, 4), 0.25))
    found = minibatch_risk(risk, losses)
    assert found.item() == pytest.approx(value.item())
    found.backward()
    torch.testing.assert_close(losses.grad, slope[0])


def test_group_step_by_hand():
    losses = torch.tensor([1.0, 3.0, 2.0, 0.0], requires_grad=True)
    groups = torch.tensor([0, 0, 1, 2])
    sizes = torch.tensor([2.0, 1.0, 1.0])
    shares = torch.tensor([0.5, 0.25, 0.25])
    risk, new = group_risk(losses, groups, sizes, shares, step=0.1)
    # The batch is the training set, so the groups' mean losses are 2, 2 and 0.
    raw = np.array([0.5, 0.25, 0.25]) * np.exp(0.1 * np.array([2.0, 2.0, 0.0]))
    wanted = raw / raw.sum()
    np.testing.assert_allclose(new.numpy(), wanted, rtol=1e-6)
    assert risk.item() == pytest.approx(wanted @ [2, 2, 0], rel=1e-6)
    risk.backward()  # the shares are constants of the descent step
    np.testing.assert_allclose(
        losses.grad, [wanted[0] / 2, wanted[0] / 2, wanted[1], wanted[2]], rtol=1e-6
    )


def test_group_means_are_right_on_average_over_the_batches_of_an_epoch():
    losses = torch.tensor([1.0, 3.0, 2.0, 0.5, 1.5, 7.0])
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    sizes = torch.tensor([2.0, 3.0, 1.0])
    shares = torch.tensor([0.2, 0.5, 0.3])
    batches = [[0, 2, 5], [1, 3, 4]]
    risks = [group_risk(losses[b], groups[b], sizes, shares, 0.0)[0] for b in batches]
    assert np.mean(risks) == pytest.approx(0.2 * 2 + 0.5 * 4 / 3 + 0.3 * 7, rel=1e-6)


def test_relative_difficulty_by_hand():
    weight = relative_difficulty(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0]))
    assert weight.tolist() == [0.75, 0, 0]


def test_jtt_weights_errors_and_keeps_the_mean():
    weights = jtt_weights([True, False, False, True], 4)
    assert weights.tolist() == [1.6, 0.4, 0.4, 1.6]


def test_weights_are_copies():
    losses = torch.tensor([0.5, 2.0, 1.0])
    weights = torch.tensor([2.0, 0.0, 1.0])
    assert weighted_risk(losses, weights) == losses[[0, 0, 2]].mean()


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
        np.bincount(networks._order(4, weights, seed).numpy(), minlength=4) for seed in range(2000)
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


def test_methods_of_a_seed_share_start_and_batches(features, monkeypatch):
    """Every kind builds the same first network and takes the same batches in the same order."""
    x, labels = features
    rows = np.arange(100)
    seen = {}
    build, take = networks._build, networks._take

    def record_build(model, initialised, seed, stream, *rest):
        net = build(model, initialised, seed, stream, *rest)
        if stream == 0:
            seen[kind]["start"].append(net.head.weight.detach().clone())
        return net

    def record_take(inputs, where, generator):
        seen[kind]["batches"].append(where.tolist())
        return take(inputs, where, generator)

    monkeypatch.setattr(networks, "_build", record_build)
    monkeypatch.setattr(networks, "_take", record_take)
    groups = 2 * (rows % 10) + labels[rows]
    for kind in networks.KINDS:
        seen[kind] = {"start": [], "batches": []}
        given = {"groups": groups} if kind in ("group-dro", "retrain") else {}
        # A sampler gives the second training of jtt draws of its own.
        options = read_options("mlp", QUICK | {"through": "loss"})
        fit("mlp", x, labels, rows, training=kind, options=options, seed=7, **given, **CPU)
    for kind, record in seen.items():
        assert all(torch.equal(w, seen["weighted"]["start"][0]) for w in record["start"]), kind
        assert record["batches"][-6:] == seen["weighted"]["batches"], kind  # 3 epochs of 2


def test_faces_are_flipped_and_shifted_whole():
    """One image of two bright points: their distance survives, their places vary, so does the side."""
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[0, :, 30, 20], image[0, :, 33, 30] = 100, 200
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(200, dtype=torch.int64)
    batch = networks._take(image, rows, generator)
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
    groups = 2 * (rows % 7) + labels[rows]
    members = []

    def record(features, labels, weights, l2, **more):
        members.append(weights.copy())
        return fit_heads(features, labels, weights, l2, **more)

    fit_heads = networks.fit_heads
    monkeypatch.setattr(networks, "fit_heads", record)
    options = read_options("mlp", {"epochs": 3, "draws": 4})
    erm = fit("mlp", x, labels, rows, options=options, **CPU)
    before = erm.logits(x, rows)
    how = {"training": "retrain", "groups": groups, "options": options, **CPU}
    given = fit("mlp", x, labels, rows, base=erm, **how).logits(x, rows)
    own = fit("mlp", x, labels, rows, **how).logits(x, rows)
    assert given.tobytes() == own.tobytes()  # the ERM network of the seed is the one it trains
    assert erm.logits(x, rows).tobytes() == before.tobytes() != own.tobytes()

    size = np.bincount(groups, minlength=14).reshape(7, 2)
    for member in members[0]:
        counts = np.bincount(groups[member > 0], minlength=14).reshape(7, 2)
        np.testing.assert_array_equal(counts, np.repeat(size.min(axis=1, keepdims=True), 2, 1))
    assert members[0].shape == (4, 150) and not np.array_equal(*members[0][:2])


def test_retraining_is_the_mean_of_its_heads(features):
    x, labels = features
    rows = np.arange(150)
    groups = 2 * (rows % 7) + labels[rows]
    options = read_options("mlp", {"epochs": 3, "draws": 3})
    erm = fit("mlp", x, labels, rows, options=options, **CPU)
    how = {"training": "retrain", "groups": groups, "options": options, "base": erm, **CPU}
    net = fit("mlp", x, labels, rows, **how)
    rng = np.random.default_rng(networks._seed(0, "subset", 0))
    hidden = erm.penultimate(x, rows)
    logits = []
    for _ in range(3):
        keep = networks.balanced_subset(groups, np.ones(150, bool), rng)
        heads = networks.fit_heads(hidden, labels[rows], keep[None], 0.1, device="cpu")
        logits.append(heads.logits(hidden)[0])
    np.testing.assert_allclose(net.logits(x, rows), np.mean(logits, axis=0), atol=2e-2)


# --- all runs of a study --------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["loss", "sampler"])
def test_train_networks_scores_every_test_image(features, sets, through, tmp_path):
    x, labels = features
    options = read_options("mlp", QUICK | {"through": through})
    predictions, info = train_networks(sets, x, labels, EVERY, "mlp", options, **CPU)
    assert list(predictions) == ["seed", "test", "row", *EVERY]
    test = sets[sets["part"] != "train"].reset_index(drop=True)
    assert predictions["row"].tolist() == test["row"].tolist()
    assert predictions["test"].tolist() == test["part"].tolist()
    assert np.isfinite(predictions[EVERY]).all(axis=None)
    assert len(info) == 16 and set(info["initialised"]) == {"scratch"}
    kinds = info[info["seed"] == 0].set_index("method")["training"]
    assert kinds["last-layer"] == "retrain" and kinds["cid"] == "weighted"
    # No two methods are the same run.
    assert predictions[EVERY].T.drop_duplicates().shape[0] == len(EVERY)

    part = sets[(sets["seed"] == 1) & (sets["part"] == "train")]
    alone = fit("mlp", x, labels, part["row"], weights=part["cid"], options=options, seed=1, **CPU)
    mine = predictions[predictions["seed"] == 1]
    assert alone.logits(x, mine["row"]).tobytes() == mine["cid"].to_numpy().tobytes()


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["cid", "group-dro", "lff", "jtt", "last-layer"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    features, sets, method, tmp_path, monkeypatch
):
    x, labels = features
    monkeypatch.setattr(networks, "CHECKPOINT_SECONDS", 0)
    options = read_options("mlp", {"epochs": 5, "jtt_epochs": 2})
    arguments = sets[sets["seed"] == 0], x, labels, [method], "mlp", options
    whole, _ = train_networks(*arguments, **CPU)

    steps, schedule = [], networks._schedule

    def interrupt(step, total):
        steps.append(step)
        if len(steps) == 9 + 4 * (method == "jtt"):  # 2 batches an epoch: in the fifth epoch
            raise Stop
        return schedule(step, total)

    monkeypatch.setattr(networks, "_schedule", interrupt)
    with pytest.raises(Stop):
        train_networks(*arguments, folder=tmp_path, **CPU)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]
    steps.clear()
    monkeypatch.setattr(networks, "_schedule", lambda *at: steps.append(at) or schedule(*at))
    resumed, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    assert len(steps) == 2 + 4 * (method == "jtt")  # the last epoch, and jtt's first network
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_a_resumed_cnn_keeps_its_normalisation_and_augmentation(faces, tmp_path, monkeypatch):
    images, labels = faces
    monkeypatch.setattr(networks, "CHECKPOINT_SECONDS", 0)
    options = read_options("cnn", {"epochs": 3})
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


def test_finished_runs_are_kept_until_something_they_depend_on_changes(
    features, sets, tmp_path, monkeypatch
):
    x, labels = features
    runs = []
    monkeypatch.setattr(
        networks,
        "fit",
        lambda *a, training, **k: runs.append(training) or fit(*a, training=training, **k),
    )
    options = read_options("mlp", {"epochs": 2})
    methods = ["erm", "cid", "cvar-dro"]

    def ran(options=options, sets=sets, x=x, labels=labels):
        runs.clear()
        result, info = train_networks(
            sets, x, labels, methods, "mlp", options, folder=tmp_path, **CPU
        )
        assert len(info) == 6
        return result, sorted(runs)

    first, done = ran()
    assert done == ["cvar-dro"] * 2 + ["weighted"] * 4
    again, done = ran()
    assert done == []
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert ran(dataclasses.replace(options, lff_q=0.5))[1] == []  # of no method here
    assert ran(dataclasses.replace(options, alpha=0.3))[1] == ["cvar-dro"] * 2
    changed = sets.copy()
    changed.loc[changed["seed"] == 1, "cid"] *= np.linspace(0.5, 1.5, 160)
    assert ran(sets=changed)[1] == ["weighted"]
    assert len(ran(x=x + 1)[1]) == 6
    flipped = labels.copy()
    flipped[sets["row"][0]] ^= 1  # a training image of seed 0, and of seed 1 or not
    assert len(ran(labels=flipped)[1]) in (3, 6)
    assert len(ran(dataclasses.replace(options, epochs=1, jtt_epochs=1))[1]) == 6


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_runs_of_a_folder(features, sets, world, tmp_path, monkeypatch):
    """One after the other; afterwards nothing is left to train, and every byte is a lone process's."""
    x, labels = features
    methods = [
        "last-layer",
        "erm",
        "cid",
    ]  # last-layer starts from erm, which another rank may have
    arguments = sets, x, labels, methods, "mlp", read_options("mlp", QUICK)
    alone, _ = train_networks(*arguments, folder=tmp_path / "alone", **CPU)
    shared = tmp_path / "shared"
    trained = []
    for rank in range(world):
        found, info = train_networks(*arguments, folder=shared, rank=rank, world=world, **CPU)
        trained.append(len(info))
        missing = found[methods].isna().groupby(found["seed"]).all().to_numpy().sum()
        assert missing == 6 - len(info)
        assert (found[methods].dtypes == np.float32).all()
    assert np.diff([0, *trained]).tolist() == [6 // world] * world
    names = [
        sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "alone", shared)
    ]
    assert names[0] == names[1]

    monkeypatch.setattr(networks, "fit", None)
    found, _ = train_networks(*arguments, folder=shared, **CPU)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)


@pytest.mark.parametrize(
    "rank, world, kept", [(0, 2, False), (2, 2, True), (0, 0, True), (2, 3, True)]
)
def test_processes_that_cannot_share_are_told(features, sets, rank, world, kept, tmp_path):
    x, labels = features
    folder = tmp_path if kept else None
    with pytest.raises(ValueError, match=f"process {rank} of {world} cannot share 2 runs"):
        train_networks(
            sets, x, labels, ["erm"], "mlp", folder=folder, rank=rank, world=world, **CPU
        )


def test_a_bar_counts_runs_on_stderr_only(features, sets, capsys):
    x, labels = features
    options = read_options("mlp", QUICK)
    train_networks(sets, x, labels, ["erm"], "mlp", options, progress="networks", **CPU)
    out, err = capsys.readouterr()
    assert out == "" and "networks" in err and "2.0/2 runs" in err


# --- settings and errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epoch": 3}, r"'epoch' of the network 'cnn' is unknown \(did you mean 'epochs'\?\)"),
        ({"epochs": 0}, "epochs of the network 'cnn' is 0; give a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs .* is 2.5"),
        ({"epochs": True}, "epochs .* is True"),
        ({"learning_rate": "fast"}, "learning_rate .* is 'fast'"),
        ({"through": "both"}, "give loss or sampler"),
        ({"alpha": 1.5}, r"a number in \(0, 1\]"),
        ({"pretrained": True}, "auto, imagenet or none"),
        ({"jtt_epochs": 5, "epochs": 4}, "jtt_epochs .* is 5, more than its 4"),
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
        ({"training": "retrain", "groups": np.full(100, 2)}, "does not end in its label"),
        ({"options": read_options("mlp", {"pretrained": "imagenet"})}, "no ImageNet weights"),
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
    groups = 2 * (2 * (rows % 5) + labels[rows]) + labels[rows]
    with pytest.raises(ValueError, match="no identity of a training set has images of both"):
        options = read_options("mlp", QUICK)
        fit("mlp", x, labels, rows, training="retrain", groups=groups, options=options, **CPU)


def test_columns_that_are_missing_stop_before_the_first_run(features, sets):
    x, labels = features
    with pytest.raises(ValueError, match="lack the column 'group-dro:group'"):
        train_networks(sets.drop(columns="group-dro:group"), x, labels, ["group-dro"], "mlp")


def test_a_damaged_file_of_a_run_is_replaced(features, sets, tmp_path):
    x, labels = features
    options = read_options("mlp", QUICK)
    arguments = sets, x, labels, ["erm"], "mlp", options
    first, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    whole = sorted(tmp_path.iterdir())[0]
    before = whole.read_bytes()
    whole.write_bytes(before[:100])  # as after a power cut
    again, _ = train_networks(*arguments, folder=tmp_path, **CPU)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert len(whole.read_bytes()) == len(before)


def test_imagenet_weights_are_tried_once_and_their_lack_is_said(tmp_path, monkeypatch, caplog):
    tries = []

    def fetch(*args, **kwargs):
        tries.append(args)
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    networks._imagenet.cache_clear()
    try:
        for _ in range(2):
            assert networks.initialisation("resnet18", "auto") == "scratch"
        assert caplog.text.count("resnet18 starts from scratch") == 1
        assert "no route" in caplog.text
        with pytest.raises(ValueError, match="ImageNet weights of resnet18 are not to be had"):
            networks.initialisation("resnet18", "imagenet")
        assert len(tries) == 1
        assert networks.initialisation("resnet18", "none") == "scratch"
    finally:
        networks._imagenet.cache_clear()


def test_imagenet_weights_in_the_cache_are_the_start(monkeypatch):
    import torchvision

    torch_state = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda *a, **k: torch_state
    )
    networks._imagenet.cache_clear()
    try:
        assert networks.initialisation("resnet18", "imagenet") == "imagenet"
        statistics = networks.PIXEL_MEAN, networks.PIXEL_SPREAD
        net = networks._build("resnet18", "imagenet", 0, 0, statistics, torch.device("cpu"))
        assert torch.equal(net.body.conv1.weight, torch_state["conv1.weight"])
    finally:
        networks._imagenet.cache_clear()


def test_aligned_faces_are_align_in_chunks():
    import io

    import pyarrow as pa
    from PIL import Image

    from cid.align import DLIB_TEMPLATE, align
    from study.faces.dataset import FaceSet

    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 255, size=(80, 90, 3), dtype=np.uint8) for _ in range(5)]
    encoded = []
    for photo in photos:
        Image.fromarray(photo).save(file := io.BytesIO(), "PNG")
        encoded.append(file.getvalue())
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(5)]})
    data = FaceSet({}, frame, pa.chunked_array([encoded], pa.binary()))
    landmarks = DLIB_TEMPLATE * 60 + rng.uniform(0, 10, size=(5, 1, 2))
    cut = aligned_faces(data, landmarks, 64, chunk=2, progress=False)
    assert torch.equal(cut, align(photos, landmarks, 64, device="cpu"))
    with pytest.raises(ValueError, match="5 images need"):
        aligned_faces(data, landmarks[:4], 64)


# --- the model of params.yaml ---------------------------------------------------------------------


def test_the_named_model_is_trained(tmp_path, features, sets):
    settings = {"l2": 0.1, "through": "loss", "robust": {}, "network": {}}
    features, labels = features
    methods = ["erm", "cid"]
    arguments = (sets, None, features, None, labels, methods)
    found, about = train_model(*arguments, settings | {"model": "linear"})
    expected, _ = train_sets(sets, features, labels, methods, 0.1)
    pd.testing.assert_frame_equal(found, expected)
    assert about.startswith("4 linear heads")
    network = {"epochs": 2, "jtt_epochs": 1}
    found, about = train_model(
        *arguments, settings | {"model": "mlp", "network": network}, folder=tmp_path
    )
    expected, _ = train_networks(
        sets, features, labels, methods, "mlp", read_options("mlp", network)
    )
    pd.testing.assert_frame_equal(found, expected)
    assert about == "4 networks (One hidden layer), trained from scratch."
    assert len(list(tmp_path.glob("*.npz"))) == 4
    with pytest.raises(ValueError, match="'mpl' is unknown.*'mlp'"):
        train_model(*arguments, settings | {"model": "mpl"})
