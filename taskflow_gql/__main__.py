"""The entry point of `taskflow` and `python -m taskflow_gql`."""

from __future__ import annotations

import gc

# Imports create many objects and almost no garbage. Collecting during them took a fifth of the start-up time.
gc.disable()

from taskflow_gql.cli.main import app  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    app()
