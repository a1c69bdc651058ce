"""Pruned architectures timed against the dense one, untrained, in the form in which the target would be sent them.

Each is cut out of the dense model's ONNX graph, or exported anew where that graph does not take it, given a placement,
and timed in short rounds together with the dense model.
"""

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir
from torch import Tensor, nn

from toolchain.config.target import Target
from toolchain.core import files, progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Artefact, Precision
from toolchain.export import insert_qdq, onnx_graph, prune_graph, to_onnx
from toolchain.export.runtime import load_runtime
from toolchain.measure.paired_timing import TimedModel
from toolchain.measure.short_rounds import ShortRounds
from toolchain.pruning import surgery
from toolchain.pruning.surgery import Surgery
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement

CANDIDATES_PER_PROCESS = 5  # in one process, beside the dense model


@dataclass(frozen=True)
class ShippedForm:
    """How a model is shipped."""

    precision: Precision
    placement: Placement  # means nothing in float


class ArchitectureTimer:
    """Plans for one model, timed."""

    def __init__(self, dense: nn.Module, image: Tensor, target: Target, form: ShippedForm, folder: Path) -> None:
        self.dense, self.example_input, self.target, self.form, self.folder = dense, image, target, form, folder
        self.runtime = load_runtime(target.runtime)
        self.short_rounds = ShortRounds(folder)
        self.graph = self._exported(dense)
        self.dense_side = self._side(Surgery())

    def with_input(self, image: Tensor) -> "ArchitectureTimer":
        """The same with pictures of another size; the dense model stays at its own.

        Raises:
            ToolchainError: the model does not take that size.
        """
        other = copy.copy(self)
        other.example_input = image
        other.graph = other._exported(self.dense)
        return other

    def with_form(self, form: ShippedForm) -> "ArchitectureTimer":
        """The same, with pruned models in another form; the dense model stays in its own."""
        other = copy.copy(self)
        other.form = form
        return other

    def measure_latencies(self, plans: Sequence[Surgery], bar: progress.ProgressBar, *, rounds: int = 1) -> list[float]:
        """Latency of each plan's architecture, as a share of the dense model's.

        Raises:
            ToolchainError: one can neither be cut out of the graph nor exported.
        """
        found: list[float] = []
        for start in range(0, len(plans), CANDIDATES_PER_PROCESS):
            sides = [self._side(plan) for plan in plans[start : start + CANDIDATES_PER_PROCESS]]
            logs: list[list[float]] = [[] for _ in sides]
            for _ in range(rounds):
                blocks = self.short_rounds.measure(
                    list({side.name: side for side in (self.dense_side, *sides)}.values())
                )
                for side, own in zip(sides, logs, strict=True):
                    own.append(statistics.log_speedup(blocks[self.dense_side.name], blocks[side.name]))
            found += [math.exp(-sum(own) / len(own)) for own in logs]
            bar.step(f"{min(found):.2f}x of the dense latency", len(sides))
        return found

    def remove_candidates(self) -> None:
        """Removes the candidates; what was timed stays."""
        for leftover in self.folder.glob("candidate*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def measure_size_bytes(self, plan: Surgery) -> int:
        """Of the files that a plan's architecture would ship as."""
        return self._made(plan)[1].size_bytes

    def _made(self, plan: Surgery) -> tuple[str, Artefact]:
        path = self.folder / "candidate.onnx"
        model, _ = insert_qdq.build_candidate(self._cut(plan), self._placement(), self.target.scheme)
        onnx_graph.save_model(model, path)
        name = f"candidate-{self.form.precision}-{files.sha256_file(path)[:12]}"
        return name, self.runtime.compile(path, self.folder / name)

    def _side(self, plan: Surgery) -> TimedModel:
        name, made = self._made(plan)
        return TimedModel(
            name=name, runtime=self.target.runtime, path=str(made.path), precision=self.form.precision,
            threads=self.target.threads, shape=tuple(self.example_input.shape), device=self.target.device,
        )  # fmt: skip

    def _placement(self) -> Placement:
        return self.form.placement if self.form.precision == "int8" else replace(Placement(), float_modules=("",))

    def _cut(self, plan: Surgery) -> onnx_ir.Model:
        if plan == Surgery():
            return self.graph
        try:
            return prune_graph.apply_surgery(self.graph, plan)
        except ToolchainError:  # a channel count that is written into the graph
            return self._exported(surgery.apply(self.dense, plan))

    def _exported(self, model: nn.Module) -> onnx_ir.Model:
        return to_onnx.export_graph(
            pt2e.prepare(model, self.example_input, None, self.target.scheme)[0], self.example_input
        )
