"""`toolchain adapt`: test accuracy of the fine-tuned model for every seed, and its gain over a linear probe."""

from typing import Any

import numpy as np
import torch

from toolchain.config.dataset import Domain
from toolchain.config.job import Job
from toolchain.config.recipe import Recipe
from toolchain.core import files, statistics
from toolchain.core.types import JsonObject
from toolchain.data.decoded_dataset import Dataset
from toolchain.gates import budget_checks
from toolchain.models import build
from toolchain.report import assemble, number_format, table
from toolchain.report.sections import joined_datasets, seed_runs
from toolchain.report.table import Table
from toolchain.training import linear_probe, loop
from toolchain.training.finetune import FinetunedModel

SCHEMA = 1


def write(job: Job, dense: FinetunedModel) -> dict[str, Any]:
    """Measure every seed's model and a linear probe on the test split; write and return `out/<recipe>/adapt.json`.

    The test split chooses nothing: all seeds are reported, and validation decides which one is used.
    """
    report = _report(job.recipe, job.domain, dense, _predict_with_probe(job.recipe, dense))
    files.write_json(job.out / job.recipe.name / "adapt.json", report)
    return report


def _predict_with_probe(recipe: Recipe, dense: FinetunedModel) -> np.ndarray:
    """Return for which test images a linear probe on the pretrained backbone is right: bool [images]."""
    model, head, _ = build.build_with_new_head(recipe.model, len(dense.dataset.classes), seed=recipe.seed)
    probe = linear_probe.fit(model, head, dense.dataset, recipe.balance)
    test = dense.dataset.splits["test"]
    logits = linear_probe.extract_features(model, head, test, dense.dataset.preprocess) @ probe.weight.T + probe.bias
    return _find_correct(logits, dense.dataset)


def _find_correct(logits: torch.Tensor, data: Dataset) -> np.ndarray:
    """Return for which test images the logits [images, classes] predict the label: bool [images]."""
    correct: np.ndarray = (logits.argmax(1) == data.splits["test"].labels).numpy()
    return correct


def _report(recipe: Recipe, domain: Domain, dense: FinetunedModel, probe_correct: np.ndarray) -> dict[str, Any]:
    data, test = dense.dataset, dense.dataset.splits["test"]
    labels = test.labels.numpy()
    runs = [*dense.seed_runs]
    correct = [_find_correct(loop.predict(run.model, test, data.preprocess), data) for run in runs]
    chosen = runs.index(dense.trained)

    def accuracies(right: np.ndarray) -> dict[str, Any]:
        return {"accuracy": statistics.accuracy(right), "balanced": statistics.balanced_accuracy(right, labels)}

    report = {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "domain": domain.name,
        "images": {split: len(images) for split, images in data.splits.items()},
        "adapt": assemble.finetuning(recipe, dense),
        "weights": dense.trained.record["weights"],
        "test": [{"seed": run.record["seed"], **accuracies(right)} for run, right in zip(runs, correct, strict=True)],
        "mean_accuracy": statistics.mean_over_repeats(np.stack(correct)),
        "mean_balanced": statistics.mean_over_repeats(np.stack(correct), labels),
        "linear_probe": accuracies(probe_correct),
        "gain_over_probe": statistics.accuracy_drop(correct[chosen], probe_correct),
        "balanced_gain_over_probe": statistics.balanced_drop(correct[chosen], probe_correct, labels),
        "smallest_difference": statistics.minimum_detectable_difference(len(labels)),
    }
    limit = recipe.budget.accuracy_drop
    doubt = budget_checks.describe_power(limit, len(labels), statistics.DEFAULT_DISAGREEMENT) if limit else ""
    report["notes"] = [f"budget accuracy_drop = {limit}{doubt}"] if doubt else []
    plain: dict[str, Any] = files.to_jsonable(report)
    return plain


def tabulate(report: JsonObject) -> list[Table]:
    """Return the tables for the terminal: a row per seed, their mean, the linear probe; and the joined datasets."""
    rows = [_row(f"seed {row['seed']}", row["accuracy"], row["balanced"]) for row in report["test"]]
    if len(rows) > 1:
        rows.append(_row(f"mean of {len(rows)} seeds", report["mean_accuracy"], report["mean_balanced"]))
    probe = report["linear_probe"]
    rows.append(_row("linear probe", probe["accuracy"], probe["balanced"]))
    gains = (number_format.accuracy_gain(report[name]) for name in ("gain_over_probe", "balanced_gain_over_probe"))
    rows.append(("gain over the linear probe, paired", *gains))
    title = f"On {report['images']['test']:,} test images"
    accuracies = Table(columns=(title, "Accuracy", "Balanced"), rows=tuple(rows))
    return [accuracies, seed_runs.tabulate(report), joined_datasets.tabulate(report)]


def _row(name: str, accuracy: JsonObject, balanced: JsonObject) -> tuple[str, ...]:
    return (
        name,
        number_format.accuracy(table.interval_fields(accuracy)),
        number_format.accuracy(table.interval_fields(balanced)),
    )
