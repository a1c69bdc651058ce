"""`toolchain accept`: make a bundle the baseline that `gate` compares with."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import TargetName

PANEL = "Measure and gate"


def accept(
    target: TargetName = "cpu",
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Recipe whose bundle to accept.")] = "digits",
    bundle: Annotated[Path | None, typer.Option(help="Archive to accept. Default: the last run's bundle.tar.")] = None,
    uri: Annotated[
        str, typer.Option(help="Folder to keep the archive in, or http address of the folder you will upload it to.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", help="Folder with the results of the runs.")] = Path("out"),
) -> None:
    """Make a bundle the baseline that `gate` compares with from now on. Commit the file that this writes."""
    from toolchain.config import read_config
    from toolchain.gates import baselines

    deployment, name = read_config.read_target(target), read_config.read_recipe(recipe).name
    archive = bundle or out / name / deployment.name / "bundle.tar"
    record, baseline = baselines.accept(archive, deployment, name, uri)
    typer.echo(
        f"baseline of {name} on {deployment.name}: {record}  "
        f"(archive: {baseline.uri}, SHA-256 {baseline.sha256[:16]}...)"
    )
