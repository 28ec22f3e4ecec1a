"""Train networks on aligned faces, end to end or from a recognition network.

One call of :func:`fit` trains one network: one method on one biased training set. All its randomness
(initial weights, order of the images, augmentation) is a function of its seed and of the epoch alone.
So all methods with the same seed start from the same network and draw batches by the same numbers,
which makes their comparison paired, and an interrupted training resumes without the state of any
random generator.

The risks are those of :mod:`cid.risks`, each taken over a minibatch. On a CPU the same seed gives the
same bytes for the same number of threads. On a GPU, where the order of sums can differ, it gives the
same numbers to rounding.
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
from cid.arrays import array, as_tensor, class_codes, pick_device, reals
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
from cid.settings import Whole, checked

WARM_UP = 0.1  # share of the steps over which the learning rate rises before its cosine decay
SHIFT = 1 / 16  # largest random shift of a training image, as a share of its side
CHECKPOINT_SECONDS = 60  # between two checkpoints; a shorter training is simply run again
SCORE_BATCH = 512  # images scored at once, which bounds memory


@dataclass(frozen=True)
class Fitted:
    """A trained network, which returns float32 arrays for chosen rows of its inputs."""

    module: Net  # in eval mode, on the device it was trained on
    initialised: (
        str  # "imagenet", "recognition" or "scratch": see :func:`cid.models.initialisation`
    )
    loss: float  # mean training risk of the epoch that was kept
    epoch: int  # the epoch that was kept, from 1: the last, or the best on the held-out images
    rows: np.ndarray  # the images it was trained on, as rows of the inputs

    def logits(self, inputs, rows) -> np.ndarray:
        """Compute the logits of class 1, shape (m,)."""
        return self._apply(self.module, inputs, rows)

    def penultimate(self, inputs, rows) -> np.ndarray:
        """Compute the input of the last layer, shape (m, width)."""
        return self._apply(self.module.penultimate, inputs, rows)

    def _apply(self, function: Callable[[Tensor], Tensor], inputs, rows) -> np.ndarray:
        device = self.module.centre.device
        rows = torch.tensor(np.asarray(rows, dtype=np.int64), device=device)
        inputs = place(inputs, device)
        with torch.inference_mode(), _deterministic(device):
            outputs = [function(inputs[batch]) for batch in rows.split(SCORE_BATCH)]
        return torch.cat(outputs).float().cpu().numpy()


@dataclass(frozen=True)
class TrainingSet:
    """The n images of one training set. A *place* is the position of an image among them, 0 .. n-1."""

    inputs: Tensor  # of the whole data set, on the device
    rows: np.ndarray  # int64 (n,): the images as rows of ``inputs``
    labels: np.ndarray  # (n,), 0 or 1
    used: np.ndarray  # places of the images that are trained on, in order
    held_out: np.ndarray  # places of the images that only choose the epoch to keep; can be empty
    centre: Tensor  # the network subtracts this from its inputs
    spread: Tensor  # and then divides them by this


def fit(
    model: str, inputs, labels, rows, *, training: str = "weighted", weights=None, groups=None,
    offset=None, options: NetworkOptions | None = None, seed: int = 0, device: str = "auto",
    base: Fitted | None = None, checkpoint: str | Path | None = None,
    save: Callable[[dict, Path], object] = torch.save,
    on_epoch: Callable[[int, int, float], object] = lambda done, total, risk: None,
) -> Fitted:  # fmt: skip
    """Train one network.

    Parameters
    ----------
    model : str
        A key of :data:`cid.models.MODELS`.
    inputs : array or tensor
        The whole data set: float32 features (n, d) for "mlp"; float16 or float32 activations for
        "finetune" (:func:`cid.recognition.activations`); uint8 aligned faces (n, 3, side, side) for
        the other models.
    labels : int array (n,)
        0 or 1.
    rows : int array (m,)
        The training images.
    training : str
        The kind of training, a key of :data:`cid.options.KINDS`.
    weights : array (m,), optional
        Non-negative, for "weighted" only, scaled to mean 1. By default all are equal.
    groups : int array (m,), optional
        Group codes, needed by "group-dro"; for "retrain", the identities.
    offset : array (m,), optional
        Needed by "offset": what is added to the logits in training, such as log-odds of
        :func:`cid.offsets.surprise_offsets`, and is no part of the network.
    options : NetworkOptions, optional
        By default those of the model, :func:`cid.models.read_options`.
    seed : int
        Decides everything that is random.
    device : str
        As in :func:`cid.detection.detect`.
    base : Fitted, optional
        For "retrain": the ERM network of this seed, which is then not trained again.
    checkpoint : path, optional
        A file written about once a minute while the training runs. If it exists, exactly this
        training is resumed from it.
    save : callable
        Writes a checkpoint: ``save(state, path)``. Where the process can be killed, it must write
        whole files only.
    on_epoch : callable
        Called with (epochs done, epochs in total, mean risk) after every epoch.

    Notes
    -----
    With ``options.held_out``, that share of ``rows`` (rounded to whole images) is drawn by the seed
    alone and not trained on, not even by the last layer of "retrain". The epoch that is kept is the
    one whose network has the smallest mean loss on the held-out images, with equal weight for each
    class. The rule is the same for every method, so no choice of an epoch uses weights, groups or
    identities. The first network of "jtt" always stops after ``jtt_epochs``. For "lff" the debiased
    network decides. "retrain" starts from the ERM network, stopped as for ERM.

    Raises
    ------
    ValueError
        If a name is unknown; if shapes or types do not fit; if the labels hold one class only; if
        weights or groups are missing or not wanted; if training diverges; if ``held_out`` leaves a
        class, or all positive weights, on one side; or as :func:`cid.models.initialisation`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(40, 3)).astype(np.float32)
    >>> labels = (features[:, 0] > 0).astype(int)
    >>> options = read_options("mlp", {"epochs": 2})
    >>> fitted = fit("mlp", features, labels, np.arange(30), options=options, device="cpu")
    >>> fitted.logits(features, rows=[30, 31]).shape
    (2,)
    """
    options = options or read_options(model)
    device = pick_device(device)
    inputs = place(inputs, device)
    labels = array("labels", labels)
    seed = checked("seed", seed, Whole)
    rows = _checked_rows(rows, len(inputs))
    if weights is not None:
        weights = reals("weights", weights)
    if groups is not None:
        groups, _ = class_codes(groups, len(rows), "groups")
    if offset is not None:
        offset = reals("offset", offset)
    _check(model, inputs, labels, rows, training, weights, groups, options)
    _check_offset(offset, training, len(rows))
    labels = labels[rows]
    if weights is None:
        weights = np.ones(len(rows))
    used, held_out = _split_held_out(labels, weights, options.held_out, seed)
    if training == "group-dro" and options.through == "sampler":
        # First a group is drawn, then one of its images.
        group_sizes = np.bincount(groups[used], minlength=groups.max() + 1)
        weights = 1 / group_sizes.clip(1)[groups]
    start = initialisation(model, options.pretrained)
    centre, spread = _input_statistics(model, inputs, rows[used][weights[used] > 0])
    data = TrainingSet(
        inputs=inputs,
        rows=rows,
        labels=labels,
        used=used,
        held_out=held_out,
        centre=centre,
        spread=spread,
    )

    epochs_before = 0
    epochs_in_total = options.epochs
    if training == "jtt":
        # The first network is ERM's, stopped early: the same start, batches and learning rates.
        epochs_before = options.jtt_epochs
        epochs_in_total = options.jtt_epochs + options.epochs
        first = Trainer(
            kind="weighted",
            model=model,
            start=start,
            data=dataclasses.replace(data, held_out=held_out[:0]),
            weights=weights,
            groups=None,
            options=options,
            seed=seed,
        )
        first.train(
            epochs=options.jtt_epochs,
            on_epoch=lambda done, risk: on_epoch(done, epochs_in_total, risk),
        )
        wrong = (first.fitted().logits(inputs, rows) > 0) != (labels == 1)
        weights = risks.jtt_weights(wrong, options.jtt_upweight)

    if training == "retrain" and base is not None:
        fitted = base
    else:
        trainer = Trainer(
            kind="weighted" if training in ("jtt", "retrain", "offset") else training,
            model=model,
            start=start,
            data=data,
            weights=weights,
            groups=groups,
            options=options,
            seed=seed,
            offset=offset,
        )
        trainer.train(
            epochs=options.epochs,
            on_epoch=lambda done, risk: on_epoch(epochs_before + done, epochs_in_total, risk),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            save=save,
        )
        fitted = trainer.fitted()

    if training == "retrain":
        fitted = _retrain_last_layer(
            fitted,
            inputs=inputs,
            rows=rows[used],
            labels=labels[used],
            people=groups[used],
            options=options,
            seed=seed,
        )
    return fitted


class BatchRisk:
    """The risk that one kind of training minimises on every minibatch.

    Parameters
    ----------
    kind : str
        A key of :data:`cid.options.KINDS` except "jtt", "retrain" and "offset", which train as "weighted".
    options : NetworkOptions
    weights : float array (n,)
        Of the images of the training set, with mean 1 over those used.
    groups : int array (n,) or None
        Codes from 0, for "group-dro".
    used : int array
        Places of the images that are trained on.
    device : torch.device
    """

    def __init__(self, kind: str, options: NetworkOptions, weights, groups, used, device):
        self.kind = kind
        self.options = options
        self.group_shares = None  # the state of "group-dro": a weight for each group, sum 1
        if kind == "weighted":
            self.weights = torch.as_tensor(weights, dtype=torch.float32, device=device)
        if kind == "group-dro":
            self.groups = torch.tensor(groups, device=device)
            sizes = np.bincount(groups[used], weights[used], groups.max() + 1)
            self.group_sizes = torch.from_numpy(sizes).float().to(device)
            present = self.group_sizes > 0
            self.group_shares = present / present.sum()

    def __call__(self, losses: list[Tensor], places: Tensor) -> Tensor:
        """Compute the risk, a scalar to differentiate.

        ``losses`` holds the cross-entropies (b,) of the batch under each network, ``places`` (b,) the
        places of its images in the training set.
        """
        options = self.options
        if self.kind == "weighted" and options.through == "sampler":
            return losses[0].mean()  # the weights have acted already: they drew the batch
        if self.kind == "weighted":
            return risks.weighted_risk(losses[0], self.weights[places])
        if self.kind == "cvar-dro":
            return risks.minibatch_risk(risks.cvar_risk(options.alpha), losses[0])
        if self.kind == "kl-dro":
            return risks.minibatch_risk(risks.tilted_risk(options.tilt), losses[0])
        if self.kind == "group-dro":
            risk, self.group_shares = risks.online_group_risk(
                losses[0],
                self.groups[places],
                self.group_sizes,
                self.group_shares,
                options.group_step,
            )
            return risk
        if self.kind == "lff":
            # The two networks share no parameter, so one sum trains each on its own risk.
            debiased, biased = losses
            easy_first = risks.generalised_cross_entropy(options.lff_q)
            biased_risk = risks.minibatch_risk(easy_first, biased)
            difficulty = risks.relative_difficulty(biased, debiased)
            return biased_risk + risks.weighted_risk(debiased, difficulty)
        raise ValueError(f"training of the kind {self.kind} has no risk of its own")


@dataclass
class Best:
    """The best epoch so far: the one whose network :meth:`Trainer.train` returns."""

    epoch: int = 0  # from 1
    mean_risk: float = math.nan  # over its minibatches
    held_out_loss: float = math.nan  # class-balanced; NaN without held-out images
    parameters: dict | None = None  # of the networks; None if it is the last epoch anyway


class Trainer:
    """One training, resumable: the network, its optimiser and the loop over the epochs.

    "lff" trains a biased network beside the one that is returned; all other kinds train one network.

    Parameters
    ----------
    kind : str
        As in :class:`BatchRisk`.
    model : str
        A key of :data:`cid.models.MODELS`.
    start : str
        As :func:`cid.models.initialisation` returns it.
    data : TrainingSet
    weights : float array (n,)
        Of the images of the training set, in any scale.
    groups : int array (n,) or None
    options : NetworkOptions
    seed : int
    offset : float array (n,), optional
        Added to the logits of the images in training.
    """

    def __init__(
        self,
        *,
        kind: str,
        model: str,
        start: str,
        data: TrainingSet,
        weights: np.ndarray,
        groups: np.ndarray | None,
        options: NetworkOptions,
        seed: int,
        offset: np.ndarray | None = None,
    ):
        self.device = data.inputs.device
        self.start = start
        self.data = data
        self.options = options
        self.seed = seed
        self.rows = torch.tensor(data.rows, device=self.device)
        signs = data.labels * 2.0 - 1.0
        self.signs = torch.as_tensor(signs, dtype=torch.float32, device=self.device)
        self.used = torch.tensor(data.used)
        self.held_out = torch.tensor(data.held_out, device=self.device)
        self.batches = math.ceil(len(data.used) / options.batch)  # in an epoch
        self.offset = None
        if offset is not None:
            self.offset = torch.as_tensor(offset, dtype=torch.float32, device=self.device)

        weights = weights / weights[data.used].mean()
        self.sampling = weights[data.used] if options.through == "sampler" else None
        self.batch_risk = BatchRisk(kind, options, weights, groups, data.used, self.device)

        networks = [
            build_network(
                model,
                initialised=start,
                seed=seed,
                stream=stream,
                centre=data.centre,
                spread=data.spread,
                device=self.device,
            )
            for stream in range(2 if kind == "lff" else 1)
        ]
        self.networks = nn.ModuleList(networks).train()
        self.optimizer = torch.optim.AdamW(
            self.networks.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.autocast, self.scaler = _mixed_precision(self.device)
        self.epochs_done = 0
        self.best = Best()

    def train(
        self,
        epochs: int,
        on_epoch: Callable[[int, float], object],
        checkpoint: Path | None = None,
        save: Callable[[dict, Path], object] = torch.save,
    ) -> None:
        """Train for the first ``epochs`` of ``options.epochs``, then go back to the best epoch.

        ``on_epoch`` is called with (epochs done, mean risk). A ``checkpoint`` that exists is resumed.
        """
        last_save = time.monotonic()
        if checkpoint is not None and checkpoint.exists():
            self.resume(checkpoint)
        with _deterministic(self.device):
            for epoch in range(self.epochs_done, epochs):
                mean_risk = self.epoch(epoch)
                if not math.isfinite(mean_risk):
                    raise ValueError(
                        f"training diverged in epoch {epoch + 1}: its mean risk is {mean_risk}; "
                        f"lower learning_rate, which is {self.options.learning_rate}"
                    )
                self.keep_if_best(epoch, mean_risk)
                self.epochs_done = epoch + 1
                on_epoch(self.epochs_done, mean_risk)
                late = time.monotonic() - last_save >= CHECKPOINT_SECONDS
                if checkpoint is not None and late and self.epochs_done < epochs:
                    self.save(checkpoint, save)
                    last_save = time.monotonic()
        if self.best.parameters is not None:
            self.networks.load_state_dict(self.best.parameters)
        self.networks.eval()

    def epoch(self, epoch: int) -> float:
        """Train on as many images as are used; return the mean risk of the minibatches."""
        order = _order(len(self.used), self.sampling, seed_for(self.seed, "order", epoch))
        places = self.used[order].to(self.device)
        augmentation = None
        if self.options.augment and self.data.inputs.dtype == torch.uint8:
            augmentation = torch.Generator(self.device)
            augmentation.manual_seed(seed_for(self.seed, "augment", epoch))
        batch_risks = []
        # Batches of nearly equal size: no last batch too small for batch normalisation.
        for batch, batch_places in enumerate(places.tensor_split(self.batches)):
            step = epoch * self.batches + batch
            batch_risks.append(self.step(step, batch_places, augmentation))
        # Read once an epoch: reading every risk would wait for the device at every step.
        return float(torch.stack(batch_risks).mean())

    def step(self, step: int, places: Tensor, augmentation: torch.Generator | None) -> Tensor:
        """Take one optimiser step on a minibatch; return its risk."""
        steps = self.options.epochs * self.batches
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * _schedule(step, steps)
        # forward
        inputs = _take(self.data.inputs, self.rows[places], augmentation)
        with self.autocast():
            logits = [network(inputs) for network in self.networks]
        logits = [logit.float() for logit in logits]
        if self.offset is not None:
            logits = [logit + self.offset[places] for logit in logits]
        losses = [softplus(-self.signs[places] * logit) for logit in logits]
        risk = self.batch_risk(losses, places)
        # backward and update; the scaler only acts in float16
        self.optimizer.zero_grad()
        self.scaler.scale(risk).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return risk.detach()

    def keep_if_best(self, epoch: int, mean_risk: float) -> None:
        """Remember this epoch if its network is the one to return so far."""
        if len(self.held_out) == 0:  # every epoch replaces the one before
            self.best = Best(epoch=epoch + 1, mean_risk=mean_risk)
            return
        loss = self.held_out_loss()
        if epoch == 0 or loss < self.best.held_out_loss:
            parameters = self.networks.state_dict()
            self.best = Best(
                epoch=epoch + 1,
                mean_risk=mean_risk,
                held_out_loss=loss,
                parameters={name: value.clone() for name, value in parameters.items()},
            )

    def held_out_loss(self) -> float:
        """Compute the loss on the held-out images, with equal weight for each class."""
        signs = self.signs[self.held_out]
        self.networks.eval()
        with torch.inference_mode():
            logits = [
                self.networks[0](self.data.inputs[self.rows[places]])
                for places in self.held_out.split(SCORE_BATCH)
            ]
            losses = softplus(-signs * torch.cat(logits).float())
            loss = float(sum(losses[signs == sign].mean() for sign in (-1, 1)))
        self.networks.train()
        return loss

    def save(self, checkpoint: Path, save: Callable[[dict, Path], object]) -> None:
        """Write everything that :meth:`resume` needs."""
        state = {
            "epochs_done": self.epochs_done,
            "best": vars(self.best),
            "group_shares": self.batch_risk.group_shares,
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save(state, checkpoint)

    def resume(self, checkpoint: Path) -> None:
        """Go back to the state that :meth:`save` wrote."""
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        self.epochs_done = state["epochs_done"]
        self.best = Best(**state["best"])
        self.batch_risk.group_shares = state["group_shares"]
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def fitted(self) -> Fitted:
        """Return the network of the best epoch."""
        return Fitted(
            module=self.networks[0],
            initialised=self.start,
            loss=self.best.mean_risk,
            epoch=self.best.epoch,
            rows=self.data.rows[self.data.used],
        )


def _split_held_out(
    labels: np.ndarray, weights: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split a training set into images to train on and held-out ones: the places of each, in order."""
    order = np.arange(len(labels))
    count = round(share * len(labels))
    if share:
        order = np.random.default_rng(seed_for(seed, "held", 0)).permutation(order)
    held_out = np.sort(order[:count])
    used = np.sort(order[count:])
    both_classes = all(len(set(labels[places])) == 2 for places in (held_out, used))
    if share and not (both_classes and weights[used].any()):
        raise ValueError(
            f"held_out is {share:g}, which keeps {count} of {len(labels)} images from training; "
            "both parts need both classes, and the rest a weight above 0: choose another share"
        )
    return used, held_out


def _input_statistics(model: str, inputs: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """The shift and scale by which a network standardises its inputs; ``rows`` are trained on."""
    if inputs.ndim == 2:  # features: each training image counts once, as for linear heads
        features = inputs[torch.tensor(np.unique(rows), device=inputs.device)].float()
        spread = features.std(0, correction=0).clamp_min(1e-6)
        return features.mean(0).cpu(), spread.cpu()
    if get_model(model).maps:  # activations: the pretrained block takes them as they are
        return torch.zeros(1), torch.ones(1)
    return PIXEL_MEAN, PIXEL_SPREAD


def _order(n: int, sampling: np.ndarray | None, seed: int) -> Tensor:
    """The images of an epoch, int64 (n,): all in random order, or n draws in proportion to weights."""
    generator = torch.Generator().manual_seed(seed)
    if sampling is None:
        return torch.randperm(n, generator=generator)
    # By the inverse distribution function: similar weights get similar draws from the same numbers.
    cumulative = torch.as_tensor(sampling, dtype=torch.float64).cumsum(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    places = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    return places.clamp_(max=n - 1)


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate at a step: a linear rise, then a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _take(inputs: Tensor, rows: Tensor, augmentation: torch.Generator | None) -> Tensor:
    """A minibatch; with a generator, its faces are flipped and shifted at random, all in one gather."""
    if augmentation is None:
        return inputs[rows]
    side = inputs.shape[2]
    reach = round(SHIFT * side)  # largest shift in pixels

    def draw(low: int, high: int) -> Tensor:
        shape = (len(rows), 1)
        return torch.randint(low, high, shape, generator=augmentation, device=inputs.device)

    # Which pixel of the photo goes to each pixel of the batch. Shifts repeat the pixels at the edge.
    pixels = torch.arange(side, device=inputs.device)
    y = (pixels + draw(-reach, reach + 1)).clamp(0, side - 1)
    x = (pixels + draw(-reach, reach + 1)).clamp(0, side - 1)
    x = torch.where(draw(0, 2) == 1, side - 1 - x, x)
    channels_last = inputs.permute(0, 2, 3, 1)  # as in memory: a pixel is gathered whole
    batch = channels_last[rows[:, None, None], y[:, :, None], x[:, None, :]]
    return batch.permute(0, 3, 1, 2)


def _retrain_last_layer(
    erm: Fitted,
    *,
    inputs: Tensor,
    rows: np.ndarray,
    labels: np.ndarray,
    people: np.ndarray,
    options: NetworkOptions,
    seed: int,
) -> Fitted:
    """Refit the last layer on random balanced subsets and average over them.

    Deep feature reweighting: Kirichenko, Izmailov & Wilson 2023, "Last Layer Re-Training is Sufficient
    for Robustness to Spurious Correlations", arXiv 2204.02937. A subset has equally many images of
    each class in every identity (``people``).
    """
    rng = np.random.default_rng(seed_for(seed, "subset", 0))
    everyone = np.ones(len(rows), dtype=bool)
    subsets = np.zeros((options.draws, len(rows)), dtype=np.float32)
    for subset in subsets:
        subset[balanced_subset(people, labels, everyone, rng)] = 1
    features = erm.penultimate(inputs, rows)
    heads = fit_heads(features, labels, subsets, options.retrain_l2, device=str(inputs.device))
    network = copy.deepcopy(erm.module)  # other methods can share the ERM network of this seed
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(heads.weight.mean(axis=0, keepdims=True)))
        network.head.bias.copy_(torch.from_numpy(heads.bias.mean(axis=0, keepdims=True)))
    return dataclasses.replace(erm, module=network)


def place(inputs, device: torch.device) -> Tensor:
    """Move inputs to the device, faces with channels last in memory; no copy if they are there."""
    inputs = torch.atleast_1d(as_tensor(inputs, "inputs"))
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs.to(device)


def _deterministic(device: torch.device):
    """On a GPU, make convolutions use deterministic algorithms, the same ones at every run."""
    if device.type == "cpu":  # the flags are global: threads that train at once would mix them up
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)


def _mixed_precision(device: torch.device) -> tuple[Callable, torch.amp.GradScaler]:
    """Autocast and gradient scaler: bfloat16 or else float16 on a GPU, float32 elsewhere."""
    on_gpu = device.type == "cuda"
    has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if has_bfloat16 or not on_gpu else torch.float16
    # float16's small exponents need a scaled loss, bfloat16's do not.
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu and not has_bfloat16)
    return partial(torch.autocast, device.type, dtype=dtype, enabled=on_gpu), scaler


def _checked_rows(rows, n: int) -> np.ndarray:
    """Row numbers of training images as int64 (m,)."""
    rows = array("rows", rows)
    whole = rows.dtype.kind in "iuf" and not (rows % 1).any()
    if rows.ndim != 1 or not (len(rows) and whole and 0 <= rows.min() <= rows.max() < n):
        raise ValueError(
            f"rows must be one or more numbers from 0 to {n - 1}; of a mask take np.flatnonzero"
        )
    return rows.astype(np.int64)


def _check(model, inputs, labels, rows, training, weights, groups, options) -> None:
    """Refuse arguments of :func:`fit` that do not fit together."""
    find("training kind", training, KINDS)
    if not isinstance(options, NetworkOptions):
        raise ValueError(f"options are {type(options).__name__}; make them by read_options")
    if "auto" in (options.epochs, options.weight_decay):
        raise ValueError(
            "epochs or weight_decay is auto; give a number, or choose one by cid.schedule first"
        )
    _check_inputs(model, inputs)
    if labels.shape != (len(inputs),):
        raise ValueError(f"labels have shape {labels.shape}; {len(inputs)} inputs need one each")
    if inputs.is_floating_point():
        _check_finite(inputs, rows)
    present = np.unique(labels[rows])
    if present.tolist() != [0, 1]:
        raise ValueError(
            f"the labels of the training images are {present[:5].tolist()}; both 0 and 1 are needed, "
            "and nothing else"
        )
    grouped = training in ("group-dro", "retrain")
    if grouped and groups is None:
        raise ValueError(f"training of the kind {training} needs groups and none were given")
    _check_per_image("weights", weights, training == "weighted", training, len(rows))
    _check_per_image("groups", groups, grouped, training, len(rows))
    if weights is not None and not (
        np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
    ):
        raise ValueError("weights must be finite, none below 0 and some above")


def _check_offset(offset, training: str, n: int) -> None:
    if training == "offset" and offset is None:
        raise ValueError("training of the kind offset needs an offset and none was given")
    _check_per_image("offset", offset, training == "offset", training, n)
    if offset is not None and not np.isfinite(offset).all():
        raise ValueError("the offset must be a finite number for each training image")


def _check_inputs(model: str, inputs: Tensor) -> None:
    side = get_model(model).side
    maps = get_model(model).maps
    if maps:
        fits = inputs.shape[1:] == maps and inputs.dtype in (torch.float16, torch.float32)
        needed = "(n, {}, {}, {}) float16 or float32".format(*maps)
    elif side is None:
        fits = inputs.ndim == 2 and inputs.dtype == torch.float32
        needed = "(n, d) float32"
    else:
        fits = inputs.shape[1:] == (3, side, side) and inputs.dtype == torch.uint8
        needed = f"(n, 3, {side}, {side}) uint8"
    if not fits:
        dtype = str(inputs.dtype).removeprefix("torch.")
        raise ValueError(
            f"inputs are {tuple(inputs.shape)} {dtype}; the network {model!r} needs {needed}"
        )


def _check_finite(inputs: Tensor, rows: np.ndarray) -> None:
    for batch in torch.tensor(rows).split(SCORE_BATCH):  # in parts, which bounds memory
        values = inputs[batch.to(inputs.device)].flatten(1)
        bad = ~torch.isfinite(values).all(1).cpu()
        if bad.any():
            raise ValueError(
                f"inputs hold NaN or infinite values in row {int(batch[bad][0])}; "
                "leave that image out"
            )


def _check_per_image(name: str, values, wanted: bool, training: str, n: int) -> None:
    """Refuse weights or groups that this kind of training does not use, or not one for each image."""
    if values is None:
        return
    if not wanted:
        raise ValueError(f"training of the kind {training} takes no {name}; leave them out")
    if np.shape(values) != (n,):
        raise ValueError(f"{name} have shape {np.shape(values)}; {n} training images need one each")
