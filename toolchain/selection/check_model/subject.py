"""The model to check: built as the pipeline builds it, with its weights as far as they match."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.config import model_reference
from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError
from toolchain.models import build
from toolchain.models.match_names import MIN_MATCHED_SHARE
from toolchain.models.sources import python_file
from toolchain.models.weights import Checkpoint, LoadedWeights, load_backbone, load_matching, read_checkpoint
from toolchain.selection.check_model.finding import Finding

DEFAULT_CLASSES = 1000  # of the published models
MAX_NAMES = 4  # of tensors in a sentence
SEED = 0
NO_HEAD = "(no head)"  # stands for the name of a head that no layer has


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model in evaluation mode, with an example input."""

    model: nn.Module
    image: Tensor  # float32 [1, 3, height, width], random values with mean 0 and variance 1
    head: str  # the layer that gives the logits; "" where there is none
    classes: int | None  # outputs of the head; None where there is none

    def run(self, images: Tensor | None = None) -> Any:
        """Return the model's output for a copy of `images`, or of its example; float32 [batch, 3, height, width].

        Raises:
            Exception: whatever `forward` raises.
        """
        with torch.no_grad():
            return self.model((self.image if images is None else images).clone())


@contextlib.contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Give a model its weights and buffers back at the end: some count their images, or learn in evaluation mode."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(state)


def make_subject(model: nn.Module, image_size: tuple[int, int]) -> Subject:
    """Return a model as a subject; its head is the layer with as many outputs as the model gives values per image."""
    model.eval()
    image = example_image(image_size)
    try:
        with torch.no_grad(), preserve_state(model):
            output = model(image.clone())
    except Exception:  # `runs` reports it
        return Subject(model=model, image=image, head="", classes=None)
    classes = output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else None
    return Subject(model=model, image=image, head=_find_head(model, classes or 0), classes=classes)


def example_image(image_size: tuple[int, int], batch: int = 1) -> Tensor:
    """Return random images, the same at every call, float32 [batch, 3, height, width]."""
    return torch.randn(batch, 3, *image_size, generator=torch.Generator().manual_seed(SEED))


def load(spec: ModelSpec, classes: int | None) -> tuple[nn.Module, str, Finding]:
    """Build the model, and load what matches of its weights.

    Args:
        spec: architecture and weights.
        classes: outputs of the head; None: as many as the checkpoint's head has, or the published model's.

    Returns:
        the model, where its weights come from, and the finding.

    Raises:
        ToolchainError: there is no such model or weights file, or the file is not a checkpoint.
    """
    torch.manual_seed(SEED)
    model = build_model(spec, classes)
    checkpoint = read_checkpoint(spec)
    if not spec.weights:
        return (
            model,
            "random weights" if model_reference.parse(spec.name) is None else "its own weights",
            _describe_built(model),
        )
    head = _find_head(model, classes or DEFAULT_CLASSES)
    try:
        loaded, state = load_backbone(model, checkpoint, (head or NO_HEAD,))
        weight = state.get(f"{head}.weight")
        if classes is None and weight is not None and len(weight) != DEFAULT_CLASSES:
            model = build_model(spec, len(weight))
            loaded, state = load_backbone(model, checkpoint, (_find_head(model, len(weight)) or NO_HEAD,))
        load_matching(model, state)
    except ToolchainError as reason:
        action = "Give the float checkpoint of this model, from before the training diverged."
        return model, checkpoint.source, Finding(check="loads", status="blocks", text=f"{reason}.", action=action)
    return model, checkpoint.source, _describe_loaded(loaded, checkpoint)


def build_model(spec: ModelSpec, classes: int | None) -> nn.Module:
    """Build the model with random weights.

    Args:
        spec: architecture.
        classes: outputs of a new head, as the pipeline puts it on; None: the model as its builder returns it.

    Raises:
        ToolchainError: there is no such model, or it cannot be built.
    """
    reference = model_reference.parse(spec.name)
    if reference is not None and classes is None:
        return python_file.build_untrained(reference, DEFAULT_CLASSES, spec.arguments)
    return build.build_untrained(spec, classes or DEFAULT_CLASSES)


def _find_head(model: nn.Module, classes: int) -> str:
    try:
        return build.find_head(model, classes)
    except ToolchainError:
        return ""


def _describe_built(model: nn.Module) -> Finding:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = f"It is built, with {parameters / 1e6:.2f} M parameters; no weights file."
    return Finding(check="loads", status="pass", text=text)


def _describe_loaded(loaded: LoadedWeights, checkpoint: Checkpoint) -> Finding:
    mismatches = {"missing": loaded.missing, "not used": loaded.unexpected, "other shape": loaded.reshaped}
    named = "; ".join(
        f"{label}: {', '.join(names[:MAX_NAMES])}"
        + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
        for label, names in mismatches.items()
        if names
    )
    text = f"{loaded.share:.0%} of the backbone's weights match {checkpoint.source}" + (
        f" ({named})." if named else "."
    )
    text += "".join(f" {change[0].upper()}{change[1:]}." for change in loaded.name_changes)
    modules = (*loaded.missing, *loaded.reshaped)
    if loaded.share < MIN_MATCHED_SHARE:
        return Finding(
            check="loads", status="blocks", text=f"{text} The checkpoint belongs to another model.", modules=modules,
            action="Check the model's name and arguments (width_mult, ...) against the checkpoint.",
        )  # fmt: skip
    if modules or loaded.unexpected:
        return Finding(
            check="loads", status="warning", text=text, modules=modules,
            action="What is missing starts from random weights: fine-tune, or give a checkpoint of this model.",
        )  # fmt: skip
    return Finding(check="loads", status="pass", text=text)
