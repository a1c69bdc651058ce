"""`toolchain drift`: compare what boards have counted in the field with the images that the model was tested on."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Ship and watch"


def drift(
    bundle: Annotated[Path, typer.Argument(help="Bundle that runs on the boards: its folder or archive.")],
    counts: Annotated[list[Path], typer.Argument(help="Files that `run.py --watch` wrote, of one or more boards.")],
    out: Annotated[
        Path, typer.Option("--out", help="drift.html and drift.json are written to drift/ in this folder.")
    ] = Path("out"),
) -> None:
    """Detect drift: do images in the field still look like the test images? Says fine, recalibrate or retrain.

    Exit status: 0 fine, 1 recalibrate or retrain, 2 wrong input, 3 too few images to tell.
    """
    from toolchain.deploy import drift as drift_detection
    from toolchain.deploy import drift_reference
    from toolchain.report import terminal
    from toolchain.report.pages import drift as drift_report

    watched = drift_reference.load_bundle(bundle)
    sizes = watched.reference.count_bins(len(watched.classes))
    counters = drift_detection.read_counters(counts, watched.identity, sizes)
    result = drift_detection.detect(watched.name, watched.reference, len(watched.classes), counters)
    drift_report.write(result, watched, out / "drift")
    terminal.print_tables(drift_report.tabulate_windows(result))
    typer.echo(drift_report.describe_verdict(result))
    typer.echo(f"plots: {out / 'drift' / 'drift.html'}")
    if result.verdict != "fine":
        raise typer.Exit(3 if result.verdict == "cannot_tell" else 1)
