"""Rules for recipes, targets, domains and shortlists that types cannot express: bounds, combinations, existing names.

A rule is a pair: whether it holds, and the message if it does not.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from toolchain.config import budget_limits, pixel_settings
from toolchain.config.dataset import Domain
from toolchain.config.packaging import C_ARRAY_FORM, PackageSpec
from toolchain.config.recipe import Budget, ModelSpec, PruneSpec, Recipe, TrainSpec
from toolchain.config.shortlist import Shortlist, is_auto
from toolchain.config.target import GateLimits, Isa, QuantScheme, Target
from toolchain.core import registry
from toolchain.core.errors import ToolchainError

# (activations, weight bits) that the instructions multiply fast and without saturation, the best first. Without VNNI, the
# sum of two products is kept in 16 bits, which 8-bit weights overflow; ARM multiplies signed by signed
SCHEMES_BY_ISA: Mapping[Isa, tuple[tuple[str, int], ...]] = {
    "x86-64-vnni": (("uint8", 8), ("uint8", 7)),
    "x86-64-avx2": (("uint8", 7),),
    "arm64": (("int8", 8), ("uint8", 8)),
}
Rules = list[tuple[bool, str]]
AUGMENTATION_LIMITS = {"shift": 0.5, "scale": 0.9, "crop": 0.95, "rotate_degrees": 180, "brightness": 1, "saturation": 1, "erase": 1,
        "mixup": 2, "cutmix": 2}  # beyond these, nothing recognisable is left of an image  # fmt: skip


def _name_rule(name: str, *reserved: str) -> tuple[bool, str]:
    """Check a name that becomes a folder in the output: it must not lead out of it."""
    ok = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None and name not in reserved
    return ok, f"name = {name!r}: letters, digits, '-', '_' and '.', beginning with a letter or digit" + (
        f"; not {' or '.join(reserved)}" if reserved else ""
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
    """Check the height and width of an image.

    Returns:
        whether they are accepted (None is), and the message if they are not.
    """
    ok = size is None or all(8 <= side <= 4096 for side in size)
    return ok, f"{name} = {size}: height and width, each between 8 and 4096"


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
            f"prune.resolution = {value.resolution}: the smallest share of each side, from 0.25 to 1 (keep the size)",
        ),
        (value.rounds >= 1, f"prune.rounds = {value.rounds}: must be at least 1 (prune in one step)"),
        (
            value.rounds <= max(epochs, 1),
            f"prune.rounds = {value.rounds}: the rounds share recover.epochs = {epochs}, so at most {max(epochs, 1)}",
        ),
        (
            0 <= value.sparsity <= 1,
            f"prune.sparsity = {value.sparsity}: 0 for no penalty, or its strength, at most 1; try 1e-3",
        ),
        (
            value.sparse_epochs is None or value.sparsity > 0,
            f"prune.sparse_epochs = {value.sparse_epochs}: has no effect while prune.sparsity = 0; set it to 1e-3, for example",
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
            f"quantize.search_seconds = {value.quantize.search_seconds}: must not be negative; 0 for no search",
        ),
        *_auto_rules(value),
        *pixel_settings.check(value.model, "model"),
        *(pixel_settings.check_teacher(value.teacher) if value.teacher else ()),
        image_size_rule("image_size", value.image_size),
        *_prune_rules(value.prune, value.recover.epochs),
        (value.model.norm_eps is None or value.model.norm_eps > 0, "model.norm_eps must be above 0"),
        (value.release >= 0, f"release = {value.release}: must not be negative"),
        (value.seed >= 0, f"seed = {value.seed}: must not be negative"),
        (1 <= value.seeds <= 100, f"seeds = {value.seeds}: number of fine-tuning runs, from 1 to 100"),
        (0 <= value.balance <= 1, f"balance = {value.balance}: from 0 (accuracy) to 1 (balanced accuracy)"),
        (
            value.teacher is None or value.adapt.distill > 0,
            "teacher: has no effect while adapt.distill = 0; set it to 0.5, for example",
        ),
        *((join.weight > 0, f"join {join.domain!r}: weight = {join.weight}: must be above 0") for join in value.join),
        *(
            (join.images >= 0, f"join {join.domain!r}: images = {join.images}: must not be negative; 0 for all")
            for join in value.join
        ),
        *(
            (number >= 0, f"augment.{name} = {number}: must not be negative")
            for name, number in vars(value.augment).items()
            if number is not None
        ),
        *(
            (
                (getattr(value.augment, name) or 0) <= limit,
                f"augment.{name} = {getattr(value.augment, name)}: at most {limit}",
            )
            for name, limit in AUGMENTATION_LIMITS.items()
        ),
        *_budget_rules(value.budget),
    ]


def _auto_rules(value: Recipe) -> Rules:
    """Check that a recipe with model.name = "auto" sets nothing that depends on the model."""
    if not is_auto(value.model.name):
        return []
    properties = {field.name for field in dataclasses.fields(ModelSpec)} - {"name", "licence"}
    default = ModelSpec(name="")
    return [
        (
            getattr(value.model, name) == getattr(default, name),
            f"model.{name} = {getattr(value.model, name)!r}: with model.name = {value.model.name!r} every candidate brings its "
            "own; leave it out, or name the model",
        )
        for name in sorted(properties)
    ]  # fmt: skip


def _budget_rules(value: Budget) -> Rules:
    limits = {name: limit for name, limit in vars(value).items() if limit is not None}
    return [
        *(
            (limit >= 0, f"budget.{name} = {limit}: must be a number that is not negative")
            for name, limit in limits.items()
            if not isinstance(limit, str)
        ),
        *(
            (limits[name] < 1, f"budget.{name} = {limits[name]}: must be a share below 1; 0.05 is five points")
            for name in ("accuracy_drop", "balanced_drop")
            if name in limits
        ),
        (math.isfinite(limits.get("speedup", 1.0)), f"budget.speedup = {value.speedup}: must be a finite number"),
        *(_limit_rule(quantity, limits[quantity]) for quantity in budget_limits.UNITS if quantity in limits),
    ]


def _limit_rule(quantity: budget_limits.Quantity, text: str) -> tuple[bool, str]:
    try:
        budget_limits.parse(quantity, text)
    except ToolchainError as reason:
        return False, str(reason)
    return True, ""


def _target_rules(value: Target) -> Rules:
    runtimes = registry.list_modules("runtimes")
    if value.runtime not in runtimes:
        return [(False, f"runtime = {value.runtime!r}; {registry.suggest(value.runtime, runtimes)}")]
    supported = registry.load_module("runtimes", value.runtime).PRECISIONS
    unsupported = [precision for precision in value.precisions if precision not in supported]
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
        (
            not unsupported,
            f"precisions: {value.runtime} does not support {', '.join(unsupported)}; accepted: {', '.join(supported)}",
        ),
        (
            value.precisions[:1] == ("f32",),
            f"precisions = {value.precisions}: the first must be f32, which all others are compared with",
        ),
        (len(set(value.precisions)) == len(value.precisions), f"precisions = {value.precisions}: one is given twice"),
        *_budget_rules(value.budget),
        *_gate_rules(value.gate),
        *_package_rules(value.package, value.runtime),
    ]


def _package_rules(value: PackageSpec, runtime: str) -> Rules:
    module = registry.load_module("runtimes", runtime)
    supported = [*module.FORMS, *([C_ARRAY_FORM] if len(module.FILE_NAMES) == 1 else [])]
    unknown = next((form for form in value.forms if form not in supported), None)
    return [
        (unknown is None, f"package.forms: {runtime} has no {unknown!r}; {registry.suggest(str(unknown), supported)}"),
        (len(set(value.forms)) == len(value.forms), f"package.forms = {value.forms}: one is given twice"),
        image_size_rule("package.frame", value.frame),
        (
            value.frame is None or value.input == "uint8",
            f'package.frame = {value.frame}: needs input = "uint8", the form that takes camera frames',
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
    accepted = " or ".join(
        f"{activations} activations with {bits}-bit weights" for activations, bits in SCHEMES_BY_ISA[isa]
    )
    ok = (scheme.activations, scheme.weight_bits) in SCHEMES_BY_ISA[isa]
    return (
        ok,
        f"scheme: {isa} has no fast kernels for {scheme.activations} activations with {scheme.weight_bits}-bit weights; "
        f"accepted: {accepted}",
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
            not (value.classes and value.labels),
            f"classes and labels = {value.labels!r} both give the class names; keep one of them",
        ),
        (
            _has_group(value.group_pattern),
            f"group_pattern = {value.group_pattern!r}: a regular expression with one (group)",
        ),
    ]


def _has_group(pattern: str) -> bool:
    try:
        return not pattern or re.compile(pattern).groups >= 1
    except re.error:
        return False


def _shortlist_rules(value: Shortlist) -> Rules:
    names = [candidate.name for candidate in value.candidates]
    return [
        (bool(names), "no [[candidates]]; give at least one"),
        *((names.count(name) == 1, f"two candidates have the name {name!r}") for name in names),
        *(
            rule
            for candidate in value.candidates
            for rule in pixel_settings.check(candidate.model, f"{candidate.name}: model")
        ),
    ]


RULES_BY_KIND: Mapping[registry.ConfigKind, Any] = {
    "recipes": _recipe_rules,
    "targets": _target_rules,
    "calibration": _domain_rules,
    "shortlists": _shortlist_rules,
}
