"""Report section: further datasets that were joined to the training images, and whether each one helped."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table, format_list

TITLE = "Further datasets joined for training"
ORDER = 110
HINT = (
    "Gain in accuracy on the validation images of the dataset itself, paired over the images, with its 95 % interval."
)


def tabulate(report: RunReport) -> Table:
    """Return a row per further dataset, with its gain in accuracy on the validation images."""
    rows = tuple(
        (
            trial["name"],
            str(trial["images"]),
            number_format.significant(trial["weight"]),
            number_format.accuracy_gain(trial["gain"]),
            number_format.accuracy_gain(trial["balanced_gain"]),
            str(trial["gain"]["samples"]),
            "kept" if trial["kept"] else "dropped: no gain",
            _describe_left_out(trial),
        )
        for trial in (report.get("adapt") or {}).get("joined") or ()
    )
    columns = ("Dataset", "Images", "Weight", "Gain", "Balanced", "Measured on", "Outcome", "Left out")
    return Table(columns=columns, rows=rows, text_columns=(0, 6, 7))


def _describe_left_out(trial: Mapping[str, Any]) -> str:
    """Return what of a dataset was not used: classes that the dataset itself lacks, leaked images, unreadable files."""
    parts = [f"classes {format_list(trial['left_out'])}"] if trial["left_out"] else []
    parts += [f"{trial['leaked']} images that are also in validation or test"] if trial["leaked"] else []
    parts += [f"unreadable files: {trial['corrupt']}"] if trial["corrupt"] else []
    return "; ".join(parts) or "nothing"


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and how the gain was measured."""
    return html_page.render_table(tabulate(report)), html_page.hint(HINT)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import joined_datasets as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
