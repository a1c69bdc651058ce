"""Traps in a model that are known to bite later: found on its modules and weights, and on one watched forward pass."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from toolchain.core.errors import first_line
from toolchain.selection.check_model.finding import Finding
from toolchain.selection.check_model.recorded_forward import Call, RecordedForward
from toolchain.selection.check_model.runs import flatten_outputs
from toolchain.selection.check_model.subject import Subject, preserve_state

MAX_NAMES = 4
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
RANDOM_CALLS = {"rand", "randn", "rand_like", "randn_like", "bernoulli", "bernoulli_", "randint", "multinomial", "normal_", "uniform_"}  # fmt: skip


def list_names(names: Sequence[str]) -> str:
    """Return the first MAX_NAMES names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


# --- modules and weights ------------------------------------------------------------------------------------


def check_finite_weights(model: nn.Module) -> Finding | None:
    """Find weights that are NaN or infinite."""
    names = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if not names:
        return None
    return Finding(
        check="nan_weights", status="blocks", text=f"NaN or infinite values in {list_names(names)}.", modules=tuple(names),
        action="Give another checkpoint: training of this one has diverged, or its file is damaged.",
    )  # fmt: skip


def check_training_mode(model: nn.Module) -> list[Finding]:
    """Find batch norm and dropout that stay in training mode after `eval()`, as after an override of `train()`."""
    left = {name: module for name, module in model.eval().named_modules() if module.training}
    overriding = {
        type(m).__name__ for m in model.modules() if type(m).train is not nn.Module.train or "train" in vars(m)
    }
    cause = f" ({', '.join(sorted(overriding))} overrides train())" if overriding else ""
    norms = [name for name, module in left.items() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    dropouts = [name for name, module in left.items() if isinstance(module, nn.modules.dropout._DropoutNd) and module.p]
    findings = []
    if norms:
        findings.append(Finding(
            check="batch_norm_training", status="warning", modules=tuple(norms),
            text=f"eval() leaves {len(norms)} batch norms in training mode{cause}: {list_names(norms)}. They normalise by the "
            "batch, and the exported model would be another one.",
            action="Let train(mode) and eval() reach every module: call super().train(mode) with the mode that was given.",
        ))  # fmt: skip
    if dropouts:
        findings.append(
            _describe_dropout(f"eval() leaves dropout active in {list_names(dropouts)}{cause}", "", dropouts)
        )
    return findings


def _describe_dropout(text: str, line: str, modules: Sequence[str] = ()) -> Finding:
    return Finding(
        check="dropout", status="warning", text=f"{text}: predictions are random.", line=line, modules=tuple(modules),
        action="Use nn.Dropout, or pass training=self.training to the function.",
    )  # fmt: skip


def check_shared_weights(model: nn.Module, recorded: RecordedForward | None) -> list[Finding]:
    """Find weights that two modules share, and layers that run twice."""
    owners = defaultdict[int, list[str]](list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name)
    tied = [names for names in owners.values() if len(names) > 1]
    findings = []
    if tied:
        pairs = [" = ".join(names[:3]) for names in tied]
        modules = tuple(name.rpartition(".")[0] for names in tied for name in names)
        findings.append(Finding(
            check="shared_weights", status="warning", modules=modules,
            text=f"Weights are shared: {list_names(pairs)}. Pruning and training would untie them.",
            action="If they must stay tied, protect these layers: [prune] protect; else give each its own copy.",
        ))  # fmt: skip
    layers = dict(model.named_modules())
    repeated = [
        name for name, count in (recorded.module_calls if recorded else {}).items()
        if count > 1 and isinstance(layers.get(name), nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm)
    ]  # fmt: skip
    if repeated:
        findings.append(Finding(
            check="repeated_layers", status="warning", modules=tuple(repeated),
            text=f"These layers run more than once for an image: {list_names(repeated)}. Quantization ranges and pruned widths "
            "have to serve every call.",
            action="Nothing, if they are meant to be shared; else give each call its own layer.",
        ))  # fmt: skip
    return findings


def check_hooks(model: nn.Module) -> Finding | None:
    """Find hooks and parametrizations, which change what a layer computes behind its weights."""
    names = [
        name or "the model" for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module)
    ]  # fmt: skip
    if not names:
        return None
    return Finding(
        check="hooks", status="warning", modules=tuple(names),
        text=f"Hooks or parametrizations on {list_names(names)}: what they compute is baked into the export, what they store is "
        "lost, and pruning slices weights that they may compute anew.",
        action="Remove hooks that only observe; for weight or spectral norm, call remove_parametrizations or remove_weight_norm.",
    )  # fmt: skip


def check_gradients(subject: Subject) -> Finding | None:
    """Find a model that cannot be trained, and parameters that get no gradient because `forward` never uses them."""
    model = copy.deepcopy(subject.model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        parameter.grad = None
    try:
        outputs = [tensor for tensor in flatten_outputs(model(subject.image.clone())) if tensor.requires_grad]
        torch.stack([tensor.float().sum() for tensor in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as reason:  # of autograd; or no output depends on a parameter
        text = (
            "no output has a gradient"
            if "non-empty TensorList" in str(reason)
            else first_line(reason).partition(": [")[0]
        )
        return Finding(
            check="gradients", status="blocks", text=f"It cannot be trained: {text}.",
            action="Compute new tensors in place of writing into them, and leave no_grad and detach out of forward.",
        )  # fmt: skip
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    if not unused:
        return None
    values = sum(model.get_parameter(name).numel() for name in unused)
    owners = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in unused))
    return Finding(
        check="unused_parameters", status="warning", modules=owners,
        text=f"forward does not use {values:,} parameters, or detaches them: {list_names(owners)}. They stay as they are and "
        "are not exported.",
        action="Remove them, or check that forward uses what it should.",
    )  # fmt: skip


# --- one watched forward pass -------------------------------------------------------------------------------


def check_random_calls(model: nn.Module, recorded: RecordedForward) -> list[Finding]:
    """Find dropout functions that are active in evaluation mode, and other random functions."""
    findings = []
    modules = {name for name, module in model.named_modules() if isinstance(module, nn.modules.dropout._DropoutNd)}
    active = [
        call for call in recorded.calls
        if call.function in DROPOUTS and call.module not in modules and _is_active_dropout(call)
    ]  # fmt: skip
    if active:
        findings.append(_describe_dropout("Dropout is active in evaluation mode", active[0].line))
    random = [call for call in recorded.calls if call.function in RANDOM_CALLS]
    if random:
        findings.append(Finding(
            check="random", status="warning", line=random[0].line,
            text=f"forward draws random numbers in evaluation mode ({random[0].function}).",
            action="Draw them in training only: if self.training.",
        ))  # fmt: skip
    return findings


def _is_active_dropout(call: Call) -> bool:
    values = dict(zip(("p", "training"), call.arguments, strict=False)) | dict(call.options)
    return bool(values.get("p", 0.5)) and bool(values.get("training", True))


def check_in_place(subject: Subject, recorded: RecordedForward) -> list[Finding]:
    """Find a forward that writes into its input, into weights or buffers, or into parts of an activation."""
    findings = []
    writes = [call for call in recorded.calls if call.function == "__setitem__"]
    if writes:
        findings.append(
            _describe_write("parts of an activation", "The runtimes have no int8 form of it", writes[0].line)
        )
    image, before = subject.image.clone(), {name: t.clone() for name, t in subject.model.state_dict().items()}
    with torch.no_grad(), preserve_state(subject.model):
        subject.model(image)
        after = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    if not torch.equal(image, subject.image):
        findings.append(
            _describe_write("its own input", "The images of the caller change", _find_input_write(recorded))
        )
    changed = [
        name for name, tensor in before.items() if not torch.equal(tensor.nan_to_num(), after[name].nan_to_num())
    ]
    # batch norm that is left in training mode has a warning of its own
    changed = [name for name in changed if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    if changed:
        findings.append(
            _describe_write(list_names(changed), "It depends on the images before it, and the export does not", "")
        )
    return findings


def _describe_write(what_changes: str, meaning: str, line: str) -> Finding:
    return Finding(
        check="in_place", status="warning", line=line, text=f"forward changes {what_changes} in evaluation mode. {meaning}.",
        action="Compute a new tensor in place of writing into one.",
    )  # fmt: skip


def _find_input_write(recorded: RecordedForward) -> str:
    names = [call for call in recorded.calls if call.function.endswith("_") and not call.function.startswith("__")]
    return names[0].line if names else ""


# --- all ----------------------------------------------------------------------------------------------------


def check_modules(model: nn.Module) -> list[Finding]:
    """Return the findings that need no forward pass."""
    findings: list[Finding | None] = [check_finite_weights(model), check_hooks(model)]
    return [*check_training_mode(model), *(finding for finding in findings if finding)]


def check_forward(subject: Subject, recorded: RecordedForward) -> list[Finding]:
    """Return the findings of a model that runs."""
    findings = [*check_shared_weights(subject.model, recorded), *check_random_calls(subject.model, recorded)]
    findings += check_in_place(subject, recorded)
    gradients = check_gradients(subject)
    return [*findings, gradients] if gradients else findings


def is_finite(output: Any) -> bool:
    """Return whether every value of an output is finite."""
    tensors: list[Tensor] = flatten_outputs(output)
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
