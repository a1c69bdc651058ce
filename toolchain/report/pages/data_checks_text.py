"""The result of `toolchain check-data` in words and tables, and all of it on the terminal."""

from typing import TYPE_CHECKING

from toolchain.data.checks.finding import SEVERITIES, DatasetCheck
from toolchain.data.checks.wording import pluralize
from toolchain.report import number_format
from toolchain.report.table import Table
from toolchain.report.terminal import make_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

    from toolchain.models.domain_shift import DomainShift


SEVERITY_COLOURS = {"severe": "bold red", "warning": "yellow", "note": "dim"}
MAX_SIZES = 8  # listed


def describe_outcome(checkup: DatasetCheck) -> str:
    """Return the outcome in a few words."""
    severe, warnings, _ = (sum(f.severity == severity for f in checkup.findings) for severity in SEVERITIES)
    if severe:
        return f"{pluralize(severe, 'severe finding')}: fix before training"
    return (
        f"{pluralize(warnings, 'warning')}, no severe finding" if warnings else "No problem found, ready for training"
    )


def title(checkup: DatasetCheck) -> str:
    """Return the dataset, its folder, the number of images and classes, and how long the check took."""
    images = f"{pluralize(checkup.pictures, 'image')} in {pluralize(len(checkup.classes), 'class', 'classes')}"
    return f"{checkup.domain} · {checkup.folder} · {images} · {number_format.duration(checkup.seconds)}"


def tabulate_classes(checkup: DatasetCheck) -> Table:
    """Return a row per class: images by split, and how precisely its recall can be known."""
    splits = list(dict.fromkeys(split for count in checkup.classes for split in count.pictures))
    rows = tuple(
        (
            count.label,
            *(f"{count.pictures.get(split, 0):,}" for split in splits),
            f"± {100 * count.recall_reach:.0f} pt" if count.recall_reach is not None else number_format.MISSING,
        )
        for count in checkup.classes
    )
    return Table(columns=("Class", *(split or "images" for split in splits), "Recall known to"), rows=rows)


def tabulate_sizes(checkup: DatasetCheck) -> Table:
    """Return a row per image size, the most frequent first; the rest in one row with the smallest and the largest."""
    areas = sorted(checkup.sizes, key=lambda size: size.width * size.height)
    rows = [
        (f"{size.width}×{size.height}", f"{size.pictures:,}", number_format.percent(size.pictures / checkup.pictures))
        for size in checkup.sizes[:MAX_SIZES]
    ]
    if rest := checkup.sizes[MAX_SIZES:]:
        count = sum(size.pictures for size in rest)
        name = f"{len(rest):,} others, {areas[0].width}×{areas[0].height} to {areas[-1].width}×{areas[-1].height}"
        rows.append((name, f"{count:,}", number_format.percent(count / checkup.pictures)))
    return Table(columns=("Width × height", "Images", "Share"), rows=tuple(rows))


def tabulate_modes(checkup: DatasetCheck) -> Table:
    """Return a row per pixel mode, by Pillow's names."""
    rows = tuple((mode, f"{n:,}", number_format.percent(n / checkup.pictures)) for mode, n in checkup.modes.items())
    return Table(columns=("Mode", "Images", "Share"), rows=rows)


def print_results(checkup: DatasetCheck, shift: "DomainShift | None", console: "Console | None" = None) -> None:
    """Print the outcome, every finding and the table of classes; without colours where the output is no terminal."""
    from rich.console import Console

    out = console or Console(highlight=False)
    out.print()
    out.print(make_text(out, title(checkup), "dim"))
    out.print(make_text(out, describe_outcome(checkup), "bold red" if checkup.has_severe_finding else "bold"))
    out.print(_lay_out_findings(out, checkup))
    if shift:
        out.print(make_text(out, shift.text))
    out.print(_lay_out_table(out, tabulate_classes(checkup)))


def _lay_out_findings(out: "Console", checkup: DatasetCheck) -> "Grid":
    """Lay out the severity on the left and the sentence on the right."""
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in checkup.findings:
        grid.add_row(make_text(out, finding.severity, SEVERITY_COLOURS[finding.severity]), make_text(out, finding.text))
    return grid


def _lay_out_table(out: "Console", table: Table) -> "Grid":
    """Lay out a table; long labels wrap."""
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="dim")
    for i, name in enumerate(table.columns):
        grid.add_column(name, justify="left" if i in table.text_columns else "right")
    for row in table.rows:
        grid.add_row(*(make_text(out, cell) for cell in row))
    return grid
