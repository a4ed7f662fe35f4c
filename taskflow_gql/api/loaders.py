"""Batched reads of related rows. They live for one operation, so that they never answer with what was true before."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from strawberry.dataloader import DataLoader

from taskflow_gql.database import Database
from taskflow_gql.models import UserRow
from taskflow_gql.services import users


class Loaders:
    def __init__(self, database: Database) -> None:
        async def load_users(user_ids: Sequence[UUID]) -> list[UserRow | None]:
            async with database.read() as session:
                found = await users.users_by_id(session, user_ids)
            return [found.get(user_id) for user_id in user_ids]

        self.users_by_id: DataLoader[UUID, UserRow | None] = DataLoader(load_users)
