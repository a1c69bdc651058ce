"""`toolchain parity`: the layer in which torch and the runtimes part ways."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Measure and gate"


def parity(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as out/digits/cpu.")],
    images: Annotated[int, typer.Option(help="How many of the bundle's golden inputs to run.", min=1)] = 8,
    threshold: Annotated[float, typer.Option(help="Quantization steps beyond which two sides part ways.", min=0)] = 1.5,
) -> None:
    """Name the layer in which torch, ONNX Runtime and OpenVINO part ways, and each that fell back to float.

    Exit status: 0 all answer alike, 1 they name different classes, 2 wrong input.
    """
    from toolchain.measure.parity import compare
    from toolchain.report import terminal
    from toolchain.report.pages import parity as agreement

    written = compare.compare_runtimes(run, images, threshold)
    for one in written["variants"]:
        terminal.print_tables(agreement.tabulate(one))
        for sentence in agreement.describe_differences(one, written):
            typer.echo(sentence)
    typer.echo(f"figures: {run / compare.FILE_NAME}")
    if not written["agree"]:
        raise typer.Exit(1)
