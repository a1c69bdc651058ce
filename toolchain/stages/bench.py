"""bench: artefacts, target -> latency from paired rounds, footprint, and the share of what this core can do."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from toolchain import discover, machine, progress, records, stats, timing
from toolchain.errors import ToolchainError
from toolchain.values import Interval, Measurement, Precision, Target, Variant

VERSION = 4
ROUNDS = 10
PEAK_ROUNDS = 3
PEAK_CHANNELS, PEAK_SIDE = 256, 28  # 3x3 convolution: 462 M multiply-accumulates, long rows, fits the cache
BUSY = 0.25  # load by others that is worth a warning, in cores


def run(variants: Sequence[Variant], target: Target, seed: int, work: Path) -> tuple[dict[str, Measurement], list[str]]:
    """Times all variants against one another.

    Args:
        variants: what to time; the same runtime and threads for all.

    Returns:
        a Measurement by variant name, none where this machine lacks the target's instructions; and warnings in plain
        words.
    """
    if machine.kind() != target.isa:
        return {}, [
            f"latency was not measured: this machine is {machine.kind()}, {target.name} is {target.isa}; "
            "accuracy was measured with this machine's kernels"
        ]
    sides = [_side(v.name, v.artefact.path, v.precision, target, (1, 3, *v.image_size)) for v in variants]
    runtime = discover.module("runtimes", target.runtime)
    hashes = [(v.name, v.artefact.sha256, v.precision) for v in variants]
    shapes = [side.shape for side in sides]
    key = records.digest(VERSION, hashes, target.threads, runtime.fingerprint(), machine.describe(), shapes, ROUNDS)
    with records.stage(work, "bench", key) as stage:
        if stage.figures is None:
            started = time.monotonic()
            load = _foreign_load()
            measured = _resumed(sides, ROUNDS, seed, stage.folder / "rounds.json", "bench: paired rounds")
            peaks = _peaks(target, seed, stage.folder, {v.precision for v in variants})
            prints = {side.name: records.plain(timing.footprint(side)) for side in sides}
            stage = records.finish(stage, started, {"footprints": prints, "peaks": peaks, "load": load})
        else:
            measured = _rounds_of(stage.folder / "rounds.json")
        assert stage.figures is not None
        figures = stage.figures
    result = {v.name: _measurement(v, variants, measured, figures) for v in variants}
    return result, _warnings(result, figures["load"])


def _side(name: str, path: Path, precision: Precision, target: Target, shape: tuple[int, ...]) -> timing.Side:
    return timing.Side(
        name=name, runtime=target.runtime, path=str(path), precision=precision, threads=target.threads, shape=shape
    )


def _rounds_of(path: Path) -> list[timing.Round]:
    return (
        [timing.Round(seed=row["seed"], blocks=row["blocks"]) for row in records.read_json(path)]
        if path.exists()
        else []
    )


def _resumed(sides: Sequence[timing.Side], count: int, seed: int, path: Path, label: str) -> list[timing.Round]:
    """Paired rounds, each on disk as soon as it is measured."""
    measured = _rounds_of(path)
    with progress.bar(label, count - len(measured)) as bar:

        def keep(one: timing.Round) -> None:
            measured.append(one)
            records.write_json(path, measured)
            bar.step()

        timing.rounds(sides, count, seed, skip=len(measured), keep=keep)
    return measured


def _measurement(
    variant: Variant, variants: Sequence[Variant], measured: Sequence[timing.Round], figures: Mapping[str, object]
) -> Measurement:
    own = [one.blocks[variant.name] for one in measured]
    samples = tuple(sample for blocks in own for block in blocks for sample in block)
    medians = [float(np.median([s for block in blocks for s in block])) for blocks in own]
    middle = stats.speedup([math.log(m) for m in medians])
    p50 = float(np.median(samples))
    footprints, peaks = figures["footprints"], figures["peaks"]
    assert isinstance(footprints, Mapping)
    assert isinstance(peaks, Mapping)
    peak = peaks.get(variant.precision)
    return Measurement(
        latencies_ms=samples,
        p50_ms=Interval(estimate=p50, low=min(middle.low, p50), high=max(middle.high, p50), samples=len(samples)),
        round_logs={
            other.name: [stats.round_ratio(one.blocks[other.name], one.blocks[variant.name]) for one in measured]
            for other in variants
            if other.name != variant.name
        },
        load_ms=footprints[variant.name]["load_ms"],
        first_ms=footprints[variant.name]["first_ms"],
        peak_rss_bytes=int(footprints[variant.name]["peak_rss_bytes"]),
        peak_share=variant.macs / (p50 * 1e-3) / peak if peak else None,
    )


def _foreign_load() -> float:
    """Cores that others keep busy while this process rests."""
    return float(psutil.cpu_percent(interval=0.5)) / 100 * (psutil.cpu_count() or 1)


def _warnings(result: Mapping[str, Measurement], load: float) -> list[str]:
    found = []
    if load > BUSY:
        found.append(f"other work kept {load:.1f} cores busy when timing began; ratios hold, milliseconds are too high")
    noisy = max((stats.spread(logs) for m in result.values() for logs in m.round_logs.values()), default=0.0)
    if noisy > 0.05:
        found.append(f"rounds differ by {noisy:.0%} (standard deviation); this machine is noisy, trust the intervals")
    return found


# --- the core's peak ----------------------------------------------------------------------------------------


def _peaks(target: Target, seed: int, folder: Path, precisions: set[Precision]) -> dict[str, float]:
    """Multiply-accumulates a second that a large convolution reaches in this runtime, by precision."""
    runtime = discover.module("runtimes", target.runtime)
    shape = (1, PEAK_CHANNELS, PEAK_SIDE, PEAK_SIDE)
    sides = []
    for precision in sorted(precisions):
        path = folder / f"peak-{precision}.onnx"
        with records.writing(path) as out:
            out.write(_peak_graph(precision == "int8").SerializeToString(deterministic=True))
        try:
            compiled = runtime.compile(path, folder / f"peak-{precision}")
        except ToolchainError:
            continue  # no yardstick, no share; the report says "not measured"
        sides.append(_side(f"peak-{precision}", compiled.path, precision, target, shape))
    measured = _resumed(sides, PEAK_ROUNDS, seed, folder / "peaks.json", "bench: this core's peak")
    macs = PEAK_CHANNELS**2 * 9 * PEAK_SIDE**2
    best = {s.name: min(min(b) for one in measured for b in one.blocks[s.name]) for s in sides}
    return {name.removeprefix("peak-"): macs / (ms * 1e-3) for name, ms in best.items()}


def _peak_graph(integer: bool) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    shape = [1, PEAK_CHANNELS, PEAK_SIDE, PEAK_SIDE]
    kernel = random.standard_normal((PEAK_CHANNELS, PEAK_CHANNELS, 3, 3), dtype=np.float32)
    tensors: dict[str, Any] = {"w": (kernel * 30).astype(np.int8) if integer else kernel}
    conv = helper.make_node(
        "Conv", ["x_", "w_"] if integer else ["input", "w"], ["y" if integer else "logits"], pads=[1] * 4
    )
    nodes = [conv]
    if integer:
        tensors |= {"s": np.float32(0.05), "z": np.uint8(128), "ws": np.full(PEAK_CHANNELS, 0.02, np.float32)}
        tensors |= {"wz": np.zeros(PEAK_CHANNELS, np.int8), "ys": np.float32(1.0)}
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["x_"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["w_"], axis=0),
            conv,
            helper.make_node("QuantizeLinear", ["y", "ys", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "ys", "z"], ["logits"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "peak", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
