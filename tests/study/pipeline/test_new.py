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
        (crowd(400, 16), {"people": 100, "cohorts": "repeated"}, "so that a training set stays small"),
    ],
    ids=["rich", "few people", "long tail", "rare", "some are known", "many people"],
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
    monkeypatch.setattr(cost, "power", lambda study, tested: f"of {', '.join(tested)} people.")
    assert cli.main(["new", "first"]) == 0
    out = capsys.readouterr().out
    assert "# Power: of seen, unseen people." in out
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


@pytest.mark.parametrize(
    "data, why",
    [
        (crowd(5, 4, unknown=1.1), "no image of the data set says who it shows; a study tests models person "
         "by person, so name .* `python -m cid weigh` and judge models by `python -m cid audit`"),
        (crowd(30, 1), "0 people have an image of each class to train and one to test, and a study needs 3"),
    ],
    ids=["nobody is known", "one image a person"],
)  # fmt: skip
def test_where_no_study_can_be_made_the_audit_is_named(data, why):
    with pytest.raises(ValueError, match=why):
        new.compose(data, "hat")
