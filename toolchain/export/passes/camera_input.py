"""Preprocessing inside the graph: the model takes a camera's raw frames, and resizes and normalises them itself.

The arithmetic is that of the bundle's runner (Pillow's bilinear filter with antialiasing, first across, then down, each
rounded to whole values; then one multiplication and one subtraction), so that a board without Python sees the same
pixels. It is written out in gathers and sums: Resize with antialiasing differs between runtimes, and from Pillow.
"""

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolchain.core.types import Preprocessing

INPUT_NAME = "frame"


def fold_preprocessing(source: Path, preprocess: Preprocessing, frame: tuple[int, int], path: Path) -> None:
    """Write a copy of an ONNX model that takes uint8 [1, height, width, 3], or [1, height, width, 1] for gray.

    Args:
        source: model with one float32 input [1, 3, height, width].
        preprocess: the preprocessing that the model was trained with.
        frame: height and width of the camera's frames, pixels.
        path: of the file to write.
    """
    model = onnx.load(source)
    graph, model_input = model.graph, model.graph.input[0].name
    channels, last = 1 if preprocess.mode == "gray" else 3, "frame_planes"
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["frame_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["frame_float"], [last], perm=[0, 3, 1, 2]),
    ]
    constants: dict[str, np.ndarray] = {}
    for axis, name in ((1, "frame_across"), (0, "frame_down")):
        if frame[axis] != preprocess.image_size[axis]:
            indices, weights = filter_taps(frame[axis], preprocess.image_size[axis])
            constants |= {f"{name}_taps": indices, f"{name}_weights": weights if axis else weights[..., None]}
            constants[f"{name}_axis"] = np.array([axis + 3], np.int64)
            nodes += _filter_nodes(last, name, axis + 2)
            last = name
    std, mean = (np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in (preprocess.std, preprocess.mean))
    constants |= {
        "frame_half": np.array([0.5], np.float32),
        "frame_scale": np.float32(1 / 255) / std,
        "frame_shift": mean / std,
    }
    nodes += [
        helper.make_node("Mul", [last, "frame_scale"], ["frame_scaled"]),
        helper.make_node("Sub", ["frame_scaled", "frame_shift"], [model_input]),
    ]
    model_nodes = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *model_nodes])
    read = {name for node in nodes for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in constants.items() if name in read
    )
    graph.input.append(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, (1, *frame, channels)))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def filter_taps(input_size: int, output_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Pillow's bilinear filter along one dimension.

    Args:
        input_size: pixels of the input.
        output_size: pixels of the output.

    Returns:
        indices of the input pixels that are summed, int64 [output_size, taps], and their weights, float32 of that shape.

    Source: Pillow, Resample.c, precompute_coeffs.
    """
    scale = input_size / output_size
    reach = max(scale, 1.0)  # antialiasing: the filter covers all input pixels of one output pixel
    count = 2 * math.ceil(reach) + 1
    indices, weights = np.zeros((output_size, count), np.int64), np.zeros((output_size, count))
    for position in range(output_size):
        centre = (position + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(input_size, int(centre + reach + 0.5))
        pixels = np.arange(first, last)
        heights = np.maximum(0, 1 - np.abs((pixels - centre + 0.5) / reach))
        indices[position, : len(pixels)], weights[position, : len(pixels)] = pixels, heights / heights.sum()
    return indices, weights.astype(np.float32)


def _filter_nodes(source: str, result: str, axis: int) -> list[onnx.NodeProto]:
    """Return the nodes that filter one axis of [1, channels, height, width], rounding half up as Pillow does."""
    return [
        helper.make_node("Gather", [source, f"{result}_taps"], [f"{result}_seen"], axis=axis),
        helper.make_node("Mul", [f"{result}_seen", f"{result}_weights"], [f"{result}_weighed"]),
        helper.make_node("ReduceSum", [f"{result}_weighed", f"{result}_axis"], [f"{result}_exact"], keepdims=0),
        helper.make_node("Add", [f"{result}_exact", "frame_half"], [f"{result}_above"]),
        helper.make_node("Floor", [f"{result}_above"], [result]),
    ]
