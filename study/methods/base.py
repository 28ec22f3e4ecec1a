"""What a method is, what it may look at while it weighs, and what it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cid.settings import Options

if TYPE_CHECKING:  # torch takes seconds to import, and only those who train need it
    from cid.heads import Heads, StandardisedFeatures


@dataclass(frozen=True)
class Sample:
    """What a method may look at: one training set of n images."""

    embeddings: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,)
    identities: np.ndarray | None  # (n,) for methods that declare that they use them, else None
    shared: dict = field(default_factory=dict)  # results that methods of one training set share

    def once(self, key, compute: Callable[[], Any]):
        """Return what ``compute`` returns; it is computed by whichever method asks first."""
        return _once(self.shared, key, compute)


def _once(shared: dict, key, compute: Callable[[], Any]):
    if key not in shared:
        shared[key] = compute()
    return shared[key]


@dataclass(frozen=True)
class NoSettings(Options):
    """For methods with nothing to set."""


def uniform_weights(sample: Sample, settings: Options) -> np.ndarray:
    """Give every image the same weight."""
    return np.ones(len(sample.labels))


def fit_weighted(stack: TrainingStack, weights, needed, settings: Options) -> Heads:
    """Train heads whose losses are weighted, and nothing more."""
    return stack.fit_each([weights])[0]


@dataclass(frozen=True)
class Method:
    """A way to train without, or with, identity labels."""

    name: str  # in params.yaml
    title: str  # in figures and tables
    colour: str  # in figures
    # Labels of the training set that weights or groups are made of: "class", "identity", or neither.
    # (Every method trains on the class labels.)
    uses: tuple[str, ...]
    summary: str  # one line for the report
    source: str = ""  # where it is from
    # Weights (n,) of mean 1 of a training set. The settings are keys of ``weights`` of params.yaml.
    weigh: Callable[[Sample, Any], np.ndarray] = uniform_weights
    weigh_settings: type[Options] = NoSettings
    # What it needs besides weights, one number an image: int codes of groups, float log-odds of class 1
    # that are added to the logits, or the float weights of a rival; and how that is computed.
    needs: Literal["groups", "offset", "rival"] | None = None
    needed: Callable[[Sample, Any], np.ndarray] | None = None
    # One linear head a training set. The settings are keys of ``train.robust`` of params.yaml.
    fit: Callable[[TrainingStack, np.ndarray, np.ndarray | None, Any], Heads] = fit_weighted
    fit_settings: type[Options] = NoSettings
    # How networks are trained, a key of :data:`cid.options.KINDS`; None: it trains linear heads only.
    network: str | None = "weighted"
    # Whether its form is for two classes only.
    two_classes: bool = False
    # Values of its settings that :mod:`study.tune` tried, on development people.
    tried: Mapping[str, list] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """The summary with the source, for tables."""
        return f"{self.summary} ({self.source})" if self.source else self.summary

    @property
    def uses_identities(self) -> bool:
        """Whether the true identities of the training set reach this method."""
        return "identity" in self.uses


# Methods whose heads are fitted in one stack. The products have room for this many whatever their
# number, because the last bits of every head depend on the shape of the product. With fewer images than
# features most of the time goes into reading a Gram matrix, and room costs little; with more than 8
# rows NumPy would not treat all rows alike.
STACK = 4
GRAM_STACK = 8


@dataclass(frozen=True)
class TrainingStack:
    """Training sets of some seeds, and how linear heads are fitted to them.

    Weights and groups of a stack have shape (seeds, n), over all images: the weight is 0 off a seed's
    training set, where the group can be any code.
    """

    seeds: np.ndarray  # (seeds,); everything that is drawn at random is a function of them
    features: np.ndarray  # float32 (n, d), of all images, like the labels (n,) of 0 and 1
    labels: np.ndarray
    design: StandardisedFeatures
    l2: float
    through: str = "loss"  # how weights act: in the loss, or as chances of a sampler
    progress: str | None = None
    shared: dict = field(default_factory=dict)  # results that methods on these sets share

    def once(self, key, compute: Callable[[], Any]):
        """As :meth:`Sample.once`."""
        return _once(self.shared, key, compute)

    def sampled(self, weights) -> np.ndarray:
        """Weights as they act: themselves, or how often a sampler with them draws each image."""
        weights = np.asarray(weights, dtype=np.float32)
        if self.through == "loss":
            return weights
        counts = np.zeros_like(weights)
        for row, seed in enumerate(self.seeds):
            chance = weights[row].astype(np.float64)
            rng = np.random.default_rng([int(seed), 1])
            counts[row] = rng.multinomial(np.count_nonzero(chance), chance / chance.sum())
        return counts

    def fit(self, weights, l2: float | None = None, **more) -> Heads:
        """Fit heads under weights of shape (heads, n): :func:`cid.heads.fit_heads`."""
        from cid.heads import fit_heads

        return fit_heads(
            self.features,
            self.labels,
            weights,
            l2 or self.l2,
            design=self.design,
            progress=self.progress,
            **more,
        )

    def fit_each(self, stack: list[np.ndarray]) -> list[Heads]:
        """Fit heads under the weights (seeds, n) of each of several methods.

        A method's heads are the same to the byte whatever stands beside it, as long as all methods
        train on the same images; together they only take less time.
        """
        if self.through == "sampler":  # which images are drawn differs, and with it the shapes
            return [self.fit(weights) for weights in stack]
        size = len(self.seeds)
        few = np.count_nonzero(stack[0], axis=1).max() <= self.features.shape[1]
        together = GRAM_STACK if few else STACK
        fitted = []
        for first in range(0, len(stack), together):
            part = stack[first : first + together]
            heads = self.fit(np.concatenate(part), room=together * size)
            fitted += [heads.rows(slice(k * size, (k + 1) * size)) for k in range(len(part))]
        return fitted

    def losses(self, heads: Heads) -> np.ndarray:
        """Cross-entropies ``-log p(label)`` of the images, (heads, n)."""
        return np.logaddexp(0, -heads.logits(self.features) * np.where(self.labels == 1, 1, -1))

    def part(self, weights, share: float) -> np.ndarray:
        """A random ``share`` of each class of every training set, at least one image: bool (seeds, n)."""
        chosen = np.zeros(np.shape(weights), dtype=bool)
        for row, seed in enumerate(self.seeds):
            order = np.random.default_rng([int(seed), 2]).permutation(len(self.labels))
            order = order[weights[row, order] > 0]
            for label in (0, 1):
                members = order[self.labels[order] == label]
                chosen[row, members[: max(1, round(share * len(members)))]] = True
        return chosen
