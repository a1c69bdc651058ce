"""`toolchain report`: a finished run again, or how a target has moved over time."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli import results
from toolchain.core.errors import ToolchainError

PANEL = "Measure and gate"


def report(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run, such as out/digits/cpu; with --history the folder of all.")
    ] = None,
    history: Annotated[bool, typer.Option(help="Latency and accuracy over time instead, from history.jsonl.")] = False,
) -> None:
    """Show a finished run's report again and rewrite its HTML and Markdown; or how a target has moved over time."""
    from toolchain.core import files
    from toolchain.measure import history as histories
    from toolchain.report import terminal, write

    if history:
        from toolchain.report.pages import history as history_report

        folder = run or Path("out")
        entries, odd = histories.read(folder / histories.FILE_NAME)
        history_report.write_page(entries, odd, folder / "history.html")
        terminal.print_tables(
            [history_report.tabulate(name, own) for name, own in history_report.group_by_target(entries).items()]
        )
        if odd:
            typer.echo(f"Warning: {history_report.describe_skipped_lines(odd)}", err=True)
        typer.echo(f"plots: {folder / 'history.html'}")
        return
    if run is None:
        raise ToolchainError("name the folder of a run, such as out/digits/cpu, or ask for --history")
    written = files.read_json(run / "report.json")
    write.write_files(written, run)
    terminal.print_report(written)
    results.print_paths(run, written)
