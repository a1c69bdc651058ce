"""place: a model's structure, target -> what runs in integers, by latency measured in the target's own runtime.

Latency does not depend on the weights, so candidates are timed before anything is trained: Q/DQ with made-up scales
on the float graph. A few whole-model placements first, then single kinds of operation the other way round, then
single blocks in float; what helps is combined, and what the combination does not speed up is dropped again.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir
from torch import Tensor, nn

from toolchain import candidates, discover, machine, placement, progress, qdq, quantizer, records, timing
from toolchain.errors import ToolchainError
from toolchain.stages import export
from toolchain.values import Operation, Placement, Precision, Target

VERSION = 1
FLOAT = Placement(float_modules=("",))
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
STARTS: Mapping[str, Placement] = {
    "layers, additions and averages": Placement(),
    "layers and additions": Placement(float_operations=("multiply", "average", "concatenate", "activation")),
    "all operations": Placement(float_operations=()),
    "inputs of layers": Placement(results=False, float_operations=OPERATIONS),
    "inputs of layers and additions": Placement(
        results=False, float_operations=("multiply", "average", "concatenate", "activation")
    ),
    "inputs of all but activations": Placement(results=False, float_operations=("activation",)),
}
BLOCKS = 20  # parts of a model that are tried in float on their own
SIDES = 7  # candidates in one process
WORTH = math.log(1.01)  # a gain below one per cent is noise, and the simpler placement is better
SHORT = timing.Effort(seconds=2.0, warmup_runs=4, fewest_blocks=4)
CONFIRM = 3  # more processes before a change is believed
BATCHES = "batches.json"

Change = Callable[[Placement], Placement]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One candidate and how it compared with the fastest float form, in one process."""

    label: str
    placement: Placement
    precision: Precision
    speedup: float  # times as fast as the float model in f32
    latency_ms: float


@dataclass(frozen=True)
class Placed:
    """The decision, with all that was timed."""

    placement: Placement
    key: str
    tried: tuple[Tried, ...]
    seconds: float

    @property
    def best(self) -> Tried | None:
        """The fastest integer form; None where nothing was timed."""
        return next((one for one in self.tried if one.placement == self.placement and one.precision == "int8"), None)

    @property
    def fastest_float(self) -> Tried | None:
        """The fastest float form."""
        floats = [one for one in self.tried if one.precision != "int8"]
        return max(floats, key=lambda one: one.speedup, default=None)

    @property
    def float_wins(self) -> bool:
        """Whether a float form is faster than all integer ones."""
        best, other = self.best, self.fastest_float
        return best is not None and other is not None and math.log(other.speedup / best.speedup) > WORTH


def run(
    model: nn.Module, image: Tensor, target: Target, float_modules: Sequence[str], seconds: float, work: Path
) -> Placed:
    """Finds the fastest placement; the same structure on the same machine is not searched again.

    Args:
        model: trained or not; only its structure counts.
        image: one example input, float32 [1, 3, height, width].
        float_modules: what stays in float in any case.
        seconds: longest time to search; 0 takes the usual placement untimed.

    Raises:
        ToolchainError: the model cannot be exported, or the runtime takes none of the candidates.
    """
    forced = tuple(float_modules)
    if seconds == 0 or "int8" not in target.precisions:
        return Placed(Placement(float_modules=forced), "", (), 0.0)
    runtime = discover.module("runtimes", target.runtime)
    shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    key = records.digest(
        VERSION, str(model), shapes, list(image.shape), target.runtime, target.threads, target.scheme, target.precisions,
        forced, seconds, runtime.fingerprint(), machine.isa(),
    )  # fmt: skip
    with records.stage(work, "place", key) as stage:
        if stage.figures is None:
            started = time.monotonic()
            graph, _ = quantizer.prepare(model, image, None, target.scheme)
            base = export.translate(graph, image)
            search = _Search(base, target, tuple(image.shape), stage.folder, started + seconds)
            chosen = search.run(forced)
            stage = records.finish(stage, started, {"placement": chosen, "tried": list(search.tried.values())})
            for leftover in stage.folder.glob("candidate*"):
                _remove(leftover)
        assert stage.figures is not None
        tried = tuple(Tried(**{**row, "placement": _placement(row["placement"])}) for row in stage.figures["tried"])
        return Placed(_placement(stage.figures["placement"]), key, tried, stage.seconds)


def _placement(row: Mapping[str, Any]) -> Placement:
    return Placement(
        float_modules=tuple(row["float_modules"]),
        float_operations=tuple(row["float_operations"]),
        results=row["results"],
    )


def _remove(path: Path) -> None:
    for inner in path.iterdir() if path.is_dir() else ():
        inner.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


class _Search:
    """Candidates as files, timed in batches that a killed run does not repeat."""

    def __init__(
        self, base: onnx_ir.Model, target: Target, shape: tuple[int, ...], folder: Path, deadline: float
    ) -> None:
        self.base, self.target, self.shape, self.folder, self.deadline = base, target, shape, folder, deadline
        self.runtime = discover.module("runtimes", target.runtime)
        self.tried: dict[str, Tried] = {}
        self.files: dict[Placement, timing.Side] = {}
        path = folder / BATCHES
        self.batches: list[dict[str, Any]] = records.read_json(path) if path.exists() else []
        self.next, self.per_side = 0, 0.0
        self.bar: progress.Bar | None = None

    def run(self, forced: tuple[str, ...]) -> Placement:
        """The fastest placement found in time."""
        starts = {label: _also_float(one, forced) for label, one in STARTS.items()}
        modules = placement.layers(candidates.operations(self.base.graph), Placement(float_modules=forced))
        if not modules:
            return Placement(float_modules=forced)
        blocks = placement.blocks(modules, BLOCKS)
        with progress.bar("place: candidates timed", len(starts) + 1 + len(OPERATIONS) + len(blocks)) as self.bar:
            best = self.fastest(starts)
            flips = {f"{kind} the other way": _flip(kind) for kind in OPERATIONS}
            best = self.improved(best, flips)
            return self.improved(best, {f"{name} in float": _leave(name) for name in blocks})

    def fastest(self, starts: Mapping[str, Placement]) -> Placement:
        """The best of whole-model placements, with the float forms beside them as the yardstick."""
        self.timed(starts, must=True)
        integer = {one: self.tried[self.files[one].name] for one in starts.values() if one in self.files}
        if not integer:
            raise ToolchainError(f"{self.target.runtime} takes no integer form of this model; set precisions to float")
        return max(integer, key=lambda one: integer[one].speedup)

    def improved(self, best: Placement, changes: Mapping[str, Change]) -> Placement:
        """`best`, or what single changes and then all helpful ones together make of it, if that is faster."""
        variants = {label: change(best) for label, change in changes.items()}
        gains = self.timed(variants, than=best)
        helpful = [label for label, gain in gains.items() if gain > WORTH]
        if not helpful:
            return best
        together = best
        for label in sorted(helpful, key=lambda label: -gains[label]):
            together = changes[label](together)
        strongest = max(helpful, key=lambda label: gains[label])
        finalists = {strongest: variants[strongest], " + ".join(helpful): together}
        rounds = [self.timed(finalists, than=best) for _ in range(CONFIRM)]
        for label in sorted(finalists, key=lambda label: -sum(one.get(label, -math.inf) for one in rounds)):
            again = [one.get(label, -math.inf) for one in rounds]
            if min(again) > 0 and sum(again) / CONFIRM > WORTH:  # on a busy machine luck does not come three times
                return finalists[label]
        return best

    def timed(
        self, variants: Mapping[str, Placement], than: Placement = FLOAT, *, must: bool = False
    ) -> dict[str, float]:
        """Log of how many times faster each is than `than`; those there is no time for are left out."""
        gains: dict[str, float] = {}
        labels = list(variants)
        for start in range(0, len(labels), SIDES - 2):
            part = labels[start : start + SIDES - 2]
            if not must and time.monotonic() + self.per_side * (len(part) + 2) > self.deadline:
                break
            began, known = time.monotonic(), self.side(than)
            sides = {label: self.side(variants[label]) for label in part}
            together = {side.name: side for side in (*self.floats(), known, *sides.values())}
            blocks = self.batch(list(together.values()))
            for label, side in sides.items():
                if side.name != known.name:
                    gains[label] = _gain(blocks[known.name], blocks[side.name])
                    self.keep(label, variants[label], side, blocks)
            self.per_side = (time.monotonic() - began) / len(together)
            if self.bar is not None:
                self.bar.step(f"best {max(one.speedup for one in self.tried.values()):.2f}x", len(part))
        return gains

    def keep(self, label: str, chosen: Placement, side: timing.Side, blocks: Mapping[str, Any]) -> None:
        """Notes a candidate's speed, and the float forms' with it."""
        base = self.floats()[0]
        for name, what, placed, precision in (
            (side.name, label, chosen, side.precision),
            *((one.name, f"float, {one.precision}", FLOAT, one.precision) for one in self.floats()),
        ):
            first = self.tried.get(name)
            self.tried[name] = Tried(
                label=first.label if first else what, placement=first.placement if first else placed, precision=precision,
                speedup=math.exp(_gain(blocks[base.name], blocks[name])),
                latency_ms=float(np.median([ms for block in blocks[name] for ms in block])),
            )  # fmt: skip

    def floats(self) -> list[timing.Side]:
        """The model in each float precision of the target that this machine has; f32 first."""
        plain = self.side(FLOAT)
        names: list[Precision] = [p for p in ("f32", "bf16") if p in self.target.precisions or p == "f32"]
        able = [precision for precision in names if self.runtime.available(precision)]
        return [dataclasses.replace(plain, name=f"float-{one}", precision=one) for one in able]

    def side(self, chosen: Placement) -> timing.Side:
        """The compiled candidate; those that come to the same graph share one."""
        if chosen not in self.files:
            path = self.folder / "candidate.onnx"
            model, layers = candidates.make(self.base, chosen, self.target.scheme)
            qdq.save(model, path)
            name = f"candidate-{records.sha256_file(path)[:12]}"
            made = self.runtime.compile(path, self.folder / name)
            self.files[chosen] = timing.Side(
                name=name if layers else "float-f32", runtime=self.target.runtime, path=str(made.path),
                precision="int8" if layers else "f32", threads=self.target.threads, shape=self.shape,
            )  # fmt: skip
        return self.files[chosen]

    def batch(self, sides: Sequence[timing.Side]) -> Mapping[str, Any]:
        """Samples of one process, or what an earlier run measured for the same candidates."""
        names, self.next = sorted(side.name for side in sides), self.next + 1
        done = self.batches[self.next - 1] if self.next <= len(self.batches) else None
        if done is not None and sorted(done["blocks"]) == names:
            return dict(done["blocks"])
        del self.batches[self.next - 1 :]
        timing.rounds(sides, 1, self.next, lambda one: self.batches.append({"blocks": one.blocks}), effort=SHORT)
        records.write_json(self.folder / BATCHES, self.batches)
        return dict(self.batches[-1]["blocks"])


def _gain(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Log of how many times faster `other` is, by the lower quartile of its samples, which other work disturbs least."""
    quartiles = [float(np.quantile([ms for block in blocks for ms in block], 0.25)) for blocks in (base, other)]
    return math.log(quartiles[0] / quartiles[1])


def _also_float(one: Placement, modules: Sequence[str]) -> Placement:
    return dataclasses.replace(one, float_modules=tuple(dict.fromkeys((*one.float_modules, *modules))))


def _leave(module: str) -> Change:
    return lambda one: _also_float(one, (module,))


def _flip(kind: Operation) -> Change:
    def change(one: Placement) -> Placement:
        floats = set(one.float_operations) ^ {kind}
        return dataclasses.replace(one, float_operations=tuple(k for k in OPERATIONS if k in floats))

    return change
