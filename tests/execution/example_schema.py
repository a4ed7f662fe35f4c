"""A library of books: a Strawberry schema that knows nothing of taskflow.

It uses synchronous resolvers, asynchronous ones and a DataLoader, permissions, field extensions, generics, unions,
interfaces, Relay, inputs, a mutation and a subscription. `Batched` comes from `execution/`, everything else from
Strawberry.
"""

import asyncio
import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import date
from decimal import Decimal
from enum import Enum
from types import ModuleType
from typing import Annotated, Any, Generic, TypeVar

import strawberry
from strawberry import relay
from strawberry.dataloader import DataLoader
from strawberry.extensions import FieldExtension
from strawberry.permission import BasePermission
from strawberry.types import Info

from taskflow_gql.execution.strawberry import Batched

T = TypeVar("T")
_serial = itertools.count()


@strawberry.enum
class Genre(Enum):
    NOVEL = "novel"
    ESSAY = strawberry.enum_value("essay", name="ESSAYS")


@dataclasses.dataclass(frozen=True, slots=True)
class AuthorRow:
    id: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class BookRow:
    id: int
    title: str
    author_id: int | None
    genre: Genre
    published: date
    price: Decimal


class Library:
    """The data, with a list of what was loaded."""

    def __init__(self, books: int = 6, authors: int = 3) -> None:
        self.authors = {number: AuthorRow(number, f"Author {number}") for number in range(authors)}
        self.books = [
            BookRow(
                number,
                f"Book {number}",
                None if number % 5 == 4 else number % authors,
                Genre.ESSAY if number % 3 else Genre.NOVEL,
                date(2000 + number % 20, 1, 1 + number % 28),
                Decimal(number) / 4,
            )
            for number in range(books)
        ]
        self.loads: list[Any] = []
        self.author_loader = DataLoader(load_fn=self._load_authors)

    async def _load_authors(self, ids: list[int]) -> list[AuthorRow | ValueError]:
        self.loads.append(("DataLoader", ids))
        return [self.authors.get(id_) or ValueError(f"no author {id_}") for id_ in ids]


def library_of(context: Any) -> Library:
    library: Library = context["library"] if isinstance(context, dict) else context.library
    return library


async def load_authors(context: Any, ids: list[int]) -> dict[int, AuthorRow | Exception]:
    library = library_of(context)
    library.loads.append(("authors", ids))
    return {id_: library.authors.get(id_) or LookupError(f"no author {id_}") for id_ in ids}


async def load_books(context: Any, ids: list[int], genre: Genre | None = None, first: int = 2) -> dict[int, Any]:
    library = library_of(context)
    library.loads.append(("books", ids, genre, first))
    return {
        id_: [book for book in library.books if book.author_id == id_ and genre in (None, book.genre)][:first]
        for id_ in ids
    }


class IsReader(BasePermission):
    message = "only for readers"

    def has_permission(self, source: Any, info: Info[Any, Any], **kwargs: Any) -> bool:
        return not isinstance(info.context, dict) or info.context.get("reader", True)


class IsLibrarian(BasePermission):
    message = "only for librarians"
    error_extensions = {"code": "FORBIDDEN"}  # noqa: RUF012

    async def has_permission(self, source: Any, info: Info[Any, Any], **kwargs: Any) -> bool:
        await asyncio.sleep(0)
        return isinstance(info.context, dict) and bool(info.context.get("librarian"))


class Quoted(FieldExtension):
    def resolve(self, next_: Callable[..., Any], source: Any, info: Info[Any, Any], **kwargs: Any) -> Any:
        return f"“{next_(source, info, **kwargs)}”"


@strawberry.interface
class Named:
    id: strawberry.ID

    @strawberry.field
    def label(self) -> str:
        return f"{type(self).__name__} {self.id}"


@strawberry.type
class Page(Generic[T]):
    items: list[T]
    total: int

    @strawberry.field
    def is_empty(self) -> bool:
        return not self.items


@strawberry.type
class Author(Named):
    name: str

    @strawberry.field(extensions=[Batched(load_books, key="id", many=True)])  # type: ignore[untyped-decorator]
    def books(self, genre: Genre | None = None, first: int = 2) -> "list[Book]": ...  # type: ignore[empty-body]

    @classmethod
    def is_type_of(cls, value: Any, info: Any) -> bool:
        return isinstance(value, AuthorRow | Author)


@strawberry.type
class Book(Named):
    title: str
    genre: Genre
    published: date
    price: Decimal
    author_id: strawberry.Private[int | None]
    author: Author | None = strawberry.field(extensions=[Batched(load_authors, key="author_id")])
    writer: Author = strawberry.field(extensions=[Batched(load_authors, key="author_id")])
    lent_to: str | None = strawberry.field(
        permission_classes=[IsLibrarian], resolver=lambda: "nobody", description="Who has it."
    )

    @strawberry.field
    async def loaded_author(self, info: Info[Any, Any]) -> Author | None:
        if self.author_id is None:
            return None
        return await library_of(info.context).author_loader.load(self.author_id)  # type: ignore[return-value]

    @strawberry.field(extensions=[Quoted()])  # type: ignore[untyped-decorator]
    def quote(self, words: int = 1) -> str:
        return " ".join(self.title.split()[:words])

    @strawberry.field
    def age(self) -> int:
        if self.title == "Book 2":
            raise ValueError("this book has no age")
        return 2026 - self.published.year

    @classmethod
    def is_type_of(cls, value: Any, info: Any) -> bool:
        return isinstance(value, BookRow | Book)


@strawberry.type
class Shelf(relay.Node):
    id: relay.NodeID[int]
    room: str

    @classmethod
    def resolve_nodes(  # type: ignore[override]
        cls, *, info: Info[Any, Any], node_ids: Iterable[str], required: bool = False
    ) -> "list[Shelf | None]":
        return [Shelf(id=int(id_), room=f"Room {id_}") if int(id_) < 5 else None for id_ in node_ids]


@strawberry.type
class Missing:
    reason: str


Found = Annotated[Author | Book | Missing, strawberry.union("Found")]


@strawberry.input
class Between:
    low: Decimal | None = None
    high: Decimal | None = strawberry.UNSET


@strawberry.input
class BookFilter:
    genres: list[Genre] | None = None
    price: Between | None = None
    title_has: str = ""

    def accepts(self, book: BookRow) -> bool:
        price = self.price or Between()
        return (
            self.title_has in book.title
            and (self.genres is None or book.genre in self.genres)
            and (price.low is None or book.price >= price.low)
            and (not price.high or book.price <= price.high)
        )


@strawberry.input(one_of=True)
class BookKey:
    id: strawberry.Maybe[strawberry.ID]
    title: strawberry.Maybe[str]


@strawberry.type
class Seen:
    """What the resolver's info says."""

    path: list[str]
    variables: strawberry.scalars.JSON
    selected: list[str]
    extensions: strawberry.scalars.JSON | None
    root: str | None


@strawberry.type
class Query:
    node: relay.Node = relay.node()
    nodes: list[relay.Node | None] = relay.node()

    @relay.connection(relay.ListConnection[Shelf])  # type: ignore[untyped-decorator]
    def shelves(self) -> Iterable[Shelf]:
        return [Shelf(id=number, room=f"Room {number}") for number in range(4)]

    @strawberry.field
    async def books(self, info: Info[Any, Any], where: BookFilter | None = None) -> list[Book]:
        await asyncio.sleep(0)
        return [book for book in library_of(info.context).books if where is None or where.accepts(book)]  # type: ignore[misc]

    @strawberry.field
    def shelf_of_books(self, info: Info[Any, Any]) -> list[Book]:
        return list(library_of(info.context).books)  # type: ignore[arg-type]

    @strawberry.field
    def maybe_books(self, info: Info[Any, Any]) -> list[Book | None] | None:
        return list(library_of(info.context).books)  # type: ignore[arg-type]

    @strawberry.field
    def page(self, info: Info[Any, Any], first: int = 2) -> Page[Book]:
        books: list[Any] = library_of(info.context).books
        return Page(items=books[:first], total=len(books))

    @strawberry.field
    def authors(self, info: Info[Any, Any]) -> Page[Author]:
        authors: list[Any] = list(library_of(info.context).authors.values())
        return Page(items=authors, total=len(authors))

    @strawberry.field
    def search(self, info: Info[Any, Any], words: list[str]) -> list[Found]:
        library = library_of(info.context)
        found: list[Any] = []
        for word in words:
            found += [author for author in library.authors.values() if word in author.name]
            found += [book for book in library.books if word in book.title]
        return found or [Missing(reason="nothing has these words")]

    @strawberry.field
    def named(self, info: Info[Any, Any]) -> list[Named]:
        return [*library_of(info.context).books[:1], *library_of(info.context).authors.values()]  # type: ignore[list-item]

    @strawberry.field
    def made(self) -> list[Named]:
        return [Author(id=strawberry.ID("1"), name="made here")]

    @strawberry.field
    def book(self, info: Info[Any, Any], key: BookKey) -> Book | None:
        for book in library_of(info.context).books:
            if (key.id and str(book.id) == key.id.value) or (key.title and book.title == key.title.value):
                return book  # type: ignore[return-value]
        return None

    @strawberry.field(permission_classes=[IsReader])  # type: ignore[untyped-decorator]
    def motto(self) -> str:
        return "read"

    @strawberry.field(permission_classes=[IsLibrarian])  # type: ignore[untyped-decorator]
    async def secret(self) -> str | None:
        return "the key is under the mat"

    @strawberry.field
    def seen(self, info: Info[Any, Any], number: int = 0) -> Seen:
        return Seen(
            path=[str(key) for key in info.path.as_list()],
            variables=info.variable_values,  # type: ignore[arg-type]
            selected=[one.name for one in info.selected_fields[0].selections],  # type: ignore[union-attr]
            extensions=info.input_extensions,  # type: ignore[arg-type]
            root=info.root_value,
        )

    @strawberry.field
    def broken(self) -> str:
        raise RuntimeError("no such thing")

    @strawberry.field
    async def broken_later(self) -> str | None:
        await asyncio.sleep(0)
        raise RuntimeError("no such thing later")

    @strawberry.field
    def wrong(self) -> int:
        return "not a number"  # type: ignore[return-value]

    @strawberry.field
    def nothing(self) -> str:
        return None  # type: ignore[return-value]

    @strawberry.field
    def generated(self) -> list[int]:
        return (number for number in range(3))  # type: ignore[return-value]

    @strawberry.field
    async def streamed(self) -> list[int]:
        async def numbers() -> AsyncIterator[int]:
            for number in range(3):
                yield number

        return numbers()  # type: ignore[return-value]


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def add_author(self, info: Info[Any, Any], name: str) -> Author:
        library = library_of(info.context)
        await asyncio.sleep(0)
        author = library.authors[len(library.authors)] = AuthorRow(len(library.authors), name)
        return author  # type: ignore[return-value]

    @strawberry.mutation
    def burn(self) -> str:
        raise PermissionError("books are not burned here")


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def arrivals(self, info: Info[Any, Any], count: int = 3) -> AsyncIterator[Book]:
        for book in library_of(info.context).books[:count]:
            await asyncio.sleep(0)
            yield book  # type: ignore[misc]

    @strawberry.subscription
    async def interrupted(self, info: Info[Any, Any]) -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("the van broke down")


def make_schema(executor: Any = None, **options: Any) -> strawberry.Schema:
    """Make the schema with an executor class, None for Strawberry's default."""
    return strawberry.Schema(
        Query, Mutation, Subscription, types=[Author, Book], execution_context_class=executor, **options
    )


def fresh_copy() -> ModuleType:
    """Return a copy of this module with types of its own: Strawberry's Relay fields belong to one schema."""
    spec = importlib.util.spec_from_file_location(f"example_{next(_serial)}", __file__)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
