"""Opaque tokens: their form, check digits, and derivation."""

from __future__ import annotations

import re

import pytest

from taskflow_gql.security.opaque import OpaqueTokens, hash_of_token

TOKENS = OpaqueTokens("tfr_")


def test_a_token_has_its_prefix_and_a_form_that_scanners_find() -> None:
    made = {TOKENS.make() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch("tfr_[0-9A-Za-z]{49}", token) for token in made)
    assert all(map(TOKENS.is_whole, made))


@pytest.mark.parametrize("place", range(53))
def test_one_wrong_character_is_found(place: int) -> None:
    token = TOKENS.derive(b"key", b"message")
    wrong = "A" if token[place] != "A" else "B"
    assert not TOKENS.is_whole(token[:place] + wrong + token[place + 1 :])


@pytest.mark.parametrize("text", ["", "tfr_", "tfr_" + "0" * 48, "tfr_" + "0" * 50, "tfp_" + "0" * 49, "é" * 53])
def test_other_texts_are_no_tokens(text: str) -> None:
    assert not TOKENS.is_whole(text)


def test_the_same_key_and_message_derive_the_same_token() -> None:
    token = TOKENS.derive(b"key", b"message")
    assert TOKENS.is_whole(token)
    assert token == TOKENS.derive(b"key", b"message")
    others = [
        TOKENS.derive(b"other", b"message"),
        TOKENS.derive(b"key", b"other"),
        OpaqueTokens("tfp_").derive(b"key", b"message"),
    ]
    assert token[4:] not in [other[4:] for other in others]


def test_the_stored_hash_does_not_hold_the_token() -> None:
    assert len(hash_of_token(TOKENS.make())) == 32
