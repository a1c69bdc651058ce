"""What types cannot say of recipes, targets, domains and shortlists: bounds, what excludes what, names that are there."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from toolchain.config import budget_limits
from toolchain.config.dataset import Domain
from toolchain.config.packaging import C_ARRAY_FORM, PackageSpec
from toolchain.config.recipe import Budget, ModelSpec, PruneSpec, Recipe, TrainSpec
from toolchain.config.shortlist import Shortlist, is_auto
from toolchain.config.target import GateLimits, Isa, QuantScheme, Target
from toolchain.core import registry
from toolchain.core.errors import ToolchainError

# integer types that the instructions multiply fast and without saturating, the best first. Without VNNI, sums of two
# products are kept in 16 bits, which eight-bit weights overflow; ARM multiplies signed by signed
SCHEMES_BY_ISA: Mapping[Isa, tuple[tuple[str, int], ...]] = {
    "x86-64-vnni": (("uint8", 8), ("uint8", 7)),
    "x86-64-avx2": (("uint8", 7),),
    "arm64": (("int8", 8), ("uint8", 8)),
}
Rules = list[tuple[bool, str]]
AUGMENTATION_LIMITS = {"shift": 0.5, "scale": 0.9, "crop": 0.95, "rotate_degrees": 180, "brightness": 1, "saturation": 1, "erase": 1,
        "mixup": 2, "cutmix": 2}  # of each augmentation; beyond it nothing of the picture is left  # fmt: skip


def _name_rule(name: str, *taken: str) -> tuple[bool, str]:
    """A name becomes a folder of the output, and must not lead out of it."""
    good = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None and name not in taken
    return good, f"name = {name!r}: letters, digits, '-', '_' and '.', beginning with a letter or digit" + (
        f"; not {' or '.join(taken)}" if taken else ""
    )


def _train_rules(name: str, spec: TrainSpec) -> Rules:
    return [
        (spec.epochs >= 0, f"{name}.epochs = {spec.epochs}: must not be negative"),
        (spec.least_steps >= 0, f"{name}.least_steps = {spec.least_steps}: must not be negative"),
        (spec.batch_size >= 2, f"{name}.batch_size = {spec.batch_size}: batch norm needs at least 2"),
        (0 < spec.learning_rate < 10, f"{name}.learning_rate = {spec.learning_rate}: must be above 0 and below 10"),
        (0 <= spec.distill <= 1, f"{name}.distill = {spec.distill}: must be between 0 and 1"),
        (0 <= spec.label_smoothing < 1, f"{name}.label_smoothing = {spec.label_smoothing}: must be from 0 to below 1"),
        (0 <= spec.average < 1, f"{name}.average = {spec.average}: must be from 0 to below 1"),
        (spec.weight_decay >= 0, f"{name}.weight_decay = {spec.weight_decay}: must not be negative"),
        (0 <= spec.warmup < 1, f"{name}.warmup = {spec.warmup}: must be from 0 to below 1"),
        (0 < spec.layer_decay <= 1, f"{name}.layer_decay = {spec.layer_decay}: must be above 0, at most 1"),
        (spec.max_grad_norm > 0, f"{name}.max_grad_norm = {spec.max_grad_norm}: must be above 0"),
        (spec.temperature > 0, f"{name}.temperature = {spec.temperature}: must be above 0"),
    ]


def image_size_rule(name: str, size: tuple[int, int] | None) -> tuple[bool, str]:
    """Whether these are sides of a picture, and what is said where they are not."""
    good = size is None or all(8 <= side <= 4096 for side in size)
    return good, f"{name} = {size}: height and width, each between 8 and 4096"


def _prune_rules(value: PruneSpec, epochs: int) -> Rules:
    criteria = registry.list_modules("criteria")
    return [
        (
            value.ratio is None or 0 <= value.ratio < 1,
            f"prune.ratio = {value.ratio}: must be from 0 (do not prune) to below 1",
        ),
        (
            value.criterion in criteria,
            f"prune.criterion = {value.criterion!r}; {registry.suggest(value.criterion, criteria)}",
        ),
        (0 < value.max_share <= 1, f"prune.max_share = {value.max_share}: must be above 0, at most 1"),
        (
            0.25 <= value.resolution <= 1,
            f"prune.resolution = {value.resolution}: the least share of each side, from 0.25 to 1 (keep the size)",
        ),
        (value.rounds >= 1, f"prune.rounds = {value.rounds}: 1 to cut at once, or how many rounds"),
        (
            value.rounds <= max(epochs, 1),
            f"prune.rounds = {value.rounds}: they share recover.epochs = {epochs}, so at most {max(epochs, 1)}",
        ),
        (
            0 <= value.sparsity <= 1,
            f"prune.sparsity = {value.sparsity}: 0 for no penalty, or its strength, at most 1; try 1e-3",
        ),
        (
            value.sparse_epochs is None or value.sparsity > 0,
            f"prune.sparse_epochs = {value.sparse_epochs}: nothing is penalized while prune.sparsity = 0; try 1e-3",
        ),
        (
            value.sparse_epochs is None or value.sparse_epochs >= 1,
            f"prune.sparse_epochs = {value.sparse_epochs}: at least 1",
        ),
    ]


def _recipe_rules(value: Recipe) -> Rules:
    return [
        _name_rule(value.name, "work", "data", "bench", "gate", "select"),
        *_train_rules("adapt", value.adapt),
        *_train_rules("recover", value.recover),
        *_train_rules("quantize.train", value.quantize.train),
        (
            value.quantize.search_seconds >= 0,
            f"quantize.search_seconds = {value.quantize.search_seconds}: 0 for no search, or seconds",
        ),
        *_auto_rules(value),
        (len(value.model.mean) == len(value.model.std) == 3, "model.mean and model.std need three numbers each"),
        (all(s > 0 for s in value.model.std), f"model.std = {value.model.std}: must be above 0"),
        image_size_rule("image_size", value.image_size),
        *_prune_rules(value.prune, value.recover.epochs),
        (value.model.norm_eps is None or value.model.norm_eps > 0, "model.norm_eps must be above 0"),
        (value.release >= 0, f"release = {value.release}: a whole number that only grows"),
        (value.seed >= 0, f"seed = {value.seed}: must not be negative"),
        (1 <= value.seeds <= 100, f"seeds = {value.seeds}: how often adapt is repeated, from 1 to 100"),
        (0 <= value.balance <= 1, f"balance = {value.balance}: from 0 (accuracy) to 1 (balanced accuracy)"),
        (
            value.teacher is None or value.adapt.distill > 0,
            "teacher: it teaches nothing while adapt.distill = 0; try 0.5",
        ),
        *((one.weight > 0, f"join {one.domain!r}: weight = {one.weight}: must be above 0") for one in value.join),
        *(
            (one.images >= 0, f"join {one.domain!r}: images = {one.images}: 0 for all, or how many")
            for one in value.join
        ),
        *(
            (number >= 0, f"augment.{name} = {number}: must not be negative")
            for name, number in vars(value.augment).items()
            if number is not None
        ),
        *(
            (
                (getattr(value.augment, name) or 0) <= most,
                f"augment.{name} = {getattr(value.augment, name)}: at most {most}",
            )
            for name, most in AUGMENTATION_LIMITS.items()
        ),
        *_budget_rules(value.budget),
    ]


def _auto_rules(value: Recipe) -> Rules:
    """A model that is yet to be chosen has no properties."""
    if not is_auto(value.model.name):
        return []
    own = {one.name for one in dataclasses.fields(ModelSpec)} - {"name", "licence"}
    default = ModelSpec(name="")
    return [
        (
            getattr(value.model, name) == getattr(default, name),
            f"model.{name} = {getattr(value.model, name)!r}: with model.name = {value.model.name!r} every candidate brings its "
            "own; leave it out, or name the model",
        )
        for name in sorted(own)
    ]  # fmt: skip


def _budget_rules(value: Budget) -> Rules:
    given = {name: limit for name, limit in vars(value).items() if limit is not None}
    return [
        *(
            (limit >= 0, f"budget.{name} = {limit}: must be a number that is not negative")
            for name, limit in given.items()
            if not isinstance(limit, str)
        ),
        *(_amount_rule(name, given[name]) for name in budget_limits.UNITS if name in given),
    ]


def _amount_rule(name: budget_limits.Quantity, text: str) -> tuple[bool, str]:
    try:
        budget_limits.parse(name, text)
    except ToolchainError as reason:
        return False, str(reason)
    return True, ""


def _target_rules(value: Target) -> Rules:
    runtimes = registry.list_modules("runtimes")
    if value.runtime not in runtimes:
        return [(False, f"runtime = {value.runtime!r}; {registry.suggest(value.runtime, runtimes)}")]
    possible = registry.load_module("runtimes", value.runtime).PRECISIONS
    odd = [p for p in value.precisions if p not in possible]
    return [
        _name_rule(value.name),
        (value.threads >= 1, f"threads = {value.threads}: at least 1"),
        (value.alignment >= 1, f"alignment = {value.alignment}: at least 1"),
        _scheme_rule(value.isa, value.scheme),
        (
            not value.fit_like or value.fit_like in registry.list_names("targets"),
            f"fit_like = {value.fit_like!r}; {registry.suggest(value.fit_like, registry.list_names('targets'))}",
        ),
        (value.fit_like != value.name, f"fit_like = {value.fit_like!r}: a target cannot borrow from itself"),
        (not odd, f"precisions: {value.runtime} has no {', '.join(odd)} here; possible are {', '.join(possible)}"),
        (value.precisions[:1] == ("f32",), "precisions must begin with f32, which everything is compared with"),
        (len(set(value.precisions)) == len(value.precisions), f"precisions = {value.precisions}: one is named twice"),
        *_budget_rules(value.budget),
        *_gate_rules(value.gate),
        *_package_rules(value.package, value.runtime),
    ]


def _package_rules(value: PackageSpec, runtime: str) -> Rules:
    room = registry.load_module("runtimes", runtime)
    possible = [*room.FORMS, *([C_ARRAY_FORM] if len(room.FILE_NAMES) == 1 else [])]
    odd = next((form for form in value.forms if form not in possible), None)
    return [
        (odd is None, f"package.forms: {runtime} has no {odd!r}; {registry.suggest(str(odd), possible)}"),
        (len(set(value.forms)) == len(value.forms), f"package.forms = {value.forms}: one is named twice"),
        image_size_rule("package.frame", value.frame),
        (
            value.frame is None or value.input == "uint8",
            'package.frame: a camera\'s frames are taken with input = "uint8"',
        ),
    ]


def _gate_rules(value: GateLimits) -> Rules:
    threshold = value.regression_threshold
    return [
        (0.01 <= threshold <= 1, f"gate.regression_threshold = {threshold}: from 0.01 (one percent) to 1"),
        *(
            (0 <= limit < 1, f"gate.{name} = {limit}: a fraction from 0 to below 1; 0.02 is two percent or points")
            for name, limit in vars(value).items()
            if name != "regression_threshold" and limit is not None
        ),
    ]


def _scheme_rule(isa: Isa, scheme: QuantScheme) -> tuple[bool, str]:
    possible = " or ".join(f"{kind} activations with {bits}-bit weights" for kind, bits in SCHEMES_BY_ISA[isa])
    good = (scheme.activations, scheme.weight_bits) in SCHEMES_BY_ISA[isa]
    return (
        good,
        f"scheme: {isa} is not served by {scheme.activations} with {scheme.weight_bits} bits; possible: {possible}",
    )


def _domain_rules(value: Domain) -> Rules:
    sources = ["folder", *registry.list_modules("sources")]
    shares = value.validation_share > 0 and value.test_share > 0 and value.validation_share + value.test_share < 0.9
    return [
        (value.source in sources, f"source = {value.source!r}; {registry.suggest(value.source, sources)}"),
        (shares, "validation_share and test_share must be above 0 and together below 0.9"),
        (min(value.split_seed, value.calibration_seed) >= 0, "split_seed and calibration_seed must not be negative"),
        (value.calibration_images >= 1, f"calibration_images = {value.calibration_images}: at least 1"),
        image_size_rule("image_size", value.image_size),
        (
            _names_a_group(value.group_pattern),
            f"group_pattern = {value.group_pattern!r}: a regular expression with one (group)",
        ),
    ]


def _names_a_group(pattern: str) -> bool:
    try:
        return not pattern or re.compile(pattern).groups >= 1
    except re.error:
        return False


def _shortlist_rules(value: Shortlist) -> Rules:
    names = [one.name for one in value.candidates]
    return [
        (bool(names), "no [[candidates]]; name at least one"),
        *((names.count(name) == 1, f"two candidates are called {name!r}") for name in names),
        *(
            (
                len(one.model.mean) == len(one.model.std) == 3,
                f"{one.name}: model.mean and model.std need three numbers each",
            )
            for one in value.candidates
        ),
    ]


RULES_BY_KIND: Mapping[registry.ConfigKind, Any] = {
    "recipes": _recipe_rules,
    "targets": _target_rules,
    "calibration": _domain_rules,
    "shortlists": _shortlist_rules,
}
