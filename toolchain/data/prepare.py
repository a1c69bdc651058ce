"""Step: decode the domain's dataset and the further datasets that the recipe joins to it."""

from toolchain.config import read_config
from toolchain.config.job import Job
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset, joined_datasets
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.joined_datasets import JoinedDataset


def run(job: Job) -> tuple[Dataset, list[JoinedDataset]]:
    """List, split and decode every dataset that the recipe trains on.

    Returns:
        The domain's dataset at the recipe's input size, and the further datasets in the recipe's order.

    Raises:
        ToolchainError: as `decoded_dataset.load` and `joined_datasets.load`.
    """
    recipe, domain = job.recipe, job.domain
    preprocess = Preprocessing(
        image_size=recipe.image_size or domain.image_size,
        mode=domain.mode,
        mean=recipe.model.mean,
        std=recipe.model.std,
    )
    data = decoded_dataset.load(domain, preprocess, job.images)
    joined = [
        joined_datasets.load(spec, read_config.read_domain(spec.domain), data, job.images) for spec in recipe.join
    ]
    return data, joined
