"""The cursors that name a position."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow_gql.errors import BadUserInput
from taskflow_gql.services.positions import decode_cursor, encode_cursor

STREAM = "0123456789abcdef"


@given(st.integers(0, 10**18 - 1))
def test_a_cursor_names_its_position(position: int) -> None:
    cursor = encode_cursor(STREAM, position)
    assert decode_cursor(cursor, STREAM) == position
    with pytest.raises(BadUserInput) as caught:
        decode_cursor(cursor, "fedcba9876543210")
    assert caught.value.message == "after is a cursor of another server: read again from a query"


def encode(plain: str) -> str:
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "\ud800",
        "%%%",
        encode_cursor(STREAM, 7)[:-4],
        encode_cursor(STREAM, 7) + "AAAA",
        encode(STREAM),
        encode(f"{STREAM}:"),
        encode(f"{STREAM}:-1"),
        encode(f"{STREAM}:1.5"),
        encode(f"{STREAM}:7\n"),
        encode(f"{STREAM}:{10**18}"),
        encode(f"{STREAM}:" + "9" * 5000),
        encode(f"{STREAM}:٧"),
        encode(f"{STREAM.upper()}:7"),
        encode(f"{STREAM}:7:7"),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
    ids=ascii,
)
def test_a_damaged_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(BadUserInput) as caught:
        decode_cursor(cursor, STREAM)
    assert caught.value.message == "after is not a cursor of the change stream"
