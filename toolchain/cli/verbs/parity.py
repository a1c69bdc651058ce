"""`toolchain parity`: find the layer in which the runtimes diverge from torch."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Measure and gate"


def parity(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as out/digits/cpu.")],
    images: Annotated[int, typer.Option(help="Number of the bundle's golden inputs to run.", min=1)] = 8,
    threshold: Annotated[
        float, typer.Option(help="Largest difference, in quantization steps, that counts as agreement.", min=0)
    ] = 1.5,
) -> None:
    """Find the first layer in which torch, ONNX Runtime and OpenVINO diverge, and the layers that fell back to float.

    Exit status: 0 all predict the same classes, 1 predictions differ, 2 wrong input.
    """
    from toolchain.measure.parity import compare
    from toolchain.report import terminal
    from toolchain.report.pages import parity as parity_report

    written = compare.compare_runtimes(run, images, threshold)
    for variant in written["variants"]:
        terminal.print_tables(parity_report.tabulate(variant))
        for sentence in parity_report.describe_differences(variant, written):
            typer.echo(sentence)
    typer.echo(f"figures: {run / compare.FILE_NAME}")
    if not written["agree"]:
        raise typer.Exit(1)
