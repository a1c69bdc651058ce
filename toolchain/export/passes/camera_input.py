"""Preprocessing inside the graph: the model takes a camera's raw frames, and resizes and normalises them itself.

The arithmetic is that of the bundle's runner (Pillow's filters, first across, then down, each rounded to whole values;
bars, cropping and the order of the channels as in edge/pixels.py; then one multiplication and one subtraction), so that a
board without Python sees the same pixels. It is written out in gathers and sums: Resize with antialiasing differs between
runtimes, and from Pillow.
"""

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolchain.core.types import Interpolation, Preprocessing
from toolchain.edge import pixels

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
    fitting, constants, last = _fit_nodes(last, preprocess, frame)
    nodes += fitting
    if preprocess.order == "bgr" and channels == 3:
        constants["frame_order"] = np.array([2, 1, 0], np.int64)
        nodes.append(helper.make_node("Gather", [last, "frame_order"], ["frame_blue_first"], axis=1))
        last = "frame_blue_first"
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


def _fit_nodes(
    source: str, preprocess: Preprocessing, frame: tuple[int, int]
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]:
    """Return the nodes, and their constants, that bring a frame (height, width) to the input's size; and their output."""
    resized, window, corner = pixels.plan(frame, preprocess.image_size, preprocess.fit, preprocess.crop_share)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    last = source
    for axis, name in ((1, "frame_across"), (0, "frame_down")):
        used = slice(window[axis], window[axis] + window[axis + 2])
        if frame[axis] != resized[axis]:
            taps = filter_taps if preprocess.antialias else pixels.point_taps
            indices, weights = (values[used] for values in taps(frame[axis], resized[axis], preprocess.interpolation))
            weights = weights.astype(np.float32)
            constants |= {f"{name}_taps": indices, f"{name}_weights": weights if axis else weights[..., None]}
            constants[f"{name}_axis"] = np.array([axis + 3], np.int64)
            nodes += _filter_nodes(last, name, axis + 2)
            last = name
            if preprocess.interpolation == "bicubic":  # which swings beyond black and white
                constants |= {"frame_black": np.array(0, np.float32), "frame_white": np.array(255, np.float32)}
                last = f"{name}_clipped"
                nodes.append(helper.make_node("Clip", [name, "frame_black", "frame_white"], [last]))
        elif window[axis + 2] != frame[axis]:
            constants[f"{name}_window"] = np.arange(used.start, used.stop)
            nodes.append(helper.make_node("Gather", [last, f"{name}_window"], [name], axis=axis + 2))
            last = name
    if window[2:] != preprocess.image_size:
        bars, colours = _bar_nodes(last, window[2:], corner, preprocess)
        nodes, constants, last = nodes + bars, constants | colours, "frame_fitted"
    return nodes, constants, last


def _bar_nodes(
    source: str, shown: tuple[int, int], corner: tuple[int, int], preprocess: Preprocessing
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Return the nodes, and their constants, that put bars around an image of the size `shown` (height, width).

    Bars are padded with zeros about the colour that they will have, so that no constant is as large as the image.
    """
    (top, left), (height, width) = corner, preprocess.image_size
    bottom, right = height - shown[0] - top, width - shown[1] - left
    colour = preprocess.fill if preprocess.mode == "rgb" else preprocess.fill[:1]
    constants: dict[str, np.ndarray] = {
        "frame_fill": np.asarray(colour, np.float32).reshape(1, -1, 1, 1),
        "frame_bars": np.array([0, 0, top, left, 0, 0, bottom, right], np.int64),
        "frame_nothing": np.array(0, np.float32),
    }
    nodes = [
        helper.make_node("Sub", [source, "frame_fill"], ["frame_about_fill"]),
        helper.make_node("Pad", ["frame_about_fill", "frame_bars", "frame_nothing"], ["frame_padded"]),
        helper.make_node("Add", ["frame_padded", "frame_fill"], ["frame_fitted"]),
    ]
    return nodes, constants


def filter_taps(
    input_size: int, output_size: int, interpolation: Interpolation = "bilinear"
) -> tuple[np.ndarray, np.ndarray]:
    """Return Pillow's filter along one dimension, which antialiases.

    Args:
        input_size: pixels of the input.
        output_size: pixels of the output.
        interpolation: which of its filters.

    Returns:
        indices of the input pixels that are summed, int64 [output_size, taps], and their weights, float32 of that shape.

    Source: Pillow, Resample.c, precompute_coeffs.
    """
    scale = input_size / output_size
    stretch = max(scale, 1.0)  # antialiasing: the filter covers all input pixels of one output pixel
    reach = {"bilinear": 1.0, "bicubic": 2.0, "area": 0.5}[interpolation] * stretch
    count = 2 * math.ceil(reach) + 1
    indices, weights = np.zeros((output_size, count), np.int64), np.zeros((output_size, count))
    for position in range(output_size):
        centre = (position + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(input_size, int(centre + reach + 0.5))
        positions = np.arange(first, last)
        heights = _filter_height(positions - centre + 0.5, stretch, interpolation)
        indices[position, : len(positions)], weights[position, : len(positions)] = positions, heights / heights.sum()
    return indices, weights.astype(np.float32)


def _filter_height(distance: np.ndarray, stretch: float, interpolation: Interpolation) -> np.ndarray:
    """Return the height of a filter, before its sum is made 1, at distances in input pixels."""
    if interpolation == "bilinear":
        height: np.ndarray = np.maximum(0, 1 - np.abs(distance / stretch))
        return height
    x = distance * (1 / stretch)  # as Pillow counts, because a box's edge may lie on a pixel
    if interpolation == "area":
        return ((x > -0.5) & (x <= 0.5)).astype(float)
    near, far = np.abs(x).clip(0, 1), np.abs(x).clip(1, 2)
    bicubic: np.ndarray = (1.5 * near - 2.5) * near**2 + 1
    bicubic[np.abs(x) >= 1] = (((-0.5 * far + 2.5) * far - 4) * far + 2)[np.abs(x) >= 1]
    return bicubic


def _filter_nodes(source: str, result: str, axis: int) -> list[onnx.NodeProto]:
    """Return the nodes that filter one axis of [1, channels, height, width], rounding half up as Pillow does."""
    return [
        helper.make_node("Gather", [source, f"{result}_taps"], [f"{result}_seen"], axis=axis),
        helper.make_node("Mul", [f"{result}_seen", f"{result}_weights"], [f"{result}_weighed"]),
        helper.make_node("ReduceSum", [f"{result}_weighed", f"{result}_axis"], [f"{result}_exact"], keepdims=0),
        helper.make_node("Add", [f"{result}_exact", "frame_half"], [f"{result}_above"]),
        helper.make_node("Floor", [f"{result}_above"], [result]),
    ]
