"""The report's tables as text, before they are laid out.

Terminal, Markdown and HTML only lay these out, so that they cannot disagree. Nothing depends on the order of keys:
a report read back from report.json reads the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import number_format

STEP_ORDER = (
    "data",
    "select",
    "adapt",
    "sparsify",
    "fit",
    "sensitivity",
    "place",
    "prune",
    "recover",
    "quantize",
    "export",
    "verify",
    "bench",
    "judge",
    "bundle",
)
MAX_NAMES = 20  # shown of a long list


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text, a cell for each column; the first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)  # of words, aligned left; all others are numbers
    optional_columns: tuple[int, ...] = ()  # left out on a narrow terminal, the first one first
    shipping_row: int | None = None  # of the variant that ships


def find_shipping_row(report: RunReport, names: Sequence[str]) -> int | None:
    """Return where the variant that ships stands among the names of a table's rows; None where it does not."""
    shipped = run_report.shipped_name(report)
    return names.index(shipped) if shipped in names else None


def sort_steps(names: Iterable[str]) -> list[str]:
    """Return names of steps in the order that they run in; all other names follow in alphabetical order."""
    return sorted(names, key=lambda name: (STEP_ORDER.index(name) if name in STEP_ORDER else len(STEP_ORDER), name))


def interval_fields(interval: Mapping[str, Any]) -> dict[str, Any]:
    """Return an interval under the keys that a variant's accuracy has."""
    return {"accuracy": interval["estimate"], "accuracy_low": interval["low"], "accuracy_high": interval["high"]}


def format_list(items: Iterable[Any]) -> str:
    """Return how many items there are and the first MAX_NAMES of them: `2: cat, dog`; "" without any."""
    names = [format_value(item) for item in items]
    rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{len(names)}: {', '.join(names[:MAX_NAMES])}{rest}" if names else ""


def format_value(value: Any) -> str:
    """Return any value of a report as text: mappings and lists on one line, a dash where there is nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(item)}" for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    return number_format.MISSING if number_format.is_missing(value) or value == "" else str(value)
