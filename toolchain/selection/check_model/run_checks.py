"""All checks of a model, in the order of the pipeline; one that fails does not stop those that are still possible."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

from toolchain.config.target import Target
from toolchain.core import progress
from toolchain.core.errors import ToolchainError, first_line
from toolchain.measure import machine
from toolchain.models import profile
from toolchain.models.profile import Layer
from toolchain.selection.check_model import (
    compiled_forms,
    known_traps,
    outputs,
    prunable,
    recorded_forward,
    runs,
    traces,
)
from toolchain.selection.check_model.compiled_forms import CompiledModel
from toolchain.selection.check_model.finding import CheckedLayer, Finding, ModelCheck, TimedForm
from toolchain.selection.check_model.prunable import Prunability
from toolchain.selection.check_model.subject import Subject, make_subject

Result = TypeVar("Result")


def check_model(
    name: str, model: nn.Module, image_size: tuple[int, int], target: Target, folder: Path, *, weights: str = "",
    load_finding: Finding | None = None,
) -> ModelCheck:  # fmt: skip
    """Check a model for a target.

    Args:
        name: of the model.
        model: with its weights, trained or not; put into evaluation mode.
        image_size: height and width, pixels.
        target: to compile for and to time on.
        folder: for compiled files, which are removed, and for the raw rounds.
        weights: where the weights come from.
        load_finding: how far they matched.

    Raises:
        ToolchainError: the runtime is not installed, or the board does not answer.
    """
    started = time.monotonic()
    subject = make_subject(model, image_size)
    check = ModelCheck(
        name=name, target=target.name, runtime=target.runtime, weights=weights, image_size=image_size,
        classes=subject.classes, parameters=sum(parameter.numel() for parameter in model.parameters()), macs=0,
        findings=(load_finding,) if load_finding else (), machine=machine.describe(target.device),
        versions=machine.versions(target),
    )  # fmt: skip
    check = _run_all(subject, target, folder, check)
    return dataclasses.replace(check, seconds=round(time.monotonic() - started, 1))


def _run_all(subject: Subject, target: Target, folder: Path, check: ModelCheck) -> ModelCheck:
    progress.log("check-model: forward passes")
    findings = [*known_traps.check_modules(subject.model), *runs.check_all(subject)]
    runs_at_size = any(finding.check == "runs" and finding.status == "pass" for finding in findings)
    if not runs_at_size:
        return dataclasses.replace(check, findings=_in_order((*check.findings, *findings)))
    recorded, guarded = _guard_value("forward", lambda: recorded_forward.record(subject.model, subject.image))
    findings += guarded
    if recorded is not None:
        for examine in (outputs.check_all, known_traps.check_forward):
            checked, guarded = _guard_value("forward", functools.partial(examine, subject, recorded))
            findings += [*(checked or []), *guarded]
    layers: tuple[Layer, ...] = profile.measure_layers(subject.model, subject.image)
    progress.log("check-model: channels that can be pruned")
    prunability, guarded = _guard_value("prunable", lambda: prunable.examine(subject, target.alignment, recorded))
    findings += [*guarded, *(prunability.findings if prunability else ())]
    progress.log("check-model: tracing and export")
    traced = traces.trace(subject, target.scheme)
    findings += traced.findings
    compiled, forms = None, tuple[TimedForm, ...]()
    if traced.graph is not None:
        progress.log(f"check-model: compiling for {target.runtime}")
        compiled = compiled_forms.compile_all(subject, traced.graph, prunability, target, folder)
        findings += compiled.findings
        if any(form.name == "f32" for form in compiled.forms):
            progress.log("check-model: timing")
            forms, finding = compiled_forms.time_forms(compiled.forms, subject, target, folder)
            findings.append(finding)
        compiled_forms.remove_compiled(folder)
    return dataclasses.replace(
        check, findings=_in_order((*check.findings, *findings)), macs=int(profile.total_macs(layers)), forms=forms,
        layers=_describe_layers(layers, prunability, compiled), most_prunable=prunability.most_share if prunability else None,
    )  # fmt: skip


def _guard_value(check: str, examine: Callable[[], Result]) -> tuple[Result | None, list[Finding]]:
    """Return the result of a check; where an unusual model makes it fail, a warning in its place."""
    try:
        return examine(), []
    except ToolchainError as reason:
        return None, [Finding(check=check, status="warning", text=f"{reason}.")]
    except Exception as reason:  # a model's own code may raise anything
        text = f"Not checked, because the check met {type(reason).__name__}: {first_line(reason)}."
        return None, [Finding(check=check, status="not_measured", text=text)]


ORDER = (
    "loads", "inputs", "runs", "repeatable", "batch", "output", "traces", "onnx", "compiles", "prunable", "int8", "latency",
)  # fmt: skip  # of the checks that every model has; the others follow the one that they explain


def _in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the checks of every model in the pipeline's order, then warnings by their weight."""
    weights = {"blocks": 0, "warning": 1, "not_measured": 2, "pass": 3}
    listed = sorted((f for f in findings if f.check in ORDER), key=lambda finding: ORDER.index(finding.check))
    further = sorted((f for f in findings if f.check not in ORDER), key=lambda finding: weights[finding.status])
    return (*listed, *further)


def _describe_layers(
    layers: Sequence[Layer], prunability: Prunability | None, compiled: CompiledModel | None
) -> tuple[CheckedLayer, ...]:
    """Return a row per layer, in running order; calls of the same layer are added up."""
    names = list(dict.fromkeys(layer.name for layer in layers))
    float_layers = compiled.float_layers if compiled else None
    rows = []
    for name in names:
        calls = [layer for layer in layers if layer.name == name]
        rows.append(CheckedLayer(
            name=name, kind=calls[0].kind, macs=sum(call.macs for call in calls), parameters=calls[0].parameters,
            prunable=prunability.is_prunable(name) if prunability else None,
            obstacle=prunability.obstacles.get(name, "") if prunability else "",
            int8=None if float_layers is None else name not in float_layers,
        ))  # fmt: skip
    return tuple(rows)
