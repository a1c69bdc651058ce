"""Step: decode the domain's dataset and the further datasets that the recipe joins to it."""

from toolchain.config import read_config
from toolchain.config.job import Job
from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError
from toolchain.core.types import ColourMode, Preprocessing
from toolchain.data import decoded_dataset, joined_datasets
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.joined_datasets import JoinedDataset

CROP_SHARE = 0.875  # 224 of 256 pixels, as most networks for ImageNet were validated


def run(job: Job) -> tuple[Dataset, list[JoinedDataset]]:
    """List, split and decode every dataset that the recipe trains on.

    Returns:
        The domain's dataset at the recipe's input size, and the further datasets in the recipe's order.

    Raises:
        ToolchainError: as `decoded_dataset.load` and `joined_datasets.load`.
    """
    recipe, domain = job.recipe, job.domain
    preprocess = describe_pixels(recipe.model, recipe.image_size or domain.image_size, domain.mode)
    data = decoded_dataset.load(domain, preprocess, job.images)
    joined = [
        joined_datasets.load(spec, read_config.read_domain(spec.domain), data, job.images) for spec in recipe.join
    ]
    return data, joined


def describe_pixels(model: ModelSpec, size: tuple[int, int], mode: ColourMode) -> Preprocessing:
    """Return how images become the input of a model.

    Args:
        model: its published pixels are resolved.
        size: height and width of the input.
        mode: of the dataset; gray images have no order of channels.

    Raises:
        ToolchainError: the bars of a letterbox are coloured, and the dataset is gray.
    """
    fit = "stretch" if model.resize == "weights" else model.resize
    fill = Preprocessing.fill if model.fill is None else model.fill
    colour = fill if isinstance(fill, tuple) else (fill, fill, fill)
    if mode == "gray" and len(set(colour)) > 1:
        raise ToolchainError(f"model.fill = {list(colour)}: the dataset is gray; give one grey level, from 0 to 255")
    return Preprocessing(
        image_size=size, mode=mode, mean=model.mean, std=model.std, fit=fit,
        crop_share=(model.crop_share or CROP_SHARE) if fit == "crop" else 1.0,
        fill=colour, interpolation=model.interpolation or "bilinear", antialias=model.antialias is not False,
        order=model.order if mode == "rgb" else "rgb",
    )  # fmt: skip
