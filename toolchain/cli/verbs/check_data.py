"""`toolchain check-data`: check a dataset before any training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolchain.cli.options import DataFolder, DomainName, ImageSize, ModelName, OutFolder, Weights
from toolchain.core.errors import ToolchainError

if TYPE_CHECKING:
    from toolchain.config.dataset import Domain
    from toolchain.config.recipe import Recipe
    from toolchain.data.checks.finding import DatasetCheck
    from toolchain.models.domain_shift import DomainShift

SCHEMA = 1

PANEL = "Before training"


def check_data(
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            help="Recipe whose dataset, budget and model to check. Default: image-folder with --data, else digits.",
        ),
    ] = "",
    data: DataFolder = "",
    domain: DomainName = "",
    model: ModelName = "",
    weights: Weights = "",
    image_size: ImageSize = "",
    source: Annotated[
        str, typer.Option(help="Domain that the model was trained on, to measure the domain shift from.")
    ] = "",
    out: OutFolder = Path("out"),
) -> None:
    """Check a dataset before training: corrupt files, leakage, wrong labels, imbalance, minimum detectable drop.

    Exit status: 0 nothing severe, 1 a finding to fix before training, 2 wrong input.
    """
    from toolchain.config import overrides, read_config
    from toolchain.data import dataset_format

    flags = overrides.Flags(data=data, domain=domain, model=model, weights=weights, image_size=image_size)
    settings, dataset = overrides.read_recipe(overrides.choose_recipe(recipe, data), flags)
    dataset_format.check_readable(dataset, out / "data")
    from toolchain.report.pages import data_checks_text

    checkup, shift, folder = _check_dataset(settings, dataset, read_config.read_domain(source) if source else None, out)
    data_checks_text.print_results(checkup, shift)
    typer.echo(f"report: {folder / 'report.html'}")
    if checkup.has_severe_finding:
        raise typer.Exit(1)


def _check_dataset(
    recipe: "Recipe", domain: "Domain", source: "Domain | None", out: Path
) -> tuple["DatasetCheck", "DomainShift | None", Path]:
    """Run all checks and write `report.html` and `report.json` to `out/check-data/<domain>/`.

    Returns:
        the findings, the domain shift, and the folder of the report.

    Raises:
        ToolchainError: the image folder does not exist or holds no image.
    """
    from toolchain.core import files
    from toolchain.data.checks import run_checks
    from toolchain.report.pages import data_checks

    folder = out / "check-data" / domain.name
    size = recipe.image_size or domain.image_size
    with files.lock_folder(folder, wait=False):
        checkup = run_checks.check_dataset(domain, out / "data", budget=recipe.budget, image_size=size)
        shift = _measure_shift(recipe, domain, source, size, out)
        files.write_json(folder / "report.json", {"schema": SCHEMA, "checkup": checkup, "shift": shift})
        files.write_text(folder / "report.html", data_checks.render_html(checkup, shift))
    return checkup, shift, folder


def _measure_shift(
    recipe: "Recipe", domain: "Domain", source: "Domain | None", size: tuple[int, int], out: Path
) -> "DomainShift | None":
    """Return the shift from the dataset that the recipe's model was trained on; log why and return None if not known."""
    from toolchain.core import progress
    from toolchain.models import domain_shift  # imports torch, which the other checks do not need

    try:
        return domain_shift.measure(domain, recipe.model, size, out / "data", source)
    except ToolchainError as reason:
        if source:  # the user asked for it
            raise
        progress.log(f"domain shift: not measured ({reason})")
        return None
