"""`toolchain check-model`: what the toolchain can do with a model, in seconds, before any training."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolchain.cli.options import Board, ImageSize, OutFolder, Weights
from toolchain.core.errors import ToolchainError

if TYPE_CHECKING:
    from toolchain.config.recipe import ModelSpec

SCHEMA = 1
DEFAULT_SIZE = "224"

PANEL = "Before training"


def check_model(
    model: Annotated[
        str, typer.Option(help="Model: a torchvision name such as resnet18, timm:<name>, or net.py:build for your own.")
    ] = "",
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", "-r", help="Recipe whose model, image size and classes to check, in place of --model."
        ),
    ] = "",
    weights: Weights = "",
    image_size: ImageSize = "",
    target: Annotated[
        str, typer.Option("--target", "-t", help="Deployment target; `toolchain targets` lists them.")
    ] = "cpu",
    classes: Annotated[
        int, typer.Option(help="Outputs of the model's head; 0: the model's own, or the recipe's.", min=0)
    ] = 0,
    device: Board = "",
    out: OutFolder = Path("out"),
) -> None:
    """Check a model before training: does it run, trace and export; what can be pruned, what runs in int8, how fast.

    Exit status: 0 the pipeline can do its job, 1 something blocks it, 2 wrong input.
    """
    from toolchain.config import read_config

    name, spec, classes_wanted, size = _read_request(model, recipe, weights, image_size, classes)
    deployment = read_config.read_target(target)
    deployment = dataclasses.replace(deployment, device=device or deployment.device)
    from toolchain.core import files
    from toolchain.report.pages import model_checks, model_checks_text
    from toolchain.selection.check_model import cached_check

    folder = out / "check-model" / re.sub(r"[^\w.-]+", "-", name) / deployment.name
    check = cached_check.check(name, spec, classes_wanted, size, deployment, out / "work")
    files.write_json(folder / "check-model.json", {"schema": SCHEMA, **files.to_jsonable(check)})
    files.write_text(folder / "check-model.html", model_checks.render_html(check))
    model_checks_text.print_results(check)
    typer.echo(f"report: {folder / 'check-model.html'}")
    if check.blocking:
        raise typer.Exit(1)


def _read_request(
    model: str, recipe: str, weights: str, image_size: str, classes: int
) -> tuple[str, "ModelSpec", int | None, tuple[int, int]]:
    """Return the name of the check, the model, the number of classes (None: the model's own) and the image size.

    Raises:
        ToolchainError: neither a model nor a recipe is given, or a value is not accepted.
    """
    from toolchain.config import overrides
    from toolchain.config.recipe import ModelSpec
    from toolchain.config.shortlist import is_auto

    if not model and not recipe:
        raise ToolchainError(
            "there is no model to check; give --model with a torchvision name, timm:<name> or net.py:build, or --recipe NAME"
        )
    if is_auto(model):
        raise ToolchainError(f"--model {model} is chosen by `toolchain select`; check one model at a time, by its name")
    if not recipe:
        return (
            model,
            ModelSpec(name=model, weights=weights),
            classes or None,
            overrides.parse_image_size(image_size or DEFAULT_SIZE),
        )
    flags = overrides.Flags(model=model, weights=weights, image_size=image_size)
    settings, domain = overrides.read_recipe(recipe, flags)
    if is_auto(settings.model.name):
        raise ToolchainError(f"recipe {settings.name} lets `toolchain select` choose its model; name one with --model")
    size = settings.image_size or domain.image_size
    return settings.name, settings.model, classes or len(domain.classes) or None, size
