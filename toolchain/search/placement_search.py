"""The search for the fastest placement: untrained candidates, timed against the float model in the target's runtime.

Latency does not depend on the weights, so candidates are timed before anything is trained: Q/DQ with made-up scales
on the float graph. A few whole-model placements first, then single kinds of operation the other way round, then
single blocks in float, then small changes of what was found while there is time; what helps is combined, and believed
only if it helps again and again.
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
from toolchain.measure import machine, paired_timing, short_rounds
from toolchain.measure.boards import BoardUnreachable
from toolchain.quantization import placement
from toolchain.quantization.placement import Placement
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
MAX_BLOCKS = 20  # parts of a model that are tried in float on their own
MODELS_PER_PROCESS = 7  # candidates in one process
MIN_LOG_GAIN = math.log(1.01)  # a gain below one per cent is noise, and the simpler placement is better
PATIENCE = 16  # batches of small changes without a gain
CONFIRMING_ROUNDS = 3  # more processes before a change is believed


class PlacementSearch:
    """Candidates as files, timed in batches that a killed run does not repeat."""

    def __init__(
        self, base: onnx_ir.Model, target: Target, shape: tuple[int, ...], folder: Path, deadline: float
    ) -> None:
        self.float_graph, self.target, self.input_shape, self.folder, self.deadline = (
            base,
            target,
            shape,
            folder,
            deadline,
        )
        self.runtime = load_runtime(target.runtime)
        self.timings: dict[str, TimedPlacement] = {}
        self.compiled: dict[Placement, paired_timing.TimedModel] = {}
        self.short_rounds, self.seconds_per_model = short_rounds.ShortRounds(folder), 0.0
        self.bar: progress.ProgressBar | None = None

    def find_fastest(self, forced: tuple[str, ...]) -> Placement:
        """The fastest placement found in time."""
        starts = {label: placement.leave_in_float(one, forced) for label, one in START_PLACEMENTS.items()}
        modules = placement.quantized_layers(
            insert_qdq.list_operations(self.float_graph.graph), Placement(float_modules=forced)
        )
        if not modules:
            return Placement(float_modules=forced)
        blocks = placement.split_into_blocks(modules, MAX_BLOCKS)
        usual = len(starts) + 1 + len(OPERATION_KINDS) + len(blocks)
        with progress.show_bar("place: candidates timed", usual + PATIENCE * (MODELS_PER_PROCESS - 2)) as self.bar:
            best = self.find_best_start(starts)
            best = self.improve(
                best, {f"{kind} the other way": placement_changes.toggle_operation(kind) for kind in OPERATION_KINDS}
            )
            best = self.improve(best, {f"{name} in float": placement_changes.move_to_float(name) for name in blocks})
            best = self.refine(best, modules, blocks)
            self.confirm(best)
            return best

    def to_record(self, chosen: Placement) -> dict[str, Any]:
        """What is kept of the search: the placement, its label, and all that was timed."""
        best = self.timings.get(self.compiled[chosen].name) if chosen in self.compiled else None
        return {"placement": chosen, "best": best.label if best else "", "tried": list(self.timings.values())}

    def confirm(self, best: Placement) -> None:
        """Times the best and the float forms once more in several processes: the figures that decide between them."""
        logs: dict[str, list[float]] = {}
        for _ in range(CONFIRMING_ROUNDS):
            self.measure_gains({"": best}, must=True, again=True)
            for name in {self.compile_side(best).name, *(one.name for one in self.float_sides)}:
                if name in self.timings:  # a runtime may refuse it after all
                    logs.setdefault(name, []).append(math.log(self.timings[name].speedup))
        for name, found in logs.items():
            self.timings[name] = dataclasses.replace(self.timings[name], speedup=math.exp(float(np.median(found))))

    def time_placement(self, chosen: Placement) -> None:
        """Times one placement that was found elsewhere."""
        with progress.show_bar("place: timing the placement", 1) as self.bar:
            self.measure_gains({"as fitted": chosen}, must=True)
            self.confirm(chosen)

    def find_best_start(self, starts: Mapping[str, Placement]) -> Placement:
        """The best of whole-model placements, with the float forms beside them as the yardstick."""
        self.measure_gains(starts, must=True)
        names = {one: self.compiled[one].name for one in starts.values() if one in self.compiled}
        integer = {one: self.timings[name] for one, name in names.items() if name in self.timings}
        if not integer:
            raise ToolchainError(f"{self.target.runtime} takes no integer form of this model; set precisions to float")
        fastest = max(one.speedup for one in integer.values())
        # of equals the first, so that noise does not choose the odd one
        return next(one for one, tried in integer.items() if math.log(fastest / tried.speedup) <= MIN_LOG_GAIN)

    def improve(self, best: Placement, changes: Mapping[str, PlacementChange]) -> Placement:
        """`best`, or what single changes and then all helpful ones together make of it, if that is faster."""
        variants = {label: change(best) for label, change in changes.items()}
        gains = self.measure_gains(variants, than=best)
        helpful = [label for label, gain in gains.items() if gain > MIN_LOG_GAIN]
        if not helpful:
            return best
        together = best
        for label in sorted(helpful, key=lambda label: -gains[label]):
            together = changes[label](together)
        strongest = max(helpful, key=lambda label: gains[label])
        finalists = {strongest: variants[strongest], " + ".join(helpful): together}
        rounds = [self.measure_gains(finalists, than=best, again=True) for _ in range(CONFIRMING_ROUNDS)]
        for label in sorted(finalists, key=lambda label: -sum(one.get(label, -math.inf) for one in rounds)):
            again = [one.get(label, -math.inf) for one in rounds]
            if (
                min(again) > 0 and sum(again) / CONFIRMING_ROUNDS > MIN_LOG_GAIN
            ):  # on a busy machine luck does not come three times
                return finalists[label]
        return best

    def refine(self, best: Placement, layers: Sequence[str], blocks: Sequence[str]) -> Placement:
        """`best` after small changes one after the other, until there is no time or none has helped for long."""
        idle, step, seen = 0, 1, set(self.compiled)
        while idle < PATIENCE and time.monotonic() < self.deadline:
            nearby = placement_changes.propose(best, layers, blocks, step)
            new = ((f"step {step}: {label}", change) for label, change in nearby if change(best) not in seen)
            batch = dict(islice(new, MODELS_PER_PROCESS - 2))
            if not batch:
                break
            seen |= {change(best) for change in batch.values()}
            better, idle = self.improve(best, batch), idle + 1
            if better != best:
                if self.bar is not None:
                    self.bar.total += idle * (MODELS_PER_PROCESS - 2)
                best, idle, step = better, 0, step + 1
        return best

    def measure_gains(
        self,
        variants: Mapping[str, Placement],
        than: Placement = placement.ALL_FLOAT,
        *,
        must: bool = False,
        again: bool = False,
    ) -> dict[str, float]:
        """Log of how many times faster each is than `than`; those there is no time for are left out.

        Args:
            must: whatever the time.
            again: they were timed before, so this is no progress.
        """
        gains: dict[str, float] = {}
        labels = list(variants)
        for start in range(0, len(labels), MODELS_PER_PROCESS - 2):
            part = labels[start : start + MODELS_PER_PROCESS - 2]
            last = CONFIRMING_ROUNDS * (
                2 + len(self.float_sides)
            )  # what `settle` is going to time, with a process start
            if not must and time.monotonic() + self.seconds_per_model * (len(part) + 2 + last) > self.deadline:
                break
            began = time.monotonic()
            gains |= self.time_in_one_process({label: variants[label] for label in part}, than)
            self.seconds_per_model = (time.monotonic() - began) / (len(part) + 2)
            if self.bar is not None:
                best = max((one.speedup for one in self.timings.values()), default=1.0)
                self.bar.step(f"best {best:.2f}x", 0 if again else len(part))
        return gains

    def time_in_one_process(self, part: Mapping[str, Placement], than: Placement) -> dict[str, float]:
        """Times some candidates in one process; those that the runtime refuses are left out."""
        try:
            known = self.compile_side(than)
            sides = {label: self.compile_side(chosen) for label, chosen in part.items()}
            every = (*self.float_sides, known, *sides.values())
            blocks = self.short_rounds.measure(list({side.name: side for side in every}.values()))
        except BoardUnreachable:
            raise
        except ToolchainError as reason:
            if len(part) > 1:  # which one it was shows when each is alone
                found = [self.time_in_one_process({label: chosen}, than) for label, chosen in part.items()]
                return {label: gain for one in found for label, gain in one.items()}
            progress.log(f"place: {next(iter(part))} does not run and is left out: {reason}")
            return {}
        gains = {}
        for label, side in sides.items():
            if side.name != known.name and side.precision == "int8":  # with nothing left in integers it is float's own
                gains[label] = statistics.log_speedup(blocks[known.name], blocks[side.name])
                self.record_timing(label, part[label], side, blocks)
        return gains

    def record_timing(
        self, label: str, chosen: Placement, side: paired_timing.TimedModel, blocks: Mapping[str, Any]
    ) -> None:
        """Notes a candidate's speed, and the float forms' with it."""
        base = self.float_sides[0]
        for name, what, placed, precision in (
            (side.name, label, chosen, side.precision),
            *((one.name, f"float, {one.precision}", placement.ALL_FLOAT, one.precision) for one in self.float_sides),
        ):
            first = self.timings.get(name)
            self.timings[name] = TimedPlacement(
                label=first.label if first else what, placement=first.placement if first else placed, precision=precision,
                speedup=math.exp(statistics.log_speedup(blocks[base.name], blocks[name])),
                latency_ms=float(np.median([ms for block in blocks[name] for ms in block])),
            )  # fmt: skip

    @cached_property
    def float_sides(self) -> list[paired_timing.TimedModel]:
        """The model in each float precision of the target that this machine has; f32 first."""
        plain = self.compile_side(placement.ALL_FLOAT)
        names: list[Precision] = [p for p in ("f32", "bf16") if p in self.target.precisions or p == "f32"]
        able = [precision for precision in names if machine.has_precision(self.target, precision)]
        return [dataclasses.replace(plain, name=f"float-{one}", precision=one) for one in able]

    def compile_side(self, chosen: Placement) -> paired_timing.TimedModel:
        """The compiled candidate; those that come to the same graph share one."""
        if chosen not in self.compiled:
            path = self.folder / "candidate.onnx"
            model, layers = insert_qdq.build_candidate(self.float_graph, chosen, self.target.scheme)
            onnx_graph.save_model(model, path)
            name = f"candidate-{files.sha256_file(path)[:12]}"
            made = self.runtime.compile(path, self.folder / name)
            self.compiled[chosen] = paired_timing.TimedModel(
                name=name if layers else "float-f32", runtime=self.target.runtime, path=str(made.path),
                precision="int8" if layers else "f32", threads=self.target.threads, shape=self.input_shape,
                device=self.target.device,
            )  # fmt: skip
        return self.compiled[chosen]
