"""Receipts: the answer of a mutation, kept for requests that repeat it.

The receipt is inserted by the transaction that makes the mutation's changes. Its primary key is the person and the
client's `mutation_id`, so of two requests with the same id one commits; the other waits for it, fails with
IntegrityError, changes nothing, and answers with the receipt of the first.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import bindparam, delete, select, tuple_

from taskflow_gql import clock
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.texts import is_storable
from taskflow_gql.database.writes import InsertWithIds
from taskflow_gql.errors import BadUserInput, Refusal
from taskflow_gql.models import Receipt

if TYPE_CHECKING:
    from sqlalchemy import Table

MAX_MUTATION_ID_LENGTH = 64


class MutationIdReused(Refusal):
    code = "MUTATION_ID_REUSED"

    def __init__(self) -> None:
        super().__init__(
            "This mutationId was used for another mutation or other input: make a new one for each change",
            field="mutation_id",
        )


def check_mutation_id(mutation_id: str, *, field: str = "mutation_id") -> str:
    if not 1 <= len(mutation_id) <= MAX_MUTATION_ID_LENGTH or not is_storable(mutation_id):
        raise BadUserInput(f"A mutationId has 1 to {MAX_MUTATION_ID_LENGTH} characters", field=field)
    return mutation_id


@dataclass(frozen=True, slots=True)
class Request:
    """A mutation that may be repeated."""

    owner_id: UUID
    mutation_id: str
    field: str
    input_hash: bytes
    # The mutation that this one is a part of.
    whole_id: str | None = None

    @property
    def shown_id(self) -> str:
        """The id that the client knows and events carry."""
        return self.whole_id or self.mutation_id

    def part(self, index: int, field: str) -> Request:
        """The request of one part, by the input of the whole."""
        number = f"{self.mutation_id}\0{index}".encode()
        # Not an id that a client would choose.
        mutation_id = "part:" + hashlib.blake2b(number, digest_size=16).hexdigest()
        return Request(self.owner_id, mutation_id, field, self.input_hash, whole_id=self.mutation_id)


class ReceiptRow(NamedTuple):
    field: str
    input_hash: bytes
    answer: dict[str, Any]
    event_ids: list[int]


def hash_of_input(field: str, given: Mapping[str, Any], *, key: bytes = b"") -> bytes:
    """32 bytes. `given` holds JSON values, dates and enums; a key makes passwords in it impossible to guess."""
    text = json.dumps([field, given], default=_json_of, sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=32, key=key).digest()


def _json_of(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def owner_of_anonymous(address: str, input_hash: bytes, *, key: bytes) -> UUID:
    """The owner of receipts of mutations without a person: one for each address and input. It hides the address."""
    return UUID(bytes=hmac.digest(key, address.encode(errors="replace") + b"\0" + input_hash, "sha256")[:16])


async def find_receipt(session: DatabaseSession, request: Request) -> ReceiptRow | None:
    """The receipt of an earlier request. Raises MutationIdReused if that asked for something else."""
    receipt = await receipt_of(session, request.owner_id, request.mutation_id)
    if receipt and (receipt.field, bytes(receipt.input_hash)) != (request.field, request.input_hash):
        raise MutationIdReused
    return receipt


async def receipt_of(session: DatabaseSession, owner_id: UUID, mutation_id: str) -> ReceiptRow | None:
    for row in await session.run(_RECEIPT, {"owner_id": owner_id, "mutation_id": mutation_id}):
        return ReceiptRow._make(row)
    return None


_RECEIPT = Statement(
    select(Receipt.field, Receipt.input_hash, Receipt.answer, Receipt.event_ids).where(
        Receipt.owner_id == bindparam("owner_id"), Receipt.mutation_id == bindparam("mutation_id")
    )
)


def write_receipt(session: DatabaseSession, request: Request, answer: Mapping[str, Any]) -> None:
    """Commit the receipt with the session's changes. The commit raises IntegrityError if there is one already."""
    values = {
        "owner_id": request.owner_id,
        "mutation_id": request.mutation_id,
        "field": request.field,
        "input_hash": request.input_hash,
        "answer": answer,
        "created_at": clock.now(),
    }
    session.write_last(InsertWithIds(cast("Table", Receipt.__table__), "event_ids", values))


async def expire_receipts(session: DatabaseSession, older_than: datetime, *, limit: int) -> int:
    """Delete the oldest receipts, at most `limit` of those older than this, and return how many."""
    key = tuple_(Receipt.owner_id, Receipt.mutation_id)
    oldest = (
        select(Receipt.owner_id, Receipt.mutation_id)
        .where(Receipt.created_at < older_than)
        .order_by(Receipt.created_at)
        .limit(limit)
    )
    return (await session.execute(delete(Receipt).where(key.in_(oldest)))).rowcount
