"""Search for the fastest Q/DQ placement: untrained candidates, timed against the float model in the target's runtime.

Latency does not depend on the weights, so candidates are timed before anything is trained, as the float graph with Q/DQ
pairs of invented scales. First a few placements of the whole model, then each kind of operation toggled, then each block
in float, then small changes of the best while there is time. Helpful changes are combined, and a change is kept only if
it helps in every one of several rounds.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from toolchain.config.target import Target
from toolchain.core import files, progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Precision
from toolchain.export import insert_qdq, onnx_graph
from toolchain.export.runtime import load_runtime
from toolchain.measure import machine
from toolchain.measure.boards import BoardUnreachable
from toolchain.measure.paired_timing import TimedModel
from toolchain.measure.short_rounds import ShortRounds
from toolchain.quantization.placement import ALL_FLOAT, Placement, leave_in_float, quantized_layers, split_into_blocks
from toolchain.quantization.placement_result import TimedPlacement
from toolchain.search import placement_changes
from toolchain.search.placement_changes import OPERATION_KINDS, PlacementChange

START_PLACEMENTS: Mapping[str, Placement] = {
    "layers, additions and averages": Placement(),
    "layers and additions": Placement(float_operations=("multiply", "average", "concatenate", "activation")),
    "all operations": Placement(float_operations=()),
    "inputs of layers": Placement(results=False, float_operations=OPERATION_KINDS),
    "inputs of layers and additions": Placement(
        results=False, float_operations=("multiply", "average", "concatenate", "activation")
    ),
    "inputs of all but activations": Placement(results=False, float_operations=("activation",)),
}
MAX_BLOCKS = 20  # blocks that are tried in float, each alone
MODELS_PER_PROCESS = 7  # the float model, the placement to compare with, and candidates
CANDIDATES_PER_PROCESS = MODELS_PER_PROCESS - 2
MIN_LOG_GAIN = math.log(1.01)  # a gain below 1 % is noise, and the simpler placement is better
PATIENCE = 16  # batches of small changes without a gain, after which the search ends
CONFIRMING_ROUNDS = 3  # further processes that time a change before it is kept


class PlacementSearch:
    """Compiled candidates, timed in batches; a search that was interrupted does not repeat its batches."""

    def __init__(
        self, graph: onnx_ir.Model, target: Target, input_shape: tuple[int, ...], folder: Path, deadline: float
    ) -> None:
        """Prepare a search.

        Args:
            graph: the float model.
            target: gives runtime, threads, scheme, precisions and board.
            input_shape: [1, 3, height, width].
            folder: for compiled candidates and for what was timed.
            deadline: end of the search, in seconds of `time.monotonic`.
        """
        self.float_graph, self.target, self.input_shape = graph, target, input_shape
        self.folder, self.deadline = folder, deadline
        self.runtime = load_runtime(target.runtime)
        self.timings: dict[str, TimedPlacement] = {}  # by the name of the compiled model
        self.compiled: dict[Placement, TimedModel] = {}
        self.short_rounds, self.seconds_per_model = ShortRounds(folder), 0.0
        self.bar: progress.ProgressBar | None = None

    def find_fastest(self, forced: tuple[str, ...]) -> Placement:
        """Return the fastest placement found before the deadline; modules in `forced` stay in float."""
        starts = {label: leave_in_float(placement, forced) for label, placement in START_PLACEMENTS.items()}
        layers = quantized_layers(insert_qdq.list_operations(self.float_graph.graph), Placement(float_modules=forced))
        if not layers:
            return Placement(float_modules=forced)
        blocks = split_into_blocks(layers, MAX_BLOCKS)
        usual = len(starts) + 1 + len(OPERATION_KINDS) + len(blocks)
        with progress.show_bar("place: candidates timed", usual + PATIENCE * CANDIDATES_PER_PROCESS) as self.bar:
            best = self.find_best_start(starts)
            toggles = {f"{kind} toggled": placement_changes.toggle_operation(kind) for kind in OPERATION_KINDS}
            best = self.improve(best, toggles)
            best = self.improve(best, {f"{name} in float": placement_changes.move_to_float(name) for name in blocks})
            best = self.refine(best, layers, blocks)
            self.confirm(best)
            return best

    def to_record(self, chosen: Placement) -> dict[str, Any]:
        """Return what the stage keeps of the search: the placement, its label, and everything that was timed."""
        best = self.timings.get(self.compiled[chosen].name) if chosen in self.compiled else None
        return {"placement": chosen, "best": best.label if best else "", "tried": list(self.timings.values())}

    def confirm(self, best: Placement) -> None:
        """Time the best placement and the float forms again in several processes: the choice between them needs it."""
        log_speedups: dict[str, list[float]] = {}
        for _ in range(CONFIRMING_ROUNDS):
            self.measure_gains({"": best}, ignore_deadline=True, repeated=True)
            for name in {self.compile_side(best).name, *(side.name for side in self.float_sides)}:
                if name in self.timings:  # the runtime may have rejected it
                    log_speedups.setdefault(name, []).append(math.log(self.timings[name].speedup))
        for name, logs in log_speedups.items():
            self.timings[name] = dataclasses.replace(self.timings[name], speedup=math.exp(float(np.median(logs))))

    def time_placement(self, placement: Placement) -> None:
        """Time one placement that was decided elsewhere."""
        with progress.show_bar("place: timing the placement", 1) as self.bar:
            self.measure_gains({"as fitted": placement}, ignore_deadline=True)
            self.confirm(placement)

    def find_best_start(self, starts: Mapping[str, Placement]) -> Placement:
        """Return the fastest of the placements of the whole model; the float forms are timed beside them.

        Raises:
            ToolchainError: the runtime rejects all of them.
        """
        self.measure_gains(starts, ignore_deadline=True)
        names = {start: self.compiled[start].name for start in starts.values() if start in self.compiled}
        int8 = {start: self.timings[name] for start, name in names.items() if name in self.timings}
        if not int8:
            raise ToolchainError(
                f"{self.target.runtime} runs no int8 form of this model. Set the target's precisions to float ones"
            )
        fastest = max(timed.speedup for timed in int8.values())
        # the first of about equal ones, so that noise does not choose an unusual placement
        return next(start for start, timed in int8.items() if math.log(fastest / timed.speedup) <= MIN_LOG_GAIN)

    def improve(self, best: Placement, changes: Mapping[str, PlacementChange]) -> Placement:
        """Return `best`, or a faster placement: with the most helpful change, or with all helpful changes together."""
        variants = {label: change(best) for label, change in changes.items()}
        gains = self.measure_gains(variants, baseline=best)
        helpful = [label for label, gain in gains.items() if gain > MIN_LOG_GAIN]
        if not helpful:
            return best
        together = best
        for label in sorted(helpful, key=lambda label: -gains[label]):
            together = changes[label](together)
        strongest = max(helpful, key=lambda label: gains[label])
        finalists = {strongest: variants[strongest], " + ".join(helpful): together}
        rounds = [self.measure_gains(finalists, baseline=best, repeated=True) for _ in range(CONFIRMING_ROUNDS)]
        logs = {label: [round_gains.get(label, -math.inf) for round_gains in rounds] for label in finalists}
        for label in sorted(finalists, key=lambda label: -sum(logs[label])):
            # every round must gain: on a busy machine a lucky timing rarely comes three times
            if min(logs[label]) > 0 and sum(logs[label]) / CONFIRMING_ROUNDS > MIN_LOG_GAIN:
                return finalists[label]
        return best

    def refine(self, best: Placement, layers: Sequence[str], blocks: Sequence[str]) -> Placement:
        """Return `best` after small changes, one after another, until the deadline or until none has helped for long."""
        idle_batches, step, seen = 0, 1, set(self.compiled)
        while idle_batches < PATIENCE and time.monotonic() < self.deadline:
            proposals = placement_changes.propose(best, layers, blocks, step)
            unseen = ((f"step {step}: {label}", change) for label, change in proposals if change(best) not in seen)
            batch = dict(islice(unseen, CANDIDATES_PER_PROCESS))
            if not batch:
                break
            seen |= {change(best) for change in batch.values()}
            better, idle_batches = self.improve(best, batch), idle_batches + 1
            if better != best:
                if self.bar is not None:
                    self.bar.total += idle_batches * CANDIDATES_PER_PROCESS
                best, idle_batches, step = better, 0, step + 1
        return best

    def measure_gains(
        self, variants: Mapping[str, Placement], baseline: Placement = ALL_FLOAT, *, ignore_deadline: bool = False,
        repeated: bool = False,
    ) -> dict[str, float]:  # fmt: skip
        """Return the log of each variant's speed-up over a baseline; variants that the deadline leaves no time for are missing.

        Args:
            variants: by label.
            baseline: the placement to compare with.
            ignore_deadline: time them in any case.
            repeated: they were timed before, so the progress bar does not move.
        """
        gains: dict[str, float] = {}
        labels = list(variants)
        for start in range(0, len(labels), CANDIDATES_PER_PROCESS):
            batch = labels[start : start + CANDIDATES_PER_PROCESS]
            models_to_confirm = CONFIRMING_ROUNDS * (2 + len(self.float_sides))  # which `confirm` needs time for
            models = len(batch) + 2
            seconds = self.seconds_per_model * (models + models_to_confirm)
            if not ignore_deadline and time.monotonic() + seconds > self.deadline:
                break
            started = time.monotonic()
            gains |= self.time_in_one_process({label: variants[label] for label in batch}, baseline)
            self.seconds_per_model = (time.monotonic() - started) / models
            if self.bar is not None:
                best = max((timed.speedup for timed in self.timings.values()), default=1.0)
                self.bar.step(f"best {best:.2f}x", 0 if repeated else len(batch))
        return gains

    def time_in_one_process(self, variants: Mapping[str, Placement], baseline: Placement) -> dict[str, float]:
        """Return the log of each variant's speed-up over a baseline, from one process; rejected variants are missing."""
        gains: dict[str, float] = {}
        try:
            baseline_side = self.compile_side(baseline)
            sides = {label: self.compile_side(placement) for label, placement in variants.items()}
            all_sides = (*self.float_sides, baseline_side, *sides.values())
            blocks = self.short_rounds.measure(list({side.name: side for side in all_sides}.values()))
        except BoardUnreachable:
            raise
        except ToolchainError as reason:
            if len(variants) > 1:  # one by one, to see which the runtime rejects
                for label, placement in variants.items():
                    gains |= self.time_in_one_process({label: placement}, baseline)
                return gains
            progress.log(f"place: {next(iter(variants))} does not run and is left out: {reason}")
            return {}
        for label, side in sides.items():
            if side.name != baseline_side.name and side.precision == "int8":  # f32: nothing is left in int8
                gains[label] = statistics.log_speedup(blocks[baseline_side.name], blocks[side.name])
                self.record_timing(label, variants[label], side, blocks)
        return gains

    def record_timing(self, label: str, placement: Placement, side: TimedModel, blocks: Mapping[str, Any]) -> None:
        """Keep the latency of a candidate, and of the float forms that were timed with it.

        Args:
            label: of the candidate.
            placement: of the candidate.
            side: the compiled candidate.
            blocks: milliseconds by side, [blocks][runs of a block].
        """
        f32 = self.float_sides[0]
        for name, new_label, new_placement, precision in (
            (side.name, label, placement, side.precision),
            *((form.name, f"float, {form.precision}", ALL_FLOAT, form.precision) for form in self.float_sides),
        ):
            earlier = self.timings.get(name)
            self.timings[name] = TimedPlacement(
                label=earlier.label if earlier else new_label, placement=earlier.placement if earlier else new_placement,
                precision=precision, speedup=math.exp(statistics.log_speedup(blocks[f32.name], blocks[name])),
                latency_ms=float(np.median([ms for block in blocks[name] for ms in block])),
            )  # fmt: skip

    @cached_property
    def float_sides(self) -> list[TimedModel]:
        """The model in each float precision that the target allows and this machine has, float32 first."""
        f32 = self.compile_side(ALL_FLOAT)
        allowed: list[Precision] = [p for p in ("f32", "bf16") if p in self.target.precisions or p == "f32"]
        available = [precision for precision in allowed if machine.has_precision(self.target, precision)]
        return [dataclasses.replace(f32, name=f"float-{precision}", precision=precision) for precision in available]

    def compile_side(self, placement: Placement) -> TimedModel:
        """Return the compiled candidate; placements that give the same graph share one."""
        if placement not in self.compiled:
            path = self.folder / "candidate.onnx"
            model, layers = insert_qdq.build_candidate(self.float_graph, placement, self.target.scheme)
            onnx_graph.save_model(model, path)
            name = f"candidate-{files.sha256_file(path)[:12]}"
            artefact = self.runtime.compile(path, self.folder / name)
            self.compiled[placement] = TimedModel(
                name=name if layers else "float-f32", runtime=self.target.runtime, path=str(artefact.path),
                precision="int8" if layers else "f32", threads=self.target.threads, shape=self.input_shape,
                device=self.target.device,
            )  # fmt: skip
        return self.compiled[placement]
