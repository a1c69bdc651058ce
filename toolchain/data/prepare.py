"""prepare: recipe, domain -> decoded images, and the further sets that may be joined to them."""

from pathlib import Path

from toolchain.config import reader
from toolchain.config.dataset import Domain
from toolchain.config.recipe import Recipe
from toolchain.core.types import Preprocess
from toolchain.data import dataset, joined_datasets
from toolchain.data.dataset import Dataset
from toolchain.data.joined_datasets import Joined


def run(recipe: Recipe, domain: Domain, cache: Path) -> tuple[Dataset, list[Joined]]:
    """Finds, splits and decodes everything that the recipe trains on.

    Raises:
        ToolchainError: as `data.load` and `join.read`.
    """
    size = recipe.image_size or domain.image_size
    wanted = Preprocess(image_size=size, mode=domain.mode, mean=recipe.model.mean, std=recipe.model.std)
    data = dataset.load(domain, wanted, cache)
    return data, [joined_datasets.read(one, reader.domain(one.domain), data, cache) for one in recipe.join]
