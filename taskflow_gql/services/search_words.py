"""What a word is, for search: decided here once, so that the two databases and the predicate cannot disagree."""

from __future__ import annotations

import re

# Runs of Unicode letters and digits: \w without the underscore.
_WORD = re.compile(r"[^\W_]+")
# A PostgreSQL lexeme holds 2046 bytes. Nobody types a hundred characters to find a longer word.
_MAX_WORD_LENGTH = 100


def words_of(text: str) -> list[str]:
    """The words, casefolded, in order, repeats included."""
    return [word[:_MAX_WORD_LENGTH] for word in _WORD.findall(text.casefold())]


def search_words(*texts: str | None) -> str:
    """All distinct words of the texts, sorted, one blank between them: what an index on words holds of a row."""
    return " ".join(sorted({word for text in texts if text for word in words_of(text)}))


def text_keys(title: str, description: str | None) -> dict[str, str | None]:
    """The columns of a task that follow from its title and description."""
    return {
        "title_key": title.casefold(),
        "description_key": None if description is None else description.casefold(),
        "search_words": search_words(title, description),
    }


def name_words(full_name: str) -> str:
    """The column of a user that follows from the full name: its words in their order, each with a blank before it."""
    return "".join(f" {word}" for word in words_of(full_name))
