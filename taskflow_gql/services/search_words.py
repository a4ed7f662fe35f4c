"""Splits text into words for searching. Both databases and the Python predicate use these words, so they agree."""

from __future__ import annotations

import re

# Runs of Unicode letters and digits: \w without the underscore.
_WORD = re.compile(r"[^\W_]+")
# A PostgreSQL lexeme holds at most 2046 bytes. Longer words are cut; nobody types a hundred characters to find one.
_MAX_WORD_LENGTH = 100


def words_of(text: str) -> list[str]:
    """The casefolded words in order, with repetitions."""
    return [word[:_MAX_WORD_LENGTH] for word in _WORD.findall(text.casefold())]


def search_words(*texts: str | None) -> str:
    """All distinct words of the texts, sorted and separated by one space: what the index on words stores of a row."""
    return " ".join(sorted({word for text in texts if text for word in words_of(text)}))


def text_keys(title: str, description: str | None) -> dict[str, str | None]:
    """The columns of a task that are derived from its title and description."""
    return {
        "title_key": title.casefold(),
        "description_key": None if description is None else description.casefold(),
        "search_words": search_words(title, description),
    }


def name_words(full_name: str) -> str:
    """The column of a user that is derived from the full name: its words in order, each with a space before it."""
    return "".join(f" {word}" for word in words_of(full_name))
