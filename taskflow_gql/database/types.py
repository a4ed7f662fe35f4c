"""Column types that differ between PostgreSQL and SQLite, and the base class of models."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ARRAY, DateTime, Dialect, MetaData, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeEngine


class Model(DeclarativeBase):
    """The base class of models. It names every constraint, so that migrations and error handlers can refer to it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# asyncpg sends these two as -infinity and infinity, which PostgreSQL sorts together with missing dates. Comparisons
# with them are correct as long as no column holds them, which `check_due_date` ensures.
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite has no such type and returns naive values."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # asyncpg already returns them in UTC.
        return None if dialect.name == "postgresql" else super().result_processor(dialect, coltype)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class WordList(TypeDecorator[str]):
    """Words separated by one space, in the form that the index on words needs.

    PostgreSQL stores the words unchanged. FTS5 would split and fold them again by its own rules, so each word is stored
    as the hexadecimal digits of its UTF-8. A prefix of a word stays a prefix, and FTS5 finds nothing to split.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or dialect.name != "sqlite":
            return value
        return " ".join(word.encode().hex() for word in value.split())


class WordsQuery(TypeDecorator[tuple[str, ...]]):
    """A full-text query for rows in which each of these words is the prefix of a word."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        # Words consist of letters and digits only, so quoted words contain no syntax.
        if dialect.name == "sqlite":
            return " AND ".join(f'"{word.encode().hex()}" *' for word in value)
        return " & ".join(f"'{word}':*" for word in value)


def sorted_text(length: int) -> String:
    """Text that sorts by code point on both databases, whatever the locale of the PostgreSQL cluster."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class ValueList(TypeDecorator[Collection[Any]]):
    """Any number of values as one parameter, so that the number does not change the statement."""

    impl = Text
    cache_ok = True

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        super().__init__()
        self.item_type = item_type

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(self.item_type) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Collection[Any] | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value and list(value)
        process = self.item_type.dialect_impl(dialect).bind_processor(dialect)
        return json.dumps([process(one) if process else one for one in value])
