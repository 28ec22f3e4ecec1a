"""The factors of the weights of one training set, all from one product of its embeddings.

Kernel width, densities, class direction and label posterior each compare all samples with all. While a set
is small, :class:`Factors` does it once. The values are those of :mod:`cid.density` and
:mod:`cid.posterior`, but for rounding.
"""

from functools import cached_property

import numpy as np
import torch

from cid.arrays import class_codes, like, unit_vectors
from cid.density import class_density, kernel_sums, width_among
from cid.pairs import Pairs
from cid.posterior import (
    Estimator,
    Posterior,
    Slope,
    class_directions,
    of_kind,
    posterior_among,
    two_classes,
)
from cid.precision import true_float32
from cid.settings import Truth, WidthOrAuto, checked


class Factors:
    """Widths, densities and label posteriors of one training set.

    >>> factors = Factors([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1])
    >>> factors.density(tau=0.1).round(2)
    array([0.49, 0.49, 0.49, 0.49])

    Parameters
    ----------
    embeddings, labels, device
        As in :func:`cid.density.class_density`.

    Raises
    ------
    ValueError
        As the functions that each method names.
    """

    @true_float32()
    def __init__(self, embeddings, labels, device: str = "auto"):
        self.embeddings = embeddings
        self.labels = labels
        self.device = device
        unit = unit_vectors(embeddings, device)
        codes, _ = class_codes(labels, len(unit))
        self.pairs = Pairs(unit, codes, keep=True)
        self.sums: dict[float, np.ndarray | None] = {}  # of the kernel, by class, under each width

    @cached_property
    @true_float32()
    def width(self) -> float:
        """Kernel width of the densities: :func:`cid.density.neighbour_width`."""
        return width_among(self.pairs)

    def density(self, tau: float | str = "auto", *, in_class: bool = False, include_self=True):
        """Density of every sample, among all or in its class: :func:`cid.density.class_density`."""
        tau = checked("tau", tau, WidthOrAuto)
        include_self = checked("include_self", include_self, Truth)
        tau = self.width if tau == "auto" else tau
        sums = self._kernel_sums(tau) if include_self else None
        if sums is None:
            labels = self.labels if in_class else np.zeros(len(self.pairs), dtype=int)
            return class_density(
                self.embeddings, labels, tau, include_self=include_self, device=self.device
            )
        codes = self.pairs.codes
        if in_class:
            density = sums[np.arange(len(codes)), codes] / np.bincount(codes)[codes]
        else:
            density = sums.sum(axis=1) / len(codes)
        density = self.pairs.in_rows(np.minimum(density, 1.0))
        return like(torch.from_numpy(density), self.embeddings)

    @true_float32()
    def _kernel_sums(self, tau: float) -> np.ndarray | None:
        """Sums (n, C) of the kernel; None where :func:`class_density` knows better how."""
        if self.pairs.kept is None:
            return None
        if tau not in self.sums:
            self.sums[tau] = kernel_sums(self.pairs, tau)
        return self.sums[tau]

    @cached_property
    @true_float32()
    def cleaned(self) -> Pairs:
        """The pairs :func:`cid.posterior.without_class_direction`."""
        return self.pairs.without(class_directions(self.pairs))

    @true_float32()
    def posterior(
        self,
        *,
        estimator: str = "knn",
        scale: float | str = "auto",
        slope: float | str = "auto",
        keep_class_direction: bool = False,
        local_scaling: bool = False,
    ) -> Posterior:
        """Label posterior :func:`cid.posterior.without_class_direction`, or with it.

        All else is as in :func:`cid.posterior.label_posterior`.
        """
        estimator = checked("estimator", estimator, Estimator)
        slope = checked("slope", slope, Slope)
        keep_class_direction = checked("keep_class_direction", keep_class_direction, Truth)
        local_scaling = checked("local_scaling", local_scaling, Truth)
        two_classes(self.labels, len(self.pairs))  # for its check
        pairs = self.pairs if keep_class_direction else self.cleaned
        found = posterior_among(pairs, estimator, scale, slope, local_scaling)
        return of_kind(found, found.probability, self.embeddings)
