"""Does the gate cry wolf, and does it hear one? Real gates on this machine, and gates resampled from their rounds.

    python benchmarks/gate.py [--gates 100] [--runtime onnxruntime] [--resampled 6000] [--out out/gate-benchmark]

Both sides are chains of equal convolutions, the slower one longer: 34 for 33 (3 %), 21 for 20 (5 %), 22 for 20 (10 %).
How much slower that is on this machine is measured over all rounds of all its gates and printed beside what was caught.
Resampled gates draw from those rounds, so they show what the rule does with this noise, not with that of another day.
"same" is one file on both sides; every second gate of it, and of the others with --loaded, runs while processes compute
at random. Each gate's rounds are kept in --out, so a killed run goes on where it was; figures are printed at the end.
"""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from toolchain.config import read_config
from toolchain.core import files, progress, statistics
from toolchain.gates import gate_inputs, regression_gate, sequential_test
from toolchain.gates.sequential_test import Sample
from toolchain.measure import model_files

CHANNELS, SIDE = 32, 32
PAIRS = {"same": (20, 20), "3 %": (33, 34), "5 %": (20, 21), "10 %": (20, 22)}  # convolutions of reference, candidate
TARGETS = {"onnxruntime": "cpu", "openvino": "openvino"}
BURST_SECONDS = 0.2, 3.0  # of computing, and of resting, at random
CONFIDENCE = 0.95


def main(
    gates: Annotated[int, typer.Option(help="real ones of each pair")] = 100,
    runtime: str = "onnxruntime",
    pairs: Annotated[str, typer.Option(help="with commas")] = ",".join(PAIRS),
    loaded: Annotated[bool, typer.Option(help="every second gate of the slower pairs under load too")] = False,
    resampled: int = 6000,
    out: Path = Path("out/gate-benchmark"),
) -> None:
    """Runs what is missing, then prints the tables."""
    names = pairs.split(",")
    for number in range(gates):  # in turns, so that what is kept of a cut run is of all pairs
        for name in names:
            path = out / runtime / name.replace(" ", "") / f"{number:03d}.json"
            if not path.exists():
                busy = number % 2 == 1 and (name == "same" or loaded)
                files.write_json(path, real(name, runtime, busy, seed=1000 * number, folder=out / "models"))
                progress.log(f"{name} {number + 1}/{gates}: {files.read_json(path)['outcome']}")
    print(f"\n{HEAD}")
    for name in names:
        found = [files.read_json(path) for path in sorted((out / runtime / name.replace(" ", "")).glob("*.json"))]
        for busy in (False, True):
            if own := [one for one in found if one["busy"] == busy]:
                print(row(f"{name}{', under load' if busy else ''}", own, resampled))


def real(name: str, runtime: str, busy: bool, *, seed: int, folder: Path) -> dict[str, Any]:
    """One gate on this machine, as `toolchain gate` runs it."""
    reference, candidate = (
        model_files.open_model(chain(length, folder), folder, runtime=runtime) for length in PAIRS[name]
    )
    target, started = read_config.read_target(TARGETS[runtime]), time.monotonic()
    with load(seed) if busy else rest():
        found = regression_gate.compare_pair(
            gate_inputs.GatePair(recipe=name, candidate=candidate, baseline=reference),
            target,
            "chains of layers have no images",
            seed,
        )
    verdict = next(v for v in found.verdicts if v.check == "latency_growth")
    samples = [regression_gate.read_sample(one) for one in found.rounds]
    return {
        "busy": busy, "outcome": verdict.outcome, "why": verdict.why, "seconds": time.monotonic() - started,
        "samples": files.to_jsonable(samples),
    }  # fmt: skip


def chain(length: int, folder: Path) -> Path:
    """`length` equal 3x3 convolutions in a row."""
    path = folder / f"chain-{length}.onnx"
    if path.exists():
        return path
    kernel = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3), dtype=np.float32) / 20
    nodes, last = [], "input"
    for index in range(length):
        result = "logits" if index == length - 1 else f"c{index}"
        nodes.append(helper.make_node("Conv", [last, "w"], [result], pads=[1, 1, 1, 1]))
        last = result
    shape = (1, CHANNELS, SIDE, SIDE)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("input", "logits")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    with files.open_atomic(path) as file:
        file.write(model.SerializeToString())
    return path


@contextmanager
def rest() -> Iterator[None]:
    yield


@contextmanager
def load(seed: int) -> Iterator[None]:
    """One or two processes that compute at random."""
    workers = [
        multiprocessing.Process(target=_burst, args=(seed + i,), daemon=True) for i in range(1 + seed // 2000 % 2)
    ]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _burst(seed: int) -> None:
    order, block = random.Random(seed), np.ones((192, 192))
    while True:
        until = time.monotonic() + order.uniform(*BURST_SECONDS)
        while time.monotonic() < until:
            block @ block
        time.sleep(order.uniform(*BURST_SECONDS))


def row(name: str, found: Sequence[dict[str, Any]], resampled: int) -> str:
    """What gates of one kind answered, and what gates drawn from their rounds would have."""
    said = Counter(one["outcome"] for one in found)
    pool = [Sample(**sample) for one in found for sample in one["samples"]]
    slower = statistics.speedup([sample.candidate for sample in pool])
    order = random.Random(0)
    threshold = read_config.read_target("cpu").gate.regression_threshold
    drawn = Counter(
        sequential_test.run_test(lambda count: order.choices(pool, k=count), threshold).outcome
        for _ in range(resampled)
    )
    seconds = [one["seconds"] for one in found]
    spread = statistics.timing_noise([sample.candidate for sample in pool])
    cells = (
        name, bounded(len(found), said["fail"]), f"{100 * (slower.estimate - 1):+.2f} % [{100 * (slower.low - 1):+.2f}, "
        f"{100 * (slower.high - 1):+.2f}]", f"{100 * spread:.2f} %", str(said["fail"]), str(said["cannot_tell"]),
        str(said["pass"]), f"{drawn['fail']} of {resampled}", f"{drawn['cannot_tell']} of {resampled}",
        str(len(pool)), f"{np.median(seconds):.0f} s, {max(seconds):.0f} s",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def bounded(gates: int, alarms: int) -> str:
    """How many, and where none of them raised an alarm, what share of alarms that rules out."""
    return f"{gates} (alarms below {100 * (1 - (1 - CONFIDENCE) ** (1 / gates)):.1f} %)" if not alarms else str(gates)


HEAD = """\
| pair | gates | slower | spread | regression | cannot tell | pass | resampled: regression | resampled: cannot tell | rounds | median, longest |
|---|--:|---|--:|--:|--:|--:|---|---|--:|---|"""


if __name__ == "__main__":
    typer.run(main)
