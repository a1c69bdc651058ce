"""Step: take from published weights how their images were prepared, where the recipe leaves it open.

torchvision says so in `weights.transforms()`, timm in `pretrained_cfg`. Mean, std and interpolation are taken where the
recipe gives neither mean nor std; how images are resized and cropped only where it asks for that: `resize = "weights"`.
"""

import dataclasses

from toolchain.config.job import Job
from toolchain.config.recipe import ModelSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.models.sources import timm_hub, torchvision_hub
from toolchain.models.sources.published_transforms import PublishedTransforms

DEFAULT = ModelSpec(name="")
OWN_WAYS = 'name the way: resize = "stretch", "crop" (with crop_share) or "letterbox" (with fill)'


def resolve(job: Job) -> Job:
    """Return the job with what its recipe leaves open about pixels taken from the published weights.

    Raises:
        ToolchainError: the recipe says `resize = "weights"`, and its weights are not published or resize otherwise.
    """
    recipe = job.recipe
    teacher = recipe.teacher
    if teacher:  # it sees the images of the model, so only mean and std are its own
        teacher = resolve_model(dataclasses.replace(teacher, interpolation="bilinear"), "teacher")
        teacher = dataclasses.replace(teacher, interpolation=None)
    model = resolve_model(recipe.model)
    return dataclasses.replace(job, recipe=dataclasses.replace(recipe, model=model, teacher=teacher))


def resolve_model(spec: ModelSpec, table: str = "model") -> ModelSpec:
    """Return a model with its open settings of pixels taken from its published weights, and log what was taken.

    Args:
        spec: the model.
        table: of the recipe that it comes from, for messages.

    Raises:
        ToolchainError: as for `resolve`.
    """
    published = _read_transforms(spec)
    if published is None:
        if spec.resize == "weights":
            given = (
                f"weights = {spec.weights!r} is a file, which says nothing of pixels"
                if spec.weights
                else "there are no weights"
            )
            raise ToolchainError(f'{table}.resize = "weights": {given}; {OWN_WAYS}')
        return spec
    resolved, taken = spec, list[str]()
    if spec.published or (spec.published is None and (spec.mean, spec.std) == (DEFAULT.mean, DEFAULT.std)):
        if (published.mean, published.std) != (spec.mean, spec.std):
            taken.append(f"mean {_list(published.mean)}, std {_list(published.std)}")
        resolved = dataclasses.replace(resolved, mean=published.mean, std=published.std)
        resolved = _take_interpolation(resolved, published, taken)
    if spec.resize == "weights":
        if published.fit is None:
            raise ToolchainError(
                f'{table}.resize = "weights": {published.source} were validated with {published.words}, which is not known '
                f"here; {OWN_WAYS}"
            )
        crop_share = published.crop_share if published.fit == "crop" else None
        resolved = dataclasses.replace(resolved, resize=published.fit, crop_share=crop_share)
        resolved = _take_interpolation(resolved, published, taken)
        taken.append(f"images resized with {published.words}")
    elif taken and table != "teacher":
        taken.append(
            f'images resized as the recipe says ({spec.resize}), not with {published.words}: resize = "weights"'
        )
    if taken:
        progress.log(f"pixels: as published with {published.source}: {'; '.join(taken)}")
    return resolved


def _take_interpolation(spec: ModelSpec, published: PublishedTransforms, taken: list[str]) -> ModelSpec:
    """Return the model with the published interpolation, unless it has its own or the default is the published one."""
    if spec.interpolation or published.interpolation in {None, "bilinear"}:
        return spec
    taken.append(f"interpolation {published.interpolation}")
    return dataclasses.replace(spec, interpolation=published.interpolation)


def _read_transforms(spec: ModelSpec) -> PublishedTransforms | None:
    """Return the published transforms; None for random weights, files and the zoo."""
    if not spec.weights or spec.weights.startswith("zoo:") or "." in spec.weights or "/" in spec.weights:
        return None
    if spec.name.startswith(timm_hub.PREFIX):
        return timm_hub.read_transforms(spec.name) if timm_hub.is_installed() else None
    return torchvision_hub.read_transforms(spec.name, spec.weights)


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
