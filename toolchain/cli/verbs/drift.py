"""`toolchain drift`: whether what boards counted still looks like what the model was tested on."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Ship and watch"


def drift(
    bundle: Annotated[Path, typer.Argument(help="The bundle that counted: its folder or archive.")],
    counts: Annotated[list[Path], typer.Argument(help="Files that `run.py --watch` wrote, one or of many boards.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder; drift/drift.html and drift.json are written in it.")
    ] = Path("out"),
) -> None:
    """Has the world moved away from what the model was tested on? fine, recalibrate or retrain, and what moved.

    Exit status: 0 fine, 1 something moved, 2 wrong input, 3 too few pictures to tell.
    """
    from toolchain.deploy import drift as drifts
    from toolchain.deploy import drift_reference
    from toolchain.report import terminal
    from toolchain.report.pages import drift as drift_report

    own = drift_reference.load_bundle(bundle)
    files = drifts.read_counters(counts, own.identity, own.reference.count_bins(len(own.classes)))
    found = drifts.detect(own.name, own.reference, len(own.classes), files)
    drift_report.write(found, own, out / "drift")
    terminal.print_tables(drift_report.tabulate_windows(found))
    typer.echo(drift_report.describe_verdict(found))
    typer.echo(f"plots: {out / 'drift' / 'drift.html'}")
    if found.verdict != "fine":
        raise typer.Exit(3 if found.verdict == "cannot_tell" else 1)
