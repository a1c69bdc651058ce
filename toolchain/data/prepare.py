"""prepare: recipe, domain -> decoded images, and the further sets that may be joined to them."""

from toolchain.config import toml_files
from toolchain.config.job import Job
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset, joined_datasets
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.joined_datasets import JoinedDataset


def run(job: Job) -> tuple[Dataset, list[JoinedDataset]]:
    """Finds, splits and decodes everything that the recipe trains on.

    Raises:
        ToolchainError: as `data.load` and `join.read`.
    """
    recipe, domain = job.recipe, job.domain
    size = recipe.image_size or domain.image_size
    wanted = Preprocessing(image_size=size, mode=domain.mode, mean=recipe.model.mean, std=recipe.model.std)
    data = decoded_dataset.load(domain, wanted, job.images)
    return data, [
        joined_datasets.load(one, toml_files.read_domain(one.domain), data, job.images) for one in recipe.join
    ]
