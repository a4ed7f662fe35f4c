"""The program that `execution/README.md` shows first runs in a project that has nothing but a copy of the folder."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import taskflow_gql.execution

FOLDER = Path(taskflow_gql.execution.__file__).parent

# An editable installation puts taskflow on the path of every program of this environment.
WITHOUT_TASKFLOW = """
import sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "taskflow_gql":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, NotInstalled())
"""

EXPLAINED = """
from compiled import explain
from compiled.strawberry import core_schema

assert "loaded for all objects by load_authors" in explain(
    core_schema(schema), "{ books { author { name } } }", executor_class=BatchingExecutor
).plan
assert not any(name.startswith("taskflow_gql") for name in sys.modules)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER, tmp_path / "compiled", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_first_program_runs_with_a_copy_of_the_folder_alone(project: Path) -> None:
    readme = (FOLDER / "README.md").read_text()
    program, expected = re.findall(r"^```(?:python|text)\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[:2]
    (project / "program.py").write_text(WITHOUT_TASKFLOW + program + EXPLAINED)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=project,
        env={"PYTHONPATH": str(project), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_only_the_adapter_needs_strawberry(project: Path) -> None:
    program = WITHOUT_TASKFLOW.replace('== "taskflow_gql"', 'in {"taskflow_gql", "strawberry"}') + (
        "import compiled\n"
        "from graphql import build_schema, execute_sync, parse\n"
        "schema = build_schema('type Query { word: String }')\n"
        "document = parse('{ word }')\n"
        "for _ in range(3):\n"
        "    result = execute_sync(schema, document, {'word': 'yes'}, executor_class=compiled.CompilingExecutor)\n"
        "    assert result.data == {'word': 'yes'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
