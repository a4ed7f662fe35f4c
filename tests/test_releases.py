"""A release breaks no client without saying so: schema.graphql against the last release, and the changelog."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from graphql import GraphQLSchema, build_schema
from graphql.utilities import find_breaking_changes
from packaging.version import Version

from taskflow_gql import __version__

ROOT = Path(__file__).parent.parent
RELEASES = {
    Version(path.stem.removeprefix("schema-")): path for path in (ROOT / "docs/releases").glob("schema-*.graphql")
}
LAST_RELEASE = max(RELEASES)
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def parts_of_changelog() -> list[tuple[str, str]]:
    """Each part's heading and text, newest first."""
    _, *parts = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)
    return [(heading, text) for heading, _, text in (part.partition("\n") for part in parts)]


def schema_part(text: str) -> str:
    """The text under `### Schema`, on one line."""
    match = re.search(r"^### Schema$(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, "The newest part of CHANGELOG.md has no `### Schema`"
    return " ".join(match[1].split())


def coordinate_of(description: str) -> str:
    """The schema coordinate that graphql-core names in a change: `Type`, `Type.field`, `Type.field(argument:)`."""
    specific = re.search(r"@\w+(\(\w+:\))?|\w+\.\w+(\(\w+:\))?", description)
    # Otherwise the description begins with the type's name.
    return specific[0] if specific else description.removeprefix("Standard scalar ").split()[0]


def unannounced(old: GraphQLSchema, new: GraphQLSchema, announced: str) -> list[str]:
    """The breaking changes that the text names neither by coordinate (in backticks) nor by description."""
    changes = dict.fromkeys(change.description for change in find_breaking_changes(old, new))
    return [change for change in changes if f"`{coordinate_of(change)}`" not in announced and change not in announced]


def test_the_schema_breaks_nothing_that_the_changelog_does_not_announce() -> None:
    old = build_schema(RELEASES[LAST_RELEASE].read_text())
    new = build_schema((ROOT / "schema.graphql").read_text())
    _, newest = parts_of_changelog()[0]
    assert unannounced(old, new, schema_part(newest)) == [], (
        f"These changes break clients of {LAST_RELEASE}. Take them back, or name each coordinate in backticks under "
        "`### Schema` in the newest part of CHANGELOG.md."
    )


def test_the_changelog_has_a_dated_part_and_a_schema_for_each_version() -> None:
    (unreleased, _), *released = parts_of_changelog()
    assert unreleased == "Unreleased"
    headings = [re.fullmatch(r"(\d+\.\d+\.\d+) – \d{4}-\d\d-\d\d", heading) for heading, _ in released]
    versions = [Version(match[1]) for match in headings if match]
    assert len(versions) == len(headings)
    assert versions == sorted(RELEASES, reverse=True)
    assert str(versions[0]) == __version__
    for _, text in released:
        assert schema_part(text)


OLD = """
    directive @cost(weight: Int) on FIELD_DEFINITION
    enum Color { RED GREEN }
    interface Node { id: ID! }
    type Task implements Node { id: ID! title: String! color: Color count: Int }
    type Gone { id: ID! }
    input New { title: String! }
    type Query { task(id: ID!): Task gone: Gone create(input: New): Task }
"""


@pytest.mark.parametrize(
    ("before", "after", "coordinate"),
    [
        ("title: String! color", "color", "Task.title"),
        ("title: String! color", "title: String color", "Task.title"),
        ("RED GREEN", "RED", "Color.GREEN"),
        ("task(id: ID!)", "task(id: ID!, key: ID!)", "Query.task(key:)"),
        ("task(id: ID!)", "task", "Query.task(id:)"),
        ("input New { title", "input New { key: ID! title", "New.key"),
        (" gone: Gone", "", "Query.gone"),
        ("implements Node", "", "Task"),
        ("(weight: Int)", "", "@cost(weight:)"),
        ("type Gone", "interface Gone", "Gone"),
    ],
)
def test_a_breaking_change_is_announced_by_its_coordinate(before: str, after: str, coordinate: str) -> None:
    assert before in OLD
    old, new = build_schema(OLD), build_schema(OLD.replace(before, after))
    (change,) = unannounced(old, new, "")
    assert coordinate_of(change) == coordinate
    assert unannounced(old, new, f"- `{coordinate}` is another now.") == []
    assert unannounced(old, new, f"- {change}") == []
    assert unannounced(old, new, "- `Task.unrelated` is new.") == [change]


def test_an_addition_breaks_nothing() -> None:
    new = build_schema(OLD.replace("RED GREEN", "RED GREEN BLUE").replace("gone: Gone", "gone: Gone more: Task"))
    assert unannounced(build_schema(OLD), new, "") == []


def test_the_schema_part_ends_where_the_next_begins() -> None:
    assert schema_part("\n### Schema\n- `A.b`\n  goes.\n\n### Fixed\n- `C.d`\n") == "- `A.b` goes."
    with pytest.raises(AssertionError, match="has no `### Schema`"):
        schema_part("\n### Fixed\n")
