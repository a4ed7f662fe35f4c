"""Each document is parsed and validated once, not once a request."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from graphql import DocumentNode, GraphQLError, OperationDefinitionNode

from taskflow_gql.api.columns import Columns

# A front end has some hundred documents. Longer ones are rare, and a thousand of them would be a lot of memory.
_MOST_DOCUMENTS = 1000
_LONGEST_DOCUMENT = 10_000
# Of all together. A parsed document takes some 150 times its text.
_MOST_CHARACTERS = 500_000


class Document:
    """A document, and what `api.limits` has found out about it."""

    def __init__(self, text: str, node: DocumentNode) -> None:
        self.text = text
        self.node = node
        self.operations = [one for one in node.definitions if isinstance(one, OperationDefinitionNode)]
        # Found out when it has been validated.
        self.columns: Columns | None = None
        # The names of the variables that are page sizes, and the problems by their values.
        self.page_sizes: tuple[str, ...] | None = None
        self.problems: dict[tuple[Any, ...], list[GraphQLError]] = {}

    def operation(self, name: str | None) -> OperationDefinitionNode | None:
        """The one of this name; without a name the first."""
        for operation in self.operations:
            if name is None or (operation.name is not None and operation.name.value == name):
                return operation
        return None


class Documents:
    """Documents that were found valid, by their text; the one not used for longest goes first."""

    def __init__(self) -> None:
        self._valid: OrderedDict[str, Document] = OrderedDict()
        self._characters = 0

    def get(self, text: str) -> Document | None:
        document = self._valid.get(text)
        if document is not None:
            self._valid.move_to_end(text)
        return document

    def keep(self, text: str, document: Document) -> None:
        if len(text) > _LONGEST_DOCUMENT:
            return
        if text not in self._valid:
            self._characters += len(text)
        self._valid[text] = document
        while len(self._valid) > _MOST_DOCUMENTS or self._characters > _MOST_CHARACTERS:
            gone, _ = self._valid.popitem(last=False)
            self._characters -= len(gone)
