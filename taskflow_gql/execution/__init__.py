"""An executor for graphql-core that compiles operations. See README.md."""

from .batch import BATCH, Batch, batch_resolver
from .executor import CompilingExecutor
from .explain import explain
from .sources import AsItIs, IsInstance, trust

__all__ = ["BATCH", "AsItIs", "Batch", "CompilingExecutor", "IsInstance", "batch_resolver", "explain", "trust"]
