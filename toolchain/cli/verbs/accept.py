"""`toolchain accept`: make a bundle the baseline that `gate` compares with."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import TargetName

PANEL = "Measure and gate"


def accept(
    target: TargetName = "cpu",
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Recipe whose bundle to accept; default as for export.")
    ] = "",
    bundle: Annotated[Path | None, typer.Option(help="Archive to accept. Default: the last run's bundle.tar.")] = None,
    uri: Annotated[
        str, typer.Option(help="Folder to keep the archive in, or http address of the folder you will upload it to.")
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            help="Images that `gate` compares accuracy on: a folder or a CSV. Default: the run's; it is remembered."
        ),
    ] = "",
    out: Annotated[Path, typer.Option("--out", help="Folder with the results of the runs.")] = Path("out"),
) -> None:
    """Make a bundle the baseline that `gate` compares with from now on. Commit the file that this writes."""
    from toolchain.config import overrides, read_config
    from toolchain.gates import baselines, data_source

    deployment = read_config.read_target(target)
    settings, domain = overrides.read_recipe(overrides.choose_recipe(recipe, data), overrides.Flags(data=data))
    name = settings.name
    archive = bundle or out / name / deployment.name / "bundle.tar"
    dataset = data_source.describe(domain, out / "data") if data else data_source.read_from_run(archive.parent)
    record, baseline = baselines.accept(archive, deployment, name, uri, dataset)
    typer.echo(
        f"baseline of {name} on {deployment.name}: {record}  "
        f"(archive: {baseline.uri}, SHA-256 {baseline.sha256[:16]}...)"
    )
    if dataset:
        typer.echo(f"`gate` compares accuracy on {dataset.folder or dataset.source} ({dataset.images} images)")
    else:
        typer.echo(
            "Warning: the run did not record its images; give their folder with --data, or `gate` needs it", err=True
        )
