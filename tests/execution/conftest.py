import os

import pytest
from hypothesis import HealthCheck, settings

# Set EXECUTION_EXAMPLES=20000 for a long run.
settings.register_profile(
    "execution",
    deadline=None,
    max_examples=int(os.environ.get("EXECUTION_EXAMPLES", "400")),
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("quick"):
        settings.load_profile("execution")
