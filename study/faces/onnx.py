"""Face-recognition networks in ONNX files, run by onnxruntime."""

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
from study.faces.network_files import TEMPLATES, OnnxOptions, is_file, pinned

# ArcFace's template (Deng et al. 2019, arXiv 1801.07698), as published: pixels of a 112 px crop.
ARCFACE_POINTS = [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
ARCFACE_TEMPLATE = (np.array(ARCFACE_POINTS) + 0.5) / 112
POINTS = dict(zip(TEMPLATES, (ARCFACE_TEMPLATE, DLIB_TEMPLATE, FACENET_TEMPLATE), strict=True))
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
PROBES = 2  # made-up crops that are run once, to learn the sizes of the outputs


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
        licence="see where it came from",
        source=f"ONNX file {path.name}, SHA-256 {sha256}",
        load=lambda: net,
        key=f"{sha256} {options} onnxruntime {net.version}",
    )


class OnnxNetwork(nn.Module):
    """The network in a file: float crops (n, 3, size, size) in 0..255 -> (embedding (n, d), trunk (n, t)).

    The first output of the file is the embedding. The second, if there is one, is the trunk; a map is
    average pooled to 4 x 4. Without a second output the trunk is the embedding. A file made for a single
    image is run on one image at a time.

    Raises
    ------
    ValueError
        If onnxruntime is not installed or cannot run the file, or if the input or the outputs are not as
        described above, except that channels can also come last and sides can be free; from `forward`,
        if an output is not finite.
    """

    def __init__(self, path: Path, options: OnnxOptions):
        super().__init__()
        self.path = path
        self.options = options
        self.sessions = {"cpu": self._session("cpu")}
        self._read_input()
        self.outputs = [output.name for output in self.sessions["cpu"].get_outputs()[:2]]
        self.mean = torch.tensor(options.mean).view(-1, 1, 1)
        self.scale = torch.tensor(options.scale).view(-1, 1, 1)
        if options.template in POINTS:
            self.template = POINTS[options.template]
        else:
            self.template = (np.array(options.template) + 0.5) / options.size
        size = options.size
        probes = torch.arange(PROBES * 3 * size**2) % 251.0  # not constant, and not alike
        try:
            outputs = self._run(probes.view(PROBES, 3, size, size))
        except Exception as error:  # onnxruntime's own have no class in common
            raise ValueError(
                f"{path} cannot be run: {_first_line(error)}; export it again"
            ) from error
        embedding, trunk = self._embedding_and_trunk(outputs, PROBES)
        self.dimension = embedding.shape[1]
        self.trunk_dimension = trunk.shape[1]

    def _session(self, device: str):
        """Load the file into onnxruntime; on a CPU with one thread, because every core has a caller."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f"{self.path} needs onnxruntime; install it by pip install -c requirements.lock "
                "-e '.[onnx]'"
            ) from error
        self.version = onnxruntime.__version__
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1 if device == "cpu" else 0  # 0: all, if it has no CUDA
        settings.use_deterministic_compute = True
        settings.log_severity_level = 4  # errors are raised here; do not also print them
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", exact))
        data = self.path.read_bytes()  # not by name: weights beside the file have no checksum
        if b"\n\x08location" in data:
            raise ValueError(
                f"{self.path} keeps weights in a second file; save it in one, as by "
                "torch.onnx.export(..., external_data=False)"
            )
        try:
            return onnxruntime.InferenceSession(data, settings, providers=providers)
        except Exception as error:
            raise ValueError(
                f"{self.path} is no ONNX file that onnxruntime can run: {_first_line(error)}; fetch or "
                "export it again"
            ) from error

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
        finite = torch.isfinite(embedding).all(1) & torch.isfinite(trunk).all(1)
        if not finite.all():
            count = int((~finite).sum())
            raise ValueError(
                f"{self.path} gives values that are not finite for {count} of {len(x)} images; see "
                "whether mean, scale and channels are those it was trained with"
            )
        return embedding, trunk


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".;: ")
