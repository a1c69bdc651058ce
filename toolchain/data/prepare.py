"""prepare: recipe, domain -> decoded images, and the further sets that may be joined to them."""

from pathlib import Path

from toolchain import data as images
from toolchain import join, spec
from toolchain.data import Dataset
from toolchain.join import Joined
from toolchain.values import Domain, Preprocess, Recipe


def run(recipe: Recipe, domain: Domain, cache: Path) -> tuple[Dataset, list[Joined]]:
    """Finds, splits and decodes everything that the recipe trains on.

    Raises:
        ToolchainError: as `data.load` and `join.read`.
    """
    size = recipe.image_size or domain.image_size
    wanted = Preprocess(image_size=size, mode=domain.mode, mean=recipe.model.mean, std=recipe.model.std)
    data = images.load(domain, wanted, cache)
    return data, [join.read(one, spec.domain(one.domain), data, cache) for one in recipe.join]
