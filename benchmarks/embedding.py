"""`study.faces.embed` against facenet-pytorch as its documentation uses it, one image at a time."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice

import torch
from common import row, side_by_side
from facenet_pytorch import MTCNN, InceptionResnetV1
from PIL import Image

from cid import align, recognition
from study.faces import embed
from study.faces.dataset import read_faces

IMAGES = 64


@contextmanager
def random_facenet():
    """An entry of the registry with random weights: they cannot be had everywhere, and cost the same."""
    torch.manual_seed(0)
    net = InceptionResnetV1(pretrained=None).eval()
    spec = recognition.NETWORKS["facenet-vggface2"]
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__ if name != "load"}
    recognition.NETWORKS["facenet-random"] = recognition.Network(
        **fields, load=lambda: recognition.FaceNet(net)
    )
    try:
        yield net
    finally:
        del recognition.NETWORKS["facenet-random"]
        recognition._load_network.cache_clear()


def measure(rounds: int) -> list[dict]:
    photos = list(islice(read_faces("data", check_images=False).images(), IMAGES))
    pictures = [Image.fromarray(photo) for photo in photos]
    rows = []
    with random_facenet() as net:
        detector = MTCNN(image_size=160, margin=14).eval()

        @torch.no_grad()
        def one_by_one():
            for picture in pictures:
                if (face := detector(picture)) is not None:
                    net(face[None])

        def ours():
            embed.embed_faces(photos, "facenet-random", "facenet-random", progress=False)

        found = side_by_side(ours, {"facenet-pytorch, one at a time": one_by_one}, rounds)
        rows.append(
            row("embedding", f"{IMAGES} photos of 112 px, Inception-ResNet v1, with detection",
                "facenet-pytorch, one at a time", found, "at least 3 x", lambda r: r >= 3)
        )  # fmt: skip
    found_faces = align.detect(photos, progress=False)
    crops = align.align(photos, found_faces.landmarks)
    parts = side_by_side(
        lambda: embed.embed_faces(photos, progress=False),
        {
            "of which detection (MTCNN)": lambda: align.detect(photos, progress=False),
            "of which alignment": lambda: align.align(photos, found_faces.landmarks),
            "of which the network": lambda: embed.embed(crops),
        },
        rounds,
    )
    for name in list(parts)[1:]:
        rows.append(row("embedding", f"{IMAGES} photos of 112 px, dlib-resnet", name, parts))
    return rows
