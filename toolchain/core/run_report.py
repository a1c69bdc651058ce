"""Read a run's report (`report.json`): find its variants, what shipped, and the outcome in a sentence."""

from collections.abc import Mapping
from typing import Any

RunReport = Mapping[str, Any]
BASELINE = "dense-fp32"  # name of the variant that all others are compared with


def find_variant(report: RunReport, name: str | None) -> Mapping[str, Any]:
    """Return the variant of that name, or an empty mapping."""
    return next((v for v in report.get("variants") or () if v["name"] == name), {})


def shipped_name(report: RunReport) -> str | None:
    """Return the name of the variant that ships; None if a budget was missed."""
    marked = next((variant["name"] for variant in report.get("variants") or () if variant.get("shipped")), None)
    name: str | None = report.get("shipped", marked)
    return name


def reported_variant(report: RunReport) -> Mapping[str, Any]:
    """Return the variant that ships or, if none does, the candidate that missed a budget."""
    return find_variant(report, shipped_name(report) or report.get("candidate"))


def describe_outcome(report: RunReport) -> str:
    """Return a sentence that says what ships, or which checks failed so that nothing does."""
    name, variant = shipped_name(report), reported_variant(report)
    if name:
        details = ", ".join(str(detail) for detail in (variant.get("precision"), variant.get("method")) if detail)
        return f"{name} ships" + (f" ({details})" if details else "")
    failed = ", ".join(map(humanize, list_missed(report)))
    subject = f"{variant['name']} misses" if variant else "missed"
    return f"Nothing ships: {subject} {failed}" if failed else "Nothing ships"


def list_missed(report: RunReport) -> list[str]:
    """Return the checks because of which nothing ships; reports of schema 1 only have the verdicts."""
    failed = [verdict["check"] for verdict in report.get("verdicts") or () if verdict["outcome"] == "fail"]
    return list(report.get("missed") or failed)


def humanize(name: str) -> str:
    """Return a JSON name, such as `cannot_tell`, as words. The unit is dropped: it stands beside the value."""
    return name.removesuffix("_bytes").removesuffix("_ms").replace("_", " ")
