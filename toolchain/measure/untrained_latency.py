"""clock: networks, target -> how long each takes there, untrained, in float and in integers.

Latency does not depend on the weights, so a model can be timed before anybody trains it. All take turns in one process a
round; graphs are exported once for all targets.
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
from torch import Tensor, nn

from toolchain.config.target import QuantScheme, Target
from toolchain.core import files, progress, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Interval, Precision
from toolchain.edge.timing_process import TimingEffort
from toolchain.export import to_onnx
from toolchain.measure import compile_process, machine, paired_rounds, paired_timing, worker_processes
from toolchain.models import profile

VERSION = 3
GRAPH_VERSION = 1  # apart from that: exporting takes longer than timing
ROUNDS = 3
# candidates differ by far; and with so many of them the first ones wake the core for all
BRIEF_EFFORT = TimingEffort(
    seconds=1.0, warmup_runs=4, warmup_seconds=0.01, fewest_blocks=5, most_seconds=10.0, slow_seconds=0.1
)  # fmt: skip
GRAPH_FILE = "graph.onnx"
SAMPLES_FILE = "rounds.json"


@dataclass(frozen=True, kw_only=True)
class UntrainedLatency:
    """One network on one target."""

    macs: int
    parameters: int
    latencies: Mapping[Precision, Interval]  # milliseconds; empty where this machine lacks the target's instructions
    sizes: Mapping[Precision, int]  # bytes of the files

    @property
    def fastest(self) -> Precision | None:
        """The form that it would ship in, going by latency alone."""
        return min(self.latencies, key=lambda name: self.latencies[name].estimate, default=None)


@dataclass(frozen=True)
class UntrainedNetwork:
    """What is timed: the structure counts, not the weights."""

    model: nn.Module
    example_input: Tensor  # one example input, float32 [1, 3, height, width]


def time_networks(
    networks: Mapping[str, UntrainedNetwork], target: Target, work: Path
) -> tuple[dict[str, UntrainedLatency], dict[str, str]]:
    """Times all networks against one another; and why those are missing that cannot be exported or run.

    Raises:
        ToolchainError: the runtime is missing, or a board does not answer.
    """
    keys, graphs, refused = dict[str, str](), dict[str, Path](), dict[str, str]()
    for name, network in networks.items():
        try:
            keys[name], graphs[name] = _graph(name, network, target.scheme, work)
        except ToolchainError as reason:
            refused[name] = str(reason)
    key = files.digest(
        VERSION, keys, target.runtime, target.threads, target.scheme, target.precisions, machine.runtime_version(target),
        machine.describe(target.device), ROUNDS,
    )  # fmt: skip
    with stage_cache.open_stage(work, "clock", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            first = {key: name for name, key in reversed(keys.items())}  # of those that are built alike one is timed
            found, failed = _timed(networks, {name: graphs[name] for name in first.values()}, target, stage.folder)
            figures = {
                "clocked": {name: found[first[key]] for name, key in keys.items() if first[key] in found},
                "refused": {name: str(failed[first[key]]) for name, key in keys.items() if first[key] in failed},
            }
            for folder in stage.folder.iterdir():  # what was timed; the rounds stay
                if folder.is_dir():
                    shutil.rmtree(folder)
            if any(
                isinstance(reason, worker_processes.WorkerEnded) for reason in failed.values()
            ):  # another run may have more luck
                (stage.folder / SAMPLES_FILE).unlink(missing_ok=True)
                stage = dataclasses.replace(stage, record=files.to_jsonable(figures))
            else:
                stage = stage_cache.finish(stage, started, figures)
        assert stage.record is not None
        rows, refused = stage.record["clocked"], refused | stage.record["refused"]
    return {name: _read(row) for name, row in rows.items()}, refused


def _graph(name: str, network: UntrainedNetwork, scheme: QuantScheme, work: Path) -> tuple[str, Path]:
    shapes = [(each, list(tensor.shape)) for each, tensor in network.model.state_dict().items()]
    key = files.digest(GRAPH_VERSION, str(network.model), shapes, list(network.example_input.shape), scheme)
    with stage_cache.open_stage(work, "graph", key) as stage:
        path = stage.folder / GRAPH_FILE
        if stage.record is None:
            from toolchain.quantization import pt2e  # torchao takes two seconds, of which another target needs none

            started = time.monotonic()
            progress.log(f"clock: {name} is exported")
            graph, _ = pt2e.prepare(network.model, network.example_input, None, scheme)
            with files.open_atomic(path) as out:
                out.write(onnx_ir.to_proto(to_onnx.export_graph(graph, network.example_input)).SerializeToString())
            stage_cache.finish(stage, started, {})
    return key, path


def _timed(
    networks: Mapping[str, UntrainedNetwork], graphs: Mapping[str, Path], target: Target, folder: Path
) -> tuple[dict[str, UntrainedLatency], dict[str, ToolchainError]]:
    made, refused = dict[str, dict[Precision, compile_process.CompiledForm]](), dict[str, ToolchainError]()
    asked = {
        name: compile_process.make_request(path, target, tuple(networks[name].example_input.shape), folder)
        for name, path in graphs.items()
    }
    with progress.show_bar("clock: compiled", len(graphs)) as bar:
        for name, answered in worker_processes.share_work("measure.compile_process", asked, "a compiling process"):
            try:
                made[name] = compile_process.parse_reply(answered)
            except ToolchainError as reason:
                refused[name] = reason
            bar.step(name)
    able = [name for name in graphs if name not in refused]
    taken = machine.integer_isa(target.device) == target.isa
    sides = [
        paired_timing.TimedModel(
            name=f"{name} {precision}", runtime=target.runtime, path=one.opened, precision=precision,
            threads=target.threads, shape=tuple(networks[name].example_input.shape), device=target.device,
        )
        for name in able for precision, one in made[name].items()
    ]  # fmt: skip
    measured = (
        paired_rounds.measure(sides, ROUNDS, 0, folder / SAMPLES_FILE, "clock: rounds", BRIEF_EFFORT)
        if taken and sides
        else []
    )
    found = {}
    for name in able:
        layers = profile.measure_layers(networks[name].model, networks[name].example_input)
        found[name] = UntrainedLatency(
            macs=int(profile.total_macs(layers)), parameters=sum(p.numel() for p in networks[name].model.parameters()),
            latencies={p: paired_rounds.p50(measured, f"{name} {p}") for p in target.precisions if measured},
            sizes={p: made[name][p].size_bytes for p in target.precisions},
        )  # fmt: skip
    return found, refused


def _read(row: Mapping[str, object]) -> UntrainedLatency:
    found = {**row, "latencies": {p: Interval(**one) for p, one in row["latencies"].items()}}  # type: ignore[attr-defined]
    return UntrainedLatency(**found)  # type: ignore[arg-type]
