"""`toolchain export`: the whole pipeline, from a pretrained model to a bundle and a report."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli import results
from toolchain.cli.options import (
    Balance,
    Board,
    DataFolder,
    DomainName,
    Epochs,
    ImageSize,
    ModelName,
    OnCorrupt,
    OutFolder,
    RecipeName,
    Seed,
    Seeds,
    Weights,
)

PANEL = "Build a model"


def export(
    context: typer.Context,
    target: Annotated[
        str, typer.Option("--target", "-t", help="Deployment target; `toolchain targets` lists them.")
    ] = "cpu",
    recipe: RecipeName = "",
    data: DataFolder = "",
    domain: DomainName = "",
    model: ModelName = "",
    weights: Weights = "",
    image_size: ImageSize = "",
    epochs: Epochs = 0,
    seed: Seed = -1,
    seeds: Seeds = 0,
    balance: Balance = -1.0,
    ratio: Annotated[
        float, typer.Option(help="Share of multiply-accumulates to prune, 0 for none; -1: as in the recipe.")
    ] = -1.0,
    latency: Annotated[
        str, typer.Option(help='Latency budget to prune to: "0.5x" of the dense model, or "1.2 ms".')
    ] = "",
    resolution: Annotated[
        float,
        typer.Option(help="Smallest share of the input height and width the search may use; -1: as in the recipe."),
    ] = -1.0,
    lock: Annotated[
        Path | None, typer.Option(help="Lock file of an earlier run: reuse its architecture and placement, no search.")
    ] = None,
    release: Annotated[int, typer.Option(help="Release number in the manifest; -1: as in the recipe.")] = -1,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Budget of the recipe, such as accuracy_drop=0.02 or latency=0.5x; repeat it for several."),
    ] = None,
    compress_only: Annotated[
        bool, typer.Option("--compress-only", help="The model is trained already: keep its weights and its head.")
    ] = False,
    labels: Annotated[
        str,
        typer.Option(
            help="With --compress-only or an ONNX file: file with the model's class names, in the order of its outputs."
        ),
    ] = "",
    unlabelled: Annotated[
        str, typer.Option(help="Folder of images without labels, to distil on: beside --data, or in its place.")
    ] = "",
    device: Board = "",
    on_corrupt: OnCorrupt = "",
    out: OutFolder = Path("out"),
) -> None:
    """Fine-tune, prune, quantize, export, verify and time a model; write a bundle and a report.

    Exit status: 0 done, 1 a budget was missed (the report says which), 2 wrong input or environment.
    """
    from toolchain.config import model_reference, overrides
    from toolchain.data import dataset_format

    flags = overrides.Flags(
        data=data, domain=domain, model=model, weights=weights, image_size=image_size, epochs=epochs, seed=seed,
        seeds=seeds, balance=balance, ratio=ratio, latency=latency, resolution=resolution,
        on_corrupt=on_corrupt, release=release, device=device, budget=tuple(budget or ()),
        compress_only=compress_only, labels=labels, unlabelled=unlabelled,
    )  # fmt: skip
    trained = compress_only or model_reference.is_onnx_file(model)
    job = overrides.read_job(
        overrides.choose_recipe(recipe, data, compress_only=trained), target, flags, out, lock_file=lock
    )
    dataset_format.check(job.domain, job.images)
    from toolchain import pipeline  # after the input is checked, since torch takes seconds to import
    from toolchain.core import files
    from toolchain.measure import history
    from toolchain.report import terminal

    written = pipeline.export(job)
    terminal.print_report(written)
    archive = files.sha256_file(job.folder / "bundle.tar") if written["shipped"] else ""
    history.append(out / history.FILE_NAME, history.from_export(written, archive))
    results.print_paths(job.folder, written, context)
    if written["shipped"] is None:
        raise typer.Exit(1)
