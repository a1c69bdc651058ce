"""`toolchain bench`: any models timed against one another."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import Board
from toolchain.core.errors import ToolchainError

PANEL = "Measure and gate"


def bench(
    models: Annotated[list[Path], typer.Argument(help="Bundles, their archives, .onnx or OpenVINO .xml files.")],
    rounds: Annotated[int, typer.Option(help="Fresh processes in which all are timed in turns.", min=3)] = 10,
    batch: Annotated[str, typer.Option(help="Further batch sizes, with commas: pictures a second.")] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads for that, with commas.")] = "",
    runtime: Annotated[str, typer.Option(help="What runs bare .onnx files: onnxruntime or openvino.")] = "",
    precision: Annotated[str, typer.Option(help="Of bare files: f32, bf16 or int8, as the runtime has it.")] = "",
    device: Board = "",
    pin: Annotated[str, typer.Option(help="Processor cores to stay on, with commas.")] = "",
    seed: Annotated[int, typer.Option(help="Of the order in which they take turns.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder; results are written to bench/ in it.")] = Path("out"),
) -> None:
    """Time models against one another: percentiles with intervals, memory, load time, ratios, share of the core's peak.

    Exit status: 0 done (whatever the warnings), 2 wrong input.
    """
    from toolchain.measure import benchmark, history, model_files
    from toolchain.report import terminal
    from toolchain.report.pages import bench as bench_report

    scratch, folder = out / "work" / "subjects", out / "bench"
    found = model_files.make_names_unique([
        model_files.open_model(path, scratch, runtime=runtime, precision=precision).on_board(device) for path in models
    ])  # fmt: skip
    asked = benchmark.BenchmarkSettings(
        rounds=rounds, seed=seed, batches=_numbers("--batch", batch), threads=_numbers("--threads", threads),
        cpus=_numbers("--pin", pin, least=0),
    )  # fmt: skip
    raw = folder / "rounds"
    shutil.rmtree(raw, ignore_errors=True)
    written = benchmark.compare_models(found, asked, raw)
    bench_report.write(written, folder)
    shutil.rmtree(raw, ignore_errors=True)  # all samples stand in bench.json
    history.append(out / history.FILE_NAME, history.from_bench(written))
    terminal.print_tables(
        [
            bench_report.tabulate_latencies(written),
            *(content for _, content in bench_report.list_further_tables(written)),
        ]
    )
    typer.echo(bench_report.describe_measurement(written))
    for warning in written["warnings"]:
        typer.echo(f"Warning: {warning['text']}", err=True)
    typer.echo(f"figures: {folder / 'bench.json'} (every sample), bench.md, bench.html")


def _numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (least - 1,)
    if any(number < least for number in numbers):
        raise ToolchainError(f"{option} {text!r}: whole numbers from {least} on are wanted, with commas, such as 1,4,8")
    return numbers
