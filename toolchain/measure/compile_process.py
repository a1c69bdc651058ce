"""The process that makes networks ready to be timed before training: compiled for a target in every precision, and run once.

Scales are made up: latency does not depend on them. Without torch, which would take longer to import than all the rest.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from toolchain.config.target import QuantScheme, Target
from toolchain.core.errors import ToolchainError, first_line
from toolchain.core.types import Artefact, Precision
from toolchain.export import insert_qdq, onnx_graph
from toolchain.export.runtime import load_runtime
from toolchain.quantization.placement import Placement


@dataclass(frozen=True)
class CompiledForm:
    """One network in one precision."""

    opened: str  # path of what every round opens: the compiled file, or what this machine opens faster
    size_bytes: int  # of the compiled file


def make_request(graph: Path, target: Target, shape: tuple[int, ...], folder: Path) -> dict[str, Any]:
    """What is asked of the process.

    Args:
        graph: float ONNX, as `onnx_export.translate` gives it.
        target: that it is compiled for.
        shape: of its input, [1, 3, height, width].
        folder: to write to.
    """
    return {
        "graph": str(graph), "runtime": target.runtime, "threads": target.threads, "precisions": list(target.precisions),
        "scheme": dataclasses.asdict(target.scheme), "here": not target.device, "shape": list(shape), "folder": str(folder),
    }  # fmt: skip


def parse_reply(found: Any) -> dict[Precision, CompiledForm]:
    """What the process made.

    Raises:
        ToolchainError: the runtime does not take the network, does not run it, or the process ended.
    """
    if isinstance(found, ToolchainError):
        raise found
    if "error" in found:
        raise ToolchainError(found["error"])
    return {precision: CompiledForm(**form) for precision, form in found["forms"].items()}


def compile_forms(asked: Mapping[str, Any]) -> dict[Precision, CompiledForm]:
    """One network as it is timed.

    Raises:
        ToolchainError: the runtime does not take it, or does not run it.
    """
    integers = {each == "int8" for each in asked["precisions"]}  # f32 and bf16 are one file
    made = {placed: _compiled(placed, asked) for placed in integers}
    return {each: _tried(made[each == "int8"], each, asked) for each in asked["precisions"]}


def _compiled(integers: bool, asked: Mapping[str, Any]) -> Artefact:
    graph, placed = Path(asked["graph"]), Placement() if integers else Placement(float_modules=("",))
    model, _ = insert_qdq.build_candidate(onnx_ir.load(graph), placed, QuantScheme(**asked["scheme"]))
    made = Path(asked["folder"]) / f"{graph.parent.name}-{'int8' if integers else 'float'}"
    made.mkdir(parents=True, exist_ok=True)
    onnx_graph.save_model(model, made / graph.name)
    runtime = asked["runtime"]
    artefact: Artefact = load_runtime(runtime).compile(made / graph.name, made / runtime)
    return artefact


def _tried(artefact: Artefact, precision: Precision, asked: Mapping[str, Any]) -> CompiledForm:
    """Run once: in a round, one that does not run would end all."""
    runtime = load_runtime(asked["runtime"])
    try:
        session = runtime.open(artefact.path, threads=asked["threads"], precision=precision)
        session.run(np.zeros(asked["shape"], np.float32))
    except ToolchainError:
        raise
    except Exception as reason:  # the runtimes' own kinds
        raise ToolchainError(f"{asked['runtime']} does not run it as {precision}: {first_line(reason)}") from reason
    path = artefact.path
    # a board compiles for itself
    compiled = session.save_compiled(path.with_name(f"{path.stem}-{precision}")) if asked["here"] else None
    return CompiledForm(str(compiled or path), artefact.size_bytes)


def main() -> None:
    """Answers questions, one a line, until there are none."""
    for line in sys.stdin:
        try:
            found: dict[str, Any] = {
                "forms": {name: dataclasses.asdict(form) for name, form in compile_forms(json.loads(line)).items()}
            }
        except ToolchainError as reason:
            found = {"error": str(reason)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
