"""Report section: on what, with what and how often everything was measured."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table, format_list, format_value

TITLE = "How it was measured"
ORDER = 160
SPLIT_ORDER = ("train", "val", "test")
OBJECTIVES = {0.0: "accuracy", 1.0: "balanced accuracy"}  # by the recipe's `balance`


def tabulate(report: RunReport) -> Table:
    """Return a row per fact: runtime, samples, images, training, weights, machine, versions."""
    data, variant = report.get("data") or {}, run_report.reported_variant(report)
    pretrained = report.get("pretrained") or {}
    facts: dict[str, Any] = {
        "runtime": report.get("runtime"),
        "threads": variant.get("threads"),
        "paired rounds": (report.get("speedup") or {}).get("samples"),
        "latency samples": (variant.get("latency_ms") or {}).get("samples"),
        "seed": report.get("seed"),
        "dataset": report.get("domain"),
        "images": ", ".join(f"{split} {format_value(n)}" for split, n in _sort_splits(data.get("images") or {})),
        "classes": format_list(data.get("classes") or ()),
        "images skipped": format_list(data.get("skipped") or ()) or "none",
        "data digest": data.get("digest"),
        "calibration images": (data.get("calibration") or {}).get("images"),
        **_list_training_facts(report),
        "pretrained weights": pretrained.get("source"),
        "pretrained weights loaded": number_format.percent(pretrained.get("share")),
        **{f"machine: {run_report.humanize(k)}": v for k, v in sorted((report.get("machine") or {}).items())},
        **{f"version: {k}": v for k, v in sorted((report.get("versions") or {}).items())},
    }
    rows = tuple((name, format_value(value)) for name, value in facts.items())
    return Table(columns=("Fact", "Value"), rows=rows, text_columns=(0, 1))


def _list_training_facts(report: RunReport) -> dict[str, Any]:
    """Return how the dense model was trained, as far as the report says."""
    training = report.get("adapt") or {}
    changes = ", ".join(
        f"{run_report.humanize(name)} {format_value(value)}" for name, value in (training.get("augment") or {}).items()
    )
    chosen = " (chosen by the kind and number of images)" if training.get("augment_auto") else ""
    probe, over_seeds = training.get("probe") or {}, training.get("over_seeds")
    return {
        "optimized for": _describe_objective(training.get("balance")),
        "augmentation": f"{changes or 'none'}{chosen}" if training else None,
        "linear probe, validation accuracy": number_format.percent(probe.get("accuracy")),
        "teacher": training.get("teacher"),
        "validation accuracy over seeds": over_seeds
        and (
            f"mean {number_format.percent(over_seeds['mean'])}, standard deviation "
            f"{100 * over_seeds['deviation']:.1f} points, {over_seeds['seeds']} seeds"
        ),
    }


def _describe_objective(balance: float | None) -> str | None:
    if balance is None:
        return None
    return OBJECTIVES.get(balance, f"accuracy and balanced accuracy (balance = {balance:g})")


def _sort_splits(images: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(images.items(), key=lambda item: (*SPLIT_ORDER, item[0]).index(item[0]))


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the facts as a list of pairs, in as many columns as the page is wide enough for."""
    pairs = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tabulate(report).rows)
    return (f'<dl class="facts">{"".join(pairs)}</dl>',)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import provenance as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
