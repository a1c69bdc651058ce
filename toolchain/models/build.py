"""Build a classifier of torchvision or timm for a domain's classes, and load pretrained weights into its backbone."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from toolchain.config import model_reference
from toolchain.config.recipe import ModelSpec, ReuseSpec
from toolchain.core import registry
from toolchain.core.errors import ToolchainError, first_line
from toolchain.core.types import Preprocessing
from toolchain.models import blocks
from toolchain.models.match_names import MIN_MATCHED_SHARE
from toolchain.models.new_head import check_logits, replace_head
from toolchain.models.padding import pad_like_tensorflow
from toolchain.models.sources import python_file, timm_hub, user_code
from toolchain.models.sources.torchvision_hub import list_models
from toolchain.models.sources.torchvision_import import import_torchvision
from toolchain.models.weights import LoadedWeights, load_backbone, load_matching, read_checkpoint

WHOLE_NETWORK = ReuseSpec()


class NoHeadError(ToolchainError):
    """No layer of a model has one output per class."""


def build_with_new_head(
    spec: ModelSpec, classes: int, *, seed: int, reuse: ReuseSpec = WHOLE_NETWORK
) -> tuple[nn.Module, str, LoadedWeights]:
    """Build a model with pretrained weights and a new head.

    Args:
        spec: architecture and weights.
        classes: outputs of the head.
        seed: of the random weights.
        reuse: where the network is cut, and which blocks start from random weights.

    Returns:
        The model, the name of its head, and which weights were loaded.

    Raises:
        ToolchainError: unknown model, block or argument; weights that cannot be read, do not fit or are not finite.
    """
    return _build_and_load(spec, classes, seed, reuse)[:3]


def _build_and_load(
    spec: ModelSpec, classes: int, seed: int, reuse: ReuseSpec
) -> tuple[nn.Module, str, LoadedWeights, Mapping[str, Tensor]]:
    """As `build_with_new_head`, with the checkpoint's tensors last."""
    torch.manual_seed(seed)
    model = build_untrained(spec, classes, reuse)
    head = find_head(model, classes)
    checkpoint = read_checkpoint(spec)
    fresh_modules = blocks.modules_between(model, head, first=reuse.fresh) if reuse.fresh else ()
    if not spec.weights:
        return model, head, LoadedWeights(checkpoint.source, checkpoint.sha256, 0.0, (), (), ()), {}
    loaded, state = load_backbone(model, checkpoint, (head, *fresh_modules), is_cut=bool(reuse.keep))
    if loaded.share < MIN_MATCHED_SHARE and not _uses_architecture_only(model, head, reuse):
        raise ToolchainError(
            f"{checkpoint.source} does not fit {spec.name}: only {loaded.share:.0%} of the backbone's values match in name and "
            "shape; check [model] name and arguments (width_mult, …) against the checkpoint"
        )
    return model, head, loaded, state


def _uses_architecture_only(model: nn.Module, head: str, reuse: ReuseSpec) -> bool:
    """Return whether all blocks start from random weights."""
    return bool(reuse.fresh) and reuse.fresh == blocks.find(model, head)[0].name


def build_with_pretrained_head(
    spec: ModelSpec, classes: int, *, seed: int
) -> tuple[nn.Module, str, LoadedWeights, bool]:
    """Build a model with the head of its checkpoint, or with a new one for `classes` where the checkpoint has none.

    Returns:
        The model, the name of its head, which weights were loaded, and whether the head is the checkpoint's.

    Raises:
        ToolchainError: as `build_with_new_head`.
    """
    model, head, loaded, state = _build_and_load(spec, classes, seed, WHOLE_NETWORK)
    pretrained, new = state.get(f"{head}.weight"), model.get_submodule(head).weight
    assert isinstance(new, Tensor)
    if pretrained is None or pretrained.shape[1:] != new.shape[1:]:
        return model, head, loaded, False
    source_classes = len(pretrained)
    model = build_untrained(spec, source_classes)
    load_matching(model, state)
    return model, find_head(model, source_classes), loaded, True


def build_trained(spec: ModelSpec, classes: int) -> tuple[nn.Module, str, LoadedWeights]:
    """Build a model that is trained already, with its own head.

    Args:
        spec: architecture and weights; without weights, the user's function returns the trained model.
        classes: outputs that the head must have.

    Returns:
        The model, the name of its head, and which weights were loaded.

    Raises:
        ToolchainError: as `build_with_new_head`; the weights do not cover the whole model, or the head has another number of
            outputs.
    """
    try:
        model, head, loaded, state = _build_and_load(spec, classes, 0, WHOLE_NETWORK)
    except NoHeadError as reason:
        raise ToolchainError(
            f"the model has to keep its head, but no layer of it has {classes} outputs, one for each class of the images. "
            "Name the model's own classes in its order: --labels FILE with one name a line"
        ) from reason
    if not spec.weights:
        if model_reference.parse(spec.name):
            return model, head, loaded
        raise ToolchainError(f"{spec.name} has no weights, so there is no trained head to keep; give --weights FILE")
    weight = state.get(f"{head}.weight")
    if weight is None or weight.shape != model.state_dict()[f"{head}.weight"].shape:
        outputs = f"{len(weight)} outputs" if weight is not None else "no values in the checkpoint"
        raise ToolchainError(
            f"the head {head} of {loaded.source} has {outputs}, and the images have {classes} classes. Name the model's own "
            'classes in its order: --labels FILE with one name a line; or let it have a new head: head = "new"'
        )
    if absent := [*loaded.missing, *loaded.reshaped]:
        raise ToolchainError(
            f"{loaded.source} lacks {len(absent)} of the tensors of {spec.name} ({', '.join(absent[:4])}), so the model is not "
            "trained as it is; check [model] name and arguments against the checkpoint"
        )
    load_matching(model, state)
    return model, head, loaded


def build_untrained(spec: ModelSpec, classes: int, reuse: ReuseSpec = WHOLE_NETWORK) -> nn.Module:
    """Build the model with random weights, cut where `reuse` says.

    Raises:
        ToolchainError: unknown model or block, an argument that is not accepted, or blocks that would be both random and
            frozen.
    """
    model = build_from_source(spec, classes)
    if spec.norm_eps is not None:
        for module in model.modules():
            if isinstance(module, blocks.NORM_LAYERS):
                module.eps = spec.norm_eps
    if spec.padding == "tensorflow":
        for parent in model.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.padding != (0, 0):
                    setattr(parent, name, pad_like_tensorflow(child))
    head = find_head(model, classes)
    if reuse.fresh and reuse.freeze:
        blocks.check_freeze_before_fresh(model, head, freeze=reuse.freeze, fresh=reuse.fresh)
    return blocks.cut(model, head, reuse.keep, classes) if reuse.keep else model


def hash_user_model(spec: ModelSpec, classes: int, seed: int) -> tuple[str, ...]:
    """Return what identifies a model of the user's in a cache key: its code, and its values where no file holds them.

    Nothing for the models of libraries.

    Raises:
        ToolchainError: as `build_untrained`.
    """
    if not model_reference.parse(spec.name):
        return ()
    torch.manual_seed(seed)
    model = build_untrained(spec, classes)
    values = hashlib.sha256()
    for tensor in () if spec.weights else model.state_dict().values():
        values.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return user_code.hash_sources(model), values.hexdigest()


def build_for_image_size(
    spec: ModelSpec, classes: int, image: Tensor, reuse: ReuseSpec | Literal["auto"] = WHOLE_NETWORK
) -> nn.Module:
    """Build the model with random weights, and check that it accepts images of this size.

    Args:
        spec: architecture.
        classes: outputs of the head.
        image: an example, float32 [1, 3, height, width].
        reuse: where the network is cut.

    Raises:
        ToolchainError: as `build_untrained`; or the model does not accept images of this size.
    """
    assert reuse != "auto", "decided before a model is built"
    model = (build_trained(spec, classes)[0] if spec.head == "keep" else build_untrained(spec, classes, reuse)).eval()
    folder = user_code.find_folder(model)
    try:
        with torch.no_grad():
            logits = model(image)
    except Exception as reason:  # networks' own asserts among them
        height, width = image.shape[2:]
        line = f", {user_code.describe_line(reason, folder)}" if folder else ""
        raise ToolchainError(
            f"{spec.name} does not accept images of {height}x{width}: {first_line(reason)}{line}; choose another image size "
            "or model"
        ) from reason
    if folder:
        check_logits(logits, classes)
    return model


def build_from_source(spec: ModelSpec, classes: int) -> nn.Module:
    """Build the model as its library or the user's function does, with random weights.

    Raises:
        ToolchainError: unknown model, or an argument that is not accepted.
    """
    if reference := model_reference.parse(spec.name):
        model = python_file.build_untrained(reference, classes, spec.arguments)
        return model if spec.head == "keep" else replace_head(model, classes)
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
    """Make a teacher accept images that are normalised for its student, by a hook that rescales them.

    Args:
        model: the teacher; changed in place.
        preprocess: how the student's images are normalised.
        spec: says how the teacher's images must be normalised.
    """
    swapped = (
        preprocess.order != spec.order
    )  # gray images, whose three channels are alike, too: what counts is the mean
    if (preprocess.mean, preprocess.std, swapped) == (spec.mean, spec.std, False):
        return model
    student_mean, student_std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    teacher_std = torch.tensor(spec.std)
    if swapped:
        student_mean, student_std = student_mean.flip(0), student_std.flip(0)
    scale = (student_std / teacher_std).view(1, 3, 1, 1)
    shift = ((student_mean - torch.tensor(spec.mean)) / teacher_std).view(1, 3, 1, 1)
    model.register_forward_pre_hook(lambda _, inputs: ((inputs[0].flip(1) if swapped else inputs[0]) * scale + shift,))
    return model


def find_head(model: nn.Module, classes: int) -> str:
    """Return the name of the layer that gives the logits: the last linear layer or convolution with `classes` outputs.

    Raises:
        NoHeadError: there is none.
    """
    head = ""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            head = name if outputs == classes else head
    if not head:
        raise NoHeadError(
            f"no linear layer or convolution of this {type(model).__name__} has {classes} outputs, one per class, so it has "
            "no head for these classes"
        )
    return head
