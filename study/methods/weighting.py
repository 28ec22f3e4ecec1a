"""Methods that are weights: uniform, class-balanced, CID and its factors, and the oracles.

The mathematics are :mod:`cid.weights`. Here stand what each method is called, which labels it uses, and
its settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cid.settings import (
    ClassPrior,
    CountOrAuto,
    Exponent,
    ExponentOrAuto,
    Options,
    PositiveOrAuto,
    Truth,
    WidthOrAuto,
)
from study.methods.base import Method, Sample

if TYPE_CHECKING:  # torch takes seconds to import, and names and facts need none of it
    from cid.factors import Factors
    from cid.posterior import Posterior


@dataclass(frozen=True)
class PriorSettings(Options):
    class_prior: ClassPrior = "balanced"  # total weight of a class: all alike, or as found


@dataclass(frozen=True)
class DensitySettings(PriorSettings):
    tau: WidthOrAuto = "auto"  # kernel width on the cosine scale; auto: the nearest neighbours'
    include_self: Truth = True  # count an image in its own density, which bounds its weight


@dataclass(frozen=True)
class PowerSettings(DensitySettings):
    power: Exponent = 2.0  # weight = density ** -power; CID has 1


@dataclass(frozen=True)
class PosteriorSettings(PriorSettings):
    surprise: ExponentOrAuto = "auto"  # of 1 / p(y|z); auto: 1, with the likeliest sharpness
    keep_class_direction: Truth = False  # leave the label's own direction in the proxy


@dataclass(frozen=True)
class NeighbourSettings(PosteriorSettings):
    neighbours: CountOrAuto = "auto"  # that estimate p(y|z)
    local_scaling: Truth = False  # cosines less how crowded a place is (CSLS)


@dataclass(frozen=True)
class FactorSettings(DensitySettings, PosteriorSettings):
    rarity: Exponent = 1.0  # of 1 / p(z)


@dataclass(frozen=True)
class NeighbourFactorSettings(FactorSettings, NeighbourSettings):
    """Both factors, the posterior among neighbours."""


@dataclass(frozen=True)
class KernelFactorSettings(FactorSettings):
    posterior_tau: PositiveOrAuto = "auto"  # width of the kernel that estimates p(y|z)


@dataclass(frozen=True)
class TemperSettings(PriorSettings):
    temper: Exponent = 1.25  # weight = size ** -temper of a (person, class) cell; the oracle has 1


def factors_of(sample: Sample) -> Factors:
    """What the methods of one training set share."""
    from cid.factors import Factors

    return sample.once("factors", lambda: Factors(sample.embeddings, sample.labels))


def kernel_width(sample: Sample, settings: DensitySettings) -> float:
    """The kernel width of the densities; "auto" is :func:`cid.density.neighbour_width`."""
    return factors_of(sample).width if settings.tau == "auto" else settings.tau


def proxy_density(sample: Sample, settings: DensitySettings) -> np.ndarray:
    """Density (n,) of the proxy embedding, not conditional on the class."""
    return factors_of(sample).density(settings.tau, include_self=settings.include_self)


def density_in_class(sample: Sample, settings: DensitySettings) -> np.ndarray:
    """Density (n,) of the proxy embedding within the class: CID's weights are its inverse."""
    return factors_of(sample).density(
        settings.tau, in_class=True, include_self=settings.include_self
    )


def posterior_of(sample: Sample, settings: PosteriorSettings, estimator: str) -> Posterior:
    """The label posterior that the two-factor methods divide by."""

    def compute():
        neighbours = estimator == "knn"
        return factors_of(sample).posterior(
            estimator=estimator,
            scale=settings.neighbours if neighbours else settings.posterior_tau,
            slope="auto" if settings.surprise == "auto" else 1.0,
            keep_class_direction=settings.keep_class_direction,
            local_scaling=neighbours and settings.local_scaling,
        )

    return sample.once(("posterior", estimator), compute)


def weigh_balanced(sample: Sample, settings: Options) -> np.ndarray:
    from cid.weights import inverse_weights

    return inverse_weights(np.ones(len(sample.labels)), sample.labels)


def weigh_inverse_density(sample: Sample, settings: DensitySettings) -> np.ndarray:
    from cid.weights import inverse_weights

    density = proxy_density(sample, settings)
    return inverse_weights(density, sample.labels, class_prior=settings.class_prior)


def weigh_cid(sample: Sample, settings: DensitySettings) -> np.ndarray:
    from cid.weights import inverse_weights

    density = density_in_class(sample, settings)
    return inverse_weights(density, sample.labels, class_prior=settings.class_prior)


def weigh_cid_power(sample: Sample, settings: PowerSettings) -> np.ndarray:
    from cid.weights import inverse_weights

    density = density_in_class(sample, settings)
    return inverse_weights(
        density, sample.labels, class_prior=settings.class_prior, power=settings.power
    )


def weigh_cid_kernel(sample: Sample, settings: KernelFactorSettings) -> np.ndarray:
    return _two_factors(sample, settings, "kernel")


def weigh_cid_knn(sample: Sample, settings: NeighbourFactorSettings) -> np.ndarray:
    return _two_factors(sample, settings, "knn")


def _two_factors(sample: Sample, settings: FactorSettings, estimator: str) -> np.ndarray:
    """Weights ``1 / (p(z)^rarity p(y|z)^surprise)``: :func:`cid.weights.two_factor_weights`."""
    from cid.weights import inverse_weights, log_product

    logs = log_product(
        posterior_of(sample, settings, estimator).probability,
        proxy_density(sample, settings),
        rarity=settings.rarity,
        surprise=settings.surprise,
    )
    return inverse_weights(logs, sample.labels, class_prior=settings.class_prior, log=True)


def weigh_surprise(sample: Sample, settings: NeighbourSettings) -> np.ndarray:
    """Weights ``1 / p(y|z)^surprise``: :func:`cid.weights.surprise_weights`."""
    from cid.weights import inverse_weights, log_product

    probability = posterior_of(sample, settings, "knn").probability
    logs = log_product(probability, surprise=settings.surprise)
    return inverse_weights(logs, sample.labels, class_prior=settings.class_prior, log=True)


def people_of(sample: Sample, settings: Options) -> np.ndarray:
    """Codes (n,) of the true identities."""
    return np.unique(sample.identities, return_inverse=True)[1]


def cells_of(sample: Sample, settings: Options) -> np.ndarray:
    """Codes (n,) of the true (identity, class) cells."""
    classes, label = np.unique(sample.labels, return_inverse=True)
    return people_of(sample, settings) * len(classes) + label


def _cell_sizes(sample: Sample, settings: Options) -> np.ndarray:
    """Number of images in each image's (identity, class) cell, float64 (n,)."""
    cells = cells_of(sample, settings)
    return np.bincount(cells)[cells].astype(np.float64)


def weigh_oracle(sample: Sample, settings: PriorSettings) -> np.ndarray:
    """Give each (identity, class) cell the same weight, spread over its images."""
    from cid.weights import inverse_weights

    sizes = _cell_sizes(sample, settings)
    return inverse_weights(sizes, sample.labels, class_prior=settings.class_prior)


def weigh_oracle_tempered(sample: Sample, settings: TemperSettings) -> np.ndarray:
    """Weigh each image by a power of the size of its (identity, class) cell."""
    from cid.weights import inverse_weights

    return inverse_weights(
        _cell_sizes(sample, settings),
        sample.labels,
        class_prior=settings.class_prior,
        power=settings.temper,
    )


ERM = Method(
    name="erm",
    title="ERM",
    colour="#4d4d4d",
    uses=(),
    summary="every image counts the same",
    tried={"train.l2": [0.03, 0.1, 0.3, 1.0]},
)
BALANCED = Method(
    name="balanced",
    title="Class-balanced",
    colour="#8c8c8c",
    uses=("class",),
    summary="every class counts the same",
    weigh=weigh_balanced,
)
INVERSE_DENSITY = Method(
    name="inverse-density",
    title="Inverse density",
    colour="#cc79a7",
    uses=("class",),
    summary="inverse density of the proxy embedding, not conditional on the class",
    weigh=weigh_inverse_density,
    weigh_settings=DensitySettings,
)
CID = Method(
    name="cid",
    title="CID",
    colour="#d55e00",
    uses=("class",),
    summary="inverse density of the proxy embedding within the class",
    source="Qi & Ardeshir 2023",
    weigh=weigh_cid,
    weigh_settings=DensitySettings,
    tried={"weights.tau": [0.003, 0.005, 0.01, 0.02, 0.05, "auto"]},
)
CID_POWER = Method(
    name="cid-power",
    title="CID, sharpened",
    colour="#8c3b00",
    uses=("class",),
    summary="CID weights raised to a power",
    weigh=weigh_cid_power,
    weigh_settings=PowerSettings,
    tried={"weights.power": [0.5, 1.0, 1.5, 2.0, 3.0, 4.0]},
)
CID_KERNEL = Method(
    name="cid-kernel",
    title="CID, two factors (kernel)",
    colour="#e69f00",
    uses=("class",),
    summary="rarity times label surprise, the label posterior by a kernel of its own width",
    weigh=weigh_cid_kernel,
    weigh_settings=KernelFactorSettings,
    tried={"weights.posterior_tau": [0.005, 0.01, 0.02, "auto"]},
)
CID_KNN = Method(
    name="cid-knn",
    title="CID, two factors (k-NN)",
    colour="#56b4e9",
    uses=("class",),
    summary="rarity times label surprise, the label posterior among nearest neighbours",
    weigh=weigh_cid_knn,
    weigh_settings=NeighbourFactorSettings,
    tried={"weights.rarity": [0.0, 0.5, 1.0, 2.0]},
)
SURPRISE = Method(
    name="surprise",
    title="Label surprise (k-NN)",
    colour="#0072b2",
    uses=("class",),
    summary="the second factor alone: inverse label posterior among nearest neighbours",
    weigh=weigh_surprise,
    weigh_settings=NeighbourSettings,
    tried={
        "weights.neighbours": [3, 5, 10, 20, "auto"],
        "weights.surprise": [0.5, 1.0, 2.0, 4.0, "auto"],
        "weights.keep_class_direction": [False, True],
    },
)
ORACLE = Method(
    name="oracle",
    title="Oracle",
    colour="#009e73",
    uses=("class", "identity"),
    summary="every (identity, class) cell counts the same, by the true identities",
    weigh=weigh_oracle,
    weigh_settings=PriorSettings,
)
ORACLE_TEMPERED = Method(
    name="oracle-tempered",
    title="Oracle, tempered",
    colour="#66c2a5",
    uses=("class", "identity"),
    summary="a cell weighs by a power of its size, by the true identities",
    weigh=weigh_oracle_tempered,
    weigh_settings=TemperSettings,
    tried={"weights.temper": [0.5, 0.75, 1.0, 1.25, 1.5, 2.0]},
)
