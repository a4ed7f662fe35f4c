"""Relay connections: paging arguments and `PageInfo`."""

from __future__ import annotations

from typing import Annotated, Any

import strawberry

from taskflow_gql.services.paging import Page

First = Annotated[
    int | None,
    strawberry.argument(
        description="How many from the start, or after `after`: 1 to 100, 50 if nothing is said. Not with `last`."
    ),
]
After = Annotated[str | None, strawberry.argument(description="Only what comes after this `cursor` of the same list.")]
Last = Annotated[
    int | None,
    strawberry.argument(description="How many from the end, or before `before`: 1 to 100. Not with `first`."),
]
Before = Annotated[
    str | None, strawberry.argument(description="Only what comes before this `cursor` of the same list.")
]


@strawberry.type(description="Where a page lies in its list.")
class PageInfo:
    has_next_page: bool = strawberry.field(
        description="More follows: go on with `after: endCursor`. When paging backwards, true if `before` was given."
    )
    has_previous_page: bool = strawberry.field(
        description="More comes before: go back with `before: startCursor`. Paging forwards, true if `after` was given."
    )
    start_cursor: str | None = strawberry.field(description="Cursor of the first edge; null on an empty page.")
    end_cursor: str | None = strawberry.field(description="Cursor of the last edge; null on an empty page.")


def page_info(page: Page[Any]) -> PageInfo:
    return PageInfo(
        has_next_page=page.has_next,
        has_previous_page=page.has_previous,
        start_cursor=page.cursor(page.rows[0]) if page.rows else None,
        end_cursor=page.cursor(page.rows[-1]) if page.rows else None,
    )
