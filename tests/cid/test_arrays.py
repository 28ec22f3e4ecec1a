"""Whatever a caller may hand over: as it is meant, or one sentence that names it."""

from __future__ import annotations

import decimal
import fractions

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from cid import align, models, recognition, training
from cid.arrays import class_codes, pick_device
from cid.density import neighbour_width
from cid.heads import StandardisedFeatures, fit_heads
from cid.posterior import label_posterior, without_class_direction
from cid.weights import cid_weights, effective_sample_size, inverse_weights
from study.methods.registry import METHODS, training_needs, training_weights

N = 40
Z = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
Y = np.arange(N) % 2
WORDS = np.where(Y, "b", "a")
THIRD = np.arange(N) == 3
SETTINGS = {
    "tau": 0.05, "power": 2.0, "temper": 2.0, "class_prior": "balanced", "include_self": True, "rarity": 1.0,
    "surprise": "auto", "neighbours": "auto", "posterior_tau": "auto",
    "keep_class_direction": False, "local_scaling": False, "clusters": "auto",
}  # fmt: skip


def sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 250
    return text


LABELS = {
    "list": list(Y),
    "text": WORDS,
    "list of texts": list(WORDS),
    "objects": WORDS.astype(object),
    "truth values": Y == 1,
    "of another order": pd.Series(Y, np.arange(N)[::-1]),
    "categorical": pd.Series(WORDS).astype("category"),
    "nullable": pd.Series(Y).astype("Int64"),
    "arrow": pd.Series(WORDS).astype("string[pyarrow]"),
    "float": Y * 1.0,
    "int and float": np.array([0, 1.0] * 20, object),
    "big-endian": Y.astype(">i4"),
    "unsigned": Y.astype(np.uint64),
    "dates": np.array(["2020-01-01", "2020-01-02"] * 20, "datetime64[D]"),
    "nothing masked": np.ma.array(Y, mask=False),
    "tensor": torch.tensor(Y),
    "with gradient": torch.tensor(Y * 1.0, requires_grad=True),
    "bfloat16": torch.tensor(Y).bfloat16(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_the_same_classes(kind):
    codes, count = class_codes(LABELS[kind], N)
    np.testing.assert_array_equal(codes, Y)
    assert count == 2


def with_third(values, missing) -> list:
    return [missing if third else value for third, value in zip(THIRD, values, strict=True)]


NO_LABELS = {
    "NaN": (np.where(THIRD, np.nan, Y), "hold nan in row 3, which is no class"),
    "infinite": (np.where(THIRD, np.inf, Y), "hold inf in row 3"),
    "NaN object": (np.array(with_third(Y, np.nan), object), "hold nan in row 3"),
    "NaN in a list of texts": (with_third(WORDS, np.nan), "hold nan in row 3"),
    "NaN made a text": (np.array(with_third(WORDS, np.nan)), "hold nan in row 3"),
    "None": (with_third(WORDS, None), "hold None in row 3"),
    "NA": (np.array(with_third(Y, pd.NA), object), "hold <NA> in row 3"),
    "Int64": (pd.Series(with_third(Y, pd.NA)).astype("Int64"), "hold nan in row 3"),
    "boolean": (pd.Series(with_third(Y == 1, pd.NA)).astype("boolean"), "hold <NA> in row 3"),
    "string": (pd.Series(with_third(WORDS, pd.NA)).astype("string"), "hold <NA> in row 3"),
    "arrow": (pd.Series(with_third(WORDS, None), dtype="string[pyarrow]"), "hold <NA> in row 3"),
    "categorical": (pd.Series(with_third(WORDS, None)).astype("category"), "hold nan in row 3"),
    "NaT": (np.array(with_third(["2020"] * N, "NaT"), "datetime64[D]"), "hold NaT in row 3"),
    "masked": (np.ma.array(Y, mask=THIRD), "hold masked values"),
    "measured": (Y + 0.25, "hold 0.25 in row 0, .* cut what is measured at a threshold"),
    "measured objects": ((Y + 0.25).astype(object), "hold 0.25 in row 0"),
    "decimals": (
        [decimal.Decimal(y) + decimal.Decimal("0.5") for y in Y.tolist()],
        "hold 0.5 in row 0",
    ),
    "fractions": ([fractions.Fraction(1 + y, 2) for y in Y.tolist()], "hold 1/2 in row 0"),
    "mixed": (np.array([1, "a"] * 20, object), "mix int and str; let all be of one type"),
    "complex": (Y * 1j, "are complex128; number the classes by integers"),
    "records": (np.zeros(N, [("a", int)]), "are .*; number the classes by integers"),
    "a column": (Y[:, None], r"have shape \(40, 1\)"),
    "one-hot": (np.eye(2)[Y], r"have shape \(40, 2\)"),
    "ragged": ([[1, 2], [1]], "are no array"),
    "a set": (set(Y), "are a set, which has no order"),
    "one for all": (1, r"have shape \(\)"),
    "too few": (Y[:-1], r"have shape \(39,\) but there are 40 samples"),
}


@pytest.mark.parametrize("kind", NO_LABELS)
def test_what_is_no_label_is_named_wherever_it_is_handed_over(kind):
    labels, said = NO_LABELS[kind]
    weights = np.ones((1, N))
    takers = [
        lambda: cid_weights(Z, labels, 0.05),
        lambda: inverse_weights(np.ones(N), labels),
        lambda: label_posterior(Z, labels),
        lambda: without_class_direction(Z, labels),
        lambda: fit_heads(Z, labels, weights, 0.1),
    ]
    if kind != "too few":  # such as erm, which looks at nothing else
        takers += [lambda m=m: training_weights(m, Z, labels, Y, SETTINGS) for m in ("erm", "cid")]
    takers.append(lambda: training_needs("cluster-dro", Z, labels, None, SETTINGS))
    for take in takers:
        with pytest.raises(ValueError, match=f"^labels {said}") as error:
            take()
        sentence(error)
    with pytest.raises(ValueError, match=f"^identities {said}"):
        training_weights("oracle", Z, Y, labels, SETTINGS)


@pytest.mark.parametrize(
    "labels, said",
    [
        (
            np.arange(N),
            f"labels hold another class for each of the {N} samples, as row numbers and ids do",
        ),
        ([f"id-{k}" for k in range(N)], "labels hold another class for each of the"),
        ({0, 1}, "labels are a set, which has no order; give a list, one for each sample"),
        ([{0}, {1}] * (N // 2), "labels hold {0} in row 0, which is no class"),
        ([frozenset({0, 1}), frozenset({0})] * (N // 2), "labels hold frozenset"),
    ],
    ids=["row numbers", "ids", "a set", "a set each", "a frozen set each"],
)
def test_row_numbers_ids_and_sets_are_no_labels(labels, said):
    for take in (cid_weights, label_posterior):
        with pytest.raises(ValueError) as error:
            take(Z, labels)
        assert str(error.value).startswith(said)
        sentence(error)
    several = [0, 1, *range(1, N - 1)]  # many classes, but two images of one
    with pytest.warns(UserWarning, match="different numbers"):
        cid_weights(Z, several, 0.05)


EMBEDDINGS = {
    "list": Z.tolist(),
    "list of arrays": list(Z),
    "list of tensors": [torch.tensor(row) for row in Z],
    "objects": Z.astype(object),
    "float64": Z.astype(float),
    "long": Z.astype(np.longdouble),
    "big-endian": Z.astype(">f4"),
    "by columns": np.asfortranarray(Z),
    "strided": np.repeat(Z, 2, axis=1)[:, ::2],
    "backwards": Z[:, ::-1][:, ::-1],
    "frame": pd.DataFrame(Z),
    "nothing masked": np.ma.array(Z, mask=False),
    "tensor": torch.tensor(Z),
    "with gradient": torch.tensor(Z, requires_grad=True),
    "transposed": torch.tensor(Z.T.copy()).T,
    "tiny": Z * np.float32(1e-30),
    "huge": Z.astype(float) * 1e150,
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_of_any_kind_weigh_the_same(kind):
    given = EMBEDDINGS[kind]
    np.testing.assert_allclose(cid_weights(given, Y, 0.05).tolist(), weights_of(Z), rtol=1e-5)
    settings = SETTINGS | {"neighbours": 3}
    found = training_weights("cid-knn", given, Y, None, settings)
    np.testing.assert_allclose(found, training_weights("cid-knn", Z, Y, None, settings), rtol=1e-4)


def weights_of(embeddings):
    return cid_weights(np.asarray(embeddings), Y, 0.05)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_is_quantised_weighs_as_the_values_that_it_stands_for():
    given = torch.quantize_per_tensor(torch.tensor(Z), 0.02, 0, torch.qint32)
    assert cid_weights(given, Y, 0.05).tolist() == weights_of(given.dequantize()).tolist()


def test_a_big_endian_array_of_doubles_is_computed_in_doubles():
    given = Z.astype(float)
    found = cid_weights(given.astype(">f8"), Y, 0.05)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, cid_weights(given, Y, 0.05))


def replaced(value):
    return np.where(THIRD[:, None], value, Z.astype(float))


NO_EMBEDDINGS = {
    "NaN": (replaced(np.nan), "row 3 holds NaN or infinite"),
    "infinite": (replaced(np.inf), "row 3 holds NaN or infinite"),
    "None": (np.where(THIRD[:, None], None, Z), "row 3 holds NaN or infinite"),
    "zero": (replaced(0), "row 3 has norm 0, so no direction"),
    "overflowing": (replaced(1e300), "row 3 has norm inf, so no direction"),
    "complex": (Z + 0j, r"\(ndarray\) hold no real numbers"),
    "complex tensor": (torch.tensor(Z).cfloat(), r"\(Tensor\) hold no real numbers"),
    "text": (Z.astype(str), r"\(ndarray\) hold no real numbers"),
    "a name of a file": ("z.npy", r"\(str\) hold no real numbers"),
    "missing": (pd.DataFrame(Z).astype("Float32").mask(replaced(9) == 9), r"\(DataFrame\) hold no"),
    "sparse": (scipy.sparse.csr_matrix(Z), r"\(csr_matrix\) hold no real numbers"),
    "masked": (np.ma.array(Z, mask=replaced(9) == 9), "hold masked values"),
    "without data": (torch.tensor(Z).to("meta"), r"\(Tensor\) hold no real numbers"),
    "ragged": ([[1, 2]] * 39 + [[1]], "are no array"),
    "one sample alone": (Z[0], r"have shape \(6,\); \(n, d\) with n and d at least 1 is needed"),
    "three dimensions": (Z[None], r"have shape \(1, 40, 6\)"),
    "no rows": (Z[:0], r"have shape \(0, 6\)"),
    "nothing": (None, r"\(NoneType\) hold no real numbers"),
}


@pytest.mark.parametrize("kind", NO_EMBEDDINGS)
def test_what_is_no_embedding_is_named_wherever_it_is_handed_over(kind):
    given, said = NO_EMBEDDINGS[kind]
    takers = [
        lambda: cid_weights(given, Y, 0.05),
        lambda: neighbour_width(given),
        lambda: label_posterior(given, Y),
        lambda: without_class_direction(given, Y),
    ]
    takers += [
        lambda m=m: training_weights(m, given, Y, None, SETTINGS)
        for m, spec in METHODS.items()
        if not spec.uses_identities and ("tau" in vars(spec.weigh_settings()) or m == "surprise")
    ]
    takers.append(lambda: training_needs("cluster-dro", given, Y, None, SETTINGS))
    for take in takers:
        with pytest.raises(ValueError, match=f"^embeddings ({said})") as error:
            take()
        sentence(error)


SCALARS = [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), 0.5]
NO_NUMBERS = [
    None, "0.5", "", True, np.True_, float("nan"), float("inf"), -1, 10**400, [0.5], np.array([0.5]),
    0.5 + 0j, np.ones((30, 30)),
]  # fmt: skip
WEIGHTS = np.ones((1, N))
NUMBERS = {
    "tau": lambda value: cid_weights(Z, Y, value),
    "power": lambda value: cid_weights(Z, Y, 0.05, power=value),
    "share": lambda value: neighbour_width(Z, share=value),
    "slope": lambda value: label_posterior(Z, Y, scale=3, slope=value).probability,
    "scale": lambda value: label_posterior(Z, Y, scale=value, estimator="kernel").probability,
    "rarity": lambda value: training_weights("cid-knn", Z, Y, None, SETTINGS | {"rarity": value}),
    "surprise": lambda value: training_weights("surprise", Z, Y, None, SETTINGS | {"surprise": value}),
    "train.l2": lambda value: fit_heads(Z, Y, WEIGHTS, value).weight,
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_from_any_scalar_and_nothing_else_is_one(name):
    first, *others = (np.asarray(NUMBERS[name](value)) for value in SCALARS)
    for other in others:
        np.testing.assert_array_equal(first, other)
    for value in NO_NUMBERS:
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be ") as error:
            NUMBERS[name](value)
        sentence(error)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: cid_weights(Z, Y, 1e-10), "tau is 1e-10; it must be a number from 1e-9 to 1e9"),
        (lambda: cid_weights(Z, Y, 0.1, include_self="yes"), "include_self is 'yes'; it must be true"),
        (lambda: cid_weights(Z, Y, 0.1, include_self=2), "include_self is 2; it must be true or false"),
        (lambda: cid_weights(Z, Y, 0.1, device="gpu"), "device is 'gpu'; it must be auto, cpu, cuda"),
        (lambda: cid_weights(Z, Y, 0.1, device="mps"), "device is 'mps', but torch finds no such GPU"),
        (lambda: pick_device("meta"), "device is 'meta', but torch finds no such GPU; use auto or cpu"),
        (lambda: pick_device(None), "device is None; it must be auto"),
        (lambda: neighbour_width(Z, near=0), "near is 0; it must be a whole number of at least 1"),
        (lambda: neighbour_width(Z, near=2.5), "near is 2.5; it must be a whole number"),
        (lambda: label_posterior(Z, Y, scale=2.5), "scale is 2.5; it must be a whole number of at least 1, or auto"),
        (lambda: label_posterior(Z[:3], Y[:3]), "there are 3 samples; scale 'auto' needs 4 at least"),
        (lambda: without_class_direction(Z, Y, neighbours=0), "neighbours is 0; it must be a whole"),
        (lambda: inverse_weights(np.where(THIRD, 0, 1), Y), "density is 0.0 in row 3; above 0 is needed"),
        (lambda: inverse_weights(np.where(THIRD, np.nan, 1), Y), "density is nan in row 3"),
        (lambda: inverse_weights(np.full(N, -np.inf), Y, log=True), "density is -inf in row 0; finite"),
        (lambda: inverse_weights(np.ones((N, 1)), Y), r"density have shape \(40, 1\); \(n,\) with n"),
        (lambda: effective_sample_size(np.zeros(3)), "weights must be finite and not negative"),
        (lambda: effective_sample_size([1, -1]), "weights must be finite and not negative"),
        (lambda: effective_sample_size([1e200]), "weights must be finite"),
        (lambda: effective_sample_size([]), r"weights have shape \(0,\)"),
        (lambda: training_needs("cluster-dro", Z, Y, None, SETTINGS | {"clusters": 0}), "clusters is 0"),
        (lambda: training_needs("cluster-dro", Z, Y, None, SETTINGS | {"clusters": 21}),
         "weights.clusters is 21, but 20 training images are to be clustered; take fewer, or auto"),
        (lambda: training_weights(["cid"], Z, Y, None, SETTINGS), r"method \['cid'\] is unknown"),
        (lambda: training_weights("cid", Z, Y[:-1], None, SETTINGS), "but there are 40 samples"),
        (lambda: training_weights("oracle", Z, Y, Y[:-1], SETTINGS), r"identities have shape \(39,\)"),
        (lambda: StandardisedFeatures(replaced(np.nan), Y), "features hold NaN, infinite or far too large values"),
        (lambda: StandardisedFeatures(replaced(1e300), Y), "features hold NaN, infinite or far too large values"),
        (lambda: StandardisedFeatures(Z, Y, [N + 59]), r"rows are no rows of 40 features \(index 99 is out of bounds"),
        (lambda: cid_weights(Z, Y, 0.1, class_prior=np.ones(2)), "class_prior is array"),
        (lambda: fit_heads(Z, WORDS, WEIGHTS, 0.1), r"labels hold \['a', 'b'\]; 0 and 1 are needed"),
        (lambda: fit_heads(Z, Y, WEIGHTS * 3e38, 0.1), "sample weights hold negative, infinite"),
        (lambda: fit_heads(Z, Y, WEIGHTS[:0], 0.1), "sample weights .* of no head"),
        (lambda: fit_heads(Z, Y, WEIGHTS.astype(str), 0.1), r"sample weights \(ndarray\) hold no real"),
        (lambda: fit_heads(None, Y, WEIGHTS, 0.1), r"features \(\) and sample weights \(1, 40\) disagree"),
        (lambda: fit_heads(Z[:, 1:], Y, WEIGHTS, 0.1, design=StandardisedFeatures(Z, Y)),
         r"features \(40, 5\) .*, a design of features \(40, 6\) disagree"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1, offset=WEIGHTS[0]), "offset must be from .*, one for each head"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1, offset=np.ones((2, N))), "offset must be from -1e"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1, offset=WEIGHTS * np.nan), "offset must be from"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1, offset=WEIGHTS.astype(str)), "offset .* no real numbers"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1, flipped=WEIGHTS * 2), "flipped must be from 0 to 1"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1, groups=-WEIGHTS), "groups must be from 0 to 1e"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1, tolerance="a"), "tolerance is 'a'; it must be a number"),
        (lambda: fit_heads(Z, Y, WEIGHTS, 0.1).logits(Z[0]), r"features have shape \(6,\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_worked_with_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    sentence(error)


def test_heads_are_the_same_whatever_types_torch_is_told_to_compute_in():
    plain = fit_heads(Z, Y, WEIGHTS, 0.1).weight
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(fit_heads(Z, Y, WEIGHTS, 0.1).weight, plain)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(fit_heads(Z, Y, WEIGHTS, 0.1).weight, plain)


# --- networks, crops ------------------------------------------------------------------------------

ROWS, GROUPS, SIDE = np.arange(30), np.arange(30) % 4, np.ones(30)
EPOCH = models.read_options("mlp", {"epochs": 1, "jtt_epochs": 1})
TAKEN = {
    "inputs": [np.asfortranarray(Z), Z[:, ::-1][:, ::-1], Z.astype(">f4"), pd.DataFrame(Z), torch.tensor(Z),
               torch.tensor(Z, requires_grad=True), np.ma.array(Z, mask=False)],
    "labels": [list(Y), Y == 1, Y * 1.0, torch.tensor(Y), pd.Series(Y, np.arange(N)[::-1])],
    "rows": [list(ROWS), ROWS * 1.0, torch.tensor(ROWS), pd.Series(ROWS), ROWS.astype(np.uint8)],
    "weights": [list(SIDE), SIDE > 0, SIDE.astype(object), SIDE.astype(">f8"), torch.tensor(SIDE), 3 * SIDE],
    "groups": [list(GROUPS), GROUPS.astype(str), GROUPS - 2, GROUPS * 10**15, GROUPS * 1.0, pd.Series(GROUPS)],
    "seed": [np.int64(0), torch.tensor(0), 0.0],
}  # fmt: skip
REFUSED = {
    "inputs": [
        (None, r"inputs \(NoneType\) hold no real"), ("z.npy", r"inputs \(str\) hold no real numbers"),
        (replaced(np.nan).astype(np.float32), "inputs hold NaN or infinite values in row 3"),
        (replaced(np.inf).astype(np.float32), "inputs hold NaN or infinite values in row 3"),
        (Z + 0j, "inputs .* hold no real numbers"), (np.ma.array(Z, mask=Z > 1), "inputs hold masked values"),
        (Z.astype(float), r"inputs are \(40, 6\) float64; the network 'mlp' needs \(n, d\) float32"),
    ],
    "labels": [
        (np.where(THIRD, np.nan, Y), "labels of the training images are"), (WORDS, "labels of the training"),
        (Y + 1, "labels of the training images are"), (Y[:, None], r"labels have shape \(40, 1\)"),
        (np.ma.array(Y, mask=THIRD), "labels hold masked values"), (None, r"labels have shape \(\)"),
    ],
    "rows": [
        (value, "rows must be one or more numbers from 0 to 39; of a mask take np.flatnonzero")
        for value in ([], [40], [-1], [0.5, 1], [np.nan, 1], ["a"], ROWS[None], np.arange(N) < 30, None)
    ],
    "weights": [
        (-SIDE, "weights must be finite"), (SIDE * np.inf, "weights must be finite"), (SIDE * 0, "some above"),
        (np.where(ROWS == 1, None, SIDE), "weights must be finite"), (SIDE.astype(str), "hold no real numbers"),
        (SIDE + 0j, "hold no real numbers"), (np.ma.array(SIDE, mask=ROWS == 1), "hold masked values"),
        (1.0, r"weights have shape \(\); 30 training images need one each"),
    ],
    "groups": [
        (np.where(ROWS == 1, np.nan, GROUPS), "groups hold nan in row 1"), (GROUPS[:-1], r"groups have shape \(29"),
        (np.where(ROWS == 1, None, GROUPS), "groups hold None in row 1"),
    ],
    "seed": [(v, "seed is .*; it must be a whole number of at least 0") for v in (-1, None, "0", 2**70, True, 0.5)],
    "options": [({"epochs": 1}, "options are dict; make them by read_options")],
    "device": [("gpu", "device is 'gpu'")],
}  # fmt: skip


def trained(**given):
    how = {"inputs": Z, "labels": Y, "rows": ROWS, "options": EPOCH, "device": "cpu"}
    how |= {"groups": GROUPS, "training": "group-dro"} if "groups" in given else {}
    how |= given
    fitted = training.fit("mlp", *(how.pop(name) for name in ("inputs", "labels", "rows")), **how)
    return fitted.logits(Z, np.arange(N))


@pytest.mark.parametrize("name", TAKEN)
def test_a_network_takes_any_kind_of_the_same(name):
    plain = {"groups": {"groups": GROUPS}}.get(name, {})
    for value in TAKEN[name]:
        np.testing.assert_allclose(trained(**{name: value}), trained(**plain), atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_network_cannot_take_is_one_sentence(name):
    for value, said in REFUSED[name]:
        with pytest.raises(ValueError, match=said) as error:
            trained(**{name: value})
        sentence(error)


PHOTO = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
POINTS = (align.DLIB_TEMPLATE * 40 + 5)[None]
CROPS = {
    "images": [(None, "images are NoneType; pass a list"), ([PHOTO * 1.0], "image 0 is float64"),
               ([PHOTO[..., 0]], "image 0 is uint8 of shape"), ("a.jpg", "image 0 is str"), ([], "no images")],
    "landmarks": [(POINTS * np.nan, "landmarks of row 0 are not finite"), (POINTS * np.inf, "not finite"),
                  (POINTS + 0j, "landmarks .* no real numbers"), (None, r"landmarks \(NoneType\) hold no"),
                  (np.ma.array(POINTS, mask=POINTS > 20), "landmarks hold masked values"),
                  (POINTS * 0, "or all coincide")],
    "size": [(v, "size is .*; it must be a whole number of at least 1") for v in (0, -5, "150", None, 1.5, True)],
    "batch_size": [(v, "batch_size is .*; it must be a whole number") for v in (0, -1, "2", 0.5)],
    "template": [(v, "template has shape|template .* no real numbers")
                 for v in (POINTS[0][:4], POINTS[0] * np.nan, "dlib", POINTS[0] * 0, None)],
}  # fmt: skip


@pytest.mark.parametrize("name", CROPS)
def test_what_cannot_be_cut_is_one_sentence(name):
    given = {"images": [PHOTO], "landmarks": POINTS, "size": 16, "device": "cpu"}
    cut = align.align(**given)
    for points in (
        POINTS.tolist(),
        torch.tensor(POINTS),
        POINTS.astype(">f8"),
        POINTS.astype(object),
    ):
        assert torch.equal(align.align(**given | {"landmarks": points}), cut)
    for value, said in CROPS[name]:
        with pytest.raises(ValueError, match=said) as error:
            align.align(**given | {name: value})
        sentence(error)


def test_a_network_of_faces_takes_arrays_and_refuses_what_are_no_crops():
    crops = align.align([PHOTO], POINTS, 16, device="cpu")
    how = {"network": "pixels", "device": "cpu"}
    found = recognition.embed(crops.numpy(), **how).embedding
    assert torch.equal(found, recognition.embed(crops, **how).embedding)
    assert torch.equal(found, recognition.embed(crops.float(), **how).embedding)
    for given in (
        crops.double(),
        crops.tolist(),
        None,
        "a.npy",
        crops[0],
        crops.permute(0, 2, 3, 1),
    ):
        with pytest.raises(
            ValueError, match="crops are .*; pixels needs uint8 or float32 of shape"
        ) as error:
            recognition.embed(given, **how)
        sentence(error)
    with pytest.raises(ValueError, match="batch_size is -2"):  # which once ran for ever
        recognition.embed(crops, batch_size=-2, **how)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(
        ValueError, match="device is 'cuda', but torch finds no such GPU; use auto or cpu"
    ):
        pick_device("cuda")


def test_more_neighbours_than_a_byte_counts():
    many = np.random.default_rng(1).normal(size=(400, 3))
    labels = np.arange(400) < 350
    found = label_posterior(many, labels, scale=399, slope=1.0).probability
    prior = 7 / 8
    np.testing.assert_allclose(found[0], (349 + 2 * prior) / (399 + 2))
