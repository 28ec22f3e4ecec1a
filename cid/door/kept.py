"""Embeddings of photographs, kept in parts on disk, so that a second call costs seconds.

They are keyed by what a photograph holds, not by its name. Embeddings identify people: the folder and its files
are readable by the user alone, and git does not see them.
"""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cid import __version__
from cid.door.tables import write

FOLDER = "face-embeddings"
NOTE = """\
What recognises people in other photographs is biometric data. `python -m cid` keeps it here so that a second
call need not look at the photographs again. This folder can be deleted at any time; `--keep no` makes none.
"""


@dataclass(frozen=True)
class Part:
    """Some photographs that were looked at."""

    digests: np.ndarray  # "S40" (n,): of the encoded bytes
    embedding: np.ndarray  # float32 (n, d)
    features: np.ndarray  # float16 (n, t)
    found: np.ndarray  # bool (n,): whether a face was found


class Kept:
    """The parts of one network and detector in a folder; without a folder nothing is kept."""

    def __init__(self, folder: str | Path | None, network: str, detector: str):
        self.folder = None if folder is None else Path(folder)
        # A version whose detection, alignment or networks give other embeddings has another number.
        self.label = f"{network}-{detector}-{__version__}"

    def read(self) -> dict[bytes, tuple[np.ndarray, np.ndarray, bool]]:
        """Return embedding (d,), features (t,) and whether a face was found, by digest.

        Parts that are damaged or lack something are passed over.
        """
        known = {}
        if self.folder is None:
            return known
        for path in sorted(self.folder.glob(f"{self.label}-*.npz")):
            try:
                with open(path, "rb") as file, np.load(file) as arrays:
                    part = Part(**{name: arrays[name] for name in Part.__dataclass_fields__})
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            rows = zip(part.embedding, part.features, part.found.tolist(), strict=True)
            known |= dict(zip(part.digests.tolist(), rows, strict=True))
        return known

    def write(self, part: Part) -> None:
        """Keep a part; it appears complete or not at all."""
        if self.folder is None or not len(part.digests):
            return
        self._make_folder()
        name = hashlib.sha256(b"".join(part.digests.tolist())).hexdigest()[:16]
        path = self.folder / f"{self.label}-{name}.npz"
        write(path, lambda file: np.savez(file, **vars(part)), mode=0o600)

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        self.folder.mkdir(parents=True, mode=0o700)
        os.chmod(self.folder, 0o700)  # whatever the user's mask
        write(self.folder / "README.txt", lambda file: file.write(NOTE.encode()), mode=0o600)
        write(self.folder / ".gitignore", lambda file: file.write(b"*\n"), mode=0o600)


def digest(encoded: bytes) -> bytes:
    """Return 40 hexadecimal digits that tell photographs apart."""
    return hashlib.sha256(encoded).hexdigest()[:40].encode()
