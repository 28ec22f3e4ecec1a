"""Face-recognition networks in ONNX files, run by onnxruntime.

What the file is like is read from its graph, and what it does is tried on made-up crops before any face is
embedded: a network that was exported while it was trained, or that is fed what it does not take, would give
embeddings all the same, only bad ones.
"""

import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cid import recognition
from cid.align import DLIB_TEMPLATE, FACENET_TEMPLATE
from cid.recognition import Network
from cid.settings import read
from study.faces.network_files import LICENCES, TEMPLATES, OnnxOptions, is_file, pinned

# ArcFace's template (Deng et al. 2019, arXiv 1801.07698), as published: pixels of a 112 px crop.
ARCFACE_POINTS = [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
ARCFACE_TEMPLATE = (np.array(ARCFACE_POINTS) + 0.5) / 112
POINTS = dict(zip(TEMPLATES, (ARCFACE_TEMPLATE, DLIB_TEMPLATE, FACENET_TEMPLATE), strict=True))
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# Largest share of the largest value by which an output may differ between runs of the same crops. Rounding
# stays far below, also that of float16; dropout and batch normalisation lie far above.
SAME = 0.02
ALIKE = 1e-5  # share by which outputs of different crops must differ
# Where pixels become 0 if a network normalises them itself, and the largest step of one grey level then:
# (x - 127.5) / 128, or the mean and the deviation of a data set's pixels.
CENTRES = (64, 192)
STEP = 1 / 16


def get_network(name: str, onnx: dict | None = None) -> Network:
    """Return a network of :data:`cid.recognition.NETWORKS`, or one in a file.

    Parameters
    ----------
    name : str
        Of the registry, or ``path/to/model.onnx@SHA256``, with 12 or more of the first digits of the
        file's checksum behind @.
    onnx : dict, optional
        Fields of :class:`OnnxOptions`, the section ``embed.onnx`` of params.yaml; only for files.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`study.faces.network_files.pinned` and :class:`OnnxNetwork`; also on an unknown name or
        option.
    """
    if not is_file(name):
        return recognition.get_network(name)
    path, sha256 = pinned(name)
    options = read(OnnxOptions, onnx or {}, "embed.onnx")
    return _in_file(path, sha256, options)


@lru_cache(maxsize=4)
def _in_file(path: Path, sha256: str, options: OnnxOptions) -> Network:
    net = OnnxNetwork(path, options)
    return Network(
        dimension=net.dimension,
        trunk_dimension=net.trunk_dimension,
        size=options.size,
        template=net.template,
        licence=LICENCES.get(sha256[:16], "see where it came from"),
        source=f"ONNX file {path.name}, SHA-256 {sha256}",
        load=lambda: net,
        key=f"{sha256} {options} onnxruntime {net.version}",
    )


class OnnxNetwork(nn.Module):
    """The network in a file: float crops (n, 3, size, size) in 0..255 -> (embedding (n, d), trunk (n, t)).

    The first output of the file is the embedding. The second, if there is one, is the trunk; a map is
    average pooled to 4 x 4. Without a second output the trunk is the embedding. A file made for a single
    image is run on one image at a time. Inputs that no node reads, as quantisation can leave them, are
    dropped.

    Raises
    ------
    ValueError
        If onnx or onnxruntime is not installed or cannot read the file, or if the input or the outputs are
        not as described above, except that channels can also come last and sides can be free; if made-up
        crops give embeddings that differ from run to run or with the other crops, that are all the same or
        zero, or not finite; from `forward`, if an output is not finite or an embedding is zero.
    """

    def __init__(self, path: Path, options: OnnxOptions):
        super().__init__()
        self.path = path
        self.options = options
        self.model = self._read_model()
        self.sessions = {"cpu": self._session("cpu")}
        self._read_input()
        self.outputs = [output.name for output in self.sessions["cpu"].get_outputs()[:2]]
        self.mean, self.scale = self._normalisation()
        if options.template in POINTS:
            self.template = POINTS[options.template]
        else:
            self.template = (np.array(options.template) + 0.5) / options.size
        embedding, trunk = self._try()
        self.dimension = embedding.shape[1]
        self.trunk_dimension = trunk.shape[1]

    def _read_model(self):
        """Return the file as onnx reads it, without inputs that no node reads."""
        try:
            import onnx
        except ImportError as error:
            raise ValueError(self._needs("onnx")) from error
        data = self.path.read_bytes()  # not by name: weights beside the file have no checksum
        try:
            model = onnx.load_model_from_string(data)
        except Exception as error:  # protobuf's own, of several versions
            raise ValueError(self._unreadable(error)) from error
        graphs = list(_graphs(model.graph))
        outside = onnx.TensorProto.EXTERNAL
        if any(tensor.data_location == outside for graph in graphs for tensor in _tensors(graph)):
            raise ValueError(
                f"{self.path} keeps weights in a second file; save it in one, as by "
                "torch.onnx.export(..., external_data=False)"
            )
        read = {name for graph in graphs for node in graph.node for name in node.input}
        read |= {one.name for one in (*model.graph.output, *model.graph.initializer)}
        inputs = [one for one in model.graph.input if one.name in read]
        if any(_in_training(node) for graph in graphs for node in graph.node):
            raise ValueError(
                f"{self.path} normalises by each batch, as in training; export it after model.eval()"
            )
        if inputs and len(inputs) < len(model.graph.input):
            del model.graph.input[:]
            model.graph.input.extend(inputs)
        return model

    def _needs(self, package: str) -> str:
        return f"{self.path} needs {package}; install it by pip install -c requirements.lock -e '.[onnx]'"

    def _unreadable(self, error: Exception) -> str:
        return (
            f"{self.path} is no ONNX file that onnxruntime can run: {_first_line(error)}; fetch or export "
            "it again"
        )

    def _session(self, device: str):
        """Load the file into onnxruntime; on a CPU with one thread, because every core has a caller."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(self._needs("onnxruntime")) from error
        self.version = onnxruntime.__version__
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1 if device == "cpu" else 0  # 0: all, if it has no CUDA
        settings.use_deterministic_compute = True
        settings.log_severity_level = 4  # errors are raised here; do not also print them
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", exact))
        try:
            data = self.model.SerializeToString()
            return onnxruntime.InferenceSession(data, settings, providers=providers)
        except Exception as error:
            raise ValueError(self._unreadable(error)) from error

    def _read_input(self) -> None:
        """Set the input's name, whether channels come first, and whether it takes a single image."""
        inputs = self.sessions["cpu"].get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or 3 not in (shape[1], shape[3]) or inputs[0].type not in TYPES:
            taken = ", ".join(f"{one.type} of shape {one.shape}" for one in inputs) or "nothing"
            raise ValueError(
                f"{self.path} takes {taken}; it must take images, (n, 3, h, w) or (n, h, w, 3), of "
                "float32 or float16"
            )
        fixed = [side if isinstance(side, int) and side > 0 else None for side in shape]
        self.input = inputs[0].name
        self.channels_first = shape[1] == 3
        self.single = fixed[0] == 1
        sides = fixed[2:] if self.channels_first else fixed[1:3]
        size = self.options.size
        if any(side not in (None, size) for side in sides):
            taken = " x ".join(str(side or "any") for side in sides)
            largest = max(side for side in sides if side)
            raise ValueError(
                f"{self.path} takes {taken} px, and size is {size}; write size: {largest} and the "
                "template that goes with it"
            )
        if fixed[0] not in (None, 1):
            raise ValueError(
                f"{self.path} takes exactly {fixed[0]} images at once; export it for one, or for any "
                "number"
            )

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale of pixels, (3, 1, 1) each, that fit the file.

        By "auto" a network whose first operations normalise pixels is fed pixels, and another one
        (x - 127.5) / 127.5. A ValueError if the settings would normalise for a network that does.
        """
        own = self._normalises()
        mean = self.options.mean
        scale = self.options.scale
        again = [
            value
            for value, neutral in ((mean, 0), (scale, 1))
            if value != "auto" and np.any(np.array(value) != neutral)
        ]
        if own and again:
            raise ValueError(
                f"{self.path} normalises pixels itself ({own}), so mean {mean} and scale {scale} would do "
                "it twice; write mean: 0 and scale: 1, or leave both out"
            )
        if own and "auto" in (mean, scale):
            print(
                f"{self.path} normalises pixels itself ({own}): it gets 0 to 255", file=sys.stderr
            )
        usual = (0.0, 1.0) if own else (127.5, 127.5)
        both = (usual[0] if mean == "auto" else mean, usual[1] if scale == "auto" else scale)
        return tuple(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in both)

    def _normalises(self) -> str:
        """Return the operations by which the network itself normalises pixels of 0..255, or no text."""
        kinds, a, b = _first_operations(self.model.graph, self.input)
        centred = a != 0 and CENTRES[0] <= -b / a <= CENTRES[1]
        if kinds and abs(a) <= STEP and (centred or b == 0):
            return " and ".join(kinds)
        return ""

    def _try(self) -> tuple[Tensor, Tensor]:
        """Return the outputs of two made-up crops, which are run together, again, and alone.

        A ValueError if they cannot be run, or if the outputs are none of a network that is in use.
        """
        size = self.options.size
        # One dark crop and one bright, of coarse spots, which no average hides.
        spots = np.random.default_rng(0).uniform(0, 1, (2, 3, 4, 4))
        dark = 100 * spots[:1]
        bright = 100 + 155 * spots[1:]
        spots = torch.from_numpy(np.concatenate([dark, bright])).float()
        crops = F.interpolate(spots, size, mode="bilinear")

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            try:
                outputs = self._run(x)
            except Exception as error:  # onnxruntime's own have no class in common
                raise ValueError(
                    f"{self.path} cannot be run: {_first_line(error)}; export it again"
                ) from error
            return self._embedding_and_trunk(outputs, len(x))

        together = run(crops)
        self._check_values(*together, "made-up images")
        for what, output in zip(("embedding", "trunk"), together, strict=True):
            if (output[0] - output[1]).abs().max() <= ALIKE * output.abs().max():
                raise ValueError(
                    f"{self.path} gives the same {what} for two different images; see whether mean and "
                    "scale are those it was trained with, or export it again"
                )
        alone = [torch.cat(parts) for parts in zip(run(crops[:1]), run(crops[1:]), strict=True)]
        for what, others in (("at every run", run(crops)), ("beside other images", alone)):
            for output, other in zip(together, others, strict=True):
                if (output - other).abs().max() > SAME * output.abs().max():
                    raise ValueError(
                        f"{self.path} gives an image other numbers {what}, as in training, with dropout or "
                        "the batch's own normalisation; export it after model.eval()"
                    )
        return together

    def _check_values(self, embedding: Tensor, trunk: Tensor, images: str = "images") -> None:
        """Raise a ValueError if values are not finite, or an embedding is zero."""
        finite = torch.isfinite(embedding).all(1) & torch.isfinite(trunk).all(1)
        for wrong, what in (
            (~finite, "values that are not finite"),
            (~embedding.any(1), "an embedding of zeros, which has no direction,"),
        ):
            if wrong.any():
                raise ValueError(
                    f"{self.path} gives {what} for {int(wrong.sum())} of {len(wrong)} {images}; see "
                    "whether mean, scale and channels are those it was trained with"
                )

    def _run(self, x: Tensor) -> list[np.ndarray]:
        """Return the first two outputs unchanged."""
        device = x.device.type
        if device not in self.sessions:
            self.sessions[device] = self._session(device)
        session = self.sessions[device]
        x = x.cpu()
        if self.options.channels == "bgr":
            x = x.flip(1)
        x = (x - self.mean) / self.scale
        if not self.channels_first:
            x = x.permute(0, 2, 3, 1)
        images = x.contiguous().numpy().astype(TYPES[session.get_inputs()[0].type])
        parts = np.split(images, len(images)) if self.single else [images]
        results = [session.run(self.outputs, {self.input: part}) for part in parts]
        outputs = zip(*results, strict=True)
        return [np.concatenate([np.atleast_1d(array) for array in arrays]) for arrays in outputs]

    def _embedding_and_trunk(self, outputs: list[np.ndarray], n: int) -> tuple[Tensor, Tensor]:
        """Return the embedding and trunk of n images as float32 tensors, or raise a ValueError."""
        embedding = outputs[0]
        trunk = outputs[1] if len(outputs) == 2 else embedding
        self._check_output("first", embedding, n, dimensions=[2], wanted="(n, d)")
        self._check_output("second", trunk, n, dimensions=[2, 4], wanted="(n, t) or a map")
        embedding = torch.from_numpy(embedding.astype(np.float32))
        trunk = torch.from_numpy(trunk.astype(np.float32))
        if trunk.ndim == 4:
            if not self.channels_first:
                trunk = trunk.permute(0, 3, 1, 2)
            trunk = F.adaptive_avg_pool2d(trunk, 4).flatten(1)
        return embedding, trunk

    def _check_output(
        self, name: str, output: np.ndarray, n: int, *, dimensions: list[int], wanted: str
    ) -> None:
        if output.ndim not in dimensions or len(output) != n:
            raise ValueError(
                f"{self.path} gives {output.shape} as its {name} output for {n} images; it must be "
                f"{wanted}: export it so"
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding, trunk = self._embedding_and_trunk(self._run(x), len(x))
        self._check_values(embedding, trunk)
        return embedding, trunk


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".;: ")


def _first_operations(graph, name: str) -> tuple[list[str], float, float]:
    """Return what a graph of onnx makes of its input ``name`` by constants, before any layer.

    The kinds of its operations, and a and b of the a x + b that they make of x together; where a constant
    differs between channels, its mean counts.
    """
    arrays = _arrays(graph)
    constants = {name: float(array.mean()) for name, array in arrays.items()}
    kinds = []
    a = 1.0
    b = 0.0
    while True:
        readers = [node for node in graph.node if name in node.input]
        if len(readers) != 1:
            return kinds, a, b
        (node,) = readers
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            first = node.input[0] == name
            constant = constants.get(node.input[1 if first else 0])
            backwards = node.op_type in ("Sub", "Div") and not first
            if constant is None or backwards:
                return kinds, a, b
            if node.op_type == "Add":
                b += constant
            elif node.op_type == "Sub":
                b -= constant
            else:
                factor = constant if node.op_type == "Mul" else 1 / constant
                a *= factor
                b *= factor
            kinds.append(node.op_type)
        elif node.op_type in ("BatchNormalization", "Conv"):
            factors = _per_channel(node, arrays)
            if factors is None:
                return kinds, a, b
            a, b = factors[0] * a, factors[0] * b + factors[1]
            kinds.append(node.op_type)
        elif node.op_type not in ("Identity", "Transpose", "Cast", "Gather", "Clip"):
            return kinds, a, b
        name = node.output[0]


def _per_channel(node, arrays: dict[str, np.ndarray]) -> tuple[float, float] | None:
    """Return a and b of what a batch normalisation or a convolution of single pixels makes of three channels.

    a x + b in the mean over channels; None if it is another one, as a layer of a network is.
    """
    known = [arrays.get(name) for name in node.input[1:]]
    if any(array is None for array in known):
        return None
    if node.op_type == "Conv":
        weight = known[0]
        bias = known[1] if len(known) > 1 else np.zeros(len(weight))
        if len(weight) != 3 or weight.ndim != 4 or weight.shape[2:] != (1, 1):
            return None
        return float(weight.sum(axis=(1, 2, 3)).mean()), float(bias.mean())
    scale, shift, mean, variance = known
    epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    return float(factor.mean()), float((shift - factor * mean).mean())


def _in_training(node) -> bool:
    """Whether a node of onnx normalises by the batch that it gets."""
    if node.op_type != "BatchNormalization":
        return False
    return any(one.name == "training_mode" and one.i for one in node.attribute)


def _arrays(graph) -> dict[str, np.ndarray]:
    """Return the constants of a graph of onnx that hold real numbers, by name."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    return {name: array for name, array in arrays.items() if array.size and array.dtype.kind == "f"}


def _graphs(graph) -> Iterator:
    """Yield a graph of onnx, and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _tensors(graph) -> Iterator:
    """Yield the constant tensors of a graph of onnx."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
