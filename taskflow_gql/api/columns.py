"""Which columns of its rows a document asks for.

Most of what a page costs is columns: read, sent, and made into values. A field that is not in the tables below has all
of them read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLSchema,
    SelectionSetNode,
    TypeInfo,
    TypeInfoVisitor,
    Visitor,
    get_named_type,
    visit,
)
from strawberry.utils.str_converters import to_camel_case

from taskflow_gql.models import TaskRow, UserRow
from taskflow_gql.services.tasks import TaskColumns

_NEEDS_OF_TASK: dict[str, Set[str]] = {
    **{to_camel_case(name): {name} for name in TaskRow._fields},
    "__typename": set(),
    "completed": {"status"},
    "overdue": {"status", "due_date"},
    # They come along.
    "creator": set(),
    "assignee": set(),
    "history": set(),
    "viewerCanUpdate": {"creator_id"},
    "viewerCanChangeStatus": {"creator_id", "assignee_id"},
    "viewerCanDelete": {"creator_id"},
}
_NEEDS_OF_USER: dict[str, Set[str]] = {
    **{to_camel_case(name): {name} for name in UserRow._fields},
    "__typename": set(),
    "createdTasks": set(),
    "assignedTasks": set(),
}
# What a connection makes cursors for.
_WITH_CURSORS = {"edges", "pageInfo"}


class Columns:
    """What one document asks for."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode) -> None:
        fields, lists = _examine(schema, document)
        of_user = _columns(fields["User"] | fields["Node"], _NEEDS_OF_USER, UserRow._fields)
        of_task = fields["Task"] | fields["Node"]
        self.of_user = of_user
        self.of_task = TaskColumns(
            task=_columns(of_task, _NEEDS_OF_TASK, TaskRow._fields),
            creator=of_user if "creator" in of_task else None,
            assignee=of_user if "assignee" in of_task else None,
        )
        self.cursors_of_tasks = bool(fields["TaskConnection"] & _WITH_CURSORS)
        self.changes_cursor = "changesCursor" in fields["TaskConnection"]
        # Only where it is sure that the one list there is is counted: to count for nothing may take long.
        self.total_of_tasks = len(lists) == 1 and any(
            isinstance(selection, FieldNode) and selection.name.value == "totalCount" and not selection.directives
            for selection in lists[0].selections
        )
        if fields["UserConnection"] & _WITH_CURSORS and "username" not in of_user:
            self.of_user = (*of_user, "username")


def _columns(fields: Set[str], needs: Mapping[str, Set[str]], all_columns: tuple[str, ...]) -> tuple[str, ...]:
    needed = {"id"}
    for field in fields:
        needed.update(needs.get(field, all_columns))
    return tuple(name for name in all_columns if name in needed)


def _examine(
    schema: GraphQLSchema, document: DocumentNode
) -> tuple[defaultdict[str, set[str]], list[SelectionSetNode]]:
    """The names of the fields by the type they are selected of, and what is selected of each list of tasks."""
    types = TypeInfo(schema)
    names: defaultdict[str, set[str]] = defaultdict(set)
    lists: list[SelectionSetNode] = []

    class Fields(Visitor):
        def enter_field(self, node: FieldNode, *_: Any) -> None:
            parent, type_ = types.get_parent_type(), types.get_type()
            if parent is not None:
                names[parent.name].add(node.name.value)
            if node.selection_set and type_ is not None and get_named_type(type_).name == "TaskConnection":
                lists.append(node.selection_set)

    visit(document, TypeInfoVisitor(types, Fields()))
    return names, lists
