"""Match a checkpoint's names with a model's: choose the state dict of the file, and remove what training code put before them.

Compiled, parallel and self-supervised training and frameworks around torch save a model's tensors under longer names
(`_orig_mod.`, `module.`, `model.`, `backbone.`). No list of prefixes is kept: the one that makes most values match with
their shapes is removed.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from torch import Tensor

from toolchain.models.sources import torchvision_hub

MIN_MATCHED_SHARE = 0.5  # of the backbone's values that a checkpoint must match in name and shape
PARALLEL_PREFIX = "module."
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of a part of a model


@dataclass(frozen=True)
class MatchedNames:
    """A state dict of a checkpoint under the model's names."""

    tensors: Mapping[str, Tensor]
    matched_values: int = 0  # of the model, in name and shape
    key: str = ""  # of the state dict in the file; "" for the file's content itself
    changes: tuple[str, ...] = ()  # to the names, in words
    other_keys: tuple[str, ...] = ()  # of further state dicts in the file that fit


def match_names(
    state_dicts: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor], backbone: Set[str]
) -> MatchedNames:
    """Return the state dict that matches most of the backbone's values, under the model's names.

    Args:
        state_dicts: tensors by name, by their key in the file; the likeliest first, which is taken where several fit.
        expected: the model's tensors by name.
        backbone: the names that count.
    """
    wanted = {name: expected[name] for name in backbone}
    enough = max(1, MIN_MATCHED_SHARE * sum(tensor.numel() for tensor in wanted.values()))
    key, tensors = next(iter(state_dicts.items()), ("", {}))
    simplest = _remove_prefix(PARALLEL_PREFIX, key, tensors, wanted)
    matches = [_match(key, tensors, wanted) for key, tensors in state_dicts.items()]
    best = simplest
    if simplest.matched_values < enough:
        best = max([simplest, *matches], key=lambda match: match.matched_values)
    others = tuple(match.key for match in matches if match.matched_values >= enough and match.key != best.key)
    return MatchedNames(best.tensors, best.matched_values, best.key, best.changes, others)


def _match(key: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> MatchedNames:
    """Return the tensors under the names that match most values: without a prefix, and without what wraps parts."""
    renamings: dict[str, Callable[[str], str]] = {
        "": str,
        f"{' and '.join(_list_wrappers(tensors))} removed inside the names": _remove_wrappers,
        "old names of torchvision's densenets renewed": torchvision_hub.renew_name,
    }
    matches = []
    for change, rename in renamings.items():
        renamed = {rename(name): tensor for name, tensor in tensors.items()}
        match = _remove_prefix(_find_prefix(renamed, wanted), key, renamed, wanted)
        changes = (*match.changes, change) if change else match.changes
        matches.append(MatchedNames(match.tensors, match.matched_values, key, changes))
    return max(matches, key=lambda match: match.matched_values)


def _remove_prefix(prefix: str, key: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> MatchedNames:
    renamed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    matched = sum(
        tensor.numel() for name, tensor in renamed.items() if name in wanted and wanted[name].shape == tensor.shape
    )
    changed = prefix and any(name.startswith(prefix) for name in tensors)
    return MatchedNames(renamed, matched, key, (f"prefix {prefix!r} removed from the names",) if changed else ())


def _find_prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return what stands before most of the names, counted by the values that then match in name and shape."""
    matched_values = Counter[str]({"": 0})
    for name, tensor in tensors.items():
        parts = name.split(".")
        for start in range(len(parts)):
            target = wanted.get(".".join(parts[start:]))
            if target is not None and target.shape == tensor.shape:
                matched_values[name.removesuffix(".".join(parts[start:]))] += tensor.numel()
    return max(matched_values, key=lambda prefix: matched_values[prefix])


def _list_wrappers(tensors: Mapping[str, Tensor]) -> list[str]:
    parts = {part for name in tensors for part in name.split(".")}
    return [f"'{wrapper}.'" for wrapper in WRAPPERS if wrapper in parts]


def _remove_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
