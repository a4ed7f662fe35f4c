"""The layers of DESIGN, api -> services -> models -> database, held by reading every import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("layer", "imported"), [("api", "taskflow_gql.services"), ("services", "taskflow_gql.models"), ("cli", "typer")]
)
def test_the_arrows_that_are_meant_to_be_are_seen(layer: str, imported: str) -> None:
    assert naming(imports_of(layer), imported) != []


def test_services_know_nothing_of_graphql_and_http() -> None:
    assert naming(imports_of("services"), *GRAPHQL, "taskflow_gql.api", "taskflow_gql.execution") == []


def test_models_know_only_the_database() -> None:
    ours = [found for found in imports_of("models") if is_within(found.imported, "taskflow_gql")]
    assert naming(imports_of("models"), *GRAPHQL) == []
    assert [
        str(found) for found in ours if not naming([found], "taskflow_gql.models", "taskflow_gql.database.sessions")
    ] == []


def test_execution_knows_only_graphql_core() -> None:
    allowed = ("graphql", "taskflow_gql.execution")
    foreign = [
        str(found)
        for found in imports_of("execution")
        if found.importer != "taskflow_gql.execution.strawberry"
        and found.imported.partition(".")[0] not in sys.stdlib_module_names
        and not naming([found], *allowed)
    ]
    assert foreign == []


def test_database_services_and_stream_do_not_import_the_api() -> None:
    outside = [found for found in IMPORTS if found not in imports_of("api", "app", "cli", "operations", "transport")]
    assert naming(outside, "taskflow_gql.api") == []


def test_no_import_stands_inside_a_function() -> None:
    assert [str(found) for found in IMPORTS if found.is_inside_function] == []


def part(module: str) -> str:
    """`taskflow_gql.api.tasks` is in the part `api`, `taskflow_gql.database.sessions` is one of its own."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("by", [str], ids=["modules"])
def test_imports_make_no_circle(by: type[str]) -> None:
    graph: dict[str, set[str]] = {by(module): set() for module in MODULES}
    for found in IMPORTS:
        importer, imported = by(found.importer), by(found.imported)
        if found.imported in MODULES and importer != imported and not found.is_for_types:
            graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
