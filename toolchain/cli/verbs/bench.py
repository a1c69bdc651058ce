"""`toolchain bench`: compare the latency of any models."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import Board
from toolchain.core.errors import ToolchainError

PANEL = "Measure and gate"


def bench(
    models: Annotated[
        list[Path], typer.Argument(help="Models: bundles (folder or archive), .onnx or OpenVINO .xml files.")
    ],
    rounds: Annotated[
        int, typer.Option(help="Number of rounds; each times all models in turns in a fresh process.", min=3)
    ] = 10,
    batch: Annotated[
        str, typer.Option(help="Batch sizes to measure throughput at, comma-separated, such as 1,4,8.")
    ] = "",
    threads: Annotated[str, typer.Option(help="Thread counts to measure throughput at, comma-separated.")] = "",
    runtime: Annotated[str, typer.Option(help="Runtime for .onnx files: onnxruntime or openvino.")] = "",
    precision: Annotated[
        str, typer.Option(help="Precision of .onnx and .xml files: f32, bf16 or int8, if the runtime has it.")
    ] = "",
    device: Board = "",
    pin: Annotated[str, typer.Option(help="Processor cores to run on, comma-separated.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the order in which models take turns.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", help="Results are written to bench/ in this folder.")] = Path("out"),
) -> None:
    """Compare the latency of models in paired rounds: percentiles and speed-ups with intervals, memory, load time.

    Exit status: 0 done (also with warnings), 2 wrong input.
    """
    from toolchain.measure import benchmark, history, model_files
    from toolchain.report import terminal
    from toolchain.report.pages import bench as bench_report

    scratch, folder = out / "work" / "subjects", out / "bench"
    opened = model_files.make_names_unique([
        model_files.open_model(path, scratch, runtime=runtime, precision=precision).on_board(device) for path in models
    ])  # fmt: skip
    settings = benchmark.BenchmarkSettings(
        rounds=rounds, seed=seed, batch_sizes=_numbers("--batch", batch), thread_counts=_numbers("--threads", threads),
        cores=_numbers("--pin", pin, least=0),
    )  # fmt: skip
    samples = folder / "rounds"
    shutil.rmtree(samples, ignore_errors=True)
    written = benchmark.compare_models(opened, settings, samples)
    bench_report.write(written, folder)
    shutil.rmtree(samples, ignore_errors=True)  # bench.json holds all samples
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
        raise ToolchainError(f"{option} {text!r}: give whole numbers from {least} up, comma-separated, such as 1,4,8")
    return numbers
