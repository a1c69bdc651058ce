"""The placement search against one that takes ten times as long, on small networks.

    python benchmarks/longer_search.py [--models mobilenet_v3_small,shufflenet_v2_x0_5] [--runtime onnxruntime]

The longer search starts where the usual one ends and goes on with random changes of the placement (kinds of operation
the other way round, parts of the model in float or back in integers, down to single layers), each kept if it is faster
again and again. Both results are then timed in pairs, in processes of their own.
"""

import os
import random
import time
from pathlib import Path
from typing import Annotated

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import peers
import torch
import typer

from toolchain.config import read_config
from toolchain.core import progress, statistics
from toolchain.export import insert_qdq
from toolchain.quantization import placement
from toolchain.quantization.placement import Placement
from toolchain.search import place, placement_changes, placement_search

TIMES = 10
CHANGES = 5  # tried together
ROUNDS = 8


def main(
    models: Annotated[
        str, typer.Option(help="torchvision names, with commas")
    ] = "mobilenet_v3_small,shufflenet_v2_x0_5",
    runtime: str = "onnxruntime",
    seconds: float = 90.0,
    out: Path = Path("out/longer_search"),
) -> None:
    """Prints how much faster the longer search's placement is."""
    torch.set_num_threads(1)
    target = read_config.read_target({"onnxruntime": "cpu", "openvino": "openvino"}[runtime])
    print("| model | runtime | search | ten times longer | longer / usual latency |\n|---|---|---|---|---|")
    for name in models.split(","):
        model, image = peers.network(name), torch.zeros(peers.SHAPE)
        placed = place.find_placement(model, image, target, (), seconds, out / "work")
        longer = place.prepare_search(model, image, target, out / name / runtime, float("inf"))
        began = time.monotonic()
        best = gone_on(longer, placed.placement, began + TIMES * placed.search_seconds)
        progress.log(f"usual {placed.placement}\nlonger {best}")
        logs = [
            longer.measure_gains({"longer": best}, baseline=placed.placement, repeated=True).get("longer", 0.0)
            for _ in range(ROUNDS)
        ]
        gain = statistics.speedup(logs)
        print(
            f"| {name} | {runtime} | {placed.search_seconds:.0f} s, {len(placed.timed_placements)} candidates | "
            f"{time.monotonic() - began:.0f} s, {len(longer.timings)} candidates | "
            f"{1 / gain.estimate:.3f} [{1 / gain.high:.3f}, {1 / gain.low:.3f}] |",
            flush=True,
        )


def gone_on(longer: placement_search.PlacementSearch, best: Placement, end: float) -> Placement:
    """The best placement that random changes lead to in time."""
    dice = random.Random(0)
    layers = placement.quantized_layers(insert_qdq.list_operations(longer.float_graph.graph), Placement())
    parts = [*placement.split_into_blocks(layers, placement_search.MAX_BLOCKS), *layers]
    while time.monotonic() < end:
        found = {}
        for number in range(CHANGES):
            kinds = [kind for kind in placement_changes.OPERATION_KINDS if dice.random() < 0.3]
            names = dice.sample(parts, dice.choice((0, 1, 1, 2, 4)))
            turned = dice.random() < 0.15
            found[f"change {len(longer.timings)}.{number}"] = lambda one, k=kinds, n=names, t=turned: changed(
                one, k, n, t
            )
        best = longer.improve(best, found)
        progress.log(f"longer search: {len(longer.timings)} candidates, {end - time.monotonic():.0f} s left")
    return best


def changed(one: Placement, kinds: list[str], names: list[str], turned: bool) -> Placement:
    """A placement with some of its decisions the other way round."""
    floats = set(one.float_operations) ^ set(kinds)
    modules = set(one.float_modules) ^ set(names)
    return Placement(
        float_modules=tuple(sorted(modules)),
        float_operations=tuple(kind for kind in placement_changes.OPERATION_KINDS if kind in floats),
        results=one.results != turned,
    )


if __name__ == "__main__":
    typer.run(main)
