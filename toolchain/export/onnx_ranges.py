"""Histograms of the activations that a placement quantizes, from an ONNX graph that ONNX Runtime runs on calibration images.

The values become further outputs of the float graph; only their histograms are kept. Values that share a scale share one,
so that the ranges that `quantization.ranges` chooses from them are those that `insert_qdq.insert` takes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from toolchain.core import progress
from toolchain.export import onnx_graph
from toolchain.export.onnx_file import RUNTIME
from toolchain.export.onnx_model import OnnxModule
from toolchain.export.runtime import load_runtime
from toolchain.quantization.ranges import OBSERVERS, Histogram


def collect_histograms(
    model: OnnxModule, groups: Mapping[str, Sequence[str]], images: Sequence[Tensor], folder: Path
) -> dict[str, Histogram]:
    """Return a histogram of every group of values, measured in float in two passes over the images.

    Args:
        model: the float graph.
        groups: names of values by the one that stands for them, as `insert_qdq.group_quantized_values` gives them.
        images: normalised, each float32 [1, 3, height, width].
        folder: for the graph with further outputs, which is removed again.
    """
    representatives = {name: group for group, names in groups.items() for name in names}
    histograms: dict[str, Histogram] = {}
    with progress.show_bar("quantize: activation ranges", len(OBSERVERS) * len(images)) as bar:
        for observe in OBSERVERS:
            for image, values in observe_values(model, tuple(representatives), images, folder):
                for name, group in representatives.items():
                    observe(histograms, group, values.get(name, image))
                bar.step()
    return histograms


def observe_values(
    model: OnnxModule, names: Sequence[str], images: Sequence[Tensor], folder: Path
) -> Iterable[tuple[Tensor, Mapping[str, Tensor]]]:
    """Yield each image with the named values that the float graph computes for it; the image itself is none of them.

    Args: as for `collect_histograms`; `names` are those of values in the graph.
    """
    path = folder / "observed.onnx"
    observed = model.graph.clone()
    by_name = {str(value.name): value for node in observed.graph for value in node.outputs}
    outputs = set(observed.graph.outputs)
    for value in (by_name[name] for name in names if name in by_name):
        if value not in outputs:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            observed.graph.outputs.append(value)
    onnx_graph.save_model(observed, path)
    session = load_runtime(RUNTIME).open(path, threads=torch.get_num_threads(), precision="f32")
    path.unlink()
    for image in images:
        yield image, {name: _to_tensor(value) for name, value in session.outputs(image.numpy()).items()}


def _to_tensor(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value, np.float32))
