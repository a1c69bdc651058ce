"""Run report: carried out of a larger module; to be described."""

from collections.abc import Mapping
from typing import Any

RunReport = Mapping[str, Any]
BASELINE = "dense-fp32"  # what all variants are compared with


def find_variant(report: RunReport, name: str | None) -> Mapping[str, Any]:
    """The variant of that name, or an empty one."""
    return next((v for v in report.get("variants") or () if v["name"] == name), {})


def shipped_name(report: RunReport) -> str | None:
    """Name of the variant that ships; None when a budget was missed."""
    marked = next((v["name"] for v in report.get("variants") or () if v.get("shipped")), None)
    name: str | None = report.get("shipped", marked)
    return name


def reported_variant(report: RunReport) -> Mapping[str, Any]:
    """The variant that the figures are about: the one that ships, else the candidate that missed a budget."""
    return find_variant(report, shipped_name(report) or report.get("candidate"))


def describe_outcome(report: RunReport) -> str:
    """What ships, or that nothing does and for which checks, in a sentence."""
    name, found = shipped_name(report), reported_variant(report)
    if name:
        how = ", ".join(str(part) for part in (found.get("precision"), found.get("method")) if part)
        return f"{name} ships" + (f" ({how})" if how else "")
    failed = ", ".join(humanize(v["check"]) for v in report.get("verdicts") or () if v["outcome"] == "fail")
    whose = f"{found['name']} misses" if found else "missed"
    return f"Nothing ships: {whose} {failed}" if failed else "Nothing ships"


def humanize(name: str) -> str:
    """`cannot_tell` as a reader would write it; a unit stands with the figure, not in the name."""
    return name.removesuffix("_bytes").removesuffix("_ms").replace("_", " ")
