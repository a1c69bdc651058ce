"""`toolchain schema`: print the JSON schema of one kind of file."""

from typing import Annotated

import typer

from toolchain.core.errors import ToolchainError

PANEL = "Look things up"


def schema(
    kind: Annotated[str, typer.Argument(help="Kind of file: recipes, targets, calibration, shortlists or manifest.")],
) -> None:
    """Print the JSON schema of recipes, targets, domains, shortlists or manifests, for editors."""
    import json

    from toolchain.config import read_config
    from toolchain.core import registry
    from toolchain.edge import manifest

    class_by_kind: dict[str, type] = {
        **{str(key): value for key, value in read_config.CLASS_BY_KIND.items()},
        "manifest": manifest.Manifest,
    }
    if kind not in class_by_kind:
        raise ToolchainError(f"there is no kind of file {kind!r}; {registry.suggest(kind, list(class_by_kind))}")
    typer.echo(json.dumps(read_config.json_schema(class_by_kind[kind]), indent=1))
