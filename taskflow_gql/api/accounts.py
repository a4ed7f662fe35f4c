"""Registration, signing in, and changes to one's own account."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import strawberry

from taskflow_gql import clock
from taskflow_gql.api.context import Context
from taskflow_gql.api.mutations import Write, mutation, prepared_mutation
from taskflow_gql.api.payloads import MutationPayload, RepeatableInput
from taskflow_gql.api.users import User
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.models import UserRow
from taskflow_gql.security.tokens import TokenSigner
from taskflow_gql.services import accounts
from taskflow_gql.services.access import Viewer


@strawberry.input(description="A new account.")
class RegisterInput(RepeatableInput):
    email: str = strawberry.field(
        description="Unique without regard to case. Only you and ADMINs see it. Good for signing in."
    )
    username: str = strawberry.field(
        description="3 to 50 letters, digits, `_`, `.` or `-`; unique without regard to case."
    )
    full_name: str = strawberry.field(description="The name that others see; at most 255 characters.")
    password: str = strawberry.field(description="8 to 128 characters.")


@strawberry.input(description="Who you are.")
class LoginInput(RepeatableInput):
    username_or_email: str = strawberry.field(description="Either one; case does not matter.")
    password: str = strawberry.field(description="The password; case matters.")


@strawberry.input(description="The old password and the new one.")
class ChangePasswordInput(RepeatableInput):
    current_password: str = strawberry.field(description="The password that is good until now.")
    new_password: str = strawberry.field(description="8 to 128 characters.")


@strawberry.input(description="What to change about yourself. Left out: unchanged. Neither can be null.")
class UpdateProfileInput(RepeatableInput):
    full_name: str | None = strawberry.field(
        default=strawberry.UNSET, description="The name that others see; at most 255 characters."
    )
    email: str | None = strawberry.field(default=strawberry.UNSET, description="Unique without regard to case.")


@strawberry.type(description="What became of `register` or `login`. On errors everything but `errors` is null.")
class AuthPayload(MutationPayload):
    access_token: str | None = strawberry.field(
        default=None,
        description="Send it as `Authorization: Bearer …`, on a WebSocket in the payload of `connection_init`.",
    )
    token_type: str | None = strawberry.field(default=None, description='"Bearer".')
    expires_in: int | None = strawberry.field(
        default=None, description="How long the access token is good, in seconds."
    )
    user: UserRow | None = strawberry.field(graphql_type=User | None, default=None, description="Who is signed in now.")
    # The session of the token, and its start in seconds since 1970.
    session_id: strawberry.Private[str | None] = None
    issued_at: strawberry.Private[float | None] = None
    not_kept: ClassVar[frozenset[str]] = frozenset({"access_token", "token_type", "expires_in"})

    async def on_replay(self, context: Context, given: Any) -> None:
        """Check the password again, because it may have been changed, and give a new token of the same session.

        The token expires when the first one does.
        """
        if self.user is not None and self.session_id is not None and self.issued_at is not None:
            async with context.read() as session:
                candidate = await accounts.find_active_candidate(session, self.user.id)
            matches = await context.parts.passwords.verify(given.password, candidate.password_hash)
            self.user = accounts.require_match(candidate, matches)
            context.note_sign_in(self.user)
            issued_at = datetime.fromtimestamp(self.issued_at, UTC)
            self.give_token(context.parts.tokens, self.user, UUID(self.session_id), issued_at)

    def give_token(self, tokens: TokenSigner, user: UserRow, session_id: UUID, issued_at: datetime) -> None:
        age = clock.now() - issued_at if self.replayed else timedelta()
        self.access_token = tokens.sign(user_id=user.id, session_id=session_id, issued_at=issued_at)
        self.token_type = "Bearer"  # noqa: S105  (the name of a scheme, not a secret)
        self.expires_in = max(0, int((tokens.lifetime - age).total_seconds()))


@strawberry.type(description="What became of `changePassword`.")
class ChangePasswordPayload(MutationPayload):
    pass


@strawberry.type(description="What became of `updateProfile`.")
class UpdateProfilePayload(MutationPayload):
    user: UserRow | None = strawberry.field(
        graphql_type=User | None, default=None, description="You, as changed; null on errors."
    )


@strawberry.type
class AccountMutations:
    @prepared_mutation(
        "Make an account and sign in to it. Public. The new account is a MEMBER. A repeated `mutationId` gets a new "
        "token of the same session, with what is left of its time; it is known for the same input from the same "
        "address.",
        input="The account.",
        is_public=True,
        has_secrets=True,
    )
    @staticmethod
    async def register(context: Context, input: RegisterInput) -> Write[AuthPayload]:
        async with context.read() as session:
            registration = await accounts.check_registration(
                session,
                email=input.email,
                username=input.username,
                full_name=input.full_name,
                password=input.password,
            )
        password_hash = await context.parts.passwords.hash(registration.password)

        async def write(session: DatabaseSession) -> AuthPayload:
            user = await accounts.create_user(session, registration, password_hash)
            return await _open_session(context, session, user, password_hash)

        return write

    @prepared_mutation(
        "Sign in. Public. An unknown name, a wrong password and a deactivated account give one answer, "
        "INVALID_CREDENTIALS, after the same time. A repeated `mutationId` gets a new token of the same session, with "
        "what is left of its time; it is known for the same input from the same address.",
        input="Who you are.",
        is_public=True,
        has_secrets=True,
    )
    @staticmethod
    async def login(context: Context, input: LoginInput) -> Write[AuthPayload]:
        async with context.read() as session:
            candidate = await accounts.find_candidate(session, input.username_or_email)
        matches = await context.parts.passwords.verify(input.password, candidate.password_hash)
        user = accounts.require_match(candidate, matches)

        async def write(session: DatabaseSession) -> AuthPayload:
            return await _open_session(context, session, user, candidate.password_hash or "")

        return write

    @prepared_mutation(
        "Set a new password. Your other sessions end at once; this one goes on. A repeated `mutationId` with the same "
        "passwords gets the first answer, though the current password is no longer that one.",
        input="Old and new password.",
        has_secrets=True,
    )
    @staticmethod
    async def change_password(context: Context, input: ChangePasswordInput) -> Write[ChangePasswordPayload]:
        viewer = await context.require_viewer()
        passwords = context.parts.passwords
        new_password = accounts.check_new_password(input.new_password)
        async with context.read() as session:
            candidate = await accounts.find_active_candidate(session, viewer.id)
        if not await passwords.verify(input.current_password, candidate.password_hash):
            raise accounts.InvalidCredentials("The current password is not correct", field="current_password")
        new_hash = await passwords.hash(new_password)

        async def write(session: DatabaseSession) -> ChangePasswordPayload:
            await accounts.change_password(session, viewer, old_hash=candidate.password_hash or "", new_hash=new_hash)
            return ChangePasswordPayload()

        return write

    @mutation("Change your name or your email address.", input="What to change.")
    @staticmethod
    async def update_profile(
        session: DatabaseSession, viewer: Viewer, input: UpdateProfileInput
    ) -> UpdateProfilePayload:
        given = {"full_name": input.full_name, "email": input.email}
        changes = {name: value for name, value in given.items() if value is not strawberry.UNSET}
        return UpdateProfilePayload(user=await accounts.update_profile(session, viewer, changes))


async def _open_session(context: Context, session: DatabaseSession, user: UserRow, password_hash: str) -> AuthPayload:
    tokens = context.parts.tokens
    session_id, begun_at = await accounts.open_session(
        session, user, password_hash=password_hash, lifetime=tokens.lifetime
    )
    context.note_sign_in(user)
    payload = AuthPayload(user=user, session_id=str(session_id), issued_at=begun_at.timestamp())
    payload.give_token(tokens, user, session_id, begun_at)
    return payload
