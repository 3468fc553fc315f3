"""Where events and keys are kept: one contract, SQLite and PostgreSQL."""
