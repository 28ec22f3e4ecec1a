"""A study rehearsed on a table of annotations alone; seconds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study import cli
from study.pipeline import kept, rehearse

ROOT = Path(__file__).parents[3]
METHODS = ["erm", "cid", "cid-kernel", "cluster-dro", "oracle"]


def annotations(people=24, images=16) -> pd.DataFrame:
    """People with as many images of either label, and one who always smiles."""
    n = people * images
    who, smiling = np.repeat(np.arange(people), images), np.arange(n) % 2
    return pd.DataFrame(
        {"image": [f"{i}.jpg" for i in range(n)], "identity": who,
         "Smiling": np.where(who == 0, 1, smiling), "Young": (np.arange(n) // 2) % 2}
    )  # fmt: skip


def small() -> dict:
    own = kept.resolve("celeba-smiling-8", ROOT / "studies") | {
        "seeds": 2,
        "bootstrap": 20,
        "methods": METHODS,
    }
    own["bias"] |= {"images_per_identity": 8, "test_per_class": 1, "people": 10}
    own["weights"]["clusters"] = 2
    own["breadth"] = {
        "tasks": ["Smiling", "Young"],
        "kinds": ["correlation"],
        "methods": ["erm", "cid"],
    }
    own["proxies"] = {"level": 0.75, "noise": [0.4], "methods": ["erm", "cid"]}
    own["ablation"] = {"level": 0.75, "seeds": 2, "methods": ["erm", "cid"]}
    own["ablations"] = {"l2": {"setting": "train.l2", "values": [0.1, 1.0]}}
    return own


@pytest.fixture
def few_features(monkeypatch):
    monkeypatch.setattr(rehearse, "PROXY", 16)
    monkeypatch.setattr(rehearse, "TRUNK", 32)


def test_every_step_of_a_study_is_timed_and_weighed(few_features):
    table, own = annotations(), small()
    assert rehearse.people_sentence(table, own) == (
        "384 images of 24 people, 23 of them usable for Smiling: 2 seeds of 2 cohorts of 10 people."
    )
    steps = rehearse.rehearse(table, own, varied=True, show=lambda text: None)
    assert steps["step"].tolist() == [
        "make up", "draw", *(f"weigh: {method}" for method in METHODS), "train", "evaluate",
        "breadth: Smiling, correlation", "breadth: Young, correlation", "proxies", "ablation: l2",
    ]  # fmt: skip
    assert (steps["seconds"] > 0).all() and (steps["GB"] > 0.05).all()


def test_a_rehearsal_with_the_data_as_they_are_trains_on_all_but_the_tests(
    few_features, monkeypatch
):
    own = rehearse.as_natural(small(), seeds=2)
    drawn = []
    draw = rehearse.draw_sets
    monkeypatch.setattr(
        rehearse, "draw_sets", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[0]
    )
    said = []
    rehearse.rehearse(annotations(), own, show=said.append)
    sizes = drawn[0].groupby(["seed", "part"]).size().unstack()
    # Of 23 people who can be tested five are unseen; of the others two images are held out.
    assert sizes["train"].tolist() == [384 - 5 * 16 - 18 * 2] * 2
    assert re.fullmatch(r"draw: \d+\.\d s, \d+\.\d GB", said[1])
    assert rehearse.people_sentence(annotations(), own).endswith("23 of them usable for Smiling.")


def test_what_is_made_up_is_the_same_every_time_and_tells_people_apart(few_features):
    who, labels = np.repeat(["a", "b", "c"], 40), np.tile([0.0, 1.0], 60)
    one, other = rehearse.make_up(who, labels), rehearse.make_up(who, labels)
    np.testing.assert_array_equal(one.proxy, other.proxy)
    np.testing.assert_array_equal(one.features, other.features)
    unit = one.proxy / np.linalg.norm(one.proxy, axis=1, keepdims=True)
    cosine, same = unit @ unit.T, who[:, None] == who
    assert cosine[same].mean() > cosine[~same].mean() + 0.05
    assert cosine[~same].mean() > 0.5  # a direction that all share


def test_the_prediction_is_for_all_seeds_with_the_embedding():
    steps = pd.DataFrame(
        {"step": ["make up", "draw", "train"], "seconds": [999.0, 20, 40], "GB": [3.0, 1, 7.4]}
    )
    said = rehearse.prediction(steps, images=12_000, factor=5)
    assert "| train | 40.0 | 7.4 |" in said
    # 12,000 faces at 100 a second, and five times a minute.
    assert said.endswith(
        "Predicted for the real run: 7 minutes, 2 of them before the first step, to embed the faces "
        "(100 a second on 2 cores), and 7 GB of memory."
    )


@pytest.mark.parametrize(
    "change, arguments, said",
    [
        (lambda t: t.drop(columns="identity"), [], "has no column 'identity'"),
        (lambda t: t.rename(columns={"Smiling": "smiling"}), [], r"has no column 'Smiling' \(did you mean"),
        (lambda t: t.assign(Smiling=t["Smiling"] * 2 - 1), [], "Smiling holds 1, -1; an attribute is 0 or 1"),
        (lambda t: t.assign(identity=t["identity"].where(t.index != 3)), [], "identity is empty in row 3"),
        (lambda t: t, ["--study", "celeba-smilling-8"], "did you mean 'celeba-smiling-8'"),
        (lambda t: t, ["--seeds", "161"], "--seeds is 161; it must be from 2 to the study's 160"),
        (lambda t: t.groupby("identity").head(9), [], "0 of 24 identities are usable with bias.images_per_identity 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_rehearsed_is_one_sentence(
    few_features, tmp_path, monkeypatch, capsys, change, arguments, said
):
    monkeypatch.chdir(ROOT)
    for name in ("table.parquet", "table.csv"):
        table = change(annotations())
        (table.to_parquet if name.endswith("parquet") else table.to_csv)(tmp_path / name)
        assert cli.main(["rehearse", str(tmp_path / name), *arguments]) == 1
        error = capsys.readouterr().err
        assert re.search(said, error) and error.count("\n") == 1


def test_a_file_that_is_no_table_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["rehearse", str(tmp_path / "none.parquet")]) == 1
    assert "none.parquet does not exist" in capsys.readouterr().err
    (tmp_path / "a.parquet").write_text("no parquet")
    assert cli.main(["rehearse", str(tmp_path / "a.parquet")]) == 1
    assert "a.parquet is no parquet file or .csv (" in capsys.readouterr().err


def test_an_index_with_a_name_is_a_column(tmp_path):
    table = pd.DataFrame({"image": ["a", "b"], "identity": ["x", "y"], "hat": [0, 1]})
    table.set_index("identity").to_parquet(tmp_path / "t.parquet")
    found = rehearse.read_annotations(tmp_path / "t.parquet", "hat")
    assert found["identity"].tolist() == ["x", "y"] and found["hat"].tolist() == [0, 1]
    table.set_index(["identity", "image"]).to_parquet(tmp_path / "two.parquet")
    assert rehearse.read_annotations(tmp_path / "two.parquet", "hat")["image"].tolist() == [
        "a",
        "b",
    ]
