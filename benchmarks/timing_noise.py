"""How far paired timing strays when both sides are the same file: `python benchmarks/timing_noise.py MODEL.onnx`.

Prints the ratio of one artefact to itself for 20 repeats, each of the rounds that `bench` uses.
"""

import math
import sys
from pathlib import Path

import numpy as np
import onnx

from toolchain.core import statistics
from toolchain.measure import latency, paired_timing

REPEATS = 20


def main(path: Path) -> None:
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    shape = tuple(d.dim_value for d in dims)
    sides = [
        paired_timing.TimedModel(
            name=name, runtime="onnxruntime", path=str(path), precision="f32", threads=1, shape=shape
        )
        for name in ("first", "second")
    ]
    ratios = []
    for repeat in range(REPEATS):
        rounds: list[paired_timing.Round] = []
        paired_timing.time_rounds(sides, latency.ROUNDS, 1000 * repeat, rounds.append)
        logs = [statistics.log_speedup(one.blocks["first"], one.blocks["second"]) for one in rounds]
        medians = [
            np.median([s for one in rounds for block in one.blocks[n] for s in block]) for n in ("first", "second")
        ]
        found = statistics.speedup(logs)
        ratios.append(found.estimate)
        print(
            f"{repeat + 1:2d}: paired {found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}], "
            f"ratio of p50 {medians[0] / medians[1]:.4f}",
            flush=True,
        )
    worst = max(abs(math.log(ratio)) for ratio in ratios)
    print(f"worst of {REPEATS}: {math.expm1(worst):+.2%}; standard deviation {np.std(ratios):.2%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
