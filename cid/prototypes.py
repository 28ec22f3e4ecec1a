"""Ensembles of diverse prototypes in place of a linear head, on features that stay as they are.

To, Wilson, Nguyen, Harmanani, Cooper, Fooladgar, Abolmaesumi, Mousavi & Krishnan, "Diverse Prototypical
Ensembles Improve Robustness to Subpopulation Shift" (2025, arXiv 2505.23027), without any group labels. A
*member* holds one prototype a class and a scale s; the logit of a class is ``-s |x - p|``, x and p of unit
length. It is trained on a random subset with equally many images of each class, and its prototypes are
pushed away from those of the members before it. The ensemble averages the members' probabilities.

Loss, penalties and defaults are those of the authors' package ``dpe`` 0.2.0, with which a benchmark
compares this. As there, the epoch of a member is kept whose worst group is best; without group labels the
groups are the classes, here of all images that are given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cid.arrays import array, as_tensor, class_codes, pick_device
from cid.settings import Count, CountFrom2, NotNegative, Positive, Whole, checked

SHARPNESS = 30.0  # times the logits in training, not in prediction
START = 0.01  # standard deviation of the first prototypes
MOMENTUM = 0.9
SIZE = 10.0  # times the mean squared length of a member's prototypes
EASED = 0.05  # the penalty on likeness falls as 1 / (1 + EASED k) with the number k of members


@dataclass(frozen=True)
class Prototypes:
    """An ensemble of prototypes."""

    places: np.ndarray  # float32 (members, C, d)
    scales: np.ndarray  # float32 (members,)

    def probabilities(self, features) -> np.ndarray:
        """The mean probability of each class over the members, float32 (n, C)."""
        x = unit_rows(as_tensor(features, "features", 2).float())
        total = torch.zeros(len(x), self.places.shape[1])
        for places, scale in zip(self.places, self.scales, strict=True):
            distance = _distances(x, torch.from_numpy(places))
            total += (-float(scale) * distance).softmax(dim=1)
        return (total / len(self.places)).numpy()


def unit_rows(features: Tensor) -> Tensor:
    """Features (n, d) of every image less their mean, at unit length."""
    return normalize(features - features.mean(dim=1, keepdim=True))


def fit_prototypes(
    features,
    labels,
    *,
    members: int = 15,
    epochs: int = 20,
    batch: int = 256,
    learning_rate: float = 1e-3,
    likeness: float = 5e4,
    seed: int = 0,
    device: str = "auto",
) -> Prototypes:
    """Train an ensemble of prototypes, one member after the other.

    >>> features = [[2.0, 0, 0], [1.8, 0.1, 0], [0, 2.0, 0], [0.1, 1.9, 0]]
    >>> found = fit_prototypes(features, [0, 0, 1, 1], members=2, likeness=0, device="cpu")
    >>> found.probabilities(features).argmax(axis=1)
    array([0, 0, 1, 1])

    Parameters
    ----------
    features : array, shape (n, d)
    labels : array, shape (n,)
        Two classes or more.
    members, epochs : int
    batch : int
        Images of a step: the epoch is cut into parts of about this size.
    learning_rate : float
        Of gradient descent with momentum.
    likeness : float
        Strength of the penalty on the products of a member's prototypes with those of earlier members.
    seed : int
        Decides the subsets, the order of the images and the first prototypes.
    device : str
        As in :func:`cid.detection.detect`.

    Raises
    ------
    ValueError
        On unusable features, labels or settings, or a single class.
    """
    members = checked("members", members, Count)
    epochs = checked("epochs", epochs, Count)
    batch = checked("batch", batch, CountFrom2)
    learning_rate = checked("learning_rate", learning_rate, Positive)
    likeness = checked("likeness", likeness, NotNegative)
    seed = checked("seed", seed, Whole)
    device = pick_device(device)
    x = unit_rows(as_tensor(features, "features", 2).float()).to(device)
    if not torch.isfinite(x).all():
        raise ValueError("features hold NaN or infinite values; leave these images out")
    codes, n_classes = class_codes(labels, len(x))
    if n_classes < 2:
        raise ValueError(f"all labels are {array('labels', labels)[0]}; two classes are needed")
    sizes = np.bincount(codes)
    labels = torch.from_numpy(codes).to(device)
    generator = torch.Generator().manual_seed(seed)
    places = x.new_zeros(0, n_classes, x.shape[1])
    scales = []
    for member in range(members):
        subset = _balanced(codes, sizes.min(), generator)
        penalty = likeness / (1 + EASED * max(member - 1, 0))
        start = START * torch.randn(n_classes, x.shape[1], generator=generator)
        own = start.to(device).requires_grad_()
        scale = torch.ones(1, device=device, requires_grad=True)
        optimiser = torch.optim.SGD([own, scale], lr=learning_rate, momentum=MOMENTUM)
        best, kept = -1.0, (own, scale)
        for _ in range(epochs):
            order = subset[torch.randperm(len(subset), generator=generator)]
            for some in order.tensor_split(max(1, len(order) // batch)):
                some = some.to(device)
                loss = _cross_entropy(x[some], labels[some], own, scale)
                loss = loss + SIZE * own.square().sum(dim=1).mean()
                loss = loss + penalty * _likeness(own, places)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            worst = _worst_class(x, labels, own.detach(), n_classes)
            if worst >= best:
                best, kept = worst, (own.detach().clone(), scale.detach().clone())
        places = torch.cat([places, kept[0][None]])
        scales.append(float(kept[1].abs()))
    return Prototypes(places.cpu().numpy(), np.array(scales, dtype=np.float32))


def _balanced(codes: np.ndarray, size: int, generator: torch.Generator) -> Tensor:
    """A random subset with ``size`` images of each class."""
    order = torch.randperm(len(codes), generator=generator).numpy()
    return torch.from_numpy(
        np.concatenate([order[codes[order] == code][:size] for code in range(codes.max() + 1)])
    )


def _distances(x: Tensor, places: Tensor) -> Tensor:
    """Distances (n, C) of vectors of unit length from prototypes, brought to unit length."""
    cosine = x @ normalize(places).T
    return (2 - 2 * cosine).clamp_min(1e-12).sqrt()


def _worst_class(x: Tensor, labels: Tensor, places: Tensor, n_classes: int) -> float:
    """The smallest accuracy of a class, by the nearest prototype."""
    right = (_distances(x, places).argmin(dim=1) == labels).float()
    return min(float(right[labels == code].mean()) for code in range(n_classes))


def _cross_entropy(x: Tensor, labels: Tensor, places: Tensor, scale: Tensor) -> Tensor:
    logits = -SHARPNESS * scale.abs() * _distances(x, places)
    return torch.nn.functional.cross_entropy(logits, labels)


def _likeness(own: Tensor, earlier: Tensor) -> Tensor:
    """How alike the prototypes (C, d) of a member are to those of earlier ones (k, C, d), in the mean."""
    if not len(earlier):
        return own.new_zeros(())
    products = (own * earlier.sum(dim=0)).sum(dim=1) / (own.shape[1] - 1)
    return (products / (len(earlier) + 1)).mean().abs()
