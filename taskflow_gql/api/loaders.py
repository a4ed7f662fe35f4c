"""Batched reads of related rows. They live for one operation, so that they never answer with what was true before."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from strawberry.dataloader import DataLoader

from taskflow_gql.database import Database
from taskflow_gql.models import TaskRow, UserRow
from taskflow_gql.services import tasks, users
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.filters import Filter
from taskflow_gql.services.paging import Page
from taskflow_gql.services.tasks import Relation, TaskQuery


class Loaders:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.users_by_id: DataLoader[UUID, UserRow | None] = DataLoader(self._load_users)
        # One loader for each way of asking: the same field under two aliases may have two sets of arguments.
        self._tasks_of_users: dict[tuple[Relation, TaskQuery], DataLoader[UUID, Page[TaskRow]]] = {}
        self._task_counts_of_users: dict[tuple[Relation, Filter], DataLoader[UUID, int]] = {}

    def tasks_of_users(self, viewer: Viewer, relation: Relation, query: TaskQuery) -> DataLoader[UUID, Page[TaskRow]]:
        async def load(user_ids: Sequence[UUID]) -> list[Page[TaskRow]]:
            async with self._database.read() as session:
                pages = await tasks.list_tasks_of_users(session, viewer, relation, user_ids, query)
            return [pages[user_id] for user_id in user_ids]

        return self._tasks_of_users.setdefault((relation, query), DataLoader(load))

    def task_counts_of_users(self, viewer: Viewer, relation: Relation, filter_: Filter) -> DataLoader[UUID, int]:
        async def load(user_ids: Sequence[UUID]) -> list[int]:
            async with self._database.read() as session:
                counts = await tasks.count_tasks_of_users(session, viewer, relation, user_ids, filter_)
            return [counts[user_id] for user_id in user_ids]

        return self._task_counts_of_users.setdefault((relation, filter_), DataLoader(load))

    async def _load_users(self, user_ids: Sequence[UUID]) -> list[UserRow | None]:
        async with self._database.read() as session:
            found = await users.users_by_id(session, user_ids)
        return [found.get(user_id) for user_id in user_ids]
