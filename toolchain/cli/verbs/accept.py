"""`toolchain accept`: a bundle becomes the baseline that `gate` compares with."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import TargetName

PANEL = "Measure and gate"


def accept(
    target: TargetName = "cpu",
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Recipe whose bundle is accepted.")] = "digits",
    bundle: Annotated[Path | None, typer.Option(help="Archive instead of the last run's bundle.tar.")] = None,
    uri: Annotated[
        str, typer.Option(help="Folder to keep the archive in, or http address of the folder it will be uploaded to.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs.")] = Path("out"),
) -> None:
    """Make a bundle the reference that `gate` compares with from now on; commit the file that this writes."""
    from toolchain.config import toml_files
    from toolchain.gates import baselines

    chosen, name = toml_files.read_target(target), toml_files.read_recipe(recipe).name
    archive = bundle or out / name / chosen.name / "bundle.tar"
    record, kept = baselines.accept(archive, chosen, name, uri)
    typer.echo(f"reference of {name} on {chosen.name}: {record}  (archive: {kept.uri}, SHA-256 {kept.sha256[:16]}...)")
