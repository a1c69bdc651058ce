"""The whole of `toolchain check-data`: examine, measure the distance where there is a model, write the report."""

from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Recipe
from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError
from toolchain.data.checks import run_checks
from toolchain.data.checks.finding import Checkup
from toolchain.report.pages import data_checks

if TYPE_CHECKING:
    from toolchain.models.domain_shift import Shift


SCHEMA = 1


def run(recipe: Recipe, domain: Domain, source: Domain | None, out: Path) -> tuple[Checkup, "Shift | None", Path]:
    """Writes `out/check-data/<domain>/report.html` and `report.json`; returns what they say and their folder.

    Raises:
        ToolchainError: there is no folder, or not a single picture in it.
    """
    folder = out / "check-data" / domain.name
    size = recipe.image_size or domain.image_size
    with files.locked(folder, wait=False):
        found = run_checks.run(domain, out / "data", budget=recipe.budget, image_size=size)
        shift = _shift(recipe, domain, source, size, out)
        files.write_json(folder / "report.json", {"schema": SCHEMA, "checkup": found, "shift": shift})
        files.write_text(folder / "report.html", data_checks.html(found, shift))
    return found, shift, folder


def _shift(recipe: Recipe, domain: Domain, source: Domain | None, size: tuple[int, int], out: Path) -> "Shift | None":
    """The distance to what the recipe's model knows; None, with a word, where it cannot be measured."""
    from toolchain.models import domain_shift  # here, because it brings torch, which the rest does without

    try:
        return domain_shift.run(domain, recipe.model, size, out / "data", source)
    except ToolchainError as reason:
        if source:  # asked for by name: not to be passed over
            raise
        progress.say(f"distance to what the model knows: not measured ({reason})")
        return None
