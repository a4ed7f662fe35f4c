"""Rules and SQL. Functions that take the session first and the viewer second, and never commit: the edge does."""
