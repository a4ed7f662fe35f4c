"""The GraphQL API: types with their resolvers, one file a noun, and the edge that opens and closes units of work."""
