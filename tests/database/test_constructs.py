"""SQL that is written differently for each database, and means the same."""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy import select

from taskflow_gql.database.constructs import among
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from taskflow_gql.models import User
from tests.support.factories import make_user


async def test_any_number_of_values_is_one_statement(database: Database) -> None:
    async with database.write() as session:
        users = [await make_user(session, name) for name in ("ann", "bob", "eva")]
    by_id = Statement(select(User.username).where(among(User.id, "ids")).order_by(User.username))
    by_name = Statement(select(User.username).where(among(User.username, "names")).order_by(User.username))
    async with database.read() as session:
        for chosen in ([], users[:1], users):
            ids: list[UUID] = [user.id for user in chosen]
            names = [user.username for user in chosen]
            assert [row[0] for row in await session.run(by_id, {"ids": [*ids, uuid4()]})] == names
            assert [row[0] for row in await session.run(by_name, {"names": [*names, "it's", '"']})] == names
