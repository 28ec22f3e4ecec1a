"""Networks trained end to end on aligned faces, under every method of the registry.

The counterpart of :mod:`cid.heads`, which fits linear heads on cached features. A run is one network:
one method on one biased training set. All randomness of a run (initial weights, order of the images,
augmentation) is a function of its seed and of the epoch alone. So every method of a seed starts from
the same network and sees the same batches, which makes their comparison paired, and an interrupted
run needs no record of any generator to go on as if nothing had happened.

How a method trains is its *kind*, a key of :data:`KINDS`. Risks that look at the worst of a minibatch
are those of :mod:`cid.heads`; :func:`group_risk` takes its online steps here.

On a CPU the same seed gives the same bytes for the same number of threads. On a GPU sums may be taken
in another order, so two runs agree to rounding only.
"""

from __future__ import annotations

import copy
import logging
import math
import pickle
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import softplus

from cid.device import pick_device
from cid.heads import fit_heads
from cid.names import suggest
from cid.risks import (
    cvar_risk,
    generalised_cross_entropy,
    jtt_weights,
    minibatch_risk,
    relative_difficulty,
    tilted_risk,
    weighted_risk,
)
from cid.trainers import balanced_subset
from study.store import write

WARM_UP = 0.1  # share of the steps over which the learning rate rises before its cosine decay


SHIFT = 1 / 16  # of a face's side: the largest random shift of a training image either way


FETCH_SECONDS = 10  # without an answer after which a download of weights is given up


CHECKPOINT_SECONDS = 60  # between two checkpoints of a run; a shorter run is simply run again


SCORE_BATCH = 512  # images scored at once, which bounds memory


# What torchvision's weights were trained with; a fixed scale serves the small network as well.
PIXEL_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)


PIXEL_SPREAD = 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


# Every training kind, and which options matter to it alone.
KINDS: dict[str, tuple[str, ...]] = {
    "weighted": (),
    "cvar-dro": ("alpha",),
    "kl-dro": ("tilt",),
    "group-dro": ("group_step",),
    "jtt": ("jtt_epochs", "jtt_upweight"),
    "lff": ("lff_q",),
    "retrain": ("draws", "retrain_l2"),
}


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How networks are trained; :func:`read_options` makes one from a plain dict.

    Names shared with :class:`cid.trainers.Options` mean the same.

    Attributes
    ----------
    epochs, batch : int
        Passes over the training set; images a step, at most.
    learning_rate, weight_decay : float
        AdamW's; the rate rises over the first tenth of the steps and falls along a cosine to 0.
    augment : bool
        Flip training images and shift them by up to 1/16 of their side (not features).
    through : {"loss", "sampler"}
        How weights act: multiply the loss, or draw images in proportion to them, with replacement.
        With a minibatch's few rare images, each of a large weight, the loss is too noisy to train
        the networks here from scratch; a sampler shows the rare images at every step. It draws the
        batches of every method, ERM's with equal chances.
    pretrained : {"auto", "imagenet", "none"}
        ImageNet weights for a network that has them: when to be had, always, or never.
    alpha : float
        cvar-dro: share of a minibatch, the worst, that counts, in (0, 1].
    tilt : float
        kl-dro: t > 0; towards 0 it is ERM, towards infinity the worst sample.
    group_step : float
        group-dro: step size of the weights of the groups, > 0.
    jtt_epochs : int
        jtt: epochs after which the first network is asked for its errors.
    jtt_upweight : float
        jtt: how many times an error counts in the second training, >= 1.
    lff_q : float
        lff: exponent of the generalised cross-entropy, in (0, 1].
    draws : int
        retrain: balanced subsets over which the last layer is averaged.
    retrain_l2 : float
        retrain: L2 penalty of the new last layer on standardised features, > 0.
    """

    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    augment: bool = True
    through: str = "sampler"
    pretrained: str = "auto"
    alpha: float = 0.5
    tilt: float = 1.0
    group_step: float = 0.01
    jtt_epochs: int = 2
    jtt_upweight: float = 4.0
    lff_q: float = 0.7
    draws: int = 10
    retrain_l2: float = 0.1


_COUNT = (int, lambda v: v >= 1, "a whole number of at least 1")


_POSITIVE = (float, lambda v: 0 < v < math.inf, "a number greater than 0")


_SHARE = (float, lambda v: 0 < v <= 1, "a number in (0, 1]")


_RULES: dict[str, tuple[type, Callable, str]] = {
    "epochs": _COUNT,
    "batch": (int, lambda v: v >= 2, "a whole number of at least 2"),
    "learning_rate": _POSITIVE,
    "weight_decay": (float, lambda v: 0 <= v < math.inf, "a number of at least 0"),
    "augment": (bool, lambda v: True, "true or false"),
    "through": (str, ("loss", "sampler").__contains__, "loss or sampler"),
    "pretrained": (str, ("auto", "imagenet", "none").__contains__, "auto, imagenet or none"),
    "alpha": _SHARE,
    "tilt": _POSITIVE,
    "group_step": _POSITIVE,
    "jtt_epochs": _COUNT,
    "jtt_upweight": (float, lambda v: 1 <= v < math.inf, "a number of at least 1"),
    "lff_q": _SHARE,
    "draws": _COUNT,
    "retrain_l2": _POSITIVE,
}


def read_options(model: str, params: dict | None = None) -> Options:
    """Options of a model: its own defaults, overridden by ``params``.

    Raises
    ------
    ValueError
        On an unknown model or key, or a value of the wrong type or out of range.
    """
    values = dict(get_model(model).defaults)
    for key, value in (params or {}).items():
        if key not in _RULES:
            raise ValueError(
                f"option {key!r} of the network {model!r} is unknown{suggest(key, _RULES)}; "
                f"known: {', '.join(_RULES)}"
            )
        kind, holds, wanted = _RULES[key]
        # YAML reads 1 where 1.0 is meant, and True is an int to Python.
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind or not holds(value):
            raise ValueError(f"option {key} of the network {model!r} is {value!r}; give {wanted}")
        values[key] = value
    options = Options(**values)
    if options.jtt_epochs > options.epochs:
        raise ValueError(
            f"option jtt_epochs of the network {model!r} is {options.jtt_epochs}, more than its "
            f"{options.epochs} epochs; stop the first training of jtt earlier"
        )
    return options


@dataclass(frozen=True)
class Model:
    """A network.

    Attributes
    ----------
    title : str
        Name in figures and tables.
    side : int or None
        Side in pixels of the faces it takes; None where it takes features.
    build : callable
        ``(dimension of the features or None) -> (body, width of the body's output)``.
    imagenet : str or None
        Name of torchvision's network whose ImageNet weights the body can start from.
    defaults : dict
        Options that differ from those of :class:`Options`.
    """

    title: str
    side: int | None
    build: Callable[[int | None], tuple[nn.Module, int]]
    imagenet: str | None = None
    defaults: dict = field(default_factory=dict)


class Net(nn.Module):
    """Standardise the input, apply the body, then a linear layer: one logit, that of class 1."""

    def __init__(self, body: nn.Module, width: int, centre: Tensor, spread: Tensor):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 1)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)

    def penultimate(self, x: Tensor) -> Tensor:
        """What the last layer sees, shape (n, width)."""
        x = (x.float() - self.centre) / self.spread
        return self.body(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.penultimate(x))[:, 0]


def _mlp(dimension: int | None) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Linear(dimension, 256), nn.ReLU()), 256


def _cnn(dimension: int | None) -> tuple[nn.Module, int]:
    """64 px to 4 x 4 in four halvings; the map is kept, as aligned faces have their mouths in place."""

    def block(before: int, after: int, stride: int, side: int = 3) -> list[nn.Module]:
        conv = nn.Conv2d(before, after, side, stride, padding=side // 2, bias=False)
        return [conv, nn.BatchNorm2d(after), nn.ReLU()]

    layers = [
        *[*block(3, 16, 2, side=5), *block(16, 32, 2), *block(32, 32, 1)],
        *[*block(32, 64, 2), *block(64, 64, 1), *block(64, 128, 2)],
    ]
    return nn.Sequential(*layers, nn.Flatten()), 128 * 4 * 4


def _resnet(name: str, dimension: int | None) -> tuple[nn.Module, int]:
    body = torchvision.models.get_model(name, weights=None)
    width, body.fc = body.fc.in_features, nn.Identity()
    return body, width


_RESNET = {"learning_rate": 3e-4, "epochs": 15}


MODELS: dict[str, Model] = {
    "mlp": Model("One hidden layer", None, _mlp, defaults={"epochs": 5}),
    "cnn": Model("Small CNN", 64, _cnn, defaults={"learning_rate": 3e-3, "batch": 32}),
    "resnet18": Model("ResNet-18", 112, partial(_resnet, "resnet18"), "resnet18", _RESNET),
    "resnet50": Model("ResNet-50", 112, partial(_resnet, "resnet50"), "resnet50", _RESNET),
}


def get_model(name: str) -> Model:
    """Look a model up by name, or say which there are."""
    if name not in MODELS:
        raise ValueError(
            f"model {name!r} is unknown{suggest(name, MODELS)}; known: {', '.join(MODELS)}"
        )
    return MODELS[name]


@lru_cache
def _imagenet(name: str) -> tuple[dict | None, str]:
    """ImageNet weights from torch's hub cache or the network, or None and why; tried once a process."""
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(FETCH_SECONDS)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        reason = f"{place} could not be read or fetched ({error})"
        log.warning("%s starts from scratch unless ImageNet is demanded: %s", name, reason)
        return None, reason
    finally:
        socket.setdefaulttimeout(before)
    return {key: value for key, value in state.items() if not key.startswith("fc.")}, ""


def initialisation(model: str, pretrained: str) -> str:
    """Where a model's first weights come from under a setting: "imagenet" or "scratch".

    Raises
    ------
    ValueError
        If ``pretrained`` is "imagenet" and there are no such weights to be had.
    """
    name = get_model(model).imagenet
    if pretrained == "none" or (pretrained == "auto" and name is None):
        return "scratch"
    if name is None:
        raise ValueError(f"model {model!r} has no ImageNet weights; set pretrained to auto or none")
    state, reason = _imagenet(name)
    if state is not None:
        return "imagenet"
    if pretrained == "imagenet":
        raise ValueError(
            f"the ImageNet weights of {name} are not to be had: {reason}; put the file there or "
            "set pretrained to auto or none"
        )
    return "scratch"


def _build(model, initialised, seed, stream, statistics, device) -> Net:
    """A new network on the device, its weights a function of seed and stream."""
    spec, (centre, spread) = get_model(model), statistics
    with torch.random.fork_rng(devices=[]):
        # Layers draw their weights from the global generator; only the CPU's is seeded, and put back.
        torch.random.default_generator.manual_seed(_seed(seed, "weights", stream))
        body, width = spec.build(centre.shape[-1] if spec.side is None else None)
        net = Net(body, width, centre, spread)
    if initialised == "imagenet":
        body.load_state_dict(_imagenet(spec.imagenet)[0])
    return net.to(device, memory_format=torch.channels_last) if spec.side else net.to(device)


def _seed(seed: int, purpose: str, number: int) -> int:
    """A 63-bit seed of its own for every purpose and epoch."""
    words = ("weights", "order", "augment", "subset").index(purpose), number
    return int(np.random.SeedSequence([int(seed), *words]).generate_state(1, np.uint64)[0] >> 1)


def group_risk(
    losses: Tensor, groups: Tensor, sizes: Tensor, shares: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """One step of group DRO: exponentiated-gradient ascent on the groups, then their weighted loss.

    Sagawa, Koh, Hashimoto & Liang 2020, "Distributionally Robust Neural Networks", arXiv
    1911.08731, algorithm 1. There a step draws its group uniformly. Here minibatches come in the
    order shared by all methods, and a group's mean loss is estimated by importance weighting,
    ``n / (b n_g)`` times the sum of its losses in the batch: the same in expectation, and on the full
    batch exactly the mean loss.

    Parameters
    ----------
    losses : tensor, shape (b,)
    groups : int64 tensor, shape (b,)
        Codes 0 .. G - 1.
    sizes : float tensor, shape (G,)
        Training images n_g of every group; their sum is n.
    shares : float tensor, shape (G,)
        Weights q of the groups before the step; they sum to 1.
    step : float

    Returns
    -------
    risk : tensor, shape ()
        ``sum_g q_g L_g`` with the new weights, which carry no gradient.
    shares : tensor, shape (G,)
        The new weights.
    """
    # A product with 0s and 1s, as sums by index have no fixed order on a GPU.
    member = (groups[:, None] == torch.arange(len(sizes), device=groups.device)).to(losses.dtype)
    means = (losses @ member) * (sizes.sum() / (len(losses) * sizes))
    shares = (shares.log() + step * means.detach()).softmax(0)
    return (shares * means).sum(), shares


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes
    ----------
    module : Net
        In eval mode, on the device it was trained on.
    initialised : {"imagenet", "scratch"}
    loss : float
        Mean training risk of the last epoch.
    """

    module: Net
    initialised: str
    loss: float

    def logits(self, inputs, rows) -> np.ndarray:
        """Logit of class 1 of some rows of ``inputs``, float32 of shape (m,)."""
        return self._apply(self.module, inputs, rows)

    def penultimate(self, inputs, rows) -> np.ndarray:
        """What the last layer sees of some rows of ``inputs``, float32 of shape (m, width)."""
        return self._apply(self.module.penultimate, inputs, rows)

    def _apply(self, function, inputs, rows) -> np.ndarray:
        device = self.module.centre.device
        rows = torch.tensor(np.asarray(rows, dtype=np.int64), device=device)
        inputs = _place(inputs, device)
        with torch.inference_mode(), _settled():
            parts = [function(inputs[part]) for part in rows.split(SCORE_BATCH)]
        return torch.cat(parts).float().cpu().numpy()


def fit(
    model: str,
    inputs,
    labels,
    rows,
    *,
    training: str = "weighted",
    weights=None,
    groups=None,
    options: Options | None = None,
    seed: int = 0,
    device: str = "auto",
    base: Fitted | None = None,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[int, int, float], None] = lambda done, total, risk: None,
) -> Fitted:
    """Train one network.

    Parameters
    ----------
    model : str
        A key of :data:`MODELS`.
    inputs : array or tensor
        Of the whole data set: float32 features (n, d) for ``mlp``, else uint8 aligned faces
        (n, 3, side, side).
    labels : int array, shape (n,)
        0 or 1.
    rows : int array, shape (m,)
        The training images.
    training : str
        A key of :data:`KINDS`.
    weights : array, shape (m,), optional
        Non-negative, for "weighted" only, brought to mean 1; all alike by default.
    groups : int array, shape (m,), optional
        For "group-dro", any codes; for "retrain", ``2 * identity + class``.
    options : Options, optional
        The model's defaults if not given.
    seed : int
        Decides initial weights, batches and augmentation, alike for every kind.
    device : str
        "auto" (a GPU when there is one), "cpu", "cuda", ...
    base : Fitted, optional
        For "retrain", the ERM network of this seed, which is then not trained again.
    checkpoint : path, optional
        File kept about every minute while the run lasts, from which it goes on if it exists. It
        must belong to exactly this run.
    on_epoch : callable, optional
        Called with (epochs done, epochs in all, mean risk) after every epoch.

    Raises
    ------
    ValueError
        On unknown names, shapes or types that do not fit, labels of one class, weights or groups
        missing or unasked for, or ImageNet weights that are demanded and not to be had.
    """
    options = options or read_options(model)
    device = pick_device(device)
    inputs, rows = _place(inputs, device), np.asarray(rows, dtype=np.int64)
    _check(model, inputs, labels, rows, training, weights, groups)
    labels = np.asarray(labels)[rows]
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    weights = weights / weights.mean()
    initialised = initialisation(model, options.pretrained)
    # As for the heads: images of positive weight, each counted once.
    statistics = _statistics(inputs, np.unique(rows[weights > 0]))

    def train(
        kind, weights, epochs=options.epochs, before=0, total=options.epochs, file=checkpoint
    ):
        nets = [
            _build(model, initialised, seed, stream, statistics, device)
            for stream in range(2 if kind == "lff" else 1)
        ]
        step, state = _step(kind, options, weights, groups, device)
        loss = _train(
            nets,
            step,
            state,
            inputs,
            rows,
            labels,
            options,
            seed,
            epochs=epochs,
            draw=weights if options.through == "sampler" else None,
            checkpoint=None if file is None else Path(file),
            report=lambda done, risk: on_epoch(before + done, total, risk),
        )
        return Fitted(nets[0], initialised, loss)

    if training == "jtt":
        # The first network is ERM's, stopped early: the same start, batches and learning rates.
        early, total = options.jtt_epochs, options.jtt_epochs + options.epochs
        first = train("weighted", weights, epochs=early, total=total, file=None)
        wrong = (first.logits(inputs, rows) > 0) != (labels == 1)
        return train(
            "weighted", jtt_weights(wrong, options.jtt_upweight), before=early, total=total
        )
    if training == "retrain":
        erm = base or train("weighted", weights)
        return _retrain(erm, inputs, rows, labels, groups, options, seed)
    return train(training, weights)


def _step(kind: str, options: Options, weights, groups, device) -> tuple[Callable, dict]:
    """``step(losses of every network, places in the training set) -> risk``, and what it remembers."""
    if kind == "weighted":
        if options.through == "sampler":
            return lambda losses, at: losses[0].mean(), {}
        weights = torch.as_tensor(weights, dtype=torch.float32, device=device)
        return lambda losses, at: weighted_risk(losses[0], weights[at]), {}
    if kind == "cvar-dro":
        return lambda losses, at: minibatch_risk(cvar_risk(options.alpha), losses[0]), {}
    if kind == "kl-dro":
        return lambda losses, at: minibatch_risk(tilted_risk(options.tilt), losses[0]), {}
    if kind == "lff":

        def lff(losses, at):
            # The networks share no parameter, so one sum trains each on its own risk.
            biased, debiased = losses[1], losses[0]
            own = minibatch_risk(generalised_cross_entropy(options.lff_q), biased)
            return own + weighted_risk(debiased, relative_difficulty(biased, debiased))

        return lff, {}

    codes, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)[1:]
    codes = torch.tensor(codes, device=device)
    sizes = torch.as_tensor(sizes, dtype=torch.float32, device=device)
    state = {"shares": torch.full_like(sizes, 1 / len(sizes))}

    def group_dro(losses, at):
        risk, state["shares"] = group_risk(
            losses[0], codes[at], sizes, state["shares"], options.group_step
        )
        return risk

    return group_dro, state


def _train(
    nets: list[Net],
    step: Callable[[list[Tensor], Tensor], Tensor],
    state: dict[str, Tensor],
    inputs: Tensor,
    rows: np.ndarray,
    labels: np.ndarray,
    options: Options,
    seed: int,
    *,
    epochs: int,
    draw: np.ndarray | None,
    checkpoint: Path | None,
    report: Callable[[int, float], None],
) -> float:
    """Train networks together for the first ``epochs`` of ``options.epochs``; the last mean risk.

    ``draw`` are the weights of a sampler, ``state`` whatever tensors the steps carry along.
    """
    device, n = inputs.device, len(rows)
    parts = math.ceil(n / options.batch)
    where = torch.tensor(rows, device=device)
    sign = torch.as_tensor(labels * 2.0 - 1.0, dtype=torch.float32, device=device)
    parameters = [parameter for net in nets for parameter in net.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    cast, scaler = _precision(device)
    modules = nn.ModuleList(nets).train()

    done, mean, saved = 0, math.nan, time.monotonic()
    if checkpoint is not None and checkpoint.exists():
        kept = torch.load(checkpoint, map_location=device, weights_only=True)
        modules.load_state_dict(kept["modules"])
        optimizer.load_state_dict(kept["optimizer"])
        scaler.load_state_dict(kept["scaler"])
        state.update(kept["state"])
        done, mean = kept["done"], kept["mean"]

    with _settled():
        for epoch in range(done, epochs):
            order = _order(n, draw, _seed(seed, "order", epoch)).to(device)
            generator = None
            if options.augment and inputs.ndim == 4:
                generator = torch.Generator(device).manual_seed(_seed(seed, "augment", epoch))
            risks = []
            # Parts of nearly equal size: no last batch too small for batch normalisation.
            for k, at in enumerate(order.tensor_split(parts)):
                rate = options.learning_rate * _schedule(epoch * parts + k, options.epochs * parts)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch = _take(inputs, where[at], generator)
                with cast():
                    logits = [net(batch) for net in nets]
                losses = [softplus(-sign[at] * logit.float()) for logit in logits]
                risk = step(losses, at)
                optimizer.zero_grad()
                scaler.scale(risk).backward()
                scaler.step(optimizer)
                scaler.update()
                risks.append(risk.detach())  # read once an epoch: .item() would wait for the device
            mean = float(torch.stack(risks).mean())
            if not math.isfinite(mean):
                raise ValueError(
                    f"training diverged in epoch {epoch + 1}: its mean risk is {mean}; lower "
                    f"learning_rate, which is {options.learning_rate}"
                )
            report(epoch + 1, mean)
            late = time.monotonic() - saved >= CHECKPOINT_SECONDS
            if checkpoint is not None and late and epoch + 1 < epochs:
                kept = {"done": epoch + 1, "mean": mean, "state": state}
                for name, part in (
                    ("modules", modules),
                    ("optimizer", optimizer),
                    ("scaler", scaler),
                ):
                    kept[name] = part.state_dict()
                write(checkpoint, lambda file, kept=kept: torch.save(kept, file))
                saved = time.monotonic()
    modules.eval()
    return mean


def _order(n: int, draw: np.ndarray | None, seed: int) -> Tensor:
    """The images of an epoch: all in random order, or n drawn in proportion to weights."""
    generator = torch.Generator().manual_seed(seed)
    if draw is None:
        return torch.randperm(n, generator=generator)
    # By the inverse distribution function: alike weights get alike draws from the same uniforms.
    edges = torch.as_tensor(draw, dtype=torch.float64).cumsum(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    return torch.searchsorted(edges, uniform * edges[-1], right=True).clamp_(max=n - 1)


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a linear rise, then a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _take(inputs: Tensor, rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """A batch; with a generator its faces are flipped and shifted at random, all in one gather."""
    if generator is None:
        return inputs[rows]
    side = inputs.shape[2]
    far = round(SHIFT * side)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (len(rows), 1), generator=generator, device=inputs.device)

    axis = torch.arange(side, device=inputs.device)
    y, x = ((axis + draw(-far, far + 1)).clamp(0, side - 1) for _ in "yx")
    x = torch.where(draw(0, 2) == 1, side - 1 - x, x)
    pixels = inputs.permute(0, 2, 3, 1)  # channels last in memory: a pixel is gathered whole
    return pixels[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _retrain(erm: Fitted, inputs, rows, labels, groups, options: Options, seed: int) -> Fitted:
    """Deep feature reweighting: the last layer refitted on balanced subsets, averaged over them.

    Kirichenko, Izmailov & Wilson 2023, "Last Layer Re-Training is Sufficient for Robustness to
    Spurious Correlations", arXiv 2204.02937.
    """
    rng = np.random.default_rng(_seed(seed, "subset", 0))
    member = np.zeros((options.draws, len(rows)), dtype=np.float32)
    everyone = np.ones(len(rows), dtype=bool)
    for subset in member:
        subset[balanced_subset(groups, everyone, rng)] = 1
    device = erm.module.centre.device
    features = erm.penultimate(inputs, rows)
    heads = fit_heads(features, labels, member, options.retrain_l2, device=str(device))
    # A copy: the network of this seed may serve other methods.
    net = copy.deepcopy(erm.module)
    with torch.no_grad():
        net.head.weight.copy_(torch.from_numpy(heads.weight.mean(axis=0, keepdims=True)))
        net.head.bias.copy_(torch.from_numpy(heads.bias.mean(axis=0, keepdims=True)))
    return Fitted(net, erm.initialised, erm.loss)


def _place(inputs, device: torch.device) -> Tensor:
    """Inputs on the device, faces with channels last in memory; no copy where they are so already."""
    if not isinstance(inputs, Tensor):
        inputs = np.asarray(inputs)
        # PyTorch warns of arrays that it could not write to, as memory maps.
        inputs = torch.from_numpy(inputs if inputs.flags.writeable else inputs.copy())
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs.to(device)


def _statistics(inputs: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """What a network subtracts from its input and divides it by, on the CPU."""
    if inputs.ndim == 4:
        return PIXEL_MEAN, PIXEL_SPREAD
    x = inputs[torch.tensor(rows, device=inputs.device)].float()
    return x.mean(0).cpu(), x.std(0, correction=0).clamp_min(1e-6).cpu()


def _precision(device: torch.device) -> tuple[Callable, torch.amp.GradScaler]:
    """Half precision on a GPU, bfloat16 where it has it; float32 elsewhere."""
    half = device.type == "cuda"
    wide = half and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if wide or not half else torch.float16
    # float16's small exponents need a scaled loss, bfloat16's do not.
    scaler = torch.amp.GradScaler(device.type, enabled=half and not wide)
    return partial(torch.autocast, device.type, dtype=dtype, enabled=half), scaler


@contextmanager
def _settled():
    """On a GPU, convolutions by deterministic algorithms, the same ones at every run."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def _check(model, inputs, labels, rows, training, weights, groups) -> None:
    if training not in KINDS:
        raise ValueError(
            f"training kind {training!r} is unknown{suggest(training, KINDS)}; "
            f"known: {', '.join(KINDS)}"
        )
    side = get_model(model).side
    wanted = "(n, d) float32" if side is None else f"(n, 3, {side}, {side}) uint8"
    dtype = torch.float32 if side is None else torch.uint8
    fits = inputs.ndim == 2 if side is None else inputs.shape[1:] == (3, side, side)
    if not fits or inputs.dtype != dtype:
        raise ValueError(
            f"inputs are {tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}; the "
            f"network {model!r} needs {wanted}"
        )
    labels = np.asarray(labels)
    if labels.shape != (len(inputs),):
        raise ValueError(f"labels have shape {labels.shape}; {len(inputs)} inputs need one each")
    if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= len(inputs):
        raise ValueError(f"rows must be one or more numbers from 0 to {len(inputs) - 1}")
    present = np.unique(labels[rows])
    if present.tolist() != [0, 1]:
        raise ValueError(
            f"the labels of the training images are {present[:5].tolist()}; both 0 and 1 are "
            "needed, and nothing else"
        )
    for name, values, kinds in (
        ("weights", weights, ("weighted",)),
        ("groups", groups, ("group-dro", "retrain")),
    ):
        if values is not None and training not in kinds:
            raise ValueError(f"training of the kind {training} takes no {name}; leave them out")
        if values is not None and np.shape(values) != rows.shape:
            raise ValueError(
                f"{name} have shape {np.shape(values)}; {len(rows)} training images need one each"
            )
    if groups is None and training in ("group-dro", "retrain"):
        raise ValueError(f"training of the kind {training} needs groups and none were given")
    if weights is not None:
        weights = np.asarray(weights)
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise ValueError("weights must be finite, none below 0 and some above")
    if training == "retrain" and (np.asarray(groups) % 2 != labels[rows]).any():
        row = int(rows[np.argmax(np.asarray(groups) % 2 != labels[rows])])
        raise ValueError(
            f"the group of row {row} does not end in its label; groups of retrain are "
            "2 * identity + class"
        )
