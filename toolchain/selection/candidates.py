"""Resolve the names of candidates: shortlists, zoo models, torchvision's and timm's models, and models of recipes."""

import dataclasses
from collections.abc import Sequence

from toolchain.config import read_config
from toolchain.config.recipe import ModelSpec
from toolchain.config.shortlist import Candidate, MayShip
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError
from toolchain.models import build, published_pixels, weights
from toolchain.models.sources import timm_hub, torchvision_hub

DEFAULT_SHORTLIST = "small"
LIBRARY_DEFAULT_WEIGHTS = "DEFAULT"  # what torchvision and timm call their recommended weights
TORCHVISION_LICENCE = (
    "weights by torchvision (its code: BSD-3-Clause); no licence of the weights is published with them"
)


def resolve(names: Sequence[str]) -> list[Candidate]:
    """Return the candidates in the order of their names, without repetitions.

    Args:
        names: each a shortlist (`small`, or a .toml file), `recipe:<name>` for a recipe's model, `zoo:<name>`,
            `timm:<name>`, or one of torchvision's models, `mobilenet_v3_small` or `resnet18:IMAGENET1K_V1`; after
            `random:` without its weights.

    Raises:
        ToolchainError: a name is none of these, a file is wrong, or two different candidates share a name.
    """
    if not any(names):
        raise ToolchainError(
            f"no candidates are named; {DEFAULT_SHORTLIST!r} is the shortlist that ships with the package"
        )
    by_content = dict[str, Candidate]()
    for name in names:
        for candidate in map(_prepare, _resolve_name(name)):
            by_content.setdefault(files.digest(candidate.model, candidate.reuse), candidate)
    candidates = list(by_content.values())
    unique_names = [candidate.name for candidate in candidates]
    ambiguous = sorted({name for name in unique_names if unique_names.count(name) > 1})
    if ambiguous:
        raise ToolchainError(f"two different candidates are called {ambiguous[0]!r}; give each a name of its own")
    return candidates


def _resolve_name(name: str) -> list[Candidate]:
    source, _, rest = name.partition(":")
    if source == "random" and rest:
        if rest.startswith(timm_hub.PREFIX):  # built directly: reading its card fails where it has no weights
            return [_without_weights(Candidate(name=rest, model=ModelSpec(name=rest)))]
        return [_without_weights(candidate) for candidate in _resolve_name(rest)]
    if source == "zoo" and rest:
        return [_read_zoo_model(rest)]
    if source == "recipe" and rest:
        recipe = read_config.read_recipe(rest)
        reuse = recipe.reuse if recipe.reuse != "auto" else build.WHOLE_NETWORK
        return [Candidate(name=recipe.name, model=recipe.model, reuse=reuse)]
    if source == "timm" and rest:
        return [_read_timm_model(name)]
    if name.endswith(".toml") or name in registry.list_names("shortlists"):
        return list(read_config.read_shortlist(name).candidates)
    known = torchvision_hub.list_models()
    if source not in known:
        raise ToolchainError(
            f"candidate {name!r} is not a shortlist ({', '.join(registry.list_names('shortlists'))}), not a file and not a "
            f"model of torchvision; {registry.suggest(source, known)}"
        )
    model = ModelSpec(name=source, weights=rest or LIBRARY_DEFAULT_WEIGHTS, licence=TORCHVISION_LICENCE)
    return [Candidate(name=name, model=model, trained_on="ImageNet-1k")]


def _without_weights(candidate: Candidate) -> Candidate:
    model = dataclasses.replace(candidate.model, weights="", licence="")
    name = f"{candidate.name}, random"
    return dataclasses.replace(candidate, name=name, model=model, trained_on="", may_ship="unknown")


def _prepare(candidate: Candidate) -> Candidate:
    """Return a candidate with the pixels of its published weights."""
    candidate = _note_missing_weights(candidate)
    return dataclasses.replace(candidate, model=published_pixels.resolve_model(candidate.model, candidate.name))


def _note_missing_weights(candidate: Candidate) -> Candidate:
    """Mark a candidate without weights as free to ship, unless its file says something else."""
    if candidate.model.weights or candidate.model.licence or candidate.may_ship != "unknown":
        return candidate
    model = dataclasses.replace(candidate.model, licence="none needed")
    return dataclasses.replace(candidate, model=model, may_ship="yes")


def _read_zoo_model(name: str) -> Candidate:
    source = f"zoo:{name}"
    weights.weights_digest(ModelSpec(name="", weights=source))  # raises, with a list of the zoo, if there is none
    card = files.read_json(registry.PACKAGE_FOLDER / "models" / "zoo" / f"{name}.json")
    model = read_config.to_dataclass(ModelSpec, {**card["model"], "weights": source}, f"{name}.json")
    model = dataclasses.replace(model, licence=f"as the toolchain; images {card['licence_of_images']}")
    trained_on = f"{card['domain']}, {card['images']['train']:,} images"
    return Candidate(name=name, model=model, trained_on=trained_on, may_ship="yes")


def _read_timm_model(name: str) -> Candidate:
    if not timm_hub.is_installed():  # its row in the ranking says so
        return Candidate(name=name, model=ModelSpec(name=name, weights=LIBRARY_DEFAULT_WEIGHTS))
    card = timm_hub.read_card(name)
    may_ship: MayShip = "unknown"
    if card.licence in timm_hub.PERMISSIVE_LICENCES:
        may_ship = "yes"
    elif "nc" in card.licence.split("-"):  # non-commercial
        may_ship = "no"
    model = ModelSpec(
        name=name, weights=LIBRARY_DEFAULT_WEIGHTS, mean=card.mean, std=card.std, published=True, licence=card.licence
    )
    return Candidate(name=name, model=model, trained_on=card.training_tag, may_ship=may_ship)
