"""GraphQL documents for accounts, and forged tokens."""

from __future__ import annotations

from typing import Any

import jwt

from tests.support.client import Api
from tests.support.serving import SECRET

LOGIN = """
mutation($input: LoginInput!) {
  login(input: $input) { accessToken tokenType expiresIn user { username email } errors { code message field } }
}
"""


CHANGE_PASSWORD = """
mutation($input: ChangePasswordInput!) { changePassword(input: $input) { errors { code message field } } }
"""


async def login(api: Api, name: str, password: str) -> dict[str, Any]:
    given = {"usernameOrEmail": name, "password": password}
    payload: dict[str, Any] = (await api.data(LOGIN, {"input": given}))["login"]
    return payload


def forge(token: str, **claims: Any) -> str:
    """The token with these claims replaced, signed with the right key. A claim set to None is removed."""
    payload = jwt.decode(token, options={"verify_signature": False}) | claims
    return jwt.encode({name: value for name, value in payload.items() if value is not None}, SECRET, algorithm="HS256")
