"""The first step of a job whose model is only an ONNX file: read it into the dense model, which is never trained or pruned."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from toolchain.config import budget_limits
from toolchain.config.job import Job
from toolchain.config.recipe import AugmentSpec, Recipe
from toolchain.core import files, progress, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.stage_cache import CachedStage
from toolchain.data.decoded_dataset import Dataset
from toolchain.export import onnx_file, onnx_interface, onnx_model
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel

VERSION = 1
PRUNING_BUDGETS = ("latency", "macs", "parameters")
WHAT_A_MODULE_ADDS = (
    "it was calibrated only. An ONNX file holds weights but nothing to train, so nothing was fine-tuned, pruned or trained with "
    "quantization simulated. The same network as a torch module gets all of that: --model net.py:build --weights net.pth"
)


def prepare_job(job: Job) -> Job:
    """Return the job with what the file decides: its images' size where it is fixed, pixels 0 to 255 for uint8 input, and
    numbered classes where neither a file of labels nor labelled images name them.

    Raises:
        ToolchainError: as `onnx_model.read`; the file takes images of another size or colour mode, or the budget asks for
            pruning.
    """
    recipe, path = job.recipe, Path(job.recipe.model.name)
    proto, _ = onnx_file.load(path)
    image = onnx_interface.read_input(proto, path)
    _check_budget(job, path)
    if image.channels == 1 and job.domain.mode != "gray":
        raise ToolchainError(
            f'{path} takes images with one channel, and the dataset is read in colour; give a dataset description with mode = "gray" '
            "(--domain)"
        )
    asked = recipe.image_size or job.domain.image_size
    height, width = (fixed or side for fixed, side in zip(image.size, asked, strict=True))
    if recipe.image_size and (height, width) != tuple(recipe.image_size):
        raise ToolchainError(
            f"{path} takes images of {height}x{width}, and the image size given is {asked[0]}x{asked[1]}; leave it out, or export "
            "the model with a dynamic height and width"
        )
    model = recipe.model
    if image.dtype == "uint8":
        model = dataclasses.replace(model, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(model, weights="", licence=model.licence), image_size=(height, width),
        prune=dataclasses.replace(recipe.prune, ratio=0.0),
    )  # fmt: skip
    job = dataclasses.replace(job, recipe=recipe)
    return job if job.domain.has_labels or job.domain.classes else _number_classes(job, (height, width))


def _number_classes(job: Job, size: tuple[int, int]) -> Job:
    facts, _ = _read(job, size)
    names = tuple(f"class {index}" for index in range(facts["classes"]))
    progress.log(f"read: the {len(names)} classes of the file have no names; --labels FILE names them")
    return dataclasses.replace(job, domain=dataclasses.replace(job.domain, classes=names, absent_classes="allow"))


def _check_budget(job: Job, path: Path) -> None:
    asked = [name for name in budget_limits.collect_limits(job.budget) if name in PRUNING_BUDGETS]
    if asked:
        raise ToolchainError(
            f"budget.{asked[0]} = {getattr(job.budget, asked[0])!r} is met by pruning, and {path} is only an ONNX file, which "
            "cannot be pruned. Leave the budget out, or give the network as a torch module: --model net.py:build --weights net.pth"
        )


def run(job: Job, data: Dataset) -> FinetunedModel:
    """Read the file into the stage cache and return it as the dense model.

    Args:
        job: as `prepare_job` returns it.
        data: gives the classes and the size of the images.

    Raises:
        ToolchainError: as `onnx_model.read`; or the number of its outputs is not that of the classes.
    """
    path = Path(job.recipe.model.name)
    facts, stage = _read(job, data.preprocess.image_size)
    model = onnx_model.open_read(stage.folder)
    for change in [*facts["changes"], *facts["warnings"]]:
        progress.log(f"read: {change}")
    _check_classes(data, facts["classes"], path)
    weights = {"source": path.name, "sha256": facts["sha256"], "share": 1.0}
    record = {"weights": weights, "onnx_file": facts, "history": [], "best_epoch": -1, "probe": None}
    return FinetunedModel(TrainedModel(model, stage.key, record, stage.seconds), "", data, AugmentSpec(), (), ())


def _read(job: Job, size: tuple[int, int]) -> tuple[dict[str, Any], CachedStage]:
    """Read the file into the stage cache; return the facts about it and the finished stage."""
    path = Path(job.recipe.model.name)
    _, sha256 = onnx_file.load(path)
    key = files.digest(VERSION, sha256, size, onnx_model.runtime_version())
    with stage_cache.open_stage(job.work, "onnx", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            progress.log(f"read: {path} at {size[0]}x{size[1]}")
            stage = stage_cache.finish(stage, started, onnx_model.read(path, size, stage.folder))
        assert stage.record is not None
        return {"file": path.name, "sha256": sha256, **stage.record}, stage


def _check_classes(data: Dataset, outputs: int, path: Path) -> None:
    if outputs != len(data.classes):
        raise ToolchainError(
            f"{path} has {outputs} outputs, and the dataset has {len(data.classes)} classes ({onnx_file.list_names(data.classes)}). "
            "Give images of all classes that the file was trained on, or say its classes, one a line in the order of its outputs, "
            "in a text file: --labels FILE, or labels in [model]"
        )


def list_warnings(dense: FinetunedModel, recipe: Recipe) -> list[str]:
    """Return what the file leaves open and a user has to know, in sentences."""
    facts = dense.trained.record["onnx_file"]
    warnings = [f"{facts['file']}: {warning}" for warning in facts["warnings"]]
    if ", uint8 [" not in facts["input"]:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (recipe.model.mean, recipe.model.std))
        warnings.append(
            f"{facts['file']} does not say how its pixels are normalised: mean {mean} and std {std} of [model] were used; if the "
            "float model's accuracy is low, look there first"
        )
    return warnings
