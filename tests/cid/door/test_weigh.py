"""`python -m cid weigh`: embeddings and labels in, a weight or a reason for every row out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cid import cid_weights, effective_sample_size, large, surprise_weights, two_factor_weights


@pytest.mark.parametrize(
    "method, weights",
    [("surprise", surprise_weights), ("cid", cid_weights), ("two-factor", two_factor_weights)],
)
def test_the_weights_are_those_of_the_library_in_the_order_of_the_rows(case, method, weights):
    status, out, _ = case.weigh(f"--method {method}")
    assert status == 0
    found = pd.read_csv("w.csv")
    assert list(found.columns) == ["image", "smiling", "surprise", "trust", "weight", "reason"]
    assert list(found["image"]) == case.images and found["reason"].isna().all()
    expected = weights(case.z, case.labels)
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-5)
    size = effective_sample_size(expected)
    assert f"effective sample size: {size * 120:,.0f} of 120" in out
    assert "better than chance" in out and "weights can matter" in out


@pytest.mark.parametrize(
    "method, weights",
    [("surprise", surprise_weights), ("cid", cid_weights), ("two-factor", two_factor_weights)],
)
def test_of_many_images_those_in_likely_places_are_compared_unless_all_are_asked_for(
    case, monkeypatch, method, weights
):
    expected = weights(case.z, case.labels)
    likely = []
    cells = large.likely_neighbours
    monkeypatch.setattr(
        large, "likely_neighbours", lambda *given: likely.append(given) or cells(*given)
    )
    monkeypatch.setattr(large, "MANY", 50)
    for more, said, found_in_cells in (("", "likely places", True), ("--exact", "", False)):
        likely.clear()
        status, _, err = case.weigh(f"--method {method} {more}")
        assert status == 0 and said in err and bool(likely) is found_in_cells
        # Of twelve people the cells are so few that they miss nobody.
        np.testing.assert_allclose(pd.read_csv("w.csv")["weight"], expected, rtol=1e-4)


def test_labels_that_nobody_nearby_tells_are_said_to_be_so(case):
    for seed in range(5):
        case.table["smiling"] = np.random.default_rng(seed).integers(0, 2, 120)
        case.write()
        assert "no better than chance" in case.weigh()[1]


def test_a_row_without_label_or_embedding_keeps_its_place_and_has_a_reason(case):
    case.table["smiling"] = case.table["smiling"].astype(object)
    case.table.loc[3, "smiling"] = None
    case.z[5] = np.nan
    case.z[6] = 0
    case.z[7, 0] = np.inf
    case.write()
    status, out, _ = case.weigh()
    found = pd.read_csv("w.csv")
    assert status == 0 and list(found["image"]) == case.images
    assert found["reason"][3] == "no label" and found["reason"][6] == "its embedding has norm 0"
    assert list(found["reason"][[5, 7]]) == ["its embedding holds NaN or infinite values"] * 2
    rows = [3, 5, 6, 7]
    assert found["weight"].isna().sum() == 4 and found["weight"][rows].isna().all()
    assert found["weight"].mean() == pytest.approx(1)
    assert "left out: 4 of 120 rows (2 x its embedding holds NaN" in out


def test_classes_are_text_or_numbers_in_any_spelling_and_any_number(case):
    case.weigh()
    expected = pd.read_csv("w.csv")["weight"]
    for spelling in ({0: "no", 1: "yes"}, {0: "0.0000", 1: "1.0000"}, {0: False, 1: True}):
        case.table["smiling"] = pd.Series(case.labels).map(spelling)
        case.write()
        assert case.weigh()[0] == 0
        np.testing.assert_array_equal(pd.read_csv("w.csv")["weight"], expected)
    case.table["smiling"] = np.tile(["a", "b", "c", "d"], 30)
    case.write()
    assert "images: 120 of 4 classes (a, b, c, d)" in case.weigh()[1]


def test_tables_are_csv_parquet_or_npy_in_and_out(case):
    case.weigh()
    expected = pd.read_csv("w.csv")["weight"]
    case.table.to_parquet("labels.parquet")
    columns = {"features": list(case.labels[:, None]), "embedding": list(case.z)}
    vectors = pd.DataFrame({"image": case.images, **columns})
    vectors.sample(frac=1, random_state=0).to_parquet("z.parquet")
    words = "weigh --embeddings z.parquet --labels labels.parquet --label smiling -o w.parquet"
    assert case.run(words)[0] == 0
    np.testing.assert_allclose(pd.read_parquet("w.parquet")["weight"], expected, rtol=1e-6)
    np.save("y.npy", case.labels)
    assert case.run("weigh --embeddings z.npy --labels y.npy -o w.npy")[0] == 0
    np.testing.assert_allclose(np.load("w.npy"), expected, rtol=1e-6)
    columns = pd.DataFrame(case.z).assign(image=case.images)
    columns.to_csv("z.csv", index=False)
    case.table.to_csv("labels.csv", index=False, sep=";")
    assert case.run("weigh --embeddings z.csv --labels labels.csv --label smiling -o w.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv("w.csv")["weight"], expected, rtol=1e-4)


def test_an_index_that_pandas_stores_is_a_column_or_no_more_than_row_numbers(case):
    case.weigh()
    expected = pd.read_csv("w.csv")["weight"]
    words = "weigh --embeddings z.npy --labels labels.parquet -o w.csv"
    plain = case.table[["image", "smiling"]]
    for stored in (plain.set_index("image"), plain.set_index("smiling"), plain):
        stored.to_parquet("labels.parquet", index=True)
        assert case.run(words)[0] == 0
        np.testing.assert_allclose(pd.read_csv("w.csv")["weight"], expected, rtol=1e-6)
    vectors = pd.DataFrame(case.z).add_prefix("d").set_index(pd.Index(case.images, name="image"))
    vectors[::-1].to_parquet("z.parquet")
    plain.to_csv("labels.csv")  # with the numbers of its rows
    assert case.run("weigh --embeddings z.parquet --labels labels.csv -o w.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv("w.csv")["weight"], expected, rtol=1e-6)


def shuffled(case):
    case.table = case.table.sample(frac=1, random_state=0)


def test_names_of_embeddings_are_matched_in_any_order(case):
    vectors = pd.DataFrame({"image": case.images, "embedding": list(case.z)})
    vectors.to_parquet("z.parquet")
    case.weigh()
    expected = pd.read_csv("w.csv").set_index("image")["weight"]
    shuffled(case)
    case.write()
    assert (
        case.run("weigh --embeddings z.parquet --labels labels.csv --label smiling -o w.csv")[0]
        == 0
    )
    found = pd.read_csv("w.csv").set_index("image")["weight"]
    np.testing.assert_allclose(found[case.images], expected[case.images], rtol=1e-6)


def numbered(case, **more):
    """A table with a column a number, as pandas writes it with the numbers of its rows."""
    columns = {f"e{place}": case.z[:, place] for place in range(8)}
    pd.DataFrame({"image": case.images, **more, **columns}).to_csv("z.csv")


def test_numbers_of_rows_are_no_part_of_an_embedding(case):
    case.weigh()
    expected = pd.read_csv("w.csv")["weight"]
    numbered(case)
    status, _, err = case.weigh("--embeddings z.csv")
    assert status == 0 and "embeddings: 8 columns of z.csv are taken, 'e0' to 'e7'" in err
    np.testing.assert_allclose(pd.read_csv("w.csv")["weight"], expected, rtol=1e-4)


def test_an_image_that_stands_in_two_rows_counts_once_where_embeddings_are_found_by_name(case):
    numbered(case)
    case.table = pd.concat([case.table, case.table.iloc[[3, 5]]], ignore_index=True)
    case.table.loc[121, "smiling"] = 1 - case.table.loc[121, "smiling"]
    case.write()
    assert case.weigh("--embeddings z.csv")[0] == 0
    reasons = pd.read_csv("w.csv", keep_default_na=False)["reason"]
    assert list(reasons[[3, 120]]) == ["", "listed again in another row"]
    assert list(reasons[[5, 121]]) == ["listed twice with different values"] * 2


@pytest.mark.parametrize(
    "words",
    [
        "weigh --label smiling -o labels.csv",
        "weigh --label smiling -o z.npy",
        "weigh --label smiling -o w.csv --features doubted.csv",
        "leaks -o ./labels.csv",
        "audit --label smiling --predictions out/audit.csv -o out",
    ],
)
def test_nothing_is_written_over_what_is_read(case, words):
    case.predictions.to_csv("doubted.csv", index=False)
    Path("out").mkdir()
    case.predictions.to_csv("out/audit.csv", index=False)
    names = ("labels.csv", "z.npy", "doubted.csv", "out/audit.csv")
    before = [Path(name).read_bytes() for name in names]
    status, _, err = case.run(f"{words} --embeddings z.npy --labels labels.csv")
    assert status == 1 and "would be written over, and it is read here" in err
    assert before == [Path(name).read_bytes() for name in names]


def change(**columns):
    def apply(case):
        case.table = case.table.assign(**columns)

    return apply


def lists(**columns):
    def apply(case):
        made = {name: of(case.z) for name, of in columns.items()}
        pd.DataFrame({"image": case.images, **made}).to_parquet("z.parquet")

    return apply


def rows(count):
    def apply(case):
        case.z = case.z[:count]

    return apply


def embeddings(values):
    def apply(case):
        case.z = values

    return apply


def text(content):
    def apply(case):
        case.write = lambda: Path("labels.csv").write_bytes(content)

    return apply


def pickled(case):
    case.write = lambda: np.save("z.npy", np.array([{}] * 120, dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "spoil, more, said",
    [
        (lambda case: None, "--label smilling", "no column 'smilling' (the label) (did you mean 'smiling'?)"),
        (change(smiling=1), "", "needs two classes at least among the 120 images that can be used; all are '1'"),
        (change(smiling=np.nan), "", "needs two classes at least among the 0 images"),
        (change(smiling=np.linspace(0, 1, 120)), "", "which is no class but a measurement; cut it at a threshold"),
        (change(smiling=np.arange(120)), "", "has one image of each of its 120 classes"),
        (rows(90), "", "z.npy has 90 rows and labels.csv 120; the rows of both must be"),
        (embeddings(np.zeros(120, np.float32)), "", "of shape (120,); embeddings are numbers (n, d)"),
        (embeddings(np.zeros((120, 2, 2))), "", "of shape (120, 2, 2); embeddings are numbers (n, d)"),
        (embeddings(np.full((120, 2), np.nan)), "", "no row can be used (120 x its embedding holds NaN"),
        (embeddings(np.array([["a"] * 3] * 120)), "", "embeddings are numbers (n, d)"),
        (pickled, "", "it holds Python objects"),
        (lambda case: None, "--image file", "no column 'file' (the file of each image)"),
        (lambda case: None, "-o w.xlsx", "w.xlsx ends in none of .csv, .parquet, .pq, .npy"),
        (lambda case: None, "-o labels.csv/w.csv", "labels.csv"),
        (lambda case: None, "--labels gone.csv", "gone.csv does not exist; name a CSV"),
        (lambda case: None, "--labels .", "is a folder; name a CSV"),
        (lambda case: None, "--embeddings gone.npy", "gone.npy does not exist; name a .npy file"),
        (lambda case: None, "--embeddings labels.csv", "labels.csv has the column 'smiling' of labels.csv"),
        (lambda case: None, "--device tpu", "device is 'tpu'; it must be auto, cpu, cuda"),
        (lambda case: numbered(case, smiling=case.labels), "--embeddings z.csv", "z.csv has the column 'smiling' of labels.csv, which would count"),
        (lists(z=lambda z: [*z[:3], z[3][:2], *z[4:]]), "--embeddings z.parquet", "column 'z': row 4 has 2 numbers, others 8"),
        (lists(z=lambda z: [None, *z[1:]]), "--embeddings z.parquet", "column 'z': row 1 has 0 numbers, others 8"),
        (lists(x=list, z=list), "--embeddings z.parquet", "has 2 columns of lists (x, z); call the one of the embeddings 'embedding'"),
        (lambda case: pd.DataFrame({"image": case.images}).to_csv("z.csv"), "--embeddings z.csv", "z.csv holds no embeddings"),
        (text(b"\xff\xfe1"), "", "labels.csv is no text in UTF-8"),
        (text(b""), "", "labels.csv has no rows below its line of column names"),
        (text(b"version https://git-lfs.github.com/spec/v1\noid 1\n"), "", "a Git LFS pointer, get the file by"),
        (text(b"PK\x03\x04"), "", "labels.csv is not a readable CSV (a spreadsheet or an archive)"),
        (change(smiling=[np.inf, 0] * 60), "", "holds 'inf', which is no class but a measurement"),
        (lambda case: Path("z.npz").touch(), "--embeddings z.npz", "z.npz ends in none of .npy, .parquet"),
        (text(b"image,smiling\n1.png\n"), "", "line 2 has 1 cells, but line 1, which names the columns, 2"),
        (text(b"image,smiling,smiling\n1.png,1,0\n"), "", "has two columns 'smiling'; rename or remove one"),
        (text(b"image,smiling\n,1\n"), "", "row 1 names no image in column 'image'; fill it in"),
        (change(weight=np.tile([0, 1], 60)), "--label weight", "the output has a column of its own with this name"),
    ],
)  # fmt: skip
def test_what_cannot_be_weighed_is_refused_in_one_sentence(case, spoil, more, said):
    spoil(case)
    case.write()
    status, _, err = case.weigh(more)
    assert status == 1 and said in err and not Path("w.csv").exists()
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "words, said",
    [
        ("weigh", "the following arguments are required: -o/--output"),
        ("wiegh", "invalid choice: 'wiegh'"),
        ("", "the following arguments are required: COMMAND"),
        ("weigh -o w.csv --method oracle", "invalid choice: 'oracle'"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_and_status_2(case, words, said):
    status, _, err = case.run(words)
    assert status == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words, said",
    [
        ("weigh -o w.csv", "name photographs, or embeddings by --embeddings: one of the two"),
        ("weigh . --embeddings z.npy --labels labels.csv -o w.csv", "one of the two"),
        ("weigh --embeddings z.npy -o w.csv", "the labels of these embeddings are missing"),
        ("weigh --embeddings z.npy --labels labels.csv -o w.csv", "is the label? Name it by --label; it has smiling, split"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(case, words, said):
    status, _, err = case.run(words)
    assert status == 1 and said in err


@pytest.mark.parametrize(
    "labels, said",
    [
        (
            np.r_[np.zeros(118), [1, 1]].astype(int),
            "class '1' has 2 images, which get the total weight",
        ),
        (np.arange(120) // 4, "column 'smiling' holds 30 different numbers, each taken as a class"),
        (
            [f"Ann {row // 4}" for row in range(120)],
            "column 'smiling' holds 30 different texts, such as 'Ann 0', each taken as a class",
        ),
        (np.r_[[-1] * 6, np.tile([0, 1], 57)], "class '-1' (6 images) stands beside 0 and 1"),
    ],
)
def test_what_is_strange_in_labels_is_a_warning(case, labels, said):
    case.table["smiling"] = labels
    case.write()
    status, _, err = case.weigh()
    assert status == 0 and f"warning: {said}" in " ".join(err.split())


def test_duplicate_names_do_not_matter_where_rows_are_matched_by_order(case):
    case.table["image"] = "a.png"
    case.write()
    assert case.weigh()[0] == 0 and len(pd.read_csv("w.csv")) == 120
