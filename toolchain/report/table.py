"""The report's tables as text, before anyone decides how they look.

Terminal, Markdown and HTML only lay these out, so that they cannot disagree. Nothing depends on the order of keys:
a report read back from report.json reads the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
MAX_NAMES = 20  # names shown of a long list


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text. `prose` are the columns of words; `spare` those to leave out, in turn, on a narrow terminal."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)
    optional_columns: tuple[int, ...] = ()
    shipping_row: int | None = None  # row of the variant that ships


def sort_steps(names: Iterable[str]) -> list[str]:
    """Stages as they run; names that are no stage follow in alphabetical order."""
    return sorted(names, key=lambda name: (STEP_ORDER.index(name) if name in STEP_ORDER else len(STEP_ORDER), name))


def interval_fields(over: Mapping[str, Any]) -> dict[str, Any]:
    """An interval under the names of a variant's accuracy."""
    return {"accuracy": over["estimate"], "accuracy_low": over["low"], "accuracy_high": over["high"]}


def _list(names: Iterable[Any]) -> str:
    shown = [_text(name) for name in names]
    rest = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return f"{len(shown)}: {', '.join(shown[:MAX_NAMES])}{rest}" if shown else ""


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return number_format.MISSING if number_format.is_missing(value) or value == "" else str(value)
