"""Sessions: where a person is signed in, and signing out."""

from __future__ import annotations

from datetime import datetime

import strawberry

from taskflow_gql.api.accounts import REFRESH_COOKIE
from taskflow_gql.api.context import Context, Info
from taskflow_gql.api.mutations import Write, mutation, prepared_mutation
from taskflow_gql.api.payloads import MutationPayload, RepeatableInput
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.execution import IsInstance
from taskflow_gql.models import SessionRow
from taskflow_gql.services import sessions
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import parse_id


@strawberry.type(description="One of your sign-ins. It ends when you sign out, or when it is not refreshed in time.")
class Session:
    id: strawberry.ID = strawberry.field(description="For `revokeSession`.")
    created_at: datetime = strawberry.field(description="When you signed in.")
    last_seen_at: datetime = strawberry.field(description="When it was last refreshed; at first, when you signed in.")
    expires_at: datetime = strawberry.field(description="When it ends, unless it is refreshed before.")
    ip_address: str | None = strawberry.field(
        description="The network address of the last sign-in or refresh; null if the server does not know it."
    )
    user_agent: str | None = strawberry.field(
        description="The client of the last sign-in or refresh, by its own words: its header `User-Agent`, cut to 255 "
        "characters."
    )

    @strawberry.field(description="Whether this request belongs to it.")
    @staticmethod
    def is_current(session: strawberry.Parent[SessionRow], info: Info) -> bool:
        viewer = info.context.known_viewer
        return viewer is not None and viewer.session_id == session.id

    is_type_of = IsInstance(SessionRow)


@strawberry.input(description="The session to end.")
class RevokeSessionInput(RepeatableInput):
    id: strawberry.ID = strawberry.field(description="One of `mySessions`; it may be the present one.")


@strawberry.type(description="What became of `logout`.")
class LogoutPayload(MutationPayload):
    def on_committed(self, context: Context) -> None:
        cookies = context.cookies
        if cookies is not None and not self.errors and cookies.get(REFRESH_COOKIE) is not None:
            cookies.set(REFRESH_COOKIE, "", max_age=0)


@strawberry.type(description="What became of `revokeSession`.")
class RevokeSessionPayload(MutationPayload):
    revoked_session_id: strawberry.ID | None = strawberry.field(
        default=None, description="The session that has ended; null on errors."
    )


@strawberry.type(description="What became of `revokeOtherSessions`.")
class RevokeOtherSessionsPayload(MutationPayload):
    revoked_count: int = strawberry.field(default=0, description="How many sessions have ended.")


@strawberry.type
class SessionQueries:
    @strawberry.field(
        graphql_type=list[Session],
        description=(
            f"Where you are signed in: your sessions, the one last seen first; at most {sessions.MAX_SESSIONS_SHOWN}."
        ),
    )
    @staticmethod
    async def my_sessions(info: Info) -> list[SessionRow]:
        viewer = await info.context.require_viewer()
        async with info.context.read() as session:
            return await sessions.list_sessions(session, viewer)


@strawberry.type
class SessionMutations:
    @prepared_mutation(
        "Sign out: end the present session. Its tokens are refused at once, its streams end within two seconds, and "
        "the cookie with the refresh token is deleted. Needs an access token that has not expired: refresh first. With "
        "the cookie, send an ordinary POST."
    )
    @staticmethod
    async def logout(context: Context) -> Write[LogoutPayload]:
        viewer = await context.require_viewer()

        async def write(session: DatabaseSession) -> LogoutPayload:
            await sessions.end_session(session, viewer, viewer.session_id)
            return LogoutPayload()

        return write

    @mutation(
        "End one of your sessions, on a lost device for example. Its tokens are refused at once, and its streams end "
        "within two seconds.",
        input="The session.",
    )
    @staticmethod
    async def revoke_session(
        session: DatabaseSession, viewer: Viewer, input: RevokeSessionInput
    ) -> RevokeSessionPayload:
        session_id = parse_id(input.id, field="id")
        await sessions.end_session(session, viewer, session_id)
        return RevokeSessionPayload(revoked_session_id=strawberry.ID(str(session_id)))

    @prepared_mutation("End all your sessions but the present one.")
    @staticmethod
    async def revoke_other_sessions(context: Context) -> Write[RevokeOtherSessionsPayload]:
        viewer = await context.require_viewer()

        async def write(session: DatabaseSession) -> RevokeOtherSessionsPayload:
            return RevokeOtherSessionsPayload(revoked_count=await sessions.end_other_sessions(session, viewer))

        return write
