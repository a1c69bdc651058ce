"""`toolchain sign`: a detached signature beside a bundle's archive."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import BundleArchive

PANEL = "Ship and watch"


def sign(
    bundle: BundleArchive,
    key: Annotated[
        Path, typer.Option(help="PEM file of the private key; TOOLCHAIN_KEY_PASSWORD where it is encrypted.")
    ],
) -> None:
    """Write a detached signature beside an archive, which `toolchain verify` and openssl check.

    Exit status: 0 done, 2 wrong input.
    """
    from toolchain.deploy import verify_bundle

    typer.echo(f"signature: {verify_bundle.sign(bundle, key)}")
