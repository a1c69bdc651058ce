"""`toolchain report`: show a finished run's report again, or latency and accuracy over time."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli import results
from toolchain.core.errors import ToolchainError

PANEL = "Measure and gate"


def report(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run, such as out/digits/cpu; with --history, of all runs (out).")
    ] = None,
    history: Annotated[bool, typer.Option(help="Show latency and accuracy over time, from history.jsonl.")] = False,
) -> None:
    """Show a finished run's report again and rewrite its HTML and Markdown, or show latency and accuracy over time."""
    from toolchain.core import files
    from toolchain.measure import history as run_history
    from toolchain.report import terminal, write

    if history:
        from toolchain.report.pages import history as history_report

        folder = run or Path("out")
        entries, skipped = run_history.read(folder / run_history.FILE_NAME)
        history_report.write_page(entries, skipped, folder / "history.html")
        targets = history_report.group_by_target(entries)
        terminal.print_tables([history_report.tabulate(name, of_target) for name, of_target in targets.items()])
        if skipped:
            typer.echo(f"Warning: {history_report.describe_skipped_lines(skipped)}", err=True)
        typer.echo(f"plots: {folder / 'history.html'}")
        return
    if run is None:
        raise ToolchainError("no run given; give the folder of a run, such as out/digits/cpu, or --history")
    written = files.read_json(run / "report.json")
    write.write_files(written, run)
    terminal.print_report(written)
    results.print_paths(run, written)
