"""Users: the type, its queries, and the mutations of admins."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import strawberry

from taskflow_gql.api.connections import After, Before, First, Last, PageInfo, page_info
from taskflow_gql.api.context import Context, Info
from taskflow_gql.api.mutations import mutation
from taskflow_gql.api.needs import needs
from taskflow_gql.api.nodes import Node
from taskflow_gql.api.payloads import MutationPayload, RepeatableInput
from taskflow_gql.api.task_filters import TaskFilter, TaskFilterArgument
from taskflow_gql.api.task_lists import TaskList, TaskOrder, TaskOrderArgument, task_query
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.execution import IsInstance
from taskflow_gql.execution.strawberry import Batched
from taskflow_gql.models import UserRole, UserRow
from taskflow_gql.services import tasks, users
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import parse_id
from taskflow_gql.services.paging import Page, PageRequest
from taskflow_gql.services.tasks import Relation

# Users have tasks and tasks have users, so one of the two modules must refer to the other lazily.
_TASK_CONNECTION: Any = Annotated["TaskConnection", strawberry.lazy("taskflow_gql.api.tasks")]  # noqa: F821


async def users_by_id(context: Context, user_ids: Sequence[UUID]) -> dict[UUID, UserRow]:
    """The users with these ids, for batched fields. Users already loaded by this operation are not read again."""
    people = context.loaders.people
    missing = [user_id for user_id in user_ids if user_id not in people]
    if missing:
        async with context.read() as session:
            people.update(await users.users_by_id(session, missing))
    return people


async def _tasks_of_users(
    relation: Relation,
    context: Context,
    user_ids: Sequence[UUID],
    *,
    first: int | None,
    after: str | None,
    last: int | None,
    before: str | None,
    filter: TaskFilter | None,
    order_by: list[TaskOrder] | None,
) -> dict[UUID, TaskList]:
    """The same page for each user, read in one statement."""
    viewer = await context.require_viewer()
    query = await task_query(context, viewer, first, after, last, before, filter, order_by)
    async with context.read() as session:
        pages = await tasks.list_tasks_of_users(session, viewer, relation, user_ids, query)
    counts = context.loaders.task_counts_of_users(viewer, relation, query.filter)
    return {user_id: TaskList(page, partial(counts.load, user_id)) for user_id, page in pages.items()}


@strawberry.type(description="A person with an account.")
class User(Node):
    username: str = strawberry.field(
        description="Unique without regard to case; 3 to 50 letters, digits, `_`, `.` or `-`. Good for signing in."
    )
    full_name: str = strawberry.field(description="The name to show.")
    role: UserRole = strawberry.field(description="What this person may do.")
    is_active: bool = strawberry.field(
        description="False once an admin has deactivated the account: no signing in, no new tasks assigned."
    )
    created_at: datetime = strawberry.field(description="When the account was registered.")
    updated_at: datetime = strawberry.field(description="When name, address, role or activity last changed.")

    @strawberry.field(metadata=needs("email"), description="Null unless it is you, or you are an ADMIN.")
    @staticmethod
    def email(user: strawberry.Parent[UserRow], info: Info) -> str | None:
        viewer = info.context.known_viewer
        is_admin = viewer is not None and viewer.is_admin
        return user.email if is_admin or info.context.is_viewer(user.id) else None

    @strawberry.field(
        graphql_type=_TASK_CONNECTION,
        description="The tasks that this person made, of those that you may see; newest first.",
        extensions=[Batched(partial(_tasks_of_users, Relation.CREATED), key="id")],
    )
    @staticmethod
    def created_tasks(
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        filter: TaskFilterArgument = None,
        order_by: TaskOrderArgument = None,
    ) -> TaskList:
        raise NotImplementedError  # only the signature is used

    @strawberry.field(
        graphql_type=_TASK_CONNECTION,
        description="The tasks that this person should do, of those that you may see; newest first.",
        extensions=[Batched(partial(_tasks_of_users, Relation.ASSIGNED), key="id")],
    )
    @staticmethod
    def assigned_tasks(
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        filter: TaskFilterArgument = None,
        order_by: TaskOrderArgument = None,
    ) -> TaskList:
        raise NotImplementedError  # only the signature is used

    is_type_of = IsInstance(UserRow)

    @staticmethod
    async def by_ids(
        context: Context, session: DatabaseSession, viewer: Viewer, ids: Sequence[UUID]
    ) -> dict[UUID, UserRow]:
        return await users.users_by_id(session, ids)


@strawberry.type(description="A person in a list.")
class UserEdge:
    cursor: str = strawberry.field(description="This person's place in the list, for `after` and `before`.")
    node: UserRow = strawberry.field(graphql_type=User, description="The person.")


@strawberry.type(description="A page of people.")
class UserConnection:
    page: strawberry.Private[Page[UserRow]]
    search: strawberry.Private[str | None]

    @strawberry.field(description="The people of this page with their cursors.")
    def edges(self) -> list[UserEdge]:
        return [UserEdge(cursor=self.page.cursor(user), node=user) for user in self.page.rows]

    @strawberry.field(graphql_type=list[User], description="The people of this page without cursors.")
    def nodes(self) -> list[UserRow]:
        return self.page.rows

    @strawberry.field(description="Where this page lies in the list.")
    def page_info(self) -> PageInfo:
        return page_info(self.page)

    @strawberry.field(description="How many people the whole list has; counted only when selected.")
    async def total_count(self, info: Info) -> int:
        viewer = await info.context.require_viewer()
        async with info.context.read() as session:
            return await users.count_users(session, viewer, search=self.search)


@strawberry.type
class UserQueries:
    @strawberry.field(
        graphql_type=User | None,
        description=(
            "The signed-in person; null without a token. With a token that is expired, revoked or bad: "
            "UNAUTHENTICATED, so that a client knows to sign in again."
        ),
    )
    async def me(self, info: Info) -> UserRow | None:
        viewer = await info.context.viewer()
        return None if viewer is None else (await users_by_id(info.context, [viewer.id])).get(viewer.id)

    @strawberry.field(graphql_type=User | None, description="A person by id; null when there is none.")
    async def user(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="The person's id.")]
    ) -> UserRow | None:
        viewer = await info.context.require_viewer()
        async with info.context.read() as session:
            return await users.get_user(session, viewer, parse_id(id))

    @strawberry.field(description="Everyone who is active (for an ADMIN everyone), by username.")
    async def users(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        search: Annotated[
            str | None,
            strawberry.argument(
                description=(
                    "Only people whose username starts with this, or a word of whose full name does, without regard to "
                    "case. Several words have to follow each other in the name."
                )
            ),
        ] = None,
    ) -> UserConnection:
        viewer = await info.context.require_viewer()
        request = PageRequest.of(first=first, after=after, last=last, before=before)
        async with info.context.read() as session:
            page = await users.list_users(
                session, viewer, request, search=search, columns=_columns_of_list(info.context)
            )
        return UserConnection(page=page, search=search)


def _columns_of_list(context: Context) -> tuple[str, ...]:
    """The columns to read, including the username if the document selects cursors."""
    needs = context.needs
    if needs is None:
        return UserRow._fields
    columns = needs.columns(UserRow)
    makes_cursors = needs.selects("UserConnection", "edges", "pageInfo")
    return (*columns, "username") if makes_cursors and "username" not in columns else columns


@strawberry.input(description="Whose role to set, and to what.")
class SetUserRoleInput(RepeatableInput):
    user_id: strawberry.ID = strawberry.field(description="The person.")
    role: UserRole = strawberry.field(description="The new role.")


@strawberry.input(description="Whom to deactivate.")
class DeactivateUserInput(RepeatableInput):
    user_id: strawberry.ID = strawberry.field(description="The person.")


@strawberry.input(description="Whom to let in again.")
class ReactivateUserInput(RepeatableInput):
    user_id: strawberry.ID = strawberry.field(description="The person.")


@strawberry.input(description="Whose sessions to end.")
class EndSessionsOfUserInput(RepeatableInput):
    user_id: strawberry.ID = strawberry.field(description="The person.")


@strawberry.type(description="What became of `endSessionsOfUser`.")
class EndSessionsOfUserPayload(MutationPayload):
    user: UserRow | None = strawberry.field(
        graphql_type=User | None, default=None, description="The person who was signed out; null on errors."
    )
    ended_count: int = strawberry.field(default=0, description="How many sessions have ended.")


@strawberry.type(description="What became of `setUserRole`.")
class SetUserRolePayload(MutationPayload):
    user: UserRow | None = strawberry.field(
        graphql_type=User | None, default=None, description="The person with the new role; null on errors."
    )


@strawberry.type(description="What became of `deactivateUser`.")
class DeactivateUserPayload(MutationPayload):
    user: UserRow | None = strawberry.field(
        graphql_type=User | None, default=None, description="The person, now inactive; null on errors."
    )


@strawberry.type(description="What became of `reactivateUser`.")
class ReactivateUserPayload(MutationPayload):
    user: UserRow | None = strawberry.field(
        graphql_type=User | None, default=None, description="The person, active again; null on errors."
    )


@strawberry.type
class UserMutations:
    @mutation(
        "Make somebody an ADMIN or a MEMBER. For ADMINs. The last active ADMIN stays one.",
        input="Who, and which role.",
    )
    @staticmethod
    async def set_user_role(session: DatabaseSession, viewer: Viewer, input: SetUserRoleInput) -> SetUserRolePayload:
        user_id = parse_id(input.user_id, field="user_id")
        return SetUserRolePayload(user=await users.set_user_role(session, viewer, user_id, input.role))

    @mutation(
        "Lock somebody out: every session of theirs ends at once, their tasks stay. For ADMINs. The last active ADMIN "
        "cannot be deactivated.",
        input="Who.",
    )
    @staticmethod
    async def deactivate_user(
        session: DatabaseSession, viewer: Viewer, input: DeactivateUserInput
    ) -> DeactivateUserPayload:
        user_id = parse_id(input.user_id, field="user_id")
        return DeactivateUserPayload(user=await users.deactivate_user(session, viewer, user_id))

    @mutation(
        "Sign somebody out everywhere: all sessions of theirs end at once, their streams within two seconds. They may "
        "sign in again. For ADMINs.",
        input="Who.",
    )
    @staticmethod
    async def end_sessions_of_user(
        session: DatabaseSession, viewer: Viewer, input: EndSessionsOfUserInput
    ) -> EndSessionsOfUserPayload:
        user_id = parse_id(input.user_id, field="user_id")
        user, count = await users.end_sessions_of_user(session, viewer, user_id)
        return EndSessionsOfUserPayload(user=user, ended_count=count)

    @mutation("Let somebody sign in again. For ADMINs.", input="Who.")
    @staticmethod
    async def reactivate_user(
        session: DatabaseSession, viewer: Viewer, input: ReactivateUserInput
    ) -> ReactivateUserPayload:
        user_id = parse_id(input.user_id, field="user_id")
        return ReactivateUserPayload(user=await users.reactivate_user(session, viewer, user_id))
