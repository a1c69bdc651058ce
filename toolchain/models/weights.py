"""Weights: carried out of a larger module; to be described."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError, first_line
from toolchain.models.sources import timm_hub
from toolchain.models.sources.torchvision_hub import _published


@dataclass(frozen=True)
class LoadedWeights:
    """What a checkpoint brought: shares count values, not tensors; the head is left out of them."""

    source: str
    sha256: str
    share: float
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.source}: {self.share:.0%} of the backbone loaded"
        for what, names in (("missing", self.missing), ("not used", self.unexpected), ("other shape", self.reshaped)):
            if names:
                text += f"; {what}: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return text


def weights_digest(spec: ModelSpec) -> str:
    """What identifies the weights in a stage's key: the bytes of a file, or the name of published weights."""
    path = _local(spec.weights)
    return files.sha256_file(_present(path)) if path else spec.weights


def _local(weights: str) -> Path | None:
    """The file that `weights` means; None for random and for torchvision's own."""
    if weights.startswith("zoo:"):
        path = registry.PACKAGE_FOLDER / "models" / "zoo" / f"{weights.removeprefix('zoo:')}.safetensors"
        if not path.exists():
            raise ToolchainError(
                f"weights = {weights!r}; {registry.suggest(weights, [f'zoo:{p.stem}' for p in path.parent.glob('*.safetensors')])}"
            )
        return path
    return Path(weights) if "." in weights or "/" in weights else None


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ToolchainError(
            f"weights file {path} is not there; name one: WEIGHTS=file or --weights file, in `select` a shortlist"
        )
    return path


def _read(spec: ModelSpec) -> tuple[Mapping[str, Tensor], str, str]:
    if not spec.weights:
        return {}, "random initialisation", ""
    path = _local(spec.weights)
    if path is None:
        return _published(spec), f"{_library(spec.name)} {spec.weights}", spec.weights
    _present(path)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as reason:
        raise ToolchainError(f"{path} is not a readable checkpoint: {first_line(reason)}") from reason
    except Exception as reason:
        if "weights_only" in str(reason).lower() or "Unpickl" in type(reason).__name__:
            raise ToolchainError(
                f"{path} holds more than tensors and could run code when it is read; refused. "
                "Save its state_dict as safetensors and pass that file"
            ) from reason
        raise
    if not isinstance(state, Mapping):
        raise ToolchainError(f"{path} holds a {type(state).__name__}; wanted is a state_dict, tensors by name")
    nested = [value for value in state.values() if isinstance(value, Mapping) and _tensors(value)]
    if nested and not _tensors(state):  # as training scripts save it: {"state_dict": ..., "epoch": ...}
        state = max(nested, key=lambda value: len(_tensors(value)))
    tensors = _tensors(state)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ToolchainError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")
    return tensors, path.name, files.sha256_file(path)


def _library(name: str) -> str:
    """A model's name with its library's before it."""
    return name.replace(":", " ") if name.startswith(timm_hub.PREFIX) else f"torchvision {name}"


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}


def _load(
    model: nn.Module, state: Mapping[str, Tensor], fresh: tuple[str, ...], source: str, digest: str
) -> LoadedWeights:
    """Takes over all but the modules that start anew."""
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    backbone = {k for k in own if not k.startswith(tuple(f"{name}." for name in fresh))}
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    # a head for as many other classes has the right shape by chance: only the backbone is taken over
    model.load_state_dict({k: v for k, v in fits.items() if k in backbone}, strict=False)
    total = sum(own[k].numel() for k in backbone)
    share = sum(own[k].numel() for k in backbone & fits.keys()) / max(total, 1)
    unexpected = sorted(k for k in state if k not in own and not k.endswith("num_batches_tracked"))
    reshaped = sorted(k for k in backbone & state.keys() if k not in fits)
    return LoadedWeights(
        source, digest, share, tuple(sorted(backbone - state.keys())), tuple(unexpected), tuple(reshaped)
    )
