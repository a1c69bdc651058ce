"""Verbs for what leaves the house: signing a bundle and checking one."""

from pathlib import Path
from typing import Annotated

import typer

Archive = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's archive, such as out/digits/cpu/bundle.tar.")
]


def sign(
    bundle: Archive,
    key: Annotated[
        Path, typer.Option(help="PEM file of the private key; TOOLCHAIN_KEY_PASSWORD where it is encrypted.")
    ],
) -> None:
    """Write a detached signature beside an archive, which `toolchain verify` and openssl check.

    Exit status: 0 done, 2 wrong input.
    """
    from toolchain import vouched

    typer.echo(f"signature: {vouched.sign(bundle, key)}")


def verify(
    bundle: Archive,
    key: Annotated[Path | None, typer.Option(help="PEM file of the public key; unsigned is refused then.")] = None,
    min_release: Annotated[int, typer.Option(help="Older releases are refused.", min=0)] = 0,
) -> None:
    """Check an archive's signature, its hashes and its release, before anything reads the model.

    Exit status: 0 all in order, 2 refused; the message says what.
    """
    from toolchain import vouched

    typer.echo(f"OK: {vouched.check(bundle, key, min_release).sentence}")
