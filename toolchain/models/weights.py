"""Read checkpoints and published weights, and load them into a backbone, with a record of which tensors matched."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from toolchain.config import model_reference
from toolchain.config.recipe import ModelSpec
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError
from toolchain.models import checkpoint_files
from toolchain.models.match_names import match_names
from toolchain.models.sources import timm_hub, torchvision_hub

# only to list the files in a folder; all are read by content
CHECKPOINT_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"}
STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file or of published weights, before they are matched with a model."""

    source: str  # in words
    sha256: str  # or the name of published weights
    state_dicts: Mapping[str, Mapping[str, Tensor]]  # by their key in the file, the likeliest first


@dataclass(frozen=True)
class LoadedWeights:
    """How far a checkpoint matched the backbone; the head does not count."""

    source: str
    sha256: str
    share: float  # of the backbone's values, not of its tensors
    missing: tuple[str, ...]  # tensors of the backbone that the checkpoint does not have
    unexpected: tuple[str, ...]  # tensors of the checkpoint that the model does not have
    reshaped: tuple[str, ...]  # tensors that have another shape in the checkpoint
    key: str = ""  # of the state dict in the checkpoint, such as "state_dict"; "" for the checkpoint's content itself
    other_keys: tuple[str, ...] = ()  # of further state dicts in the checkpoint that would fit
    name_changes: tuple[str, ...] = ()  # in words, such as a prefix that was removed
    lacks_head: bool = False  # no tensors of the head in it; not said of a cut network, whose head is its own

    @property
    def layers_without_statistics(self) -> tuple[str, ...]:
        """Batch-norm layers whose running mean or variance the checkpoint lacks, although it has their other tensors."""
        absent = {*self.missing, *self.reshaped}
        layers = dict.fromkeys(name.rpartition(".")[0] for name in self.missing if name.endswith(STATISTICS))
        return tuple(layer for layer in layers if f"{layer}.weight" not in absent)

    def __str__(self) -> str:
        text = f"{self.source}: {self.share:.0%} of the backbone loaded"
        if self.key:
            text += f" from its {self.key!r}"
        if self.other_keys:
            text += (
                f" (it also holds {', '.join(map(repr, self.other_keys))}: to use that, save it as a file of its own)"
            )
        text += "".join(f"; {change}" for change in self.name_changes)
        text += "; it has no head, so the head is new" if self.lacks_head else ""
        layers = self.layers_without_statistics
        missing = tuple(name for name in self.missing if _layer_of_statistics(name) not in layers)
        mismatches = (("missing", missing), ("not used", self.unexpected), ("other shape", self.reshaped))
        for label, names in mismatches:
            if names:
                rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
                text += f"; {label}: {', '.join(names[:4])}{rest}"
        return text + (f". {_warn_of_statistics(layers)}" if layers else "")


def _layer_of_statistics(name: str) -> str:
    """Return the batch-norm layer whose running mean or variance `name` is; "" for any other tensor."""
    return name.rpartition(".")[0] if name.endswith(STATISTICS) else ""


def _warn_of_statistics(layers: tuple[str, ...]) -> str:
    named = ", ".join(layers[:2]) + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")
    return (
        f"Warning: it lacks the running statistics (running_mean, running_var) of the batch-norm layers {named}, which start "
        "from mean 0 and variance 1. Fine-tuning estimates them anew unless it freezes batch norm (freeze_norm, or few "
        "images per class); a checkpoint that has them is a better start"
    )


def weights_digest(spec: ModelSpec) -> str:
    """Return what identifies the weights in a cache key: the hash of a file, or the name of published weights.

    Raises:
        ToolchainError: the file does not exist.
    """
    path = find_weights_file(spec.weights)
    return files.sha256_file(_check_exists(path)) if path else spec.weights


def find_weights_file(weights: str) -> Path | None:
    """Return the file that `weights` names; None for random and for published weights."""
    if weights.startswith("zoo:"):
        path = registry.PACKAGE_FOLDER / "models" / "zoo" / f"{weights.removeprefix('zoo:')}.safetensors"
        if not path.exists():
            names = [f"zoo:{file.stem}" for file in path.parent.glob("*.safetensors")]
            raise ToolchainError(f"there are no weights {weights!r}; {registry.suggest(weights, names)}")
        return path
    return Path(weights) if "." in weights or "/" in weights else None


def _check_exists(path: Path) -> Path:
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.suffix in CHECKPOINT_SUFFIXES)
        inside = f"one of those in it: {', '.join(names[:5])}" if names else "one"
        raise ToolchainError(f"weights {path} is a folder, not a checkpoint file; give {inside}")
    if not path.is_file():
        raise ToolchainError(
            f"weights file {path} does not exist; give one with WEIGHTS=file or --weights file, in `select` with a shortlist"
        )
    return path


def read_checkpoint(spec: ModelSpec) -> Checkpoint:
    """Read the weights that a model specification names: a file, published weights, or none.

    Raises:
        ToolchainError: the file does not exist, is not a checkpoint or could run code; or the published weights are unknown
            or cannot be downloaded.
    """
    if not spec.weights:
        return Checkpoint("random initialisation", "", {})
    path = find_weights_file(spec.weights)
    if path is None:
        return Checkpoint(f"{_describe_source(spec.name)} {spec.weights}", spec.weights, {"": _download(spec)})
    state_dicts = checkpoint_files.read_state_dicts(_check_exists(path))
    return Checkpoint(path.name, files.sha256_file(path), state_dicts)


def _download(spec: ModelSpec) -> Mapping[str, Tensor]:
    if model_reference.parse(spec.name):
        raise ToolchainError(
            f"weights = {spec.weights!r}: {spec.name} has no published weights; give a checkpoint file with --weights file"
        )
    if spec.name.startswith(timm_hub.PREFIX):
        return timm_hub.download_weights(spec.name)
    return torchvision_hub.download_weights(spec.name, spec.weights)


def _describe_source(model_name: str) -> str:
    """Return the library and the model's name."""
    return model_name.replace(":", " ") if model_name.startswith(timm_hub.PREFIX) else f"torchvision {model_name}"


def load_backbone(
    model: nn.Module, checkpoint: Checkpoint, fresh: tuple[str, ...], *, is_cut: bool = False
) -> tuple[LoadedWeights, Mapping[str, Tensor]]:
    """Load the tensors that match in name and shape into `model`, in place, except into the modules `fresh`.

    Args:
        model: the network.
        checkpoint: the tensors.
        fresh: names of modules that keep their random weights, the head first.
        is_cut: whether the network ends early, so that further tensors of the checkpoint do not count as unused.

    Returns:
        The record, and the checkpoint's tensors under the model's names.

    Raises:
        ToolchainError: the tensors hold NaN or infinite values, or are quantized.
    """
    expected = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    backbone = {name for name in expected if not name.startswith(tuple(f"{module}." for module in fresh))}
    match = match_names(checkpoint.state_dicts, expected, backbone)
    _check_values(checkpoint.source, match.tensors, expected)
    state = {name: tensor for name, tensor in match.tensors.items() if not is_cut or name in model.state_dict()}
    matching = {name: t for name, t in state.items() if name in expected and t.shape == expected[name].shape}
    # a head for as many other classes has a matching shape by coincidence, so only the backbone is loaded
    model.load_state_dict({name: t for name, t in matching.items() if name in backbone}, strict=False)
    total = sum(expected[name].numel() for name in backbone)
    loaded = LoadedWeights(
        source=checkpoint.source,
        sha256=checkpoint.sha256,
        share=sum(expected[name].numel() for name in backbone & matching.keys()) / max(total, 1),
        missing=tuple(sorted(backbone - state.keys())),
        unexpected=tuple(
            sorted(name for name in state if name not in expected and not name.endswith("num_batches_tracked"))
        ),
        reshaped=tuple(sorted(name for name in backbone & state.keys() if name not in matching)),
        key=match.key,
        other_keys=match.other_keys,
        name_changes=match.changes,
        lacks_head=not is_cut and not any(name.startswith(f"{fresh[0]}.") for name in state),
    )
    return loaded, state


def load_matching(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the tensors that match in name and shape into `model`, in place, those of its head among them."""
    expected = model.state_dict()
    matching = {name: t for name, t in state.items() if name in expected and t.shape == expected[name].shape}
    model.load_state_dict(matching, strict=False)


def _check_values(source: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            if not tensor.isfinite().all():
                raise ToolchainError(
                    f"{source}: {name} holds NaN or infinite values, so the checkpoint is damaged; use another one"
                )
        elif name in expected and expected[name].is_floating_point():
            raise ToolchainError(
                f"{source}: {name} holds {str(tensor.dtype).removeprefix('torch.')} values where the model has floating-point "
                "values; give the float checkpoint that this one was quantized from"
            )
