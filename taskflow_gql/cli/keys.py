"""The commands make-key and link-identity."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import IntegrityError

from taskflow_gql.cli.console import BAD_SETTINGS, NOT_SO, UNREACHABLE, fail, out, run, settings_or_exit
from taskflow_gql.cli.data import prepare_database
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.units import Database
from taskflow_gql.errors import NotFound
from taskflow_gql.models import UserRow
from taskflow_gql.security.keys import make_private_key, pem_of
from taskflow_gql.services.identities import link_identity


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


def link(
    username: Annotated[str, typer.Argument(help="The account, by username or email address.")],
    issuer: Annotated[str, typer.Argument(help="The issuer, as TASKFLOW_TRUSTED_ISSUERS names it.")],
    subject: Annotated[str, typer.Argument(help="The person's id at the issuer: the claim `sub`.")],
) -> None:
    """Let a person of a trusted issuer sign in to an existing account. Be sure that both are the same person."""
    settings = settings_or_exit()
    if issuer not in [trusted.issuer for trusted in settings.trusted_issuers]:
        fail(f"TASKFLOW_TRUSTED_ISSUERS does not name {issuer}", BAD_SETTINGS)

    async def work() -> UserRow:
        await prepare_database(settings)
        database = Database(create_engine(settings))
        try:
            async with database.write() as session:
                return await link_identity(session, username, issuer=issuer, subject=subject)
        except IntegrityError:
            fail(f"{subject} of {issuer} has an account already", NOT_SO)
        finally:
            await database.close()

    try:
        user = run(work(), settings)
    except NotFound as refused:
        fail(str(refused), NOT_SO)
    out.print(f"{subject} of {issuer} is {user.username} from now on.", markup=False, soft_wrap=True)
