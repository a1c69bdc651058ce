"""Does the target's runtime compile the model, which layers does it run in int8, and how fast is each form.

Latency does not depend on the weights, so all of it holds for the untrained model.
"""

import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir

from toolchain.config.target import Target
from toolchain.core import statistics
from toolchain.core.errors import ToolchainError, first_line
from toolchain.core.types import Artefact, Interval, Precision
from toolchain.export import insert_qdq, onnx_graph
from toolchain.export.runtime import load_runtime
from toolchain.measure import machine, paired_rounds, untrained_latency
from toolchain.measure.paired_timing import TimedModel
from toolchain.models import profile
from toolchain.pruning import surgery
from toolchain.quantization.placement import ALL_FLOAT, Placement
from toolchain.search import architecture_timing
from toolchain.selection.check_model.finding import Finding, TimedForm
from toolchain.selection.check_model.known_traps import list_names
from toolchain.selection.check_model.prunable import Prunability
from toolchain.selection.check_model.subject import Subject

ROUNDS = 3
MIN_INT8_SPEEDUP = 1.0  # below it, int8 is slower than float


@dataclass(frozen=True, kw_only=True)
class CompiledForm:
    """One form of the model, compiled by the target's runtime."""

    name: str  # "f32", "int8", "pruned int8"
    precision: Precision
    artefact: Artefact
    macs: int
    planned: tuple[str, ...] = ()  # layers that the placement quantizes


@dataclass(frozen=True, kw_only=True)
class CompiledModel:
    """All forms that compile, and the findings."""

    forms: tuple[CompiledForm, ...]
    float_layers: tuple[str, ...] | None  # that the runtime runs in float in the int8 form; None: not known
    findings: tuple[Finding, ...]


def compile_all(
    subject: Subject, graph: onnx_ir.Model, prunability: Prunability | None, target: Target, folder: Path
) -> CompiledModel:
    """Compile the model and its pruned half in float32 and int8, and ask the runtime which layers run in int8.

    Args:
        subject: a model that could be traced.
        graph: its float ONNX graph.
        prunability: gives the plan of the pruned half; None where pruning could not be examined.
        target: gives runtime, precisions and scheme.
        folder: for the compiled files.

    Raises:
        ToolchainError: the runtime is not installed.
    """
    load_runtime(target.runtime).library()
    layers = prunability.layers if prunability else profile.measure_layers(subject.model, subject.image)
    graphs, macs = {"": graph}, {"": int(profile.total_macs(layers))}
    findings, forms = list[Finding](), list[CompiledForm]()
    if prunability and prunability.half:
        try:
            graphs["pruned "], macs["pruned "] = _prune_graph(subject, graph, prunability.half, target)
        except ToolchainError as reason:
            findings.append(
                _describe_failure("pruned_export", f"The pruned model cannot be exported: {reason}", "warning")
            )
    for prefix, precision in _list_forms(target):
        if prefix not in graphs:
            continue
        try:
            form = _compile(f"{prefix}{precision}", graphs[prefix], precision, target, folder, macs[prefix], subject)
        except ToolchainError as reason:
            findings.append(_describe_rejected(f"{prefix}{precision}", reason, target))
        else:
            forms.append(form)
    if any(form.name == "f32" for form in forms):
        text = f"{target.runtime} compiles and runs it: {', '.join(form.name for form in forms)}."
        findings.insert(0, Finding(check="compiles", status="pass", text=text))
    float_layers = None
    int8 = next((form for form in forms if form.name == "int8"), None)
    if int8:
        float_layers, finding = _examine_coverage(int8, target, layers)
        findings.append(finding)
    return CompiledModel(forms=tuple(forms), float_layers=float_layers, findings=tuple(findings))


def _list_forms(target: Target) -> list[tuple[str, Precision]]:
    """Return the forms to compile, as prefix and precision; the pruned model in the target's smallest precision."""
    smallest: Precision = "int8" if "int8" in target.precisions else "f32"
    dense: list[tuple[str, Precision]] = [("", "f32"), ("", "int8")] if smallest == "int8" else [("", "f32")]
    return [*dense, ("pruned ", smallest)]


def _prune_graph(
    subject: Subject, graph: onnx_ir.Model, plan: surgery.Surgery, target: Target
) -> tuple[onnx_ir.Model, int]:
    """Return the graph of the pruned model, cut out of the dense one's or exported anew, and its multiply-accumulates."""
    pruned = surgery.apply(subject.model, plan)
    macs = int(profile.total_macs(profile.measure_layers(pruned, subject.image)))
    return architecture_timing.cut_graph(graph, subject.model, plan, subject.image, target.scheme), macs


def _compile(
    name: str, graph: onnx_ir.Model, precision: Precision, target: Target, folder: Path, macs: int, subject: Subject
) -> CompiledForm:
    runtime, folder = load_runtime(target.runtime), folder / name.replace(" ", "-")
    try:
        placed, planned = insert_qdq.build_candidate(
            graph, Placement() if precision == "int8" else ALL_FLOAT, target.scheme
        )
        onnx_graph.save_model(placed, folder / "graph.onnx")
        artefact = runtime.compile(folder / "graph.onnx", folder / target.runtime)
        session = runtime.open(artefact.path, threads=target.threads, precision=precision)
        session.outputs(np.zeros(tuple(subject.image.shape), np.float32))
    except ToolchainError:
        raise
    except Exception as reason:  # each runtime raises its own types
        raise ToolchainError(first_line(reason)) from reason
    return CompiledForm(name=name, precision=precision, artefact=artefact, macs=macs, planned=planned)


def _describe_rejected(name: str, reason: ToolchainError, target: Target) -> Finding:
    if name == "f32":
        return _describe_failure("compiles", f"{target.runtime} does not run it: {reason}", "blocks")
    return _describe_failure(
        f"compiles_{name.replace(' ', '_')}", f"{target.runtime} does not run it as {name}: {reason}", "warning"
    )


def _describe_failure(check: str, text: str, status: str) -> Finding:
    action = "Try another target (`toolchain targets`), or replace the operation that the runtime names."
    return Finding(
        check=check, status="blocks" if status == "blocks" else "warning", text=f"{text.rstrip('.')}.", action=action
    )


def _examine_coverage(
    form: CompiledForm, target: Target, layers: Sequence[profile.Layer]
) -> tuple[tuple[str, ...] | None, Finding]:
    """Return the layers that the runtime runs in float, and what that means."""
    if not machine.runs_same_kernels(target.isa):
        text = (
            f"Which layers run in int8 is not known: this machine has other kernels than {target.name} ({target.isa})."
        )
        return None, Finding(check="int8", status="not_measured", text=text, action="Run it on such a machine.")
    coverage = load_runtime(target.runtime).coverage(form.artefact.path, precision="int8")
    known = {layer.name for layer in layers}
    names = tuple(dict.fromkeys(_match_layer(name, known) for name in coverage.float_ops))
    float_layers, products = tuple(n for n in names if n in known), [n for n in names if n not in known]
    total_macs = sum(layer.macs for layer in layers)
    float_macs = sum(layer.macs for layer in layers if layer.name in float_layers)
    share = 1 - float_macs / total_macs if total_macs else 0.0
    text = f"{coverage.integer} of {coverage.total - len(products)} layers run in int8"
    text += f", with {share:.0%} of the multiply-accumulates." if coverage.integer else "."
    if products:
        text += f" {len(products)} products of activations with each other, as in attention, run in float."
    if not float_layers and coverage.integer:
        return names, Finding(check="int8", status="pass", text=text)
    return names, Finding(
        check="int8", status="warning", modules=float_layers,
        text=f"{text} In float: {list_names(float_layers or names)}.",
        action="Nothing: what stays in float costs latency, not accuracy. export searches for a placement that is faster.",
    )  # fmt: skip


def _match_layer(name: str, known: Set[str]) -> str:
    """Return the layer that a kernel's name stands for, or the name itself."""
    parts = name.replace("/", ".").split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return name


# --- latency ------------------------------------------------------------------------------------------------


def time_forms(
    forms: Sequence[CompiledForm], subject: Subject, target: Target, folder: Path
) -> tuple[tuple[TimedForm, ...], Finding]:
    """Time all forms against one another in short paired rounds.

    Args:
        forms: compiled forms; f32 among them.
        subject: gives the size of the input.
        target: gives threads and board.
        folder: keeps the raw rounds.

    Raises:
        ToolchainError: the board does not answer.
    """
    untimed = tuple(_describe_form(form, None, None) for form in forms)
    if not target.device and machine.integer_isa() != target.isa:
        text = f"Untimed: this machine lacks the instructions of {target.name} ({target.isa})."
        action = "Name a board with them: --device ssh:user@host."
        return untimed, Finding(check="latency", status="not_measured", text=text, action=action)
    models = [
        TimedModel(
            name=form.name, runtime=target.runtime, path=str(form.artefact.path), precision=form.precision,
            threads=target.threads, shape=tuple(subject.image.shape), device=target.device,
        )
        for form in forms
    ]  # fmt: skip
    samples = folder / "rounds.json"
    samples.unlink(missing_ok=True)  # of a check that was interrupted, perhaps under other load
    rounds = paired_rounds.measure(models, ROUNDS, 0, samples, "check-model: rounds", untrained_latency.BRIEF_EFFORT)
    timed = tuple(
        _describe_form(
            form, paired_rounds.p50(rounds, form.name),
            statistics.speedup(paired_rounds.log_speedups(rounds, "f32", form.name)) if form.name != "f32" else None,
        )
        for form in forms
    )  # fmt: skip
    return timed, _describe_latency({form.name: form for form in timed}, target)


def _describe_form(form: CompiledForm, latency_ms: Interval | None, speedup: Interval | None) -> TimedForm:
    return TimedForm(
        name=form.name, precision=form.precision, macs=form.macs, size_bytes=form.artefact.size_bytes,
        latency_ms=latency_ms, speedup=speedup,
    )  # fmt: skip


def _describe_latency(forms: Mapping[str, TimedForm], target: Target) -> Finding:
    """Return what int8 and pruning bring, in one sentence."""
    f32, int8, pruned = forms["f32"], forms.get("int8"), forms.get("pruned int8") or forms.get("pruned f32")
    assert f32.latency_ms is not None
    text = f"{f32.latency_ms.estimate:.3g} ms in float32 on {target.name}"
    for form, label in ((int8, "int8"), (pruned, "pruned")):
        if form is not None and form.speedup is not None:
            label = label if form is int8 else f"pruned to {form.macs / f32.macs:.0%} of the MACs as {form.precision}"
            text += f"; {label} {form.speedup.estimate:.2f}x as fast"
    if int8 and int8.speedup and int8.speedup.high < MIN_INT8_SPEEDUP:
        return Finding(
            check="latency", status="warning", text=f"{text}. int8 in the default Q/DQ placement is slower than float.",
            action="export searches for a faster placement, with parts in float; expect little from int8.",
        )  # fmt: skip
    return Finding(check="latency", status="pass", text=f"{text}.")


def remove_compiled(folder: Path) -> None:
    """Remove the compiled files; the raw rounds stay."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
