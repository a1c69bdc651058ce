"""Read checkpoints and published weights, and load them into a backbone, with a record of which tensors matched."""

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
from toolchain.models.sources import timm_hub, torchvision_hub


@dataclass(frozen=True)
class LoadedWeights:
    """How far a checkpoint matched the backbone; the head does not count."""

    source: str
    sha256: str
    share: float  # of the backbone's values, not of its tensors
    missing: tuple[str, ...]  # tensors of the backbone that the checkpoint does not have
    unexpected: tuple[str, ...]  # tensors of the checkpoint that the model does not have
    reshaped: tuple[str, ...]  # tensors that have another shape in the checkpoint

    def __str__(self) -> str:
        text = f"{self.source}: {self.share:.0%} of the backbone loaded"
        mismatches = (("missing", self.missing), ("not used", self.unexpected), ("other shape", self.reshaped))
        for label, names in mismatches:
            if names:
                rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
                text += f"; {label}: {', '.join(names[:4])}{rest}"
        return text


def weights_digest(spec: ModelSpec) -> str:
    """Return what identifies the weights in a cache key: the hash of a file, or the name of published weights.

    Raises:
        ToolchainError: the file does not exist.
    """
    path = _weights_file(spec.weights)
    return files.sha256_file(_check_exists(path)) if path else spec.weights


def _weights_file(weights: str) -> Path | None:
    """Return the file that `weights` names; None for random and for published weights."""
    if weights.startswith("zoo:"):
        path = registry.PACKAGE_FOLDER / "models" / "zoo" / f"{weights.removeprefix('zoo:')}.safetensors"
        if not path.exists():
            names = [f"zoo:{file.stem}" for file in path.parent.glob("*.safetensors")]
            raise ToolchainError(f"there are no weights {weights!r}; {registry.suggest(weights, names)}")
        return path
    return Path(weights) if "." in weights or "/" in weights else None


def _check_exists(path: Path) -> Path:
    if not path.is_file():
        raise ToolchainError(
            f"weights file {path} does not exist; give one with WEIGHTS=file or --weights file, in `select` with a shortlist"
        )
    return path


def read_checkpoint(spec: ModelSpec) -> tuple[Mapping[str, Tensor], str, str]:
    """Read the weights that a model specification names: a file, published weights, or none.

    Returns:
        The tensors by name, where they come from in words, and what identifies them (hash or name).

    Raises:
        ToolchainError: the file does not exist, is not a checkpoint, could run code, or holds values that are not finite;
            or the published weights are unknown or cannot be downloaded.
    """
    if not spec.weights:
        return {}, "random initialisation", ""
    path = _weights_file(spec.weights)
    if path is None:
        return _download(spec), f"{_describe_source(spec.name)} {spec.weights}", spec.weights
    tensors = _read_file(_check_exists(path))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ToolchainError(
                f"{path}: {name} holds NaN or infinite values, so the checkpoint is damaged; use another one"
            )
    return tensors, path.name, files.sha256_file(path)


def _read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a state_dict that torch saved, without running code."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as reason:
        raise ToolchainError(f"{path} is not a readable checkpoint: {first_line(reason)}") from reason
    except Exception as reason:
        if "weights_only" in str(reason).lower() or "Unpickl" in type(reason).__name__:
            raise ToolchainError(
                f"{path} holds more than tensors and could run code when it is read, so it is not read; save its "
                "state_dict as safetensors and pass that file"
            ) from reason
        raise
    if not isinstance(state, Mapping):
        raise ToolchainError(f"{path} holds a {type(state).__name__}; expected is a state_dict, tensors by name")
    nested = [value for value in state.values() if isinstance(value, Mapping) and _select_tensors(value)]
    if nested and not _select_tensors(state):  # as training scripts save it: {"state_dict": ..., "epoch": ...}
        state = max(nested, key=lambda value: len(_select_tensors(value)))
    return _select_tensors(state)


def _select_tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}


def _download(spec: ModelSpec) -> Mapping[str, Tensor]:
    if spec.name.startswith(timm_hub.PREFIX):
        return timm_hub.download_weights(spec.name)
    return torchvision_hub.download_weights(spec.name, spec.weights)


def _describe_source(model_name: str) -> str:
    """Return the library and the model's name."""
    return model_name.replace(":", " ") if model_name.startswith(timm_hub.PREFIX) else f"torchvision {model_name}"


def load_backbone(
    model: nn.Module, state: Mapping[str, Tensor], fresh: tuple[str, ...], source: str, digest: str
) -> LoadedWeights:
    """Load the tensors that match in name and shape into `model`, in place, except into the modules `fresh`.

    Args:
        model: the network.
        state: the checkpoint's tensors by name.
        fresh: names of modules that keep their random weights, the head among them.
        source: where the checkpoint comes from, for the record.
        digest: what identifies the checkpoint, for the record.
    """
    expected = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    backbone = {name for name in expected if not name.startswith(tuple(f"{module}." for module in fresh))}
    matching = {name: t for name, t in state.items() if name in expected and t.shape == expected[name].shape}
    # a head for as many other classes has a matching shape by coincidence, so only the backbone is loaded
    model.load_state_dict({name: t for name, t in matching.items() if name in backbone}, strict=False)
    total = sum(expected[name].numel() for name in backbone)
    share = sum(expected[name].numel() for name in backbone & matching.keys()) / max(total, 1)
    return LoadedWeights(
        source=source,
        sha256=digest,
        share=share,
        missing=tuple(sorted(backbone - state.keys())),
        unexpected=tuple(
            sorted(name for name in state if name not in expected and not name.endswith("num_batches_tracked"))
        ),
        reshaped=tuple(sorted(name for name in backbone & state.keys() if name not in matching)),
    )
