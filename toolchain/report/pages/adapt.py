"""`toolchain adapt`: fine-tuning alone, how good it is on test for every seed, and what it gains over a linear probe."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from toolchain.config.dataset import Domain
from toolchain.config.job import Job
from toolchain.config.recipe import Recipe
from toolchain.core import files, statistics
from toolchain.data.decoded_dataset import Dataset
from toolchain.gates import ship_decision
from toolchain.models import build
from toolchain.report import assemble, number_format, table
from toolchain.report.sections import joined_datasets, seed_runs
from toolchain.report.table import Table
from toolchain.training import linear_probe, loop
from toolchain.training.finetune import FinetunedModel

SCHEMA = 1


def write(job: Job, dense: FinetunedModel) -> dict[str, Any]:
    """Measure every seed's model on test, beside a linear probe; write and return `out/<recipe>/adapt.json`.

    Nothing is chosen by the test split: all seeds are reported, and validation says which goes on.
    """
    written = _report(job.recipe, job.domain, dense, _yardstick(job.recipe, dense))
    files.write_json(job.out / job.recipe.name / "adapt.json", written)
    return written


def _yardstick(recipe: Recipe, found: FinetunedModel) -> np.ndarray:
    """Which test images a linear probe on the pretrained backbone gets right: bool [images]."""
    model, head, _ = build.build_with_new_head(recipe.model, len(found.dataset.classes), seed=recipe.seed)
    fitted = linear_probe.fit(model, head, found.dataset, recipe.balance)
    test = found.dataset.splits["test"]
    logits = linear_probe.extract_features(model, head, test, found.dataset.preprocess) @ fitted.weight.T + fitted.bias
    return _right(logits, found.dataset)


def _right(logits: torch.Tensor, data: Dataset) -> np.ndarray:
    answer: np.ndarray = (logits.argmax(1) == data.splits["test"].labels).numpy()
    return answer


def _report(recipe: Recipe, domain: Domain, found: FinetunedModel, frozen: np.ndarray) -> dict[str, Any]:
    data, test = found.dataset, found.dataset.splits["test"]
    labels = test.labels.numpy()
    models_of = [*found.seed_runs]
    correct = [_right(loop.predict(one.model, test, data.preprocess), data) for one in models_of]
    chosen = models_of.index(found.trained)

    def both(right: np.ndarray) -> dict[str, Any]:
        return {"accuracy": statistics.accuracy(right), "balanced": statistics.balanced_accuracy(right, labels)}

    written = {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "domain": domain.name,
        "images": {split: len(images) for split, images in data.splits.items()},
        "adapt": assemble.finetuning(recipe, found),
        "weights": found.trained.record["weights"],
        "test": [{"seed": one.record["seed"], **both(right)} for one, right in zip(models_of, correct, strict=True)],
        "mean_accuracy": statistics.mean_over_repeats(np.stack(correct)),
        "mean_balanced": statistics.mean_over_repeats(np.stack(correct), labels),
        "linear_probe": both(frozen),
        "gain_over_probe": statistics.accuracy_drop(correct[chosen], frozen),
        "balanced_gain_over_probe": statistics.balanced_drop(correct[chosen], frozen, labels),
        "smallest_difference": statistics.minimum_detectable_difference(len(labels)),
    }
    limit = recipe.budget.accuracy_drop
    said = ship_decision.why_not_shown(limit, len(labels), statistics.DEFAULT_DISAGREEMENT) if limit else ""
    written["notes"] = [f"budget accuracy_drop = {limit}{said}"] if said else []
    plain: dict[str, Any] = files.to_jsonable(written)
    return plain


def tabulate(written: Mapping[str, Any]) -> list[Table]:
    """What `run` found, for the terminal: a row a seed, their mean, the linear probe, and what further sets brought."""
    rows = [_row(f"seed {one['seed']}", one["accuracy"], one["balanced"]) for one in written["test"]]
    if len(rows) > 1:
        rows.append(_row(f"mean of {len(rows)} seeds", written["mean_accuracy"], written["mean_balanced"]))
    frozen = written["linear_probe"]
    rows.append(_row("linear probe", frozen["accuracy"], frozen["balanced"]))
    gains = (number_format.accuracy_gain(written[name]) for name in ("gain_over_probe", "balanced_gain_over_probe"))
    rows.append(("gain over the probe, paired", *gains))
    title = f"On {written['images']['test']:,} test images"
    found = Table(columns=(title, "Accuracy", "Balanced"), rows=tuple(rows))
    return [found, seed_runs.tabulate(written), joined_datasets.tabulate(written)]


def _row(name: str, accuracy: Mapping[str, Any], balanced: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        number_format.accuracy(table.interval_fields(accuracy)),
        number_format.accuracy(table.interval_fields(balanced)),
    )
