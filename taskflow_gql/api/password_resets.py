"""Setting a new password by a link that comes by mail."""

from __future__ import annotations

import strawberry

from taskflow_gql.api.context import Context
from taskflow_gql.api.mutations import Write, prepared_mutation
from taskflow_gql.api.payloads import MutationPayload, RepeatableInput
from taskflow_gql.api.users import User
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import Forbidden
from taskflow_gql.models import UserRow
from taskflow_gql.services import accounts, mail, password_resets, users
from taskflow_gql.services.ids import parse_id


@strawberry.input(description="Whose password to set anew.")
class RequestPasswordResetInput(RepeatableInput):
    email: str = strawberry.field(description="The address of the account.")


@strawberry.input(description="The token of the link, and the new password.")
class ResetPasswordInput(RepeatableInput):
    token: str = strawberry.field(description="What follows `#token=` in the link; good for one use, for 30 minutes.")
    new_password: str = strawberry.field(description="8 to 128 characters.")


@strawberry.type(description="What became of `requestPasswordReset`. It never tells whether the address is known.")
class RequestPasswordResetPayload(MutationPayload):
    pass


@strawberry.input(description="To whom to send a link.")
class SendPasswordResetInput(RepeatableInput):
    user_id: strawberry.ID = strawberry.field(description="The person.")


@strawberry.type(description="What became of `sendPasswordReset`.")
class SendPasswordResetPayload(MutationPayload):
    user: UserRow | None = strawberry.field(
        graphql_type=User | None, default=None, description="The person who gets the mail; null on errors."
    )


@strawberry.type(description="What became of `resetPassword`.")
class ResetPasswordPayload(MutationPayload):
    pass


@strawberry.type
class PasswordResetMutations:
    @prepared_mutation(
        "Send a link to set a new password, if there is an active account with this address. Public. The link is "
        "`/reset-password#token=…` at the address of the front end. At most three are sent in half an hour. "
        "An address that was changed in the last three days gets none.",
        input="Whose.",
        is_public=True,
        has_secrets=True,
        rate="auth",
    )
    @staticmethod
    async def request_password_reset(
        context: Context, input: RequestPasswordResetInput
    ) -> Write[RequestPasswordResetPayload]:
        _require_mail(context)

        async def write(session: DatabaseSession) -> RequestPasswordResetPayload:
            await password_resets.request_reset(session, input.email)
            return RequestPasswordResetPayload()

        return write

    @prepared_mutation(
        "Send somebody a link to set a new password. For ADMINs. Their password is good until they use the link.",
        input="To whom.",
    )
    @staticmethod
    async def send_password_reset(context: Context, input: SendPasswordResetInput) -> Write[SendPasswordResetPayload]:
        viewer = await context.require_viewer()
        _require_mail(context)
        user_id = parse_id(input.user_id, field="user_id")

        async def write(session: DatabaseSession) -> SendPasswordResetPayload:
            user = await users.require_active_user(session, viewer, user_id)
            await password_resets.send_link(session, user, links_base=context.parts.settings.links_base)
            return SendPasswordResetPayload(user=user)

        return write

    @prepared_mutation(
        "Set a new password by the token of a link. Public. All sessions of the person end, and their other links "
        "become invalid; sign in with the new password. A token that is unknown, used or expired is INVALID_TOKEN.",
        input="Token and password.",
        is_public=True,
        has_secrets=True,
        rate="auth",
    )
    @staticmethod
    async def reset_password(context: Context, input: ResetPasswordInput) -> Write[ResetPasswordPayload]:
        new_password = accounts.check_new_password(input.new_password)
        async with context.read() as session:
            await password_resets.require_token(session, input.token)
        new_hash = await context.parts.passwords.hash(new_password)

        async def write(session: DatabaseSession) -> ResetPasswordPayload:
            user = await password_resets.reset_password(session, input.token, new_hash=new_hash)
            if context.parts.settings.sends_mail:
                await mail.tell(session, user, "password_changed")
            return ResetPasswordPayload()

        return write


def _require_mail(context: Context) -> None:
    if not context.parts.settings.sends_mail:
        raise Forbidden("This server sends no mails: its operator has to set TASKFLOW_SMTP_URL")
