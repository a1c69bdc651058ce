"""The key results at the top of a report: accuracy, speed-up, size and checks, each figure with its details.

Terminal, Markdown and HTML only lay these out, so that they cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolchain.core.run_report import BASELINE, RunReport, find_variant, humanize, reported_variant
from toolchain.gates import outcomes
from toolchain.report import number_format

OUTCOME_TEXTS = {"fail": "fails", "cannot_tell": "cannot be decided", "not_measured": "not measured"}


@dataclass(frozen=True, kw_only=True)
class KeyResult:
    """One of the four key results: its name, its figure and what belongs to that figure."""

    name: str
    value: str
    details: tuple[str, ...]


def title(report: RunReport) -> str:
    """Return the recipe and the target: `solar on cpu`."""
    return f"{report.get('recipe') or 'report'} on {report.get('target') or number_format.MISSING}"


def list_key_results(report: RunReport) -> tuple[KeyResult, ...]:
    """Return accuracy, speed-up, size and checks of the variant that the report is about."""
    return (_accuracy(report), _speedup(report), _size(report), _checks(report))


def _accuracy(report: RunReport) -> KeyResult:
    variant, drop, balanced = reported_variant(report), report.get("accuracy_drop"), report.get("balanced_drop")
    details = []
    if drop:
        details.append(f"{number_format.accuracy_change(drop)} against {drop.get('baseline') or BASELINE}")
    if not number_format.is_missing(variant.get("balanced_accuracy")):
        change = f", {number_format.accuracy_change(balanced)}" if balanced else ""
        details.append(f"balanced accuracy {number_format.percent(variant['balanced_accuracy'])}{change}")
    if variant.get("images"):
        details.append(f"on {variant['images']} images of the {variant.get('split') or 'test'} split")
    return KeyResult(name="Accuracy", value=number_format.accuracy(variant), details=tuple(details))


def _speedup(report: RunReport) -> KeyResult:
    variant, speedup = reported_variant(report), report.get("speedup") or {}
    over_unpruned = report.get("speedup_as_shipped") or {}
    baseline = speedup.get("baseline") or BASELINE
    median, details = _median_latency(variant), []
    if variant.get("name") == baseline:
        details.append(f"median latency {median}")
    elif median != number_format.MISSING:
        change = from_to(_median_latency(find_variant(report, baseline)), median)
        details.append(f"median latency {change}, against {baseline}")
    if over_unpruned and over_unpruned.get("baseline") != baseline:
        against = f"against {over_unpruned.get('baseline')}, which would ship without pruning"
        details.append(f"{number_format.speedup(over_unpruned)} {against}")
    return KeyResult(name="Speed-up", value=number_format.speedup(speedup), details=tuple(details))


def _size(report: RunReport) -> KeyResult:
    variant, dense = reported_variant(report), find_variant(report, BASELINE)
    before, after, details = dense.get("size_bytes"), variant.get("size_bytes"), []
    if not variant or variant["name"] == BASELINE:
        return KeyResult(name="Size", value=number_format.byte_size(after), details=())
    if before and after:
        details.append(f"{number_format.significant(before / after, 2)}× smaller" if before > after else "not smaller")
    for key, word in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        if dense.get(key) and variant.get(key):
            details.append(f"{from_to(number_format.count(dense[key]), number_format.count(variant[key]))} {word}")
    change = from_to(number_format.byte_size(before), number_format.byte_size(after))
    return KeyResult(name="Size", value=change, details=tuple(details))


def _checks(report: RunReport) -> KeyResult:
    verdicts, variant, details = report.get("verdicts") or (), reported_variant(report), []
    parity, coverage = variant.get("parity"), variant.get("integer_coverage")
    if parity:
        agreement = number_format.percent(parity.get("top1_agreement"))
        source = "ONNX graph" if report.get("onnx_file") else "trained model"
        details.append(f"same class as the {source} on {agreement} of images")
    if coverage and variant.get("precision") == "int8":
        details.append(f"{coverage['integer']} of {coverage['total']} convolution and linear layers run in int8")
    if (report.get("speedup") or {}).get("samples"):
        details.append(f"latency from {report['speedup']['samples']} paired rounds")
    for outcome in OUTCOME_TEXTS:
        checks = ", ".join(_name_check(v) for v in verdicts if v["outcome"] == outcome)
        details += [f"{OUTCOME_TEXTS[outcome]}: {checks}"] if checks else []
    value = outcomes.summarize(v["outcome"] for v in verdicts) if verdicts else number_format.MISSING
    return KeyResult(name="Checks", value=value, details=tuple(details))


def _name_check(verdict: Mapping[str, Any]) -> str:
    needed = verdict.get("images_needed")
    return humanize(verdict["check"]) + (f" (about {needed:,} test images would)" if needed else "")


def _median_latency(variant: Mapping[str, Any]) -> str:
    return number_format.milliseconds((variant.get("latency_ms") or {}).get("p50"))


def from_to(before: str, after: str) -> str:
    """Return a change as `before → after`; a dash where both are missing."""
    return f"{before} → {after}" if {before, after} != {number_format.MISSING} else number_format.MISSING
