"""The report's answer in words: what ships, how accurate, how fast, how big and how sure, each with its figure.

Terminal, Markdown and HTML only lay these out, so that they cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolchain.core.run_report import BASELINE, RunReport, find_variant, humanize, reported_variant
from toolchain.report import number_format


@dataclass(frozen=True, kw_only=True)
class KeyResult:
    """One of the four questions: a figure that answers it and what belongs to that figure."""

    question: str
    value: str
    details: tuple[str, ...]


def title(report: RunReport) -> str:
    """`solar on cpu`."""
    return f"{report.get('recipe') or 'report'} on {report.get('target') or number_format.MISSING}"


def list_key_results(report: RunReport) -> tuple[KeyResult, ...]:
    """How accurate, how fast, how big, how sure."""
    return (_accurate(report), _fast(report), _big(report), _sure(report))


def _accurate(report: RunReport) -> KeyResult:
    found, drop, balanced = reported_variant(report), report.get("accuracy_drop"), report.get("balanced_drop")
    details = []
    if drop:
        details.append(f"{number_format.accuracy_change(drop)} against {drop.get('baseline') or BASELINE}")
    if not number_format.is_missing(found.get("balanced_accuracy")):
        by = f", {number_format.accuracy_change(balanced)}" if balanced else ""
        details.append(f"balanced over classes: {number_format.percent(found['balanced_accuracy'])}{by}")
    if found.get("images"):
        details.append(f"{found['images']} images of the {found.get('split') or 'test'} split")
    return KeyResult(question="How accurate", value=number_format.accuracy(found), details=tuple(details))


def _fast(report: RunReport) -> KeyResult:
    found, speedup, unpruned = (
        reported_variant(report),
        report.get("speedup") or {},
        report.get("speedup_as_shipped") or {},
    )
    baseline = speedup.get("baseline") or BASELINE
    details = []
    if found.get("name") == baseline:
        details.append(f"{_p50(found)} in the median")
    elif _p50(found) != number_format.MISSING:
        details.append(
            f"{from_to(_p50(find_variant(report, baseline)), _p50(found))} in the median, against {baseline}"
        )
    if unpruned and unpruned.get("baseline") != baseline:
        details.append(
            f"{number_format.speedup(unpruned)} against {unpruned.get('baseline')}, which would ship unpruned"
        )
    return KeyResult(question="How fast", value=number_format.speedup(speedup), details=tuple(details))


def _big(report: RunReport) -> KeyResult:
    found, dense = reported_variant(report), find_variant(report, BASELINE)
    before, after, details = dense.get("size_bytes"), found.get("size_bytes"), []
    if not found or found["name"] == BASELINE:
        return KeyResult(question="How big", value=number_format.byte_size(after), details=())
    if before and after:
        details.append(f"{number_format.significant(before / after, 2)}× smaller" if before > after else "not smaller")
    for key, word in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        if dense.get(key) and found.get(key):
            details.append(f"{from_to(number_format.count(dense[key]), number_format.count(found[key]))} {word}")
    return KeyResult(
        question="How big",
        value=from_to(number_format.byte_size(before), number_format.byte_size(after)),
        details=tuple(details),
    )


def _sure(report: RunReport) -> KeyResult:
    judged, found, details = report.get("verdicts") or (), reported_variant(report), []
    passed = sum(v["outcome"] == "pass" for v in judged)
    parity, coverage = found.get("parity"), found.get("integer_coverage")
    if parity:
        details.append(
            f"same class as the trained model on {number_format.percent(parity.get('top1_agreement'))} of images"
        )
    if coverage and found.get("precision") == "int8":
        details.append(f"{coverage['integer']} of {coverage['total']} conv and linear layers run in integers")
    if (report.get("speedup") or {}).get("samples"):
        details.append(f"{report['speedup']['samples']} paired rounds of timing")
    for outcome in ("fail", "cannot_tell", "not_measured"):
        named = ", ".join(humanize(v["check"]) for v in judged if v["outcome"] == outcome)
        details += [f"{humanize(outcome)}: {named}"] if named else []
    figure = f"{passed} of {len(judged)} checks pass" if judged else number_format.MISSING
    return KeyResult(question="How sure", value=figure, details=tuple(details))


def _p50(found: Mapping[str, Any]) -> str:
    return number_format.milliseconds((found.get("latency_ms") or {}).get("p50"))


def from_to(before: str, after: str) -> str:
    """Two figures, the first turned into the second."""
    return f"{before} → {after}" if {before, after} != {number_format.MISSING} else number_format.MISSING
