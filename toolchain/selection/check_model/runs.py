"""Does the model run: at this image size, on several images at once, with the same output every time."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.core.errors import first_line
from toolchain.selection.check_model import user_lines
from toolchain.selection.check_model.finding import Finding
from toolchain.selection.check_model.subject import Subject, example_image, preserve_state

RELATIVE_TOLERANCE = 1e-3  # of the largest output: what kernels for one image and for two may differ by
OTHER_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 299, 384)  # tried where the size does not suit the model


def find_required_inputs(model: nn.Module) -> list[str]:
    """Return the names of the inputs of `forward` that have no default."""
    return [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]


def check_inputs(model: nn.Module) -> Finding:
    """Check that the model takes one input, the image."""
    names = find_required_inputs(model)
    if len(names) <= 1:
        return Finding(check="inputs", status="pass", text="It takes one input, the image.")
    return Finding(
        check="inputs", status="blocks", text=f"It takes {len(names)} inputs ({', '.join(names)}); images are all that it gets.",
        action="Wrap it in a module whose forward takes the image and supplies the others.",
    )  # fmt: skip


def check_size(subject: Subject) -> Finding:
    """Check that the model runs at the image size."""
    height, width = subject.image.shape[2:]
    try:
        subject.run()
    except Exception as reason:  # networks' own asserts among them
        return Finding(
            check="runs", status="blocks", text=f"It does not run on images of {height}×{width}: {first_line(reason)}.",
            action=_advise_size(subject.model, reason), line=user_lines.find_line(reason),
        )  # fmt: skip
    return Finding(check="runs", status="pass", text=f"It runs on images of {height}×{width}.")


def _advise_size(model: nn.Module, reason: Exception) -> str:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        return (
            f"Its first convolution takes {first.in_channels} channels and the toolchain gives 3 (gray images three times): "
            "widen that layer, for example by repeating its weights."
        )
    if "dtype" in str(reason) or "same type" in str(reason) or "Half" in str(reason):
        return "Give a model in float32: call .float() on it."
    fitting = [side for side in OTHER_SIZES if _runs_at(model, side)]
    if fitting:
        return f"Give a size that it accepts: it runs at {', '.join(map(str, fitting))} (--image-size {fitting[-1]})."
    return f"It runs at none of {', '.join(map(str, OTHER_SIZES))} either: repair its forward."


def _runs_at(model: nn.Module, side: int) -> bool:
    try:
        with torch.no_grad():
            model(example_image((side, side)))
    except Exception:
        return False
    return True


def check_repeatable(subject: Subject) -> Finding:
    """Check that a second and a third run in evaluation mode give the output of the first."""
    outputs = [flatten_outputs(subject.run()) for _ in range(3)]
    if all(_equal(outputs[0], other) for other in outputs[1:]):
        return Finding(check="repeatable", status="pass", text="Three runs in evaluation mode give the same output.")
    return Finding(
        check="repeatable", status="blocks",
        text="Its output in evaluation mode changes from run to run, so no export can be compared with it.",
        action="Take what is random, or remembers earlier images, out of evaluation mode: see the warnings.",
    )  # fmt: skip


def check_batch(subject: Subject, *, repeatable: bool = True) -> Finding:
    """Check that two images at once give what each gives alone.

    Args:
        subject: a model that runs.
        repeatable: whether it gives the same output every time; if not, only the shapes are compared.
    """
    height, width = subject.image.shape[2:]
    pair = example_image((height, width), batch=2)
    alone = [flatten_outputs(subject.run(pair[index : index + 1])) for index in range(2)]
    try:
        together = flatten_outputs(subject.run(pair))
    except Exception as reason:
        text = f"It does not run on two images at once: {first_line(reason)}"
        return _describe_fixed_batch(text, user_lines.find_line(reason))
    for index, single in enumerate(alone):
        if len(single) != len(together) or any(tensor.ndim == 0 or len(tensor) != 2 for tensor in together):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in together)
            return _describe_fixed_batch(
                f"For two images its output has the shape {shapes}, whose first size is not 2", ""
            )
        if repeatable and not _equal(single, [tensor[index : index + 1] for tensor in together]):
            return Finding(
                check="batch", status="warning",
                text="An image's output depends on the other images of its batch: it ships with batches of one, so accuracy "
                "on the target differs from accuracy in training.",
                action="Look for batch norm in training mode, or a mean over the first dimension.",
            )  # fmt: skip
    text = "Two images at once give what each gives alone." if repeatable else "It runs on two images at once."
    return Finding(check="batch", status="pass", text=text)


def _describe_fixed_batch(text: str, line: str) -> Finding:
    return Finding(
        check="batch", status="blocks", text=f"{text}. Training and quantization use batches.", line=line,
        action="Keep the first dimension: x.flatten(1), or x.view(x.shape[0], -1), in place of a fixed batch size.",
    )  # fmt: skip


def flatten_outputs(output: Any) -> list[Tensor]:
    """Return the tensors of an output: of a tensor, a tuple, a list or a mapping."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [tensor for entry in output for tensor in flatten_outputs(entry)] if isinstance(output, list | tuple) else []


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    """Return whether two outputs are equal within RELATIVE_TOLERANCE of the largest value."""
    if len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):
        if one.shape != other.shape:
            return False
        scale = float(one.detach().float().nan_to_num().abs().max()) if one.numel() else 0.0
        if not torch.allclose(
            one.float(), other.float(), rtol=0, atol=RELATIVE_TOLERANCE * scale + 1e-9, equal_nan=True
        ):
            return False
    return True


def check_all(subject: Subject) -> list[Finding]:
    """Return the findings of all checks; after one that blocks, of those that are still possible."""
    inputs = check_inputs(subject.model)
    if inputs.status == "blocks":
        return [inputs]
    with preserve_state(subject.model):
        size = check_size(subject)
        if size.status == "blocks":
            return [inputs, size]
        repeatable = check_repeatable(subject)
        return [inputs, size, repeatable, check_batch(subject, repeatable=repeatable.status == "pass")]
