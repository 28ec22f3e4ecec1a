"""From photos to proxies: what every later stage knows of the faces of a data set.

Every face is found, cut and embedded (:mod:`cid.align`, :mod:`cid.recognition`) in chunks of photos.
A finished chunk is kept (:mod:`study.store`) under its encoded photos, the settings and the code, so
that an interrupted run goes on where it stopped and a finished one decodes nothing. What was found in
the photos is kept by itself: another network embeds, and does not look for faces again.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cid.align import Detection, align
from cid.align import detect as find_faces
from cid.device import pick_device
from cid.options import SIDES
from cid.recognition import activations, embed, load_network
from study import store
from study.cores import on_all_cores
from study.faces.dataset import ACTIVATIONS, CROPS, FaceSet
from study.faces.network_files import is_file
from study.faces.onnx import get_network
from study.faces.verification import (
    pair_similarities,
    roc_curve,
    similarity_densities,
    verification_auc,
)
from study.source import code

CHUNK = 512  # photos decoded at once, and kept together
SHOWN_SIDE = 96  # px of crops that are for figures alone
USUAL = 0.9  # share of faces found, of upright photographs; of those turned by 90 degrees far fewer


@dataclass(frozen=True)
class FaceEmbeddings:
    """What :func:`embed_faces` found: `embedding` (n, d) float32 of unit rows, of the proxy's network;
    `trunk` (n, t) float32, of the trunk's; `crops` (n, 3, side, side) uint8, and `activations` (n, c, h, w)
    float16, or None.
    """

    detection: Detection
    embedding: np.ndarray
    trunk: np.ndarray
    crops: np.ndarray | None
    activations: np.ndarray | None = None


def embed_faces(
    data: FaceSet,
    network: str = "dlib-resnet",
    trunk: str = "dlib-resnet",
    *,
    detect: bool = True,
    precision: str = "single",
    onnx: dict | None = None,
    side: int | None = None,
    finetune: bool = False,
    **how,
) -> FaceEmbeddings:
    """Detect, align and embed every face, a chunk of photos at a time, on a CPU one a core.

    Parameters
    ----------
    network, trunk : str
        Of the proxy and of the trunk, as in :func:`study.faces.onnx.get_network`; the same runs once.
    detect : bool
        False takes the landmarks that came with the data; every face then counts as found.
    side : int, optional
        Also cut every face to a square of so many pixels, for networks trained end to end and figures.
    finetune : bool
        Also give what :func:`cid.recognition.activations` makes of every face.
    precision, device, progress
        As in :func:`cid.recognition.embed`.
    onnx : dict, optional
        As in :func:`study.faces.onnx.get_network`.
    folder : path, optional
        Where finished chunks are kept, :data:`study.store.KEPT` by default; None keeps none.

    Raises
    ------
    ValueError, FileNotFoundError, ConnectionError
        As :func:`cid.align.detect` and :func:`cid.recognition.embed`, before any photo is looked at
        where it is about the networks; if ``detect`` is False and the data have no landmarks.
    """
    whole = _embedded(data, network, trunk, detect, precision, onnx, **how)
    proxy, features = whole.pop("proxy"), whole.pop("trunk")
    found, crops, maps = Detection(**whole), None, None
    if side is not None:

        def cut(photos, points, device) -> dict:
            return {"crops": align(photos, points, side, device=device).numpy()}

        about = (side, code("cid.align.align"))
        crops = _by_chunk(data, "crops", about, cut, points=found.landmarks, **how)["crops"]
    if finetune:
        spec = get_network("dlib-resnet")

        def activate(photos, points, device) -> dict:
            faces = align(photos, points, spec.size, template=spec.template, device=device)
            return {"maps": activations(faces, device=device).numpy()}

        about = code("cid.align.align", "cid.recognition.activations")
        maps = _by_chunk(data, "maps", about, activate, points=found.landmarks, **how)["maps"]
    return FaceEmbeddings(found, proxy, features, crops, maps)


def crop_side(model: str, card: dict) -> int | None:
    """Side in pixels of the crops a study needs: its model's own, or what figures show, or None."""
    return SIDES.get(model) or (SHOWN_SIDE if card.get("show_images", True) else None)


def embed_share(data: FaceSet, settings: dict, rank: int, world: int, folder=store.KEPT) -> None:
    """Every ``world``-th chunk of what :func:`embed_faces` embeds, left in the folder for it.

    ``settings`` is the section ``embed`` of params.yaml: network, trunk, precision, detect, onnx.
    """
    _embedded(data, **settings, folder=folder, progress=rank == 0, share=(rank, world))


def embed_views(
    data: FaceSet,
    landmarks,
    network="dlib-resnet",
    *,
    zooms=(),
    precision="single",
    onnx=None,
    **how,
) -> dict[str, np.ndarray]:
    """Embed other views of every aligned face: its mirror image, and nearer or wider crops.

    ``landmarks`` (n, 5, 2) are those of :func:`embed_faces`; each of the ``zooms`` says how much larger
    the face is than in the network's own crop; the rest is as in :func:`embed_faces`. The result has
    float32 (n, d) unit rows under ``mirrored`` and ``zoom <z>``.
    """
    spec = get_network(network, onnx)
    views = {"mirrored": 1.0} | {f"zoom {zoom:g}": zoom for zoom in zooms}

    def compute(photos, points, device) -> dict:
        found = {}
        for view, zoom in views.items():
            template = 0.5 + zoom * (spec.template - 0.5)
            crops = align(photos, points, spec.size, template=template, device=device)
            crops = crops.flip(3) if view == "mirrored" else crops
            result = embed(crops, spec, precision=precision, device=device)
            found[view] = result.embedding.numpy()
        return found

    about = (network, spec.key, precision, views, code("study.faces.embed.embed_views"))
    return _by_chunk(data, "views", about, compute, points=landmarks, **how)


def embed_networks(
    data: FaceSet, landmarks, proxies=(), trunks=(), *, precision="single", onnx=None, **how
) -> dict[str, np.ndarray]:
    """Embed every face by further networks: what they make of the crops that a study's own has seen.

    ``landmarks`` (n, 5, 2) are those of :func:`embed_faces`; ``proxies`` and ``trunks`` name networks
    whose embedding or mid-level features are wanted, one that is in both runs once; the rest is as in
    :func:`embed_faces`. The result has float32 (n, d) unit rows under ``proxy <name>`` and (n, t)
    features under ``trunk <name>``.
    """
    found = {}
    for name in dict.fromkeys([*proxies, *trunks]):
        spec = get_network(name, onnx)
        wanted = [part for part, names in (("proxy", proxies), ("trunk", trunks)) if name in names]

        def compute(photos, points, device, spec=spec, wanted=wanted) -> dict:
            crops = align(photos, points, spec.size, template=spec.template, device=device)
            result = embed(crops, spec, precision=precision, device=device)
            arrays = {"proxy": result.embedding, "trunk": result.trunk}
            return {part: arrays[part].numpy() for part in wanted}

        about = (name, spec.key, precision, wanted, code("study.faces.embed.embed_networks"))
        arrays = _by_chunk(data, "network", about, compute, points=landmarks, **how)
        found |= {f"{part} {name}": array for part, array in arrays.items()}
    return found


def _embedded(
    data, network, trunk, detect, precision="single", onnx=None, **how
) -> dict[str, np.ndarray]:
    """The fields of `Detection`, ``proxy`` (n, d) and ``trunk`` (n, t), by chunks as in `_by_chunk`."""
    networks = {name: get_network(name, onnx) for name in (network, trunk)}
    folder, detector = how.get("folder", store.KEPT), code("cid.align.detect")

    def find(photos, device) -> Detection:
        def once() -> dict:
            return vars(find_faces(photos, device=device, progress=False))

        name = f"faces-{store.digest(detector, device.type, *photos)[:24]}"
        return Detection(**store.kept(folder, name, once))

    def compute(photos, points, device) -> dict:
        # Missing weights should stop the run before minutes of detection, not after.
        for spec in networks.values():
            load_network(spec, device)
        if points is None:
            found = find(photos, device)
        else:
            n = len(photos)
            found = Detection(points, np.ones(n, np.float32), np.ones(n, int), np.ones(n, bool))

        def run(spec):
            crops = align(photos, found.landmarks, spec.size, template=spec.template, device=device)
            return embed(crops, spec, precision=precision, device=device)

        proxy = run(networks[network])
        other = proxy if trunk == network else run(networks[trunk])
        return vars(found) | {"proxy": proxy.embedding.numpy(), "trunk": other.trunk.numpy()}

    keys = [spec.key for spec in networks.values()]
    about = (network, trunk, keys, precision, code("study.faces.embed._embedded"))
    points = None if detect else data.landmarks()
    return _by_chunk(data, "embedding", about, compute, points=points, **how)


def _by_chunk(
    data: FaceSet,
    label: str,
    about: tuple,
    compute: Callable[..., dict],
    *,
    points: np.ndarray | None,
    device: str = "auto",
    folder: str | Path | None = store.KEPT,
    progress: bool = True,
    share: tuple[int, int] = (0, 1),
) -> dict[str, np.ndarray]:
    """``compute(photos, points, device)`` of every chunk, or taken from its folder, and concatenated.

    ``about`` is all that the arrays come from besides the photos, their points and the kind of device;
    of (k, n) in ``share``, only every n-th chunk from the k-th on is taken.
    """
    if not len(data):
        raise ValueError("there are no images; pass at least one")
    if points is not None and np.shape(points) != (len(data), 5, 2):
        needed = f"{len(data)} images need ({len(data)}, 5, 2), so detect them again"
        raise ValueError(f"landmarks have shape {np.shape(points)}; {needed}")
    device, ahead = pick_device(device), {}
    starts = range(CHUNK * share[0], len(data), CHUNK * share[1])

    def rows(start: int) -> np.ndarray:
        return np.arange(start, min(start + CHUNK, len(data)))

    def photos(start: int) -> list[np.ndarray]:
        """Those of a chunk; on a GPU the next chunk's are decoded while it works."""
        if device.type == "cpu":
            return list(data.images(rows(start)))
        for one in (start, start + starts.step):
            if one in starts and one not in ahead:
                ahead[one] = decoder.submit(lambda one=one: list(data.images(rows(one))))
        return ahead.pop(start).result()

    def chunk(start: int) -> dict:
        encoded = data.encoded[start : start + CHUNK].to_pylist()
        place = None if points is None else np.float32(points[rows(start)])
        name = f"{label}-{store.digest(about, device.type, encoded, place)[:24]}"
        found = store.kept(folder, name, lambda: compute(photos(start), place, device))
        bar.update(len(encoded))
        return found

    bar = tqdm(total=len(data), desc=label, unit="image", mininterval=5, disable=not progress)
    with bar, ThreadPoolExecutor(1) as decoder:
        parts = on_all_cores(chunk, starts, device)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}


def write_embeddings(
    out: str | Path, result: FaceEmbeddings, data: FaceSet, settings: dict
) -> dict:
    """Write what a study knows of its faces; identities measure the proxy and change nothing else.

    ``out`` gets ``proxy.npy``, ``trunk.npy``, ``detection.npz``, ``crops.npy`` and ``activations.npy`` if there are such,
    ``similarity.csv`` (densities of the cosine of two images of the same and of different people
    between ``left`` and ``right``), ``roc.csv`` (``false_match_rate``, ``true_match_rate``) and
    ``summary.json``, which is returned: of the ``settings``, the section ``embed`` of params.yaml,
    network, trunk and precision; ``files``, where one is an ONNX file, what they are; ``verification_auc``; ``detected``, the share of faces found;
    ``several``, the number of photos with more than one; and ``warning``, also on stderr, where fewer
    than :data:`USUAL` are found.
    """
    out, found = Path(out), result.detection
    arrays = {"proxy.npy": result.embedding, "trunk.npy": result.trunk}
    arrays |= {CROPS: result.crops, ACTIVATIONS: result.activations}
    for name, array in arrays.items():
        if array is not None:
            store.write(out / name, lambda file, array=array: np.save(file, array))
    store.keep(out / "detection.npz", vars(found))
    same, different = pair_similarities(result.embedding, data.identities())
    summary = {name: settings[name] for name in ("network", "trunk", "precision")}
    names = dict.fromkeys(filter(is_file, (summary["network"], summary["trunk"])))
    specs = [get_network(name, settings.get("onnx")) for name in names]
    if specs:
        summary["files"] = "; ".join(f"{s.source}, licence: {s.licence}" for s in specs)
    summary |= {
        "verification_auc": round(verification_auc(same, different), 5),
        "detected": round(float(found.found.mean()), 5),
        "several": int((found.faces > 1).sum()),
    }
    if summary["detected"] < USUAL:
        summary["warning"] = (
            f"Only {summary['detected']:.1%} of the faces were found, where {USUAL:.0%} and more are "
            "usual; the others are cut from the middle of the image. Look whether photographs are turned, "
            "tiny or without a face."
        )
        print(f"warning: {summary['warning']}", file=sys.stderr)
    store.write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    tables = {
        "similarity": similarity_densities(same, different),
        "roc": roc_curve(same, different),
    }
    for name, table in tables.items():
        store.write_text(out / f"{name}.csv", table.to_csv(index=False, float_format="%.5g"))
    return summary
