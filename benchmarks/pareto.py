"""Accuracy against latency on a real set: this toolchain's budgets, and a plain Torch-Pruning script.

    python benchmarks/pareto.py --recipe solar --data <folder> --weights <file> [--target cpu] [--epochs 8]
        [--budgets 0.9x,0.7x,0.5x,0.35x] [--ratios 0.2,0.35,0.5,0.65] [--resolution 1.0] [--out out/pareto]

The script is what Torch-Pruning's own examples do: group magnitude, one share of the channels in every layer, in multiples
that the target likes, then plain training; its result runs in float and, in ONNX Runtime, after `quantize_static` with the
same calibration images. Both start from the same dense model and are trained for the same number of epochs in all: what ours
spends on quantization-aware training, the script spends on plain training. Accuracy is that of the artefact in its runtime
on the test images; "faster" is against the dense float model in the same runtime, from paired rounds. Trainings are kept
in --out, where the plot goes too.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import peers
import torch_pruning
import typer
from matplotlib.figure import Figure
from torch import nn

from toolchain import pipeline
from toolchain.config import overrides, read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import make_job
from toolchain.config.recipe import Budget, Recipe
from toolchain.config.target import Target
from toolchain.core import files, progress, stage_cache, statistics
from toolchain.core.types import Precision
from toolchain.data import loader, prepare
from toolchain.edge import run
from toolchain.export import to_onnx
from toolchain.export.runtime import load_runtime
from toolchain.measure import latency
from toolchain.measure.paired_timing import TimedModel, time_rounds
from toolchain.training import finetune, loop, trained_model
from toolchain.training.finetune import FinetunedModel


def main(
    data: Annotated[str, typer.Option()],
    weights: Annotated[str, typer.Option()],
    recipe: str = "solar",
    target: str = "cpu",
    budgets: Annotated[str, typer.Option(help="of latency, with commas")] = "0.9x,0.7x,0.5x,0.35x",
    ratios: Annotated[str, typer.Option(help="of the script's channels, with commas")] = "0.2,0.35,0.5,0.65",
    resolution: Annotated[float, typer.Option(help="as in [prune]")] = 1.0,
    epochs: Annotated[int, typer.Option(help="of recovery; 0: the recipe's")] = 0,
    out: Path = Path("out/pareto"),
) -> None:
    """Prints both curves and draws them."""
    job, domain = overrides.read_recipe(recipe, overrides.Flags(data=data, weights=weights))
    train = dataclasses.replace(job.recover, epochs=epochs or job.recover.epochs)
    job = dataclasses.replace(job, recover=train, prune=dataclasses.replace(job.prune, sensitivity=False))
    chosen = read_config.read_target(target)
    found = [ours(job, chosen, domain, budget, resolution, out) for budget in budgets.split(",") if budget]
    found += script(job, chosen, domain, [float(ratio) for ratio in ratios.split(",") if ratio], out)
    files.write_json(out / f"pareto-{recipe}-{target}.json", found)
    print("\n".join([HEAD, *map(line, found)]))
    draw(found, f"{recipe} in {chosen.runtime}", out / f"pareto-{recipe}-{target}.svg")


def ours(
    job: Recipe, target: Target, domain: Domain, budget: str, resolution: float, out: Path
) -> dict[str, Any]:  # fmt: skip
    """One budget, as `toolchain export` answers it."""
    smaller = "" if resolution == 1 else f"-{resolution:g}"
    asked = dataclasses.replace(
        job, name=f"{job.name}-{budget}{smaller}", budget=Budget(latency=budget),
        prune=dataclasses.replace(job.prune, ratio=None, resolution=resolution),
    )  # fmt: skip
    report = pipeline.export(make_job(asked, target, domain, out))
    own = next(one for one in report["variants"] if one["name"] == report["candidate"])
    dense = report["variants"][0]
    progress.log(f"{asked.name}: {own['accuracy']:.4f}, {report['speedup']['estimate']:.2f}x")
    return {
        "curve": "this toolchain", "point": f"latency {budget}", "form": own["name"],
        "image_size": own["image_size"], "accuracy": own["accuracy"], "low": own["accuracy_low"],
        "high": own["accuracy_high"], "images": own["images"], "faster": report["speedup"], "dense": dense["accuracy"],
    }  # fmt: skip


def script(job: Recipe, target: Target, domain: Domain, ratios: Sequence[float], out: Path) -> list[dict[str, Any]]:
    """The plain script at every ratio, all timed in the same rounds."""
    data, _ = prepare.run(make_job(job, read_config.read_target("cpu"), domain, out))
    adapted = finetune.run(make_job(job, read_config.read_target("cpu"), domain, out), data)
    folder, image = out / f"script-{target.name}", data.example_input
    runtime = load_runtime(target.runtime)
    made: dict[str, tuple[Path, Precision, float]] = {}

    def compiled(name: str, precision: Precision, ratio: float, source: Path | None = None) -> None:
        path = runtime.compile(source or folder / f"{name}.onnx", folder / name).path
        made[name] = (path, precision, ratio)

    to_onnx.export_file(copy.deepcopy(adapted.trained.model), image, folder / "dense.onnx")
    compiled("dense", "f32", 0.0)
    for ratio in ratios:
        name = f"script-{ratio:g}"
        to_onnx.export_file(pruned(adapted, job, target, ratio, out / "work"), image, folder / f"{name}.onnx")
        compiled(name, "f32", ratio)
        if target.runtime == "onnxruntime":
            images = loader.ordered_batches(data.calibration_images, data.preprocess, 1)
            (folder / f"{name}-static").mkdir(parents=True, exist_ok=True)
            peers.static(
                folder / f"{name}.onnx", folder / f"{name}-static", peers.LAYERS, (x.numpy() for x, _ in images)
            )
            compiled(f"{name}-int8", "int8", ratio, folder / f"{name}-static" / "model.onnx")
    sides = [
        TimedModel(name=name, runtime=target.runtime, path=str(path), precision=precision, threads=1, shape=tuple(image.shape))
        for name, (path, precision, _) in made.items()
    ]  # fmt: skip
    measured: list[Any] = []
    time_rounds(sides, latency.ROUNDS, job.seed, measured.append)
    found = []
    for name, (path, precision, ratio) in made.items():
        if name == "dense":
            continue
        logs = [statistics.log_speedup(one.blocks["dense"], one.blocks[name]) for one in measured]
        right = answers(runtime, path, precision, adapted)
        accuracy = statistics.accuracy(right)
        found.append({
            "curve": f"Torch-Pruning script, {'quantize_static' if precision == 'int8' else 'float'}",
            "point": f"channels {ratio:g}", "form": name, "image_size": list(image.shape[2:]),
            "accuracy": accuracy.estimate, "low": accuracy.low, "high": accuracy.high, "images": accuracy.samples,
            "faster": files.to_jsonable(statistics.speedup(logs)),
        })  # fmt: skip
    return found


def pruned(adapted: FinetunedModel, job: Recipe, target: Target, ratio: float, work: Path) -> nn.Module:
    """Cut as in Torch-Pruning's examples, then trained without a teacher."""
    epochs = job.recover.epochs + job.quantize.train.epochs
    train = dataclasses.replace(job.recover, epochs=epochs, distill=0.0, average=0.0)
    model = copy.deepcopy(adapted.trained.model)
    pruner = torch_pruning.pruner.BasePruner(
        model, adapted.dataset.example_input, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, round_to=target.alignment, ignored_layers=[model.get_submodule(adapted.head)],
    )  # fmt: skip
    pruner.step()
    with stage_cache.open_stage(
        work, "script", files.digest(adapted.trained.key, ratio, target.alignment, train, job.seed)
    ) as stage:
        if stage.record is not None:
            return trained_model.load_trained_model(stage, model).model
        settings = loop.TrainingJob(
            dataset=adapted.dataset, spec=train, augment=adapted.augment, seed=job.seed + 1, label=f"script {ratio:g}",
            folder=stage.folder,
        )  # fmt: skip
        return trained_model.save_trained_model(stage, 0.0, model, loop.train(model, settings), {}).model


def answers(runtime: Any, path: Path, precision: Precision, adapted: FinetunedModel) -> np.ndarray:
    """Which test images the artefact gets right, bool [images]."""
    session = runtime.open(path, threads=1, precision=precision)
    test, sees = adapted.dataset.splits["test"], adapted.dataset.preprocess
    logits = [session.run(run.normalise(p, sees.mean, sees.std)[None])[0] for p in test.pixels.numpy()]
    found: np.ndarray = np.stack(logits).argmax(1) == test.labels.numpy()
    return found


HEAD = """\
| curve | point | ships as | pictures | accuracy | faster than dense float |
|---|---|---|---|---|---|"""


def line(row: Mapping[str, Any]) -> str:
    """A row in Markdown."""
    fast = row["faster"]
    cells = (
        row["curve"], row["point"], row["form"], "x".join(map(str, row["image_size"])),
        f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]",
        f"{fast['estimate']:.2f}x [{fast['low']:.2f}, {fast['high']:.2f}]",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def draw(found: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Every curve with its intervals."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for curve in dict.fromkeys(row["curve"] for row in found):
        rows = sorted((row for row in found if row["curve"] == curve), key=lambda row: row["faster"]["estimate"])
        x, y = [row["faster"]["estimate"] for row in rows], [100 * row["accuracy"] for row in rows]
        ends = [
            [100 * (row["accuracy"] - row["low"]) for row in rows],
            [100 * (row["high"] - row["accuracy"]) for row in rows],
        ]
        axes.errorbar(x, y, yerr=ends, marker="o", capsize=3, label=curve)
    dense = next((row["dense"] for row in found if "dense" in row), None)
    if dense:
        axes.axhline(100 * dense, color="gray", linestyle=":", label="dense, float")
    axes.set(xlabel="times as fast as the dense float model", ylabel="accuracy on test, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    typer.run(main)
