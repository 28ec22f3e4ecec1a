"""The front door of the library: what it offers, and the kind of what it returns."""

from __future__ import annotations

import doctest
import importlib
import warnings

import numpy as np
import pytest
import torch

import cid
from cid import density, posterior, weights
from cid.weights import cid_weights, surprise_weights, two_factor_weights

N = 60
EMBEDDINGS = np.random.default_rng(0).normal(size=(N, 8))
LABELS = np.arange(N) % 2

FUNCTIONS = {
    "cid_weights": lambda z, y: cid.cid_weights(z, y),
    "surprise_weights": lambda z, y: cid.surprise_weights(z, y),
    "two_factor_weights": lambda z, y: cid.two_factor_weights(z, y),
    "class_density": lambda z, y: cid.class_density(z, y),
    "without_class_direction": lambda z, y: cid.without_class_direction(z, y),
    "CIDWeights": lambda z, y: cid.CIDWeights().fit_weights(z, y),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_results_are_of_the_kind_of_the_embeddings(name, dtype):
    wanted = "float64" if dtype == "float64" else "float32"
    embeddings = EMBEDDINGS.astype(dtype)
    array = FUNCTIONS[name](embeddings, LABELS)
    assert isinstance(array, np.ndarray) and array.dtype == wanted
    tensor = FUNCTIONS[name](torch.from_numpy(embeddings), torch.from_numpy(LABELS))
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == getattr(torch, wanted)
    np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-5, atol=1e-6)


def test_a_posterior_is_double_and_of_the_kind_of_the_embeddings():
    array = cid.label_posterior(EMBEDDINGS.astype("float32"), LABELS).probability
    tensor = cid.label_posterior(torch.from_numpy(EMBEDDINGS).float(), LABELS).probability
    assert array.dtype == np.float64 and tensor.dtype == torch.float64
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_two_factors_alone_and_together():
    surprise = surprise_weights(EMBEDDINGS, LABELS, neighbours=5)
    np.testing.assert_array_equal(
        two_factor_weights(EMBEDDINGS, LABELS, rarity=0.0, neighbours=5), surprise
    )
    both = two_factor_weights(EMBEDDINGS, LABELS, neighbours=5, tau=0.1)
    one_class = cid.class_density(EMBEDDINGS, np.zeros(N), 0.1)
    product = surprise / one_class
    total = np.bincount(LABELS, weights=product)
    np.testing.assert_allclose(both, product / total[LABELS] * N / 2, rtol=1e-9)


def test_ages_as_labels_get_a_warning():
    ages = np.arange(N) % 30
    with pytest.warns(
        UserWarning, match="labels hold 30 different numbers, .* such as an age"
    ) as told:
        cid_weights(EMBEDDINGS, ages, 0.1)
    assert {warning.filename for warning in told} == {__file__}  # where the user calls
    with pytest.warns(UserWarning, match="30 different numbers"):
        surprise_weights(EMBEDDINGS, ages)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cid_weights(EMBEDDINGS, ages % 20, 0.1)
        cid_weights(EMBEDDINGS, ages.astype(str), 0.1)  # names of classes


def test_the_package_offers_what_it_lists():
    for name in cid.__all__:
        assert callable(getattr(cid, name))
    assert set(cid.__all__) <= set(dir(cid))
    with pytest.raises(AttributeError, match="'cid' has no attribute 'cid_weight'"):
        _ = cid.cid_weight
    for module, name in ((density, "cid_weights"), (posterior, "surprise_weights")):
        with pytest.warns(DeprecationWarning, match=rf"{name} moved to cid.weights.{name}"):
            assert getattr(module, name) is getattr(weights, name)


MODULES = [
    "cid",
    "cid.weights",
    "cid.factors",
    "cid.density",
    "cid.posterior",
    "cid.kin",
    "cid.moved",
    "cid.heads",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
