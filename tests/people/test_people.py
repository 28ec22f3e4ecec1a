"""Virtual people: the rasteriser against independent oracles, the labels, and the rendered images.

Whatever renders a face needs the optional package anny and is skipped without it; the rasteriser
and the labels do not. About 30 s, and minutes more the first time anny ever loads on a machine.
"""

from __future__ import annotations

import io
import runpy
import sys
from itertools import combinations
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from people import image, person, raster
from people import records as made
from people.head import load_head
from study import cli
from study.faces.dataset import read_faces

# --- rasteriser ----------------------------------------------------------------------------------


def brute_force(points, triangles, size):
    """Nearest triangle and its depth at every pixel centre, one pixel and one triangle at a time."""
    depth, owner = np.full(size, np.inf), np.full(size, -1)
    margin = np.full(size, np.inf)  # how clear every inside / outside decision was, in pixels
    for number, triangle in enumerate(triangles):
        corners = np.asarray(points, np.float64)[triangle]
        if np.linalg.det(np.column_stack([corners[:, :2], np.ones(3)])) < 0:
            corners = corners[::-1]
        plane = np.linalg.solve(np.column_stack([corners[:, :2], np.ones(3)]), corners[:, 2])
        for i, j in np.ndindex(size):
            place = np.array((j + 0.5, i + 0.5))
            clear = []
            for k in range(3):
                start, end = corners[k, :2], corners[(k + 1) % 3, :2]
                edge = end - start
                clear.append(edge[0] * (place - start)[1] - edge[1] * (place - start)[0])
                clear[-1] /= np.hypot(*edge)
            margin[i, j] = min(margin[i, j], abs(min(clear)))
            here = plane @ (*place, 1)
            if min(clear) > 0 and here < depth[i, j]:
                depth[i, j], owner[i, j] = here, number
    return depth, owner, margin


def test_rasteriser_equals_brute_force():
    rng = np.random.default_rng(0)
    size, count = (24, 31), 12  # higher than wide would hide a swap of rows and columns
    points = rng.uniform(-8, 40, (3 * count, 3))  # some of it off the screen
    triangles = np.arange(3 * count).reshape(-1, 3)
    depth, owner, margin = brute_force(points, triangles, size)

    pixels, seen, weights, found = raster.rasterise(points, triangles, size)
    got = np.full(size, -1)
    got.flat[pixels] = seen
    sure = margin > 1e-3
    assert sure.mean() > 0.9 and (owner >= 0).mean() > 0.3
    np.testing.assert_array_equal(got[sure], owner[sure])

    # Weights must rebuild where the pixel is, and how deep.
    rebuilt = (points[triangles[seen]] * weights[..., None]).sum(1)
    centres = np.stack([pixels % size[1], pixels // size[1]], 1) + 0.5
    np.testing.assert_allclose(rebuilt[:, :2], centres, atol=1e-3)
    np.testing.assert_allclose(rebuilt[:, 2], found, atol=1e-3)
    agreed = sure.ravel()[pixels]
    np.testing.assert_allclose(found[agreed], depth.ravel()[pixels][agreed], atol=1e-3)


def test_rasterised_sphere_has_the_area_and_depth_of_a_sphere():
    around, along, radius, centre = 96, 49, 40.0, np.array((50.0, 48.0, 100.0))
    polar, azimuth = np.meshgrid(
        np.linspace(0, np.pi, along), np.arange(around) * 2 * np.pi / around, indexing="ij"
    )
    unit = np.stack(
        [np.sin(polar) * np.cos(azimuth), np.cos(polar), np.sin(polar) * np.sin(azimuth)], -1
    )
    i, j = np.meshgrid(np.arange(along - 1), np.arange(around), indexing="ij")
    a, b = i * around + j, i * around + (j + 1) % around
    triangles = np.concatenate(
        [
            np.stack(corners, -1).reshape(-1, 3)
            for corners in ((a, b, a + around), (b, b + around, a + around))
        ]
    )
    points = unit.reshape(-1, 3) * radius + centre
    pixels, _, _, depth = raster.rasterise(points, triangles, (100, 104))

    assert len(pixels) == pytest.approx(np.pi * radius**2, rel=0.01)
    away = np.hypot(pixels % 104 + 0.5 - centre[0], pixels // 104 + 0.5 - centre[1])
    inner = away < 0.95 * radius  # the near side of the sphere, and never the far one
    expected = centre[2] - np.sqrt(radius**2 - away[inner] ** 2)
    np.testing.assert_allclose(depth[inner], expected, atol=0.25)


@pytest.mark.parametrize("near", [0, 1])
def test_nearer_triangle_hides_the_farther_in_any_order_and_orientation(near):
    shape = np.array(((1.0, 1.0), (9.0, 1.0), (1.0, 9.0)))
    points = np.concatenate(
        [np.column_stack([shape, np.full(3, 5.0 - (k == near))]) for k in (0, 1)]
    )
    for triangles in ([[0, 1, 2], [3, 4, 5]], [[0, 2, 1], [3, 4, 5]], [[0, 1, 2], [5, 4, 3]]):
        _, seen, _, depth = raster.rasterise(points, np.array(triangles), (10, 10))
        assert set(seen) == {near} and np.all(depth == 4.0)


def test_two_triangles_tile_a_square_without_holes_and_nothing_is_drawn_off_screen():
    points = np.array(((0, 0, 1), (8, 0, 1), (0, 8, 1), (8, 8, 1)), float)
    pixels, _, _, _ = raster.rasterise(points, np.array(((0, 1, 2), (1, 3, 2))), (8, 8))
    np.testing.assert_array_equal(pixels, np.arange(64))
    away, one = points + (20, 0, 0), np.array(((0, 1, 2),))
    pixels, seen, weights, depth = raster.rasterise(away, one, (8, 8))
    assert len(pixels) == len(seen) == len(depth) == 0 and weights.shape == (0, 3)


# --- labels --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    people_drawn = [made.draw_labels(7, index, 48) for index in range(150)]
    return {
        attribute: [np.stack([p[attribute][k] for p in people_drawn]) for k in (0, 1)]
        for attribute in made.ATTRIBUTES
    }


def test_labels_are_balanced_inside_everybody_and_independent(drawn):
    for labels, _ in drawn.values():
        assert set(np.unique(labels)) == {0, 1}
        assert np.all(labels.sum(1) == 24)
    n = 150 * 48
    for one, other in combinations(drawn, 2):
        correlation = np.corrcoef(drawn[one][0].ravel(), drawn[other][0].ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(n)


def test_strengths_follow_labels_and_only_those_of_smiling_overlap(drawn):
    for attribute, (labels, strengths) in drawn.items():
        without, with_ = strengths[labels == 0], strengths[labels == 1]
        assert 0 <= strengths.min() and strengths.max() <= 1
        assert with_.mean() - without.mean() > 0.3
        assert (without.max() > with_.min()) == (attribute == "smiling")
    labels, strengths = drawn["smiling"]
    best = max(((strengths > t) == labels).mean() for t in np.linspace(0, 1, 101))
    assert 0.93 < best < 0.995  # the strength itself does not decide the label


def test_seed_decides_the_labels():
    one, same, other = (made.draw_labels(s, 3, 10)["smiling"][1] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


# --- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"identities": 0}, "identities is 0"),
        ({"images": 7}, "images is 7, which is odd"),
        ({"images": 0}, "images is 0"),
        ({"images": 2.0}, "images is 2.0"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 16}, "size is 16"),
        ({"workers": 0}, "workers is 0"),
        ({"identities": True}, "identities is True"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        made.records(**arguments)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anny", None)
    monkeypatch.setattr(made, "load_head", load_head.__wrapped__)
    with pytest.raises(ImportError, match=r"pip install '\.\[people\]'"):
        made.records(1, 2)


# --- images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head():
    pytest.importorskip("anny")
    return load_head()


@pytest.fixture(scope="module")
def records(head):
    return list(made.records(4, 6, seed=5))


def pixels(record):
    return np.asarray(Image.open(io.BytesIO(record["image"]["bytes"])))


def test_images_decode_and_fit_the_budget(records):
    assert len(records) == 24
    for record in records:
        image = pixels(record)
        assert image.shape == (112, 112, 3) and image.dtype == np.uint8
        assert image.std() > 10
    assert len({record["image"]["path"] for record in records}) == 24
    # 100 people × 48 images in 19 MB
    assert np.mean([len(record["image"]["bytes"]) for record in records]) < 3800


def test_same_seed_same_bytes_for_any_number_of_people(head, records):
    alone = list(made.records(1, 6, seed=5))
    assert alone == records[:6]
    other = list(made.records(1, 6, seed=6))
    for a, b in zip(alone, other, strict=True):
        assert a["image"]["bytes"] != b["image"]["bytes"]


def test_demographics_belong_to_the_person(records):
    for start in range(0, len(records), 6):
        for column in (*made.DEMOGRAPHICS, "age", "identity"):
            assert len({record[column] for record in records[start : start + 6]}) == 1
    for record in records:
        assert 18 <= record["age"] <= 80
        assert record["skin_tone"] in person.SKIN_TONES
    assert {record["gender"] for record in records} == {"female", "male"}
    assert {record["ancestry"] for record in records} == set(person.MELANIN)


def test_people_differ_in_shape_and_colour(head):
    somebody = [person.make_person(head, 5, index) for index in range(3)]
    count = len(head.canonical)
    for one, other in combinations(somebody, 2):
        apart = np.linalg.norm(one.vertices[:count] - other.vertices[:count], axis=1)
        assert apart.mean() > 0.001  # metres
        assert np.abs(one.skin - other.skin).mean() > 0.005


@pytest.fixture(scope="module")
def portrait(head):
    """The same picture of the same person but for the strengths: smooth, and as floats."""
    somebody = person.make_person(head, 5, 1)

    def take(**strengths):
        strengths = {**dict.fromkeys(made.ATTRIBUTES, 0.0), **strengths}
        rng = np.random.default_rng(4)
        return image.render(head, somebody, strengths, rng, 112)[0].astype(float)

    return take


@pytest.mark.parametrize(
    "attribute, lower",
    [("smiling", True), ("mouth_open", True), ("brows_raised", False), ("eyes_closed", False)],
)
def test_each_attribute_changes_its_part_of_the_face(portrait, attribute, lower):
    change = np.abs(portrait(**{attribute: 1.0}) - portrait()).mean((1, 2))
    mouth, eyes = change[64:95].mean(), change[30:60].mean()
    assert (mouth > 1.5 * eyes) if lower else (eyes > 1.5 * mouth)


def test_smile_lifts_the_corners_of_the_mouth(head):
    somebody = person.make_person(head, 5, 1)
    none = dict.fromkeys(made.ATTRIBUTES, 0.0)
    corner = np.argmax(head.canonical[:, 0] * (head.lips > 0.5))

    def height(smiling):
        actions = image.expression(somebody, {**none, "smiling": smiling}, np.random.default_rng(0))
        return sum(v * head.blends[head.blend_index[k]][corner, 2] for k, v in actions.items())

    assert height(0.0) < height(0.5) < height(1.0)
    assert height(1.0) - height(0.0) > 0.004  # metres


# --- the command: here, as a process loads the head once ------------------------------------------


def test_command_without_the_package_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "anny", None)
    monkeypatch.setattr(made, "load_head", load_head.__wrapped__)
    assert cli.main(["people", str(tmp_path / "set"), "--identities", "1", "--images", "2"]) == 1
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_command_writes_a_valid_data_set_the_same_for_any_number_of_workers(
    head, tmp_path, monkeypatch, capfd
):
    folder = tmp_path / "set"
    # A worker starts as a spawned one does, but has the head: it is forked from a process that loaded it.
    workers = get_context("forkserver")
    workers.set_forkserver_preload(["tests.people.loaded"])
    asked = []
    monkeypatch.setattr(made, "get_context", lambda how: asked.append(how) or workers)
    # As `python -m people`, with workers: they cannot import what stands in the __main__ of a package.
    options = "--seed 5 --identities 2 --images 2 --size 64 --workers 2".split()
    monkeypatch.setattr(sys, "argv", ["people", str(folder), *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("people", run_name="__main__", alter_sys=True)
    assert not ended.value.code
    assert capfd.readouterr().out == "" and asked == ["spawn"]
    faces = read_faces(folder)
    assert len(faces) == 4 and faces.image(3).shape == (64, 64, 3)
    alone = [record["image"]["bytes"] for record in made.records(2, 2, seed=5, size=64)]
    assert faces.encoded.to_pylist() == alone
    assert faces.card["attributes"] == list(made.ATTRIBUTES)
    assert faces.card["demographics"] == list(made.DEMOGRAPHICS)
    assert faces.card["seed"] == 5 and faces.card["counts"]["identities"] == 2


def test_command_reports_bad_arguments_in_one_line(head, tmp_path, capsys):
    assert cli.main(["people", str(tmp_path / "set"), "--images", "3"]) == 1
    error = capsys.readouterr().err
    assert "odd" in error and error.count("\n") == 1
