"""Builds a classifier of torchvision or timm for a domain's classes and loads pretrained weights into it, saying what matched."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec, ReuseSpec
from toolchain.core import registry
from toolchain.core.errors import ToolchainError, first_line
from toolchain.core.types import Preprocessing
from toolchain.models import blocks
from toolchain.models.padding import _padded
from toolchain.models.sources import timm_hub
from toolchain.models.sources.torchvision_hub import list_models
from toolchain.models.sources.torchvision_import import import_torchvision
from toolchain.models.weights import LoadedWeights, _load, _read

MIN_MATCHED_SHARE = 0.5  # share of the backbone's values that a checkpoint must bring
WHOLE_NETWORK = ReuseSpec()


def build_with_new_head(
    spec: ModelSpec, classes: int, *, seed: int, reuse: ReuseSpec = WHOLE_NETWORK
) -> tuple[nn.Module, str, LoadedWeights]:
    """A model with a new head for `classes`, the head's module name, and what was loaded.

    Raises:
        ToolchainError: unknown model, block or argument; unreadable, foreign or non-finite weights.
    """
    return _built_from(spec, classes, seed, reuse)[:3]


def _built_from(
    spec: ModelSpec, classes: int, seed: int, reuse: ReuseSpec
) -> tuple[nn.Module, str, LoadedWeights, Mapping[str, Tensor]]:
    """As `build`, with the checkpoint's tensors last."""
    torch.manual_seed(seed)
    model = build_untrained(spec, classes, reuse)
    head = find_head(model, classes)
    state, source, digest = _read(spec)
    left = blocks.modules_between(model, head, first=reuse.fresh) if reuse.fresh else ()
    if reuse.keep:  # what was cut off is not missed
        state = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
    loaded = (
        _load(model, state, (head, *left), source, digest)
        if spec.weights
        else LoadedWeights(source, digest, 0.0, (), (), ())
    )
    if spec.weights and loaded.share < MIN_MATCHED_SHARE and not _only_architecture(model, head, reuse):
        raise ToolchainError(
            f"{source} does not fit {spec.name}: only {loaded.share:.0%} of the backbone's values match in name and shape; "
            "check [model] name and arguments (width_mult, …) against the checkpoint"
        )
    return model, head, loaded, state


def build_with_pretrained_head(
    spec: ModelSpec, classes: int, *, seed: int
) -> tuple[nn.Module, str, LoadedWeights, bool]:
    """As `build`, but with the head that the checkpoint brings; last, whether it brings one. Without one: for `classes`.

    Raises:
        ToolchainError: as `build`.
    """
    model, head, loaded, state = _built_from(spec, classes, seed, WHOLE_NETWORK)
    own, fresh = state.get(f"{head}.weight"), model.get_submodule(head).weight
    assert isinstance(fresh, Tensor)
    if own is None or own.shape[1:] != fresh.shape[1:]:
        return model, head, loaded, False
    whole = build_untrained(spec, len(own))
    named = whole.state_dict()
    whole.load_state_dict({k: v for k, v in state.items() if k in named and named[k].shape == v.shape}, strict=False)
    return whole, find_head(whole, len(own)), loaded, True


def _only_architecture(model: nn.Module, head: str, reuse: ReuseSpec) -> bool:
    return bool(reuse.fresh) and reuse.fresh == blocks.find(model, head)[0].name


def build_untrained(spec: ModelSpec, classes: int, reuse: ReuseSpec = WHOLE_NETWORK) -> nn.Module:
    """The untrained model, cut where `reuse` says.

    Raises:
        ToolchainError: unknown model or block, a refused argument, or weights that are to start anew and stay so.
    """
    model = _built(spec, classes)
    if spec.norm_eps is not None:
        for module in model.modules():
            if isinstance(module, blocks.NORM_LAYERS):
                module.eps = spec.norm_eps
    if spec.padding == "tensorflow":
        for parent in model.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.padding != (0, 0):
                    setattr(parent, name, _padded(child))
    head = find_head(model, classes)
    if reuse.fresh and reuse.freeze:
        blocks.check_freeze_before_fresh(model, head, freeze=reuse.freeze, fresh=reuse.fresh)
    return blocks.cut(model, head, reuse.keep, classes) if reuse.keep else model


def build_for_image_size(
    spec: ModelSpec, classes: int, image: Tensor, reuse: ReuseSpec | Literal["auto"] = WHOLE_NETWORK
) -> nn.Module:
    """The untrained model, after it took a picture of the job's size.

    Args:
        image: an example, float32 [1, 3, height, width].

    Raises:
        ToolchainError: as `architecture`; or the model does not take pictures of this size.
    """
    assert reuse != "auto", "settled before a model is built"
    model = build_untrained(spec, classes, reuse).eval()
    try:
        with torch.no_grad():
            model(image)
    except Exception as reason:  # networks' own asserts among them
        height, width = image.shape[2:]
        raise ToolchainError(
            f"{spec.name} does not take pictures of {height}x{width}: {first_line(reason)}"
        ) from reason
    return model


def _built(spec: ModelSpec, classes: int) -> nn.Module:
    if spec.name.startswith(timm_hub.PREFIX):
        return timm_hub.build_untrained(spec.name, classes, spec.arguments)
    library = import_torchvision().models
    if spec.name not in list_models():
        raise ToolchainError(
            f"there is no model {spec.name!r} in torchvision; {registry.suggest(spec.name, list_models())}"
        )
    try:
        model = library.get_model(spec.name, weights=None, num_classes=classes, **spec.arguments)
    except (TypeError, ValueError) as reason:
        raise ToolchainError(f"[model] arguments {dict(spec.arguments)} do not suit {spec.name}: {reason}") from reason
    assert isinstance(model, nn.Module)
    return model


def renormalize_input(model: nn.Module, preprocess: Preprocessing, spec: ModelSpec) -> nn.Module:
    """Lets a teacher see pixels normalised for its student: they are scaled to what its own weights expect."""
    if (preprocess.mean, preprocess.std) == (spec.mean, spec.std):
        return model
    given, own = torch.tensor(preprocess.std), torch.tensor(spec.std)
    scale = (given / own).view(1, 3, 1, 1)
    shift = ((torch.tensor(preprocess.mean) - torch.tensor(spec.mean)) / own).view(1, 3, 1, 1)
    model.register_forward_pre_hook(lambda _, images: (images[0] * scale + shift,))
    return model


def find_head(model: nn.Module, classes: int) -> str:
    """Name of the layer that gives the class scores: the last linear layer or convolution with that many outputs."""
    found = ""
    for name, module in model.named_modules():
        linear, convolution = isinstance(module, nn.Linear), isinstance(module, nn.Conv2d)
        if (linear or convolution) and getattr(module, "out_features" if linear else "out_channels") == classes:
            found = name
    if not found:
        raise ToolchainError(f"no layer of this {type(model).__name__} gives {classes} class scores")
    return found
