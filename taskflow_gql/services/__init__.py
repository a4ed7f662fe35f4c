"""Rules and SQL. Functions take the session first and the viewer second. They never commit; their callers do."""
