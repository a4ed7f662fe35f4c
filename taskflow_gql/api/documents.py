"""Each document is parsed and validated once, not once a request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from graphql import DocumentNode
from strawberry.extensions import SchemaExtension

# A front end has some hundred documents. Longer ones are rare, and a thousand of them would be a lot of memory.
_MOST_DOCUMENTS = 1000
_LONGEST_DOCUMENT = 10_000


class Documents:
    """Documents that were found valid, by their text; the one not used for longest goes first."""

    def __init__(self) -> None:
        self._valid: OrderedDict[str, DocumentNode] = OrderedDict()

    def get(self, text: str) -> DocumentNode | None:
        document = self._valid.get(text)
        if document is not None:
            self._valid.move_to_end(text)
        return document

    def keep(self, text: str, document: DocumentNode) -> None:
        if len(text) > _LONGEST_DOCUMENT:
            return
        self._valid[text] = document
        if len(self._valid) > _MOST_DOCUMENTS:
            self._valid.popitem(last=False)


class ReuseDocuments(SchemaExtension):
    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._is_known = False

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        if context.query is not None:
            context.graphql_document = self._documents.get(context.query)
            self._is_known = context.graphql_document is not None
        yield

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        if self._is_known:
            context.validation_rules = ()
        yield
        if not self._is_known and not context.pre_execution_errors and context.query and context.graphql_document:
            self._documents.keep(context.query, context.graphql_document)
