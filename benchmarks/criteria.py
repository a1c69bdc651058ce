"""Which channels to remove: every criterion at one budget on a real set, with the same training behind it.

    python benchmarks/criteria.py --recipe solar --data <folder> --weights <file> [--macs 0.5x] [--epochs 4] [--seeds 3]

For every seed a dense model is fine-tuned; each criterion cuts a copy of it down to the same multiply-accumulates, which
is trained for the same epochs with the same teacher. Accuracy is that of the float model on the test images, and on
validation, which is what a default may be chosen by. "against magnitude" is paired over seeds and images.
Trainings are kept in --out/work, so a killed run goes on where it was.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import quantization
import torch
import typer

from toolchain.config import overrides, read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import make_job
from toolchain.config.recipe import Budget, Recipe
from toolchain.core import progress, registry, statistics
from toolchain.data.splits import Split
from toolchain.pruning import prune, recover
from toolchain.search import search_pruning
from toolchain.training import loop, trained_model
from toolchain.training.finetune import FinetunedModel

REFERENCE = "magnitude"


def main(
    data: Annotated[str, typer.Option()],
    weights: Annotated[str, typer.Option()],
    recipe: str = "solar",
    macs: Annotated[str, typer.Option(help="budget of multiply-accumulates")] = "0.5x",
    epochs: Annotated[int, typer.Option(help="of recovery")] = 4,
    seeds: int = 3,
    criteria: Annotated[str, typer.Option(help="with commas; all where none is named")] = "",
    ranking: Annotated[str, typer.Option(help="global or isomorphic")] = "global",
    out: Path = Path("out/criteria"),
) -> None:
    """Prints one row a criterion, as means over the seeds."""
    whole, models = quantization.dense_models(recipe, overrides.Flags(data=data, weights=weights), seeds, out)
    names = criteria.split(",") if criteria else registry.list_modules("criteria")
    labels = {split: whole.splits[split].labels.numpy() for split in ("val", "test")}
    dense, right = list[np.ndarray](), {name: {"val": [], "test": []} for name in names}
    for one, adapted in models:
        dense.append(_right(adapted.trained.model, adapted, "test", labels["test"]))
        for name in names:
            asked = dataclasses.replace(
                one, prune=dataclasses.replace(one.prune, ratio=None, criterion=name, ranking=ranking),
                recover=dataclasses.replace(one.recover, epochs=epochs),
            )  # fmt: skip
            small = recovered(adapted, asked, macs, out)
            for split, truth in labels.items():
                right[name][split].append(_right(small.model, adapted, split, truth))
            scores = {split: f"{found[-1].mean():.4f}" for split, found in right[name].items()}
            progress.log(f"seed {one.seed}: {name}: {scores}")
    print(
        f"dense: {quantization.share(statistics.mean_over_repeats(np.stack(dense)))} on {len(labels['test'])} images\n\n{HEAD}"
    )
    for name, found in sorted(right.items(), key=lambda item: -np.mean(item[1]["val"])):
        test = np.stack(found["test"])
        gain = test - np.stack(right[REFERENCE]["test"]) if REFERENCE in right else None
        against = "" if gain is None or name == REFERENCE else quantization.points(statistics.mean_over_repeats(gain))
        cells = (
            name, f"{100 * np.mean(found['val']):.1f} %", quantization.share(statistics.mean_over_repeats(test)),
            quantization.share(statistics.mean_over_repeats(test, labels["test"])), against,
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def recovered(adapted: FinetunedModel, recipe: Recipe, macs: str, out: Path) -> trained_model.TrainedModel:
    """The dense model cut to the budget and trained."""
    recipe = dataclasses.replace(recipe, budget=Budget(macs=macs))
    job = make_job(recipe, read_config.read_target("cpu"), Domain(name=recipe.domain), out)
    plan = search_pruning.run(job, adapted)
    return recover.run(job, prune.apply_plan(adapted.trained, plan.surgery), adapted)


def _right(model: torch.nn.Module, adapted: FinetunedModel, split: Split, labels: np.ndarray) -> np.ndarray:
    logits = loop.predict(model, adapted.dataset.splits[split], adapted.dataset.preprocess)
    found: np.ndarray = (logits.argmax(1).numpy() == labels).astype(float)
    return found


HEAD = """\
| criterion | validation | test | balanced | against magnitude, points |
|---|--:|---|---|---|"""


if __name__ == "__main__":
    typer.run(main)
