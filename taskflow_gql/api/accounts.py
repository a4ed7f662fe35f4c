"""Registration, signing in, and changes to one's own account."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

import strawberry

from taskflow_gql import clock
from taskflow_gql.api.context import Context
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.api.mutations import Write, prepared_mutation
from taskflow_gql.api.payloads import ErrorCode, MutationPayload, RepeatableInput, UserError
from taskflow_gql.api.users import User
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import BadUserInput, Forbidden
from taskflow_gql.models import UserRow
from taskflow_gql.operations.context import Cookies
from taskflow_gql.services import accounts, mail, sessions
from taskflow_gql.services.sessions import InvalidToken, Reused, SignIn

log = logging.getLogger(__name__)

# The prefix makes browsers take it only from this host itself, over HTTPS or localhost.
REFRESH_COOKIE = "__Host-taskflow_refresh"


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


class TokenTransport(StrEnum):
    BODY = "BODY"
    COOKIE = "COOKIE"


describe_enum(
    TokenTransport,
    "How a client gets and sends its refresh token.",
    BODY="In `AuthPayload.refreshToken` and `RefreshTokenInput.refreshToken`: the client stores it.",
    COOKIE=(
        "In the cookie `__Host-taskflow_refresh`, which scripts of a page cannot read: for browsers. Send requests "
        "with credentials, over HTTPS or to localhost, from the server's own origin or one that it names for CORS. "
        "`refreshToken` is null."
    ),
)


@strawberry.input(description="Who you are.")
class LoginInput(RepeatableInput):
    username_or_email: str = strawberry.field(description="Either one; case does not matter.")
    password: str = strawberry.field(description="The password; case matters.")
    transport: TokenTransport = strawberry.field(
        default=TokenTransport.BODY, description="How to give you the refresh token."
    )


@strawberry.input(description="The refresh token.")
class RefreshTokenInput(RepeatableInput):
    mutation_id: strawberry.ID | None = strawberry.field(
        default=None,
        description=(
            "Not looked at: a refresh may be repeated by itself, for 60 seconds. A later repeat ends the session, "
            "whatever this says."
        ),
    )
    refresh_token: str | None = strawberry.field(
        default=None, description="As `login` or the last refresh gave it. Left out: the cookie counts."
    )


@strawberry.type(
    description="What became of `register`, `login` or `refreshToken`. On errors everything but `errors` is null."
)
class AuthPayload(MutationPayload):
    access_token: str | None = strawberry.field(
        default=None,
        description="Send it as `Authorization: Bearer …`, on a WebSocket in the payload of `connection_init`.",
    )
    refresh_token: str | None = strawberry.field(
        default=None,
        description=(
            "Gives the next tokens with `refreshToken`; good for one use, and for 30 days unless the server is set "
            "otherwise. Null if it is in a cookie."
        ),
    )
    token_type: str | None = strawberry.field(default=None, description='"Bearer".')
    expires_in: int | None = strawberry.field(
        default=None, description="How long the access token is good, in seconds."
    )
    user: UserRow | None = strawberry.field(graphql_type=User | None, default=None, description="Who is signed in now.")
    # The session of the token, and its start in seconds since 1970.
    session_id: strawberry.Private[str | None] = None
    issued_at: strawberry.Private[float | None] = None
    # The refresh token for the cookie.
    cookie: strawberry.Private[str | None] = None
    not_kept: ClassVar[frozenset[str]] = frozenset(
        {"access_token", "refresh_token", "token_type", "expires_in", "cookie"}
    )

    @classmethod
    def of(cls, context: Context, sign_in: SignIn, transport: TokenTransport) -> AuthPayload:
        payload = cls(session_id=str(sign_in.session_id), issued_at=sign_in.issued_at.timestamp())
        payload.give_tokens(context, sign_in, transport)
        return payload

    async def on_replay(self, context: Context, given: Any) -> None:
        """Check the password again, because it may have been changed, and give tokens of the same session.

        The access token expires when the first one does. The refresh token is the first one, unless it was used.
        """
        if self.user is None or self.session_id is None or self.issued_at is None:
            return
        session_id = UUID(self.session_id)
        async with context.read() as session:
            candidate = await accounts.find_active_candidate(session, self.user.id)
        matches = await context.parts.passwords.verify(given.password, candidate.password_hash)
        user = accounts.require_match(candidate, matches)
        async with context.read() as session:
            token = await sessions.first_token_again(session, session_id, context.parts.refresh_key)
        issued_at = datetime.fromtimestamp(self.issued_at, UTC)
        transport = given.transport if isinstance(given, LoginInput) else TokenTransport.BODY
        self.give_tokens(context, SignIn(user, session_id, issued_at, token), transport)

    def give_tokens(self, context: Context, sign_in: SignIn, transport: TokenTransport) -> None:
        tokens = context.parts.tokens
        age = clock.now() - sign_in.issued_at
        self.access_token = tokens.sign(
            user_id=sign_in.user.id, session_id=sign_in.session_id, issued_at=sign_in.issued_at
        )
        self.token_type = "Bearer"  # noqa: S105  (the name of a scheme, not a secret)
        self.expires_in = max(0, round((tokens.lifetime - age).total_seconds()))
        self.user = sign_in.user
        context.note_sign_in(sign_in.user)
        if transport is TokenTransport.BODY:
            self.refresh_token = sign_in.refresh_token
        else:
            cookies_of(context)
            self.cookie = sign_in.refresh_token

    def on_committed(self, context: Context) -> None:
        """Set the cookie, and extend the WebSocket of the session."""
        if self.cookie is not None:
            cookies_of(context).set(REFRESH_COOKIE, self.cookie, max_age=_refresh_seconds(context))
        if self.session_id is not None and self.access_token is not None and self.issued_at is not None:
            expires_at = datetime.fromtimestamp(self.issued_at, UTC) + context.parts.tokens.lifetime
            context.renews(UUID(self.session_id), self.access_token, expires_at)


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
        rate="auth",
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
            return await _sign_in(context, session, user, password_hash, TokenTransport.BODY)

        return write

    @prepared_mutation(
        "Sign in. Public. An unknown name, a wrong password and a deactivated account give one answer, "
        "INVALID_CREDENTIALS, after the same time. A repeated `mutationId` gets a new token of the same session, with "
        "what is left of its time; it is known for the same input from the same address.",
        input="Who you are.",
        is_public=True,
        has_secrets=True,
        rate="auth",
        account_of=lambda _, input: accounts.key_of_name(input.username_or_email),
    )
    @staticmethod
    async def login(context: Context, input: LoginInput) -> Write[AuthPayload]:
        if input.transport is TokenTransport.COOKIE:
            cookies_of(context)
        async with context.read() as session:
            candidate = await accounts.find_candidate(session, input.username_or_email)
        matches = await context.parts.passwords.verify(input.password, candidate.password_hash)
        user = accounts.require_match(candidate, matches)

        async def write(session: DatabaseSession) -> AuthPayload:
            return await _sign_in(context, session, user, candidate.password_hash or "", input.transport)

        return write

    @prepared_mutation(
        "Get new tokens for a refresh token, which is used up by it. Public. For 60 seconds the used one gives the "
        "same new one, so that neither two tabs nor a request whose answer was lost sign you out. After that it is "
        "INVALID_TOKEN and ends its session, because somebody may have copied it. Sent on a WebSocket of this session, "
        "it also extends the socket: its streams and operations go on with the new access token.",
        input="The refresh token.",
        is_public=True,
        keeps_receipts=False,
    )
    @staticmethod
    async def refresh_token(context: Context, input: RefreshTokenInput) -> Write[AuthPayload]:
        transport = TokenTransport.BODY if input.refresh_token is not None else TokenTransport.COOKIE
        token = input.refresh_token if input.refresh_token is not None else _cookie_of(context)
        async with context.read() as session:
            session_id = await sessions.session_of_token(session, token)
        # By session, so that nobody uses up the limit of others at their address.
        await context.attempt("refresh", session_id)

        async def write(session: DatabaseSession) -> AuthPayload:
            lifetime = timedelta(seconds=_refresh_seconds(context))
            refreshed = await sessions.refresh_session(session, token, lifetime=lifetime, client=context.client)
            if isinstance(refreshed, Reused):
                if context.parts.settings.sends_mail:
                    await mail.tell(session, refreshed.user, "session_ended")
                return _session_ended(context, refreshed)
            return AuthPayload.of(context, refreshed, transport)

        return write

    @prepared_mutation(
        "Set a new password. Your other sessions end at once; this one goes on. A repeated `mutationId` with the same "
        "passwords gets the first answer, though the current password is no longer that one.",
        input="Old and new password.",
        has_secrets=True,
        rate="auth",
        account_of=lambda context, _: str(context.counted_as),
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
            if candidate.user is not None and context.parts.settings.sends_mail:
                await mail.tell(session, candidate.user, "password_changed")
            return ChangePasswordPayload()

        return write

    @prepared_mutation(
        "Change your name or your email address. The old address is told by mail, and a new one gets no link to set a "
        "password for three days.",
        input="What to change.",
    )
    @staticmethod
    async def update_profile(context: Context, input: UpdateProfileInput) -> Write[UpdateProfilePayload]:
        viewer = await context.require_viewer()
        given = {"full_name": input.full_name, "email": input.email}
        changes = {name: value for name, value in given.items() if value is not strawberry.UNSET}
        sends_mail = context.parts.settings.sends_mail

        async def write(session: DatabaseSession) -> UpdateProfilePayload:
            return UpdateProfilePayload(
                user=await accounts.update_profile(session, viewer, changes, sends_mail=sends_mail)
            )

        return write


async def _sign_in(
    context: Context, session: DatabaseSession, user: UserRow, password_hash: str, transport: TokenTransport
) -> AuthPayload:
    sign_in = await sessions.open_session(
        session,
        user,
        password_hash=password_hash,
        lifetime=timedelta(seconds=_refresh_seconds(context)),
        client=context.client,
        key=context.parts.refresh_key,
    )
    return AuthPayload.of(context, sign_in, transport)


def _refresh_seconds(context: Context) -> int:
    return int(timedelta(days=context.parts.settings.refresh_token_expire_days).total_seconds())


def cookies_of(context: Context) -> Cookies:
    """Raises a Refusal if the answer cannot set cookies, or the page that asks may not use them."""
    cookies = context.cookies
    if cookies is None:
        raise BadUserInput(
            "A WebSocket or a streamed answer cannot set cookies: send a POST request with `Accept: application/json`",
            field="transport",
        )
    if not cookies.are_trusted:
        raise Forbidden("Pages of this origin may not use cookies. TASKFLOW_CORS_ORIGINS names the origins that may")
    return cookies


def _cookie_of(context: Context) -> str:
    token = cookies_of(context).get(REFRESH_COOKIE)
    if token is None:
        raise InvalidToken("There is no refreshToken in the input, and no cookie: sign in again", field="refresh_token")
    return token


def _session_ended(context: Context, reused: Reused) -> AuthPayload:
    log.warning(
        "A refresh token of session %s of user %s was used again, from %s: the session has been ended",
        reused.session_id,
        reused.user.id,
        context.address or "an unknown address",
    )
    error = UserError(
        code=ErrorCode.INVALID_TOKEN,
        message=(
            "The refresh token was used before, so somebody may have copied it. Its session has ended: sign in again"
        ),
        field=["refreshToken"],
    )
    return AuthPayload(errors=[error])
