"""Receipts of mutations, by which a repeated request gets the answer of the first one."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, JSON, BigInteger, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.types import Model, UtcDateTime


class Receipt(Model):
    """The request and the answer of one mutation, committed with its changes."""

    __tablename__ = "receipts"

    # The person; for mutations without one, made from the address and the input (services/receipts.py). No foreign key.
    owner_id: Mapped[UUID] = mapped_column(primary_key=True)
    # The client's name for the mutation.
    mutation_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    # The mutation's field of the schema, and a hash of its input.
    field: Mapped[str] = mapped_column(String(64))
    input_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    answer: Mapped[dict[str, Any]] = mapped_column(JSON)
    # The events that it recorded, in order.
    event_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger).with_variant(JSON(), "sqlite"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
