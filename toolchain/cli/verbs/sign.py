"""`toolchain sign`: write a detached signature beside a bundle's archive."""

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.options import BundleArchive

PANEL = "Ship and watch"


def sign(
    bundle: BundleArchive,
    key: Annotated[
        Path, typer.Option(help="Private key (PEM); if it is encrypted, set its password in TOOLCHAIN_KEY_PASSWORD.")
    ],
) -> None:
    """Write a detached signature beside a bundle's archive. `toolchain verify` and openssl can check it.

    Exit status: 0 done, 2 wrong input.
    """
    from toolchain.deploy import verify_bundle

    typer.echo(f"signature: {verify_bundle.sign(bundle, key)}")
