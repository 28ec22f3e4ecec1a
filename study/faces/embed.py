"""From photos to proxies: find, align and embed every face of a data set, for all later stages.

Photos are processed in chunks (:mod:`cid.align`, :mod:`cid.recognition`). A finished chunk is kept
(:mod:`study.store`) under its encoded photos, the settings and the code, so an interrupted run resumes
where it stopped and a finished one decodes nothing. Detections are kept on their own: embedding with
another network does not look for the faces again.
"""

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cid.align import align
from cid.arrays import pick_device
from cid.detection import Detection, at_hand
from cid.detection import detect as find_faces
from cid.options import SIDES
from cid.recognition import Network, activations, embed, load_network
from study import store
from study.cores import on_all_cores
from study.faces.dataset import ACTIVATIONS, CROPS, FaceSet
from study.faces.network_files import is_file
from study.faces.onnx import get_network
from study.faces.verification import (
    FALSE_MATCHES,
    NEAR,
    near_copies,
    pair_similarities,
    right_pairs,
    roc_curve,
    similarity_densities,
    verification_auc,
)

CHUNK = 512  # photos that are decoded at once, and kept together
SHOWN_SIDE = 96  # side in pixels of crops that only figures need
# Share of faces found in upright photographs. It is far smaller if they are turned by 90 degrees.
USUAL = 0.9
# Share of right pairs below which a proxy hardly knows people. Of the data sets of this study only small grey
# pictures of turned heads lie below (.07); a network that is fed what it does not take can, too.
RIGHT = 0.5
COPIES = 0.05  # share of images with a near copy from which a data set holds films or series
SHOWN = 3  # pairs that a message names
GIVEN = "none"  # as a detector: the landmarks came with the data


@dataclass(frozen=True)
class FaceEmbeddings:
    """What :func:`embed_faces` returns for n images.

    Attributes
    ----------
    detection : Detection
    embedding : float32 array (n, d)
        Rows of unit norm, from the proxy's network.
    trunk : float32 array (n, t)
        Mid-level features, from the trunk's network.
    crops : uint8 array (n, 3, side, side) or None
    activations : float16 array (n, c, h, w) or None
    detector : str
        What found the faces: one of `cid.detection.DETECTORS`, or :data:`GIVEN`.
    """

    detection: Detection
    embedding: np.ndarray
    trunk: np.ndarray
    crops: np.ndarray | None
    activations: np.ndarray | None = None
    detector: str = "joined"


def embed_faces(
    data: FaceSet,
    network: str = "dlib-resnet",
    trunk: str = "dlib-resnet",
    *,
    detect: bool = True,
    detector: str = "joined",
    mirror: bool = False,
    precision: str = "single",
    onnx: dict | None = None,
    side: int | None = None,
    finetune: bool = False,
    device: str = "auto",
    folder: str | Path | None = store.KEPT,
    progress: bool = True,
) -> FaceEmbeddings:
    """Detect, align and embed every face, one chunk of photos at a time; on a CPU, one chunk per core.

    Parameters
    ----------
    network, trunk : str
        Names of the networks of the proxy and of the trunk, as in
        :func:`study.faces.onnx.get_network`. If they are the same, it runs once.
    detect : bool
        If False, use the landmarks that came with the data; every face then counts as found.
    detector : str
        One of `cid.detection.DETECTORS`; without BlazeFace's file, `joined` is `margin`.
    mirror : bool
        If True, the embedding is the mean of the unit embeddings of a face and of its mirror image, scaled
        to unit length: a second pass of the network.
    side : int, optional
        Also cut every face to a square of this side in pixels, for networks that are trained end to
        end and for figures.
    finetune : bool
        Also return the :func:`cid.recognition.activations` of every face.
    precision, device, progress
        As in :func:`cid.recognition.embed`.
    onnx : dict, optional
        As in :func:`study.faces.onnx.get_network`.
    folder : path, optional
        Where finished chunks are kept. None keeps none.

    Raises
    ------
    ValueError, FileNotFoundError, ConnectionError
        As :func:`cid.detection.detect` and :func:`cid.recognition.embed`; errors about the networks come
        before any face is looked for. Also if ``detect`` is False and the data have no landmarks.
    """
    detector = at_hand(detector) if detect else GIVEN
    arrays = _embedded(
        data,
        network=network,
        trunk=trunk,
        detector=detector,
        mirror=mirror,
        precision=precision,
        onnx=onnx,
        device=device,
        folder=folder,
        progress=progress,
    )
    embedding = arrays.pop("proxy")
    features = arrays.pop("trunk")
    detection = Detection(**arrays)

    in_chunks = partial(
        _by_chunk,
        data,
        points=detection.landmarks,
        device=device,
        folder=folder,
        progress=progress,
    )
    crops = None
    if side is not None:
        cut = partial(_cut_faces, side=side)
        crops = in_chunks("crops", side, ["cid.align.align"], cut)["crops"]
    maps = None
    if finetune:
        code = ["cid.align.align", "cid.recognition.activations"]
        maps = in_chunks("maps", None, code, _activate)["maps"]
    return FaceEmbeddings(detection, embedding, features, crops, maps, detector)


def crop_side(model: str, card: dict) -> int | None:
    """Return the side in pixels of the crops that a study needs, or None if it needs none.

    Networks that are trained on crops decide it; otherwise figures do, if the data card allows images.
    """
    if model in SIDES:
        return SIDES[model]
    if card.get("show_images", True):
        return SHOWN_SIDE
    return None


def embed_share(data: FaceSet, settings: dict, rank: int, world: int, folder=store.KEPT) -> None:
    """Embed every ``world``-th chunk, from the ``rank``-th on, and keep it for :func:`embed_faces`.

    ``settings`` is the section ``embed`` of params.yaml.
    """
    _embedded(
        data,
        network=settings["network"],
        trunk=settings["trunk"],
        detector=at_hand(settings["detector"]) if settings["detect"] else GIVEN,
        mirror=settings.get("mirror", False),
        precision=settings["precision"],
        onnx=settings.get("onnx"),
        folder=folder,
        progress=rank == 0,
        share=(rank, world),
    )


def embed_views(
    data: FaceSet,
    landmarks,
    network: str = "dlib-resnet",
    *,
    zooms=(),
    precision: str = "single",
    onnx: dict | None = None,
    device: str = "auto",
    folder: str | Path | None = store.KEPT,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Embed other views of every aligned face: its mirror image, and nearer or wider crops.

    Parameters
    ----------
    landmarks : array (n, 5, 2)
        Those of :func:`embed_faces`.
    zooms : sequence of float
        How much larger the face is than in the network's own crop, one view each.
    network, precision, onnx, device, folder, progress
        As in :func:`embed_faces`.

    Returns
    -------
    dict
        float32 arrays (n, d) of unit rows under ``mirrored`` and ``zoom <z>``.
    """
    spec = get_network(network, onnx)
    views = {"mirrored": 1.0}
    for zoom in zooms:
        views[f"zoom {zoom:g}"] = zoom
    return _by_chunk(
        data,
        "views",
        (network, spec.key, precision, views),
        ["study.faces.embed.embed_views"],
        partial(_embed_views_of, network=spec, views=views, precision=precision),
        points=landmarks,
        device=device,
        folder=folder,
        progress=progress,
    )


def embed_networks(
    data: FaceSet,
    landmarks,
    proxies=(),
    trunks=(),
    *,
    precision: str = "single",
    onnx: dict | None = None,
    device: str = "auto",
    folder: str | Path | None = store.KEPT,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Embed every face with further networks, on crops cut at the same landmarks.

    Parameters
    ----------
    landmarks : array (n, 5, 2)
        Those of :func:`embed_faces`.
    proxies, trunks : sequence of str
        Names of networks whose embedding or mid-level features are wanted. A network in both lists
        runs once.
    precision, onnx, device, folder, progress
        As in :func:`embed_faces`.

    Returns
    -------
    dict
        float32 arrays: (n, d) of unit rows under ``proxy <name>``, (n, t) under ``trunk <name>``.
    """
    embedded = {}
    for name in dict.fromkeys([*proxies, *trunks]):
        spec = get_network(name, onnx)
        outputs = []
        if name in proxies:
            outputs.append("proxy")
        if name in trunks:
            outputs.append("trunk")
        arrays = _by_chunk(
            data,
            "network",
            (name, spec.key, precision, outputs),
            ["study.faces.embed.embed_networks"],
            partial(_embed_outputs, network=spec, outputs=outputs, precision=precision),
            points=landmarks,
            device=device,
            folder=folder,
            progress=progress,
        )
        for output, array in arrays.items():
            embedded[f"{output} {name}"] = array
    return embedded


# What is computed of one chunk. `photos` is a list of uint8 arrays (h, w, 3), `points` their landmarks,
# float32 (n, 5, 2).


def _cut_faces(photos, points, device, *, side: int) -> dict[str, np.ndarray]:
    return {"crops": align(photos, points, side, device=device).numpy()}


def _cut_for(network: Network, photos, points, template: np.ndarray, device) -> torch.Tensor:
    """Crops for a network, not rounded: so they hardly differ on another processor."""
    return align(photos, points, network.size, template=template, rounded=False, device=device)


def _activate(photos, points, device) -> dict[str, np.ndarray]:
    spec = get_network("dlib-resnet")
    crops = _cut_for(spec, photos, points, spec.template, device)
    return {"maps": activations(crops, device=device).numpy()}


def _embed_views_of(
    photos, points, device, *, network: Network, views: dict[str, float], precision: str
) -> dict[str, np.ndarray]:
    embedded = {}
    for view, zoom in views.items():
        template = 0.5 + zoom * (network.template - 0.5)
        crops = _cut_for(network, photos, points, template, device)
        if view == "mirrored":
            crops = crops.flip(3)
        result = embed(crops, network, precision=precision, device=device)
        embedded[view] = result.embedding.numpy()
    return embedded


def _embed_outputs(
    photos,
    points,
    device,
    *,
    network: Network,
    outputs: list[str],
    precision: str,
    mirror: bool = False,
) -> dict[str, np.ndarray]:
    crops = _cut_for(network, photos, points, network.template, device)
    result = embed(crops, network, precision=precision, device=device)
    arrays = {"proxy": result.embedding, "trunk": result.trunk}
    if mirror and "proxy" in outputs:
        mirrored = embed(crops.flip(3), network, precision=precision, device=device)
        arrays["proxy"] = F.normalize(result.embedding + mirrored.embedding, dim=1)
    return {output: arrays[output].numpy() for output in outputs}


def _detect_and_embed(
    photos,
    points,
    device,
    *,
    proxy: Network,
    trunk: Network,
    precision: str,
    mirror: bool,
    detect_once: Callable,
) -> dict[str, np.ndarray]:
    """Return the fields of `Detection`, and ``proxy`` (n, d) and ``trunk`` (n, t)."""
    # Missing weights should stop the run before minutes of detection, not after.
    load_network(proxy, device)
    load_network(trunk, device)
    if points is None:
        detection = detect_once(photos, device)
    else:
        n = len(photos)
        detection = Detection(
            landmarks=points,
            probability=np.ones(n, np.float32),
            faces=np.ones(n, int),
            found=np.ones(n, bool),
        )
    embed_by = partial(_embed_outputs, photos, detection.landmarks, device, precision=precision)
    if trunk is proxy:
        arrays = embed_by(network=proxy, outputs=["proxy", "trunk"], mirror=mirror)
    else:
        arrays = embed_by(network=proxy, outputs=["proxy"], mirror=mirror)
        arrays |= embed_by(network=trunk, outputs=["trunk"])
    return vars(detection) | arrays


def _detect_once(photos, device, *, detector: str, folder) -> Detection:
    """Find the faces of a chunk, or take them from the folder."""

    def find() -> dict:
        return vars(find_faces(photos, detector, device=device, progress=False))

    inputs = {"device": device.type, "detector": detector, "photos": list(photos)}
    return Detection(**store.kept(folder, "faces", inputs, ["cid.detection.detect"], find))


def _embedded(
    data: FaceSet,
    *,
    network: str,
    trunk: str,
    detector: str,
    mirror: bool,
    precision: str = "single",
    onnx: dict | None = None,
    device: str = "auto",
    folder: str | Path | None = store.KEPT,
    progress: bool = True,
    share: tuple[int, int] = (0, 1),
) -> dict[str, np.ndarray]:
    """Return the arrays of :func:`_detect_and_embed`; the arguments are those of :func:`_by_chunk`.

    ``detector`` is one that can run, or :data:`GIVEN`.
    """
    proxy_spec = get_network(network, onnx)
    trunk_spec = get_network(trunk, onnx)
    keys = [proxy_spec.key]
    if trunk != network:
        keys.append(trunk_spec.key)
    detect_once = partial(_detect_once, detector=detector, folder=folder)
    compute = partial(
        _detect_and_embed,
        proxy=proxy_spec,
        trunk=trunk_spec,
        precision=precision,
        mirror=mirror,
        detect_once=detect_once,
    )
    return _by_chunk(
        data,
        "embedding",
        (network, trunk, keys, precision, detector, mirror),
        ["study.faces.embed._embedded"],
        compute,
        points=data.landmarks() if detector == GIVEN else None,
        device=device,
        folder=folder,
        progress=progress,
        share=share,
    )


class _Photos:
    """The decoded photos of chunks; on a GPU the next chunk is decoded while the device is busy."""

    def __init__(self, data: FaceSet, starts: range, device: torch.device, decoder: Executor):
        self.data = data
        self.starts = starts
        self.ahead = device.type != "cpu"
        self.decoder = decoder
        self.waiting: dict[int, Future] = {}

    def of_chunk(self, start: int) -> list[np.ndarray]:
        if not self.ahead:
            return self._decode(start)
        for first in (start, start + self.starts.step):
            if first in self.starts and first not in self.waiting:
                self.waiting[first] = self.decoder.submit(self._decode, first)
        return self.waiting.pop(start).result()

    def _decode(self, start: int) -> list[np.ndarray]:
        return list(self.data.images(_rows(self.data, start)))


def _rows(data: FaceSet, start: int) -> np.ndarray:
    """Return the rows of the chunk that begins at ``start``."""
    return np.arange(start, min(start + CHUNK, len(data)))


def _by_chunk(
    data: FaceSet,
    label: str,
    inputs,
    code: Sequence[str],
    compute: Callable[..., dict],
    *,
    points: np.ndarray | None,
    device: str = "auto",
    folder: str | Path | None = store.KEPT,
    progress: bool = True,
    share: tuple[int, int] = (0, 1),
) -> dict[str, np.ndarray]:
    """Call ``compute(photos, points, device)`` for every chunk, or load its result, and concatenate.

    Parameters
    ----------
    label : str
        Names the progress bar and begins the names of the kept files.
    inputs
        Everything that the arrays depend on besides the photos, their points and the kind of device.
    code : sequence of str
        Dotted names of the definitions that compute them.
    points : array (n, 5, 2), optional
    share : (first, step)
        Take only every ``step``-th chunk, from the one numbered ``first`` on.
    """
    if not len(data):
        raise ValueError("there are no images; pass at least one")
    if points is not None and np.shape(points) != (len(data), 5, 2):
        raise ValueError(
            f"landmarks have shape {np.shape(points)}; {len(data)} images need ({len(data)}, 5, 2), "
            "so detect them again"
        )
    device = pick_device(device)
    first, step = share
    starts = range(CHUNK * first, len(data), CHUNK * step)

    def one_chunk(start: int) -> dict:
        rows = _rows(data, start)
        encoded = data.encoded[start : start + CHUNK].to_pylist()
        chunk_points = None if points is None else np.float32(points[rows])
        chunk_inputs = {
            "inputs": inputs,
            "device": device.type,
            "photos": encoded,
            "points": chunk_points,
        }
        arrays = store.kept(
            folder,
            label,
            chunk_inputs,
            code,
            lambda: compute(photos.of_chunk(start), chunk_points, device),
        )
        bar.update(len(rows))
        return arrays

    bar = tqdm(total=len(data), desc=label, unit="image", mininterval=5, disable=not progress)
    with bar, ThreadPoolExecutor(1) as decoder:
        photos = _Photos(data, starts, device, decoder)
        chunks = on_all_cores(one_chunk, starts, device)
    if not chunks:
        return {}
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def write_embeddings(
    out: str | Path, result: FaceEmbeddings, data: FaceSet, settings: dict
) -> dict:
    """Write the results of :func:`embed_faces` into the folder ``out``, and return the summary.

    True identities are used here to measure the proxy; they change nothing else. Where nobody is known, it is
    not measured. Files:

    - ``proxy.npy``, ``trunk.npy`` and ``detection.npz``; ``crops.npy`` and ``activations.npy`` if there
      are any;
    - ``similarity.csv``: densities of the cosine of two images of the same person (``same``) and of
      different people (``different``) between ``left`` and ``right``;
    - ``roc.csv``: ``false_match_rate`` and ``true_match_rate``;
    - ``summary.json``: ``network``, ``trunk`` and ``precision`` of the ``settings`` (the section
      ``embed`` of params.yaml), and ``mirror`` if it is true; ``detector``, the one that ran; ``files``,
      source and licence of ONNX files, if any are used; ``verification_auc`` and ``right_pairs``;
      ``detected``, the share of faces that were found; ``several``, the number of photos with more than
      one face; and ``warning``, also on stderr, if fewer than :data:`USUAL` were found, or by another
      detector than the settings name, if fewer than :data:`RIGHT` of the pairs are right, or if there are
      many near copies or such of different people.
    """
    out = Path(out)
    detection = result.detection
    arrays = {
        "proxy.npy": result.embedding,
        "trunk.npy": result.trunk,
        CROPS: result.crops,
        ACTIVATIONS: result.activations,
    }
    for name, array in arrays.items():
        if array is not None:
            store.write(out / name, lambda file, array=array: np.save(file, array))
    store.keep(out / "detection.npz", vars(detection))

    people = data.identities()
    known = people >= 0  # not of everybody, and perhaps of nobody
    summary = {
        "network": settings["network"],
        "trunk": settings["trunk"],
        "precision": settings["precision"],
        "detector": result.detector,
    }
    if settings.get("mirror"):
        summary["mirror"] = True
    files = _sources_of_files(settings)
    if files:
        summary["files"] = files
    foreign = 0
    if known.any():
        same, different = pair_similarities(result.embedding[known], people[known])
        foreign = int(different.sum())
        summary["verification_auc"] = round(verification_auc(same, different), 5)
        summary["right_pairs"] = round(right_pairs(same, different), 5)
        _write_tables(out, same, different)
    summary["detected"] = round(float(detection.found.mean()), 5)
    summary["several"] = int((detection.faces > 1).sum())
    copies = near_copies(result.embedding)
    others = copies[people[copies["row"]] != people[copies["copy"]]]
    others = others[known[others["row"]] & known[others["copy"]]]  # said to be different people
    if len(copies):
        print(_about_copies(copies, len(others), len(data)))
    warnings = _warnings(summary, settings, foreign)
    if len(copies) > COPIES * len(data) or len(others):
        warnings.append(_about_copies(copies, len(others), len(data)))
    if warnings:
        summary["warning"] = " ".join(warnings)
        print(f"warning: {summary['warning']}", file=sys.stderr)
    store.write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _write_tables(out: Path, same: np.ndarray, different: np.ndarray) -> None:
    """Write what the pairs of people who are known say of the proxy."""
    for name, table in (
        ("similarity", similarity_densities(same, different)),
        ("roc", roc_curve(same, different)),
    ):
        store.write_text(out / f"{name}.csv", table.to_csv(index=False, float_format="%.5g"))


def _warnings(summary: dict, settings: dict, foreign: int) -> list[str]:
    """Sentences on what a reader of the summary must know; ``foreign`` pairs are of different people."""
    warnings = []
    if summary["detector"] == "margin" and settings.get("detector") == "joined":
        warnings.append(
            "The file of BlazeFace was not at hand, so MTCNN with a margin found the faces in place of the "
            "joined detector. `python -m study detector` fetches the file; then run `dvc repro --force embed`."
        )
    if summary["detected"] < USUAL:
        if summary["detector"] == "joined":
            others = "the others are cut where a face is likeliest"
        else:
            others = "the others are cut from the middle of the image"
        warnings.append(
            f"Only {summary['detected']:.1%} of the faces were found, where {USUAL:.0%} and more are "
            f"usual; {others}. Look whether photographs are turned, tiny or without a face."
        )
    if foreign * FALSE_MATCHES >= 1 and summary["right_pairs"] < RIGHT:
        warnings.append(
            f"The proxy {summary['network']} hardly tells these people apart: at a false match rate of "
            f"{FALSE_MATCHES:g} it matches {summary['right_pairs']:.1%} of the pairs of one person (verification "
            f"AUC {summary['verification_auc']:.3f}). Look whether the faces are large and upright enough, and, "
            "for a network in a file, whether template, size, channels, mean and scale are those it was "
            "trained with."
        )
    return warnings


def _about_copies(copies: pd.DataFrame, others: int, n: int) -> str:
    """Return a sentence on the :func:`study.faces.verification.near_copies` of n images.

    ``others`` of them resemble an image of another person.
    """
    first = copies["row"] < copies["copy"]
    pairs = copies[first].head(SHOWN) if first.any() else copies.head(SHOWN)
    shown = ", ".join(f"{one.row} and {one.copy}" for one in pairs.itertuples())
    across = f" {others:,} of them resemble an image of another person." if others else ""
    return (
        f"{len(copies):,} of {n:,} images ({len(copies) / n:.1%}) have a near copy, a cosine above {NEAR} in the "
        f"proxy, so up to that share of the test images may have one in training.{across} Rows of such "
        f"pairs in data/: {shown}. Remove photographs that were saved twice, or keep one of a series."
    )


def _sources_of_files(settings: dict) -> str:
    """Return source and licence of each network that is an ONNX file; empty if none is."""
    names = dict.fromkeys(
        name for name in (settings["network"], settings["trunk"]) if is_file(name)
    )
    specs = [get_network(name, settings.get("onnx")) for name in names]
    return "; ".join(f"{spec.source}, licence: {spec.licence}" for spec in specs)
