"""`study.faces.embed` against facenet-pytorch as its documentation uses it, one image at a time."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from facenet_pytorch import MTCNN, InceptionResnetV1
from PIL import Image

from benchmarks.common import row, side_by_side
from cid import align, detection, recognition
from study.cores import on_all_cores
from study.faces import embed as faces
from study.faces.dataset import FaceSet, read_faces
from study.faces.embed import embed_faces

IMAGES = 128


@contextmanager
def random_facenet():
    """An entry of the registry with random weights: they cannot be had everywhere, and cost the same."""
    torch.manual_seed(0)
    net = InceptionResnetV1(pretrained=None).eval()
    recognition.NETWORKS["facenet-random"] = replace(
        recognition.NETWORKS["facenet-vggface2"], load=lambda: recognition.FaceNet(net)
    )
    try:
        yield net
    finally:
        del recognition.NETWORKS["facenet-random"]
        recognition._loaded.cache_clear()


@contextmanager
def a_chunk_a_core():
    """As a study of thousands of photos is embedded, whose chunks are larger."""
    usual, faces.CHUNK = faces.CHUNK, -(-IMAGES // os.cpu_count())
    try:
        yield
    finally:
        faces.CHUNK = usual


@a_chunk_a_core()
def measure(rounds: int) -> list[dict]:
    data = read_faces("data", check_images=False)
    data = FaceSet(data.card, data.frame[:IMAGES], data.encoded[:IMAGES])
    how, rows = {"folder": None, "progress": False}, []
    with random_facenet() as net:
        detector = MTCNN(image_size=160, margin=14).eval()

        @torch.no_grad()
        def one_by_one():
            for photo in data.images():
                if (face := detector(Image.fromarray(photo))) is not None:
                    net(face[None])

        def ours():
            embed_faces(data, "facenet-random", "facenet-random", **how)

        found = side_by_side(ours, {"facenet-pytorch, one at a time": one_by_one}, rounds)
        rows.append(
            row("embedding", f"{IMAGES} photos of 112 px, Inception-ResNet v1, with detection",
                "facenet-pytorch, one at a time", found, "at least 3 x", lambda r: r >= 3)
        )  # fmt: skip
    photos, size = list(data.images()), faces.CHUNK
    photos = [photos[start : start + size] for start in range(0, IMAGES, size)]
    landmarks = [detection.detect(chunk, progress=False).landmarks for chunk in photos]
    crops = list(map(align.align, photos, landmarks))
    parts = side_by_side(
        lambda: embed_faces(data, **how),
        {
            "of which detection": lambda: on_all_cores(
                partial(detection.detect, progress=False), photos
            ),
            "of which alignment": lambda: on_all_cores(
                lambda pair: align.align(*pair), zip(photos, landmarks, strict=True)
            ),
            "of which the network": lambda: on_all_cores(recognition.embed, crops),
        },
        rounds,
    )
    for name in list(parts)[1:]:
        rows.append(row("embedding", f"{IMAGES} photos of 112 px, dlib-resnet", name, parts))
    return rows
