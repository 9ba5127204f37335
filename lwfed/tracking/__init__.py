"""Tracking of a run's records: always in a JSON-lines log, and in MLflow if it can be reached."""
