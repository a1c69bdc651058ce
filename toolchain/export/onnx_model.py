"""A model that is only an ONNX file, in the place of a torch module: it is read once, and run in ONNX Runtime.

Reading gives two graphs. The reference computes what the file says, with our input and output alone in place of its own;
every artefact has to agree with it. The float graph is the same one simplified, from which artefacts are made. The file
itself, the reference and the float graph are compared on random images before anything else is done.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import version_converter
from torch import Tensor, nn

from toolchain.core import files
from toolchain.core.errors import ToolchainError, first_line
from toolchain.export import count_macs, onnx_file, onnx_graph, onnx_interface, same_file
from toolchain.export.onnx_file import RUNTIME
from toolchain.export.passes import foreign_graph
from toolchain.export.runtime import Session, load_runtime
from toolchain.export.to_onnx import OPSET

OLDEST_QDQ_OPSET = 13  # the first with scales by channel


class OnnxModule(nn.Module):
    """A graph with the input [1, 3, height, width] and the output [1, classes], run in ONNX Runtime without optimizations."""

    def __init__(self, graph: ir.Model, path: Path, reference: Path | None = None) -> None:
        """Wrap a graph.

        Args:
            graph: float32, with a module's name at every node; from it artefacts are made.
            path: its file.
            reference: the file that is run; None: `path`.
        """
        super().__init__()
        self.graph, self.path, self.reference = graph, path, reference or path

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [images, classes] of images, float32 [images, 3, height, width]."""
        rows = [self.session.run(image[None])[0] for image in images.numpy()]
        return torch.from_numpy(np.stack(rows))

    @cached_property
    def session(self) -> Session:
        """The loaded graph."""
        return load_runtime(RUNTIME).open(
            self.reference, threads=torch.get_num_threads(), precision="f32", optimized=False
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return count_macs.count(self.path) or 0

    @property
    def weight_count(self) -> int:
        """Number of values in all weights and biases."""
        tensors = (value.const_value for value in self.graph.graph.initializers.values())
        return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype is ir.DataType.FLOAT)

    @property
    def module_names(self) -> tuple[str, ...]:
        """Names of the modules that the nodes belong to, and of those around them."""
        names = dict.fromkeys(onnx_graph.module_name(node) for node in self.graph.graph)
        parents = (name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1))
        return tuple(dict.fromkeys((*names, *parents)))

    def extra_repr(self) -> str:
        """Return a digest of the structure, which decides the latency, in place of torch's list of modules."""
        graph = self.graph.graph
        nodes = [
            (node.op_type, [value and value.name for value in node.inputs], sorted(map(str, node.attributes.values())))
            for node in graph
        ]
        return files.digest(nodes, {name: str(value.shape) for name, value in graph.initializers.items()})


def runtime_version() -> dict[str, str]:
    """Return the runtime that the graphs are run in, with its version, for cache keys.

    Raises:
        ToolchainError: it is not installed.
    """
    return dict(load_runtime(RUNTIME).fingerprint())


def read(path: Path, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Read an ONNX file into a reference and a float graph, and compare both with the file itself.

    Args:
        path: the file.
        size: height and width of the images.
        folder: both graphs are written to it.

    Returns:
        facts for the report: operator set, input, number of classes, what reading changed, and warnings, in words.

    Raises:
        ToolchainError: as `onnx_file.load`; it is no classifier of one image; ONNX Runtime does not run it, or the graph that
            was read computes something else.
    """
    proto, _ = onnx_file.load(path)
    image = onnx_interface.read_input(proto, path)
    model, changes = _convert_opset(proto, path)
    changes += onnx_interface.replace_input(model, image, size)
    widened = foreign_graph.widen_floats(model)
    changes += ["floats of other widths: all computed in float32"] if widened else []
    softmax = onnx_interface.last_softmax(model)
    warnings = onnx_interface.replace_output(model, path)
    foreign_graph.infer_shapes(model)
    onnx_interface.flatten_output(model)
    onnx_graph.remove_dead_nodes(model.graph)
    onnx_graph.save_model(model, folder / "reference.onnx")
    simplified = foreign_graph.normalize(model)
    classes = onnx_interface.count_classes(simplified, path)
    onnx_graph.save_model(simplified, folder / "float.onnx")
    same_file.check(path, image, size, folder, softmax=softmax, widened=widened)
    return {
        "producer": " ".join(filter(None, (proto.producer_name, proto.producer_version))),
        "opset": onnx_file.opset(proto), "input": image.describe(), "classes": classes, "changes": changes,
        "warnings": warnings,
    }  # fmt: skip


def open_read(folder: Path) -> OnnxModule:
    """Return the model that `read` wrote to a folder."""
    path = folder / "float.onnx"
    return OnnxModule(ir.load(path), path, folder / "reference.onnx")


def _convert_opset(proto: onnx.ModelProto, path: Path) -> tuple[ir.Model, list[str]]:
    """Return the model in our operator set where onnx can convert it, and what that changed, in words."""
    version = onnx_file.opset(proto)
    if version == OPSET:
        return ir.serde.deserialize_model(proto), []
    change = [f"operator set {version}: converted to {OPSET}"]
    if version > OPSET:  # most operations only take further types since
        relabelled = onnx.ModelProto()
        relabelled.CopyFrom(proto)
        del relabelled.opset_import[:]
        relabelled.opset_import.append(onnx.helper.make_opsetid("", OPSET))
        try:
            onnx.checker.check_model(relabelled, full_check=True)
        except Exception:  # an operation that came later: the runtime may know it
            return ir.serde.deserialize_model(proto), [
                f"operator set {version}: kept, for operations that came after {OPSET}"
            ]
        return ir.serde.deserialize_model(relabelled), change
    try:
        converted = version_converter.convert_version(proto, OPSET)
        return ir.serde.deserialize_model(converted), change
    except Exception as reason:  # onnx's errors share no base class
        if version >= OLDEST_QDQ_OPSET:
            return ir.serde.deserialize_model(proto), [f"operator set {version}: kept, since onnx cannot convert it"]
        raise ToolchainError(
            f"{path} has operator set {version}, and onnx cannot convert it to {OPSET}: {first_line(reason)}; export it again "
            f"with opset_version {OLDEST_QDQ_OPSET} or later"
        ) from reason
