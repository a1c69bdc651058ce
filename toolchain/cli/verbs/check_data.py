"""`toolchain check-data`: examines a dataset before any training."""

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
        str, typer.Option("--recipe", "-r", help="Recipe whose domain, budget and model are meant, or a .toml file.")
    ] = "digits",
    data: DataFolder = "",
    domain: DomainName = "",
    model: ModelName = "",
    weights: Weights = "",
    image_size: ImageSize = "",
    source: Annotated[
        str, typer.Option(help="Domain to measure the distance from: what the model was trained on.")
    ] = "",
    out: OutFolder = Path("out"),
) -> None:
    """Examine a set before training: corrupt files, copies across splits, wrong labels, imbalance, what it can show.

    Exit status: 0 nothing severe, 1 something that should be put right before training, 2 wrong input.
    """
    from toolchain.config import overrides, toml_files

    flags = overrides.Flags(data=data, domain=domain, model=model, weights=weights, image_size=image_size)
    chosen, images = overrides.read_recipe(recipe, flags)
    from toolchain.report.pages import data_checks_text

    checkup, shift, folder = _examine(chosen, images, toml_files.read_domain(source) if source else None, out)
    data_checks_text.print_results(checkup, shift)
    typer.echo(f"report: {folder / 'report.html'}")
    if checkup.has_severe_finding:
        raise typer.Exit(1)


def _examine(
    recipe: "Recipe", domain: "Domain", source: "Domain | None", out: Path
) -> tuple["DatasetCheck", "DomainShift | None", Path]:
    """Run all checks, write `out/check-data/<domain>/report.html` and `report.json`, and return what they say.

    Raises:
        ToolchainError: there is no folder, or not a single image in it.
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
    """Return the distance to what the recipe's model was trained on; None, after saying why, where it has none."""
    from toolchain.core import progress
    from toolchain.models import domain_shift  # brings torch, which the other checks do without

    try:
        return domain_shift.measure(domain, recipe.model, size, out / "data", source)
    except ToolchainError as reason:
        if source:  # asked for by name: not to be passed over
            raise
        progress.log(f"distance to what the model knows: not measured ({reason})")
        return None
