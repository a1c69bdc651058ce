"""Time pruned architectures against the dense model, untrained, in the precision and placement in which each would ship.

Each is cut out of the dense model's ONNX graph, or exported anew where that graph cannot be cut, then quantized by the
placement, compiled, and timed in short rounds together with the dense model.
"""

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
from torch import Tensor, nn

from toolchain.config.target import QuantScheme, Target
from toolchain.core import files, progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Artefact, Precision
from toolchain.export import insert_qdq, onnx_graph, prune_graph, to_onnx
from toolchain.export.runtime import load_runtime
from toolchain.measure.paired_timing import TimedModel
from toolchain.measure.short_rounds import ShortRounds
from toolchain.pruning import surgery
from toolchain.pruning.surgery import Surgery
from toolchain.quantization import placement, pt2e
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult

CANDIDATES_PER_PROCESS = 5  # beside the dense model


@dataclass(frozen=True)
class ShippedForm:
    """The precision and Q/DQ placement in which a model ships."""

    precision: Precision
    placement: Placement  # ignored in float


def choose_shipped_form(placed: PlacementResult, target: Target, *, timed: bool = True) -> tuple[ShippedForm, float]:
    """Return the form in which a model would ship to the target, and its latency there in milliseconds.

    Args:
        placed: the result of the placement search.
        target: what the model is for.
        timed: whether the latency is needed; if not, it is NaN where nothing was timed.

    Raises:
        ToolchainError: the latency is needed and nothing was timed.
    """
    fastest_float, fastest_int8 = placed.fastest_float, placed.fastest_int8
    if fastest_float is None or fastest_int8 is None:
        if timed:
            raise ToolchainError(
                f"a latency budget needs models to be timed for the target {target.name}, and none were: this machine cannot "
                "run them, or search_seconds is 0. Give [prune] ratio or a macs budget instead"
            )
        return ShippedForm("int8" if "int8" in target.precisions else target.precisions[0], placed.placement), math.nan
    if fastest_float.speedup > fastest_int8.speedup:
        return ShippedForm(fastest_float.precision, Placement()), fastest_float.latency_ms
    return ShippedForm("int8", placed.placement), fastest_int8.latency_ms


class ArchitectureTimer:
    """Times the architectures of pruning plans for one dense model."""

    def __init__(self, dense: nn.Module, image: Tensor, target: Target, form: ShippedForm, folder: Path) -> None:
        """Export and compile the dense model.

        Args:
            dense: the dense model.
            image: one example input, float32 [1, 3, height, width].
            target: gives runtime, threads, scheme and board.
            form: how the dense model would ship.
            folder: for compiled candidates and for what was timed.
        """
        self.dense, self.example_input, self.target, self.form, self.folder = dense, image, target, form, folder
        self.runtime = load_runtime(target.runtime)
        self.short_rounds = ShortRounds(folder)
        self.graph = self._export(dense)
        self.dense_side = self._compile_side(Surgery())

    def with_input(self, image: Tensor) -> "ArchitectureTimer":
        """Return a timer of pruned models with another image size; the dense model keeps its own.

        Args:
            image: one example input, float32 [1, 3, height, width].

        Raises:
            ToolchainError: the model does not accept that size.
        """
        timer = copy.copy(self)
        timer.example_input = image
        timer.graph = timer._export(self.dense)
        return timer

    def with_form(self, form: ShippedForm) -> "ArchitectureTimer":
        """Return a timer of pruned models in another form; the dense model keeps its own."""
        timer = copy.copy(self)
        timer.form = form
        return timer

    def measure_latencies(self, plans: Sequence[Surgery], bar: progress.ProgressBar, *, rounds: int = 1) -> list[float]:
        """Measure the latency of each plan's architecture, as a share of the dense model's.

        Args:
            plans: what is removed from the dense model.
            bar: gets a step per plan.
            rounds: processes that time each plan; the geometric mean counts.

        Raises:
            ToolchainError: a plan can neither be cut out of the graph nor exported.
        """
        latencies: list[float] = []
        for start in range(0, len(plans), CANDIDATES_PER_PROCESS):
            sides = [self._compile_side(plan) for plan in plans[start : start + CANDIDATES_PER_PROCESS]]
            log_speedups: list[list[float]] = [[] for _ in sides]
            for _ in range(rounds):
                blocks = self.short_rounds.measure(
                    list({side.name: side for side in (self.dense_side, *sides)}.values())
                )
                for side, logs in zip(sides, log_speedups, strict=True):
                    logs.append(statistics.log_speedup(blocks[self.dense_side.name], blocks[side.name]))
            latencies += [math.exp(-sum(logs) / len(logs)) for logs in log_speedups]
            bar.step(f"{min(latencies):.2f}x the dense latency", len(sides))
        return latencies

    def remove_candidates(self) -> None:
        """Remove the compiled candidates from the folder; their timings stay."""
        for leftover in self.folder.glob("candidate*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def measure_size_bytes(self, plan: Surgery) -> int:
        """Return the size of the files that a plan's architecture would ship as, bytes."""
        return self._compile(plan)[1].size_bytes

    def _compile(self, plan: Surgery) -> tuple[str, Artefact]:
        path = self.folder / "candidate.onnx"
        chosen = self.form.placement if self.form.precision == "int8" else placement.ALL_FLOAT
        model, _ = insert_qdq.build_candidate(self._cut(plan), chosen, self.target.scheme)
        onnx_graph.save_model(model, path)
        name = f"candidate-{self.form.precision}-{files.sha256_file(path)[:12]}"
        return name, self.runtime.compile(path, self.folder / name)

    def _compile_side(self, plan: Surgery) -> TimedModel:
        name, artefact = self._compile(plan)
        return TimedModel(
            name=name, runtime=self.target.runtime, path=str(artefact.path), precision=self.form.precision,
            threads=self.target.threads, shape=tuple(self.example_input.shape), device=self.target.device,
        )  # fmt: skip

    def _cut(self, plan: Surgery) -> onnx_ir.Model:
        return cut_graph(self.graph, self.dense, plan, self.example_input, self.target.scheme)

    def _export(self, model: nn.Module) -> onnx_ir.Model:
        return _export_graph(model, self.example_input, self.target.scheme)


def cut_graph(
    graph: onnx_ir.Model, dense: nn.Module, plan: Surgery, image: Tensor, scheme: QuantScheme
) -> onnx_ir.Model:
    """Return the float graph of a pruned model: cut out of the dense model's, or exported anew where that cannot be cut.

    Args:
        graph: the dense model's float graph.
        dense: the dense model.
        plan: what is removed.
        image: one example input, float32 [1, 3, height, width].
        scheme: integer types.

    Raises:
        ToolchainError: the pruned model cannot be exported either.
    """
    if plan == Surgery():
        return graph
    try:
        return prune_graph.apply_surgery(graph, plan)
    except ToolchainError:  # the graph has a channel count written into it
        return _export_graph(surgery.apply(dense, plan), image, scheme)


def _export_graph(model: nn.Module, image: Tensor, scheme: QuantScheme) -> onnx_ir.Model:
    prepared, _ = pt2e.prepare(model, image, None, scheme)
    return to_onnx.export_graph(prepared, image)
