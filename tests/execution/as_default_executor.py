"""A pytest plugin that makes the compiling executor graphql-core's default, to run graphql-core's own tests.

pip download --no-binary graphql-core --no-deps graphql-core==3.3.2 && tar xf graphql_core-3.3.2.tar.gz
pip install pytest-describe pytest-timeout pytest-benchmark anyio
cd graphql_core-3.3.2
PYTHONPATH=$REPOSITORY:$REPOSITORY/tests/execution pytest -p as_default_executor tests --ignore tests/benchmarks
"""

import sys
from typing import Any

import graphql.execution.execute  # noqa: F401  (the module, which the package hides behind the function)

from taskflow_gql.execution import CompilingExecutor


class Counting(CompilingExecutor):
    seen_before_planned = 1
    operations = 0
    planned = 0

    def _fills(self, serially: bool | None) -> Any:
        fills = super()._fills(serially)
        Counting.operations += 1
        Counting.planned += fills is not None
        return fills


_module: Any = sys.modules["graphql.execution.execute"]
_module.IncrementalExecutor = Counting
_module.ExecutorThrowingOnIncremental = Counting


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{Counting.operations} operations, {Counting.planned} of them compiled")
