"""The whole of `toolchain check-data`: examine, measure the distance where there is a model, write the report."""

from pathlib import Path
from typing import TYPE_CHECKING

from toolchain import progress, records
from toolchain.checkup import examine, sheet
from toolchain.checkup.finding import Checkup
from toolchain.errors import ToolchainError
from toolchain.values import Domain, Recipe

if TYPE_CHECKING:
    from toolchain.checkup.shift import Shift

SCHEMA = 1


def run(recipe: Recipe, domain: Domain, source: Domain | None, out: Path) -> tuple[Checkup, "Shift | None", Path]:
    """Writes `out/check-data/<domain>/report.html` and `report.json`; returns what they say and their folder.

    Raises:
        ToolchainError: there is no folder, or not a single picture in it.
    """
    folder = out / "check-data" / domain.name
    size = recipe.image_size or domain.image_size
    with records.locked(folder, wait=False):
        found = examine.run(domain, out / "data", budget=recipe.budget, image_size=size)
        shift = _shift(recipe, domain, source, size, out)
        records.write_json(folder / "report.json", {"schema": SCHEMA, "checkup": found, "shift": shift})
        records.write_text(folder / "report.html", sheet.html(found, shift))
    return found, shift, folder


def _shift(recipe: Recipe, domain: Domain, source: Domain | None, size: tuple[int, int], out: Path) -> "Shift | None":
    """The distance to what the recipe's model knows; None, with a word, where it cannot be measured."""
    from toolchain.checkup import shift  # here, because it brings torch, which the rest does without

    try:
        return shift.run(domain, recipe.model, size, out / "data", source)
    except ToolchainError as reason:
        if source:  # asked for by name: not to be passed over
            raise
        progress.say(f"distance to what the model knows: not measured ({reason})")
        return None
