"""`toolchain verify`: checks an archive before anything reads the model."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import BundleArchive

PANEL = "Ship and watch"


def verify(
    bundle: BundleArchive,
    key: Annotated[Path | None, typer.Option(help="PEM file of the public key; unsigned is refused then.")] = None,
    min_release: Annotated[int, typer.Option(help="Older releases are refused.", min=0)] = 0,
) -> None:
    """Check an archive's signature, its hashes and its release, before anything reads the model.

    Exit status: 0 all in order, 2 refused; the message says what.
    """
    from toolchain.deploy import verify_bundle

    typer.echo(f"OK: {verify_bundle.check(bundle, key, min_release).summary}")
