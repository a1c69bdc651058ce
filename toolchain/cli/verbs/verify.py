"""`toolchain verify`: check a bundle before anything reads the model."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import BundleArchive

PANEL = "Ship and watch"


def verify(
    bundle: BundleArchive,
    key: Annotated[Path | None, typer.Option(help="Public key (PEM); an unsigned archive is then refused.")] = None,
    min_release: Annotated[int, typer.Option(help="Refuse releases older than this one.", min=0)] = 0,
) -> None:
    """Check a bundle's signature, hashes and release number before anything reads the model.

    Exit status: 0 valid, 2 refused; the message says why.
    """
    from toolchain.deploy import verify_bundle

    typer.echo(f"OK: {verify_bundle.check(bundle, key, min_release).summary}")
