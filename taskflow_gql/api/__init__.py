"""The GraphQL API: types with resolvers, one file for each noun. Resolvers open and close the units of work."""
