"""Define the result of `toolchain check-model`: findings in words, a row per layer, latencies. Plain data, written as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolchain.core.types import Interval, Precision

Status = Literal["pass", "warning", "blocks", "not_measured"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check: what it means and what to do."""

    check: str  # an identifier that stays the same: "runs", "softmax"
    status: Status
    text: str  # what was found and what it means
    action: str = ""  # what to do; "" where there is nothing to do
    line: str = ""  # of the user's code: "net.py, line 7: x = x.view(1, -1)"
    modules: tuple[str, ...] = ()  # that it concerns


@dataclass(frozen=True, kw_only=True)
class CheckedLayer:
    """One convolution or linear layer."""

    name: str
    kind: str
    macs: int  # multiply-accumulates per image, over all calls
    parameters: int
    prunable: bool | None  # whether channels on one of its sides can be removed; None: not known
    obstacle: str = ""  # why its output channels have to stay
    int8: bool | None = None  # whether the runtime executes it in int8; None: not known


@dataclass(frozen=True, kw_only=True)
class TimedForm:
    """Latency of the model in one form on the target."""

    name: str  # "f32", "int8", "pruned int8"
    precision: Precision
    macs: int
    size_bytes: int
    latency_ms: Interval | None  # None: not timed
    speedup: Interval | None = None  # over f32


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """All that is known about a model before it is trained."""

    name: str
    target: str
    runtime: str
    weights: str
    image_size: tuple[int, int]  # height, width
    classes: int | None  # None: the model does not give one value per class
    parameters: int
    macs: int
    findings: tuple[Finding, ...]
    layers: tuple[CheckedLayer, ...] = ()
    forms: tuple[TimedForm, ...] = ()
    most_prunable: float | None = None  # share of the multiply-accumulates that pruning could remove at most
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """The findings for which the pipeline cannot do its job."""
        return tuple(finding for finding in self.findings if finding.status == "blocks")

    def find(self, check: str) -> Finding | None:
        """Return the finding of a check; None where the check has none."""
        return next((finding for finding in self.findings if finding.check == check), None)


def share_of_macs(layers: Sequence[CheckedLayer], field: Literal["prunable", "int8"]) -> float | None:
    """Return the share of the multiply-accumulates in layers that are prunable or run in int8; None where not known."""
    total = sum(layer.macs for layer in layers)
    if not total or any(getattr(layer, field) is None for layer in layers):
        return None
    return sum(layer.macs for layer in layers if getattr(layer, field)) / total


def describe_abilities(check: ModelCheck) -> str:
    """Return in a few words what the pipeline can do with the model."""
    if check.blocking:
        return "Blocked: " + ", ".join(dict.fromkeys(finding.check.replace("_", " ") for finding in check.blocking))
    prunes, int8 = share_of_macs(check.layers, "prunable"), share_of_macs(check.layers, "int8")
    if prunes and (int8 or int8 is None):
        return "Can be pruned and quantized" if int8 else "Can be pruned; int8 is not known"
    if prunes:
        return "Prune only: no layer runs in int8"
    return "Quantize only: no channels can be pruned" if int8 else "Float only: neither pruning nor int8"


def read_check(row: Mapping[str, Any]) -> ModelCheck:
    """Return a check from its JSON."""

    def interval(value: Mapping[str, Any] | None) -> Interval | None:
        return Interval(**value) if value else None

    findings = tuple(Finding(**{**entry, "modules": tuple(entry["modules"])}) for entry in row["findings"])
    forms = tuple(
        TimedForm(**{**form, "latency_ms": interval(form["latency_ms"]), "speedup": interval(form["speedup"])})
        for form in row["forms"]
    )
    layers = tuple(CheckedLayer(**layer) for layer in row["layers"])
    size = tuple(row["image_size"])
    return ModelCheck(**{**row, "findings": findings, "forms": forms, "layers": layers, "image_size": size})
