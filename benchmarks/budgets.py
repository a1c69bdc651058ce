"""Latency budgets: what was asked for, and what the pruned model takes as it would ship.

    python benchmarks/budgets.py [--models resnet18:0.7+0.5+0.35,resnet56:0.5] [--runtimes onnxruntime] [--out out/budgets]

Random weights, static batch 1, one thread; 224x224, ResNet-56 in its form for CIFAR at 32x32. `fit` searches as for a
user; dense and pruned model are then exported and compiled in the form that ships (calibrated, not trained: that
changes no latency) and in float, and all four are timed in the same paired rounds. "off" is the latency reached against
the budget; "float gain / MACs" is how many times faster f32 became, as a share of how many times fewer the
multiply-accumulates are.

Rows are kept in --out, so a killed run goes on where it was.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from toolchain.export.runtime import load_runtime

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the searches and their rounds are single-threaded

import peers
import placement
import torch
import typer
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import make_job
from toolchain.config.recipe import AugmentSpec, ModelSpec, PruneSpec, Recipe
from toolchain.core import files, progress, stage_cache, statistics
from toolchain.core.errors import ToolchainError
from toolchain.export import to_onnx
from toolchain.measure.paired_timing import TimedModel
from toolchain.models import build, profile
from toolchain.pruning import surgery
from toolchain.search import place, search_pruning
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel

DEFAULT = "resnet18:0.7+0.5+0.35,mobilenet_v2:0.7+0.5+0.35,resnet56:0.5,efficientnet_b0:0.5"
CIFAR = (1, 3, 32, 32)


class Block(nn.Module):
    """Two 3x3 convolutions around which the input is added (He et al., arXiv 1512.03385, section 4.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))  # type: ignore[no-any-return]


def resnet56() -> nn.Module:
    """ResNet-56 for 32x32 pictures."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        stride = 1 if inputs == outputs else 2
        layers += [Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(8))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main(
    models: Annotated[str, typer.Option(help="name:budget+budget, with commas")] = DEFAULT,
    runtimes: Annotated[str, typer.Option(help="with commas")] = ",".join(placement.TARGETS),
    rounds: Annotated[int, typer.Option(help="processes that time all sides against one another")] = 6,
    out: Annotated[Path, typer.Option(help="folder that keeps artefacts and rows")] = Path("out/budgets"),
) -> None:
    """Writes the rows that are missing, then prints all of them."""
    torch.set_num_threads(1)
    for one in models.split(","):
        name, _, budgets = one.partition(":")
        for runtime in runtimes.split(","):
            for budget in budgets.split("+"):
                row = out / "rows" / f"{name}-{runtime}-{budget}.json"
                if row.exists():
                    continue
                progress.log(f"== {name}, {runtime}, {budget}x")
                try:
                    files.write_json(row, reached(name, runtime, float(budget), rounds, out))
                except ToolchainError as reason:
                    progress.log(f"{name}, {runtime}, {budget}x: {reason}")
                else:
                    progress.log(line(files.read_json(row)))
    print("\n".join([HEAD, *(line(files.read_json(path)) for path in sorted((out / "rows").glob("*.json")))]))


def network(name: str) -> tuple[nn.Module, str, Tensor]:
    """A model, the name of its head and an input."""
    if name == "resnet56":
        torch.manual_seed(0)
        model = peers.settled(resnet56(), CIFAR)
        return model, build.find_head(model, 10), torch.zeros(CIFAR)
    model = peers.network(name)
    return model, build.find_head(model, 1000), torch.zeros(peers.SHAPE)


def reached(name: str, runtime: str, budget: float, rounds: int, out: Path) -> dict[str, Any]:
    """One row: fitted, made and timed."""
    dense, head, image = network(name)
    target = read_config.read_target(placement.TARGETS[runtime])
    recipe = Recipe(name=name, domain="none", model=ModelSpec(name=name), prune=PruneSpec(criterion="magnitude"))
    # magnitude reads the weights alone: no data are needed
    data: Any = SimpleNamespace(example=image)
    adapted = FinetunedModel(TrainedModel(dense, name, {}, 0.0), head, data, AugmentSpec(), (), ())
    job = make_job(recipe, target, Domain(name="none"), out)
    plan = search_pruning.run(job, adapted)
    assert plan.latency_fit is not None
    pruned = surgery.apply(dense, plan.surgery)
    placed = place.run(job, {"dense": (dense, image), "pruned": (pruned, image)}, plan.decided_placements)
    sides: list[TimedModel] = []
    for family, model, folder in (("dense", dense, "dense"), ("pruned", pruned, f"pruned-{plan.key}")):
        timing_job = placement.Job(
            model=name, target=target, seconds=0, rounds=rounds, folder=out / name / runtime / folder, image=image
        )  # fmt: skip
        if not (timing_job.folder / "float.onnx").exists():
            to_onnx.export_file(model, image, timing_job.folder / "float.onnx")
        own, label = placement.ours(model, placed[family], timing_job)  # type: ignore[index]
        plain = placement.once(timing_job.folder / "float", lambda where, job=timing_job: compiled(job, where))
        file = load_runtime(runtime).FILE_NAMES[0]
        sides.append(dataclasses.replace(own, name=family))
        sides.append(dataclasses.replace(own, name=f"{family}, f32", path=str(plain / file), precision="f32"))
        progress.log(f"{name}: {family} ships as {label}")
    measured = placement.timed(sides, dataclasses.replace(timing_job, folder=out / name / f"rounds-{plan.key}"))
    shares = [statistics.log_speedup(one["blocks"]["pruned"], one["blocks"]["dense"]) for one in measured]
    in_float = [statistics.log_speedup(one["blocks"]["dense, f32"], one["blocks"]["pruned, f32"]) for one in measured]
    macs = [profile.total_macs(layers) for layers in (plan.layers_before, plan.layers_after)]
    return {
        "model": name, "runtime": runtime, "budget": budget, "share": statistics.speedup(shares), "fitted": plan.latency_fit,
        "float_gain": statistics.speedup(in_float), "macs": macs, "seconds": seconds(plan.key, job.work),
        "place_seconds": {family: one.search_seconds for family, one in placed.items()},
        "dense_ms": placement.median_ms(measured, "dense"), "dropped": list(plan.surgery.dropped),
        "forms": {side.name: side.precision for side in sides},
    }  # fmt: skip


def compiled(job: placement.Job, where: Path) -> None:
    """The float model as the runtime takes it."""
    load_runtime(job.target.runtime).compile(job.folder / "float.onnx", where)


def seconds(key: str, work: Path) -> float:
    """How long a fit took, with the placement of the pruned model and without that of the dense one."""
    return float(files.read_json(work / "fit" / key / stage_cache.RECORD_FILE)["seconds"])


HEAD = """\
| model | runtime | budget | reached | off | dense, ms | MACs left | f32 faster | float gain / MACs | blocks gone | fit, s | placing dense, s |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""


def line(row: Mapping[str, Any]) -> str:
    """A row in Markdown."""
    share, gain = row["share"], row["float_gain"]
    fewer = row["macs"][0] / row["macs"][1]
    cells = (
        row["model"], row["runtime"], f"{row['budget']:.2f}x",
        f"{share['estimate']:.3f} [{share['low']:.3f}, {share['high']:.3f}]",
        f"{share['estimate'] / row['budget'] - 1:+.1%}", f"{row['dense_ms']:.2f}", f"{1 / fewer:.2f}",
        f"{gain['estimate']:.2f}x", f"{gain['estimate'] / fewer:.0%}", str(len(row["dropped"])),
        f"{row['seconds']:.0f}", f"{row['place_seconds']['dense']:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    typer.run(main)
