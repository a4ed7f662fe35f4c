"""The rooms of the package and the arrows between them, held by reading every import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest
from graphql import specified_scalar_types
from strawberry.utils.str_converters import to_snake_case

from taskflow_gql.api.schema import make_schema
from tests.support.serving import make_settings

PACKAGE = Path(__file__).parent.parent / "taskflow_gql"
GRAPHQL = ("strawberry", "graphql", "starlette")


@dataclass(frozen=True)
class Import:
    """One module that another one names in an import statement."""

    importer: str
    imported: str
    line: int
    # For annotations only: no such import happens when the program runs.
    is_for_types: bool
    is_inside_function: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports_in(source: str, importer: str, modules: frozenset[str], *, is_package: bool = False) -> Iterator[Import]:
    """`modules` are ours: `from package import name` is an import of package.name when that is one of them."""
    package = importer if is_package else importer.rpartition(".")[0]

    def walk(node: ast.AST, for_types: bool, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import():
                    names = [alias.name for alias in child.names]
                case ast.ImportFrom():
                    source_module = resolve_name("." * child.level + (child.module or ""), package)
                    whole = [f"{source_module}.{alias.name}" for alias in child.names]
                    names = [name if name in modules else source_module for name in whole]
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    yield from walk(child, True, inside)
                    continue
                case _:
                    is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                    yield from walk(child, for_types, inside or is_function)
                    continue
            for name in dict.fromkeys(names):
                yield Import(importer, name, child.lineno, for_types, inside)

    return walk(ast.parse(source), False, False)


def files_by_module() -> dict[str, Path]:
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = files_by_module()
MODULES = frozenset(FILES)
IMPORTS = [
    found
    for module, path in FILES.items()
    for found in imports_in(path.read_text(), module, MODULES, is_package=path.name == "__init__.py")
]


def imports_of(*layers: str) -> list[Import]:
    return [found for found in IMPORTS if any(is_within(found.importer, f"taskflow_gql.{layer}") for layer in layers)]


def naming(found: list[Import], *packages: str) -> list[str]:
    return [str(one) for one in found if any(is_within(one.imported, package) for package in packages)]


def test_the_reader_sees_modules_names_types_and_functions() -> None:
    source = (
        "import json, asyncio.events\n"
        "from taskflow_gql.services import accounts, Missing\n"
        "if TYPE_CHECKING:\n"
        "    from taskflow_gql.api import tasks\n"
        "from .sibling import name\n"
        "from .. import above\n"
        "class Late:\n"
        "    def method(self):\n"
        "        import strawberry\n"
    )
    ours = frozenset({"taskflow_gql.services.accounts", "taskflow_gql.api.tasks", "a.above"})
    assert list(imports_in(source, "a.b.c", ours)) == [
        Import("a.b.c", "json", 1, False, False),
        Import("a.b.c", "asyncio.events", 1, False, False),
        Import("a.b.c", "taskflow_gql.services.accounts", 2, False, False),
        Import("a.b.c", "taskflow_gql.services", 2, False, False),
        Import("a.b.c", "taskflow_gql.api.tasks", 4, True, False),
        Import("a.b.c", "a.b.sibling", 5, False, False),
        Import("a.b.c", "a.above", 6, False, False),
        Import("a.b.c", "strawberry", 9, False, True),
    ]
    (imported,) = imports_in("from .core import run", "a.b", ours, is_package=True)
    assert imported.imported == "a.b.core"


# What each part of the package may import of the others. `app` puts them together, `cli` starts them.
ARROWS: dict[str, set[str]] = {
    "api": {
        "clock",
        "config",
        "database",
        "errors",
        "execution",
        "models",
        "operations",
        "security",
        "services",
        "stream",
    },
    "clock": set(),
    "config": {"errors"},
    "database": {"config", "errors"},
    "errors": set(),
    "execution": set(),
    "models": {"database"},
    "operations": {"config", "database", "errors", "execution"},
    "security": {"clock", "errors", "short_keys"},
    "services": {"clock", "database", "errors", "models", "security"},
    "short_keys": set(),
    "stream": {"clock", "config", "database", "errors", "security", "services"},
    "telemetry": {"config"},
    "transport": {"config", "errors", "operations", "short_keys"},
}
STARTERS = {"__main__", "app", "cli"}


def part(module: str) -> str:
    """`taskflow_gql.api.tasks` is in the part `api`."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_its_arrows() -> None:
    assert {part(module) for module in MODULES} - {""} == ARROWS.keys() | STARTERS


@pytest.mark.parametrize("name", ARROWS)
def test_imports_follow_the_arrows(name: str) -> None:
    foreign = {found for found in imports_of(name) if is_within(found.imported, "taskflow_gql")}
    assert [str(found) for found in foreign if part(found.imported) not in {"", name, *ARROWS[name]}] == []


@pytest.mark.parametrize(
    ("name", "imported"), [("api", "taskflow_gql.services"), ("services", "taskflow_gql.models"), ("cli", "typer")]
)
def test_imports_are_found(name: str, imported: str) -> None:
    assert naming(imports_of(name), imported) != []


@pytest.mark.parametrize("name", ["database", "models", "security", "services", "stream"])
def test_graphql_and_http_stay_above_the_services(name: str) -> None:
    assert naming(imports_of(name), *GRAPHQL) == []


def test_execution_imports_graphql_core_alone_and_strawberry_in_one_file() -> None:
    allowed = ("graphql", "taskflow_gql.execution")
    foreign = [
        str(found)
        for found in imports_of("execution")
        if found.imported.partition(".")[0] not in sys.stdlib_module_names
        and not naming([found], *allowed)
        and (found.importer, found.imported.partition(".")[0]) != ("taskflow_gql.execution.strawberry", "strawberry")
    ]
    assert foreign == []


# The files that reach into libraries. Each has a test that names the part that a new version has changed:
# test_private.py of the same part, and test_libraries.py of `execution`.
PRIVATE = {"database.private", "execution.core", "execution.strawberry", "operations.private", "transport.private"}
# Their classes call private methods of their base classes.
SUBCLASSES = {"transport.protocols": {"_should_upgrade", "_start_asgi_task"}}
SUBCLASSES |= {"transport.websocket": {"_handle_pre_execution_error"}}
NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
UNDOCUMENTED = (
    "graphql.execution.collect_fields",
    "graphql.execution.executor",
    "graphql.execution.get_variable_signature",
    "graphql.execution.values",
    "graphql.language",
    "graphql.validation",
    "strawberry.http",
    "strawberry.schema.schema",
    "strawberry.schema.schema_converter",
    "strawberry.subscriptions.protocols",
    "uvicorn.protocols",
    "uvicorn.server",
    "uvicorn.supervisors",
    "websockets.http11",
    "websockets.protocol",
)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_parts(source: str) -> set[str]:
    """The private names that the source imports, or reads of an object without defining one of this name."""
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(names=names):
                used.update(alias.name for alias in names)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                defined.add(name)
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                defined.add(name)
    return {name for name in used - defined - NAMED_TUPLE if is_private(name)}


def test_private_parts_are_seen() -> None:
    source = (
        "from library import _imported, public\n"
        "class Own(Base):\n"
        "    _declared: int\n"
        "    def __init__(self):\n"
        "        self._own = self._inherited = row._fields\n"
        "    def _method(self):\n"
        "        return self._own, self._declared, self._method(), thing._private, self._read\n"
    )
    # A name that is stored counts as our own.
    assert private_parts(source) == {"_imported", "_private", "_read"}


def test_private_parts_of_libraries_are_used_in_one_file_of_each_part() -> None:
    found = {
        f"{module} uses {name}"
        for module, path in FILES.items()
        if (inner := module.partition(".")[2]) not in PRIVATE
        for name in private_parts(path.read_text()) - SUBCLASSES.get(inner, set())
    }
    assert found == set()
    others = [found for found in IMPORTS if found.importer.partition(".")[2] not in PRIVATE]
    assert naming(others, *UNDOCUMENTED) == []


SCHEMA = make_schema(make_settings()).core
# Names that belong to GraphQL and to connections in general.
GENERAL = {"Query", "Mutation", "Subscription", "Node", "PageInfo", "node", "nodes"}


@cache
def nouns() -> frozenset[str]:
    """The names of the schema's types and root fields, in the spellings of GraphQL and of Python."""
    types = {name for name in SCHEMA.type_map if not name.startswith("__") and name not in specified_scalar_types}
    roots = (SCHEMA.query_type, SCHEMA.mutation_type, SCHEMA.subscription_type)
    fields = {name for root in roots if root is not None for name in root.fields}
    names = (types | fields) - GENERAL
    return frozenset(names | {to_snake_case(name) for name in names} | {f"{name}Row" for name in types})


def names_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.alias(name=name) | ast.arg(arg=name) | ast.Constant(value=str(name)):
                yield name


@pytest.mark.parametrize("name", ["execution", "operations", "transport"])
def test_no_noun_is_named_below_the_api(name: str) -> None:
    # A task of asyncio is one too.
    found = {
        f"{module}: {word}"
        for module, path in FILES.items()
        if part(module) == name
        for word in names_in(path)
        if word in nouns() - {"task", "tasks"}
    }
    assert found == set()


def test_no_import_stands_inside_a_function() -> None:
    assert [str(found) for found in IMPORTS if found.is_inside_function] == []


@pytest.mark.parametrize("by", [str, part], ids=["modules", "parts"])
def test_imports_make_no_circle(by: Callable[[str], str]) -> None:
    """Those under TYPE_CHECKING count."""
    graph: dict[str, set[str]] = {by(module): set() for module in MODULES}
    for found in IMPORTS:
        importer, imported = by(found.importer), by(found.imported)
        if found.imported in MODULES and importer != imported and imported:
            graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_nothing_imports_from_a_test_file() -> None:
    tests = Path(__file__).parent
    found = [
        f"{path.relative_to(tests)} imports {node.module}"
        for folder in (tests, tests.parent / "bench")
        for path in sorted(folder.rglob("*.py"))
        if "node_modules" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2].startswith("test_")
    ]
    assert found == []
