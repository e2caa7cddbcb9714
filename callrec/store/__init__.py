"""Postgres, the record, and Redis, the view of now."""
