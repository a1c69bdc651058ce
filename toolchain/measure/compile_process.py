"""The process that prepares untrained networks for timing: compile each for a target in every precision, and run it once.

Latency does not depend on the weights or scales, so the scales are invented. The process does not import torch, which would
take longer than everything else it does.
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

    opened: str  # path of the file that every round opens: the compiled one, or a copy that this machine opens faster
    size_bytes: int  # of the compiled file


def make_request(graph: Path, target: Target, shape: tuple[int, ...], folder: Path) -> dict[str, Any]:
    """Return the request for one network, as plain data.

    Args:
        graph: float ONNX, as `onnx_export.translate` gives it.
        target: to compile for; gives runtime, threads, precisions and scheme.
        shape: of the input, [1, 3, height, width].
        folder: to write to.
    """
    return {
        "graph": str(graph), "runtime": target.runtime, "threads": target.threads, "precisions": list(target.precisions),
        "scheme": dataclasses.asdict(target.scheme), "here": not target.device, "shape": list(shape), "folder": str(folder),
    }  # fmt: skip


def parse_reply(reply: Any) -> dict[Precision, CompiledForm]:
    """Return the compiled forms of a network, by precision.

    Args:
        reply: of the process, or the error that ended it.

    Raises:
        ToolchainError: the runtime does not compile or run the network, or the process ended.
    """
    if isinstance(reply, ToolchainError):
        raise reply
    if "error" in reply:
        raise ToolchainError(reply["error"])
    return {precision: CompiledForm(**form) for precision, form in reply["forms"].items()}


def compile_forms(request: Mapping[str, Any]) -> dict[Precision, CompiledForm]:
    """Compile one network in every precision of the target, and run each form once.

    Args:
        request: as `make_request` returns it.

    Raises:
        ToolchainError: the runtime does not compile or run the network.
    """
    is_int8 = {precision == "int8" for precision in request["precisions"]}  # f32 and bf16 share one file
    artefacts = {int8: _compile(int8, request) for int8 in is_int8}
    return {
        precision: _open_once(artefacts[precision == "int8"], precision, request) for precision in request["precisions"]
    }


def _compile(int8: bool, request: Mapping[str, Any]) -> Artefact:
    graph, placement = Path(request["graph"]), Placement() if int8 else Placement(float_modules=("",))
    model, _ = insert_qdq.build_candidate(onnx_ir.load(graph), placement, QuantScheme(**request["scheme"]))
    folder = Path(request["folder"]) / f"{graph.parent.name}-{'int8' if int8 else 'float'}"
    folder.mkdir(parents=True, exist_ok=True)
    onnx_graph.save_model(model, folder / graph.name)
    runtime = request["runtime"]
    artefact: Artefact = load_runtime(runtime).compile(folder / graph.name, folder / runtime)
    return artefact


def _open_once(artefact: Artefact, precision: Precision, request: Mapping[str, Any]) -> CompiledForm:
    """Run an artefact once before it joins a round, which one that does not run would end for all networks."""
    runtime = load_runtime(request["runtime"])
    try:
        session = runtime.open(artefact.path, threads=request["threads"], precision=precision)
        session.run(np.zeros(request["shape"], np.float32))
    except ToolchainError:
        raise
    except Exception as reason:  # each runtime raises its own types
        raise ToolchainError(f"{request['runtime']} does not run it as {precision}: {first_line(reason)}") from reason
    path = artefact.path
    # only for this machine: a board compiles for its own processor
    compiled = session.save_compiled(path.with_name(f"{path.stem}-{precision}")) if request["here"] else None
    return CompiledForm(str(compiled or path), artefact.size_bytes)


def main() -> None:
    """Answer the requests on standard input, one JSON object a line, until it ends."""
    for line in sys.stdin:
        try:
            forms = compile_forms(json.loads(line))
            reply: dict[str, Any] = {"forms": {name: dataclasses.asdict(form) for name, form in forms.items()}}
        except ToolchainError as reason:
            reply = {"error": str(reason)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
