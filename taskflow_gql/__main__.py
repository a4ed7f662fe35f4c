"""What `taskflow` and `python -m taskflow_gql` start."""

from __future__ import annotations

import gc

# Imports make a great many objects and nearly no garbage. Looking for some took a fifth of the start.
gc.disable()

from taskflow_gql.cli.main import app  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    app()
