"""The image that a foreign ONNX file takes and the logits that it gives, and the graph with ours in their place.

Ours are an input `input`, float32 [1, 3, height, width], and an output `logits`, float32 [1, classes].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from toolchain.core.errors import ToolchainError
from toolchain.export.onnx_file import list_names
from toolchain.export.onnx_graph import add_initializer

INPUT, OUTPUT = "input", "logits"
CHANNELS = (1, 3)
SOFTMAXES = {"Softmax", "LogSoftmax"}
READ_TYPES = {"float32", "float16", "float64", "bfloat16", "uint8"}


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The input of a foreign graph."""

    name: str
    dtype: str
    layout: Literal["NCHW", "NHWC"]
    channels: int
    batch: int | None  # None: any
    size: tuple[int | None, int | None]  # height, width; None: any

    def describe(self) -> str:
        """Return the input as a user writes it: `pixels, float32 [any, 3, 224, 224]`."""
        sides = [self.channels, *self.size] if self.layout == "NCHW" else [*self.size, self.channels]
        shape = ", ".join("any" if side is None else str(side) for side in (self.batch, *sides))
        return f"{self.name}, {self.dtype} [{shape}]"


def read_input(model: onnx.ModelProto, path: Path) -> ImageInput:
    """Return what image a model takes.

    Args:
        model: as `onnx_file.load` returns it.
        path: of its file, for messages.

    Raises:
        ToolchainError: it has no input or several, or one that is no image.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        given = list_names([value.name for value in inputs]) or "none"
        raise ToolchainError(
            f"{path} has {len(inputs)} inputs ({given}); it must have one, the image: export a module that supplies the others"
        )
    (value,) = inputs
    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    layout = _find_layout(shape)
    if layout is None or dtype not in READ_TYPES:
        shown = ", ".join("any" if side is None else str(side) for side in shape)
        raise ToolchainError(
            f"{path}: its input {value.name} is {dtype} [{shown}]; accepted are images [batch, channels, height, width] or "
            f"[batch, height, width, channels] with 1 or 3 channels, as {', '.join(sorted(READ_TYPES))}"
        )
    sides = shape[1:] if layout == "NCHW" else (shape[3], shape[1], shape[2])
    return ImageInput(
        name=value.name, dtype=dtype, layout=layout, channels=sides[0] or 3, batch=shape[0], size=(sides[1], sides[2])
    )


def _find_layout(shape: Sequence[int | None]) -> Literal["NCHW", "NHWC"] | None:
    if len(shape) != 4:
        return None
    if shape[1] in CHANNELS or (shape[1] is None and shape[3] not in CHANNELS):
        return "NCHW"
    return "NHWC" if shape[3] in CHANNELS else None


def replace_input(model: ir.Model, image: ImageInput, size: tuple[int, int]) -> list[str]:
    """Give a graph our input, float32 [1, 3, height, width]; return what that changed, in words.

    Args:
        model: changed.
        image: its input.
        size: height and width that images are resized to.
    """
    graph, changes = model.graph, list[str]()
    (value,) = (value for value in graph.inputs if value.name == image.name)
    graph.inputs[:] = [value]
    readers = [(use.node, use.idx) for use in value.uses()]
    _free_name(graph, INPUT, value)
    value.name, value.shape, value.type = INPUT, ir.Shape([1, 3, *size]), ir.TensorType(ir.DataType.FLOAT)
    steps = list[ir.Node]()
    if image.channels == 1:
        zero = add_initializer(graph, "input_channel_start", np.asarray([0], np.int64))
        one = add_initializer(graph, "input_channel_end", np.asarray([1], np.int64))  # also the axis of the channels
        steps.append(ir.node("Slice", [value, zero, one, one], name="input/Slice"))
        changes.append("one colour channel: the first of three equal ones is read")
    if image.layout == "NHWC":
        source = steps[-1].outputs[0] if steps else value
        steps.append(ir.node("Transpose", [source], attributes={"perm": [0, 2, 3, 1]}, name="input/Transpose"))
        changes.append("channels last: the image is transposed in the graph, or the graph's own transposition dropped")
    if steps:
        graph.insert_before(next(iter(graph)), steps)
        for number, step in enumerate(steps):
            step.outputs[0].name = f"input_{number}"
            step.outputs[0].type = value.type
        for node, index in readers:
            node.replace_input_with(index, steps[-1].outputs[0])
    if image.dtype == "uint8":
        changes.append(
            "uint8 input: it normalises inside, so pixels are given as 0 to 255 and [model] mean and std are not used"
        )
    elif image.dtype != "float32":
        changes.append(f"{image.dtype} input: float32 is given")
    if image.batch != 1:
        changes.append("any batch size: fixed to 1" if image.batch is None else f"batch of {image.batch}: fixed to 1")
    if None in image.size:
        changes.append(f"any height and width: fixed to {size[0]}x{size[1]}")
    return changes


def last_softmax(model: ir.Model) -> str:
    """Return the type of the softmax that gives the output; "" where there is none."""
    node = model.graph.outputs[0].producer() if model.graph.outputs else None
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node.op_type if node is not None and node.op_type in SOFTMAXES else ""


def replace_output(model: ir.Model, path: Path) -> list[str]:
    """Give a graph our output, logits before a softmax; return what a user has to know of that, in words.

    Args:
        model: changed; shapes need not be known.
        path: of its file, for messages.

    Raises:
        ToolchainError: it has several outputs.
    """
    graph, warnings = model.graph, list[str]()
    if len(graph.outputs) != 1:
        names = list_names([str(value.name) for value in graph.outputs])
        raise ToolchainError(
            f"{path} has {len(graph.outputs)} outputs ({names}); only classification is read from an ONNX file alone, with one "
            "output [1, classes]: export the model with that output only"
        )
    output = graph.outputs[0]
    producer = output.producer()
    while producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
        output, producer = producer.inputs[0], producer.inputs[0].producer()
    if producer is not None and producer.op_type in SOFTMAXES and producer.inputs[0] is not None:
        output = producer.inputs[0]
        warnings.append(
            f"its last operation is a {producer.op_type}: the model that ships ends before it, with the logits, of which the "
            "runner takes the softmax; a board that reads probabilities from the model itself has to do the same"
        )
    elif producer is not None and producer.op_type == "Sigmoid":
        warnings.append("its last operation is a Sigmoid: the class with the highest output is taken as the only one")
    if output.producer() is None:
        raise ToolchainError(f"{path}: its output is its input or a constant; it is no classifier")
    _free_name(graph, OUTPUT, output)
    output.name = OUTPUT
    graph.outputs[0] = output
    return warnings


def flatten_output(model: ir.Model) -> None:
    """Turn an output [1, classes, 1, 1] into [1, classes]."""
    graph = model.graph
    output = graph.outputs[0]
    if output.shape is not None and len(output.shape) == 4 and list(output.shape)[2:] == [1, 1]:
        output.name = f"{OUTPUT}_map"
        flatten = ir.node("Flatten", [output], attributes={"axis": 1}, name="logits/Flatten")
        flatten.outputs[0].name, flatten.outputs[0].type = OUTPUT, output.type
        flatten.outputs[0].shape = ir.Shape(list(output.shape)[:2])
        graph.append(flatten)
        graph.outputs[0] = flatten.outputs[0]


def count_classes(model: ir.Model, path: Path) -> int:
    """Return the number of logits.

    Raises:
        ToolchainError: the output is not [1, classes].
    """
    shape = model.graph.outputs[0].shape
    sides = list(shape.numpy()) if shape is not None and shape.is_static() else []
    if len(sides) != 2 or sides[0] != 1 or sides[1] < 2:
        shown = "of unknown shape" if shape is None else str(shape)
        raise ToolchainError(
            f"{path}: its output is {shown}; only classification is read from an ONNX file alone, with one output [1, classes]. "
            "A detector or a segmenter has to come as its module, --model net.py:build"
        )
    return int(sides[1])


def _free_name(graph: ir.Graph, name: str, owner: ir.Value) -> None:
    """Rename any other value that has the name of our input or output."""
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    for value in values:
        if value.name == name and value is not owner:
            value.name = f"{name}_of_file"
