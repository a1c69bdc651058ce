"""Writes the finished report: report.json, report.md and report.html on disk, the summary on the terminal.

The report is a plain dict, the interface that report.json is; its words come from `headline`, its tables from
`tables`, the HTML from `page`. Here they are laid out as Markdown and with rich.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.config.job import Job
from toolchain.core import files, run_report
from toolchain.core.run_report import RunReport
from toolchain.report import assemble, html_page, key_results
from toolchain.report.sections import (
    provenance,
    pruning,
    quantization,
    reuse,
    selection,
    sensitivity,
    training,
    variants,
    verdicts,
)
from toolchain.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text


OUTCOME_COLOURS = {"pass": "green", "fail": "bold red", "cannot_tell": "yellow", "not_measured": "dim"}
ASCII_SUBSTITUTES = str.maketrans({"−": "-", "–": "-", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "·": "-", "…": "~"})


def run(job: Job, findings: assemble.RunResults) -> dict[str, Any]:
    """Write the run's report and its raw measurements into the job's folder; return the report."""
    report = assemble.report(findings)
    files.write_json(job.folder / "measurements.json", assemble.measurements(findings))
    write_files(report, job.folder)
    return report


def write_files(report: RunReport, folder: Path) -> None:
    """Writes report.json, report.md and report.html, each whole or not at all; equal reports give equal bytes.

    Raises:
        ToolchainError: the folder cannot be written.
    """
    kept = _finite(files.to_jsonable(report))
    files.write_json(folder / "report.json", kept)
    files.write_text(folder / "report.md", _encodable(render(kept)))
    files.write_text(folder / "report.html", _encodable(html_page.render(kept)))


def _finite(value: Any) -> Any:
    """The same with null for what JSON cannot say: a loss that is not a number would break every reader."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encodable(text: str) -> str:
    """Text as UTF-8 can hold it; a folder's name on disk may be any bytes, and classes are folders."""
    return text.encode("utf-8", "replace").decode()


# --- Markdown -----------------------------------------------------------------------------------------------


def render(report: RunReport) -> str:
    """The report's answers and tables, for a merge request or a CI summary."""
    answers = tuple((a.question, a.value, "; ".join(a.details)) for a in key_results.list_key_results(report))
    said = [*(report.get("notes") or ()), *(f"Warning: {w}" for w in report.get("warnings") or ())]
    parts = [
        f"# {escape(key_results.title(report))}",
        f"**{escape(run_report.describe_outcome(report))}**",
        format_table(Table(columns=("", "", ""), rows=answers, text_columns=(0, 1, 2))),
        "\n".join(f"- {escape(sentence)}" for sentence in said),
        _part("Verdicts", verdicts.tabulate_verdicts(report)),
        _part("Variants", variants.tabulate_variants(report)),
        _part("What each variant needs", variants.tabulate_costs(report)),
        _part("Candidates for the model", selection.tabulate_ranking(report.get("selected"))),
        _part("Candidates left out", selection.tabulate_left_out(report.get("selected"))),
        _reused((report.get("reuse") or {}).get("advice")),
        _part("Layers before and after pruning", pruning.tabulate_layers(report)),
        _part("Size of the pictures", pruning.tabulate_image_sizes(report)),
        _part("How much each layer minds being pruned", sensitivity.tabulate(report, short=True)),
        _part("Training", training.tabulate_training(report)),
        _part("Fine-tuning with several seeds", training.tabulate_seeds(report)),
        _part("Further sets joined to the training images", training.tabulate_joined(report)),
        _part("What ran in integers", quantization.tabulate_coverage(report)),
        _part("Placements timed before training", quantization.tabulate_placements(report)),
        _part("Calibration of activation ranges", quantization.tabulate_calibration(report)),
        _part("Layers ranked for accuracy control", quantization.tabulate_accuracy_control(report)),
        _part("How it was measured", provenance.tabulate_provenance(report)),
        _part("Time of each stage", provenance.tabulate_step_times(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _part(title: str, table: Table) -> str:
    return f"## {title}\n\n{format_table(table)}" if table.rows else ""


def _reused(advice: Mapping[str, Any] | None) -> str:
    if not advice:
        return ""
    table = reuse.tabulate(advice)
    return (
        f"## {reuse.TITLE}\n\n{escape(reuse.describe(advice))}.\n\n{format_table(table) if table.rows else ''}".rstrip()
    )


def format_table(table: Table) -> str:
    """A Markdown table; the row that ships is bold."""
    rule = ("---" if i in table.text_columns else "---:" for i in range(len(table.columns)))
    lines = [_line(table.columns), _line(rule)]
    for number, row in enumerate(table.rows):
        first = f"**{escape(row[0])}** (ships)" if number == table.shipping_row else escape(row[0])
        lines.append(_line((first, *(escape(cell) for cell in row[1:]))))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: object) -> str:
    """Text that Markdown shows as it is, in one line."""
    shown = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*|" else c for c in shown)


# --- terminal -----------------------------------------------------------------------------------------------


def print_report(report: RunReport, console: "Console | None" = None) -> None:
    """Prints what ships, the four answers, the variants and the verdicts; without colours where nobody sees them."""
    from rich.console import Console

    out = console or Console(highlight=False)
    out.print()
    out.print(_text(out, key_results.title(report), "dim"))
    out.print(
        _text(out, run_report.describe_outcome(report), "bold" if run_report.shipped_name(report) else "bold red")
    )
    out.print(_answers(out, report))
    for sentence in report.get("notes") or ():
        out.print(_text(out, str(sentence)))
    for sentence in report.get("warnings") or ():
        out.print(_text(out, f"Warning: {sentence}", "yellow"))
    for table in (
        sensitivity.tabulate(report, short=True),
        variants.tabulate_variants(report),
        verdicts.tabulate_verdicts(report),
    ):
        if table.rows:
            out.print(_fitted(out, table))


def print_tables(found: Sequence[Table], console: "Console | None" = None) -> None:
    """Prints tables, those without rows left out."""
    from rich.console import Console

    out = console or Console(highlight=False)
    for table in found:
        if table.rows:
            out.print(_fitted(out, table))


def _text(out: "Console", text: str, style: str = "") -> "Text":
    """Text as it stands, never as rich's markup; in ASCII where the terminal knows no more."""
    from rich.text import Text

    known = text.translate(ASCII_SUBSTITUTES) if out.options.ascii_only else text
    return Text(known.encode(out.encoding, "replace").decode(out.encoding), style=style)


def _answers(out: "Console", report: RunReport) -> "Grid":
    """Questions on the left, figures with their details on the right."""
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for answer in key_results.list_key_results(report):
        figure = _text(out, answer.value, "bold")
        for line in answer.details:
            figure.append("\n").append_text(_text(out, line))
        grid.add_row(_text(out, answer.question, "dim"), figure)
    return grid


def _fitted(out: "Console", table: Table) -> "Grid":
    """The table with as many columns as the terminal has room for."""
    columns = list(range(len(table.columns)))
    unlimited = out.options.update(width=1000)
    for spare in table.optional_columns:
        if out.measure(_drawn(out, table, columns), options=unlimited).maximum <= out.width:
            break
        columns.remove(spare)
    return _drawn(out, table, columns)


def _drawn(out: "Console", table: Table, columns: Sequence[int]) -> "Grid":
    """Some columns of a table; the row that ships is bold, outcomes have their colours."""
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
        shown = (_text(out, cells[i], outcomes.get(cells[i], "")) for i in columns)
        grid.add_row(*shown, style="bold" if ships else "")
    return grid
