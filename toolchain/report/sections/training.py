"""Training: carried out of a larger module; to be described."""

from collections.abc import Mapping
from typing import Any

from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table, _list, sort_steps


def tabulate_training(report: RunReport) -> Table:
    """Epochs, losses and validation accuracy of every training stage."""
    stages, rows = report.get("training") or {}, []
    for name in sort_steps(stages):
        reached = [e["accuracy"] for e in stages[name] if not number_format.is_missing(e.get("accuracy"))]
        losses = [e["loss"] for e in stages[name] if not number_format.is_missing(e.get("loss"))]
        best, last = (max(reached), reached[-1]) if reached else (None, None)
        loss = number_format.significant(losses[-1] if losses else None)
        rows.append((name, str(len(stages[name])), number_format.percent(best), number_format.percent(last), loss))
    return Table(columns=("Stage", "Epochs", "Best accuracy", "Last accuracy", "Last loss"), rows=tuple(rows))


def tabulate_joined(report: RunReport) -> Table:
    """What further sets brought on the domain's own validation images."""
    rows = tuple(
        (
            one["name"],
            str(one["images"]),
            number_format.significant(one["weight"]),
            number_format.accuracy_gain(one["gain"]),
            number_format.accuracy_gain(one["balanced_gain"]),
            str(one["gain"]["samples"]),
            "stays" if one["kept"] else "dropped: it brings nothing",
            _beside(one),
        )
        for one in (report.get("adapt") or {}).get("joined") or ()
    )
    columns = ("Further set", "Images", "Weight", "Brings", "Balanced", "Measured on", "Outcome", "Left out")
    return Table(columns=columns, rows=rows, text_columns=(0, 6, 7))


def _beside(one: Mapping[str, Any]) -> str:
    parts = [f"classes {_list(one['left_out'])}"] if one["left_out"] else []
    parts += [f"{one['leaked']} images that are in validation or test"] if one["leaked"] else []
    parts += [f"{one['corrupt']} unreadable files"] if one["corrupt"] else []
    return "; ".join(parts) or "nothing"


def tabulate_seeds(report: RunReport) -> Table:
    """Every repeat of the fine-tuning, where there was more than one."""
    found = (report.get("adapt") or {}).get("seeds") or ()
    rows = tuple(
        (
            str(one["seed"]),
            number_format.percent(one["validation"]),
            number_format.percent(one["validation_balanced"]),
            str(one["epoch"]),
            "goes on" if one["chosen"] else "",
        )
        for one in found
    )
    columns = ("Seed", "Validation accuracy", "Balanced", "Best epoch", "")
    return Table(columns=columns, rows=rows if len(rows) > 1 else (), text_columns=(0, 4))
