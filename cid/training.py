"""Networks trained on aligned faces, end to end or from a recognition network.

A run is one network: one method on one biased training set. All its randomness (initial weights, order
of the images, augmentation) is a function of its seed and of the epoch alone. So every method of a seed
starts from the same network and draws batches by the same numbers, which makes their comparison paired,
and an interrupted run needs no record of any generator to go on as if nothing had happened.

Risks are those of :mod:`cid.risks`, each taken over a minibatch. On a CPU the same seed gives the same
bytes for the same number of threads; on a GPU, where sums may be taken in another order, the same
numbers to rounding.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cid import risks
from cid.checks import WHOLE, array, class_codes, number, reals
from cid.density import as_tensor
from cid.device import pick_device
from cid.heads import balanced_subset, fit_heads
from cid.models import (
    PIXEL_MEAN,
    PIXEL_SPREAD,
    Net,
    build_network,
    get_model,
    initialisation,
    read_options,
    seed_for,
)
from cid.names import find
from cid.options import KINDS, NetworkOptions

WARM_UP = 0.1  # share of the steps over which the learning rate rises before its cosine decay
SHIFT = 1 / 16  # of a face's side: the largest random shift of a training image either way
CHECKPOINT_SECONDS = 60  # between two checkpoints of a run; a shorter run is simply run again
SCORE_BATCH = 512  # images scored at once, which bounds memory


@dataclass(frozen=True)
class Fitted:
    """A trained network; of some rows of inputs it gives float32 arrays."""

    module: Net  # in eval mode, on the device it was trained on
    initialised: str  # as of :func:`initialisation`
    loss: float  # mean training risk of the epoch that stayed
    epoch: int  # that stayed, from 1: the last, or the best on the images kept from training
    rows: np.ndarray  # of the images it was trained on

    def logits(self, inputs, rows) -> np.ndarray:
        """Logits of class 1, shape (m,)."""
        return self._apply(self.module, inputs, rows)

    def penultimate(self, inputs, rows) -> np.ndarray:
        """What the last layer sees, shape (m, width)."""
        return self._apply(self.module.penultimate, inputs, rows)

    def _apply(self, function, inputs, rows) -> np.ndarray:
        device = self.module.centre.device
        rows = torch.tensor(np.asarray(rows, dtype=np.int64), device=device)
        inputs = place(inputs, device)
        with torch.inference_mode(), _settled(device):
            parts = [function(inputs[part]) for part in rows.split(SCORE_BATCH)]
        return torch.cat(parts).float().cpu().numpy()


def fit(
    model: str, inputs, labels, rows, *, training: str = "weighted", weights=None, groups=None,
    options: NetworkOptions | None = None, seed: int = 0, device: str = "auto",
    base: Fitted | None = None, checkpoint: str | Path | None = None,
    save: Callable[[dict, Path], object] = torch.save,
    on_epoch: Callable[[int, int, float], object] = lambda done, total, risk: None,
) -> Fitted:  # fmt: skip
    """Train one network.

    Parameters
    ----------
    model, training : str
        A key of :data:`MODELS`, and one of :data:`cid.options.KINDS`.
    inputs : float32 features (n, d) for "mlp", float16 or float32 activations for "finetune"
        (:func:`cid.recognition.activations`), else uint8 aligned faces (n, 3, side, side)
        Of the whole data set.
    labels : int array (n,) of 0 and 1
    rows : int array (m,), the training images
    weights : array (m,), optional
        Non-negative, for "weighted" only, brought to mean 1; all alike by default.
    groups : int array (m,), optional
        Codes, for "group-dro" and, of the identities, for "retrain".
    options : NetworkOptions, the model's defaults if not given
    device
        As in :func:`cid.align.detect`.
    base : Fitted, optional
        For "retrain", the ERM network of this seed, which is then not trained again.
    checkpoint : path, optional
        File kept about every minute while the run lasts, from which exactly this run goes on; ``save``
        writes it by ``(state, path)``: where a run may be killed, whole files only.
    on_epoch : callable
        Called with (epochs done, epochs in all, mean risk) after every epoch.

    Notes
    -----
    With ``options.held_out``, that share of ``rows``, in whole images, is drawn by the seed alone and
    trains nothing, the last layer of "retrain" neither. Of all epochs the one stays whose network has
    the smallest mean loss on them, either class counting the same: the same rule for every method, so
    that no choice of an epoch sees weights, groups or identities. The first network of "jtt" always
    stops after ``jtt_epochs``; of "lff" the debiased network decides; "retrain" starts from ERM's
    network, stopped as ERM.

    Raises
    ------
    ValueError
        On unknown names, shapes or types that do not fit, labels of one class, weights or groups
        missing or unasked for, or as of :func:`initialisation`; if training diverges; if ``held_out``
        leaves a class, or all positive weights, on one side.
    """
    options = options or read_options(model)
    device = pick_device(device)
    inputs, labels = place(inputs, device), array("labels", labels)
    seed = number("seed", seed, WHOLE, int)
    rows, weights = _rows(rows, len(inputs)), None if weights is None else reals("weights", weights)
    groups = None if groups is None else class_codes(groups, len(rows), "groups")[0]
    _check(model, inputs, labels, rows, training, weights, groups, options)
    labels, weights = labels[rows], np.ones(len(rows)) if weights is None else weights
    used, held = _held_out(labels, weights, options.held_out, seed)
    if training == "group-dro" and options.through == "sampler":  # a group is drawn, then its image
        weights = 1 / np.bincount(groups[used], minlength=groups.max() + 1).clip(1)[groups]
    start = initialisation(model, options.pretrained)
    statistics = PIXEL_MEAN, PIXEL_SPREAD
    if inputs.ndim == 2:  # of the images used, as for heads
        x = inputs[torch.tensor(np.unique(rows[used][weights[used] > 0]), device=device)].float()
        statistics = x.mean(0).cpu(), x.std(0, correction=0).clamp_min(1e-6).cpu()
    elif get_model(model).maps:  # the network knows them as they are
        statistics = torch.zeros(1), torch.ones(1)
    sign = torch.as_tensor(labels * 2.0 - 1.0, dtype=torch.float32, device=device)
    data = inputs, torch.tensor(rows, device=device), sign
    file = checkpoint and Path(checkpoint)

    def train(
        kind, weights, epochs=options.epochs, before=0, total=options.epochs, file=file, held=held
    ):
        weights = weights / weights[used].mean()
        streams = range(2 if kind == "lff" else 1)
        nets = [build_network(model, start, seed, stream, statistics, device) for stream in streams]
        step, state = _step(kind, options, weights, groups, used, device)
        draw = weights[used] if options.through == "sampler" else None
        how = {"epochs": epochs, "draw": draw, "file": file, "save": save}
        how |= {"used": torch.tensor(used), "held": torch.tensor(held, device=device)}
        how["report"] = lambda done, risk: on_epoch(before + done, total, risk)
        mean, epoch = _train(nets, step, state, data, options, seed, **how)
        return Fitted(nets[0], start, mean, epoch, rows[used])

    if training == "jtt":
        # The first network is ERM's, stopped early: the same start, batches and learning rates.
        early, total = options.jtt_epochs, options.jtt_epochs + options.epochs
        first = train("weighted", weights, epochs=early, total=total, file=None, held=[])
        wrong = (first.logits(inputs, rows) > 0) != (labels == 1)
        weights = risks.jtt_weights(wrong, options.jtt_upweight)
        return train("weighted", weights, before=early, total=total)
    if training == "retrain":
        erm = base or train("weighted", weights)
        return _retrain(erm, inputs, rows[used], labels[used], groups[used], options, seed)
    return train(training, weights)


def _held_out(labels, weights, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the images to train on, and of those kept from it, drawn by the seed alone."""
    order, k = np.arange(len(labels)), round(share * len(labels))
    if share:
        order = np.random.default_rng(seed_for(seed, "held", 0)).permutation(order)
    held, used = np.sort(order[:k]), np.sort(order[k:])
    parts = (labels[held], labels[used])
    if share and not (all(len(set(part)) == 2 for part in parts) and weights[used].any()):
        problem = f"held_out is {share:g}, which keeps {k} of {len(labels)} images from training"
        wanted = "both parts need both classes, and the rest a weight above 0"
        raise ValueError(f"{problem}; {wanted}: choose another share")
    return used, held


def _step(kind: str, options, weights, groups, used, device) -> tuple[Callable, dict]:
    """``step(losses of every network, places in the training set) -> risk`` of a minibatch, and what it
    remembers.
    """
    if kind == "weighted":
        weights = torch.as_tensor(weights, dtype=torch.float32, device=device)
        if options.through == "sampler":
            return lambda losses, at: losses[0].mean(), {}
        return lambda losses, at: risks.weighted_risk(losses[0], weights[at]), {}
    tails = {"cvar-dro": risks.cvar_risk(options.alpha), "kl-dro": risks.tilted_risk(options.tilt)}
    if kind in tails:
        return lambda losses, at: risks.minibatch_risk(tails[kind], losses[0]), {}
    if kind == "lff":

        def lff(losses, at):
            # The networks share no parameter, so one sum trains each on its own risk.
            debiased, biased = losses
            own = risks.minibatch_risk(risks.generalised_cross_entropy(options.lff_q), biased)
            return own + risks.weighted_risk(debiased, risks.relative_difficulty(biased, debiased))

        return lff, {}

    codes = torch.tensor(groups, device=device)
    sizes = torch.from_numpy(np.bincount(groups[used], weights[used], groups.max() + 1))
    sizes = sizes.float().to(device)
    state = {"shares": (sizes > 0) / (sizes > 0).sum()}

    def group_dro(losses, at):
        given = losses[0], codes[at], sizes, state["shares"], options.group_step
        risk, state["shares"] = risks.online_group_risk(*given)
        return risk

    return group_dro, state


def _train(
    nets, step, state, data, options, seed, *, used, held, epochs, draw, file, save, report
) -> tuple[float, int]:
    """Train networks together for the first ``epochs`` of ``options.epochs``; they stay as they are after
    the last one, or after the one in which the first network has the smallest class-balanced loss on the
    images ``held``. Its mean risk and number.

    ``step`` and ``state`` are from :func:`_step`; ``data`` are the inputs, and of every image of the
    training set its row and its label as a sign; ``used`` are places in it, in order, of which ``draw``
    are the weights of a sampler, or None.
    """
    (inputs, rows, sign), device = data, data[0].device
    parts = math.ceil(len(used) / options.batch)
    rate, decay = options.learning_rate, options.weight_decay
    modules = nn.ModuleList(nets).train()
    optimizer = torch.optim.AdamW(modules.parameters(), rate, weight_decay=decay, fused=True)
    cast, scaler = _precision(device)
    kept = {"modules": modules, "optimizer": optimizer, "scaler": scaler}
    done, best, saved = 0, {"mean": math.nan, "epoch": 0}, time.monotonic()
    if file is not None and file.exists():
        found = torch.load(file, map_location=device, weights_only=True)
        for name, part in kept.items():
            part.load_state_dict(found[name])
        state.update(found["state"])
        done, best = found["done"], found["best"]

    with _settled(device):
        for epoch in range(done, epochs):
            order = used[_order(len(used), draw, seed_for(seed, "order", epoch))].to(device)
            generator = None
            if options.augment and inputs.dtype == torch.uint8:
                generator = torch.Generator(device).manual_seed(seed_for(seed, "augment", epoch))
            each = []
            # Parts of nearly equal size: no last batch too small for batch normalisation.
            for k, at in enumerate(order.tensor_split(parts)):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _schedule(epoch * parts + k, options.epochs * parts)
                batch = _take(inputs, rows[at], generator)
                with cast():
                    logits = [net(batch) for net in nets]
                risk = step([softplus(-sign[at] * logit.float()) for logit in logits], at)
                optimizer.zero_grad()
                scaler.scale(risk).backward()
                scaler.step(optimizer)
                scaler.update()
                each.append(risk.detach())  # read once an epoch: .item() would wait for the device
            mean = float(torch.stack(each).mean())
            if not math.isfinite(mean):
                problem = f"training diverged in epoch {epoch + 1}: its mean risk is {mean}"
                raise ValueError(f"{problem}; lower learning_rate, which is {rate}")
            if not len(held):
                best = {"mean": mean, "epoch": epoch + 1}
            else:
                modules.eval()
                with torch.inference_mode():
                    scores = [nets[0](inputs[rows[at]]) for at in held.split(SCORE_BATCH)]
                    losses = softplus(-sign[held] * torch.cat(scores).float())
                    risk = float(sum(losses[sign[held] == side].mean() for side in (-1, 1)))
                modules.train()
                if not epoch or risk < best["risk"]:
                    now = {name: value.clone() for name, value in modules.state_dict().items()}
                    best = {"mean": mean, "epoch": epoch + 1, "risk": risk, "modules": now}
            report(epoch + 1, mean)
            late = time.monotonic() - saved >= CHECKPOINT_SECONDS
            if file is not None and late and epoch + 1 < epochs:
                states = {name: part.state_dict() for name, part in kept.items()}
                save({"done": epoch + 1, "best": best, "state": state} | states, file)
                saved = time.monotonic()
    if "modules" in best:
        modules.load_state_dict(best["modules"])
    modules.eval()
    return best["mean"], best["epoch"]


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
    side, far = inputs.shape[2], round(SHIFT * inputs.shape[2])

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (len(rows), 1), generator=generator, device=inputs.device)

    axis = torch.arange(side, device=inputs.device)
    y, x = ((axis + draw(-far, far + 1)).clamp(0, side - 1) for _ in "yx")
    x = torch.where(draw(0, 2) == 1, side - 1 - x, x)
    pixels = inputs.permute(0, 2, 3, 1)  # channels last in memory: a pixel is gathered whole
    return pixels[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _retrain(erm: Fitted, inputs, rows, labels, people, options: NetworkOptions, seed) -> Fitted:
    """The last layer refitted on balanced subsets, averaged: deep feature reweighting of Kirichenko,
    Izmailov & Wilson 2023, "Last Layer Re-Training is Sufficient for Robustness to Spurious
    Correlations", arXiv 2204.02937.
    """
    rng = np.random.default_rng(seed_for(seed, "subset", 0))
    member = np.zeros((options.draws, len(rows)), dtype=np.float32)
    for subset in member:
        subset[balanced_subset(people, labels, np.ones(len(rows), dtype=bool), rng)] = 1
    features, l2 = erm.penultimate(inputs, rows), options.retrain_l2
    heads = fit_heads(features, labels, member, l2, device=str(inputs.device))
    # A copy: the network of this seed may serve other methods.
    net = copy.deepcopy(erm.module)
    with torch.no_grad():
        net.head.weight.copy_(torch.from_numpy(heads.weight.mean(axis=0, keepdims=True)))
        net.head.bias.copy_(torch.from_numpy(heads.bias.mean(axis=0, keepdims=True)))
    return dataclasses.replace(erm, module=net)


def place(inputs, device: torch.device) -> Tensor:
    """Inputs on the device, faces with channels last in memory; no copy where they are so already."""
    inputs = torch.atleast_1d(as_tensor(inputs, "inputs"))
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs.to(device)


def _settled(device: torch.device):
    """On a GPU, convolutions by deterministic algorithms, the same ones at every run."""
    if device.type == "cpu":  # the flags are global: threads that train at once would mix them up
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)


def _precision(device: torch.device) -> tuple[Callable, torch.amp.GradScaler]:
    """Half precision on a GPU, bfloat16 where it has it; float32 elsewhere."""
    half = device.type == "cuda"
    wide = half and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if wide or not half else torch.float16
    # float16's small exponents need a scaled loss, bfloat16's do not.
    scaler = torch.amp.GradScaler(device.type, enabled=half and not wide)
    return partial(torch.autocast, device.type, dtype=dtype, enabled=half), scaler


def _rows(rows, n: int) -> np.ndarray:
    """Numbers of training images as integers."""
    found = array("rows", rows)
    whole = found.dtype.kind in "iuf" and not (found % 1).any()
    if found.ndim != 1 or not (len(found) and whole and 0 <= found.min() <= found.max() < n):
        problem = f"rows must be one or more numbers from 0 to {n - 1}"
        raise ValueError(f"{problem}; of a mask take np.flatnonzero")
    return found.astype(np.int64)


def _check(model, inputs, labels, rows, training, weights, groups, options) -> None:
    find("training kind", training, KINDS)
    if not isinstance(options, NetworkOptions):
        raise ValueError(f"options are {type(options).__name__}; make them by read_options")
    side, maps = get_model(model).side, get_model(model).maps
    if maps:
        fits = inputs.shape[1:] == maps and inputs.dtype in (torch.float16, torch.float32)
        wanted = "(n, {}, {}, {}) float16 or float32".format(*maps)
    elif side is None:
        fits, wanted = inputs.ndim == 2 and inputs.dtype == torch.float32, "(n, d) float32"
    else:
        fits = inputs.shape[1:] == (3, side, side) and inputs.dtype == torch.uint8
        wanted = f"(n, 3, {side}, {side}) uint8"
    if not fits:
        found = f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
        raise ValueError(f"inputs are {found}; the network {model!r} needs {wanted}")
    if labels.shape != (len(inputs),):
        raise ValueError(f"labels have shape {labels.shape}; {len(inputs)} inputs need one each")
    for part in torch.tensor(rows).split(SCORE_BATCH) if inputs.is_floating_point() else ():
        bad = ~torch.isfinite(inputs[part.to(inputs.device)].flatten(1)).all(1).cpu()
        if bad.any():
            problem = f"inputs hold NaN or infinite values in row {int(part[bad][0])}"
            raise ValueError(f"{problem}; leave that image out")
    present = np.unique(labels[rows])
    if present.tolist() != [0, 1]:
        problem = f"the labels of the training images are {present[:5].tolist()}"
        raise ValueError(f"{problem}; both 0 and 1 are needed, and nothing else")
    grouped = training in ("group-dro", "retrain")
    if grouped and groups is None:
        raise ValueError(f"training of the kind {training} needs groups and none were given")
    given = {"weights": (weights, training == "weighted"), "groups": (groups, grouped)}
    for name, (values, taken) in given.items():
        if values is not None and not taken:
            raise ValueError(f"training of the kind {training} takes no {name}; leave them out")
        if values is not None and np.shape(values) != rows.shape:
            problem = f"{name} have shape {np.shape(values)}"
            raise ValueError(f"{problem}; {len(rows)} training images need one each")
    if weights is not None and not (
        np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
    ):
        raise ValueError("weights must be finite, none below 0 and some above")
