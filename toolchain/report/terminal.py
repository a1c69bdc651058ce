"""The end of a run on the terminal: the outcome, the key results and the tables that people look at first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import key_results
from toolchain.report.section import TerminalSection, load_sections
from toolchain.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text


OUTCOME_COLOURS = {"pass": "green", "fail": "bold red", "cannot_tell": "yellow", "not_measured": "dim"}
ASCII_SUBSTITUTES = str.maketrans(
    {"−": "-", "–": "-", "±": "+-", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "·": "-", "…": "~"}
)


def print_report(report: RunReport, console: "Console | None" = None) -> None:
    """Print the sections with a TERMINAL_ORDER, warnings and notes, and last the outcome and the key results.

    Colours are left out where the output is no terminal.
    """
    from rich.console import Console

    out = console or Console(highlight=False)
    sections = [section for section in load_sections() if isinstance(section, TerminalSection)]
    sections.sort(key=lambda section: section.TERMINAL_ORDER)
    print_tables([section.tabulate(report) for section in sections], out)
    for sentence in report.get("warnings") or ():
        out.print(make_text(out, f"Warning: {sentence}", "yellow"))
    for sentence in report.get("notes") or ():
        out.print(make_text(out, str(sentence)))
    out.print()
    out.print(make_text(out, key_results.title(report), "dim"))
    style = "bold" if run_report.shipped_name(report) else "bold red"
    out.print(make_text(out, run_report.describe_outcome(report), style))
    out.print(_lay_out_key_results(out, report))


def print_tables(tables: Sequence[Table], console: "Console | None" = None) -> None:
    """Print the tables that have rows."""
    from rich.console import Console

    out = console or Console(highlight=False)
    for table in tables:
        if table.rows:
            columns = _choose_columns(out, table)
            out.print(_lay_out_table(out, table, columns))
            if left_out := [name for i, name in enumerate(table.columns) if i not in columns]:
                out.print(make_text(out, f"not shown at this width: {', '.join(left_out)}", "dim"))


def make_text(out: "Console", text: str, style: str = "") -> "Text":
    """Return text that is shown as it stands, never read as rich's markup; in ASCII where the terminal knows no more."""
    from rich.text import Text

    shown = text.translate(ASCII_SUBSTITUTES) if out.options.ascii_only else text
    return Text(shown.encode(out.encoding, "replace").decode(out.encoding), style=style)


def _lay_out_key_results(out: "Console", report: RunReport) -> "Grid":
    """Lay out the names on the left, and each figure with its details on the right."""
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for result in key_results.list_key_results(report):
        figure = make_text(out, result.value, "bold")
        for line in result.details:
            figure.append("\n").append_text(make_text(out, line))
        grid.add_row(make_text(out, result.name, "dim"), figure)
    return grid


def _choose_columns(out: "Console", table: Table) -> list[int]:
    """Return the columns of a table without as many of its optional ones as are too wide for the terminal."""
    columns = list(range(len(table.columns)))
    unlimited = out.options.update(width=1000)
    for optional in table.optional_columns:
        if out.measure(_lay_out_table(out, table, columns), options=unlimited).maximum <= out.width:
            break
        columns.remove(optional)
    return columns


def _lay_out_table(out: "Console", table: Table, columns: Sequence[int]) -> "Grid":
    """Lay out some columns of a table; the row that ships is bold, outcomes have their colours."""
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="dim")
    for i in columns:
        wraps = i in table.text_columns and i > 0
        grid.add_column(table.columns[i], justify="left" if i in table.text_columns else "right", no_wrap=not wraps)
    outcomes = {run_report.humanize(outcome): colour for outcome, colour in OUTCOME_COLOURS.items()}
    for number, row in enumerate(table.rows):
        ships = number == table.shipping_row
        cells = (f"{row[0]} (ships)" if ships else row[0], *row[1:])
        texts = (make_text(out, cells[i], outcomes.get(cells[i], "")) for i in columns)
        grid.add_row(*texts, style="bold" if ships else "")
    return grid
