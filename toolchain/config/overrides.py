"""Apply command-line flags to a recipe, its dataset and its target, before anything slow is imported."""

import dataclasses
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.config import budget_limits, model_reference, read_config, validation
from toolchain.config.dataset import Domain
from toolchain.config.job import Job, make_job
from toolchain.config.labels_file import read_labels
from toolchain.config.recipe import Budget, ModelSpec, Recipe, ReuseSpec
from toolchain.config.shortlist import is_auto
from toolchain.core import files, progress, registry
from toolchain.core.errors import ToolchainError

DEFAULT_RECIPE, FOLDER_RECIPE, TRAINED_MODEL_RECIPE = "digits", "image-folder", "compress"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `toolchain export`. "", -1, and 0 for epochs and seeds mean: as in the recipe."""

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
    budget: tuple[str, ...] = ()  # KEY=VALUE, keys as in [budget]
    labels: str = ""  # file of the class names of a trained model
    compress_only: bool = False
    unlabelled: str = ""  # folder


def choose_recipe(recipe: str, data: str, *, compress_only: bool = False) -> str:
    """Return the recipe that was named; without one, the recipe that fits: for the user's images, or the default job."""
    if not recipe and compress_only:
        progress.log(f"recipe: {TRAINED_MODEL_RECIPE}, for a model that is trained already; another one: --recipe NAME")
        return TRAINED_MODEL_RECIPE
    if recipe or not data:
        return recipe or DEFAULT_RECIPE
    if Path(data).exists():
        progress.log(f"recipe: {FOLDER_RECIPE}, for the images of {data}; another one: --recipe NAME")
    return FOLDER_RECIPE


def read_job(recipe_name: str, target_name: str, flags: Flags, out: Path, lock_file: Path | None = None) -> Job:
    """Read recipe, target and dataset description, apply the flags and return the job.

    Args:
        recipe_name: a name, or a path to a .toml file.
        target_name: the same.
        flags: of the command line.
        out: folder for results.
        lock_file: given by the user; without one, a lock beside the recipe is replayed.

    Raises:
        ToolchainError: a file is missing or not valid (see `read_config`), or a flag's value is not accepted.
    """
    target = read_config.read_target(target_name)
    target = dataclasses.replace(target, device=flags.device or target.device)
    recipe, domain = read_recipe(recipe_name, flags)
    recipe_folder = registry.find_file("recipes", recipe_name).parent
    return make_job(recipe, target, domain, out, lock_file=lock_file, recipe_folder=recipe_folder)


def read_recipe(recipe_name: str, flags: Flags) -> tuple[Recipe, Domain]:
    """Read recipe and dataset description and apply the flags.

    Raises:
        ToolchainError: a file is missing or not valid (see `read_config`), or a flag's value is not accepted.
    """
    if flags.ratio >= 0 and flags.latency:
        raise ToolchainError(
            f"--ratio {flags.ratio:g} and --latency {flags.latency} both set how far to prune; give one of them"
        )
    recipe = read_config.read_recipe(recipe_name)
    domain = read_config.read_domain(flags.domain or recipe.domain)
    recipe = dataclasses.replace(recipe, domain=domain.name, model=_override_model(recipe.model, flags))
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
    if flags.budget:
        recipe = dataclasses.replace(recipe, budget=_override_budget(recipe.budget, flags.budget))
        keys = {setting.partition("=")[0] for setting in flags.budget}
        if keys & set(budget_limits.UNITS) and flags.ratio < 0:  # these say how far to prune, as --latency does
            recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, ratio=None))
    if flags.resolution != -1:
        recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, resolution=flags.resolution))
    if flags.epochs:
        recipe = _override_epochs(recipe, flags.epochs)
    if flags.labels:
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, labels=flags.labels))
    if flags.compress_only or model_reference.is_onnx_file(recipe.model.name):
        recipe = _skip_finetuning(recipe)
    domain = override_images(domain, flags.data, flags.on_corrupt)
    domain = dataclasses.replace(domain, unlabelled=flags.unlabelled or domain.unlabelled)
    if not domain.has_labels:
        recipe = _distil_only(recipe)
    checked: Recipe = read_config.validate("recipes", files.to_jsonable(recipe), "command line")
    return checked, _use_model_classes(domain, checked.model)


def _skip_finetuning(recipe: Recipe) -> Recipe:
    """Return the recipe for a model that is trained already: it keeps its head and its weights."""
    adapt = dataclasses.replace(recipe.adapt, epochs=0, least_steps=0)
    return dataclasses.replace(
        recipe, adapt=adapt, model=dataclasses.replace(recipe.model, head="keep"), seeds=1, teacher=None, join=(),
        reuse=ReuseSpec(),
    )  # fmt: skip


def _distil_only(recipe: Recipe) -> Recipe:
    """Return the recipe for images without labels: every training learns the dense model's outputs alone.

    Raises:
        ToolchainError: there is no trained model to learn from.
    """
    if recipe.model.head != "keep" or recipe.adapt.epochs:
        raise ToolchainError(
            "images without labels cannot train a model from the start: give the trained model with --compress-only "
            "(--model, --weights, --labels), or labelled images with --data"
        )
    quantize = dataclasses.replace(recipe.quantize, train=dataclasses.replace(recipe.quantize.train, distill=1.0))
    return dataclasses.replace(
        recipe, recover=dataclasses.replace(recipe.recover, distill=1.0), quantize=quantize, balance=0.0
    )


def _use_model_classes(domain: Domain, model: ModelSpec) -> Domain:
    """Return the dataset with the classes of a trained model, where a file of labels names them.

    Raises:
        ToolchainError: the file cannot be read, or the model gets a new head, whose classes are those of the images.
    """
    if not model.labels:
        return domain
    if model.head != "keep":
        raise ToolchainError(
            f"labels {model.labels} name the classes of a trained head, and this model gets a new one for the classes of the "
            'images; to keep its head, give --compress-only, or head = "keep" in [model]'
        )
    return dataclasses.replace(domain, classes=read_labels(Path(model.labels)), absent_classes="allow")


def _override_budget(budget: Budget, settings: Sequence[str]) -> Budget:
    """Return the budget with KEY=VALUE applied; values are read as TOML, and as text where they are none.

    Raises:
        ToolchainError: a setting is not KEY=VALUE, or its key is not a budget; wrong values are found by the recipe's rules.
    """
    names = [field.name for field in dataclasses.fields(Budget)]
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in names:
            raise ToolchainError(f"--budget {setting!r}: give KEY=VALUE, with one of {', '.join(names)}")
        try:
            (value,) = tomllib.loads(f"value = {text}").values()
        except (tomllib.TOMLDecodeError, ValueError):
            value = text
        if key in budget_limits.UNITS:
            value = str(value)  # a number without its unit gets the message that names the units
        budget = dataclasses.replace(budget, **{key: value})
    return budget


def override_images(domain: Domain, data: str, on_corrupt: str) -> Domain:
    """Return the dataset description with another image folder and another way to treat unreadable images.

    Args:
        data: folder of images; "": unchanged.
        on_corrupt: "fail" or "skip"; "": unchanged.

    Raises:
        ToolchainError: `on_corrupt` is neither.
    """
    if data:
        domain = dataclasses.replace(domain, source="folder", path=data)
    if on_corrupt:
        domain = read_config.validate(
            "calibration", {**files.to_jsonable(domain), "on_corrupt": on_corrupt}, "--on-corrupt"
        )
    return domain


def _override_model(model: ModelSpec, flags: Flags) -> ModelSpec:
    if flags.model and flags.model != model.name:  # the recipe's arguments and weights belong to its own model
        in_file = model_reference.parse(flags.model) is not None or model_reference.is_onnx_file(flags.model)
        has_published_weights = not is_auto(flags.model) and not in_file
        model = ModelSpec(name=flags.model, weights="DEFAULT" if has_published_weights else "")
    if not flags.weights:
        return model
    same_weights = Path(flags.weights).name == Path(model.weights).name  # otherwise the recipe's licence does not apply
    return dataclasses.replace(model, weights=flags.weights, licence=model.licence if same_weights else "")


def parse_image_size(text: str) -> tuple[int, int]:
    """Return height and width from the value of `--image-size`.

    Raises:
        ToolchainError: it is not HEIGHTxWIDTH, or a side is too small or too large.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise ToolchainError(f"--image-size {text!r}: give HEIGHTxWIDTH, such as 120x72, or one number for a square")
    size = int(match[1]), int(match[2] or match[1])
    ok, message = validation.image_size_rule("--image-size", size)
    if not ok:
        raise ToolchainError(message)
    return size


def _override_epochs(recipe: Recipe, epochs: int) -> Recipe:
    quantize = dataclasses.replace(recipe.quantize, train=dataclasses.replace(recipe.quantize.train, epochs=epochs))
    prune = dataclasses.replace(recipe.prune, rounds=min(recipe.prune.rounds, epochs))  # each round needs an epoch
    if prune.sparse_epochs is not None:
        prune = dataclasses.replace(prune, sparse_epochs=epochs)
    return dataclasses.replace(
        recipe,
        adapt=dataclasses.replace(recipe.adapt, epochs=epochs, least_steps=0),
        prune=prune,
        recover=dataclasses.replace(recipe.recover, epochs=epochs),
        quantize=quantize,
    )
