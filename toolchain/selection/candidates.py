"""From what the user names to candidates: shortlists, zoo models, torchvision's own, checkpoints of recipes."""

import dataclasses
from collections.abc import Sequence

from toolchain.config import toml_files
from toolchain.config.recipe import ModelSpec
from toolchain.config.shortlist import Candidate, MayShip
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError
from toolchain.models import build
from toolchain.models import weights as weights_module
from toolchain.models.sources import timm_hub, torchvision_hub

DEFAULT_SHORTLIST = "small"
TORCHVISION_LICENCE = (
    "weights by torchvision (its code: BSD-3-Clause); no licence of the weights is published with them"
)


def resolve(names: Sequence[str]) -> list[Candidate]:
    """Candidates in the order in which they are named, none twice.

    Args:
        names: each a shortlist (`small`, or a .toml file), `recipe:<name>` for a recipe's model, `zoo:<name>`,
            `timm:<name>`, or one of torchvision's models, `mobilenet_v3_small` or `resnet18:IMAGENET1K_V1`; after
            `random:` without its weights.

    Raises:
        ToolchainError: a name is none of these, a file is wrong, or two candidates share a name.
    """
    if not any(names):
        raise ToolchainError(
            f"no candidates are named; {DEFAULT_SHORTLIST!r} is the shortlist that ships with the package"
        )
    first = dict[str, Candidate]()
    for one in (_licensed(one) for name in names for one in _named(name)):
        first.setdefault(files.digest(one.model, one.reuse), one)
    unique = list(first.values())
    doubled = {one.name for one in unique if [other.name for other in unique].count(one.name) > 1}
    if doubled:
        raise ToolchainError(f"two different candidates are called {sorted(doubled)[0]!r}; give each a name of its own")
    return unique


def _named(name: str) -> list[Candidate]:
    kind, _, rest = name.partition(":")
    if kind == "random" and rest:
        bare = rest.startswith(timm_hub.PREFIX)  # which may have no weights to ask for
        return [
            _untrained(one) for one in ([Candidate(name=rest, model=ModelSpec(name=rest))] if bare else _named(rest))
        ]
    if kind == "zoo" and rest:
        return [_zoo(rest)]
    if kind == "recipe" and rest:
        recipe = toml_files.read_recipe(rest)
        reuse = recipe.reuse if recipe.reuse != "auto" else build.WHOLE_NETWORK
        return [Candidate(name=recipe.name, model=recipe.model, reuse=reuse)]
    if kind == "timm" and rest:
        return [_timm(name)]
    if name.endswith(".toml") or name in registry.list_names("shortlists"):
        return list(toml_files.read_shortlist(name).candidates)
    known = torchvision_hub.list_models()
    if kind not in known:
        raise ToolchainError(
            f"candidate {name!r} is no shortlist ({', '.join(registry.list_names('shortlists'))}), no file and no model of "
            f"torchvision; {registry.suggest(kind, known)}"
        )
    weights = rest or "DEFAULT"
    model = ModelSpec(name=kind, weights=weights, licence=TORCHVISION_LICENCE)
    return [Candidate(name=name, model=model, trained_on="ImageNet-1k")]


def _untrained(one: Candidate) -> Candidate:
    model = dataclasses.replace(one.model, weights="", licence="")
    return dataclasses.replace(one, name=f"{one.name}, random", model=model, trained_on="", may_ship="unknown")


def _licensed(one: Candidate) -> Candidate:
    """Without weights there is nothing to license, unless somebody says so."""
    if one.model.weights or one.model.licence or one.may_ship != "unknown":
        return one
    return dataclasses.replace(one, model=dataclasses.replace(one.model, licence="none needed"), may_ship="yes")


def _zoo(name: str) -> Candidate:
    weights = f"zoo:{name}"
    weights_module.weights_digest(ModelSpec(name="", weights=weights))  # says which there are
    card = files.read_json(registry.PACKAGE_FOLDER / "models" / "zoo" / f"{name}.json")
    model = toml_files.to_dataclass(ModelSpec, {**card["model"], "weights": weights}, f"{name}.json")
    ships: MayShip = "yes"
    model = dataclasses.replace(model, licence=f"as the toolchain; pictures {card['licence_of_images']}")
    return Candidate(
        name=name, model=model, trained_on=f"{card['domain']}, {card['images']['train']:,} images", may_ship=ships
    )


def _timm(name: str) -> Candidate:
    if not timm_hub.is_installed():  # which its row says
        return Candidate(name=name, model=ModelSpec(name=name, weights="DEFAULT"))
    card = timm_hub.read_card(name)
    ships: MayShip = (
        "yes"
        if card.licence in timm_hub.PERMISSIVE_LICENCES
        else "no"
        if "nc" in card.licence.split("-")
        else "unknown"
    )
    model = ModelSpec(name=name, weights="DEFAULT", mean=card.mean, std=card.std, licence=card.licence)
    return Candidate(name=name, model=model, trained_on=card.training_tag, may_ship=ships)
