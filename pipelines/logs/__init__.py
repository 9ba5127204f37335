"""Logs of a run's tasks: from the API while it has them, else from the pods."""
