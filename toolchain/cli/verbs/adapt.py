"""`toolchain adapt`: fine-tune only."""

from pathlib import Path

import typer

from toolchain.cli.options import (
    Balance,
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


def adapt(
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
    on_corrupt: OnCorrupt = "",
    out: OutFolder = Path("out"),
) -> None:
    """Fine-tune only, with one or several seeds; report test accuracy with intervals and the gain over a linear probe.

    `export` with the same settings continues from here without training again.
    """
    from toolchain.config import overrides
    from toolchain.data import dataset_format

    flags = overrides.Flags(
        data=data, domain=domain, model=model, weights=weights, image_size=image_size, epochs=epochs, seed=seed,
        seeds=seeds, balance=balance, on_corrupt=on_corrupt,
    )  # fmt: skip
    job = overrides.read_job(overrides.choose_recipe(recipe, data), "cpu", flags, out)
    dataset_format.check(job.domain, job.images)
    from toolchain import pipeline  # after the input is checked, since torch takes seconds to import
    from toolchain.report import terminal
    from toolchain.report.pages import adapt as page

    written = pipeline.adapt(job)
    terminal.print_tables(page.tabulate(written))
    for note in written["notes"]:
        typer.echo(f"Warning: {note}", err=True)
    typer.echo(f"figures: {out / written['recipe'] / 'adapt.json'}")
