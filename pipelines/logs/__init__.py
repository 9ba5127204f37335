"""Logs of a run's tasks: from the API if it has them, else from the pods."""
