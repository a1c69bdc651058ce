"""Latency of untrained networks on a target, in each precision.

Latency does not depend on the weights, so a network can be timed before it is trained. In each round all networks share
one process and take turns; a graph is exported once for all targets.
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
from toolchain.measure.compile_process import CompiledForm
from toolchain.models import profile
from toolchain.models.sources import user_code

VERSION = 3
GRAPH_VERSION = 1  # separate from VERSION, because exporting takes longer than timing
ROUNDS = 3
# short: candidates differ widely, and among so many the first ones bring the core up to its full clock for all
BRIEF_EFFORT = TimingEffort(
    seconds=1.0, warmup_runs=4, warmup_seconds=0.01, fewest_blocks=5, most_seconds=10.0, slow_seconds=0.1
)  # fmt: skip
GRAPH_FILE = "graph.onnx"
SAMPLES_FILE = "rounds.json"


@dataclass(frozen=True, kw_only=True)
class UntrainedLatency:
    """Latency and size of one network on one target."""

    macs: int
    parameters: int
    latencies: Mapping[Precision, Interval]  # milliseconds; empty where this machine lacks the target's instructions
    sizes: Mapping[Precision, int]  # bytes of the files

    @property
    def fastest(self) -> Precision | None:
        """The precision with the lowest latency; None where nothing was timed."""
        return min(self.latencies, key=lambda name: self.latencies[name].estimate, default=None)


@dataclass(frozen=True)
class UntrainedNetwork:
    """A network to time; its structure counts, its weights do not."""

    model: nn.Module
    example_input: Tensor  # float32 [1, 3, height, width]


def time_networks(
    networks: Mapping[str, UntrainedNetwork], target: Target, work: Path
) -> tuple[dict[str, UntrainedLatency], dict[str, str]]:
    """Time all networks against one another.

    Args:
        networks: by name.
        target: to compile for and to time on.
        work: folder of the stage cache.

    Returns:
        the latencies by name, and by name why a network cannot be exported or run.

    Raises:
        ToolchainError: the runtime is not installed, or the board does not answer.
    """
    keys, graphs, refused = dict[str, str](), dict[str, Path](), dict[str, str]()
    for name, network in networks.items():
        try:
            keys[name], graphs[name] = _export_graph(name, network, target.scheme, work)
        except ToolchainError as reason:
            refused[name] = str(reason)
    key = files.digest(
        VERSION, keys, target.runtime, target.threads, target.scheme, target.precisions, machine.runtime_version(target),
        machine.describe(target.device), ROUNDS,
    )  # fmt: skip
    with stage_cache.open_stage(work, "clock", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            first = {key: name for name, key in reversed(keys.items())}  # networks with the same graph are timed once
            first_graphs = {name: graphs[name] for name in first.values()}
            latencies, failures = _compile_and_time(networks, first_graphs, target, stage.folder)
            record = {
                "clocked": {name: latencies[first[key]] for name, key in keys.items() if first[key] in latencies},
                "refused": {name: str(failures[first[key]]) for name, key in keys.items() if first[key] in failures},
            }
            for folder in stage.folder.iterdir():  # compiled networks are no longer needed; the rounds stay
                if folder.is_dir():
                    shutil.rmtree(folder)
            if any(isinstance(reason, worker_processes.WorkerEnded) for reason in failures.values()):
                # the stage stays unfinished: the next run may have enough memory for the process that ended
                (stage.folder / SAMPLES_FILE).unlink(missing_ok=True)
                stage = dataclasses.replace(stage, record=files.to_jsonable(record))
            else:
                stage = stage_cache.finish(stage, started, record)
        assert stage.record is not None
        rows, refused = stage.record["clocked"], refused | stage.record["refused"]
    return {name: _parse_row(row) for name, row in rows.items()}, refused


def _export_graph(name: str, network: UntrainedNetwork, scheme: QuantScheme, work: Path) -> tuple[str, Path]:
    """Export a network as float ONNX; return its cache key and the file."""
    shapes = [(entry, list(tensor.shape)) for entry, tensor in network.model.state_dict().items()]
    code = user_code.hash_sources(network.model)  # what `forward` does does not show in the model's text
    key = files.digest(
        GRAPH_VERSION, str(network.model), shapes, list(network.example_input.shape), scheme, *([code] if code else [])
    )
    with stage_cache.open_stage(work, "graph", key) as stage:
        path = stage.folder / GRAPH_FILE
        if stage.record is None:
            from toolchain.quantization import pt2e  # importing torchao takes two seconds; a cached graph needs none

            started = time.monotonic()
            progress.log(f"clock: exporting {name}")
            graph, _ = pt2e.prepare(network.model, network.example_input, None, scheme)
            with files.open_atomic(path) as out:
                out.write(onnx_ir.to_proto(to_onnx.export_graph(graph, network.example_input)).SerializeToString())
            stage_cache.finish(stage, started, {})
    return key, path


def _compile_and_time(
    networks: Mapping[str, UntrainedNetwork], graphs: Mapping[str, Path], target: Target, folder: Path
) -> tuple[dict[str, UntrainedLatency], dict[str, ToolchainError]]:
    """Return the latency of each network that has a graph, and the error of each that does not compile or run."""
    forms, failures = _compile_graphs(networks, graphs, target, folder)
    models = [
        paired_timing.TimedModel(
            name=f"{name} {precision}", runtime=target.runtime, path=form.opened, precision=precision,
            threads=target.threads, shape=tuple(networks[name].example_input.shape), device=target.device,
        )
        for name, forms_by_precision in forms.items() for precision, form in forms_by_precision.items()
    ]  # fmt: skip
    has_instructions = machine.integer_isa(target.device) == target.isa
    rounds = (
        paired_rounds.measure(models, ROUNDS, 0, folder / SAMPLES_FILE, "clock: rounds", BRIEF_EFFORT)
        if has_instructions and models
        else []
    )
    latencies = {}
    for name, forms_by_precision in forms.items():
        layers = profile.measure_layers(networks[name].model, networks[name].example_input)
        latencies[name] = UntrainedLatency(
            macs=int(profile.total_macs(layers)),
            parameters=sum(parameter.numel() for parameter in networks[name].model.parameters()),
            latencies={
                precision: paired_rounds.p50(rounds, f"{name} {precision}") for precision in target.precisions if rounds
            },
            sizes={precision: forms_by_precision[precision].size_bytes for precision in target.precisions},
        )  # fmt: skip
    return latencies, failures


def _compile_graphs(
    networks: Mapping[str, UntrainedNetwork], graphs: Mapping[str, Path], target: Target, folder: Path
) -> tuple[dict[str, dict[Precision, CompiledForm]], dict[str, ToolchainError]]:
    """Compile graphs in several processes; return the forms by network, in the order of `graphs`, and the errors."""
    forms, failures = dict[str, dict[Precision, CompiledForm]](), dict[str, ToolchainError]()
    requests = {
        name: compile_process.make_request(path, target, tuple(networks[name].example_input.shape), folder)
        for name, path in graphs.items()
    }
    with progress.show_bar("clock: networks compiled", len(graphs)) as bar:
        for name, reply in worker_processes.share_work("measure.compile_process", requests, "a compile process"):
            try:
                forms[name] = compile_process.parse_reply(reply)
            except ToolchainError as reason:
                failures[name] = reason
            bar.step(name)
    return {name: forms[name] for name in graphs if name in forms}, failures


def _parse_row(row: Mapping[str, object]) -> UntrainedLatency:
    intervals = {name: Interval(**fields) for name, fields in row["latencies"].items()}  # type: ignore[attr-defined]
    return UntrainedLatency(**{**row, "latencies": intervals})  # type: ignore[arg-type]
