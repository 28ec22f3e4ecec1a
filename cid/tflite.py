"""Read the operators and the weights of a network in a TensorFlow Lite file.

The format is a flatbuffer, https://github.com/tensorflow/tensorflow/blob/v2.18.0/tensorflow/compiler/mlir/lite/schema/schema.fbs;
the package `tflite` holds its accessors. Nothing is computed here, and TensorFlow is not needed.
"""

from typing import Any, NamedTuple

import numpy as np

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


class Operator(NamedTuple):
    """One step of a network. Tensors have numbers; those of images have their channels last."""

    kind: str  # as in the schema, such as CONV_2D
    inputs: list[int]  # numbers of tensors
    output: int
    settings: Any


class Convolution(NamedTuple):
    """The weights and settings of a convolution, in the order of torch and ONNX."""

    weight: np.ndarray  # float32 (out, in of a group, height, width)
    bias: np.ndarray  # float32 (out,)
    groups: int
    strides: tuple[int, int]  # down and across
    same: bool  # padded with zeros so that stride 1 keeps the size; else not padded


class Graph:
    """The first graph of a TensorFlow Lite file."""

    def __init__(self, data: bytes):
        import tflite

        self._tflite = tflite
        self._model = tflite.Model.GetRootAs(data)
        self._graph = self._model.Subgraphs(0)
        self.inputs: list[int] = self._graph.InputsAsNumpy().tolist()
        self.outputs: list[int] = self._graph.OutputsAsNumpy().tolist()
        self.operators = self._read_operators()
        # Weights of float16 are widened by an operator of their own.
        self._widened = {
            operator.output: operator.inputs[0]
            for operator in self.operators
            if operator.kind == "DEQUANTIZE"
        }

    def _read_operators(self) -> list[Operator]:
        kinds = {value: name for name, value in vars(self._tflite.BuiltinOperator).items()}
        operators = []
        for number in range(self._graph.OperatorsLength()):
            operator = self._graph.Operators(number)
            code = self._model.OperatorCodes(operator.OpcodeIndex())
            kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            operators.append(
                Operator(
                    kind=kind,
                    inputs=operator.InputsAsNumpy().tolist(),
                    output=int(operator.Outputs(0)),
                    settings=operator.BuiltinOptions(),
                )
            )
        return operators

    def array(self, tensor: int) -> np.ndarray:
        """Return the weights in a tensor as float32; ValueError if they are stored as anything but floats."""
        tensor = self._widened.get(tensor, tensor)
        described = self._graph.Tensors(tensor)
        types = {self._tflite.TensorType.FLOAT32: "<f4", self._tflite.TensorType.FLOAT16: "<f2"}
        if described.Type() not in types:
            raise ValueError(f"tensor {self.name(tensor)} is not of float32 or float16")
        values = self._model.Buffers(described.Buffer()).DataAsNumpy()
        values = values.view(types[described.Type()]).astype(np.float32)
        return values.reshape(described.ShapeAsNumpy())

    def name(self, tensor: int) -> str:
        return self._graph.Tensors(tensor).Name().decode()

    def shape(self, tensor: int) -> list[int]:
        return self._graph.Tensors(tensor).ShapeAsNumpy().tolist()

    def convolution(self, operator: Operator) -> Convolution:
        """Read a convolution; ValueError if it has an activation or a dilation."""
        depthwise = operator.kind == "DEPTHWISE_CONV_2D"
        if depthwise:
            options = self._tflite.DepthwiseConv2DOptions()
        else:
            options = self._tflite.Conv2DOptions()
        options.Init(operator.settings.Bytes, operator.settings.Pos)
        if options.FusedActivationFunction() or options.DilationHFactor() != 1:
            raise ValueError(
                f"{operator.kind} number {operator.output} has an activation or a dilation"
            )
        weight = self.array(operator.inputs[1])
        weight = weight.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
        return Convolution(
            weight=weight,
            bias=self.array(operator.inputs[2]),
            groups=len(weight) if depthwise else 1,
            strides=(options.StrideH(), options.StrideW()),
            same=options.Padding() == self._tflite.Padding.SAME,
        )
