"""An examination in words: its headline, its tables as text, and all of it on the terminal."""

from typing import TYPE_CHECKING

from toolchain.data.checks.finding import SEVERITIES, DatasetCheck, pluralize
from toolchain.report import number_format
from toolchain.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from toolchain.models.domain_shift import DomainShift


SEVERITY_COLOURS = {"severe": "bold red", "warning": "yellow", "note": "dim"}
ASCII_SUBSTITUTES = str.maketrans({"±": "+-", "×": "x", "–": "-", "−": "-"})
MAX_SIZES = 8  # sizes listed


def describe_outcome(checkup: DatasetCheck) -> str:
    """What it comes to, in a few words."""
    severe, warnings, _ = (sum(f.severity == severity for f in checkup.findings) for severity in SEVERITIES)
    if severe:
        return f"{pluralize(severe, 'severe finding')}: put right before training"
    return (
        f"{pluralize(warnings, 'warning')}, nothing severe"
        if warnings
        else "Nothing found that speaks against training"
    )


def title(checkup: DatasetCheck) -> str:
    """What was examined."""
    read = f"{pluralize(checkup.pictures)} in {pluralize(len(checkup.classes), 'class', 'classes')}"
    return f"{checkup.domain} · {checkup.folder} · {read} · {number_format.duration(checkup.seconds)}"


def tabulate_classes(checkup: DatasetCheck) -> Table:
    """Pictures of every class by split, and how well its recall can be known."""
    splits = list(dict.fromkeys(split for count in checkup.classes for split in count.pictures))
    rows = tuple(
        (
            count.label,
            *(f"{count.pictures.get(split, 0):,}" for split in splits),
            f"± {100 * count.recall_reach:.0f} pt" if count.recall_reach is not None else number_format.MISSING,
        )
        for count in checkup.classes
    )
    return Table(columns=("Class", *(split or "pictures" for split in splits), "Recall known to"), rows=rows)


def tabulate_sizes(checkup: DatasetCheck) -> Table:
    """Sizes of the pictures, most frequent first; the smallest and the largest whatever their number."""
    areas = sorted(checkup.sizes, key=lambda size: size.width * size.height)
    rows = [
        (f"{size.width}×{size.height}", f"{size.pictures:,}", number_format.percent(size.pictures / checkup.pictures))
        for size in checkup.sizes[:MAX_SIZES]
    ]
    if rest := checkup.sizes[MAX_SIZES:]:
        number = sum(size.pictures for size in rest)
        named = f"{len(rest):,} others, {areas[0].width}×{areas[0].height} to {areas[-1].width}×{areas[-1].height}"
        rows.append((named, f"{number:,}", number_format.percent(number / checkup.pictures)))
    return Table(columns=("Width × height", "Pictures", "Share"), rows=tuple(rows))


def tabulate_modes(checkup: DatasetCheck) -> Table:
    """Kinds of pixels, by Pillow's names."""
    rows = tuple((mode, f"{n:,}", number_format.percent(n / checkup.pictures)) for mode, n in checkup.modes.items())
    return Table(columns=("Mode", "Pictures", "Share"), rows=rows)


def print_results(checkup: DatasetCheck, shift: "DomainShift | None", console: "Console | None" = None) -> None:
    """Prints the headline, every finding and the table of classes; without colours where nobody sees them."""
    from rich.console import Console

    out = console or Console(highlight=False)
    out.print()
    out.print(_text(out, title(checkup), "dim"))
    out.print(_text(out, describe_outcome(checkup), "bold red" if checkup.has_severe_finding else "bold"))
    out.print(_findings(out, checkup))
    if shift:
        out.print(_text(out, shift.text))
    out.print(_drawn(out, tabulate_classes(checkup)))


def _text(out: "Console", text: str, style: str = "") -> "Text":
    """Text as it stands, never as rich's markup; in ASCII where the terminal knows no more."""
    from rich.text import Text

    known = text.translate(ASCII_SUBSTITUTES) if out.options.ascii_only else text
    return Text(known.encode(out.encoding, "replace").decode(out.encoding), style=style)


def _findings(out: "Console", checkup: DatasetCheck) -> "Grid":
    """Severity on the left, the sentence on the right."""
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in checkup.findings:
        grid.add_row(_text(out, finding.severity, SEVERITY_COLOURS[finding.severity]), _text(out, finding.text))
    return grid


def _drawn(out: "Console", table: Table) -> "Grid":
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="dim")
    for i, name in enumerate(table.columns):
        grid.add_column(name, justify="left" if i in table.text_columns else "right")
    for row in table.rows:
        grid.add_row(*(_text(out, cell) for cell in row))
    return grid
