"""The command make-key."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from taskflow_gql.cli.console import BAD_SETTINGS, UNREACHABLE, fail, out
from taskflow_gql.security.keys import make_private_key, pem_of


class Algorithm(StrEnum):
    EDDSA = "EdDSA"
    ES256 = "ES256"
    RS256 = "RS256"


def make_key(
    file: Annotated[Path, typer.Argument(help="The new file, such as 2027-01.pem.")],
    algorithm: Annotated[Algorithm, typer.Option(help="EdDSA is small and fast.")] = Algorithm.EDDSA,
) -> None:
    """Make a private key that signs access tokens, and print its public key; docs/keys.md says where to put them."""
    if file.suffix != ".pem":
        fail(f"{file} has to end in .pem", BAD_SETTINGS)
    key = make_private_key(algorithm.value)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(pem_of(key))
    except OSError as error:
        fail(f"Cannot write {file}: {error.strerror}", UNREACHABLE)
    out.print(pem_of(key.public_key()).decode(), end="", markup=False, soft_wrap=True)
