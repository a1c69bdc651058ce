"""`toolchain schema`: the JSON schema of one kind of file."""

from typing import Annotated

import typer

from toolchain.core.errors import ToolchainError

PANEL = "Look things up"


def schema(
    kind: Annotated[str, typer.Argument(help="recipes, targets, calibration, shortlists or manifest")],
) -> None:
    """Print the JSON schema of one kind of file, for editors."""
    import json

    from toolchain.config import toml_files
    from toolchain.core import registry
    from toolchain.edge import manifest

    shapes: dict[str, type] = {
        **{str(k): v for k, v in toml_files.CLASS_BY_KIND.items()},
        "manifest": manifest.Manifest,
    }
    if kind not in shapes:
        raise ToolchainError(f"there is no kind {kind!r}; {registry.suggest(kind, list(shapes))}")
    typer.echo(json.dumps(toml_files.json_schema(shapes[kind]), indent=1))
