"""Checks of user input, without a database. tests/api checks the messages too, as clients get them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow_gql.database.texts import is_storable
from taskflow_gql.errors import BadUserInput, Refusal
from taskflow_gql.services import checks

CHECKS: dict[str, Callable[[str, list[Refusal]], str | None]] = {
    "email": checks.check_email,
    "username": checks.check_username,
    "full_name": checks.check_full_name,
    "password": checks.check_password,
    "title": checks.check_title,
    "description": checks.check_description,
}


def check(field: str, given: str) -> tuple[str | None, list[str]]:
    """The value that would be stored, and the messages of the problems."""
    problems: list[Refusal] = []
    stored = CHECKS[field](given, problems)
    assert all(isinstance(problem, BadUserInput) and problem.field == [field] for problem in problems)
    return stored, [problem.message for problem in problems]


@pytest.mark.parametrize(
    ("field", "given", "stored"),
    [
        ("email", " Ann@Example.com ", "Ann@Example.com"),
        ("email", "a+b.c@sub.example.co.uk", "a+b.c@sub.example.co.uk"),
        ("email", "ünïcode@exämple.com", "ünïcode@exämple.com"),
        ("email", "a@example.test", "a@example.test"),
        ("username", " ann ", "ann"),
        ("username", "A.n_n-1", "A.n_n-1"),
        ("username", "x" * 50, "x" * 50),
        ("full_name", " Ann ", "Ann"),
        ("full_name", "é" * 255, "é" * 255),
        ("password", "12345678", "12345678"),
        ("password", " with blanks around ", " with blanks around "),
        ("password", "p" * 128, "p" * 128),
        ("title", "\u00a0abc\u2003", "abc"),
        ("title", "😀" * 3, "😀" * 3),
        ("title", "x" * 255, "x" * 255),
        ("description", "", ""),
        ("description", " \n", " \n"),
        ("description", "x" * 10_000, "x" * 10_000),
    ],
)
def test_valid_values_are_stored_and_stripped_where_blanks_mean_nothing(field: str, given: str, stored: str) -> None:
    assert check(field, given) == (stored, [])


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("username", "ab", "Username must be at least 3 characters long"),
        ("username", "  ab  ", "Username must be at least 3 characters long"),
        ("username", "x" * 51, "Username must be at most 50 characters long"),
        ("username", "ann b", "Username may only have letters, digits, _, . and -"),
        ("username", "änn", "Username may only have letters, digits, _, . and -"),
        ("username", "ann@example.com", "Username may only have letters, digits, _, . and -"),
        ("username", "ann\nb", "Username may only have letters, digits, _, . and -"),
        ("username", "ann\u0661", "Username may only have letters, digits, _, . and -"),
        ("full_name", "", "Full name must not be empty"),
        ("full_name", " \u3000 ", "Full name must not be empty"),
        ("full_name", "x" * 256, "Full name must be at most 255 characters long"),
        ("password", "1234567", "Password must be at least 8 characters long"),
        ("password", "", "Password must be at least 8 characters long"),
        ("password", "p" * 129, "Password must be at most 128 characters long"),
        ("title", "ab", "Title must be at least 3 characters long"),
        ("title", "a  ", "Title must be at least 3 characters long"),
        ("title", "x" * 256, "Title must be at most 255 characters long"),
        ("description", "x" * 10_001, "Description must be at most 10000 characters long"),
    ],
)
def test_invalid_values_are_refused_with_a_message(field: str, given: str, message: str) -> None:
    assert check(field, given)[1] == [message]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "ann",
        "@example.com",
        "ann@",
        "ann@example",
        "a b@example.com",
        "ann@exam ple.com",
        "ann@@example.com",
        "ann@example..com",
        ".ann@example.com",
        "ann.@example.com",
        "ann@-example.com",
        "ann@[127.0.0.1]",
        "Ann <ann@example.com>",
        "ann@example.com\nBcc: bob@example.com",
        "ann\x00@example.com",
        "ann\ud800@example.com",
        f"ann@{'a' * 64}.com",
        f"ann@{'a.' * 130}com",
    ],
)
def test_an_invalid_email_address_is_refused(given: str) -> None:
    _, problems = check("email", given)
    assert len(problems) == 1
    assert problems[0].startswith("Email address is not valid: ")


@given(st.sampled_from(sorted(CHECKS)), st.text(st.characters()))
def test_no_text_makes_a_check_raise(field: str, given_text: str) -> None:
    check(field, given_text)


@given(st.text(alphabet="ann\u00e9 .@\x00"))
def test_a_check_accepts_its_own_result_unchanged(given_text: str) -> None:
    for field in CHECKS:
        stored, problems = check(field, given_text)
        if not problems:
            assert stored is not None
            assert check(field, stored) == (stored, [])


def test_nul_and_half_surrogate_pairs_cannot_be_stored() -> None:
    for fine in ("", "abc", "é", "😀", "\u202e", "\x01", "\uffff"):
        assert is_storable(fine)
    for bad in ("\x00", "a\x00b", "\ud800", "\udfff", "a\udc00"):
        assert not is_storable(bad)
