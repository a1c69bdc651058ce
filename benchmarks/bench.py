"""Is a latency that `bench` prints the runtime's own? Against bare loops, against OpenVINO's benchmark_app, and repeated.

    python benchmarks/bench.py [--models mobilenet_v2,resnet18] [--repeats 20] [--out out/bench-benchmark]

Random weights, static batch 1, f32, one thread. "bare" is a script of a dozen lines around `InferenceSession.run` in a
process of its own; `benchmark_app` runs in latency mode with the same threads, shape and precision. They cannot share a
process, so they take turns with `bench`, and medians of the medians are compared. "spread" is the range from the 5th to
the 95th percentile of one artefact's p50 over repeats, as a ratio to another artefact that `bench` times beside it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import peers
import torch
import typer

from toolchain.core import progress
from toolchain.export import to_onnx
from toolchain.export.runtime import load_runtime
from toolchain.measure import model_files, paired_rounds

BARE = """
import json, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = {session.get_inputs()[0].name: numpy.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=numpy.float32)}
for _ in range(20):
    session.run(None, image)
taken = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter_ns()
    session.run(None, image)
    taken.append((time.perf_counter_ns() - start) / 1e6)
print(json.dumps(sorted(taken)[len(taken) // 2]))
"""
RUNS = 200  # of a bare loop
APP_SECONDS = 3


def main(
    models: str = "mobilenet_v2,resnet18",
    turns: Annotated[int, typer.Option(help="of bench and what it is compared with")] = 7,
    repeats: Annotated[int, typer.Option(help="of one artefact, for the spread; 0: none")] = 20,
    out: Path = Path("out/bench-benchmark"),
) -> None:
    """Prints both tables."""
    print(
        "| model | runtime | bench p50, ms | compared with | its median, ms | ratio of pairs |\n|---|---|--:|---|--:|---|"
    )
    for name in models.split(","):
        path = out / f"{name}.onnx"
        if not path.exists():
            out.mkdir(parents=True, exist_ok=True)
            to_onnx.export_file(peers.network(name), torch.zeros(peers.SHAPE), path)
        for runtime, other, call in (("onnxruntime", "bare loop", bare), ("openvino", "benchmark_app", app)):
            made = load_runtime(runtime).compile(path, out / f"{name}-{runtime}").path
            subject = model_files.open_model(made, out)
            pairs = []
            for turn in range(turns):
                found = in_turns(subject, call, made, turn, out / "rounds")
                pairs.append(found)
                progress.log(f"{name}, {runtime}: bench {found[0]:.4g} ms, {other} {found[1]:.4g} ms")
            ours, theirs = np.array(pairs).T
            ratio = np.sort(ours / theirs)
            print(
                f"| {name} | {runtime} | {np.median(ours):.4g} | {other} | {np.median(theirs):.4g} | {np.median(ratio):.3f} "
                f"[{ratio[0]:.3f}, {ratio[-1]:.3f}], n = {turns} |"
            )
    if repeats:
        spread(models.split(",")[0], repeats, out)


def in_turns(
    subject: model_files.ModelFile, call: Callable[[Path], float], made: Path, turn: int, folder: Path
) -> tuple[float, float]:
    """What `bench` and the other say, whose turn is first every second time."""
    if turn % 2:
        theirs = call(made)
        return own(subject, folder, turn), theirs
    ours = own(subject, folder, turn)
    return ours, call(made)


def own(subject: model_files.ModelFile, folder: Path, seed: int) -> float:
    """p50 as `bench` measures it, from three rounds."""
    path = folder / f"{subject.name}-{seed}.json"
    path.unlink(missing_ok=True)
    return paired_rounds.p50(
        paired_rounds.measure([subject.timed_model], 3, seed, path, "bench"), subject.name
    ).estimate


def bare(path: Path) -> float:
    """Median of a plain loop."""
    ended = subprocess.run(
        [sys.executable, "-c", BARE, str(path), str(RUNS)], capture_output=True, text=True, check=True
    )
    return float(json.loads(ended.stdout))


def app(path: Path) -> float:
    """Median latency that OpenVINO's own tool reports."""
    command = [
        str(Path(sys.executable).parent / "benchmark_app"), "-m", str(path), "-d", "CPU", "-hint", "none", "-nireq", "1",
        "-nstreams", "1", "-nthreads", "1", "-infer_precision", "f32", "-t", str(APP_SECONDS), "-api", "sync",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Median:\s+([\d.]+) ms", ended.stdout)
    assert found is not None, ended.stdout
    return float(found[1])


def spread(name: str, repeats: int, out: Path) -> None:
    """How far one artefact's p50 strays, beside a reference of the same file."""
    subject = model_files.open_model(out / f"{name}-onnxruntime" / "model.onnx", out)
    ratios, alone = [], []
    for repeat in range(repeats):
        path = out / "rounds" / f"spread-{repeat}.json"
        path.unlink(missing_ok=True)
        sides = [subject.renamed("it").timed_model, subject.renamed("reference").timed_model]
        measured = paired_rounds.measure(sides, 10, 100 * repeat, path, f"spread {repeat + 1}")
        halves = [paired_rounds.p50(measured, side).estimate for side in ("it", "reference")]
        ratios.append(halves[0] / halves[1])
        alone.append(halves[0])
    low, high = np.percentile(ratios, [5, 95])
    milliseconds = np.percentile(alone, [5, 95])
    print(
        f"\n{name}: p50 over {repeats} repeats, as a ratio to the reference beside it: 5th to 95th percentile {low:.4f} to "
        f"{high:.4f}, spread {100 * (high - low):.2f} %; in milliseconds {100 * (milliseconds[1] / milliseconds[0] - 1):.1f} %"
    )


if __name__ == "__main__":
    typer.run(main)
