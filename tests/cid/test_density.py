"""Density and weights against independent oracles: a float64 brute force and sklearn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KernelDensity

from cid import density, reference
from cid.density import class_density
from cid.weights import cid_weights, effective_sample_size, inverse_weights


def people(n=600, d=32, n_people=25, seed=0, common=2):
    """Clustered vectors, with a common direction of the strength face embeddings have; and labels."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_people, d))
    vectors = common + centres[rng.integers(n_people, size=n)] + 0.4 * rng.normal(size=(n, d))
    return vectors.astype(np.float32), rng.integers(2, size=n)


def exact_density(vectors, labels, tau, include_self=True):
    """The definition in float64, by cid/reference.py, or without an image's own term."""
    vectors = vectors.astype(np.float64)
    if include_self:
        return reference.density(vectors, labels, tau)
    unit = reference.unit(vectors)
    kernel = np.exp((unit @ unit.T - 1) / tau) * (labels[:, None] == labels)
    np.fill_diagonal(kernel, 0)
    return kernel.sum(axis=1) / (np.bincount(labels)[labels] - 1)


@pytest.mark.parametrize("tau", [0.003, 0.01, 0.05, 1.0])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("common", [0, 2])
def test_float32_density_equals_float64_exact_density(tau, include_self, common):
    vectors, labels = people(common=common)
    ours = class_density(vectors, labels, tau, include_self=include_self)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact_density(vectors, labels, tau, include_self), rtol=1e-5)


@pytest.mark.parametrize("tau", [0.003, 0.002, 1e-3, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("precision", ["single", "half"])
def test_a_narrow_kernel_of_images_that_occur_twice_keeps_its_promise(tau, precision):
    vectors, labels = people(d=128, n_people=40)
    twice = np.concatenate([vectors, vectors]), np.concatenate([labels, labels])
    found = class_density(*twice, tau, precision=precision)
    allowed = 1e-3 if precision == "half" else 3e-5
    np.testing.assert_allclose(found, exact_density(*twice, tau), rtol=allowed)


def test_a_caller_that_rounds_products_does_not_round_the_density():
    vectors, labels = people()
    exact = exact_density(vectors, labels, 0.003)
    try:
        torch.set_float32_matmul_precision("medium")
        np.testing.assert_allclose(class_density(vectors, labels, 0.003), exact, rtol=1e-6)
    finally:
        torch.set_float32_matmul_precision("highest")
    width = density.neighbour_width(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(class_density(vectors, labels, 0.003), exact, rtol=1e-6)
        assert density.neighbour_width(vectors) == pytest.approx(width, rel=1e-5)


def test_density_is_sklearns_kernel_density_up_to_a_constant():
    vectors, labels = people(seed=1)
    tau = 0.02
    ours = class_density(vectors, labels, tau)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for c in (0, 1):
        z = unit[labels == c].astype(np.float64)
        theirs = np.exp(
            KernelDensity(kernel="gaussian", bandwidth=np.sqrt(tau)).fit(z).score_samples(z)
        )
        ratio = ours[labels == c] / theirs
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-5)


@pytest.mark.parametrize("block", [7, 64, 599, 600])
def test_blocks_do_not_change_the_result(monkeypatch, block):
    vectors, labels = people()
    whole = class_density(vectors, labels, 0.01)
    monkeypatch.setattr(density, "BLOCK", block)
    np.testing.assert_allclose(class_density(vectors, labels, 0.01), whole, rtol=5e-6)


@pytest.mark.parametrize("chunk", [128, 256, 1024])
@pytest.mark.parametrize("include_self", [True, False])
def test_a_memory_mapped_array_gives_the_same_density(monkeypatch, tmp_path, chunk, include_self):
    monkeypatch.setattr(density, "BLOCK", 64)
    monkeypatch.setattr(density, "CHUNK", chunk)
    vectors, labels = people(n=900)
    np.save(tmp_path / "e.npy", vectors)
    stored = np.load(tmp_path / "e.npy", mmap_mode="r")
    found = class_density(stored, labels, 0.01, include_self=include_self)
    whole = class_density(vectors, labels, 0.01, include_self=include_self)
    assert type(found) is np.ndarray
    np.testing.assert_allclose(found, whole, rtol=5e-6)


def test_a_bad_row_of_a_memory_mapped_array_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(density, "CHUNK", 128)
    vectors, labels = people(n=300)
    vectors[200, 3] = np.nan
    np.save(tmp_path / "e.npy", vectors)
    with pytest.raises(ValueError, match="row 200 holds NaN"):
        cid_weights(np.load(tmp_path / "e.npy", mmap_mode="r"), labels, 0.01)


@pytest.mark.parametrize("tau", [0.01, 0.05])
@pytest.mark.parametrize("common", [0, 2])
def test_half_precision_keeps_weights_to_a_thousandth(tau, common):
    vectors, labels = people(n=1500, d=512, n_people=60, common=common)
    exact = cid_weights(vectors.astype(np.float64), labels, tau)
    found = cid_weights(vectors, labels, tau, precision="half")
    error = np.abs(found / exact - 1).max()
    assert 0 < error < 1e-3


def test_weights_are_the_inverse_density_normalised_in_the_class():
    vectors, labels = people(seed=2)
    p = exact_density(vectors, labels, 0.01)
    expected = np.empty(len(p))
    for c in (0, 1):
        inverse = 1 / p[labels == c]
        expected[labels == c] = inverse / inverse.sum() * len(p) / 2
    np.testing.assert_allclose(cid_weights(vectors, labels, 0.01), expected, rtol=1e-5)


def test_class_priors():
    vectors, _ = people(n=100)
    labels = np.arange(100) < 20
    balanced = cid_weights(vectors, labels, 0.01)
    empirical = cid_weights(vectors, labels, 0.01, class_prior="empirical")
    assert balanced[labels].sum() == pytest.approx(50, rel=1e-5)
    assert empirical[labels].sum() == pytest.approx(20, rel=1e-5)
    for weights in (balanced, empirical):
        assert weights.mean() == pytest.approx(1, rel=1e-5)


def test_power_zero_is_uniform_and_a_large_power_stays_finite():
    vectors, labels = people(n=200)
    flat = cid_weights(vectors, labels, 0.01, power=0, class_prior="empirical")
    np.testing.assert_allclose(flat, 1, rtol=1e-6)
    steep = cid_weights(vectors, labels, 0.001, power=300)
    assert np.isfinite(steep).all() and steep.mean() == pytest.approx(1, rel=1e-5)


def test_a_duplicated_sample_loses_weight():
    vectors, labels = people(n=200)
    before = cid_weights(vectors, labels, 0.01, class_prior="empirical")
    copies = np.r_[np.arange(200), np.repeat(17, 30)]
    after = cid_weights(vectors[copies], labels[copies], 0.01, class_prior="empirical")
    other = np.flatnonzero(labels == labels[17])[0]
    assert after[17] / after[other] < 0.2 * before[17] / before[other]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), scale=st.floats(1e-3, 1e3))
def test_order_and_length_of_the_embeddings_do_not_matter(seed, n, scale):
    rng = np.random.default_rng(seed)
    vectors, labels = rng.normal(size=(n, 8)), rng.integers(3, size=n)
    weights = cid_weights(vectors, labels, 0.1)
    order = rng.permutation(n)
    np.testing.assert_allclose(
        cid_weights(vectors[order], labels[order], 0.1), weights[order], rtol=1e-9
    )
    np.testing.assert_allclose(cid_weights(vectors * scale, labels, 0.1), weights, rtol=1e-7)
    assert (weights > 0).all() and weights.mean() == pytest.approx(1)


def test_include_self_bounds_the_weight_of_an_outlier():
    vectors, _ = people(n=100)
    vectors[0] = -vectors[0]  # as far from everyone as can be
    labels = np.zeros(100, int)
    density = class_density(vectors, labels, 0.01)
    assert density.min() == pytest.approx(1 / 100)
    with pytest.raises(ValueError, match="no neighbour.*raise tau or set include_self"):
        class_density(vectors, labels, 0.0005, include_self=False)


@pytest.mark.parametrize("include_self", [True, False])
def test_a_class_of_one_sample_gets_a_finite_weight(include_self):
    vectors, _ = people(n=50)
    labels = np.r_[1, np.zeros(49, int)]
    weights = cid_weights(vectors, labels, 0.1, include_self=include_self)
    assert np.isfinite(weights).all() and weights[0] == pytest.approx(25)


def test_kind_type_and_labels_of_any_type_are_kept():
    vectors, labels = people(n=40)
    as_array = cid_weights(vectors, labels, 0.01)
    as_tensor = cid_weights(torch.from_numpy(vectors), torch.from_numpy(labels), 0.01)
    assert isinstance(as_array, np.ndarray) and isinstance(as_tensor, torch.Tensor)
    np.testing.assert_array_equal(as_tensor.numpy(), as_array)
    assert cid_weights(vectors.astype(np.float64), labels, 0.01).dtype == np.float64
    assert cid_weights(vectors.astype(np.float16), labels, 0.01).dtype == np.float32
    words = np.where(labels == 1, "smiling", "neutral")
    np.testing.assert_array_equal(cid_weights(vectors, words, 0.01), as_array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 0}, "tau is 0"),
        ({"tau": -1.0}, "tau is -1.0"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"tau": "aut"}, "tau is 'aut'; it must be a number from 1e-9 to 1e9, or auto"),
        ({"labels": np.zeros(9)}, r"labels have shape \(9,\) but there are 10"),
        ({"labels": np.full(10, np.nan)}, "labels hold nan in row 0"),
        ({"embeddings": np.zeros((10, 4))}, "row 0 has norm 0"),
        ({"embeddings": np.full((10, 4), np.nan)}, "row 0 holds NaN or infinite"),
        ({"embeddings": np.full((10, 4), np.inf)}, "row 0 holds NaN or infinite"),
        ({"embeddings": np.ones((0, 4)), "labels": np.ones(0)}, "n and d at least 1"),
        ({"embeddings": np.ones(10)}, "n and d at least 1"),
        ({"class_prior": "even"}, "class_prior is 'even'"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"embeddings": np.ones((10, 4)), "labels": np.zeros(10), "tau": 0.1} | change
    with pytest.raises(ValueError, match=message):
        cid_weights(**arguments)


def test_effective_sample_size():
    assert effective_sample_size([1, 1, 1, 1]) == 1
    assert effective_sample_size([1, 0, 0, 0]) == 0.25


def test_inverse_weights_of_a_hand_worked_case():
    weights = inverse_weights(np.array([1.0, 0.5, 1.0]), np.array([0, 0, 1]))
    np.testing.assert_allclose(weights, [0.5, 1.0, 1.5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    vectors, labels = people(n=5000, d=128)
    gpu = cid_weights(torch.from_numpy(vectors).cuda(), labels, 0.01)
    assert gpu.is_cuda
    np.testing.assert_allclose(
        gpu.cpu(), cid_weights(vectors, labels, 0.01, device="cpu"), rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(128, 40, 16), (37, 64, 16), (1, 1, 3)])
def test_a_product_by_convolution_is_the_product(shape):
    n, m, d = shape
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    half = (v**2).sum(axis=1) / 2
    tensors = [torch.from_numpy(values).float() for values in (u, v, half)]
    found = density.product_by_convolution(*tensors)
    np.testing.assert_allclose(found, u @ v.T - half, atol=1e-5)


def test_by_convolution_the_density_keeps_its_promise(monkeypatch):
    monkeypatch.setattr(density, "convolution_is_faster", lambda: True)
    monkeypatch.setattr(density, "BLOCK", 256)
    vectors, labels = people()
    exact = exact_density(vectors, labels, 0.003)
    np.testing.assert_allclose(class_density(vectors, labels, 0.003), exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel Xeon Processor", "avx512_f": True}, False),
        ({"architecture": "arm64"}, False),
    ],
)
def test_the_processor_alone_decides_how_products_are_computed(monkeypatch, processor, faster):
    decide = density.convolution_is_faster.__wrapped__
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert decide() == (faster and torch.backends.mkldnn.is_available())
