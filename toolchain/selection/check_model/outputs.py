"""Does the model's output suit a classifier: one tensor [batch, classes] of logits, without softmax, with finite values."""

from typing import Any

import torch
from torch import Tensor

from toolchain.selection.check_model.finding import Finding
from toolchain.selection.check_model.known_traps import is_finite
from toolchain.selection.check_model.recorded_forward import Call, RecordedForward
from toolchain.selection.check_model.runs import flatten_outputs
from toolchain.selection.check_model.subject import Subject

FINAL_ACTIVATIONS = {"softmax": "softmax", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "softmax2d": "softmax"}
BOX_VALUES = 4  # x, y and width, height or the opposite corner
MOST_ROW_VALUES = BOX_VALUES + 1 + 80  # of a detector for COCO; wider rows are tokens of a transformer
FEWEST_DETECTIONS = 16  # rows of a tensor that may be boxes


def check_all(subject: Subject, recorded: RecordedForward) -> list[Finding]:
    """Return the findings on the output of one image."""
    findings = [check_shape(subject, recorded.output)]
    further = [check_final_activation(recorded), check_boxes(recorded), check_values(subject, recorded.output)]
    return [*findings, *(finding for finding in further if finding)]


def check_shape(subject: Subject, output: Any) -> Finding:
    """Check that the output is one tensor [batch, classes], from a layer with as many outputs."""
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == 1 and subject.head:
        text = f"Its output is [batch, {output.shape[1]}], from the layer {subject.head}."
        return Finding(check="output", status="pass", text=text)
    tensors = flatten_outputs(output)
    shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors) or type(output).__name__
    action = "Return one tensor of logits [batch, classes]: wrap the model in a module whose forward picks it."
    if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:] == (1, 1):
        action = "Add .flatten(1) to what forward returns."
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == 1:
        text = f"No layer has {output.shape[1]} outputs, as many as the model gives: so it has no head that can be told apart."
        return Finding(
            check="output", status="blocks", text=text, action="End the model with a linear layer or a 1x1 convolution."
        )
    return Finding(
        check="output", status="blocks", action=action,
        text=f"Its output is not [batch, classes] but {shapes}; export trains and verifies classifiers.",
    )  # fmt: skip


def check_values(subject: Subject, output: Any) -> Finding | None:
    """Find an output that is NaN or infinite, or the same for every image."""
    if is_finite(output):
        return None
    return Finding(
        check="nan_output", status="blocks", text="Its output holds NaN or infinite values for an ordinary image.",
        action="Look for a division by zero, a logarithm of zero, or weights that have diverged.",
    )  # fmt: skip


def check_final_activation(recorded: RecordedForward) -> Finding | None:
    """Find a softmax or a sigmoid at the end of the model."""
    producer = recorded.output_producer()
    name = FINAL_ACTIVATIONS.get(producer.function, "") if producer else ""
    if not name and _looks_like_softmax(recorded.output):
        name = "softmax"
    if not name:
        return None
    return Finding(
        check="softmax", status="warning", line=producer.line if producer else "",
        text=f"The model ends with {name}: the loss and distillation expect logits, and probabilities near 0 and 1 share the few "
        "steps of an int8 output.",
        action="Return the logits; apply it after the model where probabilities are wanted.",
    )  # fmt: skip


def _looks_like_softmax(output: Any) -> bool:
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        return False
    sums = output.sum(1)
    return bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def check_boxes(recorded: RecordedForward) -> Finding | None:
    """Find boxes and scores in one tensor: [batch, detections, 4 + (1 +) classes], or the same with the sides swapped."""
    joins = [
        call for call in recorded.calls if call.function in {"cat", "concat", "concatenate"} and _joins_boxes(call)
    ]
    suspects = [tensor for tensor in flatten_outputs(recorded.output) if _looks_like_boxes(tensor, joined=bool(joins))]
    if not suspects:
        return None
    shape = "×".join(map(str, suspects[0].shape))
    return Finding(
        check="boxes_and_scores", status="warning", line=joins[-1].line if joins else "",
        text=f"Boxes and scores seem to be in one tensor ({shape}). In int8 they share one scale: boxes reach hundreds of pixels, "
        "scores end at 1, so every score rounds to 0 and mAP is 0.",
        action="Return them as two outputs, each with a scale of its own, and join them after the model.",
    )  # fmt: skip


def _looks_like_boxes(tensor: Tensor, *, joined: bool) -> bool:
    """Return whether a tensor may hold a row per detection; `joined` says that boxes were seen to be joined with others."""
    if tensor.ndim != 3:
        return False
    fewer, more = sorted(tensor.shape[1:])
    return BOX_VALUES < fewer < more >= FEWEST_DETECTIONS and (joined or fewer <= MOST_ROW_VALUES)


def _joins_boxes(call: Call) -> bool:
    """Return whether a concatenation joins a tensor with four values a box and one with more or fewer."""
    sizes = {shape[side] for shape in call.input_shapes for side in (1, -1) if len(shape) == 3}
    return BOX_VALUES in sizes and len(sizes) > 1
