"""The report's answer in words: what ships, how accurate, how fast, how big and how sure, each with its figure.

Terminal, Markdown and HTML only lay these out, so that they cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolchain import figures

Report = Mapping[str, Any]
FLOAT = "dense-fp32"  # what all variants are compared with


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One of the four questions: a figure that answers it and what belongs to that figure."""

    question: str
    figure: str
    details: tuple[str, ...]


def variant(report: Report, name: str | None) -> Mapping[str, Any]:
    """The variant of that name, or an empty one."""
    return next((v for v in report.get("variants") or () if v["name"] == name), {})


def shipped(report: Report) -> str | None:
    """Name of the variant that ships; None when a budget was missed."""
    marked = next((v["name"] for v in report.get("variants") or () if v.get("shipped")), None)
    name: str | None = report.get("shipped", marked)
    return name


def subject(report: Report) -> Mapping[str, Any]:
    """The variant that the figures are about: the one that ships, else the candidate that missed a budget."""
    return variant(report, shipped(report) or report.get("candidate"))


def title(report: Report) -> str:
    """`solar on cpu`."""
    return f"{report.get('recipe') or 'report'} on {report.get('target') or figures.NONE}"


def outcome(report: Report) -> str:
    """What ships, or that nothing does and for which checks, in a sentence."""
    name, found = shipped(report), subject(report)
    if name:
        how = ", ".join(str(part) for part in (found.get("precision"), found.get("method")) if part)
        return f"{name} ships" + (f" ({how})" if how else "")
    failed = ", ".join(words(v["check"]) for v in report.get("verdicts") or () if v["outcome"] == "fail")
    whose = f"{found['name']} misses" if found else "missed"
    return f"Nothing ships: {whose} {failed}" if failed else "Nothing ships"


def answers(report: Report) -> tuple[Answer, ...]:
    """How accurate, how fast, how big, how sure."""
    return (_accurate(report), _fast(report), _big(report), _sure(report))


def _accurate(report: Report) -> Answer:
    found, drop, balanced = subject(report), report.get("accuracy_drop"), report.get("balanced_drop")
    details = []
    if drop:
        details.append(f"{figures.change(drop)} against {drop.get('baseline') or FLOAT}")
    if not figures.missing(found.get("balanced_accuracy")):
        by = f", {figures.change(balanced)}" if balanced else ""
        details.append(f"balanced over classes: {figures.percent(found['balanced_accuracy'])}{by}")
    if found.get("images"):
        details.append(f"{found['images']} images of the {found.get('split') or 'test'} split")
    return Answer(question="How accurate", figure=figures.accuracy(found), details=tuple(details))


def _fast(report: Report) -> Answer:
    found, speedup, unpruned = subject(report), report.get("speedup") or {}, report.get("speedup_as_shipped") or {}
    baseline = speedup.get("baseline") or FLOAT
    details = []
    if found.get("name") == baseline:
        details.append(f"{_p50(found)} in the median")
    elif _p50(found) != figures.NONE:
        details.append(f"{pair(_p50(variant(report, baseline)), _p50(found))} in the median, against {baseline}")
    if unpruned and unpruned.get("baseline") != baseline:
        details.append(f"{figures.ratio(unpruned)} against {unpruned.get('baseline')}, which would ship unpruned")
    return Answer(question="How fast", figure=figures.ratio(speedup), details=tuple(details))


def _big(report: Report) -> Answer:
    found, dense = subject(report), variant(report, FLOAT)
    before, after, details = dense.get("size_bytes"), found.get("size_bytes"), []
    if not found or found["name"] == FLOAT:
        return Answer(question="How big", figure=figures.size(after), details=())
    if before and after:
        details.append(f"{figures.significant(before / after, 2)}× smaller" if before > after else "not smaller")
    for key, word in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        if dense.get(key) and found.get(key):
            details.append(f"{pair(figures.count(dense[key]), figures.count(found[key]))} {word}")
    return Answer(question="How big", figure=pair(figures.size(before), figures.size(after)), details=tuple(details))


def _sure(report: Report) -> Answer:
    judged, found, details = report.get("verdicts") or (), subject(report), []
    passed = sum(v["outcome"] == "pass" for v in judged)
    parity, coverage = found.get("parity"), found.get("integer_coverage")
    if parity:
        details.append(f"same class as the trained model on {figures.percent(parity.get('top1_agreement'))} of images")
    if coverage and found.get("precision") == "int8":
        details.append(f"{coverage['integer']} of {coverage['total']} conv and linear layers run in integers")
    if (report.get("speedup") or {}).get("samples"):
        details.append(f"{report['speedup']['samples']} paired rounds of timing")
    for outcome in ("fail", "cannot_tell", "not_measured"):
        named = ", ".join(words(v["check"]) for v in judged if v["outcome"] == outcome)
        details += [f"{words(outcome)}: {named}"] if named else []
    figure = f"{passed} of {len(judged)} checks pass" if judged else figures.NONE
    return Answer(question="How sure", figure=figure, details=tuple(details))


def _p50(found: Mapping[str, Any]) -> str:
    return figures.milliseconds((found.get("latency_ms") or {}).get("p50"))


def pair(before: str, after: str) -> str:
    """Two figures, the first turned into the second."""
    return f"{before} → {after}" if {before, after} != {figures.NONE} else figures.NONE


def words(name: str) -> str:
    """`cannot_tell` as a reader would write it; a unit stands with the figure, not in the name."""
    return name.removesuffix("_bytes").removesuffix("_ms").replace("_", " ")
