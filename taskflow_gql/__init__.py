"""A GraphQL API server for collaborative tasks."""

from importlib.metadata import version

__version__ = version("taskflow-gql")
