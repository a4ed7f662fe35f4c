"""`execution/` works as a folder copied into another project, without taskflow."""

import shutil
import subprocess
import sys
from pathlib import Path

import taskflow_gql.execution

FOLDER = Path(taskflow_gql.execution.__file__).parent

PROGRAM = """
import sys
from types import SimpleNamespace

# An editable installation of taskflow is not on this project's path either.
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "taskflow_gql":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())

import asyncio
import strawberry
from compiled.strawberry import Batched, BatchingExecutor

loads = []

async def load_names(context, ids):
    loads.append(ids)
    return {id_: f"person {id_}" for id_ in ids}

@strawberry.type
class Person:
    id: int
    name: str = strawberry.field(extensions=[Batched(load_names, key="id")])

@strawberry.type
class Query:
    @strawberry.field
    def people(self, first: int = 2) -> list[Person]:
        return [SimpleNamespace(id=number) for number in range(first)]

schema = strawberry.Schema(Query, execution_context_class=BatchingExecutor)
for _ in range(3):
    result = asyncio.run(schema.execute("{ people { id name } }"))
    assert result.errors is None, result.errors
    assert result.data == {"people": [{"id": 0, "name": "person 0"}, {"id": 1, "name": "person 1"}]}
assert loads == [[0, 1]] * 3
assert not any(name.startswith("taskflow_gql") for name in sys.modules)

from compiled import explain

assert "loaded" in explain(schema._schema, "{ people { name } }", executor_class=BatchingExecutor).plan
print("it works")
"""


def test_a_copied_folder_serves_a_strawberry_schema(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "compiled", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "it works\n", "")
