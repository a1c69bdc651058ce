"""What integers cost in accuracy on a real set: the dense model in int8, as each runtime runs it, against float.

    python benchmarks/quantization.py --recipe solar --data <folder> --weights <file> [--seeds 3] [--targets cpu,openvino]

For every seed the dense model is fine-tuned; a float copy is then given the epochs that quantization-aware training
is given, with the same distillation, and is what the integers are compared with, paired over the test images. All of
the placement runs in integers even where float would be faster. Trainings and answers are kept in --out/work.
"""

import copy
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from toolchain.config import overrides, read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import make_job
from toolchain.config.recipe import Recipe
from toolchain.config.target import Target
from toolchain.core import files, stage_cache, statistics
from toolchain.core.types import Interval, NetworkName
from toolchain.data import prepare
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.splits import Split
from toolchain.export import export_variants
from toolchain.measure import accuracy
from toolchain.quantization import pt2e, quantize
from toolchain.search import place
from toolchain.training import finetune, loop, trained_model
from toolchain.training.finetune import FinetunedModel

Served = Callable[[Split], np.ndarray]


@dataclass(frozen=True)
class Answered:
    """Classes answered on the test images by one quantized model in all of its forms."""

    fake: np.ndarray  # fake-quantized in torch
    converted: np.ndarray  # Q/DQ in torch
    runtime: np.ndarray


def main(
    data: Annotated[str, typer.Option()],
    weights: Annotated[str, typer.Option()],
    recipe: str = "solar",
    seeds: int = 3,
    targets: Annotated[str, typer.Option(help="with commas")] = "cpu,openvino",
    out: Path = Path("out"),
) -> None:
    """Prints accuracy lost by calibration alone and by training, for every target, as a mean over the seeds."""
    whole, models = dense_models(recipe, overrides.Flags(data=data, weights=weights, ratio=0.0), seeds, out)
    labels = whole.splits["test"].labels.numpy()
    served = cache(lambda split: accuracy.read_served_pixels(whole, split))
    floats, found = list[np.ndarray](), defaultdict[tuple[str, str], list[Answered]](list)
    for one, adapted in models:
        longer = trained_longer(adapted, one, out / "work")
        floats.append(predicted(longer.model, adapted))
        before = (predicted(adapted.trained.model, adapted) == labels).mean()
        print(f"seed {one.seed}: dense {before:.4f}, {_scores(floats[-1], labels)} after more epochs", flush=True)
        for name in targets.split(","):
            for method in ("ptq", "qat"):
                answered = quantized(adapted, method, one, read_config.read_target(name), served, out)
                found[name, method].append(answered)
                print(f"seed {one.seed}: {name}, {method}: {_scores(answered.runtime, labels)}", flush=True)
    print("\n".join([HEAD, *(row(name, method, floats, each, labels) for (name, method), each in found.items())]))


def dense_models(
    name: str, flags: overrides.Flags, seeds: int, out: Path
) -> tuple[Dataset, Iterator[tuple[Recipe, FinetunedModel]]]:
    """The set, and for every seed the recipe and the fine-tuned dense model, trained when it is asked for."""
    chosen, domain = overrides.read_recipe(name, flags)
    torch.set_flush_denormal(True)
    whole, _ = prepare.run(make_job(chosen, read_config.read_target("cpu"), domain, out))
    each = (dataclasses.replace(chosen, seed=chosen.seed + number, seeds=1) for number in range(seeds))
    return whole, (
        (one, finetune.run(make_job(one, read_config.read_target("cpu"), domain, out), whole)) for one in each
    )


def trained_longer(adapted: FinetunedModel, recipe: Recipe, work: Path) -> trained_model.TrainedModel:
    """The dense float model with the epochs of quantization-aware training, but without its rounding."""
    dense, train = adapted.trained, recipe.quantize.train
    key = files.digest(dense.key, train, adapted.augment, recipe.seed)
    model = copy.deepcopy(dense.model)
    with stage_cache.open_stage(work, "longer", key) as stage:
        if stage.record is not None:
            return trained_model.load_trained_model(stage, model)
        started = time.monotonic()
        job = loop.TrainingJob(
            dataset=adapted.dataset, spec=train, augment=adapted.augment, seed=recipe.seed + 2, label="float, longer",
            folder=stage.folder, balance=recipe.balance, teacher=dense.model,
        )  # fmt: skip
        return trained_model.save_trained_model(stage, started, model, loop.train(model, job, keep_start=True), {})


def quantized(
    adapted: FinetunedModel, method: str, recipe: Recipe, target: Target, served: Served, out: Path
) -> Answered:
    """What one model in integers answers, in all of its forms."""
    made, built = exported(adapted, method, recipe, target, out)
    answers = accuracy.predict(built, target, adapted.dataset, "test", served, out / "work")
    converted = pt2e.convert(made.graph, adapted.dataset.example_input)
    return Answered(answers.torch.argmax(1), predicted(converted, adapted), answers.artefact.argmax(1))


def exported(
    adapted: FinetunedModel, method: str, recipe: Recipe, target: Target, out: Path
) -> tuple[quantize.QuantizedModel, export_variants.ExportedVariant]:
    """One model in integers, placed, trained and exported as `toolchain export` does it."""
    dense, image = adapted.trained, adapted.dataset.example_input
    placed = place.find_placement(dense.model, image, target, (), recipe.quantize.search_seconds, out / "work")
    teacher = dense.model if method == "qat" else None
    job = make_job(recipe, target, Domain(name=recipe.domain), out)
    made = quantize.calibrate_and_train(job, dense, teacher, placed.placement, adapted)
    networks: dict[NetworkName, quantize.Network] = {"dense": quantize.Network("dense", dense, made, adapted.dataset)}
    (built,) = export_variants.run(job, networks, ("int8",))
    return made, built


def predicted(model: torch.nn.Module, adapted: FinetunedModel) -> np.ndarray:
    """Classes answered on the test images."""
    classes: np.ndarray = (
        loop.predict(model, adapted.dataset.splits["test"], adapted.dataset.preprocess).argmax(1).numpy()
    )
    return classes


HEAD = """\
| target | method | accuracy | balanced | points lost | balanced, points | converted, fake-quantized | runtime, converted |
|---|---|---|---|---|---|---|---|"""


def row(name: str, method: str, floats: Sequence[np.ndarray], each: Sequence[Answered], labels: np.ndarray) -> str:
    """A row in Markdown: means over the seeds; the last two are the largest gaps in accuracy of any seed, in points."""
    right = np.stack([one.runtime == labels for one in each]).astype(float)
    lost = np.stack([answer == labels for answer in floats]).astype(float) - right
    cells = (
        name, method, share(statistics.mean_over_repeats(right)), share(statistics.mean_over_repeats(right, labels)),
        points(statistics.mean_over_repeats(lost)),
        points(statistics.mean_over_repeats(lost, labels)), _gap([(one.converted, one.fake) for one in each], labels),
        _gap([(one.runtime, one.converted) for one in each], labels),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _gap(pairs: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray) -> str:
    apart = [abs((one == labels).mean() - (other == labels).mean()) for one, other in pairs]
    same = [(one == other).mean() for one, other in pairs]
    return f"{100 * max(apart):.2f}, same class {100 * min(same):.2f} %"


def _scores(classes: np.ndarray, labels: np.ndarray) -> str:
    right = classes == labels
    return f"{right.mean():.4f}, balanced {statistics.balanced_accuracy(right, labels).estimate:.4f}"


def share(value: Interval) -> str:
    """In per cent, with its interval."""
    return f"{100 * value.estimate:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def points(value: Interval) -> str:
    """A difference, with its interval."""
    return f"{100 * value.estimate:+.2f} [{100 * value.low:+.2f}, {100 * value.high:+.2f}]"


if __name__ == "__main__":
    typer.run(main)
