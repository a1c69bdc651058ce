"""The classes of a model that keeps its head, in the order of its outputs: from a file of labels, or from its checkpoint."""

import dataclasses
from pathlib import Path

from torch import nn

from toolchain.config import labels_file
from toolchain.config.job import Job
from toolchain.config.recipe import ModelSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.models import build, checkpoint_files
from toolchain.models.weights import find_weights_file, read_checkpoint


def resolve(job: Job) -> Job:
    """Return the job with the classes of the model's own head in its dataset.

    A job whose model gets a new head, or whose classes are named already, is returned as it is. Without any names the
    classes are those of the labelled images; without labels they are numbered.

    Raises:
        ToolchainError: as `build.build_trained`.
    """
    spec, domain = job.recipe.model, job.domain
    if spec.head != "keep" or spec.labels:
        return job
    names = _read_from_checkpoint(spec)
    if not names and domain.has_labels:
        return job
    if not names:
        names = domain.classes or tuple(f"class {index}" for index in range(_count_outputs(spec)))
        progress.log(f"model: the {len(names)} classes of the model have no names; --labels FILE names them")
    return dataclasses.replace(job, domain=dataclasses.replace(domain, classes=names, absent_classes="allow"))


def _read_from_checkpoint(spec: ModelSpec) -> tuple[str, ...]:
    """Return the class names that a checkpoint holds beside its tensors; none where it holds none."""
    path = find_weights_file(spec.weights)
    entry = checkpoint_files.read_class_names(path) if path else None
    if entry is None:
        return ()
    key, names = entry
    progress.log(f"model: {len(names)} classes from {key!r} in {path}")
    return labels_file.check_names(names, f"{key!r} in {path}")


def _count_outputs(spec: ModelSpec) -> int:
    """Return how many outputs the model's head has: those of the checkpoint's, or of the user's model as it is built."""
    model = build.build_from_source(spec, 2)
    name = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    if not spec.weights:
        return len(model.get_submodule(name).weight)  # type: ignore[arg-type]
    for tensors in read_checkpoint(spec).state_dicts.values():
        for key, tensor in tensors.items():
            if key.endswith(f"{name}.weight"):
                return len(tensor)
    raise ToolchainError(
        f"{Path(spec.weights).name} has no values for the head {name} of {spec.name}, so the model is not trained as it is; "
        "check [model] name and arguments against the checkpoint"
    )
