"""Where faces are: BlazeFace's port against its own file, step by step, boxes by hand, and where O-Net looks.
About 10 s on one core."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cid import blazeface, detection
from cid.align import DLIB_TEMPLATE
from cid.tflite import CONVOLUTIONS, Convolution, Graph
from tests.study.faces.test_embed import drawn_face, smooth

FILE = blazeface.place()
REAL = pytest.mark.skipif(not FILE.is_file(), reason="run `python -m study detector`")
DARK = np.zeros((60, 80, 3), np.uint8)


def detect(images, detector="joined", **options):
    return detection.detect(images, detector, device="cpu", progress=False, **options)


@pytest.fixture
def no_file(tmp_path, monkeypatch):
    """Without BlazeFace's file; returns where it would be."""
    monkeypatch.setattr(blazeface, "place", lambda: tmp_path / blazeface.FILE)
    return tmp_path / blazeface.FILE


def convolved(convolution: Convolution, maps: torch.Tensor) -> torch.Tensor:
    """A convolution as TensorFlow pads it: the odd zero at the far edge."""
    kernel = convolution.weight.shape[2]
    stride = convolution.strides[0]
    side = maps.shape[1]
    more = max((-(-side // stride) - 1) * stride + kernel - side, 0) if convolution.same else 0
    ends = (more // 2, more - more // 2) * 2
    weights = torch.tensor(convolution.weight), torch.tensor(convolution.bias)
    maps = F.pad(maps.permute(0, 3, 1, 2), ends)
    return F.conv2d(maps, *weights, stride, groups=convolution.groups).permute(0, 2, 3, 1)


def run_graph(data: bytes, pictures: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of a TensorFlow Lite file, operator by operator, with channels last between them."""
    graph = Graph(data)
    values = {graph.inputs[0]: pictures.permute(0, 2, 3, 1)}
    for operator in graph.operators:
        given = [values.get(tensor) for tensor in operator.inputs]
        maps = given[0]
        if operator.kind == "DEQUANTIZE":
            continue
        if operator.kind in CONVOLUTIONS:
            value = convolved(graph.convolution(operator), maps)
        elif operator.kind == "MAX_POOL_2D":
            value = F.max_pool2d(maps.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        elif operator.kind == "PAD":  # of channels, which the output's shape tells
            value = F.pad(maps, (0, graph.shape(operator.output)[-1] - maps.shape[-1]))
        elif operator.kind == "ADD":
            value = given[0] + given[1]
        elif operator.kind == "RELU":
            value = maps.relu()
        elif operator.kind == "RESHAPE":
            value = maps.reshape(len(maps), *graph.shape(operator.output)[1:])
        else:
            assert operator.kind == "CONCATENATION"
            value = torch.cat(given, 1)
        values[operator.output] = value
    return [values[tensor] for tensor in graph.outputs]


def pictures() -> torch.Tensor:
    """Two drawn faces, a smooth picture and noise, as BlazeFace takes them."""
    shown = [drawn_face(128)[0], drawn_face(128, 0.4, 0.6, 0.2)[0], smooth(128, 128)]
    shown.append(np.random.default_rng(0).integers(0, 256, (128, 128, 3)))
    return torch.tensor(np.stack(shown)).permute(0, 3, 1, 2).float() / 127.5 - 1


@REAL
def test_the_port_of_blazeface_is_its_file_step_by_step():
    batch = pictures()
    expected = run_graph(FILE.read_bytes(), batch)
    with torch.inference_mode():
        coordinates, faces = blazeface.load(torch.device("cpu"))(batch)
    size = abs(expected[0]).max()
    torch.testing.assert_close(coordinates, expected[0], atol=1e-5 * size, rtol=0)
    torch.testing.assert_close(faces, expected[1][..., 0], atol=1e-4, rtol=1e-5)


@REAL
def test_the_port_of_blazeface_gives_what_its_interpreter_gives():
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(str(FILE), num_threads=1)
    interpreter.allocate_tensors()
    batch = pictures()[:3]
    with torch.inference_mode():
        coordinates, faces = blazeface.load(torch.device("cpu"))(batch)
    for row, picture in enumerate(batch):
        (given,) = interpreter.get_input_details()
        interpreter.set_tensor(given["index"], picture.permute(1, 2, 0)[None].numpy())
        interpreter.invoke()
        outputs = [interpreter.get_tensor(o["index"]) for o in interpreter.get_output_details()]
        by_size = {output.shape[-1]: output[0] for output in outputs}
        np.testing.assert_allclose(coordinates[row], by_size[16], atol=2e-3)
        np.testing.assert_allclose(faces[row], by_size[1][:, 0], atol=2e-3)


def test_places_lie_in_the_middle_of_the_cells_of_two_grids():
    points = blazeface.anchors()
    assert points.shape == (896, 2)
    np.testing.assert_allclose(points[:4] * 128, [(4, 4), (4, 4), (12, 4), (12, 4)])
    np.testing.assert_allclose(points[511] * 128, (124, 124))
    np.testing.assert_allclose(points[512:519] * 128, [*[(8, 8)] * 6, (24, 8)])


def numbers(boxes) -> tuple[np.ndarray, np.ndarray]:
    """What BlazeFace says of boxes given as place: (left, top, right, bottom in px, score)."""
    coordinates = np.zeros((896, 16))
    faces = np.full(896, -100.0)
    for place, (*box, score) in boxes.items():
        low, high = np.array(box[:2]), np.array(box[2:])
        coordinates[place, :2] = (low + high) / 2 - blazeface.anchors()[place] * 128
        coordinates[place, 2:4] = high - low
        faces[place] = np.log(score / (1 - score))
    return coordinates, faces


def test_boxes_of_one_face_are_joined_by_their_scores():
    found = blazeface.decode(
        *numbers(
            {
                7: (20, 20, 60, 60, 0.6),  # shares 1200 / 2000 with the next
                300: (30, 20, 70, 60, 0.9),
                600: (80, 80, 120, 120, 0.8),
                700: (0, 0, 30, 30, 0.4),  # unsure
            }
        )
    )
    np.testing.assert_allclose(found.scores, [0.9, 0.8])
    np.testing.assert_allclose(found.boxes * 128, [(26, 20, 66, 60), (80, 80, 120, 120)], atol=1e-9)


def test_where_no_place_is_sure_the_surest_is_the_face():
    found = blazeface.decode(*numbers({7: (20, 20, 60, 60, 0.2), 300: (30, 20, 70, 60, 0.3)}))
    np.testing.assert_allclose(found.scores, [0.3])
    np.testing.assert_allclose(found.boxes * 128, [(30, 20, 70, 60)])


class Spots:
    """In O-Net's place: five spots of a picture, by their brightness, and an edge that moves inwards."""

    onet = staticmethod(lambda squares: Spots.see(squares))
    looks: list = []

    @staticmethod
    def see(squares):
        grey = squares.mean(1) / 0.0078125 + 127.5
        Spots.looks.append(grey)
        n, _, side = grey.shape
        edges = torch.tensor([0.1, 0.1, -0.1, -0.1]).repeat(n, 1)  # the box lies a tenth within
        places = (torch.arange(side) + 0.5) / side
        across = (grey.mean(1) * places).sum(1) / grey.mean(1).sum(1)
        down = (grey.mean(2) * places).sum(1) / grey.mean(2).sum(1)
        around = torch.tensor([-0.1, 0.1, 0, -0.1, 0.1])  # five points, in the middle the spot
        points = torch.cat([across[:, None] + around, down[:, None] + around], 1)
        return edges, points, torch.full((n, 2), 0.5)


def test_o_net_looks_at_the_box_and_then_at_its_own_and_points_lie_in_the_photo(monkeypatch):
    """A bright spot, whose place in the square comes back as its place in the photo."""
    photos = [np.zeros((100, 160, 3), np.uint8), np.zeros((50, 40, 3), np.uint8)]
    photos[0][40:46, 90:96] = 255
    photos[1][20:24, 10:14] = 255
    boxes = np.array([(60, 20, 110, 70), (-10, 5, 30, 45)], float)  # the second leaves the photo
    monkeypatch.setattr(detection, "_load_mtcnn", lambda device, thread: Spots)
    monkeypatch.setattr(
        detection, "_blazeface", lambda *_: (boxes, np.array([0.9, 0.4]), np.array([1, 0]))
    )
    monkeypatch.setattr(Spots, "looks", [])
    monkeypatch.setattr(detection, "at_hand", lambda name: name)
    found = detect(photos)
    np.testing.assert_allclose(found.landmarks.mean(1), [(92.5, 42.5), (11.5, 21.5)], atol=0.3)
    assert found.found.tolist() == [True, False]
    np.testing.assert_allclose(found.probability, [0.9, 0.4])
    assert len(Spots.looks) == 2
    # The second square is the box of the first: .8 of its side, so that a spot is larger in it.
    bright = [look.mean((1, 2)) for look in Spots.looks]
    for row in range(2):
        assert bright[1][row] / bright[0][row] == pytest.approx(0.8**-2, rel=0.05)


@REAL
@pytest.mark.parametrize("cut", [0, 26])
def test_a_drawn_face_is_found_though_the_picture_ends_near_it(cut):
    image, points = drawn_face(160, 0.52, 0.5, 0.3)
    image = image[cut : 160 - cut, cut : 160 - cut]
    found = detect([image, np.pad(image, ((30, 0), (0, 50), (0, 0)), mode="edge")])
    assert found.found.all() and found.landmarks.dtype == np.float32
    np.testing.assert_allclose(found.landmarks[0], points - cut, atol=6)
    np.testing.assert_allclose(found.landmarks[1], points - cut + (0, 30), atol=6)


@REAL
@pytest.mark.parametrize("image", [DARK, np.full((3, 90, 3), 200, np.uint8), smooth(40, 7)])
def test_a_photo_without_a_face_is_cropped_all_the_same(image):
    found = detect([image])
    assert not found.found[0] and np.isfinite(found.landmarks).all()
    assert (np.ptp(found.landmarks[0], axis=0) > 0.1).all()


@REAL
def test_where_blazeface_sees_nothing_more_than_the_picture_is_cropped():
    found = detect([DARK])
    assert found.probability[0] < detection.NOTHING
    side = detection.WIDE_FALLBACK_SIDE * 60
    expected = DLIB_TEMPLATE * side + (np.array([80, 60]) - side) / 2 - 0.5
    np.testing.assert_allclose(found.landmarks[0], expected, atol=1e-4)


@REAL
def test_rows_do_not_depend_on_the_batch():
    images = [drawn_face(side, 0.45 + 0.02 * side / 100)[0] for side in (96, 112, 112, 150, 96)]
    together = detect(images)
    for size in (1, 2):
        apart = detect(images, batch_size=size)
        np.testing.assert_allclose(apart.landmarks, together.landmarks, atol=0.01)
        assert apart.found.tolist() == together.found.tolist()


def test_without_the_file_mtcnn_with_a_margin_stands_in(no_file, monkeypatch):
    assert detection.at_hand("joined") == "margin" and detection.at_hand("mtcnn") == "mtcnn"
    with pytest.raises(FileNotFoundError, match=f"{no_file} is missing; python -m study detector"):
        blazeface.load(torch.device("cpu"))
    ran = []
    for name in detection.DETECTORS:
        stand_in = lambda images, *_, name=name: ran.append(name)  # noqa: E731
        monkeypatch.setitem(detection.DETECTORS, name, stand_in)
    detect([DARK])
    assert ran == ["margin"]


def test_another_file_in_its_place_is_refused(no_file):
    no_file.write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{no_file} has another SHA-256 than .*; remove it"):
        blazeface.load(torch.device("cpu"))


def test_an_unknown_detector_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="detector 'mtcn' is unknown .did you mean 'mtcnn'"):
        detect([DARK], "mtcn")


def test_a_margin_is_added_and_its_pixels_are_taken_off_again(monkeypatch):
    """A detector that sees spots in wide pictures alone; the other photo gets the whole of its middle."""
    seen = []

    def spots(batch):
        seen.append(tuple(batch.shape[2:]))
        for picture in batch.mean(1):
            if picture.max() < 200:
                yield np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2))
                continue
            down, across = np.argwhere(picture.numpy() > 0.5 * float(picture.max())).mean(0)
            points = np.tile([across, down], (1, 5, 1))
            yield np.array([[0.0, 0, 9, 9]]), np.array([0.95]), points

    monkeypatch.setattr(detection, "_mtcnn", spots)
    spot = np.zeros((90, 120, 3), np.uint8)
    spot[50:60, 20:30] = 255
    found = detect([spot, np.zeros((90, 120, 3), np.uint8)], "margin")
    assert found.found.tolist() == [True, False] and found.faces.tolist() == [1, 0]
    np.testing.assert_allclose(found.landmarks[0], [(24.5, 54.5)] * 5, atol=0.7)
    side = detection.FALLBACK_SIDE * 90
    expected = DLIB_TEMPLATE * side + (np.array([120, 90]) - side) / 2 - 0.5
    np.testing.assert_allclose(found.landmarks[1], expected, atol=1e-4)
    assert len(seen) == 2 and seen[0][0] / seen[0][1] == pytest.approx(162 / 192, abs=0.01)


def test_a_caller_that_lets_torch_round_moves_no_landmark():
    photo = smooth(60, 80, 0)
    expected = detect([photo], "mtcnn").landmarks
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(detect([photo], "mtcnn").landmarks, expected)
