"""What the command line changes in a recipe and its domain, before anything heavy is imported."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from toolchain.config import toml_files, validation
from toolchain.config.dataset import Domain
from toolchain.config.job import Job, make_job
from toolchain.config.recipe import ModelSpec, Recipe
from toolchain.config.shortlist import is_auto
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `toolchain export`; empty, 0 for epochs and seeds and -1 mean: as the recipe says."""

    data: str = ""
    domain: str = ""
    model: str = ""
    weights: str = ""
    image_size: str = ""
    epochs: int = 0
    seed: int = -1
    seeds: int = 0
    balance: float = -1.0
    ratio: float = -1.0
    release: int = -1
    latency: str = ""
    resolution: float = -1.0
    on_corrupt: str = ""
    device: str = ""


def read_job(recipe_name: str, target_name: str, flags: Flags, out: Path, lock_file: Path | None = None) -> Job:
    """Read recipe, target and domain, apply the flags and return the job.

    Args:
        lock_file: named by the user; without one a lock that lies beside the recipe is replayed.

    Raises:
        ToolchainError: as `reader`; or a flag's value makes no sense.
    """
    target = toml_files.read_target(target_name)
    target = dataclasses.replace(target, device=flags.device or target.device)
    recipe, domain = read_recipe(recipe_name, flags)
    beside = registry.find_file("recipes", recipe_name).parent
    return make_job(recipe, target, domain, out, lock_file=lock_file, recipe_folder=beside)


def read_recipe(recipe_name: str, flags: Flags) -> tuple[Recipe, Domain]:
    """Read recipe and domain and apply the flags.

    Raises:
        ToolchainError: as `spec`; or a flag's value makes no sense.
    """
    if flags.ratio >= 0 and flags.latency:
        raise ToolchainError(
            f"--ratio {flags.ratio:g} and --latency {flags.latency} both say how far to prune; give one of them"
        )
    recipe = toml_files.read_recipe(recipe_name)
    domain = toml_files.read_domain(flags.domain or recipe.domain)
    recipe = dataclasses.replace(recipe, domain=domain.name, model=_model(recipe.model, flags))
    if flags.image_size:
        recipe = dataclasses.replace(recipe, image_size=parse_image_size(flags.image_size))
    if flags.seed >= 0:
        recipe = dataclasses.replace(recipe, seed=flags.seed)
    if flags.seeds:
        recipe = dataclasses.replace(recipe, seeds=flags.seeds)
    if flags.balance != -1:
        recipe = dataclasses.replace(recipe, balance=flags.balance)
    if flags.release >= 0:
        recipe = dataclasses.replace(recipe, release=flags.release)
    if flags.ratio >= 0:
        recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, ratio=flags.ratio))
    if flags.latency:
        recipe = dataclasses.replace(
            recipe,
            prune=dataclasses.replace(recipe.prune, ratio=None),
            budget=dataclasses.replace(recipe.budget, latency=flags.latency),
        )
    if flags.resolution != -1:
        recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, resolution=flags.resolution))
    if flags.epochs:
        recipe = _epochs(recipe, flags.epochs)
    checked: Recipe = toml_files.validate("recipes", files.to_jsonable(recipe), "command line")
    return checked, override_images(domain, flags.data, flags.on_corrupt)


def override_images(domain: Domain, data: str, on_corrupt: str) -> Domain:
    """The domain with the folder of its pictures, and what is done with unreadable ones; "": as it says itself.

    Raises:
        ToolchainError: there is no such way with unreadable pictures.
    """
    if data:
        domain = dataclasses.replace(domain, source="folder", path=data)
    if on_corrupt:
        domain = toml_files.validate(
            "calibration", {**files.to_jsonable(domain), "on_corrupt": on_corrupt}, "--on-corrupt"
        )
    return domain


def _model(model: ModelSpec, flags: Flags) -> ModelSpec:
    if flags.model and flags.model != model.name:  # the arguments and weights of another model mean nothing here
        model = ModelSpec(name=flags.model, weights="" if is_auto(flags.model) else "DEFAULT")
    if not flags.weights:
        return model
    same = Path(flags.weights).name == Path(model.weights).name  # else the recipe's licence is of others
    return dataclasses.replace(model, weights=flags.weights, licence=model.licence if same else "")


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width as `--image-size` gives them.

    Raises:
        ToolchainError: they are given in another form, or are no sides of a picture.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise ToolchainError(
            f"--image-size {text!r}: HEIGHTxWIDTH is wanted, such as 120x72, or one number for a square"
        )
    found = int(match[1]), int(match[2] or match[1])
    fits, complaint = validation.image_size_rule("--image-size", found)
    if not fits:
        raise ToolchainError(complaint)
    return found


def _epochs(recipe: Recipe, epochs: int) -> Recipe:
    quantize = dataclasses.replace(recipe.quantize, train=dataclasses.replace(recipe.quantize.train, epochs=epochs))
    prune = dataclasses.replace(recipe.prune, rounds=min(recipe.prune.rounds, epochs))  # each needs an epoch
    if prune.sparse_epochs is not None:
        prune = dataclasses.replace(prune, sparse_epochs=epochs)
    return dataclasses.replace(
        recipe,
        adapt=dataclasses.replace(recipe.adapt, epochs=epochs, least_steps=0),
        prune=prune,
        recover=dataclasses.replace(recipe.recover, epochs=epochs),
        quantize=quantize,
    )
