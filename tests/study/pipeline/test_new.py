"""A first study of the data at hand: what is written passes the checks, and fits the data."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from study import cli
from study.experiment.design import check_draws
from study.faces.dataset import Labels, write_faces
from study.methods.registry import METHODS
from study.pipeline import cost, kept, new, params

ROOT = Path(__file__).parents[3]
CARD = {"name": "mine", "source": "", "licence": "", "attributes": ["hat"], "demographics": []}


def crowd(people, images, share=0.5, unknown=0.0) -> Labels:
    """A data set of labels alone; ``images`` is a number a person, or one for each."""
    rng = np.random.default_rng(0)
    names = np.repeat([f"p{k:04d}" for k in range(people)], images).astype(object)
    labels = (rng.random(len(names)) < share).astype(int)
    names[rng.random(len(names)) < unknown] = None
    frame = pd.DataFrame({"path": [*map(str, range(len(names)))], "identity": names, "hat": labels})
    return Labels(CARD, frame)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    shutil.copy(ROOT / "studies/base-2.yaml", tmp_path / "studies")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return tmp_path


TAIL = np.maximum(1, 150 // np.arange(1, 201))


@pytest.mark.parametrize(
    "data, expected, said",
    [
        # Enough of everything: several levels, many images, and ablations of both.
        (crowd(45, 48), {"kind": "correlation", "images_per_identity": 20, "levels": [0, 0.5, 0.8, 0.9]},
         "45 people have the images for a bias that is built: up to 1 of 20"),
        (crowd(8, 30), {"kind": "correlation", "people": None}, "Fewer than 20 people give little power"),
        (crowd(200, TAIL), {"kind": "natural", "levels": [0.0]}, "Only the data as they are can be studied."),
        (crowd(120, 20, share=0.1), {"kind": "natural", "levels": [0.0]},
         "of the images, so it is the majority of few people or of most."),
        (crowd(120, 20, share=0.9, unknown=0.4), {"kind": "natural"}, "of people whom nobody knows"),
        (crowd(30, 30, unknown=0.1), {"kind": "correlation"}, "Images of unknown people take no part"),
        (crowd(400, 16), {"people": 100, "cohorts": "repeated"}, "so that a training set stays small"),
    ],
    ids=["rich", "few people", "long tail", "rare", "some are known", "most are known", "many people"],
)  # fmt: skip
def test_what_is_written_fits_the_data_and_passes_the_checks(folder, data, expected, said):
    text = new.compose(data, "hat")
    assert said in " ".join(text.replace("\n# ", " ").split())
    (folder / "studies/first.yaml").write_text(text)
    study = params.filled(kept.resolve("first"))
    assert {key: study["bias"][key] for key in expected} == expected
    breadth = study["breadth"]
    notes = check_draws(
        data,
        study
        | {"tasks": breadth["tasks"], "kinds": breadth["kinds"], "level": study["proxies"]["level"]}
        | {"neighbours": "auto", "seeds": 2, "ablation": study["ablation"] | {"seeds": 2}},
    )
    assert notes == []
    methods = {*study["methods"], *breadth["methods"], *study["ablation"]["methods"]}
    uses = {METHODS[name].uses_identities for name in methods}
    natural = study["bias"]["kind"] == "natural"
    all_known = (data.identities() >= 0).all()
    assert uses == ({False} if natural and not all_known else {False, True})
    assert ("images" in study["ablations"]) == (
        study["bias"]["images_per_identity"] > 6 and not natural
    )


def test_names_that_yaml_could_misread_are_quoted():
    names = ["hat", "5_o_Clock_Shadow", "no", "my faces", "it's", "#1"]
    text = "".join(f"- {new._quoted(name)}\n" for name in names)
    assert YAML(typ="safe").load(text) == names


def write(folder, data: Labels) -> None:
    def records():
        for row in data.frame.to_dict("records"):
            grey = np.full((2, 2), int(row["path"]) % 251, np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(grey).save(buffer, "PNG")
            image = {"bytes": buffer.getvalue(), "path": row.pop("path")}
            yield {"image": image} | row

    write_faces(folder / "data", records(), CARD)


def test_the_command_writes_a_study_of_the_data_in_data(folder, capsys, monkeypatch):
    write(folder, crowd(12, 12))
    monkeypatch.setattr(cost, "count_tested", lambda study: {"seen": (10, 200)})
    monkeypatch.setattr(cost, "power", lambda study, tested: f"of {tested['seen'][0]} people.")
    assert cli.main(["new", "first"]) == 0
    out = capsys.readouterr().out
    assert "# Power: of 10 people." in out
    assert "studies/first.yaml is written. Run it: python -m study run first" in out
    study = kept.resolve("first")
    assert (study["data"], study["task"], study["study"]) == ("mine", "hat", "first")
    before = (folder / "studies/first.yaml").read_bytes()
    for arguments, why in (
        (["first"], "studies/first.yaml exists, and is not replaced; take another name"),
        (["base-3"], "'base-3' cannot be the name of a study"),
        (["../x"], "'../x' cannot be the name of a study"),
        (["second", "--task", "hut"], "has no attribute 'hut' (did you mean 'hat'?); it has hat"),
    ):
        assert cli.main(["new", *arguments]) == 1
        assert why in capsys.readouterr().err
    assert (folder / "studies/first.yaml").read_bytes() == before
    assert not (folder / "studies/second.yaml").exists()


def test_where_nobody_is_known_a_study_without_people_is_written(folder, capsys):
    data = crowd(30, 8, unknown=1.1)
    write(folder, data)
    assert cli.main(["new", "first"]) == 0
    said = " ".join(capsys.readouterr().out.replace("\n# ", " ").split())
    assert "No image says who it shows" in said and "48 images are held out" in said
    assert (
        "It needs 20 held-out images whose label is unusual for their like, so 48 may be too few"
        in said
    )
    assert "No power is known before the audit" in said
    study = params.filled(kept.resolve("first"))
    params.check(kept.resolve("first"))
    assert study["bias"]["kind"] == "natural" and study["ablations"] == {}
    methods = {*study["methods"], *study["breadth"]["methods"], *study["ablation"]["methods"]}
    assert not any(METHODS[name].uses_identities for name in methods)
    assert study["bias"]["unseen_share"] == new.HELD_OUT_SHARE


def test_too_few_people_are_refused_with_what_can_be_done():
    why = "0 people have an image of each class .*, and a study needs 3; .* without the column 'identity'"
    with pytest.raises(ValueError, match=why):
        new.compose(crowd(30, 1), "hat")
