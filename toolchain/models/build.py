"""Builds a classifier of torchvision or timm for a domain's classes and loads pretrained weights into it, saying what matched."""

import re
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from toolchain import blocks, discover, records, timm_models
from toolchain.errors import ToolchainError, brief
from toolchain.reuse import Reuse
from toolchain.values import ModelSpec, Preprocess
from toolchain.vision import torchvision

LEAST_MATCH = 0.5  # share of the backbone's values that a checkpoint must bring
WHOLE = Reuse()


@dataclass(frozen=True)
class Loaded:
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


def known() -> list[str]:
    """Names of torchvision's classifiers."""
    library = torchvision().models
    names: list[str] = library.list_models(module=library)
    return names


def weights_digest(spec: ModelSpec) -> str:
    """What identifies the weights in a stage's key: the bytes of a file, or the name of published weights."""
    path = _local(spec.weights)
    return records.sha256_file(_present(path)) if path else spec.weights


def _local(weights: str) -> Path | None:
    """The file that `weights` means; None for random and for torchvision's own."""
    if weights.startswith("zoo:"):
        path = discover.PACKAGE / "zoo" / f"{weights.removeprefix('zoo:')}.safetensors"
        if not path.exists():
            raise ToolchainError(
                f"weights = {weights!r}; {discover.nearest(weights, [f'zoo:{p.stem}' for p in path.parent.glob('*.safetensors')])}"
            )
        return path
    return Path(weights) if "." in weights or "/" in weights else None


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ToolchainError(
            f"weights file {path} is not there; name one: WEIGHTS=file or --weights file, in `select` a shortlist"
        )
    return path


def build(spec: ModelSpec, classes: int, *, seed: int, reuse: Reuse = WHOLE) -> tuple[nn.Module, str, Loaded]:
    """A model with a new head for `classes`, the head's module name, and what was loaded.

    Raises:
        ToolchainError: unknown model, block or argument; unreadable, foreign or non-finite weights.
    """
    return _built_from(spec, classes, seed, reuse)[:3]


def _built_from(
    spec: ModelSpec, classes: int, seed: int, reuse: Reuse
) -> tuple[nn.Module, str, Loaded, Mapping[str, Tensor]]:
    """As `build`, with the checkpoint's tensors last."""
    torch.manual_seed(seed)
    model = architecture(spec, classes, reuse)
    head = head_of(model, classes)
    state, source, digest = _read(spec)
    left = blocks.between(model, head, first=reuse.fresh) if reuse.fresh else ()
    if reuse.keep:  # what was cut off is not missed
        state = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
    loaded = (
        _load(model, state, (head, *left), source, digest) if spec.weights else Loaded(source, digest, 0.0, (), (), ())
    )
    if spec.weights and loaded.share < LEAST_MATCH and not _only_architecture(model, head, reuse):
        raise ToolchainError(
            f"{source} does not fit {spec.name}: only {loaded.share:.0%} of the backbone's values match in name and shape; "
            "check [model] name and arguments (width_mult, …) against the checkpoint"
        )
    return model, head, loaded, state


def pretrained(spec: ModelSpec, classes: int, *, seed: int) -> tuple[nn.Module, str, Loaded, bool]:
    """As `build`, but with the head that the checkpoint brings; last, whether it brings one. Without one: for `classes`.

    Raises:
        ToolchainError: as `build`.
    """
    model, head, loaded, state = _built_from(spec, classes, seed, WHOLE)
    own, fresh = state.get(f"{head}.weight"), model.get_submodule(head).weight
    assert isinstance(fresh, Tensor)
    if own is None or own.shape[1:] != fresh.shape[1:]:
        return model, head, loaded, False
    whole = architecture(spec, len(own))
    named = whole.state_dict()
    whole.load_state_dict({k: v for k, v in state.items() if k in named and named[k].shape == v.shape}, strict=False)
    return whole, head_of(whole, len(own)), loaded, True


def _only_architecture(model: nn.Module, head: str, reuse: Reuse) -> bool:
    return bool(reuse.fresh) and reuse.fresh == blocks.of(model, head)[0].name


def architecture(spec: ModelSpec, classes: int, reuse: Reuse = WHOLE) -> nn.Module:
    """The untrained model, cut where `reuse` says.

    Raises:
        ToolchainError: unknown model or block, a refused argument, or weights that are to start anew and stay so.
    """
    model = _built(spec, classes)
    if spec.norm_eps is not None:
        for module in model.modules():
            if isinstance(module, blocks.NORMS):
                module.eps = spec.norm_eps
    if spec.padding == "tensorflow":
        for parent in model.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.padding != (0, 0):
                    setattr(parent, name, _padded(child))
    head = head_of(model, classes)
    if reuse.fresh and reuse.freeze:
        blocks.apart(model, head, freeze=reuse.freeze, fresh=reuse.fresh)
    return blocks.cut(model, head, reuse.keep, classes) if reuse.keep else model


def sketch(spec: ModelSpec, classes: int, image: Tensor, reuse: Reuse | Literal["auto"] = WHOLE) -> nn.Module:
    """The untrained model, after it took a picture of the job's size.

    Args:
        image: an example, float32 [1, 3, height, width].

    Raises:
        ToolchainError: as `architecture`; or the model does not take pictures of this size.
    """
    assert reuse != "auto", "settled before a model is built"
    model = architecture(spec, classes, reuse).eval()
    try:
        with torch.no_grad():
            model(image)
    except Exception as reason:  # networks' own asserts among them
        height, width = image.shape[2:]
        raise ToolchainError(f"{spec.name} does not take pictures of {height}x{width}: {brief(reason)}") from reason
    return model


def _built(spec: ModelSpec, classes: int) -> nn.Module:
    if spec.name.startswith(timm_models.PREFIX):
        return timm_models.build(spec.name, classes, spec.arguments)
    library = torchvision().models
    if spec.name not in known():
        raise ToolchainError(f"there is no model {spec.name!r} in torchvision; {discover.nearest(spec.name, known())}")
    try:
        model = library.get_model(spec.name, weights=None, num_classes=classes, **spec.arguments)
    except (TypeError, ValueError) as reason:
        raise ToolchainError(f"[model] arguments {dict(spec.arguments)} do not suit {spec.name}: {reason}") from reason
    assert isinstance(model, nn.Module)
    return model


class SamePaddedConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does: where the total is odd, right and bottom get one more.

    Weights trained that way and padded evenly see everything half a step aside: a linear probe on TrashNet loses two
    points by it. In ONNX the padding becomes the convolution's own and costs nothing.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch names it so
        pads: list[int] = []
        for side, size, step, apart in zip(
            reversed(input.shape[2:]),
            reversed(self.kernel_size),
            reversed(self.stride),
            reversed(self.dilation),
            strict=True,
        ):
            total = max((-(-side // step) - 1) * step + (size - 1) * apart + 1 - side, 0)
            pads += [total // 2, total - total // 2]
        padded = nn.functional.pad(input, pads)
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _padded(child: nn.Conv2d) -> SamePaddedConv2d:
    made = SamePaddedConv2d(
        child.in_channels, child.out_channels, child.kernel_size, child.stride, 0, child.dilation, child.groups,  # type: ignore[arg-type]
        child.bias is not None,
    )  # fmt: skip
    made.load_state_dict(child.state_dict())
    return made


def expecting(model: nn.Module, preprocess: Preprocess, spec: ModelSpec) -> nn.Module:
    """Lets a teacher see pixels normalised for its student: they are scaled to what its own weights expect."""
    if (preprocess.mean, preprocess.std) == (spec.mean, spec.std):
        return model
    given, own = torch.tensor(preprocess.std), torch.tensor(spec.std)
    scale = (given / own).view(1, 3, 1, 1)
    shift = ((torch.tensor(preprocess.mean) - torch.tensor(spec.mean)) / own).view(1, 3, 1, 1)
    model.register_forward_pre_hook(lambda _, images: (images[0] * scale + shift,))
    return model


def head_of(model: nn.Module, classes: int) -> str:
    """Name of the layer that gives the class scores: the last linear layer or convolution with that many outputs."""
    found = ""
    for name, module in model.named_modules():
        linear, convolution = isinstance(module, nn.Linear), isinstance(module, nn.Conv2d)
        if (linear or convolution) and getattr(module, "out_features" if linear else "out_channels") == classes:
            found = name
    if not found:
        raise ToolchainError(f"no layer of this {type(model).__name__} gives {classes} class scores")
    return found


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
        raise ToolchainError(f"{path} is not a readable checkpoint: {brief(reason)}") from reason
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
    return tensors, path.name, records.sha256_file(path)


def _library(name: str) -> str:
    """A model's name with its library's before it."""
    return name.replace(":", " ") if name.startswith(timm_models.PREFIX) else f"torchvision {name}"


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}


def _published(spec: ModelSpec) -> Mapping[str, Tensor]:
    if spec.name.startswith(timm_models.PREFIX):
        return timm_models.weights(spec.name)
    library = torchvision().models
    enum = library.get_model_weights(spec.name)
    if spec.weights not in enum.__members__ and spec.weights != "DEFAULT":
        raise ToolchainError(
            f"weights = {spec.weights!r} is neither a file nor known for {spec.name}; "
            f"{discover.nearest(spec.weights, list(dict.fromkeys(['DEFAULT', *enum.__members__])))}"
        )
    try:
        state: Mapping[str, Tensor] = enum[spec.weights].get_state_dict(progress=True, check_hash=True)
    except (urllib.error.URLError, OSError) as reason:
        raise ToolchainError(
            f"the weights {spec.weights} of {spec.name} cannot be downloaded ({reason}); "
            "download them elsewhere and name the file: WEIGHTS=file or --weights file, in `select` a shortlist"
        ) from reason
    # torchvision's own loader renames these for its densenets
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", name): t for name, t in state.items()}


def _load(model: nn.Module, state: Mapping[str, Tensor], fresh: tuple[str, ...], source: str, digest: str) -> Loaded:
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
    return Loaded(source, digest, share, tuple(sorted(backbone - state.keys())), tuple(unexpected), tuple(reshaped))
