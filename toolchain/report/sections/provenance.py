"""Provenance: carried out of a larger module; to be described."""

from collections.abc import Mapping
from typing import Any

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table, _list, _text, sort_steps


def tabulate_step_times(report: RunReport) -> Table:
    """Time of each stage that took any, and all together."""
    took = report.get("seconds") or {}
    rows = [(name, number_format.duration(took[name])) for name in sort_steps(took) if took[name] != 0]
    known = [value for value in took.values() if not number_format.is_missing(value)]
    total = number_format.duration(sum(known) if known else None)
    return Table(columns=("Stage", "Time"), rows=(*rows, ("all", total)) if rows else ())


def tabulate_provenance(report: RunReport) -> Table:
    """On what, with what and how often it was measured."""
    data, found = report.get("data") or {}, run_report.reported_variant(report)
    facts: dict[str, Any] = {
        "runtime": report.get("runtime"),
        "threads": found.get("threads"),
        "paired rounds": (report.get("speedup") or {}).get("samples"),
        "latency samples": (found.get("latency_ms") or {}).get("samples"),
        "seed": report.get("seed"),
        "domain": report.get("domain"),
        "images": ", ".join(f"{name} {_text(n)}" for name, n in _splits(data.get("images") or {})),
        "classes": _list(data.get("classes") or ()),
        "images skipped": _list(data.get("skipped") or ()) or "none",
        "data digest": data.get("digest"),
        "calibration images": (data.get("calibration") or {}).get("images"),
        **_adapted(report),
        "pretrained weights": (report.get("pretrained") or {}).get("source"),
        "backbone loaded": number_format.percent((report.get("pretrained") or {}).get("share")),
        **{f"machine: {run_report.humanize(k)}": v for k, v in sorted((report.get("machine") or {}).items())},
        **{f"version: {k}": v for k, v in sorted((report.get("versions") or {}).items())},
    }
    return Table(columns=("What", "Value"), rows=tuple((k, _text(v)) for k, v in facts.items()), text_columns=(0, 1))


def _adapted(report: RunReport) -> dict[str, Any]:
    """How the dense model was trained, as far as the report says."""
    found = report.get("adapt") or {}
    changes = ", ".join(f"{run_report.humanize(k)} {_text(v)}" for k, v in (found.get("augment") or {}).items())
    chosen = " (chosen for the kind and number of images)" if found.get("augment_auto") else ""
    probe, over = found.get("probe") or {}, found.get("over_seeds")
    return {
        "aims at": _aim(found.get("balance")),
        "augmentation": f"{changes or 'none'}{chosen}" if found else None,
        "linear probe, validation": number_format.percent(probe.get("accuracy")),
        "teacher of the dense model": found.get("teacher"),
        "validation over seeds": over
        and (
            f"mean {number_format.percent(over['mean'])}, standard deviation {100 * over['deviation']:.1f} points, "
            f"{over['seeds']} seeds"
        ),
    }


def _aim(balance: float | None) -> str | None:
    if balance is None:
        return None
    ends = {0.0: "accuracy", 1.0: "balanced accuracy"}
    return ends.get(balance, f"accuracy and balanced accuracy (balance = {balance:g})")


def _splits(images: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(images.items(), key=lambda item: ("train", "val", "test", item[0]).index(item[0]))
