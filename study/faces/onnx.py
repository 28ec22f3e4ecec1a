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

# ArcFace's (Deng et al. 2019, arXiv 1801.07698), as published: pixels of a 112 px crop.
ARCFACE_TEMPLATE = [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
ARCFACE_TEMPLATE = (np.array(ARCFACE_TEMPLATE) + 0.5) / 112
POINTS = dict(zip(TEMPLATES, (ARCFACE_TEMPLATE, DLIB_TEMPLATE, FACENET_TEMPLATE), strict=True))
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
PROBES = 2  # crops by which the sizes of the outputs are found


def get_network(name: str, onnx: dict | None = None) -> Network:
    """A network of :data:`cid.recognition.NETWORKS`, or one in a file, ``path/to/model.onnx@SHA256``.

    Behind @ stand 12 or more of the first digits of the file's checksum; ``onnx`` is the section
    ``embed.onnx`` of params.yaml, fields of :class:`OnnxOptions`, of a file alone. Errors are those of
    :func:`study.faces.network_files.pinned` and :class:`OnnxNetwork`, or a ValueError on an unknown name
    or option.
    """
    if not is_file(name):
        return recognition.get_network(name)
    return _in_file(*pinned(name), read(OnnxOptions, onnx or {}, "embed.onnx"))


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
    """The network of a file: float crops (n, 3, size, size) in 0..255 -> (embedding (n, d), trunk (n, t)).

    Its first output is the embedding; its second, if there is one, the trunk, a map being average
    pooled to 4 x 4; else the trunk is the embedding. A file made for one image is run on one at a time.

    Raises
    ------
    ValueError
        If onnxruntime is not installed or cannot run the file, or if input or outputs are not what is
        said above, layout and size of the input aside; from `forward`, if an output is not finite.
    """

    def __init__(self, path: Path, options: OnnxOptions):
        super().__init__()
        self.path, self.options = path, options
        self.sessions = {"cpu": self._session("cpu")}
        self.input, self.channels_first, self.single = self._taken()
        self.outputs = [one.name for one in self.sessions["cpu"].get_outputs()[:2]]
        values = (options.mean, options.scale)
        self.mean, self.scale = (torch.tensor(v).view(-1, 1, 1) for v in values)
        named, size = options.template, options.size
        self.template = POINTS[named] if named in POINTS else (np.array(named) + 0.5) / size
        probes = torch.arange(PROBES * 3 * size**2) % 251.0  # neither flat nor alike
        try:
            found = self._run(probes.view(PROBES, 3, size, size))
        except Exception as error:  # onnxruntime's own have no class in common
            problem = f"{path} cannot be run: {_first_line(error)}"
            raise ValueError(f"{problem}; export it again") from error
        self.dimension, self.trunk_dimension = (part.shape[1] for part in self._fitting(*found))

    def _session(self, device: str):
        """The file as onnxruntime runs it; for a CPU with one thread, as there is a caller a core."""
        try:
            import onnxruntime
        except ImportError as error:
            remedy = "pip install -c requirements.lock -e '.[onnx]'"
            raise ValueError(f"{self.path} needs onnxruntime; install it by {remedy}") from error
        self.version = onnxruntime.__version__
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1 if device == "cpu" else 0  # all, where it has no CUDA
        settings.use_deterministic_compute = True
        settings.log_severity_level = 4  # what is wrong is raised, and said once
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", exact))
        data = self.path.read_bytes()  # not by name: weights beside the file have no checksum
        if b"\n\x08location" in data:
            remedy = "save it in one, as by torch.onnx.export(..., external_data=False)"
            raise ValueError(f"{self.path} keeps weights in a second file; {remedy}")
        try:
            return onnxruntime.InferenceSession(data, settings, providers=providers)
        except Exception as error:
            problem = f"{self.path} is no ONNX file that onnxruntime can run: {_first_line(error)}"
            raise ValueError(f"{problem}; fetch or export it again") from error

    def _taken(self) -> tuple[str, bool, bool]:
        """The input's name, whether channels are its second dimension, whether it is of one image."""
        inputs, size = self.sessions["cpu"].get_inputs(), self.options.size
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or 3 not in (shape[1], shape[3]) or inputs[0].type not in TYPES:
            given = ", ".join(f"{one.type} of shape {one.shape}" for one in inputs)
            wanted = "images, (n, 3, h, w) or (n, h, w, 3), of float32 or float16"
            raise ValueError(f"{self.path} takes {given or 'nothing'}; it must take {wanted}")
        first = shape[1] == 3
        count, *sides = [n if isinstance(n, int) and n > 0 else None for n in shape]
        sides = sides[1:] if first else sides[:2]
        if any(side not in (None, size) for side in sides):
            given = " x ".join(str(side or "any") for side in sides)
            remedy = f"write size: {max(filter(None, sides))} and the template that goes with it"
            raise ValueError(f"{self.path} takes {given} px, and size is {size}; {remedy}")
        if count not in (None, 1):
            remedy = "export it for one, or for any number"
            raise ValueError(f"{self.path} takes exactly {count} images at once; {remedy}")
        return inputs[0].name, first, count == 1

    def _run(self, x: Tensor) -> list[np.ndarray]:
        """The first two outputs as they are."""
        kind, x = x.device.type, x.cpu()
        if kind not in self.sessions:
            self.sessions[kind] = self._session(kind)
        session = self.sessions[kind]
        x = ((x.flip(1) if self.options.channels == "bgr" else x) - self.mean) / self.scale
        x = (x if self.channels_first else x.permute(0, 2, 3, 1)).contiguous()
        images = x.numpy().astype(TYPES[session.get_inputs()[0].type])
        parts = np.split(images, len(images)) if self.single else [images]
        found = zip(*(session.run(self.outputs, {self.input: part}) for part in parts), strict=True)
        return [np.concatenate([np.atleast_1d(array) for array in arrays]) for arrays in found]

    def _fitting(self, vector: np.ndarray, trunk: np.ndarray | None = None, n=PROBES) -> list:
        """Embedding and trunk of n images as float32 tensors, or a ValueError."""
        trunk = vector if trunk is None else trunk
        for name, array, dimensions in (("first", vector, [2]), ("second", trunk, [2, 4])):
            if array.ndim not in dimensions or len(array) != n:
                wanted = "(n, d)" if name == "first" else "(n, t) or a map"
                given = f"gives {array.shape} as its {name} output for {n} images"
                raise ValueError(f"{self.path} {given}; it must be {wanted}: export it so")
        vector, trunk = (torch.from_numpy(a.astype(np.float32)) for a in (vector, trunk))
        if trunk.ndim == 4:
            trunk = trunk if self.channels_first else trunk.permute(0, 3, 1, 2)
            trunk = F.adaptive_avg_pool2d(trunk, 4).flatten(1)
        return [vector, trunk]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vector, trunk = self._fitting(*self._run(x), n=len(x))
        finite = torch.isfinite(vector).all(1) & torch.isfinite(trunk).all(1)
        if not finite.all():
            many = f"{int((~finite).sum())} of {len(x)} images"
            remedy = "see whether mean, scale and channels are those it was trained with"
            raise ValueError(f"{self.path} gives values that are not finite for {many}; {remedy}")
        return vector, trunk


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".;: ")
